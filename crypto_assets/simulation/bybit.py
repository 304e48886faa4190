"""Bybit v5 spot answers: a second venue's wire shape over the same world.

Here: parameters in, ``Answer`` out, as a function of a world and a moment. Not here: what is public when (``world``),
HTTP itself and the counting of requests (``server``). Only ``server.py`` and tests import it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson

from crypto_assets.intervals import DAY_MS
from crypto_assets.simulation.bars import (
    CLOSE,
    HIGH,
    LOW,
    OPEN,
    UNKNOWN,
    VOLUME_BASE,
    VOLUME_QUOTE,
    Bars,
    grid_start,
    last_row_wins,
    length_ms,
)
from crypto_assets.simulation.binance import Answer, order_book
from crypto_assets.simulation.render import decimal_text
from crypto_assets.simulation.world import Market, World

#: Requests an address may send in ``WINDOW_S`` seconds.
REQUESTS_PER_WINDOW = 600
WINDOW_S = 5

_INTERVALS = {"1": "1m", "3": "3m", "5": "5m", "15": "15m", "30": "30m", "60": "1h", "120": "2h", "240": "4h"}
_INTERVALS |= {"360": "6h", "720": "12h", "D": "1d", "W": "1w", "M": "1M"}
_JSON = "application/json; charset=utf-8"
_CATEGORIES = ("spot", "linear", "inverse", "option")
_OHLC_AND_VOLUMES = (OPEN, HIGH, LOW, CLOSE, VOLUME_BASE, VOLUME_QUOTE)
_MOST_KLINES, _MOST_LEVELS = 1000, 200


class _Refused(Exception):
    pass


def bybit_answer(world: World, path: str, params: Mapping[str, str], now_ms: int) -> Answer:
    """Answer GET ``path`` (``/v5/market/...``) with query ``params`` as the venue does at ``now_ms``.

    Only spot has markets here; the other categories are known and empty. Errors have status 200 and say what is
    wrong in ``retCode``, as the venue's do.
    """
    handler = _ROUTES.get(path)
    if handler is None:
        return Answer(404, b"<html><body><h2>404 Not found</h2></body></html>", content_type="text/html")
    try:
        return Answer(200, envelope(0, "OK", handler(world, params, now_ms), now_ms), 1, _JSON)
    except _Refused as refused:
        return Answer(200, envelope(10001, f"params error: {refused}", {}, now_ms), 1, _JSON)


def envelope(code: int, message: str, result: Mapping[str, object], now_ms: int) -> bytes:
    """Write the venue's answer object; code 0 is a success."""
    return orjson.dumps(
        {"retCode": code, "retMsg": message, "result": result, "retExtInfo": {}, "time": now_ms}
    )


def _time(world: World, params: Mapping[str, str], now_ms: int) -> dict[str, object]:
    return {"timeSecond": str(now_ms // 1000), "timeNano": str(now_ms * 10**6)}


def _instruments(world: World, params: Mapping[str, str], now_ms: int) -> dict[str, object]:
    category = _category(params)
    listed = _listed(world, params, category, now_ms)
    return {
        "category": category,
        "list": [
            {
                "symbol": market.exchange_symbol,
                "baseCoin": market.base,
                "quoteCoin": market.quote,
                "innovation": "0",
                "status": "Trading",
                "marginTrading": "none",
                "lotSizeFilter": {
                    "basePrecision": _plain(market.lot),
                    "quotePrecision": "0.00000001",
                    "minOrderQty": _plain(market.lot),
                    "maxOrderQty": _plain(market.lot * 10**7),
                    "minOrderAmt": _plain(market.min_notional),
                    "maxOrderAmt": "8000000",
                },
                "priceFilter": {"tickSize": _plain(market.tick)},
            }
            for market in listed
        ],
    }


def _kline(world: World, params: Mapping[str, str], now_ms: int) -> dict[str, object]:
    category, market = _one_market(world, params, now_ms)
    if params.get("interval") not in _INTERVALS:
        raise _Refused("Interval Is Invalid")
    interval = _INTERVALS[params["interval"]]
    limit = _number(params, "limit", default=200, most=_MOST_KLINES)
    start, end = _number(params, "start"), _number(params, "end")
    if start is not None and end is not None and start > end:
        raise _Refused("Start time must be less than end time")
    bars = _bars(world, market, interval, limit, start, end, now_ms)
    # The rows of the venue are numbers without zeros at the end, all as texts.
    columns = [bars.open_ms.astype(str).tolist()]
    columns += [[_plain(value) for value in bars.values[row].tolist()] for row in _OHLC_AND_VOLUMES]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return {"symbol": market.exchange_symbol, "category": category, "list": rows[::-1]}


def _bars(
    world: World, market: Market, interval: str, limit: int, start: int | None, end: int | None, now_ms: int
) -> Bars:
    """Choose the rows of a page, ascending: the last ones of the range."""
    if start is not None:
        # The bar that contains the start is part of the answer.
        start = int(grid_start(np.array([start]), interval)[0])
        if end is None:
            # So many intervals, not so many rows: before a listing and in a hole the answer is short or empty.
            end = start + limit * length_ms(interval) - 1
    # A row that comes twice at the first venue comes once here.
    bars = last_row_wins(world.klines(market.symbol, interval, now_ms=now_ms, limit=2 * limit, end_ms=end))
    bars = bars.take(bars.open_ms >= (start or 0))
    return bars.take(slice(max(0, len(bars) - limit), None))


def _orderbook(world: World, params: Mapping[str, str], now_ms: int) -> dict[str, object]:
    _, market = _one_market(world, params, now_ms)
    limit = _number(params, "limit", default=1, most=_MOST_LEVELS)
    bids, asks = order_book(world, market, limit, now_ms)
    return {
        "s": market.exchange_symbol,
        "b": _levels(bids),
        "a": _levels(asks),
        "ts": now_ms,
        "u": now_ms // 100,
        "seq": now_ms,
        "cts": now_ms,
    }


def _tickers(world: World, params: Mapping[str, str], now_ms: int) -> dict[str, object]:
    category = _category(params)
    listed = _listed(world, params, category, now_ms)
    return {"category": category, "list": [_ticker(world, market, now_ms) for market in listed]}


def _ticker(world: World, market: Market, now_ms: int) -> dict[str, str]:
    finest = min(world.intervals(market.symbol), key=length_ms)
    day = world.window(market.symbol, finest, now_ms - DAY_MS, now_ms + 1, now_ms)
    values = day.values
    bids, asks = order_book(world, market, 1, now_ms)
    best = [(int(side[0, 0]), int(side[0, 1])) if len(side) else (0, 0) for side in (bids, asks)]
    first, last = (int(values[OPEN, 0]), int(values[CLOSE, -1])) if len(day) else (0, 0)
    return {
        "symbol": market.exchange_symbol,
        "bid1Price": _plain(best[0][0]),
        "bid1Size": _plain(best[0][1]),
        "ask1Price": _plain(best[1][0]),
        "ask1Size": _plain(best[1][1]),
        "lastPrice": _plain(last),
        "prevPrice24h": _plain(first),
        "price24hPcnt": f"{(last - first) / first:.4f}" if first else "0",
        "highPrice24h": _plain(int(values[HIGH].max()) if len(day) else 0),
        "lowPrice24h": _plain(int(values[LOW].min()) if len(day) else 0),
        "turnover24h": _plain(_total(values[VOLUME_QUOTE])),
        "volume24h": _plain(_total(values[VOLUME_BASE])),
    }


_ROUTES: dict[str, Callable[[World, Mapping[str, str], int], dict[str, object]]] = {
    "/v5/market/time": _time,
    "/v5/market/instruments-info": _instruments,
    "/v5/market/kline": _kline,
    "/v5/market/orderbook": _orderbook,
    "/v5/market/tickers": _tickers,
}


def _category(params: Mapping[str, str], default: str | None = None) -> str:
    category = params.get("category", default)
    if category not in _CATEGORIES:
        raise _Refused("Category is invalid")
    return category


def _markets(world: World, category: str, now_ms: int) -> list[Market]:
    # A pair that no longer trades is not listed at all.
    spot = [market for market in world.markets(now_ms) if market.market_type == "spot"]
    return [market for market in spot if category == "spot" and world.is_trading(market, now_ms)]


def _listed(world: World, params: Mapping[str, str], category: str, now_ms: int) -> list[Market]:
    listed = _markets(world, category, now_ms)
    if "symbol" not in params:
        return listed
    chosen = [market for market in listed if market.exchange_symbol == params["symbol"]]
    if not chosen:
        raise _Refused("Symbol Invalid")
    return chosen


def _one_market(world: World, params: Mapping[str, str], now_ms: int) -> tuple[str, Market]:
    # Without a category the venue means linear contracts, of which there are none here.
    category = _category(params, "linear")
    if "symbol" not in params:
        raise _Refused("Symbol Is Required")
    return category, _listed(world, params, category, now_ms)[0]


def _number(params: Mapping[str, str], name: str, *, default: Any = None, most: int | None = None) -> Any:
    if name not in params:
        return default
    text = params[name]
    if not text.isascii() or not text.isdigit() or (most is not None and int(text) < 1):
        raise _Refused(f"{name.capitalize()} Is Invalid")
    return int(text) if most is None else min(int(text), most)


def _plain(units: int) -> str:
    # The venue prints no zeros at the end of a number; what is unknown is an empty text.
    return decimal_text(units).rstrip("0").rstrip(".") if units >= 0 else ""


def _total(values: np.ndarray) -> int:
    return int(values.sum()) if (values >= 0).all() else UNKNOWN


def _levels(levels: np.ndarray) -> list[list[str]]:
    return [[_plain(price), _plain(quantity)] for price, quantity in levels.tolist()]
