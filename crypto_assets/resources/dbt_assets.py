"""dbt models as Dagster assets: how their partitions map, and how what a run made is published.

Here: the translator and the resource that runs models for a window and stores their rows through the same publisher as
the I/O manager. Not here: the invocation (``dbt``) and SQL (``dbt_features``). The assets of rollups and features
import it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslator, DbtProject

from crypto_assets.partitions import DAY, keys_of, lookback, window_of
from crypto_assets.resources.column_lineage import column_lineage
from crypto_assets.resources.dbt import (
    age_control,
    built,
    interval_controls,
    listing_control,
    standing_control,
    watermark_control,
)
from crypto_assets.resources.snapshots import collected_symbols
from crypto_assets.resources.warehouse.io_manager import Publisher, WarehouseResource, report
from crypto_assets.resources.warehouse.lineage import reads_of
from crypto_assets.schemas import Table
from crypto_assets.settings import MaxAges, Settings
from crypto_assets.tables import table_of

#: What is read -> days before its own that a model's day reads besides what ages ask for; all else is read for the same
#: day. One step has one mapping for each parent (Dagster's rule), so the longest look-back of its models counts.
LOOKBACK_DAYS: dict[str, int] = {"rollups/klines": 2}
_PROJECT = "crypto_assets"


def lookback_days(parent: str, ages: MaxAges) -> int:
    """Days before its own that a model's day reads of a table.

    Notes
    -----
    What is carried until it is too old was known at most that long before, and its own time is before that: of a market
    cap more than a day, and it is compared with the two days before it.

    Examples
    --------
    >>> from crypto_assets.settings import MaxAges
    >>> [lookback_days(name, MaxAges()) for name in ("raw/klines", "raw/funding_rates", "raw/market_caps")]
    [0, 1, 6]
    """
    carried = {
        "raw/market_caps": ages.market_cap + 3 * DAY,
        "raw/funding_rates": ages.funding_rate,
        "raw/open_interest": ages.open_interest,
        "raw/order_book_summary": ages.order_book,
    }
    return LOOKBACK_DAYS.get(parent, 0) or -(-carried.get(parent, timedelta()) // DAY)


class Translator(DagsterDbtTranslator):
    """Partition mappings and versions of the models; keys and groups come from the dbt project itself.

    Parameters
    ----------
    settings
        How long the raster carries what it knows is how far a day looks back; what is compared in the cross-section is
        what it is made of.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._ages = settings.raster.max_age
        self._compared = sorted({one.table for one in settings.standings})

    def get_partition_mapping(
        self, dbt_resource_props: Mapping[str, Any], dbt_parent_resource_props: Mapping[str, Any]
    ) -> dg.PartitionMapping | None:
        """How a model's day reads its parent's days; a week reads its own."""
        table, parent = (
            table_of("/".join(self.get_asset_key(node).path))
            for node in (dbt_resource_props, dbt_parent_resource_props)
        )
        return lookback(0 if table.clock == "weekly" else lookback_days(parent.name, self._ages))

    def get_asset_spec(
        self, manifest: Mapping[str, Any], unique_id: str, project: DbtProject | None
    ) -> dg.AssetSpec:
        """The asset of a model; its version is that of its SQL and of the project's macros that it calls."""
        spec = super().get_asset_spec(manifest, unique_id, project)
        node = manifest["nodes"].get(unique_id)
        if node is None or node["resource_type"] != "model":
            return spec
        if table_of("/".join(spec.key.path)).name == "features/cross_section":
            known = {dep.asset_key for dep in spec.deps}
            keys = [dg.AssetKey(name.split("/")) for name in self._compared]
            same_day = [dg.AssetDep(key, partition_mapping=lookback(0)) for key in keys if key not in known]
            spec = spec.replace_attributes(deps=[*spec.deps, *same_day])
        text = "\n".join([node["raw_code"], *_macros_of(node["raw_code"], manifest["macros"])])
        return spec.replace_attributes(code_version=hashlib.sha256(text.encode()).hexdigest()[:16])


def _macros_of(code: str, macros: Mapping[str, Mapping[str, Any]]) -> list[str]:
    # By their names in the code: dbt knows of those alone that it met while parsing, when nothing is looped over.
    own = {one["name"]: one["macro_sql"] for one in macros.values() if one["package_name"] == _PROJECT}
    found: dict[str, str] = {}
    waiting = [code]
    while waiting:
        for name in set(re.findall(r"\w+", waiting.pop())) & own.keys() - found.keys():
            found[name] = own[name]
            waiting.append(own[name])
    return [found[name] for name in sorted(found)]


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
        publisher, specs = Publisher(Path(self.folder)), context.assets_def.specs_by_key
        # Before anything is read.
        seen = publisher.now()
        for key in context.selected_asset_keys:
            table = table_of("/".join(key.path))
            for partition, _, _ in keys_of(table.clock, *window):
                seen.inputs(table, partition, reads_of(specs[key]))
        warehouse = WarehouseResource(folder=self.folder)
        names = sorted("/".join(key.path) for key in context.selected_asset_keys)
        known = warehouse.watermarks("raw/klines", *window)
        controls = {
            **interval_controls(
                settings.venue, settings.base_interval, settings.daily_intervals, settings.raster_interval
            ),
            "listings": listing_control(lives_of(settings, collected_symbols(warehouse, settings))),
            "days": watermark_control({day: known.get(day) for _, day, _ in keys_of("daily", *window)}),
            "ages": age_control(dict(settings.raster.max_age)),
            "standings": standing_control(
                [
                    {"name": one.name, "kind": one.kind, "compared": one.column, "source": one.table}
                    for one in settings.standings
                ]
            ),
        }
        # Dagster refuses a model that is reported before its parent of the same step.
        parents = {
            key: sorted({dep.asset_key for dep in specs[key].deps} & context.selected_asset_keys)
            for key in sorted(context.selected_asset_keys)
        }
        with built(warehouse.lake, names, *window, controls) as made:
            for key in TopologicalSorter(parents).static_order():
                name = "/".join(key.path)
                stored = []
                for part in made.parts[name]:
                    stored += publisher.publish(
                        specs[key], part.rows(), context.run.run_id, (part.start, part.end), seen
                    )
                yield dg.MaterializeResult(
                    asset_key=key,
                    metadata=report(context, key, stored)
                    | _lineage_of(context, made.sql[name], table_of(name)),
                )
        # A data test that fails stops the run, so whatever is left to report has passed.
        yield from _all_passed(context)

    def nothing(
        self, context: dg.AssetExecutionContext
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        """Publish typed empties: what the models would make is not wanted. No row breaks a check."""
        publisher, specs = Publisher(Path(self.folder)), context.assets_def.specs_by_key
        for key in sorted(context.selected_asset_keys):
            empty = table_of("/".join(key.path)).arrow_schema().empty_table()
            stored = publisher.publish(specs[key], empty, context.run.run_id, window_of(context))
            yield dg.MaterializeResult(asset_key=key, metadata=report(context, key, stored))
        yield from _all_passed(context)


def _lineage_of(context: dg.AssetExecutionContext, sql: str, table: Table) -> dict[str, Any]:
    from sqlglot.errors import SqlglotError

    try:
        return {"dagster/column_lineage": column_lineage(sql, table)}
    except (SqlglotError, ValueError) as error:
        # It is shown and nothing is made of it, so that it cannot fail rows that are stored.
        context.log.warning(f"{table.name}: no column lineage is shown: {error}")
        return {}


def _all_passed(context: dg.AssetExecutionContext) -> Iterator[dg.AssetCheckResult]:
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
