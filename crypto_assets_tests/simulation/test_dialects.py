from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from crypto_assets.intervals import MINUTE_MS
from crypto_assets.simulation.bars import CLOSE, OPEN, TAKER_BASE, UNKNOWN, VOLUME_BASE, VOLUME_QUOTE
from crypto_assets.simulation.dialects import (
    bars_of_columns,
    funding_of_columns,
    open_interest_of_columns,
)
from crypto_assets.simulation.render import klines_json
from crypto_assets_tests.simulation.clients import at

PRICES = {name: pa.array(["2.50", "3"]) for name in ("open", "high", "low", "close")}
TIMES = pa.array([at(2025, 1, 1), at(2025, 1, 1, 0, 1)])


def columns(**more: pa.Array) -> dict[str, pa.Array]:
    return {"open_time": TIMES, **PRICES, "volume": pa.array(["1.0", "2.0"]), **more}


@pytest.mark.parametrize(
    "stamps",
    [
        pa.array([1735689600000, 1735689660000]),
        pa.array([1735689600000000, 1735689660000000]),
        pa.array([1735689600, 1735689660]),
        pa.array(["1735689600000", "1735689660000"]),
        pa.array(["2025-01-01 00:00:00", "2025-01-01 00:01:00.000"]),
        pa.array(["2025-01-01", "2025-01-01 00:01:00"]),
        pa.array(["2025-01-01 00:00:00+00:00", "2025-01-01T01:01:00+01:00"]),
        pa.array([1735689600000, 1735689660000], pa.timestamp("ms", "UTC")),
        pa.array([1735689600000000, 1735689660000000], pa.timestamp("us")),
    ],
    ids=str,
)
def test_stamps_of_all_forms_are_utc_milliseconds(stamps: pa.Array) -> None:
    bars = bars_of_columns(columns(open_time=stamps), "1m")
    assert bars.open_ms.tolist() == [at(2025, 1, 1), at(2025, 1, 1, 0, 1)]


def test_naive_stamps_of_a_local_recorder_are_moved_to_utc_and_zoned_ones_are_not() -> None:
    nine_hours = 9 * 60 * MINUTE_MS
    naive = bars_of_columns(
        columns(open_time=pa.array(["2025-01-01 09:00:00", "2025-01-01 09:01:00"])), "1m", nine_hours
    )
    zoned = bars_of_columns(
        columns(open_time=pa.array(["2025-01-01 00:00:00Z", "2025-01-01 00:01:00Z"])), "1m", nine_hours
    )
    assert naive.open_ms.tolist() == zoned.open_ms.tolist() == [at(2025, 1, 1), at(2025, 1, 1, 0, 1)]


def test_texts_keep_their_decimals_and_numbers_get_eight() -> None:
    bars = bars_of_columns(columns(volume=pa.array([49626.0, 4.99e-06])), "1m")
    assert bars.values[OPEN].tolist() == [250_000_000, 300_000_000]
    assert bars.shown[OPEN].tolist() == [2, 0]
    assert bars.values[VOLUME_BASE].tolist() == [4_962_600_000_000, 499]
    assert b'"2.50"' in klines_json(bars)
    assert b'"49626.00000000"' in klines_json(bars)
    assert b'"0.00000499"' in klines_json(bars)


def test_the_print_of_a_float_is_rounded_to_eight_decimals() -> None:
    bars = bars_of_columns(columns(volume=pa.array(["35.16050300000001", "1.2345678901234567e-05"])), "1m")
    assert bars.values[VOLUME_BASE].tolist() == [3_516_050_300, 1_235]
    assert b'"35.16050300"' in klines_json(bars)


def test_volumes_beyond_63_bits_are_exact() -> None:
    bars = bars_of_columns(columns(volume=pa.array(["145150420958.30000000", "1.00000000"])), "1m")
    assert bars.values[VOLUME_BASE].tolist() == [145_150_420_958_30000000, 10**8]
    assert b'"145150420958.30000000"' in klines_json(bars)


def test_columns_that_are_missing_or_blank_are_unknown() -> None:
    more = columns(quote_volume=pa.array(["5.5", ""]), trades=pa.array(["17", None]))
    bars = bars_of_columns(more, "1m")
    assert bars.values[VOLUME_QUOTE].tolist() == [550_000_000, UNKNOWN]
    assert bars.values[TAKER_BASE].tolist() == [UNKNOWN, UNKNOWN]
    assert bars.n_trades.tolist() == [17, UNKNOWN]
    assert (bars.close_ms == bars.open_ms + MINUTE_MS - 1).all()


def test_a_recording_with_close_times_alone_opens_one_interval_before() -> None:
    ends = pa.array(["2025-01-01T01:00:59.999000+01:00", "2025-01-01T01:01:59.999000+01:00"])
    bars = bars_of_columns({**PRICES, "volume": pa.array([1.0, 2.0]), "close_time": ends}, "1m")
    assert bars.open_ms.tolist() == [at(2025, 1, 1), at(2025, 1, 1, 0, 1)]
    assert (bars.close_ms == bars.open_ms + MINUTE_MS - 1).all()


@pytest.mark.parametrize(
    "names",
    [
        ("quote_av", "tb_base_av"),
        ("quote_asset_volume", "taker_buy_base"),
        ("quote_volume", "taker_buy_volume"),
    ],
)
def test_dialects_of_column_names_mean_the_same(names: tuple[str, str]) -> None:
    bars = bars_of_columns(columns(**dict.fromkeys(names, pa.array(["7", "8"]))), "1m")
    assert (
        bars.values[VOLUME_QUOTE].tolist() == bars.values[TAKER_BASE].tolist() == [700_000_000, 800_000_000]
    )


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ({name: column for name, column in columns().items() if name != "close"}, "lack close"),
        ({name: column for name, column in columns().items() if name != "open_time"}, "open or close time"),
        (columns(open=pa.array(["", "1"])), "lacks a price"),
        (columns(open_time=pa.array(["", "2025-01-01 00:00:00"])), "no open time"),
        (columns(open=pa.array(["one", "1"])), "one"),
        (columns(open_time=pa.array(["1.70027E+12", "1.70027E+12"])), "1.70027"),
    ],
)
def test_columns_that_are_no_klines_are_refused(bad: dict[str, pa.Array], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        bars_of_columns(bad, "1m")


def test_no_rows_are_no_bars() -> None:
    empty = {name: pa.array([], pa.string()) for name in columns()}
    assert len(bars_of_columns(empty, "1m")) == 0
    assert np.array_equal(bars_of_columns(empty, "1m").values[CLOSE], [])


@pytest.mark.parametrize(
    ("time", "rate"),
    [("timestamp", "funding_rate"), ("calc_time", "last_funding_rate"), ("fundingtime", "fundingrate")],
)
def test_settlements_of_all_dialects_keep_sign_and_milliseconds(time: str, rate: str) -> None:
    stamps = pa.array(["1773936000003", "1773964800000"])
    funding = funding_of_columns({time: stamps, rate: pa.array(["-0.00000625", "0.0001"])})
    assert funding.settled_ms.tolist() == [1773936000003, 1773964800000]
    assert funding.rate.tolist() == [-625, 10_000]
    assert funding.mark_price.tolist() == [UNKNOWN, UNKNOWN]


def test_settlements_in_local_time_are_moved_to_utc_and_blank_mark_prices_are_unknown() -> None:
    local = pa.array(["2020-01-01 03:00:00.000", "2020-01-01 11:00:00.002"])
    columns = {
        "date": local,
        "funding_rate": pa.array(["1e-4", "-0.0001"]),
        "mark_price": pa.array(["", "7.5"]),
    }
    funding = funding_of_columns(columns, 3 * 60 * MINUTE_MS)
    assert funding.settled_ms.tolist() == [at(2020, 1, 1), at(2020, 1, 1, 8) + 2]
    assert funding.rate.tolist() == [10_000, -10_000]
    assert funding.mark_price.tolist() == [UNKNOWN, 750_000_000]


def test_open_interest_is_read_exactly_beyond_63_bits() -> None:
    samples = open_interest_of_columns(
        {
            "timestamp": pa.array([1773878400000, 1773964800000]),
            "sum_open_interest": pa.array(["345678901234.12345678", ""]),
            "sum_open_interest_value": pa.array(["1.5", "2"]),
        }
    )
    assert samples.base.tolist() == [345_678_901_234_12345678, UNKNOWN]
    assert samples.quote.tolist() == [150_000_000, 200_000_000]


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"timestamp": pa.array([1])}, "funding_rate"),
        ({"funding_rate": pa.array(["1"])}, "calc_time"),
        ({"timestamp": pa.array([1]), "funding_rate": pa.array([""])}, "lack a funding rate"),
        ({"timestamp": pa.array([""]), "funding_rate": pa.array(["1"])}, "no settlement time"),
    ],
)
def test_columns_that_are_no_settlements_are_refused(columns: dict[str, pa.Array], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        funding_of_columns(columns)


def test_columns_that_are_no_open_interest_are_refused() -> None:
    with pytest.raises(ValueError, match="sum_open_interest_value"):
        open_interest_of_columns({"timestamp": pa.array([1]), "sum_open_interest": pa.array(["1"])})
