"""What a simulated market knows and what of it is public at a moment: the ``World`` and its plain records.

Here: the clock rule (nothing later than ``now_ms``, open bars as they looked, restatements from their
publication on) and paging, once for all worlds. Not here: HTTP and wire shapes, files, a running clock. The
simulation package, the command line and tests import it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from crypto_assets.intervals import DAY_MS, HOUR_MS, MINUTE_MS
from crypto_assets.simulation.bars import (
    CLOSE,
    HIGH,
    LOW,
    N_DECIMALS,
    N_VALUES,
    OPEN,
    TAKER_BASE,
    TAKER_QUOTE,
    UNITS,
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


#: What a candle shows: trades, or of a contract its mark price or premium index (a fraction).
Kind = Literal["trade", "mark", "premium"]

#: The exchange's delivery time of a contract without an end.
NO_DELIVERY_MS = 4_133_404_800_000

#: Periods in which open interest is sampled, finest first.
OPEN_INTEREST_PERIODS = ("5m", "15m", "30m", "1h", "2h", "4h", "6h", "12h", "1d")


@dataclass(frozen=True)
class Market:
    """A spot pair or a USD-M contract as the exchange lists it.

    Attributes
    ----------
    symbol
        As ccxt writes it: BASE/QUOTE, of a perpetual BASE/QUOTE:SETTLE, of a dated contract
        BASE/QUOTE:SETTLE-YYMMDD.
    exchange_symbol
        What the exchange calls it; a pair and a contract may share it.
    tick, lot, min_notional
        In units of 1e-8.
    first_ms, last_ms
        Open times of its first and last bar in this world; ``last_ms`` is before ``first_ms`` where it has none.
    market_type
        spot, perpetual or delivery.
    settle, contract_type
        Of contracts: asset of settlement, and the exchange's word for the contract.
    onboard_ms, delivery_ms, announced_ms
        Of contracts: start and exclusive end of trading, and the moment from which the exchange tells the end.
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
    market_type: Literal["spot", "perpetual", "delivery"] = "spot"
    settle: str | None = None
    contract_type: str | None = None
    onboard_ms: int = 0
    delivery_ms: int = NO_DELIVERY_MS
    announced_ms: int = 0

    @property
    def is_spot(self) -> bool:
        """Whether it is a pair and no contract."""
        return self.market_type == "spot"


@dataclass(frozen=True, slots=True, eq=False)
class Funding:
    """Settlements of a perpetual contract, ascending.

    Attributes
    ----------
    settled_ms
        Settlement time as the exchange tells it, some milliseconds after the schedule; int64 (n,).
    rate
        Share of a position's value that long positions pay to short ones, units of 1e-8; int64 (n,).
    mark_price
        Units of 1e-8, ``UNKNOWN`` = -1 where it was not recorded; int64 (n,).
    """

    settled_ms: np.ndarray
    rate: np.ndarray
    mark_price: np.ndarray

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.settled_ms)

    def take(self, index: slice | np.ndarray) -> Funding:
        """Rows by slice, mask or positions."""
        return Funding(self.settled_ms[index], self.rate[index], self.mark_price[index])


@dataclass(frozen=True, slots=True, eq=False)
class OpenInterest:
    """Samples of the open contracts, ascending.

    ``base`` and ``quote`` are in units of 1e-8: int64 (n,), or Python integers (dtype object) where a value
    needs more than 63 bits; ``UNKNOWN`` = -1.
    """

    stamp_ms: np.ndarray
    base: np.ndarray
    quote: np.ndarray

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.stamp_ms)

    def take(self, index: slice | np.ndarray) -> OpenInterest:
        """Rows by slice, mask or positions."""
        return OpenInterest(self.stamp_ms[index], self.base[index], self.quote[index])


@dataclass(frozen=True)
class Premium:
    """A contract's prices at a moment (units of 1e-8) and its next settlement; None without funding.

    ``rate`` is the funding rate as it would be settled from what is known at the moment, units of 1e-8.
    """

    mark_price: int
    index_price: int
    rate: int | None
    next_settlement_ms: int | None


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
    high, low, close and, of trades, ``volume_base``; its other values are unknown unless given.
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
    kind: Kind = "trade"

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

    A subclass says what finally is (``all_markets``, ``intervals``, ``final_bars``, the coin methods and, where
    it has contracts, ``all_contracts``, ``final_funding``, ``funding_hours`` and ``final_open_interest``); this
    class decides what of it is public. Every read takes ``now_ms`` and changes nothing, so equal questions at
    equal moments have equal answers.
    """

    def __init__(self) -> None:
        self.restatements: list[Restatement] = []

    @abstractmethod
    def all_markets(self) -> Sequence[Market]:
        """Return every pair that ever trades in this world, in the exchange's order."""

    @abstractmethod
    def intervals(self, symbol: str, kind: Kind = "trade") -> Sequence[str]:
        """Return the stored intervals of a symbol; every other one is derived."""

    @abstractmethod
    def final_bars(
        self, symbol: str, interval: str, start_ms: int, end_ms: int, kind: Kind = "trade"
    ) -> Bars:
        """Return stored bars opening in [start_ms, end_ms) in their final state, whatever the clock says."""

    def all_contracts(self) -> Sequence[Market]:
        """Return every USD-M contract that is ever listed in this world, in the exchange's order."""
        return ()

    def final_funding(self, symbol: str, start_ms: int, end_ms: int) -> Funding:
        """Return settlements told in [start_ms, end_ms), whatever the clock says."""
        return no_funding()

    def funding_hours(self, symbol: str, now_ms: int) -> int | None:
        """Return the hours between two settlements at a moment; None: the contract has no funding."""
        return None

    def final_open_interest(self, symbol: str, period: str, start_ms: int, end_ms: int) -> OpenInterest:
        """Return samples of a period stamped in [start_ms, end_ms), whatever the clock says."""
        return no_open_interest()

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
            If one is of an unknown market, is published before its candle has closed, names an interval that
            is not stored, or adds a late candle without saying all that is needed.
        """
        for new in restatements:
            if new.symbol not in {market.symbol for market in (*self.all_markets(), *self.all_contracts())}:
                raise ValueError(
                    f"restatement of {new.symbol!r}: this world has no such pair; write BASE/QUOTE, "
                    "or BASE/QUOTE:SETTLE of a contract"
                )
            stored = self.intervals(new.symbol, new.kind)
            interval = self._restated_interval(new)
            if interval not in stored:
                raise ValueError(
                    f"restatement of {new.symbol} {new.kind} {interval}: only stored intervals "
                    f"({', '.join(stored)}) can be restated, longer ones follow from them"
                )
            if new.published_at_ms < int(bar_end(np.array([new.ts_ms]), interval)[0]):
                raise ValueError(
                    f"restatement of {new.symbol} {interval} at {new.ts_ms}: published at "
                    f"{new.published_at_ms}, before the candle has closed; publish it later"
                )
            here = self._published(
                new.symbol, interval, new.ts_ms, new.ts_ms + 1, new.published_at_ms, new.kind
            )
            needed = {OPEN, HIGH, LOW, CLOSE} | ({VOLUME_BASE} if new.kind == "trade" else set())
            if not len(here) and not new.changes().keys() >= needed:
                raise ValueError(
                    f"restatement of {new.symbol} {interval} at {new.ts_ms}: there is no such candle, and "
                    "a late one needs open, high, low, close and, of trades, volume_base"
                )
            self.restatements.append(new)

    def markets(self, now_ms: int) -> list[Market]:
        """Pairs that the exchange names at now."""
        return [market for market in self.all_markets() if self.is_listed(market, now_ms)]

    def market(self, exchange_symbol: str, now_ms: int) -> Market | None:
        """Return the listed pair with this exchange symbol, if there is one at now."""
        return self._listed(self.all_markets(), exchange_symbol, now_ms)

    def contracts(self, now_ms: int) -> list[Market]:
        """Contracts that the exchange names at now, whatever their status."""
        return [contract for contract in self.all_contracts() if self.is_listed(contract, now_ms)]

    def contract(self, exchange_symbol: str, now_ms: int) -> Market | None:
        """Return the listed contract with this exchange symbol, if there is one at now."""
        return self._listed(self.all_contracts(), exchange_symbol, now_ms)

    def is_listed(self, market: Market, now_ms: int) -> bool:
        """Whether the exchange names the market at now: its first bar is not later."""
        return market.first_ms <= now_ms

    def status(self, market: Market, now_ms: int) -> str:
        """Return the exchange's word for the state of a listed market."""
        if self.is_trading(market, now_ms):
            return "TRADING"
        return "BREAK" if market.is_spot else "SETTLING"

    def description(self, market: Market, now_ms: int) -> Mapping[str, object] | None:
        """Return the exchange's own entry of the market where it was recorded; its status may be out of date."""
        return None

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
        kind: Kind = "trade",
    ) -> Bars:
        """One page of bars as the exchange pages them.

        Parameters
        ----------
        symbol
            Symbol of a pair or contract of this world.
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
        kind
            What the bars show; only contracts have other bars than of trades.

        Returns
        -------
        Bars
            Ascending; the last one may be open, and then is as it looked at ``now_ms``.
        """
        market = self._named(symbol)
        first = int(grid_start(np.array([market.first_ms]), interval)[0])
        low = first if start_ms is None else max(first, start_ms)
        high = min(now_ms, market.last_ms if end_ms is None else min(end_ms, market.last_ms)) + 1
        parts: list[Bars] = []
        missing, stride = limit, 1
        while missing > 0 and low < high:
            width = missing * length_ms(interval) * stride
            if start_ms is None:
                bars = self.window(symbol, interval, max(low, high - width), high, now_ms, kind)
                bars = bars.take(slice(max(0, len(bars) - missing), None))
                parts.insert(0, bars)
                high -= width
            else:
                bars = self.window(symbol, interval, low, min(high, low + width), now_ms, kind)
                bars = bars.take(slice(missing))
                parts.append(bars)
                low += width
            missing -= len(bars)
            # A long hole is crossed in doubling strides.
            stride = 1 if len(bars) else stride * 2
        return concatenate(parts)

    def window(
        self, symbol: str, interval: str, start_ms: int, end_ms: int, now_ms: int, kind: Kind = "trade"
    ) -> Bars:
        """All public bars opening in [start_ms, end_ms), the open ones as they look at now."""
        end_ms = min(end_ms, now_ms + 1)
        if interval in self.intervals(symbol, kind):
            return self._stored_at(symbol, interval, start_ms, end_ms, now_ms, kind)
        return self._derived_at(symbol, interval, start_ms, end_ms, now_ms, kind)

    def funding(
        self,
        symbol: str,
        *,
        now_ms: int,
        limit: int,
        start_ms: int | None = None,
        end_ms: int | None = None,
    ) -> Funding:
        """One page of settlements that have happened at now.

        Bounds of the settlement time are inclusive: with a start the first ``limit`` rows from it, without
        one the last; ascending.
        """
        last_ms = now_ms if end_ms is None else min(now_ms, end_ms)
        first_ms, last_ms = self._settlements_within(symbol, start_ms, last_ms, limit)
        rows = self.final_funding(symbol, first_ms, last_ms + 1)
        return rows.take(slice(-limit, None) if start_ms is None else slice(limit))

    def open_interest(
        self,
        symbol: str,
        period: str,
        *,
        now_ms: int,
        limit: int,
        start_ms: int | None = None,
        end_ms: int | None = None,
    ) -> OpenInterest:
        """One page of samples that are public at now: the last ``limit`` of [start_ms, end_ms], ascending.

        As at the exchange a page is always counted from its end: a start alone cuts it off, it does not
        begin it.
        """
        last_ms = now_ms if end_ms is None else min(now_ms, end_ms)
        first_ms = last_ms - limit * length_ms(period) if start_ms is None else start_ms
        return self.final_open_interest(symbol, period, first_ms, last_ms + 1).take(slice(-limit, None))

    def open_interest_now(self, symbol: str, now_ms: int) -> OpenInterest:
        """Newest public sample of any period, one row or none."""
        newest = [
            sample
            for period in OPEN_INTEREST_PERIODS
            if len(sample := self.open_interest(symbol, period, now_ms=now_ms, limit=1))
        ]
        return max(newest, key=lambda sample: int(sample.stamp_ms[0]), default=no_open_interest())

    def premium(self, symbol: str, now_ms: int) -> Premium | None:
        """Return a contract's mark and index price and running funding rate; None before it has a price.

        The mark price is the newest mark close, or the newest trade where no mark price is known; the index
        follows from it and the newest premium. The running rate is that of the last settlement where a world
        knows no better.
        """
        closes = {
            kind: int(bars.values[CLOSE, 0])
            for kind in ("mark", "premium", "trade")
            if (stored := self.intervals(symbol, kind))
            and len(
                bars := self.klines(symbol, min(stored, key=length_ms), now_ms=now_ms, limit=1, kind=kind)
            )
        }
        mark = closes.get("mark", closes.get("trade"))
        if mark is None:
            return None
        index = round(mark / (1 + closes.get("premium", 0) / UNITS))
        hours = self.funding_hours(symbol, now_ms)
        if hours is None:
            return Premium(mark, index, None, None)
        return Premium(
            mark,
            index,
            self.running_rate(symbol, now_ms),
            (now_ms // (hours * HOUR_MS) + 1) * hours * HOUR_MS,
        )

    def running_rate(self, symbol: str, now_ms: int) -> int:
        """Funding rate (units of 1e-8) as known at now: that of the last settlement, 0 before the first."""
        last = self.funding(symbol, now_ms=now_ms, limit=1)
        return int(last.rate[0]) if len(last) else 0

    def _settlements_within(
        self, symbol: str, start_ms: int | None, last_ms: int, limit: int
    ) -> tuple[int, int]:
        # A world that makes its rows narrows the bounds to those that the page can hold.
        return 0 if start_ms is None else start_ms, last_ms

    def _named(self, symbol: str) -> Market:
        return next(m for m in (*self.all_markets(), *self.all_contracts()) if m.symbol == symbol)

    def _listed(self, markets: Sequence[Market], exchange_symbol: str, now_ms: int) -> Market | None:
        named = (m for m in markets if m.exchange_symbol == exchange_symbol and self.is_listed(m, now_ms))
        return next(named, None)

    def _stored_at(
        self, symbol: str, interval: str, start_ms: int, end_ms: int, now_ms: int, kind: Kind
    ) -> Bars:
        bars = self._published(symbol, interval, start_ms, end_ms, now_ms, kind)
        # Ends ascend with opens, so the bars that are still open are the last ones.
        n_closed = int(np.searchsorted(bar_end(bars.open_ms, interval), now_ms, side="right"))
        parts = [bars.take(slice(n_closed))]
        for i in range(n_closed, len(bars)):
            start = int(bars.open_ms[i])
            finer = self._derived_at(symbol, interval, start, start + 1, now_ms, kind)
            # Finer bars that begin in the middle of this one are no picture of it.
            if len(finer) and finer.values[OPEN, 0] == bars.values[OPEN, i]:
                parts.append(finer)
            else:
                market = self._named(symbol)
                tick, lot = (market.tick, market.lot) if kind == "trade" else (1, 1)
                parts.append(open_bar(bars.take(slice(i, i + 1)), interval, now_ms, tick, lot))
        return concatenate(parts)

    def _derived_at(
        self, symbol: str, interval: str, start_ms: int, end_ms: int, now_ms: int, kind: Kind
    ) -> Bars:
        base = finest_divisor(self.intervals(symbol, kind), interval)
        if base is None or start_ms >= end_ms:
            return no_bars()
        bounds = np.array([start_ms - 1, end_ms - 1])
        low, high = (int(edge) for edge in bar_end(grid_start(bounds, interval), interval))
        length = length_ms(base)
        derived = aggregate(
            self.window(symbol, base, low - length + 1, high - length + 1, now_ms, kind), base, interval
        )
        derived = derived.between(start_ms, end_ms)
        ends = bar_end(derived.open_ms, interval)
        return replace(derived, close_ms=np.where(ends > now_ms, ends - 1, derived.close_ms))

    def _published(
        self, symbol: str, interval: str, start_ms: int, end_ms: int, now_ms: int, kind: Kind
    ) -> Bars:
        bars = self.final_bars(symbol, interval, start_ms, end_ms, kind)
        due = [
            r
            for r in self.restatements
            if r.symbol == symbol and r.kind == kind
            if start_ms <= r.ts_ms < end_ms and r.published_at_ms <= now_ms
            if self._restated_interval(r) == interval
        ]
        for restatement in sorted(due, key=lambda r: r.published_at_ms):
            bars = _restated(bars, restatement, interval)
        return bars

    def _restated_interval(self, restatement: Restatement) -> str:
        stored = self.intervals(restatement.symbol, restatement.kind)
        return restatement.interval or min(stored, key=length_ms, default="")


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


def no_funding() -> Funding:
    """Zero settlements."""
    return Funding(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64))


def no_open_interest() -> OpenInterest:
    """Zero samples."""
    return OpenInterest(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64))


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
