from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_assets import tables
from crypto_assets.quant import features
from crypto_assets_tests.quant.rasters import (
    DAY,
    HOUR,
    QUICK,
    START,
    Listing,
    assert_chunk_invariant,
    assert_no_look_ahead,
    random_raster,
    raster_of,
)

N_BARS = 50 * 24
LISTINGS = (
    "AAA/USDT",
    Listing("BBB/USDT", first=100),
    Listing("CCC/USDT", gaps=((600, 640), (900, 1000))),
    Listing("DDD/USDT", last=500),
    Listing("DDD/USDT", number=2, first=700),
    "UST/USDT",
)


def universe(raster: pd.DataFrame, **changes: object) -> pd.DataFrame:
    arguments = {"min_turnover_quote": 1000.0, "excluded_bases": {"UST"}} | changes
    return features.universe(raster, **arguments)  # ty: ignore[invalid-argument-type]


def at(frame: pd.DataFrame, day: float, symbol: str = "AAA/USDT") -> pd.Series:
    rows = frame.loc[(frame["symbol"] == symbol) & (frame["ts"] == START + timedelta(days=day))]
    assert len(rows) == 1
    return rows.iloc[0]


@pytest.mark.parametrize("days", [0, 31])
def test_a_universe_refuses_a_history_that_its_lookback_cannot_show(days: int) -> None:
    with pytest.raises(ValueError, match="min_history_days"):
        universe(raster_of({"close": [1.0]}), min_history_days=days)


def test_columns_are_those_of_the_contract_also_without_rows() -> None:
    raster = random_raster(30, ["AAA/USDT"])
    expected = sorted(tables.table_of("features/universe").column_names)
    assert sorted(universe(raster).columns) == expected
    assert sorted(universe(raster.iloc[:0]).columns) == expected


def test_a_listing_becomes_eligible_after_30_days() -> None:
    result = universe(random_raster(N_BARS, LISTINGS))
    assert at(result, 30 - 1 / 24)["reason"] == "young"
    assert at(result, 30)["reason"] == "eligible"
    assert at(result, 30)["eligible"]
    assert at(result, 30)["history_days"] == 30.0
    assert at(result, 40.5)["history_days"] == 31.5


def test_a_second_life_of_a_symbol_starts_young() -> None:
    result = universe(random_raster(N_BARS, LISTINGS))
    first_life = at(result, 20, "DDD/USDT")
    second_life = at(result, 30, "DDD/USDT")
    assert (first_life["listing_id"], second_life["listing_id"]) == ("DDD/USDT#1", "DDD/USDT#2")
    assert second_life["reason"] == "young"
    assert second_life["history_days"] == pytest.approx(20 / 24)


def test_a_listing_is_stale_when_its_newest_bar_is_older_than_the_limit() -> None:
    result = universe(random_raster(N_BARS, [Listing("AAA/USDT", gaps=((960, 970),))]))
    assert [at(result, 40 + age / 24)["reason"] for age in (-1, 0, 1, 2)] == [
        "eligible",
        "eligible",
        "eligible",
        "stale",
    ]
    assert at(result, 40 + 10 / 24)["reason"] == "eligible"


def test_the_first_failing_rule_is_the_reason() -> None:
    result = universe(random_raster(N_BARS, [Listing("UST/USDT", gaps=((960, 970),))]))
    assert (result["reason"] == "excluded").all()
    assert not result["eligible"].any()


def test_the_median_counts_the_30_whole_days_before_the_day_of_the_row() -> None:
    # Day d trades 24 x (d + 1); the running day must not matter.
    turnover = np.repeat(np.arange(1.0, 36.0), 24)
    result = universe(raster_of({"turnover_quote": turnover.tolist()}), min_turnover_quote=24 * 16.5)
    assert at(result, 31)["turnover_median_30d_quote"] == 24 * np.median(np.arange(2, 32))
    assert at(result, 31 + 23 / 24)["turnover_median_30d_quote"] == 24 * 16.5
    assert at(result, 31)["reason"] == "eligible"
    assert at(result, 30)["turnover_median_30d_quote"] == 24 * 15.5
    assert at(result, 30)["reason"] == "illiquid"


@pytest.mark.parametrize(("n_missing", "reason"), [(5, "eligible"), (6, "illiquid")])
def test_a_median_needs_25_days_with_bars(n_missing: int, reason: str) -> None:
    # Every other day without a bar, so that the listing stays on the raster.
    gaps = tuple((24 * (5 + 2 * k), 24 * (6 + 2 * k)) for k in range(n_missing))
    result = universe(random_raster(32 * 24, [Listing("AAA/USDT", gaps=gaps)]), min_turnover_quote=0.0)
    assert at(result, 31)["reason"] == reason
    assert np.isnan(at(result, 31)["turnover_median_30d_quote"]) == (reason == "illiquid")


@QUICK
@given(
    seed=st.integers(0, 10_000),
    first_hour=st.integers(32 * 24, 48 * 24),
    hours=st.integers(1, 40),
    missing=st.sampled_from([0.0, 0.02, 0.3]),
)
def test_a_universe_has_the_same_bits_in_any_chunk(
    seed: int, first_hour: int, hours: int, missing: float
) -> None:
    raster = random_raster(N_BARS, LISTINGS, seed=seed, missing_share=missing, tick=0.01)
    start = START + first_hour * HOUR
    assert_chunk_invariant(
        universe,
        raster,
        start=start,
        end=start + hours * HOUR,
        lookback_days=features.UNIVERSE_LOOKBACK_DAYS,
        symbols=["DDD/USDT", "CCC/USDT"],
    )


@QUICK
@given(seed=st.integers(0, 10_000), hour=st.integers(700, N_BARS - 1))
def test_a_universe_does_not_look_ahead(seed: int, hour: int) -> None:
    raster = random_raster(N_BARS, LISTINGS, seed=seed, missing_share=0.05)
    cut = START + hour * HOUR
    assert_no_look_ahead(universe, raster, cut=cut)


def test_the_declared_lookback_is_needed() -> None:
    raster = random_raster(N_BARS, ["AAA/USDT"])
    start = datetime(2022, 6, 10)
    with pytest.raises(AssertionError):
        assert_chunk_invariant(
            universe,
            raster,
            start=start,
            end=start + DAY,
            lookback_days=features.UNIVERSE_LOOKBACK_DAYS - 3,
        )
