"""What a family of labels is told and what it declares: terms, columns and their metadata, decided values.

Here: the words that all families of labels share; options and windows are those of the generators of features. Not
here: a formula (one module a family beside this one). The families, the settings and the tests import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from crypto_assets.quant.generators.declared import Grid, Options, Window, Windows, check_name, column_names

if TYPE_CHECKING:
    from crypto_assets.quant.labels.future import Future

__all__ = [
    "Decided",
    "Grid",
    "Label",
    "LabelFamily",
    "Options",
    "Terms",
    "Window",
    "Windows",
    "column_names",
]

#: How long an order waits for a bar (conventions, section 1).
FILL_WAIT = timedelta(hours=6)
#: Silence after which a listing has died (conventions, section 5).
DEATH_AFTER = timedelta(hours=24)


@dataclass(frozen=True)
class Terms(Grid):
    """What a set of labels is computed on: the interval, its columns, and how fills wait and listings die.

    Attributes
    ----------
    fill_wait
        How long an entry or an exit waits for a bar; whole bars.
    death_after
        Silence after which a listing is dead; whole bars, at least one.
    """

    fill_wait: timedelta = FILL_WAIT
    death_after: timedelta = DEATH_AFTER

    def span(self, window: int | str) -> timedelta:
        """Length of a window in time.

        Examples
        --------
        >>> Terms(timedelta(hours=1), {}).span(24)
        datetime.timedelta(days=1)
        """
        return self.bars(window) * self.bar


@dataclass(frozen=True)
class Label:
    """One column that an entry makes.

    Attributes
    ----------
    name
        Column name, unique within its set.
    type
        ``DOUBLE``, ``BOOLEAN`` or ``TIMESTAMP``.
    unit
        Unit of the values, as in the data rules: ``frac``, ``pct``, ``log`` ... or ``1``.
    meaning
        One line, formula included.
    inputs
        Columns of the grid that are read.
    parameters
        What makes this column different from others of its family.
    lookahead
        Every row of the listing that starts before ``ts + lookahead`` may be read, and no other.
    lookback
        Every row of the listing that starts at or after ``ts - lookback`` may be read, and none before.
    """

    name: str
    type: Literal["DOUBLE", "BOOLEAN", "TIMESTAMP"]
    unit: str
    meaning: str
    inputs: tuple[str, ...]
    parameters: tuple[tuple[str, Any], ...]
    lookahead: timedelta
    lookback: timedelta = timedelta(0)

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.lookahead <= timedelta(0) or self.lookback < timedelta(0):
            raise ValueError(
                f"{self.name}: a label looks ahead ({self.lookahead}) and never back by less than 0"
            )


@dataclass(frozen=True)
class Decided:
    """The labels of an entry and when they were decided.

    Attributes
    ----------
    columns
        Label name -> (n_rows,), in the order of `Future.rows`: float64 (a BOOLEAN as 1, 0 and NaN) or ``datetime64[us]``.
    known_at
        (n_rows,) ``datetime64[us]``: when the last of the entry's labels was decided, NaT before. A
        value where it is NaT means nothing; a missing value where it is set is decided to be missing.
    """

    columns: Mapping[str, np.ndarray]
    known_at: np.ndarray


class LabelFamily(Protocol):
    """A family of labels: a module with these two functions and an ``Entry`` of options."""

    def labels(self, entry: Any, grid: Terms) -> tuple[Label, ...]:
        """Declare the columns of an entry, in order; ``ValueError`` where it cannot be computed on the grid."""
        ...

    def compute(self, entry: Any, future: Future) -> Decided:
        """Compute the columns of an entry; rows before ``future.first`` and from ``future.stop`` on may stay NaT."""
        ...


def digits(value: float) -> str:
    """Write a number as part of a column name, as the first makers of these labels did: 1.5 as ``15``, 0.1 as ``01``.

    Examples
    --------
    >>> digits(1.0), digits(2.5), digits(0.1), digits(0.25), digits(3)
    ('10', '25', '01', '025', '30')
    """
    return str(float(value)).replace(".", "").replace("-", "m")
