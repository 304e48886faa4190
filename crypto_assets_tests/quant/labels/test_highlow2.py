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

CLOSES = [100, 101, 100.5, 103, 102, 99, 100, 104]
VECTOR = by_hand(
    CLOSES,
    high=[100.5, 101.5, 101, 103.5, 103, 102, 101, 104.5],
    low=[99.5, 100.2, 99.9, 100.4, 101.5, 98.5, 98.8, 100],
)
ENTRY = {"generator": "highlow2", "thresholds": (2.0,), "tolerance": 0.5, "horizon": 3}


@pytest.mark.parametrize(
    ("function", "published", "early"),
    [("high", [1, 0, 1, 0, 0], [1, 1]), ("low", [0, 0, 0, 1, 1], [0, 0])],
)
def test_the_vector_of_the_reference_and_its_last_rows_decided_early_or_missing(
    function: str, published: list[int], early: list[int]
) -> None:
    result = compute(VECTOR, {**ENTRY, "function": function}, watermark=clock(len(CLOSES)))
    label = result[f"{function}_20_first_3"]
    assert label.iloc[:5].astype(int).tolist() == published
    # Rows 5 and 6 meet a threshold before the data ends; row 7 has no bar after it.
    assert label.iloc[5:7].astype(int).tolist() == early
    assert label.isna().tolist() == [False] * 7 + [True]
    assert result["known_at"].isna().tolist() == [False] * 7 + [True]


def test_the_last_rows_are_missing_until_decided() -> None:
    calm = by_hand([100.0] * 6)
    label = compute(calm, {**ENTRY, "function": "high"}, watermark=clock(6))["high_20_first_3"]
    assert label.isna().tolist() == [False] * 3 + [True] * 3
    assert not label.iloc[:3].any()


def test_a_row_is_decided_at_the_end_of_the_bar_that_passes_a_threshold() -> None:
    result = compute(VECTOR, {**ENTRY, "function": "high"})
    assert [hour_of(moment) for moment in result["known_at"].iloc[:4]] == [4, 3, 4, 5]
    for hour, decided in ((3, False), (4, True)):
        row = compute(VECTOR, {**ENTRY, "function": "high"}, watermark=clock(hour)).iloc[0]
        assert (row["known_at"] == clock(4)) == decided


def test_both_in_one_bar_count_as_success_and_a_threshold_is_passed_strictly() -> None:
    wild = by_hand([100.0, 100.0], high=[100.0, 103.0], low=[100.0, 90.0])
    for function in ("high", "low"):
        assert compute(wild, {**ENTRY, "function": function}).iloc[0][f"{function}_20_first_3"]
    exact = by_hand([100.0] * 4, high=[100.0, 102.0, 100.0, 100.0])
    assert not compute(exact, {**ENTRY, "function": "high"}).iloc[0]["high_20_first_3"]


@pytest.mark.parametrize("reference", [0.0, -1.0, None])
@pytest.mark.parametrize("function", ["high", "low"])
def test_of_a_reference_that_is_not_positive_there_are_no_percent(
    function: str, reference: float | None
) -> None:
    raster = by_hand([100.0] * 8, volume_base=[reference] * 2 + [100.0] * 6)
    entry = {**ENTRY, "columns": ("volume_base", "high", "low"), "function": function}
    result = compute(raster, entry)
    assert result[f"{function}_20_first_3"].isna().tolist()[:3] == [True, True, False]
    assert [hour_of(moment) for moment in result["known_at"].iloc[:3]] == [1, 2, 6]


def test_a_death_without_either_is_false_and_not_missing() -> None:
    dying = by_hand([100.0, 99.9, 99.8] + [None] * 30)
    result = compute(dying, {**ENTRY, "function": "high", "horizon": 20})
    assert result["high_20_first_20"].isna().tolist() == [False, False, True]
    assert not result["high_20_first_20"].iloc[0]
    assert hour_of(result["known_at"].iloc[0]) == 15


@QUICK
@given(
    seed=st.integers(0, 1000),
    gaps=pauses,
    end=st.integers(1, N_BARS + 30),
    length=st.sampled_from([1, 6, 25]),
    function=st.sampled_from(["high", "low"]),
    missing=st.sampled_from([0.0, 0.5]),
)
def test_labels_agree_with_their_definition_read_hour_by_hour(
    seed: int, gaps: list[tuple[int, int]], end: int, length: int, function: str, missing: float
) -> None:
    raster = world(seed, gaps, missing)
    bars = Bars.of(raster, end)
    for threshold, tolerance in ((1.0, 0.5), (2.0, 1.0)):
        entry = {
            "generator": "highlow2",
            "function": function,
            "thresholds": (threshold,),
            "tolerance": tolerance,
            "horizon": length,
        }
        (label,) = set_of(entry).labels
        for row in compute(raster, entry, watermark=clock(end)).to_dict("records"):
            t = round((row["ts"] - START) / (clock(1) - START))
            value, hour = first_passed(bars, t, length, function, threshold, tolerance)
            assert hour_of(row["known_at"]) == hour, t
            assert agree(row[label.name], value), t


def first_passed(
    bars: Bars, t: int, length: int, function: str, threshold: float, tolerance: float
) -> tuple[bool | None, int | None]:
    """Label of row t and hour of its decision, read bar by bar; None, None while open."""
    told = bars.after(t, length)
    close = bars.rows[t]["close"]
    last = t
    for k in sorted(k for k in bars.rows if t < k <= t + length):
        if k - last > 12:
            break
        last = k
        bar = bars.rows[k]
        up, down = bar["high"], bar["low"]
        if function == "high":
            won = up > close * (1 + threshold / 100)
            lost = down < close * (1 - threshold * tolerance / 100)
        else:
            won = down < close * (1 - threshold / 100)
            lost = up > close * (1 + threshold * tolerance / 100)
        if won or lost:
            return won, k + 1
    if told is None:
        return None, None
    _, hour, holds = told
    return (False if holds else None), hour + 1
