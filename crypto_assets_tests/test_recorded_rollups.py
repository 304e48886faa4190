"""The real dbt roll-ups of recorded bars against the exchange's own longer bars, to the last digit.

Two recordings of one market, made by strangers at different times, meet here: what we make of the shorter bars must be
what the exchange made of them. A difference is allowed where the bar is not ``complete``, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from crypto_assets.intervals import WEEK, WEEK_MS, interval_ms
from crypto_assets.partitions import floor_of, keys_of
from crypto_assets.resources import dbt
from crypto_assets.resources.warehouse import Lake, Provenance, conform
from crypto_assets.schemas import Table
from crypto_assets.settings import MaxAges
from crypto_assets.simulation.bars import (
    CLOSE,
    HIGH,
    LOW,
    N_DECIMALS,
    OPEN,
    TAKER_BASE,
    TAKER_QUOTE,
    UNITS,
    UNKNOWN,
    VOLUME_BASE,
    VOLUME_QUOTE,
    Bars,
)
from crypto_assets.simulation.recordings import load_recordings
from crypto_assets.tables import table_of
from crypto_assets_tests.recorded import RECORDED, needs_recorded

pytestmark = [needs_recorded, pytest.mark.slow]

DAY = timedelta(days=1)
RAW, ROLLED, WEEKS = (table_of(name) for name in ("raw/klines", "rollups/klines", "rollups/klines_1w"))
OHLCV = ("open", "high", "low", "close", "volume_base")
ALL = (*OHLCV, "volume_quote", "n_trades", "taker_buy_base", "taker_buy_quote")

HOURS_2021_2023 = "spot_1h_2021_2023/dev/{}USDT-1h.csv.gz"
WIRE = "spot_wire_static_klines/dev/{}USDT-{}.tar.gz"
#: Minutes, the market's recorded hours, the columns both recorded exactly, complete hours, and incomplete ones (the
#: recording's own ends and the outage of 2023-03-24) with their number of minutes.
MINUTES = {
    "BTC 2021-07": (
        "spot_1m_full/BTCUSDT-1m-2021-07-01_15.csv.gz",
        HOURS_2021_2023.format("BTC"),
        OHLCV,
        335,
        {"2021-07-01 15:00": 18, "2021-07-15 15:00": 43},
    ),
    "BTC 2021-11": (
        "spot_1m_ohlcv/BTC_USDT-1m-2021-11-11_12-11.json.gz",
        HOURS_2021_2023.format("BTC"),
        OHLCV,
        719,
        {"2021-11-11 09:00": 48, "2021-12-11 09:00": 11},
    ),
    "BTC 2023-03": (
        "spot_1m_ohlcv/BTC_USDT-1m-2023-03-16_05-01.json.gz",
        HOURS_2021_2023.format("BTC"),
        OHLCV,
        1100,
        {"2023-03-16 22:00": 45, "2023-03-24 12:00": 40, "2023-05-01 21:00": 2},
    ),
    "BTC 2023-03 against the wire": (
        "spot_1m_ohlcv/BTC_USDT-1m-2023-03-16_05-01.json.gz",
        WIRE.format("BTC", "1h"),
        OHLCV,
        1100,
        {"2023-03-16 22:00": 45, "2023-03-24 12:00": 40, "2023-05-01 21:00": 2},
    ),
    "ETH 2021-09": (
        "spot_1m_ohlcv/ETH_USDT-1m-2021-09-17_10-17.json.gz",
        HOURS_2021_2023.format("ETH"),
        OHLCV,
        717,
        {"2021-09-17 22:00": 38, "2021-10-17 22:00": 21},
    ),
    # The hours of 2020 passed through binary floats, which took the last digits of the quote volumes.
    "BTC 2020-12": (
        "spot_1m_full/BTCUSDT-1m-2020-12-01.csv.gz",
        "spot_1h_btc_longrun/BTCUSDT-1h-2017-08_2020-12-12col.csv.gz",
        (*OHLCV, "n_trades", "taker_buy_base"),
        24,
        {"2020-12-02 00:00": 1},
    ),
}
PAIRS = ("ADA", "BNB", "BTC", "DOGE", "ETH")
#: Days that other strangers recorded years later, of pairs whose hours of 2021 to 2023 are recorded.
DAYS_12COL = "spot_1d_12col/dev/{}USDT-1d.csv.gz"
LATER_DAYS = {
    **dict.fromkeys(("AAVE", "ALGO", "ATOM", "FIL", "LTC", "TRX", "UNI", "VET", "XLM"), DAYS_12COL),
    **dict.fromkeys(PAIRS, "spot_wire_static_klines/dev/{}USDT-1d.tar.gz"),
}
#: Days in which the exchange stood still for whole hours -> the hours it has of them.
OUTAGES = {
    "2021-04-20 00:00": 22,
    "2021-04-25 00:00": 21,
    "2021-08-13 00:00": 20,
    "2021-09-29 00:00": 22,
    "2023-03-24 00:00": 23,
}
CONTRACT_HOURS, CONTRACT_DAYS = "um_gravestone/dev/1h.tar.gz", "um_gravestone/dev/1d.tar.gz"
#: The longer intervals that are recorded beside the hours of each pair.
OWN_BARS = [("BTC", "4h"), *((base, "1d") for base in PAIRS)]


def recorded(pattern: str) -> pd.DataFrame:
    """The one series of a recording in the columns of raw/klines, by start."""
    rows = recorded_rows([pattern])
    return rows.to_pandas().set_index("ts")


def recorded_rows(patterns: Sequence[str], *, futures: bool = False) -> pa.Table:
    spot, contracts = ((), patterns) if futures else (patterns, ())
    found = load_recordings(RECORDED, spot, futures=contracts).klines
    return pa.concat_tables([in_contract(load(), *key) for key, load in found.items()])


def in_contract(bars: Bars, symbol: str, interval: str) -> pa.Table:
    n = len(bars)
    constants = {"venue": "binance", "symbol": symbol, "kind": "trade", "interval": interval}
    prices = {"open": OPEN, "high": HIGH, "low": LOW, "close": CLOSE}
    volumes = {
        "volume_base": VOLUME_BASE,
        "volume_quote": VOLUME_QUOTE,
        "taker_buy_base": TAKER_BASE,
        "taker_buy_quote": TAKER_QUOTE,
    }
    return pa.table(
        {
            **{name: pa.repeat(value, n) for name, value in constants.items()},
            "ts": times(bars.open_ms),
            "known_at": times(bars.open_ms + (WEEK_MS if interval == WEEK else interval_ms(interval))),
            **{name: pa.array((bars.values[at] / UNITS).astype(float)) for name, at in prices.items()},
            **{name: decimals(bars.values[at]) for name, at in volumes.items()},
            "n_trades": pa.array(bars.n_trades, mask=bars.n_trades == UNKNOWN),
            "close_time": times(bars.close_ms),
        }
    )


def times(moment_ms: np.ndarray) -> pa.Array:
    return pa.array(moment_ms.astype("datetime64[ms]")).cast(pa.timestamp("us"))


def decimals(units: np.ndarray) -> pa.Array:
    # Two little-endian words a value. Larger amounts than one word holds come as Python's integers; none is negative.
    words = np.zeros((len(units), 2), dtype=np.uint64)
    words[:, 0] = (
        (units & (2**64 - 1)).astype(np.uint64) if units.dtype == object else units.astype(np.uint64)
    )
    words[:, 1] = (units >> 64).astype(np.int64).astype(np.uint64) if units.dtype == object else 0
    known = pa.py_buffer(np.packbits(units != UNKNOWN, bitorder="little"))
    return pa.Array.from_buffers(pa.decimal128(38, N_DECIMALS), len(units), [known, pa.py_buffer(words)])


def rolled_up(rows: pa.Table, folder: Path, base: str, intervals: Sequence[str]) -> pd.DataFrame:
    """rollups/klines of base bars, made by the project's dbt models on a lake that holds them."""
    lake = Lake(folder / "warehouse")
    return by_start(made_of(lake, rows, base, intervals), ROLLED)


def made_of(lake: Lake, rows: pa.Table, base: str, intervals: Sequence[str]) -> pa.Table:
    store(lake, RAW, rows)
    return run(lake, ROLLED, rows, base, intervals)


def store(lake: Lake, table: Table, rows: pa.Table) -> None:
    days = rows.column("ts").to_numpy().astype("datetime64[D]")
    order = np.argsort(days, kind="stable")
    rows, days = rows.take(pa.array(order)), days[order]
    bounds = [*np.flatnonzero(np.r_[True, days[1:] != days[:-1]]), len(days)]
    for first, last in pairwise(bounds):
        left = datetime.fromisoformat(str(days[first]))
        key = left.date().isoformat()
        part = rows.slice(first, last - first)
        lake.replace(table, key, part, Provenance(table.name, key), (left, left + DAY))


def run(lake: Lake, table: Table, rows: pa.Table, base: str, intervals: Sequence[str]) -> pa.Table:
    """One model over whole weeks around the base bars."""
    moments = rows.column("ts").to_numpy().astype("datetime64[us]")
    first, last = (moment.astype(datetime) for moment in (moments.min(), moments.max()))
    start, end = floor_of("weekly", first), floor_of("weekly", last) + 7 * DAY
    symbols = sorted(set(rows.column("symbol").to_pylist()))
    controls = {
        **dbt.interval_controls("binance", base, list(intervals), intervals[0]),
        "days": dbt.watermark_control({day: end for _, day, _ in keys_of("daily", start, end)}),
        "listings": dbt.listing_control([{"symbol": name, "listing_id": f"{name}#1"} for name in symbols]),
        "ages": dbt.age_control(dict(MaxAges())),
        "standings": dbt.standing_control([]),
    }
    return dbt.run_dbt(lake, [table.name], start, end, controls)[table.name]


def by_start(rows: pa.Table, table: Table) -> pd.DataFrame:
    return conform(rows, table).to_pandas().set_index("ts")


def assert_equal_where_complete(
    ours: pd.DataFrame, theirs: pd.DataFrame, columns: Sequence[str], incomplete: Mapping[str, int]
) -> None:
    """Same bars in the same places; every complete one equal in every column, the others exactly those named."""
    assert ours.index.equals(theirs.index)
    holes = ours[~ours["complete"]]
    assert {str(ts)[:16]: int(n) for ts, n in holes["n_base_bars"].items()} == incomplete
    whole = ours.index[ours["complete"]]
    pd.testing.assert_frame_equal(
        ours.loc[whole, list(columns)], theirs.loc[whole, list(columns)], check_exact=True, check_dtype=False
    )
    assert ours.loc[whole, list(columns)].notna().all(axis=None)


@pytest.mark.parametrize("name", MINUTES)
def test_recorded_minutes_make_the_recorded_hours(name: str, tmp_path: Path) -> None:
    minutes, hours, columns, n_complete, incomplete = MINUTES[name]
    ours = rolled_up(recorded_rows([minutes]), tmp_path, "1m", ["1h"])
    theirs = recorded(hours).loc[ours.index[0] : ours.index[-1]]
    assert ours["complete"].sum() == n_complete
    assert_equal_where_complete(ours, theirs, columns, incomplete)


@pytest.fixture(scope="module")
def from_wire_hours(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """4h and 1d bars of all pairs, made of the exchange's own hours of 2022 and 2023."""
    rows = recorded_rows([WIRE.format(base, "1h") for base in PAIRS])
    intervals = ["1h", "2h", "4h", "6h", "8h", "12h", "1d"]
    return rolled_up(rows, tmp_path_factory.mktemp("hours"), "1h", intervals)


@pytest.mark.parametrize(("base", "interval"), OWN_BARS)
def test_recorded_hours_make_the_exchanges_own_longer_bars(
    from_wire_hours: pd.DataFrame, base: str, interval: str
) -> None:
    ours = from_wire_hours.query("symbol == @base + '/USDT' and interval == @interval")
    theirs = recorded(WIRE.format(base, interval)).loc["2022-01-01":"2023-12-31"]
    n_hours = interval_ms(interval) // interval_ms("1h")
    # The hour 13:00 of the outage does not exist.
    hole = {"4h": "2023-03-24 12:00", "1d": "2023-03-24 00:00"}[interval]
    assert len(ours) == 730 * 24 // n_hours
    assert_equal_where_complete(ours, theirs, ALL, {hole: n_hours - 1})


def test_recorded_hours_make_the_days_that_others_recorded_later(tmp_path: Path) -> None:
    # What was recorded in June 2022 (spot_1d_1h_to_2022_06) is older than the exchange's restatements and differs in some
    # days of every pair, also from hours of its own set: no roll-up can make it.
    hours = recorded_rows([HOURS_2021_2023.format(base) for base in LATER_DAYS])
    rolled = rolled_up(hours, tmp_path, "1h", ["1d"])
    for base, pattern in LATER_DAYS.items():
        ours = rolled.query("symbol == @base + '/USDT'")
        theirs = recorded(pattern.format(base)).loc[ours.index[0] : ours.index[-1]]
        # The recording's own ends, of which those of two pairs lie otherwise, and the outages of three years.
        ends = {"BTC": (4, 20), "ETH": (4, 21)}.get(base, (3, 21))
        incomplete = {"2021-04-04 00:00": ends[0], **OUTAGES, "2023-12-30 00:00": ends[1]}
        assert ours["complete"].sum() == 994
        assert_equal_where_complete(ours, theirs, OHLCV, incomplete)


def test_recorded_hours_of_contracts_make_the_exchanges_own_days(tmp_path: Path) -> None:
    rolled = rolled_up(recorded_rows([CONTRACT_HOURS], futures=True), tmp_path, "1h", ["1d"])
    theirs = recorded_rows([CONTRACT_DAYS], futures=True).to_pandas().set_index("ts")
    symbols = sorted(set(rolled["symbol"]))
    assert len(symbols) == 32
    columns = [*OHLCV, "volume_quote", "n_trades"]
    for symbol in symbols:
        ours = rolled[(rolled["symbol"] == symbol) & rolled["complete"]]
        own = theirs[theirs["symbol"] == symbol].loc[ours.index]
        assert len(ours) == 186
        known = [name for name in columns if own[name].notna().all()]
        assert set(known) >= set(OHLCV)
        pd.testing.assert_frame_equal(ours[known], own[known], check_exact=True, check_dtype=False)


def test_recorded_days_make_the_exchanges_own_weeks(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "warehouse")
    rows = recorded_rows([WIRE.format(base, "1d") for base in PAIRS])
    rows = rows.filter(pc.field("ts") < datetime(2020, 1, 6))
    store(lake, ROLLED, conform(made_of(lake, rows, "1d", ["1d"]), ROLLED))
    weeks = by_start(run(lake, WEEKS, rows, "1d", ["1d"]), WEEKS)
    listed = {
        "ADA": "2018-04-16",
        "BNB": None,
        "BTC": "2017-08-14",
        "DOGE": "2019-07-01",
        "ETH": "2017-08-14",
    }
    for base in PAIRS:
        ours = weeks.query("symbol == @base + '/USDT'")
        theirs = recorded(WIRE.format(base, "1w"))
        # A pair that is listed within a week has days less in its first one; the exchange's own bar is of the same days.
        first = listed[base]
        assert [str(ts.date()) for ts in ours.index[~ours["complete"]]] == ([] if first is None else [first])
        assert ours.index.equals(theirs.index)
        pd.testing.assert_frame_equal(ours[list(ALL)], theirs[list(ALL)], check_exact=True, check_dtype=False)


def test_recorded_bars_of_four_hours_make_the_same_days_as_hours(
    from_wire_hours: pd.DataFrame, tmp_path: Path
) -> None:
    """A roll-up of the exchange's own 4h is the roll-up of its 1h, where all of both are there."""
    rows = recorded_rows([WIRE.format("BTC", "4h")])
    rows = rows.filter(pc.field("ts") >= datetime(2022, 1, 1))
    from_four = rolled_up(rows, tmp_path, "4h", ["4h", "1d"]).query("interval == '1d'")
    from_one = from_wire_hours.query("symbol == 'BTC/USDT' and interval == '1d'")
    assert from_four.index.equals(from_one.index)
    whole = from_one.index[from_one["complete"]]
    assert len(whole) == 729
    pd.testing.assert_frame_equal(from_four.loc[whole, list(ALL)], from_one.loc[whole, list(ALL)])


def test_only_an_incomplete_bar_may_differ_and_one_does(from_wire_hours: pd.DataFrame) -> None:
    # The hour 12:00 of the outage has no trade and repeats the last price; the exchange's own 4h bar opens with the
    # first trade after it.
    at = datetime(2023, 3, 24, 12)
    ours = from_wire_hours.query("symbol == 'BTC/USDT' and interval == '4h'").loc[at]
    theirs = recorded(WIRE.format("BTC", "4h")).loc[at]
    assert (ours["open"], theirs["open"]) == (28080.0, 28079.99)
    assert not ours["complete"]
    assert ours["volume_base"] == theirs["volume_base"]


def test_every_longer_bar_beside_recorded_hours_is_compared() -> None:
    # Only 3d and 1w end before the hours begin.
    folder = RECORDED / "spot_wire_static_klines" / "dev"
    names = {tuple(path.name.removesuffix(".tar.gz").split("USDT-")) for path in folder.glob("*.tar.gz")}
    assert {(base, interval) for base, interval in names if interval not in ("1h", "3d", "1w")} == set(
        OWN_BARS
    )
