"""The exchange: server time, markets and closed candles through ccxt's implicit endpoint methods.

Here: one client for one venue that asks, validates every answer and returns Arrow tables, and its Dagster
resource. Not here: which ranges are missing (coverage), storing, gaps and revisions (the warehouse), and how
requests are paced and repeated (``sources.py``). Assets receive ``ExchangeResource``; sensors, the CLI and
tests use ``ExchangeClient``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crypto_assets.intervals import floor_ms, from_ms, interval_ms, to_ms
from crypto_assets.resources.sources import Answer, Failure, RateBudget, Request, RetryPolicy, SourceCaller

_TIMESTAMP = pa.timestamp("us")
_AMOUNT = pa.decimal128(38, 8)

#: Columns of a page of candles. Null means that the source did not say.
KLINE_SCHEMA = pa.schema(
    [
        pa.field("ts", _TIMESTAMP, nullable=False),
        pa.field("open", pa.float64(), nullable=False),
        pa.field("high", pa.float64(), nullable=False),
        pa.field("low", pa.float64(), nullable=False),
        pa.field("close", pa.float64(), nullable=False),
        pa.field("volume_base", _AMOUNT, nullable=False),
        pa.field("volume_quote", _AMOUNT),
        pa.field("taker_buy_base", _AMOUNT),
        pa.field("taker_buy_quote", _AMOUNT),
        pa.field("n_trades", pa.int64()),
        pa.field("close_time", _TIMESTAMP, nullable=False),
    ]
)

#: Columns of the markets of a venue. Null means that the venue does not state it.
SYMBOL_SCHEMA = pa.schema(
    [
        pa.field("symbol", pa.string(), nullable=False),
        pa.field("exchange_symbol", pa.string(), nullable=False),
        pa.field("base", pa.string(), nullable=False),
        pa.field("quote", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("spot_allowed", pa.bool_()),
        pa.field("tick_size", pa.float64()),
        pa.field("lot_size", pa.float64()),
        pa.field("min_notional", pa.float64()),
    ]
)

_N_KLINE_COLUMNS = 12


@dataclass(frozen=True)
class _Endpoint:
    method: str
    path: str
    weight: int


@dataclass(frozen=True)
class _Venue:
    ccxt_id: str
    time: _Endpoint
    markets: _Endpoint
    klines: _Endpoint
    max_klines: int
    used_weight_header: str


# Another venue with the same wire shapes is one more entry; other shapes need parsers of their own beside it.
_VENUES: Mapping[str, _Venue] = {
    "binance": _Venue(
        ccxt_id="binance",
        time=_Endpoint("public_get_time", "/api/v3/time", 1),
        markets=_Endpoint("public_get_exchangeinfo", "/api/v3/exchangeInfo", 20),
        klines=_Endpoint("public_get_klines", "/api/v3/klines", 2),
        max_klines=1000,
        used_weight_header="X-MBX-USED-WEIGHT-1M",
    ),
}


@dataclass(frozen=True)
class KlinePage:
    """One answer of the exchange: closed candles and what the answer proves.

    Attributes
    ----------
    rows
        Candles on the grid of the interval, by ``KLINE_SCHEMA``.
    off_grid
        Candles that open between two grid points, same columns; for the record of anomalies.
    n_raw
        Rows in the answer, those included that were not closed and so were left out.
    covered_until
        Exclusive end of what the answer proves: a grid point between the asked start and here that is in
        neither table has no candle at the source.
    resume_at
        Where the next request has to start, ``None`` when the asked range is exhausted.
    """

    rows: pa.Table
    off_grid: pa.Table
    n_raw: int
    covered_until: datetime
    resume_at: datetime | None


class ExchangeClient:
    """Public market data of one venue.

    Safe to share between threads; processes share the rate limit through the budget's file. The local clock
    is never read: what is closed follows from the server's time.

    Parameters
    ----------
    budget
        Rate budget in the venue's weight units.
    base_url
        Address to use in place of the venue's own, for example ``http://127.0.0.1:8901``; ``None`` is live.
    venue
        Name of the venue; ``binance`` (spot) so far.
    timeout_s
        Seconds to wait for a connection and for each part of an answer.
    retry
        Retry policy.

    Raises
    ------
    ValueError
        If the venue is unknown or the address is not an http address.
    """

    def __init__(
        self,
        budget: RateBudget,
        *,
        base_url: str | None = None,
        venue: str = "binance",
        timeout_s: float = 10.0,
        retry: RetryPolicy | None = None,
    ) -> None:
        # A third of a second that processes which never ask the exchange need not pay.
        import ccxt

        if venue not in _VENUES:
            raise ValueError(f"unknown venue {venue!r}; known: {', '.join(_VENUES)}")
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            raise ValueError(f"the base address {base_url!r} of {venue} must start with http:// or https://")
        self._name = venue
        self._venue = _VENUES[venue]
        # ccxt's own limiter has no lock and its retries also hammer bans (418, 403, 451): both stay off.
        self._api: Any = getattr(ccxt, self._venue.ccxt_id)(
            {
                "enableRateLimit": False,
                "timeout": int(timeout_s * 1000),
                "options": {"maxRetriesOnFailure": 0},
            }
        )
        if base_url is not None:
            self._api.urls["api"] = _repointed(self._api.urls["api"], base_url.rstrip("/"))
        self._caller = SourceCaller(
            budget, retry or RetryPolicy(), _read_failure, used_weight_header=self._venue.used_weight_header
        )
        self._caller.wire.watch(self._api.session)

    def server_time(self) -> datetime:
        """Read the exchange's clock: naive UTC, exact to the millisecond it tells (one request)."""
        return self._call(self._venue.time, {}, _parse_server_time)

    def last_closed(self, interval: str) -> datetime:
        """Return the watermark, the end of the last closed interval by the exchange's clock (one request).

        Raises
        ------
        ValueError
            If the interval is unknown.
        """
        interval_ms(interval)  # An unknown interval must not cost a request.
        return from_ms(floor_ms(to_ms(self.server_time()), interval))

    def symbols(self) -> pa.Table:
        """Every market of the venue, dead ones included, by ``SYMBOL_SCHEMA`` (one request).

        Returns
        -------
        pyarrow.Table
            One row per market in the venue's order. ``tick_size`` and ``min_notional`` are in quote units,
            ``lot_size`` in base units; null where the venue states none.
        """
        return self._call(self._venue.markets, {}, _parse_symbols)

    def klines_page(
        self,
        exchange_symbol: str,
        interval: str,
        start: datetime,
        end: datetime,
        closed_before: datetime,
        limit: int = 1000,
    ) -> KlinePage:
        """Ask once for closed candles.

        Parameters
        ----------
        exchange_symbol
            The venue's own name of the market, for example ``BTCUSDT``.
        interval
            Interval of the candles, one of ``intervals.INTERVAL_MS`` that the venue offers.
        start, end
            Range of the opening times [start, end), naive UTC.
        closed_before
            The exchange's time at the tick (``server_time``): a candle is returned only if open time plus
            interval is not later. A moment from the local clock would let open candles in.
        limit
            Rows at most, up to 1000.

        Returns
        -------
        KlinePage
            Both tables ascending by ``ts`` without duplicates. No request is sent when nothing in the range
            can be closed yet; then ``covered_until`` is ``start``.

        Raises
        ------
        ValueError
            If the range is empty, the interval unknown or the limit out of bounds.
        SourceError
            As ``SourceCaller.call``; an unknown symbol is ``SourceRefused``.
        """
        length_ms = interval_ms(interval)
        start_ms, end_ms = to_ms(start), to_ms(end)
        if start_ms >= end_ms:
            raise ValueError(
                f"empty range of {exchange_symbol} {interval}: start {start} is not before end {end}"
            )
        if not 1 <= limit <= self._venue.max_klines:
            raise ValueError(
                f"limit {limit} is out of bounds: {self._name} gives 1 to {self._venue.max_klines} rows"
            )
        closed_ms = to_ms(closed_before)
        provable_ms = min(end_ms, floor_ms(closed_ms, interval))
        if start_ms >= provable_ms:
            empty = KLINE_SCHEMA.empty_table()
            return KlinePage(empty, empty, 0, start, None)
        window = _Window(start_ms, provable_ms, closed_ms, length_ms, limit)
        params = {
            "symbol": exchange_symbol,
            "interval": interval,
            "startTime": start_ms,
            "endTime": provable_ms - 1,
            "limit": limit,
        }
        return self._call(self._venue.klines, params, lambda payload: _parse_klines(payload, window))

    def klines(
        self, exchange_symbol: str, interval: str, start: datetime, end: datetime, closed_before: datetime
    ) -> Iterator[KlinePage]:
        """Yield the closed candles of a range, page by page, in as few requests as the page size allows.

        ``n`` candles cost ``ceil(n / 1000)`` requests when the last one reaches the end of the range; only a
        full page that stops short of it is followed by another request. Parameters and errors are those of
        ``klines_page``; when a later page fails, the earlier ones have been yielded and stay valid.
        """
        resume: datetime | None = start
        while resume is not None:
            page = self.klines_page(
                exchange_symbol, interval, resume, end, closed_before, limit=self._venue.max_klines
            )
            yield page
            resume = page.resume_at

    def _call(
        self, endpoint: _Endpoint, params: Mapping[str, object], accept: Callable[[object], Answer]
    ) -> Answer:
        def send() -> object:
            payload = getattr(self._api, endpoint.method)(dict(params))
            if isinstance(payload, str):
                raise _NotJson("the body is not JSON")
            return payload

        return self._caller.call(Request(self._name, endpoint.path, params, endpoint.weight), send, accept)


class ExchangeResource(dg.ConfigurableResource):
    """Dagster resource that builds the exchange client.

    Attributes
    ----------
    base_url
        Address to use in place of the venue's own; ``None`` is live.
    venue
        Name of the venue, also the name of the rate budget.
    timeout_s
        Seconds to wait for the exchange.
    budget_dir
        Folder of the rate budgets; every process on the machine must use the same one.
    weight_per_minute
        Weight to spend in any 60 seconds; Binance spot allows 6000.
    """

    base_url: str | None = None
    venue: str = "binance"
    timeout_s: float = 10.0
    budget_dir: str
    weight_per_minute: int = 4800

    def client(self, retry: RetryPolicy | None = None) -> ExchangeClient:
        """Build a client under the shared budget; do it once per step and pass it on."""
        return ExchangeClient(
            RateBudget(Path(self.budget_dir), self.venue, self.weight_per_minute),
            base_url=self.base_url,
            venue=self.venue,
            timeout_s=self.timeout_s,
            retry=retry,
        )


@dataclass(frozen=True)
class _Window:
    start_ms: int
    end_ms: int
    closed_ms: int
    length_ms: int
    limit: int


def _parse_klines(payload: object, window: _Window) -> KlinePage:
    if not isinstance(payload, list):
        raise TypeError(f"a list of candles was expected, {_shown(payload)} came")
    if not payload:
        empty = KLINE_SCHEMA.empty_table()
        return KlinePage(empty, empty, 0, from_ms(window.end_ms), None)
    if len(payload) > window.limit:
        raise ValueError(f"{len(payload)} candles came where at most {window.limit} were asked for")
    if set(map(type, payload)) != {list} or set(map(len, payload)) != {_N_KLINE_COLUMNS}:
        bad = next(row for row in payload if not isinstance(row, list) or len(row) != _N_KLINE_COLUMNS)
        raise ValueError(f"a candle must be a list of {_N_KLINE_COLUMNS} elements, {_shown(bad)} came")
    columns = list(zip(*payload, strict=True))
    open_ms = np.asarray(_integers("open time", columns[0]))
    _check_times(open_ms, window)
    table = pa.table(
        [
            _milliseconds(pa.array(open_ms)),
            *(
                _decimals(name, columns[i], pa.float64())
                for i, name in enumerate(KLINE_SCHEMA.names[1:5], start=1)
            ),
            _decimals("volume_base", columns[5], _AMOUNT),
            _decimals("volume_quote", columns[7], _AMOUNT, unknown_allowed=True),
            _decimals("taker_buy_base", columns[9], _AMOUNT, unknown_allowed=True),
            _decimals("taker_buy_quote", columns[10], _AMOUNT, unknown_allowed=True),
            _integers("number of trades", columns[8], unknown_allowed=True),
            _milliseconds(_integers("close time", columns[6])),
        ],
        schema=KLINE_SCHEMA,
    )
    _check_prices(table, payload)
    _check_amounts(table, payload)
    return _page(table, open_ms, window)


def _page(table: pa.Table, open_ms: np.ndarray, window: _Window) -> KlinePage:
    on_grid = open_ms % window.length_ms == 0
    closed = open_ms + window.length_ms <= window.closed_ms
    last_ms = int(open_ms[-1])
    reached_ms = last_ms - last_ms % window.length_ms + window.length_ms
    covered_ms, resume_at = window.end_ms, None
    if len(open_ms) == window.limit and reached_ms < window.end_ms:
        # The next page starts right after the last row, not an interval later: an off-grid row may lie
        # between.
        covered_ms, resume_at = reached_ms, from_ms(last_ms + 1)
    if not closed.all():
        # Only an off-grid candle can be open here; its interval has to be asked for again.
        first_open_ms = int(open_ms[~closed][0])
        covered_ms, resume_at = min(covered_ms, first_open_ms - first_open_ms % window.length_ms), None
    if on_grid.all():
        return KlinePage(table, KLINE_SCHEMA.empty_table(), len(open_ms), from_ms(covered_ms), resume_at)
    return KlinePage(
        table.filter(pa.array(on_grid & closed)),
        table.filter(pa.array(~on_grid & closed)),
        len(open_ms),
        from_ms(max(covered_ms, window.start_ms)),
        resume_at,
    )


def _check_times(open_ms: np.ndarray, window: _Window) -> None:
    if not (open_ms[1:] > open_ms[:-1]).all():
        at = int(np.argmin(open_ms[1:] > open_ms[:-1])) + 1
        raise ValueError(
            f"open times must increase, but {open_ms[at - 1]} is followed by {open_ms[at]} (row {at})"
        )
    if open_ms[0] < window.start_ms or open_ms[-1] >= window.end_ms:
        raise ValueError(
            f"open times {open_ms[0]} to {open_ms[-1]} leave the asked range "
            f"[{window.start_ms}, {window.end_ms})"
        )


def _check_prices(table: pa.Table, payload: list) -> None:
    open_, high, low, close = (table.column(name).to_numpy() for name in KLINE_SCHEMA.names[1:5])
    # Written so that NaN fails as well.
    sound = (
        (low > 0) & (low <= np.minimum(open_, close)) & (high >= np.maximum(open_, close)) & (high < np.inf)
    )
    _check_rows(sound, payload, "0 < low <= open, close <= high must hold with finite prices")


def _check_amounts(table: pa.Table, payload: list) -> None:
    for name in ("volume_base", "volume_quote", "taker_buy_base", "taker_buy_quote", "n_trades"):
        column = table.column(name)
        least = pc.call_function("min", [column])
        if least.is_valid and least.as_py() < 0:
            at = pc.call_function("index", [column], pc.IndexOptions(least)).as_py()
            raise ValueError(f"{name} must not be negative, but row {at} is {_shown(payload[at])}")


def _check_rows(sound: np.ndarray, payload: list, rule: str) -> None:
    if not sound.all():
        at = int(np.argmin(sound))
        raise ValueError(f"{rule}, but row {at} is {_shown(payload[at])}")


def _integers(name: str, values: tuple, *, unknown_allowed: bool = False) -> pa.Array:
    allowed = {int, type(None)} if unknown_allowed else {int}
    if not set(map(type, values)) <= allowed:
        bad = next(value for value in values if type(value) not in allowed)
        raise TypeError(f"{name} must be an integer, {bad!r} came")
    try:
        return pa.array(values, pa.int64())
    except (OverflowError, pa.ArrowInvalid):
        raise ValueError(f"{name} exceeds 64 bits") from None


def _decimals(name: str, values: tuple, kind: pa.DataType, *, unknown_allowed: bool = False) -> pa.Array:
    try:
        texts = pa.array(values, pa.string())
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        bad = next(value for value in values if not isinstance(value, str | None))
        raise TypeError(f"{name} must be a decimal string, {bad!r} came") from None
    if texts.null_count and not unknown_allowed:
        raise ValueError(f"{name} is null in {texts.null_count} rows")
    try:
        return pc.cast(texts, kind)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{name} does not parse as {kind}: {error}") from None


def _milliseconds(values: pa.Array) -> pa.Array:
    return values.cast(pa.timestamp("ms")).cast(_TIMESTAMP)


def _parse_server_time(payload: object) -> datetime:
    moment_ms = payload.get("serverTime") if isinstance(payload, dict) else None
    if type(moment_ms) is not int or moment_ms <= 0:
        raise ValueError(f"serverTime in milliseconds was expected, {_shown(payload)} came")
    return from_ms(moment_ms)


def _parse_symbols(payload: object) -> pa.Table:
    markets = payload.get("symbols") if isinstance(payload, dict) else None
    if not isinstance(markets, list):
        raise TypeError(f"an object with a list 'symbols' was expected, {_shown(payload)} came")
    table = pa.Table.from_pylist([_parse_market(market) for market in markets], schema=SYMBOL_SCHEMA)
    for key in ("symbol", "exchange_symbol"):
        if len(table.column(key).unique()) != len(table):
            raise ValueError(f"{key} is not unique among the {len(table)} markets")
    return table


def _parse_market(market: object) -> dict[str, object]:
    if not isinstance(market, dict):
        raise TypeError(f"a market must be an object, {_shown(market)} came")
    texts = {key: market.get(key) for key in ("symbol", "baseAsset", "quoteAsset", "status")}
    if not all(isinstance(text, str) and text for text in texts.values()):
        raise ValueError(f"a market must state symbol, baseAsset, quoteAsset and status, {texts} came")
    filters = {rule.get("filterType"): rule for rule in market.get("filters") or [] if isinstance(rule, dict)}
    # The exchange renamed the filter: MIN_NOTIONAL until 2022, NOTIONAL after.
    notional = filters.get("NOTIONAL") or filters.get("MIN_NOTIONAL") or {}
    return {
        "symbol": f"{texts['baseAsset']}/{texts['quoteAsset']}",
        "exchange_symbol": texts["symbol"],
        "base": texts["baseAsset"],
        "quote": texts["quoteAsset"],
        "status": texts["status"],
        "spot_allowed": _spot_allowed(market),
        "tick_size": _size(filters.get("PRICE_FILTER", {}).get("tickSize")),
        "lot_size": _size(filters.get("LOT_SIZE", {}).get("stepSize")),
        "min_notional": _size(notional.get("minNotional")),
    }


def _spot_allowed(market: dict) -> bool | None:
    if isinstance(market.get("isSpotTradingAllowed"), bool):
        return market["isSpotTradingAllowed"]
    groups = [market.get("permissions") or [], *(market.get("permissionSets") or [])]
    return any("SPOT" in group for group in groups) if any(groups) else None


def _size(text: str | None) -> float | None:
    # The exchange writes 0 for a rule that is switched off.
    return None if text is None else float(text) or None


class _NotJson(Exception):
    pass


def _read_failure(error: Exception) -> Failure | None:
    import ccxt
    import requests

    # UnicodeDecodeError: a body that is neither JSON nor text.
    if isinstance(error, _NotJson | UnicodeDecodeError):
        return "garbled"
    if isinstance(error, ccxt.OperationFailed):
        return "unavailable"
    if isinstance(error.__cause__, requests.exceptions.ContentDecodingError):
        return "garbled"
    return "refused" if isinstance(error, ccxt.BaseError) else None


def _repointed(urls: Any, base_url: str) -> Any:
    if isinstance(urls, str):
        _, _, path = urls.partition("://")[2].partition("/")
        return f"{base_url}/{path}"
    return {name: _repointed(url, base_url) for name, url in urls.items()}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
