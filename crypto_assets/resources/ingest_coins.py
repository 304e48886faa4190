"""Histories of coins from the aggregator: market caps and candles, the fewest requests, whole days as they are complete.

Here: what a window lacks of ``raw/market_caps`` and ``raw/coin_ohlc``, asked for by several threads under the one budget,
as partition pieces. Not here: HTTP and the plans' limits (``coingecko``), snapshots of the present (``snapshots``), which
coins are collected, storage (``warehouse``). The assets of raw and the automation import it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from crypto_assets.intervals import floor_ms, from_ms, interval_delta, to_ms
from crypto_assets.partitions import keys_of
from crypto_assets.resources.coingecko import CoinGeckoClient
from crypto_assets.resources.ingest import (
    Advance,
    Answer,
    Listener,
    Range,
    Series,
    ignore_progress,
    midnight_before,
    raise_first,
    series_pieces,
)
from crypto_assets.resources.sources import SourceError
from crypto_assets.resources.warehouse import SeriesCoverage
from crypto_assets.resources.warehouse.lake import Piece, missing_in, union_of
from crypto_assets.schemas import series_name
from crypto_assets.tables import TABLES

VENUE = "coingecko"
#: CoinGecko finishes a UTC day 35 minutes after midnight and its caches expire 5 minutes later.
PUBLICATION_LAG = timedelta(minutes=45)
#: CoinGecko renews its candles every 15 minutes.
CANDLE_LAG = timedelta(minutes=15)
#: A point that is late by hours or a weekend still comes; for one that is missing longer nobody has to ask every night.
LATE_FOR = timedelta(days=3)
#: Threads that ask at the same time; the budget of 25 requests a minute keeps more of them waiting only.
THREADS = 4


def lag_of(interval: str) -> timedelta:
    """Time after the end of a candle or a day from which the aggregator tells it."""
    return PUBLICATION_LAG if interval == "1d" else CANDLE_LAG


def fewest_asks(holes: Sequence[Range], reach: timedelta) -> list[Range]:
    """Join holes so that one request after the other, each as long as ``reach``, fills them with the fewest.

    A hole is joined to the one before where the last request for that one reaches into it: what lies between is then
    asked for again, and costs nothing.

    Parameters
    ----------
    holes
        Disjoint sorted ranges.
    reach
        What one request covers.

    Examples
    --------
    >>> a, b, c, d = (datetime(2024, 1, day) for day in (1, 6, 8, 9))
    >>> fewest_asks([(a, b), (c, d)], timedelta(days=4)) == [(a, d)]
    True
    >>> fewest_asks([(a, b), (c, d)], timedelta(days=5)) == [(a, b), (c, d)]
    True
    """
    joined: list[Range] = []
    for start, end in holes:
        if joined:
            first, last = joined[-1]
            if start < first + -(-(last - first) // reach) * reach:
                joined[-1] = (first, end)
                continue
        joined.append((start, end))
    return joined


def market_cap_pieces(
    client: CoinGeckoClient,
    coin_ids: Sequence[str],
    covered: Mapping[str, Sequence[Range]],
    window: Range,
    *,
    now: datetime,
    threads: int = THREADS,
    listener: Listener = ignore_progress,
) -> Iterator[Piece]:
    """Download the daily market caps that a window lacks and yield them day by day; one request per coin.

    A point may be late, so days after the newest one that came stay uncovered until they ended ``LATE_FOR`` ago.
    Days that the plan cannot tell are not asked for, and stay uncovered.

    Parameters
    ----------
    client
        The aggregator.
    coin_ids
        Its ids, see ``snapshots.coins_with_caps``.
    covered
        Name of a series -> ranges already answered and stored.
    window
        Naive UTC days.
    now
        The source's time: only days whose publication lag has passed are asked for.
    threads
        Coins asked for at the same time, under the one budget.
    listener
        Told after each day.

    Yields
    ------
    Piece
        One per day of the window, days without news included. A cap that is 0 or missing at the source is NULL.

    Raises
    ------
    SourceError
        After the pieces with what had come were yielded. What concerns one coin alone leaves the others to go on.
    """
    table = TABLES["raw/market_caps"]
    end = min(window[1], midnight_before(now - PUBLICATION_LAG))
    settled = midnight_before(now - LATE_FOR)
    oldest = client.caps_from(now)
    start = window[0] if oldest is None else max(window[0], oldest)
    stop = threading.Event()

    def read(coin_id: str) -> _Caps:
        name = series_name(VENUE, coin_id, "market_cap", "1d")
        holes = missing_in(covered.get(name, ()), start, end) if start < end else []
        one = _Caps(name, holes)
        if not holes or stop.is_set():
            return one
        asked = (holes[0][0], holes[-1][1])
        try:
            one.rows = client.market_caps(coin_id, *asked, now=now)
        except SourceError as error:
            one.error = error
            if not error.concerns_one_series:
                stop.set()
            return one
        newest = one.rows["ts"][-1].as_py() + timedelta(days=1) if one.rows.num_rows else settled
        one.proved = (asked[0], min(asked[1], max(settled, newest)))
        return one

    with ThreadPoolExecutor(max(1, min(threads, len(coin_ids)))) as pool:
        try:
            found = list(pool.map(read, sorted(coin_ids)))
        except BaseException:
            # An interrupted load waits for the requests under way, and for no coin behind them.
            stop.set()
            raise
    lacking = [one for one in found if one.holes]
    missing = sum((right - left for one in lacking for left, right in one.holes), timedelta())
    n_rows = 0
    for key, left, right in keys_of("daily", *window):
        tables, coverage = [table.arrow_schema().empty_table()], []
        for one in lacking:
            ranges = union_of([(max(one.proved[0], left), min(one.proved[1], right))] if one.proved else [])
            if not ranges or one.rows is None:
                continue
            coverage.append(SeriesCoverage(one.name, ranges))
            day = one.rows.filter(pc.equal(one.rows["ts"], pa.scalar(left, pa.timestamp("us"))))
            known_at = pc.add(day["ts"], pa.scalar(timedelta(days=1) + PUBLICATION_LAG, pa.duration("us")))
            named = day.rename_columns({"volume_usd": "volume_24h_usd"}).append_column("known_at", known_at)
            tables.append(named.select(table.column_names).cast(table.arrow_schema()))
        rows = pa.concat_tables(tables)
        n_rows += rows.num_rows
        yield Piece(key, rows, tuple(coverage), min(right + PUBLICATION_LAG, now), seen_at=now)
        listener(Advance(table.name, key, len(lacking), len(lacking), n_rows, missing, missing))
    raise_first(one.error for one in found)


@dataclass
class _Caps:
    """One coin's answer: all its days in one request."""

    name: str
    holes: list[Range]
    rows: pa.Table | None = None
    proved: Range | None = None
    error: SourceError | None = None


def coin_ohlc_pieces(
    client: CoinGeckoClient,
    coin_ids: Sequence[str],
    intervals: Sequence[str],
    covered: Mapping[str, Sequence[Range]],
    window: Range,
    *,
    now: datetime,
    threads: int = THREADS,
    listener: Listener = ignore_progress,
) -> Iterator[Piece]:
    """Download the candles of coins that a window lacks and yield them day by day.

    Answers are read only as far as the day in hand needs them, so that memory does not grow with the window and a kill
    keeps the days before. A candle may be late, so the time after the newest one that came stays uncovered until it
    ended ``LATE_FOR`` ago. What the plan cannot tell is not asked for, and stays uncovered.

    Parameters
    ----------
    client
        The aggregator.
    coin_ids
        Its ids.
    intervals
        ``1d``, ``1h`` or both.
    covered
        Name of a series -> ranges already answered and stored.
    window
        Naive UTC days.
    now
        The source's time: only candles whose publication lag has passed are asked for.
    threads
        Series asked for at the same time, under the one budget.
    listener
        Told after each day.

    Yields
    ------
    Piece
        One per day of the window, days without news included; candles, coverage and anomalies of all series.

    Raises
    ------
    ValueError
        If CoinGecko has no candles of an interval.
    SourceError
        As ``series_pieces``; an unknown coin concerns its own series alone.
    """
    yield from series_pieces(
        TABLES["raw/coin_ohlc"],
        [
            _open(client, coin_id, interval, covered, window, now)
            for coin_id in sorted(coin_ids)
            for interval in intervals
        ],
        window,
        now=now,
        told_until=now,
        told_after=PUBLICATION_LAG,
        threads=threads,
        listener=listener,
    )


def _open(
    client: CoinGeckoClient,
    coin_id: str,
    interval: str,
    covered: Mapping[str, Sequence[Range]],
    window: Range,
    now: datetime,
) -> Series:
    last = from_ms(floor_ms(to_ms(now - lag_of(interval)), interval))
    start, end = max(window[0], client.ohlc_from(interval, now)), min(window[1], last)
    parts = (VENUE, coin_id, "ohlc", interval)
    holes = missing_in(covered.get(series_name(*parts), ()), start, end) if start < end else []
    asked = fewest_asks(holes, client.ohlc_reach(interval))
    settled = from_ms(floor_ms(to_ms(now - LATE_FOR), interval))

    def answers() -> Iterator[Answer]:
        for at, end in asked:
            for page in client.ohlc_pages(coin_id, interval, at, end, now):
                until = page.covered_until
                newest = page.rows["ts"][-1].as_py() + interval_delta(interval) if page.rows.num_rows else at
                # Only where answers end may a candle be late: before a newer one it is missing at the source.
                proved = (at, min(until, max(settled, newest)))
                yield Answer((at, until), proved, page.rows, page.set_aside)
                at = until

    return Series(*parts, asked, answers(), lag_of(interval))
