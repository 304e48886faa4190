"""Crash consistency: however often a run is killed, running it again stores what an undisturbed run stores.

The victim dies as by ``kill -9``, right before a file operation that is drawn by chance from all it does.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

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

Order = Callable[[str, tuple[str, int] | None], dict[str, Any]]


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Order]:
    """Order runs from a process that may die: the name of a warehouse, and before which operation to die."""
    with market_at(NOW) as market:
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

        def order(name: str, operation: tuple[str, int] | None) -> dict[str, Any]:
            print(json.dumps([name, operation]), file=orders, flush=True)
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
    calm, killed = (
        Platform(tmp_path / name, "http://unused", "http://unused") for name in ("calm", "killed")
    )
    assert killed.partitions() == calm.partitions()
    assert kinds_of_files(killed.folder) == kinds_of_files(calm.folder)


def kinds_of_files(folder: Path) -> Counter[str]:
    files = (path for path in folder.rglob("*") if not path.is_dir())
    return Counter(kind_of("file", str(path.relative_to(folder))) for path in files)
