"""CSV, JSON, Feather and Parquet are told apart by their first bytes, and their columns by their names."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from crypto_assets.formats.tables import columns_of

TABLE = pa.table({"Open Time": [1, 2], "close": [1.5, 2.5]})


def written(write) -> bytes:
    target = io.BytesIO()
    write(target)
    return target.getvalue()


@pytest.mark.parametrize(
    ("data", "form"),
    [
        (written(lambda file: pyarrow.parquet.write_table(TABLE, file)), "Parquet"),
        (written(lambda file: pyarrow.feather.write_feather(TABLE, file)), "Feather"),
        (b'[{"Open Time": 1, "close": 1.5}, {"Open Time": 2, "close": 2.5}]', "JSON objects"),
    ],
)
def test_typed_forms_keep_their_types_and_get_plain_names(data: bytes, form: str) -> None:
    found = columns_of(data)
    assert {name: values.to_pylist() for name, values in found.columns.items()} == {
        "open_time": [1, 2],
        "close": [1.5, 2.5],
    }
    assert found.form == form


@pytest.mark.parametrize(
    "data",
    [
        b"Open Time,close\n1,1.5\n",
        b"\xef\xbb\xbfOpen Time,close\r\n1,1.5\r\n",
        b"Open Time;close\n1;1.5",
        b"Open Time\tclose\n1\t1.5\n",
        b'"Open Time","close"\n"1","1.5"\n',
    ],
    ids=["plain", "windows", "semicolons", "tabs", "quoted"],
)
def test_csv_is_read_as_texts_whatever_separates_it(data: bytes) -> None:
    found = columns_of(data)
    assert {name: values.to_pylist() for name, values in found.columns.items()} == {
        "open_time": ["1"],
        "close": ["1.5"],
    }


def test_of_a_name_that_comes_twice_the_first_column_counts() -> None:
    found = columns_of(b"open_time,close,open_time\n1,2,3\n")
    assert found.columns["open_time"].to_pylist() == ["1"]


def test_rows_without_names_get_those_of_their_length() -> None:
    assert columns_of(b"1,2\n3,4\n", in_lines=("a", "b")).columns["b"].to_pylist() == ["2", "4"]
    lists = columns_of(b"[[1, 2], [3, 4]]", in_lists=(("x",), ("a", "b")))
    assert (lists.columns["b"].to_pylist(), lists.form) == ([2, 4], "JSON rows of 2")
    assert columns_of(b"1,2\n", in_lines=("a",), names=("p", "q")).columns["q"].to_pylist() == ["2"]


def test_a_column_of_numbers_and_their_texts_is_read_by_their_print() -> None:
    assert columns_of(b'[["1.50"], [2]]', in_lists=(("a",),)).columns["a"].to_pylist() == ["1.50", "2"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"<html><body>Just a moment...</body></html>", "a web page"),
        (b"1,2,3\n", "3 elements and no names, where 2 would be known"),
        (b"[[1, 2, 3]]", "3 elements and no names, where 2 would be known"),
        (b"[[1, 2], [1]]", "row 1 has 1 elements, the first one 2"),
        (b"[[1, 2], [1", "no whole JSON document"),
        (b'{"code": -1121, "msg": "Invalid symbol."}', "no list of rows"),
        (b"[1, 2]", "neither lists nor objects"),
        (b"[[[1], 2], [3, 4]]", "the values of a are no numbers"),
        (b"a,b\n1,2\n3\n", "no CSV with 2 columns"),
        (b"PAR1 and then nothing", "damaged"),
        (b"ARROW1 and then nothing", "damaged"),
        (b" \n", "it is empty"),
    ],
)
def test_what_is_no_table_is_refused_with_its_reason(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        columns_of(data, in_lines=("a", "b"), in_lists=(("a", "b"),))
