"""Stage rollups: longer bars and the raster, in SQL (``dbt_features``). Only ``definitions.py`` imports it."""

from collections.abc import Iterator

import dagster as dg
from dagster_dbt import dbt_assets

from crypto_assets.partitions import DAILY
from crypto_assets.resources.dbt import manifest_path
from crypto_assets.resources.dbt_assets import DbtResource, Translator
from crypto_assets.settings import Settings


@dbt_assets(
    manifest=manifest_path(),
    select="crypto_assets.rollups",
    partitions_def=DAILY,
    backfill_policy=dg.BackfillPolicy.single_run(),
    dagster_dbt_translator=Translator(),
)
def rollups(
    context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], dbt: DbtResource
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    """One row per market, interval and bar; one row per symbol and raster interval while the listing lives."""
    yield from dbt.materialize(context, settings)
