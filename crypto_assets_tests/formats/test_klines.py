"""Candles in every form in which the recordings have them, and what must be said where a form does not tell."""

from __future__ import annotations

import io
import zipfile
from datetime import datetime, timedelta
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from crypto_assets.formats.containers import contents, only_member
from crypto_assets.formats.klines import (
    ARCHIVE_HEADER,
    KlineFile,
    by_meaning,
    read_archive_klines,
    read_klines,
)
from crypto_assets.intervals import from_ms, interval_ms, to_ms
from crypto_assets.resources.klines import KlinePage, KlineWindow, page_of
from crypto_assets_tests.recorded import RECORDED, needs_recorded

START_MS = to_ms(datetime(2024, 1, 1))
LATER = datetime(2100, 1, 1)


def recorded(path: str, **told) -> list[KlineFile]:
    return [read_klines(item.data, item.name, **told) for item in contents(RECORDED / path)]


def stamps(file: KlineFile) -> np.ndarray:
    return file.columns["ts"].to_numpy()


def checked(file: KlineFile) -> KlinePage:
    order = pa.array(np.argsort(stamps(file), kind="stable"))
    columns = {name: values.take(order) for name, values in file.columns.items()}
    first, last = stamps(file).min(), stamps(file).max()
    return page_of(
        columns, KlineWindow("trade", file.interval, from_ms(int(first)), from_ms(int(last) + 1), LATER)
    )


def n_missing(page: KlinePage, interval: str) -> int:
    ms = page.rows["ts"].to_numpy().astype("datetime64[ms]").astype(np.int64)
    return int(((ms[-1] - ms[0]) // interval_ms(interval) + 1) - len(ms))


def row(at: int, unit: int = 1, **changed: object) -> str:
    opened = (START_MS + at * 60_000) * unit
    values = {
        "ts": opened,
        "open": "1.50000000",
        "high": "2.00000000",
        "low": "1.00000000",
        "close": "1.75000000",
        "volume": "10.00000000",
        "close_time": opened + 60_000 * unit - 1,
        "quote": "15.12345678",
        "count": 3,
        "taker": "4.00000000",
        "taker_quote": "6.00000000",
        "ignore": 0,
    }
    return ",".join(str(value) for value in {**values, **changed}.values())


def archive_csv(n: int = 3, unit: int = 1, header: bool = False) -> bytes:
    lines = [ARCHIVE_HEADER.decode()] if header else []
    return "\n".join([*lines, *(row(at, unit) for at in range(n))]).encode() + b"\n"


# -- the exchange's own files


@pytest.mark.parametrize("header", [False, True], ids=["spot, no header", "USD-M, header"])
@pytest.mark.parametrize("unit", [1, 1000], ids=["ms", "us"])
def test_a_file_of_the_archive_is_read_with_and_without_header_in_ms_and_us(header: bool, unit: int) -> None:
    columns = read_archive_klines(archive_csv(unit=unit, header=header))
    assert columns["ts"].to_pylist() == [START_MS, START_MS + 60_000, START_MS + 120_000]
    assert columns["close_time"].to_pylist()[0] == START_MS + 59_999
    assert columns["volume_quote"].to_pylist()[0] == Decimal("15.12345678")
    assert columns["n_trades"].to_pylist() == [3, 3, 3]
    window = KlineWindow("trade", "1m", from_ms(START_MS), from_ms(START_MS + 180_000), LATER)
    assert page_of(columns, window).rows.num_rows == 3


def test_any_reader_gives_the_columns_of_the_fast_one() -> None:
    fast = read_archive_klines(archive_csv(header=True))
    slow = read_klines(archive_csv(header=True).replace(b"open_time,", b"Open Time,"), "BTCUSDT-1m.csv")
    own = read_klines(archive_csv(header=True), "BTCUSDT-1m.csv")
    assert (own.as_published, slow.as_published) == (True, False)
    for name, values in fast.items():
        assert own.columns[name].equals(values)
        assert slow.columns[name].equals(values)


def test_amounts_with_more_than_eight_places_leave_the_fast_path_and_are_rounded() -> None:
    csv = (row(0) + "\n" + row(1, volume="35.16050300000001")).encode()
    assert read_archive_klines(csv)["volume_base"].to_pylist() == [Decimal(10), Decimal("35.16050300")]


def test_unknown_values_of_a_file_are_null() -> None:
    columns = read_archive_klines((row(0, quote="", count="") + "\n").encode())
    assert columns["volume_quote"].to_pylist() == [None]
    assert columns["n_trades"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("csv", "why"),
    [
        (b"", "it is empty"),
        (b"<?xml version='1.0'?><Error/>", "web page"),
        (
            b"open_time,open,high,low,close,volume\n1704067200000,1,2,1,2,5\n",
            "close_time, volume_quote, n_trades",
        ),
        (row(0, ts="1.70407E+12").encode(), "spreadsheet"),
        (row(0, open="x").encode(), "open cannot be read as double"),
    ],
)
def test_what_is_no_file_of_the_archive_is_refused(csv: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_archive_klines(csv)


@needs_recorded
@pytest.mark.parametrize(("month", "n_rows", "n_silent"), [("2023-08", 44_640, 11), ("2023-09", 43_200, 41)])
def test_recorded_um_1m_vision_has_a_header_and_milliseconds_and_every_minute(
    month: str, n_rows: int, n_silent: int
) -> None:
    path = RECORDED / f"um_1m_vision/FILUSDT-1m-{month}.csv.gz"
    (content,) = contents(path)
    found = read_klines(content.data, content.name)
    assert found.detected == "exchange CSV with header, times in ms, interval 1m"
    assert found.as_published
    page = checked(found)
    assert (page.rows.num_rows, page.set_aside.num_rows, n_missing(page, "1m")) == (n_rows, 0, 0)
    assert page.rows["volume_base"].to_pylist().count(Decimal(0)) == n_silent
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"FILUSDT-1m-{month}.csv", content.data)
    zipped = read_archive_klines(only_member(packed.getvalue(), f"FILUSDT-1m-{month}.csv"))
    assert all(zipped[name].equals(found.columns[name]) for name in zipped)


@needs_recorded
def test_recorded_um_1m_vision_is_read_as_pandas_reads_it() -> None:
    path = RECORDED / "um_1m_vision/FILUSDT-1m-2023-08.csv.gz"
    (content,) = contents(path)
    ours = read_archive_klines(content.data)
    theirs = pd.read_csv(path, float_precision="round_trip", dtype={"quote_volume": str})
    assert (ours["ts"].to_numpy() == theirs["open_time"].to_numpy()).all()
    assert (ours["close"].to_numpy() == theirs["close"].to_numpy()).all()
    assert ours["volume_quote"].to_pylist() == [Decimal(text) for text in theirs["quote_volume"]]


# -- other recordings


@needs_recorded
def test_recorded_dirty_1m_file_has_32_minutes_twice_and_lacks_none() -> None:
    (found,) = recorded("spot_1m_full/BTCUSDT-1m-2021-10-11_21-dirty.csv.gz")
    assert (
        found.detected
        == "CSV with header, times in ISO without zone, UTC+00:00 by their close times, interval 1m"
    )
    page = checked(found)
    assert (page.n_raw, page.rows.num_rows, n_missing(page, "1m")) == (15_725, 15_693, 0)
    assert page.set_aside["reason"].to_pylist() == ["duplicate"] * 32


@needs_recorded
def test_recorded_dirty_1m_file_stored_open_minutes_so_the_last_state_counts() -> None:
    (found,) = recorded("spot_1m_full/BTCUSDT-1m-2021-10-11_21-dirty.csv.gz")
    page = checked(found)
    last = dict(zip(page.rows["ts"].to_pylist(), page.rows["n_trades"].to_pylist(), strict=True))
    earlier = [(row["ts"], row["n_trades"]) for row in page.set_aside.to_pylist()]
    changed = [(n, last[at]) for at, n in earlier if last[at] != n]
    # One of 31 minutes was stored three times.
    assert (len(changed), len({at for at, _ in earlier})) == (32, 31)
    assert all(before < after for before, after in changed)


@needs_recorded
@pytest.mark.parametrize(
    ("path", "n_rows", "n_lacking", "n_silent"),
    [
        ("spot_1m_ohlcv/BTC_USDT-1m-2021-11-11_12-11.json.gz", 43_199, 0, 0),
        ("spot_1m_ohlcv/BTC_USDT-1m-2023-03-16_05-01.json.gz", 66_087, 80, 72),
        ("spot_1m_ohlcv/ETH_USDT-1m-2021-09-17_10-17.json.gz", 43_079, 120, 0),
        ("spot_1m_ohlcv/DOGE_BTC-1m-2021-09-18_10-18.json.gz", 43_079, 120, 20),
    ],
)
def test_recorded_freqtrade_json_has_the_outages_of_2021_and_2023_and_six_columns(
    path: str, n_rows: int, n_lacking: int, n_silent: int
) -> None:
    (found,) = recorded(path)
    assert found.detected == "JSON rows of 6, times in ms, interval 1m"
    page = checked(found)
    assert (page.rows.num_rows, page.set_aside.num_rows, n_missing(page, "1m")) == (n_rows, 0, n_lacking)
    assert page.rows["volume_base"].to_pylist().count(Decimal(0)) == n_silent
    for name in ("volume_quote", "taker_buy_base", "taker_buy_quote", "n_trades", "close_time"):
        assert page.rows[name].null_count == n_rows


@needs_recorded
def test_recorded_outage_of_2023_03_24_lacks_12_40_to_13_59() -> None:
    (found,) = recorded("spot_1m_ohlcv/BTC_USDT-1m-2023-03-16_05-01.json.gz")
    moments = stamps(found)
    at = int(np.argmax(np.diff(moments)))
    assert (from_ms(int(moments[at])), from_ms(int(moments[at + 1]))) == (
        datetime(2023, 3, 24, 12, 39),
        datetime(2023, 3, 24, 14, 0),
    )


@needs_recorded
def test_recorded_btc_longrun_has_43_off_grid_bars_5_duplicates_and_152_missing_hours() -> None:
    (found,) = recorded("spot_1h_btc_longrun/BTCUSDT-1h-2017-08_2020-12-12col.csv.gz")
    page = checked(found)
    reasons = page.set_aside["reason"].to_pylist()
    assert (page.n_raw, page.rows.num_rows) == (28_909, 28_861)
    assert (reasons.count("off_grid"), reasons.count("duplicate")) == (43, 5)
    off = [row["ts"] for row in page.set_aside.to_pylist() if row["reason"] == "off_grid"]
    assert str(off[0].time()) == "09:28:14.789000"
    # 109 hours have no bar at all; 43 more have one that opens between two hours.
    assert n_missing(page, "1h") == 152


@needs_recorded
def test_recorded_btc_longrun_has_prints_of_floats_rounded_to_eight_places() -> None:
    (found,) = recorded("spot_1h_btc_longrun/BTCUSDT-1h-2017-08_2020-12-12col.csv.gz")
    assert found.columns["taker_buy_base"][0].as_py() == Decimal("35.16050300")


@needs_recorded
def test_recorded_wire_json_of_two_years_is_24_pages_in_a_tar_gz_with_the_outage_hour() -> None:
    pages = recorded("spot_wire_static_klines/dev/BTCUSDT-1h.tar.gz")
    assert len(pages) == 24
    assert {page.detected for page in pages} == {"JSON rows of 12, times in ms, interval 1h"}
    moments = np.sort(np.concatenate([stamps(page) for page in pages]))
    assert len(moments) == 17_519
    (gap,) = np.flatnonzero(np.diff(moments) != 3_600_000)
    assert from_ms(int(moments[gap])) == datetime(2023, 3, 24, 12)


@needs_recorded
def test_recorded_wire_hour_of_the_outage_closes_early() -> None:
    pages = recorded("spot_wire_static_klines/dev/BTCUSDT-1h.tar.gz")
    opens = np.concatenate([stamps(page) for page in pages])
    closes = np.concatenate([page.columns["close_time"].to_numpy() for page in pages])
    cut = np.flatnonzero(closes - opens != 3_599_999)
    assert (closes - opens)[cut].tolist() == [2_381_646]


@needs_recorded
def test_recorded_um_gravestone_is_268_markets_in_a_tar_gz_named_by_their_members() -> None:
    found = recorded("um_gravestone/dev/1d.tar.gz")
    assert len(found) == 268
    assert sum(len(stamps(file)) for file in found) == 132_795
    assert {file.detected for file in found} == {"CSV with header, times in ms, interval 1d"}


@needs_recorded
@pytest.mark.parametrize("interval", ["3d", "1w"])
def test_recorded_intervals_longer_than_a_day_are_refused(interval: str) -> None:
    with pytest.raises(ValueError, match=f"unknown interval '{interval}'"):
        recorded(f"spot_wire_static_klines/dev/BTCUSDT-{interval}.tar.gz")


@needs_recorded
def test_recorded_hours_of_2021_to_2023_name_their_market_but_no_zone() -> None:
    path = "spot_1h_2021_2023/dev/LUNAUSDT-1h.csv.gz"
    with pytest.raises(ValueError, match=r"2021-04-04 .* carry no zone; say .* with offset, 0 for UTC"):
        recorded(path)
    (found,) = recorded(path, offset=timedelta())
    assert (found.market, found.interval) == ("LUNAUSDT", "1h")
    assert "UTC+00:00 as told" in found.detected
    # LUNA died on 2022-05-13 and another coin of that name began on 2022-05-31.
    gaps = np.diff(np.sort(stamps(found)))
    assert gaps.max() > 17 * 86_400_000


@needs_recorded
def test_recorded_daily_bars_keep_open_times_with_zone_and_a_column_of_the_same_name_again() -> None:
    (found,) = recorded("spot_1d_12col/dev/AAVEUSDT-1d.csv.gz")
    assert found.detected == "CSV with header, times in ISO with zone, interval 1d"
    assert from_ms(int(stamps(found)[0])) == datetime(2020, 10, 15)


@needs_recorded
def test_recorded_bars_with_a_naive_time_and_an_epoch_are_read_by_the_epoch() -> None:
    (found,) = recorded("spot_1d_1h_to_2022_06/dev/LUNAUSDT-1d.csv.gz")
    assert found.detected == "CSV with header, times in ms, interval 1d"


@needs_recorded
def test_recorded_csv_in_another_order_of_columns_is_not_taken_for_candles_unless_it_is_told() -> None:
    path = "binance_wire/gocryptotrader/binance_BTCUSDT_24h_2019.csv.gz"
    with pytest.raises(ValueError, match="6 elements and no names"):
        recorded(path, interval="1d")
    (found,) = recorded(path, interval="1d", names=("ts", "volume", "open", "high", "low", "close"))
    assert (len(stamps(found)), found.columns["open"][0].as_py()) == (365, 3701.23)
    # Whoever wrote it put the close where the high belongs, which no reader may let through.
    with pytest.raises(ValueError, match=r"close <= high must hold .* row 2 is .*3857\.57"):
        checked(found)


# -- forms of people that are not among the recordings


def ohlcv_frame(dates: object) -> pd.DataFrame:
    return pd.DataFrame(
        {"date": dates, "open": 1.0, "high": 2.0, "low": 0.5, "close": 1.5, "volume": [0.1, 0.2, 0.3]}
    )


def test_freqtrade_feather_has_times_with_zone() -> None:
    frame = ohlcv_frame(pd.date_range("2024-01-01", periods=3, freq="1min", tz="UTC").as_unit("ms"))
    target = io.BytesIO()
    pyarrow.feather.write_feather(frame, target)
    found = read_klines(target.getvalue(), "BTC_USDT-1m.feather")
    assert found.columns["ts"].to_pylist() == [START_MS, START_MS + 60_000, START_MS + 120_000]
    assert found.columns["volume_base"].to_pylist() == [Decimal("0.1"), Decimal("0.2"), Decimal("0.3")]
    assert found.detected == "Feather, times in timestamp[ms, tz=UTC], interval 1m"


def test_parquet_with_local_times_is_moved_by_the_offset_that_is_told() -> None:
    local = pd.date_range("2024-01-01 09:00", periods=3, freq="1min")
    target = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pandas(ohlcv_frame(local)), target)
    with pytest.raises(ValueError, match="carry no zone"):
        read_klines(target.getvalue(), "BTCUSDT_1m.parquet")
    found = read_klines(target.getvalue(), "BTCUSDT_1m.parquet", offset=timedelta(hours=9))
    assert found.columns["ts"].to_pylist()[0] == START_MS


def named_csv(rows: list[str], header: str = "date,open,high,low,close,volume") -> bytes:
    return "\n".join([header, *rows]).encode()


def test_close_times_prove_the_clock_of_naive_open_times_also_where_it_is_not_utc() -> None:
    header = "date,open,high,low,close,volume,close_time"
    rows = [f"2024-01-01 05:{at + 30:02d}:00,1,2,1,2,5,{START_MS + at * 60_000 + 59_999}" for at in range(3)]
    found = read_klines(named_csv(rows, header), "BTCUSDT-1m.csv")
    assert found.columns["ts"].to_pylist()[0] == START_MS
    assert "UTC+05:30 by their close times" in found.detected
    with pytest.raises(ValueError, match=r"prove UTC\+05:30, not UTC\+00:00"):
        read_klines(named_csv(rows, header), "BTCUSDT-1m.csv", offset=timedelta())


def test_close_times_alone_give_the_open_times() -> None:
    header = "close_time,open,high,low,close,volume"
    for last in (59_999, 60_000):
        moments = [from_ms(START_MS + at * 60_000 + last) + timedelta(hours=1) for at in range(3)]
        rows = [f"{moment.isoformat(timespec='milliseconds')}+01:00,1,2,1,2,5" for moment in moments]
        found = read_klines(named_csv(rows, header), "BTCUSDT_1m.csv")
        assert found.columns["ts"].to_pylist() == [START_MS, START_MS + 60_000, START_MS + 120_000]
        assert "open times from close times" in found.detected
    with pytest.raises(ValueError, match="close times alone; say the interval"):
        read_klines(named_csv(rows, header), "candles.csv")


def test_an_interval_that_no_name_tells_follows_from_close_times_or_has_to_be_said() -> None:
    assert read_klines(archive_csv(), "candles.csv").interval == "1m"
    rows = [f"{START_MS + at * 60_000},1,2,1,2,5" for at in range(3)]
    with pytest.raises(ValueError, match="say it, such as 1h"):
        read_klines(named_csv(rows), "candles.csv")
    assert read_klines(named_csv(rows), "candles.csv", interval="1m").interval == "1m"


@pytest.mark.parametrize(
    ("step", "interval", "why"), [(5, "1m", "lie 5m apart, not 1m"), (1, "1h", "grid points of 1h")]
)
def test_an_interval_that_the_rows_contradict_is_refused(step: int, interval: str, why: str) -> None:
    rows = [f"{START_MS + at * step * 60_000},1,2,1,2,5" for at in range(50)]
    with pytest.raises(ValueError, match=why):
        read_klines(named_csv(rows), f"BTCUSDT-{interval}.csv")


def test_candles_of_a_market_that_seldom_trades_are_no_longer_interval() -> None:
    minutes = [0, 7, 9, 30, 31, 44, 60, 75, 77, 90, 120, 121]
    rows = [f"{START_MS + at * 60_000},1,2,1,2,5" for at in minutes]
    assert len(stamps(read_klines(named_csv(rows), "BTCUSDT-1m.csv"))) == len(minutes)


def test_a_candle_that_opens_a_microsecond_after_the_grid_stays_off_it() -> None:
    csv = "\n".join([row(0, 1000), row(1, 1000, ts=(START_MS + 60_000) * 1000 + 1), row(2, 1000)]).encode()
    page = checked(read_klines(csv, "BTCUSDT-1m.csv"))
    assert page.set_aside["reason"].to_pylist() == ["off_grid"]


def test_rows_of_several_markets_are_refused() -> None:
    rows = [f"{START_MS + at * 60_000},1,2,1,2,5,{name}" for at, name in enumerate(("BTCUSDT", "ETHUSDT"))]
    with pytest.raises(ValueError, match=r"several markets \(BTCUSDT, ETHUSDT\); split it"):
        read_klines(named_csv(rows, "date,open,high,low,close,volume,symbol"), "1m.csv", interval="1m")


def test_columns_that_are_missing_are_named() -> None:
    with pytest.raises(ValueError, match="lack low, volume"):
        read_klines(b"date,open,high,close\n1704067200000,1,2,2\n", "BTCUSDT-1m.csv")
    with pytest.raises(ValueError, match="neither an open nor a close time"):
        read_klines(b"open,high,low,close,volume\n1,2,1,2,5\n", "BTCUSDT-1m.csv")
    with pytest.raises(ValueError, match="row 1 has no open time"):
        read_klines(named_csv([f"{START_MS},1,2,1,2,5", ",1,2,1,2,5"]), "BTCUSDT-1m.csv")


def test_the_most_telling_name_of_a_column_counts_and_others_are_kept() -> None:
    raw = {
        "time": pa.array([1]),
        "open_time": pa.array([2]),
        "quote_av": pa.array([3]),
        "note": pa.array([4]),
    }
    found = by_meaning(raw)
    assert {name: values.to_pylist() for name, values in found.items()} == {
        "ts": [2],
        "volume_quote": [3],
        "note": [4],
    }
