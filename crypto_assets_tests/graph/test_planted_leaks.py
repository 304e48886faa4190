"""World-at-T can fail: six leaks are planted, one at a time, and each is found with its table, column and first row.

A leak is planted in the function or client that an asset calls. The asset is then materialized again on copies of a
world at the cut and of a later one, and the copies are compared whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from crypto_assets.quant import weights
from crypto_assets.quant.invariants import WHOLE_ROW, Difference
from crypto_assets.resources.coingecko import CoinGeckoClient
from crypto_assets.resources.exchange import BinanceClient
from crypto_assets.tables import table_of
from crypto_assets_tests.graph.conftest import MONDAY, NOW, QUICK_CUT, QUICK_NOW, Built
from crypto_assets_tests.graph.harness import PLANTED, leaks, plant_in_price_action

TODAY = QUICK_CUT.replace(hour=0, minute=0)
YESTERDAY = TODAY - timedelta(days=1)
#: Start of the last bar that had closed at the cut.
LAST_BAR = TODAY + timedelta(hours=8)
N_SYMBOLS = 8

MakeAgain = Callable[[str], list[Difference]]


def differences_after_making_again(
    name: str, pair: tuple[Built, Built], moments: tuple[datetime, datetime], first: datetime, folder: Path
) -> list[Difference]:
    table = table_of(name)
    copies = []
    for built, now in zip(pair, moments, strict=True):
        copy = built.platform.copy(folder / now.date().isoformat(), built.market)
        if table.write == "merge":
            # What is stored would not be asked for again.
            for day in copy.lake.partitions(table):
                if day >= first.date().isoformat():
                    shutil.rmtree(copy.lake.path(table, day).parent)
        copy.build(now, first=first.date(), only=[name])
        copies.append(copy.tables())
    return leaks(copies[0], copies[1], moments[0])


@pytest.fixture
def make_again(quick_pair: tuple[Built, Built], tmp_path: Path) -> MakeAgain:
    def make(name: str) -> list[Difference]:
        return differences_after_making_again(name, quick_pair, (QUICK_CUT, QUICK_NOW), YESTERDAY, tmp_path)

    return make


def first_row(difference: Difference) -> tuple[object, ...]:
    return tuple(value for _, value in difference.key)


@pytest.mark.parametrize("name", ["features/price_action", "raw/klines", "raw/market_caps"])
def test_without_a_leak_making_a_table_again_is_silent(make_again: MakeAgain, name: str) -> None:
    assert make_again(name) == []


def test_a_shifted_column_is_found(make_again: MakeAgain, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_in_price_action(monkeypatch, lambda rows: rows.groupby("symbol")[PLANTED].shift(-1))
    (found,) = make_again("features/price_action")
    assert (found.table, found.column) == ("features/price_action", PLANTED)
    assert first_row(found) == ("ADA/USDT", LAST_BAR)
    assert found.earlier_value is None
    assert found.later_value > 0
    assert found.n_rows == N_SYMBOLS


def test_a_centred_window_is_found(make_again: MakeAgain, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_in_price_action(
        monkeypatch,
        lambda rows: rows.groupby("symbol")[PLANTED].transform(
            lambda one: one.rolling(5, center=True, min_periods=1).mean()
        ),
    )
    (found,) = make_again("features/price_action")
    assert (found.table, found.column) == ("features/price_action", PLANTED)
    # The window reaches two bars ahead, so the last two rows differ.
    assert first_row(found) == ("ADA/USDT", LAST_BAR - timedelta(hours=1))
    assert found.n_rows == 2 * N_SYMBOLS


def test_a_scaler_fitted_on_the_full_sample_is_found(
    make_again: MakeAgain, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_in_price_action(
        monkeypatch, lambda rows: (rows[PLANTED] - rows[PLANTED].mean()) / rows[PLANTED].std()
    )
    (found,) = make_again("features/price_action")
    assert (found.table, found.column) == ("features/price_action", PLANTED)
    assert first_row(found) == ("ADA/USDT", YESTERDAY)
    assert found.n_rows == (24 + 9) * N_SYMBOLS


def test_an_unclosed_bar_is_found(make_again: MakeAgain, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = BinanceClient.server_time
    monkeypatch.setattr(BinanceClient, "server_time", lambda self: honest(self) + timedelta(hours=1))
    found = {difference.column: difference for difference in make_again("raw/klines")}
    assert {difference.table for difference in found.values()} == {"raw/klines"}
    unclosed = ("binance", "ADA/USDT", "trade", "1h", LAST_BAR + timedelta(hours=1))
    for column, reason in (("known_at", "stored before it could be known"), ("close", "values differ")):
        assert first_row(found[column]) == unclosed
        assert found[column].reason == reason
    assert found["known_at"].n_rows == N_SYMBOLS


def test_a_market_cap_that_is_dated_a_day_early_is_found(
    make_again: MakeAgain, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = CoinGeckoClient.market_caps

    def dated_early(self: CoinGeckoClient, coin_id: str, *asked: datetime, **given: datetime) -> pa.Table:
        rows = honest(self, coin_id, *asked, **given)
        early = [ts - timedelta(days=1) for ts in rows["ts"].to_pylist()]
        return rows.set_column(rows.column_names.index("ts"), "ts", pa.array(early, rows["ts"].type))

    monkeypatch.setattr(CoinGeckoClient, "market_caps", dated_early)
    (found,) = make_again("raw/market_caps")
    assert (found.table, found.column) == ("raw/market_caps", WHOLE_ROW)
    assert first_row(found) == ("arbitrum", YESTERDAY)
    assert found.reason == "known at the cut but not in the earlier build"
    assert found.n_rows == N_SYMBOLS


@pytest.mark.slow
@pytest.mark.parametrize("leaky", [False, True])
def test_weights_that_are_fitted_on_unrealised_returns_are_found(
    monday: Built, finished: Built, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, leaky: bool
) -> None:
    def whether_realised_or_not(frame: pd.DataFrame, start: np.datetime64, cut: np.datetime64) -> np.ndarray:
        ts = frame["ts"].to_numpy()
        return (ts >= start) & (ts < cut)

    if leaky:
        monkeypatch.setattr(weights, "known_in", whether_realised_or_not)
    found = differences_after_making_again(
        "weights/alpha_weights", (monday, finished), (MONDAY, NOW), MONDAY, tmp_path
    )
    if not leaky:
        assert found == []
        return
    assert {difference.table for difference in found} == {"weights/alpha_weights"}
    pairs = next(difference for difference in found if difference.column == "n_pairs")
    assert dict(pairs.key) == {"week": pd.Timestamp(MONDAY.date()), "factor": "factor_001"}
    assert pairs.later_value > pairs.earlier_value
    assert pairs.n_rows == 3
