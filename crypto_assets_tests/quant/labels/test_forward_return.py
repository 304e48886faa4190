from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_assets.quant import labels
from crypto_assets_tests.quant.labels.worlds import DEATH, N_BARS, WAIT, clock, compute, pauses, set_of, world
from crypto_assets_tests.quant.rasters import HOUR, QUICK


def tables(raster: pd.DataFrame, end: int, horizons: tuple[int, ...]) -> list[pd.DataFrame]:
    """``labels/forward_returns`` of each horizon, which is tested against its definition on its own."""
    return [
        labels.forward_returns(
            raster,
            horizon=hours * HOUR,
            bar=HOUR,
            watermark=clock(end),
            fill_wait=WAIT * HOUR,
            death_after=DEATH * HOUR,
        )
        for hours in horizons
    ]


@QUICK
@given(
    seed=st.integers(0, 1000),
    gaps=pauses,
    end=st.integers(1, N_BARS + 30),
    horizons=st.sampled_from([(5,), (1, 24), (24, 3, 7)]),
    log=st.booleans(),
)
def test_columns_are_the_table_of_forward_returns_decided_with_the_last_of_them(
    seed: int, gaps: list[tuple[int, int]], end: int, horizons: tuple[int, ...], log: bool
) -> None:
    raster = world(seed, gaps)
    result = compute(
        raster, {"generator": "forward_return", "horizons": horizons, "log": log}, watermark=clock(end)
    )
    made = tables(raster, end, horizons)
    known_at = np.maximum.reduce([table["known_at"].to_numpy() for table in made])
    assert result["known_at"].equals(pd.Series(known_at, name="known_at"))
    decided = ~np.isnat(known_at)
    for hours, table in zip(horizons, made, strict=True):
        column = result[f"forward_return_{hours}_{'log' if log else 'frac'}"].to_numpy()
        change = table["forward_return_frac"].to_numpy()
        assert np.isnan(column[~decided]).all()
        expected = np.log1p(change) if log else change
        np.testing.assert_allclose(
            column[decided], expected[decided], rtol=1e-12 if log else 0, atol=1e-14 if log else 0
        )


def test_a_gap_over_the_exit_is_decided_and_missing() -> None:
    raster = world(3, [(40, 8)], missing_share=0.0)
    row = compute(raster, {"generator": "forward_return", "horizons": (4,)}).iloc[35]
    (table,) = tables(raster, 400, (4,))
    assert table.iloc[35]["outcome"] == "gap"
    assert row["known_at"] == clock(49)
    assert row[["forward_return_4_frac"]].isna().all()


def test_names_and_reach_follow_the_horizon() -> None:
    declared = set_of({"generator": "forward_return", "horizons": (4, "1d")})
    assert [label.name for label in declared.labels] == ["forward_return_4_frac", "forward_return_1d_frac"]
    assert declared.lookahead == labels.lookahead(
        24 * HOUR, HOUR, fill_wait=WAIT * HOUR, death_after=DEATH * HOUR
    )
    with pytest.raises(ValueError, match="there is no column close"):
        _ = set_of(
            {"generator": "forward_return", "horizons": (4,)}, terms=labels.Terms(HOUR, {"open": "quote"})
        ).labels
