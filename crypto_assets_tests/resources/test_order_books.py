"""Order books from the exchange into the tables: rounds, the collector under a clock of its own, kills, retention."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest

from crypto_assets.intervals import to_ms
from crypto_assets.quant.order_books import LOOK_BACK, densities, mean_price, summary
from crypto_assets.quant.order_books import Side as BookSide
from crypto_assets.resources.exchange import Market, OrderBook
from crypto_assets.resources.exchange.binance import BinanceClient
from crypto_assets.resources.exchange.binance_answers import book_of
from crypto_assets.resources.order_books import (
    LEVELS,
    SUMMARY,
    BookCollector,
    BookRound,
    BookStore,
    book_hours,
    book_pieces,
    compact_closed_days,
    interval_of,
    lacking,
    look,
    remove_old_levels,
    rows_of,
    slot_of,
    summary_pieces,
    unsummarised,
)
from crypto_assets.resources.sources import (
    RateBudget,
    SourceDataInvalid,
    SourceError,
    SourceRefused,
    SourceUnavailable,
)
from crypto_assets.resources.warehouse import Catalog, Lake, conform
from crypto_assets.resources.warehouse.inventory import coverage_table, gaps_table
from crypto_assets.resources.warehouse.lake import Piece, Provenance, SeriesCoverage
from crypto_assets.resources.warehouse.lineage import window_of_partition
from crypto_assets.simulation.server import MarketServer
from crypto_assets.simulation.synthetic import SyntheticWorld
from crypto_assets.tables import TABLES
from crypto_assets_tests.recorded import RECORDED, needs_recorded

REPOSITORY = Path(__file__).resolve().parents[2]
NOON = datetime(2024, 1, 1, 12)
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
NO_GRACE = timedelta(0)
BTC, ETH = Market("BTC/USDT", "BTCUSDT"), Market("ETH/USDT", "ETHUSDT")
WINDOW = (NOON, NOON + HOUR)

SUMMARISE = partial(summary, asked_levels=500)


def unavailable(retry_after_s: float | None = None) -> SourceUnavailable:
    return SourceUnavailable("stub GET /depth", "nothing", "try again", retry_after_s)


def refused(retry_after_s: float | None = None) -> SourceRefused:
    return SourceRefused("stub GET /depth", "no", "change the configuration", retry_after_s)


@dataclass
class StubBooks:
    """An exchange whose clock goes on by one second with each question; books differ from one second to the next.

    ``failures`` are raised once each, by symbol (or ``time``); ``books`` are told in place of the usual one, once each.
    """

    now: datetime = NOON
    failures: dict[str, list[SourceError]] = field(default_factory=dict)
    books: dict[str, list[OrderBook]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    pace: timedelta = SECOND
    venue: str = "stub"

    def server_time(self) -> datetime:
        self._answer("time")
        moment, self.now = self.now, self.now + self.pace
        return moment

    def order_book(self, market: Market, n_levels: int) -> OrderBook:
        self._answer(market.symbol)
        if self.books.get(market.symbol):
            return self.books[market.symbol].pop(0)
        return usual_book(self.now, n_levels)

    def _answer(self, name: str) -> None:
        self.asked.append(name)
        if self.failures.get(name):
            raise self.failures[name].pop(0)

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def usual_book(now: datetime, n_levels: int = 2) -> OrderBook:
    second = (now - NOON).total_seconds()
    steps = np.arange(n_levels, dtype=np.float64)
    amounts = np.full(n_levels, 1.0 + second)
    return OrderBook(
        np.column_stack([99.0 - steps, amounts]),
        np.column_stack([101.0 + steps, amounts]),
        int(second),
        now,
    )


def book(bid: float | None, ask: float | None, number: int | None = 1) -> OrderBook:
    sides = (np.empty((0, 2)) if price is None else np.array([[price, 1.0]]) for price in (bid, ask))
    return OrderBook(*sides, number, None)


@pytest.fixture
def exchange() -> StubBooks:
    return StubBooks()


@pytest.fixture
def store(tmp_path: Path) -> BookStore:
    return BookStore(tmp_path, MINUTE, SUMMARISE, look_back=LOOK_BACK, run_id="collector")


def table(lake: Lake, name: str = SUMMARY.name) -> pd.DataFrame:
    return lake.read(TABLES[name]).to_pandas()


def minutes(lake: Lake, symbol: str = "BTC/USDT", name: str = SUMMARY.name) -> list[float]:
    rows = table(lake, name)
    times = rows.loc[rows["symbol"] == symbol, "ts"].drop_duplicates()
    return [round((time - pd.Timestamp(NOON)) / pd.Timedelta(MINUTE), 3) for time in times]


# --- one round


def test_a_round_is_known_when_the_last_book_has_come(exchange: StubBooks) -> None:
    seen = look(exchange, [ETH, BTC], 2)
    assert (seen.ts, seen.known_at) == (NOON, NOON + SECOND)
    assert exchange.asked[0] == exchange.asked[-1] == "time"
    rows = conform(seen.levels, LEVELS, WINDOW).to_pandas()
    assert len(rows) == 2 * 2 * 2
    assert seen.answered == ("BTC/USDT", "ETH/USDT")
    best = rows[(rows["symbol"] == "BTC/USDT") & (rows["level"] == 0)].set_index("side")
    assert best["price"].to_dict() == {"bid": 99.0, "ask": 101.0}
    assert best["last_update_id"].tolist() == [1, 1]
    assert best["book_time"].tolist() == [NOON + SECOND] * 2


def test_a_clock_that_is_set_back_knows_nothing_early(exchange: StubBooks) -> None:
    exchange.pace = -SECOND
    seen = look(exchange, [BTC], 2)
    assert seen.known_at == seen.ts == NOON


def test_a_market_that_fails_does_not_lose_the_others(exchange: StubBooks) -> None:
    exchange.failures = {"BTC/USDT": [unavailable()], "ADA/USDT": [refused()]}
    seen = look(exchange, [BTC, ETH, Market("ADA/USDT", "ADAUSDT")], 2)
    assert seen.answered == ("ETH/USDT",)
    assert set(seen.levels["symbol"].to_pylist()) == {"ETH/USDT"}
    with pytest.raises(SourceRefused) as caught:
        seen.require_all()
    assert caught.value.__notes__ == ["order books that did not come: ADA/USDT, BTC/USDT"]


def test_an_exchange_without_a_clock_gives_no_round(exchange: StubBooks) -> None:
    exchange.failures = {"time": [unavailable()]}
    with pytest.raises(SourceUnavailable):
        look(exchange, [BTC], 2)
    assert exchange.asked == ["time"]


@pytest.mark.parametrize(
    "every", [timedelta(0), 7 * SECOND, timedelta(hours=2), timedelta(seconds=0.5), -MINUTE]
)
def test_rounds_divide_an_hour(every: timedelta) -> None:
    with pytest.raises(ValueError, match="does not divide an hour"):
        slot_of(NOON, every)


def test_a_moment_belongs_to_the_round_that_began_last() -> None:
    moment = NOON + timedelta(minutes=7, seconds=59, microseconds=999_999)
    assert slot_of(moment, 5 * MINUTE) == NOON + 5 * MINUTE
    assert slot_of(moment, 10 * SECOND) == NOON + timedelta(minutes=7, seconds=50)
    assert interval_of(5 * MINUTE) == "300s"


# --- rounds as partitions


def pieces(exchange: StubBooks, window: tuple[datetime, datetime], **more: Any) -> Iterator[Piece]:
    given: dict[str, Any] = {"covered": {}, "n_levels": 2, "every": MINUTE, "now": exchange.server_time()}
    given |= more
    return book_pieces(exchange, [BTC, ETH], given.pop("covered"), window, **given)


def test_an_hour_that_is_over_is_empty_and_nothing_is_asked_for_it(exchange: StubBooks) -> None:
    exchange.now = NOON + 30 * MINUTE
    found = list(pieces(exchange, (NOON - 2 * HOUR, NOON)))
    assert [(piece.partition, conform(piece.rows, LEVELS).num_rows, piece.watermark) for piece in found] == [
        ("2024-01-01-10:00", 0, NOON - HOUR),
        ("2024-01-01-11:00", 0, NOON),
    ]
    assert exchange.asked == ["time"]
    assert book_hours((NOON - 2 * HOUR, NOON), NOON)["status"] == "past: a book tells only the present"
    assert book_hours((NOON - HOUR, NOON + HOUR), NOON) == {
        "status": "seen",
        "n_hours_past": 1,
        "n_hours_present": 1,
    }
    assert book_hours((NOON + HOUR, NOON + 2 * HOUR), NOON)["status"] == "not begun"


def test_the_running_hour_is_looked_at_once_and_later_hours_are_empty(exchange: StubBooks) -> None:
    exchange.now = NOON + 30 * MINUTE
    found = {piece.partition: piece for piece in pieces(exchange, (NOON - HOUR, NOON + 2 * HOUR))}
    n_rows = {key: conform(piece.rows, LEVELS).num_rows for key, piece in found.items()}
    assert n_rows == {"2024-01-01-11:00": 0, "2024-01-01-12:00": 8, "2024-01-01-13:00": 0}
    seen = found["2024-01-01-12:00"]
    assert seen.watermark == NOON + 30 * MINUTE + SECOND
    slot = (NOON + 30 * MINUTE, NOON + 31 * MINUTE)
    assert [(item.series, item.ranges) for item in seen.coverage] == [
        ("stub|BTC/USDT|order_book|60s", (slot,)),
        ("stub|ETH/USDT|order_book|60s", (slot,)),
    ]


def test_a_round_that_was_seen_is_not_looked_at_again(exchange: StubBooks) -> None:
    seen = {"stub|BTC/USDT|order_book|60s": [(NOON, NOON + 5 * MINUTE)]}
    exchange.now = NOON + 4.5 * MINUTE
    assert [market.symbol for market in lacking([BTC, ETH], "stub", seen, NOON + 4 * MINUTE, MINUTE)] == [
        "ETH/USDT"
    ]
    (piece,) = pieces(exchange, WINDOW, covered=seen)
    assert set(conform(piece.rows, LEVELS)["symbol"].to_pylist()) == {"ETH/USDT"}
    both = seen | {"stub|ETH/USDT|order_book|60s": [(NOON, NOON + 5 * MINUTE)]}
    exchange.asked.clear()
    (nothing,) = pieces(exchange, WINDOW, covered=both, now=NOON + 4.5 * MINUTE)
    assert conform(nothing.rows, LEVELS).num_rows == 0
    assert "BTC/USDT" not in exchange.asked


def test_what_came_is_yielded_before_the_failure_is_raised(exchange: StubBooks) -> None:
    exchange.failures = {"BTC/USDT": [unavailable()]}
    found = pieces(exchange, WINDOW)
    piece = next(found)
    assert set(conform(piece.rows, LEVELS)["symbol"].to_pylist()) == {"ETH/USDT"}
    assert [item.series for item in piece.coverage] == ["stub|ETH/USDT|order_book|60s"]
    with pytest.raises(SourceUnavailable):
        next(found)


def test_the_simulated_market_is_looked_at_through_the_client_and_stored(tmp_path: Path) -> None:
    now = datetime(2024, 1, 5, 12, 30, 17)
    world = SyntheticWorld(7, to_ms(datetime(2024, 1, 1)), to_ms(datetime(2024, 1, 6)), "1m")
    spot, usdm = (RateBudget(tmp_path, name, 6000) for name in ("spot", "usdm"))
    with MarketServer(world, now, real_seconds=lambda: 0.0) as market:
        client = BinanceClient(spot, usdm, base_url=market.url)
        seen = look(client, [BTC, ETH], 20)
        with pytest.raises(SourceRefused):
            look(client, [Market("NOSUCH/USDT", "NOSUCHUSDT")], 20).require_all()
    assert (seen.ts, seen.answered, seen.levels.num_rows) == (now, ("BTC/USDT", "ETH/USDT"), 80)
    store = BookStore(tmp_path / "warehouse", 5 * MINUTE, SUMMARISE, look_back=LOOK_BACK, run_id="x")
    store.save([seen])
    rows = table(store.lake)
    assert rows["status"].tolist() == ["ok", "ok"]
    assert (rows["venue"].tolist(), rows["n_bids"].tolist()) == (["binance"] * 2, [20, 20])
    assert (rows["spread_bps"] > 0).all()
    key = "2024-01-05-12:00"
    said = store.lake.provenance(LEVELS, key)
    assert said is not None
    slot = (now - timedelta(seconds=17), now - timedelta(seconds=17) + 5 * MINUTE)
    assert said.covered("binance|BTC/USDT|order_book|300s") == (slot,)


# --- storing


def test_stored_rounds_are_levels_summary_coverage_and_seen_in_the_catalogue(
    exchange: StubBooks, store: BookStore
) -> None:
    exchange.now = NOON - 2 * SECOND
    rounds = [look(exchange, [BTC, ETH], 2), look(exchange, [BTC, ETH], 2)]
    store.save(rounds)
    assert (
        store.lake.partitions(LEVELS)
        == store.lake.partitions(SUMMARY)
        == ["2024-01-01-11:00", "2024-01-01-12:00"]
    )
    rows = table(store.lake)
    assert rows["status"].tolist() == ["ok"] * 4
    assert rows["mid"].tolist() == [100.0] * 4
    for key in store.lake.partitions(LEVELS):
        levels, summaries = store.lake.provenance(LEVELS, key), store.lake.provenance(SUMMARY, key)
        assert levels is not None and summaries is not None
        assert (levels.coverage, levels.watermark, levels.run_id) == (
            summaries.coverage,
            summaries.watermark,
            "collector",
        )
    assert unsummarised(store.lake) == []
    with duckdb.connect(str(Catalog(store.lake).path), read_only=True) as connection:
        counts = connection.execute(
            "select (select count(*) from raw.order_books), (select count(*) from raw.order_book_summary)"
        )
        assert counts.fetchall() == [(16, 4)]
    before = [store.lake.path(LEVELS, key).stat().st_ino for key in store.lake.partitions(LEVELS)]
    store.save(rounds)
    assert [store.lake.path(LEVELS, key).stat().st_ino for key in store.lake.partitions(LEVELS)] == before


def test_what_is_odd_is_recorded_once_with_its_series(exchange: StubBooks, store: BookStore) -> None:
    odd = [
        book(99.0, 101.0, 5),
        book(102.0, 101.0, 6),
        book(None, 101.0, 7),
        book(None, None, 8),
        book(98.0, 101.0, 2),
        book(97.0, 101.0, 9),
        book(97.0, 101.0, 9),
    ]
    exchange.books = {"BTC/USDT": odd}
    rounds = []
    for minute in (0, 1, 2, 3, 4, 5, 16):
        exchange.now = NOON + minute * MINUTE
        rounds.append(look(exchange, [BTC, ETH], 2))
    for part in (rounds[:4], rounds[4:], rounds):
        store.save(part)
    rows = table(store.lake)
    btc = rows[rows["symbol"] == "BTC/USDT"]
    assert btc["status"].tolist() == ["ok", "crossed", "one_sided", "empty", "out_of_sequence", "ok", "stale"]
    assert btc["last_update_id"].tolist() == [5, 6, 7, 8, 2, 9, 9]
    assert set(rows.loc[rows["symbol"] == "ETH/USDT", "status"]) == {"ok"}
    found = store.lake.ledger.anomalies().to_pylist()
    assert [(row["kind"], row["ts"].minute) for row in sorted(found, key=lambda row: row["ts"])] == [
        ("crossed_book", 1),
        ("one_sided_book", 2),
        ("empty_book", 3),
        ("book_out_of_sequence", 4),
        ("stale_book", 16),
    ]
    assert {(row["asset"], row["symbol"], row["series_kind"], row["interval"]) for row in found} == {
        ("raw/order_books", "BTC/USDT", "order_book", "60s")
    }
    crossed = next(row for row in found if row["kind"] == "crossed_book")
    assert json.loads(crossed["detail"]) == {
        "best_ask": 101.0,
        "best_bid": 102.0,
        "last_update_id": 6,
        "status": "crossed",
    }


def test_a_summary_is_the_same_flush_by_flush_and_over_the_whole(
    exchange: StubBooks, store: BookStore
) -> None:
    still = book(99.0, 101.0, 1)
    exchange.books = {"BTC/USDT": [still] * 20}
    exchange.now = NOON + 50 * MINUTE
    for _ in range(20):
        store.save([look(exchange, [BTC], 2)])
        exchange.now += MINUTE
    rows = table(store.lake)
    assert rows["status"].tolist() == ["ok"] * 10 + ["stale"] * 10, "across the hour as well"
    whole = [
        conform(piece.rows, SUMMARY).to_pandas()
        for piece in summary_pieces(store.lake, (NOON, NOON + 3 * HOUR), SUMMARISE, look_back=LOOK_BACK)
    ]
    assert [len(part) for part in whole] == [10, 10, 0]
    pd.testing.assert_frame_equal(pd.concat(whole[:2], ignore_index=True), rows)
    assert store.lake.ledger.revisions().num_rows == 0


def test_hours_whose_summary_was_not_stored_are_summarised_at_the_start(
    exchange: StubBooks, store: BookStore
) -> None:
    seen = look(exchange, [BTC], 2)
    store.save([seen])
    store.lake.remove_dates(SUMMARY, ["2024-01-01"])
    assert unsummarised(store.lake) == ["2024-01-01-12:00"]
    store.catch_up()
    assert unsummarised(store.lake) == []
    assert len(table(store.lake)) == 1


# --- the collector


class Script:
    """What a collector waits on: the clock goes on, and after so many pauses it is to stop."""

    def __init__(
        self, exchange: StubBooks, n_turns: int, on_pause: Callable[[int], None] | None = None
    ) -> None:
        self.exchange, self.n_turns, self.on_pause = exchange, n_turns, on_pause
        self.pauses: list[float] = []

    def __call__(self, seconds: float) -> bool:
        self.pauses.append(round(seconds, 3))
        if len(self.pauses) > self.n_turns:
            return True
        self.exchange.wait(seconds)
        if self.on_pause is not None:
            self.on_pause(len(self.pauses))
        return False


def collector(
    exchange: StubBooks, store: BookStore, script: Script, markets: Sequence[Market] = (BTC, ETH), **more: Any
) -> BookCollector:
    given: dict[str, Any] = {"n_levels": 2, "flush_every": 5 * MINUTE} | more
    return BookCollector(exchange, markets, store, wait=script, **given)


def test_a_collector_looks_once_a_round_by_the_clock_of_the_exchange(
    exchange: StubBooks, store: BookStore
) -> None:
    exchange.now = NOON + timedelta(seconds=50)
    script = Script(exchange, 4)
    report = collector(exchange, store, script).run()
    assert (report.n_rounds, report.n_missed, report.n_levels, report.failures) == (4, 0, 32, {})
    assert minutes(store.lake) == [0.833, 1.017, 2.017, 3.017]
    # The first pause ends with the first round; each look takes a second of the exchange's clock.
    assert script.pauses == [0.0, 9.0, 59.0 - 1, 59.0 - 1, 58.0]


def test_rounds_are_stored_every_while_and_at_the_end_of_the_hour(
    exchange: StubBooks, store: BookStore
) -> None:
    exchange.now = NOON + 54 * MINUTE
    stored: list[int] = []
    script = Script(
        exchange, 9, lambda _: stored.append(len(minutes(store.lake)) if store.lake.holds(SUMMARY) else 0)
    )
    collector(exchange, store, script, flush_every=4 * MINUTE).run()
    assert stored == [0, 0, 0, 0, 4, 4, 6, 6, 6], "four of them, then two up to the hour"
    assert minutes(store.lake)[-1] > 60
    assert len(minutes(store.lake)) == 9, "and the rest at the end"


def test_a_missed_round_is_a_gap_and_no_double(exchange: StubBooks, store: BookStore) -> None:
    def late(number: int) -> None:
        if number == 3:
            exchange.wait(180)

    report = collector(exchange, store, Script(exchange, 5, late)).run()
    assert (report.n_rounds, report.n_missed) == (5, 3)
    gaps = gaps_table(store.lake).to_pylist()
    assert [(row["symbol"], row["ts"], row["gap_end"], row["n_missing"], row["origin"]) for row in gaps] == [
        (symbol, NOON + 2 * MINUTE, NOON + 5 * MINUTE, 3, "ours") for symbol in ("BTC/USDT", "ETH/USDT")
    ]
    assert coverage_table(store.lake)["n_rows"].to_pylist() == [5, 5]


def test_waking_early_asks_the_clock_and_nothing_else(exchange: StubBooks, store: BookStore) -> None:
    def early(number: int) -> None:
        if number == 2:
            exchange.now -= 4 * SECOND

    collector(exchange, store, Script(exchange, 3, early), [BTC]).run()
    assert exchange.asked == ["time", "BTC/USDT", "time", "time", "time", "BTC/USDT", "time"]
    assert len(minutes(store.lake)) == 2


def test_an_exchange_that_is_away_is_asked_less_and_less_often_and_what_was_seen_is_stored(
    exchange: StubBooks, store: BookStore
) -> None:
    exchange.failures = {"time": []}
    seen: list[int] = []

    def breaks(number: int) -> None:
        if number == 2:
            exchange.failures["time"] = [unavailable(), unavailable(), unavailable(30.0), unavailable()]
        seen.append(len(minutes(store.lake)) if store.lake.holds(SUMMARY) else 0)

    script = Script(exchange, 7, breaks)
    report = collector(exchange, store, script, [BTC], first_wait_s=2.0, longest_wait_s=10.0).run()
    assert script.pauses[2:6] == [2.0, 4.0, 30.0, 10.0]
    assert (seen[1], seen[2]) == (0, 1)
    assert (report.n_rounds, report.n_missed) == (3, 0)


def test_the_pause_after_an_error_begins_anew_after_a_round(exchange: StubBooks, store: BookStore) -> None:
    exchange.failures = {"time": [unavailable(), unavailable()]}

    def breaks(number: int) -> None:
        if number == 4:
            exchange.failures["time"] = [unavailable()]

    script = Script(exchange, 5, breaks)
    collector(exchange, store, script, [BTC]).run()
    assert script.pauses[:3] == [0.0, 1.0, 2.0]
    assert script.pauses[4] == 1.0


def test_a_ban_is_waited_out_and_a_refusal_ends_it_with_everything_stored(
    exchange: StubBooks, store: BookStore
) -> None:
    exchange.failures = {"time": [refused(90.0)]}

    def breaks(number: int) -> None:
        if number == 3:
            exchange.failures["time"] = [refused()]

    script = Script(exchange, 9, breaks)
    with pytest.raises(SourceRefused, match="change the configuration"):
        collector(exchange, store, script, [BTC]).run()
    assert script.pauses[1] == 90.0
    assert len(minutes(store.lake)) == 1


def test_a_market_that_fails_is_counted_and_the_others_go_on(exchange: StubBooks, store: BookStore) -> None:
    invalid = SourceDataInvalid("stub GET /depth", "nonsense", "look")
    exchange.failures = {"BTC/USDT": [invalid, unavailable()]}
    told: list[BookRound] = []
    report = collector(exchange, store, Script(exchange, 3), told=told.append).run()
    assert report.failures == {"BTC/USDT": 2}
    assert [tuple(one.failures) for one in told] == [("BTC/USDT",), ("BTC/USDT",), ()]
    assert (len(minutes(store.lake)), len(minutes(store.lake, "ETH/USDT"))) == (1, 3)


def test_a_round_in_which_nothing_came_is_tried_again(exchange: StubBooks, store: BookStore) -> None:
    exchange.failures = {"BTC/USDT": [unavailable()], "ETH/USDT": [unavailable()]}
    script = Script(exchange, 2)
    report = collector(exchange, store, script).run()
    assert script.pauses[1] == 1.0
    assert (report.n_rounds, len(minutes(store.lake))) == (1, 1)


def test_a_new_start_in_a_round_that_was_stored_does_not_look_again(
    exchange: StubBooks, store: BookStore, tmp_path: Path
) -> None:
    collector(exchange, store, Script(exchange, 1), [BTC]).run()
    again = BookStore(tmp_path, MINUTE, SUMMARISE, look_back=LOOK_BACK, run_id="second")
    exchange.asked.clear()
    exchange.now = NOON + 30 * SECOND
    collector(exchange, again, Script(exchange, 2)).run()
    assert exchange.asked[:4] == ["time", "ETH/USDT", "time", "time"]
    assert sorted(exchange.asked[4:6]) == ["BTC/USDT", "ETH/USDT"]
    assert (len(minutes(again.lake)), len(minutes(again.lake, "ETH/USDT"))) == (2, 2)
    exchange.asked.clear()
    exchange.now = NOON + MINUTE + 30 * SECOND
    collector(exchange, again, Script(exchange, 1)).run()
    assert exchange.asked == ["time"]


def test_a_collector_without_markets_or_with_odd_rounds_is_refused(
    exchange: StubBooks, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="order_books.symbols"):
        collector(
            exchange,
            BookStore(tmp_path, MINUTE, SUMMARISE, look_back=LOOK_BACK, run_id="x"),
            Script(exchange, 1),
            [],
        )
    with pytest.raises(ValueError, match="does not divide"):
        collector(
            exchange,
            BookStore(tmp_path, 7 * SECOND, SUMMARISE, look_back=LOOK_BACK, run_id="x"),
            Script(exchange, 1),
        )


# --- signals and kills

PROCESS = """
    import os, signal, sys
    from datetime import timedelta
    from pathlib import Path
    from crypto_assets.quant.order_books import LOOK_BACK
    from crypto_assets.resources.order_books import BookStore, stopping
    from crypto_assets_tests.resources.test_order_books import (
        BTC, ETH, MINUTE, NOON, SUMMARISE, Script, StubBooks, collector
    )

    folder, mode, n_turns = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    exchange = StubBooks(now=NOON + timedelta(minutes=int(sys.argv[4])))
    store = BookStore(folder, MINUTE, SUMMARISE, look_back=LOOK_BACK, run_id=mode)

    if mode == "until told":
        before = signal.getsignal(signal.SIGTERM)
        with stopping() as event:
            def wait(seconds):
                exchange.wait(seconds)
                # A turn each time the parent says so, until the signal has come.
                print("turn", flush=True)
                sys.stdin.readline()
                return event.is_set()
            collector(exchange, store, wait, [BTC]).run()
        print(signal.getsignal(signal.SIGTERM) == before, flush=True)
    else:
        count, wanted = 0, int(mode)
        def watch(event, arguments):
            global count
            if event in ("open", "os.rename", "os.symlink") and str(arguments[0]).startswith(str(folder)):
                count += 1
                if count == wanted:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(watch)
        collector(exchange, store, Script(exchange, n_turns), [BTC, ETH], flush_every=2 * MINUTE).run()
        print(count, flush=True)
"""


def process(folder: Path, mode: str, n_turns: int = 0, minute: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", dedent(PROCESS), str(folder), mode, str(n_turns), str(minute)]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_collector_after_it_has_stored_what_it_saw(tmp_path: Path, number: int) -> None:
    with process(tmp_path, "until told") as running:
        assert running.stdin is not None and running.stdout is not None
        for _ in range(3):
            assert running.stdout.readline() == "turn\n"
            print(file=running.stdin, flush=True)
        assert running.stdout.readline() == "turn\n"
        assert not Lake(tmp_path).holds(LEVELS), "nothing is due to be stored yet"
        running.send_signal(number)
        print(file=running.stdin, flush=True)
        out, err = running.communicate(timeout=60)
    assert (running.returncode, out, err) == (0, "True\n", "")
    assert len(minutes(Lake(tmp_path))) == len(minutes(Lake(tmp_path), name=LEVELS.name)) == 3


FIRST_MINUTE = 55


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, int]:
    """What nine rounds across an hour store undisturbed, and the number of file operations that takes."""
    folder = tmp_path_factory.mktemp("calm")
    with process(folder, "0", 9, FIRST_MINUTE) as running:
        out, err = running.communicate(timeout=60)
    assert err == ""
    return Lake(folder), int(out)


@pytest.mark.parametrize(
    "share", [0.3, 0.8, *(pytest.param(n / 20, marks=pytest.mark.slow) for n in range(1, 20))]
)
def test_a_killed_collector_loses_at_most_what_it_had_not_stored(
    tmp_path: Path, calm: tuple[Lake, int], share: float
) -> None:
    whole, n_operations = calm
    first = FIRST_MINUTE
    folder = tmp_path / "killed"
    with process(folder, str(max(1, int(n_operations * share))), 9, first) as killed:
        killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    lake = Lake(folder)
    seen = minutes(lake, name=LEVELS.name) if lake.holds(LEVELS) else []
    assert seen == minutes(whole, name=LEVELS.name)[: len(seen)], "a beginning of what was seen"
    with process(folder, "0", 3, first + 12) as again:
        _, err = again.communicate(timeout=60)
    assert (again.returncode, err) == (0, "")
    found = minutes(lake, name=LEVELS.name)
    assert len(found) == len(set(found)) == len(seen) + 3
    assert found[: len(seen)] == seen
    assert minutes(lake) == found, "and every book is summarised"
    assert unsummarised(lake) == []
    levels = table(lake, LEVELS.name)
    assert not levels.duplicated(list(LEVELS.key)).any()
    gaps = gaps_table(lake).to_pylist()
    assert {(row["symbol"], row["n_missing"]) for row in gaps} == (
        {(symbol, 12 - len(seen)) for symbol in ("BTC/USDT", "ETH/USDT")} if seen else set()
    )


# --- closed days and retention


def collected_days(folder: Path, n_days: int) -> Lake:
    """Two looks a day, an hour apart, levels and summary."""
    lake = Lake(folder)
    store = BookStore(folder, MINUTE, SUMMARISE, look_back=LOOK_BACK, run_id="x")
    exchange = StubBooks()
    rounds = []
    for day in range(n_days):
        for hour in (12, 13):
            exchange.now = datetime(2024, 1, 1 + day, hour)
            rounds.append(look(exchange, [BTC], 2))
    store.save(rounds)
    return lake


def test_closed_days_are_compacted_in_all_hourly_tables_and_swept_when_nobody_looks(tmp_path: Path) -> None:
    lake = collected_days(tmp_path, 3)
    before = [lake.read(table) for table in (LEVELS, SUMMARY)]
    catalog = Catalog(lake)
    with duckdb.connect(str(catalog.path), read_only=True) as holder:
        done = compact_closed_days(lake, date(2024, 1, 3), grace=NO_GRACE)
        assert done.days == dict.fromkeys(
            ("raw/order_books", "raw/order_book_summary"), ["2024-01-01", "2024-01-02"]
        )
        if Path("/proc/locks").exists():
            assert set(map(len, done.swept.values())) == {0}, "somebody holds an older catalogue"
        assert holder.execute("select count(*) from raw.order_book_summary").fetchall() == [(6,)]
    again = compact_closed_days(lake, date(2024, 1, 3), grace=NO_GRACE)
    assert set(map(len, again.days.values())) == {0}
    if Path("/proc/locks").exists():
        assert set(map(len, again.swept.values())) == {4}
    assert [lake.read(table) for table in (LEVELS, SUMMARY)] == before
    with duckdb.connect(str(catalog.path), read_only=True) as reader:
        assert reader.execute("select count(*) from raw.order_book_summary").fetchall() == [(6,)]
    assert unsummarised(lake) == []


def everything(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_ino
        for path in folder.rglob("*.parquet")
        if ".locks" not in path.parts
    }


def test_levels_of_old_days_are_removed_and_nothing_else(tmp_path: Path) -> None:
    lake = collected_days(tmp_path, 4)
    compact_closed_days(lake, date(2024, 1, 2), grace=NO_GRACE)
    klines = TABLES["raw/klines"]
    lake.replace(
        klines, "2024-01-01", klines.arrow_schema().empty_table(), Provenance(klines.name, "2024-01-01")
    )
    before, summaries = everything(tmp_path), lake.read(SUMMARY)
    today = date(2024, 1, 4)
    planned = remove_old_levels(lake, today, 2, dry_run=True)
    assert (planned.removed, planned.kept) == (["2024-01-01"], [])
    assert everything(tmp_path) == before
    assert remove_old_levels(lake, today, 2) == planned
    gone = {name for name in before if name.startswith("lake/raw/order_books/date=2024-01-01/")}
    assert len(gone) == 1
    assert everything(tmp_path) == {name: inode for name, inode in before.items() if name not in gone}
    assert lake.read(SUMMARY).equals(summaries)
    assert remove_old_levels(lake, today, 2).removed == []
    assert remove_old_levels(lake, today, 1).removed == ["2024-01-02"]
    with pytest.raises(ValueError, match="keep_days"):
        remove_old_levels(lake, today, 0)


def test_the_last_days_levels_leave_an_empty_table_that_can_be_read(tmp_path: Path) -> None:
    lake = collected_days(tmp_path, 1)
    assert remove_old_levels(lake, date(2024, 3, 1), 30).removed == ["2024-01-01"]
    with duckdb.connect(str(Catalog(lake).path), read_only=True) as connection:
        assert connection.execute("select count(*) from raw.order_books").fetchall() == [(0,)]
        assert connection.execute("select count(*) from raw.order_book_summary").fetchall() == [(2,)]


def test_levels_that_are_not_summarised_stay(tmp_path: Path) -> None:
    lake = collected_days(tmp_path, 2)
    lake.remove_dates(SUMMARY, ["2024-01-01"])
    done = remove_old_levels(lake, date(2024, 3, 1), 30)
    assert (done.removed, done.kept) == (["2024-01-02"], ["2024-01-01"])
    assert lake.partitions(LEVELS) == ["2024-01-01-12:00", "2024-01-01-13:00"]


# --- real books


def recorded_book(name: str) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The REST snapshot inside a recorded stream, and the best prices that the stream told last before it."""
    ticker: dict[str, Any] = {}
    with gzip.open(RECORDED / "binance_depth" / name, "rt") as lines:
        for line in lines:
            message = json.loads(line.split(" ", 1)[1])
            if "lastUpdateId" in message:
                return message, ticker
            if message["stream"].endswith("bookTicker"):
                ticker = message["data"]
    raise AssertionError(f"{name} holds no snapshot")


@needs_recorded
@pytest.mark.parametrize(
    ("name", "symbol", "tick"),
    [("spot-btcusdt_20240808.gz", "BTC/USDT", 0.01), ("um-btcusdt_20240808.gz", "BTC/USDT:USDT", 0.1)],
)
def test_a_recorded_snapshot_of_a_thousand_levels_is_sane(
    name: str, symbol: str, tick: float, tmp_path: Path
) -> None:
    payload, ticker = recorded_book(name)
    seen = datetime(2024, 8, 8, 23, 54, 15)
    levels = rows_of(book_of(payload, 1000), "binance", symbol, seen, seen + SECOND)
    rows = conform(levels, LEVELS)
    lake = Lake(tmp_path)
    key = "2024-08-08-23:00"
    window = window_of_partition(LEVELS, key)
    assert window is not None
    made = Piece(key, rows, (SeriesCoverage("x|y|order_book|60s", ((seen, seen + MINUTE),)),), seen)
    lake.merge(LEVELS, key, made, Provenance(LEVELS.name, key), window, seen)
    (piece,) = summary_pieces(lake, window, partial(summary, asked_levels=1000), look_back=LOOK_BACK)
    row = conform(piece.rows, SUMMARY).to_pylist()[0]
    assert (row["status"], row["n_bids"], row["n_asks"]) == ("ok", 1000, 1000)
    assert row["last_update_id"] == payload["lastUpdateId"]
    # What the stream said of the best prices just before.
    assert (row["best_bid"], row["best_ask"]) == (float(ticker["b"]), float(ticker["a"]))
    assert row["gap_quote"] == pytest.approx(tick)
    assert row["spread_bps"] == pytest.approx(tick / row["mid"] * 1e4)
    frame = rows.to_pandas()
    for side, sign in (("bid", -1), ("ask", 1)):
        prices = frame.loc[frame["side"] == side].sort_values("level")["price"].to_numpy()
        assert (sign * np.diff(prices) > 0).all()
    assert (frame["amount_base"] > 0).all()
    impacts = [row[f"buy_impact_{amount}_quote_bps"] for amount in (1_000, 10_000, 100_000)]
    # The first two are met by the best ask alone.
    assert (np.diff(impacts) > -1e-9).all()
    assert 0 < impacts[0] < 1
    depths = [row[f"bid_depth_{bps}_bps_quote"] for bps in (10, 25)]
    assert 0 < depths[0] < depths[1] if depths[1] is not None else depths[0] > 0
    assert abs(row["imbalance_10_bps_frac"]) < 1
    assert row["mean_bid"] < row["best_bid"] < row["best_ask"] < row["mean_ask"]
    assert lake.ledger.anomalies().num_rows == 0


@needs_recorded
def test_numbers_of_a_recorded_book_worked_by_hand() -> None:
    payload, _ = recorded_book("spot-btcusdt_20240808.gz")
    snapshot = book_of(payload, 1000)
    bids = BookSide(snapshot.bids[None, :, 0], snapshot.bids[None, :, 1], -1)
    asks = BookSide(snapshot.asks[None, :, 0], snapshot.asks[None, :, 1], 1)
    # Bids: 61837.63 has 3.78826, 61837.62 has 0.617, 61837.24 has 0.1061, the next is 61836.01: the bin of 1.0 from the
    # best price down is 0.01 x 3.78826 + 0.38 x 0.617 + 0.61 x 0.1061.
    assert densities(bids, np.array([1.0]), (1,))[1][0] == pytest.approx(0.3370636, abs=1e-9)
    # Asks: 61837.64 has 1.54698, .65 0.00843, .68 0.00016, 61838.13 0.00086, the next is 61838.95.
    assert densities(asks, np.array([1.0]), (1,))[1][0] == pytest.approx(
        0.01 * 1.54698 + 0.03 * 0.00843 + 0.45 * 0.00016 + 0.51 * 0.00086, abs=1e-9
    )
    row = summary(rows_of(snapshot, "binance", "BTC/USDT", NOON, NOON).to_pandas(), asked_levels=1000).iloc[0]
    assert row["mid"] == pytest.approx(61837.635, abs=1e-9)
    assert row["spread_bps"] == pytest.approx(0.01 / 61837.635 * 1e4, rel=1e-6)
    assert row["imbalance_best_frac"] == pytest.approx((3.78826 - 1.54698) / (3.78826 + 1.54698))
    # 100,000 are less than the best bid's 61837.63 x 3.78826 = 234,257: sold half a cent below the middle.
    assert row["sell_impact_100000_quote_bps"] == pytest.approx(0.005 / 61837.635 * 1e4, rel=1e-5)
    # The best three asks hold 1.54698 + 0.00843 + 0.00016 = 1.55557, worth 96,192.6; the rest is bought above.
    value = (
        61837.64 * 1.54698 + 61837.65 * 0.00843 + 61837.68 * 0.00016 + 61838.13 * 0.00086 + 61838.95 * 0.00082
    )
    amount = 1.54698 + 0.00843 + 0.00016 + 0.00086 + 0.00082
    price = 100_000 / (amount + (100_000 - value) / 61839.87)
    assert row["buy_impact_100000_quote_bps"] == pytest.approx((price / 61837.635 - 1) * 1e4, rel=1e-6)
    # Seed A with numpy's own quantile.
    notional = snapshot.bids[:, 0] * snapshot.bids[:, 1]
    kept = snapshot.bids[notional < np.quantile(notional, 0.99)]
    assert len(kept) == 990
    assert mean_price(bids)[0] == pytest.approx((kept[:, 0] * kept[:, 1]).sum() / kept[:, 1].sum(), rel=1e-12)
    inside = snapshot.bids[snapshot.bids[:, 0] >= 61837.635 * (1 - 0.001)]
    assert row["bid_depth_10_bps_quote"] == pytest.approx((inside[:, 0] * inside[:, 1]).sum())
    # The thousandth bid is at 61631.55, 33 basis points below the middle.
    assert row["bid_depth_25_bps_quote"] > row["bid_depth_10_bps_quote"]
    assert np.isnan(row["bid_depth_50_bps_quote"])
