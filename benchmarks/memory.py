"""One process that loads candles through the archive into a warehouse, and how much memory that took at most.

Here: the load as ingestion does it, its peak, and what then lies in the lake. Not here: how much is loaded and what
would be right (``ingest``). Run by ``ingest``: ``python -m benchmarks.memory < order``.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import duckdb

from benchmarks.contest import INTERVAL
from crypto_assets.intervals import from_ms
from crypto_assets_tests.hostile.loader import Order, load

#: Series that are read at the same time, the platform's default.
_CONCURRENCY = 8


def peak_bytes() -> int:
    """The most memory that this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def load_from_archive(
    url: str, folder: Path, markets: list[tuple[str, str, str]], start_ms: int, end_ms: int
) -> None:
    """Load trade candles of markets (symbol, exchange symbol, type) in [start_ms, end_ms), whole days."""
    order = Order(
        folder=str(folder),
        url=url,
        markets=tuple(markets),
        kinds={"spot": ("trade",), "perpetual": ("trade",)},
        interval=INTERVAL,
        window=(from_ms(start_ms), from_ms(end_ms)),
        route="archive",
        concurrency=_CONCURRENCY,
        overlap_bars=0,
    )
    load(order, time.monotonic, time.sleep)


def stored_in(folder: Path) -> dict[str, list[int]]:
    """Rows, the sum of their open times (ms) and of their base volumes (1e-8) of each symbol in a lake."""
    files = str(folder / "lake" / "raw" / "klines" / "**" / "*.parquet")
    rows = duckdb.sql(
        "SELECT symbol, count(*), sum(epoch_ms(ts))::VARCHAR, sum(volume_base)::VARCHAR "
        f"FROM read_parquet('{files}', hive_partitioning = false) GROUP BY symbol"
    ).fetchall()
    return {symbol: [n, int(times), int(volume.replace(".", ""))] for symbol, n, times, volume in rows}


def main() -> None:
    """Carry out the order on standard input and report on standard output."""
    order = json.load(sys.stdin)
    folder = Path(order.pop("folder"))
    markets = [(symbol, native, kind) for symbol, native, kind in order.pop("markets")]
    before = peak_bytes()
    load_from_archive(folder=folder, markets=markets, **order)
    after = peak_bytes()
    print(json.dumps({"before_bytes": before, "peak_bytes": after, "sums": stored_in(folder)}), flush=True)


if __name__ == "__main__":
    main()
