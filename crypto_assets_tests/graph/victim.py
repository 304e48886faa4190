"""A process that materializes the graph and kills itself as ``kill -9`` would, right before a chosen file operation.

Run with a folder and the market's addresses as arguments. Each line on its standard input orders one run: the name of
the warehouse, the kind of the operation with its number among its kind (null: live on), and the stages or tables to
read again from the sources although they are covered (null: build the graph). Each is answered by a line that says
whether it was killed, else what it did. Every order is carried out by a fork, so that imports are paid once. Only
``test_kill.py`` starts it.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import sys
import traceback
from datetime import date, datetime
from pathlib import Path

from crypto_assets.resources.warehouse.io_manager import WarehouseResource
from crypto_assets_tests.graph.harness import Platform, steps

FIRST = date(2024, 1, 31)
NOW = datetime(2024, 2, 1, 4, 10)
_WATCHED = ("open", "os.rename", "os.remove", "os.mkdir", "os.symlink", "os.truncate", "os.link")


def kind_of(event: str, path: str) -> str:
    """The operation with whatever is particular to one table, partition or run taken out of its path."""
    general = re.sub(r"[0-9a-f]{8,}(-[0-9a-f]{8})?", "HEX", re.sub(r"\d{4}-\d\d-\d\d", "DAY", path))
    return f"{event} " + re.sub(r"^(lake|\.locks)/[a-z]+/[a-z_]+", r"\1/TABLE", general)


def live(
    folder: Path, addresses: tuple[str, str], wanted: tuple[str, int] | None, again: list[str] | None
) -> list[str]:
    """Build the graph, or some of it with all bars asked for again; die before the chosen operation.

    Returns the operations in order.
    """
    done: list[str] = []
    root = f"{folder}{os.sep}"

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event not in _WATCHED or not str(arguments[0]).startswith(root):
            return
        done.append(kind_of(event, str(arguments[0]).removeprefix(root)))
        if wanted and done[-1] == wanted[0] and done.count(wanted[0]) == wanted[1]:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    if again is not None:
        # Of the fork alone: nothing counts as covered, so that a restated bar comes again.
        WarehouseResource.covered = lambda *_: {}
    Platform(folder, *addresses).build(NOW, first=FIRST, only=again)
    return done


def _die_after(
    folder: Path,
    addresses: tuple[str, str],
    wanted: tuple[str, int] | None,
    again: list[str] | None,
    write: int,
) -> None:
    status = 1
    try:
        done = live(folder, addresses, wanted, again)
        with os.fdopen(write, "w") as answer:
            json.dump(done, answer)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # Without the parent's clean-up at exit, which is not the fork's to do.
        os._exit(status)


def main() -> None:
    """Carry out orders until the input ends."""
    folder, *rest = sys.argv[1:]
    addresses = (rest[0], rest[1])
    for module in ("ccxt", "lightgbm", "matplotlib.pyplot", "pycoingecko", "pypfopt", "dbt.cli.main"):
        importlib.import_module(module)
    steps()
    for line in sys.stdin:
        name, wanted, again = json.loads(line)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            _die_after(Path(folder) / name, addresses, wanted and (wanted[0], wanted[1]), again, write)
        os.close(write)
        with os.fdopen(read) as answer:
            done = answer.read()
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        whole = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
        print(json.dumps({"killed": killed, "whole": whole, "done": json.loads(done or "[]")}), flush=True)


if __name__ == "__main__":
    main()
