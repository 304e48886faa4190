"""From what is missing to partition pieces: the fewest requests, whole days as soon as they are complete.

Here: range algebra over coverage, paging across days, many series at once, rows in the contracts of ``raw``. Not here:
HTTP (``exchange``, ``archive``), what tells only the present (``snapshots``), coins (``ingest_coins``) and storage
(``warehouse``). The assets of raw import it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crypto_assets.intervals import floor_ms, from_ms, interval_delta, to_ms
from crypto_assets.partitions import keys_of
from crypto_assets.resources.archive import ArchiveClient, kline_files
from crypto_assets.resources.exchange import Exchange, SeriesPage
from crypto_assets.resources.klines import KlineKind, KlinePage, described
from crypto_assets.resources.snapshots import Collected
from crypto_assets.resources.sources import SourceError
from crypto_assets.resources.warehouse import SeriesCoverage
from crypto_assets.resources.warehouse.lake import Piece, missing_in, union_of
from crypto_assets.schemas import Table, series_name
from crypto_assets.tables import TABLES

#: A settlement of funding is told within this time.
SETTLEMENT_LAG = timedelta(minutes=1)
#: Tag of a run that asks for everything again, stored or not.
REREAD = "crypto_assets/reread"

Range = tuple[datetime, datetime]


@dataclass(frozen=True)
class Advance:
    """How far a load has come, told after each stored day.

    Attributes
    ----------
    asset, day
        What was stored last.
    n_series, n_done
        Series that lacked something, and how many of them have all of it.
    n_rows
        Rows read so far.
    missing, read
        Series time that was missing at the start, and how much of it has been answered.
    """

    asset: str
    day: str
    n_series: int
    n_done: int
    n_rows: int
    missing: timedelta
    read: timedelta


Listener = Callable[[Advance], None]


def ignore_progress(advance: Advance) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Wanted:
    """One series of candles that is collected."""

    collected: Collected
    kind: KlineKind = "trade"


def fewest_requests(holes: Sequence[Range], reach: timedelta) -> list[Range]:
    """Join holes that one request can span.

    Parameters
    ----------
    holes
        Disjoint sorted ranges.
    reach
        What one full answer covers.

    Examples
    --------
    >>> a, b, c, d = (datetime(2024, 1, 1, hour) for hour in (1, 2, 3, 4))
    >>> fewest_requests([(a, b), (c, d)], timedelta(hours=3)) == [(a, d)]
    True
    """
    joined: list[Range] = []
    for start, end in holes:
        if joined and end - joined[-1][0] <= reach:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def with_overlap(
    asked: Range, covered: Sequence[Range], step: timedelta, reach: timedelta, n_bars: int
) -> Range:
    """Begin a range earlier, over bars that are stored already, as far as that costs no request.

    Exchanges restate what is recent, so what is read again repairs what was stored.

    Parameters
    ----------
    asked
        What is missing.
    covered
        What is stored.
    step, reach
        Length of a bar, and what one full answer covers.
    n_bars
        Bars to read again at most.

    Examples
    --------
    >>> hour = timedelta(hours=1)
    >>> a, b, c = (datetime(2024, 1, 1, at) for at in (0, 10, 11))
    >>> with_overlap((b, c), [(a, b)], hour, 5 * hour, 60) == (datetime(2024, 1, 1, 6), c)
    True
    """
    start, end = asked
    before = next((left for left, right in covered if left < start <= right), start)
    spare = -(-(end - start) // reach) * reach - (end - start)
    return max(before, start - min(n_bars * step, spare // step * step)), end


class KlineSource:
    """Where candles come from: the exchange's requests, its archive of files, or the cheaper of both.

    Parameters
    ----------
    exchange
        Asked page by page.
    closed_before
        The exchange's time of the tick.
    archive
        The archive; None: there is none, or it is not to be used.
    archive_only
        Whether nothing is requested that the archive lacks: it stays missing.
    """

    def __init__(
        self,
        exchange: Exchange,
        closed_before: datetime,
        archive: ArchiveClient | None = None,
        *,
        archive_only: bool = False,
    ) -> None:
        self.exchange = exchange
        self.closed_before = closed_before
        self._archive = archive
        self._archive_only = archive_only

    def pages(
        self, wanted: Wanted, interval: str, start: datetime, end: datetime
    ) -> Iterator[tuple[Range, KlinePage]]:
        """Yield pages in order of time, each with the range that it proves; a file's page may hold more than was asked."""
        for left, right, is_filed in self._stretches(wanted, interval, start, end):
            if is_filed and self._archive is not None:
                yield from self._filed(self._archive, wanted, interval, left, right)
            elif not self._archive_only:
                yield from self._requested(wanted, interval, left, right)

    def _requested(
        self, wanted: Wanted, interval: str, start: datetime, end: datetime
    ) -> Iterator[tuple[Range, KlinePage]]:
        at, market = start, wanted.collected.market
        for page in self.exchange.klines(market, wanted.kind, interval, start, end, self.closed_before):
            yield (page.covered_from or at, page.covered_until), page
            at = page.covered_until

    def _filed(
        self, archive: ArchiveClient, wanted: Wanted, interval: str, start: datetime, end: datetime
    ) -> Iterator[tuple[Range, KlinePage]]:
        market, kind = wanted.collected.market, wanted.kind
        for answer in archive.klines(market, kind, interval, start, end, self.closed_before):
            if answer.page is not None:
                span = (answer.start, min(answer.end, answer.page.covered_until))
                yield (
                    span,
                    answer.page if self._archive_only else self._patched(wanted, interval, span, answer.page),
                )
            elif not self._archive_only:
                yield from self._requested(wanted, interval, max(answer.start, start), min(answer.end, end))

    def _patched(self, wanted: Wanted, interval: str, span: Range, page: KlinePage) -> KlinePage:
        # Archives are known to lack rows that requests still give.
        step = interval_delta(interval)
        stamps = page.rows["ts"].to_pylist() if page.rows.num_rows * step < span[1] - span[0] else None
        if stamps is None:
            return page
        holes = missing_in(_runs(stamps, step), *span)
        reach = self.exchange.page_rows(wanted.collected.market.market_type) * step
        found = [
            more
            for left, right in fewest_requests(holes, reach)
            for _, more in self._requested(wanted, interval, left, right)
        ]
        rows = pa.concat_tables([page.rows, *(more.rows for more in found)])
        # What a request spanned besides the holes is in the file already, and the file's rows come first.
        _, firsts = np.unique(rows["ts"].to_numpy(), return_index=True)
        odd = pa.concat_tables([page.set_aside, *(more.set_aside for more in found)])
        return replace(page, rows=rows.take(pa.array(firsts)), set_aside=odd.sort_by("ts"))

    def _stretches(
        self, wanted: Wanted, interval: str, start: datetime, end: datetime
    ) -> Iterator[tuple[datetime, datetime, bool]]:
        """The parts of a range, and whether files are the cheaper way to them."""
        if self._archive is None:
            yield start, end, False
            return
        market = wanted.collected.market
        page = self.exchange.page_rows(market.market_type) * interval_delta(interval)
        parts: list[tuple[datetime, datetime, bool]] = []
        for file in kline_files(market, wanted.kind, interval, start, end):
            left, right = max(file.start, start), min(file.end, end)
            # A file takes two requests, one of them for its checksum.
            cheaper = right - left > 2 * page and file.due_at <= self.closed_before
            is_filed = cheaper or self._archive_only
            if parts and parts[-1][2] == is_filed:
                parts[-1] = (parts[-1][0], right, is_filed)
            else:
                parts.append((left, right, is_filed))
        yield from parts


def _runs(stamps: Sequence[datetime], step: timedelta) -> Iterator[Range]:
    start = last = None
    for at in stamps:
        if last is not None and at - last != step:
            yield start or at, last + step
            start = at
        start, last = start or at, at
    if start is not None and last is not None:
        yield start, last + step


@dataclass(frozen=True)
class Answer:
    """One answer about a series: what was read, what of it is proved, its rows in order of time, those kept out.

    Less is proved than was read where a row may still be late. What is kept out carries its ``reason``.
    """

    read: Range
    proved: Range
    rows: pa.Table
    set_aside: pa.Table


@dataclass
class Series:
    """A series that is read answer by answer, only as far as the day in hand needs it.

    Attributes
    ----------
    venue, symbol, kind, interval
        Parts of its name.
    asked
        What it lacks and is asked for, in order.
    answers
        The source's answers in order of time; the next one is asked for when it is taken.
    lag
        Time from the end of a row's interval until the row is known.
    is_gone
        Whether the source has dropped it: what it refuses to tell then is its own gap for good.
    error
        What ended the reading.
    n_rows, read
        Rows and time that were read so far.
    """

    venue: str
    symbol: str
    kind: str
    interval: str
    asked: list[Range]
    answers: Iterator[Answer]
    lag: timedelta = timedelta()
    is_gone: bool = False
    error: SourceError | None = field(default=None, init=False)
    n_rows: int = field(default=0, init=False)
    read: timedelta = field(default=timedelta(), init=False)
    _rows: list[pa.Table] = field(default_factory=list, init=False)
    _set_aside: list[pa.Table] = field(default_factory=list, init=False)
    _proved: list[Range] = field(default_factory=list, init=False)
    _reached: datetime = field(default=datetime.min, init=False)  # noqa: DTZ901 - naive UTC
    _ended: bool = field(default=False, init=False)

    def read_until(self, moment: datetime, stop: threading.Event) -> None:
        """Take answers until all that is asked for before a moment is read; a failed source sets ``stop`` for all."""
        while not self._ended and not stop.is_set():
            start = self._next_start
            if start is None or start >= moment:
                return
            try:
                answer = next(self.answers)
            except StopIteration:
                self._ended = True
            except SourceError as error:
                self._ended = True
                if error.concerns_one_series and self.is_gone:
                    self._give_up()
                    return
                self.error = error
                if not error.concerns_one_series:
                    stop.set()
            else:
                self._rows.append(answer.rows)
                self._set_aside.append(answer.set_aside)
                self._proved.append(answer.proved)
                self.n_rows += answer.rows.num_rows
                self.read += max(timedelta(), answer.read[1] - answer.read[0])
                self._reached = answer.read[1]

    @property
    def is_done(self) -> bool:
        """Whether all that is asked for is read."""
        return self._next_start is None

    def take(self, table: Table, day: Range) -> tuple[pa.Table, list[dict[str, object]], tuple[Range, ...]]:
        """Take what was read of a day: rows by the table's contract, anomalies, what is covered; each once, in order."""
        told = self.venue, self.symbol, self.kind, self.interval
        rows = _take_rows(self._rows, *day)
        if rows is None or not rows.num_rows:
            rows = table.arrow_schema().empty_table()
        else:
            length = interval_delta(self.interval) + self.lag
            known_at = pc.add(rows["ts"], pa.scalar(length, pa.duration("us")))
            constants = dict(zip(("venue", "symbol", "kind", "interval"), told, strict=True))
            rows = in_contract(table, rows.append_column("known_at", known_at), constants)
        odd = _take_rows(self._set_aside, *day)
        covered = union_of((max(left, day[0]), min(right, day[1])) for left, right in self._proved)
        self._proved = [(left, right) for left, right in self._proved if right > day[1]]
        return rows, [] if odd is None else anomaly_rows(odd, table, *told), covered

    @property
    def _next_start(self) -> datetime | None:
        return next((max(left, self._reached) for left, right in self.asked if right > self._reached), None)

    def _give_up(self) -> None:
        left = [(max(start, self._reached), end) for start, end in self.asked if end > self._reached]
        self._proved += left
        self._reached = left[-1][1]


def _take_rows(tables: list[pa.Table], start: datetime, end: datetime) -> pa.Table | None:
    # The rows of [start, end) out of answers in order of time, None without an answer: what is before is dropped, what is
    # later stays in the list.
    if not tables:
        return None
    rows = pa.concat_tables(tables)
    left, right = np.searchsorted(rows["ts"].to_numpy(), np.array([start, end], "datetime64[us]"))
    later = rows.slice(right)
    tables[:] = [later] if later.num_rows else []
    return rows.slice(left, right - left)


def series_pieces(
    table: Table,
    series: Sequence[Series],
    window: Range,
    *,
    now: datetime,
    told_until: datetime,
    told_after: timedelta = timedelta(),
    threads: int = 1,
    listener: Listener = ignore_progress,
) -> Iterator[Piece]:
    """Read many series at the same time and yield what came day by day.

    Parameters
    ----------
    table
        What their rows become.
    series
        Those that lack something, and others; what they ask for lies before ``told_until``.
    window
        Naive UTC days.
    now
        The source's time.
    told_until
        The latest watermark that a day can have.
    told_after
        How long after its end the source tells a day: its watermark when all of it was asked for.
    threads
        Series that are read at the same time.
    listener
        Told after each day.

    Yields
    ------
    Piece
        One per day of the window, days without news included; rows, coverage and anomalies of all series.

    Raises
    ------
    SourceError
        After the piece of a day was yielded with what had come. What concerns one series alone leaves the others to go on
        and is raised at the end; all else ends the load with the day in hand.
    """
    lacking = [one for one in series if one.asked]
    missing = sum((right - left for one in lacking for left, right in one.asked), timedelta())
    stop = threading.Event()
    with ThreadPoolExecutor(max(1, min(threads, len(lacking)))) as pool:
        for key, left, right in keys_of("daily", *window):
            try:
                list(pool.map(lambda one, moment=right: one.read_until(moment, stop), lacking))
            except BaseException:
                # Threads that are still reading end with the page in hand.
                stop.set()
                raise
            yield _piece_of(table, lacking, key, (left, right), min(right + told_after, told_until), now)
            listener(
                Advance(
                    table.name,
                    key,
                    len(lacking),
                    sum(one.is_done for one in lacking),
                    sum(one.n_rows for one in lacking),
                    missing,
                    sum((one.read for one in lacking), timedelta()),
                )
            )
            if stop.is_set():
                break
    raise_first(one.error for one in lacking)


def _piece_of(
    table: Table, series: Sequence[Series], key: str, day: Range, watermark: datetime, now: datetime
) -> Piece:
    tables, anomalies, coverage = [table.arrow_schema().empty_table()], [], []
    for one in series:
        rows, odd, covered = one.take(table, day)
        tables.append(rows)
        anomalies += odd
        if covered:
            name = series_name(one.venue, one.symbol, one.kind, one.interval)
            coverage.append(SeriesCoverage(name, covered))
    return Piece(key, pa.concat_tables(tables), tuple(coverage), watermark, anomaly_table(anomalies), now)


def kline_pieces(
    source: KlineSource,
    wanted: Sequence[Wanted],
    covered: Mapping[str, Sequence[Range]],
    window: Range,
    *,
    interval: str,
    overlap_bars: int = 0,
    concurrency: int = 1,
    listener: Listener = ignore_progress,
) -> Iterator[Piece]:
    """Download the candles that a window lacks and yield them day by day.

    Parameters
    ----------
    source
        Where candles come from; only intervals that are closed by its time are asked for.
    wanted
        The series.
    covered
        Name of a series -> ranges already asked for and stored.
    window
        Naive UTC days.
    interval
        Interval of the candles.
    overlap_bars
        Stored bars before a hole that are read again where that costs no request.
    concurrency
        Series that are asked for at the same time, under the one budget.
    listener
        Told after each day.

    Yields
    ------
    Piece
        One per day of the window, days without news included; rows, coverage and anomalies of all series.

    Raises
    ------
    SourceError
        As ``series_pieces``: coverage then shows the hole. What concerns one series alone is an unknown market or a wrong
        answer.
    """
    now = source.closed_before
    watermark = from_ms(floor_ms(to_ms(now), interval))
    asked = (window[0], min(window[1], watermark))
    yield from series_pieces(
        TABLES["raw/klines"],
        [_open(source, one, covered, asked, interval, overlap_bars) for one in wanted],
        window,
        now=now,
        told_until=watermark,
        threads=concurrency,
        listener=listener,
    )


def raise_first(errors: Iterable[SourceError | None]) -> None:
    """Raise the first error, if any, with what else went wrong as notes."""
    found = [error for error in errors if error is not None]
    if found:
        for other in found[1:6]:
            found[0].add_note(f"also: {other}")
        if len(found) > 6:
            found[0].add_note(f"and {len(found) - 6} more")
        raise found[0]


def _open(
    source: KlineSource,
    wanted: Wanted,
    covered: Mapping[str, Sequence[Range]],
    window: Range,
    interval: str,
    overlap_bars: int,
) -> Series:
    market, gone_at = wanted.collected.market, wanted.collected.gone_at
    start, end = window
    if gone_at is not None:
        end = min(end, from_ms(floor_ms(to_ms(gone_at), interval)))
    parts = (source.exchange.venue, market.symbol, wanted.kind, interval)
    known, step = union_of(covered.get(series_name(*parts), ())), interval_delta(interval)
    reach = source.exchange.page_rows(market.market_type) * step
    holes = missing_in(known, start, end) if start < end else []
    asked = [with_overlap(hole, known, step, reach, overlap_bars) for hole in fewest_requests(holes, reach)]

    def answers() -> Iterator[Answer]:
        reached = start
        for left, right in asked:
            # A file that answers one hole may answer the next one as well.
            if max(left, reached) >= right:
                continue
            for proved, page in source.pages(wanted, interval, max(left, reached), right):
                reached = max(reached, proved[1])
                yield Answer(proved, proved, page.rows, page.set_aside)

    return Series(*parts, asked, answers(), is_gone=gone_at is not None)


def in_contract(table: Table, rows: pa.Table, constants: Mapping[str, str]) -> pa.Table:
    """Rows with columns that are the same in each, in the order of a table's contract.

    Raises
    ------
    KeyError
        If a column of the contract is in neither.
    """
    n, schema = rows.num_rows, table.arrow_schema()
    repeated = {name: pa.repeat(pa.scalar(value, pa.string()), n) for name, value in constants.items()}
    columns = [repeated[name] if name in repeated else rows.column(name) for name in schema.names]
    return pa.table(columns, names=schema.names).cast(schema)


def anomaly_rows(
    odd: pa.Table, table: Table, venue: str, symbol: str, series_kind: str, interval: str
) -> list[dict[str, object]]:
    """Rows of quality/anomalies from rows of one series that were set aside, which carry their ``reason``."""
    return [
        {
            "asset": table.name,
            "kind": row.pop("reason"),
            "venue": venue,
            "symbol": symbol,
            "series_kind": series_kind,
            "interval": interval,
            "ts": row["ts"],
            "detail": described(row),
        }
        for row in odd.to_pylist()
    ]


def anomaly_table(rows: Sequence[Mapping[str, object]]) -> pa.Table:
    """Rows of quality/anomalies, typed."""
    return pa.Table.from_pylist(
        [dict(row) for row in rows], schema=TABLES["quality/anomalies"].arrow_schema()
    )


Fetch = Callable[[Collected, datetime, datetime], Iterator[SeriesPage]]


def sample_pieces(
    fetch: Fetch,
    table: Table,
    collected: Sequence[Collected],
    covered: Mapping[str, Sequence[Range]],
    window: Range,
    *,
    venue: str,
    kind: str,
    interval: str,
    now: datetime,
    lag: timedelta = SETTLEMENT_LAG,
    concurrency: int = 1,
    listener: Listener = ignore_progress,
) -> Iterator[Piece]:
    """Download what a window lacks of funding rates or open interest and yield it day by day.

    Parameters
    ----------
    fetch
        Asks for one contract and range.
    table
        raw/funding_rates or raw/open_interest.
    collected
        The contracts.
    covered
        Name of a series -> ranges already answered and stored.
    window
        Naive UTC days.
    venue, kind, interval
        Parts of the series' names.
    now
        The exchange's time.
    lag
        What is younger is not told yet and not asked for.
    concurrency
        Contracts asked for at the same time.
    listener
        Told after each day.

    Yields
    ------
    Piece
        One per day of the window, days without news included.

    Raises
    ------
    SourceError
        After all pieces were yielded with what had come.
    """
    stop = threading.Event()

    def read(one: Collected) -> tuple[str, Collected, list[Range], list[SeriesPage], SourceError | None]:
        name = series_name(venue, one.market.symbol, kind, interval)
        end = min(window[1], now - lag, one.gone_at or now)
        holes = missing_in(union_of(covered.get(name, ())), window[0], end) if window[0] < end else []
        pages: list[SeriesPage] = []
        if not holes or stop.is_set():
            return name, one, [], pages, None
        try:
            # A request spans far more than a hole, so all holes of a contract are one question.
            pages.extend(fetch(one, holes[0][0], holes[-1][1]))
        except SourceError as error:
            if not error.concerns_one_series:
                stop.set()
            return name, one, holes, pages, error
        return name, one, holes, pages, None

    with ThreadPoolExecutor(max(1, min(concurrency, len(collected)))) as pool:
        found = list(pool.map(read, collected))
    missing = sum((right - left for _, _, holes, _, _ in found for left, right in holes), timedelta())
    lacking, n_rows = sum(bool(holes) for _, _, holes, _, _ in found), 0
    for key, left, right in keys_of("daily", *window):
        tables, anomalies, coverage = [table.arrow_schema().empty_table()], [], []
        for name, one, _, pages, _ in found:
            symbol = one.market.symbol
            for page in pages:
                rows = _of_day(page.rows, left, right)
                if rows.num_rows:
                    tables.append(
                        in_contract(table, _with_known_at(rows), {"venue": venue, "symbol": symbol})
                    )
                odd = _of_day(page.set_aside, left, right)
                anomalies += anomaly_rows(odd, table, venue, symbol, kind, interval)
            ranges = union_of((max(p.covered_from, left), min(p.covered_until, right)) for p in pages)
            if ranges:
                coverage.append(SeriesCoverage(name, ranges))
        rows = pa.concat_tables(tables)
        n_rows += rows.num_rows
        yield Piece(key, rows, tuple(coverage), min(right, now), anomaly_table(anomalies), now)
        listener(Advance(table.name, key, lacking, lacking, n_rows, missing, missing))
    raise_first(error for *_, error in found)


def _with_known_at(rows: pa.Table) -> pa.Table:
    told = rows["settled_at"] if "settled_at" in rows.column_names else rows["ts"]
    # A settlement told a few milliseconds early is none that was known before its time.
    return rows.append_column("known_at", pc.max_element_wise(told, rows["ts"]))


def _of_day(rows: pa.Table, start: datetime, end: datetime) -> pa.Table:
    left, right = np.searchsorted(rows["ts"].to_numpy(), np.array([start, end], "datetime64[us]"))
    return rows.slice(left, right - left)


def midnight_before(moment: datetime) -> datetime:
    """Start of the UTC day of a naive UTC moment.

    Examples
    --------
    >>> midnight_before(datetime(2024, 1, 2, 13, 30))
    datetime.datetime(2024, 1, 2, 0, 0)
    """
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)
