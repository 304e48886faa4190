"""The real dbt roll-ups of recorded bars against the exchange's own longer bars, to the last digit.

Two recordings of one market, made by strangers at different times, meet here: what we make of the shorter bars must be
what the exchange made of them. A difference is allowed where the bar is not ``complete``, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from crypto_assets.intervals import interval_ms
from crypto_assets.resources import dbt
from crypto_assets.resources.warehouse import Lake, Provenance, conform
from crypto_assets.schemas import table_of
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
from crypto_assets_tests.recorded import RECORDED, needs_recorded

pytestmark = [needs_recorded, pytest.mark.slow]

DAY = timedelta(days=1)
RAW, ROLLED = table_of("raw/klines"), table_of("rollups/klines")
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
#: The longer intervals that are recorded beside the hours of each pair.
OWN_BARS = [("BTC", "4h"), *((base, "1d") for base in PAIRS)]


def recorded(pattern: str) -> pd.DataFrame:
    """The one series of a recording in the columns of raw/klines, by start."""
    rows = recorded_rows([pattern])
    return rows.to_pandas().set_index("ts")


def recorded_rows(patterns: Sequence[str]) -> pa.Table:
    found = load_recordings(RECORDED, list(patterns)).klines
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
            "known_at": times(bars.open_ms + interval_ms(interval)),
            **{name: pa.array((bars.values[at] / UNITS).astype(float)) for name, at in prices.items()},
            **{name: decimals(bars.values[at]) for name, at in volumes.items()},
            "n_trades": pa.array(bars.n_trades, mask=bars.n_trades == UNKNOWN),
            "close_time": times(bars.close_ms),
        }
    )


def times(moment_ms: np.ndarray) -> pa.Array:
    return pa.array(moment_ms.astype("datetime64[ms]")).cast(pa.timestamp("us"))


def decimals(units: np.ndarray) -> pa.Array:
    known = [None if unit == UNKNOWN else Decimal(unit).scaleb(-N_DECIMALS) for unit in units.tolist()]
    return pa.array(known, pa.decimal128(38, N_DECIMALS))


def rolled_up(rows: pa.Table, folder: Path, base: str, intervals: Sequence[str]) -> pd.DataFrame:
    """rollups/klines of base bars, made by the project's dbt models on a lake that holds them."""
    lake = Lake(folder / "warehouse")
    days = rows.column("ts").to_numpy().astype("datetime64[D]")
    first, last = (datetime.fromisoformat(str(day)) for day in (days.min(), days.max()))
    window = first, last + DAY
    for number in range((window[1] - first).days):
        left = first + number * DAY
        inside = rows.filter(pa.array(days == np.datetime64(left, "D")))
        key = left.date().isoformat()
        lake.replace(RAW, key, inside, Provenance(RAW.name, key), (left, left + DAY))
    symbols = sorted(set(rows.column("symbol").to_pylist()))
    controls = {
        **dbt.interval_controls("binance", base, list(intervals), "1h"),
        "days": dbt.watermark_control(
            {first + number * DAY: window[1] for number in range((window[1] - first).days)}
        ),
        "listings": dbt.listing_control([{"symbol": name, "listing_id": f"{name}#1"} for name in symbols]),
    }
    found = dbt.run_dbt(lake, [ROLLED.name], *window, controls)[ROLLED.name]
    return conform(found, ROLLED, window).to_pandas().set_index("ts")


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
    return rolled_up(rows, tmp_path_factory.mktemp("hours"), "1h", ["1h", "4h", "1d"])


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
