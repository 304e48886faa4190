"""A fit waits for the day that ends at its cut, unless nothing was collected before."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from crypto_assets.resources.warehouse.files import WarehouseError
from crypto_assets.resources.warehouse.io_manager import WarehouseResource
from crypto_assets.resources.warehouse.lake import Lake, Provenance
from crypto_assets.schemas import table_of

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
