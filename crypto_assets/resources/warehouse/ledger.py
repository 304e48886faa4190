"""The ledger: what sources changed after we had stored it, rows that were kept out of the tables, files that were read.

Batches are numbered files in a folder of their partition, written before the data they explain; what is recorded
already is not recorded again, so a kill between ledger and data loses and doubles nothing. ``assets/quality.py``
publishes it as tables.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crypto_assets.resources.warehouse.conform import conform
from crypto_assets.resources.warehouse.files import locked, write_durably
from crypto_assets.schemas import Table
from crypto_assets.tables import TABLES

REVISIONS = TABLES["quality/revisions"]
ANOMALIES = TABLES["quality/anomalies"]
SOURCE_FILES = TABLES["quality/source_files"]


class Ledger:
    """Append-only batches under one folder; a caller holds the lock of the partition that it adds to.

    Files belong to no partition and have locks of their own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add_revisions(self, table: Table, partition: str, rows: pa.Table) -> None:
        """Record revisions of one partition; a change that is the newest one recorded of its value is known."""
        folder = self._folder("revisions", table, partition)
        newest = {
            (row["row_key"], row["column_name"]): (row["old_value"], row["new_value"])
            for batch in _batches(folder)
            for row in batch.to_pylist()
        }
        fresh = [
            newest.get((row["row_key"], row["column_name"])) != (row["old_value"], row["new_value"])
            for row in rows.to_pylist()
        ]
        _add(folder, rows.filter(pa.array(fresh, pa.bool_())))

    def add_anomalies(self, table: Table, partition: str, rows: pa.Table) -> None:
        """Record anomalies of one partition, columns as in quality/anomalies; each row once.

        Raises
        ------
        ContractError
            If the rows do not fit quality/anomalies.
        """
        folder = self._folder("anomalies", table, partition)
        known = _once(_batches(folder), ANOMALIES)
        every = _once([known, rows], ANOMALIES)
        if every.num_rows > known.num_rows:
            _add(folder, rows)

    def add_source_file(self, row: Mapping[str, object]) -> None:
        """Record a file that is about to be read into raw tables; reading the same content again records nothing.

        Parameters
        ----------
        row
            Columns of quality/source_files but ``published_again``, which follows from what is recorded.

        Raises
        ------
        ContractError
            If the row does not fit quality/source_files; nothing was recorded.
        """
        schema = SOURCE_FILES.arrow_schema()
        given = pa.table({name: [value] for name, value in {**row, "published_again": False}.items()})
        fresh = conform(given, SOURCE_FILES).cast(schema)
        folder = self._file_folder(str(row["origin"]), str(row["file"]))
        with locked(folder / ".lock"):
            readings = _batches(folder)
            if not readings or readings[-1]["sha256"].to_pylist() != [row["sha256"]]:
                _add(folder, fresh)

    def source_file(self, origin: str, file: str) -> str | None:
        """SHA-256 of a file as it was read last; None if it never was."""
        batches = sorted(self._file_folder(origin, file).glob("batch-*.parquet"))
        return pq.read_table(batches[-1])["sha256"][0].as_py() if batches else None

    def source_files(self) -> pa.Table:
        """All files that were read, each content once, with whether another content of the file was read before."""
        readings = _batches(self.folder / "source_files")
        rows = _once(readings, SOURCE_FILES).sort_by(
            [("origin", "ascending"), ("file", "ascending"), ("seen_at", "ascending")]
        )
        seen: set[tuple[object, object]] = set()
        again = []
        for file in zip(rows["origin"].to_pylist(), rows["file"].to_pylist(), strict=True):
            again.append(file in seen)
            seen.add(file)
        at = SOURCE_FILES.column_names.index("published_again")
        return conform(rows.set_column(at, "published_again", pa.array(again, pa.bool_())), SOURCE_FILES)

    def _file_folder(self, origin: str, file: str) -> Path:
        # Names of files are paths and URLs; their hash is always the name of a folder.
        name = hashlib.sha256(file.encode()).hexdigest()[:32]
        return self.folder / "source_files" / hashlib.sha256(origin.encode()).hexdigest()[:8] / name

    def revisions(self) -> pa.Table:
        """All recorded revisions."""
        return _once(_batches(self.folder / "revisions"), REVISIONS)

    def anomalies(self, table: Table | None = None, partition: str = "") -> pa.Table:
        """All recorded anomalies, or those that came with one partition of a table."""
        folder = self.folder / "anomalies" if table is None else self._folder("anomalies", table, partition)
        return _once(_batches(folder), ANOMALIES)

    def _folder(self, kind: str, table: Table, partition: str) -> Path:
        return self.folder / kind / table.stage / table.table / partition


def _batches(folder: Path) -> list[pa.Table]:
    return [pq.read_table(path) for path in sorted(folder.rglob("batch-*.parquet"))]


def _add(folder: Path, rows: pa.Table) -> None:
    if rows.num_rows:
        number = len(list(folder.glob("batch-*.parquet")))
        write_durably(rows, folder / f"batch-{number:06d}.parquet")


def _once(batches: Sequence[pa.Table], table: Table) -> pa.Table:
    rows = pa.concat_tables(
        [table.arrow_schema().empty_table(), *(batch.select(table.column_names) for batch in batches)]
    )
    # A row may stand in two batches (a page asked for twice): the first one counts.
    others = [name for name in table.column_names if name not in table.key]
    first = rows.group_by(list(table.key), use_threads=False).aggregate([(name, "first") for name in others])
    return conform(first.rename_columns([*table.key, *others]).select(table.column_names), table)


def revisions_between(
    table: Table, stored: pa.Table, fresh: pa.Table, partition: str, seen_at: datetime
) -> pa.Table:
    """One row per value that differs between two versions of rows with the same key.

    Parameters
    ----------
    stored, fresh
        Conformed rows of the same table.
    seen_at
        When the new values were seen, source time, naive UTC.

    Returns
    -------
    pyarrow.Table
        Rows of quality/revisions.
    """
    rows: list[dict[str, object]] = []
    if stored.num_rows and fresh.num_rows:
        keys = list(table.key)
        numbered_old = stored.select(keys).append_column("_old", pa.array(range(stored.num_rows)))
        numbered_new = fresh.select(keys).append_column("_new", pa.array(range(fresh.num_rows)))
        pairs = numbered_old.join(numbered_new, keys=keys, join_type="inner").sort_by("_new")
        old, new = stored.take(pairs["_old"]), fresh.take(pairs["_new"])
        for name in (name for name in table.column_names if name not in keys):
            differs = _differs(old[name], new[name])
            for at in pc.indices_nonzero(differs).to_pylist():
                key = {part: str(new[part][at].as_py()) for part in keys}
                rows.append(
                    {
                        "asset": table.name,
                        "row_key": json.dumps(key),
                        "column_name": name,
                        "old_value": _text(old[name][at].as_py()),
                        "new_value": _text(new[name][at].as_py()),
                        "seen_at": seen_at,
                        "partition": partition,
                    }
                )
    return pa.Table.from_pylist(rows, schema=REVISIONS.arrow_schema())


def _differs(old: pa.ChunkedArray, new: pa.ChunkedArray) -> pa.ChunkedArray:
    changed = pc.fill_null(pc.not_equal(old, new), False)
    return pc.or_(changed, pc.xor(pc.is_null(old), pc.is_null(new)))


def _text(value: object) -> str | None:
    return None if value is None else str(value)
