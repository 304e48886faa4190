"""Crash consistency: however often a run is killed, running it again stores what an undisturbed run stores.

The victim dies as by ``kill -9``, right before a file operation that is drawn by chance from all it does.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import pytest

from crypto_assets.intervals import DAY_MS, HOUR_MS, to_ms
from crypto_assets.simulation.server import MarketServer
from crypto_assets.simulation.world import Restatement
from crypto_assets_tests.graph.harness import Platform, market_at
from crypto_assets_tests.graph.victim import NOW, kind_of

#: What is done for the first time only, in the order of a first run: these kills come first, one after the other.
FIRST_TIME = (
    "os.rename lake/TABLE/date=DAY/.tmp-HEX",
    "os.rename .warehouse.duckdb-HEX",
    "os.remove catalog/HEX.duckdb",
)
#: What every run does for every partition but those of raw, which it finds as they were.
EVERY_TIME = ("os.rename lake/TABLE/date=DAY/.tmp-HEX",)
N_RAW_PARTITIONS = 8

#: What a merge into a stored partition does: first the ledger says what changes, then the data file changes.
MERGE = tuple(
    f"{event} {folder}/.tmp-HEX"
    for folder in ("ledger/revisions/raw/klines/DAY", "lake/TABLE/date=DAY")
    for event in ("open", "os.rename")
)


class Order(Protocol):
    def __call__(
        self, name: str, operation: tuple[str, int] | None, again: list[str] | None = None
    ) -> dict[str, Any]: ...


@pytest.fixture
def market() -> Iterator[MarketServer]:
    with market_at(NOW) as server:
        yield server


@pytest.fixture
def victim(tmp_path: Path, market: MarketServer) -> Iterator[Order]:
    """Order runs from a process that may die, see ``victim.py``."""
    command = [sys.executable, "-m", "crypto_assets_tests.graph.victim", str(tmp_path)]
    process = subprocess.Popen(
        [*command, market.url, market.coingecko_url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    orders, answers = process.stdin, process.stdout
    assert orders is not None
    assert answers is not None

    def order(name: str, operation: tuple[str, int] | None, again: list[str] | None = None) -> dict[str, Any]:
        print(json.dumps([name, operation, again]), file=orders, flush=True)
        return json.loads(answers.readline())

    yield order
    orders.close()
    process.wait()


@pytest.mark.slow
def test_killed_runs_that_are_run_again_store_what_an_undisturbed_run_stores(
    victim: Order, tmp_path: Path
) -> None:
    chance = random.Random(9)
    calmly = victim("calm", None)
    assert calmly["whole"]
    done = Counter(calmly["done"])
    moments = [(kind, chance.randint(2, N_RAW_PARTITIONS - 2)) for kind in FIRST_TIME]
    moments += [(kind, chance.randint(1, done[kind] - N_RAW_PARTITIONS)) for kind in EVERY_TIME]
    for moment in moments:
        assert victim("killed", moment)["killed"], moment
    assert victim("killed", None)["whole"]
    calm, killed = (stored_in(tmp_path / name) for name in ("calm", "killed"))
    assert killed.partitions() == calm.partitions()
    assert kinds_of_files(killed.folder) == kinds_of_files(calm.folder)


@pytest.mark.slow
def test_a_kill_amid_a_merge_into_stored_days_loses_and_doubles_no_revision(
    victim: Order, market: MarketServer, tmp_path: Path
) -> None:
    again = ["raw/klines", "quality/revisions"]
    market.clock.set(NOW - timedelta(hours=2))
    assert victim("before", None, again)["whole"]
    before = stored_in(tmp_path / "before")
    # Both days are corrected, and the open one has two more hours.
    midnight, published = to_ms(NOW) // DAY_MS * DAY_MS, to_ms(NOW) - HOUR_MS
    for hour, n_trades in ((-3, 11), (-2, 12), (0, 13)):
        at = midnight + hour * HOUR_MS
        market.world.restate(Restatement("ETH/USDT", at, published, n_trades=n_trades))
    market.clock.set(NOW)
    shutil.copytree(before.folder, tmp_path / "calm", symlinks=True)
    calmly = victim("calm", None, again)
    assert calmly["whole"]
    calm = stored_in(tmp_path / "calm")
    revised = calm.rows("quality/revisions")
    assert revised.groupby("partition")["new_value"].agg(list).to_dict() == {
        "2024-01-31": ["11", "12"],
        "2024-02-01": ["13"],
    }
    assert len(calm.rows("raw/klines")) > len(before.rows("raw/klines"))
    assert {kind: calmly["done"].count(kind) for kind in MERGE} == dict.fromkeys(MERGE, 2)
    for moment in ((kind, number) for kind in MERGE for number in (1, 2)):
        name = f"killed {MERGE.index(moment[0])} {moment[1]}"
        shutil.copytree(before.folder, tmp_path / name, symlinks=True)
        assert victim(name, moment, again)["killed"], moment
        assert victim(name, None, again)["whole"], moment
        killed = stored_in(tmp_path / name)
        assert killed.partitions() == calm.partitions(), moment
        assert killed.rows("quality/revisions").equals(revised), moment
        assert kinds_of_files(killed.folder) == kinds_of_files(calm.folder), moment


def stored_in(folder: Path) -> Platform:
    return Platform(folder, "http://unused", "http://unused")


def kinds_of_files(folder: Path) -> Counter[str]:
    files = (path for path in folder.rglob("*") if not path.is_dir())
    return Counter(kind_of("file", str(path.relative_to(folder))) for path in files)
