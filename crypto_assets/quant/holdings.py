"""Portfolio decisions over time: when they fall, which views they hold, and the weights to hold.

Here: the weekly fit of views, the views, and the sequence of holdings. Not here: what is known about each
coin (``candidates.py``), matrix formulas (``black_litterman.py``) and what becomes of the weights
(``backtest.py``). Imported by the assets of holdings, ``quant/reports`` and tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Literal

import numpy as np
import pandas as pd

from crypto_assets.intervals import REBALANCE_PERIOD
from crypto_assets.quant.black_litterman import Allocation, covariance, optimise, posterior
from crypto_assets.quant.candidates import Market, lookback
from crypto_assets.quant.labels import horizon_name
from crypto_assets.quant.panel import bars_in, floor_week, known_in, require_columns, times_of

Rebalance = Literal["hourly", "daily", "weekly"]

_DECIDED = ("eligible", "sigma_frac", "pi_frac", "score_z")
_HOLDINGS = (
    "decision_at", "symbol", "known_at", "listing_id", "horizon", "weight_frac", "weight_before_frac",
    "weight_prior_frac", "mu_frac", "close", "n_views", "status",
)  # fmt: skip


def decision_times(
    start: datetime, end: datetime, rebalance: Rebalance = "daily", at: time = time(1)
) -> np.ndarray:
    """Decisions in [start, end).

    Parameters
    ----------
    start, end
        Naive UTC.
    rebalance
        ``hourly`` (at ``at.minute`` of every hour), ``daily``, or ``weekly`` (Mondays).
    at
        Time of day, UTC. Caps of the day before are known from 00:45, hence 01:00.

    Returns
    -------
    numpy.ndarray
        (n,) ``datetime64[us]``, increasing.

    Examples
    --------
    >>> times = decision_times(datetime(2024, 1, 1, 2), datetime(2024, 1, 3, 2))
    >>> times.astype("datetime64[m]").astype(str).tolist()
    ['2024-01-02T01:00', '2024-01-03T01:00']
    """
    period = np.timedelta64(REBALANCE_PERIOD[rebalance]).astype("timedelta64[us]")
    of_day = timedelta(hours=at.hour, minutes=at.minute, seconds=at.second, microseconds=at.microsecond)
    low, high = np.datetime64(start, "us"), np.datetime64(end, "us")
    # A Monday is on the grid of hours, days and weeks alike.
    first = floor_week(np.asarray(low)) + np.timedelta64(of_day) % period
    first = first + -((first - low) // period) * period
    return np.arange(first, max(first, high), period)


def fit_views(
    candidates: pd.DataFrame,
    forward_returns: pd.DataFrame,
    *,
    week: datetime,
    bar: timedelta,
    view_weeks: int,
    min_pairs: int = 500,
    max_confidence: float = 0.9,
) -> pd.DataFrame:
    """Fit how far scores told returns, on decisions whose outcome was known before the week.

    Parameters
    ----------
    candidates
        Rows of ``holdings/candidates``; decisions in [week - view_weeks, week) are used.
    forward_returns
        Rows of ``labels/forward_returns`` of the same horizon, used from week - view_weeks on; a decision uses
        the row of the bar that ends at it.
    week
        Monday 00:00 UTC, the cut.
    bar
        Raster interval.
    view_weeks
        Length of the fit, weeks.
    min_pairs
        Fewer pairs, or all in one decision: ``insufficient_history``.
    max_confidence
        Upper limit of c.

    Returns
    -------
    pandas.DataFrame
        One row of ``holdings/view_fits``: b of (r_H - pi)/sigma_H = b z + e, pooled and without intercept,
        its standard error clustered by decision (factor G/(G - 1)), and c = t^2/(1 + t^2). ``no_views`` if b
        <= 0.

    Raises
    ------
    ValueError
        If columns are missing, or the two tables have different horizons.

    Notes
    -----
    A pair enters if its decision is before the week and its label has ``known_at <= week``; scores are
    out of fold already. A decision at the very start of the window has its label in the week before, which
    is not read: a fit is the same alone and in a longer range. Source: conventions, section 7.
    """
    require_columns(candidates, ("decision_at", "symbol", "listing_id", "horizon", *_DECIDED), "candidates")
    label_columns = ("symbol", "ts", "known_at", "listing_id", "horizon", "forward_return_frac")
    require_columns(forward_returns, label_columns, "forward_returns")
    horizons = set(candidates["horizon"]) | set(forward_returns["horizon"])
    if len(horizons) > 1:
        raise ValueError(
            f"fit_views: candidates and labels have the horizons {sorted(horizons)}: pass one horizon"
        )
    cut = np.datetime64(week, "us")
    start = cut - np.timedelta64(timedelta(weeks=view_weeks))
    decided = times_of(candidates["decision_at"])
    pairs = _scored(candidates[(decided < cut) & (decided >= start)])
    realised = forward_returns.loc[known_in(forward_returns, start, cut)]
    pairs = pairs.assign(ts=pairs["decision_at"] - bar).merge(
        realised.loc[
            realised["forward_return_frac"].notna(), ["symbol", "ts", "listing_id", "forward_return_frac"]
        ],
        on=["symbol", "ts", "listing_id"],
        validate="one_to_one",
    )
    pairs = pairs.sort_values(["decision_at", "symbol"])
    surprise = (pairs["forward_return_frac"] - pairs["pi_frac"]) / pairs["sigma_frac"]
    slope, slope_se = _clustered_slope(
        pairs["score_z"].to_numpy(), surprise.to_numpy(), times_of(pairs["decision_at"])
    )
    confidence = np.nan
    if len(pairs) < min_pairs or math.isnan(slope_se):
        status = "insufficient_history"
    elif slope <= 0:
        status = "no_views"
    else:
        status = "ok"
        # t^2 / (1 + t^2), in the form that also holds for a standard error of zero.
        confidence = min(slope**2 / (slope**2 + slope_se**2), max_confidence)
    row = {
        "slope": slope,
        "slope_se": slope_se,
        "confidence": confidence,
        "n_pairs": len(pairs),
        "status": status,
    }
    return pd.DataFrame(
        {"week": np.array([cut]), "known_at": np.array([cut])} | {name: [v] for name, v in row.items()}
    )


def views(candidates: pd.DataFrame, view_fits: pd.DataFrame) -> pd.DataFrame:
    """Turn scores into expected returns: Q_i = pi_i + b sigma_i z_i with the confidence of the week's fit.

    Parameters
    ----------
    candidates
        Rows of ``holdings/candidates``.
    view_fits
        Rows of ``holdings/view_fits`` of the weeks that contain those decisions.

    Returns
    -------
    pandas.DataFrame
        Rows of ``holdings/views``: one per eligible candidate with a score, none where the week's fit is
        missing or not ``ok``.
    """
    require_columns(
        candidates, ("decision_at", "symbol", "known_at", "listing_id", "horizon", *_DECIDED), "candidates"
    )
    require_columns(view_fits, ("week", "slope", "confidence", "status"), "view_fits")
    fits = view_fits.loc[view_fits["status"] == "ok", ["week", "slope", "confidence"]]
    rows = _scored(candidates)
    rows = rows.assign(week=floor_week(times_of(rows["decision_at"]))).merge(
        fits, on="week", validate="many_to_one"
    )
    rows["view_return_frac"] = rows["pi_frac"] + rows["slope"] * rows["sigma_frac"] * rows["score_z"]
    columns = [
        "decision_at",
        "symbol",
        "known_at",
        "listing_id",
        "horizon",
        "view_return_frac",
        "confidence",
        "score_z",
    ]
    return rows.sort_values(["decision_at", "symbol"], ignore_index=True)[columns]


def optimal_holdings(
    candidates: pd.DataFrame,
    views: pd.DataFrame,
    raster: pd.DataFrame,
    previous: pd.DataFrame,
    *,
    decision_times: np.ndarray,
    bar: timedelta,
    horizon: timedelta,
    lookback_bars: int = 720,
    delta: float = 2.5,
    tau: float = 0.05,
    cap: float = 0.25,
    quote: str = "USDT",
) -> pd.DataFrame:
    """Weights to hold from each decision on, decided one after the other from drifted holdings.

    Parameters
    ----------
    candidates, views
        Rows of ``holdings/candidates`` and ``holdings/views`` of these decisions.
    raster
        Rows of ``rollups/raster`` that reach back by `candidates.lookback` before the first decision.
    previous
        Rows of ``holdings/optimal_holdings`` of the last decision before these; empty: only cash is held.
    decision_times
        (n,) naive UTC, increasing, on the grid of ``bar``.
    bar, horizon, lookback_bars, delta
        As the candidates were made with.
    tau, cap
        Uncertainty of the prior, largest weight: see `black_litterman`.
    quote
        Name of cash.

    Returns
    -------
    pandas.DataFrame
        Rows of ``holdings/optimal_holdings`` sorted by decision and symbol: every eligible coin, every coin
        held until then, and cash. ``status`` names the worst thing that happened: ``no_universe`` (all cash),
        ``infeasible_kept_drifted``, ``minimum_variance``, ``cash_only``, ``prior_degraded``, ``no_views``,
        ``ok``.

    Raises
    ------
    ValueError
        If columns are missing, decisions do not increase, horizons differ, or ``previous`` is not one earlier
        decision.

    Notes
    -----
    Each decision reads rows with ``known_at <= decision_at`` and the decision before. A coin that is
    held but no longer eligible is sold; without a new bar it is valued at its last close. If its ticker has
    been reused, the old life is sold first and the new one may enter at the next decision. Cash earns
    nothing.
    """
    require_columns(
        candidates,
        ("decision_at", "symbol", "listing_id", "horizon", "close", "w_mkt", "status", *_DECIDED),
        "candidates",
    )
    require_columns(views, ("decision_at", "symbol", "horizon", "view_return_frac", "confidence"), "views")
    name = horizon_name(horizon)
    other = (set(candidates["horizon"]) | set(views["horizon"])) - {name}
    if other:
        raise ValueError(
            f"optimal_holdings: candidates or views are per {sorted(other)}; holdings are per {name}"
        )
    times = np.asarray(decision_times, dtype="datetime64[us]")
    if (times[1:] <= times[:-1]).any():
        raise ValueError("optimal_holdings: decision_times must increase")
    market = Market.of(raster, bar)
    reach = bars_in(lookback(bar, lookback_bars), bar, "lookback")
    rules = _Rules(horizon / bar, lookback_bars, delta, tau, cap)
    coins_at = _by_decision(candidates)
    views_at = _by_decision(views)
    book = _Book.of(previous, quote, times)
    blocks = []
    for decision in times:
        end = market.end(decision)
        before = book.drifted(dict(zip(market.panel.listings, market.newest_close(end, reach), strict=True)))
        coins = coins_at.get(decision, candidates.iloc[:0])
        rows = _decide(coins, views_at.get(decision, views.iloc[:0]), before, market, end, rules, quote)
        book = _Book.after(rows, quote)
        blocks.append(rows.assign(decision_at=decision, known_at=decision, horizon=name))
    empty = pd.DataFrame(columns=list(_HOLDINGS))
    return pd.concat(blocks, ignore_index=True)[list(_HOLDINGS)] if blocks else empty


@dataclass(frozen=True)
class _Rules:
    periods: float
    lookback_bars: int
    delta: float
    tau: float
    cap: float


@dataclass(frozen=True)
class _Position:
    listing_id: str
    weight: float
    close: float


@dataclass(frozen=True)
class _Book:
    # What is held, by symbol; the rest to one is cash.
    positions: dict[str, _Position]
    cash: float

    @classmethod
    def of(cls, previous: pd.DataFrame, quote: str, times: np.ndarray) -> _Book:
        if previous.empty:
            return cls({}, 1.0)
        require_columns(previous, ("decision_at", "symbol", "listing_id", "weight_frac", "close"), "previous")
        before = np.unique(times_of(previous["decision_at"]))
        if len(before) != 1 or (len(times) and before[0] >= times[0]):
            raise ValueError(
                f"optimal_holdings: previous has the decisions {before[0]} to {before[-1]}; "
                f"pass the rows of the one last decision before {times[0] if len(times) else 'these'}"
            )
        if previous["symbol"].duplicated().any() or (previous["symbol"] == quote).sum() != 1:
            raise ValueError(f"optimal_holdings: previous must name each symbol once, and {quote} for cash")
        return cls.after(previous, quote)

    @classmethod
    def after(cls, rows: pd.DataFrame, quote: str) -> _Book:
        positions = {
            symbol: _Position(listing_id, weight, close)
            for symbol, listing_id, weight, close in zip(
                rows["symbol"], rows["listing_id"], rows["weight_frac"], rows["close"], strict=True
            )
            if symbol != quote and weight > 0
        }
        return cls(positions, float(rows.loc[rows["symbol"] == quote, "weight_frac"].iloc[0]))

    def drifted(self, close_of: dict[str, float]) -> _Book:
        valued = {}
        for symbol, position in self.positions.items():
            now = close_of.get(position.listing_id, math.nan)
            close = position.close if math.isnan(now) else now
            valued[symbol] = _Position(position.listing_id, position.weight * (close / position.close), close)
        total = math.fsum([self.cash, *(position.weight for position in valued.values())])
        positions = {
            symbol: _Position(position.listing_id, position.weight / total, position.close)
            for symbol, position in valued.items()
        }
        return _Book(positions, self.cash / total)


def _decide(
    coins: pd.DataFrame,
    opinions: pd.DataFrame,
    before: _Book,
    market: Market,
    end: int,
    rules: _Rules,
    quote: str,
) -> pd.DataFrame:
    held = before.positions
    chosen = coins[coins["eligible"].to_numpy(dtype=bool) & ~_is_reused(coins, held)]
    bought = list(chosen["symbol"])
    sold = [symbol for symbol in held if symbol not in bought]
    drifted = np.array([held[symbol].weight if symbol in held else 0.0 for symbol in bought])
    opinions = opinions[opinions["symbol"].isin(bought)]
    if bought:
        mu, cov = _expect(chosen, opinions, market, end, rules)
        found = optimise(mu, cov, delta=rules.delta, cap=rules.cap, drifted=drifted)
        status = _worst(found, chosen, len(opinions))
    else:
        mu, found, status = np.zeros(0), Allocation(np.zeros(0), 1.0, "ok"), "no_universe"
    nothing, unknown = np.zeros(len(sold)), np.full(len(sold), np.nan)
    rows = pd.DataFrame(
        {
            "symbol": [*bought, *sold, quote],
            "listing_id": [*chosen["listing_id"], *(held[symbol].listing_id for symbol in sold), None],
            "weight_frac": [*found.weights, *nothing, found.cash],
            "weight_before_frac": [*drifted, *(held[symbol].weight for symbol in sold), before.cash],
            "weight_prior_frac": [*chosen["w_mkt"], *unknown, 0.0],
            "mu_frac": [*mu, *unknown, 0.0],
            "close": [*chosen["close"], *(held[symbol].close for symbol in sold), 1.0],
        }
    )
    return rows.assign(n_views=len(opinions), status=status).sort_values("symbol", ignore_index=True)


def _is_reused(coins: pd.DataFrame, held: dict[str, _Position]) -> np.ndarray:
    lives = zip(coins["symbol"], coins["listing_id"], strict=True)
    return np.array(
        [symbol in held and held[symbol].listing_id != life for symbol, life in lives], dtype=bool
    )


def _expect(
    chosen: pd.DataFrame, opinions: pd.DataFrame, market: Market, end: int, rules: _Rules
) -> tuple[np.ndarray, np.ndarray]:
    n = len(chosen)
    if (chosen["status"] == "covariance_failed").any():
        return np.full(n, np.nan), np.full((n, n), np.nan)
    returns = market.returns(end, rules.lookback_bars, market.places(chosen["listing_id"]))
    sigma = covariance(returns, periods=rules.periods).matrix
    picks = np.zeros((len(opinions), n))
    picks[np.arange(len(opinions)), pd.Index(chosen["symbol"]).get_indexer(pd.Index(opinions["symbol"]))] = (
        1.0
    )
    result = posterior(
        sigma,
        chosen["pi_frac"].to_numpy(dtype=float),
        picks,
        opinions["view_return_frac"].to_numpy(dtype=float),
        opinions["confidence"].to_numpy(dtype=float),
        tau=rules.tau,
    )
    return result.mu, result.covariance


def _worst(allocation: Allocation, chosen: pd.DataFrame, n_views: int) -> str:
    if allocation.status != "ok":
        return allocation.status
    prior = chosen["status"].iloc[0]
    if prior != "ok":
        return str(prior)
    return "ok" if n_views else "no_views"


def _scored(candidates: pd.DataFrame) -> pd.DataFrame:
    rows = candidates[candidates["eligible"].to_numpy(dtype=bool)]
    return rows.dropna(subset=["score_z", "sigma_frac", "pi_frac"])


def _by_decision(rows: pd.DataFrame) -> dict[np.datetime64, pd.DataFrame]:
    ordered = rows.sort_values(["decision_at", "symbol"], ignore_index=True)
    times, starts = np.unique(times_of(ordered["decision_at"]), return_index=True)
    borders = [*starts, len(ordered)]
    return {moment: ordered.iloc[borders[n] : borders[n + 1]] for n, moment in enumerate(times)}


def _clustered_slope(z: np.ndarray, y: np.ndarray, cluster: np.ndarray) -> tuple[float, float]:
    # Least squares through the origin; errors of one decision may be correlated in any way.
    square = float((z * z).sum())
    if square == 0:
        return math.nan, math.nan
    slope = float((z * y).sum()) / square
    _, code = np.unique(cluster, return_inverse=True)
    scores = np.bincount(code, weights=z * (y - slope * z))
    n = len(scores)
    if n < 2:
        return slope, math.nan
    return slope, math.sqrt(n / (n - 1) * float((scores * scores).sum())) / square
