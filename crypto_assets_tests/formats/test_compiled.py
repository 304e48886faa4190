"""The compiled reader gives the very numbers of the texts, or leaves them to the general one."""

from __future__ import annotations

import gzip
import struct
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_assets.formats.compiled import REACH, count_lines, read_lines
from crypto_assets.formats.klines import (
    AMOUNTS,
    ARCHIVE_HEADER,
    PRICES,
    WIRE_COLUMNS,
    read_archive_klines,
    read_klines,
)
from crypto_assets.intervals import to_ms
from crypto_assets_tests.recorded import RECORDED, needs_recorded

START_MS = to_ms(datetime(2024, 1, 1))
PLAIN = {
    "open": "1.50000000",
    "high": "2.00000000",
    "low": "1.00000000",
    "close": "1.75000000",
    "volume_base": "10.00000000",
    "volume_quote": "15.12345678",
    "n_trades": "3",
    "taker_buy_base": "4.00000000",
    "taker_buy_quote": "6.00000000",
    "ignore": "0",
}
#: The same columns under names that only the general reader takes.
GENERAL_HEADER = ARCHIVE_HEADER.replace(b"open_time", b"Open Time")
UNUSUAL = ["", "-", ".", "1.", ".5", "-.5", "+1", " 1", "1 ", '"1"', "1e-7", "1E3", "nan", "inf", "null", "x"]
UNUSUAL += ["0x10", "1_000", "--1", "-1-", "1-", "1.2.3", "1..2", "1;2", "1,2", "1\n2", "\n", "1\r", "1\x00"]
UNUSUAL += ["\u0661", "/", ":", "1/", "1:", "1.123456789", "1.1234567:", "9" * 19, "9" * 40, "-" + "9" * 19]


def line(at: int = 0, unit: int = 1, /, **changed: str) -> str:
    opened = (START_MS + at * 60_000) * unit
    times = {"ts": str(opened), "close_time": str(opened + 60_000 * unit - 1)}
    return ",".join((times | PLAIN | changed)[name] for name in WIRE_COLUMNS)


def n_plain(text: str | bytes) -> int:
    lines = text if isinstance(text, bytes) else text.encode()
    n = lines.count(b"\n")
    behind = np.frombuffer(lines + b"7" * REACH, np.uint8)
    targets = np.empty((2, n), np.int64), np.empty((4, n)), np.empty((4, n, 2), np.uint64)
    return int(read_lines(behind, len(lines), 0, *targets, np.empty(n, np.int64)))


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def decimals(most_digits: int) -> st.SearchStrategy[str]:
    whole = st.integers(1, most_digits).flatmap(lambda n: st.integers(0, 10**n - 1))
    part = st.text("0123456789", max_size=8)
    zeros = st.integers(0, 3)
    return st.builds(
        lambda sign, zeros, whole, part: f"{sign}{'0' * zeros}{whole}{'.' if part else ''}{part}",
        st.sampled_from(["", "-"]),
        zeros,
        whole,
        part,
    )


# -- numbers


@settings(max_examples=400, deadline=None)
@given(texts=st.lists(decimals(20), min_size=4, max_size=4))
def test_a_price_has_the_bits_of_its_text(texts: list[str]) -> None:
    columns = read_archive_klines(line(**dict(zip(PRICES, texts, strict=True))).encode())
    found = [columns[name][0].as_py() for name in PRICES]
    assert list(map(bits, found)) == [bits(float(text)) for text in texts]


@settings(max_examples=400, deadline=None)
@given(texts=st.lists(decimals(29), min_size=4, max_size=4))
def test_an_amount_is_its_text_to_the_last_digit(texts: list[str]) -> None:
    columns = read_archive_klines(line(**dict(zip(AMOUNTS, texts, strict=True))).encode())
    assert [columns[name][0].as_py() for name in AMOUNTS] == [Decimal(text) for text in texts]


@settings(max_examples=200, deadline=None)
@given(n_trades=st.integers(0, 2**63 - 1))
def test_a_number_of_trades_is_exact_up_to_the_largest_of_64_bits(n_trades: int) -> None:
    assert read_archive_klines(line(n_trades=str(n_trades)).encode())["n_trades"].to_pylist() == [n_trades]


@pytest.mark.parametrize(
    "text",
    ["0.00000001", "-0.00000001", "0.1", "0", "-0", "-0.00000000", "00000000000000001.5", "90071992.54740992"]
    + [
        "90071992.54740993",
        "9007199254740992",
        "9007199254740993",
        "1500000000.00000000",
        "1500000000.50000000",
    ]
    + ["-1234567.12345678", "-12345678.12345678", "999999999999999999", "123456789012345678.12345678"],
)
def test_extreme_prices_are_read_to_the_bit(text: str) -> None:
    found = read_archive_klines(line(low=text).encode())["low"][0].as_py()
    assert bits(found) == bits(float(text))


@pytest.mark.parametrize(
    "text",
    [
        "0.00000001",
        "-0.00000001",
        "0",
        "92233720368.54775807",
        "92233720368.54775808",
        "-92233720368.54775808",
    ]
    + ["-92233720368.54775809", "184467440737.09551615", "184467440737.09551616", "-184467440737.09551616"]
    + ["999999999999999999.99999999", "-999999999999999999.99999999", "00000000000000000000000000007.5"]
    + ["100000000000000000000000000000", "999999999999999999999999999999.99999999", "-7", "1000.5"],
)
def test_extreme_amounts_are_read_to_the_last_digit(text: str) -> None:
    found = read_archive_klines(line(volume_quote=text).encode())
    assert found["volume_quote"].to_pylist() == [Decimal(text)]


def test_an_amount_of_more_than_38_digits_is_refused() -> None:
    with pytest.raises(ValueError, match="volume_base cannot be read as"):
        read_archive_klines(line(volume_base="1" + "0" * 30).encode())


@pytest.mark.parametrize(
    "text", ["12345678", "-1234567", "-12345678", "1234567.1", "-123456789012345678.00000001"]
)
def test_what_the_exchange_may_print_is_plain(text: str) -> None:
    assert n_plain(line(taker_buy_base=text) + "\n") == 1


# -- what is not plain


@pytest.mark.parametrize("text", UNUSUAL)
@pytest.mark.parametrize("column", WIRE_COLUMNS[:-1])
def test_no_other_spelling_is_taken_for_a_plain_number(column: str, text: str) -> None:
    assert n_plain("\n".join([line(0), line(1, **{column: text}), line(2)]) + "\n") == 1


@pytest.mark.parametrize("column", ["ts", "close_time", "n_trades"])
def test_a_whole_number_has_neither_sign_nor_point(column: str) -> None:
    for text in ("-1", "1.0"):
        assert n_plain(line(**{column: text}) + "\n") == 0


@pytest.mark.parametrize("text", ["1,2", '"', "1\r2", "\r\r"])
def test_the_column_that_means_nothing_must_not_hide_others(text: str) -> None:
    assert n_plain(line(ignore=text) + "\n") == 0


@pytest.mark.parametrize("text", UNUSUAL)
@pytest.mark.parametrize("column", WIRE_COLUMNS[:-1])
def test_what_is_not_plain_is_read_or_refused_as_the_general_reader_does(column: str, text: str) -> None:
    lines = "\n".join([line(0), line(1, **{column: text}), line(2)]).encode()
    outcomes = []
    for header in (ARCHIVE_HEADER, GENERAL_HEADER):
        try:
            columns = read_archive_klines(header + b"\n" + lines)
        except ValueError as error:
            outcomes.append(str(error))
        else:
            outcomes.append({name: values.to_pylist() for name, values in columns.items()})
    assert outcomes[0] == outcomes[1]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_line_with_one_damaged_byte_is_never_read_as_something_else(data: st.DataObject) -> None:
    whole = line().encode()
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at + 1 :] + b"\n"
    n = damaged.count(b"\n")
    if n_plain(damaged) < n:
        return
    fields = damaged.decode("ascii", errors="replace").rstrip("\r\n").split(",")
    assert len(fields) == len(WIRE_COLUMNS)
    if START_MS <= int(fields[0]) < 2 * START_MS and START_MS <= int(fields[6]) < 2 * START_MS:
        columns = read_archive_klines(damaged)
        assert [columns[name][0].as_py() for name in PRICES] == list(map(float, fields[1:5]))
        assert columns["volume_base"][0].as_py() == Decimal(fields[5])


@pytest.mark.parametrize("n", [1, 4, 20])
def test_a_last_line_that_is_cut_off_is_refused(n: int) -> None:
    whole = "\n".join(line(at) for at in range(n + 1)).encode()
    last = whole.rindex(b"\n") + 1
    for at in range(last + 1, whole.rindex(b",") + 1):
        with pytest.raises(ValueError, match="no CSV with 12 columns"):
            read_archive_klines(whole[:at])


@pytest.mark.parametrize("at", [0, 1, 20, 39])
def test_reading_stops_at_the_first_line_that_is_not_plain(at: int) -> None:
    lines = [line(n, low="1e0") if n == at else line(n) for n in range(40)]
    assert n_plain("\n".join(lines) + "\n") == at


# -- files


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("unit", [1, 1000], ids=["ms", "us"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 50])
def test_every_line_is_read_whatever_ends_it_and_however_many_there_are(n: int, unit: int, end: str) -> None:
    lines = end.join(line(at, unit, open=f"1.{at:02d}", n_trades=str(at)) for at in range(n))
    for header in ("", ARCHIVE_HEADER.decode() + end):
        for last in ("", end):
            file = read_klines((header + lines + last).encode(), "BTCUSDT-1m.csv")
            assert file.as_published
            columns = file.columns
            assert columns["ts"].to_pylist() == [START_MS + at * 60_000 for at in range(n)]
            assert columns["close_time"].to_pylist() == [START_MS + at * 60_000 + 59_999 for at in range(n)]
            assert columns["open"].to_pylist() == [float(f"1.{at:02d}") for at in range(n)]
            assert columns["n_trades"].to_pylist() == list(range(n))


def test_bytes_that_may_be_written_to_are_read_like_others() -> None:
    text = "\n".join(line(at) for at in range(30)).encode()
    columns = read_archive_klines(bytearray(text))
    assert all(columns[name].equals(values) for name, values in read_archive_klines(text).items())


def test_several_threads_read_at_once() -> None:
    texts = ["\n".join(line(at, open=f"1.{n}") for at in range(2000)).encode() for n in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read_archive_klines, texts))
    assert [columns["open"].unique().to_pylist() for columns in found] == [
        [float(f"1.{n}")] for n in range(8)
    ]


def test_lines_are_counted_by_their_ends() -> None:
    assert [count_lines(np.frombuffer(text, np.uint8)) for text in (b"a", b"\n", b"a\nb\r\n\n")] == [0, 1, 3]


@needs_recorded
@pytest.mark.parametrize("month", ["2023-08", "2023-09"])
def test_every_number_of_a_recorded_month_is_that_of_its_text(month: str) -> None:
    data = gzip.decompress((RECORDED / f"um_1m_vision/FILUSDT-1m-{month}.csv.gz").read_bytes())
    assert read_klines(data, "FILUSDT-1m.csv").as_published
    columns = read_archive_klines(data)
    texts = dict(
        zip(
            WIRE_COLUMNS,
            zip(*(row.split(",") for row in data.decode().split()[1:]), strict=True),
            strict=True,
        )
    )
    for name in ("ts", "close_time", "n_trades"):
        assert columns[name].to_pylist() == list(map(int, texts[name]))
    for name in PRICES:
        assert columns[name].to_numpy().tobytes() == np.array(list(map(float, texts[name]))).tobytes()
    for name in AMOUNTS:
        assert columns[name].equals(pa.array(map(Decimal, texts[name]), pa.decimal128(38, 8)))
