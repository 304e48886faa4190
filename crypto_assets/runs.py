"""Materializing the graph from the left to the right in this process: what the demo, tests and repairs use.

Here: the order of steps, the tags of range runs and how far a running step has come. Not here: when runs are requested
(``automation.py``). The command line and the tests import it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import dagster as dg

from crypto_assets.partitions import DEFINITIONS
from crypto_assets.resources.warehouse import Lake
from crypto_assets.schemas import Table
from crypto_assets.tables import table_of

#: Tags that tell Dagster the range of a run.
RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"
_INTERRUPTED = (
    f"{dg.DagsterExecutionInterruptedError.__module__}.{dg.DagsterExecutionInterruptedError.__name__}"
)


@dataclass(frozen=True)
class Step:
    """Assets that are materialized by one run: they share a clock and, for dbt, an invocation."""

    keys: tuple[dg.AssetKey, ...]
    clock: str

    @property
    def name(self) -> str:
        """The assets' names, for a progress display."""
        return ", ".join("/".join(key.path) for key in self.keys)


@dataclass(frozen=True)
class Outcome:
    """What one step did; ``warnings`` are checks that did not pass and say so only."""

    step: Step
    success: bool
    error: str | None
    failed_checks: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def interrupted(self) -> bool:
        """Whether somebody stopped it."""
        return self.error is not None and self.error.startswith(_INTERRUPTED)


def steps(definitions: dg.Definitions) -> list[Step]:
    """All assets in an order in which parents come first."""
    graph = definitions.resolve_asset_graph()
    found: list[Step] = []
    done: set[dg.AssetKey] = set()
    for level in graph.toposorted_asset_keys_by_level:
        for key in sorted(level):
            if key in done or not graph.get(key).is_materializable:
                continue
            together = tuple(sorted(graph.get(key).execution_set_asset_keys)) or (key,)
            done.update(together)
            found.append(Step(together, table_of("/".join(key.path)).clock))
    return found


def partition_keys(clock: str) -> Sequence[str]:
    """All partition keys of a clock, the running one included; none of ``none``."""
    return DEFINITIONS[clock].get_partition_keys() if clock != "none" else []


def first_and_last(clock: str, first: str | None = None, last: str | None = None) -> tuple[str, str] | None:
    """Partition keys of a clock that cover the days ``first`` to ``last`` (inclusive); None without partitions.

    Of hourly tables, which hold what was seen, no range means the newest day: there is nothing to read of the past.
    """
    keys = partition_keys(clock)
    if not keys:
        return None
    # The date is what all keys begin with; a week has that of its Monday.
    dates = [key[:10] for key in keys]
    if first is None and last is None and clock == "hourly":
        first = dates[-1]
    start = dates[0] if first is None else max(day for day in dates if day <= first)
    end = dates[-1] if last is None else max(day for day in dates if day <= last)
    return keys[bisect_left(dates, start)], keys[bisect_right(dates, end) - 1]


def reached(lake: Lake, step: Step, since: datetime) -> str | None:
    """Key of the partition that a running step over all partitions stored last.

    Parameters
    ----------
    lake
        Where the step stores.
    since
        When the step began, with its zone: partitions that were stored before do not count.

    Returns
    -------
    str or None
        None before the first one, and for tables without partitions.

    Notes
    -----
    Partitions are stored in order, so a few files tell: looking at all of them from a thread that draws a progress bar
    would take seconds beside a busy interpreter.
    """
    window = first_and_last(step.clock)
    keys = [key for key in partition_keys(step.clock) if window is not None and key >= window[0]]

    def waiting(table: Table, key: str) -> bool:
        try:
            return lake.path(table, key).stat().st_mtime < since.timestamp()
        except FileNotFoundError:
            return True

    found = [bisect_left(keys, True, key=partial(waiting, table_of("/".join(key.path)))) for key in step.keys]
    n_stored = max(found, default=0)
    return keys[n_stored - 1] if n_stored else None


def materialize(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    chosen: Sequence[Step],
    *,
    first: str | None = None,
    last: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Iterator[Outcome]:
    """Run steps one after the other over a range of days; stops after the first that fails.

    Parameters
    ----------
    first, last
        UTC days as YYYY-MM-DD, inclusive; None: all there are.
    tags
        Further tags of the runs.

    Yields
    ------
    Outcome
        After each step.
    """
    job = definitions.resolve_implicit_global_asset_job_def()
    for step in chosen:
        window = first_and_last(step.clock, first, last)
        span = {} if window is None else {RANGE_START: window[0], RANGE_END: window[1]}
        result = job.execute_in_process(
            asset_selection=list(step.keys),
            tags={**(tags or {}), **span},
            instance=instance,
            raise_on_error=False,
        )
        broken: dict[dg.AssetCheckSeverity, list[str]] = {severity: [] for severity in dg.AssetCheckSeverity}
        for check in result.get_asset_check_evaluations():
            if not check.passed:
                broken[check.severity].append(f"{check.asset_key.to_user_string()}:{check.check_name}")
        failed, warned = broken[dg.AssetCheckSeverity.ERROR], broken[dg.AssetCheckSeverity.WARN]
        yield Outcome(step, result.success, _error_of(result), tuple(failed), tuple(warned))
        if not result.success:
            return


def _error_of(result: dg.ExecuteInProcessResult) -> str | None:
    for event in result.all_events:
        if event.is_step_failure:
            error = event.step_failure_data.error
            # Dagster wraps what was raised; what that was raised from says less than its own message.
            while (
                error is not None and error.cause is not None and (error.cls_name or "").startswith("Dagster")
            ):
                error = error.cause
            return error.message.strip() if error is not None else "failed without a message"
    return None
