"""Partitions as Parquet files: written aside, synced and renamed, with provenance and coverage inside the file.

Here: locks, replace, merge, reads, metadata, compaction, removal. Not here: paths (``layout``), contracts
(``conform``), views (``catalog``), Dagster (``io_manager``). Resources and the command line import it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crypto_assets.intervals import from_ms, to_ms
from crypto_assets.resources.warehouse.conform import conform, content_hash
from crypto_assets.resources.warehouse.files import (
    WarehouseError,
    locked,
    move_durably,
    n_row_groups,
    remove_folder,
    remove_leftovers,
    write_durably,
    write_parts_durably,
)
from crypto_assets.resources.warehouse.layout import Layout, day_of
from crypto_assets.resources.warehouse.ledger import Ledger, revisions_between
from crypto_assets.schemas import Table
from crypto_assets.tables import TABLES

_METADATA_KEY = b"crypto_assets"
#: In the file of a compacted day: key of each hour -> its first row group and how many it has. What an hour says of
#: itself stands under its own key.
_HOURS_KEY = b"crypto_assets_hours"
#: How long hours lie on beside the file of their day, for readers that began before it was there.
GRACE = timedelta(hours=1)


@dataclass(frozen=True)
class SeriesCoverage:
    """What one source series was asked for and answered in a partition: half-open ranges of naive UTC times.

    ``series`` is ``venue|symbol|kind|interval``; ranges are disjoint and sorted.
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
    """One partition's worth of rows of a stream; all but rows and partition only for merged tables.

    ``seen_at`` is the source's time of the answer, by default the watermark: how far of the partition it told.
    """

    partition: str
    rows: object
    coverage: tuple[SeriesCoverage, ...] = ()
    watermark: datetime | None = None
    anomalies: pa.Table | None = None
    seen_at: datetime | None = None


class PartitionStream:
    """Rows that are made and committed partition by partition, so that memory stays bounded and a kill keeps days.

    Parameters
    ----------
    pieces
        Iterable of ``Piece`` in partition order; consumed once, while the asset's output is stored.
    """

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self.pieces = pieces


@dataclass(frozen=True)
class PartitionFile:
    """The file of a stored partition, and which of its row groups are the partition's: all but for a compacted day."""

    path: Path
    metadata: pq.FileMetaData
    groups: range

    @property
    def num_rows(self) -> int:
        """Rows of the partition, counted by Parquet."""
        return sum(self.metadata.row_group(number).num_rows for number in self.groups)

    @property
    def schema(self) -> pq.ParquetSchema:
        """Columns of the file."""
        return self.metadata.schema

    @property
    def n_bytes(self) -> int:
        """Size of the file; of an hour in the file of its day the size of its row groups."""
        if len(self.groups) == self.metadata.num_row_groups:
            return self.path.stat().st_size
        groups = (self.metadata.row_group(number) for number in self.groups)
        return sum(
            group.column(at).total_compressed_size for group in groups for at in range(group.num_columns)
        )


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
        self.layout = Layout(self.root)
        self.ledger = Ledger(folder / "ledger")

    # -- paths

    def directory(self, table: Table) -> Path:
        """The folder of a table."""
        return self.layout.directory(table)

    def path(self, table: Table, partition: str | None) -> Path:
        """The file of a partition; None for a table without partitions. Hours of a compacted day share one."""
        return self.layout.path(table, partition)

    def partitions(self, table: Table) -> list[str]:
        """Keys of the stored partitions in order; one empty key for an unpartitioned table that is stored."""
        if table.clock == "none":
            return [""] if self.path(table, None).is_file() else []
        dates = self.layout.dates(table)
        if table.clock == "hourly":
            return [key for day in dates for key in self._hours_of(table, day)]
        return [day for day in dates if self.path(table, day).is_file()]

    def _hours_of(self, table: Table, day: str) -> list[str]:
        by_day = self.layout.day_file(table, day)
        if not by_day.is_file():
            # Compacted and swept between the two looks: the second look at the day's file finds it.
            found = list(self.layout.hours(table, day))
            if found or not by_day.is_file():
                return found
        return sorted(self._groups_by_hour(by_day, _metadata_of(by_day)))

    def holds(self, table: Table) -> bool:
        """Whether any partition of a table is stored; does not look at all of them."""
        return self.layout.holds(table)

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

    def footer(self, table: Table, partition: str | None) -> tuple[Provenance, PartitionFile] | None:
        """What a stored partition says of itself and what Parquet says of its file, in one look.

        Raises
        ------
        WarehouseError
            If the file is no Parquet file of ours.
        """
        path = self.path(table, partition)
        while True:
            try:
                metadata = _metadata_of(path)
                break
            except FileNotFoundError:
                # The hour may just have moved into the file of its day.
                moved = self.path(table, partition)
                if moved == path:
                    return None
                path = moved
        groups, name = range(metadata.num_row_groups), _METADATA_KEY
        if partition is not None and self.layout.is_day_file(table, path):
            hours = self._groups_by_hour(path, metadata)
            if partition not in hours:
                return None
            groups, name = hours[partition], partition.encode()
        texts = metadata.metadata or {}
        if name not in texts:
            raise _corrupt(path, "it carries no provenance")
        try:
            return Provenance.from_json(texts[name]), PartitionFile(path, metadata, groups)
        except (ValueError, KeyError, TypeError) as error:
            raise _corrupt(path, f"its provenance cannot be read: {error!r}") from error

    def _groups_by_hour(self, path: Path, metadata: pq.FileMetaData) -> dict[str, range]:
        try:
            found: dict[str, list[int]] = json.loads((metadata.metadata or {})[_HOURS_KEY])
            return {key: range(first, first + n) for key, (first, n) in found.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _corrupt(path, f"it does not say which hours it holds: {error!r}") from error

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
        names = list(columns or table.column_names)
        while True:
            files, window = self._files(table, partitions)
            if not files:
                return pa.table({name: pa.array([], table.arrow_schema().field(name).type) for name in names})
            conditions = " and ".join(f"({part})" for part in (window, where) if part)
            query = (
                f"select {', '.join(_quoted(name) for name in names)} "
                f"from read_parquet(?, hive_partitioning = false){f' where {conditions}' if conditions else ''} "
                f"order by {', '.join(_quoted(name) for name in table.key)}"
            )
            with memory_connection() as connection:
                try:
                    result = connection.execute(query, [files]).to_arrow_table()
                    break
                except duckdb.Error as error:
                    if where and isinstance(error, duckdb.BinderException | duckdb.ParserException):
                        raise ValueError(
                            f"{table.name}: condition {where!r} cannot be used: {error}"
                        ) from error
                    if not all(Path(file).is_file() for file in files):
                        # Compacted or removed since they were listed.
                        continue
                    raise WarehouseError(
                        f"{self.directory(table)}: a partition cannot be read ({str(error).splitlines()[0]}); "
                        "move the named file away and materialize its partition again"
                    ) from error
        return result.cast(pa.schema([table.arrow_schema().field(name) for name in names]))

    def rows_sql(self, table: Table, partitions: Sequence[str]) -> str | None:
        """SQL of the stored rows of some partitions with ``partition_key``, the key under which each row lies.

        The date, and of an hour that has a file of its own the hour, are those of the folder, whatever the rows say.
        None where nothing is stored.
        """
        files, window = self._files(table, partitions)
        if not files:
            return None
        listed = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
        key = "''"
        if table.clock != "none":
            key = "regexp_extract(filename, 'date=([^/]+)/', 1)"
        if table.clock == "hourly":
            hour = "regexp_extract(filename, 'hour=([^/]+)/', 1)"
            told = f"strftime({_quoted(table.time_column)}, '%H')"
            key = f"{key} || '-' || case when {hour} = '' then {told} else {hour} end || ':00'"
        return (
            f"select * exclude (filename), {key} as partition_key "
            f"from read_parquet([{listed}], hive_partitioning = false, filename = true)"
            f"{f' where {window}' if window else ''}"
        )

    def _files(self, table: Table, partitions: Sequence[str] | None) -> tuple[list[str], str]:
        # Files that hold the partitions, and a condition where a file holds others as well.
        if partitions is None:
            return [str(path) for path in self.layout.files(table)], ""
        # Listing a whole table to find one partition would make a range cost the square of its length.
        wanted = sorted(set(partitions))
        paths = {key: path for key in wanted if (path := self.path(table, key)).is_file()}
        window = ""
        if any(self.layout.is_day_file(table, path) for path in paths.values()):
            moment = _quoted(table.time_column)
            starts = [f"timestamp '{key[:10]} {key[11:]}:00'" for key in paths]
            # The bounds choose row groups by their statistics.
            window = (
                f"{moment} >= {starts[0]} and {moment} < {starts[-1]} + interval 1 hour "
                f"and date_trunc('hour', {moment}) in ({', '.join(starts)})"
            )
        return [str(path) for path in dict.fromkeys(paths.values())], window

    def _as_written(self, table: Table, file: PartitionFile) -> pa.Table:
        # Rows lie in the file as conform made them, so one partition needs no engine to type and sort them.
        try:
            with pq.ParquetFile(file.path) as opened:
                rows = opened.read_row_groups(list(file.groups))
                return rows.replace_schema_metadata(None).cast(table.arrow_schema())
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _corrupt(file.path, error) from error

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
            found = self.footer(table, partition)
            rows = fresh
            coverage = _by_series(piece.coverage)
            watermark = piece.watermark
            if found is not None:
                before, file = found
                stored = self._as_written(table, file)
                met, others = _at_the_times_of(fresh, stored, table)
                revised = revisions_between(table, met, fresh, partition, seen_at)
                self.ledger.add_revisions(table, partition, revised)
                union = pa.concat_tables([others, _anti_join_union(met, fresh, table.key)])
                rows = conform(union, table, window)
                coverage = _by_series((*before.coverage, *piece.coverage))
                watermark = max(filter(None, (before.watermark, watermark)), default=None)
            if piece.anomalies is not None:
                self.ledger.add_anomalies(table, partition, piece.anomalies)
            merged = replace(
                provenance, coverage=tuple(coverage[name] for name in sorted(coverage)), watermark=watermark
            )
            if (
                found is not None
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
        path = self.path(table, partition)
        if partition is not None and self.layout.is_day_file(table, path):
            others = self._groups_by_hour(path, _metadata_of(path)) if path.is_file() else ()
            hours = {key: found for key in others if (found := self.footer(table, key)) is not None}
            self._write_day(table, path, {**hours, partition: (done, rows)})
        else:
            write_durably(rows.replace_schema_metadata({_METADATA_KEY: done.to_json()}), path)
        return done

    def _write_day(
        self, table: Table, path: Path, hours: Mapping[str, tuple[Provenance, pa.Table | PartitionFile]]
    ) -> None:
        # Each hour is held alone, and begins a row group of its own.
        groups, texts, first = {}, {}, 0
        for key in sorted(hours):
            provenance, rows = hours[key]
            groups[key] = [first, n_row_groups(rows.num_rows)]
            texts[key.encode()] = provenance.to_json()
            first += groups[key][1]
        texts[_HOURS_KEY] = json.dumps(groups).encode()
        parts = (
            rows if isinstance(rows, pa.Table) else self._as_written(table, rows)
            for _, (_, rows) in sorted(hours.items())
        )
        write_parts_durably(parts, table.arrow_schema().with_metadata(texts), path)

    @contextmanager
    def _locked(self, table: Table, partition: str | None) -> Generator[None]:
        locks = self.folder / ".locks" / table.stage
        if table.clock != "hourly" or partition is None:
            with locked(locks / f"{table.table}-{partition or 'all'}"):
                yield
            return
        # One lock for the hours of a day, which may share a file; and no day is compacted while a place is chosen.
        with (
            locked(locks / f"{table.table}-{day_of(partition)}"),
            locked(locks / f"{table.table}-layout", shared=True),
        ):
            yield

    # -- closed days of hourly tables

    def compact(self, table: Table, before: date) -> list[str]:
        """Put the hours of each closed day of an hourly table into one file that keeps what each says of itself.

        Days are compacted in order. The hours stay where they are until ``sweep``; a killed compaction leaves nothing
        that counts, and readers see a day by its hours or by its file, never by both.

        Parameters
        ----------
        table
            An hourly table.
        before
            The first day that is not closed.

        Returns
        -------
        list of str
            The days that were compacted; none when it is done again.

        Raises
        ------
        ValueError
            If the table is not stored by the hour.
        WarehouseError
            If a file cannot be read or written; days compacted before stay so.
        """
        if table.clock != "hourly":
            raise ValueError(f"{table.name} is stored by {table.clock} partitions; only hours are compacted")
        done: list[str] = []
        while (day := next(self.layout.uncompacted(table), before.isoformat())) < before.isoformat():
            if self._compact_day(table, day):
                done.append(day)
        return done

    def _compact_day(self, table: Table, day: str) -> bool:
        path = self.layout.day_file(table, day)
        locks = self.folder / ".locks" / table.stage
        # The day is written aside under its own lock, so that other days go on meanwhile; it is then put in place while
        # nobody chooses a place, and only if no earlier day has begun to be stored by hour.
        with locked(locks / f"{table.table}-{day}"):
            hours = {}
            for key in () if path.is_file() else self.layout.hours(table, day):
                if (found := self.footer(table, key)) is not None:
                    hours[key] = found
            if not hours:
                return False
            aside = path.with_name(".day.parquet")
            self._write_day(table, aside, hours)
            with locked(locks / f"{table.table}-layout"):
                if next(self.layout.uncompacted(table), day) < day:
                    return False
                move_durably(aside, path)
        return True

    def sweep(self, table: Table, grace: timedelta = GRACE) -> list[str]:
        """Remove the hours of compacted days whose file has been there for a while; returns their keys.

        Raises
        ------
        WarehouseError
            If an hour is not in the file of its day, or cannot be removed.
        """
        swept: list[str] = []
        for day in self.layout.dates(table):
            path = self.layout.day_file(table, day)
            with locked(self.folder / ".locks" / table.stage / f"{table.table}-{day}"):
                if not path.is_file():
                    continue
                remove_leftovers(path.parent)
                if time.time() - path.stat().st_mtime < grace.total_seconds():
                    continue
                held = self._groups_by_hour(path, _metadata_of(path))
                for key in list(self.layout.hours(table, day)):
                    if key not in held:
                        raise WarehouseError(
                            f"{self.layout.hour_folder(table, key)}: is not in {path}; "
                            "no program of ours wrote it after the day was compacted: move it away"
                        )
                    remove_folder(self.layout.hour_folder(table, key))
                    swept.append(key)
        return swept

    def remove_dates(self, table: Table, dates: Iterable[str]) -> list[str]:
        """Remove all that a table with partitions stores under the given dates; returns those that were there.

        A date disappears in one step, and what a killed removal left is removed as well.
        """
        locks = self.folder / ".locks" / table.stage
        removed = []
        with locked(locks / f"{table.table}-layout"):
            remove_leftovers(self.directory(table))
        for day in dates:
            with locked(locks / f"{table.table}-{day}"), locked(locks / f"{table.table}-layout"):
                if remove_folder(self.layout.day_file(table, day).parent):
                    removed.append(day)
        return removed

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


def _at_the_times_of(fresh: pa.Table, stored: pa.Table, table: Table) -> tuple[pa.Table, pa.Table]:
    # Stored rows that may have the key of a fresh one, and the others: most merges only add what came later.
    if table.time_column not in table.key or not fresh.num_rows:
        return stored, stored.slice(0, 0)
    bounds = pc.min_max(fresh.column(table.time_column)).as_py()
    times = stored.column(table.time_column)
    may_meet = pc.and_(pc.greater_equal(times, bounds["min"]), pc.less_equal(times, bounds["max"]))
    return stored.filter(may_meet), stored.filter(pc.invert(may_meet))


def _anti_join_union(stored: pa.Table, fresh: pa.Table, key: Sequence[str]) -> pa.Table:
    kept = (
        stored.join(fresh.select(list(key)), keys=list(key), join_type="left anti")
        if fresh.num_rows
        else stored
    )
    return pa.concat_tables([kept.select(stored.column_names), fresh])


def _metadata_of(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise _corrupt(path, error) from error


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _corrupt(path: Path, reason: object) -> WarehouseError:
    return WarehouseError(
        f"{path}: is not a partition file of this warehouse ({reason}); move it away and materialize its partition again"
    )
