"""Declared feature sets: their columns, their errors, and the harness that every declared set passes."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from crypto_assets.quant.feature_sets import BAR_COLUMNS, FeatureError, FeatureSet
from crypto_assets.quant.generators import entry_of
from crypto_assets.quant.generators.declared import Grid

HOUR = timedelta(hours=1)
GRID = Grid(HOUR, BAR_COLUMNS)
START = datetime(2024, 1, 1)


def feature_set(*entries: dict[str, Any], grid: Grid = GRID) -> FeatureSet:
    return FeatureSet("mine", grid, tuple(entry_of(entry) for entry in entries))


def bars(n: int = 100, seed: int = 5) -> pd.DataFrame:
    ts = np.datetime64(START, "us") + np.timedelta64(HOUR) * np.arange(n)
    close = 100 * np.exp(np.cumsum(np.random.default_rng(seed).normal(scale=0.01, size=n)))
    return pd.DataFrame(
        {
            "symbol": "A/USDT",
            "ts": ts,
            "known_at": ts + np.timedelta64(HOUR),
            "listing_id": "A/USDT#1",
            "has_bar": True,
            "close": close,
            "volume_base": 1.0 + np.arange(n) % 7,
        }
    )


MEAN = {"generator": "itbstats", "columns": ["close"], "functions": ["mean"], "windows": [4]}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"generator": "talb"}], "unknown generator 'talb'; did you mean talib"),
        ([{"windows": [1]}], "among them generator"),
        ([MEAN | {"widows": [1]}], "widows: Extra inputs are not permitted"),
        ([MEAN | {"windows": [0]}], "windows.*holds nothing"),
        ([MEAN | {"windows": ["4x"]}], "'4x' is no window"),
    ],
)
def test_an_entry_that_says_nothing_is_refused(entries: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        feature_set(*entries)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([MEAN, MEAN], "entry 1 .itbstats.: close_mean_4 is made by entry 0 already"),
        ([MEAN | {"columns": ["price"]}], "entry 0 .itbstats.: there is no column price; allowed: close"),
        ([MEAN | {"windows": ["90m"]}], "entry 0 .itbstats.: a window of 90m is no multiple"),
    ],
)
def test_entries_that_cannot_be_computed_on_the_grid_are_refused(
    entries: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _ = feature_set(*entries).features


def test_a_duration_and_its_number_of_bars_are_one_window_with_two_names() -> None:
    rows = bars()
    by_bars, by_time = (feature_set(MEAN | {"windows": [window]}).compute(rows) for window in (24, "24h"))
    np.testing.assert_array_equal(by_bars["close_mean_24"], by_time["close_mean_24h"])


def test_rows_are_those_that_are_wanted_and_have_a_bar() -> None:
    rows = bars()
    rows.loc[90, "has_bar"] = False
    rows.loc[90, ["close", "volume_base"]] = np.nan
    found = feature_set(MEAN).compute(rows, since=START + 80 * HOUR)
    expected = rows[(rows["ts"] >= START + 80 * HOUR) & rows["has_bar"]]
    assert found["ts"].tolist() == expected["ts"].tolist()
    assert found["close_mean_4"].notna().all()


def test_no_rows_give_a_typed_nothing() -> None:
    found = feature_set(MEAN).compute(bars().iloc[:0])
    assert list(found.columns) == ["symbol", "ts", "known_at", "listing_id", "close_mean_4"]
    assert found.empty


def test_the_version_is_that_of_the_declaration() -> None:
    assert feature_set(MEAN).version == feature_set(dict(reversed(MEAN.items()))).version
    assert feature_set(MEAN).version != feature_set(MEAN | {"windows": [5]}).version


def wrong(shape: str) -> Any:
    def function(frame: pd.DataFrame) -> Any:
        if shape == "raises":
            raise ZeroDivisionError("nothing to divide by")
        if shape == "short":
            return frame["close"].to_numpy()[:-1]
        return frame["close"] * np.inf

    return function


raises, short, infinite = wrong("raises"), wrong("short"), wrong("infinite")


def centred(frame: pd.DataFrame) -> pd.Series:
    """A leak: it sees one bar ahead."""
    return frame["close"].rolling(3, center=True).mean()


def custom(name: str) -> dict[str, Any]:
    return {
        "generator": f"{__name__}:{name}",
        "columns": ["close"],
        "names": ["mine"],
        "lookback": 24,
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [("raises", "nothing to divide by"), ("short", "length|rows|values"), ("infinite", "inf")],
)
def test_a_function_of_the_users_own_that_fails_names_set_entry_and_reason(name: str, reason: str) -> None:
    with pytest.raises(FeatureError, match=f"(?s)feature set mine, entry 1 .*{name}.*({reason})"):
        feature_set(MEAN, custom(name)).compute(bars())


def test_a_function_that_looks_ahead_is_refused_with_column_and_row() -> None:
    with pytest.raises(FeatureError, match="(?s)centred.*A/USDT#1.*mine at 2024-01-0"):
        feature_set(custom("centred")).compute(bars())
