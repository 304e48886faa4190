"""The signed area of the bars after a row relative to its own value: whether the future lies above or below it.

Here: the mirror image in time of the feature ``area``. Found by name by ``sets.py``.
"""

from __future__ import annotations

import numpy as np

from crypto_assets.quant.labels.declared import Decided, Label, Options, Terms, Windows, column_names
from crypto_assets.quant.labels.future import Future, lanes


class Entry(Options):
    """Options of the family.

    Attributes
    ----------
    columns
        The column.
    windows
        Windows after the row.
    names
        Column names instead of ``<column>_area_future_<window>``.
    """

    columns: str = "close"
    windows: Windows = (60, 120, 180, 300)
    names: tuple[str, ...] | None = None


def labels(entry: Entry, grid: Terms) -> tuple[Label, ...]:
    """Declare one column per window."""
    grid.unit_of(entry.columns)
    names = column_names(entry.names, (f"{entry.columns}_area_future_{window}" for window in entry.windows))
    return tuple(
        Label(
            name=name,
            type="DOUBLE",
            unit="frac",
            meaning=f"sum(x_i - x_t) / sum|x_i - x_t| over the next {window} of {entry.columns}: +1 all above, "
            "-1 all below",
            inputs=(entry.columns,),
            parameters=(("window", window),),
            lookahead=grid.span(window) + grid.death_after,
        )
        for name, window in zip(names, entry.windows, strict=True)
    )


def compute(entry: Entry, future: Future) -> Decided:
    """Compute the area over the bars after each row, added in the order of time.

    Notes
    -----
    Missing bars, deaths and the moment of decision: `Future.horizon`. Missing, but decided, where nothing differs
    from the row's value (0 / 0) or the row has none.
    """
    from crypto_assets.quant.labels import compiled

    (values,) = future.prices(entry.columns)
    present = ~np.isnan(values)
    row, column = future.rows
    now = values[row, column]
    after = lanes(values)
    places, columns = [], []
    for window in entry.windows:
        horizon = future.horizon(future.bars(window), present)
        stop = np.minimum(horizon.end, len(present) - 1) + 1
        area = compiled.area_between(after, now, row + 1, stop, column)
        columns.append(np.where(horizon.holds, area, np.nan))
        places.append(np.where(np.isnan(now), row, horizon.place))
    return future.decided(labels(entry, future.terms), columns, places)
