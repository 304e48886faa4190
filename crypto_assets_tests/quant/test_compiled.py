from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from crypto_assets.quant import compiled, kernels
from crypto_assets_tests.quant.rasters import QUICK

Kernel = Callable[..., np.ndarray]
#: Values of a window that are present, oldest first, and their places in it -> the statistic.
Oracle = Callable[[np.ndarray, np.ndarray], float]


def deviations(values: np.ndarray) -> np.ndarray:
    return values - values.mean()


def ratio(a: float, b: float) -> float:
    return a / b if b > 0 else np.nan


def power(values: np.ndarray, exponent: int) -> float:
    return (deviations(values) ** exponent).mean()


def slope(values: np.ndarray, places: np.ndarray) -> float:
    along = deviations(places.astype(np.longdouble))
    return ratio((along * deviations(values)).sum(), (along * along).sum())


def area(values: np.ndarray, places: np.ndarray) -> float:
    off = values - values[-1]
    return ratio(off.sum(), np.abs(off).sum())


def strike(values: np.ndarray, places: np.ndarray) -> float:
    longest = run = 0
    for below in values < values.mean():
        run = run + 1 if below else 0
        longest = max(longest, run)
    return longest


def second_derivative(values: np.ndarray, places: np.ndarray) -> float:
    return np.diff(values, 2).mean() / 2 if len(values) > 2 else np.nan


def sum_kernel(name: str, **options: bool | int) -> Kernel:
    kernel = getattr(kernels, name)
    return lambda x, w, m, origin, first=0: kernel(x, w, m, origin=origin, first=first, **options)


def free_kernel(name: str) -> Kernel:
    kernel = getattr(kernels, name)
    return lambda x, w, m, origin, first=0: kernel(x, w, m, first=first)


KERNELS: dict[str, Kernel] = {
    "total": sum_kernel("rolling_total"),
    "mean": sum_kernel("rolling_mean"),
    "std": sum_kernel("rolling_std", ddof=0),
    "skew": sum_kernel("rolling_skew", bias=True),
    "kurtosis": sum_kernel("rolling_kurtosis", bias=True),
    "slope": sum_kernel("rolling_slope"),
    "high": free_kernel("rolling_high"),
    "low": free_kernel("rolling_low"),
    "argmax_frac": free_kernel("rolling_argmax_frac"),
    "area": lambda x, w, m, origin, first=0: kernels.rolling_area(x, w, m, first=first)[0],
    "strike": free_kernel("rolling_strike_below_mean"),
    "msdc": free_kernel("rolling_msdc"),
    "rank": free_kernel("ts_rank"),
}

#: `level` is added to totals and means; the others do not depend on it, so they are computed without.
ORACLES: dict[str, Oracle] = {
    "total": lambda values, places: values.sum(),
    "mean": lambda values, places: values.mean(),
    "std": lambda values, places: np.sqrt(power(values, 2)),
    "skew": lambda values, places: ratio(power(values, 3), power(values, 2) ** 1.5),
    "kurtosis": lambda values, places: ratio(power(values, 4), power(values, 2) ** 2) - 3,
    "slope": slope,
    "high": lambda values, places: values.max(),
    "low": lambda values, places: values.min(),
    "argmax_frac": lambda values, places: places[values.argmax()],
    "area": area,
    "strike": strike,
    "msdc": second_derivative,
    "rank": lambda values, places: (
        ((values < values[-1]).sum() + (values <= values[-1]).sum() + 1) / 2 / len(values)
    ),
}
#: Statistics that the level of the values moves.
LEVELLED = {"total", "mean", "high", "low"}
#: Lengths around those of a block, 16 below 65 rows, 64 up to 4096 and then 256.
WINDOWS = (1, 2, 15, 16, 17, 48, 63, 64, 65, 128, 192, 1000)


def walk(seed: int, n: int = 500, columns: int = 1, missing: float = 0.1) -> np.ndarray:
    """Steps of 1/1024: a level of a billion added and taken away again leaves every digit."""
    rng = np.random.default_rng(seed)
    x = np.round(1024 * np.cumsum(rng.normal(size=(n, columns)), axis=0)) / 1024
    x[rng.random(x.shape) < missing] = np.nan
    x[n // 3 : n // 3 + 40, 0] = np.nan
    return x


def expected(
    name: str, x: np.ndarray, window: int, min_present: int, rows: range, level: float = 0.0
) -> np.ndarray:
    result = np.full(len(rows), np.nan)
    for i, row in enumerate(rows):
        values = x[max(row - window + 1, 0) : row + 1, 0].astype(np.longdouble)
        present = np.flatnonzero(~np.isnan(values))
        if not np.isnan(values[-1]) and len(present) >= min_present:
            places = present + window - len(values)
            n = len(present) if name == "total" else 1
            shift = n * np.longdouble(level) if name in LEVELLED else np.longdouble(0.0)
            result[i] = ORACLES[name](values[present], places) + shift
    return result / window if name == "argmax_frac" else result


def assert_close(name: str, actual: np.ndarray, wanted: np.ndarray) -> None:
    # Differences that nearly cancel are compared on the scale of the whole series.
    scale = np.nanmax(np.abs(wanted), initial=0.0)
    np.testing.assert_allclose(actual, wanted, rtol=1e-10, atol=1e-12 * scale, err_msg=name)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return bool(((a.view(np.int64) == b.view(np.int64)) | (np.isnan(a) & np.isnan(b))).all())


EVERY_KERNEL = pytest.mark.parametrize("name", KERNELS)


@EVERY_KERNEL
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("unit", "level"), [(1.0, 0.0), (1.0, 1e9), (2.0**-30, 2.0**-17), (2.0**180, 0.0)])
def test_every_statistic_equals_its_definition_at_any_level_and_scale(
    name: str, window: int, unit: float, level: float
) -> None:
    x, least = walk(3), max(1, window // 2)
    rows = range(window % 5, len(x), 5)
    actual = KERNELS[name](x * unit + level, window, least, 26_297_281)
    assert_close(name, actual[rows.start :: 5, 0], expected(name, x * unit, window, least, rows, level))


@EVERY_KERNEL
@pytest.mark.parametrize("window", [4096, 4097, 5000])
def test_long_windows_equal_their_definition(name: str, window: int) -> None:
    x = walk(4, n=5400)
    rows = range(2000, len(x), 153)
    assert_close(
        name,
        KERNELS[name](x, window, 10, 7)[rows.start :: rows.step, 0],
        expected(name, x, window, 10, rows),
    )


@pytest.mark.parametrize("window", [5, 16, 20, 64, 100])
def test_moments_agree_with_pandas_and_scipy(window: int) -> None:
    x = np.random.default_rng(5).normal(size=(400, 1))
    x[100:110] = np.nan
    rolling = pd.Series(x[:, 0]).rolling(window, min_periods=4)
    present = ~np.isnan(x[:, 0])
    for actual, wanted in (
        (kernels.rolling_std(x, window, 4, ddof=1, origin=3), rolling.std()),
        (kernels.rolling_skew(x, window, 4, bias=False, origin=3), rolling.skew()),
        (kernels.rolling_kurtosis(x, window, 4, bias=False, origin=3), rolling.kurt()),
        (
            kernels.rolling_skew(x, window, 4, bias=True, origin=3),
            rolling.apply(lambda values: stats.skew(values[~np.isnan(values)]), raw=True),
        ),
        (
            kernels.rolling_kurtosis(x, window, 4, bias=True, origin=3),
            rolling.apply(lambda values: stats.kurtosis(values[~np.isnan(values)]), raw=True),
        ),
    ):
        np.testing.assert_allclose(actual.ravel(), wanted.where(present), rtol=1e-9, atol=1e-9)


def test_a_statistic_is_missing_below_the_values_it_needs() -> None:
    x = np.array([[1.0], [2.0], [4.0], [7.0]])
    needed = {
        2: kernels.rolling_std(x, 4, 1, ddof=1, origin=0),
        3: kernels.rolling_skew(x, 4, 1, bias=False, origin=0),
        4: kernels.rolling_kurtosis(x, 4, 1, bias=False, origin=0),
    }
    needed_by_msdc = kernels.rolling_msdc(x, 4, 1)
    for n, values in (*needed.items(), (2, kernels.rolling_slope(x, 4, 1, origin=0)), (3, needed_by_msdc)):
        assert np.isnan(values[: n - 1]).all()
        assert np.isfinite(values[n - 1 :]).all()


@pytest.mark.parametrize("value", [0.1, 1e-5 / 3, 1e9 + 1 / 3, -7.7e-40])
@pytest.mark.parametrize("window", WINDOWS)
def test_a_constant_has_its_own_mean_and_no_spread_whatever_came_before(value: float, window: int) -> None:
    x = walk(6)
    x[200:] = np.where(np.isnan(x[200:]), np.nan, value)
    x[199] = 1e12
    first = 200 + window - 1
    flat = x[min(first, len(x)) :, 0]
    present = ~np.isnan(flat)
    parts = {name: KERNELS[name](x, window, 1, 5)[first:, 0][present] for name in KERNELS}
    for name in ("mean", "high", "low"):
        assert (parts[name] == value).all(), name
    for name in ("std", "strike"):
        assert (parts[name] == 0.0).all(), name
    for name in ("skew", "kurtosis", "area"):
        assert np.isnan(parts[name]).all(), name
    assert (parts["slope"][~np.isnan(parts["slope"])] == 0.0).all()
    assert (parts["msdc"][~np.isnan(parts["msdc"])] == 0.0).all()


@EVERY_KERNEL
def test_a_scale_that_is_a_power_of_two_changes_no_digit(name: str) -> None:
    x = walk(7)
    unit = 2.0**40
    scaled = {"total", "mean", "std", "slope", "high", "low", "msdc"}
    for window in (7, 40, 100):
        plain, large = (KERNELS[name](matrix, window, 3, 11) for matrix in (x, x * unit))
        assert same_bits(large, plain * unit if name in scaled else plain)


@EVERY_KERNEL
def test_numbers_too_large_for_a_statistic_give_nothing_and_never_an_infinity(name: str) -> None:
    x = np.where(np.arange(200) % 3 == 0, 1.7e308, -1.7e308)[:, None]
    for window in (3, 20, 100):
        assert not np.isinf(KERNELS[name](x, window, 1, 0)).any()


@EVERY_KERNEL
@QUICK
@given(
    seed=st.integers(0, 10_000),
    window=st.sampled_from([1, 2, 5, 16, 17, 33, 64, 65, 130, 200]),
    origin=st.integers(-100, 30_000_000),
    first=st.integers(0, 360),
    length=st.integers(1, 60),
    ahead=st.integers(0, 80),
)
def test_every_chunk_has_the_bits_of_the_whole_and_reads_its_windows_alone(
    name: str, seed: int, window: int, origin: int, first: int, length: int, ahead: int
) -> None:
    kernel, least = KERNELS[name], max(1, window // 3)
    x = walk(seed, n=420, columns=2)
    whole = kernel(x, window, least, origin)
    begin, end = max(first - window + 1, 0), first + length
    chunk = kernel(x[begin:end], window, least, origin + begin, first - begin)
    assert same_bits(chunk[first - begin :], whole[first:end])
    assert np.isnan(chunk[: first - begin]).all()
    # The same listing on a longer grid, beside one that lived before.
    other = np.vstack([walk(seed + 1, n=ahead, missing=0.0), x[:, :1]])
    wide = np.hstack([other, np.vstack([np.full((ahead, 2), np.nan), x])])
    assert same_bits(kernel(wide, window, least, origin - ahead)[ahead:, 1:], whole)


@QUICK
@given(
    values=st.lists(st.sampled_from([np.nan, 0.0, 1.0, 2.0, 3.0]), min_size=1, max_size=60),
    window=st.integers(1, 40),
    least=st.integers(1, 5),
)
def test_ties_and_gaps_are_counted_as_defined(values: list[float], window: int, least: int) -> None:
    x = np.array(values)[:, None]
    for name in ("high", "low", "argmax_frac", "strike", "rank", "area"):
        wanted = expected(name, x, window, min(least, window), range(len(x)))
        actual = KERNELS[name](x, window, min(least, window), 0).ravel()
        np.testing.assert_allclose(actual, wanted, rtol=1e-15, err_msg=name)


def test_areas_of_several_windows_are_those_of_each_in_the_order_asked() -> None:
    x = walk(8, columns=3)
    windows, least = (60, 5, 300, 60), (30, 2, 100, 50)
    together = kernels.rolling_area(x, windows, least, first=20)
    assert len(together) == 4
    for window, minimum, matrix in zip(windows, least, together, strict=True):
        assert same_bits(matrix, kernels.rolling_area(x, window, minimum, first=20)[0])


@pytest.mark.parametrize(("windows", "least"), [((), ()), ((3, 4), (1,)), ((3, 4), (1, 5))])
def test_areas_refuse_windows_without_a_minimum(windows: tuple[int, ...], least: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="minim|min_present"):
        kernels.rolling_area(np.zeros((5, 1)), windows, least)


@pytest.mark.parametrize("window", [1, 16, 64, 65, 4096, 4097, 100_000])
def test_blocks_fit_the_table_of_reciprocals_and_grow_with_the_window(window: int) -> None:
    block = compiled.block_length(window)
    assert block in (16, 64, 256)
    assert block <= compiled.block_length(window + 1)


def test_any_layout_of_a_matrix_gives_the_same_and_one_compiled_form_serves_all() -> None:
    x = walk(9, columns=4)
    frozen, wide = x.copy(), np.repeat(x, 2, axis=1)
    frozen.flags.writeable = False
    for name, kernel in KERNELS.items():
        result = kernel(x, 20, 5, 0)
        for other in (frozen, np.asfortranarray(x), wide[:, ::2]):
            assert same_bits(kernel(other, 20, 5, 0), result), name
    kernels.rolling_std(x.astype(np.float32), 20, 5, ddof=1, origin=3)
    loops = {name: loop for name, loop in vars(compiled).items() if hasattr(loop, "signatures")}
    used = ("windowed", "extremes", "areas", "strikes", "second_derivatives", "ranks")
    assert {name: len(loops[name].signatures) for name in used} == dict.fromkeys(used, 1)
