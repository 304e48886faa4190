"""Generators that are a table of functions: what each reads, how far back, and its formula, window by window.

Here: entries of such a table, and how they become columns and values. Not here: a formula (``indicators.py``,
``market.py``) and rolling arithmetic (``kernels.py``). Those two modules import it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
from pydantic import model_validator

from crypto_assets.quant import kernels
from crypto_assets.quant.generators import relative
from crypto_assets.quant.generators.declared import Bounds, Feature, Grid, Options, Windows
from crypto_assets.quant.generators.itbstats import present
from crypto_assets.quant.panel import Panel, longest_pause


class Output(NamedTuple):
    """A column of a formula.

    Attributes
    ----------
    name, meaning
        Texts in which ``{c}`` is the first column that is read, ``{w}`` the window as given, and another option stands
        under its own name.
    unit
        Unit of the values; None is that of the first column that is read.
    bounds
        Least and largest value there can be.
    """

    name: str
    unit: str | None
    meaning: str
    bounds: Bounds = (None, None)


class Reach(NamedTuple):
    """Bars before the row's own that a value may read, and those without which it is missing."""

    lookback: int
    warm_up: int


@dataclass(frozen=True)
class Run:
    """One window of an entry on a grid; what declares columns leaves the place of the rows open.

    Attributes
    ----------
    entry
        Its options.
    grid
        Interval and columns.
    window
        As given; None: the formula has none.
    origin, first
        Of the panel.
    """

    entry: Any
    grid: Grid
    window: int | str | None
    origin: int = 0
    first: int = 0

    @property
    def n_bars(self) -> int:
        """Length of the window in bars, 0 without one."""
        return 0 if self.window is None else self.grid.bars(self.window)

    def bars(self, option: str) -> int:
        """Length of another window of the entry in bars."""
        return self.grid.bars(getattr(self.entry, option))

    @property
    def reach(self) -> int:
        """Longest pause in bars that the history of a finite average survives."""
        return longest_pause(self.grid.bar)

    def total(self, x: np.ndarray, window: int) -> np.ndarray:
        """Sum of the values present; NaN where the current one is missing, or more than half of them."""
        return kernels.rolling_total(x, window, present(window), origin=self.origin, first=self.first)


@dataclass(frozen=True)
class Formula:
    """One function of a table.

    Attributes
    ----------
    outputs
        Its columns, in order.
    inputs
        Columns of the grid that it reads.
    reaches
        How far each output looks back.
    values
        (n_times, n_listings) matrices of the inputs -> one of each output; what is infinite becomes missing later.
    options
        What an entry may set besides its names.
    default
        Window where the entry names none.
    shortest
        Fewest bars of a window.
    check
        Raises ``ValueError`` where other options make no sense together.
    reads_all
        It reads the rows without a bar as well, in which the raster carries what is known by then.
    """

    outputs: tuple[Output, ...]
    inputs: tuple[str, ...]
    reaches: Callable[[Run], tuple[Reach, ...]]
    values: Callable[..., tuple[np.ndarray, ...]]
    options: tuple[str, ...] = ("windows",)
    default: int | None = None
    shortest: int = 1
    check: Callable[[Run], None] | None = None
    reads_all: bool = False


class Formulas(Options):
    """An entry: one function of a table over one or more windows.

    Attributes
    ----------
    function
        Its name; a wrong one is answered with those there are.
    windows
        Bars or durations, one set of columns each; left out, the function's own if it has one.
    names
        Names of all columns, in order.
    """

    function: str
    windows: Annotated[Windows, relative.LISTED] | None = None
    names: relative.Texts | None = None

    @classmethod
    @abstractmethod
    def table(cls) -> Mapping[str, Formula]:
        """Every function by name."""

    @property
    def formula(self) -> Formula:
        """The function that is named."""
        return self.table()[self.function]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns that are read."""
        return self.formula.inputs

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.function not in self.table():
            raise ValueError(f"there is no function {self.function}; allowed: {', '.join(self.table())}")
        formula, always = self.formula, {"generator", "function", "names"}
        for name in type(self).model_fields:
            if name in self.model_fields_set and name not in always.union(formula.options):
                allowed = ", ".join((*formula.options, "names"))
                raise ValueError(f"{self.function} takes no {name}; allowed: {allowed}")
        if "windows" in formula.options and self.windows is None and formula.default is None:
            raise ValueError(f"{self.function} needs windows")
        return self


def rolling(n: int) -> Reach:
    """Reach of a window of which half must be present."""
    return Reach(n - 1, present(n) - 1)


def features(entry: Formulas, grid: Grid) -> tuple[Feature, ...]:
    """Columns by window, then by output of the function.

    Raises
    ------
    ValueError
        If a column is not there, a window makes no sense, or two columns have one name.
    """
    formula, inputs = entry.formula, entry.inputs
    units = [grid.unit_of(column) for column in inputs]
    parameters = [
        (name, getattr(entry, name)) for name in formula.options if name not in ("windows", "column")
    ]
    drafts = []
    for window in _windows(entry):
        run = _checked(Run(entry, grid, window))
        read = {"c": inputs[0], "w": window} | dict(parameters)
        given = (
            ("function", entry.function),
            *(() if window is None else (("window", window),)),
            *parameters,
        )
        prefix = "" if inputs == formula.inputs else f"{inputs[0]}_"
        for output, reach in zip(formula.outputs, formula.reaches(run), strict=True):
            name = output.name.format(**read)
            drafts.append(
                relative.Draft(
                    name=name if "{c}" in output.name else f"{prefix}{name}",
                    unit=units[0] if output.unit is None else output.unit,
                    meaning=output.meaning.format(**read),
                    inputs=inputs,
                    parameters=given,
                    lookback=reach.lookback,
                    warm_up=reach.warm_up,
                    bounds=output.bounds,
                )
            )
    return relative.named(entry.names, drafts)


def compute(entry: Formulas, panel: Panel, counted: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Compute the matrices of `features`; never infinite.

    Parameters
    ----------
    entry
        Options.
    panel
        Rows.
    counted
        (n_times, n_listings) flags: other cells have no value, and but for a formula that reads all there is nothing to
        read in them. None: all count.
    """
    grid = relative.grid_of(panel)
    matrices = [panel.matrix(column) for column in entry.inputs]
    if counted is not None and not entry.formula.reads_all:
        matrices = [np.where(counted, matrix, np.nan) for matrix in matrices]
    made: list[np.ndarray] = []
    for window in _windows(entry):
        made += entry.formula.values(Run(entry, grid, window, panel.origin, panel.first), *matrices)
    names = [feature.name for feature in features(entry, grid)]
    there = True if counted is None else counted
    return {
        name: np.where(np.isfinite(values) & there, values, np.nan)
        for name, values in zip(names, made, strict=True)
    }


def _windows(entry: Formulas) -> tuple[int | str | None, ...]:
    return entry.windows or (entry.formula.default,)


def _checked(run: Run) -> Run:
    formula: Formula = run.entry.formula
    if run.window is not None and run.n_bars < formula.shortest:
        raise ValueError(
            f"{run.entry.function} needs windows of at least {formula.shortest} bars; {run.window} has {run.n_bars}"
        )
    if formula.check is not None:
        formula.check(run)
    return run
