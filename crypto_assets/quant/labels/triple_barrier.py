"""Which barrier a position touches first: the upper one, the lower one, or the end of its time.

Here: label, return and moment of the touch, held from the fill on. Not here: thresholds relative to the row's own
close (``highlow2.py``). Found by name by ``sets.py``.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from crypto_assets.quant import kernels
from crypto_assets.quant.labels.declared import Decided, Label, Options, Terms, Window, column_names
from crypto_assets.quant.labels.forward_return import fill_lookahead
from crypto_assets.quant.labels.future import Future, count_between, lanes

Distance = Annotated[float, Field(gt=0)]


class Entry(Options):
    """Options of the family.

    Attributes
    ----------
    upper, lower
        Distance of the barriers from the fill price; None: there is none. One of the two is needed.
    unit
        ``frac``: fractions of the fill price. ``volatility``: multiples of the sample sd of 1-bar log returns of the
        ``volatility_window`` up to the row.
    volatility_window
        At least 2 bars; half of the returns must be there. Only with the unit ``volatility``.
    horizon
        Longest holding period, the vertical barrier.
    columns
        High and low column.
    names
        Column names instead of ``barrier_<horizon>``, ``barrier_return_<horizon>_frac`` and
        ``barrier_touched_at_<horizon>``.
    """

    upper: Distance | None
    lower: Distance | None
    unit: Literal["frac", "volatility"] = "frac"
    volatility_window: Window | None = None
    horizon: Window
    columns: tuple[str, str] = ("high", "low")
    names: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> Entry:
        if self.upper is None and self.lower is None:
            raise ValueError("upper and lower are both missing; without a barrier use forward_return")
        if self.unit == "frac" and self.lower is not None and self.lower >= 1:
            raise ValueError(
                f"lower is {self.lower:g}: no price falls by all it is worth; give a fraction below 1"
            )
        if (self.unit == "volatility") != (self.volatility_window is not None):
            raise ValueError("volatility_window is given with the unit volatility, and only then")
        return self


def labels(entry: Entry, grid: Terms) -> tuple[Label, ...]:
    """Declare label, return and moment.

    Raises
    ------
    ValueError
        If the window of the volatility is shorter than 2 bars.
    """
    inputs = tuple(dict.fromkeys(("open", "close", *entry.columns)))
    for column in inputs:
        grid.unit_of(column)
    lookback = timedelta(0)
    if entry.volatility_window is not None:
        if grid.bars(entry.volatility_window) < 2:
            raise ValueError(
                f"a volatility_window of {entry.volatility_window} has no spread; give at least 2 bars"
            )
        lookback = grid.span(entry.volatility_window)
    h = entry.horizon
    default = (f"barrier_{h}", f"barrier_return_{h}_frac", f"barrier_touched_at_{h}")
    label, change, moment = column_names(entry.names, default)
    first = (
        "first barrier touched: 1 upper, -1 lower (also if both in one bar that opens below the upper), "
        "0 the end of the holding period"
    )
    parameters = tuple(
        (name, getattr(entry, name)) for name in ("upper", "lower", "unit", "volatility_window", "horizon")
    )
    lookahead = fill_lookahead(grid, h)
    return (
        Label(label, "DOUBLE", "1", first, inputs, parameters, lookahead, lookback),
        Label(
            change,
            "DOUBLE",
            "frac",
            "exit / entry - 1: at the barrier, or at the open of a bar that opens beyond it; else as forward_return",
            inputs,
            parameters,
            lookahead,
            lookback,
        ),
        Label(
            moment,
            "TIMESTAMP",
            "1",
            "end of the bar that touched a barrier, or when the position left without",
            inputs,
            parameters,
            lookahead,
            lookback,
        ),
    )


def compute(entry: Entry, future: Future) -> Decided:
    """Compute the first touch of every position, filled as `Future.position` fills.

    A bar touches a barrier that its high reaches or its low falls to, from the fill bar on. If one bar touches both,
    the lower one counts, unless the bar opens at or beyond the upper one: the open comes first, but the order of what
    follows is not known, and the pessimistic one is taken.

    Notes
    -----
    A touch is decided at the end of its bar, whatever is missing before it. Without one, the position leaves as in
    `Future.position`: label 0, a death at its last close. Missing, but decided: no fill, no exit (``gap``), a holding
    period without a touch of which fewer than half of the bars are there, or no volatility or one of 0, which puts
    both barriers at the fill price (known at the row's end).
    """
    from crypto_assets.quant.labels import compiled

    opens, closes, high, low = future.prices("open", "close", *entry.columns)
    row, column = future.rows
    n_times = len(opens)
    held = future.position(future.bars(entry.horizon))
    filled = held.fill < n_times
    fill = np.where(filled, held.fill, 0)
    entered, left = future.traded_at(held, opens, closes)
    unit = np.ones(len(row))
    if entry.volatility_window is not None:
        changes = kernels.log_change(closes)
        window = future.bars(entry.volatility_window)
        unit = kernels.rolling_std(
            changes, window, max(2, window // 2), ddof=1, origin=future.panel.origin, first=future.first
        )[row, column]
    nowhere = np.full(len(row), np.inf)
    upper = nowhere if entry.upper is None else entered * (1.0 + entry.upper * unit)
    lower = -nowhere if entry.lower is None else entered * (1.0 - entry.lower * unit)

    end = future.next_end[fill, column] + 1
    stop = np.where(filled, np.minimum(np.minimum(held.due, end), n_times), 0)
    # A barrier is touched by what lies beyond the number next to it.
    beside_upper, beside_lower = np.nextafter(upper, -np.inf), np.nextafter(lower, np.inf)
    above, below = compiled.first_beyond(
        lanes(high), lanes(low), beside_upper, beside_lower, fill, stop, column
    )
    touch = np.maximum(above, below)
    opened = opens[np.maximum(touch, 0), column]
    won = (above >= 0) & ((below < 0) | (opened >= upper))
    lost = (below >= 0) & ~won
    died, traded = held.outcome == "death", held.outcome == "filled"
    leave = np.where(died | traded, held.leave, 0)

    n_bars = count_between(future.has_bar, fill, stop, column)
    holds = (traded & (2 * n_bars >= future.bars(entry.horizon))) | died
    unknown = ~(unit > 0)
    price = np.select(
        [unknown, lost, won, holds],
        [np.nan, np.minimum(opened, lower), np.maximum(opened, upper), left],
        np.nan,
    )
    label = np.select([unknown, lost, won, holds], [np.nan, -1.0, 1.0, 0.0], np.nan)
    never = np.datetime64("NaT", "us")
    moment = np.select(
        [unknown, lost | won, holds & died, holds],
        [np.full(len(row), never), future.end_of(touch), future.end_of(leave), future.time_of(leave)],
        never,
    )
    place = np.select([unknown, lost | won], [row, touch], held.place)
    return future.decided(labels(entry, future.terms), [label, price / entered - 1.0, moment], [place])
