"""Hours and days in one table: whatever form an hour has, it reads, merges and states its origin the same way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from datetime import date, datetime, timedelta
from pathlib import Path
from textwrap import dedent

import dagster as dg
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crypto_assets.partitions import floor_of, keys_of, length_of, start_of
from crypto_assets.resources.warehouse import Catalog, ContractError, Lake, Provenance, WarehouseError
from crypto_assets.resources.warehouse.conform import conform, content_hash
from crypto_assets.resources.warehouse.inventory import manifest_table
from crypto_assets.resources.warehouse.io_manager import Publisher, WarehouseResource
from crypto_assets.resources.warehouse.lake import PartitionStream, Piece, memory_connection
from crypto_assets.resources.warehouse.lineage import Lineage, Read
from crypto_assets.schemas import Table
from crypto_assets.tables import TABLES
from crypto_assets_tests.resources.warehouse.rows import (
    BOOKS,
    KLINES,
    MIDNIGHT,
    book,
    books,
    hour_key,
    hour_window,
    klines,
    look_series,
    merge_books,
    provenance,
)

REPOSITORY = Path(__file__).resolve().parents[3]
NO_GRACE = timedelta(0)
SECOND_DAY = date(2024, 1, 2)
THIRD_DAY = date(2024, 1, 3)


def replace_books(lake: Lake, hour: int, rows: pa.Table, run_id: str = "run-1") -> Provenance:
    key = hour_key(hour)
    return lake.replace(BOOKS, key, rows, provenance(BOOKS.name, key, run_id), hour_window(hour))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Two days: three hours of the first (one of them empty) and one of the second."""
    made = Lake(tmp_path)
    merge_books(made, 0, pa.concat_tables([books(0, 5), books(0, 5, symbol="ETH/USDT")]))
    merge_books(made, 1, books())
    merge_books(made, 23, books(23 * 60 + 59))
    merge_books(made, 24, books(24 * 60))
    return made


def state(lake: Lake) -> tuple[pa.Table, dict[str, Provenance | None]]:
    return lake.read(BOOKS), {key: lake.provenance(BOOKS, key) for key in lake.partitions(BOOKS)}


def files(lake: Lake) -> set[str]:
    directory = lake.directory(BOOKS)
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def seen_by_plain_readers(lake: Lake) -> int:
    with duckdb.connect(str(Catalog(lake).path), read_only=True) as connection:
        return connection.execute("select count(*) from raw.order_books").fetchall()[0][0]


def seen_by_new_views(lake: Lake) -> int:
    with memory_connection() as connection:
        for statement in Catalog(lake).statements([BOOKS]):
            connection.execute(statement)
        return connection.execute("select count(*) from raw.order_books").fetchall()[0][0]


# --- keys and windows


def test_hours_are_named_as_dagster_names_them() -> None:
    hours = dg.HourlyPartitionsDefinition(start_date=datetime(2024, 1, 1), end_date=datetime(2024, 1, 3))
    named = [key for key, _, _ in keys_of("hourly", MIDNIGHT, MIDNIGHT + timedelta(days=2))]
    assert named == hours.get_partition_keys()
    assert [start_of("hourly", key) for key in named] == [MIDNIGHT + timedelta(hours=n) for n in range(48)]
    for key, start, end in keys_of("hourly", MIDNIGHT, MIDNIGHT + timedelta(hours=3)):
        window = hours.time_window_for_partition_key(key)
        assert (window.start.replace(tzinfo=None), window.end.replace(tzinfo=None)) == (start, end)


def test_a_moment_lies_in_the_partition_that_begins_at_its_floor() -> None:
    moment = datetime(2024, 2, 29, 23, 59, 59, 999_999)
    floors = {clock: floor_of(clock, moment) for clock in ("hourly", "daily", "weekly")}
    assert floors == {
        "hourly": datetime(2024, 2, 29, 23),
        "daily": datetime(2024, 2, 29),
        "weekly": datetime(2024, 2, 26),
    }
    with pytest.raises(ValueError, match="'none' has no partitions"):
        length_of("none")


# --- hours


def test_an_hour_is_one_file_below_its_date(lake: Lake) -> None:
    assert files(lake) == {
        "date=2024-01-01/hour=00/part-0.parquet",
        "date=2024-01-01/hour=01/part-0.parquet",
        "date=2024-01-01/hour=23/part-0.parquet",
        "date=2024-01-02/hour=00/part-0.parquet",
    }
    assert lake.partitions(BOOKS) == [hour_key(hour) for hour in (0, 1, 23, 24)]
    assert lake.holds(BOOKS)


def test_hours_are_read_alone_together_and_by_condition(lake: Lake) -> None:
    assert lake.read(BOOKS, [hour_key(1)]).num_rows == 0
    assert lake.read(BOOKS, [hour_key(23), hour_key(5)]).equals(books(23 * 60 + 59))
    some = lake.read(BOOKS, [hour_key(0), hour_key(24)], ["ts", "level"], "symbol = 'BTC/USDT' and level = 0")
    assert some["ts"].to_pylist() == [MIDNIGHT + timedelta(minutes=minute) for minute in (0, 5, 24 * 60)]
    assert lake.read(BOOKS).num_rows == 2 * 6


def test_rows_of_another_hour_are_refused(lake: Lake) -> None:
    before = state(lake)
    for write in (replace_books, merge_books):
        with pytest.raises(ContractError, match="outside the partition window"):
            write(lake, 2, books(60))
    assert state(lake) == before


def test_an_hour_that_is_merged_into_grows_and_keeps_its_other_rows(lake: Lake) -> None:
    done = merge_books(lake, 0, books(1), run_id="run-2")
    assert lake.read(BOOKS, [hour_key(0)], where="symbol = 'BTC/USDT'").equals(books(0, 1, 5))
    assert done.covered(look_series()) == (
        (MIDNIGHT, MIDNIGHT + timedelta(minutes=2)),
        (MIDNIGHT + timedelta(minutes=5), MIDNIGHT + timedelta(minutes=6)),
    )
    merge_books(lake, 0, books(1, price=90.0))
    assert {row["partition"] for row in lake.ledger.revisions().to_pylist()} == {hour_key(0)}


def test_a_daily_table_has_no_hours_to_compact(lake: Lake) -> None:
    with pytest.raises(ValueError, match="raw/klines is stored by daily partitions"):
        lake.compact(KLINES, SECOND_DAY)
    with pytest.raises(ValueError, match="name one"):
        lake.path(BOOKS, None)


# --- compaction


def test_a_compacted_day_is_one_file_that_says_and_holds_what_its_hours_did(lake: Lake) -> None:
    before = state(lake)
    assert lake.compact(BOOKS, SECOND_DAY) == ["2024-01-01"]
    assert state(lake) == before
    assert len(lake.sweep(BOOKS, NO_GRACE)) == 3
    assert state(lake) == before
    assert files(lake) == {"date=2024-01-01/part-0.parquet", "date=2024-01-02/hour=00/part-0.parquet"}
    for key, said in before[1].items():
        rows = lake.read(BOOKS, [key])
        assert said is not None
        assert (rows.num_rows, content_hash(conform(rows, BOOKS))) == (said.rows, said.content_hash)
        found = lake.footer(BOOKS, key)
        assert found is not None
        assert found[1].num_rows == said.rows
        assert found[1].schema.to_arrow_schema().equals(BOOKS.arrow_schema())
    assert lake.provenance(BOOKS, hour_key(2)) is None
    two = [hour_key(0), hour_key(23)]
    assert lake.read(BOOKS, two).num_rows == 2 * 5
    assert lake.read(BOOKS, [hour_key(23)]).equals(books(23 * 60 + 59))


def test_compacting_again_changes_nothing(lake: Lake) -> None:
    lake.compact(BOOKS, SECOND_DAY)
    lake.sweep(BOOKS, NO_GRACE)
    before = lake.path(BOOKS, hour_key(0)).stat()
    assert lake.compact(BOOKS, SECOND_DAY) == []
    assert lake.sweep(BOOKS, NO_GRACE) == []
    assert lake.path(BOOKS, hour_key(0)).stat().st_ino == before.st_ino


def test_the_running_day_is_left_alone_and_later_compacted_too(lake: Lake) -> None:
    before = state(lake)
    assert lake.compact(BOOKS, date(2024, 1, 1)) == []
    assert lake.compact(BOOKS, THIRD_DAY) == ["2024-01-01", "2024-01-02"]
    lake.sweep(BOOKS, NO_GRACE)
    assert state(lake) == before
    assert len(files(lake)) == 2


def test_hours_lie_on_for_readers_that_began_before_and_count_no_more(lake: Lake) -> None:
    lake.compact(BOOKS, SECOND_DAY)
    assert lake.sweep(BOOKS) == [], "the file of the day is younger than the grace"
    assert len(files(lake)) == 5
    assert lake.read(BOOKS).num_rows == 2 * 6
    merge_books(lake, 0, books(7))
    assert lake.read(BOOKS).num_rows == 2 * 7
    assert lake.partitions(BOOKS) == [hour_key(hour) for hour in (0, 1, 23, 24)]


def test_an_hour_of_many_rows_keeps_its_row_groups_apart(lake: Lake) -> None:
    many = conform(pa.concat_tables([book(minute, n_levels=30_000) for minute in range(120, 126)]), BOOKS)
    merge_books(lake, 2, many)
    lake.compact(BOOKS, SECOND_DAY)
    lake.sweep(BOOKS, NO_GRACE)
    found = lake.footer(BOOKS, hour_key(2))
    assert found is not None
    assert (len(found[1].groups), found[1].num_rows) == (2, 180_000)
    assert lake.read(BOOKS, [hour_key(2)]).equals(many)
    assert lake.read(BOOKS, [hour_key(0)]).num_rows == 8
    assert merge_books(lake, 2, many, run_id="again").run_id == "run-1", "nothing is new"


@pytest.mark.parametrize("hour", [0, 1, 23, 7], ids=["stored", "empty", "last", "not stored"])
def test_a_merge_into_a_compacted_day_is_a_merge(lake: Lake, tmp_path: Path, hour: int) -> None:
    apart = Lake(tmp_path / "apart")
    for key in lake.partitions(BOOKS):
        n = int((start_of("hourly", key) - MIDNIGHT) / timedelta(hours=1))
        merge_books(apart, n, lake.read(BOOKS, [key]))
    lake.compact(BOOKS, SECOND_DAY)
    lake.sweep(BOOKS, NO_GRACE)
    late = pa.concat_tables([books(hour * 60 + 30), books(hour * 60 + 31, symbol="ADA/USDT")])
    for one in (lake, apart):
        merge_books(one, hour, late, run_id="late")
    assert state(lake) == state(apart)
    assert files(lake) == {"date=2024-01-01/part-0.parquet", "date=2024-01-02/hour=00/part-0.parquet"}
    changed = pa.concat_tables([late.slice(0, 2), books(hour * 60 + 31, symbol="ADA/USDT", price=7.0)])
    for one in (lake, apart):
        merge_books(one, hour, changed, run_id="changed")
    assert state(lake) == state(apart)
    assert lake.ledger.revisions().equals(apart.ledger.revisions())
    assert lake.ledger.revisions().num_rows == 2


def test_an_hour_of_a_compacted_day_can_be_replaced(lake: Lake) -> None:
    others = {key: lake.read(BOOKS, [key]) for key in lake.partitions(BOOKS) if key != hour_key(0)}
    lake.compact(BOOKS, SECOND_DAY)
    replace_books(lake, 0, books(3))
    assert lake.read(BOOKS, [hour_key(0)]).equals(books(3))
    for key, rows in others.items():
        assert lake.read(BOOKS, [key]).equals(rows)


def test_an_hour_before_the_compacted_days_is_stored_by_day(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    merge_books(lake, 24, books(24 * 60))
    lake.compact(BOOKS, THIRD_DAY)
    merge_books(lake, 3, books(180))
    assert lake.path(BOOKS, hour_key(3)) == lake.directory(BOOKS) / "date=2024-01-01" / "part-0.parquet"
    Catalog(lake).refresh()
    assert seen_by_plain_readers(lake) == lake.read(BOOKS).num_rows == 4
    assert lake.partitions(BOOKS) == [hour_key(3), hour_key(24)]


def test_an_earlier_day_that_begins_while_a_day_is_compacted_is_compacted_first(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_books(lake, 48, books(48 * 60))
    for day in (1, 2):
        lake.remove_dates(BOOKS, [f"2024-01-0{day}"])
    write = Lake._write_day

    def and_meanwhile(self: Lake, table: Table, path: Path, hours: dict) -> None:
        write(self, table, path, hours)
        if not lake.partitions(BOOKS)[0].startswith("2024-01-01"):
            merge_books(lake, 0, books(0))

    monkeypatch.setattr(Lake, "_write_day", and_meanwhile)
    assert lake.compact(BOOKS, date(2024, 1, 4)) == ["2024-01-01", "2024-01-03"]
    assert lake.read(BOOKS).equals(books(0, 48 * 60))


def test_a_damaged_hour_stops_its_day_and_is_named(lake: Lake) -> None:
    path = lake.path(BOOKS, hour_key(23))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(WarehouseError, match="hour=23.*move it away"):
        lake.compact(BOOKS, THIRD_DAY)
    assert not lake.layout.day_file(BOOKS, "2024-01-01").exists()
    path.unlink()
    assert lake.compact(BOOKS, THIRD_DAY) == ["2024-01-01", "2024-01-02"]


def test_a_damaged_day_is_named(lake: Lake) -> None:
    lake.compact(BOOKS, SECOND_DAY)
    lake.sweep(BOOKS, NO_GRACE)
    path = lake.path(BOOKS, hour_key(0))
    pq.write_table(books(0), path)
    for look in (lambda: lake.provenance(BOOKS, hour_key(0)), lambda: lake.partitions(BOOKS)):
        with pytest.raises(WarehouseError, match="does not say which hours"):
            look()
    with pytest.raises(WarehouseError, match="move it away"):
        merge_books(lake, 0, books(1))


def test_an_hour_that_its_day_does_not_know_is_not_swept(lake: Lake) -> None:
    lake.compact(BOOKS, SECOND_DAY)
    stray = lake.layout.hour_folder(BOOKS, hour_key(9))
    stray.mkdir(parents=True)
    pq.write_table(books(9 * 60), stray / "part-0.parquet")
    with pytest.raises(WarehouseError, match="hour=09.*move it away"):
        lake.sweep(BOOKS, NO_GRACE)
    assert (stray / "part-0.parquet").is_file()


# --- kills and readers

# A process that does everything to a lake, as often as it is told; each time a fork does it and dies before the wanted
# file operation (0: none). Its imports are paid once.
VICTIM = """
    import os, signal, sys
    from datetime import date, timedelta
    from pathlib import Path
    from crypto_assets.resources.warehouse import Lake
    from crypto_assets_tests.resources.warehouse.rows import BOOKS, books, merge_books

    WATCHED = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "shutil.rmtree")

    def live(lake, wanted):
        done = []

        def watch(event, arguments):
            if event in WATCHED and str(arguments[0]).startswith(str(lake.folder)):
                done.append(event)
                if len(done) == wanted:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        lake.compact(BOOKS, date(2024, 1, 3))
        merge_books(lake, 23, books(23 * 60 + 58), run_id="late")
        lake.sweep(BOOKS, timedelta(0))
        lake.remove_dates(BOOKS, ["2024-01-01"])
        print("done", len(done), flush=True)

    for line in sys.stdin:
        folder, wanted = line.rsplit(" ", 1)
        child = os.fork()
        if not child:
            try:
                live(Lake(Path(folder)), int(wanted))
            finally:
                os._exit(0)
        if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            print("killed 0", flush=True)
"""


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_before_any_file_operation_loses_and_doubles_nothing(tmp_path: Path, step: int) -> None:
    def prepared(name: str) -> Lake:
        lake = Lake(tmp_path / name)
        merge_books(lake, 0, books(0, 5))
        merge_books(lake, 23, books(23 * 60 + 59))
        merge_books(lake, 24, books(24 * 60))
        return lake

    command = [sys.executable, "-c", dedent(VICTIM)]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as victim:
        orders, answers = victim.stdin, victim.stdout
        assert orders is not None and answers is not None

        def run(lake: Lake, wanted: int) -> tuple[str, int]:
            print(lake.folder, wanted, file=orders, flush=True)
            end, n_operations = answers.readline().split()
            return end, int(n_operations)

        template, calm = prepared("template"), prepared("calm")
        # As it was, with the late snapshot, and without the first day.
        whole = {8, 10, 2}
        end, n_operations = run(calm, 0)
        assert (end, n_operations > 30) == ("done", True)
        for wanted in range(1, n_operations + 1, step):
            folder = shutil.copytree(template.folder, tmp_path / f"killed-{wanted}", symlinks=True)
            lake = Lake(folder)
            assert run(lake, wanted) == ("killed", 0)
            rows = lake.read(BOOKS)
            assert rows.num_rows in whole, wanted
            assert rows.group_by(list(BOOKS.key)).aggregate([]).num_rows == rows.num_rows, wanted
            assert seen_by_new_views(lake) == rows.num_rows, wanted
            for key in lake.partitions(BOOKS):
                said = lake.provenance(BOOKS, key)
                assert said is not None and said.rows == lake.read(BOOKS, [key]).num_rows, wanted
            assert run(lake, 0)[0] == "done"
            assert lake.read(BOOKS).equals(calm.read(BOOKS)), wanted
            assert seen_by_new_views(lake) == seen_by_new_views(calm) == 2, wanted
            assert files(lake) == files(calm), wanted
        orders.close()


READER = """
    import sys, duckdb
    print("ready", flush=True)
    path, expected = sys.argv[1], int(sys.argv[2])
    n, counts = 0, set()
    held = duckdb.connect(path, read_only=True)
    while sys.stdin.readline().strip() != "stop":
        for connection in (held, duckdb.connect(path, read_only=True)):
            counts.add(connection.execute("select count(*) from raw.order_books").fetchall()[0][0])
        n += 1
        print(n, sorted(counts), flush=True)
"""


def test_readers_never_see_a_day_twice_or_not_at_all(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    n_days = 6
    for hour in range(0, 24 * n_days, 6):
        merge_books(lake, hour, books(hour * 60))
    catalog = Catalog(lake)
    catalog.refresh()
    expected = lake.read(BOOKS).num_rows
    own: set[int] = set()
    done = threading.Event()

    def read_on() -> None:
        while not done.is_set():
            own.add(Lake(tmp_path).read(BOOKS).num_rows)
            with catalog.connection() as connection:
                own.add(connection.execute("select count(*) from raw.order_books").fetchall()[0][0])

    reader = threading.Thread(target=read_on)
    command = [sys.executable, "-c", dedent(READER), str(catalog.path), str(expected)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as plain:
        assert plain.stdout is not None and plain.stdin is not None
        assert plain.stdout.readline() == "ready\n"
        reader.start()
        try:
            for day in range(2, n_days + 2):
                print("go", file=plain.stdin, flush=True)
                lake.compact(BOOKS, date(2024, 1, day))
                catalog.refresh()
                said = plain.stdout.readline().split(" ", 1)[1]
                assert said == f"[{expected}]\n"
            assert catalog.is_held() == os.path.exists("/proc/locks"), "the reader holds the first generation"  # noqa: PTH110
            print("stop", file=plain.stdin, flush=True)
        finally:
            done.set()
            reader.join()
    assert own == {expected}
    assert not catalog.is_held()
    catalog.refresh()
    lake.sweep(BOOKS, NO_GRACE)
    assert seen_by_plain_readers(lake) == expected


def test_the_views_show_days_and_hours_in_every_state(lake: Lake) -> None:
    def shown() -> int:
        n = lake.read(BOOKS).num_rows
        assert seen_by_new_views(lake) == n
        return n

    assert shown() == 12
    lake.compact(BOOKS, SECOND_DAY)
    assert shown() == 12
    lake.sweep(BOOKS, NO_GRACE)
    assert shown() == 12
    lake.compact(BOOKS, THIRD_DAY)
    assert shown() == 12
    lake.sweep(BOOKS, NO_GRACE)
    assert shown() == 12
    merge_books(lake, 48, books(48 * 60))
    assert shown() == 14
    lake.remove_dates(BOOKS, ["2024-01-01"])
    assert shown() == 4
    lake.remove_dates(BOOKS, ["2024-01-02", "2024-01-03", "2024-01-09"])
    assert shown() == 0


def test_a_view_that_was_made_before_a_compaction_stays_right(lake: Lake) -> None:
    with Catalog(lake).connection() as connection:
        lake.compact(BOOKS, SECOND_DAY)
        assert connection.execute("select count(*) from raw.order_books").fetchall() == [(12,)]


def test_a_day_is_found_by_the_names_of_folders_alone(lake: Lake) -> None:
    lake.compact(BOOKS, SECOND_DAY)
    with Catalog(lake).connection() as connection:
        plan = connection.execute("explain select * from raw.order_books").fetchall()[0][1]
    assert plan.count("Scanning Files: 1/4") == 1, "the hours of the compacted day are not opened"


def keyed(lake: Lake, table: Table, partitions: list[str]) -> dict[str, int]:
    query = lake.rows_sql(table, partitions)
    if query is None:
        return {}
    with memory_connection() as connection:
        found = connection.execute(f"select partition_key, count(*) from ({query}) group by all").fetchall()
    return dict(found)


def test_rows_come_with_the_key_they_lie_under_in_either_form(lake: Lake) -> None:
    expected = {hour_key(0): 8, hour_key(23): 2, hour_key(24): 2}
    assert keyed(lake, BOOKS, lake.partitions(BOOKS)) == expected
    lake.compact(BOOKS, SECOND_DAY)
    assert keyed(lake, BOOKS, lake.partitions(BOOKS)) == expected
    assert keyed(lake, BOOKS, [hour_key(23), hour_key(7)]) == {hour_key(23): 2}
    assert keyed(lake, BOOKS, [hour_key(7)]) == keyed(lake, KLINES, ["2024-01-01"]) == {}
    lake.replace(KLINES, "2024-01-03", klines([0]), provenance(partition="2024-01-03"))
    assert keyed(lake, KLINES, ["2024-01-03"]) == {"2024-01-03": 1}, "the folder says it, not the row"


# --- removal


def test_dates_disappear_and_nothing_else_does(lake: Lake) -> None:
    merge_books(lake, 48, books(48 * 60))
    lake.compact(BOOKS, SECOND_DAY)
    assert lake.remove_dates(BOOKS, ["2024-01-01", "2023-12-31"]) == ["2024-01-01"]
    assert lake.partitions(BOOKS) == [hour_key(24), hour_key(48)]
    assert lake.remove_dates(BOOKS, ["2024-01-01"]) == []


# --- the publisher, manifest and lineage


def test_the_publisher_stores_hours_from_frames_and_streams(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path)
    spec = dg.AssetSpec(dg.AssetKey(["raw", "order_books"]))
    pieces = [Piece(hour_key(n), books(60 * n), watermark=hour_window(n)[1]) for n in range(3)]
    stored = publisher.publish(
        spec, PartitionStream(pieces), "run", (MIDNIGHT, MIDNIGHT + timedelta(hours=3))
    )
    assert [item.partition for item in stored] == [hour_key(n) for n in range(3)]
    assert seen_by_plain_readers(publisher.lake) == 6
    warehouse = WarehouseResource(folder=str(tmp_path))
    assert warehouse.watermarks(BOOKS.name, MIDNIGHT, MIDNIGHT + timedelta(days=1)) == {
        hour_window(n)[0]: hour_window(n)[1] for n in range(3)
    }


def test_the_manifest_has_a_row_for_each_hour_in_either_form(lake: Lake) -> None:
    before = manifest_table(lake).drop(["bytes", "path"])
    lake.compact(BOOKS, SECOND_DAY)
    lake.sweep(BOOKS, NO_GRACE)
    after = manifest_table(lake)
    assert after.drop(["bytes", "path"]).equals(before)
    paths = after["path"].to_pylist()
    assert paths[:3] == ["lake/raw/order_books/date=2024-01-01/part-0.parquet"] * 3
    sizes = dict(zip(after["partition"].to_pylist(), after["bytes"].to_pylist(), strict=True))
    assert sizes[hour_key(1)] == 0 < sizes[hour_key(23)] < sizes[hour_key(0)]
    assert sum(sizes[hour_key(n)] for n in (0, 1, 23)) < lake.path(BOOKS, hour_key(0)).stat().st_size


SUMMARY = TABLES["raw/order_book_summary"]
RASTER = TABLES["rollups/raster"]


def test_an_hour_reads_hours_and_days_and_a_day_reads_hours(lake: Lake) -> None:
    lineage = Lineage(lake)
    assert lineage.keys(SUMMARY, Read(BOOKS, -1, 0), hour_key(24)) == [hour_key(23), hour_key(24)]
    assert lineage.keys(SUMMARY, Read(KLINES, 0, 0), hour_key(5)) == ["2024-01-01"]
    assert lineage.keys(SUMMARY, Read(KLINES, -1, 0), hour_key(24)) == ["2024-01-01", "2024-01-02"]
    hours = [hour_key(n) for n in range(24, 48)]
    assert lineage.keys(RASTER, Read(BOOKS, 0, 0), "2024-01-02") == hours
    assert lineage.keys(RASTER, Read(TABLES["weights/alpha_weights"], 0, 0), "2024-01-03") == ["2024-01-01"]


def test_a_compaction_changes_nothing_for_what_was_made_from_hours(lake: Lake) -> None:
    reads = {SUMMARY.name: (Read(BOOKS, -1, 0),)}
    lineage = Lineage(lake, reads)
    before = lineage.inputs(SUMMARY, hour_key(24), reads[SUMMARY.name])
    fingerprint = lineage.fingerprint()
    lake.compact(BOOKS, SECOND_DAY)
    lake.sweep(BOOKS, NO_GRACE)
    assert lineage.again().inputs(SUMMARY, hour_key(24), reads[SUMMARY.name]) == before
    assert lineage.again().fingerprint() != fingerprint
    merge_books(lake, 23, books(23 * 60 + 58))
    assert lineage.again().inputs(SUMMARY, hour_key(24), reads[SUMMARY.name]) != before


def test_an_hour_is_due_where_its_own_hour_is_stored_and_not_after_it_was_removed(lake: Lake) -> None:
    reads = {SUMMARY.name: (Read(BOOKS, -1, 0),)}
    due = dict(Lineage(lake, reads).changed([SUMMARY.name]))
    assert due == {SUMMARY.name: [hour_key(hour) for hour in (0, 1, 23, 24)]}
    assert Lineage(lake, reads).change(SUMMARY.name, hour_key(2)) is None
    lake.remove_dates(BOOKS, ["2024-01-01"])
    assert dict(Lineage(lake, reads).changed([SUMMARY.name])) == {SUMMARY.name: [hour_key(24)]}
    assert Lineage(lake, reads).change(SUMMARY.name, hour_key(0)) is None
