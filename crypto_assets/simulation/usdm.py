"""Binance USD-M futures answers in the exchange's shapes: bodies, statuses, error codes and request weights.

Here: parameters in, ``Answer`` out, as a function of a world and a moment. Not here: what is public when
(``world``), spot and what both share (``binance``), HTTP itself (``server``). Only ``server.py`` and tests import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import orjson

from crypto_assets.intervals import DAY_MS
from crypto_assets.simulation.bars import CLOSE, EXCHANGE_INTERVALS, decimals_of
from crypto_assets.simulation.binance import (
    ZERO,
    Answer,
    Refused,
    Routes,
    day_statistics,
    last_day,
    levels_text,
    newest_bar,
    number_of,
    order_book,
    routed_answer,
    still_statistics,
    text_of,
)
from crypto_assets.simulation.render import (
    decimal_text,
    funding_json,
    index_klines_json,
    klines_json,
    open_interest_json,
)
from crypto_assets.simulation.world import (
    NO_DELIVERY_MS,
    OPEN_INTEREST_PERIODS,
    Funding,
    Kind,
    Market,
    World,
)

#: Request weight a minute and address; spot has another budget.
WEIGHT_PER_MINUTE = 2400
#: Samples of open interest older than this are no longer served.
OPEN_INTEREST_DAYS = 30

_DEFAULT_FUNDING_HOURS = 8
_DEPTH_WEIGHTS = {5: 2, 10: 2, 20: 2, 50: 2, 100: 5, 500: 10, 1000: 20}
_INTERVALS = frozenset(EXCHANGE_INTERVALS) - {"1s"}
_ORDER_TYPES = ["LIMIT", "MARKET", "STOP", "STOP_MARKET", "TAKE_PROFIT", "TAKE_PROFIT_MARKET"]
_ORDER_TYPES += ["TRAILING_STOP_MARKET"]


def usdm_answer(world: World, path: str, params: Mapping[str, str], now_ms: int) -> Answer:
    """Answer GET ``path`` (``/fapi/v1/...`` or ``/futures/data/...``) as the exchange does at ``now_ms``.

    Notes
    -----
    Differences from spot: a page of candles has at most 1500 rows and weighs by its limit, a limit that is too
    large is refused and not cut, a depth limit must be one of seven, and a contract that no longer trades has
    no book (error -4108). An open interest page is counted from its end, and a start before the last 30 days is
    refused.
    """
    return routed_answer(_ROUTES, world, path, params, now_ms)


def _ping(world: World, params: Mapping[str, str], now_ms: int) -> Answer:
    return Answer(200, b"{}")


def _time(world: World, params: Mapping[str, str], now_ms: int) -> Answer:
    return Answer(200, orjson.dumps({"serverTime": now_ms}))


def _exchange_info(world: World, params: Mapping[str, str], now_ms: int) -> Answer:
    contracts = world.contracts(now_ms)
    body = {
        "timezone": "UTC",
        "serverTime": now_ms,
        "futuresType": "U_MARGINED",
        "rateLimits": [
            {
                "rateLimitType": "REQUEST_WEIGHT",
                "interval": "MINUTE",
                "intervalNum": 1,
                "limit": WEIGHT_PER_MINUTE,
            },
            {"rateLimitType": "ORDERS", "interval": "MINUTE", "intervalNum": 1, "limit": 1200},
            {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 300},
        ],
        "exchangeFilters": [],
        "assets": [
            {"asset": asset, "marginAvailable": True, "autoAssetExchange": "-10000"}
            for asset in dict.fromkeys(contract.settle for contract in contracts)
        ],
        "symbols": [_described(world, contract, now_ms) for contract in contracts],
    }
    return Answer(200, orjson.dumps(body))


def _klines(kind: Kind, world: World, params: Mapping[str, str], now_ms: int) -> Answer:
    symbol, interval = text_of(params, "symbol", None), text_of(params, "interval", None)
    start_ms, end_ms = number_of(params, "startTime"), number_of(params, "endTime")
    limit = _limit(params, default=500, most=1500)
    if interval not in _INTERVALS:
        raise Refused(-1120, "Invalid interval.")
    contract = _listed(world, symbol, now_ms)
    bars = world.klines(
        contract.symbol,
        interval,
        now_ms=now_ms,
        limit=limit,
        start_ms=start_ms,
        end_ms=end_ms,
        kind=kind,
    )
    body = klines_json(bars) if kind == "trade" else index_klines_json(bars)
    weight = next((cost for most, cost in ((99, 1), (499, 2), (1000, 5)) if limit <= most), 10)
    return Answer(200, body, weight=weight)


def _funding_rate(world: World, params: Mapping[str, str], now_ms: int) -> Answer:
    limit = _limit(params, default=100, most=1000)
    asked = partial(
        world.funding,
        now_ms=now_ms,
        limit=limit,
        start_ms=number_of(params, "startTime"),
        end_ms=number_of(params, "endTime"),
    )
    if "symbol" in params:
        contract = _listed(world, params["symbol"], now_ms)
        return Answer(200, funding_json(contract.exchange_symbol, asked(contract.symbol)))
    # Without a symbol the limit counts the settlements of all contracts together.
    rows = sorted(
        (int(funding.settled_ms[i]), contract.exchange_symbol, funding.take(slice(i, i + 1)))
        for contract in world.contracts(now_ms)
        for funding in [asked(contract.symbol)]
        for i in range(len(funding))
    )
    chosen = rows[:limit] if "startTime" in params else rows[-limit:]
    return Answer(200, b"[" + b",".join(_one_settlement(*row[1:]) for row in chosen) + b"]")


def _one_settlement(exchange_symbol: str, funding: Funding) -> bytes:
    return funding_json(exchange_symbol, funding)[1:-1]


def _funding_info(world: World, params: Mapping[str, str], now_ms: int) -> Answer:
    body = [
        {
            "symbol": contract.exchange_symbol,
            "adjustedFundingRateCap": "0.02000000",
            "adjustedFundingRateFloor": "-0.02000000",
            "fundingIntervalHours": hours,
            "disclaimer": False,
            "updateTime": contract.onboard_ms,
        }
        for contract in world.contracts(now_ms)
        if (hours := world.funding_hours(contract.symbol, now_ms)) not in (None, _DEFAULT_FUNDING_HOURS)
    ]
    return Answer(200, orjson.dumps(body), weight=0)


def _premium_index(world: World, params: Mapping[str, str], now_ms: int) -> Answer:
    if "symbol" in params:
        contract = _listed(world, params["symbol"], now_ms)
        return Answer(200, orjson.dumps(_premium(world, contract, now_ms)))
    # A contract that does not trade yet has no price.
    started = [c for c in world.contracts(now_ms) if c.first_ms <= min(now_ms, c.last_ms)]
    return Answer(200, orjson.dumps([_premium(world, contract, now_ms) for contract in started]), weight=10)


def _open_interest(world: World, params: Mapping[str, str], now_ms: int) -> Answer:
    contract = _trading(world, text_of(params, "symbol", None), now_ms)
    newest = world.open_interest_now(contract.symbol, now_ms)
    known = len(newest) and newest.base[0] >= 0
    amount = decimal_text(int(newest.base[0]), decimals_of(contract.lot)) if known else "0"
    stamp_ms = int(newest.stamp_ms[0]) if len(newest) else now_ms
    body = {"symbol": contract.exchange_symbol, "openInterest": amount, "time": stamp_ms}
    return Answer(200, orjson.dumps(body))


def _open_interest_history(world: World, params: Mapping[str, str], now_ms: int) -> Answer:
    symbol, period = text_of(params, "symbol", None), text_of(params, "period", None)
    if period not in OPEN_INTEREST_PERIODS:
        raise Refused(-1130, "Data sent for parameter 'period' is not valid.")
    limit = _limit(params, default=30, most=500)
    oldest_ms = now_ms - OPEN_INTEREST_DAYS * DAY_MS
    for name in ("startTime", "endTime"):
        given_ms = number_of(params, name)
        if given_ms is not None and given_ms < oldest_ms:
            raise Refused(-1130, f"parameter '{name}' is invalid.")
    contract = _listed(world, symbol, now_ms)
    start_ms = number_of(params, "startTime")
    samples = world.open_interest(
        contract.symbol,
        period,
        now_ms=now_ms,
        limit=limit,
        start_ms=oldest_ms if start_ms is None else start_ms,
        end_ms=number_of(params, "endTime"),
    )
    return Answer(200, open_interest_json(contract.exchange_symbol, samples), weight=0)


def _ticker_24hr(world: World, params: Mapping[str, str], now_ms: int) -> Answer:
    if "symbol" in params:
        contract = _listed(world, params["symbol"], now_ms)
        return Answer(200, orjson.dumps(_ticker(world, contract, now_ms)))
    tickers = [_ticker(world, contract, now_ms) for contract in world.contracts(now_ms)]
    return Answer(200, orjson.dumps(tickers), weight=40)


def _depth(world: World, params: Mapping[str, str], now_ms: int) -> Answer:
    symbol = text_of(params, "symbol", None)
    limit = number_of(params, "limit")
    limit = 500 if limit is None else limit
    if limit not in _DEPTH_WEIGHTS:
        raise Refused(-4021, f"{limit} is not valid depth limit.")
    contract = _trading(world, symbol, now_ms)
    bids, asks = (
        levels_text(levels, decimals_of(contract.tick), decimals_of(contract.lot))
        for levels in order_book(world, contract, limit, now_ms)
    )
    body = {
        "lastUpdateId": now_ms * 10,
        "E": now_ms,
        # The book changes with the second.
        "T": now_ms // 1000 * 1000,
        "bids": bids,
        "asks": asks,
    }
    return Answer(200, orjson.dumps(body), weight=_DEPTH_WEIGHTS[limit])


_KLINES = frozenset({"symbol", "interval", "startTime", "endTime", "limit"})
_ROUTES: Routes = {
    "/fapi/v1/ping": (frozenset(), _ping),
    "/fapi/v1/time": (frozenset(), _time),
    "/fapi/v1/exchangeInfo": (frozenset(), _exchange_info),
    "/fapi/v1/klines": (_KLINES, partial(_klines, "trade")),
    "/fapi/v1/markPriceKlines": (_KLINES, partial(_klines, "mark")),
    "/fapi/v1/premiumIndexKlines": (_KLINES, partial(_klines, "premium")),
    "/fapi/v1/fundingRate": (frozenset({"symbol", "startTime", "endTime", "limit"}), _funding_rate),
    "/fapi/v1/fundingInfo": (frozenset(), _funding_info),
    "/fapi/v1/premiumIndex": (frozenset({"symbol"}), _premium_index),
    "/fapi/v1/openInterest": (frozenset({"symbol"}), _open_interest),
    "/fapi/v1/ticker/24hr": (frozenset({"symbol"}), _ticker_24hr),
    "/fapi/v1/depth": (frozenset({"symbol", "limit"}), _depth),
    "/futures/data/openInterestHist": (
        frozenset({"symbol", "period", "startTime", "endTime", "limit"}),
        _open_interest_history,
    ),
}


def _described(world: World, contract: Market, now_ms: int) -> dict[str, object]:
    status = world.status(contract, now_ms)
    recorded = world.description(contract, now_ms)
    return _contract_entry(contract, status, now_ms) if recorded is None else {**recorded, "status": status}


def _contract_entry(contract: Market, status: str, now_ms: int) -> dict[str, object]:
    price, quantity = decimals_of(contract.tick), decimals_of(contract.lot)
    tick, lot = decimal_text(contract.tick, price), decimal_text(contract.lot, quantity)
    told = contract.announced_ms <= now_ms
    # A dated contract after its delivery, as recorded: status and type say it.
    delivering = f"{contract.contract_type} DELIVERING" if status == "DELIVERING" else contract.contract_type
    return {
        "symbol": contract.exchange_symbol,
        "pair": contract.base + contract.quote,
        "contractType": delivering,
        "deliveryDate": contract.delivery_ms if told else NO_DELIVERY_MS,
        "onboardDate": contract.onboard_ms,
        "status": status,
        "maintMarginPercent": "2.5000",
        "requiredMarginPercent": "5.0000",
        "baseAsset": contract.base,
        "quoteAsset": contract.quote,
        "marginAsset": contract.settle,
        "pricePrecision": price,
        "quantityPrecision": quantity,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "underlyingType": "COIN",
        "underlyingSubType": [],
        "triggerProtect": "0.0500",
        "liquidationFee": "0.012500",
        "marketTakeBound": "0.05",
        "maxMoveOrderLimit": 10000,
        "filters": [
            {
                "filterType": "PRICE_FILTER",
                "minPrice": tick,
                "maxPrice": decimal_text(contract.tick * 10**8, price),
                "tickSize": tick,
            },
            {
                "filterType": "LOT_SIZE",
                "minQty": lot,
                "maxQty": decimal_text(contract.lot * 10**7, quantity),
                "stepSize": lot,
            },
            {
                "filterType": "MARKET_LOT_SIZE",
                "minQty": lot,
                "maxQty": decimal_text(contract.lot * 10**6, quantity),
                "stepSize": lot,
            },
            {"filterType": "MAX_NUM_ORDERS", "limit": 200},
            {"filterType": "MAX_NUM_ALGO_ORDERS", "limit": 10},
            {
                "filterType": "MIN_NOTIONAL",
                "notional": decimal_text(contract.min_notional, decimals_of(contract.min_notional)),
            },
            {
                "filterType": "PERCENT_PRICE",
                "multiplierUp": "1.0500",
                "multiplierDown": "0.9500",
                "multiplierDecimal": "4",
            },
            {"filterType": "POSITION_RISK_CONTROL", "positionControlSide": "NONE"},
        ],
        "orderTypes": _ORDER_TYPES,
        "timeInForce": ["GTC", "IOC", "FOK", "GTX", "GTD"],
        "permissionSets": ["GRID", "COPY"],
    }


def _premium(world: World, contract: Market, now_ms: int) -> dict[str, object]:
    seen = world.premium(contract.symbol, now_ms)
    prices = ("markPrice", "indexPrice", "estimatedSettlePrice")
    rates = {"lastFundingRate": "", "interestRate": "", "nextFundingTime": 0}
    if seen is None:
        return {"symbol": contract.exchange_symbol, **dict.fromkeys(prices, ZERO), **rates, "time": now_ms}
    index = decimal_text(seen.index_price)
    if seen.rate is not None:
        rates = {
            "lastFundingRate": decimal_text(seen.rate),
            "interestRate": "0.00010000",
            "nextFundingTime": seen.next_settlement_ms or 0,
        }
    return {
        "symbol": contract.exchange_symbol,
        **dict(zip(prices, (decimal_text(seen.mark_price), index, index), strict=True)),
        **rates,
        "time": now_ms,
    }


def _ticker(world: World, contract: Market, now_ms: int) -> dict[str, object]:
    bars = last_day(world, contract, now_ms)
    if len(bars):
        return day_statistics(contract, bars, now_ms)
    fields = still_statistics(contract, now_ms)
    last = newest_bar(world, contract, now_ms)
    return fields | ({"lastPrice": decimal_text(int(last.values[CLOSE, 0]))} if len(last) else {})


def _limit(params: Mapping[str, str], *, default: int, most: int) -> int:
    limit = number_of(params, "limit")
    if limit is None:
        return default
    if not 1 <= limit <= most:
        raise Refused(-1130, "Data sent for parameter 'limit' is not valid.")
    return limit


def _listed(world: World, symbol: str, now_ms: int) -> Market:
    contract = world.contract(symbol, now_ms)
    if contract is None:
        raise Refused(-1121, "Invalid symbol.")
    return contract


def _trading(world: World, symbol: str, now_ms: int) -> Market:
    contract = _listed(world, symbol, now_ms)
    if world.status(contract, now_ms) != "TRADING":
        raise Refused(-4108, "Symbol is on delivering or delivered or settling or closed or pre-trading.")
    return contract
