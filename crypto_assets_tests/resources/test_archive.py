"""The archive of files: what is asked for, downloads that break and go on, and nothing used that is not verified."""

from __future__ import annotations

import hashlib
import io
import json
import resource
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
import requests

from crypto_assets.formats.klines import WIRE_COLUMNS
from crypto_assets.intervals import from_ms, to_ms
from crypto_assets.resources.archive import ArchiveClient, SourceFile, funding_page_of, kline_files
from crypto_assets.resources.exchange import Market
from crypto_assets.resources.klines import KlinePage, KlineWindow, page_of
from crypto_assets.resources.sources import (
    RateBudget,
    RetryPolicy,
    SourceDataInvalid,
    SourceRefused,
    SourceUnavailable,
)
from crypto_assets.resources.warehouse import Lake
from crypto_assets.simulation.clock import FakeSeconds
from crypto_assets.simulation.faults import slow, status
from crypto_assets.simulation.server import MarketServer
from crypto_assets.simulation.synthetic import SyntheticWorld
from crypto_assets.simulation.world import Restatement
from crypto_assets_tests.resources.stub_server import Reply, StubServer

BTC = Market("BTC/USDT", "BTCUSDT")
PERPETUAL = Market("BTC/USDT:USDT", "BTCUSDT", "perpetual")
START = datetime(2024, 11, 1)
#: A Tuesday: the files of January are published since yesterday, that of yesterday is since six o'clock.
NOW = datetime(2025, 2, 4, 10, 30)
DAY = timedelta(days=1)
HOURS = ("trade", "1h")


@pytest.fixture(scope="module")
def world() -> SyntheticWorld:
    return SyntheticWorld(3, to_ms(START), to_ms(START + 120 * DAY), "1h")


@pytest.fixture
def market(world: SyntheticWorld) -> Iterator[MarketServer]:
    with MarketServer(world, NOW) as server:
        yield server


def client_of(url: str, folder: Path, *, seconds: FakeSeconds | None = None, **settings) -> ArchiveClient:
    seconds = seconds or FakeSeconds()
    budget = RateBudget(folder / "budgets", "archive", 10_000, now=seconds, sleep=seconds.sleep)
    retry = RetryPolicy(attempts=3, sleep=seconds.sleep)
    return ArchiveClient(folder / "downloads", budget, base_url=url, retry=retry, **settings)


@pytest.fixture
def client(market: MarketServer, tmp_path: Path) -> ArchiveClient:
    return client_of(market.url, tmp_path)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "downloads").rglob("*") if path.is_file())


def asked(market: MarketServer) -> list[str]:
    return [
        request.path.rpartition("/")[2] for request in market.requests if request.path.startswith("/data/")
    ]


def by_requests(market: MarketServer, path: str, kind: str, start: datetime, end: datetime) -> KlinePage:
    """The same candles, asked for page by page and turned into rows by another way."""
    columns: list[list[object]] = []
    at = to_ms(start)
    while at < to_ms(end):
        query = {
            "symbol": "BTCUSDT",
            "interval": "1h",
            "startTime": at,
            "endTime": to_ms(end) - 1,
            "limit": 1000,
        }
        rows = requests.get(market.url + path, query, timeout=10).json()
        if not rows:
            break
        columns += rows
        at = rows[-1][0] + 1
    arrays = {
        name: pa.array(list(values))
        for name, values in zip(WIRE_COLUMNS[:-1], zip(*columns, strict=True), strict=False)
    }
    return page_of(arrays, KlineWindow(kind, "1h", start, end, NOW))  # ty: ignore[invalid-argument-type]


# -- which files


@pytest.mark.parametrize(
    ("start", "end", "names"),
    [
        (datetime(2024, 1, 1), datetime(2024, 3, 1), ["2024-01", "2024-02"]),
        (datetime(2024, 1, 30), datetime(2024, 3, 2), ["2024-01-30", "2024-01-31", "2024-02", "2024-03-01"]),
        (datetime(2024, 1, 31, 23, 59), datetime(2024, 2, 1, 0, 1), ["2024-01-31", "2024-02-01"]),
        (datetime(2024, 12, 1), datetime(2025, 1, 1), ["2024-12"]),
        (datetime(2024, 12, 30, 5), datetime(2024, 12, 30, 6), ["2024-12-30"]),
    ],
)
def test_whole_months_are_monthly_files_and_the_rest_daily_ones(
    start: datetime, end: datetime, names: list[str]
) -> None:
    files = kline_files(BTC, "trade", "1m", start, end)
    assert [file.name for file in files] == [f"BTCUSDT-1m-{name}.zip" for name in names]
    assert all(one.end == other.start for one, other in zip(files, files[1:], strict=False))


@pytest.mark.parametrize(
    ("market", "kind", "path"),
    [
        (BTC, "trade", "/data/spot/monthly/klines/BTCUSDT/1h/BTCUSDT-1h-2024-01.zip"),
        (PERPETUAL, "trade", "/data/futures/um/monthly/klines/BTCUSDT/1h/BTCUSDT-1h-2024-01.zip"),
        (PERPETUAL, "mark", "/data/futures/um/monthly/markPriceKlines/BTCUSDT/1h/BTCUSDT-1h-2024-01.zip"),
        (
            PERPETUAL,
            "premium",
            "/data/futures/um/monthly/premiumIndexKlines/BTCUSDT/1h/BTCUSDT-1h-2024-01.zip",
        ),
        (
            Market("BTC/USDT:USDT-240329", "BTCUSDT_240329", "delivery"),
            "trade",
            "/data/futures/um/monthly/klines/BTCUSDT_240329/1h/BTCUSDT_240329-1h-2024-01.zip",
        ),
    ],
)
def test_paths_are_those_of_the_real_archive(market: Market, kind, path: str) -> None:
    (file,) = kline_files(market, kind, "1h", datetime(2024, 1, 1), datetime(2024, 2, 1))
    assert file.path == path


@pytest.mark.parametrize(
    ("day", "end", "due"),
    [
        (datetime(2024, 1, 15), datetime(2024, 1, 16), datetime(2024, 1, 16, 6)),
        (datetime(2024, 1, 1), datetime(2024, 2, 1), datetime(2024, 2, 5, 6)),
        (datetime(2024, 3, 1), datetime(2024, 4, 1), datetime(2024, 4, 1, 6)),
    ],
    ids=["a day the next morning", "a month on the first Monday", "the month before a Monday"],
)
def test_files_are_due_when_the_archive_publishes_them(day: datetime, end: datetime, due: datetime) -> None:
    (file,) = kline_files(BTC, "trade", "1h", day, end)
    assert file.due_at == due
    assert due.weekday() == 0 or not file.is_month


@pytest.mark.parametrize(
    ("market", "kind", "interval", "why"),
    [
        (BTC, "mark", "1h", "mark candles of contracts only"),
        (BTC, "trade", "10m", "no candles of 10m"),
        (BTC, "trade", "7m", "unknown interval"),
        (Market("X", "../../etc"), "trade", "1h", "no name that the archive has files of"),
    ],
)
def test_what_the_archive_cannot_have_is_refused_before_a_request(
    market: Market, kind, interval: str, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        kline_files(market, kind, interval, START, NOW)


def test_an_empty_range_and_an_address_without_http_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="empty range"):
        kline_files(BTC, "trade", "1h", NOW, NOW)
    with pytest.raises(ValueError, match="must start with http"):
        client_of("data.binance.vision", tmp_path)


# -- rows


@pytest.mark.parametrize(
    ("traded", "kind", "path"),
    [
        (BTC, "trade", "/api/v3/klines"),
        (PERPETUAL, "trade", "/fapi/v1/klines"),
        (PERPETUAL, "mark", "/fapi/v1/markPriceKlines"),
        (PERPETUAL, "premium", "/fapi/v1/premiumIndexKlines"),
    ],
)
def test_files_hold_what_requests_give_across_the_change_to_microseconds(
    market: MarketServer, client: ArchiveClient, traded: Market, kind, path: str
) -> None:
    start, end = datetime(2024, 12, 1), datetime(2025, 2, 4)
    answers = list(client.klines(traded, kind, "1h", start, end, NOW))
    rows = pa.concat_tables(answer.page.rows for answer in answers if answer.page)
    expected = by_requests(market, path, kind, start, end)
    assert expected.rows.num_rows > 1500
    assert rows.equals(expected.rows)
    assert [(answer.start, answer.end) for answer in answers] == [
        (datetime(2024, 12, 1), datetime(2025, 1, 1)),
        (datetime(2025, 1, 1), datetime(2025, 2, 1)),
        *((datetime(2025, 2, day), datetime(2025, 2, day + 1)) for day in (1, 2, 3)),
    ]


def test_a_page_proves_the_whole_span_of_its_file_though_less_was_asked(client: ArchiveClient) -> None:
    (answer,) = client.klines(BTC, *HOURS, datetime(2025, 1, 5, 13), datetime(2025, 1, 5, 14), NOW)
    assert answer.page is not None
    assert (answer.start, answer.end) == (datetime(2025, 1, 5), datetime(2025, 1, 6))
    assert answer.page.rows.num_rows == 24
    assert answer.page.covered_until == answer.end


def test_a_month_takes_two_requests_and_what_is_not_due_takes_none(
    market: MarketServer, client: ArchiveClient
) -> None:
    start, end = datetime(2025, 1, 1), NOW + DAY
    answers = list(client.klines(BTC, *HOURS, start, end, NOW))
    days = [f"BTCUSDT-1h-2025-02-0{day}.zip" for day in (1, 2, 3)]
    expected = ["BTCUSDT-1h-2025-01.zip", *days]
    assert asked(market) == [each for name in expected for each in (f"{name}.CHECKSUM", name)]
    assert answers[-1].page is None
    assert (answers[-1].start, answers[-1].end) == (datetime(2025, 2, 4), datetime(2025, 2, 6))


def test_days_stand_in_for_a_month_that_is_not_published_yet(
    market: MarketServer, client: ArchiveClient
) -> None:
    early = datetime(2025, 2, 3, 5, 59)
    market.clock.set(early)
    answers = list(client.klines(BTC, *HOURS, datetime(2025, 1, 1), datetime(2025, 2, 1), early))
    assert len(answers) == 31
    assert asked(market)[:2] == ["BTCUSDT-1h-2025-01-01.zip.CHECKSUM", "BTCUSDT-1h-2025-01-01.zip"]
    assert len(asked(market)) == 62


def test_before_its_listing_a_market_costs_one_request_a_month_and_one_range_is_not_available(
    market: MarketServer, client: ArchiveClient
) -> None:
    answers = list(client.klines(BTC, *HOURS, datetime(2024, 1, 1), datetime(2024, 12, 1), NOW))
    assert [(answer.start, answer.end, answer.page is None) for answer in answers] == [
        (datetime(2024, 1, 1), datetime(2024, 11, 1), True),
        (datetime(2024, 11, 1), datetime(2024, 12, 1), False),
    ]
    assert asked(market) == [
        *(f"BTCUSDT-1h-2024-{month:02d}.zip.CHECKSUM" for month in range(1, 11)),
        "BTCUSDT-1h-2024-11.zip.CHECKSUM",
        "BTCUSDT-1h-2024-11.zip",
    ]


def test_a_day_without_a_file_is_reported_between_days_that_have_one(
    market: MarketServer, client: ArchiveClient
) -> None:
    market.inject("/data/spot/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2025-01-07", status(404))
    answers = list(client.klines(BTC, *HOURS, datetime(2025, 1, 6), datetime(2025, 1, 9), NOW))
    assert [(answer.start.day, answer.page is None) for answer in answers] == [
        (6, False),
        (7, True),
        (8, False),
    ]


def test_funding_of_a_month_is_what_requests_give(market: MarketServer, client: ArchiveClient) -> None:
    start, end = datetime(2024, 12, 1), datetime(2025, 2, 1)
    answers = list(client.funding_rates(PERPETUAL, start, end, NOW))
    rows = pa.concat_tables(answer.page.rows for answer in answers if answer.page)
    query = {"symbol": "BTCUSDT", "startTime": to_ms(start), "endTime": to_ms(end) - 1, "limit": 1000}
    told = requests.get(f"{market.url}/fapi/v1/fundingRate", query, timeout=10).json()
    assert [to_ms(at) for at in rows["settled_at"].to_pylist()] == [row["fundingTime"] for row in told]
    assert rows["funding_rate_frac"].to_pylist() == [float(row["fundingRate"]) for row in told]
    assert {at.microsecond for at in rows["ts"].to_pylist()} == {0}
    assert [answer.source.interval for answer in answers if answer.source] == ["", ""]
    with pytest.raises(ValueError, match="a perpetual and a range are needed"):
        next(client.funding_rates(BTC, start, end, NOW))


@pytest.mark.parametrize(
    ("settled", "rates", "why"),
    [
        ([2000, 1000], [0.1, 0.1], "run backwards"),
        ([1000, 2000], [0.1, float("nan")], "row 1 is not finite"),
        ([999_999], [0.1], "leave the range"),
    ],
)
def test_settlements_that_cannot_be_are_refused(settled: list[int], rates: list[float], why: str) -> None:
    columns = {"settled_at": pa.array(settled), "funding_rate_frac": pa.array(rates)}
    with pytest.raises(ValueError, match=why):
        funding_page_of(columns, from_ms(0), from_ms(100_000))


def test_of_two_tellings_of_a_settlement_the_last_one_counts() -> None:
    columns = {"settled_at": pa.array([8_000_002, 8_000_009]), "funding_rate_frac": pa.array([0.1, 0.2])}
    page = funding_page_of(columns, from_ms(0), from_ms(9_000_000))
    assert page.rows["funding_rate_frac"].to_pylist() == [0.2]
    assert page.set_aside["funding_rate_frac"].to_pylist() == [0.1]


# -- the record, and files that stay


def test_every_file_is_recorded_with_its_hash_before_its_rows_are_given(
    market: MarketServer, tmp_path: Path
) -> None:
    records: list[SourceFile] = []
    client = client_of(market.url, tmp_path, on_file=records.append)
    for n, answer in enumerate(
        client.klines(BTC, *HOURS, datetime(2025, 1, 6), datetime(2025, 1, 8), NOW), start=1
    ):
        assert len(records) == n
        assert answer.source == records[-1]
    path = "/data/spot/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2025-01-06.zip"
    zipped = requests.get(market.url + path, timeout=10).content
    assert records[0] == SourceFile(
        "archive",
        path,
        hashlib.sha256(zipped).hexdigest(),
        NOW,
        "archive zip",
        "binance",
        "BTC/USDT",
        "trade",
        "1h",
        24,
        datetime(2025, 1, 6),
        datetime(2025, 1, 6, 23),
    )
    ledger = Lake(tmp_path / "lake").ledger
    for record in records:
        ledger.add_source_file(asdict(record))
    assert ledger.source_files()["n_rows"].to_pylist() == [24, 24]


def test_nothing_stays_in_the_folder_after_use(client: ArchiveClient, tmp_path: Path) -> None:
    assert len(list(client.klines(BTC, *HOURS, datetime(2025, 1, 6), datetime(2025, 1, 8), NOW))) == 2
    assert files_in(tmp_path) == []


def test_a_kept_file_is_used_again_while_its_checksum_holds(market: MarketServer, tmp_path: Path) -> None:
    day = (datetime(2025, 1, 6), datetime(2025, 1, 7))
    name = "BTCUSDT-1h-2025-01-06.zip"
    client = client_of(market.url, tmp_path, keep=True)
    (first,) = client.klines(BTC, *HOURS, *day, NOW)
    assert files_in(tmp_path) == [name]
    (second,) = client.klines(BTC, *HOURS, *day, NOW)
    assert asked(market) == [f"{name}.CHECKSUM", name, f"{name}.CHECKSUM"]
    assert first == second
    (kept,) = (tmp_path / "downloads").rglob(name)
    kept.write_bytes(kept.read_bytes()[:-1])
    assert list(client.klines(BTC, *HOURS, *day, NOW)) == [first]
    assert asked(market)[3:] == [f"{name}.CHECKSUM", name]


def test_files_that_were_published_again_are_found_by_their_checksums_alone(tmp_path: Path) -> None:
    world = SyntheticWorld(3, to_ms(START), to_ms(START + 120 * DAY), "1h")
    candle = to_ms(datetime(2025, 1, 6, 5))
    world.restate(Restatement("BTC/USDT", candle, to_ms(NOW + DAY), volume_base="1.00000000"))
    with MarketServer(world, NOW) as market:
        records: list[SourceFile] = []
        client = client_of(market.url, tmp_path, on_file=records.append)
        days = (datetime(2025, 1, 5), datetime(2025, 1, 8))
        assert len(list(client.klines(BTC, *HOURS, *days, NOW))) == 3
        known = {record.file: record.sha256.upper() for record in records}
        assert client.changed(known) == {}
        market.clock.set(NOW + 2 * DAY)
        n_before = len(asked(market))
        changed = client.changed(known)
        assert asked(market)[n_before:] == [f"BTCUSDT-1h-2025-01-0{day}.zip.CHECKSUM" for day in (5, 6, 7)]
        assert list(changed) == ["/data/spot/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2025-01-06.zip"]
        (again,) = client.klines(BTC, *HOURS, datetime(2025, 1, 6), datetime(2025, 1, 7), NOW + 2 * DAY)
        assert again.source is not None
        assert changed == {again.source.file: again.source.sha256}
        gone = "/data/spot/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2023-01-06.zip"
        assert client.changed({gone: "0" * 64}) == {gone: None}


# -- faults

ONE_DAY = (datetime(2025, 1, 6), datetime(2025, 1, 7))
ONE_FILE = "/data/spot/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2025-01-06.zip"


@pytest.mark.parametrize("kind", ["short_body", "reset", "html_200", "empty_200", "truncated_json"])
@pytest.mark.parametrize("ending", ["", ".CHECKSUM"])
def test_a_fault_that_passes_leaves_no_trace(
    market: MarketServer, client: ArchiveClient, tmp_path: Path, kind: str, ending: str
) -> None:
    (sound,) = client.klines(BTC, *HOURS, *ONE_DAY, NOW)
    market.inject(f"{ONE_FILE}{ending}", kind, after=0 if ending else 1)
    assert list(client.klines(BTC, *HOURS, *ONE_DAY, NOW)) == [sound]
    assert files_in(tmp_path) == []


def test_a_slow_answer_is_waited_for(market: MarketServer, client: ArchiveClient) -> None:
    market.inject(ONE_FILE, slow(0.05), times=2)
    assert next(client.klines(BTC, *HOURS, *ONE_DAY, NOW)).page is not None


@pytest.mark.parametrize("kind", ["wrong_checksum", "truncated_zip"])
def test_a_wrong_checksum_is_met_by_one_fresh_download(
    market: MarketServer, client: ArchiveClient, kind: str
) -> None:
    market.inject("/data/", kind)
    assert next(client.klines(BTC, *HOURS, *ONE_DAY, NOW)).page is not None
    name = ONE_FILE.rpartition("/")[2]
    assert asked(market) == [f"{name}.CHECKSUM", name] * 2


@pytest.mark.parametrize("kind", ["wrong_checksum", "truncated_zip"])
def test_a_checksum_that_stays_wrong_ends_it_naming_both_hashes(
    market: MarketServer, client: ArchiveClient, tmp_path: Path, kind: str
) -> None:
    market.inject("/data/", kind, times=10)
    with pytest.raises(SourceDataInvalid) as caught:
        next(client.klines(BTC, *HOURS, *ONE_DAY, NOW))
    market.clear_faults()
    sound = hashlib.sha256(requests.get(market.url + ONE_FILE, timeout=10).content).hexdigest()
    assert sound in str(caught.value)
    assert (
        len({word for word in caught.value.came.replace(",", "").replace(";", "").split() if len(word) == 64})
        == 2
    )
    assert ONE_FILE in str(caught.value)
    assert len(asked(market)) == 5
    assert files_in(tmp_path) == []


def test_a_damaged_zip_with_the_right_checksum_is_refused_after_a_fresh_download(
    market: MarketServer, client: ArchiveClient, tmp_path: Path
) -> None:
    market.inject("/data/", "corrupt_member", times=10)
    with pytest.raises(SourceDataInvalid, match="cannot be unpacked"):
        next(client.klines(BTC, *HOURS, *ONE_DAY, NOW))
    market.clear_faults()
    assert next(client.klines(BTC, *HOURS, *ONE_DAY, NOW)).page is not None
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("fault", [status(500), status(503, retry_after=7), status(429, retry_after=30)])
def test_what_is_unavailable_is_asked_for_again_but_not_for_ever(
    world: SyntheticWorld, tmp_path: Path, fault
) -> None:
    seconds = FakeSeconds()
    with MarketServer(world, NOW, real_seconds=seconds) as market:
        client = client_of(market.url, tmp_path, seconds=seconds)
        market.inject(ONE_FILE, fault, times=2)
        assert next(client.klines(BTC, *HOURS, *ONE_DAY, NOW)).page is not None
        market.inject(ONE_FILE, fault, times=100)
        n_before = len(asked(market))
        with pytest.raises(SourceUnavailable, match=f"HTTP {fault.status}"):
            next(client.klines(BTC, *HOURS, *ONE_DAY, NOW))
        assert len(asked(market)) - n_before == 3
        assert market.violations() == []


def test_nothing_is_asked_after_a_ban_until_it_ends(world: SyntheticWorld, tmp_path: Path) -> None:
    seconds = FakeSeconds()
    with MarketServer(world, NOW, real_seconds=seconds) as market:
        client = client_of(market.url, tmp_path, seconds=seconds)
        market.inject(ONE_FILE, status(418, retry_after=600))
        for _ in range(3):
            with pytest.raises(SourceRefused):
                next(client.klines(BTC, *HOURS, *ONE_DAY, NOW))
        assert len(asked(market)) == 1
        seconds.sleep(601)
        assert next(client.klines(BTC, *HOURS, *ONE_DAY, NOW)).page is not None
        assert market.violations() == []


# -- answers that the market does not give


def zip_of(csv: bytes, name: str = "BTCUSDT-1h-2025-01-06.csv") -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, csv)
    return packed.getvalue()


def csv_of(first: datetime, n: int, price: str = "1.5") -> bytes:
    opens = [to_ms(first) + at * 3_600_000 for at in range(n)]
    return "\n".join(
        f"{at},{price},2.0,1.0,1.5,3.0,{at + 3_599_999},4.5,7,1.0,1.5,0" for at in opens
    ).encode()


def checksum(zipped: bytes, name: str = "BTCUSDT-1h-2025-01-06.zip") -> Reply:
    return Reply(f"{hashlib.sha256(zipped).hexdigest()}  {name}\n".encode())


def tagged(body: bytes, tag: str = '"one"', **more: str) -> Reply:
    return Reply(body, headers={"ETag": tag, **{name.replace("_", "-"): text for name, text in more.items()}})


def rest_of(body: bytes, start: int, tag: str = '"one"') -> Reply:
    span = f"bytes {start}-{len(body) - 1}/{len(body)}"
    return Reply(body[start:], 206, {"ETag": tag, "Content-Range": span})


def cut(body: bytes, n: int, tag: str = '"one"') -> Reply:
    return tagged(body[:n], tag, Content_Length=str(len(body)))


ZIPPED = zip_of(csv_of(ONE_DAY[0], 24))


def rows_of(client: ArchiveClient) -> int:
    (answer,) = client.klines(BTC, *HOURS, *ONE_DAY, NOW)
    return answer.page.rows.num_rows if answer.page else -1


def test_a_broken_download_goes_on_where_it_broke(tmp_path: Path) -> None:
    with StubServer(checksum(ZIPPED), cut(ZIPPED, 100), rest_of(ZIPPED, 100)) as server:
        assert rows_of(client_of(server.url, tmp_path)) == 24
        ranges = [
            (request.headers.get("range"), request.headers.get("if-range")) for request in server.received
        ]
    assert ranges == [(None, None), (None, None), ("bytes=100-", '"one"')]
    assert all(request.headers["accept-encoding"] == "identity" for request in server.received)


def test_a_later_run_goes_on_with_what_a_broken_one_left(tmp_path: Path) -> None:
    with (
        StubServer(checksum(ZIPPED), cut(ZIPPED, 100)) as server,
        pytest.raises(SourceUnavailable, match="without a whole body"),
    ):
        rows_of(client_of(server.url, tmp_path))
    assert files_in(tmp_path) == [
        "BTCUSDT-1h-2025-01-06.zip.part",
        "BTCUSDT-1h-2025-01-06.zip.part.json",
    ]
    with StubServer(checksum(ZIPPED), rest_of(ZIPPED, 100)) as server:
        assert rows_of(client_of(server.url, tmp_path)) == 24
        assert server.received[1].headers["range"] == "bytes=100-"
    assert files_in(tmp_path) == []


def test_a_beginning_whose_tag_was_lost_is_not_gone_on_with(tmp_path: Path) -> None:
    with (
        StubServer(checksum(ZIPPED), cut(ZIPPED, 100), Reply(b"", 500)) as server,
        pytest.raises(SourceUnavailable),
    ):
        rows_of(client_of(server.url, tmp_path))
    (tag,) = (tmp_path / "downloads").rglob("*.part.json")
    tag.write_text('{"etag": ', encoding="utf-8")
    with StubServer(checksum(ZIPPED), tagged(ZIPPED)) as server:
        assert rows_of(client_of(server.url, tmp_path)) == 24
        assert "range" not in server.received[1].headers


OTHER = zip_of(csv_of(ONE_DAY[0], 23))


@pytest.mark.parametrize(
    "replies",
    [
        [tagged(OTHER, '"two"')],
        [rest_of(OTHER, 100, '"two"'), tagged(OTHER, '"two"')],
        [Reply(b"", 416), tagged(OTHER, '"two"')],
        [
            Reply(ZIPPED[50:], 206, {"ETag": '"one"', "Content-Range": "bytes 50-99/99"}),
            tagged(OTHER, '"two"'),
        ],
    ],
    ids=["the whole new file", "If-Range ignored", "shorter than the beginning", "another range"],
)
def test_a_file_that_changed_meanwhile_is_begun_anew(tmp_path: Path, replies: list[Reply]) -> None:
    with StubServer(checksum(OTHER), cut(ZIPPED, 100), *replies) as server:
        assert rows_of(client_of(server.url, tmp_path)) == 23
        assert server.received[2].headers["range"] == "bytes=100-"
        assert len(server.received) == 2 + len(replies)
        assert "range" not in server.received[-1].headers or len(replies) == 1


@pytest.mark.parametrize("tag", ['W/"one"', ""])
def test_without_a_strong_tag_a_download_begins_anew(tmp_path: Path, tag: str) -> None:
    with StubServer(checksum(ZIPPED), cut(ZIPPED, 100, tag), tagged(ZIPPED)) as server:
        assert rows_of(client_of(server.url, tmp_path)) == 24
        assert "range" not in server.received[2].headers


def test_a_fresh_download_asks_past_caches(tmp_path: Path) -> None:
    with StubServer(checksum(ZIPPED), tagged(OTHER), checksum(ZIPPED), tagged(ZIPPED)) as server:
        assert rows_of(client_of(server.url, tmp_path)) == 24
        assert [request.headers.get("cache-control") for request in server.received] == [
            None,
            None,
            None,
            "no-cache",
        ]


def test_a_body_of_unknown_length_is_verified_by_its_hash(tmp_path: Path) -> None:
    # Without a length the end of the connection is the end of the body.
    endless = Reply(ZIPPED, headers={"Content-Length": ""})
    with StubServer(checksum(ZIPPED), endless) as server:
        assert rows_of(client_of(server.url, tmp_path)) == 24


@pytest.mark.parametrize("headers", [{}, {"Content-Length": ""}], ids=["told", "not told"])
def test_a_zip_larger_than_agreed_is_refused(tmp_path: Path, headers: dict[str, str]) -> None:
    with StubServer(checksum(ZIPPED), Reply(ZIPPED, headers=headers)) as server:
        client = client_of(server.url, tmp_path, largest_zip_bytes=len(ZIPPED) - 1)
        with pytest.raises(SourceDataInvalid, match=f"{len(ZIPPED) - 1} are the most that is accepted"):
            rows_of(client)
        assert len(server.received) == 2
    assert files_in(tmp_path) == []


def test_a_zip_that_unpacks_to_more_than_agreed_is_refused(tmp_path: Path) -> None:
    bomb = zip_of(b"0" * 1_000_000)
    assert len(bomb) < 2000
    with (
        StubServer(checksum(bomb), tagged(bomb), checksum(bomb), tagged(bomb)) as server,
        pytest.raises(SourceDataInvalid, match="more than the 999999 bytes"),
    ):
        rows_of(client_of(server.url, tmp_path, largest_file_bytes=999_999))


@pytest.mark.parametrize(
    ("zipped", "why"),
    [
        (
            zip_of(csv_of(ONE_DAY[0], 24), "BTCUSDT-1h-2025-01-07.csv"),
            r"where only BTCUSDT-1h-2025-01-06\.csv belongs",
        ),
        (zip_of(csv_of(ONE_DAY[1], 24)), "leave the asked range"),
        (zip_of(csv_of(ONE_DAY[0], 24, price="9.5")), "close <= high must hold"),
        (zip_of(csv_of(ONE_DAY[0], 2) + b"\n" + csv_of(ONE_DAY[0], 1)), "run backwards"),
        (zip_of(b"<html></html>"), "web page"),
    ],
    ids=["member", "another day", "impossible price", "order", "html"],
)
def test_what_the_name_does_not_say_is_refused_and_none_of_it_used(
    tmp_path: Path, zipped: bytes, why: str
) -> None:
    records: list[SourceFile] = []
    with (
        StubServer(*[checksum(zipped), tagged(zipped)] * 2) as server,
        pytest.raises(SourceDataInvalid, match=why) as caught,
    ):
        rows_of(client_of(server.url, tmp_path, on_file=records.append))
    assert ONE_FILE in str(caught.value)
    assert caught.value.concerns_one_series
    assert records == []
    assert files_in(tmp_path) == []


def test_a_checksum_of_another_file_is_refused(tmp_path: Path) -> None:
    with (
        StubServer(checksum(ZIPPED, "BTCUSDT-1h-2025-01-07.zip")) as server,
        pytest.raises(SourceDataInvalid, match=r"names BTCUSDT-1h-2025-01-07\.zip instead of"),
    ):
        rows_of(client_of(server.url, tmp_path))


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    with (
        StubServer(Reply(b"", 302, {"Location": "http://127.0.0.1:9/"})) as server,
        pytest.raises(SourceDataInvalid, match="HTTP 302"),
    ):
        rows_of(client_of(server.url, tmp_path))


def test_off_grid_and_double_candles_of_a_file_are_set_aside(tmp_path: Path) -> None:
    doubled = csv_of(ONE_DAY[0], 3) + b"\n" + csv_of(ONE_DAY[0] + timedelta(hours=2), 1, price="1.25")
    odd = zip_of(doubled + b"\n" + csv_of(ONE_DAY[0] + timedelta(hours=5, minutes=7), 1))
    with StubServer(checksum(odd), tagged(odd)) as server:
        (answer,) = client_of(server.url, tmp_path).klines(BTC, *HOURS, *ONE_DAY, NOW)
    assert answer.page is not None
    assert answer.page.rows["open"].to_pylist() == [1.5, 1.5, 1.25]
    assert answer.page.set_aside["reason"].to_pylist() == ["duplicate", "off_grid"]
    assert answer.source is not None
    assert answer.source.n_rows == 3


# -- the machine


def test_threads_that_want_one_file_download_it_once(market: MarketServer, tmp_path: Path) -> None:
    client = client_of(market.url, tmp_path, keep=True)
    start = threading.Barrier(6)

    def read(_: int) -> int:
        start.wait()
        return rows_of(client)

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(read, range(6))) == [24] * 6
    name = ONE_FILE.rpartition("/")[2]
    assert sorted(asked(market)) == [name] + [f"{name}.CHECKSUM"] * 6
    assert files_in(tmp_path) == [name]


_HOLDER = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_another_process_with_the_file_is_waited_for_and_a_killed_one_blocks_nobody(
    market: MarketServer, tmp_path: Path
) -> None:
    lock = tmp_path / "downloads" / f"{ONE_FILE.lstrip('/')}.lock"
    lock.parent.mkdir(parents=True)
    command = [sys.executable, "-c", _HOLDER, str(lock)]
    client = client_of(market.url, tmp_path)
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder,
        ThreadPoolExecutor(1) as pool,
    ):
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        reading = pool.submit(rows_of, client)
        # Others' files are not held up, and by then the first question would have been asked.
        other = list(client.klines(BTC, *HOURS, datetime(2025, 1, 8), datetime(2025, 1, 9), NOW))
        assert other[0].page is not None
        assert [name for name in asked(market) if "01-06" in name] == []
        holder.kill()
        assert reading.result(timeout=20) == 24
    assert files_in(tmp_path) == []


def test_a_full_disk_is_told_as_such_and_leaves_nothing_behind(tmp_path: Path) -> None:
    csv = csv_of(datetime(2025, 1, 6), 24)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("BTCUSDT-1h-2025-01-06.csv", csv + b"\n" * 300_000)
    large = packed.getvalue()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with StubServer(checksum(large), tagged(large)) as server:
        client = client_of(server.url, tmp_path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, before[1]))
        try:
            with pytest.raises(SourceRefused, match="cannot be written") as caught:
                rows_of(client)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "free space" in caught.value.advice
        assert len(server.received) == 2
    assert files_in(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_asked(
    market: MarketServer, tmp_path: Path
) -> None:
    client = client_of(market.url, tmp_path)
    (tmp_path / "downloads").write_text("a file", encoding="utf-8")
    with pytest.raises(SourceRefused, match="not asked for"):
        rows_of(client)
    assert asked(market) == []


def test_the_tag_of_a_beginning_is_readable_json(tmp_path: Path) -> None:
    with (
        StubServer(checksum(ZIPPED), cut(ZIPPED, 100), Reply(b"", 500)) as server,
        pytest.raises(SourceUnavailable),
    ):
        rows_of(client_of(server.url, tmp_path))
    (tag,) = (tmp_path / "downloads").rglob("*.part.json")
    assert json.loads(tag.read_text(encoding="utf-8")) == {"etag": '"one"'}
