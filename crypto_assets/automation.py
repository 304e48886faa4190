"""When things run: a sensor and schedules at the sources, one condition inside, one sensor for older days, the jobs.

Here: the decision that something is to be made. Not here: how it is made (``assets``), what follows from what
(``resources/warehouse/lineage``) and the order of a run by hand (``runs``). ``definitions.py`` imports it. Dagster reads
annotations as objects, so this module does not postpone them.
"""

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from graphlib import TopologicalSorter
from typing import Any

import dagster as dg

from crypto_assets.partitions import DAILY, DAY, HOUR, WEEK, WEEKLY, floor_of, keys_of
from crypto_assets.resources.exchange import ExchangeResource
from crypto_assets.resources.ingest import midnight_before
from crypto_assets.resources.ingest_coins import PUBLICATION_LAG
from crypto_assets.resources.order_books import compact_closed_days, remove_old_levels, unsummarised
from crypto_assets.resources.snapshots import (
    coins_with_caps,
    collected_symbols,
    kline_series,
    universe_symbols,
)
from crypto_assets.resources.sources import RetryPolicy, SourceError
from crypto_assets.resources.warehouse.io_manager import WarehouseResource
from crypto_assets.resources.warehouse.lake import hash_of, missing_in
from crypto_assets.resources.warehouse.lineage import CLOCKWORK, Lineage, Read
from crypto_assets.runs import RANGE_END, RANGE_START
from crypto_assets.schemas import Table, series_name
from crypto_assets.settings import Settings
from crypto_assets.tables import TABLES, table_of

#: Days on which the condition acts: the running one and yesterday, whose last interval comes after midnight.
RECENT_DAYS = 2
#: After this long the same thing is asked for again: what failed for a passing reason heals by itself.
PATIENCE = timedelta(hours=1)
#: UTC: CoinGecko's day is out at 00:45; what summarises the warehouse follows when the night's work is done.
HOURLY_CRON = "10 * * * *"
DAILY_CRON = "50 0 * * *"
TIDY_CRON = "30 2 * * *"
SUMMARY_CRON = {"raw": "15 * * * *", "quality": "0 3 * * *", "reports": "0 3 * * 1"}
#: Sources that tell the present.
SNAPSHOTS = tuple(dg.AssetKey(["raw", name]) for name in ("symbols", "universe", "coins"))
KLINES = dg.AssetKey(["raw", "klines"])
BOOKS = tuple(dg.AssetKey(["raw", name]) for name in ("order_books", "order_book_summary"))
_REPAIR_TAG = {"crypto_assets/why": "repair"}
_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


class Asked:
    """What was asked for and when, as a cursor; the same is asked for again only after ``PATIENCE``."""

    def __init__(self, cursor: str | None, now: datetime) -> None:
        self.now = now
        found: dict[str, list[str]] = json.loads(cursor) if cursor else {}
        # What is older may be asked for again anyway.
        self._at = {
            name: entry for name, entry in found.items() if now - datetime.fromisoformat(entry[1]) < PATIENCE
        }

    def lately(self, name: str, state: str) -> bool:
        """Whether the same was asked for in the same state a short while ago."""
        return name in self._at and self._at[name][0] == state

    def note(self, name: str, state: str) -> None:
        """Remember that something is asked for now."""
        self._at[name] = [state, self.now.isoformat()]

    @property
    def cursor(self) -> str:
        """The form in which Dagster keeps it until the next tick."""
        return json.dumps(self._at, sort_keys=True)


class Changed(dg.AutomationCondition):
    """True for partitions that do not follow from what is stored, once for each state of what they are made from.

    Decided by file metadata, so that equal content stops the chain, however it came about. New bars change everything
    below them: a day that has some is made in one run, parents first. All else goes table by table.

    Parameters
    ----------
    table
        What is made.
    lineage
        What follows from what.
    """

    def __init__(self, table: Table, lineage: Lineage) -> None:
        self.table = table
        self.lineage = lineage

    @property
    def name(self) -> str:
        """How the condition appears in the web UI."""
        return "changed"

    @property
    def description(self) -> str:
        """What it says there."""
        return "Does not follow from what is stored upstream"

    def evaluate(self, context: dg.AutomationContext) -> dg.AutomationResult:
        """Choose among the candidates."""
        asked = Asked(context.cursor, context.evaluation_time)
        candidates = context.candidate_subset
        if self.table.clock == "none":
            keys = [] if candidates.is_empty else [""]
        else:
            keys = sorted(candidates.expensively_compute_partition_keys())
        chosen: set[str] = set()
        lineage = self.lineage.again()
        for key in keys:
            state = self._state(context, lineage, key, chosen)
            if state is not None and not asked.lately(key, state):
                asked.note(key, state)
                chosen.add(key)
        if self.table.clock == "none":
            subset = candidates if chosen else context.get_empty_subset()
        else:
            subset = candidates.compute_intersection_with_partition_keys(chosen)
        return dg.AutomationResult(context, subset, cursor=asked.cursor)

    def _state(
        self, context: dg.AutomationContext, lineage: Lineage, key: str, chosen: set[str]
    ) -> str | None:
        reads = lineage.reads[self.table.name]
        followers = lineage.made_of_bars()
        if self.table.clock == "daily" and any(key in _requested(context, name) for name in followers):
            # Runs of earlier days are queued before those of later ones; what looks ahead has to wait for them.
            expected = {
                read.upstream.name: (
                    chosen if read.upstream == self.table else _requested(context, read.upstream.name)
                ).intersection(lineage.keys(self.table, read, key))
                for read in reads
                if read.upstream.clock == "daily" and read.last <= 0
            }
            if any(expected.values()) and lineage.is_ready(self.table.name, key, expected):
                new_bars = {name: lineage.change(name, key) or "" for name in followers}
                return hash_of({**lineage.inputs(self.table, key, reads), **new_bars})
        if self.table.clock == "daily" and any(
            own not in _requested(context, parent)
            for parent, own in lineage.parents_due(self.table.name, key)
        ):
            # They were asked for lately, or are about to be, and this follows once they are made.
            return None
        return lineage.change(self.table.name, key)


def _requested(context: dg.AutomationContext, name: str) -> set[str]:
    subset = context.request_subsets_by_key.get(_key(name))
    return set() if subset is None else set(subset.expensively_compute_partition_keys())


def condition_of(table: Table, lineage: Lineage) -> dg.AutomationCondition | None:
    """When an asset is made by itself: derived days and weeks where they changed, summaries by the clock, sources never.

    A fit needs no clock of its own: its week exists from Monday 00:00 on and is ready when the week before is whole. Bars
    of a week are ready when it is over, and so is asked for with the older days.
    """
    if table.name not in lineage.reads:
        return None
    condition = dg.AutomationCondition
    idle = ~condition.in_progress() & ~condition.any_deps_in_progress()
    if table.clock == "none":
        due = condition.cron_tick_passed(SUMMARY_CRON[table.stage]).since_last_handled()
        return (due & idle & Changed(table, lineage)).with_label("summarised when due")
    if table.clock == "weekly":
        if table.stage == "rollups":
            return None
        newest = condition.in_latest_time_window()
        return (newest & idle & Changed(table, lineage)).with_label("fitted when the week before is whole")
    recent = condition.in_latest_time_window(RECENT_DAYS * DAY)
    return (recent & idle & Changed(table, lineage)).with_label("applied where something changed")


def jobs() -> list[Any]:
    """One job for each clock, to be launched by hand for a day, a week or a range of them."""
    purposes = {
        "ingest": (
            "What exchange and aggregator say, for days.",
            lambda table: table.clock == "daily" and table.write == "merge",
        ),
        "collect": ("Order books as they are now, for hours.", lambda table: table.clock == "hourly"),
        "apply": (
            "Bars to holdings, for days.",
            lambda table: table.clock == "daily" and table.write == "replace",
        ),
        "fit": (
            "What is learned, for weeks.",
            lambda table: table.clock == "weekly" and table.stage != "rollups",
        ),
        "roll_up_weeks": (
            "Bars of weeks.",
            lambda table: table.clock == "weekly" and table.stage == "rollups",
        ),
        "summarise": ("Backtest, manifest, coverage and ledger.", lambda table: table.clock == "none"),
    }
    return [
        dg.define_asset_job(
            name,
            dg.AssetSelection.assets(*[_key(table.name) for table in TABLES.values() if belongs(table)]),
            description=description,
        )
        for name, (description, belongs) in purposes.items()
    ]


def market_sensor(
    settings: Settings, lineage: Lineage, status: dg.DefaultSensorStatus
) -> dg.SensorDefinition:
    """The sensor that follows the exchange: at each closed interval it requests the days that lack something of it.

    These are the running day, yesterday until its day is whole, days since the last one read, and stored days with a
    hole that a failed request left. One request for each interval: what fails is asked for again with the next.
    """

    @dg.sensor(
        name="closed_intervals",
        job_name="ingest",
        minimum_interval_seconds=60,
        default_status=status,
        description="Requests raw/klines for days that lack something of the last closed interval.",
    )
    def closed_intervals(
        context: dg.SensorEvaluationContext, exchange: ExchangeResource, warehouse: WarehouseResource
    ) -> dg.SensorResult | dg.SkipReason:
        try:
            # One attempt: the next tick is the second.
            closed = exchange.client(RetryPolicy(attempts=1)).last_closed(settings.raster_interval)
        except SourceError as error:
            return dg.SkipReason(str(error))
        # Most ticks end here: what is collected is read from every stored look at the markets.
        if context.cursor == closed.isoformat():
            return dg.SkipReason(f"what closed at {closed} UTC is already asked for")
        days = days_to_read(lineage.again(), CLOCKWORK, kline_series(warehouse, settings), closed)
        if not days:
            return dg.SkipReason(f"raw/klines is complete up to {closed} UTC")
        requests = [
            _request([KLINES], first, last, run_key=f"klines {first} {last} at {closed}")
            for first, last in ranges_of("daily", days)
        ]
        return dg.SensorResult(run_requests=requests, cursor=closed.isoformat())

    return closed_intervals


def market_data_schedules(
    settings: Settings, lineage: Lineage, status: dg.DefaultScheduleStatus
) -> list[dg.ScheduleDefinition]:
    """The schedules of what a clock has to ask for: each hour what tells only the present, each night what is published.

    What an hour tells of the present can never be asked for again: markets, coins, open interest of the last weeks.
    """
    period = settings.sources.open_interest_period or ""

    def hourly(warehouse: WarehouseResource, now: datetime) -> list[Wanted]:
        today = now.date().isoformat()
        symbols = collected_symbols(warehouse, settings)
        wanted = [(SNAPSHOTS, today, today), ((_key("raw/coin_kinds"),), today, today)]
        for name, kind, interval in (
            ("raw/funding_rates", "funding", ""),
            ("raw/open_interest", "open_interest", period),
        ):
            series = [
                series_name(settings.venue, symbol, kind, interval) for symbol in symbols if ":" in symbol
            ]
            if series:
                wanted += _lacking(lineage, name, series, now)
        return wanted

    def daily(warehouse: WarehouseResource, now: datetime) -> list[Wanted]:
        known = warehouse.newest("raw/coins", by=["coin_id"])
        coins = coins_with_caps(known, settings, universe_symbols(warehouse, settings))
        published = midnight_before(now - PUBLICATION_LAG)
        caps = [series_name("coingecko", coin, "market_cap", "1d") for coin in coins]
        wanted = _lacking(lineage, "raw/market_caps", caps, published)
        for interval in settings.sources.coin_ohlc.intervals:
            candles = [series_name("coingecko", coin, "ohlc", interval) for coin in coins]
            wanted += _lacking(lineage, "raw/coin_ohlc", candles, published)
        return wanted

    return [
        _source_schedule(
            "hourly_market_data",
            "ingest",
            HOURLY_CRON,
            status,
            "Requests today's markets, universe and coins, and funding and open interest of days that lack some.",
            hourly,
        ),
        _source_schedule(
            "daily_market_data",
            "ingest",
            DAILY_CRON,
            status,
            "Requests market caps and candles of coins for days that are published.",
            daily,
        ),
    ]


def book_schedules(settings: Settings, status: dg.DefaultScheduleStatus) -> list[dg.ScheduleDefinition]:
    """The schedule of order-book rounds and the one that keeps their files few and young; none without markets."""
    chosen = settings.sources.order_books
    if not chosen.symbols:
        return []
    minutes = chosen.every // timedelta(minutes=1)

    def running_hour(warehouse: WarehouseResource, now: datetime) -> list[Wanted]:
        ((key, _, _),) = keys_of("hourly", floor_of("hourly", now), floor_of("hourly", now) + HOUR)
        # A round that failed for one market skips its summary, which the end of the hour would leave behind.
        late = [hour for hour in unsummarised(warehouse.lake) if hour != key]
        return [(BOOKS, key, key), *((BOOKS[1:], hour, hour) for hour in late)]

    @dg.op(name="tidy_order_books", pool="order_books")
    def tidy(
        exchange: ExchangeResource, warehouse: WarehouseResource, settings: dg.ResourceParam[Settings]
    ) -> None:
        today = exchange.client().server_time().date()
        keep_days = settings.sources.order_books.keep_days
        if keep_days is not None:
            remove_old_levels(warehouse.lake, today, keep_days)
        compact_closed_days(warehouse.lake, today)

    @dg.job(
        name="tidy", description="Puts order books of closed days into one file each and removes old levels."
    )
    def tidying() -> None:
        tidy()

    return [
        _source_schedule(
            "order_books",
            "collect",
            f"*/{minutes} * * * *" if minutes < 60 else "0 * * * *",
            status,
            "Requests a look at the order books in the running hour, and its summary.",
            running_hour,
        ),
        dg.ScheduleDefinition(
            job=tidying, cron_schedule=TIDY_CRON, execution_timezone="UTC", default_status=status
        ),
    ]


#: Tables and the first and last partition that is to be made of them.
Wanted = tuple[tuple[dg.AssetKey, ...], str, str]


def _lacking(lineage: Lineage, name: str, series: Sequence[str], until: datetime) -> list[Wanted]:
    days = days_to_read(lineage.again(), table_of(name), dict.fromkeys(series), until)
    return [((_key(name),), first, last) for first, last in ranges_of("daily", days)]


def _source_schedule(
    name: str,
    job: str,
    cron: str,
    status: dg.DefaultScheduleStatus,
    description: str,
    wanted_at: Callable[[WarehouseResource, datetime], list[Wanted]],
) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=name,
        job_name=job,
        cron_schedule=cron,
        execution_timezone="UTC",
        default_status=status,
        description=description,
    )
    def ask(exchange: ExchangeResource, warehouse: WarehouseResource) -> list[dg.RunRequest] | dg.SkipReason:
        try:
            now = exchange.client().server_time()
        except SourceError as error:
            return dg.SkipReason(str(error))
        return [
            _request(
                keys, first, last, run_key=f"{' '.join(key.path[-1] for key in keys)} {first} {last} at {now}"
            )
            for keys, first, last in dict.fromkeys(wanted_at(warehouse, now))
        ]

    return ask


def repair_sensor(lineage: Lineage, status: dg.DefaultSensorStatus) -> dg.SensorDefinition:
    """The sensor for days and weeks before the recent ones: restated, repaired or never made.

    It reads what partition files say of themselves and launches, for each table whose parents are settled, the ranges
    that no longer follow. What comes out equal stops there; what comes out different shows at the next tick.
    """

    @dg.sensor(
        name="older_days",
        asset_selection=dg.AssetSelection.assets(*[_key(name) for name in lineage.reads]),
        minimum_interval_seconds=300,
        default_status=status,
        description="Launches ranges of older days and weeks that do not follow from what is stored upstream.",
    )
    def older_days(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        now = datetime.now(UTC)
        # A run that was cut off is never finished, and must not stop repairs for ever.
        busy = dg.RunsFilter(statuses=_UNFINISHED, created_after=now - DAY)
        if context.instance.get_runs(filters=busy, limit=1):
            return dg.SkipReason("runs are in progress; repairs wait until they are done")
        asked, moment = Asked(context.cursor, now), lineage.again()
        seen = hash_of({"files": moment.fingerprint(), "newest": DAILY.get_partition_keys()[-1]})
        if asked.lately("nothing", seen):
            return dg.SkipReason("nothing was stored since every older partition followed")
        found = repairs(moment)
        requests = []
        for (clock, first, last), names in found.items():
            name = f"{', '.join(names)} {first} {last}"
            end = datetime.fromisoformat(last) + DAY
            keys = [key for key, _, _ in keys_of(clock, datetime.fromisoformat(first), end)]
            state = hash_of(
                {f"{table} {key}": moment.change(table, key) or "" for table in names for key in keys}
            )
            if not asked.lately(name, state):
                asked.note(name, state)
                requests.append(_request([_key(table) for table in names], first, last, tags=_REPAIR_TAG))
        if not found:
            asked.note("nothing", seen)
        skip = (
            None if requests else "every older partition follows from what is stored, or is already asked for"
        )
        return dg.SensorResult(run_requests=requests, skip_reason=skip, cursor=asked.cursor)

    return older_days


def condition_sensor(lineage: Lineage, status: dg.DefaultSensorStatus) -> dg.SensorDefinition:
    """The sensor that evaluates the conditions; one run for each day or week, in order."""
    with warnings.catch_warnings():
        # Dagster 1.13 marks it as beta; without it a condition of our own cannot be evaluated.
        warnings.filterwarnings("ignore", message="Parameter `use_user_code_server`", category=dg.BetaWarning)
        return dg.AutomationConditionSensorDefinition(
            "conditions",
            target=dg.AssetSelection.assets(*[_key(name) for name in lineage.reads]),
            use_user_code_server=True,
            emit_backfills=False,
            minimum_interval_seconds=60,
            default_status=status,
            description="Requests recent days and this week's fits that do not follow from what is stored upstream.",
        )


def days_to_read(
    lineage: Lineage, table: Table, series: Mapping[str, datetime | None], until: datetime
) -> list[str]:
    """Days of a source that something can still be asked for, in order.

    Parameters
    ----------
    series
        Names in the coverage that are expected on every day -> the moment from which nothing is expected (None: never).
    until
        Naive UTC; what comes later is not public yet.

    Returns
    -------
    list of str
        Of the stored days those with a hole, and every day from the newest stored one, at the latest yesterday, on.
    """
    stored = lineage.lake.partitions(table)
    today = midnight_before(until)
    first = min(today - DAY, datetime.fromisoformat(stored[-1])) if stored else today - DAY
    recent = [key for key, _, _ in keys_of("daily", first, today + DAY)]
    known = set(DAILY.get_partition_keys())
    return [
        key
        for key in sorted(known.intersection([*stored, *recent]))
        if _has_hole(lineage, table, key, series, until)
    ]


def _has_hole(
    lineage: Lineage, table: Table, key: str, series: Mapping[str, datetime | None], until: datetime
) -> bool:
    start = datetime.fromisoformat(key)
    end = min(start + DAY, until)
    if start >= end:
        return False
    stored = lineage.provenance(table, key)
    if stored is None:
        return True
    covered = {item.series: item.ranges for item in stored.coverage}
    ends = {name: min(end, gone_at or end) for name, gone_at in series.items()}
    return any(missing_in(covered.get(name, ()), start, last) for name, last in ends.items() if start < last)


def repairs(lineage: Lineage) -> dict[tuple[str, str, str], list[str]]:
    """Ranges of older partitions to be made now: (clock, first, last) -> tables.

    A table waits while something it reads there is itself to be made. One that reads itself is made to the end.
    """
    older = {"daily": DAILY.get_partition_keys()[:-RECENT_DAYS], "weekly": WEEKLY.get_partition_keys()[:-1]}
    unsettled: dict[str, set[str]] = {}
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, changed in lineage.changed(in_order(lineage.reads)):
        table = table_of(name)
        waiting = _waiting(lineage, table, unsettled)
        unsettled[name] = waiting | set(changed)
        now = [key for key in changed if key not in waiting]
        if any(read.upstream.name == name for read in lineage.reads[name]) and now:
            now = [] if waiting else [key for key in lineage.lake.partitions(table) if key >= now[0]]
            now = sorted({*now, *(key for key in changed if now)})
        for first, last in ranges_of(table.clock, sorted(set(now).intersection(older.get(table.clock, ())))):
            found.setdefault((table.clock, first, last), []).append(name)
    return found


def _waiting(lineage: Lineage, table: Table, unsettled: Mapping[str, set[str]]) -> set[str]:
    reads = [read for read in lineage.reads[table.name] if unsettled.get(read.upstream.name)]
    if not reads or table.clock == "none":
        return set()
    keys = (DAILY if table.clock == "daily" else WEEKLY).get_partition_keys()
    return {
        key
        for key in keys
        if any(unsettled[read.upstream.name].intersection(lineage.keys(table, read, key)) for read in reads)
    }


def in_order(reads: Mapping[str, Iterable[Read]]) -> list[str]:
    """The derived tables, parents first."""
    parents = {
        name: sorted({read.upstream.name for read in found} & set(reads) - {name})
        for name, found in sorted(reads.items())
    }
    return list(TopologicalSorter(parents).static_order())


def ranges_of(clock: str, keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    """First and last key of each stretch of consecutive partitions.

    Examples
    --------
    >>> list(ranges_of("daily", ["2024-01-30", "2024-01-31", "2024-02-02"]))
    [('2024-01-30', '2024-01-31'), ('2024-02-02', '2024-02-02')]
    """
    step = DAY if clock == "daily" else WEEK
    first = last = None
    for key in keys:
        if last is not None and datetime.fromisoformat(key) - datetime.fromisoformat(last) > step:
            yield str(first), last
            first = None
        first = first or key
        last = key
    if last is not None:
        yield str(first), last


def _request(
    keys: Sequence[dg.AssetKey],
    first: str,
    last: str,
    *,
    run_key: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> dg.RunRequest:
    partition = first if first == last else None
    span = {} if partition else {RANGE_START: first, RANGE_END: last}
    return dg.RunRequest(
        run_key=run_key, partition_key=partition, asset_selection=[*keys], tags={**span, **(tags or {})}
    )


def _key(name: str) -> dg.AssetKey:
    return dg.AssetKey(name.split("/"))
