"""Facts 6 and 7: the aggregator stamps the end of a day, and its histories have doubles, holes and unknown caps."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from crypto_assets.resources.warehouse.inventory import gaps_table
from crypto_assets.resources.warehouse.oddities import reconciliation_table
from crypto_assets.simulation.recorded import RecordedWorld
from crypto_assets_tests.recorded import needs_recorded
from crypto_assets_tests.recorded_facts.loading import (
    Warehouse,
    recorded_json,
    recorded_members,
    recorded_world,
    spot,
    wire_rows,
)

pytestmark = needs_recorded

DAY, DAY_MS = timedelta(days=1), 86_400_000
FOLDER = "coingecko_history/dev"
BITCOIN_DAYS = "spot_wire_static_klines/dev/BTCUSDT-1d.tar.gz"
NOW = "2025-03-12T01:00:00"


@pytest.fixture(scope="module")
def charts() -> dict[str, bytes]:
    return recorded_members(f"{FOLDER}/market_chart_daily.tar.gz")


@pytest.fixture(scope="module")
def candles() -> dict[str, bytes]:
    return recorded_members(f"{FOLDER}/ohlc_daily.tar.gz")


@pytest.fixture(scope="module")
def world() -> RecordedWorld:
    return recorded_world(
        BITCOIN_DAYS, coingecko=[f"{FOLDER}/*.tar.gz", f"{FOLDER}/ohlc_hourly-aave.json.gz"]
    )


def day_of(stamp_ms: int) -> pd.Timestamp:
    """The day that ends at a stamp."""
    return pd.Timestamp(stamp_ms, unit="ms") - DAY


def gaps(warehouse: Warehouse, coin: str, kind: str) -> list[tuple[str, int, str]]:
    found = gaps_table(warehouse.lake).to_pandas()
    own = found[(found["symbol"] == coin) & (found["kind"] == kind)]
    return [
        (str(ts)[:10], n, origin)
        for ts, n, origin in zip(own["ts"], own["n_missing"], own["origin"], strict=True)
    ]


# Fact 6: the end of a candle

HALF_YEAR = (datetime(2022, 10, 1), datetime(2023, 4, 1))


@pytest.fixture(scope="module")
def bitcoin(tmp_path_factory: pytest.TempPathFactory, world: RecordedWorld) -> Warehouse:
    """Half a year of bitcoin from both sources."""
    warehouse = Warehouse(tmp_path_factory.mktemp("bitcoin"))
    warehouse.load_klines(world, NOW, spot("BTC/USDT"), "1d", HALF_YEAR)
    warehouse.load_market_caps(world, NOW, ["bitcoin"], HALF_YEAR)
    warehouse.load_coin_candles(world, NOW, ["bitcoin"], ["1d"], HALF_YEAR)
    return warehouse


def differences(bitcoin: Warehouse, name: str, column: str, days_later: int = 0) -> pd.Series:
    """Distance of the aggregator's price of a day from the exchange's close of it, or of a later day, in percent."""
    exchange = bitcoin.rows("raw/klines").set_index("ts")["close"]
    ours = bitcoin.rows(name).set_index("ts")[column]
    return ((ours / exchange.shift(-days_later) - 1).abs() * 100).dropna()


@pytest.mark.parametrize(
    ("name", "column"), [("raw/coin_ohlc", "close_usd"), ("raw/market_caps", "price_usd")]
)
def test_fact_6_what_is_stamped_day_d_00_00_is_stored_as_day_d_minus_1_and_is_the_exchanges_close_of_it(
    bitcoin: Warehouse, charts: dict[str, bytes], candles: dict[str, bytes], name: str, column: str
) -> None:
    raw = (
        json.loads(candles["bitcoin"]) if name == "raw/coin_ohlc" else json.loads(charts["bitcoin"])["prices"]
    )
    rows = bitcoin.rows(name).set_index("ts")[column]
    told = {day_of(row[0]): row[-1] for row in raw}
    assert len(rows) == (HALF_YEAR[1] - HALF_YEAR[0]).days
    assert rows.to_dict() == {day: told[day] for day in rows.index}
    exchange = {pd.Timestamp(at): float(row[4]) for at, row in wire_rows(BITCOIN_DAYS).items()}
    # Read as the day of its stamp it would be a look-ahead of a day, and many times as far away.
    right = pd.Series([abs(told[day] / exchange[day] - 1) for day in rows.index]).median() * 100
    wrong = pd.Series([abs(told[day] / exchange[day + DAY] - 1) for day in rows.index]).median() * 100
    assert differences(bitcoin, name, column).median() == pytest.approx(right, rel=1e-12)
    assert right < 0.12
    assert wrong > 10 * right
    assert differences(bitcoin, name, column, days_later=1).median() > 10 * right


def test_fact_6_a_day_is_known_after_its_end_and_the_publication_lag(bitcoin: Warehouse) -> None:
    for name in ("raw/coin_ohlc", "raw/market_caps"):
        rows = bitcoin.rows(name)
        assert (rows["known_at"] - rows["ts"] == DAY + timedelta(minutes=45)).all()


def test_fact_6_read_so_the_aggregator_agrees_with_the_exchange_on_every_day(bitcoin: Warehouse) -> None:
    lives = [{"symbol": "BTC/USDT", "coin_id": "bitcoin", "valid_from": None, "valid_to": None}]
    found = reconciliation_table(bitcoin.lake, "1d", lives).to_pandas()
    assert (set(found["pair"]), len(found)) == ({"spot_coingecko"}, 182)
    assert found["agrees"].all()


# Fact 7: defects


@pytest.mark.parametrize(
    ("coin", "window", "n_unknown"),
    [
        # A wrapped asset: no cap on most days, up to the one that ends on 2024-08-14.
        ("weth", (datetime(2024, 8, 1), datetime(2024, 9, 1)), 13),
        ("terra-luna", (datetime(2022, 6, 1), datetime(2022, 7, 1)), 20),
        ("wrapped-beacon-eth", (datetime(2023, 5, 1), datetime(2023, 6, 1)), 17),
    ],
)
def test_fact_7_market_caps_of_0_are_stored_as_unknown_beside_their_price(
    tmp_path: Path,
    world: RecordedWorld,
    charts: dict[str, bytes],
    coin: str,
    window: tuple[datetime, datetime],
    n_unknown: int,
) -> None:
    warehouse = Warehouse(tmp_path)
    warehouse.load_market_caps(world, NOW, [coin], window)
    chart: dict[str, Any] = json.loads(charts[coin])
    told = {
        day_of(stamp): (price, cap or None)
        for (stamp, price), (_, cap) in zip(chart["prices"], chart["market_caps"], strict=True)
        if window[0] <= day_of(stamp) < window[1]
    }
    unknown = [day for day, (_, cap) in told.items() if cap is None]
    assert len(unknown) == n_unknown
    rows = warehouse.rows("raw/market_caps").set_index("ts")
    assert rows["price_usd"].to_dict() == {day: price for day, (price, _) in told.items()}
    assert rows.index[rows["market_cap_usd"].isna()].tolist() == unknown
    known = rows["market_cap_usd"].dropna()
    assert known.to_dict() == {day: cap for day, (_, cap) in told.items() if cap is not None}


def test_fact_7_of_145_coins_14131_market_caps_are_0_or_null_of_wrapped_assets_on_most_days(
    charts: dict[str, bytes],
) -> None:
    caps = {coin: [cap for _, cap in json.loads(chart)["market_caps"]] for coin, chart in charts.items()}
    unknown = {coin: sum(not cap for cap in own) for coin, own in caps.items()}
    assert (len(caps), sum(unknown.values())) == (145, 14_131)
    assert unknown["weth"] / len(caps["weth"]) > 0.9
    assert unknown["binance-peg-dogecoin"] / len(caps["binance-peg-dogecoin"]) > 0.8


def test_fact_7_missing_days_of_a_coin_are_gaps_of_the_source(
    tmp_path: Path, world: RecordedWorld, charts: dict[str, bytes]
) -> None:
    warehouse, window = Warehouse(tmp_path), (datetime(2020, 4, 1), datetime(2020, 7, 1))
    warehouse.load_market_caps(world, NOW, ["bitcoin", "dforce-token"], window)
    days = {day_of(stamp) for stamp, _ in json.loads(charts["dforce-token"])["prices"]}
    missing = [day for day in pd.date_range(*window, inclusive="left") if day not in days]
    found = [gap for gap in gaps(warehouse, "dforce-token", "market_cap") if gap[0] < "2020-07-01"]
    assert {origin for _, _, origin in found} == {"source"}
    assert [day for first, n, _ in found for day in pd.date_range(first, periods=n)] == missing
    assert len(missing) == 56
    assert [gap for gap in gaps(warehouse, "bitcoin", "market_cap") if gap[0] < "2020-07-01"] == []


def test_fact_7_doubled_stamps_at_range_joints_are_stored_once_and_are_no_anomaly(
    tmp_path: Path, world: RecordedWorld, candles: dict[str, bytes]
) -> None:
    raw = json.loads(candles["aave"])
    joints = [str(day_of(stamp))[:10] for stamp, n in Counter(row[0] for row in raw).items() if n > 1]
    assert joints[:3] == ["2021-01-23", "2021-07-22", "2022-01-18"]
    warehouse, window = Warehouse(tmp_path), (datetime(2021, 1, 20), datetime(2021, 1, 30))
    warehouse.load_coin_candles(world, NOW, ["aave"], ["1d", "1h"], window)
    rows = warehouse.rows("raw/coin_ohlc")
    assert not rows.duplicated(["coin_id", "interval", "ts"]).any()
    days = rows[rows["interval"] == "1d"].set_index("ts")
    assert days.index.tolist() == pd.date_range(*window, inclusive="left").tolist()
    joint = days.loc[["2021-01-23"], ["open_usd", "high_usd", "low_usd", "close_usd"]]
    assert joint.to_numpy().tolist() == [next(row[1:] for row in raw if day_of(row[0]) == joint.index[0])]
    hours = rows[rows["interval"] == "1h"].set_index("ts")["close_usd"]
    told = {
        pd.Timestamp(row[0], unit="ms") - pd.Timedelta(hours=1): row[4]
        for row in recorded_json(f"{FOLDER}/ohlc_hourly-aave.json.gz")
    }
    # The hour that ends on 2021-01-29 03:00 is at a joint of the hourly ranges.
    assert (
        Counter(row[0] for row in recorded_json(f"{FOLDER}/ohlc_hourly-aave.json.gz"))[1_611_889_200_000] == 2
    )
    assert hours.to_dict() == {ts: close for ts, close in told.items() if window[0] <= ts < window[1]}
    assert warehouse.anomalies("duplicate").empty


def test_fact_7_a_first_candle_with_all_prices_equal_is_kept_out_and_told(
    tmp_path: Path, world: RecordedWorld, candles: dict[str, bytes]
) -> None:
    first = {coin: json.loads(content)[0] for coin, content in candles.items()}
    flat = {coin for coin, row in first.items() if len(set(row[1:])) == 1}
    assert (len(flat), "bitcoin" in flat, "aave" in flat) == (27, True, False)
    warehouse, window = Warehouse(tmp_path), (datetime(2018, 2, 8), datetime(2018, 2, 18))
    warehouse.load_coin_candles(world, NOW, ["bitcoin"], ["1d"], window)
    told = warehouse.anomalies("flat_candle")
    assert told["ts"].tolist() == [day_of(first["bitcoin"][0])]
    assert set(told["symbol"]) == {"bitcoin"}


def test_fact_7_candles_that_end_before_the_chart_end_as_a_gap_of_the_source(
    tmp_path: Path, world: RecordedWorld, charts: dict[str, bytes], candles: dict[str, bytes]
) -> None:
    last = {
        "chart": {day_of(json.loads(own)["prices"][-1][0]) for own in charts.values()},
        "candles": {day_of(json.loads(own)[-1][0] // DAY_MS * DAY_MS) for own in candles.values()},
    }
    assert last == {"chart": {pd.Timestamp("2025-03-10")}, "candles": {pd.Timestamp("2025-02-18")}}
    warehouse, window = Warehouse(tmp_path), (datetime(2025, 2, 10), datetime(2025, 3, 11))
    warehouse.load_coin_candles(world, NOW, ["aave"], ["1d"], window)
    warehouse.load_market_caps(world, NOW, ["aave"], window)
    assert warehouse.rows("raw/coin_ohlc")["ts"].iloc[-1] == pd.Timestamp("2025-02-18")
    assert warehouse.rows("raw/market_caps")["ts"].iloc[-1] == pd.Timestamp("2025-03-10")
    # The newest days are asked for again, as they may only be late.
    assert gaps(warehouse, "aave", "ohlc") == [("2025-02-19", 18, "source"), ("2025-03-09", 2, "ours")]
    assert gaps(warehouse, "aave", "market_cap") == []
