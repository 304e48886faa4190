from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import talib
from hypothesis import given
from hypothesis import strategies as st

from crypto_assets.quant import kernels
from crypto_assets.quant.panel import longest_pause
from crypto_assets_tests.quant.rasters import HOUR, QUICK

RNG_SHAPE = (400, 3)

PAUSE_BARS = longest_pause(HOUR)
ROLLING = {
    "total": lambda x, origin=0, first=0: kernels.rolling_total(x, 30, 10, origin=origin, first=first),
    "std": lambda x, origin=0, first=0: kernels.rolling_std(x, 30, 10, ddof=1, origin=origin, first=first),
    "high": lambda x, origin=0, first=0: kernels.rolling_high(x, 30, 10, first=first),
    "low": lambda x, origin=0, first=0: kernels.rolling_low(x, 30, 10, first=first),
    "argmax": lambda x, origin=0, first=0: kernels.rolling_argmax(x, 30, 10, first=first),
    "correlation": lambda x, origin=0, first=0: kernels.rolling_correlation(
        x, np.sqrt(np.abs(x)), 30, 10, first=first
    ),
    "rank": lambda x, origin=0, first=0: kernels.ts_rank(x, 30, 10, first=first),
    "ema": lambda x, origin=0, first=0: kernels.ema(x, 3, reach=PAUSE_BARS, first=first),
    "wilder": lambda x, origin=0, first=0: kernels.wilder(x, 2, reach=PAUSE_BARS, first=first),
}
#: Rows before the current one that the kernels above may read.
REACH = dict.fromkeys(ROLLING, 29) | {
    "ema": kernels.average_lookback(2 / 4, PAUSE_BARS),
    "wilder": kernels.average_lookback(1 / 2, PAUSE_BARS),
}


def noise(
    seed: int, shape: tuple[int, int] = RNG_SHAPE, missing: float = 0.1, decimals: int = 2
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = np.round(rng.normal(size=shape), decimals)
    x[rng.random(shape) < missing] = np.nan
    return x


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(((a.view(np.int64) == b.view(np.int64)) | (np.isnan(a) & np.isnan(b))).all())


@pytest.mark.parametrize("bad", [np.zeros(5), np.zeros((2, 2, 2))])
def test_a_kernel_refuses_anything_but_a_matrix(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="time x listing"):
        kernels.rolling_total(bad, 3, 1, origin=0)


@pytest.mark.parametrize("min_present", [0, 4])
def test_a_kernel_refuses_a_minimum_outside_its_window(min_present: int) -> None:
    with pytest.raises(ValueError, match="min_present"):
        kernels.rolling_total(np.zeros((5, 1)), 3, min_present, origin=0)


def test_a_kernel_refuses_a_first_row_before_its_matrix() -> None:
    with pytest.raises(ValueError, match="first row"):
        kernels.rolling_high(np.zeros((5, 1)), 3, 1, first=-1)


def test_a_correlation_refuses_matrices_of_different_shape() -> None:
    with pytest.raises(ValueError, match="must be equal"):
        kernels.rolling_correlation(np.zeros((5, 1)), np.zeros((5, 2)), 3, 3)


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.5])
def test_a_finite_average_refuses_weights_outside_its_range(alpha: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        kernels.finite_average(np.zeros((5, 1)), alpha, reach=0)


def test_rolling_values_by_hand() -> None:
    x = np.array([[1.0], [np.nan], [3.0], [8.0]])
    total = kernels.rolling_total(x, 3, 2, origin=0)
    sd = kernels.rolling_std(x, 3, 2, ddof=1, origin=0)
    assert total[2:].ravel().tolist() == [4.0, 11.0]
    assert sd[2:].ravel() == pytest.approx([np.sqrt(2.0), np.sqrt(12.5)], rel=1e-15)
    assert kernels.rolling_mean(x, 3, 2, origin=0)[2:].ravel().tolist() == [2.0, 5.5]
    assert kernels.rolling_high(x, 3, 2)[2:].ravel().tolist() == [3.0, 8.0]
    assert kernels.rolling_low(x, 3, 2)[2:].ravel().tolist() == [1.0, 3.0]
    assert np.isnan(total[:2]).all()


def test_slopes_and_shapes_by_hand() -> None:
    x = np.array([[2.0], [np.nan], [8.0], [11.0], [5.0]])
    assert kernels.rolling_slope(x, 4, 3, origin=0).ravel()[3] == pytest.approx(3.0, rel=1e-15)
    assert kernels.rolling_slope(x, 3, 3, origin=0).ravel()[4] == pytest.approx(-1.5, rel=1e-15)
    area = kernels.rolling_area(x, (2, 5), (2, 4))
    assert area[0].ravel()[[3, 4]].tolist() == [-1.0, 1.0]
    assert area[1].ravel()[4] == (-3.0 + 3.0 + 6.0) / (3.0 + 3.0 + 6.0)
    # Below the mean of 6.5 lie the 2 and, apart from it, the 5.
    assert kernels.rolling_strike_below_mean(x, 5, 4).ravel()[4] == 1.0
    assert kernels.rolling_argmax_frac(x, 5, 4).ravel()[4] == 3 / 5
    assert kernels.rolling_msdc(x, 5, 4).ravel()[4] == ((5.0 - 11.0) - (8.0 - 2.0)) / (2 * 2)


def test_infinities_count_as_missing() -> None:
    x = np.array([[1.0], [np.inf], [3.0]])
    for bad in (np.inf, -np.inf):
        x[1] = bad
        assert kernels.rolling_total(x, 3, 2, origin=0).ravel()[2] == 4.0
        assert np.isnan(kernels.rolling_total(x, 3, 1, origin=0).ravel()[1])


def test_argmax_counts_from_the_oldest_row_and_takes_the_first_of_equals() -> None:
    x = np.array([[1.0], [5.0], [5.0], [2.0], [5.0], [4.0]])
    assert kernels.rolling_argmax(x, 3, 3)[2:].ravel().tolist() == [1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("seed", range(4))
def test_rolling_kernels_agree_with_pandas(seed: int) -> None:
    x, y = noise(seed), noise(seed + 100)
    frame, other = pd.DataFrame(x), pd.DataFrame(y)
    rolling = frame.rolling(30, min_periods=10)
    expected = {
        "total": rolling.sum(),
        "std": rolling.std(),
        "high": rolling.max(),
        "low": rolling.min(),
        "rank": rolling.rank(pct=True),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(
            ROLLING[name](x), values.where(frame.notna()), rtol=1e-9, atol=1e-11, err_msg=name
        )
    pairs = frame.where(other.notna()).rolling(30, min_periods=10).corr(other)
    np.testing.assert_allclose(
        kernels.rolling_correlation(x, y, 30, 10),
        pairs.where(frame.notna() & other.notna()),
        rtol=1e-9,
        atol=1e-11,
    )


def test_a_rank_averages_ties_and_counts_only_what_is_present() -> None:
    x = np.array([[2.0], [2.0], [np.nan], [2.0], [1.0], [3.0]])
    assert kernels.ts_rank(x, 4, 3).ravel()[3:].tolist() == [2 / 3, 1 / 3, 1.0]


def test_the_default_rank_needs_360_of_720_values() -> None:
    x = np.arange(800.0)[:, None]
    ranks = kernels.ts_rank(x).ravel()
    assert np.isnan(ranks[:359]).all()
    assert (ranks[359:] == 1.0).all()
    assert kernels.ts_rank(-x).ravel()[-1] == 1 / 720


def test_constants_have_an_exact_average_no_deviation_and_no_correlation() -> None:
    x = np.full((50, 2), 0.1)
    assert (kernels.rolling_std(x, 30, 10, ddof=1, origin=0)[10:] == 0.0).all()
    assert np.isnan(kernels.rolling_correlation(x, noise(1, (50, 2), 0.0), 30, 10)).all()
    assert (kernels.ema(np.full((200, 1), 0.1), 5, reach=PAUSE_BARS)[70:] == 0.1).all()


def test_a_deviation_survives_a_level_a_billion_times_larger() -> None:
    x = 1e9 + np.tile([[0.0], [1.0]], (50, 1))
    sd = kernels.rolling_std(x, 10, 10, ddof=1, origin=0)[20:].ravel()
    assert sd == pytest.approx(np.std([0, 1] * 5, ddof=1), rel=1e-12)


@QUICK
@given(
    name=st.sampled_from(sorted(ROLLING)),
    seed=st.integers(0, 10_000),
    first=st.integers(100, 300),
    length=st.integers(1, 100),
    extra=st.integers(0, 3),
    decimals=st.sampled_from([0, 1, 6]),
)
def test_every_kernel_has_the_same_bits_in_any_chunk(
    name: str, seed: int, first: int, length: int, extra: int, decimals: int
) -> None:
    x = noise(seed, decimals=decimals)
    x[120:150, 0] = np.nan
    whole = ROLLING[name](x)[first : first + length]
    begin = max(first - REACH[name], 0)
    chunk = ROLLING[name](x[begin : first + length], begin, first - begin)
    assert same_bits(whole, chunk[first - begin :])
    assert np.isnan(chunk[: first - begin]).all()
    wide = np.hstack([noise(seed + 1, (len(x), extra)), x])
    assert same_bits(whole, ROLLING[name](wide)[first : first + length, extra:])


def test_kernels_accept_empty_matrices() -> None:
    for shape in ((0, 3), (5, 0), (0, 0)):
        for name, kernel in ROLLING.items():
            assert kernel(np.zeros(shape)).shape == shape, name
        for kernel in (kernels.xs_zscore, kernels.xs_winsorise):
            assert kernel(np.zeros(shape)).shape == shape


def test_kernels_do_not_change_their_input() -> None:
    x = noise(3)
    before = x.copy()
    for kernel in (*ROLLING.values(), kernels.xs_zscore, kernels.xs_winsorise):
        kernel(x)
    assert same_bits(x, before)


def test_a_finite_average_equals_its_definition() -> None:
    x = noise(5, (300, 1), missing=0.2)
    alpha, k = 0.25, kernels.average_bars(0.25)
    result = kernels.finite_average(x, alpha, reach=PAUSE_BARS).ravel()
    for t in range(150, 300):
        window = x[t - k + 1 : t + 1, 0][::-1]
        weights = np.where(np.isnan(window), 0.0, (1 - alpha) ** np.arange(k))
        if np.isnan(x[t, 0]) or weights.sum() < 0.5 * ((1 - alpha) ** np.arange(k)).sum():
            assert np.isnan(result[t])
        else:
            assert result[t] == pytest.approx(
                np.nansum(weights * window) / weights.sum(), rel=1e-12, abs=1e-12
            )


@pytest.mark.parametrize("span", [1, 2, 3, 14, 30, 200])
def test_a_finite_average_of_a_constant_is_the_constant(span: int) -> None:
    x = np.full((3000, 1), 1e9 / 3)
    x[np.random.default_rng(span).random(x.shape) < 0.1] = np.nan
    values = kernels.ema(x, span, reach=PAUSE_BARS)
    assert (values[~np.isnan(values)] == 1e9 / 3).all()
    assert np.isfinite(values[-500:]).any()


def test_a_finite_average_needs_history_of_k_rows() -> None:
    k = kernels.average_bars(2 / 6)
    values = kernels.ema(np.arange(1.0, 200.0)[:, None], 5, reach=0).ravel()
    assert np.isnan(values[: k - 1]).all()
    assert not np.isnan(values[k - 1 :]).any()


@pytest.mark.parametrize("reach", [0, 48, 576])
def test_the_history_of_a_finite_average_may_begin_so_much_earlier_as_it_is_told(reach: int) -> None:
    k = kernels.average_bars(2 / 6)
    for pause in (reach, reach + 1):
        x = np.ones((k + pause, 1))
        x[1 : pause + 1] = np.nan
        # The last row's window begins with the last missing one, `pause` rows after the value before the pause.
        assert np.isfinite(kernels.ema(x, 5, reach=reach)[-1, 0]) == (pause <= reach)


def test_a_finite_average_is_missing_while_less_than_half_of_its_weight_is_present() -> None:
    x = np.ones((300, 1))
    x[200:220] = np.nan
    values = kernels.wilder(x, 4, reach=PAUSE_BARS).ravel()
    # After a long gap the newest n rows weigh 1 - 0.75^n: half is passed with the third.
    assert np.isnan(values[200:222]).all()
    assert (values[222:] == 1.0).all()


def test_averages_agree_with_ta_lib_after_warm_up() -> None:
    prices = 100.0 * np.exp(np.cumsum(np.random.default_rng(7).normal(0, 0.01, 3000)))
    warm = 3 * kernels.average_bars(2 / 49)
    np.testing.assert_allclose(
        kernels.ema(prices[:, None], 48, reach=0).ravel()[warm:], talib.EMA(prices, 48)[warm:], rtol=1e-8
    )


def test_lagged_moves_rows_down() -> None:
    x = np.array([[1.0], [2.0], [3.0]])
    assert kernels.lagged(x, 1).ravel().tolist()[1:] == [1.0, 2.0]
    assert np.isnan(kernels.lagged(x, 5)).all()


def test_cross_sectional_zscores_by_hand() -> None:
    x = np.array([[5.0, 1.0, np.nan, 1.0, 7.0, 9.0], [1.0, 2.0, np.nan, np.nan, 3.0, 4.0]])
    z = kernels.xs_zscore(x)
    present = x[0, [0, 1, 3, 4, 5]]
    assert z[0, [0, 1, 3, 4, 5]] == pytest.approx((present - present.mean()) / present.std(ddof=1), rel=1e-14)
    assert np.isnan(z[1]).all() and np.isnan(z[0, 2])


def test_a_cross_section_of_equals_has_no_zscore() -> None:
    assert np.isnan(kernels.xs_zscore(np.full((2, 7), 0.1))).all()


def test_winsorising_clips_at_the_interpolated_quantiles_of_what_is_present() -> None:
    x = np.array([[np.nan, *range(101)]], dtype=np.float64)
    clipped = kernels.xs_winsorise(x)
    assert np.isnan(clipped[0, 0])
    assert (clipped[0, 1], clipped[0, 101]) == (1.0, 99.0)
    few = np.array([[0.0, 10.0, np.nan]])
    assert kernels.xs_winsorise(few)[0, :2] == pytest.approx([0.1, 9.9])
    np.testing.assert_allclose(
        [
            kernels.xs_winsorise(noise(2, (1, 40), 0.0)).min(),
            kernels.xs_winsorise(noise(2, (1, 40), 0.0)).max(),
        ],
        np.quantile(noise(2, (1, 40), 0.0), [0.01, 0.99]),
        rtol=1e-12,
    )


@QUICK
@given(seed=st.integers(0, 10_000), empty=st.integers(1, 9), rows=st.integers(1, 20))
def test_empty_columns_and_other_rows_change_no_bit_of_a_cross_section(
    seed: int, empty: int, rows: int
) -> None:
    x = noise(seed, (40, 11), missing=0.2, decimals=6)
    rng = np.random.default_rng(seed)
    places = np.sort(rng.integers(0, 12, empty))
    wide = np.insert(x, places, np.nan, axis=1)
    kept = ~np.isnan(np.insert(np.zeros_like(x), places, np.nan, axis=1)[0])
    for kernel in (kernels.xs_zscore, kernels.xs_winsorise):
        assert same_bits(kernel(x)[:rows], kernel(np.ascontiguousarray(wide[:rows]))[:, kept])
