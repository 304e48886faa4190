"""The catalogue serves plain readers whoever else holds the file: read-only, uncommitted, committed or killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import duckdb
import pytest

from crypto_assets.resources.warehouse import Catalog, Lake, WarehouseError
from crypto_assets.resources.warehouse.catalog import CATALOGUE
from crypto_assets.tables import TABLES
from crypto_assets_tests.resources.warehouse.rows import BACKTEST, DAY, SCORES, provenance, scores

# A session in another process: runs each line it is told and answers with the repr of the rows, or the error.
SESSION = """
    import sys, duckdb
    connection = duckdb.connect(sys.argv[1], read_only=sys.argv[2] == "read-only")
    print("open", flush=True)
    for line in sys.stdin:
        try:
            print(repr(connection.execute(line).fetchall()), flush=True)
        except duckdb.Error as error:
            print(type(error).__name__, flush=True)
"""


class Session:
    """A plain DuckDB session in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def run(self, statement: str) -> str:
        assert self.process.stdin is not None
        print(statement, file=self.process.stdin, flush=True)
        return self.answer()


@contextmanager
def session(path: Path, mode: str) -> Generator[Session]:
    command = [sys.executable, "-c", dedent(SESSION), str(path), mode]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        held = Session(process)
        try:
            assert held.answer() == "open"
            yield held
        finally:
            process.kill()


def store(lake: Lake, hour: int, key: str = DAY) -> None:
    lake.replace(SCORES, key, scores([hour]), provenance(SCORES.name, key))


def n_scores(path: Path) -> int:
    with duckdb.connect(str(path), read_only=True) as connection:
        (count,) = connection.execute("select count(*) from weights.alpha_scores").fetchall()[0]
        return count


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    made = Catalog(Lake(tmp_path / "warehouse"))
    store(made.lake, 0)
    assert made.refresh()
    return made


def test_an_empty_lake_has_a_typed_empty_view_of_every_contract(tmp_path: Path) -> None:
    catalog = Catalog(Lake(tmp_path))
    assert catalog.refresh()
    with duckdb.connect(str(catalog.path), read_only=True) as plain, catalog.connection() as ours:
        for connection in (plain, ours):
            for table in TABLES.values():
                view = connection.execute(f"select * from {table.stage}.{table.table}")
                assert view.fetchall() == []
                described = connection.execute(f"describe {table.stage}.{table.table}").fetchall()
                assert [(row[0], row[1]) for row in described] == [(c.name, c.type) for c in table.columns]


def test_stored_partitions_are_seen_by_plain_readers_at_once(catalog: Catalog) -> None:
    assert n_scores(catalog.path) == 1
    store(catalog.lake, 24, "2024-01-02")
    assert n_scores(catalog.path) == 2
    assert not catalog.refresh()


def test_a_refresh_of_an_unchanged_set_of_views_does_nothing(catalog: Catalog) -> None:
    before = catalog.path.resolve()
    assert not catalog.refresh()
    assert catalog.path.resolve() == before


def test_a_table_stored_for_the_first_time_makes_a_new_generation_and_removes_the_old(
    catalog: Catalog,
) -> None:
    before = catalog.path.resolve()
    catalog.lake.replace(BACKTEST, None, BACKTEST.arrow_schema().empty_table(), provenance(BACKTEST.name, ""))
    assert catalog.refresh()
    assert catalog.path.resolve() != before
    assert [path.resolve() for path in catalog.generations.glob("*.duckdb*")] == [catalog.path.resolve()]


def test_views_and_columns_carry_the_words_of_the_contract(catalog: Catalog) -> None:
    with duckdb.connect(str(catalog.path), read_only=True) as connection:
        views = connection.execute(
            "select schema_name, view_name, comment from duckdb_views() where not internal"
        )
        titles = {f"{stage}/{name}": comment for stage, name, comment in views.fetchall()}
        columns = connection.execute(
            "select c.schema_name || '/' || c.table_name, c.column_name, c.comment from duckdb_columns() c "
            "join duckdb_views() v on v.view_oid = c.table_oid where not v.internal"
        )
        meanings = {(table, column): comment for table, column, comment in columns.fetchall()}
    assert titles == {table.name: table.title for table in TABLES.values()}
    assert meanings == {(table.name, c.name): c.meaning for table in TABLES.values() for c in table.columns}


def test_a_read_only_holder_disturbs_nobody_and_keeps_working(catalog: Catalog) -> None:
    with session(catalog.path, "read-only") as holder:
        assert not catalog.refresh()
        assert n_scores(catalog.path) == 1
        catalog.lake.replace(
            BACKTEST, None, BACKTEST.arrow_schema().empty_table(), provenance(BACKTEST.name, "")
        )
        assert catalog.refresh()
        store(catalog.lake, 24, "2024-01-02")
        assert n_scores(catalog.path) == 2
        assert holder.run("select count(*) from weights.alpha_scores") == "[(2,)]"


@pytest.mark.parametrize("committed", [False, True], ids=["uncommitted", "committed"])
def test_a_read_write_holder_blocks_no_reader_after_a_refresh_and_keeps_its_session(
    catalog: Catalog, committed: bool
) -> None:
    with session(catalog.path, "read-write") as holder:
        if not committed:
            assert holder.run("begin") == "[]"
        holder.run("create table mine as select 42 as answer")
        holder.run("drop view weights.alpha_scores")
        with pytest.raises(duckdb.IOException):
            n_scores(catalog.path)
        assert catalog.refresh()
        assert n_scores(catalog.path) == 1
        with duckdb.connect(str(catalog.path), read_only=True) as reader:
            assert reader.execute("select * from duckdb_tables() where table_name = 'mine'").fetchall() == []
        assert holder.run("select answer from mine") == "[(42,)]"
        if not committed:
            assert holder.run("commit") == "[]"
        assert holder.run("select answer from mine") == "[(42,)]"
        assert not catalog.refresh()
        assert n_scores(catalog.path) == 1


def test_a_log_left_by_a_killed_session_is_not_replayed(catalog: Catalog) -> None:
    with session(catalog.path, "read-write") as holder:
        holder.run("drop view weights.alpha_scores")
        holder.run("create view weights.alpha_scores as select 1 as poisoned")
        holder.process.kill()
        holder.process.wait()
    assert list(catalog.lake.folder.rglob("*.wal"))
    assert catalog.refresh()
    assert n_scores(catalog.path) == 1
    assert not list(catalog.lake.folder.rglob("*.wal"))
    with duckdb.connect(str(catalog.path), read_only=True) as connection:
        described = connection.execute("describe weights.alpha_scores").fetchall()
    assert [row[0] for row in described] == SCORES.column_names


def test_the_generation_of_a_holder_that_left_is_removed(catalog: Catalog) -> None:
    with session(catalog.path, "read-write") as holder:
        assert catalog.refresh()
        assert len(list(catalog.generations.glob("*.duckdb"))) == 2
        assert holder.run("select count(*) from weights.alpha_scores") == "[(1,)]"
    catalog.lake.replace(BACKTEST, None, BACKTEST.arrow_schema().empty_table(), provenance(BACKTEST.name, ""))
    assert catalog.refresh()
    assert [path.resolve() for path in catalog.generations.glob("*.duckdb")] == [catalog.path.resolve()]


def test_our_own_connection_works_while_somebody_holds_the_file(catalog: Catalog) -> None:
    with session(catalog.path, "read-write") as holder, catalog.connection() as connection:
        holder.run("begin")
        holder.run("drop view weights.alpha_scores")
        assert connection.execute("select count(*) from weights.alpha_scores").fetchall() == [(1,)]


def test_a_moved_folder_works_again_after_a_refresh(catalog: Catalog, tmp_path: Path) -> None:
    moved = catalog.lake.folder.rename(tmp_path / "it's elsewhere")
    there = Catalog(Lake(moved))
    with pytest.raises(duckdb.IOException):
        n_scores(there.path)
    assert there.refresh()
    assert n_scores(there.path) == 1
    assert not there.refresh()


def test_a_lost_link_is_made_again(catalog: Catalog) -> None:
    catalog.path.unlink()
    assert catalog.refresh()
    assert n_scores(catalog.path) == 1


def test_a_damaged_catalogue_is_made_again(catalog: Catalog) -> None:
    catalog.path.write_bytes(b"not a database")
    assert catalog.refresh()
    assert n_scores(catalog.path) == 1


def test_a_file_that_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    mine = tmp_path / CATALOGUE
    mine.write_bytes(b"somebody's own database")
    with pytest.raises(WarehouseError, match="move it away"):
        Catalog(Lake(tmp_path)).refresh()
    assert mine.read_bytes() == b"somebody's own database"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a regular file")
    catalog = Catalog(Lake(tmp_path / "file" / "warehouse"))
    with pytest.raises(WarehouseError, match=r"warehouse\.duckdb: cannot be written") as caught:
        catalog.refresh()
    assert str(tmp_path) in str(caught.value)
