"""Facts 1 to 4: outages, candles off the grid, restated history and candles that were stored while open."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pytest

from crypto_assets.intervals import from_ms
from crypto_assets.resources.importer import ImportChoice, import_files
from crypto_assets.resources.ingest import midnight_before
from crypto_assets.resources.warehouse.inventory import coverage_table, gaps_table
from crypto_assets.resources.warehouse.lake import union_of
from crypto_assets.resources.warehouse.oddities import candle_oddities
from crypto_assets_tests.recorded import RECORDED, needs_recorded
from crypto_assets_tests.recorded_facts.loading import (
    Warehouse,
    recorded_json,
    recorded_world,
    spot,
    wire_rows,
)

pytestmark = needs_recorded

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
OUTAGE = datetime(2023, 3, 24)
MINUTES_2023 = "spot_1m_ohlcv/BTC_USDT-1m-2023-03-16_05-01.json.gz"
WIRE = "spot_wire_static_klines/dev/{}USDT-{}.tar.gz"
LONG_RUN = "spot_1h_btc_longrun/BTCUSDT-1h-2017-08_2020-12-12col.csv.gz"
PAIRS = ("ADA", "BNB", "BTC", "DOGE", "ETH")
#: Candles that were missing from 2017 to 2020: first hour and number of hours.
HALTS = {
    "2017-09-06 16:00": 7,
    "2018-01-04 04:00": 1,
    "2018-02-08 01:00": 75,
    "2018-06-26 02:00": 10,
    "2018-06-27 13:00": 1,
    "2018-07-04 01:00": 7,
    "2018-10-19 06:00": 3,
    "2018-11-14 02:00": 7,
    "2019-03-12 02:00": 6,
    "2019-05-15 03:00": 10,
    "2019-08-15 02:00": 8,
    "2019-11-13 02:00": 2,
    "2019-11-25 02:00": 2,
    "2020-02-09 02:00": 1,
    "2020-02-19 12:00": 5,
    "2020-03-04 10:00": 1,
    "2020-04-25 02:00": 2,
    "2020-06-28 02:00": 3,
    "2020-11-30 06:00": 1,
}


def gaps(warehouse: Warehouse, symbol: str = "BTC/USDT", interval: str = "1h") -> list[tuple]:
    """First missing interval, number of them and origin of each gap of a series of trades."""
    found = gaps_table(warehouse.lake).to_pandas()
    own = found[(found["symbol"] == symbol) & (found["interval"] == interval) & (found["kind"] == "trade")]
    return list(zip(own["ts"], own["n_missing"], own["origin"], strict=True))


def days_around(spells: Iterable[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    """Whole days from the one before each spell to the second one after it, joined where they meet."""
    return list(union_of((midnight_before(a) - DAY, midnight_before(b) + 3 * DAY) for a, b in spells))


# Fact 1: outages


@pytest.fixture(scope="module")
def outage(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """The day of the outage and the one after: minutes of BTC, hours and days of five pairs."""
    warehouse = Warehouse(tmp_path_factory.mktemp("outage"))
    window, now = (OUTAGE, OUTAGE + 2 * DAY), "2023-03-26T00:00:30"
    warehouse.load_klines(recorded_world(MINUTES_2023), now, spot("BTC/USDT"), "1m", window)
    wire = recorded_world(*(WIRE.format("*", interval) for interval in ("1h", "1d")))
    for interval in ("1h", "1d"):
        warehouse.load_klines(wire, now, spot(*(f"{base}/USDT" for base in PAIRS)), interval, window)
    return warehouse


def test_fact_1_the_72_silent_minutes_of_2023_03_24_from_11_28_to_12_39_are_stored_as_told(
    outage: Warehouse,
) -> None:
    rows = outage.rows("raw/klines", symbol="BTC/USDT", interval="1m")
    silent = rows[rows["volume_base"] == 0]
    expected = pd.date_range(OUTAGE + timedelta(hours=11, minutes=28), periods=72, freq="min")
    assert silent["ts"].tolist() == expected.tolist()
    assert (silent["high"] == silent["low"]).all()
    told = {from_ms(row[0]): row for row in recorded_json(MINUTES_2023)}
    assert silent["close"].tolist() == [told[ts.to_pydatetime()][4] for ts in expected]


def test_fact_1_the_72_silent_minutes_are_one_oddity_of_the_kind_zero_volume(outage: Warehouse) -> None:
    odd = candle_oddities(outage.lake, "1m").to_pandas()
    silence = odd[odd["kind"] == "zero_volume"]
    assert silence["ts"].tolist() == [OUTAGE + timedelta(hours=11, minutes=28)]
    assert json.loads(silence["detail"].iloc[0])["n_candles"] == 72


def test_fact_1_the_80_missing_minutes_of_2023_03_24_from_12_40_to_13_59_are_one_gap_of_the_source(
    outage: Warehouse,
) -> None:
    first = pd.Timestamp(OUTAGE + timedelta(hours=12, minutes=40))
    assert gaps(outage, interval="1m") == [(first, 80, "source")]
    days = coverage_table(outage.lake).to_pandas()
    (day,) = days[(days["interval"] == "1m") & (days["ts"] == OUTAGE)].to_dict("records")
    assert (day["n_expected"], day["n_rows"], day["n_source_gaps"], day["n_unexplained"]) == (
        1440,
        1360,
        80,
        0,
    )


@pytest.mark.parametrize(
    ("base", "length_ms"),
    [("BTC", 2_381_646), ("ETH", 2_383_061), ("BNB", 2_381_451), ("ADA", 2_380_151), ("DOGE", 2_382_562)],
)
def test_fact_1_the_hour_12_00_of_the_outage_keeps_its_volume_of_0_and_the_close_time_of_its_own_market(
    outage: Warehouse, base: str, length_ms: int
) -> None:
    noon = OUTAGE + 12 * HOUR
    told = wire_rows(WIRE.format(base, "1h"))
    assert told[noon][6] == told[noon][0] + length_ms
    rows = outage.rows("raw/klines", symbol=f"{base}/USDT", interval="1h")
    (hour,) = rows[rows["ts"] == noon].to_dict("records")
    assert hour["volume_base"] == 0
    assert hour["close_time"] == noon + timedelta(milliseconds=length_ms)
    # Known when the hour was over all the same: a close time cut short lets nothing be known earlier.
    assert hour["known_at"] == noon + HOUR
    others = rows[rows["ts"] != noon]
    assert (others["close_time"] - others["ts"] == HOUR - timedelta(milliseconds=1)).all()


@pytest.mark.parametrize("base", PAIRS)
def test_fact_1_the_hour_13_00_of_the_outage_is_a_gap_of_the_source_and_the_day_is_there(
    outage: Warehouse, base: str
) -> None:
    symbol = f"{base}/USDT"
    assert gaps(outage, symbol) == [(pd.Timestamp(OUTAGE + 13 * HOUR), 1, "source")]
    assert gaps(outage, symbol, "1d") == []
    days = outage.rows("raw/klines", symbol=symbol, interval="1d")
    hours = outage.rows("raw/klines", symbol=symbol, interval="1h")
    assert days.loc[days["ts"] == OUTAGE, "volume_base"].tolist() == [
        hours.loc[hours["ts"] < OUTAGE + DAY, "volume_base"].sum()
    ]


def test_fact_1_the_two_hours_from_07_00_of_2021_09_29_are_120_missing_minutes_of_every_market(
    tmp_path: Path,
) -> None:
    warehouse, day = Warehouse(tmp_path), datetime(2021, 9, 29)
    window, now, halt = (day, day + DAY), "2021-09-30T00:00:30", pd.Timestamp(day + 7 * HOUR)
    minutes = recorded_world("spot_1m_ohlcv/ETH_USDT-1m-*.json.gz", "spot_1m_ohlcv/DOGE_BTC-1m-*.json.gz")
    warehouse.load_klines(minutes, now, spot("ETH/USDT", "DOGE/BTC"), "1m", window)
    for symbol in ("ETH/USDT", "DOGE/BTC"):
        assert gaps(warehouse, symbol, "1m") == [(halt, 120, "source")]
        assert len(warehouse.rows("raw/klines", symbol=symbol)) == 1440 - 120
    hours = recorded_world("spot_1h_2021_2023/dev/BTCUSDT-1h.csv.gz")
    warehouse.load_klines(hours, now, spot("BTC/USDT"), "1h", window)
    assert gaps(warehouse) == [(halt, 2, "source")]


#: Days on which an hour closed early or was silent though none was missing.
ODD_DAYS = ("2017-12-18", "2019-06-07")
WHOLE = (datetime(2017, 8, 18), datetime(2020, 12, 8))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(False, id="around the halts"),
        pytest.param(True, id="whole", marks=pytest.mark.slow),
    ],
)
def long_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """Hours of BTC from 2017 to 2020 as recorded in 2020."""
    warehouse = Warehouse(tmp_path_factory.mktemp("long_run"))
    halts = {datetime.fromisoformat(at): n for at, n in HALTS.items()}
    odd = {datetime.fromisoformat(day): 0 for day in ODD_DAYS}
    windows = (
        [WHOLE] if request.param else days_around((at, at + n * HOUR) for at, n in (halts | odd).items())
    )
    warehouse.load_klines(recorded_world(LONG_RUN), "2020-12-08T00:00:30", spot("BTC/USDT"), "1h", *windows)
    return warehouse


@pytest.fixture(scope="module")
def long_rows(long_run: Warehouse) -> pd.DataFrame:
    return long_run.rows("raw/klines")


@pytest.fixture(scope="module")
def long_gaps(long_run: Warehouse) -> list[tuple]:
    """Gaps of the source; what lies between the stretches of days was never asked for."""
    return [gap for gap in gaps(long_run) if gap[2] == "source"]


def test_fact_1_the_halts_of_2017_to_2020_are_19_gaps_of_152_hours_of_the_source(
    long_gaps: list[tuple],
) -> None:
    assert long_gaps == [(pd.Timestamp(at), n, "source") for at, n in HALTS.items()]
    told = pd.to_datetime(pd.read_csv(RECORDED / LONG_RUN)["timestamp"], format="ISO8601")
    hours = pd.Series(told[told == told.dt.floor("h")].unique())
    steps = hours.diff() // HOUR
    assert ((steps > 1).sum(), (steps - 1).sum()) == (len(HALTS), sum(HALTS.values())) == (19, 152)


def test_fact_1_the_exchanges_own_4h_bars_of_2018_lack_11_in_four_halts(tmp_path: Path) -> None:
    looked_at = ["2018-02-07", "2018-06-25", "2018-07-03", "2018-11-13"]
    windows = [(start, start + 5 * DAY) for start in map(datetime.fromisoformat, looked_at)]
    warehouse, world = Warehouse(tmp_path), recorded_world(WIRE.format("BTC", "4h"))
    warehouse.load_klines(world, "2018-12-01T00:00:30", spot("BTC/USDT"), "4h", *windows)
    told = wire_rows(WIRE.format("BTC", "4h"))
    asked = [at for window in windows for at in pd.date_range(*window, freq="4h", inclusive="left")]
    found = [(first, n) for first, n, origin in gaps(warehouse, interval="4h") if origin == "source"]
    missing = [at for first, n in found for at in pd.date_range(first, periods=n, freq="4h")]
    assert missing == [at for at in asked if at not in told]
    assert [(str(first), n) for first, n in found] == [
        ("2018-02-08 04:00:00", 7),
        ("2018-06-26 04:00:00", 2),
        ("2018-07-04 04:00:00", 1),
        ("2018-11-14 04:00:00", 1),
    ]


def test_fact_1_close_time_is_no_invariant_and_eight_more_hours_of_2017_to_2020_keep_theirs(
    long_rows: pd.DataFrame,
) -> None:
    regular = long_rows["close_time"] == long_rows["ts"] + HOUR - timedelta(milliseconds=1)
    odd = long_rows[~regular].set_index("ts")
    told = pd.read_csv(RECORDED / LONG_RUN)
    stamps = pd.to_datetime(told["timestamp"], format="ISO8601")
    ends = pd.Series(pd.to_datetime(told["close_time"], unit="ms").to_numpy(), stamps)
    assert len(odd) == 8
    assert odd["close_time"].tolist() == ends[odd.index].tolist()
    # One of them closed 1 ms after its hour; one, in which nothing was traded, after 26 minutes.
    assert odd.loc["2017-09-06 15:00", "close_time"] == pd.Timestamp("2017-09-06 16:00")
    assert odd.loc["2019-06-07 21:00", "volume_base"] == 0


# Fact 2: off-grid candles


def test_fact_2_the_43_off_grid_bars_of_february_2018_are_anomalies_and_no_rows(
    long_run: Warehouse, long_rows: pd.DataFrame
) -> None:
    odd = long_run.anomalies("off_grid")
    first = pd.Timestamp("2018-02-09 09:28:14.789")
    assert odd["ts"].tolist() == [first + at * HOUR for at in range(43)]
    assert set(odd["symbol"]) == {"BTC/USDT"}
    told = pd.read_csv(RECORDED / LONG_RUN).set_index("timestamp")["close"]
    assert json.loads(odd["detail"].iloc[0])["close"] == told["2018-02-09 09:28:14.789"]
    stamps = long_rows["ts"]
    assert (stamps == stamps.dt.floor("h")).all()


def test_fact_2_the_grid_returns_after_the_off_grid_bars_and_their_75_hours_are_one_gap(
    long_rows: pd.DataFrame, long_gaps: list[tuple]
) -> None:
    stamps = long_rows["ts"]
    assert stamps[stamps < "2018-02-09"].iloc[-1] == pd.Timestamp("2018-02-08 00:00")
    after = stamps[stamps > "2018-02-09"].head(48)
    assert after.tolist() == pd.date_range("2018-02-11 04:00", periods=48, freq="h").tolist()
    assert (pd.Timestamp("2018-02-08 01:00"), 75, "source") in long_gaps


# Fact 3: restated history

OLDER, NEWER = "spot_1d_1h_to_2022_06/dev/BTCUSDT-1d.csv.gz", WIRE.format("BTC", "1d")
#: Recorded column -> position in the exchange's row and column of the table.
COMPARED = {
    "open": (1, "open"),
    "high": (2, "high"),
    "low": (3, "low"),
    "close": (4, "close"),
    "volume": (5, "volume_base"),
}


def restated() -> tuple[Counter[str], list[datetime], int]:
    """Days that differ in each column, all of them, and the number compared, read without the product."""
    newer, counts, days = wire_rows(NEWER), Counter[str](), set()
    older = pd.read_csv(RECORDED / OLDER, dtype=str).to_dict("records")
    for row in older:
        day = from_ms(int(row["timestamp"]))
        for name, (at, column) in COMPARED.items():
            if Decimal(row[name]) != Decimal(newer[day][at]):
                counts[column] += 1
                days.add(day)
    return counts, sorted(days), len(older)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_fact_3_of_1754_days_restated_volume_differs_in_21_close_in_9_high_in_7_low_in_2_and_the_newer_is_stored(
    tmp_path: Path, whole: bool
) -> None:
    counts, days, n_days = restated()
    assert n_days == 1754
    assert counts == {"volume_base": 21, "close": 9, "high": 7, "low": 2}
    windows = (
        [(datetime(2017, 8, 17), datetime(2022, 6, 6))] if whole else days_around((day, day) for day in days)
    )
    windows = [(start, min(end, datetime(2022, 6, 6))) for start, end in windows]
    warehouse, market = Warehouse(tmp_path), spot("BTC/USDT")
    warehouse.load_klines(recorded_world(OLDER), "2022-06-06T00:00:30", market, "1d", *windows)
    before = warehouse.rows("raw/klines").set_index("ts")
    warehouse.load_klines(recorded_world(NEWER), "2026-01-01T00:00:30", market, "1d", *windows, reread=True)
    revisions = warehouse.revisions()
    told = revisions[revisions["old_value"].notna()]
    assert Counter(told.loc[told["column_name"] != "close_time", "column_name"]) == counts
    assert sorted(set(told.loc[told["column_name"] == "volume_base", "row_ts"])) == days
    rows, newer = warehouse.rows("raw/klines").set_index("ts"), wire_rows(NEWER)
    assert rows.index.equals(before.index)
    assert len(rows) == (n_days if whole else sum((end - start).days for start, end in windows))
    for at, column in COMPARED.values():
        assert [Decimal(str(value)) for value in rows[column]] == [
            Decimal(newer[ts.to_pydatetime()][at]) for ts in rows.index
        ]
    # Told as a whole day although it was recorded two hours old: the newer recording puts it right.
    (open_day,) = told[(told["row_ts"] == "2022-06-05") & (told["column_name"] == "volume_base")].to_dict(
        "records"
    )
    assert (open_day["old_value"], open_day["new_value"]) == ("95.73503000", newer[datetime(2022, 6, 5)][5])


@pytest.fixture(scope="module")
def flapping(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Revisions of 2022-03-26 to 28: stored from the older recording, restated by the newer one and then taken back."""
    warehouse, market = Warehouse(tmp_path_factory.mktemp("flapping")), spot("BTC/USDT")
    window = (datetime(2022, 3, 26), datetime(2022, 3, 29))
    looks = [("2022-06-06", OLDER), ("2025-01-01", NEWER), ("2026-01-01", OLDER)]
    for now, recording in looks:
        warehouse.load_klines(recorded_world(recording), now, market, "1d", window, reread=True)
    revisions = warehouse.revisions()
    return revisions[revisions["column_name"] == "volume_base"]


def test_fact_3_a_restatement_is_known_from_the_moment_at_which_it_was_seen(flapping: pd.DataFrame) -> None:
    assert set(flapping["seen_at"]) == {pd.Timestamp("2025-01-01"), pd.Timestamp("2026-01-01")}


def test_fact_3_a_day_that_is_restated_twice_has_two_revisions(flapping: pd.DataFrame) -> None:
    days = pd.date_range("2022-03-26", "2022-03-28").tolist()
    assert sorted(flapping["row_ts"]) == sorted(2 * days)


# Fact 4: open candles get stored

DIRTY = "spot_1m_full/BTCUSDT-1m-2021-10-11_21-dirty.csv.gz"


@pytest.fixture(scope="module")
def dirty() -> pd.DataFrame:
    """The rows of the dirty file in its own order, read without the product."""
    rows = pd.read_csv(RECORDED / DIRTY)
    return rows.assign(ts=pd.to_datetime(rows["timestamp"]))


def test_fact_4_minutes_of_the_dirty_file_stored_while_open_get_their_last_state(
    tmp_path: Path, dirty: pd.DataFrame
) -> None:
    doubled = dirty[dirty["ts"].duplicated(keep=False)]
    assert (doubled["ts"].nunique(), dirty["ts"].duplicated().sum()) == (31, 32)
    warehouse = Warehouse(tmp_path)
    choice = ImportChoice("binance", market_type="spot")
    import_files([RECORDED / DIRTY], warehouse.lake, choice, now=datetime(2021, 10, 22))
    rows = warehouse.rows("raw/klines").set_index("ts")
    # The last row of the file may be open and is left out.
    last = dirty.drop_duplicates("ts", keep="last").set_index("ts").iloc[:-1]
    first = dirty.drop_duplicates("ts", keep="first").set_index("ts").iloc[:-1]
    assert rows.index.tolist() == last.index.tolist()
    for column, recorded in {
        "open": "open",
        "high": "high",
        "low": "low",
        "close": "close",
        "n_trades": "trades",
    }.items():
        assert rows[column].tolist() == last[recorded].tolist()
    # "Keep first" would have stored less than what was traded in each of them.
    minutes = doubled["ts"].unique()
    assert (rows.loc[minutes, "n_trades"].to_numpy() > first.loc[minutes, "trades"].to_numpy()).all()


def test_fact_4_through_the_exchange_the_dirty_minutes_come_once_each_and_none_while_it_is_open(
    tmp_path: Path, dirty: pd.DataFrame
) -> None:
    warehouse, world = Warehouse(tmp_path), recorded_world(DIRTY)
    window = (datetime(2021, 10, 16), datetime(2021, 10, 17))
    last = dirty.drop_duplicates("ts", keep="last").set_index("ts")
    stored = []
    for now in ("2021-10-16T21:29:30", "2021-10-16T21:30:30"):
        warehouse.load_klines(world, now, spot("BTC/USDT"), "1m", window)
        rows = warehouse.rows("raw/klines").set_index("ts")
        assert rows["close"].tolist() == last.loc["2021-10-16":, "close"].head(len(rows)).tolist()
        stored.append(rows.index[-1])
    assert stored == [pd.Timestamp("2021-10-16 21:28"), pd.Timestamp("2021-10-16 21:29")]
    assert warehouse.revisions().empty


def test_fact_4_hours_that_were_stored_two_and_three_times_in_december_2020_get_their_last_state(
    tmp_path: Path,
) -> None:
    header, *lines = gzip.decompress((RECORDED / LONG_RUN).read_bytes()).decode().splitlines()
    path = tmp_path / "BTCUSDT-1h.csv"
    path.write_text("\n".join([header, *(line for line in lines if line.startswith("2020-12"))]), "utf-8")
    warehouse = Warehouse(tmp_path / "warehouse")
    choice = ImportChoice("binance", market_type="spot")
    (report,) = import_files([path], warehouse.lake, choice, now=datetime(2021, 1, 1))
    assert (report.n_duplicates, report.n_open, report.n_off_grid) == (5, 1, 0)
    rows = warehouse.rows("raw/klines").set_index("ts")
    assert rows.loc[["2020-12-04 11:00", "2020-12-04 12:00", "2020-12-07 22:00"], "close"].tolist() == [
        18833.25,
        19026.49,
        19114.48,
    ]
    assert warehouse.anomalies("duplicate")["ts"].drop_duplicates().astype(str).tolist() == [
        "2020-12-04 11:00:00",
        "2020-12-04 12:00:00",
        "2020-12-07 22:00:00",
    ]
