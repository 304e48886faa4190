"""What every outside source shares: errors by what the caller must do, one rate budget, one way to call.

Here: ``SourceError`` and its three kinds, ``RateBudget`` and ``CallAllowance`` (shared by threads and processes
through files), the retry policy, and ``SourceCaller``, which sends a request under them and turns any outcome into an
answer or a ``SourceError``. Not here: what an answer means (``exchange``, ``coingecko.py``). Imported by the clients of
this package; everybody may catch the errors.
"""

from __future__ import annotations

import fcntl
import itertools
import math
import os
import struct
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import urlencode

import tenacity

from crypto_assets.intervals import next_month

if TYPE_CHECKING:
    import requests

Answer = TypeVar("Answer")

#: How a client reads a failure of its library: try later, change the configuration, the source knows no such thing,
#: or the body was not JSON.
Failure = Literal["unavailable", "refused", "unknown", "garbled"]

WINDOW_S = 60
#: Of a body that is no answer, so much is shown.
EXCERPT_CHARS = 200
_TOO_MANY_REQUESTS = 429
_BANNED = 418
#: How long a ban holds that names no end: Binance's shortest bans last two minutes.
BAN_S = 120.0
_ABOUT_THE_QUESTION = frozenset({400, 404})
_RETRIED_4XX = frozenset({408, _TOO_MANY_REQUESTS})

_ADVICE_BY_STATUS: Mapping[int, str] = {
    401: "check the API key and the plan it belongs to",
    403: "the firewall of the source blocks this machine: check the address, the key and the request rate",
    404: "check the name that was asked for and the base address",
    _BANNED: "this machine is banned for sending too much: stop every process that uses the source, "
    "lower the rate budget, and wait until the ban ends",
    _TOO_MANY_REQUESTS: "try again later; if it lasts, lower the rate budget: others may share the address",
    451: "the source does not serve this location: set another venue or base address",
}


@dataclass(frozen=True)
class Request:
    """One request as errors may show it: no host, no headers, no key.

    Parameters
    ----------
    source
        Name of the source, for example ``binance``.
    path
        Path of the endpoint, for example ``/api/v3/klines``.
    params
        Public query parameters.
    weight
        What the request costs in the units of the source's rate limit.

    Examples
    --------
    >>> str(Request("binance", "/api/v3/klines", {"symbol": "BTCUSDT", "limit": 5}))
    'binance GET /api/v3/klines?symbol=BTCUSDT&limit=5'
    """

    source: str
    path: str
    params: Mapping[str, object] = field(default_factory=dict)
    weight: int = 1

    def __str__(self) -> str:
        """Source, path and query, as every error message begins."""
        query = f"?{urlencode(self.params)}" if self.params else ""
        return f"{self.source} GET {self.path}{query}"


class SourceError(Exception):
    """A source did not give a usable answer; nothing was stored.

    Parameters
    ----------
    asked
        Source, path and public parameters, as ``str(Request)`` gives them.
    came
        What came instead of a usable answer.
    advice
        What the caller or the operator can do about it.
    retry_after_s
        Seconds of silence that the source asked for, ``None`` when it named none.
    """

    def __init__(self, asked: str, came: str, advice: str, retry_after_s: float | None = None) -> None:
        super().__init__(asked, came, advice, retry_after_s)
        #: Whether sending the same request again at once may help; ``SourceCaller`` has then tried it.
        self.transient = False
        #: Whether other questions to the same source may well be answered: a wrong answer, an unknown market.
        self.concerns_one_series = isinstance(self, SourceDataInvalid)
        self.asked = asked
        self.came = came
        self.advice = advice
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        """Say what was asked, what came and what to do."""
        return f"{self.asked}: {self.came}. What to do: {self.advice}."


class SourceUnavailable(SourceError):
    """The source could not answer now: the same request may succeed later."""


class SourceRefused(SourceError):
    """The source will not answer this request: the configuration must change (key, place, symbol, ban)."""


class SourceDataInvalid(SourceError):
    """The source answered, but not with what it promises: stop and look, nothing of the answer is used."""


_OUTCOMES: Mapping[Failure, tuple[type[SourceError], str]] = {
    "unavailable": (
        SourceUnavailable,
        "try again later; if it lasts, check the network and the base address",
    ),
    "refused": (SourceRefused, "check the parameters and the base address in the settings"),
    "unknown": (SourceRefused, "check the parameters and the base address in the settings"),
    # A proxy's page or a cut body often heals, unlike a wrong row, so it is retried before it is reported.
    "garbled": (
        SourceDataInvalid,
        "nothing was stored; check that the base address is the source's and no proxy's",
    ),
}


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how patiently a failed request is sent again.

    Only ``SourceUnavailable`` and bodies that are not JSON are retried. The wait doubles from
    ``first_wait_s`` up to ``longest_wait_s`` with a random part of up to ``first_wait_s``; a ``Retry-After``
    of the source is waited out by the ``RateBudget``, so that the other threads and processes keep still as
    well, and so is the wait after a 429 without it.

    Parameters
    ----------
    attempts
        Requests sent at most, the first one included.
    first_wait_s, longest_wait_s
        Shortest and longest wait in seconds.
    sleep
        The function that waits.
    """

    attempts: int = 5
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        """Refuse a policy that would never send anything."""
        if self.attempts < 1:
            raise ValueError(
                f"attempts is {self.attempts}; it counts the first request too, so use 1 or more"
            )

    def least_wait_s(self, attempt: int) -> float:
        """Wait after a failed attempt (1 is the first), without its random part."""
        return min(self.longest_wait_s, self.first_wait_s * 2 ** (attempt - 1))

    def retrying(self, longest_silence_s: float) -> tenacity.Retrying:
        """Build the tenacity object; silences longer than ``longest_silence_s`` are left to the caller."""

        def worth_another(error: BaseException) -> bool:
            if not isinstance(error, SourceError) or not error.transient:
                return False
            return error.retry_after_s is None or error.retry_after_s <= longest_silence_s

        return tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=tenacity.wait_exponential_jitter(
                multiplier=self.first_wait_s, max=self.longest_wait_s, jitter=self.first_wait_s
            ),
            retry=tenacity.retry_if_exception(worth_another),
            sleep=self.sleep,
            reraise=True,
        )


_N_SLOTS = WINDOW_S + 1
_STATE = struct.Struct(f"<8sddd{_N_SLOTS}q")
_MAGIC = b"budget1\n"


@dataclass
class _State:
    clock_s: float
    held_until_s: float
    banned_until_s: float
    slots: list[int]

    @classmethod
    def read(cls, raw: bytes, now_s: float, full: int) -> _State:
        fresh = cls(now_s, 0.0, 0.0, [0] * _N_SLOTS)
        if not raw:
            return fresh
        if len(raw) != _STATE.size or not raw.startswith(_MAGIC):
            # Cut by a full disk or written by another version: a full window costs a minute and never
            # exceeds.
            fresh.slots[-1] = full
            return fresh
        _, clock, held, banned, *slots = _STATE.unpack(raw)
        # The monotonic clock restarts with the machine: then what is stored counts as if it had just
        # happened.
        shift = max(0.0, clock - now_s)
        passed = min(max(0, math.floor(now_s) - math.floor(clock)), _N_SLOTS)
        return cls(now_s, held - shift, banned - shift, slots[passed:] + [0] * passed)

    def pack(self) -> bytes:
        return _STATE.pack(_MAGIC, self.clock_s, self.held_until_s, self.banned_until_s, *self.slots)

    def seconds_until_free(self, weight: int, limit: int, per_second: int | None) -> float:
        if per_second is not None and self.slots[-1] and self.slots[-1] + weight > per_second:
            return math.floor(self.clock_s) + 1 - self.clock_s
        excess = sum(self.slots) + weight - limit
        if excess <= 0:
            return 0.0
        freed = itertools.accumulate(self.slots)
        n_expired = next(i for i, total in enumerate(freed, start=1) if total >= excess)
        return math.floor(self.clock_s) + n_expired - self.clock_s


class RateBudget:
    """Weight spent on one source in the last minute, shared by every thread and process through a small file.

    In no 60 seconds is more than ``per_minute`` spent, so the limit also holds in whatever minute the source
    counts. The file keeps one slot a second; a slot is given back when its last instant is 60 seconds old. It
    is read and written under an exclusive ``flock``, which ends with its process, so a killed process blocks
    nobody. The file also carries a silence (``hold``) or a ban (``ban``) that the source ordered: all users
    of the folder obey it.

    Parameters
    ----------
    folder
        Folder of the budget files, on a local disk of the machine whose address the source sees; it is
        created.
    name
        Name of the budget; users of the same name in the same folder share it.
    per_minute
        Weight that may be spent in 60 seconds. Choose it below the source's limit: requests that were delayed
        on their way are counted by the source later than here.
    per_second
        Weight that may be spent in one second, ``None`` for all of it at once. A heavier request has one to itself.
    longest_silence_s
        A silence that lasts longer than this many seconds raises instead of being waited out.
    now, sleep
        System-wide monotonic clock in seconds, and the function that waits.

    Raises
    ------
    ValueError
        If ``per_minute`` is not positive.
    SourceRefused
        If the folder cannot be written: without the shared count nothing may be asked.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        per_minute: int,
        *,
        per_second: int | None = None,
        longest_silence_s: float = 120.0,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if per_minute < 1:
            raise ValueError(f"the rate budget {name!r} allows {per_minute} a minute; set it to 1 or more")
        self.name = name
        self.per_minute = per_minute
        self.per_second = per_second
        self.longest_silence_s = longest_silence_s
        self._path = folder / f"{name}.budget"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(f"rate budget {self.name}", self._path, error) from error
        self._now = now
        self._sleep = sleep

    def spend(self, request: Request) -> int:
        """Wait until the request fits into the budget and count it.

        Returns
        -------
        int
            Weight that counts against the budget now, this request's included.

        Raises
        ------
        ValueError
            If the request alone weighs more than a minute's budget.
        SourceRefused
            If the source has banned this machine; no request may be sent before the ban ends.
        SourceUnavailable
            If the source has asked for a silence longer than ``longest_silence_s``.
        """
        if request.weight > self.per_minute:
            raise ValueError(
                f"{request} weighs {request.weight}, more than the budget {self.name!r} allows in a minute "
                f"({self.per_minute}); raise the budget"
            )
        while True:
            wait_s, used = self._try_spend(request)
            if wait_s <= 0:
                return used
            self._sleep(wait_s)

    def observe(self, used_weight: int) -> None:
        """Take over the source's own count of the running minute when it is higher than ours.

        The difference was spent by somebody else behind the same address; it counts as spent now.
        """
        with self._state() as state:
            state.slots[-1] += max(0, used_weight - sum(state.slots))

    def hold(self, seconds: float) -> None:
        """Keep every user of the budget silent for so many seconds from now."""
        with self._state() as state:
            state.held_until_s = max(state.held_until_s, state.clock_s + seconds)

    def ban(self, seconds: float) -> None:
        """Refuse every request of every user of the budget for so many seconds from now."""
        with self._state() as state:
            state.banned_until_s = max(state.banned_until_s, state.clock_s + seconds)

    def used(self) -> int:
        """Weight that counts against the budget now."""
        with self._state() as state:
            return sum(state.slots)

    def _try_spend(self, request: Request) -> tuple[float, int]:
        with self._state() as state:
            ban_s = state.banned_until_s - state.clock_s
            if ban_s > 0:
                raise SourceRefused(
                    str(request),
                    f"not sent, the source banned this machine for {ban_s:.0f} s more",
                    _ADVICE_BY_STATUS[_BANNED],
                    ban_s,
                )
            silence_s = state.held_until_s - state.clock_s
            if silence_s > self.longest_silence_s:
                raise SourceUnavailable(
                    str(request),
                    f"not sent, the source asked for {silence_s:.0f} s more of silence",
                    "try again after that time",
                    silence_s,
                )
            wait_s = max(
                silence_s, state.seconds_until_free(request.weight, self.per_minute, self.per_second)
            )
            if wait_s <= 0:
                state.slots[-1] += request.weight
            return wait_s, sum(state.slots)

    @contextmanager
    def _state(self) -> Generator[_State]:
        # A descriptor of its own for each use: flock then also excludes the threads of one process.
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _unwritable(f"rate budget {self.name}", self._path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # One byte more than the state, so that a longer, foreign file is not taken for ours.
            state = _State.read(os.pread(descriptor, _STATE.size + 1, 0), self._now(), self.per_minute)
            try:
                yield state
            finally:
                # One write of a fixed size: a killed process leaves the old state or the new one.
                os.pwrite(descriptor, state.pack(), 0)
                os.ftruncate(descriptor, _STATE.size)
        finally:
            os.close(descriptor)


class CallAllowance:
    """Calls that a plan allows in a calendar month (UTC), counted for every thread and process through small files.

    Each month has a file of its own, one byte a call, so its size is the count: it is appended under an exclusive
    ``flock``, a killed process leaves nothing half-written, and two clocks at a month's end do not disturb each other.
    Every attempt counts, also a failed one.

    Parameters
    ----------
    folder
        Folder of the files, on a local disk; it is created.
    name
        Name of the allowance; users of the same name in the same folder share it.
    per_month
        Calls allowed in a calendar month.
    clock
        The source's time, naive UTC; it decides the month.

    Raises
    ------
    ValueError
        If ``per_month`` is not positive.
    SourceRefused
        If the folder cannot be written: without the shared count nothing may be asked.
    """

    def __init__(self, folder: Path, name: str, per_month: int, clock: Callable[[], datetime]) -> None:
        if per_month < 1:
            raise ValueError(f"the allowance {name!r} has {per_month} calls a month; set it to 1 or more")
        self.name = name
        self.per_month = per_month
        self._folder = folder
        self._clock = clock
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(f"call allowance {name}", folder, error) from error

    def spend(self, request: Request) -> None:
        """Count one call.

        Raises
        ------
        SourceRefused
            If the month's calls are used up, saying when the allowance renews; nothing is counted then.
        """
        now = self._clock()
        with self._counted(now) as descriptor:
            used = os.fstat(descriptor).st_size
            if used < self.per_month:
                os.write(descriptor, b".")
                return
        renewal = next_month(now)
        raise SourceRefused(
            str(request),
            f"not sent, the {self.per_month} calls of {now:%Y-%m} are used up; "
            f"the allowance renews at {renewal:%Y-%m-%d %H:%M} UTC",
            "wait until then, or raise the monthly calls in the settings if the plan allows more",
            (renewal - now).total_seconds(),
        )

    def used(self) -> int:
        """Calls counted in the running month."""
        with self._counted(self._clock()) as descriptor:
            return os.fstat(descriptor).st_size

    @contextmanager
    def _counted(self, now: datetime) -> Generator[int]:
        path = self._folder / f"{self.name}-{now:%Y-%m}.calls"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _unwritable(f"call allowance {self.name}", path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


def _unwritable(what: str, path: Path, error: OSError) -> SourceRefused:
    return SourceRefused(
        what,
        f"not spent, {path} cannot be written ({error.strerror})",
        "check the folder's permissions and free space; it lies in warehouse.folder of platform.yaml",
    )


class Wire(threading.local):
    """Status, headers and beginning of the body of this thread's last HTTP response.

    The client libraries hide them when they raise. ``status`` is ``None`` when nothing has come.

    Parameters
    ----------
    heard
        Called with status and headers as soon as they have come, before the body is read.
    """

    status: int | None = None
    headers: Mapping[str, str] = {}
    body: bytes = b""
    #: Number of the attempt that is under way.
    attempt: int = 1

    def __init__(
        self, heard: Callable[[int, Mapping[str, str]], None] = lambda status, headers: None
    ) -> None:
        self._heard = heard

    @property
    def excerpt(self) -> str:
        """Beginning of the body in one line."""
        return " ".join(self.body[:EXCERPT_CHARS].decode("utf-8", errors="replace").split())

    def clear(self) -> None:
        """Forget the last response, before the next request is sent."""
        self.status, self.headers, self.body = None, {}, b""

    def arrived(self, status: int, headers: Mapping[str, str]) -> None:
        """Record the head of a response of a client that is no ``requests.Session``; its body follows in ``body``."""
        self.status, self.headers, self.body = status, headers, b""
        self._heard(status, headers)

    def watch(self, session: requests.Session) -> None:
        """Record every response of a session, and cut it off from redirects and from the environment.

        A redirect would carry the headers, and so a key, to another host; proxies and ``.netrc`` would be
        settings that nobody sees.
        """
        session.hooks["response"].append(self._record)
        session.max_redirects = 0
        session.trust_env = False

    def _record(self, response: requests.Response, **_: object) -> None:
        self.arrived(response.status_code, response.headers)
        # Reading may fail: then the head alone is known.
        self.body = response.content[:EXCERPT_CHARS]


class SourceCaller:
    """Sends the requests of one client under its budget and its retry policy.

    Parameters
    ----------
    budget
        Rate budget; every attempt is spent before it is sent.
    retry
        Retry policy.
    read_failure
        Tells what an exception of the client's library means when no HTTP error status came; ``None`` for an
        exception that is none of the library's and so is a defect of ours, to be raised as it is.
    used_weight_header
        Response header with the source's own count of the running minute, read back into the budget.
    secrets
        Texts that are removed from every message.
    allowance
        Calls of the month; every attempt is counted before it is sent.
    """

    def __init__(
        self,
        budget: RateBudget,
        retry: RetryPolicy,
        read_failure: Callable[[Exception], Failure | None],
        *,
        used_weight_header: str | None = None,
        secrets: tuple[str, ...] = (),
        allowance: CallAllowance | None = None,
    ) -> None:
        self.wire = Wire(self._obey)
        self._budget = budget
        self._allowance = allowance
        self._retry = retry
        self._read_failure = read_failure
        self._used_weight_header = used_weight_header
        self._secrets = secrets

    def call(
        self, request: Request, send: Callable[[], object], accept: Callable[[object], Answer]
    ) -> Answer:
        """Send a request until it is answered, at most as often as the retry policy says.

        Parameters
        ----------
        request
            What is asked; its weight is spent for every attempt.
        send
            Sends it through a session that ``wire`` watches and returns the decoded JSON.
        accept
            Turns the decoded JSON into the result, or raises ``ValueError`` or ``TypeError`` saying what is
            wrong with it.

        Raises
        ------
        SourceUnavailable
            No attempt was answered, or the source asked for a longer silence than the budget waits out.
        SourceRefused
            The source refuses the request; it was not repeated.
        SourceDataInvalid
            The answer is not acceptable, or no attempt brought JSON.
        """
        attempts = itertools.count(1)
        retrying = self._retry.retrying(self._budget.longest_silence_s)
        return retrying(lambda: self._attempt(request, send, accept, next(attempts)))

    def _attempt(
        self, request: Request, send: Callable[[], object], accept: Callable[[object], Answer], number: int
    ) -> Answer:
        used = self._budget.spend(request)
        if self._allowance is not None:
            self._allowance.spend(request)
        self.wire.clear()
        self.wire.attempt = number
        failure: SourceError | None = None
        payload: object = None
        try:
            payload = send()
        except Exception as error:
            failure = self._failure(request, error, number)
            if failure is None:
                raise
        self._read_back(used)
        if failure is not None:
            # Raised outside the except block: the library's exception may quote what must not be quoted.
            raise failure
        return self._accepted(request, payload, accept)

    def _accepted(self, request: Request, payload: object, accept: Callable[[object], Answer]) -> Answer:
        try:
            return accept(payload)
        except (ValueError, TypeError) as error:
            wrong = f"HTTP {self.wire.status} with unusable content: {error}"
        raise SourceDataInvalid(
            str(request),
            self._redacted(wrong),
            "nothing was stored; look at what the source sends, and ask again once it is right",
        )

    def _failure(self, request: Request, error: Exception, number: int) -> SourceError | None:
        meaning = self._read_failure(error)
        if meaning is None:
            return None
        status = self.wire.status
        if status is not None and status >= 400:
            meaning = _meaning(status)
        came = self._redacted(self._came(error, meaning))
        if number > 1:
            came = f"attempt {number} of {self._retry.attempts}: {came}"
        kind, advice = _OUTCOMES[meaning]
        silence_s = _retry_after_s(self.wire.headers)
        failure = kind(str(request), came, _ADVICE_BY_STATUS.get(status or 0, advice), silence_s)
        failure.transient = kind is not SourceRefused
        failure.concerns_one_series |= meaning == "unknown"
        return failure

    def _obey(self, status: int, headers: Mapping[str, str]) -> None:
        # With the head alone: until it is noted, the other users of the address go on asking.
        silence_s = _retry_after_s(headers)
        if status == _BANNED:
            self._budget.ban(BAN_S if silence_s is None else silence_s)
        elif silence_s is not None and status >= 400 and _meaning(status) == "unavailable":
            self._budget.hold(silence_s)
        elif status == _TOO_MANY_REQUESTS:
            self._budget.hold(self._retry.least_wait_s(self.wire.attempt))

    def _came(self, error: Exception, meaning: Failure) -> str:
        status, excerpt = self.wire.status, self.wire.excerpt
        if status is None:
            return f"no response ({_innermost(error)})"
        if excerpt or status >= 400:
            return f"HTTP {status} {excerpt!r}"
        if meaning == "garbled":
            return f"HTTP {status} with an empty or unreadable body"
        return f"HTTP {status} without a whole body ({_innermost(error)})"

    def _read_back(self, known: int) -> None:
        if self._used_weight_header is None:
            return
        told = self.wire.headers.get(self._used_weight_header, "")
        if told.isdecimal() and int(told) > known:
            self._budget.observe(int(told))

    def _redacted(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _meaning(status: int) -> Failure:
    if status >= 500 or status in _RETRIED_4XX:
        return "unavailable"
    return "unknown" if status in _ABOUT_THE_QUESTION else "refused"


def _innermost(error: BaseException) -> str:
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return (str(error) or type(error).__name__)[:EXCERPT_CHARS]


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        # A date is read against the source's own clock, never against the local one.
        wait = parsedate_to_datetime(value) - parsedate_to_datetime(headers.get("Date", ""))
    except (ValueError, TypeError):
        return None
    return max(0.0, wait.total_seconds())
