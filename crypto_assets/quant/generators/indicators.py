"""The house's own indicators, all on finite windows: returns, averages, oscillators, ranges and volumes.

Here: their formulas, windows and names. Not here: rolling arithmetic (``kernels.py``) and TA-Lib's functions
(``talib.py``), which the recursive ones agree with after warm-up. Found by name through the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from crypto_assets.quant import kernels
from crypto_assets.quant.generators import formulas
from crypto_assets.quant.generators.declared import NOT_NEGATIVE, SHARE, Feature, Grid, Window
from crypto_assets.quant.generators.formulas import Formula, Output, Reach, Run, rolling
from crypto_assets.quant.generators.itbstats import present
from crypto_assets.quant.panel import Panel


class Entry(formulas.Formulas):
    """One indicator over one or more windows.

    Attributes
    ----------
    windows
        Left out: 14 for ``rsi``, ``atr`` and ``atr_frac``, 20 for ``bollinger``; ``macd`` takes ``fast``, ``slow`` and
        ``signal`` instead.
    column
        What is read in place of ``close`` (of ``volume_base`` for ``rolling_sum`` and ``volume_ratio``).
    base
        ``volume_ratio`` only: the longer window that the sum is compared with.
    fast, slow, signal
        ``macd`` only: spans of its averages.
    up, down
        ``bollinger`` only: how many standard deviations the bands lie from the middle.
    """

    column: str | None = None
    base: Window | None = None
    fast: Window = 12
    slow: Window = 26
    signal: Window = 9
    up: Annotated[float, Field(gt=0)] = 2.0
    down: Annotated[float, Field(gt=0)] = 2.0

    @classmethod
    def table(cls) -> Mapping[str, Formula]:
        """Every indicator by name."""
        return _INDICATORS

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns that are read: those of the indicator, the first of which gives way to ``column``."""
        usual = self.formula.inputs
        return usual if self.column is None else (self.column, *usual[1:])

    @model_validator(mode="after")
    def _has_a_base(self) -> Self:
        if "base" in self.formula.options and self.base is None:
            raise ValueError(f"{self.function} needs a base window")
        return self


def features(entry: Entry, grid: Grid) -> tuple[Feature, ...]:
    """Columns by window, then by output of the indicator; errors as `formulas.features` has them."""
    return formulas.features(entry, grid)


def compute(entry: Entry, panel: Panel) -> dict[str, np.ndarray]:
    """Compute the matrices of `features`.

    A return is that of exactly so many bars earlier, NaN if that bar is missing; a change or true range needs the bar
    before. Rolling values need half of their window, finite averages what `kernels.finite_average` says.

    Notes
    -----
    A value reads its own window and nothing later. Missing bars are left out.
    """
    return formulas.compute(entry, panel)


def _check_base(run: Run) -> None:
    if run.bars("base") <= run.n_bars:
        raise ValueError(f"the base window {run.entry.base} must be longer than the window {run.window}")


def _check_spans(run: Run) -> None:
    if run.bars("fast") >= run.bars("slow"):
        raise ValueError(f"fast {run.entry.fast} must be shorter than slow {run.entry.slow}")


def _span(n: int) -> float:
    return 2.0 / (n + 1.0)


def _average(run: Run, alpha: float) -> Reach:
    return Reach(kernels.average_lookback(alpha, run.reach), kernels.average_bars(alpha) - 1)


def _after(*reaches: Reach) -> Reach:
    return Reach(sum(reach.lookback for reach in reaches), sum(reach.warm_up for reach in reaches))


_PREVIOUS = Reach(1, 1)


def _rsi(run: Run, x: np.ndarray) -> tuple[np.ndarray]:
    change = x - kernels.lagged(x, 1)
    gain, loss = (
        kernels.wilder(np.maximum(sign * change, 0.0), run.n_bars, reach=run.reach, first=run.first)
        for sign in (1.0, -1.0)
    )
    # The share first: 100 x gain may round above what it is divided by.
    return (100.0 * (gain / kernels.positive(gain + loss)),)


def _atr(run: Run, close: np.ndarray, high: np.ndarray, low: np.ndarray) -> np.ndarray:
    previous = kernels.lagged(close, 1)
    return kernels.wilder(
        np.maximum(high, previous) - np.minimum(low, previous), run.n_bars, reach=run.reach, first=run.first
    )


def _macd(run: Run, x: np.ndarray) -> tuple[np.ndarray, ...]:
    fast, slow = (kernels.ema(x, run.bars(name), reach=run.reach) for name in ("fast", "slow"))
    line = fast - slow
    signal = kernels.ema(line, run.bars("signal"), reach=run.reach, first=run.first)
    return line, signal, line - signal


def _macd_reaches(run: Run) -> tuple[Reach, ...]:
    line = _average(run, _span(run.bars("slow")))
    signal = _after(line, _average(run, _span(run.bars("signal"))))
    return line, signal, signal


def _bollinger(run: Run, x: np.ndarray) -> tuple[np.ndarray, ...]:
    n, places = run.n_bars, {"origin": run.origin, "first": run.first}
    middle = kernels.rolling_mean(x, n, present(n), **places)
    sd = kernels.rolling_std(x, n, present(n), ddof=0, **places)
    return middle + run.entry.up * sd, middle, middle - run.entry.down * sd


def _volatility(run: Run, x: np.ndarray) -> tuple[np.ndarray]:
    fewest = max(present(run.n_bars), 2)
    return (
        kernels.rolling_std(
            kernels.log_change(x), run.n_bars, fewest, ddof=1, origin=run.origin, first=run.first
        ),
    )


def _range(run: Run, high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n = run.n_bars
    return (
        kernels.rolling_high(high, n, present(n), first=run.first),
        kernels.rolling_low(low, n, present(n), first=run.first),
    )


def _range_frac(run: Run, close: np.ndarray, high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray]:
    highest, lowest = _range(run, high, low)
    return ((highest - lowest) / kernels.positive(close),)


def _position_frac(run: Run, close: np.ndarray, high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray]:
    highest, lowest = _range(run, high, low)
    return ((close - lowest) / kernels.positive(highest - lowest),)


def _obv(run: Run, close: np.ndarray, volume: np.ndarray) -> tuple[np.ndarray]:
    return (run.total(np.sign(close - kernels.lagged(close, 1)) * volume, run.n_bars),)


def _volume_ratio(run: Run, volume: np.ndarray) -> tuple[np.ndarray]:
    base = kernels.positive(run.total(volume, run.bars("base")))
    return (run.total(volume, run.n_bars) / base * (run.bars("base") / run.n_bars),)


def _taker_buy_frac(run: Run, volume: np.ndarray, taker: np.ndarray) -> tuple[np.ndarray]:
    both = ~np.isnan(volume) & ~np.isnan(taker)
    whole, bought = (run.total(np.where(both, values, np.nan), run.n_bars) for values in (volume, taker))
    return (bought / kernels.positive(whole),)


_OHLC = ("close", "high", "low")
_FREE = ("windows", "column")
_INDICATORS = {
    "log_return": Formula(
        (Output("return_{w}_log", "log", "ln({c} / {c} {w} earlier); missing if that bar is"),),
        ("close",),
        lambda run: (Reach(run.n_bars, run.n_bars),),
        lambda run, x: (kernels.log_change(x, run.n_bars),),
        _FREE,
    ),
    "ema": Formula(
        (Output("{c}_ema_{w}", None, "EMA of {c}, alpha = 2 / (n + 1), n = {w}, on a finite window"),),
        ("close",),
        lambda run: (_average(run, _span(run.n_bars)),),
        lambda run, x: (kernels.ema(x, run.n_bars, reach=run.reach, first=run.first),),
        _FREE,
    ),
    "return_ema": Formula(
        (
            Output(
                "return_ema_{w}_log", "log", "EMA of 1-bar log returns of {c}, alpha = 2 / (n + 1), n = {w}"
            ),
        ),
        ("close",),
        lambda run: (_after(_average(run, _span(run.n_bars)), _PREVIOUS),),
        lambda run, x: (kernels.ema(kernels.log_change(x), run.n_bars, reach=run.reach, first=run.first),),
        _FREE,
    ),
    "ema_distance": Formula(
        (Output("ema_distance_{w}_frac", "frac", "{c} / EMA({c}, {w}) - 1"),),
        ("close",),
        lambda run: (_average(run, _span(run.n_bars)),),
        lambda run, x: (
            x / kernels.positive(kernels.ema(x, run.n_bars, reach=run.reach, first=run.first)) - 1.0,
        ),
        _FREE,
    ),
    "rolling_std": Formula(
        (
            Output(
                "volatility_{w}_log",
                "log",
                "sample sd of 1-bar log returns of {c} over {w}",
                NOT_NEGATIVE,
            ),
        ),
        ("close",),
        lambda run: (Reach(run.n_bars, max(present(run.n_bars), 2)),),
        _volatility,
        _FREE,
        shortest=2,
    ),
    "rsi": Formula(
        (
            Output(
                "rsi_{w}",
                "1",
                "100 x average gain / (average gain + average loss) of {c}, Wilder weights, n = {w}; missing while it "
                "did not move at all",
                (0.0, 100.0),
            ),
        ),
        ("close",),
        lambda run: (_after(_average(run, 1.0 / run.n_bars), _PREVIOUS),),
        _rsi,
        _FREE,
        default=14,
        shortest=2,
    ),
    "macd": Formula(
        (
            Output("{c}_macd_{fast}_{slow}_{signal}", None, "EMA({c}, {fast}) - EMA({c}, {slow})"),
            Output(
                "{c}_macd_signal_{fast}_{slow}_{signal}",
                None,
                "EMA of (EMA({c}, {fast}) - EMA({c}, {slow})), n = {signal}",
            ),
            Output(
                "{c}_macd_hist_{fast}_{slow}_{signal}",
                None,
                "MACD of {c} ({fast}, {slow}) - its EMA({signal})",
            ),
        ),
        ("close",),
        _macd_reaches,
        _macd,
        ("column", "fast", "slow", "signal"),
        check=_check_spans,
    ),
    "atr": Formula(
        (
            Output(
                "atr_{w}",
                None,
                "average of max(high, previous {c}) - min(low, previous {c}), Wilder weights, n = {w}",
                NOT_NEGATIVE,
            ),
        ),
        _OHLC,
        lambda run: (_after(_average(run, 1.0 / run.n_bars), _PREVIOUS),),
        lambda run, *prices: (_atr(run, *prices),),
        default=14,
    ),
    "atr_frac": Formula(
        (
            Output(
                "atr_{w}_frac",
                "frac",
                "average of max(high, previous {c}) - min(low, previous {c}), Wilder weights, n = {w}, over {c}",
                NOT_NEGATIVE,
            ),
        ),
        _OHLC,
        lambda run: (_after(_average(run, 1.0 / run.n_bars), _PREVIOUS),),
        lambda run, *prices: (_atr(run, *prices) / kernels.positive(prices[0]),),
        default=14,
    ),
    "bollinger": Formula(
        (
            Output("{c}_bollinger_upper_{w}", None, "mean + {up:g} x sd (divisor n) of {c} over {w}"),
            Output("{c}_bollinger_middle_{w}", None, "mean of {c} over {w}"),
            Output("{c}_bollinger_lower_{w}", None, "mean - {down:g} x sd (divisor n) of {c} over {w}"),
        ),
        ("close",),
        lambda run: (rolling(run.n_bars),) * 3,
        _bollinger,
        ("windows", "column", "up", "down"),
        default=20,
        shortest=2,
    ),
    "rolling_sum": Formula(
        (Output("{c}_sum_{w}", None, "sum of {c} over {w}"),),
        ("volume_base",),
        lambda run: (rolling(run.n_bars),),
        lambda run, x: (run.total(x, run.n_bars),),
        _FREE,
    ),
    "obv": Formula(
        (
            Output(
                "obv_{w}_base",
                "base",
                "sum of volume x sign of the change of {c} over {w}: OBV on a finite window",
            ),
        ),
        ("close", "volume_base"),
        lambda run: (_after(rolling(run.n_bars), _PREVIOUS),),
        _obv,
    ),
    "range_frac": Formula(
        (Output("range_{w}_frac", "frac", "(highest high - lowest low of {w}) / {c}", NOT_NEGATIVE),),
        _OHLC,
        lambda run: (rolling(run.n_bars),),
        _range_frac,
    ),
    "position_frac": Formula(
        (
            Output(
                "position_{w}_frac",
                "frac",
                "({c} - lowest low) / (highest high - lowest low) of {w}; 0 low, 1 high",
                SHARE,
            ),
        ),
        _OHLC,
        lambda run: (rolling(run.n_bars),),
        _position_frac,
    ),
    "volume_ratio": Formula(
        (
            Output(
                "volume_ratio_{w}",
                "1",
                "sum of {c} over {w} / its sum over {base}, per bar",
                NOT_NEGATIVE,
            ),
        ),
        ("volume_base",),
        lambda run: (Reach(run.bars("base") - 1, max(present(run.n_bars), present(run.bars("base"))) - 1),),
        _volume_ratio,
        ("windows", "column", "base"),
        check=_check_base,
    ),
    "taker_buy_frac": Formula(
        (Output("taker_buy_{w}_frac", "frac", "taker buys / volume over {w}, in base units", SHARE),),
        ("volume_base", "taker_buy_base"),
        lambda run: (rolling(run.n_bars),),
        _taker_buy_frac,
    ),
}
