"""Any function of TA-Lib by name, over windows, with the same bits in every run.

Here: which inputs, parameters and warm-up a function has, and its columns. Not here: the evaluation per day
(``anchored.py``), relative modes (``relative.py``) and TA-Lib itself, which is imported inside functions. Found by name
through the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, cast

import numpy as np
from pydantic import Field

from crypto_assets.quant import kernels
from crypto_assets.quant.generators import relative
from crypto_assets.quant.generators.anchored import Seen, by_day, reach
from crypto_assets.quant.generators.declared import Feature, Grid, Windows
from crypto_assets.quant.panel import Panel, longest_pause

# Sums from the beginning of what is loaded: their level depends on where that is.
_CUMULATIVE = {"AD", "CUMSUM", "NVI", "OBV", "PVI", "PVT", "VWAP", "WAD"}
# They answer with places in the array that was passed, which say nothing about a row.
_PLACES = {"MAXINDEX", "MININDEX", "MINMAXINDEX"}
# How long they remember depends on the values: nothing but a measurement tells.
_UNBOUNDED = {
    "HT_DCPERIOD",
    "HT_DCPHASE",
    "HT_PHASOR",
    "HT_SINE",
    "HT_TRENDLINE",
    "HT_TRENDMODE",
    "KAMA",
    "MAMA",
    "SAR",
    "SAREXT",
    "SUPERTREND",
}
# With a window of one bar these are the column itself; releases of TA-Lib differ in whether they compute that.
_AVERAGES = {"DEMA", "EMA", "HMA", "KAMA", "MA", "RMA", "SMA", "T3", "TEMA", "TRIMA", "WMA", "ZLEMA"}
_DEFAULT_COLUMNS = {
    "open": "open",
    "high": "high",
    "low": "low",
    "close": "close",
    "real": "close",
    "volume": "volume_base",
}

_Parameters = Mapping[str, Any]
_Bars = Annotated[int, Field(ge=0)]


class Entry(relative.Relative):
    """Functions of TA-Lib.

    Attributes
    ----------
    functions
        Names as TA-Lib spells them.
    columns
        What the functions read: one column, a list in the order of their inputs, or a mapping of input -> column.
        Left out: the columns that the inputs are named after, ``close`` for a ``real`` and ``volume_base`` for the
        volume.
    windows
        Values of ``timeperiod``, in bars or as durations. Left out: TA-Lib's default; a function that has no
        ``timeperiod`` takes none.
    parameters
        Other named parameters, such as ``fastperiod``; a period may be a duration.
    warm_up
        Bars that must precede a row, for a recursive function: one number, or one by name as in ``close_kama_10``, the
        column's name without output and relative mode. Left out: derived where a rule is known, else as measured.
    """

    functions: relative.Texts
    columns: str | tuple[str, ...] | dict[str, str] | None = None
    windows: Annotated[Windows, relative.LISTED] | None = None
    parameters: dict[str, int | float | str] = {}
    warm_up: _Bars | dict[str, _Bars] | None = None


@dataclass(frozen=True)
class _Call:
    # One function with all its parameters: what is evaluated, and how many rows must precede.
    function: str
    columns: tuple[tuple[str, str], ...]
    parameters: tuple[tuple[str, Any], ...]
    window: int | str | None
    outputs: tuple[str, ...]
    warm_up: int
    slack: int
    is_open: bool
    is_column: bool
    keeps_scale: bool

    @property
    def lookback(self) -> int:
        # A function of the row alone needs neither history nor slack for missing bars.
        return self.warm_up + self.slack if self.warm_up else 0

    @property
    def name(self) -> str:
        return _name(self.function, self.columns, self.window)


def features(entry: Entry, grid: Grid) -> tuple[Feature, ...]:
    """Columns by function, then by window, then by output of the function.

    Raises
    ------
    ValueError
        If there is no such function, it cannot be computed the same way in every run, an input, window or parameter
        does not fit it, a column is not there, or two columns have one name.
    """
    return _features(entry, grid, _plan(entry, grid))


def left_open(entry: Entry, grid: Grid) -> tuple[str, ...]:
    """Columns of functions that no rule covers and whose warm-up is not told.

    Raises
    ------
    ValueError
        As `features`, but not for the lack of a warm-up.
    """
    return tuple(_open(entry, grid))


def settled(entry: Entry, grid: Grid, bars: Mapping[str, int]) -> Entry:
    """The entry with the warm-up that was measured of each column of `left_open`, of outputs the longest."""
    told = dict(entry.warm_up) if isinstance(entry.warm_up, dict) else {}
    for column, call in _open(entry, grid).items():
        told[call.name] = max(bars[column], call.warm_up, told.get(call.name, 0))
    return entry.model_copy(update={"warm_up": told}) if told else entry


def compute(entry: Entry, panel: Panel) -> dict[str, np.ndarray]:
    """Compute the matrices of `features`, per UTC day from a fixed anchor: see `anchored.by_day`.

    A row in which one of the inputs is missing is left out of what a function sees, and its values are NaN, as are
    those of rows without the warm-up.

    Notes
    -----
    TA-Lib's functions read nothing later than the row. Source: conventions, section 4.
    """
    return _computed(entry, panel)


def unanchored(entry: Entry, panel: Panel) -> dict[str, np.ndarray]:
    """Compute the matrices of `features` with all rows of the panel as history, whatever warm-up is declared."""
    return _computed(entry, panel, whole=True)


def _computed(entry: Entry, panel: Panel, *, whole: bool = False) -> dict[str, np.ndarray]:
    grid = relative.grid_of(panel)
    plan = _plan(entry, grid)
    made = []
    for calls in plan:
        made += relative.computed(entry, [_values(call, panel, whole=whole) for call in calls])
    return dict(zip([feature.name for feature in _features(entry, grid, plan)], made, strict=True))


def _features(entry: Entry, grid: Grid, plan: list[list[_Call]]) -> tuple[Feature, ...]:
    made = []
    for calls in plan:
        made += relative.declared(entry, [_drafts(call, grid) for call in calls])
    return relative.named(entry.names, made)


def _open(entry: Entry, grid: Grid) -> dict[str, _Call]:
    # Column -> its call. Until it is measured, an open call has the warm-up without which it gives nothing at all.
    plan = _plan(entry, grid, opened=True)
    calls = [call for calls in plan for call in calls for _ in call.outputs]
    made = _features(entry, grid, plan)
    return {feature.name: call for feature, call in zip(made, calls, strict=True) if call.is_open}


def _name(function: str, columns: tuple[tuple[str, str], ...], window: int | str | None) -> str:
    read = "_".join(column for _, column in columns)
    return f"{read}_{function.lower()}" + ("" if window is None else f"_{window}")


def _drafts(call: _Call, grid: Grid) -> list[relative.Draft]:
    units = {grid.unit_of(column) for _, column in call.columns}
    unit = units.pop() if len(units) == 1 and (call.keeps_scale or call.is_column) else "1"
    inputs = tuple(dict.fromkeys(column for _, column in call.columns))
    parameters = (("function", call.function), ("window", call.window), *call.parameters)
    given = ", ".join(f"{name} {value:g}" for name, value in call.parameters)
    read = ", ".join(column for _, column in call.columns)
    return [
        relative.Draft(
            name=call.name if len(call.outputs) == 1 else f"{call.name}_{output}",
            unit=unit,
            meaning=f"TA-Lib {call.function}({read}{'; ' if given else ''}{given})"
            + ("" if len(call.outputs) == 1 else f", {output}"),
            inputs=inputs,
            parameters=tuple((name, value) for name, value in parameters if value is not None),
            lookback=reach(call.lookback, grid.bar) if call.lookback else 0,
            warm_up=call.warm_up,
        )
        for output in call.outputs
    ]


def _values(call: _Call, panel: Panel, *, whole: bool) -> list[np.ndarray]:
    if call.is_column:
        return [panel.matrix(call.columns[0][1])]
    import talib

    body = getattr(talib, call.function)
    inputs = {name: panel.matrix(column) for name, column in call.columns}

    def evaluate(seen: Seen) -> dict[str, np.ndarray]:
        made = body(*(seen[name] for name in inputs), **dict(call.parameters))
        return dict(zip(call.outputs, made if isinstance(made, tuple | list) else [made], strict=True))

    lookback, warm_up = (len(panel.times), 0) if whole else (call.lookback, call.warm_up)
    made = by_day(panel, inputs, lookback, warm_up, evaluate, names=call.outputs)
    return list(made.values())


def _plan(entry: Entry, grid: Grid, *, opened: bool = False) -> list[list[_Call]]:
    plan = [_calls(entry, function, grid, opened=opened) for function in entry.functions]
    if isinstance(entry.warm_up, dict):
        names = {call.name for calls in plan for call in calls}
        if unknown := sorted(set(entry.warm_up) - names):
            raise ValueError(
                f"warm_up names {', '.join(unknown)}; allowed: {', '.join(sorted(names))}, or one number for all"
            )
    return plan


def _calls(entry: Entry, function: str, grid: Grid, *, opened: bool) -> list[_Call]:
    info = _checked(function)
    known = info["parameters"]
    columns = _columns(entry, function, info, grid)
    given = _given(entry, function, known, grid)
    windows: tuple[int | str | None, ...] = entry.windows or (known.get("timeperiod"),)
    if entry.windows is not None and "timeperiod" not in known:
        others = f"; its parameters are {', '.join(known)}" if known else ""
        raise ValueError(f"{function} has no timeperiod: leave windows out{others}")
    calls = []
    for window in windows:
        n_bars = None if window is None else grid.bars(window)
        parameters = dict(known) | given | ({} if n_bars is None else {"timeperiod": n_bars})
        is_column = n_bars == 1 and function in _AVERAGES
        warm_up: int | None = 0
        if not is_column:
            told = entry.warm_up
            told = told.get(_name(function, columns, window)) if isinstance(told, dict) else told
            warm_up = _warm_up(told, function, columns, parameters)
        is_open = warm_up is None
        if warm_up is None:
            if not opened:
                raise ValueError(
                    f"no rule tells how long {function} remembers with these parameters: run "
                    "`crypto-assets features measure`, which stores it, or set warm_up"
                )
            warm_up = _own_lookback(function, len(columns), parameters)
        calls.append(
            _Call(
                function,
                columns,
                tuple(parameters.items()),
                window,
                tuple(info["output_names"]),
                warm_up,
                longest_pause(grid.bar),
                is_open,
                is_column,
                "Output scale same as input" in (info["function_flags"] or []),
            )
        )
    return calls


def _checked(function: str) -> dict[str, Any]:
    known = _known()
    if function not in known:
        near = (
            get_close_matches(function.upper(), known, n=3)
            or [name for name in known if function.upper() in name][:3]
        )
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"TA-Lib has no function {function}{hint}")
    if function in _CUMULATIVE:
        raise ValueError(
            f"{function} adds up from the first row that is loaded, so its level depends on the run; "
            "use a sum over a window: generator indicators, function obv or rolling_sum"
        )
    if function in _PLACES:
        raise ValueError(
            f"{function} gives places in the loaded rows, which depend on the run; "
            "use the place in the window: generator itbstats, function fmax"
        )
    return _info(function)


@cache
def _known() -> tuple[str, ...]:
    import talib

    return tuple(talib.get_functions())


@cache
def _info(function: str) -> dict[str, Any]:
    return dict(_bound(function).info)


def _bound(function: str) -> Any:
    from talib import abstract

    # The factory is made at run time, where a type checker does not see it.
    return cast("Any", abstract).Function(function)


def _inputs(info: Mapping[str, Any]) -> list[str]:
    names: list[str] = []
    for key, value in info["input_names"].items():
        names += [key.replace("price", "real")] if isinstance(value, str) else list(value)
    return names


def _columns(entry: Entry, function: str, info: Mapping[str, Any], grid: Grid) -> tuple[tuple[str, str], ...]:
    wanted = _inputs(info)
    given = entry.columns
    if given is None:
        chosen = {name: _DEFAULT_COLUMNS[name] for name in wanted if name in _DEFAULT_COLUMNS}
    elif isinstance(given, dict):
        chosen = dict(given)
    else:
        listed = (given,) if isinstance(given, str) else given
        chosen = dict(zip(wanted, listed, strict=False)) if len(listed) == len(wanted) else {}
    if set(chosen) != set(wanted):
        raise ValueError(
            f"{function} reads {', '.join(wanted)}; columns must name one for each, {given or 'nothing'} does not"
        )
    for column in chosen.values():
        grid.unit_of(column)
    return tuple((name, chosen[name]) for name in wanted)


def _given(entry: Entry, function: str, known: _Parameters, grid: Grid) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, value in entry.parameters.items():
        if name == "timeperiod" or name not in known:
            allowed = [other for other in known if other != "timeperiod"]
            hint = (
                "give it as windows" if name == "timeperiod" else f"allowed: {', '.join(allowed) or 'none'}"
            )
            raise ValueError(f"{function} takes no parameter {name}; {hint}")
        if isinstance(known[name], float):
            if isinstance(value, str):
                raise ValueError(f"{name} of {function} is a number, not {value!r}")
            given[name] = float(value)
        elif isinstance(value, float):
            raise ValueError(f"{name} of {function} is a whole number, not {value}")
        else:
            given[name] = grid.bars(value) if isinstance(value, str) else value
    return given


def _warm_up(
    told: int | None, function: str, columns: tuple[tuple[str, str], ...], parameters: _Parameters
) -> int | None:
    # None: neither told nor derived.
    fewest = _own_lookback(function, len(columns), parameters)
    rule = _RULES.get(function)
    flags = _info(function)["function_flags"] or []
    open_ended = function in _UNBOUNDED or any(
        "unstable" in flag or "path-dependent" in flag for flag in flags
    )
    bars = rule(parameters) if rule else (None if open_ended else 0)
    if told is None:
        return None if bars is None else fewest + bars
    if bars == 0:
        raise ValueError(f"{function} reads its window and nothing before it: leave warm_up out")
    if told < fewest:
        raise ValueError(f"warm_up {told} is too short: {function} itself needs {fewest} bars")
    return told


def _own_lookback(function: str, n_inputs: int, parameters: _Parameters) -> int:
    import talib

    bound = _bound(function)
    if parameters:
        bound.set_parameters(dict(parameters))
    try:
        # TA-Lib checks parameters when it is called, not when they are set.
        getattr(talib, function)(*[np.ones(2)] * n_inputs, **parameters)
    except Exception as error:
        given = ", ".join(f"{name} {value}" for name, value in parameters.items())
        raise ValueError(f"TA-Lib refuses {function} with {given}: {error}") from error
    return int(bound.lookback)


def _span(n: float) -> int:
    return kernels.average_bars(2.0 / (n + 1.0))


def _wilder(n: float) -> int:
    return kernels.average_bars(1.0 / n)


def _average(matype: int, n: int) -> int | None:
    # By TA-Lib's numbers of the kinds of averages; 0 are those that read a window only, 6, 7 and 11 have no rule.
    depths = {0: 0, 1: 1, 2: 0, 3: 2, 4: 3, 5: 0, 8: 6, 9: 0, 10: 0, 12: 1}
    if matype == 13:
        return _wilder(n)
    return depths[matype] * _span(n) if matype in depths else None


def _chained(*stages: int | None) -> int | None:
    return None if None in stages else sum(stage for stage in stages if stage is not None)


def _slowest(*stages: int | None) -> int | None:
    return None if None in stages else max(stage for stage in stages if stage is not None)


def _fast_and_slow(p: _Parameters) -> int | None:
    return _slowest(_average(p["matype"], p["fastperiod"]), _average(p["matype"], p["slowperiod"]))


# Rows after which the remaining weight of what lies before is below kernels.TAIL_WEIGHT, by the averages that a function
# chains. Functions that are neither here nor open-ended read their window only; the tests prove both for all of TA-Lib.
_RULES: dict[str, Callable[[_Parameters], int | None]] = {
    **dict.fromkeys(
        ("ATR", "CMO", "DX", "MINUS_DI", "MINUS_DM", "NATR", "PLUS_DI", "PLUS_DM", "RMA", "RSI", "RVI"),
        lambda p: _wilder(p["timeperiod"]),
    ),
    **dict.fromkeys(("ADX", "ADXR"), lambda p: 2 * _wilder(p["timeperiod"])),
    **dict.fromkeys(("CVI", "EFI", "EMA", "ERI", "ZLEMA"), lambda p: _span(p["timeperiod"])),
    **dict.fromkeys(("APO", "PPO", "PVO"), _fast_and_slow),
    **dict.fromkeys(("TEMA", "TRIX"), lambda p: 3 * _span(p["timeperiod"])),
    "ADOSC": lambda p: max(_span(p["fastperiod"]), _span(p["slowperiod"])),
    "BBANDS": lambda p: _average(p["matype"], p["timeperiod"]),
    "DEMA": lambda p: 2 * _span(p["timeperiod"]),
    "HA": lambda _: kernels.average_bars(0.5),
    "KC": lambda p: max(_span(p["timeperiod"]), _wilder(p["atrperiod"])),
    "KDJ": lambda p: _chained(
        _average(p["slowk_matype"], p["slowk_period"]), _average(p["slowd_matype"], p["slowd_period"])
    ),
    "MA": lambda p: _average(p["matype"], p["timeperiod"]),
    "MACD": lambda p: max(_span(p["fastperiod"]), _span(p["slowperiod"])) + _span(p["signalperiod"]),
    "MACDEXT": lambda p: _chained(
        _slowest(_average(p["fastmatype"], p["fastperiod"]), _average(p["slowmatype"], p["slowperiod"])),
        _average(p["signalmatype"], p["signalperiod"]),
    ),
    "MACDFIX": lambda p: kernels.average_bars(0.075) + _span(p["signalperiod"]),
    "MASSI": lambda p: 2 * _span(p["fastperiod"]),
    "MAVP": lambda p: _average(p["matype"], p["maxperiod"]),
    "SMI": lambda p: _span(p["fastperiod"]) + _span(p["slowperiod"]) + _span(p["signalperiod"]),
    "STOCH": lambda p: _chained(
        _average(p["slowk_matype"], p["slowk_period"]), _average(p["slowd_matype"], p["slowd_period"])
    ),
    "STOCHF": lambda p: _average(p["fastd_matype"], p["fastd_period"]),
    "STOCHRSI": lambda p: _chained(_wilder(p["timeperiod"]), _average(p["fastd_matype"], p["fastd_period"])),
    "T3": lambda p: 6 * _span(p["timeperiod"]),
    "TSI": lambda p: _span(p["firstperiod"]) + _span(p["secondperiod"]),
}
