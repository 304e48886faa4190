"""Materializing the graph from the left to the right in this process: what the demo, tests and repairs use.

Here: the order of steps and the tags of range runs. Not here: when runs are requested (``automation.py``). The command
line and the tests import it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import dagster as dg

from crypto_assets.partitions import DAILY, WEEKLY
from crypto_assets.schemas import table_of

_START = "dagster/asset_partition_range_start"
_END = "dagster/asset_partition_range_end"


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
    """What one step did."""

    step: Step
    success: bool
    error: str | None
    failed_checks: tuple[str, ...]


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


def first_and_last(clock: str, first: str | None = None, last: str | None = None) -> tuple[str, str] | None:
    """Partition keys of a clock that cover the days ``first`` to ``last`` (inclusive); None without partitions."""
    if clock == "none":
        return None
    definition = DAILY if clock == "daily" else WEEKLY
    keys = definition.get_partition_keys()
    start = keys[0] if first is None else max(key for key in keys if key <= first)
    end = keys[-1] if last is None else max(key for key in keys if key <= last)
    return start, end


def materialize(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    chosen: Sequence[Step],
    *,
    first: str | None = None,
    last: str | None = None,
) -> Iterator[Outcome]:
    """Run steps one after the other over a range of days; stops after the first that fails.

    Parameters
    ----------
    first, last
        UTC days as YYYY-MM-DD, inclusive; None: all there are.

    Yields
    ------
    Outcome
        After each step.
    """
    job = definitions.resolve_implicit_global_asset_job_def()
    for step in chosen:
        window = first_and_last(step.clock, first, last)
        tags = {} if window is None else {_START: window[0], _END: window[1]}
        result = job.execute_in_process(
            asset_selection=list(step.keys), tags=tags, instance=instance, raise_on_error=False
        )
        failed = tuple(
            f"{check.asset_key.to_user_string()}:{check.check_name}"
            for check in result.get_asset_check_evaluations()
            if not check.passed
        )
        yield Outcome(step, result.success, _error_of(result), failed)
        if not result.success:
            return


def _error_of(result: dg.ExecuteInProcessResult) -> str | None:
    for event in result.all_events:
        if event.is_step_failure:
            error = event.step_failure_data.error
            while error is not None and error.cause is not None:
                error = error.cause
            return error.message.strip() if error is not None else "failed without a message"
    return None
