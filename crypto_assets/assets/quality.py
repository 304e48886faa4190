"""Stage quality: what is stored, covered, missing, revised and odd. Only ``definitions.py`` imports it."""

import dagster as dg
import pyarrow as pa

from crypto_assets.resources.dbt_assets import lives_of
from crypto_assets.resources.snapshots import kline_series, universe_symbols
from crypto_assets.resources.warehouse.inventory import coverage_table, gaps_table, manifest_table
from crypto_assets.resources.warehouse.io_manager import WarehouseResource
from crypto_assets.resources.warehouse.oddities import candle_oddities, reconciliation_table
from crypto_assets.settings import Settings


def _raw(*names: str) -> list[dg.AssetKey]:
    return [dg.AssetKey(["raw", name]) for name in names]


_COVERED = _raw("klines", "market_caps", "coin_ohlc", "open_interest", "order_book_summary")
_MERGED = [*_COVERED, *_raw("funding_rates")]


@dg.asset(kinds={"duckdb"}, deps=[*_MERGED, dg.AssetKey(["reports", "portfolio_backtest"])])
def partition_manifest(warehouse: WarehouseResource) -> pa.Table:
    """One row per stored partition: rows, content hash, inputs, code version, run and watermark.

    Source: the metadata of the files alone. Empty when: nothing is stored.
    """
    return manifest_table(warehouse.lake)


@dg.asset(kinds={"duckdb"}, deps=_COVERED)
def coverage(warehouse: WarehouseResource) -> pa.Table:
    """One row per source series and day: what was asked, what came, what is missing and why.

    Source: the coverage that raw partitions carry. Empty when: nothing was collected.
    """
    return coverage_table(warehouse.lake)


@dg.asset(kinds={"duckdb"}, deps=_COVERED)
def gaps(settings: dg.ResourceParam[Settings], warehouse: WarehouseResource) -> pa.Table:
    """One row per run of missing intervals of a series: the source's own, or never answered.

    Source: the coverage that raw partitions carry, and their rows, up to the time at which a market was gone. Empty
    when: nothing is missing.
    """
    ended = {name: gone for name, gone in kline_series(warehouse, settings).items() if gone is not None}
    return gaps_table(warehouse.lake, ended)


@dg.asset(kinds={"duckdb"}, deps=_MERGED)
def revisions(warehouse: WarehouseResource) -> pa.Table:
    """One row per value that a source changed after we had stored it.

    Source: the ledger written by merges. Empty when: no source restated anything.
    """
    return warehouse.lake.ledger.revisions()


@dg.asset(kinds={"duckdb"}, deps=_MERGED)
def anomalies(settings: dg.ResourceParam[Settings], warehouse: WarehouseResource) -> pa.Table:
    """One row per source row that was kept out of a table, and per stored candle or run of them that is odd.

    Source: the ledger written by merges; stored base candles. Empty when: every row was sound and nothing looks odd.
    """
    kept_out = warehouse.lake.ledger.anomalies()
    return pa.concat_tables([kept_out, candle_oddities(warehouse.lake, settings.base_interval)])


@dg.asset(kinds={"duckdb"}, deps=_raw("klines", "market_caps", "coins"))
def reconciliation(settings: dg.ResourceParam[Settings], warehouse: WarehouseResource) -> pa.Table:
    """One row per pair of sources, market and day: how far contracts, mark prices and CoinGecko lie from spot.

    Source: stored base candles and market caps, and the coins behind the markets as last seen. Empty when: only one
    source was collected.
    """
    known = warehouse.newest("raw/coins", by=["coin_id"])
    seen = known.loc[known["symbol"].notna(), ["symbol", "coin_id"]]
    stands_behind = dict(zip(seen["symbol"], seen["coin_id"], strict=True))
    lives = lives_of(settings, universe_symbols(warehouse, settings))
    named = [{**life, "coin_id": life["coin_id"] or stands_behind.get(life["symbol"])} for life in lives]
    return reconciliation_table(warehouse.lake, settings.base_interval, named)


@dg.asset(kinds={"duckdb"}, deps=_MERGED)
def source_files(warehouse: WarehouseResource) -> pa.Table:
    """One row per file that was read into raw tables, from the exchange's archive or imported, and its checksum.

    Source: the ledger written by whoever reads files. Empty when: everything came by request.
    """
    return warehouse.lake.ledger.source_files()
