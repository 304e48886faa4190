"""Values of one window told in terms of another: the relative modes that ``talib`` and ``itbstats`` share.

Here: which window is the base, the arithmetic, and what that makes of names, units and look-backs. Not here: the values
themselves. The generators of this package import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from crypto_assets.quant import kernels
from crypto_assets.quant.generators.declared import Bounds, Feature, Grid, Options, column_names
from crypto_assets.quant.panel import IDENTITY, Panel


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


#: Lets a single value stand for a list of one.
LISTED = BeforeValidator(_listed)
#: One text or a list of texts.
Texts = Annotated[tuple[str, ...], LISTED, Field(min_length=1)]


def _one(columns: tuple[str, ...]) -> tuple[str, ...]:
    if len(columns) > 1:
        raise ValueError(
            f"there are {len(columns)} columns ({', '.join(columns)}), of which only the first would be read: "
            "make one entry for each column"
        )
    return columns


#: Texts of which there may be but one: the column that is read.
OneColumn = Annotated[Texts, AfterValidator(_one)]


class Relative(Options):
    """Options of a generator whose values may be told relative to those of another window.

    Attributes
    ----------
    rel_base
        Along the list of windows: ``next`` and ``prev`` are the neighbours, ``first`` and ``last`` the ends. The base
        itself (the last window for ``next`` and ``last``, the first one else) stays as it is.
    rel_func
        With base b: ``rel`` = a / b, ``diff`` = a - b, ``rel_diff`` = (a - b) / b.
    percentage
        Shares (``rel``, ``rel_diff``) times 100. A value that is not relative is no share and stays as it is.
    log
        Natural logarithm of every value, the relative ones included; NaN where it is not positive.
    names
        Names of all columns of the entry, in order.
    """

    rel_base: Literal["next", "prev", "first", "last"] | None = None
    rel_func: Literal["rel", "diff", "rel_diff"] | None = None
    percentage: bool = False
    log: bool = False
    names: Texts | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.rel_base is None) != (self.rel_func is None):
            raise ValueError("rel_base and rel_func belong together: give both or neither")
        if self.percentage and self.rel_func not in ("rel", "rel_diff"):
            raise ValueError("percentage is for shares: it needs rel_func rel or rel_diff")
        if self.percentage and self.log:
            raise ValueError("a logarithm of percentages says nothing: give percentage or log")
        return self


class Draft(NamedTuple):
    """A feature before the entry's own names are applied; the fields are those of `Feature`."""

    name: str
    unit: str
    meaning: str
    inputs: tuple[str, ...]
    parameters: tuple[tuple[str, Any], ...]
    lookback: int
    warm_up: int
    bounds: Bounds = (None, None)


def grid_of(panel: Panel) -> Grid:
    """Grid of a panel with units left open: enough to find names and windows while computing."""
    bar = timedelta(microseconds=int(panel.bar.astype(np.int64)))
    return Grid(bar, {str(name): "1" for name in panel.frame.columns if name not in IDENTITY})


def base_of(place: int, n: int, rel_base: str | None) -> int | None:
    """Place of the window that the one at ``place`` of ``n`` is told in terms of; None: it stays absolute.

    Examples
    --------
    >>> [base_of(place, 3, "next") for place in range(3)], [base_of(place, 3, "first") for place in range(3)]
    ([1, 2, None], [None, 0, 0])
    """
    base = {None: place, "next": place + 1, "prev": place - 1, "first": 0, "last": n - 1}[rel_base]
    return None if base == place or not 0 <= base < n else base


def declared(entry: Relative, plain: Sequence[Sequence[Draft]]) -> list[Draft]:
    """Columns of one function after the relative mode.

    Parameters
    ----------
    entry
        Options.
    plain
        By window, then by output of the function: columns as they would be without a relative mode.

    Returns
    -------
    list of Draft
        In the order of ``plain``. Names get ``_frac``, ``_pct`` or ``_log`` where the value is one.

    Raises
    ------
    ValueError
        If there is nothing to be relative to.
    """
    if entry.rel_base is not None and len(plain) < 2:
        raise ValueError(f"rel_base {entry.rel_base} needs at least two windows; there is one")
    result = []
    for place, outputs in enumerate(plain):
        base = base_of(place, len(plain), entry.rel_base)
        for output, draft in enumerate(outputs):
            result.append(_declared(entry, draft, None if base is None else plain[base][output]))
    return result


def computed(entry: Relative, plain: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Values of one function after the relative mode, in the order of `declared`; never infinite.

    Parameters
    ----------
    entry
        Options.
    plain
        By window, then by output: (n_times, n_listings).
    """
    result = []
    for place, outputs in enumerate(plain):
        base = base_of(place, len(plain), entry.rel_base)
        for output, values in enumerate(outputs):
            told = values if base is None else _related(entry, values, plain[base][output])
            told = kernels.log(told) if entry.log else told
            result.append(np.where(np.isfinite(told), told, np.nan))
    return result


def named(names: Sequence[str] | None, drafts: Sequence[Draft]) -> tuple[Feature, ...]:
    """Make features of drafts, under the names of the entry if it has any.

    Raises
    ------
    ValueError
        If there are more or fewer names than columns, two columns have one name, or a name is no column name.
    """
    chosen = column_names(names, (draft.name for draft in drafts))
    return tuple(
        Feature(**draft._replace(name=name)._asdict()) for name, draft in zip(chosen, drafts, strict=True)
    )


def _declared(entry: Relative, draft: Draft, base: Draft | None) -> Draft:
    name, unit, meaning = draft.name, draft.unit, draft.meaning
    parameters = draft.parameters
    lookback, warm_up = draft.lookback, draft.warm_up
    suffix = ""
    if base is not None:
        formula = {"rel": "a / b", "diff": "a - b", "rel_diff": "(a - b) / b"}[str(entry.rel_func)]
        if entry.rel_func != "diff":
            unit = suffix = "pct" if entry.percentage else "frac"
        meaning = f"{'100 x ' if entry.percentage else ''}{formula}, a: {meaning}; b: {base.meaning}"
        parameters += (("rel_base", entry.rel_base), ("rel_func", entry.rel_func))
        lookback, warm_up = max(lookback, base.lookback), max(warm_up, base.warm_up)
    if entry.log:
        unit = suffix = "log"
        meaning = f"ln of {meaning}"
    return draft._replace(
        name=f"{name}_{suffix}" if suffix else name,
        unit=unit,
        meaning=meaning,
        parameters=parameters,
        lookback=lookback,
        warm_up=warm_up,
        bounds=draft.bounds if base is None and not entry.log else (None, None),
    )


def _related(entry: Relative, values: np.ndarray, base: np.ndarray) -> np.ndarray:
    if entry.rel_func == "diff":
        return values - base
    divisor = np.where(base != 0, base, np.nan)
    # A divisor near zero may overflow; what is not finite becomes NaN in the end.
    with np.errstate(over="ignore"):
        share = (values if entry.rel_func == "rel" else values - base) / divisor
        return 100.0 * share if entry.percentage else share
