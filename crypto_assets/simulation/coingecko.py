"""CoinGecko v3 answers in its shapes: bodies, statuses, errors, its automatic granularity, and what each plan may ask.

Here: parameters and headers in, ``Answer`` out, as a function of a world and a moment. Not here: what is public when
(``world`` and its subclasses), HTTP itself (``server``). Only ``server.py`` and tests import it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import orjson

from crypto_assets.intervals import DAY_MS, from_ms, interval_ms, to_ms
from crypto_assets.simulation.binance import Answer
from crypto_assets.simulation.world import Coin, CoinPoints, World

_JSON = "application/json; charset=utf-8"
_OHLC_DAYS = {
    "1": "30m",
    "7": "4h",
    "14": "4h",
    "30": "4h",
    "90": "4d",
    "180": "4d",
    "365": "4d",
    "max": "4d",
}
#: Most days that one ohlc/range question may span.
_OHLC_RANGE_DAYS = {"daily": ("1d", 180), "hourly": ("1h", 31)}
_DEMO_HEADER, _PRO_HEADER = "x-cg-demo-api-key", "x-cg-pro-api-key"
#: Oldest moment that plans without payment may ask for.
_FREE_DAYS = 365
_PRICING = "https://www.coingecko.com/en/api/pricing"
#: Categories that tell what a coin is a claim on, of the coins that the worlds have.
_CATEGORIES_OF: Mapping[str, tuple[str, ...]] = {
    "arbitrum-bridged-weth-arbitrum-one": ("bridged-tokens", "wrapped-tokens"),
    "benqi-liquid-staked-avax": ("liquid-staking-tokens",),
    "binance-peg-dogecoin": ("bridged-tokens",),
    "bitcoin-avalanche-bridged-btc-b": ("bridged-tokens", "wrapped-tokens", "tokenized-btc"),
    "bridged-usdc-polygon-pos-bridge": ("bridged-tokens", "stablecoins"),
    "coinbase-wrapped-staked-eth": ("liquid-staking-tokens", "wrapped-tokens"),
    "dai": ("stablecoins",),
    "first-digital-usd": ("stablecoins",),
    "frax-ether": ("liquid-staking-tokens",),
    "gho": ("stablecoins",),
    "honey-3": ("stablecoins",),
    "ipmb": ("tokenized-gold",),
    "jupiter-staked-sol": ("liquid-staking-tokens",),
    "kinesis-silver": ("tokenized-silver",),
    "l2-standard-bridged-weth-blast": ("bridged-tokens", "wrapped-tokens"),
    "lift-dollar": ("stablecoins",),
    "lombard-staked-btc": ("tokenized-btc",),
    "polygon-pos-bridged-dai-polygon-pos": ("bridged-tokens", "stablecoins"),
    "renzo-restaked-eth": ("liquid-restaking-tokens",),
    "sbtc-2": ("tokenized-btc",),
    "stader-ethx": ("liquid-staking-tokens",),
    "stakewise-v3-oseth": ("liquid-staking-tokens",),
    "sweth": ("liquid-staking-tokens",),
    "tether": ("stablecoins",),
    "tether-gold": ("tokenized-gold",),
    "treehouse-eth": ("liquid-staking-tokens",),
    "usd-coin": ("stablecoins",),
    "usdb": ("stablecoins",),
    "usdx-money-usdx": ("stablecoins",),
    "weth": ("wrapped-tokens",),
    "wrapped-beacon-eth": ("liquid-staking-tokens", "wrapped-tokens"),
    "wrapped-bitcoin": ("wrapped-tokens", "tokenized-btc"),
}
_ORDERS: dict[str, tuple[str, bool]] = {
    "market_cap_desc": ("market_cap", True),
    "market_cap_asc": ("market_cap", False),
    "volume_desc": ("total_volume", True),
    "volume_asc": ("total_volume", False),
    "id_asc": ("id", False),
    "id_desc": ("id", True),
}


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.body: Mapping[str, object] = {"error": message}


class _PlanRefused(_Refused):
    def __init__(self, code: int, message: str, now_ms: int, *, nested: bool = False) -> None:
        super().__init__(401, message)
        moment = from_ms(now_ms).isoformat(timespec="milliseconds") + "+00:00"
        status = {"status": {"timestamp": moment, "error_code": code, "error_message": message}}
        self.body = {"error": status} if nested else status


Plan = Literal["open", "public", "demo", "pro"]


@dataclass(frozen=True)
class _Asker:
    """Who asks: what the plan does not allow is refused, as far as there are plans."""

    plan: Plan
    now_ms: int

    @property
    def pays(self) -> bool:
        return self.plan in ("open", "pro")

    def needs_payment(self) -> None:
        if not self.pays:
            raise _PlanRefused(
                10005,
                f"This request is limited to PRO API subscribers. Please visit {_PRICING} to subscribe to our API plans "
                "to access this exclusive endpoint.",
                self.now_ms,
            )

    def looks_back_to(self, start_ms: int) -> None:
        if not self.pays and start_ms < self.now_ms - _FREE_DAYS * DAY_MS:
            raise _PlanRefused(
                10012,
                "Your request exceeds the allowed time range. Public API users are limited to querying historical data "
                f"within the past {_FREE_DAYS} days. Upgrade to a paid plan to enjoy full historical data access: "
                f"{_PRICING}. ",
                self.now_ms,
                nested=True,
            )


def coingecko_answer(
    world: World,
    path: str,
    params: Mapping[str, str],
    now_ms: int,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Answer GET ``path`` (below ``/api/v3``, such as ``/coins/list``) as CoinGecko does at ``now_ms``.

    Parameters
    ----------
    world
        What there is to know.
    path, params
        The question. Prices are in USD; any other ``vs_currency`` is refused as invalid.
    now_ms
        The moment of the question.
    headers
        Headers of the request, in lower case: the key in them tells the plan (pro, demo, or without one public), and
        with it how far back and which routes may be asked. ``None``: there are no plans, everything may be asked.

    Returns
    -------
    Answer
        With status 401 and CoinGecko's code where the plan does not allow the question: 10002 (key missing), 10005
        (route of paid plans), 10012 (more than 365 days back).
    """
    for pattern, handler in _ROUTES:
        if match := re.fullmatch(pattern, path):
            try:
                asker = _Asker(_plan_of(headers, now_ms), now_ms)
                body = handler(world, params, asker, *match.groups())
            except _Refused as refused:
                return Answer(refused.status, orjson.dumps(refused.body), content_type=_JSON)
            except KeyError:
                return Answer(404, orjson.dumps({"error": "coin not found"}), content_type=_JSON)
            return Answer(200, orjson.dumps(body), content_type=_JSON)
    message = "Incorrect path. Please check https://www.coingecko.com/api/"
    return Answer(404, orjson.dumps({"error": message}), content_type=_JSON)


def _plan_of(headers: Mapping[str, str] | None, now_ms: int) -> Plan:
    if headers is None:
        return "open"
    plans: tuple[tuple[Plan, str], ...] = (("pro", _PRO_HEADER), ("demo", _DEMO_HEADER))
    for plan, header in plans:
        if header in headers:
            if not headers[header].strip():
                raise _PlanRefused(
                    10002,
                    "API Key Missing. Please make sure you're using the right authentication method.",
                    now_ms,
                )
            return plan
    return "public"


def _ping(world: World, params: Mapping[str, str], asker: _Asker) -> object:
    return {"gecko_says": "(V3) To the Moon!"}


def _list(world: World, params: Mapping[str, str], asker: _Asker) -> object:
    platforms: dict[str, object] = {"platforms": {}} if params.get("include_platform") == "true" else {}
    coins = world.coins(asker.now_ms)
    return [{"id": c.coin_id, "symbol": c.ticker, "name": c.name, **platforms} for c in coins]


def _markets(world: World, params: Mapping[str, str], asker: _Asker) -> object:
    now_ms = asker.now_ms
    _currency(params)
    order = params.get("order", "market_cap_desc")
    if order not in _ORDERS:
        raise _Refused(422, f"Invalid order {order}")
    rows = [row for coin in world.coins(now_ms) if (row := _market_row(world, coin, now_ms))]
    rows.sort(key=lambda row: -(row["market_cap"] or 0.0))
    for rank, row in enumerate(rows, start=1):
        row["market_cap_rank"] = rank if row["market_cap"] else None
    wanted = {coin_id.strip() for coin_id in params.get("ids", "").split(",")} - {""}
    rows = [row for row in rows if not wanted or row["id"] in wanted]
    if category := params.get("category"):
        # Of a category that has no coin here nothing is known, so it is empty like one of no ranked coins.
        rows = [row for row in rows if category in _CATEGORIES_OF.get(row["id"], ())]
    key, falling = _ORDERS[order]
    known = sorted((row for row in rows if row[key] is not None), key=lambda row: row[key], reverse=falling)
    rows = known + [row for row in rows if row[key] is None]
    per_page = min(250, _positive(params, "per_page", 100))
    first = (_positive(params, "page", 1) - 1) * per_page
    return rows[first : first + per_page]


def _range(world: World, params: Mapping[str, str], asker: _Asker, coin_id: str) -> object:
    _currency(params)
    return _chart(
        world, coin_id, _moment(params, "from"), _moment(params, "to"), params.get("interval"), asker
    )


def _days(world: World, params: Mapping[str, str], asker: _Asker, coin_id: str) -> object:
    _currency(params)
    days = _needed(params, "days")
    if days == "max":
        start_ms = 0
    elif re.fullmatch(r"\d+(\.\d+)?", days):
        start_ms = asker.now_ms - round(float(days) * DAY_MS)
    else:
        raise _Refused(422, f"Invalid days {days}")
    return _chart(world, coin_id, start_ms, asker.now_ms, params.get("interval"), asker)


def _chart(
    world: World, coin_id: str, start_ms: int, end_ms: int, interval: str | None, asker: _Asker
) -> object:
    now_ms = asker.now_ms
    if interval not in (None, "daily", "hourly", "5m"):
        raise _Refused(422, f"Invalid interval {interval}")
    asker.looks_back_to(start_ms)
    span = end_ms - start_ms
    automatic = "5m" if span <= DAY_MS else "1h" if span <= 90 * DAY_MS else "1d"
    step = {"daily": "1d", "hourly": "1h", "5m": "5m"}.get(interval or "", automatic)
    points = world.coin_points(coin_id, step, start_ms, end_ms, now_ms)
    if end_ms >= now_ms >= start_ms:
        points = _with_now(points, world.coin_now(coin_id, now_ms), now_ms)
    stamps = points.stamp_ms.tolist()
    columns = {
        "prices": points.price_usd,
        "market_caps": points.market_cap_usd,
        "total_volumes": points.volume_usd,
    }
    return {name: list(zip(stamps, values.tolist(), strict=True)) for name, values in columns.items()}


def _with_now(points: CoinPoints, newest: CoinPoints, now_ms: int) -> CoinPoints:
    # The last update lies some seconds back, and never on midnight: only daily points do.
    stamp = now_ms - 1 - now_ms // 1000 % 50 * 1000
    stamp -= stamp % DAY_MS == 0
    if not len(newest) or (len(points) and points.stamp_ms[-1] >= stamp):
        return points
    return CoinPoints(
        np.r_[points.stamp_ms, stamp],
        np.r_[points.price_usd, newest.price_usd],
        np.r_[points.market_cap_usd, newest.market_cap_usd],
        np.r_[points.volume_usd, newest.volume_usd],
    )


def _ohlc(world: World, params: Mapping[str, str], asker: _Asker, coin_id: str) -> object:
    _currency(params)
    days = _needed(params, "days")
    if days not in _OHLC_DAYS:
        raise _Refused(422, f"Invalid days {days}; valid values: {', '.join(_OHLC_DAYS)}")
    start_ms = 0 if days == "max" else asker.now_ms - int(days) * DAY_MS
    asker.looks_back_to(start_ms)
    return _candles(world, coin_id, _OHLC_DAYS[days], start_ms, asker.now_ms, asker.now_ms)


def _ohlc_range(world: World, params: Mapping[str, str], asker: _Asker, coin_id: str) -> object:
    asker.needs_payment()
    _currency(params)
    start_ms, end_ms, interval = _moment(params, "from"), _moment(params, "to"), _needed(params, "interval")
    if interval not in _OHLC_RANGE_DAYS:
        raise _Refused(422, f"Invalid interval {interval}; valid values: {', '.join(_OHLC_RANGE_DAYS)}")
    step, most_days = _OHLC_RANGE_DAYS[interval]
    if end_ms - start_ms > most_days * DAY_MS:
        raise _Refused(422, f"The range must not exceed {most_days} days for interval {interval}")
    # Recorded: every answer begins with the candle that ends at or before its start, so that parts of a long range share
    # the candle at their joint, also where the parts are cut between two stamps.
    return _candles(world, coin_id, step, start_ms - start_ms % interval_ms(step), end_ms, asker.now_ms)


def _candles(
    world: World, coin_id: str, step: str, start_ms: int, end_ms: int, now_ms: int
) -> list[list[float]]:
    candles = world.coin_candles(coin_id, step, start_ms, end_ms, now_ms)
    rows = zip(candles.stamp_ms.tolist(), candles.prices.T.tolist(), strict=True)
    return [[stamp, *prices] for stamp, prices in rows]


_Handler = Callable[..., object]
_ROUTES: Sequence[tuple[str, _Handler]] = (
    ("/ping", _ping),
    ("/coins/list", _list),
    ("/coins/markets", _markets),
    ("/coins/([^/]+)/market_chart/range", _range),
    ("/coins/([^/]+)/market_chart", _days),
    ("/coins/([^/]+)/ohlc/range", _ohlc_range),
    ("/coins/([^/]+)/ohlc", _ohlc),
)


def _market_row(world: World, coin: Coin, now_ms: int) -> dict[str, Any] | None:
    try:
        newest = world.coin_now(coin.coin_id, now_ms)
    except KeyError:
        # Listed by name only: a recorded coin list is longer than the recorded charts.
        return None
    if not len(newest):
        return None
    price, cap, volume = (
        float(column[0]) for column in (newest.price_usd, newest.market_cap_usd, newest.volume_usd)
    )
    stamp = int(newest.stamp_ms[0])
    history = world.coin_points(coin.coin_id, "1d", 0, stamp, now_ms)
    before = history.take(history.stamp_ms <= stamp - DAY_MS).take(slice(-1, None))
    best, worst = (_extreme(newest, history, pick) for pick in (np.nanargmax, np.nanargmin))
    supply = cap / price if cap > 0 else None
    return {
        "id": coin.coin_id,
        "symbol": coin.ticker,
        "name": coin.name,
        "image": f"https://assets.coingecko.com/coins/images/{coin.coin_id}/large.png",
        "current_price": price,
        "market_cap": _known(cap),
        "market_cap_rank": None,
        "fully_diluted_valuation": _known(cap),
        "total_volume": _known(volume),
        **_day_range(world.coin_points(coin.coin_id, "1h", now_ms - DAY_MS, now_ms, now_ms), price),
        **_changes("price", price, before.price_usd),
        **_changes("market_cap", cap, before.market_cap_usd),
        "circulating_supply": supply,
        "total_supply": supply,
        "max_supply": None,
        "ath": best[0],
        "ath_change_percentage": (price / best[0] - 1) * 100,
        "ath_date": _iso(best[1]),
        "atl": worst[0],
        "atl_change_percentage": (price / worst[0] - 1) * 100,
        "atl_date": _iso(worst[1]),
        "roi": None,
        "last_updated": _iso(stamp),
    }


def _extreme(
    newest: CoinPoints, history: CoinPoints, pick: Callable[[np.ndarray], np.intp]
) -> tuple[float, int]:
    prices = np.r_[history.price_usd, newest.price_usd]
    stamps = np.r_[history.stamp_ms, newest.stamp_ms]
    i = int(pick(prices))
    return float(prices[i]), int(stamps[i])


def _day_range(points: CoinPoints, price: float) -> dict[str, object]:
    # One point a day says nothing about the range of a day.
    if len(points) < 2:
        return {"high_24h": None, "low_24h": None}
    return {
        "high_24h": max(price, *points.price_usd.tolist()),
        "low_24h": min(price, *points.price_usd.tolist()),
    }


def _changes(name: str, value: float, before: np.ndarray) -> dict[str, object]:
    old = float(before[0]) if len(before) else float("nan")
    known = value == value and old > 0
    return {
        f"{name}_change_24h": value - old if known else None,
        f"{name}_change_percentage_24h": (value / old - 1) * 100 if known else None,
    }


def _known(value: float) -> float | None:
    return value if value == value else None


def _iso(stamp_ms: int) -> str:
    return from_ms(stamp_ms).isoformat(timespec="milliseconds") + "Z"


def _needed(params: Mapping[str, str], name: str) -> str:
    if not params.get(name):
        raise _Refused(422, f"Missing parameter {name}")
    return params[name]


def _currency(params: Mapping[str, str]) -> None:
    if _needed(params, "vs_currency").lower() != "usd":
        raise _Refused(400, "invalid vs_currency")


def _positive(params: Mapping[str, str], name: str, default: int) -> int:
    text = params.get(name) or str(default)
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise _Refused(422, f"Invalid {name} {text}")
    return int(text)


def _moment(params: Mapping[str, str], name: str) -> int:
    text = _needed(params, name)
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return round(float(text) * 1000)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _Refused(422, f"Invalid {name} {text}; give UNIX seconds or an ISO date") from None
    return to_ms(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
