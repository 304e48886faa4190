"""Roll-ups by cascade against the direct ones, of contracts as of spot, and by weeks.

Here: what the models of rollups/klines and rollups/klines_1w compute. Not here: recorded bars (``test_recorded_rollups``),
the runner and the other models (``test_dbt``).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from crypto_assets.intervals import MINUTE_MS, interval_ms
from crypto_assets.resources import dbt
from crypto_assets.resources.warehouse import Lake, conform
from crypto_assets.tables import table_of
from crypto_assets_tests.resources.small_lakes import AGES, D1, DAY, HOUR, bar, by_ts, hours, run, store

KLINES, WEEKS = table_of("rollups/klines"), table_of("rollups/klines_1w")
EVERY = ("5m", "10m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d")
MINUTE = timedelta(minutes=1)
#: The life of the first coin of the reused ticker ends inside a bar of every interval.
SWITCH = D1 + DAY + 7 * HOUR + 3 * MINUTE
LISTINGS: tuple[dict[str, Any], ...] = (
    {"symbol": "A/USDT", "listing_id": "A/USDT#1", "valid_to": SWITCH},
    {"symbol": "A/USDT", "listing_id": "A/USDT#2", "valid_from": SWITCH},
    {"symbol": "B/USDT", "listing_id": "B/USDT#1"},
    {"symbol": "B/USDT:USDT", "listing_id": "B/USDT:USDT#1"},
)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "warehouse")


def random_minutes(n_days: int) -> list[dict[str, Any]]:
    """Minutes of three markets with holes, missing volumes and amounts that binary floats cannot hold."""
    rng = np.random.default_rng(3)
    rows = []
    for symbol in ("A/USDT", "B/USDT", "B/USDT:USDT"):
        for number in range(n_days * 1440):
            if rng.random() < 0.03:
                continue
            ts = D1 + number * MINUTE
            low, first, last, high = sorted(rng.lognormal(3, 0.1, 4).tolist())
            amounts = [Decimal(int(amount)).scaleb(-8) for amount in rng.integers(0, 10**15, 4)]
            rows.append(
                bar(
                    symbol,
                    ts,
                    interval="1m",
                    known_at=ts + MINUTE,
                    open=first,
                    high=high,
                    low=low,
                    close=last,
                    volume_base=amounts[0],
                    volume_quote=None if rng.random() < 1e-4 else amounts[1],
                    n_trades=int(rng.integers(0, 10**6)),
                    taker_buy_base=amounts[2],
                    taker_buy_quote=amounts[3],
                )
            )
    return rows


def directly(rows: pa.Table, base: str, intervals: tuple[str, ...], watermark: datetime) -> pa.Table:
    """Every interval straight from the base, in one aggregation each: the definition."""
    lives = pa.Table.from_pylist(
        [{"valid_from": None, "valid_to": None, **one} for one in LISTINGS],
        schema=pa.schema(
            [
                ("symbol", pa.string()),
                ("listing_id", pa.string()),
                ("valid_from", pa.timestamp("us")),
                ("valid_to", pa.timestamp("us")),
            ]
        ),
    )

    def whole(column: str) -> str:
        return f"case when count({column}) = count(*) then sum({column}) end as {column}"

    sums = [whole(name) for name in ("volume_base", "volume_quote", "taker_buy_base", "taker_buy_quote")]
    parts = []
    with duckdb.connect() as connection:
        connection.register("base", rows)
        connection.register("lives", lives)
        for interval in intervals:
            length = interval_ms(interval) * 1000
            found = connection.execute(f"""
                select venue, symbol, '{interval}' as interval, ts, ts + to_microseconds({length}) as known_at, listing_id,
                    open, high, low, close, volume_base, volume_quote, n_trades, taker_buy_base, taker_buy_quote,
                    n_base_bars, n_base_bars = {interval_ms(interval) // interval_ms(base)} as complete
                from (
                    select venue, symbol, make_timestamp(epoch_us(moment) // {length} * {length}) as ts, listing_id,
                        first(open order by moment) as open, max(high) as high, min(low) as low,
                        last(close order by moment) as close, {", ".join(sums)},
                        case when count(n_trades) = count(*) then sum(n_trades)::bigint end as n_trades,
                        count(*) as n_base_bars, max(moment) as newest
                    from (
                        select base.* rename (ts as moment), listing_id from base join lives
                            on base.symbol = lives.symbol and base.ts >= coalesce(valid_from, base.ts)
                            and (valid_to is null or base.ts < valid_to)
                        where base.kind = 'trade')
                    group by all)
                where ts + to_microseconds({length}) <= timestamp '{watermark}'
                qualify newest = max(newest) over (partition by venue, symbol, ts)""")
            parts.append(found.to_arrow_table())
    return conform(pa.concat_tables(parts), KLINES)


def test_a_cascade_gives_the_bits_of_every_interval_made_directly(lake: Lake) -> None:
    store(lake, "raw/klines", random_minutes(2))
    end, watermark = D1 + 2 * DAY, D1 + DAY + 20 * HOUR + 17 * MINUTE
    found = run(
        lake,
        [KLINES.name],
        D1,
        end,
        base="1m",
        intervals=EVERY,
        listings=LISTINGS,
        watermark=watermark,
    )[KLINES.name]
    wanted = directly(lake.read(table_of("raw/klines")), "1m", EVERY, watermark)
    assert found.equals(wanted)
    assert set(found.column("interval").to_pylist()) == set(EVERY)
    # The reused ticker has bars of both lives, and nothing of the first one in a bar that they share.
    lives = by_ts(found, "listing_id", symbol="A/USDT", interval="12h")
    assert lives == {D1: "A/USDT#1", D1 + 12 * HOUR: "A/USDT#1", D1 + DAY: "A/USDT#2"}
    for column in ("volume_quote", "volume_base"):
        assert (found.column(column).null_count > 0) == (column == "volume_quote")


@pytest.mark.parametrize(
    ("intervals", "parents"),
    [
        (EVERY, ["base", "5m", "5m", "15m", "30m", "1h", "2h", "2h", "4h", "6h", "12h"]),
        (("3m", "5m", "10m", "1h", "1d"), ["base", "base", "5m", "10m", "1h"]),
        (("1h", "4h", "6h", "8h"), ["base", "1h", "1h", "4h"]),
    ],
)
def test_every_interval_is_made_from_the_longest_that_divides_it(
    lake: Lake, intervals: tuple[str, ...], parents: list[str]
) -> None:
    controls = {
        **dbt.interval_controls("binance", "1m", intervals, "1h"),
        "days": dbt.watermark_control({D1: D1 + DAY}),
        "listings": dbt.listing_control([]),
        "ages": dbt.age_control(AGES),
        "standings": dbt.standing_control([]),
    }
    with dbt.built(lake, [KLINES.name], D1, D1 + DAY, controls) as made:
        sql = made.sql[KLINES.name]
    for interval, parent in zip(intervals, parents, strict=True):
        step = sql.split(f"bars_{interval} as materialized (")[1].split("group by")[0]
        assert step.split("from ")[-1].strip() == (parent if parent == "base" else f"bars_{parent}"), interval


def test_a_roll_up_of_a_roll_up_is_the_roll_up_of_the_base(lake: Lake, tmp_path: Path) -> None:
    """1m to 1h, stored as if 1h were the base, and on to 1d: the bars of 1m to 1d where every hour is whole."""
    rows = [row for row in random_minutes(1) if row["symbol"] == "B/USDT"]
    present = {row["ts"] for row in rows}
    rows += [
        bar("B/USDT", ts, interval="1m", known_at=ts + MINUTE)
        for ts in (D1 + number * MINUTE for number in range(1440))
        if ts not in present
    ]
    store(lake, "raw/klines", rows)
    once = run(lake, [KLINES.name], D1, D1 + DAY, base="1m", intervals=EVERY, listings=LISTINGS)[KLINES.name]
    hourly = [
        {**row, "kind": "trade", "close_time": None}
        for row in once.to_pylist()
        if row["interval"] == "1h" and row["complete"]
    ]
    assert len(hourly) == 24
    other = Lake(tmp_path / "other")
    raw = table_of("raw/klines").column_names
    store(other, "raw/klines", [{name: row[name] for name in raw} for row in hourly])
    longer = ("1h", "2h", "4h", "6h", "8h", "12h", "1d")
    twice = run(other, [KLINES.name], D1, D1 + DAY, intervals=longer, listings=LISTINGS)[KLINES.name]
    kept = [row for row in once.to_pylist() if row["interval"] in longer]
    minutes = [row.pop("n_base_bars") for row in kept]
    again = twice.to_pylist()
    assert minutes == [60 * row.pop("n_base_bars") for row in again]
    assert again == kept


def test_contracts_are_rolled_up_with_their_own_symbol_and_trades_alone(lake: Lake) -> None:
    spot, contract = hours("B/USDT", D1, 4, 10.0), hours("B/USDT:USDT", D1, 4, 11.0)
    marks = hours("B/USDT:USDT", D1, 4, 12.0, kind="mark", volume_base=None)
    store(lake, "raw/klines", [*spot, *contract, *marks])
    found = run(lake, [KLINES.name], D1, D1 + DAY, listings=LISTINGS)[KLINES.name]
    assert by_ts(found, "close", "listing_id", "complete", interval="4h", symbol="B/USDT:USDT") == {
        D1: (11.0, "B/USDT:USDT#1", True)
    }
    assert by_ts(found, "close", interval="4h", symbol="B/USDT") == {D1: 10.0}


def test_a_long_window_is_made_in_parts_that_together_are_the_window(lake: Lake) -> None:
    days = [D1 + number * DAY for number in (0, 30, 31, 61, 69)]
    store(lake, "raw/klines", [row for day in days for row in hours("B/USDT", day, 24)])
    end = D1 + 70 * DAY
    controls = {
        **dbt.interval_controls("binance", "1h", ["1h", "1d"], "1h"),
        "days": dbt.watermark_control({D1 + number * DAY: end for number in range(70)}),
        "listings": dbt.listing_control(LISTINGS),
        "ages": dbt.age_control(AGES),
        "standings": dbt.standing_control([]),
    }
    with dbt.built(lake, [KLINES.name, "rollups/raster"], D1, end, controls) as made:
        bounds = {name: [(part.start, part.end) for part in parts] for name, parts in made.parts.items()}
        stored = [set(by_ts(part.rows(), "ts", interval="1d")) for part in made.parts[KLINES.name]]
        raster = made.parts["rollups/raster"][0].rows()
    cuts = [D1, D1 + 31 * DAY, D1 + 62 * DAY, end]
    assert bounds == {
        KLINES.name: list(zip(cuts, cuts[1:], strict=False)),
        "rollups/raster": [(D1, end)],
    }
    assert stored == [{days[0], days[1]}, {days[2], days[3]}, {days[4]}]
    # The model after it in the same run sees all parts.
    assert sum(raster.column("has_bar").to_pylist()) == 5 * 24


WEEK_LISTINGS = (
    {"symbol": "A/USDT", "listing_id": "A/USDT#1", "valid_to": D1 + 30 * HOUR},
    {"symbol": "A/USDT", "listing_id": "A/USDT#2", "valid_from": D1 + 30 * HOUR},
    {"symbol": "B/USDT", "listing_id": "B/USDT#1"},
)


def weeks(lake: Lake, n_weeks: int, watermark: datetime | None = None) -> pa.Table:
    """Weekly bars of stored base bars, by the bars of days that the lake then holds."""
    end = D1 + n_weeks * 7 * DAY
    made = run(lake, [KLINES.name], D1, end, listings=WEEK_LISTINGS, watermark=watermark)
    store(lake, KLINES.name, made[KLINES.name])
    return run(lake, [WEEKS.name], D1, end, listings=WEEK_LISTINGS, watermark=watermark)[WEEKS.name]


def test_a_week_begins_on_monday_and_is_the_bar_of_its_base(lake: Lake) -> None:
    rows = [
        bar("B/USDT", D1 + number * HOUR, 100.0 + number % 97, volume_base=Decimal(number).scaleb(-8))
        for number in range(14 * 24)
    ]
    del rows[200]
    store(lake, "raw/klines", rows)
    found = weeks(lake, 2).to_pylist()
    assert [row["ts"] for row in found] == [D1, D1 + 7 * DAY]
    assert all(row["ts"].weekday() == 0 and row["known_at"] - row["ts"] == 7 * DAY for row in found)
    for row, inside in zip(found, (rows[:168], rows[168:]), strict=True):
        prices = [one["close"] for one in inside]
        assert (row["open"], row["high"], row["low"], row["close"]) == (
            prices[0],
            max(prices),
            min(prices),
            prices[-1],
        )
        assert row["volume_base"] == sum(one["volume_base"] for one in inside)
        assert (row["n_base_bars"], row["complete"]) == (len(inside), len(inside) == 168)
    assert [row["complete"] for row in found] == [True, False]


def test_a_week_that_runs_has_no_bar_and_a_reused_ticker_has_one_of_its_newer_life(lake: Lake) -> None:
    store(
        lake, "raw/klines", [*hours("A/USDT", D1, 9 * 24 + 1, 5.0), *hours("B/USDT", D1 + 8 * DAY, 24, 2.0)]
    )
    found = weeks(lake, 2, watermark=D1 + 9 * DAY + HOUR)
    assert by_ts(found, "symbol", "listing_id", "n_base_bars", "complete") == {
        D1: ("A/USDT", "A/USDT#2", 168 - 30, False)
    }


def test_lengths_of_intervals_are_whole_minutes() -> None:
    assert all(interval_ms(interval) % MINUTE_MS == 0 for interval in EVERY)
