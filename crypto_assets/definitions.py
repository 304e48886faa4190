"""The table of contents: stages in order, the rules every asset obeys, the resources, one ``Definitions``.

Read it first. Not here: assets (``assets``), what they compute (``quant``), what they touch (``resources``).
"""

from __future__ import annotations

import dagster as dg

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
from crypto_assets.resources.coingecko import CoinGeckoResource
from crypto_assets.resources.dbt_assets import DbtResource
from crypto_assets.resources.exchange import ExchangeResource
from crypto_assets.resources.warehouse.catalog import CATALOGUE
from crypto_assets.resources.warehouse.io_manager import WarehouseIOManager, WarehouseResource
from crypto_assets.schemas import table_of
from crypto_assets.settings import Settings, current_settings

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


def house_rules(spec: dg.AssetSpec) -> dg.AssetSpec:
    """Give every asset its contract: time column, column schema, description of its table."""
    table = table_of("/".join(spec.key.path))
    columns = [
        dg.TableColumn(
            column.name,
            column.type,
            description=column.meaning,
            constraints=dg.TableColumnConstraints(nullable=not (column.required or column.name in table.key)),
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
    }
    return spec.replace_attributes(metadata=metadata, group_name=table.stage)


def resources_of(settings: Settings) -> dict[str, object]:
    """The resources of one deployment; demo and live differ in base addresses only."""
    folder = settings.warehouse.folder
    environment = settings.environment
    plan = "pro" if environment.coingecko_pro_key else "demo" if environment.coingecko_demo_key else "public"
    variable = {"pro": "COINGECKO_PRO_API_KEY", "demo": "COINGECKO_DEMO_API_KEY"}.get(plan)
    budgets = str(folder / ".budgets")
    # A simulated market has no budget to respect, and a demo should not wait for one.
    generous = 1_000_000 if settings.simulated else None
    return {
        "settings": settings,
        "io_manager": WarehouseIOManager(database=str(folder / CATALOGUE)),
        "warehouse": WarehouseResource(folder=str(folder)),
        "dbt": DbtResource(folder=str(folder)),
        "exchange": ExchangeResource(
            base_url=settings.exchange_url,
            venue=settings.venue,
            timeout_s=settings.sources.timeout_s,
            budget_dir=budgets,
            weight_per_minute=generous or settings.sources.exchange_weight_per_minute,
        ),
        "coingecko": CoinGeckoResource(
            base_url=settings.coingecko_url,
            plan=plan,
            api_key=dg.EnvVar(variable) if variable else None,
            timeout_s=settings.sources.timeout_s,
            budget_dir=budgets,
            calls_per_minute=generous or settings.sources.coingecko_calls_per_minute,
        ),
    }


def all_assets() -> list[dg.AssetsDefinition]:
    """The assets of all stages under the house rules."""
    found: list[dg.AssetsDefinition] = []
    for stage, module in STAGES.items():
        from_dbt = stage in ("rollups", "features")
        loaded = dg.load_assets_from_modules([module], key_prefix=None if from_dbt else stage)
        found += [asset for asset in loaded if isinstance(asset, dg.AssetsDefinition)]
    return [asset.map_asset_specs(house_rules) for asset in found]


defs = dg.Definitions(
    assets=all_assets(),
    resources=resources_of(current_settings()),
    executor=dg.in_process_executor,
)
