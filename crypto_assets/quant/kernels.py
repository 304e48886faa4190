"""Rolling and cross-sectional arithmetic on (time x listing) matrices, with the same bits in any chunk.

Here: windows over rows and statistics across columns, on plain arrays. Not here: prices, features, symbols,
times. Imported by the modules of ``quant``. No running sums, no matrix library: every window is a loop over
lags in a fixed order, so a value depends on the rows of its own window only and chunks agree bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

#: Window of ranks over time, and how much of it must be present (conventions, section 4).
TS_WINDOW = 720
TS_MIN_PRESENT = 360
#: Finite averages stop where the remaining weight falls below this (conventions, section 4).
TAIL_WEIGHT = 1e-9
#: History reaches back K rows if a value lies at most this far beyond: a raster listing lives 48 h without a
#: bar.
REACH_BARS = 48
#: Fewest members of a cross-section that has a rank or a z-score.
XS_MIN = 5

# Elements per block: the working arrays of one block stay in the second-level cache.
_BLOCK = 16_384


class _Lags:
    # A flat copy with `lags` missing rows in front, so that "k rows earlier" is a slice without edge cases.
    def __init__(self, matrix: np.ndarray, lags: int) -> None:
        self.width = matrix.shape[1]
        self.offset = lags * self.width
        front = np.full(self.offset, np.nan)
        self.values = np.concatenate([front, matrix.ravel()])
        present = ~np.isnan(self.values)
        self.present = present.astype(np.float64)
        self.filled = np.where(present, self.values, 0.0)

    def at(self, array: np.ndarray, start: int, stop: int, lag: int) -> np.ndarray:
        shift = self.offset - lag * self.width
        return array[start + shift : stop + shift]


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, _BLOCK):
        yield start, min(start + _BLOCK, size)


def _checked(x: np.ndarray, window: int, min_present: int) -> np.ndarray:
    if x.ndim != 2:
        raise ValueError(f"a kernel takes a (time x listing) matrix, not an array of shape {x.shape}")
    if not 1 <= min_present <= window:
        raise ValueError(f"min_present was {min_present}, it must lie between 1 and the window of {window}")
    values = np.ascontiguousarray(x, dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _keep(result: np.ndarray, x: np.ndarray, window: int, min_present: int) -> np.ndarray:
    return np.where(~np.isnan(x) & (count_present(x, window) >= min_present), result, np.nan)


def lagged(x: np.ndarray, lag: int) -> np.ndarray:
    """Return the value ``lag`` rows earlier, (n_times, n_listings); NaN in the first ``lag`` rows."""
    result = np.full(x.shape, np.nan)
    result[lag:] = x[: max(len(x) - lag, 0)]
    return result


def positive(x: np.ndarray) -> np.ndarray:
    """Return ``x`` with NaN in place of zero and negative values: for divisors and logarithms."""
    return np.where(x > 0, x, np.nan)


def log(x: np.ndarray) -> np.ndarray:
    """Natural logarithm; NaN where ``x`` is missing or not positive."""
    # Vectorised logarithms may differ in the last bit between strided and contiguous arrays.
    return np.log(np.ascontiguousarray(positive(x)))


def count_present(x: np.ndarray, window: int) -> np.ndarray:
    """Count the values present among the last ``window`` rows: (n_times, n_listings) integers."""
    # Integer running sums are exact, so this one may be cumulative.
    running = np.cumsum(~np.isnan(x), axis=0, dtype=np.int64)
    counts = running.copy()
    counts[window:] -= running[:-window]
    return counts


def rolling_sum(x: np.ndarray, window: int, min_present: int) -> np.ndarray:
    """Sum over the last ``window`` rows, the current one included, added from the newest to the oldest.

    Parameters
    ----------
    x
        (n_times, n_listings); NaN and infinities are missing and left out.
    window
        Rows.
    min_present
        NaN where fewer values are present, or the current one is missing.
    """
    x = _checked(x, window, min_present)
    lags = _Lags(x, window - 1)
    result = np.zeros(x.size)
    for start, stop in _blocks(x.size):
        total = result[start:stop]
        for lag in range(window):
            total += lags.at(lags.filled, start, stop, lag)
    return _keep(result.reshape(x.shape), x, window, min_present)


def rolling_sd(x: np.ndarray, window: int, min_present: int) -> np.ndarray:
    """Sample standard deviation (n - 1) over the last ``window`` rows; exactly 0 for a constant.

    Missing values are left out; NaN where fewer than ``min_present`` (or 2) values are present or the current
    one is missing.
    """
    x = _checked(x, window, min_present)
    squares = _centred_products(x, x, window, *[_mean_differences(x, window)] * 2)
    return _keep(_sample_sd(squares, count_present(x, window)), x, window, min_present)


def rolling_max(x: np.ndarray, window: int, min_present: int) -> np.ndarray:
    """Largest value of the last ``window`` rows; missing values as in `rolling_sum`."""
    x = _checked(x, window, min_present)
    lags = _Lags(x, window - 1)
    result = np.full(x.size, np.nan)
    for start, stop in _blocks(x.size):
        largest = result[start:stop]
        for lag in range(window):
            np.fmax(largest, lags.at(lags.values, start, stop, lag), out=largest)
    return _keep(result.reshape(x.shape), x, window, min_present)


def rolling_argmax(x: np.ndarray, window: int, min_present: int) -> np.ndarray:
    """Place of the largest value among the last ``window`` rows: 0 is the oldest row.

    The oldest of equal values wins. Missing values are left out and keep their place; NaN as in
    `rolling_sum`.
    """
    x = _checked(x, window, min_present)
    lags = _Lags(x, window - 1)
    result = np.full(x.size, np.nan)
    for start, stop in _blocks(x.size):
        place = result[start:stop]
        largest = np.full(stop - start, -np.inf)
        larger = np.empty(stop - start, dtype=bool)
        for lag in range(window - 1, -1, -1):
            values = lags.at(lags.values, start, stop, lag)
            np.greater(values, largest, out=larger)
            np.copyto(largest, values, where=larger)
            np.copyto(place, float(window - 1 - lag), where=larger)
    return _keep(result.reshape(x.shape), x, window, min_present)


def rolling_correlation(x: np.ndarray, y: np.ndarray, window: int, min_present: int) -> np.ndarray:
    """Pearson correlation over the last ``window`` rows in two passes, within [-1, 1].

    Only rows in which both values are present count; NaN where fewer than ``min_present`` such pairs are
    present, the current pair is incomplete, or one of the two is constant.
    """
    if x.shape != y.shape:
        raise ValueError(f"correlated matrices have the shapes {x.shape} and {y.shape}: they must be equal")
    x, y = _checked(x, window, min_present), _checked(y, window, min_present)
    x, y = np.where(np.isnan(y), np.nan, x), np.where(np.isnan(x), np.nan, y)
    mean_x, mean_y = _mean_differences(x, window), _mean_differences(y, window)
    spread_x = np.sqrt(_centred_products(x, x, window, mean_x, mean_x))
    spread_y = np.sqrt(_centred_products(y, y, window, mean_y, mean_y))
    spread = np.where((spread_x > 0) & (spread_y > 0), spread_x * spread_y, np.nan)
    result = np.clip(_centred_products(x, y, window, mean_x, mean_y) / spread, -1.0, 1.0)
    return _keep(result, x, window, min_present)


def ts_rank(x: np.ndarray, window: int = TS_WINDOW, min_present: int = TS_MIN_PRESENT) -> np.ndarray:
    """Rank of the current value among the last ``window`` rows as a share: rank / n, ties average.

    Missing values are left out of n; NaN where fewer than ``min_present`` values are present or the current
    one is missing. Formula: conventions, section 4 (pandas ``rolling(window).rank(pct=True)``).

    Examples
    --------
    >>> ts_rank(np.array([[3.0], [1.0], [3.0], [2.0]]), window=3, min_present=2).ravel()
    array([       nan, 0.5       , 0.83333333, 0.66666667])
    """
    x = _checked(x, window, min_present)
    lags = _Lags(x, window - 1)
    doubled = np.zeros(x.size, dtype=np.int32)
    for start, stop in _blocks(x.size):
        now = lags.at(lags.values, start, stop, 0)
        holds = np.empty(stop - start, dtype=bool)
        some = np.zeros(stop - start, dtype=np.uint8)
        for lag in range(window):
            then = lags.at(lags.values, start, stop, lag)
            np.less(then, now, out=holds)
            some += holds.view(np.uint8)
            np.less_equal(then, now, out=holds)
            some += holds.view(np.uint8)
            # A byte holds the two counts of 127 lags; bytes are added eight times as fast as words.
            if lag % 127 == 126:
                doubled[start:stop] += some
                some[:] = 0
        doubled[start:stop] += some
    # less + less-or-equal = 2 x (average rank) - 1, the row itself included.
    rank = (doubled.reshape(x.shape) + 1) / 2.0
    return _keep(rank / np.maximum(count_present(x, window), 1), x, window, min_present)


def average_bars(alpha: float) -> int:
    """K: how many rows a finite average with weight ``alpha`` on the newest one reads.

    Examples
    --------
    >>> average_bars(2 / 14), average_bars(1 / 14)
    (135, 280)
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"the weight of the newest row was {alpha}, it must lie in (0, 1]")
    return 1 if alpha == 1 else math.ceil(math.log(TAIL_WEIGHT) / math.log1p(-alpha))


def average_lookback(alpha: float) -> int:
    """Rows before the current one that `finite_average` may read, its test of history included."""
    return average_bars(alpha) - 1 + REACH_BARS


def ema(x: np.ndarray, span: float) -> np.ndarray:
    """Exponential moving average, alpha = 2 / (span + 1), on a finite window: see `finite_average`."""
    return finite_average(x, 2.0 / (span + 1.0))


def wilder(x: np.ndarray, n: int) -> np.ndarray:
    """Wilder's average, alpha = 1 / n, on a finite window: see `finite_average`."""
    return finite_average(x, 1.0 / n)


def finite_average(x: np.ndarray, alpha: float) -> np.ndarray:
    """Exponentially weighted average of the last K rows, K = ceil(ln 1e-9 / ln(1 - alpha)).

    Computed as ``x_t + sum w_k (x_(t-k) - x_t) / sum w_k`` with ``w_k = (1 - alpha)^k``, k = 0 .. K-1: after
    warm-up it equals the recursive average to about 1e-9, and a constant is returned exactly.

    Missing rows are left out and the weights renormalised. NaN where the current value is missing, less than
    half of the weight is present, or the history does not reach back K rows (no value at lag K-1 or up to
    ``REACH_BARS`` beyond). It reads ``average_lookback(alpha)`` rows before the current one.

    Formula: conventions, section 4.
    """
    n_bars = average_bars(alpha)
    x = _checked(x, n_bars, 1)
    weights = [1.0]
    for _ in range(n_bars - 1):
        weights.append(weights[-1] * (1.0 - alpha))
    full = 0.0
    for weight in weights:
        full += weight
    lags = _Lags(x, n_bars - 1)
    numerator, mass = np.zeros(x.size), np.zeros(x.size)
    for start, stop in _blocks(x.size):
        now = lags.at(lags.values, start, stop, 0)
        part, share = np.empty(stop - start), np.empty(stop - start)
        for lag, weight in enumerate(weights):
            np.multiply(lags.at(lags.present, start, stop, lag), weight, out=share)
            np.subtract(lags.at(lags.filled, start, stop, lag), now, out=part)
            part *= share
            numerator[start:stop] += part
            mass[start:stop] += share
    reaches = lagged(np.where(count_present(x, REACH_BARS + 1) > 0, 1.0, np.nan), n_bars - 1) == 1.0
    enough = reaches & (mass.reshape(x.shape) >= 0.5 * full)
    # A missing row may have no weight at all; the divisor 1 only avoids the warning.
    result = x + (numerator / np.where(mass > 0, mass, 1.0)).reshape(x.shape)
    return np.where(enough, result, np.nan)


def xs_winsorise(x: np.ndarray, lower: float = 0.01, upper: float = 0.99) -> np.ndarray:
    """Clip every row to its own quantiles (linear interpolation among the values present); NaN stays NaN."""
    x = _checked(x, 1, 1)
    ordered = np.sort(x, axis=1)
    return np.minimum(np.maximum(x, _row_quantile(ordered, lower)), _row_quantile(ordered, upper))


def xs_zscore(x: np.ndarray, min_n: int = XS_MIN) -> np.ndarray:
    """(x - mean) / sample sd across each row; NaN below ``min_n`` values or where the sd is 0.

    Columns are added one by one in their order, so an empty column changes no bit.
    """
    x = _checked(x, 1, 1)
    n = np.count_nonzero(~np.isnan(x), axis=1)[:, None]
    if not x.size:
        return x
    # Differences from the smallest value are exactly 0 in a constant row, whose sd must be exactly 0.
    above = x - np.fmin.reduce(x, axis=1, initial=np.inf)[:, None]
    mean = _row_sum(above) / np.maximum(n, 1)
    centred = above - mean
    sd = np.sqrt(_row_sum(centred * centred) / np.maximum(n - 1, 1))
    return np.where(n >= min_n, centred / np.where(sd > 0, sd, np.nan), np.nan)


def xs_rank(x: np.ndarray, min_n: int = XS_MIN) -> np.ndarray:
    """(rank - 0.5) / n across each row, ties average; NaN where fewer than ``min_n`` values are present.

    Examples
    --------
    >>> xs_rank(np.array([[5.0, 1.0, np.nan, 1.0, 7.0, 9.0]]))
    array([[0.5, 0.2, nan, 0.2, 0.7, 0.9]])
    """
    x = _checked(x, 1, 1)
    n = np.count_nonzero(~np.isnan(x), axis=1)[:, None]
    doubled = np.zeros(x.shape, dtype=np.int64)
    for column in range(x.shape[1]):
        other = x[:, column : column + 1]
        doubled += other < x
        doubled += other <= x
    return np.where((n >= min_n) & ~np.isnan(x), doubled / np.maximum(2 * n, 1), np.nan)


def _mean_differences(x: np.ndarray, window: int) -> np.ndarray:
    # Mean of x_(t-k) - x_t over the values present: NaN where x_t is missing.
    lags = _Lags(x, window - 1)
    result = np.zeros(x.size)
    for start, stop in _blocks(x.size):
        now, part, total = lags.at(lags.values, start, stop, 0), np.empty(stop - start), result[start:stop]
        for lag in range(window):
            np.subtract(lags.at(lags.filled, start, stop, lag), now, out=part)
            part *= lags.at(lags.present, start, stop, lag)
            total += part
    return result.reshape(x.shape) / np.maximum(count_present(x, window), 1)


def _centred_products(
    x: np.ndarray, y: np.ndarray, window: int, mean_x: np.ndarray, mean_y: np.ndarray
) -> np.ndarray:
    # Sum of products of deviations from the window means; the means are given relative to x_t and y_t.
    lags_x, lags_y = _Lags(x, window - 1), _Lags(y, window - 1)
    shift_x, shift_y = mean_x.ravel(), mean_y.ravel()
    result = np.zeros(x.size)
    for start, stop in _blocks(x.size):
        now_x, now_y = lags_x.at(lags_x.values, start, stop, 0), lags_y.at(lags_y.values, start, stop, 0)
        part, other, total = np.empty(stop - start), np.empty(stop - start), result[start:stop]
        for lag in range(window):
            np.subtract(lags_x.at(lags_x.filled, start, stop, lag), now_x, out=part)
            part -= shift_x[start:stop]
            part *= lags_x.at(lags_x.present, start, stop, lag)
            if y is x:
                part *= part
            else:
                np.subtract(lags_y.at(lags_y.filled, start, stop, lag), now_y, out=other)
                other -= shift_y[start:stop]
                part *= other
            total += part
    return result.reshape(x.shape)


def _sample_sd(squares: np.ndarray, n: np.ndarray) -> np.ndarray:
    return np.where(n > 1, np.sqrt(squares / np.maximum(n - 1, 1)), np.nan)


def _row_sum(x: np.ndarray) -> np.ndarray:
    total = np.zeros((len(x), 1))
    for column in range(x.shape[1]):
        values = x[:, column : column + 1]
        total += np.where(np.isnan(values), 0.0, values)
    return total


def _row_quantile(ordered: np.ndarray, share: float) -> np.ndarray:
    # `ordered` has its missing values last; linear interpolation between the two neighbours.
    n = np.count_nonzero(~np.isnan(ordered), axis=1)
    place = share * np.maximum(n - 1, 0)
    below = np.floor(place).astype(np.int64)
    if not ordered.size:
        return np.full((len(ordered), 1), np.nan)
    rows = np.arange(len(ordered))
    low = ordered[rows, below]
    high = ordered[rows, np.minimum(below + 1, np.maximum(n - 1, 0))]
    return (low + (place - below) * (high - low))[:, None]
