"""Statistics of a column over windows: moments, runs, places of extremes, area and trend.

Here: which statistics there are, and their columns. Not here: the arithmetic (``kernels.py``) and what relative modes
mean (``relative.py``). Found by name through the package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple, Self

import numpy as np
from pydantic import model_validator

from crypto_assets.quant import kernels
from crypto_assets.quant.generators import relative
from crypto_assets.quant.generators.declared import NOT_NEGATIVE, SHARE, Bounds, Feature, Grid, Windows
from crypto_assets.quant.panel import Panel


class Statistic(NamedTuple):
    """One statistic over a window.

    Attributes
    ----------
    meaning
        What it is; the column and the window are added.
    unit
        Unit, None for that of the column.
    fewest
        Values without which it is missing.
    shortest
        Shortest window, in bars, in which it says anything.
    compute
        Matrix, windows in bars and panel -> one matrix per window.
    bounds
        Least and largest value there can be, rounding included.
    """

    meaning: str
    unit: str | None
    fewest: int
    shortest: int
    compute: Callable[[np.ndarray, Sequence[int], Panel], list[np.ndarray]]
    bounds: Bounds = (None, None)


def present(window: int) -> int:
    """Fewest values that a window must hold: half of it, and never none.

    Examples
    --------
    >>> present(24), present(5), present(1)
    (12, 2, 1)
    """
    return max(1, window // 2)


def _each(kernel: Callable[..., np.ndarray], **options: bool | int) -> Callable[..., list[np.ndarray]]:
    def compute(x: np.ndarray, windows: Sequence[int], panel: Panel) -> list[np.ndarray]:
        return [
            kernel(x, window, present(window), origin=panel.origin, first=panel.first, **options)
            for window in windows
        ]

    return compute


def _each_order_free(kernel: Callable[..., np.ndarray]) -> Callable[..., list[np.ndarray]]:
    def compute(x: np.ndarray, windows: Sequence[int], panel: Panel) -> list[np.ndarray]:
        return [kernel(x, window, present(window), first=panel.first) for window in windows]

    return compute


def _area(x: np.ndarray, windows: Sequence[int], panel: Panel) -> list[np.ndarray]:
    return kernels.rolling_area(
        x, tuple(windows), tuple(present(window) for window in windows), first=panel.first
    )


_SKEW = "adjusted skewness g1 sqrt(n (n - 1)) / (n - 2)"
_KURTOSIS = "adjusted excess kurtosis, 0 for a normal distribution"
_BIASED = {
    "scipy_skew": Statistic("skewness m3 / m2^(3/2)", "1", 2, 2, _each(kernels.rolling_skew, bias=True)),
    "scipy_kurtosis": Statistic(
        "excess kurtosis m4 / m2^2 - 3", "1", 2, 2, _each(kernels.rolling_kurtosis, bias=True)
    ),
}
#: Statistics by name; the ones of scipy without ``bias`` are those of pandas.
STATISTICS = {
    "scipy_skew": Statistic(_SKEW, "1", 3, 3, _each(kernels.rolling_skew, bias=False)),
    "pandas_skew": Statistic(_SKEW, "1", 3, 3, _each(kernels.rolling_skew, bias=False)),
    "scipy_kurtosis": Statistic(_KURTOSIS, "1", 4, 4, _each(kernels.rolling_kurtosis, bias=False)),
    "pandas_kurtosis": Statistic(_KURTOSIS, "1", 4, 4, _each(kernels.rolling_kurtosis, bias=False)),
    "lsbm": Statistic(
        "longest run of values below the mean",
        "1",
        1,
        2,
        _each_order_free(kernels.rolling_strike_below_mean),
        NOT_NEGATIVE,
    ),
    "fmax": Statistic(
        "place of the first maximum (0: oldest) / window",
        "frac",
        1,
        2,
        _each_order_free(kernels.rolling_argmax_frac),
        SHARE,
    ),
    "mean": Statistic("mean", None, 1, 1, _each(kernels.rolling_mean)),
    "std": Statistic(
        "standard deviation (divisor n)", None, 1, 2, _each(kernels.rolling_std, ddof=0), NOT_NEGATIVE
    ),
    # Both sums are rounded alike, step by step, so neither outgrows the other.
    "area": Statistic("sum(x - x_t) / sum|x - x_t|, -1 to 1", "frac", 2, 2, _area, (-1.0, 1.0)),
    "slope": Statistic("least-squares slope per bar", None, 2, 2, _each(kernels.rolling_slope)),
    "msdc": Statistic(
        "mean second derivative (x_n - x_(n-1) - x_2 + x_1) / (2 (n - 2))",
        None,
        3,
        3,
        _each_order_free(kernels.rolling_msdc),
    ),
}
_FUNCTIONS = (
    "scipy_skew",
    "pandas_skew",
    "scipy_kurtosis",
    "pandas_kurtosis",
    "lsbm",
    "fmax",
    "mean",
    "std",
    "area",
    "slope",
)


class Entry(relative.Relative):
    """Statistics of one column.

    Attributes
    ----------
    columns
        The column, one for each entry.
    functions
        Statistics: scipy_skew, pandas_skew, scipy_kurtosis, pandas_kurtosis, lsbm, fmax, mean, std, area, slope.
    windows
        Bars or durations.
    bias
        True: the two scipy functions are not adjusted for the number of values.
    """

    columns: relative.OneColumn
    functions: relative.Texts
    windows: Annotated[Windows, relative.LISTED]
    bias: bool = False

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name in self.functions:
            if name not in _FUNCTIONS:
                raise ValueError(f"there is no function {name}; allowed: {', '.join(_FUNCTIONS)}")
        if self.bias and not any(name in _BIASED for name in self.functions):
            raise ValueError(f"bias is for {' and '.join(_BIASED)}")
        return self


def drafts(
    column: str, unit: str, function: str, statistic: Statistic, windows: Windows, grid: Grid
) -> list[relative.Draft]:
    """Declare one statistic of one column, a draft per window.

    Raises
    ------
    ValueError
        If a window is too short for the statistic.
    """
    made = []
    for window in windows:
        n_bars = grid.bars(window)
        if n_bars < statistic.shortest:
            raise ValueError(
                f"{function} needs windows of at least {statistic.shortest} bars; {window} has {n_bars}"
            )
        made.append(
            relative.Draft(
                name=f"{column}_{function}_{window}",
                unit=unit if statistic.unit is None else statistic.unit,
                meaning=f"{statistic.meaning} of {column} over {window}",
                inputs=(column,),
                parameters=(("function", function), ("window", window)),
                lookback=n_bars - 1,
                warm_up=max(present(n_bars), statistic.fewest) - 1,
                bounds=statistic.bounds,
            )
        )
    return made


def features(entry: Entry, grid: Grid) -> tuple[Feature, ...]:
    """Columns by function, then by window.

    Raises
    ------
    ValueError
        If the column is not there, a window makes no sense, or two columns have one name.
    """
    column = entry.columns[0]
    unit = grid.unit_of(column)
    made = []
    for function in entry.functions:
        plain = drafts(column, unit, function, _statistic(entry, function), entry.windows, grid)
        made += relative.declared(entry, [[draft] for draft in plain])
    return relative.named(entry.names, made)


def compute(entry: Entry, panel: Panel) -> dict[str, np.ndarray]:
    """Compute the matrices of `features`; a window needs half of its values, and the row's own.

    Notes
    -----
    A value reads its own window and nothing later. Missing bars are left out; they are not interpolated.
    """
    grid = relative.grid_of(panel)
    x = panel.matrix(entry.columns[0])
    windows = [grid.bars(window) for window in entry.windows]
    made = []
    for function in entry.functions:
        values = _statistic(entry, function).compute(x, windows, panel)
        made += relative.computed(entry, [[matrix] for matrix in values])
    return dict(zip([feature.name for feature in features(entry, grid)], made, strict=True))


def _statistic(entry: Entry, function: str) -> Statistic:
    return _BIASED[function] if entry.bias and function in _BIASED else STATISTICS[function]
