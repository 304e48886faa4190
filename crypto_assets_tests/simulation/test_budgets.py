from __future__ import annotations

import pytest

from crypto_assets.simulation.budgets import Request, RequestLog, WeightMeter, budget_of
from crypto_assets.simulation.clock import FakeSeconds


def answered(
    log: RequestLog, path: str, status: int | None = 200, retry_after_s: float | None = None
) -> None:
    number, at_s = log.arrive()
    log.answer(Request("GET", path, {}, status, budget_of(path), at_s, number), retry_after_s)


@pytest.mark.parametrize(
    ("path", "budget"),
    [
        ("/api/v3/klines", "spot"),
        ("/fapi/v1/klines", "usdm"),
        ("/futures/data/openInterestHist", "usdm"),
        ("/data/futures/um/daily/klines/X/1m/X-1m-2024-01-01.zip", "archive"),
        ("/coingecko/api/v3/ping", "coingecko"),
        ("/bybit/v5/market/time", "bybit"),
    ],
)
def test_a_path_tells_whose_budget_it_spends(path: str, budget: str) -> None:
    assert budget_of(path) == budget


def test_silences_of_one_budget_add_up_and_leave_the_others_alone() -> None:
    seconds = FakeSeconds(0.0)
    log = RequestLog(seconds)
    answered(log, "/api/v3/time", 429, 5)
    answered(log, "/api/v3/time", 503, 10)
    seconds.sleep(9)
    answered(log, "/api/v3/time")
    answered(log, "/fapi/v1/time")
    seconds.sleep(1)
    answered(log, "/api/v3/time")
    assert [request.number for request in log.violations()] == [1, 2]


def test_a_request_that_was_there_before_the_order_is_no_violation() -> None:
    seconds = FakeSeconds(0.0)
    log = RequestLog(seconds)
    early = log.arrive()
    answered(log, "/api/v3/time", 429, 5)
    log.answer(Request("GET", "/api/v3/time", {}, 200, "spot", early[1], early[0]), None)
    assert log.violations() == []


def test_so_many_requests_may_have_been_on_their_way() -> None:
    log = RequestLog(FakeSeconds(0.0))
    answered(log, "/api/v3/time", 418, 5)
    for _ in range(3):
        answered(log, "/api/v3/time")
    assert [len(log.violations(n)) for n in range(4)] == [3, 2, 1, 0]


def test_as_many_again_may_have_begun_before_the_order_was_heard_but_no_later() -> None:
    log = RequestLog(FakeSeconds(0.0))
    answered(log, "/api/v3/time", 418, 5)
    for _ in range(5):
        answered(log, "/api/v3/time")
    assert [len(log.violations(n, hearing_s=60.0)) for n in range(4)] == [5, 3, 1, 0]
    assert [len(log.violations(n, hearing_s=0.0)) for n in range(4)] == [5, 4, 3, 2]


def test_an_answer_that_never_left_and_one_without_a_time_order_nothing() -> None:
    log = RequestLog(FakeSeconds(0.0))
    answered(log, "/api/v3/time", 429)
    answered(log, "/api/v3/time", None)
    answered(log, "/api/v3/time", 500)
    assert log.orders == []


def test_an_old_order_is_not_forgiven() -> None:
    log = RequestLog(FakeSeconds(0.0))
    answered(log, "/api/v3/time", 418)
    log.forgive(last_s=0)
    answered(log, "/api/v3/time")
    assert [(order.ban, order.until_s) for order in log.orders] == [(True, 120.0)]
    assert len(log.violations()) == 1


def test_a_meter_counts_in_windows_of_the_clock() -> None:
    seconds = FakeSeconds(1003.0)
    meter = WeightMeter(4, seconds, window_s=5)
    assert (meter.add(3), meter.exceeded, meter.seconds_left()) == (3, False, 2)
    assert (meter.add(2), meter.exceeded) == (5, True)
    seconds.sleep(2)
    assert (meter.add(1), meter.exceeded, meter.seconds_left()) == (1, False, 5)
    assert not WeightMeter(None, seconds).exceeded
