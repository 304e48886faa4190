"""Errors, retries and the shared rate budget, with a clock that the tests turn and without one sleep."""

from __future__ import annotations

import fcntl
import itertools
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import datetime
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_assets.resources.sources import (
    BAN_S,
    WINDOW_S,
    CallAllowance,
    Failure,
    RateBudget,
    Request,
    RetryPolicy,
    SourceCaller,
    SourceDataInvalid,
    SourceError,
    SourceRefused,
    SourceUnavailable,
)
from crypto_assets_tests.resources.stub_server import Reply, StubServer, json_of

ASKED = Request("stub", "/thing", {"name": "x"})


class FakeTime:
    """A monotonic clock that moves when somebody sleeps."""

    def __init__(self, now_s: float = 1_000.25) -> None:
        self.now_s = now_s
        self.slept: list[float] = []

    def now(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


class WouldWait(Exception):
    pass


def refuse_to_sleep(seconds: float) -> None:
    raise WouldWait(seconds)


def weighing(weight: int) -> Request:
    return Request("stub", "/thing", weight=weight)


def budget_of(folder: Path, time: FakeTime, per_minute: int = 100) -> RateBudget:
    return RateBudget(folder, "stub", per_minute, now=time.now, sleep=time.sleep)


class Getter:
    """The smallest client there is: one session, one caller."""

    def __init__(self, url: str, budget: RateBudget, time: FakeTime, attempts: int = 3) -> None:
        self.session = requests.Session()
        self.url = url
        self.caller = SourceCaller(
            budget,
            RetryPolicy(attempts=attempts, sleep=time.sleep),
            _meaning,
            used_weight_header="X-Used",
            secrets=("hush",),
        )
        self.caller.wire.watch(self.session)

    def get(self, accept: Callable[[object], object] = lambda payload: payload) -> object:
        def send() -> object:
            response = self.session.get(self.url, timeout=5)
            response.raise_for_status()
            return response.json()

        return self.caller.call(ASKED, send, accept)


def _meaning(error: Exception) -> Failure | None:
    if isinstance(error, requests.exceptions.JSONDecodeError):
        return "garbled"
    return "unavailable" if isinstance(error, requests.exceptions.RequestException) else None


# Errors


def test_an_error_says_what_was_asked_what_came_and_what_to_do_and_survives_pickling() -> None:
    error = SourceUnavailable(str(ASKED), "HTTP 503 'busy'", "try again later", 30.0)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "stub GET /thing?name=x: HTTP 503 'busy'. What to do: try again later."
    assert (type(again), again.retry_after_s) == (SourceUnavailable, 30.0)


@pytest.mark.parametrize(
    ("status", "kind", "n_requests"),
    [
        (400, SourceRefused, 1),
        (401, SourceRefused, 1),
        (403, SourceRefused, 1),
        (404, SourceRefused, 1),
        (418, SourceRefused, 1),
        (451, SourceRefused, 1),
        (408, SourceUnavailable, 3),
        (429, SourceUnavailable, 3),
        (500, SourceUnavailable, 3),
        (503, SourceUnavailable, 3),
    ],
)
def test_the_status_decides_whether_a_request_is_sent_again(
    tmp_path: Path, status: int, kind: type[SourceError], n_requests: int
) -> None:
    time = FakeTime()
    with StubServer(Reply(b"no", status)) as stub:
        with pytest.raises(SourceError) as caught:
            Getter(stub.url, budget_of(tmp_path, time), time).get()
        assert (type(caught.value), len(stub.received)) == (kind, n_requests)


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    time = FakeTime()
    with StubServer(Reply(b"", 302, {"Location": "/elsewhere"})) as stub:
        with pytest.raises(SourceError):
            Getter(stub.url, budget_of(tmp_path, time), time, attempts=1).get()
        assert [request.path for request in stub.received] == ["/"]


def test_a_failed_request_is_repeated_until_it_is_answered(tmp_path: Path) -> None:
    time = FakeTime()
    with StubServer(
        Reply(b"", 500), Reply(b"<html>"), Reply(b"[", headers={"Content-Length": "9"}), json_of(7)
    ) as stub:
        assert Getter(stub.url, budget_of(tmp_path, time), time, attempts=4).get() == 7
        assert len(stub.received) == 4


def test_the_waits_between_attempts_double_with_a_random_part_and_a_bound(tmp_path: Path) -> None:
    time = FakeTime()
    with StubServer(Reply(b"", 500)) as stub:
        getter = Getter(stub.url, budget_of(tmp_path, time), time)
        getter.caller = SourceCaller(
            budget_of(tmp_path, time), RetryPolicy(6, 1.0, 5.0, time.sleep), _meaning
        )
        getter.caller.wire.watch(getter.session)
        with pytest.raises(SourceUnavailable, match="attempt 6 of 6"):
            getter.get()
    assert len(time.slept) == 5
    for wait, (least, most) in zip(time.slept, [(1, 2), (2, 3), (4, 5), (5, 5), (5, 5)], strict=True):
        assert least <= wait <= most


def test_content_that_is_not_acceptable_is_never_asked_for_again(tmp_path: Path) -> None:
    def accept(payload: object) -> object:
        raise ValueError(f"{payload} is too short")

    time = FakeTime()
    with StubServer(json_of([1])) as stub:
        with pytest.raises(SourceDataInvalid, match=r"/thing\?name=x: HTTP 200 .*\[1\] is too short"):
            Getter(stub.url, budget_of(tmp_path, time), time).get(accept)
        assert len(stub.received) == 1


def test_a_body_that_is_not_json_is_repeated_and_then_invalid(tmp_path: Path) -> None:
    time = FakeTime()
    with StubServer(Reply(b"<html>gateway</html>")) as stub:
        with pytest.raises(SourceDataInvalid, match="attempt 3 of 3: HTTP 200 '<html>gateway</html>'"):
            Getter(stub.url, budget_of(tmp_path, time), time).get()
        assert len(stub.received) == 3


def test_a_defect_of_ours_is_not_dressed_up_as_a_failure_of_the_source(tmp_path: Path) -> None:
    def send() -> object:
        raise ZeroDivisionError

    time = FakeTime()
    caller = SourceCaller(budget_of(tmp_path, time), RetryPolicy(sleep=time.sleep), _meaning)
    with pytest.raises(ZeroDivisionError):
        caller.call(ASKED, send, lambda payload: payload)
    assert time.slept == []


def test_no_message_and_no_chained_exception_quotes_a_secret(tmp_path: Path) -> None:
    time = FakeTime()
    for reply in (Reply(b"key hush is wrong", 401), Reply(b"hush", 500), Reply(b"hush"), json_of("hush")):
        with StubServer(reply) as stub, pytest.raises(SourceError) as caught:
            Getter(stub.url, budget_of(tmp_path, time), time).get(int_of)
        assert "hush" not in f"{caught.value} {caught.value!r}"
        assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def int_of(payload: object) -> int:
    raise TypeError(f"{payload} is no number")


# Silence and bans that the source orders


def test_retry_after_is_waited_out_by_everybody_who_shares_the_budget(tmp_path: Path) -> None:
    time = FakeTime()
    start_s = time.now_s
    with StubServer(Reply(b"", 429, {"Retry-After": "17"}), json_of(1)) as stub:
        assert Getter(stub.url, budget_of(tmp_path, time), time).get() == 1
    assert sum(time.slept) == pytest.approx(17)
    assert time.now_s == pytest.approx(start_s + 17)

    budget_of(tmp_path, time).hold(5)
    budget_of(tmp_path, time).spend(ASKED)
    assert time.now_s == pytest.approx(start_s + 22)


def test_an_order_holds_from_its_head_on_before_its_body_has_come(tmp_path: Path) -> None:
    time = FakeTime()
    caller = SourceCaller(budget_of(tmp_path, time), RetryPolicy(attempts=1, sleep=time.sleep), _meaning)
    another = RateBudget(tmp_path, "stub", 100, now=time.now, sleep=refuse_to_sleep)

    def send() -> object:
        caller.wire.arrived(503, {"Retry-After": "9"})
        with pytest.raises(WouldWait, match=r"^9\.0$"):
            another.spend(ASKED)
        raise requests.ConnectionError("the body broke off")

    with pytest.raises(SourceUnavailable, match="503"):
        caller.call(ASKED, send, lambda payload: payload)


def test_retry_after_may_be_a_date_by_the_clock_of_the_source(tmp_path: Path) -> None:
    time = FakeTime()
    headers = {"Date": "Sat, 15 May 2021 15:34:28 GMT", "Retry-After": "Sat, 15 May 2021 15:34:58 GMT"}
    with StubServer(Reply(b"", 503, headers), json_of(1)) as stub, pytest.raises(SourceUnavailable) as caught:
        Getter(stub.url, budget_of(tmp_path, time), time, attempts=1).get()
    assert caught.value.retry_after_s == 30.0


def test_a_silence_longer_than_the_patience_is_left_to_the_caller(tmp_path: Path) -> None:
    time = FakeTime()
    with StubServer(Reply(b"", 429, {"Retry-After": "3600"})) as stub:
        getter = Getter(stub.url, budget_of(tmp_path, time), time)
        for _ in range(2):
            with pytest.raises(SourceUnavailable) as caught:
                getter.get()
            assert caught.value.retry_after_s == pytest.approx(3600)
        assert (len(stub.received), time.slept) == (1, [])


def test_after_a_ban_nothing_is_sent_until_it_ends(tmp_path: Path) -> None:
    time = FakeTime()
    with StubServer(Reply(b"", 418, {"Retry-After": "90"}), json_of(1)) as stub:
        getter = Getter(stub.url, budget_of(tmp_path, time), time)
        for _ in range(2):
            with pytest.raises(SourceRefused, match="banned"):
                getter.get()
        with pytest.raises(SourceRefused):
            budget_of(tmp_path, time).spend(ASKED)
        assert len(stub.received) == 1
        time.now_s += 90.5
        assert getter.get() == 1


@pytest.mark.parametrize(("headers", "ban_s"), [({}, BAN_S), ({"Retry-After": "7"}, 7.0)])
def test_a_ban_that_names_no_end_holds_two_minutes(
    tmp_path: Path, headers: dict[str, str], ban_s: float
) -> None:
    time = FakeTime()
    with StubServer(Reply(b"", 418, headers), json_of(1)) as stub:
        getter = Getter(stub.url, budget_of(tmp_path, time), time)
        with pytest.raises(SourceRefused):
            getter.get()
        time.now_s += ban_s - 0.01
        with pytest.raises(SourceRefused, match="banned"):
            getter.get()
        assert len(stub.received) == 1
        time.now_s += 0.02
        assert getter.get() == 1


def test_too_many_requests_without_a_time_silences_everybody_for_the_wait_of_the_policy(
    tmp_path: Path,
) -> None:
    time = FakeTime()
    start_s = time.now_s
    with StubServer(Reply(b"", 429)) as stub, pytest.raises(SourceUnavailable) as caught:
        Getter(stub.url, budget_of(tmp_path, time), time, attempts=1).get()
    assert caught.value.retry_after_s is None
    # Another client of the same budget, in whatever process, waits as long as the one that was told.
    budget_of(tmp_path, time).spend(ASKED)
    assert time.now_s - start_s == pytest.approx(RetryPolicy().least_wait_s(1))


def test_the_least_wait_doubles_up_to_its_bound() -> None:
    policy = RetryPolicy(first_wait_s=0.5, longest_wait_s=3.0)
    assert [policy.least_wait_s(attempt) for attempt in (1, 2, 3, 4, 9)] == [0.5, 1.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("reply", "alone"),
    [
        (Reply(b"", 400), True),
        (Reply(b"", 404), True),
        (json_of("no number"), True),
        (Reply(b"", 401), False),
        (Reply(b"", 418), False),
        (Reply(b"", 451), False),
        (Reply(b"", 503), False),
    ],
)
def test_an_error_tells_whether_other_questions_may_be_answered(
    tmp_path: Path, reply: Reply, alone: bool
) -> None:
    time = FakeTime()
    with StubServer(reply) as stub, pytest.raises(SourceError) as caught:
        Getter(stub.url, budget_of(tmp_path, time), time, attempts=1).get(int_of)
    assert caught.value.concerns_one_series is alone


# Calls of a month


class Calendar:
    """The source's clock, set by the test."""

    def __init__(self, now: str) -> None:
        self.now = datetime.fromisoformat(now)

    def __call__(self) -> datetime:
        return self.now


def test_an_allowance_is_spent_call_by_call_and_renews_with_the_month(tmp_path: Path) -> None:
    calendar = Calendar("2024-01-31T23:59:58")
    allowance = CallAllowance(tmp_path, "coingecko", 3, calendar)
    for n_calls in (1, 2, 3):
        # Another object on the same folder counts on.
        CallAllowance(tmp_path, "coingecko", 3, calendar).spend(ASKED)
        assert allowance.used() == n_calls
    with pytest.raises(
        SourceRefused, match=r"3 calls of 2024-01 .* renews at 2024-02-01 00:00 UTC"
    ) as caught:
        allowance.spend(ASKED)
    assert (caught.value.retry_after_s, allowance.used()) == (2.0, 3)
    calendar.now = datetime.fromisoformat("2024-02-01")
    allowance.spend(ASKED)
    assert allowance.used() == 1
    # A clock that still stands in the old month neither spends nor resets the new one.
    calendar.now = datetime.fromisoformat("2024-01-31T23:59:59")
    assert allowance.used() == 3


def test_threads_and_processes_together_spend_exactly_the_allowance(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as processes:
        counts = list(processes.map(call_until_refused, [tmp_path] * 2))
    assert sum(counts) == 200


def call_until_refused(folder: Path) -> int:
    allowance = CallAllowance(folder, "stub", 200, Calendar("2024-01-15"))

    def calls(_: int) -> int:
        for n_calls in itertools.count():
            try:
                allowance.spend(ASKED)
            except SourceRefused:
                return n_calls
        raise AssertionError

    with ThreadPoolExecutor(4) as threads:
        return sum(threads.map(calls, range(4)))


def test_every_attempt_counts_against_the_allowance_and_none_is_sent_without(tmp_path: Path) -> None:
    time = FakeTime()
    allowance = CallAllowance(tmp_path, "stub", 2, Calendar("2024-12-15"))
    with StubServer(Reply(b"", 500)) as stub:
        getter = Getter(stub.url, budget_of(tmp_path, time), time)
        getter.caller = SourceCaller(
            budget_of(tmp_path, time), RetryPolicy(5, sleep=time.sleep), _meaning, allowance=allowance
        )
        getter.caller.wire.watch(getter.session)
        with pytest.raises(SourceRefused, match="renews at 2025-01-01"):
            getter.get()
        assert len(stub.received) == allowance.used() == 2


def test_an_allowance_of_nothing_or_without_a_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        CallAllowance(tmp_path, "stub", 0, Calendar("2024-01-15"))
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceRefused, match="cannot be written"):
        CallAllowance(tmp_path / "file", "stub", 1, Calendar("2024-01-15"))


# The budget


@settings(deadline=None, max_examples=60)
@given(
    steps=st.lists(st.tuples(st.floats(0, 30), st.integers(1, 40)), min_size=1, max_size=80),
    start_s=st.floats(0, 1e6),
)
def test_no_sixty_seconds_hold_more_than_the_limit(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[float, int]], start_s: float
) -> None:
    time = FakeTime(start_s)
    budget = budget_of(tmp_path_factory.mktemp("budget"), time, per_minute=100)
    spent: list[tuple[float, int]] = []
    for pause_s, weight in steps:
        time.now_s += pause_s
        asked_s = time.now_s
        budget.spend(weighing(weight))
        assert time.now_s - asked_s <= WINDOW_S + 1.001
        spent.append((time.now_s, weight))
    for begin_s, _ in spent:
        assert sum(weight for at_s, weight in spent if begin_s <= at_s < begin_s + WINDOW_S) <= 100


def test_the_wait_is_no_longer_than_it_takes_to_free_the_weight(tmp_path: Path) -> None:
    time = FakeTime(1_000.25)
    budget = budget_of(tmp_path, time)
    budget.spend(weighing(60))
    time.now_s = 1_010.0
    budget.spend(weighing(40))
    budget.spend(weighing(60))
    # The first 60 were spent in second 1000, whose last instant is 60 s old at 1061.
    assert time.now_s == pytest.approx(1_061.0)
    budget.spend(weighing(1))
    assert time.now_s == pytest.approx(1_071.0)


@settings(deadline=None, max_examples=30)
@given(weights=st.lists(st.integers(1, 12), min_size=1, max_size=60))
def test_a_budget_by_the_second_spends_no_more_in_any_of_them_but_a_single_heavier_request(
    tmp_path_factory: pytest.TempPathFactory, weights: list[int]
) -> None:
    time = FakeTime()
    budget = RateBudget(
        tmp_path_factory.mktemp("budget"), "stub", 1000, per_second=10, now=time.now, sleep=time.sleep
    )
    spent: dict[int, list[int]] = {}
    for weight in weights:
        budget.spend(weighing(weight))
        spent.setdefault(int(time.now_s), []).append(weight)
    assert all(sum(second) <= 10 or len(second) == 1 for second in spent.values())
    assert time.now_s - 1_000.25 <= len(weights)


def test_a_request_heavier_than_the_budget_is_an_error_and_not_an_endless_wait(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weighs 101.*raise the budget"):
        budget_of(tmp_path, FakeTime()).spend(weighing(101))
    with pytest.raises(ValueError, match="1 or more"):
        RateBudget(tmp_path, "stub", 0)


def test_the_used_weight_of_the_source_counts_when_it_is_higher_than_ours(tmp_path: Path) -> None:
    time = FakeTime()
    with StubServer(json_of(1, X_Used="70"), json_of(1, X_Used="3"), json_of(1, X_Used="?")) as stub:
        budget = budget_of(tmp_path, time)
        getter = Getter(stub.url, budget, time)
        for used in (70, 71, 72):
            getter.get()
            assert budget.used() == used
    assert time.slept == []


def test_two_processes_and_their_threads_together_spend_exactly_the_limit(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        2, mp_context=context, initializer=remember_barrier, initargs=(context.Barrier(2),)
    ) as processes:
        counts = list(processes.map(spend_with_threads, [tmp_path] * 2))
    assert sum(counts) == 1_000
    assert min(counts) >= 40


barriers: list[Barrier] = []


def remember_barrier(barrier: Barrier) -> None:
    barriers.append(barrier)


def spend_with_threads(folder: Path) -> int:
    budget = RateBudget(folder, "stub", 1_000, sleep=refuse_to_sleep)
    with ThreadPoolExecutor(4) as threads:
        # Both processes have spent something before either may spend the rest.
        first = sum(threads.map(lambda _: spend_until_full(budget, at_most=10), range(4)))
        barriers[0].wait(timeout=60)
        return first + sum(threads.map(lambda _: spend_until_full(budget, at_most=1_000), range(4)))


def spend_until_full(budget: RateBudget, at_most: int) -> int:
    n_spent = 0
    while n_spent < at_most:
        try:
            budget.spend(weighing(1))
        except WouldWait:
            break
        n_spent += 1
    return n_spent


def test_the_budget_file_is_locked_against_everybody_while_it_is_in_use(tmp_path: Path) -> None:
    n_looks = 0

    def look_from_outside() -> float:
        nonlocal n_looks
        with (tmp_path / "stub.budget").open("rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        n_looks += 1
        return 1_000.0

    budget = RateBudget(tmp_path, "stub", 100, now=look_from_outside)
    budget.spend(ASKED)
    budget.observe(5)
    budget.hold(0)
    budget.ban(0)
    assert budget.used() == 5
    assert n_looks == 5
    with (tmp_path / "stub.budget").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_was_spent_before_a_restart_of_the_machine_still_counts(tmp_path: Path) -> None:
    before = FakeTime(500_000.0)
    budget_of(tmp_path, before).spend(weighing(100))
    budget_of(tmp_path, before).ban(300)
    after = FakeTime(12.0)
    with pytest.raises(SourceRefused, match="300 s more"):
        budget_of(tmp_path, after).spend(weighing(1))
    after.now_s += 300
    budget_of(tmp_path, after).spend(weighing(100))
    assert after.slept == []

    again = FakeTime(3.0)
    budget_of(tmp_path, again).spend(weighing(1))
    assert again.now_s == pytest.approx(64.0)


@pytest.mark.parametrize("content", [b"x", b"budget0\n" + bytes(512), bytes(100_000)])
def test_an_unreadable_budget_file_counts_as_a_full_minute(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "stub.budget").write_bytes(content)
    time = FakeTime(1_000.0)
    budget_of(tmp_path, time).spend(weighing(1))
    assert time.now_s == pytest.approx(1_061.0)
    budget_of(tmp_path, time).spend(weighing(99))
    assert time.now_s == pytest.approx(1_061.0)


def test_budgets_of_different_names_do_not_share(tmp_path: Path) -> None:
    time = FakeTime()
    budget_of(tmp_path, time).spend(weighing(100))
    RateBudget(tmp_path, "other", 100, now=time.now, sleep=time.sleep).spend(weighing(100))
    assert time.slept == []
