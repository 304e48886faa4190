"""Facts 4, 5 and 9: last bars of contracts that were still open, funding in a local zone, and funding that jitters."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from crypto_assets.resources.importer import ImportChoice, import_files
from crypto_assets_tests.recorded import RECORDED, needs_recorded
from crypto_assets_tests.recorded_facts.loading import (
    Warehouse,
    perpetual,
    recorded_json,
    recorded_members,
    recorded_world,
)

pytestmark = needs_recorded

HOUR, DAY, MILLISECOND = timedelta(hours=1), timedelta(days=1), timedelta(milliseconds=1)
FUNDING = "um_gravestone/dev/funding.tar.gz"
LOCAL_FUNDING = "binance_wire/funding/BTCUSDT-funding-2020_2023.csv.gz"


# Fact 4: open candles get stored


@pytest.mark.parametrize(
    ("interval", "n_contracts", "last"),
    [
        ("1d", 268, {"2026-03-19 00:00:00": 268}),
        ("1h", 32, {"2026-03-19 19:00:00": 21, "2026-03-19 20:00:00": 11}),
    ],
)
def test_fact_4_the_last_bar_of_every_um_gravestone_file_was_still_open_and_is_not_stored(
    tmp_path: Path, interval: str, n_contracts: int, last: dict[str, int]
) -> None:
    files = recorded_members(f"um_gravestone/dev/{interval}.tar.gz")
    ends = {name: content.splitlines() for name, content in files.items()}
    stamps = {name: int(lines[-1].split(b",")[0]) for name, lines in ends.items()}
    assert Counter(str(pd.Timestamp(stamp, unit="ms")) for stamp in stamps.values()) == last
    # Header and last three rows of each file are enough.
    path = tmp_path / f"{interval}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, lines in ends.items():
            data = b"\n".join([lines[0], *lines[-3:]]) + b"\n"
            member = tarfile.TarInfo(f"{interval}/{name}.csv")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    warehouse = Warehouse(tmp_path / "warehouse")
    choice = ImportChoice("binance", market_type="perpetual")
    reports = import_files([path], warehouse.lake, choice, now=datetime(2026, 4, 1))
    assert len(reports) == n_contracts
    assert {(report.n_rows, report.n_added, report.n_open, report.problem) for report in reports} == {
        (3, 2, 1, None)
    }
    rows = warehouse.rows("raw/klines")
    newest = rows.groupby("symbol")["ts"].max()
    step = pd.Timedelta(interval)
    assert newest.to_dict() == {
        f"{name[:-4]}/USDT:USDT": pd.Timestamp(stamp, unit="ms") - step for name, stamp in stamps.items()
    }


# Fact 5: zones


def test_fact_5_funding_recorded_in_utc_plus_3_settles_at_0_8_and_16_utc_as_the_exchange_itself_told(
    tmp_path: Path,
) -> None:
    warehouse, window = Warehouse(tmp_path), (datetime(2020, 1, 1), datetime(2020, 2, 1))
    world = recorded_world(
        funding=[LOCAL_FUNDING], local_hours={LOCAL_FUNDING: 3}, futures=["um_gravestone/dev/1d.tar.gz"]
    )
    warehouse.load_funding(world, "2026-03-19T12:00:00", perpetual("BTCUSDT"), window)
    rows = warehouse.rows("raw/funding_rates")
    local = pd.read_csv(RECORDED / LOCAL_FUNDING)
    told = pd.to_datetime(local["Date"], format="ISO8601")
    ours = told - 3 * HOUR < window[1]
    assert (told.iloc[0], told.iloc[1]) == (
        pd.Timestamp("2020-01-01 03:00"),
        pd.Timestamp("2020-01-01 11:00"),
    )
    assert rows["ts"].tolist() == (told[ours] - 3 * HOUR).dt.round("s").tolist()
    assert rows["funding_rate_frac"].tolist() == local.loc[ours, "Funding Rate"].tolist()
    assert Counter(rows["ts"].dt.hour) == {0: 31, 8: 31, 16: 31}
    cases = recorded_json("binance_wire/gocryptotrader/binance-http.json.gz")["routes"][
        "/fapi/v1/fundingRate"
    ]["GET"]
    real = next(
        case["data"] for case in cases if case["data"] and case["data"][0]["fundingTime"] == 1_577_836_800_000
    )
    assert len(real) > 1
    # Only the exchange's own answer has the jitter of milliseconds.
    assert [((row["fundingTime"] + 500) // 1000 * 1000, float(row["fundingRate"])) for row in real] == [
        (ts.value // 1_000_000, rate) for ts, rate in zip(rows["ts"], rows["funding_rate_frac"], strict=True)
    ][: len(real)]


def test_fact_5_a_file_in_a_local_zone_is_refused_until_its_offset_is_told(tmp_path: Path) -> None:
    warehouse, now = Warehouse(tmp_path), datetime(2024, 1, 2)
    (report,) = import_files(
        [RECORDED / LOCAL_FUNDING], warehouse.lake, ImportChoice("binance", "funding"), now=now
    )
    assert report.problem is not None
    assert "offset" in report.problem
    assert warehouse.rows("raw/funding_rates").empty


# Fact 9: funding

DAYS = (datetime(2026, 3, 16), datetime(2026, 3, 19))


@pytest.fixture(scope="module")
def told() -> pd.DataFrame:
    """All recorded settlements, read without the product."""
    frames = [
        pd.read_csv(io.BytesIO(content)).assign(native=name)
        for name, content in recorded_members(FUNDING).items()
    ]
    found = pd.concat(frames, ignore_index=True)
    at = pd.to_datetime(found["timestamp"], unit="ms")
    return found.assign(settled_at=at, ts=at.dt.round("s"))


@pytest.fixture(scope="module")
def funding(tmp_path_factory: pytest.TempPathFactory, told: pd.DataFrame) -> Warehouse:
    """Three days of funding of all 268 contracts."""
    warehouse = Warehouse(tmp_path_factory.mktemp("funding"))
    world = recorded_world(funding=[FUNDING], futures=["um_gravestone/dev/1d.tar.gz"])
    warehouse.load_funding(world, "2026-03-20T05:00:00", perpetual(*sorted(set(told["native"]))), DAYS)
    return warehouse


def test_fact_9_settlements_are_stored_on_the_hour_with_the_jittering_time_beside_it(
    funding: Warehouse, told: pd.DataFrame
) -> None:
    rows = funding.rows("raw/funding_rates").sort_values(["symbol", "ts"])
    asked = told[(told["ts"] >= DAYS[0]) & (told["ts"] < DAYS[1])].assign(
        symbol=lambda frame: frame["native"].str[:-4] + "/USDT:USDT"
    )
    asked = asked.sort_values(["symbol", "ts"])
    for name, recorded in {
        "symbol": "symbol",
        "ts": "ts",
        "settled_at": "settled_at",
        "funding_rate_frac": "funding_rate",
    }.items():
        assert rows[name].tolist() == asked[recorded].tolist()
    assert (rows["ts"] == rows["ts"].dt.floor("h")).all()
    jitter = (rows["settled_at"] - rows["ts"]) // MILLISECOND
    assert jitter.min() == 0
    # Most are told late by 1 to 17 ms, and none is known before it was told.
    assert jitter.max() == ((asked["settled_at"] - asked["ts"]) // MILLISECOND).max() >= 14
    assert (rows["known_at"] == rows["settled_at"]).all()


def usual_hours(rows: pd.DataFrame, contract: str) -> Counter[int]:
    """Hours from one settlement to the next -> number of contracts that mostly settle so."""
    between = rows.sort_values([contract, "ts"]).groupby(contract)["ts"].diff().dropna() // HOUR
    return Counter(between.groupby(rows[contract]).agg(lambda hours: hours.mode()[0]))


def test_fact_9_most_of_268_perpetuals_settle_every_4_hours_others_every_8_or_every_1(
    funding: Warehouse, told: pd.DataFrame
) -> None:
    rows = funding.rows("raw/funding_rates")
    assert rows["symbol"].nunique() == 268
    assert usual_hours(told, "native") == {4: 201, 8: 62, 1: 5}
    # In these three days two more were on the schedule of one hour.
    assert usual_hours(rows, "symbol") == {4: 201, 8: 60, 1: 7}


def test_fact_9_in_the_whole_recording_settlements_jitter_by_at_most_17_ms(
    tmp_path: Path, told: pd.DataFrame
) -> None:
    jitter = (told["settled_at"] - told["ts"]) // MILLISECOND
    assert (len(told), (jitter > 0).sum(), jitter.min(), jitter.max()) == (53_496, 30_956, 0, 17)
    worst = told.loc[jitter == 17, "settled_at"].dt.floor("D")
    day = worst.iloc[0].to_pydatetime()
    natives = told.loc[worst[worst == worst.iloc[0]].index, "native"].unique()
    warehouse, world = (
        Warehouse(tmp_path),
        recorded_world(funding=[FUNDING], futures=["um_gravestone/dev/1d.tar.gz"]),
    )
    warehouse.load_funding(world, "2026-03-20T05:00:00", perpetual(*natives), (day, day + DAY))
    rows = warehouse.rows("raw/funding_rates")
    assert ((rows["settled_at"] - rows["ts"]).max(), rows["ts"].dt.minute.max()) == (17 * MILLISECOND, 0)


def test_fact_9_what_was_asked_for_is_covered_whatever_the_schedule(funding: Warehouse) -> None:
    covered = funding.resource.covered("raw/funding_rates", *DAYS)
    assert len(covered) == 268
    for ranges in covered.values():
        assert sum((end - start for start, end in ranges), timedelta()) == DAYS[1] - DAYS[0]
