"""Other venues through ccxt: Bybit's wire shape from the simulated market, and scripted answers of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import ccxt
import numpy as np
import pytest

from crypto_assets.intervals import HOUR_MS, from_ms, to_ms
from crypto_assets.resources.exchange import (
    MARKET_SCHEMA,
    Exchange,
    ExchangeResource,
    Market,
    UnifiedClient,
    connect,
)
from crypto_assets.resources.exchange import unified as unified_module
from crypto_assets.resources.sources import (
    RateBudget,
    RetryPolicy,
    SourceDataInvalid,
    SourceError,
    SourceRefused,
    SourceUnavailable,
)
from crypto_assets.simulation.faults import Fault, status
from crypto_assets.simulation.server import MarketServer
from crypto_assets.simulation.synthetic import SyntheticWorld
from crypto_assets_tests.resources.stub_server import Reply, StubServer, json_of
from crypto_assets_tests.resources.test_sources import FakeTime

at = datetime.fromisoformat

START = at("2024-01-01")
END = at("2024-01-11")
NOW = at("2024-01-09T12:34:56.789000")
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
BITCOIN = Market("BTC/USDT", "BTCUSDT")
PERPETUAL = Market("BTC/USDT:USDT", "BTCUSDT", "perpetual")
KLINE = "/bybit/v5/market/kline"

Connect = Callable[..., UnifiedClient]


@pytest.fixture(scope="module")
def world() -> SyntheticWorld:
    return SyntheticWorld(7, to_ms(START), to_ms(END), "1m", story_days=9)


@pytest.fixture
def market(world: SyntheticWorld) -> Iterator[MarketServer]:
    with MarketServer(world, NOW, real_seconds=lambda: 0.0) as server:
        yield server


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def open_client(tmp_path: Path, time: FakeTime) -> Connect:
    def client(url: str, venue: str = "bybit") -> UnifiedClient:
        budget = RateBudget(tmp_path, venue, 3000, now=time.now, sleep=time.sleep)
        return UnifiedClient(venue, budget, base_url=url, timeout_s=5, retry=RetryPolicy(3, sleep=time.sleep))

    return client


@pytest.fixture
def client(market: MarketServer, open_client: Connect) -> UnifiedClient:
    return open_client(market.bybit_url)


# Against the simulated market


def test_clock_watermark_and_markets_come_through_the_unified_methods(
    client: UnifiedClient, market: MarketServer, world: SyntheticWorld
) -> None:
    assert client.server_time() == NOW.replace(microsecond=0) or client.server_time() == NOW
    assert client.last_closed("1h") == at("2024-01-09T12:00")
    table = client.markets()
    assert table.schema == MARKET_SCHEMA
    trading = {one.symbol: one for one in world.markets(to_ms(NOW)) if world.is_trading(one, to_ms(NOW))}
    rows = {row["symbol"]: row for row in table.to_pylist()}
    assert rows.keys() == trading.keys()
    for symbol, row in rows.items():
        assert row["exchange_symbol"] == trading[symbol].exchange_symbol
        assert (row["market_type"], row["trading_status"]) == ("spot", "TRADING")
        assert (row["tick_size"], row["lot_size"]) == (trading[symbol].tick / 1e8, trading[symbol].lot / 1e8)
        assert row["min_notional"] == trading[symbol].min_notional / 1e8
        for unknown in ("settle", "contract_type", "permissions", "spot_allowed", "listed_at", "delivery_at"):
            assert row[unknown] is None
    assert client.markets(["perpetual"]).num_rows == 0


@pytest.mark.parametrize(("n_minutes", "n_pages"), [(1, 1), (1000, 1), (1001, 2), (2500, 3)])
def test_candles_of_a_venue_that_answers_newest_first_come_whole_in_the_least_number_of_requests(
    client: UnifiedClient, market: MarketServer, world: SyntheticWorld, n_minutes: int, n_pages: int
) -> None:
    start, end = START + HOUR, START + HOUR + n_minutes * MINUTE
    pages = list(client.klines(BITCOIN, "trade", "1m", start, end, NOW))
    truth = world.final_bars("BTC/USDT", "1m", to_ms(start), to_ms(end))
    assert [ts for page in pages for ts in page.rows["ts"].to_pylist()] == [
        from_ms(ms) for ms in truth.open_ms.tolist()
    ]
    volumes = [int(volume * 10**8) for page in pages for volume in page.rows["volume_base"].to_pylist()]
    assert volumes == truth.values[4].tolist()
    assert [page.covered_until for page in pages][-1] == end
    assert all(page.covered_from is None for page in pages)
    assert market.count(KLINE) == len(pages) == n_pages
    for name in ("volume_quote", "taker_buy_base", "taker_buy_quote", "n_trades", "close_time"):
        assert pages[0].rows[name].null_count == pages[0].rows.num_rows


def test_the_open_candle_is_not_asked_for(client: UnifiedClient, market: MarketServer) -> None:
    (page,) = client.klines(BITCOIN, "trade", "1h", NOW - 5 * HOUR, END, NOW)
    assert page.rows["ts"].to_pylist() == [at("2024-01-09T08:00") + i * HOUR for i in range(4)]
    assert page.covered_until == at("2024-01-09T12:00")
    market_calls = market.count()
    (page,) = client.klines(BITCOIN, "trade", "1h", at("2024-01-09T12:00"), END, NOW)
    assert (page.n_raw, page.covered_until, market.count()) == (0, at("2024-01-09T12:00"), market_calls)


def test_a_book_and_the_turnover_come_with_what_the_venue_tells(client: UnifiedClient) -> None:
    book = client.order_book(BITCOIN, 7)
    assert book.bids.shape == book.asks.shape == (7, 2)
    assert (np.diff(book.asks[:, 0]) > 0).all()
    assert (np.diff(book.bids[:, 0]) < 0).all()
    assert book.exchange_time == NOW
    table = client.turnover_24h()
    assert set(table["symbol"].to_pylist()) == set(client.markets()["symbol"].to_pylist())
    assert table["turnover_24h_quote"].null_count == 0


def test_what_the_venue_lacks_is_refused_before_anything_is_sent(
    client: UnifiedClient, market: MarketServer
) -> None:
    asked: list[Callable[[], object]] = [
        lambda: next(client.klines(BITCOIN, "mark", "1m", START, END, NOW)),
        lambda: next(client.klines(BITCOIN, "trade", "8h", START, END, NOW)),
        lambda: next(client.funding_rates(BITCOIN, START, END, NOW)),
        lambda: next(client.open_interest(BITCOIN, "1h", START, END, NOW)),
    ]
    for ask in asked:
        with pytest.raises(SourceRefused, match="does not offer"):
            ask()
    assert market.count() == 0


def test_every_request_passes_the_budget_also_those_that_ccxt_sends_by_itself(
    client: UnifiedClient, market: MarketServer
) -> None:
    list(client.klines(BITCOIN, "trade", "1m", START, START + HOUR, NOW))
    assert [request.path for request in market.requests] == ["/bybit/v5/market/instruments-info", KLINE]
    assert client.budget().used() == 2


@pytest.mark.parametrize(
    ("fault", "kind", "n_requests"),
    [
        (Fault("html_200"), SourceDataInvalid, 3),
        (Fault("truncated_json"), SourceDataInvalid, 3),
        (Fault("empty_200"), SourceDataInvalid, 3),
        (Fault("short_body"), SourceUnavailable, 3),
        (Fault("reset"), SourceUnavailable, 3),
        (status(503), SourceUnavailable, 3),
        (status(429, 2), SourceUnavailable, 3),
        (status(403), SourceRefused, 1),
        (status(418, 120), SourceRefused, 1),
    ],
    ids=str,
)
def test_each_fault_is_told_by_what_the_caller_must_do(
    client: UnifiedClient, market: MarketServer, fault: Fault, kind: type[SourceError], n_requests: int
) -> None:
    market.inject(KLINE, fault, times=9)
    with pytest.raises(SourceError) as caught:
        list(client.klines(BITCOIN, "trade", "1m", START, START + HOUR, NOW))
    assert type(caught.value) is kind
    assert market.count(KLINE) == n_requests
    assert str(caught.value).startswith("bybit GET /bybit/v5/market/kline?symbol=BTCUSDT")


def test_threads_may_share_a_client_that_has_not_loaded_its_markets(
    client: UnifiedClient, market: MarketServer
) -> None:
    def first_open(i: int) -> datetime:
        (page,) = client.klines(BITCOIN, "trade", "1m", START + i * HOUR, START + (i + 1) * HOUR, NOW)
        return page.rows["ts"][0].as_py()

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(first_open, range(24))) == [START + i * HOUR for i in range(24)]
    assert market.count("/bybit/v5/market/instruments-info") == 1


def test_the_history_of_a_market_that_the_venue_no_longer_names_is_still_asked_for(
    client: UnifiedClient, market: MarketServer
) -> None:
    gone = Market("GONE/USDT", "GONEUSDT")
    with pytest.raises(SourceRefused, match=r"symbol=GONEUSDT.*Symbol Invalid") as caught:
        list(client.klines(gone, "trade", "1m", START, START + HOUR, NOW))
    assert market.count(KLINE) == 1
    assert caught.value.concerns_one_series


def test_the_resource_builds_the_client_of_its_venue(market: MarketServer, tmp_path: Path) -> None:
    resource = ExchangeResource(
        venue="bybit", base_url=market.bybit_url, budget_dir=str(tmp_path), timeout_s=5
    )
    client: Exchange = resource.client()
    assert client.venue == "bybit"
    assert client.last_closed("1h") == at("2024-01-09T12:00")
    assert (client.page_rows(), client.request_weight("klines")) == (1000, 1)
    # ccxt allows one request in 20 ms.
    assert (client.budget().per_minute, client.budget().per_second) == (3000, 50)


def test_live_hosts_are_those_of_ccxt(tmp_path: Path) -> None:
    client = connect("bybit", tmp_path)
    assert isinstance(client, UnifiedClient)
    assert client._api.urls["api"]["public"] == "https://api.{hostname}"


# Scripted answers

INSTRUMENT = {
    "symbol": "BTCUSDT",
    "baseCoin": "BTC",
    "quoteCoin": "USDT",
    "status": "Trading",
    "marginTrading": "none",
    "lotSizeFilter": {"basePrecision": "0.000001", "quotePrecision": "0.00000001", "minOrderAmt": "1"},
    "priceFilter": {"tickSize": "0.01"},
}


def envelope(result: object, code: int = 0, message: str = "OK") -> Reply:
    return json_of(
        {"retCode": code, "retMsg": message, "result": result, "retExtInfo": {}, "time": to_ms(NOW)}
    )


MARKETS = envelope({"category": "spot", "list": [INSTRUMENT]})


def hours(*numbers: float, **changes: str) -> Reply:
    names = ("ts", "open", "high", "low", "close", "volume", "turnover")
    rows = []
    for number in numbers:
        values = [str(to_ms(START) + int(number * HOUR_MS)), "10.5", "12", "9", "11", "5.12345678", "55"]
        rows.append(list({**dict(zip(names, values, strict=True)), **changes}.values()))
    return envelope({"symbol": "BTCUSDT", "category": "spot", "list": rows[::-1]})


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (hours(0, high="10"), "low <= open"),
        (hours(0, open="0"), "low <= open|missing"),
        (hours(0, open=""), "missing|parse"),
        (hours(0, volume="-1"), "negative"),
        (hours(0, volume="5.123456789"), "parse"),
    ],
)
def test_candles_that_break_the_promise_are_invalid(
    open_client: Connect, reply: Reply, complaint: str
) -> None:
    with StubServer(MARKETS, reply) as stub, pytest.raises(SourceDataInvalid, match=complaint):
        list(open_client(stub.url).klines(BITCOIN, "trade", "1h", START, START + 3 * HOUR, NOW))


def test_rows_that_come_twice_or_off_the_grid_are_set_aside_and_rows_beyond_the_window_left_out(
    open_client: Connect,
) -> None:
    with StubServer(MARKETS, hours(0, 1, 1, 1.5, 2, 3)) as stub:
        (page,) = open_client(stub.url).klines(BITCOIN, "trade", "1h", START, START + 3 * HOUR, NOW)
    assert page.rows["ts"].to_pylist() == [START + i * HOUR for i in range(3)]
    assert page.set_aside["reason"].to_pylist() == ["duplicate", "off_grid"]


def test_an_error_in_the_words_of_the_venue_is_refused_and_too_many_visits_are_waited_out(
    open_client: Connect,
) -> None:
    busy, unknown = (
        envelope({}, 10006, "Too many visits!"),
        envelope({}, 10001, "params error: Symbol Invalid"),
    )
    with StubServer(MARKETS, busy, hours(0), unknown) as stub:
        client = open_client(stub.url)
        (page,) = client.klines(BITCOIN, "trade", "1h", START, START + HOUR, NOW)
        assert page.n_raw == 1
        with pytest.raises(SourceRefused, match="Symbol Invalid"):
            list(client.klines(BITCOIN, "trade", "1h", START, START + HOUR, NOW))


def test_an_answer_with_candles_proves_its_window_and_the_empty_ones_before_of_a_venue_that_keeps_all(
    open_client: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UnifiedClient, "page_rows", lambda *_: 4)
    with StubServer(MARKETS, hours(), hours(5), hours(), envelope({})) as stub:
        pages = list(open_client(stub.url).klines(BITCOIN, "trade", "1h", START, START + 16 * HOUR, NOW))
    # An answer without a list reads as empty in ccxt; it proves as little as an empty one.
    assert [page.covered_until for page in pages] == [START, *[START + 8 * HOUR] * 3]
    assert {page.covered_from for page in pages} == {None}


def test_an_answer_that_rows_from_elsewhere_have_filled_is_asked_for_again_in_halves(
    open_client: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UnifiedClient, "page_rows", lambda *_: 4)
    with StubServer(MARKETS, hours(0, 0, 1, 1.5), hours(0, 0, 1, 1.5), hours(2, 3)) as stub:
        pages = list(open_client(stub.url).klines(BITCOIN, "trade", "1h", START, START + 4 * HOUR, NOW))
        assert len(stub.received) == 4
    assert [ts for page in pages for ts in page.rows["ts"].to_pylist()] == [
        START + i * HOUR for i in range(4)
    ]
    assert [row for page in pages for row in page.set_aside["reason"].to_pylist()] == [
        "duplicate",
        "off_grid",
    ]


def test_of_a_venue_that_may_forget_only_what_lies_between_two_candles_is_proven(
    open_client: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unified_module, "KEEP_ALL_CANDLES", frozenset())
    monkeypatch.setattr(UnifiedClient, "page_rows", lambda *_: 4)
    start, end = START + HOUR, START + 15 * HOUR
    # Windows of four hours, the first one from an hour before the start.
    replies = [hours(), hours(5, 7), hours(), hours(13)]
    with StubServer(MARKETS, *replies) as stub:
        pages = list(open_client(stub.url).klines(BITCOIN, "trade", "1h", start, end, NOW))
        assert [int(request.query["start"]) for request in stub.received[1:]] == [
            to_ms(START + i * HOUR) for i in (0, 4, 8, 12)
        ]
    proven, until = [], start
    for page in pages:
        proven.append((page.covered_from or until, page.covered_until))
        until = page.covered_until
    assert proven == [
        (start, start),
        (START + 5 * HOUR, START + 8 * HOUR),
        (START + 8 * HOUR, START + 8 * HOUR),
        (START + 8 * HOUR, START + 14 * HOUR),
    ]
    assert [page.resume_at is None for page in pages] == [False, False, False, True]


def test_a_candle_before_the_start_connects_an_answer_with_what_was_stored(
    open_client: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unified_module, "KEEP_ALL_CANDLES", frozenset())
    start, end = START + HOUR, START + 6 * HOUR
    with StubServer(MARKETS, hours(0, 3)) as stub:
        (page,) = open_client(stub.url).klines(BITCOIN, "trade", "1h", start, end, NOW)
    assert page.rows["ts"].to_pylist() == [START + 3 * HOUR]
    assert (page.covered_from, page.covered_until) == (None, START + 4 * HOUR)


def settlement(hour: int) -> dict[str, str]:
    return {
        "symbol": "BTCUSDT",
        "fundingRate": "0.0001",
        "fundingRateTimestamp": str(to_ms(START) + hour * HOUR_MS),
    }


def test_funding_and_open_interest_prove_what_lies_between_their_samples(open_client: Connect) -> None:
    funding = envelope({"category": "linear", "list": [settlement(16), settlement(8)]})
    samples = [
        {"openInterest": "461134384.0", "timestamp": str(to_ms(START) + hour * HOUR_MS)} for hour in (3, 2, 1)
    ]
    interest = envelope({"symbol": "BTCUSDT", "category": "linear", "list": samples})
    with StubServer(MARKETS, funding, interest) as stub:
        client = open_client(stub.url)
        (page,) = client.funding_rates(PERPETUAL, START, START + DAY, NOW)
        assert page.rows["ts"].to_pylist() == [START + 8 * HOUR, START + 16 * HOUR]
        instant = timedelta(milliseconds=1)
        assert (page.covered_from, page.covered_until) == (START + 8 * HOUR, START + 16 * HOUR + instant)
        assert page.rows["mark_price"].null_count == 2
        (page,) = client.open_interest(PERPETUAL, "1h", START, START + 5 * HOUR, NOW)
        assert page.rows["ts"].to_pylist() == [START + i * HOUR for i in (1, 2, 3)]
        assert page.covered_from == START + HOUR
        assert [request.query["category"] for request in stub.received[1:]] == ["linear", "linear"]


def test_a_venue_without_a_clock_is_read_by_its_date_header(open_client: Connect) -> None:
    listed = json_of(
        [{"name": "BTC/USD", "url_symbol": "btcusd", "base_decimals": 8, "counter_decimals": 2}],
        Date="Tue, 09 Jan 2024 12:34:56 GMT",
    )
    with StubServer(listed) as stub:
        assert open_client(stub.url, "bitstamp").server_time() == at("2024-01-09T12:34:56")
    with StubServer(Reply(listed.body)) as stub, pytest.raises(SourceDataInvalid, match="Date header"):
        open_client(stub.url, "bitstamp").server_time()


# Every exchange of ccxt


def addresses(urls: object) -> Iterator[str]:
    if isinstance(urls, str):
        yield urls
    if isinstance(urls, dict):
        for inner in urls.values():
            yield from addresses(inner)


def test_every_exchange_of_ccxt_can_be_moved_to_another_address_and_says_what_it_offers(
    tmp_path: Path,
) -> None:
    n_checked = 0
    for venue in ccxt.exchanges:
        budget = RateBudget(tmp_path, venue, 100)
        client = UnifiedClient(venue, budget, base_url="http://127.0.0.1:9/moved/")
        moved = list(addresses(client._api.urls["api"]))
        assert moved, venue
        assert all(url.startswith("http://127.0.0.1:9/moved") and not url.endswith("/") for url in moved), (
            venue
        )
        assert client.page_rows() >= 1
        assert client.page_rows("perpetual", "funding_rates") >= 1
        assert isinstance(client.offers("klines"), bool)
        assert "1w" not in client.intervals
        n_checked += 1
    assert n_checked > 100
