"""A market that misbehaves by a seed: faults by chance, defects in its candles, and the truth to compare with.

Here: where defects lie, which request meets which fault, what a correct client must end with. Not here: how a defect
changes candles (``hostile_world``), what a fault looks like (``faults``), HTTP (``server``), silences (``budgets``).
The server and tests import it. No file, no clock, no environment; all randomness is a function of the seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import get_args
from zlib import crc32

import numpy as np

from crypto_assets.simulation.archive import ArchiveFile
from crypto_assets.simulation.bars import Bars, bar_end, grid_start, length_ms
from crypto_assets.simulation.faults import Fault, slow, status
from crypto_assets.simulation.hostile_world import Defect, DefectKind, HostileWorld
from crypto_assets.simulation.world import Kind, Market, World

#: Chance that a request meets each fault. Silences are short, so that a client may sit them out in real time; a ban
#: without an end (``status(418)``: 120 s) is for a fake clock only.
FAULT_RATES: Mapping[Fault, float] = {
    status(429, 2): 0.02,
    status(429): 0.01,
    status(418, 3): 0.004,
    status(500): 0.02,
    status(503): 0.01,
    Fault("reset"): 0.02,
    Fault("short_body"): 0.02,
    Fault("truncated_json"): 0.01,
    Fault("html_200"): 0.01,
    Fault("empty_200"): 0.01,
    slow(0.01): 0.01,
    Fault("wrong_checksum"): 0.04,
    Fault("truncated_zip"): 0.04,
    Fault("corrupt_member"): 0.04,
}
_BLOCK = 4
_BLOCKS_A_DRAW = 1024


class HostilePlan:
    """Everything that goes wrong in a world, drawn from a seed.

    Parameters
    ----------
    seed
        Any non-negative integer.
    world
        The market as it would be without defects; it is not changed.
    interval
        Stored interval whose candles get defects; None means the finest one of each series.
    defect_frac
        Share of the blocks of four candles that get one defect.
    kinds
        Kinds of defects to draw from, equally likely.
    symbols
        Markets that get defects; None means all.
    fault_rates
        Chance of each fault; one that does not fit a request leaves it alone.
    most_in_a_row
        A request is spared when so many before it were due for a fault.

    Raises
    ------
    ValueError
        If a share or a chance is none, or a kind or a symbol unknown.

    Notes
    -----
    Defects are a function of the seed, the series and the time: the same question at the same moment has the same
    answer, and the past does not know how far the world reaches. Neighbours of a defect are sound, as are the first
    and the last candles of a series. Faults are a function of the seed and of how many requests came before.

    Examples
    --------
    >>> from crypto_assets.simulation.synthetic import SyntheticWorld
    >>> plan = HostilePlan(3, SyntheticWorld(1, 0, 10 * 86_400_000, "1h"), symbols=["BTC/USDT"])
    >>> plan.defects == HostilePlan(3, SyntheticWorld(1, 0, 10 * 86_400_000, "1h"), symbols=["BTC/USDT"]).defects
    True
    """

    def __init__(
        self,
        seed: int,
        world: World,
        *,
        interval: str | None = None,
        defect_frac: float = 0.1,
        kinds: Sequence[DefectKind] = get_args(DefectKind),
        symbols: Sequence[str] | None = None,
        fault_rates: Mapping[Fault, float] = FAULT_RATES,
        most_in_a_row: int = 2,
    ) -> None:
        if (
            not 0 <= defect_frac <= 1
            or sum(fault_rates.values()) > 1
            or min(fault_rates.values(), default=0) < 0
        ):
            raise ValueError(
                f"defect_frac {defect_frac} and the sum of the fault rates {sum(fault_rates.values())} must lie in [0, 1]"
            )
        markets = [*world.all_markets(), *world.all_contracts()]
        known = {*get_args(DefectKind), *(market.symbol for market in markets)}
        unknown = {*kinds, *(symbols or ())} - known
        if unknown or not kinds:
            raise ValueError(
                f"unknown defects or symbols: {sorted(unknown)}; give at least one kind of defect"
            )
        self.seed = seed
        self.most_in_a_row = most_in_a_row
        self._fault_rates = dict(fault_rates)
        self._defect_frac, self._kinds = defect_frac, tuple(kinds)
        #: The world to serve.
        self.world = HostileWorld(world)
        #: Doubled candles that went out in an answer without a fault.
        self.served: set[Defect] = set()
        defects: list[Defect] = []
        for market in markets:
            if symbols is not None and market.symbol not in symbols:
                continue
            for series in get_args(Kind):
                stored = world.intervals(market.symbol, series)
                finest = interval or min(stored, key=length_ms, default="")
                if finest in stored:
                    defects += self._place(market, series, finest)
        #: All defects, ascending by series and time.
        self.defects: list[Defect] = sorted(defects)

    def truth(self, symbol: str, kind: Kind, interval: str, start_ms: int, end_ms: int, now_ms: int) -> Bars:
        """Return the candles that a client must have which has read [start_ms, end_ms) at ``now_ms``.

        Closed, on the grid, each once, restated as published by then.
        """
        bars = self.world.window(symbol, interval, start_ms, end_ms, now_ms, kind)
        closed = bar_end(bars.open_ms, interval) <= now_ms
        return bars.take(closed & (grid_start(bars.open_ms, interval) == bars.open_ms))

    def missing(
        self, symbol: str, kind: Kind, interval: str, start_ms: int, end_ms: int, now_ms: int
    ) -> np.ndarray:
        """Return the grid points (ms) of finished intervals in [start_ms, end_ms) that have no candle at ``now_ms``.

        The world's own holes are among them. The interval has a fixed length.
        """
        length = length_ms(interval)
        grid = np.arange(
            -(-start_ms // length) * length, min(end_ms, now_ms - length + 1), length, dtype=np.int64
        )
        there = self.truth(symbol, kind, interval, start_ms, end_ms, now_ms).open_ms
        return grid[~np.isin(grid, there)]

    def fault(self, number: int, path: str) -> Fault | None:
        """Return the fault that meets the request before which ``number`` others came."""
        due = self._drawn(number)
        if due is None or not due.fits(path):
            return None
        row = (self._drawn(number - back) for back in range(1, self.most_in_a_row + 1))
        return None if number >= self.most_in_a_row and all(row) else due

    def note_page(self, *, sound: bool) -> None:
        """Take down which doubled candles the page held that has just been made, if it goes out unharmed."""
        doubled = self.world.take_doubled()
        if sound:
            self.served |= doubled

    def note_file(self, file: ArchiveFile | None) -> None:
        """Take down which doubled candles a file of the archive held; None: it does not go out unharmed."""
        self.world.take_doubled()
        if file is not None and file.kind is not None:
            self.served |= self.world.doubled_in(
                file.market.symbol, file.kind, file.interval, file.start_ms, file.end_ms
            )

    def _drawn(self, number: int) -> Fault | None:
        chance = np.random.default_rng([self.seed, 1, number]).random()
        for fault, rate in self._fault_rates.items():
            chance -= rate
            if chance < 0:
                return fault
        return None

    def _place(self, market: Market, series: Kind, interval: str) -> Iterator[Defect]:
        sound = self.world.inner.final_bars(
            market.symbol, interval, market.first_ms, market.last_ms + 1, series
        )
        if not len(sound):
            return
        length = length_ms(interval)
        blocks, firsts, sizes = np.unique(
            sound.open_ms // (_BLOCK * length), return_index=True, return_counts=True
        )
        on_grid = sound.open_ms % length == 0
        whole = (sizes == _BLOCK) & (np.add.reduceat(on_grid, firsts, dtype=np.int64) == _BLOCK)
        whole[:1] = whole[-1:] = False
        draws = self._draws(f"{market.symbol} {series} {interval}", blocks)
        for at in np.flatnonzero(whole & (draws[:, 0] < self._defect_frac)):
            kind = self._kinds[int(draws[at, 1] * len(self._kinds))]
            # The last candle of a block is sound, so that the next block's defect is no neighbour.
            block = sound.take(slice(int(firsts[at]), int(firsts[at]) + _BLOCK - 1))
            yield from self.world.spoil(market, series, interval, kind, block, draws[at, 2:])

    def _draws(self, name: str, blocks: np.ndarray) -> np.ndarray:
        """Draw six numbers in [0, 1) for each block of a series, whatever the other blocks are."""
        key = [self.seed, 2, crc32(name.encode())]
        out = np.empty((len(blocks), 6))
        for page in np.unique(blocks // _BLOCKS_A_DRAW):
            chosen = blocks // _BLOCKS_A_DRAW == page
            rng = np.random.default_rng([*key, int(page)])
            out[chosen] = rng.random((_BLOCKS_A_DRAW, 6))[blocks[chosen] % _BLOCKS_A_DRAW]
        return out
