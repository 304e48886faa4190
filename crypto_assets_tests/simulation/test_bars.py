from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_assets.intervals import DAY_MS, HOUR_MS, MINUTE_MS
from crypto_assets.simulation.bars import (
    CLOSE,
    HIGH,
    LOW,
    N_VALUES,
    OPEN,
    TAKER_BASE,
    UNITS,
    UNKNOWN,
    VOLUME_BASE,
    VOLUME_QUOTE,
    Bars,
    aggregate,
    bar_end,
    concatenate,
    decimals_of,
    finest_divisor,
    grid_start,
    last_row_wins,
    length_ms,
    no_bars,
    open_bar,
    step_of,
    to_units,
)
from crypto_assets_tests.simulation.clients import at


def make_bars(open_ms: list[int], length: int, rows: list[list[int]], dtype: type = np.int64) -> Bars:
    opens = np.array(open_ms, np.int64)
    return Bars(
        opens,
        opens + length - 1,
        np.array(rows, dtype).reshape(-1, N_VALUES).T,
        np.full((N_VALUES, len(opens)), 8, np.uint8),
        np.arange(len(opens), dtype=np.int64),
    )


def test_grid_follows_the_calendar_of_the_exchange() -> None:
    moments = np.array([at(2018, 4, 17, 5), at(2019, 7, 5, 23), at(2024, 2, 29, 12)])
    assert grid_start(moments, "3d").tolist() == [at(2018, 4, 17), at(2019, 7, 5), at(2024, 2, 27)]
    assert grid_start(moments, "1w").tolist() == [at(2018, 4, 16), at(2019, 7, 1), at(2024, 2, 26)]
    assert grid_start(moments, "1M").tolist() == [at(2018, 4, 1), at(2019, 7, 1), at(2024, 2, 1)]
    assert bar_end(np.array([at(2024, 2, 1)]), "1M").tolist() == [at(2024, 3, 1)]
    assert grid_start(moments, "4h").tolist() == [at(2018, 4, 17, 4), at(2019, 7, 5, 20), at(2024, 2, 29, 12)]


def test_an_unknown_interval_is_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="7m"):
        length_ms("7m")


def test_an_interval_is_derived_from_the_finest_one_that_divides_it() -> None:
    assert finest_divisor(["5m", "3m"], "10m") == "5m"
    assert finest_divisor(["1h", "4h"], "6h") == "1h"
    assert finest_divisor(["4h"], "6h") is None
    assert finest_divisor(["1w"], "1M") is None
    assert finest_divisor(["1d"], "1M") == "1d"
    assert finest_divisor(["1h"], "1h") is None


def test_decimals_are_read_exactly() -> None:
    assert to_units("0.00000001") == 1
    assert to_units("123456789.12345678") == 12345678912345678
    assert to_units("35.16050300000001") == 3516050300


def test_a_step_says_how_many_decimals_it_needs() -> None:
    assert [decimals_of(step) for step in (1, 50, 10**7, 10**8, 5 * 10**8, 10**9)] == [8, 7, 1, 0, 0, 0]


def test_prices_below_zero_are_aggregated_and_interpolated_as_prices() -> None:
    rows = [[-5, 3, -9, UNKNOWN, 0, 0, 0, 0], [UNKNOWN, 7, -4, -2, 0, 0, 0, 0]]
    bars = make_bars([0, MINUTE_MS], MINUTE_MS, rows)
    assert aggregate(bars, "1m", "1h").values[:, 0].tolist() == [-5, 7, -9, -2, 0, 0, 0, 0]
    for moment in range(0, MINUTE_MS, 7_000):
        shown = open_bar(bars.take(slice(1)), "1m", moment, 1, 1).values[:, 0].tolist()
        assert shown[OPEN] == -5
        assert (
            -9
            <= shown[LOW]
            <= min(shown[OPEN], shown[CLOSE])
            <= max(shown[OPEN], shown[CLOSE])
            <= shown[HIGH]
            <= 3
        )
        assert shown[VOLUME_BASE:] == [0, 0, 0, 0]


def test_a_later_row_of_the_same_open_time_wins() -> None:
    rows = [[i] * N_VALUES for i in (1, 2, 3, 4)]
    bars = make_bars([60_000, 0, 60_000, 120_000], MINUTE_MS, rows)
    assert last_row_wins(bars).values[OPEN].tolist() == [2, 3, 4]


def test_unknown_parts_make_a_sum_unknown_but_no_other() -> None:
    rows = [[5, 6, 4, 5, 10, UNKNOWN, 3, 3], [5, 7, 5, 6, 20, 100, 4, 4]]
    hour = aggregate(make_bars([0, MINUTE_MS], MINUTE_MS, rows), "1m", "1h")
    assert hour.values[:, 0].tolist() == [5, 7, 4, 6, 30, UNKNOWN, 7, 7]


def test_sums_beyond_63_bits_stay_exact() -> None:
    huge = 9 * 10**18
    rows = [[1, 1, 1, 1, huge + i, 0, 0, 0] for i in range(3)]
    hour = aggregate(make_bars([0, MINUTE_MS, 2 * MINUTE_MS], MINUTE_MS, rows), "1m", "1h")
    assert hour.values[VOLUME_BASE, 0] == 3 * huge + 3


def test_a_bar_off_the_grid_belongs_to_the_bin_in_which_it_ends() -> None:
    rows = [[i] * N_VALUES for i in (1, 2)]
    bars = make_bars([DAY_MS - 90 * MINUTE_MS, DAY_MS - 30 * MINUTE_MS], HOUR_MS, rows)
    days = aggregate(bars, "1h", "1d")
    assert days.open_ms.tolist() == [0, DAY_MS]
    assert days.values[VOLUME_BASE].tolist() == [1, 2]


def test_a_bar_cut_short_cuts_the_longer_bar_that_ends_with_it() -> None:
    bars = make_bars([0, MINUTE_MS], MINUTE_MS, [[1] * N_VALUES] * 2)
    bars.close_ms[1] = MINUTE_MS + 41_000
    assert aggregate(bars, "1m", "1h").close_ms.tolist() == [MINUTE_MS + 41_000]
    more = concatenate([bars, make_bars([30 * MINUTE_MS], MINUTE_MS, [[1] * N_VALUES])])
    assert aggregate(more, "1m", "1h").close_ms.tolist() == [HOUR_MS - 1]


def test_no_bars_aggregate_to_no_bars() -> None:
    assert len(aggregate(no_bars(), "1m", "1h")) == 0


@given(
    minutes=st.sets(st.integers(0, 3 * 60 - 1), min_size=1, max_size=40),
    volumes=st.lists(st.integers(0, 10**15), min_size=40, max_size=40),
    prices=st.lists(st.integers(1, 10**9), min_size=40, max_size=40),
)
def test_longer_bars_are_exact_sums_and_extremes(
    minutes: set[int], volumes: list[int], prices: list[int]
) -> None:
    opens = sorted(minutes)
    rows = [[p, p + 2, p - 1, p + 1, v, 2 * v, v // 2, v] for p, v in zip(prices, volumes, strict=True)]
    bars = make_bars([m * MINUTE_MS for m in opens], MINUTE_MS, rows[: len(opens)])
    for i, open_ms in enumerate(hours := aggregate(bars, "1m", "1h").open_ms.tolist()):
        inside = [
            row for m, row in zip(opens, rows, strict=False) if m * MINUTE_MS // HOUR_MS * HOUR_MS == open_ms
        ]
        longer = aggregate(bars, "1m", "1h").values[:, i].tolist()
        assert longer[OPEN] == inside[0][OPEN]
        assert longer[CLOSE] == inside[-1][CLOSE]
        assert longer[HIGH] == max(row[HIGH] for row in inside)
        assert longer[LOW] == min(row[LOW] for row in inside)
        assert longer[VOLUME_BASE:] == [sum(row[k] for row in inside) for k in range(VOLUME_BASE, N_VALUES)]
    assert hours == sorted({m * MINUTE_MS // HOUR_MS * HOUR_MS for m in opens})


@settings(max_examples=60)
@given(
    prices=st.lists(st.integers(1, 10**6), min_size=4, max_size=4),
    volume=st.integers(0, 10**9),
    moments=st.lists(st.integers(0, HOUR_MS - 1), min_size=2, max_size=2).map(sorted),
)
def test_an_open_bar_grows_into_the_final_bar(prices: list[int], volume: int, moments: list[int]) -> None:
    tick, lot = 100, 10
    low, first, last, high = sorted(prices)
    quote = volume * lot * first * tick // UNITS
    row = [
        first * tick,
        high * tick,
        low * tick,
        last * tick,
        volume * lot,
        quote,
        volume // 2 * lot,
        quote // 2,
    ]
    final = make_bars([0], HOUR_MS, [row])
    early, late = (open_bar(final, "1h", moment, tick, lot).values[:, 0].tolist() for moment in moments)
    for shown in (early, late):
        assert shown[OPEN] == row[OPEN]
        assert shown[LOW] <= min(shown[OPEN], shown[CLOSE]) <= max(shown[OPEN], shown[CLOSE]) <= shown[HIGH]
        assert shown[HIGH] <= row[HIGH]
        assert shown[LOW] >= row[LOW]
        assert shown[CLOSE] % tick == 0
        assert shown[VOLUME_BASE] % lot == 0
        assert (
            shown[LOW] * shown[VOLUME_BASE] // UNITS
            <= shown[VOLUME_QUOTE]
            <= shown[HIGH] * shown[VOLUME_BASE] // UNITS
        )
        assert shown[TAKER_BASE] <= shown[VOLUME_BASE] <= row[VOLUME_BASE]
    assert early[HIGH] <= late[HIGH]
    assert early[LOW] >= late[LOW]
    assert early[VOLUME_BASE] <= late[VOLUME_BASE]


def test_an_open_bar_keeps_unknown_values_unknown_and_its_normal_close_time() -> None:
    final = make_bars([0], HOUR_MS, [[5, 9, 4, 8, 100, UNKNOWN, UNKNOWN, UNKNOWN]])
    final.close_ms[0] = HOUR_MS // 2
    shown = open_bar(final, "1h", HOUR_MS // 4, 1, 1)
    assert shown.values[VOLUME_QUOTE:, 0].tolist() == [UNKNOWN] * 3
    assert shown.close_ms.tolist() == [HOUR_MS - 1]


def test_the_step_of_values_is_the_power_of_ten_they_share() -> None:
    assert step_of(np.array([1_500, 2_300, UNKNOWN, 0])) == 100
    assert step_of(np.array([7])) == 1
    assert step_of(np.array([0])) == 1
