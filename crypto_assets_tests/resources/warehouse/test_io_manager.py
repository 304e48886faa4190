"""A fit waits for the day that ends at its cut, unless nothing was collected before; what was read is what counts."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest

from crypto_assets.assets import features
from crypto_assets.partitions import DAILY
from crypto_assets.quant import features as quant_features
from crypto_assets.resources.warehouse.files import WarehouseError
from crypto_assets.resources.warehouse.io_manager import WarehouseIOManager, WarehouseResource
from crypto_assets.resources.warehouse.lake import Lake, Provenance
from crypto_assets.resources.warehouse.lineage import Lineage, reads_of
from crypto_assets.settings import current_settings
from crypto_assets.tables import table_of

CUT = datetime(2024, 1, 22)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
KLINES = table_of("raw/klines")


@pytest.fixture
def warehouse(tmp_path: Path) -> WarehouseResource:
    return WarehouseResource(folder=str(tmp_path))


def read_until(warehouse: WarehouseResource, day: datetime, watermark: datetime | None) -> None:
    key = day.date().isoformat()
    said = Provenance(KLINES.name, key, watermark=watermark)
    Lake(Path(warehouse.folder)).replace(KLINES, key, KLINES.arrow_schema().empty_table(), said)


@pytest.mark.parametrize("day", [None, CUT, CUT + DAY], ids=["nothing", "the day of the cut", "a later day"])
def test_where_nothing_was_collected_before_the_cut_there_is_nothing_to_wait_for(
    warehouse: WarehouseResource, day: datetime | None
) -> None:
    if day is not None:
        read_until(warehouse, day, day + DAY)
    warehouse.require_whole([CUT])


def test_the_day_before_the_cut_must_be_stored(warehouse: WarehouseResource) -> None:
    read_until(warehouse, CUT - 3 * DAY, CUT - 2 * DAY)
    read_until(warehouse, CUT, CUT + HOUR)
    with pytest.raises(WarehouseError, match=r"week of 2024-01-22 .* lacks 2024-01-21; materialize"):
        warehouse.require_whole([CUT])


def test_the_day_before_the_cut_must_be_whole(warehouse: WarehouseResource) -> None:
    read_until(warehouse, CUT - DAY, CUT - HOUR)
    with pytest.raises(WarehouseError, match=r"week of 2024-01-22 .* only to 2024-01-21 23:00:00; mat"):
        warehouse.require_whole([CUT])
    read_until(warehouse, CUT - DAY, CUT)
    warehouse.require_whole([CUT])


def test_every_week_of_a_range_is_looked_at(warehouse: WarehouseResource) -> None:
    read_until(warehouse, CUT - DAY, CUT)
    with pytest.raises(WarehouseError, match="week of 2024-01-29"):
        warehouse.require_whole([CUT, CUT + 7 * DAY])


def test_what_is_stored_while_an_asset_is_computed_does_not_count_as_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, day = Lake(tmp_path), CUT.date().isoformat()
    raster, universe = table_of("rollups/raster"), table_of("features/universe")

    def store(close: float) -> None:
        row = {
            "symbol": "A/USDT",
            "ts": CUT,
            "known_at": CUT + HOUR,
            "listing_id": "A/USDT#1",
            "close": close,
        }
        values = row | {"has_bar": True, "bar_age": 0, "turnover_quote": close}
        rows = pa.Table.from_pylist([values], schema=raster.arrow_schema())
        lake.replace(raster, day, rows, Provenance(raster.name, day), (CUT, CUT + DAY))

    def make() -> list[str]:
        result = dg.materialize(
            [features.universe, dg.AssetSpec(["rollups", "raster"], partitions_def=DAILY)],
            selection=[features.universe],
            resources={
                "settings": current_settings(),
                "io_manager": WarehouseIOManager(database=str(tmp_path / "warehouse.duckdb")),
            },
            partition_key=day,
            instance=dg.DagsterInstance.ephemeral(),
        )
        assert result.success
        ((_, changed),) = Lineage(lake, {universe.name: reads}, {universe.name: None}).changed(
            [universe.name]
        )
        return changed

    (spec,) = features.universe.specs
    reads = reads_of(spec)
    read_until(WarehouseResource(folder=str(tmp_path)), CUT, CUT + DAY)
    store(1.0)
    honest = quant_features.universe

    def overtaken(*given: Any, **options: Any) -> pd.DataFrame:
        store(2.0)
        return honest(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(quant_features, "universe", overtaken)
        assert make() == [day]
    assert make() == []
