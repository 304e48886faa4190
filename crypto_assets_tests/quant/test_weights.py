from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_assets import tables
from crypto_assets.quant import weights
from crypto_assets_tests.quant.rasters import QUICK, assert_same_bits

WEEK = datetime(2022, 5, 30)
LOOKBACK = timedelta(weeks=8)
NAMES = ["f1", "f2", "f3"]
RETURNS = np.array([-0.08, -0.03, -0.02, -0.01, 0, 0.005, 0.01, 0.02, 0.03, 0.09, 0.012, -0.004])
FACTOR = np.array([-1, -0.5, -0.2, 0.1, 0.3, 0.2, 0.4, 0.5, 0.9, 1.2, -0.1, 0])


def history(
    n_hours: int = 24 * 20, symbols: int = 3, seed: int = 0, end: datetime = WEEK, hours_known: int = 25
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Factor rows and labels of the hours before ``end``; the return follows f1, ignores f2, opposes f3."""
    rng = np.random.default_rng(seed)
    parts, labels = [], []
    for number in range(symbols):
        ts = np.datetime64(end, "us") - np.timedelta64(1, "h") * np.arange(n_hours, 0, -1)
        z = rng.normal(size=(n_hours, 3))
        identity = pd.DataFrame({"symbol": f"S{number}/USDT", "ts": ts, "listing_id": f"S{number}/USDT#1"})
        for name, column in zip(NAMES, z.T, strict=True):
            parts.append(
                identity.assign(
                    factor=name, known_at=ts + np.timedelta64(1, "h"), value=column, value_z=column
                )
            )
        change = 0.01 * (z[:, 0] - z[:, 2]) + rng.normal(0, 0.005, n_hours)
        labels.append(
            identity.assign(
                known_at=ts + np.timedelta64(hours_known, "h"), horizon="24h", forward_return_frac=change
            )
        )
    return pd.concat(parts, ignore_index=True), pd.concat(labels, ignore_index=True)


def fit(factors: pd.DataFrame, labels: pd.DataFrame, **changes: object) -> pd.DataFrame:
    arguments = {"week": WEEK, "names": NAMES, "lookback": LOOKBACK} | changes
    return weights.fit_alpha_weights(factors, labels, **arguments)  # ty: ignore[invalid-argument-type]


@pytest.mark.parametrize("quantiles", [[], [0.5, 0.5], [0.6, 0.4], [0.0, 0.5], [0.5, 1.0]])
def test_quantiles_must_increase_inside_zero_and_one(quantiles: list[float]) -> None:
    with pytest.raises(ValueError, match="must increase"):
        weights.bin_by_quantiles(RETURNS, quantiles)


@pytest.mark.parametrize("cutoffs", [[1.0], [2.0, 1.0], [0.0, np.nan]])
def test_cutoffs_must_fit_the_quantiles(cutoffs: list[float]) -> None:
    with pytest.raises(ValueError, match="cutoffs were"):
        weights.bin_by_quantiles(RETURNS, [0.2, 0.8], cutoffs)


@pytest.mark.parametrize("scores", [[], [1.0, np.nan]])
def test_weights_need_finite_scores(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one score"):
        weights.normalise_scores(np.array(scores))


def test_a_fit_refuses_bad_weeks_names_and_repeated_labels() -> None:
    factors, labels = history(50)
    with pytest.raises(ValueError, match="no Monday"):
        fit(factors, labels, week=WEEK + timedelta(days=1))
    for names in ([], ["f1", "f1"]):
        with pytest.raises(ValueError, match="name at least one"):
            fit(factors, labels, names=names)
    with pytest.raises(ValueError, match="labels has two rows"):
        fit(factors, pd.concat([labels, labels]))
    with pytest.raises(ValueError, match="lacks the columns value_z"):
        fit(factors.drop(columns="value_z"), labels)


def test_the_reference_vector_scores_six() -> None:
    return_bins = weights.bin_by_quantiles(RETURNS, weights.RETURN_QUANTILES)
    factor_bins = weights.bin_by_quantiles(FACTOR, weights.FACTOR_QUANTILES)
    assert return_bins.tolist() == [-2, -1, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0]
    assert factor_bins.tolist() == [-1, -1, -1, -1, 1, 1, 1, 1, 1, 1, -1, -1]
    assert weights.factor_score(return_bins, factor_bins) == 6.0


def test_groups_are_half_open() -> None:
    bins = weights.bin_by_quantiles(np.array([0.9, 1.0, 1.5, 2.0, 3.0]), [0.2, 0.8], [1.0, 2.0])
    assert bins.tolist() == [-1.0, 0.0, 0.0, 1.0, 1.0]


def test_labels_already_given_are_never_labelled_again() -> None:
    # The seed's binning in place turned all of these into +1.
    values = np.linspace(-10.0, 0.0, 1001)
    assert sorted(set(weights.bin_by_quantiles(values, [0.5]))) == [-1.0, 1.0]
    percent = np.linspace(-8.0, 8.0, 1001)
    assert set(weights.bin_by_quantiles(percent, weights.RETURN_QUANTILES)) == {-2.0, -1.0, 0.0, 1.0, 2.0}


shares = st.sampled_from([(0.5,), (0.3, 0.7), (0.1, 0.5, 0.9), weights.RETURN_QUANTILES])
numbers = st.one_of(
    st.floats(-1e6, 1e6), st.integers(-3, 3).map(float), st.just(float("nan")), st.just(float("inf"))
)


@QUICK
@given(values=st.lists(numbers, max_size=60), quantiles=shares)
def test_bins_are_monotone_labels_and_missing_stays_missing(
    values: list[float], quantiles: tuple[float, ...]
) -> None:
    array = np.array(values, dtype=np.float64)
    before = array.copy()
    bins = weights.bin_by_quantiles(array, quantiles)
    np.testing.assert_array_equal(array, before)
    present = np.isfinite(array)
    assert np.isnan(bins[~present]).all()
    assert set(bins[present]) <= set(weights.bin_labels(len(quantiles)))
    order = np.argsort(array[present], kind="stable")
    assert (np.diff(bins[present][order]) >= 0).all()


@QUICK
@given(n=st.integers(50, 400), seed=st.integers(0, 1000), quantiles=shares)
def test_counts_per_bin_match_the_quantiles(n: int, seed: int, quantiles: tuple[float, ...]) -> None:
    values = np.random.default_rng(seed).permutation(n).astype(np.float64)
    bins = weights.bin_by_quantiles(values, quantiles)
    edges = np.array([0.0, *quantiles, 1.0])
    for label, share in zip(weights.bin_labels(len(quantiles)), np.diff(edges), strict=True):
        assert abs(np.count_nonzero(bins == label) - share * n) <= 1.5


@QUICK
@given(scores=st.lists(st.integers(-1000, 1000), min_size=1, max_size=10))
def test_weights_are_never_negative_sum_to_one_and_the_worst_gets_nothing(scores: list[int]) -> None:
    result = weights.normalise_scores(np.array(scores, dtype=np.float64))
    assert (result >= 0).all()
    assert result.sum() == pytest.approx(1.0, abs=1e-15 * len(scores))
    if len(set(scores)) > 1:
        assert result[np.argmin(scores)] == 0.0
    else:
        assert (result == 1 / len(scores)).all()


def test_a_fit_prefers_the_factor_that_told_returns() -> None:
    result = fit(*history())
    assert sorted(result.columns) == sorted(tables.table_of("weights/alpha_weights").column_names)
    by_name = result.set_index("factor")
    assert (by_name["status"] == "ok").all()
    assert by_name["weight"].sum() == pytest.approx(1.0)
    best, middle, worst = by_name["weight"].loc[["f1", "f2", "f3"]].to_list()
    assert best > middle > worst == 0.0
    assert (by_name["known_at"] == WEEK).all()
    # Labels of the last day were not realised at the cut.
    assert (by_name["n_pairs"] == 3 * (24 * 20 - 24)).all()


def test_a_fit_by_hand_sums_scores_over_listings() -> None:
    ts = np.datetime64("2022-05-02", "us") + np.timedelta64(1, "h") * np.arange(len(RETURNS))
    parts, labels = [], []
    for number, sign in enumerate((1.0, 1.0, -1.0)):
        identity = pd.DataFrame({"symbol": f"S{number}/USDT", "ts": ts, "listing_id": f"S{number}/USDT#1"})
        known = identity.assign(known_at=ts + np.timedelta64(1, "h"))
        parts += [known.assign(factor="f1", value_z=FACTOR), known.assign(factor="f2", value_z=-FACTOR)]
        labels.append(known.assign(forward_return_frac=sign * RETURNS))
    result = fit(pd.concat(parts), pd.concat(labels), names=["f1", "f2"], min_pairs=1).set_index("factor")
    expected = {
        name: sum(
            weights.factor_score(
                weights.bin_by_quantiles(sign * RETURNS, weights.RETURN_QUANTILES),
                weights.bin_by_quantiles(flip * FACTOR, [0.5]),
            )
            for sign in (1.0, 1.0, -1.0)
        )
        for name, flip in (("f1", 1.0), ("f2", -1.0))
    }
    assert result["score"].to_dict() == expected
    assert expected["f1"] == 6.0
    assert result["weight"].to_dict() == {"f1": 1.0, "f2": 0.0}


def test_too_few_pairs_give_no_weights() -> None:
    factors, labels = history()
    result = fit(factors, labels, min_pairs=2000)
    assert (result["status"] == "insufficient_history").all()
    assert result[["score", "weight"]].isna().all(axis=None)
    empty = fit(factors.iloc[:0], labels.iloc[:0], min_pairs=0)
    assert (empty["status"] == "insufficient_history").all()
    assert (empty["n_pairs"] == 0).all()


def test_rows_with_a_missing_factor_are_dropped_for_all_factors() -> None:
    factors, labels = history()
    chosen = (factors["factor"] == "f2") & (factors["symbol"] == "S0/USDT")
    holes = factors.assign(value_z=factors["value_z"].mask(chosen))
    assert (fit(holes, labels)["n_pairs"] == 2 * (24 * 20 - 24)).all()


@QUICK
@given(seed=st.integers(0, 1000), shuffle=st.integers(0, 1000))
def test_a_fit_sees_only_what_was_known_before_its_week(seed: int, shuffle: int) -> None:
    factors, labels = history(seed=seed)
    expected = fit(factors, labels)
    later_factors, later_labels = history(24 * 7, seed=seed + 1, end=WEEK + timedelta(days=7))
    old_factors, old_labels = history(48, seed=seed + 2, end=WEEK - LOOKBACK)
    undecided = later_labels.assign(
        known_at=later_labels["known_at"].mask(later_labels["ts"].notna()), forward_return_frac=9.9
    )
    more_factors = pd.concat([factors, later_factors, old_factors]).sample(frac=1, random_state=shuffle)
    for rest in (later_labels, undecided):
        more_labels = pd.concat([labels, rest, old_labels]).sample(frac=1, random_state=shuffle)
        assert_same_bits(fit(more_factors, more_labels), expected, ["week", "factor"])


def test_scores_join_weights_by_name_and_week() -> None:
    factors, _ = history(24 * 14, symbols=1, end=WEEK + timedelta(days=7))
    earlier, later = WEEK - timedelta(days=7), WEEK
    fitted = pd.DataFrame(
        {
            "week": [earlier, earlier, later, later],
            "factor": ["f3", "f1", "f1", "f3"],
            "known_at": [earlier, earlier, later, later],
            "weight": [0.25, 0.75, 1.0, 0.0],
            "score": 0.0,
            "n_pairs": 1000,
            "status": "ok",
        }
    )
    result = weights.alpha_scores(factors.sample(frac=1, random_state=3), fitted)
    assert sorted(result.columns) == sorted(tables.table_of("weights/alpha_scores").column_names)
    wide = factors.pivot(index="ts", columns="factor", values="value_z")
    scores = result.set_index("ts")["alpha_score"]
    for ts in (wide.index[0], wide.index[100]):
        assert scores[ts] == pytest.approx(0.75 * wide.loc[ts, "f1"] + 0.25 * wide.loc[ts, "f3"], rel=1e-14)
    assert scores[wide.index[-1]] == wide["f1"].iloc[-1]
    assert (result["known_at"] == result["ts"] + timedelta(hours=1)).all()


def test_scores_are_null_without_ok_weights_or_with_a_missing_factor() -> None:
    factors, labels = history(24 * 7, symbols=1, end=WEEK + timedelta(days=7))
    fitted = fit(*history())
    ts = factors["ts"].min()
    hole = factors.assign(
        value_z=factors["value_z"].mask((factors["ts"] == ts) & (factors["factor"] == "f3"))
    )
    result = weights.alpha_scores(hole, fitted).set_index("ts")["alpha_score"]
    assert result.isna().tolist() == [True] + [False] * (24 * 7 - 1)
    nothing = fitted.assign(status="insufficient_history", weight=np.nan)
    for without in (nothing, fitted.iloc[:0], fitted.assign(week=WEEK - timedelta(days=7))):
        assert weights.alpha_scores(factors, without)["alpha_score"].isna().all()
    assert weights.alpha_scores(factors.loc[factors["factor"] != "f2"], fitted)["alpha_score"].isna().all()


def test_rows_without_any_standardised_value_have_no_score_row() -> None:
    factors, _ = history(30, symbols=2)
    outside = factors.assign(value_z=factors["value_z"].mask(factors["symbol"] == "S1/USDT"))
    result = weights.alpha_scores(outside, fit(*history()))
    assert set(result["symbol"]) == {"S0/USDT"}
    assert weights.alpha_scores(outside.iloc[:0], fit(*history())).empty


@QUICK
@given(seed=st.integers(0, 1000), first=st.integers(0, 300), n=st.integers(1, 40))
def test_scores_have_the_same_bits_in_any_chunk(seed: int, first: int, n: int) -> None:
    factors, _ = history(24 * 14, seed=seed, end=WEEK + timedelta(days=7))
    first_week, second_week = history(seed=seed, end=WEEK - timedelta(days=7)), history(seed=seed)
    fitted = pd.concat([fit(*first_week, week=WEEK - timedelta(days=7)), fit(*second_week)])
    whole = weights.alpha_scores(factors, fitted)
    start = factors["ts"].min() + timedelta(hours=first)
    end = start + timedelta(hours=n)
    chunk = weights.alpha_scores(factors.loc[(factors["ts"] >= start) & (factors["ts"] < end)], fitted)
    assert_same_bits(whole.loc[(whole["ts"] >= start) & (whole["ts"] < end)], chunk)
