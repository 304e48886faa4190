"""Runs the dbt project over the lake: one private in-memory database per run, one window, rows handed back as Arrow.

Here: control tables, the invocation, its errors, the manifest. Not here: SQL (``dbt_features``) and storing what comes
back (``warehouse``). Assets receive it; nothing in the lake is written.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crypto_assets.intervals import MINUTE_MS, interval_ms
from crypto_assets.resources.warehouse.catalog import Catalog
from crypto_assets.resources.warehouse.lake import Lake
from crypto_assets.schemas import ARROW_TYPES
from crypto_assets.tables import table_of

#: The dbt project beside the package.
PROJECT = Path(__file__).resolve().parents[2] / "dbt_features"

_TIMESTAMP = ARROW_TYPES["TIMESTAMP"]
_DAY = timedelta(days=1)

#: Columns of the control tables that a caller gives; the models read them as ``control.<name>``.
CONTROLS: dict[str, pa.Schema] = {
    "days": pa.schema([("day", _TIMESTAMP), ("watermark", _TIMESTAMP)]),
    "listings": pa.schema(
        [
            ("symbol", pa.string()),
            ("listing_id", pa.string()),
            ("coin_id", pa.string()),
            ("valid_from", _TIMESTAMP),
            ("valid_to", _TIMESTAMP),
        ]
    ),
    "intervals": pa.schema([("interval", pa.string()), ("minutes", pa.int64()), ("is_raster", pa.bool_())]),
    "settings": pa.schema(
        [("venue", pa.string()), ("base_interval", pa.string()), ("base_minutes", pa.int64())]
    ),
    "ages": pa.schema([("source", pa.string()), ("microseconds", pa.int64())]),
    "standings": pa.schema(
        [
            ("place", pa.int64()),
            ("name", pa.string()),
            ("kind", pa.string()),
            ("compared", pa.string()),
            ("source", pa.string()),
        ]
    ),
}

#: Sources of the raster besides the bars: what its rows carry of them has an age.
AGED_SOURCES = ("market_cap", "contract", "funding_rate", "open_interest", "order_book")

# dbt keeps its adapter, flags and environment in module globals: one invocation at a time in a process.
_ONE_AT_A_TIME = threading.Lock()


class DbtError(RuntimeError):
    """dbt failed; the message names each model or test that failed and why. Nothing was handed back."""


def interval_controls(
    venue: str, base_interval: str, rollup_intervals: Sequence[str], raster_interval: str
) -> dict[str, pa.Table]:
    """The control tables ``intervals`` and ``settings``.

    Parameters
    ----------
    venue
        The exchange whose bars make the raster.
    base_interval
        Interval of the bars in ``raw/klines``.
    rollup_intervals
        Intervals to make, each a multiple of the base interval.
    raster_interval
        The interval of the feature grid, one of ``rollup_intervals``.

    Raises
    ------
    ValueError
        If an interval is unknown, no multiple of the base interval, or the raster is not rolled up.

    Examples
    --------
    >>> interval_controls("binance", "1h", ["1h", "4h"], "1h")["intervals"].to_pydict()
    {'interval': ['1h', '4h'], 'minutes': [60, 240], 'is_raster': [True, False]}
    """
    base = interval_ms(base_interval)
    for interval in rollup_intervals:
        if interval_ms(interval) % base:
            raise ValueError(
                f"rollup interval {interval} is not a multiple of the base interval {base_interval}"
            )
    if raster_interval not in rollup_intervals:
        raise ValueError(
            f"raster interval {raster_interval} is not rolled up; add it to {', '.join(rollup_intervals)}"
        )
    intervals = [
        {"interval": name, "minutes": interval_ms(name) // MINUTE_MS, "is_raster": name == raster_interval}
        for name in rollup_intervals
    ]
    settings = [{"venue": venue, "base_interval": base_interval, "base_minutes": base // MINUTE_MS}]
    return {
        "intervals": pa.Table.from_pylist(intervals, schema=CONTROLS["intervals"]),
        "settings": pa.Table.from_pylist(settings, schema=CONTROLS["settings"]),
    }


def age_control(max_age: Mapping[str, timedelta]) -> pa.Table:
    """The control table ``ages``.

    Parameters
    ----------
    max_age
        Source -> how long what was known of it is carried in the raster, see ``settings.MaxAges``.

    Examples
    --------
    >>> age_control({"order_book": timedelta(minutes=15)}).to_pylist()
    [{'source': 'order_book', 'microseconds': 900000000}]
    """
    rows = [
        {"source": source, "microseconds": age // timedelta(microseconds=1)}
        for source, age in max_age.items()
    ]
    return pa.Table.from_pylist(rows, schema=CONTROLS["ages"])


def standing_control(standings: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The control table ``standings``.

    Parameters
    ----------
    standings
        The columns of ``features/cross_section`` in order: ``name``, ``kind`` (rank, z), ``compared`` (a column) and
        ``source``, the contract name of the table that holds it.
    """
    rows = [
        {**row, "place": place, "source": row["source"].replace("/", ".")}
        for place, row in enumerate(standings)
    ]
    return pa.Table.from_pylist(rows, schema=CONTROLS["standings"])


def watermark_control(watermarks: Mapping[datetime, datetime | None]) -> pa.Table:
    """The control table ``days``.

    Parameters
    ----------
    watermarks
        UTC midnight of each day -> end of its last closed base interval: the end of the day or later where the day is
        whole, None where nothing of it has closed.
    """
    rows = [{"day": day, "watermark": watermark} for day, watermark in sorted(watermarks.items())]
    return pa.Table.from_pylist(rows, schema=CONTROLS["days"])


def listing_control(listings: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The control table ``listings``: at least one row per symbol of the universe.

    Parameters
    ----------
    listings
        ``symbol``, ``listing_id`` and, where known, ``coin_id``, ``valid_from``, ``valid_to`` (exclusive; missing means
        unbounded). Lives of a symbol must not overlap. A missing ``coin_id`` is looked up in ``raw/coins``.
    """
    return pa.Table.from_pylist([dict(row) for row in listings], schema=CONTROLS["listings"])


@dataclass(frozen=True)
class Part:
    """Rows that one model made of some days of the window: [start, end), naive UTC midnights."""

    start: datetime
    end: datetime
    file: Path

    def rows(self) -> pa.Table:
        """The rows, in any order, ready for ``conform``."""
        return pq.read_table(self.file)


@dataclass(frozen=True)
class Built:
    """What one run made.

    Attributes
    ----------
    parts
        Contract name -> parts in order of time, which together are the window.
    sql
        Contract name -> the SQL that was run, without Jinja.
    """

    parts: Mapping[str, tuple[Part, ...]]
    sql: Mapping[str, str]


def run_dbt(
    lake: Lake,
    select: Sequence[str],
    start: datetime,
    end: datetime,
    controls: Mapping[str, pa.Table],
    project_dir: Path = PROJECT,
    work_dir: Path | None = None,
) -> dict[str, pa.Table]:
    """Build models for a window, test the rows they made, and read them all: see ``built``.

    Returns
    -------
    dict of str to pyarrow.Table
        Contract name -> rows of the window, in any order, ready for ``conform``.
    """
    with built(lake, select, start, end, controls, project_dir, work_dir) as made:
        return {name: pa.concat_tables([part.rows() for part in parts]) for name, parts in made.parts.items()}


@contextmanager
def built(
    lake: Lake,
    select: Sequence[str],
    start: datetime,
    end: datetime,
    controls: Mapping[str, pa.Table],
    project_dir: Path = PROJECT,
    work_dir: Path | None = None,
) -> Generator[Built]:
    """Build models for a window and test the rows they made.

    Parameters
    ----------
    lake
        Where inputs are read; never written.
    select
        Contract names of models, such as ``rollups/klines``; models of one run see each other's fresh rows.
    start, end
        Naive UTC midnights, end exclusive.
    controls
        The tables of ``CONTROLS``; ``days`` names every day of the window.
    project_dir
        The dbt project.
    work_dir
        Where the temporary folder of the run is made; None: the system's. It is removed at the end of the context, and
        the parts with it.

    Yields
    ------
    Built
        The rows in files, so that a long window need not be held in memory.

    Raises
    ------
    KeyError
        If a selected name has no contract.
    ValueError
        If window, models or controls do not fit.
    WarehouseError
        If a model cannot be built and a partition of the lake is damaged.
    DbtError
        If a model cannot be built otherwise, or a data test fails.
    """
    _check_window(start, end)
    prepared = _checked_controls(controls, start, end)
    models = {name: table_of(name) for name in select}
    if not models:
        raise ValueError("no model selected: name at least one, such as rollups/klines")
    for name, table in models.items():
        if not (project_dir / "models" / table.stage / f"{table.table}.sql").is_file():
            raise ValueError(f"{name} is no model of {project_dir.name}: there is no models/{name}.sql")
    selectors = [f"path:models/{name}.sql" for name in models]
    with _work_folder(work_dir) as work:
        _prepare(lake, prepared, work)
        arguments = ["build", "--select", *selectors, "--exclude-resource-type", "unit_test"]
        try:
            result = _invoke(arguments, project_dir, work, start, end)
        except DbtError:
            _require_sound(lake)
            raise
        sql = {
            f"{item.node.schema}/{item.node.name}": item.node.compiled_code
            for item in result.results
            if item.node.resource_type == "model"
        }
        yield Built({name: _parts(work, f"{one.stage}__{one.table}") for name, one in models.items()}, sql)


def _parts(work: Path, stem: str) -> tuple[Part, ...]:
    # ISO dates have a fixed length, and in the order of names are in the order of time.
    parts = []
    for file in sorted(work.glob(f"{stem}-*.parquet")):
        first, last = file.stem[-21:-11], file.stem[-10:]
        parts.append(Part(datetime.fromisoformat(first), datetime.fromisoformat(last), file))
    return tuple(parts)


def run_unit_tests(lake: Lake, project_dir: Path = PROJECT, work_dir: Path | None = None) -> list[str]:
    """Run the project's dbt unit tests and return their names.

    They read the control tables of a run of 2024-01-01 over one market, A/USDT: base and raster are 1h, which is rolled up
    to 4h, and every source may be two hours old.

    Parameters
    ----------
    lake
        Any lake; only the types of its tables are read.

    Raises
    ------
    DbtError
        If one fails.
    """
    day = datetime(2024, 1, 1)
    controls = {
        **interval_controls("binance", "1h", ["1h", "4h"], "1h"),
        "days": watermark_control({day - _DAY: day, day: day + _DAY}),
        "listings": listing_control([{"symbol": "A/USDT", "listing_id": "A/USDT#1", "coin_id": "a"}]),
        "ages": age_control(dict.fromkeys(AGED_SOURCES, timedelta(hours=2))),
        "standings": standing_control([]),
    }
    with _work_folder(work_dir) as work:
        _prepare(lake, _checked_controls(controls, day, day + _DAY), work)
        result = _invoke(["test", "--select", "test_type:unit"], project_dir, work, day, day + _DAY)
    return [item.node.name for item in result.results if item.node.resource_type == "unit_test"]


def manifest_path(project_dir: Path = PROJECT) -> Path:
    """The project's manifest, parsed anew where it is missing or older than a file of the project.

    Raises
    ------
    DbtError
        If the project cannot be parsed.
    """
    target = project_dir / "target"
    manifest = target / "manifest.json"
    if manifest.is_file() and manifest.stat().st_mtime_ns > _newest_change(project_dir):
        return manifest
    target.mkdir(exist_ok=True)
    # Parsed aside and renamed: another process may be reading, or parsing as well.
    with TemporaryDirectory(dir=target, prefix="parse-") as folder:
        work = Path(folder)
        now = datetime(1970, 1, 1)
        _invoke(["parse"], project_dir, work, now, now, parsed=target)
        for name in ("partial_parse.msgpack", "manifest.json"):
            (work / "target" / name).replace(target / name)
    return manifest


def _newest_change(project_dir: Path) -> int:
    files = [project_dir / "dbt_project.yml", project_dir / "profiles.yml"]
    for folder in ("models", "macros"):
        files += [project_dir / folder, *(project_dir / folder).rglob("*")]
    return max(path.stat().st_mtime_ns for path in files)


@contextmanager
def _work_folder(parent: Path | None) -> Generator[Path]:
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=parent, prefix="dbt-") as folder:
        yield Path(folder).resolve()


def _check_window(start: datetime, end: datetime) -> None:
    for moment in (start, end):
        if moment.tzinfo is not None or moment != datetime(moment.year, moment.month, moment.day):
            raise ValueError(f"window bound {moment} is no naive UTC midnight; run whole days")
    if start >= end:
        raise ValueError(f"window [{start}, {end}) holds no day")


def _checked_controls(
    controls: Mapping[str, pa.Table], start: datetime, end: datetime
) -> dict[str, pa.Table]:
    if set(controls) != set(CONTROLS):
        raise ValueError(f"control tables {sorted(controls)} given; exactly {sorted(CONTROLS)} are needed")
    prepared = {}
    for name, schema in CONTROLS.items():
        if set(controls[name].column_names) != set(schema.names):
            raise ValueError(
                f"control table {name} has columns {controls[name].column_names}; needed: {schema.names}"
            )
        prepared[name] = controls[name].select(schema.names).cast(schema)
    _check_lives(prepared["listings"])
    days = prepared["days"].column("day").to_pylist()
    wanted = {start + number * _DAY for number in range((end - start).days)}
    if len(days) != len(set(days)) or not wanted <= set(days):
        missing = ", ".join(str(day.date()) for day in sorted(wanted - set(days))[:3])
        raise ValueError(
            f"control table days must name each day once (missing: {missing or 'none'}); NULL: nothing closed"
        )
    return prepared


def _check_lives(listings: pa.Table) -> None:
    lives: dict[str, list[tuple[datetime, datetime, str]]] = {}
    for row in listings.to_pylist():
        bounds = (row["valid_from"] or datetime(1, 1, 1), row["valid_to"] or datetime(9999, 12, 31))
        lives.setdefault(row["symbol"], []).append((*bounds, row["listing_id"]))
    for symbol, spans in lives.items():
        ordered = sorted(spans)
        for earlier, later in zip(ordered, ordered[1:], strict=False):
            if later[0] < earlier[1]:
                raise ValueError(
                    f"control table listings: {earlier[2]} and {later[2]} overlap; bound the lives of {symbol}"
                )


def _prepare(lake: Lake, controls: Mapping[str, pa.Table], work: Path) -> None:
    views = [statement for statement in Catalog(lake).statements() if not statement.startswith("comment ")]
    spill = f"set temp_directory = '{_escaped(work / 'spill')}'"
    lines = [spill, "use lake", *views, "use memory", "create schema if not exists control"]
    for name, table in controls.items():
        file = work / f"control_{name}.parquet"
        pq.write_table(table, file)
        lines.append(
            f"create or replace table control.{name} as select * from read_parquet('{_escaped(file)}')"
        )
    (work / "prepare.sql").write_text(";\n".join(lines))


def _require_sound(lake: Lake) -> None:
    # Reading what every partition says of itself refuses a damaged one, with what to do.
    for _ in lake.manifest():
        pass


def _escaped(path: Path) -> str:
    return str(path).replace("'", "''")


def _invoke(
    arguments: Sequence[str],
    project_dir: Path,
    work: Path,
    start: datetime,
    end: datetime,
    parsed: Path | None = None,
) -> Any:
    from dbt.adapters.duckdb.connections import DuckDBConnectionManager
    from dbt.cli.main import dbtRunner

    known = (parsed or manifest_path(project_dir).parent) / "partial_parse.msgpack"
    target = work / "target"
    target.mkdir()
    if known.is_file():
        shutil.copyfile(known, target / known.name)
    command = [
        *(
            "--quiet",
            "--no-use-colors",
            "--no-version-check",
            "--log-level",
            "none",
            "--log-level-file",
            "info",
        ),
        *("--log-path", str(work / "logs")),
        # Nobody reads what a run would write of itself; a parse is made for its manifest.
        *(() if parsed else ("--no-write-json",)),
        *arguments,
        *(
            "--project-dir",
            str(project_dir),
            "--profiles-dir",
            str(project_dir),
            "--target-path",
            str(target),
        ),
    ]
    window = {
        "CRYPTO_ASSETS_DBT_WORK": str(work),
        "CRYPTO_ASSETS_DBT_START": start.isoformat(" "),
        "CRYPTO_ASSETS_DBT_END": end.isoformat(" "),
    }
    with _ONE_AT_A_TIME, _environment(window):
        try:
            outcome = dbtRunner().invoke(command)
        finally:
            # The adapter would keep the in-memory database, and with it this run's tables, for the next invocation.
            DuckDBConnectionManager.close_all_connections()
    if not outcome.success:
        raise DbtError(_failures(arguments[0], outcome))
    return outcome.result


@contextmanager
def _environment(values: Mapping[str, str]) -> Generator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _failures(command: str, outcome: Any) -> str:
    if outcome.exception is not None:
        return f"dbt {command} did not run: {outcome.exception}"
    failed = [item for item in outcome.result.results if item.status in ("error", "fail", "runtime error")]
    lines = [f"{item.node.resource_type} {item.node.name}: {item.message}" for item in failed]
    return f"dbt {command} failed in {len(failed)} place(s)\n" + "\n".join(lines)
