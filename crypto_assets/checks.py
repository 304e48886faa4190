"""Asset checks: the rules of every table, evaluated by SQL over the partitions of the run that made them.

Here: evaluation, the gap check, which compares rows with what sources were asked for, and the factory that makes Dagster
checks. Not here: what must hold of rows (``rules``). ``definitions.py`` wires the factory; tests and the command line may
call ``examine``.

Dagster reads annotations as objects, so this module does not postpone them.
"""

import re
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import dagster as dg
import duckdb
import pyarrow as pa

from crypto_assets.intervals import interval_delta
from crypto_assets.partitions import DAY, keys_of, start_of, window_of
from crypto_assets.resources.dbt_assets import lives_of
from crypto_assets.resources.ingest_coins import PUBLICATION_LAG
from crypto_assets.resources.snapshots import coins_with_caps, universe_symbols
from crypto_assets.resources.warehouse.io_manager import WarehouseResource
from crypto_assets.resources.warehouse.lake import (
    Lake,
    PartitionFile,
    Provenance,
    memory_connection,
    missing_in,
)
from crypto_assets.rules import FINDINGS, Finding, Rule, quoted, rules_of, sql_of
from crypto_assets.schemas import ARROW_TYPES, Table, series_name
from crypto_assets.settings import Settings
from crypto_assets.tables import TABLES

#: Partition key -> what its file says of itself, and the file.
Footers = Mapping[str, tuple[Provenance, PartitionFile]]

_SHOWN = 5
_KLINES, _RASTER, _CAPS = (TABLES[name] for name in ("raw/klines", "rollups/raster", "raw/market_caps"))


@dataclass(frozen=True)
class Check:
    """Rules that stand or fall together under one name.

    Attributes
    ----------
    facts
        Name -> query whose rows are shown with the result, passed or not, unless there are none.
    prepare
        Makes the temporary tables that rules and facts read.
    blocking
        Whether a failure keeps downstream assets of the same run from being made.
    """

    name: str
    rules: tuple[Rule, ...]
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR
    blocking: bool = False
    facts: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[["Evidence"], None] | None = None

    @property
    def description(self) -> str:
        """The rules in words."""
        return "; ".join(rule.text for rule in self.rules)


@dataclass(frozen=True)
class Evidence:
    """The rows under check, as the view ``rows`` of a private connection, and the lake they lie in.

    Attributes
    ----------
    partitions
        Partition keys that should be stored.
    stored
        Those that are.
    foreign
        Those whose columns or types are not the contract's: their rows cannot be compared with anything.
    """

    connection: duckdb.DuckDBPyConnection
    lake: Lake
    table: Table
    settings: Settings
    partitions: Sequence[str]
    stored: Footers
    foreign: Collection[str]

    def footers(self, table: Table, partitions: Sequence[str]) -> Footers:
        """The stored ones among partitions of a table that is looked at besides the rows."""
        return self.stored if table == self.table else _footers(self.lake, table, partitions)


def asset_checks(settings: Settings) -> list[dg.AssetChecksDefinition]:
    """The checks of all tables: one step per asset, in the run that materializes it."""
    return [_definition(table, settings) for table in TABLES.values()]


def checks_of(table: Table, settings: Settings) -> tuple[Check, ...]:
    """The checks of one table, the contract first."""
    prepared = {"contract": _list_partitions, "known_at": _list_watermarks}
    checks = [
        Check(name, rules, blocking=name == "contract", prepare=prepared.get(name))
        for name, rules in rules_of(table, settings).items()
    ]
    grid = _grid(table, settings)
    if grid is not None:
        checks.append(_gap_check(grid))
    if table.name in FINDINGS:
        checks.append(_finding_check(FINDINGS[table.name]))
    return tuple(checks)


def examine(
    table: Table,
    lake: Lake,
    settings: Settings,
    partitions: Sequence[str] | None = None,
    names: Collection[str] | None = None,
) -> Iterator[dg.AssetCheckResult]:
    """Evaluate checks of one table.

    Parameters
    ----------
    table
        The contract.
    lake
        Where its partitions lie; nothing is written.
    settings
        What the bounds depend on.
    partitions
        Keys that a run has made, each of which must be stored; None: everything that is stored.
    names
        Names of checks; None: all.

    Yields
    ------
    AssetCheckResult
        One per check; the metadata of a failure counts and shows the first offending rows of every broken rule.

    Raises
    ------
    WarehouseError
        If a partition is no file of this warehouse.
    """
    contract, *others = checks_of(table, settings)
    with _evidence(table, lake, settings, partitions) as evidence:
        able = (contract,) if evidence.foreign else (contract, *others)
        chosen = [check for check in able if names is None or check.name in names]
        for check in chosen:
            if check.prepare is not None:
                check.prepare(evidence)
        violations = _violations([rule for check in chosen for rule in check.rules], evidence)
        for check in chosen:
            yield _result(check, violations, evidence)


def _definition(table: Table, settings: Settings) -> dg.AssetChecksDefinition:
    key = dg.AssetKey(table.name.split("/"))
    specs = [
        dg.AssetCheckSpec(check.name, asset=key, description=check.description, blocking=check.blocking)
        for check in checks_of(table, settings)
    ]

    @dg.multi_asset_check(
        name=f"check_{table.stage}__{table.table}", specs=specs, can_subset=True, compute_kind="duckdb"
    )
    def evaluate(
        context: dg.AssetCheckExecutionContext, warehouse: WarehouseResource
    ) -> Iterator[dg.AssetCheckResult]:
        made = None
        # A check that is run by itself has no partition: it looks at everything that is stored.
        if table.clock != "none" and (context.has_partition_key or context.has_partition_key_range):
            made = [key for key, _, _ in keys_of(table.clock, *window_of(context))]
        names = {check.name for check in context.selected_asset_check_keys}
        yield from examine(table, warehouse.lake, settings, made, names)

    return evaluate


# -- evaluation


@contextmanager
def _evidence(
    table: Table, lake: Lake, settings: Settings, partitions: Sequence[str] | None
) -> Generator[Evidence]:
    asked = lake.partitions(table) if partitions is None else partitions
    stored = _footers(lake, table, asked)
    declared = table.arrow_schema()
    foreign = [key for key, (_, file) in stored.items() if not file.schema.to_arrow_schema().equals(declared)]
    with memory_connection() as connection:
        _view(connection, "rows", table, stored)
        yield Evidence(connection, lake, table, settings, asked, stored, foreign)


def _footers(lake: Lake, table: Table, partitions: Sequence[str]) -> Footers:
    return {key: found for key in partitions if (found := lake.footer(table, key)) is not None}


def _view(connection: duckdb.DuckDBPyConnection, name: str, table: Table, stored: Footers) -> None:
    places = [_place(table, key, file) for key, (_, file) in stored.items()]
    if not places:
        connection.register(f"{name}_none", table.arrow_schema().empty_table())
        connection.execute(
            f"create view {name} as select *, '' as partition_key, null::timestamp as partition_start from {name}_none"
        )
        return
    _load(connection, f"{name}_places", places, _PLACE)
    files = dict.fromkeys(str(place["file"]) for place in places)
    listed = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
    # The hours of a compacted day share a file, in which each has row groups of its own.
    connection.execute(
        f"create view {name} as select stored.* exclude (filename, file_row_number), "
        "place.partition_key, place.partition_start "
        f"from read_parquet([{listed}], hive_partitioning = false, filename = true, file_row_number = true) as stored "
        f"join {name}_places as place on stored.filename = place.file "
        "and stored.file_row_number >= place.first_row and stored.file_row_number < place.end_row"
    )


_PLACE = {
    "file": "VARCHAR",
    "first_row": "BIGINT",
    "end_row": "BIGINT",
    "partition_key": "VARCHAR",
    "partition_start": "TIMESTAMP",
}


def _place(table: Table, key: str, file: PartitionFile) -> dict[str, object]:
    first = sum(file.metadata.row_group(number).num_rows for number in range(file.groups.start))
    return {
        "file": str(file.path),
        "first_row": first,
        "end_row": first + file.num_rows,
        "partition_key": key,
        "partition_start": None if table.clock == "none" else start_of(table.clock, key),
    }


def _load(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    rows: Sequence[Mapping[str, object]],
    types: Mapping[str, str],
) -> None:
    schema = pa.schema([(column, ARROW_TYPES[type_]) for column, type_ in types.items()])
    connection.register(f"{name}_given", pa.Table.from_pylist(list(rows), schema=schema))
    connection.execute(f"create or replace temp table {name} as from {name}_given")


def _violations(rules: Sequence[Rule], evidence: Evidence) -> dict[Rule, int]:
    counts: dict[Rule, int] = {}
    for relation in dict.fromkeys(rule.of for rule in rules):
        if relation != "partitions" and evidence.foreign:
            continue
        # One scan for all rules over a relation: it is the opening of many small files that takes time.
        together = [rule for rule in rules if rule.of == relation]
        counted = ", ".join(f"count_if(not ({rule.holds}))" for rule in together)
        found = evidence.connection.execute(f"select {counted} from {relation}").fetchall()[0]
        counts |= dict(zip(together, found, strict=True))
    return counts


def _result(check: Check, violations: Mapping[Rule, int], evidence: Evidence) -> dg.AssetCheckResult:
    broken = {rule: violations[rule] for rule in check.rules if violations.get(rule)}
    metadata: dict[str, dg.MetadataValue] = {"partitions": dg.MetadataValue.int(len(evidence.partitions))}
    for name, query in check.facts.items():
        found = evidence.connection.execute(query).to_arrow_table().to_pylist()
        if found:
            metadata[name] = _as_table(found)
    if broken:
        metadata["broken"] = _as_table(
            {"rule": rule.text, "broken by": n, "first rows": _first_rows(rule, evidence)}
            for rule, n in broken.items()
        )
    return dg.AssetCheckResult(
        passed=not broken,
        asset_key=evidence.table.name.split("/"),
        check_name=check.name,
        severity=check.severity,
        description="; ".join(f"{n} x not: {rule.text}" for rule, n in broken.items()) or None,
        metadata=metadata,
    )


def _first_rows(rule: Rule, evidence: Evidence) -> str:
    columns = order = "*"
    if rule.of == "rows":
        words = set(re.findall(r"\w+", rule.holds))
        key = evidence.table.key
        shown = [*key, *(name for name in evidence.table.column_names if name in words and name not in key)]
        columns, order = ", ".join(map(quoted, shown)), ", ".join(map(quoted, key))
    query = f"select {columns} from {rule.of} where not ({rule.holds}) order by {order} limit {_SHOWN}"
    rows = evidence.connection.execute(query).to_arrow_table().to_pylist()
    return " | ".join(", ".join(f"{name}={_short(value)}" for name, value in row.items()) for row in rows)


def _as_table(rows: Iterable[Mapping[str, object]]) -> dg.MetadataValue:
    return dg.MetadataValue.table(
        [dg.TableRecord({name: _plain(value) for name, value in row.items()}) for row in rows]
    )


def _plain(value: object) -> str | int | float | bool:
    return value if isinstance(value, str | int | float) else str(value)


def _short(value: object) -> str:
    # A fitted model as text would bury everything else.
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]} ..."


# -- what rules are compared with


def _list_partitions(evidence: Evidence) -> None:
    rows: list[dict[str, object]] = []
    for key in evidence.partitions:
        stated, file = evidence.stored.get(key, (None, None))
        rows.append(
            {
                "partition_key": key,
                "stored": file is not None,
                "as_declared": key not in evidence.foreign,
                "n_rows": file and file.num_rows,
                "n_stated": stated and stated.rows,
            }
        )
    types = {"partition_key": "VARCHAR", "stored": "BOOLEAN", "as_declared": "BOOLEAN"}
    _load(evidence.connection, "partitions", rows, types | {"n_rows": "BIGINT", "n_stated": "BIGINT"})


def _list_watermarks(evidence: Evidence) -> None:
    table, lake = evidence.table, evidence.lake
    if table.write == "merge":
        read = {key: stated.watermark for key, (stated, _) in evidence.stored.items()}
    elif table.clock == "daily" and not table.decided_later:
        footers = evidence.footers(_KLINES, evidence.partitions)
        read = {key: stated.watermark for key, (stated, _) in footers.items()}
    else:
        # A fit, a label and a report are bounded by how far the exchange has been read at all; what is made of looks at
        # markets is by the last look.
        source = TABLES["raw/symbols"] if table.name == "raw/listings" else _KLINES
        footers = evidence.footers(source, lake.partitions(source))
        newest = max((stated.watermark for stated, _ in footers.values() if stated.watermark), default=None)
        read = dict.fromkeys(evidence.partitions, newest)
    rows = [{"partition_key": key, "watermark": watermark} for key, watermark in read.items()]
    _load(evidence.connection, "watermarks", rows, {"partition_key": "VARCHAR", "watermark": "TIMESTAMP"})


# -- findings of quality


def _finding_check(finding: Finding) -> Check:
    rule, by = finding.rule, finding.by
    return Check(
        finding.name,
        (rule,),
        severity=dg.AssetCheckSeverity.WARN,
        facts={
            "findings by series": f"""
                select {by}, count(*) as n_findings, min(ts) as first, max(ts) as last
                from {rule.of} where not ({rule.holds})
                group by {by} order by n_findings desc, {by} limit 20"""
        },
    )


# -- gaps


@dataclass(frozen=True)
class _Grid:
    """Which intervals a table should hold, and whose coverage explains those that it does not hold.

    Attributes
    ----------
    source
        The raw table with the coverage.
    name, series
        Column that names a series, and the format of its name in the coverage.
    length, lag
        Length of an interval, and how long after its end it is published.
    expected
        Series that must be covered.
    present
        Condition on rows that hold something.
    possible
        Rows of ``absent`` in which the series was alive, as far as the table can tell.
    at_source
        Query of (name, ts) that the source table holds; None where the table is the source.
    """

    source: Table
    name: str
    series: str
    length: timedelta
    lag: timedelta
    expected: Callable[["Evidence"], Sequence[str]]
    present: str
    possible: str
    at_source: str | None = None


def _grid(table: Table, settings: Settings) -> _Grid | None:
    asked = series_name(settings.venue, "{}", "trade", settings.base_interval)
    trades = f"venue = '{settings.venue}' and kind = 'trade' and interval = '{settings.base_interval}'"
    if table == _KLINES:
        lives = f"(select symbol, min(ts) as first, max(ts) as last from rows where {trades} group by symbol)"
        possible = f"select absent.* from absent join {lives} using (symbol) where ts between first and last"
        base = interval_delta(settings.base_interval)
        return _Grid(_KLINES, "symbol", asked, base, timedelta(0), _markets, trades, possible)
    if table == _RASTER:
        bar = interval_delta(settings.raster_interval)
        possible = "select absent.* from absent semi join rows using (symbol, ts)"
        at_source = (
            f"select distinct symbol, time_bucket({sql_of(bar)}, ts) from base join lives using (symbol) "
            f"where {trades} and ts >= coalesce(valid_from, ts) and (valid_to is null or ts < valid_to)"
        )
        return _Grid(_KLINES, "symbol", asked, bar, timedelta(0), _markets, "has_bar", possible, at_source)
    if table == _CAPS:
        known, possible = "market_cap_usd is not null", "select * from absent"
        asked = series_name("coingecko", "{}", "market_cap", "1d")
        return _Grid(_CAPS, "coin_id", asked, DAY, PUBLICATION_LAG, _coins, known, possible)
    return None


def _markets(evidence: Evidence) -> Sequence[str]:
    return universe_symbols(WarehouseResource(folder=str(evidence.lake.folder)), evidence.settings)


def _coins(evidence: Evidence) -> Sequence[str]:
    warehouse = WarehouseResource(folder=str(evidence.lake.folder))
    known = warehouse.newest("raw/coins", by=["coin_id"])
    return coins_with_caps(known, evidence.settings, universe_symbols(warehouse, evidence.settings))


def _gap_check(grid: _Grid) -> Check:
    # Up to the watermark the source's own gaps are facts, all others are warnings.
    name = grid.name
    series = (
        f"(select {name}, cause, min(ts) as first, max(ts) as last, count(*) as n from absent group by all)"
    )
    rules = [Rule("the source has answered for every interval", "cause <> 'unanswered'", of=series)]
    if grid.at_source is not None:
        rules.append(Rule("every interval that the source holds is here", "cause <> 'lost'", of=series))
    islands = f"ts - {sql_of(grid.length)} * row_number() over (partition by {name} order by ts)"
    confirmed = f"({grid.possible}) as possible where cause = 'source'"
    return Check(
        "gaps",
        tuple(rules),
        severity=dg.AssetCheckSeverity.WARN,
        facts={
            "gaps of the source": f"""
                select {name}, min(ts) as first, max(ts) as last, count(*) as n_intervals
                from (select {name}, ts, {islands} as island from {confirmed})
                group by {name}, island order by n_intervals desc, {name}, first limit 20""",
            "gaps of the source in all": f"""
                select count(distinct {name}) as n_series, count(*) as n_intervals from {confirmed}
                having count(*) > 0""",
        },
        prepare=lambda evidence: _list_absent(grid, evidence),
    )


def _list_absent(grid: _Grid, evidence: Evidence) -> None:
    days = evidence.footers(grid.source, evidence.partitions)
    names = grid.expected(evidence)
    due: list[dict[str, object]] = []
    unanswered: list[dict[str, object]] = []
    for key, (day, _) in days.items():
        start, stop = _due(key, day, grid)
        if start == stop:
            continue
        due.append({"start": start, "stop": stop})
        covered = {item.series: item.ranges for item in day.coverage}
        unanswered += [
            {"name": name, "start": left, "stop": right}
            for name in names
            for left, right in missing_in(covered.get(grid.series.format(name), ()), start, stop)
        ]
    span = {"start": "TIMESTAMP", "stop": "TIMESTAMP"}
    _load(evidence.connection, "due", due, span)
    _load(evidence.connection, "unanswered", unanswered, {"name": "VARCHAR"} | span)
    _load(evidence.connection, "series", [{grid.name: name} for name in names], {grid.name: "VARCHAR"})
    lost = "false"
    if grid.at_source is not None:
        _view(evidence.connection, "base", grid.source, days)
        bounds = {"symbol": "VARCHAR", "valid_from": "TIMESTAMP", "valid_to": "TIMESTAMP"}
        _load(evidence.connection, "lives", lives_of(evidence.settings, _markets(evidence)), bounds)
        lost = f"({grid.name}, ts) in ({grid.at_source})"
    evidence.connection.execute(f"""
        create or replace temp table absent as
        with missing as (
            select {grid.name}, unnest(generate_series(start, stop - {sql_of(grid.length)}, {sql_of(grid.length)})) as ts
            from series cross join due
        )
        select
            {grid.name},
            ts,
            case
                when {lost} then 'lost'
                when exists (
                    select 1 from unanswered
                    where unanswered.name = missing.{grid.name}
                        and unanswered.start < missing.ts + {sql_of(grid.length)} and unanswered.stop > missing.ts
                ) then 'unanswered'
                else 'source'
            end as cause
        from missing
        anti join (select {grid.name}, ts from rows where {grid.present}) using ({grid.name}, ts)""")


def _due(key: str, day: Provenance, grid: _Grid) -> tuple[datetime, datetime]:
    start = datetime.fromisoformat(key)
    return start, max(start, min(start + DAY, (day.watermark or start) - grid.lag))
