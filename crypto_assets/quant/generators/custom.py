"""A function of the user's own as a generator: ``module:function``, fed with bars and held to the rules of all others.

Here: finding the function, calling it, refusing what cannot be used, and the proof, on every day and listing, that it
does not look ahead. Not here: what it sees and from which anchor (``anchored.py``). Found through ``generators``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, JsonValue, field_validator, model_validator

from crypto_assets.quant.generators.anchored import Seen, bars_per_day, by_day, reach
from crypto_assets.quant.generators.declared import Feature, Grid, Options, Window
from crypto_assets.quant.generators.relative import grid_of
from crypto_assets.quant.panel import Panel

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_HOURS = 24


class FunctionError(RuntimeError):
    """A user's function failed or handed back what cannot be used; the message names it, the listing and the day."""


class LookAheadError(FunctionError):
    """A value of a user's function changes when later rows are taken away: it was not known when it claims to be."""


class Entry(Options):
    """A function ``function(bars, **parameters)`` of the user's own.

    It gets the columns as a ``pandas.DataFrame`` with the index ``ts``: bars that are there only, of one listing,
    oldest first; a value that is missing in a bar is NaN. It hands back as many rows: a frame or mapping with the
    columns ``names``, or, of one column, a series or array, or an (n, columns) array.

    Attributes
    ----------
    generator
        ``module:function``; the module must be one that Python can import, or lie beside ``platform.yaml``.
    columns
        What the function gets.
    names
        Columns that it hands back.
    units
        Name -> unit; 1 where nothing is said.
    parameters
        Passed as keywords.
    lookback
        Bars before the first one of a UTC day that the function sees when it is called for that day. ``measured``: as
        many as the stored measurement says.
    warm_up
        Bars that must precede a row in what the function sees, else the row's values are missing.
    version
        Of the function, in any words: another one has the set made again, which an edited function alone cannot.
    """

    columns: tuple[str, ...] = Field(min_length=1)
    names: tuple[str, ...] = Field(min_length=1)
    units: dict[str, str] = {}
    parameters: dict[str, JsonValue] = {}
    lookback: Literal[0, "measured"] | Window
    warm_up: int = Field(0, ge=0)
    version: str = ""

    @field_validator("columns", "names")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError(f"{', '.join(names)} names a column twice; name each once")
        return names

    @model_validator(mode="after")
    def _can_be_called(self) -> Entry:
        if unknown := sorted(set(self.units) - set(self.names)):
            raise ValueError(f"units: {', '.join(unknown)} is not among names ({', '.join(self.names)})")
        function = function_of(self.generator)
        try:
            signature = inspect.signature(function)
        except ValueError:
            return self
        try:
            signature.bind(None, **self.parameters)
        except TypeError as error:
            raise ValueError(f"parameters: {self.generator}{signature} cannot take them: {error}") from error
        return self


def function_of(path: str) -> Callable[..., Any]:
    """Import a user's function.

    Parameters
    ----------
    path
        ``package.module:function``.

    Raises
    ------
    ValueError
        If the path is none, the module cannot be imported, or what it names is not there or cannot be called.

    Examples
    --------
    >>> function_of("math:sqrt")(9.0)
    3.0
    """
    if not _PATH.fullmatch(path):
        raise ValueError(f"{path!r} names no function; write package.module:function")
    module_name, _, name = path.partition(":")
    try:
        module = import_module(module_name)
    except Exception as error:
        raise ValueError(
            f"{path}: {module_name} cannot be imported ({type(error).__name__}: {error}); install it, or put it beside "
            "platform.yaml or its folder on PYTHONPATH"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        what = (
            "is not there"
            if function is None
            else f"is of type {type(function).__name__} and cannot be called"
        )
        raise ValueError(f"{path}: {name} {what}; name a function of {module_name}")
    return function


def features(entry: Entry, grid: Grid) -> tuple[Feature, ...]:
    """Declare the columns, in the order of ``names``.

    Raises
    ------
    ValueError
        If an input column is missing, the lookback is not measured yet, or the warm-up is longer than what the function
        sees.
    """
    for column in entry.columns:
        grid.unit_of(column)
    if entry.lookback == "measured":
        raise ValueError(
            f"how far back {entry.generator} reads is not measured yet: run `crypto-assets features measure`, which "
            "stores it, or set lookback to a number of bars or a duration"
        )
    n_bars = grid.bars(entry.lookback)
    if entry.warm_up > n_bars:
        raise ValueError(f"warm_up is {entry.warm_up}, it may be at most the lookback of {n_bars} bars")
    return tuple(
        Feature(
            name=name,
            unit=entry.units.get(name, "1"),
            meaning=f"{entry.generator} of {', '.join(entry.columns)}",
            inputs=entry.columns,
            parameters=tuple(entry.parameters.items()),
            lookback=reach(n_bars, grid.bar),
            warm_up=entry.warm_up,
        )
        for name in entry.names
    )


def left_open(entry: Entry, grid: Grid) -> tuple[str, ...]:
    """The columns of an entry whose lookback is to be measured."""
    return entry.names if entry.lookback == "measured" else ()


def settled(entry: Entry, grid: Grid, bars: Mapping[str, int]) -> Entry:
    """The entry with the longest lookback that was measured of its columns, and never less than its warm-up."""
    if not left_open(entry, grid):
        return entry
    return entry.model_copy(update={"lookback": max(entry.warm_up, *(bars[name] for name in entry.names))})


def compute(entry: Entry, panel: Panel) -> dict[str, np.ndarray]:
    """Call the function for every wanted UTC day and listing: (n_times, n_listings) for each of ``names``.

    Raises
    ------
    FunctionError
        If the function raises, or hands back other names, another number of rows, or what is no finite or missing
        number.
    LookAheadError
        If it gives a row another value, to the bit, when later rows of the day are taken away.

    Notes
    -----
    The view begins a fixed number of bars before the day, so the bits do not depend on what range is run. Each call is
    repeated on the rows before a cut inside the day, and all values before the cut must be the same. The cut moves
    from day to day so that in 24 days each hour has been one; the proof takes as long as the values. The function gets
    copies and may change them.
    """
    return _computed(entry, panel, grid_of(panel).bars(entry.lookback), entry.warm_up)


def unanchored(entry: Entry, panel: Panel) -> dict[str, np.ndarray]:
    """Call the function with every row of the panel and without a warm-up; that it looks ahead goes unnoticed here."""
    return _computed(entry, panel, len(panel.times), 0, prove=False)


def _computed(
    entry: Entry, panel: Panel, lookback: int, warm_up: int, *, prove: bool = True
) -> dict[str, np.ndarray]:
    function = _Function(entry)
    inputs = {column: panel.matrix(column) for column in entry.columns}

    def evaluated(seen: Seen) -> dict[str, np.ndarray]:
        return function.proven(seen, rows_before_cut(seen, bars_per_day(panel)) if prove else 0)

    present = panel.flags("has_bar")
    return by_day(panel, inputs, lookback, warm_up, evaluated, names=entry.names, present=present)


def rows_before_cut(seen: Seen, per_day: int) -> int:
    """How many of the rows that a function sees lie before the cut of the day: less than all of them.

    The cut of a whole day is another hour each day, and another bar of that hour every 24 days; of a day with missing
    bars, or one that is not over, it lies at the same share of the bars there are.

    Examples
    --------
    >>> def whole_day(number):
    ...     ts = np.datetime64(number, "D") + np.timedelta64(1, "h") * np.arange(24)
    ...     return Seen({"ts": ts.astype("datetime64[us]")}, "X", ts[0], 0)
    >>> [rows_before_cut(whole_day(number), 24) for number in (1, 2, 23, 24, 25)]
    [1, 2, 23, 1, 1]
    """
    number = int(seen.day.astype("datetime64[D]").astype(np.int64))
    turn = number % _HOURS * per_day // _HOURS + number // _HOURS % max(1, per_day // _HOURS)
    n_rows = len(seen["ts"])
    n_kept = seen.n_before + turn * (n_rows - seen.n_before) // per_day
    # Without history, a cut at midnight leaves nothing to compare.
    return min(max(n_kept, 1), n_rows - 1)


class _Function:
    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._function = function_of(entry.generator)

    def proven(self, seen: Seen, n_kept: int) -> dict[str, np.ndarray]:
        values = self._called(seen, len(seen["ts"]))
        used = max(seen.n_before, self._entry.warm_up)
        for name, column in values.items():
            infinite = np.isinf(column[used:])
            if infinite.any():
                ts = seen["ts"][used + int(infinite.argmax())]
                raise FunctionError(
                    f"{self._where(seen)} handed back an infinite {name} at {ts}: make it NaN or finite"
                )
        if n_kept:
            self._compare(seen, values, self._called(seen, n_kept), n_kept)
        return values

    def _where(self, seen: Seen) -> str:
        return f"{self._entry.generator}, {seen.listing} on {seen.day.astype('datetime64[D]')}:"

    def _called(self, seen: Seen, n_rows: int) -> dict[str, np.ndarray]:
        entry = self._entry
        columns = {column: seen[column][:n_rows].copy() for column in entry.columns}
        index = pd.DatetimeIndex(seen["ts"][:n_rows].copy(), name="ts")
        part = "" if n_rows == len(seen["ts"]) else f" with the first {n_rows} of {len(seen['ts'])} rows"
        try:
            made = self._function(pd.DataFrame(columns, index=index), **entry.parameters)
        except Exception as error:
            raise FunctionError(
                f"{self._where(seen)} raised {type(error).__name__}: {error}{part and f', called{part}'}"
            ) from error
        try:
            return _columns_of(made, entry.names, pd.DatetimeIndex(seen["ts"][:n_rows]))
        except _Unusable as error:
            raise FunctionError(f"{self._where(seen)} {error}{part and f', called{part}'}") from None

    def _compare(
        self, seen: Seen, whole: Mapping[str, np.ndarray], part: Mapping[str, np.ndarray], n_kept: int
    ) -> None:
        if not (found := _first_difference(whole, part)):
            return
        name, row = found
        ts, cut = seen["ts"][row], seen["ts"][n_kept]
        if _first_difference(whole, self._called(seen, len(seen["ts"]))):
            raise FunctionError(
                f"{self._where(seen)} handed back other values when it was called again with the same rows; what it "
                "returns must follow from its arguments alone (a seed for randomness, no state between calls)"
            )
        raise LookAheadError(
            f"{self._where(seen)} looks ahead: {name} at {ts} is {whole[name][row]!r} with the rows from {cut} on and "
            f"{part[name][row]!r} without them; a row's value may use its own and earlier rows only"
        )


class _Unusable(ValueError):
    pass


def _first_difference(
    whole: Mapping[str, np.ndarray], part: Mapping[str, np.ndarray]
) -> tuple[str, int] | None:
    found: tuple[str, int] | None = None
    for name, right in part.items():
        left = whole[name][: len(right)]
        differs = (left.view(np.int64) != right.view(np.int64)) & ~(np.isnan(left) & np.isnan(right))
        if differs.any() and (found is None or differs.argmax() < found[1]):
            found = name, int(differs.argmax())
    return found


def _columns_of(made: Any, names: tuple[str, ...], index: pd.DatetimeIndex) -> dict[str, np.ndarray]:
    if isinstance(made, pd.DataFrame):
        if not made.columns.is_unique:
            raise _Unusable(f"handed back a column twice: {', '.join(map(str, made.columns))}")
        made = {column: made[column] for column in made.columns}
    elif isinstance(made, np.ndarray) and made.ndim == 2:
        if made.shape[1] != len(names):
            raise _Unusable(f"handed back {made.shape[1]} columns instead of {', '.join(names)}")
        made = dict(zip(names, made.T, strict=True))
    elif isinstance(made, pd.Series | np.ndarray):
        if len(names) != 1:
            raise _Unusable(f"handed back one column instead of {', '.join(names)}")
        made = {names[0]: made}
    elif not isinstance(made, Mapping):
        raise _Unusable(
            f"handed back a {type(made).__name__}; hand back a frame or mapping of {', '.join(names)}, a series or array"
        )
    if set(made) != set(names):
        raise _Unusable(
            f"handed back the columns {', '.join(map(str, made)) or 'none'} instead of {', '.join(names)}"
        )
    return {name: _numbers(name, made[name], index) for name in names}


def _numbers(name: str, values: Any, index: pd.DatetimeIndex) -> np.ndarray:
    series = isinstance(values, pd.Series)
    array = values if series else np.asarray(values)
    if array.shape != (len(index),):
        size = f"{len(array)} rows" if array.ndim == 1 else f"the shape {array.shape}"
        raise _Unusable(f"handed back {name} with {size} instead of {len(index)} rows")
    if series and not isinstance(values.index, pd.RangeIndex) and not (values.index == index).all():
        raise _Unusable(f"handed back {name} with another index; keep the rows and their order")
    if not pd.api.types.is_numeric_dtype(array.dtype) or getattr(array.dtype, "kind", "") == "c":
        raise _Unusable(f"handed back {name} as {array.dtype}, which is not numeric")
    if series:
        return values.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
    return array.astype(np.float64)
