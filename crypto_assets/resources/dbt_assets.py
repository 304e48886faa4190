"""dbt models as Dagster assets: how their partitions map, and how what a run made is published.

Here: the translator and the resource that runs models for a window and stores their rows through the same publisher as
the I/O manager. Not here: the invocation (``dbt``) and SQL (``dbt_features``). The assets of rollups and features
import it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslator

from crypto_assets.partitions import keys_of, lookback, window_of
from crypto_assets.resources.dbt import interval_controls, listing_control, run_dbt, watermark_control
from crypto_assets.resources.snapshots import universe_symbols
from crypto_assets.resources.warehouse.io_manager import Publisher, WarehouseResource, report
from crypto_assets.settings import Settings

#: What is read -> days before its own that a model's day reads; all else is read for the same day. One step has one
#: mapping for each parent (Dagster's rule), so the longest look-back of its models counts.
LOOKBACK_DAYS: dict[str, int] = {"rollups/klines": 2, "raw/market_caps": 7, "rollups/raster": 8}


class Translator(DagsterDbtTranslator):
    """Partition mappings of the models; keys and groups come from the dbt project itself."""

    def get_partition_mapping(
        self, dbt_resource_props: Mapping[str, Any], dbt_parent_resource_props: Mapping[str, Any]
    ) -> dg.PartitionMapping | None:
        """How a model's day reads its parent's days."""
        parent = f"{dbt_parent_resource_props['schema']}/{dbt_parent_resource_props['name']}"
        return lookback(LOOKBACK_DAYS.get(parent, 0))


class DbtResource(dg.ConfigurableResource):
    """Runs models of ``dbt_features`` for the window of a run.

    Attributes
    ----------
    folder
        The warehouse folder.
    """

    folder: str

    def materialize(
        self, context: dg.AssetExecutionContext, settings: Settings
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        """Build the selected models, test their rows and publish them, partition by partition.

        Raises
        ------
        DbtError
            If a model or one of its tests fails; nothing is stored then.
        """
        window = window_of(context)
        warehouse = WarehouseResource(folder=self.folder)
        names = sorted("/".join(key.path) for key in context.selected_asset_keys)
        known = warehouse.watermarks("raw/klines", *window)
        controls = {
            **interval_controls(
                settings.venue, settings.base_interval, settings.rollup_intervals, settings.raster_interval
            ),
            "listings": listing_control(lives_of(settings, universe_symbols(warehouse, settings))),
            "days": watermark_control({day: known.get(day) for _, day, _ in keys_of("daily", *window)}),
        }
        rows = run_dbt(warehouse.lake, names, *window, controls)
        publisher = Publisher(Path(self.folder))
        specs = context.assets_def.specs_by_key
        # Dagster refuses a model that is reported before its parent of the same step.
        parents = {
            key: sorted({dep.asset_key for dep in specs[key].deps} & context.selected_asset_keys)
            for key in sorted(context.selected_asset_keys)
        }
        for key in TopologicalSorter(parents).static_order():
            spec = specs[key]
            stored = publisher.publish(spec, rows["/".join(key.path)], context.run.run_id, window)
            yield dg.MaterializeResult(asset_key=key, metadata=report(context, key, stored))
        # A data test that fails stops run_dbt, so whatever is left to report has passed.
        for check in sorted(context.selected_asset_check_keys, key=str):
            yield dg.AssetCheckResult(passed=True, asset_key=check.asset_key, check_name=check.name)


def lives_of(settings: Settings, symbols: Sequence[str]) -> list[dict[str, Any]]:
    """Lives of the symbols of the universe: as declared in the settings, else one without bounds.

    A coin that the settings name holds for the whole life; else it is what ``raw/coins`` said at the time.
    """
    declared = [listing.model_dump(exclude={"known_at", "renamed_to"}) for listing in settings.listings]
    several = {listing.symbol for listing in settings.listings}
    single = [
        {
            "symbol": symbol,
            "listing_id": f"{symbol}#1",
            "coin_id": settings.coins.get(symbol),
            "valid_from": None,
            "valid_to": None,
        }
        for symbol in symbols
        if symbol not in several
    ]
    return declared + single
