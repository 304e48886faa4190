"""Functions that are opaque, evaluated per UTC day from a fixed anchor, so that every run gives the same bits.

Here: what such a function sees of one listing and one day, and where its results go. Not here: a function (``talib.py``,
``custom.py``) and windows that the kernels know. The generators of this package import it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

import numpy as np

from crypto_assets.quant.panel import DAY, Panel, longest_pause


class Seen(dict[str, np.ndarray]):
    """What a function sees: the inputs and ``ts`` as (n,) arrays, bars that are there only, oldest first.

    The arrays are copies: writing to them changes nothing else.

    Attributes
    ----------
    listing
        Listing id.
    day
        Start of the UTC day the results are for.
    n_before
        Rows that lie before the day: history, whose results are not used.
    """

    def __init__(
        self, columns: Mapping[str, np.ndarray], listing: str, day: np.datetime64, n_before: int
    ) -> None:
        super().__init__(columns)
        self.listing = listing
        self.day = day
        self.n_before = n_before


def bars_per_day(panel: Panel) -> int:
    """How many bars a UTC day has."""
    return int(DAY // panel.bar)


def reach(lookback: int, bar: timedelta) -> int:
    """Bars before its own that a row may read through `by_day`: the last one of a day is farthest from the anchor.

    Examples
    --------
    >>> reach(100, timedelta(hours=1))
    123
    """
    return lookback + timedelta(days=1) // bar - 1


def by_day(
    panel: Panel,
    inputs: Mapping[str, np.ndarray],
    lookback: int,
    warm_up: int,
    function: Callable[[Seen], Mapping[str, np.ndarray]],
    *,
    names: Sequence[str],
    present: np.ndarray | None = None,
    max_gap: int | None = None,
) -> dict[str, np.ndarray]:
    """Evaluate a function for every wanted day and listing on the rows from the day's anchor on.

    Parameters
    ----------
    panel
        The grid; days that end before ``panel.first`` are left out.
    inputs
        (n_times, n_listings) matrices by the names the function knows them by; ``ts`` is added.
    lookback
        Grid bars before the first bar of the day: there the function's view begins. A row therefore depends on up to
        ``reach(lookback, bar)`` bars before its own, which is what its ``Feature.lookback`` must say.
    warm_up
        Rows that must precede a row in what the function sees, else the result is NaN.
    function
        Takes `Seen` and returns one (n,) array per name, n as in what it saw.
    names
        The results, in the order of the answer.
    present
        (n_times, n_listings) flags of the rows that the function sees. None: those in which no input is missing.
    max_gap
        Missing bars in a row that a history survives; after a longer pause the function sees what follows the pause
        only. None: `longest_pause`.

    Returns
    -------
    dict of numpy.ndarray
        (n_times, n_listings); NaN where the function saw no row, the warm-up is short, or the result is not finite.

    Raises
    ------
    ValueError
        If there are no inputs or one has another shape, or the function hands back other names or lengths; the
        message names the listing and the day. What the function itself raises carries them as a note.

    Notes
    -----
    The anchor depends on the day alone, so the bits of a value do not depend on what range is run. They may still
    depend on later rows of the day: **that the function does not look ahead is the caller's to prove.** The day's last
    row is the newest one there is, so a function that looks ahead gives other bits on an open day.
    Source: conventions, section 4.
    """
    _check_inputs(panel, inputs)
    if not 0 <= warm_up <= lookback:
        raise ValueError(
            f"the warm-up was {warm_up} rows, it must lie between 0 and the look-back of {lookback}"
        )
    there = _complete(panel, inputs) if present is None else present
    per_day = bars_per_day(panel)
    longest = longest_pause(timedelta(days=1) // per_day) if max_gap is None else max_gap
    results = {name: np.full(panel.shape, np.nan) for name in names}
    first_day = panel.first - panel.first % per_day
    for column, listing in enumerate(panel.listings):
        places = np.flatnonzero(there[:, column])
        breaks = np.flatnonzero(np.diff(places) - 1 > longest) + 1
        for start in range(first_day, len(panel.times), per_day):
            low, begin, end = np.searchsorted(places, [start - lookback, start, start + per_day])
            if begin == end:
                continue
            # A break at `low` itself is the beginning of the view anyway.
            edges = [int(low), *(int(cut) for cut in breaks if low < cut < end), int(end)]
            for left, right in zip(edges[:-1], edges[1:], strict=True):
                if right <= begin:
                    continue
                rows = places[left:right]
                seen = Seen(
                    {name: matrix[rows, column] for name, matrix in inputs.items()}
                    | {"ts": panel.times[rows]},
                    listing,
                    panel.times[start],
                    max(int(begin) - left, 0),
                )
                made = _evaluated(function, seen, names)
                wanted = max(warm_up, seen.n_before)
                for name, values in made.items():
                    results[name][rows[wanted:], column] = values[wanted:]
    return results


def _check_inputs(panel: Panel, inputs: Mapping[str, np.ndarray]) -> None:
    if not inputs:
        raise ValueError("a function without inputs sees no rows: give at least one column")
    for name, matrix in inputs.items():
        if matrix.shape != panel.shape:
            raise ValueError(f"the input {name} has the shape {matrix.shape} instead of {panel.shape}")


def _complete(panel: Panel, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    complete = np.ones(panel.shape, dtype=bool)
    for matrix in inputs.values():
        complete &= ~np.isnan(matrix)
    return complete


def _evaluated(
    function: Callable[[Seen], Mapping[str, np.ndarray]], seen: Seen, names: Sequence[str]
) -> dict[str, np.ndarray]:
    where = f"for {seen.listing} on {seen.day.astype('datetime64[D]')}"
    n_rows = len(seen["ts"])
    try:
        made = function(seen)
    except Exception as error:
        error.add_note(f"while it was evaluated {where}")
        raise
    if sorted(made) != sorted(names):
        raise ValueError(
            f"the function made {', '.join(made) or 'nothing'} {where} instead of {', '.join(names)}"
        )
    result = {}
    for name in names:
        values = np.asarray(made[name], dtype=np.float64)
        if values.shape != (n_rows,):
            raise ValueError(
                f"{name} has the shape {values.shape} {where}, but the function saw {n_rows} rows"
            )
        result[name] = np.where(np.isfinite(values), values, np.nan)
    return result
