"""A declared set of features: its columns with their metadata, how far it looks back, and its rows.

Here: one set of entries on one interval. Not here: a generator (``generators``) and where sets are declared (the
settings). Settings, contracts, the assets of features and tests import it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

import numpy as np
import pandas as pd

from crypto_assets.quant.generators import generator_of
from crypto_assets.quant.generators.declared import Feature, Grid, Options, columns_of, version_of
from crypto_assets.quant.panel import Panel

_UNITS = ("usd", "base", "quote", "bps", "frac", "pct", "log", "z", "rank", "hours")
#: Columns of the bars of one interval that a set may read -> their units; the contract's stand beside the spot
#: market's as ``futures_...``.
BAR_COLUMNS: dict[str, str] = {
    f"{prefix}{name}": unit
    for prefix in ("", "futures_")
    for name, unit in {
        **dict.fromkeys(("open", "high", "low", "close"), "quote"),
        "volume_base": "base",
        "turnover_quote": "quote",
        "n_trades": "n",
        "taker_buy_base": "base",
        "taker_buy_quote": "quote",
    }.items()
}


def unit_of(column: str) -> str:
    """Unit of a column by its name, as the data rules have it.

    Examples
    --------
    >>> unit_of("market_cap_usd"), unit_of("futures_close"), unit_of("n_trades"), unit_of("mark_price")
    ('usd', 'quote', 'n', 'quote')
    """
    if column in BAR_COLUMNS:
        return BAR_COLUMNS[column]
    if column.startswith("n_") or column.endswith("_age"):
        return "n"
    last = column.rsplit("_", 1)[-1]
    return last if last in _UNITS else "quote"


class FeatureError(RuntimeError):
    """A set could not be computed; the message names the set, the entry and the reason. Nothing was handed back."""


@dataclass(frozen=True)
class FeatureSet:
    """Entries that are computed together on the rows of one interval.

    Attributes
    ----------
    name
        The table is ``features/<name>``.
    grid
        Interval and columns of the rows.
    entries
        What to compute, in the order of the columns.
    """

    name: str
    grid: Grid
    entries: tuple[Options, ...]

    @cached_property
    def by_entry(self) -> tuple[tuple[Feature, ...], ...]:
        """The columns of each entry, in order.

        Raises
        ------
        ValueError
            If an entry cannot be computed on the grid or two columns have one name; the message names the entry.
        """
        return columns_of(
            self.entries, lambda entry: generator_of(entry.generator).features(entry, self.grid)
        )

    @property
    def features(self) -> tuple[Feature, ...]:
        """All columns, in order."""
        return tuple(feature for features in self.by_entry for feature in features)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns, in order."""
        return tuple(feature.name for feature in self.features)

    @property
    def lookback(self) -> timedelta:
        """How far before its own interval a row may read."""
        return self.grid.bar * max((feature.lookback for feature in self.features), default=0)

    @property
    def lookback_days(self) -> int:
        """Whole UTC days before the day of a row that it may read."""
        return -(-self.lookback // timedelta(days=1))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns that are read, sorted."""
        return tuple(sorted({column for feature in self.features for column in feature.inputs}))

    @property
    def version(self) -> str:
        """Hash of everything that is declared: another one means other values or other columns."""
        return version_of(self.name, [self.grid.bar], self.entries)

    def compute(self, rows: pd.DataFrame, since: datetime | None = None) -> pd.DataFrame:
        """One row per row that is wanted and has a bar, with the set's columns.

        Parameters
        ----------
        rows
            ``symbol``, ``ts``, ``known_at``, ``listing_id``, ``has_bar`` and ``inputs``, from at least ``lookback_days``
            before the day of the first row that is wanted.
        since
            Start of the first interval that is wanted, naive UTC; earlier rows are history. None: all are wanted.

        Raises
        ------
        ValueError
            If the rows break the rules of `Panel.of`.
        FeatureError
            If a generator fails, or hands back other columns, another shape or infinite values.

        Notes
        -----
        A value reads no row known later than its own.
        """
        panel = Panel.of(rows, self.grid.bar, since)
        columns: dict[str, np.ndarray] = {}
        for place, (entry, features) in enumerate(zip(self.entries, self.by_entry, strict=True)):
            try:
                made = generator_of(entry.generator).compute(entry, panel) if len(panel.times) else {}
            except Exception as error:
                raise FeatureError(
                    f"feature set {self.name}, entry {place} ({entry.generator}): {error}"
                ) from error
            columns |= self._checked(place, features, made, panel)
        wanted = panel.flags("has_bar")[panel.row, panel.column] & (panel.row >= panel.first)
        return panel.rows(columns)[wanted].reset_index(drop=True)

    def _checked(
        self, place: int, features: Sequence[Feature], made: Mapping[str, np.ndarray], panel: Panel
    ) -> dict[str, np.ndarray]:
        if not len(panel.times):
            return {feature.name: np.zeros(panel.shape) for feature in features}
        reason = None
        if list(made) != [feature.name for feature in features]:
            reason = f"made {', '.join(made) or 'nothing'} instead of {', '.join(f.name for f in features)}"
        else:
            for name, matrix in made.items():
                if matrix.shape != panel.shape:
                    reason = f"{name} has the shape {matrix.shape} instead of {panel.shape}"
                elif np.isinf(matrix[panel.first :]).any():
                    row, column = np.argwhere(np.isinf(matrix[panel.first :]))[0]
                    reason = (
                        f"{name} is infinite for {panel.listings[column]} at {panel.times[panel.first + row]}"
                    )
        if reason:
            raise FeatureError(
                f"feature set {self.name}, entry {place} ({self.entries[place].generator}): {reason}"
            )
        return dict(made)
