"""Parquet files that are whole or absent: written aside, synced and renamed.

Here: one write, one removal. Not here: what is written (``lake``, ``ledger``), which hold the lock of the folder
meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

_COMPRESSION = "zstd"
_ROW_GROUP_ROWS = 122_880
_REMOVED = ".removed-"


class WarehouseError(RuntimeError):
    """The warehouse cannot be read or written; the message names the file and what to do."""


def write_durably(rows: pa.Table, path: Path) -> None:
    """Put rows at a path in one atomic step that survives a power cut.

    The caller is the only writer of the folder: temporary files in it were left by a killed one and are removed.

    Raises
    ------
    WarehouseError
        If the folder cannot be written; what was at the path stays.
    """
    with _aside(path) as temporary, temporary.open("wb") as file:
        pq.write_table(rows, file, compression=_COMPRESSION, row_group_size=_ROW_GROUP_ROWS)
        os.fsync(file.fileno())


def write_parts_durably(parts: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    """As ``write_durably``, for rows that come in parts: each is held alone, and begins a row group of its own.

    Parameters
    ----------
    parts
        Rows of the schema, in the order in which they are to lie in the file; a part without rows leaves no trace.
    schema
        Columns, with the metadata of the file.

    Raises
    ------
    WarehouseError
        If the folder cannot be written; what was at the path stays.
    """
    with _aside(path) as temporary, temporary.open("wb") as file:
        with pq.ParquetWriter(file, schema, compression=_COMPRESSION) as writer:
            for part in parts:
                if part.num_rows:
                    writer.write_table(part.cast(schema), row_group_size=_ROW_GROUP_ROWS)
        os.fsync(file.fileno())


def move_durably(source: Path, target: Path) -> None:
    """Put a file that was written aside in its place, in the same folder.

    Raises
    ------
    WarehouseError
        If the folder cannot be written.
    """
    try:
        source.replace(target)
        _sync_directory(target.parent)
    except OSError as error:
        raise unwritable(target, error) from error


def n_row_groups(n_rows: int) -> int:
    """Row groups that so many rows of one part make."""
    return -(-n_rows // _ROW_GROUP_ROWS)


def remove_folder(folder: Path) -> bool:
    """Make a folder disappear in one atomic step; returns whether it was there.

    Raises
    ------
    WarehouseError
        If it cannot be removed.
    """
    try:
        if not folder.exists():
            return False
        # Renamed first: a reader sees the whole folder or none of it.
        gone = folder.rename(folder.with_name(f"{_REMOVED}{uuid4().hex}"))
        _sync_directory(folder.parent)
        shutil.rmtree(gone)
    except OSError as error:
        raise unwritable(folder, error) from error
    return True


def remove_leftovers(folder: Path) -> None:
    """Remove what killed removals left in a folder; the caller is the only one that removes there."""
    for leftover in folder.glob(f"{_REMOVED}*"):
        try:
            shutil.rmtree(leftover)
        except OSError as error:
            raise unwritable(leftover, error) from error


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Generator[None]:
    """Hold the lock of a file, which is made; it ends with its process, so a killed one blocks nobody.

    Raises
    ------
    WarehouseError
        If the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("w")
    except OSError as error:
        raise unwritable(path, error) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


def unwritable(path: Path, error: OSError) -> WarehouseError:
    """The error of a path that cannot be written."""
    return WarehouseError(
        f"{path}: cannot be written ({error.strerror}); check the folder's permissions and free space"
    )


@contextmanager
def _aside(path: Path) -> Generator[Path]:
    temporary = path.with_name(f".tmp-{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(".tmp-*"):
            leftover.unlink()
        yield temporary
        temporary.replace(path)
        _sync_directory(path.parent)
    except BaseException as error:
        # Where the folder itself could not be made, there is nothing to remove.
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
