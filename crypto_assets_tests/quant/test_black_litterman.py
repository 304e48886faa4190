from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from crypto_assets.quant import black_litterman as bl
from crypto_assets_tests.quant.rasters import QUICK
from crypto_assets_tests.recorded import RECORDED, needs_recorded

PAPERS = RECORDED / "ref_black_litterman"


def random_sigma(rng: np.random.Generator, n: int, scale: float = 1e-3) -> np.ndarray:
    factors = rng.normal(size=(n, n + 5))
    return factors @ factors.T / (n + 5) * scale


def random_returns(rng: np.random.Generator, n_times: int, n: int) -> np.ndarray:
    return rng.normal(0, 0.006, (n_times, n)) + rng.normal(0, 0.006, (n_times, 1))


# Input errors


@pytest.mark.parametrize("confidence", [-0.1, 1.1])
def test_a_confidence_outside_its_range_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidences must lie in"):
        bl.posterior(np.eye(2), np.zeros(2), np.eye(2)[:1], np.zeros(1), np.array([confidence]), tau=0.05)


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        bl.posterior(np.eye(2), np.zeros(3), np.eye(3)[:1], np.zeros(1), np.ones(1), tau=0.05)
    with pytest.raises(ValueError, match="must be finite"):
        bl.posterior(np.eye(2), np.zeros(2), np.eye(2)[:1], np.array([np.nan]), np.ones(1), tau=0.05)
    with pytest.raises(ValueError, match="do not fit"):
        bl.optimise(np.zeros(2), np.eye(3), delta=2.5, cap=1.0)


@pytest.mark.parametrize(
    ("delta", "cap", "cost"), [(0.0, 1.0, 0.0), (2.5, 0.0, 0.0), (2.5, 1.5, 0.0), (2.5, 1.0, -1.0)]
)
def test_parameters_out_of_range_are_refused(delta: float, cap: float, cost: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        bl.optimise(np.zeros(2), np.eye(2), delta=delta, cap=cap, turnover_cost_frac=cost)


def test_a_covariance_of_too_few_common_returns_is_refused() -> None:
    returns = random_returns(np.random.default_rng(0), 10, 2)
    returns[:4, 0] = np.nan
    returns[8:, 1] = np.nan
    with pytest.raises(ValueError, match="share fewer than 5 of 10"):
        bl.covariance(returns, periods=1)
    returns[:] = np.nan
    with pytest.raises(ValueError, match="0 of 10 times have returns"):
        bl.covariance(returns, periods=1)


# Published numbers


# He and Litterman (1999), tables 1 and 2: Australia, Canada, France, Germany, Japan, UK, USA.
VOLATILITY = np.array([0.16, 0.203, 0.248, 0.271, 0.21, 0.2, 0.187])
W_EQ = np.array([0.016, 0.022, 0.052, 0.055, 0.116, 0.124, 0.615])
PI_PERCENT = np.array([3.9, 6.9, 8.4, 9.0, 4.3, 6.8, 7.6])
CORRELATION = np.array(
    [
        [1.000, 0.488, 0.478, 0.515, 0.439, 0.512, 0.491],
        [0.488, 1.000, 0.664, 0.655, 0.310, 0.608, 0.779],
        [0.478, 0.664, 1.000, 0.861, 0.355, 0.783, 0.668],
        [0.515, 0.655, 0.861, 1.000, 0.354, 0.777, 0.653],
        [0.439, 0.310, 0.355, 0.354, 1.000, 0.405, 0.306],
        [0.512, 0.608, 0.783, 0.777, 0.405, 1.000, 0.652],
        [0.491, 0.779, 0.668, 0.653, 0.306, 0.652, 1.000],
    ]
)
GERMANY_OVER_FRANCE_AND_UK = [0, 0, -0.295, 1, 0, -0.705, 0]
CANADA_OVER_USA = [0, 1, 0, 0, 0, 0, -1]


# The paper's examples of one and of two views, in more digits than it prints.
@pytest.mark.parametrize(
    ("picks", "expected", "mu", "weights"),
    [
        (
            [GERMANY_OVER_FRANCE_AND_UK],
            [0.05],
            [
                0.0432802351,
                0.0757566247,
                0.0928767252,
                0.1103671444,
                0.0450616399,
                0.0695271029,
                0.0806932954,
            ],
            [0.0152381, 0.02095238, -0.03948465, 0.35410454, 0.11047619, -0.09461989, 0.58571429],
        ),
        (
            [GERMANY_OVER_FRANCE_AND_UK, CANADA_OVER_USA],
            [0.05, 0.03],
            [
                0.0442214515,
                0.0872986419,
                0.0947974504,
                0.1120994701,
                0.0461634653,
                0.0697166032,
                0.0748155953,
            ],
            [0.0152381, 0.41863571, -0.03409321, 0.33582847, 0.11047619, -0.08173526, 0.18803095],
        ),
    ],
)
def test_he_and_litterman_1999_is_reproduced(
    picks: list[list[float]], expected: list[float], mu: list[float], weights: list[float]
) -> None:
    delta, tau = 2.5, 0.05
    sigma = CORRELATION * np.outer(VOLATILITY, VOLATILITY)
    pi = bl.equilibrium_returns(sigma, W_EQ, delta=delta)
    assert np.abs(100 * pi - PI_PERCENT).max() <= 0.05 + 1e-9
    half = np.full(len(picks), 0.5)  # Omega = tau p'Sigma p is the confidence of one half.
    result = bl.posterior(sigma, pi, np.array(picks, dtype=float), np.array(expected), half, tau=tau)
    assert np.abs(result.mu - mu).max() < 1e-9
    found = np.linalg.solve(delta * result.covariance, result.mu)
    assert np.abs(found - weights).max() < 1e-8
    # Both views trade one side against the other, so they leave the sum of weights alone.
    assert found.sum() == pytest.approx(1 / (1 + tau), abs=1e-9)


@needs_recorded
def test_market_implied_returns_of_pypfopts_own_test_are_reproduced() -> None:
    folder = PAPERS / "pypfopt"
    expected = json.loads((folder / "expected_black_litterman.json").read_text())
    prices = pd.read_csv(folder / "stock_prices.csv.gz", parse_dates=True, index_col="date")
    returns = (prices / prices.shift() - 1).iloc[1:]
    sigma = returns.cov().to_numpy() * 252
    caps = np.array([expected["market_caps"][name] for name in prices.columns])
    spy = pd.read_csv(folder / "spy_prices.csv", parse_dates=True, index_col="date")["SPY"]
    spy_returns = (spy / spy.shift() - 1).dropna()
    delta = (spy_returns.mean() * 252 - 0.02) / (spy_returns.var() * 252)
    assert delta == pytest.approx(expected["market_implied_risk_aversion"]["expected"], abs=1e-5)
    pi = bl.equilibrium_returns(sigma, caps / caps.sum(), delta=delta)
    assert np.abs(pi + 0.02 - expected["test_market_implied_prior"]["arrays"][0]).max() < 1e-7


# Posterior


@given(st.integers(0, 10_000), st.integers(1, 8), st.floats(0.001, 1.0))
@QUICK
def test_a_single_view_moves_its_portfolio_by_its_confidence(seed: int, n: int, confidence: float) -> None:
    rng = np.random.default_rng(seed)
    sigma, pi, p = random_sigma(rng, n), rng.normal(0, 1e-3, n), rng.normal(size=n)
    q = rng.normal(0, 1e-2)
    result = bl.posterior(sigma, pi, p[None, :], np.array([q]), np.array([confidence]), tau=0.05)
    assert p @ result.mu == pytest.approx(p @ pi + confidence * (q - p @ pi), abs=1e-12)


def test_a_view_without_confidence_is_dropped_and_a_certain_one_is_met() -> None:
    rng = np.random.default_rng(3)
    sigma, pi = random_sigma(rng, 4), rng.normal(0, 1e-3, 4)
    picks, expected = np.eye(4)[:2], np.array([0.01, -0.02])
    dropped = bl.posterior(sigma, pi, picks, expected, np.array([0.0, 0.6]), tau=0.05)
    alone = bl.posterior(sigma, pi, picks[1:], expected[1:], np.array([0.6]), tau=0.05)
    assert (dropped.mu == alone.mu).all()
    assert (dropped.covariance == alone.covariance).all()
    certain = bl.posterior(sigma, pi, picks, expected, np.array([1.0, 1.0]), tau=0.05)
    assert certain.mu[:2] == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 10_000), st.integers(1, 8))
@QUICK
def test_the_posterior_equals_the_textbook_formula_with_inverses(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    sigma, pi, picks = random_sigma(rng, n), rng.normal(0, 1e-3, n), rng.normal(size=(2, n))
    expected, confidence, tau = rng.normal(0, 1e-2, 2), rng.uniform(0.1, 0.9, 2), 0.05
    result = bl.posterior(sigma, pi, picks, expected, confidence, tau=tau)
    omega = np.diag([tau * (1 - c) / c * (p @ sigma @ p) for c, p in zip(confidence, picks, strict=True)])
    m = np.linalg.inv(np.linalg.inv(tau * sigma) + picks.T @ np.linalg.inv(omega) @ picks)
    mu = m @ (np.linalg.inv(tau * sigma) @ pi + picks.T @ np.linalg.inv(omega) @ expected)
    assert np.abs(result.mu - mu).max() < 1e-9
    assert np.abs(result.covariance - sigma - m).max() < 1e-9


def test_without_views_the_unconstrained_weights_are_the_market() -> None:
    rng = np.random.default_rng(5)
    sigma, w_mkt = random_sigma(rng, 6), rng.dirichlet(np.ones(6))
    pi = bl.equilibrium_returns(sigma, w_mkt, delta=2.5)
    result = bl.posterior(sigma, pi, np.zeros((0, 6)), np.zeros(0), np.zeros(0), tau=0.05)
    weights = np.linalg.solve(2.5 * result.covariance, result.mu)
    assert weights / weights.sum() == pytest.approx(w_mkt, abs=1e-12)
    constrained = bl.optimise(result.mu, result.covariance, delta=2.5, cap=1.0)
    assert constrained.status == "ok"
    assert np.abs(constrained.weights - w_mkt / 1.05).max() < 1e-8
    assert constrained.cash == pytest.approx(1 - 1 / 1.05, abs=1e-8)


# Covariance


def test_complete_returns_are_shrunk_as_ledoit_and_wolf_say() -> None:
    returns = random_returns(np.random.default_rng(1), 200, 4)
    n_times, n = returns.shape
    centred = returns - returns.mean(axis=0)
    sample = centred.T @ centred / n_times
    mean_variance = np.trace(sample) / n
    # Ledoit and Wolf (2004), lemma 3.2 to 3.4, written out.
    d2 = ((sample - mean_variance * np.eye(n)) ** 2).sum() / n
    b2 = sum(((np.outer(x, x) - sample) ** 2).sum() for x in centred) / n / n_times**2
    rho = min(b2, d2) / d2
    result = bl.covariance(returns, periods=24)
    assert result.method == "ledoit_wolf"
    assert result.change_frac == 0
    assert np.abs(result.matrix / 24 - (rho * mean_variance * np.eye(n) + (1 - rho) * sample)).max() < 1e-18


def test_an_outage_of_the_whole_exchange_is_left_out() -> None:
    returns = random_returns(np.random.default_rng(1), 200, 4)
    with_outage = np.insert(returns, 100, np.full((3, 4), np.nan), axis=0)
    assert (bl.covariance(with_outage, periods=24).matrix == bl.covariance(returns, periods=24).matrix).all()


def test_missing_returns_give_pairwise_sample_covariances() -> None:
    returns = random_returns(np.random.default_rng(2), 60, 3)
    returns[5, 0] = returns[7:20, 1] = np.nan
    result = bl.covariance(returns, periods=24)
    both = ~np.isnan(returns[:, 0]) & ~np.isnan(returns[:, 1])
    assert result.method == "pairwise"
    assert result.matrix[0, 1] == pytest.approx(
        24 * np.cov(returns[both, 0], returns[both, 1])[0, 1], rel=1e-12
    )
    assert result.matrix[2, 2] == pytest.approx(24 * returns[:, 2].var(ddof=1), rel=1e-12)


def test_a_matrix_that_is_not_positive_semidefinite_is_moved_to_the_nearest_one() -> None:
    # Over their common times a and b agree, b and c agree, yet a and c are opposite.
    rng = np.random.default_rng(0)
    x = rng.normal(0, 0.01, (3, 30))
    missing = np.full(30, np.nan)
    returns = np.column_stack(
        [
            np.concatenate([x[0], missing, x[2]]),
            np.concatenate([x[0], x[1], missing]),
            np.concatenate([missing, x[1], -x[2]]),
        ]
    )
    raw = pd.DataFrame(returns).cov().to_numpy()
    assert np.linalg.eigvalsh(raw)[0] < 0
    result = bl.covariance(returns, periods=1, min_overlap=0.3)
    values, vectors = np.linalg.eigh(raw)
    nearest = vectors @ np.diag(np.maximum(values, 0)) @ vectors.T
    assert np.abs(result.matrix - nearest).max() < 1e-15
    assert result.change_frac == pytest.approx(np.linalg.norm(nearest - raw) / np.linalg.norm(raw), rel=1e-9)
    assert np.linalg.eigvalsh(result.matrix)[0] > -1e-12 * np.trace(raw)


def test_assets_that_overlap_too_little_or_never_move_are_not_measurable() -> None:
    returns = random_returns(np.random.default_rng(4), 20, 5)
    returns[:, 1] = 0.0
    returns[:9, 2] = np.nan
    returns[12:, 3] = np.nan
    # 2 and 3 have enough alone but share 3 times; 3 has fewer than 2 has (12 against 11: 2 goes).
    assert bl.measurable(returns).tolist() == [True, False, False, True, True]
    assert bl.measurable(np.full((20, 2), np.nan)).tolist() == [False, False]
    assert bl.measurable(np.zeros((20, 0))).tolist() == []


@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(0, 0.8))
@QUICK
def test_what_is_measurable_has_a_positive_semidefinite_covariance(seed: int, n: int, missing: float) -> None:
    rng = np.random.default_rng(seed)
    returns = random_returns(rng, 40, n)
    returns[rng.random(returns.shape) < missing * rng.random(n)] = np.nan
    keep = bl.measurable(returns)
    assume(keep.any())
    matrix = bl.covariance(returns[:, keep], periods=24).matrix
    assert (matrix == matrix.T).all()
    assert np.linalg.eigvalsh(matrix)[0] > -1e-12 * np.trace(matrix)


# Allocation


def test_two_uncorrelated_assets_are_allocated_as_by_hand() -> None:
    # mu / (delta sigma^2): 0.002 / (2.5 x 0.002) = 0.4 and 0.001 / (2.5 x 0.001) = 0.4; the rest is cash.
    result = bl.optimise(np.array([0.002, 0.001]), np.diag([0.002, 0.001]), delta=2.5, cap=1.0)
    assert result.status == "ok"
    assert result.weights == pytest.approx([0.4, 0.4], abs=1e-8)
    assert result.cash == pytest.approx(0.2, abs=1e-8)


def test_the_cap_binds_and_gives_way_to_one_over_n() -> None:
    mu, cov = np.array([0.01, 0.01]), np.diag([0.001, 0.002])
    assert bl.optimise(mu, cov, delta=2.5, cap=0.6).weights == pytest.approx([0.6, 0.4], abs=1e-8)
    assert bl.optimise(mu, cov, delta=2.5, cap=0.1).weights == pytest.approx([0.5, 0.5], abs=1e-8)


def test_nothing_is_held_when_nothing_is_expected() -> None:
    result = bl.optimise(np.array([-0.01, -0.02]), np.diag([0.001, 0.002]), delta=2.5, cap=0.5)
    assert (result.status, result.weights.tolist(), result.cash) == ("ok", [0.0, 0.0], 1.0)


def test_a_turnover_cost_keeps_the_drifted_weights_where_the_gain_is_smaller() -> None:
    mu, cov, drifted = np.array([0.002, 0.001]), np.diag([0.002, 0.001]), np.array([0.38, 0.2])
    # One more percent of the first gains delta sigma^2 (0.4 - 0.38) = 0.0001 a unit, of the second 0.0005.
    result = bl.optimise(mu, cov, delta=2.5, cap=1.0, drifted=drifted, turnover_cost_frac=0.0002)
    assert result.weights == pytest.approx([0.38, 0.4 - 0.0002 / 0.0025], abs=1e-7)


def test_the_chain_of_failures_is_drifted_then_least_variance_then_cash() -> None:
    cov, unknown = np.diag([0.003, 0.001]), np.array([np.nan, 0.001])
    kept = bl.optimise(unknown, cov, delta=2.5, cap=1.0, drifted=np.array([0.3, 0.2]))
    assert (kept.status, kept.weights.tolist(), kept.cash) == ("infeasible_kept_drifted", [0.3, 0.2], 0.5)
    least = bl.optimise(unknown, cov, delta=2.5, cap=1.0, drifted=np.zeros(2))
    assert least.status == "minimum_variance"
    assert least.weights == pytest.approx([0.25, 0.75], abs=1e-8)
    assert least.cash == pytest.approx(0, abs=1e-12)
    cash = bl.optimise(unknown, np.full((2, 2), np.nan), delta=2.5, cap=1.0)
    assert (cash.status, cash.weights.tolist(), cash.cash) == ("cash_only", [0.0, 0.0], 1.0)


def test_a_covariance_that_no_solver_takes_keeps_the_drifted_weights() -> None:
    # Concave: not a covariance, and not a problem that a convex solver can finish.
    concave = np.array([[1.0, 5.0], [5.0, 1.0]]) * 1e-3
    result = bl.optimise(np.array([0.01, 0.01]), concave, delta=2.5, cap=1.0, drifted=np.array([0.3, 0.2]))
    assert result.status == "infeasible_kept_drifted"


@given(
    st.integers(0, 10_000),
    st.integers(1, 12),
    st.sampled_from([1e-7, 1e-4, 1e-2]),
    st.sampled_from([0.0, 0.001]),
)
@QUICK
def test_allocations_are_long_only_capped_complete_and_optimal(
    seed: int, n: int, scale: float, cost: float
) -> None:
    rng = np.random.default_rng(seed)
    cov = random_sigma(rng, n, scale)
    mu = rng.normal(0.02, 0.1, n) * np.sqrt(np.diag(cov))
    cap, drifted = float(rng.uniform(0.05, 1)), rng.dirichlet(np.ones(n + 1))[:-1]
    result = bl.optimise(mu, cov, delta=2.5, cap=cap, drifted=drifted, turnover_cost_frac=cost)
    assert result.status == "ok"
    assert abs(math.fsum([*result.weights, result.cash]) - 1) < 1e-12
    assert result.weights.min() >= 0
    assert result.cash >= 0
    assert result.weights.max() <= max(cap, 1 / n) + 1e-12

    def utility(w: np.ndarray) -> float:
        return float(mu @ w - 1.25 * w @ cov @ w - cost * np.abs(w - drifted).sum())

    # Concave: no better than every feasible point towards which it could move.
    others = rng.dirichlet(np.ones(n + 1), 200)[:, :-1]
    others = np.vstack(
        [np.minimum(others, max(cap, 1 / n)), np.eye(n) * min(1.0, max(cap, 1 / n)), np.zeros(n)]
    )
    steps = [result.weights + share * (other - result.weights) for other in others for share in (1e-3, 1.0)]
    best = max(utility(w) for w in steps)
    assert best <= utility(result.weights) + 1e-7 * np.trace(cov) / n + 1e-6 * cost
