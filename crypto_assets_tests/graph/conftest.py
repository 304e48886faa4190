"""Platforms that several tests of the graph look at; whoever wants to change one works on a copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

import pandas as pd
import pytest

from crypto_assets.quant.invariants import Difference
from crypto_assets.simulation.server import MarketServer, Request
from crypto_assets_tests.graph.harness import LOOKAHEAD_DAYS, Platform, leaks, market_at

#: The present of the suite's market: Friday morning of the ninth week.
NOW = datetime(2024, 3, 1, 5, 20)
#: A Monday morning two weeks before.
MONDAY = datetime(2024, 2, 12, 9, 20)
#: A Monday of which every hour is a cut: its first one fits the week.
OPEN_DAY = datetime(2024, 2, 26)
#: The quick pair: the first half of the graph over a few days.
QUICK_FROM = date(2024, 1, 22)
QUICK_CUT = datetime(2024, 1, 25, 9, 20)
QUICK_NOW = datetime(2024, 1, 28, 5, 20)
QUICK = ("raw", "rollups", "features", "labels", "factors", "signals/ema_cross")


@dataclass(frozen=True)
class Built:
    """A platform that nobody changes any more, the market it listens to, and its rows."""

    platform: Platform
    market: MarketServer
    tables: Mapping[str, pd.DataFrame]
    requests: tuple[Request, ...] = ()


@dataclass(frozen=True)
class Walk:
    """A platform that was advanced hour by hour, and where it disagreed at each hour with the finished one."""

    platform: Platform
    found: dict[datetime, list[Difference]] = field(default_factory=dict)


@pytest.fixture(scope="session")
def quick_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Built, Built]]:
    """A few days of the first stages, built at ``QUICK_CUT`` and at ``QUICK_NOW``."""
    with ExitStack() as stack:
        pair = []
        for now in (QUICK_CUT, QUICK_NOW):
            market = stack.enter_context(market_at(now))
            platform = Platform.on(market, tmp_path_factory.mktemp("quick"))
            platform.build(now, first=QUICK_FROM, only=QUICK)
            pair.append(Built(platform, market, platform.tables(), tuple(market.requests)))
        yield pair[0], pair[1]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """The whole graph over all days at once, as of ``NOW``."""
    with market_at(NOW) as market:
        platform = Platform.on(market, tmp_path_factory.mktemp("finished"))
        platform.build(NOW)
        yield Built(platform, market, platform.tables(), tuple(market.requests))


@pytest.fixture(scope="session")
def monday(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """The whole graph at once as of a Monday morning, when a week has just been fitted."""
    with market_at(MONDAY) as market:
        platform = Platform.on(market, tmp_path_factory.mktemp("monday"))
        platform.build(MONDAY)
        yield Built(platform, market, platform.tables())


@pytest.fixture(scope="session")
def walk(finished: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """A month at once, most of another at once, a Monday hour by hour, then day by day to ``NOW``."""
    moments = [
        datetime(2024, 1, 31, 13, 40),  # in the outage
        OPEN_DAY - timedelta(minutes=53),
        *(OPEN_DAY + timedelta(hours=hour, minutes=13) for hour in range(24)),
        *(OPEN_DAY + timedelta(days=day, minutes=50) for day in (1, 2)),
        NOW,
    ]
    with market_at(moments[0]) as market:
        walk = Walk(Platform.on(market, tmp_path_factory.mktemp("walk")))
        for before, now in zip([None, *moments], moments, strict=False):
            market.clock.set(now)
            if OPEN_DAY <= now < OPEN_DAY + timedelta(days=1):
                # As automation does: the open day, the day before until it is whole, and the week in its first hour.
                first = (now - timedelta(hours=2)).date()
                walk.platform.build(now, first=first, fits=now.hour == 0, reports=False)
                since = now.date() - timedelta(days=LOOKAHEAD_DAYS + 1)
                walk.found[now] = leaks(walk.platform.tables(since), finished.tables, now, since)
            else:
                walk.platform.build(now, first=before and before.date())
                walk.found[now] = leaks(walk.platform.tables(), finished.tables, now)
        yield walk
