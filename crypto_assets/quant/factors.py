"""Alpha factors: named formulas on the raster, and their standardised values among the eligible.

Here: the formulas and the one treatment all of them get. Not here: their weights (``weights.py``) and the
rolling arithmetic (``kernels.py``). Imported by the assets of factors and reports. A new factor is one
function in ``FACTORS`` whose window fits ``LOOKBACK_BARS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

import numpy as np
import pandas as pd

from crypto_assets.quant import kernels
from crypto_assets.quant.panel import Panel, require_columns, times_of

#: Bars before a row that `alpha_factors` reads: factor_001 ranks 720 values, each the place of a maximum
#: among 5 returns or their deviations over 20 returns.
LOOKBACK_BARS = (kernels.TS_WINDOW - 1) + (5 - 1) + (20 - 1) + 1
#: The same in whole days before the day of a row, on an hourly raster.
LOOKBACK_DAYS = -(-LOOKBACK_BARS // 24)


def factor_001(panel: Panel) -> np.ndarray:
    """Rank over time of when the last 5 bars had their largest squared move, falls replaced by volatility.

    x = return, where negative the sample sd of the last 20 returns; y = 1 + place (0 the oldest) of the
    largest x^2 among the last 5; factor = rank of y over 720 bars - 0.5. Returns are close to close over one
    bar; every window except the rank's must be whole. (n_times, n_listings) within (-0.5, 0.5]. Source:
    WorldQuant Alpha#1 as the first system had it, ranks made causal.
    """
    close = panel.matrix("close")
    returns = close / kernels.positive(kernels.lagged(close, 1)) - 1.0
    x = np.where(returns < 0, kernels.rolling_std(returns, 20, 20, ddof=1, origin=panel.origin), returns)
    return kernels.ts_rank(kernels.rolling_argmax(x * x, 5, 5) + 1.0) - 0.5


def factor_002(panel: Panel) -> np.ndarray:
    """Minus the correlation over 6 bars of the ranks of volume growth and of the move inside the bar.

    -corr_6(rank(ln v_t - ln v_(t-2)), rank((close - open) / open)), v = traded base amount, ranks over 720
    bars; the 6 bars must be whole and a bar without volume is missing. (n_times, n_listings) within [-1, 1].
    Source: WorldQuant Alpha#2.
    """
    log_volume = kernels.log(panel.matrix("volume_base"))
    opens = panel.matrix("open")
    growth = kernels.ts_rank(log_volume - kernels.lagged(log_volume, 2))
    move = kernels.ts_rank((panel.matrix("close") - opens) / kernels.positive(opens))
    return -kernels.rolling_correlation(growth, move, 6, 6)


def factor_003(panel: Panel) -> np.ndarray:
    """Minus the correlation over 10 bars of the ranks of volume and of the open.

    -corr_10(rank(volume_base), rank(open)), ranks over 720 bars; the 10 bars must be whole. (n_times,
    n_listings) within [-1, 1]. Source: WorldQuant Alpha#3.
    """
    volume, opens = (kernels.ts_rank(panel.matrix(name)) for name in ("volume_base", "open"))
    return -kernels.rolling_correlation(volume, opens, 10, 10)


#: Name of a factor -> its formula on the raster, (n_times, n_listings), NaN where it has no value.
FACTORS: dict[str, Callable[[Panel], np.ndarray]] = {
    "factor_001": factor_001,
    "factor_002": factor_002,
    "factor_003": factor_003,
}


def alpha_factors(
    raster: pd.DataFrame, universe: pd.DataFrame, names: Sequence[str], *, bar: timedelta = timedelta(hours=1)
) -> pd.DataFrame:
    """Values of the named factors, raw and standardised among the eligible of each moment.

    ``value_z``: the value winsorised at the 1 and 99 % quantiles of the eligible at that ts, then (x - mean)
    / sample sd among them; NULL unless the row is eligible and at least 5 eligible values exist (conventions,
    section 4).

    Parameters
    ----------
    raster
        Rows of ``rollups/raster``, ``LOOKBACK_DAYS`` before the first day wanted included.
    universe
        Rows of ``features/universe``; a raster row without one is not eligible.
    names
        Factors wanted, keys of ``FACTORS``.
    bar
        Length of a raster interval; windows count bars.

    Returns
    -------
    pandas.DataFrame
        Rows of ``factors/alpha_factors``, one per raster row and factor; ``value`` is NULL where a window is
        not filled.

    Raises
    ------
    ValueError
        If a name is unknown, or the frames break the rules of `Panel.of`.

    Notes
    -----
    ``known_at`` is the end of the bar; nothing known later is read.
    """
    unknown = [name for name in names if name not in FACTORS]
    if unknown or len(set(names)) < len(names) or not names:
        raise ValueError(
            f"factors asked for were {list(names)}: name each of {', '.join(FACTORS)} at most once"
        )
    panel = Panel.of(raster, bar)
    eligible = _eligible(panel, universe)
    parts = []
    for name in names:
        value = FACTORS[name](panel)
        value = np.where(np.isfinite(value), value, np.nan)
        among = np.where(eligible, value, np.nan)
        rows = panel.rows({"value": value, "value_z": kernels.xs_zscore(kernels.xs_winsorise(among))})
        parts.append(rows.assign(factor=name))
    return pd.concat(parts, ignore_index=True).sort_values(["symbol", "ts", "factor"], ignore_index=True)


def _eligible(panel: Panel, universe: pd.DataFrame) -> np.ndarray:
    require_columns(universe, ("listing_id", "ts", "known_at", "eligible"), "universe")
    chosen = universe.loc[universe["eligible"].to_numpy(dtype=bool)]
    late = times_of(chosen["known_at"]) > times_of(chosen["ts"]) + panel.bar
    if late.any():
        worst = chosen.iloc[late.argmax()]
        raise ValueError(
            f"{worst['listing_id']} at {worst['ts']} is eligible only from {worst['known_at']}, after its bar"
        )
    own = pd.MultiIndex.from_frame(panel.frame[["listing_id", "ts"]])
    return panel.spread(own.isin(pd.MultiIndex.from_frame(chosen[["listing_id", "ts"]])), False)
