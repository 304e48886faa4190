from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from typing import Any

import ccxt
import pytest

from crypto_assets.intervals import DAY_MS, HOUR_MS, MINUTE_MS
from crypto_assets.simulation.bars import CLOSE, VOLUME_BASE
from crypto_assets.simulation.server import MarketServer
from crypto_assets.simulation.synthetic import SyntheticWorld
from crypto_assets.simulation.usdm import usdm_answer
from crypto_assets_tests.recorded import RECORDED, needs_recorded
from crypto_assets_tests.simulation.clients import exchange_at
from crypto_assets_tests.simulation.conftest import NOW, START

SETTLED = START + 52 * DAY_MS + 9 * HOUR_MS
ADA_ONBOARD = START + 15 * DAY_MS + 6 * HOUR_MS + 30 * MINUTE_MS
ALL_KLINES = ("klines", "markPriceKlines", "premiumIndexKlines")


def futures_at(market: MarketServer) -> Any:
    exchange = exchange_at(market)
    exchange.options["fetchMarkets"] = {"types": ["linear"]}
    exchange.options["defaultType"] = "swap"
    return exchange


def ask(world: SyntheticWorld, path: str, now_ms: int = NOW, /, **params: object) -> Any:
    texts = {name: str(value) for name, value in params.items()}
    answer = usdm_answer(world, path if path[0] == "/" else f"/fapi/v1/{path}", texts, now_ms)
    return json.loads(answer.body)


def statuses(world: SyntheticWorld, now_ms: int) -> dict[str, str]:
    return {entry["symbol"]: entry["status"] for entry in ask(world, "exchangeInfo", now_ms)["symbols"]}


def recorded_answers(path: str) -> list[Any]:
    """Read what the live exchange answered on a path, from the recorded HTTP mock."""
    content = (RECORDED / "binance_wire/gocryptotrader/binance-http.json.gz").read_bytes()
    cases = json.loads(gzip.decompress(content))["routes"][path]["GET"]
    return [case["data"] for case in cases]


def types(row: Mapping[str, object]) -> dict[str, type]:
    return {name: type(value) for name, value in row.items()}


def test_ping_and_time(synthetic_world: SyntheticWorld) -> None:
    assert ask(synthetic_world, "ping") == {}
    assert ask(synthetic_world, "time") == {"serverTime": NOW}


@pytest.mark.parametrize("route", ALL_KLINES)
def test_pages_of_the_real_client_cover_everything_once(market: MarketServer, route: str) -> None:
    exchange, start, opens = futures_at(market), START, []
    method = getattr(exchange, f"fapipublic_get_{route.lower()}")
    while True:
        page = method({"symbol": "ETHUSDT", "interval": "15m", "startTime": start, "limit": 1500})
        opens += [int(row[0]) for row in page]
        if len(page) < 1500:
            break
        start = opens[-1] + 1
    # The outage is one of spot alone.
    assert opens == list(range(START, NOW + 1, 15 * MINUTE_MS))
    assert market.count(f"/fapi/v1/{route}") == len(opens) // 1500 + 1


@pytest.mark.parametrize("route", ALL_KLINES)
def test_bounds_are_inclusive_and_the_newest_rows_come_without_a_start(
    synthetic_world: SyntheticWorld, route: str
) -> None:
    first, last = START + 5 * HOUR_MS, START + 9 * HOUR_MS
    asked = {"symbol": "BTCUSDT", "interval": "1h"}
    rows = ask(synthetic_world, route, NOW, **asked, startTime=first, endTime=last)
    assert [row[0] for row in rows] == list(range(first, last + 1, HOUR_MS))
    assert ask(synthetic_world, route, NOW, **asked, startTime=last, endTime=first) == []
    hour = NOW // HOUR_MS * HOUR_MS
    assert [row[0] for row in ask(synthetic_world, route, NOW, **asked, limit=2)] == [hour - HOUR_MS, hour]


def test_rows_of_all_kinds_have_twelve_elements_of_the_right_types(synthetic_world: SyntheticWorld) -> None:
    texts = [int, str, str, str, str, str, int, str, int, str, str, str]
    for route in ALL_KLINES:
        row = ask(synthetic_world, route, NOW, symbol="SOLUSDT", interval="1h", limit=2)[0]
        assert [type(value) for value in row] == texts
        assert row[6] == row[0] + HOUR_MS - 1
    mark = ask(synthetic_world, "markPriceKlines", NOW, symbol="SOLUSDT", interval="1m", limit=2)[0]
    premium = ask(synthetic_world, "premiumIndexKlines", NOW, symbol="SOLUSDT", interval="1m", limit=2)[0]
    # There is nothing to trade; the exchange counts its samples.
    assert mark[5] == mark[7] == mark[9] == mark[10] == premium[5] == "0"
    assert (mark[8], premium[8]) == (60, 12)


def test_premiums_may_be_negative_and_prices_stand_on_the_tick(synthetic_world: SyntheticWorld) -> None:
    asked = {"symbol": "BTCUSDT", "interval": "1h", "limit": 500}
    closes = [float(row[4]) for row in ask(synthetic_world, "premiumIndexKlines", NOW, **asked)]
    assert min(closes) < 0 < max(closes)
    assert max(map(abs, closes)) < 0.01
    trades = ask(synthetic_world, "klines", NOW, **asked)
    assert all(row[4].rpartition(".")[2].isdigit() and len(row[4].rpartition(".")[2]) == 1 for row in trades)
    assert len(ask(synthetic_world, "markPriceKlines", NOW, **asked)[0][4].partition(".")[2]) == 8


@pytest.mark.parametrize("route", ALL_KLINES)
@pytest.mark.parametrize(
    ("limit", "weight", "n_rows"),
    [(None, 5, 500), (1, 1, 1), (99, 1, 99), (100, 2, 100), (499, 2, 499), (500, 5, 500), (1000, 5, 1000)]
    + [(1001, 10, 1001), (1500, 10, 1500)],
)
def test_a_page_weighs_by_its_limit(
    synthetic_world: SyntheticWorld, route: str, limit: int | None, weight: int, n_rows: int
) -> None:
    params = {"symbol": "BTCUSDT", "interval": "1m"} | ({} if limit is None else {"limit": str(limit)})
    answer = usdm_answer(synthetic_world, f"/fapi/v1/{route}", params, NOW)
    assert (answer.weight, len(json.loads(answer.body))) == (weight, n_rows)


@pytest.mark.parametrize(
    ("path", "params", "weight"),
    [
        ("/fapi/v1/time", {}, 1),
        ("/fapi/v1/exchangeInfo", {}, 1),
        ("/fapi/v1/fundingRate", {"symbol": "BTCUSDT"}, 1),
        ("/fapi/v1/fundingInfo", {}, 0),
        ("/fapi/v1/premiumIndex", {"symbol": "BTCUSDT"}, 1),
        ("/fapi/v1/premiumIndex", {}, 10),
        ("/fapi/v1/openInterest", {"symbol": "BTCUSDT"}, 1),
        ("/futures/data/openInterestHist", {"symbol": "BTCUSDT", "period": "1h"}, 0),
        ("/fapi/v1/ticker/24hr", {"symbol": "BTCUSDT"}, 1),
        ("/fapi/v1/ticker/24hr", {}, 40),
        ("/fapi/v1/depth", {"symbol": "BTCUSDT"}, 10),
        ("/fapi/v1/depth", {"symbol": "BTCUSDT", "limit": "50"}, 2),
        ("/fapi/v1/depth", {"symbol": "BTCUSDT", "limit": "100"}, 5),
        ("/fapi/v1/depth", {"symbol": "BTCUSDT", "limit": "1000"}, 20),
    ],
)
def test_weights_are_those_of_the_exchange(
    synthetic_world: SyntheticWorld, path: str, params: dict[str, str], weight: int
) -> None:
    answer = usdm_answer(synthetic_world, path, params, NOW)
    assert (answer.status, answer.weight) == (200, weight)


@pytest.mark.parametrize(
    ("path", "params", "code"),
    [
        ("klines", {"interval": "1m"}, -1102),
        ("klines", {"symbol": "BTCUSDT"}, -1102),
        ("klines", {"symbol": "", "interval": "1m"}, -1105),
        ("klines", {"symbol": "BTCUSDT", "interval": "1s"}, -1120),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m", "limit": "1501"}, -1130),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m", "limit": "0"}, -1130),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m", "startTime": "yesterday"}, -1100),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m", "from": "0"}, -1104),
        ("markPriceKlines", {"symbol": "LINKUSDT", "interval": "1m"}, -1121),
        ("premiumIndexKlines", {"symbol": "BTCUSDT", "interval": "7m"}, -1120),
        ("fundingRate", {"symbol": "LTCUSDT"}, -1121),
        ("fundingRate", {"symbol": "BTCUSDT", "limit": "1001"}, -1130),
        ("premiumIndex", {"symbol": "NOPEUSDT"}, -1121),
        ("openInterest", {}, -1102),
        ("depth", {"symbol": "BTCUSDT", "limit": "7"}, -4021),
        ("/futures/data/openInterestHist", {"symbol": "BTCUSDT", "period": "1m"}, -1130),
        ("/futures/data/openInterestHist", {"symbol": "BTCUSDT", "period": "1h", "limit": "501"}, -1130),
        ("/futures/data/openInterestHist", {"symbol": "BTCUSDT"}, -1102),
    ],
)
def test_bad_questions_are_refused_with_400_and_a_code(
    synthetic_world: SyntheticWorld, path: str, params: dict[str, str], code: int
) -> None:
    full = path if path[0] == "/" else f"/fapi/v1/{path}"
    answer = usdm_answer(synthetic_world, full, params, NOW)
    body = json.loads(answer.body)
    assert (answer.status, body["code"], set(body)) == (400, code, {"code", "msg"})


def test_an_unknown_path_is_an_html_404(synthetic_world: SyntheticWorld) -> None:
    answer = usdm_answer(synthetic_world, "/fapi/v1/nothing", {}, NOW)
    assert (answer.status, answer.content_type) == (404, "text/html")


def test_ccxt_raises_what_it_raises_live(market: MarketServer) -> None:
    exchange = futures_at(market)
    with pytest.raises(ccxt.BadSymbol):
        exchange.fapipublic_get_klines({"symbol": "LINKUSDT", "interval": "1m"})
    with pytest.raises(ccxt.BadRequest):
        exchange.fapipublic_get_klines({"symbol": "BTCUSDT", "interval": "1m", "limit": 2000})


def test_ccxt_reads_the_contracts_and_writes_their_symbols_as_we_do(
    market: MarketServer, synthetic_world: SyntheticWorld
) -> None:
    markets = futures_at(market).load_markets()
    assert set(markets) == {contract.symbol for contract in synthetic_world.contracts(NOW)}
    bitcoin = markets["BTC/USDT:USDT"]
    assert bitcoin["active"] is True
    assert bitcoin["precision"] == {"amount": 0.001, "price": 0.1, "base": 1e-8, "quote": 1e-8}
    assert bitcoin["limits"]["cost"]["min"] == 100
    dated = markets["BTC/USDT:USDT-230317"]
    assert (dated["id"], dated["future"], dated["expiry"]) == (
        "BTCUSDT_230317",
        True,
        START + 75 * DAY_MS + 8 * HOUR_MS,
    )


def test_a_contract_is_pending_then_trades_and_its_klines_begin_with_it(
    synthetic_world: SyntheticWorld,
) -> None:
    seen = [
        statuses(synthetic_world, now).get("ADAUSDT")
        for now in (ADA_ONBOARD - DAY_MS - 1, ADA_ONBOARD - DAY_MS, ADA_ONBOARD - 1, ADA_ONBOARD)
    ]
    assert seen == [None, "PENDING_TRADING", "PENDING_TRADING", "TRADING"]
    asked = {"symbol": "ADAUSDT", "interval": "1m", "startTime": 0, "limit": 2}
    assert ask(synthetic_world, "klines", ADA_ONBOARD - 1, **asked) == []
    opens = [row[0] for row in ask(synthetic_world, "klines", NOW, **asked)]
    assert opens == [ADA_ONBOARD, ADA_ONBOARD + MINUTE_MS]
    spot = synthetic_world.market("ADAUSDT", START)
    assert spot is not None and spot.first_ms == START


def test_a_contract_is_settled_and_then_no_longer_named(synthetic_world: SyntheticWorld) -> None:
    moments = (SETTLED - 1, SETTLED, SETTLED + HOUR_MS, SETTLED + 3 * DAY_MS - 1, SETTLED + 3 * DAY_MS)
    seen = [statuses(synthetic_world, now).get("SRMUSDT") for now in moments]
    assert seen == ["TRADING", "PRE_SETTLE", "SETTLING", "SETTLING", None]
    asked = {"symbol": "SRMUSDT", "interval": "1m", "limit": 1}
    last = ask(synthetic_world, "klines", SETTLED + DAY_MS, **asked)[0]
    assert last[0] == SETTLED - MINUTE_MS
    assert ask(synthetic_world, "klines", SETTLED + 3 * DAY_MS, **asked)["code"] == -1121
    # The pair goes on.
    spot = synthetic_world.market("SRMUSDT", SETTLED + DAY_MS)
    assert spot is not None and synthetic_world.status(spot, SETTLED + DAY_MS) == "TRADING"


def test_the_end_of_a_perpetual_is_told_two_days_before(synthetic_world: SyntheticWorld) -> None:
    def delivery(now_ms: int) -> int:
        entries = ask(synthetic_world, "exchangeInfo", now_ms)["symbols"]
        return next(entry["deliveryDate"] for entry in entries if entry["symbol"] == "SRMUSDT")

    told = SETTLED - 2 * DAY_MS
    assert [delivery(now) for now in (told - 1, told)] == [4133404800000, SETTLED]


def test_a_dated_contract_is_delivered_and_its_type_gets_a_blank(synthetic_world: SyntheticWorld) -> None:
    def seen(now_ms: int) -> tuple[str, str, int]:
        entries = ask(synthetic_world, "exchangeInfo", now_ms)["symbols"]
        entry = next(entry for entry in entries if entry["symbol"] == "BTCUSDT_230317")
        return entry["contractType"], entry["status"], entry["deliveryDate"]

    delivery = START + 75 * DAY_MS + 8 * HOUR_MS
    assert seen(delivery - 1) == ("CURRENT_QUARTER", "TRADING", delivery)
    assert seen(delivery) == ("CURRENT_QUARTER DELIVERING", "DELIVERING", delivery)


@pytest.mark.parametrize(("symbol", "hours"), [("BTCUSDT", 8), ("SOLUSDT", 4), ("DOGEUSDT", 1)])
def test_settlements_follow_the_schedule_with_a_jitter_of_milliseconds(
    synthetic_world: SyntheticWorld, symbol: str, hours: int
) -> None:
    rows = ask(synthetic_world, "fundingRate", NOW, symbol=symbol, limit=1000, startTime=NOW - 20 * DAY_MS)
    stamps = [row["fundingTime"] for row in rows]
    late = [stamp % (hours * HOUR_MS) for stamp in stamps]
    assert max(late) <= 14
    assert len(set(late)) > 3
    scheduled = [stamp - stamp % (hours * HOUR_MS) for stamp in stamps]
    step = hours * HOUR_MS
    first = -(-(NOW - 20 * DAY_MS) // step) * step
    assert scheduled == list(range(first, NOW, step))
    assert types(rows[0]) == {"symbol": str, "fundingTime": int, "fundingRate": str, "markPrice": str}


def test_a_settlement_is_served_only_after_its_time(synthetic_world: SyntheticWorld) -> None:
    newest = synthetic_world.funding("DOGE/USDT:USDT", now_ms=NOW, limit=200).settled_ms
    told = next(int(stamp) for stamp in newest if stamp % HOUR_MS > 0)
    seen = [
        ask(synthetic_world, "fundingRate", now, symbol="DOGEUSDT", limit=1)[0]["fundingTime"]
        for now in (told - 1, told)
    ]
    assert seen[0] < told - MINUTE_MS
    assert seen[1] == told
    assert told % HOUR_MS <= 14


def test_funding_pages_go_up_from_a_start_and_back_from_now(synthetic_world: SyntheticWorld) -> None:
    def stamps(**params: int) -> list[int]:
        rows = ask(synthetic_world, "fundingRate", NOW, symbol="DOGEUSDT", **params)
        return [row["fundingTime"] for row in rows]

    everything = synthetic_world.final_funding("DOGE/USDT:USDT", START, NOW + 1).settled_ms.tolist()
    assert len(everything) > 1000
    assert stamps() == everything[-100:]
    assert stamps(limit=1000) == everything[-1000:]
    assert stamps(startTime=START, limit=1000) == everything[:1000]
    assert stamps(startTime=everything[999] + 1, limit=1000) == everything[1000:]
    assert stamps(startTime=everything[3], endTime=everything[5]) == everything[3:6]
    assert stamps(endTime=everything[5] - 1, limit=2) == everything[3:5]


def test_without_a_symbol_settlements_of_all_contracts_share_the_limit(
    synthetic_world: SyntheticWorld,
) -> None:
    rows = ask(synthetic_world, "fundingRate", NOW, limit=30)
    assert len(rows) == 30
    assert [row["fundingTime"] for row in rows] == sorted(row["fundingTime"] for row in rows)
    assert {"BTCUSDT", "DOGEUSDT"} <= {row["symbol"] for row in rows}
    assert "BTCUSDT_230317" not in {row["symbol"] for row in rows}


def test_funding_info_names_contracts_off_the_eight_hour_schedule(synthetic_world: SyntheticWorld) -> None:
    hours = {row["symbol"]: row["fundingIntervalHours"] for row in ask(synthetic_world, "fundingInfo")}
    assert hours == {"SOLUSDT": 4, "DOGEUSDT": 1}


def test_the_premium_index_shows_the_running_rate_and_becomes_the_settled_one(
    synthetic_world: SyntheticWorld,
) -> None:
    settlement = NOW // (8 * HOUR_MS) * 8 * HOUR_MS
    before = ask(synthetic_world, "premiumIndex", settlement - 1, symbol="BTCUSDT")
    early = ask(synthetic_world, "premiumIndex", settlement - 7 * HOUR_MS, symbol="BTCUSDT")
    settled = ask(synthetic_world, "fundingRate", NOW, symbol="BTCUSDT", limit=1)[0]
    assert before["nextFundingTime"] == early["nextFundingTime"] == settlement
    # What is settled also knows the premium at the settlement itself, one of 96 samples.
    assert float(before["lastFundingRate"]) == pytest.approx(float(settled["fundingRate"]), abs=2e-5)
    mark = ask(synthetic_world, "markPriceKlines", settlement - 1, symbol="BTCUSDT", interval="1m", limit=1)
    assert before["markPrice"] == mark[0][4]
    apart = float(before["markPrice"]) / float(before["indexPrice"]) - 1
    assert 0 < abs(apart) < 0.005


def test_a_dated_contract_has_a_premium_but_no_funding(synthetic_world: SyntheticWorld) -> None:
    row = ask(synthetic_world, "premiumIndex", NOW, symbol="BTCUSDT_230317")
    assert (row["lastFundingRate"], row["interestRate"], row["nextFundingTime"]) == ("", "", 0)
    assert ask(synthetic_world, "fundingRate", NOW, symbol="BTCUSDT_230317") == []


def test_contracts_that_do_not_trade_yet_have_no_row_among_all_premiums(
    synthetic_world: SyntheticWorld,
) -> None:
    pending = ADA_ONBOARD - HOUR_MS
    assert "ADAUSDT" not in {row["symbol"] for row in ask(synthetic_world, "premiumIndex", pending)}
    assert float(ask(synthetic_world, "premiumIndex", pending, symbol="ADAUSDT")["markPrice"]) == 0
    assert len(ask(synthetic_world, "premiumIndex", NOW)) == len(synthetic_world.contracts(NOW))


def test_open_interest_is_sampled_on_the_grid_and_its_history_is_a_month(
    synthetic_world: SyntheticWorld,
) -> None:
    history = "/futures/data/openInterestHist"
    asked = {"symbol": "ETHUSDT", "period": "1h"}
    assert len(ask(synthetic_world, history, NOW, **asked)) == 30
    rows = ask(synthetic_world, history, NOW, **asked, limit=500)
    hour = NOW // HOUR_MS * HOUR_MS
    assert [row["timestamp"] for row in rows] == list(range(hour - 499 * HOUR_MS, hour + 1, HOUR_MS))
    oldest = NOW - 30 * DAY_MS
    days = ask(synthetic_world, history, NOW, symbol="ETHUSDT", period="1d", startTime=oldest, limit=500)
    assert len(days) == 30
    assert days[0]["timestamp"] >= oldest
    refused = ask(synthetic_world, history, NOW, **asked, startTime=oldest - 1)
    assert refused == {"code": -1130, "msg": "parameter 'startTime' is invalid."}
    mark = synthetic_world.klines(
        "ETH/USDT:USDT", "1m", now_ms=NOW, limit=1, end_ms=hour - 1, kind="mark"
    ).values[CLOSE, 0]
    value = float(rows[-1]["sumOpenInterest"]) * int(mark) / 1e8
    assert float(rows[-1]["sumOpenInterestValue"]) == pytest.approx(value, rel=1e-9)


def test_an_open_interest_page_is_counted_from_its_end(synthetic_world: SyntheticWorld) -> None:
    history = "/futures/data/openInterestHist"
    first, last = NOW // HOUR_MS * HOUR_MS - 9 * HOUR_MS, NOW // HOUR_MS * HOUR_MS - 2 * HOUR_MS
    asked = {"symbol": "ETHUSDT", "period": "1h", "startTime": first}
    rows = ask(synthetic_world, history, NOW, **asked, endTime=last, limit=3)
    assert [row["timestamp"] for row in rows] == [last - 2 * HOUR_MS, last - HOUR_MS, last]
    # A start alone does not begin the page.
    rows = ask(synthetic_world, history, NOW, **asked, limit=2)
    assert [row["timestamp"] for row in rows] == [last + HOUR_MS, last + 2 * HOUR_MS]
    whole = ask(synthetic_world, history, NOW, **asked, endTime=last)
    assert [row["timestamp"] for row in whole] == list(range(first, last + 1, HOUR_MS))


def test_present_open_interest_is_the_newest_sample(synthetic_world: SyntheticWorld) -> None:
    row = ask(synthetic_world, "openInterest", NOW, symbol="ETHUSDT")
    newest = ask(
        synthetic_world, "/futures/data/openInterestHist", NOW, symbol="ETHUSDT", period="5m", limit=1
    )[0]
    assert row["time"] == newest["timestamp"] == NOW // (5 * MINUTE_MS) * 5 * MINUTE_MS
    assert float(row["openInterest"]) == float(newest["sumOpenInterest"])


def test_the_ticker_sums_the_last_24_hours(synthetic_world: SyntheticWorld) -> None:
    ticker = ask(synthetic_world, "ticker/24hr", NOW, symbol="BTCUSDT")
    bars = synthetic_world.window("BTC/USDT:USDT", "1m", NOW - DAY_MS, NOW + 1, NOW)
    assert int(ticker["volume"].replace(".", "")) == bars.values[VOLUME_BASE].sum()
    assert "bidPrice" not in ticker
    assert len(ask(synthetic_world, "ticker/24hr", NOW)) == len(synthetic_world.contracts(NOW))
    still = ask(synthetic_world, "ticker/24hr", SETTLED + 2 * DAY_MS, symbol="SRMUSDT")
    assert float(still["lastPrice"]) > 0
    assert (float(still["volume"]), still["count"]) == (0, 0)


@pytest.mark.parametrize("limit", [5, 10, 20, 50, 100, 500, 1000])
def test_a_book_stands_around_the_last_trade_of_the_contract(
    synthetic_world: SyntheticWorld, limit: int
) -> None:
    book = ask(synthetic_world, "depth", NOW, symbol="SOLUSDT", limit=limit)
    assert set(book) == {"lastUpdateId", "E", "T", "bids", "asks"}
    assert book["T"] <= book["E"] == NOW
    last = float(ask(synthetic_world, "klines", NOW, symbol="SOLUSDT", interval="1m", limit=1)[0][4])
    bids, asks = ([float(price) for price, _ in book[side]] for side in ("bids", "asks"))
    assert len(asks) == limit
    assert bids == sorted(bids, reverse=True)
    assert asks == sorted(asks)
    assert bids[0] <= last <= asks[0]
    assert bids[0] < asks[0]


@pytest.mark.parametrize("now_ms", [SETTLED + HOUR_MS, SETTLED + 1])
def test_a_contract_that_is_settled_has_no_book_and_no_open_interest(
    synthetic_world: SyntheticWorld, now_ms: int
) -> None:
    for path in ("depth", "openInterest"):
        assert ask(synthetic_world, path, now_ms, symbol="SRMUSDT")["code"] == -4108


def test_the_unified_methods_of_ccxt_read_funding_and_open_interest(
    market: MarketServer, synthetic_world: SyntheticWorld
) -> None:
    exchange = futures_at(market)
    since = NOW - 10 * DAY_MS
    rates = exchange.fetch_funding_rate_history("SOL/USDT:USDT", since=since, limit=1000)
    final = synthetic_world.final_funding("SOL/USDT:USDT", since, NOW + 1)
    assert [rate["timestamp"] for rate in rates] == final.settled_ms.tolist()
    assert [round(rate["fundingRate"] * 1e8) for rate in rates] == final.rate.tolist()
    samples = exchange.fetch_open_interest_history("SOL/USDT:USDT", "1h", since=since, limit=200)
    first = -(-since // HOUR_MS) * HOUR_MS
    assert [row["timestamp"] for row in samples] == list(range(first, first + 200 * HOUR_MS, HOUR_MS))
    running = synthetic_world.running_rate("SOL/USDT:USDT", NOW)
    assert round(exchange.fetch_funding_rate("SOL/USDT:USDT")["fundingRate"] * 1e8) == running
    assert exchange.fetch_ohlcv("SOL/USDT:USDT", "1h", since, 3)[0][0] == first


def test_nothing_of_the_future_is_told(synthetic_world: SyntheticWorld) -> None:
    later = NOW + 5 * DAY_MS
    for route in ALL_KLINES:
        asked = {"symbol": "ETHUSDT", "interval": "1h", "startTime": NOW - DAY_MS, "limit": 1500}
        then, now = ask(synthetic_world, route, NOW, **asked), ask(synthetic_world, route, later, **asked)
        assert then[:-1] == now[: len(then) - 1]
        assert then[-1][0] == NOW // HOUR_MS * HOUR_MS
        assert then[-1][1] == now[len(then) - 1][1]
        assert then[-1] != now[len(then) - 1]
    history = "/futures/data/openInterestHist"
    asked = {"symbol": "ETHUSDT", "period": "5m", "endTime": later}
    assert ask(synthetic_world, history, NOW, **asked)[-1]["timestamp"] <= NOW
    assert ask(synthetic_world, "fundingRate", NOW, symbol="ETHUSDT", endTime=later)[-1]["fundingTime"] <= NOW


@needs_recorded
def test_exchange_info_has_the_shape_of_the_recorded_one(synthetic_world: SyntheticWorld) -> None:
    ours, real = ask(synthetic_world, "exchangeInfo"), recorded_answers("/fapi/v1/exchangeInfo")[0]
    assert types(ours) == types(real)
    assert types(ours["symbols"][0]) == types(real["symbols"][0])
    assert types(ours["assets"][0]) == types(real["assets"][0])
    ours_limits, real_limits = (
        {frozenset(limit.items()) for limit in info["rateLimits"]} for info in (ours, real)
    )
    assert ours_limits == real_limits
    filters = {rule["filterType"]: types(rule) for rule in real["symbols"][0]["filters"]}
    assert {rule["filterType"]: types(rule) for rule in ours["symbols"][0]["filters"]} == filters


@needs_recorded
def test_the_other_answers_have_the_shapes_of_the_recorded_ones(synthetic_world: SyntheticWorld) -> None:
    def recorded(path: str, name: str) -> dict[str, type]:
        found = [
            row
            for data in recorded_answers(path)
            for row in (data if isinstance(data, list) else [data or {}])
        ]
        return types(max((row for row in found if name in row), key=len))

    asked = {"symbol": "SOLUSDT"}
    assert types(ask(synthetic_world, "premiumIndex", NOW, **asked)) == recorded(
        "/fapi/v1/premiumIndex", "markPrice"
    )
    assert types(ask(synthetic_world, "openInterest", NOW, **asked)) == recorded(
        "/fapi/v1/openInterest", "openInterest"
    )
    assert types(ask(synthetic_world, "ticker/24hr", NOW, **asked)) == recorded(
        "/fapi/v1/ticker/24hr", "lastPrice"
    )
    assert types(ask(synthetic_world, "depth", NOW, **asked)) == recorded("/fapi/v1/depth", "bids")
    assert types(ask(synthetic_world, "fundingInfo")[0]) == recorded(
        "/fapi/v1/fundingInfo", "fundingIntervalHours"
    )
    ours = ask(synthetic_world, "/futures/data/openInterestHist", NOW, **asked, period="1d")[0]
    real = recorded_answers("/futures/data/openInterestHist")[0][0]
    assert types(ours) == types(real)
    # Mark prices were added to settlements later.
    settled = types(ask(synthetic_world, "fundingRate", NOW, **asked)[0])
    assert settled == recorded("/fapi/v1/fundingRate", "fundingRate") | {"markPrice": str}
    row = ask(synthetic_world, "klines", NOW, **asked, interval="5m", limit=1)[0]
    assert list(map(type, row)) == list(map(type, recorded_answers("/fapi/v1/klines")[0][0]))
