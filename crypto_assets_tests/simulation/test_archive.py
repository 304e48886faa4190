"""The public archive: what its files hold, when they are there, and how a download goes wrong and on."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import replace
from datetime import datetime
from hashlib import sha256

import numpy as np
import pandas as pd
import pytest
import requests

from crypto_assets.intervals import DAY_MS, HOUR_MS, MINUTE_MS
from crypto_assets.simulation.archive import Archive, klines_csv
from crypto_assets.simulation.bars import CLOSE, UNKNOWN, VOLUME_BASE, VOLUME_QUOTE
from crypto_assets.simulation.dialects import WIRE_COLUMNS
from crypto_assets.simulation.faults import Fault
from crypto_assets.simulation.recorded import RecordedWorld
from crypto_assets.simulation.recordings import load_recordings
from crypto_assets.simulation.server import MarketServer
from crypto_assets.simulation.synthetic import SyntheticWorld
from crypto_assets.simulation.world import Restatement
from crypto_assets_tests.recorded import RECORDED, needs_recorded
from crypto_assets_tests.simulation.clients import at

START = at(2024, 11, 20)
#: The first Monday after December 2024 is the sixth of January.
NOW = at(2025, 1, 6, 6)
DECEMBER = "/data/spot/monthly/klines/BTCUSDT/1h/BTCUSDT-1h-2024-12.zip"
LAST_DAY = "/data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2024-12-31.zip"
NEW_YEAR = "/data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2025-01-01.zip"
UM = "/data/futures/um/{}/{}/BTCUSDT/1m/BTCUSDT-1m-{}.zip"


@pytest.fixture(scope="module")
def world() -> SyntheticWorld:
    return SyntheticWorld(7, START, START + 60 * DAY_MS)


@pytest.fixture(scope="module")
def archive(world: SyntheticWorld) -> Archive:
    return Archive(world)


def member(body: bytes) -> tuple[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(body)) as opened:
        (name,) = opened.namelist()
        return name, opened.read(name)


def rows(archive: Archive, path: str, now_ms: int = NOW) -> pd.DataFrame:
    answer = archive.answer(path, {}, now_ms)
    assert answer.status == 200
    csv = member(answer.body)[1]
    header = 0 if csv.startswith(b"open_time") else None
    return pd.read_csv(io.BytesIO(csv), header=header, names=WIRE_COLUMNS, dtype=str)


def test_a_month_holds_the_rows_of_the_month_as_the_exchange_has_them(
    archive: Archive, world: SyntheticWorld
) -> None:
    frame = rows(archive, DECEMBER)
    bars = world.window("BTC/USDT", "1h", at(2024, 12, 1), at(2025, 1, 1), NOW)
    assert frame.open_time.astype(int).tolist() == bars.open_ms.tolist()
    assert frame.close_time.astype(int).tolist() == bars.close_ms.tolist()
    assert frame["count"].astype(int).tolist() == bars.n_trades.tolist()
    assert set(frame.ignore) == {"0"}
    scaled = frame.quote_volume.str.replace(".", "").astype(int)
    assert scaled.tolist() == bars.values[VOLUME_QUOTE].tolist()
    assert frame.close.str.replace(".", "").astype(int).tolist() == bars.values[CLOSE].tolist()
    assert set(frame.close.str.rpartition(".")[2].str.len()) == {8}


def test_the_member_has_the_name_of_the_file(archive: Archive) -> None:
    assert member(archive.answer(DECEMBER, {}, NOW).body)[0] == "BTCUSDT-1h-2024-12.csv"


def test_spot_has_no_header_and_microseconds_from_2025(archive: Archive) -> None:
    old, new = (member(archive.answer(path, {}, NOW).body)[1] for path in (LAST_DAY, NEW_YEAR))
    assert old.startswith(b"%d," % at(2024, 12, 31))
    assert new.startswith(b"%d000," % at(2025, 1, 1))
    assert new.splitlines()[0].split(b",")[6] == b"%d999" % (at(2025, 1, 1) + MINUTE_MS - 1)


@pytest.mark.parametrize("folder", ["klines", "markPriceKlines", "premiumIndexKlines"])
def test_futures_have_a_header_and_milliseconds_also_after_2025(archive: Archive, folder: str) -> None:
    csv = member(archive.answer(UM.format("daily", folder, "2025-01-01"), {}, NOW).body)[1]
    header, first = csv.splitlines()[:2]
    assert header.decode().split(",") == WIRE_COLUMNS
    assert first.startswith(b"%d," % at(2025, 1, 1))
    assert len(csv.splitlines()) == 1 + DAY_MS // MINUTE_MS


def test_a_premium_may_be_negative_and_has_no_volume(archive: Archive, world: SyntheticWorld) -> None:
    frame = rows(archive, UM.format("monthly", "premiumIndexKlines", "2024-12"))
    bars = world.window("BTC/USDT:USDT", "1m", at(2024, 12, 1), at(2025, 1, 1), NOW, "premium")
    assert (bars.values[CLOSE] < 0).any()
    np.testing.assert_allclose(frame.close.astype(float), bars.values[CLOSE] / 1e8, rtol=0, atol=1e-12)
    assert set(frame.volume) == set(frame.taker_buy_quote_volume) == {"0"}
    assert frame["count"].astype(int).tolist() == bars.n_trades.tolist()


def test_funding_rates_come_by_the_month_with_their_jitter(archive: Archive, world: SyntheticWorld) -> None:
    path = "/data/futures/um/monthly/fundingRate/BTCUSDT/BTCUSDT-fundingRate-2024-12.zip"
    frame = pd.read_csv(io.BytesIO(member(archive.answer(path, {}, NOW).body)[1]))
    funding = world.funding(
        "BTC/USDT:USDT", now_ms=NOW, limit=1000, start_ms=at(2024, 12, 1), end_ms=at(2025, 1, 1) - 1
    )
    assert list(frame.columns) == ["calc_time", "funding_interval_hours", "last_funding_rate"]
    assert frame.calc_time.tolist() == funding.settled_ms.tolist()
    assert set(frame.funding_interval_hours) == {8}
    np.testing.assert_allclose(frame.last_funding_rate, funding.rate / 1e8, rtol=0, atol=1e-12)
    assert (frame.calc_time % HOUR_MS > 0).any()


@pytest.mark.parametrize(
    ("path", "published_ms"),
    [
        (DECEMBER, NOW),
        (UM.format("monthly", "klines", "2024-11"), at(2024, 12, 2, 6)),
        (LAST_DAY, at(2025, 1, 1, 6)),
        (UM.format("daily", "markPriceKlines", "2024-12-31"), at(2025, 1, 1, 6)),
    ],
)
def test_a_file_is_not_there_before_its_publication(archive: Archive, path: str, published_ms: int) -> None:
    for name in (path, f"{path}.CHECKSUM"):
        assert archive.answer(name, {}, published_ms - 1).status == 404
        answer = archive.answer(name, {}, published_ms)
        assert answer.status == 200
        assert pd.Timestamp(answer.headers["Last-Modified"]).timestamp() * 1000 == published_ms


@pytest.mark.parametrize(
    "path",
    [
        "/data/spot/monthly/klines/NOPEUSDT/1h/NOPEUSDT-1h-2024-12.zip",
        "/data/spot/monthly/klines/BTCUSDT/1h/BTCUSDT-1m-2024-12.zip",
        "/data/spot/monthly/klines/BTCUSDT/7h/BTCUSDT-7h-2024-12.zip",
        "/data/spot/monthly/klines/BTCUSDT/1M/BTCUSDT-1M-2024-12.zip",
        "/data/spot/monthly/klines/BTCUSDT/1h/BTCUSDT-1h-2024-13.zip",
        "/data/spot/monthly/klines/BTCUSDT/1h/BTCUSDT-1h-2024-12-01.zip",
        "/data/spot/daily/klines/BTCUSDT/1h/BTCUSDT-1h-2024-12.zip",
        "/data/spot/monthly/klines/BTCUSDT/1h/BTCUSDT-1h-2024-10.zip",
        "/data/spot/monthly/markPriceKlines/BTCUSDT/1h/BTCUSDT-1h-2024-12.zip",
        "/data/futures/um/monthly/fundingRate/BTCUSDT/1h/BTCUSDT-1h-2024-12.zip",
        "/data/futures/um/monthly/klines/LTCUSDT/1h/LTCUSDT-1h-2024-12.zip",
        "/data/spot/",
    ],
)
def test_what_is_not_there_is_an_xml_error(archive: Archive, path: str) -> None:
    answer = archive.answer(path, {}, NOW)
    assert (answer.status, answer.headers["Content-Type"]) == (404, "application/xml")
    assert b"<Code>NoSuchKey</Code>" in answer.body


def test_the_archive_keeps_what_the_exchange_no_longer_names() -> None:
    world = SyntheticWorld(7, START, START + 60 * DAY_MS, "1h", story_days=30)
    now_ms = START + 60 * DAY_MS
    (gone,) = {m.exchange_symbol for m in world.all_contracts() if m.market_type == "perpetual"} - {
        m.exchange_symbol for m in world.contracts(now_ms)
    }
    path = f"/data/futures/um/monthly/klines/{gone}/1h/{gone}-1h-2024-11.zip"
    assert Archive(world).answer(path, {}, now_ms).status == 200


def test_the_month_of_months_is_spelled_differently(archive: Archive) -> None:
    frame = rows(archive, "/data/spot/monthly/klines/BTCUSDT/1mo/BTCUSDT-1mo-2024-12.zip")
    assert frame.open_time.tolist() == [str(at(2024, 12, 1))]


def test_equal_paths_have_equal_bytes_in_every_archive_of_a_world(
    archive: Archive, world: SyntheticWorld
) -> None:
    other = Archive(SyntheticWorld(7, START, START + 70 * DAY_MS))
    assert other.answer(DECEMBER, {}, NOW + 9 * DAY_MS).body == archive.answer(DECEMBER, {}, NOW).body


def test_the_checksum_is_that_of_the_zip(archive: Archive) -> None:
    zipped = archive.answer(DECEMBER, {}, NOW).body
    told = archive.answer(f"{DECEMBER}.CHECKSUM", {}, NOW).body
    assert told == f"{sha256(zipped).hexdigest()}  BTCUSDT-1h-2024-12.zip\n".encode()


def test_a_restatement_publishes_the_file_again() -> None:
    world = SyntheticWorld(7, START, START + 60 * DAY_MS)
    published = NOW + 3 * DAY_MS
    world.restate(Restatement("BTC/USDT", at(2024, 12, 5), published, volume_base="12.5"))
    archive = Archive(world)
    before, after = (archive.answer(DECEMBER, {}, moment) for moment in (published - 1, published))
    digests = [
        archive.answer(f"{DECEMBER}.CHECKSUM", {}, moment).body[:64] for moment in (published - 1, published)
    ]
    assert digests == [sha256(answer.body).hexdigest().encode() for answer in (before, after)]
    assert digests[0] != digests[1]
    assert (
        before.headers["Last-Modified"] != after.headers["Last-Modified"] == "Thu, 09 Jan 2025 06:00:00 GMT"
    )
    old, new = (rows(archive, DECEMBER, moment) for moment in (published - 1, published))
    assert (old != new).any(axis=1).tolist() == [ts == str(at(2024, 12, 5)) for ts in old.open_time]
    same = archive.answer(UM.format("monthly", "klines", "2024-12"), {}, published)
    assert same.headers["Last-Modified"] == "Mon, 06 Jan 2025 06:00:00 GMT"


def test_a_range_continues_a_download_and_a_changed_file_starts_again(archive: Archive) -> None:
    whole = archive.answer(DECEMBER, {}, NOW)
    n, tag = len(whole.body), whole.headers["ETag"]
    rest = archive.answer(DECEMBER, {"Range": "bytes=1000-", "If-Range": tag}, NOW)
    assert (rest.status, rest.headers["Content-Range"]) == (206, f"bytes 1000-{n - 1}/{n}")
    assert whole.body[:1000] + rest.body == whole.body
    assert archive.answer(DECEMBER, {"Range": "bytes=0-9"}, NOW).body == whole.body[:10]
    assert archive.answer(DECEMBER, {"Range": "bytes=-10"}, NOW).body == whole.body[-10:]
    assert archive.answer(DECEMBER, {"Range": "bytes=1000-", "If-Range": '"other"'}, NOW) == whole
    beyond = archive.answer(DECEMBER, {"Range": f"bytes={n}-"}, NOW)
    assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{n}")


def test_what_the_client_has_already_is_not_sent_again(archive: Archive) -> None:
    whole = archive.answer(DECEMBER, {}, NOW)
    for condition in (
        {"If-None-Match": whole.headers["ETag"]},
        {"If-Modified-Since": whole.headers["Last-Modified"]},
    ):
        assert (archive.answer(DECEMBER, condition, NOW).status) == 304
    for condition in (
        {"If-None-Match": '"other"', "If-Modified-Since": whole.headers["Last-Modified"]},
        {"If-Modified-Since": "Mon, 06 Jan 2025 05:59:59 GMT"},
        {"If-Modified-Since": "yesterday"},
    ):
        assert archive.answer(DECEMBER, condition, NOW) == whole


def test_unknown_values_are_empty_cells(world: SyntheticWorld) -> None:
    bars = world.final_bars("BTC/USDT", "1m", START, START + 2 * MINUTE_MS)
    values, n_trades = bars.values.copy(), bars.n_trades.copy()
    values[VOLUME_QUOTE, 0] = n_trades[1] = UNKNOWN
    csv = klines_csv(replace(bars, values=values, n_trades=n_trades))
    first, second = (line.split(b",") for line in csv.splitlines())
    assert (first[7], second[8]) == (b"", b"")
    assert b"" not in first[8:] and b"" not in second[:8]


def test_decimals_of_different_lengths_and_sizes_are_written_as_shown(world: SyntheticWorld) -> None:
    bars = world.final_bars("BTC/USDT", "1m", START + DAY_MS, START + DAY_MS + 2 * MINUTE_MS)
    shown, values = bars.shown.copy(), bars.values.astype(object)
    shown[VOLUME_BASE] = [0, 3]
    values[VOLUME_BASE] = [7 * 10**8, 10**22]
    csv = klines_csv(replace(bars, values=values, shown=shown))
    assert [line.split(b",")[5] for line in csv.splitlines()] == [b"7", b"100000000000000.000"]


def test_a_cut_download_goes_on_where_it_broke(world: SyntheticWorld) -> None:
    with MarketServer(world, clock=NOW) as market:
        url = market.url + DECEMBER
        whole = requests.get(url, timeout=5)
        market.inject(DECEMBER, "short_body")
        received = b""
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            for part in requests.get(url, timeout=5, stream=True).iter_content(1):
                received += part
        assert received == whole.content[: len(whole.content) // 2]
        resumed = requests.get(
            url, headers={"Range": f"bytes={len(received)}-", "If-Range": whole.headers["ETag"]}, timeout=5
        )
        assert resumed.status_code == 206
        assert received + resumed.content == whole.content
        assert {request.budget for request in market.requests} == {"archive"}
        assert "X-MBX-USED-WEIGHT-1M" not in whole.headers


def test_damaged_files_do_not_pass_for_sound_ones(world: SyntheticWorld) -> None:
    with MarketServer(world, clock=NOW) as market:

        def get(path: str) -> bytes:
            return requests.get(market.url + path, timeout=5).content

        zipped, told = get(DECEMBER), get(f"{DECEMBER}.CHECKSUM")
        market.inject("/data/", "wrong_checksum")
        assert get(DECEMBER) == zipped
        wrong = get(f"{DECEMBER}.CHECKSUM")
        assert wrong[64:] == told[64:] and wrong[:64] != told[:64]
        market.inject("/data/", "truncated_zip")
        half = get(DECEMBER)
        assert zipped.startswith(half) and len(half) == len(zipped) // 2
        with pytest.raises(zipfile.BadZipFile):
            member(half)
        market.inject(DECEMBER, "corrupt_member", times=2)
        corrupt = get(DECEMBER)
        with pytest.raises((zipfile.BadZipFile, zlib.error)):
            member(corrupt)
        assert get(f"{DECEMBER}.CHECKSUM")[:64].decode() == sha256(corrupt).hexdigest()
        assert (get(DECEMBER), get(f"{DECEMBER}.CHECKSUM")) == (zipped, told)


def test_an_html_page_in_place_of_a_file_has_none_of_its_headers(world: SyntheticWorld) -> None:
    with MarketServer(world, clock=NOW) as market:
        market.inject("/data/", "html_200")
        page = requests.get(market.url + DECEMBER, headers={"Range": "bytes=5-"}, timeout=5)
        assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html; charset=UTF-8")
        assert "ETag" not in page.headers and "Content-Range" not in page.headers
        market.inject("/data/", Fault("status", status=503))
        assert requests.get(market.url + DECEMBER, timeout=5).status_code == 503


@needs_recorded
def test_the_archive_gives_a_recorded_month_back_byte_by_byte() -> None:
    source = RECORDED / "um_1m_vision" / "FILUSDT-1m-2023-08.csv.gz"
    loaded = load_recordings(RECORDED, futures=["um_1m_vision/FILUSDT-1m-2023-08.csv.gz"])
    assert datetime(2023, 9, 4).weekday() == 0
    path = "/data/futures/um/monthly/klines/FILUSDT/1m/FILUSDT-1m-2023-08.zip"
    answer = Archive(RecordedWorld(loaded)).answer(path, {}, at(2023, 9, 4, 6))
    original = pd.read_csv(source, dtype=str)
    pd.testing.assert_frame_equal(pd.read_csv(io.BytesIO(member(answer.body)[1]), dtype=str), original)
