"""A process that ingests and kills itself as ``kill -9`` would, right before a file operation with a given number.

Each line on its standard input orders one run; each is answered by ``killed``, ``done`` or the name of an error. Every
order is carried out by a fork, so that imports are paid once. Only ``test_hostile_market.py`` starts it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from datetime import datetime
from typing import Any

from crypto_assets.resources.sources import SourceError
from crypto_assets_tests.hostile.loader import Order, RemoteSeconds, load

_WATCHED = ("open", "os.rename", "os.remove", "os.mkdir", "os.symlink", "os.truncate", "os.link")
#: Where files of the table lie, and those of the ledger that explain them.
_EXPLAINED = f"{os.sep}raw{os.sep}klines{os.sep}"
#: Exit status of a run that a source ended.
_REFUSED = 3


def order_of(told: dict[str, Any]) -> Order:
    """An order as it came in a line."""
    window = tuple(datetime.fromisoformat(moment) for moment in told["window"])
    markets = tuple(tuple(market) for market in told["markets"])
    kinds = {name: tuple(kinds) for name, kinds in told["kinds"].items()}
    given: dict[str, Any] = {**told, "window": window, "markets": markets, "kinds": kinds}
    return Order(**given)


def _live(order: Order, number: int, *, in_place: bool) -> None:
    n_done = 0
    root = f"{order.folder}{os.sep}"

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal n_done
        if event not in _WATCHED or not str(arguments[0]).startswith(root):
            return
        if not in_place or (event == "os.rename" and _EXPLAINED in str(arguments[1])):
            n_done += 1
            if n_done == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    seconds = RemoteSeconds(order.url)
    load(order, seconds, seconds.sleep)


def main() -> None:
    """Carry out orders until the input ends."""
    import ccxt  # noqa: F401 - so that no fork has to

    for line in sys.stdin:
        told, number, in_place = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _live(order_of(told), number, in_place=in_place)
                status = 0
            except SourceError:
                status = _REFUSED
            except KeyboardInterrupt:
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            answer = "killed"
        else:
            answer = {0: "done", _REFUSED: "refused"}.get(os.WEXITSTATUS(status), "broken")
        print(answer, flush=True)


if __name__ == "__main__":
    main()
