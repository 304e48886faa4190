"""The exchanges: one interface for ingestion, Binance natively, any other venue through ccxt's unified methods.

Here: the public names of the package. Not here: which ranges are missing (coverage), storing, gaps and revisions (the
warehouse), and how requests are paced and repeated (``sources``). Assets, sensors, the CLI and tests import it.
"""

from __future__ import annotations

from crypto_assets.resources.exchange.binance import BinanceClient
from crypto_assets.resources.exchange.client import ExchangeClient
from crypto_assets.resources.exchange.interface import (
    FUNDING_SCHEMA,
    MARKET_SCHEMA,
    MARKET_TYPES,
    OPEN_INTEREST_SCHEMA,
    TURNOVER_SCHEMA,
    Exchange,
    Market,
    MarketType,
    OrderBook,
    Question,
    SeriesPage,
)
from crypto_assets.resources.exchange.resource import ExchangeResource, connect
from crypto_assets.resources.exchange.unified import UnifiedClient
from crypto_assets.resources.klines import KLINE_SCHEMA, KlinePage

__all__ = [
    "FUNDING_SCHEMA",
    "KLINE_SCHEMA",
    "MARKET_SCHEMA",
    "MARKET_TYPES",
    "OPEN_INTEREST_SCHEMA",
    "TURNOVER_SCHEMA",
    "BinanceClient",
    "Exchange",
    "ExchangeClient",
    "ExchangeResource",
    "KlinePage",
    "Market",
    "MarketType",
    "OrderBook",
    "Question",
    "SeriesPage",
    "UnifiedClient",
    "connect",
]
