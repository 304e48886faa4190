"""Chunk invariance: however the days were cut into runs, the same tables are stored.

One range is the finished world. Against it: hour by hour on an open day and day by day after it (the walk), and single
days and weeks in an order of chance.
"""

from __future__ import annotations

import random
import shutil
from datetime import date, timedelta
from pathlib import Path

import pytest

from crypto_assets.tables import table_of
from crypto_assets_tests.graph.conftest import Built, Walk
from crypto_assets_tests.graph.harness import COMPARED, PLANTED, plant_in_price_action, step_of, steps

#: The first of these days is a Monday; on the last, a coin that died four days before is a candidate still.
DAYS = [(date(2024, 2, 12) + timedelta(days=day)).isoformat() for day in range(3)]
WEEKS = ["2024-02-05", "2024-02-12", "2024-02-19"]
#: Each decision starts from the one before.
SEQUENTIAL = "holdings/optimal_holdings"


@pytest.mark.parametrize("planted", [False, True])
def test_a_value_that_depends_on_what_else_is_in_the_run_is_found(
    quick_pair: tuple[Built, Built], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, planted: bool
) -> None:
    if planted:
        plant_in_price_action(monkeypatch, lambda rows: rows[PLANTED] - rows[PLANTED].mean())
    days = ["2024-01-25", "2024-01-26", "2024-01-27"]
    whole, single = (quick_pair[1].platform.copy(tmp_path / name, quick_pair[1].market) for name in "ab")
    whole.run(step_of("features/price_action"), days[0], days[-1])
    for day in (days[1], days[0], days[2]):
        single.run(step_of("features/price_action"), day, day)
    found = differing(single.contents(), whole.contents())
    assert found == [("features/price_action", day) for day in days if planted]


@pytest.mark.slow
def test_hour_by_hour_and_day_by_day_stores_what_one_range_stores(walk: Walk, finished: Built) -> None:
    assert differing(walk.platform.contents(), finished.platform.contents()) == []


@pytest.mark.slow
def test_hour_by_hour_and_day_by_day_covers_what_one_range_covers(walk: Walk, finished: Built) -> None:
    sides = [
        {
            key: (found.coverage, found.watermark)
            for key, found in platform.partitions().items()
            if key[0] in ("raw/klines", "raw/market_caps")
        }
        for platform in (walk.platform, finished.platform)
    ]
    assert sides[0] == sides[1]


@pytest.mark.slow
def test_single_days_and_weeks_in_any_order_store_what_one_range_stores(
    finished: Built, tmp_path: Path
) -> None:
    platform = finished.platform.copy(tmp_path / "shuffled", finished.market)
    for table in COMPARED:
        for key in {"daily": DAYS, "weekly": WEEKS, "none": []}[table.clock]:
            shutil.rmtree(platform.lake.path(table, key).parent)
    chance = random.Random(5)
    for step in steps():
        names = {"/".join(key.path) for key in step.keys}
        if step.clock == "none" or all(table_of(name).observed for name in names):
            continue
        chunks = list(DAYS if step.clock == "daily" else WEEKS)
        if SEQUENTIAL not in names:
            while chunks == sorted(chunks):
                chance.shuffle(chunks)
        for key in chunks:
            platform.run(step, key, key)
    assert differing(platform.contents(), finished.platform.contents()) == []


def differing(left: dict[tuple[str, str], str], right: dict[tuple[str, str], str]) -> list[tuple[str, str]]:
    return sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))
