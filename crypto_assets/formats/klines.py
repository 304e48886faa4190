"""Files of candles: the exchange's own CSV and JSON, freqtrade's JSON and Feather, and tables with common names.

Here: which column means what, and typed columns as ``resources.klines.page_of`` takes them. Not here: containers
(``containers``), single values (``values``), and whether the candles are sound (``resources.klines``). Resources and
tests import it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from crypto_assets.formats.names import named_by, same_market
from crypto_assets.formats.tables import Bytes, Columns, columns_of, first_line, is_header
from crypto_assets.formats.values import (
    AMOUNT,
    QUARTER_MS,
    Times,
    amounts_of,
    blank_to_null,
    floats_of,
    integers_of,
    times_of,
    utc_text,
)
from crypto_assets.intervals import INTERVAL_MS, interval_ms

# pyarrow makes its compute functions while it is imported, where a type checker cannot see them.
pc: Any = pyarrow.compute

PRICES = ("open", "high", "low", "close")
AMOUNTS = ("volume_base", "volume_quote", "taker_buy_base", "taker_buy_quote")
#: Column order of the exchange's own rows and archive files; the last one holds nothing.
WIRE_COLUMNS = (
    "ts",
    *PRICES,
    "volume_base",
    "close_time",
    "volume_quote",
    "n_trades",
    *AMOUNTS[2:],
    "ignore",
)
#: Column order of ccxt and freqtrade.
OHLCV_COLUMNS = ("ts", *PRICES, "volume_base")
_WIRE_TYPES = {
    **dict.fromkeys(("ts", "close_time", "n_trades"), pa.int64()),
    **dict.fromkeys(PRICES, pa.float64()),
    **dict.fromkeys(AMOUNTS, AMOUNT),
}
#: What the exchange's USD-M files have in their first line.
ARCHIVE_HEADER = b"open_time,open,high,low,close,volume,close_time,quote_volume,count"
ARCHIVE_HEADER += b",taker_buy_volume,taker_buy_quote_volume,ignore"
#: Our name -> names under which people keep the column, the most telling one first.
NAMES: Mapping[str, tuple[str, ...]] = {
    "ts": ("ts", "open_time", "opentime", "open_timestamp", "timestamp", "date", "datetime", "time"),
    "close_time": ("close_time", "closetime", "close_timestamp"),
    **{name: (name,) for name in PRICES},
    "volume_base": ("volume_base", "volume", "vol", "base_volume"),
    "volume_quote": ("volume_quote", "quote_volume", "quote_av", "quote_asset_volume", "qav"),
    "n_trades": ("n_trades", "count", "trades", "num_trades", "number_of_trades", "trade_count"),
    "taker_buy_base": (
        "taker_buy_base",
        "taker_buy_volume",
        "tb_base_av",
        "taker_buy_base_asset_volume",
        "taker_base_volume",
    ),
    "taker_buy_quote": (
        "taker_buy_quote",
        "taker_buy_quote_volume",
        "tb_quote_av",
        "taker_buy_quote_asset_volume",
        "taker_quote_volume",
    ),
}
_MARKET_NAMES = ("symbol", "ticker", "pair", "market")
_SHOWN_SPACINGS = 10


@dataclass(frozen=True)
class KlineFile:
    """The candles of one content, in its order.

    Attributes
    ----------
    columns
        By the names of ``resources.klines.KLINE_SCHEMA``, without those that the content lacks: ``ts`` and
        ``close_time`` int64 epoch milliseconds UTC, prices float64, amounts decimal128(38, 8), ``n_trades`` int64.
    interval
        Their interval, one of ``intervals.INTERVAL_MS``.
    market
        The market that the rows themselves name, ``None`` where they name none.
    detected
        What was detected, for people and for the record of files.
    as_published
        Whether it has the form in which the exchange itself publishes files.
    """

    columns: dict[str, pa.Array]
    interval: str
    market: str | None
    detected: str
    as_published: bool = False


def read_klines(
    data: Bytes,
    name: str = "",
    *,
    interval: str | None = None,
    offset: timedelta | None = None,
    names: Sequence[str] = (),
) -> KlineFile:
    """Read the candles of one content.

    Parameters
    ----------
    data
        Its bytes, out of its containers (``containers.contents``).
    name
        Its name, which may tell the interval.
    interval
        Interval of the candles; ``None``: by the name, or by close times that all lie one interval after the opens.
    offset
        How far times without a zone are ahead of UTC. Not needed where close times are epochs: they prove it.
    names
        Names of the columns where rows bear none. Not needed for the exchange's 12 and for the 6 of ccxt and freqtrade
        in JSON; CSV of 6 columns comes in several orders.

    Returns
    -------
    KlineFile
        Rows in the order of the content. Where there is no open time it follows from the close time. Missing stays
        missing.

    Raises
    ------
    ValueError
        If it cannot be read, or interval, zone, unit or columns are not certain; the message says what to give.
    """
    known = interval or named_by(name).interval
    if known is not None:
        interval_ms(known)
    fast = _archive_columns(data)
    if fast is not None:
        raw, form = fast
    else:
        found = columns_of(data, in_lines=WIRE_COLUMNS, in_lists=(WIRE_COLUMNS, OHLCV_COLUMNS), names=names)
        raw, form = by_meaning(found.columns), found.form
    missing = [
        NAMES[name][1] if name == "volume_base" else name
        for name in (*PRICES, "volume_base")
        if name not in raw
    ]
    if missing:
        raise ValueError(
            f"its columns lack {', '.join(missing)}; a file of candles has open, high, low, close, volume"
        )
    columns, wordings, length = _with_times(raw, known, offset)
    for price in PRICES:
        columns[price] = floats_of(raw[price], price)
    for amount in AMOUNTS:
        if amount in raw:
            columns[amount] = amounts_of(raw[amount], amount)
    if "n_trades" in raw:
        columns["n_trades"] = integers_of(raw["n_trades"], "n_trades")
    _check_spacing(columns["ts"], length)
    detected = ", ".join([form, *wordings, f"interval {length}"])
    return KlineFile(columns, length, market_of(raw), detected, as_published=fast is not None)


def read_archive_klines(data: Bytes) -> dict[str, pa.Array]:
    """Read a CSV of the exchange's archive: 12 columns, with or without header, times in ms or us.

    Parameters
    ----------
    data
        Its bytes, out of the zip.

    Returns
    -------
    dict of str to pyarrow.Array
        Columns as ``KlineFile.columns``, in the order of the file.

    Raises
    ------
    ValueError
        If it is no such file.

    Examples
    --------
    >>> row = b"1735689600000000,1.0,2.0,0.5,1.5,10,1735689659999999,15.00000000,3,4,6,0"
    >>> columns = read_archive_klines(row)
    >>> columns["ts"].to_pylist(), columns["close_time"].to_pylist()
    ([1735689600000], [1735689659999])
    """
    found = _archive_columns(data)
    raw = found[0] if found else by_meaning(columns_of(data, in_lines=WIRE_COLUMNS).columns)
    lacking = [name for name in WIRE_COLUMNS[:-1] if name not in raw]
    if lacking:
        raise ValueError(f"a file of the archive has 12 columns; {', '.join(lacking)} is not among them")
    columns = {
        name: times_of(raw[name], name, round_up=name == "ts").in_utc(None) for name in ("ts", "close_time")
    }
    columns |= {name: floats_of(raw[name], name) for name in PRICES}
    columns |= {name: amounts_of(raw[name], name) for name in AMOUNTS}
    return columns | {"n_trades": integers_of(raw["n_trades"], "n_trades")}


def by_meaning(columns: Columns) -> dict[str, pa.Array]:
    """Columns of any file of candles by our names, as they stand; others are kept under their own.

    Examples
    --------
    >>> sorted(by_meaning({"open_time": pa.array([1]), "qav": pa.array([2.0]), "symbol": pa.array(["X"])}))
    ['symbol', 'ts', 'volume_quote']
    """
    found = {
        meaning: columns[name]
        for meaning, names in NAMES.items()
        for name in reversed(names)
        if name in columns
    }
    taken = {name for names in NAMES.values() for name in names}
    return found | {name: values for name, values in columns.items() if name not in taken}


def market_of(columns: Columns) -> str | None:
    """The one market that the rows name; ``None`` where they name none.

    Raises
    ------
    ValueError
        If they name several.
    """
    for name in _MARKET_NAMES:
        column = columns.get(name)
        if column is None or not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            continue
        told = pc.drop_null(pc.unique(blank_to_null(column))).to_pylist()
        if len({market for market in told if not same_market(market, told[0])}):
            raise ValueError(
                f"it holds several markets ({', '.join(sorted(told)[:5])}); split it, one file a market"
            )
        if told:
            return told[0]
    return None


def _archive_columns(data: Bytes) -> tuple[dict[str, pa.Array], str] | None:
    line = first_line(data)
    has_header = line == ARCHIVE_HEADER
    if line.count(b",") != len(WIRE_COLUMNS) - 1 or (is_header(line) and not has_header):
        return None
    columns = _plain_columns(data, data.find(b"\n") + 1 or len(data) if has_header else 0)
    if columns is None:
        # Prints of floats, for one, have more decimals than an amount holds: read slowly, or refused with a reason.
        return None
    return columns, f"exchange CSV {'with' if has_header else 'without'} header"


def _plain_columns(data: Bytes, start: int) -> dict[str, pa.Array] | None:
    from crypto_assets.formats.compiled import REACH, count_lines, read_lines

    # The last lines are read out of a copy, which has the bytes behind it that a line needs, and ends with a line feed.
    cut = data.rfind(b"\n", start, max(start, len(data) - REACH)) + 1 or start
    rest = bytes(data[cut:]).removesuffix(b"\n") + b"\n"
    lines = _bytes_of(data)[start:]
    n = count_lines(lines[: cut - start]) + rest.count(b"\n")
    times, prices = np.empty((2, n), np.int64), np.empty((4, n), np.float64)
    amounts, trades = np.empty((4, n, 2), np.uint64), np.empty(n, np.int64)
    n_read = 0
    for text, end in ((lines, cut - start), (_bytes_of(rest + bytes(REACH)), len(rest))):
        n_read += int(read_lines(text, end, n_read, times, prices, amounts, trades))
    if n_read < n:
        return None
    names = ("ts", "close_time", *PRICES, *AMOUNTS, "n_trades")
    values = (*times, *prices, *amounts, trades)
    return {name: _arrow_of(part, _WIRE_TYPES[name]) for name, part in zip(names, values, strict=True)}


def _bytes_of(data: Bytes) -> np.ndarray:
    # Never writable, because one kind of argument is compiled once.
    text = np.frombuffer(data, np.uint8)
    text.flags.writeable = False
    return text


def _arrow_of(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _with_times(
    raw: Columns, interval: str | None, offset: timedelta | None
) -> tuple[dict[str, pa.Array], list[str], str]:
    closes = times_of(raw["close_time"], "close_time") if "close_time" in raw else None
    if "ts" not in raw:
        if closes is None:
            raise ValueError("its columns have neither an open nor a close time")
        if interval is None:
            raise ValueError("its rows have close times alone; say the interval")
        close_ms = closes.in_utc(offset)
        length = interval_ms(interval)
        # A stamp that is the grid point itself ends the candle before it.
        open_ms = (close_ms.to_numpy(zero_copy_only=False) - 1) // length * length
        columns = {"ts": pa.array(open_ms), "close_time": close_ms}
        return columns, [f"open times from close times in {closes.wording}"], interval
    opens = times_of(raw["ts"], "open time", round_up=True)
    if opens.ms.null_count:
        at = pc.index(pc.is_null(opens.ms), True).as_py()
        raise ValueError(f"row {at} has no open time")
    if interval is None:
        interval = _interval_by_closes(opens, closes)
    wordings = [f"times in {opens.wording}"]
    if not opens.zoned:
        proved = None
        if closes is not None and closes.zoned:
            proved = _offset_by_closes(opens.ms, closes.ms, interval)
        if proved is not None and offset not in (None, proved):
            raise ValueError(
                f"its close times prove {utc_text(proved)}, not {utc_text(offset)}; leave offset out"
            )
        offset = offset if proved is None else proved
        if offset is not None:
            wordings.append(f"{utc_text(offset)} {'as told' if proved is None else 'by their close times'}")
    columns = {"ts": opens.in_utc(offset)}
    if closes is not None:
        columns["close_time"] = closes.in_utc(offset)
    return columns, wordings, interval


def _interval_by_closes(opens: Times, closes: Times | None) -> str:
    if closes is not None and len(opens.ms) and opens.zoned == closes.zoned:
        span = pc.mode(pc.add(pc.subtract(closes.ms, opens.ms), 1))
        length = span[0]["mode"].as_py() if len(span) else None
        for name, known in INTERVAL_MS.items():
            if known == length:
                return name
    raise ValueError(
        "neither its name nor its close times tell the interval of its candles; say it, such as 1h"
    )


def _offset_by_closes(naive_ms: pa.Array, close_ms: pa.Array, interval: str) -> timedelta | None:
    both = pc.and_(pc.is_valid(naive_ms), pc.is_valid(close_ms))
    opened = naive_ms.filter(both).to_numpy()
    closed = close_ms.filter(both).to_numpy()
    if not len(opened):
        return None
    ahead, counts = np.unique(opened - (closed + 1 - interval_ms(interval)), return_counts=True)
    offset_ms = int(ahead[np.argmax(counts)])
    # A halt cuts a close time short, but no candle closes before it opens or an interval later.
    lengths = closed - (opened - offset_ms)
    if offset_ms % QUARTER_MS or (lengths < 0).any() or (lengths > interval_ms(interval)).any():
        return None
    return timedelta(milliseconds=offset_ms)


def _check_spacing(open_ms: pa.Array, interval: str) -> None:
    """Refuse candles of another interval: their opens lie on a coarser grid, or mostly off the grid."""
    moments = np.unique(open_ms.to_numpy(zero_copy_only=False))
    length = interval_ms(interval)
    on_grid = moments[moments % length == 0]
    if 2 * len(on_grid) < len(moments):
        raise ValueError(
            f"{len(moments) - len(on_grid)} of {len(moments)} candles open between the grid points of {interval}; "
            "say the right interval, or the right offset from UTC"
        )
    common = int(np.gcd.reduce(np.diff(on_grid))) if len(on_grid) > _SHOWN_SPACINGS else length
    if common > length:
        longer = next((name for name, ms in INTERVAL_MS.items() if ms == common), f"{common} ms")
        raise ValueError(f"its candles lie {longer} apart, not {interval}; say the right interval")
