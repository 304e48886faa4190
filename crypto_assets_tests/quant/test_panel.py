from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from crypto_assets.quant.panel import (
    Panel,
    bars_in,
    check_week,
    floor_day,
    floor_week,
    known_in,
    longest_pause,
)
from crypto_assets_tests.quant.rasters import HOUR, START, Listing, random_raster, raster_of


def test_a_panel_refuses_rows_without_identity() -> None:
    with pytest.raises(ValueError, match="lacks the columns listing_id"):
        Panel.of(raster_of({"close": [1.0]}).drop(columns="listing_id"), HOUR)


def test_a_panel_refuses_a_row_without_a_listing() -> None:
    with pytest.raises(ValueError, match="no listing_id"):
        Panel.of(raster_of({"close": [1.0, 2.0]}).assign(listing_id=pd.Series(["AAA/USDT#1", None])), HOUR)


def test_a_panel_refuses_repeated_rows() -> None:
    rows = raster_of({"close": [1.0, 2.0]})
    with pytest.raises(ValueError, match="two rows of symbol AAA/USDT"):
        Panel.of(pd.concat([rows, rows.iloc[[1]]]), HOUR)


def test_a_panel_refuses_rows_off_the_grid() -> None:
    rows = raster_of({"close": [1.0]}, start=START + timedelta(minutes=30))
    with pytest.raises(ValueError, match="off the grid"):
        Panel.of(rows, HOUR)


@pytest.mark.parametrize("shift", [timedelta(minutes=-1), timedelta(minutes=1)])
def test_a_panel_refuses_rows_known_at_another_time_than_their_end(shift: timedelta) -> None:
    rows = raster_of({"close": [1.0]})
    with pytest.raises(ValueError, match="known at the end of its interval"):
        Panel.of(rows.assign(known_at=rows["known_at"] + shift), HOUR)


def test_a_panel_refuses_times_with_a_zone() -> None:
    rows = raster_of({"close": [1.0]})
    with pytest.raises(ValueError, match="time zone"):
        Panel.of(rows.assign(ts=rows["ts"].dt.tz_localize(UTC)), HOUR)


@pytest.mark.parametrize("bar", [timedelta(0), timedelta(hours=-1), timedelta(hours=7)])
def test_a_panel_refuses_a_bar_that_does_not_divide_a_day(bar: timedelta) -> None:
    with pytest.raises(ValueError, match="does not divide a day"):
        Panel.of(raster_of({"close": [1.0]}), bar)


def test_a_matrix_has_a_column_per_listing_and_a_row_per_interval_from_midnight() -> None:
    old = raster_of({"close": [1.0, 2.0]}, start=START + 5 * HOUR)
    new = raster_of({"close": [7.0]}, listing_id="AAA/USDT#2", start=START + 9 * HOUR)
    panel = Panel.of(pd.concat([new, old]), HOUR)
    close = panel.matrix("close")
    assert panel.listings == ("AAA/USDT#1", "AAA/USDT#2")
    assert close.shape == (10, 2)
    assert (close[5, 0], close[6, 0], close[9, 1]) == (1.0, 2.0, 7.0)
    assert np.count_nonzero(np.isnan(close)) == 17
    assert panel.flags("has_bar").sum() == 3
    assert panel.times[0] == np.datetime64(START)


def test_rows_return_every_value_to_its_own_row() -> None:
    raster = random_raster(60, [Listing("BBB/USDT", first=3), "AAA/USDT"], missing_share=0.2).sample(
        frac=1, random_state=1
    )
    panel = Panel.of(raster, HOUR)
    back = panel.rows({"close": panel.matrix("close")})
    expected = raster.sort_values(["symbol", "ts"], ignore_index=True)
    pd.testing.assert_frame_equal(back, expected[list(back.columns)])


def test_infinite_and_null_values_are_missing() -> None:
    raster = raster_of({"close": [1.0, 2.0]}).astype({"close": object})
    raster["close"] = [np.inf, None]
    assert np.isnan(Panel.of(raster, HOUR).matrix("close")).all()


def test_an_empty_raster_gives_an_empty_panel() -> None:
    panel = Panel.of(raster_of({"close": [1.0]}).iloc[:0], HOUR)
    assert panel.shape == (0, 0)
    assert panel.rows({"x": panel.matrix("close")}).empty


def test_nanosecond_times_come_back_in_microseconds() -> None:
    raster = raster_of({"close": [1.0]}).astype({"ts": "datetime64[ns]", "known_at": "datetime64[ns]"})
    rows = Panel.of(raster, HOUR).rows({})
    assert rows["ts"].dtype == rows["known_at"].dtype == "datetime64[us]"


def test_durations_must_be_whole_bars() -> None:
    assert bars_in(timedelta(days=1), HOUR, "horizon") == 24
    for bad in (timedelta(minutes=90), timedelta(hours=-1)):
        with pytest.raises(ValueError, match="horizon"):
            bars_in(bad, HOUR, "horizon")


def test_weeks_start_on_monday_also_before_1970() -> None:
    times = np.array(
        ["1969-12-29", "1970-01-04T23:59:59", "2022-05-08T23:00", "2022-05-09"], dtype="datetime64[us]"
    )
    assert floor_week(times).astype("datetime64[D]").astype(str).tolist() == [
        "1969-12-29",
        "1969-12-29",
        "2022-05-02",
        "2022-05-09",
    ]
    assert floor_day(times).astype(str)[2].startswith("2022-05-08T00")


def test_a_cut_must_be_a_monday_midnight_without_zone() -> None:
    assert check_week(datetime(2022, 5, 9)) == np.datetime64("2022-05-09")
    for bad in (datetime(2022, 5, 10), datetime(2022, 5, 9, 1)):
        with pytest.raises(ValueError, match="no Monday"):
            check_week(bad)
    with pytest.raises(ValueError, match="time zone"):
        check_week(datetime(2022, 5, 9, tzinfo=UTC))


def test_a_fit_knows_neither_undecided_nor_late_nor_old_rows() -> None:
    cut = np.datetime64("2022-05-09", "us")
    frame = pd.DataFrame(
        {
            "ts": pd.to_datetime(["2022-05-01", "2022-05-01", "2022-05-01", "2022-04-01"]),
            "known_at": [
                cut,
                cut + np.timedelta64(1, "m"),
                np.datetime64("NaT", "us"),
                np.datetime64("2022-04-02", "us"),
            ],
        }
    )
    assert known_in(frame, np.datetime64("2022-05-01", "us"), cut).tolist() == [True, False, False, False]


def test_a_history_survives_two_days_without_a_bar_and_never_fewer_than_48_bars() -> None:
    assert longest_pause(timedelta(minutes=5)) == 576
    assert longest_pause(HOUR) == longest_pause(timedelta(hours=4)) == 48
