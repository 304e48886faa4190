"""Every rule of every check is broken once by a planted defect and holds on sound rows.

Sound rows are written by hand, so that a test says what a table may look like. A defect bypasses the I/O manager, which
would refuse most of them: checks are there for what reaches the disk in spite of it. Dagster reads annotations as
objects, so this module does not postpone them.
"""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crypto_assets.checks import asset_checks, checks_of, examine
from crypto_assets.partitions import DAILY, HOURLY, KEY_FORMATS, floor_of, length_of, start_of
from crypto_assets.resources.warehouse.io_manager import WarehouseResource
from crypto_assets.resources.warehouse.lake import Lake, Provenance, SeriesCoverage, WarehouseError
from crypto_assets.rules import FINDINGS
from crypto_assets.schemas import Table
from crypto_assets.settings import Listing, Settings, current_settings
from crypto_assets.tables import TABLES, table_of

SETTINGS = current_settings()
DAY = datetime(2024, 1, 10)
MONDAY = datetime(2024, 1, 8)
#: A day whose labels are decided by the end of ``DAY``.
EARLY = MONDAY
HOUR = timedelta(hours=1)
WHOLE = DAY + timedelta(days=1)
PUBLISHED = WHOLE + timedelta(minutes=45)
#: When a book was asked for, and when it had come.
ASKED = DAY + 5 * HOUR + timedelta(minutes=1)
CAME = ASKED + timedelta(seconds=2)
JITTER = timedelta(milliseconds=3)
CASH = SETTINGS.universe.quote
NAMES = sorted(TABLES)

Row = dict[str, Any]
Rows = list[Row]
Change = Callable[[Rows], Rows]

_OF_TYPE = {
    "VARCHAR": "something",
    "DOUBLE": 0.5,
    "BIGINT": 1,
    "INTEGER": 1,
    "BOOLEAN": True,
    "TIMESTAMP": DAY,
    "DECIMAL(38,8)": Decimal("1.00000000"),
}
_OF_COLUMN = {
    "venue": "binance",
    "symbol": "BTC/USDT",
    "listing_id": "BTC/USDT#1",
    "coin_id": "bitcoin",
    "kind": "trade",
    "interval": "1h",
    "horizon": "24h",
    "status": "ok",
    "week": MONDAY,
    "known_at": DAY + HOUR,
    "decision_at": DAY + HOUR,
    "open": 100.0,
    "high": 110.0,
    "low": 90.0,
    "close": 105.0,
    "volume_base": 10,
    "taker_buy_base": 4,
    "market_cap_ts": DAY - timedelta(days=2),
    "bar_age": 0,
    "reason": "eligible",
    "buy_threshold": 0.6,
    "sell_threshold": 0.4,
}
_PRICES = {name: _OF_COLUMN[name] for name in ("open", "high", "low", "close")}
_BARS = [{"ts": DAY + hour * HOUR, "known_at": DAY + (hour + 1) * HOUR} for hour in range(24)]
#: What the raster knows of the contract besides the values above.
_CONTRACT = {f"futures_{name}": value for name, value in _PRICES.items()} | {"funding_age_hours": 1.0}
_CUT = [{"known_at": MONDAY}]
_UNDECIDED = {
    "known_at": None,
    "fill_ts": None,
    "exit_ts": None,
    "forward_return_frac": None,
    "outcome": None,
}
_UNRANKED = {"symbol": "ETH/USDT", "turnover_24h_quote": None, "turnover_24h_rank": None}
_STATE = {"valid_from": DAY + HOUR, "trading_status": "TRADING", "market_type": "spot"}
_OPEN_END = {"valid_to": None, "valid_to_known_at": None}
_LEVEL = {"ts": ASKED, "known_at": CAME}
#: What sound rows hold besides the values above, table by table; one row where nothing is said.
SOUND: dict[str, Rows] = {
    "raw/symbols": [_STATE | {"settle": None, "contract_type": None, "delivery_at": None}],
    "raw/universe": [{"chosen_by": "top"}, {"chosen_by": "kept", **_UNRANKED}],
    "raw/listings": [
        _STATE | {"source": "exchange", "valid_to": DAY + 5 * HOUR, "valid_to_known_at": DAY + 5 * HOUR},
        _STATE
        | {"source": "exchange", "valid_from": DAY + 5 * HOUR, "known_at": DAY + 5 * HOUR}
        | {"trading_status": "BREAK", **_OPEN_END},
        _STATE | {"source": "settings", "symbol": "LUNA/USDT", "valid_from": WHOLE, **_OPEN_END},
    ],
    "raw/klines": _BARS,
    "raw/funding_rates": [
        {"settled_at": DAY + JITTER, "known_at": DAY + JITTER, "funding_rate_frac": -0.0001},
        {
            "ts": DAY + 8 * HOUR,
            "settled_at": DAY + 8 * HOUR - JITTER,
            "known_at": DAY + 8 * HOUR,
            "funding_rate_frac": 0.0001,
            "mark_price": None,
        },
    ],
    "raw/open_interest": [{"known_at": DAY}],
    "raw/order_books": [
        _LEVEL | {"side": "bid", "level": 0, "price": 99.0},
        _LEVEL | {"side": "bid", "level": 1, "price": 98.0},
        _LEVEL | {"side": "ask", "level": 0, "price": 101.0},
        _LEVEL | {"side": "ask", "level": 1, "price": 102.0},
    ],
    "raw/order_book_summary": [
        _LEVEL | {"best_bid": 99.0, "best_ask": 101.0, "mid": 100.0},
        _LEVEL
        | {"symbol": "ETH/USDT", "status": "one_sided", "n_asks": 0}
        | {"best_bid": 99.0, "best_ask": None, "mid": None},
    ],
    "raw/coin_kinds": [
        {"kind": "stable", "decided_by": "name"},
        {"coin_id": "ethereum", "kind": "coin", "decided_by": None},
    ],
    "raw/market_caps": [{"known_at": PUBLISHED}],
    "raw/coin_ohlc": [
        {"interval": "1d", "known_at": PUBLISHED},
        {"known_at": DAY + HOUR + timedelta(minutes=15)},
    ],
    "rollups/klines": [
        *({"interval": "1h"} | bar for bar in _BARS),
        {"interval": "4h", "known_at": DAY + 4 * HOUR},
        {"interval": "1d", "known_at": WHOLE},
    ],
    "rollups/klines_1w": [{"interval": "1w", "ts": MONDAY - timedelta(days=7), "known_at": MONDAY}],
    "rollups/raster": [bar | _CONTRACT for bar in _BARS],
    "features/every_bar": [{"known_at": DAY + 4 * HOUR}],
    "labels/forward_returns": [
        {
            "ts": EARLY,
            "outcome": "filled",
            "fill_ts": EARLY + HOUR,
            "exit_ts": EARLY + 25 * HOUR,
            "known_at": EARLY + 26 * HOUR,
        },
        {
            "ts": EARLY + HOUR,
            "outcome": "death",
            "fill_ts": EARLY + 2 * HOUR,
            "exit_ts": EARLY + 3 * HOUR,
            "known_at": EARLY + 28 * HOUR,
        },
        {"ts": EARLY + 2 * HOUR, **_UNDECIDED},
    ],
    "weights/alpha_weights": [
        {"factor": "factor_001", "weight": 0.25, **_CUT[0]},
        {"factor": "factor_002", "weight": 0.75, **_CUT[0]},
    ],
    "predictions/models": _CUT,
    "signals/thresholds": _CUT,
    "holdings/view_fits": _CUT,
    "holdings/candidates": [
        {"symbol": "BTC/USDT", "w_mkt": 0.6},
        {"symbol": "ETH/USDT", "w_mkt": 0.4},
        {"symbol": "XRP/USDT", "w_mkt": None, "eligible": False, "reason": "history"},
    ],
    "holdings/optimal_holdings": [
        {"symbol": "BTC/USDT", "weight_frac": 0.5, "weight_before_frac": 0.0},
        {"symbol": "ETH/USDT", "weight_frac": 0.25, "weight_before_frac": 0.0},
        {"symbol": CASH, "weight_frac": 0.25, "weight_before_frac": 1.0, "listing_id": None, "close": 1.0},
    ],
    "reports/portfolio_backtest": [{"known_at": WHOLE}],
    "quality/coverage": [{"asset": "raw/klines", "n_unexplained": 0}],
    "quality/gaps": [{"asset": "raw/klines", "origin": "source"}],
    "quality/anomalies": [{"asset": "raw/klines", "series_kind": "trade", "kind": "jump"}],
    "quality/reconciliation": [{"pair": "spot_mark", "other": "BTC/USDT:USDT"}],
    "quality/revisions": [
        {
            "asset": "raw/klines",
            "row_key": '{"symbol": "BTC/USDT", "kind": "trade"}',
            "column_name": "close",
            "old_value": "100.0",
            "new_value": "100.9",
        }
    ],
    "quality/source_files": [{"origin": "archive", "published_again": False}],
}
#: Whatever stands there was found.
OF_FINDINGS_ALONE = {"quality/anomalies"}


def sound_rows(table: Table) -> Rows:
    filled = {column.name: _OF_COLUMN.get(column.name, _OF_TYPE[column.type]) for column in table.columns}
    return [filled | row for row in SOUND.get(table.name, [{}])]


def partition_of(table: Table) -> str:
    if table.clock == "none":
        return ""
    moment = sound_rows(table)[0][table.time_column]
    return floor_of(table.clock, moment).strftime(KEY_FORMATS[table.clock])


def covering(
    *markets: str, stop: datetime = WHOLE, name: str = "binance|{}|trade|1h"
) -> tuple[SeriesCoverage, ...]:
    return tuple(SeriesCoverage(name.format(market), ((DAY, stop),)) for market in markets)


def provenance_of(table: Table, watermark: datetime | None = None) -> Provenance:
    said = Provenance(table.name, partition_of(table))
    if table.write != "merge":
        return said
    published_later = table.name in ("raw/market_caps", "raw/coin_ohlc")
    said = replace(said, watermark=watermark or (PUBLISHED if published_later else WHOLE))
    if table.name == "raw/klines":
        return replace(said, coverage=covering(*SETTINGS.universe.markets))
    if table.name == "raw/market_caps":
        return replace(said, coverage=covering("bitcoin", name="coingecko|{}|market_cap|1d"))
    return said


def store(lake: Lake, table: Table, rows: Rows, provenance: Provenance | None = None) -> None:
    """Store rows as the I/O manager would, but whatever they hold."""
    said = provenance or provenance_of(table)
    lake.replace(table, said.partition, table.arrow_schema().empty_table(), said)
    path = lake.path(table, said.partition)
    (name,) = pq.read_schema(path).metadata
    stated = Provenance.from_json(pq.read_schema(path).metadata[name])
    written = pa.Table.from_pylist(
        rows, schema=pa.schema([f.with_nullable(True) for f in table.arrow_schema()])
    )
    pq.write_table(written.replace_schema_metadata({name: replace(stated, rows=len(rows)).to_json()}), path)


@pytest.fixture(scope="module")
def read_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("read")
    for name in ("raw/symbols", "raw/klines"):
        store(Lake(folder), table_of(name), sound_rows(table_of(name)))
    return folder


@pytest.fixture
def lake(read_once: Path, tmp_path: Path) -> Lake:
    """A warehouse whose exchange was read for the day."""
    shutil.copytree(read_once, tmp_path, dirs_exist_ok=True)
    return Lake(tmp_path)


def results(
    lake: Lake, table: Table, partitions: list[str] | None = None, *names: str, settings: Settings = SETTINGS
) -> dict[str, dg.AssetCheckResult]:
    found = examine(table, lake, settings, partitions, names or None)
    return {result.check_name or "": result for result in found}


def result_of(lake: Lake, name: str, check: str, settings: Settings = SETTINGS) -> dg.AssetCheckResult:
    return results(lake, table_of(name), None, check, settings=settings)[check]


def broken(result: dg.AssetCheckResult) -> dict[str, tuple[int, str]]:
    """Rule -> how many rows break it, and the first of them."""
    shown = result.metadata.get("broken")
    assert result.passed == (shown is None)
    records = shown.records if isinstance(shown, dg.TableMetadataValue) else ()
    return {
        str(row.data["rule"]): (int(str(row.data["broken by"])), str(row.data["first rows"]))
        for row in records
    }


@pytest.mark.parametrize("name", NAMES)
def test_sound_rows_pass_every_check(lake: Lake, name: str) -> None:
    table = table_of(name)
    store(lake, table, [] if name in OF_FINDINGS_ALONE else sound_rows(table))
    found = results(lake, table, [partition_of(table)])
    assert {check: broken(result) for check, result in found.items()} == dict.fromkeys(found, {})
    assert set(found) == {check.name for check in checks_of(table, SETTINGS)}


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_partition_passes_every_check(lake: Lake, name: str) -> None:
    table = table_of(name)
    store(lake, table, [])
    assert {result.passed for check, result in results(lake, table).items() if check != "gaps"} == {True}


# -- planted defects: (table, check, rule, change to the first row or to all)


def everywhere(**values: object) -> Change:
    return lambda rows: [row | values for row in rows]


def also(**values: object) -> Change:
    return lambda rows: [*rows, rows[0] | values]


ONE_MINUTE = timedelta(minutes=1)
CANDLES_KNOWN = "end of the interval + publication lag (15 minutes; of a day 45 minutes: 00:45 UTC)"
SHOWN = "a state was known when the exchange showed it, or announced before it began"
RANKED = "turnover has its rank, and ranks begin with 1"
COUNTED = "levels count from the best price on"
POSITIVE = "prices are positive, but for a premium"
NO_AMOUNTS = dict.fromkeys(("volume_base", "volume_quote", "n_trades", "taker_buy_base", "taker_buy_quote"))
MARK = {"symbol": "BTC/USDT:USDT", "kind": "mark", **NO_AMOUNTS}
PREMIUM = MARK | {"kind": "premium", "open": -0.001, "high": 0.002, "low": -0.002, "close": 0.0}
DEFECTS: list[tuple[str, str, str, Row | Change]] = [
    *(
        (name, "known_at", rule, {"known_at": sound_rows(table_of(name))[0]["known_at"] - ONE_MINUTE})
        for name in NAMES
        for check in checks_of(table_of(name), SETTINGS)
        for rule in (rule.text for rule in check.rules)
        if rule.startswith("known_at is: ")
    ),
    ("rollups/klines", "known_at", "known_at is: end of the interval", {"interval": "7h"}),
    (
        "raw/symbols",
        "known_at",
        "known_at lies in the day of the snapshot",
        {"known_at": DAY - HOUR, "valid_from": DAY - HOUR},
    ),
    ("raw/coins", "known_at", "known_at lies in the day of the snapshot", {"known_at": DAY - HOUR}),
    *(
        (name, "known_at", "known_at lies in the day of the snapshot", {"known_at": WHOLE})
        for name in ("raw/universe", "raw/coin_kinds")
    ),
    *(
        (name, "known_at", "a book had come within an hour after it was asked for", {"known_at": moment})
        for name, moment in (
            ("raw/order_books", ASKED - JITTER),
            ("raw/order_books", ASKED + HOUR + JITTER),
            ("raw/order_book_summary", ASKED - JITTER),
        )
    ),
    ("raw/coin_ohlc", "known_at", f"known_at is: {CANDLES_KNOWN}", {"known_at": WHOLE}),
    (
        "raw/coin_ohlc",
        "known_at",
        f"known_at is: {CANDLES_KNOWN}",
        lambda rows: [rows[0], rows[1] | {"known_at": DAY + HOUR}],
    ),
    ("raw/listings", "known_at", SHOWN, {"known_at": DAY}),
    ("raw/listings", "known_at", SHOWN, lambda rows: [*rows[:2], rows[2] | {"known_at": WHOLE + HOUR}]),
    (
        "rollups/raster",
        "known_at",
        "a market cap was public when the row was known",
        # Known at 00:45 of the next day, so not yet when the first bar of that day begins.
        {"market_cap_ts": DAY - timedelta(days=1) + HOUR},
    ),
    ("labels/forward_returns", "known_at", "outcome and known_at are decided together", {"outcome": None}),
    (
        "labels/forward_returns",
        "known_at",
        "an undecided label holds no value",
        lambda rows: [*rows[:2], rows[2] | {"forward_return_frac": 0.1}],
    ),
    (
        "labels/forward_returns",
        "known_at",
        "a label is not decided before its own bar ends",
        {"outcome": "gap", "known_at": EARLY + HOUR / 2},
    ),
    *(
        (name, "known_at", rule, defect)
        for name in NAMES
        if name.startswith("labels/") and name != "labels/forward_returns"
        for rule, defect in (
            ("an undecided label holds no value", {"known_at": None}),
            ("a label is not decided before its own bar ends", {"known_at": DAY + HOUR / 2}),
        )
    ),
    (
        "labels/forward_returns",
        "known_at",
        "a filled label is known when its exit bar ends, a holding period after its fill",
        {"exit_ts": EARLY + 24 * HOUR, "known_at": EARLY + 25 * HOUR},
    ),
    (
        "labels/forward_returns",
        "known_at",
        "a death is known after the declared silence",
        lambda rows: [rows[0], rows[1] | {"known_at": EARLY + 27 * HOUR}, rows[2]],
    ),
    *(
        (name, "prices", rule, change)
        for name in ("raw/klines", "rollups/klines", "rollups/klines_1w", "rollups/raster")
        for rule, change in {
            "low <= open, close <= high": {"high": 101.0},
            POSITIVE if name == "raw/klines" else "prices are positive": {"low": 0.0},
            "no amount is negative": {"volume_base": -1, "taker_buy_base": -2},
            "takers bought no more than was traded": {"taker_buy_base": 11},
        }.items()
    ),
    ("raw/klines", "prices", "a bar has all four prices", {"open": None}),
    ("raw/klines", "prices", "a bar has all four prices", also(**PREMIUM | {"open": None})),
    ("raw/klines", "prices", "low <= open, close <= high", also(**PREMIUM | {"high": -0.0005})),
    ("raw/klines", "prices", POSITIVE, also(**MARK | {"low": 0.0})),
    ("raw/klines", "prices", POSITIVE, also(**PREMIUM | {"kind": "mark"})),
    ("raw/klines", "prices", "a kind is trade, mark or premium", also(**MARK | {"kind": "index"})),
    (
        "raw/klines",
        "prices",
        "contracts alone have marks and premiums",
        also(**MARK | {"symbol": "BTC/USDT"}),
    ),
    *(
        ("raw/klines", "prices", "marks and premiums have no amounts", also(**row | {name: 0}))
        for row in (MARK, PREMIUM)
        for name in NO_AMOUNTS
    ),
    ("raw/coin_ohlc", "prices", "low <= open, close <= high", {"high_usd": 0.4}),
    ("raw/coin_ohlc", "prices", "prices are positive", {"low_usd": 0.0}),
    ("rollups/klines", "prices", "a bar has all four prices", {"close": None}),
    ("rollups/klines_1w", "prices", "a bar has all four prices", {"close": None}),
    ("rollups/klines_1w", "bounds", "a bar of a week begins on Monday", {"interval": "7d"}),
    ("rollups/raster", "prices", "a market cap has its rank, and ranks begin with 1", {"market_cap_rank": 0}),
    (
        "rollups/raster",
        "prices",
        "a market cap has its rank, and ranks begin with 1",
        {"market_cap_rank": None},
    ),
    ("rollups/raster", "prices", "of the contract: low <= open, close <= high", {"futures_high": 101.0}),
    *(
        ("rollups/raster", "prices", "of the contract: prices are positive", change)
        for change in ({"futures_low": 0.0}, {"mark_price": 0.0})
    ),
    *(
        ("rollups/raster", "prices", "of the contract: no amount is negative", {name: -1})
        for name in (
            "futures_volume_base",
            "futures_turnover_quote",
            "futures_n_trades",
            "futures_taker_buy_base",
            "futures_taker_buy_quote",
            "open_interest_base",
            "open_interest_quote",
        )
    ),
    *(
        ("rollups/raster", "prices", "a book's bid lies below its ask", {name: value})
        for name, value in {"book_spread_bps": 0.0, "book_mid": -1.0, "book_gap_quote": -1.0}.items()
    ),
    *(
        (
            "rollups/raster",
            "known_at",
            "a funding rate was settled before the row was known, and is young enough",
            change,
        )
        for change in (
            {"funding_age_hours": 0.0},
            {"funding_age_hours": 9.01},
            {"funding_age_hours": None},
            {"funding_rate_frac": None},
        )
    ),
    ("rollups/raster", "prices", "a row with a bar has all four prices", {"open": None}),
    ("rollups/raster", "prices", "a row without a bar has no price", {"has_bar": False, "bar_age": 1}),
    ("rollups/raster", "prices", "bar_age is 0 where there is a bar, and only there", {"bar_age": 1}),
    ("rollups/raster", "prices", "a market cap is positive and has its day", {"market_cap_usd": None}),
    ("weights/alpha_weights", "sums_to_one", "weight sums to one in every week", {"weight": 0.3}),
    ("holdings/candidates", "sums_to_one", "w_mkt sums to one in every decision_at", {"w_mkt": 0.5}),
    (
        "holdings/optimal_holdings",
        "sums_to_one",
        "weight_frac sums to one in every decision_at",
        {"weight_frac": 0.49},
    ),
    (
        "holdings/optimal_holdings",
        "sums_to_one",
        "weight_before_frac sums to one in every decision_at",
        {"weight_before_frac": 0.1},
    ),
    ("raw/symbols", "bounds", "a state begins when it is seen", {"valid_from": DAY}),
    ("raw/symbols", "bounds", "a market is spot, perpetual or delivery", {"market_type": "margin"}),
    *(
        ("raw/symbols", "bounds", "contracts alone are settled and delivered", {name: value})
        for name, value in {"settle": "USDT", "contract_type": "PERPETUAL", "delivery_at": WHOLE}.items()
    ),
    ("raw/universe", "bounds", "a market is listed, top or kept", {"chosen_by": "whim"}),
    ("raw/universe", "bounds", "what was chosen by size has a rank", _UNRANKED),
    ("raw/universe", "bounds", RANKED, {"chosen_by": "kept", "turnover_24h_rank": None}),
    ("raw/universe", "bounds", RANKED, {"turnover_24h_quote": None}),
    ("raw/universe", "bounds", RANKED, {"turnover_24h_rank": 0}),
    ("raw/universe", "bounds", "turnover is not negative", {"turnover_24h_quote": -1.0}),
    ("raw/listings", "bounds", "a state ends after it began", {"valid_to": DAY + HOUR}),
    ("raw/listings", "bounds", "an end is known when there is one", {"valid_to_known_at": None}),
    ("raw/listings", "bounds", "states of one market do not overlap", {"valid_to": DAY + 6 * HOUR}),
    ("raw/listings", "bounds", "states of one market do not overlap", _OPEN_END),
    (
        "raw/funding_rates",
        "bounds",
        "a rate is a share of the position, not of a hundred",
        {"funding_rate_frac": -0.11},
    ),
    *(
        (
            "raw/funding_rates",
            "bounds",
            "a settlement is told within a second of its schedule",
            {"settled_at": at},
        )
        for at in (DAY + timedelta(seconds=1), DAY - timedelta(seconds=1))
    ),
    ("raw/funding_rates", "bounds", "a mark price is positive", {"mark_price": 0.0}),
    ("raw/open_interest", "bounds", "open interest is not negative", {"open_interest_quote": -1.0}),
    (
        "raw/order_books",
        "bounds",
        "a level is a bid or an ask",
        lambda rows: [rows[0], rows[1] | {"side": "both", "level": 0}, *rows[2:]],
    ),
    ("raw/order_books", "bounds", "prices and amounts are positive", {"amount_base": 0.0}),
    ("raw/order_books", "bounds", COUNTED, {"level": 2}),
    ("raw/order_books", "bounds", COUNTED, lambda rows: [rows[0], rows[1] | {"price": 99.0}, *rows[2:]]),
    ("raw/order_books", "bounds", COUNTED, lambda rows: [*rows[:3], rows[3] | {"price": 100.0}]),
    ("raw/order_book_summary", "bounds", "a status is a word of the contract", {"status": "fine"}),
    (
        "raw/order_book_summary",
        "bounds",
        "a book that is ok has its bid below its ask",
        {"best_bid": 100.0, "best_ask": 100.0},
    ),
    (
        "raw/order_book_summary",
        "bounds",
        "a side has a best price where it has levels, and only there",
        {"n_bids": 0},
    ),
    ("raw/order_book_summary", "bounds", "the middle lies between the best prices", {"mid": 101.5}),
    *(
        ("raw/order_book_summary", "bounds", "depths and densities are not negative", {name: -0.1})
        for name in ("bid_depth_10_bps_quote", "ask_density_20_bins_base")
    ),
    *(
        ("raw/order_book_summary", "bounds", "an imbalance lies in -1 to 1", {name: value})
        for name, value in {"imbalance_best_frac": 1.1, "imbalance_100_bps_frac": -1.1}.items()
    ),
    *(
        (name, "bounds", "a market cap is positive; unknown is missing", {"market_cap_usd": 0.0})
        for name in ("raw/coins", "raw/market_caps")
    ),
    ("raw/coin_kinds", "bounds", "a kind is a word of the contract", {"kind": "meme"}),
    ("raw/coin_kinds", "bounds", "what is no coin of its own says by what", {"decided_by": None}),
    ("features/universe", "bounds", "a row is eligible, or says why not", {"eligible": False}),
    ("features/universe", "bounds", "history and turnover are not negative", {"history_days": -1.0}),
    ("features/price_action", "bounds", "volatility_24h_log is at least 0", {"volatility_24h_log": -0.1}),
    ("features/price_action", "bounds", "rsi_14h is at least 0 and at most 100", {"rsi_14h": 101.0}),
    (
        "features/price_action",
        "bounds",
        "taker_buy_24h_frac is at least 0 and at most 1",
        {"taker_buy_24h_frac": 1.1},
    ),
    (
        "features/market",
        "bounds",
        "turnover_12h_to_market_cap is at least 0",
        {"turnover_12h_to_market_cap": -0.1},
    ),
    (
        "features/market",
        "bounds",
        "open_interest_to_turnover_12h is at least 0",
        {"open_interest_to_turnover_12h": -0.1},
    ),
    (
        "features/market",
        "bounds",
        "futures_share_12h_frac is at least 0 and at most 1",
        {"futures_share_12h_frac": 1.1},
    ),
    *(
        ("features/every_statistic", "bounds", f"{name} is at least {bounds}", {name: -1.1})
        for name, bounds in {
            "close_lsbm_12": "0",
            "close_fmax_12": "0 and at most 1",
            "close_std_12": "0",
            "close_area_12": "-1 and at most 1",
            "volume_base_lsbm_24": "0",
            "volume_base_fmax_24": "0 and at most 1",
        }.items()
    ),
    *(
        ("features/every_bar", "bounds", f"{name} is at least -1 and at most 1", {name: 1.1})
        for name in ("close_area_6", "futures_close_area_6")
    ),
    ("labels/forward_returns", "bounds", "nothing loses more than all", {"forward_return_frac": -1.1}),
    (
        "weights/alpha_weights",
        "bounds",
        "a weight stands where the fit is ok, and only there",
        everywhere(status="insufficient_history"),
    ),
    ("weights/alpha_weights", "bounds", "a weight lies in 0 to 1", {"weight": -0.1}),
    ("predictions/models", "bounds", "a fit that is ok has its model", {"model_text": None}),
    ("predictions/models", "bounds", "the area under the curve lies in 0 to 1", {"auc": 1.1}),
    ("predictions/scores", "bounds", "a probability lies in 0 to 1", {"probability": -0.1}),
    ("signals/ema_cross", "bounds", "the state is -1, 0 or 1", {"state": 2}),
    ("signals/ema_cross", "bounds", "the signal decays from the state towards 0", {"signal": -0.5}),
    ("signals/thresholds", "bounds", "a threshold lies in 0 to 1", {"buy_threshold": 1.1}),
    ("signals/thresholds", "bounds", "a rule does not buy below where it sells", {"buy_threshold": 0.3}),
    ("signals/trading_signals", "bounds", "the signal is -1, 0 or 1", {"signal": -2}),
    ("holdings/candidates", "bounds", "a share in the prior lies in 0 to 1", {"w_mkt": -0.1}),
    ("holdings/candidates", "bounds", "the eligible alone have a share", {"eligible": False}),
    ("holdings/candidates", "bounds", "risk is positive", {"sigma_frac": 0.0}),
    (
        "holdings/view_fits",
        "bounds",
        "a fit that is ok has its confidence, no other has",
        {"status": "no_views"},
    ),
    ("holdings/view_fits", "bounds", "confidence lies between 0 and 1", {"confidence": 1.0}),
    ("holdings/views", "bounds", "confidence lies between 0 and 1", {"confidence": 0.0}),
    ("holdings/optimal_holdings", "bounds", "a weight lies in 0 to 1", {"weight_frac": -0.1}),
    (
        "holdings/optimal_holdings",
        "bounds",
        "no coin exceeds the cap of 0.25, or 1/n if that is more",
        {"weight_frac": 0.51},
    ),
    (
        "holdings/optimal_holdings",
        "bounds",
        "a decision holds cash once and has one status",
        {"status": "no_views"},
    ),
    ("reports/portfolio_backtest", "bounds", "equity is not negative", {"equity": -0.01}),
    ("reports/portfolio_backtest", "bounds", "turnover and fees are not negative", {"fee_frac": -0.1}),
]


@pytest.mark.parametrize(
    ("name", "check", "rule", "change"),
    DEFECTS,
    ids=[f"{name} {check} {rule[:60]} {place}" for place, (name, check, rule, _) in enumerate(DEFECTS)],
)
def test_a_planted_defect_breaks_its_rule_and_no_other(
    lake: Lake, name: str, check: str, rule: str, change: Row | Change
) -> None:
    table = table_of(name)
    rows = sound_rows(table)
    store(lake, table, [rows[0] | change, *rows[1:]] if isinstance(change, dict) else change(rows))
    result = result_of(lake, name, check)
    assert list(broken(result)) == [rule]
    assert rule in (result.description or "")
    assert result.severity == dg.AssetCheckSeverity.ERROR


LATE = "no row is known after the watermark"


@pytest.mark.parametrize("name", [name for name in NAMES if "known_at" in table_of(name).column_names])
def test_a_row_that_is_known_after_the_watermark_is_found(lake: Lake, name: str) -> None:
    table = table_of(name)
    store(lake, table, sound_rows(table))
    assert LATE not in broken(result_of(lake, name, "known_at"))
    newest = max(row["known_at"] for row in sound_rows(table) if row["known_at"])
    looked_at = table_of("raw/symbols" if name == "raw/listings" else "raw/klines")
    source = table if table.write == "merge" else looked_at
    store(lake, source, sound_rows(source), provenance_of(source, newest - ONE_MINUTE))
    found = broken(result_of(lake, name, "known_at"))
    assert list(found) == [LATE]
    assert f"watermark={newest - ONE_MINUTE}" in found[LATE][1]


def test_rows_of_a_day_that_the_exchange_was_never_read_for_are_found(tmp_path: Path) -> None:
    table = table_of("features/universe")
    lake = Lake(tmp_path)
    store(lake, table, sound_rows(table))
    assert list(broken(result_of(lake, table.name, "known_at"))) == [LATE]


def test_what_the_settings_announce_is_bounded_by_no_look_at_the_exchange(lake: Lake) -> None:
    table = table_of("raw/listings")
    announced = sound_rows(table)[2] | {"valid_from": WHOLE + 30 * HOUR, "known_at": WHOLE + HOUR}
    store(lake, table, [announced])
    assert broken(result_of(lake, table.name, "known_at")) == {}
    store(lake, table, [announced | {"source": "exchange", "known_at": announced["valid_from"]}])
    assert list(broken(result_of(lake, table.name, "known_at"))) == [LATE]


# -- kinds of candles


def test_marks_and_premiums_stand_beside_trades_and_a_premium_may_be_negative(lake: Lake) -> None:
    klines = table_of("raw/klines")
    rows = sound_rows(klines)
    contract = [row | {"symbol": MARK["symbol"]} for row in rows]
    store(lake, klines, [*rows, *contract, *(row | kind for row in rows for kind in (MARK, PREMIUM))])
    found = results(lake, klines)
    assert {check: broken(result) for check, result in found.items()} == dict.fromkeys(found, {})
    assert facts(found["gaps"]) == []


@pytest.mark.parametrize("other", [MARK | {"symbol": "BTC/USDT"}, {"venue": "bybit"}], ids=["mark", "venue"])
def test_other_candles_do_not_stand_in_for_trades_that_are_missing(lake: Lake, other: Row) -> None:
    klines = table_of("raw/klines")
    rows = sound_rows(klines)
    store(lake, klines, [*rows[:5], *rows[6:], *(row | other for row in rows)])
    assert [row["n_intervals"] for row in facts(result_of(lake, "raw/klines", "gaps"))] == [1]


# -- the contract, for every table


def contract_of(lake: Lake, table: Table, rows: Rows, partitions: list[str] | None = None) -> set[str]:
    store(lake, table, rows)
    return set(broken(results(lake, table, partitions, "contract")["contract"]))


@pytest.mark.parametrize("name", NAMES)
def test_a_repeated_key_breaks_the_contract(lake: Lake, name: str) -> None:
    table = table_of(name)
    rows = sound_rows(table)
    assert contract_of(lake, table, [*rows, rows[0]]) == {"a key occurs once"}


@pytest.mark.parametrize("name", NAMES)
def test_an_absent_value_breaks_the_contract_in_every_column_that_must_be_present(
    lake: Lake, name: str
) -> None:
    table = table_of(name)
    first, *others = sound_rows(table)
    needed = [column.name for column in table.columns if column.required or column.name in table.key]
    found = contract_of(lake, table, [first | dict.fromkeys(needed), *others])
    assert found == {f"{column} is present" for column in needed}


@pytest.mark.parametrize("name", NAMES)
def test_an_infinite_number_breaks_the_contract_in_every_column(lake: Lake, name: str) -> None:
    table = table_of(name)
    first, *others = sound_rows(table)
    numbers = [column.name for column in table.columns if column.type == "DOUBLE"]
    found = contract_of(lake, table, [first | dict.fromkeys(numbers, -math.inf), *others])
    assert found == {f"{column} is finite" for column in numbers}


@pytest.mark.parametrize("name", [name for name in NAMES if table_of(name).clock != "none"])
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_row_outside_its_partition_breaks_the_contract(lake: Lake, name: str, side: str) -> None:
    table = table_of(name)
    first, *others = sound_rows(table)
    start = start_of(table.clock, partition_of(table))
    moment = start - timedelta(microseconds=1) if side == "before" else start + length_of(table.clock)
    moved = first | {table.time_column: moment}
    if moved.get("known_at"):
        moved["known_at"] = moment
    assert contract_of(lake, table, [moved, *others]) == {f"{table.time_column} lies in its partition"}


@pytest.mark.parametrize(
    "name",
    [name for name in NAMES if {"known_at", table_of(name).time_column} <= set(table_of(name).column_names)],
)
def test_a_row_that_is_known_before_its_time_breaks_the_contract(lake: Lake, name: str) -> None:
    table = table_of(name)
    first, *others = sound_rows(table)
    early = first | {"known_at": first[table.time_column] - ONE_MINUTE}
    assert contract_of(lake, table, [early, *others]) == {f"known_at is not before {table.time_column}"}


@pytest.mark.parametrize("name", NAMES)
def test_a_partition_that_the_run_did_not_store_breaks_the_contract(tmp_path: Path, name: str) -> None:
    table = table_of(name)
    found = broken(results(Lake(tmp_path), table, [partition_of(table)])["contract"])
    assert list(found) == ["every partition of the run is stored"]


def test_a_file_of_another_contract_fails_its_check_alone_and_the_others_wait(lake: Lake) -> None:
    table = table_of("features/universe")
    store(lake, table, sound_rows(table))
    path = lake.path(table, partition_of(table))
    rows = pq.read_table(path)
    at = rows.column_names.index("history_days")
    pq.write_table(rows.set_column(at, "history_days", rows["history_days"].cast(pa.float32())), path)
    found = results(lake, table)
    assert list(found) == ["contract"]
    assert list(broken(found["contract"])) == ["columns and types are those of the contract"]


def test_a_file_with_fewer_rows_than_it_states_breaks_the_contract(lake: Lake) -> None:
    table = table_of("raw/klines")
    path = lake.path(table, partition_of(table))
    rows = pq.read_table(path)
    pq.write_table(rows.slice(1), path)
    found = broken(results(lake, table)["contract"])
    assert list(found) == ["a file holds as many rows as it states"]
    assert "n_rows=23, n_stated=24" in found["a file holds as many rows as it states"][1]


def test_a_damaged_file_is_an_error_that_names_it(lake: Lake) -> None:
    table = table_of("raw/klines")
    path = lake.path(table, partition_of(table))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(WarehouseError, match=str(path)):
        results(lake, table)


def test_a_failure_counts_its_rows_and_shows_the_first_with_key_and_reason(lake: Lake) -> None:
    table = table_of("raw/klines")
    rows = [row | {"high": 101.0} for row in sound_rows(table)[:7]] + sound_rows(table)[7:]
    store(lake, table, rows)
    n, first = broken(results(lake, table)["prices"])["low <= open, close <= high"]
    assert n == 7
    shown = first.split(" | ")
    assert len(shown) == 5
    assert shown[0].startswith(
        "venue=binance, symbol=BTC/USDT, kind=trade, interval=1h, ts=2024-01-10 00:00:00"
    )
    assert "high=101.0" in shown[0]
    assert "volume_base" not in shown[0]


def test_only_the_named_checks_are_evaluated(lake: Lake) -> None:
    table = table_of("raw/klines")
    assert list(results(lake, table, None, "gaps", "prices")) == ["prices", "gaps"]


def test_every_rule_has_a_planted_defect() -> None:
    rules = {
        (name, check.name, rule.text)
        for name in NAMES
        for check in checks_of(table_of(name), SETTINGS)
        # The contract's rules, gaps and findings have tests of their own.
        if check.name not in ("contract", "gaps") and check.severity == dg.AssetCheckSeverity.ERROR
        for rule in check.rules
        if rule.text != LATE
    }
    assert rules == {(name, check, rule) for name, check, rule, _ in DEFECTS}


# -- hours, and the days that they are put into

BOOKS = table_of("raw/order_books")
SIXTH = "2024-01-10-06:00"


def store_hours(lake: Lake, *, misplaced: bool = False) -> None:
    """The books of 05:00 and 06:00; one level of the second may lie in the file of the first."""
    fifth = sound_rows(BOOKS)
    sixth = [row | {"ts": row["ts"] + HOUR, "known_at": row["known_at"] + HOUR} for row in fifth]
    moved = sixth[:1] if misplaced else []
    store(lake, BOOKS, fifth + moved)
    store(lake, BOOKS, sixth[len(moved) :], replace(provenance_of(BOOKS), partition=SIXTH))


def compact(lake: Lake) -> None:
    assert lake.compact(BOOKS, WHOLE.date()) == [str(DAY.date())]


def test_an_hour_is_found_under_its_key(lake: Lake) -> None:
    store_hours(lake)
    assert lake.partitions(BOOKS) == [partition_of(BOOKS), SIXTH] == ["2024-01-10-05:00", SIXTH]
    found = results(lake, BOOKS)
    assert {check: broken(result) for check, result in found.items()} == dict.fromkeys(found, {})


@pytest.mark.parametrize("arrange", [lambda lake: None, compact], ids=["by hour", "by day"])
def test_a_row_in_the_file_of_another_hour_is_found(lake: Lake, arrange: Callable[[Lake], None]) -> None:
    store_hours(lake, misplaced=True)
    arrange(lake)
    inside = "ts lies in its partition"
    assert {rule: n for rule, (n, _) in broken(results(lake, BOOKS)["contract"]).items()} == {inside: 1}
    alone = {key: set(broken(results(lake, BOOKS, [key])["contract"])) for key in lake.partitions(BOOKS)}
    assert alone == {partition_of(BOOKS): {inside}, SIXTH: set()}


def test_an_hour_of_a_compacted_day_is_bounded_by_its_own_watermark(lake: Lake) -> None:
    early = replace(provenance_of(BOOKS), watermark=CAME - JITTER)
    store(lake, BOOKS, sound_rows(BOOKS), early)
    store(lake, BOOKS, [], replace(early, partition=SIXTH, watermark=WHOLE))
    compact(lake)
    found = broken(results(lake, BOOKS)["known_at"])
    assert list(found) == [LATE]
    assert f"partition_key={partition_of(BOOKS)}" in found[LATE][1]


# -- findings of quality: table -> (what makes the sound row one, the series that is shown)

_OF_KLINES = {"asset": "raw/klines", "venue": "binance", "symbol": "BTC/USDT"}
PLANTED: dict[str, tuple[Row, Row]] = {
    "quality/coverage": ({"n_unexplained": 3}, _OF_KLINES | {"kind": "trade", "interval": "1h"}),
    "quality/gaps": ({"origin": "ours"}, _OF_KLINES | {"kind": "trade", "interval": "1h"}),
    "quality/anomalies": (
        {"kind": "jump"},
        _OF_KLINES | {"series_kind": "trade", "interval": "1h", "kind": "jump"},
    ),
    "quality/reconciliation": (
        {"agrees": False},
        {"pair": "spot_mark", "venue": "binance", "symbol": "BTC/USDT", "other": "BTC/USDT:USDT"},
    ),
    "quality/revisions": (
        {"new_value": "98.9"},
        {"asset": "raw/klines", "series": "BTC/USDT", "kind": "trade", "column_name": "close"},
    ),
    "quality/source_files": (
        {"published_again": True},
        {"origin": "archive", "venue": "binance", "symbol": "BTC/USDT", "kind": "trade", "interval": "1h"},
    ),
}


def finding_of(lake: Lake, name: str, rows: Rows) -> dg.AssetCheckResult:
    store(lake, table_of(name), rows)
    return result_of(lake, name, FINDINGS[name].name)


def test_every_finding_has_a_planted_one() -> None:
    assert set(PLANTED) == set(FINDINGS)


@pytest.mark.parametrize("name", PLANTED)
def test_findings_warn_with_their_number_and_time_by_series(lake: Lake, name: str) -> None:
    (sound,) = sound_rows(table_of(name))
    change, series = PLANTED[name]
    moment = "ts" if "ts" in sound else "seen_at"
    found = [sound | change | {moment: at} for at in (DAY, DAY + HOUR, WHOLE)]
    other = sound | change | {key: "another" for key in ("venue", "asset") if key in sound} | {moment: DAY}
    result = finding_of(lake, name, [*([] if name in OF_FINDINGS_ALONE else [sound]), other, *found])
    assert result.severity == dg.AssetCheckSeverity.WARN
    assert [n for n, _ in broken(result).values()] == [4]
    first, second = facts(result, "findings by series")
    assert first == series | {"n_findings": 3, "first": str(DAY), "last": str(WHOLE)}
    assert (second["n_findings"], "another" in second.values()) == (1, True)


@pytest.mark.parametrize("name", PLANTED)
def test_nothing_is_shown_where_nothing_was_found(lake: Lake, name: str) -> None:
    rows = [] if name in OF_FINDINGS_ALONE else sound_rows(table_of(name))
    result = finding_of(lake, name, rows)
    assert result.passed
    assert facts(result, "findings by series") == []


@pytest.mark.parametrize(
    ("change", "is_found"),
    {
        "less": ({"new_value": "99.1"}, False),
        "more": ({"new_value": "101.1"}, True),
        "an amount": ({"column_name": "volume_base", "new_value": "200.0"}, False),
        "a value that was missing": ({"old_value": None}, False),
        "a premium": (
            {"row_key": '{"symbol": "BTC/USDT:USDT", "kind": "premium"}', "new_value": "200.0"},
            False,
        ),
        "a mark": ({"row_key": '{"symbol": "BTC/USDT:USDT", "kind": "mark"}', "new_value": "200.0"}, True),
        "a coin": ({"row_key": '{"coin_id": "bitcoin"}', "column_name": "price_usd", "new_value": "9"}, True),
        "a candle": ({"row_key": '{"coin_id": "bitcoin"}', "column_name": "low_usd", "new_value": "9"}, True),
    }.values(),
    ids=str,
)
def test_prices_alone_are_watched_for_large_revisions(lake: Lake, change: Row, is_found: bool) -> None:
    (sound,) = sound_rows(table_of("quality/revisions"))
    result = finding_of(lake, "quality/revisions", [sound | change])
    assert result.passed is not is_found
    shown = [row["series"] for row in facts(result, "findings by series")]
    assert len(shown) == is_found and None not in shown


# -- what may be, though it seems odd


def test_a_total_loss_is_possible(lake: Lake) -> None:
    table = table_of("reports/portfolio_backtest")
    store(lake, table, everywhere(equity=0.0)(sound_rows(table)))
    assert broken(result_of(lake, table.name, "bounds")) == {}


# -- gaps

ANSWERED = "the source has answered for every interval"
HERE = "every interval that the source holds is here"


def facts(result: dg.AssetCheckResult, name: str = "gaps of the source") -> list[Row]:
    shown = result.metadata.get(name)
    return [dict(record.data) for record in shown.records] if isinstance(shown, dg.TableMetadataValue) else []


def bars_of(table: Table, absent: range, **values: object) -> Rows:
    """The sound rows of a day without some hours; on the raster an absent bar leaves a row without prices."""
    rows = []
    for hour, row in enumerate(sound_rows(table)):
        if hour not in absent:
            rows.append(row | values)
        elif table.name == "rollups/raster":
            nothing = dict.fromkeys(("open", "high", "low", "close"))
            rows.append(row | nothing | {"has_bar": False, "bar_age": hour - absent.start + 1} | values)
    return rows


def store_day(lake: Lake, raw: range, raster: range, provenance: Provenance | None = None) -> None:
    klines = table_of("raw/klines")
    store(lake, klines, bars_of(klines, raw), provenance)
    store(lake, table_of("rollups/raster"), bars_of(table_of("rollups/raster"), raster))


def uncovered(hours: range, market: str = "BTC/USDT") -> Provenance:
    """The source was asked for the whole day, but for some hours of one market."""
    said = provenance_of(table_of("raw/klines"))
    left, right = DAY + hours.start * HOUR, DAY + hours.stop * HOUR
    parts = tuple((a, b) for a, b in ((DAY, left), (right, WHOLE)) if a < b)
    coverage = [item for item in said.coverage if market not in item.series]
    return replace(said, coverage=(*coverage, SeriesCoverage(f"binance|{market}|trade|1h", parts)))


@pytest.mark.parametrize("name", ["raw/klines", "rollups/raster"])
def test_a_gap_that_the_exchange_confirmed_passes_and_is_shown(lake: Lake, name: str) -> None:
    store_day(lake, range(5, 8), range(5, 8))
    result = result_of(lake, name, "gaps")
    assert result.passed
    assert facts(result) == [
        {
            "symbol": "BTC/USDT",
            "first": "2024-01-10 05:00:00",
            "last": "2024-01-10 07:00:00",
            "n_intervals": 3,
        }
    ]
    assert facts(result, "gaps of the source in all") == [{"n_series": 1, "n_intervals": 3}]


def test_gaps_are_shown_longest_first_and_apart(lake: Lake) -> None:
    klines = table_of("raw/klines")
    bars = [row for hour, row in enumerate(sound_rows(klines)) if hour not in (3, 10, 11)]
    store(lake, klines, bars)
    assert [(row["first"], row["n_intervals"]) for row in facts(result_of(lake, "raw/klines", "gaps"))] == [
        ("2024-01-10 10:00:00", 2),
        ("2024-01-10 03:00:00", 1),
    ]


@pytest.mark.parametrize("name", ["raw/klines", "rollups/raster"])
def test_a_gap_that_nobody_asked_about_warns(lake: Lake, name: str) -> None:
    store_day(lake, range(5, 9), range(5, 9), uncovered(range(6, 8)))
    result = result_of(lake, name, "gaps")
    assert result.severity == dg.AssetCheckSeverity.WARN
    n, first = broken(result)[ANSWERED]
    assert n == 1
    assert "symbol=BTC/USDT" in first
    assert "first=2024-01-10 06:00:00, last=2024-01-10 07:00:00, n=2" in first
    assert [str(row["first"])[11:16] for row in facts(result)] == ["05:00", "08:00"]


@pytest.mark.parametrize("name", ["raw/klines", "rollups/raster"])
def test_a_market_that_was_never_asked_for_warns(lake: Lake, name: str) -> None:
    store_day(lake, range(0), range(0), uncovered(range(24), "ETH/USDT"))
    n, first = broken(result_of(lake, name, "gaps"))[ANSWERED]
    assert n == 1
    assert "symbol=ETH/USDT" in first
    assert "n=24" in first


@pytest.mark.parametrize("row_kept", [True, False], ids=["row without a bar", "no row"])
def test_a_bar_that_the_source_holds_and_the_raster_lacks_warns(lake: Lake, row_kept: bool) -> None:
    raster = table_of("rollups/raster")
    rows = bars_of(raster, range(5, 6))
    store(lake, raster, rows if row_kept else [*rows[:5], *rows[6:]])
    result = result_of(lake, "rollups/raster", "gaps")
    assert result.severity == dg.AssetCheckSeverity.WARN
    n, first = broken(result)[HERE]
    assert n == 1
    assert "first=2024-01-10 05:00:00, last=2024-01-10 05:00:00" in first


def test_bars_outside_every_declared_life_are_not_missed_on_the_raster(lake: Lake) -> None:
    store_day(lake, range(0), range(20, 24))
    assert list(broken(result_of(lake, "rollups/raster", "gaps"))) == [HERE]
    dead = Listing(symbol="BTC/USDT", listing_id="BTC/USDT#1", valid_to=DAY + 20 * HOUR)
    settings = SETTINGS.model_copy(update={"listings": (dead,)})
    assert broken(result_of(lake, "rollups/raster", "gaps", settings)) == {}


def test_a_silence_before_the_first_bar_is_no_gap_of_the_market(lake: Lake) -> None:
    klines = table_of("raw/klines")
    store(lake, klines, sound_rows(klines)[10:])
    result = result_of(lake, "raw/klines", "gaps")
    assert result.passed
    assert facts(result) == []


@pytest.mark.parametrize("name", ["raw/klines", "rollups/raster"])
def test_nothing_is_expected_after_the_watermark(lake: Lake, name: str) -> None:
    klines = table_of("raw/klines")
    # The next bar is half over.
    read_until = DAY + 6 * HOUR + HOUR / 2
    said = provenance_of(klines, read_until)
    asked = covering(*SETTINGS.universe.markets, stop=DAY + 6 * HOUR)
    store_day(lake, range(6, 24), range(6, 24), replace(said, coverage=asked))
    assert broken(result_of(lake, name, "gaps")) == {}
    store_day(lake, range(6, 24), range(6, 24), replace(said, coverage=asked, watermark=DAY + 7 * HOUR))
    assert list(broken(result_of(lake, name, "gaps"))) == [ANSWERED]


def test_a_market_cap_that_the_source_does_not_know_passes_and_is_shown(lake: Lake) -> None:
    caps = table_of("raw/market_caps")
    (row,) = sound_rows(caps)
    unknown = row | {"coin_id": "ethereum", "market_cap_usd": None}
    both = covering("bitcoin", "ethereum", name="coingecko|{}|market_cap|1d")
    store_coins(lake, {"bitcoin": "BTC/USDT", "ethereum": "ETH/USDT"})
    store(lake, caps, [row, unknown], replace(provenance_of(caps), coverage=both))
    result = result_of(lake, "raw/market_caps", "gaps")
    assert result.passed
    assert [row["coin_id"] for row in facts(result)] == ["ethereum"]


def test_a_market_cap_that_nobody_asked_about_warns_once_it_is_published(lake: Lake) -> None:
    caps = table_of("raw/market_caps")
    store_coins(lake, {"bitcoin": "BTC/USDT"})
    unasked = replace(provenance_of(caps), coverage=())
    store(lake, caps, [], replace(unasked, watermark=PUBLISHED - ONE_MINUTE))
    assert broken(result_of(lake, "raw/market_caps", "gaps")) == {}
    store(lake, caps, [], unasked)
    n, first = broken(result_of(lake, "raw/market_caps", "gaps"))[ANSWERED]
    assert n == 1
    assert "coin_id=bitcoin" in first


def test_a_coin_whose_market_has_left_the_universe_is_not_missed(lake: Lake) -> None:
    caps = table_of("raw/market_caps")
    store_coins(lake, {"bitcoin": "BTC/USDT", "gone-coin": "GONE/USDT"})
    left = (
        *covering("bitcoin", name="coingecko|{}|market_cap|1d"),
        SeriesCoverage("coingecko|gone-coin|market_cap|1d", ()),
    )
    store(lake, caps, sound_rows(caps), replace(provenance_of(caps), coverage=left))
    assert broken(result_of(lake, "raw/market_caps", "gaps")) == {}


def store_coins(lake: Lake, symbols: Mapping[str, str]) -> None:
    coins = table_of("raw/coins")
    (row,) = sound_rows(coins)
    store(lake, coins, [row | {"coin_id": coin_id, "symbol": name} for coin_id, name in symbols.items()])


# -- holdings that may exceed the cap


def test_drifted_weights_that_were_kept_may_exceed_the_cap(lake: Lake) -> None:
    table = table_of("holdings/optimal_holdings")
    btc, eth, cash = sound_rows(table)
    heavy = [btc | {"weight_frac": 0.7}, eth, cash | {"weight_frac": 0.05}]
    store(lake, table, heavy)
    assert list(broken(result_of(lake, table.name, "bounds"))) == [
        f"no coin exceeds the cap of {SETTINGS.portfolio.max_weight:g}, or 1/n if that is more"
    ]
    store(lake, table, everywhere(status="infeasible_kept_drifted")(heavy))
    assert broken(result_of(lake, table.name, "bounds")) == {}


# -- inside a run

UNIVERSE = table_of("features/universe")
DAYS = ("2024-01-09", "2024-01-10", "2024-01-11")


def definition_of(table: Table) -> dg.AssetChecksDefinition:
    (found,) = (
        checks
        for checks in asset_checks(SETTINGS)
        if {"/".join(key.asset_key.path) for key in checks.check_keys} == {table.name}
    )
    return found


def definitions(
    lake: Lake,
    rows_of: Callable[[str], Rows],
    table: Table = UNIVERSE,
    clock: dg.TimeWindowPartitionsDefinition = DAILY,
) -> dg.Definitions:
    """A table as somebody's asset that stores what it likes, and an asset that follows it."""

    @dg.asset(key=table.name.split("/"), partitions_def=clock, backfill_policy=dg.BackfillPolicy.single_run())
    def made_up(context: dg.AssetExecutionContext) -> None:
        for key in context.partition_keys:
            store(lake, table, rows_of(key), replace(provenance_of(table), partition=key))

    @dg.asset(deps=[made_up], partitions_def=clock, backfill_policy=dg.BackfillPolicy.single_run())
    def follower() -> None: ...

    return dg.Definitions(
        assets=[made_up, follower],
        asset_checks=[definition_of(table)],
        resources={"warehouse": WarehouseResource(folder=str(lake.folder))},
        executor=dg.in_process_executor,
    )


def day_rows(key: str, **values: object) -> Rows:
    start = datetime.fromisoformat(key)
    return [row | {"ts": start, "known_at": start + HOUR} | values for row in sound_rows(UNIVERSE)]


def run(definitions: dg.Definitions, first: str, last: str | None = None) -> dg.ExecuteInProcessResult:
    tags = {
        "dagster/asset_partition_range_start": first,
        "dagster/asset_partition_range_end": last or first,
    }
    job = definitions.resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        if last is None:
            return job.execute_in_process(partition_key=first, instance=instance, raise_on_error=False)
        return job.execute_in_process(tags=tags, instance=instance, raise_on_error=False)


def outcomes(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {item.check_name: item.passed for item in result.get_asset_check_evaluations()}


def made(result: dg.ExecuteInProcessResult) -> set[str]:
    return {
        event.asset_key.path[-1] for event in result.get_asset_materialization_events() if event.asset_key
    }


@pytest.fixture
def read_lake(lake: Lake) -> Lake:
    klines = table_of("raw/klines")
    for key in DAYS:
        end = datetime.fromisoformat(key) + timedelta(days=1)
        store(lake, klines, [], Provenance(klines.name, key, watermark=end))
    return lake


@pytest.mark.parametrize("last", [None, DAYS[-1]], ids=["one partition", "range"])
def test_checks_run_in_the_run_that_materializes(read_lake: Lake, last: str | None) -> None:
    result = run(definitions(read_lake, day_rows), DAYS[0], last)
    assert result.success
    assert made(result) == {"universe", "follower"}
    assert outcomes(result) == {"contract": True, "known_at": True, "bounds": True}
    shown = {item.metadata["partitions"].value for item in result.get_asset_check_evaluations()}
    assert shown == {1 if last is None else 3}


@pytest.mark.parametrize("last", [None, DAYS[-1]], ids=["one partition", "range"])
def test_a_broken_contract_keeps_what_follows_from_being_made(read_lake: Lake, last: str | None) -> None:
    result = run(definitions(read_lake, lambda key: day_rows(key) * 2), DAYS[0], last)
    assert not result.success
    assert made(result) == {"universe"}
    assert outcomes(result) == {"contract": False, "known_at": True, "bounds": True}


def test_any_other_failure_is_reported_and_lets_the_run_go_on(read_lake: Lake) -> None:
    result = run(definitions(read_lake, lambda key: day_rows(key, eligible=False)), DAYS[0])
    assert result.success
    assert made(result) == {"universe", "follower"}
    assert outcomes(result) == {"contract": True, "known_at": True, "bounds": False}


def test_a_run_looks_at_its_own_partitions_alone_and_a_check_by_itself_at_all(read_lake: Lake) -> None:
    broken_day = definitions(read_lake, lambda key: day_rows(key, eligible=key != DAYS[0]))
    assert outcomes(run(broken_day, DAYS[0]))["bounds"] is False
    assert outcomes(run(broken_day, DAYS[1], DAYS[2]))["bounds"] is True
    assert outcomes(run(broken_day, DAYS[0], DAYS[2]))["bounds"] is False

    alone = dg.Definitions(
        asset_checks=[definition_of(UNIVERSE)],
        resources={"warehouse": WarehouseResource(folder=str(read_lake.folder))},
    )
    with dg.DagsterInstance.ephemeral() as instance:
        result = alone.resolve_implicit_global_asset_job_def().execute_in_process(instance=instance)
    assert outcomes(result)["bounds"] is False
    assert {item.metadata["partitions"].value for item in result.get_asset_check_evaluations()} == {3}


def test_a_run_of_hours_looks_at_its_own_hours_alone(lake: Lake) -> None:
    def hour_rows(key: str) -> Rows:
        late = start_of("hourly", key) - start_of("hourly", partition_of(BOOKS))
        moved = [
            row | {"ts": row["ts"] + late, "known_at": row["known_at"] + late} for row in sound_rows(BOOKS)
        ]
        return moved if key != SIXTH else everywhere(price=-1.0)(moved[:1])

    books = definitions(lake, hour_rows, BOOKS, HOURLY)
    fifth = run(books, partition_of(BOOKS))
    assert fifth.success and made(fifth) == {"order_books", "follower"}
    assert outcomes(fifth) == {"contract": True, "known_at": True, "bounds": True}
    assert outcomes(run(books, SIXTH))["bounds"] is False
    assert outcomes(run(books, "2024-01-10-07:00", "2024-01-10-08:00"))["bounds"] is True
    assert outcomes(run(books, partition_of(BOOKS), "2024-01-10-08:00"))["bounds"] is False
