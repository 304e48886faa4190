"""Features and labels next to plain pandas: ``python benchmarks/features.py [--quick] [--only klines,labels] [--rounds N]``.

Here: seeded bars, both sides of each comparison, the gate on their values, the order of events and the tables. Every
contender runs in a process of its own, ``python benchmarks/features.py --contender NAME < task``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
# Started by its path, it finds its own folder only.
sys.path.insert(0, str(ROOT))

from benchmarks.command import CONSOLE, Wrong, machine, parser_of, sections_of, write  # noqa: E402
from benchmarks.contest import Found, Report, Work, report_of  # noqa: E402
from benchmarks.gates import WrongRows, ratio_of  # noqa: E402
from crypto_assets.quant.feature_sets import BAR_COLUMNS, FeatureSet  # noqa: E402
from crypto_assets.quant.generators import entry_of  # noqa: E402
from crypto_assets.quant.generators.declared import Grid  # noqa: E402
from crypto_assets.quant.labels import sets as label_sets  # noqa: E402
from crypto_assets.quant.labels.declared import Terms  # noqa: E402

HERE = ROOT / "benchmarks"
SYMBOL = "BTC/USDT"
START = datetime(2023, 1, 1)
MINUTE = timedelta(minutes=1)
#: Minutes.
YEAR = 525_600
#: How far a value may be from the other side's, relative to itself or, near zero, to the column's mean size.
TOLERANCE = 1e-9
#: Bars on which a contender is run once before it counts: compiling and first imports are no part of a year's work.
_FIRST_RUN = 5_000
#: Bars that are made, of which each side gets the first ones.
_MADE = 1_000_000
_BASE = 1440
_WINDOWS = (1, 5, 15, 60, 180, 720)
_AREAS = (60, 120, 180, 300, 720)
_RELATIVE = ("close", "close_std", "volume", "span", "trades", "tb_base", "tb_quote")
_SHAPES = ("close_area", "close_trend")
_THRESHOLDS, _TOLERANCE, _HORIZON = (0.5, 1.0), 0.2, 120
_LEVEL, _TOLERANCES, _REACH = 0.02, (0.1, 0.2), 1440


@dataclass(frozen=True)
class Job:
    """What one process has to do: a contender's part of a contest."""

    contender: str
    n_rows: int
    functions: tuple[str, ...]
    values: str


@dataclass(frozen=True)
class Side:
    """A contender in a table, and how many of the rows it gets."""

    name: str
    shown: str
    n_rows: int


@dataclass(frozen=True)
class Contest:
    """The same columns by two sides, ours and a plain way, and how many times faster a row of ours should be."""

    title: str
    functions: tuple[str, ...]
    ours: Side
    plain: Side
    aim: float | None


@dataclass
class Standing:
    """The reports of a contest, a pair a round."""

    contest: Contest
    ours: list[Report] = field(default_factory=list)
    plain: list[Report] = field(default_factory=list)


def bars_of(n_rows: int) -> pd.DataFrame:
    """One-minute bars like those of BTCUSDT in size and spread, every minute there, as rows of the raster."""
    rng = np.random.default_rng(7)
    close = np.round(30_000.0 * np.exp(np.cumsum(rng.normal(0.0, 5e-4, n_rows))), 2)
    opens = np.concatenate([[30_000.0], close[:-1]])
    high = np.round(np.maximum(opens, close) * (1 + rng.exponential(2e-4, n_rows)), 2)
    low = np.round(np.minimum(opens, close) * (1 - rng.exponential(2e-4, n_rows)), 2)
    volume = np.round(rng.lognormal(2.5, 1.0, n_rows), 5) + 1e-5
    taker = np.round(volume * rng.uniform(0.1, 0.9, n_rows), 5)
    ts = np.datetime64(START, "us") + np.timedelta64(1, "m") * np.arange(n_rows)
    return pd.DataFrame(
        {
            "symbol": SYMBOL,
            "ts": ts,
            "known_at": ts + np.timedelta64(1, "m"),
            "listing_id": f"{SYMBOL}#1",
            "has_bar": True,
            "open": opens,
            "high": high,
            "low": low,
            "close": close,
            "volume_base": volume,
            "turnover_quote": volume * close,
            "n_trades": np.floor(volume * 40.0) + 1.0,
            "taker_buy_base": taker,
            "taker_buy_quote": taker * close * (1 + rng.normal(0.0, 1e-4, n_rows)),
        }
    )


def our_klines(rows: pd.DataFrame, functions: Sequence[str]) -> pd.DataFrame:
    """Rows of the raster to rows of a feature table, as the asset makes them."""
    entry = entry_of({"generator": "itblib", "functions": list(functions)})
    made = FeatureSet("klines", Grid(MINUTE, BAR_COLUMNS), (entry,))
    return made.compute(rows)[[feature.name for feature in made.features]]


def pandas_klines(rows: pd.DataFrame, functions: Sequence[str]) -> pd.DataFrame:
    """The same columns as one writes them with pandas: rolling means, and ``apply`` where there is no method."""
    from scipy.stats import linregress

    def area(values: np.ndarray) -> float:
        away = values - values[-1]
        return away.sum() / np.abs(away).sum()

    def slope(values: np.ndarray) -> float:
        return linregress(np.arange(len(values)), values)[0]

    def rolled(column: pd.Series, window: int) -> Any:
        return column.rolling(window, min_periods=max(1, window // 2))

    close, volume = rows["close"], rows["volume_base"]
    turnover, span = close * volume, rows["high"] - rows["low"]
    shares = {
        "tb_base": rows["taker_buy_base"] / volume,
        "tb_quote": rows["taker_buy_quote"] / rows["turnover_quote"],
    }
    aggregates: dict[str, Callable[[int], pd.Series]] = {
        "close": lambda n: rolled(turnover, n).mean() / rolled(volume, n).mean(),
        "close_std": lambda n: rolled(close, n).std(ddof=0),
        "volume": lambda n: rolled(volume, n).mean(),
        "span": lambda n: rolled(span, n).mean(),
        "trades": lambda n: rolled(rows["n_trades"], n).mean(),
        "tb_base": lambda n: rolled(shares["tb_base"], n).mean(),
        "tb_quote": lambda n: rolled(shares["tb_quote"], n).mean(),
    }
    result: dict[str, pd.Series] = {}
    for function in functions:
        longer = _WINDOWS[1:]
        if function == "close_area":
            result |= {f"close_area_{n}": rolled(close, n).apply(area, raw=True) for n in _AREAS}
        elif function == "close_trend":
            result |= {f"close_trend_{n}": rolled(close, n).apply(slope, raw=True) for n in longer}
        else:
            base = aggregates[function](_BASE)
            for n in longer if function == "close_std" else _WINDOWS:
                result[f"{function}_{n}_pct"] = 100 * (aggregates[function](n) - base) / base
    return pd.DataFrame(result)


def our_highlow2(rows: pd.DataFrame, functions: Sequence[str]) -> pd.DataFrame:
    """Rows of the raster to rows of a label table, with the moment at which each row is decided."""
    options = {"thresholds": _THRESHOLDS, "tolerance": _TOLERANCE, "horizon": _HORIZON}
    return _our_labels(rows, [{"generator": "highlow2", "function": name, **options} for name in functions])


def our_topbot2(rows: pd.DataFrame, functions: Sequence[str]) -> pd.DataFrame:
    """Rows of the raster to rows of a label table, with the moment at which each row is decided."""
    options = {"level": _LEVEL, "tolerances": _TOLERANCES, "reach": _REACH}
    return _our_labels(rows, [{"generator": "topbot2", "function": name, **options} for name in functions])


def _our_labels(rows: pd.DataFrame, entries: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    told = tuple(label_sets.entry_of(entry) for entry in entries)
    made = label_sets.LabelSet("labels", Terms(MINUTE, BAR_COLUMNS), told)
    known = made.compute(rows, watermark=rows["known_at"].iloc[-1].to_pydatetime())
    return known[[label.name for label in made.labels]]


def pandas_highlow2(rows: pd.DataFrame, functions: Sequence[str]) -> pd.DataFrame:
    """Which threshold comes first, row by row on a slice of the frame; rows with a whole horizon only."""
    result = {}
    for function in functions:
        sign = 1 if function == "high" else -1
        won, lost = (rows["high"], rows["low"]) if function == "high" else (rows["low"], rows["high"])
        for x in _THRESHOLDS:
            labels = []
            for place in range(len(rows) - _HORIZON):
                now = rows["close"].iloc[place]
                ahead = slice(place + 1, place + 1 + _HORIZON)
                good = sign * (won.iloc[ahead] - now * (1 + sign * x / 100)) > 0
                bad = sign * (lost.iloc[ahead] - now * (1 - sign * x * _TOLERANCE / 100)) < 0
                labels.append(bool(good.any() and (not bad.any() or good.argmax() <= bad.argmax())))
            result[f"{function}_{str(x).replace('.', '')}_first_{_HORIZON}"] = labels
    return pd.DataFrame(result)


def python_highlow2(rows: pd.DataFrame, functions: Sequence[str]) -> pd.DataFrame:
    """The same in loops over lists that end where the label is decided."""
    close, high, low = (rows[name].tolist() for name in ("close", "high", "low"))
    result = {}
    for function in functions:
        for x in _THRESHOLDS:
            labels = []
            for place in range(len(close) - _HORIZON):
                rise, fall = (x, x * _TOLERANCE) if function == "high" else (x * _TOLERANCE, x)
                upper, lower = close[place] * (1 + rise / 100), close[place] * (1 - fall / 100)
                label = False
                for later in range(place + 1, place + 1 + _HORIZON):
                    up, down = high[later] > upper, low[later] < lower
                    if up or down:
                        label = up if function == "high" else down
                        break
                labels.append(label)
            result[f"{function}_{str(x).replace('.', '')}_first_{_HORIZON}"] = labels
    return pd.DataFrame(result)


def sliced_topbot2(rows: pd.DataFrame, functions: Sequence[str]) -> pd.DataFrame:
    """Is a row an extremum, row by row on slices of a series; rows that no later bar changes."""
    result = {}
    for function in functions:
        values = rows["close"] if function == "top" else -rows["close"]
        for share in _TOLERANCES:
            labels = np.zeros(len(values), dtype=bool)
            for place in range(len(values)):
                now = values.iloc[place]
                before, after = (
                    values.iloc[max(0, place - _REACH) : place],
                    values.iloc[place + 1 : place + 1 + _REACH],
                )
                edge, near = (now - depth * abs(now) for depth in (_LEVEL, _LEVEL * share))
                left, right = np.flatnonzero(before < edge), np.flatnonzero(after < edge)
                if not len(left) or not len(right):
                    continue
                since, until = place - len(before) + left[-1], place + 1 + right[0]
                if since + 1 + values.iloc[since + 1 : until].argmax() == place:
                    near_before, near_after = (
                        np.flatnonzero(before < near)[-1],
                        np.flatnonzero(after < near)[0],
                    )
                    labels[place - len(before) + near_before + 1 : place + 1 + near_after] = True
            result[f"{function}_20_{str(share).replace('.', '')}_{_REACH}"] = labels[: -2 * _REACH]
    return pd.DataFrame(result)


def pandas_topbot2(rows: pd.DataFrame, functions: Sequence[str]) -> pd.DataFrame:
    """The seed's work list on slices of a series, each range searched as a whole; rows that no later bar changes."""

    def search(values: pd.Series, start: int, stop: int, share: float) -> tuple[int, ...]:
        part = values.iloc[start:stop]
        top = int(part.argmax())
        peak = part.iloc[top]
        edges = []
        for depth in (_LEVEL, _LEVEL * share):
            under = (part < peak - depth * abs(peak)).to_numpy()
            before, after = np.flatnonzero(under[:top]), np.flatnonzero(under[top:])
            edges += [
                start + int(before[-1]) if len(before) else -1,
                start + top + int(after[0]) if len(after) else -1,
            ]
        return (start + top, *edges)

    return _work_list(rows["close"], functions, search)


def python_topbot2(rows: pd.DataFrame, functions: Sequence[str]) -> pd.DataFrame:
    """The same with loops over a list."""

    def search(values: list[float], start: int, stop: int, share: float) -> tuple[int, ...]:
        top = start
        for place in range(start, stop):
            if values[place] > values[top]:
                top = place
        edges = []
        for depth in (_LEVEL, _LEVEL * share):
            edge = values[top] - depth * abs(values[top])
            for places in (range(top - 1, start - 1, -1), range(top + 1, stop)):
                found = -1
                for place in places:
                    if values[place] < edge:
                        found = place
                        break
                edges.append(found)
        return (top, *edges)

    return _work_list(rows["close"].tolist(), functions, search)


def _work_list(values: Any, functions: Sequence[str], search: Callable[..., tuple[int, ...]]) -> pd.DataFrame:
    result = {}
    for function in functions:
        signed = values
        if function == "bot":
            signed = -values if isinstance(values, pd.Series) else [-value for value in values]
        for share in _TOLERANCES:
            labels, ranges = np.zeros(len(values), dtype=bool), [(0, len(values))]
            while ranges:
                start, stop = ranges.pop()
                top, before, after, near_before, near_after = search(signed, start, stop, share)
                if before >= 0 and after >= 0 and max(top - before, after - top) <= _REACH:
                    labels[near_before + 1 : near_after] = True
                ranges += [(start, before + 1)] if before >= 0 else []
                ranges += [(after, stop)] if after >= 0 else []
            name = f"{function}_20_{str(share).replace('.', '')}_{_REACH}"
            result[name] = labels[: -2 * _REACH]
    return pd.DataFrame(result)


CONTENDERS: dict[str, Callable[[pd.DataFrame, Sequence[str]], pd.DataFrame]] = {
    "our_klines": our_klines,
    "pandas_klines": pandas_klines,
    "our_highlow2": our_highlow2,
    "pandas_highlow2": pandas_highlow2,
    "python_highlow2": python_highlow2,
    "our_topbot2": our_topbot2,
    "sliced_topbot2": sliced_topbot2,
    "pandas_topbot2": pandas_topbot2,
    "python_topbot2": python_topbot2,
}


def carry_out(job: Job) -> Report:
    """Do a contender's part, leave its values in a file and report the processor seconds of the second run."""
    from importlib.metadata import version

    contender, work = CONTENDERS[job.contender], Work()
    rows = bars_of(_MADE).iloc[: job.n_rows]
    contender(rows.iloc[:_FIRST_RUN], job.functions)
    with work.counted():
        values = contender(rows, job.functions)
    np.save(job.values, values.astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan))
    Path(f"{job.values}.names").write_text("\n".join(values.columns), encoding="utf-8")
    packages = ("numpy", "numba", "pandas", "scipy")
    return Report(work.cpu_s, {SYMBOL: Found(job.n_rows, "")}, {name: version(name) for name in packages})


def check_values(names: Sequence[str], ours: np.ndarray, theirs: np.ndarray) -> float:
    """Pass columns that agree with those of the other side on its rows; return the largest difference.

    Raises
    ------
    WrongRows
        If a value is missing on one side only, differs by more than ``TOLERANCE``, or no column says anything.

    Examples
    --------
    >>> right = np.array([[np.nan, 1.0], [3.0, 2.0]])
    >>> check_values(["a", "b"], right, right)
    0.0
    >>> check_values(["a", "b"], right + 1e-8, right)
    Traceback (most recent call last):
    ...
    benchmarks.gates.WrongRows: a differs by 3.33e-09 in row 1: 3.00000001 here, 3.0 there
    """
    if not theirs.size:
        raise WrongRows("nothing was computed, so nothing can be right")
    if ours.shape[1] != len(names) or theirs.shape[1] != len(names) or len(ours) < len(theirs):
        raise WrongRows(f"shapes {ours.shape} and {theirs.shape} where there are {len(names)} columns")
    worst, varies = 0.0, False
    for place, name in enumerate(names):
        left, right = ours[: len(theirs), place], theirs[:, place]
        lonely = np.isnan(left) != np.isnan(right)
        if lonely.any():
            raise WrongRows(f"{name} is missing on one side only in row {lonely.argmax()}")
        there = ~np.isnan(right)
        if not there.any():
            raise WrongRows(f"{name} has no value at all")
        size = np.maximum(np.abs(right), np.abs(right[there]).mean())
        apart = np.where(there, np.abs(left - right) / np.where(size > 0, size, 1.0), 0.0)
        row = int(apart.argmax())
        worst = max(worst, float(apart[row]))
        varies |= bool(np.ptp(right[there]) > 0)
        if not apart[row] <= TOLERANCE:
            raise WrongRows(
                f"{name} differs by {apart[row]:.3g} in row {row}: {left[row]} here, {right[row]} there"
            )
    return worst


def compete(contest: Contest, n_rounds: int, scratch: Path) -> tuple[Standing, float]:
    """Let both sides do their part in turns, ours first in even rounds, and compare their values in each.

    Raises
    ------
    Wrong
        If a side cannot be run, or the values differ.
    """
    standing, worst = Standing(contest), 0.0
    for place in range(n_rounds):
        sides = (contest.ours, contest.plain)
        for side in sides if place % 2 == 0 else reversed(sides):
            job = Job(side.name, side.n_rows, contest.functions, str(scratch / f"{side.name}.npy"))
            (standing.ours if side is contest.ours else standing.plain).append(_report(job))
        names = [
            (scratch / f"{side.name}.npy.names").read_text(encoding="utf-8").split("\n") for side in sides
        ]
        if names[0] != names[1]:
            raise Wrong(f"{contest.title}: the columns are {names[0]} and {names[1]}")
        try:
            worst = max(
                worst, check_values(names[0], *(np.load(scratch / f"{side.name}.npy") for side in sides))
            )
        except WrongRows as error:
            raise Wrong(f"{contest.title}: {error}") from None
    return standing, worst


def _report(job: Job) -> Report:
    done = subprocess.run(
        [sys.executable, __file__, "--contender", job.contender],
        cwd=ROOT,
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Wrong(f"{job.contender} failed:\n{done.stderr}")
    return report_of(json.loads(done.stdout))


def show(standing: Standing, worst: float) -> None:
    """Print a contest's table."""
    contest, ratio = standing.contest, ratio_of(standing.ours, standing.plain)
    table = Table(title=f"{contest.title}, best of {len(standing.ours)} rounds", title_justify="left")
    for heading in (
        "contender",
        "rows",
        "CPU s",
        "CPU s a year",
        "ours / it",
        "median",
        "aim",
        "values",
    ):
        table.add_column(heading, justify="left" if heading == "contender" else "right")
    for side, reports in ((contest.ours, standing.ours), (contest.plain, standing.plain)):
        best = min(report.cpu_s for report in reports)
        numbers = [f"{side.n_rows:,}", f"{best:.2f}", f"{best / side.n_rows * YEAR:,.1f}"]
        if side is contest.ours:
            table.add_row(side.shown, *numbers, "", "", "", "right")
            continue
        verdict = ""
        if contest.aim is not None:
            verdict = f"{contest.aim:g}: {'met' if ratio.best >= contest.aim else 'missed'}"
        told = [f"{ratio.best:.1f}", f"{ratio.median:.1f}", verdict]
        table.add_row(side.shown, *numbers, *told, f"within {worst:.0e}")
    CONSOLE.print(table)
    if contest.plain.n_rows != contest.ours.n_rows:
        CONSOLE.print(
            f"on {contest.plain.n_rows / contest.ours.n_rows:.1%} of the rows, scaled by row; the values of these rows "
            "were compared",
            style="dim",
        )


def contests_of(quick: bool) -> dict[str, list[Contest]]:
    """The contests of each section."""
    n_rows, n_part = (6_000, 2_000) if quick else (YEAR, YEAR // 24)
    n_labels, n_looped, n_sliced = (20_000, 12_000, 12_000) if quick else (1_000_000, 100_000, 20_000)
    ours = Side("our_klines", "ours", n_rows)
    highlow2 = f"highlow2, {len(_THRESHOLDS)} thresholds over {_HORIZON} one-minute bars"
    topbot2 = f"topbot2, {len(_TOLERANCES)} tolerances, extrema within {_REACH} one-minute bars"
    return {
        "klines": [
            Contest(
                "the kline set, 51 columns of one-minute bars",
                (*_RELATIVE, *_SHAPES),
                ours,
                Side("pandas_klines", "pandas: rolling and apply", n_part),
                20.0,
            ),
            Contest(
                "the kline set without areas and trends, 41 columns",
                _RELATIVE,
                ours,
                # On a whole year pandas' running deviations are too far from exact ones to pass the gate.
                Side("pandas_klines", "pandas: rolling", n_part),
                None,
            ),
        ],
        "labels": [
            Contest(title, (function,), Side(f"our_{family}", "ours", n_labels), plain, 100.0)
            for family, title, function, plain in (
                ("highlow2", highlow2, "high", Side("pandas_highlow2", "pandas: a slice a row", n_sliced)),
                ("highlow2", highlow2, "high", Side("python_highlow2", "Python: loops over lists", n_looped)),
                ("topbot2", topbot2, "top", Side("sliced_topbot2", "pandas: slices a row", n_sliced)),
                ("topbot2", topbot2, "top", Side("pandas_topbot2", "pandas: the work list", n_labels)),
                ("topbot2", topbot2, "top", Side("python_topbot2", "Python: the work list", n_labels)),
            )
        ],
    }


def _written(standing: Standing, worst: float) -> dict[str, Any]:
    contest = standing.contest
    return {
        "title": contest.title,
        "aim": contest.aim,
        "largest_difference": worst,
        "ratio": asdict(ratio_of(standing.ours, standing.plain)),
        "contenders": [
            {
                "contender": side.name,
                "n_rows": side.n_rows,
                "rounds": [{"cpu_s": report.cpu_s} for report in reports],
                "versions": reports[0].versions,
            }
            for side, reports in ((contest.ours, standing.ours), (contest.plain, standing.plain))
        ],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; 1 if a gate failed, whatever the speed."""
    sections = list(contests_of(quick=True))
    parser = parser_of(__doc__, sections, 3)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.contender:
        told: Mapping[str, Any] = json.load(sys.stdin)
        report = carry_out(Job(**told))
        print(json.dumps(asdict(report)))
        return 0
    asked, here = sections_of(parser, chosen, sections), machine()
    contests = contests_of(chosen.quick)
    try:
        for section in asked:
            result: dict[str, Any] = {"machine": here, "quick": chosen.quick, "contests": []}
            for contest in contests[section]:
                with tempfile.TemporaryDirectory(prefix="crypto-assets-bench-") as folder:
                    standing, worst = compete(contest, chosen.rounds, Path(folder))
                show(standing, worst)
                result["contests"].append(_written(standing, worst))
            write(chosen.results, section, result)
    except Wrong as error:
        CONSOLE.print(f"gate failed: {error}", style="bold red")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
