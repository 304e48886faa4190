"""Checks of answers that hold for every venue: order books, series without doubles, windows of one page each.

Here: what both kinds of client need to turn an answer into the shapes of ``interface``. Not here: the words of a venue
(``binance_answers``, ``unified``) and candles (``resources.klines``). Only the clients of this package import it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from crypto_assets.intervals import from_ms
from crypto_assets.resources.exchange.interface import FUNDING_SCHEMA

_TIMESTAMP = pa.timestamp("us")


def shown(value: object) -> str:
    """A value as an error may quote it."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def windows_of(start: datetime, end: datetime, length: timedelta) -> Iterator[tuple[datetime, datetime]]:
    """Cut a range into consecutive windows; nothing comes of an empty one."""
    while start < end:
        yield start, min(start + length, end)
        start += length


def instant(told_ms: object, what: str) -> datetime:
    """Read epoch milliseconds.

    Raises
    ------
    ValueError
        If it is no positive integer.
    """
    if type(told_ms) is not int or told_ms <= 0:
        raise ValueError(f"{what} in milliseconds was expected, {shown(told_ms)} came")
    return from_ms(told_ms)


def number(text: object, what: str) -> float:
    """Read a finite number, written as a text or not.

    Raises
    ------
    ValueError
        If it is none.
    """
    try:
        value = float(text)  # ty: ignore[invalid-argument-type] - what is not convertible raises
    except (TypeError, ValueError):
        value = np.nan
    if isinstance(text, bool) or not np.isfinite(value):
        raise ValueError(f"{what} must be a finite number, {shown(text)} came")
    return value


def book_side(levels: object, side: str, n_levels: int) -> np.ndarray:
    """Read one side of an order book as float64 (n, 2) of price and amount, best price first.

    Parameters
    ----------
    levels
        Sequence of levels, price and amount first in each.
    side
        ``bids`` or ``asks``.
    n_levels
        Levels to keep.

    Raises
    ------
    ValueError, TypeError
        If a level is no pair of numbers, a price is not positive, an amount negative, or the side out of order.
    """
    if not isinstance(levels, list):
        raise TypeError(f"a list of {side} was expected, {shown(levels)} came")
    pairs = [level[:2] for level in levels[:n_levels]]
    book = np.array(pairs, dtype=np.float64) if pairs else np.empty((0, 2))
    if book.ndim != 2 or book.shape[1] != 2:
        raise ValueError(f"a level must hold price and amount, {shown(levels[0])} came")
    price, amount = book.T
    sound = np.isfinite(book).all(axis=1) & (price > 0) & (amount >= 0)
    if not sound.all():
        raise ValueError(
            f"{side}[{int(np.argmin(sound))}] is no level: {shown(levels[int(np.argmin(sound))])}"
        )
    steps = np.diff(price) * (1 if side == "asks" else -1)
    if (steps <= 0).any():
        raise ValueError(f"{side} are out of order after {shown(levels[int(np.argmax(steps <= 0))])}")
    return book


def sampled(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> tuple[pa.Table, pa.Table]:
    """Sort samples by ``ts`` and part them into the last one of each and the earlier ones, which are set aside.

    Rows of ``FUNDING_SCHEMA`` get their ``ts`` here, from ``settled_at``.
    """
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=_unstamped(schema))
    if schema is FUNDING_SCHEMA:
        settled = table["settled_at"].cast(pa.int64()).to_numpy()
        told = (settled + 500_000) // 1_000_000 * 1_000_000
        table = table.add_column(0, schema.field("ts"), pa.array(told).cast(_TIMESTAMP))
    order = np.argsort(table["ts"].to_numpy(), kind="stable")
    table = table.take(pa.array(order))
    at = table["ts"].to_numpy()
    newest = np.append(at[1:] != at[:-1], [True] * bool(len(at))).astype(bool)
    reason = pa.field("reason", pa.string(), nullable=False)
    doubles = table.filter(pa.array(~newest))
    return (
        table.filter(pa.array(newest)).cast(schema),
        doubles.append_column(reason, pa.array(["duplicate"] * doubles.num_rows, pa.string())),
    )


def _unstamped(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field for field in schema if schema is not FUNDING_SCHEMA or field.name != "ts"])
