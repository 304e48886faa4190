from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from crypto_assets.resources.warehouse.lake import Lake, Piece, Provenance
from crypto_assets.resources.warehouse.lineage import CLOCKWORK, Lineage, Read
from crypto_assets.schemas import Table
from crypto_assets.tables import TABLES
from crypto_assets_tests.resources.warehouse.rows import klines

MONDAY = datetime(2024, 1, 8)
DAY = timedelta(days=1)
RASTER = TABLES["rollups/raster"]
LABELS = TABLES["labels/forward_returns"]
SCORES = TABLES["weights/alpha_scores"]
WEIGHTS = TABLES["weights/alpha_weights"]
FACTORS = TABLES["factors/alpha_factors"]

#: A daily table that looks back, one that looks ahead, one that joins a fit, and the fit.
READS = {
    RASTER.name: (Read(CLOCKWORK, 0, 0),),
    LABELS.name: (Read(RASTER, 0, 3),),
    FACTORS.name: (Read(RASTER, -2, 0),),
    SCORES.name: (Read(FACTORS, 0, 0), Read(WEIGHTS, 0, 0)),
    WEIGHTS.name: (Read(FACTORS, -1, -1), Read(LABELS, -1, -1)),
}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def key(day: datetime) -> str:
    return day.date().isoformat()


def read_until(lake: Lake, watermark: datetime, day: datetime | None = None) -> None:
    """The exchange was read to a moment, in which nothing traded."""
    day = day or datetime(watermark.year, watermark.month, watermark.day)
    piece = Piece(key(day), klines([]), watermark=watermark)
    made = Provenance(CLOCKWORK.name, key(day))
    lake.merge(CLOCKWORK, key(day), piece, made, (day, day + DAY), watermark)


def make(lake: Lake, name: str, partition: str, rows: list[dict[str, object]] | None = None) -> None:
    """Store a derived partition, made from what is stored now."""
    table = TABLES[name]
    made = Provenance(name, partition, inputs=Lineage(lake, READS).inputs(table, partition, READS[name]))
    lake.replace(table, partition, pa.Table.from_pylist(rows or [], schema=table.arrow_schema()), made)


def row_of(table: Table, at: datetime, **values: object) -> dict[str, object]:
    """A row in which only what must be present is, and what is given."""
    texts = {"VARCHAR": "x", "TIMESTAMP": at, "BOOLEAN": True, "DOUBLE": 0.0, "BIGINT": 0, "INTEGER": 0}
    needed = [column for column in table.columns if column.required or column.name in table.key]
    return dict.fromkeys(table.column_names) | {column.name: texts[column.type] for column in needed} | values


def test_an_hour_without_a_trade_is_news_and_a_second_reading_of_it_is_none(lake: Lake) -> None:
    read_until(lake, MONDAY + timedelta(hours=5))
    make(lake, RASTER.name, key(MONDAY))
    assert Lineage(lake, READS).change(RASTER.name, key(MONDAY)) is None

    read_until(lake, MONDAY + timedelta(hours=6))
    assert Lineage(lake, READS).change(RASTER.name, key(MONDAY)) is not None

    make(lake, RASTER.name, key(MONDAY))
    read_until(lake, MONDAY + timedelta(hours=6))
    assert Lineage(lake, READS).change(RASTER.name, key(MONDAY)) is None


def test_other_sql_or_settings_make_a_partition_due_again(lake: Lake) -> None:
    read_until(lake, MONDAY + timedelta(hours=5))
    make(lake, RASTER.name, key(MONDAY))
    assert Lineage(lake, READS, {RASTER.name: None}).change(RASTER.name, key(MONDAY)) is None
    assert Lineage(lake, READS, {RASTER.name: "2"}).change(RASTER.name, key(MONDAY)) is not None


def test_equal_rows_stop_the_chain_and_other_rows_do_not(lake: Lake) -> None:
    read_until(lake, MONDAY + timedelta(hours=5))
    make(lake, RASTER.name, key(MONDAY))
    make(lake, FACTORS.name, key(MONDAY))
    read_until(lake, MONDAY + timedelta(hours=6))
    make(lake, RASTER.name, key(MONDAY))
    assert Lineage(lake, READS).change(FACTORS.name, key(MONDAY)) is None

    make(lake, RASTER.name, key(MONDAY), [row_of(RASTER, MONDAY)])
    later = [key(MONDAY + days * DAY) for days in range(4)]
    for day in later[1:]:
        read_until(lake, datetime.fromisoformat(day) + timedelta(hours=1))
        make(lake, RASTER.name, day)
    changed = dict(Lineage(lake, READS).changed([FACTORS.name]))
    assert changed == {FACTORS.name: later}, "days that were never made can be made now"


def test_a_day_without_its_own_parents_is_not_due(lake: Lake) -> None:
    lineage = Lineage(lake, READS)
    assert lineage.change(RASTER.name, key(MONDAY)) is None
    read_until(lake, MONDAY + timedelta(hours=1))
    assert lineage.change(RASTER.name, key(MONDAY)) is None, "one object speaks of one moment"
    assert lineage.again().change(RASTER.name, key(MONDAY)) is not None
    assert lineage.again().is_ready(FACTORS.name, key(MONDAY), {RASTER.name: {key(MONDAY)}})
    assert not lineage.again().is_ready(FACTORS.name, key(MONDAY))
    assert not lineage.again().is_ready(SCORES.name, key(MONDAY), {FACTORS.name: {key(MONDAY)}}), "no fit yet"


def test_what_looks_ahead_waits_for_whole_days(lake: Lake) -> None:
    read_until(lake, MONDAY + DAY, MONDAY)
    read_until(lake, MONDAY + DAY + timedelta(hours=4))
    for day in (MONDAY, MONDAY + DAY):
        make(lake, RASTER.name, key(day))
    read = READS[LABELS.name][0]
    assert Lineage(lake, READS).keys(LABELS, read, key(MONDAY)) == [key(MONDAY)]
    assert not Lineage(lake, READS).is_ready(LABELS.name, key(MONDAY + DAY))

    read_until(lake, MONDAY + 2 * DAY, MONDAY + DAY)
    assert Lineage(lake, READS).keys(LABELS, read, key(MONDAY)) == [key(MONDAY), key(MONDAY + DAY)]
    assert Lineage(lake, READS).is_ready(LABELS.name, key(MONDAY + DAY))


def test_a_fit_is_changed_by_what_was_known_at_its_cut_alone(lake: Lake) -> None:
    cut, day = MONDAY, MONDAY - DAY
    early = row_of(LABELS, day, known_at=cut - timedelta(hours=1))
    late = row_of(LABELS, day + timedelta(hours=20), known_at=None)
    make(lake, LABELS.name, key(day), [early, late])
    reads = READS[WEIGHTS.name]
    before = Lineage(lake, READS).inputs(WEIGHTS, key(cut), reads)

    decided = late | {"known_at": cut + timedelta(hours=22)}
    make(lake, LABELS.name, key(day), [early, decided])
    assert Lineage(lake, READS).inputs(WEIGHTS, key(cut), reads) == before
    following = Lineage(lake, READS).inputs(WEIGHTS, key(cut + 7 * DAY), reads)

    make(lake, LABELS.name, key(day), [early | {"known_at": cut - timedelta(hours=2)}, decided])
    assert Lineage(lake, READS).inputs(WEIGHTS, key(cut), reads) != before
    assert Lineage(lake, READS).inputs(WEIGHTS, key(cut + 7 * DAY), reads) == following, (
        "another week's history"
    )


def test_a_fit_waits_until_the_week_before_is_whole_and_made(lake: Lake) -> None:
    sunday = MONDAY - DAY
    assert not Lineage(lake, READS).week_before_is_whole(WEIGHTS.name, MONDAY)

    read_until(lake, sunday + timedelta(hours=23), sunday)
    make(lake, RASTER.name, key(sunday))
    make(lake, FACTORS.name, key(sunday))
    make(lake, LABELS.name, key(sunday))
    assert not Lineage(lake, READS).week_before_is_whole(WEIGHTS.name, MONDAY)

    read_until(lake, MONDAY, sunday)
    assert not Lineage(lake, READS).week_before_is_whole(WEIGHTS.name, MONDAY), "its bars are not made yet"
    make(lake, RASTER.name, key(sunday))
    make(lake, LABELS.name, key(sunday))
    assert Lineage(lake, READS).week_before_is_whole(WEIGHTS.name, MONDAY)
    # Where collecting began in this week, there is nothing to wait for.
    assert Lineage(lake, READS).week_before_is_whole(WEIGHTS.name, sunday - 6 * DAY)


def test_a_file_that_is_replaced_or_removed_changes_the_fingerprint(lake: Lake) -> None:
    lineage = Lineage(lake, READS)
    read_until(lake, MONDAY + timedelta(hours=1))
    first = lineage.again().fingerprint()
    assert lineage.again().fingerprint() == first
    make(lake, RASTER.name, key(MONDAY))
    second = lineage.again().fingerprint()
    lake.path(RASTER, key(MONDAY)).unlink()
    assert len({first, second}) == 2
    assert lineage.again().fingerprint() == first
