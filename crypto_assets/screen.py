"""What commands share: the screen, the home of Dagster, the simulated market behind them, steps with their outcomes.

Here: what is the same in every command. Not here: the commands (``cli``, ``cli_sources``). Only they import it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress

from crypto_assets import local
from crypto_assets.settings import Settings

console = Console()


@contextmanager
def open_market(settings: Settings, speed: float = 0.0) -> Generator[None]:
    """Have the simulated market run during the block, where the world is simulated; its clock stands at speed 0."""
    with ExitStack() as stack:
        with console.status("opening the simulated market"):
            stack.enter_context(local.market(settings, speed))
        yield


@contextmanager
def screen_copy() -> Generator[Console]:
    """A console that stays on the screen while steps run."""
    # While a step runs Dagster leads the standard output into its own files; a copy of it still leads to the screen.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding=sys.stdout.encoding) as copied:
        yield Console(file=copied)


def use_dagster_home(settings: Settings) -> None:
    """Let Dagster remember runs in the warehouse's folder."""
    os.environ["DAGSTER_HOME"] = str(local.dagster_home(settings))
    # Ranges have thousands of partitions, and Dagster hands over their events in batches only when it is told to.
    os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", "100")


def be_quiet() -> None:
    """Keep Dagster's log to its own folder."""
    # The progress bar is the demo's log; Dagster's own goes to its home folder.
    logging.disable(logging.ERROR)


def run_steps(
    screen: Console,
    progress: Progress,
    defs: Any,
    chosen: Any,
    *,
    days: Callable[[Any], tuple[str | None, str | None]] = lambda step: (None, None),
    tags: dict[str, str] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    begin: Callable[[Any], None] = lambda step: None,
    end: Callable[[Any], None] = lambda step: None,
) -> bool:
    """Run steps one after the other and say what went wrong; whether all went well and no check failed.

    Parameters
    ----------
    screen, progress
        Where to tell; ``progress`` is stopped when something went wrong.
    defs, chosen
        What there is, and the steps of it.
    days
        First and last day of a step.
    tags
        Further tags of the runs.
    stopped
        Whether somebody asked to stop, see ``local.stopped_by_signals``.
    begin, end
        Called before and after each step.

    Raises
    ------
    KeyboardInterrupt
        If it was stopped, after saying so.
    """
    from time import monotonic

    import dagster as dg

    from crypto_assets import runs

    failed: list[str] = []
    warnings: list[str] = []
    with dg.DagsterInstance.get() as instance:
        for step in chosen:
            began = monotonic()
            first, last = days(step)
            try:
                if stopped():
                    raise KeyboardInterrupt
                begin(step)
                outcome = next(runs.materialize(defs, instance, [step], first=first, last=last, tags=tags))
                if outcome.interrupted:
                    raise KeyboardInterrupt
            except KeyboardInterrupt:
                progress.stop()
                screen.print(
                    f"stopped in {step.name}; what is stored stays, run again to go on", soft_wrap=True
                )
                raise
            failed += outcome.failed_checks
            warnings += outcome.warnings
            if not outcome.success:
                progress.stop()
                screen.print(
                    f"{step.name} failed: {outcome.error}", style="red", markup=False, soft_wrap=True
                )
                return False
            end(step)
            if not screen.is_terminal:
                screen.print(f"{monotonic() - began:6.1f} s  {step.name}", markup=False, highlight=False)
    if warnings:
        told = f"checks that warn: {', '.join(warnings)}"
        screen.print(told, style="yellow", markup=False, soft_wrap=True)
    if failed:
        told = f"checks that failed: {', '.join(failed)}"
        screen.print(told, style="red", markup=False, soft_wrap=True)
    return not failed
