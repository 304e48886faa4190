"""Asset checks: what must hold for the rows of every table, in SQL over the partitions of the run that made them.

Here: the rules (contract, known_at, prices, gaps, sums, bounds), how they are evaluated, and the factory that makes
Dagster checks of them. Not here: refusing frames before they are stored (``resources/warehouse/conform``).
``definitions.py`` wires the factory; tests and the command line may call ``examine``.

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

from crypto_assets.intervals import INTERVAL_MS, interval_delta
from crypto_assets.partitions import DAY, keys_of, window_of
from crypto_assets.resources.dbt_assets import lives_of
from crypto_assets.resources.ingest import PUBLICATION_LAG
from crypto_assets.resources.snapshots import coins_with_caps
from crypto_assets.resources.warehouse.io_manager import WarehouseResource
from crypto_assets.resources.warehouse.lake import Lake, Provenance, memory_connection, missing_in
from crypto_assets.schemas import ARROW_TYPES, TABLES, Table
from crypto_assets.settings import Settings

_SHOWN = 5
_KLINES, _RASTER, _CAPS = (TABLES[name] for name in ("raw/klines", "rollups/raster", "raw/market_caps"))
#: Sums of weights are exact to rounding; solvers keep bounds to their own tolerance, which is cut before storing.
_EXACT = 1e-9


@dataclass(frozen=True)
class Rule:
    """A condition that every row of a relation must meet; as in SQL's CHECK, unknown counts as met.

    Attributes
    ----------
    text
        The rule in words: what the user reads when it is broken.
    holds
        The condition.
    of
        The relation: ``rows`` (the rows under check with their ``partition_key``), a table that the check prepares, or
        a query in parentheses.
    """

    text: str
    holds: str
    of: str = "rows"


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
        Those that are, with what the files say of themselves.
    n_rows
        Those that are, with how many rows their files hold.
    foreign
        Those whose columns or types are not the contract's: their rows cannot be compared with anything.
    """

    connection: duckdb.DuckDBPyConnection
    lake: Lake
    table: Table
    settings: Settings
    partitions: Sequence[str]
    stored: Mapping[str, Provenance]
    n_rows: Mapping[str, int]
    foreign: Collection[str]


def asset_checks(settings: Settings) -> list[dg.AssetChecksDefinition]:
    """The checks of all tables: one step per asset, in the run that materializes it."""
    return [_definition(table, settings) for table in TABLES.values()]


def checks_of(table: Table, settings: Settings) -> tuple[Check, ...]:
    """The checks of one table, the contract first."""
    rules = {
        "known_at": _known_at_rules(table, settings),
        "prices": _price_rules(table),
        "sums_to_one": _sum_rules(table),
        "bounds": _bound_rules(table, settings),
    }
    checks = [Check("contract", _contract_rules(table), blocking=True, prepare=_list_partitions)]
    for name, found in rules.items():
        if found:
            prepare = _list_watermarks if name == "known_at" else None
            checks.append(Check(name, found, prepare=prepare))
    grid = _grid(table, settings)
    return (*checks, _gap_check(grid)) if grid else tuple(checks)


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
    footers = {key: found for key in asked if (found := lake.footer(table, key)) is not None}
    stored = {key: provenance for key, (provenance, _) in footers.items()}
    n_rows = {key: file.num_rows for key, (_, file) in footers.items()}
    declared = table.arrow_schema()
    foreign = [
        key for key, (_, file) in footers.items() if not file.schema.to_arrow_schema().equals(declared)
    ]
    with memory_connection() as connection:
        _view(connection, "rows", lake, table, asked)
        yield Evidence(connection, lake, table, settings, asked, stored, n_rows, foreign)


def _stored(lake: Lake, table: Table, partitions: Sequence[str]) -> dict[str, Provenance]:
    found = {key: lake.provenance(table, key) for key in partitions}
    return {key: provenance for key, provenance in found.items() if provenance is not None}


def _view(
    connection: duckdb.DuckDBPyConnection, name: str, lake: Lake, table: Table, partitions: Sequence[str]
) -> None:
    stored = set(lake.partitions(table))
    files = [str(lake.path(table, key)) for key in partitions if key in stored]
    if not files:
        connection.register(f"{name}_none", table.arrow_schema().empty_table())
        connection.execute(f"create view {name} as select *, '' as partition_key from {name}_none")
        return
    listed = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
    connection.execute(
        f"create view {name} as select * exclude (filename), "
        r"regexp_extract(filename, 'date=([^/]+)/[^/]+$', 1) as partition_key "
        f"from read_parquet([{listed}], hive_partitioning = false, filename = true)"
    )


def _load(
    evidence: Evidence, name: str, rows: Sequence[Mapping[str, object]], types: Mapping[str, str]
) -> None:
    schema = pa.schema([(column, ARROW_TYPES[type_]) for column, type_ in types.items()])
    evidence.connection.register(f"{name}_given", pa.Table.from_pylist(list(rows), schema=schema))
    evidence.connection.execute(f"create or replace temp table {name} as from {name}_given")


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
        columns, order = ", ".join(map(_quoted, shown)), ", ".join(map(_quoted, key))
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


def _quoted(name: str) -> str:
    return f'"{name}"'


# -- contract


def _contract_rules(table: Table) -> tuple[Rule, ...]:
    key = ", ".join(map(_quoted, table.key))
    rules = [
        Rule("every partition of the run is stored", "stored", of="partitions"),
        Rule("columns and types are those of the contract", "as_declared", of="partitions"),
        Rule("a file holds as many rows as it states", "n_rows = n_stated", of="partitions"),
        Rule(
            "a key occurs once", "n_rows = 1", of=f"(select {key}, count(*) as n_rows from rows group by all)"
        ),
    ]
    for column in table.columns:
        if column.required or column.name in table.key:
            rules.append(Rule(f"{column.name} is present", f"{_quoted(column.name)} is not null"))
        if column.type == "DOUBLE":
            rules.append(Rule(f"{column.name} is finite", f"isfinite({_quoted(column.name)})"))
    moment = table.time_column
    if table.clock != "none":
        start, days = "cast(partition_key as timestamp)", {"daily": 1, "weekly": 7}[table.clock]
        inside = f"{moment} >= {start} and {moment} < {start} + interval {days} day"
        rules.append(Rule(f"{moment} lies in its partition", inside))
    if {moment, "known_at"} <= set(table.column_names):
        rules.append(Rule(f"known_at is not before {moment}", f"known_at >= {moment}"))
    return tuple(rules)


def _list_partitions(evidence: Evidence) -> None:
    rows = [
        {
            "partition_key": key,
            "stored": key in evidence.stored,
            "as_declared": key not in evidence.foreign,
            "n_rows": evidence.n_rows.get(key),
            "n_stated": evidence.stored[key].rows if key in evidence.stored else None,
        }
        for key in evidence.partitions
    ]
    types = {"partition_key": "VARCHAR", "stored": "BOOLEAN", "as_declared": "BOOLEAN"}
    _load(evidence, "partitions", rows, types | {"n_rows": "BIGINT", "n_stated": "BIGINT"})


# -- known_at


def _known_at_rules(table: Table, settings: Settings) -> tuple[Rule, ...]:
    if "known_at" not in table.column_names:
        return ()
    bar = _sql(interval_delta(settings.raster_interval))
    published = f"interval 1 day + {_sql(PUBLICATION_LAG)}"
    lengths = ", ".join(f"'{name}': {length}" for name, length in INTERVAL_MS.items())
    interval = f"to_milliseconds(map {{{lengths}}}[interval])"
    # The words of the contract, so that no rule can be stated there without a form here.
    exactly = {
        "end of the interval": f"ts + {interval}",
        "max of what it joins: end of the interval": f"ts + {bar}",
        "end of the bar": f"ts + {bar}",
        "end of the day": "ts + interval 1 day",
        "end of the day + publication lag (00:45 UTC)": f"ts + {published}",
        "the cut": "week",
        "decision_at": "decision_at",
    }
    if table.known_at == "when seen":
        rules = [Rule("known_at lies in the day of the snapshot", "date_trunc('day', known_at) = ts")]
    elif table.known_at == "when the label is decided; NULL before":
        rules = _label_rules(table, settings)
    else:
        # What cannot be computed, such as the end of an unknown interval, is not met.
        holds = f"coalesce(known_at = {exactly[table.known_at]}, false)"
        rules = [Rule(f"known_at is: {table.known_at}", holds)]
    if table == _RASTER:
        public = f"known_at >= market_cap_ts + {published}"
        rules.append(Rule("a market cap was public when the row was known", public))
    newest = "(select partition_key, max(known_at) as newest, any_value(watermark) as watermark from rows "
    newest += "left join watermarks using (partition_key) group by partition_key)"
    within = "newest is null or coalesce(newest <= watermark, false)"
    rules.append(Rule("no row is known after the watermark", within, of=newest))
    return tuple(rules)


def _label_rules(table: Table, settings: Settings) -> list[Rule]:
    bar, horizon, silence = (
        _sql(length)
        for length in (
            interval_delta(settings.raster_interval),
            settings.labels.horizon,
            settings.costs.death_after,
        )
    )
    values = [name for name in table.decided_later if name not in ("known_at", "outcome")]
    nothing = " and ".join(f"{name} is null" for name in values)
    return [
        Rule("outcome and known_at are decided together", "(known_at is null) = (outcome is null)"),
        Rule("an undecided label holds no value", f"known_at is not null or ({nothing})"),
        Rule("a label is decided after its own bar", f"known_at > ts + {bar}"),
        Rule(
            "a filled label is known when its exit bar ends, a holding period after its fill",
            f"outcome <> 'filled' or (known_at = exit_ts + {bar} and fill_ts > ts and exit_ts >= fill_ts + {horizon})",
        ),
        Rule(
            "a death is known after the declared silence",
            f"outcome <> 'death' or known_at = exit_ts + {bar} + {silence}",
        ),
    ]


def _list_watermarks(evidence: Evidence) -> None:
    table, lake = evidence.table, evidence.lake
    if table.write == "merge":
        sources = evidence.stored
    elif table.clock == "daily" and not table.decided_later:
        sources = _stored(lake, _KLINES, evidence.partitions)
    else:
        # A fit, a label and a report are bounded by how far the exchange has been read at all.
        days = _stored(lake, _KLINES, lake.partitions(_KLINES))
        newest = max(days.values(), key=lambda day: (day.watermark is not None, day.watermark), default=None)
        sources = dict.fromkeys(evidence.partitions, newest) if newest else {}
    rows = [{"partition_key": key, "watermark": found.watermark} for key, found in sources.items()]
    _load(evidence, "watermarks", rows, {"partition_key": "VARCHAR", "watermark": "TIMESTAMP"})


def _sql(length: timedelta) -> str:
    return f"to_milliseconds({length // timedelta(milliseconds=1)})"


# -- prices


def _price_rules(table: Table) -> tuple[Rule, ...]:
    if "high" not in table.column_names:
        return ()
    amounts = [name for name in _AMOUNTS if name in table.column_names]
    rules = {
        "low <= open, close <= high": "low <= least(open, close) and high >= greatest(open, close)",
        "prices are positive": "low > 0",
        "no amount is negative": " and ".join(f"{name} >= 0" for name in amounts),
        "takers bought no more than was traded": "taker_buy_base <= volume_base",
    }
    if table == _RASTER:
        age = "has_bar = (bar_age = 0) and bar_age >= 0"
        cap = "(market_cap_usd is null) = (market_cap_ts is null) and coalesce(market_cap_usd > 0, true)"
        rules |= {
            "a row with a bar has all four prices": f"not has_bar or ({_ALL_PRICES})",
            "a row without a bar has no price": "has_bar or coalesce(open, high, low, close) is null",
            "bar_age is 0 where there is a bar, and only there": age,
            "a market cap is positive and has its day": cap,
        }
    else:
        rules["a bar has all four prices"] = _ALL_PRICES
    return _of_rows(rules)


_AMOUNTS = ("volume_base", "volume_quote", "turnover_quote", "n_trades", "taker_buy_base", "taker_buy_quote")
_ALL_PRICES = "open is not null and high is not null and low is not null and close is not null"


def _of_rows(rules: Mapping[str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(text, holds) for text, holds in rules.items())


# -- sums and bounds


def _sum_rules(table: Table) -> tuple[Rule, ...]:
    moment, columns, condition = _SUMMED.get(table.name, ("", (), ""))
    return tuple(
        Rule(
            f"{column} sums to one in every {moment}",
            f"abs(total - 1) <= {_EXACT}",
            of=f"(select {moment}, sum({column}) as total from rows where {condition} group by {moment})",
        )
        for column in columns
    )


_SUMMED: dict[str, tuple[str, tuple[str, ...], str]] = {
    "weights/alpha_weights": ("week", ("weight",), "status = 'ok'"),
    "holdings/candidates": ("decision_at", ("w_mkt",), "w_mkt is not null"),
    "holdings/optimal_holdings": ("decision_at", ("weight_frac", "weight_before_frac"), "true"),
}


def _bound_rules(table: Table, settings: Settings) -> tuple[Rule, ...]:
    rules = _of_rows(_BOUNDS.get(table.name, {}))
    return (*rules, *_decision_rules(settings)) if table.name == "holdings/optimal_holdings" else rules


_BOUNDS: dict[str, dict[str, str]] = {
    "features/universe": {
        "a row is eligible, or says why not": "eligible = (reason = 'eligible')",
        "history and turnover are not negative": "history_days >= 0 and turnover_median_30d_quote >= 0",
    },
    "features/technical": {
        "volatility is not negative": "volatility_24h_log >= 0 and volatility_168h_log >= 0",
        "the true range is not negative": "atr_14h_frac >= 0",
        "the strength index lies in 0 to 100": "rsi_14h between 0 and 100",
        "the share of taker buys lies in 0 to 1": "taker_buy_24h_frac between 0 and 1",
    },
    "labels/forward_returns": {"nothing loses more than all": "forward_return_frac >= -1"},
    "weights/alpha_weights": {
        "a weight stands where the fit is ok, and only there": "(status = 'ok') = (weight is not null)",
        "a weight lies in 0 to 1": "weight between 0 and 1",
    },
    "predictions/models": {
        "a fit that is ok has its model": "status <> 'ok' or (model_text is not null and model_hash is not null)",
        "the area under the curve lies in 0 to 1": "auc between 0 and 1",
    },
    "predictions/scores": {"a probability lies in 0 to 1": "probability between 0 and 1"},
    "signals/ema_cross": {
        "the state is -1, 0 or 1": "state in (-1, 0, 1)",
        "the signal decays from the state towards 0": "abs(signal) <= 1 and signal * state >= 0",
    },
    "signals/thresholds": {
        "a threshold lies in 0 to 1": "buy_threshold between 0 and 1 and sell_threshold between 0 and 1",
        "a rule does not buy below where it sells": "buy_threshold >= sell_threshold",
    },
    "signals/trading_signals": {"the signal is -1, 0 or 1": "signal in (-1, 0, 1)"},
    "holdings/candidates": {
        "a share in the prior lies in 0 to 1": "w_mkt between 0 and 1",
        "the eligible alone have a share": "eligible or w_mkt is null",
        "risk is positive": "sigma_frac > 0",
    },
    "holdings/view_fits": {
        "a fit that is ok has its confidence, no other has": "(status = 'ok') = (confidence is not null)",
        "confidence lies between 0 and 1": "confidence > 0 and confidence < 1",
    },
    "holdings/views": {"confidence lies between 0 and 1": "confidence > 0 and confidence < 1"},
    "holdings/optimal_holdings": {
        "a weight lies in 0 to 1": "weight_frac between 0 and 1 and weight_before_frac between 0 and 1",
    },
    "reports/portfolio_backtest": {
        "equity is not negative": "equity >= 0",
        "turnover and fees are not negative": "turnover_frac >= 0 and fee_frac >= 0",
    },
}


def _decision_rules(settings: Settings) -> tuple[Rule, ...]:
    cap = settings.portfolio.max_weight
    cash = f"symbol = '{settings.universe.quote}'"
    # Coins on offer have a share in the prior, 0 included; those that are only sold have none.
    decisions = f"""(
        select
            decision_at,
            any_value(status) as status,
            count(distinct status) as n_status,
            count_if({cash}) as n_cash,
            nullif(count_if(weight_prior_frac is not null and not ({cash})), 0) as n_coins,
            max(weight_frac) filter (not ({cash})) as largest
        from rows group by decision_at)"""
    # Where no solution was found, drifted weights are kept as they are.
    within = f"status = 'infeasible_kept_drifted' or largest <= greatest({cap}, 1 / n_coins) + {_EXACT}"
    return (
        Rule(f"no coin exceeds the cap of {cap:g}, or 1/n if that is more", within, of=decisions),
        Rule("a decision holds cash once and has one status", "n_cash = 1 and n_status = 1", of=decisions),
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
    asked = f"{settings.venue}|{{}}|{settings.base_interval}"
    trades = f"kind = 'trade' and interval = '{settings.base_interval}'"
    if table == _KLINES:
        lives = f"(select symbol, min(ts) as first, max(ts) as last from rows where {trades} group by symbol)"
        possible = f"select absent.* from absent join {lives} using (symbol) where ts between first and last"
        base = interval_delta(settings.base_interval)
        return _Grid(_KLINES, "symbol", asked, base, timedelta(0), _markets, trades, possible)
    if table == _RASTER:
        bar = interval_delta(settings.raster_interval)
        possible = "select absent.* from absent semi join rows using (symbol, ts)"
        at_source = (
            f"select distinct symbol, time_bucket({_sql(bar)}, ts) from base join lives using (symbol) "
            f"where {trades} and ts >= coalesce(valid_from, ts) and (valid_to is null or ts < valid_to)"
        )
        return _Grid(_KLINES, "symbol", asked, bar, timedelta(0), _markets, "has_bar", possible, at_source)
    if table == _CAPS:
        known, possible = "market_cap_usd is not null", "select * from absent"
        return _Grid(_CAPS, "coin_id", "coingecko|{}|1d", DAY, PUBLICATION_LAG, _coins, known, possible)
    return None


def _markets(evidence: Evidence) -> Sequence[str]:
    return evidence.settings.universe.markets


def _coins(evidence: Evidence) -> Sequence[str]:
    warehouse = WarehouseResource(folder=str(evidence.lake.folder))
    return coins_with_caps(warehouse.newest("raw/coins", by=["coin_id"]), evidence.settings)


def _gap_check(grid: _Grid) -> Check:
    # Up to the watermark the source's own gaps are facts, all others are warnings.
    name = grid.name
    series = (
        f"(select {name}, cause, min(ts) as first, max(ts) as last, count(*) as n from absent group by all)"
    )
    rules = [Rule("the source has answered for every interval", "cause <> 'unanswered'", of=series)]
    if grid.at_source is not None:
        rules.append(Rule("every interval that the source holds is here", "cause <> 'lost'", of=series))
    islands = f"ts - {_sql(grid.length)} * row_number() over (partition by {name} order by ts)"
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
    days = _stored(evidence.lake, grid.source, evidence.partitions)
    names = grid.expected(evidence)
    due: list[dict[str, object]] = []
    unanswered: list[dict[str, object]] = []
    for key, day in days.items():
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
    _load(evidence, "due", due, span)
    _load(evidence, "unanswered", unanswered, {"name": "VARCHAR"} | span)
    _load(evidence, "series", [{grid.name: name} for name in names], {grid.name: "VARCHAR"})
    lost = "false"
    if grid.at_source is not None:
        _view(evidence.connection, "base", evidence.lake, grid.source, evidence.partitions)
        bounds = {"symbol": "VARCHAR", "valid_from": "TIMESTAMP", "valid_to": "TIMESTAMP"}
        _load(evidence, "lives", lives_of(evidence.settings), bounds)
        lost = f"({grid.name}, ts) in ({grid.at_source})"
    evidence.connection.execute(f"""
        create or replace temp table absent as
        with missing as (
            select {grid.name}, unnest(generate_series(start, stop - {_sql(grid.length)}, {_sql(grid.length)})) as ts
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
                        and unanswered.start < missing.ts + {_sql(grid.length)} and unanswered.stop > missing.ts
                ) then 'unanswered'
                else 'source'
            end as cause
        from missing
        anti join (select {grid.name}, ts from rows where {grid.present}) using ({grid.name}, ts)""")


def _due(key: str, day: Provenance, grid: _Grid) -> tuple[datetime, datetime]:
    start = datetime.fromisoformat(key)
    return start, max(start, min(start + DAY, (day.watermark or start) - grid.lag))
