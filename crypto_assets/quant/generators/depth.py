"""Features of order books (seed C's "depth"): short means of book columns as percent of a longer mean.

Here: which book columns, windows and names. Not here: what a snapshot of a book says (``order_books.py``) and which
snapshot a row of the raster sees. Found by name through ``generators``.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field, field_validator

from crypto_assets.quant import kernels
from crypto_assets.quant.generators.declared import Feature, Grid, Options, Window, Windows
from crypto_assets.quant.generators.itblib import different_windows, percent_of
from crypto_assets.quant.generators.itbstats import present
from crypto_assets.quant.generators.relative import grid_of
from crypto_assets.quant.panel import Panel

#: Columns of the raster that come of raw/order_book_summary: the gap and the density of bids and asks by bins.
BOOK_COLUMNS = (
    "book_gap_quote",
    *(f"book_{side}_density_{n}_bins_base" for n in (1, 2, 5, 10, 20) for side in ("bid", "ask")),
)


class Entry(Options):
    """Relative means of book columns; without parameters the seed's 33 columns.

    Attributes
    ----------
    columns
        Columns of the raster; by default the gap and the ten densities.
    windows
        Of the means; 2, 5, 10.
    base_window
        Of the mean they are related to; 30.
    """

    columns: tuple[str, ...] = Field(BOOK_COLUMNS, min_length=1)
    windows: Windows = (2, 5, 10)
    base_window: Window = 30

    @field_validator("columns")
    @classmethod
    def _each_once(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        if len({_stem(column) for column in columns}) < len(columns):
            raise ValueError(f"{', '.join(columns)} would make a name twice; name each column once")
        return columns


def features(entry: Entry, grid: Grid) -> tuple[Feature, ...]:
    """Declare the columns: book column by book column, windows in their order.

    Raises
    ------
    ValueError
        If a column is missing, two windows are equally long or one equals the base.
    """
    base, windows = grid.bars(entry.base_window), different_windows(grid, entry.windows, "windows")
    for window, n in windows.items():
        if n == base:
            raise ValueError(f"windows: {window} is the base_window, so it would always be 0; leave it out")
    for column in entry.columns:
        grid.unit_of(column)
    return tuple(
        Feature(
            name=_name(column, window),
            unit="pct",
            meaning=f"100 x (a - b) / b; a: mean of {column}, last {window}; b: last {entry.base_window}",
            inputs=(column,),
            parameters=(("window", window), ("base_window", entry.base_window)),
            lookback=max(n, base) - 1,
            warm_up=present(max(n, base)) - 1,
        )
        for column in entry.columns
        for window, n in windows.items()
    )


def compute(entry: Entry, panel: Panel) -> dict[str, np.ndarray]:
    """Compute 100 x (mean over w - mean over the base) / mean over the base: (n_times, n_listings) each.

    NaN where the row has no value of the column, less than half of either window is present or the base's mean is 0.

    Notes
    -----
    Reads the longer of w and base. Formula: seed C, ``depth``. The seed takes rows without a snapshot for rows of
    their own (a window has a value there, too) and moves each snapshot a row back; here the raster says which
    snapshot was known at a row's end, at most as old as its setting allows, and nothing is moved.
    """
    grid = grid_of(panel)
    windows, base = different_windows(grid, entry.windows, "windows"), grid.bars(entry.base_window)
    result = {}
    for column in entry.columns:
        values = panel.matrix(column)
        whole = _mean(values, base, panel)
        for window, n in windows.items():
            result[_name(column, window)] = percent_of(_mean(values, n, panel), whole)
    return result


def _mean(values: np.ndarray, n: int, panel: Panel) -> np.ndarray:
    return kernels.rolling_mean(values, n, present(n), origin=panel.origin, first=panel.first)


def _stem(column: str) -> str:
    # A name ends with one unit, that of its values.
    return column.removesuffix("_quote").removesuffix("_base")


def _name(column: str, window: int | str) -> str:
    return f"{_stem(column)}_{window}_pct"
