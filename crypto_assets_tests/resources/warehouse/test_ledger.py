"""Revisions and anomalies are recorded once, in the order-free form of their tables."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest

from crypto_assets.resources.warehouse.conform import ContractError
from crypto_assets.resources.warehouse.ledger import ANOMALIES, REVISIONS, Ledger, revisions_between
from crypto_assets_tests.resources.warehouse.rows import DAY, KLINES, MIDNIGHT, klines


def anomaly(hour: int, detail: str = "{}") -> pa.Table:
    row = {
        "asset": "raw/klines",
        "kind": "off_grid",
        "venue": "binance",
        "symbol": "BTC/USDT",
        "interval": "1h",
        "ts": MIDNIGHT + timedelta(hours=hour, seconds=1),
        "detail": detail,
    }
    return pa.Table.from_pylist([row], schema=ANOMALIES.arrow_schema())


def test_an_empty_ledger_has_typed_tables(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "absent")
    assert ledger.revisions().schema.equals(REVISIONS.arrow_schema())
    assert ledger.anomalies().schema.equals(ANOMALIES.arrow_schema())


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
