"""Odd candles and disagreeing sources, found in what is stored."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from crypto_assets.resources.warehouse.lake import Lake, Provenance
from crypto_assets.resources.warehouse.oddities import OddityLimits, candle_oddities, reconciliation_table
from crypto_assets.tables import TABLES

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
START = datetime(2024, 1, 1)
LIMITS = OddityLimits(silence=3 * HOUR, frozen=4 * HOUR, jump_frac=0.1, jump_medians=10.0)


def candles(symbol: str, closes: list[float | None], **given: Any) -> pd.DataFrame:
    """Hourly candles from the start on; None is a missing one. Each opens at its close unless told otherwise."""
    rows = []
    for at, close in enumerate(closes):
        if close is None:
            continue
        ts = START + at * HOUR
        row: dict[str, Any] = {"open": close, "high": close * 1.001, "low": close * 0.999, "close": close}
        row |= {
            "volume_base": 1.0,
            "venue": "binance",
            "symbol": symbol,
            "kind": "trade",
            "interval": "1h",
            "ts": ts,
        }
        rows.append({**row, "known_at": ts + HOUR, "close_time": ts + HOUR, **given})
    return pd.DataFrame(rows)


def lake_with(folder: Path, *frames: pd.DataFrame) -> Lake:
    lake, table = Lake(folder), TABLES["raw/klines"]
    rows = pd.concat(frames, ignore_index=True).reindex(columns=table.column_names)
    for column in ("volume_quote", "n_trades", "taker_buy_base", "taker_buy_quote"):
        rows[column] = pd.Series([None] * len(rows), dtype=object)
    for day, part in rows.groupby(rows["ts"].dt.floor("D")):
        start = pd.Timestamp(str(day)).to_pydatetime()
        key = start.date().isoformat()
        lake.replace(table, key, part, Provenance(table.name, key), (start, start + DAY))
    return lake


def oddities(lake: Lake) -> list[tuple[str, datetime, dict[str, Any]]]:
    rows = candle_oddities(lake, "1h", LIMITS).to_pylist()
    return [(row["kind"], row["ts"], json.loads(row["detail"])) for row in rows]


def walk(n: int, start: float = 100.0) -> list[float | None]:
    return [start * (1 + 0.001 * (-1) ** at) for at in range(n)]


def test_a_run_without_volume_is_told_once(tmp_path: Path) -> None:
    frame = candles("A/USDT", walk(48))
    frame.loc[20:24, "volume_base"] = 0.0
    frame.loc[40:41, "volume_base"] = 0.0
    assert oddities(lake_with(tmp_path, frame)) == [
        ("zero_volume", START + 20 * HOUR, {"n_candles": 5, "price": frame["close"][20]})
    ]


def test_a_gap_ends_a_run(tmp_path: Path) -> None:
    closes = walk(24)
    closes[11] = None
    frame = candles("A/USDT", closes, volume_base=0.0)
    found = oddities(lake_with(tmp_path, frame))
    assert [(kind, ts, told["n_candles"]) for kind, ts, told in found] == [
        ("zero_volume", START, 11),
        ("zero_volume", START + 12 * HOUR, 12),
    ]


def test_a_price_that_trades_without_moving_is_frozen(tmp_path: Path) -> None:
    frame = candles("A/USDT", [*walk(10), *[50.0] * 6, *walk(8)])
    frame.loc[10:15, ["high", "low"]] = 50.0
    [(kind, ts, told)] = [row for row in oddities(lake_with(tmp_path, frame)) if row[0] == "frozen_price"]
    # The first candle moved to the price, the five after it did not move.
    assert (ts, told["n_candles"]) == (START + 11 * HOUR, 5)


def test_a_jump_is_measured_against_the_day_before(tmp_path: Path) -> None:
    closes = walk(72)
    closes[50:] = walk(22, 130.0)
    wild = [100.0 * (1.2 if at % 2 else 1.0) for at in range(72)]
    lake = lake_with(tmp_path, candles("A/USDT", closes), candles("WILD/USDT", list(wild)))
    found = candle_oddities(lake, "1h", LIMITS).to_pylist()
    assert [(row["kind"], row["symbol"], row["ts"]) for row in found] == [
        ("jump", "A/USDT", START + 50 * HOUR)
    ]


def test_a_move_across_a_gap_is_no_jump(tmp_path: Path) -> None:
    closes = walk(72)
    closes[49], closes[50:] = None, walk(22, 130.0)
    assert oddities(lake_with(tmp_path, candles("A/USDT", closes))) == []


def test_series_do_not_mix_and_other_kinds_are_left_alone(tmp_path: Path) -> None:
    quiet = candles("A/USDT", walk(2), volume_base=0.0)
    mark = candles("A/USDT:USDT", walk(24), volume_base=0.0, kind="mark")
    other = candles("B/USDT", walk(24))
    assert oddities(lake_with(tmp_path, quiet, mark, other)) == []


def test_nothing_stored_is_nothing_odd(tmp_path: Path) -> None:
    assert candle_oddities(Lake(tmp_path), "1h").num_rows == 0
    assert reconciliation_table(Lake(tmp_path), "1h", []).num_rows == 0


def caps(lake: Lake, coin_id: str, prices: dict[datetime, float | None]) -> None:
    table = TABLES["raw/market_caps"]
    for day, price in prices.items():
        key = day.date().isoformat()
        row = {
            "coin_id": coin_id,
            "ts": day,
            "known_at": day + DAY + timedelta(minutes=45),
            "price_usd": price,
        }
        frame = pd.DataFrame([row]).reindex(columns=table.column_names).astype({"market_cap_usd": float})
        lake.replace(
            table,
            key,
            frame.astype({"volume_24h_usd": float, "price_usd": float}),
            Provenance(table.name, key),
        )


LIFE = {"symbol": "A/USDT", "coin_id": "a-coin", "valid_from": None, "valid_to": None}


def test_a_contract_is_compared_bar_by_bar(tmp_path: Path) -> None:
    spot = candles("A/USDT", [100.0] * 24)
    contract = candles("A/USDT:USDT", [100.1] * 23 + [110.0])
    mark = candles("A/USDT:USDT", [103.0] * 24, kind="mark")
    rows = reconciliation_table(lake_with(tmp_path, spot, contract, mark), "1h", []).to_pylist()
    futures, marked = rows
    assert (futures["pair"], futures["other"], futures["n_compared"]) == ("spot_futures", "A/USDT:USDT", 24)
    assert futures["median_difference_bps"] == pytest.approx(10.0)
    assert futures["largest_difference_bps"] == pytest.approx(1000.0)
    assert futures["agrees"]
    assert (marked["pair"], marked["agrees"]) == ("spot_mark", False)


def test_coingecko_is_compared_with_the_last_bar_of_a_whole_day(tmp_path: Path) -> None:
    lake = lake_with(tmp_path, candles("A/USDT", [100.0] * 23 + [104.0] + [100.0] * 20))
    caps(lake, "a-coin", {START: 104.52, START + DAY: 100.0})
    [row] = reconciliation_table(lake, "1h", [LIFE]).to_pylist()
    assert (row["pair"], row["ts"], row["other"]) == ("spot_coingecko", START, "a-coin")
    assert row["median_difference_bps"] == pytest.approx(50.0)
    assert row["agrees"]


def test_a_coin_counts_only_while_it_stands_behind_the_symbol(tmp_path: Path) -> None:
    lake = lake_with(tmp_path, candles("A/USDT", [100.0] * 48))
    caps(lake, "a-coin", {START: 150.0, START + DAY: 150.0})
    rows = reconciliation_table(lake, "1h", [{**LIFE, "valid_from": START + DAY}]).to_pylist()
    assert [(row["ts"], row["agrees"]) for row in rows] == [(START + DAY, False)]
