"""The hostile market: what goes wrong is drawn from a seed, and a client that does everything right ends with the truth."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable
from hashlib import sha256

import numpy as np
import orjson
import pytest
import requests

from crypto_assets.intervals import DAY_MS, HOUR_MS
from crypto_assets.simulation.bars import (
    CLOSE,
    HIGH,
    LOW,
    OPEN,
    TAKER_BASE,
    VOLUME_BASE,
    VOLUME_QUOTE,
    Bars,
    bar_end,
)
from crypto_assets.simulation.clock import FakeSeconds
from crypto_assets.simulation.faults import Fault, slow, status
from crypto_assets.simulation.hostile import FAULT_RATES, HostilePlan
from crypto_assets.simulation.hostile_world import Defect, DefectKind, HostileWorld
from crypto_assets.simulation.recorded import RecordedWorld
from crypto_assets.simulation.server import MarketServer
from crypto_assets.simulation.synthetic import SyntheticWorld
from crypto_assets.simulation.world import Kind, World
from crypto_assets_tests.simulation.clients import at

START = at(2024, 11, 20)
END = START + 30 * DAY_MS
NOW = at(2024, 12, 12, 7, 30)
PAIR, CONTRACT = "BTC/USDT", "BTC/USDT:USDT"
KLINES = "/api/v3/klines"


def hourly(end_ms: int = END) -> SyntheticWorld:
    return SyntheticWorld(7, START, end_ms, "1h")


def plan_of(seed: int, kinds: list[DefectKind] | None = None, **options: object) -> HostilePlan:
    chosen: dict = {"symbols": [PAIR, CONTRACT], "defect_frac": 0.3, "fault_rates": {}} | options
    if kinds is not None:
        chosen["kinds"] = kinds
    return HostilePlan(seed, hourly(), **chosen)


def of_pair(plan: HostilePlan, *kinds: DefectKind) -> list[Defect]:
    return [d for d in plan.defects if d.symbol == PAIR and d.kind in kinds]


def ask(url: str, params: dict[str, str | int], wait: Callable[[float], None]) -> bytes:
    """Ask until a sound answer comes; waits as told. A body is sound when the caller can use it."""
    for _ in range(50):
        try:
            answer = requests.get(url, params, timeout=5)
        except requests.exceptions.RequestException:
            continue
        if "Retry-After" in answer.headers or answer.status_code == 418:
            wait(float(answer.headers.get("Retry-After", 120)))
        elif answer.status_code == 200:
            return answer.content
    raise AssertionError(f"no answer from {url}")


def json_rows(url: str, params: dict[str, str | int], wait: Callable[[float], None]) -> list[list]:
    for _ in range(50):
        try:
            rows = orjson.loads(ask(url, params, wait))
        except orjson.JSONDecodeError:
            continue
        if isinstance(rows, list):
            return rows
    raise AssertionError(f"no rows from {url}")


def read_pages(
    url: str, end_ms: int, wait: Callable[[float], None], limit: int = 37
) -> tuple[dict[int, list], list[int], set[int]]:
    """Read a series as a client should: the last row of a time wins; also the times seen twice and off the grid."""
    kept: dict[int, list] = {}
    twice: list[int] = []
    start = START
    while start <= end_ms:
        rows = json_rows(
            url,
            {"symbol": "BTCUSDT", "interval": "1h", "startTime": start, "endTime": end_ms, "limit": limit},
            wait,
        )
        for row in rows:
            if row[0] in kept:
                twice.append(row[0])
            kept[row[0]] = row
        if len(rows) < limit:
            break
        start = rows[-1][0] + 1
    closed = {ts: row for ts, row in kept.items() if ts + HOUR_MS <= NOW}
    odd = {ts for ts in closed if ts % HOUR_MS}
    return {ts: row for ts, row in closed.items() if ts not in odd}, twice, odd


def checked_csv(body: bytes, digest: bytes) -> str | None:
    """Return the member of a zip that is as its checksum says, and sound: both may be damaged alike."""
    if sha256(body).hexdigest().encode() != digest:
        return None
    try:
        return zipfile.ZipFile(io.BytesIO(body)).read("BTCUSDT-1h-2024-11.csv").decode()
    except (zipfile.BadZipFile, zlib.error):
        return None


def assert_equal_to_truth(rows: dict[int, list], truth: Bars) -> None:
    assert list(rows) == truth.open_ms.tolist()
    columns = {1: OPEN, 2: HIGH, 3: LOW, 4: CLOSE, 5: VOLUME_BASE, 7: VOLUME_QUOTE, 9: TAKER_BASE}
    for at_wire, at_values in columns.items():
        got = [round(float(row[at_wire]) * 1e8) for row in rows.values()]
        np.testing.assert_allclose(got, truth.values[at_values].astype(float), rtol=1e-15)
    assert [row[6] for row in rows.values()] == truth.close_ms.tolist()


def test_a_hostile_world_hands_on_everything_that_a_world_may_say() -> None:
    said = {
        name
        for world in (SyntheticWorld, RecordedWorld)
        for name in vars(world)
        if hasattr(World, name) and not name.startswith("_")
    }
    assert said <= set(vars(HostileWorld))


def test_a_plan_is_a_function_of_its_seed() -> None:
    assert plan_of(1).defects == plan_of(1).defects != plan_of(2).defects
    kinds = {defect.kind for defect in plan_of(1).defects}
    assert kinds == {"gap", "late", "off_grid", "duplicate", "stale_duplicate", "restated"}
    assert {d.series for d in plan_of(1).defects if d.symbol == CONTRACT} == {"trade", "mark", "premium"}
    assert {d.symbol for d in plan_of(1).defects} == {PAIR, CONTRACT}


def test_the_past_does_not_know_how_far_the_world_reaches() -> None:
    short, long = (
        HostilePlan(1, hourly(end_ms), symbols=[PAIR], defect_frac=0.3).defects
        for end_ms in (END, END + 9 * DAY_MS)
    )
    # The last block of the short world is spared as its end.
    until = END - 8 * HOUR_MS
    assert [d for d in short if d.ts_ms < until] == [d for d in long if d.ts_ms < until] != []


def test_the_world_beneath_is_not_changed_and_other_markets_stay_sound() -> None:
    inner = hourly()
    before = inner.final_bars(PAIR, "1h", START, END).values.copy()
    plan = HostilePlan(1, inner, symbols=[PAIR], defect_frac=1)
    assert (inner.final_bars(PAIR, "1h", START, END).values == before).all()
    assert inner.restatements == []
    sound, served = (
        world.klines("ETH/USDT", "1h", now_ms=NOW, limit=5000).values for world in (inner, plan.world)
    )
    assert (sound == served).all()


def test_the_same_question_has_the_same_answer() -> None:
    plan = plan_of(3)
    first, second = (plan.world.klines(PAIR, "1h", now_ms=NOW, limit=500) for _ in range(2))
    assert (first.open_ms == second.open_ms).all() and (first.values == second.values).all()


def test_a_gap_has_no_candles_at_any_time() -> None:
    plan = plan_of(1, ["gap"])
    gaps = of_pair(plan, "gap")
    assert {(gap.end_ms - gap.ts_ms) // HOUR_MS for gap in gaps} == {1, 2, 3}
    for gap in gaps:
        assert not len(plan.world.window(PAIR, "1h", gap.ts_ms, gap.end_ms, END))
        assert len(plan.world.window(PAIR, "1h", gap.ts_ms - HOUR_MS, gap.end_ms + HOUR_MS, END)) == 2
    told = {ts for gap in gaps for ts in range(gap.ts_ms, gap.end_ms, HOUR_MS)}
    inner = HostilePlan(1, hourly(), defect_frac=0)
    own = inner.missing(PAIR, "trade", "1h", START, END, END)
    # Not even the world without a plan is whole: it has an outage.
    assert set(plan.missing(PAIR, "trade", "1h", START, END, END)) == told | set(own)


def test_a_run_off_the_grid_returns_to_it() -> None:
    plan = plan_of(1, ["off_grid"])
    for odd in of_pair(plan, "off_grid"):
        (bar,) = [plan.world.window(PAIR, "1h", odd.ts_ms, odd.ts_ms + 1, END)]
        floor = odd.ts_ms - odd.ts_ms % HOUR_MS
        sound = plan.world.inner.final_bars(PAIR, "1h", floor, floor + 1)
        assert odd.ts_ms != floor
        assert bar.values.tolist() == sound.values.tolist()
        assert bar.close_ms[0] == odd.end_ms - 1
        assert not len(plan.truth(PAIR, "trade", "1h", floor, odd.end_ms, END).between(floor, floor + 1))
    whole = plan.world.window(PAIR, "1h", START, END, END)
    assert (np.diff(whole.open_ms) > 0).all()
    assert (whole.close_ms[:-1] < whole.open_ms[1:]).all()


def test_a_late_candle_comes_when_it_is_published() -> None:
    plan = plan_of(1, ["late"])
    for late in of_pair(plan, "late"):
        assert late.published_ms is not None
        span = (late.ts_ms, late.end_ms)
        before, after = (
            plan.truth(PAIR, "trade", "1h", *span, moment)
            for moment in (late.published_ms - 1, late.published_ms)
        )
        sound = plan.world.inner.final_bars(PAIR, "1h", *span)
        assert len(before) == 0
        assert (after.values == sound.values).all() and (after.n_trades == sound.n_trades).all()


@pytest.mark.parametrize(("symbol", "series"), [(PAIR, "trade"), (CONTRACT, "mark"), (CONTRACT, "premium")])
def test_a_restated_candle_is_another_sound_one(symbol: str, series: Kind) -> None:
    plan = plan_of(1, ["restated"])
    restated = [d for d in plan.defects if (d.symbol, d.series) == (symbol, series)]
    assert restated
    for defect in restated:
        assert defect.published_ms is not None
        old, new = (
            plan.truth(symbol, series, "1h", defect.ts_ms, defect.end_ms, moment)
            for moment in (defect.published_ms - 1, defect.published_ms)
        )
        assert (old.values != new.values).any()
        opened, high, low, close = new.values[: CLOSE + 1, 0]
        assert low <= min(opened, close) <= max(opened, close) <= high
        assert (new.values[VOLUME_BASE] > old.values[VOLUME_BASE]).all() == (series == "trade")


def test_a_doubled_candle_comes_as_it_looked_and_then_as_it_is() -> None:
    plan = plan_of(1, ["duplicate", "stale_duplicate"])
    page = plan.world.klines(PAIR, "1h", now_ms=NOW, limit=1000, start_ms=START)
    truth = plan.truth(PAIR, "trade", "1h", START, NOW, NOW)
    doubled = {d.ts_ms: d.kind for d in of_pair(plan, "duplicate", "stale_duplicate") if d.end_ms <= NOW}
    pairs = np.flatnonzero(page.open_ms[1:] == page.open_ms[:-1])
    assert page.open_ms[pairs].tolist() == list(doubled)
    for older in pairs.tolist():
        same = bool((page.values[:, older] == page.values[:, older + 1]).all())
        assert same == (doubled[int(page.open_ms[older])] == "duplicate")
        assert page.values[HIGH, older] <= page.values[HIGH, older + 1]
        assert page.values[VOLUME_BASE, older] <= page.values[VOLUME_BASE, older + 1]
    newest = np.r_[page.open_ms[1:] != page.open_ms[:-1], True] & (bar_end(page.open_ms, "1h") <= NOW)
    assert (page.take(newest).values == truth.values).all()


@pytest.mark.parametrize("limit", range(1, 12))
def test_no_page_ends_between_the_two_rows_of_a_candle(limit: int) -> None:
    plan = plan_of(4, ["stale_duplicate"], defect_frac=1)
    truth = plan.truth(PAIR, "trade", "1h", START, START + 2 * DAY_MS, NOW)
    start, seen = START, {}
    while start < START + 2 * DAY_MS:
        page = plan.world.klines(
            PAIR, "1h", now_ms=NOW, limit=limit, start_ms=start, end_ms=START + 2 * DAY_MS - 1
        )
        assert len(page) <= limit
        seen |= {ts: page.values[:, i].tolist() for i, ts in enumerate(page.open_ms.tolist())}
        if len(page) < limit:
            break
        start = int(page.open_ms[-1]) + 1
    assert seen == dict(zip(truth.open_ms.tolist(), truth.values.T.tolist(), strict=True))
    backwards = plan.world.klines(PAIR, "1h", now_ms=NOW, limit=limit, end_ms=START + DAY_MS)
    assert len(backwards) == limit and backwards.open_ms[-1] == START + DAY_MS


def test_longer_intervals_follow_from_the_spoiled_ones_and_double_nothing() -> None:
    plan = plan_of(4, ["stale_duplicate"], defect_frac=1)
    day = plan.world.klines(PAIR, "1d", now_ms=NOW, limit=3, start_ms=START)
    sound = plan.world.inner.klines(PAIR, "1d", now_ms=NOW, limit=3, start_ms=START)
    assert (day.values == sound.values).all()
    gap = of_pair(plan_of(4, ["gap"]), "gap")[0]
    spoiled, whole = (
        world.klines(PAIR, "1d", now_ms=END, limit=1, start_ms=gap.ts_ms // DAY_MS * DAY_MS)
        for world in (plan_of(4, ["gap"]).world, plan.world)
    )
    assert spoiled.values[VOLUME_BASE, 0] < whole.values[VOLUME_BASE, 0]


def test_faults_are_a_function_of_seed_and_number_and_come_at_their_rates() -> None:
    plans = [HostilePlan(seed, hourly(), symbols=[PAIR], most_in_a_row=10) for seed in (5, 5, 6)]
    drawn, again, other = ([plan.fault(n, KLINES) for n in range(4000)] for plan in plans)
    assert drawn == again != other
    for fault, rate in FAULT_RATES.items():
        expected = 4000 * rate * fault.fits(KLINES)
        assert abs(drawn.count(fault) - expected) <= 4 * np.sqrt(expected) + 1
    files = [plans[0].fault(n, "/data/x.zip") for n in range(4000)]
    assert Fault("truncated_zip") in files and Fault("wrong_checksum") not in files


def test_a_request_is_spared_after_so_many_faults() -> None:
    plan = plan_of(5, fault_rates={status(500): 1.0}, most_in_a_row=2)
    assert [plan.fault(n, KLINES) for n in range(4)] == [status(500), status(500), None, None]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"defect_frac": 1.5}, "defect_frac"),
        ({"fault_rates": {Fault("reset"): 0.6, status(500): 0.6}}, "fault rates"),
        ({"fault_rates": {Fault("reset"): -0.1}}, "fault rates"),
        ({"kinds": ["hole"]}, "hole"),
        ({"kinds": []}, "at least one"),
        ({"symbols": ["NOPE/USDT"]}, "NOPE"),
    ],
)
def test_a_plan_that_means_nothing_is_refused(options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        HostilePlan(1, hourly(), **options)


RATES = {fault: 2 * rate for fault, rate in FAULT_RATES.items() if fault.kind != "slow"}
RATES |= {slow(0.001): 0.02, status(418): 0.01}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("path", "symbol", "series"),
    [
        (KLINES, PAIR, "trade"),
        ("/fapi/v1/klines", CONTRACT, "trade"),
        ("/fapi/v1/markPriceKlines", CONTRACT, "mark"),
    ],
)
def test_a_client_that_does_everything_right_ends_with_the_truth(
    seed: int, path: str, symbol: str, series: Kind
) -> None:
    plan = plan_of(seed, fault_rates=RATES)
    seconds = FakeSeconds()
    with MarketServer(plan.world, clock=NOW, hostile=plan, real_seconds=seconds) as market:
        rows, twice, odd = read_pages(market.url + path, NOW, seconds.sleep)
        assert market.violations() == []
        assert {request.status for request in market.requests} > {200}
    assert_equal_to_truth(rows, plan.truth(symbol, series, "1h", START, NOW, NOW))
    mine = [d for d in plan.defects if (d.symbol, d.series) == (symbol, series)]
    assert odd == {d.ts_ms for d in mine if d.kind == "off_grid" and d.ts_ms + HOUR_MS <= NOW}
    # A pair at the end of a page comes as one row, so not every doubled candle need be seen.
    assert set(twice) == {d.ts_ms for d in plan.served}
    assert plan.served <= {d for d in mine if d.kind in ("duplicate", "stale_duplicate")}


def test_a_client_that_does_not_wait_is_found_out() -> None:
    plan = plan_of(1, fault_rates=RATES)
    seconds = FakeSeconds()
    with MarketServer(plan.world, clock=NOW, hostile=plan, real_seconds=seconds) as market:
        read_pages(market.url + KLINES, NOW, lambda silence_s: seconds.sleep(silence_s - 0.5), limit=5)
        assert market.violations()


@pytest.mark.parametrize("seed", range(4))
def test_the_archive_tells_the_same_truth(seed: int) -> None:
    plan = plan_of(seed, fault_rates=RATES)
    seconds = FakeSeconds()
    path = "/data/spot/monthly/klines/BTCUSDT/1h/BTCUSDT-1h-2024-11.zip"
    with MarketServer(plan.world, clock=NOW, hostile=plan, real_seconds=seconds) as market:
        csv = None
        while csv is None:
            told = ask(f"{market.url}{path}.CHECKSUM", {}, seconds.sleep)[:64]
            csv = checked_csv(ask(market.url + path, {}, seconds.sleep), told)
        assert market.violations() == []
    rows: list[list] = [
        [int(cell) if i in (0, 6) else cell for i, cell in enumerate(line.split(","))] for line in csv.split()
    ]
    twice = [row[0] for row, after in zip(rows, rows[1:], strict=False) if row[0] == after[0]]
    on_grid = {row[0]: row for row in rows if row[0] % HOUR_MS == 0}
    assert_equal_to_truth(on_grid, plan.truth(PAIR, "trade", "1h", START, at(2024, 12, 1), NOW))
    assert twice == [
        d.ts_ms for d in of_pair(plan, "duplicate", "stale_duplicate") if d.ts_ms < at(2024, 12, 1)
    ]
    assert {d.ts_ms for d in plan.served} == set(twice)


def test_a_range_beside_the_damage_is_a_sound_answer() -> None:
    plan = plan_of(1)
    path = "/data/spot/monthly/klines/BTCUSDT/1h/BTCUSDT-1h-2024-11.zip"
    with MarketServer(plan.world, clock=NOW, hostile=plan) as market:
        market.inject(path, "corrupt_member", times=2)
        requests.get(market.url + path, timeout=5)
        assert plan.served == set()
        requests.get(market.url + path, headers={"Range": "bytes=-100"}, timeout=5)
        assert plan.served != set()


def test_open_candles_are_served_as_they_look_and_are_no_part_of_the_truth() -> None:
    plan = plan_of(1, defect_frac=0)
    newest = plan.world.klines(PAIR, "1h", now_ms=NOW, limit=1)
    assert newest.open_ms[0] == NOW // HOUR_MS * HOUR_MS
    truth = plan.truth(PAIR, "trade", "1h", START, END, NOW)
    assert truth.open_ms[-1] == newest.open_ms[0] - HOUR_MS
