"""Stage holdings: prior, views and Black-Litterman weights. Only ``definitions.py`` imports it."""

import dagster as dg
import numpy as np
import pandas as pd

from crypto_assets.intervals import interval_delta
from crypto_assets.partitions import DAILY, DAY, WEEKLY, days_before, history, lookback, weeks_of, window_of
from crypto_assets.quant import candidates as prior
from crypto_assets.quant import holdings
from crypto_assets.resources.warehouse.io_manager import WarehouseResource
from crypto_assets.settings import Settings, current_settings

_PORTFOLIO = current_settings().portfolio
_BAR = interval_delta(current_settings().raster_interval)
_REACH = lookback(-(-prior.lookback(_BAR, _PORTFOLIO.lookback_bars) // DAY))
#: A dead listing stays a candidate for a while, and its newest universe row says why it is not eligible.
_ALIVE = lookback(-(-prior.ALIVE // DAY))
_HISTORY = history(_PORTFOLIO.view_weeks)
_PREVIOUS = days_before(7 if _PORTFOLIO.rebalance == "weekly" else 1)


def _decisions(
    context: dg.AssetExecutionContext, settings: Settings, warehouse: WarehouseResource
) -> np.ndarray:
    window = window_of(context)
    times = holdings.decision_times(*window, settings.portfolio.rebalance, settings.portfolio.decision_time)
    return times[times <= np.datetime64(warehouse.watermark(*window), "us")]


@dg.asset(
    partitions_def=DAILY,
    backfill_policy=dg.BackfillPolicy.single_run(),
    kinds={"python"},
    ins={
        "raster": dg.AssetIn(["rollups", "raster"], partition_mapping=_REACH),
        "universe": dg.AssetIn(["features", "universe"], partition_mapping=_ALIVE),
        "alpha_scores": dg.AssetIn(["weights", "alpha_scores"], partition_mapping=lookback(1)),
        "scores": dg.AssetIn(["predictions", "scores"], partition_mapping=lookback(1)),
    },
)
def candidates(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    warehouse: WarehouseResource,
    raster: pd.DataFrame,
    universe: pd.DataFrame,
    alpha_scores: pd.DataFrame,
    scores: pd.DataFrame,
) -> pd.DataFrame:
    """One row per decision and symbol alive then: market prior, risk per holding period and standardised score.

    Source: raster, universe, scores as known at the decision. Looks back: the covariance window. Empty when: no decision.
    """
    chosen = settings.portfolio
    return prior.candidates(
        raster,
        universe,
        alpha_scores,
        scores,
        decision_times=_decisions(context, settings, warehouse),
        bar=_BAR,
        horizon=settings.labels.horizon,
        lookback_bars=chosen.lookback_bars,
        delta=chosen.delta,
        max_bar_age=settings.universe.max_bar_age,
        max_cap_age_days=chosen.max_cap_age_days,
        min_cap_coverage=chosen.min_cap_coverage,
    )


@dg.asset(
    partitions_def=WEEKLY,
    backfill_policy=dg.BackfillPolicy.single_run(),
    kinds={"python"},
    ins={
        "candidates": dg.AssetIn(["holdings", "candidates"], partition_mapping=_HISTORY),
        "forward_returns": dg.AssetIn(["labels", "forward_returns"], partition_mapping=_HISTORY),
    },
)
def view_fits(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    warehouse: WarehouseResource,
    candidates: pd.DataFrame,
    forward_returns: pd.DataFrame,
) -> pd.DataFrame:
    """One row per week: how far scores told the returns that were realised before the week.

    Source: holdings/candidates and labels of the weeks before. Status insufficient_history or no_views without views.
    """
    weeks = weeks_of(context)
    warehouse.require_whole(weeks)
    chosen = settings.portfolio
    return pd.concat(
        [
            holdings.fit_views(
                candidates,
                forward_returns,
                week=week,
                bar=_BAR,
                view_weeks=chosen.view_weeks,
                min_pairs=chosen.min_view_pairs,
            )
            for week in weeks
        ]
    )


@dg.asset(
    partitions_def=DAILY,
    backfill_policy=dg.BackfillPolicy.single_run(),
    kinds={"python"},
    ins={
        "candidates": dg.AssetIn(["holdings", "candidates"], partition_mapping=lookback(0)),
        "view_fits": dg.AssetIn(["holdings", "view_fits"]),
    },
)
def views(candidates: pd.DataFrame, view_fits: pd.DataFrame) -> pd.DataFrame:
    """One row per decision and symbol with a view: expected return per holding period and confidence.

    Source: holdings/candidates of the day, holdings/view_fits of its week. Empty in weeks without a usable fit.
    """
    return holdings.views(candidates, view_fits)


@dg.asset(
    partitions_def=DAILY,
    backfill_policy=dg.BackfillPolicy.single_run(),
    kinds={"python"},
    ins={
        "candidates": dg.AssetIn(["holdings", "candidates"], partition_mapping=lookback(0)),
        "views": dg.AssetIn(["holdings", "views"], partition_mapping=lookback(0)),
        "raster": dg.AssetIn(["rollups", "raster"], partition_mapping=_REACH),
        "previous": dg.AssetIn(["holdings", "optimal_holdings"], partition_mapping=_PREVIOUS),
    },
)
def optimal_holdings(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    warehouse: WarehouseResource,
    candidates: pd.DataFrame,
    views: pd.DataFrame,
    raster: pd.DataFrame,
    previous: pd.DataFrame,
) -> pd.DataFrame:
    """One row per decision and asset, cash included: the weights to hold, with the status of the decision.

    Source: candidates, views, raster and the decision before, drifted with prices. Empty when: no decision.
    """
    chosen = settings.portfolio
    before = previous[previous["decision_at"] < window_of(context)[0]]
    return holdings.optimal_holdings(
        candidates,
        views,
        raster,
        before[before["decision_at"] == before["decision_at"].max()],
        decision_times=_decisions(context, settings, warehouse),
        bar=_BAR,
        horizon=settings.labels.horizon,
        lookback_bars=chosen.lookback_bars,
        delta=chosen.delta,
        tau=chosen.tau,
        cap=chosen.max_weight,
        quote=settings.universe.quote,
    )
