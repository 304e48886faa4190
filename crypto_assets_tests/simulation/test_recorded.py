"""Facts of the recorded data, seen through the real clients and the server."""

from __future__ import annotations

import gzip
import json
import tarfile
import time
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest

from crypto_assets.intervals import DAY_MS, HOUR_MS, MINUTE_MS
from crypto_assets.simulation.bars import CLOSE, VOLUME_BASE, aggregate
from crypto_assets.simulation.binance import binance_answer
from crypto_assets.simulation.recorded import RecordedWorld
from crypto_assets.simulation.recordings import load_recordings
from crypto_assets.simulation.render import klines_json
from crypto_assets.simulation.server import MarketServer
from crypto_assets.simulation.usdm import usdm_answer
from crypto_assets_tests.recorded import RECORDED, needs_recorded
from crypto_assets_tests.simulation.clients import at, coingecko_at, exchange_at

pytestmark = needs_recorded
LATER = at(2027, 1, 1)


@pytest.fixture(scope="module")
def hourly() -> RecordedWorld:
    return RecordedWorld(load_recordings(RECORDED, ["spot_1h_2021_2023/dev/*.csv.gz"]))


@pytest.fixture(scope="module")
def wire() -> RecordedWorld:
    return RecordedWorld(load_recordings(RECORDED, ["spot_wire_static_klines/dev/*.tar.gz"]))


@pytest.fixture(scope="module")
def coins() -> RecordedWorld:
    patterns = ["coingecko_history/dev/*.tar.gz", "coingecko_history/dev/*.json.gz"]
    recordings = load_recordings(
        RECORDED, coingecko=patterns, coins_list="coingecko_wire/lists/coins_list-2025-01.json.gz"
    )
    return RecordedWorld(recordings)


def wire_rows(
    world: RecordedWorld, symbol: str, interval: str, start_ms: int = 0, limit: int = 10**6
) -> list[list]:
    return json.loads(
        klines_json(world.klines(symbol, interval, now_ms=LATER, limit=limit, start_ms=start_ms))
    )


def test_22_hourly_files_load_in_seconds(hourly: RecordedWorld) -> None:
    began = time.process_time()
    markets = hourly.all_markets()
    assert time.process_time() - began < 10
    assert len(markets) == 22
    assert sum(len(hourly.final_bars(market.symbol, "1h", 0, LATER)) for market in markets) > 450_000


@pytest.mark.parametrize("name", ["BTCUSDT-1h", "ETHUSDT-1d", "ADAUSDT-3d", "BNBUSDT-1w", "BTCUSDT-4h"])
def test_wire_pages_are_served_byte_for_byte(wire: RecordedWorld, name: str) -> None:
    with tarfile.open(RECORDED / f"spot_wire_static_klines/dev/{name}.tar.gz") as archive:
        members = sorted(archive.getmembers(), key=lambda member: member.name)
        pages = [json.loads(stream.read()) for m in members if (stream := archive.extractfile(m))]
    recorded = {row[0]: row for page in pages for row in page}
    exchange_symbol, interval = name.split("-")
    assert wire_rows(wire, exchange_symbol.replace("USDT", "/USDT"), interval) == [
        recorded[ms] for ms in sorted(recorded)
    ]


def test_the_outage_of_march_2023_is_as_recorded(wire: RecordedWorld) -> None:
    with MarketServer(wire, clock="2023-03-25") as market:
        query = {"symbol": "BTCUSDT", "interval": "1h", "startTime": at(2023, 3, 24, 11), "limit": 4}
        rows = exchange_at(market).public_get_klines(query)
    assert [int(row[0]) for row in rows] == [at(2023, 3, 24, hour) for hour in (11, 12, 14, 15)]
    assert Decimal(rows[1][5]) == 0
    assert int(rows[1][6]) == at(2023, 3, 24, 12) + 2_381_646
    assert int(rows[2][6]) == at(2023, 3, 24, 15) - 1


def test_minutes_of_the_outage_are_flat_and_then_missing() -> None:
    world = RecordedWorld(load_recordings(RECORDED, ["spot_1m_ohlcv/BTC_USDT-1m-2023-03-16_05-01.json.gz"]))
    rows = wire_rows(world, "BTC/USDT", "1m", at(2023, 3, 24, 11, 28), 73)
    assert [int(row[0]) for row in rows[:72]] == [at(2023, 3, 24, 11, 28) + i * MINUTE_MS for i in range(72)]
    assert {Decimal(row[5]) for row in rows[:72]} == {Decimal(0)}
    assert int(rows[72][0]) == at(2023, 3, 24, 14)
    assert [row[0] for row in wire_rows(world, "BTC/USDT", "1h", at(2023, 3, 24, 12), 2)] == [
        at(2023, 3, 24, 12),
        at(2023, 3, 24, 14),
    ]


def test_derived_bars_equal_the_bars_of_the_exchange(wire: RecordedWorld) -> None:
    from_hours = RecordedWorld(load_recordings(RECORDED, ["spot_wire_static_klines/dev/*-1h.tar.gz"]))
    for symbol in ("BTC/USDT", "DOGE/USDT"):
        start, end = at(2022, 1, 2), at(2023, 12, 30)
        derived = {row[0]: row for row in wire_rows(from_hours, symbol, "1d", start) if row[0] < end}
        stored = {row[0]: row for row in wire_rows(wire, symbol, "1d", start) if row[0] < end}
        assert derived.keys() == stored.keys()
        different = [ms for ms, row in derived.items() if row != stored[ms]]
        # The exchange restates history: a few days were recorded in another state than their hours.
        assert len(different) <= 5, different


def test_derived_sums_are_exact_to_the_last_digit(hourly: RecordedWorld) -> None:
    with gzip.open(RECORDED / "spot_1h_2021_2023/dev/DOGEUSDT-1h.csv.gz", "rt") as file:
        lines = [line.split(",") for line in file.read().splitlines()[1:]]
    day = [line for line in lines if line[0].startswith("2021-05-08")]
    row = wire_rows(hourly, "DOGE/USDT", "1d", at(2021, 5, 8), 1)[0]
    assert Decimal(row[5]) == sum((Decimal(line[5]) for line in day), Decimal(0))
    assert [Decimal(value) for value in row[1:5]] == [
        Decimal(day[0][1]),
        max(Decimal(line[2]) for line in day),
        min(Decimal(line[3]) for line in day),
        Decimal(day[-1][4]),
    ]
    assert row[7:11] == [None, None, None, None]


def test_luna_dies_and_another_coin_takes_its_symbol(hourly: RecordedWorld) -> None:
    with MarketServer(hourly, clock="2022-05-12T23:30") as market:
        exchange = exchange_at(market)

        def status() -> str:
            return exchange.public_get_exchangeinfo({"symbol": "LUNAUSDT"})["symbols"][0]["status"]

        seen = [status()]
        for moment in ("2022-05-14T12:00", "2022-05-31T12:00"):
            market.clock.set(moment)
            seen.append(status())
        assert seen == ["TRADING", "BREAK", "TRADING"]
        query = {"symbol": "LUNAUSDT", "interval": "1h", "startTime": at(2022, 5, 12, 23), "limit": 3}
        rows = exchange.public_get_klines(query)
    gap_hours = (int(rows[2][0]) - int(rows[1][0])) // HOUR_MS
    assert int(rows[1][0]) == at(2022, 5, 13)
    assert gap_hours > 400
    assert Decimal(rows[1][4]) < Decimal("0.001") < Decimal(rows[2][1])
    assert rows[1][5] == "145150420958.30000000"


def test_of_minutes_stored_while_open_the_later_state_wins() -> None:
    world = RecordedWorld(load_recordings(RECORDED, ["spot_1m_full/BTCUSDT-1m-2021-10-11_21-dirty.csv.gz"]))
    rows = wire_rows(world, "BTC/USDT", "1m", at(2021, 10, 16, 21, 25), 1)
    assert (rows[0][4], rows[0][8]) == ("60990.49", 498)
    everything = wire_rows(world, "BTC/USDT", "1m")
    # 31 minutes come twice, one of them a third time.
    assert len(everything) == 15_725 - 32
    assert len({row[0] for row in everything}) == len(everything)


def test_a_thin_wire_file_against_the_euro_is_served_verbatim() -> None:
    name = "spot_1m_full/ADAEUR-1m-2021-03-24.wire.json.gz"
    world = RecordedWorld(load_recordings(RECORDED, [name]))
    with MarketServer(world, clock="2021-03-25") as market:
        rows = exchange_at(market).public_get_klines({"symbol": "ADAEUR", "interval": "1m", "limit": 1000})
        entry = exchange_at(market).public_get_exchangeinfo()["symbols"][0]
    assert rows == json.loads(gzip.decompress((RECORDED / name).read_bytes()))[-1000:]
    assert (entry["baseAsset"], entry["quoteAsset"]) == ("ADA", "EUR")


def test_prices_of_a_millionth_keep_their_digits() -> None:
    world = RecordedWorld(load_recordings(RECORDED, ["spot_1m_ohlcv/DOGE_BTC-*.json.gz"]))
    row = wire_rows(world, "DOGE/BTC", "1m", limit=1)[0]
    assert row == [
        1631998680000,
        *["0.00000499"] * 4,
        "49626.00000000",
        1631998739999,
        None,
        None,
        None,
        None,
        "0",
    ]
    assert world.all_markets()[0].tick == 1


def test_monthly_futures_files_keep_their_decimals() -> None:
    world = RecordedWorld(load_recordings(RECORDED, ["um_1m_vision/*.csv.gz"]))
    with gzip.open(RECORDED / "um_1m_vision/FILUSDT-1m-2023-08.csv.gz", "rt") as file:
        first = file.read().splitlines()[1].split(",")
    row = wire_rows(world, "FIL/USDT", "1m", limit=1)[0]
    assert [str(value) for value in row] == first
    joint = wire_rows(world, "FIL/USDT", "1m", at(2023, 8, 31, 23, 59), 2)
    assert [row[0] for row in joint] == [at(2023, 8, 31, 23, 59), at(2023, 9, 1)]


def test_an_archive_of_many_symbols_is_read_by_member() -> None:
    world = RecordedWorld(load_recordings(RECORDED, ["um_gravestone/dev/1h.tar.gz"]))
    assert len(world.all_markets()) == 32
    rows = wire_rows(world, "AAVE/USDT", "1h", limit=2)
    assert rows[0][1:6] == ["317.470", "319.870", "317.100", "319.790", "30000.4"]
    assert rows[0][7:11] == ["9557045.0690", 19582, None, None]


def test_bars_off_the_grid_are_served_as_they_are() -> None:
    world = RecordedWorld(load_recordings(RECORDED, ["spot_1h_btc_longrun/*.csv.gz"]))
    rows = wire_rows(world, "BTC/USDT", "1h", at(2018, 2, 9, 8), 60)
    off_grid = [row for row in rows if row[0] % HOUR_MS]
    assert len(off_grid) == 43
    assert off_grid[0][:2] == [at(2018, 2, 9, 9, 28, 14) + 789, "7789.9"]
    assert off_grid[0][6] == off_grid[0][0] + HOUR_MS - 1
    days = {row[0]: row for row in wire_rows(world, "BTC/USDT", "1d", at(2018, 2, 8), 5)}
    assert at(2018, 2, 10) in days


@pytest.mark.parametrize("hours", [0, 5, 23])
def test_nothing_of_the_recorded_future_is_served(hourly: RecordedWorld, hours: int) -> None:
    now = at(2022, 3, 14, hours, 30)
    for interval in ("1h", "4h", "1d", "1w"):
        early = hourly.klines("ETH/USDT", interval, now_ms=now, limit=50)
        late = hourly.klines(
            "ETH/USDT", interval, now_ms=now + 30 * DAY_MS, limit=50, end_ms=int(early.open_ms[-1])
        )
        assert early.open_ms.tolist() == late.open_ms.tolist()
        assert (early.values[:, :-1] == late.values[:, :-1]).all()
        assert early.values[VOLUME_BASE, -1] < late.values[VOLUME_BASE, -1]
    hour = hourly.klines("ETH/USDT", "1h", now_ms=now, limit=1)
    day = hourly.klines("ETH/USDT", "1d", now_ms=now, limit=1)
    assert day.values[CLOSE, 0] == hour.values[CLOSE, 0]


def test_charts_come_as_recorded_with_their_lag(coins: RecordedWorld) -> None:
    with tarfile.open(RECORDED / "coingecko_history/dev/market_chart_daily.tar.gz") as archive:
        member = archive.extractfile("market_chart_daily/aave.json")
        assert member is not None
        recorded = json.load(member)
    start, end = at(2021, 1, 1), at(2021, 12, 31)
    with MarketServer(coins, clock="2024-01-01") as market:
        client = coingecko_at(market)
        served = client.get_coin_market_chart_range_by_id("aave", "usd", start // 1000, end // 1000)
        assert served == {
            name: [row for row in rows if start <= row[0] <= end] for name, rows in recorded.items()
        }
        stamps = []
        for moment in ("2022-05-14T00:34:59", "2022-05-14T00:35:00"):
            market.clock.set(moment)
            now = market.clock.now_ms() // 1000
            points = client.get_coin_market_chart_range_by_id("aave", "usd", now - 95 * 86_400, now)["prices"]
            stamps.append([int(point[0]) for point in points])
    assert [max(stamp for stamp in seen if stamp % DAY_MS == 0) for seen in stamps] == [
        at(2022, 5, 13),
        at(2022, 5, 14),
    ]
    assert all(seen[-1] % DAY_MS for seen in stamps)


def test_markets_are_ranked_with_what_was_known(coins: RecordedWorld) -> None:
    with MarketServer(coins, clock="2022-05-14T12:00") as market:
        rows = coingecko_at(market).get_coins_markets("usd", per_page=3)
        assert len(coingecko_at(market).get_coins_list()) == 16_395
    assert [row["id"] for row in rows] == ["bitcoin", "ethereum", "tether"]
    assert (rows[0]["symbol"], rows[0]["name"], rows[0]["last_updated"]) == (
        "btc",
        "Bitcoin",
        "2022-05-14T00:00:00.000Z",
    )


def test_recorded_candles_are_served_with_their_duplicates(coins: RecordedWorld) -> None:
    with gzip.open(RECORDED / "coingecko_history/dev/ohlc_hourly-aave.json.gz") as file:
        recorded = json.load(file)
    everything = coins.coin_candles("aave", "1h", 0, LATER, LATER)
    assert everything.stamp_ms.tolist() == sorted(row[0] for row in recorded)
    assert len(set(everything.stamp_ms.tolist())) < len(everything)
    with MarketServer(coins, clock="2022-05-14T12:30") as market:
        four_hours = coingecko_at(market).get_coin_ohlc_by_id("aave", "usd", "7")
    assert four_hours[-1][0] == at(2022, 5, 14, 12)
    parts = [row for row in recorded if at(2022, 5, 14, 8) < row[0] <= at(2022, 5, 14, 12)]
    assert four_hours[-1][2] == max(row[2] for row in parts)


def test_a_coin_that_is_only_listed_has_no_chart(coins: RecordedWorld) -> None:
    listed = {coin.coin_id for coin in coins.coins(LATER)}
    assert "01coin" in listed
    with pytest.raises(KeyError):
        coins.coin_points("01coin", "1d", 0, LATER, LATER)


@pytest.fixture(scope="module")
def futures() -> RecordedWorld:
    gravestone = ["um_gravestone/dev/1d.tar.gz", "um_gravestone/dev/1h.tar.gz"]
    recordings = load_recordings(
        RECORDED,
        futures=[*gravestone, "um_1m_vision/*.csv.gz"],
        unfinished=gravestone,
        funding=["um_gravestone/dev/funding.tar.gz", "binance_wire/funding/*.csv.gz"],
        local_hours={"binance_wire/funding/*.csv.gz": 3},
        open_interest=["um_gravestone/dev/oi_1d.tar.gz"],
    )
    return RecordedWorld(recordings)


@pytest.fixture(scope="module")
def lists() -> RecordedWorld:
    names = ["spot-2018-02-10", "spot-2020-10-09", "spot-2021-03-24", "um-2025-11-26-maybe-testnet"]
    paths = [f"binance_wire/exchange_info/{name}.json.gz" for name in names]
    return RecordedWorld(load_recordings(RECORDED, exchange_info=paths))


def recorded_list(name: str) -> list[dict]:
    path = RECORDED / f"binance_wire/exchange_info/{name}.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))["symbols"]


def fapi(world: RecordedWorld, path: str, now_ms: int, **params: object) -> Any:
    answer = usdm_answer(world, path, {name: str(value) for name, value in params.items()}, now_ms)
    return json.loads(answer.body)


def test_268_recorded_perpetuals_are_contracts_and_no_pairs(futures: RecordedWorld) -> None:
    assert futures.all_markets() == []
    contracts = futures.all_contracts()
    assert len(contracts) == 268
    assert {contract.market_type for contract in contracts} == {"perpetual"}
    assert {"BTC/USDT:USDT", "1000000MOG/USDT:USDT"} <= {contract.symbol for contract in contracts}


def test_the_last_bar_of_a_futures_file_was_open_when_recorded_and_is_left_out(
    futures: RecordedWorld,
) -> None:
    last_day = futures.final_bars("BTC/USDT:USDT", "1d", 0, LATER).open_ms[-1]
    last_hour = futures.final_bars("BTC/USDT:USDT", "1h", 0, LATER).open_ms[-1]
    assert (last_day, last_hour) == (at(2026, 3, 18), at(2026, 3, 19, 18))
    # An archive file is whole.
    assert futures.final_bars("FIL/USDT:USDT", "1m", 0, LATER).open_ms[-1] == at(2023, 9, 30, 23, 59)


def test_recorded_hours_of_a_contract_sum_to_its_recorded_days(futures: RecordedWorld) -> None:
    start, end = at(2025, 10, 1), at(2026, 3, 1)
    hours = aggregate(futures.final_bars("BTC/USDT:USDT", "1h", start, end), "1h", "1d")
    days = futures.final_bars("BTC/USDT:USDT", "1d", start, end)
    assert hours.open_ms.tolist() == days.open_ms.tolist()
    assert (hours.values == days.values).all()


def test_monthly_futures_files_are_served_by_the_futures_routes(futures: RecordedWorld) -> None:
    with gzip.open(RECORDED / "um_1m_vision/FILUSDT-1m-2023-08.csv.gz", "rt") as file:
        lines = [line.split(",") for line in file.read().splitlines()[1:1501]]
    rows = fapi(
        futures,
        "/fapi/v1/klines",
        LATER,
        symbol="FILUSDT",
        interval="1m",
        limit=1500,
        startTime=int(lines[0][0]),
    )
    assert [[str(value) for value in row] for row in rows] == lines


def test_settlements_jitter_by_milliseconds_on_schedules_of_one_four_and_eight_hours(
    futures: RecordedWorld,
) -> None:
    start, now = at(2026, 3, 1), at(2026, 3, 19, 22)
    jitter, schedules = set(), {}
    for contract in futures.all_contracts():
        stamps = futures.final_funding(contract.symbol, start, now).settled_ms
        jitter |= set((stamps % HOUR_MS).tolist())
        schedules[contract.symbol] = futures.funding_hours(contract.symbol, now)
    assert {0, 1, 14} <= jitter
    assert max(jitter) < 1000
    counts = Counter(schedules.values())
    assert counts[4] > counts[8] > counts[1] > 0
    assert schedules["BTC/USDT:USDT"] == 8
    told = {row["symbol"]: row["fundingIntervalHours"] for row in fapi(futures, "/fapi/v1/fundingInfo", now)}
    assert "BTCUSDT" not in told
    assert len(told) == sum(count for hours, count in counts.items() if hours != 8)


def test_a_recorded_schedule_changes_and_is_seen_to_change(futures: RecordedWorld) -> None:
    symbol = "ENSO/USDT:USDT"
    stamps = futures.final_funding(symbol, 0, LATER).settled_ms.tolist()
    hours = [futures.funding_hours(symbol, stamp) for stamp in stamps[1:]]
    assert set(hours) == {1, 4}
    assert futures.funding_hours(symbol, stamps[0] - 1) is None


def test_old_funding_was_recorded_in_utc_plus_three(futures: RecordedWorld) -> None:
    rows = fapi(futures, "/fapi/v1/fundingRate", LATER, symbol="BTCUSDT", limit=6, startTime=at(2019, 12, 1))
    assert [row["fundingTime"] for row in rows[:3]] == [at(2020, 1, 1, hour) for hour in (0, 8, 16)]
    # The live exchange answered the same.
    mock = json.loads(
        gzip.decompress((RECORDED / "binance_wire/gocryptotrader/binance-http.json.gz").read_bytes())
    )
    cases = mock["routes"]["/fapi/v1/fundingRate"]["GET"]
    real = next(
        case["data"] for case in cases if case["data"] and case["data"][0]["fundingTime"] == at(2020, 1, 1)
    )
    ours = [(row["symbol"], row["fundingTime"], row["fundingRate"]) for row in rows]
    assert ours == [(row["symbol"], row["fundingTime"], row["fundingRate"]) for row in real]


def test_recorded_funding_is_negative_at_times_and_has_no_mark_price(futures: RecordedWorld) -> None:
    funding = futures.final_funding("BTC/USDT:USDT", 0, LATER)
    assert (funding.rate < 0).any()
    assert set(funding.mark_price.tolist()) == {-1}
    assert len(funding) == 4383 + 200


def test_recorded_open_interest_is_served_for_a_month_as_recorded(futures: RecordedWorld) -> None:
    now = at(2026, 3, 20, 5)
    rows = fapi(futures, "/futures/data/openInterestHist", now, symbol="0GUSDT", period="1d", limit=500)
    assert len(rows) == 28
    assert rows[0] == {
        "symbol": "0GUSDT",
        "sumOpenInterest": "18986450.00000000",
        "sumOpenInterestValue": "12411442.36500000",
        "timestamp": 1771632000000,
    }
    assert fapi(futures, "/futures/data/openInterestHist", now, symbol="0GUSDT", period="1h") == []
    later = fapi(
        futures, "/futures/data/openInterestHist", now + 5 * DAY_MS, symbol="0GUSDT", period="1d", limit=500
    )
    assert [row["timestamp"] for row in later] == [
        row["timestamp"] for row in rows if row["timestamp"] > now - 25 * DAY_MS
    ]


def test_pairs_and_states_are_those_of_the_list_of_their_time(lists: RecordedWorld) -> None:
    with MarketServer(lists, clock="2018-02-11") as market:
        exchange = exchange_at(market)
        for moment, name, states in (
            ("2018-02-11", "spot-2018-02-10", {"TRADING": 265}),
            ("2020-10-10", "spot-2020-10-09", {"TRADING": 815, "BREAK": 274}),
            ("2021-03-25", "spot-2021-03-24", {"TRADING": 1000, "BREAK": 363}),
        ):
            market.clock.set(moment)
            served = {entry["symbol"]: entry for entry in exchange.public_get_exchangeinfo()["symbols"]}
            assert served == {entry["symbol"]: entry for entry in recorded_list(name)}
            assert Counter(entry["status"] for entry in served.values()) == states
    assert lists.markets(at(2018, 2, 9)) == []


def test_the_status_zoo_of_contracts_is_served_as_recorded(lists: RecordedWorld) -> None:
    answer = usdm_answer(lists, "/fapi/v1/exchangeInfo", {}, at(2025, 11, 27))
    served = {entry["symbol"]: entry for entry in json.loads(answer.body)["symbols"]}
    assert served == {entry["symbol"]: entry for entry in recorded_list("um-2025-11-26-maybe-testnet")}
    assert len(served) == 647
    states = {"TRADING", "PENDING_TRADING", "SETTLING", "DELIVERING", "PRE_SETTLE"}
    assert {entry["status"] for entry in served.values()} == states
    assert "CURRENT_QUARTER DELIVERING" in {entry["contractType"] for entry in served.values()}
    assert "币安人生USDT" in served
    assert {market.market_type for market in lists.all_contracts()} == {"perpetual", "delivery"}
    dated = lists.contract("BTCUSDT_251226", at(2025, 11, 27))
    assert dated is not None and dated.symbol == "BTC/USDT:USDT-251226"
    bitcoin = lists.contract("ETHBTC", at(2025, 11, 27))
    assert bitcoin is not None and bitcoin.symbol == "ETH/BTC:BTC"


def test_a_market_of_which_only_the_listing_was_recorded_has_no_rows(lists: RecordedWorld) -> None:
    now = at(2021, 3, 25)
    for path, params in (
        ("klines", {"symbol": "ETHBTC", "interval": "1h"}),
        ("ticker/24hr", {"symbol": "ETHBTC"}),
    ):
        answer = binance_answer(lists, f"/api/v3/{path}", params, now)
        assert answer.status == 200
        assert json.loads(answer.body) == [] or float(json.loads(answer.body)["lastPrice"]) == 0
    book = json.loads(binance_answer(lists, "/api/v3/depth", {"symbol": "ETHBTC"}, now).body)
    assert book["bids"] == book["asks"] == []
    later = at(2025, 11, 27)
    assert fapi(lists, "/fapi/v1/klines", later, symbol="EOSUSDT", interval="1h") == []
    assert fapi(lists, "/fapi/v1/depth", later, symbol="EOSUSDT")["code"] == -4108
