"""Which columns of which tables a model's column is made of, read out of the SQL that made it.

Here: the answer, in the form in which Dagster shows it. Not here: running the SQL (``dbt``). ``dbt_assets`` imports it.

dagster-dbt's own way reads the events of a dbt process that it has started and asks the database for every column; ours
runs dbt in this process and knows the columns from the contracts.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import dagster as dg

from crypto_assets.resources.dbt import CONTROLS
from crypto_assets.schemas import Table
from crypto_assets.tables import TABLES

_DIALECT = "duckdb"
#: The catalogue that the control tables get: sqlglot wants all names of one depth.
_CONTROL = "control_tables"


def column_lineage(sql: str, table: Table) -> dg.TableColumnLineage:
    """The columns of the lake's tables that each column of a table is computed from.

    Parameters
    ----------
    sql
        What made it, without Jinja: one query over ``database.schema.table`` and control tables.
    table
        What it made.

    Returns
    -------
    TableColumnLineage
        Columns in storage order. What only decides which rows are joined or kept is not named, nor are control tables.

    Raises
    ------
    ValueError
        If the query does not make a column of the table.
    """
    # The window is all that differs between two runs of a model.
    return _lineage(re.sub(r"timestamp '[^']*'", "timestamp '2000-01-01'", sql), table)


@lru_cache(maxsize=64)
def _lineage(sql: str, table: Table) -> dg.TableColumnLineage:
    from sqlglot import exp, parse_one
    from sqlglot.lineage import lineage
    from sqlglot.optimizer.qualify import qualify
    from sqlglot.optimizer.scope import build_scope

    query = parse_one(sql, dialect=_DIALECT)
    schema: dict[str, Any] = {}
    for place in query.find_all(exp.Table):
        if place.db == "control":
            place.set("catalog", exp.to_identifier(_CONTROL))
        columns = _columns_of(place.db, place.name)
        if columns:
            schema.setdefault(place.catalog, {}).setdefault(place.db, {})[place.name] = columns
    query = qualify(query, schema=schema, dialect=_DIALECT, validate_qualify_columns=False)
    scope = build_scope(query)
    found: dict[str, list[dg.TableColumnDep]] = {}
    for column in table.column_names:
        node = lineage(column, query, schema=schema, scope=scope, dialect=_DIALECT, trim_selects=False)
        found[column] = [
            dg.TableColumnDep(asset_key=dg.AssetKey(list(place)), column_name=name)
            for *place, name in sorted({_source(leaf) for leaf in node.walk() if not leaf.downstream})
            if place and "/".join(place) in TABLES
        ]
    return dg.TableColumnLineage(found)


def _columns_of(schema: str, name: str) -> dict[str, str]:
    if schema == "control":
        return dict.fromkeys(CONTROLS[name].names, "VARCHAR")
    table = TABLES.get(f"{schema}/{name}")
    return {column.name: column.type for column in table.columns} if table else {}


def _source(leaf: Any) -> tuple[str, ...]:
    from sqlglot import exp

    # A leaf that is no table is a constant.
    if not isinstance(leaf.expression, exp.Table):
        return ("",)
    return leaf.expression.db, leaf.expression.name, leaf.name.rsplit(".", 1)[-1].strip('"')
