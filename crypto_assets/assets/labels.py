"""Stage labels: what the future brought, for fitting only. Only ``definitions.py`` imports it."""

from datetime import timedelta

import dagster as dg
import pandas as pd

from crypto_assets.intervals import interval_delta
from crypto_assets.partitions import DAILY, DAY, lookahead, window_of, within
from crypto_assets.quant import labels
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
