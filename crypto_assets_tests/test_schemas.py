"""The contracts agree with themselves and with the conventions of names and times."""

from __future__ import annotations

import re
from collections import Counter

import pyarrow as pa
import pytest

from crypto_assets.schemas import ARROW_TYPES, Table
from crypto_assets.tables import TABLES, table_of

EVERY_TABLE = pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))


@EVERY_TABLE
def test_a_table_is_named_stage_slash_asset_and_found_under_that_name(table: Table) -> None:
    assert re.fullmatch(r"[a-z]+/[a-z][a-z0-9_]*", table.name)
    assert table_of(table.name) is table
    assert f"{table.stage}/{table.table}" == table.name


@EVERY_TABLE
def test_a_table_says_what_one_row_is(table: Table) -> None:
    assert table.title.startswith("one row per ")


@EVERY_TABLE
def test_columns_are_unique_typed_and_explained(table: Table) -> None:
    assert not [name for name, n in Counter(table.column_names).items() if n > 1]
    assert {column.type for column in table.columns} <= set(ARROW_TYPES)
    assert not [column.name for column in table.columns if not column.meaning.strip()]


@EVERY_TABLE
def test_keys_exist_once_and_are_required(table: Table) -> None:
    required = {column.name for column in table.columns if column.required}
    assert table.key
    assert len(set(table.key)) == len(table.key)
    assert set(table.key) <= required


@EVERY_TABLE
def test_a_partitioned_table_has_a_required_time_column(table: Table) -> None:
    times = {column.name for column in table.columns if column.required and column.type == "TIMESTAMP"}
    if table.clock != "none":
        assert table.time_column in times
    else:
        assert table.time_column in {*times, ""}


@EVERY_TABLE
def test_columns_decided_later_may_be_missing(table: Table) -> None:
    optional = {column.name for column in table.columns if not column.required}
    assert set(table.decided_later) <= optional


@EVERY_TABLE
def test_every_data_table_says_when_a_row_was_known(table: Table) -> None:
    if table.stage == "quality":
        assert "known_at" not in table.column_names
        return
    known_at = next(column for column in table.columns if column.name == "known_at")
    assert known_at.type == "TIMESTAMP"
    assert known_at.required or "known_at" in table.decided_later


@EVERY_TABLE
def test_counts_are_whole_numbers_and_measures_are_not(table: Table) -> None:
    for column in table.columns:
        if column.name.startswith("n_"):
            assert column.type == "BIGINT", column.name
        if re.search(r"_(usd|bps|frac|log|z)$", column.name):
            assert column.type == "DOUBLE", column.name


@EVERY_TABLE
def test_the_arrow_schema_keeps_order_and_types(table: Table) -> None:
    schema = table.arrow_schema()
    assert schema.names == table.column_names
    assert schema.types == [ARROW_TYPES[column.type] for column in table.columns]
    assert schema.metadata is None


def test_times_are_microseconds_without_a_zone() -> None:
    assert ARROW_TYPES["TIMESTAMP"] == pa.timestamp("us")


def test_only_raw_tables_are_merged_or_observed() -> None:
    assert {table.stage for table in TABLES.values() if table.write == "merge" or table.observed} == {"raw"}


@EVERY_TABLE
def test_data_tables_and_no_others_have_a_known_at_rule(table: Table) -> None:
    assert (table.known_at == "-") == (table.stage == "quality")


def test_what_is_stored_by_the_hour_was_seen_and_comes_in_rounds() -> None:
    hourly = [table for table in TABLES.values() if table.clock == "hourly"]
    assert hourly
    assert {(table.observed, table.write) for table in hourly} == {(True, "merge")}


def test_a_column_has_one_type_wherever_it_occurs() -> None:
    types: dict[str, set[str]] = {}
    for table in TABLES.values():
        for column in table.columns:
            types.setdefault(column.name, set()).add(column.type)
    # Sources give exact amounts; the raster is where they become floating point. A rule's state is an
    # integer, the decaying state a fraction of it.
    assert {name for name, found in types.items() if len(found) > 1} == {
        "volume_base",
        "taker_buy_base",
        "taker_buy_quote",
        "signal",
    }


def test_a_table_without_a_contract_says_where_to_declare_it() -> None:
    with pytest.raises(KeyError, match=r"raw/nothing has no contract: declare .* crypto_assets/schemas\.py"):
        table_of("raw/nothing")
