"""A world whose candles are spoiled: gaps, late and restated candles, candles off the grid, candles twice.

Here: how a defect changes the candles of another world, and how pages show it. Not here: where defects lie and what a
correct client must end with (``hostile``), what is public when (``world``). The simulation package and tests import
it. No file, no clock, no environment, no chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np

from crypto_assets.intervals import DAY_MS, HOUR_MS
from crypto_assets.simulation.bars import (
    CLOSE,
    HIGH,
    LOW,
    UNITS,
    VOLUME_BASE,
    VOLUME_QUOTE,
    Bars,
    bar_end,
    concatenate,
    length_ms,
    open_bar,
)
from crypto_assets.simulation.render import decimal_text
from crypto_assets.simulation.world import (
    Coin,
    CoinCandles,
    CoinPoints,
    Funding,
    Kind,
    Market,
    OpenInterest,
    Restatement,
    World,
)

DefectKind = Literal["gap", "late", "off_grid", "duplicate", "stale_duplicate", "restated"]

_LONGEST_SHIFT_MS = 4 * HOUR_MS
_DELAYS_MS = (90_000, 2 * HOUR_MS, 26 * HOUR_MS, 3 * DAY_MS)


@dataclass(frozen=True, order=True)
class Defect:
    """Something wrong in the candles of one series.

    Attributes
    ----------
    symbol, series, interval
        The series: of a pair or contract, ``trade``, ``mark`` or ``premium``.
    ts_ms
        Open time of the candle; of a gap its first missing one, of an off-grid candle the one it really has.
    kind
        gap: the exchange never has the candles from ``ts_ms`` to ``end_ms``. late: it has the candle only from
        ``published_ms`` on. off_grid: the candle opens between two grid points, and the grid point before has none.
        duplicate: the candle comes twice. stale_duplicate: it comes as it looked while it was open, and right after
        that as it is. restated: its values are others from ``published_ms`` on.
    end_ms
        Exclusive end of the time without or with the candle.
    published_ms
        Of late and restated candles.
    """

    symbol: str
    series: Kind
    interval: str
    ts_ms: int
    kind: DefectKind
    end_ms: int
    published_ms: int | None = None


@dataclass
class _Spoiled:
    """Spoiled candles of one series by the open time that they have in the inner world."""

    dropped: set[int] = field(default_factory=set)
    shifted: dict[int, tuple[int, int]] = field(default_factory=dict)
    doubled: dict[int, Defect] = field(default_factory=dict)


class HostileWorld(World):
    """A world with spoiled candles; ``HostilePlan`` makes it.

    Parameters
    ----------
    inner
        The world whose candles are spoiled; it is not changed, and its own restatements stay.
    """

    def __init__(self, inner: World) -> None:
        super().__init__()
        self.inner = inner
        self.restatements = list(inner.restatements)
        self._spoiled: dict[tuple[str, Kind, str], _Spoiled] = {}
        self._doubled: set[Defect] = set()

    def spoil(
        self, market: Market, series: Kind, interval: str, kind: DefectKind, bars: Bars, draws: np.ndarray
    ) -> list[Defect]:
        """Put a defect on some of the given candles in a row; four draws in [0, 1) say on which, and how."""
        key = (market.symbol, series, interval)
        spoiled = self._spoiled.setdefault(key, _Spoiled())
        n_bars = 1 + int(draws[0] * len(bars)) if kind in ("gap", "off_grid") else 1
        first = int(draws[1] * (len(bars) - n_bars + 1))
        hit = bars.take(slice(first, first + n_bars))
        opens, ends = hit.open_ms.tolist(), bar_end(hit.open_ms, interval).tolist()
        defect = partial(Defect, market.symbol, series, interval)
        match kind:
            case "gap":
                spoiled.dropped.update(opens)
                return [defect(opens[0], kind, ends[-1])]
            case "off_grid":
                shift = 1 + int(draws[2] * (min(length_ms(interval), _LONGEST_SHIFT_MS) - 1))
                # The last one is cut where the grid begins again.
                closes = [opened + shift - 1 for opened in opens[1:]] + [ends[-1] - 1]
                spoiled.shifted.update(
                    {opened: (opened + shift, close) for opened, close in zip(opens, closes, strict=True)}
                )
                pairs = zip(opens, closes, strict=True)
                return [defect(opened + shift, kind, close + 1) for opened, close in pairs]
            case "duplicate" | "stale_duplicate":
                doubled = defect(opens[0], kind, ends[0])
                spoiled.doubled[opens[0]] = doubled
                return [doubled]
        published = ends[0] + _DELAYS_MS[int(draws[2] * len(_DELAYS_MS))] + int(draws[3] * 60_000)
        if kind == "late":
            spoiled.dropped.update(opens)
        restated = kind == "restated"
        self.restatements.append(_restatement(market, series, interval, hit, published, changed=restated))
        return [defect(opens[0], kind, ends[0], published)]

    def take_doubled(self) -> set[Defect]:
        """Return the doubled candles in the pages made since this was asked last."""
        taken, self._doubled = self._doubled, set()
        return taken

    def doubled_in(self, symbol: str, series: Kind, interval: str, start_ms: int, end_ms: int) -> set[Defect]:
        """Return the doubled candles that open in [start_ms, end_ms)."""
        spoiled = self._spoiled.get((symbol, series, interval), _Spoiled())
        return {defect for ts_ms, defect in spoiled.doubled.items() if start_ms <= ts_ms < end_ms}

    def final_bars(
        self, symbol: str, interval: str, start_ms: int, end_ms: int, kind: Kind = "trade"
    ) -> Bars:
        """Return the inner world's bars without those that are dropped, and those off the grid moved there."""
        spoiled = self._spoiled.get((symbol, kind, interval))
        if spoiled is None:
            return self.inner.final_bars(symbol, interval, start_ms, end_ms, kind)
        bars = self.inner.final_bars(symbol, interval, start_ms - _LONGEST_SHIFT_MS, end_ms, kind)
        bars = bars.take(~np.isin(bars.open_ms, list(spoiled.dropped)))
        moved = np.flatnonzero(np.isin(bars.open_ms, list(spoiled.shifted)))
        if len(moved):
            times = np.stack([bars.open_ms, bars.close_ms])
            times[:, moved] = np.array([spoiled.shifted[opened] for opened in bars.open_ms[moved].tolist()]).T
            bars = replace(bars, open_ms=times[0], close_ms=times[1])
        return bars.between(start_ms, end_ms)

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
        """One page as ``World.klines``, with doubled candles twice.

        Both rows count against the limit. A page never ends between them: it then has the newer one alone, or a
        client that goes on after its last row could not know better.
        """
        page = super().klines(
            symbol, interval, now_ms=now_ms, limit=limit, start_ms=start_ms, end_ms=end_ms, kind=kind
        )
        spoiled = self._spoiled.get((symbol, kind, interval))
        if spoiled is None or not len(page):
            return page
        closed = bar_end(page.open_ms, interval) <= now_ms
        twice = np.flatnonzero(np.isin(page.open_ms, list(spoiled.doubled)) & closed)
        if not len(twice):
            return page
        market = self._named(symbol)
        older = []
        for at in twice.tolist():
            bar = page.take(slice(at, at + 1))
            stale = spoiled.doubled[int(bar.open_ms[0])].kind == "stale_duplicate"
            older.append(_as_it_looked(bar, market, kind, interval) if stale else bar)
        # Even keys are the older rows, each right before the odd key of its newer one.
        keys = np.concatenate([np.arange(len(page)) * 2 + 1, twice * 2])
        order = np.argsort(keys)
        kept = order[-limit:] if start_ms is None else order[:limit]
        if keys[kept[-1]] % 2 == 0:
            kept[-1] = keys[kept[-1]] // 2
        rows = concatenate([page, *older]).take(kept)
        served = page.open_ms[keys[kept][keys[kept] % 2 == 0] // 2]
        self._doubled |= {spoiled.doubled[opened] for opened in served.tolist()}
        return rows

    def all_markets(self) -> Sequence[Market]:
        """Return the inner world's pairs."""
        return self.inner.all_markets()

    def all_contracts(self) -> Sequence[Market]:
        """Return the inner world's contracts."""
        return self.inner.all_contracts()

    def intervals(self, symbol: str, kind: Kind = "trade") -> Sequence[str]:
        """Return the inner world's stored intervals."""
        return self.inner.intervals(symbol, kind)

    def final_funding(self, symbol: str, start_ms: int, end_ms: int) -> Funding:
        """Return the inner world's settlements."""
        return self.inner.final_funding(symbol, start_ms, end_ms)

    def funding_hours(self, symbol: str, now_ms: int) -> int | None:
        """Return the inner world's hours between settlements."""
        return self.inner.funding_hours(symbol, now_ms)

    def final_open_interest(self, symbol: str, period: str, start_ms: int, end_ms: int) -> OpenInterest:
        """Return the inner world's samples."""
        return self.inner.final_open_interest(symbol, period, start_ms, end_ms)

    def running_rate(self, symbol: str, now_ms: int) -> int:
        """Return the inner world's running funding rate."""
        return self.inner.running_rate(symbol, now_ms)

    def is_listed(self, market: Market, now_ms: int) -> bool:
        """Tell whether the inner world's exchange names the market."""
        return self.inner.is_listed(market, now_ms)

    def is_trading(self, market: Market, now_ms: int) -> bool:
        """Tell whether the market trades in the inner world; a gap is no halt."""
        return self.inner.is_trading(market, now_ms)

    def status(self, market: Market, now_ms: int) -> str:
        """Return the inner world's word for the state of a market."""
        return self.inner.status(market, now_ms)

    def description(self, market: Market, now_ms: int) -> Mapping[str, object] | None:
        """Return the inner world's recorded entry of a market."""
        return self.inner.description(market, now_ms)

    def coins(self, now_ms: int) -> Sequence[Coin]:
        """Return the inner world's coins."""
        return self.inner.coins(now_ms)

    def coin_points(self, coin_id: str, step: str, start_ms: int, end_ms: int, now_ms: int) -> CoinPoints:
        """Return the inner world's points."""
        return self.inner.coin_points(coin_id, step, start_ms, end_ms, now_ms)

    def coin_now(self, coin_id: str, now_ms: int) -> CoinPoints:
        """Return the inner world's present state of a coin."""
        return self.inner.coin_now(coin_id, now_ms)

    def coin_candles(self, coin_id: str, step: str, start_ms: int, end_ms: int, now_ms: int) -> CoinCandles:
        """Return the inner world's candles of a coin."""
        return self.inner.coin_candles(coin_id, step, start_ms, end_ms, now_ms)


def _as_it_looked(bar: Bars, market: Market, series: Kind, interval: str) -> Bars:
    tick, lot = (market.tick, market.lot) if series == "trade" else (1, 1)
    moment = int(bar.open_ms[0]) + length_ms(interval) * 3 // 5
    return open_bar(bar, interval, moment, tick, lot)


def _restatement(
    market: Market, series: Kind, interval: str, bar: Bars, published_ms: int, *, changed: bool
) -> Restatement:
    """Publish a candle as it is, or another one that is as sound."""
    values = [int(value) for value in bar.values[:, 0]]
    n_trades = int(bar.n_trades[0])
    if changed:
        tick, lot = (market.tick, market.lot) if series == "trade" else (1, 0)
        values[HIGH] += tick
        values[CLOSE] = values[LOW] if values[CLOSE] != values[LOW] else values[HIGH]
        if lot:
            values[VOLUME_BASE] += lot
            values[VOLUME_QUOTE] += lot * values[CLOSE] // UNITS if values[VOLUME_QUOTE] >= 0 else 0
            n_trades += n_trades >= 0
    prices = [decimal_text(value) for value in values[:VOLUME_BASE]]
    amounts = [decimal_text(value) if value >= 0 else None for value in values[VOLUME_BASE:]]
    return Restatement(
        market.symbol,
        int(bar.open_ms[0]),
        published_ms,
        interval,
        *prices,
        *amounts,
        n_trades=n_trades if n_trades >= 0 else None,
        kind=series,
    )
