"""What a snapshot of an order book says: prices, spread, density, depth, imbalance, price impact, and whether to trust it.

Here: pure arithmetic on snapshots, one or thousands at once, and their summary table. Not here: asking for books and
storing them (``resources/order_books``). Imported by the assets of raw, the command line and tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pandas as pd

from crypto_assets.quant.panel import require_columns

#: Price bins next to the best price whose mean amount is told (seed C: 1, 2, 5, 10, 20).
DENSITY_BINS = (1, 2, 5, 10, 20)
#: Distances from the middle within which depth and imbalance are told, basis points.
DEPTH_BPS = (10, 25, 50, 100)
#: Amounts whose price impact is told, quote units.
IMPACT_QUOTE = (1_000, 10_000, 100_000)
#: Orders at or above this quantile of value on their side are left out of the mean price (seed A).
LARGE_QUANTILE = 0.99
#: A book that has not changed for longer than this is stale; how far back is looked, so that chunks agree.
STALE_AFTER = timedelta(minutes=10)
LOOK_BACK = timedelta(hours=1)

_KEY = ["venue", "symbol", "ts"]
_SNAPSHOT = [*_KEY, "known_at", "last_update_id"]
_LEVELS = [*_SNAPSHOT, "side", "level", "price", "amount_base"]


@dataclass(frozen=True)
class Side:
    """One side of many snapshots: float64 matrices (snapshots, levels), best price first, NaN after the last level.

    Attributes
    ----------
    price
        Quote units; strictly away from the best price along a row.
    amount_base
        Base units, NaN exactly where the price is.
    direction
        Where prices go along a row: 1 of asks, -1 of bids.
    """

    price: np.ndarray
    amount_base: np.ndarray
    direction: int

    @property
    def n_levels(self) -> np.ndarray:
        """Levels of each snapshot."""
        return np.count_nonzero(~np.isnan(self.price), axis=1)

    @property
    def best(self) -> np.ndarray:
        """Best price of each snapshot; NaN without levels."""
        return self.price[:, 0] if self.price.shape[1] else np.full(len(self.price), np.nan)

    @property
    def notional_quote(self) -> np.ndarray:
        """Value of each level."""
        return self.price * self.amount_base

    def away_from(self, price: np.ndarray) -> np.ndarray:
        """How far each level lies from one price of each snapshot, quote units; below 0 on the other side of it."""
        return self.direction * (self.price - price[:, None])

    def last(self, matrix: np.ndarray) -> np.ndarray:
        """The value of the last level of each snapshot; NaN without levels."""
        return _at(matrix, self.n_levels - 1)


@dataclass(frozen=True)
class Books:
    """Many snapshots; row i of both sides is snapshot i."""

    bids: Side
    asks: Side

    @property
    def mid(self) -> np.ndarray:
        """Middle of the best prices, quote units; NaN where a side is missing."""
        return (self.bids.best + self.asks.best) / 2


def spread_bps(books: Books) -> np.ndarray:
    """Best ask over best bid as share of the middle, basis points: 0 where locked, below where crossed, NaN one-sided."""
    return (books.asks.best - books.bids.best) / books.mid * 1e4


def mean_price(side: Side) -> np.ndarray:
    """Mean price of a side weighted by amount, without its largest orders.

    Levels whose value (price x amount) is at or above the 0.99 quantile of the values of their side in the snapshot
    (linear interpolation) are dropped; the others count by their amounts.

    Returns
    -------
    numpy.ndarray
        (snapshots,) quote units; NaN where nothing is left: without levels, with one level, or all of one value.

    Notes
    -----
    Formula of seed A (mean bid and mean ask of a snapshot).

    Examples
    --------
    >>> float(mean_price(Side(np.array([[10.0, 9.0, 8.0]]), np.array([[1.0, 1.0, 9.0]]), -1))[0])
    9.5
    """
    notional = side.notional_quote
    kept = notional < _quantile(notional, LARGE_QUANTILE)[:, None]
    amount = np.where(kept, side.amount_base, 0.0)
    total = amount.sum(axis=1)
    weighted = (np.where(kept, side.price, 0.0) * amount).sum(axis=1)
    return _ratio(weighted, total)


def densities(
    side: Side, bin_size_quote: np.ndarray, n_bins: Sequence[int] = DENSITY_BINS
) -> dict[int, np.ndarray]:
    """Mean amount in the price bins next to the best price of a side.

    The amount of a level is taken as a step function of the price that holds from the level to the next one away from
    the best price, and to the end of its bin after the last one. Bins of one size begin at the best price; the value of
    a bin is the mean of the step function over it, the result the mean over the first n bins.

    Parameters
    ----------
    side
        One side.
    bin_size_quote
        (snapshots,) width of a bin, positive; NaN gives NaN.
    n_bins
        How many bins to average.

    Returns
    -------
    dict
        Number of bins -> (snapshots,) base units. NaN where the book has fewer bins: what lies behind its last level
        is unknown.

    Notes
    -----
    Formula of seed C (depth features), which took its mean over the bins there were.

    Examples
    --------
    >>> asks = Side(np.array([[100.0, 100.5, 103.0]]), np.array([[2.0, 4.0, 1.0]]), 1)
    >>> {n: round(float(mean[0]), 12) for n, mean in densities(asks, np.array([1.0]), (1, 2, 4, 5)).items()}
    {1: 3.0, 2: 3.5, 4: 3.0, 5: nan}
    """
    away = side.away_from(side.best)
    steps = np.diff(away, axis=1) * side.amount_base[:, :-1] if away.shape[1] else away
    # Area under the step function from the best price to each level.
    areas = np.concatenate([np.zeros((len(away), 1)), np.cumsum(steps, axis=1)], axis=1)
    with np.errstate(invalid="ignore"):
        available = side.last(away) // bin_size_quote + 1
    found = {}
    for n in n_bins:
        until = n * bin_size_quote
        at = np.count_nonzero(away <= until[:, None], axis=1) - 1
        area = _at(areas, at) + _at(side.amount_base, at) * (until - _at(away, at))
        found[n] = np.where(available >= n, area / until, np.nan)
    return found


def depth_quote(side: Side, mid: np.ndarray, bps: float, asked_levels: int | None = None) -> np.ndarray:
    """Value offered on a side within a distance of the middle.

    Parameters
    ----------
    side
        One side.
    mid
        (snapshots,) middle, quote units.
    bps
        Distance in basis points of the middle, inclusive.
    asked_levels
        How many levels were asked for: a side with fewer has no more. None: no side is known to be whole.

    Returns
    -------
    numpy.ndarray
        (snapshots,) quote units. NaN where the side may go on within the distance: the last level lies inside, and it
        may have been cut there. NaN without levels.
    """
    away, distance = side.away_from(mid), mid * (bps / 1e4)
    value = np.where(away <= distance[:, None], side.notional_quote, 0.0).sum(axis=1)
    whole = side.n_levels < (0 if asked_levels is None else asked_levels)
    outside = side.last(away) > distance
    return np.where((side.n_levels > 0) & (whole | outside) & ~np.isnan(mid), value, np.nan)


def imbalance_frac(bid: np.ndarray, ask: np.ndarray) -> np.ndarray:
    """Difference of bids and asks as share of both: 1 is all bids; NaN where either is missing or both are 0."""
    return _ratio(bid - ask, bid + ask)


def impact_bps(side: Side, mid: np.ndarray, amount_quote: float) -> np.ndarray:
    """Distance of the mean price from the middle when an amount is traded at once against one side.

    Parameters
    ----------
    side
        What is traded against: asks to buy, bids to sell.
    mid
        (snapshots,) middle, quote units.
    amount_quote
        What is spent or received, quote units.

    Returns
    -------
    numpy.ndarray
        (snapshots,) basis points, positive where it costs; NaN where the levels hold less than the amount.

    Examples
    --------
    >>> asks = Side(np.array([[101.0, 102.0]]), np.array([[1.0, 1.0]]), 1)
    >>> float(impact_bps(asks, np.array([100.0]), 101.0)[0].round(9))
    100.0
    >>> float(impact_bps(asks, np.array([100.0]), 204.0)[0])
    nan
    """
    if not side.price.shape[1]:
        return np.full(len(mid), np.nan)
    value, amount = (np.cumsum(matrix, axis=1) for matrix in (side.notional_quote, side.amount_base))
    # The first level at which the amount is reached; what is left of it is traded at that level's price.
    at = np.count_nonzero(value < amount_quote, axis=1)
    at = np.where(at < side.n_levels, at, -1)
    before = _at(np.concatenate([np.zeros((len(value), 1)), value], axis=1), at)
    filled = _at(np.concatenate([np.zeros((len(amount), 1)), amount], axis=1), at)
    price = amount_quote / (filled + (amount_quote - before) / _at(side.price, at))
    return side.direction * (price - mid) / mid * 1e4


def summary(
    levels: pd.DataFrame,
    snapshots: pd.DataFrame | None = None,
    *,
    bin_size_bps: float = 1.0,
    asked_levels: int | None = None,
    stale_after: timedelta = STALE_AFTER,
    look_back: timedelta = LOOK_BACK,
) -> pd.DataFrame:
    """One row per snapshot with all that this module tells of it.

    Parameters
    ----------
    levels
        Rows of raw/order_books in any order, ``book_time`` not needed. Rows of the ``look_back`` before the snapshots of
        interest decide whether these are stale or out of sequence.
    snapshots
        ``venue, symbol, ts, known_at, last_update_id`` of the books that came without any level; None: none did.
    bin_size_bps
        Width of a price bin of the densities, basis points of the middle.
    asked_levels
        How many levels were asked for, see ``depth_quote``.
    stale_after, look_back
        See ``status_of``.

    Returns
    -------
    pandas.DataFrame
        Columns of raw/order_book_summary, sorted by venue, symbol and time. Missing stays missing: NaN.

    Raises
    ------
    ValueError
        If columns are missing, a snapshot has two known times or numbers, or a level occurs twice.

    Notes
    -----
    A row uses its own snapshot and those at most ``look_back`` before it: nothing later.
    """
    heads, books = books_of(levels, snapshots)
    bids, asks, mid = books.bids, books.asks, books.mid
    bin_size = mid * (bin_size_bps / 1e4)
    columns: dict[str, np.ndarray] = {
        "n_bids": bids.n_levels,
        "n_asks": asks.n_levels,
        "best_bid": bids.best,
        "best_ask": asks.best,
        "mid": mid,
        "spread_bps": spread_bps(books),
        "mean_bid": mean_price(bids),
        "mean_ask": mean_price(asks),
        "gap_quote": np.maximum(asks.best - bids.best, 0.0),
        "bin_size_quote": bin_size,
    }
    sides = {"bid": bids, "ask": asks}
    for name, side in sides.items():
        for n, density in densities(side, bin_size).items():
            columns[f"{name}_density_{n}_bins_base"] = density
    for name, side in sides.items():
        for bps in DEPTH_BPS:
            columns[f"{name}_depth_{bps}_bps_quote"] = depth_quote(side, mid, bps, asked_levels)
    first = [_at(side.amount_base, np.zeros(len(mid), np.int64)) for side in (bids, asks)]
    columns["imbalance_best_frac"] = imbalance_frac(*first)
    for bps in DEPTH_BPS:
        columns[f"imbalance_{bps}_bps_frac"] = imbalance_frac(
            columns[f"bid_depth_{bps}_bps_quote"], columns[f"ask_depth_{bps}_bps_quote"]
        )
    for action, side in (("buy", asks), ("sell", bids)):
        for amount in IMPACT_QUOTE:
            columns[f"{action}_impact_{amount}_quote_bps"] = impact_bps(side, mid, amount)
    status = status_of(heads, books, stale_after=stale_after, look_back=look_back)
    told = heads.drop(columns="last_update_id")
    told["status"], told["last_update_id"] = status, heads["last_update_id"]
    return pd.concat([told, pd.DataFrame(columns)], axis=1)


def status_of(
    heads: pd.DataFrame,
    books: Books,
    *,
    stale_after: timedelta = STALE_AFTER,
    look_back: timedelta = LOOK_BACK,
) -> np.ndarray:
    """Whether each snapshot can be trusted.

    Parameters
    ----------
    heads
        ``venue, symbol, ts, last_update_id`` of each snapshot, sorted; a missing number says nothing.
    books
        Their levels, in the same order.
    stale_after
        How long a book may stay the same: the same number, or the same prices and amounts bit for bit.
    look_back
        Snapshots that lie further back are not compared with, so that every chunk of history gives the same answer.

    Returns
    -------
    numpy.ndarray
        The first that holds of ``empty`` (no level), ``one_sided``, ``crossed`` (the best bid is not below the best
        ask), ``out_of_sequence`` (an earlier snapshot has a larger number), ``stale`` (unchanged in every snapshot
        since one that is more than ``stale_after`` older), else ``ok``.
    """
    n_bids, n_asks = books.bids.n_levels, books.asks.n_levels
    crossed = (n_bids > 0) & (n_asks > 0) & (books.bids.best >= books.asks.best)
    choices = {
        "empty": (n_bids == 0) & (n_asks == 0),
        "one_sided": (n_bids == 0) | (n_asks == 0),
        "crossed": crossed,
        "out_of_sequence": _out_of_sequence(heads, look_back),
        "stale": _stale(heads, books, stale_after, look_back),
    }
    return np.select(list(choices.values()), list(choices), default="ok").astype(object)


def books_of(levels: pd.DataFrame, snapshots: pd.DataFrame | None = None) -> tuple[pd.DataFrame, Books]:
    """Levels as matrices, and what is told of each snapshot (sorted by venue, symbol and time).

    Parameters
    ----------
    levels, snapshots
        As in ``summary``.

    Returns
    -------
    heads : pandas.DataFrame
        ``venue, symbol, ts, known_at, last_update_id`` (nullable integer) of each snapshot.
    books : Books
        In the same order.
    """
    require_columns(levels, _LEVELS, "levels")
    # One row stands for a run of rows of the same snapshot, and runs are few where rows come sorted.
    differs = _differs_from_row_before(levels, [*_KEY, "known_at"])
    numbers = _numbers(levels)
    differs[1:] |= (numbers[1:] != numbers[:-1]) & ~(np.isnan(numbers[1:]) & np.isnan(numbers[:-1]))
    starts = np.flatnonzero(differs)
    runs = levels.iloc[starts][_SNAPSHOT]
    if snapshots is not None:
        require_columns(snapshots, _SNAPSHOT, "snapshots")
        # An empty frame has no types of its own.
        runs = pd.concat([part for part in (runs, snapshots[_SNAPSHOT]) if len(part)] or [runs])
    runs = runs.assign(last_update_id=runs["last_update_id"].astype("Int64"))
    heads = runs.drop_duplicates().sort_values(_KEY, ignore_index=True)
    twice = heads.duplicated(_KEY)
    if twice.any():
        row = heads.loc[twice, _KEY].iloc[0].to_dict()
        raise ValueError(f"the snapshot {row} has two known times or numbers: its rows are of two snapshots")
    order = pd.MultiIndex.from_frame(heads[_KEY])
    at_run = order.get_indexer(pd.MultiIndex.from_frame(levels.iloc[starts][_KEY]))
    rows = np.repeat(at_run, np.diff(np.r_[starts, len(levels)]))
    is_bid = (levels["side"] == "bid").to_numpy(bool)
    if not (is_bid | (levels["side"] == "ask").to_numpy(bool)).all():
        raise ValueError("a side must be bid or ask")
    return heads, Books(
        _side(levels, rows, is_bid, len(heads), -1), _side(levels, rows, ~is_bid, len(heads), 1)
    )


def _side(levels: pd.DataFrame, rows: np.ndarray, chosen: np.ndarray, n: int, direction: int) -> Side:
    at, level = rows[chosen], levels["level"].to_numpy(np.int64)[chosen]
    width = int(level.max()) + 1 if len(level) else 0
    matrices = []
    for name in ("price", "amount_base"):
        matrix = np.full((n, width), np.nan)
        matrix[at, level] = levels[name].to_numpy(np.float64)[chosen]
        matrices.append(matrix)
    present = ~np.isnan(matrices[0])
    if np.count_nonzero(present) != len(level):
        raise ValueError("a level of a snapshot occurs twice, or its price is missing")
    if (present[:, 1:] & ~present[:, :-1]).any():
        raise ValueError("levels must be numbered from 0 without gaps")
    return Side(*matrices, direction)


def _differs_from_row_before(frame: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    differs = np.zeros(len(frame), bool)
    differs[:1] = True
    for name in names:
        values = frame[name].to_numpy()
        differs[1:] |= values[1:] != values[:-1]
    return differs


def _out_of_sequence(heads: pd.DataFrame, look_back: timedelta) -> np.ndarray:
    numbers = _numbers(heads)
    indexed = pd.Series(numbers, index=pd.DatetimeIndex(heads["ts"]))
    largest = np.full(len(heads), np.nan)
    for rows in _by_market(heads):
        window = indexed.iloc[rows].rolling(pd.Timedelta(look_back), closed="both").max()
        largest[rows] = window.to_numpy()
    with np.errstate(invalid="ignore"):
        return numbers < largest


def _stale(heads: pd.DataFrame, books: Books, stale_after: timedelta, look_back: timedelta) -> np.ndarray:
    stale = np.zeros(len(heads), bool)
    same = _same_as_row_before(heads, books)
    times = heads["ts"].to_numpy("datetime64[us]")
    for rows in _by_market(heads):
        at = np.arange(rows.start, rows.stop)
        begins = ~same[rows]
        begins[:1] = True
        since = np.maximum.accumulate(np.where(begins, at, rows.start))
        # The earliest snapshot that may be compared with.
        earliest = rows.start + np.searchsorted(times[rows], times[rows] - np.timedelta64(look_back))
        stale[rows] = times[rows] - times[np.maximum(since, earliest)] > np.timedelta64(stale_after)
    return stale


def _same_as_row_before(heads: pd.DataFrame, books: Books) -> np.ndarray:
    same = np.zeros(len(heads), bool)
    alike = np.ones(max(len(heads) - 1, 0), bool)
    for side in (books.bids, books.asks):
        for matrix in (side.price, side.amount_base):
            later, earlier = matrix[1:], matrix[:-1]
            alike &= ((later == earlier) | (np.isnan(later) & np.isnan(earlier))).all(axis=1)
    numbers = _numbers(heads)
    same[1:] = alike | (numbers[1:] == numbers[:-1])
    return same


def _numbers(rows: pd.DataFrame) -> np.ndarray:
    # They stay far below 2**53, so floats hold them exactly.
    return rows["last_update_id"].astype("Float64").to_numpy(np.float64, na_value=np.nan)


def _by_market(heads: pd.DataFrame) -> list[slice]:
    starts = np.flatnonzero(_differs_from_row_before(heads, ["venue", "symbol"]))
    return [slice(rows[0], rows[-1] + 1) for rows in np.split(np.arange(len(heads)), starts[1:]) if len(rows)]


def _quantile(matrix: np.ndarray, q: float) -> np.ndarray:
    # numpy's linear interpolation, for rows of different lengths, to the same bits.
    n = np.count_nonzero(~np.isnan(matrix), axis=1)
    ordered = np.sort(matrix, axis=1)
    place = q * (n - 1)
    below = np.floor(place).astype(np.int64)
    low, high = _at(ordered, below), _at(ordered, np.minimum(below + 1, n - 1))
    share = place - below
    return np.where(share < 0.5, low + (high - low) * share, high - (high - low) * (1 - share))


def _at(matrix: np.ndarray, column: np.ndarray) -> np.ndarray:
    # One value of each row; NaN where there is no such column.
    found = np.full(len(matrix), np.nan)
    rows = np.flatnonzero((column >= 0) & (column < matrix.shape[1]))
    found[rows] = matrix[rows, column[rows]]
    return found


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    found = np.full(len(numerator), np.nan)
    np.divide(numerator, denominator, out=found, where=denominator != 0)
    return found
