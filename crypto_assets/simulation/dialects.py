"""Columns of recorded klines, funding rates and open interest in their many dialects, made into records.

Here: what a column means, how its times and decimals are read. Not here: files and containers
(``recordings``). Only ``recordings.py`` and tests import it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from crypto_assets.simulation.bars import (
    CLOSE,
    HIGH,
    LOW,
    N_DECIMALS,
    N_VALUES,
    OPEN,
    TAKER_BASE,
    TAKER_QUOTE,
    UNKNOWN,
    VOLUME_BASE,
    VOLUME_QUOTE,
    Bars,
    bar_end,
    grid_start,
)
from crypto_assets.simulation.world import Funding, OpenInterest

# pyarrow makes its compute functions while it is imported, where a type checker cannot see them.
pc: Any = pyarrow.compute

Columns = Mapping[str, pa.Array]

#: Column order of the exchange's own rows and archive files.
WIRE_COLUMNS = ["open_time", "open", "high", "low", "close", "volume", "close_time"]
WIRE_COLUMNS += ["quote_volume", "count", "taker_buy_volume", "taker_buy_quote_volume", "ignore"]
_NAMES: dict[str | int, tuple[str, ...]] = {
    "open_ms": ("open_time", "opentime", "timestamp", "date", "datetime", "time"),
    "close_ms": ("close_time", "closetime", "close_timestamp"),
    "n_trades": ("count", "trades", "n_trades", "num_trades", "number_of_trades", "trade_count"),
    OPEN: ("open",),
    HIGH: ("high",),
    LOW: ("low",),
    CLOSE: ("close",),
    VOLUME_BASE: ("volume", "vol", "base_volume", "volume_base"),
    VOLUME_QUOTE: ("quote_volume", "quote_av", "quote_asset_volume", "qav", "volume_quote"),
    TAKER_BASE: (
        "taker_buy_volume",
        "taker_buy_base",
        "tb_base_av",
        "taker_buy_base_asset_volume",
        "taker_base_volume",
    ),
    TAKER_QUOTE: (
        "taker_buy_quote_volume",
        "taker_buy_quote",
        "tb_quote_av",
        "taker_buy_quote_asset_volume",
        "taker_quote_volume",
    ),
}


_SETTLED = ("calc_time", "fundingtime", "funding_time", "timestamp", "date")
_RATE = ("last_funding_rate", "fundingrate", "funding_rate")
_MARK = ("mark_price", "markprice")
_SAMPLED = ("timestamp", "create_time")
_OPEN_BASE = ("sum_open_interest", "sumopeninterest")
_OPEN_QUOTE = ("sum_open_interest_value", "sumopeninterestvalue")


def bars_of_columns(columns: Columns, interval: str, offset_ms: int = 0) -> Bars:
    """Read klines out of named columns.

    Parameters
    ----------
    columns
        Arrays of one length by lower-case name; ``_NAMES`` says which names mean what, others are ignored.
    interval
        Their interval.
    offset_ms
        How far stamps without a zone are ahead of UTC.

    Returns
    -------
    Bars
        In the given order. Decimal texts keep their number of decimals up to 8; more decimals are the print
        of a float and are rounded; numbers get 8. Missing columns and blanks are unknown, a missing close
        time is open + interval - 1, a missing open time the start of the interval that closes then.

    Raises
    ------
    ValueError
        If times, prices or base volume are missing, or a value cannot be read.
    """
    found = {
        role: columns[name] for role, names in _NAMES.items() for name in reversed(names) if name in columns
    }
    missing = [_NAMES[role][0] for role in (OPEN, HIGH, LOW, CLOSE, VOLUME_BASE) if role not in found]
    if missing:
        raise ValueError(f"columns {', '.join(columns)} lack {', '.join(missing)}")
    ends = _times_ms(found["close_ms"], offset_ms) if "close_ms" in found else None
    if "open_ms" in found:
        open_ms = _times_ms(found["open_ms"], offset_ms)
    elif ends is not None:
        open_ms = grid_start(ends, interval)
    else:
        raise ValueError(f"columns {', '.join(columns)} lack an open or close time")
    if (open_ms == UNKNOWN).any():
        raise ValueError(f"row {int(np.argmin(open_ms))} has no open time")
    regular = bar_end(open_ms, interval) - 1
    units = np.full((N_VALUES, len(open_ms)), UNKNOWN, np.int64)
    shown = np.zeros((N_VALUES, len(open_ms)), np.uint8)
    for row in range(N_VALUES):
        if row in found:
            values, shown[row] = _decimals(found[row])
            units = units if values.dtype == np.int64 else units.astype(object)
            units[row] = values
    if (units[: VOLUME_BASE + 1] < 0).any():
        raise ValueError("a row lacks a price or its volume")
    trades = np.full(len(open_ms), UNKNOWN, np.int64)
    if "n_trades" in found:
        counts = found["n_trades"]
        counts = _blank_to_null(counts) if pa.types.is_string(counts.type) else counts
        trades = np.nan_to_num(counts.cast(pa.float64()).to_numpy(zero_copy_only=False), nan=UNKNOWN).astype(
            np.int64
        )
    return Bars(
        open_ms, regular if ends is None else np.where(ends == UNKNOWN, regular, ends), units, shown, trades
    )


def funding_of_columns(columns: Columns, offset_ms: int = 0) -> Funding:
    """Read settlements out of named columns, in the given order.

    Times are read as those of klines. Rates have a sign and at most 8 decimals count; a missing or blank mark
    price is unknown.

    Raises
    ------
    ValueError
        If times or rates are missing or cannot be read.
    """
    rates = _exact(_column(columns, _RATE))
    if rates.null_count:
        raise ValueError(f"{rates.null_count} rows lack a funding rate")
    settled_ms = _times_ms(_column(columns, _SETTLED), offset_ms)
    if (settled_ms == UNKNOWN).any():
        raise ValueError(f"row {int(np.argmin(settled_ms))} has no settlement time")
    mark = next((columns[name] for name in _MARK if name in columns), None)
    unknown = np.full(len(settled_ms), UNKNOWN, np.int64)
    return Funding(settled_ms, _whole(rates), unknown if mark is None else _decimals(mark)[0])


def open_interest_of_columns(columns: Columns, offset_ms: int = 0) -> OpenInterest:
    """Read samples of open interest out of named columns, in the given order; blanks are unknown.

    Raises
    ------
    ValueError
        If a column is missing or a value cannot be read.
    """
    stamp_ms = _times_ms(_column(columns, _SAMPLED), offset_ms)
    if (stamp_ms == UNKNOWN).any():
        raise ValueError(f"row {int(np.argmin(stamp_ms))} has no time")
    base, quote = (_decimals(_column(columns, names))[0] for names in (_OPEN_BASE, _OPEN_QUOTE))
    return OpenInterest(stamp_ms, base, quote)


def _column(columns: Columns, names: tuple[str, ...]) -> pa.Array:
    found = next((columns[name] for name in names if name in columns), None)
    if found is None:
        raise ValueError(f"columns {', '.join(columns)} lack {names[0]}")
    return found


def _times_ms(column: pa.Array, offset_ms: int) -> np.ndarray:
    """Epoch ms of stamps in s, ms or us, ISO texts, timestamps; naive ones are ``offset_ms`` ahead of UTC."""
    if _is_text(column):
        column = _blank_to_null(column)
        first = column[0].as_py() or "" if len(column) else ""
        if re.fullmatch(r"\d+(\.0*)?", first):
            column = column.cast(pa.float64()).cast(pa.int64())
        else:
            zoned = re.search(r"(Z|[+-]\d\d:?\d\d)$", first) is not None
            column = column.cast(pa.timestamp("us", "UTC" if zoned else None))
    if pa.types.is_timestamp(column.type):
        zoned = column.type.tz is not None
        stamps = column.cast(pa.timestamp("ms", column.type.tz), safe=False).cast(pa.int64())
        return pc.fill_null(stamps, UNKNOWN).to_numpy(zero_copy_only=False) - (0 if zoned else offset_ms)
    numbers = pc.fill_null(column.cast(pa.int64()), UNKNOWN).to_numpy(zero_copy_only=False)
    largest = int(numbers.max()) if len(numbers) else 0
    if largest >= 10**15:
        return np.where(numbers > 10**15, numbers // 1000, numbers)
    return np.where(numbers >= 0, numbers * 1000, numbers) if largest < 10**11 else numbers


def _decimals(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Units of 1e-8 (``UNKNOWN`` for null) and printed decimals of numbers or decimal texts."""
    is_text = _is_text(column)
    exact = _exact(column)
    if is_text:
        texts = _blank_to_null(column)
        dot = pc.find_substring(texts, ".")
        decimals = pc.if_else(pc.less(dot, 0), 0, pc.subtract(pc.subtract(pc.utf8_length(texts), dot), 1))
        decimals = pc.if_else(pc.match_substring_regex(texts, "[eE]"), N_DECIMALS, decimals)
        shown = np.minimum(pc.fill_null(decimals, 0).to_numpy(zero_copy_only=False), N_DECIMALS).astype(
            np.uint8
        )
    else:
        shown = np.full(len(column), N_DECIMALS, np.uint8)
    exact = pc.fill_null(exact, pa.scalar(-1, pa.int64()).cast(pa.decimal128(38, N_DECIMALS)))
    values = _whole(exact)
    return np.where(values < 0, UNKNOWN, values), shown


def _exact(column: pa.Array) -> pa.Array:
    """Decimals of texts or numbers, rounded half to even where they have more than 8 places; blanks are null."""
    texts = _blank_to_null(column) if _is_text(column) else column.cast(pa.string())
    try:
        return texts.cast(pa.decimal128(38, N_DECIMALS))
    except pa.ArrowInvalid:
        wide = texts.cast(pa.decimal256(76, 30))
        return pc.round(wide, N_DECIMALS, round_mode="half_to_even").cast(pa.decimal128(38, N_DECIMALS))


def _whole(exact: pa.Array) -> np.ndarray:
    """Units of 1e-8 of decimals without nulls, Python integers where one needs more than 63 bits."""
    limbs = np.frombuffer(exact.buffers()[1], np.int64).reshape(-1, 2)
    low, high = limbs[exact.offset : exact.offset + len(exact)].T
    if (high == low >> 63).all():
        return low.copy()
    whole = [(int(h) << 64) + (int(part) & (2**64 - 1)) for h, part in zip(high, low, strict=True)]
    return np.array(whole, object)


def _is_text(column: pa.Array) -> bool:
    return pa.types.is_string(column.type) or pa.types.is_large_string(column.type)


def _blank_to_null(texts: pa.Array) -> pa.Array:
    trimmed = pc.utf8_trim_whitespace(texts)
    return pc.if_else(pc.equal(trimmed, ""), None, trimmed)
