from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from crypto_assets_tests.quant.generators.sets import (
    LISTINGS,
    assert_every_run_gives_the_same_bits,
    assert_first_values_are_where_the_warm_up_ends,
    set_of,
    values_of,
)
from crypto_assets_tests.quant.rasters import DAY, START, random_raster, raster_of


def entry(**options: Any) -> dict[str, Any]:
    return {"generator": "tsfresh", "columns": ["close"]} | options


def test_there_are_five_columns_per_window() -> None:
    made = set_of(entry(windows=[5, "12h"]))
    assert [feature.name for feature in made.features] == [
        *(f"close_{name}_5" for name in ("skewness", "kurtosis", "msdc", "lsbm", "fmax")),
        *(f"close_{name}_12h" for name in ("skewness", "kurtosis", "msdc", "lsbm", "fmax")),
    ]
    assert [feature.unit for feature in made.features[:5]] == ["1", "1", "quote", "1", "frac"]
    assert [feature.bounds for feature in made.features[2:5]] == [(None, None), (0.0, None), (0.0, 1.0)]


def test_a_hand_made_example() -> None:
    values = values_of(raster_of({"close": [1.0, 2.0, 5.0, 1.0, 1.0, 6.0]}), entry(windows=5)).iloc[-1]
    # The window is 2, 5, 1, 1, 6 with the mean 3.
    window = pd.Series([2.0, 5.0, 1.0, 1.0, 6.0])
    assert values["close_msdc_5"] == pytest.approx((6.0 - 1.0 - 5.0 + 2.0) / (2 * 3))
    assert values["close_lsbm_5"] == 2.0
    assert values["close_fmax_5"] == 0.8
    assert values["close_skewness_5"] == pytest.approx(window.skew())
    assert values["close_kurtosis_5"] == pytest.approx(window.kurt())


def test_moments_are_those_of_pandas_with_missing_bars_left_out() -> None:
    rows = random_raster(200, ["AAA/USDT"], missing_share=0.1, seed=4)
    close, has_bar = rows["close"], rows["has_bar"].to_numpy()
    values = values_of(rows, entry(windows=16))
    rolling = close.rolling(16, min_periods=8)
    np.testing.assert_allclose(values["close_skewness_16"], rolling.skew()[has_bar], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(values["close_kurtosis_16"], rolling.kurt()[has_bar], rtol=1e-6, atol=1e-9)


def test_names_may_be_given() -> None:
    names = ["skew", "kurt", "bend", "strike", "top"]
    assert (
        list(values_of(raster_of({"close": [1.0] * 5}), entry(windows=4, names=names)).columns[3:]) == names
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"windows": [3]}, "kurtosis needs windows of at least 4 bars; 3 has 3"),
        ({"columns": "middle"}, "there is no column middle"),
        ({"columns": ["close", "open"]}, "only the first would be read: make one entry for each"),
        ({"windows": [5, 5]}, "two columns are named close_fmax_5, close_kurtosis_5, .*close_skewness_5"),
        ({"names": ["one"]}, "1 names for 5 columns"),
        ({"functions": ["msdc"]}, "functions"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused_with_the_reason(
    options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        _ = set_of(entry(**({"windows": [5]} | options))).features


def test_every_run_gives_the_same_bits() -> None:
    rows = random_raster(450, LISTINGS, seed=2, missing_share=0.03)
    assert_every_run_gives_the_same_bits(set_of(entry(windows=[5, 70])), rows, START + 12 * DAY)


def test_first_values_are_where_the_warm_up_ends() -> None:
    made = set_of(entry(windows=[4, 9]))
    assert_first_values_are_where_the_warm_up_ends(made, random_raster(40, ["AAA/USDT"], seed=1))
