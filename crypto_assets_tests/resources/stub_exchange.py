"""An exchange in memory that speaks the protocol of ingestion, keeps account of its pages and fails on demand."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import pyarrow as pa

from crypto_assets.intervals import interval_ms, to_ms
from crypto_assets.resources.exchange import FUNDING_SCHEMA, MARKET_SCHEMA, Market, SeriesPage
from crypto_assets.resources.klines import KlineKind, KlinePage, KlineWindow, nothing_until, page_of
from crypto_assets.resources.sources import SourceError


@dataclass
class StubExchange:
    """Candles by (symbol, kind) as opening times; prices follow from the time and the version of the candle.

    ``failures`` are raised once each when a page of that symbol is asked for; ``asked`` has every page's symbol, start
    and end.
    """

    opens: Mapping[tuple[str, str], Iterable[int]]
    venue: str = "stub"
    rows_a_page: int = 1000
    settlements: Mapping[str, Iterable[datetime]] = field(default_factory=dict)
    listed: list[dict[str, object]] = field(default_factory=list)
    failures: dict[str, list[SourceError]] = field(default_factory=dict)
    restated: set[int] = field(default_factory=set)
    asked: list[tuple[str, datetime, datetime]] = field(default_factory=list)
    most_at_once: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    meeting: threading.Barrier | None = None

    def markets(self, market_types: Collection[str] = ()) -> pa.Table:
        self.asked.append(("markets", datetime.min, datetime.min))  # noqa: DTZ901 - naive UTC
        return pa.Table.from_pylist(self.listed, schema=MARKET_SCHEMA)

    def page_rows(self, market_type: str = "spot", question: str = "klines") -> int:
        return self.rows_a_page

    def klines(
        self,
        market: Market,
        kind: KlineKind,
        interval: str,
        start: datetime,
        end: datetime,
        closed_before: datetime,
    ) -> Iterator[KlinePage]:
        every = np.array(sorted(self.opens[market.symbol, kind]), np.int64)
        at: datetime | None = start
        while at is not None:
            window = KlineWindow(kind, interval, at, end, closed_before)
            if at >= window.provable_end:
                yield nothing_until(at)
                return
            with self._lock:
                self.asked.append((market.symbol, at, end))
                self._now += 1
                self.most_at_once = max(self.most_at_once, self._now)
            if self.meeting is not None:
                self.meeting.wait(10)
            with self._lock:
                self._now -= 1
            if self.failures.get(market.symbol):
                raise self.failures[market.symbol].pop(0)
            inside = every[(every >= to_ms(at)) & (every < to_ms(window.provable_end))][: self.rows_a_page]
            page = page_of(self._columns(inside, interval), window, cut_off=len(inside) == self.rows_a_page)
            yield page
            at = page.resume_at

    def funding_rates(
        self, market: Market, start: datetime, end: datetime, now: datetime
    ) -> Iterator[SeriesPage]:
        with self._lock:
            self.asked.append((market.symbol, start, end))
        if self.failures.get(market.symbol):
            raise self.failures[market.symbol].pop(0)
        times = [at for at in self.settlements[market.symbol] if start <= at < min(end, now)]
        rows = [{"ts": at, "settled_at": at, "funding_rate_frac": 1e-4, "mark_price": 1.0} for at in times]
        empty = FUNDING_SCHEMA.append(pa.field("reason", pa.string())).empty_table()
        yield SeriesPage(pa.Table.from_pylist(rows, schema=FUNDING_SCHEMA), empty, start, min(end, now))

    def _columns(self, open_ms: np.ndarray, interval: str) -> dict[str, pa.Array]:
        price = 100.0 + open_ms // interval_ms(interval) % 50 + np.isin(open_ms, list(self.restated))
        prices = {name: pa.array(price) for name in ("open", "high", "low", "close")}
        close_ms = pa.array(open_ms + interval_ms(interval) - 1)
        return {"ts": pa.array(open_ms), **prices, "volume_base": pa.array(price), "close_time": close_ms}
