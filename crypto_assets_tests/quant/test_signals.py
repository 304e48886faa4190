from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_assets import tables
from crypto_assets.quant import kernels, signals
from crypto_assets_tests.quant.rasters import (
    HOUR,
    QUICK,
    START,
    Listing,
    assert_chunk_invariant,
    assert_no_look_ahead,
    assert_same_bits,
    random_raster,
    raster_of,
)

WEEK = datetime(2022, 5, 30)
LOOKBACK = timedelta(weeks=8)
CROSS_LOOKBACK_DAYS = -(-signals.ema_cross_lookback_bars() // 24)
VECTOR = [10.0, 11, 12, 11, 10, 9, 8, 9, 10, 11, 12, 13]
VECTOR_SIGNALS = [0, 1, 0.97, 0.941, -1, -0.97, -0.941, -0.913, 1, 0.97, 0.941, 0.913]
KEY = ("symbol", "ts", "rule")


@pytest.mark.parametrize(
    "changes",
    [{"short": 21}, {"short": 0}, {"decay": 0.0}, {"decay": 1.1}, {"max_age": 0}],
)
def test_a_cross_refuses_parameters_out_of_range(changes: dict) -> None:
    with pytest.raises(ValueError, match="they must satisfy"):
        signals.ema_cross(raster_of({"close": [1.0]}), **changes)


def test_columns_of_a_cross_are_those_of_the_contract_also_without_rows() -> None:
    raster = random_raster(30, ["AAA/USDT"])
    for rows in (raster, raster.iloc[:0]):
        result = signals.ema_cross(rows)
        assert sorted(result.columns) == sorted(tables.table_of("signals/ema_cross").column_names)
        assert (result["state"].dtype, result["age"].dtype) == (np.int32, np.int64)
    assert set(signals.ema_cross(raster)["rule"]) == {"ema_cross_13_21"}


def test_the_reference_vector_after_constant_history_gives_the_published_signals() -> None:
    warm_up = kernels.average_bars(2 / 4) + 5
    result = signals.ema_cross(raster_of({"close": [10.0] * warm_up + VECTOR}), short=2, long=3)
    assert result["signal"].tolist()[-12:] == VECTOR_SIGNALS
    assert (result["signal"].iloc[:-11] == 0.0).all()
    assert result["age"].tolist()[-12:] == [0, 0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3]


def test_constant_history_equals_the_recursion_seeded_with_the_first_price() -> None:
    warm_up = kernels.average_bars(2 / 4)
    result = signals.ema_cross(raster_of({"close": [10.0] * warm_up + VECTOR}), short=2, long=3).iloc[-12:]
    for name, span in (("ema_short", 2), ("ema_long", 3)):
        recursive = pd.Series(VECTOR).ewm(span=span, adjust=False).mean()
        np.testing.assert_allclose(result[name], recursive, rtol=1e-8)


def test_there_is_no_cross_before_both_averages_have_their_history() -> None:
    result = signals.ema_cross(random_raster(600, ["AAA/USDT"]))
    k = kernels.average_bars(2 / 22)
    assert result["ema_long"].iloc[: k - 1].isna().all()
    assert result["ema_long"].iloc[k - 1 :].notna().all()
    assert (result["state"].iloc[:k] == 0).all()
    assert (result["state"].iloc[k:] != 0).any()


def test_an_age_counts_elapsed_intervals_over_missing_bars() -> None:
    warm_up = 40
    close = [10.0] * warm_up + [11.0, None, None, 12.0, 13.0]
    result = signals.ema_cross(raster_of({"close": close}), short=2, long=3)
    assert result["age"].tolist()[-5:] == [0, 1, 2, 3, 4]
    assert result["signal"].tolist()[-5:] == [1.0, 0.97, 0.941, 0.913, 0.885]
    assert result["ema_short"].isna().tolist()[-5:] == [False, True, True, False, False]


def test_a_cross_compares_with_the_previous_existing_bar() -> None:
    close = [10.0] * 40 + [None, 11.0]
    result = signals.ema_cross(raster_of({"close": close}), short=2, long=3).iloc[-1]
    assert (result["state"], result["age"]) == (1, 0)


@pytest.mark.parametrize(("n_missing", "state"), [(47, 1), (48, 0)])
def test_a_previous_bar_more_than_48_intervals_back_is_no_comparison(n_missing: int, state: int) -> None:
    # Averages this long still hold half of their weight after two days of silence.
    close = [10.0] * 2200 + [None] * n_missing + [11.0]
    result = signals.ema_cross(raster_of({"close": close}), short=180, long=200).iloc[-1]
    assert result["ema_short"] > result["ema_long"]
    assert result["state"] == state


def test_a_state_older_than_its_maximum_is_forgotten() -> None:
    # A falling market after the only cross: the averages never meet again.
    close = [10.0] * 40 + [10.0 * 0.999**k for k in range(1, 300)]
    result = signals.ema_cross(raster_of({"close": close}), short=2, long=3)
    cross = 40
    assert (result["state"].iloc[cross], result["age"].iloc[cross]) == (-1, 0)
    assert (result["state"].iloc[cross + 250], result["age"].iloc[cross + 250]) == (-1, 250)
    assert (result["state"].iloc[cross + 251], result["age"].iloc[cross + 251]) == (0, 0)
    assert not np.signbit(result["signal"].iloc[cross + 250])
    assert result["signal"].iloc[cross + 100] == -0.048


def test_a_new_listing_does_not_inherit_a_state() -> None:
    listings = [Listing("AAA/USDT", last=400), Listing("AAA/USDT", number=2, first=460)]
    result = signals.ema_cross(random_raster(600, listings))
    assert (result.loc[result["listing_id"] == "AAA/USDT#2", "state"] == 0).all()
    assert (result.loc[result["listing_id"] == "AAA/USDT#1", "state"] != 0).any()


@QUICK
@given(
    seed=st.integers(0, 10_000),
    first_hour=st.integers(CROSS_LOOKBACK_DAYS * 24, 880),
    hours=st.integers(1, 40),
    missing=st.sampled_from([0.0, 0.02, 0.3]),
)
def test_crosses_have_the_same_bits_in_any_chunk(
    seed: int, first_hour: int, hours: int, missing: float
) -> None:
    listings = [
        "AAA/USDT",
        Listing("BBB/USDT", gaps=((500, 540), (700, 800))),
        Listing("CCC/USDT", first=300),
    ]
    raster = random_raster(900, listings, seed=seed, missing_share=missing, tick=0.5)
    start = START + first_hour * HOUR
    assert_chunk_invariant(
        signals.ema_cross,
        raster,
        start=start,
        end=start + hours * HOUR,
        lookback_days=CROSS_LOOKBACK_DAYS,
        key=KEY,
        symbols=["BBB/USDT"],
    )


@QUICK
@given(seed=st.integers(0, 10_000), hour=st.integers(300, 899))
def test_crosses_do_not_look_ahead(seed: int, hour: int) -> None:
    raster = random_raster(900, ["AAA/USDT", "BBB/USDT"], seed=seed, missing_share=0.05)
    assert_no_look_ahead(signals.ema_cross, raster, cut=START + hour * HOUR, key=KEY)


def scored(
    n_hours: int = 400, seed: int = 0, edge: float = 0.02, end: datetime = WEEK
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Probabilities and returns of two symbols: the return grows with the probability by ``edge``."""
    rng = np.random.default_rng(seed)
    scores, labels = [], []
    for symbol in ("AAA/USDT", "BBB/USDT"):
        ts = np.datetime64(end, "us") - np.timedelta64(1, "h") * np.arange(n_hours, 0, -1)
        probability = rng.uniform(0.3, 0.8, n_hours)
        identity = pd.DataFrame({"symbol": symbol, "ts": ts, "listing_id": f"{symbol}#1"})
        scores.append(
            identity.assign(model="gain", known_at=ts + np.timedelta64(1, "h"), probability=probability)
        )
        change = edge * (probability - 0.6) + rng.normal(0, 0.0005, n_hours)
        labels.append(identity.assign(known_at=ts + np.timedelta64(25, "h"), forward_return_frac=change))
    return pd.concat(scores, ignore_index=True), pd.concat(labels, ignore_index=True)


def fit(scores: pd.DataFrame, labels: pd.DataFrame, **changes: object) -> pd.DataFrame:
    arguments = {
        "week": WEEK,
        "rule": "gain",
        "grid": (0.55, 0.6, 0.65, 0.7, 0.75),
        "cost_frac": 0.0,
        "min_pairs": 500,
        "lookback": LOOKBACK,
    } | changes
    return signals.fit_thresholds(scores, labels, **arguments)  # ty: ignore[invalid-argument-type]


@pytest.mark.parametrize("grid", [(), (0.5,), (0.6, 1.0)])
def test_a_grid_lies_between_one_half_and_one(grid: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="inside"):
        fit(*scored(), grid=grid)


def test_a_fit_refuses_a_bad_week_and_scores_of_two_models() -> None:
    scores, labels = scored()
    with pytest.raises(ValueError, match="no Monday"):
        fit(scores, labels, week=WEEK + timedelta(hours=1))
    with pytest.raises(ValueError, match="scores has two rows"):
        fit(pd.concat([scores, scores.assign(model="other")]), labels)


def test_a_fit_chooses_the_largest_mean_times_root_n_by_hand() -> None:
    probability = [0.55] * 40 + [0.65] * 10 + [0.75] * 4
    change = [0.001] * 40 + [0.02] * 10 + [0.03] * 4
    ts = np.datetime64("2022-05-02", "us") + np.timedelta64(1, "h") * np.arange(54)
    rows = pd.DataFrame(
        {"symbol": "AAA/USDT", "ts": ts, "listing_id": "AAA/USDT#1", "known_at": ts + np.timedelta64(1, "h")}
    )
    both = rows.assign(probability=probability), rows.assign(forward_return_frac=change)
    result = fit(*both, min_pairs=50, min_bought=1, cost_frac=0.002).iloc[0]
    # 0.55: mean 0.004667 x sqrt 54 = 0.034; 0.65: 0.020857 x sqrt 14 = 0.078; 0.75: 0.028 x 2 = 0.056.
    assert result["buy_threshold"] == 0.65
    assert result["sell_threshold"] == 1 - 0.65
    assert result["mean_return_frac"] == pytest.approx((10 * 0.018 + 4 * 0.028) / 14, rel=1e-14)
    assert (result["status"], result["n_pairs"]) == ("ok", 54)
    assert fit(*both, min_pairs=50, min_bought=20, cost_frac=0.002)["buy_threshold"].iloc[0] == 0.55


def test_the_higher_of_equal_thresholds_is_chosen() -> None:
    scores, labels = scored()
    high = scores.assign(probability=np.where(scores["probability"] > 0.6, 0.9, 0.4))
    assert fit(high, labels.assign(forward_return_frac=0.01))["buy_threshold"].iloc[0] == 0.75


def test_no_threshold_is_chosen_where_none_earns_its_cost_or_history_is_short() -> None:
    costly = fit(*scored(), cost_frac=0.1).iloc[0]
    short = fit(*scored(), min_pairs=10_000).iloc[0]
    assert (costly["status"], short["status"]) == ("no_edge", "insufficient_history")
    for result in (costly, short):
        assert result[["buy_threshold", "sell_threshold", "mean_return_frac"]].isna().all()
    assert fit(*(frame.iloc[:0] for frame in scored()))["n_pairs"].iloc[0] == 0


def test_columns_of_thresholds_and_signals_are_those_of_the_contract() -> None:
    scores, labels = scored()
    fitted = fit(scores, labels)
    assert sorted(fitted.columns) == sorted(tables.table_of("signals/thresholds").column_names)
    for rows in (scores, scores.iloc[:0]):
        result = signals.threshold_signals(rows, fitted, "gain")
        assert sorted(result.columns) == sorted(tables.table_of("signals/trading_signals").column_names)


@QUICK
@given(seed=st.integers(0, 1000), shuffle=st.integers(0, 1000))
def test_thresholds_see_only_pairs_realised_before_their_week(seed: int, shuffle: int) -> None:
    scores, labels = scored(seed=seed)
    expected = fit(scores, labels)
    later, old = (
        scored(seed=seed + 1, end=WEEK + timedelta(days=20)),
        scored(seed=seed + 2, end=WEEK - LOOKBACK),
    )
    later_scores, later_labels = (frame.loc[frame["ts"] >= WEEK] for frame in later)
    undecided = later_labels.assign(
        known_at=later_labels["known_at"].mask(later_labels["ts"].notna()), forward_return_frac=9.9
    )
    for rest in (later_labels, undecided):
        more_scores, more_labels = (
            pd.concat(parts).sample(frac=1, random_state=shuffle)
            for parts in ((scores, later_scores, old[0]), (labels, rest, old[1]))
        )
        assert_same_bits(fit(more_scores, more_labels), expected, ["week", "rule"])


def thresholds(**changes: object) -> pd.DataFrame:
    row = {
        "week": WEEK,
        "rule": "gain",
        "known_at": WEEK,
        "status": "ok",
        "buy_threshold": 0.6,
        "sell_threshold": 0.4,
    }
    return pd.DataFrame([row | {"mean_return_frac": 0.01, "n_pairs": 600} | changes])


def score_rows(probability: list[float | None], start: datetime = WEEK) -> pd.DataFrame:
    ts = np.datetime64(start, "us") + np.timedelta64(1, "h") * np.arange(len(probability))
    return pd.DataFrame(
        {
            "symbol": "AAA/USDT",
            "ts": ts,
            "known_at": ts + np.timedelta64(1, "h"),
            "listing_id": "AAA/USDT#1",
            "probability": pd.Series(probability, dtype=np.float64),
        }
    )


def test_thresholds_are_inclusive_on_both_sides() -> None:
    result = signals.threshold_signals(score_rows([0.6, 0.599, 0.401, 0.4, None]), thresholds(), "gain")
    assert result["signal"].tolist() == [1, 0, 0, -1, pd.NA]
    assert result["signal"].dtype == "Int32"


def test_signals_use_the_ok_thresholds_of_their_own_week_and_rule() -> None:
    rows = score_rows([0.7] * 4, start=WEEK + timedelta(days=6, hours=22))
    assert signals.threshold_signals(rows, thresholds(), "gain")["signal"].isna().tolist() == [
        False,
        False,
        True,
        True,
    ]
    next_week = pd.concat([thresholds(), thresholds(week=WEEK + timedelta(days=7), buy_threshold=0.8)])
    assert signals.threshold_signals(rows, next_week, "gain")["signal"].tolist() == [1, 1, 0, 0]
    for useless in (thresholds(status="no_edge"), thresholds(rule="other"), thresholds().iloc[:0]):
        assert signals.threshold_signals(rows, useless, "gain")["signal"].isna().all()


def test_signals_refuse_repeated_scores_and_thresholds() -> None:
    rows = score_rows([0.7])
    with pytest.raises(ValueError, match="scores has two rows"):
        signals.threshold_signals(pd.concat([rows, rows]), thresholds(), "gain")
    with pytest.raises(ValueError, match="thresholds of gain has two rows"):
        signals.threshold_signals(rows, pd.concat([thresholds(), thresholds()]), "gain")
