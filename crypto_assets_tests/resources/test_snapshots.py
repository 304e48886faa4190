"""Snapshots as rows: what was seen, in the partition of the day on which it was seen, in the contract of its table."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest

from crypto_assets.intervals import to_ms
from crypto_assets.resources.exchange import ExchangeClient
from crypto_assets.resources.snapshots import coin_rows, coins_with_caps, native_names, snapshot_stream
from crypto_assets.resources.sources import RateBudget, SourceRefused
from crypto_assets.resources.warehouse import conform
from crypto_assets.schemas import table_of
from crypto_assets.settings import Listing, current_settings
from crypto_assets.simulation.server import MarketServer
from crypto_assets.simulation.synthetic import SyntheticWorld

NOW = datetime(2024, 1, 2, 13)
COINS = table_of("raw/coins")


def seen(*coin_ids: str) -> pd.DataFrame:
    n = len(coin_ids)
    numbers = {"price_usd": 1.0, "market_cap_usd": 2.0, "volume_usd": 3.0}
    return pd.DataFrame(
        {
            "coin_id": pd.Series(coin_ids, dtype=object),
            "ticker": pd.Series(["x"] * n, dtype=object),
            "name": pd.Series(["X"] * n, dtype=object),
            "market_cap_rank": pd.Series(range(1, n + 1), dtype="int64"),
            **{name: pd.Series([value] * n, dtype=float) for name, value in numbers.items()},
        }
    )


@pytest.mark.parametrize("coin_ids", [("bitcoin", "dust"), ("dust",), ()])
def test_coins_without_a_market_have_no_symbol(coin_ids: tuple[str, ...]) -> None:
    rows = conform(coin_rows(seen(*coin_ids), {"bitcoin": "BTC/USDT"}, NOW), COINS)
    expected = {"bitcoin": "BTC/USDT", "dust": None}
    found = dict(zip(rows["coin_id"].to_pylist(), rows["symbol"].to_pylist(), strict=True))
    assert found == {coin_id: expected[coin_id] for coin_id in coin_ids}


def test_a_snapshot_lies_in_the_day_on_which_it_was_taken() -> None:
    rows = coin_rows(seen("bitcoin"), {}, NOW)
    window = datetime(2024, 1, 1), datetime(2024, 1, 4)
    pieces = {
        piece.partition: conform(piece.rows, COINS)
        for piece in snapshot_stream(rows, COINS.name, window, NOW).pieces
    }
    assert {key: piece.num_rows for key, piece in pieces.items()} == {
        "2024-01-01": 0,
        "2024-01-02": 1,
        "2024-01-03": 0,
    }
    assert pieces["2024-01-02"]["known_at"].to_pylist() == [NOW]


@pytest.fixture(scope="module")
def market() -> Iterator[MarketServer]:
    world = SyntheticWorld(7, to_ms(datetime(2024, 1, 1)), to_ms(datetime(2024, 1, 3)), "1h")
    with MarketServer(world, NOW) as server:
        yield server


@pytest.fixture
def client(market: MarketServer, tmp_path: Path) -> ExchangeClient:
    return ExchangeClient(RateBudget(tmp_path, "binance", 6000), base_url=market.url)


def known_markets(**names: str) -> pd.DataFrame:
    symbols = [name.replace("_", "/") for name in names]
    return pd.DataFrame({"symbol": symbols, "exchange_symbol": list(names.values())}, dtype=object)


def test_a_market_that_the_exchange_has_dropped_keeps_the_name_under_which_it_was_seen(
    client: ExchangeClient,
) -> None:
    assert "GONE/USDT" not in client.symbols()["symbol"].to_pylist()
    known = known_markets(GONE_USDT="GONEUSDT")
    assert native_names(["BTC/USDT", "GONE/USDT"], known, client) == {
        "BTC/USDT": "BTCUSDT",
        "GONE/USDT": "GONEUSDT",
    }


def test_a_market_that_nobody_ever_saw_is_refused_and_named(client: ExchangeClient) -> None:
    with pytest.raises(SourceRefused, match="no market GONE/USDT"):
        native_names(["BTC/USDT", "GONE/USDT"], known_markets(BTC_USDT="BTCUSDT"), client)


def test_known_names_cost_no_request(client: ExchangeClient, market: MarketServer) -> None:
    before = market.count()
    assert native_names(["BTC/USDT"], known_markets(BTC_USDT="X"), client) == {"BTC/USDT": "X"}
    assert market.count() == before


def test_caps_are_collected_for_coins_of_the_universe_and_declared_ones() -> None:
    declared = (Listing(symbol="BTC/USDT", listing_id="BTC/USDT#1", coin_id="old"),)
    settings = current_settings().model_copy(update={"listings": declared})
    coins = {"bitcoin": "BTC/USDT", "gone": "GONE/USDT", "dust": None}
    known = coin_rows(seen(*coins), {name: symbol for name, symbol in coins.items() if symbol}, NOW)
    assert coins_with_caps(known, settings) == ["bitcoin", "old"]
    assert coins_with_caps(known.head(0), settings) == ["old"]
