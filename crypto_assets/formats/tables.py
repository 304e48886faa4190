"""CSV, JSON, Feather and Parquet as named columns.

Here: what a content is by its first bytes, and its columns as they stand. Not here: what a column means (``klines``,
``samples``). The package and tests import it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

Columns = Mapping[str, pa.Array]
#: What a file lies in: unpacking makes the latter, and a copy would cost more than reading its candles.
Bytes = bytes | bytearray

_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class NamedColumns:
    """A content as columns.

    Attributes
    ----------
    columns
        Arrays of one length by lower-case name with underscores for blanks; of a CSV file they are texts. Of a name
        that comes twice the first column counts.
    form
        How it was read, for people: ``CSV with header``.
    """

    columns: Columns
    form: str


def columns_of(
    data: Bytes,
    *,
    in_lines: Sequence[str] = (),
    in_lists: Sequence[Sequence[str]] = (),
    names: Sequence[str] = (),
) -> NamedColumns:
    """Read a content into named columns.

    Parameters
    ----------
    data
        Of a CSV, JSON, Feather or Parquet file.
    in_lines
        Names of the columns of CSV without header that has so many.
    in_lists
        The same of JSON lists, one for each length that is known.
    names
        Names of the columns of both, in place of those.

    Raises
    ------
    ValueError
        If the content is none of these, or its columns have no names.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    if data[:4] == b"PAR1":
        return _of_table(_arrow(pyarrow.parquet.read_table, data), "Parquet")
    if data[:6] == b"ARROW1":
        return _of_table(_arrow(pyarrow.feather.read_table, data), "Feather")
    if not data.strip():
        raise ValueError("it is empty")
    start = data[:64].lstrip()[:1]
    if start in (b"[", b"{"):
        return _of_json(data, [names] if names else in_lists)
    if start == b"<":
        raise ValueError("it is a web page, no data; it was not downloaded from where it should have been")
    return _of_csv(data, names or in_lines)


def first_line(data: Bytes) -> bytes:
    """The first line of a text, without its end; all of it where there is but one."""
    return bytes(data[: data.find(b"\n") if b"\n" in data else len(data)]).rstrip(b"\r")


def is_header(line: bytes) -> bool:
    """Whether a line of CSV names columns: a number begins with a digit, a sign, a dot or a quote before one."""
    return not line.lstrip(b" \"'").startswith(tuple(b"%c" % c for c in b"0123456789+-."))


def _arrow(read: Any, data: Bytes) -> pa.Table:
    try:
        return read(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"it is damaged: {error}") from None


def _of_table(table: pa.Table, form: str) -> NamedColumns:
    columns: dict[str, pa.Array] = {}
    for at, name in enumerate(table.column_names):
        values = table.column(at).combine_chunks()
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        columns.setdefault(_plain(name), values)
    return NamedColumns(columns, form)


def _of_csv(data: Bytes, names: Sequence[str]) -> NamedColumns:
    line = first_line(data).decode(errors="replace")
    delimiter = max(_DELIMITERS, key=line.count)
    has_header = is_header(line.encode())
    n_columns = line.count(delimiter) + 1
    header = [part.strip().strip('"') for part in line.split(delimiter)] if has_header else None
    own = header or _names_for(n_columns, [names])
    # pyarrow takes each name once; the first column of a name counts.
    unique = [name if name not in own[:at] else f"{name}#{at}" for at, name in enumerate(own)]
    try:
        table = pyarrow.csv.read_csv(
            pa.py_buffer(data),
            read_options=pyarrow.csv.ReadOptions(column_names=unique, skip_rows=int(has_header)),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
            convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(unique, pa.string())),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(f"it is no CSV with {n_columns} columns: {error}") from None
    return _of_table(table, "CSV with header" if has_header else "CSV without header")


def _of_json(data: Bytes, known: Sequence[Sequence[str]]) -> NamedColumns:
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"it is no whole JSON document: {error}") from None
    if not isinstance(document, list):
        raise ValueError("it is a JSON document, but no list of rows")
    if not document:
        return NamedColumns({name: pa.array([], pa.string()) for own in known for name in own}, "JSON")
    kinds = set(map(type, document))
    if kinds == {dict}:
        fields = list(dict.fromkeys(name for row in document for name in row))
        columns = {name: [row.get(name) for row in document] for name in fields}
        return NamedColumns(
            {_plain(name): _array(name, rows) for name, rows in columns.items()}, "JSON objects"
        )
    if kinds != {list}:
        raise ValueError("it is a JSON list, but its rows are neither lists nor objects")
    n_columns = len(document[0])
    if set(map(len, document)) != {n_columns}:
        at = next(at for at, row in enumerate(document) if len(row) != n_columns)
        raise ValueError(f"row {at} has {len(document[at])} elements, the first one {n_columns}")
    own = _names_for(n_columns, known)
    arrays = {name: _array(name, rows) for name, rows in zip(own, zip(*document, strict=True), strict=True)}
    return NamedColumns({_plain(name): array for name, array in arrays.items()}, f"JSON rows of {n_columns}")


def _array(name: str, values: Sequence[object]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        # Numbers and their texts in one column: both are numbers by their print.
        if any(isinstance(value, dict | list | bool) for value in values):
            raise ValueError(f"the values of {name} are no numbers") from None
        return pa.array([None if value is None else str(value) for value in values], pa.string())


def _names_for(n_columns: int, known: Sequence[Sequence[str]]) -> list[str]:
    for names in known:
        if len(names) == n_columns:
            return list(names)
    lengths = " or ".join(str(len(names)) for names in known if names)
    raise ValueError(
        f"its rows have {n_columns} elements and no names{f', where {lengths} would be known' if lengths else ''}; "
        "name its columns in their order"
    )


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_")
