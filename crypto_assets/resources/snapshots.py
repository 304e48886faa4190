"""Sources that tell only the present: what was seen becomes rows of the day on which it was seen.

Here: rows of ``raw/symbols``, ``raw/universe`` and ``raw/coins`` from the clients' answers, and what follows from the
stored ones: the markets that are collected and the coins whose caps are. Not here: histories (``ingest``) and the choice
of markets (``quant.markets``). Assets of raw, automation and checks import it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd

from crypto_assets.partitions import keys_of
from crypto_assets.resources.exchange import MARKET_TYPES, Exchange, Market
from crypto_assets.resources.klines import KlineKind
from crypto_assets.resources.sources import SourceRefused
from crypto_assets.resources.warehouse import PartitionStream
from crypto_assets.resources.warehouse.io_manager import WarehouseResource
from crypto_assets.resources.warehouse.lake import Piece
from crypto_assets.schemas import ABSENT, series_name
from crypto_assets.settings import Listing, Settings
from crypto_assets.tables import TABLES

_NOT_STATE = {"venue", "symbol", "valid_from", "ts", "known_at", "listing_id"}
_STATE = [name for name in TABLES["raw/symbols"].column_names if name not in _NOT_STATE]


@dataclass(frozen=True)
class Collected:
    """A market that is collected, and since when the exchange no longer has it (None: it has)."""

    market: Market
    gone_at: datetime | None = None


def market_rows(
    markets: pd.DataFrame,
    known: pd.DataFrame,
    listings: Sequence[Listing],
    *,
    venue: str,
    quote: str,
    now: datetime,
) -> pd.DataFrame:
    """Markets of one quote asset whose state differs from what was last seen, as rows of raw/symbols.

    Parameters
    ----------
    markets
        Columns of ``MARKET_SCHEMA``, every market that the exchange names now.
    known
        The newest stored row of every market.
    listings
        Lives of reused symbols that the settings state.
    venue, quote
        The exchange, and the quote asset of the markets that are kept.
    now
        The exchange's time of the answer.

    Notes
    -----
    A market that is no longer named gets the status ``ABSENT``. It begins another life where the settings say so, or
    where the exchange tells a later listing time than before; a pause alone is no proof of one.
    """
    moment = pd.Timestamp(now).as_unit("us")
    last = {row["symbol"]: row for row in known.to_dict("records") if row["venue"] == venue}
    seen = {row["symbol"]: row for row in markets[markets["quote"] == quote].to_dict("records")}
    for symbol, row in last.items():
        if symbol not in seen:
            seen[symbol] = {**row, "trading_status": ABSENT}
    rows = []
    for symbol, row in seen.items():
        before = last.get(symbol)
        listing = _listing_of(symbol, row, before, listings, now)
        if before is None or listing != before["listing_id"] or not _same(row, before):
            rows.append({**row, "venue": venue, "listing_id": listing})
    table = TABLES["raw/symbols"]
    fresh = pd.DataFrame(rows, columns=table.column_names).astype(object)
    return fresh.assign(valid_from=moment, known_at=moment, ts=moment.floor("D"))


def universe_rows(chosen: pd.DataFrame, now: datetime) -> pd.DataFrame:
    """Rows of raw/universe from a choice of markets."""
    moment = pd.Timestamp(now).as_unit("us")
    return chosen.assign(known_at=moment, ts=moment.floor("D"))[TABLES["raw/universe"].column_names]


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
            here = rows if left <= now < right else empty
            yield Piece(key, here, watermark=min(now, right), seen_at=now)

    return PartitionStream(pieces())


def known_markets(warehouse: WarehouseResource, exchange: Exchange, settings: Settings) -> pd.DataFrame:
    """The newest state of every market: what was last seen, and what only the exchange knows yet.

    The exchange is asked only where nothing was seen before.
    """
    known = warehouse.newest("raw/symbols", by=["venue", "symbol"])
    known = known[known["venue"] == exchange.venue]
    if known.empty:
        listed = exchange.markets(settings.universe.market_types).to_pandas()
        known = listed.assign(venue=exchange.venue)
    return known


def universe_symbols(warehouse: WarehouseResource, settings: Settings) -> tuple[str, ...]:
    """The spot markets of the universe, sorted: those that the settings name, and those that were ever chosen by size."""
    return tuple(symbol for symbol in collected_symbols(warehouse, settings) if ":" not in symbol)


def collected_symbols(warehouse: WarehouseResource, settings: Settings) -> tuple[str, ...]:
    """Every market that is collected, contracts included, sorted."""
    named = set(settings.universe.markets)
    if settings.universe.top or settings.universe.contract_types:
        # All looks, not the newest: a choice by other contract types or another quote drops what was chosen before.
        chosen = warehouse.newest("raw/universe", by=["venue", "symbol"])
        chosen = chosen[chosen["venue"] == settings.venue]
        # An ignored coin leaves at once, however it came in.
        base = chosen["symbol"].str.split("/").str[0]
        named |= set(chosen.loc[~base.isin(settings.universe.ignore), "symbol"])
    return tuple(sorted(named))


def kline_series(warehouse: WarehouseResource, settings: Settings) -> dict[str, datetime | None]:
    """Names of the series of candles that are collected -> since when their market is gone (None: it is not).

    From what is stored and set alone; no source is asked.
    """
    symbols = collected_symbols(warehouse, settings)
    known = warehouse.newest("raw/symbols", by=["venue", "symbol"])
    absent = known[(known["trading_status"] == ABSENT) & (known["venue"] == settings.venue)]
    gone = {
        symbol: at.to_pydatetime() for symbol, at in zip(absent["symbol"], absent["valid_from"], strict=True)
    }
    return {
        series_name(settings.venue, symbol, kind, settings.base_interval): gone.get(symbol)
        for symbol in symbols
        for kind in kinds_of(symbol, settings)
    }


def kinds_of(symbol: str, settings: Settings) -> tuple[KlineKind, ...]:
    """Kinds of candles that are collected of a market: trades, of contracts what the settings name."""
    return settings.sources.futures_kinds if ":" in symbol else ("trade",)


def collected(symbols: Sequence[str], known: pd.DataFrame, exchange: Exchange) -> list[Collected]:
    """The markets of these symbols, by the exchange's own names.

    A market that was seen once keeps its name: its history is asked for after the exchange has dropped it.

    Parameters
    ----------
    symbols
        What is collected.
    known
        Newest states of markets, see ``known_markets``.
    exchange
        Asked for its markets if a symbol is not among the known ones.

    Raises
    ------
    SourceRefused
        If a market was never seen and the exchange does not know it.
    """
    states = {row["symbol"]: row for row in known.to_dict("records")}
    if set(symbols) - set(states):
        types = MARKET_TYPES if any(":" in symbol for symbol in symbols) else ("spot",)
        listed = exchange.markets(types).to_pandas().to_dict("records")
        states = {row["symbol"]: row for row in listed} | states
    unknown = sorted(set(symbols) - set(states))
    if unknown:
        raise SourceRefused(
            f"{exchange.venue} markets",
            f"no market {', '.join(unknown)} among {len(states)}",
            "correct universe.symbols or universe.quote in platform.yaml",
        )
    return [_collected(states[symbol]) for symbol in sorted(symbols)]


def coins_with_caps(
    known: pd.DataFrame, settings: Settings, symbols: Sequence[str] | None = None
) -> list[str]:
    """The coins whose market caps are collected: those that stand behind markets of the universe, and declared ones.

    Parameters
    ----------
    known
        The newest row of raw/coins of every coin: ``coin_id``, ``symbol`` (missing: no market of ours).
    settings
        The listings whose coins are named there, and the universe where no symbols are given.
    symbols
        The spot markets of the universe.

    Returns
    -------
    list of str
        CoinGecko's ids, sorted. A coin whose market has left the universe is not among them.
    """
    declared = {listing.coin_id for listing in settings.listings if listing.coin_id}
    markets = settings.universe.markets if symbols is None else symbols
    mapped = known.loc[known["symbol"].isin(list(markets)), "coin_id"]
    return sorted(declared.union(mapped))


def _collected(state: Mapping[Hashable, Any]) -> Collected:
    gone = state["valid_from"].to_pydatetime() if state["trading_status"] == ABSENT else None
    return Collected(Market(state["symbol"], state["exchange_symbol"], state["market_type"]), gone)


def _listing_of(
    symbol: str,
    row: Mapping[Hashable, Any],
    before: Mapping[Hashable, Any] | None,
    listings: Sequence[Listing],
    now: datetime,
) -> str:
    for listing in listings:
        start, end = listing.span
        if listing.symbol == symbol and start <= now < end:
            return listing.listing_id
    if before is None:
        return f"{symbol}#1"
    was, told = before["listed_at"], row["listed_at"]
    if pd.notna(was) and pd.notna(told) and told > was:
        return f"{symbol}#{int(before['listing_id'].rsplit('#', 1)[1]) + 1}"
    return before["listing_id"]


def _same(row: Mapping[Hashable, Any], before: Mapping[Hashable, Any]) -> bool:
    return all(row[name] == before[name] or (pd.isna(row[name]) and pd.isna(before[name])) for name in _STATE)
