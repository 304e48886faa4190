"""The exchange's public archive: monthly and daily zips of CSV, their checksum files, byte ranges, publication times.

Here: which file a path names, when it is there, its bytes, and HTTP's ranges and conditions on it. Not here: the rows
(``world``), sockets and which request is met by a fault (``server``, ``faults``). Only ``server.py`` and tests import
it.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from email.utils import formatdate, parsedate_to_datetime
from functools import lru_cache
from hashlib import md5, sha256
from typing import Any
from xml.sax.saxutils import escape
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute

from crypto_assets.intervals import DAY_MS, HOUR_MS, from_ms, to_ms
from crypto_assets.simulation.bars import (
    CLOSE,
    EXCHANGE_INTERVALS,
    HIGH,
    LOW,
    N_DECIMALS,
    OPEN,
    TAKER_BASE,
    TAKER_QUOTE,
    UNITS,
    VOLUME_BASE,
    VOLUME_QUOTE,
    Bars,
    bar_end,
)
from crypto_assets.simulation.dialects import WIRE_COLUMNS
from crypto_assets.simulation.render import decimal_text
from crypto_assets.simulation.world import Kind, Market, World

# pyarrow makes its compute functions while it is imported, where a type checker cannot see them.
pc: Any = pyarrow.compute

#: The archive's own spelling of an interval where it differs from the API's.
_INTERVALS = {"1mo": "1M"} | {interval: interval for interval in EXCHANGE_INTERVALS if interval != "1M"}
_KINDS: dict[str, Kind | None] = {
    "klines": "trade",
    "markPriceKlines": "mark",
    "premiumIndexKlines": "premium",
    "fundingRate": None,
}
_FUNDING_COLUMNS = b"calc_time,funding_interval_hours,last_funding_rate\n"
_PUBLISHED_AT_MS = 6 * HOUR_MS
#: Spot files of this day and later ones count in microseconds.
_MICROSECONDS_FROM_MS = to_ms(from_ms(0).replace(year=2025))
_ANY_ROWS = 10**9

_KLINES = re.compile(
    r"/data/(?P<section>spot|futures/um)/(?P<every>monthly|daily)"
    r"/(?P<folder>klines|markPriceKlines|premiumIndexKlines)/(?P<symbol>[^/]+)"
    r"/(?P<interval>\w+)/(?P=symbol)-(?P=interval)-(?P<period>\d{4}-\d\d(?:-\d\d)?)\.zip"
)
_FUNDING = re.compile(
    r"/data/(?P<section>futures/um)/(?P<every>monthly)/(?P<folder>fundingRate)/(?P<symbol>[^/]+)"
    r"/(?P=symbol)-fundingRate-(?P<period>\d{4}-\d\d)\.zip"
)


@dataclass(frozen=True)
class ArchiveAnswer:
    """An HTTP answer of the archive."""

    status: int
    body: bytes
    headers: dict[str, str]


@dataclass(frozen=True)
class ArchiveFile:
    """What a path of the archive names: rows of a market that open in [start_ms, end_ms).

    Without a kind they are its funding rates. The file is there from ``published_ms`` on if it has a row.
    """

    name: str
    market: Market
    kind: Kind | None
    interval: str
    start_ms: int
    end_ms: int
    published_ms: int


class Archive:
    """The archive of a world.

    A file of a day is there from 06:00 UTC of the next day, that of a month from 06:00 UTC of the first Monday after
    the month, both as long as they have a row. They hold the bars that had closed when they were published. A
    restatement changes every file with its candle at the moment at which it is published. Equal paths at equal
    moments have equal bytes.

    Parameters
    ----------
    world
        What there is to know.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        # A month of minutes takes 2.5 MB; clients ask for a file and its checksum one after the other.
        self._zip = lru_cache(maxsize=16)(self._make_zip)
        self._digest = lru_cache(maxsize=4096)(self._make_digest)

    def answer(
        self, path: str, headers: Mapping[str, str], now_ms: int, damage: str | None = None
    ) -> ArchiveAnswer:
        """Answer GET ``path`` (``/data/...``) as the archive does at ``now_ms``.

        Parameters
        ----------
        path, headers
            Of the request; ``Range``, ``If-Range``, ``If-None-Match`` and ``If-Modified-Since`` are obeyed.
        now_ms
            Market time.
        damage
            A kind of ``faults.KINDS`` that changes an archive's file, if one is due.
        """
        file = self.named(path, now_ms)
        if file is None or file.published_ms > now_ms:
            return _error(404, "NoSuchKey", "The specified key does not exist.", path)
        due = self._restated(file, now_ms)
        digest = self._digest(file, due)
        if digest is None:
            return _error(404, "NoSuchKey", "The specified key does not exist.", path)
        modified_s = max(file.published_ms, *due, 0) // 1000
        if not path.endswith(".CHECKSUM"):
            zipped = self._zip(file, due)
            return _conditional(
                _damaged_zip(zipped, damage), zipped, "application/zip", modified_s, headers, path
            )
        if damage == "wrong_checksum":
            digest = sha256(digest.encode()).hexdigest()
        elif damage == "corrupt_member":
            digest = sha256(_damaged_zip(self._zip(file, due), damage)).hexdigest()
        body = f"{digest}  {file.name}.zip\n".encode()
        return _conditional(body, body, "binary/octet-stream", modified_s, headers, path)

    def named(self, path: str, now_ms: int) -> ArchiveFile | None:
        """Return what a path of a zip or its checksum means, there or not; None: it can never be there."""
        zip_path = path.removesuffix(".CHECKSUM")
        found = _KLINES.fullmatch(zip_path) or _FUNDING.fullmatch(zip_path)
        if found is None:
            return None
        parts = found.groupdict()
        span = _span(parts["period"], parts["every"] == "monthly")
        futures = parts["section"] != "spot"
        market = span and self._market(parts["symbol"], futures, *span, now_ms)
        if span is None or market is None or (parts["folder"] != "klines" and not futures):
            return None
        interval = _INTERVALS.get(parts["interval"]) if "interval" in parts else ""
        if interval is None:
            return None
        start_ms, end_ms = span
        # The first Monday on or after the end of the month; the epoch was a Thursday.
        wait = (4 - end_ms // DAY_MS) % 7 * DAY_MS if parts["every"] == "monthly" else 0
        name = zip_path.rpartition("/")[2].removesuffix(".zip")
        return ArchiveFile(
            name,
            market,
            _KINDS[parts["folder"]],
            interval,
            start_ms,
            end_ms,
            end_ms + wait + _PUBLISHED_AT_MS,
        )

    def _market(self, name: str, futures: bool, start_ms: int, end_ms: int, now_ms: int) -> Market | None:
        # The archive keeps what the exchange no longer names.
        markets = self._world.all_contracts() if futures else self._world.all_markets()
        named = (m for m in markets if m.exchange_symbol == name and m.first_ms <= now_ms)
        return next((m for m in named if m.first_ms < end_ms and m.last_ms >= start_ms), None)

    def _restated(self, file: ArchiveFile, now_ms: int) -> tuple[int, ...]:
        return tuple(
            sorted(
                r.published_at_ms
                for r in self._world.restatements
                if r.symbol == file.market.symbol and r.kind == file.kind
                if file.start_ms <= r.ts_ms < file.end_ms and r.published_at_ms <= now_ms
            )
        )

    def _make_digest(self, file: ArchiveFile, due: tuple[int, ...]) -> str | None:
        zipped = self._zip(file, due)
        return sha256(zipped).hexdigest() if zipped else None

    def _make_zip(self, file: ArchiveFile, due: tuple[int, ...]) -> bytes:
        csv = self._csv(file, max(file.published_ms, *due, 0))
        if not csv:
            return b""
        member = zipfile.ZipInfo(f"{file.name}.csv", from_ms(file.published_ms).timetuple()[:6])
        member.compress_type = zipfile.ZIP_DEFLATED
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            # The lowest level: the time of a test server is worth more than its bytes.
            archive.writestr(member, csv, compresslevel=1)
        return packed.getvalue()

    def _csv(self, file: ArchiveFile, now_ms: int) -> bytes:
        if file.kind is None:
            return self._funding_csv(file)
        bars = self._world.klines(
            file.market.symbol,
            file.interval,
            now_ms=now_ms,
            limit=_ANY_ROWS,
            start_ms=file.start_ms,
            end_ms=file.end_ms - 1,
            kind=file.kind,
        )
        bars = bars.take(bar_end(bars.open_ms, file.interval) <= file.published_ms)
        if not len(bars):
            return b""
        if file.market.is_spot:
            return klines_csv(bars, microseconds=file.start_ms >= _MICROSECONDS_FROM_MS)
        if file.kind != "trade":
            bars = _without_volumes(bars)
        return ",".join(WIRE_COLUMNS).encode() + b"\n" + klines_csv(bars)

    def _funding_csv(self, file: ArchiveFile) -> bytes:
        symbol, published = file.market.symbol, file.published_ms
        rows = self._world.funding(
            symbol, now_ms=published, limit=_ANY_ROWS, start_ms=file.start_ms, end_ms=file.end_ms - 1
        )
        if not len(rows):
            return b""
        hours = [self._world.funding_hours(symbol, moment) or 0 for moment in rows.settled_ms.tolist()]
        rates = pa.array([decimal_text(rate) for rate in rows.rate.tolist()])
        return _FUNDING_COLUMNS + _lines([_integers(rows.settled_ms), _integers(np.array(hours)), rates])


def klines_csv(bars: Bars, *, microseconds: bool = False) -> bytes:
    """Write bars as the archive does: the 12 columns of the wire, unknown values empty, no header.

    Parameters
    ----------
    bars
        Rows in the order of the file.
    microseconds
        Whether times are in microseconds; a close time then ends in 999 of them.

    Examples
    --------
    >>> from crypto_assets.simulation.synthetic import SyntheticWorld
    >>> bar = SyntheticWorld(1, 0, 86_400_000, "1h").final_bars("BTC/USDT", "1h", 0, 1)
    >>> klines_csv(bar).split(b",")[6]
    b'3599999'
    """
    opens, closes = bars.open_ms, bars.close_ms
    if microseconds:
        opens, closes = opens * 1000, closes * 1000 + 999
    columns = [_integers(opens)]
    columns += [_decimals(bars.values[row], bars.shown[row]) for row in (OPEN, HIGH, LOW, CLOSE)]
    columns += [_amounts(bars, VOLUME_BASE), _integers(closes), _amounts(bars, VOLUME_QUOTE)]
    columns += [_integers(bars.n_trades), _amounts(bars, TAKER_BASE), _amounts(bars, TAKER_QUOTE)]
    return _lines([*columns, pa.scalar("0")])


def _integers(numbers: np.ndarray) -> pa.Array:
    texts = pa.array(numbers).cast(pa.string())
    return texts if (numbers >= 0).all() else pc.if_else(pa.array(numbers >= 0), texts, "")


def _amounts(bars: Bars, row: int) -> pa.Array:
    texts = _decimals(bars.values[row], bars.shown[row])
    known = bars.values[row] >= 0
    return texts if known.all() else pc.if_else(pa.array(known), texts, "")


def _decimals(units: np.ndarray, shown: np.ndarray) -> pa.Array:
    n_shown = int(shown[0]) if len(shown) else N_DECIMALS
    if units.dtype == object or (units < 0).any() or (shown != n_shown).any():
        pairs = zip(units.tolist(), shown.tolist(), strict=True)
        return pa.array([decimal_text(value, digits) for value, digits in pairs], pa.string())
    whole = pa.array(units // UNITS).cast(pa.string())
    if not n_shown:
        return whole
    # A one in front keeps the zeros of the fraction.
    fraction = pa.array(units % UNITS // 10 ** (N_DECIMALS - n_shown) + 10**n_shown).cast(pa.string())
    return pc.binary_join_element_wise(whole, pc.utf8_slice_codeunits(fraction, 1), ".")


def _without_volumes(bars: Bars) -> Bars:
    # Of candles without trades the archive prints zeros, and the number of samples where trades are counted.
    values, shown = bars.values.copy(), bars.shown.copy()
    values[VOLUME_BASE:], shown[VOLUME_BASE:] = 0, 0
    return replace(bars, values=values, shown=shown)


def _lines(columns: list[Any]) -> bytes:
    ended = pc.binary_join_element_wise(
        *columns[:-1], pc.binary_join_element_wise(columns[-1], "\n", ""), ","
    )
    # The texts of an array lie one after the other, so that they are the file.
    return ended.buffers()[2].to_pybytes()[: int(np.frombuffer(ended.buffers()[1], np.int32)[len(ended)])]


def _span(period: str, monthly: bool) -> tuple[int, int] | None:
    if monthly != (len(period) == len("2024-01")):
        return None
    try:
        first = date.fromisoformat(f"{period}-01" if monthly else period)
    except ValueError:
        return None
    after = (
        (first.replace(day=28) + timedelta(days=4)).replace(day=1) if monthly else first + timedelta(days=1)
    )
    epoch = date(1970, 1, 1)
    return (first - epoch).days * DAY_MS, (after - epoch).days * DAY_MS


def _damaged_zip(zipped: bytes, damage: str | None) -> bytes:
    match damage:
        case "truncated_zip":
            return zipped[: len(zipped) // 2]
        case "corrupt_member":
            with zipfile.ZipFile(io.BytesIO(zipped)) as archive:
                member = archive.infolist()[0]
            data = member.header_offset + 30 + len(member.filename)
            at = data + member.compress_size // 2
            return zipped[:at] + bytes([zipped[at] ^ 0xFF]) + zipped[at + 1 :]
    return zipped


def _conditional(
    body: bytes, original: bytes, content_type: str, modified_s: int, asked: Mapping[str, str], path: str
) -> ArchiveAnswer:
    """Answer with a body, a range of it, or nothing, as the request's headers want it."""
    # A damaged file keeps the tag of the sound one, as a bad cache between the store and the client does.
    tag = f'"{md5(original, usedforsecurity=False).hexdigest()}"'
    headers = {
        "Content-Type": content_type,
        "ETag": tag,
        "Last-Modified": formatdate(modified_s, usegmt=True),
        "Accept-Ranges": "bytes",
    }
    since = asked.get("If-Modified-Since")
    if asked.get("If-None-Match", "") in (tag, "*") or (
        "If-None-Match" not in asked and since and _http_seconds(since) >= modified_s
    ):
        return ArchiveAnswer(304, b"", headers)
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", asked.get("Range", "").strip())
    condition = asked.get("If-Range")
    if (
        wanted is None
        or wanted[0] == "bytes=-"
        or (condition is not None and condition not in (tag, headers["Last-Modified"]))
    ):
        return ArchiveAnswer(200, body, headers)
    first, last = wanted[1], wanted[2]
    start = int(first) if first else max(0, len(body) - int(last))
    end = min(int(last) + 1, len(body)) if first and last else len(body)
    if start >= len(body) or start >= end:
        refused = _error(416, "InvalidRange", "The requested range is not satisfiable", path)
        return ArchiveAnswer(416, refused.body, refused.headers | {"Content-Range": f"bytes */{len(body)}"})
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(body)}"
    return ArchiveAnswer(206, body[start:end], headers)


def _http_seconds(text: str) -> float:
    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return -1.0


def _error(status: int, code: str, message: str, path: str) -> ArchiveAnswer:
    request_id = f"{crc32(path.encode()):016X}"
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{message}</Message><Key>{escape(path.lstrip('/'))}</Key>"
        f"<RequestId>{request_id}</RequestId><HostId>{request_id}</HostId></Error>"
    )
    return ArchiveAnswer(status, body.encode(), {"Content-Type": "application/xml"})
