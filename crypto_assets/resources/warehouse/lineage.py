"""What stored partitions were made from, and which of them no longer follow from what is stored.

Here: the one place that knows which upstream partitions a partition reads, and the comparison of what it was made from
with what it would be made from now, by file metadata alone. Not here: who is told (``automation``) and storing
(``lake``). The publisher, automation and tests import it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import dagster as dg

from crypto_assets.partitions import DAY, WEEK, floor_of, keys_of, length_of, monday_of, start_of
from crypto_assets.resources.warehouse.conform import content_hash
from crypto_assets.resources.warehouse.lake import Lake, Provenance, hash_of
from crypto_assets.schemas import Table
from crypto_assets.tables import TABLES, table_of

#: The source that says how far a day has come.
CLOCKWORK = table_of("raw/klines")
SOURCES = tuple(table.name for table in TABLES.values() if table.write == "merge")

#: What tells one version of a file from the next: inode and time of change.
Mark = tuple[int, int]


@dataclass(frozen=True)
class Read:
    """One upstream table of an asset and the partitions it reads, as offsets in periods of the reader's clock."""

    upstream: Table
    first: int
    last: int


def reads_of(spec: dg.AssetSpec) -> tuple[Read, ...]:
    """What an asset reads, by its declared dependencies; without a mapping it is the same period."""
    return tuple(
        Read(
            table_of("/".join(dep.asset_key.path)),
            getattr(dep.partition_mapping, "start_offset", 0),
            getattr(dep.partition_mapping, "end_offset", 0),
        )
        for dep in spec.deps
    )


def version_of(stored: Provenance) -> str:
    """What changes whenever a stored partition says something new: its rows and, of a source, how far it was read.

    An hour in which nothing traded adds no row, yet whatever is derived has to know that it has passed.
    """
    if stored.watermark is None:
        return stored.content_hash
    return hash_of({"rows": stored.content_hash, "watermark": stored.watermark.isoformat()})


#: Clocks of which a day has one partition of its own.
_PERIODS = ("daily", "weekly")


def window_of_partition(table: Table, partition: str) -> tuple[datetime, datetime] | None:
    """Naive UTC window of a partition key; None without partitions."""
    if table.clock == "none":
        return None
    start = start_of(table.clock, partition)
    return start, start + length_of(table.clock)


def _mark_of(path: Path) -> Mark | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


class Lineage:
    """Compares what partitions were made from with what is stored.

    Each file is looked at once: what one object says holds for one moment. ``again`` gives one for a later moment.

    Parameters
    ----------
    lake
        The partitions.
    reads
        Name of each derived table -> what it reads; sources are left out.
    code_versions
        Name of each derived table -> version of the SQL and settings that make it now; None where it has none.
    """

    def __init__(
        self,
        lake: Lake,
        reads: Mapping[str, tuple[Read, ...]] | None = None,
        code_versions: Mapping[str, str | None] | None = None,
    ) -> None:
        self.lake = lake
        self.reads = dict(reads or {})
        self.code_versions = dict(code_versions or {})
        # Learned from files, which are replaced and never changed; shared by all moments.
        self._paths: dict[tuple[str, str], Path] = {}
        self._stored: dict[tuple[str, str], tuple[Mark, Provenance]] = {}
        self._latest: dict[tuple[str, str], tuple[Mark, tuple[datetime, bool]]] = {}
        self._known: dict[tuple[str, str, str, datetime], str] = {}
        self._forget_all()

    def again(self) -> Lineage:
        """The same for a later moment."""
        later = copy(self)
        later._forget_all()
        return later

    def forget(self, table: Table, partition: str) -> None:
        """Look at one partition anew, which was just stored."""
        self._marks.pop((table.name, partition), None)

    def _forget_all(self) -> None:
        self._marks: dict[tuple[str, str], Mark | None] = {}
        self._changes: dict[tuple[str, str], str | None] = {}
        self._days: list[str] | None = None

    # -- what is stored

    def provenance(self, table: Table, partition: str) -> Provenance | None:
        """What a stored partition says of itself; None if it is not stored."""
        mark = self._mark(table, partition)
        if mark is None:
            return None
        found = self._stored.get((table.name, partition))
        if found is None or found[0] != mark:
            stored = self.lake.provenance(table, partition)
            if stored is None:
                return None
            found = self._stored[table.name, partition] = (mark, stored)
        return found[1]

    @property
    def days(self) -> list[str]:
        """The days on which the exchange was read, in order."""
        if self._days is None:
            self._days = self.lake.partitions(CLOCKWORK)
        return self._days

    def fingerprint(self) -> str:
        """A hash that changes when the file of any partition with a clock is added, replaced or removed."""
        tables = {name: table_of(name) for name in (*self.reads, *SOURCES)}
        periods = {"daily": self.days, "weekly": self._weeks()}
        marks = {
            f"{name} {key}": str(self._mark(table, key))
            for name, table in tables.items()
            for key in periods.get(table.clock, ())
        }
        hourly = (table for table in tables.values() if table.clock == "hourly")
        files = (path for table in hourly for path in self.lake.layout.files(table))
        return hash_of(marks | {str(path): str(_mark_of(path)) for path in files})

    def _weeks(self) -> list[str]:
        return sorted({monday_of(datetime.fromisoformat(day).date()).isoformat() for day in self.days})

    def _hours(self, name: str) -> list[str]:
        upstream = (read.upstream for read in self.reads[name] if read.upstream.clock == "hourly")
        return sorted({key for table in upstream for key in self.lake.partitions(table)})

    def is_whole(self, day: datetime) -> bool:
        """Whether the exchange was read to the end of a UTC day."""
        stored = self.provenance(CLOCKWORK, day.date().isoformat())
        return stored is not None and stored.watermark is not None and stored.watermark >= day + DAY

    def _mark(self, table: Table, partition: str) -> Mark | None:
        at = (table.name, partition)
        if at not in self._marks:
            path = self._paths.get(at) or self.lake.path(table, partition)
            if table.clock != "hourly":
                # An hour moves into the file of its day.
                self._paths[at] = path
            self._marks[at] = _mark_of(path)
        return self._marks[at]

    # -- what a partition reads

    def keys(self, table: Table, read: Read, partition: str) -> list[str]:
        """The upstream partitions that a partition reads, stored or not.

        A table that looks ahead reads whole days only: the running day would have it made anew with every interval,
        for labels that nobody fits on before the day is over.
        """
        window = window_of_partition(table, partition)
        if read.upstream.clock == "none" or window is None:
            return self.lake.partitions(read.upstream)
        step = length_of(table.clock)
        start, end = window[0] + read.first * step, window[1] + read.last * step
        found = keys_of(read.upstream.clock, floor_of(read.upstream.clock, start), end)
        return [key for key, day, _ in found if read.last <= 0 or self.is_whole(day)]

    def made_of_bars(self) -> list[str]:
        """The daily tables that read the exchange's bars and nothing else: whatever changes them is a new bar."""
        return [
            name
            for name, reads in self.reads.items()
            if table_of(name).clock == "daily" and {read.upstream for read in reads} == {CLOCKWORK}
        ]

    def parents_due(self, name: str, partition: str) -> list[tuple[str, str]]:
        """What a daily table reads of its own day or week that is itself to be made: table and partition."""
        window = window_of_partition(table_of(name), partition)
        found = []
        for read in self.reads[name]:
            above = read.upstream
            if (
                window
                and above.name in self.reads
                and read.first <= 0 <= read.last
                and above.clock in _PERIODS
            ):
                ((own, _, _),) = keys_of(above.clock, floor_of(above.clock, window[0]), window[1])
                if self.change(above.name, own) is not None:
                    found.append((above.name, own))
        return found

    def inputs(self, table: Table, partition: str, reads: Iterable[Read]) -> dict[str, str]:
        """Name of each upstream table -> one hash over the versions of the partitions that are read and stored."""
        found = {}
        for read in reads:
            versions = {
                key: version
                for key in self.keys(table, read, partition)
                if (version := self._version(table, partition, read, key))
            }
            found[read.upstream.name] = hash_of(versions)
        return found

    def _version(self, table: Table, partition: str, read: Read, key: str) -> str | None:
        stored = self.provenance(read.upstream, key)
        if stored is None:
            return None
        if table.clock == "weekly" and read.upstream.clock == "daily" and read.last < 0:
            return self._version_known_by(start_of(table.clock, partition), read.upstream, key, stored)
        reads_source = table.stage != "raw" and read.upstream.stage == "raw"
        is_source = reads_source and read.upstream is not CLOCKWORK
        if table.clock == "daily" and is_source and "known_at" in read.upstream.column_names:
            bars = self.provenance(CLOCKWORK, partition)
            day = start_of(table.clock, partition)
            if bars is None or bars.watermark is None or bars.watermark < day + DAY:
                # Of the running day no row is known after its bars: what was seen since then changes none.
                seen = day if bars is None or bars.watermark is None else bars.watermark
                return self._version_known_by(seen, read.upstream, key, stored)
        return version_of(stored)

    def _version_known_by(self, cut: datetime, upstream: Table, key: str, stored: Provenance) -> str:
        # A fit drops rows that were not known at its cut, so a label that is decided later changes nothing for it.
        latest, all_known = self._latest_known(upstream, key)
        if all_known and latest <= cut:
            return stored.content_hash
        bound = min(cut, latest)
        at = (upstream.name, key, stored.content_hash, bound)
        if at not in self._known:
            rows = self.lake.read(upstream, [key], where=f"known_at <= timestamp '{bound}'")
            # Without a row it is as if it were not stored.
            self._known[at] = content_hash(rows) if rows.num_rows else ""
        return self._known[at]

    def _latest_known(self, upstream: Table, key: str) -> tuple[datetime, bool]:
        # By the file's statistics: when the last row was known, and whether every row has been.
        mark = self._mark(upstream, key)
        found = self._latest.get((upstream.name, key))
        if mark is not None and (found is None or found[0] != mark):
            at = upstream.column_names.index("known_at")
            stored = self.lake.footer(upstream, key)
            file = stored[1] if stored is not None else None
            groups = [] if file is None else [file.metadata.row_group(number) for number in file.groups]
            statistics = [group.column(at).statistics for group in groups if group.num_rows]
            # A column without a value has no statistics.
            bounds = [one.max for one in statistics if one is not None and one.has_min_max]
            latest = max(bounds, default=datetime(1, 1, 1))
            all_known = all(one is not None and one.null_count == 0 for one in statistics)
            found = (mark, (latest, all_known))
            self._latest[upstream.name, key] = found
        return found[1] if found else (datetime(1, 1, 1), True)

    # -- what no longer follows

    def change(self, name: str, partition: str) -> str | None:
        """A hash of what a partition would now be made from and by; None if it was made so, or cannot be made."""
        at = (name, partition)
        if at not in self._changes:
            self._changes[at] = self._change(name, partition)
        return self._changes[at]

    def _change(self, name: str, partition: str) -> str | None:
        table = table_of(name)
        if not self.is_ready(name, partition):
            return None
        now = self.inputs(table, partition, self.reads[name])
        by = self.code_versions.get(name)
        stored = self.provenance(table, partition)
        if stored is not None and dict(stored.inputs) == now and stored.code_version == by:
            return None
        return hash_of(now | {"made by": str(by)})

    def is_ready(self, name: str, partition: str, expected: Mapping[str, set[str]] | None = None) -> bool:
        """Whether all that a partition reads of its own period is stored.

        A fit needs the week before to be whole, and a bar of a week that week, or it would be made anew every hour.

        Parameters
        ----------
        expected
            Upstream table -> partitions that will be stored by the time this one is made.
        """
        table = table_of(name)
        if table.clock == "weekly":
            start = start_of(table.clock, partition)
            return self.week_before_is_whole(name, start + WEEK if self._sums_up_its_week(name) else start)
        return all(
            self._has_own_period(table, read, partition, (expected or {}).get(read.upstream.name, set()))
            for read in self.reads[name]
        )

    def _sums_up_its_week(self, name: str) -> bool:
        # A fit reads the days before its week; a longer bar those of its own.
        return any(read.upstream.clock == "daily" and read.last == 0 for read in self.reads[name])

    def _has_own_period(self, table: Table, read: Read, partition: str, expected: set[str]) -> bool:
        if table.clock == "none" or read.upstream.clock == "none":
            return bool(self.lake.partitions(read.upstream))
        source = read.upstream.name not in self.reads
        if not read.first <= 0 <= read.last:
            return True
        if source and read.upstream is not CLOCKWORK and table.clock != "hourly":
            # What a source has not published yet is unknown, not awaited; what is seen in an hour is all there will be.
            return True
        start = start_of(table.clock, partition)
        whole = floor_of(read.upstream.clock, start)
        if read.last > 0 and not self.is_whole(whole):
            return False
        return all(
            own in expected or self.provenance(read.upstream, own) is not None
            for own, _, _ in keys_of(read.upstream.clock, whole, start + length_of(table.clock))
        )

    def week_before_is_whole(self, name: str, cut: datetime) -> bool:
        """Whether a fit, or a bar of that week, may be made: nothing of the week is still to come or to be made anew.

        Where nothing was collected before the cut there is nothing to wait for.
        """
        before = [key for key in self.days if key < cut.date().isoformat()]
        if not before:
            return bool(self.days)
        if not self.is_whole(cut - DAY):
            return False
        upstream = self._daily_ancestors(name)
        week = {key for key, _, _ in keys_of("daily", cut - WEEK, cut)} & set(before)
        return all(
            self.provenance(table_of(parent), key) is not None and self.change(parent, key) is None
            for key in sorted(week)
            for parent in upstream
        )

    def _daily_ancestors(self, name: str) -> list[str]:
        found: dict[str, None] = {}
        waiting = [name]
        while waiting:
            for read in self.reads.get(waiting.pop(), ()):
                parent = read.upstream
                if parent.name in self.reads and parent.clock == "daily" and parent.name not in found:
                    found[parent.name] = None
                    waiting.append(parent.name)
        return list(found)

    def changed(self, names: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
        """Derived tables with the partitions that can be made and do not follow from what is stored, in the given order.

        Looked at are the days on which the exchange was read, their weeks, and the hours that are stored upstream.
        """
        periods = {"daily": self.days, "weekly": self._weeks()}
        for name in names:
            clock = table_of(name).clock
            keys = self._hours(name) if clock == "hourly" else periods.get(clock, [])
            yield name, [key for key in keys if self.change(name, key) is not None]
