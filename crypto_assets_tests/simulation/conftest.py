"""Worlds and servers that many tests of the simulation share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from crypto_assets.intervals import DAY_MS
from crypto_assets.simulation.server import MarketServer
from crypto_assets.simulation.synthetic import SyntheticWorld
from crypto_assets_tests.simulation.clients import at

START = at(2023, 1, 1)
NOW = at(2023, 3, 10, 10, 20, 30)


@pytest.fixture(scope="session")
def synthetic_world() -> SyntheticWorld:
    """Make a hundred days of minutes, once for all; nobody may restate it."""
    return SyntheticWorld(7, START, START + 100 * DAY_MS)


@pytest.fixture
def market(synthetic_world: SyntheticWorld) -> Iterator[MarketServer]:
    with MarketServer(synthetic_world, clock=NOW) as server:
        yield server
