"""The commands on declared features: features measure.

Here: which bars are measured on, progress and tables on screen, and what is stored. Not here: the measurement
(``quant/warm_up.py``) and the file (``measurements.py``). ``cli`` adds them to the command line.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from crypto_assets import local
from crypto_assets.screen import console
from crypto_assets.settings import Settings, SettingsError, measuring_settings

if TYPE_CHECKING:
    import pandas as pd

    from crypto_assets.measurements import MeasuredEntry
    from crypto_assets.quant.generators.declared import Options
    from crypto_assets.quant.warm_up import Measurement

app = typer.Typer(help="What is declared under features.", no_args_is_help=True)

_WIDTH = 150
_SEED = 0
# So much of the bars that an entry is measured on a listing must have, with all that the entry reads.
_ENOUGH_FRAC = 0.8


@app.callback()
def features() -> None:
    """What is declared under features."""


@app.command()
def measure(
    chosen: Annotated[
        list[str] | None,
        typer.Option("--set", help="a feature set; may be given again. By default all of them"),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            min=8,
            help="values of each column that are compared, about; by default 96, and 480 where a declaration leaves the "
            "history to this command",
        ),
    ] = None,
    bound: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="largest relative difference; by default 0 for windows and 1e-8 for TA-Lib and functions of your own",
        ),
    ] = None,
) -> None:
    """Measure how much history each declared feature needs, and store it in warm_up.yaml beside platform.yaml.

    Uses the bars of the warehouse where it holds enough, else random walks. Fails where a feature needs more than it
    declares. Ctrl-C leaves what is stored as it is.
    """
    from crypto_assets.measurements import read_measurements, write_measurements

    settings = measuring_settings()
    names = _sets(settings, chosen or [])
    path = settings.measured.file
    with local.stopped_by_signals():
        try:
            read_measurements(path)
            measured = _measured(settings, names, rows, bound)
            # Read again: another measurement may have ended meanwhile.
            stored = read_measurements(path)
        except ValueError as error:
            raise SettingsError(str(error)) from error
        fresh = {one.key: record for one in measured if (record := one.record(settings)).columns}
        declared = {name: _keys(settings, name) for name in settings.features}
        kept = {
            key: entry
            for key, entry in stored.items()
            # What another world declares is not known here.
            if entry.measured_on.world != settings.world or key in declared.get(entry.feature_set, ())
        }
        write_measurements(path, kept | fresh)
    _show(measured)
    console.print(f"stored in {path}", soft_wrap=True, highlight=False)
    problems = [
        f"features.{one.feature_set}: {found.problem}"
        for one in measured
        for found in one.columns
        if found.problem
    ]
    for problem in problems:
        console.print(problem, style="red", markup=False, soft_wrap=True)
    if problems:
        console.print(
            "Declare more (warm_up for talib, lookback for a function of your own), or allow more with --bound.",
            soft_wrap=True,
        )
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Measured:
    # One entry: where it stands, what it was measured on, and what was found.
    feature_set: str
    key: str
    entry: Options
    source: str
    rows: pd.DataFrame
    columns: tuple[Measurement, ...]

    def record(self, settings: Settings) -> MeasuredEntry:
        from crypto_assets.measurements import MeasuredColumn, MeasuredEntry, MeasuredOn

        columns = {}
        for one in self.columns:
            if one.found is None:
                continue
            is_open = one.assured is None
            columns[one.feature.name] = MeasuredColumn(
                measured_bars=one.found.bars,
                bound=one.found.bound,
                error=one.found.error,
                n_values=one.found.n_values,
                assured_bars=one.assured,
                warm_up_bars=None if is_open else one.feature.warm_up,
            )
        ts = self.rows["ts"]
        bar = settings.feature_sets[self.feature_set].grid.bar
        first, last = ts.min().to_pydatetime(), ts.max().to_pydatetime()
        on = MeasuredOn(
            bars=self.source,
            world=settings.world,
            first=first,
            last=last,
            n_bars=(last - first) // bar + 1,
            listings=tuple(sorted(self.rows["listing_id"].unique())),
        )
        return MeasuredEntry(
            feature_set=self.feature_set,
            interval=settings.interval_of(self.feature_set),
            entry=self.entry.model_dump(mode="json", exclude_defaults=True),
            measured_on=on,
            columns=columns,
        )


def _sets(settings: Settings, chosen: list[str]) -> list[str]:
    if unknown := sorted(set(chosen) - set(settings.features)):
        allowed = ", ".join(settings.features) or "none; declare some under features in platform.yaml"
        raise SettingsError(f"--set {', '.join(unknown)}: no feature set; allowed: {allowed}")
    return [name for name in settings.features if not chosen or name in chosen]


def _keys(settings: Settings, name: str) -> set[str]:
    from crypto_assets.quant.warm_up import key_of

    bar = settings.feature_sets[name].grid.bar
    return {key_of(entry, bar) for entry in settings.features[name].entries}


def _measured(
    settings: Settings, names: list[str], n_rows: int | None, bound: float | None
) -> list[_Measured]:
    """Every entry of the sets, one after the other; ``SettingsError`` names the one that cannot be measured."""
    from crypto_assets.quant import warm_up
    from crypto_assets.quant.generators.custom import FunctionError

    total = sum(len(settings.features[name].entries) for name in names)
    columns = (
        TextColumn("{task.description:<30}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("entries"),
        TimeElapsedColumn(),
    )
    found = []
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        for name in names:
            began, grid = monotonic(), settings.feature_sets[name].grid
            progress.update(task, description=f"features/{name}")
            for place, entry in enumerate(settings.features[name].entries):
                try:
                    source, rows = _rows(settings, name, place)
                    made = warm_up.measure(entry, grid, rows, n_rows=n_rows, bound=bound, seed=_SEED)
                except (ValueError, FunctionError) as error:
                    where = f"features.{name}.entries: entry {place} ({entry.generator})"
                    raise SettingsError(f"{where}: cannot be measured: {error}") from error
                key = warm_up.key_of(entry, grid.bar)
                found.append(_Measured(name, key, entry, source, rows, made))
                progress.advance(task)
            if not console.is_terminal:
                sources = sorted({one.source for one in found if one.feature_set == name})
                console.print(
                    f"{monotonic() - began:6.1f} s  features/{name} on {', '.join(sources)}",
                    highlight=False,
                    soft_wrap=True,
                )
    return found


def _rows(settings: Settings, name: str, place: int) -> tuple[str, pd.DataFrame]:
    """What an entry is measured on, and where it is from: the newest bars that are stored, else random walks."""
    from crypto_assets.quant import warm_up

    chosen = settings.feature_sets[name]
    n_bars = warm_up.bars_needed(settings.features[name].entries[place], chosen.grid)
    inputs = sorted({column for feature in chosen.by_entry[place] for column in feature.inputs})
    found = _stored_rows(settings, name, inputs, n_bars)
    if found is not None:
        source, rows = found
        # Some bars may be missing.
        rows = warm_up.fullest_listings(rows, inputs, ceil(_ENOUGH_FRAC * n_bars))
        if len(rows):
            return source, rows
    rows = warm_up.random_bars(chosen.grid, n_bars, seed=_SEED)
    return f"random walks of seed {_SEED}", rows[
        ["symbol", "ts", "known_at", "listing_id", "has_bar", *inputs]
    ]


def _stored_rows(
    settings: Settings, name: str, inputs: Iterable[str], n_bars: int
) -> tuple[str, pd.DataFrame] | None:
    from datetime import timedelta

    if not settings.warehouse.folder.is_dir():
        return None
    from crypto_assets.quant import features as quant_features
    from crypto_assets.resources.warehouse import Lake, WarehouseError
    from crypto_assets.resources.warehouse.io_manager import to_pandas
    from crypto_assets.schemas import FIXED_TABLES

    source, bar = settings.rows_of(name), settings.feature_sets[name].grid.bar
    table = FIXED_TABLES[source.table]
    n_days = -(-n_bars * bar // timedelta(days=1)) + 1
    try:
        lake = Lake(settings.warehouse.folder)
        days = lake.partitions(table)[-n_days:]
        if len(days) * timedelta(days=1) < n_bars * bar:
            return None
        rows = to_pandas(lake.read(table, days, source.columns, where=source.where))
    except WarehouseError as error:
        # Bars of an older contract are made again by a run, and a run may need the measurement first.
        told = f"features/{name}: what is stored cannot be used, so random walks are: {error}"
        console.print(told, style="yellow", markup=False, soft_wrap=True)
        return None
    return table.name, quant_features.bars(rows) if source.columns is None else rows


def _show(measured: list[_Measured]) -> None:
    table = Table(title="Bars of history")
    for title in ("set", "column"):
        table.add_column(title, overflow="fold")
    for title in ("declared", "first value", "needed", "within", "left", "values"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("on")
    for one in measured:
        for found in one.columns:
            is_open = found.assured is None
            table.add_row(
                one.feature_set,
                found.feature.name,
                "measured" if is_open else str(found.assured),
                "" if is_open else str(found.feature.warm_up),
                "?" if found.found is None else str(found.found.bars),
                f"{found.bound:g}",
                "" if found.found is None else f"{found.found.error:.1e}",
                str(found.n_values),
                one.source,
                style="red" if found.problem else None,
            )
    # What is read later, from a file or a pipe, is not cut to the width that this terminal does not have.
    wide = console if console.is_terminal else Console(width=_WIDTH)
    wide.print(table)
