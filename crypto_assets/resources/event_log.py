"""Dagster's event log on SQLite, with a batch of partition events stored in one transaction.

A range run tells two events for each partition, and Dagster's own SQLite storage opens and commits two databases for
each of them: twenty milliseconds, thousands of times. Here: that one method. Not here: any other behaviour of the log.
``local.py`` names the class in the home of a warehouse; nothing else uses it. It builds on private parts of the pinned
Dagster 1.13.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from dagster import DagsterEventType
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._serdes import ConfigurableClassData

_PARTITION_EVENTS = {DagsterEventType.ASSET_MATERIALIZATION, DagsterEventType.ASSET_MATERIALIZATION_PLANNED}


def _kind(event: EventLogEntry) -> tuple[str, bool]:
    return event.run_id, event.dagster_event_type in _PARTITION_EVENTS


class BatchingEventLog(SqliteEventLogStorage):
    """The event log below ``DAGSTER_HOME``, in the same files and tables as Dagster's default."""

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> BatchingEventLog:
        """Build it from ``dagster.yaml``, where ``base_dir`` is Dagster's home."""
        return cls(str(Path(config_value["base_dir"]) / "history" / "runs"), inst_data)

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Store events as ``store_event`` would one by one; partition events of a run in one transaction per file."""
        for (run_id, together), group in groupby(events, key=_kind):
            if together:
                self._store_together(run_id, list(group))
            else:
                super().store_event_batch(list(group))

    def _store_together(self, run_id: str, events: Sequence[EventLogEntry]) -> None:
        insert = SqlEventLogStorageTable.insert()
        rows = [self._event_to_row(event) for event in events]
        with self.run_connection(run_id) as connection:
            connection.execute(insert, rows)
        with self.index_transaction() as connection:
            # One by one: the identifiers are needed, and SQLite tells them for single rows only.
            ids = [connection.execute(insert, row).lastrowid for row in rows]
            self._store_asset_event_tags(connection, events, ids)
            # What an asset's own row says is what its last event of each kind says.
            newest = {
                (event.get_dagster_event().asset_key, event.dagster_event_type): (event, event_id)
                for event, event_id in zip(events, ids, strict=True)
            }
            for event, event_id in newest.values():
                self._store_asset_event(connection, event, event_id)
