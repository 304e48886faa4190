"""The warehouse: one Parquet file per partition, a DuckDB catalogue over them, and the I/O manager of the assets.

``conform`` makes frames fit their contract, ``lake`` stores partitions, ``ledger`` keeps revisions and anomalies,
``catalog`` writes ``warehouse.duckdb``, ``io_manager`` is what Dagster calls. Nothing else writes to the lake.
"""

from __future__ import annotations

from crypto_assets.resources.warehouse.catalog import Catalog
from crypto_assets.resources.warehouse.conform import ContractError, conform
from crypto_assets.resources.warehouse.files import WarehouseError
from crypto_assets.resources.warehouse.lake import Lake, PartitionStream, Provenance, SeriesCoverage

__all__ = [
    "Catalog",
    "ContractError",
    "Lake",
    "PartitionStream",
    "Provenance",
    "SeriesCoverage",
    "WarehouseError",
    "conform",
]
