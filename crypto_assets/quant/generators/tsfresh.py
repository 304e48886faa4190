"""Five characteristics of a series per window, under the names that the ``tsfresh`` project made known.

Here: the set and its columns. Not here: the statistics (``itbstats.py``, ``kernels.py``); that project itself is not
needed. Found by name through the package.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np

from crypto_assets.quant.generators import relative
from crypto_assets.quant.generators.declared import Feature, Grid, Options, Windows
from crypto_assets.quant.generators.itbstats import STATISTICS, drafts
from crypto_assets.quant.panel import Panel

_FUNCTIONS = {
    "skewness": STATISTICS["pandas_skew"],
    "kurtosis": STATISTICS["pandas_kurtosis"],
    "msdc": STATISTICS["msdc"],
    "lsbm": STATISTICS["lsbm"],
    "fmax": STATISTICS["fmax"],
}


class Entry(Options):
    """Five characteristics of one column.

    Attributes
    ----------
    columns
        The column, one for each entry.
    windows
        Bars or durations, at least 4 bars.
    names
        Names of all columns, in order.
    """

    columns: relative.OneColumn
    windows: Annotated[Windows, relative.LISTED]
    names: relative.Texts | None = None


def features(entry: Entry, grid: Grid) -> tuple[Feature, ...]:
    """Columns by window, then skewness, kurtosis, msdc, lsbm and fmax.

    Raises
    ------
    ValueError
        If the column is not there, a window is shorter than 4 bars, or two columns have one name.
    """
    column = entry.columns[0]
    unit = grid.unit_of(column)
    made = [
        draft
        for window in entry.windows
        for function, statistic in _FUNCTIONS.items()
        for draft in drafts(column, unit, function, statistic, (window,), grid)
    ]
    return relative.named(entry.names, made)


def compute(entry: Entry, panel: Panel) -> dict[str, np.ndarray]:
    """Compute the matrices of `features`; a window needs half of its values, and the row's own.

    Notes
    -----
    A value reads its own window and nothing later. Missing bars are left out; they are not interpolated.
    """
    grid = relative.grid_of(panel)
    x = panel.matrix(entry.columns[0])
    made = [
        matrix
        for window in entry.windows
        for statistic in _FUNCTIONS.values()
        for matrix in statistic.compute(x, [grid.bars(window)], panel)
    ]
    return dict(zip([feature.name for feature in features(entry, grid)], made, strict=True))
