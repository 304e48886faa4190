"""Ingestion of market caps: what proves a day as covered, and which days are asked for again."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from crypto_assets.intervals import to_ms
from crypto_assets.resources.coingecko import CoinGeckoClient
from crypto_assets.resources.ingest import LATE_FOR, market_cap_pieces
from crypto_assets.resources.sources import RateBudget
from crypto_assets.resources.warehouse.lake import Piece
from crypto_assets_tests.resources.stub_server import Reply, StubServer, json_of

DAY = timedelta(days=1)
#: The days of the window, asked for at 00:50 after the last one.
FIRST, END = datetime(2024, 1, 1), datetime(2024, 1, 11)
NOW = END + timedelta(minutes=50)
COVERED = dict[str, list[tuple[datetime, datetime]]]


def chart(days: Iterable[datetime]) -> Reply:
    """The answer that holds the points of some days, each stamped with the midnight at its end."""
    points = [[to_ms(day + DAY), 1.0] for day in days]
    return json_of({"prices": points, "market_caps": points, "total_volumes": points})


def days_from(start: datetime, end: datetime) -> list[datetime]:
    return [start + number * DAY for number in range((end - start).days)]


class Collector:
    """Asks one coin's caps of the window and remembers what was covered, as the warehouse does."""

    def __init__(self, folder: Path) -> None:
        self.budget = RateBudget(folder, "coingecko", 1000)
        self.covered: COVERED = {}
        self.n_requests = 0

    def ask(self, *days: datetime, now: datetime = NOW) -> list[datetime]:
        """Days whose points came, from a source that holds those of ``days``."""
        with StubServer(chart(days)) as stub:
            client = CoinGeckoClient(self.budget, base_url=stub.url)
            pieces = list(market_cap_pieces(client, ["bitcoin"], self.covered, (FIRST, END), now=now))
            self.n_requests = len(stub.received)
        self._remember(pieces)
        return [row for piece in pieces for row in piece.rows["ts"].to_pylist()]  # ty: ignore[not-subscriptable]

    def _remember(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            for item in piece.coverage:
                self.covered.setdefault(item.series, []).extend(item.ranges)


@pytest.fixture
def collector(tmp_path: Path) -> Collector:
    return Collector(tmp_path)


def test_a_point_that_is_late_comes_with_the_next_request(collector: Collector) -> None:
    every = days_from(FIRST, END)
    assert collector.ask(*every[:-1]) == every[:-1]
    assert collector.ask(*every[:-1], now=NOW + timedelta(hours=6)) == []
    assert collector.n_requests == 1
    assert collector.ask(*every, now=NOW + DAY) == every[-1:]
    collector.ask(*every, now=NOW + DAY)
    assert collector.n_requests == 0


def test_an_empty_answer_covers_what_ended_long_ago_and_nothing_else(collector: Collector) -> None:
    settled = END - LATE_FOR
    assert collector.ask() == []
    every = days_from(FIRST, END)
    assert collector.ask(*every) == days_from(settled, END)
    collector.ask(*every)
    assert collector.n_requests == 0


def test_a_coin_that_is_silent_for_good_is_given_up_after_a_while(collector: Collector) -> None:
    for waited in range(LATE_FOR // DAY):
        collector.ask(now=NOW + waited * DAY)
        assert collector.n_requests == 1
    collector.ask(now=NOW + LATE_FOR)
    collector.ask(now=NOW + LATE_FOR)
    assert collector.n_requests == 0


def test_a_hole_before_a_point_that_came_stays_covered(collector: Collector) -> None:
    every = days_from(FIRST, END)
    collector.ask(every[0], every[-1])
    collector.ask(*every)
    assert collector.n_requests == 0
