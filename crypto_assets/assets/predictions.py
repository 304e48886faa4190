"""Stage predictions: models fitted weekly, scores applied daily. Only ``definitions.py`` imports it."""

import dagster as dg
import pandas as pd

from crypto_assets.partitions import DAILY, WEEKLY, history, lookback, weeks_of, within
from crypto_assets.quant import predictions
from crypto_assets.resources.warehouse.io_manager import WarehouseResource
from crypto_assets.settings import Settings, current_settings

_HISTORY = history(max(model.train_weeks for model in current_settings().models))
#: Tables besides features/cross_section that hold a feature of some model.
_SETS = sorted(
    {
        table.split("/")[1]
        for model in current_settings().models
        for column in current_settings().features_of(model)
        for table in [current_settings().feature_tables[column]]
    }
    - {"cross_section"}
)
_FEATURES = ("cross_section", *_SETS)
#: One seed for all fits: a model differs by its data, not by chance.
SEED = 7


@dg.asset(
    partitions_def=WEEKLY,
    backfill_policy=dg.BackfillPolicy.single_run(),
    kinds={"python", "lightgbm"},
    ins={
        **{name: dg.AssetIn(["features", name], partition_mapping=_HISTORY) for name in _FEATURES},
        "forward_returns": dg.AssetIn(["labels", "forward_returns"], partition_mapping=_HISTORY),
    },
)
def models(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    warehouse: WarehouseResource,
    cross_section: pd.DataFrame,
    forward_returns: pd.DataFrame,
    **sets: pd.DataFrame,
) -> pd.DataFrame:
    """One row per week and model: a calibrated classifier of the sign of the forward return.

    Source: features and labels of the weeks before, known by the cut, purged. Status insufficient_history at first.
    """
    weeks = weeks_of(context)
    warehouse.require_whole(weeks)
    features = predictions.assemble_features(cross_section, sets)
    return pd.concat(
        [
            predictions.fit_model(
                features,
                forward_returns,
                week=week,
                model=model.name,
                feature_names=settings.features_of(model),
                parameters=model.parameters,
                train_weeks=model.train_weeks,
                calibration_weeks=model.calibration_weeks,
                min_rows=model.min_rows,
                seed=SEED,
            )
            for week in weeks
            for model in settings.models
        ]
    )


@dg.asset(
    partitions_def=DAILY,
    backfill_policy=dg.BackfillPolicy.single_run(),
    kinds={"python", "lightgbm"},
    ins={
        **{name: dg.AssetIn(["features", name], partition_mapping=lookback(0)) for name in _FEATURES},
        "fitted": dg.AssetIn(["predictions", "models"]),
    },
)
def scores(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    cross_section: pd.DataFrame,
    fitted: pd.DataFrame,
    **sets: pd.DataFrame,
) -> pd.DataFrame:
    """One row per eligible symbol, raster interval and model: the out-of-fold probability of a gain.

    Source: features of the day, predictions/models of its week. Empty in weeks without a usable model.
    """
    features = predictions.assemble_features(cross_section, sets)
    found = [predictions.predict(features, fitted, model.name) for model in settings.models]
    return within(pd.concat(found), context)
