"""The gate of the roll-ups' benchmark: all ways make the same bars, one wrong value fails. No time is asserted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmarks.command import Wrong
from benchmarks.rollups import CONTENDERS, INTERVALS, Sizes, Task, contend, found_in, judge, make_minutes

SIZES = Sizes(n_symbols=3, n_days=2)


@pytest.fixture(scope="module")
def minutes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("minutes")
    n_rows = make_minutes(folder, SIZES)
    assert 0.98 < n_rows / (SIZES.n_symbols * SIZES.n_days * 1440) < 1
    return folder


def result_of(name: str, minutes: Path, target: Path, n_symbols: int = SIZES.n_symbols) -> Path:
    """A contender's folder."""
    target.mkdir()
    measured = contend(name, Task(str(minutes), str(target), n_symbols, SIZES.n_days))
    assert measured.report.cpu_s > 0
    assert measured.report.found == found_in(target)
    return target


def test_every_contender_makes_the_same_bars_and_one_wrong_value_is_found(
    minutes: Path, tmp_path: Path
) -> None:
    truth = found_in(result_of("ours", minutes, tmp_path / "ours"))
    # 288 + 96 + 48 + 24 + 12 + 6 + 4 + 2 + 1 bars a day, all of which have a minute.
    assert {found.n_rows for found in truth.values()} == {481 * SIZES.n_days}
    for name in ("polars", "pandas"):
        target = result_of(name, minutes, tmp_path / name)
        judge(name, found_in(target), truth)
        assert {path.stem for path in target.iterdir()} == set(INTERVALS)
        path = target / "4h.parquet"
        rows = pq.read_table(path)
        close = pc.add(rows.column("close"), pa.array([1e-9] + [0.0] * (len(rows) - 1)))  # ty: ignore[missing-attribute]
        at = rows.column_names.index("close")
        pq.write_table(rows.set_column(at, "close", close), path)
        with pytest.raises(Wrong, match="but not those"):
            judge(name, found_in(target), truth)
        pq.write_table(rows.slice(1), path)
        with pytest.raises(Wrong, match="481|961"):
            judge(name, found_in(target), truth)


def test_a_share_of_the_symbols_is_judged_by_itself(minutes: Path, tmp_path: Path) -> None:
    truth = found_in(result_of("ours", minutes, tmp_path / "ours"))
    few = found_in(result_of("pandas", minutes, tmp_path / "pandas", 1))
    assert len(few) == 1
    judge("pandas", few, truth)
    (symbol,) = few
    with pytest.raises(Wrong):
        judge("pandas", {symbol: replace(few[symbol], digest="0")}, truth)
    with pytest.raises(Wrong):
        judge("pandas", {"X": few[symbol]}, truth)


def test_a_refresh_makes_the_last_day_of_all(minutes: Path, tmp_path: Path) -> None:
    whole = result_of("ours", minutes, tmp_path / "ours")
    last = result_of("our_refresh", minutes, tmp_path / "last")
    rows = pa.concat_tables([pq.read_table(path) for path in sorted(whole.iterdir())])
    newest = rows.filter(
        pc.field("ts")
        >= pc.scalar(rows.column("ts").to_numpy().max().astype("datetime64[D]").astype("datetime64[us]"))
    )
    made = pa.concat_tables([pq.read_table(path) for path in sorted(last.iterdir())])
    keys = [("symbol", "ascending"), ("interval", "ascending"), ("ts", "ascending")]
    assert made.sort_by(keys).equals(newest.sort_by(keys))


def test_every_contender_of_the_command_line_is_one_of_the_tables() -> None:
    assert set(CONTENDERS) == {"ours", "our_refresh", "polars", "pandas"}
