"""The kline set of seed C ("itblib"): rolling aggregates of bars as percent of the same aggregate over a base window.

Here: the families of columns, their formulas and defaults, for spot bars and, with a prefix, for those of a contract.
Not here: rolling arithmetic (``kernels.py``). Found by name through ``generators``; ``depth`` shares its words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from crypto_assets.quant import kernels
from crypto_assets.quant.generators.declared import Feature, Grid, Options, Window, Windows
from crypto_assets.quant.generators.itbstats import present
from crypto_assets.quant.generators.relative import grid_of
from crypto_assets.quant.panel import Panel

Function = Literal[
    "close",
    "close_std",
    "volume",
    "span",
    "trades",
    "tb_base",
    "tb_quote",
    "close_area",
    "close_trend",
    "volume_trend",
]

_BARS_AND_SHAPES = ("close", "close_std", "volume", "span", "trades", "close_area", "close_trend")
_SPOT = {
    "base_window": 1440,
    "windows": (1, 5, 15, 60, 180, 720),
    "area_windows": (60, 120, 180, 300, 720),
    "functions": (*_BARS_AND_SHAPES[:5], "tb_base", "tb_quote", *_BARS_AND_SHAPES[5:]),
}
_FUTURES = {
    "base_window": 360,
    "windows": (1, 2, 5, 20, 60, 180),
    "area_windows": (20, 60, 120, 180),
    "functions": _BARS_AND_SHAPES,
}


class Entry(Options):
    """One kline set; without parameters that of seed C's first version (51 columns, or 38 with ``futures_``).

    Attributes
    ----------
    prefix
        Of the input columns and of the names: empty for spot, ``futures_`` for the contract's columns.
    base_window
        What the aggregates are related to; 1440, with the prefix ``futures_`` 360. At least 2 bars.
    windows
        Of the aggregates and trends; 1, 5, 15, 60, 180, 720, with ``futures_`` 1, 2, 5, 20, 60, 180.
    area_windows
        Of ``close_area``; 60, 120, 180, 300, 720, with ``futures_`` 20, 60, 120, 180.
    functions
        Which columns: close, close_std, volume, span, trades, tb_base, tb_quote, close_area, close_trend,
        volume_trend; by default all but volume_trend, with ``futures_`` no tb_base and tb_quote either.
    use_differences
        Take close, volume and trades as percent changes from bar to bar.

    Notes
    -----
    The seed, too, counts its windows in bars, which are minutes there.
    """

    prefix: str = Field("", pattern=r"^([a-z][a-z0-9_]*_)?$")
    base_window: Window
    windows: Windows
    area_windows: Windows
    functions: tuple[Function, ...] = Field(min_length=1)
    use_differences: bool = False

    @model_validator(mode="before")
    @classmethod
    def _seeds_defaults(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        return {**(_FUTURES if raw.get("prefix") == "futures_" else _SPOT), **raw}

    @field_validator("functions")
    @classmethod
    def _each_once(cls, functions: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(functions)) < len(functions):
            raise ValueError(f"{', '.join(functions)} names a function twice; name each once")
        return functions


class _Bars:
    # The inputs of an entry as matrices, each made once.
    def __init__(self, entry: Entry, panel: Panel) -> None:
        self._entry, self._panel = entry, panel

    def _raw(self, column: str) -> np.ndarray:
        return self._panel.matrix(self._entry.prefix + column)

    def _changing(self, column: str) -> np.ndarray:
        values = self._raw(column)
        if not self._entry.use_differences:
            return values
        before = kernels.lagged(values, 1)
        return 100.0 * (values - before) / kernels.positive(before)

    @cached_property
    def close(self) -> np.ndarray:
        return self._changing("close")

    @cached_property
    def volume(self) -> np.ndarray:
        return self._changing("volume_base")

    @cached_property
    def trades(self) -> np.ndarray:
        return self._changing("n_trades")

    @cached_property
    def span(self) -> np.ndarray:
        return self._raw("high") - self._raw("low")

    @cached_property
    def weighted(self) -> np.ndarray:
        return self.close * self._raw("volume_base")

    @cached_property
    def weight(self) -> np.ndarray:
        return np.where(np.isnan(self.weighted), np.nan, self._raw("volume_base"))

    @cached_property
    def tb_base(self) -> tuple[np.ndarray, np.ndarray]:
        return _shares(self._raw("taker_buy_base"), self._raw("volume_base"))

    @cached_property
    def tb_quote(self) -> tuple[np.ndarray, np.ndarray]:
        return _shares(self._raw("taker_buy_quote"), self._raw("turnover_quote"))

    def sum(self, x: np.ndarray, n: int, min_present: int) -> np.ndarray:
        return kernels.rolling_total(x, n, min_present, origin=self._panel.origin, first=self._panel.first)

    def mean(self, x: np.ndarray, n: int) -> np.ndarray:
        return kernels.rolling_mean(x, n, present(n), origin=self._panel.origin, first=self._panel.first)

    def std(self, x: np.ndarray, n: int) -> np.ndarray:
        return kernels.rolling_std(
            x, n, present(n), ddof=0, origin=self._panel.origin, first=self._panel.first
        )

    def slope(self, x: np.ndarray, n: int) -> np.ndarray:
        return kernels.rolling_slope(
            x, n, max(2, present(n)), origin=self._panel.origin, first=self._panel.first
        )

    def area(self, x: np.ndarray, windows: tuple[int, ...]) -> list[np.ndarray]:
        least = tuple(max(2, present(n)) for n in windows)
        return kernels.rolling_area(x, windows, least, first=self._panel.first)


def _shares(part: np.ndarray, whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Shares of bars with volume, and the same with 0 in bars without: these have a value, but no share.
    share = part / kernels.positive(whole)
    return share, np.where((whole == 0) & ~np.isnan(part), 0.0, share)


def _mean_price(bars: _Bars, n: int) -> np.ndarray:
    least = present(n)
    return bars.sum(bars.weighted, n, least) / kernels.positive(bars.sum(bars.weight, n, least))


def _mean_share(bars: _Bars, shares: tuple[np.ndarray, np.ndarray], n: int) -> np.ndarray:
    share, filled = shares
    n_shares = kernels.count_present(share, n)
    return bars.sum(filled, n, 1) / np.where(n_shares >= present(n), n_shares, np.nan)


@dataclass(frozen=True)
class _Family:
    # `aggregate` is related to the base window; without it the family is an area or a trend of its own windows.
    meaning: str
    inputs: tuple[str, ...]
    aggregate: Callable[[_Bars, int], np.ndarray] | None = None
    least_bars: int = 1
    differs: bool = False


_FAMILIES: dict[str, _Family] = {
    "close": _Family(
        "mean of close weighted by volume, sum(close x volume) / sum(volume)",
        ("close", "volume_base"),
        _mean_price,
        differs=True,
    ),
    "close_std": _Family(
        "standard deviation of close (divided by n)",
        ("close",),
        lambda bars, n: bars.std(bars.close, n),
        least_bars=2,
        differs=True,
    ),
    "volume": _Family(
        "mean volume", ("volume_base",), lambda bars, n: bars.mean(bars.volume, n), differs=True
    ),
    "span": _Family("mean of high - low", ("high", "low"), lambda bars, n: bars.mean(bars.span, n)),
    "trades": _Family(
        "mean number of trades", ("n_trades",), lambda bars, n: bars.mean(bars.trades, n), differs=True
    ),
    "tb_base": _Family(
        "mean of taker buys / volume, of bars with volume",
        ("taker_buy_base", "volume_base"),
        lambda bars, n: _mean_share(bars, bars.tb_base, n),
    ),
    "tb_quote": _Family(
        "mean of taker buys / turnover, of bars with turnover",
        ("taker_buy_quote", "turnover_quote"),
        lambda bars, n: _mean_share(bars, bars.tb_quote, n),
    ),
    "close_area": _Family(
        "sum(x_i - x_t) / sum|x_i - x_t| of close, 1 where the whole window lies above the row's own close",
        ("close",),
        least_bars=2,
        differs=True,
    ),
    "close_trend": _Family("least-squares slope of close", ("close",), least_bars=2, differs=True),
    "volume_trend": _Family("least-squares slope of volume", ("volume_base",), least_bars=2, differs=True),
}


def features(entry: Entry, grid: Grid) -> tuple[Feature, ...]:
    """Declare the columns: function by function, windows in their order.

    Raises
    ------
    ValueError
        If an input column is missing, two windows are equally long, a window equals the base, or a function has no
        window of the two bars that it needs.
    """
    base = grid.bars(entry.base_window)
    if base < 2:
        raise ValueError(f"base_window of {entry.base_window} is one bar; it needs at least two")
    return tuple(
        _feature(entry, grid, function, window, n, base)
        for function in entry.functions
        for window, n in _windows(entry, grid, function).items()
    )


def compute(entry: Entry, panel: Panel) -> dict[str, np.ndarray]:
    """Compute the columns of `features`: (n_times, n_listings) each.

    ``close_w``, ``close_std_w``, ``volume_w``, ``span_w``, ``trades_w``, ``tb_base_w`` and ``tb_quote_w`` are
    100 x (aggregate over w - aggregate over the base) / aggregate over the base; ``close_area_w`` lies in [-1, 1];
    trends are in units a bar.

    Notes
    -----
    Reads the longer of w and base, and one bar more with ``use_differences``. Formulas: seed C, ``itblib``. Where it
    differs from the seed:

    - Missing bars are left out and never interpolated, and a row without the value itself is missing; the seed takes
      the row's window all the same. Both ask for half of a window, max(1, w // 2) bars. A weighted close counts bars
      that have both close and volume.
    - A division by zero (a flat base, no volume) is missing; the seed has infinities there.
    - Of bars without volume the share of taker buys is left out; the rows themselves have a value.
    - With ``use_differences`` closes are still weighted by volume and taker buys divided by it; the seed overwrites
      volume with its changes first, so that its weights are negative and its shares no shares. A change from zero or
      across a missing bar is missing.
    """
    bars, grid = _Bars(entry, panel), grid_of(panel)
    base = grid.bars(entry.base_window)
    result: dict[str, np.ndarray] = {}
    for function in entry.functions:
        windows, aggregate = _windows(entry, grid, function), _FAMILIES[function].aggregate
        if aggregate is not None:
            whole = aggregate(bars, base)
            made = [percent_of(aggregate(bars, n), whole) for n in windows.values()]
        elif function == "close_area":
            made = bars.area(bars.close, tuple(windows.values()))
        else:
            values = bars.close if function == "close_trend" else bars.volume
            made = [bars.slope(values, n) for n in windows.values()]
        names = [_name(entry, function, window) for window in windows]
        result |= dict(zip(names, made, strict=True))
    return result


def percent_of(values: np.ndarray, base: np.ndarray) -> np.ndarray:
    """100 x (values - base) / base; NaN where either is missing or the base is 0.

    Examples
    --------
    >>> percent_of(np.array([3.0, 1.0, 0.0]), np.array([2.0, 0.0, 0.0]))
    array([50., nan, nan])
    """
    return 100.0 * (values - base) / np.where(base == 0.0, np.nan, base)


def different_windows(grid: Grid, windows: Iterable[int | str], what: str) -> dict[int | str, int]:
    """Windows as given -> bars.

    Raises
    ------
    ValueError
        If two of them are equally long, or one is no multiple of the bar.

    Examples
    --------
    >>> from datetime import timedelta
    >>> different_windows(Grid(timedelta(hours=1), {}), (1, "2h"), "windows")
    {1: 1, '2h': 2}
    """
    taken: dict[int, int | str] = {}
    for window in windows:
        n = grid.bars(window)
        if n in taken:
            raise ValueError(f"{what}: {taken[n]} and {window} are the same {n} bars; name each window once")
        taken[n] = window
    return {window: n for n, window in taken.items()}


def _windows(entry: Entry, grid: Grid, function: str) -> dict[int | str, int]:
    of_areas = function == "close_area"
    what, family = "area_windows" if of_areas else "windows", _FAMILIES[function]
    given = different_windows(grid, entry.area_windows if of_areas else entry.windows, what)
    windows = {window: n for window, n in given.items() if n >= family.least_bars}
    if not windows or (of_areas and len(windows) < len(given)):
        raise ValueError(
            f"{what}: {function} says nothing of {', '.join(map(str, given))}, it needs windows of at least "
            f"{family.least_bars} bars; give some or leave it out of functions"
        )
    return windows


def _name(entry: Entry, function: str, window: int | str) -> str:
    relative = _FAMILIES[function].aggregate is not None
    return f"{entry.prefix}{function}_{window}{'_pct' if relative else ''}"


def _feature(entry: Entry, grid: Grid, function: str, window: int | str, n: int, base: int) -> Feature:
    family = _FAMILIES[function]
    inputs = tuple(entry.prefix + column for column in family.inputs)
    units = [grid.unit_of(column) for column in inputs]
    earlier = 1 if family.differs and entry.use_differences else 0
    parameters: tuple[tuple[str, Any], ...] = (("function", function), ("window", window))
    meaning = f"{family.meaning}, last {window}" + (" of percent changes from bar to bar" if earlier else "")
    if family.aggregate is None:
        unit = "frac" if function == "close_area" else f"{'pct' if earlier else units[0]} per bar"
        bounds = (-1.0, 1.0) if function == "close_area" else (None, None)
        reach, least = n, max(family.least_bars, present(n))
    else:
        if n == base:
            raise ValueError(
                f"windows: {window} is the base_window, so {function} would always be 0; leave it out"
            )
        parameters = (*parameters, ("base_window", entry.base_window))
        meaning = f"100 x (a - b) / b; a: {meaning}; b: the same of the last {entry.base_window}"
        unit, reach = "pct", max(n, base)
        least = max(present(n), present(base), family.least_bars)
        bounds = (None, None)
    return Feature(
        name=_name(entry, function, window),
        unit=unit,
        meaning=meaning,
        inputs=inputs,
        parameters=(*parameters, ("use_differences", entry.use_differences)),
        lookback=reach - 1 + earlier,
        warm_up=least - 1 + earlier,
        bounds=bounds,
    )
