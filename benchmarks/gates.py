"""Whether a contender's rows are right, and what its speed is next to ours.

Here: the judgement, as plain functions. Not here: running anybody (``ingest``). Only the standard library.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.contest import Found, Report


class WrongRows(Exception):
    """A contender did not come back with the rows that the exchange has: its time says nothing."""


def check_rows(name: str, found: Mapping[str, Found], truth: Mapping[str, Found]) -> None:
    """Pass a contender whose rows are those of the exchange.

    Raises
    ------
    WrongRows
        If a symbol is missing or unknown, or one of its rows is missing, additional, out of order or has another open
        time, price or base volume.
    """
    if not truth or not all(right.n_rows for right in truth.values()):
        raise WrongRows(f"{name}: nothing was asked for, so nothing can be right")
    if found.keys() != truth.keys():
        raise WrongRows(f"{name}: came back with {sorted(found)} where {sorted(truth)} were asked for")
    for symbol, right in truth.items():
        if found[symbol].n_rows != right.n_rows:
            raise WrongRows(
                f"{name}: {found[symbol].n_rows} rows of {symbol}, the exchange has {right.n_rows}"
            )
        if found[symbol].digest != right.digest:
            raise WrongRows(f"{name}: {right.n_rows} rows of {symbol}, but not those of the exchange")


def check_sums(name: str, sums: Mapping[str, Sequence[int]], truth: Mapping[str, Sequence[int]]) -> None:
    """Pass a warehouse in which each symbol has the rows of the exchange, by their number and two exact sums.

    Raises
    ------
    WrongRows
        If a symbol is missing or unknown, or its number of rows, sum of open times or sum of base volumes differs.
    """
    if not truth or not all(n_rows for n_rows, *_ in truth.values()):
        raise WrongRows(f"{name}: nothing was asked for, so nothing can be right")
    if sums.keys() != truth.keys():
        raise WrongRows(f"{name}: stored {sorted(sums)} where {sorted(truth)} were asked for")
    for symbol, right in truth.items():
        if list(sums[symbol]) != list(right):
            raise WrongRows(
                f"{name}: {symbol} has rows, open times and volumes {list(sums[symbol])}, the exchange {list(right)}"
            )


@dataclass(frozen=True)
class Ratio:
    """How many times our rows per processor second another contender's are: of the best rounds, and the median round."""

    best: float
    median: float


def ratio_of(ours: Sequence[Report], theirs: Sequence[Report]) -> Ratio:
    """Compare two contenders' reports of the same rounds, in order.

    Examples
    --------
    >>> rows = {"X": Found(10, "")}
    >>> ours, theirs = ([Report(s, rows, {}) for s in seconds] for seconds in ((1.0, 2.0), (3.0, 5.0)))
    >>> ratio_of(ours, theirs)
    Ratio(best=3.0, median=2.75)
    """
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"rounds must be the same: {len(ours)} of ours, {len(theirs)} of theirs")
    by_round = [speed(our) / speed(their) for our, their in zip(ours, theirs, strict=True)]
    best = max(map(speed, ours)) / max(map(speed, theirs))
    return Ratio(best, statistics.median(by_round))


def speed(report: Report) -> float:
    """Rows per processor second."""
    return report.n_rows / report.cpu_s
