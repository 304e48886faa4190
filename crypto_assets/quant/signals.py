"""Trading signals: crosses of two averages, and thresholds on calibrated probabilities fitted weekly.

Here: turning prices and probabilities into buy, sell or nothing. Not here: the probabilities
(``predictions.py``) and position sizes (``holdings.py``). Imported by the assets of signals, and by tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np
import pandas as pd

from crypto_assets.quant import kernels
from crypto_assets.quant.panel import (
    Panel,
    check_week,
    floor_week,
    known_in,
    longest_pause,
    require_columns,
    require_unique,
    times_of,
)

SHORT_SPAN, LONG_SPAN = 13, 21
DECAY = 0.97
#: 0.97^250 rounds to 0.000, so an older state would show no signal.
MAX_AGE = 250
_HOUR = timedelta(hours=1)


def ema_cross_lookback_bars(long: int = LONG_SPAN, max_age: int = MAX_AGE, *, bar: timedelta = _HOUR) -> int:
    """Bars before a row that `ema_cross` reads: oldest state, bar before its cross, that bar's average.

    The bar before lies at most the longest pause back.

    Examples
    --------
    >>> ema_cross_lookback_bars()
    563
    """
    reach = longest_pause(bar)
    return max_age + reach + kernels.average_lookback(2.0 / (long + 1.0), reach)


def ema_cross(
    raster: pd.DataFrame,
    *,
    short: int = SHORT_SPAN,
    long: int = LONG_SPAN,
    decay: float = DECAY,
    max_age: int = MAX_AGE,
    bar: timedelta = _HOUR,
) -> pd.DataFrame:
    """State of a cross of two exponential averages of the close, fading with its age.

    A cross is +1 where the short average is above the long one and was not at the previous existing bar, -1
    the other way round; it needs both averages at both bars. ``state`` is the newest cross of the last
    ``max_age`` intervals, ``age`` the intervals elapsed since, ``signal = round(state x decay^age, 3)``;
    without such a cross all three are 0.

    Parameters
    ----------
    raster
        Rows of ``rollups/raster``.
    short, long
        Spans of the averages in bars, ``short < long``.
    decay
        Factor per interval, in (0, 1].
    max_age
        Intervals.
    bar
        Length of a raster interval; spans and ages count bars.

    Returns
    -------
    pandas.DataFrame
        Rows of ``signals/ema_cross``, one per raster row; averages are NaN without a bar or enough history
        (see `kernels.finite_average`), the state lives on.

    Raises
    ------
    ValueError
        If parameters are out of range or the raster breaks the rules of `Panel.of`.

    Notes
    -----
    Reads `ema_cross_lookback_bars` bars before the row and nothing known later. Source: the second system's
    EMA crossover, made causal (conventions, section 4).
    """
    if not (0 < short < long and 0 < decay <= 1 and max_age > 0):
        raise ValueError(
            f"short {short}, long {long}, decay {decay}, max_age {max_age}: "
            "they must satisfy 0 < short < long, 0 < decay <= 1, max_age > 0"
        )
    panel = Panel.of(raster, bar)
    close = panel.matrix("close")
    reach = longest_pause(bar)
    fast, slow = (kernels.ema(close, span, reach=reach) for span in (short, long))
    age, state = _newest_cross(fast - slow, ~np.isnan(close), max_age, reach)
    fading = np.array([decay**k for k in range(max_age + 1)])
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    signal = np.round(state * fading[age], 3) + 0.0
    result = panel.rows({"ema_short": fast, "ema_long": slow, "state": state, "age": age, "signal": signal})
    return result.assign(rule=f"ema_cross_{short}_{long}", state=result["state"].astype(np.int32))


def fit_thresholds(
    scores: pd.DataFrame,
    labels: pd.DataFrame,
    *,
    week: datetime,
    rule: str,
    grid: Sequence[float],
    cost_frac: float,
    min_pairs: int,
    lookback: timedelta,
    min_bought: int = 30,
) -> pd.DataFrame:
    """Choose the thresholds of one week on out-of-fold pairs realised before it.

    Each buy threshold of the grid would have bought the pairs with a probability at or above it. The one with
    the largest ``mean net return x sqrt(n bought)`` wins, the higher one among equals; it must have bought
    ``min_bought`` pairs at a positive mean net return. The sell threshold is its mirror, 1 - buy.

    Parameters
    ----------
    scores
        Rows of ``predictions/scores`` of one model; out of fold by construction; used if ``known_at <=
        week``.
    labels
        Rows of ``labels/forward_returns``; used if ``known_at <= week`` and a return exists.
    week
        Monday 00:00 UTC: the cut.
    rule
        Name of the rule.
    grid
        Buy thresholds to try, inside (0.5, 1).
    cost_frac
        Cost of a round trip, share of the position.
    min_pairs
        With fewer pairs the status is ``insufficient_history``.
    lookback
        Pairs with ``ts`` before ``week - lookback`` are not used, so that a fit does not depend on how much
        history was loaded.
    min_bought
        Fewest pairs a threshold must have bought to be chosen.

    Returns
    -------
    pandas.DataFrame
        One row of ``signals/thresholds``; status ``ok``, ``insufficient_history`` or ``no_edge`` (no
        threshold of the grid earned its cost), the latter two without thresholds.

    Raises
    ------
    ValueError
        If ``week`` is no Monday 00:00, the grid leaves (0.5, 1) or is empty, or a listing has two scores at
        one ts.

    Notes
    -----
    No look-ahead beyond ``week``. Sums are exact, so the order of rows changes no bit.
    """
    cut = check_week(week)
    if not len(grid) or not all(0.5 < threshold < 1 for threshold in grid):
        raise ValueError(f"buy thresholds to try were {list(grid)}: give at least one, all inside (0.5, 1)")
    key = ("listing_id", "ts")
    require_columns(scores, (*key, "known_at", "probability"), "scores")
    require_columns(labels, (*key, "known_at", "forward_return_frac"), "labels")
    start = cut - np.timedelta64(lookback)
    known = scores.loc[known_in(scores, start, cut) & scores["probability"].notna(), [*key, "probability"]]
    realised = labels.loc[
        known_in(labels, start, cut) & labels["forward_return_frac"].notna(), [*key, "forward_return_frac"]
    ]
    require_unique(known, key, "scores")
    require_unique(realised, key, "labels")
    pairs = known.merge(realised, on=list(key))
    probability = pairs["probability"].to_numpy(dtype=np.float64)
    net = pairs["forward_return_frac"].to_numpy(dtype=np.float64) - cost_frac
    status, buy, mean = "insufficient_history", math.nan, math.nan
    if len(pairs) >= max(min_pairs, 1):
        status = "no_edge"
        best = 0.0
        for threshold in sorted(grid):
            bought = net[probability >= threshold]
            if len(bought) < max(min_bought, 1):
                continue
            mean_bought = math.fsum(bought) / len(bought)
            merit = mean_bought * math.sqrt(len(bought))
            if merit > 0 and merit >= best:
                status, best, buy, mean = "ok", merit, threshold, mean_bought
    return pd.DataFrame(
        {
            "week": [cut],
            "rule": [rule],
            "known_at": [cut],
            "status": [status],
            "buy_threshold": [buy],
            "sell_threshold": [1.0 - buy],
            "mean_return_frac": [mean],
            "n_pairs": [len(pairs)],
        }
    )


def threshold_signals(scores: pd.DataFrame, thresholds: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Buy at or above the buy threshold of the row's week, sell at or below the sell threshold, else nothing.

    Parameters
    ----------
    scores
        Rows of ``predictions/scores`` of one model.
    thresholds
        Rows of ``signals/thresholds`` of every week concerned.
    rule
        Which rule to apply.

    Returns
    -------
    pandas.DataFrame
        Rows of ``signals/trading_signals``, one per score; ``signal`` (nullable Int32) is NULL without a
        probability or without ``ok`` thresholds for the week that contains ``ts``.

    Raises
    ------
    ValueError
        If columns are missing, a symbol has two scores at one ts (pass one model) or a week has two rows of
        the rule.

    Notes
    -----
    ``known_at`` is the later of the score's and the week's cut.
    """
    require_columns(scores, ("symbol", "ts", "known_at", "listing_id", "probability"), "scores")
    require_columns(thresholds, ("week", "rule", "status", "buy_threshold", "sell_threshold"), "thresholds")
    require_unique(scores, ("symbol", "ts"), "scores")
    own = thresholds.loc[(thresholds["rule"] == rule) & (thresholds["status"] == "ok")]
    require_unique(own, ("week",), f"thresholds of {rule}")
    weeks = floor_week(times_of(scores["ts"]))
    limits = own.set_index("week")[["buy_threshold", "sell_threshold"]].reindex(pd.DatetimeIndex(weeks))
    buy, sell = (limits[name].to_numpy(dtype=np.float64) for name in limits)
    probability = scores["probability"].to_numpy(dtype=np.float64)
    signal = pd.array(
        (probability >= buy).astype(np.int32) - (probability <= sell).astype(np.int32), dtype="Int32"
    )
    signal[np.isnan(probability) | np.isnan(buy)] = pd.NA
    return pd.DataFrame(
        {
            "symbol": scores["symbol"].to_numpy(),
            "ts": times_of(scores["ts"]),
            "rule": rule,
            "known_at": np.maximum(times_of(scores["known_at"]), weeks),
            "listing_id": scores["listing_id"].to_numpy(),
            "score": probability,
            "signal": signal,
        }
    )


def _newest_cross(
    gap: np.ndarray, has_bar: np.ndarray, max_age: int, reach: int
) -> tuple[np.ndarray, np.ndarray]:
    # Places in time are integers, so running maxima of them are exact; -1 stands for none.
    n_times = len(gap)
    if not gap.size:
        return np.zeros(gap.shape, dtype=np.int64), np.zeros(gap.shape, dtype=np.int64)
    place = np.arange(n_times)[:, None]
    newest_bar = np.maximum.accumulate(np.where(has_bar, place, -1), axis=0)
    previous = np.vstack([np.full((1, gap.shape[1]), -1), newest_bar[:-1]])
    near = (previous >= 0) & (place - previous <= reach)
    before = np.where(near, np.take_along_axis(gap, np.maximum(previous, 0), axis=0), np.nan)
    cross = ((gap > 0) & (before <= 0)).astype(np.int64) - ((gap < 0) & (before >= 0))
    entered = np.maximum.accumulate(np.where(cross != 0, place, -1), axis=0)
    alive = (entered >= 0) & (place - entered <= max_age)
    age = np.where(alive, place - entered, 0)
    state = np.where(alive, np.take_along_axis(cross, np.maximum(entered, 0), axis=0), 0)
    return age, state
