"""Stage rollups: longer bars and the raster, in SQL (``dbt_features``). Only ``definitions.py`` imports it."""

from collections.abc import Iterator

import dagster as dg
from dagster_dbt import dbt_assets

from crypto_assets.intervals import WEEK
from crypto_assets.partitions import DAILY, WEEKLY
from crypto_assets.resources.dbt import manifest_path
from crypto_assets.resources.dbt_assets import DbtResource, Translator
from crypto_assets.settings import Settings, current_settings

_TRANSLATOR = Translator(current_settings())


@dbt_assets(
    manifest=manifest_path(),
    select="crypto_assets.rollups",
    exclude="klines_1w",
    partitions_def=DAILY,
    backfill_policy=dg.BackfillPolicy.single_run(),
    dagster_dbt_translator=_TRANSLATOR,
)
def rollups(
    context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], dbt: DbtResource
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    """One row per market, interval and bar; one row per symbol and raster interval while the listing lives."""
    yield from dbt.materialize(context, settings)


@dbt_assets(
    manifest=manifest_path(),
    select="klines_1w",
    partitions_def=WEEKLY,
    backfill_policy=dg.BackfillPolicy.single_run(),
    dagster_dbt_translator=_TRANSLATOR,
)
def weekly_rollups(
    context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], dbt: DbtResource
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    """One row per market and week from Monday. Empty while the week runs, and where 1w is not among rollup_intervals."""
    if WEEK in settings.rollup_intervals:
        yield from dbt.materialize(context, settings)
    else:
        yield from dbt.nothing(context)
