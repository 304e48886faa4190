"""Binance: spot and USD-M futures as one venue, in the exchange's own words.

Here: what is asked of which endpoint, in the fewest and lightest requests, and what the answers say and prove. Not
here: how it is reached (``connection``), the checks of candles (``resources.klines``), storing. Imported through
``crypto_assets.resources.exchange``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pyarrow as pa

from crypto_assets.intervals import floor_ms, from_ms, interval_delta, interval_ms, to_ms
from crypto_assets.resources.exchange.answers import windows_of
from crypto_assets.resources.exchange.binance_answers import (
    Part,
    book_of,
    columns_of,
    decoded_klines,
    funding_of,
    markets_of,
    open_interest_of,
    server_time_of,
    turnover_of,
    within,
)
from crypto_assets.resources.exchange.client import ExchangeClient
from crypto_assets.resources.exchange.connection import NotJson, PlainGet, open_ccxt, read_failure
from crypto_assets.resources.exchange.interface import (
    MARKET_TYPES,
    TURNOVER_SCHEMA,
    Market,
    MarketType,
    OrderBook,
    Question,
    SeriesPage,
)
from crypto_assets.resources.klines import KlineKind, KlinePage, KlineWindow, nothing_until, page_of
from crypto_assets.resources.sources import (
    Answer,
    RateBudget,
    Request,
    RetryPolicy,
    SourceCaller,
)

#: Rows (levels) up to which a request has a weight, and the weight.
_Tiers = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Endpoint:
    method: str
    path: str
    tiers: _Tiers

    def weight(self, n_rows: int | None = None) -> int:
        most, heaviest = self.tiers[-1]
        return next((weight for rows, weight in self.tiers if (n_rows or most) <= rows), heaviest)


_ANY = 10**9
_USDM_KLINES: _Tiers = ((99, 1), (499, 2), (1000, 5), (1500, 10))
_ENDPOINTS: Mapping[tuple[Question, Part], _Endpoint] = {
    ("time", "spot"): _Endpoint("public_get_time", "/api/v3/time", ((_ANY, 1),)),
    ("markets", "spot"): _Endpoint("public_get_exchangeinfo", "/api/v3/exchangeInfo", ((_ANY, 20),)),
    ("markets", "usdm"): _Endpoint("fapipublic_get_exchangeinfo", "/fapi/v1/exchangeInfo", ((_ANY, 1),)),
    ("turnover", "spot"): _Endpoint("public_get_ticker_24hr", "/api/v3/ticker/24hr", ((_ANY, 80),)),
    ("turnover", "usdm"): _Endpoint("fapipublic_get_ticker_24hr", "/fapi/v1/ticker/24hr", ((_ANY, 40),)),
    ("klines", "spot"): _Endpoint("public_get_klines", "/api/v3/klines", ((1000, 2),)),
    ("klines", "usdm"): _Endpoint("fapipublic_get_klines", "/fapi/v1/klines", _USDM_KLINES),
    ("order_book", "spot"): _Endpoint(
        "public_get_depth", "/api/v3/depth", ((100, 5), (500, 25), (1000, 50), (5000, 250))
    ),
    ("order_book", "usdm"): _Endpoint(
        "fapipublic_get_depth",
        "/fapi/v1/depth",
        ((5, 2), (10, 2), (20, 2), (50, 2), (100, 5), (500, 10), (1000, 20)),
    ),
    # These two have limits of their own, 500 and 1000 requests in five minutes: charged with a hundredth and a two
    # hundredth of the minute's 2400, they cannot exceed them.
    ("funding_rates", "usdm"): _Endpoint("fapipublic_get_fundingrate", "/fapi/v1/fundingRate", ((1000, 24),)),
    ("open_interest", "usdm"): _Endpoint(
        "fapidata_get_openinteresthist", "/futures/data/openInterestHist", ((500, 12),)
    ),
}
_KIND_ENDPOINTS: Mapping[KlineKind, str] = {
    "trade": "klines",
    "mark": "markPriceKlines",
    "premium": "premiumIndexKlines",
}
_INTERVALS = frozenset({"1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d"})
_PERIODS = frozenset({"5m", "15m", "30m", "1h", "2h", "4h", "6h", "12h", "1d"})
_OPEN_INTEREST_KEPT = timedelta(days=30)
#: Settlements are told seconds after they happened.
_FUNDING_LAG = timedelta(minutes=1)
_USED_WEIGHT = "X-MBX-USED-WEIGHT-1M"


class BinanceClient(ExchangeClient):
    """Public market data of Binance, spot and USD-M futures.

    Safe to share between threads; processes share the rate limits through the budgets' files. The local clock is never
    read: what is closed follows from the server's time. Methods that are not documented here do as ``Exchange`` says.

    Parameters
    ----------
    spot_budget, usdm_budget
        Rate budgets in the exchange's weights; each part of it counts and bans by itself.
    base_url
        Address to use in place of the exchange's own hosts, for example ``http://127.0.0.1:8901``; ``None`` is live.
    timeout_s
        Seconds to wait for a connection and for each part of an answer.
    concurrency
        Threads that use the client at the same time.
    retry
        Retry policy.

    Raises
    ------
    ValueError
        If the address is not an http address.
    """

    def __init__(
        self,
        spot_budget: RateBudget,
        usdm_budget: RateBudget,
        *,
        base_url: str | None = None,
        timeout_s: float = 10.0,
        concurrency: int = 8,
        retry: RetryPolicy | None = None,
    ) -> None:
        super().__init__("binance")
        self._api = open_ccxt("binance", base_url=base_url, timeout_s=timeout_s, concurrency=concurrency)
        # For candles ccxt would decode the text twice and build a list for every row.
        urls = self._api.urls["api"]
        self._get: Mapping[Part, PlainGet] = {
            "spot": PlainGet(urls["public"], timeout_s, concurrency),
            "usdm": PlainGet(urls["fapiPublic"], timeout_s, concurrency),
        }
        self._budgets: Mapping[Part, RateBudget] = {"spot": spot_budget, "usdm": usdm_budget}
        self._callers: Mapping[Part, SourceCaller] = {
            part: SourceCaller(budget, retry or RetryPolicy(), read_failure, used_weight_header=_USED_WEIGHT)
            for part, budget in self._budgets.items()
        }
        for caller in self._callers.values():
            caller.wire.watch(self._api.session)

    def server_time(self) -> datetime:
        """Read the exchange's clock (one request to spot)."""
        return self._call("time", "spot", {}, server_time_of)

    def markets(self, market_types: Collection[MarketType] = MARKET_TYPES) -> pa.Table:
        """Every market by ``MARKET_SCHEMA`` in the exchange's order (one request for spot, one for USD-M).

        Of several contracts with one symbol, the one that the exchange names by base and quote is kept.
        """
        return pa.concat_tables(
            self._call("markets", part, {}, markets_of(part)) for part in _parts(market_types)
        )

    def turnover_24h(self, market_types: Collection[MarketType] = MARKET_TYPES) -> pa.Table:
        """Traded value of the last 24 hours (one request for each of spot and USD-M, and those of ``markets``)."""
        rows: list[dict[str, object]] = []
        for part in _parts(market_types):
            listed = self._call("markets", part, {}, markets_of(part))
            turnover = self._call("turnover", part, {}, turnover_of)
            rows += [
                {"symbol": symbol, "turnover_24h_quote": turnover[native]}
                for symbol, native in zip(
                    listed["symbol"].to_pylist(), listed["exchange_symbol"].to_pylist(), strict=True
                )
                if native in turnover
            ]
        return pa.Table.from_pylist(rows, schema=TURNOVER_SCHEMA)

    def klines(
        self,
        market: Market,
        kind: KlineKind,
        interval: str,
        start: datetime,
        end: datetime,
        closed_before: datetime,
    ) -> Iterator[KlinePage]:
        """Yield closed candles: ``n`` of them cost ``ceil(n / page_rows)`` requests of the least weight.

        Raises
        ------
        ValueError
            If the range is empty or the interval unknown.
        SourceRefused
            If the exchange has no such candles.
        """
        length_ms = interval_ms(interval)
        resume: datetime | None = start
        while resume is not None:
            window = KlineWindow(kind, interval, resume, end, closed_before)
            # Both rounded up: a later page starts a millisecond after a grid point.
            n_missing = -(-to_ms(window.provable_end) // length_ms) - -(-to_ms(resume) // length_ms)
            limit = 1000 if market.market_type == "spot" else _lightest_limit(n_missing)
            page = self.klines_page(market, window, limit)
            yield page
            resume = page.resume_at

    def klines_page(self, market: Market, window: KlineWindow, limit: int) -> KlinePage:
        """Ask once for closed candles; parameters and errors as in ``klines``.

        Parameters
        ----------
        limit
            Rows at most, up to ``page_rows``.
        """
        part = _part(market.market_type)
        endpoint = _ENDPOINTS["klines", part]
        start_ms, end_ms = to_ms(window.start), to_ms(window.provable_end)
        if window.start >= window.end:
            raise ValueError(
                f"empty range of {market.symbol} {window.interval}: start {window.start} is not before end {window.end}"
            )
        if not 1 <= limit <= endpoint.tiers[-1][0]:
            raise ValueError(
                f"limit {limit} is out of bounds: {part} gives 1 to {endpoint.tiers[-1][0]} rows"
            )
        self._demand(
            self.offers(window.kind, market.market_type), f"{window.kind} candles of {market.symbol}"
        )
        self._demand(window.interval in _INTERVALS, f"candles of {window.interval}")
        if start_ms >= end_ms:
            return nothing_until(window.start)
        params = {
            "symbol": market.exchange_symbol,
            "interval": window.interval,
            "startTime": start_ms,
            "endTime": end_ms - 1,
            "limit": limit,
        }
        name = _KIND_ENDPOINTS[window.kind]
        target = f"{name}?{urlencode(params)}"
        caller, get = self._callers[part], self._get[part]

        def send() -> object:
            return decoded_klines(get(target, caller.wire))

        def accept(payload: object) -> KlinePage:
            columns = columns_of(payload)
            return page_of(columns, window, cut_off=len(columns["ts"]) >= limit)

        path = endpoint.path.replace("klines", name)
        return caller.call(Request(self.venue, path, params, endpoint.weight(limit)), send, accept)

    def funding_rates(
        self, market: Market, start: datetime, end: datetime, now: datetime
    ) -> Iterator[SeriesPage]:
        """Yield settlements, 1000 a request; those of the last minute count as not told yet."""
        self._demand(self.offers("funding_rates", market.market_type), f"funding rates of {market.symbol}")
        end = min(end, now)
        at = start
        while at < end:
            asked = {"symbol": market.exchange_symbol, **_range(at, end), "limit": 1000}

            def accept(payload: object, at: datetime = at) -> tuple[pa.Table, pa.Table, int]:
                rows, odd, n_raw = funding_of(payload)
                return within(rows, "settled_at", at, end), odd, n_raw

            rows, odd, n_raw = self._call("funding_rates", "usdm", asked, accept)
            last = rows["settled_at"][-1].as_py() + timedelta(milliseconds=1) if n_raw else at
            until = last if n_raw >= 1000 else max(last, min(end, now - _FUNDING_LAG))
            yield SeriesPage(rows, odd, at, max(at, until))
            if n_raw < 1000:
                return
            at = last

    def open_interest(
        self, market: Market, period: str, start: datetime, end: datetime, now: datetime
    ) -> Iterator[SeriesPage]:
        """Yield samples, 500 a request; a sample may come up to a period late.

        The exchange keeps 30 days: the first page's ``covered_from`` is where these begin, and nothing comes of a range
        that ends before.
        """
        self._demand(self.offers("open_interest", market.market_type), f"open interest of {market.symbol}")
        self._demand(period in _PERIODS, f"open interest by {period}")
        step = interval_delta(period)
        # A minute for the request to arrive: an older start is refused, not shortened.
        oldest = now - _OPEN_INTEREST_KEPT + timedelta(minutes=1)
        kept = from_ms(floor_ms(to_ms(oldest), period)) + step if start < oldest else start
        # Windows of one page each: which end of a longer range would be served is not documented.
        for left, right in windows_of(kept, min(end, now), 500 * step):
            asked = {"symbol": market.exchange_symbol, "period": period, **_range(left, right), "limit": 500}

            def accept(
                payload: object, left: datetime = left, right: datetime = right
            ) -> tuple[pa.Table, pa.Table]:
                rows, odd = open_interest_of(payload)
                return within(rows, "ts", left, right), odd

            rows, odd = self._call("open_interest", "usdm", asked, accept)
            told = rows["ts"][-1].as_py() + step if rows.num_rows else left
            yield SeriesPage(rows, odd, left, max(left, min(right, max(told, now - step))))

    def order_book(self, market: Market, n_levels: int) -> OrderBook:
        """Read up to 5000 levels of spot, up to 1000 of a contract (one request).

        Raises
        ------
        ValueError
            If so many levels are not to be had.
        """
        part = _part(market.market_type)
        most = self.page_rows(market.market_type, "order_book")
        if not 1 <= n_levels <= most:
            raise ValueError(
                f"{n_levels} levels of {market.symbol} are out of bounds: {part} gives 1 to {most}"
            )
        steps = [rows for rows, _ in _ENDPOINTS["order_book", part].tiers]
        limit = n_levels if part == "spot" else next(rows for rows in steps if n_levels <= rows)
        asked = {"symbol": market.exchange_symbol, "limit": limit}
        return self._call("order_book", part, asked, lambda payload: book_of(payload, n_levels), n_rows=limit)

    def offers(self, question: Question | KlineKind, market_type: MarketType = "spot") -> bool:
        """Whether the exchange answers a question, or has candles of a kind, for a type of market."""
        if question in ("time", "trade"):
            return True
        if question in ("mark", "premium"):
            return market_type != "spot"
        if question == "funding_rates":
            return market_type == "perpetual"
        return (question, _part(market_type)) in _ENDPOINTS

    def page_rows(self, market_type: MarketType = "spot", question: Question = "klines") -> int:
        """Rows of one full answer."""
        return _ENDPOINTS[question, _part(market_type)].tiers[-1][0]

    def request_weight(
        self, question: Question, market_type: MarketType = "spot", n_rows: int | None = None
    ) -> int:
        """Weight of one request."""
        part = "spot" if question == "time" else _part(market_type)
        return _ENDPOINTS[question, part].weight(n_rows)

    def budget(self, market_type: MarketType = "spot") -> RateBudget:
        """Rate budget of the part of the exchange to which a type of market belongs."""
        return self._budgets[_part(market_type)]

    def _call(
        self,
        question: Question,
        part: Part,
        params: Mapping[str, object],
        accept: Callable[[Any], Answer],
        n_rows: int | None = None,
    ) -> Answer:
        endpoint = _ENDPOINTS[question, part]

        def send() -> object:
            payload = getattr(self._api, endpoint.method)(dict(params))
            if isinstance(payload, str):
                raise NotJson("the body is not JSON")
            return payload

        request = Request(self.venue, endpoint.path, params, endpoint.weight(n_rows))
        return self._callers[part].call(request, send, accept)


def _part(market_type: MarketType) -> Part:
    return "spot" if market_type == "spot" else "usdm"


def _parts(market_types: Collection[MarketType]) -> list[Part]:
    return list(
        dict.fromkeys(_part(market_type) for market_type in sorted(market_types, key=MARKET_TYPES.index))
    )


def _lightest_limit(n_missing: int) -> int:
    n_requests = -(-n_missing // 1500)
    if n_requests > 1:
        # 1000 rows weigh half of 1500: as many requests take them as the fewest leaves room for.
        return 1000 if 1500 * n_requests - n_missing >= 500 else 1500
    return next(rows for rows, _ in _USDM_KLINES if n_missing <= rows)


def _range(start: datetime, end: datetime) -> dict[str, int]:
    # Rounded up: what is asked for begins at or after the start and ends before the end.
    begin, until = (to_ms(moment + timedelta(microseconds=999)) for moment in (start, end))
    return {"startTime": begin, "endTime": until - 1}
