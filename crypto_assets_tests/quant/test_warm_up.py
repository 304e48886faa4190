"""How much history a feature needs is found by taking history away, and what a declaration leaves open follows from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from crypto_assets.quant import kernels
from crypto_assets.quant.feature_sets import BAR_COLUMNS, FeatureSet
from crypto_assets.quant.generators import entry_of
from crypto_assets.quant.generators.custom import FunctionError
from crypto_assets.quant.generators.declared import Grid, Measured
from crypto_assets.quant.panel import longest_pause
from crypto_assets.quant.warm_up import (
    BOUND,
    Measurement,
    bars_needed,
    fullest_listings,
    key_of,
    left_open,
    measure,
    random_bars,
    settled,
)
from crypto_assets_tests.quant.rasters import DAY, HOUR, assert_same_bits, between, random_raster

GRID = Grid(HOUR, BAR_COLUMNS)
WITH_BOOKS = Grid(HOUR, BAR_COLUMNS | {"book_gap_quote": "quote"})
#: Without gaps, so that bars of history are rows of history.
WHOLE = random_raster(700, ["AAA/USDT", "BBB/USDT"], seed=4)
LONG = random_raster(2400, ["AAA/USDT", "BBB/USDT"], seed=4)

SMA = {"generator": "talib", "functions": "SMA", "windows": 24}
KAMA = {"generator": "talib", "functions": "KAMA", "windows": [5, 10]}


# Functions as a user writes them.


def mean_of_ten(bars: pd.DataFrame) -> pd.Series:
    return bars["close"].rolling(10, min_periods=1).mean()


def patient(bars: pd.DataFrame) -> pd.Series:
    if len(bars) < 30:
        raise ValueError("too few bars")
    return bars["close"].rolling(10).mean()


def breaks(bars: pd.DataFrame) -> pd.Series:
    raise KeyError("vwap")


def since_the_start(bars: pd.DataFrame) -> pd.Series:
    return bars["close"].cumsum()


def nothing(bars: pd.DataFrame) -> pd.Series:
    return bars["close"] * np.nan


def own(function: Any, **options: Any) -> dict[str, Any]:
    return {"generator": f"{__name__}:{function.__name__}", "columns": ["close"], "names": ["x"]} | options


def found(raw: dict[str, Any], rows: pd.DataFrame = WHOLE, **options: Any) -> tuple[Measurement, ...]:
    return measure(entry_of(raw), GRID, rows, **{"n_rows": 24} | options)


def bars_of(raw: dict[str, Any], rows: pd.DataFrame = WHOLE, **options: Any) -> int:
    (one,) = found(raw, rows, **options)
    assert one.found is not None
    assert one.problem is None
    assert one.found.error <= one.bound
    assert one.n_values == 24
    return one.found.bars


@pytest.mark.parametrize("n", [2, 7, 24])
def test_a_window_needs_its_bars_but_the_rows_own(n: int) -> None:
    assert bars_of(SMA | {"windows": n}) == n - 1
    mean = {"generator": "itbstats", "columns": ["close"], "functions": ["mean"], "windows": [n]}
    assert bars_of(mean) == n - 1
    assert found(mean)[0].bound == 0.0
    assert bars_of({"generator": "indicators", "function": "log_return", "windows": [n]}) == n


def test_a_function_of_the_row_alone_needs_none() -> None:
    assert bars_of({"generator": "talib", "functions": "MEDPRICE"}) == 0
    assert bars_of(SMA | {"windows": 1}) == 0


@pytest.mark.parametrize("n", [5, 12])
def test_an_average_of_the_house_needs_the_rows_that_it_declares_to_the_bit(n: int) -> None:
    ema = {"generator": "indicators", "function": "ema", "windows": [n]}
    (one,) = found(ema)
    assert bars_of(ema) == one.feature.warm_up == kernels.average_bars(2 / (n + 1)) - 1
    assert bars_of(ema | {"function": "rsi"}) == kernels.average_bars(1 / n)


def test_gaps_need_more_bars_and_not_more_than_declared() -> None:
    gappy = random_raster(900, ["AAA/USDT", "BBB/USDT"], seed=4, missing_share=0.1)
    for raw in (SMA, {"generator": "indicators", "function": "ema", "windows": [12]}):
        (one,) = found(raw, gappy)
        assert one.found is not None
        assert one.assured is not None
        assert one.feature.warm_up < one.found.bars <= one.assured


def test_the_derived_warm_up_of_a_recursive_function_is_enough_and_a_tenth_of_it_is_not() -> None:
    rsi = {"generator": "talib", "functions": "RSI", "windows": 14}
    (one,) = found(rsi, LONG)
    assert one.bound == BOUND
    assert one.feature.warm_up / 10 < bars_of(rsi, LONG) <= one.feature.warm_up
    assert bars_of(rsi, LONG, bound=1e-3) < bars_of(rsi, LONG, bound=1e-5) < bars_of(rsi, LONG)


def test_what_is_told_too_short_is_a_problem_with_both_numbers() -> None:
    (one,) = found({"generator": "talib", "functions": "RSI", "windows": 14, "warm_up": 30}, LONG)
    assert one.found is not None
    assert one.assured == 30 + longest_pause(HOUR)
    assert one.found.bars > one.assured
    assert one.problem is not None
    assert f"{one.found.bars} bars of history are needed" in one.problem
    assert f"{one.assured} are declared" in one.problem


def test_what_no_rule_covers_gets_a_finite_answer_and_computes_with_it() -> None:
    entry = entry_of(KAMA)
    assert left_open(entry, GRID) == ("close_kama_5", "close_kama_10")
    made = measure(entry, GRID, LONG, n_rows=24)
    assert [one.assured for one in made] == [None, None]
    bars = {one.feature.name: one.found for one in made if one.found}
    assert [one.problem for one in made] == [None, None]
    stored = {key_of(entry, HOUR): bars}
    entries, known = settled([entry], GRID, stored)
    assert known == bars
    measured = FeatureSet("mine", GRID, entries)
    assert [(f.warm_up, f.lookback) for f in measured.features] == [
        (bars[name].bars, bars[name].bars + longest_pause(HOUR) + 23)
        for name in ("close_kama_5", "close_kama_10")
    ]
    # Days that know no more than that give the values of all history.
    import talib

    day = pd.Timestamp(WHOLE["ts"].min()).to_pydatetime() + 90 * DAY
    alone = measured.compute(between(LONG, day - measured.lookback, day + DAY), since=day)
    assert_same_bits(between(measured.compute(LONG), day, day + DAY), alone)
    close = LONG.loc[LONG["symbol"] == "AAA/USDT", ["ts", "close"]].set_index("ts")["close"]
    whole = pd.Series(talib.KAMA(close.to_numpy(), timeperiod=10), close.index)
    ours = alone[alone["symbol"] == "AAA/USDT"].set_index("ts")["close_kama_10"]
    assert len(ours) == 24
    np.testing.assert_allclose(ours, whole[ours.index], rtol=100 * BOUND)


def test_relative_columns_that_are_open_are_measured_as_what_they_tell() -> None:
    entry = entry_of(KAMA | {"rel_base": "next", "rel_func": "rel", "names": ["fast", "slow"]})
    assert left_open(entry, GRID) == ("fast", "slow")
    stored = {
        key_of(entry, HOUR): {"fast": Measured(90, BOUND, 0.0, 9), "slow": Measured(140, BOUND, 0.0, 9)}
    }
    entries, _ = settled([entry], GRID, stored)
    assert [feature.warm_up for feature in FeatureSet("mine", GRID, entries).features] == [140, 140]


def test_a_function_of_the_users_own_is_measured_and_one_that_reads_further_back_than_it_says_is_caught() -> (
    None
):
    assert bars_of(own(mean_of_ten, lookback=9)) == 9
    (one,) = found(own(mean_of_ten, lookback=8))
    assert one.problem == (
        "x: 9 bars of history are needed for a difference of at most 1e-08, 8 are declared"
    )


def test_the_lookback_of_a_users_function_can_be_left_to_the_measurement() -> None:
    entry = entry_of(own(mean_of_ten, lookback="measured", warm_up=3))
    with pytest.raises(ValueError, match="is not measured yet: run `crypto-assets features measure`"):
        _ = FeatureSet("mine", GRID, (entry,)).features
    (one,) = measure(entry, GRID, WHOLE, n_rows=24)
    assert one.assured is None
    assert one.found is not None
    entries, _ = settled([entry], GRID, {key_of(entry, HOUR): {"x": one.found}})
    (feature,) = FeatureSet("mine", GRID, entries).features
    assert (feature.lookback, feature.warm_up) == (9 + 23, 3)


def test_a_function_that_refuses_a_short_history_needs_a_longer_one() -> None:
    assert bars_of(own(patient, lookback=48)) == 29


def test_what_fails_on_all_history_cannot_be_measured() -> None:
    with pytest.raises(FunctionError, match="raised KeyError"):
        found(own(breaks, lookback=5))


def test_what_never_forgets_or_has_no_value_has_no_answer() -> None:
    (endless,) = found(own(since_the_start, lookback=5))
    assert endless.found is None
    assert endless.problem is not None
    assert f"no history of up to {endless.n_history} bars" in endless.problem
    (empty,) = found(own(nothing, lookback=5))
    assert (empty.found, empty.n_values) == (None, 0)
    assert empty.problem is not None
    assert "none of the rows that were compared has a value" in empty.problem


def with_books(*names: str) -> pd.DataFrame:
    """Bars of five listings, of which the named ones alone have books."""
    rows = random_bars(WITH_BOOKS, 700, n_listings=5, seed=3)
    return rows.assign(book_gap_quote=rows["book_gap_quote"].where(rows["listing_id"].isin(names)))


def test_of_five_listings_with_bars_those_that_have_what_the_entry_reads_are_measured() -> None:
    bars = with_books().groupby("listing_id")["has_bar"].sum().sort_values()
    # Whoever goes by bars alone takes the other three.
    fewest = sorted(bars.index[:2])
    rows = with_books(*fewest)
    assert sorted(fullest_listings(rows, ["book_gap_quote"])["listing_id"].unique()) == fewest
    depth = {"generator": "depth", "columns": ["book_gap_quote"], "windows": [2], "base_window": 6}
    (one,) = measure(entry_of(depth), WITH_BOOKS, rows, n_rows=24)
    assert one.found is not None
    assert (one.problem, one.found.bars) == (None, 5)
    assert one.n_values > 18


def test_a_listing_counts_by_the_bars_at_which_all_inputs_are_present_together() -> None:
    rows = with_books("WALK1/USDT#1", "WALK3/USDT#1", "WALK4/USDT#1")
    both = ["close", "book_gap_quote"]
    rows.loc[(rows["listing_id"] == "WALK3/USDT#1") & (rows.index % 2 == 0), "book_gap_quote"] = np.nan
    rows.loc[rows["listing_id"] == "WALK4/USDT#1", "close"] = np.nan

    def names(inputs: list[str], least: int = 1) -> list[str]:
        return sorted(fullest_listings(rows, inputs, least)["listing_id"].unique())

    assert names(both) == ["WALK1/USDT#1", "WALK3/USDT#1"]
    assert names(both, 500) == ["WALK1/USDT#1"]
    assert names(both, 701) == []
    assert len(names(["open"])) == 3
    n_bars = int(rows.loc[rows["listing_id"] == "WALK1/USDT#1", "has_bar"].sum())
    assert names(both, n_bars) == ["WALK1/USDT#1"]
    assert names(both, n_bars + 1) == []


def test_rows_that_never_have_all_inputs_together_are_refused_with_their_names() -> None:
    depth = {"generator": "depth", "columns": ["book_gap_quote"]}
    with pytest.raises(ValueError, match="none of 3500 rows has a bar and book_gap_quote; give rows"):
        measure(entry_of(depth), WITH_BOOKS, with_books())


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="1 rows are no history to measure on"):
        found(SMA, WHOLE.iloc[:1])


@pytest.mark.parametrize(
    "change",
    [
        {"windows": [5, 11]},
        {"functions": "TRIMA"},
        {"columns": "open"},
        {"rel_base": "next", "rel_func": "rel"},
    ],
)
def test_a_changed_entry_has_another_key(change: dict[str, Any]) -> None:
    assert key_of(entry_of(KAMA), HOUR) == key_of(entry_of(dict(reversed(KAMA.items()))), HOUR)
    assert key_of(entry_of(KAMA | change), HOUR) != key_of(entry_of(KAMA), HOUR)


def test_another_interval_or_version_has_another_key() -> None:
    assert key_of(entry_of(KAMA), 4 * HOUR) != key_of(entry_of(KAMA), HOUR)
    first, second = (entry_of(own(mean_of_ten, lookback=9, version=text)) for text in ("1", "2"))
    assert key_of(first, HOUR) != key_of(second, HOUR)


def test_an_entry_that_is_told_everything_stays_as_it_is() -> None:
    entries = [entry_of(SMA), entry_of(KAMA | {"warm_up": {"close_kama_5": 200, "close_kama_10": 300}})]
    made, measured = settled(entries, GRID, {})
    assert list(made) == entries
    assert not measured
    assert [f.warm_up for f in FeatureSet("mine", GRID, made).features] == [23, 200, 300]


def test_a_warm_up_of_a_column_that_is_not_made_is_refused() -> None:
    with pytest.raises(ValueError, match="warm_up names close_kama_7; allowed: close_kama_10, close_kama_5"):
        left_open(entry_of(KAMA | {"warm_up": {"close_kama_7": 200}}), GRID)


def test_random_bars_are_rows_of_every_column_with_gaps_and_repeat() -> None:
    grid = Grid(HOUR, BAR_COLUMNS | {"market_cap_usd": "usd", "bar_age": "n"})
    rows = random_bars(grid, 800, seed=3)
    pd.testing.assert_frame_equal(rows, random_bars(grid, 800, seed=3))
    assert set(grid.columns) < set(rows.columns)
    assert rows["listing_id"].nunique() == 3
    bars = rows[rows["has_bar"]]
    assert (bars["high"] >= bars[["open", "close"]].max(axis=1)).all()
    assert (bars["low"] <= bars[["open", "close"]].min(axis=1)).all()
    assert (bars["low"] > 0).all()
    assert (bars["taker_buy_base"] <= bars["volume_base"]).all()
    assert 0.01 < 1 - rows["has_bar"].mean() < 0.05
    assert rows.loc[~rows["has_bar"], "close"].isna().all()
    assert (rows.loc[~rows["has_bar"], "bar_age"] > 0).all()
    assert rows["market_cap_usd"].notna().all()


def test_more_bars_are_needed_for_longer_windows_and_most_for_what_is_left_open() -> None:
    short, long, left = (bars_needed(entry_of(one), GRID) for one in (SMA, SMA | {"windows": 2000}, KAMA))
    assert short < long
    assert long > 2 * 2000
    assert short < left
