"""The contenders that need an environment of their own: python-binance and freqtrade.

Here: how each of them is used as its own documentation shows, moved to the simulated exchange. Not here: that
environment (``ingest`` makes it from peers.txt). Run by ``ingest``: ``python -m benchmarks.peers NAME < task``; nothing
of crypto_assets is imported.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contest import INTERVAL, STEP_MS, Columns, Contender, Task, Work, compete, repointed


def python_binance(task: Task, work: Work) -> Mapping[str, Columns]:
    """``get_historical_klines``: lists of the wire's 12 elements, amounts and prices as texts."""
    from binance.client import Client  # ty: ignore[import-not-found]

    client = Client(ping=False)
    client.API_URL = f"{task.url}/api"
    # It rests for a second after every third request: no processor time, only patience.
    time.sleep = lambda _: None  # ty: ignore[invalid-assignment]
    for native in task.markets.values():
        client.get_historical_klines(native, INTERVAL, task.start_ms, task.start_ms + STEP_MS - 1)
    with work.counted():
        rows = {
            symbol: client.get_historical_klines(native, INTERVAL, task.start_ms, task.end_ms - 1)
            for symbol, native in task.markets.items()
        }
    return {symbol: _columns_of(candles) for symbol, candles in rows.items()}


def freqtrade(task: Task, work: Work) -> Mapping[str, Columns]:
    """What ``freqtrade download-data`` does once the exchange's markets are known: candles into Feather files."""
    import ccxt
    from freqtrade.configuration import TimeRange  # ty: ignore[import-not-found]
    from freqtrade.data.history import refresh_backtest_ohlcv_data  # ty: ignore[import-not-found]
    from freqtrade.data.history.datahandlers import get_datahandler  # ty: ignore[import-not-found]
    from freqtrade.enums import CandleType, RunMode  # ty: ignore[import-not-found]
    from freqtrade.resolvers import ExchangeResolver  # ty: ignore[import-not-found]

    known: Any = ccxt.binance()
    ccxt_config = {
        "enableRateLimit": False,
        "urls": {"api": repointed(known.urls["api"], task.url)},
        "options": {"fetchMarkets": {"types": ["spot"]}, "fetchCurrencies": False},
    }
    config: dict[str, Any] = {
        # Its other way is the exchange's public archive, at an address that cannot be set.
        "exchange": {"name": "binance", "only_from_ccxt": True, "ccxt_config": ccxt_config},
        "runmode": RunMode.UTIL_EXCHANGE,
        "dry_run": True,
        "stake_currency": "",
        "trading_mode": "spot",
        "candle_type_def": CandleType.SPOT,
        "pairs": list(task.markets),
    }
    exchange = ExchangeResolver.load_exchange(config, validate=False)
    exchange.reload_markets(True, load_leverage_tiers=False)

    def download(folder: Path, end_ms: int) -> None:
        folder.mkdir()
        refresh_backtest_ohlcv_data(
            exchange,
            pairs=list(task.markets),
            timeframes=[INTERVAL],
            datadir=folder,
            trading_mode="spot",
            timerange=TimeRange("date", "date", task.start_ms // 1000, end_ms // 1000),
            data_format="feather",
        )

    download(Path(task.folder) / "warm", task.start_ms + 10 * STEP_MS)
    folder = Path(task.folder) / "candles"
    with work.counted():
        # It takes the last candle for an unfinished one and drops it.
        download(folder, task.end_ms + STEP_MS)
    found = {}
    for symbol in task.markets:
        rows = get_datahandler(folder, "feather").ohlcv_load(
            symbol, INTERVAL, CandleType.SPOT, fill_missing=False, drop_incomplete=False
        )
        opens = rows["date"].dt.tz_localize(None).to_numpy().astype("datetime64[ms]").astype("int64")
        asked = (opens >= task.start_ms) & (opens < task.end_ms)
        values = [
            rows[name].to_numpy("float64")[asked] for name in ("open", "high", "low", "close", "volume")
        ]
        found[symbol] = [opens[asked], *values]
    return found


def _columns_of(rows: Sequence[Sequence[Any]]) -> Columns:
    return [
        array("q", (row[0] for row in rows)),
        *(array("d", (float(row[at]) for row in rows)) for at in range(1, 6)),
    ]


CONTENDERS: Mapping[str, tuple[Contender, Sequence[str]]] = {
    "python_binance": (python_binance, ("python-binance", "requests")),
    "freqtrade": (freqtrade, ("freqtrade", "ccxt", "pandas")),
}

if __name__ == "__main__":
    compete(CONTENDERS)
