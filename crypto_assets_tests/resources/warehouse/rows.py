"""Rows of two small contracts that the warehouse tests store; no test of its own."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa

from crypto_assets.resources.warehouse.lake import Piece, Provenance, SeriesCoverage
from crypto_assets.schemas import TABLES

KLINES = TABLES["raw/klines"]
SCORES = TABLES["weights/alpha_scores"]
BACKTEST = TABLES["reports/portfolio_backtest"]
DAY = "2024-01-01"
MIDNIGHT = datetime(2024, 1, 1)
WINDOW = (MIDNIGHT, MIDNIGHT + timedelta(days=1))
SERIES = "binance|BTC/USDT|1h"


def scores(hours: Iterable[int], symbol: str = "BTC/USDT", value: float | None = 0.5) -> pa.Table:
    rows = [
        {
            "symbol": symbol,
            "ts": MIDNIGHT + timedelta(hours=hour),
            "known_at": MIDNIGHT + timedelta(hours=hour + 1),
            "listing_id": f"{symbol}#1",
            "alpha_score": value,
        }
        for hour in hours
    ]
    return pa.Table.from_pylist(rows, schema=SCORES.arrow_schema())


def kline(hour: int, symbol: str = "BTC/USDT", close: float = 100.0) -> dict[str, Any]:
    start = MIDNIGHT + timedelta(hours=hour)
    return {
        "venue": "binance",
        "symbol": symbol,
        "kind": "trade",
        "interval": "1h",
        "ts": start,
        "known_at": start + timedelta(hours=1),
        "open": 100.0,
        "high": max(100.0, close),
        "low": min(100.0, close),
        "close": close,
        "volume_base": Decimal("1.50000000"),
        "volume_quote": Decimal("150.00000000"),
        "n_trades": 3,
        "taker_buy_base": None,
        "taker_buy_quote": None,
        "close_time": start + timedelta(minutes=59, seconds=59, milliseconds=999),
    }


def klines(hours: Iterable[int], symbol: str = "BTC/USDT", close: float = 100.0) -> pa.Table:
    return pa.Table.from_pylist([kline(hour, symbol, close) for hour in hours], schema=KLINES.arrow_schema())


def hours(first: int, last: int, series: str = SERIES) -> SeriesCoverage:
    return SeriesCoverage(series, ((MIDNIGHT + timedelta(hours=first), MIDNIGHT + timedelta(hours=last)),))


def piece(rows: pa.Table, *coverage: SeriesCoverage, watermark: datetime | None = None) -> Piece:
    return Piece(DAY, rows, coverage, watermark)


def provenance(table: str = KLINES.name, partition: str = DAY, run_id: str = "run-1") -> Provenance:
    return Provenance(table, partition, code_version="1", inputs={"x/y|d": "h"}, run_id=run_id)
