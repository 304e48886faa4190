from __future__ import annotations

from typing import Any

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

ENTRY = {"generator": "highlow", "horizons": (6,)}


def expected(bars: Bars, t: int, length: int, thresholds: tuple[float, ...]) -> dict[str, Any] | None:
    """The labels of row t as one would read them off a chart; None while open."""
    told = bars.after(t, length)
    if told is None:
        return None
    seen, hour, holds = told
    names = [f"{side}_{str(x).replace('.', '')}_{length}" for side in ("high", "low") for x in thresholds]
    result: dict[str, Any] = dict.fromkeys(
        [*names, f"high_max_{length}_pct", f"low_min_{length}_pct", f"high_to_low_{length}"]
    )
    result["hour"] = hour + 1
    if not holds:
        return result
    close = bars.rows[t]["close"]
    rise = 100 * (max(bars.rows[k]["high"] for k in seen) - close) / close
    fall = 100 * (min(bars.rows[k]["low"] for k in seen) - close) / close
    result[f"high_max_{length}_pct"], result[f"low_min_{length}_pct"] = rise, fall
    for x in thresholds:
        text = str(x).replace(".", "")
        result[f"high_{text}_{length}"] = rise >= x if x >= 0.75 else rise <= x
        result[f"low_{text}_{length}"] = fall <= -x if x >= 0.75 else fall >= -x
    up, down = max(rise, 0), max(-fall, 0)
    if up + down > 0:
        result[f"high_to_low_{length}"] = 2 * up / (up + down) - 1
    return result


@QUICK
@given(
    seed=st.integers(0, 1000),
    gaps=pauses,
    end=st.integers(1, N_BARS + 30),
    length=st.sampled_from([1, 6, 25]),
    missing=st.sampled_from([0.0, 0.5]),
)
def test_labels_agree_with_their_definition_read_hour_by_hour(
    seed: int, gaps: list[tuple[int, int]], end: int, length: int, missing: float
) -> None:
    raster = world(seed, gaps, missing)
    thresholds = (1.0, 1.5, 0.2, 0.5)
    entry = {"generator": "highlow", "horizons": (length,), "thresholds": thresholds}
    bars = Bars.of(raster, end)
    for row in compute(raster, entry, watermark=clock(end)).to_dict("records"):
        t = round((row["ts"] - START) / (clock(1) - START))
        told = expected(bars, t, length, thresholds)
        assert hour_of(row["known_at"]) == (None if told is None else told["hour"]), t
        for name, value in (told or {}).items():
            assert name == "hour" or agree(row[name], value), (t, name)


def test_columns_bear_the_names_of_the_seed_with_the_horizon() -> None:
    names = [label.name for label in set_of(ENTRY).labels]
    assert names[:3] == ["high_max_6_pct", "low_min_6_pct", "high_10_6"]
    assert names[-1] == "high_to_low_6"
    assert len(names) == 3 + 20
    assert {f"{side}_{x}_6" for side in ("high", "low") for x in ("10", "15", "20", "25", "30")} <= set(names)
    assert {f"{side}_0{x}_6" for side in ("high", "low") for x in range(1, 6)} <= set(names)


def test_the_row_itself_does_not_count_and_both_families_of_thresholds_are_told() -> None:
    raster = by_hand(
        [100.0, 101.0, 99.8, 100.0], high=[150.0, 101.0, 100.0, 100.0], low=[50.0, 99.75, 99.8, 100.0]
    )
    row = compute(raster, {"generator": "highlow", "horizons": (3,)}).iloc[0]
    assert row["high_max_3_pct"] == 1.0
    assert row["low_min_3_pct"] == -0.25
    assert row["high_to_low_3"] == pytest.approx(2 * 1.0 / 1.25 - 1)
    flags = [label.name for label in set_of({**ENTRY, "horizons": (3,)}).labels if label.type == "BOOLEAN"]
    assert [name for name in flags if row[name]] == ["high_10_3", "low_03_3", "low_04_3", "low_05_3"]
    assert hour_of(row["known_at"]) == 4


def test_a_flat_horizon_has_no_balance() -> None:
    row = compute(by_hand([100.0] * 4), {"generator": "highlow", "horizons": (2,)}).iloc[0]
    assert (row["high_max_2_pct"], row["low_min_2_pct"]) == (0.0, 0.0)
    assert row[["high_to_low_2"]].isna().all()


@pytest.mark.parametrize("reference", [0.0, -1.0, None])
def test_of_a_reference_that_is_not_positive_there_are_no_percent(reference: float | None) -> None:
    raster = by_hand([100.0] * 8, volume_base=[reference] * 2 + [90.0] * 6)
    entry = {"generator": "highlow", "columns": ("volume_base", "high", "low"), "horizons": (3,)}
    result = compute(raster, entry)
    names = [label.name for label in set_of(entry).labels]
    assert result.loc[:1, names].isna().all(axis=None)
    assert [hour_of(moment) for moment in result["known_at"].iloc[:3]] == [1, 2, 6]
    assert result[names].iloc[2].notna().all()


def test_a_death_ends_the_horizon_and_the_last_row_has_nothing_after_it() -> None:
    closes = [100.0, 90.0, 80.0] + [None] * 30
    result = compute(by_hand(closes), {"generator": "highlow", "horizons": (20,)})
    assert result["low_min_20_pct"].iloc[0] == -20.0
    assert [hour_of(moment) for moment in result["known_at"]] == [15, 15, 15]
    assert result["low_min_20_pct"].isna().tolist() == [False, False, True]


def test_a_horizon_with_too_few_bars_is_missing_once_the_listing_proves_alive() -> None:
    closes = [100.0, 101.0, None, None, None, None, None, 102.0] + [100.0] * 4
    entry = {"generator": "highlow", "horizons": (5,)}
    for hour, decided in ((7, False), (8, True)):
        row = compute(by_hand(closes), entry, watermark=clock(hour)).iloc[0]
        assert (hour_of(row["known_at"]) == 8) == decided
        assert row[["high_max_5_pct"]].isna().all()
