"""Ingestion of market caps and candles of coins: fewest requests, what proves a time as covered, plans, failures."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_assets.intervals import interval_delta, to_ms
from crypto_assets.resources.coingecko import CoinGeckoClient
from crypto_assets.resources.ingest import Advance
from crypto_assets.resources.ingest_coins import (
    CANDLE_LAG,
    LATE_FOR,
    PUBLICATION_LAG,
    coin_ohlc_pieces,
    fewest_asks,
    market_cap_pieces,
)
from crypto_assets.resources.sources import CallAllowance, RateBudget, RetryPolicy, SourceError, SourceRefused
from crypto_assets.resources.warehouse import conform
from crypto_assets.resources.warehouse.lake import Piece, missing_in
from crypto_assets.simulation.recorded import RecordedWorld
from crypto_assets.simulation.recordings import load_recordings
from crypto_assets.simulation.synthetic import SyntheticWorld
from crypto_assets.tables import TABLES
from crypto_assets_tests.recorded import RECORDED, needs_recorded
from crypto_assets_tests.resources.coingecko_plans import PlanServer
from crypto_assets_tests.resources.stub_server import Reply, StubServer, json_of

at = datetime.fromisoformat

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
#: The days of the window, asked for at 00:50 after the last one.
FIRST, END = datetime(2024, 1, 1), datetime(2024, 1, 11)
NOW = END + timedelta(minutes=50)
KEY = "CG-s3cr3t"
Range = tuple[datetime, datetime]
Covered = dict[str, list[Range]]


def chart(days: Iterable[datetime], cap: float | None = 1.0) -> Reply:
    """The answer that holds the points of some days, each stamped with the midnight at its end."""
    points = [[to_ms(day + DAY), 1.0] for day in days]
    return json_of(
        {"prices": points, "market_caps": [[stamp, cap] for stamp, _ in points], "total_volumes": points}
    )


def candle(start: datetime, *prices: float, interval: str = "1d") -> list[float]:
    """A candle as CoinGecko writes it, stamped with its end."""
    return [to_ms(start + interval_delta(interval)), *(prices or (2.0, 4.0, 1.0, 3.0))]


def times(start: datetime, end: datetime, interval: str = "1d") -> list[datetime]:
    step = interval_delta(interval)
    return [start + number * step for number in range((end - start) // step)]


class Store:
    """Remembers rows, coverage and anomalies by partition as the warehouse does, and checks the contract."""

    def __init__(self, name: str) -> None:
        self.table = TABLES[name]
        self.covered: Covered = {}
        self.rows: list[dict] = []
        self.anomalies: list[dict] = []
        self.partitions: list[str] = []

    def keep(self, pieces: Iterator[Piece]) -> SourceError | None:
        """Store pieces until they end or fail; returns the failure."""
        try:
            for piece in pieces:
                self._keep(piece)
        except SourceError as error:
            return error
        return None

    def _keep(self, piece: Piece) -> None:
        start = datetime.fromisoformat(piece.partition)
        rows = conform(piece.rows, self.table, (start, start + DAY))
        assert piece.watermark is not None
        self.rows += rows.to_pylist()
        self.partitions.append(piece.partition)
        if piece.anomalies is not None:
            self.anomalies += piece.anomalies.to_pylist()
        for item in piece.coverage:
            for left, right in item.ranges:
                assert start <= left < right <= start + DAY
            self.covered.setdefault(item.series, []).extend(item.ranges)

    def column(self, name: str, **where: object) -> list:
        return [row[name] for row in self.rows if all(row[key] == value for key, value in where.items())]

    def missing(self, series: str, start: datetime, end: datetime) -> list[Range]:
        return missing_in(self.covered.get(series, ()), start, end)


@pytest.fixture
def caps() -> Store:
    return Store("raw/market_caps")


@pytest.fixture
def candles() -> Store:
    return Store("raw/coin_ohlc")


Connect = Callable[..., CoinGeckoClient]


@pytest.fixture
def connect(tmp_path: Path) -> Connect:
    def client(url: str, plan: str = "public", per_month: int | None = None) -> CoinGeckoClient:
        allowance = None if per_month is None else CallAllowance(tmp_path, "coins", per_month, lambda: NOW)
        return CoinGeckoClient(
            RateBudget(tmp_path, "coingecko", 10_000),
            base_url=url,
            plan=plan,
            api_key=None if plan == "public" else KEY,
            retry=RetryPolicy(attempts=1),
            allowance=allowance,
        )

    return client


@pytest.fixture(scope="module")
def world() -> SyntheticWorld:
    return SyntheticWorld(7, to_ms(at("2022-06-01")), to_ms(at("2024-03-01")), "1h")


# Market caps: what was late, what is covered


def ask(
    store: Store, connect: Connect, days: Sequence[datetime], now: datetime = NOW
) -> tuple[list[datetime], int]:
    """Days whose points came from a source that holds those of ``days``, and how many requests that took."""
    n_before = len(store.rows)
    with StubServer(chart(days)) as stub:
        pieces = market_cap_pieces(connect(stub.url), ["bitcoin"], store.covered, (FIRST, END), now=now)
        assert store.keep(pieces) is None
        return [row["ts"] for row in store.rows[n_before:]], len(stub.received)


def test_a_point_that_is_late_comes_with_the_next_request(caps: Store, connect: Connect) -> None:
    every = times(FIRST, END)
    assert ask(caps, connect, every[:-1]) == (every[:-1], 1)
    assert ask(caps, connect, every[:-1], NOW + timedelta(hours=6)) == ([], 1)
    assert ask(caps, connect, every, NOW + DAY) == (every[-1:], 1)
    assert ask(caps, connect, every, NOW + DAY) == ([], 0)
    assert set(caps.covered) == {"coingecko|bitcoin|market_cap|1d"}


def test_an_empty_answer_covers_what_ended_long_ago_and_nothing_else(caps: Store, connect: Connect) -> None:
    every = times(FIRST, END)
    assert ask(caps, connect, []) == ([], 1)
    assert ask(caps, connect, every)[0] == times(END - LATE_FOR, END)
    assert ask(caps, connect, every) == ([], 0)


def test_a_coin_that_is_silent_for_good_is_given_up_after_a_while(caps: Store, connect: Connect) -> None:
    for waited in range(LATE_FOR // DAY):
        assert ask(caps, connect, [], NOW + waited * DAY) == ([], 1)
    ask(caps, connect, [], NOW + LATE_FOR)
    assert ask(caps, connect, [], NOW + LATE_FOR) == ([], 0)


def test_a_hole_before_a_point_that_came_stays_covered(caps: Store, connect: Connect) -> None:
    every = times(FIRST, END)
    ask(caps, connect, [every[0], every[-1]])
    assert ask(caps, connect, every) == ([], 0)


def test_a_day_is_asked_for_once_its_publication_lag_has_passed(caps: Store, connect: Connect) -> None:
    every = times(FIRST, END)
    early = END + PUBLICATION_LAG - timedelta(microseconds=1)
    assert ask(caps, connect, every, early)[0] == every[:-1]
    assert ask(caps, connect, every, END + PUBLICATION_LAG)[0] == every[-1:]
    assert caps.column("known_at") == [day + DAY + PUBLICATION_LAG for day in every]


@pytest.mark.parametrize("cap", [0, 0.0, None])
def test_a_cap_of_zero_or_null_is_stored_as_unknown(caps: Store, connect: Connect, cap: float | None) -> None:
    with StubServer(chart(times(FIRST, END), cap)) as stub:
        pieces = market_cap_pieces(connect(stub.url), ["weth"], {}, (FIRST, END), now=NOW)
        assert caps.keep(pieces) is None
    assert caps.column("market_cap_usd") == [None] * 10
    assert caps.column("price_usd") == [1.0] * 10


# Market caps: many coins, requests, failures


def coins_of(world: SyntheticWorld) -> list[str]:
    return [coin.coin_id for coin in world.coins(to_ms(at("2024-02-01")))]


def test_several_threads_store_what_one_does_with_one_request_a_coin(
    connect: Connect, world: SyntheticWorld
) -> None:
    now, window = at("2024-02-01T00:50"), (at("2023-10-01"), at("2024-02-02"))
    stores = []
    for threads in (1, 5):
        store = Store("raw/market_caps")
        told: list[Advance] = []
        with PlanServer(world, now) as server:
            pieces = market_cap_pieces(
                connect(server.url, "pro"),
                coins_of(world),
                {},
                window,
                now=now,
                threads=threads,
                listener=told.append,
            )
            assert store.keep(pieces) is None
            assert len(server.received) == len(coins_of(world))
        stores.append(store)
        assert [advance.day for advance in told] == store.partitions
        assert told[-1].n_rows == len(store.rows)
    assert stores[0].rows == stores[1].rows
    assert stores[0].covered == stores[1].covered
    assert len(stores[0].rows) == sum(
        len(world.coin_points(coin, "1d", to_ms(window[0] + DAY), to_ms(window[1]), to_ms(now)))
        for coin in coins_of(world)
    )


def test_interior_holes_of_a_coin_are_filled_by_one_request(
    caps: Store, connect: Connect, world: SyntheticWorld
) -> None:
    now, window = at("2024-02-01T00:50"), (at("2023-11-01"), at("2024-02-01"))
    series = "coingecko|bitcoin|market_cap|1d"
    holes = [(at("2023-11-05"), at("2023-11-06")), (at("2023-12-24"), at("2024-01-02"))]
    covered = {series: missing_in(holes, *window)}
    with PlanServer(world, now) as server:
        client = connect(server.url, "pro")
        assert caps.keep(market_cap_pieces(client, ["bitcoin"], covered, window, now=now)) is None
        assert len(server.received) == 1
    assert missing_in([*covered[series], *caps.covered[series]], *window) == []


def test_an_unknown_coin_keeps_no_other_from_coming_and_is_told_at_the_end(
    caps: Store, connect: Connect, world: SyntheticWorld
) -> None:
    now, window = at("2024-02-01T00:50"), (at("2024-01-01"), at("2024-02-01"))
    with PlanServer(world, now) as server:
        client = connect(server.url, "pro")
        pieces = market_cap_pieces(
            client, ["a-coin-that-is-gone", "bitcoin", "zcash-gone"], {}, window, now=now
        )
        error = caps.keep(pieces)
    assert isinstance(error, SourceRefused)
    assert "a-coin-that-is-gone" in str(error)
    assert len(caps.rows) == 31
    assert set(caps.covered) == {"coingecko|bitcoin|market_cap|1d"}


def test_when_the_month_is_used_up_what_came_before_is_stored_and_nothing_more_is_sent(
    caps: Store, connect: Connect, world: SyntheticWorld
) -> None:
    now, window = at("2024-02-01T00:50"), (at("2024-01-01"), at("2024-02-01"))
    with PlanServer(world, now) as server:
        client = connect(server.url, "demo", per_month=2)
        coins = ["bitcoin", "cardano", "ethereum", "solana"]
        error = caps.keep(market_cap_pieces(client, coins, {}, window, now=now, threads=1))
        assert len(server.received) == 2
    assert isinstance(error, SourceRefused)
    assert "renews at 2024-02-01" in str(error)
    assert set(caps.column("coin_id")) == {"bitcoin", "cardano"}


def test_a_plan_with_a_year_of_history_is_asked_for_no_more_and_the_rest_stays_uncovered(
    caps: Store, connect: Connect, world: SyntheticWorld
) -> None:
    now, window = at("2024-02-01T00:50"), (at("2022-06-02"), at("2024-02-01"))
    with PlanServer(world, now) as server:
        client = connect(server.url, "demo")
        assert caps.keep(market_cap_pieces(client, ["bitcoin"], {}, window, now=now)) is None
        assert server.statuses == [200]
        assert caps.keep(market_cap_pieces(client, ["bitcoin"], caps.covered, window, now=now)) is None
        assert server.statuses == [200]
    oldest = client.caps_from(now)
    assert oldest is not None
    assert timedelta(days=363) <= now - oldest <= timedelta(days=365)
    assert caps.column("ts") == times(oldest, window[1])
    assert caps.missing("coingecko|bitcoin|market_cap|1d", *window) == [(window[0], oldest)]


def test_a_hole_near_the_end_of_a_years_history_does_not_reach_past_it(
    caps: Store, connect: Connect, world: SyntheticWorld
) -> None:
    now = at("2024-02-01T00:50")
    with PlanServer(world, now) as server:
        client = connect(server.url, "demo")
        oldest = client.caps_from(now)
        assert oldest is not None
        window = (oldest, oldest + 3 * DAY)
        assert caps.keep(market_cap_pieces(client, ["bitcoin"], {}, window, now=now)) is None
        assert server.statuses == [200]
    assert caps.column("ts") == times(*window)


# Requests for candles


@given(
    st.lists(st.integers(1, 30), min_size=2, max_size=12),
    st.integers(1, 40),
)
def test_joined_holes_take_no_more_requests_and_leave_nothing_out(steps: list[int], reach: int) -> None:
    edges = [FIRST + sum(steps[:i]) * DAY for i in range(len(steps) + 1)]
    holes = [(edges[i], edges[i + 1]) for i in range(0, len(steps), 2)]
    asked = fewest_asks(holes, reach * DAY)

    def n_requests(ranges: Sequence[Range]) -> int:
        return sum(-(-(right - left) // (reach * DAY)) for left, right in ranges)

    assert n_requests(asked) <= n_requests(holes)
    assert n_requests(asked) == fewest_by_walking(holes, reach * DAY)
    for left, right in holes:
        assert missing_in(asked, left, right) == []
    assert all(a[1] < b[0] for a, b in zip(asked, asked[1:], strict=False))


def fewest_by_walking(holes: Sequence[Range], reach: timedelta) -> int:
    """Requests that are put one after the other, each where the first uncovered moment is."""
    count, reached = 0, FIRST
    for left, right in holes:
        at_ = max(left, reached)
        while at_ < right:
            count, at_ = count + 1, at_ + reach
            reached = at_
    return count


def load(
    store: Store,
    server: PlanServer,
    client: CoinGeckoClient,
    window: Range,
    *,
    intervals: Sequence[str] = ("1d",),
) -> int:
    """Load bitcoin's candles; returns how many requests that took."""
    n_before = len(server.received)
    pieces = coin_ohlc_pieces(client, ["bitcoin"], intervals, store.covered, window, now=server.now)
    assert store.keep(pieces) is None
    return len(server.received) - n_before


@pytest.mark.parametrize(
    ("interval", "days", "n_requests"),
    [("1d", 180, 1), ("1d", 181, 2), ("1d", 500, 3), ("1h", 31, 1), ("1h", 32, 2), ("1h", 93, 3)],
)
def test_a_first_load_takes_the_fewest_requests_and_a_second_none(
    candles: Store,
    connect: Connect,
    world: SyntheticWorld,
    interval: str,
    days: int,
    n_requests: int,
) -> None:
    end = at("2024-02-01")
    window = (end - days * DAY, end)
    with PlanServer(world, end + timedelta(minutes=50)) as server:
        client = connect(server.url, "pro")
        assert load(candles, server, client, window, intervals=[interval]) == n_requests
        assert load(candles, server, client, window, intervals=[interval]) == 0
        spans = [int(r.query["to"]) - int(r.query["from"]) for r in server.received]
    assert max(spans) <= (180 if interval == "1d" else 31) * 86_400
    assert candles.column("ts") == times(*window, interval)
    known_lag = interval_delta(interval) + (PUBLICATION_LAG if interval == "1d" else CANDLE_LAG)
    assert candles.column("known_at") == [ts + known_lag for ts in times(*window, interval)]
    expected = world.coin_candles(
        "bitcoin", interval, to_ms(window[0] + interval_delta(interval)), to_ms(end), to_ms(server.now)
    )
    assert candles.column("close_usd") == expected.prices[3].tolist()
    assert candles.missing(f"coingecko|bitcoin|ohlc|{interval}", *window) == []
    assert candles.anomalies == []


def test_a_tick_costs_one_request_for_each_interval_and_only_what_is_published_is_asked_for(
    candles: Store, connect: Connect, world: SyntheticWorld
) -> None:
    window = (at("2024-01-20"), at("2024-02-02"))
    with PlanServer(world, at("2024-02-01T10:14")) as server:
        client = connect(server.url, "pro")
        assert load(candles, server, client, window, intervals=["1d", "1h"]) == 2
        assert max(candles.column("ts", interval="1d")) == at("2024-01-31")
        assert max(candles.column("ts", interval="1h")) == at("2024-02-01T08:00")
        server.now = at("2024-02-01T10:15")
        assert load(candles, server, client, window, intervals=["1d", "1h"]) == 1
        assert load(candles, server, client, window, intervals=["1d", "1h"]) == 0
        server.now = at("2024-02-02T00:45")
        assert load(candles, server, client, window, intervals=["1d", "1h"]) == 2
    assert candles.column("ts", interval="1h") == times(window[0], at("2024-02-02"), "1h")
    assert candles.column("ts", interval="1d") == times(window[0], at("2024-02-02"))


def test_an_interior_hole_is_repaired_with_one_request(
    candles: Store, connect: Connect, world: SyntheticWorld
) -> None:
    series, window = "coingecko|bitcoin|ohlc|1h", (at("2024-01-01"), at("2024-02-01"))
    holes = [(at("2024-01-03T05:00"), at("2024-01-03T07:00")), (at("2024-01-20"), at("2024-01-21"))]
    candles.covered[series] = missing_in(holes, *window)
    with PlanServer(world, at("2024-02-01T00:50")) as server:
        assert load(candles, server, connect(server.url, "pro"), window, intervals=["1h"]) == 1
    assert candles.missing(series, *window) == []
    assert set(candles.column("ts")) >= {ts for hole in holes for ts in times(*hole, "1h")}


def test_answers_are_read_only_as_far_as_the_day_in_hand_needs_them(
    connect: Connect, world: SyntheticWorld
) -> None:
    window = (at("2023-09-01"), at("2024-02-01"))
    with PlanServer(world, at("2024-02-01T00:50")) as server:
        pieces = coin_ohlc_pieces(
            connect(server.url, "pro"), ["bitcoin", "ethereum"], ["1h"], {}, window, now=server.now
        )
        for _ in range(30):
            next(pieces)
        assert len(server.received) == 2
        for _ in range(10):
            next(pieces)
        assert len(server.received) == 4


def test_every_day_of_candles_is_told_with_how_far_the_load_has_come(
    candles: Store, connect: Connect, world: SyntheticWorld
) -> None:
    window, told = (at("2024-01-25"), at("2024-02-02")), list[Advance]()
    with PlanServer(world, at("2024-02-01T00:50")) as server:
        pieces = coin_ohlc_pieces(
            connect(server.url, "pro"),
            ["bitcoin", "gone"],
            ["1d", "1h"],
            {},
            window,
            now=server.now,
            listener=told.append,
        )
        assert candles.keep(pieces) is not None
    assert [advance.day for advance in told] == candles.partitions
    last = told[-1]
    assert (last.asset, last.n_series, last.n_done, last.n_rows) == ("raw/coin_ohlc", 4, 2, len(candles.rows))
    # The unknown coin's half stays missing.
    assert last.missing == 2 * last.read == 4 * 7 * DAY


def test_days_one_by_one_are_the_same_as_all_at_once(connect: Connect, world: SyntheticWorld) -> None:
    window = (at("2024-01-25"), at("2024-02-01"))
    whole, daily = Store("raw/coin_ohlc"), Store("raw/coin_ohlc")
    with PlanServer(world, at("2024-02-01T00:50")) as server:
        client = connect(server.url, "pro")
        load(whole, server, client, window, intervals=["1d", "1h"])
        for day in times(*window):
            load(daily, server, client, (day, day + DAY), intervals=["1d", "1h"])
    assert daily.rows == whole.rows
    assert daily.anomalies == whole.anomalies


# Defects of candles


def read(
    store: Store,
    connect: Connect,
    *answers: list[list[float]],
    window: Range = (FIRST, END),
    now: datetime = NOW,
) -> SourceError | None:
    with StubServer(*(json_of(answer) for answer in answers)) as stub:
        client = connect(stub.url, "pro")
        return store.keep(coin_ohlc_pieces(client, ["x"], ["1d"], store.covered, window, now=now))


def joined_answers(changed: tuple[float, ...] | None) -> tuple[list[list[float]], list[list[float]]]:
    """Two answers of 180 days; the candle at their joint comes twice, the second time as given."""
    start, joint = FIRST - DAY, FIRST + 179 * DAY
    first = [candle(day) for day in times(start, joint + DAY)]
    second = [candle(joint, *(changed or ())), *(candle(day) for day in times(joint + DAY, joint + 20 * DAY))]
    return first, second


def test_equal_candles_at_a_joint_are_stored_once_and_are_no_anomaly(
    candles: Store, connect: Connect
) -> None:
    window = (FIRST, FIRST + 190 * DAY)
    assert read(candles, connect, *joined_answers(None), window=window, now=window[1] + HOUR) is None
    assert candles.column("ts") == times(*window)
    assert candles.anomalies == []


def test_of_different_candles_at_a_joint_the_later_counts_and_the_other_is_recorded(
    candles: Store, connect: Connect
) -> None:
    window, joint = (FIRST, FIRST + 190 * DAY), FIRST + 179 * DAY
    answers = joined_answers((2.5, 4.5, 1.5, 3.5))
    assert read(candles, connect, *answers, window=window, now=window[1] + HOUR) is None
    assert candles.column("ts") == times(*window)
    assert candles.column("close_usd", ts=joint) == [3.5]
    (found,) = candles.anomalies
    assert (found["asset"], found["kind"], found["venue"], found["symbol"]) == (
        "raw/coin_ohlc",
        "duplicate",
        "coingecko",
        "x",
    )
    assert (found["ts"], found["interval"], found["series_kind"]) == (joint, "1d", "ohlc")
    assert json.loads(found["detail"])["close_usd"] == 3.0


def test_a_flat_candle_is_an_anomaly_where_nothing_lies_before_it(candles: Store, connect: Connect) -> None:
    flat = (5.0, 5.0, 5.0, 5.0)
    days = times(FIRST + 2 * DAY, END)
    answer = [candle(day, *(flat if number in (0, 3) else ())) for number, day in enumerate(days)]
    del answer[5]
    answer[5] = candle(days[6], *flat)
    assert read(candles, connect, answer) is None
    assert [row["ts"] for row in candles.anomalies] == [days[0], days[6]]
    assert {row["kind"] for row in candles.anomalies} == {"flat_candle"}
    # They are the source's candles all the same.
    assert candles.column("ts") == [day for day in days if day != days[5]]
    again = Store("raw/coin_ohlc")
    for day in times(FIRST, END):
        inside = [row for row in answer if to_ms(day) <= row[0] <= to_ms(day + DAY)]
        assert read(again, connect, inside, window=(day, day + DAY)) is None
    assert again.anomalies == candles.anomalies


def test_the_first_candle_of_a_plan_without_ranges_is_no_flat_one_for_what_it_cannot_show(
    candles: Store, connect: Connect
) -> None:
    flat = (5.0, 5.0, 5.0, 5.0)
    now = END + 5 * HOUR
    # What the last 30 days show of the day before the first whole one is a part.
    answer = [candle(start, *flat, interval="4h") for start in times(now - 30 * DAY - HOUR, END, "4h")]
    with StubServer(json_of(answer)) as stub:
        client = connect(stub.url, "demo")
        window = (END - 40 * DAY, END)
        assert candles.keep(coin_ohlc_pieces(client, ["x"], ["1d"], {}, window, now=now)) is None
    assert len(candles.rows) == 29
    assert candles.anomalies == []


def test_a_candle_between_two_stamps_is_kept_out_and_recorded_unless_it_is_the_open_one(
    candles: Store, connect: Connect
) -> None:
    answer = [candle(day) for day in times(FIRST, END)]
    answer.insert(4, candle(FIRST + 3 * DAY + 5 * HOUR))
    answer.append([to_ms(NOW - timedelta(minutes=1)), 3.0, 3.0, 3.0, 3.0])
    assert read(candles, connect, answer) is None
    assert candles.column("ts") == times(FIRST, END)
    assert [(row["kind"], row["ts"]) for row in candles.anomalies] == [
        ("off_grid", FIRST + 3 * DAY + 5 * HOUR)
    ]


def test_a_candle_that_is_late_comes_with_the_next_request(candles: Store, connect: Connect) -> None:
    every = [candle(day) for day in times(FIRST, END)]
    assert read(candles, connect, every[:-1]) is None
    series = "coingecko|x|ohlc|1d"
    assert candles.missing(series, FIRST, END) == [(END - DAY, END)]
    assert read(candles, connect, every) is None
    assert candles.column("ts") == times(FIRST, END)
    assert candles.missing(series, FIRST, END) == []


def test_nothing_is_asked_of_before_there_were_candles(candles: Store, connect: Connect) -> None:
    window = (at("2018-02-01"), at("2018-02-11"))
    with StubServer(json_of([candle(day) for day in times(at("2018-02-08"), window[1])])) as stub:
        pieces = coin_ohlc_pieces(connect(stub.url, "pro"), ["x"], ["1d"], {}, window, now=NOW)
        assert candles.keep(pieces) is None
        (request,) = stub.received
    assert request.query["from"] == str(to_ms(at("2018-02-08")) // 1000)
    assert candles.column("ts") == times(at("2018-02-08"), window[1])


# Failures and plans, for candles


def test_an_unknown_coin_keeps_no_candles_of_others_from_coming(
    candles: Store, connect: Connect, world: SyntheticWorld
) -> None:
    window = (at("2024-01-25"), at("2024-02-01"))
    with PlanServer(world, at("2024-02-01T00:50")) as server:
        pieces = coin_ohlc_pieces(
            connect(server.url, "pro"), ["bitcoin", "gone", "solana"], ["1d"], {}, window, now=server.now
        )
        error = candles.keep(pieces)
        assert len(server.received) == 3
    assert isinstance(error, SourceRefused)
    assert "coins/gone/ohlc/range" in str(error)
    assert len(candles.rows) == 14
    assert len(candles.partitions) == 7


def test_when_the_source_fails_the_days_before_are_kept_and_the_next_load_goes_on(
    candles: Store, connect: Connect
) -> None:
    window, now = (FIRST, FIRST + 190 * DAY), FIRST + 190 * DAY + HOUR
    first, second = joined_answers(None)
    with StubServer(json_of(first), Reply(b"", 503)) as stub:
        client = connect(stub.url, "pro")
        error = candles.keep(coin_ohlc_pieces(client, ["x"], ["1d"], {}, window, now=now))
    assert error is not None
    # The candle at the joint waits for the answer that has it again.
    assert candles.column("ts") == times(FIRST, FIRST + 179 * DAY)
    assert candles.missing("coingecko|x|ohlc|1d", *window) == [(FIRST + 179 * DAY, window[1])]
    assert read(candles, connect, second, window=window, now=now) is None
    assert candles.column("ts") == times(*window)


@pytest.mark.parametrize(("interval", "reach"), [("1d", 30 * DAY), ("1h", DAY)])
def test_a_plan_without_ranges_gives_the_last_days_exactly_and_leaves_the_rest_uncovered(
    candles: Store, connect: Connect, world: SyntheticWorld, interval: str, reach: timedelta
) -> None:
    now = at("2024-02-01T07:20")
    window = (at("2023-12-01"), at("2024-02-02"))
    reference = Store("raw/coin_ohlc")
    half_hours = SyntheticWorld(7, world.start_ms, world.end_ms, "30m")
    with PlanServer(half_hours, now) as server:
        client = connect(server.url, "demo")
        assert load(candles, server, client, window, intervals=[interval]) == 1
        assert load(candles, server, client, window, intervals=[interval]) == 0
        load(reference, server, connect(server.url, "pro"), window, intervals=[interval])
        assert set(server.statuses) == {200}
    oldest = client.ohlc_from(interval, now)
    assert now - reach <= oldest <= now - reach + interval_delta(interval)
    assert candles.rows == [row for row in reference.rows if row["ts"] >= oldest]
    assert candles.missing(f"coingecko|bitcoin|ohlc|{interval}", window[0], oldest) == [(window[0], oldest)]


# Facts of the recordings


@pytest.fixture(scope="module")
def recorded_charts() -> dict[str, bytes]:
    return members_of(RECORDED / "coingecko_history" / "dev" / "market_chart_daily.tar.gz")


@pytest.fixture(scope="module")
def recorded_candles() -> dict[str, bytes]:
    return members_of(RECORDED / "coingecko_history" / "dev" / "ohlc_daily.tar.gz")


def members_of(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as members:
        return {
            Path(member.name).stem: content.read()
            for member in members
            if (content := members.extractfile(member)) is not None
        }


@needs_recorded
def test_fact_7_the_14131_zero_caps_of_145_recorded_coins_are_unknown_and_missing_days_stay_missing(
    connect: Connect, recorded_charts: dict[str, bytes]
) -> None:
    n_unknown = n_missing = n_rows = 0
    with StubServer(*(Reply(recorded_charts[coin]) for coin in sorted(recorded_charts))) as stub:
        client = connect(stub.url)
        for coin in sorted(recorded_charts):
            table = client.market_caps(coin, at("2018-01-01"), at("2026-01-01"))
            n_unknown += table["market_cap_usd"].null_count
            n_rows += len(table)
            days = table["ts"].to_pylist()
            n_missing += (days[-1] - days[0]) // DAY + 1 - len(days)
    # One last point is stamped inside a day.
    stamps = {
        coin: [point[0] for point in json.loads(body)["prices"]] for coin, body in recorded_charts.items()
    }
    assert n_rows == sum(stamp % 86_400_000 == 0 for own in stamps.values() for stamp in own)
    assert n_unknown == 14_131
    assert n_missing == sum((own[-1] - own[0]) // 86_400_000 + 1 - len(own) for own in stamps.values()) > 0


@needs_recorded
def test_fact_7_the_981_duplicated_stamps_of_daily_candles_lie_at_range_joints_and_agree(
    connect: Connect, recorded_candles: dict[str, bytes]
) -> None:
    first_stamp_s, chunk_s = 1_518_147_224, 180 * 86_400
    n_doubled = n_flat_first = 0
    coins = [coin for coin in sorted(recorded_candles) if json.loads(recorded_candles[coin])]
    with StubServer(*(Reply(recorded_candles[coin]) for coin in coins)) as stub:
        client = connect(stub.url, "pro")
        for coin in coins:
            raw = json.loads(recorded_candles[coin])
            stamps = [row[0] for row in raw]
            joints = list((Counter(stamps) - Counter(set(stamps))).elements())
            n_doubled += len(joints)
            # The part of 180 days that asked for it began 3 h 34 min later: an answer starts with the candle before.
            assert all(
                (first_stamp_s - stamp // 1000) % chunk_s == first_stamp_s % 86_400 for stamp in joints
            )
            start = at("2018-02-08")
            (page,) = client.ohlc_pages(coin, "1d", start, start + 180 * DAY, at("2026-01-01"))
            inside = sorted({stamp for stamp in stamps if stamp <= to_ms(start + 180 * DAY)})
            assert [to_ms(ts + DAY) for ts in page.rows["ts"].to_pylist()] == inside
            assert "duplicate" not in page.set_aside["reason"].to_pylist()
            if inside:
                first = raw[0]
                n_flat_first += len(set(first[1:])) == 1
                is_flat = page.set_aside["reason"].to_pylist()[:1] == ["flat_candle"]
                assert is_flat == (len(set(first[1:])) == 1)
    assert n_doubled == 981
    assert n_flat_first > 0


@pytest.fixture(scope="module")
def recorded_world() -> RecordedWorld:
    recordings = load_recordings(
        RECORDED,
        klines=["spot_1d_12col/dev/AAVEUSDT-1d.csv.gz", "spot_1d_12col/dev/FILUSDT-1d.csv.gz"],
        coingecko=["coingecko_history/dev/ohlc_daily.tar.gz", "coingecko_history/dev/ohlc_hourly-*.json.gz"],
    )
    return RecordedWorld(recordings)


@needs_recorded
def test_fact_7_recorded_candles_with_their_joints_load_once_each_through_the_same_code(
    candles: Store, connect: Connect, recorded_world: RecordedWorld
) -> None:
    window = (at("2024-09-01"), at("2025-02-20"))
    with PlanServer(recorded_world, at("2025-02-19T18:20")) as server:
        pieces = coin_ohlc_pieces(
            connect(server.url, "pro"), ["aave", "uniswap"], ["1d", "1h"], {}, window, now=server.now
        )
        assert candles.keep(pieces) is None
        assert len(server.received) == 2 * (1 + 6)
    name = "ohlc_hourly-aave.json.gz"
    raw = json.loads(gzip.decompress((RECORDED / "coingecko_history" / "dev" / name).read_bytes()))
    wanted = {row[0]: row[1:] for row in raw if row[0] > to_ms(window[0])}
    assert len([row for row in raw if row[0] > to_ms(window[0])]) > len(wanted)
    found = {
        to_ms(row["ts"] + HOUR): [row["open_usd"], row["high_usd"], row["low_usd"], row["close_usd"]]
        for row in candles.rows
        if row["coin_id"] == "aave" and row["interval"] == "1h"
    }
    assert found == wanted
    assert [row for row in candles.anomalies if row["kind"] == "duplicate"] == []


@needs_recorded
@pytest.mark.parametrize(("coin", "symbol"), [("aave", "AAVE/USDT"), ("filecoin", "FIL/USDT")])
def test_fact_6_a_candle_stamped_with_its_end_is_binances_day_before(
    candles: Store, connect: Connect, recorded_world: RecordedWorld, coin: str, symbol: str
) -> None:
    window = (at("2021-06-01"), at("2022-06-01"))
    with PlanServer(recorded_world, at("2025-02-19T18:20")) as server:
        client = connect(server.url, "pro")
        pieces = coin_ohlc_pieces(client, [coin], ["1d"], {}, window, now=server.now)
        assert candles.keep(pieces) is None
    bars = recorded_world.final_bars(symbol, "1d", to_ms(window[0]), to_ms(window[1]))
    exchange = dict(zip(bars.open_ms.tolist(), (bars.values[3] / 1e8).tolist(), strict=True))
    ours = {to_ms(row["ts"]): row["close_usd"] for row in candles.rows}

    def median_difference(shift_days: int) -> float:
        pairs = [(ours[ts], exchange.get(ts + shift_days * 86_400_000)) for ts in ours]
        distances = sorted(abs(mine / theirs - 1) for mine, theirs in pairs if theirs)
        assert len(distances) > 300
        return distances[len(distances) // 2]

    assert median_difference(0) < 0.005
    assert min(median_difference(-1), median_difference(1)) > 5 * median_difference(0)


def test_the_stored_columns_are_those_of_the_contract(
    candles: Store, connect: Connect, world: SyntheticWorld
) -> None:
    with PlanServer(world, at("2024-02-01T00:50")) as server:
        pieces = coin_ohlc_pieces(
            connect(server.url, "pro"),
            ["bitcoin"],
            ["1d"],
            {},
            (at("2024-01-31"), at("2024-02-01")),
            now=server.now,
        )
        (piece,) = pieces
    assert isinstance(piece.rows, pa.Table)
    assert piece.rows.schema == TABLES["raw/coin_ohlc"].arrow_schema()
    assert piece.anomalies is not None
    assert piece.anomalies.schema == TABLES["quality/anomalies"].arrow_schema()
