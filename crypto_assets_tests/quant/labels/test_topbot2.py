from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_assets_tests.quant.labels.worlds import (
    DEATH,
    N_BARS,
    Bars,
    by_hand,
    clock,
    compute,
    hour_of,
    pauses,
    set_of,
    world,
)
from crypto_assets_tests.quant.rasters import QUICK, START

VECTOR = [100, 99.9, 102, 101.95, 99.5, 99, 101.5, 101.6, 99, 98, 103]
ENTRY: Mapping[str, Any] = {
    "generator": "topbot2",
    "level": 0.02,
    "tolerances": (0.1,),
    "reach": 1000,
    "names": ("x",),
}
FEW = settings(QUICK, max_examples=40)


def work_list(values: Sequence[float], top: bool, level: float, tolerance: float) -> list[bool]:
    """The seed's algorithm, row by row: take a range, find its first extremum, go on with what lies beyond its levels."""
    series = list(values) if top else [-value for value in values]
    labels = [False] * len(series)
    ranges = [(0, len(series) - 1)]
    while ranges:
        start, end = ranges.pop()
        best = max(series[start : end + 1])
        e = series.index(best, start)

        def sides(
            share: float, start: int = start, end: int = end, e: int = e, best: float = best
        ) -> list[int | None]:
            bound = best - share * abs(best)
            left = [i for i in range(start, e) if series[i] < bound]
            right = [i for i in range(e + 1, end + 1) if series[i] < bound]
            return [left[-1] if left else None, right[0] if right else None]

        far_left, far_right = sides(level)
        near_left, near_right = sides(level * tolerance)
        if far_left is not None and far_right is not None:
            assert near_left is not None
            assert near_right is not None
            for i in range(near_left + 1, near_right):
                labels[i] = True
        if far_left is not None:
            ranges.append((start, far_left))
        if far_right is not None:
            ranges.append((far_right, end))
    return labels


def closed_tops(
    series: Mapping[int, float], level: float, near: float, reach: int
) -> list[tuple[int, int, int, int]]:
    """Every top of one listing by hours: (l, e, r, R) of the rule, straight from the rule; a silence of DEATH parts lives."""
    hours = sorted(series)
    found = []
    for place, e in enumerate(hours):
        value = series[e]

        def first_under(way: Sequence[int], share: float, e: int = e, value: float = value) -> int | None:
            before = e
            for hour in way:
                if abs(hour - before) > DEATH:
                    return None
                if series[hour] < value - share * abs(value):
                    return hour
                before = hour
            return None

        back, forth = hours[:place][::-1], hours[place + 1 :]
        left, right = first_under(back, level), first_under(forth, level)
        if left is None or right is None or e - left > reach or right - e > reach:
            continue
        inside = [series[hour] for hour in hours if left < hour < right]
        if max(inside) > value or any(series[hour] == value for hour in hours if left < hour < e):
            continue
        before, after = first_under(back, near), first_under(forth, near)
        assert before is not None
        assert after is not None
        found.append((before, e, after, right))
    return found


def test_the_vector_of_the_reference() -> None:
    for function, rows in (("top", [2, 3, 6, 7]), ("bot", [5, 9])):
        result = compute(by_hand(VECTOR), {**ENTRY, "function": function})
        assert np.flatnonzero(result["x"]).tolist() == rows
        assert np.flatnonzero(work_list(VECTOR, function == "top", 0.02, 0.1)).tolist() == rows


def test_a_true_row_is_decided_when_the_price_has_fallen_by_the_level() -> None:
    result = compute(by_hand(VECTOR), {**ENTRY, "function": "top"}, watermark=clock(len(VECTOR)))
    # 102 falls under 99.96 in row 4; 101.6 under 99.568 in row 8; bars end one hour after they start.
    assert [hour_of(result["known_at"].iloc[row]) for row in (2, 3, 6, 7)] == [5, 5, 9, 9]


def test_a_false_row_is_decided_when_nothing_can_make_it_true() -> None:
    result = compute(by_hand(VECTOR), {**ENTRY, "function": "top"}, watermark=clock(len(VECTOR)))
    known = [hour_of(moment) for moment in result["known_at"]]
    # Nothing lies 2 % under rows 0 and 1 before them. Row 9 is the lowest so far. Row 8 and 9 see 98 and 99 before a
    # rise, which leaves their tolerance; row 10 may still be a top.
    assert (known[0], known[1]) == (1, 2)
    assert known[9] == 10
    assert known[10] is None


def test_names_tell_level_tolerance_and_reach() -> None:
    entry = {**ENTRY, "function": "bot", "tolerances": (0.1, 0.25), "reach": "7d", "names": None}
    assert [label.name for label in set_of(entry).labels] == ["bot_20_01_7d", "bot_20_025_7d"]


@FEW
@given(
    values=st.lists(st.integers(90, 110), min_size=1, max_size=60),
    top=st.booleans(),
    level=st.sampled_from([0.01, 0.03, 0.05, 0.1]),
    tolerance=st.sampled_from([0.1, 0.5, 1.0]),
    shift=st.sampled_from([0, -100, -300]),
)
def test_the_local_rule_finds_what_the_work_list_finds(
    values: list[int], top: bool, level: float, tolerance: float, shift: int
) -> None:
    # Ties abound; a shift makes values that are negative, or change sign.
    series = [float(value + shift) for value in values]
    raster = by_hand([100.0] * len(series), volume_base=series)
    entry = {
        **ENTRY,
        "columns": "volume_base",
        "function": "top" if top else "bot",
        "level": level,
        "tolerances": (tolerance,),
    }
    assert compute(raster, entry)["x"].astype(bool).tolist() == work_list(series, top, level, tolerance)


@pytest.mark.parametrize("seed", range(4))
def test_the_local_rule_finds_what_the_work_list_finds_on_a_long_walk(seed: int) -> None:
    rng = np.random.default_rng(seed)
    series = np.round(100 * np.exp(np.cumsum(rng.normal(0, 0.004, 1500))), 1).tolist()
    for function in ("top", "bot"):
        entry = {**ENTRY, "function": function, "tolerances": (0.3,), "reach": 2000}
        labels = compute(by_hand(series), entry)["x"].astype(bool).tolist()
        assert labels == work_list(series, function == "top", 0.02, 0.3)
        assert 0 < sum(labels) < len(labels)


@QUICK
@given(
    seed=st.integers(0, 1000),
    gaps=pauses,
    missing=st.sampled_from([0.0, 0.3]),
    tick=st.sampled_from([None, 1.0]),
    function=st.sampled_from(["top", "bot"]),
    tolerance=st.sampled_from([0.2, 1.0]),
    reach=st.sampled_from([1, 5, 20]),
)
def test_reach_gaps_and_deaths_bound_the_search(
    seed: int,
    gaps: list[tuple[int, int]],
    missing: float,
    tick: float | None,
    function: str,
    tolerance: float,
    reach: int,
) -> None:
    raster = world(seed, gaps, missing, tick)
    sign = 1 if function == "top" else -1
    series = {hour: sign * row["close"] for hour, row in Bars.of(raster, N_BARS).rows.items()}
    entry = {**ENTRY, "function": function, "tolerances": (tolerance,), "reach": reach}
    result = compute(raster, entry)
    hours = [round((ts - START) / (clock(1) - START)) for ts in result["ts"]]
    tops = closed_tops(series, 0.02, 0.02 * tolerance, reach)
    owners = {hour: [top for top in tops if top[0] < hour < top[2]] for hour in hours}
    assert result["x"].astype(bool).tolist() == [bool(owners[hour]) for hour in hours]
    for hour, true, moment in zip(hours, result["x"], result["known_at"], strict=True):
        assert len(owners[hour]) <= 1
        if true:
            assert hour_of(moment) == owners[hour][0][3] + 1


@settings(QUICK, max_examples=25)
@given(
    values=st.lists(st.sampled_from([None, 0, 0, 1, 2, 3, 4, 5, 6, 8]), min_size=4, max_size=16),
    step=st.sampled_from([0.01, 0.013]),
    tolerance=st.sampled_from([0.3, 0.5, 1.0]),
    reach=st.sampled_from([1, 3, 6, 40]),
    pause=st.sampled_from([0, 0, DEATH - 1, DEATH]),
    place=st.integers(1, 15),
)
def test_a_row_is_decided_exactly_when_no_continuation_can_change_it(
    values: list[int | None], step: float, tolerance: float, reach: int, pause: int, place: int
) -> None:
    closes = [None if value is None else 100.0 * (1 + step * value) for value in values]
    closes[0] = closes[0] or 100.0
    closes[place:place] = [None] * pause
    closes += [None] * (DEATH + 1)
    level, near = 0.03, 0.03 * tolerance
    entry = {**ENTRY, "function": "top", "level": level, "tolerances": (tolerance,), "reach": reach}
    result = compute(by_hand(closes), entry)
    series = {hour: close for hour, close in enumerate(closes) if close is not None}
    for ts, label, moment in zip(result["ts"], result["x"], result["known_at"], strict=True):
        t = round((ts - START) / (clock(1) - START))
        assert (bool(label), hour_of(moment)) == read_live(series, t, level, near, reach), t


def read_live(series: Mapping[int, float], t: int, level: float, near: float, reach: int) -> tuple[bool, int]:
    """Label of row t and hour of its decision: after each bar, try what the market could still do."""
    for k in range(t, max(series) + DEATH + 1):
        seen = {hour: value for hour, value in series.items() if hour <= k}

        def true_with(coming: Mapping[int, float], seen: Mapping[int, float] = seen) -> bool:
            return any(
                before < t < after
                for before, _, after, _ in closed_tops({**seen, **coming}, level, near, reach)
            )

        if true_with({}):
            return True, k + 1
        if k - max(seen) >= DEATH:
            return False, k + 1
        # A crash closes a top that is there; before it a peak of any height may come.
        least = min(value for hour, value in seen.items() if hour >= t)
        edge = least / (1 - near)
        heights = [*np.linspace(60.0, 130.0, 71), *seen.values(), edge]
        heights += [
            value for height in (edge, *seen.values()) for value in np.nextafter(height, [0.0, 200.0])
        ]
        peaks = [{k + 1: float(height), k + 2: 0.001} for height in heights]
        if not any(true_with(coming) for coming in ({k + 1: 0.001}, *peaks)):
            return False, k + 1
    raise AssertionError("a dead listing leaves nothing undecided")


def test_a_pause_that_means_death_parts_two_lives() -> None:
    rise, fall = [100.0, 105.0, 110.0], [105.0, 100.0]
    for pause, top in ((DEATH - 1, True), (DEATH, False)):
        result = compute(by_hand(rise + [None] * pause + fall), {**ENTRY, "function": "top"})
        assert bool(result["x"].iloc[2]) == top


def test_a_top_whose_sides_lie_too_far_away_is_none() -> None:
    closes = [100.0, 103.0, 103.0, 103.0, 103.0, 100.0, 100.0]
    labels = {
        reach: compute(by_hand(closes), {**ENTRY, "function": "top", "reach": reach})["x"].sum()
        for reach in (3, 4)
    }
    assert labels == {3: 0, 4: 4}, "row 1 is the first maximum, 4 hours before the fall"
