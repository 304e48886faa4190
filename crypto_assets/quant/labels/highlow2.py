"""Which comes first: the price passes a threshold, or it goes a part of that way in the other direction.

Here: one boolean per threshold, decided as soon as either happens. Not here: extremes over a whole horizon
(``highlow.py``) and returns (``triple_barrier.py``). Found by name by ``sets.py``.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from crypto_assets.quant import kernels
from crypto_assets.quant.labels.declared import Decided, Label, Options, Terms, Window, column_names, digits
from crypto_assets.quant.labels.future import Future, lanes

Thresholds = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]


class Entry(Options):
    """Options of the family.

    Attributes
    ----------
    columns
        Reference, high and low column.
    function
        ``high``: the high must pass the threshold before the low falls; ``low``: the mirror image.
    thresholds
        Percent.
    tolerance
        Part of the threshold that the price may go in the other direction.
    horizon
        Window after the row.
    names
        Column names instead of ``<function>_<x>_first_<horizon>``.
    """

    columns: tuple[str, str, str] = ("close", "high", "low")
    function: Literal["high", "low"]
    thresholds: Thresholds
    tolerance: Annotated[float, Field(gt=0)]
    horizon: Window
    names: tuple[str, ...] | None = None


def labels(entry: Entry, grid: Terms) -> tuple[Label, ...]:
    """Declare one column per threshold."""
    for column in entry.columns:
        grid.unit_of(column)
    reference, high, low = entry.columns
    first, second = (high, low) if entry.function == "high" else (low, high)
    plus, minus = ("+", "-") if entry.function == "high" else ("-", "+")
    names = column_names(
        entry.names, (f"{entry.function}_{digits(x)}_first_{entry.horizon}" for x in entry.thresholds)
    )
    return tuple(
        Label(
            name=name,
            type="BOOLEAN",
            unit="1",
            meaning=f"{first} passes {reference} (1 {plus} {x:g} %) within {entry.horizon} and {second} does not pass "
            f"{reference} (1 {minus} {x * entry.tolerance:g} %) in an earlier bar",
            inputs=tuple(dict.fromkeys(entry.columns)),
            parameters=(("threshold", x), ("tolerance", entry.tolerance), ("horizon", entry.horizon)),
            lookahead=grid.span(entry.horizon) + grid.death_after,
        )
        for name, x in zip(names, entry.thresholds, strict=True)
    )


def compute(entry: Entry, future: Future) -> Decided:
    """Compute which of the two is passed first among the bars after each row.

    Both in one bar count as success. A threshold is passed strictly.

    Notes
    -----
    A threshold is decided at the end of the first bar in which either is passed, whatever is missing before it; else
    with its horizon (`Future.horizon`), as false, or missing with too few bars. An entry is decided with the last of
    its thresholds. A row without a positive reference value, of which there are no percent, is decided to be missing
    at its own end.

    Formula: ITB's highlow2, without its false labels at the end of the data.
    """
    from crypto_assets.quant.labels import compiled

    reference, high, low = future.prices(*entry.columns)
    present = ~np.isnan(high) & ~np.isnan(low)
    high, low = (lanes(np.where(present, values, np.nan)) for values in (high, low))
    row, column = future.rows
    now = kernels.positive(reference[row, column])
    unknown = np.isnan(now)
    horizon = future.horizon(future.bars(entry.horizon), present)
    stop = np.minimum(horizon.end, len(present) - 1) + 1
    places, columns = [], []
    for x in entry.thresholds:
        if entry.function == "high":
            upper, lower = now * (1.0 + x / 100.0), now * (1.0 - x * entry.tolerance / 100.0)
            won, lost = compiled.first_beyond(high, low, upper, lower, row + 1, stop, column)
        else:
            upper, lower = now * (1.0 + x * entry.tolerance / 100.0), now * (1.0 - x / 100.0)
            lost, won = compiled.first_beyond(high, low, upper, lower, row + 1, stop, column)
        met = (won >= 0) | (lost >= 0)
        at_the_end = np.where(horizon.holds & ~unknown, 0.0, np.nan)
        columns.append(np.where(met, (won >= 0).astype(np.float64), at_the_end))
        places.append(np.where(met, np.maximum(won, lost), np.where(unknown, row, horizon.place)))
    return future.decided(labels(entry, future.terms), columns, places)
