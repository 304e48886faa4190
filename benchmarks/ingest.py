"""Ingestion next to its peers: ``python benchmarks/ingest.py [--quick] [--only rest,archive,memory] [--rounds N]``.

Here: the order of events, the peers' environment, the tables and the files of results. Not here: the contenders and
the judgement. Kept small in memory: a process begins with the peak of the one that started it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
# Started by its path, it finds its own folder only.
sys.path.insert(0, str(ROOT))

from benchmarks.command import CONSOLE, Wrong, machine, parser_of, sections_of, write  # noqa: E402
from benchmarks.contest import START_MS, Found, Report, Task, report_of  # noqa: E402
from benchmarks.gates import Ratio, WrongRows, check_rows, check_sums, ratio_of, speed  # noqa: E402

HERE = ROOT / "benchmarks"
PEERS_ENVIRONMENT = HERE / ".venv-peers"
PEERS_LIST = HERE / "peers.txt"
DAY_MS = 86_400_000
SECTIONS = ("rest", "archive", "memory")
#: The most that a year of one-minute candles of twenty symbols may take.
MEMORY_AIM_BYTES = 1 << 30


@dataclass(frozen=True)
class Entrant:
    """A contender in a table: how it is called, what it does, and how many times faster we want to be."""

    name: str
    shown: str
    aim: float | None = None
    is_peer: bool = False


@dataclass(frozen=True)
class Contest:
    """Contenders with the same task; the first one is ours."""

    title: str
    entrants: tuple[Entrant, ...]
    n_symbols: int
    days: int


@dataclass(frozen=True)
class Sizes:
    """How much is loaded."""

    rest: tuple[int, int]
    archive: tuple[int, int]
    memory_markets: tuple[int, int]
    memory_days: tuple[int, int]


FULL = Sizes(rest=(2, 60), archive=(2, 181), memory_markets=(12, 8), memory_days=(90, 365))
QUICK = Sizes(rest=(1, 2), archive=(1, 2), memory_markets=(1, 1), memory_days=(1, 2))

_REST = (
    Entrant("our_rest", "ours: 12 columns, validated, Arrow"),
    Entrant("ccxt_rest", "ccxt: 6 columns, lists", aim=3.0),
    Entrant("python_binance", "python-binance: 12 columns, lists", is_peer=True),
    Entrant("freqtrade", "freqtrade: 6 columns, Feather", is_peer=True),
)
_ARCHIVE = (
    Entrant("our_archive", "ours: exact, verified, validated"),
    Entrant("pandas_archive", "pandas: amounts as floats", aim=5.0),
    Entrant("pandas_exact_archive", "pandas: the same column types", aim=5.0),
)
_FILES = (
    Entrant("our_files", "ours: exact, verified, validated"),
    Entrant("pandas_files", "pandas: amounts as floats", aim=5.0),
    Entrant("pandas_exact_files", "pandas: the same column types", aim=5.0),
    Entrant("pandas_arrow_files", "pandas: amounts as floats, pyarrow"),
)


class MarketProcess:
    """The simulated exchange in a process of its own, as a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.market"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url: str = self._line()

    def __enter__(self) -> Self:
        """Return itself; it serves already."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.communicate()

    def ask(self, about: str, **details: object) -> Any:
        """Ask it about its world, see ``market``."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"about": about, **details}) + "\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the simulated exchange has ended; its error stands above")
        return json.loads(line)


@dataclass
class Peers:
    """The environment of the peers, or why there is none."""

    python: Path | None = None
    missing: str = ""

    @classmethod
    def provided(cls) -> Peers:
        """Make the environment of peers.txt, unless it is there already."""
        python = PEERS_ENVIRONMENT / "bin" / "python"
        stamp, wanted = PEERS_ENVIRONMENT / "peers.txt", PEERS_LIST.read_text(encoding="utf-8")
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
            return cls(python)
        beside = Path(sys.executable).with_name("uv")
        uv = str(beside) if beside.is_file() else shutil.which("uv")
        if uv is None:
            return cls(missing="not installed: there is no uv")
        CONSOLE.print(f"installing {PEERS_LIST.name} into an environment of its own", style="dim")
        commands = [
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(PEERS_ENVIRONMENT)],
            [uv, "pip", "install", "--quiet", "--python", str(python), "-r", str(PEERS_LIST)],
        ]
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                lines = done.stderr.strip().splitlines() or ["no message"]
                return cls(missing=f"not installed: {lines[-1].strip()}")
        stamp.write_text(wanted, encoding="utf-8")
        return cls(python)


@dataclass
class Standing:
    """What came of an entrant: a report a round, or why it is out."""

    entrant: Entrant
    reports: list[Report] = field(default_factory=list)
    out: str = ""


def compare(
    contest: Contest, market: MarketProcess, peers: Peers, n_rounds: int, scratch: Path
) -> list[Standing]:
    """Let the contenders of a contest do their task, one after the other in each round.

    Raises
    ------
    Wrong
        If ours does not come back with the right rows.
    """
    spot = [market for market in market.ask("markets") if market[2] == "spot"][: contest.n_symbols]
    markets = {symbol: native for symbol, native, _ in spot}
    span = {"start_ms": START_MS, "end_ms": START_MS + contest.days * DAY_MS}
    told = market.ask("truth", symbols=list(markets), **span)
    truth = {symbol: Found(**found) for symbol, found in told.items()}
    files: dict[str, list[str]] = market.ask("files", markets=markets, **span)
    file_folder = scratch / "files"
    if any(entrant.name.endswith("_files") for entrant in contest.entrants):
        fetch_files(market.url, files, file_folder)
    standings = [Standing(entrant) for entrant in contest.entrants]
    for _ in range(n_rounds):
        for standing in standings:
            if standing.out:
                continue
            entrant = standing.entrant
            if entrant.is_peer and peers.python is None:
                standing.out = peers.missing
                continue
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                task = Task(market.url, folder, markets, **span, files=files, file_folder=str(file_folder))
                _let_run(standing, task, truth, peers)
            if standing.out and standing is standings[0]:
                raise Wrong(standing.out)
    return standings


def _let_run(standing: Standing, task: Task, truth: Mapping[str, Found], peers: Peers) -> None:
    entrant = standing.entrant
    module, python = "benchmarks.contenders", sys.executable
    if entrant.is_peer:
        module, python = "benchmarks.peers", str(peers.python)
    done = subprocess.run(
        [python, "-m", module, entrant.name],
        cwd=ROOT,
        input=json.dumps(asdict(task)),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        standing.out = f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        return
    report = report_of(json.loads(done.stdout))
    try:
        check_rows(entrant.name, report.found, truth)
    except WrongRows as error:
        standing.out = f"wrong rows: {error}"
        return
    standing.reports.append(report)


def fetch_files(url: str, files: Mapping[str, Sequence[str]], folder: Path) -> None:
    """Download files of the archive, and their checksums, into one new folder."""
    folder.mkdir()
    for path in (path for paths in files.values() for path in paths):
        for name in (path, f"{path}.CHECKSUM"):
            with urllib.request.urlopen(url + name, timeout=60) as answer:
                (folder / Path(name).name).write_bytes(answer.read())


def show(contest: Contest, standings: Sequence[Standing]) -> None:
    """Print a contest's table."""
    ours = standings[0]
    n_rows, n_rounds = ours.reports[0].n_rows, len(ours.reports)
    table = Table(title=f"{contest.title}: {n_rows:,} rows, best of {n_rounds} rounds", title_justify="left")
    for heading in ("contender", "rows/CPU s", "ours / it", "median", "aim", "rows"):
        table.add_column(heading, justify="left" if heading == "contender" else "right")
    for standing in standings:
        if not standing.reports or standing.out:
            table.add_row(standing.entrant.shown, "", "", "", "", standing.out or "not run")
            continue
        fastest = f"{max(map(speed, standing.reports)):,.0f}"
        if standing is ours:
            table.add_row(standing.entrant.shown, fastest, "", "", "", "right")
            continue
        ratio, aim = ratio_of(ours.reports, standing.reports), standing.entrant.aim
        table.add_row(
            standing.entrant.shown,
            fastest,
            f"{ratio.best:.2f}",
            f"{ratio.median:.2f}",
            _judged(ratio, aim),
            "right",
        )
    CONSOLE.print(table)
    versions = {
        name: text for one in standings for report in one.reports for name, text in report.versions.items()
    }
    CONSOLE.print(", ".join(f"{name} {text}" for name, text in sorted(versions.items())), style="dim")


def _judged(ratio: Ratio, aim: float | None) -> str:
    return "" if aim is None else f"{aim:g}: {'met' if ratio.best >= aim else 'missed'}"


def measure_memory(sizes: Sizes, market: MarketProcess, scratch: Path) -> dict[str, Any]:
    """Load two lengths of history, each in a process of its own.

    Raises
    ------
    Wrong
        If a load fails or its warehouse has other rows than the exchange.
    """
    known = market.ask("markets")
    spot = [one for one in known if one[2] == "spot"][: sizes.memory_markets[0]]
    perpetual = [one for one in known if one[2] == "perpetual"][: sizes.memory_markets[1]]
    markets, loads = [*spot, *perpetual], []
    for days in sizes.memory_days:
        span = {"start_ms": START_MS, "end_ms": START_MS + days * DAY_MS}
        truth = market.ask("sums", symbols=[symbol for symbol, *_ in markets], **span)
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            order = {"url": market.url, "folder": folder, "markets": markets, **span}
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.memory"],
                cwd=ROOT,
                input=json.dumps(order),
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            raise Wrong(f"the load of {days} days failed:\n{done.stderr}")
        told = json.loads(done.stdout)
        try:
            check_sums(f"{days} days", told.pop("sums"), truth)
        except WrongRows as error:
            raise Wrong(str(error)) from None
        n_rows = sum(n for n, *_ in truth.values())
        loads.append({"days": days, "n_series": len(markets), "n_rows": n_rows, **told})
    return {"loads": loads, "ratio": loads[-1]["peak_bytes"] / loads[0]["peak_bytes"]}


def show_memory(measured: Mapping[str, Any]) -> None:
    """Print the table of the loads."""
    table = Table(
        title="peak memory of a load of 1m candles from the archive into a warehouse", title_justify="left"
    )
    for heading in ("days", "series", "rows", "after imports", "peak", "rows"):
        table.add_column(heading, justify="right")
    for load in measured["loads"]:
        before, peak = (f"{load[name] / 2**20:,.0f} MiB" for name in ("before_bytes", "peak_bytes"))
        counts = (f"{load[name]:,}" for name in ("days", "n_series", "n_rows"))
        table.add_row(*counts, before, peak, "right")
    CONSOLE.print(table)
    longest = measured["loads"][-1]
    verdict = "met" if longest["peak_bytes"] < MEMORY_AIM_BYTES else "missed"
    CONSOLE.print(
        f"the longer history takes {measured['ratio']:.2f} times the memory of the shorter one; "
        f"aim, under 1 GiB: {verdict}"
    )


def _written(standings: Sequence[Standing]) -> list[dict[str, Any]]:
    ours = standings[0]
    entries = []
    for standing in standings:
        entry = {"contender": standing.entrant.name, "aim": standing.entrant.aim, "out": standing.out}
        entry["rounds"] = [
            {"n_rows": report.n_rows, "cpu_s": report.cpu_s, "rows_per_cpu_s": speed(report)}
            for report in standing.reports
        ]
        entry["versions"] = standing.reports[0].versions if standing.reports else {}
        if standing is not ours and standing.reports and not standing.out:
            entry["ratio"] = asdict(ratio_of(ours.reports, standing.reports))
        entries.append(entry)
    return entries


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; 1 if a gate failed, whatever the speed."""
    parser = parser_of(__doc__, SECTIONS, 5)
    parser.add_argument("--no-peers", action="store_true", help="only what this environment has")
    chosen = parser.parse_args(arguments)
    sections = sections_of(parser, chosen, SECTIONS)
    sizes, here = QUICK if chosen.quick else FULL, machine()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crypto-assets-bench-")))
        peers = Peers(missing="left out (--no-peers)")
        if "rest" in sections and not chosen.no_peers:
            peers = Peers.provided()
        market = stack.enter_context(MarketProcess())
        contests = {
            "rest": [Contest("candles by REST", _REST, *sizes.rest)],
            "archive": [
                Contest("candles from the archive, over HTTP", _ARCHIVE, *sizes.archive),
                Contest("candles from the archive's zips on disk", _FILES, *sizes.archive),
            ],
        }
        try:
            for section in sections:
                result: dict[str, Any] = {"machine": here, "quick": chosen.quick}
                if section == "memory":
                    result |= measure_memory(sizes, market, scratch)
                    show_memory(result)
                for contest in contests.get(section, []):
                    standings = compare(contest, market, peers, chosen.rounds, scratch)
                    show(contest, standings)
                    result.setdefault("contests", []).append(
                        {"title": contest.title, "contenders": _written(standings)}
                    )
                write(chosen.results, section, result)
        except Wrong as error:
            CONSOLE.print(f"gate failed: {error}", style="bold red")
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
