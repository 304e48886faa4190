"""Features of the market around a price: numbers by hand, pandas as the oracle, settlements, gaps, and bits."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from crypto_assets.quant.feature_sets import FeatureSet, unit_of
from crypto_assets.quant.generators import entry_of
from crypto_assets.quant.generators.declared import Grid
from crypto_assets_tests.quant.generators.sets import (
    LISTINGS,
    assert_every_run_gives_the_same_bits,
    assert_first_values_are_where_the_warm_up_ends,
    set_of,
)
from crypto_assets_tests.quant.rasters import DAY, HOUR, START, random_raster, raster_of

COLUMNS = (
    "close",
    "turnover_quote",
    "market_cap_usd",
    "market_cap_rank",
    "futures_close",
    "futures_turnover_quote",
    "premium_frac",
    "funding_rate_frac",
    "funding_age_hours",
    "open_interest_base",
)
#: Every function; on bars of an hour the names say what the windows are.
EVERYTHING: tuple[dict[str, Any], ...] = (
    {"function": "market_cap_log"},
    {"function": "market_cap_change", "windows": "168h"},
    {"function": "rank_gain", "windows": "168h"},
    {"function": "turnover_to_market_cap", "windows": "24h"},
    {"function": "basis"},
    {"function": "basis_mean", "windows": "24h"},
    {"function": "premium"},
    {"function": "funding"},
    {"function": "funding_sum", "windows": "72h"},
    {"function": "open_interest_change", "windows": "24h"},
    {"function": "open_interest_to_turnover", "windows": "24h"},
    {"function": "futures_share", "windows": "24h"},
)


def a_set(*entries: dict[str, Any], bar: timedelta = HOUR) -> FeatureSet:
    made = tuple(entry_of({"generator": "market", **entry}) for entry in entries)
    return FeatureSet("market", Grid(bar, {column: unit_of(column) for column in COLUMNS}), made)


def rows_of(bar: timedelta = HOUR, **columns: Sequence[float | None]) -> pd.DataFrame:
    """Rows written by hand: a None among the closes is a missing bar, whatever the raster carries there."""
    rows = raster_of({"close": columns.pop("close")}, bar=bar)
    for name in COLUMNS[1:]:
        rows[name] = np.array(columns.get(name, [None] * len(rows)), dtype=np.float64)
    return rows


def column(rows: pd.DataFrame, bar: timedelta = HOUR, **entry: Any) -> list[float]:
    made = a_set(entry, bar=bar)
    (feature,) = made.features
    return made.compute(rows)[feature.name].tolist()


def some_rows(bar: timedelta = HOUR, n_bars: int = 900, holes: float = 0.1) -> pd.DataFrame:
    """Listings with gaps, a late one and a reused ticker, and holes of their own in every column of the market."""
    rows = random_raster(n_bars, LISTINGS, seed=4, missing_share=holes, bar=bar)
    # The second life of a ticker ends the tail of the first.
    rows = rows.sort_values(["symbol", "ts", "listing_id"]).drop_duplicates(["symbol", "ts"], keep="last")
    n, draws = len(rows), np.random.default_rng(3)
    hours = bar / HOUR
    columns = {
        "turnover_quote": draws.lognormal(8, 2, n),
        "market_cap_usd": draws.lognormal(20, 2, n),
        "market_cap_rank": draws.integers(1, 50, n).astype(float),
        "futures_close": rows["close"].fillna(100.0) * np.exp(draws.normal(0.001, 0.001, n)),
        "futures_turnover_quote": draws.lognormal(9, 2, n),
        "premium_frac": draws.normal(0.0, 1e-4, n),
        "funding_rate_frac": draws.normal(0.0, 1e-4, n),
        "funding_age_hours": draws.integers(1, 9, n) * hours,
        "open_interest_base": draws.lognormal(5, 1, n),
    }
    # With nearly half of the values missing, windows lie on both sides of half.
    for name, values in columns.items():
        rows[name] = np.where(draws.random(n) < 4 * holes, np.nan, values)
    rows.loc[~rows["has_bar"], "turnover_quote"] = np.nan
    return rows.reset_index(drop=True)


def oracle(listing: pd.DataFrame, bar: timedelta) -> pd.DataFrame:
    """Every function in pandas, on the rows of one listing."""
    grid = pd.date_range(listing["ts"].min(), listing["ts"].max(), freq=bar)
    every_row = listing.set_index("ts")[list(COLUMNS)].reindex(grid)
    with_bar = grid.isin(listing.loc[listing["has_bar"], "ts"])
    x = every_row[with_bar].reindex(grid)
    day, three_days, week = (int(length // bar) for length in (DAY, 3 * DAY, 7 * DAY))
    cap, interest, turnover, futures = (
        x[name]
        for name in ("market_cap_usd", "open_interest_base", "turnover_quote", "futures_turnover_quote")
    )
    basis = x["futures_close"] / x["close"] - 1.0
    spot_sum, futures_sum = (y.rolling(day, min_periods=day // 2).sum() for y in (turnover, futures))
    # A contract settles whether or not the spot market has a bar.
    settled = every_row["funding_rate_frac"].where(every_row["funding_age_hours"] <= bar / HOUR)
    rates = every_row["funding_rate_frac"].rolling(three_days, min_periods=0).count()
    return pd.DataFrame(
        {
            "market_cap_log": np.log(cap),
            "market_cap_168h_log": np.log(cap / cap.shift(week)),
            "market_cap_rank_gain_168h": x["market_cap_rank"].shift(week) - x["market_cap_rank"],
            "turnover_24h_to_market_cap": spot_sum / cap,
            "basis_frac": basis,
            "basis_24h_frac": basis.rolling(day, min_periods=day // 2).mean(),
            "premium_last_frac": x["premium_frac"],
            "funding_last_frac": x["funding_rate_frac"],
            "funding_72h_frac": settled.fillna(0.0)
            .rolling(three_days, min_periods=1)
            .sum()
            .where((rates >= three_days // 2) & with_bar),
            "open_interest_24h_log": np.log(interest / interest.shift(day)),
            "open_interest_to_turnover_24h": interest * x["futures_close"] / futures_sum,
            "futures_share_24h_frac": futures_sum / (spot_sum + futures_sum),
        }
    )


def test_names_units_and_reaches_follow_function_and_window() -> None:
    made = a_set(*EVERYTHING).features
    assert [(feature.name, feature.unit, feature.lookback, feature.warm_up) for feature in made] == [
        ("market_cap_log", "log", 0, 0),
        ("market_cap_168h_log", "log", 168, 168),
        ("market_cap_rank_gain_168h", "rank", 168, 168),
        ("turnover_24h_to_market_cap", "1", 23, 11),
        ("basis_frac", "frac", 0, 0),
        ("basis_24h_frac", "frac", 23, 11),
        ("premium_last_frac", "frac", 0, 0),
        ("funding_last_frac", "frac", 0, 0),
        ("funding_72h_frac", "frac", 71, 35),
        ("open_interest_24h_log", "log", 24, 24),
        ("open_interest_to_turnover_24h", "1", 23, 11),
        ("futures_share_24h_frac", "frac", 23, 11),
    ]
    assert {name for feature in made for name in feature.inputs} == set(COLUMNS)
    in_bars = a_set({"function": "futures_share", "windows": [6, "2d"]}, bar=4 * HOUR).features
    assert [(feature.name, feature.lookback) for feature in in_bars] == [
        ("futures_share_6_frac", 5),
        ("futures_share_2d_frac", 11),
    ]
    named = a_set({"function": "basis_mean", "windows": [6, 12], "names": ["short_frac", "long_frac"]})
    assert named.names == ("short_frac", "long_frac")


def test_changes_need_the_row_with_a_bar_at_exactly_the_earlier_moment() -> None:
    rows = rows_of(
        close=[1.0, None, 1.0, 1.0, 1.0],
        market_cap_usd=[100.0, 300.0, 200.0, 50.0, None],
        market_cap_rank=[9.0, 1.0, 4.0, 6.0, None],
        open_interest_base=[5.0, 7.0, 0.0, 20.0, 10.0],
    )
    log = np.log
    assert column(rows, function="market_cap_log") == pytest.approx(
        [log(100), log(200), log(50), np.nan], nan_ok=True
    )
    expected = [np.nan, log(2), np.nan, np.nan]
    assert column(rows, function="market_cap_change", windows=2) == pytest.approx(expected, nan_ok=True)
    assert column(rows, function="rank_gain", windows=2) == pytest.approx(
        [np.nan, 5.0, np.nan, np.nan], nan_ok=True
    )
    # Nothing grows out of no interest at all.
    assert column(rows, function="open_interest_change", windows=1) == pytest.approx(
        [np.nan, np.nan, np.nan, log(0.5)], nan_ok=True
    )
    assert column(rows, function="open_interest_change", windows=3) == pytest.approx(
        [np.nan, np.nan, log(4), np.nan], nan_ok=True
    )


def test_sums_and_means_need_half_of_their_window_and_not_the_rows_own_value() -> None:
    rows = rows_of(
        close=[10.0, 10.0, None, 10.0, 10.0, 10.0],
        futures_close=[11.0, None, 99.0, 12.0, None, None],
        turnover_quote=[2.0, 4.0, None, None, 6.0, None],
        futures_turnover_quote=[6.0, 12.0, 1000.0, 0.0, None, 0.0],
        market_cap_usd=[None, 100.0, 100.0, 100.0, 50.0, 50.0],
        open_interest_base=[3.0, 3.0, 3.0, 3.0, 3.0, None],
    )
    assert column(rows, function="basis") == pytest.approx([0.1, np.nan, 0.2, np.nan, np.nan], nan_ok=True)
    assert column(rows, function="basis_mean", windows=4) == pytest.approx(
        [np.nan, np.nan, 0.15, np.nan, np.nan], nan_ok=True
    )
    assert column(rows, function="turnover_to_market_cap", windows=4) == pytest.approx(
        [np.nan, 0.06, 0.06, 10 / 50, np.nan], nan_ok=True
    )
    # Of the contract: 6, 18, 18, 12 and 0; of the market: none, 6, 6, 10 and none.
    assert column(rows, function="futures_share", windows=4) == pytest.approx(
        [np.nan, 0.75, 0.75, 12 / 22, np.nan], nan_ok=True
    )
    assert column(rows, function="open_interest_to_turnover", windows=4) == pytest.approx(
        [np.nan, np.nan, 3 * 12 / 18, np.nan, np.nan], nan_ok=True
    )


def test_what_was_not_traded_has_no_share() -> None:
    nothing = [0.0] * 4
    rows = rows_of(
        close=[1.0] * 4,
        futures_close=[1.0] * 4,
        turnover_quote=nothing,
        futures_turnover_quote=nothing,
        open_interest_base=[1.0] * 4,
        market_cap_usd=[1.0] * 4,
    )
    assert np.isnan(column(rows, function="futures_share", windows=2)).all()
    assert np.isnan(column(rows, function="open_interest_to_turnover", windows=2)).all()
    assert column(rows, function="turnover_to_market_cap", windows=2) == [0.0] * 4


def settlements(bar: timedelta, every: timedelta, n_days: int = 6) -> tuple[pd.DataFrame, dict[Any, float]]:
    """Rows as the raster carries settlements on schedule, each from the row on that begins with it; and the rates."""
    times = pd.date_range(START - every, START + n_days * DAY, freq=every)
    rates = dict(zip(times, np.random.default_rng(5).normal(0.0, 1e-4, len(times)), strict=True))
    rows = rows_of(bar, close=[1.0] * (n_days * DAY // bar))
    last = [times[times < end][-1] for end in rows["known_at"]]
    rows["funding_rate_frac"] = [rates[at] for at in last]
    rows["funding_age_hours"] = (rows["known_at"] - pd.Series(last)) / HOUR
    return rows, rates


@pytest.mark.parametrize("bar", [HOUR / 4, HOUR, 4 * HOUR, 8 * HOUR], ids=str)
@pytest.mark.parametrize("every", [8 * HOUR, 24 * HOUR], ids=str)
def test_a_settlement_counts_once_whatever_the_bar(bar: timedelta, every: timedelta) -> None:
    rows, rates = settlements(bar, every)
    values = a_set({"function": "funding_sum", "windows": "72h"}, bar=bar).compute(rows)
    settled, n = pd.Series(rates), int(3 * DAY // bar)
    assert values["funding_72h_frac"].notna().tolist() == [place >= n // 2 - 1 for place in range(len(rows))]
    for end, value in values[["known_at", "funding_72h_frac"]].dropna().itertuples(index=False):
        inside = settled[(settled.index >= max(end - 3 * DAY, START)) & (settled.index < end)]
        assert value == pytest.approx(inside.sum(), rel=1e-12, abs=1e-18), end


def test_a_settlement_off_schedule_counts_in_the_row_that_it_falls_in() -> None:
    rows = rows_of(
        close=[1.0] * 5,
        funding_rate_frac=[0.1, 0.1, 0.3, 0.3, None],
        funding_age_hours=[0.25, 1.25, 0.75, 1.75, None],
    )
    assert column(rows, function="funding") == pytest.approx([0.1, 0.1, 0.3, 0.3, np.nan], nan_ok=True)
    assert column(rows, function="funding_sum", windows=3) == pytest.approx([0.1, 0.1, 0.4, 0.3, 0.3])
    # No rate at all is not a rate of zero.
    assert column(rows, function="funding_sum", windows=1) == pytest.approx(
        [0.1, 0.0, 0.3, 0.0, np.nan], nan_ok=True
    )


def test_a_settlement_counts_in_a_row_without_a_bar_which_has_no_value_itself() -> None:
    rows = rows_of(
        close=[1.0, 1.0, None, 1.0, 1.0, 1.0, 1.0],
        funding_rate_frac=[0.7, 0.7, 0.1, 0.1, 0.1, 0.1, 0.1],
        funding_age_hours=[7.0, 8.0, 1.0, 2.0, 3.0, 4.0, 5.0],
    )
    # Rows 0, 1, 3, 4, 5 and 6; the window of the last one begins after the settlement.
    assert column(rows, function="funding_sum", windows=4) == pytest.approx(
        [np.nan, 0.0, 0.1, 0.1, 0.1, 0.0], nan_ok=True
    )


@pytest.mark.parametrize("bar", [HOUR, 4 * HOUR], ids=str)
def test_every_function_agrees_with_pandas(bar: timedelta) -> None:
    rows = some_rows(bar)
    made = a_set(*EVERYTHING, bar=bar)
    values = made.compute(rows)
    assert values["listing_id"].nunique() == 5
    agreed = dict.fromkeys(made.names, 0)
    for listing, ours in values.groupby("listing_id"):
        right = oracle(rows[rows["listing_id"] == listing], bar).reindex(ours["ts"])
        for name in made.names:
            np.testing.assert_allclose(
                ours[name], right[name], rtol=1e-10, atol=1e-16, err_msg=f"{listing} {name}"
            )
            agreed[name] += int(right[name].notna().sum())
    # Of every column some rows must have a value and some must lack one.
    assert all(300 < n < len(values) - 300 for n in agreed.values()), agreed


def test_no_window_reaches_into_the_former_life_of_a_ticker() -> None:
    rows = some_rows(holes=0.0)
    values = a_set(*EVERYTHING).compute(rows)
    second = values[values["listing_id"] == "DDD/USDT#2"].reset_index(drop=True)
    assert second["ts"].iloc[0] == START + 300 * HOUR
    assert (values["listing_id"] == "DDD/USDT#1").sum() == 201
    for feature in a_set(*EVERYTHING).features:
        assert np.flatnonzero(second[feature.name].notna())[0] == feature.warm_up, feature.name


@pytest.mark.parametrize("bar", [HOUR, 4 * HOUR], ids=str)
def test_every_run_gives_the_same_bits(bar: timedelta) -> None:
    assert_every_run_gives_the_same_bits(a_set(*EVERYTHING, bar=bar), some_rows(bar), START + 30 * DAY)


def test_first_values_are_where_the_warm_up_ends() -> None:
    rows = some_rows(holes=0.0)
    assert_first_values_are_where_the_warm_up_ends(a_set(*EVERYTHING), rows[rows["symbol"] == "AAA/USDT"])


def test_bars_alone_have_a_basis_and_a_share_and_nothing_else_of_the_market() -> None:
    bars = set_of(
        {"generator": "market", "function": "basis"},
        {"generator": "market", "function": "futures_share", "windows": "24h"},
        bar=4 * HOUR,
    )
    assert bars.names == ("basis_frac", "futures_share_24h_frac")
    missing = {"market_cap_log": "market_cap_usd", "premium": "premium_frac", "funding": "funding_rate_frac"}
    for function, name in missing.items():
        with pytest.raises(ValueError, match=f"entry 0 .market.: there is no column {name}; allowed: close"):
            _ = set_of({"generator": "market", "function": function}, bar=4 * HOUR).features


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"function": "market_cap"}, "function market_cap; allowed: market_cap_log, market_cap_change"),
        ({}, "function: Field required"),
        ({"function": "market_cap_change"}, "market_cap_change needs windows"),
        ({"function": "futures_share", "windows": []}, "windows"),
        ({"function": "basis", "windows": 24}, "basis takes no windows; allowed: names"),
        ({"function": "funding_sum", "window": 24}, "window: .*allowed: generator, function, windows, names"),
        ({"function": "rank_gain", "windows": 0}, "a window of 0 bars holds nothing"),
        ({"function": "rank_gain", "windows": "a week"}, "'a week' is no window"),
        ({"function": "funding_sum", "windows": "90m"}, "90m is no multiple of the bar"),
        ({"function": "basis_mean", "windows": [24, 24]}, "two columns are named basis_24_frac"),
        ({"function": "basis_mean", "windows": [6, 24], "names": "one"}, "1 names for 2 columns"),
        ({"function": "premium", "column": "close"}, "column"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused_with_the_reason(
    options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        _ = a_set(options).features
