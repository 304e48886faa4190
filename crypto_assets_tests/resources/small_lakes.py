"""Small lakes written by hand, and the dbt models run over them.

Here: rows of the raw tables with everything filled in, storing them, one run. Not here: assertions. Tests of the roll-ups
and of the models import it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa

from crypto_assets.partitions import floor_of, keys_of, length_of
from crypto_assets.resources import dbt
from crypto_assets.resources.warehouse import Lake, Provenance, conform
from crypto_assets.settings import MaxAges, current_settings
from crypto_assets.tables import table_of

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
D1 = datetime(2024, 1, 1)
AGES = dict(MaxAges())
ALL_ROLLUPS = ["rollups/klines", "rollups/raster"]
#: What is compared in the cross-section: every column of its contract.
STANDINGS = [
    {"name": one.name, "kind": one.kind, "compared": one.column, "source": one.table}
    for one in current_settings().standings
]

Row = dict[str, Any]


def bar(symbol: str, ts: datetime, close: float = 10.0, **values: Any) -> Row:
    """A base bar of one hour; every value can be replaced."""
    return {
        "venue": "binance",
        "symbol": symbol,
        "kind": "trade",
        "interval": "1h",
        "ts": ts,
        "known_at": ts + HOUR,
        "open": close,
        "high": close,
        "low": close,
        "close": close,
        "volume_base": Decimal(1),
        "volume_quote": Decimal(10),
        "n_trades": 1,
        "taker_buy_base": Decimal("0.5"),
        "taker_buy_quote": Decimal(5),
        "close_time": ts + HOUR - timedelta(milliseconds=1),
    } | values


def hours(symbol: str, start: datetime, count: int, close: float = 10.0, **values: Any) -> list[Row]:
    return [bar(symbol, start + number * HOUR, close, **values) for number in range(count)]


def cap(coin_id: str, day: datetime, value: float | None) -> Row:
    return {
        "coin_id": coin_id,
        "ts": day,
        "known_at": day + DAY + timedelta(minutes=45),
        "price_usd": 1.0,
        "market_cap_usd": value,
        "volume_24h_usd": 1.0,
    }


def store(lake: Lake, name: str, rows: Iterable[Row] | pa.Table) -> None:
    """Write rows to the partitions of their days, or hours."""
    table = table_of(name)
    arrow = (
        rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema=table.arrow_schema())
    )
    starts: dict[datetime, list[int]] = {}
    for number, ts in enumerate(arrow.column(table.time_column).to_pylist()):
        starts.setdefault(floor_of(table.clock, ts), []).append(number)
    for start, numbers in starts.items():
        ((key, left, right),) = keys_of(table.clock, start, start + length_of(table.clock))
        lake.replace(table, key, arrow.take(pa.array(numbers)), Provenance(name, key), (left, right))


def run(
    lake: Lake,
    select: Sequence[str],
    start: datetime,
    end: datetime,
    *,
    listings: Sequence[Mapping[str, Any]] = ({"symbol": "A/USDT", "listing_id": "A/USDT#1", "coin_id": "a"},),
    base: str = "1h",
    intervals: Sequence[str] = ("1h", "4h", "1d"),
    watermark: datetime | None = None,
    ages: Mapping[str, timedelta] = AGES,
) -> dict[str, pa.Table]:
    n_days = (end - start).days
    marks = {start + number * DAY: watermark or end for number in range(n_days)}
    controls = {
        **dbt.interval_controls("binance", base, intervals, "1h"),
        "days": dbt.watermark_control(marks),
        "listings": dbt.listing_control(listings),
        "ages": dbt.age_control(ages),
        "standings": dbt.standing_control(STANDINGS),
    }
    found = dbt.run_dbt(lake, select, start, end, controls)
    return {name: conform(rows, table_of(name), (start, end)) for name, rows in found.items()}


def by_ts(rows: pa.Table, *columns: str, **equal: Any) -> dict[datetime, Any]:
    chosen = [row for row in rows.to_pylist() if all(row[name] == value for name, value in equal.items())]
    return {
        row["ts"]: row[columns[0]] if len(columns) == 1 else tuple(row[name] for name in columns)
        for row in chosen
    }
