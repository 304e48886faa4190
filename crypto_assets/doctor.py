"""What this machine, this environment and these settings need to run, looked at one by one.

Here: looking, and saying what to do. Not here: repairing; the one repair there is, of LightGBM's OpenMP runtime, is
``openmp``'s. The command line imports it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from crypto_assets import local, openmp
from crypto_assets.settings import Settings

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_DISTRIBUTION = "crypto_assets"


@dataclass(frozen=True)
class Finding:
    """What was looked at, whether it is as it should be, and what was seen; where it is not, also what to do."""

    subject: str
    good: bool
    seen: str


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything, the quick and local things first.

    Yields
    ------
    Finding
        One for each thing looked at; the sources of a live world are asked over the network.
    """
    yield python(sys.version_info[:3], metadata.metadata(_DISTRIBUTION)["Requires-Python"])
    yield packages(metadata.requires(_DISTRIBUTION) or [])
    yield _openmp()
    yield folder(settings.warehouse.folder)
    yield catalogue(settings.warehouse.folder)
    if settings.simulated and not settings.environment.exchange_url:
        yield simulated_market(settings)
    else:
        yield from sources(settings)


def python(version: tuple[int, ...], allowed: str) -> Finding:
    """Whether this interpreter is one that the project was tried on.

    >>> python((3, 9, 1), ">=3.11,<3.14").seen
    '3.9.1, but >=3.11,<3.14 is needed: run make clean, then make setup PYTHON=<path of such a python>'
    """
    from packaging.specifiers import SpecifierSet

    shown = ".".join(map(str, version))
    if SpecifierSet(allowed).contains(shown):
        return Finding("Python", True, shown)
    advice = "run make clean, then make setup PYTHON=<path of such a python>"
    return Finding("Python", False, f"{shown}, but {allowed} is needed: {advice}")


def packages(requirements: list[str]) -> Finding:
    """Whether the installed packages are those that the project asks for.

    >>> packages(["no-such-package>=2"]).seen
    'no-such-package>=2 (missing): run make setup'
    """
    from packaging.requirements import Requirement

    wrong = []
    asked = [requirement for requirement in map(Requirement, requirements) if _applies(requirement)]
    for requirement in asked:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = "missing"
        if version == "missing" or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name}{requirement.specifier} ({version})")
    if wrong:
        return Finding("packages", False, f"{', '.join(wrong)}: run make setup")
    return Finding("packages", True, f"{len(asked)} as required, DuckDB {metadata.version('duckdb')}")


def folder(path: Path) -> Finding:
    """Whether the warehouse folder can be written; nothing is left behind."""
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        advice = "set warehouse.folder in platform.yaml or CRYPTO_ASSETS_DATA to a folder of yours"
        return Finding("warehouse folder", False, f"{existing}: {error.strerror}; {advice}")
    return Finding("warehouse folder", True, str(path) if existing == path else f"{path} (not made yet)")


def catalogue(path: Path) -> Finding:
    """Whether the catalogue opens and its newest decision can be read through it."""
    import duckdb

    from crypto_assets.resources.warehouse.catalog import CATALOGUE

    file = path / CATALOGUE
    if not file.exists():
        return Finding("warehouse", True, "nothing is stored yet")
    try:
        with closing(duckdb.connect(str(file), read_only=True)) as connection:
            newest = connection.sql("select max(decision_at) from holdings.optimal_holdings").fetchall()[0][0]
    except duckdb.Error as error:
        advice = "the next run makes it anew from the Parquet files"
        return Finding("warehouse", False, f"{file}: {str(error).splitlines()[0]}; {advice}")
    return Finding("warehouse", True, f"newest decision: {newest or 'none yet'}")


def simulated_market(settings: Settings) -> Finding:
    """Whether the simulated market runs or could be started."""
    subject = f"{settings.world} market"
    recorded = settings.simulation.recorded
    if settings.world == "recorded" and recorded is not None:
        empty = [pattern for pattern in recorded.klines if not any(recorded.folder.glob(pattern))]
        if empty:
            where = f"nothing matches {', '.join(empty)} in {recorded.folder}"
            return Finding(subject, False, f"{where}; set simulation.recorded in platform.yaml")
    port = settings.simulation.port
    if local.answers(local.market_address(settings)):
        return Finding(subject, True, f"runs on port {port}")
    try:
        local.require_free(port, "simulation.port in platform.yaml")
    except local.LocalError as error:
        return Finding(subject, False, str(error))
    return Finding(subject, True, f"not running; make demo and make run start it on port {port}")


def sources(settings: Settings) -> Iterator[Finding]:
    """Whether exchange and CoinGecko answer, asked with the clients, keys and budgets of the runs."""
    import dagster as dg

    from crypto_assets.definitions import resources_of
    from crypto_assets.resources.sources import SourceError

    chosen = {
        name: value for name, value in resources_of(settings).items() if name in ("exchange", "coingecko")
    }
    with dg.build_resources(chosen) as resources:
        asked = {
            "exchange": lambda: (
                f"its time is {resources.exchange.client().server_time():%Y-%m-%d %H:%M:%S} UTC"
            ),
            "CoinGecko": lambda: f"it lists {resources.coingecko.client().coins().num_rows} coins",
        }
        for subject, ask in asked.items():
            try:
                yield Finding(subject, True, ask())
            except (SourceError, OSError) as error:
                yield Finding(subject, False, str(error))


def _openmp() -> Finding:
    if openmp.loads():
        return Finding("OpenMP", True, f"{openmp.LIBRARY} found, LightGBM loads")
    return Finding(
        "OpenMP", False, f"{openmp.LIBRARY} is missing, LightGBM cannot be loaded: {openmp.REMEDY}"
    )


def _applies(requirement: Requirement) -> bool:
    # Extras are nobody's need but the developers'.
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})
