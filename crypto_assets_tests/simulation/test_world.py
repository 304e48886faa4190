from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import crypto_assets.simulation
from crypto_assets.intervals import DAY_MS, HOUR_MS, MINUTE_MS
from crypto_assets.simulation.bars import (
    CLOSE,
    HIGH,
    LOW,
    OPEN,
    UNKNOWN,
    VOLUME_BASE,
    VOLUME_QUOTE,
    Bars,
    bar_end,
    grid_start,
)
from crypto_assets.simulation.recorded import RecordedWorld, Recordings
from crypto_assets.simulation.synthetic import SyntheticWorld
from crypto_assets.simulation.world import Kind, Restatement, World
from crypto_assets_tests.simulation.clients import at
from crypto_assets_tests.simulation.test_bars import make_bars

START = at(2023, 1, 1)
SPAN_DAYS = 6
WORLD = SyntheticWorld(11, START, START + SPAN_DAYS * DAY_MS, story_days=6)
SERIES: list[tuple[str, Kind]] = [(symbol, "trade") for symbol in ("BTC/USDT", "ARB/USDT", "SRM/USDT")]
SERIES += [(symbol, kind) for symbol in ("BTC/USDT:USDT", "SRM/USDT:USDT") for kind in get_args(Kind)]
INTERVALS = ["1m", "5m", "1h", "4h", "1d", "3d", "1w", "1M"]

moments = st.integers(START - HOUR_MS, START + SPAN_DAYS * DAY_MS + HOUR_MS)


def closed(bars: Bars, interval: str, now_ms: int) -> Bars:
    return bars.take(bar_end(bars.open_ms, interval) <= now_ms)


def same(left: Bars, right: Bars) -> bool:
    names = ("open_ms", "close_ms", "values", "n_trades")
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in names)


def hourly_world(*series: tuple[str, Bars]) -> RecordedWorld:
    return RecordedWorld(
        Recordings({("AAA/USDT", interval): lambda bars=bars: bars for interval, bars in series})
    )


@settings(max_examples=80, deadline=None)
@given(
    now=moments,
    series=st.sampled_from(SERIES),
    interval=st.sampled_from(INTERVALS),
)
def test_nothing_is_served_from_the_future(now: int, series: tuple[str, Kind], interval: str) -> None:
    symbol, kind = series
    bars = WORLD.klines(symbol, interval, now_ms=now, limit=1000, kind=kind)
    assert (bars.open_ms <= now).all()
    is_open = bar_end(bars.open_ms, interval) > now
    assert is_open.sum() <= 1
    assert (bars.close_ms[is_open] == bar_end(bars.open_ms, interval)[is_open] - 1).all()


@pytest.mark.parametrize("interval", INTERVALS)
def test_a_window_ends_now_whatever_was_asked(interval: str) -> None:
    now = START + DAY_MS - 1
    assert WORLD.window("BTC/USDT", interval, START - 40 * DAY_MS, now + DAY_MS, now).open_ms[-1] <= now


@settings(max_examples=80, deadline=None)
@given(
    pair=st.tuples(moments, moments).map(sorted),
    series=st.sampled_from(SERIES),
    interval=st.sampled_from(INTERVALS),
)
def test_what_was_closed_never_changes(pair: list[int], series: tuple[str, Kind], interval: str) -> None:
    (early, late), (symbol, kind) = pair, series
    first = START - 40 * DAY_MS
    then = closed(WORLD.window(symbol, interval, first, early + 1, early, kind), interval, early)
    now = closed(WORLD.window(symbol, interval, first, late + 1, late, kind), interval, early)
    assert same(then, now)


@settings(max_examples=60, deadline=None)
@given(
    now=moments,
    start=st.none() | moments,
    end=st.none() | moments,
    limit=st.integers(1, 50),
    interval=st.sampled_from(INTERVALS),
    series=st.sampled_from(SERIES),
)
def test_a_page_is_the_first_or_last_rows_of_the_window(
    now: int, start: int | None, end: int | None, limit: int, interval: str, series: tuple[str, Kind]
) -> None:
    symbol, kind = series
    low = START - 40 * DAY_MS if start is None else start
    high = now if end is None else end
    whole = WORLD.window(symbol, interval, low, high + 1, now, kind)
    page = WORLD.klines(symbol, interval, now_ms=now, limit=limit, start_ms=start, end_ms=end, kind=kind)
    assert same(page, whole.take(slice(-limit, None) if start is None else slice(limit)))


def test_the_open_hour_is_the_sum_of_its_minutes_so_far() -> None:
    now = START + 5 * HOUR_MS + 17 * MINUTE_MS + 30_000
    hour = WORLD.klines("BTC/USDT", "1h", now_ms=now, limit=1)
    minutes = WORLD.window("BTC/USDT", "1m", START + 5 * HOUR_MS, now + 1, now)
    assert len(minutes) == 18
    assert hour.values[OPEN, 0] == minutes.values[OPEN, 0]
    assert hour.values[CLOSE, 0] == minutes.values[CLOSE, -1]
    assert hour.values[VOLUME_QUOTE, 0] == minutes.values[VOLUME_QUOTE].sum()
    final = WORLD.klines("BTC/USDT", "1m", now_ms=now + HOUR_MS, limit=1, end_ms=now)
    assert minutes.values[VOLUME_BASE, -1] < final.values[VOLUME_BASE, 0]


def test_a_bar_that_just_opened_shows_its_open_and_no_volume() -> None:
    bar = WORLD.klines("BTC/USDT", "1m", now_ms=START + HOUR_MS, limit=1)
    assert bar.open_ms.tolist() == [START + HOUR_MS]
    assert len(set(bar.values[: CLOSE + 1, 0].tolist())) == 1
    assert bar.values[VOLUME_BASE, 0] == 0


def test_a_stored_long_bar_that_is_open_looks_like_its_finer_bars() -> None:
    hours = make_bars(
        [0, HOUR_MS, 2 * HOUR_MS],
        HOUR_MS,
        [[10, 12, 9, 11, 5, 50, 2, 20], [11, 15, 10, 14, 7, 80, 3, 30], [1] * 8],
    )
    day = make_bars([0], DAY_MS, [[10, 99, 1, 50, 1000, 9000, 500, 4000]])
    world = hourly_world(("1h", hours), ("1d", day))
    assert world.klines("AAA/USDT", "1d", now_ms=2 * HOUR_MS - 1 + 1, limit=1).values[HIGH, 0] == 15
    assert world.klines("AAA/USDT", "1d", now_ms=DAY_MS, limit=1).values[HIGH, 0] == 99


def test_a_stored_long_bar_without_a_picture_from_finer_ones_is_interpolated() -> None:
    late = make_bars([5 * HOUR_MS], HOUR_MS, [[40, 41, 39, 40, 5, 50, 2, 20]])
    day = make_bars([0], DAY_MS, [[10, 99, 1, 50, 1000, 9000, 500, 4000]])
    bar = hourly_world(("1h", late), ("1d", day)).klines("AAA/USDT", "1d", now_ms=6 * HOUR_MS, limit=1)
    assert bar.values[OPEN, 0] == 10
    assert bar.values[VOLUME_BASE, 0] == 250


def test_stored_intervals_are_served_as_they_are_and_never_mixed() -> None:
    hours = make_bars([0, HOUR_MS], HOUR_MS, [[1] * 8, [2] * 8])
    four = make_bars([4 * HOUR_MS], 4 * HOUR_MS, [[9] * 8])
    world = hourly_world(("1h", hours), ("4h", four))
    assert world.klines("AAA/USDT", "4h", now_ms=DAY_MS, limit=9).open_ms.tolist() == [4 * HOUR_MS]
    assert world.klines("AAA/USDT", "2h", now_ms=DAY_MS, limit=9).open_ms.tolist() == [0]
    assert len(world.klines("AAA/USDT", "1m", now_ms=DAY_MS, limit=9)) == 0


def test_a_market_appears_with_its_first_bar_and_breaks_a_day_after_its_last() -> None:
    world = hourly_world(("1h", make_bars([DAY_MS, 30 * HOUR_MS], HOUR_MS, [[1] * 8] * 2)))
    assert world.markets(DAY_MS - 1) == []
    assert world.market("AAAUSDT", DAY_MS - 1) is None
    market = world.markets(DAY_MS)[0]
    assert (market.symbol, market.base, market.quote) == ("AAA/USDT", "AAA", "USDT")
    assert world.is_trading(market, 31 * HOUR_MS + DAY_MS - 1)
    assert not world.is_trading(market, 31 * HOUR_MS + DAY_MS)


def test_a_long_hole_is_crossed_in_one_page() -> None:
    opens = [0, 400 * DAY_MS, 401 * DAY_MS]
    world = hourly_world(("1h", make_bars(opens, HOUR_MS, [[1] * 8] * 3)))
    assert (
        world.klines("AAA/USDT", "1h", now_ms=500 * DAY_MS, limit=2, start_ms=1).open_ms.tolist() == opens[1:]
    )
    assert world.klines("AAA/USDT", "1h", now_ms=500 * DAY_MS, limit=3).open_ms.tolist() == opens
    assert (
        world.klines("AAA/USDT", "4h", now_ms=500 * DAY_MS, limit=2, start_ms=0).open_ms.tolist() == opens[:2]
    )


def test_the_newest_row_before_a_long_hole_is_found() -> None:
    opens = [0, HOUR_MS, 2 * HOUR_MS, 400 * DAY_MS]
    world = hourly_world(("1h", make_bars(opens, HOUR_MS, [[1] * 8] * 4)))
    page = world.klines("AAA/USDT", "1h", now_ms=500 * DAY_MS, limit=1, end_ms=399 * DAY_MS)
    assert page.open_ms.tolist() == [2 * HOUR_MS]


def test_a_long_hole_costs_few_reads() -> None:
    class Counting(RecordedWorld):
        n_reads = 0

        def final_bars(
            self, symbol: str, interval: str, start_ms: int, end_ms: int, kind: Kind = "trade"
        ) -> Bars:
            self.n_reads += 1
            return super().final_bars(symbol, interval, start_ms, end_ms, kind)

    bars = make_bars([0, 5000 * DAY_MS], MINUTE_MS, [[1] * 8] * 2)
    world = Counting(Recordings({("AAA/USDT", "1m"): lambda: bars}))
    page = world.klines("AAA/USDT", "1m", now_ms=6000 * DAY_MS, limit=1, start_ms=1)
    assert page.open_ms.tolist() == [5000 * DAY_MS]
    assert world.n_reads < 30


def test_a_restatement_counts_from_its_publication_on_and_in_longer_bars_too() -> None:
    world = SyntheticWorld(11, START, START + SPAN_DAYS * DAY_MS, "1h")
    published, hour = START + 3 * DAY_MS, START + 5 * HOUR_MS

    def at_hour(interval: str, now_ms: int) -> Bars:
        open_ms = int(grid_start(np.array([hour]), interval)[0])
        return world.window("BTC/USDT", interval, open_ms, open_ms + 1, now_ms)

    old_hour, old_day = at_hour("1h", published), at_hour("1d", published)
    world.restate(Restatement("BTC/USDT", hour, published, high="99999.5", volume_base="1.25", n_trades=7))
    assert same(at_hour("1h", published - 1), old_hour)
    assert same(at_hour("1d", published - 1), old_day)
    new_hour, new_day = at_hour("1h", published), at_hour("1d", published)
    assert new_hour.values[HIGH, 0] == new_day.values[HIGH, 0] == 9_999_950_000_000
    assert new_hour.values[VOLUME_QUOTE, 0] == old_hour.values[VOLUME_QUOTE, 0]
    changed = new_hour.values[VOLUME_BASE, 0] - old_hour.values[VOLUME_BASE, 0]
    assert new_day.values[VOLUME_BASE, 0] - old_day.values[VOLUME_BASE, 0] == changed != 0
    assert new_hour.n_trades.tolist() == [7]


def test_a_second_restatement_replaces_the_first() -> None:
    world = hourly_world(("1h", make_bars([0, HOUR_MS], HOUR_MS, [[5] * 8] * 2)))
    world.restate(
        Restatement("AAA/USDT", 0, 9 * HOUR_MS, close="2"), Restatement("AAA/USDT", 0, 5 * HOUR_MS, close="1")
    )
    closes = [int(world.window("AAA/USDT", "1h", 0, 1, now * HOUR_MS).values[CLOSE, 0]) for now in (4, 5, 9)]
    assert closes == [5, 10**8, 2 * 10**8]


def test_a_late_candle_appears_when_it_is_published() -> None:
    world = hourly_world(("1h", make_bars([0, 2 * HOUR_MS], HOUR_MS, [[5] * 8] * 2)))
    late = Restatement(
        "AAA/USDT", HOUR_MS, 9 * HOUR_MS, open="1", high="3", low="1", close="2", volume_base="4"
    )
    world.restate(late)
    assert len(world.window("AAA/USDT", "1h", 0, DAY_MS, 9 * HOUR_MS - 1)) == 2
    bars = world.window("AAA/USDT", "1h", 0, DAY_MS, 9 * HOUR_MS)
    assert bars.open_ms.tolist() == [0, HOUR_MS, 2 * HOUR_MS]
    assert bars.values[VOLUME_QUOTE, 1] == bars.n_trades[1] == UNKNOWN
    assert bars.close_ms[1] == 2 * HOUR_MS - 1


@pytest.mark.parametrize(
    ("restatement", "complaint"),
    [
        (Restatement("AAAUSDT", 0, HOUR_MS, close="2"), "no such pair"),
        (Restatement("AAA/USDT", 0, HOUR_MS - 1, close="2"), "before the candle has closed"),
        (Restatement("AAA/USDT", 0, DAY_MS, interval="1d", close="2"), "only stored intervals"),
        (Restatement("AAA/USDT", 5 * HOUR_MS, DAY_MS, close="2"), "late one"),
    ],
)
def test_a_restatement_that_cannot_be_is_refused(restatement: Restatement, complaint: str) -> None:
    world = hourly_world(("1h", make_bars([0], HOUR_MS, [[5] * 8])))
    with pytest.raises(ValueError, match=complaint):
        world.restate(restatement)
    assert world.restatements == []


@settings(max_examples=40, deadline=None)
@given(pair=st.tuples(moments, moments).map(sorted), limit=st.integers(1, 40), at_start=st.booleans())
def test_settlements_that_happened_never_change_and_none_comes_early(
    pair: list[int], limit: int, at_start: bool
) -> None:
    early, late = pair
    first = START if at_start else None
    then = WORLD.funding("DOGE/USDT:USDT", now_ms=early, limit=limit, start_ms=first)
    now = WORLD.funding("DOGE/USDT:USDT", now_ms=late, limit=limit, start_ms=first, end_ms=early)
    assert (then.settled_ms <= early).all()
    for name in ("settled_ms", "rate", "mark_price"):
        assert np.array_equal(getattr(then, name), getattr(now, name))


def test_an_open_premium_bar_walks_from_its_open_and_takes_in_the_minutes_so_far() -> None:
    now = START + 5 * HOUR_MS + 17 * MINUTE_MS + 30_000
    hour = WORLD.klines("ETH/USDT:USDT", "1h", now_ms=now, limit=1, kind="premium")
    minutes = WORLD.window("ETH/USDT:USDT", "1m", START + 5 * HOUR_MS, now + 1, now, "premium")
    final = WORLD.klines("ETH/USDT:USDT", "1m", now_ms=now + HOUR_MS, limit=1, end_ms=now, kind="premium")
    assert hour.values[OPEN, 0] == minutes.values[OPEN, 0]
    assert hour.values[CLOSE, 0] == minutes.values[CLOSE, -1]
    assert minutes.values[OPEN, -1] == final.values[OPEN, 0]
    assert final.values[LOW, 0] <= minutes.values[CLOSE, -1] <= final.values[HIGH, 0]
    assert hour.n_trades[0] == 17 * 12 + 6


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_candle_of_a_contract_is_restated_in_its_kind_alone(kind: Kind) -> None:
    world = SyntheticWorld(11, START, START + SPAN_DAYS * DAY_MS, "1h")
    symbol, hour, published = "ETH/USDT:USDT", START + 5 * HOUR_MS, START + 2 * DAY_MS

    def closes(now_ms: int) -> dict[str, list[int]]:
        return {
            f"{interval} {kind}": world.window(symbol, interval, START + 4 * HOUR_MS, hour + 1, now_ms, kind)
            .values[HIGH]
            .tolist()
            for kind in get_args(Kind)
            for interval in ("1h", "4h")
        }

    before = closes(published - 1)
    world.restate(Restatement(symbol, hour, published, high="99999", kind=kind))
    assert closes(published - 1) == before
    changed = {name for name, values in closes(published).items() if values != before[name]}
    assert changed == {f"1h {kind}", f"4h {kind}"}
    spot = world.window("ETH/USDT", "1h", hour, hour + 1, published)
    assert spot.values[HIGH, 0] < 99_999 * 10**8


def test_a_late_candle_without_volumes_is_enough_of_an_index_and_not_of_trades() -> None:
    world = SyntheticWorld(11, START, START + SPAN_DAYS * DAY_MS, "1h", story_days=6)
    symbol, end = "SRM/USDT:USDT", START + 3 * DAY_MS + 9 * HOUR_MS
    late_candle = Restatement(symbol, end, end + DAY_MS, open="-0.001", high="0.002", low="-0.002", close="0")
    with pytest.raises(ValueError, match="late one"):
        world.restate(late_candle)
    world.restate(replace(late_candle, kind="premium"))
    late = world.window(symbol, "1h", end, end + 1, end + DAY_MS, "premium")
    assert late.values[: CLOSE + 1, 0].tolist() == [-100_000, 200_000, -200_000, 0]


def test_a_pair_has_no_mark_price_to_restate() -> None:
    world = SyntheticWorld(11, START, START + SPAN_DAYS * DAY_MS, "1h")
    with pytest.raises(ValueError, match="only stored intervals"):
        world.restate(Restatement("ETH/USDT", START, START + DAY_MS, high="1", kind="mark"))


@pytest.mark.parametrize(
    ("world", "symbol"),
    [(hourly_world(("1h", make_bars([0], HOUR_MS, [[5] * 8]))), "AAA/USDT"), (WORLD, "BTC/USDT")],
    ids=["recorded", "synthetic"],
)
def test_a_pair_has_none_of_the_numbers_of_contracts(world: World, symbol: str) -> None:
    now = START + DAY_MS
    assert len(world.funding(symbol, now_ms=now, limit=5)) == 0
    assert len(world.funding(symbol, now_ms=now, limit=5, start_ms=START)) == 0
    assert world.funding_hours(symbol, now) is None
    assert len(world.open_interest_now(symbol, now)) == 0
    assert len(world.klines(symbol, "1h", now_ms=now, limit=5, kind="mark")) == 0
    assert symbol not in {contract.symbol for contract in world.all_contracts()}
    seen = world.premium(symbol, now)
    assert seen is not None and (seen.rate, seen.next_settlement_ms) == (None, None)


def test_worlds_read_no_file_no_clock_and_no_environment() -> None:
    folder = Path(crypto_assets.simulation.__file__).parent
    banned = {
        "dagster",
        "duckdb",
        "dbt",
        "ccxt",
        "pycoingecko",
        "os",
        "time",
        "pathlib",
        "io",
        "random",
        "aiohttp",
        "requests",
    }
    pure = ("world", "bars", "synthetic", "synthetic_days", "synthetic_contracts", "recorded")
    for module in (*pure, "dialects", "render", "binance", "usdm"):
        tree = ast.parse((folder / f"{module}.py").read_text())
        imported = {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert {name.partition(".")[0] for name in imported} & banned == set(), module
        called = {
            node.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert "open" not in called, module


def test_every_world_is_a_world() -> None:
    assert issubclass(SyntheticWorld, World)
    assert issubclass(RecordedWorld, World)
