"""Files inside gz, zip and tar: one content at a time, never larger than agreed.

Here: taking containers apart by what their bytes say, not by their names. Not here: what a content means (``klines``,
``samples``). The package, resources and tests import it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import deflate

from crypto_assets.formats.tables import Bytes

#: A month of one-minute candles is 8 MB of CSV; a decade of them in one file still fits.
LARGEST_BYTES = 1 << 30
_DAMAGES = (
    EOFError,
    zlib.error,
    deflate.DeflateError,
    gzip.BadGzipFile,
    zipfile.BadZipFile,
    tarfile.TarError,
    RuntimeError,  # encrypted, or packed in a way that Python does not know
)
_TAR_MAGIC_AT, _TAR_BLOCK = 257, 512
_LOCAL_HEADER_BYTES, _ENCRYPTED = 30, 0x1


@dataclass(frozen=True)
class Content:
    """One file, out of its containers.

    Attributes
    ----------
    name
        Name of the outermost file and, for a member, its path inside: ``BTCUSDT-1h.tar.gz/2022-01.json``.
    data
        Its bytes.
    sha256
        Of the file as people see it: the whole outermost file, unless it is a container of several files; then of the
        member.
    """

    name: str
    data: bytes
    sha256: str


def contents(path: Path, largest: int = LARGEST_BYTES) -> Iterator[Content]:
    """Yield what a file holds: itself, or the members of the gz, zip, tar or tar.gz that it is.

    Parameters
    ----------
    path
        The file.
    largest
        Bytes of one content at most, unpacked.

    Raises
    ------
    ValueError
        If the file or a member is damaged, encrypted or larger than ``largest``; members before it were yielded.
    OSError
        If the file cannot be read.
    """
    with path.open("rb") as stream:
        yield from _contents(stream, path.name, largest)


def contents_of(data: bytes, name: str, largest: int = LARGEST_BYTES) -> Iterator[Content]:
    """Yield what the bytes of a file hold, see ``contents``."""
    yield from _contents(io.BytesIO(data), name, largest)


def only_member(zipped: bytes, name: str, largest: int = LARGEST_BYTES) -> Bytes:
    """Bytes of the one member of a zip, which has to have this name.

    Raises
    ------
    ValueError
        If the zip is damaged, holds something else, or the member is larger than ``largest``.
    """
    with _reading(name), zipfile.ZipFile(io.BytesIO(zipped)) as archive:
        names = archive.namelist()
        if names != [name]:
            raise ValueError(f"the zip holds {', '.join(names) or 'nothing'} where only {name} belongs")
        info = archive.infolist()[0]
        if info.compress_type != zipfile.ZIP_DEFLATED or info.flag_bits & _ENCRYPTED:
            with archive.open(info) as member:
                return _bounded(member, name, largest)
    if info.file_size > largest:
        raise _too_large(name, largest)
    return _inflated(zipped, info)


def _inflated(zipped: bytes, info: zipfile.ZipInfo) -> bytearray:
    # libdeflate takes a third of the time of zlib, which would be most of what a file costs.
    at = info.header_offset
    # The lengths in front of the data may differ from those in the directory.
    n_name, n_extra = struct.unpack_from("<HH", zipped, at + 26)
    start = at + _LOCAL_HEADER_BYTES + n_name + n_extra
    with _reading(info.filename):
        data = deflate.deflate_decompress(
            memoryview(zipped)[start : start + info.compress_size], info.file_size
        )
        if len(data) != info.file_size or deflate.crc32(data) != info.CRC:
            raise zipfile.BadZipFile("its length or its CRC-32 is not what it states")
    return data


def _contents(stream: IO[bytes], name: str, largest: int) -> Iterator[Content]:
    head = stream.read(8)
    stream.seek(0)
    if head.startswith(b"PK\x03\x04"):
        yield from _zip_members(stream, name, largest)
    elif _is_tar(stream):
        # Python takes a tar that is cut between two members for a whole one.
        stream.seek(-_TAR_BLOCK, os.SEEK_END)
        is_whole = not any(stream.read(_TAR_BLOCK))
        stream.seek(0)
        yield from _tar_members(stream, name, largest)
        if not is_whole:
            raise ValueError(f"{name} cannot be unpacked: its end is missing")
    elif head.startswith(b"\x1f\x8b") and _holds_tar(stream, name):
        with _reading(name), gzip.open(stream) as unpacked:
            yield from _tar_members(unpacked, name, largest)
    else:
        packed = _bounded(stream, name, largest)
        yield Content(name, _unpacked(packed, name, largest), hashlib.sha256(packed).hexdigest())


def _zip_members(stream: IO[bytes], name: str, largest: int) -> Iterator[Content]:
    with _reading(name), zipfile.ZipFile(stream) as archive:
        members = [info for info in archive.infolist() if not info.is_dir()]
        for info in members:
            member_name = f"{name}/{info.filename}"
            with archive.open(info) as member:
                packed = _bounded(member, member_name, largest)
            whole = len(members) == 1
            sha256 = _sha256_of(stream) if whole else hashlib.sha256(packed).hexdigest()
            yield Content(member_name, _unpacked(packed, member_name, largest), sha256)


def _tar_members(stream: IO[bytes] | gzip.GzipFile, name: str, largest: int) -> Iterator[Content]:
    # Read as a stream: a tar of a thousand files never lies in memory as a whole.
    with _reading(name), tarfile.open(fileobj=stream, mode="r|") as archive:
        for info in archive:
            member = archive.extractfile(info) if info.isfile() else None
            if member is None:
                continue
            member_name = f"{name}/{info.name.removeprefix('./')}"
            if info.size > largest:
                raise _too_large(member_name, largest)
            packed = member.read()
            sha256 = hashlib.sha256(packed).hexdigest()
            yield Content(member_name, _unpacked(packed, member_name, largest), sha256)


def _is_tar(stream: IO[bytes] | gzip.GzipFile) -> bool:
    stream.seek(_TAR_MAGIC_AT)
    found = stream.read(5)
    stream.seek(0)
    return found == b"ustar"


def _holds_tar(stream: IO[bytes], name: str) -> bool:
    with _reading(name), gzip.open(stream) as unpacked:
        found = _is_tar(unpacked)
    stream.seek(0)
    return found


def _unpacked(packed: bytes, name: str, largest: int) -> bytes:
    if not packed.startswith(b"\x1f\x8b"):
        return packed
    with _reading(name), gzip.open(io.BytesIO(packed)) as stream:
        return _bounded(stream, name, largest)


def _bounded(stream: IO[bytes] | gzip.GzipFile, name: str, largest: int) -> bytes:
    # What a header says of its size is not believed: reading stops where the limit is passed.
    data = stream.read(largest + 1)
    if len(data) > largest:
        raise _too_large(name, largest)
    return data


def _too_large(name: str, largest: int) -> ValueError:
    return ValueError(f"{name} holds more than the {largest} bytes that are allowed; split it")


def _sha256_of(stream: IO[bytes]) -> str:
    stream.seek(0)
    digest = hashlib.sha256()
    for part in iter(lambda: stream.read(1 << 20), b""):
        digest.update(part)
    return digest.hexdigest()


@contextmanager
def _reading(name: str) -> Generator[None]:
    try:
        yield
    except _DAMAGES as error:
        raise ValueError(f"{name} cannot be unpacked: {str(error) or type(error).__name__}") from error
