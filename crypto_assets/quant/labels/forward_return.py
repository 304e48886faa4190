"""Forward returns as columns of a set: fill to fill, one or several holding periods.

Here: the return. Not here: its volatility (``forward_volatility.py``), and the table ``labels/forward_returns`` with
fills and outcomes (``fill_to_fill.py``). Found by name by ``sets.py``.
"""

from __future__ import annotations

from datetime import timedelta

import numpy as np

from crypto_assets.quant.labels.declared import Decided, Label, Options, Terms, Windows, column_names
from crypto_assets.quant.labels.fill_to_fill import lookahead
from crypto_assets.quant.labels.future import Future


class Entry(Options):
    """Options of the family.

    Attributes
    ----------
    horizons
        Holding periods, from the fill on.
    log
        Logarithm of the price ratio instead of the ratio less one.
    names
        Column names instead of ``forward_return_<horizon>_frac`` (or ``_log``).
    """

    horizons: Windows
    log: bool = False
    names: tuple[str, ...] | None = None


def labels(entry: Entry, grid: Terms) -> tuple[Label, ...]:
    """Declare one column per holding period."""
    unit = "log" if entry.log else "frac"
    names = column_names(entry.names, (f"forward_return_{horizon}_{unit}" for horizon in entry.horizons))
    inputs = ("open", "close")
    for column in inputs:
        grid.unit_of(column)
    formula = "ln(exit / entry)" if entry.log else "exit / entry - 1"
    return tuple(
        Label(
            name=name,
            type="DOUBLE",
            unit=unit,
            meaning=f"{formula}: from the open of the first bar after the row to the open {horizon} later; "
            "a death ends at the last close; missing where no bar came within the waiting time",
            inputs=inputs,
            parameters=(("horizon", horizon), ("log", entry.log)),
            lookahead=fill_lookahead(grid, horizon),
        )
        for name, horizon in zip(names, entry.horizons, strict=True)
    )


def compute(entry: Entry, future: Future) -> Decided:
    """Compute the returns, fill to fill; see `Future.position` for fills, deaths and gaps.

    Notes
    -----
    A row is decided when its longest holding period is. An order without a fill and a holding period whose exit fell
    into a pause longer than the waiting time are decided and have no value.
    """
    prices = future.prices("open", "close")
    places, columns = [], []
    for horizon in entry.horizons:
        held = future.position(future.bars(horizon))
        entered, left = future.traded_at(held, *prices)
        ratio = left / entered
        columns.append(np.log(ratio) if entry.log else ratio - 1.0)
        places.append(held.place)
    return future.decided(labels(entry, future.terms), columns, places)


def fill_lookahead(grid: Terms, horizon: int | str) -> timedelta:
    """How far ahead of a row something held from fill to fill may read."""
    return lookahead(grid.span(horizon), grid.bar, fill_wait=grid.fill_wait, death_after=grid.death_after)
