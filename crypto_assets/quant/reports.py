"""Reports on holdings: the strategies that are always shown together, and the picture of their equity.

Here: which strategies are compared and how they are drawn. Not here: accounting (``backtest.py``) and
decisions (``holdings.py``). Imported by the assets of reports and by tests; Matplotlib is imported inside
functions.
"""

from __future__ import annotations

import io
import math
from datetime import timedelta

import numpy as np
import pandas as pd

from crypto_assets.quant.backtest import equal_weight, market_cap, performance, simulate
from crypto_assets.quant.panel import require_columns, times_of

#: Strategy -> label, colour and line style, in the order of the legend; colours that colour-blind readers
#: tell apart.
STRATEGIES: dict[str, tuple[str, str, str]] = {
    "black_litterman": ("Black-Litterman", "#0b3c7d", "-"),
    "black_litterman_delayed": ("Black-Litterman, one bar later", "#56a0d3", "-"),
    "black_litterman_total_loss": ("Black-Litterman, deaths a total loss", "#56a0d3", ":"),
    "market_cap": ("Market capitalisation", "#d55e00", "-"),
    "equal_weight": ("Equal weights", "#7f7f7f", "-"),
}
_LOG_SCALE_RANGE = 3.0
_YEAR_DAYS = 365
_SHARPE_DAYS = 90


def portfolio_backtest(
    holdings: pd.DataFrame,
    candidates: pd.DataFrame,
    raster: pd.DataFrame,
    *,
    bar: timedelta,
    latency: timedelta = timedelta(0),
    fee_bps: float,
    slippage_bps: float,
    fill_wait: timedelta = timedelta(hours=6),
    death_after: timedelta = timedelta(hours=24),
) -> pd.DataFrame:
    """Backtest the holdings beside their benchmarks, on the same dates, universe, costs and fills.

    Parameters
    ----------
    holdings
        Rows of ``holdings/optimal_holdings``; their decisions are those of every strategy.
    candidates
        Rows of ``holdings/candidates`` of the same decisions, for the benchmarks.
    raster
        Rows of ``rollups/raster`` from the first decision on.
    bar, latency, fee_bps, slippage_bps, fill_wait, death_after
        As in `backtest.simulate`.

    Returns
    -------
    pandas.DataFrame
        Rows of ``reports/portfolio_backtest`` for every strategy of ``STRATEGIES``, whole UTC days only;
        empty without holdings. ``black_litterman_delayed`` acts one bar later, ``black_litterman_total_loss``
        loses a position whose listing dies instead of leaving at its last close.
    """
    if holdings.empty or raster.empty:
        return _nothing()
    decisions = np.unique(times_of(holdings["decision_at"]))
    runs = {
        "black_litterman": (holdings, latency, 0.0),
        "black_litterman_delayed": (holdings, latency + bar, 0.0),
        "black_litterman_total_loss": (holdings, latency, 1.0),
        "market_cap": (market_cap(candidates, decisions), latency, 0.0),
        "equal_weight": (equal_weight(candidates, decisions), latency, 0.0),
    }
    rows = [
        simulate(
            weights,
            raster,
            strategy=strategy,
            bar=bar,
            latency=wait,
            fee_bps=fee_bps,
            slippage_bps=slippage_bps,
            fill_wait=fill_wait,
            death_after=death_after,
            exit_haircut=haircut,
        )
        for strategy, (weights, wait, haircut) in runs.items()
    ]
    return pd.concat(rows, ignore_index=True).sort_values(["strategy", "ts"], ignore_index=True)


def equity_curve_png(backtest: pd.DataFrame) -> bytes:
    """Draw equity and drawdown of every strategy.

    Parameters
    ----------
    backtest
        Rows of ``reports/portfolio_backtest``; strategies that are not in ``STRATEGIES`` are drawn after
        them.

    Returns
    -------
    bytes
        A PNG of 1,650 x 1,050 pixels; the same rows give the same bytes with the same Matplotlib.

    Raises
    ------
    ValueError
        If there are no rows.
    """
    require_columns(backtest, ("strategy", "ts", "equity", "return_frac"), "backtest")
    if backtest.empty:
        raise ValueError(
            "equity_curve_png: there are no days to draw; run the backtest over at least one whole UTC day"
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

    curves = _curves(backtest)
    figure = Figure(figsize=(11, 7), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for strategy, days, equity in curves:
        label, colour, style = STRATEGIES.get(strategy, (strategy, None, "--"))
        front = strategy == "black_litterman"
        pen = {
            "color": colour,
            "linestyle": style,
            "linewidth": 2.0 if front else 1.2,
            "zorder": 3 if front else 2,
        }
        (line,) = above.plot(days, equity, label=f"{label}   {_summary(backtest, strategy)}", **pen)
        drawdown = equity / np.maximum.accumulate(equity) - 1
        below.plot(days, drawdown, **(pen | {"color": line.get_color()}))
        if front:
            below.fill_between(days, drawdown, 0.0, color=colour, alpha=0.12, linewidth=0)
    positive = np.concatenate([equity[equity > 0] for _, _, equity in curves])
    if positive.max() / positive.min() > _LOG_SCALE_RANGE:
        above.set_yscale("log")
        above.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        above.yaxis.set_minor_locator(NullLocator())
    above.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    above.axhline(1.0, color="#444444", linewidth=0.8, zorder=1)
    above.set_ylabel("Equity, start = 1" + (" (log scale)" if above.get_yscale() == "log" else ""))
    below.set_ylabel("Drawdown")
    below.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    below.set_ylim(bottom=min(below.get_ylim()[0], -0.05), top=0.0)
    below.set_xlabel("UTC day")
    locator = AutoDateLocator(minticks=5, maxticks=12)
    below.xaxis.set_major_locator(locator)
    below.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    first, last = backtest["ts"].min(), backtest["ts"].max()
    below.set_xlim(curves[0][1][0], curves[0][1][-1])
    above.set_title(
        f"Portfolio value after costs, {first:%Y-%m-%d} to {last:%Y-%m-%d}", loc="left", fontsize=13
    )
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=8.5, columnspacing=1.5)
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    picture = io.BytesIO()
    canvas.print_png(picture, metadata={"Software": None})
    return picture.getvalue()


def _curves(backtest: pd.DataFrame) -> list[tuple[str, np.ndarray, np.ndarray]]:
    # Strategy, days and equity with the opening balance in front.
    present = list(backtest["strategy"].unique())
    ordered = [*(name for name in STRATEGIES if name in present), *(sorted(set(present) - set(STRATEGIES)))]
    curves = []
    for strategy in ordered:
        rows = backtest[backtest["strategy"] == strategy].sort_values("ts")
        days, equity = times_of(rows["ts"]), rows["equity"].to_numpy(dtype=float)
        end_of_day = days + np.timedelta64(timedelta(days=1))
        start = equity[0] / (1 + rows["return_frac"].iloc[0]) if rows["return_frac"].iloc[0] > -1 else 1.0
        curves.append((strategy, np.concatenate([days[:1], end_of_day]), np.concatenate([[start], equity])))
    return curves


def _summary(backtest: pd.DataFrame, strategy: str) -> str:
    figures = performance(backtest[backtest["strategy"] == strategy])
    n_days = int(figures["n_days"])
    parts = [f"{figures['cagr_frac']:+.0%} a year"]
    if n_days < _YEAR_DAYS:
        # A short span is not annualised: that would show a growth which nobody has seen.
        parts = [f"{(1 + figures['cagr_frac']) ** (n_days / _YEAR_DAYS) - 1:+.1%} in {n_days} days"]
    if n_days >= _SHARPE_DAYS and not math.isnan(figures["sharpe"]):
        parts.append(f"Sharpe {figures['sharpe']:.2f}")
    return ", ".join([*parts, f"drawdown {figures['max_drawdown_frac']:.0%}"])


def _nothing() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "strategy": np.zeros(0, dtype=object),
            "ts": np.zeros(0, dtype="datetime64[us]"),
            "known_at": np.zeros(0, dtype="datetime64[us]"),
            "equity": np.zeros(0),
            "return_frac": np.zeros(0),
            "turnover_frac": np.zeros(0),
            "fee_frac": np.zeros(0),
            "n_positions": np.zeros(0, dtype=np.int64),
        }
    )
