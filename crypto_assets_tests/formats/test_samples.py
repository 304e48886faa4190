"""Funding rates and open interest as the exchange's archive, its answers and people's tables have them."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import orjson
import pytest

from crypto_assets.formats.containers import contents
from crypto_assets.formats.samples import read_funding, read_open_interest
from crypto_assets.intervals import from_ms
from crypto_assets_tests.recorded import RECORDED, needs_recorded

SETTLED_MS = 1_704_096_000_009


def test_the_archive_s_funding_says_how_far_settlements_lie_apart() -> None:
    csv = f"calc_time,funding_interval_hours,last_funding_rate\n{SETTLED_MS},8,0.00010000\n".encode()
    found = read_funding(csv)
    assert {name: values.to_pylist() for name, values in found.columns.items()} == {
        "settled_at": [SETTLED_MS],
        "funding_rate_frac": [0.0001],
        "interval_hours": [8.0],
    }
    assert found.detected == "CSV with header, times in ms"


def test_an_answer_of_the_exchange_has_a_mark_price_or_a_blank_one() -> None:
    rows = [
        {"symbol": "BTCUSDT", "fundingTime": SETTLED_MS, "fundingRate": "-0.0003", "markPrice": "42000.5"},
        {"symbol": "BTCUSDT", "fundingTime": SETTLED_MS + 1, "fundingRate": "0.0001", "markPrice": ""},
    ]
    found = read_funding(orjson.dumps(rows))
    assert found.columns["mark_price"].to_pylist() == [42000.5, None]
    assert found.columns["funding_rate_frac"].to_pylist() == [-0.0003, 0.0001]
    assert found.market == "BTCUSDT"


@needs_recorded
def test_recorded_funding_of_um_gravestone_jitters_and_settles_every_1_4_or_8_hours() -> None:
    found = [read_funding(item.data) for item in contents(RECORDED / "um_gravestone/dev/funding.tar.gz")]
    assert len(found) == 268
    times = [file.columns["settled_at"].to_numpy() for file in found]
    assert sum(map(len, times)) == 53_496
    assert 0 < max((each % 1000).max() for each in times) < 20
    hours = {int(np.median(np.diff(each // 1000)) // 3600) for each in times}
    assert hours == {1, 4, 8}


@needs_recorded
def test_recorded_funding_in_local_time_is_told_its_offset_of_3_hours() -> None:
    path = RECORDED / "binance_wire/funding/BTCUSDT-funding-2020_2023.csv.gz"
    (content,) = contents(path)
    with pytest.raises(ValueError, match="2020-01-01 03:00:00.* carry no zone"):
        read_funding(content.data)
    found = read_funding(content.data, offset=timedelta(hours=3))
    times = found.columns["settled_at"].to_numpy()
    assert (len(times), from_ms(int(times[0]))) == (4383, datetime(2020, 1, 1))
    assert found.market == "BTC-USDT"
    assert "UTC+03:00 as told" in found.detected


@needs_recorded
def test_recorded_open_interest_of_um_gravestone_is_7491_samples_with_their_value() -> None:
    found = [read_open_interest(item.data) for item in contents(RECORDED / "um_gravestone/dev/oi_1d.tar.gz")]
    assert sum(len(file.columns["ts"]) for file in found) == 7491
    first = found[0]
    assert first.market == "0GUSDT"
    assert first.columns["open_interest_base"][0].as_py() == 18_986_450.0
    assert first.columns["open_interest_quote"][0].as_py() == 12_411_442.365


@needs_recorded
def test_recorded_answer_with_open_interest_is_read_as_it_came() -> None:
    (content,) = contents(RECORDED / "binance_wire/gocryptotrader/binance-http.json.gz")
    answers = orjson.loads(content.data)["routes"]["/futures/data/openInterestHist"]["GET"]
    answer = next(item["data"] for item in answers if item["data"])
    found = read_open_interest(orjson.dumps(answer))
    assert found.market == "LTCUSDT"
    assert found.columns["open_interest_base"][0].as_py() == 286_060.674
    assert from_ms(found.columns["ts"][0].as_py()) == datetime(2020, 10, 7)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"timestamp,price\n1704096000000,1\n", "lack one of funding_rate_frac"),
        (b"timestamp,funding_rate\n1704096000000,\n", "funding_rate_frac is missing in 1 of 1 rows"),
        (b"timestamp,funding_rate\n,0.1\n", "settled_at is missing in 1 of 1 rows"),
        (b"timestamp,funding_rate\n1704096000000,x\n", "funding_rate_frac cannot be read as double"),
        (b'{"code": -1121}', "no list of rows"),
    ],
)
def test_funding_that_lacks_a_time_or_a_rate_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_funding(data)
