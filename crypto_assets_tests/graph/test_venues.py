"""Another exchange, through ccxt's unified methods: the same tables, NULL where it does not say, and what follows from them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path

import pandas as pd
import pytest

from crypto_assets.intervals import interval_ms, to_ms
from crypto_assets.schemas import ABSENT
from crypto_assets.settings import Settings, current_settings
from crypto_assets.simulation.bars import CLOSE, HIGH, LOW, OPEN, VOLUME_BASE
from crypto_assets.simulation.server import MarketServer
from crypto_assets_tests.graph.harness import Platform, market_at, step_of

#: The days around the outage of the suite's market.
FIRST, NOW = date(2024, 1, 29), datetime(2024, 2, 2, 9, 20)
#: SRM, which died on 10 February, is no longer listed.
AFTER_A_DEATH = datetime(2024, 2, 12, 9, 20)
SYMBOLS = ("BTC/USDT", "ETH/USDT", "SRM/USDT")
TABLES = ("raw/symbols", "raw/universe", "raw/klines", "raw/listings", "rollups")
TOLD = {"open": OPEN, "high": HIGH, "low": LOW, "close": CLOSE, "volume_base": VOLUME_BASE}
NOT_TOLD = ["volume_quote", "n_trades", "taker_buy_base", "taker_buy_quote", "close_time"]


def second_venue(symbols: tuple[str, ...] = SYMBOLS) -> Settings:
    given = current_settings()
    bases = tuple(symbol.split("/")[0] for symbol in symbols)
    return given.model_copy(
        update={"venue": "bybit", "universe": given.universe.model_copy(update={"symbols": bases})}
    )


def platform_on(market: MarketServer, folder: Path, settings: Settings | None = None) -> Platform:
    return Platform(folder, market.bybit_url, market.coingecko_url, settings or second_venue())


@pytest.fixture(scope="module")
def market() -> Iterator[MarketServer]:
    with market_at(NOW) as server:
        yield server


@pytest.fixture(scope="module")
def platform(market: MarketServer, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    platform = platform_on(market, tmp_path_factory.mktemp("bybit"))
    platform.build(NOW, first=FIRST, only=TABLES)
    return platform


def truth(market: MarketServer, symbol: str, end: datetime = NOW, first: date = FIRST) -> pd.DataFrame:
    """Closed candles of the world, exact in units of 1e-8."""
    start = to_ms(datetime(first.year, first.month, first.day))
    bars = market.world.final_bars(symbol, "1h", start, to_ms(end.replace(minute=0)))
    columns = {name: bars.values[row] for name, row in TOLD.items()}
    return pd.DataFrame({"ts": bars.open_ms, **columns}).astype("int64")


def stored(platform: Platform, symbol: str) -> pd.DataFrame:
    rows = platform.rows("raw/klines")
    rows = rows[rows["symbol"] == symbol].sort_values("ts").reset_index(drop=True)
    scaled = {name: [round(float(value) * 1e8) for value in rows[name]] for name in TOLD}
    return pd.DataFrame({"ts": [to_ms(ts) for ts in rows["ts"]], **scaled}).astype("int64")


@pytest.mark.slow
@pytest.mark.parametrize("symbol", SYMBOLS)
def test_candles_of_a_second_venue_equal_the_truth(
    platform: Platform, market: MarketServer, symbol: str
) -> None:
    expected = truth(market, symbol)
    # There is an outage among them, whose candles do not exist.
    assert 90 < len(expected) < 4 * 24 + 9
    pd.testing.assert_frame_equal(stored(platform, symbol), expected)


@pytest.mark.slow
def test_what_a_second_venue_does_not_tell_is_null_and_the_key_names_the_venue(platform: Platform) -> None:
    rows = platform.rows("raw/klines")
    assert rows[NOT_TOLD].isna().all(axis=None)
    assert rows[list(TOLD)].notna().all(axis=None)
    assert set(rows["kind"]) == {"trade"}
    for name in ("raw/klines", "raw/symbols", "raw/universe", "raw/listings", "rollups/klines"):
        assert set(platform.rows(name)["venue"]) == {"bybit"}, name
    markets = platform.rows("raw/symbols")
    assert set(markets["market_type"]) == {"spot"}
    assert set(SYMBOLS) <= set(markets["symbol"])
    assert set(markets["trading_status"]) == {"TRADING"}
    assert markets[["permissions", "contract_type", "spot_allowed"]].isna().all(axis=None)
    (bitcoin,) = markets[markets["symbol"] == "BTC/USDT"].to_dict("records")
    told = {name: bitcoin[name] for name in ("exchange_symbol", "tick_size", "lot_size", "min_notional")}
    assert told == {"exchange_symbol": "BTCUSDT", "tick_size": 0.01, "lot_size": 0.00001, "min_notional": 5.0}
    assert set(platform.rows("raw/universe")["symbol"]) == set(SYMBOLS)


@pytest.mark.slow
def test_only_the_second_venue_is_asked_and_only_once(
    platform: Platform, market: MarketServer, tmp_path: Path
) -> None:
    assert {request.path.split("/")[1] for request in market.requests} == {"bybit"}
    asked = [request for request in market.requests if request.path == "/bybit/v5/market/kline"]
    assert sorted(request.query["symbol"] for request in asked) == ["BTCUSDT", "ETHUSDT", "SRMUSDT"]
    before, n_asked = platform.partitions(), len(asked)
    platform.build(NOW, first=FIRST, only=TABLES)
    assert market.count("/bybit/v5/market/kline") == n_asked
    assert platform.partitions() == before


@pytest.mark.slow
@pytest.mark.parametrize("interval", ["1h", "4h", "1d"])
def test_candles_of_a_second_venue_are_rolled_up_and_say_whether_they_are_whole(
    platform: Platform, market: MarketServer, interval: str
) -> None:
    rolled = platform.rows("rollups/klines")
    rolled = rolled[(rolled["symbol"] == "BTC/USDT") & (rolled["interval"] == interval)].sort_values("ts")
    length = interval_ms(interval)
    base = truth(market, "BTC/USDT")
    groups = base.groupby(base["ts"] // length * length)
    expected = groups.agg(
        open=("open", "first"),
        high=("high", "max"),
        low=("low", "min"),
        close=("close", "last"),
        volume_base=("volume_base", "sum"),
        n_base_bars=("ts", "size"),
    )
    closed = expected.index + length <= to_ms(NOW)
    expected = expected[closed]
    assert [to_ms(ts) for ts in rolled["ts"]] == expected.index.tolist()
    for name in TOLD:
        assert [round(float(value) * 1e8) for value in rolled[name]] == expected[name].tolist(), name
    assert rolled["n_base_bars"].tolist() == expected["n_base_bars"].tolist()
    whole = (expected["n_base_bars"] == length // interval_ms("1h")).tolist()
    assert rolled["complete"].tolist() == whole
    assert all(whole) == (interval == "1h")
    assert rolled[["volume_quote", "n_trades", "taker_buy_base", "taker_buy_quote"]].isna().all(axis=None)


@pytest.mark.slow
def test_a_market_that_a_second_venue_no_longer_lists_stays_stored_and_stops_no_other(
    platform: Platform, tmp_path: Path
) -> None:
    with market_at(AFTER_A_DEATH) as later:
        shutil.copytree(platform.folder, tmp_path / "advanced", symlinks=True)
        advanced = platform_on(later, tmp_path / "advanced")
        advanced.build(AFTER_A_DEATH, first=NOW.date(), only=["raw/symbols", "raw/universe"])
        newest = advanced.rows("raw/symbols").sort_values("known_at").groupby("symbol").last()
        assert newest.loc["SRM/USDT", "trading_status"] == ABSENT
        # Nobody can be asked any more for what came between the last look and the death.
        advanced.attempt(step_of("raw/klines"), NOW.date().isoformat(), AFTER_A_DEATH.date().isoformat())
        for symbol in ("BTC/USDT", "ETH/USDT"):
            expected = truth(later, symbol, AFTER_A_DEATH)
            pd.testing.assert_frame_equal(stored(advanced, symbol), expected)
        pd.testing.assert_frame_equal(stored(advanced, "SRM/USDT"), stored(platform, "SRM/USDT"))
