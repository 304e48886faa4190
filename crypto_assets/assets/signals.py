"""Stage signals: trading rules on prices and predictions. Only ``definitions.py`` imports it."""

from datetime import timedelta

import dagster as dg
import pandas as pd

from crypto_assets.intervals import interval_delta
from crypto_assets.partitions import DAILY, WEEKLY, history, lookback, weeks_of, within
from crypto_assets.quant import signals
from crypto_assets.resources.warehouse.io_manager import WarehouseResource
from crypto_assets.settings import Settings, current_settings

_RULES = current_settings().signals
_CROSS_BARS = signals.ema_cross_lookback_bars(_RULES.ema_cross.long, _RULES.ema_cross.max_age)
_CROSS_DAYS = -(-_CROSS_BARS // current_settings().bars_per_day)
_HISTORY = history(_RULES.threshold_weeks)


@dg.asset(
    partitions_def=DAILY,
    backfill_policy=dg.BackfillPolicy.single_run(),
    kinds={"python"},
    ins={"raster": dg.AssetIn(["rollups", "raster"], partition_mapping=lookback(_CROSS_DAYS))},
)
def ema_cross(
    context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], raster: pd.DataFrame
) -> pd.DataFrame:
    """One row per symbol, raster interval and rule: state of an EMA cross, decaying with its age.

    Source: rollups/raster. Looks back: the averages' windows and the longest age. Empty when: no bars.
    """
    rule = settings.signals.ema_cross
    bar = interval_delta(settings.raster_interval)
    found = signals.ema_cross(
        raster, short=rule.short, long=rule.long, decay=rule.decay, max_age=rule.max_age, bar=bar
    )
    return within(found, context)


@dg.asset(
    partitions_def=WEEKLY,
    backfill_policy=dg.BackfillPolicy.single_run(),
    kinds={"python"},
    ins={
        "scores": dg.AssetIn(["predictions", "scores"], partition_mapping=_HISTORY),
        "forward_returns": dg.AssetIn(["labels", "forward_returns"], partition_mapping=_HISTORY),
    },
)
def thresholds(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    warehouse: WarehouseResource,
    scores: pd.DataFrame,
    forward_returns: pd.DataFrame,
) -> pd.DataFrame:
    """One row per week and model: probabilities at which its rule buys and sells.

    Source: out-of-fold predictions and returns of the weeks before. Status insufficient_history at first.
    """
    weeks = weeks_of(context)
    warehouse.require_whole(weeks)
    costs = settings.costs
    return pd.concat(
        [
            signals.fit_thresholds(
                own,
                forward_returns,
                week=week,
                rule=model.name,
                grid=settings.signals.threshold_grid,
                cost_frac=2 * (costs.fee_bps + costs.slippage_bps) / 10_000,
                min_pairs=settings.signals.threshold_min_pairs,
                lookback=timedelta(weeks=settings.signals.threshold_weeks),
            )
            for model in settings.models
            for own in [scores[scores["model"] == model.name]]
            for week in weeks
        ]
    )


@dg.asset(
    partitions_def=DAILY,
    backfill_policy=dg.BackfillPolicy.single_run(),
    kinds={"python"},
    ins={
        "scores": dg.AssetIn(["predictions", "scores"], partition_mapping=lookback(0)),
        "fitted": dg.AssetIn(["signals", "thresholds"]),
    },
)
def trading_signals(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    scores: pd.DataFrame,
    fitted: pd.DataFrame,
) -> pd.DataFrame:
    """One row per symbol, raster interval and model: buy, sell or nothing.

    Source: predictions/scores of the day, signals/thresholds of its week. Empty without predictions.
    """
    found = [
        signals.threshold_signals(scores[scores["model"] == model.name], fitted, model.name)
        for model in settings.models
    ]
    return within(pd.concat(found), context)
