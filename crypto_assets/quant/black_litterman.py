"""Black-Litterman mathematics on plain matrices: covariance, equilibrium, posterior and the allocation.

Here: functions of arrays for one decision, all per rebalance period H, with every parameter explicit. Not
here: tables, decision times and drift (``holdings.py``). Imported by ``quant/holdings``; PyPortfolioOpt is
imported inside functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from pypfopt.efficient_frontier import EfficientFrontier

AllocationStatus = Literal["ok", "infeasible_kept_drifted", "minimum_variance", "cash_only"]

#: Interior-point solver without randomness or clock; tolerances so tight that weights are right to about
#: 1e-10.
_SOLVER = "CLARABEL"
_SOLVER_OPTIONS = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12}
#: How far a solver may overstep a bound.
_TOLERANCE = 1e-9
#: A smaller weight is solver noise, and nothing anybody could trade; it becomes cash.
_DUST = 1e-7


@dataclass(frozen=True, eq=False)
class Covariance:
    """Covariance of simple returns per H.

    Attributes
    ----------
    matrix
        (n, n), symmetric, positive semidefinite.
    method
        ``ledoit_wolf`` or ``pairwise``.
    change_frac
        Frobenius norm of the repair to the nearest positive semidefinite matrix, relative to the matrix.
    """

    matrix: np.ndarray
    method: Literal["ledoit_wolf", "pairwise"]
    change_frac: float


@dataclass(frozen=True, eq=False)
class Posterior:
    """Posterior of He and Litterman: ``mu`` (n,) and ``covariance`` = Sigma + M (n, n), both per H."""

    mu: np.ndarray
    covariance: np.ndarray


@dataclass(frozen=True, eq=False)
class Allocation:
    """Weights (n,) to hold, the cash that remains (together exactly one to 1e-12) and how they were found."""

    weights: np.ndarray
    cash: float
    status: AllocationStatus


def measurable(returns: np.ndarray, *, min_overlap: float = 0.5) -> np.ndarray:
    """Which assets have enough common returns for a covariance.

    Parameters
    ----------
    returns
        (n_times, n) simple returns per bar, NaN where missing.
    min_overlap
        Share of the window in which every pair of assets must have a return together.

    Returns
    -------
    numpy.ndarray
        (n,) bool. While a pair overlaps too little, the asset with fewest returns in such a pair goes (the
        last one among equals). An asset whose returns never differ has no risk to measure and goes first.
    """
    present = ~np.isnan(returns)
    need = _needed(len(returns), min_overlap)
    together = present.T.astype(np.int64) @ present.astype(np.int64)
    highest = np.where(present, returns, -np.inf).max(axis=0, initial=-np.inf)
    lowest = np.where(present, returns, np.inf).min(axis=0, initial=np.inf)
    keep = highest > lowest
    while True:
        short = (together < need) & keep & keep[:, None]
        involved = np.flatnonzero(short.any(axis=0))
        if not involved.size:
            return keep
        counts = together[involved, involved]
        keep[involved[np.flatnonzero(counts == counts.min())[-1]]] = False


def covariance(returns: np.ndarray, *, periods: float, min_overlap: float = 0.5) -> Covariance:
    """Estimate the covariance of simple returns per H from returns per bar.

    Parameters
    ----------
    returns
        (n_times, n) simple returns per bar, oldest first, NaN where missing; n >= 1.
    periods
        H / bar: bars per rebalance period.
    min_overlap
        Share of ``n_times`` in which every pair must have a return together.

    Returns
    -------
    Covariance
        ``periods`` times the covariance per bar (returns taken as uncorrelated over time).

    Raises
    ------
    ValueError
        If a pair overlaps too little: select columns with ``measurable`` first.

    Notes
    -----
    Times at which nothing traded (an outage of the exchange) carry no information and are left out. If
    nothing is missing in the rest, it is shrunk towards a constant variance (Ledoit and Wolf 2004,
    PyPortfolioOpt's ``CovarianceShrinkage``). With a missing value, shrinkage has no known optimum: each pair
    is then its sample covariance over its common times, and the result is projected on the nearest positive
    semidefinite matrix (Higham 1988), which is the only place where ``change_frac`` can exceed rounding.
    """
    need = _needed(len(returns), min_overlap)
    seen = returns[~np.isnan(returns).all(axis=1)]
    if not np.isnan(seen).any():
        if len(seen) < need:
            raise ValueError(
                f"covariance: {len(seen)} of {len(returns)} times have returns, {need} are needed"
            )
        from pypfopt.risk_models import CovarianceShrinkage

        shrinkage = CovarianceShrinkage(pd.DataFrame(seen), returns_data=True, frequency=periods)
        return _positive_semidefinite(shrinkage.ledoit_wolf().to_numpy(), "ledoit_wolf")
    pairwise = pd.DataFrame(seen).cov(min_periods=need).to_numpy()
    if np.isnan(pairwise).any():
        first, second = np.argwhere(np.isnan(pairwise))[0]
        raise ValueError(
            f"covariance: columns {first} and {second} share fewer than {need} of {len(returns)} returns: "
            "select columns with measurable(), and check that the raster reaches back the whole window"
        )
    return _positive_semidefinite(pairwise * periods, "pairwise")


def equilibrium_returns(sigma: np.ndarray, w_mkt: np.ndarray, *, delta: float) -> np.ndarray:
    """Compute the returns per H at which the market portfolio is optimal: pi = delta Sigma w_mkt.

    Examples
    --------
    >>> equilibrium_returns(np.diag([0.04, 0.01]), np.array([0.75, 0.25]), delta=2.0)
    array([0.06 , 0.005])
    """
    return delta * (sigma @ w_mkt)


def posterior(
    sigma: np.ndarray,
    pi: np.ndarray,
    P: np.ndarray,
    Q: np.ndarray,
    confidence: np.ndarray,
    *,
    tau: float,
) -> Posterior:
    """Combine equilibrium and views.

    Parameters
    ----------
    sigma
        (n, n) covariance per H.
    pi
        (n,) equilibrium returns per H.
    P
        (k, n) one row of portfolio weights per view.
    Q
        (k,) returns per H that the views expect.
    confidence
        (k,) in [0, 1]: 0 drops a view, 1 makes it a hard constraint; Omega_k = tau ((1 - c) / c) p'Sigma p.
    tau
        Uncertainty of the prior relative to Sigma, in (0, 1].

    Returns
    -------
    Posterior
        mu = pi + tau Sigma P'(P tau Sigma P' + Omega)^-1 (Q - P pi); covariance = Sigma + M.

    Raises
    ------
    ValueError
        If shapes disagree, a value is not finite or a confidence lies outside [0, 1].

    Notes
    -----
    He and Litterman (1999); confidences after Idzorek (2005) in the closed form of Walters (2014). A
    single view moves its portfolio by exactly the share c: p'mu = p'pi + c (Q - p'pi).
    """
    n, k = len(pi), len(Q)
    if sigma.shape != (n, n) or P.shape != (k, n) or confidence.shape != (k,):
        raise ValueError(
            f"posterior: sigma {sigma.shape}, pi {pi.shape}, P {P.shape}, Q {Q.shape} and confidence "
            f"{confidence.shape} do not fit: pass (n, n), (n,), (k, n), (k,) and (k,)"
        )
    if not all(np.isfinite(values).all() for values in (sigma, pi, P, Q, confidence)):
        raise ValueError(
            "posterior: every input must be finite; leave out assets and views with missing values"
        )
    if ((confidence < 0) | (confidence > 1)).any():
        raise ValueError(
            f"posterior: confidences must lie in [0, 1]; was {confidence.min()} to {confidence.max()}"
        )
    held = confidence > 0
    if not held.any():
        return Posterior(pi.copy(), sigma * (1 + tau))
    from pypfopt.black_litterman import BlackLittermanModel

    P, Q, confidence = P[held], Q[held], confidence[held]
    variance = np.einsum("ki,ij,kj->k", P, sigma, P)
    omega = np.diag(tau * ((1 - confidence) / confidence) * variance)
    model = BlackLittermanModel(sigma, pi=pi, Q=Q, P=P, omega=omega, tau=tau)
    return Posterior(model.bl_returns().to_numpy(), model.bl_cov().to_numpy())


def optimise(
    mu: np.ndarray,
    cov: np.ndarray,
    *,
    delta: float,
    cap: float,
    drifted: np.ndarray | None = None,
    turnover_cost_frac: float = 0.0,
) -> Allocation:
    """Allocate among n assets and cash, long only.

    Parameters
    ----------
    mu, cov
        (n,) expected returns and (n, n) covariance per H.
    delta
        Risk aversion.
    cap
        Largest weight of one asset; ``max(cap, 1/n)`` applies, so that n assets can always be fully invested.
    drifted
        (n,) weights held now, drifted with prices; None: nothing is held.
    turnover_cost_frac
        Cost per unit of weight traded, charged in the objective on ``sum |w - drifted|`` over the assets.

    Returns
    -------
    Allocation
        ``ok``: the maximum of mu'w - delta/2 w'cov w - cost over 0 <= w <= cap, sum(w) <= 1; cash has return
        and risk 0 and takes the rest. If that has no solution: the drifted weights
        (``infeasible_kept_drifted``); if nothing is held, the fully invested portfolio of least variance
        (``minimum_variance``); then cash (``cash_only``). Never equal weights.

    Raises
    ------
    ValueError
        If shapes disagree or a parameter is out of range: a mistake of the caller, not an infeasible market.

    Notes
    -----
    Cash enters PyPortfolioOpt's ``EfficientFrontier`` as an asset with a zero column. Both terms are
    divided by the mean variance before solving: a solver's absolute tolerance means nothing on numbers of
    1e-5.
    """
    n = len(mu)
    if cov.shape != (n, n) or (drifted is not None and drifted.shape != (n,)):
        raise ValueError(f"optimise: mu {mu.shape} and cov {cov.shape} do not fit the weights held")
    if not (delta > 0 and 0 < cap <= 1 and turnover_cost_frac >= 0):
        raise ValueError(
            f"optimise: delta {delta} must be > 0, cap {cap} in (0, 1], cost {turnover_cost_frac} >= 0"
        )
    upper = max(cap, 1 / n) if n else 1.0
    held = np.zeros(n) if drifted is None else drifted
    weights = _most_useful(mu, cov, delta, upper, held, turnover_cost_frac) if n else np.zeros(0)
    if weights is not None:
        return _complete(weights, "ok")
    if held.sum() > 0:
        return _complete(held, "infeasible_kept_drifted")
    weights = _least_variance(cov, upper)
    if weights is not None:
        return _complete(weights, "minimum_variance")
    return _complete(np.zeros(n), "cash_only")


def _needed(n_times: int, min_overlap: float) -> int:
    return max(2, math.ceil(min_overlap * n_times))


def _positive_semidefinite(matrix: np.ndarray, method: Literal["ledoit_wolf", "pairwise"]) -> Covariance:
    symmetric = (matrix + matrix.T) / 2
    values, vectors = np.linalg.eigh(symmetric)
    if values[0] >= 0:
        return Covariance(symmetric, method, 0.0)
    nearest = (vectors * np.maximum(values, 0.0)) @ vectors.T
    nearest = (nearest + nearest.T) / 2
    change = np.linalg.norm(nearest - symmetric) / np.linalg.norm(symmetric)
    return Covariance(nearest, method, float(change))


def _most_useful(
    mu: np.ndarray, cov: np.ndarray, delta: float, upper: float, held: np.ndarray, cost: float
) -> np.ndarray | None:
    n, scale = len(mu), _scale(cov)
    if scale is None or not np.isfinite(mu).all():
        return None
    from pypfopt.efficient_frontier import EfficientFrontier

    with_cash = np.zeros((n + 1, n + 1))
    with_cash[:n, :n] = cov * scale
    frontier = EfficientFrontier(
        np.append(mu * scale, 0.0),
        with_cash,
        weight_bounds=[(0.0, upper)] * n + [(0.0, 1.0)],
        solver=_SOLVER,
        solver_options=_SOLVER_OPTIONS,
    )
    if cost > 0:
        import cvxpy

        frontier.add_objective(lambda w: scale * cost * cvxpy.norm1(w[:n] - held))
    return _solved(frontier, lambda: frontier.max_quadratic_utility(risk_aversion=delta), n, upper)


def _least_variance(cov: np.ndarray, upper: float) -> np.ndarray | None:
    scale = _scale(cov)
    if scale is None:
        return None
    from pypfopt.efficient_frontier import EfficientFrontier

    frontier = EfficientFrontier(
        None, cov * scale, weight_bounds=(0.0, upper), solver=_SOLVER, solver_options=_SOLVER_OPTIONS
    )
    return _solved(frontier, frontier.min_volatility, len(cov), upper)


def _scale(cov: np.ndarray) -> float | None:
    if not cov.size or not np.isfinite(cov).all():
        return None
    mean_variance = float(np.trace(cov)) / len(cov)
    return 1 / mean_variance if mean_variance > 0 else None


def _solved(
    frontier: EfficientFrontier, solve: Callable[[], object], n: int, upper: float
) -> np.ndarray | None:
    from cvxpy.error import SolverError
    from pypfopt.exceptions import OptimizationError

    try:
        solve()
    except (OptimizationError, SolverError):
        return None
    weights = np.asarray(frontier.weights)[:n]
    if not (weights >= -_TOLERANCE).all() or not (weights <= upper + _TOLERANCE).all():
        return None
    return np.minimum(weights, upper)


def _complete(weights: np.ndarray, status: AllocationStatus) -> Allocation:
    weights = np.where(weights < _DUST, 0.0, weights)
    total = float(weights.sum())
    if total > 1:
        weights, total = weights / total, 1.0
    return Allocation(weights, 1.0 - total, status)
