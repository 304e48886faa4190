"""Features of order books: the seed's 33 columns, pandas as the oracle, gaps, and the same bits in any chunk."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from crypto_assets.quant.feature_sets import FeatureSet, unit_of
from crypto_assets.quant.generators import entry_of
from crypto_assets.quant.generators.declared import Grid
from crypto_assets.quant.generators.depth import BOOK_COLUMNS
from crypto_assets_tests.quant.generators.sets import LISTINGS, assert_every_run_gives_the_same_bits
from crypto_assets_tests.quant.rasters import DAY, HOUR, START, Listing, random_raster, raster_of

MINUTE = timedelta(minutes=1)
GAPS = (Listing("AAA/USDT", gaps=((40, 47),)), Listing("BBB/USDT", first=30))
COLUMNS = {column: unit_of(column) for column in ("close", *BOOK_COLUMNS)}


def a_set(bar: timedelta = MINUTE, **options: Any) -> FeatureSet:
    return FeatureSet("books", Grid(bar, COLUMNS), (entry_of({"generator": "depth", **options}),))


def some_rows(
    n_bars: int = 200, listings: Sequence[Listing | str] = GAPS, bar: timedelta = MINUTE
) -> pd.DataFrame:
    rows = random_raster(n_bars, listings, bar=bar, missing_share=0.05, seed=2)
    rng = np.random.default_rng(11)
    for column in BOOK_COLUMNS:
        values = np.round(rng.lognormal(0.0, 1.0, len(rows)), 2)
        rows[column] = np.where(rng.random(len(rows)) < 0.2, np.nan, values)
    return rows


def test_without_parameters_there_are_the_33_columns_of_the_seed() -> None:
    made = a_set()
    names = [feature.name for feature in made.features]
    assert len(names) == 33
    assert names[:4] == [
        "book_gap_2_pct",
        "book_gap_5_pct",
        "book_gap_10_pct",
        "book_bid_density_1_bins_2_pct",
    ]
    assert names[-1] == "book_ask_density_20_bins_10_pct"
    assert {feature.unit for feature in made.features} == {"pct"}
    assert {(feature.lookback, feature.warm_up) for feature in made.features} == {(29, 14)}
    assert made.inputs == tuple(sorted(BOOK_COLUMNS))


def test_a_hand_made_example_leaves_missing_snapshots_out() -> None:
    rows = raster_of(
        {"close": [1.0] * 6, "book_gap_quote": [1.0, 2.0, None, 4.0, 5.0, 0.0]}, bar=MINUTE, start=START
    )
    values = a_set(columns=["book_gap_quote"], windows=[1, 2], base_window=4).compute(rows)
    # Means of four rows: 1.5 of two values, none in row 2, 7/3, 11/3, 3; the first row has too few values.
    expected = [np.nan, 0.0, np.nan, 100 * (4 - 7 / 3) / (7 / 3), 100 * (4.5 - 11 / 3) / (11 / 3)]
    assert values["book_gap_2_pct"].to_numpy()[:5] == pytest.approx(
        [expected[0], 0.0, *expected[2:]], nan_ok=True
    )
    one = [np.nan, 100 / 3, np.nan, 500 / 7, 100 * (5 - 11 / 3) / (11 / 3), -100.0]
    assert values["book_gap_1_pct"].to_numpy() == pytest.approx(one, nan_ok=True)


def test_a_book_without_a_gap_has_no_relative_gap() -> None:
    rows = raster_of({"close": [1.0] * 9, "book_gap_quote": [0.0] * 9}, bar=MINUTE)
    values = a_set(columns=["book_gap_quote"], windows=["2m"], base_window="4m").compute(rows)
    assert values["book_gap_2m_pct"].isna().all()


def test_every_column_agrees_with_pandas() -> None:
    rows, made = some_rows(), a_set()
    computed = made.compute(rows)
    for listing, ours in computed.groupby("listing_id"):
        mine = rows[rows["listing_id"] == listing].set_index("ts")
        mine = mine.reindex(pd.date_range(mine.index.min(), mine.index.max(), freq="1min"))
        for feature in made.features:
            values, window = mine[feature.inputs[0]], dict(feature.parameters)["window"]
            short, base = (values.rolling(n, min_periods=n // 2).mean() for n in (window, 30))
            right = (100 * (short - base) / base).where(values.notna()).reindex(ours["ts"]).to_numpy()
            assert np.isfinite(right).sum() > 50
            np.testing.assert_allclose(ours[feature.name].to_numpy(), right, rtol=1e-9, atol=1e-9)


def test_every_run_gives_the_same_bits() -> None:
    made = a_set(HOUR)
    assert made.lookback == 29 * HOUR
    assert_every_run_gives_the_same_bits(made, some_rows(400, LISTINGS, HOUR), START + 12 * DAY)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"columns": ["book_mid"]}, "there is no column book_mid"),
        ({"columns": []}, "columns"),
        ({"columns": ["book_gap_quote", "book_gap_quote"]}, "name each column once"),
        ({"windows": [2, "2m"]}, "the same 2 bars"),
        ({"windows": [30]}, "is the base_window"),
        ({"windows": ["90s"]}, "no window"),
        ({"functions": ["mean"]}, "functions"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused_with_the_reason(
    options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        _ = a_set(**options).features
