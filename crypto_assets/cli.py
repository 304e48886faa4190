"""The command line: ``crypto-assets``.

Here: arguments, progress and tables on screen. Not here: what commands do, which lives in the modules they call and is
imported only when a command runs.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from crypto_assets import local
from crypto_assets.settings import PREFIX, Settings, SettingsError, current_settings

app = typer.Typer(
    help="Raw klines to portfolio holdings, as one asset graph.", no_args_is_help=True, add_completion=False
)
console = Console()


def main() -> None:
    """Entry point: errors that name what to do are printed as such, without a traceback."""
    try:
        app()
    except (SettingsError, local.LocalError) as error:
        console.print(str(error), style="red", markup=False)
        sys.exit(2)


@app.command()
def market(
    port: Annotated[
        int | None, typer.Option(help="port on loopback; by default the one in platform.yaml")
    ] = None,
) -> None:
    """Serve the simulated exchange and CoinGecko on loopback until interrupted."""
    from crypto_assets.simulation.server import Clock, serve

    settings = current_settings()
    serve(simulated_world(settings), Clock(settings.simulation.now), port=port or settings.simulation.port)


@app.command()
def demo() -> None:
    """Run the whole graph on the simulated market: raw klines to holdings and their backtest."""
    _be_quiet()
    settings = current_settings()
    if not settings.simulated:
        console.print(
            f"The demo needs a simulated world; set {PREFIX}WORLD to synthetic or recorded.", style="red"
        )
        raise typer.Exit(2)
    os.environ["DAGSTER_HOME"] = str(local.dagster_home(settings))
    with local.stopped_by_signals(), _market(settings):
        succeeded = _materialize_all()
    if not succeeded:
        raise typer.Exit(1)
    _show_holdings(settings)


@app.command()
def run(
    port: Annotated[int, typer.Option(help="port of the web UI on loopback")] = 3000,
) -> None:
    """Open the web UI, with the simulated market behind it in a simulated world; Ctrl-C stops both."""
    settings = current_settings()
    os.environ["DAGSTER_HOME"] = str(local.dagster_home(settings))
    with local.stopped_by_signals(), suppress(KeyboardInterrupt), ExitStack() as stack:
        stack.enter_context(_market(settings))
        with console.status("opening the web UI (about 20 s)"):
            ui = stack.enter_context(local.web_ui(port))
        console.print(
            f"World {settings.world}, warehouse {settings.warehouse.folder}\n"
            f"Lineage: http://{local.HOST}:{port}/asset-groups (Alt+E expands the groups). Ctrl-C stops it.",
            soft_wrap=True,
        )
        raise typer.Exit(ui.wait())


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
        found = load_recordings(
            recorded.folder, list(recorded.klines), list(recorded.coingecko), coins_list=recorded.coins_list
        )
        return RecordedWorld(found)
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


@contextmanager
def _market(settings: Settings) -> Generator[None]:
    with ExitStack() as stack:
        with console.status("opening the simulated market"):
            stack.enter_context(local.market(settings))
        yield


def _materialize_all() -> bool:
    import dagster as dg

    from crypto_assets import runs
    from crypto_assets.definitions import defs

    chosen = runs.steps(defs)
    failed_checks: list[str] = []
    columns = (
        TextColumn("{task.description:<52}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("assets"),
        TimeElapsedColumn(),
    )
    with dg.DagsterInstance.get() as instance, Progress(*columns, console=console) as progress:
        task = progress.add_task(chosen[0].name, total=sum(len(step.keys) for step in chosen))
        names = [step.name for step in chosen[1:]] + ["done"]
        for outcome, following in zip(runs.materialize(defs, instance, chosen), names, strict=False):
            failed_checks += outcome.failed_checks
            if not outcome.success:
                progress.stop()
                console.print(f"{outcome.step.name} failed: {outcome.error}", style="red", markup=False)
                return False
            progress.update(task, advance=len(outcome.step.keys), description=following)
    if failed_checks:
        console.print(f"checks that did not pass: {', '.join(failed_checks)}", style="yellow", markup=False)
    return True


def _show_holdings(settings: Settings) -> None:
    from crypto_assets import notebook

    holdings = notebook.load("holdings/optimal_holdings", folder=settings.warehouse.folder)
    newest = holdings[holdings["decision_at"] == holdings["decision_at"].max()]
    held = newest[newest["weight_frac"] > 0].sort_values("weight_frac", ascending=False)
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
        "Next: make run opens the lineage graph in the browser; see Tour in README.md for what to click."
    )


def _be_quiet() -> None:
    # The progress bar is the demo's log; Dagster's own goes to its home folder.
    os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", "100")
    logging.disable(logging.ERROR)


if __name__ == "__main__":
    main()
