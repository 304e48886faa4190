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


@pytest.mark.parametrize(
    ("kind", "path", "fits"),
    [
        ("reset", "/api/v3/klines", True),
        ("wrong_checksum", "/data/a.zip", False),
        ("wrong_checksum", "/data/a.zip.CHECKSUM", True),
        ("truncated_zip", "/data/a.zip", True),
        ("truncated_zip", "/data/a.zip.CHECKSUM", False),
        ("corrupt_member", "/data/a.zip", True),
        ("corrupt_member", "/data/a.zip.CHECKSUM", True),
        ("corrupt_member", "/api/v3/klines", False),
    ],
)
def test_faults_of_files_meet_files_alone(kind: str, path: str, fits: bool) -> None:
    assert Fault(kind).fits(path) == fits


def test_a_fault_waits_for_a_request_that_it_fits() -> None:
    plan = FaultPlan()
    plan.inject("/", Fault("truncated_zip"), times=1, after=0)
    assert plan.due("/api/v3/time") is None
    assert plan.due("/data/a.zip") == Fault("truncated_zip")
    assert plan.due("/data/a.zip") is None
