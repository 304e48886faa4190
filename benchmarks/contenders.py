"""The contenders of this environment: our clients, a plain ccxt loop, pandas on the archive's files.

Here: how each of them is used as its own documentation shows. Not here: peers with an environment of their own
(``peers``). Run by ``ingest``: ``python -m benchmarks.contenders NAME < task``.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.contest import (
    INTERVAL,
    PAGE_ROWS,
    STEP_MS,
    Columns,
    Contender,
    Task,
    Work,
    compete,
    repointed,
)
from crypto_assets.formats.containers import only_member
from crypto_assets.formats.klines import read_archive_klines
from crypto_assets.intervals import from_ms
from crypto_assets.resources.archive import ArchiveClient, ArchiveFile, kline_files
from crypto_assets.resources.exchange import BinanceClient, Market
from crypto_assets.resources.klines import KlineWindow, page_of
from crypto_assets.resources.sources import RateBudget

#: More than anybody can spend in a minute: what is compared is work, not patience.
_GENEROUS = 1_000_000_000
_WIRE_COLUMNS = [
    "ts",
    "open",
    "high",
    "low",
    "close",
    "volume_base",
    "close_time",
    "volume_quote",
    "n_trades",
]
_WIRE_COLUMNS += ["taker_buy_base", "taker_buy_quote", "ignore"]
_AMOUNTS = ("volume_base", "volume_quote", "taker_buy_base", "taker_buy_quote")


def our_rest(task: Task, work: Work) -> Mapping[str, Columns]:
    """Requests to validated Arrow pages of all 12 columns, under the rate budget."""
    folder = Path(task.folder)
    client = BinanceClient(
        RateBudget(folder, "spot", _GENEROUS), RateBudget(folder, "usdm", _GENEROUS), base_url=task.url
    )
    watermark = client.last_closed(INTERVAL)

    def pages(symbol: str, native: str, end_ms: int) -> list[pa.Table]:
        span = from_ms(task.start_ms), from_ms(end_ms)
        answers = client.klines(Market(symbol, native), "trade", INTERVAL, *span, watermark)
        return [page.rows for page in answers]

    for symbol, native in task.markets.items():
        pages(symbol, native, task.start_ms + STEP_MS)
    with work.counted():
        tables = {symbol: pages(symbol, native, task.end_ms) for symbol, native in task.markets.items()}
    return {symbol: _columns_of(pages) for symbol, pages in tables.items()}


def ccxt_rest(task: Task, work: Work) -> Mapping[str, Columns]:
    """The loop of ccxt's manual: a page, the next one from its last candle on; lists of six numbers."""
    import ccxt

    options = {"fetchMarkets": {"types": ["spot"]}, "fetchCurrencies": False}
    api: Any = ccxt.binance({"enableRateLimit": False, "options": options})
    api.urls["api"] = repointed(api.urls["api"], task.url)
    api.load_markets()

    def candles(symbol: str, end_ms: int) -> list[list[float]]:
        rows: list[list[float]] = []
        since = task.start_ms
        while since < end_ms:
            page = api.fetch_ohlcv(symbol, INTERVAL, since, PAGE_ROWS, {"until": end_ms - 1})
            if not page:
                break
            rows += page
            since = page[-1][0] + STEP_MS
        return rows

    for symbol in task.markets:
        candles(symbol, task.start_ms + STEP_MS)
    with work.counted():
        rows = {symbol: candles(symbol, task.end_ms) for symbol in task.markets}
    return {symbol: _columns_of_rows(candles) for symbol, candles in rows.items()}


def our_archive(task: Task, work: Work) -> Mapping[str, Columns]:
    """Files from the server by ``ArchiveClient``: download, checksum file, SHA-256, every candle validated."""
    budget = RateBudget(Path(task.folder), "archive", _GENEROUS)
    client = ArchiveClient(Path(task.folder) / "downloads", budget, base_url=task.url)

    def pages(symbol: str, native: str, end_ms: int) -> list[pa.Table]:
        span = from_ms(task.start_ms), from_ms(end_ms)
        answers = client.klines(Market(symbol, native), "trade", INTERVAL, *span, _published(task))
        return [answer.page.rows for answer in answers if answer.page is not None]

    for symbol, native in task.markets.items():
        pages(symbol, native, task.start_ms + STEP_MS)
    with work.counted():
        tables = {symbol: pages(symbol, native, task.end_ms) for symbol, native in task.markets.items()}
    return {symbol: _columns_of(pages) for symbol, pages in tables.items()}


def our_files(task: Task, work: Work) -> Mapping[str, Columns]:
    """Files on disk: SHA-256 against the checksum file, unpacked, every candle validated."""

    def page(file: ArchiveFile) -> pa.Table:
        place = Path(task.file_folder) / file.name
        zipped = place.read_bytes()
        stated = place.with_name(f"{file.name}.CHECKSUM").read_text(encoding="ascii").split()[0]
        if hashlib.sha256(zipped).hexdigest() != stated:
            raise ValueError(f"{file.name} does not have the SHA-256 of its checksum file")
        csv = only_member(zipped, f"{place.stem}.csv", 1 << 30)
        window = KlineWindow("trade", INTERVAL, file.start, file.end, _published(task))
        return page_of(read_archive_klines(csv), window).rows

    def files(symbol: str, native: str) -> list[ArchiveFile]:
        span = from_ms(task.start_ms), from_ms(task.end_ms)
        return kline_files(Market(symbol, native), "trade", INTERVAL, *span)

    for symbol, native in task.markets.items():
        page(files(symbol, native)[0])
    with work.counted():
        tables = {
            symbol: [page(file) for file in files(symbol, native)] for symbol, native in task.markets.items()
        }
    return {symbol: _columns_of(pages) for symbol, pages in tables.items()}


def pandas_archive(task: Task, work: Work) -> Mapping[str, Columns]:
    """Files from the server, amounts as floats, nothing verified."""
    return _read_by_pandas(task, work, _from_server(task))


def pandas_exact_archive(task: Task, work: Work) -> Mapping[str, Columns]:
    """Files from the server, in the types of our columns, nothing verified."""
    return _read_by_pandas(task, work, _from_server(task), exact=True)


def pandas_files(task: Task, work: Work) -> Mapping[str, Columns]:
    """Files on disk, amounts as floats, nothing verified."""
    return _read_by_pandas(task, work, _from_disk(task))


def pandas_exact_files(task: Task, work: Work) -> Mapping[str, Columns]:
    """Files on disk, in the types of our columns, nothing verified."""
    return _read_by_pandas(task, work, _from_disk(task), exact=True)


def pandas_arrow_files(task: Task, work: Work) -> Mapping[str, Columns]:
    """Files on disk by pandas' pyarrow engine, amounts as floats, nothing verified."""
    return _read_by_pandas(task, work, _from_disk(task), engine="pyarrow")


def _from_server(task: Task) -> Callable[[str], io.BytesIO]:
    import requests

    session = requests.Session()
    session.trust_env = False
    return lambda path: io.BytesIO(session.get(task.url + path, timeout=60).content)


def _from_disk(task: Task) -> Callable[[str], Path]:
    return lambda path: Path(task.file_folder) / Path(path).name


def _read_by_pandas(
    task: Task, work: Work, place: Callable[[str], Any], *, exact: bool = False, engine: Any = "c"
) -> Mapping[str, Columns]:
    import pandas as pd

    # Floats do not hold amounts of 1e-8 exactly; texts that become decimals do.
    texts: Any = dict.fromkeys(_AMOUNTS, "str") if exact else {}
    decimals = dict.fromkeys(_AMOUNTS, pd.ArrowDtype(pa.decimal128(38, 8))) if exact else {}

    def frame(path: str) -> pd.DataFrame:
        rows = pd.read_csv(
            place(path), compression="zip", header=None, names=_WIRE_COLUMNS, dtype=texts, engine=engine
        )
        for name in ("ts", "close_time"):
            rows[name] = pd.to_datetime(rows[name], unit="ms").astype("datetime64[us]")
        return rows.drop(columns="ignore").astype(decimals)

    for paths in task.files.values():
        frame(paths[0])
    with work.counted():
        frames = {symbol: [frame(path) for path in paths] for symbol, paths in task.files.items()}
    found = {}
    for symbol, parts in frames.items():
        rows = pd.concat(parts)
        opens = rows["ts"].to_numpy().astype("datetime64[ms]").astype(np.int64)
        values = [np.ascontiguousarray(rows[name], np.float64) for name in _WIRE_COLUMNS[1:6]]
        found[symbol] = [opens, *values]
    return found


def _published(task: Task) -> datetime:
    # The exchange's time at which every file of the task is there.
    return from_ms(task.end_ms) + timedelta(days=60)


def _columns_of(pages: Iterable[pa.Table]) -> Columns:
    rows = pa.concat_tables(pages).combine_chunks()
    opens = rows["ts"].to_numpy().astype("datetime64[ms]").astype(np.int64)
    prices = [rows[name].to_numpy() for name in ("open", "high", "low", "close")]
    # Whole units of the eighth decimal (the lower words of 128 bits): divided, they are rounded as parsed texts are.
    volume = rows["volume_base"].chunk(0)
    units = np.frombuffer(volume.buffers()[1], np.int64)[2 * volume.offset :: 2][: len(volume)]
    return [opens, *(np.ascontiguousarray(price) for price in prices), units / 1e8]


def _columns_of_rows(rows: Sequence[Sequence[float]]) -> Columns:
    columns = list(zip(*rows, strict=True)) or [()] * 6
    return [np.array(columns[0], np.int64), *(np.array(column, np.float64) for column in columns[1:6])]


CONTENDERS: Mapping[str, tuple[Contender, Sequence[str]]] = {
    "our_rest": (our_rest, ("pyarrow",)),
    "ccxt_rest": (ccxt_rest, ("ccxt", "requests")),
    "our_archive": (our_archive, ("pyarrow", "requests")),
    "our_files": (our_files, ("pyarrow",)),
    "pandas_archive": (pandas_archive, ("pandas", "numpy", "requests")),
    "pandas_files": (pandas_files, ("pandas", "numpy")),
    "pandas_exact_archive": (pandas_exact_archive, ("pandas", "pyarrow", "requests")),
    "pandas_exact_files": (pandas_exact_files, ("pandas", "pyarrow")),
    "pandas_arrow_files": (pandas_arrow_files, ("pandas", "pyarrow")),
}

if __name__ == "__main__":
    compete(CONTENDERS)
