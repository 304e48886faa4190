"""What Dagster calls: frames of assets go into the lake, partitions of the lake come back as frames.

Here: the I/O manager and the resource that gives ingestion its view of coverage. Not here: how a partition is stored
(``lake``). ``definitions.py`` builds both; nothing else does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
from dagster_duckdb_pandas import DuckDBPandasIOManager

from crypto_assets.partitions import DAY, keys_of, naive
from crypto_assets.resources.warehouse.catalog import Catalog
from crypto_assets.resources.warehouse.conform import to_arrow
from crypto_assets.resources.warehouse.files import WarehouseError
from crypto_assets.resources.warehouse.lake import Lake, PartitionStream, Piece, Provenance, hash_of
from crypto_assets.resources.warehouse.lineage import Lineage, reads_of, version_of, window_of_partition
from crypto_assets.schemas import Table
from crypto_assets.tables import table_of


class WarehouseResource(dg.ConfigurableResource):
    """The lake as ingestion and quality assets see it.

    Attributes
    ----------
    folder
        The warehouse folder.
    """

    folder: str

    @property
    def lake(self) -> Lake:
        """The partitions."""
        return Lake(Path(self.folder))

    @property
    def catalog(self) -> Catalog:
        """The catalogue over them."""
        return Catalog(self.lake)

    def watermarks(self, name: str, start: datetime, end: datetime) -> dict[datetime, datetime]:
        """Start -> watermark of the stored partitions of a raw table inside a window (naive UTC)."""
        table = table_of(name)
        found = {}
        for key, left, _ in keys_of(table.clock, start, end):
            provenance = self.lake.provenance(table, key)
            if provenance is not None and provenance.watermark is not None:
                found[left] = provenance.watermark
        return found

    def watermark(self, start: datetime, end: datetime) -> datetime:
        """End of the last closed base interval that raw/klines has read inside a window; its start if none was.

        Whatever is derived from a window stops here.
        """
        return max(self.watermarks("raw/klines", start, end).values(), default=start)

    def require_whole(self, weeks: Sequence[datetime]) -> None:
        """Refuse to fit a week before the day that ends at its cut is stored and whole.

        Where nothing was collected before the cut, there is nothing to wait for: the fit is empty.

        Raises
        ------
        WarehouseError
            Naming the cut and how far raw/klines has come.
        """
        stored = self.lake.partitions(table_of("raw/klines"))
        for cut in weeks:
            if not stored or stored[0] >= cut.date().isoformat():
                continue
            before = cut - DAY
            known = self.watermarks("raw/klines", before, cut).get(before)
            if known is None or known < cut:
                reached = f"has come only to {known}" if known else f"lacks {before.date()}"
                raise WarehouseError(
                    f"the week of {cut.date()} is fitted on rows known by its start, but raw/klines {reached}; "
                    "materialize the day before first"
                )

    def covered(
        self, name: str, start: datetime, end: datetime
    ) -> dict[str, list[tuple[datetime, datetime]]]:
        """Series -> ranges that the stored partitions of a raw table have covered inside a window."""
        table = table_of(name)
        ranges: dict[str, list[tuple[datetime, datetime]]] = {}
        for key, _, _ in keys_of(table.clock, start, end):
            provenance = self.lake.provenance(table, key)
            for item in provenance.coverage if provenance else ():
                ranges.setdefault(item.series, []).extend(item.ranges)
        return ranges

    def read(self, name: str, start: datetime, end: datetime) -> pd.DataFrame:
        """The rows of the stored partitions of a table inside a window (naive UTC)."""
        table = table_of(name)
        return to_pandas(self.lake.read(table, [key for key, _, _ in keys_of(table.clock, start, end)]))

    def newest(self, name: str, by: Sequence[str]) -> pd.DataFrame:
        """The row with the latest known_at of every ``by`` group, over all stored partitions."""
        rows = self.lake.read(table_of(name)).to_pandas()
        return rows.sort_values("known_at").drop_duplicates(list(by), keep="last").reset_index(drop=True)


class WarehouseIOManager(DuckDBPandasIOManager):
    """Dagster's DuckDB I/O manager with the lake below it; ``database`` is the path of the catalogue.

    Same configuration and asset metadata as its base (``partition_expr``, ``columns``, schema from the key prefix); an
    input may also say ``where``, an SQL condition. Rows enter by contract, partitions are replaced or merged atomically,
    and readers never take a lock.
    """

    def create_io_manager(self, context: dg.InitResourceContext) -> dg.IOManager:  # ty: ignore[incompatible-method-override]
        """Build the manager for one run."""
        return _PartitionIO(Path(self.database).parent)


class Publisher:
    """Stores what assets made and says what was stored; the I/O manager and the dbt assets share it.

    Parameters
    ----------
    folder
        The warehouse folder.
    """

    def __init__(self, folder: Path) -> None:
        self.lake = Lake(folder)
        self._lineage = Lineage(self.lake)

    def now(self) -> Lineage:
        """What is stored at this moment, of each file as it is when it is first looked at."""
        return self._lineage.again()

    def publish(
        self,
        spec: dg.AssetSpec,
        obj: Any,
        run_id: str,
        window: tuple[datetime, datetime] | None,
        seen: Lineage | None = None,
    ) -> list[Provenance]:
        """Store a frame or a ``PartitionStream`` of one asset, partition by partition.

        Parameters
        ----------
        spec
            The asset: its key names the table, its dependencies say what its partitions were made from.
        obj
            pandas, Polars or Arrow rows of the whole window, or a ``PartitionStream``.
        window
            Naive UTC window of the run; None for an unpartitioned table.
        seen
            What was looked at before the rows were made, so that what another run stores meanwhile does not count as read;
            None: what is stored now.

        Raises
        ------
        ContractError
            If rows do not fit; partitions stored before stay.
        WarehouseError
            If the lake cannot be written.
        """
        table = table_of("/".join(spec.key.path))
        reads, lineage = reads_of(spec), seen or self.now()
        catalog = Catalog(self.lake)
        catalog.require_ours()
        pieces = obj.pieces if isinstance(obj, PartitionStream) else _pieces(table, obj, window)
        unseen = not self.lake.holds(table)
        stored = []
        for piece in pieces:
            provenance = Provenance(
                asset=table.name,
                partition=piece.partition,
                code_version=spec.code_version,
                inputs=lineage.inputs(table, piece.partition, reads),
                run_id=run_id,
            )
            stored.append(self._store(table, piece, provenance))
            lineage.forget(table, piece.partition)
            if unseen and len(stored) == 1:
                # A long first load is seen from its first partition on, and what a kill leaves of it is seen as well.
                catalog.refresh()
        catalog.refresh()
        return stored

    def _store(self, table: Table, piece: Piece, provenance: Provenance) -> Provenance:
        window = window_of_partition(table, piece.partition)
        if table.write == "merge":
            if window is None or piece.watermark is None:
                raise WarehouseError(f"{table.name}: a merged piece needs a partition and the source's time")
            seen_at = piece.seen_at or piece.watermark
            return self.lake.merge(table, piece.partition, piece, provenance, window, seen_at)
        return self.lake.replace(table, piece.partition or None, piece.rows, provenance, window)


def report(context: Any, key: dg.AssetKey, stored: list[Provenance]) -> dict[str, Any]:
    """Tell Dagster what was stored; returns the metadata of the materialization.

    One partition gets its version as data version. Dagster tags all partitions of a step alike, so those of a range
    share one version over all of them, which the same rows give again, and carry their own in their metadata.
    """
    versions = {item.partition: version_of(item) for item in stored}
    together = versions[stored[0].partition] if len(stored) == 1 else hash_of(versions)
    # Dagster warns of a version of a table that reads itself, because it differs from the one that was read.
    if stored[0].asset not in stored[0].inputs:
        context.set_data_version(key, dg.DataVersion(together))
    if len(stored) > 1:
        for item in stored:
            context.add_asset_metadata(
                {"rows": item.rows, "content_hash": item.content_hash},
                asset_key=key,
                partition_key=item.partition,
            )
    table = ".".join(key.path)
    return {
        "dagster/row_count": sum(item.rows for item in stored),
        "dagster/table_name": table,
        "partitions": len(stored),
    }


class _PartitionIO(dg.IOManager):
    def __init__(self, folder: Path) -> None:
        self.publisher = Publisher(folder)
        # Step -> what its inputs were when they were read.
        self._seen: dict[str, Lineage] = {}

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        window = None
        if context.has_asset_partitions:
            asked = context.asset_partitions_time_window
            window = naive(asked.start), naive(asked.end)
        seen = self._seen.get(context.step_key)
        stored = self.publisher.publish(context.asset_spec, obj, context.run_id, window, seen)
        context.add_output_metadata(report(context.step_context, context.asset_key, stored))

    def load_input(self, context: dg.InputContext) -> Any:
        table = table_of("/".join(context.asset_key.path))
        chosen = context.definition_metadata or {}
        keys = None
        if table.clock != "none" and context.has_asset_partitions:
            keys = list(context.asset_partition_keys)
        seen = self._seen.setdefault(context.step_context.step.key, self.publisher.now())
        for key in keys or ():
            seen.provenance(table, key)
        rows = self.publisher.lake.read(table, keys, chosen.get("columns"), chosen.get("where"))
        return rows if context.dagster_type.typing_type is pa.Table else to_pandas(rows)


def _pieces(table: Table, obj: Any, window: tuple[datetime, datetime] | None) -> Iterator[Piece]:
    rows = to_arrow(obj)
    if window is None:
        yield Piece("", rows)
        return
    times = rows.column(table.time_column).cast(pa.timestamp("us")).to_numpy() if rows.num_rows else None
    start, end = window
    if times is not None and not (
        start <= times.min().astype(datetime) and times.max().astype(datetime) < end
    ):
        raise WarehouseError(
            f"{table.name}: rows from {times.min()} to {times.max()} lie outside the run's window "
            f"[{start}, {end}); return only rows of the window"
        )
    if times is not None:
        # In order of time a partition is a slice; comparing all rows for each partition would grow as their product.
        order = np.argsort(times, kind="stable")
        rows, times = rows.take(pa.array(order)), times[order]
    for key, left, right in keys_of(table.clock, start, end):
        if times is None:
            yield Piece(key, rows)
            continue
        first, last = np.searchsorted(times, np.array([left, right], "datetime64[us]"))
        yield Piece(key, rows.slice(first, last - first))


def to_pandas(rows: pa.Table) -> pd.DataFrame:
    """Rows as pandas; exact decimals become floats, times stay naive UTC microseconds."""
    for at, field in enumerate(rows.schema):
        if pa.types.is_decimal(field.type):
            rows = rows.set_column(at, field.name, rows.column(at).cast(pa.float64()))
    return rows.to_pandas()
