"""The real clients, pointed at a simulated market: only base addresses differ from live."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import ccxt
from pycoingecko import CoinGeckoAPI

from crypto_assets.intervals import to_ms
from crypto_assets.simulation.server import MarketServer


def exchange_at(market: MarketServer, timeout_ms: int = 10_000) -> Any:
    # ccxt makes its endpoint methods at run time; to a type checker they are objects.
    exchange: Any = ccxt.binance({"enableRateLimit": False, "timeout": timeout_ms})
    exchange.urls["api"] = _repointed(exchange.urls["api"], market.url)
    return exchange


def bybit_at(market: MarketServer, timeout_ms: int = 10_000) -> Any:
    exchange: Any = ccxt.bybit({"enableRateLimit": False, "timeout": timeout_ms})
    exchange.urls["api"] = _repointed(exchange.urls["api"], market.bybit_url)
    return exchange


def coingecko_at(market: MarketServer) -> CoinGeckoAPI:
    client = CoinGeckoAPI(retries=0)
    client.api_base_url = market.coingecko_url
    return client


def at(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> int:
    return to_ms(datetime(year, month, day, hour, minute, second))  # noqa: DTZ001 - naive UTC by house rule


def _repointed(urls: object, base: str) -> object:
    if isinstance(urls, dict):
        return {key: _repointed(value, base) for key, value in urls.items()}
    _, slash, path = str(urls).split("://", 1)[1].partition("/")
    return f"{base}{slash}{path}"
