"""The clocks of the graph, their keys, and the three ways in which a partition may look at others.

Here: the only partition definitions and mappings of the project, built from the settings' dates. Not here: the order
in which partitions run (``automation.py``). Assets, automation and the warehouse may import it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pandas as pd

from crypto_assets.settings import current_settings

# Dagster 1.13 marks both as beta; they are what the graph is built on, and the minor version is pinned.
for _parameter in ("allow_nonexistent_upstream_partitions", "backfill_policy"):
    warnings.filterwarnings("ignore", message=f"Parameter `{_parameter}`", category=dg.BetaWarning)

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
WEEK = timedelta(days=7)

#: Clock -> length of a partition, and how its key is written (as Dagster does).
LENGTHS: dict[str, timedelta] = {"hourly": HOUR, "daily": DAY, "weekly": WEEK}
KEY_FORMATS: dict[str, str] = {"hourly": "%Y-%m-%d-%H:%M", "daily": "%Y-%m-%d", "weekly": "%Y-%m-%d"}


def monday_of(day: date) -> date:
    """The Monday on or before a day."""
    return day - timedelta(days=day.weekday())


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


_FIRST = current_settings().start
_LAST = current_settings().last_day
_DAYS_END = None if _LAST is None else _midnight(_LAST)
_WEEKS_END = None if _LAST is None else _midnight(monday_of(_LAST - DAY) + WEEK)

#: UTC hours; the running hour is an open partition.
HOURLY = dg.HourlyPartitionsDefinition(start_date=_midnight(_FIRST), end_date=_DAYS_END, end_offset=1)

#: UTC days; the running day is an open partition.
DAILY = dg.DailyPartitionsDefinition(start_date=_midnight(_FIRST), end_date=_DAYS_END, end_offset=1)

#: UTC weeks from Monday, from the Monday on or before the first day; the running week is an open partition.
WEEKLY = dg.WeeklyPartitionsDefinition(
    start_date=_midnight(monday_of(_FIRST)),
    end_date=_WEEKS_END,
    day_offset=1,
    end_offset=1,
)


#: Clock -> its partitions.
DEFINITIONS: dict[str, dg.TimeWindowPartitionsDefinition] = {
    "hourly": HOURLY,
    "daily": DAILY,
    "weekly": WEEKLY,
}


def lookback(periods: int) -> dg.TimeWindowPartitionMapping:
    """A partition (a day, an hour) reads itself and the ``periods`` before it."""
    return dg.TimeWindowPartitionMapping(
        start_offset=-periods, end_offset=0, allow_nonexistent_upstream_partitions=True
    )


def history(weeks: int) -> dg.TimeWindowPartitionMapping:
    """A week reads the ``weeks`` before it, never itself."""
    return dg.TimeWindowPartitionMapping(
        start_offset=-weeks, end_offset=-1, allow_nonexistent_upstream_partitions=True
    )


def lookahead(days: int, before: int = 0) -> dg.TimeWindowPartitionMapping:
    """A day reads itself, the ``days`` after it and those ``before`` it. For labels alone."""
    return dg.TimeWindowPartitionMapping(
        start_offset=-before, end_offset=days, allow_nonexistent_upstream_partitions=True
    )


def days_before(days: int) -> dg.TimeWindowPartitionMapping:
    """A day reads the ``days`` before it, never itself: for sequential tables that read themselves."""
    return dg.TimeWindowPartitionMapping(
        start_offset=-days, end_offset=-1, allow_nonexistent_upstream_partitions=True
    )


def naive(moment: datetime) -> datetime:
    """Naive UTC, as times stand in tables."""
    return moment.astimezone(UTC).replace(tzinfo=None)


def window_of(
    context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext,
) -> tuple[datetime, datetime]:
    """Start and end of the run's partitions as naive UTC, end exclusive."""
    window = context.partition_time_window
    return naive(window.start), naive(window.end)


def length_of(clock: str) -> timedelta:
    """Length of a clock's partitions.

    Raises
    ------
    ValueError
        If the clock has no partitions.
    """
    try:
        return LENGTHS[clock]
    except KeyError:
        raise ValueError(f"a table with clock {clock!r} has no partitions") from None


def start_of(clock: str, key: str) -> datetime:
    """Start of a partition, naive UTC.

    Raises
    ------
    ValueError
        If the clock has no partitions, or the key is not one of its.

    Examples
    --------
    >>> start_of("hourly", "2024-01-01-05:00")
    datetime.datetime(2024, 1, 1, 5, 0)
    """
    length_of(clock)
    # Many times faster than strptime, and lineage asks for every partition there is.
    return datetime.fromisoformat(key if clock != "hourly" else f"{key[:10]}T{key[11:]}")


def floor_of(clock: str, moment: datetime) -> datetime:
    """Start of the partition that holds a moment, naive UTC.

    Examples
    --------
    >>> floor_of("weekly", datetime(2024, 1, 3, 5, 6))
    datetime.datetime(2024, 1, 1, 0, 0)
    >>> floor_of("hourly", datetime(2024, 1, 3, 5, 6))
    datetime.datetime(2024, 1, 3, 5, 0)
    """
    # The first Monday of a calendar without exceptions; every clock's grid begins there.
    return moment - (moment - datetime(1, 1, 1)) % length_of(clock)


def keys_of(clock: str, start: datetime, end: datetime) -> Iterator[tuple[str, datetime, datetime]]:
    """Partition keys of a clock inside a window with their own windows (naive UTC).

    Raises
    ------
    ValueError
        If the clock has no partitions.

    Examples
    --------
    >>> [key for key, _, _ in keys_of("hourly", datetime(2024, 1, 1, 23), datetime(2024, 1, 2, 1))]
    ['2024-01-01-23:00', '2024-01-02-00:00']
    """
    step = length_of(clock)
    moment = start
    while moment < end:
        yield moment.strftime(KEY_FORMATS[clock]), moment, moment + step
        moment += step


def weeks_of(context: dg.AssetExecutionContext) -> list[datetime]:
    """The Mondays (naive UTC) that open the run's weekly partitions."""
    return [start for _, start, _ in keys_of("weekly", *window_of(context))]


def within(frame: pd.DataFrame, context: dg.AssetExecutionContext, column: str = "ts") -> pd.DataFrame:
    """The rows of the run's window: what look-back and look-ahead rows served for is done."""
    start, end = window_of(context)
    return frame[(frame[column] >= start) & (frame[column] < end)]
