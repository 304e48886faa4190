"""Rolling and cross-sectional arithmetic on (time x listing) matrices, with the same bits in any chunk.

Here: windows over rows and statistics across columns, on plain arrays. Not here: prices, features, symbols,
times, and the loops over rows themselves (``compiled.py``). Imported by the modules of ``quant``. No running sums, no
matrix library: the order of additions is fixed by absolute rows or by distances to the row, so a value depends on the
rows of its own window only and chunks agree bit for bit.

Every ``rolling_*`` kernel takes ``x``, (n_times, n_listings), in which NaN and infinities are missing and left out,
and a ``window`` in rows that ends with the current one. It returns a matrix of the same shape: NaN where the current
value is missing, where fewer than ``min_present`` values are present, where the statistic does not exist, and in rows
before ``first``, which serve as history only. It reads ``window - 1`` rows before the current one and nothing later.
``origin`` is the absolute number of the first row (``Panel.origin``): rows that two chunks share must bear the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

#: Window of ranks over time, and how much of it must be present (conventions, section 4).
TS_WINDOW = 720
TS_MIN_PRESENT = 360
#: Finite averages stop where the remaining weight falls below this (conventions, section 4).
TAIL_WEIGHT = 1e-9
#: Fewest members of a cross-section that has a rank or a z-score.
XS_MIN = 5


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


def log_change(x: np.ndarray, lag: int = 1) -> np.ndarray:
    """Natural logarithm of a value over the one exactly ``lag`` rows earlier; NaN if one of them is missing."""
    return log(x / positive(lagged(x, lag)))


def count_present(x: np.ndarray, window: int) -> np.ndarray:
    """Count the values present among the last ``window`` rows: (n_times, n_listings) integers."""
    # Integer running sums are exact, so this one may be cumulative.
    running = np.cumsum(~np.isnan(x), axis=0, dtype=np.int64)
    counts = running.copy()
    counts[window:] -= running[:-window]
    return counts


def rolling_total(x: np.ndarray, window: int, min_present: int, *, origin: int, first: int = 0) -> np.ndarray:
    """Sum of the values present.

    Parameters
    ----------
    x
        (n_times, n_listings); NaN and infinities are missing and left out.
    window
        Rows, the current one included.
    min_present
        NaN where fewer values are present, or the current one is missing.
    origin
        Absolute number of the first row, see ``Panel.origin``.
    first
        Rows before this one are history: they are read and not computed.

    Raises
    ------
    ValueError
        If ``x`` is no matrix, or ``min_present`` does not lie between 1 and the window.

    Examples
    --------
    >>> rolling_total(np.array([[1.0], [np.nan], [3.0], [8.0]]), 3, 2, origin=0).ravel()
    array([nan, nan,  4., 11.])
    """
    return _windowed("TOTAL", x, window, min_present, origin, first)


def rolling_mean(x: np.ndarray, window: int, min_present: int, *, origin: int, first: int = 0) -> np.ndarray:
    """Mean of the values present; a constant is returned exactly. Parameters as in `rolling_total`."""
    return _windowed("MEAN", x, window, min_present, origin, first)


def rolling_std(
    x: np.ndarray, window: int, min_present: int, *, ddof: int, origin: int, first: int = 0
) -> np.ndarray:
    """Standard deviation sqrt(sum (x - mean)^2 / (n - ddof)); exactly 0 for a constant.

    NaN where n <= ddof. Other parameters as in `rolling_total`. Source of the update: Chan, Golub and LeVeque 1983,
    on differences from a value of the window, so that a large level costs no digits.
    """
    return _windowed("STD", x, window, min_present, origin, first, ddof=ddof)


def rolling_skew(
    x: np.ndarray, window: int, min_present: int, *, bias: bool, origin: int, first: int = 0
) -> np.ndarray:
    """Skewness g1 = m3 / m2^1.5 of the values present, m_k their central moments; NaN for a constant.

    ``bias=False`` gives G1 = g1 sqrt(n (n - 1)) / (n - 2), n >= 3, as pandas does; ``bias=True`` is g1 as in
    ``scipy.stats.skew``. Other parameters as in `rolling_total`. Source of the update: Pebay 2008.
    """
    return _windowed("SKEW", x, window, min_present, origin, first, bias=bias)


def rolling_kurtosis(
    x: np.ndarray, window: int, min_present: int, *, bias: bool, origin: int, first: int = 0
) -> np.ndarray:
    """Excess kurtosis g2 = m4 / m2^2 - 3 of the values present; NaN for a constant.

    ``bias=False`` gives (n - 1) / ((n - 2) (n - 3)) ((n + 1) g2 + 6), n >= 4, as pandas does; ``bias=True`` is g2 as
    in ``scipy.stats.kurtosis``. Other parameters as in `rolling_total`. Source of the update: Pebay 2008.
    """
    return _windowed("KURTOSIS", x, window, min_present, origin, first, bias=bias)


def rolling_slope(x: np.ndarray, window: int, min_present: int, *, origin: int, first: int = 0) -> np.ndarray:
    """Slope per row of the least-squares line through the values present, each at its own place; 0 for a constant.

    A missing value is left out and its place stays empty. NaN below two values. Parameters as in `rolling_total`.
    """
    return _windowed("SLOPE", x, window, min_present, origin, first)


def rolling_high(x: np.ndarray, window: int, min_present: int, *, first: int = 0) -> np.ndarray:
    """Largest of the values present; parameters as in `rolling_total`."""
    return _extreme("HIGH", x, window, min_present, first)


def rolling_low(x: np.ndarray, window: int, min_present: int, *, first: int = 0) -> np.ndarray:
    """Smallest of the values present; parameters as in `rolling_total`."""
    return _extreme("LOW", x, window, min_present, first)


def rolling_argmax(x: np.ndarray, window: int, min_present: int, *, first: int = 0) -> np.ndarray:
    """Place of the largest value in the window: 0 is its oldest row.

    The oldest of equal values wins. Missing values are left out and keep their place. Parameters as in
    `rolling_total`.
    """
    return _extreme("PLACE_OF_HIGH", x, window, min_present, first)


def rolling_argmax_frac(x: np.ndarray, window: int, min_present: int, *, first: int = 0) -> np.ndarray:
    """Place of the first largest value as a share of the window, `rolling_argmax` / window, in [0, 1)."""
    return rolling_argmax(x, window, min_present, first=first) / window


def rolling_area(
    x: np.ndarray, window: int | Sequence[int], min_present: int | Sequence[int], *, first: int = 0
) -> list[np.ndarray]:
    """sum(x_i - x_t) / sum|x_i - x_t| over the values present: +1 where the whole past lies above the current value.

    Several windows cost little more than the longest of them.

    Parameters
    ----------
    x, first
        As in `rolling_total`.
    window
        Rows, one or several.
    min_present
        One for each window, or one for all.

    Returns
    -------
    list of numpy.ndarray
        One matrix within [-1, 1] for each window, in their order; NaN where no value differs from the current one.

    Raises
    ------
    ValueError
        As `rolling_total`, or if there are not as many minima as windows.

    Examples
    --------
    >>> [area.ravel().tolist() for area in rolling_area(np.array([[5.0], [1.0], [3.0]]), (2, 3), (2, 3))]
    [[nan, 1.0, -1.0], [nan, nan, 0.0]]
    """
    from crypto_assets.quant import compiled

    windows = tuple(window) if isinstance(window, Sequence) else (window,)
    least = tuple(min_present) if isinstance(min_present, Sequence) else (min_present,) * len(windows)
    if not windows or len(least) != len(windows):
        raise ValueError(
            f"windows {windows} and minima {least}: pass at least one window and a minimum for each"
        )
    order = np.argsort(windows, kind="stable")
    for each, minimum in zip(windows, least, strict=True):
        _checked(each, minimum, first)
    matrix = _matrix(x)
    areas = np.full((len(windows), *matrix.shape), np.nan)
    compiled.areas(matrix, areas, np.array(windows)[order], np.array(least)[order], min(first, len(matrix)))
    return [areas[place] for place in np.argsort(order)]


def rolling_strike_below_mean(x: np.ndarray, window: int, min_present: int, *, first: int = 0) -> np.ndarray:
    """Length of the longest run of values below the mean of the window; 0 for a constant.

    A missing value is left out: those on its two sides follow each other. Parameters as in `rolling_total`.
    """
    from crypto_assets.quant import compiled

    matrix, out, first = _prepared(x, window, min_present, first)
    compiled.strikes(matrix, out, window, min_present, first)
    return out


def rolling_msdc(x: np.ndarray, window: int, min_present: int, *, first: int = 0) -> np.ndarray:
    """Mean second derivative (x_n - x_(n-1) - x_2 + x_1) / (2 (n - 2)) over the n values present; NaN below three.

    Parameters as in `rolling_total`. Formula: tsfresh, ``mean_second_derivative_central``.
    """
    from crypto_assets.quant import compiled

    matrix, out, first = _prepared(x, window, min_present, first)
    compiled.second_derivatives(matrix, out, window, min_present, first)
    return out


def rolling_correlation(
    x: np.ndarray, y: np.ndarray, window: int, min_present: int, *, first: int = 0
) -> np.ndarray:
    """Pearson correlation in two passes, within [-1, 1].

    Only rows in which both values are present count; NaN where fewer than ``min_present`` such pairs are present, the
    current pair is incomplete, or one of the two is constant. Parameters as in `rolling_total`.
    """
    from crypto_assets.quant import compiled

    if x.shape != y.shape:
        raise ValueError(f"correlated matrices have the shapes {x.shape} and {y.shape}: they must be equal")
    a, out, first = _prepared(x, window, min_present, first)
    b = _matrix(y)
    compiled.correlations(a, b, out, window, min_present, first)
    return out


def ts_rank(
    x: np.ndarray, window: int = TS_WINDOW, min_present: int = TS_MIN_PRESENT, *, first: int = 0
) -> np.ndarray:
    """Rank of the current value among the values present as a share: rank / n, ties average.

    Parameters as in `rolling_total`. Formula: conventions, section 4 (pandas ``rolling(window).rank(pct=True)``).

    Examples
    --------
    >>> ts_rank(np.array([[3.0], [1.0], [3.0], [2.0]]), window=3, min_present=2).ravel()
    array([       nan, 0.5       , 0.83333333, 0.66666667])
    """
    from crypto_assets.quant import compiled

    matrix, out, first = _prepared(x, window, min_present, first)
    compiled.ranks(matrix, out, window, min_present, first)
    return out


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


def average_lookback(alpha: float, reach: int) -> int:
    """Rows before the current one that `finite_average` may read, its test of history included."""
    return average_bars(alpha) - 1 + reach


def ema(x: np.ndarray, span: float, *, reach: int, first: int = 0) -> np.ndarray:
    """Exponential moving average, alpha = 2 / (span + 1), on a finite window: see `finite_average`."""
    return finite_average(x, 2.0 / (span + 1.0), reach=reach, first=first)


def wilder(x: np.ndarray, n: int, *, reach: int, first: int = 0) -> np.ndarray:
    """Wilder's average, alpha = 1 / n, on a finite window: see `finite_average`."""
    return finite_average(x, 1.0 / n, reach=reach, first=first)


def finite_average(x: np.ndarray, alpha: float, *, reach: int, first: int = 0) -> np.ndarray:
    """Exponentially weighted average of the last K rows, K = ceil(ln 1e-9 / ln(1 - alpha)).

    ``sum w_k x_(t-k) / sum w_k`` with ``w_k = (1 - alpha)^k``, k = 0 .. K-1: after warm-up it equals the recursive
    average to about 1e-9, and a constant is returned exactly.

    Missing rows are left out and the weights renormalised. NaN where the current value is missing, less than
    half of the weight is present, the history does not reach back K rows (no value at lag K-1 or up to
    ``reach`` rows beyond), or before row ``first``. It reads ``average_lookback(alpha, reach)`` rows before the current
    one. With ``reach`` the longest pause of a listing, a pause ends no history.

    Formula: conventions, section 4.
    """
    from crypto_assets.quant import compiled

    n_bars = average_bars(alpha)
    weight = 1.0 - alpha
    full = (1.0 - weight**n_bars) / alpha
    matrix, out, first = _prepared(x, n_bars, 1, first)
    compiled.averages(matrix, out, weight, n_bars, reach, 0.5 * full, first)
    return out


def xs_winsorise(x: np.ndarray, lower: float = 0.01, upper: float = 0.99) -> np.ndarray:
    """Clip every row to its own quantiles (linear interpolation among the values present); NaN stays NaN."""
    x = _finite(x)
    ordered = np.sort(x, axis=1)
    return np.minimum(np.maximum(x, _row_quantile(ordered, lower)), _row_quantile(ordered, upper))


def xs_zscore(x: np.ndarray, min_n: int = XS_MIN) -> np.ndarray:
    """(x - mean) / sample sd across each row; NaN below ``min_n`` values or where the sd is 0.

    Columns are added one by one in their order, so an empty column changes no bit.
    """
    x = _finite(x)
    n = np.count_nonzero(~np.isnan(x), axis=1)[:, None]
    if not x.size:
        return x
    # Differences from the smallest value are exactly 0 in a constant row, whose sd must be exactly 0.
    above = x - np.fmin.reduce(x, axis=1, initial=np.inf)[:, None]
    mean = _row_sum(above) / np.maximum(n, 1)
    centred = above - mean
    sd = np.sqrt(_row_sum(centred * centred) / np.maximum(n - 1, 1))
    return np.where(n >= min_n, centred / np.where(sd > 0, sd, np.nan), np.nan)


def _matrix(x: np.ndarray) -> np.ndarray:
    # Compiled loops take one layout, or the compiler would make another form of them.
    if x.ndim != 2:
        raise ValueError(f"a kernel takes a (time x listing) matrix, not an array of shape {x.shape}")
    return np.require(x, np.float64, ["C_CONTIGUOUS", "ALIGNED", "WRITEABLE"])


def _checked(window: int, min_present: int, first: int) -> None:
    if not 1 <= min_present <= window:
        raise ValueError(f"min_present was {min_present}, it must lie between 1 and the window of {window}")
    if first < 0:
        raise ValueError(f"the first row wanted was {first}, it must not be negative")


def _prepared(x: np.ndarray, window: int, min_present: int, first: int) -> tuple[np.ndarray, np.ndarray, int]:
    # Input, empty result and first row of a compiled loop.
    _checked(window, min_present, first)
    matrix = _matrix(x)
    return matrix, np.full(matrix.shape, np.nan), min(first, len(matrix))


def _finite(x: np.ndarray) -> np.ndarray:
    matrix = _matrix(x)
    return np.where(np.isfinite(matrix), matrix, np.nan)


def _windowed(
    kind: str,
    x: np.ndarray,
    window: int,
    min_present: int,
    origin: int,
    first: int,
    *,
    ddof: int = 0,
    bias: bool = True,
) -> np.ndarray:
    from crypto_assets.quant import compiled

    matrix, out, first = _prepared(x, window, min_present, first)
    block = compiled.block_length(window)
    code = getattr(compiled, kind)
    compiled.windowed(matrix, out, code, window, block, min_present, origin, first, ddof, bias)
    return out


def _extreme(kind: str, x: np.ndarray, window: int, min_present: int, first: int) -> np.ndarray:
    from crypto_assets.quant import compiled

    matrix, out, first = _prepared(x, window, min_present, first)
    compiled.extremes(matrix, out, getattr(compiled, kind), window, min_present, first)
    return out


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
