from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, time, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_assets import tables
from crypto_assets.quant import holdings
from crypto_assets.quant.candidates import lookback
from crypto_assets_tests.quant.decisions import COINS, WINDOW, alpha_of, at, decide, market, universe_of
from crypto_assets_tests.quant.rasters import DAY, HOUR, QUICK, START, Listing, assert_same_bits, between

KEY = ("decision_at", "symbol")
MONDAY = START
WEEK = START + timedelta(weeks=4)
NOTHING = pd.DataFrame()


def fits_of(
    weeks: Sequence[datetime], *, slope: float = 0.05, confidence: float = 0.5, status: str = "ok"
) -> pd.DataFrame:
    week = np.asarray(weeks, dtype="datetime64[us]")
    return pd.DataFrame(
        {"week": week, "known_at": week, "slope": slope, "confidence": confidence, "status": status}
    )


def hold(
    candidates: pd.DataFrame,
    raster: pd.DataFrame,
    times: Sequence[datetime] | np.ndarray,
    *,
    views: pd.DataFrame | None = None,
    previous: pd.DataFrame = NOTHING,
    cap: float = 1.0,
    **changes: Any,
) -> pd.DataFrame:
    return holdings.optimal_holdings(
        candidates,
        holdings.views(candidates, fits_of([])) if views is None else views,
        raster,
        previous,
        decision_times=np.asarray(times, dtype="datetime64[us]"),
        bar=HOUR,
        horizon=DAY,
        lookback_bars=WINDOW,
        cap=cap,
        **changes,
    )


def previous_of(weights: Mapping[str, tuple[float, float]], cash: float, decided: datetime) -> pd.DataFrame:
    """Rows of one decision: symbol -> (weight, close), and cash."""
    rows = [(symbol, f"{symbol}#1", weight, close) for symbol, (weight, close) in weights.items()]
    frame = pd.DataFrame(
        [*rows, ("USDT", None, cash, 1.0)], columns=["symbol", "listing_id", "weight_frac", "close"]
    )
    return frame.assign(decision_at=np.datetime64(decided, "us"))


def pairs_of(z: np.ndarray, surprise: np.ndarray, n_coins: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Candidates of the days before ``WEEK`` and labels such that (r - pi)/sigma is ``surprise``."""
    n = len(z)
    day = np.arange(n) // n_coins - n // n_coins
    decided = np.datetime64(WEEK, "us") + np.timedelta64(DAY) * day + np.timedelta64(HOUR)
    symbol = [f"C{place % n_coins:02d}/USDT" for place in range(n)]
    candidates = pd.DataFrame(
        {
            "decision_at": decided,
            "symbol": symbol,
            "listing_id": [f"{name}#1" for name in symbol],
            "horizon": "24h",
            "eligible": True,
            "sigma_frac": 0.04,
            "pi_frac": 0.001,
            "score_z": z,
        }
    )
    labels = candidates[["symbol", "listing_id", "horizon"]].assign(
        ts=decided - np.timedelta64(HOUR), forward_return_frac=0.001 + 0.04 * surprise
    )
    labels["known_at"] = labels["ts"] + HOUR
    return candidates, labels


def fit(candidates: pd.DataFrame, labels: pd.DataFrame, **changes: Any) -> pd.Series:
    chosen: dict[str, Any] = {"week": WEEK, "bar": HOUR, "view_weeks": 8, "min_pairs": 4} | changes
    return holdings.fit_views(candidates, labels, **chosen).iloc[0]


# Input errors


def test_views_of_another_horizon_are_refused() -> None:
    candidates, labels = pairs_of(np.ones(4), np.ones(4), 2)
    with pytest.raises(ValueError, match=r"\['12h', '24h'\]"):
        fit(candidates, labels.assign(horizon="12h"))


def test_decisions_that_do_not_increase_are_refused() -> None:
    raster = market(100)
    with pytest.raises(ValueError, match="must increase"):
        hold(decide(raster, [at(99)]), raster, [at(99), at(99)])


def test_holdings_of_another_horizon_are_refused() -> None:
    raster = market(100)
    with pytest.raises(ValueError, match=r"per \['12h'\]; holdings are per 24h"):
        hold(decide(raster, [at(99)], horizon=12 * HOUR), raster, [at(99)])


def test_previous_holdings_must_be_one_earlier_decision_with_cash() -> None:
    raster = market(100)
    candidates = decide(raster, [at(99)])
    before = previous_of({"C0/USDT": (0.5, 100.0)}, 0.5, at(75))
    with pytest.raises(ValueError, match="one last decision"):
        hold(candidates, raster, [at(99)], previous=before.assign(decision_at=np.datetime64(at(99), "us")))
    two = pd.concat([before, before.assign(decision_at=np.datetime64(at(76), "us"))])
    with pytest.raises(ValueError, match="one last decision"):
        hold(candidates, raster, [at(99)], previous=two)
    with pytest.raises(ValueError, match="USDT for cash"):
        hold(candidates, raster, [at(99)], previous=before[before["symbol"] != "USDT"])


def test_a_raster_that_does_not_reach_back_is_refused() -> None:
    raster = market(100)
    candidates = decide(raster, [at(99)])
    with pytest.raises(ValueError, match="returns"):
        hold(candidates, raster[raster["ts"] >= at(80)], [at(99)])
    with pytest.raises(ValueError, match="no row of C5/USDT#1"):
        hold(candidates, raster[raster["symbol"] != "C5/USDT"], [at(99)])


# Decision times


@pytest.mark.parametrize(
    ("rebalance", "moment", "expected"),
    [
        ("daily", time(1), ["2022-05-03T01:00", "2022-05-04T01:00", "2022-05-05T01:00"]),
        ("weekly", time(1), []),
        ("hourly", time(1, 30), [f"2022-05-0{3 + hour // 24}T{hour % 24:02d}:30" for hour in range(50)]),
    ],
)
def test_decisions_fall_in_the_window(
    rebalance: holdings.Rebalance, moment: time, expected: list[str]
) -> None:
    times = holdings.decision_times(MONDAY + DAY, MONDAY + 3 * DAY + 2 * HOUR, rebalance, moment)
    assert times.astype("datetime64[m]").astype(str).tolist() == expected
    assert times.dtype == "datetime64[us]"


def test_weekly_decisions_fall_on_mondays() -> None:
    times = holdings.decision_times(MONDAY + HOUR, MONDAY + 21 * DAY, "weekly")
    assert times.astype("datetime64[m]").astype(str).tolist() == [
        "2022-05-02T01:00",
        "2022-05-09T01:00",
        "2022-05-16T01:00",
    ]


@given(
    st.integers(0, 500),
    st.integers(0, 500),
    st.integers(0, 500),
    st.sampled_from(["hourly", "daily", "weekly"]),
)
@QUICK
def test_decisions_of_adjoining_windows_are_those_of_the_whole(
    first: int, second: int, third: int, rebalance: holdings.Rebalance
) -> None:
    low, middle, high = (at(hours) for hours in sorted((first, second, third)))
    whole = holdings.decision_times(low, high, rebalance)
    parts = [
        holdings.decision_times(low, middle, rebalance),
        holdings.decision_times(middle, high, rebalance),
    ]
    assert np.concatenate(parts).tolist() == whole.tolist()


# Fit of views


def test_slope_and_clustered_error_are_those_of_a_worked_example() -> None:
    # Two decisions of two coins: z'y = 1 + 2 + 0 + 4 = 7 over z'z = 1 + 1 + 0 + 4 = 6.
    candidates, labels = pairs_of(np.array([1.0, -1.0, 0.0, 2.0]), np.array([1.0, -2.0, 3.0, 2.0]), 2)
    row = fit(candidates, labels)
    slope = 7 / 6
    scores = [1 * (1 - slope) + -1 * (-2 + slope), 0 + 2 * (2 - 2 * slope)]
    error = math.sqrt(2 / 1 * (scores[0] ** 2 + scores[1] ** 2)) / 6
    assert row["slope"] == pytest.approx(slope, rel=1e-12)
    assert row["slope_se"] == pytest.approx(error, rel=1e-12)
    t = slope / error
    assert row["confidence"] == pytest.approx(min(t * t / (1 + t * t), 0.9), rel=1e-12)
    assert (row["n_pairs"], row["status"]) == (4, "ok")
    assert row["week"] == row["known_at"] == WEEK
    assert sorted(row.index) == sorted(tables.table_of("holdings/view_fits").column_names)


def test_too_few_pairs_or_one_decision_are_insufficient_history() -> None:
    candidates, labels = pairs_of(np.array([1.0, -1.0, 0.5, 2.0]), np.array([1.0, -2.0, 3.0, 2.0]), 2)
    few = fit(candidates, labels, min_pairs=5)
    assert (few["status"], few["n_pairs"]) == ("insufficient_history", 4)
    assert math.isnan(few["confidence"])
    one_decision = pairs_of(np.array([1.0, -1.0, 0.5, 2.0]), np.array([1.0, -2.0, 3.0, 2.0]), 4)
    assert fit(*one_decision)["status"] == "insufficient_history"
    assert fit(candidates.iloc[:0], labels.iloc[:0])["status"] == "insufficient_history"


def test_scores_that_told_the_opposite_give_no_views() -> None:
    candidates, labels = pairs_of(np.array([1.0, -1.0, 0.5, 2.0]), -np.array([1.0, -2.0, 3.0, 2.0]), 2)
    row = fit(candidates, labels)
    assert row["slope"] < 0
    assert row["status"] == "no_views"
    assert math.isnan(row["confidence"])


def test_a_perfect_score_is_trusted_up_to_the_limit() -> None:
    z = np.array([1.0, -1.0, 0.5, 2.0])
    assert fit(*pairs_of(z, 0.5 * z, 2))["confidence"] == 0.9


def test_only_pairs_that_were_realised_at_the_cut_enter_the_fit() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=40)
    candidates, labels = pairs_of(z, 0.3 * z + rng.normal(size=40), 4)
    base = fit(candidates, labels)
    late = labels.copy()
    late.loc[late.index[:4], "known_at"] = WEEK + HOUR
    assert fit(candidates, late)["n_pairs"] == 36
    undecided = labels.copy()
    undecided.loc[undecided.index[:4], ["known_at", "forward_return_frac"]] = [pd.NaT, np.nan]
    assert fit(candidates, undecided)["n_pairs"] == 36
    after = candidates.assign(decision_at=candidates["decision_at"] + timedelta(weeks=2))
    after_labels = labels.assign(ts=labels["ts"] + timedelta(weeks=2))
    more = (pd.concat([candidates, after]), pd.concat([labels, after_labels]))
    assert_same_bits(fit(*more).to_frame().T, base.to_frame().T, ["week"])
    other_life = labels.assign(listing_id=labels["listing_id"].str.replace("#1", "#2"))
    assert fit(candidates, other_life)["n_pairs"] == 0
    assert fit(candidates, labels, view_weeks=1)["n_pairs"] == 28
    shuffled = (candidates.sample(frac=1, random_state=1), labels.sample(frac=1, random_state=2))
    assert_same_bits(fit(*shuffled).to_frame().T, base.to_frame().T, ["week"])


@pytest.mark.parametrize("hour", [0, 1])
def test_a_fit_of_one_week_equals_that_of_a_longer_range(hour: int) -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(size=4 * 28)
    candidates, labels = pairs_of(z, 0.3 * z + rng.normal(size=4 * 28), 4)
    # Decisions of pairs_of fall at 01:00; at 00:00 a label lies on the day before its decision.
    shift = (hour - 1) * HOUR
    candidates["decision_at"] += shift
    labels[["ts", "known_at"]] += shift
    start = WEEK - timedelta(weeks=1)
    alone = fit(candidates[candidates["decision_at"] >= start], labels[labels["ts"] >= start], view_weeks=1)
    assert alone["n_pairs"] == 4 * (6 if hour == 0 else 7)
    assert_same_bits(fit(candidates, labels, view_weeks=1).to_frame().T, alone.to_frame().T, ["week"])


def test_a_planted_relation_is_found_within_three_standard_errors() -> None:
    rng = np.random.default_rng(7)
    z = rng.normal(size=4000)
    common = np.repeat(rng.normal(size=200), 20)
    row = fit(*pairs_of(z, 0.1 * z + 0.5 * common + rng.normal(size=4000), 20), view_weeks=52, min_pairs=500)
    assert row["status"] == "ok"
    assert abs(row["slope"] - 0.1) < 3 * row["slope_se"]
    assert row["confidence"] == 0.9


# Views


def test_a_view_adds_slope_times_risk_times_score_to_equilibrium() -> None:
    raster = market(100)
    candidates = decide(raster, [at(99)], alpha=alpha_of(raster))
    rows = holdings.views(candidates, fits_of([START], slope=0.05, confidence=0.4))
    expected = candidates["pi_frac"] + 0.05 * candidates["sigma_frac"] * candidates["score_z"]
    assert rows["view_return_frac"].to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-14)
    assert set(rows["confidence"]) == {0.4}
    assert sorted(rows.columns) == sorted(tables.table_of("holdings/views").column_names)


def test_only_the_fit_of_the_week_speaks_and_only_if_it_is_ok() -> None:
    raster = market(24 * 8)
    candidates = decide(raster, [at(24 * 7 - 1), at(24 * 7)], alpha=alpha_of(raster))
    this_week = holdings.views(candidates, fits_of([START]))
    assert set(this_week["decision_at"]) == {at(24 * 7 - 1)}
    assert holdings.views(candidates, fits_of([START], status="no_views")).empty
    silent = candidates.assign(score_z=np.nan)
    assert holdings.views(silent, fits_of([START])).empty


# Holdings


def test_the_table_keeps_its_contract() -> None:
    raster = market(130)
    times = [at(99), at(123)]
    candidates = decide(raster, times, alpha=alpha_of(raster))
    rows = hold(candidates, raster, times, views=holdings.views(candidates, fits_of([START])))
    assert sorted(rows.columns) == sorted(tables.table_of("holdings/optimal_holdings").column_names)
    assert rows.equals(rows.sort_values(list(KEY), ignore_index=True))
    assert set(rows["status"]) == {"ok"}
    assert (rows["n_views"] == 6).all()
    assert (rows["known_at"] == rows["decision_at"]).all()
    cash = rows[rows["symbol"] == "USDT"]
    assert cash["listing_id"].isna().all()
    assert (cash["close"] == 1).all()
    empty = hold(candidates, raster, [])
    assert sorted(empty.columns) == sorted(rows.columns)


def test_without_views_the_market_is_held_with_the_cash_that_its_uncertainty_demands() -> None:
    raster = market(100)
    rows = hold(decide(raster, [at(99)]), raster, [at(99)])
    coins = rows[rows["symbol"] != "USDT"]
    assert set(rows["status"]) == {"no_views"}
    assert coins["weight_frac"].to_numpy() == pytest.approx(np.arange(1, 7) / 21 / 1.05, abs=1e-8)
    assert rows.set_index("symbol").loc["USDT", "weight_frac"] == pytest.approx(0.05 / 1.05, abs=1e-8)
    assert (coins["mu_frac"].to_numpy() == decide(raster, [at(99)])["pi_frac"].to_numpy()).all()


def test_a_good_view_raises_the_weight_and_its_confidence_raises_it_more() -> None:
    raster = market(100)
    candidates = decide(
        raster, [at(99)], alpha=alpha_of(raster, dict(zip(COINS, [3, 0, 0, 0, 0, -3], strict=True)))
    )
    weights = []
    for confidence in (0.2, 0.8):
        views = holdings.views(candidates, fits_of([START], confidence=confidence))
        rows = hold(candidates, raster, [at(99)], views=views).set_index("symbol")
        weights.append(rows["weight_frac"]["C0/USDT"])
    market_weight = 1 / 21 / 1.05
    assert market_weight < weights[0] < weights[1]


def test_weights_drift_with_prices_until_the_next_decision() -> None:
    raster = market(100)
    close = raster[raster["ts"] == at(98)].set_index("symbol")["close"]
    before = previous_of(
        {"C0/USDT": (0.5, close["C0/USDT"] / 2), "C1/USDT": (0.25, close["C1/USDT"])}, 0.25, at(75)
    )
    rows = hold(decide(raster, [at(99)]), raster, [at(99)], previous=before).set_index("symbol")
    # Worth 0.5 x 2 + 0.25 + 0.25 = 1.5.
    held = rows.loc[["C0/USDT", "C1/USDT", "USDT", "C2/USDT"], "weight_before_frac"]
    assert held.tolist() == pytest.approx([1 / 1.5, 0.25 / 1.5, 0.25 / 1.5, 0.0], rel=1e-14)


def test_a_held_coin_that_is_no_longer_eligible_is_sold() -> None:
    raster = market(100)
    candidates = decide(raster, [at(99)], universe=universe_of(raster, {"C0/USDT": "illiquid"}))
    before = previous_of({"C0/USDT": (1.0, 100.0)}, 0.0, at(75))
    rows = hold(candidates, raster, [at(99)], previous=before).set_index("symbol")
    assert (rows["weight_frac"]["C0/USDT"], rows["weight_before_frac"]["C0/USDT"]) == (0.0, 1.0)
    assert rows["weight_frac"].sum() == pytest.approx(1, abs=1e-12)


def test_a_dead_coin_is_valued_at_its_last_close_and_sold_once() -> None:
    raster = market(240, [*COINS[:5], Listing("C5/USDT", last=120)])
    last_close = raster[(raster["symbol"] == "C5/USDT") & raster["has_bar"]].iloc[-1]["close"]
    times = [at(100), at(230), at(239)]
    rows = hold(decide(raster, times), raster, times)
    dead = rows[rows["symbol"] == "C5/USDT"]
    # At 230 the last bar is longer ago than the look-back: the close of the decision before stands.
    assert dead["decision_at"].tolist() == [at(100), at(230)]
    assert dead["weight_frac"].iloc[1] == 0
    assert dead["weight_before_frac"].iloc[1] > 0
    assert dead["close"].nunique() == 1
    recent = hold(decide(raster, [at(100), at(140)]), raster, [at(100), at(140)])
    assert recent[recent["symbol"] == "C5/USDT"]["close"].tolist()[1] == last_close


def test_of_a_reused_ticker_the_old_life_is_sold_before_the_new_one_enters() -> None:
    raster = market(200, [*COINS[:5], Listing("C5/USDT", last=40), Listing("C5/USDT", number=2, first=95)])
    times = [at(170), at(180)]
    before = previous_of({"C5/USDT": (0.5, 100.0)}, 0.5, at(30))
    rows = hold(decide(raster, times), raster, times, previous=before)
    coin = rows[rows["symbol"] == "C5/USDT"]
    assert coin["listing_id"].tolist() == ["C5/USDT#1", "C5/USDT#2"]
    assert coin["weight_frac"].iloc[0] == 0
    assert coin["weight_before_frac"].tolist() == [0.5, 0.0]
    assert coin["weight_frac"].iloc[1] > 0


def test_no_universe_means_cash_and_says_so() -> None:
    raster = market(110)
    before = previous_of({"C0/USDT": (1.0, 100.0)}, 0.0, at(75))
    for times, candidates in (([at(113)], decide(raster, [at(113)])), ([at(500)], decide(raster, [at(500)]))):
        rows = hold(candidates, raster, times, previous=before).set_index("symbol")
        assert set(rows["status"]) == {"no_universe"}
        assert rows["weight_frac"].to_dict() == {"C0/USDT": 0.0, "USDT": 1.0}


def test_a_degraded_prior_and_a_failed_covariance_are_named() -> None:
    raster = market(100, caps=dict.fromkeys(COINS, np.nan))
    candidates = decide(raster, [at(99)])
    assert set(hold(candidates, raster, [at(99)])["status"]) == {"prior_degraded"}
    failed = candidates.assign(status="covariance_failed", sigma_frac=np.nan, pi_frac=np.nan)
    assert set(hold(failed, raster, [at(99)])["status"]) == {"cash_only"}
    before = previous_of({"C0/USDT": (0.75, 100.0)}, 0.25, at(75))
    kept = hold(failed, raster, [at(99)], previous=before).set_index("symbol")
    assert set(kept["status"]) == {"infeasible_kept_drifted"}
    assert (kept["weight_frac"] - kept["weight_before_frac"]).abs().max() < 1e-15


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.04]))
@QUICK
def test_one_decision_at_a_time_gives_the_bits_of_the_whole_range(seed: int, missing: float) -> None:
    coins = [*COINS[:4], Listing("C4/USDT", first=40), Listing("C5/USDT", last=150)]
    raster = market(220, coins, seed=seed, missing_share=missing)
    times = [at(hours) for hours in range(100, 220, 24)]
    candidates = decide(raster, times, alpha=alpha_of(raster, seed=seed))
    views = holdings.views(candidates, fits_of([START, START + timedelta(weeks=1)]))
    whole = hold(candidates, raster, times, views=views, cap=0.4)
    parts, previous = [], NOTHING
    for moment in times:
        loaded = between(raster, moment - lookback(HOUR, WINDOW), moment).sample(frac=1, random_state=seed)
        now = candidates[candidates["decision_at"] == moment].sample(frac=1, random_state=seed)
        previous = hold(now, loaded, [moment], views=views, previous=previous, cap=0.4)
        parts.append(previous)
    assert_same_bits(whole, pd.concat(parts), KEY)
    for _, rows in whole.groupby("decision_at"):
        assert abs(math.fsum(rows["weight_frac"]) - 1) < 1e-12
        assert abs(math.fsum(rows["weight_before_frac"]) - 1) < 1e-12
        coins_only = rows[rows["symbol"] != "USDT"]
        assert coins_only["weight_frac"].between(0, 0.4 + 1e-12).all()
