"""From what is missing to partition pieces: fewest requests, interior gaps, overlap, many series, failures."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from datetime import datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_assets.intervals import HOUR_MS, MINUTE_MS, from_ms, to_ms
from crypto_assets.resources.exchange import Market
from crypto_assets.resources.ingest import (
    Advance,
    KlineSource,
    Wanted,
    fewest_requests,
    kline_pieces,
    sample_pieces,
    with_overlap,
)
from crypto_assets.resources.snapshots import Collected
from crypto_assets.resources.sources import SourceDataInvalid, SourceError, SourceRefused, SourceUnavailable
from crypto_assets.resources.warehouse import conform
from crypto_assets.resources.warehouse.lake import Piece, missing_in, union_of
from crypto_assets.tables import TABLES
from crypto_assets_tests.resources.stub_exchange import StubExchange

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
FIRST, END = datetime(2024, 1, 1), datetime(2024, 1, 4)
WINDOW = (FIRST, END)
BTC, ETH = Market("BTC/USDT", "BTCUSDT"), Market("ETH/USDT", "ETHUSDT")
Covered = dict[str, list[tuple[datetime, datetime]]]


def hours(start: datetime = FIRST, end: datetime = END, step_ms: int = HOUR_MS) -> list[int]:
    return list(range(to_ms(start), to_ms(end), step_ms))


def exchange_of(*markets: Market, opens: Iterable[int] | None = None, **given: object) -> StubExchange:
    every = list(opens) if opens is not None else hours()
    return StubExchange({(market.symbol, "trade"): every for market in markets}, **given)  # ty: ignore[invalid-argument-type]


class Collector:
    """Stores what comes as the warehouse does: rows by key, coverage by series."""

    def __init__(
        self, exchange: StubExchange, *markets: Market, gone: dict[str, datetime] | None = None
    ) -> None:
        self.exchange = exchange
        self.wanted = [Wanted(Collected(market, (gone or {}).get(market.symbol))) for market in markets]
        self.rows: dict[tuple[str, datetime], float] = {}
        self.covered: Covered = {}
        self.anomalies: list[dict[str, object]] = []
        self.told: list[Advance] = []
        self.days: list[str] = []

    def load(
        self,
        watermark: datetime = END,
        window: tuple[datetime, datetime] = WINDOW,
        interval: str = "1h",
        **given: int,
    ) -> int:
        """Ask for what the window lacks; returns how many pages it took."""
        before = len(self.exchange.asked)
        pieces = kline_pieces(
            KlineSource(self.exchange, watermark),  # ty: ignore[invalid-argument-type]
            self.wanted,
            self.covered,
            window,
            interval=interval,
            listener=self.told.append,
            **given,
        )
        for piece in pieces:
            self.store(piece)
        return len(self.exchange.asked) - before

    def store(self, piece: Piece) -> None:
        rows = conform(piece.rows, TABLES["raw/klines"])
        assert isinstance(rows, pa.Table)
        for row in rows.to_pylist():
            assert row["ts"].date().isoformat() == piece.partition
            self.rows[row["symbol"], row["ts"]] = row["close"]
        for item in piece.coverage:
            self.covered[item.series] = list(union_of([*self.covered.get(item.series, []), *item.ranges]))
        self.anomalies += (piece.anomalies or pa.table({})).to_pylist()
        self.days.append(piece.partition)

    def times(self, market: Market = BTC) -> list[datetime]:
        return sorted(ts for symbol, ts in self.rows if symbol == market.symbol)


def every(opens: Iterable[int]) -> list[datetime]:
    return [from_ms(at) for at in opens]


def test_a_first_load_takes_the_fewest_pages_and_a_second_one_none() -> None:
    minutes = hours(step_ms=MINUTE_MS)
    collector = Collector(exchange_of(BTC, opens=minutes), BTC)
    assert collector.load(interval="1m") == -(-len(minutes) // 1000)
    assert collector.times() == every(minutes)
    assert collector.load(interval="1m") == 0


def test_a_tick_takes_one_page_a_series_and_reads_a_little_again() -> None:
    exchange = exchange_of(BTC, ETH)
    collector = Collector(exchange, BTC, ETH)
    collector.load(watermark=END - 5 * HOUR)
    exchange.restated = {to_ms(END - 7 * HOUR)}
    restated = END - 7 * HOUR
    before = collector.rows["BTC/USDT", restated]
    assert collector.load(watermark=END - 4 * HOUR, overlap_bars=3) == 2
    assert collector.rows["BTC/USDT", restated] == before + 1
    assert exchange.asked[-1][1] == END - 8 * HOUR


def test_an_interior_gap_is_asked_for_and_nothing_else() -> None:
    exchange = exchange_of(BTC)
    collector = Collector(exchange, BTC)
    collector.load()
    hole = (FIRST + 30 * HOUR, FIRST + 33 * HOUR)
    name = "stub|BTC/USDT|trade|1h"
    collector.covered[name] = [(FIRST, hole[0]), (hole[1], END)]
    assert collector.load() == 1
    assert exchange.asked[-1] == ("BTC/USDT", *hole)
    assert missing_in(collector.covered[name], *WINDOW) == []


def test_near_holes_are_one_request_and_far_ones_are_two() -> None:
    exchange = exchange_of(BTC, rows_a_page=10)
    collector = Collector(exchange, BTC)
    name = "stub|BTC/USDT|trade|1h"
    holes = [(FIRST + at * HOUR, FIRST + (at + 1) * HOUR) for at in (3, 8, 40)]
    collector.covered[name] = missing_in(holes, *WINDOW)
    assert collector.load() == 2


def test_a_new_market_is_loaded_alone() -> None:
    exchange = exchange_of(BTC, ETH)
    collector = Collector(exchange, BTC)
    collector.load()
    collector.wanted.append(Wanted(Collected(ETH)))
    assert collector.load() == 1
    assert exchange.asked[-1][0] == "ETH/USDT"


def test_only_what_is_closed_by_the_time_of_the_source_is_asked_for() -> None:
    exchange = exchange_of(BTC)
    now = END - timedelta(minutes=20)
    source = KlineSource(exchange, now)  # ty: ignore[invalid-argument-type]
    pieces = list(kline_pieces(source, [Wanted(Collected(BTC))], {}, WINDOW, interval="1h"))
    assert exchange.asked == [("BTC/USDT", FIRST, END - HOUR)]
    assert [piece.watermark for piece in pieces] == [FIRST + DAY, FIRST + 2 * DAY, END - HOUR]
    assert {piece.seen_at for piece in pieces} == {now}


def test_nothing_is_asked_for_after_a_market_is_gone() -> None:
    gone_at = FIRST + 30 * HOUR + timedelta(minutes=20)
    collector = Collector(exchange_of(BTC), BTC, gone={"BTC/USDT": gone_at})
    collector.load()
    assert collector.times()[-1] == FIRST + 29 * HOUR
    assert collector.load() == 0


def test_what_an_exchange_no_longer_tells_of_a_market_that_it_dropped_is_its_own_gap() -> None:
    exchange = exchange_of(BTC, ETH, rows_a_page=24)
    collector = Collector(exchange, BTC, ETH, gone={"BTC/USDT": END - HOUR})
    refused = failing(SourceRefused)
    refused.concerns_one_series = True
    exchange.failures["BTC/USDT"] = [refused]
    collector.load()
    assert collector.times(BTC) == []
    assert collector.times(ETH) == every(hours())
    assert collector.load() == 0


def test_a_gap_of_the_exchange_is_covered_and_not_asked_for_again() -> None:
    there = [at for at in hours() if not FIRST + 20 * HOUR <= from_ms(at) < FIRST + 40 * HOUR]
    collector = Collector(exchange_of(BTC, opens=there, rows_a_page=7), BTC)
    collector.load()
    assert collector.times() == every(there)
    assert collector.load() == 0


def test_off_grid_candles_are_anomalies_and_no_rows() -> None:
    odd = to_ms(FIRST + 5 * HOUR) + 894_789
    collector = Collector(exchange_of(BTC, opens=[*hours(), odd]), BTC)
    collector.load()
    assert collector.times() == every(hours())
    assert [(row["kind"], row["series_kind"], row["ts"]) for row in collector.anomalies] == [
        ("off_grid", "trade", from_ms(odd))
    ]


def test_every_day_of_the_window_is_told_in_order_with_how_far_it_has_come() -> None:
    collector = Collector(exchange_of(BTC, ETH), BTC, ETH)
    collector.load()
    assert (
        [told.day for told in collector.told] == collector.days == ["2024-01-01", "2024-01-02", "2024-01-03"]
    )
    last = collector.told[-1]
    assert (last.n_series, last.n_done, last.n_rows) == (2, 2, 144)
    assert last.read == last.missing == 6 * DAY


def test_series_are_asked_for_at_the_same_time_but_no_more_than_allowed() -> None:
    exchange = exchange_of(BTC, ETH, meeting=threading.Barrier(2))
    collector = Collector(exchange, BTC, ETH)
    # Each waits for the other, so one after the other would never end.
    collector.load(concurrency=2)
    assert exchange.most_at_once == 2
    assert collector.times(BTC) == collector.times(ETH) == every(hours())
    single = exchange_of(BTC, ETH)
    Collector(single, BTC, ETH).load(concurrency=1)
    assert single.most_at_once == 1


def failing(kind: type[SourceError]) -> SourceError:
    return kind("stub klines", "what came", "what to do")


def test_an_outage_keeps_what_came_and_the_rest_is_asked_for_later() -> None:
    exchange = exchange_of(BTC, ETH, rows_a_page=24)
    collector = Collector(exchange, BTC, ETH)
    pieces = kline_pieces(
        KlineSource(exchange, END),  # ty: ignore[invalid-argument-type]
        collector.wanted,
        {},
        WINDOW,
        interval="1h",
    )
    collector.store(next(pieces))
    exchange.failures["ETH/USDT"] = [failing(SourceUnavailable)]
    collector.store(next(pieces))
    with pytest.raises(SourceUnavailable):
        next(pieces)
    assert len(collector.times(BTC)) == 48
    assert len(collector.times(ETH)) == 24
    collector.load()
    assert collector.times(BTC) == collector.times(ETH) == every(hours())


def test_a_wrong_answer_of_one_market_leaves_the_others_complete() -> None:
    exchange = exchange_of(BTC, ETH, failures={"BTC/USDT": [failing(SourceDataInvalid)]})
    collector = Collector(exchange, BTC, ETH)
    with pytest.raises(SourceDataInvalid):
        collector.load()
    assert collector.times(BTC) == []
    assert collector.times(ETH) == every(hours())
    assert collector.load() == 1


def test_errors_of_several_markets_are_told_together() -> None:
    failures = {market.symbol: [failing(SourceDataInvalid)] for market in (BTC, ETH)}
    collector = Collector(exchange_of(BTC, ETH, failures=failures), BTC, ETH)
    with pytest.raises(SourceDataInvalid) as caught:
        collector.load()
    assert len(caught.value.__notes__) == 1


def test_what_the_stopped_consumer_has_not_asked_for_is_not_read() -> None:
    exchange = exchange_of(BTC, opens=hours(step_ms=MINUTE_MS))
    pieces = kline_pieces(
        KlineSource(exchange, END),  # ty: ignore[invalid-argument-type]
        [Wanted(Collected(BTC))],
        {},
        WINDOW,
        interval="1m",
    )
    next(pieces)
    assert len(exchange.asked) == 2
    pieces.close()


PERPETUAL = Market("BTC/USDT:USDT", "BTCUSDT", "perpetual")
SETTLED = [FIRST + at * 8 * HOUR + timedelta(milliseconds=at) for at in range(9)]


def funding(exchange: StubExchange, covered: Covered, now: datetime = END) -> list[Piece]:
    return list(
        sample_pieces(
            lambda one, start, end: exchange.funding_rates(one.market, start, end, now),
            TABLES["raw/funding_rates"],
            [Collected(PERPETUAL)],
            covered,
            WINDOW,
            venue="stub",
            kind="funding",
            interval="",
            now=now,
        )
    )


def test_funding_is_one_request_known_when_it_was_told_and_never_asked_for_twice() -> None:
    exchange = StubExchange({}, settlements={PERPETUAL.symbol: SETTLED})
    pieces = funding(exchange, {})
    rows = [row for piece in pieces for row in conform(piece.rows, TABLES["raw/funding_rates"]).to_pylist()]
    assert [row["settled_at"] for row in rows] == SETTLED
    assert all(row["known_at"] >= row["ts"] for row in rows)
    covered: Covered = {}
    for piece in pieces:
        for item in piece.coverage:
            covered.setdefault(item.series, []).extend(item.ranges)
    assert list(covered) == ["stub|BTC/USDT:USDT|funding|"]
    funding(exchange, covered)
    assert len(exchange.asked) == 1


def test_a_failed_contract_leaves_its_days_uncovered() -> None:
    exchange = StubExchange(
        {}, settlements={PERPETUAL.symbol: SETTLED}, failures={PERPETUAL.symbol: [failing(SourceUnavailable)]}
    )
    stored = []
    with pytest.raises(SourceUnavailable):
        for piece in sample_pieces(
            lambda one, start, end: exchange.funding_rates(one.market, start, end, END),
            TABLES["raw/funding_rates"],
            [Collected(PERPETUAL)],
            {},
            WINDOW,
            venue="stub",
            kind="funding",
            interval="",
            now=END,
        ):
            stored.append(piece)
    assert len(stored) == 3
    assert all(piece.coverage == () for piece in stored)


RANGES = st.lists(
    st.tuples(st.integers(0, 200), st.integers(1, 30)).map(lambda pair: (pair[0], pair[0] + pair[1])),
    max_size=8,
)


def moments(ranges: list[tuple[int, int]]) -> list[tuple[datetime, datetime]]:
    return list(union_of((FIRST + a * HOUR, FIRST + b * HOUR) for a, b in ranges))


@given(RANGES, st.integers(1, 50))
def test_joined_holes_cover_every_hole_with_no_more_answers(
    ranges: list[tuple[int, int]], reach: int
) -> None:
    holes = moments(ranges)
    asked = fewest_requests(holes, reach * HOUR)
    assert all(missing_in(asked, *hole) == [] for hole in holes)
    pages = sum(-(-(b - a) // (reach * HOUR)) for a, b in asked)
    assert pages <= sum(-(-(b - a) // (reach * HOUR)) for a, b in holes)


@given(RANGES, st.integers(1, 50), st.integers(0, 60), st.integers(0, 230))
def test_overlap_stays_on_what_is_stored_and_costs_no_answer(
    ranges: list[tuple[int, int]], reach: int, n_bars: int, at: int
) -> None:
    known = moments(ranges)
    for hole in missing_in(known, FIRST, FIRST + at * HOUR):
        start, end = with_overlap(hole, known, HOUR, reach * HOUR, n_bars)
        assert end == hole[1]
        assert start <= hole[0]
        assert missing_in(known, start, hole[0]) == []
        assert hole[0] - start <= n_bars * HOUR
        assert -(-(end - start) // (reach * HOUR)) == -(-(end - hole[0]) // (reach * HOUR))
