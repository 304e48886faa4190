"""Weights of alpha factors by quantile scoring: fitted weekly on realised returns, applied to later rows.

Here: binning, scores, weights and the weighted sum. Not here: factor formulas (``factors.py``) and signed
weights. Imported by the assets of weights, and by tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np
import pandas as pd

from crypto_assets.quant.panel import (
    check_week,
    floor_week,
    known_in,
    require_columns,
    require_unique,
    times_of,
)

RETURN_QUANTILES = (0.025, 0.15, 0.85, 0.975)
FACTOR_QUANTILES = (0.5,)


def bin_labels(n_quantiles: int) -> np.ndarray:
    """Labels of the groups between ``n_quantiles`` cutoffs: symmetric, without 0 if their number is even.

    Examples
    --------
    >>> bin_labels(4).tolist(), bin_labels(1).tolist()
    ([-2.0, -1.0, 0.0, 1.0, 2.0], [-1.0, 1.0])
    """
    half = (n_quantiles + 1) // 2
    labels = np.arange(-half, half + 1, dtype=np.float64)
    return labels if n_quantiles % 2 == 0 else labels[labels != 0]


def bin_by_quantiles(
    values: np.ndarray, quantiles: Sequence[float], cutoffs: Sequence[float] | None = None
) -> np.ndarray:
    """Label each value by the quantile group it falls into.

    Parameters
    ----------
    values
        (n,) numbers; NaN and infinities are missing.
    quantiles
        Increasing shares in (0, 1); k of them make k + 1 groups.
    cutoffs
        k increasing cutoffs to use; by default the linear-interpolated quantiles of the values present.

    Returns
    -------
    numpy.ndarray
        (n,) labels of `bin_labels` in a new array, NaN where the value is missing.

    Raises
    ------
    ValueError
        If quantiles or cutoffs are not increasing, out of range or unequal in number.

    Notes
    -----
    Half-open groups: x < c1 lowest, c_i <= x < c_(i+1), x >= c_k highest. Whole-sample quantiles look ahead
    within ``values``: pass realised rows only. Source: conventions, section 4.

    Examples
    --------
    >>> bin_by_quantiles(np.array([3.0, 1.0, np.nan, 2.0]), [0.5])
    array([ 1., -1., nan,  1.])
    """
    shares = np.asarray(quantiles, dtype=np.float64)
    if (
        shares.ndim != 1
        or not shares.size
        or shares[0] <= 0
        or shares[-1] >= 1
        or (np.diff(shares) <= 0).any()
    ):
        raise ValueError(f"quantiles were {list(quantiles)}, they must increase inside (0, 1)")
    values = np.asarray(values, dtype=np.float64)
    present = np.isfinite(values)
    result = np.full(values.shape, np.nan)
    if cutoffs is None:
        if not present.any():
            return result
        edges = np.quantile(values[present], shares)
    else:
        edges = np.asarray(cutoffs, dtype=np.float64)
        if edges.shape != shares.shape or not np.isfinite(edges).all() or (np.diff(edges) < 0).any():
            raise ValueError(
                f"cutoffs were {list(cutoffs)}, they must be {shares.size} numbers in increasing order"
            )
    groups = np.searchsorted(edges, values[present], side="right")
    result[present] = bin_labels(shares.size)[groups]
    return result


def factor_score(return_bins: np.ndarray, factor_bins: np.ndarray) -> float:
    """Sum of return bin x factor bin over the pairs in which both are present; both (n,) labels.

    Examples
    --------
    >>> factor_score(np.array([-2.0, 1.0, np.nan]), np.array([-1.0, -1.0, 1.0]))
    1.0
    """
    products = np.asarray(return_bins, dtype=np.float64) * np.asarray(factor_bins, dtype=np.float64)
    # Products of labels are small integers, so their sum is exact in any order.
    return float(np.nansum(products))


def normalise_scores(scores: np.ndarray) -> np.ndarray:
    """Weights ``(score - min) / sum(score - min)``, (n,): sum 1, the worst gets 0, all equal get 1/n.

    Raises
    ------
    ValueError
        If there is no score or one is not finite.

    Examples
    --------
    >>> normalise_scores(np.array([3.0, 1.0, 7.0])).tolist(), normalise_scores(np.array([4.0, 4.0])).tolist()
    ([0.25, 0.0, 0.75], [0.5, 0.5])
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not scores.size or not np.isfinite(scores).all():
        raise ValueError(
            f"scores were {scores.tolist()}: weights need at least one score and finite ones only"
        )
    above = scores - scores.min()
    total = above.sum()
    return above / total if total > 0 else np.full(scores.size, 1.0 / scores.size)


def fit_alpha_weights(
    factors: pd.DataFrame,
    labels: pd.DataFrame,
    *,
    week: datetime,
    names: Sequence[str],
    lookback: timedelta,
    return_quantiles: Sequence[float] = RETURN_QUANTILES,
    factor_quantiles: Sequence[float] = FACTOR_QUANTILES,
    min_pairs: int = 500,
) -> pd.DataFrame:
    """Fit the weights of one week on rows that were known before it.

    Returns are binned per listing over all its realised rows; standardised factors per listing and factor
    over the rows in which no factor is missing. A factor's score is the sum of return bin x factor bin over
    the pairs of all listings.

    Parameters
    ----------
    factors
        Rows of ``factors/alpha_factors``; used if ``known_at <= week``.
    labels
        Rows of ``labels/forward_returns``; used if ``known_at <= week`` and a return exists.
    week
        Monday 00:00 UTC: the cut.
    names
        Factors to weight.
    lookback
        Rows with ``ts`` before ``week - lookback`` are not used, so that a fit does not depend on how much
        history was loaded.
    return_quantiles, factor_quantiles
        Groups of `bin_by_quantiles`.
    min_pairs
        With fewer pairs the status is ``insufficient_history``.

    Returns
    -------
    pandas.DataFrame
        Rows of ``weights/alpha_weights`` of this week, one per name; score and weight NULL unless the status
        is ``ok``.

    Raises
    ------
    ValueError
        If ``week`` is no Monday 00:00, names are missing or repeated, or columns are missing.

    Notes
    -----
    No look-ahead beyond ``week``. Source: the first system's quantile scoring, README variant.
    """
    cut = check_week(week)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"factors to weight were {list(names)}: name at least one, and none twice")
    require_columns(factors, ("symbol", "ts", "factor", "known_at", "listing_id", "value_z"), "factors")
    require_columns(labels, ("ts", "known_at", "listing_id", "forward_return_frac"), "labels")
    start = cut - np.timedelta64(lookback)
    known = factors.loc[known_in(factors, start, cut)]
    wide = (
        known[known["factor"].isin(list(names))]
        .pivot(index=["listing_id", "ts"], columns="factor", values="value_z")
        .reindex(columns=list(names))
        .dropna()
    )
    realised = labels.loc[known_in(labels, start, cut) & labels["forward_return_frac"].notna()]
    require_unique(realised, ("listing_id", "ts"), "labels")
    returns = realised.set_index(["listing_id", "ts"])["forward_return_frac"].astype(np.float64).sort_index()
    return_bins = _binned_per_listing(returns, return_quantiles)
    pairs = wide.join(return_bins.rename("return_bin"), how="inner").sort_index()
    n_pairs = len(pairs)
    enough = n_pairs >= max(min_pairs, 1)
    scores = np.full(len(names), np.nan)
    weights = np.full(len(names), np.nan)
    if enough:
        bins = (
            _binned_per_listing(wide[name].sort_index(), factor_quantiles).reindex(pairs.index)
            for name in names
        )
        scores = np.array([factor_score(pairs["return_bin"].to_numpy(), bin_.to_numpy()) for bin_ in bins])
        weights = normalise_scores(scores)
    return pd.DataFrame(
        {
            "week": cut,
            "factor": list(names),
            "known_at": cut,
            "score": scores,
            "weight": weights,
            "n_pairs": n_pairs,
            "status": "ok" if enough else "insufficient_history",
        }
    )


def alpha_scores(factors: pd.DataFrame, weights: pd.DataFrame) -> pd.DataFrame:
    """Weighted sum of standardised factors, with the weights of the week that contains each row.

    Parameters
    ----------
    factors
        Rows of ``factors/alpha_factors``.
    weights
        Rows of ``weights/alpha_weights`` of every week concerned.

    Returns
    -------
    pandas.DataFrame
        Rows of ``weights/alpha_scores``: one per symbol and ts at which some factor has a ``value_z``. The
        score is NULL if the week has no ``ok`` weights or the standardised value of a weighted factor is
        missing.

    Raises
    ------
    ValueError
        If columns are missing or rows repeat.

    Notes
    -----
    ``known_at`` is the latest of the factor rows and the cut, both at or before the end of the bar. Terms are
    added in the order of factor names.
    """
    require_columns(factors, ("symbol", "ts", "factor", "known_at", "listing_id", "value_z"), "factors")
    require_columns(weights, ("week", "factor", "weight", "status"), "weights")
    key = ["symbol", "listing_id", "ts"]
    wide = factors.pivot(index=key, columns="factor", values="value_z")
    wide = wide.loc[wide.notna().any(axis=1)].sort_index()
    fitted = weights.loc[weights["status"] == "ok"]
    by_week = fitted.pivot(index="week", columns="factor", values="weight")
    weeks = floor_week(times_of(wide.index.to_frame()["ts"]))
    known_at = factors.groupby(key)["known_at"].max().reindex(wide.index)
    score = np.full(len(wide), np.nan)
    for week in np.unique(weeks):
        if week not in by_week.index:
            continue
        own = by_week.loc[week].dropna()
        rows = weeks == week
        total = np.zeros(np.count_nonzero(rows))
        for name in sorted(own.index):
            z = wide[name].to_numpy(dtype=np.float64)[rows] if name in wide else np.nan
            total = total + own[name] * z
        score[rows] = total
    result = wide.index.to_frame(index=False)
    return result.assign(known_at=np.maximum(times_of(known_at), weeks), alpha_score=score)


def _binned_per_listing(values: pd.Series, quantiles: Sequence[float]) -> pd.Series:
    result = np.full(len(values), np.nan)
    array = values.to_numpy(dtype=np.float64)
    for rows in values.groupby(level="listing_id").indices.values():
        result[rows] = bin_by_quantiles(array[rows], quantiles)
    return pd.Series(result, index=values.index)
