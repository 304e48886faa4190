"""The commands that bring data in, as a user runs them: processes of their own, on a simulated market."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
import yaml
from rich.console import Console
from rich.progress import Progress

from crypto_assets.cli import simulated_world
from crypto_assets.intervals import to_ms
from crypto_assets.partitions import DAY, HOUR
from crypto_assets.resources.warehouse.lake import Lake, Provenance
from crypto_assets.screen import run_steps
from crypto_assets.settings import Settings, load_settings
from crypto_assets.simulation.faults import Fault
from crypto_assets.simulation.server import MarketServer
from crypto_assets.simulation.world import Restatement
from crypto_assets.tables import table_of
from crypto_assets_tests.recorded import RECORDED, needs_recorded
from crypto_assets_tests.test_local import SUITE, free_ports, listens

NOW = datetime(2024, 1, 25, 5, 20)
#: So late that the history takes two requests of each series.
LATER = datetime(2024, 3, 1, 5, 20)
SPOT = ("ADA/USDT", "BTC/USDT", "ETH/USDT")
KLINES, BOOKS, SUMMARY = (table_of(f"raw/{name}") for name in ("klines", "order_books", "order_book_summary"))
PATIENCE_S = 60


def first_load(*days: str) -> list[str]:
    return ["load", "--from", days[0], "--to", days[1]]


@dataclass
class Shell:
    """One configuration and one warehouse, and the commands on them."""

    config: Path
    data: Path
    addresses: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        return load_settings(self.config, {"CRYPTO_ASSETS_DATA": str(self.data)})

    @property
    def lake(self) -> Lake:
        return Lake(self.data)

    def on(self, market: MarketServer, data: Path | None = None) -> Shell:
        """The same with a running server behind it."""
        addresses = {
            "CRYPTO_ASSETS_EXCHANGE_URL": market.url,
            "CRYPTO_ASSETS_ARCHIVE_URL": market.url,
            "CRYPTO_ASSETS_COINGECKO_URL": market.coingecko_url,
        }
        return replace(self, data=data or self.data, addresses=addresses)

    @contextmanager
    def start(self, *arguments: str | Path) -> Generator[subprocess.Popen[str]]:
        """A command in a process group of its own, as a shell starts it; what it says comes in one stream."""
        own = {"CRYPTO_ASSETS_CONFIG": str(self.config), "CRYPTO_ASSETS_DATA": str(self.data)}
        others = {
            name: text for name, text in os.environ.items() if not name.startswith(("CRYPTO_", "DAGSTER_"))
        }
        with subprocess.Popen(
            [sys.executable, "-m", "crypto_assets.cli", *map(str, arguments)],
            env={**others, **own, **self.addresses},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                # Whatever a test expected of it, it must not outlive the test.
                process.kill()

    def run(self, *arguments: str | Path, code: int = 0) -> str:
        """What a command says, which has to end with a code."""
        with self.start(*arguments) as process:
            said, _ = process.communicate(timeout=3 * PATIENCE_S)
        assert process.returncode == code, said
        return said

    def rows(self, name: str) -> list[dict[str, Any]]:
        return self.lake.read(table_of(name)).to_pylist()

    def days(self, name: str) -> list[str]:
        return self.lake.partitions(table_of(name))

    def contents(self) -> dict[tuple[str, str], Provenance]:
        """What every stored partition of what can be asked for again says of its rows and of what they cover."""
        return {
            (table.name, key): replace(found, run_id=None, inputs={})
            for table, key, _, found in self.lake.manifest()
            if not table.observed
        }

    def files(self) -> dict[str, bytes]:
        return {
            str(path): path.read_bytes()
            for root in (self.lake.root, self.lake.ledger.folder)
            for path in root.rglob("*")
            if path.is_file()
        }


def configured(folder: Path, now: datetime, **sources: object) -> Shell:
    content = yaml.safe_load(SUITE.read_text(encoding="utf-8"))
    content["simulation"] |= {"port": free_ports(1)[0], "now": now}
    content["universe"] |= {"symbols": ["ADA", "BTC", "ETH"], "contract_types": ["PERPETUAL"]}
    content["sources"] |= {
        "timeout_s": 2,
        "first_load_days": 5,
        "futures_kinds": ["trade"],
        "order_books": {"symbols": ["BTC/USDT", "ETH/USDT"], "levels": 20, "every": "1m"},
        **sources,
    }
    path = folder / "platform.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return Shell(path, folder / "data")


def market_of(shell: Shell, now: datetime) -> MarketServer:
    return MarketServer(simulated_world(shell.settings), now)


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.02)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return configured(tmp_path, NOW)


@pytest.fixture
def market(shell: Shell) -> Iterator[MarketServer]:
    with market_of(shell, NOW) as server:
        yield server


# -- load


@pytest.mark.slow
def test_a_load_without_days_is_bounded_and_says_so_and_the_next_one_goes_on_where_it_ended(
    shell: Shell, tmp_path: Path
) -> None:
    days = [f"2024-01-{day}" for day in range(21, 26)]
    said = shell.run("load")
    assert "loading 2024-01-21 to 2024-01-25" in said
    assert "sources.first_load_days is 5" in said
    assert shell.days("raw/klines") == shell.days("raw/market_caps") == days
    n_rows = len(shell.rows("raw/klines"))
    # Of spot and contract of each coin all whole days, and the five hours of today that have closed.
    assert n_rows == 2 * len(SPOT) * (4 * 24 + 5)
    assert f": 6/6 series, {n_rows} rows, budget left " in said
    assert f"raw/klines: {n_rows} rows read" in said
    assert not listens(shell.settings.simulation.port)

    later = configured(tmp_path, datetime(2024, 2, 3, 1, 30))
    assert "loading 2024-01-25 to 2024-02-03" in later.run("load", "--only", "klines")
    assert later.days("raw/klines")[-10:] == [
        (NOW.date() + n * DAY).isoformat() for n in range(10)
    ]  # no hole though more days than five have passed
    assert len(later.rows("raw/klines")) == 2 * len(SPOT) * (13 * 24 + 1)


@pytest.mark.slow
def test_a_load_of_chosen_days_and_tables_asks_for_nothing_else_but_sees_the_present(
    shell: Shell, market: MarketServer
) -> None:
    shell = shell.on(market)
    shell.run(*first_load("2024-01-03", "2024-01-04"), "--only", "universe", "--only", "klines")
    assert shell.days("raw/klines") == ["2024-01-03", "2024-01-04"]
    # The choice of contracts is known from today on; it is made today, or none of them would be collected.
    assert shell.days("raw/universe") == ["2024-01-25"]
    # The contract on ADA came later.
    assert {row["symbol"] for row in shell.rows("raw/klines")} == {*SPOT, "BTC/USDT:USDT", "ETH/USDT:USDT"}
    assert not shell.days("raw/funding_rates")
    assert not market.count("/fapi/v1/fundingRate")
    assert not market.count("/coingecko")
    day = datetime(2024, 1, 3)
    truth = market.world.final_bars("BTC/USDT", "1h", to_ms(day), to_ms(day + 2 * DAY))
    stored = [row for row in shell.rows("raw/klines") if row["symbol"] == "BTC/USDT"]
    assert [to_ms(row["ts"]) for row in stored] == truth.open_ms.tolist()
    assert [row["n_trades"] for row in stored] == truth.n_trades.tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--from", "2024-13-01"], "--from 2024-13-01: no day of this warehouse; allowed: 2024-01-01 to"),
        (["--to", "2024-01-26"], "--to 2024-01-26: no day of this warehouse; allowed: 2024-01-01 to"),
        (["--from", "2024-01-05", "--to", "2024-01-04"], "--from 2024-01-05 lies after --to 2024-01-04"),
        (["--only", "klines", "--only", "candles"], "--only candles: no raw table; allowed: coin_kinds"),
    ],
)
def test_a_load_of_what_is_not_there_is_refused_before_anything_is_asked(
    shell: Shell, market: MarketServer, arguments: list[str], told: str
) -> None:
    shell = shell.on(market)
    assert told in shell.run("load", *arguments, code=2)
    assert not market.requests
    assert not shell.contents()


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_load_that_is_stopped_keeps_what_it_has_stored_and_the_next_one_finishes_it(
    tmp_path: Path, end: signal.Signals
) -> None:
    shell = configured(tmp_path, LATER)
    whole = first_load("2024-01-01", "2024-03-01")
    with market_of(shell, LATER) as market:
        calm = shell.on(market, tmp_path / "calm")
        calm.run(*whole)
        stopped = shell.on(market, tmp_path / "stopped")
        n_asked = market.count("/api/v3/klines")
        assert n_asked == 2 * len(SPOT)
        # The second page of one series does not come, so the load stands in the middle of its days.
        market.inject("/api/v3/klines", "hang", after=len(SPOT))
        with stopped.start(*whole) as process:
            until(lambda: market.count("/api/v3/klines") > n_asked + len(SPOT))
            until(lambda: "2024-02-01" in stopped.days("raw/klines"))
            process.send_signal(end)
            said, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 130, said
        assert "stopped in raw/klines; what is stored stays, run again to go on" in said
        undisturbed, left = calm.contents(), stopped.contents()
        days = stopped.days("raw/klines")
        assert days == calm.days("raw/klines")[: len(days)]
        assert 31 < len(days) < 61
        assert all(left[key] == undisturbed[key] for key in left if key[1] < days[-1])
        market.clear_faults()
        stopped.run(*whole)
        assert stopped.contents() == undisturbed


@pytest.mark.slow
def test_a_second_stop_ends_a_load_at_once_though_the_exchange_wants_silence(
    shell: Shell, market: MarketServer
) -> None:
    silence_s = 100
    shell = shell.on(market)
    market.inject("/api/v3/klines", Fault("status", status=429, retry_after=silence_s), times=len(SPOT))
    began = time.monotonic()
    with shell.start(*first_load("2024-01-02", "2024-01-04"), "--only", "klines") as process:
        assert process.stdout is not None
        until(lambda: market.count("/api/v3/klines") > 0)
        process.send_signal(signal.SIGINT)
        said = [next(process.stdout)]
        while not said[-1].startswith("stopping after the requests under way"):
            said.append(next(process.stdout))
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130, said
    assert time.monotonic() - began < silence_s


@pytest.mark.slow
def test_a_load_that_reads_again_takes_over_what_was_restated_and_records_it(
    shell: Shell, market: MarketServer
) -> None:
    shell = shell.on(market)
    load = [*first_load("2024-01-02", "2024-01-04"), "--only", "klines"]
    shell.run(*load)
    at = datetime(2024, 1, 3, 7)
    market.world.restate(Restatement("ETH/USDT", to_ms(at), to_ms(NOW - HOUR), n_trades=11))
    before = market.count("/api/v3/klines")
    shell.run(*load)
    assert market.count("/api/v3/klines") == before
    assert shell.lake.ledger.revisions().num_rows == 0
    shell.run(*load, "--reread")
    assert market.count("/api/v3/klines") == before + len(SPOT)
    (revised,) = shell.lake.ledger.revisions().to_pylist()
    assert (revised["partition"], revised["column_name"], revised["new_value"]) == (
        "2024-01-03",
        "n_trades",
        "11",
    )
    (restated,) = [row for row in shell.rows("raw/klines") if (row["symbol"], row["ts"]) == ("ETH/USDT", at)]
    assert restated["n_trades"] == 11


@pytest.mark.slow
def test_verify_reads_files_again_that_the_archive_published_again(tmp_path: Path) -> None:
    shell = configured(tmp_path, NOW, klines="archive")
    with market_of(shell, NOW) as market:
        shell = shell.on(market)
        shell.run(*first_load("2024-01-02", "2024-01-03"), "--only", "klines")
        assert "0 files of the archive were published again" in shell.run("verify")
        at = datetime(2024, 1, 3, 12)
        market.world.restate(Restatement("ETH/USDT", to_ms(at), to_ms(NOW - HOUR), n_trades=11))
        assert "1 files of the archive were published again" in shell.run("verify")
        assert "0 files of the archive were published again" in shell.run("verify")
    (restated,) = [row for row in shell.rows("raw/klines") if (row["symbol"], row["ts"]) == ("ETH/USDT", at)]
    assert restated["n_trades"] == 11
    again = [row for row in shell.lake.ledger.source_files().to_pylist() if row["published_again"]]
    assert [row["symbol"] for row in again] == ["ETH/USDT"]


def test_a_stop_that_came_between_two_steps_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dg.asset(key_prefix="raw", name="listings")
    def never_made() -> None:
        raise AssertionError("a step began after the stop")

    class Step:
        keys, clock, name = (never_made.key,), "none", "raw/listings"

    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with (tmp_path / "screen").open("w+") as file:
        screen = Console(file=file, width=200)
        with pytest.raises(KeyboardInterrupt):
            run_steps(
                screen,
                Progress(console=screen, disable=True),
                dg.Definitions([never_made]),
                [Step()],
                stopped=lambda: True,
            )
        file.seek(0)
        assert file.read() == "stopped in raw/listings; what is stored stays, run again to go on\n"


# -- import


def candles(n: int, price: float = 100.0) -> list[list[float]]:
    start_ms = to_ms(datetime(2024, 1, 1))
    return [[start_ms + n * 3_600_000, price, price + 2, price - 1, price + 1, 5.0] for n in range(n)]


def wire_lines(rows: list[list[float]]) -> str:
    full = [[*row, row[0] + 3_599_999, 500.0, 7, 2.0, 200.0, 0] for row in rows]
    return "".join(",".join(format(value, ".15g") for value in row) + "\n" for row in full)


@pytest.mark.slow
def test_imported_files_are_counted_stored_and_recorded_once(shell: Shell, tmp_path: Path) -> None:
    csv = tmp_path / "BTCUSDT-1h-2024-01.csv"
    csv.write_text(wire_lines(candles(30)), encoding="utf-8")
    zipped = tmp_path / "ETHUSDT-1h-2024-01.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("ETHUSDT-1h-2024-01.csv", wire_lines(candles(26)))
    freqtrade = tmp_path / "ADA_USDT-1h.json"
    freqtrade.write_text(json.dumps(candles(25)), encoding="utf-8")
    damaged = tmp_path / "SOLUSDT-1h-2024-01.csv"
    damaged.write_text(wire_lines([[*row[:2], 1.0, *row[3:]] for row in candles(3)]), encoding="utf-8")
    files = [csv, damaged, zipped, freqtrade]

    said = shell.run("import", *files, "--market-type", "spot", code=1)
    lines = {path.name: next(line for line in said.splitlines() if path.stem in line) for path in files}
    # The last candle of a file may have been open.
    assert "BTC/USDT trade 1h" in lines[csv.name]
    assert "30 rows, 29 added, 1 perhaps open" in lines[csv.name]
    assert "26 rows, 25 added, 1 perhaps open" in lines[zipped.name]
    assert "ADA/USDT trade 1h" in lines[freqtrade.name]
    assert "25 rows, 24 added, 1 perhaps open" in lines[freqtrade.name]
    assert "high" in lines[damaged.name]
    assert "3 of 4 series stored" in said
    rows = shell.rows("raw/klines")
    counts = {symbol: sum(row["symbol"] == symbol for row in rows) for symbol in (*SPOT, "SOL/USDT")}
    assert counts == {"BTC/USDT": 29, "ETH/USDT": 25, "ADA/USDT": 24, "SOL/USDT": 0}
    # What freqtrade does not keep is missing, not zero.
    assert {row["n_trades"] for row in rows if row["symbol"] == "ADA/USDT"} == {None}
    recorded = shell.lake.ledger.source_files().to_pylist()
    assert {(file["origin"], file["symbol"], file["n_rows"]) for file in recorded} == {
        ("import", "BTC/USDT", 29),
        ("import", "ETH/USDT", 25),
        ("import", "ADA/USDT", 24),
    }

    before = shell.files()
    again = shell.run("import", csv, zipped, freqtrade, "--market-type", "spot")
    assert again.count(" 0 added") == 3
    assert "29 known" in again
    assert shell.files() == before


@pytest.mark.slow
def test_what_is_imported_is_not_asked_for_again(shell: Shell, market: MarketServer, tmp_path: Path) -> None:
    bars = market.world.final_bars("BTC/USDT", "1h", to_ms(datetime(2024, 1, 2)), to_ms(datetime(2024, 1, 4)))
    rows = [
        [at, *(value / 1e8 for value in values)]
        for at, values in zip(bars.open_ms.tolist(), bars.values[:5].T.tolist(), strict=True)
    ]
    path = tmp_path / "BTC_USDT-1h.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    shell = shell.on(market)
    shell.run("import", path, "--closed")
    shell.run(*first_load("2024-01-02", "2024-01-03"), "--only", "klines")
    asked = [request.query["symbol"] for request in market.requests if request.path == "/api/v3/klines"]
    assert sorted(asked) == ["ADAUSDT", "ETHUSDT"]
    assert len([row for row in shell.rows("raw/klines") if row["symbol"] == "BTC/USDT"]) == 48


@needs_recorded
@pytest.mark.slow
def test_a_recorded_file_is_imported(shell: Shell) -> None:
    path = RECORDED / "spot_1m_full/BTCUSDT-1m-2020-12-01.csv.gz"
    said = shell.run("import", path, "--market-type", "spot")
    assert "BTC/USDT trade 1m" in said
    assert "1 of 1 series stored" in said
    assert shell.days("raw/klines") == ["2020-12-01"]
    (file,) = shell.lake.ledger.source_files().to_pylist()
    assert file["n_rows"] == len(shell.rows("raw/klines"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--kind", "candles"], 2, "--kind candles: unknown; allowed: trade, mark"),
        (["--market-type", "option"], 2, "--market-type option: unknown; allowed: spot"),
        ([], 1, "BTCUSDT-1h.csv"),
    ],
)
def test_an_import_that_cannot_be_made_says_why(
    shell: Shell, tmp_path: Path, arguments: list[str], code: int, told: str
) -> None:
    assert told in shell.run("import", tmp_path / "BTCUSDT-1h.csv", *arguments, code=code)
    assert not shell.contents()


# -- order books


def collected(shell: Shell, n_rounds: int, *arguments: str, market: MarketServer) -> list[str]:
    """Collect so many rounds while the market's clock runs, then stop by SIGTERM; what was said."""
    lines, n_seen = [], 0
    with shell.start("collect-books", *arguments) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            n_seen += " books, " in line
            if " books, " in line and n_seen == 1:
                market.clock.set(market.clock.now_ms(), speed=1.0)
            if " books, " in line and n_seen == n_rounds:
                process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)
    assert process.returncode == 0, lines
    return lines


def rounds_of(table: pa.Table) -> list[datetime]:
    return sorted(set(table["ts"].to_pylist()))


@pytest.mark.slow
def test_collected_books_are_stored_at_the_end_and_once_and_maintained_later(
    tmp_path: Path,
) -> None:
    shell = configured(tmp_path, NOW)
    # The first round is seen two seconds before a new hour.
    with market_of(shell, NOW.replace(hour=5, minute=59, second=58)) as market:
        shell = shell.on(market)
        said = collected(shell, 4, "--every", "1", "--flush", "3600", market=market)
        first = shell.lake.read(BOOKS)
        seen = rounds_of(first)
        assert len(seen) >= 4
        assert f"{len(seen)} rounds, {first.num_rows:,} levels stored" in said[-1]
        assert "2 of 2 books, 80 levels" in said[1]
        assert first.num_rows == 2 * 2 * 20 * len(seen)
        assert rounds_of(shell.lake.read(SUMMARY)) == seen
        collected(shell, 2, "--every", "1", market=market)
        both = shell.lake.read(BOOKS)
        assert rounds_of(both)[: len(seen)] == seen
        assert len(rounds_of(both)) >= len(seen) + 2
        assert both.num_rows == both.group_by(list(BOOKS.key)).aggregate([]).num_rows
        slots = [ts.replace(microsecond=0) for ts in rounds_of(both)]
        assert len(set(slots)) == len(slots)
        assert shell.days("raw/order_books") == ["2024-01-25-05:00", "2024-01-25-06:00"]

    before, rows = shell.files(), {table.name: shell.lake.read(table) for table in (BOOKS, SUMMARY)}
    assert shell.run("maintain", "--dry-run")
    assert shell.files() == before
    tomorrow = configured(tmp_path, NOW + DAY)
    assert "would be removed: -" in tomorrow.run("maintain", "--dry-run")
    assert tomorrow.files() == before
    assert "days put into one file: 2024-01-25" in tomorrow.run("maintain")
    assert tomorrow.files() != before
    assert {name: tomorrow.lake.read(table_of(name)) for name in rows} == rows
    much_later = configured(tmp_path, NOW + timedelta(days=40))
    assert "would be removed: 2024-01-25" in much_later.run("maintain", "--dry-run")
    assert much_later.lake.read(BOOKS).num_rows
    assert "were removed: 2024-01-25" in much_later.run("maintain")
    assert not much_later.lake.read(BOOKS).num_rows
    assert much_later.lake.read(SUMMARY) == rows[SUMMARY.name]


@pytest.mark.slow
def test_books_are_collected_from_the_simulated_market_for_as_long_as_wanted(shell: Shell) -> None:
    said = shell.run("collect-books", "--every", "1", "--minutes", "0.05")
    assert " 2 of 2 books, 80 levels" in said
    assert min(rounds_of(shell.lake.read(BOOKS))) >= NOW
    assert not listens(shell.settings.simulation.port)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("books", "arguments", "told"),
    [
        ({"symbols": []}, [], "sources.order_books.symbols: is empty"),
        ({"symbols": ["BTC/USDT"]}, ["--every", "7"], "does not divide an hour"),
        ({"symbols": ["BTC/USDT"]}, ["--flush", "0"], "--flush"),
    ],
)
def test_books_that_cannot_be_collected_are_refused(
    tmp_path: Path, books: dict[str, object], arguments: list[str], told: str
) -> None:
    shell = configured(tmp_path, NOW, order_books=books)
    assert told in shell.run("collect-books", *arguments, code=2)
    assert not shell.contents()
