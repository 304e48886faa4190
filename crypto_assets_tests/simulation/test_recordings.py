from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from crypto_assets.intervals import DAY_MS, HOUR_MS
from crypto_assets.simulation.dialects import WIRE_COLUMNS
from crypto_assets.simulation.recorded import RecordedWorld
from crypto_assets.simulation.recordings import load_recordings
from crypto_assets.simulation.render import klines_json
from crypto_assets_tests.simulation.clients import at

LATER = at(2030, 1, 1)
_FIRST, _SECOND, _THIRD = (at(2025, 1, 1, hour) for hour in range(3))
_PRICES = ["1.50000000", "2.00000000", "1.00000000", "1.75000000", "10.00000000"]
_MORE = ["1.75000000", "3.00000000", "1.50000000", "2.50000000", "20.00000000"]
WIRE: list[list[Any]] = [
    [_FIRST, *_PRICES, _SECOND - 1, "17.00000000", 3, "4.00000000", "7.00000000", "0"],
    [_SECOND, *_MORE, _THIRD - 1, "45.00000000", 5, "9.00000000", "20.00000000", "0"],
]
TABLE = pa.table(
    {
        "date": pa.array([row[0] for row in WIRE], pa.timestamp("ms", "UTC")),
        **{
            name: [float(row[i]) for row in WIRE]
            for i, name in enumerate(("open", "high", "low", "close", "volume"), 1)
        },
    }
)
SIX = [[*row[:6], row[6], None, None, None, None, "0"] for row in WIRE]


def rows(folder: Path, pattern: str, symbol: str = "AAA/USDT", interval: str = "1h") -> list[list]:
    world = RecordedWorld(load_recordings(folder, [pattern]))
    return json.loads(klines_json(world.klines(symbol, interval, now_ms=LATER, limit=1000)))


def csv_of(table: list[list], header: bool = False, scale: int = 1) -> bytes:
    lines = [
        ",".join(str(value * scale if i in (0, 6) else value) for i, value in enumerate(row)) for row in table
    ]
    names = ",".join(WIRE_COLUMNS)
    return "\n".join([names, *lines] if header else lines).encode()


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("AAAUSDT-1h.json", json.dumps(WIRE).encode()),
        ("AAA_USDT-1h-2025.wire.json.gz", gzip.compress(json.dumps(WIRE).encode())),
        ("AAAUSDT-1h-2025-01.csv", csv_of(WIRE)),
        ("AAAUSDT-1h-2025-01.csv.gz", gzip.compress(csv_of(WIRE, header=True))),
        ("AAAUSDT_1h.csv", csv_of(WIRE, header=True).replace(b"\n", b"\r\n")),
        (
            "AAAUSDT-1h.tar.gz",
            tar_of({"1.json": json.dumps(WIRE[:1]).encode(), "2.json": json.dumps(WIRE[1:]).encode()}),
        ),
        (
            "1h.tar.gz",
            tar_of({"1h/AAAUSDT.csv": csv_of(WIRE, header=True), "1h/BBBUSDT.csv": csv_of(WIRE[:1])}),
        ),
        ("AAAUSDT-1h-2025-01.zip", zip_of("AAAUSDT-1h-2025-01.csv", csv_of(WIRE))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_containers_and_formats_with_all_columns_are_served_verbatim(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    assert rows(tmp_path, "*") == WIRE


def test_archive_files_in_microseconds_are_read_as_such(tmp_path: Path) -> None:
    content = csv_of(WIRE, scale=1000)
    (tmp_path / "AAAUSDT-1h-2025-01.csv").write_bytes(content)
    assert [row[0] for row in rows(tmp_path, "*")] == [row[0] for row in WIRE]
    assert [row[6] - row[0] for row in rows(tmp_path, "*")] == [HOUR_MS - 1] * 2


@pytest.mark.parametrize(
    "name", ["AAA_USDT-1h.json", "AAA_USDT-1h.feather", "AAAUSDT-1h.parquet", "AAAUSDT-1h-utc+9.parquet"]
)
def test_files_of_six_columns_have_null_for_the_rest(tmp_path: Path, name: str) -> None:
    if name.endswith("json"):
        (tmp_path / name).write_text(json.dumps([[row[0], *map(float, row[1:6])] for row in WIRE]))
    elif name.endswith("feather"):
        pyarrow.feather.write_feather(TABLE, tmp_path / name)
    elif "utc+9" in name:
        local = pa.array([row[0] + 9 * HOUR_MS for row in WIRE], pa.timestamp("ms"))
        pyarrow.parquet.write_table(TABLE.set_column(0, "date", local), tmp_path / name)
    else:
        pyarrow.parquet.write_table(TABLE, tmp_path / name)
    assert rows(tmp_path, "*") == SIX


def test_the_later_file_and_the_later_row_win(tmp_path: Path) -> None:
    first = [[*row[:5], "1.00000000", *row[6:]] for row in WIRE]
    again = [[*row[:5], "2.00000000", *row[6:]] for row in WIRE[:1]]
    (tmp_path / "AAAUSDT-1h-a.json").write_text(json.dumps(first))
    (tmp_path / "AAAUSDT-1h-b.json").write_text(json.dumps([*WIRE[:1], *again]))
    assert [row[5] for row in rows(tmp_path, "*")] == ["2.00000000", "1.00000000"]


@pytest.mark.parametrize(
    ("name", "symbol"),
    [
        ("BUSDUSDT", "BUSD/USDT"),
        ("USTUSDT", "UST/USDT"),
        ("ADATUSD", "ADA/TUSD"),
        ("DOGEBTC", "DOGE/BTC"),
        ("ADAEUR", "ADA/EUR"),
        ("BETHETH", "BETH/ETH"),
        ("1000SATSFDUSD", "1000SATS/FDUSD"),
        ("X_YZ", "X/YZ"),
        ("USDCUSDT", "USDC/USDT"),
        ("USDTTRY", "USDT/TRY"),
    ],
)
def test_names_are_split_into_base_and_quote(tmp_path: Path, name: str, symbol: str) -> None:
    (tmp_path / f"{name}-1h.json").write_text(json.dumps(WIRE))
    assert [market.symbol for market in RecordedWorld(load_recordings(tmp_path, ["*"])).all_markets()] == [
        symbol
    ]


def test_an_exchange_info_recording_says_base_quote_and_steps(tmp_path: Path) -> None:
    filters = [
        {"filterType": "PRICE_FILTER", "tickSize": "0.05000000"},
        {"filterType": "LOT_SIZE", "stepSize": "0.10000000"},
        {"filterType": "MIN_NOTIONAL", "minNotional": "10.00000000"},
    ]
    entry = {"symbol": "AAAUSDT", "baseAsset": "AA", "quoteAsset": "AUSDT", "filters": filters}
    (tmp_path / "info.json").write_text(json.dumps({"symbols": [entry]}))
    (tmp_path / "AAAUSDT-1h.json").write_text(json.dumps(WIRE))
    market = RecordedWorld(load_recordings(tmp_path, ["AAA*"], exchange_info="info.json")).all_markets()[0]
    assert (market.symbol, market.exchange_symbol) == ("AA/AUSDT", "AAAUSDT")
    assert (market.tick, market.lot, market.min_notional) == (5_000_000, 10_000_000, 10**9)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("readme.json", b"[]", "says no symbol"),
        ("AAAXYZ-1h.json", b"[]", "no known quote"),
        ("AAAUSDT-1h.json", b"{}", "AAAUSDT-1h.json"),
        ("AAAUSDT-1h.json", b"<html>", "AAAUSDT-1h.json"),
        ("AAAUSDT-1h.csv", b"when,what\n1,2", "AAAUSDT-1h.csv"),
        ("AAAUSDT-1h.txt", b"", "AAAUSDT-1h.txt"),
    ],
)
def test_files_that_cannot_be_read_are_named(
    tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        RecordedWorld(load_recordings(tmp_path, ["*"])).all_markets()


def test_a_pattern_or_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing"):
        load_recordings(tmp_path, ["nothing*"])
    with pytest.raises(ValueError, match="coins.json"):
        load_recordings(tmp_path, coins_list="coins.json")


def test_coins_are_read_from_single_files_and_archives(tmp_path: Path) -> None:
    chart = {
        name: [[at(2025, 1, 2), 1.5], [at(2025, 1, 3), None]]
        for name in ("prices", "market_caps", "total_volumes")
    }
    candles = [[at(2025, 1, 2), 1.0, 3.0, 0.5, 2.0], [at(2025, 1, 3), 2.0, 2.5, 1.5, 2.5]]
    (tmp_path / "market_chart_daily.tar.gz").write_bytes(
        tar_of({"x/the-coin.json": json.dumps(chart).encode()})
    )
    (tmp_path / "ohlc_daily-the-coin.json").write_text(json.dumps(candles))
    (tmp_path / "other.json.gz").write_bytes(gzip.compress(json.dumps({"data": chart}).encode()))
    (tmp_path / "list.json").write_text(json.dumps([{"id": "the-coin", "symbol": "tc", "name": "The Coin"}]))
    recordings = load_recordings(tmp_path, coingecko=["*.gz", "ohlc*"], coins_list="list.json")
    world = RecordedWorld(recordings)
    points = world.coin_points("the-coin", "1d", 0, LATER, LATER)
    assert points.stamp_ms.tolist() == [at(2025, 1, 2), at(2025, 1, 3)]
    assert points.market_cap_usd.tolist()[0] == 1.5
    assert points.market_cap_usd.tolist()[1] != points.market_cap_usd.tolist()[1]
    assert world.coin_candles("the-coin", "1d", 0, LATER, LATER).prices.T.tolist() == [
        row[1:] for row in candles
    ]
    assert len(world.coin_points("other", "1d", 0, LATER, LATER)) == 2
    assert [coin.name for coin in world.coins(0)] == ["The Coin"]


def test_a_chart_whose_columns_differ_in_stamps_is_joined_on_prices(tmp_path: Path) -> None:
    day = at(2025, 1, 2)
    chart = {
        "prices": [[day, 1.0], [day + DAY_MS, 2.0]],
        "market_caps": [[day + DAY_MS, 9.0]],
        "total_volumes": [],
    }
    (tmp_path / "coin.json").write_text(json.dumps(chart))
    points = RecordedWorld(load_recordings(tmp_path, coingecko=["*"])).coin_points(
        "coin", "1d", 0, LATER, LATER
    )
    assert points.price_usd.tolist() == [1.0, 2.0]
    assert [cap == cap for cap in points.market_cap_usd.tolist()] == [False, True]


def test_recordings_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "AAAUSDT-1h.json").write_text("broken")
    recordings = load_recordings(tmp_path, ["*"])
    assert list(recordings.klines) == [("AAA/USDT", "1h")]
    with pytest.raises(ValueError, match="AAAUSDT-1h.json"):
        RecordedWorld(recordings).all_markets()


def contract_entry(symbol: str, kind: str, status: str, delivery_ms: int = 4133404800000) -> dict[str, Any]:
    return {
        "symbol": symbol,
        "contractType": kind,
        "status": status,
        "baseAsset": "AAA",
        "quoteAsset": "USDT",
        "marginAsset": "USDT",
        "onboardDate": _FIRST,
        "deliveryDate": delivery_ms,
        "filters": [
            {"filterType": "PRICE_FILTER", "tickSize": "0.10"},
            {"filterType": "LOT_SIZE", "stepSize": "0.001"},
            {"filterType": "MIN_NOTIONAL", "notional": "100"},
        ],
    }


def test_klines_of_contracts_and_pairs_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    (tmp_path / "spot").mkdir()
    (tmp_path / "um").mkdir()
    (tmp_path / "spot/AAAUSDT-1h.json").write_text(json.dumps(WIRE[:1]))
    for name in ("AAAUSDT-1h.json", "AAAUSDT_250328-1h.json"):
        (tmp_path / "um" / name).write_text(json.dumps(WIRE))
    world = RecordedWorld(load_recordings(tmp_path, ["spot/*"], futures=["um/*"]))
    assert [market.symbol for market in world.all_markets()] == ["AAA/USDT"]
    found = {market.symbol: market for market in world.all_contracts()}
    assert set(found) == {"AAA/USDT:USDT", "AAA/USDT:USDT-250328"}
    dated = found["AAA/USDT:USDT-250328"]
    assert (dated.exchange_symbol, dated.market_type, dated.settle) == ("AAAUSDT_250328", "delivery", "USDT")
    lengths = [
        len(world.klines(symbol, "1h", now_ms=LATER, limit=9)) for symbol in ("AAA/USDT", "AAA/USDT:USDT")
    ]
    assert lengths == [1, 2]
    assert world.contract("AAAUSDT", LATER) == found["AAA/USDT:USDT"]


def test_the_last_row_of_an_unfinished_file_is_left_out_of_each_symbol(tmp_path: Path) -> None:
    members = {f"1h/{name}USDT.csv": csv_of(WIRE, header=True) for name in ("AAA", "BBB")}
    (tmp_path / "1h.tar.gz").write_bytes(tar_of(members))
    for unfinished, opens in (([], [_FIRST, _SECOND]), (["1h*"], [_FIRST])):
        world = RecordedWorld(load_recordings(tmp_path, futures=["*.tar.gz"], unfinished=unfinished))
        for market in world.all_contracts():
            assert world.klines(market.symbol, "1h", now_ms=LATER, limit=9).open_ms.tolist() == opens
            assert market.last_ms == opens[-1]


def test_funding_of_all_forms_is_joined_and_the_later_file_wins(tmp_path: Path) -> None:
    (tmp_path / "AAAUSDT-funding-1.csv").write_text(
        "Symbol,Date,Funding Rate\nAAA-USDT,2025-01-01 03:00:00.002,-0.0001\n"
    )
    wire = [
        {"symbol": "AAAUSDT", "fundingTime": _FIRST + 2, "fundingRate": "0.00010000", "markPrice": "1.5"},
        {"symbol": "AAAUSDT", "fundingTime": _SECOND, "fundingRate": "-0.00020000", "markPrice": ""},
    ]
    (tmp_path / "AAAUSDT-funding-2.json").write_text(json.dumps(wire))
    archive = b"calc_time,funding_interval_hours,last_funding_rate\n%d,1,0.00030000\n" % (_THIRD + 7)
    (tmp_path / "AAAUSDT-fundingRate-2025-01.csv.gz").write_bytes(gzip.compress(archive))
    recordings = load_recordings(tmp_path, funding=["AAA*"], local_hours={"*-1.csv": 3})
    funding = RecordedWorld(recordings).final_funding("AAA/USDT:USDT", 0, LATER)
    assert funding.settled_ms.tolist() == [_FIRST + 2, _SECOND, _THIRD + 7]
    assert funding.rate.tolist() == [10_000, -20_000, 30_000]
    assert funding.mark_price.tolist() == [150_000_000, -1, -1]
    assert RecordedWorld(recordings).funding_hours("AAA/USDT:USDT", LATER) == 1


def test_open_interest_of_a_coarser_period_is_picked_from_the_finer_one(tmp_path: Path) -> None:
    lines = [f"{_FIRST + i * 900_000},AAAUSDT,{i}.5,{i}.25" for i in range(9)]
    content = "\n".join(["timestamp,symbol,sum_open_interest,sum_open_interest_value", *lines]).encode()
    (tmp_path / "oi_15m.tar.gz").write_bytes(tar_of({"oi_15m/AAAUSDT.csv": content}))
    world = RecordedWorld(load_recordings(tmp_path, open_interest=["*.tar.gz"]))
    hourly = world.final_open_interest("AAA/USDT:USDT", "1h", 0, LATER)
    assert hourly.stamp_ms.tolist() == [_FIRST, _SECOND, _THIRD]
    assert hourly.base.tolist() == [50_000_000, 450_000_000, 850_000_000]
    assert len(world.final_open_interest("AAA/USDT:USDT", "15m", 0, LATER)) == 9
    assert len(world.final_open_interest("AAA/USDT:USDT", "5m", 0, LATER)) == 0


def test_lists_say_which_markets_there_are_and_bars_know_what_came_after(tmp_path: Path) -> None:
    def info(name: str, told_ms: int, *entries: dict[str, Any]) -> str:
        (tmp_path / name).write_text(json.dumps({"serverTime": told_ms, "symbols": entries}))
        return name

    day = [at(2025, 1, day) for day in range(1, 9)]
    first = info(
        "1.json",
        day[1],
        contract_entry("AAAUSDT", "PERPETUAL", "TRADING"),
        contract_entry("AAAUSDT_250328", "CURRENT_QUARTER", "TRADING", at(2025, 3, 28, 8)),
    )
    second = info("2.json", day[4], contract_entry("AAAUSDT", "TRADIFI_PERPETUAL", "PRE_SETTLE"))
    late = [
        [day[5] + i * 3_600_000, *row[1:6], day[5] + (i + 1) * 3_600_000 - 1, *row[7:]]
        for i, row in enumerate(WIRE)
    ]
    (tmp_path / "AAAUSDT-1h.json").write_text(json.dumps(WIRE + late))
    recordings = load_recordings(tmp_path, futures=["AAA*"], exchange_info=[second, first])
    world = RecordedWorld(recordings)

    def seen(now_ms: int) -> dict[str, str]:
        return {market.symbol: world.status(market, now_ms) for market in world.contracts(now_ms)}

    perpetual, dated = "AAA/USDT:USDT", "AAA/USDT:USDT-250328"
    assert seen(day[0] - 1) == {}
    assert seen(day[0]) == {perpetual: "TRADING"}
    assert seen(day[1]) == {perpetual: "TRADING", dated: "TRADING"}
    assert seen(day[4]) == {perpetual: "PRE_SETTLE"}
    # It traded on for two hours, and then no more.
    assert seen(day[5] + 1) == {perpetual: "TRADING"}
    assert seen(day[7]) == {perpetual: "SETTLING"}
    market = world.contract("AAAUSDT", day[4])
    assert market is not None and (market.tick, market.lot, market.min_notional) == (10**7, 10**5, 10**10)
    words = [(world.description(market, now) or {}).get("contractType") for now in (day[0], day[1], day[4])]
    assert words == [None, "PERPETUAL", "TRADIFI_PERPETUAL"]


def test_two_entries_of_the_same_assets_are_two_markets(tmp_path: Path) -> None:
    entries = [contract_entry(name, "PERPETUAL", "TRADING") for name in ("AAA", "AAAUSDT", "AAAX")]
    (tmp_path / "info.json").write_text(json.dumps({"serverTime": 1, "symbols": entries}))
    world = RecordedWorld(load_recordings(tmp_path, exchange_info="info.json"))
    named = {market.exchange_symbol: market.symbol for market in world.contracts(LATER)}
    assert named["AAAUSDT"] == "AAA/USDT:USDT"
    assert len(set(named.values())) == len(named) == 3


@pytest.mark.parametrize(
    ("name", "content", "kind", "complaint"),
    [
        ("?.csv", b"a,b", "funding", "says no symbol"),
        ("AAAUSDT.csv", b"when,what\n1,2", "funding", "AAAUSDT.csv is no list of settlements"),
        ("AAAUSDT.csv", b"a,b", "open_interest", "says no period"),
        ("AAAUSDT-oi-1h.csv", b"a,b\n1,2", "open_interest", "is no open interest"),
        ("AAAXYZ.csv", b"a,b", "funding", "no known quote"),
    ],
)
def test_files_of_contracts_that_cannot_be_read_are_named(
    tmp_path: Path, name: str, content: bytes, kind: str, complaint: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        recordings = load_recordings(
            tmp_path,
            funding=["*"] if kind == "funding" else [],
            open_interest=["*"] if kind == "open_interest" else [],
        )
        for load in (*recordings.funding.values(), *recordings.open_interest.values()):
            load()
