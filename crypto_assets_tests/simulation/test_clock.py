from __future__ import annotations

import threading

from crypto_assets.simulation.clock import Clock, FakeSeconds, steady_seconds
from crypto_assets_tests.simulation.clients import at


def test_a_clock_stands_unless_it_has_a_speed() -> None:
    seconds = FakeSeconds(50.0)
    clock = Clock("2023-01-01T00:00:00", real_seconds=seconds)
    seconds.sleep(10)
    assert clock.now_ms() == at(2023, 1, 1)
    clock.set("2023-01-02", speed=60)
    seconds.sleep(2.5)
    assert clock.now_ms() == at(2023, 1, 2, 0, 2, 30)
    clock.set(at(2022, 1, 1))
    assert (clock.now_ms(), clock.speed) == (at(2022, 1, 1), 60)


def test_aware_and_naive_moments_mean_utc() -> None:
    assert Clock("2023-01-01T02:00:00+02:00").now_ms() == Clock("2023-01-01").now_ms() == at(2023, 1, 1)


def test_a_held_clock_moves_by_sleeping_alone_and_never_back() -> None:
    seconds = FakeSeconds(10.0)
    assert (seconds(), seconds()) == (10.0, 10.0)
    seconds.sleep(-5)
    seconds.reach(3)
    assert seconds() == 10.0
    seconds.reach(12)
    seconds.sleep(0.5)
    assert seconds() == 12.5


def test_threads_that_sleep_on_one_held_clock_lose_no_second() -> None:
    seconds = FakeSeconds(0.0)

    def sleep_often() -> None:
        for _ in range(200):
            seconds.sleep(1)

    threads = [threading.Thread(target=sleep_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 200 <= seconds() <= 800


def test_the_steady_clock_is_near_the_epoch_clock_and_does_not_stand() -> None:
    seconds = steady_seconds()
    first = seconds()
    assert first > 1_600_000_000
    while seconds() == first:
        pass
    assert seconds() > first
