"""Every check holds on a whole platform, late listing, death and outage included.

Here: real rows. Not here: planted defects, which ``test_checks.py`` shows to be found.
"""

from __future__ import annotations

import dagster as dg
import pytest

from crypto_assets.checks import examine
from crypto_assets.settings import current_settings
from crypto_assets.tables import TABLES
from crypto_assets_tests.graph.conftest import Built

#: The dying coin falls by more than a tenth from one bar to the next.
TOLD = {"quality/anomalies": {"sound": "1 x not: no row was odd"}}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_check_holds_on_the_finished_world(finished: Built, name: str) -> None:
    found = list(examine(TABLES[name], finished.platform.lake, current_settings()))
    assert found
    assert {result.check_name: result.description for result in found if not result.passed} == TOLD.get(
        name, {}
    )


@pytest.mark.slow
def test_the_outage_and_the_death_of_a_coin_are_shown_as_gaps_of_the_exchange(finished: Built) -> None:
    raster = TABLES["rollups/raster"]
    (result,) = examine(raster, finished.platform.lake, current_settings(), names=["gaps"])
    shown = result.metadata["gaps of the source"]
    assert isinstance(shown, dg.TableMetadataValue)
    symbols = [str(record.data["symbol"]) for record in shown.records]
    # The dead coin's last two days lead; an outage is shown for every market that was traded then.
    assert symbols[0] == "SRM/USDT"
    assert {"BTC/USDT", "ETH/USDT"} <= set(symbols)
