from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_assets_tests.quant.labels.worlds import (
    N_BARS,
    Bars,
    agree,
    by_hand,
    clock,
    compute,
    hour_of,
    pauses,
    set_of,
    world,
)
from crypto_assets_tests.quant.rasters import QUICK, START


def test_the_area_is_the_share_of_what_lies_above() -> None:
    closes = [100.0, 101.0, 103.0, 98.0, 104.0, 100.0, 100.0, 100.0]
    area = compute(by_hand(closes), {"generator": "area_future", "windows": (3,)})["close_area_future_3"]
    assert area.iloc[:5].tolist() == pytest.approx(
        [(1 + 3 - 2) / 6, (2 - 3 + 3) / 8, (-5 + 1 - 3) / 9, 1.0, -1.0]
    )
    assert area.iloc[5:7].isna().all(), "0 / 0 on a flat future, and too few bars"


def test_an_area_is_a_share_as_it_is_in_a_feature() -> None:
    assert {label.unit for label in set_of({"generator": "area_future"}).labels} == {"frac"}


def test_the_defaults_are_those_of_the_seed() -> None:
    names = list(compute(by_hand([100.0]), {"generator": "area_future"}))[4:]
    assert names == [f"close_area_future_{window}" for window in (60, 120, 180, 300)]


@QUICK
@given(
    seed=st.integers(0, 1000),
    gaps=pauses,
    end=st.integers(1, N_BARS + 30),
    window=st.sampled_from([1, 6, 25]),
    missing=st.sampled_from([0.0, 0.5]),
)
def test_labels_agree_with_their_definition_read_hour_by_hour(
    seed: int, gaps: list[tuple[int, int]], end: int, window: int, missing: float
) -> None:
    raster = world(seed, gaps, missing)
    bars = Bars.of(raster, end)
    result = compute(raster, {"generator": "area_future", "windows": (window,)}, watermark=clock(end))
    for row in result.to_dict("records"):
        t = round((row["ts"] - START) / (clock(1) - START))
        told = bars.after(t, window)
        assert hour_of(row["known_at"]) == (None if told is None else told[1] + 1), t
        value = None
        if told is not None and told[2]:
            off = [bars.rows[k]["close"] - bars.rows[t]["close"] for k in told[0]]
            value = sum(off) / sum(map(abs, off))
        assert agree(row[f"close_area_future_{window}"], value), t
