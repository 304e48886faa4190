"""Worlds for the tests of labels: rasters with gaps and deaths, and a set made of one entry.

Here: making rows and computing a set as an asset does. Not here: what a label should be (each test says it in its own
words). Imported by the tests of labels only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pandas as pd
from hypothesis import strategies as st

from crypto_assets.quant.labels import LabelSet, Terms, entry_of
from crypto_assets_tests.quant.rasters import HOUR, START, Listing, random_raster, raster_of

FAR = datetime(2030, 1, 1)
N_BARS = 160
DEATH = 12
WAIT = 3
COLUMNS = dict.fromkeys(("open", "high", "low", "close", "volume_base"), "quote")
TERMS = Terms(HOUR, COLUMNS, fill_wait=WAIT * HOUR, death_after=DEATH * HOUR)

#: Pauses of a listing; some are longer than the silence that means death.
pauses = st.lists(st.tuples(st.integers(0, N_BARS), st.integers(1, 20)), max_size=5)
seeds = st.integers(0, 1000)


def world(
    seed: int, gaps: Iterable[tuple[int, int]] = (), missing_share: float = 0.1, tick: float | None = None
) -> pd.DataFrame:
    """One listing with pauses and missing bars, whose life ends before the data does."""
    listing = Listing("AAA/USDT", last=N_BARS - 30, gaps=tuple((first, first + n) for first, n in gaps))
    return random_raster(N_BARS, [listing], seed=seed, missing_share=missing_share, tick=tick)


def by_hand(closes: Sequence[float | None], **columns: Sequence[float | None]) -> pd.DataFrame:
    """Rows of one listing; a None is a missing bar; columns that are not given equal the closes."""
    return raster_of({"close": closes, **columns})


def set_of(*entries: Mapping[str, Any], terms: Terms = TERMS) -> LabelSet:
    return LabelSet("tested", terms, tuple(entry_of(entry) for entry in entries))


def compute(
    raster: pd.DataFrame, *entries: Mapping[str, Any], watermark: datetime = FAR, terms: Terms = TERMS
) -> pd.DataFrame:
    return set_of(*entries, terms=terms).compute(raster, watermark=watermark)


def clock(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def hour_of(moment: Any) -> float | None:
    """Hours since the start of the world; None for NaT."""
    return None if pd.isna(moment) else (moment - START) / HOUR


@dataclass(frozen=True)
class Bars:
    """The bars of one listing by their hour, as somebody would read them who knows all until hour ``known``."""

    rows: Mapping[int, Mapping[str, Any]]
    known: int

    @classmethod
    def of(cls, raster: pd.DataFrame, known: int) -> Bars:
        present = raster.loc[raster["has_bar"]]
        hours = [round((ts - START) / HOUR) for ts in present["ts"]]
        values = [{str(name): value for name, value in row.items()} for row in present.to_dict("records")]
        rows = dict(zip(hours, values, strict=True))
        return cls({hour: row for hour, row in rows.items() if hour < known}, known)

    def after(self, t: int, length: int) -> tuple[list[int], int, bool] | None:
        """Walk on from bar t, hour by hour: bars of the horizon, hour of the decision, does it hold; None if open."""
        seen: list[int] = []
        last = t
        for hour in range(t + 1, self.known):
            if hour in self.rows:
                last = hour
                if hour <= t + length:
                    seen.append(hour)
            if hour - last >= DEATH:
                return seen, hour, bool(seen)
            if hour >= t + length:
                if 2 * len(seen) >= length:
                    return seen, hour, True
                if not seen or hour in self.rows:
                    return seen, hour, False
        return None


def agree(value: Any, expected: float | bool | None) -> bool:
    """Missing agrees with None; numbers agree to 1e-12."""
    if expected is None or pd.isna(value):
        return expected is None and bool(pd.isna(value))
    return abs(float(value) - float(expected)) <= 1e-12 * max(1.0, abs(float(expected)))
