"""The exchange's public archive of files: which exist for a range, downloads that resume, rows that are verified.

Here: the archive's paths and times of publication, one client, and the record of a file that was read. Not here: what
a file's columns mean (``formats``), whether candles are sound (``klines``), which ranges are missing and who is asked
where the archive has nothing (``ingest``). Resources, assets and tests import it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import threading
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Generic, TypeVar

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import requests
import urllib3

from crypto_assets.formats.containers import only_member
from crypto_assets.formats.klines import read_archive_klines
from crypto_assets.formats.names import named_by
from crypto_assets.formats.samples import read_funding
from crypto_assets.formats.tables import Bytes
from crypto_assets.intervals import interval_ms, next_month
from crypto_assets.resources.exchange import FUNDING_SCHEMA, Market, MarketType, SeriesPage
from crypto_assets.resources.klines import KlineKind, KlinePage, KlineWindow, page_of
from crypto_assets.resources.sources import (
    Failure,
    RateBudget,
    Request,
    RetryPolicy,
    SourceCaller,
    SourceDataInvalid,
    SourceRefused,
)
from crypto_assets.resources.warehouse.ledger import Ledger

ARCHIVE_URL = "https://data.binance.vision"
#: The archive states no limit; this is what a patient download of one machine comes to.
ARCHIVE_REQUESTS = 1200

_SECTIONS: Mapping[MarketType, str] = {"spot": "spot", "perpetual": "futures/um", "delivery": "futures/um"}
_FOLDERS: Mapping[KlineKind, str] = {
    "trade": "klines",
    "mark": "markPriceKlines",
    "premium": "premiumIndexKlines",
}
_NOT_PUBLISHED = frozenset({"10m"})
#: Files of a day appear in the morning after it, those of a month on the first Monday after it.
_PUBLISHED_AFTER = timedelta(hours=6)
#: A month whose file is this late has none, and its days need not be asked for one by one.
_MONTH_IS_LATE = timedelta(days=45)
_CHECKSUM = re.compile(r"(?P<sha256>[0-9a-fA-F]{64}) [ *](?P<name>\S+)\s*")
_CHECKSUM_BYTES = 4096
_CHUNK_BYTES = 1 << 16
_EXCERPT_BYTES = 200

Page = TypeVar("Page")


@dataclass(frozen=True)
class ArchiveFile:
    """One zip of the archive.

    Attributes
    ----------
    path
        Path at the archive: ``/data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2024-01-15.zip``.
    start, end
        What it holds: rows that open in [start, end), naive UTC.
    """

    path: str
    start: datetime
    end: datetime

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def is_month(self) -> bool:
        """Whether it is the file of a month, not of a day."""
        return "/monthly/" in self.path

    @property
    def due_at(self) -> datetime:
        """When it is published, naive UTC; before, it need not be asked for."""
        wait = timedelta(days=-self.end.weekday() % 7) if self.is_month else timedelta()
        return self.end + wait + _PUBLISHED_AFTER


@dataclass(frozen=True)
class SourceFile:
    """One file that was read into a raw table: a row of quality/source_files but for ``published_again``.

    Attributes are the columns of that contract; ``n_rows`` counts the rows that may be stored.
    """

    origin: str
    file: str
    sha256: str
    seen_at: datetime
    format: str
    venue: str
    symbol: str
    kind: str
    interval: str
    n_rows: int
    first_ts: datetime | None
    last_ts: datetime | None


@dataclass(frozen=True)
class ArchiveAnswer(Generic[Page]):
    """What the archive says about a range.

    Attributes
    ----------
    start, end
        The range, naive UTC: the whole span of a file, or what is not available.
    page
        The rows of the file, which prove its whole span; ``None``: there is no file, which proves nothing.
    source
        The record of the file; ``None`` without one.
    """

    start: datetime
    end: datetime
    page: Page | None = None
    source: SourceFile | None = None


def kline_files(
    market: Market, kind: KlineKind, interval: str, start: datetime, end: datetime
) -> list[ArchiveFile]:
    """The files that hold the candles of a range: of months that lie in it as a whole, of days for the rest.

    Parameters
    ----------
    market
        Its type decides the section of the archive.
    kind, interval
        What the candles are; mark and premium only of contracts.
    start, end
        Range of opening times [start, end), naive UTC; days of which a part is asked for count as a whole.

    Raises
    ------
    ValueError
        If the archive has no such files, or the range is empty.

    Examples
    --------
    >>> market = Market("BTC/USDT", "BTCUSDT")
    >>> [file.name for file in kline_files(market, "trade", "1h", datetime(2024, 1, 31), datetime(2024, 3, 1))]
    ['BTCUSDT-1h-2024-01-31.zip', 'BTCUSDT-1h-2024-02.zip']
    """
    interval_ms(interval)
    if interval in _NOT_PUBLISHED:
        raise ValueError(f"the archive has no candles of {interval}; take a shorter interval")
    if kind != "trade" and market.market_type == "spot":
        raise ValueError(
            f"the archive has {kind} candles of contracts only, {market.symbol} is a spot market"
        )
    if start >= end:
        raise ValueError(f"empty range of {market.symbol} {interval}: start {start} is not before end {end}")
    section, folder, native = _SECTIONS[market.market_type], _FOLDERS[kind], _native(market)
    files, at = [], _midnight(start)
    while at < end:
        after = next_month(at)
        every, until = (
            ("monthly", after) if at.day == 1 and after <= end else ("daily", at + timedelta(days=1))
        )
        files.append(_kline_file(section, every, folder, native, interval, at, until))
        at = until
    return files


class ArchiveClient:
    """The files of one archive.

    Safe to share between threads and processes: a file is downloaded by one of them at a time. A broken download is
    resumed where it broke, by the next attempt or the next process, unless the file has changed meanwhile. No row of a
    file is used before its SHA-256 agrees with the archive's checksum file. One file at a time lies in memory.

    Parameters
    ----------
    folder
        Where downloads lie until they are read.
    budget
        Rate budget; every request costs one.
    base_url
        Address of the archive.
    venue
        Name of the exchange, for records and messages.
    timeout_s
        Seconds to wait for a connection and for each part of an answer.
    retry
        Retry policy of each request.
    keep
        Whether files stay in the folder after use; a kept file is not downloaded again while its checksum holds.
    largest_zip_bytes, largest_file_bytes
        Limits of a file as it comes and unpacked; a month of one-minute candles takes 3 and 8 MB.
    on_file
        Called with the record of every file that was read, by the thread that read it.

    Raises
    ------
    ValueError
        If the address is no http address.
    """

    def __init__(
        self,
        folder: Path,
        budget: RateBudget,
        *,
        base_url: str = ARCHIVE_URL,
        venue: str = "binance",
        timeout_s: float = 30.0,
        retry: RetryPolicy | None = None,
        keep: bool = False,
        largest_zip_bytes: int = 256 << 20,
        largest_file_bytes: int = 1 << 30,
        on_file: Callable[[SourceFile], None] = lambda _: None,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"the address {base_url!r} of the archive must start with http:// or https://")
        self.venue = venue
        self._folder = folder
        self._base_url = base_url.rstrip("/")
        self._timeout_s = timeout_s
        self._keep = keep
        self._largest_zip_bytes = largest_zip_bytes
        self._largest_file_bytes = largest_file_bytes
        self._on_file = on_file
        self._caller = SourceCaller(budget, retry or RetryPolicy(), _read_failure)
        self._local = threading.local()

    def klines(
        self,
        market: Market,
        kind: KlineKind,
        interval: str,
        start: datetime,
        end: datetime,
        closed_before: datetime,
    ) -> Iterator[ArchiveAnswer[KlinePage]]:
        """Yield the candles of a range, file by file, and the parts of it that no file holds.

        Parameters
        ----------
        market, kind, interval, start, end
            As ``kline_files``.
        closed_before
            The exchange's time: files are asked for only once they are due by it.

        Yields
        ------
        ArchiveAnswer
            In order of time and without gaps from the day of ``start`` on. A page holds the whole file, also what of
            its first and last day lies outside the range. Where the file of a month is not there yet, its days are.

        Raises
        ------
        SourceUnavailable, SourceRefused
            As ``SourceCaller.call``, and ``SourceRefused`` if the folder cannot be written; what was yielded before
            stays valid.
        SourceDataInvalid
            A file does not agree with its checksum even when downloaded afresh, is damaged, or holds what its name does
            not say or a candle that cannot be. Nothing of it is used.
        """

        def read(csv: Bytes, file: ArchiveFile) -> KlinePage:
            window = KlineWindow(kind, interval, file.start, file.end, closed_before)
            return page_of(read_archive_klines(csv), window)

        labels = _Labels(market, kind, interval, closed_before)
        plan = kline_files(market, kind, interval, start, end)
        yield from _joined(self._answers(plan, labels, read))

    def funding_rates(
        self, market: Market, start: datetime, end: datetime, now: datetime
    ) -> Iterator[ArchiveAnswer[SeriesPage]]:
        """Yield the settlements of a perpetual contract, month by month, and the months that no file holds.

        Parameters
        ----------
        market
            A perpetual contract.
        start, end
            Range of settlements [start, end), naive UTC; months of which a part is asked for count as a whole.
        now
            The exchange's time.

        Yields
        ------
        ArchiveAnswer
            As ``klines``.

        Raises
        ------
        SourceError
            As ``klines``.
        ValueError
            If the market is no perpetual contract, or the range is empty.
        """
        if market.market_type != "perpetual" or start >= end:
            raise ValueError(
                f"no funding of {market.symbol} from {start} to {end}: a perpetual and a range are needed"
            )
        native, plan, at = _native(market), [], _midnight(start).replace(day=1)
        while at < end:
            name = f"{native}-fundingRate-{at:%Y-%m}.zip"
            path = f"/data/futures/um/monthly/fundingRate/{native}/{name}"
            plan.append(ArchiveFile(path, at, next_month(at)))
            at = next_month(at)
        labels = _Labels(market, "funding", "", now)
        yield from _joined(self._answers(plan, labels, _funding_page))

    def changed(self, known: Mapping[str, str]) -> dict[str, str | None]:
        """Tell which files were published again; one request a file, for its checksum.

        Parameters
        ----------
        known
            Path of a file -> SHA-256 that it had.

        Returns
        -------
        dict of str to str or None
            Path of each file with another SHA-256 now -> that; ``None`` where the file is no longer there.

        Raises
        ------
        SourceError
            As ``SourceCaller.call``.
        """
        now = {path: self._checksum(path) for path in known}
        return {path: sha256 for path, sha256 in now.items() if sha256 != known[path].lower()}

    def _answers(
        self, plan: list[ArchiveFile], labels: _Labels, read: Callable[[Bytes, ArchiveFile], Page]
    ) -> Iterator[ArchiveAnswer[Page]]:
        for file in plan:
            answer = self._answer(file, labels, read)
            late = labels.now - file.end > _MONTH_IS_LATE
            if answer.page is None and file.is_month and labels.interval and not late:
                days = [file.start + timedelta(days=n) for n in range((file.end - file.start).days)]
                yield from self._answers([_day_of(file, day) for day in days], labels, read)
            else:
                yield answer

    def _answer(
        self, file: ArchiveFile, labels: _Labels, read: Callable[[Bytes, ArchiveFile], Page]
    ) -> ArchiveAnswer[Page]:
        if labels.now < file.due_at:
            return ArchiveAnswer(file.start, file.end)
        found = self._verified(file)
        if found is None:
            return ArchiveAnswer(file.start, file.end)
        csv, sha256 = found
        try:
            page = read(csv, file)
        except (ValueError, TypeError) as error:
            raise self._invalid(file.path, f"the file's rows are unusable: {error}") from None
        stamps = page.rows.column("ts")
        source = SourceFile(
            "archive",
            file.path,
            sha256,
            labels.now,
            "archive zip",
            self.venue,
            labels.market.symbol,
            labels.kind,
            labels.interval,
            len(stamps),
            stamps[0].as_py() if len(stamps) else None,
            stamps[-1].as_py() if len(stamps) else None,
        )
        self._on_file(source)
        return ArchiveAnswer(file.start, file.end, page, source)

    def _verified(self, file: ArchiveFile) -> tuple[Bytes, str] | None:
        # The unpacked file and the hash of its zip; None if it is not there.
        place = self._folder / file.path.lstrip("/")
        member = file.name.removesuffix(".zip") + ".csv"
        wrong = ""
        with self._alone(place):
            for fresh in (False, True):
                stated = self._checksum(file.path)
                if stated is None:
                    return None
                zipped = None if fresh else self._kept(place, stated)
                if zipped is None:
                    zipped = self._downloaded(file.path, place, fresh=fresh)
                if zipped is None:
                    return None
                came = hashlib.sha256(zipped).hexdigest()
                if came != stated:
                    wrong = f"the zip has SHA-256 {came}, its checksum file says {stated}"
                else:
                    try:
                        unpacked = only_member(zipped, member, self._largest_file_bytes)
                    except ValueError as error:
                        wrong = f"the zip has the SHA-256 {stated} of its checksum file, but {error}"
                    else:
                        if not self._keep:
                            place.unlink(missing_ok=True)
                        return unpacked, stated
                place.unlink(missing_ok=True)
        raise self._invalid(file.path, f"{wrong}; a second download came no better")

    def _kept(self, place: Path, stated: str) -> bytes | None:
        try:
            zipped = place.read_bytes()
        except FileNotFoundError:
            return None
        return zipped if hashlib.sha256(zipped).hexdigest() == stated else None

    def _checksum(self, path: str) -> str | None:
        name = path.rpartition("/")[2]

        def send() -> str | None:
            with self._asked(f"{path}.CHECKSUM", {}) as response:
                if response.status_code == _MISSING:
                    return None
                body = self._caller.wire.body = response.raw.read(_CHECKSUM_BYTES)
            match = _CHECKSUM.fullmatch(body.decode(errors="replace"))
            if match is None:
                # A proxy's page or nothing at all: that often heals, so it is asked for again.
                raise _Garbled("no line with a SHA-256")
            if match["name"] != name:
                raise self._invalid(f"{path}.CHECKSUM", f"it names {match['name']} instead of {name}")
            return match["sha256"].lower()

        return self._caller.call(self._request(f"{path}.CHECKSUM"), send, _as_text)

    def _downloaded(self, path: str, place: Path, *, fresh: bool) -> bytes | None:
        part = _Part(place)
        if fresh:
            part.discard()

        def send() -> bool:
            return self._receive(path, part, fresh=fresh)

        try:
            if not self._caller.call(self._request(path), send, bool):
                return None
            zipped = part.finish()
        except _Unwritable as error:
            part.discard()
            raise SourceRefused(
                str(self._request(path)),
                f"not stored, {place.parent} cannot be written ({error})",
                "check the folder's permissions and free space; it lies in warehouse.folder of platform.yaml",
            ) from error
        return zipped

    def _receive(self, path: str, part: _Part, *, fresh: bool) -> bool:
        headers = {"Cache-Control": "no-cache"} if fresh else {}
        with self._asked(path, headers | part.resuming()) as response:
            if response.status_code == _MISSING:
                part.discard()
                return False
            tag = response.headers.get("ETag", "")
            if response.status_code == _UNSATISFIABLE or (
                response.status_code == _PARTIAL and not part.goes_on(tag, response.headers)
            ):
                # Another file than the one that was begun, whatever the server made of If-Range.
                part.discard()
                self._caller.wire.clear()
                raise _Broken("the file has changed since its download began")
            if response.status_code != _PARTIAL:
                part.begin(tag)
            length = response.headers.get("Content-Length", "")
            whole = part.size + int(length) if length.isdecimal() else None
            with part.open() as target:
                if whole is not None and whole > self._largest_zip_bytes:
                    raise self._too_large(path, part, whole)
                # One piece of the body at a time, so that a break loses nothing that had come.
                while chunk := response.raw.read1(_CHUNK_BYTES):
                    part.write(target, chunk)
                    if part.size > self._largest_zip_bytes:
                        raise self._too_large(path, part, part.size)
            if whole is not None and part.size != whole:
                raise _Broken(f"{part.size} of {whole} bytes came")
        return True

    @contextmanager
    def _asked(self, path: str, headers: Mapping[str, str]) -> Generator[requests.Response]:
        wire = self._caller.wire
        asked = {"Accept-Encoding": "identity", **headers}
        with self._session().get(
            self._base_url + path, headers=asked, stream=True, timeout=self._timeout_s, allow_redirects=False
        ) as response:
            wire.arrived(response.status_code, response.headers)
            if response.status_code not in (_OK, _PARTIAL, _MISSING, _UNSATISFIABLE):
                wire.body = response.raw.read(_EXCERPT_BYTES)
                raise _Garbled(f"HTTP {response.status_code}")
            yield response

    def _session(self) -> requests.Session:
        # One a thread: sessions are not made for sharing. No proxies and keys from the environment that nobody sees.
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
            self._local.session.trust_env = False
        return self._local.session

    @contextmanager
    def _alone(self, place: Path) -> Generator[None]:
        """Keep other threads and processes from the same file."""
        lock = place.with_name(f"{place.name}.lock")
        while True:
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise SourceRefused(
                    f"{self.venue} archive {place.name}",
                    f"not asked for, {place.parent} cannot be written ({error.strerror})",
                    "check the folder's permissions and free space; it lies in warehouse.folder of platform.yaml",
                ) from error
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Whoever held it before may have removed the file that we locked.
            with suppress(FileNotFoundError):
                if lock.stat().st_ino == os.fstat(descriptor).st_ino:
                    break
            os.close(descriptor)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            os.close(descriptor)

    def _request(self, path: str) -> Request:
        return Request(f"{self.venue} archive", path)

    def _too_large(self, path: str, part: _Part, n_bytes: int) -> SourceDataInvalid:
        part.discard()
        return self._invalid(
            path, f"{n_bytes} bytes where {self._largest_zip_bytes} are the most that is accepted"
        )

    def _invalid(self, path: str, wrong: str) -> SourceDataInvalid:
        return SourceDataInvalid(
            str(self._request(path)),
            wrong,
            "nothing of the file was stored; ask again later, or take this range from REST (sources.klines: rest)",
        )


_OK, _PARTIAL, _MISSING, _UNSATISFIABLE = 200, 206, 404, 416


def published_again(archive: ArchiveClient, ledger: Ledger) -> dict[str, tuple[datetime, datetime]]:
    """Files that were read and have another content by now -> the days that they hold, end exclusive.

    One request a file, for its checksum. A file that the archive has withdrawn is not among them.

    Raises
    ------
    SourceError
        As ``ArchiveClient.changed``.
    """
    rows = ledger.source_files().to_pylist()
    files = {row["file"] for row in rows if row["origin"] == "archive"}
    changed = archive.changed({file: ledger.source_file("archive", file) or "" for file in sorted(files)})
    return {path: _span_of(path) for path, sha256 in sorted(changed.items()) if sha256 is not None}


def _span_of(path: str) -> tuple[datetime, datetime]:
    named = named_by(path)
    if named.period_start is None or named.period_end is None:
        raise ValueError(f"{path} is no file of a month or day of the archive")
    return named.period_start, named.period_end


class ArchiveResource(dg.ConfigurableResource):
    """Dagster resource that builds the client of the archive.

    Attributes
    ----------
    venue
        Name of the exchange; only Binance has an archive that is known here.
    base_url
        Address to use in place of the archive's own; ``None`` is live.
    timeout_s
        Seconds to wait for the archive.
    folder
        Where downloads lie until they are read.
    budget_dir
        Folder of the rate budgets.
    requests_per_minute
        Requests to send in any 60 seconds.
    """

    venue: str = "binance"
    base_url: str | None = None
    timeout_s: float = 30.0
    folder: str
    budget_dir: str
    requests_per_minute: int = ARCHIVE_REQUESTS

    def client(self, ledger: Ledger) -> ArchiveClient | None:
        """Build a client that records every file that it reads; None for a venue without an archive."""
        if self.venue != "binance":
            return None
        return ArchiveClient(
            Path(self.folder),
            RateBudget(Path(self.budget_dir), f"{self.venue}-archive", self.requests_per_minute),
            base_url=self.base_url or ARCHIVE_URL,
            venue=self.venue,
            timeout_s=self.timeout_s,
            on_file=lambda file: ledger.add_source_file(asdict(file)),
        )


@dataclass(frozen=True)
class _Labels:
    market: Market
    kind: str
    interval: str
    now: datetime


class _Broken(Exception):
    """An answer that is no whole answer; asking again may help."""


class _Garbled(Exception):
    """An answer that is no answer to the question."""


class _Unwritable(Exception):
    """The folder of the downloads takes no more; it must not be read as a failure of the network."""


@dataclass
class _Part:
    """The beginning of a download, and the tag of the file that it is a beginning of."""

    place: Path
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self._path = self.place.with_name(f"{self.place.name}.part")
        self._tag_path = self.place.with_name(f"{self.place.name}.part.json")
        self.size = self._path.stat().st_size if self._path.is_file() else 0

    @property
    def _tag(self) -> str:
        try:
            return str(json.loads(self._tag_path.read_text(encoding="utf-8"))["etag"])
        except (OSError, ValueError, KeyError, TypeError):
            # Cut off by a kill, or never written: what there is cannot be gone on with.
            return ""

    def resuming(self) -> dict[str, str]:
        """Headers that ask for the rest; none where there is nothing to go on with."""
        if not self.size or not _is_strong(self._tag):
            return {}
        return {"Range": f"bytes={self.size}-", "If-Range": self._tag}

    def goes_on(self, tag: str, headers: Mapping[str, str]) -> bool:
        """Whether an answer with status 206 is the rest that was asked for."""
        return tag == self._tag and headers.get("Content-Range", "").startswith(f"bytes {self.size}-")

    def begin(self, tag: str) -> None:
        """Start anew with a file of this tag."""
        self.discard()
        try:
            # The tag first: bytes without it are never gone on with, with a wrong one they would be.
            self._tag_path.write_text(json.dumps({"etag": tag}), encoding="utf-8")
        except OSError as error:
            raise _Unwritable(error.strerror) from error

    @contextmanager
    def open(self) -> Generator[int]:
        """The file to add to, as a descriptor."""
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _Unwritable(error.strerror) from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def write(self, descriptor: int, chunk: bytes) -> None:
        """Add bytes."""
        rest = memoryview(chunk)
        try:
            while rest:
                n = os.write(descriptor, rest)
                rest = rest[n:]
                self.size += n
        except OSError as error:
            raise _Unwritable(error.strerror) from error

    def finish(self) -> bytes:
        """The whole file's bytes; it lies at its place then."""
        self._tag_path.unlink(missing_ok=True)
        self._path.replace(self.place)
        return self.place.read_bytes()

    def discard(self) -> None:
        """Forget what had come."""
        self._path.unlink(missing_ok=True)
        self._tag_path.unlink(missing_ok=True)
        self.size = 0


def _is_strong(tag: str) -> bool:
    return tag.startswith('"') and len(tag) > 2


def _read_failure(error: Exception) -> Failure | None:
    if isinstance(error, _Garbled):
        return "garbled"
    broken = (_Broken, requests.RequestException, urllib3.exceptions.HTTPError, zlib.error)
    return "unavailable" if isinstance(error, broken) else None


def _as_text(payload: object) -> str | None:
    return None if payload is None else str(payload)


def _joined(answers: Iterator[ArchiveAnswer[Page]]) -> Iterator[ArchiveAnswer[Page]]:
    """Join neighbours that are not available, so that somebody else is asked for them once."""
    missing: ArchiveAnswer[Page] | None = None
    for answer in answers:
        if answer.page is None:
            missing = ArchiveAnswer(missing.start if missing else answer.start, answer.end)
            continue
        if missing is not None:
            yield missing
            missing = None
        yield answer
    if missing is not None:
        yield missing


def _funding_page(csv: Bytes, file: ArchiveFile) -> SeriesPage:
    columns = read_funding(csv).columns
    return funding_page_of(columns, file.start, file.end)


def funding_page_of(columns: Mapping[str, pa.Array], start: datetime, end: datetime) -> SeriesPage:
    """Check settlements and put them on the clock.

    Parameters
    ----------
    columns
        As ``formats.samples.read_funding`` gives them, in the order of the source.
    start, end
        Range [start, end) of naive UTC times that every settlement lies in, and that they prove.

    Returns
    -------
    SeriesPage
        ``ts`` is the told time to the nearest second. Of several rows of one settlement the last one counts.

    Raises
    ------
    ValueError
        If times run backwards or leave the range, or a rate is not finite.
    """
    settled = columns["settled_at"].to_numpy()
    if (settled[1:] < settled[:-1]).any():
        raise ValueError("settlement times must not run backwards")
    rates = columns["funding_rate_frac"].to_numpy()
    if not np.isfinite(rates).all():
        raise ValueError(f"the funding rate of row {int(np.argmin(np.isfinite(rates)))} is not finite")
    ms = (settled + 500) // 1000 * 1000
    marks = columns.get("mark_price")
    table = pa.table(
        [
            pa.array(ms).cast(pa.timestamp("ms")).cast(pa.timestamp("us")),
            columns["settled_at"].cast(pa.timestamp("ms")).cast(pa.timestamp("us")),
            columns["funding_rate_frac"],
            pa.nulls(len(ms), pa.float64()) if marks is None else marks,
        ],
        schema=FUNDING_SCHEMA,
    )
    if len(ms):
        first, last = table["ts"][0].as_py(), table["ts"][-1].as_py()
        if first < start or last >= end:
            raise ValueError(f"settlements from {first} to {last} leave the range [{start}, {end})")
    newest = pa.array(np.r_[ms[1:] != ms[:-1], np.ones(min(len(ms), 1), bool)])
    odd = table.append_column("reason", pa.repeat(pa.scalar("duplicate"), len(ms)))
    return SeriesPage(table.filter(newest), odd.filter(pc.invert(newest)), start, end)


def _native(market: Market) -> str:
    # The name becomes part of a path, here and at the archive.
    if not re.fullmatch(r"\w+", market.exchange_symbol):
        raise ValueError(
            f"{market.exchange_symbol!r} of {market.symbol} is no name that the archive has files of"
        )
    return market.exchange_symbol


def _kline_file(
    section: str, every: str, folder: str, native: str, interval: str, start: datetime, end: datetime
) -> ArchiveFile:
    period = f"{start:%Y-%m}" if every == "monthly" else f"{start:%Y-%m-%d}"
    name = f"{native}-{interval}-{period}.zip"
    return ArchiveFile(f"/data/{section}/{every}/{folder}/{native}/{interval}/{name}", start, end)


def _day_of(month: ArchiveFile, day: datetime) -> ArchiveFile:
    stem = month.path.replace("/monthly/", "/daily/").removesuffix(f"{month.start:%Y-%m}.zip")
    return ArchiveFile(f"{stem}{day:%Y-%m-%d}.zip", day, day + timedelta(days=1))


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)
