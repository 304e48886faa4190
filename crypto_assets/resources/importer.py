"""Files that people own, into the raw tables: the same checks as the exchange's own answers, and never over them.

Here: which market a file is of, what of it may be stored, and storing it beside what is there. Not here: how a file is
read (``formats``), whether candles are sound (``klines``), how partitions are written (``warehouse``). The command line
and tests import it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crypto_assets.formats.containers import Content, contents
from crypto_assets.formats.klines import read_klines
from crypto_assets.formats.names import FileName, MarketType, named_by, same_market, symbol_of
from crypto_assets.formats.samples import read_funding, read_open_interest
from crypto_assets.intervals import floor_ms, from_ms, interval_delta, interval_ms, to_ms
from crypto_assets.partitions import DAY
from crypto_assets.resources.archive import SourceFile, funding_page_of
from crypto_assets.resources.exchange import OPEN_INTEREST_SCHEMA, SeriesPage
from crypto_assets.resources.ingest import anomaly_rows, anomaly_table, in_contract, midnight_before
from crypto_assets.resources.klines import KlinePage, KlineWindow, page_of
from crypto_assets.resources.warehouse import Catalog, Lake, Provenance, SeriesCoverage
from crypto_assets.resources.warehouse.lake import Piece
from crypto_assets.schemas import series_name
from crypto_assets.tables import table_of

#: What a file may hold.
ImportKind = Literal["trade", "mark", "premium", "funding", "open_interest"]

_SYMBOL = re.compile(r"[^/:\s]+/[^/:\s]+(:[^/:\s]+)?")
_TABLES: Mapping[ImportKind, str] = {
    "trade": "raw/klines",
    "mark": "raw/klines",
    "premium": "raw/klines",
    "funding": "raw/funding_rates",
    "open_interest": "raw/open_interest",
}
#: A settlement is told some milliseconds after its time, by recorders each with its own: that is no contradiction.
_NOT_COMPARED = frozenset({"known_at", "settled_at"})
_CANDLES = frozenset({"trade", "mark", "premium"})
#: Rows that wait for their days to be written at once: a container of 300 markets rewrites no day 300 times.
_BATCH_ROWS = 500_000
_FILE = "_file"
_SECOND, _MILLISECOND = timedelta(seconds=1), timedelta(milliseconds=1)

Runs = list[tuple[datetime, datetime]]


@dataclass(frozen=True)
class ImportReport:
    """What became of one file; a container of several pages of one series counts as one file.

    Attributes
    ----------
    file, sha256
        Name (of a member with its container's) and hash.
    symbol, kind, interval, detected
        What it was read as; empty where that is not known.
    n_rows
        Rows in it.
    n_added
        Rows stored: their key was not there.
    n_known
        Rows whose key was there, with the same values as far as both have them.
    n_conflicts
        Rows whose key was there with another value; the stored one stays, the file's is an anomaly (import_conflict).
    n_duplicates, n_off_grid
        Rows kept out as anomalies: all but the last of one time, and those between two grid points.
    n_open
        Rows left out because nothing proves that they were complete when they were written.
    first_ts, last_ts
        First and last of the sound rows.
    problem
        Why nothing of it was stored; ``None``: it was.
    """

    file: str
    sha256: str = ""
    symbol: str = ""
    kind: str = ""
    interval: str = ""
    detected: str = ""
    n_rows: int = 0
    n_added: int = 0
    n_known: int = 0
    n_conflicts: int = 0
    n_duplicates: int = 0
    n_off_grid: int = 0
    n_open: int = 0
    first_ts: datetime | None = None
    last_ts: datetime | None = None
    problem: str | None = None


@dataclass(frozen=True)
class ImportChoice:
    """What the user says about the files; everything may stay unsaid where the files tell it themselves.

    Attributes
    ----------
    venue
        The exchange whose market it is, ccxt name.
    kind
        What the files hold.
    symbol
        The market as ccxt writes it; ``None``: by the names of the files.
    market_type
        Where names are the exchange's own (``BTCUSDT``), which may mean the spot market or a contract.
    interval
        Interval of candles, or from a sample of open interest to the next.
    offset
        How far times without a zone are ahead of UTC.
    closed
        Whether the last candle of each file is known to have been closed when it was written.
    columns
        Names of the columns of rows that bear none.
    """

    venue: str
    kind: ImportKind = "trade"
    symbol: str | None = None
    market_type: MarketType | None = None
    interval: str | None = None
    offset: timedelta | None = None
    closed: bool = False
    columns: Sequence[str] = field(default=())


def import_files(
    paths: Iterable[Path],
    lake: Lake,
    choice: ImportChoice,
    *,
    now: datetime,
    listener: Callable[[ImportReport], None] = lambda _: None,
) -> list[ImportReport]:
    """Add the rows of files to the raw tables.

    Only rows whose key is not stored yet are added, so that what the exchange itself said stays. A file is checked as a
    whole before its first row is stored: one wrong row and nothing of it is. Coverage grows by the rows that are there;
    a hole in a file proves nothing, and the exchange is asked for it later.

    Parameters
    ----------
    paths
        Files, also gz, zip, tar and tar.gz. They are imported in this order.
    lake
        Where to.
    choice
        What the user says about them.
    now
        The exchange's time; what was not over by then is not stored.
    listener
        Called with each report as soon as it is final.

    Returns
    -------
    list of ImportReport
        One per file, or per series of a container. A file with a ``problem`` is left out, the others go on.

    Raises
    ------
    WarehouseError
        If the lake cannot be written; a file in hand is then stored up to some day, and may be imported again.

    Notes
    -----
    The last candle of a file may have been open when it was written. A later candle in the file proves it closed; so
    does the exchange's own file of a month or day that reaches its end. The time of a file's last change proves nothing,
    because a copy is younger than its original.
    """
    catalog = Catalog(lake)
    catalog.require_ours()
    known = _known_markets(lake, choice.venue)
    batch, reports = _Batch(lake, choice, now), []

    def store() -> None:
        finished = batch.store()
        reports.extend(finished)
        for report in finished:
            listener(report)

    for path in paths:
        for found in _read_path(path, choice, known, now):
            if isinstance(found, _Checked) and not batch.takes(found):
                store()
            batch.add(found)
    store()
    catalog.refresh()
    return reports


@dataclass(frozen=True)
class _Series:
    """What one file, or the pages of one series in a container, hold: typed columns in the order of the source."""

    file: str
    sha256: str
    symbol: str
    interval: str
    detected: str
    columns: dict[str, pa.Array]
    last_is_closed: bool


def _read_path(
    path: Path, choice: ImportChoice, known: Mapping[tuple[str, str], str], now: datetime
) -> Iterator[ImportReport | _Checked]:
    markets: set[str | None] = set()
    try:
        for pages in _recordings(path):
            file = pages[0][0].name if len(pages) == 1 else _folder_of(pages[0][0].name)
            markets.add(pages[0][1].market)
            try:
                if choice.symbol is not None and len(markets) > 1:
                    raise ValueError("the container holds several markets; leave symbol out, or unpack it")
                yield _checked(_series_of(file, pages, choice, known), choice.kind, now)
            except (ValueError, TypeError) as error:
                yield ImportReport(file, kind=choice.kind, problem=str(error))
    except (ValueError, OSError) as error:
        # A container ends where it is damaged, with what came before.
        yield ImportReport(path.name, kind=choice.kind, problem=str(error))


def _recordings(path: Path) -> Iterator[list[tuple[Content, FileName]]]:
    """The contents of a file, those together that are pages of one series."""
    place = "/".join(path.absolute().parts[:-1])
    found, pages, damage = contents(path), [], None
    while True:
        try:
            content = next(found)
        except StopIteration:
            break
        except (ValueError, OSError) as error:
            damage = error
            break
        name = named_by(f"{place}/{content.name}")
        if pages and _page_of(content, name) != _page_of(*pages[-1]):
            yield pages
            pages = []
        pages.append((content, name))
    if pages:
        yield pages
    if damage is not None:
        raise damage


def _page_of(content: Content, name: FileName) -> tuple[str, str | None, str | None]:
    return _folder_of(content.name), name.market, name.interval


def _folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def _series_of(
    file: str,
    pages: list[tuple[Content, FileName]],
    choice: ImportChoice,
    known: Mapping[tuple[str, str], str],
) -> _Series:
    name = pages[0][1]
    if name.kind is not None and name.kind != choice.kind:
        raise ValueError(f"its name says that it holds {name.kind}, not {choice.kind}; say kind")
    interval, detected, tables, told = choice.interval or name.interval, "", [], None
    last_is_closed = choice.closed
    # Pages are named after their first row, so in the order of their names they are in the order of time.
    for content, _ in sorted(pages, key=lambda pair: pair[0].name):
        read = _read(content, choice, interval)
        if told is not None and read.market is not None and not same_market(told, read.market):
            raise ValueError(f"its rows name {told} and {read.market}; import them one by one")
        told, interval, detected = told or read.market, read.interval, read.detected
        tables.append(pa.table(read.columns))
        last_is_closed = choice.closed or _reaches_its_end(read, name)
    symbol = _symbol_of(name, told, choice, known)
    joined = pa.concat_tables(tables, promote_options="default").combine_chunks()
    columns = {
        column: joined.column(column).chunk(0)
        if joined.num_rows
        else pa.array([], joined.column(column).type)
        for column in joined.column_names
    }
    digest = pages[0][0].sha256
    if len(pages) > 1:
        digest = hashlib.sha256("".join(sorted(content.sha256 for content, _ in pages)).encode()).hexdigest()
        detected = f"{len(pages)} pages of {detected}"
    return _Series(file, digest, symbol, interval or "", detected, columns, last_is_closed)


@dataclass(frozen=True)
class _ReadFile:
    columns: dict[str, pa.Array]
    interval: str | None
    market: str | None
    detected: str
    as_published: bool = False


def _read(content: Content, choice: ImportChoice, interval: str | None) -> _ReadFile:
    if choice.kind == "funding":
        funding = read_funding(content.data, offset=choice.offset)
        return _ReadFile(funding.columns, "", funding.market, funding.detected)
    if choice.kind == "open_interest":
        if interval is None:
            raise ValueError(
                "neither its name nor you say how far its samples lie apart; say the interval, such as 1h"
            )
        interval_ms(interval)
        samples = read_open_interest(content.data, offset=choice.offset)
        return _ReadFile(samples.columns, interval, samples.market, samples.detected)
    found = read_klines(
        content.data, content.name, interval=interval, offset=choice.offset, names=choice.columns
    )
    return _ReadFile(found.columns, found.interval, found.market, found.detected, found.as_published)


def _reaches_its_end(read: _ReadFile, name: FileName) -> bool:
    # The exchange publishes the file of a month or day after its end.
    if not read.as_published or name.period_end is None or not len(read.columns["ts"]) or not read.interval:
        return False
    last_ms = pc.max(read.columns["ts"]).as_py()
    return last_ms + interval_ms(read.interval) == to_ms(name.period_end)


def _symbol_of(
    name: FileName, told: str | None, choice: ImportChoice, known: Mapping[tuple[str, str], str]
) -> str:
    symbol = choice.symbol
    if symbol is None:
        market = name.market or told
        if market is None:
            raise ValueError("neither its name nor its rows name a market; say the symbol, such as BTC/USDT")
        market_type = name.market_type or choice.market_type
        if choice.market_type not in (None, market_type):
            raise ValueError(f"its name says {name.market_type}, not {choice.market_type}; say the symbol")
        if market_type is None and choice.kind != "trade":
            market_type = "perpetual"
        if market_type is None:
            raise ValueError(
                f"its market {market} may be the spot market or a contract; say market_type (spot, perpetual), "
                "or the symbol, such as BTC/USDT or BTC/USDT:USDT"
            )
        symbol = symbol_of(market, market_type, known)
    if not _SYMBOL.fullmatch(symbol):
        raise ValueError(f"{symbol!r} is no symbol; write BTC/USDT, of a contract BTC/USDT:USDT")
    if told is not None and not same_market(told, symbol):
        raise ValueError(f"its rows name {told}, which is not {symbol}; say the right symbol")
    if choice.kind != "trade" and ":" not in symbol:
        raise ValueError(
            f"{symbol} is a spot market, which has no {choice.kind}; say the contract, such as BTC/USDT:USDT"
        )
    return symbol


@dataclass(frozen=True)
class _Checked:
    """The sound rows of one file, those set aside, the ranges in which none is missing, and what there is to tell."""

    report: ImportReport
    rows: pa.Table
    odd: pa.Table
    runs: Runs

    @property
    def series(self) -> tuple[str, str]:
        return self.report.symbol, self.report.interval


def _checked(series: _Series, kind: ImportKind, now: datetime) -> _Checked:
    page, n_open, runs = _sound_rows(series, kind, now)
    reasons = page.set_aside["reason"].to_pylist()
    report = ImportReport(
        series.file,
        series.sha256,
        series.symbol,
        kind,
        series.interval,
        series.detected,
        len(next(iter(series.columns.values()))),
        n_duplicates=reasons.count("duplicate"),
        n_off_grid=reasons.count("off_grid"),
        n_open=n_open,
        first_ts=page.rows["ts"][0].as_py() if page.rows.num_rows else None,
        last_ts=page.rows["ts"][-1].as_py() if page.rows.num_rows else None,
    )
    return _Checked(report, page.rows, page.set_aside.sort_by("ts"), runs)


def _sound_rows(series: _Series, kind: ImportKind, now: datetime) -> tuple[KlinePage | SeriesPage, int, Runs]:
    """The page of all that was over, how many rows were left out as open, and the ranges that it covers."""
    stamps = series.columns["settled_at" if kind == "funding" else "ts"].to_numpy()
    if not len(stamps):
        raise ValueError("it holds no rows")
    order = np.argsort(stamps, kind="stable")
    if kind not in _CANDLES:
        order = order[stamps[order] <= to_ms(now)]
    elif not series.last_is_closed:
        order = order[stamps[order] < stamps.max()]
    columns = {name: values.take(pa.array(order)) for name, values in series.columns.items()}
    first, last = from_ms(int(stamps.min())), from_ms(int(stamps.max()))
    if kind == "funding":
        # The nearest second may lie half a second before the told time.
        page = funding_page_of(columns, first - _SECOND, last + _SECOND)
        runs = _scheduled_runs(columns)
    elif kind == "open_interest":
        page = _open_interest_page(columns, first, last + _MILLISECOND)
        runs = _runs(page.rows, interval_delta(series.interval))
    else:
        page = page_of(columns, KlineWindow(kind, series.interval, first, last + _MILLISECOND, now))
        runs = _runs(page.rows, interval_delta(series.interval))
    return page, len(stamps) - page.rows.num_rows - page.set_aside.num_rows, runs


def _open_interest_page(columns: Mapping[str, pa.Array], start: datetime, end: datetime) -> SeriesPage:
    stamps = columns["ts"].to_numpy()
    n = len(stamps)
    arrays = [columns["ts"].cast(pa.timestamp("ms")).cast(pa.timestamp("us"))]
    for name in OPEN_INTEREST_SCHEMA.names[1:]:
        values = columns.get(name, pa.nulls(n, pa.float64()))
        sound = pc.fill_null(pc.and_(pc.is_finite(values), pc.greater_equal(values, 0)), True)
        if not pc.all(sound, min_count=0).as_py():
            at = pc.index(sound, False).as_py()
            raise ValueError(f"{name} of row {at} is {values[at]}; it must be finite and not negative")
        arrays.append(values)
    table = pa.table(arrays, schema=OPEN_INTEREST_SCHEMA)
    newest = pa.array(np.r_[stamps[1:] != stamps[:-1], np.ones(min(n, 1), bool)])
    odd = table.append_column("reason", pa.repeat(pa.scalar("duplicate"), n))
    return SeriesPage(table.filter(newest), odd.filter(pc.invert(newest)), start, end)


def _runs(rows: pa.Table, step: timedelta) -> Runs:
    """Ranges in which no interval lacks its row."""
    stamps = rows["ts"].to_numpy()
    if not len(stamps):
        return []
    length = np.timedelta64(step)
    breaks = np.flatnonzero(np.diff(stamps) != length)
    firsts, lasts = stamps[np.r_[0, breaks + 1]], stamps[np.r_[breaks, len(stamps) - 1]] + length
    return list(zip(firsts.astype(object), lasts.astype(object), strict=True))


def _scheduled_runs(columns: Mapping[str, pa.Array]) -> Runs:
    """Ranges between settlements that lie as far apart as the file says; without its word none is certain."""
    if "interval_hours" not in columns:
        return []
    ms = (columns["settled_at"].to_numpy() + 500) // 1000 * 1000
    hours = columns["interval_hours"].to_numpy(zero_copy_only=False)
    apart = np.diff(ms) / interval_ms("1h")
    follows = (apart == hours[1:]) | (apart == hours[:-1])
    return [
        (from_ms(int(start)), from_ms(int(end)) + _MILLISECOND)
        for start, end in zip(ms[:-1][follows], ms[1:][follows], strict=True)
    ]


class _Batch:
    """Files whose rows are stored together, day by day; no two of them speak about the same time of a series."""

    def __init__(self, lake: Lake, choice: ImportChoice, now: datetime) -> None:
        self._lake, self._choice, self._now = lake, choice, now
        self._table = table_of(_TABLES[choice.kind])
        self._waiting: list[ImportReport | _Checked] = []
        self._n_rows = 0

    def takes(self, found: _Checked) -> bool:
        """Whether a file may be stored together with those that wait."""
        if self._n_rows and self._n_rows + found.rows.num_rows > _BATCH_ROWS:
            return False
        others = [other.report for other in self._waiting if isinstance(other, _Checked)]
        return not any(self._share_a_key(other, found.report) for other in others)

    def add(self, found: ImportReport | _Checked) -> None:
        """Let a file wait, or what there is to tell of one that cannot be stored."""
        self._waiting.append(found)
        if isinstance(found, _Checked):
            self._n_rows += found.rows.num_rows

    def store(self) -> list[ImportReport]:
        """Store what waits; the reports of all files in their order."""
        waiting, self._waiting, self._n_rows = self._waiting, [], 0
        checked = [found for found in waiting if isinstance(found, _Checked)]
        for one in checked:
            # Known before its rows are there: a kill in between is healed by importing it again.
            self._lake.ledger.add_source_file(asdict(_record(one, self._choice.venue, self._now)))
        counts = np.zeros((len(checked), 3), int)
        rows = _by_time(self._in_contract(one, n) for n, one in enumerate(checked))
        odd = _by_time(one.odd.append_column(_FILE, _repeated(n, one.odd)) for n, one in enumerate(checked))
        covered = self._covered(checked)
        moments = [rows["ts"].to_numpy(), odd["ts"].to_numpy()] if checked else []
        for day in _days_of(moments):
            parts = _of_day(rows, day), _of_day(odd, day)
            counts += self._store_day(day, *parts, covered.get(day, {}), checked)
        stored = iter(
            replace(one.report, n_added=n_added, n_known=n_known, n_conflicts=n_conflicts)
            for one, (n_added, n_known, n_conflicts) in zip(checked, counts.tolist(), strict=True)
        )
        return [next(stored) if isinstance(found, _Checked) else found for found in waiting]

    def _store_day(
        self,
        day: datetime,
        rows: pa.Table,
        odd: pa.Table,
        covered: Mapping[str, Runs],
        checked: Sequence[_Checked],
    ) -> np.ndarray:
        """Store one day of all files; rows of each that were added, known and in conflict."""
        key, kind = day.date().isoformat(), self._choice.kind
        met, old, fresh = self._met(key, rows)
        differs = _differing(met, old, self._table.key)
        conflicts = met.filter(pa.array(differs))
        reasons = pa.repeat(pa.scalar("import_conflict"), conflicts.num_rows)
        anomalies = []
        for kept_out in (odd, conflicts.append_column("reason", reasons)):
            files = kept_out[_FILE].to_numpy()
            for n in np.unique(files):
                told = kept_out.filter(pa.array(files == n)).select(checked[n].odd.column_names)
                symbol, interval = checked[n].series
                anomalies += anomaly_rows(told, self._table, self._choice.venue, symbol, kind, interval)
        # As far as the exchange's clock has come: what else the day holds is missing from then on.
        present = np.unique(np.concatenate([rows[_FILE].to_numpy(), odd[_FILE].to_numpy()]))
        watermark = min(day + DAY, *(self._closed_by(checked[n].report.interval) for n in present))
        piece = Piece(
            key,
            fresh.drop_columns([_FILE]),
            tuple(SeriesCoverage(name, tuple(ranges)) for name, ranges in covered.items()),
            watermark,
            anomaly_table(anomalies),
        )
        before = self._lake.provenance(self._table, key) or Provenance(self._table.name, key)
        provenance = replace(before, run_id="import")
        self._lake.merge(self._table, key, piece, provenance, (day, day + DAY), self._now)
        outcomes = (fresh, met.filter(pa.array(~differs)), conflicts)
        return np.stack(
            [np.bincount(part[_FILE].to_numpy(), minlength=len(checked)) for part in outcomes], axis=1
        )

    def _met(self, key: str, rows: pa.Table) -> tuple[pa.Table, pa.Table, pa.Table]:
        """Rows whose key is stored, the stored ones, and the rows whose key is not."""
        names = list(self._table.key)
        symbols = ", ".join(_literal(symbol) for symbol in rows["symbol"].unique().to_pylist())
        where = f"venue = {_literal(self._choice.venue)} and symbol in ({symbols or 'null'})"
        stored = self._lake.read(self._table, [key], where=where)
        if not stored.num_rows:
            return rows.slice(0, 0), stored, rows
        ours = rows.select(names).append_column("_ours", pa.array(np.arange(rows.num_rows)))
        theirs = stored.select(names).append_column("_theirs", pa.array(np.arange(stored.num_rows)))
        pairs = ours.join(theirs, keys=names, join_type="inner").sort_by("_ours")
        is_new = np.ones(rows.num_rows, bool)
        is_new[pairs["_ours"].to_numpy()] = False
        return rows.take(pairs["_ours"]), stored.take(pairs["_theirs"]), rows.filter(pa.array(is_new))

    def _in_contract(self, one: _Checked, n: int) -> pa.Table:
        constants = {"venue": self._choice.venue, "symbol": one.report.symbol}
        if self._choice.kind in _CANDLES:
            step = interval_delta(one.report.interval)
            known_at = pc.add(one.rows["ts"], pa.scalar(step, pa.duration("us")))
            constants |= {"kind": self._choice.kind, "interval": one.report.interval}
        elif self._choice.kind == "funding":
            # A settlement told a few milliseconds early is none that was known before its time.
            known_at = pc.max_element_wise(one.rows["settled_at"], one.rows["ts"])
        else:
            known_at = one.rows["ts"]
        rows = in_contract(self._table, one.rows.append_column("known_at", known_at), constants)
        return rows.append_column(_FILE, _repeated(n, rows))

    def _share_a_key(self, one: ImportReport, other: ImportReport) -> bool:
        if one.symbol != other.symbol or ("interval" in self._table.key and one.interval != other.interval):
            return False
        if one.first_ts is None or one.last_ts is None or other.first_ts is None or other.last_ts is None:
            return False
        return one.first_ts <= other.last_ts and other.first_ts <= one.last_ts

    def _covered(self, checked: Sequence[_Checked]) -> dict[datetime, dict[str, Runs]]:
        """Day -> name of a series -> ranges in which no row is missing."""
        covered: dict[datetime, dict[str, Runs]] = {}
        for one in checked:
            name = series_name(self._choice.venue, one.report.symbol, self._choice.kind, one.report.interval)
            for start, end in one.runs:
                day = midnight_before(start)
                while day < end:
                    part = (max(start, day), min(end, day + DAY))
                    covered.setdefault(day, {}).setdefault(name, []).append(part)
                    day += DAY
        return covered

    def _closed_by(self, interval: str) -> datetime:
        if self._choice.kind not in _CANDLES:
            return self._now
        return from_ms(floor_ms(to_ms(self._now), interval))


def _record(checked: _Checked, venue: str, now: datetime) -> SourceFile:
    report = checked.report
    return SourceFile(
        "import",
        report.file,
        report.sha256,
        now,
        report.detected,
        venue,
        report.symbol,
        report.kind,
        report.interval,
        checked.rows.num_rows,
        report.first_ts,
        report.last_ts,
    )


def _by_time(tables: Iterable[pa.Table]) -> pa.Table:
    found = list(tables)
    if not found:
        return pa.table({})
    joined = pa.concat_tables(found)
    return joined.take(pa.array(np.argsort(joined["ts"].to_numpy(), kind="stable")))


def _repeated(n: int, rows: pa.Table) -> pa.Array:
    return pa.repeat(pa.scalar(n, pa.int64()), rows.num_rows)


def _days_of(moments: Sequence[np.ndarray]) -> list[datetime]:
    days = np.unique(np.concatenate([np.array([], "datetime64[us]"), *moments]).astype("datetime64[D]"))
    return days.astype("datetime64[us]").astype(object).tolist()


def _of_day(rows: pa.Table, day: datetime) -> pa.Table:
    left, right = np.searchsorted(rows["ts"].to_numpy(), np.array([day, day + DAY], "datetime64[us]"))
    return rows.slice(left, right - left)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _differing(rows: pa.Table, stored: pa.Table, key: Sequence[str]) -> np.ndarray:
    """Which rows say another value than the stored ones beside them, where both say one."""
    differs = np.zeros(rows.num_rows, bool)
    for name in stored.column_names:
        if name not in key and name not in _NOT_COMPARED:
            unequal = pc.fill_null(pc.not_equal(rows[name], stored[name]), False)
            differs |= unequal.to_numpy()
    return differs


def _known_markets(lake: Lake, venue: str) -> dict[tuple[str, str], str]:
    """(the exchange's name, type of market) -> symbol, by what the exchange said last."""
    seen = lake.read(
        table_of("raw/symbols"), None, ["venue", "valid_from", "exchange_symbol", "market_type", "symbol"]
    ).sort_by("valid_from")
    return {
        (row["exchange_symbol"], row["market_type"]): row["symbol"]
        for row in seen.to_pylist()
        if row["venue"] == venue
    }
