"""What ingestion may ask of any exchange, and the shapes of the answers.

Here: the protocol, the markets, pages and books it speaks in, and their Arrow schemas. Not here: how a venue is asked
(``binance``, ``unified``) and candles (``resources.klines``). Everybody who handles an exchange imports it, through
``crypto_assets.resources.exchange``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa

from crypto_assets.resources.klines import KlineKind, KlinePage
from crypto_assets.resources.sources import RateBudget

MarketType = Literal["spot", "perpetual", "delivery"]
MARKET_TYPES: tuple[MarketType, ...] = ("spot", "perpetual", "delivery")

#: What can be asked for; ``offers``, ``page_rows`` and ``request_weight`` speak of it.
Question = Literal["time", "markets", "turnover", "klines", "funding_rates", "open_interest", "order_book"]

_TIMESTAMP = pa.timestamp("us")

#: Columns of the markets of a venue, as in raw/symbols. Null means that the venue does not state it.
MARKET_SCHEMA = pa.schema(
    [
        pa.field("symbol", pa.string(), nullable=False),
        pa.field("exchange_symbol", pa.string(), nullable=False),
        pa.field("market_type", pa.string(), nullable=False),
        pa.field("base", pa.string(), nullable=False),
        pa.field("quote", pa.string(), nullable=False),
        pa.field("settle", pa.string()),
        pa.field("contract_type", pa.string()),
        pa.field("trading_status", pa.string(), nullable=False),
        pa.field("permissions", pa.string()),
        pa.field("spot_allowed", pa.bool_()),
        pa.field("listed_at", _TIMESTAMP),
        pa.field("delivery_at", _TIMESTAMP),
        pa.field("tick_size", pa.float64()),
        pa.field("lot_size", pa.float64()),
        pa.field("min_notional", pa.float64()),
    ]
)

#: Traded value of the last 24 hours in quote units; null where the venue states none.
TURNOVER_SCHEMA = pa.schema(
    [pa.field("symbol", pa.string(), nullable=False), pa.field("turnover_24h_quote", pa.float64())]
)

#: Funding settlements: ``ts`` is ``settled_at`` to the nearest second, without the jitter of the source.
FUNDING_SCHEMA = pa.schema(
    [
        pa.field("ts", _TIMESTAMP, nullable=False),
        pa.field("settled_at", _TIMESTAMP, nullable=False),
        pa.field("funding_rate_frac", pa.float64(), nullable=False),
        pa.field("mark_price", pa.float64()),
    ]
)

#: Samples of the open interest.
OPEN_INTEREST_SCHEMA = pa.schema(
    [
        pa.field("ts", _TIMESTAMP, nullable=False),
        pa.field("open_interest_base", pa.float64()),
        pa.field("open_interest_quote", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Market:
    """One market of a venue.

    Attributes
    ----------
    symbol
        As ccxt writes it: ``BTC/USDT``, ``BTC/USDT:USDT``, ``BTC/USDT:USDT-240329``.
    exchange_symbol
        The venue's own name, for example ``BTCUSDT_240329``.
    market_type
        spot, perpetual or delivery.
    """

    symbol: str
    exchange_symbol: str
    market_type: MarketType = "spot"


@dataclass(frozen=True)
class SeriesPage:
    """One answer with funding rates or open interest, and what it proves.

    Attributes
    ----------
    rows
        By ``FUNDING_SCHEMA`` or ``OPEN_INTEREST_SCHEMA``, ascending by ``ts`` without duplicates.
    set_aside
        Rows kept out, same columns and ``reason`` (duplicate): all but the last of several rows with one ``ts``.
    covered_from, covered_until
        Range [from, until) that the answer proves: what is in neither table is not at the source. Both are equal where
        it proves nothing.
    """

    rows: pa.Table
    set_aside: pa.Table
    covered_from: datetime
    covered_until: datetime


@dataclass(frozen=True)
class OrderBook:
    """A snapshot of an order book.

    Attributes
    ----------
    bids, asks
        float64 arrays (n, 2) of price (quote units) and amount (base units), best price first. Each side is strictly
        ordered; whether the sides cross is for the reader to judge.
    last_update_id
        The venue's sequence number, ``None`` where it tells none.
    exchange_time
        The venue's time of the snapshot, naive UTC, ``None`` where it tells none.
    """

    bids: np.ndarray
    asks: np.ndarray
    last_update_id: int | None
    exchange_time: datetime | None


class Exchange(Protocol):
    """Public market data of one venue.

    Safe to share between threads. Times are naive UTC and the venue's own; the local clock is never read. Every method
    that asks raises ``SourceError`` as ``SourceCaller.call``, and ``SourceRefused`` where the venue does not offer what
    is asked for (see ``offers``). Iterators ask as they are consumed: when a later page fails, the earlier ones have
    been yielded and stay valid.
    """

    @property
    def venue(self) -> str:
        """Name of the venue."""
        ...

    def server_time(self) -> datetime:
        """Read the venue's clock: exact to the millisecond it tells (one request)."""
        ...

    def last_closed(self, interval: str) -> datetime:
        """Return the watermark, the end of the last closed interval by the venue's clock (one request)."""
        ...

    def markets(self, market_types: Collection[MarketType] = MARKET_TYPES) -> pa.Table:
        """Every market of the venue, dead ones included, by ``MARKET_SCHEMA``; no symbol comes twice.

        What is not asked for need not be there: spot and contracts often lie on hosts of their own.
        """
        ...

    def turnover_24h(self, market_types: Collection[MarketType] = MARKET_TYPES) -> pa.Table:
        """Traded value of the markets in the last 24 hours by ``TURNOVER_SCHEMA``; dead ones may be missing."""
        ...

    def klines(
        self,
        market: Market,
        kind: KlineKind,
        interval: str,
        start: datetime,
        end: datetime,
        closed_before: datetime,
    ) -> Iterator[KlinePage]:
        """Yield the closed candles that open in [start, end), page by page, in the fewest requests.

        A page proves [``covered_from``, ``covered_until``); ``covered_from`` is ``None`` where that is the start it was
        asked from: ``start`` for the first page, ``covered_until`` of the page before for the others. ``closed_before``
        is the venue's time of the tick: a moment from the local clock would let open candles in. No request is sent
        when nothing in the range can be closed yet.
        """
        ...

    def funding_rates(
        self, market: Market, start: datetime, end: datetime, now: datetime
    ) -> Iterator[SeriesPage]:
        """Yield the settlements of a perpetual contract in [start, end); ``now`` is the venue's time."""
        ...

    def open_interest(
        self, market: Market, period: str, start: datetime, end: datetime, now: datetime
    ) -> Iterator[SeriesPage]:
        """Yield the samples of a contract's open interest in [start, end); ``now`` is the venue's time.

        Venues keep samples for a limited time (Binance: 30 days): what lies before is neither asked for nor proven.
        """
        ...

    def order_book(self, market: Market, n_levels: int) -> OrderBook:
        """Read the best levels of both sides now; fewer than ``n_levels`` where the book is thinner."""
        ...

    def offers(self, question: Question | KlineKind, market_type: MarketType = "spot") -> bool:
        """Whether the venue answers a question (or has candles of a kind) for a type of market."""
        ...

    def page_rows(self, market_type: MarketType = "spot", question: Question = "klines") -> int:
        """Rows of one full answer, from which follows which holes one request can span."""
        ...

    def request_weight(
        self, question: Question, market_type: MarketType = "spot", n_rows: int | None = None
    ) -> int:
        """Budget units that a request for so many rows (levels) costs; ``None`` is a full answer."""
        ...

    def budget(self, market_type: MarketType = "spot") -> RateBudget:
        """The rate budget that questions about a type of market are charged to; for progress displays."""
        ...
