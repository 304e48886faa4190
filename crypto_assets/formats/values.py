"""Times and numbers as files write them: epochs in s, ms, us or ns, ISO texts, decimal texts and prints of floats.

Here: single columns. Not here: which column means what (``klines``, ``samples``). The package and tests import it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

# pyarrow makes its compute functions while it is imported, where a type checker cannot see them.
pc: Any = pyarrow.compute

AMOUNT = pa.decimal128(38, 8)
_BLANKS = pa.array(["", "nan", "NaN", "NAN", "null", "NULL", "None", "NA", "N/A", "<NA>"])
# Between 2009, when the first coin was mined, and 2100 the numbers of seconds, ms, us and ns never overlap.
_EARLIEST_S, _LATEST_S = 1_230_768_000, 4_102_444_800
_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
#: Zones lie a quarter of an hour apart, from UTC-12 to UTC+14.
QUARTER_MS = 900_000


@dataclass(frozen=True)
class Times:
    """A column of times.

    Attributes
    ----------
    ms
        Epoch milliseconds, int64, null where the file has none: UTC if ``zoned``, else by the clock of whoever wrote
        the file.
    zoned
        Whether the moments are certain.
    wording
        What was found, for people: ``ms``, ``ms and us``, ``ISO with zone``.
    """

    ms: pa.Array
    zoned: bool
    wording: str

    def in_utc(self, offset: timedelta | None) -> pa.Array:
        """Epoch milliseconds UTC.

        Parameters
        ----------
        offset
            How far a clock without a zone was ahead of UTC; of no effect where the moments are certain.

        Raises
        ------
        ValueError
            If the zone is not known.
        """
        if self.zoned:
            return self.ms
        if offset is None:
            first = pc.drop_null(self.ms)
            shown = first[:1].cast(pa.timestamp("ms"))[0].as_py() if len(first) else "none"
            raise ValueError(
                f"its times ({shown}) carry no zone; say how far they are ahead of UTC with offset, 0 for UTC"
            )
        return pc.subtract(self.ms, offset // timedelta(milliseconds=1))


def times_of(column: pa.Array, name: str, *, round_up: bool = False) -> Times:
    """Read a column of times.

    Parameters
    ----------
    column
        Integers, whole floats, texts, dates or timestamps of any unit.
    name
        For messages.
    round_up
        Whether fractions of a millisecond count as a whole one: a candle that opens a microsecond after the grid is
        not on it. They are cut off otherwise.

    Raises
    ------
    ValueError
        If a value is no time between 2009 and 2100, or was spoilt by a spreadsheet (1.7E+12).
    """
    if _is_text(column.type):
        column = blank_to_null(column)
        if pc.all(pc.match_substring_regex(column, r"^\d+(\.0*)?$")).as_py() is not False:
            whole = pc.replace_substring_regex(column, r"\.0*$", "")
            return _epochs(_cast(whole, pa.int64(), name), name, round_up)
        return _iso(column, name, round_up)
    if pa.types.is_date(column.type):
        return Times(column.cast(pa.timestamp("ms")).cast(pa.int64()), False, "dates")
    if pa.types.is_timestamp(column.type):
        return _stamps(column, column.type.tz is not None, f"{column.type}", round_up)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    return _epochs(_cast(column, pa.int64(), name), name, round_up)


def amounts_of(column: pa.Array, name: str) -> pa.Array:
    """Read a column of amounts into decimals of 8 places.

    More places are the print of a float and are rounded half to even; a float means its shortest print.

    Raises
    ------
    ValueError
        If a value is no number.
    """
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column).cast(pa.string())
    elif _is_text(column.type):
        column = blank_to_null(column)
    else:
        return _cast(column, AMOUNT, name)
    try:
        return column.cast(AMOUNT)
    except pa.ArrowInvalid:
        wide = _cast(column, pa.decimal256(76, 30), name)
        return _cast(pc.round(wide, 8, round_mode="half_to_even"), AMOUNT, name)


def floats_of(column: pa.Array, name: str) -> pa.Array:
    """Read a column of numbers into float64; blanks and NaN are null.

    Raises
    ------
    ValueError
        If a value is no number.
    """
    values = _cast(blank_to_null(column) if _is_text(column.type) else column, pa.float64(), name)
    is_nan = pc.is_nan(values)
    return pc.if_else(is_nan, None, values) if pc.any(is_nan).as_py() else values


def integers_of(column: pa.Array, name: str) -> pa.Array:
    """Read a column of whole numbers, also as floats print them (``17.0``), into int64.

    Raises
    ------
    ValueError
        If a value is no whole number.
    """
    if _is_text(column.type):
        # As a float, a number of seventeen digits would be another one.
        with suppress(pa.ArrowInvalid):
            return blank_to_null(column).cast(pa.int64())
    if pa.types.is_integer(column.type):
        return _cast(column, pa.int64(), name)
    return _cast(floats_of(column, name), pa.int64(), name)


def utc_text(offset: timedelta) -> str:
    """An offset from UTC, for people.

    Examples
    --------
    >>> utc_text(timedelta(hours=-3, minutes=-30))
    'UTC-03:30'
    """
    minutes = offset // timedelta(minutes=1)
    return f"UTC{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"


def blank_to_null(texts: pa.Array) -> pa.Array:
    """Texts without blanks around them; null where nothing, or a word for nothing, is left."""
    trimmed = pc.utf8_trim_whitespace(texts)
    return pc.if_else(pc.is_in(trimmed, _BLANKS.cast(trimmed.type)), None, trimmed)


def _epochs(numbers: pa.Array, name: str, round_up: bool) -> Times:
    values = (pc.fill_null(numbers, 0) if numbers.null_count else numbers).to_numpy()
    known = pc.is_valid(numbers).to_numpy(zero_copy_only=False)
    ms, seen = np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    words = []
    for unit, per_second in _UNITS.items():
        fits = known & (values >= _EARLIEST_S * per_second) & (values < _LATEST_S * per_second)
        if not fits.any():
            continue
        if fits.all():
            return Times(pa.array(_in_ms(values, per_second, round_up)), True, unit)
        words.append(unit)
        seen |= fits
        ms[fits] = _in_ms(values[fits], per_second, round_up)
    if not (seen | ~known).all():
        at = int(np.argmin(seen | ~known))
        raise ValueError(
            f"{name} in row {at} is {values[at]}, no time between 2009 and 2100 in seconds, ms, us or ns"
        )
    return Times(pa.array(ms, mask=~known), True, " and ".join(words) or "empty")


def _in_ms(epochs: np.ndarray, per_second: int, round_up: bool) -> np.ndarray:
    if per_second <= 1000:
        return epochs * (1000 // per_second)
    finer = per_second // 1000
    return -(-epochs // finer) if round_up else epochs // finer


def _iso(texts: pa.Array, name: str, round_up: bool) -> Times:
    zoned = pc.all(pc.match_substring_regex(texts, r"\d\d:\d\d.*(Z|[+-]\d\d(:?\d\d)?)$")).as_py()
    try:
        stamps = texts.cast(pa.timestamp("ns", "UTC" if zoned else None))
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{name} is neither an epoch nor ISO 8601 with or without a zone throughout ({error}); "
            "times that went through a spreadsheet are lost"
        ) from None
    return _stamps(stamps, bool(zoned), "ISO with zone" if zoned else "ISO without zone", round_up)


def _stamps(stamps: pa.Array, zoned: bool, wording: str, round_up: bool) -> Times:
    ns = stamps.cast(pa.timestamp("ns", stamps.type.tz)).cast(pa.int64())
    values = pc.fill_null(ns, 0).to_numpy()
    ms = -(-values // 10**6) if round_up else values // 10**6
    return Times(pa.array(ms, mask=pc.is_null(ns).to_numpy(zero_copy_only=False)), zoned, wording)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _cast(column: pa.Array, kind: pa.DataType, name: str) -> pa.Array:
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{name} cannot be read as {kind}: {error}") from None
