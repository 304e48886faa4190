"""Stage raw: what exchange and aggregator say, validated and nothing else. Only ``definitions.py`` imports it."""

import dagster as dg
import pandas as pd

from crypto_assets.partitions import DAILY, lookback, window_of
from crypto_assets.quant.raw import map_coins_to_symbols
from crypto_assets.resources.coingecko import CoinGeckoResource
from crypto_assets.resources.exchange import ExchangeResource
from crypto_assets.resources.ingest import kline_pieces, market_cap_pieces
from crypto_assets.resources.snapshots import (
    coin_rows,
    coins_with_caps,
    market_rows,
    native_names,
    snapshot_stream,
)
from crypto_assets.resources.warehouse import PartitionStream
from crypto_assets.resources.warehouse.io_manager import WarehouseResource
from crypto_assets.settings import Settings

RANGE = dg.BackfillPolicy.single_run()
#: CoinGecko lists this many coins with market caps; two pages.
LARGEST_COINS = 500


@dg.asset(partitions_def=DAILY, backfill_policy=RANGE, kinds={"binance"}, pool="exchange")
def symbols(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    exchange: ExchangeResource,
    warehouse: WarehouseResource,
) -> PartitionStream:
    """One row per market of our quote asset and state in which the exchange showed it.

    Source: exchangeInfo, which tells only the present: a row is added when a market looks different from what was
    last seen. Looks back: none. Empty on every day but the one on which it was asked.
    """
    client = exchange.client()
    now = client.server_time()
    known = warehouse.newest("raw/symbols", by=["venue", "symbol"])
    rows = market_rows(client.symbols(), known, venue=settings.venue, quote=settings.universe.quote, now=now)
    return snapshot_stream(rows, "raw/symbols", window_of(context), now)


@dg.asset(
    partitions_def=DAILY,
    backfill_policy=RANGE,
    kinds={"binance"},
    pool="exchange",
    deps=[dg.AssetDep(symbols, partition_mapping=lookback(0))],
)
def klines(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    exchange: ExchangeResource,
    warehouse: WarehouseResource,
) -> PartitionStream:
    """One row per market and closed base interval.

    Source: the exchange's klines; only what coverage lacks is asked for, in the fewest requests. Looks back: none.
    Empty when: no market of the universe traded that day.
    """
    client = exchange.client()
    window = window_of(context)
    known = warehouse.newest("raw/symbols", by=["venue", "symbol"])
    return PartitionStream(
        kline_pieces(
            client,
            native_names(settings.universe.markets, known, client),
            warehouse.covered("raw/klines", *window),
            window,
            venue=settings.venue,
            interval=settings.base_interval,
            watermark=client.last_closed(settings.base_interval),
        )
    )


@dg.asset(partitions_def=DAILY, backfill_policy=RANGE, kinds={"coingecko"}, pool="coingecko")
def coins(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    exchange: ExchangeResource,
    coingecko: CoinGeckoResource,
) -> PartitionStream:
    """One row per large coin and daily snapshot, with the market of our universe it stands behind.

    Source: coins/markets, which tells only the present; the exchange gives the time. A ticker is shared by many
    coins, so the largest one is taken unless platform.yaml says otherwise. Empty on every day but the day it was asked.
    """
    now = exchange.client().server_time()
    rows = coingecko.client().markets(LARGEST_COINS, now).to_pandas()
    mapping = _coin_map(rows, settings)
    return snapshot_stream(coin_rows(rows, mapping, now), "raw/coins", window_of(context), now)


@dg.asset(
    partitions_def=DAILY,
    backfill_policy=RANGE,
    kinds={"coingecko"},
    pool="coingecko",
    deps=[dg.AssetDep(coins, partition_mapping=lookback(0))],
)
def market_caps(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    exchange: ExchangeResource,
    coingecko: CoinGeckoResource,
    warehouse: WarehouseResource,
) -> PartitionStream:
    """One row per coin and UTC day: price, market cap and volume at the end of the day.

    Source: market_chart/range; a point stamped midnight belongs to the day before and is known 45 minutes later.
    Looks back: none. Empty when: the day is not published yet.
    """
    now = exchange.client().server_time()
    client = coingecko.client()
    known = warehouse.newest("raw/coins", by=["coin_id"])
    if known.empty:
        rows = client.markets(LARGEST_COINS, now).to_pandas()
        known = rows.assign(symbol=rows["coin_id"].map(_coin_map(rows, settings)))
    window = window_of(context)
    covered = warehouse.covered("raw/market_caps", *window)
    coin_ids = coins_with_caps(known, settings)
    return PartitionStream(market_cap_pieces(client, coin_ids, covered, window, now=now))


def _coin_map(rows: pd.DataFrame, settings: Settings) -> dict[str, str]:
    bases = {symbol: symbol.split("/")[0] for symbol in settings.universe.markets}
    return map_coins_to_symbols(rows, bases, settings.coins)
