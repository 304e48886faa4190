"""What a run tells of the columns it made: figures of each whole day, and of the newest one a picture."""

from __future__ import annotations

import base64
from pathlib import Path

import dagster as dg
import pytest

from crypto_assets_tests.graph.conftest import Built
from crypto_assets_tests.graph.harness import instance, step_of

KEY = dg.AssetKey(["features", "price_action"])


def told_of(partition: str) -> dict[str, dg.MetadataValue]:
    records = instance().fetch_materializations(
        dg.AssetRecordsFilter(asset_key=KEY, asset_partitions=[partition]), limit=1
    )
    (record,) = records.records
    assert record.asset_materialization is not None
    return dict(record.asset_materialization.metadata)


def test_every_whole_day_of_a_run_is_described_and_the_newest_one_drawn(
    quick_pair: tuple[Built, Built], tmp_path: Path
) -> None:
    later = quick_pair[1]
    platform = later.platform.copy(tmp_path / "copy", later.market)
    platform.run(step_of("features/price_action"), "2024-01-26", "2024-01-28")

    told = {day: told_of(f"2024-01-{day}") for day in (26, 27, 28)}

    # The running day is described when it is over.
    assert {day for day, found in told.items() if "columns" in found} == {26, 27}
    assert {day for day, found in told.items() if "picture" in found} == {27}
    shown = told[27]["columns"]
    assert isinstance(shown, dg.TableMetadataValue)
    records = {record.data["feature"]: record.data for record in shown.records}
    rows = later.tables["features/price_action"]
    whole_day = rows[rows["ts"].dt.strftime("%Y-%m-%d") == "2024-01-27"]
    missing = pytest.approx(whole_day["rsi_14h"].isna().mean(), rel=1e-5)
    assert records["rsi_14h"]["null_share_frac"] == missing
    assert told[27]["largest_null_share"].value == missing
    assert records["return_2_log"]["mean"] == pytest.approx(whole_day["return_2_log"].mean(), rel=1e-5)
    drifts = [record["drift"] for record in records.values() if record["drift"] is not None]
    assert told[27]["largest_drift"].value == pytest.approx(max(drifts), rel=1e-5)
    assert records["return_2_log"]["cluster"] != records["return_72h_log"]["cluster"]
    drawn = str(told[27]["picture"].value).split("base64,")[1].rstrip(")")
    assert base64.b64decode(drawn).startswith(b"\x89PNG")
