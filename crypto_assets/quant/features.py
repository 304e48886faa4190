"""The point-in-time universe, and the rows that a feature set reads of bars.

Here: eligibility, as far as was known then. Not here: declared features (``feature_sets.py``), standings among the
eligible (a model in SQL) and rolling arithmetic (``kernels.py``). Imported by the assets of features, and by tests.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

import numpy as np
import pandas as pd

from crypto_assets.quant import kernels
from crypto_assets.quant.feature_sets import BAR_COLUMNS
from crypto_assets.quant.panel import DAY, IDENTITY, Panel, floor_day

#: Whole days before the day of a row that `universe` reads.
UNIVERSE_LOOKBACK_DAYS = 31

_TURNOVER_DAYS = 30
_TURNOVER_MIN_DAYS = 25
_HOUR = timedelta(hours=1)


def bars(klines: pd.DataFrame) -> pd.DataFrame:
    """Bars of one interval as a feature set reads them: the spot market's, with its perpetual's beside them.

    Parameters
    ----------
    klines
        Rows of ``rollups/klines`` of one interval.

    Returns
    -------
    pandas.DataFrame
        One row per spot bar: identity, ``has_bar`` and the columns of ``BAR_COLUMNS``. ``futures_...`` come from the
        contract BASE/QUOTE:QUOTE and are NaN where it has no such bar; a turnover that the source lacks is base volume
        x close.
    """
    values = klines.assign(
        turnover_quote=klines["volume_quote"].fillna(klines["volume_base"] * klines["close"]), has_bar=True
    )
    own = [name for name in BAR_COLUMNS if not name.startswith("futures_")]
    is_contract = values["symbol"].str.contains(":", regex=False)
    contracts = values.loc[is_contract, ["symbol", "ts", *own]]
    base, settle = (contracts["symbol"].str.split(":").str[part] for part in (0, 1))
    linear = base.str.split("/").str[1] == settle
    beside = contracts.assign(symbol=base)[linear].rename(columns={name: f"futures_{name}" for name in own})
    spot = values.loc[~is_contract, [*IDENTITY, "has_bar", *own]]
    return spot.merge(beside, on=["symbol", "ts"], how="left")


def universe(
    raster: pd.DataFrame,
    *,
    min_turnover_quote: float,
    excluded_bases: Collection[str],
    min_history_days: int = 30,
    max_bar_age: int = 2,
    bar: timedelta = _HOUR,
) -> pd.DataFrame:
    """Which symbols may be traded at each moment, as far as was known then.

    Rules, in the order in which the first failing one becomes ``reason``: ``excluded`` (pegged, wrapped ...
    bases), ``stale`` (newest bar older than ``max_bar_age`` intervals), ``young`` (no bar of this listing at
    least ``min_history_days`` before the row, inside the look-back), ``illiquid`` (median traded value of the
    30 whole UTC days before the row's day below ``min_turnover_quote``, or fewer than 25 of them with a bar);
    else ``eligible``.

    Parameters
    ----------
    raster
        Rows of ``rollups/raster``.
    min_turnover_quote
        Quote units a day.
    excluded_bases
        Base assets that never enter.
    min_history_days
        At most ``UNIVERSE_LOOKBACK_DAYS - 1``, which is as far as the look-back always reaches.
    max_bar_age
        Raster intervals.
    bar
        Length of a raster interval.

    Returns
    -------
    pandas.DataFrame
        Rows of ``features/universe``, one per raster row; ``history_days`` and the median are NaN where
        unknown.

    Raises
    ------
    ValueError
        If the raster breaks the rules of `Panel.of` or the history asked for exceeds the look-back.

    Notes
    -----
    Reads the 31 whole days before the row's day and the day up to the row: no row known later than the row
    itself. Source of the rules: conventions, section 6.
    """
    if not 0 < min_history_days < UNIVERSE_LOOKBACK_DAYS:
        raise ValueError(
            f"min_history_days was {min_history_days}, it must lie between 1 and {UNIVERSE_LOOKBACK_DAYS - 1}"
        )
    panel = Panel.of(raster, bar)
    history = _history_days(panel)
    turnover = _median_daily_turnover(panel)
    result = panel.rows({"history_days": history, "turnover_median_30d_quote": turnover})
    base = panel.frame["symbol"].str.split("/").str[0]
    rules = {
        "excluded": ~base.isin(set(excluded_bases)).to_numpy(),
        "stale": panel.frame["bar_age"].to_numpy(dtype=np.float64, na_value=np.inf) <= max_bar_age,
        "young": result["history_days"].to_numpy() >= min_history_days,
        "illiquid": result["turnover_median_30d_quote"].to_numpy() >= min_turnover_quote,
    }
    result["reason"] = np.select(
        [~holds for holds in rules.values()], list(rules), default="eligible"
    ).astype(object)
    result["eligible"] = (result["reason"] == "eligible").to_numpy()
    return result


def _history_days(panel: Panel) -> np.ndarray:
    has_bar = panel.flags("has_bar")
    n_times = len(panel.times)
    if not n_times:
        return np.zeros(panel.shape)
    place = np.where(has_bar, np.arange(n_times)[:, None], n_times)
    first_at_or_after = np.minimum.accumulate(place[::-1], axis=0)[::-1]
    window_start = floor_day(panel.times) - UNIVERSE_LOOKBACK_DAYS * DAY
    start = np.maximum((window_start - panel.times[0]) // panel.bar, 0).astype(np.int64)
    oldest = first_at_or_after[start]
    bars = np.arange(n_times)[:, None] - oldest
    return np.where(bars >= 0, bars / float(DAY // panel.bar), np.nan)


def _median_daily_turnover(panel: Panel) -> np.ndarray:
    n_times, n_listings = panel.shape
    per_day = int(DAY // panel.bar)
    n_days = -(-n_times // per_day)
    turnover = np.full((n_days * per_day, n_listings), np.nan)
    turnover[:n_times] = panel.matrix("turnover_quote")
    by_day = turnover.reshape(n_days, per_day, n_listings)
    daily = np.zeros((n_days, n_listings))
    for bar_of_day in range(per_day):
        values = by_day[:, bar_of_day]
        daily += np.where(np.isnan(values), 0.0, values)
    daily[np.isnan(by_day).all(axis=1)] = np.nan
    earlier = np.stack([kernels.lagged(daily, lag) for lag in range(1, _TURNOVER_DAYS + 1)])
    earlier.sort(axis=0)
    n = np.count_nonzero(~np.isnan(earlier), axis=0)
    lower = np.take_along_axis(earlier, np.maximum((n - 1) // 2, 0)[None], axis=0)[0]
    upper = np.take_along_axis(earlier, (n // 2)[None], axis=0)[0]
    median = np.where(n >= _TURNOVER_MIN_DAYS, (lower + upper) / 2.0, np.nan)
    return np.repeat(median, per_day, axis=0)[:n_times]
