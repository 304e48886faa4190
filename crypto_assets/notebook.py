"""Tables in a notebook: short, read-only access that blocks nobody and that nobody can block.

``load`` reads the partitions it needs through a private connection and closes it. Notebooks import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pandas as pd

from crypto_assets.resources.warehouse.lake import Lake
from crypto_assets.settings import current_settings
from crypto_assets.tables import table_of


def load(
    name: str,
    *,
    start: str | datetime | None = None,
    end: str | datetime | None = None,
    symbols: str | Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    folder: Path | None = None,
) -> pd.DataFrame:
    """Rows of one table as pandas.

    Parameters
    ----------
    name
        ``stage/asset``, such as ``holdings/optimal_holdings``.
    start, end
        Naive UTC bounds of the table's time column, end exclusive; only partitions that can hold such rows are read.
    symbols
        One or more values of the ``symbol`` column to keep.
    columns
        Columns to read; all when left out.
    folder
        The warehouse folder; by default that of the settings.

    Returns
    -------
    DataFrame
        Sorted by the table's key; empty with the right columns where nothing is stored.

    Raises
    ------
    KeyError
        If there is no such table.
    ValueError
        If symbols are asked of a table without them.
    """
    table = table_of(name)
    lake = Lake(folder or current_settings().warehouse.folder)
    conditions = []
    bounds = {"<": end, ">=": start}
    for operator, bound in bounds.items():
        if bound is not None:
            conditions.append(f"\"{table.time_column}\" {operator} timestamp '{pd.Timestamp(bound)}'")
    if symbols is not None:
        if "symbol" not in table.column_names:
            raise ValueError(f"{name} has no symbols; its columns are {', '.join(table.column_names)}")
        chosen = [symbols] if isinstance(symbols, str) else symbols
        listed = ", ".join("'" + symbol.replace("'", "''") + "'" for symbol in chosen)
        conditions.append(f"symbol in ({listed})")
    partitions = None
    if table.clock != "none":
        first = "" if start is None else str((pd.Timestamp(start) - pd.Timedelta(days=6)).date())
        last = "9999" if end is None else str(pd.Timestamp(end).date())
        partitions = [key for key in lake.partitions(table) if first <= key[:10] <= last]
    from crypto_assets.resources.warehouse.io_manager import to_pandas

    return to_pandas(lake.read(table, partitions, columns, where=" and ".join(conditions) or None))
