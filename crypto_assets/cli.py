"""The command line: ``crypto-assets``.

Here: arguments, progress and tables on screen. Not here: what commands do, which lives in the modules they call and is
imported only when a command runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from crypto_assets import cli_features, cli_sources, local
from crypto_assets.screen import be_quiet, console, open_market, run_steps, screen_copy, use_dagster_home
from crypto_assets.settings import PREFIX, Settings, SettingsError, current_settings

app = typer.Typer(
    help="Raw klines to portfolio holdings, as one asset graph.", no_args_is_help=True, add_completion=False
)
app.add_typer(cli_sources.app)
app.add_typer(cli_features.app, name="features")


def main() -> None:
    """Entry point: errors that name what to do are printed as such, without a traceback."""
    try:
        app()
    except (SettingsError, local.LocalError) as error:
        # A market that another command started has no standard output.
        _complain(error)
        sys.exit(2)
    except Exception as error:
        from crypto_assets.resources.sources import SourceError
        from crypto_assets.resources.warehouse import WarehouseError

        if not isinstance(error, SourceError | WarehouseError):
            raise
        _complain(error)
        sys.exit(1)


def _complain(error: Exception) -> None:
    Console(stderr=True).print(str(error), style="red", markup=False, soft_wrap=True)


@app.command()
def market(
    port: Annotated[
        int | None, typer.Option(help="port on loopback; by default the one in platform.yaml")
    ] = None,
    speed: Annotated[
        float, typer.Option(help="market seconds in a real second; at 0 its clock stands still")
    ] = 0.0,
    *,
    with_parent: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Serve the simulated exchange and CoinGecko on loopback until interrupted."""
    from crypto_assets.simulation.server import Clock, serve

    if with_parent:
        local.stop_with_parent()
    settings = current_settings()
    serve(
        simulated_world(settings),
        Clock(settings.simulation.now, speed),
        port=port or settings.simulation.port,
    )


@app.command()
def demo() -> None:
    """Run the whole graph on the simulated market: raw klines to holdings and their backtest."""
    be_quiet()
    settings = current_settings()
    if not settings.simulated:
        console.print(
            f"The demo needs a simulated world; set {PREFIX}WORLD to synthetic or recorded.", style="red"
        )
        raise typer.Exit(2)
    use_dagster_home(settings)
    with local.stopped_by_signals() as stopped, open_market(settings):
        succeeded = _materialize_all(settings, stopped)
    if not succeeded:
        raise typer.Exit(1)
    _show_holdings(settings)


@app.command()
def run(
    port: Annotated[int, typer.Option(help="port of the web UI on loopback")] = 3000,
) -> None:
    """Open the web UI, with the simulated market behind it in a simulated world; Ctrl-C stops both."""
    settings = current_settings()
    use_dagster_home(settings)
    with local.stopped_by_signals(), suppress(KeyboardInterrupt), ExitStack() as stack:
        stack.enter_context(open_market(settings))
        with console.status("opening the web UI (about 20 s)"):
            ui = stack.enter_context(local.web_ui(port))
        console.print(
            f"World {settings.world}, warehouse {settings.warehouse.folder}\n"
            f"Lineage: http://{local.HOST}:{port}/asset-groups (Alt+E expands the groups). Ctrl-C stops it.",
            soft_wrap=True,
        )
        raise typer.Exit(ui.wait())


@app.command()
def doctor() -> None:
    """Look whether this machine has what a run needs, and say what to do where it has not."""
    from crypto_assets.doctor import examine

    good = True
    for finding in examine(current_settings()):
        good &= finding.good
        mark = "[green]ok  [/]" if finding.good else "[red]FAIL[/]"
        console.print(f"{mark} {finding.subject:<17}", end=" ")
        console.print(finding.seen, markup=False, highlight=False, soft_wrap=True)
    if not good:
        raise typer.Exit(1)


@app.command()
def dictionary() -> None:
    """Print the data dictionary, every table with its columns, as Markdown."""
    from crypto_assets.dictionary import data_dictionary

    typer.echo(data_dictionary(), nl=False)


def simulated_world(settings: Settings) -> Any:
    """The world that the settings describe, ready to be served."""
    from crypto_assets.intervals import DAY_MS, to_ms
    from crypto_assets.settings import Recorded
    from crypto_assets.simulation.recorded import RecordedWorld
    from crypto_assets.simulation.recordings import load_recordings
    from crypto_assets.simulation.synthetic import SyntheticWorld

    chosen = settings.simulation
    if settings.world == "recorded":
        recorded: Recorded | None = chosen.recorded
        if recorded is None or not recorded.folder.is_dir():
            raise SettingsError(
                f"simulation.recorded.folder: {recorded and recorded.folder} is no folder; name the folder that holds recordings"
            )
        return RecordedWorld(load_recordings(**recorded.model_dump()))
    from datetime import datetime, time

    start = to_ms(datetime.combine(settings.start, time()))
    end = to_ms(datetime.combine(chosen.now.date(), time())) + DAY_MS
    return SyntheticWorld(
        chosen.synthetic.seed,
        start,
        end,
        settings.base_interval,
        drift_frac=chosen.synthetic.drift_frac,
        story_days=(end - start) // DAY_MS,
    )


class _Reached(ProgressColumn):
    def render(self, task: Task) -> Text:
        reached = task.fields["reached"]
        return Text(reached and reached() or "", style="cyan")


def _materialize_all(settings: Settings, stopped: Callable[[], bool]) -> bool:
    from datetime import UTC, datetime
    from functools import partial

    from crypto_assets import runs
    from crypto_assets.definitions import defs
    from crypto_assets.resources.warehouse import Lake

    lake = Lake(settings.warehouse.folder)
    columns = (
        TextColumn("{task.description:<27}"),
        _Reached(),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("assets"),
        TimeElapsedColumn(),
    )
    chosen = runs.steps(defs)
    with screen_copy() as screen, Progress(*columns, console=screen, refresh_per_second=2) as progress:
        task = progress.add_task("", total=sum(len(step.keys) for step in chosen), reached=None)

        def begin(step: runs.Step) -> None:
            reached = partial(runs.reached, lake, step, datetime.now(UTC))
            progress.update(task, description=step.name, reached=reached)

        def end(step: runs.Step) -> None:
            progress.update(task, advance=len(step.keys))

        succeeded = run_steps(screen, progress, defs, chosen, stopped=stopped, begin=begin, end=end)
        progress.update(task, description="done" if succeeded else "stopped", reached=None)
    return succeeded


def _show_holdings(settings: Settings) -> None:
    from crypto_assets import notebook

    holdings = notebook.load("holdings/optimal_holdings", folder=settings.warehouse.folder)
    newest = holdings[holdings["decision_at"] == holdings["decision_at"].max()]
    # What would show as 0.0 % is left out.
    held = newest[newest["weight_frac"] >= 0.0005].sort_values("weight_frac", ascending=False)
    table = Table(
        title=f"Holdings decided at {newest['decision_at'].iloc[0]} UTC ({newest['status'].iloc[0]})"
    )
    for name in ("asset", "weight", "market prior", "expected return per period"):
        table.add_column(name, justify="left" if name == "asset" else "right")
    for row in held.to_dict("records"):
        table.add_row(
            row["symbol"],
            f"{row['weight_frac']:.1%}",
            f"{row['weight_prior_frac']:.1%}"
            if row["weight_prior_frac"] == row["weight_prior_frac"]
            else "-",
            f"{row['mu_frac']:.3%}" if row["mu_frac"] == row["mu_frac"] else "-",
        )
    console.print(table)
    console.print(
        f"{holdings['decision_at'].nunique()} decisions are in {settings.warehouse.folder / 'warehouse.duckdb'}"
    )
    console.print(
        "Next: make run opens the lineage graph in the browser; see 'What you see' in README.md for what to click."
    )


if __name__ == "__main__":
    main()
