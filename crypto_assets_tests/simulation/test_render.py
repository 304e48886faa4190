from __future__ import annotations

import json
from decimal import Decimal

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from crypto_assets.simulation.bars import N_VALUES, UNKNOWN, Bars, no_bars
from crypto_assets.simulation.render import (
    decimal_text,
    funding_json,
    index_klines_json,
    klines_json,
    open_interest_json,
)
from crypto_assets.simulation.world import Funding, OpenInterest, no_funding, no_open_interest


def bars_of(values: np.ndarray, shown: np.ndarray, n_trades: list[int]) -> Bars:
    opens = np.arange(values.shape[1], dtype=np.int64) * 60_000
    return Bars(opens, opens + 59_999, values, shown.astype(np.uint8), np.array(n_trades))


def test_a_row_has_the_twelve_elements_of_the_exchange() -> None:
    values = np.arange(1, 9).reshape(N_VALUES, 1) * 10**8
    rows = json.loads(klines_json(bars_of(values, np.full((N_VALUES, 1), 8), [77])))
    texts = [f"{n}.00000000" for n in range(1, 9)]
    assert rows == [[0, *texts[:5], 59_999, texts[5], 77, texts[6], texts[7], "0"]]


def test_unknown_values_are_null() -> None:
    values = np.full((N_VALUES, 2), 10**8)
    values[5:, 0] = UNKNOWN
    rows = json.loads(klines_json(bars_of(values, np.full((N_VALUES, 2), 8), [UNKNOWN, 3])))
    assert [rows[0][i] for i in (7, 8, 9, 10)] == [None, None, None, None]
    assert [rows[1][i] for i in (7, 8, 9, 10)] == ["1.00000000", 3, "1.00000000", "1.00000000"]


def test_no_rows_are_an_empty_list() -> None:
    assert klines_json(no_bars()) == b"[]"


def test_values_beyond_63_bits_are_printed_in_full() -> None:
    values = np.full((N_VALUES, 1), 145_150_420_958_30000000, object)
    assert (
        json.loads(klines_json(bars_of(values, np.full((N_VALUES, 1), 8), [1])))[0][5]
        == "145150420958.30000000"
    )


@given(
    units=st.lists(st.integers(0, 10**18), min_size=N_VALUES * 3, max_size=N_VALUES * 3),
    shown=st.lists(st.integers(0, 8), min_size=N_VALUES * 3, max_size=N_VALUES * 3),
)
def test_every_decimal_is_printed_exactly_with_its_number_of_decimals(
    units: list[int], shown: list[int]
) -> None:
    exact = [
        value // 10 ** (8 - digits) * 10 ** (8 - digits) for value, digits in zip(units, shown, strict=True)
    ]
    values, digits = np.array(exact).reshape(N_VALUES, 3), np.array(shown).reshape(N_VALUES, 3)
    rows = json.loads(klines_json(bars_of(values, digits, [1, 2, 3])))
    places = [1, 2, 3, 4, 5, 7, 9, 10]
    for column, place in enumerate(places):
        for i, row in enumerate(rows):
            assert Decimal(row[place]) == Decimal(int(values[column, i])) / 10**8
            assert len(row[place].partition(".")[2]) == digits[column, i]


def test_negative_decimals_have_their_sign() -> None:
    assert decimal_text(-150_000_000, 2) == "-1.50"
    assert decimal_text(-5_000_000, 2) == "-0.05"


@given(units=st.lists(st.integers(-(10**17), 10**17), min_size=8, max_size=8))
def test_prices_of_an_index_keep_their_sign_and_have_no_volume(units: list[int]) -> None:
    values = np.zeros((N_VALUES, 2), np.int64)
    values[:4] = np.array(units).reshape(4, 2)
    rows = json.loads(index_klines_json(bars_of(values, np.full((N_VALUES, 2), 8), [60, UNKNOWN])))
    for i, row in enumerate(rows):
        assert [Decimal(text) for text in row[1:5]] == [Decimal(int(v)) / 10**8 for v in values[:4, i]]
        assert {row[5], row[7], *row[9:]} == {"0"}
        assert (row[0], row[6]) == (60_000 * i, 60_000 * i + 59_999)
    assert [row[8] for row in rows] == [60, None]


def test_a_premium_just_below_zero_is_no_unknown_price() -> None:
    values = np.zeros((N_VALUES, 1), np.int64)
    values[:4] = -1
    assert (
        json.loads(index_klines_json(bars_of(values, np.full((N_VALUES, 1), 8), [12])))[0][1] == "-0.00000001"
    )


def test_settlements_are_printed_with_their_sign_and_without_an_unknown_mark_price() -> None:
    funding = Funding(np.array([7, 8]), np.array([-10_010, 10_000]), np.array([UNKNOWN, 2_500_000_001]))
    assert json.loads(funding_json("币%USDT", funding)) == [
        {"symbol": "币%USDT", "fundingTime": 7, "fundingRate": "-0.00010010", "markPrice": ""},
        {"symbol": "币%USDT", "fundingTime": 8, "fundingRate": "0.00010000", "markPrice": "25.00000001"},
    ]
    assert funding_json("BTCUSDT", no_funding()) == b"[]"


def test_open_interest_beyond_63_bits_is_printed_in_full_and_unknown_as_null() -> None:
    samples = OpenInterest(
        np.array([5, 6]), np.array([10**21, 5], object), np.array([UNKNOWN, 10**8], object)
    )
    assert json.loads(open_interest_json("AUSDT", samples)) == [
        {"symbol": "AUSDT", "sumOpenInterest": "10000000000000.00000000", "sumOpenInterestValue": None}
        | {"timestamp": 5},
        {"symbol": "AUSDT", "sumOpenInterest": "0.00000005", "sumOpenInterestValue": "1.00000000"}
        | {"timestamp": 6},
    ]
    assert open_interest_json("AUSDT", no_open_interest()) == b"[]"
