"""What a simulated market knows and what of it is public at a moment: the ``World`` and its plain records.

Here: the clock rule (nothing later than ``now_ms``, open bars as they looked, restatements from their
publication on) and paging, once for all worlds. Not here: HTTP and wire shapes, files, a running clock. The
simulation package, the command line and tests import it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from crypto_assets.intervals import DAY_MS, MINUTE_MS
from crypto_assets.simulation.bars import (
    CLOSE,
    HIGH,
    LOW,
    N_DECIMALS,
    N_VALUES,
    OPEN,
    TAKER_BASE,
    TAKER_QUOTE,
    UNKNOWN,
    VOLUME_BASE,
    VOLUME_QUOTE,
    Bars,
    aggregate,
    bar_end,
    concatenate,
    finest_divisor,
    grid_start,
    length_ms,
    no_bars,
    open_bar,
    to_units,
)

#: CoinGecko's daily point stamped D 00:00 appears this long after it.
DAILY_POINT_LAG_MS = 35 * MINUTE_MS


@dataclass(frozen=True)
class Market:
    """A spot pair as the exchange lists it.

    ``symbol`` is BASE/QUOTE, ``exchange_symbol`` what the exchange calls it. ``tick``, ``lot`` and
    ``min_notional`` are in units of 1e-8. ``first_ms`` and ``last_ms`` are the open times of its first and
    last bar in this world.
    """

    symbol: str
    exchange_symbol: str
    base: str
    quote: str
    tick: int
    lot: int
    min_notional: int
    first_ms: int
    last_ms: int


@dataclass(frozen=True)
class Coin:
    """An entry of the aggregator's coin list; ``ticker`` is no key."""

    coin_id: str
    ticker: str
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class CoinPoints:
    """Price, cap and trailing 24 h volume of a coin in USD: float64 (n,), NaN where null; stamps in ms."""

    stamp_ms: np.ndarray
    price_usd: np.ndarray
    market_cap_usd: np.ndarray
    volume_usd: np.ndarray

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.stamp_ms)

    def take(self, index: slice | np.ndarray) -> CoinPoints:
        """Rows by slice, mask or positions."""
        return CoinPoints(
            self.stamp_ms[index], self.price_usd[index], self.market_cap_usd[index], self.volume_usd[index]
        )


@dataclass(frozen=True, slots=True, eq=False)
class CoinCandles:
    """Candles of a coin in USD; ``stamp_ms`` is the END of each, prices are (4, n) open, high, low, close."""

    stamp_ms: np.ndarray
    prices: np.ndarray

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.stamp_ms)

    def take(self, index: slice | np.ndarray) -> CoinCandles:
        """Rows by slice, mask or positions."""
        return CoinCandles(self.stamp_ms[index], self.prices[:, index])


@dataclass(frozen=True)
class Restatement:
    """The exchange's correction of one candle, public from ``published_at_ms`` on.

    ``interval`` None means the finest stored interval of the symbol; longer derived intervals follow by
    themselves. A value of None keeps the old one. A candle that did not exist before (a late one) needs open,
    high, low, close and ``volume_base``; its other values are unknown unless given.
    """

    symbol: str
    ts_ms: int
    published_at_ms: int
    interval: str | None = None
    open: str | None = None
    high: str | None = None
    low: str | None = None
    close: str | None = None
    volume_base: str | None = None
    volume_quote: str | None = None
    taker_buy_base: str | None = None
    taker_buy_quote: str | None = None
    n_trades: int | None = None

    def changes(self) -> dict[int, int]:
        """Given values in units of 1e-8 by row of ``Bars.values``."""
        given = {
            OPEN: self.open,
            HIGH: self.high,
            LOW: self.low,
            CLOSE: self.close,
            VOLUME_BASE: self.volume_base,
            VOLUME_QUOTE: self.volume_quote,
            TAKER_BASE: self.taker_buy_base,
            TAKER_QUOTE: self.taker_buy_quote,
        }
        return {row: to_units(text) for row, text in given.items() if text is not None}


class World(ABC):
    """A market with a past and a future, read only as it was public at ``now_ms``.

    A subclass says what finally is (``all_markets``, ``intervals``, ``final_bars`` and the coin methods);
    this class decides what of it is public. Every read takes ``now_ms`` and changes nothing, so equal
    questions at equal moments have equal answers.
    """

    def __init__(self) -> None:
        self.restatements: list[Restatement] = []

    @abstractmethod
    def all_markets(self) -> Sequence[Market]:
        """Return every pair that ever trades in this world, in the exchange's order."""

    @abstractmethod
    def intervals(self, symbol: str) -> Sequence[str]:
        """Return the stored intervals of a symbol; every other one is derived."""

    @abstractmethod
    def final_bars(self, symbol: str, interval: str, start_ms: int, end_ms: int) -> Bars:
        """Return stored bars opening in [start_ms, end_ms) in their final state, whatever the clock says."""

    @abstractmethod
    def coins(self, now_ms: int) -> Sequence[Coin]:
        """Return the aggregator's coin list at a moment."""

    @abstractmethod
    def coin_points(self, coin_id: str, step: str, start_ms: int, end_ms: int, now_ms: int) -> CoinPoints:
        """Return public points stamped in [start_ms, end_ms]; step 5m, 1h or 1d; KeyError: unknown coin."""

    @abstractmethod
    def coin_now(self, coin_id: str, now_ms: int) -> CoinPoints:
        """Return the newest public state of a coin, one row or none; KeyError: unknown coin."""

    @abstractmethod
    def coin_candles(self, coin_id: str, step: str, start_ms: int, end_ms: int, now_ms: int) -> CoinCandles:
        """Return public finished candles stamped in [start_ms, end_ms]; step 30m, 1h, 4h, 1d or 4d."""

    def restate(self, *restatements: Restatement) -> None:
        """Add corrections.

        Raises
        ------
        ValueError
            If one is of an unknown pair, is published before its candle has closed, names an interval that is
            not stored, or adds a late candle without saying all that is needed.
        """
        for new in restatements:
            if new.symbol not in {market.symbol for market in self.all_markets()}:
                raise ValueError(
                    f"restatement of {new.symbol!r}: this world has no such pair; write BASE/QUOTE"
                )
            interval = self._restated_interval(new)
            if interval not in self.intervals(new.symbol):
                raise ValueError(
                    f"restatement of {new.symbol} {interval}: only stored intervals "
                    f"({', '.join(self.intervals(new.symbol))}) can be restated, longer ones follow from them"
                )
            if new.published_at_ms < int(bar_end(np.array([new.ts_ms]), interval)[0]):
                raise ValueError(
                    f"restatement of {new.symbol} {interval} at {new.ts_ms}: published at "
                    f"{new.published_at_ms}, before the candle has closed; publish it later"
                )
            here = self._published(new.symbol, interval, new.ts_ms, new.ts_ms + 1, new.published_at_ms)
            if not len(here) and not new.changes().keys() >= {OPEN, HIGH, LOW, CLOSE, VOLUME_BASE}:
                raise ValueError(
                    f"restatement of {new.symbol} {interval} at {new.ts_ms}: there is no such candle, and "
                    "a late one needs open, high, low, close and volume_base"
                )
            self.restatements.append(new)

    def markets(self, now_ms: int) -> list[Market]:
        """Pairs whose first bar is not later than now."""
        return [market for market in self.all_markets() if market.first_ms <= now_ms]

    def market(self, exchange_symbol: str, now_ms: int) -> Market | None:
        """Return the listed pair with this exchange symbol, if there is one at now."""
        listed = (
            m for m in self.all_markets() if m.exchange_symbol == exchange_symbol and m.first_ms <= now_ms
        )
        return next(listed, None)

    def is_trading(self, market: Market, now_ms: int) -> bool:
        """Whether the newest public bar is at most 24 h old (its end, for bars that are longer)."""
        recent = now_ms - DAY_MS
        for interval in self.intervals(market.symbol):
            bars = self.final_bars(market.symbol, interval, recent - length_ms(interval) + 1, now_ms + 1)
            if len(bars) and bar_end(bars.open_ms[-1:], interval)[0] > recent:
                return True
        return False

    def klines(
        self,
        symbol: str,
        interval: str,
        *,
        now_ms: int,
        limit: int,
        start_ms: int | None = None,
        end_ms: int | None = None,
    ) -> Bars:
        """One page of bars as the exchange pages them.

        Parameters
        ----------
        symbol
            BASE/QUOTE of a market of this world.
        interval
            One of the exchange's intervals: stored bars if it is stored, else derived from the finest stored
            interval that divides it, else nothing.
        now_ms
            The moment of the question.
        limit
            Most rows of the page.
        start_ms, end_ms
            Inclusive bounds of the open time. With a start the first ``limit`` rows from it, without one the
            last.

        Returns
        -------
        Bars
            Ascending; the last one may be open, and then is as it looked at ``now_ms``.
        """
        market = next(m for m in self.all_markets() if m.symbol == symbol)
        first = int(grid_start(np.array([market.first_ms]), interval)[0])
        low = first if start_ms is None else max(first, start_ms)
        high = min(now_ms, market.last_ms if end_ms is None else min(end_ms, market.last_ms)) + 1
        parts: list[Bars] = []
        missing, stride = limit, 1
        while missing > 0 and low < high:
            width = missing * length_ms(interval) * stride
            if start_ms is None:
                bars = self.window(symbol, interval, max(low, high - width), high, now_ms)
                bars = bars.take(slice(max(0, len(bars) - missing), None))
                parts.insert(0, bars)
                high -= width
            else:
                bars = self.window(symbol, interval, low, min(high, low + width), now_ms).take(slice(missing))
                parts.append(bars)
                low += width
            missing -= len(bars)
            # A long hole is crossed in doubling strides.
            stride = 1 if len(bars) else stride * 2
        return concatenate(parts)

    def window(self, symbol: str, interval: str, start_ms: int, end_ms: int, now_ms: int) -> Bars:
        """All public bars opening in [start_ms, end_ms), the open ones as they look at now."""
        end_ms = min(end_ms, now_ms + 1)
        if interval in self.intervals(symbol):
            return self._stored_at(symbol, interval, start_ms, end_ms, now_ms)
        return self._derived_at(symbol, interval, start_ms, end_ms, now_ms)

    def _stored_at(self, symbol: str, interval: str, start_ms: int, end_ms: int, now_ms: int) -> Bars:
        bars = self._published(symbol, interval, start_ms, end_ms, now_ms)
        # Ends ascend with opens, so the bars that are still open are the last ones.
        n_closed = int(np.searchsorted(bar_end(bars.open_ms, interval), now_ms, side="right"))
        parts = [bars.take(slice(n_closed))]
        for i in range(n_closed, len(bars)):
            start = int(bars.open_ms[i])
            finer = self._derived_at(symbol, interval, start, start + 1, now_ms)
            # Finer bars that begin in the middle of this one are no picture of it.
            if len(finer) and finer.values[OPEN, 0] == bars.values[OPEN, i]:
                parts.append(finer)
            else:
                market = next(m for m in self.all_markets() if m.symbol == symbol)
                parts.append(open_bar(bars.take(slice(i, i + 1)), interval, now_ms, market.tick, market.lot))
        return concatenate(parts)

    def _derived_at(self, symbol: str, interval: str, start_ms: int, end_ms: int, now_ms: int) -> Bars:
        base = finest_divisor(self.intervals(symbol), interval)
        if base is None or start_ms >= end_ms:
            return no_bars()
        bounds = np.array([start_ms - 1, end_ms - 1])
        low, high = (int(edge) for edge in bar_end(grid_start(bounds, interval), interval))
        length = length_ms(base)
        derived = aggregate(
            self.window(symbol, base, low - length + 1, high - length + 1, now_ms), base, interval
        )
        derived = derived.between(start_ms, end_ms)
        ends = bar_end(derived.open_ms, interval)
        return replace(derived, close_ms=np.where(ends > now_ms, ends - 1, derived.close_ms))

    def _published(self, symbol: str, interval: str, start_ms: int, end_ms: int, now_ms: int) -> Bars:
        bars = self.final_bars(symbol, interval, start_ms, end_ms)
        due = [
            r
            for r in self.restatements
            if r.symbol == symbol and start_ms <= r.ts_ms < end_ms and r.published_at_ms <= now_ms
            if self._restated_interval(r) == interval
        ]
        for restatement in sorted(due, key=lambda r: r.published_at_ms):
            bars = _restated(bars, restatement, interval)
        return bars

    def _restated_interval(self, restatement: Restatement) -> str:
        return restatement.interval or min(self.intervals(restatement.symbol), key=length_ms)


def visible_points(points: CoinPoints, start_ms: int, end_ms: int, now_ms: int) -> CoinPoints:
    """Daily points stamped in [start_ms, end_ms] that the aggregator has published at now."""
    return points.take(_visible(points.stamp_ms, start_ms, end_ms, now_ms - DAILY_POINT_LAG_MS))


def visible_candles(
    candles: CoinCandles, start_ms: int, end_ms: int, now_ms: int, *, daily: bool
) -> CoinCandles:
    """Candles stamped in [start_ms, end_ms] that are published at now; daily ones with their lag."""
    latest = now_ms - DAILY_POINT_LAG_MS if daily else now_ms
    return candles.take(_visible(candles.stamp_ms, start_ms, end_ms, latest))


def merge_candles(candles: CoinCandles, length: int) -> CoinCandles:
    """Candles of ``length`` ms on the epoch grid out of shorter ones; only those whose last part is there."""
    if not len(candles):
        return candles
    ends = -(-candles.stamp_ms // length) * length
    firsts = np.flatnonzero(np.r_[True, ends[1:] != ends[:-1]])
    lasts = np.r_[firsts[1:], len(ends)] - 1
    opens, highs, lows, closes = candles.prices
    merged = CoinCandles(
        ends[firsts],
        np.stack(
            [
                opens[firsts],
                np.maximum.reduceat(highs, firsts),
                np.minimum.reduceat(lows, firsts),
                closes[lasts],
            ]
        ),
    )
    return merged.take(candles.stamp_ms[lasts] == merged.stamp_ms)


def no_candles() -> CoinCandles:
    """Zero candles."""
    return CoinCandles(np.empty(0, np.int64), np.empty((4, 0)))


def points_of(rows: Iterable[tuple[int, float, float, float]]) -> CoinPoints:
    """Points out of (stamp_ms, price, cap, volume) rows."""
    columns = np.array(list(rows), float).reshape(-1, 4).T
    return CoinPoints(columns[0].astype(np.int64), columns[1], columns[2], columns[3])


def _visible(stamps: np.ndarray, start_ms: int, end_ms: int, latest_ms: int) -> slice:
    first = int(np.searchsorted(stamps, start_ms))
    return slice(first, max(first, int(np.searchsorted(stamps, min(end_ms, latest_ms), side="right"))))


def _restated(bars: Bars, restatement: Restatement, interval: str) -> Bars:
    changes = restatement.changes()
    i = int(np.searchsorted(bars.open_ms, restatement.ts_ms))
    if i == len(bars) or bars.open_ms[i] != restatement.ts_ms:
        late = Bars(
            np.array([restatement.ts_ms]),
            bar_end(np.array([restatement.ts_ms]), interval) - 1,
            np.full((N_VALUES, 1), UNKNOWN, np.int64),
            np.full((N_VALUES, 1), N_DECIMALS, np.uint8),
            np.array([UNKNOWN]),
        )
        bars = concatenate([bars.take(slice(i)), late, bars.take(slice(i, None))])
    dtype = object if max(changes.values(), default=0) >= 2**63 else bars.values.dtype
    values, shown, n_trades = bars.values.astype(dtype), bars.shown.copy(), bars.n_trades.copy()
    for row, units in changes.items():
        values[row, i] = units
        shown[row, i] = N_DECIMALS
    if restatement.n_trades is not None:
        n_trades[i] = restatement.n_trades
    return replace(bars, values=values, shown=shown, n_trades=n_trades)
