from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from crypto_assets.quant.feature_sets import FeatureSet
from crypto_assets.quant.generators import entry_of
from crypto_assets.quant.generators.declared import Grid
from crypto_assets_tests.quant.generators.sets import (
    LISTINGS,
    assert_every_run_gives_the_same_bits,
    assert_first_values_are_where_the_warm_up_ends,
    set_of,
    values_of,
)
from crypto_assets_tests.quant.rasters import DAY, HOUR, START, random_raster, raster_of

ALL = [
    "scipy_skew",
    "pandas_skew",
    "scipy_kurtosis",
    "pandas_kurtosis",
    "lsbm",
    "fmax",
    "mean",
    "std",
    "area",
    "slope",
]


def entry(**options: Any) -> dict[str, Any]:
    return {"generator": "itbstats", "columns": "close"} | options


def longest_run_below_mean(x: np.ndarray) -> float:
    longest = run = 0
    for value in x:
        run = run + 1 if value < x.mean() else 0
        longest = max(longest, run)
    return longest


def area(x: np.ndarray) -> float:
    above = x - x[-1]
    return above.sum() / np.abs(above).sum()


def slope(x: np.ndarray, places: np.ndarray) -> float:
    return np.polyfit(places - places[0], x, 1)[0]


#: (values present, their places in the window, window) -> value, written from the definitions of the seed.
ORACLES = {
    "scipy_skew": lambda x, *_: stats.skew(x, bias=False),
    "pandas_skew": lambda x, *_: pd.Series(x).skew(),
    "scipy_kurtosis": lambda x, *_: stats.kurtosis(x, bias=False),
    "pandas_kurtosis": lambda x, *_: pd.Series(x).kurt(),
    "lsbm": lambda x, *_: longest_run_below_mean(x),
    "fmax": lambda x, places, window: places[np.argmax(x)] / window,
    "mean": lambda x, *_: x.mean(),
    "std": lambda x, *_: x.std(),
    "area": lambda x, *_: area(x),
    "slope": lambda x, places, _: slope(x, places),
}


def rolled(x: np.ndarray, window: int, oracle: Any) -> np.ndarray:
    result = np.full(len(x), np.nan)
    for t in range(len(x)):
        start = t - window + 1
        part = np.concatenate([np.full(max(-start, 0), np.nan), x[max(start, 0) : t + 1]])
        places = np.flatnonzero(~np.isnan(part))
        if not np.isnan(x[t]) and len(places) >= max(1, window // 2):
            result[t] = oracle(part[places], places, window)
    return result


@pytest.mark.parametrize("window", [8, 24])
@pytest.mark.parametrize("function", ALL)
def test_every_function_agrees_with_an_oracle_and_leaves_missing_bars_out(function: str, window: int) -> None:
    rows = random_raster(150, ["AAA/USDT"], seed=5, missing_share=0.1)
    has_bar = rows["has_bar"].to_numpy()
    values = values_of(rows, entry(functions=function, windows=window))[f"close_{function}_{window}"]
    expected = rolled(rows["close"].to_numpy(), window, ORACLES[function])[has_bar]
    assert np.isfinite(expected).sum() > 100
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-10)


def test_the_functions_of_scipy_may_be_biased() -> None:
    rows = random_raster(60, ["AAA/USDT"], seed=5)
    x = rows["close"].to_numpy()
    values = values_of(rows, entry(functions=["scipy_skew", "scipy_kurtosis"], windows=12, bias=True))
    np.testing.assert_allclose(
        values["close_scipy_skew_12"], rolled(x, 12, lambda part, *_: stats.skew(part)), rtol=1e-9
    )
    np.testing.assert_allclose(
        values["close_scipy_kurtosis_12"], rolled(x, 12, lambda part, *_: stats.kurtosis(part)), rtol=1e-9
    )


def test_flat_prices_have_no_shape_but_a_mean() -> None:
    values = values_of(raster_of({"close": [7.0] * 12}), entry(functions=ALL, windows=6)).iloc[-1]
    assert values["close_mean_6"] == 7.0
    assert (
        values["close_std_6"]
        == values["close_slope_6"]
        == values["close_lsbm_6"]
        == values["close_fmax_6"]
        == 0.0
    )
    assert np.isnan(
        values[["close_area_6", "close_pandas_skew_6", "close_scipy_kurtosis_6"]].to_numpy(float)
    ).all()


def test_windows_are_bars_or_durations() -> None:
    rows = random_raster(60, ["AAA/USDT"])
    values = values_of(rows, entry(functions="mean", windows=[24, "24h", "1d"]))
    assert list(values.columns[3:]) == ["close_mean_24", "close_mean_24h", "close_mean_1d"]
    assert values["close_mean_24"].equals(values["close_mean_1d"].rename("close_mean_24"))


MEANS = {"functions": "mean", "windows": [1, 2, 4]}
CLOSES = [10.0, 20.0, 40.0, 20.0]
#: Means of the last row over 1, 2 and 4 bars: 20, 30, 22.5.
RELATIVE = [
    ({}, ["", "", ""], [20.0, 30.0, 22.5]),
    ({"rel_base": "next", "rel_func": "rel"}, ["_frac", "_frac", ""], [20 / 30, 30 / 22.5, 22.5]),
    ({"rel_base": "prev", "rel_func": "rel"}, ["", "_frac", "_frac"], [20.0, 1.5, 0.75]),
    ({"rel_base": "last", "rel_func": "diff"}, ["", "", ""], [-2.5, 7.5, 22.5]),
    # The seed takes the last output where it says first; this is the first.
    ({"rel_base": "first", "rel_func": "diff"}, ["", "", ""], [20.0, 10.0, 2.5]),
    ({"rel_base": "first", "rel_func": "rel_diff"}, ["", "_frac", "_frac"], [20.0, 0.5, 0.125]),
    (
        {"rel_base": "first", "rel_func": "rel_diff", "percentage": True},
        ["", "_pct", "_pct"],
        [20.0, 50.0, 12.5],
    ),
    ({"log": True}, ["_log", "_log", "_log"], np.log([20.0, 30.0, 22.5]).tolist()),
    (
        {"rel_base": "first", "rel_func": "rel", "log": True},
        ["_log", "_log", "_log"],
        np.log([20.0, 1.5, 1.125]).tolist(),
    ),
]


@pytest.mark.parametrize(("options", "suffixes", "expected"), RELATIVE)
def test_relative_modes_relate_the_windows_of_a_function(
    options: dict[str, Any], suffixes: list[str], expected: list[float]
) -> None:
    values = values_of(raster_of({"close": CLOSES}), entry(**MEANS, **options))
    names = [f"close_mean_{window}{suffix}" for window, suffix in zip((1, 2, 4), suffixes, strict=True)]
    assert list(values.columns[3:]) == names
    assert values.iloc[-1][names].tolist() == pytest.approx(expected)


def test_a_relative_column_reads_and_needs_what_its_base_does() -> None:
    made = set_of(entry(**MEANS, rel_base="next", rel_func="rel_diff", percentage=True)).features
    assert [(feature.lookback, feature.warm_up, feature.unit) for feature in made] == [
        (1, 0, "pct"),
        (3, 1, "pct"),
        (3, 1, "quote"),
    ]
    assert made[0].meaning == "100 x (a - b) / b, a: mean of close over 1; b: mean of close over 2"


def test_a_base_of_zero_gives_no_value() -> None:
    rows = raster_of({"close": [1.0, 1.0, 1.0, 2.0]})
    values = values_of(rows, entry(functions="std", windows=[2, 3], rel_base="last", rel_func="rel"))
    assert values["close_std_2_frac"].isna().tolist() == [True, True, True, False]


def test_a_logarithm_of_what_is_not_positive_is_missing() -> None:
    values = values_of(raster_of({"close": [1.0, 3.0, 2.0]}), entry(functions="slope", windows=2, log=True))
    assert values["close_slope_2_log"].tolist() == pytest.approx([np.nan, np.log(2.0), np.nan], nan_ok=True)


def test_names_may_be_given() -> None:
    values = values_of(raster_of({"close": CLOSES}), entry(**MEANS, names=["one", "two", "four"]))
    assert values[["one", "two", "four"]].iloc[-1].tolist() == [20.0, 30.0, 22.5]


def test_only_bounds_that_no_rounding_passes_are_declared() -> None:
    made = set_of(entry(functions=ALL, windows=6)).features
    assert {f.name: f.bounds for f in made if f.bounds != (None, None)} == {
        "close_lsbm_6": (0.0, None),
        "close_fmax_6": (0.0, 1.0),
        "close_std_6": (0.0, None),
        "close_area_6": (-1.0, 1.0),
    }
    told = set_of(entry(functions="std", windows=[6, 12], rel_base="next", rel_func="rel_diff")).features
    assert [feature.bounds for feature in told] == [(None, None), (0.0, None)]


@pytest.mark.parametrize("step", [1e-9, 0.1, 1.0 / 3.0, 1e12])
@pytest.mark.parametrize("n", [3, 47, 500])
def test_values_lie_within_their_bounds_to_the_last_bit(step: float, n: int) -> None:
    made = set_of(entry(functions=["lsbm", "fmax", "std", "area"], windows=n))
    noise = np.random.default_rng(n).normal(0.0, step, 1200)
    # Only rising, then only falling: the area is 1 or -1 but for rounding; then flat.
    closes = 1e3 + np.concatenate([np.cumsum(np.abs(noise)), -np.cumsum(np.abs(noise)), np.full(n, 0.1)])
    values = made.compute(raster_of({"close": closes.tolist()}))
    for feature in made.features:
        low, high = feature.bounds
        there = values[feature.name].dropna()
        assert len(there) > 2000
        assert low is None or there.min() >= low
        assert high is None or there.max() <= high
    area = values[f"close_area_{n}"]
    assert area.min() == -1.0
    assert area.max() == 1.0


def test_a_column_whose_name_would_be_too_long_needs_names() -> None:
    column = "futures_" + "x" * 50
    grid = Grid(HOUR, {column: "quote"})
    with pytest.raises(ValueError, match="at most 63; set names"):
        _ = FeatureSet("tried", grid, (entry_of(entry(**MEANS, columns=column)),)).features
    named = FeatureSet("tried", grid, (entry_of(entry(**MEANS, columns=column, names=["a", "b", "c"])),))
    assert [feature.name for feature in named.features] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"functions": "skew"}, "no function skew; allowed: scipy_skew, pandas_skew"),
        ({"functions": "msdc"}, "no function msdc"),
        ({"functions": []}, "functions"),
        ({"windows": []}, "windows"),
        ({"windows": [0]}, "a window of 0 bars"),
        ({"windows": ["90m"]}, "no multiple of the bar"),
        ({"functions": "pandas_skew", "windows": [2]}, "at least 3 bars; 2 has 2"),
        ({"functions": "slope", "windows": ["1h"]}, "at least 2 bars; 1h has 1"),
        ({"columns": "middle"}, "there is no column middle; allowed: close"),
        ({"columns": ["close", "open"]}, r"2 columns \(close, open\), of which only the first would be read"),
        ({"windows": [24, 24]}, "two columns are named close_mean_24"),
        ({"names": ["one", "two"]}, "there are 2 names for 1 columns"),
        ({"windows": [2, 3], "names": ["one", "one"]}, "two columns are named one"),
        ({"names": "Not a name"}, "is no column name"),
        ({"rel_base": "next"}, "rel_base and rel_func belong together"),
        ({"rel_func": "rel"}, "rel_base and rel_func belong together"),
        ({"rel_base": "middle", "rel_func": "rel"}, "rel_base"),
        ({"rel_base": "next", "rel_func": "rel"}, "needs at least two windows"),
        ({"percentage": True}, "percentage is for shares"),
        (
            {"windows": [2, 3], "rel_base": "next", "rel_func": "diff", "percentage": True},
            "percentage is for shares",
        ),
        (
            {"windows": [2, 3], "rel_base": "next", "rel_func": "rel", "percentage": True, "log": True},
            "percentage or log",
        ),
        ({"bias": True}, "bias is for scipy_skew and scipy_kurtosis"),
        ({"window": 3}, "window"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused_with_the_reason(
    options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        _ = set_of(entry(**({"functions": "mean", "windows": [24]} | options))).features


def test_every_run_gives_the_same_bits() -> None:
    made = set_of(
        entry(functions=ALL, windows=[5, "70h"]),
        entry(
            functions=["mean", "std"],
            windows=[6, 12],
            rel_base="next",
            rel_func="rel_diff",
            percentage=True,
            columns="volume_base",
        ),
    )
    rows = random_raster(450, LISTINGS, seed=9, missing_share=0.03)
    assert made.lookback == timedelta(hours=69)
    assert_every_run_gives_the_same_bits(made, rows, START + 12 * DAY)


def test_first_values_are_where_the_warm_up_ends() -> None:
    made = set_of(entry(functions=ALL, windows=[6, 9]), entry(functions="mean", windows=1, names="itself"))
    assert_first_values_are_where_the_warm_up_ends(made, random_raster(40, ["AAA/USDT"]))
