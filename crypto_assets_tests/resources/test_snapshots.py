"""Snapshots as rows: what was seen, in the partition of the day on which it was seen, in the contract of its table."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pyarrow as pa
import pytest

from crypto_assets.quant.markets import MarketFilters, choose_markets
from crypto_assets.resources.exchange import MARKET_SCHEMA, Exchange, Market
from crypto_assets.resources.snapshots import (
    coin_rows,
    coins_with_caps,
    collected,
    collected_symbols,
    kline_series,
    market_rows,
    snapshot_stream,
    universe_rows,
    universe_symbols,
)
from crypto_assets.resources.sources import SourceRefused
from crypto_assets.resources.warehouse import conform
from crypto_assets.resources.warehouse.io_manager import WarehouseResource, to_pandas
from crypto_assets.resources.warehouse.lake import Provenance
from crypto_assets.settings import Listing, Settings, current_settings
from crypto_assets.tables import table_of
from crypto_assets_tests.resources.stub_exchange import StubExchange

NOW = datetime(2024, 1, 2, 13)
SYMBOLS = table_of("raw/symbols")
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


def listed(symbol: str, **given: Any) -> dict[str, Any]:
    base, _, rest = symbol.partition("/")
    quote, _, settle = rest.partition(":")
    return {
        "symbol": symbol,
        "exchange_symbol": base + quote,
        "market_type": "perpetual" if settle else "spot",
        "base": base,
        "quote": quote,
        "trading_status": "TRADING",
        "tick_size": 0.01,
        **given,
    }


def shown(*markets: dict[str, Any]) -> pd.DataFrame:
    return pa.Table.from_pylist(list(markets), schema=MARKET_SCHEMA).to_pandas()


def stored(rows: pd.DataFrame, before: pd.DataFrame | None = None) -> pd.DataFrame:
    """The newest state of every market after a snapshot, through the contract."""
    fresh = to_pandas(conform(rows, SYMBOLS))
    every = fresh if before is None else pd.concat([before, fresh])
    return every.sort_values("known_at").drop_duplicates(["venue", "symbol"], keep="last")


def look(markets: pd.DataFrame, known: pd.DataFrame, now: datetime, *listings: Listing) -> pd.DataFrame:
    return market_rows(markets, known, listings, venue="binance", quote="USDT", now=now)


def stub(*markets: dict[str, Any]) -> Exchange:
    """An exchange that names some markets and answers nothing else."""
    return cast(Exchange, StubExchange({}, listed=list(markets)))


NOTHING = to_pandas(SYMBOLS.arrow_schema().empty_table())
LATER = NOW + timedelta(hours=5)


def test_only_markets_that_look_different_get_a_row() -> None:
    first = look(shown(listed("A/USDT"), listed("B/USDT"), listed("C/BTC")), NOTHING, NOW)
    assert first["symbol"].tolist() == ["A/USDT", "B/USDT"]
    known = stored(first)
    assert look(shown(listed("A/USDT"), listed("B/USDT")), known, LATER).empty
    changed = look(shown(listed("A/USDT", tick_size=0.1), listed("B/USDT")), known, LATER)
    assert changed[["symbol", "tick_size"]].to_numpy().tolist() == [["A/USDT", 0.1]]
    assert changed["valid_from"].tolist() == [pd.Timestamp(LATER)]


def test_a_market_that_is_no_longer_named_is_absent_once() -> None:
    known = stored(look(shown(listed("A/USDT"), listed("B/USDT")), NOTHING, NOW))
    gone = look(shown(listed("A/USDT")), known, LATER)
    assert gone[["symbol", "trading_status", "exchange_symbol"]].to_numpy().tolist() == [
        ["B/USDT", "ABSENT", "BUSDT"]
    ]
    known = stored(gone, known)
    assert look(shown(listed("A/USDT")), known, LATER).empty
    back = look(shown(listed("A/USDT"), listed("B/USDT")), known, LATER)
    # A pause is no proof of another coin.
    assert back[["symbol", "trading_status", "listing_id"]].to_numpy().tolist() == [
        ["B/USDT", "TRADING", "B/USDT#1"]
    ]


def test_a_later_listing_time_begins_another_life() -> None:
    contract = "A/USDT:USDT"
    known = stored(look(shown(listed(contract, listed_at=NOW - timedelta(days=9))), NOTHING, NOW))
    assert known["listing_id"].tolist() == [f"{contract}#1"]
    again = look(shown(listed(contract, listed_at=NOW + timedelta(hours=1))), known, LATER)
    assert again["listing_id"].tolist() == [f"{contract}#2"]


def test_the_settings_know_which_life_it_is() -> None:
    first = Listing(symbol="A/USDT", listing_id="A/USDT#1", valid_to=NOW)
    second = Listing(symbol="A/USDT", listing_id="A/USDT#2", valid_from=NOW)
    known = stored(look(shown(listed("A/USDT")), NOTHING, NOW - timedelta(days=1), first, second))
    assert known["listing_id"].tolist() == ["A/USDT#1"]
    assert look(shown(listed("A/USDT")), known, LATER, first, second)["listing_id"].tolist() == ["A/USDT#2"]


def test_a_market_that_the_exchange_has_dropped_keeps_the_name_under_which_it_was_seen() -> None:
    known = stored(look(shown(listed("GONE/USDT", exchange_symbol="GONEX")), NOTHING, NOW))
    known = stored(look(shown(), known, LATER), known)
    exchange = stub(listed("BTC/USDT"))
    found = collected(["BTC/USDT", "GONE/USDT"], known, exchange)
    assert [one.market for one in found] == [
        Market("BTC/USDT", "BTCUSDT", "spot"),
        Market("GONE/USDT", "GONEX", "spot"),
    ]
    assert [one.gone_at for one in found] == [None, LATER]


def test_a_market_that_nobody_ever_saw_is_refused_and_named() -> None:
    exchange = stub(listed("BTC/USDT"))
    with pytest.raises(SourceRefused, match="no market GONE/USDT"):
        collected(["BTC/USDT", "GONE/USDT"], NOTHING, exchange)


def test_known_markets_cost_no_request() -> None:
    known = stored(look(shown(listed("BTC/USDT")), NOTHING, NOW))
    unasked = StubExchange({})
    assert len(collected(["BTC/USDT"], known, cast(Exchange, unasked))) == 1
    assert unasked.asked == []


def warehouse_with(folder: Path, **tables: pd.DataFrame) -> WarehouseResource:
    warehouse = WarehouseResource(folder=str(folder))
    for name, rows in tables.items():
        store(warehouse, name, rows, NOW)
    return warehouse


def store(warehouse: WarehouseResource, name: str, rows: pd.DataFrame, moment: datetime) -> None:
    table = table_of(f"raw/{name}")
    start = moment.replace(hour=0)
    key = start.date().isoformat()
    warehouse.lake.replace(table, key, rows, Provenance(table.name, key), (start, start + timedelta(days=1)))


def settings_with(**universe: Any) -> Settings:
    settings = current_settings()
    return settings.model_copy(update={"universe": settings.universe.model_copy(update=universe)})


def test_what_was_chosen_by_size_is_collected_with_what_is_named(tmp_path: Path) -> None:
    choice = pd.DataFrame({"venue": "binance", "symbol": ["BIG/USDT", "BTC/USDT:USDT", "OUT/USDT"]})
    rows = universe_rows(choice.assign(chosen_by="top", turnover_24h_quote=1.0, turnover_24h_rank=1), NOW)
    warehouse = warehouse_with(tmp_path, universe=rows)
    settings = settings_with(symbols=("BTC",), top=3, ignore=("OUT",))
    assert collected_symbols(warehouse, settings) == ("BIG/USDT", "BTC/USDT", "BTC/USDT:USDT")
    assert universe_symbols(warehouse, settings) == ("BIG/USDT", "BTC/USDT")
    named_only = settings_with(symbols=("BTC",), top=0, contract_types=())
    assert collected_symbols(warehouse, named_only) == ("BTC/USDT",)


def test_what_an_earlier_look_chose_is_collected_though_the_newest_one_lacks_it(tmp_path: Path) -> None:
    states = shown(listed("A/USDT"), listed("A/USDT:USDT", contract_type="PERPETUAL"))
    states = states.assign(venue="binance")
    warehouse = WarehouseResource(folder=str(tmp_path))
    before: set[str] = set()
    for moment, types in ((NOW, ("PERPETUAL",)), (NOW + timedelta(days=1), ("CURRENT_QUARTER",))):
        filters = MarketFilters("USDT", include=("A",), contract_types=types)
        chosen = choose_markets(states, None, before, filters).markets
        before |= set(chosen["symbol"])
        store(warehouse, "universe", universe_rows(chosen, moment), moment)
    assert chosen["symbol"].tolist() == ["A/USDT"]
    settings = settings_with(symbols=("A",), top=0, contract_types=("CURRENT_QUARTER",))
    assert collected_symbols(warehouse, settings) == ("A/USDT", "A/USDT:USDT")


def test_the_series_of_a_market_end_where_it_is_gone(tmp_path: Path) -> None:
    known = stored(look(shown(listed("ETH/USDT")), NOTHING, NOW))
    gone = look(shown(), known, LATER)
    warehouse = warehouse_with(tmp_path, symbols=gone)
    settings = settings_with(symbols=("BTC", "ETH"), top=0, contract_types=())
    base = settings.base_interval
    assert kline_series(warehouse, settings) == {
        f"binance|BTC/USDT|trade|{base}": None,
        f"binance|ETH/USDT|trade|{base}": LATER,
    }


def test_caps_are_collected_for_coins_of_the_universe_and_declared_ones() -> None:
    declared = (Listing(symbol="BTC/USDT", listing_id="BTC/USDT#1", coin_id="old"),)
    settings = current_settings().model_copy(update={"listings": declared})
    coins = {"bitcoin": "BTC/USDT", "gone": "GONE/USDT", "dust": None}
    known = coin_rows(seen(*coins), {name: symbol for name, symbol in coins.items() if symbol}, NOW)
    assert coins_with_caps(known, settings) == ["bitcoin", "old"]
    assert coins_with_caps(known.head(0), settings) == ["old"]
