"""From what is missing to partition pieces: the fewest requests, whole days as soon as they are complete.

Here: range algebra over coverage, paging across days, rows in the contract of ``raw``. Not here: HTTP
(``exchange``, ``coingecko``) and storage (``warehouse``). The assets of raw import it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crypto_assets.intervals import interval_delta
from crypto_assets.partitions import keys_of
from crypto_assets.resources.coingecko import CoinGeckoClient
from crypto_assets.resources.exchange import KLINE_SCHEMA, ExchangeClient, KlinePage
from crypto_assets.resources.sources import SourceError
from crypto_assets.resources.warehouse import SeriesCoverage
from crypto_assets.resources.warehouse.lake import Piece, missing_in, union_of
from crypto_assets.schemas import TABLES

#: CoinGecko finishes a UTC day 35 minutes after midnight and its caches expire 5 minutes later.
PUBLICATION_LAG = timedelta(minutes=45)
#: A point that is late by hours or a weekend still comes; for one that is missing longer nobody has to ask every night.
LATE_FOR = timedelta(days=3)
PAGE_ROWS = 1000

Range = tuple[datetime, datetime]


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


@dataclass
class _Series:
    """One market's download: pages are read only as far as the day in hand needs them."""

    name: str
    symbol: str
    pages: Iterator[tuple[datetime, KlinePage]]
    next_start: datetime | None = None
    rows: list[pa.Table] = field(default_factory=list)
    off_grid: list[pa.Table] = field(default_factory=list)
    proved: list[Range] = field(default_factory=list)

    def read_until(self, moment: datetime) -> None:
        while self.next_start is not None and self.next_start < moment:
            try:
                start, page = next(self.pages)
            except StopIteration:
                self.next_start = None
                return
            self.rows.append(page.rows)
            self.off_grid.append(page.off_grid)
            self.proved.append((start, page.covered_until))
            self.next_start = page.covered_until

    def take(self, tables: list[pa.Table], start: datetime, end: datetime) -> pa.Table:
        if not tables:
            return KLINE_SCHEMA.empty_table()
        # Pages come in order of time, so a day is a slice.
        rows = pa.concat_tables(tables)
        left, right = np.searchsorted(rows["ts"].to_numpy(), np.array([start, end], "datetime64[us]"))
        later = rows.slice(right)
        tables[:] = [later] if later.num_rows else []
        return rows.slice(left, right - left)


def kline_pieces(
    client: ExchangeClient,
    markets: Mapping[str, str],
    covered: Mapping[str, Sequence[Range]],
    window: Range,
    *,
    venue: str,
    interval: str,
    watermark: datetime,
) -> Iterator[Piece]:
    """Download what a window lacks and yield it day by day.

    Parameters
    ----------
    client
        The exchange.
    markets
        Symbol -> the exchange's own name.
    covered
        Series -> ranges already asked for and stored.
    window
        Naive UTC days.
    watermark
        End of the last closed interval; nothing later is asked for.

    Yields
    ------
    Piece
        One per day of the window, days without news included; rows, coverage and anomalies of all markets.

    Raises
    ------
    SourceError
        After the piece of the day in hand was yielded with what had come: coverage then shows the hole.
    """
    start, end = window[0], min(window[1], watermark)
    series = [
        _open(client, symbol, native, covered, (start, end), venue, interval, watermark)
        for symbol, native in sorted(markets.items())
    ]
    failure: SourceError | None = None
    for key, left, right in keys_of("daily", *window):
        for one in series:
            if failure is None:
                try:
                    one.read_until(min(right, end))
                except SourceError as error:
                    failure = error
        yield _piece(series, key, (left, right), venue, interval, min(right, watermark))
        if failure is not None:
            raise failure


def _open(
    client: ExchangeClient,
    symbol: str,
    native: str,
    covered: Mapping[str, Sequence[Range]],
    window: Range,
    venue: str,
    interval: str,
    watermark: datetime,
) -> _Series:
    name = f"{venue}|{symbol}|{interval}"
    holes = missing_in(covered.get(name, ()), *window) if window[0] < window[1] else []
    asked = fewest_requests(holes, PAGE_ROWS * interval_delta(interval))

    def pages() -> Iterator[tuple[datetime, KlinePage]]:
        for left, right in asked:
            at = left
            for page in client.klines(native, interval, left, right, closed_before=watermark):
                yield at, page
                at = page.covered_until

    return _Series(name, symbol, pages(), next_start=asked[0][0] if asked else None)


def _piece(
    series: list[_Series], key: str, day: Range, venue: str, interval: str, watermark: datetime
) -> Piece:
    tables, anomalies, coverage = [], [], []
    for one in series:
        tables.append(_in_contract(one.take(one.rows, *day), venue, one.symbol, interval))
        anomalies += _anomalies(one.take(one.off_grid, *day), venue, one.symbol, interval)
        ranges = union_of((max(left, day[0]), min(right, day[1])) for left, right in one.proved)
        if ranges:
            coverage.append(SeriesCoverage(one.name, ranges))
        one.proved[:] = [(left, right) for left, right in one.proved if right > day[1]]
    found = pa.Table.from_pylist(anomalies, schema=TABLES["quality/anomalies"].arrow_schema())
    return Piece(key, pa.concat_tables(tables), tuple(coverage), watermark, found)


def _in_contract(rows: pa.Table, venue: str, symbol: str, interval: str) -> pa.Table:
    n = rows.num_rows
    known_at = pc.add(rows["ts"], pa.scalar(interval_delta(interval), pa.duration("us")))
    constants = {"venue": venue, "symbol": symbol, "kind": "trade", "interval": interval}
    columns = {name: pa.repeat(pa.scalar(value, pa.string()), n) for name, value in constants.items()}
    return pa.table({**columns, "known_at": known_at, **{name: rows[name] for name in rows.column_names}})


def _anomalies(rows: pa.Table, venue: str, symbol: str, interval: str) -> list[dict[str, object]]:
    return [
        {
            "asset": "raw/klines",
            "kind": "off_grid",
            "venue": venue,
            "symbol": symbol,
            "interval": interval,
            "ts": row["ts"],
            "detail": json.dumps(row, default=str, sort_keys=True),
        }
        for row in rows.to_pylist()
    ]


def midnight_before(moment: datetime) -> datetime:
    """Start of the UTC day of a naive UTC moment.

    Examples
    --------
    >>> midnight_before(datetime(2024, 1, 2, 13, 30))
    datetime.datetime(2024, 1, 2, 0, 0)
    """
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def market_cap_pieces(
    client: CoinGeckoClient,
    coin_ids: Sequence[str],
    covered: Mapping[str, Sequence[Range]],
    window: Range,
    *,
    now: datetime,
) -> Iterator[Piece]:
    """Download the daily market caps that a window lacks and yield them day by day; one request per coin.

    A point may be late, so days after the newest one that came stay uncovered until they ended ``LATE_FOR`` ago.

    Parameters
    ----------
    client
        The aggregator.
    coin_ids
        Its ids, see ``snapshots.coins_with_caps``.
    covered
        Series -> ranges already answered and stored.
    window
        Naive UTC days.
    now
        The source's time: only days whose publication lag has passed are asked for.

    Yields
    ------
    Piece
        One per day of the window, days without news included.

    Raises
    ------
    SourceError
        After the pieces with what had come before were yielded.
    """
    end = min(window[1], midnight_before(now - PUBLICATION_LAG))
    settled = midnight_before(now - LATE_FOR)
    series: dict[str, tuple[pa.Table, Range]] = {}
    failure: SourceError | None = None
    for coin_id in sorted(coin_ids):
        holes = (
            missing_in(covered.get(f"coingecko|{coin_id}|1d", ()), window[0], end) if window[0] < end else []
        )
        if not holes or failure is not None:
            continue
        asked = (holes[0][0], holes[-1][1])
        try:
            rows = client.market_caps(coin_id, *asked)
        except SourceError as error:
            failure = error
            continue
        until = max(settled, rows["ts"][-1].as_py() + timedelta(days=1)) if rows.num_rows else settled
        series[coin_id] = (rows, (asked[0], min(asked[1], until)))
    for key, left, right in keys_of("daily", *window):
        tables, coverage = [TABLES["raw/market_caps"].arrow_schema().empty_table()], []
        for coin_id, (rows, proved) in series.items():
            ranges = union_of([(max(proved[0], left), min(proved[1], right))])
            if not ranges:
                continue
            coverage.append(SeriesCoverage(f"coingecko|{coin_id}|1d", ranges))
            day = rows.filter(pc.equal(rows["ts"], pa.scalar(left, pa.timestamp("us"))))
            known_at = pc.add(day["ts"], pa.scalar(timedelta(days=1) + PUBLICATION_LAG, pa.duration("us")))
            named = day.rename_columns({"volume_usd": "volume_24h_usd"}).append_column("known_at", known_at)
            tables.append(named.select(tables[0].column_names).cast(tables[0].schema))
        yield Piece(key, pa.concat_tables(tables), tuple(coverage), min(right + PUBLICATION_LAG, now))
    if failure is not None:
        raise failure
