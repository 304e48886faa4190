"""Order books through the graph: what a round stores, that the past is not asked for, the schedule, and the nightly tidying."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from crypto_assets import runs
from crypto_assets.automation import BOOKS
from crypto_assets.cli import simulated_world
from crypto_assets.definitions import definitions_of
from crypto_assets.partitions import DAY, HOUR
from crypto_assets.resources.order_books import LEVELS, SUMMARY, unsummarised
from crypto_assets.resources.warehouse.lake import Lake
from crypto_assets.settings import OrderBooks, Settings, current_settings
from crypto_assets.simulation.binance import order_book
from crypto_assets.simulation.faults import Fault
from crypto_assets.simulation.server import MarketServer

NOW = datetime(2024, 2, 5, 10, 7, 30)
EVERY = timedelta(minutes=5)
SYMBOLS = ("BTC/USDT", "ETH/USDT")
N_LEVELS = 20
DEPTH = "/api/v3/depth"


def hour(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d-%H}:00"


class Desk:
    """The graph on a warehouse of its own, with two markets whose books are collected."""

    def __init__(self, folder: Path, market: MarketServer) -> None:
        self.market = market
        self.lake = Lake(folder)
        given = current_settings()
        addresses = {"exchange_url": market.url, "coingecko_url": market.coingecko_url}
        books = OrderBooks(symbols=SYMBOLS, levels=N_LEVELS, every=EVERY, keep_days=30)
        self.settings: Settings = given.model_copy(
            update={
                "warehouse": given.warehouse.model_copy(update={"folder": folder}),
                "environment": given.environment.model_copy(update=addresses),
                "sources": given.sources.model_copy(update={"order_books": books}),
            }
        )
        self.definitions = definitions_of(self.settings)
        self.instance = dg.DagsterInstance.ephemeral()

    def run(
        self, first: str, last: str | None = None, keys: Sequence[dg.AssetKey] = BOOKS
    ) -> dg.ExecuteInProcessResult:
        """One run over hours."""
        return self.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            asset_selection=list(keys),
            tags={runs.RANGE_START: first, runs.RANGE_END: last or first},
            instance=self.instance,
            raise_on_error=False,
        )

    def tick(self) -> dg.ScheduleExecutionData:
        """One evaluation of the schedule at the market's time."""
        now = datetime.fromtimestamp(self.market.clock.now_ms() / 1000, UTC)
        resources = self.definitions.resources or {}
        context = dg.build_schedule_context(
            instance=self.instance,
            repository_def=self.definitions.get_repository_def(),
            resources={name: resources[name] for name in ("exchange", "warehouse")},
        )
        with dg.partition_loading_context(effective_dt=now):
            return self.definitions.resolve_schedule_def("order_books").evaluate_tick(context)

    def asked_for(self) -> list[dg.RunRequest]:
        """The runs that the schedule asks for."""
        return list(self.tick().run_requests or ())

    def follow(self, request: dg.RunRequest) -> bool:
        """The run that the schedule asked for, in its own job; whether it succeeded."""
        assert request.partition_key is not None
        job = self.definitions.resolve_job_def("collect")
        result = job.execute_in_process(
            asset_selection=list(request.asset_selection or ()),
            partition_key=request.partition_key,
            instance=self.instance,
            raise_on_error=False,
        )
        return result.success

    def tidy(self) -> None:
        """The job of the night."""
        job = self.definitions.resolve_job_def("tidy")
        assert job.execute_in_process(instance=self.instance, resources=self.definitions.resources).success

    def n_asked(self) -> int:
        return self.market.count(DEPTH)

    def moments(self, table: str) -> list[datetime]:
        rows = self.lake.read(LEVELS if table == "levels" else SUMMARY)
        return sorted(set(rows["ts"].to_pylist()))


@pytest.fixture
def market() -> Iterator[MarketServer]:
    with MarketServer(simulated_world(current_settings()), NOW) as server:
        yield server


@pytest.fixture
def desk(tmp_path: Path, market: MarketServer) -> Desk:
    return Desk(tmp_path / "warehouse", market)


def told(result: dg.ExecuteInProcessResult, name: str) -> dict[str, object]:
    """Metadata of what was materialized of one table."""
    (found,) = [
        event.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey(["raw", name])
    ][:1]
    return {key: value.value for key, value in found.items()}


@pytest.mark.slow
def test_a_run_in_the_running_hour_sees_each_book_once_and_summarises_it(desk: Desk) -> None:
    result = desk.run(hour(NOW))
    assert result.success
    metadata = told(result, "order_books")
    assert (metadata["status"], metadata["n_hours_present"], metadata["n_hours_past"]) == ("seen", 1, 0)
    assert desk.n_asked() == len(SYMBOLS)
    rows = desk.lake.read(LEVELS, [hour(NOW)]).to_pandas()
    assert len(rows) == 2 * N_LEVELS * len(SYMBOLS)
    world, now_ms = desk.market.world, desk.market.clock.now_ms()
    for symbol in SYMBOLS:
        (market,) = [one for one in world.markets(now_ms) if one.symbol == symbol]
        sides = dict(zip(("bid", "ask"), order_book(world, market, N_LEVELS, now_ms), strict=True))
        for side, levels in sides.items():
            stored = rows[(rows["symbol"] == symbol) & (rows["side"] == side)].sort_values("level")
            scaled = [
                [round(price * 1e8), round(amount * 1e8)]
                for price, amount in zip(stored["price"], stored["amount_base"], strict=True)
            ]
            assert scaled == levels.tolist(), (symbol, side)
    summary = desk.lake.read(SUMMARY, [hour(NOW)]).to_pandas()
    assert summary["symbol"].tolist() == list(SYMBOLS)
    assert set(summary["status"]) == {"ok"}
    best = rows[(rows["side"] == "bid") & (rows["level"] == 0)].set_index("symbol")["price"]
    assert summary.set_index("symbol")["best_bid"].to_dict() == best.to_dict()
    assert not unsummarised(desk.lake)


@pytest.mark.slow
def test_a_round_is_looked_at_once_and_the_next_one_is_added(desk: Desk) -> None:
    desk.run(hour(NOW))
    first = [desk.lake.read(table) for table in (LEVELS, SUMMARY)]
    desk.market.clock.set(NOW + timedelta(minutes=2))
    assert desk.run(hour(NOW)).success
    assert desk.n_asked() == len(SYMBOLS)
    assert [desk.lake.read(table) for table in (LEVELS, SUMMARY)] == first
    desk.market.clock.set(NOW + EVERY)
    assert desk.run(hour(NOW)).success
    assert desk.n_asked() == 2 * len(SYMBOLS)
    assert desk.moments("levels") == desk.moments("summary") == [NOW, NOW + EVERY]


@pytest.mark.slow
def test_hours_of_the_past_are_typed_empties_that_say_so_and_ask_nothing(desk: Desk) -> None:
    first, last = hour(NOW - 3 * HOUR), hour(NOW - HOUR)
    for _ in range(2):
        result = desk.run(first, last)
        assert result.success
        metadata = told(result, "order_books")
        assert metadata["status"] == "past: a book tells only the present"
        assert (metadata["n_hours_past"], metadata["n_hours_present"]) == (3, 0)
        assert desk.n_asked() == 0
    for table in (LEVELS, SUMMARY):
        assert desk.lake.partitions(table) == [hour(NOW - n * HOUR) for n in (3, 2, 1)]
        assert desk.lake.read(table).schema.equals(table.arrow_schema(), check_metadata=False)
        assert desk.lake.read(table).num_rows == 0
    # Nothing there is ever due again.
    assert not unsummarised(desk.lake)
    (request,) = desk.asked_for()
    assert (request.partition_key, list(request.asset_selection or ())) == (hour(NOW), list(BOOKS))


@pytest.mark.slow
def test_a_range_up_to_the_running_hour_fills_that_one_alone(desk: Desk) -> None:
    result = desk.run(hour(NOW - 2 * HOUR), hour(NOW))
    metadata = told(result, "order_books")
    assert (metadata["status"], metadata["n_hours_past"], metadata["n_hours_present"]) == ("seen", 2, 1)
    rows = {key: desk.lake.read(LEVELS, [key]).num_rows for key in desk.lake.partitions(LEVELS)}
    assert rows == {
        hour(NOW - 2 * HOUR): 0,
        hour(NOW - HOUR): 0,
        hour(NOW): 2 * N_LEVELS * len(SYMBOLS),
    }


@pytest.mark.slow
def test_the_schedule_asks_for_the_running_hour_and_for_summaries_that_are_late(desk: Desk) -> None:
    schedule = desk.definitions.resolve_schedule_def("order_books")
    assert (schedule.cron_schedule, schedule.job_name) == ("*/5 * * * *", "collect")
    # One book does not come: the other one is stored, and nothing is summarised.
    desk.market.inject(DEPTH, Fault("status", status=400))
    (request,) = desk.asked_for()
    assert not desk.follow(request)
    rows = desk.lake.read(LEVELS, [hour(NOW)])
    assert rows.num_rows == 2 * N_LEVELS
    assert not desk.lake.partitions(SUMMARY)

    desk.market.clock.set(NOW + HOUR)
    present, late = desk.asked_for()
    assert (present.partition_key, list(present.asset_selection or ())) == (hour(NOW + HOUR), list(BOOKS))
    assert (late.partition_key, list(late.asset_selection or ())) == (hour(NOW), [BOOKS[1]])
    assert desk.follow(present)
    assert desk.follow(late)
    assert desk.moments("summary") == [NOW, NOW + HOUR]
    assert desk.n_asked() == 2 * len(SYMBOLS)
    desk.market.clock.set(NOW + HOUR + EVERY)
    assert [request.partition_key for request in desk.asked_for()] == [hour(NOW + HOUR)]


def test_the_schedule_skips_a_round_while_the_exchange_does_not_answer(desk: Desk) -> None:
    desk.market.inject("/api/v3/time", Fault("status", status=403))
    data = desk.tick()
    assert not data.run_requests
    assert "403" in (data.skip_message or "")
    assert [request.partition_key for request in desk.asked_for()] == [hour(NOW)]


@pytest.mark.slow
def test_the_night_puts_closed_days_into_one_file_and_removes_old_levels_alone(desk: Desk) -> None:
    for moment in (NOW, NOW + HOUR):
        desk.market.clock.set(moment)
        assert desk.run(hour(moment)).success
    before = {table.name: desk.lake.read(table) for table in (LEVELS, SUMMARY)}
    desk.tidy()
    files = {desk.lake.path(table, hour(NOW)) for table in (LEVELS, SUMMARY)}

    desk.market.clock.set(NOW + DAY)
    desk.tidy()
    for table in (LEVELS, SUMMARY):
        one, other = (desk.lake.path(table, hour(moment)) for moment in (NOW, NOW + HOUR))
        assert one == other
        assert one not in files
        assert desk.lake.read(table) == before[table.name]

    desk.market.clock.set(NOW + 31 * DAY)
    desk.tidy()
    assert desk.lake.read(LEVELS).num_rows == 0
    assert desk.lake.read(SUMMARY) == before[SUMMARY.name]
