"""Candles from any source, checked before a row is stored: REST pages, archive files, imports.

Here: the schema of a page, what a page proves, and the checks that every candle has to pass. Not here: how candles
are fetched (``exchange``, ``archive``), read from files (``formats``) and stored (``ingest``, ``warehouse``). Resources
and tests import it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crypto_assets.intervals import floor_ms, from_ms, interval_ms, to_ms

#: Trades; of futures also the mark price, and the premium index, which is a fraction.
KlineKind = Literal["trade", "mark", "premium"]

_TIMESTAMP = pa.timestamp("us")
_AMOUNT = pa.decimal128(38, 8)

#: Columns of a page of candles. Null means that the source did not say.
KLINE_SCHEMA = pa.schema(
    [
        pa.field("ts", _TIMESTAMP, nullable=False),
        pa.field("open", pa.float64(), nullable=False),
        pa.field("high", pa.float64(), nullable=False),
        pa.field("low", pa.float64(), nullable=False),
        pa.field("close", pa.float64(), nullable=False),
        pa.field("volume_base", _AMOUNT),
        pa.field("volume_quote", _AMOUNT),
        pa.field("taker_buy_base", _AMOUNT),
        pa.field("taker_buy_quote", _AMOUNT),
        pa.field("n_trades", pa.int64()),
        pa.field("close_time", _TIMESTAMP),
    ]
)
_PRICES = KLINE_SCHEMA.names[1:5]
_AMOUNTS = KLINE_SCHEMA.names[5:10]
#: Rows that are kept out of the table, for the record of anomalies: ``reason`` is off_grid or duplicate.
SET_ASIDE_SCHEMA = KLINE_SCHEMA.append(pa.field("reason", pa.string(), nullable=False))
_NONE_SET_ASIDE = SET_ASIDE_SCHEMA.empty_table()


@dataclass(frozen=True)
class KlineWindow:
    """What a page of candles was asked for.

    Attributes
    ----------
    kind, interval
        What the candles are; the interval is one of ``intervals.INTERVAL_MS``.
    start, end
        Range of opening times [start, end), naive UTC, on the grid of the interval or not.
    closed_before
        The source's time: a candle counts as closed if open time plus interval is not later.
    """

    kind: KlineKind
    interval: str
    start: datetime
    end: datetime
    closed_before: datetime

    @property
    def provable_end(self) -> datetime:
        """Exclusive end of what an answer can prove: nothing that is still open."""
        return min(self.end, from_ms(floor_ms(to_ms(self.closed_before), self.interval)))


@dataclass(frozen=True)
class KlinePage:
    """One answer of a source: closed candles and what the answer proves.

    Attributes
    ----------
    rows
        Candles on the grid of the interval by ``KLINE_SCHEMA``, ascending by ``ts`` without duplicates.
    set_aside
        Rows kept out by ``SET_ASIDE_SCHEMA``: candles that open between two grid points, and all but the last of
        several rows with one opening time.
    n_raw
        Rows in the answer, those included that were not closed and so were left out.
    covered_until
        Exclusive end of what the answer proves: a grid point between the asked start and here that is in neither
        table has no candle at the source.
    resume_at
        Where the next request has to start, ``None`` when the asked range is exhausted.
    covered_from
        Start of what the answer proves where that is later than the asked start (``covered_until``: it proves
        nothing); ``None`` where it is the asked start.
    """

    rows: pa.Table
    set_aside: pa.Table
    n_raw: int
    covered_until: datetime
    resume_at: datetime | None
    covered_from: datetime | None = None


def nothing_until(moment: datetime) -> KlinePage:
    """A page without rows that proves the range up to a moment to be empty."""
    return KlinePage(KLINE_SCHEMA.empty_table(), _NONE_SET_ASIDE, 0, moment, None)


def page_of(columns: Mapping[str, pa.Array], window: KlineWindow, *, cut_off: bool = False) -> KlinePage:
    """Check candles and tell what they prove.

    Parameters
    ----------
    columns
        Arrays of one length by the names of ``KLINE_SCHEMA``, in the order of the source. ``ts`` and ``close_time`` are
        int64 epoch milliseconds; prices and amounts are decimal strings, numbers or decimals, ``n_trades`` integers. A
        column that the source lacks is left out. Of mark and premium candles only times and prices are used.
    window
        What was asked for. A row outside [start, end) is an error, one that is not closed is left out.
    cut_off
        Whether the answer ended because it was full, so that later rows of the range may exist.

    Returns
    -------
    KlinePage
        Of several rows with one opening time the last one in the order of the source counts.

    Raises
    ------
    ValueError, TypeError
        Saying which row is wrong and how: a price or time is missing or does not parse, ``low <= open, close <= high``
        does not hold, a trade or mark price is not positive, an amount is negative, times run backwards or leave the
        asked range.
    """
    n = len(columns["ts"])
    start_ms, end_ms, closed_ms = (to_ms(at) for at in (window.start, window.end, window.closed_before))
    provable_end = window.provable_end
    if not n:
        return nothing_until(max(provable_end, window.start))
    open_ms = _open_times(columns["ts"], start_ms, end_ms)
    length_ms = interval_ms(window.interval)
    table = _typed(columns, window.kind, n)
    _check_prices(table, window.kind)
    _check_amounts(table)
    last_ms = int(open_ms[-1])
    covered_ms, resume_at = to_ms(provable_end), None
    reached_ms = last_ms - last_ms % length_ms + length_ms
    if cut_off and reached_ms < covered_ms:
        # The next page starts right after the last row, not an interval later: an off-grid row may lie between.
        covered_ms, resume_at = reached_ms, from_ms(last_ms + 1)
    closed = open_ms + length_ms <= closed_ms
    if not closed.all():
        first_open_ms = int(open_ms[~closed][0])
        # An off-grid candle may be open inside an interval that is over; it has to be asked for again.
        covered_ms, resume_at = min(covered_ms, first_open_ms - first_open_ms % length_ms), None
    on_grid = open_ms % length_ms == 0
    newest = np.append(open_ms[1:] != open_ms[:-1], True)
    covered_until = from_ms(max(covered_ms, start_ms))
    if on_grid.all() and newest.all() and closed.all():
        return KlinePage(table, _NONE_SET_ASIDE, n, covered_until, resume_at)
    reason = np.where(newest, "off_grid", "duplicate")
    odd = table.append_column(SET_ASIDE_SCHEMA.field("reason"), pa.array(reason, pa.string()))
    return KlinePage(
        table.filter(pa.array(on_grid & newest & closed)),
        odd.filter(pa.array(~(on_grid & newest) & closed)),
        n,
        covered_until,
        resume_at,
    )


def described(row: Mapping[str, object]) -> str:
    """A row as it stands in the record of anomalies: JSON, sorted by name."""
    return json.dumps(row, default=str, sort_keys=True)


def _open_times(stamps: pa.Array, start_ms: int, end_ms: int) -> np.ndarray:
    if not pa.types.is_int64(stamps.type) or stamps.null_count:
        raise TypeError(
            f"open times must be integers without nulls, {stamps.type} with {stamps.null_count} nulls came"
        )
    open_ms = stamps.to_numpy()
    if (open_ms[1:] < open_ms[:-1]).any():
        at = int(np.argmax(open_ms[1:] < open_ms[:-1])) + 1
        raise ValueError(
            f"open times must not run backwards, but {open_ms[at - 1]} is followed by {open_ms[at]} (row {at})"
        )
    if open_ms[0] < start_ms or open_ms[-1] >= end_ms:
        raise ValueError(
            f"open times {open_ms[0]} to {open_ms[-1]} leave the asked range [{start_ms}, {end_ms})"
        )
    return open_ms


def _typed(columns: Mapping[str, pa.Array], kind: KlineKind, n: int) -> pa.Table:
    used = KLINE_SCHEMA.names if kind == "trade" else ("ts", *_PRICES, "close_time")
    arrays = []
    for field in KLINE_SCHEMA:
        values = columns.get(field.name) if field.name in used else None
        if values is None:
            arrays.append(pa.nulls(n, field.type))
        elif field.type == _TIMESTAMP:
            # Checked against overflow, and half the cost of two casts.
            arrays.append(pc.multiply_checked(values, 1000).view(_TIMESTAMP))
        elif values.type == field.type:
            arrays.append(values)
        else:
            arrays.append(_cast(field.name, values, field.type))
        if arrays[-1].null_count and not field.nullable:
            raise ValueError(f"{field.name} is missing in {arrays[-1].null_count} of {n} rows")
    return pa.Table.from_arrays(arrays, schema=KLINE_SCHEMA)


def _cast(name: str, values: pa.Array, kind: pa.DataType) -> pa.Array:
    try:
        return pc.cast(values, kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{name} does not parse as {kind}: {error}") from None


def _check_prices(table: pa.Table, kind: KlineKind) -> None:
    open_, high, low, close = (table.column(name).chunk(0).to_numpy() for name in _PRICES)
    # Written so that NaN fails as well.
    sound = (low <= np.minimum(open_, close)) & (high >= np.maximum(open_, close)) & (high < np.inf)
    rule = "low <= open, close <= high must hold with finite prices"
    if kind == "premium":
        sound &= low > -np.inf
    else:
        sound &= low > 0
        rule = f"0 < {rule}"
    if not sound.all():
        raise ValueError(f"{rule}, but {_shown(table, int(np.argmin(sound)))}")


def _check_amounts(table: pa.Table) -> None:
    for name in _AMOUNTS:
        column = table.column(name).chunk(0)
        if not _sign_words(column).any():
            continue
        least = pc.call_function("min", [column])
        if least.is_valid and least.as_py() < 0:
            at = pc.call_function("index", [column], pc.IndexOptions(least)).as_py()
            raise ValueError(f"{name} must not be negative, but {_shown(table, at)}")


def _sign_words(column: pa.Array) -> np.ndarray:
    # A fifth of the cost of asking Arrow for the least decimal; under a null anything may stand.
    words = np.frombuffer(column.buffers()[1], np.int64)
    width = column.type.bit_width // 64
    return words[width * (column.offset + 1) - 1 : width * (column.offset + len(column)) : width] < 0


def _shown(table: pa.Table, at: int) -> str:
    return f"row {at} is {described(table.slice(at, 1).to_pylist()[0])}"
