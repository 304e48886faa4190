"""Guesses from names, each with its limits."""

from __future__ import annotations

from datetime import datetime

import pytest

from crypto_assets.formats.names import FileName, named_by, same_market, symbol_of


@pytest.mark.parametrize(
    ("path", "market", "interval"),
    [
        ("BTCUSDT-1h.csv.gz", "BTCUSDT", "1h"),
        ("BTCUSDT_1m.parquet", "BTCUSDT", "1m"),
        ("BTCUSDT-1m-2021-10-11_21-dirty.csv.gz", "BTCUSDT", "1m"),
        ("ADAEUR-1m-2021-03-24.wire.json.gz", "ADAEUR", "1m"),
        ("1000000MOGUSDT-1d.csv", "1000000MOGUSDT", "1d"),
        ("BTCUSDT-1h.tar.gz/2016-01-01.json", "BTCUSDT", "1h"),
        ("oi_1d.tar.gz/oi_1d/0GUSDT.csv", "0GUSDT", "1d"),
        ("BTCUSDT-fundingRate-2024-01.zip", "BTCUSDT", None),
        ("funding.tar.gz/funding/0GUSDT.csv", "0GUSDT", None),
        ("BTCUSDT-1M-2024-01.zip", "BTCUSDT", "1M"),
        ("BTCUSDT-15m.csv", "BTCUSDT", "15m"),
        ("candles.csv", None, None),
        ("btcusdt-1h.csv", None, None),
        ("BTCUSDT-2021.csv", None, None),
    ],
)
def test_market_and_interval_come_from_the_innermost_name_that_tells_them(
    path: str, market: str | None, interval: str | None
) -> None:
    found = named_by(path)
    assert (found.market, found.interval) == (market, interval)


@pytest.mark.parametrize(
    ("path", "market_type", "kind"),
    [
        ("BTCUSDT-1m-2024-01.zip", None, None),
        ("data/spot/monthly/klines/BTCUSDT/1m/BTCUSDT-1m-2024-01.zip", "spot", "trade"),
        ("futures/um/daily/markPriceKlines/BTCUSDT/1m/BTCUSDT-1m-2024-01-02.zip", "perpetual", "mark"),
        ("futures/um/daily/klines/BTCUSDT_240329/1m/BTCUSDT_240329-1m-2024-01-02.zip", "delivery", "trade"),
        ("BTC_USDT-1m.json", "spot", None),
        ("BTC_USDT_USDT-1h-futures.feather", "perpetual", None),
        ("BTC_USDT_USDT-8h-mark.feather", "perpetual", "mark"),
        ("BTC_USDT_USDT-8h-funding_rate.feather", "perpetual", "funding"),
    ],
)
def test_type_of_market_and_kind_come_from_folders_and_endings(
    path: str, market_type: str | None, kind: str | None
) -> None:
    found = named_by(path)
    assert (found.market_type, found.kind) == (market_type, kind)


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("BTCUSDT-1m-2024-12.zip", datetime(2025, 1, 1)),
        ("BTCUSDT-1m-2024-02-29.csv", datetime(2024, 3, 1)),
        ("BTCUSDT-1m-2024-13.zip", None),
        ("BTCUSDT-1m-2021-07-01_15.csv.gz", None),
        ("BTCUSDT-1m.csv", None),
    ],
)
def test_the_end_of_a_period_is_only_read_from_a_name_as_the_archive_gives_it(
    name: str, end: datetime | None
) -> None:
    assert named_by(name).period_end == end


def test_a_path_that_says_nothing_says_nothing() -> None:
    assert named_by("") == FileName()


@pytest.mark.parametrize(
    ("market", "market_type", "symbol"),
    [
        ("BTCUSDT", "spot", "BTC/USDT"),
        ("BUSDUSDT", "spot", "BUSD/USDT"),
        ("BTC_USDT", "spot", "BTC/USDT"),
        ("BTC-USDT", "perpetual", "BTC/USDT:USDT"),
        ("BTC_USDT_USDT", "perpetual", "BTC/USDT:USDT"),
        ("BTCUSDC", "perpetual", "BTC/USDC:USDC"),
        ("1000PEPEUSDT", "perpetual", "1000PEPE/USDT:USDT"),
    ],
)
def test_a_market_s_name_becomes_a_symbol_of_its_type(market: str, market_type, symbol: str) -> None:
    assert symbol_of(market, market_type) == symbol


def test_what_the_exchange_said_of_a_name_is_asked_first() -> None:
    known = {("USDTUSD", "spot"): "USDT/USD"}
    assert symbol_of("USDTUSD", "spot", known) == "USDT/USD"
    assert symbol_of("USDTUSD", "spot") == "USD/TUSD"


@pytest.mark.parametrize(
    ("market", "market_type"),
    [("BTCXYZ", "spot"), ("BTCUSDT_240329", "perpetual"), ("BTCUSDT", "delivery"), ("A_B_C_D", "spot")],
)
def test_a_name_that_cannot_be_split_asks_for_the_symbol(market: str, market_type) -> None:
    with pytest.raises(ValueError, match="say the symbol, such as BTC/USDT"):
        symbol_of(market, market_type)


def test_a_dated_contract_is_not_the_perpetual_one() -> None:
    assert same_market("BTCUSDT_240329", "BTC/USDT:USDT-240329")
    assert not same_market("BTCUSDT_240329", "BTC/USDT:USDT")
