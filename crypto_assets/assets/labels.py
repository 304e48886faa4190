"""Stage labels: what the future brought, for fitting only. Only ``definitions.py`` imports it."""

from datetime import timedelta

import dagster as dg
import pandas as pd

from crypto_assets.intervals import interval_delta
from crypto_assets.partitions import DAILY, DAY, lookahead, window_of, within
from crypto_assets.quant import labels
from crypto_assets.quant.panel import IDENTITY
from crypto_assets.resources.warehouse.io_manager import WarehouseResource
from crypto_assets.settings import Settings, current_settings

_REACH = labels.lookahead(
    current_settings().labels.horizon,
    interval_delta(current_settings().raster_interval),
    fill_wait=current_settings().costs.fill_wait,
    death_after=current_settings().costs.death_after,
)
#: Days after its own that a label may read, from the longest bounded horizon.
LOOKAHEAD_DAYS = -(-_REACH // timedelta(days=1))


@dg.asset(
    partitions_def=DAILY,
    backfill_policy=dg.BackfillPolicy.single_run(),
    kinds={"python"},
    ins={"raster": dg.AssetIn(["rollups", "raster"], partition_mapping=lookahead(LOOKAHEAD_DAYS))},
)
def forward_returns(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    warehouse: WarehouseResource,
    raster: pd.DataFrame,
) -> pd.DataFrame:
    """One row per symbol and raster interval: the return of one holding period, fill to fill.

    Source: rollups/raster. Looks ahead: horizon, waiting times and death rule. NULL until decided. Empty when: no bars.
    """
    start, end = window_of(context)
    return within(
        labels.forward_returns(
            raster,
            horizon=settings.labels.horizon,
            bar=interval_delta(settings.raster_interval),
            watermark=warehouse.watermark(start, end + LOOKAHEAD_DAYS * DAY),
            fill_wait=settings.costs.fill_wait,
            death_after=settings.costs.death_after,
        ),
        context,
    )


def _declared(name: str) -> dg.AssetsDefinition:
    chosen = current_settings().label_sets[name]
    rows = dg.AssetIn(
        ["rollups", "raster"],
        partition_mapping=lookahead(chosen.lookahead_days, chosen.lookback_days),
        metadata={"columns": [*IDENTITY, "has_bar", *chosen.inputs]},
    )

    @dg.asset(
        name=name,
        partitions_def=DAILY,
        backfill_policy=dg.BackfillPolicy.single_run(),
        kinds={"python"},
        ins={"rows": rows},
        description=(
            f"One row per symbol and raster interval: {len(chosen.labels)} labels as declared in platform.yaml. Looks "
            f"ahead: {chosen.lookahead}; looks back: {chosen.lookback}. NULL until decided; empty when: no bars."
        ),
    )
    def compute(
        context: dg.AssetExecutionContext,
        settings: dg.ResourceParam[Settings],
        warehouse: WarehouseResource,
        rows: pd.DataFrame,
    ) -> pd.DataFrame:
        start, end = window_of(context)
        chosen = settings.label_sets[name]
        watermark = warehouse.watermark(start, end + chosen.lookahead_days * DAY)
        return chosen.compute(rows, watermark=watermark, since=start, until=end)

    return compute


#: The sets that platform.yaml declares.
declared = [_declared(name) for name in current_settings().labels.sets]
