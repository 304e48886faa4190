"""What the files say of themselves, as tables: the manifest of partitions and the coverage of sources.

Both are derived from file metadata alone and are the authority for change. ``assets/quality.py`` publishes them.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import pyarrow as pa

from crypto_assets.intervals import interval_delta
from crypto_assets.resources.warehouse.lake import Lake, Provenance, memory_connection
from crypto_assets.schemas import TABLES, Table

#: Raw tables with coverage: the columns that make their series ``venue|symbol|interval``.
_SERIES = {
    "raw/klines": "venue || '|' || symbol || '|' || interval",
    "raw/market_caps": "'coingecko|' || coin_id || '|1d'",
}


def manifest_table(lake: Lake) -> pa.Table:
    """Rows of quality/partition_manifest: one per stored partition, in order."""
    schema = TABLES["quality/partition_manifest"].arrow_schema()
    rows = [
        {
            "asset": table.name,
            "partition": partition,
            "rows": found.rows,
            "content_hash": found.content_hash,
            "code_version": found.code_version,
            "inputs_hash": found.inputs_hash,
            "run_id": found.run_id,
            "watermark": found.watermark,
            "bytes": path.stat().st_size,
            "path": str(path.relative_to(lake.folder)),
        }
        for table, partition, path, found in lake.manifest()
        if table.stage != "quality"
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def coverage_table(lake: Lake) -> pa.Table:
    """Rows of quality/coverage: one per series and day that an answer has covered, in order.

    An interval that was asked for and did not come is the source's own gap; one that no answer covers, up to the
    watermark, is unexplained.
    """
    rows: list[dict[str, object]] = []
    for name, series in _SERIES.items():
        table = TABLES[name]
        counts = _counts(lake, table, series)
        for _, partition, _, found in lake.manifest([table]):
            rows += [
                _coverage_row(name, partition, found, item.series, counts.get((item.series, partition), 0))
                for item in found.coverage
            ]
    return pa.Table.from_pylist(rows, schema=TABLES["quality/coverage"].arrow_schema())


def _coverage_row(
    name: str, partition: str, found: Provenance, series: str, n_rows: int
) -> dict[str, object]:
    venue, symbol, interval = series.split("|")
    day = datetime.fromisoformat(partition)
    end = day + timedelta(days=1)
    step = interval_delta(interval)
    # A market cap of a day is published after its end; a bar is known at its own end.
    until = min(end, found.watermark or end)
    covered = sum(((right - left) for left, right in found.covered(series)), timedelta()) // step
    return {
        "asset": name,
        "venue": venue,
        "symbol": symbol,
        "interval": interval,
        "ts": day,
        "n_expected": max((until - day) // step, covered),
        "n_rows": n_rows,
        "n_source_gaps": max(covered - n_rows, 0),
        "n_unexplained": max((until - day) // step - covered, 0),
    }


def _counts(lake: Lake, table: Table, series: str) -> dict[tuple[str, str], int]:
    files: list[str] = [str(lake.path(table, key)) for key in lake.partitions(table)]
    if not files:
        return {}
    query = (
        f"select {series}, strftime({table.time_column}, '%Y-%m-%d'), count(*) "
        "from read_parquet(?, hive_partitioning = false) group by all"
    )
    with memory_connection() as connection:
        return {(name, day): n for name, day, n in connection.execute(query, [files]).fetchall()}
