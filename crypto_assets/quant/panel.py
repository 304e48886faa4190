"""The raster as matrices: a long frame becomes (time x listing) arrays on a regular grid, and rows again.

Here: placing rows on the grid, the checks that make this safe, the longest pause, the calendar of days and weeks. Not here:
rolling or cross-sectional arithmetic (``kernels.py``). Imported by the modules of ``quant`` and nobody else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pandas as pd

IDENTITY = ("symbol", "ts", "known_at", "listing_id")
#: A listing of the raster lives that long without a bar; a longer pause starts its history anew.
PAUSE = timedelta(hours=48)
DAY = np.timedelta64(1, "D").astype("timedelta64[us]")
_WEEK = 7 * DAY
_FIRST_MONDAY = np.datetime64("1970-01-05", "us")


@dataclass(frozen=True)
class Panel:
    """Rows of the raster placed on a regular grid of times and listings.

    Attributes
    ----------
    frame
        The rows, sorted by symbol and ts, with a fresh index.
    times
        (n_times,) ``datetime64[us]``: every interval from the start of the first UTC day to the last row.
    listings
        (n_listings,) listing ids, sorted.
    row, column
        (n_rows,) place of each row of ``frame`` on the grid.
    bar
        Length of one interval.
    first
        Rows of the grid before this one are history: what is computed of them is not wanted.

    Notes
    -----
    A cell without a row, and a NULL in a row, are NaN (numbers) or False (flags).
    """

    frame: pd.DataFrame
    times: np.ndarray
    listings: tuple[str, ...]
    row: np.ndarray
    column: np.ndarray
    bar: np.timedelta64
    first: int = 0

    @classmethod
    def of(cls, raster: pd.DataFrame, bar: timedelta, since: datetime | None = None) -> Panel:
        """Place raster rows on the grid.

        Parameters
        ----------
        raster
            Rows with at least ``symbol``, ``ts``, ``known_at`` and ``listing_id``.
        bar
            Length of a raster interval; must divide a day.
        since
            Start of the first interval that is wanted, naive UTC; earlier rows are history. None: all are wanted.

        Raises
        ------
        ValueError
            If columns are missing, a listing or symbol has two rows at one ts, a ts is off the grid, or a row
            is known at another time than the end of its interval (derived rows could then be stamped too
            early).
        """
        require_columns(raster, IDENTITY, "raster")
        step = bar_length(bar)
        frame = raster.sort_values(["symbol", "ts"], kind="stable", ignore_index=True)
        ts = times_of(frame["ts"])
        frame = frame.assign(ts=ts, known_at=times_of(frame["known_at"]))
        _check_rows(frame, ts, step)
        if not len(frame):
            nothing = np.zeros(0, dtype=np.int64)
            return cls(frame, ts, (), nothing, nothing, step)
        start = floor_day(ts.min())
        n_times = int((ts.max() - start) // step) + 1
        column, listings = pd.factorize(frame["listing_id"].astype(object), sort=True)
        row = ((ts - start) // step).astype(np.int64)
        times = start + step * np.arange(n_times)
        first = 0 if since is None else int(np.searchsorted(times, np.datetime64(since, "us")))
        return cls(frame, times, tuple(listings), row, column.astype(np.int64), step, first)

    @property
    def shape(self) -> tuple[int, int]:
        """(n_times, n_listings)."""
        return len(self.times), len(self.listings)

    @property
    def origin(self) -> int:
        """Bars since the epoch at the first row: sums of fixed blocks of bars begin at its multiples."""
        return int(self.times[0].astype(np.int64) // self.bar.astype(np.int64)) if len(self.times) else 0

    def matrix(self, column: str) -> np.ndarray:
        """One numeric column as (n_times, n_listings) float64, missing and infinite values as NaN."""
        require_columns(self.frame, (column,), "raster")
        values = self.frame[column].to_numpy(dtype=np.float64, na_value=np.nan)
        return self.spread(np.where(np.isfinite(values), values, np.nan), np.nan)

    def flags(self, column: str) -> np.ndarray:
        """One boolean column as (n_times, n_listings), missing as False."""
        require_columns(self.frame, (column,), "raster")
        return self.spread(self.frame[column].to_numpy(dtype=bool, na_value=False), False)

    def spread(self, values: np.ndarray, missing: float | bool) -> np.ndarray:
        """Values in the order of ``frame`` as (n_times, n_listings), ``missing`` where there is no row."""
        matrix = np.full(self.shape, missing, dtype=values.dtype)
        matrix[self.row, self.column] = values
        return matrix

    def rows(self, columns: Mapping[str, np.ndarray]) -> pd.DataFrame:
        """Return the identity of every row of ``frame`` and its values in (n_times, n_listings) matrices."""
        result = self.frame[list(IDENTITY)].copy()
        for name, matrix in columns.items():
            result[name] = matrix[self.row, self.column]
        return result


def require_columns(frame: pd.DataFrame, columns: Iterable[str], what: str) -> None:
    """Raise ``ValueError`` naming the columns that ``frame`` lacks."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(
            f"{what} lacks the columns {', '.join(missing)}: pass rows as its contract declares them"
        )


def require_unique(frame: pd.DataFrame, key: Iterable[str], what: str) -> None:
    """Raise ``ValueError`` naming the first key that two rows of ``frame`` share."""
    columns = list(key)
    twice = frame.duplicated(columns).to_numpy()
    if twice.any():
        row = ", ".join(f"{column} {frame[column].iloc[twice.argmax()]}" for column in columns)
        raise ValueError(f"{what} has two rows of {row}: rows must be unique")


def bar_length(bar: timedelta) -> np.timedelta64:
    """Length of a raster interval in microseconds.

    Raises
    ------
    ValueError
        If it is not positive or does not divide a day.
    """
    step = np.timedelta64(bar).astype("timedelta64[us]")
    if step <= np.timedelta64(0) or DAY % step != np.timedelta64(0):
        raise ValueError(f"a raster interval of {bar} does not divide a day: use one such as 1 h")
    return step


def bars_in(duration: timedelta, bar: timedelta, what: str) -> int:
    """How many whole bars a duration holds.

    Raises
    ------
    ValueError
        If the duration is negative or no multiple of the bar.

    Examples
    --------
    >>> bars_in(timedelta(hours=6), timedelta(hours=1), "fill_wait")
    6
    """
    n, rest = divmod(duration, bar)
    if n < 0 or rest:
        raise ValueError(f"{what} of {duration} is no multiple of the bar of {bar}: choose whole bars")
    return n


def longest_pause(bar: timedelta) -> int:
    """Missing bars in a row that a history survives: those of ``PAUSE``, and never fewer than 48, long bars included.

    Examples
    --------
    >>> longest_pause(timedelta(minutes=1)), longest_pause(timedelta(days=1))
    (2880, 48)
    """
    return max(PAUSE // bar, 48)


def times_of(values: pd.Series) -> np.ndarray:
    """Naive UTC times as (n,) ``datetime64[us]``.

    Raises
    ------
    ValueError
        If the values carry a time zone: the platform stores naive UTC only.
    """
    if isinstance(values.dtype, pd.DatetimeTZDtype):
        raise ValueError(f"{values.name} has the time zone {values.dtype.tz}: convert it to naive UTC")
    return values.to_numpy(dtype="datetime64[us]")


def floor_day(times: np.ndarray | np.datetime64) -> np.ndarray:
    """Start of the UTC day of each time."""
    return np.asarray(times).astype("datetime64[D]").astype("datetime64[us]")


def floor_week(times: np.ndarray) -> np.ndarray:
    """Monday 00:00 UTC that opens the week of each time.

    Examples
    --------
    >>> sunday_and_monday = np.array(["2022-05-15T23:59", "2022-05-16"], dtype="datetime64[us]")
    >>> floor_week(sunday_and_monday).astype("datetime64[D]").astype(str).tolist()
    ['2022-05-09', '2022-05-16']
    """
    since = np.asarray(times) - _FIRST_MONDAY
    return _FIRST_MONDAY + since // _WEEK * _WEEK


def check_week(week: datetime) -> np.datetime64:
    """Check and convert the start of a week, the cut of its fit, to ``datetime64[us]``.

    Raises
    ------
    ValueError
        If it is not a Monday 00:00 UTC without a time zone.
    """
    if week.tzinfo is not None:
        raise ValueError(f"the week {week} has a time zone: pass naive UTC")
    cut = np.datetime64(week, "us")
    if floor_week(np.asarray(cut)) != cut:
        raise ValueError(
            f"the week {week} is no Monday 00:00 UTC: pass the start of the week the fit applies to"
        )
    return cut


def known_in(frame: pd.DataFrame, start: np.datetime64, cut: np.datetime64) -> np.ndarray:
    """(n,) flags of the rows a fit may use: ``ts >= start``, decided, and ``known_at <= cut``."""
    return (times_of(frame["known_at"]) <= cut) & (times_of(frame["ts"]) >= start)


def _check_rows(frame: pd.DataFrame, ts: np.ndarray, step: np.timedelta64) -> None:
    for key in ("symbol", "listing_id"):
        if frame[key].isna().any():
            raise ValueError(f"a raster row has no {key}: every row names its market and its life")
        require_unique(frame, (key, "ts"), "raster")
    off_grid = np.isnat(ts) | (ts.astype(np.int64) % step.astype(np.int64) != 0)
    if off_grid.any():
        worst = off_grid.argmax()
        raise ValueError(
            f"{frame['symbol'][worst]} has a row at {ts[worst]}, off the grid of {step}: check the bar"
        )
    wrong = times_of(frame["known_at"]) != ts + step
    if wrong.any():
        worst = wrong.argmax()
        raise ValueError(
            f"{frame['symbol'][worst]} at {ts[worst]} has known_at {frame['known_at'][worst]}, "
            f"but a raster row is known at the end of its interval of {step}"
        )
