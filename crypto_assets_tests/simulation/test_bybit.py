"""The second venue through the unified methods of its real client."""

from __future__ import annotations

from collections.abc import Iterator

import ccxt
import numpy as np
import pytest
import requests

from crypto_assets.intervals import DAY_MS, HOUR_MS, MINUTE_MS
from crypto_assets.simulation.bars import CLOSE, HIGH, LOW, OPEN, VOLUME_BASE, VOLUME_QUOTE
from crypto_assets.simulation.clock import FakeSeconds
from crypto_assets.simulation.hostile import HostilePlan
from crypto_assets.simulation.server import MarketServer
from crypto_assets.simulation.synthetic import SyntheticWorld
from crypto_assets_tests.simulation.clients import at, bybit_at
from crypto_assets_tests.simulation.conftest import NOW, START


def kline(market: MarketServer, **params: str | int) -> dict:
    url = f"{market.bybit_url}/v5/market/kline"
    asked: dict[str, str | int] = {"category": "spot", "symbol": "BTCUSDT", "interval": "60", **params}
    return requests.get(url, asked, timeout=5).json()


def test_time_and_markets_come_through_the_unified_methods(market: MarketServer) -> None:
    venue = bybit_at(market)
    assert venue.fetch_time() == NOW
    markets = {entry["symbol"]: entry for entry in venue.fetch_markets()}
    spot = market.world.markets(NOW)
    assert set(markets) == {m.symbol for m in spot if market.world.is_trading(m, NOW)}
    assert len(markets) < len(spot)
    bitcoin = markets["BTC/USDT"]
    assert (bitcoin["type"], bitcoin["id"], bitcoin["active"]) == ("spot", "BTCUSDT", True)
    assert (bitcoin["precision"]["price"], bitcoin["precision"]["amount"]) == (0.01, 0.00001)
    assert bitcoin["limits"]["cost"]["min"] == 5


def test_candles_are_the_first_venues_without_its_other_columns(market: MarketServer) -> None:
    got = bybit_at(market).fetch_ohlcv("BTC/USDT", "1h", since=START, limit=200)
    bars = market.world.window("BTC/USDT", "1h", START, START + 200 * HOUR_MS, NOW)
    assert [row[0] for row in got] == bars.open_ms.tolist()
    expected = bars.values[[OPEN, HIGH, LOW, CLOSE, VOLUME_BASE]].T / 1e8
    np.testing.assert_allclose(np.array(got)[:, 1:], expected, rtol=1e-15)


def test_rows_are_seven_texts_and_the_newest_comes_first(market: MarketServer) -> None:
    answer = kline(market, start=START, end=START + 2 * HOUR_MS)
    assert (answer["retCode"], answer["retMsg"], answer["time"]) == (0, "OK", NOW)
    rows = answer["result"]["list"]
    assert [int(row[0]) for row in rows] == [START + 2 * HOUR_MS, START + HOUR_MS, START]
    bar = market.world.window("BTC/USDT", "1h", START, START + 1, NOW)
    assert len(rows[2]) == 7
    assert round(float(rows[2][6]) * 1e8) == bar.values[VOLUME_QUOTE, 0]
    assert not any(text.endswith("0") for row in rows for text in row[1:] if "." in text)


@pytest.mark.parametrize(
    ("params", "first", "last", "n_rows"),
    [
        ({"start": START + MINUTE_MS, "limit": 3}, START, START + 2 * HOUR_MS, 3),
        ({"start": START, "end": NOW, "limit": 3}, at(2023, 3, 10, 8), at(2023, 3, 10, 10), 3),
        ({"end": START + 5 * HOUR_MS, "limit": 2}, START + 4 * HOUR_MS, START + 5 * HOUR_MS, 2),
        ({"start": START}, START, START + 199 * HOUR_MS, 200),
        ({"start": START, "limit": 5000}, START, START + 999 * HOUR_MS, 1000),
        ({"limit": 2}, at(2023, 3, 10, 9), at(2023, 3, 10, 10), 2),
        ({"start": START - 5 * HOUR_MS, "limit": 7}, START, START + HOUR_MS, 2),
    ],
)
def test_a_page_is_bounded_in_time_and_cut_at_its_old_end(
    market: MarketServer, params: dict, first: int, last: int, n_rows: int
) -> None:
    times = [int(row[0]) for row in kline(market, **params)["result"]["list"]]
    # 14 February is an outage of two hours in this world.
    assert (times[-1], times[0], len(times)) == (first, last, n_rows)


def test_before_the_listing_a_page_from_a_start_is_empty(market: MarketServer) -> None:
    assert kline(market, start=START - 20 * DAY_MS, limit=10)["result"]["list"] == []


@pytest.mark.parametrize(("name", "interval"), [("D", "1d"), ("W", "1w"), ("M", "1M"), ("720", "12h")])
def test_intervals_have_the_venues_own_names(market: MarketServer, name: str, interval: str) -> None:
    got = kline(market, interval=name, limit=2)["result"]["list"]
    bars = market.world.klines("BTC/USDT", interval, now_ms=NOW, limit=2)
    assert [int(row[0]) for row in reversed(got)] == bars.open_ms.tolist()


def test_the_open_candle_is_the_newest(market: MarketServer) -> None:
    newest = bybit_at(market).fetch_ohlcv("BTC/USDT", "1m")[-1]
    assert newest[0] == NOW // MINUTE_MS * MINUTE_MS


def test_the_order_book_is_ordered_and_has_the_asked_levels(market: MarketServer) -> None:
    book = bybit_at(market).fetch_order_book("ETH/USDT")
    assert (len(book["bids"]), len(book["asks"]), book["timestamp"]) == (50, 50, NOW)
    assert len(bybit_at(market).fetch_order_book("ETH/USDT", 200)["bids"]) == 200
    bids, asks = (np.array(book[side])[:, 0] for side in ("bids", "asks"))
    assert (np.diff(bids) < 0).all() and (np.diff(asks) > 0).all() and bids[0] < asks[0]


def test_tickers_tell_the_last_day(market: MarketServer) -> None:
    tickers = bybit_at(market).fetch_tickers(["BTC/USDT", "ETH/USDT"])
    bars = market.world.window("BTC/USDT", "1m", NOW - DAY_MS, NOW + 1, NOW)
    ticker = tickers["BTC/USDT"]
    assert ticker["last"] == bars.values[CLOSE, -1] / 1e8
    assert ticker["quoteVolume"] == pytest.approx(bars.values[VOLUME_QUOTE].sum() / 1e8, rel=1e-12)
    assert set(tickers) == {"BTC/USDT", "ETH/USDT"}
    assert ticker["bid"] < ticker["ask"]
    assert bybit_at(market).fetch_ticker("BTC/USDT")["high"] == bars.values[HIGH].max() / 1e8


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"symbol": "NOPE"}, "Symbol Invalid"),
        ({"category": "linear"}, "Symbol Invalid"),
        ({"category": "shares"}, "Category is invalid"),
        ({"interval": "7"}, "Interval Is Invalid"),
        ({"limit": "0"}, "Limit Is Invalid"),
        ({"start": "soon"}, "Start Is Invalid"),
        ({"start": NOW, "end": START}, "Start time must be less than end time"),
    ],
)
def test_an_error_is_a_success_with_a_code(market: MarketServer, params: dict, message: str) -> None:
    answer = kline(market, **params)
    assert (answer["retCode"], answer["retMsg"]) == (10001, f"params error: {message}")
    with pytest.raises(ccxt.BadRequest, match="10001"):
        bybit_at(market).public_get_v5_market_kline({"symbol": "BTCUSDT", "interval": "60", **params})


def test_an_unknown_route_is_not_found(market: MarketServer) -> None:
    assert requests.get(f"{market.bybit_url}/v5/market/nothing", timeout=5).status_code == 404


@pytest.fixture
def limited(synthetic_world: SyntheticWorld) -> Iterator[tuple[MarketServer, FakeSeconds]]:
    seconds = FakeSeconds(6_000_002.0)
    with MarketServer(synthetic_world, clock=NOW, bybit_limit=2, real_seconds=seconds) as market:
        yield market, seconds


def test_too_many_requests_are_refused_until_the_window_ends(
    limited: tuple[MarketServer, FakeSeconds],
) -> None:
    market, seconds = limited
    venue = bybit_at(market)
    left = []
    for _ in range(2):
        venue.fetch_time()
        left.append(venue.last_response_headers["X-Bapi-Limit-Status"])
    assert left == ["1", "0"]
    with pytest.raises(ccxt.RateLimitExceeded, match="10006"):
        venue.fetch_time()
    headers = venue.last_response_headers
    assert headers["X-Bapi-Limit"] == "2"
    wait_ms = int(headers["X-Bapi-Limit-Reset-Timestamp"]) - NOW
    assert wait_ms == 3000
    seconds.sleep(wait_ms / 1000)
    assert venue.fetch_time() == NOW


def test_a_candle_that_the_first_venue_serves_twice_comes_once() -> None:
    world = SyntheticWorld(7, START, START + 5 * DAY_MS, "1h")
    plan = HostilePlan(
        5, world, kinds=["stale_duplicate"], defect_frac=1, symbols=["BTC/USDT"], fault_rates={}
    )
    now_ms = START + 4 * DAY_MS
    with MarketServer(plan.world, clock=now_ms, hostile=plan) as market:
        got = bybit_at(market).fetch_ohlcv("BTC/USDT", "1h", since=START, limit=90)
    truth = plan.truth("BTC/USDT", "trade", "1h", START, START + 90 * HOUR_MS, now_ms)
    assert [row[0] for row in got] == truth.open_ms.tolist()
    np.testing.assert_allclose(np.array(got)[:, 4], truth.values[CLOSE] / 1e8, rtol=1e-15)
    assert plan.served == set()
