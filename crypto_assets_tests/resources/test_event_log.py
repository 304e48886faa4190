"""The batching event log against Dagster's own: the same story told to Dagster, in far fewer commits.

Dagster reads the annotations of the asset below as objects, so this module does not postpone them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import Engine, event

from crypto_assets.local import prepare_home
from crypto_assets.resources.event_log import BatchingEventLog

KEY = dg.AssetKey("days")
DAYS = dg.DailyPartitionsDefinition(start_date="2024-01-01", end_date="2024-03-01")
N_DAYS = 60
RANGE = {
    "dagster/asset_partition_range_start": "2024-01-01",
    "dagster/asset_partition_range_end": "2024-02-29",
}


@dg.asset(
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version="1",
    check_specs=[dg.AssetCheckSpec("sound", asset="days")],
)
def days(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    for key in context.partition_keys:
        context.add_asset_metadata({"day": key}, asset_key=KEY, partition_key=key)
    return dg.MaterializeResult(check_results=[dg.AssetCheckResult(passed=True, check_name="sound")])


@pytest.fixture(autouse=True)
def batches_of_25(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", "25")


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    home = tmp_path / "ours"
    home.mkdir()
    prepare_home(home)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with dg.DagsterInstance.get() as instance:
        yield instance


@pytest.fixture
def stock(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    home = tmp_path / "stock"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        yield instance


def run_days(instance: dg.DagsterInstance, tags: dict[str, str] = RANGE) -> tuple[str, int]:
    """Materialize and return the run and the number of commits that it took."""
    commits: list[Any] = []

    def count(connection: Any) -> None:
        commits.append(connection)

    event.listen(Engine, "commit", count)
    try:
        run_id = dg.materialize([days], instance=instance, tags=tags).run_id
    finally:
        event.remove(Engine, "commit", count)
    return run_id, len(commits)


def story(instance: dg.DagsterInstance, run_id: str) -> dict[str, Any]:
    """All that Dagster can be asked about the asset and the run, without times and identifiers."""
    records = instance.fetch_materializations(KEY, limit=1000, ascending=True).records
    (asset,) = instance.get_asset_records([KEY])
    last = asset.asset_entry.last_materialization_record
    return {
        "log": [
            (entry.dagster_event_type, entry.step_key, entry.dagster_event and entry.dagster_event.partition)
            for entry in instance.all_logs(run_id)
        ],
        "materialized": [
            (
                record.partition_key,
                record.asset_materialization and record.asset_materialization.metadata,
                sorted((record.asset_materialization and record.asset_materialization.tags) or {}),
            )
            for record in records
        ],
        "partitions": sorted(instance.get_materialized_partitions(KEY)),
        "last": last and last.partition_key,
        "last_is_the_newest": last is not None and records[-1].storage_id == last.storage_id,
        "last_run_is_this": asset.asset_entry.last_run_id == run_id,
        "tags": [sorted(tags) for tags in instance.get_event_tags_for_asset(KEY)],
    }


def test_the_home_of_a_warehouse_names_it(ours: dg.DagsterInstance) -> None:
    assert isinstance(ours.event_log_storage, BatchingEventLog)


def test_dagster_is_told_the_same_as_by_its_own_log(
    ours: dg.DagsterInstance, stock: dg.DagsterInstance
) -> None:
    told = story(ours, run_days(ours)[0])
    assert told == story(stock, run_days(stock)[0])
    assert len(told["partitions"]) == N_DAYS
    assert told["last"] == "2024-02-29"


def test_a_second_run_over_some_days_is_the_newest_for_them_and_only_them(
    ours: dg.DagsterInstance, stock: dg.DagsterInstance
) -> None:
    some = RANGE | {"dagster/asset_partition_range_end": "2024-01-10"}
    told = []
    for instance in (ours, stock):
        first, _ = run_days(instance)
        second, _ = run_days(instance, some)
        newest = instance.event_log_storage.get_latest_storage_id_by_partition(
            KEY, dg.DagsterEventType.ASSET_MATERIALIZATION
        )
        runs = {
            record.storage_id: record.run_id
            for record in instance.fetch_materializations(KEY, limit=1000).records
        }
        told.append({day: {first: "first", second: "second"}[runs[at]] for day, at in newest.items()})
    assert told[0] == told[1]
    assert sum(name == "second" for name in told[0].values()) == 10
    assert len(told[0]) == N_DAYS


def test_a_batch_takes_two_commits_instead_of_two_for_each_event(
    ours: dg.DagsterInstance, stock: dg.DagsterInstance
) -> None:
    saved = run_days(stock)[1] - run_days(ours)[1]
    # 60 days are planned and then materialized in three batches each.
    assert saved >= 2 * 2 * (N_DAYS - 3)
