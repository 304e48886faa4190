"""Stage raw: what exchange and aggregator say, validated and nothing else. Only ``definitions.py`` imports it."""

from collections.abc import Collection
from datetime import datetime, time, timedelta
from functools import partial

import dagster as dg
import pandas as pd

from crypto_assets.partitions import DAILY, DAY, HOURLY, lookback, window_of
from crypto_assets.quant.coins import CATEGORY_KINDS, LOOKBACK_DAYS, kinds_by_name
from crypto_assets.quant.coins import coin_kinds as kinds_of_coins
from crypto_assets.quant.markets import MarketFilters, choose_markets, listings_of
from crypto_assets.quant.order_books import LOOK_BACK, summary
from crypto_assets.quant.raw import map_coins_to_symbols
from crypto_assets.resources.archive import ArchiveResource
from crypto_assets.resources.coingecko import CoinGeckoResource
from crypto_assets.resources.exchange import Exchange, ExchangeResource, MarketType
from crypto_assets.resources.ingest import (
    REREAD,
    SETTLEMENT_LAG,
    Fetch,
    KlineSource,
    Listener,
    Wanted,
    kline_pieces,
    midnight_before,
    sample_pieces,
)
from crypto_assets.resources.ingest_coins import coin_ohlc_pieces, market_cap_pieces
from crypto_assets.resources.order_books import book_hours, book_pieces, summary_pieces
from crypto_assets.resources.snapshots import (
    coin_rows,
    coins_with_caps,
    collected,
    collected_symbols,
    kinds_of,
    known_markets,
    market_rows,
    snapshot_stream,
    universe_rows,
    universe_symbols,
)
from crypto_assets.resources.warehouse import PartitionStream
from crypto_assets.resources.warehouse.io_manager import WarehouseResource
from crypto_assets.settings import Settings
from crypto_assets.tables import TABLES

RANGE = dg.BackfillPolicy.single_run()
Coverage = dict[str, list[tuple[datetime, datetime]]]
#: CoinGecko lists this many coins with market caps; two pages.
LARGEST_COINS = 500


@dg.asset(partitions_def=DAILY, backfill_policy=RANGE, kinds={"exchange"}, pool="exchange")
def symbols(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    exchange: ExchangeResource,
    warehouse: WarehouseResource,
) -> PartitionStream:
    """One row per market of our quote asset and state in which the exchange showed it.

    Source: exchangeInfo, which tells only the present: a row is added when a market looks different from what was
    last seen, or is no longer there. Looks back: none. Empty on every day but the one on which it was asked.
    """
    client = exchange.client()
    now = client.server_time()
    known = warehouse.newest("raw/symbols", by=["venue", "symbol"])
    rows = market_rows(
        client.markets(settings.universe.market_types).to_pandas(),
        known,
        settings.listings,
        venue=settings.venue,
        quote=settings.universe.quote,
        now=now,
    )
    return snapshot_stream(rows, "raw/symbols", window_of(context), now)


@dg.asset(
    partitions_def=DAILY,
    backfill_policy=RANGE,
    kinds={"exchange"},
    pool="exchange",
    deps=[dg.AssetDep(symbols, partition_mapping=lookback(0))],
)
def universe(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    exchange: ExchangeResource,
    warehouse: WarehouseResource,
) -> PartitionStream:
    """One row per market and day on which it was chosen to be collected.

    Source: the states of markets last seen, the settings' filters, and the turnover of the last 24 hours where the
    largest are asked for. A market once chosen stays. Looks back: none. Empty on every day but the one of the choice.
    """
    client = exchange.client()
    now = client.server_time()
    wanted = settings.universe
    filters = MarketFilters(
        quote=wanted.quote,
        include=wanted.symbols,
        ignore=wanted.ignore,
        statuses=wanted.statuses,
        permissions=wanted.permissions,
        contract_types=wanted.contract_types,
        top=wanted.top,
        min_turnover_24h_quote=wanted.min_turnover_24h_quote,
    )
    turnover = client.turnover_24h(["spot"]).to_pandas() if wanted.top else None
    # A second look on the same day chooses as the first one did.
    chosen = warehouse.read("raw/universe", datetime.combine(settings.start, time()), midnight_before(now))
    choice = choose_markets(
        known_markets(warehouse, client, settings), turnover, set(chosen["symbol"]), filters
    )
    context.add_output_metadata({"markets left by each filter": choice.left})
    return snapshot_stream(universe_rows(choice.markets, now), "raw/universe", window_of(context), now)


@dg.asset(kinds={"duckdb"}, deps=[symbols])
def listings(settings: dg.ResourceParam[Settings], warehouse: WarehouseResource) -> pd.DataFrame:
    """One row per market and interval in which its state held, with the time at which each end was known.

    Source: the stored states of markets, and the lives of reused symbols that platform.yaml states for the time before.
    Empty when: no market was ever seen and no life is stated.
    """
    states = warehouse.lake.read(TABLES["raw/symbols"]).to_pandas()
    columns = ["symbol", "listing_id", "valid_from", "valid_to", "known_at", "renamed_to"]
    lives = [listing.model_dump(include=set(columns)) for listing in settings.listings]
    return listings_of(states, pd.DataFrame(lives, columns=columns).assign(venue=settings.venue))


@dg.asset(
    partitions_def=DAILY,
    backfill_policy=RANGE,
    kinds={"exchange"},
    pool="exchange",
    deps=[dg.AssetDep(universe, partition_mapping=lookback(0))],
)
def klines(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    exchange: ExchangeResource,
    archive: ArchiveResource,
    warehouse: WarehouseResource,
    progress: dg.ResourceParam[Listener],
) -> PartitionStream:
    """One row per market, kind of price and closed base interval.

    Source: the exchange's klines and the files of its archive; only what coverage lacks is asked for, in the fewest
    requests. Looks back: none. Empty when: no market of the universe traded that day.
    """
    client, route = exchange.client(), settings.sources.klines
    window = window_of(context)
    symbols = collected_symbols(warehouse, settings)
    markets = collected(symbols, known_markets(warehouse, client, settings), client)
    now = client.server_time()
    files = None if route == "rest" else archive.client(warehouse.lake.ledger)
    wanted = [Wanted(one, kind) for one in markets for kind in kinds_of(one.market.symbol, settings)]
    return PartitionStream(
        kline_pieces(
            KlineSource(client, now, files, archive_only=route == "archive"),
            wanted,
            _covered(context, warehouse, "raw/klines"),
            window,
            interval=settings.base_interval,
            overlap_bars=settings.sources.overlap_bars,
            concurrency=settings.sources.concurrency,
            listener=progress,
        )
    )


@dg.asset(
    partitions_def=DAILY,
    backfill_policy=RANGE,
    kinds={"exchange"},
    pool="exchange",
    deps=[dg.AssetDep(universe, partition_mapping=lookback(0))],
)
def funding_rates(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    exchange: ExchangeResource,
    warehouse: WarehouseResource,
    progress: dg.ResourceParam[Listener],
) -> PartitionStream:
    """One row per perpetual contract and funding settlement.

    Source: the exchange's funding history; only what coverage lacks is asked for. Looks back: none. Empty when: no
    contract is collected, or none settled that day.
    """
    client = exchange.client()
    now = client.server_time()
    return _samples(
        context,
        settings,
        client,
        warehouse,
        progress,
        "raw/funding_rates",
        lambda one, start, end: client.funding_rates(one.market, start, end, now),
        ("perpetual",),
        kind="funding",
        interval="",
        now=now,
        lag=SETTLEMENT_LAG,
    )


@dg.asset(
    partitions_def=DAILY,
    backfill_policy=RANGE,
    kinds={"exchange"},
    pool="exchange",
    deps=[dg.AssetDep(universe, partition_mapping=lookback(0))],
)
def open_interest(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    exchange: ExchangeResource,
    warehouse: WarehouseResource,
    progress: dg.ResourceParam[Listener],
) -> PartitionStream:
    """One row per contract and sample.

    Source: the exchange's open-interest history, of which it keeps only the last days. Looks back: none. Empty when: no
    contract is collected, sampling is switched off, or the day is older than what the exchange keeps.
    """
    client = exchange.client()
    now = client.server_time()
    period = settings.sources.open_interest_period or ""
    return _samples(
        context,
        settings,
        client,
        warehouse,
        progress,
        "raw/open_interest",
        lambda one, start, end: client.open_interest(one.market, period, start, end, now),
        ("perpetual", "delivery") if period else (),
        kind="open_interest",
        interval=period,
        now=now,
        lag=timedelta(),
    )


@dg.asset(partitions_def=HOURLY, backfill_policy=RANGE, kinds={"exchange"}, pool="exchange")
def order_books(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    exchange: ExchangeResource,
    warehouse: WarehouseResource,
) -> PartitionStream:
    """One row per market, snapshot, side and level of the order books that platform.yaml names.

    Source: the exchange's depth, which tells only the present: one look per market and round. Looks back: none. Empty in
    every hour but the running one.
    """
    client = exchange.client()
    window, now = window_of(context), client.server_time()
    chosen = settings.sources.order_books
    markets = (
        collected(chosen.symbols, known_markets(warehouse, client, settings), client)
        if chosen.symbols
        else []
    )
    context.add_output_metadata(book_hours(window, now))
    return PartitionStream(
        book_pieces(
            client,
            [one.market for one in markets],
            warehouse.covered("raw/order_books", *window),
            window,
            n_levels=chosen.levels,
            every=chosen.every,
            now=now,
            n_threads=settings.sources.concurrency,
        )
    )


@dg.asset(
    partitions_def=HOURLY,
    backfill_policy=RANGE,
    kinds={"python"},
    deps=[dg.AssetDep(order_books, partition_mapping=lookback(1))],
)
def order_book_summary(
    context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], warehouse: WarehouseResource
) -> PartitionStream:
    """One row per market and snapshot of its order book: prices, spread, depth, density, imbalance, impact.

    Source: the stored levels; a book is judged against those of the hour before it. Looks back: one hour. Empty when no
    book was seen in the hour; the rows of levels that retention has removed stay.
    """
    chosen = settings.sources.order_books
    summarise = partial(summary, bin_size_bps=chosen.bin_size_bps, asked_levels=chosen.levels)
    return PartitionStream(summary_pieces(warehouse.lake, window_of(context), summarise, look_back=LOOK_BACK))


@dg.asset(partitions_def=DAILY, backfill_policy=RANGE, kinds={"coingecko"}, pool="coingecko")
def coins(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    exchange: ExchangeResource,
    coingecko: CoinGeckoResource,
    warehouse: WarehouseResource,
) -> PartitionStream:
    """One row per large coin and snapshot, with the market of our universe it stands behind.

    Source: coins/markets, which tells only the present; the exchange gives the time. A ticker is shared by many
    coins, so the largest one is taken unless platform.yaml says otherwise. Empty on every day but the day it was asked.
    """
    now = exchange.client().server_time()
    rows = coingecko.client().markets(LARGEST_COINS, now).to_pandas()
    mapping = _coin_map(rows, settings, universe_symbols(warehouse, settings))
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
    progress: dg.ResourceParam[Listener],
) -> PartitionStream:
    """One row per coin and UTC day: price, market cap and volume at the end of the day.

    Source: market_chart/range; a point stamped midnight belongs to the day before and is known 45 minutes later.
    Looks back: none. Empty when: the day is not published yet.
    """
    now = exchange.client().server_time()
    client = coingecko.client()
    markets = universe_symbols(warehouse, settings)
    known = warehouse.newest("raw/coins", by=["coin_id"])
    if known.empty:
        rows = client.markets(LARGEST_COINS, now).to_pandas()
        known = rows.assign(symbol=rows["coin_id"].map(_coin_map(rows, settings, markets)))
    window = window_of(context)
    covered = _covered(context, warehouse, "raw/market_caps")
    coin_ids = coins_with_caps(known, settings, markets)
    return PartitionStream(market_cap_pieces(client, coin_ids, covered, window, now=now, listener=progress))


@dg.asset(
    partitions_def=DAILY,
    backfill_policy=RANGE,
    kinds={"coingecko"},
    pool="coingecko",
    deps=[
        dg.AssetDep(coins, partition_mapping=lookback(0)),
        dg.AssetDep(market_caps, partition_mapping=lookback(LOOKBACK_DAYS)),
    ],
)
def coin_kinds(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    exchange: ExchangeResource,
    coingecko: CoinGeckoResource,
    warehouse: WarehouseResource,
) -> PartitionStream:
    """One row per large coin and day: an asset of its own, or a stable, wrapped, staked, bridged or pegged claim.

    Source: CoinGecko's categories, names, and the prices of the last days, in this order; platform.yaml overrides them.
    Looks back: 60 days of market caps. Empty on every day but the first look of the day on which it was asked.
    """
    now = exchange.client().server_time()
    table, day = TABLES["raw/coin_kinds"], midnight_before(now)
    seen = warehouse.newest("raw/coins", by=["coin_id"])
    rows = table.arrow_schema().empty_table().to_pandas()
    # What was decided today stands: a second look would move the moment at which it was known.
    if not seen.empty and warehouse.read(table.name, day, day + DAY).empty:
        members = coingecko.client().members(CATEGORY_KINDS, now).to_pandas()
        prices = warehouse.read("raw/market_caps", day - LOOKBACK_DAYS * DAY, day + DAY)
        newest = seen[seen["known_at"] == seen["known_at"].max()]
        rows = kinds_of_coins(newest, now, overrides=settings.coin_kinds, members=members, prices=prices)
    return snapshot_stream(rows, table.name, window_of(context), now)


@dg.asset(
    partitions_def=DAILY,
    backfill_policy=RANGE,
    kinds={"coingecko"},
    pool="coingecko",
    deps=[dg.AssetDep(coins, partition_mapping=lookback(0))],
)
def coin_ohlc(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    exchange: ExchangeResource,
    coingecko: CoinGeckoResource,
    warehouse: WarehouseResource,
    progress: dg.ResourceParam[Listener],
) -> PartitionStream:
    """One row per coin behind a market of the universe, interval and closed candle.

    Source: ohlc/range of a paid plan, else the candles of the last days; stamped with their end there, with their start
    here. Looks back: none. Empty when: no interval is asked for in platform.yaml, or the day is not published yet.
    """
    now = exchange.client().server_time()
    known = warehouse.newest("raw/coins", by=["coin_id"])
    coin_ids = coins_with_caps(known, settings, universe_symbols(warehouse, settings))
    return PartitionStream(
        coin_ohlc_pieces(
            coingecko.client(),
            coin_ids,
            settings.sources.coin_ohlc.intervals,
            _covered(context, warehouse, "raw/coin_ohlc"),
            window_of(context),
            now=now,
            listener=progress,
        )
    )


def _samples(
    context: dg.AssetExecutionContext,
    settings: Settings,
    client: Exchange,
    warehouse: WarehouseResource,
    progress: Listener,
    name: str,
    fetch: Fetch,
    market_types: Collection[MarketType],
    *,
    kind: str,
    interval: str,
    now: datetime,
    lag: timedelta,
) -> PartitionStream:
    markets = []
    if market_types:
        symbols = collected_symbols(warehouse, settings)
        markets = collected(symbols, known_markets(warehouse, client, settings), client)
    return PartitionStream(
        sample_pieces(
            fetch,
            TABLES[name],
            [one for one in markets if one.market.market_type in market_types],
            _covered(context, warehouse, name),
            window_of(context),
            venue=settings.venue,
            kind=kind,
            interval=interval,
            now=now,
            lag=lag,
            concurrency=settings.sources.concurrency,
            listener=progress,
        )
    )


def _covered(context: dg.AssetExecutionContext, warehouse: WarehouseResource, name: str) -> Coverage:
    # To read again is to take nothing for covered: what the source restated since then replaces what is stored.
    return {} if REREAD in context.run.tags else warehouse.covered(name, *window_of(context))


def _coin_map(rows: pd.DataFrame, settings: Settings, markets: tuple[str, ...]) -> dict[str, str]:
    bases = {symbol: symbol.split("/")[0] for symbol in markets}
    return map_coins_to_symbols(rows, bases, settings.coins, kinds=dict(kinds_by_name(rows)))
