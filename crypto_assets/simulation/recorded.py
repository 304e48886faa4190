"""A market replayed from recordings: stored bars as recorded, the rest derived from them or unknown.

Here: what a set of recordings says about pairs, contracts and coins. Not here: reading files (``recordings``), the
clock rule and paging (``world``), HTTP. Tests, the demo and the command line import it. No file, no clock, no
environment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from crypto_assets.intervals import DAY_MS, HOUR_MS
from crypto_assets.simulation.bars import (
    CLOSE,
    VOLUME_BASE,
    Bars,
    finest_divisor,
    length_ms,
    no_bars,
    step_of,
    to_units,
)
from crypto_assets.simulation.world import (
    NO_DELIVERY_MS,
    OPEN_INTEREST_PERIODS,
    Coin,
    CoinCandles,
    CoinPoints,
    Funding,
    Kind,
    Market,
    OpenInterest,
    World,
    merge_candles,
    no_candles,
    no_funding,
    no_open_interest,
    points_of,
    visible_candles,
    visible_points,
)


@dataclass(frozen=True)
class MarketRules:
    """Steps of a pair in units of 1e-8, from an exchangeInfo recording."""

    tick: int
    lot: int
    min_notional: int


@dataclass(frozen=True)
class Listing:
    """One recorded exchangeInfo: the exchange's own entries by our symbol, as it told them at ``told_ms``.

    It is a list of pairs, or of contracts where ``futures`` is set.
    """

    told_ms: int
    futures: bool
    entries: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Recordings:
    """What was recorded, loaded when first asked for.

    Attributes
    ----------
    klines
        Bars of trades by (symbol, interval), each once per open time, ascending; a symbol with a colon is a
        contract.
    charts
        Daily points by coin id, ascending stamps (a stamp may come twice, as at the joints of range
        questions).
    candles
        Candles by (coin id, ``1d`` or ``1h``), stamped with their end.
    coins
        The recorded coin list, or None.
    rules
        Steps by symbol, where an exchangeInfo was recorded.
    listings
        The recorded exchangeInfo answers that say when they were given, in order of time.
    funding
        Settlements by symbol, ascending.
    open_interest
        Samples by (symbol, period), ascending.
    """

    klines: Mapping[tuple[str, str], Callable[[], Bars]]
    charts: Mapping[str, Callable[[], CoinPoints]] = field(default_factory=dict)
    candles: Mapping[tuple[str, str], Callable[[], CoinCandles]] = field(default_factory=dict)
    coins: Sequence[Coin] | None = None
    rules: Mapping[str, MarketRules] = field(default_factory=dict)
    listings: Sequence[Listing] = ()
    funding: Mapping[str, Callable[[], Funding]] = field(default_factory=dict)
    open_interest: Mapping[tuple[str, str], Callable[[], OpenInterest]] = field(default_factory=dict)


class RecordedWorld(World):
    """Replays recordings.

    Parameters
    ----------
    recordings
        Usually from ``recordings.load_recordings``.

    Notes
    -----
    Kline columns that a recording lacks are unknown and are served as JSON null. A pair is listed from its
    first recorded bar on; without an exchangeInfo recording its steps are the ones that its prices and
    volumes show. Of a coin only daily points are known, so every granularity is answered with them, and its
    newest public daily point is its present state. Candles of a coin exist only where they were recorded, 4h
    and 4d are derived from them.

    Contracts have bars of trades alone; coarser open interest is picked out of the finest recorded one. From the
    time of an exchangeInfo recording on its entries are served as they are, also of markets without any bar. A
    status counts until bars that opened later say otherwise, and a market that the newest list no longer names
    is gone unless it went on trading.
    """

    def __init__(self, recordings: Recordings) -> None:
        super().__init__()
        self._recordings = recordings
        self._bars: dict[tuple[str, str], Bars] = {}
        self._charts: dict[str, CoinPoints] = {}
        self._candles: dict[tuple[str, str], CoinCandles] = {}
        self._funding: dict[str, Funding] = {}
        self._open_interest: dict[tuple[str, str], OpenInterest] = {}
        intervals: dict[str, list[str]] = {}
        for symbol, interval in recordings.klines:
            intervals.setdefault(symbol, []).append(interval)
        self._intervals = {
            symbol: sorted(known, key=length_ms) for symbol, known in sorted(intervals.items())
        }
        self._coin_ids = sorted({*recordings.charts, *(coin_id for coin_id, _ in recordings.candles)})

    def all_markets(self) -> Sequence[Market]:
        """Return the recorded pairs in alphabetical order."""
        return self._pairs

    def all_contracts(self) -> Sequence[Market]:
        """Return the recorded contracts in alphabetical order."""
        return self._contracts

    def intervals(self, symbol: str, kind: Kind = "trade") -> Sequence[str]:
        """Return the recorded intervals of a symbol, finest first; none where only its listing was recorded.

        Raises
        ------
        KeyError
            If nothing was recorded of the symbol.
        """
        if symbol not in self._symbols:
            raise KeyError(symbol)
        return self._intervals.get(symbol, []) if kind == "trade" else []

    def final_bars(
        self, symbol: str, interval: str, start_ms: int, end_ms: int, kind: Kind = "trade"
    ) -> Bars:
        """Return recorded bars opening in [start_ms, end_ms)."""
        return self._all_bars(symbol, interval).between(start_ms, end_ms) if kind == "trade" else no_bars()

    def final_funding(self, symbol: str, start_ms: int, end_ms: int) -> Funding:
        """Return recorded settlements."""
        if symbol not in self._funding:
            load = self._recordings.funding.get(symbol)
            self._funding[symbol] = load() if load else no_funding()
        rows = self._funding[symbol]
        return rows.take(slice(*np.searchsorted(rows.settled_ms, [start_ms, max(start_ms, end_ms)])))

    def funding_hours(self, symbol: str, now_ms: int) -> int | None:
        """Return the exchange's schedule that fits the two newest settlements; None without any."""
        newest = self.funding(symbol, now_ms=now_ms, limit=2).settled_ms
        if not len(newest):
            return None
        # Where a schedule changes, the gap between two settlements is none of the exchange's schedules.
        gap = round(int(newest[-1] - newest[0]) / HOUR_MS) or 8
        return next((hours for hours in (1, 2, 4) if gap <= hours), 8)

    def final_open_interest(self, symbol: str, period: str, start_ms: int, end_ms: int) -> OpenInterest:
        """Return recorded samples, of a coarser period those of the finest fitting one on the period's grid."""
        stored = [
            known for known in OPEN_INTEREST_PERIODS if (symbol, known) in self._recordings.open_interest
        ]
        base = period if period in stored else finest_divisor(stored, period)
        if base is None:
            return no_open_interest()
        key = (symbol, base)
        if key not in self._open_interest:
            self._open_interest[key] = self._recordings.open_interest[key]()
        rows = self._open_interest[key]
        rows = rows.take(slice(*np.searchsorted(rows.stamp_ms, [start_ms, max(start_ms, end_ms)])))
        return rows if base == period else rows.take(rows.stamp_ms % length_ms(period) == 0)

    def is_listed(self, market: Market, now_ms: int) -> bool:
        """Tell whether the newest list names it; without a list, whether it has begun to trade."""
        told = self._told(market, now_ms)
        if not any(market.symbol in listing.entries for listing in told):
            return market.first_ms <= min(now_ms, market.last_ms)
        return market.symbol in told[-1].entries or self._traded_since(market, told[-1].told_ms, now_ms)

    def status(self, market: Market, now_ms: int) -> str:
        """Return the word of the newest list, unless bars that opened later know better."""
        told = self._told(market, now_ms)
        entry = told[-1].entries.get(market.symbol) if told else None
        if entry is None or self._traded_since(market, told[-1].told_ms, now_ms):
            return super().status(market, now_ms)
        return str(entry["status"])

    def description(self, market: Market, now_ms: int) -> Mapping[str, object] | None:
        """Return the entry of the newest list that names the market."""
        told = reversed(self._told(market, now_ms))
        return next((known.entries[market.symbol] for known in told if market.symbol in known.entries), None)

    def coins(self, now_ms: int) -> Sequence[Coin]:
        """Return the recorded coin list at any time, else the coins with a public point, named by id."""
        if self._recordings.coins is not None:
            return self._recordings.coins
        public = (coin_id for coin_id in self._coin_ids if self._first_stamp(coin_id) <= now_ms)
        return [Coin(coin_id, coin_id, coin_id) for coin_id in public]

    def coin_points(self, coin_id: str, step: str, start_ms: int, end_ms: int, now_ms: int) -> CoinPoints:
        """Return recorded daily points, whatever the step."""
        return visible_points(self._chart(coin_id), start_ms, end_ms, now_ms)

    def coin_now(self, coin_id: str, now_ms: int) -> CoinPoints:
        """Return the newest public daily point."""
        return visible_points(self._chart(coin_id), 0, now_ms, now_ms).take(slice(-1, None))

    def coin_candles(self, coin_id: str, step: str, start_ms: int, end_ms: int, now_ms: int) -> CoinCandles:
        """Return recorded candles; 4h from hourly and 4d from daily ones, nothing where those are missing."""
        if coin_id not in self._coin_ids:
            raise KeyError(coin_id)
        stored, length = {"4h": ("1h", 4 * HOUR_MS), "4d": ("1d", 4 * DAY_MS)}.get(step, (step, None))
        candles = self._stored_candles(coin_id, stored)
        if length is not None:
            candles = merge_candles(candles, length)
        return visible_candles(candles, start_ms, end_ms, now_ms, daily=stored == "1d")

    @cached_property
    def _symbols(self) -> list[str]:
        named = {symbol for listing in self._recordings.listings for symbol in listing.entries}
        return sorted({*self._intervals, *named})

    @cached_property
    def _markets(self) -> list[Market]:
        return [market for symbol in self._symbols if (market := self._market_of(symbol))]

    @cached_property
    def _pairs(self) -> list[Market]:
        return [market for market in self._markets if market.is_spot]

    @cached_property
    def _contracts(self) -> list[Market]:
        return [market for market in self._markets if not market.is_spot]

    @cached_property
    def _known_from(self) -> Mapping[str, tuple[int, Mapping[str, Any]]]:
        """First time and last entry of each symbol in the lists."""
        known: dict[str, tuple[int, Mapping[str, Any]]] = {}
        for listing in self._recordings.listings:
            for symbol, entry in listing.entries.items():
                known[symbol] = (known[symbol][0] if symbol in known else listing.told_ms, entry)
        return known

    def _told(self, market: Market, now_ms: int) -> list[Listing]:
        return [
            known
            for known in self._recordings.listings
            if known.told_ms <= now_ms and known.futures != market.is_spot
        ]

    def _traded_since(self, market: Market, since_ms: int, now_ms: int) -> bool:
        return any(
            len(self.final_bars(market.symbol, interval, since_ms + 1, now_ms + 1))
            for interval in self._intervals.get(market.symbol, [])
        )

    def _market_of(self, symbol: str) -> Market | None:
        series = [
            bars
            for interval in self._intervals.get(symbol, [])
            if len(bars := self._all_bars(symbol, interval))
        ]
        told_ms, entry = self._known_from.get(symbol, (None, {}))
        rules = self._recordings.rules.get(symbol)
        if not series and (told_ms is None or rules is None):
            return None
        if rules is None:
            finest = series[0]
            rules = MarketRules(
                step_of(finest.values[CLOSE]), step_of(finest.values[VOLUME_BASE]), to_units("5")
            )
        pair, _, contract = symbol.partition(":")
        base, quote = pair.split("/")
        settle, _, date = contract.partition("#")[0].partition("-")
        first_ms = min([int(bars.open_ms[0]) for bars in series] or [told_ms or 0])
        market = Market(
            symbol=symbol,
            exchange_symbol=entry.get("symbol", base + quote + (f"_{date}" if date else "")),
            base=base,
            quote=quote,
            tick=rules.tick,
            lot=rules.lot,
            min_notional=rules.min_notional,
            first_ms=first_ms,
            last_ms=max([int(bars.open_ms[-1]) for bars in series] or [-1]),
        )
        if not contract:
            return market
        return replace(
            market,
            market_type="delivery" if date else "perpetual",
            settle=settle,
            contract_type=entry.get("contractType", "CURRENT_QUARTER" if date else "PERPETUAL"),
            onboard_ms=entry.get("onboardDate", first_ms),
            delivery_ms=entry.get("deliveryDate", NO_DELIVERY_MS),
        )

    def _all_bars(self, symbol: str, interval: str) -> Bars:
        key = (symbol, interval)
        if key not in self._bars:
            self._bars[key] = self._recordings.klines[key]() if key in self._recordings.klines else no_bars()
        return self._bars[key]

    def _chart(self, coin_id: str) -> CoinPoints:
        if coin_id not in self._coin_ids:
            raise KeyError(coin_id)
        if coin_id not in self._charts:
            load = self._recordings.charts.get(coin_id)
            self._charts[coin_id] = load() if load else points_of([])
        return self._charts[coin_id]

    def _stored_candles(self, coin_id: str, interval: str) -> CoinCandles:
        key = (coin_id, interval)
        if key not in self._candles:
            load = self._recordings.candles.get(key)
            self._candles[key] = load() if load else no_candles()
        return self._candles[key]

    def _first_stamp(self, coin_id: str) -> int:
        stamps = [
            self._chart(coin_id).stamp_ms,
            *(self._stored_candles(coin_id, step).stamp_ms for step in ("1d", "1h")),
        ]
        return (
            min(int(stamp[0]) for stamp in stamps if len(stamp))
            if any(map(len, stamps))
            else np.iinfo(np.int64).max
        )
