"""The ledger: what sources changed after we had stored it, and rows that were kept out of the tables.

Batches are files named by their content, written before the data they explain; writing one twice changes nothing, so
a kill between ledger and data loses and doubles nothing. ``assets/quality.py`` publishes it as tables.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crypto_assets.resources.warehouse.conform import conform
from crypto_assets.schemas import TABLES, Table

REVISIONS = TABLES["quality/revisions"]
ANOMALIES = TABLES["quality/anomalies"]


class Ledger:
    """Append-only batches under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add_revisions(self, table: Table, rows: pa.Table) -> None:
        """Record revisions of one table; a batch with the same changes is recorded once, whenever it was seen."""
        self._add(
            f"revisions/{table.stage}/{table.table}",
            rows,
            identity=[name for name in rows.column_names if name != "seen_at"],
        )

    def add_anomalies(self, rows: pa.Table) -> None:
        """Record anomalies, columns as in quality/anomalies; each row once."""
        self._add("anomalies", rows, identity=rows.column_names)

    def revisions(self) -> pa.Table:
        """All recorded revisions."""
        return self._all("revisions", REVISIONS)

    def anomalies(self) -> pa.Table:
        """All recorded anomalies, each row once."""
        return self._all("anomalies", ANOMALIES)

    def _add(self, kind: str, rows: pa.Table, identity: list[str]) -> None:
        if not rows.num_rows:
            return
        text = json.dumps(rows.select(identity).to_pylist(), sort_keys=True, default=str)
        path = self.folder / kind / f"batch-{hashlib.sha256(text.encode()).hexdigest()[:24]}.parquet"
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{uuid4().hex}")
        pq.write_table(rows, temporary)
        temporary.replace(path)

    def _all(self, kind: str, table: Table) -> pa.Table:
        paths = sorted((self.folder / kind).rglob("batch-*.parquet"))
        batches = [pq.read_table(path).select(table.column_names) for path in paths]
        empty = table.arrow_schema().empty_table()
        rows = pa.concat_tables([empty, *batches])
        # The same row may stand in two batches (a page asked for twice); the first time it was seen counts.
        first = rows.group_by(list(table.key), use_threads=False).aggregate(
            [(name, "first") for name in table.column_names if name not in table.key]
        )
        renamed = first.rename_columns([name.removesuffix("_first") for name in first.column_names])
        return conform(renamed.select(table.column_names), table)


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
