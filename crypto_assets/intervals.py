"""Interval arithmetic: names such as ``1h`` against milliseconds and time deltas.

Here: the intervals the platform knows, their lengths, and rounding to their grid. Not here: Dagster partitions
(``partitions.py``) and aggregation of bars (``dbt_features``, ``simulation``). Everybody may import it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

#: Every interval shorter than or equal to a day that the exchange itself offers, plus 10m (ours only).
INTERVAL_MS: dict[str, int] = {
    "1m": MINUTE_MS,
    "3m": 3 * MINUTE_MS,
    "5m": 5 * MINUTE_MS,
    "10m": 10 * MINUTE_MS,
    "15m": 15 * MINUTE_MS,
    "30m": 30 * MINUTE_MS,
    "1h": HOUR_MS,
    "2h": 2 * HOUR_MS,
    "4h": 4 * HOUR_MS,
    "6h": 6 * HOUR_MS,
    "8h": 8 * HOUR_MS,
    "12h": 12 * HOUR_MS,
    "1d": DAY_MS,
}

#: Weeks begin on Monday 00:00 UTC, so they are no multiple of the epoch: they have no place in ``INTERVAL_MS``.
WEEK = "1w"
WEEK_MS = 7 * DAY_MS

#: From one decision of a portfolio to the next, which is also the horizon of its labels, views and covariance.
REBALANCE_PERIOD = {"hourly": timedelta(hours=1), "daily": timedelta(days=1), "weekly": timedelta(days=7)}


def interval_ms(interval: str) -> int:
    """Length of an interval in milliseconds.

    Raises
    ------
    ValueError
        If the interval is not one of ``INTERVAL_MS``.

    Examples
    --------
    >>> interval_ms("1h")
    3600000
    """
    try:
        return INTERVAL_MS[interval]
    except KeyError:
        raise ValueError(f"unknown interval {interval!r}; allowed: {', '.join(INTERVAL_MS)}") from None


def interval_delta(interval: str) -> timedelta:
    """Length of an interval as a ``timedelta``."""
    return timedelta(milliseconds=interval_ms(interval))


def floor_ms(moment_ms: int, interval: str) -> int:
    """Start of the interval that contains a moment, both in epoch milliseconds (UTC grid)."""
    length = interval_ms(interval)
    return moment_ms - moment_ms % length


def to_ms(moment: datetime) -> int:
    """Epoch milliseconds of a naive UTC (or aware) datetime, exact to the microsecond floor.

    Examples
    --------
    >>> to_ms(datetime(1970, 1, 1, 0, 0, 1))
    1000
    """
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return (aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def from_ms(moment_ms: int) -> datetime:
    """Naive UTC datetime of epoch milliseconds.

    Examples
    --------
    >>> from_ms(1000)
    datetime.datetime(1970, 1, 1, 0, 0, 1)
    """
    return datetime(1970, 1, 1) + timedelta(milliseconds=moment_ms)  # noqa: DTZ001 - naive UTC by house rule


def next_month(moment: datetime) -> datetime:
    """Midnight of the first day of the month after a moment's.

    Examples
    --------
    >>> next_month(datetime(2024, 1, 31, 5))
    datetime.datetime(2024, 2, 1, 0, 0)
    """
    first = moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + timedelta(days=32)).replace(day=1)
