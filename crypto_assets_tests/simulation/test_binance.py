from __future__ import annotations

import gzip
import json
from typing import Any

import ccxt
import pytest

from crypto_assets.intervals import DAY_MS, HOUR_MS, MINUTE_MS
from crypto_assets.simulation.binance import binance_answer
from crypto_assets.simulation.server import MarketServer
from crypto_assets.simulation.synthetic import SyntheticWorld
from crypto_assets_tests.recorded import RECORDED, needs_recorded
from crypto_assets_tests.simulation.clients import exchange_at
from crypto_assets_tests.simulation.conftest import NOW, START


def recorded_answer(path: str, query: str = "") -> Any:
    """Read an answer of the live exchange from the recorded HTTP mock."""
    routes = json.loads(
        gzip.decompress((RECORDED / "binance_wire/gocryptotrader/binance-http.json.gz").read_bytes())
    )
    answers = routes["routes"][path]["GET"]
    return next(answer["data"] for answer in answers if answer["queryString"] == query)


def test_time_is_the_time_of_the_clock(market: MarketServer) -> None:
    assert exchange_at(market).public_get_time() == {"serverTime": NOW}
    assert exchange_at(market).public_get_ping() == {}


def test_pages_from_a_start_cover_everything_once(market: MarketServer) -> None:
    exchange, start, opens = exchange_at(market), START, []
    while True:
        page = exchange.public_get_klines(
            {"symbol": "BTCUSDT", "interval": "5m", "startTime": start, "limit": 1000}
        )
        opens += [int(row[0]) for row in page]
        if len(page) < 1000:
            break
        start = opens[-1] + 1
    last = NOW // (5 * MINUTE_MS) * 5 * MINUTE_MS
    # The outage of 12:27 to 14:30 on the 45th day leaves no bar from 12:30 to 14:25.
    halt = range(
        START + 45 * DAY_MS + 12 * HOUR_MS + 30 * MINUTE_MS,
        START + 45 * DAY_MS + 14 * HOUR_MS + 30 * MINUTE_MS,
    )
    assert opens == [ms for ms in range(START, last + 1, 5 * MINUTE_MS) if ms not in halt]
    assert market.count("/api/v3/klines") == len(opens) // 1000 + 1


def test_without_a_start_the_newest_rows_come_ascending(market: MarketServer) -> None:
    page = exchange_at(market).public_get_klines({"symbol": "BTCUSDT", "interval": "1h", "limit": 3})
    hour = NOW // HOUR_MS * HOUR_MS
    assert [int(row[0]) for row in page] == [hour - 2 * HOUR_MS, hour - HOUR_MS, hour]


def test_bounds_of_the_open_time_are_inclusive(market: MarketServer) -> None:
    first, last = START + 5 * HOUR_MS, START + 9 * HOUR_MS
    query = {"symbol": "BTCUSDT", "interval": "1h", "startTime": first, "endTime": last}
    opens = [int(row[0]) for row in exchange_at(market).public_get_klines(query)]
    assert opens == list(range(first, last + 1, HOUR_MS))
    query |= {"startTime": first + 1, "endTime": last - 1}
    assert [int(row[0]) for row in exchange_at(market).public_get_klines(query)] == opens[1:-1]
    query |= {"startTime": last, "endTime": first}
    assert exchange_at(market).public_get_klines(query) == []


@pytest.mark.parametrize(
    ("limit", "n_rows"), [({}, 500), ({"limit": 1}, 1), ({"limit": 1000}, 1000), ({"limit": 5000}, 1000)]
)
def test_the_limit_is_500_by_default_and_1000_at_most(
    market: MarketServer, limit: dict[str, int], n_rows: int
) -> None:
    page = exchange_at(market).public_get_klines({"symbol": "BTCUSDT", "interval": "1m", **limit})
    assert len(page) == n_rows


def test_a_row_has_the_types_of_the_exchange(market: MarketServer) -> None:
    row = exchange_at(market).public_get_klines({"symbol": "ETHUSDT", "interval": "1h", "limit": 1})[0]
    assert [type(value) for value in row] == [int, str, str, str, str, str, int, str, int, str, str, str]
    assert row[6] == row[0] + HOUR_MS - 1
    assert row[11] == "0"


def test_a_start_before_the_listing_begins_at_the_listing(market: MarketServer) -> None:
    query = {"symbol": "ARBUSDT", "interval": "1m", "startTime": 0, "limit": 2}
    listing = START + 30 * DAY_MS + 8 * HOUR_MS
    assert [int(row[0]) for row in exchange_at(market).public_get_klines(query)] == [
        listing,
        listing + MINUTE_MS,
    ]


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"interval": "1m"}, -1102),
        ({"symbol": "BTCUSDT"}, -1102),
        ({"symbol": "", "interval": "1m"}, -1105),
        ({"symbol": "BTC/USDT", "interval": "1m"}, -1100),
        ({"symbol": "BTCUSDT", "interval": "1m", "startTime": "2023-01-01"}, -1100),
        ({"symbol": "BTCUSDT", "interval": "1m", "limit": "-5"}, -1100),
        ({"symbol": "BTCUSDT", "interval": "1m", "limit": "0"}, -1130),
        ({"symbol": "BTCUSDT", "interval": "1m", "from": "0"}, -1104),
        ({"symbol": "BTCUSDT", "interval": "10m"}, -1120),
        ({"symbol": "NOPEUSDT", "interval": "1m"}, -1121),
    ],
)
def test_bad_klines_questions_are_refused_with_400_and_a_code(
    synthetic_world: SyntheticWorld, params: dict[str, str], code: int
) -> None:
    answer = binance_answer(synthetic_world, "/api/v3/klines", params, NOW)
    body = json.loads(answer.body)
    assert (answer.status, body["code"]) == (400, code)
    assert set(body) == {"code", "msg"}


def test_a_symbol_that_is_not_listed_yet_is_invalid(synthetic_world: SyntheticWorld) -> None:
    params = {"symbol": "ARBUSDT", "interval": "1h"}
    listing = START + 30 * DAY_MS + 8 * HOUR_MS
    statuses = [
        binance_answer(synthetic_world, "/api/v3/klines", params, now).status
        for now in (listing - 1, listing)
    ]
    assert statuses == [400, 200]


def test_ccxt_raises_what_it_raises_live(market: MarketServer) -> None:
    exchange = exchange_at(market)
    with pytest.raises(ccxt.BadSymbol):
        exchange.public_get_klines({"symbol": "NOPEUSDT", "interval": "1m"})
    with pytest.raises(ccxt.BadRequest):
        exchange.public_get_klines({"symbol": "BTCUSDT", "interval": "7m"})


def test_exchange_info_follows_listings_and_delistings(market: MarketServer) -> None:
    exchange = exchange_at(market)

    def statuses() -> dict[str, str]:
        return {entry["symbol"]: entry["status"] for entry in exchange.public_get_exchangeinfo()["symbols"]}

    market.clock.set(START + 10 * DAY_MS)
    early = statuses()
    market.clock.set(START + 61 * DAY_MS)
    late = statuses()
    assert set(late) - set(early) == {"ARBUSDT"}
    assert early["SRMUSDT"] == "TRADING"
    assert late["SRMUSDT"] == "BREAK"
    assert set(late.values()) == {"TRADING", "BREAK"}


def test_exchange_info_can_be_asked_for_some_symbols(synthetic_world: SyntheticWorld) -> None:
    def symbols(params: dict[str, str]) -> list[str]:
        body = json.loads(binance_answer(synthetic_world, "/api/v3/exchangeInfo", params, NOW).body)
        return [entry["symbol"] for entry in body["symbols"]]

    assert symbols({"symbol": "ETHUSDT"}) == ["ETHUSDT"]
    assert symbols({"symbols": '["BTCUSDT","SRMUSDT"]'}) == ["BTCUSDT", "SRMUSDT"]
    assert symbols({"symbolStatus": "BREAK"}) == ["SRMUSDT"]
    refused = [{"symbol": "NOPE"}, {"symbols": "[BTCUSDT]"}, {"symbol": "ETHUSDT", "symbols": '["ETHUSDT"]'}]
    codes = [
        json.loads(binance_answer(synthetic_world, "/api/v3/exchangeInfo", p, NOW).body)["code"]
        for p in refused
    ]
    assert codes == [-1121, -1100, -1128]


def test_ccxt_reads_the_markets(market: MarketServer) -> None:
    exchange = exchange_at(market)
    exchange.options["fetchMarkets"] = {"types": ["spot"]}
    markets = exchange.load_markets()
    assert markets["BTC/USDT"]["active"] is True
    assert markets["SRM/USDT"]["active"] is False
    assert markets["BTC/USDT"]["precision"] == {"amount": 1e-5, "price": 0.01, "base": 1e-8, "quote": 1e-8}
    assert markets["BTC/USDT"]["limits"]["cost"]["min"] == 5


def test_the_ticker_sums_the_last_24_hours(market: MarketServer, synthetic_world: SyntheticWorld) -> None:
    ticker = exchange_at(market).public_get_ticker_24hr({"symbol": "BTCUSDT"})
    bars = synthetic_world.window("BTC/USDT", "1m", NOW - DAY_MS, NOW + 1, NOW)
    assert int(ticker["volume"].replace(".", "")) == bars.values[4].sum()
    assert int(ticker["highPrice"].replace(".", "")) == bars.values[1].max()
    assert float(ticker["lastPrice"]) - float(ticker["openPrice"]) == pytest.approx(
        float(ticker["priceChange"])
    )
    assert float(ticker["lowPrice"]) <= float(ticker["weightedAvgPrice"]) <= float(ticker["highPrice"])
    assert float(ticker["bidPrice"]) < float(ticker["askPrice"])
    assert ticker["lastId"] - ticker["firstId"] + 1 == ticker["count"]


def test_a_pair_without_trades_has_a_ticker_of_zeros(market: MarketServer) -> None:
    ticker = exchange_at(market).public_get_ticker_24hr({"symbol": "SRMUSDT"})
    assert ticker["lastPrice"] == ticker["volume"] == "0.00000000"
    assert (ticker["firstId"], ticker["count"]) == (-1, 0)


def test_tickers_come_for_all_or_some_symbols(market: MarketServer) -> None:
    exchange = exchange_at(market)
    assert len(exchange.public_get_ticker_24hr()) == 12
    some = exchange.public_get_ticker_24hr({"symbols": '["BTCUSDT","ETHUSDT"]', "type": "MINI"})
    assert [ticker["symbol"] for ticker in some] == ["BTCUSDT", "ETHUSDT"]
    assert "bidPrice" not in some[0]


def test_a_book_stands_around_the_last_price_and_does_not_change_by_itself(market: MarketServer) -> None:
    exchange = exchange_at(market)
    book = exchange.public_get_depth({"symbol": "ETHUSDT", "limit": 50})
    last = float(exchange.public_get_klines({"symbol": "ETHUSDT", "interval": "1m", "limit": 1})[0][4])
    bids, asks = ([float(price) for price, _ in book[side]] for side in ("bids", "asks"))
    assert len(bids) == len(asks) == 50
    assert bids == sorted(bids, reverse=True)
    assert asks == sorted(asks)
    assert bids[0] < asks[0]
    assert bids[0] <= last <= asks[0]
    assert exchange.public_get_depth({"symbol": "ETHUSDT", "limit": 50}) == book
    market.clock.set(NOW + 60_000)
    assert exchange.public_get_depth({"symbol": "ETHUSDT", "limit": 50}) != book


def test_a_delisted_pair_has_an_empty_book(market: MarketServer) -> None:
    book = exchange_at(market).public_get_depth({"symbol": "SRMUSDT"})
    assert book["bids"] == book["asks"] == []


@pytest.mark.parametrize(
    ("path", "params", "weight"),
    [
        ("time", {}, 1),
        ("exchangeInfo", {}, 20),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m"}, 2),
        ("ticker/24hr", {}, 80),
        ("ticker/24hr", {"symbol": "BTCUSDT"}, 2),
        ("ticker/24hr", {"symbols": '["BTCUSDT"]'}, 2),
        ("depth", {"symbol": "BTCUSDT"}, 5),
        ("depth", {"symbol": "BTCUSDT", "limit": "101"}, 25),
        ("depth", {"symbol": "BTCUSDT", "limit": "1000"}, 50),
        ("depth", {"symbol": "BTCUSDT", "limit": "9999"}, 250),
    ],
)
def test_weights_are_those_of_the_exchange(
    synthetic_world: SyntheticWorld, path: str, params: dict[str, str], weight: int
) -> None:
    assert binance_answer(synthetic_world, f"/api/v3/{path}", params, NOW).weight == weight


def test_an_unknown_path_is_an_html_404(synthetic_world: SyntheticWorld) -> None:
    answer = binance_answer(synthetic_world, "/api/v3/nothing", {}, NOW)
    assert (answer.status, answer.content_type) == (404, "text/html")


@needs_recorded
def test_exchange_info_has_the_shape_of_the_recorded_one(synthetic_world: SyntheticWorld) -> None:
    ours = json.loads(binance_answer(synthetic_world, "/api/v3/exchangeInfo", {}, NOW).body)
    real = recorded_answer("/api/v3/exchangeInfo")
    assert set(ours) == set(real)
    assert set(ours["symbols"][0]) == set(real["symbols"][0])
    assert {k: type(v) for k, v in ours["symbols"][0].items()} == {
        k: type(v) for k, v in real["symbols"][0].items()
    }
    real_filters = {f["filterType"]: set(f) for f in real["symbols"][0]["filters"]}
    for entry in ours["symbols"][0]["filters"]:
        assert set(entry) == real_filters[entry["filterType"]]
    assert ours["rateLimits"] == sorted(real["rateLimits"], key=ours["rateLimits"].index)


@needs_recorded
def test_tickers_and_books_have_the_shape_of_the_recorded_ones(synthetic_world: SyntheticWorld) -> None:
    ours = json.loads(binance_answer(synthetic_world, "/api/v3/ticker/24hr", {"symbol": "BTCUSDT"}, NOW).body)
    real = recorded_answer("/api/v3/ticker/24hr", "symbol=BTCUSDT")
    assert {k: type(v) for k, v in ours.items()} == {k: type(v) for k, v in real.items()}
    book = json.loads(binance_answer(synthetic_world, "/api/v3/depth", {"symbol": "BTCUSDT"}, NOW).body)
    assert set(book) == set(recorded_answer("/api/v3/depth", "limit=1000&symbol=BTCUSDT"))
    dead = json.loads(
        gzip.decompress((RECORDED / "binance_wire/ticker/spot-24hr-2020-10-09.json.gz").read_bytes())
    )
    real_dead = next(entry for entry in dead if entry["count"] == 0 and entry["firstId"] == -1)
    our_dead = json.loads(
        binance_answer(synthetic_world, "/api/v3/ticker/24hr", {"symbol": "SRMUSDT"}, NOW).body
    )
    assert {k: type(v) for k, v in our_dead.items()} == {k: type(v) for k, v in real_dead.items()}
