"""Files of people beside the rows of the exchange: what is added, what is kept out, and what is proved."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pytest

from crypto_assets.formats.containers import contents
from crypto_assets.formats.klines import ARCHIVE_HEADER
from crypto_assets.intervals import to_ms
from crypto_assets.resources.importer import ImportChoice, ImportReport, import_files
from crypto_assets.resources.warehouse import Lake, Provenance, SeriesCoverage, WarehouseError
from crypto_assets.resources.warehouse.catalog import CATALOGUE
from crypto_assets.resources.warehouse.lake import Piece, missing_in
from crypto_assets.tables import table_of
from crypto_assets_tests.recorded import RECORDED, needs_recorded

KLINES, FUNDING, OPEN_INTEREST = (
    table_of(f"raw/{name}") for name in ("klines", "funding_rates", "open_interest")
)
NOW = datetime(2026, 4, 1, 12, 0, 30)
DAY = datetime(2024, 1, 1)
MINUTE = timedelta(minutes=1)
SPOT = ImportChoice("binance", market_type="spot")
PERPETUAL = ImportChoice("binance", market_type="perpetual")


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "warehouse")


def imported(
    lake: Lake, paths: Sequence[Path], choice: ImportChoice, now: datetime = NOW
) -> list[ImportReport]:
    return import_files(paths, lake, choice, now=now)


def one(lake: Lake, path: Path, choice: ImportChoice, now: datetime = NOW) -> ImportReport:
    (report,) = imported(lake, [path], choice, now)
    return report


def covered(lake: Lake, series: str) -> list[tuple[datetime, datetime]]:
    name = {"funding": FUNDING, "open_interest": OPEN_INTEREST}.get(series.split("|")[2], KLINES)
    return [part for _, _, _, provenance in lake.manifest([name]) for part in provenance.covered(series)]


def anomalies(lake: Lake, kind: str) -> list[dict]:
    return [row for row in lake.ledger.anomalies().to_pylist() if row["kind"] == kind]


def wire_row(at: datetime, close: float = 1.5, volume: str = "3.00000000", n_trades: int = 7) -> str:
    ms = to_ms(at)
    return f"{ms},1.0,2.0,0.5,{close},{volume},{ms + 59_999},4.5,{n_trades},1.0,1.5,0"


def minutes(n: int, start: datetime = DAY) -> list[datetime]:
    return [start + at * MINUTE for at in range(n)]


def write(path: Path, rows: Sequence[str], header: bool = False) -> Path:
    lines = [ARCHIVE_HEADER.decode(), *rows] if header else rows
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def recorded_members(path: str, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    return {item.name.split("/", 1)[1]: item.data for item in contents(RECORDED / path) if wanted(item.name)}


def recorded_lines(path: str, wanted: Callable[[str], bool]) -> list[str]:
    header, *lines = gzip.decompress((RECORDED / path).read_bytes()).decode().splitlines()
    return [header, *filter(wanted, lines)]


# -- recordings


@needs_recorded
def test_recorded_dirty_file_adds_every_closed_minute_once_with_its_last_state(lake: Lake) -> None:
    path = RECORDED / "spot_1m_full/BTCUSDT-1m-2021-10-11_21-dirty.csv.gz"
    report = one(lake, path, SPOT)
    assert (report.symbol, report.interval, report.problem) == ("BTC/USDT", "1m", None)
    assert (report.n_rows, report.n_added, report.n_duplicates, report.n_open) == (15_725, 15_692, 32, 1)
    assert covered(lake, "binance|BTC/USDT|trade|1m")[-1] == (
        datetime(2021, 10, 21),
        datetime(2021, 10, 21, 21, 32),
    )
    told = anomalies(lake, "duplicate")
    assert len(told) == 31
    rows = lake.read(KLINES, columns=["ts", "n_trades"])
    stored = dict(zip(rows["ts"].to_pylist(), rows["n_trades"].to_pylist(), strict=True))
    assert all(json.loads(row["detail"])["n_trades"] < stored[row["ts"]] for row in told)


@needs_recorded
def test_recorded_freqtrade_file_covers_all_but_the_outage_of_2023_03_24(lake: Lake, tmp_path: Path) -> None:
    rows = json.loads(
        gzip.decompress((RECORDED / "spot_1m_ohlcv/BTC_USDT-1m-2023-03-16_05-01.json.gz").read_bytes())
    )
    start, end = datetime(2023, 3, 23), datetime(2023, 3, 26)
    path = tmp_path / "BTC_USDT-1m.json"
    path.write_text(
        json.dumps([row for row in rows if to_ms(start) <= row[0] <= to_ms(end)]), encoding="utf-8"
    )
    report = one(lake, path, ImportChoice("binance"))
    assert (report.symbol, report.n_added, report.n_open) == ("BTC/USDT", 3 * 1440 - 80, 1)
    holes = missing_in(covered(lake, "binance|BTC/USDT|trade|1m"), start, end)
    assert holes == [(datetime(2023, 3, 24, 12, 40), datetime(2023, 3, 24, 14))]
    stored = lake.read(KLINES)
    assert stored["volume_quote"].null_count == stored["close_time"].null_count == stored.num_rows


@needs_recorded
def test_recorded_btc_longrun_keeps_its_43_off_grid_bars_out_of_the_table(lake: Lake, tmp_path: Path) -> None:
    source = "spot_1h_btc_longrun/BTCUSDT-1h-2017-08_2020-12-12col.csv.gz"
    path = write(tmp_path / "BTCUSDT-1h.csv", recorded_lines(source, lambda line: line.startswith("2018-02")))
    report = one(lake, path, SPOT)
    assert (report.n_off_grid, report.n_open) == (43, 1)
    assert report.n_added == report.n_rows - report.n_off_grid - report.n_duplicates - report.n_open
    told = anomalies(lake, "off_grid")
    assert len(told) == 43
    assert str(min(row["ts"] for row in told)).endswith("09:28:14.789000")
    assert not [at for at in lake.read(KLINES)["ts"].to_pylist() if at.minute]


@needs_recorded
def test_recorded_wire_pages_of_one_container_are_one_series_and_only_its_last_bar_is_in_doubt(
    lake: Lake, tmp_path: Path
) -> None:
    pages = recorded_members(
        "spot_wire_static_klines/dev/BTCUSDT-1h.tar.gz", lambda name: "2023-03" in name or "2023-04" in name
    )
    assert len(pages) == 2
    report = one(lake, tar_of(tmp_path / "BTCUSDT-1h.tar.gz", pages), SPOT)
    # 61 days, the hour of the outage, and the last bar.
    assert (report.n_added, report.n_open) == (61 * 24 - 1 - 1, 1)
    assert report.detected == "2 pages of JSON rows of 12, times in ms, interval 1h"
    assert report.file == "BTCUSDT-1h.tar.gz"


@needs_recorded
def test_recorded_month_of_the_archive_is_whole_so_its_last_bar_is_stored(lake: Lake) -> None:
    paths = sorted((RECORDED / "um_1m_vision").glob("*.csv.gz"))
    reports = imported(lake, paths, PERPETUAL)
    assert [(report.symbol, report.n_added, report.n_open) for report in reports] == [
        ("FIL/USDT:USDT", 44_640, 0),
        ("FIL/USDT:USDT", 43_200, 0),
    ]
    series = "binance|FIL/USDT:USDT|trade|1m"
    assert missing_in(covered(lake, series), datetime(2023, 8, 1), datetime(2023, 10, 1)) == []


@needs_recorded
def test_recorded_um_gravestone_files_end_with_an_open_bar_which_is_left_out(
    lake: Lake, tmp_path: Path
) -> None:
    members = recorded_members(
        "um_gravestone/dev/1h.tar.gz", lambda name: "/AAVEUSDT" in name or "/BTCUSDT" in name
    )
    reports = imported(lake, [tar_of(tmp_path / "1h.tar.gz", members)], PERPETUAL)
    assert [(report.symbol, report.n_rows, report.n_added, report.n_open) for report in reports] == [
        ("AAVE/USDT:USDT", 4500, 4499, 1),
        ("BTC/USDT:USDT", 4500, 4499, 1),
    ]
    assert [report.file for report in reports] == [f"1h.tar.gz/{name}" for name in members]
    # Recorded in two different hours of the same evening.
    assert [report.last_ts for report in reports] == [datetime(2026, 3, 19, 19), datetime(2026, 3, 19, 18)]


@needs_recorded
def test_recorded_funding_lands_on_whole_seconds_and_keeps_the_told_time(lake: Lake, tmp_path: Path) -> None:
    members = recorded_members("um_gravestone/dev/funding.tar.gz", lambda name: "/0GUSDT" in name)
    report = one(lake, tar_of(tmp_path / "funding.tar.gz", members), ImportChoice("binance", "funding"))
    assert (report.symbol, report.n_added, report.n_open) == ("0G/USDT:USDT", 200, 0)
    rows = lake.read(FUNDING).to_pylist()
    assert {row["ts"].microsecond for row in rows} == {0}
    assert len({row["settled_at"] for row in rows} - {row["ts"] for row in rows}) > 50
    assert all(row["known_at"] == max(row["settled_at"], row["ts"]) for row in rows)
    # A file without a schedule cannot tell a hole from a longer interval.
    assert covered(lake, "binance|0G/USDT:USDT|funding|") == []


@needs_recorded
def test_recorded_funding_in_utc_3_needs_its_offset_and_settles_at_0_8_and_16(
    lake: Lake, tmp_path: Path
) -> None:
    lines = recorded_lines(
        "binance_wire/funding/BTCUSDT-funding-2020_2023.csv.gz", lambda line: ",2020-01" in line
    )
    path = write(tmp_path / "BTCUSDT-funding.csv", lines)
    refused = one(lake, path, ImportChoice("binance", "funding"))
    assert refused.problem is not None and "with offset" in refused.problem
    report = one(lake, path, ImportChoice("binance", "funding", offset=timedelta(hours=3)))
    assert (report.symbol, report.n_added) == ("BTC/USDT:USDT", 93)
    assert {at.hour for at in lake.read(FUNDING)["ts"].to_pylist()} == {0, 8, 16}


@needs_recorded
def test_recorded_open_interest_is_a_series_of_its_interval(lake: Lake, tmp_path: Path) -> None:
    members = recorded_members("um_gravestone/dev/oi_1d.tar.gz", lambda name: "/0GUSDT" in name)
    report = one(lake, tar_of(tmp_path / "oi_1d.tar.gz", members), ImportChoice("binance", "open_interest"))
    assert (report.interval, report.n_added) == ("1d", report.n_rows)
    first, last = lake.read(OPEN_INTEREST)["ts"].to_pylist()[0], report.last_ts
    assert last is not None
    assert missing_in(covered(lake, "binance|0G/USDT:USDT|open_interest|1d"), first, last) == []


# -- beside what is stored


def store(lake: Lake, rows: list[dict]) -> None:
    table = pa.Table.from_pylist(rows, schema=KLINES.arrow_schema())
    day = (DAY, DAY + timedelta(days=1))
    ranges = ((rows[0]["ts"], rows[-1]["ts"] + MINUTE),)
    piece = Piece("2024-01-01", table, (SeriesCoverage("binance|BTC/USDT|trade|1m", ranges),), day[1])
    lake.merge(
        KLINES, "2024-01-01", piece, Provenance(KLINES.name, "2024-01-01", code_version="7"), day, day[1]
    )


def exchange_row(at: datetime, **changed: object) -> dict:
    row = dict.fromkeys(KLINES.column_names) | {
        "venue": "binance",
        "symbol": "BTC/USDT",
        "kind": "trade",
        "interval": "1m",
        "ts": at,
        "known_at": at + MINUTE,
        "open": 1.0,
        "high": 2.0,
        "low": 0.5,
        "close": 1.5,
        "n_trades": 7,
    }
    return row | changed


def test_stored_rows_of_the_exchange_win_and_each_contradiction_is_an_anomaly(
    lake: Lake, tmp_path: Path
) -> None:
    store(lake, [exchange_row(at) for at in minutes(3)])
    rows = [wire_row(at) for at in minutes(6)]
    rows[1] = wire_row(DAY + MINUTE, close=1.75)
    report = one(lake, write(tmp_path / "BTCUSDT-1m.csv", rows), SPOT)
    assert (report.n_added, report.n_known, report.n_conflicts, report.n_open) == (2, 2, 1, 1)
    assert lake.read(KLINES)["close"].to_pylist() == [1.5] * 5
    (told,) = anomalies(lake, "import_conflict")
    assert (told["asset"], told["symbol"], told["series_kind"], told["interval"], told["ts"]) == (
        "raw/klines",
        "BTC/USDT",
        "trade",
        "1m",
        DAY + MINUTE,
    )
    assert json.loads(told["detail"])["close"] == 1.75
    assert lake.ledger.revisions().num_rows == 0
    # What only the file says of a stored row is not added to it.
    assert lake.read(KLINES)["volume_quote"].to_pylist()[:3] == [None] * 3


def test_importing_again_changes_nothing(lake: Lake, tmp_path: Path) -> None:
    store(lake, [exchange_row(DAY, close=1.25)])
    path = write(tmp_path / "BTCUSDT-1m.csv", [wire_row(at) for at in minutes(4)])
    one(lake, path, SPOT)
    before = lake.provenance(KLINES, "2024-01-01")
    report = one(lake, path, SPOT)
    assert (report.n_added, report.n_known, report.n_conflicts) == (0, 2, 1)
    assert lake.provenance(KLINES, "2024-01-01") == before
    assert len(anomalies(lake, "import_conflict")) == 1
    assert lake.ledger.source_files().num_rows == 1


def test_what_the_partition_said_of_itself_stays_and_its_watermark_does_not_fall(
    lake: Lake, tmp_path: Path
) -> None:
    store(lake, [exchange_row(DAY)])
    one(lake, write(tmp_path / "BTCUSDT-1m.csv", [wire_row(at) for at in minutes(9)]), SPOT, DAY + 6 * MINUTE)
    provenance = lake.provenance(KLINES, "2024-01-01")
    assert provenance is not None
    assert (provenance.code_version, provenance.watermark) == ("7", DAY + timedelta(days=1))


def test_of_two_files_with_one_minute_the_first_one_counts(lake: Lake, tmp_path: Path) -> None:
    first = write(tmp_path / "a" / "BTCUSDT-1m.csv", [wire_row(at) for at in minutes(3)])
    second = write(tmp_path / "b" / "BTCUSDT-1m.csv", [wire_row(at, close=1.75) for at in minutes(5)])
    reports = imported(lake, [first, second], SPOT)
    assert [(report.n_added, report.n_conflicts) for report in reports] == [(2, 0), (2, 2)]
    assert lake.read(KLINES)["close"].to_pylist() == [1.5, 1.5, 1.75, 1.75]


def test_rows_in_any_order_are_stored_in_order(lake: Lake, tmp_path: Path) -> None:
    rows = [wire_row(at) for at in minutes(5)]
    report = one(lake, write(tmp_path / "BTCUSDT-1m.csv", rows[::-1]), SPOT)
    assert (report.n_added, report.last_ts) == (4, DAY + 3 * MINUTE)


# -- what proves a candle closed


def test_the_last_candle_of_a_file_is_stored_if_the_user_knows_it_was_closed(
    lake: Lake, tmp_path: Path
) -> None:
    path = write(tmp_path / "BTCUSDT-1m.csv", [wire_row(at) for at in minutes(3)])
    assert one(lake, path, SPOT).n_open == 1
    assert one(lake, path, ImportChoice("binance", market_type="spot", closed=True)).n_added == 1


def test_a_candle_that_the_exchange_has_not_closed_yet_is_never_stored(lake: Lake, tmp_path: Path) -> None:
    path = write(tmp_path / "BTCUSDT-1m.csv", [wire_row(at) for at in minutes(5)])
    choice = ImportChoice("binance", market_type="spot", closed=True)
    now = DAY + 3 * MINUTE + timedelta(seconds=59)
    report = one(lake, path, choice, now)
    assert (report.n_added, report.n_open) == (3, 2)
    provenance = lake.provenance(KLINES, "2024-01-01")
    assert provenance is not None
    assert provenance.watermark == DAY + 3 * MINUTE


@pytest.mark.parametrize(
    ("name", "n", "header", "n_open"),
    [
        ("BTCUSDT-1m-2024-01-01.csv", 1440, False, 0),
        ("BTCUSDT-1m-2024-01-01.csv", 1440, True, 0),
        ("BTCUSDT-1m-2024-01-01.csv", 1439, False, 1),
        ("BTCUSDT-1m.csv", 1440, False, 1),
    ],
)
def test_only_the_exchange_s_own_file_that_reaches_the_end_of_its_day_proves_its_last_candle(
    lake: Lake, tmp_path: Path, name: str, n: int, header: bool, n_open: int
) -> None:
    path = write(tmp_path / name, [wire_row(at) for at in minutes(n)], header)
    assert one(lake, path, SPOT).n_open == n_open


def test_a_table_of_somebody_named_like_a_day_proves_nothing(lake: Lake, tmp_path: Path) -> None:
    rows = ["date,open,high,low,close,volume", *(f"{to_ms(at)},1,2,1,2,5" for at in minutes(1440))]
    assert one(lake, write(tmp_path / "BTCUSDT-1m-2024-01-01.csv", rows), SPOT).n_open == 1


def test_the_time_of_a_files_last_change_proves_nothing(lake: Lake, tmp_path: Path) -> None:
    path = write(tmp_path / "BTCUSDT-1m.csv", [wire_row(at) for at in minutes(3)])
    assert datetime.fromtimestamp(path.stat().st_mtime) > DAY + timedelta(days=1)  # noqa: DTZ006
    assert one(lake, path, SPOT).n_open == 1


# -- coverage


def test_holes_of_a_file_stay_to_be_asked_for(lake: Lake, tmp_path: Path) -> None:
    present = [at for at in minutes(1450) if at.minute not in (7, 8)]
    one(lake, write(tmp_path / "BTCUSDT-1m.csv", [wire_row(at) for at in present]), SPOT)
    holes = missing_in(covered(lake, "binance|BTC/USDT|trade|1m"), DAY, present[-1])
    assert holes == [
        (DAY + timedelta(hours=h, minutes=7), DAY + timedelta(hours=h, minutes=9)) for h in range(25)
    ]


def test_a_schedule_in_a_file_of_funding_proves_what_lies_between(lake: Lake, tmp_path: Path) -> None:
    hours = [0, 8, 16, 32, 40]
    rows = ["calc_time,funding_interval_hours,last_funding_rate"]
    rows += [f"{to_ms(DAY + timedelta(hours=h)) + 3},8,0.0001" for h in hours]
    one(lake, write(tmp_path / "BTCUSDT-fundingRate-2024-01.csv", rows), ImportChoice("binance", "funding"))
    last = DAY + timedelta(hours=40, milliseconds=1)
    holes = missing_in(covered(lake, "binance|BTC/USDT:USDT|funding|"), DAY, last)
    assert holes == [(DAY + timedelta(hours=16, milliseconds=1), DAY + timedelta(hours=32))]


# -- which market


@pytest.mark.parametrize(
    ("name", "choice", "symbol"),
    [
        ("BTC_USDT-1m.csv", ImportChoice("binance"), "BTC/USDT"),
        ("BTCUSDT-1m.csv", SPOT, "BTC/USDT"),
        ("BTCUSDT-1m.csv", PERPETUAL, "BTC/USDT:USDT"),
        ("futures/um/daily/klines/BTCUSDT/1m/BTCUSDT-1m.csv", ImportChoice("binance"), "BTC/USDT:USDT"),
        (
            "futures/um/daily/markPriceKlines/BTCUSDT/1m/BTCUSDT-1m.csv",
            ImportChoice("binance", "mark"),
            "BTC/USDT:USDT",
        ),
        ("mine-1m.csv", ImportChoice("binance", symbol="SOL/BTC", interval="1m"), "SOL/BTC"),
        ("NEWQUOTE-1m.csv", PERPETUAL, "NEW/QUOTE:QUOTE"),
    ],
)
def test_the_market_comes_from_name_folder_choice_or_what_the_exchange_said(
    lake: Lake, tmp_path: Path, name: str, choice: ImportChoice, symbol: str
) -> None:
    table = table_of("raw/symbols")
    known = dict.fromkeys(table.column_names) | {
        "venue": "binance",
        "symbol": "NEW/QUOTE:QUOTE",
        "valid_from": DAY,
        "ts": DAY,
        "known_at": DAY,
        "listing_id": "NEW/QUOTE:QUOTE#1",
        "exchange_symbol": "NEWQUOTE",
        "market_type": "perpetual",
        "base": "NEW",
        "quote": "QUOTE",
        "trading_status": "TRADING",
    }
    piece = Piece("2024-01-01", pa.Table.from_pylist([known], schema=table.arrow_schema()), (), DAY)
    window = (DAY, DAY + timedelta(days=1))
    lake.merge(table, "2024-01-01", piece, Provenance(table.name, "2024-01-01"), window, DAY)
    report = one(lake, write(tmp_path / name, [wire_row(at) for at in minutes(3)]), choice)
    assert (report.symbol, report.problem) == (symbol, None)
    assert lake.read(KLINES)["symbol"].unique().to_pylist() == [symbol]


@pytest.mark.parametrize(
    ("name", "choice", "why"),
    [
        ("BTCUSDT-1m.csv", ImportChoice("binance"), "may be the spot market or a contract; say market_type"),
        ("mine-1m.csv", SPOT, "neither its name nor its rows name a market"),
        ("BTC_USDT-1m.csv", PERPETUAL, "its name says spot, not perpetual"),
        (
            "BTCUSDT-1m.csv",
            ImportChoice("binance", "mark", symbol="BTC/USDT"),
            "spot market, which has no mark",
        ),
        ("BTCUSDT-1m.csv", ImportChoice("binance", symbol="BTCUSDT"), "is no symbol; write BTC/USDT"),
        ("BTCUSDT-1w.csv", SPOT, "unknown interval '1w'"),
        ("BTCUSDT-1h.csv", SPOT, "grid points of 1h"),
        ("um/markPriceKlines/BTCUSDT-1m.csv", PERPETUAL, "holds mark, not trade"),
        ("BTCUSDT-1m.csv", ImportChoice("binance", "funding"), "12 elements and no names"),
        ("BTCUSDT.csv", ImportChoice("binance", "open_interest"), "say the interval"),
    ],
)
def test_what_is_not_certain_has_to_be_said_and_nothing_is_stored(
    lake: Lake, tmp_path: Path, name: str, choice: ImportChoice, why: str
) -> None:
    report = one(lake, write(tmp_path / name, [wire_row(at) for at in minutes(60)]), choice)
    assert report.problem is not None
    assert why in report.problem
    assert lake.partitions(KLINES) == []
    assert lake.ledger.source_files().num_rows == 0


def test_rows_that_name_another_market_are_refused(lake: Lake, tmp_path: Path) -> None:
    rows = [
        "date,open,high,low,close,volume,symbol",
        *(f"{to_ms(at)},1,2,1,2,5,ETHUSDT" for at in minutes(3)),
    ]
    path = write(tmp_path / "BTCUSDT-1m.csv", rows)
    assert "its rows name ETHUSDT, which is not BTC/USDT" in str(one(lake, path, SPOT).problem)
    nameless = write(tmp_path / "candles.csv", rows)
    choice = ImportChoice("binance", market_type="spot", interval="1m")
    assert one(lake, nameless, choice).symbol == "ETH/USDT"


def test_one_symbol_is_never_given_to_several_markets_of_a_container(lake: Lake, tmp_path: Path) -> None:
    rows = "\n".join(wire_row(at) for at in minutes(3)).encode()
    path = tar_of(tmp_path / "1m.tar.gz", {"1m/BTCUSDT.csv": rows, "1m/ETHUSDT.csv": rows})
    first, second = imported(lake, [path], ImportChoice("binance", symbol="BTC/USDT"))
    assert first.problem is None
    assert "several markets; leave symbol out" in str(second.problem)


# -- files that are wrong


def test_one_impossible_candle_keeps_the_whole_file_out_and_the_others_go_on(
    lake: Lake, tmp_path: Path
) -> None:
    rows = [wire_row(at) for at in minutes(3000)]
    rows[2500] = wire_row(minutes(3000)[2500], close=9.0)
    wrong = write(tmp_path / "BTCUSDT-1m.csv", rows)
    sound = write(tmp_path / "ETHUSDT-1m.csv", [wire_row(at) for at in minutes(3)])
    told: list[ImportReport] = []
    reports = import_files([wrong, tmp_path / "none.csv", sound], lake, SPOT, now=NOW, listener=told.append)
    assert told == reports
    assert "close <= high must hold" in str(reports[0].problem)
    assert "No such file" in str(reports[1].problem)
    assert (reports[2].n_added, reports[2].problem) == (2, None)
    assert lake.read(KLINES)["symbol"].unique().to_pylist() == ["ETH/USDT"]
    assert lake.ledger.source_files()["file"].to_pylist() == ["ETHUSDT-1m.csv"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it is empty"),
        (b"[]", "it holds no rows"),
        (b"<html></html>", "web page"),
        (b"PK\x03\x04", "cannot be unpacked"),
        (gzip.compress(b"x" * 500, mtime=0)[:-9], "cannot be unpacked"),
    ],
)
def test_a_file_that_is_none_is_reported(lake: Lake, tmp_path: Path, data: bytes, why: str) -> None:
    path = tmp_path / "BTCUSDT-1m.csv"
    path.write_bytes(data)
    assert why in str(one(lake, path, SPOT).problem)


def test_a_damaged_container_gives_what_came_before_the_damage(lake: Lake, tmp_path: Path) -> None:
    rows = "\n".join(wire_row(at) for at in minutes(500)).encode()
    path = tmp_path / "1m.tar"
    tar_of(path, {"1m/BTCUSDT.csv": rows, "1m/ETHUSDT.csv": rows})
    path.write_bytes(gzip.decompress(path.read_bytes())[: len(rows) + 2000])
    reports = imported(lake, [path], SPOT)
    assert [report.symbol for report in reports] == ["BTC/USDT", ""]
    assert "cannot be unpacked" in str(reports[1].problem)
    assert lake.read(KLINES).num_rows == 499


# -- forms and records


def test_a_zip_of_the_archive_is_recorded_by_the_hash_of_its_checksum_file(
    lake: Lake, tmp_path: Path
) -> None:
    path = tmp_path / "BTCUSDT-1m-2024-01-01.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("BTCUSDT-1m-2024-01-01.csv", "\n".join(wire_row(at) for at in minutes(1440)))
    report = one(lake, path, SPOT)
    assert report.n_added == 1440
    (row,) = lake.ledger.source_files().to_pylist()
    assert row == {
        "origin": "import",
        "file": "BTCUSDT-1m-2024-01-01.zip/BTCUSDT-1m-2024-01-01.csv",
        "sha256": report.sha256,
        "seen_at": NOW,
        "format": "exchange CSV without header, times in ms, interval 1m",
        "venue": "binance",
        "symbol": "BTC/USDT",
        "kind": "trade",
        "interval": "1m",
        "n_rows": 1440,
        "first_ts": DAY,
        "last_ts": DAY + 1439 * MINUTE,
        "published_again": False,
    }


def test_freqtrade_feather_is_imported_and_seen_in_the_catalogue(lake: Lake, tmp_path: Path) -> None:
    dates = pd.date_range(DAY, periods=3, freq="1h", tz="UTC")
    frame = pd.DataFrame({"date": dates, "open": 1.0, "high": 2.0, "low": 0.5, "close": 1.5, "volume": 0.1})
    path = tmp_path / "BTC_USDT_USDT-1h-futures.feather"
    pyarrow.feather.write_feather(frame, str(path))
    report = one(lake, path, ImportChoice("binance"))
    assert (report.symbol, report.n_added) == ("BTC/USDT:USDT", 2)
    with duckdb.connect(str(lake.folder / CATALOGUE), read_only=True) as connection:
        found = connection.execute(
            "select symbol, ts, volume_base, known_at from raw.klines order by ts"
        ).fetchall()
    assert [(row[0], row[1], float(row[2]), row[3]) for row in found] == [
        ("BTC/USDT:USDT", DAY, 0.1, DAY + timedelta(hours=1)),
        ("BTC/USDT:USDT", DAY + timedelta(hours=1), 0.1, DAY + timedelta(hours=2)),
    ]


def test_premium_may_be_negative_and_has_no_volumes(lake: Lake, tmp_path: Path) -> None:
    rows = [f"{to_ms(at)},-0.0002,0.0001,-0.0003,0,0,{to_ms(at) + 59_999},0,12,0,0,0" for at in minutes(3)]
    path = write(tmp_path / "premiumIndexKlines" / "BTCUSDT-1m.csv", rows)
    report = one(lake, path, ImportChoice("binance", "premium", market_type="perpetual"))
    assert (report.kind, report.n_added) == ("premium", 2)
    stored = lake.read(KLINES)
    assert stored["volume_base"].null_count == stored["n_trades"].null_count == 2


def test_a_lake_that_cannot_be_written_is_an_error_and_no_report(lake: Lake, tmp_path: Path) -> None:
    lake.folder.mkdir()
    (lake.folder / CATALOGUE).write_text("somebody's file", encoding="utf-8")
    path = write(tmp_path / "BTCUSDT-1m.csv", [wire_row(at) for at in minutes(3)])
    with pytest.raises(WarehouseError, match="move it away"):
        imported(lake, [path], SPOT)
    assert lake.partitions(KLINES) == []
