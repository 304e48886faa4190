"""What goes wrong outside: the run fails, the error says what to do, nothing wrong is stored and nothing stored is lost."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from crypto_assets import runs
from crypto_assets.resources import coingecko
from crypto_assets.resources.exchange import binance
from crypto_assets.resources.sources import RetryPolicy
from crypto_assets.resources.warehouse.catalog import CATALOGUE
from crypto_assets.settings import current_settings
from crypto_assets.tables import table_of
from crypto_assets_tests.graph.conftest import QUICK, QUICK_CUT, QUICK_FROM, Built
from crypto_assets_tests.graph.harness import Platform, market_at, step_of, waves
from crypto_assets_tests.quant import own_features

pytestmark = pytest.mark.slow

HOUR_LATER = QUICK_CUT + timedelta(hours=1)
DAY = QUICK_CUT.date().isoformat()
KLINES = table_of("raw/klines")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (binance, coingecko):
        monkeypatch.setattr(module, "RetryPolicy", partial(RetryPolicy, sleep=lambda seconds: None))


def whole_day() -> runs.Step:
    """All daily tables of the first stages in one run."""
    (wave,) = waves(QUICK, clocks=["daily"])
    return wave


@pytest.mark.parametrize("fault", ["html_200", "truncated_json"])
def test_a_garbled_answer_fails_the_run_and_stores_nothing(
    quick_pair: tuple[Built, Built], tmp_path: Path, fault: str
) -> None:
    with market_at(HOUR_LATER) as market:
        platform = quick_pair[0].platform.copy(tmp_path / "copy", market)
        before = platform.contents()
        market.inject("/api/v3/klines", fault, times=1000)
        outcome = platform.attempt(whole_day(), DAY, DAY)
        assert not outcome.success
        assert outcome.error is not None
        assert "binance GET /api/v3/klines?symbol=ADAUSDT" in outcome.error
        assert "What to do: " in outcome.error
        assert platform.contents() == before
        market.clear_faults()
        platform.build(HOUR_LATER, first=QUICK_CUT.date(), only=["raw"])
        assert len(platform.rows("raw/klines")) == len(quick_pair[0].tables["raw/klines"]) + 8


def test_an_aggregator_that_answers_with_a_page_fails_the_run_and_stores_no_cap(
    quick_pair: tuple[Built, Built], tmp_path: Path
) -> None:
    with market_at(QUICK_CUT + timedelta(days=1)) as market:
        platform = quick_pair[0].platform.copy(tmp_path / "copy", market)
        before = platform.rows("raw/market_caps")
        market.inject("/coingecko/api/v3/coins/bitcoin/market_chart", "html_200", times=1000)
        outcome = platform.attempt(whole_day(), DAY, DAY)
        assert not outcome.success
        assert outcome.error is not None
        assert "coingecko GET /api/v3/coins/bitcoin/market_chart/range" in outcome.error
        assert "What to do: " in outcome.error
        stored = platform.rows("raw/market_caps")
        # The coins before it came and are kept; what came is what an undisturbed run stores.
        assert set(stored["coin_id"]) == set(before["coin_id"])
        assert stored["ts"].max() > before["ts"].max()
        market.clear_faults()
        platform.build(HOUR_LATER, first=QUICK_CUT.date(), only=["raw"])
    later = quick_pair[1].tables["raw/market_caps"]
    now = platform.rows("raw/market_caps")
    assert now.equals(later[later["ts"] <= now["ts"].max()].reset_index(drop=True))


def test_an_exchange_that_cannot_be_reached_fails_the_run_and_stores_nothing(
    quick_pair: tuple[Built, Built], tmp_path: Path
) -> None:
    with market_at(HOUR_LATER) as market:
        platform = quick_pair[0].platform.copy(tmp_path / "copy", market)
    before = platform.partitions()
    outcome = platform.attempt(whole_day(), DAY, DAY)
    assert not outcome.success
    assert outcome.error is not None
    assert "binance GET /api/v3/time" in outcome.error
    assert "What to do: " in outcome.error
    assert platform.partitions() == before


def test_a_first_load_that_breaks_off_keeps_what_came_and_is_completed_by_the_next_run(
    quick_pair: tuple[Built, Built], tmp_path: Path
) -> None:
    with market_at(QUICK_CUT) as market:
        platform = Platform.on(market, tmp_path / "new")
        market.inject("/api/v3/klines", "truncated_json", times=1000, after=3)
        outcome = platform.attempt(whole_day(), QUICK_FROM.isoformat(), DAY)
        assert not outcome.success
        assert outcome.error is not None
        assert "binance GET /api/v3/klines?symbol=" in outcome.error
        came = platform.rows("raw/klines")
        # Which three came first is up to the threads.
        assert came["symbol"].nunique() == 3
        covered = platform.lake.provenance(KLINES, QUICK_FROM.isoformat())
        assert covered is not None
        assert {item.series.split("|")[1] for item in covered.coverage} == set(came["symbol"])
        assert platform.rows("rollups/klines").empty
        market.clear_faults()
        platform.build(QUICK_CUT, first=QUICK_FROM, only=["raw"])
    assert platform.rows("raw/klines").equals(quick_pair[0].tables["raw/klines"])


def test_a_symbol_that_the_exchange_does_not_know_is_named_with_what_to_change(tmp_path: Path) -> None:
    settings = current_settings()
    universe = settings.universe.model_copy(update={"symbols": (*settings.universe.symbols, "NOSUCH")})
    with market_at(QUICK_CUT) as market:
        platform = Platform.on(market, tmp_path / "new", settings.model_copy(update={"universe": universe}))
        outcome = platform.attempt(whole_day(), DAY, DAY)
    assert not outcome.success
    assert outcome.error is not None
    assert "NOSUCH/USDT" in outcome.error
    assert "universe.symbols" in outcome.error
    assert platform.rows("raw/klines").empty


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda values: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda values: values.iloc[1:], "rows instead of"),
        (lambda values: values.shift(-1), "looks ahead: own_spread_frac at "),
    ],
    ids=["raises", "wrong length", "looks ahead"],
)
def test_a_function_that_fails_on_the_last_day_of_a_range_stores_no_day_of_it(
    quick_pair: tuple[Built, Built],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[pd.Series], pd.Series],
    reason: str,
) -> None:
    honest = own_features.spread_share

    def spread_share(frame: pd.DataFrame) -> pd.Series:
        values = honest(frame)
        return spoil(values) if (frame.index >= DAY).any() else values

    monkeypatch.setattr(own_features, "spread_share", spread_share)
    platform = quick_pair[0].platform.copy(tmp_path / "copy", quick_pair[0].market)
    before = platform.files()
    outcome = platform.attempt(step_of("features/every_custom"), QUICK_FROM.isoformat(), DAY)
    assert not outcome.success
    assert outcome.error is not None
    assert (
        "feature set every_custom, entry 0 (crypto_assets_tests.quant.own_features:spread_share)"
        in outcome.error
    )
    assert reason in outcome.error
    assert platform.files() == before


@pytest.mark.parametrize("name", ["raw/klines", "rollups/raster", "features/universe"])
def test_a_corrupt_file_is_named_and_what_was_stored_stays(
    quick_pair: tuple[Built, Built], tmp_path: Path, name: str
) -> None:
    platform = quick_pair[0].platform.copy(tmp_path / "copy", quick_pair[0].market)
    damaged = platform.lake.path(table_of(name), DAY)
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    before = platform.files()
    reader = {"raw/klines": "rollups/klines", "rollups/raster": "features/price_action"}.get(
        name, "features/cross_section"
    )
    outcome = platform.attempt(step_of(reader), DAY, DAY)
    assert not outcome.success
    assert outcome.error is not None
    assert str(damaged) in outcome.error
    assert "move" in outcome.error
    assert platform.files() == before
    damaged.unlink()
    platform.run(step_of(name), DAY, DAY)
    platform.run(step_of(reader), DAY, DAY)
    assert platform.contents() == quick_pair[0].platform.contents()


def test_a_corrupt_file_is_named_when_the_catalogue_has_to_be_made_anew(
    quick_pair: tuple[Built, Built], tmp_path: Path
) -> None:
    platform = quick_pair[0].platform.copy(tmp_path / "copy", quick_pair[0].market)
    damaged = platform.lake.path(table_of("raw/market_caps"), QUICK_FROM.isoformat())
    damaged.write_bytes(b"")
    (platform.folder / CATALOGUE).unlink()
    outcome = platform.attempt(step_of("features/price_action"), DAY, DAY)
    assert not outcome.success
    assert outcome.error is not None
    assert str(damaged) in outcome.error
    assert "move the named file away" in outcome.error


def test_a_folder_that_cannot_be_written_is_named_and_what_was_stored_stays(
    quick_pair: tuple[Built, Built], tmp_path: Path
) -> None:
    # A file in the place of a folder: file permissions do not stop the superuser, who may run the tests.
    (tmp_path / "taken").write_text("")
    outcome = Platform.on(quick_pair[0].market, tmp_path / "taken" / "warehouse").attempt(
        whole_day(), DAY, DAY
    )
    assert not outcome.success
    assert outcome.error is not None
    assert str(tmp_path / "taken" / "warehouse") in outcome.error
    assert "check the folder's permissions" in outcome.error

    platform = quick_pair[0].platform.copy(tmp_path / "copy", quick_pair[0].market)
    folder = platform.lake.path(table_of("features/price_action"), DAY).parent
    kept = folder.rename(tmp_path / "kept")
    folder.write_text("")
    before = platform.files()
    outcome = platform.attempt(step_of("features/price_action"), DAY, DAY)
    assert not outcome.success
    assert outcome.error is not None
    assert str(folder) in outcome.error
    assert "check the folder's permissions" in outcome.error
    assert platform.files() == before
    folder.unlink()
    kept.rename(folder)
    platform.run(step_of("features/price_action"), DAY, DAY)
    assert platform.contents() == quick_pair[0].platform.contents()
