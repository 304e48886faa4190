"""One process' ingestion of candles into one warehouse, and the file operations at which it may be killed.

Here: what the property test and its victim do alike. Not here: scenarios and what must come out (``test_hostile_market``).
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg

from crypto_assets.resources.archive import ArchiveClient
from crypto_assets.resources.exchange import BinanceClient, Market
from crypto_assets.resources.ingest import KlineSource, Wanted, kline_pieces
from crypto_assets.resources.snapshots import Collected
from crypto_assets.resources.sources import RateBudget, RetryPolicy
from crypto_assets.resources.warehouse import PartitionStream
from crypto_assets.resources.warehouse.io_manager import Publisher, WarehouseResource

KLINES = dg.AssetSpec(["raw", "klines"])


@dataclass(frozen=True)
class Order:
    """One run of ingestion.

    ``markets`` has symbol, exchange symbol and market type; ``kinds`` the kinds of candles of each type; ``route`` is
    rest, archive or both; ``stop_after`` is how many days are stored before somebody stops it (None: all).
    """

    folder: str
    url: str
    markets: tuple[tuple[str, str, Any], ...]
    kinds: Mapping[str, tuple[Any, ...]]
    interval: str
    window: tuple[datetime, datetime]
    route: str
    concurrency: int
    overlap_bars: int
    reread: bool = False
    stop_after: int | None = None


def load(order: Order, seconds: Callable[[], float], sleep: Callable[[float], None]) -> None:
    """Carry out an order under a clock that may be the server's own.

    Raises
    ------
    SourceError
        As ``kline_pieces``.
    """
    folder = Path(order.folder)
    budgets = {
        name: RateBudget(
            folder / ".budgets", name, 1_000_000, longest_silence_s=1e9, now=seconds, sleep=sleep
        )
        for name in ("spot", "usdm", "archive")
    }
    retry = RetryPolicy(attempts=6, sleep=sleep)
    client = BinanceClient(
        budgets["spot"], budgets["usdm"], base_url=order.url, retry=retry, concurrency=order.concurrency
    )
    warehouse = WarehouseResource(folder=order.folder)
    archive = ArchiveClient(
        folder / ".downloads",
        budgets["archive"],
        base_url=order.url,
        retry=retry,
        on_file=lambda file: warehouse.lake.ledger.add_source_file(asdict(file)),
    )
    pieces = kline_pieces(
        KlineSource(
            client,
            client.server_time(),
            None if order.route == "rest" else archive,
            archive_only=order.route == "archive",
        ),
        [
            Wanted(Collected(Market(symbol, native, kind)), price)
            for symbol, native, kind in order.markets
            for price in order.kinds[kind]
        ],
        {} if order.reread else warehouse.covered("raw/klines", *order.window),
        order.window,
        interval=order.interval,
        overlap_bars=order.overlap_bars,
        concurrency=order.concurrency,
    )

    def until_stopped() -> Any:
        for number, piece in enumerate(pieces):
            if number == order.stop_after:
                raise KeyboardInterrupt
            yield piece

    with closing(pieces):  # ty: ignore[invalid-argument-type]
        Publisher(folder).publish(KLINES, PartitionStream(until_stopped()), "run", order.window)


class RemoteSeconds:
    """The clock of a server in another process."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/_market/seconds"

    def __call__(self) -> float:
        """Read it."""
        with urllib.request.urlopen(self._url, timeout=30) as answer:
            return float(json.load(answer)["seconds"])

    def sleep(self, seconds: float) -> None:
        """Move it on."""
        body = json.dumps({"sleep": seconds}).encode()
        with urllib.request.urlopen(urllib.request.Request(self._url, body), timeout=30) as answer:
            answer.read()
