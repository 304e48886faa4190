"""Idempotence and request economy: what is stored is not asked for again, and what is asked for costs the fewest requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest

from crypto_assets.intervals import DAY_MS, HOUR_MS, to_ms
from crypto_assets.resources.warehouse.io_manager import WarehouseResource
from crypto_assets.settings import current_settings
from crypto_assets.simulation.server import Request
from crypto_assets.tables import TABLES
from crypto_assets_tests.graph.conftest import NOW, QUICK_CUT, QUICK_FROM, Built
from crypto_assets_tests.graph.harness import Platform, market_at

PAGE_ROWS = 1000
N_COINS = 8


def klines_by_symbol(requests: Iterable[Request]) -> Counter[str]:
    return Counter(request.query["symbol"] for request in requests if request.path == "/api/v3/klines")


def caps_by_coin(requests: Iterable[Request]) -> Counter[str]:
    return Counter(
        request.path.split("/")[-3] for request in requests if request.path.endswith("/market_chart/range")
    )


def theoretical(built: Built, start: date, now: datetime) -> Counter[str]:
    """Requests of a first load: full pages, and one more unless the last row of the range ended the last one."""
    first_ms = to_ms(datetime(start.year, start.month, start.day))
    end_ms = to_ms(now) // HOUR_MS * HOUR_MS
    counts: Counter[str] = Counter()
    for symbol in current_settings().universe.markets:
        opens = built.market.world.final_bars(symbol, "1h", first_ms, end_ms).open_ms
        n_full, rest = divmod(len(opens), PAGE_ROWS)
        reached = len(opens) > 0 and opens[-1] + HOUR_MS == end_ms
        counts[symbol.replace("/", "")] = n_full + (0 if n_full and not rest and reached else 1)
    return counts


def test_a_first_load_of_a_few_days_costs_one_request_for_each_market_and_coin(
    quick_pair: tuple[Built, Built],
) -> None:
    built = quick_pair[0]
    assert klines_by_symbol(built.requests) == theoretical(built, QUICK_FROM, QUICK_CUT)
    assert set(klines_by_symbol(built.requests).values()) == {1}
    assert list(caps_by_coin(built.requests).values()) == [1] * N_COINS


def test_after_midnight_one_request_brings_each_market_and_a_later_one_each_cap(
    quick_pair: tuple[Built, Built], tmp_path: Path
) -> None:
    midnight = QUICK_CUT.replace(hour=0, minute=0) + timedelta(days=1)
    with market_at(midnight) as market:
        platform = quick_pair[0].platform.copy(tmp_path / "next", market)
        asked = []
        for now in (midnight + timedelta(minutes=30), midnight + timedelta(minutes=50)):
            market.clock.set(now)
            before = len(market.requests)
            platform.build(now, first=QUICK_CUT.date(), only=["raw"])
            asked.append(market.requests[before:])
    assert set(klines_by_symbol(asked[0]).values()) == {1}
    assert len(klines_by_symbol(asked[0])) == N_COINS
    assert not caps_by_coin(asked[0])
    assert not klines_by_symbol(asked[1])
    assert list(caps_by_coin(asked[1]).values()) == [1] * N_COINS


@pytest.mark.parametrize("forgetful", [False, True])
def test_what_is_covered_is_not_asked_for_again(
    quick_pair: tuple[Built, Built], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, forgetful: bool
) -> None:
    if forgetful:
        monkeypatch.setattr(WarehouseResource, "covered", lambda self, name, start, end: {})
    with market_at(QUICK_CUT) as market:
        platform = quick_pair[0].platform.copy(tmp_path / "again", market)
        platform.build(QUICK_CUT, first=QUICK_FROM, only=["raw"])
        assert market.count("/api/v3/klines") == (N_COINS if forgetful else 0)
    # Even then what comes again changes no file.
    assert only_raw(platform) == only_raw(quick_pair[0].platform)


@pytest.mark.slow
def test_a_first_load_makes_exactly_the_theoretical_number_of_requests(finished: Built) -> None:
    start = current_settings().start
    expected = theoretical(finished, start, NOW)
    assert (to_ms(NOW) - to_ms(datetime(start.year, start.month, start.day))) // DAY_MS * 24 > PAGE_ROWS
    assert klines_by_symbol(finished.requests) == expected
    assert max(expected.values()) == 2
    assert list(caps_by_coin(finished.requests).values()) == [1] * N_COINS


@pytest.mark.slow
def test_a_second_run_asks_for_no_kline_and_changes_no_file_of_raw(finished: Built, tmp_path: Path) -> None:
    with market_at(NOW) as market:
        platform = finished.platform.copy(tmp_path / "again", market)
        platform.build(NOW, only=["raw"])
        assert market.count("/api/v3/time") > 0
        assert market.count("/api/v3/klines") == 0
        assert not caps_by_coin(market.requests)
    assert only_raw(platform) == only_raw(finished.platform)


@pytest.mark.slow
def test_a_second_run_changes_no_row_of_any_table(finished: Built, tmp_path: Path) -> None:
    with market_at(NOW) as market:
        platform = finished.platform.copy(tmp_path / "again", market)
        platform.build(NOW)
        assert market.count("/api/v3/klines") == 0
    # Content, coverage, inputs and watermarks; a run that made the same rows again leaves its id.
    assert platform.partitions() == finished.platform.partitions()


def only_raw(platform: Platform) -> dict[str, bytes]:
    """What sources said; what is made of it, such as raw/listings, bears the run that made it."""
    merged = tuple(f"lake/{table.name}/" for table in TABLES.values() if table.write == "merge")
    return {name: content for name, content in platform.files().items() if name.startswith(merged)}
