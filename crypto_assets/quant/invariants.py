"""The leak harness: a table built earlier must agree with the one built later about what was known.

Here: comparing two builds of one table, and making both of a declared set. Not here: builds of the graph (its
tests make them). Everybody may import it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from crypto_assets.quant.feature_sets import FeatureSet
from crypto_assets.quant.labels import LabelSet
from crypto_assets.quant.panel import DAY, floor_day
from crypto_assets.schemas import Table

#: Stands in ``Difference.column`` for "the whole row".
WHOLE_ROW = "(row)"


@dataclass(frozen=True)
class Difference:
    """The first row in which two builds of a table disagree, for one column and one reason.

    Attributes
    ----------
    table, column
        Contract name and column; ``(row)`` where a row is missing.
    key
        Key columns and values of the first row concerned, in key order.
    earlier_value, later_value
        What the two builds hold there; None where NULL or absent.
    reason
        Which rule is broken.
    n_rows
        How many rows break it.
    """

    table: str
    column: str
    key: tuple[tuple[str, Hashable], ...]
    earlier_value: Any
    later_value: Any
    reason: str
    n_rows: int

    def __str__(self) -> str:
        """One line: table, column, reason, first row, both values."""
        row = ", ".join(f"{name}={value}" for name, value in self.key)
        return (
            f"{self.table}.{self.column}: {self.reason}, first at {row}: "
            f"earlier {_short(self.earlier_value)}, later {_short(self.later_value)} ({self.n_rows} rows)"
        )


def prefix_differences(
    earlier: pd.DataFrame, later: pd.DataFrame, table: Table, cut: datetime
) -> list[Difference]:
    """Where a build at ``cut`` disagrees with a later build about what was known at ``cut``.

    Every row of ``later`` with ``known_at <= cut`` must be in ``earlier`` with the same bits, and every row
    of ``earlier`` in ``later``; a row of ``earlier`` with a later ``known_at`` was stored before it could be
    known.

    In tables with ``decided_later`` columns a row without ``known_at`` is undecided: its ``decided_later``
    columns are NULL, and in ``later`` it is undecided still or decided after ``cut``. All other columns of
    every row of ``earlier`` must have the same bits in ``later``.

    Parameters
    ----------
    earlier, later
        Rows of the table, in any order, as built with everything known at ``cut`` and at some later moment.
    table
        The contract of both.
    cut
        The moment of the earlier build, naive UTC.

    Returns
    -------
    list of Difference
        Empty if they agree; one entry per column and reason, sorted by them, each with the first row in key
        order.

    Raises
    ------
    ValueError
        If the table has no ``known_at``, a frame lacks columns of the contract, or a key is NULL or repeated
        in a frame.

    Notes
    -----
    NULL and NaN are equal; 0.0 and -0.0 are not.
    """
    if "known_at" not in table.column_names:
        raise ValueError(f"{table.name} has no known_at: nothing says what of it was known at {cut}")
    moment = np.datetime64(cut, "us")
    old, new = (_keyed(frame, table, side) for frame, side in ((earlier, "earlier"), (later, "later")))
    found = _Findings(table, old, new)
    old_known, new_known = (frame["known_at"].to_numpy(dtype="datetime64[us]") for frame in (old, new))
    both = old.index.intersection(new.index, sort=True)

    found.add("known_at", old.index[old_known > moment], "stored before it could be known")
    found.add(WHOLE_ROW, old.index.difference(new.index), "in the earlier build only")
    found.add(
        WHOLE_ROW,
        new.index[new_known <= moment].difference(old.index),
        "known at the cut but not in the earlier build",
    )
    comparable = both
    if table.decided_later:
        comparable = both[old.loc[both, "known_at"].notna().to_numpy(dtype=bool)]
        open_rows = both.difference(comparable)
        since = new.loc[open_rows, "known_at"].to_numpy(dtype="datetime64[us]")
        found.add("known_at", open_rows[since <= moment], "undecided though decided by the cut")
        for side in (old, new):
            _find_values_of_undecided(found, side)
    else:
        found.add("known_at", old.index[np.isnat(old_known)], "known_at is NULL")

    for column in table.columns:
        if column.name in table.key:
            continue
        rows = comparable if column.name in table.decided_later else both
        left, right = (_bits(frame.loc[rows, column.name], column.type) for frame in (old, new))
        found.add(column.name, rows[left != right], "values differ")
    return sorted(found.differences, key=lambda difference: (difference.column, difference.reason))


def feature_set_differences(
    chosen: FeatureSet, table: Table, rows: pd.DataFrame, moments: Iterable[datetime]
) -> list[Difference]:
    """Where a feature set at a moment disagrees with the one that sees all rows, or with one that starts later.

    At each moment three builds are made. From the rows known by then: it must hold what the build with all rows holds of
    that time. Of the day before the moment alone, from ``lookback`` before it, and of the last bar alone: their rows must
    have the bits that they have in the build with all rows.

    Parameters
    ----------
    chosen
        The set.
    table
        Its contract.
    rows
        Rows that it is computed on, of the longest history there is.
    moments
        Naive UTC, ends of bars.

    Returns
    -------
    list of Difference
        Empty if the set looks neither ahead nor further back than it says; at most one entry per column, reason and
        build.
    """
    whole = chosen.compute(rows)
    ts, known = (rows[name].to_numpy(dtype="datetime64[us]") for name in ("ts", "known_at"))
    at = whole["ts"].to_numpy(dtype="datetime64[us]")
    found: list[Difference] = []
    for moment in moments:
        end = np.datetime64(moment, "us")
        found += prefix_differences(chosen.compute(rows[known <= end]), whole, table, moment)
        for length in (timedelta(days=1), chosen.grid.bar):
            start = moment - length
            first = floor_day(np.datetime64(start, "us")) - chosen.lookback_days * DAY
            alone = chosen.compute(rows[(known <= end) & (ts >= first)], since=start)
            same = whole[(at >= np.datetime64(start, "us")) & (at < end)]
            found += prefix_differences(alone, same, table, moment)
    return found


def label_set_differences(
    chosen: LabelSet, table: Table, rows: pd.DataFrame, moments: Iterable[datetime]
) -> list[Difference]:
    """Where a label set at a moment disagrees with the one that sees all rows, or with one of a single day.

    The build from what is known at a moment must hold what the build with all rows holds of that time, decided or not;
    the day before the moment, built from no more rows than it says it reads, must have the bits of the build with all.

    Parameters
    ----------
    chosen
        The set.
    table
        Its contract.
    rows
        Rows that it is computed on, of the longest history there is.
    moments
        Naive UTC, ends of bars.
    """
    ts, known = (rows[name].to_numpy(dtype="datetime64[us]") for name in ("ts", "known_at"))
    end = known.max()
    whole = chosen.compute(rows, watermark=end.astype(datetime))
    at = whole["ts"].to_numpy(dtype="datetime64[us]")
    found: list[Difference] = []
    for moment in moments:
        earlier = chosen.compute(rows[known <= np.datetime64(moment, "us")], watermark=moment)
        found += prefix_differences(earlier, whole, table, moment)
        start = floor_day(np.datetime64(moment, "us")) - DAY
        first, last = start - chosen.lookback_days * DAY, start + (1 + chosen.lookahead_days) * DAY
        alone = chosen.compute(
            rows[(ts >= first) & (ts < last)],
            watermark=min(last, end).astype(datetime),
            since=start.astype(datetime),
            until=(start + DAY).astype(datetime),
        )
        same = whole[(at >= start) & (at < start + DAY)]
        found += prefix_differences(alone, same, table, end.astype(datetime))
    return found


def _short(value: object) -> str:
    # A fitted model is a text of thousands of lines.
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _find_values_of_undecided(found: _Findings, side: pd.DataFrame) -> None:
    undecided = side.loc[side["known_at"].isna()]
    for column in found.table.decided_later:
        filled = undecided.index[undecided[column].notna().to_numpy(dtype=bool)]
        found.add(column, filled, "has a value while known_at is NULL")


class _Findings:
    def __init__(self, table: Table, old: pd.DataFrame, new: pd.DataFrame) -> None:
        self.table, self.old, self.new = table, old, new
        self.differences: list[Difference] = []

    def add(self, column: str, rows: pd.MultiIndex | pd.Index, reason: str) -> None:
        if not len(rows) or any((d.column, d.reason) == (column, reason) for d in self.differences):
            return
        first = rows.sort_values()[0]
        values = first if isinstance(first, tuple) else (first,)
        self.differences.append(
            Difference(
                self.table.name,
                column,
                tuple(zip(self.table.key, values, strict=True)),
                self._value(self.old, first, column),
                self._value(self.new, first, column),
                reason,
                len(rows),
            )
        )

    def _value(self, frame: pd.DataFrame, row: Hashable, column: str) -> Any:
        if row not in frame.index:
            return None
        if column == WHOLE_ROW:
            return "present"
        value = frame.at[row, column]
        return None if pd.isna(value) else value


def _keyed(frame: pd.DataFrame, table: Table, side: str) -> pd.DataFrame:
    missing = [name for name in table.column_names if name not in frame.columns]
    if missing:
        raise ValueError(f"the {side} build of {table.name} lacks the columns {', '.join(missing)}")
    keys = frame[list(table.key)]
    if keys.isna().any(axis=None):
        raise ValueError(f"the {side} build of {table.name} has a row with a NULL key")
    if keys.duplicated().any():
        row = keys.loc[keys.duplicated()].iloc[0].to_dict()
        raise ValueError(f"the {side} build of {table.name} has two rows with the key {row}")
    times = [column.name for column in table.columns if column.type == "TIMESTAMP"]
    typed = {name: keys[name].astype("datetime64[us]") for name in table.key if name in times}
    return frame.assign(**typed).set_index(list(table.key), drop=False).sort_index()


def _bits(values: pd.Series, type_: str) -> np.ndarray:
    missing = values.isna().to_numpy()
    if type_ == "DOUBLE":
        bits = values.to_numpy(dtype=np.float64, na_value=np.nan).view(np.int64).copy()
        bits[missing] = np.array(np.nan).view(np.int64)
        return bits
    if type_ == "TIMESTAMP":
        return values.to_numpy(dtype="datetime64[us]").view(np.int64)
    objects = values.astype(object).to_numpy(copy=True)
    objects[missing] = None
    return objects
