"""What was measured is stored beside the settings, and settings that need it refuse to load without it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from crypto_assets.local import ROOT
from crypto_assets.measurements import (
    NAME,
    MeasuredColumn,
    MeasuredEntry,
    MeasuredOn,
    read_measurements,
    write_measurements,
)
from crypto_assets.quant.generators import entry_of
from crypto_assets.quant.panel import longest_pause
from crypto_assets.quant.warm_up import key_of
from crypto_assets.settings import Settings, SettingsError, load_settings
from crypto_assets.tables import declared_tables
from crypto_assets_tests.quant.rasters import HOUR
from crypto_assets_tests.test_local import SUITE

KAMA: dict[str, Any] = {"generator": "talib", "functions": ["KAMA"], "windows": [12]}
OWN: dict[str, Any] = {
    "generator": "crypto_assets_tests.quant.own_features:spread_share",
    "columns": ["high", "low", "close"],
    "names": ["mine_frac"],
    "lookback": "measured",
}


def configured(folder: Path, *entries: dict[str, Any], **others: Any) -> Path:
    raw = yaml.safe_load(SUITE.read_text(encoding="utf-8"))
    raw["features"]["mine"] = {"entries": list(entries)} | others
    path = folder / "platform.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def measured_of(raw: dict[str, Any], bars: int, *names: str) -> dict[str, MeasuredEntry]:
    on = MeasuredOn(
        bars="rollups/raster",
        world="synthetic",
        first=datetime(2024, 1, 1),
        last=datetime(2024, 2, 1),
        n_bars=745,
        listings=("BTC/USDT#1",),
    )
    column = MeasuredColumn(
        measured_bars=bars, bound=1e-8, error=3.5e-10, n_values=90, assured_bars=None, warm_up_bars=None
    )
    record = MeasuredEntry(
        feature_set="mine", interval="1h", entry=raw, measured_on=on, columns=dict.fromkeys(names, column)
    )
    return {key_of(entry_of(raw), HOUR): record}


def tags_of(settings: Settings, column: str) -> dict[str, str]:
    (found,) = (one for one in declared_tables(settings)["features/mine"].columns if one.name == column)
    return dict(found.tags)


def test_what_is_written_is_read_and_can_be_read_by_people(tmp_path: Path) -> None:
    path = tmp_path / NAME
    assert read_measurements(path) == {}
    stored = measured_of(KAMA, 321, "close_kama_12") | measured_of(OWN, 1, "mine_frac")
    write_measurements(path, stored)
    assert read_measurements(path) == stored
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("#")
    assert "  entry: {generator: talib, functions: [KAMA], windows: [12]}" in lines
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("key", ["1234567890123456", "0b00000000000000", "0x12", "1.5", "cafe"])
@pytest.mark.parametrize("name", ["on", "null", "yes", "1_000", "~", "plain_frac"])
def test_names_that_yaml_takes_for_something_else_are_read_as_they_were(
    tmp_path: Path, key: str, name: str
) -> None:
    (record,) = measured_of(KAMA, 321, name, "close_kama_12").values()
    stored = {key: record.model_copy(update={"feature_set": name})}
    write_measurements(tmp_path / NAME, stored)
    assert read_measurements(tmp_path / NAME) == stored


@pytest.mark.parametrize("content", ["a: [", "12: {feature_set: mine}", "[1, 2]"])
def test_a_damaged_file_is_refused_with_its_name_and_what_to_do(tmp_path: Path, content: str) -> None:
    path = configured(tmp_path, KAMA | {"warm_up": 300})
    (tmp_path / NAME).write_text(content, encoding="utf-8")
    with pytest.raises(
        SettingsError, match=f"(?s){NAME}: is no file of measurements: .*crypto-assets features measure"
    ):
        load_settings(path, {})


@pytest.mark.parametrize("raw", [KAMA, OWN])
def test_what_is_not_measured_is_refused_with_the_entry_and_the_command(
    tmp_path: Path, raw: dict[str, Any]
) -> None:
    path = configured(tmp_path, {"generator": "talib", "functions": ["SMA"], "windows": [7]}, raw)
    with pytest.raises(SettingsError) as caught:
        load_settings(path, {})
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: features.mine.entries: entry 1 ({raw['generator']}): ")
    assert "crypto-assets features measure" in line
    names = load_settings(path, {}, measuring=True).feature_sets["mine"].names
    assert names == ("close_sma_7", "mine_frac" if raw is OWN else "close_kama_12")


def test_what_is_measured_sets_the_lookback_and_stands_with_the_column(tmp_path: Path) -> None:
    path = configured(tmp_path, KAMA, OWN)
    write_measurements(
        tmp_path / NAME, measured_of(KAMA, 321, "close_kama_12") | measured_of(OWN, 2, "mine_frac")
    )
    settings = load_settings(path, {})
    chosen = settings.feature_sets["mine"]
    assert [(f.warm_up, f.lookback) for f in chosen.features] == [
        (321, 321 + longest_pause(HOUR) + 23),
        (0, 2 + 23),
    ]
    assert chosen.lookback_days == -(-(321 + longest_pause(HOUR) + 23) // 24)
    assert (
        tags_of(settings, "close_kama_12").items()
        >= {
            "warm_up_bars": "321",
            "lookback_bars": "392",
            "measured_bars": "321",
            "bound": "1e-08",
        }.items()
    )
    write_measurements(
        tmp_path / NAME, measured_of(KAMA, 322, "close_kama_12") | measured_of(OWN, 2, "mine_frac")
    )
    assert load_settings(path, {}).feature_sets["mine"].version != chosen.version


def test_what_was_measured_of_a_whole_declaration_is_told_and_changes_nothing(tmp_path: Path) -> None:
    told = KAMA | {"warm_up": 400}
    path = configured(tmp_path, told)
    plain = load_settings(path, {})
    assert "measured_bars" not in tags_of(plain, "close_kama_12")
    write_measurements(tmp_path / NAME, measured_of(told, 321, "close_kama_12"))
    settings = load_settings(path, {})
    assert settings.feature_sets["mine"].version == plain.feature_sets["mine"].version
    assert tags_of(settings, "close_kama_12")["measured_bars"] == "321"
    assert tags_of(settings, "close_kama_12")["warm_up_bars"] == "400"


@pytest.mark.parametrize(
    ("change", "others"),
    [({"windows": [13]}, {}), ({"columns": "open"}, {}), ({}, {"interval": "4h"})],
    ids=["window", "column", "interval"],
)
def test_a_measurement_of_another_declaration_does_not_count(
    tmp_path: Path, change: dict[str, Any], others: dict[str, Any]
) -> None:
    write_measurements(tmp_path / NAME, measured_of(KAMA, 321, "close_kama_12"))
    assert load_settings(configured(tmp_path, KAMA), {}).features
    with pytest.raises(
        SettingsError, match="features.mine.entries: entry 0 .talib.: no rule tells how long KAMA"
    ):
        load_settings(configured(tmp_path, KAMA | change, **others), {})


def test_measurements_are_no_setting(tmp_path: Path) -> None:
    path = configured(tmp_path, KAMA | {"warm_up": 300})
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump(raw | {"measured": {"file": "mine.yaml"}}), encoding="utf-8")
    with pytest.raises(
        SettingsError, match="measured: unknown key; `crypto-assets features measure` keeps it"
    ):
        load_settings(path, {})


def test_every_shipped_feature_is_measured_and_declares_enough() -> None:
    settings = load_settings(ROOT / "platform.yaml", {})
    stored = read_measurements(ROOT / NAME)
    for name, chosen in settings.feature_sets.items():
        told = f"features.{name}: run `crypto-assets features measure` and commit {NAME}"
        assert set(chosen.names) == set(chosen.grid.measured), told
    for entry in stored.values():
        for name, column in entry.columns.items():
            assert column.error <= column.bound
            assert column.assured_bars is None or column.measured_bars <= column.assured_bars, name
