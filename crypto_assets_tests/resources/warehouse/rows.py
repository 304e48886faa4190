"""Rows of small contracts that the warehouse tests store; no test of its own."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa

from crypto_assets.resources.warehouse.lake import Lake, Piece, Provenance, SeriesCoverage
from crypto_assets.tables import TABLES

KLINES = TABLES["raw/klines"]
SCORES = TABLES["weights/alpha_scores"]
BOOKS = TABLES["raw/order_books"]
BACKTEST = TABLES["reports/portfolio_backtest"]
DAY = "2024-01-01"
MIDNIGHT = datetime(2024, 1, 1)
WINDOW = (MIDNIGHT, MIDNIGHT + timedelta(days=1))
SERIES = "binance|BTC/USDT|trade|1h"


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


def book(minute: float, symbol: str = "BTC/USDT", price: float = 100.0, n_levels: int = 2) -> pa.Table:
    """The bids of one snapshot, so many minutes after midnight."""
    ts = MIDNIGHT + timedelta(minutes=minute)
    rows = [
        {
            "venue": "binance",
            "symbol": symbol,
            "ts": ts,
            "known_at": ts + timedelta(seconds=1),
            "side": "bid",
            "level": level,
            "price": price - level,
            "amount_base": 1.0,
            "last_update_id": int(minute * 10),
            "book_time": None,
        }
        for level in range(n_levels)
    ]
    return pa.Table.from_pylist(rows, schema=BOOKS.arrow_schema())


def books(*minutes: float, symbol: str = "BTC/USDT", price: float = 100.0) -> pa.Table:
    return pa.concat_tables(
        [BOOKS.arrow_schema().empty_table(), *(book(minute, symbol, price) for minute in minutes)]
    )


def hour_key(hour: int) -> str:
    return (MIDNIGHT + timedelta(hours=hour)).strftime("%Y-%m-%d-%H:%M")


def hour_window(hour: int) -> tuple[datetime, datetime]:
    return MIDNIGHT + timedelta(hours=hour), MIDNIGHT + timedelta(hours=hour + 1)


def look_series(symbol: str = "BTC/USDT") -> str:
    return f"binance|{symbol}|order_book|60s"


def merge_books(lake: Lake, hour: int, rows: pa.Table, run_id: str = "run-1") -> Provenance:
    """Merge snapshots into an hour as the collector does, each covering its minute."""
    minutes = {(row["symbol"], row["ts"]) for row in rows.select(["symbol", "ts"]).to_pylist()}
    coverage = [
        SeriesCoverage(look_series(symbol), ((ts, ts + timedelta(minutes=1)),)) for symbol, ts in minutes
    ]
    seen = max((ts for _, ts in minutes), default=hour_window(hour)[0])
    made = Provenance(BOOKS.name, hour_key(hour), run_id=run_id)
    one = Piece(hour_key(hour), rows, tuple(coverage), seen)
    return lake.merge(BOOKS, hour_key(hour), one, made, hour_window(hour), seen)
