"""Order books from snapshot to table: rounds over many markets, the continuous collector, closed days, retention.

Here: when books are asked for, rows by the contracts raw/order_books and raw/order_book_summary, what is recorded as
odd. Not here: requests (``exchange``), what a book says (``quant``; handed in as a function), storing (``warehouse``).
Assets of raw, the command line and tests import it.
"""

from __future__ import annotations

import json
import signal
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Protocol

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa

from crypto_assets.partitions import HOUR, floor_of, keys_of, start_of
from crypto_assets.resources.exchange import Market, OrderBook
from crypto_assets.resources.sources import SourceError, SourceUnavailable
from crypto_assets.resources.warehouse.catalog import Catalog
from crypto_assets.resources.warehouse.io_manager import Publisher, to_pandas
from crypto_assets.resources.warehouse.lake import GRACE, Lake, PartitionStream, Piece, SeriesCoverage
from crypto_assets.schemas import Table, series_name
from crypto_assets.tables import TABLES

LEVELS = TABLES["raw/order_books"]
SUMMARY = TABLES["raw/order_book_summary"]
_ANOMALIES = TABLES["quality/anomalies"].arrow_schema()
_KIND = "order_book"
_EMPTY = "empty_book"
#: Status of a snapshot -> how it stands in the record of anomalies. A book without levels is recorded when it comes.
_ODD = {
    "one_sided": "one_sided_book",
    "crossed": "crossed_book",
    "out_of_sequence": "book_out_of_sequence",
    "stale": "stale_book",
}
_EPOCH = datetime(1970, 1, 1)

Range = tuple[datetime, datetime]
#: Levels (raw/order_books) and books without any (venue, symbol, ts, known_at, last_update_id) -> summary rows.
Summarise = Callable[[pd.DataFrame, pd.DataFrame], pd.DataFrame]


class Books(Protocol):
    """What is asked of an exchange here; every ``Exchange`` can."""

    @property
    def venue(self) -> str:
        """Name of the venue."""
        ...

    def server_time(self) -> datetime:
        """Read the venue's clock, naive UTC."""
        ...

    def order_book(self, market: Market, n_levels: int) -> OrderBook:
        """Read the best levels of both sides now."""
        ...


@dataclass(frozen=True)
class BookRound:
    """One look at the books of many markets.

    Attributes
    ----------
    venue
        Name of the venue.
    ts, known_at
        The exchange's time before the first book was asked for and after the last had come.
    levels
        Rows of raw/order_books.
    empty
        Symbols whose book came without a level -> its number.
    answered
        Symbols whose book came, sorted.
    failures
        Symbols whose book did not come -> why.
    """

    venue: str
    ts: datetime
    known_at: datetime
    levels: pa.Table
    empty: Mapping[str, int | None]
    answered: tuple[str, ...]
    failures: Mapping[str, SourceError]

    def require_all(self) -> None:
        """Raise the error of the first symbol that failed, with the names of all that did."""
        for symbol in sorted(self.failures):
            error = self.failures[symbol]
            error.add_note(f"order books that did not come: {', '.join(sorted(self.failures))}")
            raise error


def look(
    exchange: Books,
    markets: Sequence[Market],
    n_levels: int,
    *,
    ts: datetime | None = None,
    n_threads: int = 4,
) -> BookRound:
    """Ask for the books of many markets, some at a time.

    Parameters
    ----------
    exchange
        The venue.
    markets
        What to ask for.
    n_levels
        Levels of each side.
    ts
        The exchange's time if it was just asked; None: it is asked first.
    n_threads
        Requests under way at most; the rate budget paces them.

    Raises
    ------
    SourceError
        If the exchange does not tell its time: without it nothing can be stored. A book that does not come fails alone.
    """
    begun = exchange.server_time() if ts is None else ts

    def ask(market: Market) -> OrderBook | SourceError:
        try:
            return exchange.order_book(market, n_levels)
        except SourceError as error:
            return error

    with ThreadPoolExecutor(max(1, min(n_threads, len(markets)))) as pool:
        answers = dict(zip((market.symbol for market in markets), pool.map(ask, markets), strict=True))
    # An exchange that sets its clock back does not know a book before it was asked for.
    known_at = max(exchange.server_time(), begun)
    books = {symbol: answer for symbol, answer in answers.items() if isinstance(answer, OrderBook)}
    tables = [rows_of(books[symbol], exchange.venue, symbol, begun, known_at) for symbol in sorted(books)]
    return BookRound(
        exchange.venue,
        begun,
        known_at,
        pa.concat_tables([LEVELS.arrow_schema().empty_table(), *tables]),
        {name: book.last_update_id for name, book in books.items() if not len(book.bids) + len(book.asks)},
        tuple(sorted(books)),
        {symbol: answer for symbol, answer in answers.items() if isinstance(answer, SourceError)},
    )


def rows_of(book: OrderBook, venue: str, symbol: str, ts: datetime, known_at: datetime) -> pa.Table:
    """A book as rows of raw/order_books: asks, then bids, best price first."""
    sides = {"ask": book.asks, "bid": book.bids}
    n = sum(map(len, sides.values()))
    table = np.concatenate([np.asarray(side, np.float64).reshape(-1, 2) for side in sides.values()])
    columns = {
        "venue": pa.repeat(pa.scalar(venue), n),
        "symbol": pa.repeat(pa.scalar(symbol), n),
        "ts": pa.repeat(pa.scalar(ts, pa.timestamp("us")), n),
        "known_at": pa.repeat(pa.scalar(known_at, pa.timestamp("us")), n),
        "side": pa.array(np.repeat(list(sides), [len(side) for side in sides.values()]), pa.string()),
        "level": pa.array(np.concatenate([np.arange(len(side)) for side in sides.values()]), pa.int32()),
        "price": table[:, 0],
        "amount_base": table[:, 1],
        "last_update_id": pa.repeat(pa.scalar(book.last_update_id, pa.int64()), n),
        "book_time": pa.repeat(pa.scalar(book.exchange_time, pa.timestamp("us")), n),
    }
    return pa.table(columns, schema=LEVELS.arrow_schema())


# -- rounds as partitions


def slot_of(moment: datetime, every: timedelta) -> datetime:
    """Start of the round that a moment belongs to.

    Raises
    ------
    ValueError
        If rounds of this length do not divide an hour.
    """
    if every < timedelta(seconds=1) or HOUR % every or every % timedelta(seconds=1):
        raise ValueError(
            f"a round every {every} does not divide an hour into whole seconds; use 10s, 1m, 5m ..."
        )
    return moment - (moment - _EPOCH) % every


def interval_of(every: timedelta) -> str:
    """Name of the interval of the series that rounds make, in seconds: ``60s``."""
    return f"{every // timedelta(seconds=1)}s"


def lacking(
    markets: Sequence[Market],
    venue: str,
    covered: Mapping[str, Sequence[Range]],
    slot: datetime,
    every: timedelta,
) -> list[Market]:
    """The markets whose book was not seen in a round yet."""
    return [
        market
        for market in markets
        if not any(
            left <= slot < right
            for left, right in covered.get(series_name(venue, market.symbol, _KIND, interval_of(every)), ())
        )
    ]


def book_pieces(
    exchange: Books,
    markets: Sequence[Market],
    covered: Mapping[str, Sequence[Range]],
    window: Range,
    *,
    n_levels: int,
    every: timedelta,
    now: datetime,
    n_threads: int = 4,
) -> Iterator[Piece]:
    """Look once at what the running round lacks, and yield the hours of a window.

    Parameters
    ----------
    covered
        Series -> ranges that are stored already, see ``WarehouseResource.covered``: one look per market and round.
    window
        Naive UTC hours.
    every
        Length of a round, divides an hour.
    now
        The exchange's time, just asked for.

    Yields
    ------
    Piece
        One per hour of raw/order_books. An hour that does not hold ``now`` is empty: a book tells only the present.

    Raises
    ------
    SourceError
        Of the first market whose book did not come, after the others were yielded.
    """
    wanted = lacking(markets, exchange.venue, covered, slot_of(now, every), every)
    for key, left, right in keys_of("hourly", *window):
        if left <= now < right and wanted:
            seen = look(exchange, wanted, n_levels, ts=now, n_threads=n_threads)
            yield from pieces_of([seen], every)
            seen.require_all()
        else:
            yield Piece(key, LEVELS.arrow_schema().empty_table(), watermark=min(right, max(left, now)))


def book_hours(window: Range, now: datetime) -> dict[str, str | int]:
    """What a run over hours can see of them, as metadata of its asset."""
    starts = [left for _, left, _ in keys_of("hourly", *window)]
    n_past = sum(left + HOUR <= now for left in starts)
    n_present = sum(left <= now < left + HOUR for left in starts)
    status = "seen" if n_present else "past: a book tells only the present" if n_past else "not begun"
    return {"status": status, "n_hours_past": n_past, "n_hours_present": n_present}


def pieces_of(rounds: Sequence[BookRound], every: timedelta) -> Iterator[Piece]:
    """Rounds as pieces of raw/order_books, one per hour: rows, what was covered, books without a level."""
    by_hour: dict[datetime, list[BookRound]] = {}
    for one in rounds:
        by_hour.setdefault(floor_of("hourly", one.ts), []).append(one)
    for start in sorted(by_hour):
        here = by_hour[start]
        (key, _, _) = next(keys_of("hourly", start, start + HOUR))
        coverage = [
            SeriesCoverage(
                series_name(one.venue, symbol, _KIND, interval_of(every)),
                ((slot_of(one.ts, every), slot_of(one.ts, every) + every),),
            )
            for one in here
            for symbol in one.answered
        ]
        empty = [
            _anomaly(
                _EMPTY,
                {"venue": one.venue, "symbol": symbol, "ts": one.ts, "interval": interval_of(every)},
                {"known_at": one.known_at.isoformat(), "last_update_id": number},
            )
            for one in here
            for symbol, number in one.empty.items()
        ]
        yield Piece(
            key,
            pa.concat_tables([one.levels for one in here]),
            tuple(coverage),
            max(one.known_at for one in here),
            pa.Table.from_pylist(empty, schema=_ANOMALIES),
        )


def summary_pieces(
    lake: Lake, window: Range, summarise: Summarise, *, look_back: timedelta
) -> Iterator[Piece]:
    """Summarise the stored books of a window, hour by hour.

    Parameters
    ----------
    lake
        Holds raw/order_books.
    window
        Naive UTC; it need not begin on the hour.
    summarise
        What a book says, see ``quant.order_books.summary``.
    look_back
        How much history ``summarise`` compares with.

    Yields
    ------
    Piece
        One per hour of raw/order_book_summary, with the coverage and watermark of the books themselves; snapshots that
        are not to be trusted are recorded as anomalies of raw/order_books.
    """
    for key, left, right in keys_of("hourly", floor_of("hourly", window[0]), window[1]):
        stored = lake.provenance(LEVELS, key)
        if stored is None or not (stored.rows or stored.coverage):
            nothing = SUMMARY.arrow_schema().empty_table()
            yield Piece(key, nothing, watermark=(stored.watermark if stored else None) or right)
            continue
        since = max(left, window[0])
        earliest = since - look_back
        hours = [name for name, _, _ in keys_of("hourly", floor_of("hourly", earliest), right)]
        levels = to_pandas(lake.read(LEVELS, hours, where=f"ts >= timestamp '{earliest}'"))
        found = summarise(levels, _without_levels(lake, hours, earliest))
        rows = found[found["ts"] >= since]
        yield Piece(
            key, rows, stored.coverage, stored.watermark or right, _not_to_be_trusted(rows, stored.coverage)
        )


def unsummarised(lake: Lake) -> list[str]:
    """Hours whose books are stored and covered otherwise than their summary says, in order."""

    def told(table: Table, key: str) -> object:
        stored = lake.provenance(table, key)
        return stored and (stored.coverage, stored.watermark)

    return [key for key in lake.partitions(LEVELS) if told(LEVELS, key) != told(SUMMARY, key)]


def _without_levels(lake: Lake, hours: Sequence[str], since: datetime) -> pd.DataFrame:
    found = pa.concat_tables([lake.ledger.anomalies(LEVELS, key) for key in hours]).to_pandas()
    found = found[(found["kind"] == _EMPTY) & (found["ts"] >= since)]
    told = pd.DataFrame(
        [json.loads(text) for text in found["detail"]], columns=["known_at", "last_update_id"]
    )
    rows = found[["venue", "symbol", "ts"]].reset_index(drop=True)
    rows["known_at"] = pd.to_datetime(told["known_at"], format="ISO8601").astype("datetime64[us]")
    rows["last_update_id"] = told["last_update_id"].astype("Int64")
    return rows


def _not_to_be_trusted(rows: pd.DataFrame, coverage: Sequence[SeriesCoverage]) -> pa.Table:
    intervals = {}
    for item in coverage:
        venue, symbol, _, interval = item.series.split("|")
        intervals[venue, symbol] = interval
    shown = ["status", "best_bid", "best_ask", "last_update_id"]
    odd = rows.loc[rows["status"].isin(list(_ODD)), ["venue", "symbol", "ts", *shown]].to_dict("records")
    found = [
        _anomaly(
            _ODD[row["status"]],
            {
                "venue": row["venue"],
                "symbol": row["symbol"],
                "ts": row["ts"],
                "interval": intervals.get((row["venue"], row["symbol"]), ""),
            },
            {name: None if pd.isna(row[name]) else row[name] for name in shown},
        )
        for row in odd
    ]
    return pa.Table.from_pylist(found, schema=_ANOMALIES)


def _anomaly(kind: str, series: Mapping[str, object], detail: Mapping[str, object]) -> dict[str, object]:
    text = json.dumps(detail, default=int, sort_keys=True)
    return {"asset": LEVELS.name, "kind": kind, "series_kind": _KIND, "detail": text, **series}


# -- the continuous collector


class BookStore:
    """Stores rounds as the assets do: levels first, then their summary, both by merge and seen in the catalogue.

    Parameters
    ----------
    folder
        The warehouse folder.
    every
        Length of a round.
    summarise, look_back
        See ``summary_pieces``.
    run_id
        What the partitions say made them.
    """

    def __init__(
        self, folder: Path, every: timedelta, summarise: Summarise, *, look_back: timedelta, run_id: str
    ) -> None:
        self.every = every
        self.lake = Lake(folder)
        self._publisher = Publisher(folder)
        self._summarise = summarise
        self._look_back = look_back
        self._run_id = run_id

    def save(self, rounds: Sequence[BookRound]) -> None:
        """Store rounds; storing them again changes nothing.

        Raises
        ------
        ContractError, WarehouseError
            If they cannot be stored.
        """
        if rounds:
            self._publish(LEVELS, pieces_of(rounds, self.every))
            first, last = min(one.ts for one in rounds), max(one.ts for one in rounds)
            self._summarise_window((first, floor_of("hourly", last) + HOUR))

    def catch_up(self) -> None:
        """Summarise hours whose summary a killed process did not store."""
        for key in unsummarised(self.lake):
            start = start_of("hourly", key)
            self._summarise_window((start, start + HOUR))

    def covered(self, moment: datetime) -> dict[str, Sequence[Range]]:
        """Series -> ranges that are stored of the hour of a moment."""
        ((key, _, _),) = keys_of("hourly", floor_of("hourly", moment), floor_of("hourly", moment) + HOUR)
        stored = self.lake.provenance(LEVELS, key)
        return {item.series: item.ranges for item in stored.coverage} if stored else {}

    def _summarise_window(self, window: Range) -> None:
        # What is compared with what must not depend on when a process began.
        pieces = summary_pieces(self.lake, window, self._summarise, look_back=self._look_back)
        self._publish(SUMMARY, (piece for piece in pieces if self.lake.provenance(LEVELS, piece.partition)))

    def _publish(self, table: Table, pieces: Iterator[Piece]) -> None:
        spec = dg.AssetSpec(dg.AssetKey(table.name.split("/")))
        self._publisher.publish(spec, PartitionStream(pieces), self._run_id, None)


@dataclass
class CollectorReport:
    """What a collector has done: rounds seen, rounds missed between them, levels stored, failures by symbol."""

    n_rounds: int = 0
    n_missed: int = 0
    n_levels: int = 0
    failures: Counter[str] = field(default_factory=Counter)


class BookCollector:
    """Looks at the books of many markets in every round until it is told to stop; a round is looked at once.

    The exchange's clock says which round it is; the local one only measures pauses. A round that was missed is a hole
    in the coverage. What is buffered is stored every while, at the end of each hour, before a pause after an error and
    at the end, however it comes; a killed process loses what it had not stored.

    Parameters
    ----------
    exchange
        The venue; one attempt a request is enough, the next round is the second.
    markets
        What to look at.
    store
        Where rounds go; knows how long they are.
    n_levels, n_threads
        See ``look``.
    flush_every
        How long rounds may wait to be stored.
    wait
        Waits so many seconds and says whether to stop, as ``threading.Event.wait``; see ``stopping``.
    told
        Called with each round, for a display.
    first_wait_s, longest_wait_s
        Pause after an error; it doubles with each in a row. What the exchange asks for is kept.
    """

    def __init__(
        self,
        exchange: Books,
        markets: Sequence[Market],
        store: BookStore,
        *,
        n_levels: int,
        flush_every: timedelta,
        wait: Callable[[float], bool],
        n_threads: int = 4,
        told: Callable[[BookRound], None] | None = None,
        first_wait_s: float = 1.0,
        longest_wait_s: float = 60.0,
    ) -> None:
        # Refused here rather than after the first answer.
        slot_of(_EPOCH, store.every)
        if not markets:
            raise ValueError("no market to collect order books of: name some in sources.order_books.symbols")
        self.exchange, self.markets, self.store = exchange, tuple(markets), store
        self.report = CollectorReport()
        self._n_levels, self._n_threads = n_levels, n_threads
        self._flush_every, self._wait, self._told = flush_every, wait, told
        self._first_wait_s, self._longest_wait_s = first_wait_s, longest_wait_s
        self._buffer: list[BookRound] = []
        self._last: datetime | None = None
        self._n_errors = 0

    def run(self) -> CollectorReport:
        """Collect until ``wait`` says to stop.

        Raises
        ------
        SourceError
            What waiting does not heal; everything seen before is stored.
        """
        self.store.catch_up()
        pause_s = 0.0
        try:
            while not self._wait(pause_s):
                pause_s = self._turn()
        finally:
            self.flush()
        return self.report

    def flush(self) -> None:
        """Store what is buffered."""
        self.store.save(self._buffer)
        self._buffer = []

    def _turn(self) -> float:
        every = self.store.every
        try:
            now = self.exchange.server_time()
            slot = slot_of(now, every)
            if self._last is not None and slot <= self._last:
                return _seconds(self._last + every - now)
            wanted = self.markets
            if self._last is None:
                # Another process may have looked in this round, or this one before it was killed.
                covered = self.store.covered(slot)
                wanted = tuple(lacking(self.markets, self.exchange.venue, covered, slot, every))
            if not wanted:
                self._last = slot
                return _seconds(slot + every - now)
            seen = look(self.exchange, wanted, self._n_levels, ts=now, n_threads=self._n_threads)
            if not seen.answered:
                seen.require_all()
        except SourceError as error:
            return self._pause_after(error)
        self._n_errors = 0
        self._take(seen, slot)
        due = slot + every
        if floor_of("hourly", due) > slot or due - self._buffer[0].ts >= self._flush_every:
            self.flush()
        return _seconds(due - seen.known_at)

    def _take(self, seen: BookRound, slot: datetime) -> None:
        if self._last is not None:
            self.report.n_missed += (slot - self._last) // self.store.every - 1
        self._last = slot
        self._buffer.append(seen)
        self.report.n_rounds += 1
        self.report.n_levels += seen.levels.num_rows
        self.report.failures.update(list(seen.failures))
        if self._told is not None:
            self._told(seen)

    def _pause_after(self, error: SourceError) -> float:
        heals = error.transient or isinstance(error, SourceUnavailable) or error.retry_after_s is not None
        if not heals:
            raise error
        self.flush()
        pause_s = min(self._first_wait_s * 2**self._n_errors, self._longest_wait_s)
        self._n_errors = min(self._n_errors + 1, 30)
        return max(pause_s, error.retry_after_s or 0.0)


@contextmanager
def stopping() -> Generator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one interrupts. For the main thread."""
    event = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        event.set()
        for one, handler in before.items():
            signal.signal(one, handler)

    for number in before:
        signal.signal(number, stop)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _seconds(span: timedelta) -> float:
    return max(span.total_seconds(), 0.0)


# -- closed days and retention


@dataclass(frozen=True)
class Compaction:
    """Days of each table that were put into one file, and hours whose own files were removed."""

    days: Mapping[str, Sequence[str]]
    swept: Mapping[str, Sequence[str]]


def compact_closed_days(lake: Lake, today: date, *, grace: timedelta = GRACE) -> Compaction:
    """Put the hours of closed days of all hourly tables into one file a day.

    Hours stay beside their day until no session holds a catalogue that shows them, and at least for ``grace``; running
    it again removes what was left.

    Parameters
    ----------
    today
        The running UTC day by the exchange's clock; days before it are closed. Rows that come later are merged all the
        same.

    Raises
    ------
    WarehouseError
        If a file cannot be read or written.
    """
    tables = [table for table in TABLES.values() if table.clock == "hourly"]
    days = {table.name: lake.compact(table, today) for table in tables}
    catalog = Catalog(lake)
    catalog.refresh()
    held = catalog.is_held()
    return Compaction(days, {table.name: [] if held else lake.sweep(table, grace) for table in tables})


@dataclass(frozen=True)
class Retention:
    """Dates whose levels were (or would be) removed, and old dates that stay because an hour is not summarised."""

    removed: Sequence[str]
    kept: Sequence[str]


def remove_old_levels(lake: Lake, today: date, keep_days: int, *, dry_run: bool = False) -> Retention:
    """Remove the levels of days that are older than wanted; their summary stays, and nothing else is touched.

    Parameters
    ----------
    today
        The running UTC day by the exchange's clock.
    keep_days
        Days before today whose levels stay.
    dry_run
        Say what would be removed, and remove nothing.

    Raises
    ------
    ValueError
        If no day is to be kept.
    WarehouseError
        If a folder cannot be removed; a date is there wholly or not at all.
    """
    if keep_days < 1:
        raise ValueError(
            f"levels of {keep_days} days are to be kept; set sources.order_books.keep_days to 1 or more"
        )
    first = (today - timedelta(days=keep_days)).isoformat()
    old = [day for day in lake.layout.dates(LEVELS) if day < first]
    waiting = {key[:10] for key in unsummarised(lake)}
    removable = [day for day in old if day not in waiting]
    if not dry_run:
        lake.remove_dates(LEVELS, removable)
        Catalog(lake).refresh()
    return Retention(removable, [day for day in old if day in waiting])
