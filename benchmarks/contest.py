"""What a contender is given and what it reports: the task, processor seconds, a digest of its rows.

Here: what both sides of a pipe need. Not here: any contender (``contenders``, ``peers``) and any judgement (``gates``).
Only the standard library, because contenders live in environments of their own.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

#: What is loaded begins here: midnight of 2023-01-01.
START_MS = 1_672_531_200_000
INTERVAL = "1m"
STEP_MS = 60_000
#: Rows of one full answer of the exchange.
PAGE_ROWS = 1000

#: Six arrays of 8-byte numbers: open time (epoch milliseconds, int64), open, high, low, close, base volume (float64).
Columns = Sequence[Any]


@dataclass(frozen=True)
class Task:
    """What every contender of a benchmark has to load.

    Attributes
    ----------
    url
        Address of the simulated exchange.
    folder
        An empty folder of the contender's own.
    markets
        Symbol -> the exchange's own name.
    start_ms, end_ms
        Candles that open in [start_ms, end_ms).
    files
        Symbol -> paths of its archive's files.
    file_folder
        Where these files lie, with their checksums, for contenders that read them from disk.
    """

    url: str
    folder: str
    markets: dict[str, str]
    start_ms: int
    end_ms: int
    files: dict[str, list[str]] = field(default_factory=dict)
    file_folder: str = ""


@dataclass(frozen=True)
class Found:
    """The rows of one symbol: how many, and a digest of their open times, prices and base volumes."""

    n_rows: int
    digest: str


@dataclass(frozen=True)
class Report:
    """What a contender did: processor seconds of all its threads, and what it has by symbol."""

    cpu_s: float
    found: dict[str, Found]
    versions: dict[str, str]

    @property
    def n_rows(self) -> int:
        """Rows of all symbols."""
        return sum(found.n_rows for found in self.found.values())


@dataclass
class Work:
    """Processor seconds of the part of a contender that counts."""

    cpu_s: float = 0.0

    @contextmanager
    def counted(self) -> Generator[None]:
        """Count what happens inside: user and system time of all threads of the process."""
        started = time.process_time()
        try:
            yield
        finally:
            self.cpu_s += time.process_time() - started


#: Warms up, does its work inside ``Work.counted``, and returns the rows by symbol.
Contender = Callable[[Task, Work], Mapping[str, Columns]]


def found_in(columns: Columns) -> Found:
    """Count and digest the rows of one symbol.

    Examples
    --------
    >>> from array import array
    >>> rows = [array("q", [60_000]), *(array("d", [price]) for price in (1.0, 2.0, 0.5, 1.5, 10.0))]
    >>> found_in(rows) == found_in(rows), found_in(rows) == found_in([*rows[:5], array("d", [10.1])])
    (True, False)
    """
    digest = hashlib.sha256()
    lengths = {len(column) for column in columns}
    if len(columns) != 6 or len(lengths) != 1:
        raise ValueError(
            f"six columns of one length were expected, {[len(column) for column in columns]} came"
        )
    for column in columns:
        digest.update(memoryview(column).cast("B"))
    return Found(lengths.pop(), digest.hexdigest())


def measured(contender: Contender, task: Task, packages: Sequence[str] = ()) -> Report:
    """Let a contender do its task.

    Parameters
    ----------
    packages
        Whose versions belong into the report.
    """
    work = Work()
    rows = contender(task, work)
    found = {symbol: found_in(columns) for symbol, columns in rows.items()}
    return Report(work.cpu_s, found, {name: _version(name) for name in packages})


def compete(contenders: Mapping[str, tuple[Contender, Sequence[str]]]) -> None:
    """Carry out the task on standard input by the contender that the command line names; report on standard output."""
    contender, packages = contenders[sys.argv[1]]
    # What libraries print must not mix with the report.
    channel, sys.stdout = sys.stdout, sys.stderr
    report = measured(contender, Task(**json.load(sys.stdin)), packages)
    print(json.dumps(asdict(report)), file=channel, flush=True)


def report_of(told: Mapping[str, Any]) -> Report:
    """Read a report out of its JSON."""
    found = {symbol: Found(**one) for symbol, one in told["found"].items()}
    return Report(told["cpu_s"], found, told["versions"])


def repointed(urls: Any, base_url: str) -> Any:
    """Addresses of ccxt, moved to another host."""
    if isinstance(urls, str):
        return f"{base_url}/{urls.partition('://')[2].partition('/')[2]}".rstrip("/")
    return {name: repointed(url, base_url) for name, url in urls.items()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"
