from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_assets_tests.quant.labels.test_forward_return import tables
from crypto_assets_tests.quant.labels.worlds import (
    N_BARS,
    Bars,
    agree,
    by_hand,
    clock,
    compute,
    hour_of,
    pauses,
    world,
)
from crypto_assets_tests.quant.rasters import HOUR, QUICK, START


@QUICK
@given(
    seed=st.integers(0, 1000),
    gaps=pauses,
    end=st.integers(1, N_BARS + 30),
    hours=st.sampled_from([2, 5, 24]),
    missing=st.sampled_from([0.0, 0.4, 0.6]),
)
def test_labels_agree_with_the_closes_between_fill_and_exit(
    seed: int, gaps: list[tuple[int, int]], end: int, hours: int, missing: float
) -> None:
    raster = world(seed, gaps, missing)
    result = compute(raster, {"generator": "forward_volatility", "horizons": (hours,)}, watermark=clock(end))
    (table,) = tables(raster, end, (hours,))
    assert result["known_at"].equals(table["known_at"])
    closes = {hour: row["close"] for hour, row in Bars.of(raster, end).rows.items()}
    for row, held in zip(result.to_dict("records"), table.to_dict("records"), strict=True):
        expected = None
        if held["outcome"] in ("filled", "death"):
            fill = round((held["fill_ts"] - START) / HOUR)
            # A position left by a death holds its last bar to the end.
            leave = round((held["exit_ts"] - START) / HOUR) + (held["outcome"] == "death")
            bars = [k for k in range(fill, leave) if k in closes]
            changes = pd.Series([np.log(closes[k] / closes[k - 1]) for k in bars if k - 1 in closes])
            if held["outcome"] == "death" or 2 * len(bars) >= leave - fill:
                expected = changes.std()
        value = row[f"forward_volatility_{hours}_log"]
        assert agree(value, None if expected is None or np.isnan(expected) else float(expected)), row["ts"]


def test_two_bars_have_a_volatility_and_it_is_zero_for_a_steady_rise() -> None:
    closes = [1.0, 2.0, 4.0, 16.0, 16.0, 16.0]
    result = compute(by_hand(closes), {"generator": "forward_volatility", "horizons": (2,)})
    # Row 0 fills in bar 1 and leaves at the open of bar 3: two doublings.
    assert result["forward_volatility_2_log"].iloc[0] == 0.0
    expected = float(np.std(np.log([2.0, 4.0]), ddof=1))
    assert result["forward_volatility_2_log"].iloc[1] == pytest.approx(expected, rel=1e-15)
    assert hour_of(result["known_at"].iloc[0]) == 4


def test_a_horizon_of_one_bar_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 bars"):
        compute(by_hand([1.0]), {"generator": "forward_volatility", "horizons": ("1h",)})
