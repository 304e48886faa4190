"""The exchange client against the simulated market, and against scripted answers that no market gives."""

from __future__ import annotations

import gzip
import itertools
import json
import tarfile
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest

from crypto_assets.intervals import HOUR_MS, MINUTE_MS, from_ms, to_ms
from crypto_assets.resources.exchange import (
    KLINE_SCHEMA,
    SYMBOL_SCHEMA,
    ExchangeClient,
    ExchangeResource,
    KlinePage,
)
from crypto_assets.resources.sources import (
    RateBudget,
    RetryPolicy,
    SourceDataInvalid,
    SourceError,
    SourceRefused,
    SourceUnavailable,
)
from crypto_assets.simulation.bars import Bars
from crypto_assets.simulation.faults import Fault, status
from crypto_assets.simulation.recorded import RecordedWorld
from crypto_assets.simulation.recordings import load_recordings
from crypto_assets.simulation.server import MarketServer
from crypto_assets.simulation.synthetic import SyntheticWorld
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
def connect(budget: RateBudget, time: FakeTime) -> Callable[..., ExchangeClient]:
    def client(url: str, timeout_s: float = 5.0, attempts: int = 3) -> ExchangeClient:
        retry = RetryPolicy(attempts, sleep=time.sleep)
        return ExchangeClient(budget, base_url=url, timeout_s=timeout_s, retry=retry)

    return client


@pytest.fixture
def client(market: MarketServer, connect: Callable[..., ExchangeClient]) -> ExchangeClient:
    return connect(market.url)


def opens(page: KlinePage) -> list[datetime]:
    return page.rows.column("ts").to_pylist()


def raw_klines(market: MarketServer, query: str) -> list[list]:
    with urllib.request.urlopen(f"{market.url}{KLINES}?{query}") as response:
        return json.load(response)


# The clock of the exchange


def test_server_time_is_the_clock_of_the_exchange(client: ExchangeClient) -> None:
    assert client.server_time() == NOW


def test_the_watermark_is_the_end_of_the_last_closed_interval(
    client: ExchangeClient, market: MarketServer
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
    connect: Callable[..., ExchangeClient], payload: object
) -> None:
    with StubServer(json_of(payload)) as stub, pytest.raises(SourceDataInvalid, match="serverTime"):
        connect(stub.url).server_time()


# Markets


def test_symbols_are_the_listed_markets_with_their_rules(
    client: ExchangeClient, market: MarketServer, world: SyntheticWorld
) -> None:
    table = client.symbols()
    assert table.schema == SYMBOL_SCHEMA
    listed = {listing.symbol: listing for listing in world.markets(to_ms(NOW))}
    assert table.column("symbol").to_pylist() == list(listed)
    assert set(table.column("status").to_pylist()) == {"TRADING", "BREAK"}
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
    assert len(client.symbols()) < len(table)


@needs_recorded
@pytest.mark.parametrize(
    ("name", "n_markets", "n_trading"),
    [("spot-2018-02-10", 265, 265), ("spot-2020-10-09", 1089, 815), ("spot-2021-03-24", 1363, 1000)],
)
def test_recorded_market_lists_of_several_years_parse(
    connect: Callable[..., ExchangeClient], name: str, n_markets: int, n_trading: int
) -> None:
    body = gzip.decompress((RECORDED / "binance_wire" / "exchange_info" / f"{name}.json.gz").read_bytes())
    with StubServer(Reply(body)) as stub:
        rows = connect(stub.url).symbols().to_pylist()
    assert len(rows) == n_markets
    assert sum(row["status"] == "TRADING" for row in rows) == n_trading
    recorded = json.loads(body)["symbols"]
    # The field came after 2018: before, the permission is unknown.
    assert [row["spot_allowed"] for row in rows] == [raw.get("isSpotTradingAllowed") for raw in recorded]
    old = name.startswith("spot-2018")
    assert [row for row in rows if row["symbol"] == "ETH/BTC"] == [
        {
            "symbol": "ETH/BTC",
            "exchange_symbol": "ETHBTC",
            "base": "ETH",
            "quote": "BTC",
            "status": "TRADING",
            "spot_allowed": None if old else True,
            "tick_size": 1e-6,
            "lot_size": 1e-3,
            "min_notional": 1e-3 if old else 1e-4,
        }
    ]


def test_rules_in_today_s_spelling_parse_and_switched_off_rules_are_unknown(
    connect: Callable[..., ExchangeClient],
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
        rows = [connect(stub.url).symbols().to_pylist()[0] for _ in answers]
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
    connect: Callable[..., ExchangeClient], payload: object
) -> None:
    with StubServer(json_of(payload)) as stub, pytest.raises(SourceDataInvalid):
        connect(stub.url).symbols()


# Candles


def test_a_page_is_what_the_exchange_says_to_the_last_digit(
    client: ExchangeClient, market: MarketServer
) -> None:
    page = client.klines_page("BTCUSDT", "1m", START, START + 90 * MINUTE, NOW)
    raw = raw_klines(market, f"symbol=BTCUSDT&interval=1m&startTime={to_ms(START)}&limit=90")
    assert (page.rows.schema, page.off_grid.schema) == (KLINE_SCHEMA, KLINE_SCHEMA)
    assert (len(page.rows), len(page.off_grid), page.n_raw) == (90, 0, 90)
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
    client: ExchangeClient, market: MarketServer, interval: str, now: datetime
) -> None:
    market.clock.set(now)
    closed_before = client.server_time()
    start = max(START, now - timedelta(days=2))
    rows = [
        ts for page in client.klines("ETHUSDT", interval, start, END, closed_before) for ts in opens(page)
    ]
    watermark = client.last_closed(interval)
    length = {"1m": MINUTE, "15m": 15 * MINUTE, "1h": HOUR, "12h": 12 * HOUR}[interval]
    if watermark <= start:
        assert rows == []
    else:
        assert rows[-1] + length == watermark


def test_a_tick_keeps_to_its_own_time_when_the_clock_of_the_exchange_runs_on(
    client: ExchangeClient, market: MarketServer
) -> None:
    market.clock.set(NOW + HOUR)
    pages = list(client.klines("BTCUSDT", "1m", NOW - HOUR, END, NOW))
    assert [opens(page)[-1] for page in pages] == [at("2024-01-09T12:33")]
    assert pages[-1].covered_until == at("2024-01-09T12:34")


@pytest.mark.parametrize(
    ("n_minutes", "n_calls"), [(1, 1), (999, 1), (1000, 1), (1001, 2), (2000, 2), (2001, 3), (3500, 4)]
)
def test_a_range_costs_the_least_number_of_calls(
    client: ExchangeClient, market: MarketServer, n_minutes: int, n_calls: int
) -> None:
    end = START + n_minutes * MINUTE
    pages = list(client.klines("BTCUSDT", "1m", START, end, NOW))
    assert market.count(KLINES) == market.count() == n_calls
    assert [ts for page in pages for ts in opens(page)] == [START + i * MINUTE for i in range(n_minutes)]
    assert [page.covered_until for page in pages] == [
        min(START + 1000 * i * MINUTE, end) for i in range(1, n_calls + 1)
    ]


def test_a_range_up_to_the_watermark_needs_no_call_to_learn_that_it_ends(
    client: ExchangeClient, market: MarketServer
) -> None:
    start = at("2024-01-09T12:34") - 1000 * MINUTE
    (page,) = client.klines("BTCUSDT", "1m", start, END, NOW)
    assert (page.n_raw, page.covered_until, market.count()) == (1000, at("2024-01-09T12:34"), 1)


def test_nothing_is_asked_when_nothing_can_be_closed(client: ExchangeClient, market: MarketServer) -> None:
    for start in (at("2024-01-09T12:34"), at("2024-01-10")):
        (page,) = client.klines("BTCUSDT", "1m", start, END, NOW)
        assert (len(page.rows), page.n_raw, page.covered_until) == (0, 0, start)
    assert market.count() == 0


def test_an_answer_that_starts_late_or_has_a_hole_proves_the_hole(
    client: ExchangeClient, market: MarketServer, world: SyntheticWorld
) -> None:
    late = next(listing for listing in world.all_markets() if listing.first_ms > to_ms(START))
    first = from_ms(late.first_ms)
    (page,) = client.klines(late.exchange_symbol, "1h", START, first + 5 * HOUR, NOW)
    assert opens(page) == [first + i * HOUR for i in range(5)]
    assert page.covered_until == first + 5 * HOUR

    halt, resumption = (from_ms(moment) for moment in world.outage_ms)
    (page,) = client.klines("BTCUSDT", "1m", halt - HOUR, resumption + HOUR, NOW)
    assert max(b - a for a, b in itertools.pairwise(opens(page))) > HOUR
    assert page.covered_until == resumption + HOUR
    (page,) = client.klines("BTCUSDT", "1m", halt + 2 * MINUTE, resumption - 2 * MINUTE, NOW)
    assert (page.n_raw, page.covered_until) == (0, resumption - 2 * MINUTE)
    assert market.count() == 3


def test_a_cut_close_time_is_kept_as_the_exchange_says(client: ExchangeClient, world: SyntheticWorld) -> None:
    halt_ms = world.outage_ms[0]
    (page,) = client.klines("ETHUSDT", "1m", from_ms(halt_ms) - 5 * MINUTE, from_ms(halt_ms) + MINUTE, NOW)
    last = page.rows.to_pylist()[-1]
    assert last["close_time"] < last["ts"] + MINUTE - timedelta(milliseconds=1)


def test_impossible_questions_are_refused_before_they_are_sent(
    client: ExchangeClient, market: MarketServer
) -> None:
    for start, end, interval, limit in (
        (START, START, "1m", 10),
        (END, START, "1m", 10),
        (START, END, "7m", 10),
        (START, END, "1m", 0),
        (START, END, "1m", 1001),
    ):
        with pytest.raises(ValueError, match=r"empty range|unknown interval|limit"):
            client.klines_page("BTCUSDT", interval, start, end, NOW, limit)
    assert market.count() == 0


# Candles between the grid points


class HaltedWorld(SyntheticWorld):
    """An hourly market that leaves the grid for two days, as after the halt of February 2018.

    The first late candle opens inside the hour of the last one on the grid.
    """

    shift_ms = 28 * MINUTE_MS + 14_789 - HOUR_MS
    late = (to_ms(at("2024-01-03")), to_ms(at("2024-01-05")))

    def final_bars(self, symbol: str, interval: str, start_ms: int, end_ms: int) -> Bars:
        bars = super().final_bars(symbol, interval, start_ms, end_ms + HOUR_MS)
        opens_ms = bars.open_ms
        late = (opens_ms >= self.late[0]) & (opens_ms < self.late[1])
        shifted = np.where(late, opens_ms + self.shift_ms, opens_ms)
        return replace(bars, open_ms=shifted).between(start_ms, end_ms)


@pytest.fixture(scope="module")
def halted() -> HaltedWorld:
    return HaltedWorld(7, to_ms(START), to_ms(END), "1h", story_days=9)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 48, 1000])
def test_candles_off_the_grid_come_apart_and_none_is_lost_at_any_page_size(
    halted: HaltedWorld, connect: Callable[..., ExchangeClient], limit: int
) -> None:
    first, last = at("2024-01-02T12:00"), at("2024-01-05T12:00")
    with MarketServer(halted, NOW) as market:
        client = connect(market.url)
        pages: list[KlinePage] = []
        resume: datetime | None = first
        while resume is not None:
            pages.append(client.klines_page("BTCUSDT", "1h", resume, last, NOW, limit))
            resume = pages[-1].resume_at
        assert market.count() == -(-72 // limit)
    on_grid = pa.concat_tables([page.rows for page in pages]).column("ts").to_pylist()
    off_grid = pa.concat_tables([page.off_grid for page in pages]).column("ts").to_pylist()
    assert on_grid == [first + i * HOUR for i in range(12)] + [last - i * HOUR for i in range(12, 0, -1)]
    shift = timedelta(milliseconds=halted.shift_ms)
    assert off_grid == [from_ms(halted.late[0]) + i * HOUR + shift for i in range(48)]
    assert sum(page.n_raw for page in pages) == 72
    assert pages[-1].covered_until == last


def test_an_open_candle_off_the_grid_is_left_for_the_next_time(
    halted: HaltedWorld, connect: Callable[..., ExchangeClient]
) -> None:
    now = at("2024-01-04T12:10")
    with MarketServer(halted, now) as market:
        page = connect(market.url).klines_page("BTCUSDT", "1h", at("2024-01-04T09:00"), END, now)
    # The candle of 11:28:14.789 is open at 12:10, although the hour from 11:00 is over.
    assert (len(page.rows), page.n_raw) == (0, 3)
    assert page.off_grid.column("ts").to_pylist()[-1] < at("2024-01-04T11:00")
    assert page.covered_until == at("2024-01-04T11:00")


# Recorded pages


@needs_recorded
def test_recorded_pages_of_the_exchange_pass_and_add_up(connect: Callable[..., ExchangeClient]) -> None:
    archive = RECORDED / "spot_wire_static_klines" / "dev" / "BTCUSDT-1h.tar.gz"
    with tarfile.open(archive) as pages:
        bodies = [content.read() for member in pages if (content := pages.extractfile(member))]
    for body in bodies[:6]:
        raw = json.loads(body)
        start, end = from_ms(raw[0][0]), from_ms(raw[-1][0]) + HOUR
        with StubServer(Reply(body)) as stub:
            page = connect(stub.url).klines_page("BTCUSDT", "1h", start, end, end)
        assert (len(page.rows), len(page.off_grid)) == (len(raw), 0)
        for name, position in (("volume_base", 5), ("volume_quote", 7), ("taker_buy_quote", 10)):
            assert sum(page.rows.column(name).to_pylist()) == sum(Decimal(row[position]) for row in raw)


@needs_recorded
def test_the_recorded_candles_off_the_grid_of_2018_come_apart_in_the_least_number_of_calls(
    connect: Callable[..., ExchangeClient],
) -> None:
    recordings = load_recordings(RECORDED, klines=["spot_1h_btc_longrun/*.csv.gz"])
    start, end = at("2018-02-01"), at("2018-06-01")
    with MarketServer(RecordedWorld(recordings), at("2020-12-01")) as market:
        pages = list(connect(market.url).klines("BTCUSDT", "1h", start, end, at("2020-12-01")))
        assert market.count(KLINES) == len(pages) == 3
    off_grid = pa.concat_tables([page.off_grid for page in pages]).column("ts").to_pylist()
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


def ask(stub: StubServer, connect: Callable[..., ExchangeClient], limit: int = 5) -> KlinePage:
    return connect(stub.url).klines_page("BTCUSDT", "1m", START, START + 5 * MINUTE, NOW, limit)


def test_the_scripted_candle_is_sound_so_that_each_change_below_is_what_is_wrong(
    connect: Callable[..., ExchangeClient],
) -> None:
    with StubServer(json_of([candle(), candle(1), candle(4)])) as stub:
        assert opens(ask(stub, connect)) == [START, START + MINUTE, START + 4 * MINUTE]


def test_columns_seven_to_ten_may_be_unknown(connect: Callable[..., ExchangeClient]) -> None:
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
        ([candle(ts=float(to_ms(START)))], "open time must be an integer"),
        ([candle(ts=str(to_ms(START)))], "open time must be an integer"),
        ([candle(ts=None)], "open time must be an integer"),
        ([candle(ts=True)], "open time must be an integer"),
        ([candle(ts=2**63)], "64 bits"),
        ([candle(close_time=None)], "close time must be an integer"),
        ([candle(1), candle(1)], "must increase"),
        ([candle(0), candle(2), candle(1)], r"must increase.*row 2"),
        ([candle(-1), candle(0)], "leave the asked range"),
        ([candle(4), candle(5)], "leave the asked range"),
        ([candle(i) for i in range(4)], "at most 3"),
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
        ([candle(close=None)], "close is null"),
        ([candle(close=11.0)], "close must be a decimal string"),
        ([candle(volume=None)], "volume_base is null"),
        ([candle(volume=5)], "volume_base must be a decimal string"),
        ([candle(volume="5.123456789")], "volume_base does not parse"),
        ([candle(volume="nan")], "volume_base does not parse"),
        ([candle(), candle(1, volume="-0.00000001")], r"volume_base must not be negative, but row 1"),
        ([candle(quote="-1.0")], "volume_quote must not be negative"),
        ([candle(taker="-1.0")], "taker_buy_base must not be negative"),
        ([candle(taker_quote="x")], "taker_buy_quote does not parse"),
        ([candle(n="3")], "number of trades must be an integer"),
        ([candle(quote=None), candle(1, n=-3)], r"n_trades must not be negative, but row 1"),
    ],
)
def test_a_candle_that_breaks_the_promise_makes_the_whole_page_invalid(
    connect: Callable[..., ExchangeClient], payload: object, complaint: str
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
    client: ExchangeClient, market: MarketServer, fault: Fault, kind: type[SourceError], n_requests: int
) -> None:
    market.inject(KLINES, fault, times=9)
    with pytest.raises(SourceError) as caught:
        list(client.klines("BTCUSDT", "1m", START, START + HOUR, NOW))
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
    client: ExchangeClient, market: MarketServer, fault: Fault
) -> None:
    market.inject(KLINES, fault, after=1)
    pages = list(client.klines("BTCUSDT", "1m", START, START + 2500 * MINUTE, NOW))
    assert [ts for page in pages for ts in opens(page)] == [START + i * MINUTE for i in range(2500)]
    assert market.count(KLINES) == 4


def test_earlier_pages_stay_when_a_later_one_fails(client: ExchangeClient, market: MarketServer) -> None:
    market.inject(KLINES, status(451), after=2)
    pages = client.klines("BTCUSDT", "1m", START, START + 2500 * MINUTE, NOW)
    assert [next(pages).n_raw, next(pages).n_raw] == [1000, 1000]
    with pytest.raises(SourceRefused, match="location"):
        next(pages)


def test_an_exchange_that_does_not_answer_in_time_is_unavailable(
    market: MarketServer, connect: Callable[..., ExchangeClient]
) -> None:
    market.inject(KLINES, "hang", times=2)
    client = connect(market.url, timeout_s=0.05, attempts=2)
    with pytest.raises(SourceUnavailable, match="no response"):
        client.klines_page("BTCUSDT", "1m", START, END, NOW)
    assert market.count(KLINES) == 2


def test_an_attempt_without_a_response_is_not_told_by_the_status_of_the_one_before(
    market: MarketServer, connect: Callable[..., ExchangeClient]
) -> None:
    market.inject(KLINES, status(503))
    market.inject(KLINES, "reset")
    with pytest.raises(SourceUnavailable, match="attempt 2 of 2: no response"):
        connect(market.url, attempts=2).klines_page("BTCUSDT", "1m", START, END, NOW)


def test_retry_after_is_honoured(client: ExchangeClient, market: MarketServer, time: FakeTime) -> None:
    start_s = time.now_s
    market.inject(KLINES, status(429, retry_after=37))
    assert client.klines_page("BTCUSDT", "1m", START, START + HOUR, NOW).n_raw == 60
    assert market.count(KLINES) == 2
    assert time.now_s == pytest.approx(start_s + 37)


def test_after_a_ban_no_client_of_the_budget_sends_anything(
    client: ExchangeClient, market: MarketServer, connect: Callable[..., ExchangeClient], time: FakeTime
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
    client: ExchangeClient, market: MarketServer
) -> None:
    with pytest.raises(SourceRefused, match=r"symbol=NOPEUSDT.*HTTP 400.*Invalid symbol"):
        client.klines_page("NOPEUSDT", "1m", START, END, NOW)
    assert market.count() == 1


def test_an_error_that_comes_with_status_200_is_no_empty_answer(
    connect: Callable[..., ExchangeClient],
) -> None:
    with StubServer(json_of({"code": -1121, "msg": "Invalid symbol."})) as stub, pytest.raises(SourceRefused):
        ask(stub, connect)


def test_an_address_where_nobody_listens_is_unavailable(
    connect: Callable[..., ExchangeClient], world: SyntheticWorld
) -> None:
    with MarketServer(world, NOW) as market:
        url = market.url
    with pytest.raises(SourceUnavailable, match=r"attempt 3 of 3: no response .*refused"):
        connect(url).server_time()


def test_a_redirect_to_another_host_is_not_followed(
    market: MarketServer, connect: Callable[..., ExchangeClient]
) -> None:
    moved = Reply(b"", 302, {"Location": f"{market.url}/api/v3/time"})
    with StubServer(moved) as stub, pytest.raises(SourceRefused, match="HTTP 302"):
        connect(stub.url).server_time()
    assert market.count() == 0


# Budget, threads, settings


def test_the_weights_are_those_that_the_exchange_counts(
    market: MarketServer, connect: Callable[..., ExchangeClient], budget: RateBudget
) -> None:
    def ask_everything(client: ExchangeClient) -> None:
        client.server_time()
        client.symbols()
        client.klines_page("BTCUSDT", "1m", START, START + HOUR, NOW)

    # The stub sends no used weight, so that only ours is counted.
    with StubServer(json_of({"serverTime": 1}), json_of({"symbols": []}), json_of([])) as stub:
        ask_everything(connect(stub.url))
    ours = budget.used()
    ask_everything(connect(market.url))
    with urllib.request.urlopen(f"{market.url}/api/v3/time") as response:
        assert int(response.headers["X-MBX-USED-WEIGHT-1M"]) == ours + 1 == 1 + 20 + 2 + 1


def test_what_others_spend_behind_the_same_address_is_read_back(
    client: ExchangeClient, market: MarketServer, budget: RateBudget
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
    pages = ExchangeClient(budget, base_url=market.url).klines(
        "BTCUSDT", "1m", START, START + 3000 * MINUTE, NOW
    )
    next(pages)
    next(pages)
    assert time.slept == []
    next(pages)
    assert 60 <= time.now_s - start_s <= 61


def test_threads_may_share_a_client(client: ExchangeClient, market: MarketServer) -> None:
    def first_price(i: int) -> float:
        if i % 5 == 0:
            with pytest.raises(SourceRefused):
                client.klines_page("NOPEUSDT", "1m", START, START + HOUR, NOW)
        page = client.klines_page("BTCUSDT", "1m", START + i * HOUR, START + (i + 1) * HOUR, NOW)
        assert opens(page)[0] == START + i * HOUR
        return page.rows.column("open")[0].as_py()

    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(first_price, range(40)))
    assert together == [first_price(i) for i in range(40)]
    assert market.count(KLINES) == 2 * 48


def test_a_wrong_venue_or_address_is_told_at_once(budget: RateBudget) -> None:
    with pytest.raises(ValueError, match="unknown venue 'kraken'; known: binance"):
        ExchangeClient(budget, venue="kraken")
    with pytest.raises(ValueError, match="must start with http"):
        ExchangeClient(budget, base_url="127.0.0.1:80")


def test_a_trailing_slash_of_the_address_does_not_matter(
    market: MarketServer, connect: Callable[..., ExchangeClient]
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
