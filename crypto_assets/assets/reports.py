"""Stage reports: what the holdings would have earned. Only ``definitions.py`` imports it."""

import base64

import dagster as dg
import pandas as pd

from crypto_assets.intervals import interval_delta
from crypto_assets.quant import reports
from crypto_assets.quant.backtest import performance
from crypto_assets.settings import Settings


@dg.asset(
    kinds={"python"},
    ins={
        "holdings": dg.AssetIn(["holdings", "optimal_holdings"]),
        "candidates": dg.AssetIn(["holdings", "candidates"]),
        "raster": dg.AssetIn(["rollups", "raster"]),
    },
)
def portfolio_backtest(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    holdings: pd.DataFrame,
    candidates: pd.DataFrame,
    raster: pd.DataFrame,
) -> pd.DataFrame:
    """One row per strategy and whole UTC day: equity net of fees, against equal weight and the market portfolio.

    Source: all decisions, candidates and bars. Whole days only: the running day is left out. Empty when: no decision.
    """
    costs = settings.costs
    found = reports.portfolio_backtest(
        holdings,
        candidates,
        raster,
        bar=interval_delta(settings.raster_interval),
        fee_bps=costs.fee_bps,
        slippage_bps=costs.slippage_bps,
        fill_wait=costs.fill_wait,
        death_after=costs.death_after,
    )
    if len(found):
        context.add_output_metadata(_metadata(found))
    return found


def _metadata(backtest: pd.DataFrame) -> dict[str, dg.MetadataValue]:
    picture = base64.b64encode(reports.equity_curve_png(backtest)).decode()
    figures = {name: performance(rows) for name, rows in backtest.groupby("strategy")}
    return {
        "equity_curve": dg.MetadataValue.md(f"![equity net of fees](data:image/png;base64,{picture})"),
        "performance": dg.MetadataValue.md(pd.DataFrame(figures).T.round(4).to_markdown()),
    }
