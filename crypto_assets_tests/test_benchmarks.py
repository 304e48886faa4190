"""The benchmarks' gates: right rows pass, one wrong value does not. No time is asserted anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.contenders import CONTENDERS
from benchmarks.contest import START_MS, STEP_MS, Found, Report, Task, found_in, measured
from benchmarks.gates import Ratio, WrongRows, check_rows, check_sums, ratio_of
from benchmarks.ingest import fetch_files
from benchmarks.market import NOW_MS, files_of, make_world, sums_of, truth_of
from benchmarks.memory import load_from_archive, stored_in
from crypto_assets.intervals import DAY_MS, from_ms
from crypto_assets.simulation.bars import UNITS, VOLUME_BASE
from crypto_assets.simulation.server import MarketServer
from crypto_assets.simulation.world import Restatement

ROOT = Path(__file__).resolve().parents[1]
MARKETS = {"BTC/USDT": "BTCUSDT"}
SERIES = [("BTC/USDT", "BTCUSDT", "spot"), ("BTC/USDT:USDT", "BTCUSDT", "perpetual")]
END_MS = START_MS + 2 * DAY_MS
TRUTH = truth_of(make_world(), list(MARKETS), START_MS, END_MS)


@pytest.fixture(scope="module")
def sound() -> Iterator[str]:
    with MarketServer(make_world(), clock=from_ms(NOW_MS)) as server:
        yield server.url


@pytest.fixture(scope="module")
def wrong() -> Iterator[str]:
    """An exchange that differs from the truth in one volume of one candle, by the smallest amount there is."""
    world = make_world()
    at_ms = START_MS + 777 * STEP_MS
    for symbol, *_ in SERIES:
        more = int(world.final_bars(symbol, "1m", at_ms, at_ms + 1).values[VOLUME_BASE][0]) + 1
        told = f"{more // UNITS}.{more % UNITS:08d}"
        world.restate(Restatement(symbol, at_ms, START_MS + DAY_MS, volume_base=told))
    with MarketServer(world, clock=from_ms(NOW_MS)) as server:
        yield server.url


def run(name: str, url: str, folder: Path) -> Report:
    files = files_of(MARKETS, START_MS, END_MS)
    fetch_files(url, files, folder / "files")
    task = Task(url, str(folder), MARKETS, START_MS, END_MS, files, str(folder / "files"))
    contender, packages = CONTENDERS[name]
    return measured(contender, task, packages)


@pytest.mark.parametrize("name", CONTENDERS)
def test_a_contender_has_the_rows_of_the_exchange_and_used_the_processor(
    name: str, sound: str, tmp_path: Path
) -> None:
    report = run(name, sound, tmp_path)
    check_rows(name, report.found, TRUTH)
    assert report.n_rows == 2 * 1440
    assert report.cpu_s > 0


@pytest.mark.parametrize("name", CONTENDERS)
def test_one_wrong_digit_of_one_candle_fails_a_contender(name: str, wrong: str, tmp_path: Path) -> None:
    report = run(name, wrong, tmp_path)
    assert report.n_rows == 2 * 1440
    with pytest.raises(WrongRows, match="not those of the exchange"):
        check_rows(name, report.found, TRUTH)


def test_lost_added_and_swapped_rows_fail() -> None:
    opens = array("q", range(START_MS, START_MS + 4 * STEP_MS, STEP_MS))
    prices = array("d", [1.0, 2.0, 3.0, 4.0])
    truth = {"X": found_in([opens, *[prices] * 5])}
    check_rows("same", {"X": found_in([opens, *[prices] * 5])}, truth)
    with pytest.raises(WrongRows, match="3 rows of X, the exchange has 4"):
        check_rows("lost", {"X": found_in([opens[:3], *[prices[:3]] * 5])}, truth)
    with pytest.raises(WrongRows, match="5 rows of X, the exchange has 4"):
        check_rows("doubled", {"X": found_in([opens + opens[3:], *[prices + prices[3:]] * 5])}, truth)
    with pytest.raises(WrongRows, match="not those of the exchange"):
        check_rows("swapped", {"X": found_in([opens[::-1], *[prices[::-1]] * 5])}, truth)
    with pytest.raises(WrongRows, match=r"\['Y'\] where \['X'\]"):
        check_rows("another", {"Y": truth["X"]}, truth)


def test_columns_of_different_lengths_are_no_rows() -> None:
    with pytest.raises(ValueError, match="one length"):
        found_in([array("q", [1, 2]), *[array("d", [1.0])] * 5])


def test_a_gate_without_rows_is_no_gate() -> None:
    for truth in ({}, {"X": Found(0, "")}):
        with pytest.raises(WrongRows, match="nothing was asked for"):
            check_rows("none", truth, truth)
    with pytest.raises(WrongRows, match="nothing was asked for"):
        check_sums("none", {}, {})


def test_the_loaded_warehouse_has_the_rows_of_the_exchange(sound: str, tmp_path: Path) -> None:
    load_from_archive(sound, tmp_path, SERIES, START_MS, END_MS)
    stored = stored_in(tmp_path)
    truth = sums_of(make_world(), [symbol for symbol, *_ in SERIES], START_MS, END_MS)
    check_sums("load", stored, truth)
    assert [n_rows for n_rows, *_ in stored.values()] == [2 * 1440] * 2
    shorter = {symbol: [n_rows - 1, *sums] for symbol, (n_rows, *sums) in stored.items()}
    with pytest.raises(WrongRows, match="BTC/USDT has rows"):
        check_sums("lost", shorter, truth)
    with pytest.raises(WrongRows, match="where"):
        check_sums("one only", {"BTC/USDT": stored["BTC/USDT"]}, truth)


def test_one_wrong_digit_in_a_loaded_warehouse_fails(wrong: str, tmp_path: Path) -> None:
    load_from_archive(wrong, tmp_path, SERIES, START_MS, END_MS)
    truth = sums_of(make_world(), [symbol for symbol, *_ in SERIES], START_MS, END_MS)
    with pytest.raises(WrongRows, match="the exchange"):
        check_sums("load", stored_in(tmp_path), truth)


def test_a_ratio_compares_the_best_rounds_and_the_median_round() -> None:
    report = Report(1.0, {"X": Found(100, "")}, {})
    ours = [replace(report, cpu_s=seconds) for seconds in (1.0, 2.0, 4.0)]
    theirs = [replace(report, cpu_s=seconds) for seconds in (6.0, 3.0, 8.0)]
    assert ratio_of(ours, theirs) == Ratio(best=3.0, median=2.0)
    with pytest.raises(ValueError, match="rounds must be the same"):
        ratio_of(ours, theirs[:2])


@pytest.mark.slow
def test_a_quick_run_writes_its_results_with_what_they_were_measured_on(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/ingest.py", "--quick", "--no-peers", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--results", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("rest", "archive"):
        told = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
        assert {"cpu", "python", "load_average"} <= told["machine"].keys()
        for contest in told["contests"]:
            ours, *others = contest["contenders"]
            assert len(ours["rounds"]) == 1
            for other in others:
                assert (other["ratio"]["best"] > 0) if not other["out"] else "--no-peers" in other["out"]
    loads = json.loads((tmp_path / "memory.json").read_text(encoding="utf-8"))["loads"]
    assert [load["n_rows"] for load in loads] == [2 * 1440, 4 * 1440]
    assert all(load["peak_bytes"] > load["before_bytes"] > 0 for load in loads)
