"""Every rule of every check is broken once by a planted defect and holds on sound rows.

Sound rows are written by hand, so that a test says what a table may look like. A defect bypasses the I/O manager, which
would refuse most of them: checks are there for what reaches the disk in spite of it. Dagster reads annotations as
objects, so this module does not postpone them.
"""

import math
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
from crypto_assets.partitions import DAILY
from crypto_assets.resources.warehouse.io_manager import WarehouseResource
from crypto_assets.resources.warehouse.lake import Lake, Provenance, SeriesCoverage, WarehouseError
from crypto_assets.schemas import TABLES, Table, table_of
from crypto_assets.settings import Listing, Settings, current_settings

SETTINGS = current_settings()
DAY = datetime(2024, 1, 10)
MONDAY = datetime(2024, 1, 8)
#: A day whose labels are decided by the end of ``DAY``.
EARLY = MONDAY
HOUR = timedelta(hours=1)
WHOLE = DAY + timedelta(days=1)
PUBLISHED = WHOLE + timedelta(minutes=45)
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
_BARS = [{"ts": DAY + hour * HOUR, "known_at": DAY + (hour + 1) * HOUR} for hour in range(24)]
_CUT = [{"known_at": MONDAY}]
_UNDECIDED = {
    "known_at": None,
    "fill_ts": None,
    "exit_ts": None,
    "forward_return_frac": None,
    "outcome": None,
}
#: What sound rows hold besides the values above, table by table; one row where nothing is said.
SOUND: dict[str, Rows] = {
    "raw/symbols": [{"valid_from": DAY + HOUR}],
    "raw/klines": _BARS,
    "raw/market_caps": [{"known_at": PUBLISHED}],
    "rollups/klines": [
        *({"interval": "1h"} | bar for bar in _BARS),
        {"interval": "4h", "known_at": DAY + 4 * HOUR},
        {"interval": "1d", "known_at": WHOLE},
    ],
    "rollups/raster": _BARS,
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
}


def sound_rows(table: Table) -> Rows:
    filled = {column.name: _OF_COLUMN.get(column.name, _OF_TYPE[column.type]) for column in table.columns}
    return [filled | row for row in SOUND.get(table.name, [{}])]


def partition_of(table: Table) -> str:
    if table.clock == "none":
        return ""
    return (
        str(sound_rows(table)[0][table.time_column].date()) if table.clock == "daily" else str(MONDAY.date())
    )


def covering(
    *markets: str, stop: datetime = WHOLE, name: str = "binance|{}|1h"
) -> tuple[SeriesCoverage, ...]:
    return tuple(SeriesCoverage(name.format(market), ((DAY, stop),)) for market in markets)


def provenance_of(table: Table, watermark: datetime | None = None) -> Provenance:
    said = Provenance(table.name, partition_of(table))
    if table.name == "raw/klines":
        coverage = covering(*SETTINGS.universe.markets)
        return replace(said, watermark=watermark or WHOLE, coverage=coverage)
    if table.name == "raw/market_caps":
        coverage = covering("bitcoin", name="coingecko|{}|1d")
        return replace(said, watermark=watermark or PUBLISHED, coverage=coverage)
    return replace(said, watermark=watermark or WHOLE) if table.write == "merge" else said


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


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """A warehouse whose exchange was read for the day."""
    lake = Lake(tmp_path)
    store(lake, table_of("raw/klines"), sound_rows(table_of("raw/klines")))
    return lake


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
    store(lake, table, sound_rows(table))
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


ONE_MINUTE = timedelta(minutes=1)
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
        "a label is decided after its own bar",
        {"outcome": "gap", "known_at": EARLY + HOUR},
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
        for name in ("raw/klines", "rollups/klines", "rollups/raster")
        for rule, change in {
            "low <= open, close <= high": {"high": 101.0},
            "prices are positive": {"low": 0.0},
            "no amount is negative": {"volume_base": -1, "taker_buy_base": -2},
            "takers bought no more than was traded": {"taker_buy_base": 11},
        }.items()
    ),
    ("raw/klines", "prices", "a bar has all four prices", {"open": None}),
    ("rollups/klines", "prices", "a bar has all four prices", {"close": None}),
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
    ("features/universe", "bounds", "a row is eligible, or says why not", {"eligible": False}),
    ("features/universe", "bounds", "history and turnover are not negative", {"history_days": -1.0}),
    ("features/technical", "bounds", "volatility is not negative", {"volatility_24h_log": -0.1}),
    ("features/technical", "bounds", "the true range is not negative", {"atr_14h_frac": -0.1}),
    ("features/technical", "bounds", "the strength index lies in 0 to 100", {"rsi_14h": 101.0}),
    ("features/technical", "bounds", "the share of taker buys lies in 0 to 1", {"taker_buy_24h_frac": 1.1}),
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


@pytest.mark.parametrize(("name", "check", "rule", "change"), DEFECTS, ids=lambda value: str(value)[:60])
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
    table, klines = table_of(name), table_of("raw/klines")
    store(lake, table, sound_rows(table))
    assert LATE not in broken(result_of(lake, name, "known_at"))
    newest = max(row["known_at"] for row in sound_rows(table) if row["known_at"])
    source = table if table.write == "merge" else klines
    store(lake, source, sound_rows(source), provenance_of(source, newest - ONE_MINUTE))
    found = broken(result_of(lake, name, "known_at"))
    assert list(found) == [LATE]
    assert f"watermark={newest - ONE_MINUTE}" in found[LATE][1]


def test_rows_of_a_day_that_the_exchange_was_never_read_for_are_found(tmp_path: Path) -> None:
    table = table_of("features/universe")
    lake = Lake(tmp_path)
    store(lake, table, sound_rows(table))
    assert list(broken(result_of(lake, table.name, "known_at"))) == [LATE]


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
    start = datetime.fromisoformat(partition_of(table))
    length = timedelta(days=1 if table.clock == "daily" else 7)
    moment = start - timedelta(microseconds=1) if side == "before" else start + length
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
    found = broken(results(Lake(tmp_path), table_of(name), ["2024-01-10"])["contract"])
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
        # The contract's rules and the gaps have tests of their own.
        if check.name not in ("contract", "gaps")
        for rule in check.rules
        if rule.text != LATE
    }
    assert rules == {(name, check, rule) for name, check, rule, _ in DEFECTS}


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
    return replace(said, coverage=(*coverage, SeriesCoverage(f"binance|{market}|1h", parts)))


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
    both = covering("bitcoin", "ethereum", name="coingecko|{}|1d")
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
    left = (*covering("bitcoin", name="coingecko|{}|1d"), SeriesCoverage("coingecko|gone-coin|1d", ()))
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


def checks_of_universe() -> dg.AssetChecksDefinition:
    (found,) = (
        checks
        for checks in asset_checks(SETTINGS)
        if {key.asset_key.path[-1] for key in checks.check_keys} == {UNIVERSE.table}
    )
    return found


def definitions(lake: Lake, rows_of: Callable[[str], Rows]) -> dg.Definitions:
    """features/universe as somebody's asset that stores what it likes, and an asset that follows it."""

    @dg.asset(
        key=["features", "universe"], partitions_def=DAILY, backfill_policy=dg.BackfillPolicy.single_run()
    )
    def universe(context: dg.AssetExecutionContext) -> None:
        for key in context.partition_keys:
            store(lake, UNIVERSE, rows_of(key), Provenance(UNIVERSE.name, key))

    @dg.asset(deps=[universe], partitions_def=DAILY, backfill_policy=dg.BackfillPolicy.single_run())
    def follower() -> None: ...

    return dg.Definitions(
        assets=[universe, follower],
        asset_checks=[checks_of_universe()],
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
        asset_checks=[checks_of_universe()],
        resources={"warehouse": WarehouseResource(folder=str(read_lake.folder))},
    )
    with dg.DagsterInstance.ephemeral() as instance:
        result = alone.resolve_implicit_global_asset_job_def().execute_in_process(instance=instance)
    assert outcomes(result)["bounds"] is False
    assert {item.metadata["partitions"].value for item in result.get_asset_check_evaluations()} == {3}
