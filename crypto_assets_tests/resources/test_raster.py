"""The merged raster: what a row carries of other sources, from when on and until when.

Here: as-of joins with age limits, the leak guard at the end of a row, contracts beside their spot market. Not here: the
grid itself, market caps and coins (``test_dbt``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from crypto_assets.resources.warehouse import Lake
from crypto_assets.tables import table_of
from crypto_assets_tests.resources.small_lakes import (
    AGES,
    D1,
    DAY,
    HOUR,
    Row,
    bar,
    by_ts,
    cap,
    hours,
    run,
    store,
)

RASTER = ["rollups/klines", "rollups/raster"]
INSTANT = timedelta(microseconds=1)
CONTRACT = "A/USDT:USDT"
LISTINGS: tuple[dict[str, Any], ...] = (
    {"symbol": "A/USDT", "listing_id": "A/USDT#1", "coin_id": "a"},
    {"symbol": CONTRACT, "listing_id": f"{CONTRACT}#1"},
)
BOOK = [name.removeprefix("book_") for name in table_of("rollups/raster").column_names if name[:5] == "book_"]


def mark(at: datetime, close: float, kind: str = "mark") -> Row:
    """A candle of an hour that ends at a moment; it may be any, so that ages can be set to the microsecond."""
    nothing = dict.fromkeys(
        ("volume_base", "volume_quote", "n_trades", "taker_buy_base", "taker_buy_quote", "close_time")
    )
    return bar(CONTRACT, at - HOUR, close, kind=kind, known_at=at, **nothing)


def rate(ts: datetime, value: float, late: timedelta = timedelta()) -> Row:
    return {
        "venue": "binance",
        "symbol": CONTRACT,
        "ts": ts,
        "known_at": ts + late,
        "settled_at": ts + late,
        "funding_rate_frac": value,
    }


def interest(at: datetime, value: float) -> Row:
    return {
        "venue": "binance",
        "symbol": CONTRACT,
        "ts": at,
        "known_at": at,
        "open_interest_base": value,
        "open_interest_quote": 10 * value,
    }


def book(at: datetime, value: float, status: str = "ok", late: timedelta = timedelta()) -> Row:
    """A summary whose every number is told by one."""
    return {
        "venue": "binance",
        "symbol": "A/USDT",
        "ts": at,
        "known_at": at + late,
        "status": status,
        "n_bids": 1,
        "n_asks": 1,
        **{name: value + number for number, name in enumerate(BOOK)},
    }


#: Source -> its table, a column of the raster, and how a row that is known at a moment is made.
SOURCES: dict[str, tuple[str, str, Callable[[datetime, float], Row]]] = {
    "funding_rate": ("raw/funding_rates", "funding_rate_frac", rate),
    "open_interest": ("raw/open_interest", "open_interest_base", interest),
    "order_book": ("raw/order_book_summary", "book_mid", book),
}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = Lake(tmp_path / "warehouse")
    store(made, "raw/klines", hours("A/USDT", D1, 24))
    return made


def raster_of(lake: Lake, start: datetime = D1, n_days: int = 1, **options: Any) -> pa.Table:
    options.setdefault("listings", LISTINGS)
    return run(lake, RASTER, start, start + n_days * DAY, **options)["rollups/raster"]


def carried(raster: pa.Table, column: str) -> dict[int, float]:
    """Hour of the row's end -> value, where there is one."""
    return {(ts - D1) // HOUR + 1: value for ts, value in by_ts(raster, column).items() if value is not None}


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_known_by_the_end_of_a_row_is_carried_while_it_is_younger_than_its_limit(
    lake: Lake, source: str
) -> None:
    name, column, row = SOURCES[source]
    # Known just before, at, and just after the hour: two hours later the age is just over, at, and just under the limit.
    known = {5: -INSTANT, 11: timedelta(), 17: INSTANT}
    store(lake, name, [row(D1 + hour * HOUR + shift, float(hour)) for hour, shift in known.items()])
    ends = {5: [5, 6], 11: [12], 17: [18, 19]}
    expected = {end: float(hour) for hour, found in ends.items() for end in found}
    assert carried(raster_of(lake, ages={**AGES, source: 2 * HOUR}), column) == expected


def test_a_row_never_knows_what_was_told_after_its_end_however_early_its_time(lake: Lake) -> None:
    late = timedelta(minutes=30)
    store(lake, "raw/order_book_summary", [book(D1 + 9 * HOUR + timedelta(minutes=45), 7.0, late=late)])
    store(lake, "raw/funding_rates", [rate(D1 + 8 * HOUR, 0.1, timedelta(milliseconds=14))])
    raster = raster_of(lake, ages={**AGES, "order_book": HOUR, "funding_rate": 3 * HOUR})
    assert carried(raster, "book_mid") == {11: 7.0}
    assert carried(raster, "funding_rate_frac") == {9: 0.1, 10: 0.1, 11: 0.1}
    assert carried(raster, "funding_age_hours") == {9: 1.0, 10: 2.0, 11: 3.0}


@pytest.mark.parametrize("kind", ["mark", "premium"])
def test_the_last_closed_price_of_a_contract_is_younger_than_its_limit(lake: Lake, kind: str) -> None:
    column = {"mark": "mark_price", "premium": "premium_frac"}[kind]
    minutes = {2: 1, 5: 29, 8: 30, 11: 31, 14: 60}
    rows = [
        mark(D1 + hour * HOUR + timedelta(minutes=minute), -0.25, kind) for hour, minute in minutes.items()
    ]
    store(lake, "raw/klines", [*hours("A/USDT", D1, 24), *rows])
    assert carried(raster_of(lake), column) == dict.fromkeys((3, 6, 9, 12, 15), -0.25)
    ages = {**AGES, "contract": timedelta(minutes=30)}
    assert carried(raster_of(lake, ages=ages), column) == dict.fromkeys((12, 15), -0.25)


def test_the_newest_of_several_counts_and_an_unknown_value_does_not_fall_back(lake: Lake) -> None:
    samples = [interest(D1 + 9 * HOUR, 1.0), interest(D1 + 9 * HOUR + timedelta(minutes=20), 2.0)]
    unknown = interest(D1 + 10 * HOUR + timedelta(minutes=5), 3.0) | {"open_interest_base": None}
    store(lake, "raw/open_interest", [*samples, unknown])
    raster = raster_of(lake)
    assert by_ts(raster, "open_interest_base", "open_interest_quote")[D1 + 9 * HOUR] == (2.0, 20.0)
    assert by_ts(raster, "open_interest_base", "open_interest_quote")[D1 + 10 * HOUR] == (None, 30.0)


def test_of_books_those_that_are_ok_count(lake: Lake) -> None:
    sound = book(D1 + 9 * HOUR + timedelta(minutes=50), 1.0)
    broken = [
        book(D1 + 9 * HOUR + timedelta(minutes=50 + number), 9.0, status)
        for number, status in enumerate(("crossed", "stale", "empty", "one_sided", "out_of_sequence"), 1)
    ]
    store(lake, "raw/order_book_summary", [sound, *broken])
    raster = raster_of(lake)
    (row,) = [row for row in raster.to_pylist() if row["book_mid"] is not None]
    assert row["ts"] == D1 + 9 * HOUR
    assert [row[f"book_{name}"] for name in BOOK] == [1.0 + number for number in range(len(BOOK))]
    assert len(BOOK) == 26


def test_a_contract_stands_beside_its_spot_market_in_the_same_interval_and_in_no_other(lake: Lake) -> None:
    amounts = {"volume_base": Decimal("0.30000001"), "volume_quote": Decimal("3.3"), "n_trades": 7}
    traded = bar(CONTRACT, D1 + 5 * HOUR, 11.0, high=12.0, low=9.0, open=10.5, **amounts)
    lacking = bar(CONTRACT, D1 + 7 * HOUR, 11.0, volume_quote=None, taker_buy_base=None)
    store(lake, "raw/klines", [*hours("A/USDT", D1, 6), bar("A/USDT", D1 + 9 * HOUR), traded, lacking])
    raster = {row["ts"]: row for row in raster_of(lake).to_pylist()}
    assert set(raster) == {D1 + number * HOUR for number in range(24)}
    futures = {
        ts: {name[8:]: value for name, value in row.items() if name.startswith("futures_")}
        for ts, row in raster.items()
    }
    assert futures[D1 + 5 * HOUR] == {
        "open": 10.5,
        "high": 12.0,
        "low": 9.0,
        "close": 11.0,
        "volume_base": 0.30000001,
        "turnover_quote": 3.3,
        "n_trades": 7,
        "taker_buy_base": 0.5,
        "taker_buy_quote": 5.0,
    }
    # The spot market had no trade then; that of the contract is not hidden for it.
    assert not raster[D1 + 7 * HOUR]["has_bar"]
    assert raster[D1 + 7 * HOUR]["bar_age"] == 2
    assert futures[D1 + 7 * HOUR]["turnover_quote"] == 11.0
    assert futures[D1 + 7 * HOUR]["taker_buy_base"] is None
    for ts in set(raster) - {D1 + 5 * HOUR, D1 + 7 * HOUR}:
        assert set(futures[ts].values()) == {None}, ts
    assert raster[D1]["taker_buy_quote"] == 5.0


def test_other_contracts_and_venues_are_not_taken_for_it(lake: Lake) -> None:
    others = ["A/USDT:USDT-240329", "A/USD:A", "A/USDC:USDC"]
    listings = [*LISTINGS, *({"symbol": name, "listing_id": f"{name}#1"} for name in others)]
    rows = [row for name in others for row in hours(name, D1, 2, 99.0)]
    rows += hours(CONTRACT, D1, 2, 98.0, venue="bybit")
    store(lake, "raw/klines", [*hours("A/USDT", D1, 24), *rows])
    store(lake, "raw/funding_rates", [rate(D1, 0.1) | {"venue": "bybit"}])
    store(lake, "raw/open_interest", [interest(D1, 1.0) | {"symbol": others[0]}])
    raster = raster_of(lake, listings=listings)
    assert set(raster.column("symbol").to_pylist()) == {"A/USDT"}
    for column in ("futures_close", "funding_rate_frac", "open_interest_base"):
        assert raster.column(column).null_count == raster.num_rows, column


def test_a_cap_has_its_rank_among_the_known_ones_of_the_moment(lake: Lake) -> None:
    names = ["A/USDT", "B/USDT", "C/USDT", "D/USDT"]
    listings = [
        {"symbol": name, "listing_id": f"{name}#1", "coin_id": coin}
        for name, coin in zip(names, "abcd", strict=True)
    ]
    store(lake, "raw/klines", [row for name in names for row in hours(name, D1, 24)])
    caps = {"a": 5.0, "b": 9.0, "c": None, "d": 5.0}
    store(lake, "raw/market_caps", [cap(coin, D1 - DAY, value) for coin, value in caps.items()])
    raster = raster_of(lake, listings=listings)
    ranks = {row["symbol"]: row["market_cap_rank"] for row in raster.to_pylist() if row["ts"] == D1}
    assert ranks == {"A/USDT": 2, "B/USDT": 1, "C/USDT": None, "D/USDT": 2}


def sources_of_chance(lake: Lake, n_days: int) -> None:
    """Every source with holes and odd times, also at the very ends of days."""
    rng = np.random.default_rng(5)

    def kept(rows: list[Row]) -> list[Row]:
        return [row for row in rows if rng.random() > 0.2]

    n_hours = 24 * n_days
    moments = [D1 + number * HOUR for number in range(n_hours)]
    candles = [row for name in ("A/USDT", CONTRACT) for row in kept(hours(name, D1, n_hours))]
    candles += [
        row
        for kind in ("mark", "premium")
        for row in kept([mark(at + HOUR, float(rng.normal()), kind) for at in moments])
    ]
    store(lake, "raw/klines", candles)
    store(lake, "raw/market_caps", [cap("a", D1 + day * DAY, float(day + 9)) for day in range(-6, n_days)])
    settled = [at for at in moments if at.hour % 8 == 0]
    jitter = [timedelta(milliseconds=int(ms)) for ms in rng.choice([0, 14], len(settled))]
    rates = [rate(at, float(rng.normal(0, 0.001)), late) for at, late in zip(settled, jitter, strict=True)]
    store(lake, "raw/funding_rates", kept(rates))
    store(lake, "raw/open_interest", kept([interest(at, float(rng.random())) for at in moments]))
    looks = [at + timedelta(minutes=int(minute)) for at in moments for minute in (0, 40, 50, 59)]
    late = timedelta(seconds=80)
    statuses = rng.choice(["ok", "ok", "stale"], len(looks))
    books = [
        book(at, float(rng.random()), str(status), late) for at, status in zip(looks, statuses, strict=True)
    ]
    store(lake, "raw/order_book_summary", kept(books))


def test_day_by_day_in_any_order_equals_the_range_bit_for_bit(lake: Lake) -> None:
    n_days = 3
    sources_of_chance(lake, n_days)
    made = run(lake, RASTER, D1, D1 + n_days * DAY, listings=LISTINGS)
    whole = made["rollups/raster"]
    store(lake, "rollups/klines", made["rollups/klines"])
    for day in (D1 + number * DAY for number in (2, 0, 1)):
        alone = run(lake, RASTER, day, day + DAY, listings=LISTINGS)["rollups/raster"]
        inside = pa.array([day <= ts < day + DAY for ts in whole.column("ts").to_pylist()])
        assert alone.equals(whole.filter(inside)), day
    for column in whole.column_names:
        values = whole.column(column)
        assert values.null_count < len(values), column


def test_a_watermark_cuts_the_raster_and_changes_nothing_before_it(lake: Lake) -> None:
    sources_of_chance(lake, 2)
    end = D1 + 2 * DAY
    whole = run(lake, RASTER, D1, end, listings=LISTINGS)["rollups/raster"]
    for watermark in (D1 + DAY, D1 + 37 * HOUR):
        early = run(lake, RASTER, D1, end, listings=LISTINGS, watermark=watermark)["rollups/raster"]
        known = pa.array([moment <= watermark for moment in whole.column("known_at").to_pylist()])
        assert early.equals(whole.filter(known)), watermark


def recomputed(rows: list[Row], moment: datetime, age: timedelta, column: str) -> float | None:
    """An as-of join in plain words."""
    known = [row for row in rows if row["known_at"] <= moment and row["ts"] < moment]
    newest: Mapping[str, Any] = max(known, key=lambda row: row["known_at"], default={})
    return newest[column] if newest and moment - newest["known_at"] < age else None


def test_the_joins_are_those_of_a_plain_loop(lake: Lake) -> None:
    sources_of_chance(lake, 3)
    raster = run(lake, RASTER, D1, D1 + 3 * DAY, listings=LISTINGS)["rollups/raster"].to_pylist()

    def stored(name: str, **equal: object) -> list[Row]:
        rows = lake.read(table_of(name)).to_pylist()
        return [row for row in rows if all(row[key] == value for key, value in equal.items())]

    joins = {
        "mark_price": (stored("raw/klines", kind="mark"), "contract", "close"),
        "premium_frac": (stored("raw/klines", kind="premium"), "contract", "close"),
        "funding_rate_frac": (stored("raw/funding_rates"), "funding_rate", "funding_rate_frac"),
        "open_interest_base": (stored("raw/open_interest"), "open_interest", "open_interest_base"),
        "book_imbalance_best_frac": (
            stored("raw/order_book_summary", status="ok"),
            "order_book",
            "imbalance_best_frac",
        ),
    }
    for column, (rows, age, source) in joins.items():
        wanted = [recomputed(rows, row["known_at"], AGES[age], source) for row in raster]
        assert [row[column] for row in raster] == wanted, column
        assert None in wanted, column
        assert any(value is not None for value in wanted), column
