"""Forward volatility: how much the price moved while a position was held, fill to fill.

Here: the standard deviation of the returns of one or several holding periods. Not here: the return itself
(``forward_return.py``). Found by name by ``sets.py``.
"""

from __future__ import annotations

import numpy as np

from crypto_assets.quant import kernels
from crypto_assets.quant.labels.declared import Decided, Label, Options, Terms, Windows, column_names
from crypto_assets.quant.labels.forward_return import fill_lookahead
from crypto_assets.quant.labels.future import Future, lanes


class Entry(Options):
    """Options of the family.

    Attributes
    ----------
    horizons
        Holding periods, from the fill on; at least 2 bars, because one return has no standard deviation.
    names
        Column names instead of ``forward_volatility_<horizon>_log``.
    """

    horizons: Windows
    names: tuple[str, ...] | None = None


def labels(entry: Entry, grid: Terms) -> tuple[Label, ...]:
    """Declare one column per holding period.

    Raises
    ------
    ValueError
        If a holding period is shorter than 2 bars.
    """
    names = column_names(entry.names, (f"forward_volatility_{horizon}_log" for horizon in entry.horizons))
    inputs = ("open", "close")
    for column in inputs:
        grid.unit_of(column)
    for horizon in entry.horizons:
        if grid.bars(horizon) < 2:
            raise ValueError(f"a horizon of {horizon} holds one return; the volatility needs at least 2 bars")
    return tuple(
        Label(
            name=name,
            type="DOUBLE",
            unit="log",
            meaning=f"sample sd of the 1-bar log returns of closes with fill < time <= exit, held for {horizon}; "
            "missing with fewer than 2 returns or half of the bars",
            inputs=inputs,
            parameters=(("horizon", horizon),),
            lookahead=fill_lookahead(grid, horizon),
        )
        for name, horizon in zip(names, entry.horizons, strict=True)
    )


def compute(entry: Entry, future: Future) -> Decided:
    """Compute the sample standard deviation of the 1-bar log returns of a holding period.

    The time of a close is the end of its bar, so a period of h bars has h returns: the first leads to the close of
    the fill bar from the close before it, which is the price at the fill. A return across a missing bar is no 1-bar
    return and is left out. Fill, exit and death are those of `Future.position`.

    Notes
    -----
    Missing, but decided: no fill, no exit (``gap``), fewer than 2 returns, or fewer than half of the bars between
    fill and exit without a death.
    """
    from crypto_assets.quant.labels import compiled

    _, closes = future.prices("open", "close")
    changes = lanes(kernels.log_change(closes))
    present = lanes(future.has_bar)
    _, column = future.rows
    places, columns = [], []
    for horizon in entry.horizons:
        held = future.position(future.bars(horizon))
        died = held.outcome == "death"
        ends = died | (held.outcome == "filled")
        start = np.where(ends, held.fill, 0)
        # The bar of an exit opens at the exit, so its close comes later; in a death its close is the exit.
        stop = np.where(ends, held.leave + died, 0)
        sd, n_bars = compiled.spread_between(changes, present, start, stop, column)
        enough = died | (2 * n_bars >= stop - start)
        columns.append(np.where(ends & enough, sd, np.nan))
        places.append(held.place)
    return future.decided(labels(entry, future.terms), columns, places)
