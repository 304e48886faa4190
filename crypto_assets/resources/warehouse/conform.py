"""Frames against contracts: by name, typed, keyed, inside the partition window; and the hash of what is stored.

Here: the only door through which rows enter the lake. Not here: files. The warehouse and the checks import it.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from crypto_assets.schemas import ARROW_TYPES, Column, Table


class ContractError(ValueError):
    """A frame does not fit its table's contract; nothing was stored."""


def to_arrow(frame: Any) -> pa.Table:
    """Arrow table of a pandas, Polars or Arrow frame, without its index.

    Raises
    ------
    ContractError
        If the object is no frame.
    """
    if isinstance(frame, pa.Table):
        return frame
    if isinstance(frame, pa.RecordBatch):
        return pa.Table.from_batches([frame])
    if isinstance(frame, pd.DataFrame):
        try:
            return pa.Table.from_pandas(frame, preserve_index=False)
        except (ValueError, pa.ArrowException) as error:
            raise ContractError(
                f"the pandas frame has no Arrow form: {'; '.join(map(str, error.args))}"
            ) from error
    if hasattr(frame, "to_arrow"):
        arrow = frame.to_arrow()
        if isinstance(arrow, pa.Table):
            return arrow
    raise ContractError(f"expected a pandas, Polars or Arrow table, not {type(frame).__name__}")


def conform(frame: Any, table: Table, window: tuple[datetime, datetime] | None = None) -> pa.Table:
    """Rows in the contract's columns, types and key order.

    Parameters
    ----------
    frame
        pandas, Polars or Arrow table; columns in any order. NaN in a DOUBLE column is stored as NULL.
    table
        The contract.
    window
        Naive UTC start and end (exclusive) that every row's time column must lie in.

    Returns
    -------
    pyarrow.Table
        Sorted by key.

    Raises
    ------
    ContractError
        Naming table, column and what to do: missing or extra columns, zone-aware times, values that do not fit the
        type, infinite numbers, NULL in a required column, duplicate keys, rows outside the window.
    """
    arrow = to_arrow(frame)
    _check_names(arrow, table)
    columns = {column.name: _cast(arrow.column(column.name), column, table) for column in table.columns}
    result = pa.table(columns, schema=table.arrow_schema())
    if window is not None and result.num_rows:
        _check_window(result, table, window)
    return _sorted_by_key(result, table)


def content_hash(rows: pa.Table) -> str:
    """SHA-256 of the rows of a conformed table; equal rows give equal hashes whatever order they came in.

    Notes
    -----
    Covers names, types, NULLs and the bytes of every value (-0.0 counts as 0.0). Rows must be sorted by key, as
    ``conform`` returns them.
    """
    digest = hashlib.sha256()
    for field in rows.schema:
        column = rows.column(field.name).combine_chunks()
        digest.update(f"{field.name}:{field.type}:{len(column)};".encode())
        digest.update(np.packbits(np.asarray(pc.is_null(column))).tobytes())
        for part in _value_bytes(column):
            digest.update(part)
    return digest.hexdigest()


def _value_bytes(column: pa.Array) -> list[bytes]:
    kind = column.type
    if pa.types.is_string(kind):
        values = pc.fill_null(column, "").cast(pa.large_string())
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        text = "".join(values.to_pylist()).encode()
        return [np.asarray(pc.binary_length(values)).tobytes(), text]
    if pa.types.is_boolean(kind):
        return [np.asarray(pc.fill_null(column, False)).tobytes()]
    if pa.types.is_decimal(kind):
        filled = pc.fill_null(column, pa.scalar(0, kind))
        body = filled.buffers()[1]
        offset = filled.offset * 16
        return [body.to_pybytes()[offset : offset + 16 * len(filled)]] if len(filled) else []
    if pa.types.is_timestamp(kind):
        column = column.cast(pa.int64())
    values = np.asarray(pc.fill_null(column, 0))
    return [(values + 0.0 if values.dtype.kind == "f" else values).tobytes()]


def _check_names(arrow: pa.Table, table: Table) -> None:
    got, wanted = set(arrow.column_names), set(table.column_names)
    if len(got) != arrow.num_columns:
        raise ContractError(
            f"{table.name}: a column name occurs twice in {arrow.column_names}; rename or drop one"
        )
    problems = []
    if wanted - got:
        problems.append(f"columns missing: {', '.join(sorted(wanted - got))}")
    if got - wanted:
        problems.append(f"columns not in the contract: {', '.join(sorted(got - wanted))}")
    if problems:
        raise ContractError(
            f"{table.name}: {'; '.join(problems)}; change the asset or its contract in schemas.py"
        )


def _cast(values: pa.ChunkedArray, column: Column, table: Table) -> pa.ChunkedArray:
    where = f"{table.name}.{column.name}"
    target = ARROW_TYPES[column.type]
    if pa.types.is_timestamp(values.type) and values.type.tz is not None:
        raise ContractError(
            f"{where}: times carry the zone {values.type.tz}; tables hold naive UTC, convert and drop the zone"
        )
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if not _same_kind(values.type, target):
        raise ContractError(f"{where}: {values.type} is not a form of {column.type}; convert it in the asset")
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
        if pc.any(pc.is_inf(values)).as_py():
            raise ContractError(f"{where}: holds infinite numbers; make them missing where they arise")
    try:
        cast = values.cast(target)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ContractError(f"{where}: {values.type} does not fit {column.type}: {error}") from error
    if column.required or column.name in table.key:
        n_missing = cast.null_count
        if n_missing:
            raise ContractError(
                f"{where}: {n_missing} of {len(cast)} rows are NULL in a column that must be present"
            )
    return cast


def _same_kind(given: pa.DataType, target: pa.DataType) -> bool:
    # Arrow would also read numbers as times, and texts as numbers (and "inf" among them).
    if pa.types.is_null(given):
        return True
    if pa.types.is_string(target):
        return pa.types.is_string(given) or pa.types.is_large_string(given) or pa.types.is_string_view(given)
    if pa.types.is_boolean(target):
        return pa.types.is_boolean(given)
    if pa.types.is_timestamp(target):
        return pa.types.is_timestamp(given) or pa.types.is_date(given)
    return pa.types.is_integer(given) or pa.types.is_floating(given) or pa.types.is_decimal(given)


def _check_window(rows: pa.Table, table: Table, window: tuple[datetime, datetime]) -> None:
    times = rows.column(table.time_column)
    bounds = pc.min_max(times).as_py()
    if bounds["min"] < window[0] or bounds["max"] >= window[1]:
        raise ContractError(
            f"{table.name}: rows from {bounds['min']} to {bounds['max']} lie outside the partition window "
            f"[{window[0]}, {window[1]}); return only rows of the run's window"
        )


def _sorted_by_key(rows: pa.Table, table: Table) -> pa.Table:
    ordered = rows.sort_by([(name, "ascending") for name in table.key])
    if ordered.num_rows > 1:
        keys = ordered.select(list(table.key))
        same = None
        for name in table.key:
            column = keys.column(name).combine_chunks()
            equal = pc.equal(column.slice(1), column.slice(0, len(column) - 1))
            same = equal if same is None else pc.and_(same, equal)
        at = pc.index(same, True).as_py() if same is not None else -1
        if at >= 0:
            row = {name: value[0] for name, value in keys.slice(at, 1).to_pydict().items()}
            raise ContractError(
                f"{table.name}: the key occurs twice, first at {row}; keep one row per {', '.join(table.key)}"
            )
    return ordered
