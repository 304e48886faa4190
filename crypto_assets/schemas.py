"""The contract of every table: columns, types, units, meaning, key, clock, write mode and known_at rule.

Here: what a table is. Not here: how it is stored (``resources/warehouse``) or made (``assets``, ``dbt_features``).
The I/O manager conforms frames to it, the checks and the data dictionary are generated from it; everybody may import it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa

Clock = Literal["hourly", "daily", "weekly", "none"]
Write = Literal["replace", "merge"]

#: DuckDB type -> Arrow type; these are all the types a contract may use.
ARROW_TYPES: dict[str, pa.DataType] = {
    "VARCHAR": pa.string(),
    "DOUBLE": pa.float64(),
    "BIGINT": pa.int64(),
    "INTEGER": pa.int32(),
    "BOOLEAN": pa.bool_(),
    "TIMESTAMP": pa.timestamp("us"),
    "DECIMAL(38,8)": pa.decimal128(38, 8),
}


#: ``trading_status`` of a market that the exchange no longer names.
ABSENT = "ABSENT"


def series_name(venue: str, symbol: str, kind: str, interval: str = "") -> str:
    """Name of one series of a source, as coverage knows it.

    Examples
    --------
    >>> series_name("binance", "BTC/USDT:USDT", "mark", "1m")
    'binance|BTC/USDT:USDT|mark|1m'
    """
    return f"{venue}|{symbol}|{kind}|{interval}"


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes
    ----------
    name, type
        Name and DuckDB type; the unit is in the name or the meaning.
    required
        Whether it must be present.
    tags
        What else is told of it: how a feature or label was declared.
    """

    name: str
    type: str
    meaning: str
    required: bool = False
    tags: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Table:
    """The contract of one table.

    Attributes
    ----------
    name
        ``stage/asset``; the stage is also asset group, key prefix and DuckDB schema.
    columns
        In storage order.
    key
        Columns that identify a row inside the whole table; never NULL; rows are stored sorted by it.
    clock
        ``hourly``, ``daily`` and ``weekly`` tables have one Parquet file per partition, ``none`` one file in all.
    time_column
        The column that assigns a row to its partition.
    known_at
        The rule in words; the column itself is ``known_at``.
    observed
        True where the source gives only the present state, so that a rebuild cannot repeat what was seen before.
    decided_later
        Columns that are NULL until ``known_at`` (labels): they may go from NULL to a value once.
    version
        Of a declared table: hash of its declaration. Another one has files of its own, so that the rows of an older
        declaration are neither lost nor mixed with the present one's.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    clock: Clock
    write: Write
    known_at: str
    time_column: str = "ts"
    observed: bool = False
    decided_later: tuple[str, ...] = field(default=())
    version: str = ""

    @property
    def stage(self) -> str:
        """First part of the name."""
        return self.name.split("/")[0]

    @property
    def table(self) -> str:
        """Second part of the name."""
        return self.name.split("/")[1]

    @property
    def column_names(self) -> list[str]:
        """Column names in storage order."""
        return [column.name for column in self.columns]

    def arrow_schema(self) -> pa.Schema:
        """Arrow schema in storage order, without metadata."""
        return pa.schema([pa.field(column.name, ARROW_TYPES[column.type]) for column in self.columns])


def _c(name: str, type_: str, meaning: str) -> Column:
    return Column(name, type_, meaning)


def _r(name: str, type_: str, meaning: str) -> Column:
    return Column(name, type_, meaning, required=True)


_VENUE = _r("venue", "VARCHAR", "exchange, ccxt name")
_SYMBOL = _r("symbol", "VARCHAR", "BASE/QUOTE")
_LISTING = _r("listing_id", "VARCHAR", "one life of a symbol: SYMBOL#n; windows never cross it")
_TS = _r("ts", "TIMESTAMP", "start of the interval, UTC")
_KNOWN_AT = _r("known_at", "TIMESTAMP", "when the row could first be known, UTC")
_WEEK = _r("week", "TIMESTAMP", "Monday 00:00 UTC that opens the week the fit applies to")
_DECISION = _r("decision_at", "TIMESTAMP", "moment of the decision, UTC; reads only rows known by then")
_STATUS = _r("status", "VARCHAR", "ok, or why the row is degraded")
_OHLC = (
    _c("open", "DOUBLE", "first price, quote units"),
    _c("high", "DOUBLE", "highest price, quote units"),
    _c("low", "DOUBLE", "lowest price, quote units"),
    _c("close", "DOUBLE", "last price, quote units"),
)
_EXACT_VOLUMES = (
    _c("volume_base", "DECIMAL(38,8)", "traded amount, base units, exact"),
    _c("volume_quote", "DECIMAL(38,8)", "traded value, quote units, exact; NULL where the source lacks it"),
    _c("n_trades", "BIGINT", "number of trades; NULL where the source lacks it"),
    _c(
        "taker_buy_base",
        "DECIMAL(38,8)",
        "amount bought by takers, base units; NULL where the source lacks it",
    ),
    _c(
        "taker_buy_quote",
        "DECIMAL(38,8)",
        "value bought by takers, quote units; NULL where the source lacks it",
    ),
)

_FROM_BASE_BARS = (
    _r("n_base_bars", "BIGINT", "base bars inside"),
    _r("complete", "BOOLEAN", "false: base bars are missing in a finished bar"),
)
_FUTURES = (
    *(
        _c(
            f"futures_{column.name}",
            "DOUBLE",
            f"{column.meaning}, of the perpetual contract BASE/QUOTE:QUOTE",
        )
        for column in _OHLC
    ),
    _c("futures_volume_base", "DOUBLE", "traded amount of the contract, base units"),
    _c(
        "futures_turnover_quote",
        "DOUBLE",
        "traded value of the contract, quote units; base volume x close where the source lacks it",
    ),
    _c("futures_n_trades", "BIGINT", "number of trades of the contract"),
    _c("futures_taker_buy_base", "DOUBLE", "amount of the contract bought by takers, base units"),
    _c("futures_taker_buy_quote", "DOUBLE", "value of the contract bought by takers, quote units"),
)
#: What the raster takes over from a book's summary, see ``raw/order_book_summary``.
_BOOK_SUMMARY = (
    _c("mid", "DOUBLE", "middle of both, quote units"),
    _c("spread_bps", "DOUBLE", "best ask over best bid, share of the middle; below 0 where crossed"),
    _c("gap_quote", "DOUBLE", "best ask less best bid, at least 0"),
)
_BOOK_AMOUNTS = (
    *(
        _c(
            f"{side}_density_{n}_bins_base",
            "DOUBLE",
            f"mean amount in the {n} price bins next to the best {side}; NULL beyond the last level",
        )
        for side in ("bid", "ask")
        for n in (1, 2, 5, 10, 20)
    ),
    *(
        _c(
            f"{side}_depth_{bps}_bps_quote",
            "DOUBLE",
            f"value of {side}s within {bps} bps of the middle; NULL where the book may reach further",
        )
        for side in ("bid", "ask")
        for bps in (10, 25, 50, 100)
    ),
    _c("imbalance_best_frac", "DOUBLE", "bid less ask amount at the best prices, share of both"),
    *(
        _c(
            f"imbalance_{bps}_bps_frac",
            "DOUBLE",
            f"bid less ask value within {bps} bps of the middle, share of both",
        )
        for bps in (10, 25, 50, 100)
    ),
)
_BOOK = tuple(
    _c(f"book_{column.name}", column.type, f"newest sound order book, while young enough: {column.meaning}")
    for column in (*_BOOK_SUMMARY, *_BOOK_AMOUNTS)
)

_TABLES = (
    # --- raw
    Table(
        "raw/symbols",
        "one row per market and state in which the exchange showed it",
        (
            _VENUE,
            _SYMBOL,
            _r("valid_from", "TIMESTAMP", "when this state was first seen, UTC"),
            _r("ts", "TIMESTAMP", "day of the snapshot, UTC"),
            _KNOWN_AT,
            _LISTING,
            _r("exchange_symbol", "VARCHAR", "the exchange's own name"),
            _r("market_type", "VARCHAR", "spot, perpetual or delivery"),
            _r("base", "VARCHAR", "base asset"),
            _r("quote", "VARCHAR", "quote asset"),
            _c("settle", "VARCHAR", "asset in which a contract is settled; NULL for spot"),
            _c("contract_type", "VARCHAR", "the exchange's word for the contract; NULL for spot"),
            _r(
                "trading_status",
                "VARCHAR",
                "the exchange's status word; ABSENT: it no longer names the market",
            ),
            _c("permissions", "VARCHAR", "the exchange's permission words, sorted, separated by commas"),
            _c("spot_allowed", "BOOLEAN", "spot trading permitted"),
            _c("listed_at", "TIMESTAMP", "listing time as the exchange tells it; NULL where it does not"),
            _c("delivery_at", "TIMESTAMP", "end of the contract as the exchange tells it; NULL for none"),
            _c("tick_size", "DOUBLE", "smallest price step, quote units"),
            _c("lot_size", "DOUBLE", "smallest amount step, base units"),
            _c("min_notional", "DOUBLE", "smallest order value, quote units"),
        ),
        ("venue", "symbol", "valid_from"),
        "daily",
        "merge",
        "when seen",
        observed=True,
    ),
    Table(
        "raw/universe",
        "one row per market and day on which it was chosen to be collected",
        (
            _VENUE,
            _SYMBOL,
            _r("ts", "TIMESTAMP", "day of the choice, UTC"),
            _KNOWN_AT,
            _r(
                "chosen_by", "VARCHAR", "listed: named in the settings; top: by turnover; kept: chosen before"
            ),
            _c(
                "turnover_24h_quote",
                "DOUBLE",
                "traded value of the last 24 h, quote units; NULL if not asked for",
            ),
            _c(
                "turnover_24h_rank",
                "BIGINT",
                "rank of it among the markets that pass the filters; 1 is the largest",
            ),
        ),
        ("venue", "symbol", "ts"),
        "daily",
        "merge",
        "when seen",
        observed=True,
    ),
    Table(
        "raw/listings",
        "one row per market and interval in which its state held, with when each end was known",
        (
            _VENUE,
            _SYMBOL,
            _r("valid_from", "TIMESTAMP", "start of the state, UTC"),
            _KNOWN_AT,
            _c("valid_to", "TIMESTAMP", "exclusive end of the state, UTC; NULL while it holds"),
            _c("valid_to_known_at", "TIMESTAMP", "when the end was known, UTC; NULL while the state holds"),
            _LISTING,
            _r(
                "event",
                "VARCHAR",
                "what began it: first_seen, listing, halt, resume, delisting, rename, reuse, change",
            ),
            _r("trading_status", "VARCHAR", "the exchange's status word, or ABSENT"),
            _r("market_type", "VARCHAR", "spot, perpetual or delivery"),
            _r("source", "VARCHAR", "exchange, or settings where platform.yaml states it"),
        ),
        ("venue", "symbol", "valid_from"),
        "none",
        "replace",
        "when the start of the state was seen, or announced",
        time_column="",
        observed=True,
    ),
    Table(
        "raw/klines",
        "one row per market, kind of price and closed base interval",
        (
            _VENUE,
            _SYMBOL,
            _r(
                "kind",
                "VARCHAR",
                "trade; of futures also mark (price) and premium (index, a fraction; may be negative)",
            ),
            _r("interval", "VARCHAR", "base interval"),
            _TS,
            _KNOWN_AT,
            *_OHLC,
            *_EXACT_VOLUMES,
            _c(
                "close_time",
                "TIMESTAMP",
                "the exchange's own close time; cut short by a halt; NULL where it lacks it",
            ),
        ),
        ("venue", "symbol", "kind", "interval", "ts"),
        "daily",
        "merge",
        "end of the interval",
    ),
    Table(
        "raw/funding_rates",
        "one row per perpetual contract and funding settlement",
        (
            _VENUE,
            _SYMBOL,
            _r(
                "ts",
                "TIMESTAMP",
                "scheduled settlement, UTC: the told time without its jitter of milliseconds",
            ),
            _KNOWN_AT,
            _r("settled_at", "TIMESTAMP", "settlement time as told, UTC"),
            _r(
                "funding_rate_frac",
                "DOUBLE",
                "what long positions pay to short ones, share of the position's value",
            ),
            _c(
                "mark_price",
                "DOUBLE",
                "mark price of the settlement, quote units; NULL where the source lacks it",
            ),
        ),
        ("venue", "symbol", "ts"),
        "daily",
        "merge",
        "settlement time as told",
    ),
    Table(
        "raw/open_interest",
        "one row per contract and sample",
        (
            _VENUE,
            _SYMBOL,
            _r("ts", "TIMESTAMP", "sample time, UTC"),
            _KNOWN_AT,
            _c("open_interest_base", "DOUBLE", "open contracts, base units"),
            _c("open_interest_quote", "DOUBLE", "their value, quote units; NULL where the source lacks it"),
        ),
        ("venue", "symbol", "ts"),
        "daily",
        "merge",
        "sample time",
    ),
    Table(
        "raw/order_books",
        "one row per market, snapshot, side and level",
        (
            _VENUE,
            _SYMBOL,
            _r("ts", "TIMESTAMP", "exchange's time before the snapshot was asked for, UTC"),
            _KNOWN_AT,
            _r("side", "VARCHAR", "bid or ask"),
            _r("level", "INTEGER", "0 is the best price of its side"),
            _r("price", "DOUBLE", "quote units"),
            _r("amount_base", "DOUBLE", "amount offered at the price, base units"),
            _c("last_update_id", "BIGINT", "the exchange's number of the book; NULL where it tells none"),
            _c("book_time", "TIMESTAMP", "the exchange's time of the book, UTC; NULL where it tells none"),
        ),
        ("venue", "symbol", "ts", "side", "level"),
        "hourly",
        "merge",
        "exchange's time after the snapshot had come",
        observed=True,
    ),
    Table(
        "raw/order_book_summary",
        "one row per market and snapshot of its order book: prices, spread, depth, density, imbalance, impact",
        (
            _VENUE,
            _SYMBOL,
            _r("ts", "TIMESTAMP", "exchange's time before the snapshot was asked for, UTC"),
            _KNOWN_AT,
            _r("status", "VARCHAR", "ok, empty, one_sided, crossed, out_of_sequence or stale"),
            _c("last_update_id", "BIGINT", "the exchange's number of the book; NULL where it tells none"),
            _r("n_bids", "BIGINT", "levels of bids"),
            _r("n_asks", "BIGINT", "levels of asks"),
            _c("best_bid", "DOUBLE", "highest bid, quote units"),
            _c("best_ask", "DOUBLE", "lowest ask, quote units"),
            *_BOOK_SUMMARY[:2],
            _c("mean_bid", "DOUBLE", "mean price of bids weighted by amount, without the largest orders"),
            _c("mean_ask", "DOUBLE", "mean price of asks weighted by amount, without the largest orders"),
            _BOOK_SUMMARY[2],
            _c("bin_size_quote", "DOUBLE", "width of a price bin"),
            *_BOOK_AMOUNTS,
            *(
                _c(
                    f"{action}_impact_{amount}_quote_bps",
                    "DOUBLE",
                    f"mean price of {action}ing for {amount} quote units against the middle; NULL in a thinner book",
                )
                for action in ("buy", "sell")
                for amount in (1_000, 10_000, 100_000)
            ),
        ),
        ("venue", "symbol", "ts"),
        "hourly",
        "merge",
        "exchange's time after the snapshot had come",
        observed=True,
    ),
    Table(
        "raw/coins",
        "one row per coin of the aggregator and snapshot",
        (
            _r("coin_id", "VARCHAR", "CoinGecko id: the key, never the ticker"),
            _r("ts", "TIMESTAMP", "day of the snapshot, UTC"),
            _KNOWN_AT,
            _r("ticker", "VARCHAR", "ticker in lower case; shared among coins"),
            _c("name", "VARCHAR", "display name"),
            _c("market_cap_rank", "BIGINT", "rank among all coins, 1 is the largest"),
            _c("market_cap_usd", "DOUBLE", "market capitalisation; NULL where unknown or 0"),
            _c("price_usd", "DOUBLE", "price"),
            _c("volume_24h_usd", "DOUBLE", "traded value of the last 24 h"),
            _c("symbol", "VARCHAR", "the market of our universe that this coin is mapped to, if any"),
        ),
        ("known_at", "coin_id"),
        "daily",
        "merge",
        "when seen",
        observed=True,
    ),
    Table(
        "raw/coin_kinds",
        "one row per coin and day of a snapshot: an asset of its own, or a claim on something else",
        (
            _r("coin_id", "VARCHAR", "CoinGecko id"),
            _r("ts", "TIMESTAMP", "day of the snapshot, UTC"),
            _KNOWN_AT,
            _r("kind", "VARCHAR", "coin, stable, wrapped, staked, bridged or pegged"),
            _c(
                "decided_by",
                "VARCHAR",
                "override, category, name or behaviour; NULL: nothing speaks against coin",
            ),
        ),
        ("coin_id", "ts"),
        "daily",
        "merge",
        "when seen",
        observed=True,
    ),
    Table(
        "raw/market_caps",
        "one row per coin and UTC day",
        (
            _r("coin_id", "VARCHAR", "CoinGecko id"),
            _TS,
            _KNOWN_AT,
            _c("price_usd", "DOUBLE", "price at the end of the day"),
            _c(
                "market_cap_usd",
                "DOUBLE",
                "market capitalisation at the end of the day; NULL where unknown or 0",
            ),
            _c("volume_24h_usd", "DOUBLE", "traded value of the day"),
        ),
        ("coin_id", "ts"),
        "daily",
        "merge",
        "end of the day + publication lag (00:45 UTC)",
    ),
    Table(
        "raw/coin_ohlc",
        "one row per coin, interval and closed candle",
        (
            _r("coin_id", "VARCHAR", "CoinGecko id"),
            _r("interval", "VARCHAR", "1d or 1h"),
            _TS,
            _KNOWN_AT,
            _r("open_usd", "DOUBLE", "first price"),
            _r("high_usd", "DOUBLE", "highest price"),
            _r("low_usd", "DOUBLE", "lowest price"),
            _r("close_usd", "DOUBLE", "last price"),
        ),
        ("coin_id", "interval", "ts"),
        "daily",
        "merge",
        "end of the interval + publication lag (15 minutes; of a day 45 minutes: 00:45 UTC)",
    ),
    # --- rollups
    Table(
        "rollups/klines",
        "one row per market, longer interval and bar that has at least one base bar",
        (
            _VENUE,
            _SYMBOL,
            _r("interval", "VARCHAR", "interval of the bar"),
            _TS,
            _KNOWN_AT,
            _LISTING,
            *_OHLC,
            *_EXACT_VOLUMES,
            *_FROM_BASE_BARS,
        ),
        ("venue", "symbol", "interval", "ts"),
        "daily",
        "replace",
        "end of the interval",
    ),
    Table(
        "rollups/klines_1w",
        "one row per market and week from Monday 00:00 UTC that has at least one bar of a day",
        (
            _VENUE,
            _SYMBOL,
            _r("interval", "VARCHAR", "1w"),
            _TS,
            _KNOWN_AT,
            _LISTING,
            *_OHLC,
            *_EXACT_VOLUMES,
            *_FROM_BASE_BARS,
        ),
        ("venue", "symbol", "ts"),
        "weekly",
        "replace",
        "end of the interval",
    ),
    Table(
        "rollups/raster",
        "one row per symbol and raster interval while the listing lives (a bar within the last 48 h)",
        (
            _SYMBOL,
            _TS,
            _KNOWN_AT,
            _LISTING,
            *_OHLC,
            _c("volume_base", "DOUBLE", "traded amount, base units"),
            _c(
                "turnover_quote",
                "DOUBLE",
                "traded value, quote units; base volume x close where the source lacks it",
            ),
            _c("n_trades", "BIGINT", "number of trades"),
            _c("taker_buy_base", "DOUBLE", "amount bought by takers, base units"),
            _c("taker_buy_quote", "DOUBLE", "value bought by takers, quote units"),
            _r("has_bar", "BOOLEAN", "false: no bar in this interval, prices are NULL"),
            _r("bar_age", "BIGINT", "raster intervals since the newest bar; 0 where has_bar"),
            _c("coin_id", "VARCHAR", "CoinGecko id of the listing"),
            _c(
                "market_cap_usd",
                "DOUBLE",
                "newest cap known by known_at, while young enough and not stale; NULL if unknown",
            ),
            _c("market_cap_ts", "TIMESTAMP", "day of that cap"),
            _c("market_cap_rank", "BIGINT", "its rank among the known caps of the moment; 1 is the largest"),
            *_FUTURES,
            _c("mark_price", "DOUBLE", "the contract's last closed mark price, while young enough"),
            _c(
                "premium_frac",
                "DOUBLE",
                "what the contract costs above its index, last closed, while young enough",
            ),
            _c("funding_rate_frac", "DOUBLE", "the contract's last settled funding rate, while young enough"),
            _c("funding_age_hours", "DOUBLE", "hours from that settlement to the end of the row"),
            _c("open_interest_base", "DOUBLE", "open contracts, base units, while young enough"),
            _c("open_interest_quote", "DOUBLE", "their value, quote units"),
            *_BOOK,
        ),
        ("symbol", "ts"),
        "daily",
        "replace",
        "max of what it joins: end of the interval",
    ),
    # --- features
    Table(
        "features/universe",
        "one row per symbol and raster interval: may it be traded, as far as was known then",
        (
            _SYMBOL,
            _TS,
            _KNOWN_AT,
            _LISTING,
            _r("eligible", "BOOLEAN", "all rules of the point-in-time universe hold"),
            _r("reason", "VARCHAR", "eligible, or the first rule that failed"),
            _c("history_days", "DOUBLE", "age of the listing's bars inside the look-back, days"),
            _c(
                "turnover_median_30d_quote",
                "DOUBLE",
                "median traded value of the last 30 whole days, quote units",
            ),
        ),
        ("symbol", "ts"),
        "daily",
        "replace",
        "end of the bar",
    ),
    # --- labels
    Table(
        "labels/forward_returns",
        "one row per symbol and raster interval: the return of one holding period, fill to fill",
        (
            _SYMBOL,
            _TS,
            _c("known_at", "TIMESTAMP", "when the label is decided; NULL before"),
            _LISTING,
            _r("horizon", "VARCHAR", "holding period"),
            _c("fill_ts", "TIMESTAMP", "bar whose open is the entry"),
            _c("exit_ts", "TIMESTAMP", "bar whose open (death: whose close) is the exit"),
            _c(
                "forward_return_frac",
                "DOUBLE",
                "exit price / entry price - 1; NULL until decided or when unfilled",
            ),
            _c("outcome", "VARCHAR", "filled, death, unfilled or gap; NULL until decided"),
        ),
        ("symbol", "ts"),
        "daily",
        "replace",
        "when the label is decided; NULL before",
        decided_later=("known_at", "fill_ts", "exit_ts", "forward_return_frac", "outcome"),
    ),
    # --- factors
    Table(
        "factors/alpha_factors",
        "one row per symbol, raster interval and factor",
        (
            _SYMBOL,
            _TS,
            _r("factor", "VARCHAR", "name of the factor"),
            _KNOWN_AT,
            _LISTING,
            _c("value", "DOUBLE", "factor value as defined"),
            _c("value_z", "DOUBLE", "winsorised at 1/99 % and z-scored among the eligible of that moment"),
        ),
        ("symbol", "ts", "factor"),
        "daily",
        "replace",
        "end of the bar",
    ),
    # --- weights
    Table(
        "weights/alpha_weights",
        "one row per week and factor: weights fitted on returns realised before the week",
        (
            _WEEK,
            _r("factor", "VARCHAR", "name of the factor"),
            _r("known_at", "TIMESTAMP", "the cut: start of the week"),
            _c("score", "DOUBLE", "sum over pairs of return bin x factor bin"),
            _c("weight", "DOUBLE", "(score - min) / sum(score - min); NULL unless status is ok"),
            _r("n_pairs", "BIGINT", "pairs of factor value and realised return"),
            _STATUS,
        ),
        ("week", "factor"),
        "weekly",
        "replace",
        "the cut",
        time_column="week",
    ),
    Table(
        "weights/alpha_scores",
        "one row per eligible symbol and raster interval: the weighted sum of standardised factors",
        (
            _SYMBOL,
            _TS,
            _KNOWN_AT,
            _LISTING,
            _c("alpha_score", "DOUBLE", "sum of weight x value_z over factors; NULL if one is missing"),
        ),
        ("symbol", "ts"),
        "daily",
        "replace",
        "end of the bar",
    ),
    # --- predictions
    Table(
        "predictions/models",
        "one row per week and model: a classifier of the sign of the forward return, fitted before the week",
        (
            _WEEK,
            _r("model", "VARCHAR", "name of the model"),
            _r("known_at", "TIMESTAMP", "the cut: start of the week"),
            _STATUS,
            _c("train_from", "TIMESTAMP", "first training row"),
            _r("n_train", "BIGINT", "training rows"),
            _r("n_calibration", "BIGINT", "later rows, out of fold, that the calibration used"),
            _c("calibration_intercept", "DOUBLE", "logit p = intercept + slope x raw score"),
            _c("calibration_slope", "DOUBLE", "logit p = intercept + slope x raw score"),
            _c("auc", "DOUBLE", "area under the ROC curve on the calibration rows"),
            _c("features", "VARCHAR", "JSON list of input columns in order"),
            _c("parameters", "VARCHAR", "JSON of the training parameters"),
            _c("model_text", "VARCHAR", "the fitted model in the library's own text format"),
            _c("model_hash", "VARCHAR", "SHA-256 of model_text and calibration"),
        ),
        ("week", "model"),
        "weekly",
        "replace",
        "the cut",
        time_column="week",
    ),
    Table(
        "predictions/scores",
        "one row per eligible symbol, raster interval and model: out-of-fold probability of a gain",
        (
            _SYMBOL,
            _TS,
            _r("model", "VARCHAR", "name of the model"),
            _KNOWN_AT,
            _LISTING,
            _c("raw_score", "DOUBLE", "log-odds as the model gives them"),
            _c("probability", "DOUBLE", "calibrated probability that the forward return is positive"),
            _c("model_hash", "VARCHAR", "which fit made it"),
        ),
        ("symbol", "ts", "model"),
        "daily",
        "replace",
        "end of the bar",
    ),
    # --- signals
    Table(
        "signals/ema_cross",
        "one row per symbol, raster interval and rule: state of an EMA cross, decaying with its age",
        (
            _SYMBOL,
            _TS,
            _r("rule", "VARCHAR", "name with its spans"),
            _KNOWN_AT,
            _LISTING,
            _c("ema_short", "DOUBLE", "finite-window EMA, quote units"),
            _c("ema_long", "DOUBLE", "finite-window EMA, quote units"),
            _c("state", "INTEGER", "+1 after an upward cross, -1 after a downward one, 0 before the first"),
            _c("age", "BIGINT", "raster intervals since the state was entered"),
            _c("signal", "DOUBLE", "state x 0.97^age, rounded to 3 decimals"),
        ),
        ("symbol", "ts", "rule"),
        "daily",
        "replace",
        "end of the bar",
    ),
    Table(
        "signals/thresholds",
        "one row per week and rule: thresholds on out-of-fold probabilities, chosen before the week",
        (
            _WEEK,
            _r("rule", "VARCHAR", "name of the rule"),
            _r("known_at", "TIMESTAMP", "the cut: start of the week"),
            _STATUS,
            _c("buy_threshold", "DOUBLE", "probability at or above which the rule buys"),
            _c("sell_threshold", "DOUBLE", "probability at or below which the rule sells"),
            _c(
                "mean_return_frac",
                "DOUBLE",
                "mean net return of the pairs that the chosen rule would have bought",
            ),
            _r("n_pairs", "BIGINT", "out-of-fold pairs realised at the cut"),
        ),
        ("week", "rule"),
        "weekly",
        "replace",
        "the cut",
        time_column="week",
    ),
    Table(
        "signals/trading_signals",
        "one row per symbol, raster interval and rule: buy, sell or nothing",
        (
            _SYMBOL,
            _TS,
            _r("rule", "VARCHAR", "name of the rule"),
            _KNOWN_AT,
            _LISTING,
            _c("score", "DOUBLE", "the probability the rule looked at"),
            _c("signal", "INTEGER", "+1 buy, -1 sell, 0 nothing; NULL without a score or thresholds"),
        ),
        ("symbol", "ts", "rule"),
        "daily",
        "replace",
        "end of the bar",
    ),
    # --- holdings
    Table(
        "holdings/candidates",
        "one row per decision and symbol alive then: market prior, risk and standardised score",
        (
            _DECISION,
            _SYMBOL,
            _KNOWN_AT,
            _LISTING,
            _r(
                "horizon",
                "VARCHAR",
                "rebalance period H; pi, sigma and views are simple excess returns per H",
            ),
            _r("eligible", "BOOLEAN", "in the universe at the decision"),
            _r("reason", "VARCHAR", "eligible, or why not"),
            _c("close", "DOUBLE", "newest close known at the decision, quote units"),
            _c("market_cap_usd", "DOUBLE", "cap known at the decision; NULL if unknown"),
            _c("w_mkt", "DOUBLE", "share in the prior; 0 where the cap is unknown; NULL unless eligible"),
            _c("sigma_frac", "DOUBLE", "standard deviation of the return per H"),
            _c("pi_frac", "DOUBLE", "equilibrium return per H"),
            _c("covariance_method", "VARCHAR", "ledoit_wolf, or pairwise where a return is missing"),
            _c(
                "covariance_change_frac",
                "DOUBLE",
                "repair to the nearest positive semidefinite covariance, relative Frobenius norm",
            ),
            _c("score_z", "DOUBLE", "mean of the available z-scored sources, clipped at 3"),
            _c("n_sources", "BIGINT", "sources in score_z"),
            _STATUS,
        ),
        ("decision_at", "symbol"),
        "daily",
        "replace",
        "decision_at",
        time_column="decision_at",
    ),
    Table(
        "holdings/view_fits",
        "one row per week: how far scores told returns, on out-of-fold pairs realised before the week",
        (
            _WEEK,
            _r("known_at", "TIMESTAMP", "the cut: start of the week"),
            _c("slope", "DOUBLE", "b of (r_H - pi)/sigma_H = b z + e"),
            _c("slope_se", "DOUBLE", "standard error of b, clustered by decision"),
            _c("confidence", "DOUBLE", "t^2 / (1 + t^2), at most 0.9; NULL without views"),
            _r("n_pairs", "BIGINT", "pairs of score and realised return"),
            _STATUS,
        ),
        ("week",),
        "weekly",
        "replace",
        "the cut",
        time_column="week",
    ),
    Table(
        "holdings/views",
        "one row per decision and symbol with a view",
        (
            _DECISION,
            _SYMBOL,
            _KNOWN_AT,
            _LISTING,
            _r("horizon", "VARCHAR", "rebalance period H"),
            _r("view_return_frac", "DOUBLE", "Q: expected return per H"),
            _r("confidence", "DOUBLE", "weight of the view against the prior, in (0, 1)"),
            _r("score_z", "DOUBLE", "the score behind it"),
        ),
        ("decision_at", "symbol"),
        "daily",
        "replace",
        "decision_at",
        time_column="decision_at",
    ),
    Table(
        "holdings/optimal_holdings",
        "one row per decision and asset, cash included: the weights to hold",
        (
            _DECISION,
            _r("symbol", "VARCHAR", "BASE/QUOTE, or the quote asset alone for cash"),
            _KNOWN_AT,
            _c("listing_id", "VARCHAR", "one life of a symbol; NULL for cash"),
            _r("horizon", "VARCHAR", "rebalance period H"),
            _r("weight_frac", "DOUBLE", "weight to hold, 0 to the cap; sums to one with cash"),
            _r(
                "weight_before_frac",
                "DOUBLE",
                "target of the decision before, drifted with prices: its orders are taken as filled, which "
                "only the backtest checks",
            ),
            _c("weight_prior_frac", "DOUBLE", "share in the market prior"),
            _c("mu_frac", "DOUBLE", "posterior expected return per H"),
            _c(
                "close",
                "DOUBLE",
                "newest close known at the decision; 1 for cash; the next decision drifts from it",
            ),
            _r("n_views", "BIGINT", "views that entered the decision"),
            _STATUS,
        ),
        ("decision_at", "symbol"),
        "daily",
        "replace",
        "decision_at",
        time_column="decision_at",
    ),
    # --- reports
    Table(
        "reports/portfolio_backtest",
        "one row per strategy and UTC day: equity net of fees",
        (
            _r("strategy", "VARCHAR", "what was held"),
            _r("ts", "TIMESTAMP", "UTC day"),
            _KNOWN_AT,
            _r("equity", "DOUBLE", "value at the end of the day, 1 at the start"),
            _c("return_frac", "DOUBLE", "simple net return of the day"),
            _c("turnover_frac", "DOUBLE", "half the sum of absolute weight changes"),
            _c("fee_frac", "DOUBLE", "fees paid, share of equity"),
            _r("n_positions", "BIGINT", "assets held besides cash"),
        ),
        ("strategy", "ts"),
        "none",
        "replace",
        "end of the day",
    ),
    # --- quality
    Table(
        "quality/partition_manifest",
        "one row per stored partition, from file metadata alone",
        (
            _r("asset", "VARCHAR", "stage/asset"),
            _r("partition", "VARCHAR", "partition key; empty where unpartitioned"),
            _r("rows", "BIGINT", "rows stored"),
            _r("content_hash", "VARCHAR", "SHA-256 of the rows, independent of their order"),
            _c("code_version", "VARCHAR", "version of the code that made it"),
            _c("inputs_hash", "VARCHAR", "SHA-256 over the content hashes of the partitions it read"),
            _c("run_id", "VARCHAR", "run that wrote it"),
            _c("watermark", "TIMESTAMP", "raw: end of the last closed base interval at the time of reading"),
            _r("bytes", "BIGINT", "size of its file, or of its part of the day's file"),
            _r("path", "VARCHAR", "file, relative to the warehouse folder"),
        ),
        ("asset", "partition"),
        "none",
        "replace",
        "-",
        time_column="",
    ),
    Table(
        "quality/coverage",
        "one row per source series and day: what was asked, what came, what is missing and why",
        (
            _r("asset", "VARCHAR", "raw asset"),
            _VENUE,
            _r("symbol", "VARCHAR", "market, or coin_id"),
            _r("kind", "VARCHAR", "what the series holds: trade, mark, premium, market_cap, ohlc"),
            _r("interval", "VARCHAR", "interval of the series"),
            _r("ts", "TIMESTAMP", "UTC day"),
            _r("n_expected", "BIGINT", "intervals of the day up to the watermark"),
            _r("n_rows", "BIGINT", "rows stored"),
            _r("n_source_gaps", "BIGINT", "intervals the source was asked for and did not have"),
            _r("n_unexplained", "BIGINT", "intervals never covered by an answer"),
        ),
        ("asset", "venue", "symbol", "kind", "interval", "ts"),
        "none",
        "replace",
        "-",
    ),
    Table(
        "quality/gaps",
        "one row per run of missing intervals of a series, up to the watermark",
        (
            _r("asset", "VARCHAR", "raw asset"),
            _VENUE,
            _r("symbol", "VARCHAR", "market, or coin_id"),
            _r("kind", "VARCHAR", "what the series holds"),
            _r("interval", "VARCHAR", "interval of the series"),
            _r("ts", "TIMESTAMP", "start of the first missing interval, UTC"),
            _r("gap_end", "TIMESTAMP", "exclusive end of the last missing interval, UTC"),
            _r("n_missing", "BIGINT", "intervals missing"),
            _r("origin", "VARCHAR", "source: asked for and not there; ours: no answer covers it"),
        ),
        ("asset", "venue", "symbol", "kind", "interval", "ts"),
        "none",
        "replace",
        "-",
    ),
    Table(
        "quality/reconciliation",
        "one row per pair of sources, market and UTC day: how far their prices lie apart",
        (
            _r("pair", "VARCHAR", "spot_futures, spot_mark or spot_coingecko"),
            _VENUE,
            _r("symbol", "VARCHAR", "spot market"),
            _r("ts", "TIMESTAMP", "UTC day"),
            _r("other", "VARCHAR", "contract, or coin_id"),
            _r("n_compared", "BIGINT", "prices compared"),
            _c("median_difference_bps", "DOUBLE", "median of other / spot - 1"),
            _c("largest_difference_bps", "DOUBLE", "largest distance of other / spot from 1, with its sign"),
            _r("agrees", "BOOLEAN", "the median lies inside the pair's tolerance"),
        ),
        ("pair", "venue", "symbol", "ts", "other"),
        "none",
        "replace",
        "-",
    ),
    Table(
        "quality/source_files",
        "one row per file that was read into raw tables: archive files and imports",
        (
            _r("origin", "VARCHAR", "archive or import"),
            _r("file", "VARCHAR", "path in the archive, or name of the imported file"),
            _r("sha256", "VARCHAR", "of the file as read"),
            _r("seen_at", "TIMESTAMP", "when it was read (source time), UTC"),
            _r("format", "VARCHAR", "how it was read"),
            _r("venue", "VARCHAR", "exchange, ccxt name"),
            _r("symbol", "VARCHAR", "market"),
            _r("kind", "VARCHAR", "what it holds"),
            _r("interval", "VARCHAR", "interval of its rows"),
            _r("n_rows", "BIGINT", "sound rows in it"),
            _c("first_ts", "TIMESTAMP", "first of them, UTC"),
            _c("last_ts", "TIMESTAMP", "last of them, UTC"),
            _r("published_again", "BOOLEAN", "the same file was read before with another content"),
        ),
        ("origin", "file", "sha256"),
        "none",
        "replace",
        "-",
        time_column="",
    ),
    Table(
        "quality/revisions",
        "one row per value that a source changed after we had stored it",
        (
            _r("asset", "VARCHAR", "raw asset"),
            _r("row_key", "VARCHAR", "JSON of the row's key"),
            _r("column_name", "VARCHAR", "the column that changed"),
            _c("old_value", "VARCHAR", "as stored before"),
            _c("new_value", "VARCHAR", "as stored now"),
            _r("seen_at", "TIMESTAMP", "when the new value was seen (source time), UTC"),
            _r("partition", "VARCHAR", "partition of the row"),
        ),
        ("asset", "row_key", "column_name", "seen_at"),
        "none",
        "replace",
        "-",
        time_column="",
    ),
    Table(
        "quality/anomalies",
        "one row per source row that was kept out of a table, or is suspicious",
        (
            _r("asset", "VARCHAR", "raw asset"),
            _r("kind", "VARCHAR", "off_grid, duplicate, frozen_price, zero_volume, jump, crossed_book, ..."),
            _VENUE,
            _r("symbol", "VARCHAR", "market, or coin_id"),
            _r(
                "series_kind",
                "VARCHAR",
                "what the series holds: trade, mark, premium, market_cap, order_book, ...",
            ),
            _r("interval", "VARCHAR", "interval of the series; empty where it has none"),
            _r("ts", "TIMESTAMP", "the row's own time, UTC"),
            _r("detail", "VARCHAR", "JSON of the row"),
        ),
        ("asset", "kind", "venue", "symbol", "series_kind", "interval", "ts"),
        "none",
        "replace",
        "-",
    ),
)

#: Tables whose columns no setting changes; ``tables.py`` adds the declared ones.
FIXED_TABLES: dict[str, Table] = {table.name: table for table in _TABLES}
