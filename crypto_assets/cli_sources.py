"""The commands that bring data in: load, verify, import, collect-books, maintain.

Here: arguments, progress and tables on screen. Not here: what commands do, which lives in the modules they call and is
imported only when a command runs. ``cli`` adds them to the command line.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.table import Table as RichTable

from crypto_assets import local
from crypto_assets.screen import be_quiet, console, open_market, run_steps, screen_copy, use_dagster_home
from crypto_assets.settings import Settings, SettingsError, current_settings

if TYPE_CHECKING:
    from crypto_assets.resources.ingest import Advance
    from crypto_assets.resources.sources import RateBudget

app = typer.Typer()


@app.command()
def load(
    first: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="first UTC day, YYYY-MM-DD; by default sources.first_load_days ago, or the newest stored day before",
        ),
    ] = None,
    last: Annotated[
        str | None, typer.Option("--to", help="last UTC day, included; by default the running one")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="a raw table, such as klines; may be given again. By default all of them"),
    ] = None,
    *,
    reread: Annotated[
        bool, typer.Option(help="ask again for what is stored, to take over what was restated")
    ] = False,
) -> None:
    """Download what is missing of the raw tables; Ctrl-C stops it and loses nothing that is stored.

    What tells only the present (symbols, universe, coins and their kinds) is asked for today, whatever the days.
    """
    from crypto_assets.resources.ingest import REREAD

    be_quiet()
    settings = current_settings()
    use_dagster_home(settings)
    start, end, bound = _days(settings, first, last)
    loading = _Loading(settings)
    chosen = _chosen(loading.definitions, only or [])
    with local.stopped_by_signals(loading.stop) as stopped, open_market(settings):
        console.print(f"loading {start} to {end} into {settings.warehouse.folder}{bound}", soft_wrap=True)
        succeeded = loading.run(chosen, (start, end), {REREAD: "true"} if reread else {}, stopped)
    if not succeeded:
        raise typer.Exit(1)


@app.command()
def verify() -> None:
    """Ask whether files of the archive were published again, and read the days of those that were."""
    from crypto_assets.definitions import archive_of
    from crypto_assets.partitions import DAILY
    from crypto_assets.resources.archive import published_again
    from crypto_assets.resources.ingest import REREAD
    from crypto_assets.resources.warehouse import Lake

    be_quiet()
    settings = current_settings()
    use_dagster_home(settings)
    ledger = Lake(settings.warehouse.folder).ledger
    archive = archive_of(settings).client(ledger)
    if archive is None:
        raise SettingsError(f"venue {settings.venue}: has no archive that is known here")
    loading, keys = _Loading(settings), DAILY.get_partition_keys()
    chosen = _chosen(loading.definitions, ["klines"])
    succeeded = True
    with local.stopped_by_signals(loading.stop) as stopped, open_market(settings):
        changed = published_again(archive, ledger)
        console.print(f"{len(changed)} files of the archive were published again")
        for file, (start, end) in changed.items():
            days = [key for key in keys if start.date().isoformat() <= key < end.date().isoformat()]
            console.print(f"reading {file} again", soft_wrap=True, highlight=False)
            if days:
                succeeded &= loading.run(chosen, (days[0], days[-1]), {REREAD: "true"}, stopped)
    if not succeeded:
        raise typer.Exit(1)


class _Bars(Progress):
    # Bars under the names of their columns.
    def make_tasks_table(self, tasks: Iterable[Task]) -> RichTable:
        table = super().make_tasks_table(tasks)
        table.show_header = True
        names = ("table", "day", "", "series", "rows", "budget left", "time left")
        for column, name in zip(table.columns, names, strict=True):
            column.header = name
        return table


class _Loading:
    """One load: its definitions, which tell it how far they have come, and the screen that shows it."""

    def __init__(self, settings: Settings) -> None:
        from crypto_assets.definitions import definitions_of

        self.definitions = definitions_of(settings, self._listen)
        self._budgets = _budgets(settings)
        self._screen = console
        self._tasks: dict[str, TaskID] = {}
        self._n_rows: dict[str, int] = {}
        self._tenths: dict[str, int] = {}

    def run(
        self, chosen: list[Any], days: tuple[str, str], tags: dict[str, str], stopped: Callable[[], bool]
    ) -> bool:
        """Run the steps; whether all went well."""
        from crypto_assets.partitions import DAILY

        today = DAILY.get_partition_keys()[-1]
        number = partial(Column, justify="right", no_wrap=True)
        with screen_copy() as screen:
            self._bars = _Bars(
                TextColumn("{task.description}", table_column=Column(min_width=17, no_wrap=True)),
                TextColumn("{task.fields[day]}", style="cyan", table_column=Column(min_width=10)),
                BarColumn(bar_width=None, table_column=Column(ratio=1)),
                TextColumn("{task.fields[series]}", justify="right", table_column=number()),
                TextColumn("{task.fields[rows]}", justify="right", table_column=number()),
                TextColumn("{task.fields[budget]}", justify="right", table_column=number()),
                TimeRemainingColumn(),
                console=screen,
                refresh_per_second=2,
                expand=True,
                disable=not screen.is_terminal,
            )
            with self._bars as bars, self._on(screen):
                return run_steps(
                    screen,
                    bars,
                    self.definitions,
                    chosen,
                    days=lambda step: (today, today) if _tells_the_present(step) else days,
                    tags=tags,
                    stopped=stopped,
                    begin=self._begin,
                    end=self._end,
                )

    @contextmanager
    def _on(self, screen: Console) -> Generator[None]:
        self._screen = screen
        try:
            yield
        finally:
            self._screen = console

    def stop(self, count: int) -> None:
        """Say that stopping may take a while; when asked again, end at once as a kill would, which loses nothing."""
        if count == 1:
            self._say("stopping after the requests under way; Ctrl-C again ends at once")
        else:
            os._exit(128 + signal.SIGINT)

    def _begin(self, step: Any) -> None:
        self._tasks[step.name] = self._bars.add_task(
            step.name, total=None, day="", series="", rows="", budget=""
        )

    def _end(self, step: Any) -> None:
        self._bars.update(self._tasks[step.name], total=1, completed=1)
        n_rows = self._n_rows.get(step.name)
        if n_rows is not None and not self._screen.is_terminal:
            self._say(f"{step.name}: {n_rows:,} rows read")

    def _listen(self, advance: Advance) -> None:
        total, done = advance.missing.total_seconds(), advance.read.total_seconds()
        series, rows = f"{advance.n_done}/{advance.n_series}", f"{advance.n_rows:,}"
        budget = _left_of(self._budgets[advance.asset])
        self._n_rows[advance.asset] = advance.n_rows
        self._bars.update(
            self._tasks[advance.asset],
            total=total or 1,
            completed=min(done, total) if total else 1,
            day=advance.day,
            series=series,
            rows=rows,
            budget=budget,
        )
        tenth = int(10 * done / total) if total else 10
        if not self._screen.is_terminal and self._tenths.get(advance.asset) != tenth:
            self._tenths[advance.asset] = tenth
            self._say(f"{advance.asset} {advance.day}: {series} series, {rows} rows, budget left {budget}")

    def _say(self, text: str) -> None:
        self._screen.print(text, markup=False, highlight=False, soft_wrap=True)


def _budgets(settings: Settings) -> dict[str, list[RateBudget]]:
    """Table -> the budgets that its requests are charged to."""
    from crypto_assets.definitions import exchange_of, resources_of
    from crypto_assets.resources.coingecko import CoinGeckoResource
    from crypto_assets.resources.sources import RateBudget

    client, aggregator = exchange_of(settings).client(), resources_of(settings)["coingecko"]
    assert isinstance(aggregator, CoinGeckoResource)
    spot, contracts = client.budget("spot"), client.budget("perpetual")
    coins = RateBudget(Path(aggregator.budget_dir), "coingecko", aggregator.calls_per_minute)
    return {
        "raw/klines": [spot, contracts] if settings.universe.contract_types else [spot],
        "raw/funding_rates": [contracts],
        "raw/open_interest": [contracts],
        "raw/market_caps": [coins],
        "raw/coin_ohlc": [coins],
    }


def _left_of(budgets: list[RateBudget]) -> str:
    # Of several, the one that ends first.
    left = [(max(0, one.per_minute - one.used()), one.per_minute) for one in budgets]
    n_left, full = min(left, key=lambda pair: pair[0] / pair[1])
    return f"{n_left:,}/{full:,}"


def _tells_the_present(step: Any) -> bool:
    from crypto_assets.tables import table_of

    return any(table_of("/".join(key.path)).observed for key in step.keys)


def _chosen(defs: Any, only: list[str]) -> list[Any]:
    from crypto_assets import runs

    # Order books have hours, and commands of their own.
    steps = [step for step in runs.steps(defs) if step.keys[0].path[0] == "raw" and step.clock != "hourly"]
    names = {key.path[1] for step in steps for key in step.keys}
    unknown = sorted(set(only) - names)
    if unknown:
        raise SettingsError(f"--only {', '.join(unknown)}: no raw table; allowed: {', '.join(sorted(names))}")
    return [step for step in steps if not only or {key.path[1] for key in step.keys} & set(only)]


def _days(settings: Settings, first: str | None, last: str | None) -> tuple[str, str, str]:
    """First and last day, and what bounded them if nobody did."""
    from crypto_assets.partitions import DAILY
    from crypto_assets.resources.warehouse import Lake
    from crypto_assets.tables import table_of

    keys = DAILY.get_partition_keys()
    for name, given in (("--from", first), ("--to", last)):
        if given is not None and given not in keys:
            raise SettingsError(f"{name} {given}: no day of this warehouse; allowed: {keys[0]} to {keys[-1]}")
    end = last or keys[-1]
    if first is not None:
        if first > end:
            raise SettingsError(f"--from {first} lies after --to {end}")
        return first, end, ""
    days = settings.sources.first_load_days
    start = (date.fromisoformat(end) - timedelta(days=days - 1)).isoformat()
    # After a long pause a load goes on where the last one ended, so that no hole is left behind it.
    stored = [day for day in Lake(settings.warehouse.folder).partitions(table_of("raw/klines")) if day <= end]
    start = max(keys[0], min([start, *stored[-1:]]))
    return start, end, f" (sources.first_load_days is {days}; --from asks for more)"


@app.command(name="import")
def import_(
    paths: Annotated[list[Path], typer.Argument(help="files: csv, json, feather, parquet, zip, gz, tar.gz")],
    symbol: Annotated[
        str | None, typer.Option(help="market as ccxt writes it, such as BTC/USDT; by default from the names")
    ] = None,
    interval: Annotated[
        str | None, typer.Option(help="interval of the candles; by default from the names")
    ] = None,
    kind: Annotated[str, typer.Option(help="trade, mark, premium, funding or open_interest")] = "trade",
    venue: Annotated[
        str | None, typer.Option(help="exchange, ccxt name; by default the one in platform.yaml")
    ] = None,
    market_type: Annotated[
        str | None,
        typer.Option(help="spot, perpetual or delivery, where a name such as BTCUSDT may mean either"),
    ] = None,
    hours_ahead: Annotated[
        float | None, typer.Option(help="how far times without a zone are ahead of UTC, hours")
    ] = None,
    *,
    closed: Annotated[
        bool, typer.Option(help="the last candle of each file was closed when it was written")
    ] = False,
) -> None:
    """Add files that you own to the raw tables; what is stored already stays, what is odd is recorded."""
    from crypto_assets.resources.importer import ImportChoice, import_files
    from crypto_assets.resources.warehouse import Lake

    settings = current_settings()
    choice = ImportChoice(
        venue=venue or settings.venue,
        kind=_one_of("--kind", kind, IMPORT_KINDS),
        symbol=symbol,
        market_type=_one_of("--market-type", market_type, MARKET_TYPES),
        interval=interval,
        offset=None if hours_ahead is None else timedelta(hours=hours_ahead),
        closed=closed,
    )
    # Files are read offline as well, so where no market is simulated the machine says what is over.
    now = settings.simulation.now if settings.simulated else datetime.now(UTC).replace(tzinfo=None)
    reports = import_files(paths, Lake(settings.warehouse.folder), choice, now=now, listener=_tell)
    stored = [report for report in reports if report.problem is None]
    console.print(
        f"{len(stored)} of {len(reports)} series stored in {settings.warehouse.folder}", soft_wrap=True
    )
    if len(stored) < len(reports):
        raise typer.Exit(1)


@app.command()
def collect_books(
    minutes: Annotated[
        float | None, typer.Option(min=0, help="stop after so many minutes; by default at Ctrl-C")
    ] = None,
    flush: Annotated[int, typer.Option(min=1, help="seconds after which books are stored")] = 60,
    every: Annotated[
        int | None,
        typer.Option(min=1, help="seconds from one round to the next; by default sources.order_books.every"),
    ] = None,
) -> None:
    """Collect order books until Ctrl-C; what is in hand is stored before it ends."""
    from crypto_assets.definitions import exchange_of
    from crypto_assets.quant.order_books import LOOK_BACK, summary
    from crypto_assets.resources.order_books import BookCollector, BookStore, slot_of, stopping
    from crypto_assets.resources.snapshots import collected, known_markets
    from crypto_assets.resources.sources import RetryPolicy
    from crypto_assets.resources.warehouse.io_manager import WarehouseResource

    settings = current_settings()
    chosen = settings.sources.order_books
    if not chosen.symbols:
        raise SettingsError(
            "sources.order_books.symbols: is empty; name the markets whose books are collected"
        )
    length = chosen.every if every is None else timedelta(seconds=every)
    try:
        slot_of(datetime.min, length)  # noqa: DTZ901 - naive UTC
    except ValueError as error:
        raise SettingsError(f"--every {every}: {error}") from error
    # A simulated clock has to run: a round is made once.
    with local.stopped_by_signals(), open_market(settings, speed=1.0):
        # One attempt: the next round is the second.
        client = exchange_of(settings).client(RetryPolicy(attempts=1))
        warehouse = WarehouseResource(folder=str(settings.warehouse.folder))
        markets = collected(chosen.symbols, known_markets(warehouse, client, settings), client)
        summarise = partial(summary, bin_size_bps=chosen.bin_size_bps, asked_levels=chosen.levels)
        store = BookStore(
            settings.warehouse.folder, length, summarise, look_back=LOOK_BACK, run_id="collect-books"
        )
        with stopping() as stop:
            until = None if minutes is None else monotonic() + 60 * minutes

            def wait(seconds: float) -> bool:
                left = None if until is None else until - monotonic()
                if left is not None and left <= 0:
                    return True
                return stop.wait(seconds if left is None else min(seconds, left))

            collector = BookCollector(
                client,
                [one.market for one in markets],
                store,
                n_levels=chosen.levels,
                flush_every=timedelta(seconds=flush),
                wait=wait,
                n_threads=settings.sources.concurrency,
                told=lambda seen: console.print(
                    f"{seen.ts} {len(seen.answered)} of {len(markets)} books, {seen.levels.num_rows:,} levels"
                ),
            )
            console.print(f"collecting {len(markets)} books every {length}; Ctrl-C stops and stores")
            report = collector.run()
    console.print(
        f"{report.n_rounds} rounds, {report.n_levels:,} levels stored, {report.n_missed} rounds missed, "
        f"{sum(report.failures.values())} books did not come"
    )


@app.command()
def maintain(
    *, dry_run: Annotated[bool, typer.Option(help="say what would be done, and do nothing")] = False
) -> None:
    """Put order books of closed days into one file each, and remove levels that are older than wanted."""
    from crypto_assets.resources.order_books import compact_closed_days, remove_old_levels
    from crypto_assets.resources.warehouse import Lake

    settings = current_settings()
    lake = Lake(settings.warehouse.folder)
    now = settings.simulation.now if settings.simulated else datetime.now(UTC)
    keep_days = settings.sources.order_books.keep_days
    if keep_days is not None:
        found = remove_old_levels(lake, now.date(), keep_days, dry_run=dry_run)
        console.print(
            f"days whose levels {'would be' if dry_run else 'were'} removed: {', '.join(found.removed) or '-'}"
        )
        if found.kept:
            console.print(f"old days that stay, because they are not summarised: {', '.join(found.kept)}")
    if not dry_run:
        done = compact_closed_days(lake, now.date())
        days = sorted({day for found in done.days.values() for day in found})
        console.print(f"days put into one file: {', '.join(days) or '-'}")


IMPORT_KINDS = ("trade", "mark", "premium", "funding", "open_interest")
MARKET_TYPES = ("spot", "perpetual", "delivery")


def _one_of(option: str, given: str | None, allowed: tuple[str, ...]) -> Any:
    if given is not None and given not in allowed:
        raise SettingsError(f"{option} {given}: unknown; allowed: {', '.join(allowed)}")
    return given


def _tell(report: Any) -> None:
    if report.problem is not None:
        console.print(f"{report.file}: {report.problem}", style="red", markup=False, soft_wrap=True)
        return
    odd = {
        "known": report.n_known,
        "in conflict": report.n_conflicts,
        "twice": report.n_duplicates,
        "off the grid": report.n_off_grid,
        "perhaps open": report.n_open,
    }
    rest = "".join(f", {n:,} {name}" for name, n in odd.items() if n)
    console.print(
        f"{report.file}: {report.symbol} {report.kind} {report.interval} ({report.detected}), {report.n_rows:,} rows, "
        f"{report.n_added:,} added{rest}; {report.first_ts} to {report.last_ts}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
