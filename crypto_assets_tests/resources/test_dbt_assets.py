"""The roll-ups as assets: what they read, what a change of the base makes due, weeks, and the lineage of columns.

Here: the real assets run by Dagster over a lake written by hand. Not here: what the models compute (``test_rollups``,
``test_raster``).
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from crypto_assets.assets import features, rollups
from crypto_assets.intervals import WEEK
from crypto_assets.resources import dbt_assets
from crypto_assets.resources.dbt import Built, manifest_path
from crypto_assets.resources.dbt_assets import DbtResource, Translator, lookback_days
from crypto_assets.resources.warehouse import Lake, Provenance
from crypto_assets.resources.warehouse.io_manager import WarehouseResource
from crypto_assets.resources.warehouse.lake import Piece
from crypto_assets.resources.warehouse.lineage import Lineage, reads_of
from crypto_assets.runs import RANGE_END, RANGE_START
from crypto_assets.settings import MaxAges, Settings, current_settings
from crypto_assets.tables import table_of
from crypto_assets_tests.resources.small_lakes import DAY, HOUR, Row, bar, hours, store
from crypto_assets_tests.resources.test_raster import book

#: The first Monday of the suite's partitions.
START = datetime(2024, 1, 1)
BASE, KLINES, WEEKS, RASTER = (
    table_of(name) for name in ("raw/klines", "rollups/klines", "rollups/klines_1w", "rollups/raster")
)
SYMBOLS = ("BTC/USDT", "ETH/USDT")


class Desk:
    """The roll-ups on a lake of their own."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.lake = Lake(folder)
        self.resources = {
            "settings": settings,
            "dbt": DbtResource(folder=str(folder)),
            "warehouse": WarehouseResource(folder=str(folder)),
        }
        specs = {
            "/".join(spec.key.path): spec
            for asset in (rollups.rollups, rollups.weekly_rollups)
            for spec in asset.specs
        }
        self.lineage = Lineage(
            self.lake,
            {name: reads_of(spec) for name, spec in specs.items()},
            {name: spec.code_version for name, spec in specs.items()},
        )

    def collect(self, day: datetime, rows: Sequence[Row], until: datetime | None = None) -> None:
        """Merge rows of one day as ingestion does, the day being over or its bars known until a moment."""
        key, end = day.date().isoformat(), day + DAY
        arrow = pa.Table.from_pylist(list(rows), schema=BASE.arrow_schema())
        piece = Piece(key, arrow, watermark=until or end)
        self.lake.merge(BASE, key, piece, Provenance(BASE.name, key), (day, end), until or end)

    def make(self, first: str, last: str, *, weekly: bool = False) -> dict[str, dg.AssetMaterialization]:
        """One run; what it told of each asset."""
        result = dg.materialize(
            [rollups.weekly_rollups if weekly else rollups.rollups],
            resources=self.resources,
            tags={RANGE_START: first, RANGE_END: last},
            instance=dg.DagsterInstance.ephemeral(),
        )
        assert result.success
        told = {}
        for event in result.get_asset_materialization_events():
            if event.asset_key is not None and "dagster/row_count" in event.materialization.metadata:
                told["/".join(event.asset_key.path)] = event.materialization
        return told

    def due(self, *names: str) -> dict[str, list[str]]:
        """Partitions that no longer follow."""
        return dict(self.lineage.again().changed(names or (KLINES.name, RASTER.name)))

    def files(self) -> dict[str, tuple[int, int]]:
        """Every file of the roll-ups, and what changes when it is written."""
        found = (self.lake.root / "rollups").rglob("*.parquet")
        return {
            str(path.relative_to(self.lake.root)): (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in found
        }


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "warehouse", current_settings())


def days(desk: Desk, count: int) -> list[str]:
    for number in range(count):
        day = START + number * DAY
        desk.collect(day, [row for name in SYMBOLS for row in hours(name, day, 24, 10.0 + number)])
    return [(START + number * DAY).date().isoformat() for number in range(count)]


def test_a_day_of_bars_reads_its_own_day_and_the_raster_as_far_as_ages_reach() -> None:
    specs = {"/".join(spec.key.path): spec for spec in rollups.rollups.specs}
    reads = {name: {read.upstream.name: read.first for read in reads_of(specs[name])} for name in specs}
    assert reads[KLINES.name] == {BASE.name: 0}
    assert reads[RASTER.name] == {
        BASE.name: 0,
        KLINES.name: -2,
        "raw/coins": 0,
        "raw/market_caps": -6,
        "raw/funding_rates": -1,
        "raw/open_interest": -1,
        "raw/order_book_summary": -1,
    }
    (weekly,) = rollups.weekly_rollups.specs
    assert [(read.upstream, read.first, read.last) for read in reads_of(weekly)] == [(KLINES, 0, 0)]


def test_the_cross_section_reads_its_own_day_of_every_table_it_compares() -> None:
    (spec,) = features.sql_features.specs
    assert {(read.upstream.name, read.first, read.last) for read in reads_of(spec)} == {
        ("features/universe", 0, 0),
        ("features/price_action", 0, 0),
        ("rollups/raster", 0, 0),
    }


def test_a_longer_age_reads_further_back() -> None:
    ages = MaxAges(
        market_cap=timedelta(days=7), funding_rate=timedelta(hours=25), order_book=timedelta(minutes=1)
    )
    found = {
        name: lookback_days(f"raw/{name}", ages)
        for name in ("market_caps", "funding_rates", "open_interest", "order_book_summary", "coins")
    }
    assert found == {
        "market_caps": 10,
        "funding_rates": 2,
        "open_interest": 1,
        "order_book_summary": 1,
        "coins": 0,
    }


def test_a_restated_or_late_base_row_makes_its_days_due_and_remade_and_no_other(desk: Desk) -> None:
    keys = days(desk, 6)
    desk.make(keys[0], keys[-1])
    assert desk.due() == {KLINES.name: [], RASTER.name: []}
    before = desk.files()

    # The third day is restated in one price of one bar.
    changed = START + 2 * DAY
    desk.collect(changed, [bar("BTC/USDT", changed + 7 * HOUR, 12.0, high=99.0)])
    assert desk.due() == {KLINES.name: [keys[2]], RASTER.name: [keys[2]]}
    desk.make(keys[2], keys[2])
    after = desk.files()
    moved = {path for path in after if after[path] != before.get(path)}
    assert moved == {f"rollups/{name}/date={keys[2]}/part-0.parquet" for name in ("klines", "raster")}
    # The raster of the two days after read bars of the third; they come out as they were, and nothing follows.
    assert desk.due() == {KLINES.name: [], RASTER.name: keys[3:5]}
    contents = {key: desk.lake.read(RASTER, [key]) for key in keys[3:5]}
    desk.make(keys[3], keys[4])
    assert desk.due() == {KLINES.name: [], RASTER.name: []}
    assert {key: desk.lake.read(RASTER, [key]) for key in keys[3:5]} == contents
    high = {
        row["interval"]: row["high"]
        for row in desk.lake.read(KLINES, [keys[2]]).to_pylist()
        if row["high"] > 50
    }
    assert high == dict.fromkeys(("1h", "4h", "1d"), 99.0)

    # A late bar of a market whose day was thought to be whole.
    desk.collect(START, [bar("SOL/USDT", START + 3 * HOUR)])
    assert desk.due()[KLINES.name] == keys[:1]
    # The same rows told again change nothing.
    desk.make(keys[0], keys[2])
    desk.collect(START, [bar("SOL/USDT", START + 3 * HOUR)])
    assert desk.due()[KLINES.name] == []


def test_what_is_stored_while_a_run_reads_makes_its_day_due_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    (key,) = days(desk, 1)
    honest = dbt_assets.built

    @contextmanager
    def overtaken(*given: Any) -> Generator[Built]:
        with honest(*given) as made:
            desk.collect(START, [bar("BTC/USDT", START + 3 * HOUR, high=99.0)])
            yield made

    with monkeypatch.context() as patch:
        patch.setattr(dbt_assets, "built", overtaken)
        desk.make(key, key)
    assert desk.due() == {KLINES.name: [key], RASTER.name: [key]}
    desk.make(key, key)
    assert desk.due() == {KLINES.name: [], RASTER.name: []}
    assert max(desk.lake.read(KLINES, [key])["high"].to_pylist()) == 99.0


def test_what_is_seen_after_the_bars_of_the_running_day_makes_nothing_due(desk: Desk) -> None:
    (yesterday,) = days(desk, 1)
    day, now = START + DAY, START + DAY + 10 * HOUR
    desk.collect(day, [row for name in SYMBOLS for row in hours(name, day, 10)], until=now)
    today = day.date().isoformat()
    desk.make(yesterday, today)
    assert desk.due() == {KLINES.name: [], RASTER.name: []}
    for minutes, due in ((5, []), (10, []), (-20, [today])):
        seen = now + timedelta(minutes=minutes)
        store(desk.lake, "raw/order_book_summary", [book(seen, 7.0)])
        assert desk.due() == {KLINES.name: [], RASTER.name: due}, minutes
    desk.make(today, today)
    assert desk.due() == {KLINES.name: [], RASTER.name: []}
    # The next bar: what was seen before it ended counts now.
    desk.collect(day, [bar(name, now) for name in SYMBOLS], until=now + HOUR)
    assert desk.due() == {KLINES.name: [today], RASTER.name: [today]}


def test_a_week_that_began_before_the_data_has_its_bar_when_it_is_over(desk: Desk) -> None:
    for number in range(2, 7):
        day = START + number * DAY
        desk.collect(day, [row for name in SYMBOLS for row in hours(name, day, 24)])
        key = day.date().isoformat()
        assert desk.due(KLINES.name, WEEKS.name) == {KLINES.name: [key], WEEKS.name: []}
        desk.make(key, key)
        assert desk.due(WEEKS.name) == {WEEKS.name: ["2024-01-01"] if number == 6 else []}


def test_the_sql_of_a_model_and_of_its_macros_are_its_version() -> None:
    manifest = json.loads(manifest_path().read_text())
    translator = Translator(current_settings())

    def versions() -> dict[str, str | None]:
        models = [name for name, node in manifest["nodes"].items() if node["resource_type"] == "model"]
        return {
            name.split(".")[-1]: translator.get_asset_spec(manifest, name, None).code_version
            for name in models
        }

    before = versions()
    manifest["macros"]["macro.crypto_assets.bar_of"]["macro_sql"] += " "
    changed = {name for name, version in versions().items() if version != before[name]}
    # The raster does not call it; what it reads is what tells it of a change.
    assert changed == {"klines", "klines_1w"}


def test_weeks_are_made_where_they_are_asked_for_and_follow_their_days(tmp_path: Path) -> None:
    asked = current_settings()
    assert WEEK in asked.rollup_intervals
    silent = Desk(
        tmp_path / "warehouse", asked.model_copy(update={"rollup_intervals": tuple(asked.daily_intervals)})
    )
    keys = days(silent, 9)
    silent.make(keys[0], keys[-1])
    told = silent.make("2024-01-01", "2024-01-08", weekly=True)
    assert told[WEEKS.name].metadata["dagster/row_count"].value == 0
    assert silent.lake.partitions(WEEKS) == ["2024-01-01", "2024-01-08"]

    weekly = Desk(silent.lake.folder, asked)
    weekly.make("2024-01-01", "2024-01-08", weekly=True)
    rows = weekly.lake.read(WEEKS).to_pylist()
    assert [(row["symbol"], row["ts"], row["n_base_bars"], row["complete"]) for row in rows] == [
        (name, START, 168, True) for name in SYMBOLS
    ]
    assert weekly.due(WEEKS.name) == {WEEKS.name: []}
    weekly.collect(START + DAY, [bar("BTC/USDT", START + DAY, 10.0, high=99.0)])
    weekly.make(keys[1], keys[1])
    assert weekly.due(WEEKS.name) == {WEEKS.name: ["2024-01-01"]}
    weekly.make("2024-01-01", "2024-01-01", weekly=True)
    assert max(row["high"] for row in weekly.lake.read(WEEKS).to_pylist()) == 99.0
    assert weekly.due(WEEKS.name) == {WEEKS.name: []}


def test_a_derived_column_knows_the_columns_it_is_made_of(desk: Desk) -> None:
    (key,) = days(desk, 1)
    told = desk.make(key, key)
    lineage = {name: one.metadata["dagster/column_lineage"] for name, one in told.items()}

    def sources(table: str, column: str) -> list[tuple[str, str]]:
        value = lineage[table]
        assert isinstance(value, dg.TableColumnLineageMetadataValue)
        deps = value.column_lineage.deps_by_column[column]
        return [("/".join(dep.asset_key.path), dep.column_name) for dep in deps]

    assert sources(KLINES.name, "taker_buy_quote") == [(BASE.name, "taker_buy_quote")]
    assert sources(KLINES.name, "close") == [(BASE.name, "close"), (BASE.name, "ts")]
    assert sources(RASTER.name, "futures_turnover_quote") == [
        (KLINES.name, "close"),
        (KLINES.name, "volume_base"),
        (KLINES.name, "volume_quote"),
    ]
    assert sources(RASTER.name, "mark_price") == [(BASE.name, "close"), (BASE.name, "known_at")]
    assert ("raw/order_book_summary", "spread_bps") in sources(RASTER.name, "book_spread_bps")
    assert sources(RASTER.name, "coin_id") == [("raw/coins", "coin_id")]
    value = lineage[RASTER.name]
    assert isinstance(value, dg.TableColumnLineageMetadataValue)
    assert list(value.column_lineage.deps_by_column) == RASTER.column_names
