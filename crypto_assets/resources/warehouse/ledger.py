"""The ledger: what sources changed after we had stored it, and rows that were kept out of the tables.

Batches are numbered files in a folder of their partition, written before the data they explain; what is recorded
already is not recorded again, so a kill between ledger and data loses and doubles nothing. ``assets/quality.py``
publishes it as tables.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crypto_assets.resources.warehouse.conform import conform
from crypto_assets.resources.warehouse.files import write_durably
from crypto_assets.schemas import TABLES, Table

REVISIONS = TABLES["quality/revisions"]
ANOMALIES = TABLES["quality/anomalies"]


class Ledger:
    """Append-only batches under one folder; a caller holds the lock of the partition that it adds to."""

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

    def revisions(self) -> pa.Table:
        """All recorded revisions."""
        return _once(_batches(self.folder / "revisions"), REVISIONS)

    def anomalies(self) -> pa.Table:
        """All recorded anomalies."""
        return _once(_batches(self.folder / "anomalies"), ANOMALIES)

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
