"""Roll-ups next to pandas and Polars: ``python benchmarks/rollups.py [--quick] [--only rollups,refresh] [--rounds N]``.

Here: seeded minutes in the lake's files and in plain ones, three ways to nine longer intervals, the gate on their rows, the
order of events and the tables. Every contender runs in a process of its own, ``... --contender NAME < task``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
# Started by its path, it finds its own folder only.
sys.path.insert(0, str(ROOT))

from benchmarks.command import CONSOLE, Wrong, machine, parser_of, sections_of, write  # noqa: E402
from benchmarks.contest import Found, Report, Work, report_of  # noqa: E402
from benchmarks.gates import WrongRows, check_rows, ratio_of, speed  # noqa: E402
from crypto_assets.intervals import interval_delta, interval_ms  # noqa: E402
from crypto_assets.resources import dbt  # noqa: E402
from crypto_assets.resources.warehouse import Lake, Provenance  # noqa: E402
from crypto_assets.settings import MaxAges  # noqa: E402
from crypto_assets.tables import table_of  # noqa: E402

HERE = ROOT / "benchmarks"
START = datetime(2023, 1, 1)
DAY = timedelta(days=1)
INTERVALS = ("5m", "15m", "30m", "1h", "2h", "4h", "6h", "12h", "1d")
SECTIONS = ("rollups", "refresh")
MEMORY_AIM_BYTES = 4 << 30
REFRESH_AIM = 100.0
#: Share of minutes in which nothing is stored.
_HOLES = 0.01
_BARS_PER_DAY = 1440
_AMOUNTS = ("volume_base", "volume_quote", "taker_buy_base", "taker_buy_quote")
#: Amounts are whole multiples of this, which binary floats hold, so that sums of floats are exact in any order.
_STEP = 256
_BASE, _ROLLED = table_of("raw/klines"), table_of("rollups/klines")


@dataclass(frozen=True)
class Task:
    """What a contender has to roll up.

    Attributes
    ----------
    folder
        With the minutes, see ``make_minutes``.
    target
        An empty folder of the contender's own, for its Parquet files.
    n_symbols, n_days
        The first ones of those that were made.
    judged_from
        First day whose bars are compared.
    """

    folder: str
    target: str
    n_symbols: int
    n_days: int
    judged_from: int = 0


@dataclass(frozen=True)
class Measured:
    """A report with the most memory that the process ever held."""

    report: Report
    peak_bytes: int


@dataclass(frozen=True)
class Entrant:
    """A contender in a table, and the share of the symbols it gets."""

    name: str
    shown: str
    share: float = 1.0


@dataclass(frozen=True)
class Sizes:
    """How much is rolled up."""

    n_symbols: int
    n_days: int


FULL = Sizes(95, 365)
QUICK = Sizes(4, 3)

ENTRANTS = (
    Entrant("ours", "ours: dbt run with its tests, exact amounts"),
    Entrant("polars", "Polars group_by_dynamic, cascade, floats"),
    Entrant("pandas", "pandas resample a symbol, cascade, floats", share=0.1),
)


# -- the minutes


def symbol_of(number: int) -> str:
    """The symbols sort as they are numbered."""
    return f"C{number:03d}/USDT"


def minutes_of(day: int, n_symbols: int) -> dict[str, np.ndarray]:
    """One seeded day: columns over all symbols, by symbol and time."""
    rng = np.random.default_rng([7, day])
    shape = (n_symbols, _BARS_PER_DAY)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 1e-3, shape), axis=1))
    first = close * np.exp(rng.normal(0, 1e-3, shape))
    kept = (rng.random(shape) >= _HOLES).ravel()
    start = np.datetime64(START, "us") + np.timedelta64(day, "D")
    times = start + np.arange(_BARS_PER_DAY) * np.timedelta64(1, "m")
    columns = {
        "number": np.repeat(np.arange(n_symbols), _BARS_PER_DAY),
        "ts": np.tile(times, n_symbols),
        "open": first.ravel(),
        "high": (np.maximum(first, close) * 1.001).ravel(),
        "low": (np.minimum(first, close) * 0.999).ravel(),
        "close": close.ravel(),
        "n_trades": rng.integers(0, 10_000, shape).ravel(),
        **{name: rng.integers(0, 1 << 28, shape).ravel() for name in _AMOUNTS},
    }
    return {name: values[kept] for name, values in columns.items()}


def make_minutes(folder: Path, sizes: Sizes) -> int:
    """Write the minutes twice, as the lake's files and as plain ones with amounts in floats; returns their number."""
    lake, plain, n_rows = Lake(folder / "warehouse"), folder / "plain", 0
    plain.mkdir(parents=True)
    names = pa.array([symbol_of(number) for number in range(sizes.n_symbols)])
    for day in range(sizes.n_days):
        columns = minutes_of(day, sizes.n_symbols)
        symbols = names.take(pa.array(columns.pop("number")))
        n_rows += len(symbols)
        times, start = columns["ts"], START + day * DAY
        amounts = {name: columns[name] for name in _AMOUNTS}
        prices = {name: columns[name] for name in ("open", "high", "low", "close")}
        floats = {name: units / _STEP for name, units in amounts.items()}
        rows = {"symbol": symbols, "ts": times, **prices, "n_trades": columns["n_trades"], **floats}
        pq.write_table(pa.table(rows), plain / f"{start.date()}.parquet", compression="zstd")
        exact = {name: _decimals(units * (10**8 // _STEP)) for name, units in amounts.items()}
        constant = {"venue": "binance", "kind": "trade", "interval": "1m"}
        base = {
            **rows,
            **exact,
            **{name: pa.repeat(value, len(symbols)) for name, value in constant.items()},
            "known_at": times + np.timedelta64(1, "m"),
            "close_time": pa.nulls(len(symbols), pa.timestamp("us")),
        }
        key = start.date().isoformat()
        lake.replace(
            _BASE,
            key,
            pa.table(base).select(_BASE.column_names),
            Provenance(_BASE.name, key),
            (start, start + DAY),
        )
    return n_rows


def _decimals(units: np.ndarray) -> pa.Array:
    # Two little-endian words a value, of which the second is the sign's: all are positive.
    words = np.zeros((len(units), 2), dtype=np.int64)
    words[:, 0] = units
    return pa.Array.from_buffers(pa.decimal128(38, 8), len(units), [None, pa.py_buffer(words)])


def controls_of(task: Task) -> dict[str, pa.Table]:
    """What a run of the models is told."""
    end = START + task.n_days * DAY
    lives = [
        {"symbol": symbol_of(number), "listing_id": f"{symbol_of(number)}#1"}
        for number in range(task.n_symbols)
    ]
    return {
        **dbt.interval_controls("binance", "1m", INTERVALS, "1h"),
        "days": dbt.watermark_control({START + day * DAY: end for day in range(task.n_days)}),
        "listings": dbt.listing_control(lives),
        "ages": dbt.age_control(dict(MaxAges())),
        "standings": dbt.standing_control([]),
    }


# -- the contenders: each leaves Parquet files with the same columns


def ours(task: Task, work: Work) -> None:
    """The platform's own way: the dbt model and its data tests over the lake."""
    _run_ours(task, work, 0)


def our_refresh(task: Task, work: Work) -> None:
    """The same for the last day alone."""
    _run_ours(task, work, task.n_days - 1)


def _run_ours(task: Task, work: Work, first_day: int) -> None:
    lake, target = Lake(Path(task.folder) / "warehouse"), Path(task.target)
    window = START + first_day * DAY, START + task.n_days * DAY
    controls = controls_of(task)
    # Importing, parsing and what else a process does once are no part of a year's work, nor of a day's.
    dbt.run_dbt(lake, [_ROLLED.name], START, START + DAY, controls)
    with work.counted(), dbt.built(lake, [_ROLLED.name], *window, controls, work_dir=target) as made:
        for part in made.parts[_ROLLED.name]:
            part.file.rename(target / part.file.name)


def with_polars(task: Task, work: Work) -> None:
    """Polars: one sorted frame, ``group_by_dynamic`` of each interval over the longest shorter one."""
    import polars as pl

    with work.counted():
        files = _plain_files(task)
        base = (
            pl.scan_parquet(files)
            .filter(pl.col("symbol") <= symbol_of(task.n_symbols - 1))
            .with_columns(pl.lit(1, pl.Int64).alias("n_base_bars"))
            .sort("symbol", "ts")
            .collect()
        )
        sums = [pl.col(name).sum() for name in (*_AMOUNTS, "n_trades", "n_base_bars")]
        prices = [pl.col("open").first(), pl.col("high").max(), pl.col("low").min(), pl.col("close").last()]
        made = {"1m": base}
        for interval, parent in _cascade():
            frame = made[parent].group_by_dynamic("ts", every=interval, group_by="symbol").agg(*prices, *sums)
            made[interval] = frame
            out = frame.with_columns(pl.lit(interval).alias("interval"))
            out.write_parquet(Path(task.target) / f"{interval}.parquet", compression="zstd")


def with_pandas(task: Task, work: Work) -> None:
    """pandas: all rows in memory, ``resample`` of each symbol and interval over the longest shorter one."""
    import pandas as pd

    with work.counted():
        wanted = [("symbol", "<=", symbol_of(task.n_symbols - 1))]
        base = pd.concat(pd.read_parquet(file, filters=wanted) for file in _plain_files(task))
        rules: dict[str, str] = {"open": "first", "high": "max", "low": "min", "close": "last"}
        rules |= dict.fromkeys((*_AMOUNTS, "n_trades", "n_base_bars"), "sum")
        found: dict[str, list[pd.DataFrame]] = {interval: [] for interval in INTERVALS}
        for symbol, rows in base.groupby("symbol"):
            made = {"1m": rows.drop(columns="symbol").assign(n_base_bars=1).set_index("ts")}
            for interval, parent in _cascade():
                length = pd.Timedelta(interval_delta(interval))
                frame = made[parent].resample(length).agg(rules)
                made[interval] = frame[frame["n_base_bars"] > 0]
                found[interval].append(made[interval].assign(symbol=symbol))
        for interval, frames in found.items():
            out = pd.concat(frames).reset_index().assign(interval=interval)
            out.to_parquet(Path(task.target) / f"{interval}.parquet", compression="zstd")


def _plain_files(task: Task) -> list[Path]:
    return sorted((Path(task.folder) / "plain").glob("*.parquet"))[: task.n_days]


def _cascade() -> Iterator[tuple[str, str]]:
    shorter = ["1m"]
    for interval in INTERVALS:
        yield interval, [name for name in shorter if interval_ms(interval) % interval_ms(name) == 0][-1]
        shorter.append(interval)


CONTENDERS: dict[str, tuple[Callable[[Task, Work], None], tuple[str, ...]]] = {
    "ours": (ours, ("dbt-core", "dbt-duckdb", "duckdb")),
    "our_refresh": (our_refresh, ("dbt-core", "dbt-duckdb", "duckdb")),
    "polars": (with_polars, ("polars",)),
    "pandas": (with_pandas, ("pandas",)),
}


def found_in(target: Path, since: datetime = START) -> dict[str, Found]:
    """Rows by symbol, with a sum of hashes of all their values, so that the order of rows does not count."""
    values = ", ".join(f"{name}::double" for name in ("open", "high", "low", "close", *_AMOUNTS))
    counts = ", ".join(f"{name}::bigint" for name in ("n_trades", "n_base_bars"))
    rows = duckdb.sql(f"""
        select symbol, count(*), sum(hash(interval, epoch_us(ts), {counts}, {values})::hugeint)::varchar
        from read_parquet('{target}/*.parquet') where ts >= timestamp '{since}' group by symbol""").fetchall()
    return {symbol: Found(n, digest) for symbol, n, digest in rows}


def contend(name: str, task: Task) -> Measured:
    """Let a contender do a task in this process."""
    contender, packages = CONTENDERS[name]
    work = Work()
    contender(task, work)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_bytes = peak if sys.platform == "darwin" else peak * 1024
    report = Report(
        work.cpu_s,
        found_in(Path(task.target), START + task.judged_from * DAY),
        {package: version(package) for package in packages},
    )
    return Measured(report, peak_bytes)


# -- the order of events


def let_run(name: str, task: Task) -> Measured:
    """Let a contender do a task in a process of its own.

    Raises
    ------
    Wrong
        If it fails.
    """
    with tempfile.TemporaryDirectory(dir=task.folder) as target:
        done = subprocess.run(
            [sys.executable, str(Path(__file__)), "--contender", name],
            cwd=ROOT,
            input=json.dumps(asdict(replace(task, target=target))),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise Wrong(f"{name} failed:\n{done.stderr}")
    told = json.loads(done.stdout.splitlines()[-1])
    return Measured(report_of(told["report"]), told["peak_bytes"])


def judge(name: str, found: Mapping[str, Found], truth: Mapping[str, Found]) -> None:
    """Pass a contender that has the rows of ours, of as many symbols as it was given.

    Raises
    ------
    Wrong
        If one value of one bar differs, or a bar is missing or additional.
    """
    try:
        check_rows(name, found, {symbol: truth[symbol] for symbol in found if symbol in truth})
    except WrongRows as error:
        raise Wrong(str(error)) from None


def compare(folder: Path, sizes: Sizes, n_rounds: int) -> dict[str, list[Measured]]:
    """Let all contenders do their task, one after the other in each round."""
    runs: dict[str, list[Measured]] = {entrant.name: [] for entrant in ENTRANTS}
    for _ in range(n_rounds):
        for entrant in ENTRANTS:
            n_symbols = max(1, round(entrant.share * sizes.n_symbols))
            task = Task(str(folder), "", n_symbols, sizes.n_days)
            runs[entrant.name].append(let_run(entrant.name, task))
            found = runs[entrant.name][-1].report.found
            if len(found) != n_symbols:
                raise Wrong(f"{entrant.name}: {len(found)} symbols where {n_symbols} were given")
            judge(entrant.name, found, runs["ours"][-1].report.found)
    return runs


def show(runs: Mapping[str, Sequence[Measured]], n_rows: int) -> list[dict[str, Any]]:
    """Print the table; what is written of it."""
    table = Table(
        title=f"1m to {len(INTERVALS)} intervals, {n_rows:,} rows, best of {len(runs['ours'])} rounds",
        title_justify="left",
    )
    for heading in ("contender", "bars/CPU s", "ours / it", "median", "symbols", "peak", "rows"):
        table.add_column(heading, justify="left" if heading == "contender" else "right")
    told = []
    mine = [one.report for one in runs["ours"]]
    for entrant in ENTRANTS:
        reports = [one.report for one in runs[entrant.name]]
        peak = max(one.peak_bytes for one in runs[entrant.name])
        ratio = ratio_of(mine, reports)
        shown = ("", "") if entrant.name == "ours" else (f"{ratio.best:.2f}", f"{ratio.median:.2f}")
        table.add_row(
            entrant.shown,
            f"{max(map(speed, reports)):,.0f}",
            *shown,
            str(len(reports[0].found)),
            f"{peak / 2**30:.2f} GiB",
            "equal",
        )
        told.append(
            {
                "contender": entrant.name,
                "cpu_s": [report.cpu_s for report in reports],
                "bars": [report.n_rows for report in reports],
                "peak_bytes": peak,
                "ratio": asdict(ratio),
                "versions": reports[0].versions,
            }
        )
    CONSOLE.print(table)
    others = [ratio_of(mine, [one.report for one in runs[entrant.name]]).best for entrant in ENTRANTS[1:]]
    peak = max(one.peak_bytes for one in runs["ours"])
    CONSOLE.print(
        f"aim, as fast as the faster one: {_verdict(min(others) >= 1)}; "
        f"aim, under {MEMORY_AIM_BYTES / 2**30:g} GiB: {_verdict(peak < MEMORY_AIM_BYTES)}"
    )
    return told


def refresh(folder: Path, sizes: Sizes, n_rounds: int) -> dict[str, Any]:
    """The last day against all days; its bars must be the same."""
    task = Task(str(folder), "", sizes.n_symbols, sizes.n_days, judged_from=sizes.n_days - 1)
    whole, last = [], []
    for _ in range(n_rounds):
        whole.append(let_run("ours", task))
        last.append(let_run("our_refresh", task))
    made = last[0].report.found
    if made != whole[0].report.found or [one.n_rows for one in made.values()] != [_bars_of_a_day()] * len(
        made
    ):
        raise Wrong("the refresh made other bars of the last day than all days together")
    if len(made) != sizes.n_symbols:
        raise Wrong(f"the refresh made bars of {len(made)} of {sizes.n_symbols} symbols")
    ratio = min(one.report.cpu_s for one in whole) / min(one.report.cpu_s for one in last)
    CONSOLE.print(
        f"refresh of the last of {sizes.n_days} days: {min(one.report.cpu_s for one in last):.2f} CPU s, all days "
        f"{min(one.report.cpu_s for one in whole):.2f}: {ratio:.0f} times; aim {REFRESH_AIM:g}: "
        f"{_verdict(ratio >= REFRESH_AIM)}"
    )
    return {
        "whole_cpu_s": [one.report.cpu_s for one in whole],
        "last_day_cpu_s": [one.report.cpu_s for one in last],
        "ratio": ratio,
    }


def _bars_of_a_day() -> int:
    return sum(interval_ms("1d") // interval_ms(interval) for interval in INTERVALS)


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; 1 if a gate failed, whatever the speed."""
    parser = parser_of(__doc__, SECTIONS, 3)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.contender:
        # What libraries print must not mix with the report, which is the last line.
        measured = contend(chosen.contender, Task(**json.load(sys.stdin)))
        print(json.dumps(asdict(measured)), flush=True)
        return 0
    sections = sections_of(parser, chosen, SECTIONS)
    sizes, here = QUICK if chosen.quick else FULL, machine()
    result: dict[str, Any] = {"machine": here, "quick": chosen.quick}
    with tempfile.TemporaryDirectory(prefix="crypto-assets-bench-") as scratch:
        folder = Path(scratch)
        result["n_rows"] = make_minutes(folder, sizes)
        try:
            if "rollups" in sections:
                result["contenders"] = show(compare(folder, sizes, chosen.rounds), result["n_rows"])
            if "refresh" in sections:
                result["refresh"] = refresh(folder, sizes, chosen.rounds)
        except Wrong as error:
            CONSOLE.print(f"gate failed: {error}", style="bold red")
            return 1
    write(chosen.results, "rollups", result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
