from __future__ import annotations

from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_assets import tables
from crypto_assets.quant import factors, kernels
from crypto_assets_tests.quant.rasters import (
    HOUR,
    QUICK,
    START,
    Listing,
    assert_chunk_invariant,
    assert_no_look_ahead,
    assert_same_bits,
    between,
    midnight,
    random_raster,
)

KEY = ("symbol", "ts", "factor")
NAMES = ["factor_001", "factor_002", "factor_003"]
N_BARS = 36 * 24
LISTINGS = (
    *(f"{name}/USDT" for name in ("AAA", "BBB", "CCC", "DDD")),
    Listing("EEE/USDT", gaps=((400, 430), (820, 823))),
    Listing("FFF/USDT", last=300),
    Listing("FFF/USDT", number=2, first=420),
)


def all_eligible(raster: pd.DataFrame) -> pd.DataFrame:
    return raster[["symbol", "ts", "known_at", "listing_id"]].assign(eligible=True)


def compute(raster: pd.DataFrame) -> pd.DataFrame:
    return factors.alpha_factors(raster, all_eligible(raster), NAMES)


@pytest.mark.parametrize("names", [[], ["factor_999"], ["factor_001", "factor_001"]])
def test_factors_must_be_known_and_named_once(names: list[str]) -> None:
    raster = random_raster(30, ["AAA/USDT"])
    with pytest.raises(ValueError, match="name each of factor_001"):
        factors.alpha_factors(raster, all_eligible(raster), names)


def test_eligibility_known_only_after_the_bar_is_refused() -> None:
    raster = random_raster(30, ["AAA/USDT"])
    late = all_eligible(raster).assign(known_at=raster["known_at"] + timedelta(seconds=1))
    with pytest.raises(ValueError, match="eligible only from"):
        factors.alpha_factors(raster, late, NAMES)


def test_columns_are_those_of_the_contract_also_without_rows() -> None:
    raster = random_raster(30, ["AAA/USDT"])
    expected = sorted(tables.table_of("factors/alpha_factors").column_names)
    for rows in (raster, raster.iloc[:0]):
        result = compute(rows)
        assert sorted(result.columns) == expected
        assert len(result) == 3 * len(rows)


def slow_rank(series: pd.Series) -> pd.Series:
    return series.rolling(720, min_periods=360).rank(pct=True).where(series.notna())


def slow_factors(bars: pd.DataFrame) -> dict[str, pd.Series]:
    """The three formulas as written, with pandas, on one listing's bars over a complete hourly index."""
    returns = bars["close"] / bars["close"].shift(1) - 1
    x = returns.where(~(returns < 0), returns.rolling(20).std())
    place = (x**2).rolling(5).apply(np.argmax, raw=True) + 1
    volume = bars["volume_base"].apply(np.log)
    growth, move = volume - volume.shift(2), (bars["close"] - bars["open"]) / bars["open"]
    return {
        "factor_001": slow_rank(place) - 0.5,
        "factor_002": -slow_rank(growth).rolling(6).corr(slow_rank(move)),
        "factor_003": -slow_rank(bars["volume_base"]).rolling(10).corr(slow_rank(bars["open"])),
    }


@pytest.mark.parametrize("missing", [0.0, 0.01])
def test_factors_agree_with_an_independent_version_of_their_formulas(missing: float) -> None:
    raster = random_raster(1200, ["AAA/USDT", Listing("BBB/USDT", first=200)], seed=3, missing_share=missing)
    result = compute(raster)
    for symbol, bars in raster.groupby("symbol"):
        index = pd.date_range(bars["ts"].min(), bars["ts"].max(), freq="h")
        expected = slow_factors(bars.set_index("ts").reindex(index))
        for name, values in expected.items():
            own = result.loc[(result["symbol"] == symbol) & (result["factor"] == name)].set_index("ts")[
                "value"
            ]
            # A constant window has no correlation; pandas leaves rounding noise or infinities there.
            both = own.notna() & np.isfinite(values.reindex(own.index))
            assert both.sum() > 300
            np.testing.assert_allclose(own[both], values.reindex(own.index)[both], rtol=0, atol=1e-8)
            assert (own.notna() == values.reindex(own.index).notna()).mean() > 0.999


def test_a_bar_without_volume_has_no_growth_but_keeps_its_rank() -> None:
    raster = random_raster(800, ["AAA/USDT"])
    raster.loc[790, "volume_base"] = 0.0
    values = compute(raster).pivot(index="ts", columns="factor", values="value")
    assert values["factor_002"].iloc[790:798].isna().all()
    assert not np.isnan(values["factor_002"].iloc[798])
    assert values["factor_003"].iloc[790:].notna().all()


def test_standardised_values_are_winsorised_zscores_of_the_eligible_only() -> None:
    raster = random_raster(600, [f"S{k}/USDT" for k in range(8)], seed=5)
    universe = all_eligible(raster).assign(eligible=~raster["symbol"].isin(["S0/USDT", "S1/USDT"]))
    result = factors.alpha_factors(raster, universe, ["factor_003"])
    last = result.loc[result["ts"] == result["ts"].max()].set_index("symbol")
    assert last.loc[["S0/USDT", "S1/USDT"], "value"].notna().all()
    assert last.loc[["S0/USDT", "S1/USDT"], "value_z"].isna().all()
    among = last.loc[[f"S{k}/USDT" for k in range(2, 8)], "value"]
    clipped = among.clip(*np.quantile(among, [0.01, 0.99]))
    expected = (clipped - clipped.mean()) / clipped.std()
    np.testing.assert_allclose(last.loc[among.index, "value_z"], expected, rtol=1e-12)


def test_fewer_than_five_eligible_have_no_standardised_value() -> None:
    raster = random_raster(600, [f"S{k}/USDT" for k in range(5)])
    four = all_eligible(raster).assign(eligible=raster["symbol"] != "S0/USDT")
    result = factors.alpha_factors(raster, four, NAMES)
    assert result["value"].notna().any()
    assert result["value_z"].isna().all()


def test_a_row_without_a_universe_row_is_not_eligible() -> None:
    raster = random_raster(600, [f"S{k}/USDT" for k in range(6)])
    result = factors.alpha_factors(raster, all_eligible(raster.loc[raster["symbol"] != "S0/USDT"]), NAMES)
    assert result.loc[result["symbol"] == "S0/USDT", "value_z"].isna().all()
    assert result.loc[result["symbol"] == "S1/USDT", "value_z"].notna().any()


def test_a_new_factor_is_one_function_in_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        factors.FACTORS, "range", lambda panel: panel.matrix("high") / (panel.matrix("low") * 0.0)
    )
    raster = random_raster(30, ["AAA/USDT"])
    with np.errstate(divide="ignore"):
        result = factors.alpha_factors(raster, all_eligible(raster), ["range"])
    assert result["value"].isna().all()


@QUICK
@given(
    seed=st.integers(0, 10_000),
    first_hour=st.integers(factors.LOOKBACK_DAYS * 24, N_BARS - 2),
    hours=st.integers(1, 40),
    missing=st.sampled_from([0.0, 0.02, 0.2]),
    extra=st.integers(0, 2),
)
def test_factors_have_the_same_bits_in_any_chunk(
    seed: int, first_hour: int, hours: int, missing: float, extra: int
) -> None:
    raster = random_raster(N_BARS, LISTINGS, seed=seed, missing_share=missing, tick=0.01)
    start = START + first_hour * HOUR
    end = start + hours * HOUR
    assert_chunk_invariant(
        compute, raster, start=start, end=end, lookback_days=factors.LOOKBACK_DAYS, key=KEY
    )
    # Symbols that are not eligible change no bit, not even of the cross-section.
    others = random_raster(N_BARS, [f"A{k}A/USDT" for k in range(extra)] + ["ZZZ/USDT"], seed=seed)
    more = between(pd.concat([raster, others]), midnight(start) - timedelta(days=factors.LOOKBACK_DAYS), end)
    with_others = factors.alpha_factors(more, all_eligible(between(raster, start, end)), NAMES)
    own = with_others.loc[with_others["symbol"].isin(raster["symbol"].unique())]
    assert_same_bits(between(own, start, end), between(compute(raster), start, end), KEY)


@QUICK
@given(seed=st.integers(0, 10_000), hour=st.integers(500, N_BARS - 1))
def test_factors_do_not_look_ahead(seed: int, hour: int) -> None:
    raster = random_raster(N_BARS, LISTINGS, seed=seed, missing_share=0.02)
    assert_no_look_ahead(compute, raster, cut=START + hour * HOUR, key=KEY)


def test_the_declared_lookback_is_needed_and_enough() -> None:
    assert factors.LOOKBACK_BARS == kernels.TS_WINDOW - 1 + 4 + 19 + 1
    raster = random_raster(factors.LOOKBACK_BARS + 1, ["AAA/USDT"], seed=11)
    whole = compute(raster).loc[lambda frame: frame["factor"] == "factor_001", "value"].iloc[-1]
    late = [
        compute(raster.iloc[first:]).loc[lambda frame: frame["factor"] == "factor_001", "value"].iloc[-1]
        for first in (1, 2, 3, 30)
    ]
    assert any(value != whole for value in late)
