"""The CoinGecko client against the simulated aggregator, and against scripted and recorded answers."""

from __future__ import annotations

import gzip
import json
import tarfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest
import yaml

from crypto_assets.intervals import DAY_MS, from_ms, to_ms
from crypto_assets.resources.coingecko import (
    COIN_SCHEMA,
    MARKET_CAP_SCHEMA,
    MARKET_SCHEMA,
    MEMBER_SCHEMA,
    OHLC_SCHEMA,
    CoinGeckoClient,
    CoinGeckoResource,
)
from crypto_assets.resources.sources import (
    CallAllowance,
    RateBudget,
    RetryPolicy,
    SourceDataInvalid,
    SourceError,
    SourceRefused,
    SourceUnavailable,
)
from crypto_assets.simulation.bars import CLOSE
from crypto_assets.simulation.faults import Fault, status
from crypto_assets.simulation.server import MarketServer
from crypto_assets.simulation.synthetic import SyntheticWorld
from crypto_assets_tests.recorded import RECORDED, needs_recorded
from crypto_assets_tests.resources.coingecko_plans import PlanServer
from crypto_assets_tests.resources.stub_server import Reply, StubServer, json_of
from crypto_assets_tests.resources.test_sources import FakeTime

at = datetime.fromisoformat

START = at("2024-01-01")
END = at("2024-07-01")
NOW = at("2024-05-20T12:34:56")
DAY = timedelta(days=1)
KEY = "CG-s3cr3t"
COINS = "/coingecko/api/v3/coins"


@pytest.fixture(scope="module")
def world() -> SyntheticWorld:
    return SyntheticWorld(7, to_ms(START), to_ms(END), "1h")


@pytest.fixture
def market(world: SyntheticWorld) -> Iterator[MarketServer]:
    with MarketServer(world, NOW) as server:
        yield server


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def budget(tmp_path: Path, time: FakeTime) -> RateBudget:
    return RateBudget(tmp_path, "coingecko", 30, now=time.now, sleep=time.sleep)


@pytest.fixture
def connect(budget: RateBudget, time: FakeTime) -> Callable[..., CoinGeckoClient]:
    def client(url: str, api_key: str | None = None, plan: str = "public") -> CoinGeckoClient:
        retry = RetryPolicy(attempts=3, sleep=time.sleep)
        return CoinGeckoClient(budget, base_url=url, plan=plan, api_key=api_key, timeout_s=5.0, retry=retry)

    return client


@pytest.fixture
def client(market: MarketServer, connect: Callable[..., CoinGeckoClient]) -> CoinGeckoClient:
    return connect(market.coingecko_url)


def days(table: pa.Table) -> list[datetime]:
    return table.column("ts").to_pylist()


# Coins and ranks


def test_coins_are_the_list_of_the_source(
    client: CoinGeckoClient, market: MarketServer, world: SyntheticWorld
) -> None:
    table = client.coins()
    assert table.schema == COIN_SCHEMA
    expected = [(coin.coin_id, coin.ticker, coin.name) for coin in world.coins(to_ms(NOW))]
    assert [tuple(row.values()) for row in table.to_pylist()] == expected
    assert market.count() == 1


@needs_recorded
def test_fact_8_of_16395_recorded_ids_2115_tickers_are_shared_and_some_are_empty(
    connect: Callable[..., CoinGeckoClient],
) -> None:
    body = gzip.decompress(
        (RECORDED / "coingecko_wire" / "lists" / "coins_list-2025-01.json.gz").read_bytes()
    )
    with StubServer(Reply(body)) as stub:
        table = connect(stub.url).coins()
    users = Counter(table.column("ticker").to_pylist())
    assert len(table) == 16_395
    assert sum(n > 1 for n in users.values()) == 2_115
    assert sum(n for ticker, n in users.items() if not ticker.strip()) == 5


@pytest.mark.parametrize(
    "payload",
    [
        {"coins": []},
        ["bitcoin"],
        [{"id": "", "symbol": "btc", "name": "Bitcoin"}],
        [{"id": "bitcoin", "symbol": None, "name": "Bitcoin"}],
        [{"id": "bitcoin", "symbol": "btc", "name": "Bitcoin"}] * 2,
    ],
)
def test_a_coin_list_that_breaks_the_promise_is_invalid(
    connect: Callable[..., CoinGeckoClient], payload: object
) -> None:
    with StubServer(json_of(payload)) as stub, pytest.raises(SourceDataInvalid):
        connect(stub.url).coins()


def test_markets_are_the_largest_coins_in_order_of_rank(
    client: CoinGeckoClient, market: MarketServer
) -> None:
    table = client.markets(5, NOW)
    assert table.schema == MARKET_SCHEMA
    caps = table.column("market_cap_usd").to_pylist()
    assert table.column("market_cap_rank").to_pylist() == [1, 2, 3, 4, 5]
    assert caps == sorted(caps, reverse=True)
    assert set(table.column("seen_at").to_pylist()) == {NOW}
    everything = client.markets(1000, NOW)
    assert everything.slice(0, 5).equals(table)
    assert 5 < len(everything) < 250
    assert market.count(f"{COINS}/markets") == 2
    with pytest.raises(ValueError, match="n_top is 0"):
        client.markets(0, NOW)


def listed(coin_id: str, rank: object = 1, cap: object = 5.0, **changes: object) -> dict[str, object]:
    row = {"id": coin_id, "symbol": coin_id[0], "name": coin_id, "market_cap_rank": rank, "market_cap": cap}
    return {**row, "current_price": 2.0, "total_volume": 3, **changes}


def test_markets_are_paged_by_250_and_a_coin_that_changed_pages_is_kept_once(
    connect: Callable[..., CoinGeckoClient],
) -> None:
    first = [listed(f"coin-{i}", i + 1) for i in range(250)]
    second = [listed("coin-249", 251), *(listed(f"coin-{i}", i + 1) for i in range(250, 499))]
    with StubServer(json_of(first), json_of(second)) as stub:
        table = connect(stub.url).markets(300, NOW)
        asked = [(request.query["per_page"], request.query["page"]) for request in stub.received]
    assert asked == [("250", "1"), ("250", "2")]
    assert table.column("coin_id").to_pylist() == [f"coin-{i}" for i in range(300)]
    assert table.column("market_cap_rank")[249].as_py() == 250


def test_the_members_of_a_category_keep_their_ranks_among_all_coins(
    client: CoinGeckoClient, market: MarketServer
) -> None:
    everything = client.markets(250, NOW)
    ranks = dict(
        zip(everything["coin_id"].to_pylist(), everything["market_cap_rank"].to_pylist(), strict=True)
    )
    table = client.markets(250, NOW, category="stablecoins")
    assert table.schema == MARKET_SCHEMA
    assert table["coin_id"].to_pylist() == ["tether"]
    assert table["market_cap_rank"].to_pylist() == [ranks["tether"]]
    assert client.markets(250, NOW, category="no-such-category").num_rows == 0
    assert [request.query.get("category") for request in market.requests] == [
        None,
        "stablecoins",
        "no-such-category",
    ]


def test_the_members_of_several_categories_take_a_request_each(
    client: CoinGeckoClient, market: MarketServer
) -> None:
    table = client.members(["stablecoins", "no-such-category", "tokenized-btc"], NOW)
    assert table.schema == MEMBER_SCHEMA
    assert table.to_pylist() == [
        {"coin_id": "tether", "category": "stablecoins"},
        {"coin_id": "wrapped-bitcoin", "category": "tokenized-btc"},
    ]
    assert market.count() == 3
    assert client.members([], NOW).equals(MEMBER_SCHEMA.empty_table())


def test_a_cap_or_price_of_zero_is_unknown(connect: Callable[..., CoinGeckoClient]) -> None:
    rows = [listed("a"), listed("b", None, 0, current_price=0, total_volume=0), listed("c", None, None)]
    with StubServer(json_of(rows)) as stub:
        table = connect(stub.url).markets(3, NOW)
    assert table.column("market_cap_usd").to_pylist() == [5.0, None, None]
    assert table.column("price_usd").to_pylist() == [2.0, None, 2.0]
    assert table.column("volume_usd").to_pylist() == [3.0, 0.0, 3.0]
    assert table.column("market_cap_rank").to_pylist() == [1, None, None]


@pytest.mark.parametrize(
    "changes",
    [
        {"market_cap": "5"},
        {"market_cap": -1.0},
        {"current_price": True},
        {"market_cap_rank": 1.5},
        {"market_cap_rank": 0},
        {"id": None},
    ],
)
def test_a_market_row_that_breaks_the_promise_is_invalid(
    connect: Callable[..., CoinGeckoClient], changes: dict[str, object]
) -> None:
    with StubServer(json_of([{**listed("a"), **changes}])) as stub, pytest.raises(SourceDataInvalid):
        connect(stub.url).markets(1, NOW)


# Daily market caps


def test_a_day_is_the_point_stamped_at_its_end(
    client: CoinGeckoClient, market: MarketServer, world: SyntheticWorld
) -> None:
    start, end = at("2024-02-01"), at("2024-05-01")
    table = client.market_caps("ethereum", start, end)
    assert table.schema == MARKET_CAP_SCHEMA
    assert days(table) == [start + i * DAY for i in range(90)]
    points = world.coin_points("ethereum", "1d", to_ms(start + DAY), to_ms(end), to_ms(NOW))
    assert table.column("price_usd").to_pylist() == points.price_usd.tolist()
    assert table.column("market_cap_usd").to_pylist() == points.market_cap_usd.tolist()
    assert table.column("volume_usd").to_pylist() == points.volume_usd.tolist()
    # Prices differ a little from the exchange's, but they are the closes of these days and no others.
    closes = world.klines("ETH/USDT", "1d", now_ms=to_ms(NOW), limit=92, start_ms=to_ms(start - DAY))
    distances = [
        np.median(np.abs(table.column("price_usd").to_numpy() / closes.values[CLOSE][i : i + 90] * 1e8 - 1))
        for i in range(3)
    ]
    assert distances[1] < 0.002 < 10 * distances[1] < min(distances[0], distances[2])
    assert market.count() == 1


@pytest.mark.parametrize("n_days", [1, 2, 89, 90, 91, 120])
def test_any_number_of_days_is_asked_for_with_daily_points_in_one_call(
    client: CoinGeckoClient, market: MarketServer, n_days: int
) -> None:
    end = at("2024-05-10")
    table = client.market_caps("bitcoin", end - n_days * DAY, end)
    assert days(table) == [end - i * DAY for i in range(n_days, 0, -1)]
    (request,) = market.requests
    asked_s = int(request.query["to"]) - int(request.query["from"])
    assert asked_s > 90 * 86_400
    assert "interval" not in request.query


@pytest.mark.parametrize(
    ("now", "last"),
    [
        ("2024-05-20T00:34:59", "2024-05-18"),
        ("2024-05-20T00:35:00", "2024-05-19"),
        ("2024-05-20T12:34:56", "2024-05-19"),
        ("2024-05-20T23:59:59", "2024-05-19"),
    ],
)
def test_the_intraday_point_of_the_running_day_is_dropped(
    client: CoinGeckoClient, market: MarketServer, now: str, last: str
) -> None:
    market.clock.set(now)
    table = client.market_caps("bitcoin", at("2024-05-01"), at("2024-05-25"))
    assert days(table)[-1] == at(last)


def test_the_day_at_the_end_of_the_range_is_not_in_it(client: CoinGeckoClient) -> None:
    table = client.market_caps("bitcoin", at("2024-05-01"), at("2024-05-03"))
    assert days(table) == [at("2024-05-01"), at("2024-05-02")]
    with pytest.raises(ValueError, match="empty range of bitcoin"):
        client.market_caps("bitcoin", at("2024-05-03"), at("2024-05-03"))


def test_days_before_the_coin_existed_are_missing_and_zero_caps_are_null(
    client: CoinGeckoClient, world: SyntheticWorld
) -> None:
    late = next(listing for listing in world.all_markets() if listing.first_ms > to_ms(START))
    coin_id = next(coin.coin_id for coin in world.coins(to_ms(NOW)) if coin.ticker == late.base.lower())
    first = from_ms(late.first_ms - late.first_ms % DAY_MS)
    assert days(client.market_caps(coin_id, START, first + 3 * DAY)) == [first + i * DAY for i in range(3)]

    n_unknown = 0
    for coin in world.coins(to_ms(NOW)):
        raw = world.coin_points(coin.coin_id, "1d", to_ms(START), to_ms(at("2024-05-01")), to_ms(NOW))
        caps = client.market_caps(coin.coin_id, START, at("2024-05-01")).column("market_cap_usd")
        assert caps.null_count == (raw.market_cap_usd == 0).sum()
        n_unknown += caps.null_count
    assert n_unknown > 0


def chart(points: list) -> dict[str, list]:
    return {"prices": points, "market_caps": [*points], "total_volumes": [*points]}


def stamp(day: str, ms: int = 0) -> int:
    return to_ms(at(day)) + ms


def test_repeated_stamps_keep_the_last_points_off_midnight_and_outside_go(
    connect: Callable[..., CoinGeckoClient],
) -> None:
    points = [
        [stamp("2024-01-01"), 1.0],
        [stamp("2024-01-02"), 2.0],
        [stamp("2024-01-03"), 3.0],
        [stamp("2024-01-03"), 3.5],
        [stamp("2024-01-04", 1), 4.0],
        [stamp("2024-01-05"), 5.0],
        [stamp("2024-01-06"), 6.0],
        [stamp("2024-01-05T13:00"), 5.5],
    ]
    with StubServer(json_of(chart(points))) as stub:
        table = connect(stub.url).market_caps("x", at("2024-01-01"), at("2024-01-05"))
    assert days(table) == [at("2024-01-01"), at("2024-01-02"), at("2024-01-04")]
    assert table.column("price_usd").to_pylist() == [2.0, 3.5, 5.0]


def test_null_stays_unknown_and_series_are_joined_by_stamp(connect: Callable[..., CoinGeckoClient]) -> None:
    one, two, three = stamp("2024-01-02"), stamp("2024-01-03"), stamp("2024-01-04")
    payload = {
        "prices": [[one, 1.5], [two, None], [three, 0]],
        "market_caps": [[one, None], [three, 0.0]],
        "total_volumes": [[two, 0], [three, 7]],
    }
    with StubServer(json_of(payload)) as stub:
        rows = connect(stub.url).market_caps("x", at("2024-01-01"), at("2024-01-04")).to_pylist()
    assert [list(row.values())[1:] for row in rows] == [
        [at("2024-01-01"), 1.5, None, None],
        [at("2024-01-02"), None, None, 0.0],
        [at("2024-01-03"), None, None, 7.0],
    ]


@pytest.mark.parametrize(
    "payload",
    [
        [],
        {"prices": [], "market_caps": []},
        {**chart([]), "prices": {}},
        chart([[1.5, 1.0]]),
        chart([["2024-01-01", 1.0]]),
        chart([[stamp("2024-01-02"), "1.0"]]),
        chart([[stamp("2024-01-02"), -1.0]]),
        chart([[stamp("2024-01-02"), float("nan")]]),
        chart([[stamp("2024-01-02"), 1.0, 2.0]]),
        chart([{"t": 1}]),
    ],
)
def test_a_chart_that_breaks_the_promise_is_invalid(
    connect: Callable[..., CoinGeckoClient], payload: object
) -> None:
    with StubServer(json_of(payload)) as stub, pytest.raises(SourceDataInvalid):
        connect(stub.url).market_caps("x", at("2024-01-01"), at("2024-02-01"))


@needs_recorded
def test_the_recorded_history_of_every_coin_passes(connect: Callable[..., CoinGeckoClient]) -> None:
    archive = RECORDED / "coingecko_history" / "dev" / "market_chart_daily.tar.gz"
    with tarfile.open(archive) as members:
        bodies = {
            Path(member.name).stem: content.read()
            for member in members
            if (content := members.extractfile(member)) is not None
        }
    chosen = ["bitcoin", "0x", *sorted(bodies)[::24]]
    for coin_id in chosen:
        raw = json.loads(bodies[coin_id])
        with StubServer(Reply(bodies[coin_id])) as stub:
            table = connect(stub.url).market_caps(coin_id, at("2018-01-01"), at("2026-01-01"))
        assert len(table) == len({point[0] for point in raw["prices"]})
        assert to_ms(days(table)[0]) == raw["prices"][0][0] - DAY_MS
        assert table.column("market_cap_usd").null_count == sum(not cap for _, cap in raw["market_caps"])


# Candles


def test_candles_start_one_length_before_their_stamp_and_are_closed(
    client: CoinGeckoClient, market: MarketServer, world: SyntheticWorld
) -> None:
    table = client.ohlc("bitcoin", 7, NOW)
    assert table.schema == OHLC_SCHEMA
    assert set(table.column("interval").to_pylist()) == {"4h"}
    assert days(table)[-1] == at("2024-05-20T08:00")
    assert days(table) == [
        at("2024-05-20T08:00") - i * timedelta(hours=4) for i in range(len(table) - 1, -1, -1)
    ]
    candles = world.coin_candles("bitcoin", "4h", to_ms(NOW) - 7 * DAY_MS, to_ms(NOW), to_ms(NOW))
    assert table.column("close_usd").to_pylist() == candles.prices[3].tolist()
    earlier = client.ohlc("bitcoin", 7, at("2024-05-20T11:59:59"))
    assert days(earlier)[-1] == at("2024-05-20T04:00")
    with pytest.raises(ValueError, match="days is 2; CoinGecko answers 1, 7, 14"):
        client.ohlc("bitcoin", 2, NOW)
    assert market.count() == 2


@needs_recorded
def test_the_open_candle_at_the_end_of_a_recorded_answer_is_dropped(
    connect: Callable[..., CoinGeckoClient],
) -> None:
    name = "test_that_it_gets_ohlc_data_for_one_coin_in_the_last_7_days.yml.gz"
    cassette = yaml.safe_load(gzip.decompress((RECORDED / "coingecko_wire" / "vcr" / name).read_bytes()))
    body = cassette["http_interactions"][0]["response"]["body"]["string"]
    with StubServer(Reply(body.encode())) as stub:
        # Recorded on 15 May 2021 at 15:34:27; the last candle is stamped 16:00.
        table = connect(stub.url).ohlc("bitcoin", 7, at("2021-05-15T15:34:27"))
    raw = json.loads(body)
    assert len(table) == len(raw) - 1
    assert days(table)[-1] == at("2021-05-15T08:00")
    assert table.column("close_usd").to_pylist() == [row[4] for row in raw[:-1]]


@pytest.mark.parametrize(
    "candle",
    [
        [4, 10, 9, 8, 9],
        [4, 10, 12, 11, 11],
        [4, 0, 0, 0, 0],
        [4, 10, None, 8, 9],
        [4, 10, 12, 8],
        [4.0, 10, 12, 8, 9],
    ],
)
def test_a_candle_that_breaks_the_promise_is_invalid(
    connect: Callable[..., CoinGeckoClient], candle: list
) -> None:
    moment = type(candle[0])(stamp("2024-01-02"))
    with StubServer(json_of([[moment, *candle[1:]]])) as stub, pytest.raises(SourceDataInvalid):
        connect(stub.url).ohlc("x", 1, NOW)


def test_no_candles_are_an_empty_table_of_the_same_columns(connect: Callable[..., CoinGeckoClient]) -> None:
    with StubServer(json_of([])) as stub:
        assert connect(stub.url).ohlc("x", "max", NOW).equals(OHLC_SCHEMA.empty_table())


def answered(start: datetime, n: int, interval_s: int, **changes: list[float]) -> list[list[float]]:
    """Candles in CoinGecko's form; ``changes`` by ``at_<number>``."""
    rows = []
    for number in range(n):
        prices = changes.get(f"at_{number}", [2.0, 4.0, 1.0, 3.0])
        rows.append([to_ms(start) + (number + 1) * interval_s * 1000, *prices])
    return rows


def test_candles_of_a_range_are_those_of_its_pages_and_each_answer_is_at_most_as_long_as_allowed(
    connect: Callable[..., CoinGeckoClient], world: SyntheticWorld
) -> None:
    start, end = at("2024-01-01"), at("2024-03-10")
    with PlanServer(world, NOW) as server:
        client = connect(server.url, KEY, "pro")
        table = client.ohlc_range("bitcoin", "1h", start, end, NOW)
        pages = list(client.ohlc_pages("bitcoin", "1h", start, end, NOW))
        spans = [(int(r.query["from"]), int(r.query["to"])) for r in server.received]
        assert {r.query["interval"] for r in server.received} == {"hourly"}
    assert table.schema == OHLC_SCHEMA
    assert days(table) == [start + i * timedelta(hours=1) for i in range(69 * 24)]
    assert pa.concat_tables([page.rows for page in pages]).equals(table)
    assert [page.covered_until for page in pages][-1] == end
    # Three answers each time; neighbours share a border, and the candle that ends there.
    assert len(spans) == 6
    assert [left for left, _ in spans[1:3]] == [right for _, right in spans[:2]]
    assert max(right - left for left, right in spans) == 31 * 86_400


def test_the_open_candle_at_the_end_of_a_range_is_dropped(connect: Callable[..., CoinGeckoClient]) -> None:
    start = at("2024-05-20")
    candles = answered(start, 5, 3600)
    with StubServer(json_of(candles)) as stub:
        client = connect(stub.url, KEY, "pro")
        table = client.ohlc_range("x", "1h", start, start + 5 * timedelta(hours=1), at("2024-05-20T04:59:59"))
    assert days(table) == [start + i * timedelta(hours=1) for i in range(4)]


@pytest.mark.parametrize(
    ("interval", "shorter_s", "parts", "days_asked"), [("1h", 1800, 2, "1"), ("1d", 4 * 3600, 6, "30")]
)
def test_without_ranges_a_candle_is_the_sum_of_all_its_shorter_ones_or_missing(
    connect: Callable[..., CoinGeckoClient], interval: str, shorter_s: int, parts: int, days_asked: str
) -> None:
    length = timedelta(seconds=shorter_s * parts)
    start = at("2024-05-20") - 4 * length
    candles = answered(
        start, 4 * parts, shorter_s, at_0=[5.0, 6.0, 4.0, 5.5], **{f"at_{parts - 1}": [3.0, 9.0, 0.5, 1.5]}
    )
    del candles[2 * parts + 1]
    with StubServer(json_of(candles)) as stub:
        client = connect(stub.url, KEY, "demo")
        table = client.ohlc_range("x", interval, start, start + 4 * length, at("2024-05-20"))
        (request,) = stub.received
    assert (request.path, request.query["days"]) == ("/coins/x/ohlc", days_asked)
    assert days(table) == [start, start + length, start + 3 * length]
    first = table.slice(0, 1).to_pylist()[0]
    assert [first[f"{name}_usd"] for name in ("open", "high", "low", "close")] == [5.0, 9.0, 0.5, 1.5]
    assert set(table["interval"].to_pylist()) == {interval}


@needs_recorded
@pytest.mark.parametrize("coin", ["aave", "filecoin", "the-graph", "uniswap"])
def test_a_recorded_day_is_exactly_the_sum_of_its_24_recorded_hours(coin: str) -> None:
    folder = RECORDED / "coingecko_history" / "dev"
    hours = {
        row[0]: row[1:]
        for row in json.loads(gzip.decompress((folder / f"ohlc_hourly-{coin}.json.gz").read_bytes()))
    }
    with tarfile.open(folder / "ohlc_daily.tar.gz") as members:
        member = next(m for m in members if Path(m.name).stem == coin)
        content = members.extractfile(member)
        assert content is not None
        daily = json.loads(content.read())
    n_compared = 0
    for stamp, *prices in daily:
        parts = [hours.get(stamp - i * 3_600_000) for i in range(23, -1, -1)]
        whole = [part for part in parts if part is not None]
        if len(whole) == 24:
            n_compared += 1
            highest, lowest = max(part[1] for part in whole), min(part[2] for part in whole)
            assert prices == [whole[0][0], highest, lowest, whole[-1][3]]
    assert n_compared > 1500


@pytest.mark.parametrize("plan", ["demo", "public"])
def test_what_a_plan_does_not_have_is_refused_before_anything_is_sent(budget: RateBudget, plan: str) -> None:
    # Nobody listens there, so whatever is sent would be told as unavailable.
    client = CoinGeckoClient(budget, plan=plan, api_key=KEY if plan == "demo" else None)
    early = NOW - timedelta(days=40)
    with pytest.raises(SourceRefused, match=rf"not sent, the plan '{plan}' .*4h.*COINGECKO_PRO_API_KEY"):
        client.ohlc_range("bitcoin", "1d", at("2024-04-10"), at("2024-05-01"), NOW)
    with pytest.raises(SourceRefused, match="its 1h candles, made of 30m ones, begin at 2024-05-19 13:00"):
        client.ohlc_range("bitcoin", "1h", at("2024-05-19"), at("2024-05-20"), NOW)
    with pytest.raises(SourceRefused, match="its market caps begin on 2023-05-22"):
        client.market_caps("bitcoin", early - timedelta(days=400), NOW, now=NOW)
    with pytest.raises(ValueError, match="interval is '4h'; CoinGecko has candles of 1d, 1h"):
        client.ohlc_range("bitcoin", "4h", early, NOW, NOW)
    with pytest.raises(ValueError, match="empty range of bitcoin"):
        client.ohlc_range("bitcoin", "1d", NOW, NOW, NOW)
    assert budget.used() == 0


def test_a_year_of_market_caps_is_what_the_demo_plan_really_answers(
    connect: Callable[..., CoinGeckoClient],
) -> None:
    world = SyntheticWorld(7, to_ms(at("2023-01-01")), to_ms(END), "1h")
    with PlanServer(world, NOW) as server:
        client = connect(server.url, KEY, "demo")
        oldest = client.caps_from(NOW)
        assert oldest is not None
        table = client.market_caps("bitcoin", oldest, at("2024-05-20"), now=NOW)
        assert days(table) == [oldest + i * DAY for i in range((at("2024-05-20") - oldest).days)]
        with pytest.raises(SourceRefused, match="HTTP 401 .*10012.*exceeds the allowed time range"):
            client.market_caps("bitcoin", oldest - 2 * DAY, at("2024-05-20"))
        assert connect(server.url, KEY, "pro").caps_from(NOW) is None


def test_a_page_with_a_broken_candle_is_invalid_and_none_of_it_is_used(
    connect: Callable[..., CoinGeckoClient],
) -> None:
    candles = answered(at("2024-05-01"), 3, 86_400, at_1=[2.0, 1.0, 3.0, 2.0])
    with StubServer(json_of(candles)) as stub, pytest.raises(SourceDataInvalid, match="low <= open, close"):
        connect(stub.url, KEY, "pro").ohlc_range("x", "1d", at("2024-05-01"), at("2024-05-04"), NOW)


# Faults


@pytest.mark.parametrize(
    ("fault", "kind", "n_requests"),
    [
        (Fault("html_200"), SourceDataInvalid, 3),
        (Fault("truncated_json"), SourceDataInvalid, 3),
        (Fault("empty_200"), SourceDataInvalid, 3),
        (Fault("short_body"), SourceUnavailable, 3),
        (Fault("reset"), SourceUnavailable, 3),
        (status(429, 2), SourceUnavailable, 3),
        (status(500), SourceUnavailable, 3),
        (status(503), SourceUnavailable, 3),
        (status(401), SourceRefused, 1),
        (status(403), SourceRefused, 1),
        (status(418), SourceRefused, 1),
        (status(451), SourceRefused, 1),
    ],
    ids=str,
)
def test_each_fault_is_told_by_what_the_caller_must_do_and_without_the_key(
    market: MarketServer,
    connect: Callable[..., CoinGeckoClient],
    fault: Fault,
    kind: type[SourceError],
    n_requests: int,
) -> None:
    market.inject(COINS, fault, times=9)
    client = connect(market.coingecko_url, KEY, "demo")
    with pytest.raises(SourceError) as caught:
        client.market_caps("bitcoin", START, END)
    assert type(caught.value) is kind
    assert market.count() == n_requests
    assert str(caught.value).startswith(
        "coingecko GET /api/v3/coins/bitcoin/market_chart/range?vs_currency=usd&from="
    )
    assert KEY not in "".join(traceback.format_exception(caught.value, chain=True))
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_a_passing_fault_costs_a_request_and_no_row(client: CoinGeckoClient, market: MarketServer) -> None:
    whole = client.market_caps("bitcoin", START, END)
    for fault in ("html_200", "truncated_json", "empty_200", "short_body", "reset"):
        market.inject(COINS, fault)
        assert client.market_caps("bitcoin", START, END).equals(whole)
    assert market.count() == 1 + 2 * 5


def test_retry_after_and_the_budget_are_obeyed(
    client: CoinGeckoClient, market: MarketServer, time: FakeTime
) -> None:
    start_s = time.now_s
    market.inject(COINS, status(429, retry_after=50))
    client.coins()
    assert time.now_s == pytest.approx(start_s + 50)
    for _ in range(29):
        client.coins()
    assert market.count() == 31
    # The first of the 31 requests was sent at the start, and 30 fit into a minute.
    assert 60 <= time.now_s - start_s <= 61


def test_an_unknown_coin_is_refused_with_the_words_of_the_source(
    client: CoinGeckoClient, market: MarketServer
) -> None:
    with pytest.raises(SourceRefused, match=r"coins/nope/.*HTTP 404.*coin not found"):
        client.market_caps("nope", START, END)
    with pytest.raises(SourceRefused, match="coin not found"):
        client.ohlc("nope", 7, NOW)
    assert market.count() == 2


def test_an_address_where_nobody_listens_is_unavailable(
    connect: Callable[..., CoinGeckoClient], world: SyntheticWorld
) -> None:
    with MarketServer(world, NOW) as market:
        url = market.coingecko_url
    with pytest.raises(SourceUnavailable, match=r"attempt 3 of 3: no response .*refused") as caught:
        connect(url, KEY, "pro").coins()
    assert KEY not in "".join(traceback.format_exception(caught.value, chain=True))


def test_the_library_repeats_nothing_by_itself_on_https_either(
    connect: Callable[..., CoinGeckoClient],
) -> None:
    with StubServer(json_of([])) as stub:
        with pytest.raises(SourceRefused, match="no response"):
            connect(stub.url.replace("http://", "https://")).coins()
        assert stub.n_connections == 1


# The month's allowance


def test_every_attempt_counts_and_when_the_month_is_used_up_nothing_is_sent(
    budget: RateBudget, time: FakeTime, tmp_path: Path
) -> None:
    clock = [at("2024-05-31T23:59:59")]
    allowance = CallAllowance(tmp_path, "month", 3, lambda: clock[0])
    with StubServer(Reply(b"", 500), json_of([])) as stub:
        client = CoinGeckoClient(
            budget,
            base_url=stub.url,
            plan="demo",
            api_key=KEY,
            retry=RetryPolicy(attempts=3, sleep=time.sleep),
            allowance=allowance,
        )
        client.coins()
        client.coins()
        with pytest.raises(SourceRefused, match="3 calls of 2024-05 are used up.*renews at 2024-06-01 00:00"):
            client.coins()
        assert len(stub.received) == 3
        clock[0] += timedelta(seconds=1)
        client.coins()
        assert len(stub.received) == 4


def test_the_resource_shares_the_allowance_among_its_clients_and_counts_nothing_without_one(
    tmp_path: Path,
) -> None:
    with StubServer(json_of([])) as stub:
        counted = CoinGeckoResource(base_url=stub.url, budget_dir=str(tmp_path), calls_per_month=2)
        counted.client(lambda: NOW).coins()
        counted.client(lambda: NOW).coins()
        with pytest.raises(SourceRefused, match="renews at 2024-06-01"):
            counted.client(lambda: NOW).coins()
        counted.client(lambda: NOW + timedelta(days=12)).coins()
        # By the clock of this machine it is another month.
        counted.client().coins()
        CoinGeckoResource(base_url=stub.url, budget_dir=str(tmp_path)).client().coins()
        assert len(stub.received) == 5


# The key


@pytest.mark.parametrize(("plan", "header"), [("demo", "x-cg-demo-api-key"), ("pro", "x-cg-pro-api-key")])
def test_the_key_travels_in_a_header_and_never_in_the_address(
    connect: Callable[..., CoinGeckoClient], plan: str, header: str
) -> None:
    with StubServer(json_of([])) as stub:
        client = connect(stub.url, KEY, plan)
        client.coins()
        client.markets(1, NOW)
        client.ohlc("x", 7, NOW)
        client.ohlc_range("x", "1h", NOW - timedelta(hours=9, minutes=34, seconds=56), NOW, NOW)
    assert [request.headers[header] for request in stub.received] == [KEY] * 4
    assert not [request.target for request in stub.received if KEY in request.target]


@pytest.mark.parametrize("code", [200, 401, 500])
def test_a_key_that_the_source_echoes_is_removed_from_the_error(
    connect: Callable[..., CoinGeckoClient], code: int
) -> None:
    with StubServer(Reply(b'{"you sent": ', code, echo_headers=True)) as stub:
        client = connect(stub.url, KEY, "demo")
        with pytest.raises(SourceError) as caught:
            client.coins()
    text = "".join(traceback.format_exception(caught.value, chain=True)) + repr(caught.value) + repr(client)
    assert KEY not in text


def test_a_redirect_does_not_carry_the_key_to_another_host(connect: Callable[..., CoinGeckoClient]) -> None:
    with StubServer(json_of([])) as elsewhere:
        moved = Reply(b"", 302, {"Location": elsewhere.url})
        with StubServer(moved) as stub, pytest.raises(SourceRefused, match="HTTP 302"):
            connect(stub.url, KEY, "pro").coins()
        assert elsewhere.received == []


@pytest.mark.parametrize(
    ("plan", "key", "complaint"),
    [
        ("gold", KEY, "unknown CoinGecko plan 'gold'"),
        ("demo", None, "needs an API key"),
        ("public", KEY, "takes no API key"),
        ("pro", f"{KEY}\n", "special characters"),
        ("pro", f" {KEY}", "special characters"),
        ("pro", f"{KEY}é", "special characters"),
        ("pro", "", "special characters"),
    ],
)
def test_a_plan_and_key_that_do_not_fit_are_told_at_once_without_the_key(
    budget: RateBudget, plan: str, key: str | None, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        CoinGeckoClient(budget, plan=plan, api_key=key)
    assert KEY not in str(caught.value)


def test_a_wrong_address_is_told_at_once(budget: RateBudget) -> None:
    with pytest.raises(ValueError, match="must start with http"):
        CoinGeckoClient(budget, base_url="127.0.0.1:80")


def test_an_asset_receives_the_client_through_the_resource_which_hides_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dg.asset
    def n_coins(coingecko: CoinGeckoResource) -> int:
        assert KEY not in repr(coingecko)
        return len(coingecko.client().coins())

    monkeypatch.setenv("TEST_COINGECKO_KEY", KEY)
    with StubServer(json_of([{"id": "bitcoin", "symbol": "btc", "name": "Bitcoin"}])) as stub:
        coingecko = CoinGeckoResource(
            base_url=stub.url,
            plan="demo",
            api_key=dg.EnvVar("TEST_COINGECKO_KEY"),
            budget_dir=str(tmp_path / "budgets"),
        )
        with dg.DagsterInstance.ephemeral() as instance:
            result = dg.materialize([n_coins], resources={"coingecko": coingecko}, instance=instance)
            logged = [str(entry) for entry in instance.all_logs(result.run_id)]
            run = str(instance.get_run_by_id(result.run_id))
        assert result.output_for_node("n_coins") == 1
        assert stub.received[0].headers["x-cg-demo-api-key"] == KEY
    assert logged
    assert not [text for text in [*logged, run] if KEY in text]
    assert KEY not in repr(coingecko)
