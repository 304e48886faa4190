"""Frames against contracts: what is taken, what is refused and how the refusal reads; the hash of rows."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_assets.resources.warehouse.conform import ContractError, conform, content_hash
from crypto_assets.schemas import ARROW_TYPES, Column, Table
from crypto_assets_tests.resources.warehouse.rows import KLINES, MIDNIGHT, SCORES, WINDOW, klines, scores

#: One column of every type, all but the key optional.
EVERYTHING = Table(
    "raw/everything",
    "one row per key",
    (
        Column("name", "VARCHAR", "key", required=True),
        *(Column(f"a_{i}", type_, "value") for i, type_ in enumerate(ARROW_TYPES)),
    ),
    ("name",),
    "none",
    "replace",
    "-",
    time_column="",
)

FRAMES: dict[str, Callable[[pa.Table], Any]] = {
    "pandas": lambda rows: rows.to_pandas(),
    "pandas with an index": lambda rows: rows.to_pandas().set_index(
        pd.Index(range(7, 7 + len(rows)), name="i")
    ),
    "pandas of Arrow types": lambda rows: rows.to_pandas(types_mapper=pd.ArrowDtype),
    "Polars": pl.from_arrow,
    "Arrow": lambda rows: rows,
    "Arrow in chunks": lambda rows: pa.concat_tables([rows.slice(0, 1), rows.slice(1)]),
    "record batch": lambda rows: rows.combine_chunks().to_batches()[0],
}


@pytest.mark.parametrize("make", FRAMES.values(), ids=list(FRAMES))
def test_every_kind_of_frame_gives_the_same_rows(make: Callable[[pa.Table], Any]) -> None:
    rows = pa.concat_tables([klines([2, 0]), klines([1], close=90.0)])
    stored = conform(make(rows), KLINES, WINDOW)
    assert stored.schema.equals(KLINES.arrow_schema(), check_metadata=True)
    assert stored.equals(rows.sort_by("ts"))
    assert content_hash(stored) == content_hash(conform(rows, KLINES))


@pytest.mark.parametrize(
    "make", [FRAMES["pandas"], FRAMES["Polars"], FRAMES["Arrow"]], ids=["pandas", "Polars", "Arrow"]
)
def test_columns_are_taken_by_name_in_any_order(make: Callable[[pa.Table], Any]) -> None:
    rows = klines([0, 1])
    assert conform(make(rows.select(rows.column_names[::-1])), KLINES).equals(rows)


@pytest.mark.parametrize("kind", ["object", "category"])
def test_an_empty_pandas_frame_without_types_gives_typed_columns(kind: str) -> None:
    empty = pd.DataFrame({name: pd.Series([], dtype=kind) for name in KLINES.column_names})
    stored = conform(empty, KLINES, WINDOW)
    assert stored.num_rows == 0
    assert stored.schema.equals(KLINES.arrow_schema())


def test_texts_may_be_categories() -> None:
    rows = scores([0, 1])
    in_pandas = rows.to_pandas().astype({"symbol": "category"})
    in_polars = pl.DataFrame(pl.from_arrow(rows)).with_columns(pl.col("symbol").cast(pl.Categorical))
    assert conform(in_pandas, SCORES).equals(rows)
    assert conform(in_polars, SCORES).equals(rows)


def test_nan_and_none_are_both_missing() -> None:
    frame = scores([0, 1, 2]).to_pandas()
    frame["alpha_score"] = [np.nan, None, 1.0]
    assert conform(frame, SCORES)["alpha_score"].to_pylist() == [None, None, 1.0]


@pytest.mark.parametrize("kind", ["float16", "float32", "int8", "uint32"])
def test_narrower_numbers_are_widened(kind: str) -> None:
    frame = scores([0, 1]).to_pandas()
    frame["alpha_score"] = np.array([2, 3], dtype=kind)
    assert conform(frame, SCORES)["alpha_score"].to_pylist() == [2.0, 3.0]


def test_whole_floats_with_gaps_fit_counts() -> None:
    frame = klines([0, 1]).to_pandas()
    frame["n_trades"] = [3.0, np.nan]
    assert conform(frame, KLINES)["n_trades"].to_pylist() == [3, None]


def test_decimals_keep_every_digit() -> None:
    exact = [Decimal("0.00000001"), Decimal("123456789012345678901234567890.12345678")]
    frame = klines([0, 1]).to_pandas()
    frame["volume_base"] = exact
    assert conform(frame, KLINES)["volume_base"].to_pylist() == exact


def test_days_are_times_at_midnight() -> None:
    frame = scores([0]).to_pandas()
    frame["ts"] = pd.Series([date(2024, 1, 1)], dtype="object")
    assert conform(frame, SCORES)["ts"].to_pylist() == [MIDNIGHT]


def with_column(name: str, values: Any) -> pd.DataFrame:
    return klines([0, 1]).to_pandas().assign(**{name: values})


REFUSED: dict[str, tuple[str, Any, str]] = {
    "text as number": ("close", ["1.5", "2"], r"raw/klines\.close: .*string.* not a form of DOUBLE"),
    "infinity as text": ("close", ["inf", "nan"], r"raw/klines\.close: .*DOUBLE"),
    "number as text": ("symbol", [1, 2], r"raw/klines\.symbol: int64 is not a form of VARCHAR"),
    "number as time": ("ts", [1_704_067_200_000, 1_704_070_800_000], r"raw/klines\.ts: int64 .* TIMESTAMP"),
    "time as number": ("n_trades", [MIDNIGHT, MIDNIGHT], r"raw/klines\.n_trades: timestamp.* BIGINT"),
    "flag as number": ("n_trades", [True, False], r"raw/klines\.n_trades: bool .* BIGINT"),
    "broken count": ("n_trades", [1.5, 2.0], r"raw/klines\.n_trades: double does not fit BIGINT"),
    "count too large": (
        "n_trades",
        np.array([2**64 - 1, 0], "uint64"),
        r"raw/klines\.n_trades: uint64 does not fit",
    ),
    "digits too many": (
        "volume_base",
        [Decimal("0.000000001")] * 2,
        r"raw/klines\.volume_base: decimal.* fit",
    ),
    "nanoseconds": (
        "close_time",
        pd.to_datetime(["2024-01-01 00:00:00.000000001"] * 2),
        r"raw/klines\.close_time: timestamp\[ns\] does not fit TIMESTAMP",
    ),
    "mixed objects": ("close", [1.0, "x"], r"pandas frame has no Arrow form: .*close"),
    "zone-aware": (
        "ts",
        pd.date_range("2024-01-01", periods=2, freq="h", tz="UTC"),
        r"klines\.ts: .*zone UTC.*naive",
    ),
    "infinite": ("close", [1.0, -np.inf], r"raw/klines\.close: holds infinite numbers"),
    "NULL in the key": ("venue", ["binance", None], r"raw/klines\.venue: 1 of 2 rows are NULL"),
    "NULL where required": ("known_at", [pd.NaT, MIDNIGHT], r"raw/klines\.known_at: 1 of 2 rows are NULL"),
    "duplicate key": (
        "ts",
        [MIDNIGHT, MIDNIGHT],
        r"raw/klines: the key occurs twice, first at \{.*BTC/USDT.*2024",
    ),
    "extra column": ("colour", ["r", "g"], r"raw/klines: columns not in the contract: colour; .*schemas\.py"),
    "before the window": (
        "ts",
        [MIDNIGHT - timedelta(microseconds=1), MIDNIGHT],
        r"raw/klines: .*23:59:59.*outside",
    ),
    "at the window's end": ("ts", [MIDNIGHT, WINDOW[1]], r"raw/klines: .*to 2024-01-02 00:00:00 lie outside"),
}


@pytest.mark.parametrize(("name", "values", "message"), REFUSED.values(), ids=list(REFUSED))
def test_a_refusal_names_table_column_and_reason(name: str, values: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        conform(with_column(name, values), KLINES, WINDOW)


def test_missing_columns_are_named_together_with_extra_ones() -> None:
    frame = klines([0]).to_pandas().rename(columns={"open": "first", "close": "last"})
    with pytest.raises(ContractError, match="missing: close, open; columns not in the contract: first, last"):
        conform(frame, KLINES)


def test_a_column_that_occurs_twice_is_refused() -> None:
    rows = scores([0])
    doubled = rows.append_column("ts", rows["ts"])
    with pytest.raises(ContractError, match="occurs twice"):
        conform(doubled, SCORES)
    with pytest.raises(ContractError, match="Duplicate column names"):
        conform(pd.concat([rows.to_pandas(), rows.to_pandas()[["ts"]]], axis=1), SCORES)


@pytest.mark.parametrize("thing", [None, [{"ts": 1}], "rows", pl.Series([1]), pl.LazyFrame({"a": [1]})])
def test_what_is_no_frame_is_refused(thing: Any) -> None:
    with pytest.raises(ContractError, match="expected a pandas, Polars or Arrow table, not"):
        conform(thing, SCORES)


def test_the_duplicate_that_is_named_is_the_first_in_key_order() -> None:
    rows = pa.concat_tables([scores([5, 3, 3, 5]), scores([9], symbol="ADA/USDT")])
    with pytest.raises(ContractError, match=r"datetime\.datetime\(2024, 1, 1, 3, 0\)"):
        conform(rows, SCORES)


VALUES = {
    "VARCHAR": st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    "DOUBLE": st.floats(allow_nan=False, allow_infinity=False),
    "BIGINT": st.integers(-(2**63), 2**63 - 1),
    "INTEGER": st.integers(-(2**31), 2**31 - 1),
    "BOOLEAN": st.booleans(),
    "TIMESTAMP": st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)),
    "DECIMAL(38,8)": st.integers(-(10**20), 10**20).map(lambda units: Decimal(units).scaleb(-8)),
}
ROW = st.fixed_dictionaries({f"a_{i}": st.none() | VALUES[type_] for i, type_ in enumerate(ARROW_TYPES)})
ROWS = st.lists(ROW, min_size=1, max_size=6).map(
    lambda rows: [{"name": f"r{i}", **row} for i, row in enumerate(rows)]
)


def as_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=EVERYTHING.arrow_schema())


def hash_of_rows(rows: list[dict[str, Any]]) -> str:
    return content_hash(conform(as_table(rows), EVERYTHING))


@given(ROWS, st.randoms(use_true_random=False))
def test_the_hash_does_not_depend_on_the_order_of_rows_columns_or_chunks(
    rows: list[dict[str, Any]], random: Any
) -> None:
    expected = hash_of_rows(rows)
    names, shuffled = list(EVERYTHING.column_names), list(rows)
    random.shuffle(names)
    random.shuffle(shuffled)
    table = as_table(shuffled).select(names)
    cut = random.randint(0, len(rows))
    assert (
        content_hash(conform(pa.concat_tables([table.slice(0, cut), table.slice(cut)]), EVERYTHING))
        == expected
    )
    assert content_hash(conform(as_table(rows), EVERYTHING).slice(0)) == expected


@given(ROWS, st.data())
def test_the_hash_changes_with_any_value(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    number = data.draw(st.integers(0, len(ARROW_TYPES) - 1))
    name, old = f"a_{number}", rows[at][f"a_{number}"]
    values = st.none() | VALUES[list(ARROW_TYPES)[number]]
    new = data.draw(values.filter(lambda value: value != old))
    changed = [{**row, name: new} if i == at else row for i, row in enumerate(rows)]
    assert hash_of_rows(changed) != hash_of_rows(rows)


@pytest.mark.parametrize(
    ("type_", "zero"), [("VARCHAR", ""), ("DOUBLE", 0.0), ("BIGINT", 0), ("BOOLEAN", False)]
)
def test_the_hash_tells_null_from_nothing(type_: str, zero: Any) -> None:
    name = f"a_{list(ARROW_TYPES).index(type_)}"
    missing = dict.fromkeys(EVERYTHING.column_names) | {"name": "r"}
    assert hash_of_rows([missing]) != hash_of_rows([{**missing, name: zero}])


def test_the_hash_tells_where_one_text_ends_and_the_next_begins() -> None:
    rows = [dict.fromkeys(EVERYTHING.column_names) | {"name": name} for name in ("a", "b")]
    one, other = (
        [{**row, "a_0": text} for row, text in zip(rows, texts, strict=True)]
        for texts in (("xy", "z"), ("x", "yz"))
    )
    assert hash_of_rows(one) != hash_of_rows(other)


def test_the_hash_takes_both_zeros_for_one() -> None:
    assert content_hash(conform(scores([0], value=-0.0), SCORES)) == content_hash(
        conform(scores([0], value=0.0), SCORES)
    )


def test_the_hash_is_the_same_for_a_slice_and_a_copy() -> None:
    whole = conform(klines([0, 1, 2, 3]), KLINES)
    assert content_hash(whole.slice(1, 2)) == content_hash(conform(klines([1, 2]), KLINES))
    assert content_hash(whole.slice(0, 0)) == content_hash(KLINES.arrow_schema().empty_table())
