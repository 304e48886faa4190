"""Stage factors: alpha factors, causal and standardised. Only ``definitions.py`` imports it."""

import dagster as dg
import pandas as pd

from crypto_assets.intervals import interval_delta
from crypto_assets.partitions import DAILY, lookback, within
from crypto_assets.quant import factors
from crypto_assets.settings import Settings


@dg.asset(
    partitions_def=DAILY,
    backfill_policy=dg.BackfillPolicy.single_run(),
    kinds={"python"},
    ins={
        "raster": dg.AssetIn(["rollups", "raster"], partition_mapping=lookback(factors.LOOKBACK_DAYS)),
        "universe": dg.AssetIn(["features", "universe"], partition_mapping=lookback(0)),
    },
)
def alpha_factors(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    raster: pd.DataFrame,
    universe: pd.DataFrame,
) -> pd.DataFrame:
    """One row per symbol, raster interval and factor: the value and its z-score among the eligible.

    Source: rollups/raster, features/universe. Looks back: 31 days. NULL before; empty when: no bars.
    """
    bar = interval_delta(settings.raster_interval)
    return within(factors.alpha_factors(raster, universe, settings.factors.names, bar=bar), context)
