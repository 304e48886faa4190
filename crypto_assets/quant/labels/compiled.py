"""Compiled loops of the labels: what happens between two places of a listing, and its turning points.

Here: nothing but loops on plain arrays; matrices are (n_listings, n_times), places and columns one per row, additions
in the order of time. Not here: when a thing is decided, fills, deaths. Imported inside functions of the families only,
because the compiler is heavy to import.
"""

from __future__ import annotations

import numpy as np

from crypto_assets.jit import jit


@jit
def extremes_between(high, low, start, stop, column):
    """Largest ``high`` and smallest ``low`` of places start .. stop - 1; NaN where there is none."""
    n = len(start)
    largest, smallest = np.full(n, np.nan), np.full(n, np.nan)
    for i in range(n):
        lane = column[i]
        top, bottom = -np.inf, np.inf
        for k in range(start[i], stop[i]):
            if high[lane, k] > top:
                top = high[lane, k]
            if low[lane, k] < bottom:
                bottom = low[lane, k]
        if top > -np.inf and bottom < np.inf:
            largest[i], smallest[i] = top, bottom
    return largest, smallest


@jit
def area_between(x, reference, start, stop, column):
    """Sum of x - reference over the sum of |x - reference|, over places start .. stop - 1; NaN for 0 / 0."""
    n = len(start)
    area = np.full(n, np.nan)
    for i in range(n):
        total, size = 0.0, 0.0
        for k in range(start[i], stop[i]):
            difference = x[column[i], k] - reference[i]
            if not np.isnan(difference):
                total += difference
                size += abs(difference)
        if size > 0.0:
            area[i] = total / size
    return area


@jit
def spread_between(x, present, start, stop, column):
    """Sample sd of the values at places start .. stop - 1 (NaN below 2), and how many bars are there."""
    n = len(start)
    sd, n_bars = np.full(n, np.nan), np.zeros(n, np.int64)
    for i in range(n):
        lane = column[i]
        count, bars, first, total = 0, 0, 0.0, 0.0
        for k in range(start[i], stop[i]):
            bars += present[lane, k]
            if not np.isnan(x[lane, k]):
                # Differences from a value are exactly 0 in a constant series, whose sd must be exactly 0.
                if count == 0:
                    first = x[lane, k]
                total += x[lane, k] - first
                count += 1
        n_bars[i] = bars
        if count < 2:
            continue
        mean = total / count
        squares = 0.0
        for k in range(start[i], stop[i]):
            if not np.isnan(x[lane, k]):
                off = (x[lane, k] - first) - mean
                squares += off * off
        sd[i] = np.sqrt(squares / (count - 1))
    return sd, n_bars


@jit
def first_beyond(up, down, upper, lower, start, stop, column):
    """First place in start .. stop - 1 with ``up > upper`` and first with ``down < lower``; -1 for none.

    The search ends at the first of the two, so the other one is told only if it is the same place.
    """
    n = len(start)
    above, below = np.full(n, -1), np.full(n, -1)
    for i in range(n):
        highs, lows = up[column[i]], down[column[i]]
        ceiling, floor = upper[i], lower[i]
        for k in range(start[i], stop[i]):
            if (highs[k] > ceiling) | (lows[k] < floor):
                if highs[k] > ceiling:
                    above[i] = k
                if lows[k] < floor:
                    below[i] = k
                break
    return above, below


@jit
def _under(value, share):
    return value - share * abs(value)


@jit
def _highest_under(bound, share):
    # The largest number v with v - share |v| <= bound, to the last bit: the left side never falls as v rises.
    v = bound / (1.0 - share) if bound >= 0.0 else bound / (1.0 + share)
    while _under(v, share) > bound:
        v = np.nextafter(v, -np.inf)
    while True:
        higher = np.nextafter(v, np.inf)
        if _under(higher, share) > bound:
            return v
        v = higher


@jit
def _last_under(stack, size, x, bound):
    # Topmost element whose value is below the bound; values rise from the bottom of the stack to its top.
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        if x[stack[middle]] < bound:
            low = middle + 1
        else:
            high = middle
    return stack[low - 1] if low else -1


@jit
def _looks_left(x, life, level, near):
    # Before each row, in its own life: last one under the level, last one under the tolerance, last one that is as
    # high, last one that is lower, and the largest value after that one.
    n = len(x)
    far_left, near_left = np.full(n, -1), np.full(n, -1)
    as_high, lower, largest = np.full(n, -1), np.full(n, -1), x.copy()
    rising, falling = np.empty(n, np.int64), np.empty(n, np.int64)
    n_rising = n_falling = 0
    for i in range(n):
        if i and life[i] != life[i - 1]:
            n_rising = n_falling = 0
        while n_rising and x[rising[n_rising - 1]] >= x[i]:
            n_rising -= 1
            largest[i] = max(largest[i], largest[rising[n_rising]])
        while n_falling and x[falling[n_falling - 1]] < x[i]:
            n_falling -= 1
        far_left[i] = _last_under(rising, n_rising, x, _under(x[i], level))
        near_left[i] = _last_under(rising, n_rising, x, _under(x[i], near))
        lower[i] = rising[n_rising - 1] if n_rising else -1
        as_high[i] = falling[n_falling - 1] if n_falling else -1
        rising[n_rising] = i
        falling[n_falling] = i
        n_rising += 1
        n_falling += 1
    return far_left, near_left, as_high, lower, largest


@jit
def _looks_right(x, life, level, near):
    # After each row, in its own life: first one under the level, under the tolerance, higher, lower; n for none.
    n = len(x)
    far_right, near_right = np.full(n, n), np.full(n, n)
    higher, lower = np.full(n, n), np.full(n, n)
    rising, falling = np.empty(n, np.int64), np.empty(n, np.int64)
    n_rising = n_falling = 0
    for i in range(n - 1, -1, -1):
        if i + 1 < n and life[i] != life[i + 1]:
            n_rising = n_falling = 0
        while n_rising and x[rising[n_rising - 1]] >= x[i]:
            n_rising -= 1
        while n_falling and x[falling[n_falling - 1]] <= x[i]:
            n_falling -= 1
        far = _last_under(rising, n_rising, x, _under(x[i], level))
        close = _last_under(rising, n_rising, x, _under(x[i], near))
        far_right[i] = far if far >= 0 else n
        near_right[i] = close if close >= 0 else n
        if n_rising:
            lower[i] = rising[n_rising - 1]
        if n_falling:
            higher[i] = falling[n_falling - 1]
        rising[n_rising] = i
        falling[n_falling] = i
        n_rising += 1
        n_falling += 1
    return far_right, near_right, higher, lower


@jit
def tops(x, place, life, dead_at, level, near, reach, first, stop):
    """Label the rows of one listing that lie at a top, and say when each label is decided; see `topbot2`.

    Parameters
    ----------
    x
        (n,) values of the bars that have one.
    place
        (n,) their places, ascending.
    life
        (n,) number of the life of each bar: nothing is looked for in another life.
    dead_at
        (n,) place at whose end the life of the bar is known to be over.
    level, near
        Fraction that the value must fall on both sides; fraction within which a row belongs to the top.
    reach
        Places.
    first, stop
        Rows at places outside first .. stop - 1 need not be right.

    Returns
    -------
    label
        (n,) 1.0 or 0.0.
    decided
        (n,) place at whose end the label is decided.
    """
    n = len(x)
    label, decided = np.zeros(n), place.copy()
    far_left, near_left, as_high, lower_left, largest = _looks_left(x, life, level, near)
    far_right, near_right, higher, lower_right = _looks_right(x, life, level, near)

    candidates, closes = np.empty(n, np.int64), np.empty(n, np.int64)
    n_candidates = 0
    for e in range(n):
        left, right = far_left[e], far_right[e]
        if left < 0 or place[e] - place[left] > reach or as_high[e] > left:
            continue
        end = min(place[e] + reach, dead_at[e])
        if higher[e] < n:
            end = min(end, place[higher[e]])
        if right < n and place[right] - place[e] <= reach and right < higher[e]:
            for i in range(near_left[e] + 1, near_right[e]):
                label[i] = 1.0
                decided[i] = place[right]
        else:
            if right < n:
                end = min(end, place[right])
            candidates[n_candidates] = e
            closes[n_candidates] = end
            n_candidates += 1

    # The candidate that stays possible longest is drawn first; `free` leads to the next row not yet drawn on.
    free = np.arange(n + 1)
    order = np.argsort(-closes[:n_candidates], kind="mergesort")
    for j in order:
        e = candidates[j]
        right_end = near_right[e]
        i = near_left[e] + 1
        while True:
            root = i
            while free[root] != root:
                root = free[root]
            while free[i] != root:
                free[i], i = root, free[i]
            i = root
            if i >= right_end or i >= n or life[i] != life[e]:
                break
            if label[i] == 0.0:
                decided[i] = max(decided[i], closes[j])
            free[i] = i + 1

    ceiling = np.empty(n)
    for i in range(n):
        ceiling[i] = _highest_under(x[i], near)
    for t in range(n):
        if label[t] == 0.0 and first <= place[t] < stop:
            until = _open_for_later(
                t, x, place, life, dead_at, level, reach, ceiling, lower_left, largest, lower_right, higher
            )
            decided[t] = max(decided[t], until)
    return label, decided


@jit
def _open_for_later(
    t, x, place, life, dead_at, level, reach, ceiling, lower_left, largest, lower_right, higher
):
    # Place at which no top that comes later can reach back to row t any more.
    n = len(x)
    least, most, now = t, t, t
    before = t - 1 if t and life[t - 1] == life[t] else -1
    most_before = -np.inf
    while True:
        best = ceiling[least]
        bound = _under(best, level)
        while before >= 0 and x[before] >= bound:
            most_before = max(most_before, largest[before])
            before = lower_left[before]
        if before < 0 or best <= max(most_before, x[most]):
            return place[now]
        end = min(place[before] + reach, dead_at[t])
        later = min(lower_right[least], higher[most])
        if later == n or end <= place[later]:
            return max(end, place[now])
        now = later
        if now == lower_right[least]:
            least = now
        else:
            most = now
