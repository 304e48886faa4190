"""Any exchange that ccxt knows, through ccxt's unified methods.

Here: unified questions and answers in the shapes of ``interface``; what a venue does not tell is null. Not here: Binance
(``binance``, in its own words), how a venue is reached (``connection``), pacing and repeating (``sources``). Imported
through ``crypto_assets.resources.exchange``.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa

from crypto_assets.intervals import INTERVAL_MS, from_ms, interval_delta, interval_ms, to_ms
from crypto_assets.resources.exchange.answers import book_side, instant, number, sampled, shown, windows_of
from crypto_assets.resources.exchange.client import ExchangeClient
from crypto_assets.resources.exchange.connection import NotJson, open_ccxt, read_failure
from crypto_assets.resources.exchange.interface import (
    FUNDING_SCHEMA,
    MARKET_SCHEMA,
    MARKET_TYPES,
    OPEN_INTEREST_SCHEMA,
    TURNOVER_SCHEMA,
    Market,
    MarketType,
    OrderBook,
    Question,
    SeriesPage,
)
from crypto_assets.resources.klines import (
    KLINE_SCHEMA,
    KlineKind,
    KlinePage,
    KlineWindow,
    nothing_until,
    page_of,
)
from crypto_assets.resources.sources import (
    Answer,
    RateBudget,
    Request,
    RetryPolicy,
    SourceCaller,
    SourceDataInvalid,
    SourceError,
    SourceRefused,
)

#: Venues that keep candles from a market's first day on. Of any other venue only what lies between two candles that it
#: gave counts as answered, for it may keep the newest ones alone.
KEEP_ALL_CANDLES = frozenset({"binanceus", "bitfinex", "bitstamp", "bybit", "coinbase"})

#: Spot alone: ccxt's own choice costs Bybit seven requests, for options and inverse contracts too.
_OPTIONS: Mapping[str, Mapping[str, object]] = {"bybit": {"fetchMarkets": {"types": ["spot"]}}}
_MARKET_TYPES: Mapping[str, MarketType] = {"spot": "spot", "swap": "perpetual", "future": "delivery"}
_CCXT_TYPES = {ours: theirs for theirs, ours in _MARKET_TYPES.items()}
_METHODS: Mapping[Question | KlineKind, str] = {
    "time": "fetchTime",
    "markets": "fetchMarkets",
    "turnover": "fetchTickers",
    "klines": "fetchOHLCV",
    "trade": "fetchOHLCV",
    "mark": "fetchMarkOHLCV",
    "premium": "fetchPremiumIndexOHLCV",
    "funding_rates": "fetchFundingRateHistory",
    "open_interest": "fetchOpenInterestHistory",
    "order_book": "fetchOrderBook",
}
_PRICES: Mapping[KlineKind, Mapping[str, str]] = {
    "trade": {},
    "mark": {"price": "mark"},
    "premium": {"price": "premiumIndex"},
}
#: Rows that venues of which ccxt does not know better give at least.
_PAGE_ROWS: Mapping[Question, int] = {
    "klines": 100,
    "funding_rates": 100,
    "open_interest": 100,
    "order_book": 50,
}
#: No venue settles more often.
_FUNDING_STEP = timedelta(hours=1)
_INSTANT = timedelta(milliseconds=1)


@dataclass(frozen=True)
class _Answer:
    page: KlinePage
    #: It also has the candle right before the start.
    connects: bool
    cut: bool


class UnifiedClient(ExchangeClient):
    """Public market data of one venue through ccxt.

    Safe to share between threads; processes share the rate limit through the budget's file, one unit a request. Every
    request that ccxt sends passes the budget, also those it sends by itself to learn the venue's markets.

    Parameters
    ----------
    venue
        Name of the exchange in ccxt, for example ``bybit``.
    budget
        Rate budget in requests.
    base_url
        Address to use in place of the venue's own hosts, with or without a path; ``None`` is live.
    timeout_s
        Seconds to wait for a connection and for each part of an answer.
    concurrency
        Threads that use the client at the same time.
    retry
        Retry policy.

    Raises
    ------
    ValueError
        If ccxt does not know the venue or the address is not an http address.
    """

    def __init__(
        self,
        venue: str,
        budget: RateBudget,
        *,
        base_url: str | None = None,
        timeout_s: float = 10.0,
        concurrency: int = 8,
        retry: RetryPolicy | None = None,
    ) -> None:
        super().__init__(venue)
        self._api = open_ccxt(
            venue,
            base_url=base_url,
            timeout_s=timeout_s,
            concurrency=concurrency,
            options={"defaultType": "spot", **_OPTIONS.get(venue, {})},
        )
        # Texts keep every digit that the venue told.
        self._api.number = str
        self._budget = budget
        self._caller = SourceCaller(budget, retry or RetryPolicy(), read_failure)
        self._caller.wire.watch(self._api.session)
        self._send, self._api.fetch = self._api.fetch, self._fetch
        self._loading = threading.Lock()

    @staticmethod
    def budget_of(venue: str, folder: Path, per_minute: int) -> RateBudget:
        """Make the rate budget of a venue: at most what ccxt says that it allows, in a minute and in a second."""
        api = open_ccxt(venue, base_url=None, timeout_s=1.0, concurrency=1)
        per_second = max(1, int(1000 / api.rateLimit))
        return RateBudget(folder, venue, min(per_minute, 60 * per_second), per_second=per_second)

    @property
    def intervals(self) -> frozenset[str]:
        """Intervals of the platform that the venue offers."""
        return frozenset(self._api.timeframes or ()) & INTERVAL_MS.keys()

    def server_time(self) -> datetime:
        """Read the venue's clock; where it has none, the Date header of its list of markets, exact to the second.

        Raises
        ------
        SourceDataInvalid
            If there is neither.
        """
        if self.offers("time"):
            return self._ask("time", lambda: instant(self._api.fetch_time(), "the time"))

        def header() -> datetime:
            self._api.fetch_markets()
            return parsedate_to_datetime(self._caller.wire.headers.get("Date", "")).replace(tzinfo=None)

        return self._ask("time (Date header)", header)

    def markets(self, market_types: Collection[MarketType] = MARKET_TYPES) -> pa.Table:
        """List markets by ``MARKET_SCHEMA``; permissions, contract types and what ccxt does not unify are null.

        ``trading_status`` is TRADING, or INACTIVE where the venue says that a market does not trade.
        """
        self._load(afresh=True)

        def read() -> pa.Table:
            rows = [
                self._market_row(raw) for raw in self._api.markets.values() if raw["type"] in _MARKET_TYPES
            ]
            return pa.Table.from_pylist(
                [row for row in rows if row["market_type"] in market_types], schema=MARKET_SCHEMA
            )

        return self._ask("markets", read)

    def turnover_24h(self, market_types: Collection[MarketType] = MARKET_TYPES) -> pa.Table:
        """Traded value by ``TURNOVER_SCHEMA`` of the types of market that the venue has (a request or more for each)."""
        self._demand(self.offers("turnover"), "turnover")
        self._load()
        present = {market["type"] for market in self._api.markets.values()}
        types = [_CCXT_TYPES[ours] for ours in market_types if _CCXT_TYPES[ours] in present]

        def read(type_: str) -> dict[str, float | None]:
            return {
                symbol: _optional(ticker["quoteVolume"], "quoteVolume")
                for symbol, ticker in self._api.fetch_tickers(None, {"type": type_}).items()
                if symbol in self._api.markets
            }

        rows: dict[str, float | None] = {}
        for type_ in types:
            rows |= self._ask(f"turnover of {type_}", partial(read, type_))
        return pa.table([list(rows), list(rows.values())], schema=TURNOVER_SCHEMA)

    def klines(
        self,
        market: Market,
        kind: KlineKind,
        interval: str,
        start: datetime,
        end: datetime,
        closed_before: datetime,
    ) -> Iterator[KlinePage]:
        """Yield closed candles, asked for in windows of one full answer each, so that their order does not matter.

        An answer without candles proves nothing, for ccxt reads many a damaged one as empty; one with candles proves its
        window and the empty ones before it, if the venue is one of ``KEEP_ALL_CANDLES``. Of other venues, where one
        candle more is asked for before the start to connect what comes with what was stored, only what lies between two
        candles is proven.

        Raises
        ------
        ValueError
            If the range is empty or the interval unknown.
        SourceRefused
            If the venue has no such candles.
        """
        length_ms, step = interval_ms(interval), interval_delta(interval)
        if start >= end:
            raise ValueError(
                f"empty range of {market.symbol} {interval}: start {start} is not before end {end}"
            )
        self._demand(self.offers(kind, market.market_type), f"{kind} candles of {market.symbol}")
        self._demand(interval in self.intervals, f"candles of {interval}")
        until = KlineWindow(kind, interval, start, end, closed_before).provable_end
        if start >= until:
            yield nothing_until(start)
            return
        self._load(market)
        keeps_all = self.venue in KEEP_ALL_CANDLES
        begin = from_ms(-(-to_ms(start) // length_ms) * length_ms) - (timedelta() if keeps_all else step)
        reach = self.page_rows(market.market_type) * step
        windows = deque(windows_of(begin, until, reach))
        connected, proven = keeps_all, start
        while windows:
            left, right = windows.popleft()
            window = KlineWindow(kind, interval, start if left <= start else left, right, closed_before)
            read = partial(self._page, market, window, left)
            answer = self._ask(f"candles of {market.symbol} {interval} from {left}", read)
            if answer.cut and right - left > step:
                middle = left + (right - left) // step // 2 * step
                windows.extendleft([(middle, right), (left, middle)])
                continue
            opens = answer.page.rows["ts"]
            first = opens[0].as_py() if len(opens) else None
            connected = connected or answer.connects
            if first is not None:
                proven = right if keeps_all else opens[-1].as_py() + step
            yield replace(
                answer.page,
                covered_from=None if connected else first,
                covered_until=proven,
                resume_at=windows[0][0] if windows else None,
            )
            connected = connected or first is not None

    def _page(self, market: Market, window: KlineWindow, since: datetime) -> _Answer:
        since_ms, start_ms, end_ms = to_ms(since), to_ms(window.start), to_ms(window.end)
        limit = self.page_rows(market.market_type)
        params = {"until": end_ms - 1, **_PRICES[window.kind]}
        told = self._api.fetch_ohlcv(market.symbol, window.interval, since_ms, limit, params)
        # Some venues do not know the parameter ``until``; what lies beyond is asked for when it is due.
        rows = [row[:6] for row in told if row[0] < end_ms]
        asked = [row for row in rows if row[0] >= start_ms]
        columns = dict(zip(KLINE_SCHEMA.names, zip(*asked, strict=True) if asked else [()] * 6, strict=False))
        arrays = {name: pa.array(values, pa.string()) for name, values in columns.items() if name != "ts"}
        if not self._counts_in_base(market):
            del arrays["volume_base"]
        page = page_of({"ts": pa.array(columns["ts"], pa.int64()), **arrays}, window)
        n_expected = (end_ms - max(since_ms, start_ms)) // interval_ms(window.interval)
        # ccxt cuts an answer to the limit, some venues its older end: rows that come twice or off the grid push others out.
        cut = len(rows) >= limit and page.rows.num_rows < n_expected
        return _Answer(page, connects=len(asked) < len(rows), cut=cut)

    def funding_rates(
        self, market: Market, start: datetime, end: datetime, now: datetime
    ) -> Iterator[SeriesPage]:
        """Yield settlements; an answer proves what lies between its first and its last one, and nothing more."""
        self._demand(self.offers("funding_rates", market.market_type), f"funding rates of {market.symbol}")

        def row(raw: Any) -> dict[str, Any]:
            return {
                "settled_at": instant(raw["timestamp"], "timestamp"),
                "funding_rate_frac": number(raw["fundingRate"], "fundingRate"),
            }

        def ask(since_ms: int, until_ms: int, n_rows: int) -> Any:
            return self._api.fetch_funding_rate_history(market.symbol, since_ms, n_rows, {"until": until_ms})

        asked = (start, min(end, now))
        yield from self._samples("funding_rates", market, asked, _FUNDING_STEP, ask, row, FUNDING_SCHEMA)

    def open_interest(
        self, market: Market, period: str, start: datetime, end: datetime, now: datetime
    ) -> Iterator[SeriesPage]:
        """Yield samples; an answer proves what lies between its first and its last one, and nothing more."""
        self._demand(self.offers("open_interest", market.market_type), f"open interest of {market.symbol}")

        def row(raw: Any) -> dict[str, Any]:
            return {
                "ts": instant(raw["timestamp"], "timestamp"),
                "open_interest_base": _optional(raw["openInterestAmount"], "openInterestAmount"),
                "open_interest_quote": _optional(raw["openInterestValue"], "openInterestValue"),
            }

        def ask(since_ms: int, until_ms: int, n_rows: int) -> Any:
            return self._api.fetch_open_interest_history(
                market.symbol, period, since_ms, n_rows, {"until": until_ms}
            )

        asked = (start, min(end, now))
        step = interval_delta(period)
        yield from self._samples("open_interest", market, asked, step, ask, row, OPEN_INTEREST_SCHEMA)

    def _samples(
        self,
        question: Question,
        market: Market,
        asked: tuple[datetime, datetime],
        step: timedelta,
        ask: Callable[[int, int, int], Any],
        row: Callable[[Any], dict[str, Any]],
        schema: pa.Schema,
    ) -> Iterator[SeriesPage]:
        self._load(market)
        n_rows = self.page_rows(market.market_type, question)

        def read(left: datetime, right: datetime) -> tuple[pa.Table, pa.Table]:
            since_ms, until_ms = to_ms(left), to_ms(right)
            told = [
                raw for raw in ask(since_ms, until_ms - 1, n_rows) if since_ms <= raw["timestamp"] < until_ms
            ]
            return sampled([row(raw) for raw in told], schema)

        connected, proven = False, asked[0]
        for left, right in windows_of(*asked, n_rows * step):
            rows, odd = self._ask(f"{question} of {market.symbol} from {left}", partial(read, left, right))
            at = rows["ts"]
            since = proven if connected or not len(at) else at[0].as_py()
            proven = min(right, at[-1].as_py() + _INSTANT) if len(at) else proven
            connected = connected or len(at) > 0
            yield SeriesPage(rows, odd, min(since, proven), proven)

    def order_book(self, market: Market, n_levels: int) -> OrderBook:
        """Read the best levels (one request); how many a venue gives, and in which steps, is its own affair.

        Raises
        ------
        ValueError
            If ``n_levels`` is not positive.
        """
        if n_levels < 1:
            raise ValueError(f"{n_levels} levels of {market.symbol} were asked for; ask for 1 or more")
        self._demand(self.offers("order_book", market.market_type), f"order book of {market.symbol}")
        self._load(market)

        def read() -> OrderBook:
            told = self._api.fetch_order_book(market.symbol, n_levels)
            nonce, moment_ms = told["nonce"], told["timestamp"]
            return OrderBook(
                bids=book_side(told["bids"], "bids", n_levels),
                asks=book_side(told["asks"], "asks", n_levels),
                last_update_id=nonce,
                exchange_time=None if moment_ms is None else instant(moment_ms, "timestamp"),
            )

        return self._ask(f"order book of {market.symbol}", read)

    def offers(self, question: Question | KlineKind, market_type: MarketType = "spot") -> bool:
        """Whether ccxt has a method for it; nothing but trades and books is offered of spot."""
        if market_type == "spot" and question in ("mark", "premium", "funding_rates", "open_interest"):
            return False
        if market_type == "delivery" and question == "funding_rates":
            return False
        return bool(self._api.has.get(_METHODS[question]))

    def page_rows(self, market_type: MarketType = "spot", question: Question = "klines") -> int:
        """Rows of one full answer, as ccxt describes the venue, else a number that every venue gives."""
        features = (self._api.features or {}).get(_CCXT_TYPES[market_type]) or {}
        method = _METHODS[question]
        return ((features.get("linear") or features).get(method) or {}).get("limit") or _PAGE_ROWS.get(
            question, 1
        )

    def request_weight(
        self, question: Question, market_type: MarketType = "spot", n_rows: int | None = None
    ) -> int:
        """Budget units of one request: 1."""
        return 1

    def budget(self, market_type: MarketType = "spot") -> RateBudget:
        """Rate budget of the venue."""
        return self._budget

    def _fetch(self, url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
        parts = urlsplit(url)

        def send() -> object:
            payload = self._send(url, method, headers, body)
            if isinstance(payload, str):
                raise NotJson("the body is not JSON")
            return payload

        return self._caller.call(
            Request(self.venue, parts.path, dict(parse_qsl(parts.query))), send, lambda payload: payload
        )

    def _ask(self, what: str, read: Callable[[], Answer]) -> Answer:
        import ccxt

        try:
            return read()
        except SourceError:
            raise
        except (ccxt.NotSupported, ccxt.BadSymbol, ccxt.BadRequest, ccxt.ArgumentsRequired) as error:
            kind, came, advice = SourceRefused, f"ccxt refuses it: {error}", "correct symbols and intervals"
        # ccxt reads answers without checks: what is wrong with them shows as any of these.
        except (ccxt.BaseError, ValueError, TypeError, LookupError, AttributeError) as error:
            kind, came = SourceDataInvalid, f"unusable content: {type(error).__name__}: {shown(str(error))}"
            advice = "nothing was stored; look at what the source sends, and ask again once it is right"
        raise kind(f"{self.venue} {what}", came, advice)

    def _load(self, market: Market | None = None, *, afresh: bool = False) -> None:
        with self._loading:
            if afresh or not self._api.markets:
                self._ask("markets", lambda: self._api.set_markets(self._api.fetch_markets()))
            if market is not None and market.symbol not in self._api.markets:
                # A market that the venue no longer names: its history may still be there.
                self._api.set_markets([*self._api.markets.values(), self._unlisted(market)])

    def _unlisted(self, market: Market) -> Any:
        base, _, rest = market.symbol.partition("/")
        quote, _, settle = rest.partition(":")
        type_ = _CCXT_TYPES[market.market_type]
        contract = type_ != "spot"
        return self._api.safe_market_structure(
            {
                "id": market.exchange_symbol,
                "symbol": market.symbol,
                "base": base,
                "quote": quote,
                "settle": settle.partition("-")[0] or None,
                "baseId": base,
                "quoteId": quote,
                "type": type_,
                **{name: name == type_ for name in ("spot", "swap", "future", "option")},
                "contract": contract,
                "linear": contract or None,
                "inverse": False if contract else None,
                "active": False,
                "info": {},
            }
        )

    def _counts_in_base(self, market: Market) -> bool:
        # Contracts of another size are counted by some venues in contracts, by others in coins.
        listed = self._api.markets[market.symbol]
        return market.market_type == "spot" or (bool(listed["linear"]) and listed["contractSize"] in (1, "1"))

    def _market_row(self, raw: Any) -> dict[str, Any]:
        precision, limits = raw.get("precision") or {}, raw.get("limits") or {}
        return {
            "symbol": raw["symbol"],
            "exchange_symbol": raw["id"],
            "market_type": _MARKET_TYPES[raw["type"]],
            "base": raw["base"],
            "quote": raw["quote"],
            "settle": raw.get("settle"),
            "trading_status": "INACTIVE" if raw.get("active") is False else "TRADING",
            "listed_at": from_ms(raw["created"]) if raw.get("created") else None,
            "delivery_at": from_ms(raw["expiry"]) if raw.get("expiry") else None,
            "tick_size": self._step(precision.get("price")),
            "lot_size": self._step(precision.get("amount")),
            "min_notional": _optional((limits.get("cost") or {}).get("min"), "limits.cost.min"),
        }

    def _step(self, told: Any) -> float | None:
        import ccxt

        value = _optional(told, "precision")
        if value is None or self._api.precisionMode == ccxt.TICK_SIZE:
            return value
        # Of significant digits no step follows.
        return 10.0**-value if self._api.precisionMode == ccxt.DECIMAL_PLACES else None


def _optional(told: Any, what: str) -> float | None:
    return None if told is None or told == "" else number(told, what)
