"""What the commands of the benchmarks share: their options, the machine they ran on, the files of their results.

Here: what is the same whatever is measured. Not here: a contest (``ingest``, ``rollups``, ``features``) and any judgement
(``gates``). Those three import it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

# Wide enough for the tables where nobody says how wide it is.
CONSOLE = Console(width=None if sys.stdout.isatty() else 110)


class Wrong(Exception):
    """Ours failed a gate, or could not be run: the benchmark has failed."""


def parser_of(description: str | None, sections: Iterable[str], rounds: int) -> argparse.ArgumentParser:
    """Options of a benchmark with some sections, so many rounds each unless told otherwise."""
    names = ",".join(sections)
    results = Path(__file__).parent / "results"
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a tiny size, to see that it works")
    parser.add_argument("--only", default=names, help=f"some of {names}")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"rounds of each comparison ({rounds})")
    parser.add_argument("--results", type=Path, default=results, help="folder of the JSON files")
    return parser


def sections_of(
    parser: argparse.ArgumentParser, chosen: argparse.Namespace, sections: Iterable[str]
) -> list[str]:
    """The sections that were asked for; ends the process with the reason where the options make no sense."""
    known = list(sections)
    asked = [name.strip() for name in chosen.only.split(",")]
    if unknown := sorted(set(asked) - set(known)):
        parser.error(f"unknown: {', '.join(unknown)}; --only takes {', '.join(known)}")
    if chosen.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return asked


def machine() -> dict[str, Any]:
    """What the results are measured on, which is also printed."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model
        )
    here = {
        "cpu": model,
        "n_cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    CONSOLE.print(", ".join(f"{name} {value}" for name, value in here.items()), style="dim")
    return here


def write(folder: Path, section: str, result: Mapping[str, Any]) -> None:
    """Store what a section found as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{section}.json").write_text(f"{json.dumps(result, indent=2)}\n", encoding="utf-8")
