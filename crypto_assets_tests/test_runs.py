"""The order of steps, the windows of range runs, and how far a running step has come."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from crypto_assets import runs
from crypto_assets.definitions import defs
from crypto_assets.resources.warehouse import Lake, Provenance
from crypto_assets.settings import current_settings
from crypto_assets.tables import table_of

SETTINGS = current_settings()
CAPS = table_of("raw/market_caps")
STEP = runs.Step((dg.AssetKey(["raw", "market_caps"]),), "daily")


def store(lake: Lake, day: datetime) -> None:
    key = day.date().isoformat()
    nothing = CAPS.arrow_schema().empty_table()
    lake.replace(CAPS, key, nothing, Provenance(CAPS.name, key), (day, day + timedelta(days=1)))


def test_every_asset_is_in_one_step_and_after_its_parents() -> None:
    graph = defs.resolve_asset_graph()
    order = [key for step in runs.steps(defs) for key in step.keys]
    assert sorted(order) == sorted(graph.materializable_asset_keys)
    place = {key: at for at, key in enumerate(order)}
    for key in order:
        parents = graph.get(key).parent_keys - {key}
        assert all(place[parent] <= place[key] for parent in parents), key


@pytest.mark.parametrize(
    ("clock", "first", "last", "window"),
    [
        ("daily", None, None, (str(SETTINGS.start), str(SETTINGS.simulation.now.date()))),
        ("daily", "2024-01-10", "2024-01-12", ("2024-01-10", "2024-01-12")),
        ("weekly", "2024-01-10", "2024-01-16", ("2024-01-08", "2024-01-15")),
        ("hourly", "2024-01-10", "2024-01-12", ("2024-01-10-00:00", "2024-01-12-23:00")),
        ("hourly", None, "2024-01-10", (f"{SETTINGS.start}-00:00", "2024-01-10-23:00")),
        ("none", "2024-01-10", "2024-01-12", None),
    ],
)
def test_a_range_of_days_is_a_range_of_partitions(
    clock: str, first: str | None, last: str | None, window: tuple[str, str] | None
) -> None:
    assert runs.first_and_last(clock, first, last) == window


def test_without_a_range_hours_are_those_of_the_newest_day() -> None:
    newest = runs.partition_keys("hourly")[-1]
    assert runs.first_and_last("hourly") == (f"{newest[:10]}-00:00", newest)
    assert newest[:10] == str(SETTINGS.simulation.now.date())


def test_a_step_of_hours_has_reached_the_hour_that_was_stored_last(tmp_path: Path) -> None:
    lake, table = Lake(tmp_path), table_of("raw/order_books")
    step = runs.Step((dg.AssetKey(["raw", "order_books"]),), "hourly")
    began = datetime.now(UTC) - timedelta(minutes=1)
    assert runs.reached(lake, step, began) is None
    day = str(SETTINGS.simulation.now.date())
    for hour in (0, 1):
        key = f"{day}-{hour:02d}:00"
        lake.replace(table, key, table.arrow_schema().empty_table(), Provenance(table.name, key))
    assert runs.reached(lake, step, began) == f"{day}-01:00"


def test_a_step_has_reached_the_partition_that_was_stored_last(tmp_path: Path) -> None:
    lake, day = Lake(tmp_path), datetime(2024, 1, 1)
    began = datetime(2030, 1, 1, tzinfo=UTC)
    assert runs.reached(lake, STEP, began) is None
    for number, seconds in ((0, 1), (1, 2), (2, -1)):
        moment = day + timedelta(days=number)
        store(lake, moment)
        stamp = began.timestamp() + seconds
        os.utime(lake.path(CAPS, moment.date().isoformat()), (stamp, stamp))
    assert runs.reached(lake, STEP, began) == "2024-01-02"
    assert runs.reached(lake, STEP, began + timedelta(seconds=3)) is None
