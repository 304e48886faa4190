"""Candles of any source: what passes, what is set aside, what an answer proves, and what makes it invalid."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_assets.intervals import MINUTE_MS, from_ms, to_ms
from crypto_assets.resources.exchange.binance_answers import columns_of, decoded_klines
from crypto_assets.resources.exchange.connection import NotJson
from crypto_assets.resources.klines import (
    KLINE_SCHEMA,
    SET_ASIDE_SCHEMA,
    KlineKind,
    KlinePage,
    KlineWindow,
    described,
    nothing_until,
    page_of,
)

at = datetime.fromisoformat

START = at("2024-01-01")
MINUTE = timedelta(minutes=1)
START_MS = to_ms(START)
LATER = at("2024-02-01")


def window(n_minutes: int = 10, kind: KlineKind = "trade", closed: datetime = LATER) -> KlineWindow:
    return KlineWindow(kind, "1m", START, START + n_minutes * MINUTE, closed)


def candles(*minutes: float, **changes: object) -> dict[str, pa.Array]:
    n = len(minutes)
    opens = [START_MS + int(minute * MINUTE_MS) for minute in minutes]
    columns: Mapping[str, object] = {
        "ts": opens,
        "open": ["10.5"] * n,
        "high": ["12"] * n,
        "low": ["9"] * n,
        "close": ["11"] * n,
        "volume_base": [str(i + 1) for i in range(n)],
        "n_trades": list(range(n)),
        "close_time": [opened + 59_999 for opened in opens],
        **changes,
    }
    return {
        name: values if isinstance(values, pa.Array) else pa.array(values) for name, values in columns.items()
    }


def opens(page: KlinePage) -> list[float]:
    return [(ts - START) / MINUTE for ts in page.rows["ts"].to_pylist()]


def test_columns_get_the_types_of_the_schema_and_what_the_source_lacks_is_null() -> None:
    page = page_of(candles(0, 1), window())
    assert (page.rows.schema, page.set_aside.schema) == (KLINE_SCHEMA, SET_ASIDE_SCHEMA)
    first = page.rows.to_pylist()[0]
    assert (first["ts"], first["open"], first["volume_base"]) == (START, 10.5, Decimal(1))
    assert first["close_time"] == START + timedelta(milliseconds=59_999)
    assert first["volume_quote"] is None
    assert (page.n_raw, page.covered_until, page.resume_at, page.covered_from) == (
        2,
        START + 10 * MINUTE,
        None,
        None,
    )


def test_floats_and_decimals_do_as_well_as_texts() -> None:
    amounts = pa.array([Decimal("1.5"), None], pa.decimal128(38, 8))
    page = page_of(candles(0, 1, open=[10.5, 10.5], volume_base=amounts), window())
    assert page.rows["volume_base"].to_pylist() == [Decimal("1.5"), None]


def test_of_rows_with_one_opening_time_the_last_one_counts_and_the_others_are_set_aside() -> None:
    page = page_of(candles(0, 1, 1, 1, 2), window())
    assert opens(page) == [0, 1, 2]
    assert page.rows["volume_base"].to_pylist() == [1, 4, 5]
    assert [(row["volume_base"], row["reason"]) for row in page.set_aside.to_pylist()] == [
        (2, "duplicate"),
        (3, "duplicate"),
    ]
    assert page.n_raw == 5


def test_rows_between_grid_points_are_set_aside_and_their_doubles_are_doubles() -> None:
    page = page_of(candles(0, 1.5, 1.5, 3), window())
    assert opens(page) == [0, 3]
    assert page.set_aside["reason"].to_pylist() == ["duplicate", "off_grid"]


def test_an_open_candle_is_left_out_and_what_follows_it_is_not_proven() -> None:
    closed = START + 2 * MINUTE + timedelta(seconds=59)
    page = page_of(candles(0, 1, 1.99), window(closed=closed))
    assert (opens(page), page.set_aside.num_rows, page.n_raw) == ([0, 1], 0, 3)
    assert page.covered_until == START + MINUTE
    assert window(closed=closed).provable_end == START + 2 * MINUTE


def test_a_full_answer_proves_what_it_spans_and_says_where_to_go_on() -> None:
    page = page_of(candles(0, 1, 3), window(), cut_off=True)
    assert (page.covered_until, page.resume_at) == (
        START + 4 * MINUTE,
        START + 3 * MINUTE + timedelta(milliseconds=1),
    )
    page = page_of(candles(0, 9), window(), cut_off=True)
    assert (page.covered_until, page.resume_at) == (START + 10 * MINUTE, None)


def test_an_empty_answer_proves_the_range_up_to_what_is_closed() -> None:
    none = {"ts": pa.array([], pa.int64())}
    assert page_of(none, window()) == nothing_until(START + 10 * MINUTE)
    assert page_of(none, window(closed=START + 3.5 * MINUTE)).covered_until == START + 3 * MINUTE
    assert page_of(none, window(closed=START - MINUTE)).covered_until == START


@pytest.mark.parametrize("kind", ["mark", "premium"])
def test_of_mark_and_premium_only_times_and_prices_are_used(kind: KlineKind) -> None:
    page = page_of(candles(0, 1, volume_base=["0", "x"]), window(kind=kind))
    for name in KLINE_SCHEMA.names[5:10]:
        assert page.rows[name].null_count == 2
    assert page.rows["close_time"].null_count == 0


def test_a_premium_may_be_negative_or_nothing_and_a_price_may_not() -> None:
    premium = candles(0, open=["-0.001"], high=["0"], low=["-0.002"], close=["0"])
    assert page_of(premium, window(kind="premium")).rows["low"].to_pylist() == [-0.002]
    for kind in ("trade", "mark"):
        with pytest.raises(ValueError, match="0 < low"):
            page_of(premium, window(kind=kind))


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        (candles(0, 2, 1), r"must not run backwards.*\(row 2\)"),
        (candles(-1, 0), "leave the asked range"),
        (candles(9, 10), "leave the asked range"),
        (candles(0, ts=[None], close_time=[0]), "open times must be integers"),
        (candles(0, ts=[float(START_MS)]), "open times must be integers"),
        (candles(0, 1, high=["12", "10"]), "row 1"),
        (candles(0, high=["inf"]), "row 0"),
        (candles(0, low=["nan"]), "row 0"),
        (candles(0, low=["0"]), "row 0"),
        (candles(0, close=pa.nulls(1, pa.string())), "close is missing in 1 of 1 rows"),
        (candles(0, open=["ten"]), "open does not parse as double"),
        (candles(0, volume_base=["1.123456789"]), "volume_base does not parse"),
        (candles(0, 1, volume_base=["1", "-0.00000001"]), "volume_base must not be negative, but row 1"),
        (candles(0, 1, n_trades=[1, -1]), "n_trades must not be negative, but row 1"),
        (candles(0, close_time=[2**62]), "overflow"),
    ],
)
def test_a_row_that_breaks_the_promise_is_named(columns: dict[str, pa.Array], complaint: str) -> None:
    with pytest.raises((ValueError, TypeError), match=complaint):
        page_of(columns, window())


def test_a_negative_amount_in_a_slice_of_a_longer_column_is_found_and_one_outside_is_not() -> None:
    amounts = pa.array([Decimal(-1), Decimal(1), Decimal(2), Decimal(-3)], pa.decimal128(38, 8))
    assert page_of(candles(0, 1, volume_base=amounts.slice(1, 2)), window()).n_raw == 2
    with pytest.raises(ValueError, match="row 1"):
        page_of(candles(0, 1, volume_base=amounts.slice(2, 2)), window())


@settings(deadline=None, max_examples=150)
@given(
    minutes=st.lists(st.integers(0, 19).map(lambda half: half / 2), max_size=24).map(sorted),
    cut_off=st.booleans(),
    closed_s=st.integers(0, 700),
)
def test_no_row_is_lost_or_doubled_and_the_proof_holds_what_came(
    minutes: list[float], cut_off: bool, closed_s: int
) -> None:
    closed = START + timedelta(seconds=closed_s)
    asked = window(closed=closed)
    page = page_of(candles(*minutes) if minutes else {"ts": pa.array([], pa.int64())}, asked, cut_off=cut_off)
    is_closed = [minute for minute in minutes if START + minute * MINUTE + MINUTE <= closed]
    assert page.rows.num_rows + page.set_aside.num_rows == len(is_closed)
    assert opens(page) == sorted({minute for minute in is_closed if minute % 1 == 0})
    assert START <= page.covered_until <= max(START, asked.provable_end)
    # Nothing that is still open, and with a full answer nothing behind its last row, is proven.
    assert all(
        START + minute * MINUTE >= page.covered_until - MINUTE
        for minute in minutes
        if minute not in is_closed
    )
    if page.resume_at is not None:
        assert cut_off
        assert page.resume_at == START + minutes[-1] * MINUTE + timedelta(milliseconds=1)


def test_a_row_is_described_by_its_columns_in_order_of_name() -> None:
    assert described({"b": START, "a": Decimal("1.50")}) == '{"a": "1.50", "b": "2024-01-01 00:00:00"}'


# Bodies of the exchange

ROW = b'[1704067200000,"10.5","12","9","11","5.5",1704067259999,"55.0",3,"2.5","25.0","0"]'


def test_a_body_in_the_usual_spelling_and_one_in_another_read_alike() -> None:
    rows = [ROW, ROW.replace(b"1704067200000", b"1704067260000")]
    usual = b"[" + b",".join(rows) + b"]"
    for other in (usual.replace(b",", b", "), b" " + usual + b"\n", usual.replace(b"10.5", b"\\u00310.5")):
        assert isinstance(decoded_klines(usual), pa.Table)
        pages = [page_of(columns_of(decoded_klines(body)), window()) for body in (usual, other)]
        assert pages[0].rows.equals(pages[1].rows)
    assert page_of(columns_of(decoded_klines(b"[]")), window()).n_raw == 0


@pytest.mark.parametrize(
    "body",
    [
        b"[" + ROW.replace(b'"10.5"', b"10.5") + b"]",
        b"[" + ROW.replace(b'"10.5"', b'"10.5') + b"]",
        b"[" + ROW.replace(b'"10.5"', b'"1[0.5"') + b"]",
        b"[" + ROW.replace(b'"10.5"', b'["10.5"]') + b"]",
        b"[" + ROW.replace(b'"10.5"', b'"1,5"') + b"]",
        b"[" + ROW.replace(b'"10.5"', b'""') + b"]",
        b"[" + ROW.replace(b'"10.5"', b"null") + b"]",
        b"[" + ROW.replace(b',"0"]', b"]") + b"]",
        b"[" + ROW + b"," + ROW[:-1],
        b"[" + ROW + b",,]",
        b"[[]]",
        b"",
        b"<html>",
        b'{"code":-1121,"msg":"Invalid symbol."}',
    ],
)
def test_a_body_of_another_shape_never_passes_as_candles(body: bytes) -> None:
    with pytest.raises((NotJson, ValueError, TypeError)):
        page_of(columns_of(decoded_klines(body)), window())


def outcome(payload: object) -> KlinePage | str:
    try:
        return page_of(columns_of(payload), window())
    except (ValueError, TypeError) as error:
        return type(error).__name__


@settings(deadline=None, max_examples=300)
@given(position=st.integers(0, 2 * len(ROW) + 2), byte=st.sampled_from(b'0123456789.,"[]{}-e \nx'))
def test_a_body_with_a_damaged_byte_that_still_is_json_means_what_its_json_means(
    position: int, byte: int
) -> None:
    body = bytearray(b"[" + ROW + b"," + ROW.replace(b"1704067200000", b"1704067260000") + b"]")
    body[position] = byte
    try:
        meant = outcome(orjson.loads(bytes(body)))
    except orjson.JSONDecodeError:
        return
    told = outcome(decoded_klines(bytes(body)))
    if isinstance(meant, KlinePage) and isinstance(told, KlinePage):
        assert told.rows.equals(meant.rows)
    else:
        assert told == meant


def test_the_grid_of_the_window_is_that_of_the_interval() -> None:
    assert KlineWindow(
        "trade", "1h", START, START + timedelta(hours=3), at("2024-01-01T02:30")
    ).provable_end == at("2024-01-01T02:00")
    assert from_ms(START_MS) == START
