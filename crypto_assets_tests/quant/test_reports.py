from __future__ import annotations

import struct
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from crypto_assets import tables
from crypto_assets.quant import backtest, holdings, reports
from crypto_assets_tests.quant.decisions import COINS, WINDOW, alpha_of, at, decide, market
from crypto_assets_tests.quant.rasters import DAY, HOUR, START, Listing, assert_same_bits

COSTS: dict[str, Any] = {"fee_bps": 10.0, "slippage_bps": 5.0}


@pytest.fixture(scope="module")
def chain() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Make holdings, candidates and raster of six days in which one coin dies."""
    raster = market(240, [*COINS[:5], Listing("C5/USDT", last=150)])
    times = holdings.decision_times(at(96), at(239))
    candidates = decide(raster, times, alpha=alpha_of(raster))
    fits = pd.DataFrame(
        {
            "week": np.array([START, START + 7 * DAY], dtype="datetime64[us]"),
            "slope": 0.1,
            "confidence": 0.5,
            "status": "ok",
        }
    )
    rows = holdings.optimal_holdings(
        candidates,
        holdings.views(candidates, fits),
        raster,
        pd.DataFrame(),
        decision_times=times,
        bar=HOUR,
        horizon=DAY,
        lookback_bars=WINDOW,
    )
    return rows, candidates, raster


def test_every_strategy_is_reported_on_the_same_whole_days(
    chain: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame],
) -> None:
    rows = reports.portfolio_backtest(*chain, bar=HOUR, **COSTS)
    assert sorted(rows.columns) == sorted(tables.table_of("reports/portfolio_backtest").column_names)
    assert set(rows["strategy"]) == set(reports.STRATEGIES)
    days = [START + n * DAY for n in range(4, 10)]
    for _, strategy in rows.groupby("strategy"):
        assert strategy["ts"].tolist() == days
    assert rows.equals(rows.sort_values(["strategy", "ts"], ignore_index=True))


def test_each_strategy_is_the_simulation_that_its_name_says(
    chain: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame],
) -> None:
    held, candidates, raster = chain
    rows = reports.portfolio_backtest(*chain, bar=HOUR, **COSTS)
    decisions = np.unique(held["decision_at"].to_numpy())
    expected = {
        "black_litterman": (held, {}),
        "black_litterman_delayed": (held, {"latency": HOUR}),
        "black_litterman_total_loss": (held, {"exit_haircut": 1.0}),
        "equal_weight": (backtest.equal_weight(candidates, decisions), {}),
        "market_cap": (backtest.market_cap(candidates, decisions), {}),
    }
    curves = {}
    for strategy, (weights, changes) in expected.items():
        alone = backtest.simulate(weights, raster, strategy=strategy, bar=HOUR, **COSTS, **changes)
        curves[strategy] = alone["equity"].tolist()
        assert_same_bits(rows[rows["strategy"] == strategy], alone, ("strategy", "ts"))
    assert len({tuple(curve) for curve in curves.values()}) == len(curves)
    # The coin that died was held: losing it wholly costs more than leaving at its last close.
    assert curves["black_litterman_total_loss"][-1] < curves["black_litterman"][-1]


def test_no_holdings_give_an_empty_report(chain: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]) -> None:
    held, candidates, raster = chain
    rows = reports.portfolio_backtest(held.iloc[:0], candidates, raster, bar=HOUR, **COSTS)
    assert rows.empty
    assert sorted(rows.columns) == sorted(tables.table_of("reports/portfolio_backtest").column_names)
    with pytest.raises(ValueError, match="no days to draw"):
        reports.equity_curve_png(rows)


def test_the_picture_is_a_png_of_its_size_and_repeats(
    chain: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame],
) -> None:
    rows = reports.portfolio_backtest(*chain, bar=HOUR, **COSTS)
    picture = reports.equity_curve_png(rows)
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", picture[16:24]) == (1100, 700)
    assert reports.equity_curve_png(rows) == picture
    assert reports.equity_curve_png(rows[rows["strategy"] != "equal_weight"]) != picture


@pytest.mark.parametrize("returns", [[0.01], [0.5, 0.5, 0.5, 0.5, -1.0], [0.0, 0.0]])
def test_a_day_a_ruin_and_a_flat_line_can_be_drawn(returns: list[float]) -> None:
    ts = np.datetime64(START, "us") + np.timedelta64(timedelta(days=1)) * np.arange(len(returns))
    rows = pd.DataFrame(
        {"strategy": "mine", "ts": ts, "return_frac": returns, "turnover_frac": 0.0, "fee_frac": 0.0}
    )
    rows["equity"] = np.cumprod(1 + rows["return_frac"])
    assert reports.equity_curve_png(rows)[:4] == b"\x89PNG"
