"""Partitions are whole whatever happens: replace, merge, kills, two writers at once, damaged files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from textwrap import dedent

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_assets.resources.warehouse import ContractError, Lake, Provenance, SeriesCoverage, WarehouseError
from crypto_assets.resources.warehouse.lake import missing_in, union_of
from crypto_assets_tests.resources.warehouse.rows import (
    BACKTEST,
    DAY,
    KLINES,
    MIDNIGHT,
    SCORES,
    SERIES,
    WINDOW,
    hours,
    klines,
    piece,
    provenance,
    scores,
)

REPOSITORY = Path(__file__).resolve().parents[3]
SEEN = datetime(2024, 1, 3)


def merge(
    lake: Lake, rows: pa.Table, *coverage: SeriesCoverage, run_id: str = "run-1", **more: datetime
) -> Provenance:
    seen_at = more.pop("seen_at", SEEN)
    done = provenance(run_id=run_id)
    return lake.merge(KLINES, DAY, piece(rows, *coverage, **more), done, WINDOW, seen_at)


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --- replace and read


def test_a_replaced_partition_is_read_back_with_its_provenance(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    done = lake.replace(SCORES, DAY, scores([1, 0]), provenance(SCORES.name), WINDOW)
    assert lake.read(SCORES).equals(scores([0, 1]))
    assert lake.provenance(SCORES, DAY) == done
    assert (done.rows, done.run_id, done.inputs) == (2, "run-1", {"x/y|d": "h"})
    assert len(done.content_hash) == 64
    lake.replace(SCORES, DAY, scores([5]), provenance(SCORES.name), WINDOW)
    assert lake.read(SCORES).equals(scores([5]))


def test_an_empty_partition_is_stored_and_typed(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.replace(SCORES, DAY, scores([]), provenance(SCORES.name), WINDOW)
    assert lake.partitions(SCORES) == [DAY]
    assert lake.read(SCORES).schema.equals(SCORES.arrow_schema())


def test_nothing_stored_reads_as_no_rows_of_the_contract(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "absent")
    assert lake.read(SCORES, columns=["ts", "symbol"]).schema.names == ["ts", "symbol"]
    assert lake.provenance(SCORES, DAY) is None
    assert lake.partitions(SCORES) == lake.partitions(BACKTEST) == list(lake.manifest()) == []
    assert not (tmp_path / "absent").exists()


def test_rows_are_read_in_key_order_across_partitions(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    for day in (2, 0, 1):
        rows = pa.concat_tables(
            [scores([24 * day + 1, 24 * day], symbol) for symbol in ("ETH/USDT", "BTC/USDT")]
        )
        key = f"2024-01-0{day + 1}"
        lake.replace(SCORES, key, rows, provenance(SCORES.name, key))
    assert lake.partitions(SCORES) == ["2024-01-01", "2024-01-02", "2024-01-03"]
    everything = pa.concat_tables(
        [scores([0, 1, 24, 25, 48, 49], symbol) for symbol in ("BTC/USDT", "ETH/USDT")]
    )
    assert lake.read(SCORES).equals(everything)
    some = lake.read(SCORES, ["2024-01-03", "2024-01-01", "2030-01-01"], ["ts"], "symbol = 'ETH/USDT'")
    assert some.equals(scores([0, 1, 48, 49]).select(["ts"]))
    assert [(table.name, key, done.rows) for table, key, _, done in lake.manifest()] == [
        (SCORES.name, key, 4) for key in lake.partitions(SCORES)
    ]


def test_a_refused_frame_leaves_the_stored_rows(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    before = lake.replace(SCORES, DAY, scores([0]), provenance(SCORES.name), WINDOW)
    with pytest.raises(ContractError):
        lake.replace(SCORES, DAY, scores([1, 1]), provenance(SCORES.name), WINDOW)
    assert lake.provenance(SCORES, DAY) == before
    assert lake.read(SCORES).equals(scores([0]))


def test_a_write_that_fails_leaves_the_stored_rows_and_no_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake(tmp_path)
    lake.replace(SCORES, DAY, scores([0]), provenance(SCORES.name), WINDOW)
    before = files_below(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(WarehouseError, match=r"part-0\.parquet: cannot be written \(No space left"):
            lake.replace(SCORES, DAY, scores([1]), provenance(SCORES.name), WINDOW)
    assert files_below(tmp_path) == before
    assert lake.read(SCORES).equals(scores([0]))


# --- kills

WRITER = """
    import sys
    from pathlib import Path
    from crypto_assets.resources.warehouse import Lake
    from crypto_assets_tests.resources.warehouse.rows import *

    lake = Lake(Path(sys.argv[1]))
    frames = {n: [scores(range(24), f"S{i}/USDT", float(n)) for i in range(200)] for n in (1, 2)}
    frames = {n: pa.concat_tables(parts) for n, parts in frames.items()}
    print("ready", flush=True)
    n = 1
    while True:
        lake.replace(SCORES, DAY, frames[n], provenance(SCORES.name, run_id=str(n)), WINDOW)
        n = 3 - n
"""


def test_a_killed_writer_leaves_whole_partitions_and_the_next_write_cleans_up(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    directory = lake.path(SCORES, DAY).parent
    n_leftovers = 0
    for attempt in range(6):
        command = [sys.executable, "-c", dedent(WRITER), str(tmp_path)]
        with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            # Killed as soon as a file is being written aside, so that most kills hit the middle of a write.
            while not (lake.path(SCORES, DAY).is_file() and list(directory.glob(".tmp-*"))):
                assert writer.poll() is None
            os.kill(writer.pid, signal.SIGKILL)
        n_leftovers += len(list(directory.glob(".tmp-*")))
        rows, stored = lake.read(SCORES), lake.provenance(SCORES, DAY)
        assert stored is not None
        assert rows.num_rows == stored.rows == 4800, attempt
        assert set(rows["alpha_score"].to_pylist()) == {float(stored.run_id or "nan")}
    assert n_leftovers > 0
    lake.replace(SCORES, DAY, scores([0]), provenance(SCORES.name), WINDOW)
    assert files_below(directory) == {"part-0.parquet"}


# --- merge


def test_a_merge_adds_new_rows_and_joins_coverage_and_watermark(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    early, late = MIDNIGHT + timedelta(hours=2), MIDNIGHT + timedelta(hours=4)
    merge(lake, klines([2, 3]), hours(2, 4), watermark=late)
    done = merge(lake, klines([0, 1]), hours(0, 2), hours(0, 2, "binance|ETH/USDT|trade|1h"), watermark=early)
    assert lake.read(KLINES).equals(klines(range(4)))
    assert done.covered(SERIES) == hours(0, 4).ranges
    assert done.covered("binance|ETH/USDT|trade|1h") == hours(0, 2).ranges
    assert done.covered("binance|ADA/USDT|trade|1h") == ()
    assert done.watermark == late
    assert lake.ledger.revisions().num_rows == 0


def test_coverage_of_one_series_in_several_items_is_joined_in_the_first_merge_too(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    done = merge(lake, klines([0, 1]), hours(1, 2), hours(0, 1))
    assert done.covered(SERIES) == hours(0, 2).ranges


def test_a_changed_row_replaces_the_old_one_and_is_recorded(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    merge(lake, klines([0, 1]), hours(0, 2))
    merge(lake, klines([1, 2], close=90.0), hours(1, 3))
    assert lake.read(KLINES)["close"].to_pylist() == [100.0, 90.0, 90.0]
    found = lake.ledger.revisions().to_pylist()
    assert [(row["column_name"], row["old_value"], row["new_value"]) for row in found] == [
        ("close", "100.0", "90.0"),
        ("low", "100.0", "90.0"),
    ]
    assert {(row["asset"], row["partition"], row["seen_at"]) for row in found} == {(KLINES.name, DAY, SEEN)}


def test_a_value_that_comes_or_goes_is_a_revision(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    rows = klines([0])
    gone = rows.set_column(rows.column_names.index("n_trades"), "n_trades", pa.array([None], pa.int64()))
    for seen, version in enumerate((rows, gone, rows)):
        merge(lake, version, hours(0, 1), seen_at=SEEN + timedelta(hours=seen))
    changes = [(row["old_value"], row["new_value"]) for row in lake.ledger.revisions().to_pylist()]
    assert changes == [("3", None), (None, "3")]


def test_merging_the_same_again_does_not_touch_the_file(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    rows = pa.concat_tables([klines([1, 0]), klines([0], "ETH/USDT")])
    first = merge(lake, rows, hours(1, 2), hours(0, 1), watermark=MIDNIGHT)
    path = lake.path(KLINES, DAY)
    before, everything = path.stat(), files_below(tmp_path)
    assert merge(lake, rows, hours(0, 2), watermark=MIDNIGHT, run_id="run-2") == first
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert files_below(tmp_path) == everything
    assert merge(lake, klines([]), hours(2, 3), run_id="run-3").run_id == "run-3"
    assert path.stat().st_ino != before.st_ino


def test_the_revision_is_in_the_ledger_before_the_data_and_not_doubled_by_a_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake(tmp_path)
    merge(lake, klines([0]), hours(0, 1))

    def refuse(rows: pa.Table, path: Path) -> None:
        raise WarehouseError(f"{path}: cannot be written")

    with monkeypatch.context() as patched:
        patched.setattr("crypto_assets.resources.warehouse.lake.write_durably", refuse)
        with pytest.raises(WarehouseError):
            merge(lake, klines([0], close=90.0), hours(0, 1))
    recorded = lake.ledger.revisions()
    assert recorded.num_rows == 2
    assert lake.read(KLINES).equals(klines([0]))
    merge(lake, klines([0], close=90.0), hours(0, 1), seen_at=SEEN + timedelta(hours=1))
    assert lake.ledger.revisions().equals(recorded)
    assert lake.read(KLINES).equals(klines([0], close=90.0))


def test_a_row_outside_the_window_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    with pytest.raises(ContractError, match="outside the partition window"):
        merge(lake, klines([23, 24]), hours(23, 25))
    assert lake.partitions(KLINES) == []


def _merge_hours(folder: Path, symbol: str, count: int) -> None:
    lake = Lake(folder)
    for hour in range(count):
        merge(lake, klines([hour], symbol), hours(hour, hour + 1, f"binance|{symbol}|trade|1h"))


def test_two_processes_that_merge_at_once_lose_no_row(tmp_path: Path) -> None:
    symbols = ["BTC/USDT", "ETH/USDT"]
    with ProcessPoolExecutor(2) as pool:
        for job in [pool.submit(_merge_hours, tmp_path, symbol, 20) for symbol in symbols]:
            job.result()
    lake = Lake(tmp_path)
    assert lake.read(KLINES).equals(pa.concat_tables([klines(range(20), symbol) for symbol in symbols]))
    done = lake.provenance(KLINES, DAY)
    assert done is not None
    assert [item.ranges for item in done.coverage] == [hours(0, 20).ranges] * 2


# --- damage


def damage(path: Path, kind: str) -> None:
    whole = path.read_bytes()
    if kind == "foreign":
        pq.write_table(scores([0]), path)
    elif kind == "other provenance":
        pq.write_table(scores([0]).replace_schema_metadata({b"crypto_assets": b'{"rows": 1}'}), path)
    else:
        path.write_bytes({"empty": b"", "text": b"not parquet", "cut": whole[: len(whole) // 2]}[kind])


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "foreign", "other provenance"])
def test_a_damaged_file_is_named_with_the_remedy_when_its_provenance_is_read(
    tmp_path: Path, kind: str
) -> None:
    lake = Lake(tmp_path)
    lake.replace(SCORES, DAY, scores([0]), provenance(SCORES.name), WINDOW)
    path = lake.path(SCORES, DAY)
    damage(path, kind)
    for read in (lambda: lake.provenance(SCORES, DAY), lambda: list(lake.manifest())):
        with pytest.raises(WarehouseError, match="move it away and materialize") as caught:
            read()
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["empty", "text", "cut"])
def test_a_damaged_file_is_named_with_the_remedy_when_rows_are_read(tmp_path: Path, kind: str) -> None:
    lake = Lake(tmp_path)
    for key in (DAY, "2024-01-02"):
        lake.replace(SCORES, key, scores([0 if key == DAY else 24]), provenance(SCORES.name, key))
    damage(lake.path(SCORES, DAY), kind)
    with pytest.raises(WarehouseError, match="materialize its partition again") as caught:
        lake.read(SCORES)
    assert str(lake.path(SCORES, DAY)) in str(caught.value)
    assert lake.read(SCORES, ["2024-01-02"]).equals(scores([24]))


def test_a_damaged_file_can_be_replaced_but_not_merged_into(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    merge(lake, klines([0]), hours(0, 1))
    damage(lake.path(KLINES, DAY), "cut")
    with pytest.raises(WarehouseError, match="move it away"):
        merge(lake, klines([1]), hours(1, 2))
    lake.replace(KLINES, DAY, klines([1]), provenance(), WINDOW)
    assert lake.read(KLINES).equals(klines([1]))


@pytest.mark.parametrize("blocked", ["", "lake", ".locks", f"lake/weights/alpha_scores/date={DAY}"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, blocked: str) -> None:
    folder = tmp_path / "warehouse"
    (folder / blocked).parent.mkdir(parents=True, exist_ok=True)
    (folder / blocked).write_text("a regular file")
    with pytest.raises(
        WarehouseError, match=r"cannot be written \(.+\); check the folder's permissions"
    ) as caught:
        Lake(folder).replace(SCORES, DAY, scores([0]), provenance(SCORES.name), WINDOW)
    assert str(folder) in str(caught.value)


def test_a_ledger_that_cannot_be_written_stops_the_merge(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    merge(lake, klines([0]), hours(0, 1))
    (tmp_path / "ledger").write_text("a regular file")
    with pytest.raises(WarehouseError, match="ledger.*cannot be written"):
        merge(lake, klines([0], close=90.0), hours(0, 1))
    assert lake.read(KLINES).equals(klines([0]))


# --- ranges

MOMENTS = st.integers(0, 30).map(lambda hour: MIDNIGHT + timedelta(hours=hour))
RANGES = st.lists(st.tuples(MOMENTS, MOMENTS), max_size=8)


def hours_in(ranges: Sequence[tuple[datetime, datetime]]) -> set[datetime]:
    every = [MIDNIGHT + timedelta(hours=hour) for hour in range(31)]
    return {moment for moment in every for start, end in ranges if start <= moment < end}


@given(RANGES)
def test_a_union_covers_the_same_time_in_apart_and_sorted_ranges(
    ranges: list[tuple[datetime, datetime]],
) -> None:
    union = union_of(ranges)
    assert hours_in(union) == hours_in(ranges)
    assert all(start < end for start, end in union)
    assert all(left[1] < right[0] for left, right in zip(union, union[1:], strict=False))
    assert union_of(reversed(union)) == union


@given(RANGES, MOMENTS, MOMENTS)
def test_what_is_missing_and_what_is_covered_make_up_the_whole(
    ranges: list[tuple[datetime, datetime]], start: datetime, end: datetime
) -> None:
    holes = missing_in(ranges, start, end)
    assert hours_in(holes) == hours_in([(start, end)]) - hours_in(ranges)
    assert tuple(holes) == union_of(holes)


@given(RANGES, st.none() | MOMENTS)
def test_provenance_survives_its_file_form(
    ranges: list[tuple[datetime, datetime]], watermark: datetime | None
) -> None:
    done = Provenance(
        "a/b", DAY, 3, "h", "1", {"c": "d"}, "run", watermark, (SeriesCoverage("s", union_of(ranges)),)
    )
    assert Provenance.from_json(done.to_json()) == done
