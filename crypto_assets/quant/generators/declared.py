"""What a generator of features is told and what it declares: options, windows, columns and their metadata.

Here: the words that all generators share, and how the entries of a set are read; labels share most of them. Not here: a
formula (one module a family beside this one) and the order in which a set is made (``feature_sets.py``). The generators,
the settings and the tests import it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import Annotated, Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from crypto_assets.quant.panel import Panel
from crypto_assets.reserved import RESERVED_WORDS

#: Columns that are no values: nothing declared may have one of these names.
_RESERVED = {"symbol", "ts", "known_at", "listing_id", "has_bar", "bar_age"}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_DURATION = re.compile(r"([1-9][0-9]*)([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _window(value: int | str) -> int | str:
    if isinstance(value, str) and not _DURATION.fullmatch(value):
        raise ValueError(f"{value!r} is no window; give a number of bars or a duration such as 24h")
    if isinstance(value, int) and value < 1:
        raise ValueError(f"a window of {value} bars holds nothing; give at least 1")
    return value


#: Least and largest value; None is no bound.
Bounds = tuple[float | None, float | None]

#: Bounds of what cannot be negative, and of a share.
NOT_NEGATIVE: Bounds = (0.0, None)
SHARE: Bounds = (0.0, 1.0)

#: A window: whole bars (``24``) or a duration (``24h``), which the interval of the set turns into bars.
Window = Annotated[int | str, AfterValidator(_window)]
Windows = Annotated[tuple[Window, ...], Field(min_length=1)]


class Options(BaseModel):
    """One entry of a feature set: the generator's name and its parameters; unknown keys are refused.

    Attributes
    ----------
    generator
        Name of the generator, or ``module:function`` of the user's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    generator: str


@dataclass(frozen=True)
class Measured:
    """What ``warm_up.py`` found of one column.

    Attributes
    ----------
    bars
        Bars before a row's own that give it the value of all history within the bound.
    bound
        Largest difference that was allowed, relative to the value.
    error
        Largest difference that is left, likewise.
    n_values
        Values that were compared.
    """

    bars: int
    bound: float
    error: float
    n_values: int


@dataclass(frozen=True)
class Grid:
    """What a set is computed on.

    Attributes
    ----------
    bar
        Length of one interval.
    columns
        Numeric columns of the rows -> their units.
    measured
        Columns of the set -> what was measured of them; those that were not, or were declared otherwise then, lack.
    """

    bar: timedelta
    columns: Mapping[str, str]
    measured: Mapping[str, Measured] = field(default_factory=dict, kw_only=True)

    def bars(self, window: int | str) -> int:
        """Length of a window in bars.

        Raises
        ------
        ValueError
            If a duration is no multiple of the bar.

        Examples
        --------
        >>> grid = Grid(timedelta(hours=1), {})
        >>> grid.bars(24), grid.bars("2d")
        (24, 48)
        """
        if isinstance(window, int):
            return window
        match = _DURATION.fullmatch(window)
        if match is None:
            raise ValueError(f"{window!r} is no window; give a number of bars or a duration such as 24h")
        length = timedelta(**{_UNITS[match[2]]: int(match[1])})
        n, rest = divmod(length, self.bar)
        if rest or not n:
            raise ValueError(
                f"a window of {window} is no multiple of the bar of {self.bar}; choose whole bars"
            )
        return n

    def unit_of(self, column: str) -> str:
        """Unit of an input column.

        Raises
        ------
        ValueError
            If the rows have no such column; the message lists those there are.
        """
        try:
            return self.columns[column]
        except KeyError:
            raise ValueError(
                f"there is no column {column}; allowed: {', '.join(sorted(self.columns))}"
            ) from None


@dataclass(frozen=True)
class Feature:
    """One column that an entry makes.

    Attributes
    ----------
    name
        Column name, unique over all sets of an interval.
    unit
        Unit of the values, as in the data rules: ``frac``, ``log``, ``z``, ``quote``, ``base`` ... or ``1``.
    meaning
        One line, formula included.
    inputs
        Columns of the grid that are read.
    parameters
        What makes this column different from others of its generator.
    lookback
        Bars before the row's own that its value may read. Exact: a value computed with this many bars of history (or
        all there is of the listing) has the bits of the one computed with all history.
    warm_up
        Bars before the row's own without which it is missing.
    bounds
        Least and largest value there can be; None: there is no such bound.
    """

    name: str
    unit: str
    meaning: str
    inputs: tuple[str, ...]
    parameters: tuple[tuple[str, Any], ...]
    lookback: int
    warm_up: int
    bounds: Bounds = (None, None)

    def __post_init__(self) -> None:
        check_name(self.name)
        if not 0 <= self.warm_up <= self.lookback:
            raise ValueError(f"{self.name}: warm-up {self.warm_up} must lie between 0 and {self.lookback}")


def check_name(name: str) -> None:
    """Refuse what is no column name with a ``ValueError``."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no column name: lower-case letters, digits and underscores, at most 63; "
            "set names in the entry"
        )


def column_names(names: Sequence[str] | None, defaults: Iterable[str]) -> tuple[str, ...]:
    """Return the names that an entry gives its columns, else the defaults.

    Raises
    ------
    ValueError
        If there are more or fewer names than columns, or a name twice.

    Examples
    --------
    >>> column_names(("short", "long"), ("close_ema_5", "close_ema_50"))
    ('short', 'long')
    """
    expected = tuple(defaults)
    chosen = expected if names is None else tuple(names)
    if len(chosen) != len(expected):
        raise ValueError(f"there are {len(chosen)} names for {len(expected)} columns ({', '.join(expected)})")
    twice = sorted({name for name in chosen if chosen.count(name) > 1})
    if twice:
        raise ValueError(f"two columns are named {', '.join(twice)}; leave one out or set names")
    return chosen


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Declared = TypeVar("Declared", bound=_Named)


def module_named(package: str, name: str, names: Sequence[str], what: str, besides: str = "") -> ModuleType:
    """The module of a package that an entry names.

    Raises
    ------
    ValueError
        If it is not one of the names; the message tells the nearest and what is allowed (and what ``besides``).
    """
    if name not in names:
        near = get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"unknown {what} {name!r}; {hint}allowed: {', '.join(names)}{besides}")
    return import_module(f"{package}.{name}")


def read_entry(raw: Any, find: Callable[[str], Any]) -> Options:
    """Check one entry of a set.

    Parameters
    ----------
    raw
        Keys and values as in ``platform.yaml``; ``generator`` names the module. An entry that is one already stays.
    find
        Name -> module, whose ``Entry`` says what is allowed.

    Raises
    ------
    ValueError
        Naming the parameter, its value and what is allowed.
    """
    if isinstance(raw, Options):
        return raw
    if not isinstance(raw, Mapping) or not isinstance(raw.get("generator"), str):
        raise ValueError(f"{raw!r} is no entry; give keys and values, among them generator")
    entry = find(raw["generator"]).Entry
    try:
        return entry.model_validate(dict(raw))
    except ValidationError as error:
        reasons = [
            f"{'.'.join(map(str, item['loc'])) or 'entry'}: {item['msg'].removeprefix('Value error, ')}"
            + (f" (allowed: {', '.join(entry.model_fields)})" if item["type"] == "extra_forbidden" else "")
            for item in error.errors(include_url=False)
        ]
        raise ValueError(f"{raw['generator']}: {'; '.join(reasons)}") from None


def columns_of(
    entries: Sequence[Options], declare: Callable[[Options], tuple[Declared, ...]]
) -> tuple[tuple[Declared, ...], ...]:
    """What each entry of a set declares, in order.

    Raises
    ------
    ValueError
        If an entry cannot be computed, or two columns have one name; the message names the entry.
    """
    found: list[tuple[Declared, ...]] = []
    owners: dict[str, int] = {}
    for place, entry in enumerate(entries):
        where = f"entry {place} ({entry.generator})"
        try:
            columns = declare(entry)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        for column in columns:
            if column.name in _RESERVED | RESERVED_WORDS:
                raise ValueError(f"{where}: {column.name} is no name for a value; set names in the entry")
            if column.name in owners:
                raise ValueError(
                    f"{where}: {column.name} is made by entry {owners[column.name]} already; "
                    "give one of them other names"
                )
            owners[column.name] = place
        found.append(columns)
    return tuple(found)


def version_of(name: str, terms: Sequence[object], entries: Sequence[Options]) -> str:
    """Hash of everything that is declared of a set: another one means other values or other columns."""
    declared = [name, [str(term) for term in terms], [entry.model_dump(mode="json") for entry in entries]]
    return hashlib.sha256(json.dumps(declared, sort_keys=True).encode()).hexdigest()[:16]


class Generator(Protocol):
    """A family of features. Every module of this package is one: these two functions and an ``Entry`` of options."""

    def features(self, entry: Any, grid: Grid) -> tuple[Feature, ...]:
        """Declare the columns of an entry, in order; ``ValueError`` where it cannot be computed on the grid."""
        ...

    def compute(self, entry: Any, panel: Panel) -> Mapping[str, np.ndarray]:
        """Compute (n_times, n_listings) matrices by column name.

        Rows before ``panel.first`` are history and may be left NaN. A value depends on nothing but the ``lookback``
        bars before it and its own; where the row has no bar it is NaN.
        """
        ...


@runtime_checkable
class Anchored(Protocol):
    """A generator of opaque functions, evaluated per UTC day from an anchor; how far back they read can be measured."""

    def features(self, entry: Any, grid: Grid) -> tuple[Feature, ...]:
        """As of every `Generator`."""
        ...

    def left_open(self, entry: Any, grid: Grid) -> tuple[str, ...]:
        """Columns of an entry that cannot be computed before their history is measured."""
        ...

    def settled(self, entry: Any, grid: Grid, bars: Mapping[str, int]) -> Any:
        """The entry with measured bars in place of what it leaves open; ``bars`` holds every column of `left_open`."""
        ...

    def unanchored(self, entry: Any, panel: Panel) -> Mapping[str, np.ndarray]:
        """As ``compute``, but the functions see every row of the panel, and no warm-up is asked of them."""
        ...
