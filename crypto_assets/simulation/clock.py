"""Clocks of a simulated market: its own time, and the real one, which a test may hold.

Here: what time it is. Not here: what is public then (``world``) and what may be asked then (``budgets``). The server,
tests and the command line import it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime

from crypto_assets.intervals import to_ms

Moment = int | str | datetime


class Clock:
    """The market's time: fixed at ``now`` (speed 0), or running ``speed`` times as fast as real time.

    A moment is epoch milliseconds, an ISO text, or a datetime; naive means UTC. ``real_seconds`` is the real
    clock.
    """

    def __init__(
        self, now: Moment, speed: float = 0.0, *, real_seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self._real_seconds = real_seconds
        self._base = (_moment_ms(now), real_seconds(), speed)

    @property
    def speed(self) -> float:
        """Market seconds a real second."""
        return self._base[2]

    def now_ms(self) -> int:
        """Market time in epoch milliseconds."""
        base_ms, base_real, speed = self._base
        return base_ms + int((self._real_seconds() - base_real) * 1000 * speed) if speed else base_ms

    def set(self, now: Moment, speed: float | None = None) -> None:
        """Set the time, and the speed if given. Going back in time is allowed."""
        self._base = (_moment_ms(now), self._real_seconds(), self.speed if speed is None else speed)


class FakeSeconds:
    """A real clock that stands until somebody sleeps on it; server and clients of a test share one.

    Examples
    --------
    >>> seconds = FakeSeconds(100.0)
    >>> seconds.sleep(2.5)
    >>> seconds()
    102.5
    """

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now
        self._lock = threading.Lock()

    def __call__(self) -> float:
        """Read the time, seconds since the epoch."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Move the clock on; sleeps of several threads that begin together do not add up."""
        self.reach(self._now + max(0.0, seconds))

    def reach(self, moment_s: float) -> None:
        """Move the clock to a moment, if it has not passed it."""
        with self._lock:
            self._now = max(self._now, moment_s)


def steady_seconds() -> Callable[[], float]:
    """Make a real clock that never runs backwards: seconds since the epoch, of the machine's monotonic clock."""
    epoch = time.time() - time.monotonic()
    return lambda: epoch + time.monotonic()


def _moment_ms(moment: Moment) -> int:
    if isinstance(moment, str):
        return to_ms(datetime.fromisoformat(moment))
    return to_ms(moment) if isinstance(moment, datetime) else int(moment)
