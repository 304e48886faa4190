"""A declared set of labels: its columns with their metadata, how far it reads, and its rows.

Here: one set of entries on one interval, and which families there are. Not here: a family (the modules beside this
one) and where sets are declared (the settings). Settings, contracts, the assets of labels and tests import it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, cast

import numpy as np
import pandas as pd

from crypto_assets.quant.generators.declared import columns_of, module_named, read_entry, version_of
from crypto_assets.quant.labels.declared import Label, LabelFamily, Options, Terms
from crypto_assets.quant.labels.future import Future

#: Families of labels by name.
FAMILIES = (
    "area_future",
    "forward_return",
    "forward_volatility",
    "highlow",
    "highlow2",
    "topbot2",
    "triple_barrier",
)


def family_of(name: str) -> LabelFamily:
    """The module of a family; ``ValueError`` if there is none of that name."""
    found = module_named("crypto_assets.quant.labels", name, FAMILIES, "label generator")
    return cast("LabelFamily", found)


def entry_of(raw: Any) -> Options:
    """Check one entry of a label set; ``ValueError`` names the parameter, its value and what is allowed."""
    return read_entry(raw, family_of)


class LabelError(RuntimeError):
    """A set could not be computed; the message names the set, the entry and the reason. Nothing was handed back."""


@dataclass(frozen=True)
class LabelSet:
    """Entries that are computed together on the rows of one interval.

    Attributes
    ----------
    name
        The table is ``labels/<name>``.
    terms
        Interval and columns of the rows, waiting time of fills, silence that means death.
    entries
        What to compute, in the order of the columns.
    """

    name: str
    terms: Terms
    entries: tuple[Options, ...]

    @cached_property
    def by_entry(self) -> tuple[tuple[Label, ...], ...]:
        """The columns of each entry, in order.

        Raises
        ------
        ValueError
            If an entry cannot be computed on the terms or two columns have one name; the message names the entry.
        """
        return columns_of(self.entries, lambda entry: family_of(entry.generator).labels(entry, self.terms))

    @property
    def labels(self) -> tuple[Label, ...]:
        """All columns, in order."""
        return tuple(label for labels in self.by_entry for label in labels)

    @property
    def lookahead(self) -> timedelta:
        """A row may read every row that starts before ``ts + lookahead``."""
        return max((label.lookahead for label in self.labels), default=timedelta(0))

    @property
    def lookback(self) -> timedelta:
        """A row may read every row that starts at or after ``ts - lookback``."""
        return max((label.lookback for label in self.labels), default=timedelta(0))

    @property
    def lookahead_days(self) -> int:
        """Whole UTC days after the day of a row that it may read."""
        return -(-max(self.lookahead - self.terms.bar, timedelta(0)) // timedelta(days=1))

    @property
    def lookback_days(self) -> int:
        """Whole UTC days before the day of a row that it may read."""
        return -(-self.lookback // timedelta(days=1))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns that are read, sorted."""
        return tuple(sorted({column for label in self.labels for column in label.inputs}))

    @property
    def version(self) -> str:
        """Hash of everything that is declared: another one means other values or other columns."""
        terms = (self.terms.bar, self.terms.fill_wait, self.terms.death_after)
        return version_of(self.name, terms, self.entries)

    def compute(
        self,
        rows: pd.DataFrame,
        *,
        watermark: datetime,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> pd.DataFrame:
        """One row per row that is wanted and has a bar.

        Parameters
        ----------
        rows
            ``symbol``, ``ts``, ``known_at``, ``listing_id``, ``has_bar`` and ``inputs``, from at least ``lookback``
            before the first row that is wanted to ``lookahead`` after the last, as far as they are known.
        watermark
            Naive UTC; rows known later are not used and give no row.
        since, until
            Rows with ``since <= ts < until`` are wanted; None: no bound.

        Returns
        -------
        pandas.DataFrame
            ``symbol``, ``ts``, ``known_at``, ``listing_id`` and the labels (a BOOLEAN as pandas ``boolean``).
            ``known_at`` and all labels are NULL until the last of the row's labels is decided; a later watermark
            only turns NULL into a value, once. A label without a value is NULL in a decided row as well.

        Raises
        ------
        ValueError
            If the rows break the rules of `Panel.of`.
        LabelError
            If a family fails, or hands back other columns, another shape or infinite values.
        """
        labels = self.by_entry
        future = Future.of(
            rows, self.terms, columns=self.inputs, watermark=watermark, since=since, until=until
        )
        wanted = future.wanted
        place, _ = future.rows
        known_at = future.end_of(place)
        values: dict[str, np.ndarray] = {}
        for number, (entry, declared) in enumerate(zip(self.entries, labels, strict=True)):
            where = f"label set {self.name}, entry {number} ({entry.generator})"
            try:
                made = family_of(entry.generator).compute(entry, future)
            except Exception as error:
                raise LabelError(f"{where}: {error}") from error
            if list(made.columns) != [label.name for label in declared]:
                raise LabelError(
                    f"{where}: made {', '.join(made.columns)} instead of the columns it declares"
                )
            for name, column in (("known_at", made.known_at), *made.columns.items()):
                if column.shape != place.shape:
                    raise LabelError(f"{where}: {name} has the shape {column.shape} instead of {place.shape}")
            for name, column in made.columns.items():
                _refuse_infinite(f"{where}: {name}", column, made.known_at, future)
            # The largest of moments and NaT is NaT: a row waits for the last of its labels.
            known_at = np.maximum(known_at, made.known_at)
            values |= made.columns
        result = future.panel.frame.loc[wanted, ["symbol", "ts"]].reset_index(drop=True)
        result["known_at"] = known_at
        result["listing_id"] = future.panel.frame["listing_id"].to_numpy()[wanted]
        for label in self.labels:
            result[label.name] = _stored(label, values[label.name], ~np.isnat(known_at))
        return result


def _refuse_infinite(where: str, values: np.ndarray, known_at: np.ndarray, future: Future) -> None:
    # What is not decided yet means nothing, and a moment is never infinite.
    if values.dtype.kind != "f":
        return
    infinite = np.isinf(values) & ~np.isnat(known_at)
    if infinite.any():
        first = int(infinite.argmax())
        place, lane = (where_in[first] for where_in in future.rows)
        panel = future.panel
        raise LabelError(f"{where} is infinite for {panel.listings[lane]} at {panel.times[place]}")


def _stored(label: Label, values: np.ndarray, decided: np.ndarray) -> Any:
    if label.type == "TIMESTAMP":
        return np.where(decided, values, np.datetime64("NaT", "us"))
    numbers = np.where(decided, values, np.nan)
    if label.type == "DOUBLE":
        return numbers
    missing = np.isnan(numbers)
    return pd.arrays.BooleanArray(np.where(missing, 0.0, numbers) == 1.0, missing)
