"""Times and numbers in every spelling that files have, and none that only looks like one."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_assets.formats.values import amounts_of, floats_of, integers_of, times_of

MOMENT_MS = 1_704_096_000_000


@pytest.mark.parametrize(
    ("column", "wording"),
    [
        (pa.array([MOMENT_MS // 1000]), "s"),
        (pa.array([MOMENT_MS]), "ms"),
        (pa.array([MOMENT_MS * 1000]), "us"),
        (pa.array([MOMENT_MS * 10**6]), "ns"),
        (pa.array([float(MOMENT_MS)]), "ms"),
        (pa.array([f" {MOMENT_MS} "]), "ms"),
        (pa.array([f"{MOMENT_MS}.0"]), "ms"),
        (pa.array(["2024-01-01T08:00:00Z"]), "ISO with zone"),
        (pa.array(["2024-01-01 09:00:00.000+01:00"]), "ISO with zone"),
        (pa.array(["2024-01-01 03:30:00-0430"]), "ISO with zone"),
        (pa.array([MOMENT_MS]).cast(pa.timestamp("ms", "Europe/Berlin")), "timestamp[ms, tz=Europe/Berlin]"),
    ],
)
def test_moments_that_are_certain_need_no_offset(column: pa.Array, wording: str) -> None:
    found = times_of(column, "time")
    assert found.in_utc(None).to_pylist() == [MOMENT_MS]
    assert found.in_utc(timedelta(hours=5)).to_pylist() == [MOMENT_MS]
    assert found.wording == wording


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["2024-01-01 11:00:00"]),
        pa.array(["2024-01-01T11:00"]),
        pa.array([MOMENT_MS + 3 * 3_600_000]).cast(pa.timestamp("ms")).cast(pa.timestamp("ns")),
    ],
)
def test_times_without_a_zone_need_an_offset(column: pa.Array) -> None:
    found = times_of(column, "time")
    assert found.in_utc(timedelta(hours=3)).to_pylist() == [MOMENT_MS]
    with pytest.raises(ValueError, match="carry no zone; say how far they are ahead of UTC with offset"):
        found.in_utc(None)


def test_a_day_is_no_certain_moment() -> None:
    days = pa.array(["2024-01-01"]).cast(pa.date32())
    assert times_of(days, "time").in_utc(timedelta()).to_pylist() == [1_704_067_200_000]
    with pytest.raises(ValueError, match="carry no zone"):
        times_of(days, "time").in_utc(None)


def test_units_may_change_inside_a_file_as_the_archive_changed_them() -> None:
    found = times_of(pa.array([MOMENT_MS, (MOMENT_MS + 60_000) * 1000]), "time")
    assert (found.ms.to_pylist(), found.wording) == ([MOMENT_MS, MOMENT_MS + 60_000], "ms and us")


def test_formats_with_and_without_fractions_may_change_inside_a_file() -> None:
    found = times_of(pa.array(["2024-01-01 08:00:00", "2024-01-01 08:00:00.500"]), "time")
    assert found.in_utc(timedelta()).to_pylist() == [MOMENT_MS, MOMENT_MS + 500]


def test_fractions_of_a_millisecond_count_as_a_whole_one_only_where_asked_for() -> None:
    column = pa.array([MOMENT_MS * 1000 + 1])
    assert times_of(column, "time").ms.to_pylist() == [MOMENT_MS]
    assert times_of(column, "time", round_up=True).ms.to_pylist() == [MOMENT_MS + 1]
    assert times_of(pa.array(["2024-01-01 08:00:00.000001Z"]), "t", round_up=True).ms.to_pylist() == [
        MOMENT_MS + 1
    ]


@pytest.mark.parametrize(
    ("column", "why"),
    [
        (pa.array(["1.70027E+12"]), "spreadsheet"),
        (pa.array(["31/12/2023 10:00"]), "neither an epoch nor ISO"),
        (pa.array(["2024-01-01 08:00:00", "2024-01-01 08:00:00Z"]), "throughout"),
        (pa.array([60_000]), "row 0 is 60000, no time between 2009 and 2100"),
        (pa.array([MOMENT_MS, -1]), "row 1 is -1"),
        (pa.array([MOMENT_MS + 0.5]), "cannot be read as int64"),
    ],
)
def test_what_is_no_time_is_refused(column: pa.Array, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        times_of(column, "time").in_utc(None)


def test_missing_times_stay_missing() -> None:
    assert times_of(pa.array(["", str(MOMENT_MS)]), "time").ms.to_pylist() == [None, MOMENT_MS]
    assert times_of(pa.array([None, "2024-01-01T08:00:00Z"]), "time").ms.to_pylist() == [None, MOMENT_MS]
    assert times_of(pa.array([float("nan"), float(MOMENT_MS)]), "time").ms.to_pylist() == [None, MOMENT_MS]


def test_prints_of_floats_are_rounded_to_eight_places_half_to_even() -> None:
    texts = pa.array(["35.16050300000001", "0.000000005", "0.000000015", "1e-8", "7", " ", "nan"])
    assert amounts_of(texts, "volume").to_pylist() == [
        Decimal("35.16050300"),
        Decimal("0E-8"),
        Decimal("0.00000002"),
        Decimal("0.00000001"),
        Decimal(7),
        None,
        None,
    ]


def test_a_float_amount_means_its_shortest_print() -> None:
    # Times a hundred million it would be 36214831711000001.
    values = pa.array([362148317.11, 0.1 + 0.2, float("nan")])
    assert amounts_of(values, "volume").to_pylist() == [Decimal("362148317.11"), Decimal("0.3"), None]


@given(st.decimals(0, 10**20, places=8, allow_nan=False))
def test_a_decimal_text_of_eight_places_is_read_exactly(value: Decimal) -> None:
    assert amounts_of(pa.array([str(value)]), "volume").to_pylist() == [value]


def test_counts_may_be_printed_as_floats_but_not_be_fractions() -> None:
    assert integers_of(pa.array(["452.0", "17", ""]), "count").to_pylist() == [452, 17, None]
    with pytest.raises(ValueError, match="count cannot be read as int64"):
        integers_of(pa.array(["17.5"]), "count")


def test_blanks_are_missing_prices_and_words_are_none() -> None:
    assert floats_of(pa.array(["1.5", "", "NaN", "null"]), "open").to_pylist() == [1.5, None, None, None]
    with pytest.raises(ValueError, match="open cannot be read as double"):
        floats_of(pa.array(["1,5"]), "open")
