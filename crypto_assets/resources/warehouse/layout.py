"""Where the rows of a partition lie: folders by date, of hourly tables also by hour, and closed days in one file.

A table that is stored by the hour has two forms side by side: ``date=D/hour=H/part-0.parquet``, and for days that are
closed and compacted ``date=D/part-0.parquet``. A day's file, once it is there, is what counts; hours beside it are
leftovers. Days are compacted in order, so one boundary tells both forms apart: days before it are stored by day, from
it on by hour. Here: paths. Not here: what lies in the files (``lake``). The warehouse imports it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

from crypto_assets.schemas import Table

FILE = "part-0.parquet"
_DATE, _HOUR, _VERSION = "date=", "hour=", "version="


class Layout:
    """The folders of a lake.

    Parameters
    ----------
    root
        The folder above the stages.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def directory(self, table: Table) -> Path:
        """The folder of a table, of a declared one the folder of its version."""
        folder = self.root / table.stage / table.table
        return folder / f"{_VERSION}{table.version}" if table.version else folder

    def path(self, table: Table, partition: str | None) -> Path:
        """The file that holds a partition or would hold it; None for a table without partitions."""
        if table.clock == "none":
            return self.directory(table) / FILE
        if not partition:
            raise ValueError(f"{table.name} is stored by {table.clock} partitions; name one")
        if table.clock != "hourly":
            return self.day_file(table, partition)
        day, by_day = day_of(partition), self.day_file(table, day_of(partition))
        if by_day.is_file():
            return by_day
        by_hour = self.hour_folder(table, partition) / FILE
        if by_hour.is_file():
            return by_hour
        boundary = self.boundary(table)
        return by_day if boundary is not None and day < boundary else by_hour

    def day_file(self, table: Table, day: str) -> Path:
        """The file of a compacted day of an hourly table, and of any date of a daily or weekly one."""
        return self.directory(table) / f"{_DATE}{day}" / FILE

    def is_day_file(self, table: Table, path: Path) -> bool:
        """Whether a file holds a compacted day."""
        return table.clock == "hourly" and path.parent.name.startswith(_DATE)

    def dates(self, table: Table) -> list[str]:
        """Dates that have a folder, in order."""
        found = self.directory(table).glob(f"{_DATE}*")
        return sorted(path.name.removeprefix(_DATE) for path in found)

    def hours(self, table: Table, day: str) -> Iterator[str]:
        """Keys of the hours of a day that have a file of their own, in order."""
        found = (self.directory(table) / f"{_DATE}{day}").glob(f"{_HOUR}*/{FILE}")
        return (f"{day}-{hour}:00" for hour in sorted(path.parent.name.removeprefix(_HOUR) for path in found))

    def files(self, table: Table) -> Iterator[Path]:
        """The files that count, in order."""
        if table.clock == "none":
            yield from (path for path in [self.path(table, None)] if path.is_file())
            return
        for day in self.dates(table):
            by_day = self.day_file(table, day)
            # Looked at last as well: hours are swept only when the day's file has long been there.
            hours = [] if table.clock != "hourly" or by_day.is_file() else list(self.hours(table, day))
            if hours:
                yield from (self.hour_folder(table, key) / FILE for key in hours)
            elif by_day.is_file():
                yield by_day

    def hour_folder(self, table: Table, key: str) -> Path:
        """The folder of an hour that has a file of its own."""
        return self.directory(table) / f"{_DATE}{day_of(key)}" / f"{_HOUR}{key[11:13]}"

    def boundary(self, table: Table) -> str | None:
        """The first date that an hourly table stores by hour, as days before it are compacted; None: all dates."""
        for day in reversed(self.dates(table)):
            if self.day_file(table, day).is_file():
                return (date.fromisoformat(day) + timedelta(days=1)).isoformat()
        return None

    def uncompacted(self, table: Table) -> Iterator[str]:
        """Dates that an hourly table stores by hour, in order."""
        for day in self.dates(table):
            if not self.day_file(table, day).is_file() and next(self.hours(table, day), None) is not None:
                yield day

    def holds(self, table: Table) -> bool:
        """Whether any partition is stored; does not look at all of them."""
        directory = self.directory(table)
        if table.clock == "none":
            return (directory / FILE).is_file()
        if any(directory.glob(f"{_DATE}*/{FILE}")):
            return True
        return table.clock == "hourly" and any(directory.glob(f"{_DATE}*/{_HOUR}*/{FILE}"))

    def sources(self, table: Table) -> list[tuple[Path, str]]:
        """Patterns of files and the condition on their date under which they count, for a view over the table.

        The condition is part of the answer: what is compacted later changes nothing for who asked before.
        """
        directory = self.directory(table)
        if not self.holds(table):
            return []
        if table.clock == "none":
            return [(directory / "part-*.parquet", "")]
        by_day = directory / f"{_DATE}*" / "part-*.parquet"
        if table.clock != "hourly":
            return [(by_day, "")]
        boundary = self.boundary(table)
        found = [] if boundary is None else [(by_day, f"\"date\" < '{boundary}'")]
        if any(boundary is None or day >= boundary for day in self.uncompacted(table)):
            since = "" if boundary is None else f"\"date\" >= '{boundary}'"
            found.append((directory / f"{_DATE}*" / f"{_HOUR}*" / "part-*.parquet", since))
        return found


def day_of(key: str) -> str:
    """The date of an hour's key.

    Examples
    --------
    >>> day_of("2024-01-01-05:00")
    '2024-01-01'
    """
    return key[:10]
