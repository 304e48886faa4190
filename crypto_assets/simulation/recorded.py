"""A market replayed from recordings: stored bars as recorded, the rest derived from them or unknown.

Here: what a set of recordings says about pairs and coins. Not here: reading files (``recordings``), the clock
rule and paging (``world``), HTTP. Tests, the demo and the command line import it. No file, no clock, no
environment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from crypto_assets.intervals import DAY_MS, HOUR_MS
from crypto_assets.simulation.bars import CLOSE, VOLUME_BASE, Bars, length_ms, no_bars, step_of, to_units
from crypto_assets.simulation.world import (
    Coin,
    CoinCandles,
    CoinPoints,
    Market,
    World,
    merge_candles,
    no_candles,
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
class Recordings:
    """What was recorded, loaded when first asked for.

    Attributes
    ----------
    klines
        Bars by (BASE/QUOTE, interval), each once per open time, ascending.
    charts
        Daily points by coin id, ascending stamps (a stamp may come twice, as at the joints of range
        questions).
    candles
        Candles by (coin id, ``1d`` or ``1h``), stamped with their end.
    coins
        The recorded coin list, or None.
    rules
        Steps by BASE/QUOTE, where an exchangeInfo was recorded.
    """

    klines: Mapping[tuple[str, str], Callable[[], Bars]]
    charts: Mapping[str, Callable[[], CoinPoints]] = field(default_factory=dict)
    candles: Mapping[tuple[str, str], Callable[[], CoinCandles]] = field(default_factory=dict)
    coins: Sequence[Coin] | None = None
    rules: Mapping[str, MarketRules] = field(default_factory=dict)


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
    """

    def __init__(self, recordings: Recordings) -> None:
        super().__init__()
        self._recordings = recordings
        self._bars: dict[tuple[str, str], Bars] = {}
        self._charts: dict[str, CoinPoints] = {}
        self._candles: dict[tuple[str, str], CoinCandles] = {}
        intervals: dict[str, list[str]] = {}
        for symbol, interval in recordings.klines:
            intervals.setdefault(symbol, []).append(interval)
        self._intervals = {
            symbol: sorted(known, key=length_ms) for symbol, known in sorted(intervals.items())
        }
        self._coin_ids = sorted({*recordings.charts, *(coin_id for coin_id, _ in recordings.candles)})

    def all_markets(self) -> Sequence[Market]:
        """Return the recorded pairs in alphabetical order."""
        return self._markets

    def intervals(self, symbol: str) -> Sequence[str]:
        """Return the recorded intervals of a symbol, finest first.

        Raises
        ------
        KeyError
            If nothing was recorded of the symbol.
        """
        return self._intervals[symbol]

    def final_bars(self, symbol: str, interval: str, start_ms: int, end_ms: int) -> Bars:
        """Return recorded bars opening in [start_ms, end_ms)."""
        return self._all_bars(symbol, interval).between(start_ms, end_ms)

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
    def _markets(self) -> list[Market]:
        return [market for symbol in self._intervals if (market := self._market_of(symbol))]

    def _market_of(self, symbol: str) -> Market | None:
        series = [
            bars for interval in self._intervals[symbol] if len(bars := self._all_bars(symbol, interval))
        ]
        if not series:
            return None
        finest = series[0]
        rules = self._recordings.rules.get(symbol) or MarketRules(
            step_of(finest.values[CLOSE]), step_of(finest.values[VOLUME_BASE]), to_units("5")
        )
        base, quote = symbol.split("/")
        return Market(
            symbol=symbol,
            exchange_symbol=base + quote,
            base=base,
            quote=quote,
            tick=rules.tick,
            lot=rules.lot,
            min_notional=rules.min_notional,
            first_ms=min(int(bars.open_ms[0]) for bars in series),
            last_ms=max(int(bars.open_ms[-1]) for bars in series),
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
