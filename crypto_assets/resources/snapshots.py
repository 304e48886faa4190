"""Sources that tell only the present: what was seen becomes rows of the day on which it was seen.

Here: rows of ``raw/symbols`` and ``raw/coins`` from the clients' answers, and what follows from them: native names of
markets and the coins whose caps are collected. Not here: histories (``ingest``). Assets of raw, automation and checks
import it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

import pandas as pd
import pyarrow as pa

from crypto_assets.partitions import keys_of
from crypto_assets.resources.exchange import ExchangeClient
from crypto_assets.resources.sources import SourceRefused
from crypto_assets.resources.warehouse import PartitionStream
from crypto_assets.resources.warehouse.lake import Piece
from crypto_assets.schemas import TABLES
from crypto_assets.settings import Settings

_STATE = [
    "exchange_symbol",
    "base",
    "quote",
    "trading_status",
    "spot_allowed",
    "tick_size",
    "lot_size",
    "min_notional",
]


def market_rows(
    markets: pa.Table, known: pd.DataFrame, *, venue: str, quote: str, now: datetime
) -> pd.DataFrame:
    """Markets of one quote asset whose state differs from what was last seen, as rows of raw/symbols."""
    seen = markets.to_pandas().rename(columns={"status": "trading_status"})
    seen = seen[seen["quote"] == quote].assign(venue=venue)
    last = {
        (row["venue"], row["symbol"]): tuple(row[name] for name in _STATE) for row in known.to_dict("records")
    }
    changed = [
        not _same(tuple(row[name] for name in _STATE), last.get((row["venue"], row["symbol"])))
        for row in seen.to_dict("records")
    ]
    moment = pd.Timestamp(now).as_unit("us")
    fresh = seen[changed].assign(valid_from=moment, known_at=moment, ts=moment.floor("D"))
    return fresh[TABLES["raw/symbols"].column_names]


def coin_rows(coins: pd.DataFrame, symbols: Mapping[str, str], now: datetime) -> pd.DataFrame:
    """Answer of coins/markets as rows of raw/coins."""
    moment = pd.Timestamp(now).as_unit("us")
    # Where no coin has a market, pandas would make a column of numbers.
    symbol = coins["coin_id"].map(dict(symbols)).astype(object)
    rows = coins.rename(columns={"volume_usd": "volume_24h_usd"}).assign(
        symbol=symbol, known_at=moment, ts=moment.floor("D")
    )
    return rows[TABLES["raw/coins"].column_names]


def snapshot_stream(
    rows: pd.DataFrame, name: str, window: tuple[datetime, datetime], now: datetime
) -> PartitionStream:
    """The rows in the partition of today, typed empties in the other days of the window."""

    def pieces() -> Iterator[Piece]:
        empty = TABLES[name].arrow_schema().empty_table()
        for key, left, right in keys_of("daily", *window):
            yield Piece(key, rows if left <= now < right else empty, watermark=min(now, right))

    return PartitionStream(pieces())


def native_names(markets: Sequence[str], known: pd.DataFrame, client: ExchangeClient) -> dict[str, str]:
    """Symbol -> the exchange's own name, from what was last seen, else from the exchange.

    A market that was seen once keeps its name: its history is asked for after the exchange has dropped it.

    Raises
    ------
    SourceRefused
        If a market of the universe was never seen and the exchange does not know it.
    """
    names = dict(zip(known["symbol"], known["exchange_symbol"], strict=True))
    if set(markets) - set(names):
        listed = client.symbols()
        names |= dict(zip(*(listed[name].to_pylist() for name in ("symbol", "exchange_symbol")), strict=True))
    unknown = sorted(set(markets) - set(names))
    if unknown:
        raise SourceRefused(
            "exchangeInfo",
            f"no market {', '.join(unknown)} among {len(names)}",
            "correct universe.symbols or universe.quote in platform.yaml",
        )
    return {symbol: names[symbol] for symbol in markets}


def coins_with_caps(known: pd.DataFrame, settings: Settings) -> list[str]:
    """The coins whose market caps are collected: those that stand behind markets of the universe, and declared ones.

    Parameters
    ----------
    known
        The newest row of raw/coins of every coin: ``coin_id``, ``symbol`` (missing: no market of ours).
    settings
        The universe, and the listings whose coins are named there.

    Returns
    -------
    list of str
        CoinGecko's ids, sorted. A coin whose market has left the universe is not among them.
    """
    declared = {listing.coin_id for listing in settings.listings if listing.coin_id}
    mapped = known.loc[known["symbol"].isin(settings.universe.markets), "coin_id"]
    return sorted(declared.union(mapped))


def _same(now: tuple[object, ...], before: tuple[object, ...] | None) -> bool:
    if before is None:
        return False
    return all(a == b or (a != a and b != b) or a is b for a, b in zip(now, before, strict=True))
