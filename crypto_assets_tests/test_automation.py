"""Automation on a simulated clock: real sensors and conditions, real runs, the real simulated market."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import pytest

from crypto_assets import runs
from crypto_assets.assets.labels import LOOKAHEAD_DAYS
from crypto_assets.automation import PATIENCE, in_order, ranges_of
from crypto_assets.cli import simulated_world
from crypto_assets.definitions import definitions_of, defs, lineage_of
from crypto_assets.intervals import to_ms
from crypto_assets.partitions import DAY
from crypto_assets.resources.ingest import REREAD
from crypto_assets.resources.warehouse.lake import Lake, missing_in
from crypto_assets.settings import Environment, Warehouse, current_settings
from crypto_assets.simulation.faults import Fault
from crypto_assets.simulation.server import MarketServer
from crypto_assets.simulation.world import Restatement
from crypto_assets.tables import TABLES, table_of

SATURDAY = datetime(2024, 1, 20, 22, 20)
HOUR = timedelta(hours=1)
#: Listed from the first day on.
BASES = ("ADA", "BNB", "BTC", "ETH", "SOL", "XRP")
KLINES = "raw/klines"
#: Tables of labels -> whole days after its own that a day reads.
REACH = {"labels/forward_returns": LOOKAHEAD_DAYS} | {
    f"labels/{name}": chosen.lookahead_days for name, chosen in current_settings().label_sets.items()
}
LABELS = frozenset(REACH)
FITS = frozenset(
    table.name for table in TABLES.values() if table.clock == "weekly" and table.stage != "rollups"
)
APPLIED = (
    frozenset(table.name for table in TABLES.values() if table.clock == "daily" and table.write == "replace")
    - LABELS
)


def repaired_labels(day: str) -> list[Request]:
    """What is asked for of the days before one that has just become whole: the labels that read it."""
    before = date.fromisoformat(day)
    last = (before - timedelta(days=1)).isoformat()
    together = [
        frozenset(name for name, reach in REACH.items() if reach == length) for length in set(REACH.values())
    ]
    return [
        Request("repairs", names, (before - timedelta(days=REACH[min(names)])).isoformat(), last)
        for names in sorted(together, key=min)
    ]


class Request(NamedTuple):
    """A run that somebody asked for: of which tables, for which partitions."""

    who: str
    tables: frozenset[str]
    first: str
    last: str


SNAPSHOTS = frozenset({"raw/symbols", "raw/universe", "raw/coins"})


class Orchestra:
    """What the daemon does, on the market's clock: ticks, and the runs that they ask for, one after the other.

    Parameters
    ----------
    folder
        The warehouse. Dagster's own memory starts empty: what is to be done follows from the files.
    bases
        The universe.
    """

    def __init__(
        self,
        folder: Path,
        market: MarketServer,
        *,
        exchange_url: str | None = None,
        bases: tuple[str, ...] = BASES,
    ) -> None:
        given = current_settings()
        changes = {
            "warehouse": Warehouse(folder=folder),
            "environment": Environment(
                exchange_url=exchange_url or market.url, coingecko_url=market.coingecko_url
            ),
            "universe": given.universe.model_copy(update={"symbols": bases}),
        }
        self.settings = given.model_copy(update=changes)
        self.market = market
        self.lake = Lake(folder)
        self.definitions = definitions_of(self.settings)
        self.repository = self.definitions.get_repository_def()
        self.instance = dg.DagsterInstance.ephemeral()
        self.cursors: dict[str, str | None] = {}
        self.condition_cursor: Any = None

    def load(self, now: datetime, chosen: Sequence[runs.Step] | None = None) -> None:
        """Make everything, or some steps, up to a moment by hand."""
        self.market.clock.set(now)
        steps = chosen or runs.steps(self.definitions)
        last = now.date().isoformat()
        for outcome in runs.materialize(self.definitions, self.instance, steps, last=last):
            assert outcome.success, outcome

    def at(self, now: datetime) -> list[Request]:
        """Tick and run until nobody asks for anything more; what was asked for, in order."""
        self.market.clock.set(now)
        done: list[Request] = []
        for _ in range(60):
            before = len(done)
            done += self.run("market", self.tick("closed_intervals", now).run_requests or ())
            done += self.run("conditions", self.tick_conditions(now))
            done += self.run("repairs", self.tick("older_days", now).run_requests or ())
            if len(done) == before:
                return done
        raise AssertionError(f"never quiet: {done[-6:]}")

    def tick(self, sensor: str, now: datetime) -> Any:
        """One evaluation of a sensor."""
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursors.get(sensor),
            definitions=self.definitions,
            resources={name: (self.definitions.resources or {})[name] for name in ("exchange", "warehouse")},
        )
        with dg.partition_loading_context(effective_dt=now.replace(tzinfo=UTC)):
            result = self.repository.get_sensor_def(sensor).evaluate_tick(context)
        self.cursors[sensor] = result.cursor
        return result

    def tick_schedule(self, now: datetime) -> Sequence[dg.RunRequest]:
        """One evaluation of the schedules of market data, hourly and daily."""
        self.market.clock.set(now)
        resources = self.definitions.resources or {}
        context = dg.build_schedule_context(
            instance=self.instance,
            repository_def=self.repository,
            resources={name: resources[name] for name in ("exchange", "warehouse")},
        )
        with dg.partition_loading_context(effective_dt=now.replace(tzinfo=UTC)):
            schedules = [
                self.repository.get_schedule_def(f"{clock}_market_data") for clock in ("hourly", "daily")
            ]
            return [
                request
                for schedule in schedules
                for request in schedule.evaluate_tick(context).run_requests or ()
            ]

    def tick_conditions(self, now: datetime) -> list[dg.RunRequest]:
        """One evaluation of all conditions; one run for each partition, as the condition sensor asks for them."""
        result = dg.evaluate_automation_conditions(
            self.definitions,
            self.instance,
            asset_selection=dg.AssetSelection.all(),
            evaluation_time=now.replace(tzinfo=UTC),
            cursor=self.condition_cursor,
        )
        self.condition_cursor = result.cursor
        wanted: dict[tuple[str, str], list[dg.AssetKey]] = {}
        for key in self.definitions.resolve_asset_graph().get_all_asset_keys():
            for partition in result.get_requested_partitions(key):
                clock = table_of("/".join(key.path)).clock
                wanted.setdefault((partition or "", clock), []).append(key)
        return [
            dg.RunRequest(partition_key=partition or None, asset_selection=sorted(keys))
            for (partition, _), keys in sorted(wanted.items())
        ]

    def run(self, who: str, requests: Sequence[dg.RunRequest], *, succeeds: bool = True) -> list[Request]:
        """Run what was asked for."""
        job = self.definitions.resolve_implicit_global_asset_job_def()
        made = []
        for request in requests:
            chosen = list(request.asset_selection or ())
            result = job.execute_in_process(
                asset_selection=chosen,
                partition_key=request.partition_key,
                tags=dict(request.tags),
                instance=self.instance,
                raise_on_error=succeeds,
            )
            assert result.success is succeeds
            tables = frozenset("/".join(key.path) for key in chosen)
            first = request.partition_key or request.tags.get(runs.RANGE_START, "")
            last = request.partition_key or request.tags.get(runs.RANGE_END, "")
            made.append(Request(who, tables, first, last))
        return made

    def contents(self) -> dict[tuple[str, str], str]:
        """Content hash of each stored partition of the derived tables."""
        return {
            (table.name, key): found.content_hash
            for table, key, _, found in self.lake.manifest()
            if table.write == "replace" and table.clock != "none"
        }

    def holes(self, day: str) -> dict[str, list[tuple[datetime, datetime]]]:
        """What of a whole day was never answered, by series of raw/klines."""
        stored = self.lake.provenance(table_of(KLINES), day)
        assert stored is not None
        start = datetime.fromisoformat(day)
        found = {item.series: missing_in(item.ranges, start, start + DAY) for item in stored.coverage}
        return {series: holes for series, holes in found.items() if holes}


@pytest.fixture(scope="module")
def market() -> Iterator[MarketServer]:
    with MarketServer(simulated_world(current_settings()), SATURDAY) as server:
        yield server


@pytest.fixture(scope="module")
def history(market: MarketServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("history") / "warehouse"
    Orchestra(folder, market).load(SATURDAY)
    return folder


@pytest.fixture
def orchestra(history: Path, market: MarketServer, tmp_path: Path) -> Orchestra:
    folder = tmp_path / "warehouse"
    shutil.copytree(history, folder, symlinks=True)
    market.clear_faults()
    return Orchestra(folder, market)


@pytest.mark.slow
def test_at_a_day_boundary_the_last_hour_of_the_day_before_is_not_lost(orchestra: Orchestra) -> None:
    saturday, sunday = "2024-01-20", "2024-01-21"
    assert orchestra.at(SATURDAY) == []

    assert orchestra.at(SATURDAY + HOUR) == [
        Request("market", frozenset({KLINES}), saturday, saturday),
        Request("conditions", APPLIED, saturday, saturday),
    ]
    assert orchestra.at(datetime(2024, 1, 20, 23, 50)) == []

    # Saturday's last interval has closed, nothing of Sunday has; labels read the days that are whole now.
    assert orchestra.at(datetime(2024, 1, 21, 0, 2)) == [
        Request("market", frozenset({KLINES}), saturday, saturday),
        Request("conditions", APPLIED | LABELS, saturday, saturday),
        *repaired_labels(saturday),
    ]
    last_bar = max(orchestra.lake.read(table_of("features/universe"), [saturday])["ts"].to_pylist())
    assert last_bar == datetime(2024, 1, 20, 23)

    assert orchestra.at(datetime(2024, 1, 21, 1, 1)) == [
        Request("market", frozenset({KLINES}), sunday, sunday),
        Request("conditions", APPLIED, sunday, sunday),
    ]
    assert orchestra.at(datetime(2024, 1, 21, 1, 31)) == []


@pytest.mark.slow
def test_market_caps_come_by_schedule_and_stop_where_they_change_nothing(orchestra: Orchestra) -> None:
    orchestra.at(SATURDAY + 3 * HOUR)
    now = datetime(2024, 1, 21, 1, 25)
    assert orchestra.run("schedule", orchestra.tick_schedule(now)) == [
        Request("schedule", SNAPSHOTS, "2024-01-21", "2024-01-21"),
        Request("schedule", frozenset({"raw/coin_kinds"}), "2024-01-21", "2024-01-21"),
        Request("schedule", frozenset({"raw/market_caps"}), "2024-01-20", "2024-01-20"),
    ]
    before = orchestra.contents()

    made = orchestra.at(now)

    # Saturday's caps are known from 00:45 on Sunday: nothing of Saturday changes, and its chain ends at the raster.
    assert {table for request in made for table in request.tables if request.first == "2024-01-20"} == {
        "rollups/raster"
    }
    after = orchestra.contents()
    changed = {(name, key) for name, key in before if before[name, key] != after[name, key]}
    assert ("rollups/raster", "2024-01-21") in changed
    assert {key for _, key in changed} == {"2024-01-21"}
    assert orchestra.at(now) == []
    # What was made table by table a while ago is made in one run when new bars come.
    assert orchestra.at(datetime(2024, 1, 21, 2, 2))[1:] == [
        Request("conditions", APPLIED, "2024-01-21", "2024-01-21")
    ]


@pytest.mark.slow
def test_at_a_week_boundary_fits_are_made_once_after_the_last_day_is_whole(orchestra: Orchestra) -> None:
    sunday, monday = "2024-01-21", "2024-01-22"
    # The daemon slept for a day: what is missing is asked for in one range, then made day by day.
    late = orchestra.at(datetime(2024, 1, 21, 23, 20))
    assert late[:3] == [
        Request("market", frozenset({KLINES}), "2024-01-20", sunday),
        Request("conditions", APPLIED | LABELS, "2024-01-20", "2024-01-20"),
        Request("conditions", APPLIED, sunday, sunday),
    ]
    assert not any(request.tables & FITS for request in late)

    # The week has begun, but its fits wait: Sunday's last hour is still to come.
    orchestra.market.clock.set(datetime(2024, 1, 22, 0, 0, 30))
    assert orchestra.tick_conditions(datetime(2024, 1, 22, 0, 0, 30)) == []

    assert orchestra.at(datetime(2024, 1, 22, 0, 20)) == [
        Request("market", frozenset({KLINES}), sunday, sunday),
        Request("conditions", APPLIED | LABELS, sunday, sunday),
        # Bars of the week that is over.
        Request("repairs", frozenset({"rollups/klines_1w"}), "2024-01-15", "2024-01-15"),
        *repaired_labels(sunday),
        Request("conditions", FITS, monday, monday),
    ]
    fitted = {name: orchestra.lake.provenance(table_of(name), monday) for name in FITS}

    assert orchestra.at(datetime(2024, 1, 22, 1, 20)) == [
        Request("market", frozenset({KLINES}), monday, monday),
        Request("conditions", APPLIED, monday, monday),
    ]
    # On Tuesday more of last week's labels are decided; none of that was known at the cut.
    tuesday = orchestra.at(datetime(2024, 1, 23, 1, 20))
    assert any(LABELS & request.tables for request in tuesday)
    assert not any(request.tables & FITS for request in tuesday)
    assert {name: orchestra.lake.provenance(table_of(name), monday) for name in FITS} == fitted


@pytest.mark.slow
def test_an_old_restatement_remakes_exactly_what_it_touches(orchestra: Orchestra, tmp_path: Path) -> None:
    day = datetime(2024, 1, 5)
    _restate(orchestra, day)
    assert orchestra.lake.ledger.revisions().num_rows

    made = orchestra.at(SATURDAY)

    assert made[0] == Request("repairs", frozenset({"rollups/klines"}), "2024-01-05", "2024-01-05")
    repaired = [request for request in made if request.who == "repairs"]
    reach = {
        "rollups/klines": ("2024-01-05", "2024-01-05"),
        "rollups/raster": ("2024-01-05", "2024-01-07"),
        # Two weeks, but for the days that are the condition's.
        "features/price_action": ("2024-01-05", "2024-01-18"),
        "labels/forward_returns": ("2024-01-02", "2024-01-05"),
    }
    for name, (first, last) in reach.items():
        of_table = [request for request in repaired if name in request.tables]
        assert (min(request.first for request in of_table), max(request.last for request in of_table)) == (
            first,
            last,
        ), name
    assert min(request.first for request in made) == (day - max(REACH.values()) * DAY).date().isoformat()
    assert {request.first for request in repaired if request.tables & FITS} == {"2024-01-08"}
    # The newest days and the running week are the condition's.
    assert {request.first for request in made if request.who == "conditions"} <= {
        "2024-01-15",
        "2024-01-19",
        "2024-01-20",
    }
    assert orchestra.at(SATURDAY) == []

    afresh = Orchestra(tmp_path / "afresh", orchestra.market)
    shutil.copytree(orchestra.lake.root / "raw", afresh.lake.root / "raw")
    steps = [
        step for step in runs.steps(afresh.definitions) if step.keys[0].path[0] not in ("raw", "quality")
    ]
    afresh.load(SATURDAY, steps)
    rebuilt = afresh.contents()
    assert {key for key, found in orchestra.contents().items() if rebuilt[key] != found} == set()


@pytest.mark.slow
def test_what_failed_is_asked_for_again_with_the_next_interval_or_after_a_while(orchestra: Orchestra) -> None:
    now = SATURDAY + HOUR
    orchestra.market.clock.set(now)
    orchestra.market.inject("/api/v3/klines", Fault("status", status=451), after=3)
    asked = orchestra.tick("closed_intervals", now).run_requests
    orchestra.run("market", asked, succeeds=False)
    later = now + timedelta(minutes=5)
    skipped = orchestra.tick("closed_intervals", later)
    assert not skipped.run_requests
    assert "2024-01-20" in skipped.skip_message

    first = orchestra.tick_conditions(later)
    assert first
    # Nothing came of that: the same is not asked for every minute.
    assert orchestra.tick_conditions(later + timedelta(minutes=1)) == []
    assert orchestra.tick_conditions(later + PATIENCE) == first

    assert orchestra.at(now + HOUR)[0] == Request("market", frozenset({KLINES}), "2024-01-20", "2024-01-20")
    assert orchestra.holes("2024-01-20") == {}


@pytest.mark.slow
def test_a_market_that_joins_the_universe_is_asked_for_on_every_stored_day(
    orchestra: Orchestra, market: MarketServer
) -> None:
    wider = Orchestra(orchestra.lake.folder, market, bases=(*BASES, "DOGE"))
    market.clock.set(SATURDAY)
    served = market.count("/api/v3/klines")

    asked = wider.run("market", wider.tick("closed_intervals", SATURDAY).run_requests)

    assert asked == [Request("market", frozenset({KLINES}), "2024-01-01", "2024-01-20")]
    assert market.count("/api/v3/klines") == served + 1
    assert wider.holes("2024-01-10") == {}
    assert wider.lake.read(table_of(KLINES), ["2024-01-10"], where="symbol = 'DOGE/USDT'").num_rows == 24
    assert not wider.tick("closed_intervals", SATURDAY).run_requests


def test_the_schedule_comes_to_an_end_after_a_coin_has_left_the_universe(
    market: MarketServer, tmp_path: Path
) -> None:
    caps, kinds = frozenset({"raw/market_caps"}), frozenset({"raw/coin_kinds"})
    wide = Orchestra(tmp_path / "warehouse", market)
    saturday, sunday, monday = (datetime(2024, 1, day, 1, 25) for day in (20, 21, 22))
    wide.run("schedule", wide.tick_schedule(saturday))
    # The first night maps the coins, so that the second one knows what to expect.
    wide.run("schedule", wide.tick_schedule(sunday))
    narrow = Orchestra(tmp_path / "warehouse", market, bases=BASES[1:])

    asked = narrow.run("schedule", narrow.tick_schedule(monday))

    assert asked == [
        Request("schedule", SNAPSHOTS, "2024-01-22", "2024-01-22"),
        Request("schedule", kinds, "2024-01-22", "2024-01-22"),
        Request("schedule", caps, "2024-01-21", "2024-01-21"),
    ]
    series = {day: covered_coins(narrow.lake, day) for day in ("2024-01-20", "2024-01-21")}
    assert len(series["2024-01-20"]) == len(BASES)
    assert len(series["2024-01-20"] - series["2024-01-21"]) == 1
    assert narrow.run("schedule", narrow.tick_schedule(monday + HOUR)) == asked[:2]


def covered_coins(lake: Lake, day: str) -> set[str]:
    stored = lake.provenance(table_of("raw/market_caps"), day)
    assert stored is not None
    return {item.series for item in stored.coverage if item.ranges}


def test_an_exchange_that_does_not_answer_is_skipped_and_says_why(
    history: Path, market: MarketServer
) -> None:
    unreachable = Orchestra(history, market, exchange_url="http://127.0.0.1:9")
    result = unreachable.tick("closed_intervals", SATURDAY)
    assert not result.run_requests
    assert "/api/v3/time" in result.skip_message


def test_an_empty_warehouse_begins_with_yesterday_and_today(market: MarketServer, tmp_path: Path) -> None:
    fresh = Orchestra(tmp_path / "warehouse", market)
    market.clock.set(SATURDAY)
    (asked,) = fresh.tick("closed_intervals", SATURDAY).run_requests
    assert (asked.tags[runs.RANGE_START], asked.tags[runs.RANGE_END]) == ("2024-01-19", "2024-01-20")
    assert fresh.tick_conditions(SATURDAY) == []


def test_every_derived_asset_but_bars_of_weeks_has_a_condition_and_no_source_has() -> None:
    graph = defs.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        table = table_of("/".join(key.path))
        # Bars of a week that is over are asked for with the older days.
        derived = table.write == "replace" and table.name != "rollups/klines_1w"
        assert (graph.get(key).automation_condition is not None) == derived


def test_parents_come_first(tmp_path: Path) -> None:
    reads = lineage_of(current_settings()).reads
    order = in_order(reads)
    assert set(order) == set(reads)
    for name, found in reads.items():
        for read in found:
            if read.upstream.name in reads and read.upstream.name != name:
                assert order.index(read.upstream.name) < order.index(name)


def test_consecutive_weeks_make_one_range() -> None:
    assert list(ranges_of("weekly", ["2024-01-01", "2024-01-08", "2024-01-22"])) == [
        ("2024-01-01", "2024-01-08"),
        ("2024-01-22", "2024-01-22"),
    ]
    assert list(ranges_of("daily", [])) == []


def _restate(orchestra: Orchestra, day: datetime) -> None:
    """The exchange corrects a bar of an old day, and the day is read again in full."""
    orchestra.market.clock.set(SATURDAY)
    at = to_ms(day + 5 * HOUR)
    orchestra.market.world.restate(Restatement("ETH/USDT", at, to_ms(SATURDAY), high="4000", close="3999"))
    again = dg.RunRequest(
        partition_key=day.date().isoformat(),
        asset_selection=[dg.AssetKey(KLINES.split("/"))],
        tags={REREAD: "true"},
    )
    orchestra.run("reader", [again])
