"""The table of contents: stages in order, the rules every asset obeys, the resources, one ``Definitions``.

Read it first. Not here: assets (``assets``), what they compute (``quant``), what they touch (``resources``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import dagster as dg

from crypto_assets import automation
from crypto_assets.assets import (
    factors,
    features,
    holdings,
    labels,
    predictions,
    quality,
    raw,
    reports,
    rollups,
    signals,
    weights,
)
from crypto_assets.checks import asset_checks
from crypto_assets.resources.archive import ARCHIVE_REQUESTS, ArchiveResource
from crypto_assets.resources.coingecko import CoinGeckoResource
from crypto_assets.resources.dbt_assets import DbtResource
from crypto_assets.resources.exchange import ExchangeResource
from crypto_assets.resources.ingest import Listener, ignore_progress
from crypto_assets.resources.warehouse.catalog import CATALOGUE
from crypto_assets.resources.warehouse.io_manager import WarehouseIOManager, WarehouseResource
from crypto_assets.resources.warehouse.lake import Lake
from crypto_assets.resources.warehouse.lineage import Lineage, reads_of
from crypto_assets.settings import Settings, current_settings
from crypto_assets.tables import table_of

#: Stages left to right: file name = asset group = key prefix = DuckDB schema.
STAGES = {
    "raw": raw,
    "rollups": rollups,
    "features": features,
    "labels": labels,
    "factors": factors,
    "weights": weights,
    "predictions": predictions,
    "signals": signals,
    "holdings": holdings,
    "reports": reports,
    "quality": quality,
}

#: Folder of the rate budgets below the warehouse's.
BUDGETS = ".budgets"
#: A simulated market has no budget to respect, and a demo should not wait for one.
_GENEROUS = 1_000_000

_DBT_SETTINGS = (
    "venue",
    "base_interval",
    "rollup_intervals",
    "raster_interval",
    "raster",
    "universe",
    "listings",
    "coins",
)

#: The settings that derived stages are made by, sections or keys of one: an edit makes their tables due again. What
#: ``labels.sets`` and ``features`` declare makes the declared tables alone, by their own versions.
STAGE_SETTINGS: dict[str, tuple[str, ...]] = {
    "rollups": _DBT_SETTINGS,
    "features": _DBT_SETTINGS,
    "labels": ("labels.horizon", "costs", "raster_interval"),
    "factors": ("factors", "raster_interval"),
    "weights": ("weights", "factors"),
    "predictions": ("models",),
    "signals": ("signals", "models", "costs", "raster_interval"),
    "holdings": ("portfolio", "labels.horizon", "universe", "raster_interval"),
    "reports": ("costs", "raster_interval"),
}


def code_version_of(spec: dg.AssetSpec, settings: Settings) -> str | None:
    """Version of the SQL and settings that make a derived table; None of what shows or collects what is there."""
    sections = STAGE_SETTINGS.get(spec.key.path[0])
    if sections is None:
        return None
    # A declared table is made by its declaration alone, of which its version is the hash.
    version = table_of("/".join(spec.key.path)).version
    chosen = version or settings.model_dump_json(include=_included(sections))
    return hashlib.sha256(f"{spec.code_version} {chosen}".encode()).hexdigest()[:16]


def _included(names: Sequence[str]) -> dict[str, Any]:
    parts = [name.partition(".") for name in names]
    return {section: {key} if key else True for section, _, key in parts}


def house_rules(spec: dg.AssetSpec, lineage: Lineage) -> dg.AssetSpec:
    """Give every asset its contract, version and condition: column schema, group, when it is made by itself."""
    table = table_of("/".join(spec.key.path))
    columns = [
        dg.TableColumn(
            column.name,
            column.type,
            description=column.meaning,
            constraints=dg.TableColumnConstraints(nullable=not (column.required or column.name in table.key)),
            tags=dict(column.tags),
        )
        for column in table.columns
    ]
    metadata = {
        **spec.metadata,
        "partition_expr": table.time_column,
        "dagster/column_schema": dg.TableSchema(columns=columns),
        "key": ", ".join(table.key),
        "known_at": table.known_at,
        "write": table.write,
        **({"version": table.version} if table.version else {}),
    }
    return spec.replace_attributes(
        metadata=metadata,
        group_name=table.stage,
        code_version=lineage.code_versions.get(table.name),
        automation_condition=automation.condition_of(table, lineage),
    )


def loaded_assets() -> list[dg.AssetsDefinition]:
    """The assets of all stages as their modules define them."""
    found: list[dg.AssetsDefinition] = []
    for stage, module in STAGES.items():
        from_dbt = stage in ("rollups", "features")
        loaded = dg.load_assets_from_modules([module], key_prefix=None if from_dbt else stage)
        found += [asset for asset in loaded if isinstance(asset, dg.AssetsDefinition)]
    return found


def lineage_of(settings: Settings) -> Lineage:
    """What follows from what in one warehouse, by the dependencies and versions of the derived assets."""
    specs = [spec for asset in loaded_assets() for spec in asset.specs]
    named = {"/".join(spec.key.path): spec for spec in specs}
    derived = {name: spec for name, spec in named.items() if table_of(name).write == "replace"}
    return Lineage(
        Lake(settings.warehouse.folder),
        {name: reads_of(spec) for name, spec in derived.items()},
        {name: code_version_of(spec, settings) for name, spec in derived.items()},
    )


def all_assets(lineage: Lineage | None = None) -> list[dg.AssetsDefinition]:
    """The assets of all stages under the house rules; their conditions look at the settings' warehouse by default."""
    known = lineage or lineage_of(current_settings())
    return [asset.map_asset_specs(lambda spec: house_rules(spec, known)) for asset in loaded_assets()]


def exchange_of(settings: Settings) -> ExchangeResource:
    """The exchange of one deployment."""
    sources = settings.sources
    return ExchangeResource(
        base_url=settings.exchange_url,
        venue=settings.venue,
        timeout_s=sources.timeout_s,
        budget_dir=str(settings.warehouse.folder / BUDGETS),
        weight_per_minute=_GENEROUS if settings.simulated else sources.exchange_weight_per_minute,
        usdm_weight_per_minute=_GENEROUS if settings.simulated else sources.usdm_weight_per_minute,
        concurrency=sources.concurrency,
    )


def archive_of(settings: Settings) -> ArchiveResource:
    """The archive of the exchange of one deployment."""
    folder = settings.warehouse.folder
    return ArchiveResource(
        venue=settings.venue,
        base_url=settings.archive_url,
        timeout_s=settings.sources.timeout_s,
        folder=str(folder / ".downloads"),
        budget_dir=str(folder / BUDGETS),
        requests_per_minute=_GENEROUS if settings.simulated else ARCHIVE_REQUESTS,
    )


def resources_of(settings: Settings, listener: Listener = ignore_progress) -> dict[str, object]:
    """The resources of one deployment; demo and live differ in base addresses only. Loads tell the listener."""
    folder = settings.warehouse.folder
    environment = settings.environment
    plan = "pro" if environment.coingecko_pro_key else "demo" if environment.coingecko_demo_key else "public"
    variable = {"pro": "COINGECKO_PRO_API_KEY", "demo": "COINGECKO_DEMO_API_KEY"}.get(plan)
    return {
        "settings": settings,
        "progress": listener,
        "io_manager": WarehouseIOManager(database=str(folder / CATALOGUE)),
        "warehouse": WarehouseResource(folder=str(folder)),
        "dbt": DbtResource(folder=str(folder)),
        "exchange": exchange_of(settings),
        "archive": archive_of(settings),
        "coingecko": CoinGeckoResource(
            base_url=settings.coingecko_url,
            plan=plan,
            api_key=dg.EnvVar(variable) if variable else None,
            timeout_s=settings.sources.timeout_s,
            budget_dir=str(folder / BUDGETS),
            calls_per_minute=_GENEROUS if settings.simulated else settings.sources.coingecko_calls_per_minute,
            calls_per_month=None if settings.simulated else settings.sources.coingecko_calls_per_month,
        ),
    }


def definitions_of(settings: Settings, listener: Listener = ignore_progress) -> dg.Definitions:
    """Everything Dagster is told of one deployment; loads tell the listener how far they have come.

    A simulated market's clock stands still and nothing there is ever due, so what would watch it starts switched off.
    """
    lineage = lineage_of(settings)
    on = not settings.simulated
    sensors = dg.DefaultSensorStatus.RUNNING if on else dg.DefaultSensorStatus.STOPPED
    schedules = dg.DefaultScheduleStatus.RUNNING if on else dg.DefaultScheduleStatus.STOPPED
    return dg.Definitions(
        assets=all_assets(lineage),
        asset_checks=asset_checks(settings),
        resources=resources_of(settings, listener),
        jobs=automation.jobs(),
        sensors=[
            automation.market_sensor(settings, lineage, sensors),
            automation.condition_sensor(lineage, sensors),
            automation.repair_sensor(lineage, sensors),
        ],
        schedules=[
            *automation.market_data_schedules(settings, lineage, schedules),
            *automation.book_schedules(settings, schedules),
        ],
        executor=dg.in_process_executor,
    )


defs = definitions_of(current_settings())
