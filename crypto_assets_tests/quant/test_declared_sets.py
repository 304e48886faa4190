"""Every feature set that a shipped or tested platform.yaml declares, through the leak harness, on recorded candles.

A set that is declared is covered by being declared: nothing here names one. The candles have real gaps, deaths and a
reused ticker; columns that the recordings lack (contracts, funding, books, caps) are drawn from a seed, with holes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest

from crypto_assets.local import ROOT
from crypto_assets.quant.feature_sets import BAR_COLUMNS, FeatureSet
from crypto_assets.quant.generators import GENERATORS, entry_of, itbstats
from crypto_assets.quant.generators.declared import Grid
from crypto_assets.quant.invariants import Difference, feature_set_differences, label_set_differences
from crypto_assets.quant.labels import LabelSet
from crypto_assets.quant.labels.sets import FAMILIES
from crypto_assets.quant.panel import Panel
from crypto_assets.schemas import Column, Table
from crypto_assets.settings import RASTER_COLUMNS, load_settings
from crypto_assets.tables import TABLES, declared_tables
from crypto_assets_tests.recorded import RECORDED, needs_recorded

pytestmark = needs_recorded

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
CONFIGURATIONS = {
    "shipped": ROOT / "platform.yaml",
    "tested": ROOT / "crypto_assets_tests" / "graph" / "platform.yaml",
}
SETTINGS = {name: load_settings(path, {}) for name, path in CONFIGURATIONS.items()}
SETS = [
    pytest.param(
        settings.feature_sets[name], declared_tables(settings)[f"features/{name}"], id=f"{which}-{name}"
    )
    for which, settings in SETTINGS.items()
    for name in settings.feature_sets
]


LABELS = [
    pytest.param(settings.label_sets[name], declared_tables(settings)[f"labels/{name}"], id=f"{which}-{name}")
    for which, settings in SETTINGS.items()
    for name in settings.label_sets
]


def listing_of(symbol: str, ts: pd.Series) -> np.ndarray:
    second = (symbol == "LUNA/USDT") & (ts >= datetime(2022, 5, 31))
    return np.where(second, f"{symbol}#2", f"{symbol}#1")


@cache
def hours() -> pd.DataFrame:
    """LUNA (the collapse and the ticker's second coin), UST (dead), BTC and SRM: 120 days of hourly candles."""
    parts = []
    for base in ("BTC", "LUNA", "SRM", "UST"):
        rows = pd.read_csv(
            RECORDED / "spot_1h_2021_2023" / "dev" / f"{base}USDT-1h.csv.gz", parse_dates=["date"]
        )
        parts.append(rows.assign(symbol=f"{base}/USDT", ts=rows["date"]))
    found = pd.concat(parts)
    return found[found["ts"].between(datetime(2022, 3, 1), datetime(2022, 6, 28, 23))].reset_index(drop=True)


@cache
def minutes() -> pd.DataFrame:
    """The outage of 2023-03-24: minutes without trades, then none at all."""
    path = RECORDED / "spot_1m_ohlcv" / "BTC_USDT-1m-2023-03-16_05-01.json.gz"
    rows = pd.read_json(path)
    rows.columns = ["ts", "open", "high", "low", "close", "volume"]
    rows["ts"] = pd.to_datetime(rows["ts"], unit="ms")
    inside = rows["ts"].between(datetime(2023, 3, 16), datetime(2023, 3, 25, 23, 59))
    return rows[inside].assign(symbol="BTC/USDT").reset_index(drop=True)


def rows_for(grid: Grid) -> pd.DataFrame:
    """Recorded candles of the grid's interval with every column that a set may read."""
    bar = grid.bar
    source = minutes() if bar < HOUR else hours()
    if bar not in (MINUTE, HOUR):
        how = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
        source = (
            source.assign(ts=source["ts"].dt.floor(bar)).groupby(["symbol", "ts"], as_index=False).agg(how)
        )
    ts = source["ts"].astype("datetime64[us]")
    rows = source[["symbol", "open", "high", "low", "close"]].assign(ts=ts, known_at=ts + bar, has_bar=True)
    rows["listing_id"] = np.concatenate(
        [listing_of(str(symbol), part) for symbol, part in ts.groupby(rows["symbol"], sort=False)]
    )
    rows["volume_base"] = source["volume"]
    draws = np.random.default_rng(17)
    for name in {**BAR_COLUMNS, **RASTER_COLUMNS}:
        if name not in rows:
            walk = np.cumsum(draws.normal(size=len(rows)))
            rows[name] = np.where(draws.random(len(rows)) < 0.03, np.nan, np.exp(0.01 * walk))
    rows["turnover_quote"] = rows["volume_base"] * rows["close"]
    rows["taker_buy_base"] = rows["volume_base"] * draws.random(len(rows))
    return rows


def moments(rows: pd.DataFrame) -> list[datetime]:
    """Ends of bars: in a gap, at a death, at a midnight, at the last bar, and at hours drawn from a seed."""
    ends = rows["known_at"].drop_duplicates().sort_values()
    late = ends[ends > ends.iloc[0] + (ends.iloc[-1] - ends.iloc[0]) / 2]
    drawn = np.random.default_rng(23).choice(len(late), size=3, replace=False)
    told = [
        datetime(2022, 5, 13, 1),
        datetime(2022, 6, 1),
        datetime(2023, 3, 24, 13),
        datetime(2023, 3, 24, 14, 5),
    ]
    return [
        *(moment for moment in told if late.iloc[0] <= moment <= late.iloc[-1]),
        *(late.iloc[place].to_pydatetime() for place in sorted(drawn)),
        late.iloc[-1].to_pydatetime(),
    ]


@pytest.mark.parametrize(("chosen", "table"), SETS)
def test_a_declared_set_sees_no_future_and_no_further_back_than_it_says(
    chosen: FeatureSet, table: Table
) -> None:
    rows = rows_for(chosen.grid)
    whole = chosen.compute(rows)
    assert len(whole) == len(rows)
    assert not [str(found) for found in feature_set_differences(chosen, table, rows, moments(rows))]


@pytest.mark.parametrize(("chosen", "table"), LABELS)
def test_a_declared_label_is_decided_once_and_reads_no_further_than_it_says(
    chosen: LabelSet, table: Table
) -> None:
    rows = rows_for(chosen.terms)
    assert not [str(found) for found in label_set_differences(chosen, table, rows, moments(rows))]
    whole = chosen.compute(rows, watermark=rows["known_at"].max())
    assert len(whole) == len(rows)
    assert not [label.name for label in chosen.labels if whole[label.name].isna().all()]


@pytest.mark.parametrize(("chosen", "table"), SETS)
def test_every_declared_column_carries_values_and_its_declaration(chosen: FeatureSet, table: Table) -> None:
    whole = chosen.compute(rows_for(chosen.grid))
    empty = [feature.name for feature in chosen.features if whole[feature.name].isna().all()]
    assert not empty
    for column in table.columns[4:]:
        tags = dict(column.tags)
        assert column.meaning
        assert tags["unit"]
        assert int(tags["warm_up_bars"]) <= int(tags["lookback_bars"])


def test_the_tested_configuration_declares_every_generator_and_family() -> None:
    families = {
        entry.generator for chosen in SETTINGS["tested"].label_sets.values() for entry in chosen.entries
    }
    assert families == set(FAMILIES)
    used = {
        "custom" if ":" in entry.generator else entry.generator
        for chosen in SETTINGS["tested"].feature_sets.values()
        for entry in chosen.entries
    }
    assert used == {*GENERATORS, "custom"}


MEAN = entry_of({"generator": "itbstats", "columns": ["close"], "functions": ["mean"], "windows": [30]})


def differences_of(chosen: FeatureSet) -> list[Difference]:
    rows = rows_for(chosen.grid)
    contract = Table(
        "features/mine",
        "one row per bar",
        (*TABLES["features/universe"].columns[:4], Column("close_mean_30", "DOUBLE", "mean")),
        ("symbol", "ts"),
        "daily",
        "replace",
        "end of the bar",
    )
    return feature_set_differences(chosen, contract, rows, moments(rows))


class Forgetful(FeatureSet):
    """A set that reads further back than it says."""

    @property
    def lookback_days(self) -> int:
        return 0


def test_the_harness_names_the_column_and_the_row_of_a_set_that_reads_further_back_than_it_says() -> None:
    grid = Grid(HOUR, BAR_COLUMNS)
    assert not differences_of(FeatureSet("mine", grid, (MEAN,)))
    found = differences_of(Forgetful("mine", grid, (MEAN,)))
    assert {item.column for item in found} == {"close_mean_30"}
    assert dict(found[0].key).keys() == {"symbol", "ts"}


def test_the_harness_names_the_column_and_the_row_of_a_generator_that_looks_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = itbstats.compute

    def ahead(entry: Any, panel: Panel) -> Mapping[str, np.ndarray]:
        return {name: np.roll(matrix, -1, axis=0) for name, matrix in honest(entry, panel).items()}

    monkeypatch.setattr(itbstats, "compute", ahead)
    found = differences_of(FeatureSet("mine", Grid(HOUR, BAR_COLUMNS), (MEAN,)))
    assert "close_mean_30" in {item.column for item in found}
    assert any("symbol=" in str(item) and "ts=" in str(item) for item in found)
