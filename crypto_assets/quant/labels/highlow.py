"""How high and how low the price goes within a horizon, and which thresholds it passes or keeps.

Here: extremes of the next bars relative to the row's own value. Not here: which threshold is met first
(``highlow2.py``). Found by name by ``sets.py``.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from crypto_assets.quant import kernels
from crypto_assets.quant.labels.declared import Decided, Label, Options, Terms, Windows, column_names, digits
from crypto_assets.quant.labels.future import Future, lanes

#: A threshold of at least this many percent is one to be passed, a smaller one is one to be kept.
_LARGE = 0.75

Percent = Annotated[float, Field(gt=0)]


class Entry(Options):
    """Options of the family.

    Attributes
    ----------
    horizons
        Windows after the row.
    columns
        Reference, high and low column.
    thresholds
        Percent. At least 0.75: ``high_<x>`` says that the high gets there. Below: that it stays at or under it.
        ``low_<x>`` the same downwards.
    names
        Column names instead of ``high_max_<h>_pct``, ``low_min_<h>_pct``, ``high_<x>_<h>`` ..., ``low_<x>_<h>`` ...,
        ``high_to_low_<h>``, horizon after horizon.
    """

    horizons: Windows
    columns: tuple[str, str, str] = ("close", "high", "low")
    thresholds: tuple[Percent, ...] = (1.0, 1.5, 2.0, 2.5, 3.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    names: tuple[str, ...] | None = None


def labels(entry: Entry, grid: Terms) -> tuple[Label, ...]:
    """Declare the columns, horizon after horizon."""
    reference, high, low = entry.columns
    for column in entry.columns:
        grid.unit_of(column)
    made: list[tuple[str, str, str, str, int | str, float | None]] = []
    for h in entry.horizons:
        upwards = f"100 (max {high} of the next {h} - {reference}) / {reference}"
        downwards = f"100 (min {low} of the next {h} - {reference}) / {reference}"
        made.append((f"high_max_{h}_pct", "DOUBLE", "pct", upwards, h, None))
        made.append((f"low_min_{h}_pct", "DOUBLE", "pct", downwards, h, None))
        for x in entry.thresholds:
            sign = ">=" if x >= _LARGE else "<="
            made.append((f"high_{digits(x)}_{h}", "BOOLEAN", "1", f"{upwards} {sign} {x:g}", h, x))
        for x in entry.thresholds:
            sign = "<=" if x >= _LARGE else ">="
            made.append((f"low_{digits(x)}_{h}", "BOOLEAN", "1", f"{downwards} {sign} -{x:g}", h, x))
        balance = "2 M / (M + m) - 1, M and m the parts of the largest rise and fall that are not negative"
        made.append((f"high_to_low_{h}", "DOUBLE", "1", f"{balance}, over the next {h}", h, None))
    names = column_names(entry.names, (name for name, *_ in made))
    return tuple(
        Label(
            name=name,
            type="BOOLEAN" if kind == "BOOLEAN" else "DOUBLE",
            unit=unit,
            meaning=meaning,
            inputs=tuple(dict.fromkeys(entry.columns)),
            parameters=(("horizon", h), *((("threshold", x),) if x is not None else ())),
            lookahead=grid.span(h) + grid.death_after,
        )
        for name, (_, kind, unit, meaning, h, x) in zip(names, made, strict=True)
    )


def compute(entry: Entry, future: Future) -> Decided:
    """Compute extremes of the bars after each row; the row's own bar is not among them.

    Notes
    -----
    Missing bars, deaths and the moment of decision: `Future.horizon`. ``high_to_low`` has no value where the price
    neither rises nor falls. A row without a positive reference value, of which there are no percent, is decided to be
    missing at its own end.
    """
    from crypto_assets.quant.labels import compiled

    reference, high, low = future.prices(*entry.columns)
    present = ~np.isnan(high) & ~np.isnan(low)
    high, low = (lanes(np.where(present, values, np.nan)) for values in (high, low))
    row, column = future.rows
    now = kernels.positive(reference[row, column])
    unknown = np.isnan(now)
    places, columns = [], []
    for window in entry.horizons:
        horizon = future.horizon(future.bars(window), present)
        stop = np.minimum(horizon.end, len(present) - 1) + 1
        largest, smallest = compiled.extremes_between(high, low, row + 1, stop, column)
        rise, fall = (
            np.where(horizon.holds, 100.0 * (extreme - now) / now, np.nan) for extreme in (largest, smallest)
        )
        columns += [rise, fall]
        columns += [_flag(rise >= x if x >= _LARGE else rise <= x, rise) for x in entry.thresholds]
        columns += [_flag(fall <= -x if x >= _LARGE else fall >= -x, fall) for x in entry.thresholds]
        up, down = np.maximum(rise, 0.0), np.maximum(-fall, 0.0)
        whole = up + down
        columns.append(np.where(whole > 0, 2.0 * up / np.where(whole > 0, whole, 1.0) - 1.0, np.nan))
        places.append(np.where(unknown, row, horizon.place))
    return future.decided(labels(entry, future.terms), columns, places)


def _flag(holds: np.ndarray, value: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(value), np.nan, holds.astype(np.float64))
