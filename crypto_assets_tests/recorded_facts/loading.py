"""Recorded markets served by the simulation and ingested by the real clients into a warehouse, without the orchestrator.

Here: the way from a recording to the raw tables, as the assets of raw go it. Not here: what must come out (the tests of this
package) and reading recordings (``simulation.recordings``).
"""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from crypto_assets.intervals import from_ms
from crypto_assets.quant.markets import listings_of
from crypto_assets.resources.archive import ArchiveClient
from crypto_assets.resources.coingecko import CoinGeckoClient
from crypto_assets.resources.exchange import BinanceClient, Market, MarketType
from crypto_assets.resources.ingest import KlineSource, Range, Wanted, kline_pieces, sample_pieces
from crypto_assets.resources.ingest_coins import coin_ohlc_pieces, market_cap_pieces
from crypto_assets.resources.snapshots import Collected, market_rows, snapshot_stream
from crypto_assets.resources.sources import RateBudget, RetryPolicy
from crypto_assets.resources.warehouse import Lake, PartitionStream
from crypto_assets.resources.warehouse.io_manager import Publisher, WarehouseResource
from crypto_assets.resources.warehouse.lake import Piece
from crypto_assets.settings import Listing
from crypto_assets.simulation.recorded import RecordedWorld
from crypto_assets.simulation.recordings import load_recordings
from crypto_assets.simulation.server import MarketServer
from crypto_assets.tables import TABLES
from crypto_assets_tests.recorded import RECORDED


def recorded_world(*klines: str, **given: Any) -> RecordedWorld:
    """Serve recordings by pattern, see ``load_recordings``."""
    return RecordedWorld(load_recordings(RECORDED, klines, **given))


def spot(*pairs: str) -> list[Market]:
    """Markets by their symbols."""
    return [Market(pair, pair.replace("/", "")) for pair in pairs]


def perpetual(*native: str) -> list[Market]:
    """Perpetual contracts in USDT by the exchange's names."""
    return [Market(f"{name[:-4]}/USDT:USDT", name, "perpetual") for name in native]


def recorded_json(path: str) -> Any:
    """A recorded document, read without the product."""
    return json.loads(gzip.decompress((RECORDED / path).read_bytes()))


def recorded_members(path: str) -> dict[str, bytes]:
    """Name -> content of the files in a recorded tar, read without the product."""
    with tarfile.open(RECORDED / path) as archive:
        return {Path(m.name).stem: f.read() for m in archive if (f := archive.extractfile(m)) is not None}


def wire_rows(path: str) -> dict[datetime, list[Any]]:
    """Open time -> the exchange's own row, of a recorded tar of pages."""
    pages = recorded_members(path)
    return {from_ms(row[0]): row for name in sorted(pages) for row in json.loads(pages[name])}


@dataclass(frozen=True)
class Clients:
    """Clients of one server at one moment of it."""

    now: datetime
    exchange: BinanceClient
    archive: ArchiveClient
    coingecko: CoinGeckoClient


class Warehouse:
    """A warehouse and the ways into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.resource = WarehouseResource(folder=str(folder))

    @property
    def lake(self) -> Lake:
        """What is stored."""
        return self.resource.lake

    def rows(self, name: str, **equal: str) -> pd.DataFrame:
        """Rows of a table whose columns equal what is given, by time; amounts stay exact decimals."""
        where = " and ".join(f"\"{column}\" = '{value}'" for column, value in equal.items())
        found = self.lake.read(TABLES[name], where=where or None).to_pandas()
        by = [TABLES[name].time_column] if TABLES[name].time_column else list(TABLES[name].key)
        return found.sort_values(by).reset_index(drop=True)

    def revisions(self) -> pd.DataFrame:
        """Rows of quality/revisions with the time of the revised row as ``row_ts``."""
        found = self.lake.ledger.revisions().to_pandas()
        stamps = [json.loads(key)["ts"] for key in found["row_key"]]
        return found.assign(row_ts=pd.to_datetime(pd.Series(stamps, found.index, dtype=object)))

    def anomalies(self, kind: str) -> pd.DataFrame:
        """Rows of quality/anomalies of one kind that were kept out of tables, by time."""
        found = self.lake.ledger.anomalies().to_pandas()
        return found[found["kind"] == kind].sort_values("ts").reset_index(drop=True)

    @contextmanager
    def clients(self, world: RecordedWorld, now: str) -> Generator[Clients]:
        """Serve a world at a moment."""
        budgets = [
            RateBudget(self.folder / ".budgets", name, 1_000_000)
            for name in ("spot", "usdm", "archive", "coins")
        ]
        retry = RetryPolicy(attempts=2)
        with MarketServer(world, now) as server:
            exchange = BinanceClient(budgets[0], budgets[1], base_url=server.url, retry=retry)
            archive = ArchiveClient(
                self.folder / ".downloads",
                budgets[2],
                base_url=server.url,
                retry=retry,
                on_file=lambda file: self.lake.ledger.add_source_file(asdict(file)),
            )
            coins = CoinGeckoClient(budgets[3], base_url=server.coingecko_url, retry=retry)
            yield Clients(exchange.server_time(), exchange, archive, coins)

    def load_klines(
        self,
        world: RecordedWorld,
        now: str,
        markets: Sequence[Market],
        interval: str,
        *windows: Range,
        from_archive: bool = False,
        reread: bool = False,
    ) -> None:
        """Ingest candles of trades, by request or from the files of the archive alone."""
        with self.clients(world, now) as clients:
            watermark = clients.exchange.last_closed(interval)
            archive = clients.archive if from_archive else None
            source = KlineSource(clients.exchange, watermark, archive, archive_only=from_archive)
            pieces = chain.from_iterable(
                kline_pieces(
                    source,
                    [Wanted(Collected(market)) for market in markets],
                    {} if reread else self.resource.covered("raw/klines", *window),
                    window,
                    interval=interval,
                )
                for window in windows
            )
            self._publish("raw/klines", pieces)

    def load_funding(self, world: RecordedWorld, now: str, markets: Sequence[Market], window: Range) -> None:
        """Ingest funding settlements."""
        with self.clients(world, now) as clients:
            exchange, moment = clients.exchange, clients.now
            pieces = sample_pieces(
                lambda one, start, end: exchange.funding_rates(one.market, start, end, moment),
                TABLES["raw/funding_rates"],
                [Collected(market) for market in markets],
                self.resource.covered("raw/funding_rates", *window),
                window,
                venue="binance",
                kind="funding",
                interval="",
                now=moment,
            )
            self._publish("raw/funding_rates", pieces)

    def load_market_caps(self, world: RecordedWorld, now: str, coins: Sequence[str], window: Range) -> None:
        """Ingest daily market caps."""
        with self.clients(world, now) as clients:
            covered = self.resource.covered("raw/market_caps", *window)
            pieces = market_cap_pieces(clients.coingecko, coins, covered, window, now=clients.now)
            self._publish("raw/market_caps", pieces)

    def load_coin_candles(
        self, world: RecordedWorld, now: str, coins: Sequence[str], intervals: Sequence[str], window: Range
    ) -> None:
        """Ingest candles of coins."""
        with self.clients(world, now) as clients:
            covered = self.resource.covered("raw/coin_ohlc", *window)
            pieces = coin_ohlc_pieces(clients.coingecko, coins, intervals, covered, window, now=clients.now)
            self._publish("raw/coin_ohlc", pieces)

    def look_at_markets(
        self,
        world: RecordedWorld,
        now: str,
        *,
        quote: str = "USDT",
        market_types: Sequence[MarketType] = ("spot",),
        listings: Sequence[Listing] = (),
    ) -> None:
        """Ingest the states of markets as the exchange shows them now."""
        with self.clients(world, now) as clients:
            rows = market_rows(
                clients.exchange.markets(market_types).to_pandas(),
                self.states(),
                listings,
                venue="binance",
                quote=quote,
                now=clients.now,
            )
            midnight = clients.now.replace(hour=0, minute=0, second=0, microsecond=0)
            window = (midnight, midnight + pd.Timedelta(days=1).to_pytimedelta())
            self._publish("raw/symbols", snapshot_stream(rows, "raw/symbols", window, clients.now).pieces)

    def states(self) -> pd.DataFrame:
        """The newest state of every market."""
        return self.resource.newest("raw/symbols", by=["venue", "symbol"])

    def listings(self, declared: Sequence[Listing] = ()) -> pd.DataFrame:
        """Rows of raw/listings, stored and read back."""
        columns = ["symbol", "listing_id", "valid_from", "valid_to", "known_at", "renamed_to"]
        lives = [listing.model_dump(include=set(columns)) for listing in declared]
        frame = listings_of(
            self.rows("raw/symbols"), pd.DataFrame(lives, columns=columns).assign(venue="binance")
        )
        Publisher(self.folder).publish(dg.AssetSpec(["raw", "listings"]), frame, "run", None)
        return self.rows("raw/listings")

    def _publish(self, name: str, pieces: Iterable[Piece]) -> None:
        stream = PartitionStream(iter(pieces))
        Publisher(self.folder).publish(dg.AssetSpec(name.split("/")), stream, "run", None)
