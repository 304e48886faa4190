from __future__ import annotations

import hashlib
import io
import json
import math
from datetime import timedelta
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_assets import tables
from crypto_assets.quant import predictions
from crypto_assets_tests.quant.rasters import HOUR, QUICK, START, assert_same_bits

WEEKS = 5
WEEK = START + timedelta(weeks=WEEKS)
NAMES = ["signal", "noise_a", "noise_b"]
FAST = {"num_boost_round": 10, "num_leaves": 7, "min_data_in_leaf": 50, "learning_rate": 0.1}
KEY = ("symbol", "ts")


def world(
    rho: float, *, seed: int = 0, n_coins: int = 8, weeks: int = WEEKS, step: int = 4
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Features and labels every ``step`` hours; (signal, return) is bivariate normal with correlation rho."""
    rng = np.random.default_rng(seed)
    n_times = weeks * 7 * 24 // step
    ts = np.datetime64(START, "us") + np.timedelta64(HOUR) * step * np.arange(n_times)
    signal = rng.normal(size=n_times * n_coins)
    outcome = rho * signal + math.sqrt(1 - rho**2) * rng.normal(size=len(signal))
    symbol = np.repeat([f"C{coin}/USDT" for coin in range(n_coins)], n_times)
    features = pd.DataFrame(
        {"symbol": symbol, "ts": np.tile(ts, n_coins), "listing_id": symbol + "#1", "signal": signal}
    )
    features["known_at"] = features["ts"] + HOUR
    features["noise_a"], features["noise_b"] = rng.normal(size=(2, len(features)))
    labels = features[["symbol", "ts", "listing_id"]].assign(
        known_at=features["ts"] + 26 * HOUR, horizon="24h", forward_return_frac=0.01 * outcome
    )
    return features, labels


def fit(features: pd.DataFrame, labels: pd.DataFrame, **changes: Any) -> pd.DataFrame:
    chosen: dict[str, Any] = {
        "week": WEEK,
        "model": "sign",
        "feature_names": NAMES,
        "parameters": FAST,
        "train_weeks": WEEKS,
        "min_rows": 500,
        "seed": 1,
    }
    return predictions.fit_model(features, labels, **(chosen | changes))


# Input errors


@pytest.mark.parametrize("name", ["seed", "bagging_seed", "num_threads", "deterministic", "objective"])
def test_parameters_that_would_break_repeatability_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}'.*repeats to the bit"):
        fit(*world(0.3), parameters={name: 1})


def test_a_fit_refuses_what_it_cannot_mean() -> None:
    features, labels = world(0.3)
    with pytest.raises(ValueError, match="not a Monday"):
        fit(features, labels, week=WEEK + timedelta(days=1))
    with pytest.raises(ValueError, match="calibration_weeks"):
        fit(features, labels, calibration_weeks=WEEKS)
    with pytest.raises(ValueError, match="features lacks the columns other"):
        fit(features, labels, feature_names=["other"])
    with pytest.raises(ValueError, match="labels has two rows of"):
        fit(features, pd.concat([labels, labels.head(1)]))
    with pytest.raises(ValueError, match=r"horizons \['12h', '24h'\]"):
        fit(features, labels.assign(horizon=np.where(labels["symbol"] == "C0/USDT", "12h", "24h")))


def test_two_fits_of_a_week_or_one_from_the_future_are_refused() -> None:
    features, labels = world(0.3)
    row = fit(features, labels)
    with pytest.raises(ValueError, match="two fits for one week"):
        predictions.predict(features, pd.concat([row, row]), "sign")
    with pytest.raises(ValueError, match="known after its week began"):
        predictions.predict(features, row.assign(known_at=row["known_at"] + HOUR), "sign")


# Features side by side


def sets() -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    ts = np.datetime64(START, "us") + np.timedelta64(HOUR) * np.arange(3)
    key = pd.DataFrame(
        {"symbol": "A/USDT", "ts": ts, "listing_id": "A/USDT#1", "known_at": ts + np.timedelta64(HOUR)}
    )
    price = key.assign(return_1h_log=[0.1, 0.2, 0.3])
    technical = key.assign(
        rsi_14h=[40.0, 50.0, 60.0], known_at=key["known_at"] + pd.to_timedelta([0, 5, 0], unit="min")
    )
    cross = key.iloc[1:].assign(return_24h_xs_rank=[0.3, 0.7], n_eligible=[9, 9])
    return cross, {"price": price, "technical": technical.iloc[:2]}


def test_feature_sets_are_joined_on_the_eligible_rows() -> None:
    wide = predictions.assemble_features(*sets())
    assert wide["ts"].tolist() == [START + HOUR, START + 2 * HOUR]
    assert wide["known_at"].tolist() == [START + 2 * HOUR + timedelta(minutes=5), START + 3 * HOUR]
    assert wide["return_1h_log"].tolist() == [0.2, 0.3]
    assert wide["rsi_14h"].iloc[0] == 50
    assert math.isnan(wide["rsi_14h"].iloc[1])
    assert sorted(wide.columns) == sorted(
        ["symbol", "ts", "known_at", "listing_id", "return_1h_log", "rsi_14h", "return_24h_xs_rank"]
    )


def test_feature_sets_that_repeat_or_clash_are_refused() -> None:
    cross, others = sets()
    twice = pd.concat([others["technical"], others["technical"]])
    with pytest.raises(ValueError, match="technical has two rows"):
        predictions.assemble_features(cross, others | {"technical": twice})
    with pytest.raises(ValueError, match="rsi_14h"):
        predictions.assemble_features(cross, others | {"price": others["price"].assign(rsi_14h=1.0)})


# Fit


def test_a_fit_keeps_its_contract_and_describes_itself() -> None:
    row = fit(*world(0.4))
    assert sorted(row.columns) == sorted(tables.table_of("predictions/models").column_names)
    assert len(row) == 1
    one = row.iloc[0]
    assert one["status"] == "ok"
    assert one["week"] == one["known_at"] == WEEK
    assert one["train_from"] == START
    assert json.loads(one["features"]) == NAMES
    described = json.loads(one["parameters"])
    assert described == {
        **predictions.PARAMETERS,
        **FAST,
        "seed": 1,
        "train_weeks": 5,
        "calibration_weeks": 2,
    }
    stored = (
        f"{one['model_text']}\n{float(one['calibration_intercept'])!r}\n{float(one['calibration_slope'])!r}"
    )
    assert one["model_hash"] == hashlib.sha256(stored.encode()).hexdigest()
    assert [str(row[name].dtype) for name in ("week", "known_at", "train_from")] == ["datetime64[us]"] * 3


def test_training_and_calibration_rows_are_counted_by_hand() -> None:
    # 8 coins, 42 rows a week. Calibration: rows of the last two weeks whose label is known by the cut (26 h
    # after ts), that is all but the last 6 of each coin. Training: three weeks, again without the last 6
    # before the split.
    row = fit(*world(0.4)).iloc[0]
    assert row["n_calibration"] == 8 * (84 - 6)
    assert row["n_train"] == 8 * (126 - 6)


def test_rows_unknown_at_the_cut_do_not_matter() -> None:
    features, labels = world(0.4)
    base = fit(features, labels)
    late = labels["known_at"] > WEEK
    assert late.any()
    changed = labels.assign(forward_return_frac=labels["forward_return_frac"].where(~late, 99.0))
    assert_same_bits(fit(features, changed), base, ["week"])
    undecided = labels.assign(
        known_at=labels["known_at"].where(~late),
        forward_return_frac=labels["forward_return_frac"].where(~late),
    )
    assert_same_bits(fit(features, undecided), base, ["week"])
    later_feature = features["ts"] == features["ts"].min()
    hidden = features.assign(known_at=features["known_at"].where(~later_feature, WEEK + HOUR))
    assert fit(hidden, labels).iloc[0]["n_train"] == base.iloc[0]["n_train"] - 8


@given(st.integers(0, 10_000), st.integers(0, 3))
@QUICK
def test_order_of_rows_and_rows_outside_the_window_do_not_matter(seed: int, extra: int) -> None:
    features, labels = world(0.4)
    base = fit(features, labels, parameters=FAST | {"num_boost_round": 3})
    more_features, more_labels = world(0.9, seed=seed, weeks=1)
    shift = timedelta(weeks=-1 - extra) if seed % 2 else timedelta(weeks=WEEKS + extra)
    moved = [
        frame.assign(ts=frame["ts"] + shift, known_at=frame["known_at"] + shift)
        for frame in (more_features, more_labels)
    ]
    shuffled = [
        pd.concat(pair).sample(frac=1, random_state=seed)
        for pair in zip((features, labels), moved, strict=True)
    ]
    again = fit(shuffled[0], shuffled[1], parameters=FAST | {"num_boost_round": 3})
    assert_same_bits(again, base, ["week"])


def test_another_life_of_a_ticker_has_no_label() -> None:
    features, labels = world(0.4)
    other = labels.assign(listing_id=labels["listing_id"].where(labels["symbol"] != "C0/USDT", "C0/USDT#2"))
    assert fit(features, other).iloc[0]["n_train"] == 7 * 120


def test_a_fit_says_why_it_gives_no_model() -> None:
    features, labels = world(0.4)
    cases = {
        "insufficient_history": [
            fit(features, labels, min_rows=961),
            fit(features, labels, min_calibration_rows=625),
            fit(features.iloc[:0], labels.iloc[:0]),
        ],
        "one_class": [fit(features, labels.assign(forward_return_frac=0.01))],
    }
    for status, rows in cases.items():
        for row in rows:
            assert row.iloc[0]["status"] == status
            assert row[["model_text", "model_hash", "auc", "calibration_slope"]].isna().all(axis=None)
            assert sorted(row.columns) == sorted(tables.table_of("predictions/models").column_names)
            assert str(row["train_from"].dtype) == "datetime64[us]"
            assert predictions.predict(features, row, "sign").empty


def test_a_signal_that_turned_has_no_skill_and_no_scores() -> None:
    features, labels = world(0.6)
    turned = labels["ts"] >= WEEK - timedelta(weeks=2)
    sign = np.where(turned, -1.0, 1.0)
    row = fit(features, labels.assign(forward_return_frac=labels["forward_return_frac"] * sign))
    assert row.iloc[0]["status"] == "no_skill"
    assert row.iloc[0]["calibration_slope"] < 0
    assert row.iloc[0]["auc"] < 0.5
    assert row.iloc[0]["model_text"]
    assert predictions.predict(features, row, "sign").empty


# Statistics


def test_a_planted_signal_is_found_within_the_band_of_its_correlation() -> None:
    rho, chosen = (
        0.3,
        {"parameters": {"min_data_in_leaf": 200}, "train_weeks": 10, "week": START + timedelta(weeks=10)},
    )
    features, labels = world(rho, n_coins=20, weeks=10)
    row = fit(features, labels, **chosen).iloc[0]
    oracle = 0.5 + 2 / math.pi * math.asin(rho / math.sqrt(2))
    n = row["n_calibration"]
    error = math.sqrt(oracle * (1 - oracle) / (n / 4))
    later = labels[
        (labels["ts"] >= START + timedelta(weeks=8)) & (labels["known_at"] <= START + timedelta(weeks=10))
    ]
    signal = features.loc[later.index, "signal"].to_numpy()
    assert len(later) == n
    assert (
        abs(predictions.area_under_roc(signal, later["forward_return_frac"].to_numpy() > 0) - oracle)
        < 3 * error
    )
    assert row["auc"] <= oracle + 3 * error
    assert row["auc"] - 0.5 >= 0.7 * (oracle - 0.5)
    assert row["status"] == "ok"


def test_pure_noise_has_no_edge_on_rows_it_has_not_seen() -> None:
    outcomes = []
    for seed in range(8):
        row = fit(*world(0.0, seed=seed)).iloc[0]
        n = row["n_calibration"]
        outcomes.append((row["auc"] - 0.5) / math.sqrt((n + 1) / (12 * (n / 2) ** 2)))
    assert max(abs(value) for value in outcomes) < 3
    assert abs(np.mean(outcomes)) < 3 / math.sqrt(len(outcomes))


def test_calibrated_probabilities_mean_what_they_say() -> None:
    rng = np.random.default_rng(0)
    score = rng.normal(size=20_000)
    gain = rng.random(len(score)) < 1 / (1 + np.exp(-(0.3 + 0.7 * score)))
    intercept, slope = predictions.calibrate(score, gain)
    assert intercept == pytest.approx(0.3, abs=0.05)
    assert slope == pytest.approx(0.7, abs=0.05)
    # First-order conditions of the likelihood with Platt's targets.
    target = np.where(gain, (gain.sum() + 1) / (gain.sum() + 2), 1 / ((~gain).sum() + 2))
    gap = 1 / (1 + np.exp(-(intercept + slope * score))) - target
    assert abs(gap.sum()) < 1e-6
    assert abs((gap * score).sum()) < 1e-6


def test_calibration_survives_degenerate_scores() -> None:
    gain = np.array([True, True, False, True])
    assert predictions.calibrate(np.zeros(4), gain) == (math.log(4 / 2), 0.0)
    intercept, slope = predictions.calibrate(np.array([1.0, 2.0, -3.0, 4.0]), gain)
    assert slope > 0
    assert math.isfinite(intercept)
    assert predictions.calibrate(np.array([1e-9, 2e-9, -3e-9, 4e-9]), gain)[1] == pytest.approx(
        slope * 1e9, rel=1e-6
    )


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
@QUICK
def test_area_under_roc_counts_pairs(pairs: list[tuple[int, bool]]) -> None:
    score, gain = np.array([value for value, _ in pairs], dtype=float), np.array([won for _, won in pairs])
    if gain.all() or not gain.any():
        return
    wins = [(a > b) + 0.5 * (a == b) for a in score[gain] for b in score[~gain]]
    assert predictions.area_under_roc(score, gain) == pytest.approx(np.mean(wins), abs=1e-12)


# Scores


def two_weeks() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Fits of two weeks and the features of both."""
    features, labels = world(0.4, weeks=WEEKS + 2)
    fits = pd.concat(
        [fit(features, labels), fit(features, labels, week=WEEK + timedelta(weeks=1))], ignore_index=True
    )
    return fits, features[features["ts"] >= WEEK]


def test_scores_come_from_the_model_of_their_week() -> None:
    fits, features = two_weeks()
    scores = predictions.predict(features, fits, "sign")
    assert sorted(scores.columns) == sorted(tables.table_of("predictions/scores").column_names)
    assert len(scores) == len(features)
    second = scores["ts"] >= WEEK + timedelta(weeks=1)
    assert scores.loc[~second, "model_hash"].unique().tolist() == [fits["model_hash"][0]]
    assert scores.loc[second, "model_hash"].unique().tolist() == [fits["model_hash"][1]]
    one = fits.iloc[0]
    linear = one["calibration_intercept"] + one["calibration_slope"] * scores.loc[~second, "raw_score"]
    assert scores.loc[~second, "probability"].to_numpy() == pytest.approx(
        1 / (1 + np.exp(-linear.to_numpy())), rel=1e-12
    )
    assert (scores["known_at"] == scores["ts"] + HOUR).all()
    assert predictions.predict(features, fits, "other").empty
    assert len(predictions.predict(features, fits.iloc[:1], "sign")) == (~second).sum()


def test_a_row_without_any_feature_has_no_score_and_one_with_some_has() -> None:
    fits, features = two_weeks()
    rows = features.head(3).reset_index(drop=True)
    rows.loc[0, NAMES] = np.nan
    rows.loc[1, "noise_a"] = np.nan
    scores = predictions.predict(rows, fits, "sign")
    assert scores["ts"].tolist() == rows["ts"].tolist()[1:]
    assert scores["probability"].between(0, 1).all()


def test_storing_a_fit_changes_no_bit_of_its_scores() -> None:
    fits, features = two_weeks()
    file = io.BytesIO()
    fits.to_parquet(file)
    restored = pd.read_parquet(io.BytesIO(file.getvalue()))
    scores = predictions.predict(features, fits, "sign")
    assert len(scores) == len(features)
    assert_same_bits(scores, predictions.predict(features, restored, "sign"), KEY)
    # The calibration was made with the stored text: the same text gives the same raw scores as the fit saw.
    text = fits["model_text"][0]
    assert lightgbm.Booster(model_str=text).model_to_string() == text


@given(st.integers(0, 10_000), st.integers(1, 200))
@QUICK
def test_a_score_depends_on_its_own_row_only(seed: int, n: int) -> None:
    fits, features = two_weeks()
    features = features.mask(np.random.default_rng(seed).random(features.shape) < 0.1).assign(
        **{name: features[name] for name in ("symbol", "ts", "known_at", "listing_id")}
    )
    whole = predictions.predict(features, fits, "sign")
    some = features.sample(n=n, random_state=seed)
    part = predictions.predict(some, fits, "sign")
    kept = whole.merge(some[["symbol", "ts"]], on=["symbol", "ts"])
    assert_same_bits(kept, part, KEY)
