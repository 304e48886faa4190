"""``warehouse.duckdb``: schemas, typed views and comments over the lake, for everybody who opens the file.

The file is a symbolic link to a generation in ``catalog/``. A new generation is made when the set of views changed, or
when somebody holds the present one read-write or left a write-ahead log beside it, and the link is swapped in one step:
a session keeps the generation (and the log) it opened, later readers get the new one. Our own readers build the same
views on a private in-memory connection and need no file at all. See docs/decisions/0002-catalogue-generations.md.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import duckdb

from crypto_assets.resources.warehouse.files import WarehouseError, unwritable
from crypto_assets.resources.warehouse.lake import Lake, memory_connection
from crypto_assets.schemas import Table
from crypto_assets.tables import TABLES

CATALOGUE = "warehouse.duckdb"


class Catalog:
    """The catalogue of one lake.

    Parameters
    ----------
    lake
        The partitions it shows.
    """

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self.path = lake.folder / CATALOGUE
        self.generations = lake.folder / "catalog"

    def statements(self, tables: Iterable[Table] | None = None) -> list[str]:
        """The SQL that makes the schemas, views and comments, in a fixed order."""
        chosen = sorted(tables or TABLES.values(), key=lambda table: table.name)
        lines = [
            f"create schema if not exists {stage}" for stage in sorted({table.stage for table in chosen})
        ]
        for table in chosen:
            lines.append(f"create or replace view {table.stage}.{table.table} as {self._select(table)}")
            lines.append(f"comment on view {table.stage}.{table.table} is {_literal(table.title)}")
            lines += [
                f"comment on column {table.stage}.{table.table}.{column.name} is {_literal(column.meaning)}"
                for column in table.columns
            ]
        return lines

    @contextmanager
    def connection(self) -> Generator[duckdb.DuckDBPyConnection]:
        """A private in-memory connection with the same views: nobody can block it, and it blocks nobody."""
        with memory_connection() as connection:
            _execute(connection, self.statements())
            yield connection

    def refresh(self) -> bool:
        """Bring the catalogue file up to date; True if a new generation was made.

        Raises
        ------
        WarehouseError
            If the folder cannot be written, or something that is not ours lies at the path.
        """
        self.require_ours()
        statements = self.statements()
        name = hashlib.sha256(";".join(statements).encode()).hexdigest()[:16]
        try:
            self.generations.mkdir(parents=True, exist_ok=True)
            with (self.generations / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._remove_unused()
                present = self.path.resolve() if self.path.is_symlink() and self.path.exists() else None
                if present and present.name.startswith(name) and _sound(present) and not _disturbed(present):
                    return False
                self._build(self.generations / f"{name}-{uuid4().hex[:8]}.duckdb", statements)
                self._remove_unused()
        except OSError as error:
            raise unwritable(self.path, error) from error
        return True

    def require_ours(self) -> None:
        """Refuse to work where the catalogue's place is taken.

        Raises
        ------
        WarehouseError
            If something else than our link lies at the path.
        """
        if self.path.exists() and not self.path.is_symlink():
            raise WarehouseError(
                f"{self.path}: is not the link to a catalogue that this program makes; move it away and run again"
            )

    def _build(self, generation: Path, statements: list[str]) -> None:
        connection = duckdb.connect(str(generation), config={"autoinstall_known_extensions": "false"})
        try:
            _execute(connection, statements)
        finally:
            connection.close()
        link = self.lake.folder / f".{CATALOGUE}-{uuid4().hex}"
        link.symlink_to(generation.relative_to(self.lake.folder))
        link.replace(self.path)

    def _remove_unused(self) -> None:
        # The lock is held: a link that waits to be renamed was left by a killed writer.
        for link in self.lake.folder.glob(f".{CATALOGUE}-*"):
            link.unlink()
        present = self.path.resolve()
        for generation in self.generations.glob("*.duckdb"):
            if generation != present and not _open_somewhere(generation):
                generation.with_name(f"{generation.name}.wal").unlink(missing_ok=True)
                generation.unlink()

    def _select(self, table: Table) -> str:
        columns = ", ".join(
            f'cast("{column.name}" as {column.type}) as "{column.name}"' for column in table.columns
        )
        sources = self.lake.layout.sources(table)
        if not sources:
            nothing = ", ".join(f'cast(null as {column.type}) as "{column.name}"' for column in table.columns)
            return f"select {nothing} where false"
        parts = []
        for pattern, on_date in sources:
            # A date decides by the names of the folders alone which files are opened.
            hive = "true, hive_types = {'date': VARCHAR}" if on_date else "false"
            parts.append(
                f"select {columns} from read_parquet({_literal(str(pattern.resolve()))}, "
                f"hive_partitioning = {hive}){f' where {on_date}' if on_date else ''}"
            )
        return " union all ".join(parts)

    def is_held(self) -> bool:
        """Whether somebody still holds an older generation, whose views may show files that are to be removed.

        Known where the kernel tells who holds a file (Linux); elsewhere no.
        """
        present = self.path.resolve()
        return any(
            generation != present and _open_somewhere(generation)
            for generation in self.generations.glob("*.duckdb")
        )


def _sound(generation: Path) -> bool:
    # A DuckDB file bears its name after the checksum of its first block.
    with generation.open("rb") as file:
        return file.read(12)[8:] == b"DUCK"


def _execute(connection: duckdb.DuckDBPyConnection, statements: list[str]) -> None:
    # A view looks into the first file of its table.
    try:
        for statement in statements:
            connection.execute(statement)
    except (duckdb.IOException, duckdb.InvalidInputException, duckdb.BinderException) as error:
        raise WarehouseError(
            f"the catalogue cannot be made ({str(error).splitlines()[0]}); "
            "move the named file away and materialize its partition again"
        ) from error


def _disturbed(generation: Path) -> bool:
    return generation.with_name(f"{generation.name}.wal").exists() or _open_somewhere(
        generation, write_only=True
    )


def _open_somewhere(path: Path, *, write_only: bool = False) -> bool:
    # Opening the file to try its lock would drop this process's own locks on it, so the kernel's table is read.
    # Where there is none (macOS), nothing is known to be open: generations are then only swapped on change.
    locks = Path("/proc/locks")
    if not locks.is_file():
        return False
    inode = str(path.stat().st_ino)
    for line in locks.read_text().splitlines():
        fields = line.split()
        if any(part.split(":")[-1] == inode for part in fields if part.count(":") == 2) and (
            not write_only or "WRITE" in fields
        ):
            return True
    return False


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
