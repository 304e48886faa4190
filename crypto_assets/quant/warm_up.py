"""How much history a feature needs: measured by taking history away, and put to use where a declaration leaves it open.

Here: the measurement of an entry, the bars it is made on where nothing better is there, and entries that take theirs
from stored measurements. Not here: files and tables (``measurements.py``, ``cli_features.py``), and what a feature
declares (``generators``). Settings and the command that measures import it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property

import numpy as np
import pandas as pd

from crypto_assets.quant.generators import generator_of
from crypto_assets.quant.generators.custom import FunctionError
from crypto_assets.quant.generators.declared import (
    Anchored,
    Feature,
    Grid,
    Measured,
    Options,
    version_of,
)
from crypto_assets.quant.panel import IDENTITY, Panel

#: Largest relative difference of a function that is evaluated from an anchor; of windows on kernels it is 0.
BOUND = 1e-8
#: Values of a column that are compared, unless the caller says otherwise; more where the answer becomes the declaration,
#: since the memory of such a function depends on the values.
N_ROWS, N_OPEN_ROWS = 96, 480
#: Columns of one entry -> bars, where only the columns matter and not how far back they read.
_NOTHING_YET = 0
_LISTINGS = 3
# So much of the span serves as history; the rows that are compared lie in the rest.
_HISTORY_FRAC = 0.75
# A function without a rule may remember thousands of bars.
_SHORTEST_HISTORY, _SHORTEST_OPEN_HISTORY = 600, 4500
# A history that suffices by chance is not enough: so many bars more, and so many times it, must suffice as well.
_LONGER_BARS, _LONGER_TIMES = (1, 2, 3, 5, 8, 13), (1.25, 1.5, 2.0)
_START = datetime(2023, 1, 2)


@dataclass(frozen=True)
class Measurement:
    """What was found of one column.

    Attributes
    ----------
    feature
        As declared; where the entry leaves its history open, with the least that the function takes.
    assured
        Bars before its own that every row has under the declaration: ``feature.lookback``, of a function that is
        evaluated from the start of a day those of the day's first row. None: left open.
    bound
        Largest difference that was allowed.
    n_history
        Bars of the longest history that was tried.
    n_values
        Values that were compared: rows and listings in which all history gives one.
    found
        None if no history up to ``n_history`` suffices, or there was no value.
    """

    feature: Feature
    assured: int | None
    bound: float
    n_history: int
    n_values: int
    found: Measured | None

    @property
    def problem(self) -> str | None:
        """What is wrong with the declaration, both numbers included; None if nothing is."""
        name = self.feature.name
        if not self.n_values:
            return f"{name}: none of the rows that were compared has a value"
        if self.found is None:
            return f"{name}: no history of up to {self.n_history} bars gives the value of all history within {self.bound:g}"
        if self.assured is not None and self.found.bars > self.assured:
            return (
                f"{name}: {self.found.bars} bars of history are needed for a difference of at most {self.bound:g}, "
                f"{self.assured} are declared"
            )
        return None


def key_of(entry: Options, bar: timedelta) -> str:
    """Under which key an entry's measurements are stored: another parameter, version or interval has another one."""
    return version_of("measured", [bar], [entry])


def left_open(entry: Options, grid: Grid) -> tuple[str, ...]:
    """Columns of an entry that cannot be computed before they are measured; ``ValueError`` as its generator raises."""
    generator = generator_of(entry.generator)
    return generator.left_open(entry, grid) if isinstance(generator, Anchored) else ()


def settled(
    entries: Sequence[Options], grid: Grid, stored: Mapping[str, Mapping[str, Measured]] | None
) -> tuple[tuple[Options, ...], dict[str, Measured]]:
    """Entries with measured bars in place of what they leave open, and what was measured of their columns.

    Parameters
    ----------
    entries
        As declared.
    grid
        What they are computed on.
    stored
        By `key_of` and column. None: whatever is left open counts as measured, with no bars at all; good for names and
        for measuring, not for values.

    Notes
    -----
    An entry of which not every open column is stored stays as it is: its generator says what to do when its columns
    are asked for.
    """
    made, found = [], {}
    for entry in entries:
        known = dict((stored or {}).get(key_of(entry, grid.bar), {}))
        found |= known
        try:
            columns = left_open(entry, grid)
        except ValueError:
            # The columns are asked for next, and the same error then comes with the place of the entry.
            columns = ()
        if stored is None:
            made.append(_settled(entry, grid, dict.fromkeys(columns, _NOTHING_YET)))
        elif columns and set(columns) <= set(known):
            made.append(_settled(entry, grid, {column: known[column].bars for column in columns}))
        else:
            made.append(entry)
    return tuple(made), found


def _settled(entry: Options, grid: Grid, bars: Mapping[str, int]) -> Options:
    generator = generator_of(entry.generator)
    return generator.settled(entry, grid, bars) if bars and isinstance(generator, Anchored) else entry


def bars_needed(entry: Options, grid: Grid) -> int:
    """How many bars an entry should be measured on: enough for twice the history that it declares, at least."""
    probe = _Probe(entry, grid)
    declared = max((probe.assured(feature) for feature in probe.features), default=0)
    least = _SHORTEST_OPEN_HISTORY if probe.open else _SHORTEST_HISTORY
    return int(max(least, 2 * declared + 2 * max(_LONGER_BARS)) / _HISTORY_FRAC)


def fullest_listings(rows: pd.DataFrame, inputs: Collection[str], least: int = 1) -> pd.DataFrame:
    """The rows of the listings of which `measure` compares values: three at most, those that know most of the inputs.

    Parameters
    ----------
    rows
        Rows of the set's interval.
    inputs
        Columns that the entry reads.
    least
        A listing with fewer bars at which all inputs are present is none of them.

    Returns
    -------
    pandas.DataFrame
        As given, without the other listings; no rows if there is no such listing.
    """
    full = rows["has_bar"].to_numpy(dtype=bool, na_value=False) & rows[list(inputs)].notna().all(axis=1)
    counts = rows.loc[full, "listing_id"].value_counts()
    enough = [name for name, count in counts.items() if count >= least]
    chosen = sorted(enough, key=lambda name: (-counts[name], name))[:_LISTINGS]
    return rows[rows["listing_id"].isin(chosen)]


def measure(
    entry: Options,
    grid: Grid,
    rows: pd.DataFrame,
    *,
    n_rows: int | None = None,
    bound: float | None = None,
    seed: int = 0,
) -> tuple[Measurement, ...]:
    """Shortest history of each column that reproduces the value of all history.

    Of rows drawn with the seed from the last quarter of the span, and of up to three listings with the most bars at
    which all inputs are present, two values are compared. One is computed from the rows with ``ts`` in [t - h bars, t]
    and nothing else, h being the history that is tried; the other from all rows up to t. No row later than t is in
    either. For windows on kernels both are what ``compute`` gives. A function that is evaluated per UTC day from an
    anchor (of TA-Lib, or the user's own) is instead called on exactly those rows, without the anchor and whatever
    warm-up is declared: else nothing that lies before its anchor could be seen to matter. Relative modes are applied
    to what is compared.

    The values a (of h bars) and b (of all) agree if ``|a - b| <= bound * max(|b|, s)``, s being the median size
    of b over the rows of the column, or if both are missing; one missing value differs from any other. With a bound of 0 they
    must be equal.

    The result is the smallest h for which all rows agree, and for which they also agree for h + 1, 2, 3, 5, 8 and 13 bars
    and 1.25, 1.5 and 2 times h, as far as there is so much history. It is found by bisection, as if whatever is longer
    than a history that suffices sufficed too; h - 1 bars are always seen to fail.

    Parameters
    ----------
    entry
        As declared, whether or not it leaves its history open.
    grid
        What it is computed on.
    rows
        Rows of the set's interval, see ``FeatureSet.compute``; see `bars_needed` for how many.
    n_rows
        Values of a column to compare, about; missing ones are among them. None: `N_ROWS`, and `N_OPEN_ROWS` for an entry
        that leaves its history open.
    bound
        None: 0, and `BOUND` for a function that is evaluated from an anchor.
    seed
        Of the choice of rows.

    Returns
    -------
    tuple of Measurement
        In the order of the columns.

    Raises
    ------
    ValueError
        If the entry cannot be computed on the grid, or there are no rows to compare: too few, or none with every input.
    FunctionError
        If a function of the user's own fails on all history. That it fails on less counts as a difference.

    Notes
    -----
    A measurement holds for the rows that were compared. Where the memory of a function depends on the values, other rows
    may need more: their values then differ by more than the bound from those of all history, and are still the same in
    every run, for the anchor is fixed.
    """
    probe = _Probe(entry, grid)
    chosen = probe.bound if bound is None else bound
    wanted = n_rows or (N_OPEN_ROWS if probe.open else N_ROWS)
    search = _Search(probe, _Sample(rows, probe, wanted, seed), chosen)
    found = []
    for place, feature in enumerate(probe.features):
        assured = None if feature.name in probe.open else probe.assured(feature)
        start = feature.warm_up if assured is None else assured
        bars = search.shortest(place, start) if search.n_values[place] else None
        error = 0.0 if bars is None else float(search.differences(bars)[place])
        n_values = int(search.n_values[place])
        measured = None if bars is None else Measured(bars, chosen, error, n_values)
        found.append(Measurement(feature, assured, chosen, search.n_history, n_values, measured))
    return tuple(found)


class _Probe:
    """An entry that can be evaluated on any piece of history."""

    def __init__(self, entry: Options, grid: Grid) -> None:
        self._generator = generator_of(entry.generator)
        self.grid = grid
        self.open = frozenset(left_open(entry, grid))
        self._entry = _settled(entry, grid, dict.fromkeys(self.open, _NOTHING_YET))
        self.features: tuple[Feature, ...] = self._generator.features(self._entry, grid)

    @property
    def bound(self) -> float:
        return BOUND if isinstance(self._generator, Anchored) else 0.0

    @property
    def inputs(self) -> list[str]:
        return sorted({column for feature in self.features for column in feature.inputs})

    def assured(self, feature: Feature) -> int:
        if not isinstance(self._generator, Anchored):
            return feature.lookback
        # The first row of a day stands closest to the anchor.
        return max(0, feature.lookback - (timedelta(days=1) // self.grid.bar - 1))

    def values(self, panel: Panel) -> np.ndarray:
        """(n_features, n_listings) in the last row; NaN where the listing has no bar then."""
        evaluate = (
            self._generator.unanchored if isinstance(self._generator, Anchored) else self._generator.compute
        )
        made = evaluate(self._entry, panel)
        values = np.array([made[feature.name][-1] for feature in self.features])
        return np.where(panel.flags("has_bar")[-1], values, np.nan)


@dataclass(frozen=True)
class _Piece(Panel):
    # Rows of another panel, placed without going through a frame again: there are thousands of them.
    matrices: Mapping[str, np.ndarray] = field(default_factory=dict)

    def matrix(self, column: str) -> np.ndarray:
        return self.matrices[column]

    def flags(self, column: str) -> np.ndarray:
        return self.matrices[column]


class _Sample:
    """The rows that are compared, and the history before each of them."""

    def __init__(self, rows: pd.DataFrame, probe: _Probe, n_rows: int, seed: int) -> None:
        kept = fullest_listings(rows, probe.inputs)[[*IDENTITY, "has_bar", *probe.inputs]]
        if kept.empty:
            together = ", ".join(probe.inputs)
            raise ValueError(
                f"none of {len(rows)} rows has a bar and {together}; give rows that have them together"
            )
        self._panel = Panel.of(kept, probe.grid.bar)
        self._matrices = {column: self._panel.matrix(column) for column in probe.inputs}
        self._matrices["has_bar"] = self._panel.flags("has_bar")
        self._none = self._panel.frame.iloc[:0]
        self._per_day = timedelta(days=1) // probe.grid.bar
        with_bar = np.flatnonzero(self._matrices["has_bar"].any(axis=1))
        self._first = int(with_bar[0]) if len(with_bar) else 0
        span = int(with_bar[-1]) - self._first if len(with_bar) else 0
        self.n_history = int(_HISTORY_FRAC * span)
        possible = with_bar[with_bar >= self._first + self.n_history]
        if not self.n_history:
            raise ValueError(f"{len(rows)} rows are no history to measure on; give more bars")
        self.n_listings = len(self._panel.listings)
        wanted = min(len(possible), -(-n_rows // self.n_listings))
        self.rows = np.sort(np.random.default_rng(seed).choice(possible, size=wanted, replace=False))

    def before(self, row: int, bars: int | None) -> Panel:
        """The row and so many bars before it, as if there were no others; None: all there are."""
        whole = self._panel
        oldest = self._first if bars is None else max(row - bars, self._first)
        # A panel begins with a day.
        start = oldest - oldest % self._per_day
        matrices = {}
        for column, matrix in self._matrices.items():
            part = matrix[start : row + 1].copy()
            part[: oldest - start] = False if part.dtype == bool else np.nan
            matrices[column] = part
        return _Piece(
            self._none,
            whole.times[start : row + 1],
            whole.listings,
            whole.row[:0],
            whole.column[:0],
            whole.bar,
            row - start,
            matrices,
        )


class _Search:
    def __init__(self, probe: _Probe, sample: _Sample, bound: float) -> None:
        self._probe, self._sample, self._bound = probe, sample, bound
        self._whole = self._values(None)
        self._known: dict[int, np.ndarray] = {}
        self.n_history = sample.n_history
        self.n_values = (~np.isnan(self._whole)).sum(axis=(1, 2))

    def differences(self, bars: int) -> np.ndarray:
        """(n_features,) largest relative difference that is left with so many bars of history."""
        if bars not in self._known:
            self._known[bars] = self._largest(self._values(bars))
        return self._known[bars]

    def shortest(self, place: int, start: int) -> int | None:
        # Whatever is declared is most likely right, so the search begins there.
        fails, holds = -1, min(start, self.n_history)
        while not self._lasts(place, holds):
            if holds == self.n_history:
                return None
            fails, holds = holds, min(2 * holds + 1, self.n_history)
        if holds - 1 > fails and not self._lasts(place, holds - 1):
            return holds
        while holds - fails > 1:
            middle = (fails + holds) // 2
            if self._lasts(place, middle):
                holds = middle
            else:
                fails = middle
        return holds

    def _lasts(self, place: int, bars: int) -> bool:
        longer = {
            *(bars + more for more in _LONGER_BARS),
            *(int(bars * times) for times in _LONGER_TIMES),
        }
        tried = [bars, *sorted(tried for tried in longer if bars < tried <= self.n_history)]
        return all(self.differences(one)[place] <= self._bound for one in tried)

    @cached_property
    def _scale(self) -> np.ndarray:
        sizes = np.abs(self._whole).reshape(len(self._whole), -1)
        # Of a column without a value there is nothing to compare.
        return np.array(
            [np.median(size[~np.isnan(size)]) if (~np.isnan(size)).any() else 0.0 for size in sizes]
        )

    def _largest(self, values: np.ndarray) -> np.ndarray:
        distance = np.abs(values - self._whole)
        size = np.maximum(np.abs(self._whole), self._scale[:, None, None])
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.where(distance == 0.0, 0.0, distance / size)
        error = np.where(np.isnan(values) & np.isnan(self._whole), 0.0, error)
        error = np.where(np.isnan(values) != np.isnan(self._whole), np.inf, error)
        return error.max(axis=(1, 2), initial=0.0)

    def _values(self, bars: int | None) -> np.ndarray:
        # By feature, time and listing.
        sample, probe = self._sample, self._probe
        made = np.full((len(probe.features), len(sample.rows), sample.n_listings), np.nan)
        for place, row in enumerate(sample.rows):
            try:
                made[:, place] = probe.values(sample.before(int(row), bars))
            except FunctionError:
                # A function may refuse a short history; the result is then as far off as can be.
                if bars is None:
                    raise
        return made


def random_bars(
    grid: Grid, n_bars: int, *, n_listings: int = _LISTINGS, missing_frac: float = 0.01, seed: int = 0
) -> pd.DataFrame:
    """Rows of random walks for every column of a grid, with bars missing alone and some in a row.

    Parameters
    ----------
    grid
        Interval and columns. Open, high, low and close of a market (``futures_`` or not) fit together, with tails and
        spells of volatility; a taker's share is part of the volume; counts and ranks are whole numbers; anything else
        is a positive walk of its own.
    n_bars
        Length of each listing.
    n_listings
        How many.
    missing_frac
        Share of the bars that are missing; gaps of up to nine in a row come on top.
    seed
        Of everything.

    Returns
    -------
    pandas.DataFrame
        Identity, ``has_bar`` and the columns. A row without a bar has none of the bar's values, but the others.
    """
    bar = np.timedelta64(grid.bar)
    ts = np.datetime64(_START, "us") + bar * np.arange(n_bars)
    parts = []
    for number in range(n_listings):
        rng = np.random.default_rng([seed, number])
        symbol = f"WALK{number}/USDT"
        values = {name: _walk(rng, n_bars) for name in grid.columns if name not in ("has_bar", "bar_age")}
        for prefix in ("", "futures_"):
            values |= {
                name: made for name, made in _candles(rng, n_bars, prefix).items() if name in grid.columns
            }
        values |= {
            name: np.floor(100.0 * made)
            for name, made in values.items()
            if grid.columns[name] in ("n", "rank")
        }
        has_bar = rng.random(n_bars) >= missing_frac
        for start in rng.integers(0, n_bars, n_bars // 500):
            has_bar[start : start + int(rng.integers(2, 10))] = False
        newest = np.maximum.accumulate(np.where(has_bar, np.arange(n_bars), 0))
        frame = pd.DataFrame(
            {
                "symbol": symbol,
                "ts": ts,
                "known_at": ts + bar,
                "listing_id": f"{symbol}#1",
                "has_bar": has_bar,
            }
            | values
            | {"bar_age": np.arange(n_bars) - newest}
        )
        own = [name for name in _candles(rng, 1, "") if name in frame]
        frame.loc[~has_bar, own] = np.nan
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def _walk(rng: np.random.Generator, n_bars: int) -> np.ndarray:
    return np.exp(np.cumsum(rng.normal(0.0, 0.01, n_bars)))


def _candles(rng: np.random.Generator, n_bars: int, prefix: str) -> dict[str, np.ndarray]:
    volatility = 0.004 * np.exp(0.5 * np.sin(np.arange(n_bars) / 60.0) + rng.normal(0.0, 0.2, n_bars))
    step = volatility * rng.standard_t(4, n_bars)
    # Prices come in ticks, so that some bars do not move.
    close = np.round(100.0 * np.exp(np.cumsum(step)), 2) + 0.01
    opens = np.concatenate([[100.0], close[:-1]])
    reach = 1.0 + volatility * np.abs(rng.standard_normal((2, n_bars)))
    volume = np.round(rng.lognormal(3.0, 0.8, n_bars), 3)
    taker = volume * rng.uniform(0.2, 0.8, n_bars)
    made = {
        "open": opens,
        "high": np.maximum(opens, close) * reach[0],
        "low": np.minimum(opens, close) / reach[1],
        "close": close,
        "volume_base": volume,
        "turnover_quote": volume * close,
        "n_trades": np.floor(volume) + 1.0,
        "taker_buy_base": taker,
        "taker_buy_quote": taker * close,
    }
    return {f"{prefix}{name}": values for name, values in made.items()}
