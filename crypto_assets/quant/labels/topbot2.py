"""Tops and bottoms: which rows lie at an extremum that the price left by a level on both sides.

Here: the local rule, its proof, and when it is decided. Not here: the loops (``compiled.py``). Found by name by
``sets.py``.

The rule
--------
Bars of one life of a listing, missing ones left out; a top (a bottom is the top of the negated values). Let x_e be
the value of bar e, D(v) = v - level |v| its level, T(v) = v - level tolerance |v| its tolerance, with 0 < level < 1
and 0 < tolerance <= 1, so both never fall as v rises and D <= T. L is the last bar before e with a value under D(x_e),
R the first after it, l and r the same for T(x_e); L <= l < e < r <= R where they exist.

**e is a top if L and R exist, at most ``reach`` away in time, and e is the first largest value of (L, R). Rows l+1 to
r-1 are true.** Without the reach this is what the work list of the seed finds: take a range (both ends included), find
its first maximum e, call it a top if L and R exist inside the range, go on with [start, L] and [R, end].

*Every top of the rule is found.* While a range holds [L, R] and its first maximum is e' other than e: x_e' >= x_e.
Inside (L, R) the first maximum is e, so e' lies outside; say e' > R (R itself is lower than e). D(x_e') >= D(x_e) > x_R,
so the last bar before e' under its level is at or after R: the range [start, L'] holds [L, R] and is shorter. The other
side alike. Ranges end, so at last e is the maximum of a range that holds L and R, and is called a top there.
*Every top found keeps the rule.* It is the first maximum of a range that holds L and R, which are the nearest bars
under the level whatever lies outside the range.

*A row belongs to at most one top.* Let e < f be tops with a row t in both (l, r). f is no maximum of the first over
(L_e, R_e) nor e of the second, so R_e <= f and e <= L_f; hence L_f < t < R_e, and L_f in (e, R_e) is not under the level
of e: D(x_e) <= x(L_f) < D(x_f). Then R_e is under the level of f and before it, so L_f >= R_e, against L_f < R_e.

When it is decided
------------------
A true row at the end of bar R. A false one at the end of the first bar k (place in time) after which nothing that can
follow makes it true. That can still happen in two ways, and no other:

1. *A top that is there.* Some e <= k has L within reach and is larger than all of (L, e); no bar of (e, k] is larger
   than e or under its level; k < e + reach; and t lies in (l, r). It closes at the first of: the bar that beats it, the
   bar under its level, e + reach, death. Each row waits for the last of these e: intervals drawn in falling order.
2. *A top that is yet to come*, at k + 1 at the earliest and with R after it. It can have any value v that keeps t within
   its tolerance, T(v) <= m = min x over [t, k]. A larger v only moves L nearer and beats more, so the largest such v
   decides, V(m), which is known to the last bit. The row is open while the last bar L before t under D(V) exists,
   k + 1 - L <= reach, V > max x over (L, k], and the listing lives. k only matters at a new minimum or maximum of
   [t, k], so the search leaps from one to the next.

Both tighten as k grows (m falls, maxima rise, time runs), so a decision is never taken back; and a row that becomes
true is open until R by construction, so no label is decided false too early. All that is read lies within 2 x reach
on each side: L >= e - reach and t < R <= e + reach.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from crypto_assets.quant.labels.declared import Decided, Label, Options, Terms, Window, column_names, digits
from crypto_assets.quant.labels.future import NEVER, Future, lanes

Share = Annotated[float, Field(gt=0, lt=1)]
Tolerances = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)]


class Entry(Options):
    """Options of the family.

    Attributes
    ----------
    columns
        The column.
    function
        ``top`` or ``bot``.
    level
        How far the value must fall on both sides of a top (rise, of a bottom), as a fraction of it.
    tolerances
        Parts of the level within which a row belongs to the extremum, on the way to the nearest row beyond.
    reach
        How far from the extremum the two falls may lie.
    names
        Column names instead of ``<function>_<100 level>_<tolerance>_<reach>``.
    """

    columns: str = "close"
    function: Literal["top", "bot"]
    level: Share
    tolerances: Tolerances
    reach: Window
    names: tuple[str, ...] | None = None


def labels(entry: Entry, grid: Terms) -> tuple[Label, ...]:
    """Declare one column per tolerance."""
    grid.unit_of(entry.columns)
    percent = digits(round(100.0 * entry.level, 10))
    names = column_names(
        entry.names, (f"{entry.function}_{percent}_{digits(x)}_{entry.reach}" for x in entry.tolerances)
    )
    which, move = ("top", "falls") if entry.function == "top" else ("bottom", "rises")
    return tuple(
        Label(
            name=name,
            type="BOOLEAN",
            unit="1",
            meaning=f"within {100.0 * entry.level * x:g} % of a {which} of {entry.columns} from which the value {move} "
            f"by {100.0 * entry.level:g} % on both sides, at most {entry.reach} away",
            inputs=(entry.columns,),
            parameters=(("level", entry.level), ("tolerance", x), ("reach", entry.reach)),
            lookahead=2 * grid.span(entry.reach),
            lookback=2 * grid.span(entry.reach),
        )
        for name, x in zip(names, entry.tolerances, strict=True)
    )


def compute(entry: Entry, future: Future) -> Decided:
    """Label the rows at extrema; the rule and its proof stand at the head of this module.

    Notes
    -----
    A pause of ``death_after`` ends a life: nothing is looked for across it, and what is open is false when the death
    is known. Missing bars are left out; there is no share of bars that must be present. A row without a value is
    decided to be missing at its own end.
    """
    from crypto_assets.quant.labels import compiled

    (values,) = future.prices(entry.columns)
    values = lanes(values if entry.function == "top" else -values)
    ends, reach = lanes(future.next_end[:-1]), future.bars(entry.reach)
    n_times = future.panel.shape[0]
    columns = [np.full(future.panel.shape, np.nan) for _ in entry.tolerances]
    places = np.full(future.panel.shape, NEVER)
    row, column = future.rows
    places[row, column] = row
    for lane in range(len(values)):
        place = np.flatnonzero(~np.isnan(values[lane]))
        life = ends[lane, place]
        dead_at = np.where(life < n_times, life + future.n_death, NEVER)
        for tolerance, matrix in zip(entry.tolerances, columns, strict=True):
            label, decided = compiled.tops(
                values[lane, place],
                place,
                life,
                dead_at,
                entry.level,
                entry.level * tolerance,
                reach,
                future.first,
                future.stop,
            )
            matrix[place, lane] = label
            places[place, lane] = np.maximum(places[place, lane], decided)
    of_rows = [matrix[row, column] for matrix in columns]
    return future.decided(labels(entry, future.terms), of_rows, [places[row, column]])
