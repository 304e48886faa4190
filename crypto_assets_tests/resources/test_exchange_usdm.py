"""Binance beyond spot candles: contracts, mark price and premium, funding, open interest, order books, turnover."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import ccxt
import numpy as np
import pytest

from crypto_assets.intervals import DAY_MS, MINUTE_MS, from_ms, to_ms
from crypto_assets.resources.exchange import (
    FUNDING_SCHEMA,
    MARKET_SCHEMA,
    OPEN_INTEREST_SCHEMA,
    BinanceClient,
    Market,
    MarketType,
    Question,
)
from crypto_assets.resources.exchange.binance import _lightest_limit
from crypto_assets.resources.klines import KlineKind
from crypto_assets.resources.sources import RateBudget, RetryPolicy, SourceDataInvalid, SourceRefused
from crypto_assets.simulation.faults import status
from crypto_assets.simulation.server import MarketServer
from crypto_assets.simulation.synthetic import SyntheticWorld
from crypto_assets_tests.recorded import RECORDED, needs_recorded
from crypto_assets_tests.resources.stub_server import Reply, StubServer, json_of
from crypto_assets_tests.resources.test_sources import FakeTime

at = datetime.fromisoformat

START = at("2024-01-01")
END = at("2024-01-11")
NOW = at("2024-01-09T12:34:56.789000")
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
PERPETUAL = Market("BTC/USDT:USDT", "BTCUSDT", "perpetual")
SPOT = Market("BTC/USDT", "BTCUSDT")


@pytest.fixture(scope="module")
def world() -> SyntheticWorld:
    return SyntheticWorld(7, to_ms(START), to_ms(END), "1m", story_days=9)


@pytest.fixture
def market(world: SyntheticWorld) -> Iterator[MarketServer]:
    with MarketServer(world, NOW, real_seconds=lambda: 0.0) as server:
        yield server


@pytest.fixture
def connect(tmp_path: Path) -> Callable[[str], BinanceClient]:
    time = FakeTime()

    def client(url: str) -> BinanceClient:
        budgets = [
            RateBudget(tmp_path, name, per_minute, now=time.now, sleep=time.sleep)
            for name, per_minute in (("binance", 6000), ("binance-usdm", 2400))
        ]
        return BinanceClient(*budgets, base_url=url, retry=RetryPolicy(2, sleep=time.sleep))

    return client


@pytest.fixture
def client(market: MarketServer, connect: Callable[[str], BinanceClient]) -> BinanceClient:
    return connect(market.url)


# Markets


def test_spot_and_contracts_stand_in_one_table_with_the_symbols_of_ccxt(
    client: BinanceClient, market: MarketServer, world: SyntheticWorld
) -> None:
    table = client.markets()
    assert table.schema == MARKET_SCHEMA
    rows = {row["symbol"]: row for row in table.to_pylist()}
    expected = [*world.markets(to_ms(NOW)), *world.contracts(to_ms(NOW))]
    assert list(rows) == [one.symbol for one in expected]
    assert {row["market_type"] for row in rows.values()} == {"spot", "perpetual", "delivery"}
    for one in expected:
        row = rows[one.symbol]
        assert (row["exchange_symbol"], row["market_type"]) == (one.exchange_symbol, one.market_type)
        if one.market_type == "spot":
            assert (row["settle"], row["contract_type"], row["listed_at"]) == (None, None, None)
        else:
            assert row["settle"] == "USDT"
            assert row["listed_at"] == from_ms(one.onboard_ms)
            assert row["tick_size"] == one.tick / 1e8
            assert row["min_notional"] == one.min_notional / 1e8
    assert [request.path for request in market.requests] == ["/api/v3/exchangeInfo", "/fapi/v1/exchangeInfo"]
    assert set(client.markets(["delivery"])["market_type"].to_pylist()) <= {"perpetual", "delivery"}
    assert market.requests[-1].path == "/fapi/v1/exchangeInfo"


def exchange_info(name: str) -> bytes:
    return gzip.decompress((RECORDED / "binance_wire" / "exchange_info" / f"{name}.json.gz").read_bytes())


@needs_recorded
def test_the_recorded_contracts_of_2025_parse_with_their_zoo_of_statuses(
    connect: Callable[[str], BinanceClient],
) -> None:
    body = exchange_info("um-2025-11-26-maybe-testnet")
    with StubServer(Reply(body)) as stub:
        table = connect(stub.url).markets(["perpetual", "delivery"]).to_pandas().set_index("symbol")
    # 647 are named, two of them with the symbol IDOL/USDT:USDT: the one that trades is kept.
    assert len(table) == 646
    assert table.loc["IDOL/USDT:USDT", "exchange_symbol"] == "IDOLUSDT"
    assert set(table["trading_status"]) == {
        "TRADING",
        "PENDING_TRADING",
        "SETTLING",
        "DELIVERING",
        "PRE_SETTLE",
    }
    assert table["contract_type"].value_counts().to_dict() == {
        "PERPETUAL": 638,
        "CURRENT_QUARTER DELIVERING": 4,
        "CURRENT_QUARTER": 2,
        "NEXT_QUARTER": 2,
    }
    dated = table.loc["BTC/USDT:USDT-250627"]
    assert (dated["exchange_symbol"], dated["market_type"], dated["delivery_at"]) == (
        "BTCUSDT_250627",
        "delivery",
        at("2025-06-27T08:00"),
    )
    bitcoin = table.loc["BTC/USDT:USDT"]
    assert (bitcoin["tick_size"], bitcoin["lot_size"], bitcoin["min_notional"]) == (0.1, 0.001, 100.0)
    assert bitcoin["permissions"] == "COPY,GRID,RPI"
    assert bitcoin["listed_at"] == at("2019-09-25T08:00")
    # No end: the exchange writes the year 2100. A perpetual that was settled has one.
    assert bitcoin.isna()["delivery_at"]
    assert table.loc["EOS/USDT:USDT", "delivery_at"] == at("2025-05-21T08:00")


@needs_recorded
def test_every_recorded_contract_symbol_is_the_one_of_ccxt(connect: Callable[[str], BinanceClient]) -> None:
    body = exchange_info("um-2025-11-26-maybe-testnet")
    with StubServer(Reply(body)) as stub:
        ours = connect(stub.url).markets(["perpetual"])
    parsed: list[Any] = [ccxt.binance().parse_market(entry) for entry in json.loads(body)["symbols"]]
    theirs = {entry["id"]: entry["symbol"] for entry in parsed}
    named = dict(zip(ours["exchange_symbol"].to_pylist(), ours["symbol"].to_pylist(), strict=True))
    assert named == {native: theirs[native] for native in named}


# Candles


@pytest.mark.parametrize("kind", ["trade", "mark", "premium"])
def test_candles_of_each_kind_come_whole_from_their_own_endpoint(
    client: BinanceClient, market: MarketServer, world: SyntheticWorld, kind: KlineKind
) -> None:
    start, end = START + 12 * HOUR, START + 13 * HOUR
    (page,) = client.klines(PERPETUAL, kind, "1m", start, end, NOW)
    truth = world.final_bars(PERPETUAL.symbol, "1m", to_ms(start), to_ms(end), kind)
    assert page.rows["ts"].to_pylist() == [from_ms(ms) for ms in truth.open_ms.tolist()]
    assert np.array_equal(page.rows["close"].to_numpy(), truth.values[3] / 1e8)
    path = {"trade": "klines", "mark": "markPriceKlines", "premium": "premiumIndexKlines"}[kind]
    assert [request.path for request in market.requests] == [f"/fapi/v1/{path}"]
    for name in ("volume_base", "volume_quote", "taker_buy_base", "n_trades"):
        assert page.rows[name].null_count == (0 if kind == "trade" else 60)
    if kind == "premium":
        assert page.rows["low"].to_numpy().min() < 0


def test_spot_has_neither_mark_price_nor_premium_and_that_costs_no_request(
    client: BinanceClient, market: MarketServer
) -> None:
    for kind in ("mark", "premium"):
        assert not client.offers(kind, "spot")
        with pytest.raises(SourceRefused, match=f"{kind} candles of BTC/USDT.*not sent"):
            next(client.klines(SPOT, kind, "1m", START, END, NOW))
    with pytest.raises(SourceRefused, match="candles of 10m"):
        next(client.klines(SPOT, "trade", "10m", START, END, NOW))
    assert market.count() == 0


@functools.cache
def least_weight(n_missing: int, n_requests: int) -> float:
    if n_missing <= 0:
        return 0.0
    if n_requests == 0:
        return float("inf")
    return min(
        weight + least_weight(n_missing - rows, n_requests - 1)
        for rows, weight in ((99, 1), (499, 2), (1000, 5), (1500, 10))
    )


@pytest.mark.parametrize(
    "n_missing", [1, 99, 100, 499, 500, 1000, 1001, 1500, 1501, 1598, 1999, 2000, 2001, 2500]
)
@pytest.mark.parametrize("whole_pages", [0, 1, 2, 3])
def test_so_many_candles_take_the_fewest_requests_and_of_those_the_lightest(
    n_missing: int, whole_pages: int
) -> None:
    n_missing += 1500 * whole_pages
    weights, left = [], n_missing
    while left > 0:
        limit = _lightest_limit(left)
        weights.append({99: 1, 499: 2, 1000: 5, 1500: 10}[limit])
        left -= limit
    assert len(weights) == -(-n_missing // 1500)
    assert sum(weights) == least_weight(n_missing, len(weights))


@pytest.mark.parametrize(
    ("n_minutes", "limits", "weight"),
    [
        (60, [99], 1),
        (1440, [1500], 10),
        (1500, [1500], 10),
        (3000, [1500, 1500], 20),
        (3100, [1000, 1000, 1500], 20),
        (4500, [1500, 1500, 1500], 30),
    ],
)
def test_a_range_of_a_contract_costs_the_least_number_of_requests_and_the_weight_that_is_counted(
    client: BinanceClient, market: MarketServer, n_minutes: int, limits: list[int], weight: int
) -> None:
    start = START + DAY
    pages = list(client.klines(PERPETUAL, "trade", "1m", start, start + n_minutes * MINUTE, NOW))
    assert sum(page.n_raw for page in pages) == n_minutes
    assert [int(request.query["limit"]) for request in market.requests] == limits
    assert client.budget("perpetual").used() == weight
    assert client.budget("spot").used() == 0


def test_a_ban_at_one_part_of_the_exchange_leaves_the_other_usable(
    client: BinanceClient, market: MarketServer
) -> None:
    market.inject("/fapi", status(418))
    for _ in range(2):
        with pytest.raises(SourceRefused, match="ban"):
            next(client.klines(PERPETUAL, "trade", "1m", START, END, NOW))
    assert market.count("/fapi") == 1
    assert client.server_time() == NOW


# Funding


def test_funding_settlements_keep_their_jitter_and_get_their_schedule(
    client: BinanceClient, market: MarketServer, world: SyntheticWorld
) -> None:
    (page,) = client.funding_rates(PERPETUAL, START, START + 3 * DAY, NOW)
    truth = world.final_funding(PERPETUAL.symbol, to_ms(START), to_ms(START + 3 * DAY))
    assert page.rows.schema == FUNDING_SCHEMA
    assert page.rows["settled_at"].to_pylist() == [from_ms(ms) for ms in truth.settled_ms.tolist()]
    assert all(
        ts.minute == ts.second == ts.microsecond == 0 and ts.hour % 8 == 0
        for ts in page.rows["ts"].to_pylist()
    )
    assert page.rows["mark_price"].null_count == page.set_aside.num_rows == 0
    assert (page.covered_from, page.covered_until, market.count()) == (START, START + 3 * DAY, 1)


def settlement(settled_ms: int, rate: str = "0.0001") -> dict[str, object]:
    return {"symbol": "BTCUSDT", "fundingTime": settled_ms, "fundingRate": rate, "markPrice": ""}


def test_a_full_page_of_settlements_is_followed_by_another_and_proves_no_more_than_it_spans(
    connect: Callable[[str], BinanceClient],
) -> None:
    start_ms = to_ms(START)
    first = [settlement(start_ms + i * MINUTE_MS) for i in range(1000)]
    second = [settlement(start_ms + 1000 * MINUTE_MS + 7)]
    with StubServer(json_of(first), json_of(second)) as stub:
        pages = list(connect(stub.url).funding_rates(PERPETUAL, START, NOW, NOW))
    last_ms = start_ms + 999 * MINUTE_MS
    assert [page.rows.num_rows for page in pages] == [1000, 1]
    assert pages[0].covered_until == pages[1].covered_from == from_ms(last_ms + 1)
    assert stub.received[1].query["startTime"] == str(last_ms + 1)
    # What settled in the last minute may not be told yet.
    assert pages[1].covered_until == NOW - MINUTE
    assert pages[0].rows["mark_price"].null_count == 1000


def test_a_settlement_that_comes_twice_counts_once_as_told_last(
    connect: Callable[[str], BinanceClient],
) -> None:
    told = [settlement(to_ms(START) + 3, "0.1"), settlement(to_ms(START) + 9, "0.2")]
    with StubServer(json_of(told)) as stub:
        (page,) = connect(stub.url).funding_rates(PERPETUAL, START, END, NOW)
    assert page.rows["funding_rate_frac"].to_pylist() == [0.2]
    assert [(row["funding_rate_frac"], row["reason"]) for row in page.set_aside.to_pylist()] == [
        (0.1, "duplicate")
    ]


@pytest.mark.parametrize(
    "told",
    [
        {"code": 0},
        [7],
        [settlement(0)],
        [settlement(to_ms(START), "nan")],
        [settlement(to_ms(START), "")],
        [settlement(to_ms(START) - 1)],
        [settlement(to_ms(END))],
        [{**settlement(to_ms(START)), "markPrice": "x"}],
    ],
)
def test_settlements_that_break_the_promise_are_invalid(
    connect: Callable[[str], BinanceClient], told: object
) -> None:
    with StubServer(json_of(told)) as stub, pytest.raises(SourceDataInvalid):
        list(connect(stub.url).funding_rates(PERPETUAL, START, END, END))


def test_spot_has_no_funding_and_nothing_is_asked_of_an_empty_range(
    client: BinanceClient, market: MarketServer
) -> None:
    with pytest.raises(SourceRefused, match="funding rates of BTC/USDT"):
        list(client.funding_rates(SPOT, START, END, NOW))
    assert list(client.funding_rates(PERPETUAL, NOW, END, NOW)) == []
    assert market.count() == 0


@needs_recorded
def test_recorded_settlements_jitter_by_milliseconds_and_keep_their_hour(
    connect: Callable[[str], BinanceClient],
) -> None:
    routes = json.loads(
        gzip.decompress((RECORDED / "binance_wire" / "gocryptotrader" / "binance-http.json.gz").read_bytes())
    )["routes"]
    told = next(
        answer["data"]
        for answer in routes["/fapi/v1/fundingRate"]["GET"]
        if answer["data"] and len(answer["data"]) > 1
    )
    jitter = {row["fundingTime"] % 1000 for row in told}
    assert max(jitter) > 0
    start, end = from_ms(told[0]["fundingTime"] - DAY_MS), from_ms(told[-1]["fundingTime"] + DAY_MS)
    with StubServer(json_of(told)) as stub:
        (page,) = connect(stub.url).funding_rates(PERPETUAL, start, end, end)
    assert {ts.microsecond for ts in page.rows["ts"].to_pylist()} == {0}
    assert {ts.hour % 8 for ts in page.rows["ts"].to_pylist()} == {0}


# Open interest


def test_open_interest_is_proven_for_the_thirty_days_that_the_exchange_keeps(
    connect: Callable[[str], BinanceClient],
) -> None:
    world = SyntheticWorld(7, to_ms(at("2023-11-01")), to_ms(END), "1h", story_days=9)
    now = at("2024-01-09T12:34:56")
    with MarketServer(world, now, real_seconds=lambda: 0.0) as market:
        pages = list(connect(market.url).open_interest(PERPETUAL, "1h", at("2023-11-05"), END, now))
        oldest = at("2023-12-10T13:00")
        # 719 hours and one page of 500.
        assert market.count() == 2
    rows = [row for page in pages for row in page.rows.to_pylist()]
    assert pages[0].rows.schema == OPEN_INTEREST_SCHEMA
    assert [row["ts"] for row in rows] == [oldest + i * HOUR for i in range(720)]
    assert (pages[0].covered_from, pages[0].covered_until) == (oldest, oldest + 500 * HOUR)
    # The sample of 12:00 came, that of 13:00 is not due.
    assert pages[1].covered_until == at("2024-01-09T12:34:56")
    truth = world.final_open_interest(PERPETUAL.symbol, "1h", to_ms(oldest), to_ms(now))
    assert [row["open_interest_base"] for row in rows] == (truth.base / 1e8).tolist()


def test_a_late_sample_stays_unproven_for_a_period(connect: Callable[[str], BinanceClient]) -> None:
    now = at("2024-01-09T12:30")
    sample = {"timestamp": to_ms(at("2024-01-09T10:00")), "sumOpenInterest": "1", "sumOpenInterestValue": "2"}
    with StubServer(json_of([sample]), json_of([])) as stub:
        client = connect(stub.url)
        (page,) = client.open_interest(PERPETUAL, "1h", at("2024-01-09T10:00"), END, now)
        assert page.covered_until == at("2024-01-09T11:30")
        (page,) = client.open_interest(PERPETUAL, "1h", at("2024-01-09T12:00"), END, now)
        assert page.covered_from == page.covered_until
        assert list(client.open_interest(PERPETUAL, "1h", at("2023-11-01"), at("2023-12-01"), now)) == []
    with pytest.raises(SourceRefused, match="open interest by 3m"):
        list(client.open_interest(PERPETUAL, "3m", START, END, now))


# Order books and turnover


@pytest.mark.parametrize(("one", "limits"), [(SPOT, {3: 3, 120: 120}), (PERPETUAL, {3: 5, 120: 500})])
def test_a_book_has_the_levels_that_were_asked_for_best_first(
    client: BinanceClient, market: MarketServer, one: Market, limits: dict[int, int]
) -> None:
    for n_levels, limit in limits.items():
        book = client.order_book(one, n_levels)
        assert book.bids.shape == book.asks.shape == (n_levels, 2)
        assert (np.diff(book.bids[:, 0]) < 0).all()
        assert (np.diff(book.asks[:, 0]) > 0).all()
        assert book.bids[0, 0] < book.asks[0, 0]
        assert book.last_update_id == to_ms(NOW) * 10
        assert book.exchange_time == (None if one is SPOT else NOW.replace(microsecond=0))
        assert market.requests[-1].query["limit"] == str(limit)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"bids": [["1.0", "1"], ["1.0", "2"]]}, "bids are out of order"),
        ({"asks": [["3.0", "1"], ["2.0", "2"]]}, "asks are out of order"),
        ({"bids": [["0.0", "1"]]}, r"bids\[0\]"),
        ({"bids": [["1.0", "-1"]]}, r"bids\[0\]"),
        ({"bids": [["nan", "1"]]}, r"bids\[0\]"),
        ({"bids": [["1.0"]]}, "price and amount"),
        ({"bids": None}, "a list of bids"),
        ({"lastUpdateId": "7"}, "lastUpdateId"),
        ({"T": "7"}, "T in milliseconds"),
    ],
)
def test_a_book_that_breaks_the_promise_is_invalid(
    connect: Callable[[str], BinanceClient], change: dict[str, object], complaint: str
) -> None:
    sound = {"lastUpdateId": 7, "bids": [["1.0", "1"]], "asks": [["2.0", "1"]]}
    with StubServer(json_of(sound), json_of({**sound, **change})) as stub:
        client = connect(stub.url)
        assert client.order_book(SPOT, 5).asks.tolist() == [[2.0, 1.0]]
        with pytest.raises(SourceDataInvalid, match=complaint):
            client.order_book(SPOT, 5)


def test_a_crossed_or_empty_book_is_handed_over_as_it_is(connect: Callable[[str], BinanceClient]) -> None:
    crossed = {"lastUpdateId": 7, "bids": [["2.0", "1"]], "asks": [["1.0", "1"]]}
    with StubServer(json_of(crossed), json_of({"lastUpdateId": 8, "bids": [], "asks": []})) as stub:
        client = connect(stub.url)
        book = client.order_book(SPOT, 5)
        assert book.bids[0, 0] > book.asks[0, 0]
        assert client.order_book(SPOT, 5).bids.shape == (0, 2)
        for n_levels in (0, 5001):
            with pytest.raises(ValueError, match="levels"):
                client.order_book(SPOT, n_levels)


@needs_recorded
def test_recorded_books_of_a_thousand_levels_parse(connect: Callable[[str], BinanceClient]) -> None:
    folder = RECORDED / "binance_wire" / "cryptofeed"
    for name, one in (("BINANCE", SPOT), ("BINANCE_FUTURES", PERPETUAL)):
        lines = gzip.decompress((folder / f"{name}.http.0.0.gz").read_bytes()).decode().splitlines()
        body = lines[0][lines[0].index("{") :]
        with StubServer(Reply(body.encode())) as stub:
            book = connect(stub.url).order_book(one, 1000)
        raw = json.loads(body)
        assert book.bids.tolist() == [[float(text) for text in level] for level in raw["bids"]]
        assert len(book.asks) == len(raw["asks"]) > 600
        assert (book.exchange_time is None) == (one is SPOT)


def test_turnover_is_told_by_symbol_for_spot_and_contracts(
    client: BinanceClient, market: MarketServer
) -> None:
    table = client.turnover_24h()
    turnover = dict(zip(table["symbol"].to_pylist(), table["turnover_24h_quote"].to_pylist(), strict=True))
    assert set(turnover) == set(client.markets()["symbol"].to_pylist())
    assert turnover["BTC/USDT:USDT"] > turnover["BTC/USDT"] > 0
    (page,) = client.klines(SPOT, "trade", "1m", NOW - DAY, NOW - DAY + 1000 * MINUTE, NOW)
    assert turnover["BTC/USDT"] > sum(page.rows["volume_quote"].to_pylist())


# What can be asked, and its price


def test_weights_are_not_below_those_that_the_exchange_counts(
    client: BinanceClient, market: MarketServer, connect: Callable[[str], BinanceClient]
) -> None:
    questions: list[tuple[Question, MarketType, Callable[[], object]]] = [
        ("markets", "perpetual", lambda: client.markets(["perpetual"])),
        ("order_book", "spot", lambda: client.order_book(SPOT, 501)),
        ("order_book", "perpetual", lambda: client.order_book(PERPETUAL, 200)),
        ("funding_rates", "perpetual", lambda: list(client.funding_rates(PERPETUAL, START, NOW, NOW))),
        ("open_interest", "perpetual", lambda: list(client.open_interest(PERPETUAL, "1d", START, NOW, NOW))),
    ]
    counted: dict[MarketType, int] = {"spot": 0, "perpetual": 0}
    for question, market_type, ask in questions:
        ask()
        rows = 501 if market_type == "spot" else 500 if question == "order_book" else None
        counted[market_type] += client.request_weight(question, market_type, rows)
    for market_type, weight in counted.items():
        # The server's own count, read back from its header, was never the higher one.
        assert client.budget(market_type).used() == weight


def test_the_funding_and_open_interest_limits_of_their_own_cannot_be_exceeded(client: BinanceClient) -> None:
    assert 2400 / client.request_weight("funding_rates", "perpetual") * 5 <= 500
    assert 2400 / client.request_weight("open_interest", "perpetual") * 5 <= 1000


def test_live_hosts_are_those_of_the_exchange(tmp_path: Path) -> None:
    budget = RateBudget(tmp_path, "x", 10)
    urls = BinanceClient(budget, budget)._api.urls["api"]
    assert urls["public"] == "https://api.binance.com/api/v3"
    assert urls["fapiPublic"] == "https://fapi.binance.com/fapi/v1"
    assert urls["fapiData"] == "https://fapi.binance.com/futures/data"
