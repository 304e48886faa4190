"""Stage quality: what is stored, covered, revised and odd. Only ``definitions.py`` imports it."""

import dagster as dg
import pyarrow as pa

from crypto_assets.resources.warehouse.inventory import coverage_table, manifest_table
from crypto_assets.resources.warehouse.io_manager import WarehouseResource

_RAW = [dg.AssetKey(["raw", name]) for name in ("klines", "market_caps")]


@dg.asset(kinds={"duckdb"}, deps=[*_RAW, dg.AssetKey(["reports", "portfolio_backtest"])])
def partition_manifest(warehouse: WarehouseResource) -> pa.Table:
    """One row per stored partition: rows, content hash, inputs, code version, run and watermark.

    Source: the metadata of the files alone. Empty when: nothing is stored.
    """
    return manifest_table(warehouse.lake)


@dg.asset(kinds={"duckdb"}, deps=_RAW)
def coverage(warehouse: WarehouseResource) -> pa.Table:
    """One row per source series and day: what was asked, what came, what is missing and why.

    Source: the coverage that raw partitions carry. Empty when: nothing was collected.
    """
    return coverage_table(warehouse.lake)


@dg.asset(kinds={"duckdb"}, deps=_RAW)
def revisions(warehouse: WarehouseResource) -> pa.Table:
    """One row per value that a source changed after we had stored it.

    Source: the ledger written by merges. Empty when: no source restated anything.
    """
    return warehouse.lake.ledger.revisions()


@dg.asset(kinds={"duckdb"}, deps=_RAW)
def anomalies(warehouse: WarehouseResource) -> pa.Table:
    """One row per source row that was kept out of a table.

    Source: the ledger written by merges. Empty when: every row was sound.
    """
    return warehouse.lake.ledger.anomalies()
