"""Stage features: what is known of a symbol at a moment, in SQL or Python. Only ``definitions.py`` imports it."""

from collections.abc import Iterator

import dagster as dg
import pandas as pd
from dagster_dbt import dbt_assets

from crypto_assets.intervals import interval_delta
from crypto_assets.partitions import DAILY, lookback, within
from crypto_assets.quant import features
from crypto_assets.resources.dbt import manifest_path
from crypto_assets.resources.dbt_assets import DbtResource, Translator
from crypto_assets.settings import Settings


@dg.asset(
    key_prefix="features",
    partitions_def=DAILY,
    backfill_policy=dg.BackfillPolicy.single_run(),
    kinds={"python"},
    ins={
        "raster": dg.AssetIn(
            ["rollups", "raster"], partition_mapping=lookback(features.UNIVERSE_LOOKBACK_DAYS)
        )
    },
)
def universe(
    context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], raster: pd.DataFrame
) -> pd.DataFrame:
    """One row per symbol and raster interval: may it be held, as far as was known then, and if not why.

    Source: rollups/raster. Looks back: 31 days. Empty when: no bars.
    """
    chosen = settings.universe
    return within(
        features.universe(
            raster,
            min_turnover_quote=chosen.min_turnover_quote,
            excluded_bases=chosen.excluded_bases,
            min_history_days=chosen.min_history_days,
            max_bar_age=chosen.max_bar_age,
            bar=interval_delta(settings.raster_interval),
        ),
        context,
    )


@dg.asset(
    key_prefix="features",
    partitions_def=DAILY,
    backfill_policy=dg.BackfillPolicy.single_run(),
    kinds={"python"},
    ins={
        "raster": dg.AssetIn(
            ["rollups", "raster"], partition_mapping=lookback(features.TECHNICAL_LOOKBACK_DAYS)
        )
    },
)
def technical(
    context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], raster: pd.DataFrame
) -> pd.DataFrame:
    """One row per symbol and raster interval: volatility and trend indicators on finite windows.

    Source: rollups/raster. Looks back: 23 days. NULL while a window is not filled; empty when: no bars.
    """
    return within(features.technical(raster, bar=interval_delta(settings.raster_interval)), context)


@dbt_assets(
    manifest=manifest_path(),
    select="crypto_assets.features",
    partitions_def=DAILY,
    backfill_policy=dg.BackfillPolicy.single_run(),
    dagster_dbt_translator=Translator(),
)
def sql_features(
    context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], dbt: DbtResource
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    """One row per symbol and raster interval: returns, ranges and volume; ranks among the eligible."""
    yield from dbt.materialize(context, settings)
