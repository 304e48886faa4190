"""A user's function: what it gets, what it may hand back, what is refused, and that no look-ahead goes unnoticed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from crypto_assets.quant.feature_sets import BAR_COLUMNS, FeatureError, FeatureSet
from crypto_assets.quant.generators import entry_of
from crypto_assets.quant.generators.anchored import Seen
from crypto_assets.quant.generators.custom import FunctionError, LookAheadError, function_of, rows_before_cut
from crypto_assets.quant.generators.declared import Grid
from crypto_assets_tests.quant.generators.sets import LISTINGS, assert_every_run_gives_the_same_bits
from crypto_assets_tests.quant.rasters import DAY, HOUR, START, Listing, random_raster, raster_of

#: What `remembers` was called with.
CALLS: list[pd.DataFrame] = []
NO_FUNCTION = 3


# Functions as a user writes them.


def scaled(bars: pd.DataFrame, factor: float = 2.0) -> pd.Series:
    return bars["close"] * factor


def smooth(bars: pd.DataFrame, *, span: int) -> pd.DataFrame:
    mean = bars["close"].ewm(span=span).mean()
    return pd.DataFrame({"distance_frac": bars["close"] / mean - 1, "mean_quote": mean})


def sums(bars: pd.DataFrame) -> dict[str, Any]:
    return {"b": bars["volume_base"].cumsum().tolist(), "a": np.arange(len(bars))}


def stacked(bars: pd.DataFrame) -> np.ndarray:
    return np.column_stack([bars["close"], bars["close"].to_numpy() ** 2])


def in_nanoseconds(bars: pd.DataFrame) -> pd.Series:
    return bars["close"].set_axis(pd.DatetimeIndex(bars.index).as_unit("ns"))


def counted(bars: pd.DataFrame) -> pd.DataFrame:
    return (bars[["close"]] * 2.0).reset_index(drop=True)


def flags(bars: pd.DataFrame) -> pd.Series:
    return (bars["close"] > 100).astype("boolean").where(bars["close"] < 105)


def remembers(bars: pd.DataFrame) -> pd.Series:
    CALLS.append(bars.copy())
    bars["close"] = 0.0
    return bars["close"]


def shifted(bars: pd.DataFrame) -> pd.Series:
    return bars["close"].shift(-1)


def filled(bars: pd.DataFrame) -> np.ndarray:
    return bars["close"].where(bars["close"] > bars["close"].shift(1)).bfill().to_numpy()


def standardised(bars: pd.DataFrame) -> pd.Series:
    return (bars["close"] - bars["close"].mean()) / bars["close"].std()


def of_the_day(bars: pd.DataFrame) -> pd.Series:
    return bars.groupby(pd.DatetimeIndex(bars.index).normalize())["close"].transform("max")


def centred(bars: pd.DataFrame) -> pd.Series:
    return bars["close"].rolling(3, center=True, min_periods=1).mean()


def by_length(bars: pd.DataFrame) -> np.ndarray:
    return np.full(len(bars), float(len(bars)))


def restless(bars: pd.DataFrame) -> np.ndarray:
    CALLS.append(bars)
    return np.full(len(bars), float(len(CALLS)))


def breaks(bars: pd.DataFrame) -> pd.Series:
    raise KeyError("vwap")


def fewer(bars: pd.DataFrame) -> pd.Series:
    return bars["close"].iloc[1:]


def turned(bars: pd.DataFrame) -> pd.Series:
    return bars["close"].iloc[::-1]


def other_names(bars: pd.DataFrame) -> dict[str, pd.Series]:
    return {"c": bars["close"], "d": bars["close"]}


def words(bars: pd.DataFrame) -> np.ndarray:
    return np.array(["up"] * len(bars))


def infinite(bars: pd.DataFrame) -> pd.Series:
    return bars["close"] / 0.0


def a_number(bars: pd.DataFrame) -> float:
    return float(bars["close"].iloc[-1])


def numbers_by_name(bars: pd.DataFrame) -> dict[str, float]:
    return {"x": 1.0}


def imaginary(bars: pd.DataFrame) -> pd.Series:
    return bars["close"] * 1j


def twice(bars: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([bars["close"], bars["close"]], axis=1)


def a_set(function: FunctionType | str, bar: timedelta = HOUR, **options: Any) -> FeatureSet:
    path = function if isinstance(function, str) else f"{__name__}:{function.__name__}"
    given = {"columns": ["close"], "names": ["x"], "lookback": 24} | options
    return FeatureSet("mine", Grid(bar, BAR_COLUMNS), (entry_of({"generator": path, **given}),))


def some_rows(n_bars: int = 120, bar: timedelta = HOUR) -> pd.DataFrame:
    listings = [Listing("AAA/USDT", gaps=((30, 34),)), Listing("BBB/USDT", first=50)]
    return random_raster(n_bars, listings, missing_share=0.05, seed=4, bar=bar)


def hourly_whole_day(number: int, n_before: int = 0) -> Seen:
    day = np.datetime64(number, "D").astype("datetime64[us]")
    ts = day + np.timedelta64(1, "h") * np.arange(-n_before, 24)
    return Seen({"ts": ts}, "X", day, n_before)


def test_a_function_of_a_row_gives_the_value_of_every_bar_with_parameters_and_metadata() -> None:
    rows = some_rows()
    made = a_set(
        scaled,
        parameters={"factor": 3.0},
        names=["triple_quote"],
        units={"triple_quote": "quote"},
        lookback=0,
    )
    values = made.compute(rows)
    bars = rows[rows["has_bar"]].sort_values(["symbol", "ts"])
    np.testing.assert_array_equal(values["triple_quote"].to_numpy(), 3.0 * bars["close"].to_numpy())
    (feature,) = made.features
    assert (feature.unit, feature.inputs, feature.lookback, feature.warm_up) == ("quote", ("close",), 23, 0)
    assert feature.parameters == (("factor", 3.0),)
    assert made.version != a_set(scaled, names=["triple_quote"], lookback=0).version


def test_the_function_sees_bars_that_are_there_of_one_listing_from_the_anchor_of_the_day_on() -> None:
    CALLS.clear()
    rows = raster_of({"close": [1.0, None, 3.0, *range(4, 40)], "volume_base": [1.0] * 39})
    rows.loc[rows["ts"] == START + 30 * HOUR, "volume_base"] = np.nan
    made = a_set(remembers, columns=["close", "volume_base"], lookback=5)
    values = made.compute(rows)
    whole = [call for call in CALLS if call.index[-1] in (START + 23 * HOUR, START + 38 * HOUR)]
    first, second = whole
    assert first["close"].tolist() == [1.0, 3.0, *range(4, 25)]
    assert second.index.tolist() == [START + hour * HOUR for hour in range(19, 39)]
    assert second.index.name == "ts"
    assert list(second.columns) == ["close", "volume_base"]
    assert second.index[second["volume_base"].isna()].tolist() == [START + 30 * HOUR]
    # It wrote into what it got, and nobody else noticed.
    assert (values["x"] == 0.0).all()
    assert first["close"].iloc[0] == 1.0


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (smooth, {"names": ["mean_quote", "distance_frac"], "parameters": {"span": 5}}),
        (sums, {"names": ["a", "b"], "columns": ["volume_base"]}),
        (stacked, {"names": ["price", "square"]}),
        (flags, {"names": ["high"]}),
    ],
)
def test_every_run_gives_the_same_bits(function: FunctionType, options: dict[str, Any]) -> None:
    made = a_set(function, **options)
    assert [feature.name for feature in made.features] == options["names"]
    assert made.lookback == 47 * HOUR
    rows = random_raster(400, LISTINGS, missing_share=0.05, seed=4)
    assert_every_run_gives_the_same_bits(made, rows, START + 12 * DAY)


def test_results_are_found_by_name_and_missing_ones_stay_missing() -> None:
    rows = some_rows()
    close = rows[rows["has_bar"]].sort_values(["symbol", "ts"])["close"].to_numpy()
    high = a_set(flags, names=["high"]).compute(rows)["high"].to_numpy()
    np.testing.assert_array_equal(high, np.where(close < 105, (close > 100).astype(float), np.nan))
    made = a_set(stacked, names=["price", "square"]).compute(rows)
    np.testing.assert_array_equal(made["square"].to_numpy(), close**2)
    made = a_set(sums, names=["a", "b"], columns=["volume_base"]).compute(rows)
    assert made["b"].notna().all()
    assert (made["a"] % 1 == 0).all()


def test_an_index_may_be_the_rows_own_in_any_precision_or_none() -> None:
    rows = some_rows()
    values = [
        a_set(function, names=["close"]).compute(rows)["close"] for function in (in_nanoseconds, counted)
    ]
    np.testing.assert_array_equal(2.0 * values[0].to_numpy(), values[1].to_numpy())


def test_rows_with_a_short_history_are_missing() -> None:
    rows = raster_of({"close": [100.0 + hour for hour in range(48)]})
    values = a_set(scaled, warm_up=7).compute(rows)["x"]
    assert values.isna().tolist() == [True] * 7 + [False] * 41


@pytest.mark.parametrize("function", [shifted, filled, standardised, of_the_day, centred, by_length])
@pytest.mark.parametrize("bar", [HOUR, timedelta(minutes=30)])
def test_a_function_that_looks_ahead_is_refused(function: FunctionType, bar: timedelta) -> None:
    with pytest.raises(
        FeatureError, match=f"mine, entry 0 .*{function.__name__}, AAA/USDT#1 on .*"
    ) as caught:
        a_set(function, bar).compute(some_rows(bar=bar))
    told = str(caught.value.__cause__)
    assert isinstance(caught.value.__cause__, LookAheadError)
    assert "looks ahead: x at 2022-05-0" in told


def test_the_refusal_names_function_column_listing_row_and_both_values() -> None:
    rows = raster_of({"close": [100.0, 101.0, 102.5]})
    with pytest.raises(FeatureError) as caught:
        a_set(shifted, names=["next_quote"]).compute(rows)
    told = str(caught.value)
    # Two of three bars or fewer are kept: the last one of these knows its successor.
    for word in ("test_custom:shifted", "next_quote", "AAA/USDT#1", "2022-05-02T00:00:00", "101.0", "nan"):
        assert word in told


def test_a_leak_in_one_hour_of_the_day_is_found_within_24_days() -> None:
    number = int(np.datetime64(START, "D").astype(int))
    cuts = [rows_before_cut(hourly_whole_day(day, n_before=6), 24) - 6 for day in range(number, number + 24)]
    assert sorted(cuts) == list(range(24))
    minutes = np.datetime64(0, "D").astype("datetime64[us]") + np.timedelta64(1, "m") * np.arange(1440)
    kept = set()
    for day in range(1440):
        moved = minutes + np.timedelta64(day, "D")
        kept.add(rows_before_cut(Seen({"ts": moved}, "X", moved[0], 0), 1440))
    # Midnight has nothing before it where there is no history.
    assert kept == set(range(1, 1440))


@pytest.mark.parametrize(("per_day", "n_rows"), [(24, 1), (24, 2), (24, 5), (6, 6), (1, 1), (1440, 7)])
def test_the_cut_leaves_a_row_on_both_sides_wherever_there_are_two(per_day: int, n_rows: int) -> None:
    for number in range(60):
        for n_before in (0, 3):
            day = np.datetime64(number, "D").astype("datetime64[us]")
            ts = day + np.timedelta64(1, "m") * np.arange(n_before + n_rows)
            kept = rows_before_cut(Seen({"ts": ts}, "X", day, n_before), per_day)
            assert min(1, n_before + n_rows - 1) <= kept < n_before + n_rows
            assert kept >= n_before


def test_a_function_that_answers_differently_each_time_is_not_called_a_leak() -> None:
    with pytest.raises(FeatureError, match="called again with the same rows") as caught:
        a_set(restless).compute(some_rows())
    assert not isinstance(caught.value.__cause__, LookAheadError)


@pytest.mark.parametrize(
    ("function", "options", "reason"),
    [
        (breaks, {}, "raised KeyError: 'vwap'"),
        (fewer, {}, "handed back x with 22 rows instead of 23 rows"),
        (turned, {}, "another index"),
        (other_names, {"names": ["c", "e"]}, "the columns c, d instead of c, e"),
        (other_names, {"names": ["c"]}, "the columns c, d instead of c"),
        (scaled, {"names": ["c", "d"]}, "one column instead of c, d"),
        (stacked, {"names": ["c"]}, "2 columns instead of c"),
        (words, {}, "not numeric"),
        (imaginary, {}, "not numeric"),
        (infinite, {}, "infinite x at 2022-05-02T00:00:00"),
        (a_number, {}, "handed back a float"),
        (numbers_by_name, {}, "the shape"),
        (twice, {}, "a column twice"),
    ],
)
def test_what_cannot_be_used_is_refused_with_set_entry_function_listing_and_day(
    function: FunctionType, options: dict[str, Any], reason: str
) -> None:
    rows = raster_of({"close": [1.0, None, *range(3, 25)]})
    with pytest.raises(FeatureError) as caught:
        a_set(function, **options).compute(rows)
    told = str(caught.value)
    for word in ("feature set mine", "entry 0", f":{function.__name__}", "AAA/USDT#1", "2022-05-02", reason):
        assert word in told
    assert isinstance(caught.value.__cause__, FunctionError)


def test_what_the_function_raised_is_chained() -> None:
    with pytest.raises(FeatureError) as caught:
        a_set(breaks).compute(some_rows())
    cause = caught.value.__cause__
    assert isinstance(cause, FunctionError)
    assert isinstance(cause.__cause__, KeyError)


@pytest.mark.parametrize(
    ("function", "options", "reason"),
    [
        ("no_such_package.features:mine", {}, "no_such_package.features cannot be imported"),
        (f"{__name__}:not_there", {}, "not_there is not there"),
        (f"{__name__}:NO_FUNCTION", {}, "of type int and cannot be called"),
        ("a-b:c", {}, "names no function"),
        ("math:sqrt:floor", {}, "names no function"),
        (scaled, {"parameters": {"power": 2}}, "unexpected keyword argument 'power'"),
        (smooth, {}, "missing a required.* argument: 'span'"),
        (scaled, {"lookback": None}, "lookback"),
        (scaled, {"lookback": "90m"}, "no multiple of the bar"),
        (scaled, {"lookback": -1}, "lookback"),
        (scaled, {"warm_up": 25}, "at most the lookback of 24 bars"),
        (scaled, {"warm_up": -1}, "warm_up"),
        (scaled, {"columns": ["vwap"]}, "there is no column vwap"),
        (scaled, {"columns": []}, "columns"),
        (scaled, {"names": ["x", "x"]}, "names a column twice"),
        (scaled, {"names": ["X"]}, "no column name"),
        (scaled, {"units": {"y": "quote"}}, "y is not among names"),
        (scaled, {"window": 3}, "window"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused_before_anything_is_computed(
    function: FunctionType | str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        _ = a_set(function, **options).features


def test_lookback_and_names_have_no_default() -> None:
    with pytest.raises(ValueError, match="lookback: Field required") as caught:
        entry_of({"generator": f"{__name__}:scaled", "columns": ["close"]})
    assert "names: Field required" in str(caught.value)


def test_a_module_that_fails_while_it_is_imported_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_features.py").write_text("raise RuntimeError('no licence')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"cannot be imported \(RuntimeError: no licence\)"):
        function_of("broken_features:anything")
