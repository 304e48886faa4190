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
