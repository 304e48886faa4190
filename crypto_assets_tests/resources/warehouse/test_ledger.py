"""Revisions and anomalies are recorded once, in the order-free form of their tables."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest

from crypto_assets.resources.warehouse.conform import ContractError
from crypto_assets.resources.warehouse.ledger import (
    ANOMALIES,
    REVISIONS,
    SOURCE_FILES,
    Ledger,
    revisions_between,
)
from crypto_assets_tests.resources.warehouse.rows import DAY, KLINES, MIDNIGHT, klines


def anomaly(hour: int, detail: str = "{}") -> pa.Table:
    row = {
        "asset": "raw/klines",
        "kind": "off_grid",
        "venue": "binance",
        "symbol": "BTC/USDT",
        "series_kind": "trade",
        "interval": "1h",
        "ts": MIDNIGHT + timedelta(hours=hour, seconds=1),
        "detail": detail,
    }
    return pa.Table.from_pylist([row], schema=ANOMALIES.arrow_schema())


def test_an_empty_ledger_has_typed_tables(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "absent")
    assert ledger.revisions().schema.equals(REVISIONS.arrow_schema())
    assert ledger.anomalies().schema.equals(ANOMALIES.arrow_schema())
    assert ledger.source_files().schema.equals(SOURCE_FILES.arrow_schema())
    assert ledger.source_file("archive", "a.zip") is None


def test_a_batch_written_twice_is_one_batch(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for _ in range(2):
        ledger.add_anomalies(KLINES, DAY, anomaly(0))
    assert len(list(tmp_path.rglob("*.parquet"))) == 1
    assert ledger.anomalies().equals(anomaly(0))


def test_a_row_that_stands_in_two_batches_is_published_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add_anomalies(KLINES, DAY, pa.concat_tables([anomaly(1), anomaly(0)]))
    ledger.add_anomalies(KLINES, DAY, pa.concat_tables([anomaly(1), anomaly(2)]))
    assert ledger.anomalies().equals(pa.concat_tables([anomaly(hour) for hour in range(3)]))


def test_nothing_to_record_makes_no_file(tmp_path: Path) -> None:
    Ledger(tmp_path).add_anomalies(KLINES, DAY, anomaly(0).slice(0, 0))
    assert list(tmp_path.iterdir()) == []


def test_revisions_are_the_values_that_differ_in_rows_with_the_same_key() -> None:
    stored, fresh = klines([0, 1, 2]), pa.concat_tables([klines([1], close=90.0), klines([2, 3])])
    found = revisions_between(KLINES, stored, fresh, DAY, MIDNIGHT).to_pylist()
    assert {(row["column_name"], row["old_value"], row["new_value"]) for row in found} == {
        ("close", "100.0", "90.0"),
        ("low", "100.0", "90.0"),
    }
    assert all("2024-01-01 01:00:00" in row["row_key"] for row in found)
    assert revisions_between(KLINES, stored, stored, DAY, MIDNIGHT).num_rows == 0
    assert revisions_between(KLINES, stored.slice(0, 0), fresh, DAY, MIDNIGHT).num_rows == 0


def record(ledger: Ledger, closes: list[float]) -> None:
    for hour, (old, new) in enumerate(pairwise(closes)):
        seen_at = MIDNIGHT + timedelta(hours=hour)
        found = revisions_between(KLINES, klines([0], close=old), klines([0], close=new), DAY, seen_at)
        ledger.add_revisions(KLINES, DAY, found)


def test_a_change_that_is_seen_again_because_its_data_was_not_stored_is_recorded_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    record(ledger, [100.0, 90.0])
    before = ledger.revisions()
    later = revisions_between(
        KLINES, klines([0]), klines([0], close=90.0), DAY, MIDNIGHT + timedelta(hours=1)
    )
    ledger.add_revisions(KLINES, DAY, later)
    assert ledger.revisions().equals(before)


def test_a_value_that_goes_to_and_fro_is_recorded_every_time(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    record(ledger, [100.0, 90.0, 100.0, 90.0])
    closes = [row for row in ledger.revisions().to_pylist() if row["column_name"] == "close"]
    assert [(row["old_value"], row["new_value"]) for row in closes] == [
        ("100.0", "90.0"),
        ("90.0", "100.0"),
        ("100.0", "90.0"),
    ]


def test_an_anomaly_that_does_not_fit_its_table_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with pytest.raises(ContractError, match="quality/anomalies"):
        ledger.add_anomalies(KLINES, DAY, anomaly(0).set_column(1, "kind", pa.nulls(1, pa.string())))
    assert ledger.anomalies().num_rows == 0


def test_anomalies_of_one_partition_are_those_that_came_with_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add_anomalies(KLINES, DAY, anomaly(0))
    ledger.add_anomalies(KLINES, "2024-01-02", anomaly(24))
    assert ledger.anomalies(KLINES, "2024-01-02").equals(anomaly(24))
    assert ledger.anomalies(KLINES, "2024-01-03").num_rows == 0


# --- files


def reading(sha256: str, hour: int, file: str = "data/spot/BTCUSDT-1m-2024-01.zip") -> dict[str, object]:
    return {
        "origin": "archive",
        "file": file,
        "sha256": sha256,
        "seen_at": MIDNIGHT + timedelta(hours=hour),
        "format": "spot klines",
        "venue": "binance",
        "symbol": "BTC/USDT",
        "kind": "trade",
        "interval": "1m",
        "n_rows": 44640,
        "first_ts": MIDNIGHT,
        "last_ts": None,
    }


def told(ledger: Ledger) -> list[tuple[str, str, bool]]:
    rows = ledger.source_files().to_pylist()
    return [(row["file"][-6:-4], row["sha256"], row["published_again"]) for row in rows]


def test_a_file_that_is_read_again_with_the_same_content_is_recorded_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add_source_file(reading("a", 0))
    ledger.add_source_file(reading("a", 5))
    assert told(ledger) == [("01", "a", False)]
    assert ledger.source_files()["seen_at"].to_pylist() == [MIDNIGHT]


def test_a_file_with_another_content_was_published_again_and_others_were_not(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    # The later content comes first by its hash: it is the time that tells.
    ledger.add_source_file(reading("b", 0))
    ledger.add_source_file(reading("a", 5))
    ledger.add_source_file(reading("b", 7, "data/spot/BTCUSDT-1m-2024-02.zip"))
    assert sorted(told(ledger)) == [("01", "a", True), ("01", "b", False), ("02", "b", False)]


def test_the_content_that_was_read_last_is_known_by_origin_and_file(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    file = str(reading("a", 0)["file"])
    for hour, sha256 in enumerate(["a", "b", "a"]):
        ledger.add_source_file(reading(sha256, hour))
        assert ledger.source_file("archive", file) == sha256
    assert ledger.source_file("import", file) is None
    assert len(told(ledger)) == 2, "a content that comes back is one row"


def test_a_file_that_does_not_fit_its_table_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with pytest.raises(ContractError, match="quality/source_files"):
        ledger.add_source_file(reading("a", 0) | {"n_rows": None})
    assert ledger.source_files().num_rows == 0


def test_files_that_are_recorded_at_once_are_all_recorded(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda n: ledger.add_source_file(reading(f"{n % 4:02d}", n, f"{n // 4:02d}.zip")), range(16)
            )
        )
    assert sorted(name for name, _, _ in told(ledger)) == [
        f"{n:02d}"[-6:] for n in range(4) for _ in range(4)
    ]
