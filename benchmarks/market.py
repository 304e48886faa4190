"""The simulated exchange of the benchmarks in a process of its own, and the truth about what it serves.

Here: the world, its server, and questions about them as lines of JSON on standard input. Not here: who loads what
(``ingest``). It ends with its standard input, and so with whoever started it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from benchmarks.contest import INTERVAL, START_MS, Found, found_in
from crypto_assets.intervals import DAY_MS, from_ms, to_ms
from crypto_assets.resources.archive import kline_files
from crypto_assets.resources.exchange import Market
from crypto_assets.simulation.bars import CLOSE, HIGH, LOW, OPEN, UNITS, VOLUME_BASE, Bars
from crypto_assets.simulation.server import MarketServer
from crypto_assets.simulation.synthetic import SyntheticWorld

#: Every candle of the year that is loaded is public then, and in the archive.
NOW_MS = to_ms(datetime(2024, 3, 1))
#: The world's listing comes a third of its story after its start and its delisting after two thirds: both outside the
#: year, so that all symbols have all of it. The outage of spot comes inside it.
_STORY_DAYS = 1200
_DAYS_BEFORE = 401
_SEED = 20
#: Above, whole numbers of the eighth decimal are no exact float64.
_EXACT = 2**53


def make_world() -> SyntheticWorld:
    """Make the world, the same in every run."""
    return SyntheticWorld(_SEED, START_MS - _DAYS_BEFORE * DAY_MS, NOW_MS, INTERVAL, story_days=_STORY_DAYS)


def truth_of(world: SyntheticWorld, symbols: Sequence[str], start_ms: int, end_ms: int) -> dict[str, Found]:
    """Return the right count and digest of each symbol's candles in [start_ms, end_ms)."""
    found = {}
    for symbol in symbols:
        bars = world.final_bars(symbol, INTERVAL, start_ms, end_ms)
        units = [bars.values[row] for row in (OPEN, HIGH, LOW, CLOSE, VOLUME_BASE)]
        if any((row >= _EXACT).any() for row in units):
            raise ValueError(f"{symbol} has values that no float64 holds exactly")
        found[symbol] = found_in([bars.open_ms, *(row / UNITS for row in units)])
    return found


def sums_of(
    world: SyntheticWorld, symbols: Sequence[str], start_ms: int, end_ms: int
) -> dict[str, list[int]]:
    """Return rows, the sum of their open times (ms) and of their base volumes (1e-8) of each symbol."""
    sums = {}
    for symbol in symbols:
        # Python's integers: the sums are too large for 64 bits.
        parts = [
            (len(bars), sum(bars.open_ms.tolist()), sum(bars.values[VOLUME_BASE].tolist()))
            for bars in _by_month(world, symbol, start_ms, end_ms)
        ]
        sums[symbol] = [sum(part) for part in zip(*parts, strict=True)]
    return sums


def _by_month(world: SyntheticWorld, symbol: str, start_ms: int, end_ms: int) -> Iterator[Bars]:
    for left in range(start_ms, end_ms, 30 * DAY_MS):
        yield world.final_bars(symbol, INTERVAL, left, min(left + 30 * DAY_MS, end_ms))


def files_of(markets: Mapping[str, str], start_ms: int, end_ms: int) -> dict[str, list[str]]:
    """Return the paths of the archive's files with the spot candles of a range."""
    span = from_ms(start_ms), from_ms(end_ms)
    return {
        symbol: [file.path for file in kline_files(Market(symbol, native), "trade", INTERVAL, *span)]
        for symbol, native in markets.items()
    }


def _answer(world: SyntheticWorld, asked: dict[str, Any]) -> Any:
    match asked.pop("about"):
        case "markets":
            return [
                [market.symbol, market.exchange_symbol, market.market_type]
                for market in (*world.all_markets(), *world.all_contracts())
            ]
        case "truth":
            return {symbol: asdict(found) for symbol, found in truth_of(world, **asked).items()}
        case "sums":
            return sums_of(world, **asked)
        case "files":
            return files_of(**asked)
        case unknown:
            raise ValueError(f"nobody can say anything about {unknown!r}")


def main() -> None:
    """Serve; tell the address, then answer one line after the other until the input ends."""
    world = make_world()
    with MarketServer(world, clock=from_ms(NOW_MS)) as server:
        print(json.dumps(server.url), flush=True)
        for line in sys.stdin:
            print(json.dumps(_answer(world, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
