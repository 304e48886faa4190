from __future__ import annotations

import pytest

from crypto_assets.simulation.faults import Fault, FaultPlan, slow, status


def test_a_fault_is_made_from_a_name_or_a_mapping() -> None:
    assert Fault.of("reset") == Fault("reset")
    assert Fault.of({"kind": "status", "status": 429, "retry_after": 7}) == status(429, 7)
    assert Fault.of(slow(0.5)).seconds == 0.5


@pytest.mark.parametrize(
    "description",
    [
        "gone",
        {"status": 429},
        {"kind": "reset", "colour": "red"},
        {"kind": "status"},
        {"kind": "reset", "status": 500},
    ],
)
def test_a_fault_that_means_nothing_is_refused(description: str | dict[str, object]) -> None:
    with pytest.raises(ValueError, match="fault"):
        Fault.of(description)


def test_a_success_is_no_error_status() -> None:
    with pytest.raises(ValueError, match="200"):
        status(200)


def test_faults_are_counted_and_meet_requests_in_the_order_of_injection() -> None:
    plan = FaultPlan()
    plan.inject("/api/v3/klines", Fault("reset"), times=2, after=1)
    plan.inject("/api", Fault("empty_200"), times=1, after=0)
    asked = [
        "/api/v3/time",
        "/api/v3/klines",
        "/api/v3/klines",
        "/api/v3/time",
        "/api/v3/klines",
        "/api/v3/klines",
    ]
    met = [fault.kind if (fault := plan.due(path)) else None for path in asked]
    assert met == ["empty_200", None, "reset", None, "reset", None]


def test_forgotten_faults_meet_nothing() -> None:
    plan = FaultPlan()
    plan.inject("/", Fault("reset"), times=5, after=0)
    plan.clear()
    assert plan.due("/api/v3/time") is None


def test_a_fault_needs_a_request_to_meet() -> None:
    with pytest.raises(ValueError, match="times 0"):
        FaultPlan().inject("/", Fault("reset"), times=0, after=0)
