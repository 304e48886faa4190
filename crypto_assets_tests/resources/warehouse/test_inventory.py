"""Coverage and gaps are exact: counted interval by interval they come out the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto_assets.resources.warehouse import Lake, Provenance, SeriesCoverage
from crypto_assets.resources.warehouse.inventory import coverage_table, gaps_table
from crypto_assets.resources.warehouse.lake import Piece, union_of
from crypto_assets.schemas import Table
from crypto_assets.tables import TABLES
from crypto_assets_tests.resources.warehouse.rows import KLINES, MIDNIGHT, books, look_series, merge_books

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
CAPS = TABLES["raw/market_caps"]
SUMMARY = TABLES["raw/order_book_summary"]
BTC = ("BTC/USDT", "trade")

Range = tuple[datetime, datetime]


def at(hour: float) -> datetime:
    return MIDNIGHT + timedelta(hours=hour)


def row_of(table: Table, ts: datetime, **values: object) -> dict[str, Any]:
    texts = {"VARCHAR": "x", "TIMESTAMP": ts, "DOUBLE": 1.0, "BIGINT": 1, "INTEGER": 1}
    needed = [column for column in table.columns if column.required or column.name in table.key]
    return dict.fromkeys(table.column_names) | {c.name: texts[c.type] for c in needed} | {"ts": ts} | values


def store(
    lake: Lake,
    table: Table,
    day: datetime,
    rows: Iterable[dict[str, Any]],
    coverage: Mapping[str, Sequence[Range]],
    watermark: datetime,
) -> None:
    key = day.date().isoformat()
    series = tuple(SeriesCoverage(name, union_of(ranges)) for name, ranges in sorted(coverage.items()))
    made = Provenance(table.name, key, coverage=series, watermark=watermark)
    lake.replace(table, key, pa.Table.from_pylist(list(rows), schema=table.arrow_schema()), made)


def store_hours(
    lake: Lake,
    present: dict[tuple[str, str], set[int]],
    covered: Mapping[tuple[str, str], Sequence[tuple[float, float]]],
    until: float,
    *,
    n_days: int = 3,
    venue: str = "binance",
) -> None:
    """Hourly candles of some series over some days, each in the partition of its day."""
    for number in range(n_days):
        day = MIDNIGHT + number * DAY
        if day >= at(until):
            break
        rows = [
            row_of(KLINES, at(hour), venue=venue, symbol=symbol, kind=kind, interval="1h")
            for (symbol, kind), hours in present.items()
            for hour in hours
            if day <= at(hour) < day + DAY
        ]
        clipped = {
            f"{venue}|{symbol}|{kind}|1h": [
                (max(at(a), day), min(at(b), day + DAY))
                for a, b in ranges
                if at(a) < day + DAY and at(b) > day
            ]
            for (symbol, kind), ranges in covered.items()
        }
        asked = {name: ranges for name, ranges in clipped.items() if ranges}
        store(lake, KLINES, day, rows, asked, min(at(until), day + DAY))


def gaps(lake: Lake, **more: Any) -> list[tuple[str, str, float, float, int, str]]:
    """Symbol, kind, first and last hour, number and origin of each gap."""
    return [
        (
            row["symbol"],
            row["kind"],
            (row["ts"] - MIDNIGHT) / HOUR,
            (row["gap_end"] - MIDNIGHT) / HOUR,
            row["n_missing"],
            row["origin"],
        )
        for row in gaps_table(lake, **more).to_pylist()
    ]


def days(lake: Lake) -> list[tuple[str, str, int, int, int, int, int]]:
    """Symbol, kind, day, and what was expected, came, is the source's gap and ours."""
    names = ("n_expected", "n_rows", "n_source_gaps", "n_unexplained")
    return [
        (row["symbol"], row["kind"], row["ts"].day, *(row[name] for name in names))
        for row in coverage_table(lake).to_pylist()
    ]


def test_nothing_stored_has_typed_empty_tables(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    for name, rows in (("coverage", coverage_table(lake)), ("gaps", gaps_table(lake))):
        assert rows.num_rows == 0
        assert rows.schema.equals(TABLES[f"quality/{name}"].arrow_schema())


def test_a_series_that_lacks_nothing_has_no_gap(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    store_hours(lake, {BTC: set(range(54))}, {BTC: [(0, 54)]}, until=54)
    assert gaps(lake) == []
    assert days(lake) == [(*BTC, 1, 24, 24, 0, 0), (*BTC, 2, 24, 24, 0, 0), (*BTC, 3, 6, 6, 0, 0)]


def test_a_gap_inside_a_day_is_the_sources_where_it_was_asked_and_ours_where_not(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    store_hours(lake, {BTC: set(range(24)) - {3, 4, 10, 20}}, {BTC: [(0, 10), (11, 24)]}, until=24, n_days=1)
    assert gaps(lake) == [(*BTC, 3, 5, 2, "source"), (*BTC, 10, 11, 1, "ours"), (*BTC, 20, 21, 1, "source")]
    assert days(lake) == [(*BTC, 1, 24, 20, 3, 1)]


def test_a_run_over_midnights_is_one_gap_and_is_cut_where_its_reason_changes(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    present = set(range(20)) | set(range(52, 60))
    store_hours(lake, {BTC: present}, {BTC: [(0, 22), (47, 60)]}, until=60)
    assert gaps(lake) == [
        (*BTC, 20, 22, 2, "source"),
        (*BTC, 22, 47, 25, "ours"),
        (*BTC, 47, 52, 5, "source"),
    ]


def test_a_day_without_any_row_is_a_gap_like_any_other(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    store_hours(lake, {BTC: set(range(24)) | set(range(48, 72))}, {BTC: [(0, 72)]}, until=72)
    assert gaps(lake) == [(*BTC, 24, 48, 24, "source")]


def test_the_open_day_is_looked_at_up_to_the_watermark(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    store_hours(
        lake,
        {BTC: set(range(30)), ("ETH/USDT", "trade"): set(range(27))},
        {BTC: [(0, 31)], ("ETH/USDT", "trade"): [(0, 27)]},
        until=31,
    )
    assert gaps(lake) == [(*BTC, 30, 31, 1, "source"), ("ETH/USDT", "trade", 27, 31, 4, "ours")]
    assert (*BTC, 2, 7, 6, 1, 0) in days(lake)
    assert ("ETH/USDT", "trade", 2, 7, 3, 0, 4) in days(lake)


def test_nothing_is_missing_before_the_first_answer(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    store_hours(lake, {BTC: set(range(30, 48))}, {BTC: [(29, 48)]}, until=48)
    assert gaps(lake) == [(*BTC, 29, 30, 1, "source")]


def test_a_row_that_came_without_coverage_is_not_missing(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    store_hours(lake, {BTC: set(range(24))}, {BTC: [(0, 5), (8, 12)]}, until=24, n_days=1)
    assert gaps(lake) == []


def test_series_and_kinds_are_counted_apart(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    contract = "BTC/USDT:USDT"
    whole = set(range(24))
    store_hours(
        lake,
        {(contract, "trade"): whole, (contract, "mark"): whole - {5}, BTC: whole - {6}},
        {(contract, "trade"): [(0, 24)], (contract, "mark"): [(0, 24)], BTC: [(0, 24)]},
        until=24,
        n_days=1,
    )
    assert gaps(lake) == [(*BTC, 6, 7, 1, "source"), (contract, "mark", 5, 6, 1, "source")]
    assert days(lake) == [
        (*BTC, 1, 24, 23, 1, 0),
        (contract, "mark", 1, 24, 23, 1, 0),
        (contract, "trade", 1, 24, 24, 0, 0),
    ]


def test_a_series_that_ended_lacks_nothing_after_its_end(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    store_hours(lake, {BTC: set(range(20))}, {BTC: [(0, 21)]}, until=48)
    assert gaps(lake) == [(*BTC, 20, 21, 1, "source"), (*BTC, 21, 48, 27, "ours")]
    assert gaps(lake, ended={"binance|BTC/USDT|trade|1h": at(24.5)})[-1] == (*BTC, 21, 24, 3, "ours")
    assert gaps(lake, ended={"binance|BTC/USDT|trade|1h": at(3)}) == [(*BTC, 20, 21, 1, "source")]


def test_coverage_that_does_not_meet_the_grid_proves_whole_intervals_only(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    store_hours(lake, {BTC: {0}}, {BTC: [(0, 2.5), (2.5, 4.7), (5.2, 8)]}, until=8, n_days=1)
    assert gaps(lake) == [(*BTC, 1, 4, 3, "source"), (*BTC, 4, 6, 2, "ours"), (*BTC, 6, 8, 2, "source")]


def test_a_market_cap_is_awaited_from_its_publication_on(tmp_path: Path) -> None:
    lake = Lake(tmp_path)

    def store_day(number: int, present: bool, watermark: datetime) -> None:
        day = MIDNIGHT + number * DAY
        rows = [row_of(CAPS, day, coin_id="bitcoin")] if present else []
        asked = {"coingecko|bitcoin|market_cap|1d": [(day, day + DAY)]} if present else {}
        store(lake, CAPS, day, rows, asked, watermark)

    store_day(0, True, at(24.75))
    store_day(1, False, at(48 + 44 / 60))
    assert gaps(lake) == []
    store_day(1, False, at(48.75))
    assert gaps(lake) == [("bitcoin", "market_cap", 24, 48, 1, "ours")]


def test_rounds_of_order_books_are_awaited_between_the_first_and_the_last_look(tmp_path: Path) -> None:
    lake = Lake(tmp_path)

    def look(*minutes: float) -> None:
        for minute in minutes:
            slot = MIDNIGHT + timedelta(minutes=int(minute))
            key = f"{slot:%Y-%m-%d-%H}:00"
            hour = slot.replace(minute=0)
            rows = [row_of(SUMMARY, MIDNIGHT + timedelta(minutes=minute), venue="binance", symbol="BTC/USDT")]
            if minute in (63, 64):
                rows = []
            made = Provenance(
                SUMMARY.name,
                key,
                coverage=(SeriesCoverage(look_series(), ((slot, slot + timedelta(minutes=1)),)),),
            )
            piece = Piece(key, pa.Table.from_pylist(rows, schema=SUMMARY.arrow_schema()), made.coverage, slot)
            lake.merge(SUMMARY, key, piece, made, (hour, hour + HOUR), slot)

    look(57.5, 58.1, 59.9, 62.2, 63, 64, 65.4, 65.8)
    missing = [
        (row["interval"], row["ts"].minute, row["n_missing"], row["origin"])
        for row in gaps_table(lake).to_pylist()
    ]
    assert missing == [("60s", 0, 2, "ours"), ("60s", 3, 2, "source")]
    # Both hours lie in one day, and a second look in a round is not a second interval.
    assert days(lake) == [("BTC/USDT", "order_book", 1, 9, 5, 2, 2)]
    lake.compact(SUMMARY, date(2024, 1, 2))
    assert days(lake) == [("BTC/USDT", "order_book", 1, 9, 5, 2, 2)]


def test_series_without_a_fixed_interval_are_left_out(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    funding = TABLES["raw/funding_rates"]
    store(lake, funding, MIDNIGHT, [], {"binance|BTC/USDT:USDT|funding|": [(MIDNIGHT, at(24))]}, at(24))
    merge_books(lake, 0, books(0))
    assert gaps(lake) == days(lake) == []


HOURS = st.integers(0, 71)
HALF_HOURS = st.integers(0, 144).map(lambda n: n / 2)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    present=st.lists(st.sets(HOURS), min_size=2, max_size=2),
    covered=st.lists(st.lists(st.tuples(HALF_HOURS, HALF_HOURS), max_size=5), min_size=2, max_size=2),
    full_days=st.sets(st.integers(0, 2)),
    until=st.integers(1, 72),
)
def test_gaps_are_those_of_counting_interval_by_interval(
    tmp_path_factory: pytest.TempPathFactory,
    present: list[set[int]],
    covered: list[list[tuple[float, float]]],
    full_days: set[int],
    until: int,
) -> None:
    names = [("A/USDT", "trade"), ("A/USDT", "mark")]
    whole = {hour for day in full_days for hour in range(24 * day, 24 * day + 24)}
    rows = {
        name: {hour for hour in hours | whole if hour < until}
        for name, hours in zip(names, present, strict=True)
    }
    ranges = {
        name: [(a, min(b, until)) for a, b in found if a < min(b, until)]
        for name, found in zip(names, covered, strict=True)
    }
    lake = Lake(tmp_path_factory.mktemp("lake"))
    store_hours(lake, rows, ranges, until)
    assert sorted(gaps(lake)) == sorted(
        gap for name in names for gap in counted(name, rows[name], ranges[name], until)
    )


def counted(
    name: tuple[str, str], rows: set[int], ranges: Sequence[tuple[float, float]], until: int
) -> list[tuple[str, str, float, float, int, str]]:
    halves = {n / 2 for a, b in ranges for n in range(int(a * 2), int(b * 2))}
    answered = [hour for hour in range(until) if {hour, hour + 0.5} <= halves]
    if not answered:
        return []
    found: list[list[Any]] = []
    for hour in range(answered[0], until):
        if hour in rows:
            continue
        origin = "source" if hour in answered else "ours"
        if found and found[-1][1] == hour and found[-1][3] == origin:
            found[-1][1:3] = [hour + 1, found[-1][2] + 1]
        else:
            found.append([hour, hour + 1, 1, origin])
    return [(*name, *gap) for gap in found]
