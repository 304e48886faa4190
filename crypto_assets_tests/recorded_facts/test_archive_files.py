"""Fact 11: files of the archive with and without header, in milliseconds and microseconds, with checksums, published again."""

from __future__ import annotations

import hashlib
import io
import re
import urllib.request
import zipfile
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pytest

from crypto_assets.resources.warehouse.inventory import gaps_table
from crypto_assets.simulation.recorded import RecordedWorld
from crypto_assets.simulation.server import MarketServer
from crypto_assets_tests.recorded import RECORDED, needs_recorded
from crypto_assets_tests.recorded_facts.loading import Warehouse, perpetual, recorded_world, spot, wire_rows

pytestmark = needs_recorded

DAY = timedelta(days=1)
CONTRACT_MONTH = "um_1m_vision/FILUSDT-1m-2023-08.csv.gz"
PAIR_DAYS = "spot_1d_12col/dev/FILUSDT-1d.csv.gz"
CONTRACT_ZIP = "/data/futures/um/monthly/klines/FILUSDT/1m/FILUSDT-1m-2023-08.zip"
PAIR_ZIP = "/data/spot/monthly/klines/FILUSDT/1d/FILUSDT-1d-{}.zip"


def fetched(world: RecordedWorld, now: str, path: str) -> bytes:
    with MarketServer(world, now) as server, urllib.request.urlopen(server.url + path, timeout=30) as answer:
        return answer.read()


def lines_of(zipped: bytes) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(zipped)) as archive:
        (name,) = archive.namelist()
        return archive.read(name).decode().splitlines()


@pytest.fixture(scope="module")
def contracts() -> RecordedWorld:
    return recorded_world(futures=[CONTRACT_MONTH])


@pytest.fixture(scope="module")
def pairs() -> RecordedWorld:
    return recorded_world(PAIR_DAYS)


def test_fact_11_a_month_of_a_contract_with_header_and_milliseconds_is_stored_as_recorded(
    tmp_path: Path, contracts: RecordedWorld
) -> None:
    recorded = pd.read_csv(RECORDED / CONTRACT_MONTH, dtype=str)
    served = lines_of(fetched(contracts, "2023-10-01", CONTRACT_ZIP))
    assert served[0] == ",".join(recorded.columns)
    assert served[0].startswith("open_time,open,high")
    assert [len(served), len(served[1].split(",")[0])] == [44_641, 13]
    warehouse, window = Warehouse(tmp_path), (datetime(2023, 8, 1), datetime(2023, 9, 1))
    warehouse.load_klines(contracts, "2023-10-01", perpetual("FILUSDT"), "1m", window, from_archive=True)
    rows = warehouse.rows("raw/klines")
    assert rows["ts"].tolist() == pd.to_datetime(recorded["open_time"].astype("int64"), unit="ms").tolist()
    assert len(rows) == 44_640
    for column, name in {"close": "close", "high": "high", "n_trades": "count"}.items():
        assert rows[column].tolist() == recorded[name].astype(float).tolist()
    for column, name in {"volume_base": "volume", "taker_buy_quote": "taker_buy_quote_volume"}.items():
        assert rows[column].tolist() == recorded[name].map(Decimal).tolist()
    assert gaps_table(warehouse.lake).num_rows == 0


def test_fact_11_old_spot_files_have_no_header_and_milliseconds_and_those_from_2025_on_microseconds(
    tmp_path: Path, pairs: RecordedWorld
) -> None:
    now = "2025-03-01"
    first = {
        month: lines_of(fetched(pairs, now, PAIR_ZIP.format(month)))[0] for month in ("2024-12", "2025-01")
    }
    assert {month: int(line.split(",")[0]) for month, line in first.items()} == {
        "2024-12": 1_733_011_200_000,
        "2025-01": 1_735_689_600_000_000,
    }
    warehouse, window = Warehouse(tmp_path), (datetime(2024, 12, 1), datetime(2025, 2, 1))
    warehouse.load_klines(pairs, now, spot("FIL/USDT"), "1d", window, from_archive=True)
    rows = warehouse.rows("raw/klines")
    recorded = pd.read_csv(RECORDED / PAIR_DAYS)
    stamps = pd.to_datetime(recorded["open_time"]).dt.tz_localize(None)
    recorded = recorded[(stamps >= window[0]) & (stamps < window[1])]
    assert rows["ts"].tolist() == pd.date_range(*window, inclusive="left").tolist()
    assert rows["close"].tolist() == recorded["close"].tolist()
    assert rows["n_trades"].tolist() == recorded["trades"].tolist()
    # The end of a bar is told to the microsecond there, and no day runs over into the next one.
    ends = rows["close_time"] - rows["ts"]
    assert ends.between(DAY - timedelta(milliseconds=1), DAY, inclusive="left").all()


def test_fact_11_every_zip_has_its_checksum_beside_it_in_one_line_and_is_recorded_with_it(
    tmp_path: Path, contracts: RecordedWorld
) -> None:
    zipped = fetched(contracts, "2023-10-01", CONTRACT_ZIP)
    beside = fetched(contracts, "2023-10-01", CONTRACT_ZIP + ".CHECKSUM").decode()
    assert re.fullmatch(r"[0-9a-f]{64}  FILUSDT-1m-2023-08\.zip\n?", beside)
    assert beside[:64] == hashlib.sha256(zipped).hexdigest()
    warehouse, window = Warehouse(tmp_path), (datetime(2023, 8, 1), datetime(2023, 8, 2))
    warehouse.load_klines(contracts, "2023-08-03", perpetual("FILUSDT"), "1m", window, from_archive=True)
    (file,) = warehouse.lake.ledger.source_files().to_pylist()
    daily = CONTRACT_ZIP.replace("monthly", "daily").replace("2023-08.zip", "2023-08-01.zip")
    assert file["file"].endswith(daily.rsplit("/", 1)[1])
    assert file["sha256"] == hashlib.sha256(fetched(contracts, "2023-08-03", daily)).hexdigest()
    assert (file["n_rows"], file["published_again"]) == (1440, False)


def test_fact_11_a_file_published_again_with_other_content_is_told_and_its_rows_are_revised(
    tmp_path: Path,
) -> None:
    older, newer = (
        "spot_1d_1h_to_2022_06/dev/BTCUSDT-1d.csv.gz",
        "spot_wire_static_klines/dev/BTCUSDT-1d.tar.gz",
    )
    warehouse, window = Warehouse(tmp_path), (datetime(2022, 3, 1), datetime(2022, 4, 1))
    for now, recording in (("2022-06-05", older), ("2024-01-01", newer), ("2024-01-02", newer)):
        warehouse.load_klines(
            recorded_world(recording), now, spot("BTC/USDT"), "1d", window, from_archive=True, reread=True
        )
    files = warehouse.lake.ledger.source_files().to_pylist()
    assert [file["published_again"] for file in files] == [False, True]
    assert len({file["sha256"] for file in files}) == 2
    assert {file["file"].rsplit("/", 1)[1] for file in files} == {"BTCUSDT-1d-2022-03.zip"}
    told = wire_rows(newer)
    rows = warehouse.rows("raw/klines").set_index("ts")
    assert rows["volume_base"].tolist() == [Decimal(told[ts.to_pydatetime()][5]) for ts in rows.index]
    revised = warehouse.revisions().query("column_name == 'volume_base'")["row_ts"]
    recorded = pd.read_csv(RECORDED / older, dtype=str).set_index("time")["volume"]
    days = [ts for ts in rows.index if Decimal(recorded[str(ts)]) != Decimal(told[ts.to_pydatetime()][5])]
    assert sorted(set(revised)) == days
    assert [day.day for day in days] == [7, 8, 10, 22, 26, 27, 28]
