"""The exchange client against the simulated market, and against scripted answers that no market gives."""

from __future__ import annotations

import gzip
import itertools
import json
import socket
import ssl
import tarfile
import threading
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from crypto_assets.intervals import HOUR_MS, MINUTE_MS, from_ms, to_ms
from crypto_assets.resources.exchange import (
    KLINE_SCHEMA,
    MARKET_SCHEMA,
    BinanceClient,
    ExchangeResource,
    KlinePage,
    Market,
)
from crypto_assets.resources.exchange import connect as connect_venue
from crypto_assets.resources.exchange.connection import PlainGet
from crypto_assets.resources.klines import SET_ASIDE_SCHEMA, KlineWindow
from crypto_assets.resources.sources import (
    RateBudget,
    RetryPolicy,
    SourceDataInvalid,
    SourceError,
    SourceRefused,
    SourceUnavailable,
    Wire,
)
from crypto_assets.simulation.bars import Bars
from crypto_assets.simulation.faults import Fault, status
from crypto_assets.simulation.recorded import RecordedWorld
from crypto_assets.simulation.recordings import load_recordings
from crypto_assets.simulation.server import MarketServer
from crypto_assets.simulation.synthetic import SyntheticWorld
from crypto_assets.simulation.world import Kind
from crypto_assets_tests.recorded import RECORDED, needs_recorded
from crypto_assets_tests.resources.stub_server import Reply, StubServer, json_of
from crypto_assets_tests.resources.test_sources import FakeTime

at = datetime.fromisoformat

START = at("2024-01-01")
END = at("2024-01-11")
NOW = at("2024-01-09T12:34:56.789000")
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
KLINES = "/api/v3/klines"


@pytest.fixture(scope="module")
def world() -> SyntheticWorld:
    return SyntheticWorld(7, to_ms(START), to_ms(END), "1m", story_days=9)


@pytest.fixture
def market(world: SyntheticWorld) -> Iterator[MarketServer]:
    # The exchange's minute stands still, so that no count of weight falls into two of them.
    with MarketServer(world, NOW, real_seconds=lambda: 0.0) as server:
        yield server


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def budget(tmp_path: Path, time: FakeTime) -> RateBudget:
    return RateBudget(tmp_path, "binance", 6000, now=time.now, sleep=time.sleep)


@pytest.fixture
def usdm_budget(tmp_path: Path, time: FakeTime) -> RateBudget:
    return RateBudget(tmp_path, "binance-usdm", 2400, now=time.now, sleep=time.sleep)


@pytest.fixture
def connect(budget: RateBudget, usdm_budget: RateBudget, time: FakeTime) -> Callable[..., BinanceClient]:
    def client(url: str, timeout_s: float = 5.0, attempts: int = 3) -> BinanceClient:
        retry = RetryPolicy(attempts, sleep=time.sleep)
        return BinanceClient(budget, usdm_budget, base_url=url, timeout_s=timeout_s, retry=retry)

    return client


@pytest.fixture
def client(market: MarketServer, connect: Callable[..., BinanceClient]) -> BinanceClient:
    return connect(market.url)


def spot(native: str) -> Market:
    return Market(f"{native.removesuffix('USDT')}/USDT", native)


def klines(
    client: BinanceClient, native: str, interval: str, start: datetime, end: datetime, closed_before: datetime
) -> Iterator[KlinePage]:
    return client.klines(spot(native), "trade", interval, start, end, closed_before)


def page_at(
    client: BinanceClient,
    native: str,
    interval: str,
    start: datetime,
    end: datetime,
    closed_before: datetime,
    limit: int = 1000,
) -> KlinePage:
    return client.klines_page(spot(native), KlineWindow("trade", interval, start, end, closed_before), limit)


def opens(page: KlinePage) -> list[datetime]:
    return page.rows.column("ts").to_pylist()


def raw_klines(market: MarketServer, query: str) -> list[list]:
    with urllib.request.urlopen(f"{market.url}{KLINES}?{query}") as response:
        return json.load(response)


# The clock of the exchange


def test_server_time_is_the_clock_of_the_exchange(client: BinanceClient) -> None:
    assert client.server_time() == NOW


def test_the_watermark_is_the_end_of_the_last_closed_interval(
    client: BinanceClient, market: MarketServer
) -> None:
    assert client.last_closed("1m") == at("2024-01-09T12:34")
    assert client.last_closed("4h") == at("2024-01-09T12:00")
    market.clock.set(at("2024-01-09T12:35"))
    assert client.last_closed("1m") == at("2024-01-09T12:35")
    assert market.count("/api/v3/time") == market.count() == 3
    with pytest.raises(ValueError, match="unknown interval '7m'"):
        client.last_closed("7m")
    assert market.count() == 3


@pytest.mark.parametrize("payload", [{}, {"serverTime": "1"}, {"serverTime": True}, {"serverTime": -1}, [1]])
def test_a_server_time_that_is_no_time_is_invalid(
    connect: Callable[..., BinanceClient], payload: object
) -> None:
    with StubServer(json_of(payload)) as stub, pytest.raises(SourceDataInvalid, match="serverTime"):
        connect(stub.url).server_time()


# Markets


def test_symbols_are_the_listed_markets_with_their_rules(
    client: BinanceClient, market: MarketServer, world: SyntheticWorld
) -> None:
    table = client.markets(["spot"])
    assert table.schema == MARKET_SCHEMA
    listed = {listing.symbol: listing for listing in world.markets(to_ms(NOW))}
    assert table.column("symbol").to_pylist() == list(listed)
    assert set(table.column("trading_status").to_pylist()) == {"TRADING", "BREAK"}
    for row in table.to_pylist():
        rules = listed[row["symbol"]]
        assert (row["exchange_symbol"], row["base"], row["quote"]) == (
            rules.exchange_symbol,
            rules.base,
            rules.quote,
        )
        assert row["tick_size"] == rules.tick / 1e8
        assert row["lot_size"] == rules.lot / 1e8
        assert row["min_notional"] == rules.min_notional / 1e8
        assert row["spot_allowed"] is True
    market.clock.set(START + HOUR)
    assert len(client.markets(["spot"])) < len(table)


@needs_recorded
@pytest.mark.parametrize(
    ("name", "n_markets", "n_trading"),
    [("spot-2018-02-10", 265, 265), ("spot-2020-10-09", 1089, 815), ("spot-2021-03-24", 1363, 1000)],
)
def test_recorded_market_lists_of_several_years_parse(
    connect: Callable[..., BinanceClient], name: str, n_markets: int, n_trading: int
) -> None:
    body = gzip.decompress((RECORDED / "binance_wire" / "exchange_info" / f"{name}.json.gz").read_bytes())
    with StubServer(Reply(body)) as stub:
        rows = connect(stub.url).markets(["spot"]).to_pylist()
    assert len(rows) == n_markets
    assert sum(row["trading_status"] == "TRADING" for row in rows) == n_trading
    recorded = json.loads(body)["symbols"]
    # The field came after 2018: before, the permission is unknown.
    assert [row["spot_allowed"] for row in rows] == [raw.get("isSpotTradingAllowed") for raw in recorded]
    old = name.startswith("spot-2018")
    assert [row for row in rows if row["symbol"] == "ETH/BTC"] == [
        {
            "symbol": "ETH/BTC",
            "exchange_symbol": "ETHBTC",
            "market_type": "spot",
            "base": "ETH",
            "quote": "BTC",
            "settle": None,
            "contract_type": None,
            "trading_status": "TRADING",
            "permissions": None if old else "MARGIN,SPOT",
            "spot_allowed": None if old else True,
            "listed_at": None,
            "delivery_at": None,
            "tick_size": 1e-6,
            "lot_size": 1e-3,
            "min_notional": 1e-3 if old else 1e-4,
        }
    ]


def test_rules_in_today_s_spelling_parse_and_switched_off_rules_are_unknown(
    connect: Callable[..., BinanceClient],
) -> None:
    listing = {"symbol": "AB", "baseAsset": "A", "quoteAsset": "B", "status": "TRADING", "permissions": []}
    filters = [
        {"filterType": "PRICE_FILTER", "tickSize": "0.00000000"},
        {"filterType": "NOTIONAL", "minNotional": "5.00000000"},
    ]
    answers = [
        {**listing, "permissionSets": [["MARGIN"], ["SPOT", "TRD_GRP_004"]], "filters": filters},
        {**listing, "permissionSets": [["LEVERAGED"]]},
        listing,
    ]
    with StubServer(*(json_of({"symbols": [answer]}) for answer in answers)) as stub:
        rows = [connect(stub.url).markets(["spot"]).to_pylist()[0] for _ in answers]
    assert [row["spot_allowed"] for row in rows] == [True, False, None]
    assert (rows[0]["tick_size"], rows[0]["lot_size"], rows[0]["min_notional"]) == (None, None, 5.0)


@pytest.mark.parametrize(
    "payload",
    [
        [],
        {"symbols": {}},
        {"symbols": ["AB"]},
        {"symbols": [{"symbol": "AB", "baseAsset": "A", "quoteAsset": "", "status": "TRADING"}]},
        {"symbols": [{"symbol": "AB", "baseAsset": "A", "quoteAsset": "B", "status": "TRADING"}] * 2},
    ],
)
def test_a_market_list_that_breaks_the_promise_is_invalid(
    connect: Callable[..., BinanceClient], payload: object
) -> None:
    with StubServer(json_of(payload)) as stub, pytest.raises(SourceDataInvalid):
        connect(stub.url).markets(["spot"])


# Candles


def test_a_page_is_what_the_exchange_says_to_the_last_digit(
    client: BinanceClient, market: MarketServer
) -> None:
    page = page_at(client, "BTCUSDT", "1m", START, START + 90 * MINUTE, NOW)
    raw = raw_klines(market, f"symbol=BTCUSDT&interval=1m&startTime={to_ms(START)}&limit=90")
    assert (page.rows.schema, page.set_aside.schema) == (KLINE_SCHEMA, SET_ASIDE_SCHEMA)
    assert (len(page.rows), len(page.set_aside), page.n_raw) == (90, 0, 90)
    for row, candle in zip(page.rows.to_pylist(), raw, strict=True):
        assert list(row.values()) == [
            from_ms(candle[0]),
            *(float(text) for text in candle[1:5]),
            *(Decimal(candle[i]) for i in (5, 7, 9, 10)),
            candle[8],
            from_ms(candle[6]),
        ]


@pytest.mark.parametrize("interval", ["1m", "15m", "1h", "12h"])
@pytest.mark.parametrize(
    "now",
    [NOW, at("2024-01-09T12:00"), at("2024-01-09T11:59:59.999000"), START + timedelta(seconds=1)],
)
def test_an_open_candle_is_never_returned_and_the_last_closed_one_always(
    client: BinanceClient, market: MarketServer, interval: str, now: datetime
) -> None:
    market.clock.set(now)
    closed_before = client.server_time()
    start = max(START, now - timedelta(days=2))
    rows = [
        ts for page in klines(client, "ETHUSDT", interval, start, END, closed_before) for ts in opens(page)
    ]
    watermark = client.last_closed(interval)
    length = {"1m": MINUTE, "15m": 15 * MINUTE, "1h": HOUR, "12h": 12 * HOUR}[interval]
    if watermark <= start:
        assert rows == []
    else:
        assert rows[-1] + length == watermark


def test_a_tick_keeps_to_its_own_time_when_the_clock_of_the_exchange_runs_on(
    client: BinanceClient, market: MarketServer
) -> None:
    market.clock.set(NOW + HOUR)
    pages = list(klines(client, "BTCUSDT", "1m", NOW - HOUR, END, NOW))
    assert [opens(page)[-1] for page in pages] == [at("2024-01-09T12:33")]
    assert pages[-1].covered_until == at("2024-01-09T12:34")


@pytest.mark.parametrize(
    ("n_minutes", "n_calls"), [(1, 1), (999, 1), (1000, 1), (1001, 2), (2000, 2), (2001, 3), (3500, 4)]
)
def test_a_range_costs_the_least_number_of_calls(
    client: BinanceClient, market: MarketServer, n_minutes: int, n_calls: int
) -> None:
    end = START + n_minutes * MINUTE
    pages = list(klines(client, "BTCUSDT", "1m", START, end, NOW))
    assert market.count(KLINES) == market.count() == n_calls
    assert [ts for page in pages for ts in opens(page)] == [START + i * MINUTE for i in range(n_minutes)]
    assert [page.covered_until for page in pages] == [
        min(START + 1000 * i * MINUTE, end) for i in range(1, n_calls + 1)
    ]


def test_a_range_up_to_the_watermark_needs_no_call_to_learn_that_it_ends(
    client: BinanceClient, market: MarketServer
) -> None:
    start = at("2024-01-09T12:34") - 1000 * MINUTE
    (page,) = klines(client, "BTCUSDT", "1m", start, END, NOW)
    assert (page.n_raw, page.covered_until, market.count()) == (1000, at("2024-01-09T12:34"), 1)


def test_nothing_is_asked_when_nothing_can_be_closed(client: BinanceClient, market: MarketServer) -> None:
    for start in (at("2024-01-09T12:34"), at("2024-01-10")):
        (page,) = klines(client, "BTCUSDT", "1m", start, END, NOW)
        assert (len(page.rows), page.n_raw, page.covered_until) == (0, 0, start)
    assert market.count() == 0


def test_an_answer_that_starts_late_or_has_a_hole_proves_the_hole(
    client: BinanceClient, market: MarketServer, world: SyntheticWorld
) -> None:
    late = next(listing for listing in world.all_markets() if listing.first_ms > to_ms(START))
    first = from_ms(late.first_ms)
    (page,) = klines(client, late.exchange_symbol, "1h", START, first + 5 * HOUR, NOW)
    assert opens(page) == [first + i * HOUR for i in range(5)]
    assert page.covered_until == first + 5 * HOUR

    halt, resumption = (from_ms(moment) for moment in world.outage_ms)
    (page,) = klines(client, "BTCUSDT", "1m", halt - HOUR, resumption + HOUR, NOW)
    assert max(b - a for a, b in itertools.pairwise(opens(page))) > HOUR
    assert page.covered_until == resumption + HOUR
    (page,) = klines(client, "BTCUSDT", "1m", halt + 2 * MINUTE, resumption - 2 * MINUTE, NOW)
    assert (page.n_raw, page.covered_until) == (0, resumption - 2 * MINUTE)
    assert market.count() == 3


def test_a_cut_close_time_is_kept_as_the_exchange_says(client: BinanceClient, world: SyntheticWorld) -> None:
    halt_ms = world.outage_ms[0]
    (page,) = klines(client, "ETHUSDT", "1m", from_ms(halt_ms) - 5 * MINUTE, from_ms(halt_ms) + MINUTE, NOW)
    last = page.rows.to_pylist()[-1]
    assert last["close_time"] < last["ts"] + MINUTE - timedelta(milliseconds=1)


def test_impossible_questions_are_refused_before_they_are_sent(
    client: BinanceClient, market: MarketServer
) -> None:
    for start, end, interval, limit in (
        (START, START, "1m", 10),
        (END, START, "1m", 10),
        (START, END, "7m", 10),
        (START, END, "1m", 0),
        (START, END, "1m", 1001),
    ):
        with pytest.raises(ValueError, match=r"empty range|unknown interval|limit"):
            page_at(client, "BTCUSDT", interval, start, end, NOW, limit)
    assert market.count() == 0


# Candles between the grid points


class HaltedWorld(SyntheticWorld):
    """An hourly market that leaves the grid for two days, as after the halt of February 2018.

    The first late candle opens inside the hour of the last one on the grid.
    """

    shift_ms = 28 * MINUTE_MS + 14_789 - HOUR_MS
    late = (to_ms(at("2024-01-03")), to_ms(at("2024-01-05")))

    def final_bars(
        self, symbol: str, interval: str, start_ms: int, end_ms: int, kind: Kind = "trade"
    ) -> Bars:
        bars = super().final_bars(symbol, interval, start_ms, end_ms + HOUR_MS, kind)
        opens_ms = bars.open_ms
        late = (opens_ms >= self.late[0]) & (opens_ms < self.late[1])
        shifted = np.where(late, opens_ms + self.shift_ms, opens_ms)
        return replace(bars, open_ms=shifted).between(start_ms, end_ms)


@pytest.fixture(scope="module")
def halted() -> HaltedWorld:
    return HaltedWorld(7, to_ms(START), to_ms(END), "1h", story_days=9)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 48, 1000])
def test_candles_off_the_grid_come_apart_and_none_is_lost_at_any_page_size(
    halted: HaltedWorld, connect: Callable[..., BinanceClient], limit: int
) -> None:
    first, last = at("2024-01-02T12:00"), at("2024-01-05T12:00")
    with MarketServer(halted, NOW) as market:
        client = connect(market.url)
        pages: list[KlinePage] = []
        resume: datetime | None = first
        while resume is not None:
            pages.append(page_at(client, "BTCUSDT", "1h", resume, last, NOW, limit))
            resume = pages[-1].resume_at
        assert market.count() == -(-72 // limit)
    on_grid = pa.concat_tables([page.rows for page in pages]).column("ts").to_pylist()
    off_grid = pa.concat_tables([page.set_aside for page in pages]).column("ts").to_pylist()
    assert on_grid == [first + i * HOUR for i in range(12)] + [last - i * HOUR for i in range(12, 0, -1)]
    shift = timedelta(milliseconds=halted.shift_ms)
    assert off_grid == [from_ms(halted.late[0]) + i * HOUR + shift for i in range(48)]
    assert sum(page.n_raw for page in pages) == 72
    assert pages[-1].covered_until == last


def test_an_open_candle_off_the_grid_is_left_for_the_next_time(
    halted: HaltedWorld, connect: Callable[..., BinanceClient]
) -> None:
    now = at("2024-01-04T12:10")
    with MarketServer(halted, now) as market:
        page = page_at(connect(market.url), "BTCUSDT", "1h", at("2024-01-04T09:00"), END, now)
    # The candle of 11:28:14.789 is open at 12:10, although the hour from 11:00 is over.
    assert (len(page.rows), page.n_raw) == (0, 3)
    assert page.set_aside.column("ts").to_pylist()[-1] < at("2024-01-04T11:00")
    assert page.covered_until == at("2024-01-04T11:00")


# Recorded pages


@needs_recorded
def test_recorded_pages_of_the_exchange_pass_and_add_up(connect: Callable[..., BinanceClient]) -> None:
    archive = RECORDED / "spot_wire_static_klines" / "dev" / "BTCUSDT-1h.tar.gz"
    with tarfile.open(archive) as pages:
        bodies = [content.read() for member in pages if (content := pages.extractfile(member))]
    for body in bodies[:6]:
        raw = json.loads(body)
        start, end = from_ms(raw[0][0]), from_ms(raw[-1][0]) + HOUR
        with StubServer(Reply(body)) as stub:
            page = page_at(connect(stub.url), "BTCUSDT", "1h", start, end, end)
        assert (len(page.rows), len(page.set_aside)) == (len(raw), 0)
        for name, position in (("volume_base", 5), ("volume_quote", 7), ("taker_buy_quote", 10)):
            assert sum(page.rows.column(name).to_pylist()) == sum(Decimal(row[position]) for row in raw)


@needs_recorded
def test_the_recorded_candles_off_the_grid_of_2018_come_apart_in_the_least_number_of_calls(
    connect: Callable[..., BinanceClient],
) -> None:
    recordings = load_recordings(RECORDED, klines=["spot_1h_btc_longrun/*.csv.gz"])
    start, end = at("2018-02-01"), at("2018-06-01")
    with MarketServer(RecordedWorld(recordings), at("2020-12-01")) as market:
        pages = list(klines(connect(market.url), "BTCUSDT", "1h", start, end, at("2020-12-01")))
        assert market.count(KLINES) == len(pages) == 3
    off_grid = pa.concat_tables([page.set_aside for page in pages]).column("ts").to_pylist()
    assert (len(off_grid), off_grid[0]) == (43, at("2018-02-09T09:28:14.789"))
    assert sum(page.n_raw for page in pages) == 43 + sum(len(page.rows) for page in pages)


# Answers that break the promise


def candle(i: int = 0, **changes: object) -> list:
    ts = to_ms(START) + i * MINUTE_MS
    names = [
        "ts",
        "open",
        "high",
        "low",
        "close",
        "volume",
        "close_time",
        "quote",
        "n",
        "taker",
        "taker_quote",
        "x",
    ]
    values = [ts, "10.0", "12.0", "9.0", "11.0", "5.5", ts + 59_999, "55.0", 3, "2.5", "25.0", "0"]
    return list({**dict(zip(names, values, strict=True)), **changes}.values())


def ask(stub: StubServer, connect: Callable[..., BinanceClient], limit: int = 5) -> KlinePage:
    return page_at(connect(stub.url), "BTCUSDT", "1m", START, START + 5 * MINUTE, NOW, limit)


def test_the_scripted_candle_is_sound_so_that_each_change_below_is_what_is_wrong(
    connect: Callable[..., BinanceClient],
) -> None:
    with StubServer(json_of([candle(), candle(1), candle(4)])) as stub:
        assert opens(ask(stub, connect)) == [START, START + MINUTE, START + 4 * MINUTE]


def test_columns_seven_to_ten_may_be_unknown(connect: Callable[..., BinanceClient]) -> None:
    unknown = candle(1, quote=None, n=None, taker=None, taker_quote=None)
    with StubServer(json_of([candle(), unknown])) as stub:
        rows = ask(stub, connect).rows
    for name in ("volume_quote", "n_trades", "taker_buy_base", "taker_buy_quote"):
        assert rows.column(name).is_null().to_pylist() == [False, True]


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        ({"data": []}, "a list of candles"),
        ([candle()[:11]], "12 elements"),
        ([candle(), [*candle(1), 0]], "12 elements"),
        ([candle(), "candle"], "12 elements"),
        ([candle(ts=float(to_ms(START)))], "ts must be an integer"),
        ([candle(ts=str(to_ms(START)))], "ts must be an integer"),
        ([candle(ts=None)], "ts must be an integer"),
        ([candle(ts=True)], "ts must be an integer"),
        ([candle(ts=2**63)], "64 bits"),
        ([candle(close_time=None)], "close_time must be an integer"),
        ([candle(0), candle(2), candle(1)], r"must not run backwards.*row 2"),
        ([candle(-1), candle(0)], "leave the asked range"),
        ([candle(4), candle(5)], "leave the asked range"),
        ([candle(high="10.9")], "row 0"),
        ([candle(), candle(1, high="9.9")], "row 1"),
        ([candle(low="10.1")], "row 0"),
        ([candle(low="0.0")], "row 0"),
        ([candle(low="-1.0")], "row 0"),
        ([candle(open="nan")], "row 0"),
        ([candle(high="nan")], "row 0"),
        ([candle(high="inf")], "row 0"),
        ([candle(open="")], "open does not parse"),
        ([candle(open="ten")], "open does not parse"),
        ([candle(close=None)], "close must be a decimal string"),
        ([candle(close=11.0)], "close must be a decimal string"),
        ([candle(volume=None)], "volume_base must be a decimal string"),
        ([candle(volume=5)], "volume_base must be a decimal string"),
        ([candle(volume="5.123456789")], "volume_base does not parse"),
        ([candle(volume="nan")], "volume_base does not parse"),
        ([candle(), candle(1, volume="-0.00000001")], r"volume_base must not be negative, but row 1"),
        ([candle(quote="-1.0")], "volume_quote must not be negative"),
        ([candle(taker="-1.0")], "taker_buy_base must not be negative"),
        ([candle(taker_quote="x")], "taker_buy_quote does not parse"),
        ([candle(n="3")], "n_trades must be an integer"),
        ([candle(quote=None), candle(1, n=-3)], r"n_trades must not be negative, but row 1"),
    ],
)
def test_a_candle_that_breaks_the_promise_makes_the_whole_page_invalid(
    connect: Callable[..., BinanceClient], payload: object, complaint: str
) -> None:
    with StubServer(json_of(payload)) as stub:
        with pytest.raises(SourceDataInvalid, match=complaint) as caught:
            ask(stub, connect, limit=3)
        assert len(stub.received) == 1
    assert "binance GET /api/v3/klines?symbol=BTCUSDT&interval=1m" in str(caught.value)


# Faults


@pytest.mark.parametrize(
    ("fault", "kind", "n_requests"),
    [
        (Fault("html_200"), SourceDataInvalid, 3),
        (Fault("truncated_json"), SourceDataInvalid, 3),
        (Fault("empty_200"), SourceDataInvalid, 3),
        (Fault("short_body"), SourceUnavailable, 3),
        (Fault("reset"), SourceUnavailable, 3),
        (status(500), SourceUnavailable, 3),
        (status(502), SourceUnavailable, 3),
        (status(429, 2), SourceUnavailable, 3),
        (status(401), SourceRefused, 1),
        (status(403), SourceRefused, 1),
        (status(418, 120), SourceRefused, 1),
        (status(451), SourceRefused, 1),
    ],
    ids=str,
)
def test_each_fault_is_told_by_what_the_caller_must_do(
    client: BinanceClient, market: MarketServer, fault: Fault, kind: type[SourceError], n_requests: int
) -> None:
    market.inject(KLINES, fault, times=9)
    with pytest.raises(SourceError) as caught:
        list(klines(client, "BTCUSDT", "1m", START, START + HOUR, NOW))
    assert type(caught.value) is kind
    assert market.count(KLINES) == n_requests
    assert str(caught.value).startswith("binance GET /api/v3/klines?symbol=BTCUSDT&interval=1m&startTime=")
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("html_200"),
        Fault("truncated_json"),
        Fault("empty_200"),
        Fault("short_body"),
        Fault("reset"),
        status(500),
    ],
    ids=str,
)
def test_a_passing_fault_costs_a_request_and_no_row(
    client: BinanceClient, market: MarketServer, fault: Fault
) -> None:
    market.inject(KLINES, fault, after=1)
    pages = list(klines(client, "BTCUSDT", "1m", START, START + 2500 * MINUTE, NOW))
    assert [ts for page in pages for ts in opens(page)] == [START + i * MINUTE for i in range(2500)]
    assert market.count(KLINES) == 4


def test_earlier_pages_stay_when_a_later_one_fails(client: BinanceClient, market: MarketServer) -> None:
    market.inject(KLINES, status(451), after=2)
    pages = klines(client, "BTCUSDT", "1m", START, START + 2500 * MINUTE, NOW)
    assert [next(pages).n_raw, next(pages).n_raw] == [1000, 1000]
    with pytest.raises(SourceRefused, match="location"):
        next(pages)


def test_an_exchange_that_does_not_answer_in_time_is_unavailable(
    market: MarketServer, connect: Callable[..., BinanceClient]
) -> None:
    market.inject(KLINES, "hang", times=2)
    client = connect(market.url, timeout_s=0.05, attempts=2)
    with pytest.raises(SourceUnavailable, match="no response"):
        page_at(client, "BTCUSDT", "1m", START, END, NOW)
    assert market.count(KLINES) == 2


def test_an_attempt_without_a_response_is_not_told_by_the_status_of_the_one_before(
    market: MarketServer, connect: Callable[..., BinanceClient]
) -> None:
    market.inject(KLINES, status(503))
    market.inject(KLINES, "reset")
    with pytest.raises(SourceUnavailable, match="attempt 2 of 2: no response"):
        page_at(connect(market.url, attempts=2), "BTCUSDT", "1m", START, END, NOW)


def test_retry_after_is_honoured(client: BinanceClient, market: MarketServer, time: FakeTime) -> None:
    start_s = time.now_s
    market.inject(KLINES, status(429, retry_after=37))
    assert page_at(client, "BTCUSDT", "1m", START, START + HOUR, NOW).n_raw == 60
    assert market.count(KLINES) == 2
    assert time.now_s == pytest.approx(start_s + 37)


def test_after_a_ban_no_client_of_the_budget_sends_anything(
    client: BinanceClient, market: MarketServer, connect: Callable[..., BinanceClient], time: FakeTime
) -> None:
    market.inject("/api", status(418, retry_after=100))
    with pytest.raises(SourceRefused, match="HTTP 418"):
        client.server_time()
    with pytest.raises(SourceRefused, match="banned this machine for 100 s more"):
        connect(market.url).server_time()
    assert (market.count(), time.slept) == (1, [])
    time.now_s += 101
    assert client.server_time() == NOW


def test_an_unknown_symbol_is_refused_with_the_words_of_the_exchange(
    client: BinanceClient, market: MarketServer
) -> None:
    with pytest.raises(SourceRefused, match=r"symbol=NOPEUSDT.*HTTP 400.*Invalid symbol"):
        page_at(client, "NOPEUSDT", "1m", START, END, NOW)
    assert market.count() == 1


def test_an_error_that_comes_with_status_200_is_no_empty_answer(
    connect: Callable[..., BinanceClient],
) -> None:
    with (
        StubServer(json_of({"code": -1121, "msg": "Invalid symbol."})) as stub,
        pytest.raises(SourceDataInvalid, match="Invalid symbol"),
    ):
        ask(stub, connect)


def test_an_address_where_nobody_listens_is_unavailable(
    connect: Callable[..., BinanceClient], world: SyntheticWorld
) -> None:
    with MarketServer(world, NOW) as market:
        url = market.url
    with pytest.raises(SourceUnavailable, match=r"attempt 3 of 3: no response .*refused"):
        connect(url).server_time()


def test_a_redirect_to_another_host_is_not_followed(
    market: MarketServer, connect: Callable[..., BinanceClient]
) -> None:
    moved = Reply(b"", 302, {"Location": f"{market.url}/api/v3/time"})
    with StubServer(moved) as stub, pytest.raises(SourceRefused, match="HTTP 302"):
        connect(stub.url).server_time()
    assert market.count() == 0


# Connections


class KeepAliveServer(ThreadingHTTPServer):
    """Keeps connections open as HTTP/1.1 does, for so many answers each, and counts those that began and ended.

    The body is what ``answer`` makes of the target.
    """

    # More than any test opens at the same instant: what is above is asked to come again a second later.
    request_queue_size = 64

    def __init__(self, answer: Callable[[str], bytes], answers_each: int | None = None) -> None:
        self.n_begun = 0
        self.ended = threading.Semaphore(0)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            n_answers = 0

            def do_GET(self) -> None:
                body = answer(self.path)
                self.send_response_only(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                self.n_answers += 1
                self.close_connection = self.n_answers == answers_each

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})

    def get_request(self) -> tuple[socket.socket, Any]:
        self.n_begun += 1
        return super().get_request()

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.ended.release()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


def test_one_connection_serves_request_after_request(connect: Callable[..., BinanceClient]) -> None:
    with KeepAliveServer(lambda _: json.dumps([candle()]).encode()) as server:
        client = connect(server.url)
        for _ in range(5):
            assert opens(page_at(client, "BTCUSDT", "1m", START, START + MINUTE, NOW)) == [START]
        assert server.n_begun == 1


def test_a_connection_that_the_server_closed_meanwhile_costs_no_attempt(
    connect: Callable[..., BinanceClient], budget: RateBudget, time: FakeTime
) -> None:
    with KeepAliveServer(lambda _: json.dumps([candle()]).encode(), answers_each=1) as server:
        client = connect(server.url, attempts=1)
        for _ in range(3):
            assert opens(page_at(client, "BTCUSDT", "1m", START, START + MINUTE, NOW)) == [START]
            assert server.ended.acquire(timeout=10)
        assert server.n_begun == 3
    assert (budget.used(), time.slept) == (3 * 2, [])


def test_threads_get_their_own_answers_and_only_so_many_connections_are_kept() -> None:
    n_threads, n_kept = 24, 3
    together = threading.Barrier(n_threads)

    def echo(target: str) -> bytes:
        if "together" in target:
            together.wait(timeout=10)
        return target.encode() * 1000

    with KeepAliveServer(echo) as server, ThreadPoolExecutor(n_threads) as threads:
        get = PlainGet(f"{server.url}/base", timeout_s=10, concurrency=n_kept)
        wire = Wire()

        def ask_for(target: str) -> bytes:
            body = get(target, wire)
            assert (wire.status, wire.body) == (200, body[:200])
            return body

        targets = [f"together?i={i}" for i in range(n_threads)]
        assert list(threads.map(ask_for, targets)) == [
            f"/base/{target}".encode() * 1000 for target in targets
        ]
        assert server.n_begun == n_threads
        for _ in range(n_threads - n_kept):
            assert server.ended.acquire(timeout=10)
        for i in range(2 * n_kept):
            assert ask_for(f"alone?i={i}") == f"/base/alone?i={i}".encode() * 1000
        assert server.n_begun == n_threads
        assert not server.ended.acquire(blocking=False)


def test_connections_close_with_the_last_user_of_them() -> None:
    with KeepAliveServer(str.encode) as server:
        assert PlainGet(f"{server.url}/base", timeout_s=10, concurrency=3)("one", Wire()) == b"/base/one"
        assert server.ended.acquire(timeout=10)


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("deflate, gzip", lambda body: gzip.compress(zlib.compress(body))),
        ("identity", bytes),
    ],
)
def test_a_packed_answer_is_unpacked_also_for_an_error_message(
    connect: Callable[..., BinanceClient], encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    packed = {"Content-Encoding": encoding}
    bodies = [json.dumps(payload).encode() for payload in ([candle()], {"msg": "Invalid symbol."})]
    replies = [Reply(pack(bodies[0]), 200, packed), Reply(pack(bodies[1]), 400, packed)]
    with StubServer(*replies) as stub:
        assert opens(ask(stub, connect)) == [START]
        with pytest.raises(SourceRefused, match=r"HTTP 400 .*Invalid symbol"):
            ask(stub, connect)
        assert stub.received[0].headers == {
            "host": stub.url.removeprefix("http://"),
            "accept-encoding": "gzip, deflate",
            "user-agent": "crypto-assets",
        }


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", b"[]"),
        ("gzip", gzip.compress(b"[]", mtime=0)[:-6]),
        ("gzip", gzip.compress(b"[]", mtime=0)[:-8] + bytes(8)),
        ("deflate", b"[]"),
        ("br", b"\x0b\x00\x80[]\x03"),
    ],
)
def test_an_answer_that_is_not_packed_as_it_says_is_garbled(
    connect: Callable[..., BinanceClient], encoding: str, body: bytes
) -> None:
    with StubServer(Reply(body, headers={"Content-Encoding": encoding})) as stub:
        with pytest.raises(SourceDataInvalid, match=r"attempt 3 of 3: HTTP 200 .*base address"):
            ask(stub, connect)
        assert len(stub.received) == 3


def test_a_redirect_of_candles_is_refused_and_not_followed(
    market: MarketServer, connect: Callable[..., BinanceClient]
) -> None:
    moved = Reply(b"", 302, {"Location": f"{market.url}{KLINES}"})
    with StubServer(moved) as stub:
        with pytest.raises(SourceRefused, match="HTTP 302"):
            ask(stub, connect)
        assert len(stub.received) == 1
    assert market.count() == 0


def test_proxies_of_the_environment_are_not_used(
    client: BinanceClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StubServer(json_of([])) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert page_at(client, "BTCUSDT", "1m", START, START + HOUR, NOW).n_raw == 60
        assert proxy.n_connections == 0


def certificate_for(name: x509.GeneralName, folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stub")])
    today = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .sign(key, hashes.SHA256())
    )
    place = folder / "certificate.pem"
    place.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return place


@pytest.mark.parametrize(
    ("name", "is_trusted", "complaint"),
    [
        (x509.IPAddress(ip_address("127.0.0.1")), True, None),
        (x509.IPAddress(ip_address("127.0.0.1")), False, "self-signed certificate"),
        (x509.DNSName("api.binance.com"), True, "certificate is not valid for '127.0.0.1'"),
    ],
    ids=["trusted", "unknown issuer", "another server's"],
)
def test_the_certificate_must_be_trusted_and_the_server_s_own(
    connect: Callable[..., BinanceClient],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: x509.GeneralName,
    is_trusted: bool,
    complaint: str | None,
) -> None:
    certificate = certificate_for(name, tmp_path)
    if is_trusted:
        monkeypatch.setattr("certifi.where", lambda: str(certificate))
    asked: list[str] = []

    def answer(target: str) -> bytes:
        asked.append(target)
        return json.dumps([candle()]).encode()

    with KeepAliveServer(answer) as server:
        secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        secure.load_cert_chain(certificate)
        server.socket = secure.wrap_socket(server.socket, server_side=True)
        client = connect(server.url.replace("http:", "https:"))
        if complaint is None:
            for _ in range(2):
                assert opens(page_at(client, "BTCUSDT", "1m", START, START + MINUTE, NOW)) == [START]
            return
        with pytest.raises(SourceUnavailable, match=f"no response .*{complaint}"):
            page_at(client, "BTCUSDT", "1m", START, START + MINUTE, NOW)
    assert asked == []


def test_an_address_without_a_host_or_with_a_port_that_is_none_is_told_at_once(
    connect: Callable[..., BinanceClient],
) -> None:
    for url in ("http:///market", "http://127.0.0.1:eighty"):
        with pytest.raises(ValueError, match=r"no host|[Pp]ort"):
            connect(url)


# Budget, threads, settings


def test_the_weights_are_those_that_the_exchange_counts(
    market: MarketServer, connect: Callable[..., BinanceClient], budget: RateBudget
) -> None:
    def ask_everything(client: BinanceClient) -> None:
        client.server_time()
        client.markets(["spot"])
        page_at(client, "BTCUSDT", "1m", START, START + HOUR, NOW)

    # The stub sends no used weight, so that only ours is counted.
    with StubServer(json_of({"serverTime": 1}), json_of({"symbols": []}), json_of([])) as stub:
        ask_everything(connect(stub.url))
    ours = budget.used()
    ask_everything(connect(market.url))
    with urllib.request.urlopen(f"{market.url}/api/v3/time") as response:
        assert int(response.headers["X-MBX-USED-WEIGHT-1M"]) == ours + 1 == 1 + 20 + 2 + 1


def test_what_others_spend_behind_the_same_address_is_read_back(
    client: BinanceClient, market: MarketServer, budget: RateBudget
) -> None:
    for _ in range(10):
        raw_klines(market, "symbol=BTCUSDT&interval=1m&limit=1")
    client.server_time()
    assert budget.used() == 21


def test_the_client_waits_rather_than_exceeds_its_budget(
    market: MarketServer, tmp_path: Path, time: FakeTime
) -> None:
    budget = RateBudget(tmp_path, "small", 4, now=time.now, sleep=time.sleep)
    start_s = time.now_s
    pages = klines(
        BinanceClient(budget, budget, base_url=market.url), "BTCUSDT", "1m", START, START + 3000 * MINUTE, NOW
    )
    next(pages)
    next(pages)
    assert time.slept == []
    next(pages)
    assert 60 <= time.now_s - start_s <= 61


def test_threads_may_share_a_client(client: BinanceClient, market: MarketServer) -> None:
    def first_price(i: int) -> float:
        if i % 5 == 0:
            with pytest.raises(SourceRefused):
                page_at(client, "NOPEUSDT", "1m", START, START + HOUR, NOW)
        page = page_at(client, "BTCUSDT", "1m", START + i * HOUR, START + (i + 1) * HOUR, NOW)
        assert opens(page)[0] == START + i * HOUR
        return page.rows.column("open")[0].as_py()

    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(first_price, range(40)))
    assert together == [first_price(i) for i in range(40)]
    assert market.count(KLINES) == 2 * 48


def test_a_wrong_venue_or_address_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown venue 'krakatoa'; ccxt .* knows: .*kraken"):
        connect_venue("krakatoa", tmp_path)
    with pytest.raises(ValueError, match="must start with http"):
        connect_venue("binance", tmp_path, base_url="127.0.0.1:80")


def test_a_trailing_slash_of_the_address_does_not_matter(
    market: MarketServer, connect: Callable[..., BinanceClient]
) -> None:
    assert connect(f"{market.url}/").server_time() == NOW
    assert [request.path for request in market.requests] == ["/api/v3/time"]


def test_an_asset_receives_the_client_through_the_resource(market: MarketServer, tmp_path: Path) -> None:
    @dg.asset
    def watermark(exchange: ExchangeResource) -> str:
        return exchange.client().last_closed("1h").isoformat()

    exchange = ExchangeResource(base_url=market.url, budget_dir=str(tmp_path / "budgets"), timeout_s=5)
    result = dg.materialize(
        [watermark], resources={"exchange": exchange}, instance=dg.DagsterInstance.ephemeral()
    )
    assert result.output_for_node("watermark") == "2024-01-09T12:00:00"
    assert RateBudget(tmp_path / "budgets", "binance", 4800).used() == 1
