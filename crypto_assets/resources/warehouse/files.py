"""Parquet files that are whole or absent: written aside, synced and renamed.

Here: one write. Not here: what is written (``lake``, ``ledger``), which hold the lock of the folder meanwhile.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq


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
    temporary = path.with_name(f".tmp-{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(".tmp-*"):
            leftover.unlink()
        with temporary.open("wb") as file:
            pq.write_table(rows, file, compression="zstd", row_group_size=122_880)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        # Where the folder itself could not be made, there is nothing to remove.
        with suppress(OSError):
            temporary.unlink()
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> WarehouseError:
    """The error of a path that cannot be written."""
    return WarehouseError(
        f"{path}: cannot be written ({error.strerror}); check the folder's permissions and free space"
    )


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
