"""Binance spot answers, byte for byte in its shapes: bodies, statuses, error codes and request weights.

Here: parameters in, ``Answer`` out, as a function of a world and a moment, and what its futures share with it.
Not here: futures (``usdm``), what is public when (``world``), HTTP itself (``server``). Only the simulation's
answers, ``server.py`` and tests import it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from zlib import crc32

import numpy as np
import orjson

from crypto_assets.intervals import DAY_MS
from crypto_assets.simulation.bars import (
    CLOSE,
    EXCHANGE_INTERVALS,
    HIGH,
    LOW,
    N_DECIMALS,
    OPEN,
    UNITS,
    VOLUME_BASE,
    VOLUME_QUOTE,
    Bars,
    length_ms,
    no_bars,
)
from crypto_assets.simulation.render import decimal_text, klines_json
from crypto_assets.simulation.world import Market, World

#: Request weight a minute and address, as the live exchange states it in exchangeInfo.
WEIGHT_PER_MINUTE = 6000

_ORDER_TYPES = [
    "LIMIT",
    "LIMIT_MAKER",
    "MARKET",
    "STOP_LOSS",
    "STOP_LOSS_LIMIT",
    "TAKE_PROFIT",
    "TAKE_PROFIT_LIMIT",
]
_SYMBOL = "^[A-Z0-9-_.]{1,20}$"
_NUMBER = "^[0-9]{1,20}$"
_SYMBOLS = r"^\[(\"[A-Z0-9-_.]{1,20}\"(,\"[A-Z0-9-_.]{1,20}\"){0,}){0,1}\]$"
_MINI_FIELDS = ("symbol", "openPrice", "highPrice", "lowPrice", "lastPrice", "volume", "quoteVolume")
_MINI_FIELDS += ("openTime", "closeTime", "firstId", "lastId", "count")
#: Nothing, as the exchange writes it.
ZERO = "0.00000000"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: status, body, request weight, content type."""

    status: int
    body: bytes
    weight: int = 1
    content_type: str = "application/json;charset=UTF-8"


class Refused(Exception):
    """A question that the exchange answers with status 400, an error code and a message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


Handler = Callable[[World, Mapping[str, str], int], Answer]
#: Path -> names of the parameters that it reads, and what answers it.
Routes = Mapping[str, tuple[frozenset[str], Handler]]


def binance_answer(world: World, path: str, params: Mapping[str, str], now_ms: int) -> Answer:
    """Answer GET ``path`` (``/api/v3/...``) with query ``params`` as the exchange does at ``now_ms``."""
    return routed_answer(_ROUTES, world, path, params, now_ms)


def routed_answer(routes: Routes, world: World, path: str, params: Mapping[str, str], now_ms: int) -> Answer:
    """Answer by a table of routes; unknown paths, unread and empty parameters as the exchange does."""
    route = routes.get(path)
    if route is None:
        return Answer(404, b"<html><body><h2>404 Not found</h2></body></html>", content_type="text/html")
    allowed, handler = route
    try:
        for name, value in params.items():
            if value == "":
                raise Refused(-1105, f"Parameter '{name}' was empty.")
        read = [name for name in params if name in allowed]
        if len(read) < len(params):
            raise Refused(
                -1104,
                f"Not all sent parameters were read; read '{len(read)}' parameter(s) "
                f"but was sent '{len(params)}'.",
            )
        return handler(world, params, now_ms)
    except Refused as refused:
        return Answer(400, error_body(refused.code, refused.message))


def error_body(code: int, message: str) -> bytes:
    """Write the exchange's error object."""
    return orjson.dumps({"code": code, "msg": message})


def _ping(world: World, params: Mapping[str, str], now_ms: int) -> Answer:
    return Answer(200, b"{}")


def _time(world: World, params: Mapping[str, str], now_ms: int) -> Answer:
    return Answer(200, orjson.dumps({"serverTime": now_ms}))


def _exchange_info(world: World, params: Mapping[str, str], now_ms: int) -> Answer:
    chosen = _chosen_markets(world, params, now_ms)
    wanted = params.get("symbolStatus")
    if wanted not in (None, "TRADING", "HALT", "BREAK"):
        raise Refused(-1100, "Illegal characters found in parameter 'symbolStatus'.")
    entries = [_described(world, market, now_ms) for market in chosen]
    body = {
        "timezone": "UTC",
        "serverTime": now_ms,
        "rateLimits": [
            {
                "rateLimitType": "REQUEST_WEIGHT",
                "interval": "MINUTE",
                "intervalNum": 1,
                "limit": WEIGHT_PER_MINUTE,
            },
            {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 100},
            {"rateLimitType": "ORDERS", "interval": "DAY", "intervalNum": 1, "limit": 200000},
            {"rateLimitType": "RAW_REQUESTS", "interval": "MINUTE", "intervalNum": 5, "limit": 61000},
        ],
        "exchangeFilters": [],
        "symbols": [entry for entry in entries if wanted in (None, entry["status"])],
    }
    return Answer(200, orjson.dumps(body), weight=20)


def _klines(world: World, params: Mapping[str, str], now_ms: int) -> Answer:
    symbol = text_of(params, "symbol", _SYMBOL)
    interval = text_of(params, "interval", None)
    start_ms, end_ms = number_of(params, "startTime"), number_of(params, "endTime")
    limit = _limit(params, default=500, most=1000)
    if interval not in EXCHANGE_INTERVALS:
        raise Refused(-1120, "Invalid interval.")
    market = _listed(world, symbol, now_ms)
    bars = world.klines(market.symbol, interval, now_ms=now_ms, limit=limit, start_ms=start_ms, end_ms=end_ms)
    return Answer(200, klines_json(bars), weight=2)


def _ticker_24hr(world: World, params: Mapping[str, str], now_ms: int) -> Answer:
    kind = params.get("type", "FULL")
    if kind not in ("FULL", "MINI"):
        raise Refused(-1100, "Illegal characters found in parameter 'type'; legal range is 'FULL|MINI'.")
    chosen = _chosen_markets(world, params, now_ms)
    tickers = [_ticker(world, market, now_ms, mini=kind == "MINI") for market in chosen]
    if "symbol" in params:
        return Answer(200, orjson.dumps(tickers[0]), weight=2)
    n_asked = len(chosen) if "symbols" in params else 10**9
    return Answer(200, orjson.dumps(tickers), weight=2 if n_asked <= 20 else 40 if n_asked <= 100 else 80)


def _depth(world: World, params: Mapping[str, str], now_ms: int) -> Answer:
    symbol = text_of(params, "symbol", _SYMBOL)
    limit = _limit(params, default=100, most=5000)
    bids, asks = order_book(world, _listed(world, symbol, now_ms), limit, now_ms)
    body = {"lastUpdateId": now_ms * 10, "bids": levels_text(bids), "asks": levels_text(asks)}
    weight = next(cost for most, cost in ((100, 5), (500, 25), (1000, 50), (5000, 250)) if limit <= most)
    return Answer(200, orjson.dumps(body), weight=weight)


_ROUTES: Routes = {
    "/api/v3/ping": (frozenset(), _ping),
    "/api/v3/time": (frozenset(), _time),
    "/api/v3/exchangeInfo": (
        frozenset({"symbol", "symbols", "permissions", "showPermissionSets", "symbolStatus"}),
        _exchange_info,
    ),
    "/api/v3/klines": (frozenset({"symbol", "interval", "startTime", "endTime", "limit"}), _klines),
    "/api/v3/ticker/24hr": (frozenset({"symbol", "symbols", "type"}), _ticker_24hr),
    "/api/v3/depth": (frozenset({"symbol", "limit"}), _depth),
}


def order_book(world: World, market: Market, n_levels: int, now_ms: int) -> tuple[np.ndarray, np.ndarray]:
    """Invent a book around the last close: bids falling, asks rising, each (levels, 2) price and size.

    Spacing is about half a basis point, sizes are shares of the volume of the last day. It is a function of
    market and second alone, and empty where the market does not trade.
    """
    last = newest_bar(world, market, now_ms)
    if not len(last) or not world.is_trading(market, now_ms):
        return np.empty((0, 2), np.int64), np.empty((0, 2), np.int64)
    middle = int(last.values[CLOSE, 0]) // market.tick
    day_volume = int(last_day(world, market, now_ms).values[VOLUME_BASE].sum())
    rng = np.random.default_rng([crc32(market.symbol.encode()), now_ms // 1000])
    mean_gap = max(1.0, middle * 5e-5)
    mean_lots = max(1.0, day_volume / market.lot / 100_000)
    steps = rng.geometric(min(1.0, 1 / mean_gap), (2, n_levels)).cumsum(axis=1)
    lots = 1 + rng.exponential(mean_lots, (2, n_levels)).astype(np.int64)
    # The last trade stands on one side of the spread.
    best_bid = middle - int(rng.integers(0, 2))
    prices = np.stack([best_bid - (steps[0] - steps[0, 0]), best_bid + 1 + (steps[1] - steps[1, 0])])
    book = np.stack([prices * market.tick, lots * market.lot], axis=2)
    return book[0][prices[0] > 0], book[1]


def newest_bar(world: World, market: Market, now_ms: int, end_ms: int | None = None) -> Bars:
    """Newest bar of the finest stored interval that opens not later than ``end_ms``; none where there is none."""
    stored = world.intervals(market.symbol)
    if not stored:
        return no_bars()
    finest = min(stored, key=length_ms)
    return world.klines(market.symbol, finest, now_ms=now_ms, limit=1, end_ms=end_ms)


def last_day(world: World, market: Market, now_ms: int) -> Bars:
    """Bars of the finest stored interval that opened in the last 24 hours."""
    stored = world.intervals(market.symbol)
    if not stored:
        return no_bars()
    finest = min(stored, key=length_ms)
    return world.window(market.symbol, finest, now_ms - DAY_MS, now_ms + 1, now_ms)


def day_statistics(market: Market, bars: Bars, now_ms: int) -> dict[str, object]:
    """Ticker fields that pairs and contracts share, out of the bars of the last 24 hours (at least one)."""
    values = bars.values
    first, last = int(values[OPEN, 0]), int(values[CLOSE, -1])
    base, quote = _known_total(values[VOLUME_BASE]), _known_total(values[VOLUME_QUOTE])
    count = _known_total(bars.n_trades)
    average = None if base is None or quote is None else decimal_text(quote * UNITS // base if base else 0)
    # Trade ids are invented: a counter that grows with time, wide enough for the trades of a day.
    last_id = now_ms * 10
    return {
        "symbol": market.exchange_symbol,
        "priceChange": decimal_text(last - first),
        "priceChangePercent": f"{(last - first) / first * 100:.3f}",
        "weightedAvgPrice": average,
        "lastPrice": decimal_text(last),
        "lastQty": decimal_text(market.lot),
        "openPrice": decimal_text(first),
        "highPrice": decimal_text(int(values[HIGH].max())),
        "lowPrice": decimal_text(int(values[LOW].min())),
        "volume": None if base is None else decimal_text(base),
        "quoteVolume": None if quote is None else decimal_text(quote),
        "openTime": now_ms - DAY_MS,
        "closeTime": now_ms,
        "firstId": last_id - (count or 1) + 1,
        "lastId": last_id,
        "count": count,
    }


def still_statistics(market: Market, now_ms: int) -> dict[str, object]:
    """Ticker fields of a market without a trade in 24 hours, as recorded: zeros, no trade ids."""
    zeros = ("lastPrice", "lastQty", "openPrice", "highPrice", "lowPrice", "volume", "quoteVolume")
    return {
        "symbol": market.exchange_symbol,
        "priceChange": ZERO,
        "priceChangePercent": "0",
        "weightedAvgPrice": "0",
        **dict.fromkeys(zeros, ZERO),
        "openTime": now_ms - DAY_MS,
        "closeTime": now_ms,
        "firstId": -1,
        "lastId": -1,
        "count": 0,
    }


def _ticker(world: World, market: Market, now_ms: int, *, mini: bool) -> dict[str, object]:
    bars = last_day(world, market, now_ms)
    fields = day_statistics(market, bars, now_ms) if len(bars) else still_statistics(market, now_ms)
    if mini:
        return {name: fields[name] for name in _MINI_FIELDS}
    before = newest_bar(world, market, now_ms, now_ms - DAY_MS - 1) if len(bars) else no_bars()
    earlier = before.values[CLOSE, 0] if len(before) else bars.values[OPEN, 0] if len(bars) else 0
    bids, asks = order_book(world, market, 1, now_ms)
    return fields | {
        "prevClosePrice": decimal_text(int(earlier)),
        "bidPrice": decimal_text(int(bids[0, 0])) if len(bids) else ZERO,
        "bidQty": decimal_text(int(bids[0, 1])) if len(bids) else ZERO,
        "askPrice": decimal_text(int(asks[0, 0])) if len(asks) else ZERO,
        "askQty": decimal_text(int(asks[0, 1])) if len(asks) else ZERO,
    }


def _described(world: World, market: Market, now_ms: int) -> dict[str, object]:
    status = world.status(market, now_ms)
    recorded = world.description(market, now_ms)
    return _market_entry(market, status) if recorded is None else {**recorded, "status": status}


def _market_entry(market: Market, status: str) -> dict[str, object]:
    return {
        "symbol": market.exchange_symbol,
        "status": status,
        "baseAsset": market.base,
        "baseAssetPrecision": 8,
        "quoteAsset": market.quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "baseCommissionPrecision": 8,
        "quoteCommissionPrecision": 8,
        "orderTypes": _ORDER_TYPES,
        "icebergAllowed": True,
        "ocoAllowed": True,
        "otoAllowed": True,
        "quoteOrderQtyMarketAllowed": True,
        "allowTrailingStop": True,
        "cancelReplaceAllowed": True,
        "amendAllowed": True,
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "filters": [
            {
                "filterType": "PRICE_FILTER",
                "minPrice": decimal_text(market.tick),
                "maxPrice": decimal_text(market.tick * 10**8),
                "tickSize": decimal_text(market.tick),
            },
            {
                "filterType": "LOT_SIZE",
                "minQty": decimal_text(market.lot),
                "maxQty": decimal_text(market.lot * 10**9),
                "stepSize": decimal_text(market.lot),
            },
            {"filterType": "ICEBERG_PARTS", "limit": 10},
            {
                "filterType": "MARKET_LOT_SIZE",
                "minQty": ZERO,
                "maxQty": decimal_text(market.lot * 10**7),
                "stepSize": ZERO,
            },
            {
                "filterType": "PERCENT_PRICE_BY_SIDE",
                "bidMultiplierUp": "5",
                "bidMultiplierDown": "0.2",
                "askMultiplierUp": "5",
                "askMultiplierDown": "0.2",
                "avgPriceMins": 5,
            },
            {
                "filterType": "NOTIONAL",
                "minNotional": decimal_text(market.min_notional),
                "applyMinToMarket": True,
                "maxNotional": "9000000.00000000",
                "applyMaxToMarket": False,
                "avgPriceMins": 5,
            },
            {"filterType": "MAX_NUM_ORDERS", "maxNumOrders": 200},
            {"filterType": "MAX_NUM_ALGO_ORDERS", "maxNumAlgoOrders": 5},
        ],
        "permissions": [],
        "permissionSets": [["SPOT"]],
        "defaultSelfTradePreventionMode": "EXPIRE_MAKER",
        "allowedSelfTradePreventionModes": ["EXPIRE_TAKER", "EXPIRE_MAKER", "EXPIRE_BOTH", "DECREMENT"],
    }


def text_of(params: Mapping[str, str], name: str, legal: str | None) -> str:
    """Read a mandatory text that must fully match the pattern ``legal``, where there is one."""
    if name not in params:
        raise Refused(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")
    if legal is not None and not re.fullmatch(legal, params[name]):
        raise Refused(-1100, f"Illegal characters found in parameter '{name}'; legal range is '{legal}'.")
    return params[name]


def number_of(params: Mapping[str, str], name: str) -> int | None:
    """Read an optional number that is not negative."""
    return int(text_of(params, name, _NUMBER)) if name in params else None


def _limit(params: Mapping[str, str], *, default: int, most: int) -> int:
    limit = number_of(params, "limit")
    if limit == 0:
        raise Refused(-1130, "Data sent for parameter 'limit' is not valid.")
    return default if limit is None else min(limit, most)


def _listed(world: World, symbol: str, now_ms: int) -> Market:
    market = world.market(symbol, now_ms)
    if market is None:
        raise Refused(-1121, "Invalid symbol.")
    return market


def _chosen_markets(world: World, params: Mapping[str, str], now_ms: int) -> list[Market]:
    listed = partial(_listed, world, now_ms=now_ms)
    if "symbol" in params and "symbols" in params:
        raise Refused(-1128, "Combination of optional parameters invalid.")
    if "symbol" in params:
        return [listed(text_of(params, "symbol", _SYMBOL))]
    if "symbols" in params:
        return [listed(symbol) for symbol in orjson.loads(text_of(params, "symbols", _SYMBOLS))]
    return world.markets(now_ms)


def _known_total(values: np.ndarray) -> int | None:
    return int(values.sum()) if (values >= 0).all() else None


def levels_text(
    levels: np.ndarray, price_decimals: int = N_DECIMALS, size_decimals: int = N_DECIMALS
) -> list[list[str]]:
    """Price and size of each level as the exchange writes them."""
    return [
        [decimal_text(price, price_decimals), decimal_text(size, size_decimals)]
        for price, size in levels.tolist()
    ]
