"""Stage features: what is known of a symbol at a moment, in SQL or Python. Only ``definitions.py`` imports it."""

from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
from dagster_dbt import dbt_assets

from crypto_assets.intervals import interval_delta
from crypto_assets.partitions import DAILY, DAY, floor_of, lookback, window_of, within
from crypto_assets.quant import features, profiles
from crypto_assets.quant.feature_sets import FeatureSet
from crypto_assets.resources.dbt import manifest_path
from crypto_assets.resources.dbt_assets import DbtResource, Translator
from crypto_assets.resources.warehouse.io_manager import WarehouseResource
from crypto_assets.settings import Settings, current_settings


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


#: So many of the newest whole days of a run are described; more would cost more than making them.
_DESCRIBED_DAYS = 31


def _declared(name: str) -> dg.AssetsDefinition:
    chosen = current_settings().feature_sets[name]
    interval, source = current_settings().interval_of(name), current_settings().rows_of(name)
    rows = dg.AssetIn(
        source.table.split("/"),
        partition_mapping=lookback(chosen.lookback_days),
        metadata={"columns": source.columns and list(source.columns), "where": source.where},
    )

    @dg.asset(
        name=name,
        key_prefix="features",
        partitions_def=DAILY,
        backfill_policy=dg.BackfillPolicy.single_run(),
        kinds={"python"},
        ins={"rows": rows},
        description=(
            f"One row per symbol and bar of {interval}: {len(chosen.features)} features as declared in "
            f"platform.yaml. Looks back: {chosen.lookback}. NULL while a window is not filled; empty when: no bars."
        ),
    )
    def compute(
        context: dg.AssetExecutionContext,
        settings: dg.ResourceParam[Settings],
        warehouse: WarehouseResource,
        rows: pd.DataFrame,
    ) -> pd.DataFrame:
        start, end = window_of(context)
        bars = features.bars(rows) if source.columns is None else rows
        made = settings.feature_sets[name].compute(bars, since=start)
        _describe(context, warehouse, settings.feature_sets[name], made)
        return made

    return compute


def _describe(
    context: dg.AssetExecutionContext, warehouse: WarehouseResource, chosen: FeatureSet, made: pd.DataFrame
) -> None:
    start, end = window_of(context)
    newest = floor_of("daily", warehouse.watermark(start, end)) - DAY
    n_days = min((newest + DAY - start) // DAY, _DESCRIBED_DAYS)
    if n_days < 1:
        return
    stored = warehouse.read(f"features/{chosen.name}", newest - n_days * DAY - profiles.MONTH, start)
    rows = pd.concat([stored, made])
    for day, described in profiles.of_days(rows, chosen.names, newest, n_days):
        told: dict[str, dg.MetadataValue] = {}
        if day == newest:
            today = rows[rows["ts"].between(day, day + DAY, inclusive="left")]
            correlation = profiles.rank_correlation(today, chosen.names)
            described["cluster"] = profiles.clusters(correlation)
            drawn = b64encode(profiles.picture(described, correlation)).decode()
            told["picture"] = dg.MetadataValue.md(f"![columns](data:image/png;base64,{drawn})")
        told["columns"] = dg.MetadataValue.table(
            [
                dg.TableRecord({str(key): _shown(value) for key, value in record.items()})
                for record in described.to_dict("records")
            ]
        )
        # Numbers of their own, which the UI draws over the days.
        for figure, column in (("largest_null_share", "null_share_frac"), ("largest_drift", "drift")):
            largest = described[column].max()
            if pd.notna(largest):
                told[figure] = dg.MetadataValue.float(float(largest))
        context.add_asset_metadata(told, context.asset_key, day.date().isoformat())


def _shown(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return None if np.isnan(value) else float(f"{value:.6g}")


#: The sets that platform.yaml declares.
declared = [_declared(name) for name in current_settings().features]


@dbt_assets(
    manifest=manifest_path(),
    select="crypto_assets.features",
    partitions_def=DAILY,
    backfill_policy=dg.BackfillPolicy.single_run(),
    dagster_dbt_translator=Translator(current_settings()),
)
def sql_features(
    context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], dbt: DbtResource
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    """One row per eligible symbol and raster interval: its standing among the eligible of that moment."""
    yield from dbt.materialize(context, settings)
