"""Stage weights: factor weights fitted weekly, scores applied daily. Only ``definitions.py`` imports it."""

from datetime import timedelta

import dagster as dg
import pandas as pd

from crypto_assets.partitions import DAILY, WEEKLY, history, lookback, weeks_of, within
from crypto_assets.quant import weights
from crypto_assets.resources.warehouse.io_manager import WarehouseResource
from crypto_assets.settings import Settings, current_settings

_HISTORY = history(current_settings().weights.train_weeks)


@dg.asset(
    partitions_def=WEEKLY,
    backfill_policy=dg.BackfillPolicy.single_run(),
    kinds={"python"},
    ins={
        "factors": dg.AssetIn(["factors", "alpha_factors"], partition_mapping=_HISTORY),
        "forward_returns": dg.AssetIn(["labels", "forward_returns"], partition_mapping=_HISTORY),
    },
)
def alpha_weights(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    warehouse: WarehouseResource,
    factors: pd.DataFrame,
    forward_returns: pd.DataFrame,
) -> pd.DataFrame:
    """One row per week and factor: weights fitted on factor values and returns known before the week.

    Source: factors/alpha_factors, labels/forward_returns of the weeks before. Status insufficient_history at first.
    """
    weeks = weeks_of(context)
    warehouse.require_whole(weeks)
    chosen = settings.weights
    return pd.concat(
        [
            weights.fit_alpha_weights(
                factors,
                forward_returns,
                week=week,
                names=settings.factors.names,
                return_quantiles=chosen.return_quantiles,
                factor_quantiles=chosen.factor_quantiles,
                min_pairs=chosen.min_pairs,
                lookback=timedelta(weeks=chosen.train_weeks),
            )
            for week in weeks
        ]
    )


@dg.asset(
    partitions_def=DAILY,
    backfill_policy=dg.BackfillPolicy.single_run(),
    kinds={"python"},
    ins={
        "factors": dg.AssetIn(["factors", "alpha_factors"], partition_mapping=lookback(0)),
        "fitted": dg.AssetIn(["weights", "alpha_weights"]),
    },
)
def alpha_scores(
    context: dg.AssetExecutionContext, factors: pd.DataFrame, fitted: pd.DataFrame
) -> pd.DataFrame:
    """One row per eligible symbol and raster interval: the weighted sum of its standardised factors.

    Source: factors/alpha_factors of the day, weights/alpha_weights of its week. NULL where a factor is missing.
    """
    return within(weights.alpha_scores(factors, fitted), context)
