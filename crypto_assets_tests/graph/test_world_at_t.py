"""World-at-T: what was known at a moment is the same, bit for bit, when it is built then and when it is built later.

Here: cuts without a leak. Leaks that are planted, and have to be found, are in ``test_planted_leaks.py``.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from crypto_assets_tests.graph.conftest import MONDAY, NOW, OPEN_DAY, QUICK_CUT, Built, Walk
from crypto_assets_tests.graph.harness import COMPARED, leaks


def test_the_first_stages_hold_what_was_known_in_the_middle_of_a_day(quick_pair: tuple[Built, Built]) -> None:
    earlier, later = quick_pair
    assert leaks(earlier.tables, later.tables, QUICK_CUT) == []


def test_the_quick_comparison_is_about_rows_of_that_day(quick_pair: tuple[Built, Built]) -> None:
    for name in ("raw/klines", "rollups/raster", "features/price_action", "labels/forward_returns"):
        days = quick_pair[0].tables[name]["ts"].dt.normalize()
        assert (days == QUICK_CUT.replace(hour=0, minute=0)).sum() >= 8 * 9, name


@pytest.mark.slow
def test_every_table_carries_values_in_the_finished_world(finished: Built) -> None:
    empty = {table.name for table in COMPARED if finished.tables[table.name].empty}
    # What the suite's market does not collect has ``test_contracts.py`` for itself.
    assert empty == {"raw/funding_rates", "raw/open_interest", "raw/coin_ohlc"}
    last_week = {
        name: finished.tables[name].loc[finished.tables[name]["week"] == OPEN_DAY, "status"].tolist()
        for name in (
            "weights/alpha_weights",
            "predictions/models",
            "signals/thresholds",
            "holdings/view_fits",
        )
    }
    assert all(set(statuses) == {"ok"} for statuses in last_week.values()), last_week
    holdings = finished.tables["holdings/optimal_holdings"]
    on_the_day = holdings[holdings["decision_at"].dt.normalize() == OPEN_DAY]
    assert set(on_the_day["status"]) == {"ok"}
    assert (on_the_day["n_views"] > 0).all()


@pytest.mark.slow
def test_a_monday_morning_holds_what_was_known_then(monday: Built, finished: Built) -> None:
    assert leaks(monday.tables, finished.tables, MONDAY) == []


@pytest.mark.slow
@pytest.mark.parametrize("hour", range(24))
def test_every_hour_of_a_monday_holds_what_was_known_then(walk: Walk, hour: int) -> None:
    assert walk.found[OPEN_DAY + timedelta(hours=hour, minutes=13)] == []


@pytest.mark.slow
def test_cuts_in_an_outage_late_in_a_day_and_after_it_hold_what_was_known_then(walk: Walk) -> None:
    others = {now: found for now, found in walk.found.items() if now.date() != OPEN_DAY.date()}
    assert len(others) == 5
    assert NOW in others
    assert {now: found for now, found in others.items() if found} == {}
