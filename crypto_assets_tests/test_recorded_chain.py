"""The LUNA weeks of 2022 from recorded klines to holdings: the command line's demo on recordings, in its own process.

A collapse, a ticker that another coin takes over, coins that die, caps that nobody recorded: all of it is in the data,
and these tests look whether the general rules met it well. Nothing in the platform knows of these coins but the
``listings`` of the shipped ``platform.yaml``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
import yaml

from crypto_assets.definitions import defs
from crypto_assets.local import ROOT
from crypto_assets.resources.warehouse import Lake
from crypto_assets.simulation.recorded import RecordedWorld
from crypto_assets.simulation.recordings import load_recordings
from crypto_assets.simulation.server import MarketServer
from crypto_assets.tables import TABLES, table_of
from crypto_assets_tests.recorded import RECORDED, needs_recorded

pytestmark = [needs_recorded, pytest.mark.slow]

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
START = datetime(2022, 3, 28)
NOW = datetime(2022, 7, 4, 21)
SYMBOLS = ("ADA", "BNB", "BTC", "BUSD", "DOGE", "ETH", "LTC", "LUNA", "SRM", "UST")
PEGGED = ("BUSD/USDT", "UST/USDT")
CAP_UNKNOWN = (*PEGGED, "SRM/USDT")
MIN_HISTORY = 30 * DAY
#: Start of the last bar of the first LUNA and of UST, and of the first bar of the second LUNA, as recorded.
LAST_BAR = datetime(2022, 5, 13)
RELISTED = datetime(2022, 5, 31, 6)
#: Three days after the last bars, when nothing but the tail of the dead listings is left of them.
TAIL = "2022-05-16"


@dataclass(frozen=True)
class Demo:
    """A warehouse that the demo has filled, and the variables under which it did."""

    folder: Path
    environment: dict[str, str]

    def rows(self, name: str, symbol: str | None = None) -> pd.DataFrame:
        """Rows of a table, in the order of its key."""
        rows = Lake(self.folder).read(table_of(name)).to_pandas()
        return rows if symbol is None else rows[rows["symbol"] == symbol].reset_index(drop=True)

    def contents(self) -> dict[tuple[str, str], str]:
        """Content hash of every partition that can be made again."""
        return {
            (table.name, partition): found.content_hash
            for table, partition, _, found in Lake(self.folder).manifest()
            if table.clock != "none"
        }


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    folder = tmp_path_factory.mktemp("luna")
    config = folder / "platform.yaml"
    config.write_text(yaml.safe_dump(platform()))
    klines = [f"spot_1h_2021_2023/dev/{base}USDT-1h.csv.gz" for base in SYMBOLS]
    chosen = shipped()["simulation"]["recorded"]
    recordings = load_recordings(RECORDED, klines, chosen["coingecko"], coins_list=chosen["coins_list"])
    with MarketServer(RecordedWorld(recordings), NOW) as market:
        environment = {
            **os.environ,
            "CRYPTO_ASSETS_CONFIG": str(config),
            "CRYPTO_ASSETS_EXCHANGE_URL": market.url,
            "CRYPTO_ASSETS_COINGECKO_URL": market.coingecko_url,
            "DAGSTER_HOME": str(folder / "warehouse" / ".dagster"),
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        run("-m", "crypto_assets.cli", "demo", environment=environment)
        yield Demo(folder / "warehouse", environment)


def shipped() -> dict[str, Any]:
    """The recorded world of the shipped settings."""
    return yaml.safe_load((ROOT / "platform.yaml").read_text())["worlds"]["recorded"]


def platform() -> dict[str, Any]:
    """The suite's short windows with the shipped recorded world, cut to the LUNA weeks and fewer symbols."""
    suite = yaml.safe_load((ROOT / "crypto_assets_tests" / "graph" / "platform.yaml").read_text())
    pegged = [symbol.split("/")[0] for symbol in PEGGED]
    return suite | {
        "world": "recorded",
        "start": START.date(),
        "universe": suite["universe"]
        | {"symbols": list(SYMBOLS), "pegged": pegged, "min_history_days": MIN_HISTORY.days},
        "listings": shipped()["listings"],
        "simulation": suite["simulation"]
        | {"now": NOW, "recorded": shipped()["simulation"]["recorded"] | {"folder": str(RECORDED)}},
    }


def run(*command: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_every_table_is_stored_and_only_the_market_itself_was_found_odd(
    demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = {table.name for table, *_ in Lake(demo.folder).manifest()}
    made = {"/".join(key.path) for key in defs.resolve_asset_graph().materializable_asset_keys}
    assert made <= stored
    monkeypatch.setenv("DAGSTER_HOME", demo.environment["DAGSTER_HOME"])
    checks = sorted(defs.resolve_asset_graph().asset_check_keys)
    with dg.DagsterInstance.get() as instance:
        latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(checks)
    assert checks
    assert set(latest) == set(checks)
    events = {key.to_user_string(): record.event for key, record in latest.items()}
    found = {key: event.asset_check_evaluation for key, event in events.items() if event}
    assert len(found) == len(checks) and all(found.values())
    failed = {key: check.severity.value for key, check in found.items() if check and not check.passed}
    assert failed == {"quality/anomalies:sound": "WARN", "quality/reconciliation:agreement": "WARN"}
    # What they found is what happened: hours of moves without a like, and days on which the coin's recorded price
    # was not the market's, most of them in the week of the collapse.
    odd = demo.rows("quality/anomalies")
    assert set(odd["kind"]) == {"jump"}
    assert set(odd["symbol"]) == {"UST/USDT", "LUNA/USDT", "DOGE/USDT"}
    sources = demo.rows("quality/reconciliation")
    assert set(sources.loc[~sources["agrees"].astype(bool), "symbol"]) == {
        "LUNA/USDT",
        "ADA/USDT",
        "DOGE/USDT",
    }


def test_a_label_that_meets_the_death_is_its_loss_and_never_missing(demo: Demo) -> None:
    labels = demo.rows("labels/forward_returns", "LUNA/USDT").set_index("ts")
    bars = demo.rows("rollups/raster", "LUNA/USDT").set_index("ts")
    met = labels[labels["outcome"] == "death"]
    # The fill is one bar after the row's own; an exit 24 hours later is the first that would come after the last bar.
    expected = pd.date_range(LAST_BAR - 24 * HOUR, LAST_BAR - HOUR, freq="h")
    assert met.index.equals(expected.as_unit("us"))
    last_close = bars.loc[LAST_BAR]["close"]
    opens = bars.loc[met["fill_ts"], "open"].to_numpy()
    np.testing.assert_allclose(met["forward_return_frac"], last_close / opens - 1, rtol=1e-12)
    assert (met["forward_return_frac"] < -0.8).all()
    # Decided after a day without bars, not earlier: until then it might have traded again.
    assert (met["known_at"] == LAST_BAR + HOUR + DAY).all()


def test_the_holdings_do_not_foresee_the_death(demo: Demo) -> None:
    candidates = demo.rows("holdings/candidates", "LUNA/USDT").set_index("decision_at")
    holdings = demo.rows("holdings/optimal_holdings", "LUNA/USDT").set_index("decision_at")
    last_seen = LAST_BAR + HOUR
    assert candidates.loc[last_seen]["eligible"]
    calm = candidates.loc[datetime(2022, 5, 2, 1)]["sigma_frac"]
    assert candidates.loc[last_seen]["sigma_frac"] > 10 * calm
    assert holdings.loc[last_seen]["weight_frac"] > 0
    after = candidates.loc[last_seen + DAY : RELISTED]
    assert set(after["reason"]) == {"stale"}
    sold = holdings.loc[last_seen + DAY]
    assert sold["weight_before_frac"] > 0
    assert sold["weight_frac"] == 0


def test_the_ticker_changes_hands_and_nothing_of_the_first_coin_reaches_the_second(demo: Demo) -> None:
    raster = demo.rows("rollups/raster", "LUNA/USDT").set_index("ts")
    first = raster[raster["listing_id"] == "LUNA/USDT#1"]
    second = raster[raster["listing_id"] == "LUNA/USDT#2"]
    assert len(first) + len(second) == len(raster)
    # Without bars a listing stays for two days, and then there is nothing until the next one.
    assert first.index[-1] == LAST_BAR + 2 * DAY - HOUR
    assert second.index[0] == RELISTED
    assert set(first["coin_id"]) == {"terra-luna"}
    assert set(second["coin_id"]) == {"terra-luna-2"}
    returns = demo.rows("features/price_action", "LUNA/USDT").set_index("ts")
    assert returns.loc[RELISTED : RELISTED + DAY - HOUR, "return_24h_log"].isna().all()
    assert returns.loc[RELISTED + DAY :, "return_24h_log"].notna().all()


def test_eligibility_begins_again_with_the_new_listing(demo: Demo) -> None:
    universe = demo.rows("features/universe", "LUNA/USDT").set_index("ts")
    new = universe[universe["listing_id"] == "LUNA/USDT#2"]
    young, grown = new.loc[: RELISTED + MIN_HISTORY - HOUR], new.loc[RELISTED + MIN_HISTORY :]
    assert set(young["reason"]) == {"young"}
    assert not young["eligible"].any()
    assert grown["eligible"].all()
    holdings = demo.rows("holdings/optimal_holdings", "LUNA/USDT")
    held = holdings[(holdings["weight_frac"] > 0) & (holdings["decision_at"] > LAST_BAR + DAY)]
    assert set(held["listing_id"]) == {"LUNA/USDT#2"}
    assert held["decision_at"].min() >= RELISTED + MIN_HISTORY


def test_an_unknown_cap_stays_unknown_and_leaves_the_coin_investable(demo: Demo) -> None:
    raster, candidates = demo.rows("rollups/raster"), demo.rows("holdings/candidates")
    unknown = raster[raster["symbol"].isin(CAP_UNKNOWN)]
    assert set(unknown["symbol"]) == set(CAP_UNKNOWN)
    assert unknown["market_cap_usd"].isna().all()
    known = raster[~raster["symbol"].isin(CAP_UNKNOWN) & (raster["ts"] >= START + 2 * DAY)]
    assert known.groupby("symbol")["market_cap_usd"].count().gt(0).all()
    serum = candidates[(candidates["symbol"] == "SRM/USDT") & candidates["eligible"]]
    assert len(serum) == (NOW - START - MIN_HISTORY).days + 1
    assert (serum["w_mkt"] == 0).all()
    assert (serum["sigma_frac"] > 0).all()


def test_weights_sum_to_one_and_pegged_coins_are_never_held(demo: Demo) -> None:
    holdings = demo.rows("holdings/optimal_holdings")
    sums = holdings.groupby("decision_at")["weight_frac"].sum()
    assert len(sums) == (NOW - START).days + 1
    np.testing.assert_allclose(sums, 1, rtol=0, atol=1e-12)
    coins = holdings[holdings["symbol"] != "USDT"]
    assert coins["weight_frac"].between(0, 0.25).all()
    assert not set(PEGGED) & set(coins["symbol"])
    candidates = demo.rows("holdings/candidates")
    assert set(candidates[candidates["symbol"].isin(PEGGED)]["reason"]) == {"excluded"}
    assert {"ok"} <= set(holdings["status"])


def test_a_day_alone_is_the_day_inside_the_range(demo: Demo) -> None:
    before = demo.contents()
    daily = [f'key:"{name}"' for name, table in TABLES.items() if table.clock == "daily"]
    command = ("asset", "materialize", "-m", "crypto_assets.definitions", "--partition", TAIL)
    run("-m", "dagster", *command, "--select", " or ".join(daily), environment=demo.environment)
    after = demo.contents()
    assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} == set()
