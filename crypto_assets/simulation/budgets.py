"""Who may ask how much: rate budgets as the server counts them, the silences it ordered, and who broke them."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from itertools import islice, takewhile
from operator import attrgetter
from typing import Literal, NamedTuple

Budget = Literal["spot", "usdm", "archive", "coingecko", "bybit"]

#: Seconds of a ban that does not say how long it lasts.
BAN_S = 120.0

_PREFIXES: tuple[tuple[str, Budget], ...] = (
    ("/fapi/", "usdm"),
    ("/futures/data/", "usdm"),
    ("/data/", "archive"),
    ("/coingecko/", "coingecko"),
    ("/bybit/", "bybit"),
)
_number = attrgetter("number")


def budget_of(path: str) -> Budget:
    """Name the budget that a request of ``path`` spends; the spot exchange's where no other one fits.

    Examples
    --------
    >>> budget_of("/fapi/v1/klines"), budget_of("/api/v3/klines")
    ('usdm', 'spot')
    """
    return next((budget for prefix, budget in _PREFIXES if path.startswith(prefix)), "spot")


class Request(NamedTuple):
    """One request.

    Attributes
    ----------
    status
        What was answered; None where a fault let no answer out.
    budget
        Which budget it spent.
    at_s
        When it arrived, seconds of the server's real clock.
    number
        How many requests arrived before it.
    """

    method: str
    path: str
    query: dict[str, str]
    status: int | None
    budget: Budget
    at_s: float
    number: int


class Order(NamedTuple):
    """A time in which a budget has to keep silent.

    Attributes
    ----------
    ban
        Ordered by status 418, else by Retry-After.
    until_s
        Exclusive end, seconds of the server's real clock.
    after_number
        Requests with this number and later ones arrived after the order was given.
    told_at_s
        Monotonic seconds of this machine at which it was given.
    """

    budget: Budget
    ban: bool
    until_s: float
    after_number: int
    told_at_s: float


class RequestLog:
    """Every request in the order of the answers, and every silence that an answer ordered.

    Parameters
    ----------
    real_seconds
        The clock in which silences last.
    """

    def __init__(self, real_seconds: Callable[[], float]) -> None:
        self.requests: list[Request] = []
        self.orders: list[Order] = []
        self._real_seconds = real_seconds
        # Monotonic seconds of this machine at which each request arrived, in their order.
        self._came_s: list[float] = []

    def arrive(self) -> tuple[int, float]:
        """Count a request that has just come; its number and its moment."""
        self._came_s.append(time.monotonic())
        return len(self._came_s) - 1, self._real_seconds()

    def answer(self, request: Request, retry_after_s: float | None) -> None:
        """Note an answer that is about to go out, and the silence that it orders."""
        self.requests.append(request)
        ban = request.status == 418
        seconds = BAN_S if ban and retry_after_s is None else retry_after_s
        if request.status is not None and seconds is not None:
            until_s = self._real_seconds() + seconds
            self.orders.append(Order(request.budget, ban, until_s, len(self._came_s), time.monotonic()))

    def violations(self, n_in_flight: int = 0, hearing_s: float = 0.0) -> list[Request]:
        """Return the requests that came while their budget had to keep silent.

        Parameters
        ----------
        n_in_flight
            How many requests of a client may have been on their way when an order was given: so many are forgiven
            after each. 0 for a client that asks one thing at a time, ``n - 1`` for one with ``n`` threads.
        hearing_s
            How long, in this machine's seconds, the head of an answer may take to be read: as many requests again are
            forgiven that came within that time after the order, begun by threads that could not know of it yet.
        """
        arrived: dict[Budget, list[Request]] = {}
        for request in sorted(self.requests, key=_number):
            arrived.setdefault(request.budget, []).append(request)
        guilty: set[int] = set()
        for order in self.orders:
            here = arrived[order.budget]
            after = islice(here, bisect_left(here, order.after_number, key=_number), None)
            late = takewhile(lambda request, until_s=order.until_s: request.at_s < until_s, after)
            heard_s = order.told_at_s + hearing_s
            for place, request in enumerate(islice(late, n_in_flight, None)):
                if place >= n_in_flight or self._came_s[request.number] >= heard_s:
                    guilty.add(request.number)
        return [request for request in self.requests if request.number in guilty]

    def forgive(self, last_s: float = 0.25) -> None:
        """Drop the orders of the last machine seconds: the client that was told was killed and may not have heard.

        It has to be called before the next client starts; an order that is older stays, for a client has to note it
        at once.
        """
        heard = time.monotonic() - last_s
        self.orders[:] = [order for order in self.orders if order.told_at_s <= heard]


class WeightMeter:
    """Weight that came in the running window of the real clock.

    Parameters
    ----------
    limit
        Weight above which a window is exceeded; None only counts.
    real_seconds
        Seconds since the epoch; windows begin at its multiples of ``window_s``.
    window_s
        Length of a window.
    """

    def __init__(self, limit: int | None, real_seconds: Callable[[], float], window_s: int = 60) -> None:
        self.limit = limit
        self._real_seconds, self._window_s = real_seconds, window_s
        self._window, self._used = -1, 0

    def add(self, weight: int) -> int:
        """Count a request and return what the window has used."""
        window = int(self._real_seconds() // self._window_s)
        if window != self._window:
            self._window, self._used = window, 0
        self._used += weight
        return self._used

    @property
    def exceeded(self) -> bool:
        """Whether the running window has used more than the limit."""
        return self.limit is not None and self._used > self.limit

    def seconds_left(self) -> int:
        """Whole seconds until the window ends, at least 1."""
        return self._window_s - int(self._real_seconds() % self._window_s)
