"""Columns of candles: exact decimals, the exchange's interval grid, aggregation, and the look of an open bar.

Here: pure array code that both worlds share. Not here: where bars come from (``synthetic``, ``recorded``),
who may see them when (``world``), and their wire form (``binance``). The simulation package and its tests may
import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_EVEN, Decimal
from itertools import pairwise

import numpy as np

from crypto_assets.intervals import DAY_MS, INTERVAL_MS

#: One unit of a stored decimal is 1e-8, the last digit that the exchange prints.
UNITS = 10**8
N_DECIMALS = 8
#: A volume or a trade count that is not known. All real ones are >= 0.
UNKNOWN = -1

#: Rows of ``Bars.values`` and ``Bars.shown``.
OPEN, HIGH, LOW, CLOSE, VOLUME_BASE, VOLUME_QUOTE, TAKER_BASE, TAKER_QUOTE = range(8)
N_VALUES = 8

#: Intervals that the exchange answers; 1M has no fixed length and is handled by the calendar.
EXCHANGE_INTERVALS = (
    "1s",
    "1m",
    "3m",
    "5m",
    "15m",
    "30m",
    "1h",
    "2h",
    "4h",
    "6h",
    "8h",
    "12h",
    "1d",
    "3d",
    "1w",
    "1M",
)
_LENGTH_MS = {**INTERVAL_MS, "1s": 1_000, "3d": 3 * DAY_MS, "1w": 7 * DAY_MS, "1M": 31 * DAY_MS}
# The epoch was a Thursday: weeks start 4 days after it. The exchange's 3d grid starts one day after it.
_GRID_OFFSET_MS = {"1w": 4 * DAY_MS, "3d": DAY_MS}


def length_ms(interval: str) -> int:
    """Length of an interval in milliseconds; for ``1M`` its upper bound of 31 days.

    Raises
    ------
    ValueError
        If neither the exchange nor the platform knows the interval.

    Examples
    --------
    >>> length_ms("3d")
    259200000
    """
    try:
        return _LENGTH_MS[interval]
    except KeyError:
        raise ValueError(f"unknown interval {interval!r}; known: {', '.join(_LENGTH_MS)}") from None


def grid_start(moment_ms: np.ndarray, interval: str) -> np.ndarray:
    """Start of the interval that contains each moment, on the exchange's own grid (epoch ms, int64).

    Examples
    --------
    >>> grid_start(np.array([1523923200000 + 5]), "3d").tolist()
    [1523923200000]
    """
    if interval == "1M":
        months = moment_ms.astype("datetime64[ms]").astype("datetime64[M]")
        return months.astype("datetime64[ms]").astype(np.int64)
    offset = _GRID_OFFSET_MS.get(interval, 0)
    return moment_ms - (moment_ms - offset) % length_ms(interval)


def bar_end(open_ms: np.ndarray, interval: str) -> np.ndarray:
    """Exclusive end of bars that open at the given moments (epoch ms); a bar is public as closed from it."""
    if interval == "1M":
        months = open_ms.astype("datetime64[ms]").astype("datetime64[M]") + np.timedelta64(1, "M")
        return months.astype("datetime64[ms]").astype(np.int64)
    return open_ms + length_ms(interval)


def finest_divisor(intervals: Sequence[str], interval: str) -> str | None:
    """Shortest of the given intervals from which bars of ``interval`` can be summed exactly, or None.

    Examples
    --------
    >>> finest_divisor(["1h", "1m", "4h"], "1d")
    '1m'
    """
    fits = [
        base
        for base in intervals
        if length_ms(base) < length_ms(interval)
        and length_ms(base) <= DAY_MS
        and DAY_MS % length_ms(base) == 0
        if interval == "1M" or length_ms(interval) % length_ms(base) == 0
    ]
    return min(fits, key=length_ms, default=None)


def to_units(text: str | Decimal) -> int:
    """Decimal text as integer units of 1e-8; further digits are rounded half to even.

    Examples
    --------
    >>> to_units("0.00000499")
    499
    """
    return int((Decimal(text) * UNITS).to_integral_value(ROUND_HALF_EVEN))


@dataclass(frozen=True, slots=True, eq=False)
class Bars:
    """Candles of one symbol and interval in ascending order of open time.

    Attributes
    ----------
    open_ms, close_ms
        Epoch milliseconds, int64 (n,). ``close_ms`` is the exchange's inclusive last millisecond.
    values
        (8, n) integers in units of 1e-8, rows ``OPEN`` .. ``TAKER_QUOTE``. Volumes are not negative; ``UNKNOWN``
        = -1 is a volume that is not known. Prices are always known and positive, except that a premium index
        may be 0 or negative. int64, or Python integers (dtype object) where a value needs more than 63 bits.
    shown
        (8, n) uint8: how many decimals the source prints.
    n_trades
        int64 (n,), ``UNKNOWN`` = -1.
    """

    open_ms: np.ndarray
    close_ms: np.ndarray
    values: np.ndarray
    shown: np.ndarray
    n_trades: np.ndarray

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.open_ms)

    def take(self, index: slice | np.ndarray) -> Bars:
        """Rows by slice, mask or positions."""
        return Bars(
            self.open_ms[index],
            self.close_ms[index],
            self.values[:, index],
            self.shown[:, index],
            self.n_trades[index],
        )

    def between(self, start_ms: int, end_ms: int) -> Bars:
        """Rows that open in [start_ms, end_ms)."""
        first, last = np.searchsorted(self.open_ms, [start_ms, max(start_ms, end_ms)])
        return self.take(slice(int(first), int(last)))


def no_bars() -> Bars:
    """Zero rows."""
    return Bars(
        np.empty(0, np.int64),
        np.empty(0, np.int64),
        np.empty((N_VALUES, 0), np.int64),
        np.empty((N_VALUES, 0), np.uint8),
        np.empty(0, np.int64),
    )


def concatenate(parts: Sequence[Bars]) -> Bars:
    """Rows of all parts in the given order."""
    parts = [part for part in parts if len(part)]
    if len(parts) <= 1:
        return parts[0] if parts else no_bars()
    return Bars(
        np.concatenate([part.open_ms for part in parts]),
        np.concatenate([part.close_ms for part in parts]),
        np.concatenate([part.values for part in parts], axis=1),
        np.concatenate([part.shown for part in parts], axis=1),
        np.concatenate([part.n_trades for part in parts]),
    )


def last_row_wins(bars: Bars) -> Bars:
    """Rows sorted by open time; of several rows with one open time the later in the given order stays."""
    order = np.argsort(bars.open_ms, kind="stable")
    opens = bars.open_ms[order]
    keep = np.ones(len(order), bool)
    keep[:-1] = opens[1:] != opens[:-1]
    return bars.take(order[keep])


def aggregate(bars: Bars, base: str, interval: str) -> Bars:
    """Bars of a longer interval out of base bars, exact to the last digit.

    Parameters
    ----------
    bars
        Base bars, ascending. Missing base bars are simply not there; a bin without any has no bar.
    base, interval
        Their interval and the longer one.

    Returns
    -------
    Bars
        A base bar belongs to the bin in which it *ends*, so that a bar off the grid never brings something
        into a bar that was closed before. A sum with an unknown part is unknown. ``close_ms`` is the normal
        one, except where the last base bar was cut short by a halt: then the longer bar is cut at the same
        moment, as the exchange does.
    """
    if not len(bars):
        return bars
    bins = grid_start(bar_end(bars.open_ms, base) - 1, interval)
    firsts = np.flatnonzero(np.r_[True, bins[1:] != bins[:-1]])
    lasts = np.r_[firsts[1:], len(bins)] - 1
    values = bars.values
    out = np.empty((N_VALUES, len(firsts)), _sum_dtype(values, lasts - firsts + 1))
    out[OPEN] = values[OPEN, firsts]
    out[HIGH] = np.maximum.reduceat(values[HIGH], firsts)
    out[LOW] = np.minimum.reduceat(values[LOW], firsts)
    out[CLOSE] = values[CLOSE, lasts]
    for row in (VOLUME_BASE, VOLUME_QUOTE, TAKER_BASE, TAKER_QUOTE):
        out[row] = _known_sums(values[row].astype(out.dtype, copy=False), firsts)
    opens = bins[firsts]
    ends = bar_end(opens, interval)
    cut = bars.close_ms[lasts] < bar_end(bars.open_ms[lasts], base) - 1
    return Bars(
        opens,
        np.where(cut, bars.close_ms[lasts], ends - 1),
        out,
        np.maximum.reduceat(bars.shown, firsts, axis=1),
        _known_sums(bars.n_trades, firsts),
    )


def open_bar(bar: Bars, interval: str, now_ms: int, tick: int, lot: int) -> Bars:
    """One bar as it may have looked at a moment inside it: plausible, deterministic, growing into the last.

    Parameters
    ----------
    bar
        The final bar, one row.
    interval, now_ms
        Its interval and the moment, open <= now < end.
    tick, lot
        Price and quantity steps in units of 1e-8.

    Returns
    -------
    Bars
        Open is the final one. The price walks open-low-high-close (rising bar) or open-high-low-close and
        stands on the tick; high and low are those of the walk so far; base volumes and trades are the elapsed
        share, rounded down; quote volumes are base volume x price. Unknown stays unknown; the close time is
        the normal one.
    """
    start = int(bar.open_ms[0])
    end = int(bar_end(bar.open_ms, interval)[0])
    elapsed, length = now_ms - start, end - start
    final = [int(value) for value in bar.values[:, 0]]
    first_turn, second_turn = (LOW, HIGH) if final[CLOSE] >= final[OPEN] else (HIGH, LOW)
    walk = [(0, final[OPEN]), (3, final[first_turn]), (7, final[second_turn]), (10, final[CLOSE])]
    seen = [final[OPEN]]
    for (from_tenth, from_price), (to_tenth, to_price) in pairwise(walk):
        if elapsed * 10 >= to_tenth * length:
            seen.append(to_price)
            continue
        move = to_price - from_price
        ticks = abs(move) * (elapsed * 10 - from_tenth * length) // ((to_tenth - from_tenth) * length * tick)
        seen.append(from_price + (1 if move > 0 else -1) * ticks * tick)
        break
    price = seen[-1]
    out = [final[OPEN], max(seen), min(seen), price]
    for base_row, quote_row in ((VOLUME_BASE, VOLUME_QUOTE), (TAKER_BASE, TAKER_QUOTE)):
        known = final[base_row] >= 0
        base = final[base_row] * elapsed // length // lot * lot if known else UNKNOWN
        out += [base, base * price // UNITS if known and final[quote_row] >= 0 else UNKNOWN]
    trades = int(bar.n_trades[0])
    if trades >= 0:
        trades = max(trades * elapsed // length, int(out[VOLUME_BASE] > 0))
    return replace(
        bar,
        close_ms=np.array([end - 1]),
        values=np.array(out, bar.values.dtype).reshape(N_VALUES, 1),
        n_trades=np.array([trades]),
    )


def step_of(units: np.ndarray) -> int:
    """Largest power of ten (units of 1e-8) that divides all known values: the tick or lot that they show."""
    known = units[units > 0]
    common = int(np.gcd.reduce(known)) if len(known) else 1
    step = 1
    while common % (step * 10) == 0:
        step *= 10
    return step


def decimals_of(step: int) -> int:
    """Decimals that a tick or lot in units of 1e-8 needs.

    Examples
    --------
    >>> decimals_of(10_000_000), decimals_of(10**8), decimals_of(1)
    (1, 0, 8)
    """
    n_zeros = next(n for n in range(N_DECIMALS + 1) if n == N_DECIMALS or step % 10 ** (n + 1))
    return N_DECIMALS - n_zeros


def _known_sums(values: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    sums = np.add.reduceat(values, firsts)
    unknown = np.minimum.reduceat(values, firsts) < 0
    return np.where(unknown, UNKNOWN, sums)


def _sum_dtype(values: np.ndarray, counts: np.ndarray) -> np.dtype:
    if values.dtype == object or int(values.max()) * int(counts.max()) >= 2**63:
        return np.dtype(object)
    return np.dtype(np.int64)
