"""CoinGecko: the list of coins, market ranks, daily market caps and OHLC through the pycoingecko client.

Here: one client that asks, validates every answer and returns Arrow tables, and its Dagster resource. Not
here: the mapping of coins to exchange symbols, ``known_at`` and storing (assets and warehouse), pacing and
retries (``sources.py``). The API key travels in a header only. Assets receive ``CoinGeckoResource``; the CLI
and tests use ``CoinGeckoClient``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import pyarrow as pa
from pydantic import Field

from crypto_assets.intervals import DAY_MS, HOUR_MS, MINUTE_MS, from_ms, to_ms
from crypto_assets.resources.sources import Answer, Failure, RateBudget, Request, RetryPolicy, SourceCaller

_TIMESTAMP = pa.timestamp("us")

#: One row per coin of ``/coins/list``; a ticker is shared by many coins and may be empty.
COIN_SCHEMA = pa.schema(
    [
        pa.field("coin_id", pa.string(), nullable=False),
        pa.field("ticker", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
    ]
)

#: One row per coin of ``/coins/markets``; null means unknown.
MARKET_SCHEMA = pa.schema(
    [
        *COIN_SCHEMA,
        pa.field("market_cap_rank", pa.int64()),
        pa.field("market_cap_usd", pa.float64()),
        pa.field("price_usd", pa.float64()),
        pa.field("volume_usd", pa.float64()),
        pa.field("seen_at", _TIMESTAMP, nullable=False),
    ]
)

#: One row per coin and day; null means unknown.
MARKET_CAP_SCHEMA = pa.schema(
    [
        pa.field("coin_id", pa.string(), nullable=False),
        pa.field("ts", _TIMESTAMP, nullable=False),
        pa.field("price_usd", pa.float64()),
        pa.field("market_cap_usd", pa.float64()),
        pa.field("volume_usd", pa.float64()),
    ]
)

#: One row per coin, interval and candle.
OHLC_SCHEMA = pa.schema(
    [
        pa.field("coin_id", pa.string(), nullable=False),
        pa.field("interval", pa.string(), nullable=False),
        pa.field("ts", _TIMESTAMP, nullable=False),
        pa.field("open_usd", pa.float64(), nullable=False),
        pa.field("high_usd", pa.float64(), nullable=False),
        pa.field("low_usd", pa.float64(), nullable=False),
        pa.field("close_usd", pa.float64(), nullable=False),
    ]
)

_BASE_URLS: Mapping[str, str] = {
    "public": "https://api.coingecko.com/api/v3/",
    "demo": "https://api.coingecko.com/api/v3/",
    "pro": "https://pro-api.coingecko.com/api/v3/",
}
_KEY_HEADERS: Mapping[str, str] = {"demo": "x-cg-demo-api-key", "pro": "x-cg-pro-api-key"}
_MARKETS_PER_PAGE = 250
# Above 90 days CoinGecko answers daily points at 00:00 UTC by itself; asking for an interval needs a paid
# plan.
_DAILY_FROM = timedelta(days=91)
# CoinGecko's choice of the candle length by the number of days asked for.
_OHLC_INTERVALS: Mapping[int | Literal["max"], tuple[str, int]] = {
    1: ("30m", 30 * MINUTE_MS),
    **dict.fromkeys((7, 14, 30), ("4h", 4 * HOUR_MS)),
    **dict.fromkeys((90, 180, 365), ("4d", 4 * DAY_MS)),
    "max": ("4d", 4 * DAY_MS),
}


class CoinGeckoClient:
    """Public market data of CoinGecko in US dollars.

    Safe to share between threads; processes share the rate limit through the budget's file, one unit a
    request. The local clock is never read.

    Parameters
    ----------
    budget
        Rate budget in requests.
    base_url
        Address to use in place of CoinGecko's own, up to and including ``/api/v3``; ``None`` is live.
    plan
        ``public`` (no key), ``demo`` or ``pro``: decides the live host and the header that carries the key.
    api_key
        API key of the plan; ``None`` with ``public`` only.
    timeout_s
        Seconds to wait for a connection and for each part of an answer.
    retry
        Retry policy.

    Raises
    ------
    ValueError
        If plan and key do not fit, the key has characters that a header cannot carry (the key is not shown),
        or the address is not an http address.
    """

    def __init__(
        self,
        budget: RateBudget,
        *,
        base_url: str | None = None,
        plan: str = "public",
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retry: RetryPolicy | None = None,
    ) -> None:
        from pycoingecko import CoinGeckoAPI
        from requests.adapters import HTTPAdapter

        _check_key(plan, api_key)
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            raise ValueError(
                f"the base address {base_url!r} of coingecko must start with http:// or https://"
            )
        # Never given to the library: pycoingecko 3.2.0 writes the key into the URL, and so into logs and
        # errors.
        self._api: Any = CoinGeckoAPI()
        self._api.api_base_url = f"{(base_url or _BASE_URLS[plan]).rstrip('/')}/"
        self._api.request_timeout = timeout_s
        session = self._api.session
        # pycoingecko mounts an adapter that repeats by itself, past the budget.
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter())
        if api_key is not None:
            session.headers[_KEY_HEADERS[plan]] = api_key
        self._caller = SourceCaller(
            budget, retry or RetryPolicy(), _read_failure, secrets=(api_key,) if api_key else ()
        )
        self._caller.wire.watch(session)

    def coins(self) -> pa.Table:
        """List every coin that CoinGecko knows, by ``COIN_SCHEMA`` (one request).

        Tickers are in the spelling of the source (lower case); they are no key.
        """
        return self._call("coins/list", {}, self._api.get_coins_list, _parse_coins)

    def markets(self, n_top: int, at: datetime) -> pa.Table:
        """Return the largest coins by market cap now, by ``MARKET_SCHEMA`` (one request for every 250).

        Parameters
        ----------
        n_top
            How many coins to ask for; fewer come when the list ends.
        at
            When the answer is seen, naive UTC, given by the caller; it becomes ``seen_at`` of every row.

        Returns
        -------
        pyarrow.Table
            In the order of the source. A coin that changed pages between two requests is kept once, as first
            seen. A market cap or price of 0 is unknown, hence null.

        Raises
        ------
        ValueError
            If ``n_top`` is not positive.
        """
        if n_top < 1:
            raise ValueError(f"n_top is {n_top}; ask for 1 coin or more")
        per_page = min(n_top, _MARKETS_PER_PAGE)
        rows: dict[str, dict[str, object]] = {}
        for page in range(1, math.ceil(n_top / per_page) + 1):
            params = {"vs_currency": "usd", "order": "market_cap_desc", "per_page": per_page, "page": page}
            found = self._call("coins/markets", params, self._api.get_coins_markets, _parse_markets)
            for row in found:
                rows.setdefault(str(row["coin_id"]), {**row, "seen_at": at})
            if len(found) < per_page:
                break
        return pa.Table.from_pylist(list(rows.values())[:n_top], schema=MARKET_SCHEMA)

    def market_caps(self, coin_id: str, start: datetime, end: datetime) -> pa.Table:
        """Daily price, market cap and volume of one coin, by ``MARKET_CAP_SCHEMA`` (one request).

        CoinGecko stamps the end of a day: the point of D 00:00 is the close of D-1 and gets ``ts`` = D-1.
        The time at which a row may be known is the caller's to add: the stamp plus the publication lag.

        Parameters
        ----------
        coin_id
            CoinGecko's id, never a ticker.
        start, end
            Range of ``ts`` [start, end), naive UTC. More than 90 days are asked for, reaching back from
            ``end``, so that the answer is daily; a plan with a limited history may refuse a range near that
            limit.

        Returns
        -------
        pyarrow.Table
            Ascending by ``ts``, one row per day that the source has; missing days stay missing. Points not
            stamped exactly 00:00 UTC are dropped, of repeated stamps the last counts. A market cap or price
            of 0 is unknown, hence null.

        Raises
        ------
        ValueError
            If the range is empty.
        SourceError
            As ``SourceCaller.call``; an unknown coin is ``SourceRefused``.
        """
        if start >= end:
            raise ValueError(f"empty range of {coin_id}: start {start} is not before end {end}")
        # The last stamp needed is `end` itself; the hour after it is asked for lest the source excludes its
        # bound.
        last = end + timedelta(hours=1)
        first = min(start + timedelta(days=1), last - _DAILY_FROM)
        params = {"vs_currency": "usd", "from": to_ms(first) // 1000, "to": to_ms(last) // 1000}

        def send() -> object:
            return self._api.get_coin_market_chart_range_by_id(coin_id, "usd", params["from"], params["to"])

        def accept(payload: object) -> pa.Table:
            return _parse_market_caps(payload, coin_id, to_ms(start), to_ms(end))

        return self._send(f"coins/{coin_id}/market_chart/range", params, send, accept)

    def ohlc(self, coin_id: str, days: int | Literal["max"], closed_before: datetime) -> pa.Table:
        """Candles of the last days of one coin, by ``OHLC_SCHEMA`` (one request).

        CoinGecko stamps the end of a candle, and the last one may still be open; ``ts`` is the start, and
        only candles that end at or before ``closed_before`` are returned.

        Parameters
        ----------
        coin_id
            CoinGecko's id, never a ticker.
        days
            1 (30-minute candles), 7, 14, 30 (4 hours), 90, 180, 365 or ``max`` (4 days).
        closed_before
            Time of the tick, naive UTC, from the clock of a source.

        Returns
        -------
        pyarrow.Table
            Ascending by ``ts``; of repeated stamps the last counts, stamps off the grid of minutes, hours or
            days are dropped.

        Raises
        ------
        ValueError
            If ``days`` is none of the above.
        SourceError
            As ``SourceCaller.call``; an unknown coin is ``SourceRefused``.
        """
        if days not in _OHLC_INTERVALS:
            raise ValueError(f"days is {days!r}; CoinGecko answers {', '.join(map(str, _OHLC_INTERVALS))}")
        interval, length_ms = _OHLC_INTERVALS[days]

        def send() -> object:
            return self._api.get_coin_ohlc_by_id(coin_id, "usd", days)

        def accept(payload: object) -> pa.Table:
            return _parse_ohlc(payload, coin_id, interval, length_ms, to_ms(closed_before))

        return self._send(f"coins/{coin_id}/ohlc", {"vs_currency": "usd", "days": days}, send, accept)

    def _call(
        self,
        path: str,
        params: Mapping[str, object],
        method: Callable[..., object],
        accept: Callable[[object], Answer],
    ) -> Answer:
        return self._send(path, params, lambda: method(**params), accept)

    def _send(
        self,
        path: str,
        params: Mapping[str, object],
        send: Callable[[], object],
        accept: Callable[[object], Answer],
    ) -> Answer:
        return self._caller.call(Request("coingecko", f"/api/v3/{path}", params), send, accept)


class CoinGeckoResource(dg.ConfigurableResource):
    """Dagster resource that builds the CoinGecko client.

    Attributes
    ----------
    base_url
        Address to use in place of CoinGecko's own; ``None`` is live.
    plan
        ``public``, ``demo`` or ``pro``.
    api_key
        API key; give it as ``dg.EnvVar``, so that Dagster shows the name of the variable and never the key.
    timeout_s
        Seconds to wait for CoinGecko.
    budget_dir
        Folder of the rate budgets; every process on the machine must use the same one.
    calls_per_minute
        Requests to send in any 60 seconds; the demo plan allows 30, without a key it is less and varies.
    """

    base_url: str | None = None
    # Dagster's configuration knows no Literal; the client checks the name.
    plan: str = "public"
    api_key: str | None = Field(default=None, repr=False)
    timeout_s: float = 30.0
    budget_dir: str
    calls_per_minute: int = 25

    def client(self) -> CoinGeckoClient:
        """Build a client under the shared budget; do it once per step and pass it on."""
        return CoinGeckoClient(
            RateBudget(Path(self.budget_dir), "coingecko", self.calls_per_minute),
            base_url=self.base_url,
            plan=self.plan,
            api_key=self.api_key,
            timeout_s=self.timeout_s,
        )


def _check_key(plan: str, api_key: str | None) -> None:
    if plan not in _BASE_URLS:
        raise ValueError(f"unknown CoinGecko plan {plan!r}; known: {', '.join(_BASE_URLS)}")
    if (api_key is None) != (plan == "public"):
        raise ValueError(
            f"the CoinGecko plan {plan!r} {'takes no' if plan == 'public' else 'needs an'} API key; "
            "set plan and key together"
        )
    # requests quotes a header value it rejects, so a broken key must not get that far.
    if api_key is not None and not (
        api_key.isascii() and api_key.isprintable() and [api_key] == api_key.split()
    ):
        raise ValueError("the CoinGecko API key is empty or has blanks or special characters; copy it again")


def _parse_coins(payload: object) -> pa.Table:
    rows = [_identity(coin) for coin in _objects(payload)]
    table = pa.Table.from_pylist(rows, schema=COIN_SCHEMA)
    if len(table.column("coin_id").unique()) != len(table):
        raise ValueError(f"the ids of the {len(table)} coins are not unique")
    return table


def _parse_markets(payload: object) -> list[dict[str, object]]:
    return [
        {
            **_identity(coin),
            "market_cap_rank": _rank(coin.get("market_cap_rank")),
            "market_cap_usd": _number(coin.get("market_cap"), "market_cap") or None,
            "price_usd": _number(coin.get("current_price"), "current_price") or None,
            "volume_usd": _number(coin.get("total_volume"), "total_volume"),
        }
        for coin in _objects(payload)
    ]


def _parse_market_caps(payload: object, coin_id: str, start_ms: int, end_ms: int) -> pa.Table:
    if not isinstance(payload, dict):
        raise TypeError(f"an object of three series was expected, {_shown(payload)} came")
    prices, caps, volumes = (_daily(payload, key) for key in ("prices", "market_caps", "total_volumes"))
    stamps = sorted(prices.keys() | caps.keys() | volumes.keys())
    rows = [
        {
            "coin_id": coin_id,
            "ts": from_ms(stamp - DAY_MS),
            "price_usd": prices.get(stamp) or None,
            "market_cap_usd": caps.get(stamp) or None,
            "volume_usd": volumes.get(stamp),
        }
        for stamp in stamps
        if start_ms <= stamp - DAY_MS < end_ms
    ]
    return pa.Table.from_pylist(rows, schema=MARKET_CAP_SCHEMA)


def _daily(payload: Mapping[str, object], key: str) -> dict[int, float | None]:
    points = payload.get(key)
    if not isinstance(points, list):
        raise TypeError(f"a list {key!r} was expected, {_shown(points)} came")
    # Of repeated stamps, as they come where ranges join, the last one stays.
    return {stamp: value for stamp, (value,) in _stamped(points, 2, key) if stamp % DAY_MS == 0}


def _parse_ohlc(payload: object, coin_id: str, interval: str, length_ms: int, closed_ms: int) -> pa.Table:
    if not isinstance(payload, list):
        raise TypeError(f"a list of candles was expected, {_shown(payload)} came")
    # Four-day candles have no common anchor, but they end at midnight.
    grid_ms = min(length_ms, DAY_MS)
    candles = {
        stamp: prices
        for stamp, prices in _stamped(payload, 5, "ohlc")
        if stamp % grid_ms == 0 and stamp <= closed_ms
    }
    rows = []
    for stamp, (open_, high, low, close) in sorted(candles.items()):
        if open_ is None or high is None or low is None or close is None:
            raise ValueError(f"the candle stamped {stamp} has a null price")
        if not 0 < low <= min(open_, close) or not high >= max(open_, close):
            raise ValueError(
                f"0 < low <= open, close <= high must hold, but the candle stamped {stamp} is "
                f"{[open_, high, low, close]}"
            )
        rows.append([coin_id, interval, from_ms(stamp - length_ms), open_, high, low, close])
    columns = zip(*rows, strict=True) if rows else ([] for _ in OHLC_SCHEMA)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, OHLC_SCHEMA, strict=True)],
        schema=OHLC_SCHEMA,
    )


def _stamped(points: Iterable[object], width: int, what: str) -> Iterable[tuple[int, list[float | None]]]:
    for point in points:
        if not isinstance(point, list) or len(point) != width or type(point[0]) is not int:
            raise ValueError(
                f"a point of {what} must be [milliseconds, {width - 1} values], {_shown(point)} came"
            )
        yield point[0], [_number(value, what) for value in point[1:]]


def _objects(payload: object) -> list[dict]:
    if not isinstance(payload, list):
        raise TypeError(f"a list of coins was expected, {_shown(payload)} came")
    for coin in payload:
        if not isinstance(coin, dict):
            raise TypeError(f"a coin must be an object, {_shown(coin)} came")
    return payload


def _identity(coin: Mapping[str, object]) -> dict[str, object]:
    identity = {"coin_id": coin.get("id"), "ticker": coin.get("symbol"), "name": coin.get("name")}
    if not all(isinstance(text, str) for text in identity.values()) or not identity["coin_id"]:
        raise ValueError(f"a coin must state id, symbol and name, {identity} came")
    return identity


def _rank(value: object) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"market_cap_rank must be a positive integer or null, {value!r} came")
    return value


def _number(value: object, what: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{what} must be a finite number, not negative, or null, {value!r} came")
    return float(value)


def _read_failure(error: Exception) -> Failure | None:
    import requests

    if isinstance(error, requests.exceptions.JSONDecodeError | requests.exceptions.ContentDecodingError):
        return "garbled"
    if isinstance(error, requests.exceptions.ConnectionError | requests.exceptions.Timeout):
        return "refused" if isinstance(error, requests.exceptions.SSLError) else "unavailable"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "unavailable"
    if isinstance(error, requests.exceptions.RequestException):
        return "refused"
    # pycoingecko raises a bare ValueError for every body it cannot decode or that comes with an error status.
    return "garbled" if isinstance(error, ValueError) else None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
