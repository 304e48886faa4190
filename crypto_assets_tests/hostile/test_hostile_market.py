"""Whatever the market does, and whenever the process dies, the tables end equal to the market's truth.

No row lost, doubled or wrong; every defect of the source in the quality tables; never a request after a ban or inside a
silence that the source ordered.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pytest

from crypto_assets.intervals import from_ms, interval_delta, to_ms
from crypto_assets.resources.sources import SourceError
from crypto_assets.resources.warehouse.inventory import gaps_table
from crypto_assets.resources.warehouse.lake import Lake
from crypto_assets.simulation.bars import (
    CLOSE,
    HIGH,
    LOW,
    OPEN,
    TAKER_BASE,
    TAKER_QUOTE,
    VOLUME_BASE,
    VOLUME_QUOTE,
)
from crypto_assets.simulation.faults import status
from crypto_assets.simulation.hostile import FAULT_RATES, HostilePlan
from crypto_assets.simulation.hostile_world import DefectKind
from crypto_assets.simulation.server import Clock, FakeSeconds, MarketServer
from crypto_assets.simulation.synthetic import SyntheticWorld
from crypto_assets.tables import TABLES
from crypto_assets_tests.hostile.loader import Order, load

DAY = timedelta(days=1)
START = datetime(2024, 1, 29)
#: Base interval, days of the world: pages, days of a file and a whole month of files.
SPANS = (("1m", 2), ("15m", 6), ("1h", 33))
ROUTES = ("rest", "archive", "both")
#: A ban without an end is no trouble on a clock that moves when somebody sleeps. A load takes some dozens of requests, of
#: which some have to meet a ban.
RATES = {**FAULT_RATES, status(418, 3): 0.02, status(418): 0.02}
#: Twice as many candles are restated as spoiled in each other way: a revision takes two looks, one before and one after.
KINDS: tuple[DefectKind, ...] = (*get_args(DefectKind), "restated")
PRICES = {"open": OPEN, "high": HIGH, "low": LOW, "close": CLOSE}
AMOUNTS = {
    "volume_base": VOLUME_BASE,
    "volume_quote": VOLUME_QUOTE,
    "taker_buy_base": TAKER_BASE,
    "taker_buy_quote": TAKER_QUOTE,
}
KEY = ["symbol", "kind", "ts"]
VALUES = [*PRICES, *AMOUNTS, "n_trades", "close_time"]
#: Machine seconds that a thread may need on a busy machine to read the head of the answer that orders a silence.
HEARING_S = 0.25
#: What stands where a source does not say: no price, amount or count is negative.
NOT_SAID = -1


@dataclass(frozen=True)
class Scenario:
    """What is collected in which way, and when somebody loads it (``load``), stops that (``stop``) or kills it (``kill``)."""

    plan: HostilePlan
    order: Order
    runs: tuple[tuple[datetime, str], ...]
    end: datetime


def scenario_of(seed: int, folder: Path) -> Scenario:
    chance = random.Random(seed)
    # Any nine seeds in a row meet every pair of them.
    route = ROUTES[seed % 3]
    interval, n_days = SPANS[(seed + seed // 3) % 3]
    end = START + n_days * DAY
    world = SyntheticWorld(seed % 5, to_ms(START), to_ms(end), interval, story_days=max(3, n_days))
    spot = chance.choice([m.symbol for m in world.all_markets()])
    # The contract that dies leaves the exchange, which then knows no such symbol.
    contracts = [m.symbol for m in world.all_contracts() if m.market_type == "perpetual" and m.base != "SRM"]
    chosen = [spot, chance.choice(contracts)]
    plan = HostilePlan(
        seed,
        world,
        interval=interval,
        symbols=chosen,
        fault_rates=RATES,
        kinds=KINDS,
        defect_frac=0.2,
    )
    kinds = {
        "spot": ("trade",),
        "perpetual": tuple(chance.sample(["trade", "mark", "premium"], chance.randint(1, 2))),
    }
    span = int((end - START) / timedelta(minutes=1))
    runs = [
        (
            START + timedelta(minutes=chance.randrange(60, span)),
            chance.choice(("load", "stop", "kill", "kill")),
        )
        for _ in range(chance.randint(1, 3))
    ]
    # A candle becomes another one only for those who looked before that.
    changed = [
        (defect.end_ms, defect.published_ms)
        for defect in plan.defects
        if defect.published_ms is not None
        and defect.published_ms < to_ms(end)
        and defect.series in kinds["spot" if defect.symbol == spot else "perpetual"]
    ]
    runs += [(from_ms(sum(chance.choice(changed)) // 2), "load") for _ in range(2)]
    order = Order(
        folder=str(folder),
        url="",
        markets=tuple((symbol, "", "") for symbol in sorted(chosen)),
        kinds=kinds,
        interval=interval,
        window=(START, end),
        route=route,
        concurrency=chance.randint(1, 3),
        overlap_bars=chance.choice((0, 60)),
    )
    return Scenario(plan, order, tuple(sorted(runs)), end)


class Victims:
    """A process that ingests for us and may be killed."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "crypto_assets_tests.hostile.victim"]
        root = Path(__file__).resolve().parents[2]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
        )

    def live(self, order: Order, number: int, *, in_place: bool = False) -> str:
        """Carry out an order; dies before the file operation with this number, if there are so many.

        ``in_place``: counted is only what puts a whole file of the table, or of the ledger of it, in its place.
        """
        orders, answers = self._process.stdin, self._process.stdout
        assert orders is not None
        assert answers is not None
        orders.write(json.dumps([asdict(order), number, in_place], default=str) + "\n")
        orders.flush()
        answer = answers.readline().strip()
        assert answer in ("killed", "done", "refused"), answer
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


@pytest.fixture(scope="module")
def victims() -> Iterator[Victims]:
    process = Victims()
    yield process
    process.close()


def stored_rows(lake: Lake) -> pd.DataFrame:
    """What the table holds, sorted by key; amounts in units of 1e-8."""
    rows = lake.read(TABLES["raw/klines"])
    frame = rows.select([*KEY, *PRICES, "close_time"]).to_pandas()
    for name in AMOUNTS:
        column = rows[name].combine_chunks()
        # Little-endian 128-bit integers: the low half is all of an amount below 2**63 units.
        units = np.frombuffer(column.buffers()[1], np.int64)[2 * column.offset :: 2][: len(column)]
        frame[name] = np.where(column.is_valid().to_numpy(zero_copy_only=False), units, NOT_SAID)
    frame["n_trades"] = pc.fill_null(rows["n_trades"], NOT_SAID).to_numpy()
    assert not frame.duplicated(KEY).any()
    return frame[[*KEY, *VALUES]]


def true_rows(plan: HostilePlan, order: Order, now: datetime) -> pd.DataFrame:
    """What the market says in the end, in the same form."""
    start, end = (to_ms(moment) for moment in order.window)
    frames = []
    for symbol, kind in series_of(order):
        bars = plan.truth(symbol, kind, order.interval, start, end, to_ms(now))
        said = kind == "trade"
        columns = {
            "symbol": symbol,
            "kind": kind,
            "ts": bars.open_ms.astype("datetime64[ms]").astype("datetime64[us]"),
            **{name: bars.values[row].astype(np.int64) / 1e8 for name, row in PRICES.items()},
            **{
                name: bars.values[row].astype(np.int64) if said else NOT_SAID for name, row in AMOUNTS.items()
            },
            "n_trades": bars.n_trades if said else NOT_SAID,
            "close_time": bars.close_ms.astype("datetime64[ms]").astype("datetime64[us]"),
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames).sort_values(KEY, ignore_index=True)


def series_of(order: Order) -> list[tuple[str, Any]]:
    return [(symbol, kind) for symbol, _, market in order.markets for kind in order.kinds[market]]


def named_at(order: Order, plan: HostilePlan, now: datetime) -> Order:
    """The order for the markets that the exchange names at a moment."""
    world, symbols = plan.world, {symbol for symbol, _, _ in order.markets}
    known = [*world.markets(to_ms(now)), *world.contracts(to_ms(now))]
    markets = tuple((m.symbol, m.exchange_symbol, m.market_type) for m in known if m.symbol in symbols)
    return replace(order, markets=markets)


class History:
    """What the table showed after each run: every change of a value must stand in the ledger."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self.rows = stored_rows(lake)
        self.changes: set[tuple[str, ...]] = set()

    def look(self) -> None:
        now = stored_rows(self.lake)
        both = self.rows.merge(now, "left", KEY, suffixes=("_old", "_new"), indicator=True)
        assert (both["_merge"] == "both").all()
        for name in VALUES:
            changed = both[both[f"{name}_old"] != both[f"{name}_new"]]
            for row in changed.to_dict("records"):
                key = (row["symbol"], row["kind"], str(row["ts"]))
                self.changes.add((*key, name, *(_text(name, row[f"{name}_{end}"]) for end in ("old", "new"))))
        self.rows = now

    def recorded(self) -> set[tuple[str, ...]]:
        found = set()
        for row in self.lake.ledger.revisions().to_pylist():
            key = json.loads(row["row_key"])
            values = row["column_name"], row["old_value"], row["new_value"]
            found.add((key["symbol"], key["kind"], key["ts"], *values))
        return found


def _text(name: str, value: Any) -> str:
    return f"{Decimal(value).scaleb(-8):.8f}" if name in AMOUNTS else str(value)


def missing_of(lake: Lake, order: Order) -> dict[tuple[str, str], set[datetime]]:
    step = interval_delta(order.interval)
    missing: dict[tuple[str, str], set[datetime]] = {series: set() for series in series_of(order)}
    for row in gaps_table(lake).to_pylist():
        assert row["origin"] == "source", row
        n = (row["gap_end"] - row["ts"]) // step
        assert n == row["n_missing"]
        missing[row["symbol"], row["kind"]] |= {row["ts"] + at * step for at in range(n)}
    return missing


def anomalies_of(lake: Lake, kind: str) -> set[tuple[str, str, datetime]]:
    rows = lake.ledger.anomalies().to_pylist()
    return {(row["symbol"], row["series_kind"], row["ts"]) for row in rows if row["kind"] == kind}


SEEDS = [
    *(pytest.param(seed) for seed in range(6)),
    *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 200)),
]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_tables_end_equal_to_the_truth(seed: int, tmp_path: Path, victims: Victims) -> None:
    scenario = scenario_of(seed, tmp_path)
    plan, chance, seconds = scenario.plan, random.Random(-seed - 1), FakeSeconds()
    history = History(Lake(tmp_path))
    clock = Clock(START)
    with MarketServer(plan.world, clock, hostile=plan, real_seconds=seconds) as server:
        for now, what in (*scenario.runs, (scenario.end, "load")):
            clock.set(now)
            order = replace(named_at(scenario.order, plan, now), url=server.url)
            if what == "kill":
                in_place = chance.random() < 0.5
                number = chance.randint(1, 8 if in_place else 150)
                if victims.live(order, number, in_place=in_place) == "killed":
                    server.log.forgive()
            else:
                stop_after = chance.randrange(4) if what == "stop" else None
                attempt(replace(order, stop_after=stop_after), seconds)
            history.look()
        # The sensors ask again for what is missing, and everything is read again for what was restated.
        final = replace(order, route="rest" if order.route == "archive" else order.route)
        for again in (final, replace(final, reread=True)):
            for _ in range(5 if again.reread else 0):
                # Before the second file: between the revisions of a day and its new rows, or between two days.
                answer = victims.live(again, 2, in_place=True)
                if answer == "done":
                    break
                if answer == "killed":
                    server.log.forgive()
                seconds.sleep(60.0)
                history.look()
            assert any(attempt(again, seconds) for _ in range(60))
            history.look()
        assert server.violations(order.concurrency - 1, HEARING_S) == []
    lake, end = Lake(tmp_path), scenario.end
    pd.testing.assert_frame_equal(stored_rows(lake), true_rows(plan, order, end), check_exact=True)
    assert history.changes <= history.recorded()
    assert missing_of(lake, order) == {
        (symbol, kind): {
            from_ms(int(at))
            for at in plan.missing(symbol, kind, order.interval, *map(to_ms, order.window), to_ms(end))
        }
        for symbol, kind in series_of(order)
    }
    collected = set(series_of(order))
    odd = [d for d in plan.defects if (d.symbol, d.series) in collected]
    assert anomalies_of(lake, "off_grid") == {
        (d.symbol, d.series, from_ms(d.ts_ms)) for d in odd if d.kind == "off_grid"
    }
    doubled = {(d.symbol, d.series, from_ms(d.ts_ms)) for d in odd if "duplicate" in d.kind}
    served = {(d.symbol, d.series, from_ms(d.ts_ms)) for d in plan.served}
    assert served <= anomalies_of(lake, "duplicate") <= doubled


def attempt(order: Order, seconds: FakeSeconds) -> bool:
    """Carry out an order as schedulers would: one that knows nothing of a failure asks at once, the other one later."""
    silence_s = 0.0
    for _ in range(2):
        try:
            load(order, seconds, seconds.sleep)
        except SourceError as error:
            silence_s = error.retry_after_s or 60.0
        except KeyboardInterrupt:
            return False
        else:
            return True
    seconds.sleep(silence_s)
    return False
