"""What the files say of themselves, as tables: the manifest of partitions, the coverage of sources and its gaps.

All are derived from file metadata and, where rows are to be counted, from the rows' times; they are the authority for
change. ``assets/quality.py`` publishes them.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import duckdb
import pyarrow as pa

from crypto_assets.intervals import DAY_MS, interval_ms, to_ms
from crypto_assets.partitions import floor_of, start_of
from crypto_assets.resources.ingest_coins import PUBLICATION_LAG
from crypto_assets.resources.warehouse.lake import Lake, memory_connection
from crypto_assets.schemas import Table
from crypto_assets.tables import TABLES

_DAY_US = 1000 * DAY_MS


@dataclass(frozen=True)
class _Source:
    """A raw table with coverage: the series and time slot of each row as SQL, with ``series`` and ``files`` to read.

    What was only seen (``seen``) is expected from the first to the last look, all else up to the watermark.
    """

    slots: str
    seen: bool = False


_SOURCES = {
    "raw/klines": _Source("select venue, symbol, kind, interval, epoch_us(ts) as slot from files"),
    "raw/market_caps": _Source(
        "select 'coingecko' as venue, coin_id as symbol, 'market_cap' as kind, '1d' as interval, "
        "epoch_us(ts) as slot from files"
    ),
    "raw/coin_ohlc": _Source(
        "select 'coingecko' as venue, coin_id as symbol, 'ohlc' as kind, interval, epoch_us(ts) as slot from files"
    ),
    # These do not say how often they were asked for; their coverage does.
    "raw/open_interest": _Source(
        "select venue, symbol, kind, interval, epoch_us(ts) as slot "
        "from files join series using (venue, symbol) where epoch_us(ts) % step = 0"
    ),
    "raw/order_book_summary": _Source(
        "select distinct venue, symbol, kind, interval, epoch_us(ts) - epoch_us(ts) % step as slot "
        "from files join series using (venue, symbol)",
        seen=True,
    ),
}

_SERIES = "venue, symbol, kind, interval"

#: One row per series: what one name in the coverage stands for; ``step`` and ``lag`` in microseconds.
_SERIES_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("venue", "symbol", "kind", "interval")),
        ("step", pa.int64()),
        ("lag", pa.int64()),
        ("ended", pa.int64()),
    ]
)
#: One row per range of a series that a partition states to be answered.
_ASKED_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("venue", "symbol", "kind", "interval")),
        ("day", pa.int64()),
        ("watermark", pa.int64()),
        ("left", pa.int64()),
        ("right", pa.int64()),
    ]
)

_COUNTED = f"select {_SERIES}, slot - slot % {_DAY_US} as day, count(*) as n_rows from slots group by all"

_COVERAGE = f"""
with answered as (
    select {_SERIES}, day, sum("right" - "left") as covered, min("left") as first, max("right") as last,
        max(watermark) as watermark
    from asked group by all
), counts as (
    select {_SERIES}, day, covered // step as n_covered, coalesce(n_rows, 0) as n_rows,
        case when $seen then (last - first) // step
        else (least(day + {_DAY_US}, coalesce(watermark, day + {_DAY_US} + lag) - lag) - day) // step end as n_due
    from answered join series using ({_SERIES}) left join counted using ({_SERIES}, day)
)
select $asset as asset, {_SERIES}, make_timestamp(day) as ts, greatest(n_due, n_covered) as n_expected, n_rows,
    greatest(n_covered - n_rows, 0) as n_source_gaps, greatest(n_due - n_covered, 0) as n_unexplained
from counts
"""

# Time is cut at the rows and at the borders of what was answered; what lies between two cuts is missing, and the border
# passed last says why. Days that have all their rows are one cut, so only rows of other days are sorted.
_GAPS = f"""
with reached as (
    select *, max("right") over earlier as reach from asked
    window earlier as (
        partition by {_SERIES} order by "left", "right" rows between unbounded preceding and 1 preceding
    )
), numbered as (
    select *, count_if(reach is null or "left" > reach) over (
        partition by {_SERIES} order by "left", "right" rows unbounded preceding
    ) as island
    from reached
), islands as (
    select {_SERIES}, min("left") as "left", max("right") as "right" from numbered group by {_SERIES}, island
), covered as (
    select {_SERIES}, step, lag, ended, ("left" + step - 1) // step * step as "left", "right" // step * step as "right"
    from islands join series using ({_SERIES})
    where ("left" + step - 1) // step * step < "right" // step * step
), bounds as (
    select {_SERIES}, case when $seen then max("right") else greatest(
        max("right"), least(($watermark - lag) // step * step, coalesce(any_value(ended), $watermark) // step * step)
    ) end as last
    from covered group by {_SERIES}, step, lag
), due as (
    select {_SERIES}, day, n_rows * step = {_DAY_US} as is_full, step from counted join series using ({_SERIES})
), cuts as (
    select {_SERIES}, day as cut, day + {_DAY_US} as clear, null as origin from due where is_full
    union all
    select {_SERIES}, slot, slot + step, null
    from slots join due using ({_SERIES}) where not is_full and due.day = slot - slot % {_DAY_US}
    union all
    select {_SERIES}, "left", "left", 'source' from covered
    union all
    select {_SERIES}, "right", "right", 'ours' from covered join bounds using ({_SERIES}) where "right" < last
    union all
    select {_SERIES}, last, last, 'end' from bounds
), pieces as (
    select {_SERIES}, max(clear) over so_far as "left", last_value(origin ignore nulls) over so_far as origin,
        lead(cut) over (partition by {_SERIES} order by cut, clear) as "right"
    from cuts
    window so_far as (partition by {_SERIES} order by cut, clear rows between unbounded preceding and current row)
)
select $asset as asset, {_SERIES}, make_timestamp("left") as ts, make_timestamp("right") as gap_end,
    ("right" - "left") // step as n_missing, origin
from pieces join series using ({_SERIES})
where "left" < "right" and origin in ('source', 'ours')
"""


def manifest_table(lake: Lake) -> pa.Table:
    """Rows of quality/partition_manifest: one per stored partition, in order."""
    schema = TABLES["quality/partition_manifest"].arrow_schema()
    rows = []
    for table in TABLES.values():
        for partition in lake.partitions(table) if table.stage != "quality" else ():
            stored = lake.footer(table, partition)
            if stored is None:
                continue
            found, file = stored
            rows.append(
                {
                    "asset": table.name,
                    "partition": partition,
                    "rows": found.rows,
                    "content_hash": found.content_hash,
                    "code_version": found.code_version,
                    "inputs_hash": found.inputs_hash,
                    "run_id": found.run_id,
                    "watermark": found.watermark,
                    "bytes": file.n_bytes,
                    "path": str(file.path.relative_to(lake.folder)),
                }
            )
    return pa.Table.from_pylist(rows, schema=schema)


def coverage_table(lake: Lake) -> pa.Table:
    """Rows of quality/coverage: one per series and day that an answer has covered, in order.

    An interval that was asked for and did not come is the source's own gap; one that no answer covers, up to the
    watermark, is unexplained. Series without a fixed interval (funding) are not in it.
    """
    return _over_sources(lake, TABLES["quality/coverage"], _COVERAGE, {})


def gaps_table(lake: Lake, ended: Mapping[str, datetime] | None = None) -> pa.Table:
    """Rows of quality/gaps: one per longest run of missing intervals of a series with one reason, in order.

    Looked at is each series from its first covered interval up to the watermark of its table; what is only seen while
    somebody looks (order books) up to the last look. Missing and covered: the source does not have it. Missing and not
    covered: no answer of ours says anything about it.

    Parameters
    ----------
    ended
        Name of a series -> when it ended, naive UTC: what no answer covers later is not missing.
    """
    return _over_sources(lake, TABLES["quality/gaps"], _GAPS, ended or {})


def _over_sources(lake: Lake, table: Table, query: str, ended: Mapping[str, datetime]) -> pa.Table:
    found = [table.arrow_schema().empty_table()]
    for name, source in _SOURCES.items():
        if not lake.holds(TABLES[name]):
            continue
        with _loaded(lake, TABLES[name], source, ended) as (connection, watermark):
            given = {"asset": name, "seen": source.seen, "watermark": watermark}
            used = {key: value for key, value in given.items() if f"${key}" in query}
            ordered = f"select * from ({query}) order by {', '.join(table.key)}"
            found.append(connection.execute(ordered, used).to_arrow_table().cast(table.arrow_schema()))
    return pa.concat_tables(found)


@contextmanager
def _loaded(
    lake: Lake, table: Table, source: _Source, ended: Mapping[str, datetime]
) -> Generator[tuple[duckdb.DuckDBPyConnection, int]]:
    asked: dict[str, list[object]] = {name: [] for name in _ASKED_SCHEMA.names}
    known: dict[str, list[object]] = {name: [] for name in _SERIES_SCHEMA.names}
    parts: dict[str, tuple[str, ...]] = {}
    newest = 0
    for partition in lake.partitions(table):
        provenance = lake.provenance(table, partition)
        if provenance is None:
            continue
        watermark = None if provenance.watermark is None else _us(provenance.watermark)
        newest = max(newest, watermark or 0)
        day = _us(floor_of("daily", start_of(table.clock, partition)))
        for item in provenance.coverage:
            if item.series not in parts:
                parts[item.series] = tuple(item.series.split("|"))
                _describe(known, parts[item.series], ended.get(item.series))
            for left, right in item.ranges if parts[item.series][3] else ():
                row = (*parts[item.series], day, watermark, _us(left), _us(right))
                for column, value in zip(asked.values(), row, strict=True):
                    column.append(value)
    listed = ", ".join("'" + str(path).replace("'", "''") + "'" for path in lake.layout.files(table))
    with memory_connection() as connection:
        connection.register("asked", pa.Table.from_pydict(asked, schema=_ASKED_SCHEMA))
        connection.register("series", pa.Table.from_pydict(known, schema=_SERIES_SCHEMA))
        rows = f"select * from read_parquet([{listed}], hive_partitioning = false)"
        connection.execute(f"create temp view files as {rows}")
        connection.execute(f"create temp view slots as {source.slots}")
        connection.execute(f"create temp table counted as {_COUNTED}")
        yield connection, newest


def _describe(known: dict[str, list[object]], parts: tuple[str, ...], ended: datetime | None) -> None:
    venue, symbol, kind, interval = parts
    if not interval:
        return
    published_later = venue == "coingecko" and interval == "1d"
    lag = PUBLICATION_LAG if published_later else timedelta()
    step_us = 1_000_000 * int(interval[:-1]) if interval.endswith("s") else 1000 * interval_ms(interval)
    row = (venue, symbol, kind, interval, step_us, lag // timedelta(microseconds=1), ended and _us(ended))
    for column, value in zip(known.values(), row, strict=True):
        column.append(value)


def _us(moment: datetime) -> int:
    return 1000 * to_ms(moment)
