"""A whole platform inside a test: the simulated market, one warehouse, the graph's own assets, and their comparison.

Here: building and advancing a warehouse with the market's clock at a chosen moment, and reading it back. Not here: the
properties that are tested, each in a test module of its own. Tests of the graph import it.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, datetime, time
from functools import cache
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from crypto_assets import runs
from crypto_assets.assets import labels
from crypto_assets.cli import simulated_world
from crypto_assets.definitions import all_assets, resources_of
from crypto_assets.partitions import DAY, monday_of
from crypto_assets.quant.feature_sets import FeatureSet
from crypto_assets.quant.invariants import Difference, prefix_differences
from crypto_assets.resources.warehouse.lake import Lake, Provenance
from crypto_assets.schemas import Table
from crypto_assets.settings import Settings, current_settings
from crypto_assets.simulation.server import MarketServer
from crypto_assets.simulation.synthetic import SyntheticWorld
from crypto_assets.tables import TABLES, table_of

#: Days before the present one whose labels may still change.
LOOKAHEAD_DAYS = max(
    labels.LOOKAHEAD_DAYS, *(chosen.lookahead_days for chosen in current_settings().label_sets.values())
)
#: Tables whose rows say when they were known and can be made again; what was only observed cannot.
COMPARED = tuple(
    table for table in TABLES.values() if "known_at" in table.column_names and not table.observed
)


def market_at(now: datetime) -> MarketServer:
    """A server of a fresh world by the suite's settings, its clock standing at ``now``."""
    world = simulated_world(current_settings())
    assert isinstance(world, SyntheticWorld)
    return MarketServer(world, now)


@cache
def _assets() -> list[dg.AssetsDefinition]:
    return all_assets()


def _definitions(settings: Settings) -> dg.Definitions:
    # Without checks: what they would refuse, the tests look for themselves.
    return dg.Definitions(assets=_assets(), resources=resources_of(settings), executor=dg.in_process_executor)


class Platform:
    """One warehouse, fed by one market through the graph's own assets, resources and run function.

    Parameters
    ----------
    folder
        The warehouse; made when first written to.
    exchange_url, coingecko_url
        Where the market listens.
    settings
        Other settings than the suite's; partitions are the suite's in any case.
    """

    def __init__(
        self, folder: Path, exchange_url: str, coingecko_url: str, settings: Settings | None = None
    ) -> None:
        self.folder = folder
        self.lake = Lake(folder)
        given = settings or current_settings()
        addresses = {"exchange_url": exchange_url, "coingecko_url": coingecko_url}
        self.definitions = _definitions(
            given.model_copy(
                update={
                    "environment": given.environment.model_copy(update=addresses),
                    "warehouse": given.warehouse.model_copy(update={"folder": folder}),
                }
            )
        )

    @classmethod
    def on(cls, market: MarketServer, folder: Path, settings: Settings | None = None) -> Platform:
        """A platform that listens to a running server."""
        return cls(folder, market.url, market.coingecko_url, settings)

    def copy(self, folder: Path, market: MarketServer) -> Platform:
        """The same warehouse in another folder, fed by another market."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Platform.on(market, folder)

    def build(
        self,
        now: datetime,
        *,
        first: date | None = None,
        fits: bool = True,
        reports: bool = True,
        only: Collection[str] | None = None,
    ) -> None:
        """Materialize the days up to the one of ``now``, in as few runs as clocks and parents allow.

        Parameters
        ----------
        first
            The first day; labels are made again for as many days before it as they look ahead. None: all days.
        fits, reports
            Whether weekly tables and tables without partitions are made.
        only
            Stages or tables; None: all.
        """
        last = now.date().isoformat()
        start = None if first is None else first.isoformat()
        clocks = {"daily": True, "weekly": fits, "none": reports}
        for wave in waves(only, [clock for clock, wanted in clocks.items() if wanted]):
            of_labels = tuple(key for key in wave.keys if key.path[0] == "labels")
            others = tuple(key for key in wave.keys if key not in of_labels)
            if first is None or not of_labels:
                self.run(wave, start, last)
                continue
            if others:
                self.run(replace(wave, keys=others), start, last)
            self.run(replace(wave, keys=of_labels), (first - LOOKAHEAD_DAYS * DAY).isoformat(), last)

    def run(self, step: runs.Step, first: str | None = None, last: str | None = None) -> None:
        """One run that has to succeed."""
        outcome = self.attempt(step, first, last)
        assert outcome.success, f"{step.name}: {outcome.error}"

    def attempt(self, step: runs.Step, first: str | None = None, last: str | None = None) -> runs.Outcome:
        """One run, whatever becomes of it."""
        with _quiet():
            return next(runs.materialize(self.definitions, instance(), [step], first=first, last=last))

    def rows(self, name: str) -> pd.DataFrame:
        """All stored rows of one table."""
        return self.lake.read(table_of(name)).to_pandas()

    def tables(self, since: date | None = None) -> dict[str, pd.DataFrame]:
        """Rows of the tables that can be compared; with ``since`` of partitioned tables alone and from that day on."""
        chosen = (table for table in COMPARED if since is None or table.clock != "none")
        return {table.name: self.lake.read(table, self._since(table, since)).to_pandas() for table in chosen}

    def _since(self, table: Table, since: date | None) -> list[str] | None:
        if since is None:
            return None
        return [key for key in self.lake.partitions(table) if key >= _start(table, since).isoformat()]

    def partitions(self) -> dict[tuple[str, str], Provenance]:
        """What every stored partition says of itself, but for the run that made it; the reports on storage excluded."""
        return {
            (table.name, partition): replace(found, run_id=None)
            for table, partition, _, found in self.lake.manifest()
            if table.stage != "quality"
        }

    def contents(self) -> dict[tuple[str, str], str]:
        """Content hash of every stored partition of the tables that can be made again."""
        compared = {table.name for table in COMPARED}
        return {key: found.content_hash for key, found in self.partitions().items() if key[0] in compared}

    def files(self) -> dict[str, bytes]:
        """Every file of the lake and its ledger."""
        found = [path for root in (self.lake.root, self.lake.ledger.folder) for path in root.rglob("*")]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in found if path.is_file()}


@cache
def instance() -> dg.DagsterInstance:
    return dg.DagsterInstance.ephemeral()


@contextmanager
def _quiet() -> Generator[None]:
    # Dagster logs every event of hundreds of runs, which pytest would keep; failures come back as outcomes.
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@cache
def _graph() -> dg.AssetGraph:
    return _definitions(current_settings()).resolve_asset_graph()


@cache
def steps() -> tuple[runs.Step, ...]:
    """All tables in an order in which parents come first."""
    return tuple(runs.steps(_definitions(current_settings())))


def waves(
    only: Collection[str] | None = None, clocks: Collection[str] = ("daily", "weekly", "none")
) -> Iterator[runs.Step]:
    """The graph in as few runs as clocks and parents allow; ``only`` some stages or tables, or tables of some clocks.

    Tables without partitions come last: they sum up what the others hold.
    """
    graph = _graph()
    waiting = [
        step
        for step in steps()
        if step.clock in clocks
        and (only is None or any({"/".join(key.path), key.path[0]} & set(only) for key in step.keys))
    ]
    while waiting:
        for clock in ("daily", "weekly", "none"):
            if clock == "none" and any(step.clock != "none" for step in waiting):
                continue
            wave: list[dg.AssetKey] = []
            missing = {key for step in waiting for key in step.keys}
            for step in waiting:
                parents = {parent for key in step.keys for parent in graph.get(key).parent_keys}
                if step.clock == clock and not parents & (missing - set(step.keys)):
                    wave += step.keys
                    missing -= set(step.keys)
            if wave:
                waiting = [step for step in waiting if not set(step.keys) <= set(wave)]
                yield runs.Step(tuple(wave), clock)


def step_of(name: str) -> runs.Step:
    """The step of one table alone."""
    return runs.Step((dg.AssetKey(name.split("/")),), table_of(name).clock)


def leaks(
    earlier: Mapping[str, pd.DataFrame],
    later: Mapping[str, pd.DataFrame],
    cut: datetime,
    since: date | None = None,
) -> list[Difference]:
    """World-at-T: where tables built at ``cut`` disagree with the same built later about what was known at the cut.

    Parameters
    ----------
    earlier, later
        Rows by table; the tables of ``earlier`` are compared.
    since
        The day from which ``earlier`` was read; None: all days.

    Returns
    -------
    list of Difference
        By table in the order of the stages; empty if nothing leaks.
    """
    found: list[Difference] = []
    for name, old in earlier.items():
        table, new = table_of(name), later[name]
        if since is not None:
            new = new[new[table.time_column] >= datetime.combine(_start(table, since), time())]
        found += prefix_differences(old, new, table, cut)
    return found


def _start(table: Table, day: date) -> date:
    return monday_of(day) if table.clock == "weekly" else day


#: The column that `plant_in_price_action` replaces.
PLANTED = "volatility_24h_log"


def plant_in_price_action(monkeypatch: pytest.MonkeyPatch, leak: Callable[[pd.DataFrame], pd.Series]) -> None:
    """Have ``features/price_action`` hold what ``leak`` makes of its rows, in one column."""
    honest = FeatureSet.compute

    def leaky(self: FeatureSet, rows: pd.DataFrame, since: datetime | None = None) -> pd.DataFrame:
        made = honest(self, rows, since)
        return made.assign(**{PLANTED: leak(made)}) if self.name == "price_action" else made

    monkeypatch.setattr(FeatureSet, "compute", leaky)
