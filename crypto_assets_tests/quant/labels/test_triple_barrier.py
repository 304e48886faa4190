from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_assets.quant import labels
from crypto_assets_tests.quant.labels.worlds import (
    DEATH,
    FAR,
    N_BARS,
    WAIT,
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
from crypto_assets_tests.quant.rasters import HOUR, QUICK, START

ENTRY = {
    "generator": "triple_barrier",
    "upper": 0.02,
    "lower": 0.01,
    "horizon": 3,
    "names": ("label", "change", "touched_at"),
}


def read_live(
    bars: Bars, t: int, upper: float | None, lower: float | None, length: int
) -> tuple[float | None, float | None, int | None, int | None]:
    """Label, return, hour of the touch, hour of the decision of row t, read hour by hour."""
    fill, held, last = None, 0, t
    for k in range(t + 1, bars.known):
        bar = bars.rows.get(k)
        if fill is None:
            if bar is None:
                if k == t + 1 + WAIT:
                    return None, None, None, k + 1
                continue
            fill, entry = k, bar["open"]
        if bar is not None:
            if k >= fill + length:
                if k > fill + length + WAIT or 2 * held < length:
                    return None, None, None, k + 1
                return 0.0, bar["open"] / entry - 1, k, k + 1
            held, last = held + 1, k
            if upper is not None and bar["open"] >= entry * (1 + upper):
                return 1.0, bar["open"] / entry - 1, k + 1, k + 1
            if lower is not None and bar["low"] <= entry * (1 - lower):
                return -1.0, min(bar["open"], entry * (1 - lower)) / entry - 1, k + 1, k + 1
            if upper is not None and bar["high"] >= entry * (1 + upper):
                return 1.0, entry * (1 + upper) / entry - 1, k + 1, k + 1
        elif k - last >= DEATH:
            return 0.0, bars.rows[last]["close"] / entry - 1, last + 1, k + 1
    return None, None, None, None


@QUICK
@given(
    seed=st.integers(0, 1000),
    gaps=pauses,
    end=st.integers(1, N_BARS + 30),
    length=st.sampled_from([1, 6, 25]),
    barriers=st.sampled_from([(0.02, 0.01), (0.03, None), (None, 0.02), (0.5, 0.5)]),
    missing=st.sampled_from([0.0, 0.5]),
)
def test_labels_agree_with_their_definition_read_hour_by_hour(
    seed: int,
    gaps: list[tuple[int, int]],
    end: int,
    length: int,
    barriers: tuple[float | None, float | None],
    missing: float,
) -> None:
    raster = world(seed, gaps, missing)
    entry = {**ENTRY, "upper": barriers[0], "lower": barriers[1], "horizon": length}
    bars = Bars.of(raster, end)
    for row in compute(raster, entry, watermark=clock(end)).to_dict("records"):
        t = round((row["ts"] - START) / HOUR)
        label, change, touched, known = read_live(bars, t, *barriers, length)
        assert hour_of(row["known_at"]) == known, t
        assert hour_of(row["touched_at"]) == touched, t
        assert agree(row["label"], label), t
        assert agree(row["change"], change), t


def test_without_a_touch_the_return_is_the_forward_return() -> None:
    raster = world(7, [(40, 15), (80, 5)], missing_share=0.0)
    far = compute(raster, {**ENTRY, "upper": 9.0, "lower": 0.99, "horizon": 6})
    table = labels.forward_returns(
        raster,
        horizon=6 * HOUR,
        bar=HOUR,
        watermark=FAR,
        fill_wait=WAIT * HOUR,
        death_after=DEATH * HOUR,
    )
    assert far["change"].notna().sum() > 100
    both = far["change"].notna().to_numpy()
    assert (far["change"].to_numpy()[both] == table["forward_return_frac"].to_numpy()[both]).all()
    assert (far["known_at"] == table["known_at"]).all()


def held(high: float, low: float, **columns: Any) -> pd.Series:
    """A position that enters at 100 in bar 1 and sees one bar of that high and low in bar 2."""
    n = 7
    prices = {
        "open": [100.0] * n,
        "high": [100.0, 100.0, high] + [100.0] * (n - 3),
        "low": [100.0, 100.0, low] + [100.0] * (n - 3),
    }
    return compute(by_hand([100.0] * n, **{**prices, **columns}), ENTRY).iloc[0]


def test_both_barriers_in_one_bar_count_as_the_lower() -> None:
    row = held(103.0, 98.0)
    assert (row["label"], row["change"]) == (-1.0, pytest.approx(-0.01))
    assert hour_of(row["touched_at"]) == hour_of(row["known_at"]) == 3


def test_a_barrier_is_touched_when_it_is_reached() -> None:
    assert held(102.0, 100.0)["label"] == 1.0
    assert held(101.99, 99.01)["label"] == 0.0
    assert held(100.0, 99.0)["label"] == -1.0


def test_a_bar_that_opens_beyond_a_barrier_leaves_at_its_open() -> None:
    opens = [100.0, 100.0, 95.0] + [100.0] * 4
    row = held(95.0, 95.0, open=opens)
    assert (row["label"], row["change"]) == (-1.0, pytest.approx(-0.05))
    opens[2] = 105.0
    row = held(106.0, 104.0, open=opens)
    assert (row["label"], row["change"]) == (1.0, pytest.approx(0.05))


def test_the_open_of_a_bar_that_touches_both_barriers_comes_first() -> None:
    opens = [100.0, 100.0, 105.0] + [100.0] * 4
    row = held(106.0, 95.0, open=opens)
    assert (row["label"], row["change"]) == (1.0, pytest.approx(0.05))
    assert hour_of(row["touched_at"]) == hour_of(row["known_at"]) == 3
    opens[2] = 102.0
    assert held(106.0, 95.0, open=opens)["label"] == 1.0
    opens[2] = 101.99
    assert held(106.0, 95.0, open=opens)["label"] == -1.0
    opens[2] = 95.0
    row = held(106.0, 90.0, open=opens)
    assert (row["label"], row["change"]) == (-1.0, pytest.approx(-0.05))


def test_without_any_volatility_there_are_no_barriers_to_touch() -> None:
    entry = {**ENTRY, "upper": 2.0, "lower": 1.0, "unit": "volatility", "volatility_window": 4}
    closes = [100.0] * 8 + [101.0, 99.0, 103.0, 101.0, 100.0, 104.0, 100.0, 100.0]
    result = compute(by_hand(closes), entry)
    flat = result["ts"] <= clock(7)
    assert result.loc[flat, ["label", "change", "touched_at"]].isna().all(axis=None)
    assert (result.loc[flat, "known_at"] == result.loc[flat, "ts"] + HOUR).all()
    assert result.loc[~flat, "label"].iloc[:5].notna().all()


def test_the_fill_bar_counts_and_the_row_itself_does_not() -> None:
    n = 7
    wild = by_hand(
        [100.0] * n, open=[100.0] * n, high=[200.0, 102.0] + [100.0] * (n - 2), low=[1.0] + [100.0] * (n - 1)
    )
    row = compute(wild, ENTRY).iloc[0]
    assert (row["label"], hour_of(row["known_at"])) == (1.0, 2)


def test_barriers_in_units_of_volatility_follow_the_spread_before_the_row() -> None:
    raster = world(11, missing_share=0.05)
    window = 10
    entry = {
        **ENTRY,
        "upper": 2.0,
        "lower": 1.0,
        "unit": "volatility",
        "volatility_window": window,
        "horizon": 8,
    }
    result = compute(raster, entry)
    assert {label.lookback for label in set_of(entry).labels} == {window * HOUR}
    bars = Bars.of(raster, N_BARS + DEATH + 1)
    n_told = 0
    for row in result.to_dict("records"):
        t = round((row["ts"] - START) / HOUR)
        changes = [
            np.log(bars.rows[k]["close"] / bars.rows[k - 1]["close"])
            for k in range(t - window + 1, t + 1)
            if k in bars.rows and k - 1 in bars.rows
        ]
        if t - 1 not in bars.rows or len(changes) < window // 2:
            assert hour_of(row["known_at"]) == t + 1
            assert pd.isna(row["label"])
            continue
        sd = float(np.std(changes, ddof=1))
        label, change, touched, known = read_live(bars, t, 2.0 * sd, 1.0 * sd, 8)
        assert agree(row["label"], label)
        assert row["change"] == pytest.approx(np.nan if change is None else change, rel=1e-9, nan_ok=True)
        assert (hour_of(row["touched_at"]), hour_of(row["known_at"])) == (touched, known)
        n_told += label is not None
    assert n_told > 80
