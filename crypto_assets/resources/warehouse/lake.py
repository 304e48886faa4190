"""Partitions as Parquet files: written aside, synced and renamed, with provenance and coverage inside the file.

Here: paths, locks, replace, merge, reads, metadata. Not here: contracts (``conform``), views (``catalog``), Dagster
(``io_manager``). Resources and the command line import it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from crypto_assets.intervals import from_ms, to_ms
from crypto_assets.resources.warehouse.conform import conform, content_hash
from crypto_assets.resources.warehouse.files import WarehouseError, unwritable, write_durably
from crypto_assets.resources.warehouse.ledger import Ledger, revisions_between
from crypto_assets.schemas import TABLES, Table

_METADATA_KEY = b"crypto_assets"
_FILE = "part-0.parquet"


@dataclass(frozen=True)
class SeriesCoverage:
    """What one source series was asked for and answered in a partition: half-open ranges of naive UTC times.

    ``series`` is ``venue|symbol|interval``; ranges are disjoint and sorted.
    """

    series: str
    ranges: tuple[tuple[datetime, datetime], ...]

    def merged_with(self, other: SeriesCoverage) -> SeriesCoverage:
        """The union of both, touching ranges joined."""
        return SeriesCoverage(self.series, union_of(self.ranges + other.ranges))


def union_of(ranges: Iterable[tuple[datetime, datetime]]) -> tuple[tuple[datetime, datetime], ...]:
    """Disjoint sorted ranges that cover the same time as the given ones.

    Examples
    --------
    >>> a, b, c = datetime(2024, 1, 1), datetime(2024, 1, 2), datetime(2024, 1, 3)
    >>> union_of([(b, c), (a, b)]) == ((a, c),)
    True
    """
    joined: list[tuple[datetime, datetime]] = []
    for start, end in sorted(ranges):
        if start >= end:
            continue
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return tuple(joined)


def missing_in(
    ranges: Iterable[tuple[datetime, datetime]], start: datetime, end: datetime
) -> list[tuple[datetime, datetime]]:
    """The parts of [start, end) that the ranges do not cover, in order.

    Examples
    --------
    >>> a, b, c, d = (datetime(2024, 1, day) for day in (1, 2, 3, 4))
    >>> missing_in([(b, c)], a, d) == [(a, b), (c, d)]
    True
    """
    holes, at = [], start
    for left, right in union_of(ranges):
        if right <= at or left >= end:
            continue
        if left > at:
            holes.append((at, left))
        at = max(at, right)
    if at < end:
        holes.append((at, end))
    return holes


@dataclass(frozen=True)
class Provenance:
    """Where the rows of one partition come from; stored inside the file."""

    asset: str
    partition: str
    rows: int = 0
    content_hash: str = ""
    code_version: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    run_id: str | None = None
    watermark: datetime | None = None
    coverage: tuple[SeriesCoverage, ...] = ()

    def covered(self, series: str) -> tuple[tuple[datetime, datetime], ...]:
        """The covered ranges of one series."""
        return next((item.ranges for item in self.coverage if item.series == series), ())

    @property
    def inputs_hash(self) -> str | None:
        """One hash over the content hashes of all partitions read."""
        return hash_of(self.inputs) if self.inputs else None

    def to_json(self) -> bytes:
        """The form in which it stands in the file."""
        return json.dumps(
            {
                "asset": self.asset,
                "partition": self.partition,
                "rows": self.rows,
                "content_hash": self.content_hash,
                "code_version": self.code_version,
                "inputs": dict(self.inputs),
                "run_id": self.run_id,
                "watermark": self.watermark and to_ms(self.watermark),
                "coverage": {
                    item.series: [[to_ms(a), to_ms(b)] for a, b in item.ranges] for item in self.coverage
                },
            },
            sort_keys=True,
        ).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Provenance:
        """Read back what ``to_json`` wrote."""
        raw: dict[str, Any] = json.loads(text)
        coverage = tuple(
            SeriesCoverage(series, tuple((from_ms(a), from_ms(b)) for a, b in ranges))
            for series, ranges in sorted(raw["coverage"].items())
        )
        watermark = None if raw["watermark"] is None else from_ms(raw["watermark"])
        raw |= {"coverage": coverage, "watermark": watermark}
        return cls(**raw)


def hash_of(parts: Mapping[str, str]) -> str:
    """SHA-256 over names and hashes, in the order of the names."""
    text = "\n".join(f"{name}={parts[name]}" for name in sorted(parts))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Piece:
    """One partition's worth of rows of a stream; coverage and watermark only for merged tables."""

    partition: str
    rows: object
    coverage: tuple[SeriesCoverage, ...] = ()
    watermark: datetime | None = None
    anomalies: pa.Table | None = None


class PartitionStream:
    """Rows that are made and committed partition by partition, so that memory stays bounded and a kill keeps days.

    Parameters
    ----------
    pieces
        Iterable of ``Piece`` in partition order; consumed once, while the asset's output is stored.
    """

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self.pieces = pieces


class Lake:
    """The partitions under one warehouse folder.

    Parameters
    ----------
    folder
        The warehouse folder; ``lake/<stage>/<asset>/...`` lies below it. Made when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "lake"
        self.ledger = Ledger(folder / "ledger")

    # -- paths

    def directory(self, table: Table) -> Path:
        """The folder of a table."""
        return self.root / table.stage / table.table

    def path(self, table: Table, partition: str | None) -> Path:
        """The file of a partition; None for a table without partitions."""
        directory = self.directory(table)
        return directory / _FILE if table.clock == "none" else directory / f"date={partition}" / _FILE

    def partitions(self, table: Table) -> list[str]:
        """Keys of the stored partitions in order; one empty key for an unpartitioned table that is stored."""
        if table.clock == "none":
            return [""] if self.path(table, None).is_file() else []
        found = self.directory(table).glob(f"date=*/{_FILE}")
        return sorted(path.parent.name.removeprefix("date=") for path in found)

    def holds(self, table: Table) -> bool:
        """Whether any partition of a table is stored; does not look at all of them."""
        if table.clock == "none":
            return self.path(table, None).is_file()
        return any(self.directory(table).glob(f"date=*/{_FILE}"))

    # -- reading

    def provenance(self, table: Table, partition: str | None) -> Provenance | None:
        """What a stored partition says of itself; None if it is not stored.

        Raises
        ------
        WarehouseError
            If the file is no Parquet file of ours.
        """
        found = self.footer(table, partition)
        return None if found is None else found[0]

    def footer(self, table: Table, partition: str | None) -> tuple[Provenance, pq.FileMetaData] | None:
        """What a stored partition says of itself and what Parquet says of its file, in one look.

        Raises
        ------
        WarehouseError
            If the file is no Parquet file of ours.
        """
        path = self.path(table, partition)
        try:
            file = pq.read_metadata(path)
        except FileNotFoundError:
            return None
        except (pa.ArrowInvalid, OSError) as error:
            raise _corrupt(path, error) from error
        metadata = file.metadata or {}
        if _METADATA_KEY not in metadata:
            raise _corrupt(path, "it carries no provenance")
        try:
            return Provenance.from_json(metadata[_METADATA_KEY]), file
        except (ValueError, KeyError, TypeError) as error:
            raise _corrupt(path, f"its provenance cannot be read: {error!r}") from error

    def read(
        self,
        table: Table,
        partitions: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        where: str | None = None,
    ) -> pa.Table:
        """Rows of the stored partitions among those named (None: all), sorted by key.

        Parameters
        ----------
        table
            The contract.
        partitions
            Keys; those that are not stored are passed over.
        columns
            Columns to read; None: all.
        where
            SQL condition over the table's columns.

        Raises
        ------
        WarehouseError
            If a file cannot be read.
        ValueError
            If the condition cannot be used.
        """
        if partitions is None:
            wanted = self.partitions(table)
        else:
            # Listing a whole table to find one partition would make a range cost the square of its length.
            wanted = [key for key in sorted(set(partitions)) if self.path(table, key).is_file()]
        names = list(columns or table.column_names)
        if not wanted:
            return pa.table({name: pa.array([], table.arrow_schema().field(name).type) for name in names})
        files = [str(self.path(table, key)) for key in wanted]
        query = (
            f"select {', '.join(_quoted(name) for name in names)} "
            f"from read_parquet(?, hive_partitioning = false){f' where {where}' if where else ''} "
            f"order by {', '.join(_quoted(name) for name in table.key)}"
        )
        with memory_connection() as connection:
            try:
                result = connection.execute(query, [files]).to_arrow_table()
            except duckdb.Error as error:
                if where and isinstance(error, duckdb.BinderException | duckdb.ParserException):
                    raise ValueError(f"{table.name}: condition {where!r} cannot be used: {error}") from error
                raise WarehouseError(
                    f"{self.directory(table)}: a partition cannot be read ({str(error).splitlines()[0]}); "
                    "move the named file away and materialize its partition again"
                ) from error
        return result.cast(pa.schema([table.arrow_schema().field(name) for name in names]))

    def _as_written(self, table: Table, partition: str) -> pa.Table:
        # Rows lie in the file as conform made them, so one partition needs no engine to type and sort them.
        path = self.path(table, partition)
        try:
            with pq.ParquetFile(path) as file:
                return file.read().replace_schema_metadata(None).cast(table.arrow_schema())
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _corrupt(path, error) from error

    # -- writing

    def replace(
        self,
        table: Table,
        partition: str | None,
        frame: object,
        provenance: Provenance,
        window: tuple[datetime, datetime] | None = None,
    ) -> Provenance:
        """Store a partition's rows in place of what it held, in one atomic step.

        Returns
        -------
        Provenance
            As stored: with the number of rows and their content hash.

        Raises
        ------
        ContractError
            If the rows do not fit the contract; what was stored stays.
        WarehouseError
            If the folder cannot be written.
        """
        rows = conform(frame, table, window)
        with self._locked(table, partition):
            return self._write(table, partition, rows, provenance)

    def merge(
        self,
        table: Table,
        partition: str,
        piece: Piece,
        provenance: Provenance,
        window: tuple[datetime, datetime],
        seen_at: datetime,
    ) -> Provenance:
        """Add rows to a partition: new keys are added, changed rows replace old ones and are recorded as revisions.

        The revisions and anomalies reach the ledger before the data file is renamed, so a kill cannot lose one.
        Coverage and data are one file, so they commit together. Nothing is deleted.

        Parameters
        ----------
        seen_at
            The source's time of the answer: when a changed value was seen.
        """
        fresh = conform(piece.rows, table, window)
        with self._locked(table, partition):
            before = self.provenance(table, partition)
            rows = fresh
            coverage = _by_series(piece.coverage)
            watermark = piece.watermark
            if before is not None:
                stored = self._as_written(table, partition)
                revised = revisions_between(table, stored, fresh, partition, seen_at)
                self.ledger.add_revisions(table, partition, revised)
                rows = conform(_anti_join_union(stored, fresh, table.key), table, window)
                coverage = _by_series((*before.coverage, *piece.coverage))
                watermark = max(filter(None, (before.watermark, watermark)), default=None)
            if piece.anomalies is not None:
                self.ledger.add_anomalies(table, partition, piece.anomalies)
            merged = replace(
                provenance, coverage=tuple(coverage[name] for name in sorted(coverage)), watermark=watermark
            )
            if (
                before is not None
                and rows.equals(stored)
                and replace(merged, run_id=before.run_id, rows=before.rows, content_hash=before.content_hash)
                == before
            ):
                return before
            return self._write(table, partition, rows, merged)

    def _write(
        self, table: Table, partition: str | None, rows: pa.Table, provenance: Provenance
    ) -> Provenance:
        done = replace(provenance, rows=rows.num_rows, content_hash=content_hash(rows))
        with_provenance = rows.replace_schema_metadata({_METADATA_KEY: done.to_json()})
        write_durably(with_provenance, self.path(table, partition))
        return done

    @contextmanager
    def _locked(self, table: Table, partition: str | None) -> Generator[None]:
        lock = self.folder / ".locks" / table.stage / f"{table.table}-{partition or 'all'}"
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = lock.open("w")
        except OSError as error:
            raise unwritable(self.folder, error) from error
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    # -- manifest

    def manifest(
        self, tables: Iterable[Table] | None = None
    ) -> Iterator[tuple[Table, str, Path, Provenance]]:
        """All stored partitions with what they say of themselves, by table and key."""
        for table in tables or TABLES.values():
            for partition in self.partitions(table):
                found = self.provenance(table, partition)
                if found is not None:
                    yield table, partition, self.path(table, partition), found


@contextmanager
def memory_connection() -> Generator[duckdb.DuckDBPyConnection]:
    """A private in-memory DuckDB: UTC, two threads, nothing fetched from a network."""
    connection = duckdb.connect(config={"autoinstall_known_extensions": "false", "threads": "2"})
    try:
        connection.execute("set TimeZone = 'UTC'")
        yield connection
    finally:
        connection.close()


def _by_series(items: Iterable[SeriesCoverage]) -> dict[str, SeriesCoverage]:
    merged: dict[str, SeriesCoverage] = {}
    for item in items:
        merged[item.series] = item.merged_with(merged.get(item.series, SeriesCoverage(item.series, ())))
    return merged


def _anti_join_union(stored: pa.Table, fresh: pa.Table, key: Sequence[str]) -> pa.Table:
    kept = (
        stored.join(fresh.select(list(key)), keys=list(key), join_type="left anti")
        if fresh.num_rows
        else stored
    )
    return pa.concat_tables([kept.select(stored.column_names), fresh])


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _corrupt(path: Path, reason: object) -> WarehouseError:
    return WarehouseError(
        f"{path}: is not a partition file of this warehouse ({reason}); move it away and materialize its partition again"
    )
