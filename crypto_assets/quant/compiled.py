"""Compiled loops over windows of rows, one listing at a time, with the same bits in any chunk.

Here: nothing but loops on plain arrays. Not here: what is asked of callers, checks and documentation of the statistics
(``kernels.py``), and how loops are compiled (``crypto_assets/jit.py``). ``kernels.py`` imports it, inside functions only,
because the compiler is heavy to import. No fast mathematics: additions keep their order.
"""

from __future__ import annotations

import math

import numpy as np

from crypto_assets.jit import jit

#: What `windowed` makes of a window.
TOTAL, MEAN, STD, SKEW, KURTOSIS, SLOPE = range(6)
#: What `extremes` makes of a window.
HIGH, LOW, PLACE_OF_HIGH = range(3)

State = tuple[float, float, float, float, float, float]

# Rows that loops over lags take at a time: their working arrays stay in the first-level cache.
_STRIP = 512
# The longest block; places in a block have a table of reciprocals.
_LONGEST_BLOCK = 256
_RECIPROCAL = np.array([0.0, *(1.0 / n for n in range(1, _LONGEST_BLOCK + 1))])


def block_length(window: int) -> int:
    """Rows per block of `windowed`: a function of the window alone, as the order of additions hangs on it."""
    if window <= 64:
        return 16
    return 64 if window <= 4096 else _LONGEST_BLOCK


@jit
def _series(x: np.ndarray, column: int, begin: int, lags: int) -> np.ndarray:
    # One column from row `begin` on, contiguous, with `lags` missing rows in front; infinities are missing.
    series = np.empty(len(x) - begin + lags)
    for i in range(lags):
        series[i] = np.nan
    for i in range(begin, len(x)):
        value = x[i, column]
        series[lags + i - begin] = value if np.isfinite(value) else np.nan
    return series


# The state of a set of rows is a tuple of six numbers. Of totals: how many, and their sum. Of moments: how many, a
# reference, the mean less the reference, and the sums of the 2nd, 3rd and 4th powers of the deviations from the mean.
# Of slopes: how many, a reference, the mean less the reference, the mean place, the sum of squares of the deviations
# of places, and the sum of their products with the deviations of values.
# The reference is a value of the set: differences from it keep the digits that a large level would cost.


@jit
def _push(kind: int, state: State, value: float, place: float) -> State:
    n, reference, mean, m2, m3, m4 = state
    if kind == TOTAL:
        return n + 1.0, reference + value, 0.0, 0.0, 0.0, 0.0
    if n == 0.0:
        return 1.0, value, 0.0, (place if kind == SLOPE else 0.0), 0.0, 0.0
    share = _RECIPROCAL[int(n) + 1]
    off = (value - reference) - mean
    if kind == SLOPE:
        shift = place - m2
        m2 += shift * share
        mean += off * share
        return n + 1.0, reference, mean, m2, m3 + shift * (place - m2), m4 + off * (place - m2)
    step = off * share
    if kind != MEAN:
        square = off * step * n
        if kind != STD:
            if kind == KURTOSIS:
                m4 += square * step * step * (n * n - n + 1.0) + 6.0 * step * step * m2 - 4.0 * step * m3
            m3 += square * step * (n - 1.0) - 3.0 * step * m2
        m2 += square
    return n + 1.0, reference, mean + step, m2, m3, m4


@jit
def _merge(kind: int, older: State, newer: State, distance: float) -> State:
    # `distance`: rows from the place 0 of the older state to that of the newer one.
    na, ra, ma, m2a, m3a, m4a = older
    nb, rb, mb, m2b, m3b, m4b = newer
    if kind == TOTAL:
        return na + nb, ra + rb, 0.0, 0.0, 0.0, 0.0
    if kind == SLOPE:
        m2b += distance
    if na == 0.0:
        return nb, rb, mb, m2b, m3b, m4b
    if nb == 0.0:
        return older
    n = na + nb
    off = (rb - ra) + (mb - ma)
    share = nb / n
    mean = ma + off * share
    if kind == MEAN:
        return n, ra, mean, 0.0, 0.0, 0.0
    common = na * share
    if kind == SLOPE:
        shift = m2b - m2a
        return (
            n,
            ra,
            mean,
            m2a + shift * share,
            m3a + m3b + shift * shift * common,
            m4a + m4b + shift * off * common,
        )
    square = off * off
    m2 = m2a + m2b + square * common
    if kind == STD:
        return n, ra, mean, m2, 0.0, 0.0
    ratio = off / n
    m3 = m3a + m3b + square * ratio * common * (na - nb) + 3.0 * ratio * (na * m2b - nb * m2a)
    if kind == SKEW:
        return n, ra, mean, m2, m3, 0.0
    m4 = (
        m4a
        + m4b
        + square * ratio * ratio * common * (na * na - na * nb + nb * nb)
        + 6.0 * ratio * ratio * (na * na * m2b + nb * nb * m2a)
        + 4.0 * ratio * (na * m3b - nb * m3a)
    )
    return n, ra, mean, m2, m3, m4


@jit
def _statistic(kind: int, state: State, ddof: int, bias: bool) -> float:
    n, reference, mean, m2, m3, m4 = state
    result = np.nan
    if kind == TOTAL:
        result = reference
    elif kind == MEAN:
        result = reference + mean
    elif kind == STD:
        if n > ddof:
            result = math.sqrt(m2 / (n - ddof))
    elif kind == SLOPE:
        if m3 > 0.0:
            result = m4 / m3
    elif kind == SKEW:
        if m2 > 0.0 and (bias or n > 2.0):
            result = math.sqrt(n) * m3 / m2 / math.sqrt(m2)
            if not bias:
                result *= math.sqrt(n * (n - 1.0)) / (n - 2.0)
    elif m2 > 0.0 and (bias or n > 3.0):
        result = n * (m4 / m2 / m2) - 3.0
        if not bias:
            result = (n - 1.0) / ((n - 2.0) * (n - 3.0)) * ((n + 1.0) * result + 6.0)
    return result if np.isfinite(result) else np.nan


@jit
def windowed(
    x: np.ndarray,
    out: np.ndarray,
    kind: int,
    window: int,
    block: int,
    min_present: int,
    origin: int,
    first: int,
    ddof: int,
    bias: bool,
) -> None:
    """Write one statistic of every window: the end of the first block, whole blocks, the begin of the last one.

    Blocks begin at multiples of `block` of the absolute row, ``origin + row``. The states of the first block run from
    its end backwards, the last block's from its begin forwards, whole blocks are merged from the oldest on; a window
    inside one block is added up from its oldest row. So the order of all operations is fixed by absolute rows.
    """
    empty = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    begin = max(first - window + 1, 0)
    first_block = (origin + begin) // block
    endings = np.empty((block, 6))
    wholes = np.empty(((origin + len(x) - 1) // block - first_block + 1, 6))
    for column in range(x.shape[1]):
        series = _series(x, column, begin, 0)
        current, running = first_block, empty
        # The block of the oldest row and the whole blocks after it: none is known yet.
        old, between, between_until = current + len(wholes), empty, -1
        for i in range(len(series)):
            row = begin + i
            place = (origin + row) % block
            if place == 0 and i > 0:
                for k in range(6):
                    wholes[current - first_block, k] = running[k]
                current += 1
                running = empty
            value = series[i]
            if np.isnan(value):
                continue
            running = _push(kind, running, value, float(place))
            if row < first:
                continue
            oldest = origin + row - window + 1
            if oldest // block == current:
                state = empty
                for j in range(max(oldest - origin - begin, 0), i + 1):
                    if not np.isnan(series[j]):
                        state = _push(kind, state, series[j], float((origin + begin + j) % block))
            else:
                if oldest // block != old:
                    old = oldest // block
                    between_until = -1
                    state = empty
                    for k in range(block - 1, -1, -1):
                        j = old * block + k - origin - begin
                        if j >= 0 and not np.isnan(series[j]):
                            state = _push(kind, state, series[j], float(k))
                        for m in range(6):
                            endings[k, m] = state[m]
                if between_until != current - first_block:
                    between_until = current - first_block
                    between = empty
                    for b in range(max(old + 1 - first_block, 0), between_until):
                        w = wholes[b]
                        whole = (w[0], w[1], w[2], w[3], w[4], w[5])
                        between = _merge(kind, between, whole, float((first_block + b - old - 1) * block))
                e = endings[oldest - old * block]
                state = _merge(kind, (e[0], e[1], e[2], e[3], e[4], e[5]), between, float(block))
                state = _merge(kind, state, running, float((current - old) * block))
            if state[0] >= min_present:
                out[row, column] = _statistic(kind, state, ddof, bias)


@jit
def extremes(x: np.ndarray, out: np.ndarray, kind: int, window: int, min_present: int, first: int) -> None:
    """Write the highest, the lowest or the place of the first highest value of every window."""
    begin = max(first - window + 1, 0)
    sign = -1.0 if kind == LOW else 1.0
    # Rows that may still become the highest of a window: values fall, the oldest of equals stays in front.
    queue = np.empty(len(x) - begin, dtype=np.int64)
    for column in range(x.shape[1]):
        series = _series(x, column, begin, 0)
        head, tail, present = 0, 0, 0
        for i in range(len(series)):
            leaving = i - window
            if leaving >= 0:
                present -= not np.isnan(series[leaving])
                if head < tail and queue[head] == leaving:
                    head += 1
            value = sign * series[i]
            if np.isnan(value):
                continue
            present += 1
            while head < tail and sign * series[queue[tail - 1]] < value:
                tail -= 1
            queue[tail] = i
            tail += 1
            if begin + i >= first and present >= min_present:
                if kind == PLACE_OF_HIGH:
                    out[begin + i, column] = float(queue[head] - i + window - 1)
                else:
                    out[begin + i, column] = series[queue[head]]


@jit
def _clear(array: np.ndarray) -> None:
    for j in range(len(array)):
        array[j] = 0.0


@jit
def _add_differences(
    now: np.ndarray, then: np.ndarray, total: np.ndarray, size: np.ndarray, count: np.ndarray
) -> None:
    # Strips of separate rows let the processor work on several at once; each row still adds in the order of lags.
    for j in range(len(now)):
        off = then[j] - now[j]
        present = off == off
        off = off if present else 0.0
        total[j] += off
        size[j] += abs(off)
        count[j] += 1.0 if present else 0.0


@jit
def areas(x: np.ndarray, out: np.ndarray, windows: np.ndarray, min_present: np.ndarray, first: int) -> None:
    """Write sum(x_i - x_t) / sum|x_i - x_t| for ascending windows, (n_windows, n_times, n_listings)."""
    longest = windows[-1]
    begin = max(first - longest + 1, 0)
    total, size, count = np.empty(_STRIP), np.empty(_STRIP), np.empty(_STRIP)
    for column in range(x.shape[1]):
        series = _series(x, column, begin, longest - 1)
        for start in range(first, len(x), _STRIP):
            rows = min(_STRIP, len(x) - start)
            at = start - begin + longest - 1
            _clear(total)
            _clear(size)
            _clear(count)
            now, lag = series[at : at + rows], 0
            for k in range(len(windows)):
                while lag < windows[k]:
                    then = series[at - lag : at - lag + rows]
                    _add_differences(now, then, total, size, count)
                    lag += 1
                for j in range(rows):
                    if not np.isnan(now[j]) and count[j] >= min_present[k] and size[j] > 0.0:
                        area = total[j] / size[j]
                        out[k, start + j, column] = area if np.isfinite(area) else np.nan


@jit
def _extend_strikes(
    now: np.ndarray, then: np.ndarray, mean: np.ndarray, run: np.ndarray, longest: np.ndarray
) -> None:
    for j in range(len(now)):
        off = then[j] - now[j]
        extended = run[j] + 1.0 if off < mean[j] else 0.0
        run[j] = extended if off == off else run[j]
        longest[j] = max(longest[j], run[j])


@jit
def strikes(x: np.ndarray, out: np.ndarray, window: int, min_present: int, first: int) -> None:
    """Write the longest run of values below the mean of the window, missing ones skipped."""
    begin = max(first - window + 1, 0)
    total, size, count = np.empty(_STRIP), np.empty(_STRIP), np.empty(_STRIP)
    run, longest = np.empty(_STRIP), np.empty(_STRIP)
    for column in range(x.shape[1]):
        series = _series(x, column, begin, window - 1)
        for start in range(first, len(x), _STRIP):
            rows = min(_STRIP, len(x) - start)
            at = start - begin + window - 1
            now = series[at : at + rows]
            _clear(total)
            _clear(count)
            for lag in range(window):
                then = series[at - lag : at - lag + rows]
                _add_differences(now, then, total, size, count)
            for j in range(rows):
                total[j] /= max(count[j], 1.0)
            _clear(run)
            _clear(longest)
            for lag in range(window):
                _extend_strikes(now, series[at - lag : at - lag + rows], total, run, longest)
            for j in range(rows):
                if not np.isnan(now[j]) and count[j] >= min_present:
                    out[start + j, column] = longest[j]


@jit
def second_derivatives(x: np.ndarray, out: np.ndarray, window: int, min_present: int, first: int) -> None:
    """Write (x_n - x_(n-1) - x_2 + x_1) / (2 (n - 2)) over the values present in every window."""
    begin = max(first - window + 1, 0)
    for column in range(x.shape[1]):
        series = _series(x, column, begin, 0)
        # Places of the values present; those of a window are places[oldest : newest + 1].
        places = np.empty(len(series), dtype=np.int64)
        oldest, newest = 0, -1
        for i in range(len(series)):
            if np.isnan(series[i]):
                continue
            newest += 1
            places[newest] = i
            while places[oldest] <= i - window:
                oldest += 1
            n = newest - oldest + 1
            if begin + i >= first and n >= min_present and n > 2:
                late = series[i] - series[places[newest - 1]]
                early = series[places[oldest + 1]] - series[places[oldest]]
                result = (late - early) / (2.0 * (n - 2))
                out[begin + i, column] = result if np.isfinite(result) else np.nan


@jit
def correlations(
    x: np.ndarray, y: np.ndarray, out: np.ndarray, window: int, min_present: int, first: int
) -> None:
    """Write Pearson's correlation of every window in two passes, from the newest row to the oldest."""
    begin = max(first - window + 1, 0)
    for column in range(x.shape[1]):
        a, b = _series(x, column, begin, 0), _series(y, column, begin, 0)
        for i in range(first - begin, len(a)):
            if np.isnan(a[i]) or np.isnan(b[i]):
                continue
            oldest = max(i - window + 1, 0)
            n, mean_a, mean_b = 0, 0.0, 0.0
            for j in range(i, oldest - 1, -1):
                if not (np.isnan(a[j]) or np.isnan(b[j])):
                    n += 1
                    mean_a += a[j] - a[i]
                    mean_b += b[j] - b[i]
            if n < min_present:
                continue
            mean_a /= n
            mean_b /= n
            spread_a, spread_b, product = 0.0, 0.0, 0.0
            for j in range(i, oldest - 1, -1):
                if not (np.isnan(a[j]) or np.isnan(b[j])):
                    off_a, off_b = a[j] - a[i] - mean_a, b[j] - b[i] - mean_b
                    spread_a += off_a * off_a
                    spread_b += off_b * off_b
                    product += off_a * off_b
            if spread_a > 0.0 and spread_b > 0.0:
                result = product / (math.sqrt(spread_a) * math.sqrt(spread_b))
                if np.isfinite(result):
                    out[begin + i, column] = min(max(result, -1.0), 1.0)


@jit
def ranks(x: np.ndarray, out: np.ndarray, window: int, min_present: int, first: int) -> None:
    """Write the rank of the newest value of every window as a share, ties average."""
    begin = max(first - window + 1, 0)
    for column in range(x.shape[1]):
        series = _series(x, column, begin, 0)
        for i in range(first - begin, len(series)):
            value = series[i]
            if np.isnan(value):
                continue
            less, more, missing = 0, 0, 0
            window_values = series[max(i - window + 1, 0) : i + 1]
            for j in range(len(window_values)):
                less += window_values[j] < value
                more += window_values[j] > value
                missing += window_values[j] != window_values[j]
            n = len(window_values) - missing
            if n >= min_present:
                # Twice the average rank: less + less-or-equal + 1.
                out[begin + i, column] = (less + (n - more) + 1) / 2.0 / n


@jit
def _weigh(mass: float, mean: float, older_mass: float, older_mean: float) -> tuple[float, float]:
    # Average of two sets of rows; equal means stay as they are to the bit.
    both = mass + older_mass
    if older_mass == 0.0:
        return both, mean
    if mass == 0.0:
        return both, older_mean
    return both, mean + (older_mean - mean) * (older_mass / both)


@jit
def averages(
    x: np.ndarray, out: np.ndarray, weight: float, n_rows: int, reach: int, least_mass: float, first: int
) -> None:
    """Write the average of the last `n_rows` rows with the weights ``weight^lag``.

    Weights hang on the distance to the row alone, so windows are doubled: the average of 2^(j+1) rows is put together
    from two of 2^j, and that of `n_rows` from those of its binary digits. Every row does this in the same order.
    """
    begin = max(first - n_rows + 1 - reach, 0)
    for column in range(x.shape[1]):
        series = _series(x, column, begin, 0)
        size = len(series)
        # Averages of the newest `length` rows of each row, and of as many as the digits so far add up to.
        part_mass, part_mean = np.empty(size), np.empty(size)
        mass, mean = np.zeros(size), np.zeros(size)
        for i in range(size):
            present = not np.isnan(series[i])
            part_mass[i] = 1.0 if present else 0.0
            part_mean[i] = series[i] if present else 0.0
        length, fading, done, done_fading = 1, weight, 0, 1.0
        while True:
            if n_rows & length:
                for i in range(done, size):
                    older = i - done
                    mass[i], mean[i] = _weigh(
                        mass[i], mean[i], done_fading * part_mass[older], part_mean[older]
                    )
                done += length
                done_fading *= fading
            if done == n_rows:
                break
            for i in range(size - 1, length - 1, -1):
                older = i - length
                part_mass[i], part_mean[i] = _weigh(
                    part_mass[i], part_mean[i], fading * part_mass[older], part_mean[older]
                )
            length *= 2
            fading *= fading
        # The newest value at or before the last row of the window, which must lie within reach.
        seen = -reach - 1
        for i in range(size):
            last = i - n_rows + 1
            if last >= 0 and not np.isnan(series[last]):
                seen = last
            reaches = last >= 0 and last - seen <= reach
            wanted = begin + i >= first and not np.isnan(series[i])
            if wanted and reaches and mass[i] >= least_mass and np.isfinite(mean[i]):
                out[begin + i, column] = mean[i]
