"""What the tests of generators share: a set of entries, and that it gives the same bits however it is run.

Here: making sets and comparing runs. Not here: assertions about values. Imported by the tests of generators only.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from crypto_assets.quant.feature_sets import BAR_COLUMNS, FeatureSet
from crypto_assets.quant.generators import entry_of
from crypto_assets.quant.generators.declared import Grid
from crypto_assets_tests.quant.rasters import DAY, HOUR, Listing, assert_same_bits, between, midnight

#: Whole, late, with pauses shorter and longer than a history survives, and one symbol with two lives.
LISTINGS = (
    "AAA/USDT",
    Listing("BBB/USDT", first=50),
    Listing("CCC/USDT", gaps=((100, 103), (260, 290), (330, 390))),
    Listing("DDD/USDT", last=200),
    Listing("DDD/USDT", number=2, first=300),
)


def set_of(*entries: dict[str, Any], bar: timedelta = HOUR) -> FeatureSet:
    """Entries as ``platform.yaml`` writes them, on the columns of bars."""
    return FeatureSet("tried", Grid(bar, BAR_COLUMNS), tuple(entry_of(entry) for entry in entries))


def values_of(rows: pd.DataFrame, *entries: dict[str, Any], bar: timedelta = HOUR) -> pd.DataFrame:
    """Values of the entries on raster rows, by ts; of one listing."""
    return set_of(*entries, bar=bar).compute(rows).set_index("ts")


def assert_every_run_gives_the_same_bits(made: FeatureSet, rows: pd.DataFrame, day: datetime) -> None:
    """All history, the day with its look-back alone, its hours one by one, an open day, and a listing alone agree."""
    everything = made.compute(rows)
    names = [feature.name for feature in made.features]
    assert everything[names].notna().to_numpy().any(axis=0).all(), "a column without values proves nothing"
    assert not np.isinf(everything[names].to_numpy()).any()
    bar = made.grid.bar
    wanted = between(everything, day, day + DAY)
    assert len(wanted)

    alone = made.compute(between(rows, day - made.lookback, day + DAY), since=day)
    assert_same_bits(wanted, alone)
    each = [
        made.compute(between(rows, moment - made.lookback, moment + bar), since=moment)
        for moment in (day + place * bar for place in range(DAY // bar))
    ]
    assert_same_bits(wanted, pd.concat([part for part in each if len(part)], ignore_index=True))
    for hours in (1, 7, 23):
        until = day + hours * HOUR
        opened = made.compute(rows[rows["ts"] < until])
        assert_same_bits(everything[everything["ts"] < until], opened)
    for listing in rows["listing_id"].unique():
        one = made.compute(rows[rows["listing_id"] == listing])
        assert_same_bits(everything[everything["listing_id"] == listing], one)


def assert_first_values_are_where_the_warm_up_ends(made: FeatureSet, rows: pd.DataFrame) -> None:
    """In a listing without gaps each column's first value has as many bars before it as its warm-up says."""
    values = made.compute(rows)
    assert midnight(values["ts"].min().to_pydatetime()) == values["ts"].min()
    for feature in made.features:
        there = np.flatnonzero(values[feature.name].notna())
        assert len(there), feature.name
        assert there[0] == feature.warm_up, (
            f"{feature.name}: first value at {there[0]}, warm-up {feature.warm_up}"
        )
