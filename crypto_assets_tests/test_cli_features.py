"""The command that measures features, as a user runs it: a process of its own."""

from __future__ import annotations

import signal
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from crypto_assets.measurements import NAME, read_measurements
from crypto_assets.quant.generators.declared import Grid
from crypto_assets.quant.warm_up import random_bars
from crypto_assets.resources.warehouse import Lake, Provenance
from crypto_assets.schemas import FIXED_TABLES
from crypto_assets.settings import RASTER_COLUMNS, load_settings
from crypto_assets_tests.quant.rasters import HOUR
from crypto_assets_tests.test_cli_sources import PATIENCE_S, Shell, configured

NOW = datetime(2024, 1, 25, 5, 20)
SMA: dict[str, Any] = {"generator": "talib", "functions": ["SMA"], "windows": [12]}
SAR: dict[str, Any] = {"generator": "talib", "functions": ["SAR"]}
CAP: dict[str, Any] = SMA | {"columns": "market_cap_usd"}
BASIS: dict[str, Any] = {"generator": "market", "function": "basis_mean", "windows": 12}


def own(name: str, **options: Any) -> dict[str, Any]:
    path = f"crypto_assets_tests.quant.test_warm_up:{name}"
    return {"generator": path, "columns": ["close"], "names": ["mine"]} | options


def shell_of(folder: Path, **sets: list[dict[str, Any]]) -> Shell:
    shell = configured(folder, NOW)
    content = yaml.safe_load(shell.config.read_text(encoding="utf-8"))
    content["features"] |= {name: {"entries": entries} for name, entries in sets.items()}
    shell.config.write_text(yaml.safe_dump(content), encoding="utf-8")
    return shell


@pytest.mark.slow
def test_what_is_left_open_is_measured_stored_and_used(tmp_path: Path) -> None:
    shell = shell_of(tmp_path, mine=[SMA, SAR], others=[SMA | {"windows": [5]}])
    assert "features measure" in shell.run("doctor", code=2)
    said = shell.run("features", "measure", "--set", "mine", "--rows", "24")
    assert "features/mine on random walks of seed 0" in said
    assert f"stored in {tmp_path / NAME}" in said
    stored = read_measurements(tmp_path / NAME)
    assert {entry.feature_set for entry in stored.values()} == {"mine"}
    columns = {name: column for entry in stored.values() for name, column in entry.columns.items()}
    assert set(columns) == {"close_sma_12", "high_low_sar"}
    assert columns["high_low_sar"].assured_bars is None
    features = load_settings(shell.config, {}).feature_sets["mine"].features
    assert features[1].warm_up == columns["high_low_sar"].measured_bars > 1

    before = (tmp_path / NAME).read_bytes()
    shell.run("features", "measure", "--set", "mine", "--rows", "24")
    assert (tmp_path / NAME).read_bytes() == before
    # What is no longer declared goes, what another set has stays.
    changed = shell_of(tmp_path, mine=[SMA], others=[SMA | {"windows": [5]}])
    changed.run("features", "measure", "--set", "others", "--rows", "24")
    assert sorted(
        name for entry in read_measurements(tmp_path / NAME).values() for name in entry.columns
    ) == [
        "close_sma_12",
        "close_sma_5",
    ]


@pytest.mark.slow
def test_a_declaration_that_is_too_short_fails_with_set_column_and_both_numbers(tmp_path: Path) -> None:
    shell = shell_of(tmp_path, mine=[own("mean_of_ten", lookback=4)])
    said = shell.run("features", "measure", "--set", "mine", "--rows", "24", code=1)
    (found,) = read_measurements(tmp_path / NAME).values()
    needed = found.columns["mine"].measured_bars
    assert needed >= 9
    assert f"features.mine: mine: {needed} bars of history are needed" in said
    assert "4 are declared" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "theirs"], "--set theirs: no feature set; allowed: "),
        (["--set", "mine"], "features.mine.entries: entry 0 (crypto_assets_tests.quant.test_warm_up:breaks)"),
        (["--rows", "1"], "--rows"),
    ],
)
def test_what_cannot_be_measured_is_refused_and_nothing_is_stored(
    tmp_path: Path, arguments: list[str], told: str
) -> None:
    shell = shell_of(tmp_path, mine=[own("breaks", lookback="measured")])
    assert told in shell.run("features", "measure", *arguments, code=2)
    assert not (tmp_path / NAME).exists()


@pytest.mark.slow
def test_a_stopped_measurement_leaves_what_is_stored(tmp_path: Path) -> None:
    shell = shell_of(tmp_path, mine=[SMA], others=[SMA | {"windows": [n]} for n in range(30, 70)])
    shell.run("features", "measure", "--set", "mine", "--rows", "24")
    before = (tmp_path / NAME).read_bytes()
    with shell.start("features", "measure", "--set", "mine", "--set", "others") as process:
        assert process.stdout is not None
        assert "features/mine on" in next(process.stdout)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert (tmp_path / NAME).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {NAME, "platform.yaml"}


@pytest.mark.slow
def test_bars_of_the_warehouse_are_preferred_where_there_are_enough(tmp_path: Path) -> None:
    table = FIXED_TABLES["rollups/raster"]
    rows = random_bars(Grid(HOUR, RASTER_COLUMNS), 24 * 40, n_listings=4, seed=5)
    rows = rows.assign(**dict.fromkeys(set(table.column_names) - set(rows), None))
    # The listing with the fewest bars alone has a cap, and none has a contract for long.
    fewest = rows.groupby("listing_id")["has_bar"].sum().idxmin()
    rows.loc[rows["listing_id"] != fewest, "market_cap_usd"] = None
    rows.loc[rows["ts"] < rows["ts"].max() - 500 * HOUR, "futures_close"] = None
    shell = shell_of(tmp_path, mine=[SMA], caps=[CAP], basis=[BASIS], others=[SMA | {"windows": [400]}])
    lake = Lake(shell.data)
    for day, part in rows.groupby(rows["ts"].dt.strftime("%Y-%m-%d")):
        typed = pa.Table.from_pandas(part, table.arrow_schema(), preserve_index=False)
        lake.replace(table, str(day), typed, Provenance(table.name, str(day)))
    chosen = [word for name in ("mine", "caps", "basis", "others") for word in ("--set", name)]
    said = shell.run("features", "measure", *chosen, "--rows", "24")
    assert "features/mine on rollups/raster" in said
    assert "features/others on random walks" in said
    assert "features/basis on random walks" in said
    sources = {entry.feature_set: entry.measured_on for entry in read_measurements(tmp_path / NAME).values()}
    assert sources["mine"].bars == "rollups/raster"
    assert len(sources["mine"].listings) == 3
    assert sources["caps"].bars == "rollups/raster"
    assert sources["caps"].listings == (fewest,)
    assert sources["mine"].last == rows["ts"].max()
    assert sources["others"].bars.startswith("random walks")
