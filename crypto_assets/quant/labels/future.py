"""What follows a row, as far as it is known at a watermark: bars, pauses, deaths, fills, horizons.

Here: places in time and when a thing is decided, common to all labels. Not here: a label (the modules beside this
one). Imported by the families of labels and nobody else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np
import pandas as pd

from crypto_assets.quant.labels.declared import Decided, Label, Terms
from crypto_assets.quant.panel import IDENTITY, Panel, bars_in, require_columns, times_of

#: A place that no label ever reaches: not decided.
NEVER = np.int64(2**62)


@dataclass(frozen=True)
class Position:
    """One holding period of every row with a bar, in the order of `Future.rows`; places, `NEVER` for none.

    Attributes
    ----------
    fill
        Bar whose open is the entry.
    due
        Place at which the holding period ends: fill + horizon.
    leave
        Bar of the exit: its open if filled, its close in a death.
    outcome
        ``filled``, ``death``, ``unfilled``, ``gap``; empty while undecided.
    place
        Bar at whose end this is decided.
    """

    fill: np.ndarray
    due: np.ndarray
    leave: np.ndarray
    outcome: np.ndarray
    place: np.ndarray


@dataclass(frozen=True)
class Horizon:
    """The bars after every row with a bar, in the order of `Future.rows`.

    Attributes
    ----------
    end
        Last place of the horizon: row + length, or the last bar before a death.
    n
        Bars present after the row, up to ``end``.
    place
        Bar at whose end a label that needs the whole horizon is decided; `NEVER` if that cannot be said yet.
    holds
        False where so few bars are there that the label is missing.
    """

    end: np.ndarray
    n: np.ndarray
    place: np.ndarray
    holds: np.ndarray


@dataclass(frozen=True)
class Future:
    """Rows known by a watermark, placed on a grid, and what they tell about the time after each of them.

    Attributes
    ----------
    panel
        The rows.
    terms
        Interval, waiting time, silence that means death.
    watermark
        Rows known later are not seen.
    n_known
        Places whose end has come: place ``k`` is known if ``k < n_known``, whether or not it has a row.
    n_wait, n_death
        ``fill_wait`` and ``death_after`` in bars.
    first, stop
        Labels are wanted for places ``first <= k < stop``.
    has_bar
        (n_times, n_listings).
    next_bar
        (n_times + 1, n_listings): first place at or after each with a bar; n_times for none seen.
    next_end
        The same for bars after which the listing died.
    """

    panel: Panel
    terms: Terms
    watermark: np.datetime64
    n_known: int
    n_wait: int
    n_death: int
    first: int
    stop: int
    has_bar: np.ndarray
    next_bar: np.ndarray
    next_end: np.ndarray

    @classmethod
    def of(
        cls,
        raster: pd.DataFrame,
        terms: Terms,
        *,
        columns: Iterable[str],
        watermark: datetime,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Future:
        """Place the rows known by ``watermark``.

        Parameters
        ----------
        raster
            Rows with ``symbol``, ``ts``, ``known_at``, ``listing_id``, ``has_bar`` and ``columns``.
        terms
            Interval, waiting time, silence that means death.
        columns
            Numeric columns that will be read.
        watermark
            Naive UTC.
        since, until
            Labels of rows with ``since <= ts < until`` are wanted; None: no bound.

        Raises
        ------
        ValueError
            If durations are no whole bars or the rows break the rules of `Panel.of`.
        """
        n_wait = bars_in(terms.fill_wait, terms.bar, "fill_wait")
        n_death = bars_in(terms.death_after, terms.bar, "death_after")
        if not n_death:
            raise ValueError(f"death_after ({terms.death_after}) must be positive")
        needed = list(dict.fromkeys((*IDENTITY, "has_bar", *columns)))
        require_columns(raster, needed, "raster")
        now = np.datetime64(watermark, "us")
        panel = Panel.of(raster.loc[times_of(raster["known_at"]) <= now, needed], terms.bar, since)
        has_bar = panel.flags("has_bar")
        n_times = len(panel.times)
        n_known = max(int((now - panel.times[0]) // panel.bar), 0) if n_times else 0
        stop = n_times if until is None else int(np.searchsorted(panel.times, np.datetime64(until, "us")))

        next_bar = next_place(has_bar)
        pause = next_bar[1:] - (np.arange(n_times)[:, None] + 1)
        silent = np.arange(n_times)[:, None] + n_death < n_known
        ends_here = has_bar & np.where(next_bar[1:] < n_times, pause >= n_death, silent)
        return cls(
            panel,
            terms,
            now,
            n_known,
            n_wait,
            n_death,
            panel.first,
            stop,
            has_bar,
            next_bar,
            next_place(ends_here),
        )

    @cached_property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Place and column of every wanted row that has a bar, in the order of ``panel.frame``."""
        return self.panel.row[self.wanted], self.panel.column[self.wanted]

    @cached_property
    def wanted(self) -> np.ndarray:
        """Flags of the rows of ``panel.frame`` that have a bar and whose labels are wanted."""
        row = self.panel.row
        return self.has_bar[row, self.panel.column] & (row >= self.first) & (row < self.stop)

    def bars(self, window: int | str) -> int:
        """Length of a window in bars."""
        return self.terms.bars(window)

    def prices(self, *columns: str) -> tuple[np.ndarray, ...]:
        """Columns as (n_times, n_listings), NaN where there is no bar.

        Raises
        ------
        ValueError
            If a column is open or close, and a bar has none that is positive: such bars must not get so far.
        """
        for column in (name for name in columns if name in ("open", "close")):
            wrong = self.has_bar & ~(self.panel.matrix(column) > 0)
            if wrong.any():
                time, listing = np.argwhere(wrong)[0]
                raise ValueError(
                    f"{self.panel.listings[listing]} at {self.panel.times[time]} has a bar without a positive "
                    f"{column}: the raster must be free of such bars"
                )
        return tuple(np.where(self.has_bar, self.panel.matrix(column), np.nan) for column in columns)

    def time_of(self, place: np.ndarray) -> np.ndarray:
        """Start of the bar at each place; NaT for a place that is not known."""
        if not len(self.panel.times):
            return np.full(place.shape, np.datetime64("NaT", "us"))
        known = place < self.n_known
        times = self.panel.times[0] + self.panel.bar * np.where(known, place, 0)
        return np.where(known, times, np.datetime64("NaT", "us"))

    def end_of(self, place: np.ndarray) -> np.ndarray:
        """End of the bar at each place, when what is decided there is known; NaT for a place that is not known."""
        return self.time_of(place) + self.panel.bar

    def decided(
        self, labels: Iterable[Label], values: Sequence[np.ndarray], places: Sequence[np.ndarray]
    ) -> Decided:
        """Labels of `rows`, decided at the end of the last of the bars ``places``; all in the order of `rows`."""
        columns = {label.name: column for label, column in zip(labels, values, strict=True)}
        return Decided(columns, self.end_of(np.maximum.reduce(places)))

    def position(self, n_horizon: int) -> Position:
        """Hold for ``n_horizon`` bars, fill to fill, decided on at the end of each row.

        The entry is the first bar after the row, at most ``n_wait`` later (else ``unfilled``); the exit the first
        bar at or after fill + horizon, at most ``n_wait`` later (``filled``), else ``gap``; a death before that ends
        it at the last bar (``death``) and stays one, because nobody could know of a return.
        """
        n_times = len(self.panel.times)
        row, column = self.rows
        fill = self.next_bar[row + 1, column]
        filled = (fill < n_times) & (fill - (row + 1) <= self.n_wait)
        unfilled_at = row + 1 + self.n_wait
        due = fill + n_horizon
        last, leave = self.next_end[fill, column], self.next_bar[np.minimum(due, n_times), column]
        outcome = np.select(
            [
                ~filled & (unfilled_at < self.n_known),
                ~filled,
                last < np.minimum(due, n_times),
                leave == n_times,
                leave - due <= self.n_wait,
            ],
            ["unfilled", "", "death", "", "filled"],
            default="gap",
        ).astype(object)
        died, traded = outcome == "death", outcome == "filled"
        place = np.select(
            [outcome == "unfilled", died, outcome != ""], [unfilled_at, last + self.n_death, leave], NEVER
        )
        return Position(
            fill=np.where(filled, fill, NEVER),
            due=np.where(filled, due, NEVER),
            leave=np.select([died, traded], [last, leave], NEVER),
            outcome=outcome,
            place=place,
        )

    def traded_at(
        self, held: Position, opens: np.ndarray, closes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Entry and exit price of positions, in the order of `rows`.

        Parameters
        ----------
        held
            As of `position`.
        opens, closes
            (n_times, n_listings) `prices`.

        Returns
        -------
        tuple of numpy.ndarray
            The open of the fill bar, NaN without a fill; the open of the exit bar or, after a death, the last close,
            NaN without an exit.
        """
        n_times = len(opens)
        _, column = self.rows
        filled, ended = held.fill < n_times, held.leave < n_times
        fill, leave = np.where(filled, held.fill, 0), np.where(ended, held.leave, 0)
        last = np.where(held.outcome == "death", closes[leave, column], opens[leave, column])
        return np.where(filled, opens[fill, column], np.nan), np.where(ended, last, np.nan)

    def horizon(self, n_bars: int, present: np.ndarray) -> Horizon:
        """Look at the ``n_bars`` places after each row.

        A death among them ends the horizon at the last bar. Missing bars are left out; with fewer than half of them
        present and no death the label is missing, and so it is where no bar follows at all.

        The end of the last bar of the horizon decides, or the death if that is seen before. Only a horizon with too
        few bars that ends in silence waits for what comes next: a bar (missing), or death (it holds).

        Parameters
        ----------
        n_bars
            At least 1.
        present
            (n_times, n_listings) flags of the bars that have all values the label reads.
        """
        n_times = len(self.panel.times)
        row, column = self.rows
        last_bar = row + n_bars
        death = self.next_end[row, column]
        dies = death < np.minimum(last_bar, n_times)
        end = np.where(dies, death, last_bar)
        n = count_between(present, row + 1, np.minimum(end, n_times - 1) + 1, column)
        told = np.where(dies, death + self.n_death, NEVER)
        # A bar at or after the last place proves the listing alive; it comes before the silence is a death.
        alive = self.next_bar[np.minimum(last_bar, n_times), column]
        waits = np.where(dies, told, np.where(alive < n_times, alive, NEVER))
        certain = (2 * n >= n_bars) | (n == 0)
        return Horizon(
            end=end,
            n=n,
            place=np.where(certain, np.minimum(last_bar, told), waits),
            holds=(n > 0) & (dies | (2 * n >= n_bars)),
        )


def next_place(flags: np.ndarray) -> np.ndarray:
    """First place at or after each one where the flag is set: (n_times + 1, n_listings), n_times for none."""
    n_times, n_listings = flags.shape
    place = np.full((n_times + 1, n_listings), n_times)
    place[:n_times][flags] = np.nonzero(flags)[0]
    return np.minimum.accumulate(place[::-1], axis=0)[::-1]


def lanes(matrix: np.ndarray) -> np.ndarray:
    """One contiguous row per listing, (n_listings, n_times): how loops over time read fastest."""
    return np.ascontiguousarray(matrix.T)


def count_between(flags: np.ndarray, start: np.ndarray, stop: np.ndarray, column: np.ndarray) -> np.ndarray:
    """How many flags are set at places start .. stop - 1 of each column; places past the end have none."""
    running = np.zeros((len(flags) + 1, flags.shape[1]), dtype=np.int64)
    np.cumsum(flags, axis=0, out=running[1:])
    start, stop = (np.minimum(place, len(flags)) for place in (start, np.maximum(stop, start)))
    return running[stop, column] - running[start, column]
