"""What a sequence of target weights would have earned: fills, fees, deaths, daily equity, figures of merit.

Here: the accounting of one strategy on the raster, benchmark weights, performance figures. Not here: how
weights are decided (``holdings.py``) and which strategies are compared (``reports.py``). Imported by
``quant/reports`` and tests. An order fills after its decision at a price that exists; nothing before a bar's
end is used to decide.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pandas as pd

from crypto_assets.quant.panel import (
    DAY,
    Panel,
    bars_in,
    floor_day,
    require_columns,
    require_unique,
    times_of,
)

#: Largest sum of weights that is still one, up to rounding.
_FULL = 1 + 1e-9
_YEAR_DAYS = 365
#: Name of cash in benchmark weights.
CASH = "cash"
#: Grid place of the opening balance: before everything.
_BEFORE = -(2**62)


def simulate(
    weights: pd.DataFrame,
    raster: pd.DataFrame,
    *,
    strategy: str,
    bar: timedelta,
    latency: timedelta = timedelta(0),
    fee_bps: float,
    slippage_bps: float,
    fill_wait: timedelta = timedelta(hours=6),
    death_after: timedelta = timedelta(hours=24),
    exit_haircut: float = 0.0,
) -> pd.DataFrame:
    """Hold target weights on the raster and account for every unit of value.

    Parameters
    ----------
    weights
        One row per decision and asset: decision_at, symbol, listing_id (missing: cash), weight_frac. Every
        decision has at least one row; weights are not negative and sum to at most one, the rest is cash.
    raster
        Rows of ``rollups/raster`` from the first decision on; earlier ones are not needed.
    strategy
        Name that the rows carry.
    bar
        Raster interval.
    latency
        From decision to order; an order can fill at the open of a bar with ``ts >= decision_at + latency``.
    fee_bps, slippage_bps
        Cost of each, in 1/10,000 of the value traded; slippage worsens the price on both sides.
    fill_wait
        How long an order waits for a bar; then it is cancelled and the drifted position stays.
    death_after
        A listing without a bar for so long has died: the position leaves at its last close, at that moment.
    exit_haircut
        Share of that last close which is lost: 1 is a total loss.

    Returns
    -------
    pandas.DataFrame
        Rows of ``reports/portfolio_backtest``: one per whole UTC day from the day of the first decision on,
        marked at the last close of the day. ``equity`` starts at 1; ``fee_frac`` is fees without slippage
        over the equity of the day before; ``turnover_frac`` is the sum over fills of 1/2 sum |w_target -
        w_drifted| over assets other than cash.

    Raises
    ------
    ValueError
        If weights are negative, exceed one or repeat, or there are no weights or prices.

    Notes
    -----
    Fills of one moment are one trade: with drifted weights d and targets w of the assets that fill,
    cost is (fee + slippage) sum |w - d| x equity and the targets are shares of what is left. Where that would
    need more cash than there is (a sale that waits pays for a purchase that fills), purchases shrink to the
    cash; no credit, no retry. A new decision replaces what is still waiting. Source: conventions, sections 1,
    5 and 8.
    """
    if not (fee_bps >= 0 and slippage_bps >= 0 and 0 <= exit_haircut <= 1):
        raise ValueError(
            f"simulate: fee {fee_bps}, slippage {slippage_bps} and haircut {exit_haircut} are out of range"
        )
    if weights.empty or raster.empty:
        raise ValueError(
            f"simulate: {strategy} has {len(weights)} weights and {len(raster)} raster rows; both are needed"
        )
    panel = Panel.of(raster, bar)
    orders = _Orders.of(weights, panel, latency, fill_wait)
    prices = _Prices.of(panel)
    account = _Account(prices, fee_bps / 1e4, slippage_bps / 1e4)
    deaths = deque(_deaths(prices.has_bar, bars_in(death_after, bar, "death_after")))
    for place, columns, targets in orders.fills(prices.has_bar):
        while deaths and deaths[0][0] <= place:
            account.bury(*deaths.popleft(), exit_haircut)
        account.trade(place, columns, targets)
    for place, column in deaths:
        account.bury(place, column, exit_haircut)
    return account.daily(strategy, orders.decisions[0])


def equal_weight(candidates: pd.DataFrame, decision_times: np.ndarray) -> pd.DataFrame:
    """Benchmark weights: 1/n in every eligible candidate of each decision.

    Parameters
    ----------
    candidates
        Rows of ``holdings/candidates``.
    decision_times
        (n,) decisions; one without an eligible candidate is all cash.

    Returns
    -------
    pandas.DataFrame
        Rows for `simulate`.
    """
    return _benchmark(
        candidates, decision_times, lambda rows: 1 / rows.groupby("decision_at")["symbol"].transform("size")
    )


def market_cap(candidates: pd.DataFrame, decision_times: np.ndarray) -> pd.DataFrame:
    """Benchmark weights: the prior ``w_mkt`` of each decision; parameters and result as `equal_weight`."""
    return _benchmark(candidates, decision_times, lambda rows: rows["w_mkt"])


def performance(daily: pd.DataFrame) -> dict[str, float]:
    """Figures of merit of one strategy.

    Parameters
    ----------
    daily
        Rows of ``reports/portfolio_backtest`` of one strategy, consecutive days.

    Returns
    -------
    dict
        ``sharpe`` (mean / sample sd x sqrt(365), risk-free 0), ``sortino`` (denominator: root mean square of
        negative returns over all days, x sqrt(365)), ``cagr_frac`` (365-day year),
        ``volatility_annual_frac``, ``max_drawdown_frac`` (positive, from the highest equity so far, the start
        included), ``turnover_daily_frac``, ``fee_total_frac``, ``n_days``. NaN where undefined: fewer than
        two days, or a denominator of zero.

    Raises
    ------
    ValueError
        If the rows are not one strategy on consecutive days, or there is none.

    Notes
    -----
    Source: conventions, section 8.

    Examples
    --------
    >>> days = pd.DataFrame({"strategy": "x", "ts": pd.to_datetime(["2024-01-01", "2024-01-02"])})
    >>> days = days.assign(equity=[1.1, 0.99], return_frac=[0.1, -0.1], turnover_frac=0.0, fee_frac=0.0)
    >>> round(performance(days)["max_drawdown_frac"], 12)
    0.1
    """
    require_columns(daily, ("strategy", "ts", "equity", "return_frac", "turnover_frac", "fee_frac"), "daily")
    rows = daily.sort_values("ts")
    if rows["strategy"].nunique() != 1 or (np.diff(times_of(rows["ts"])) != DAY).any():
        raise ValueError("performance: pass the consecutive days of exactly one strategy")
    returns, equity = rows["return_frac"].to_numpy(dtype=float), rows["equity"].to_numpy(dtype=float)
    n = len(returns)
    start = equity[0] / (1 + returns[0]) if returns[0] > -1 else 1.0
    path = np.concatenate([[start], equity])
    downside = math.sqrt(float(np.mean(np.minimum(returns, 0) ** 2)))
    sd = float(returns.std(ddof=1)) if n > 1 else math.nan
    return {
        "sharpe": _ratio(float(returns.mean()), sd) * math.sqrt(_YEAR_DAYS),
        "sortino": _ratio(float(returns.mean()), downside) * math.sqrt(_YEAR_DAYS),
        "cagr_frac": float((equity[-1] / start) ** (_YEAR_DAYS / n) - 1),
        "volatility_annual_frac": sd * math.sqrt(_YEAR_DAYS),
        "max_drawdown_frac": float((1 - path / np.maximum.accumulate(path)).max()),
        "turnover_daily_frac": float(rows["turnover_frac"].mean()),
        "fee_total_frac": float(rows["fee_frac"].sum()),
        "n_days": n,
    }


@dataclass(frozen=True, eq=False)
class _Prices:
    # Matrices (n_times, n_listings). `mark`: the open where there is a bar, else the last close; `close`: the
    # last close so far, NaN before the first.
    times: np.ndarray
    bar: np.timedelta64
    has_bar: np.ndarray
    mark: np.ndarray
    close: np.ndarray

    @classmethod
    def of(cls, panel: Panel) -> _Prices:
        opens, closes = panel.matrix("open"), panel.matrix("close")
        has_bar = panel.flags("has_bar") & (opens > 0) & (closes > 0)
        newest = np.maximum.accumulate(np.where(has_bar, np.arange(len(has_bar))[:, None], -1), axis=0)
        last = np.where(newest >= 0, np.take_along_axis(closes, np.maximum(newest, 0), axis=0), np.nan)
        before = np.vstack([np.full((1, last.shape[1]), np.nan), last[:-1]])
        return cls(panel.times, panel.bar, has_bar, np.where(has_bar, opens, before), last)


@dataclass(frozen=True, eq=False)
class _Orders:
    # Per decision: target weights (n_decisions, n_listings) and the grid places [active, expired) where it
    # can fill.
    decisions: np.ndarray
    targets: np.ndarray
    active: np.ndarray
    expired: np.ndarray

    @classmethod
    def of(cls, weights: pd.DataFrame, panel: Panel, latency: timedelta, fill_wait: timedelta) -> _Orders:
        require_columns(weights, ("decision_at", "symbol", "listing_id", "weight_frac"), "weights")
        values = weights["weight_frac"].to_numpy(dtype=float)
        if not (values >= 0).all():
            wrong = weights["symbol"].to_numpy()[~(values >= 0)][0]
            raise ValueError(f"weights: {wrong} has a negative or missing weight; positions are long only")
        require_unique(weights, ("decision_at", "symbol"), "weights")
        decisions, code = np.unique(times_of(weights["decision_at"]), return_inverse=True)
        coin = weights["listing_id"].notna().to_numpy()
        total = np.bincount(code[coin], weights=values[coin], minlength=len(decisions))
        if (total > _FULL).any():
            raise ValueError(
                f"weights: those of {decisions[total > _FULL][0]} sum to {total.max()}; at most 1 can be held"
            )
        column = pd.Index(panel.listings).get_indexer(pd.Index(weights["listing_id"]))
        # A listing without any bar in the raster cannot fill; its share stays cash.
        held = coin & (column >= 0)
        targets = np.zeros((len(decisions), len(panel.listings)))
        targets[code[held], column[held]] = values[held]
        since = decisions + np.timedelta64(latency) - panel.times[0]
        active = -(-since // panel.bar)
        expired = (since + np.timedelta64(fill_wait)) // panel.bar + 1
        # The next decision's orders replace what still waits.
        expired[:-1] = np.minimum(expired[:-1], active[1:])
        return cls(decisions, targets, np.maximum(active, 0), expired)

    def fills(self, has_bar: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        # Grid place, columns and target weights of what fills together, in time order.
        for low, high, targets in zip(self.active, self.expired, self.targets, strict=True):
            window = has_bar[low : max(low, high)]
            if not len(window):
                continue
            place = np.where(window.any(axis=0), low + window.argmax(axis=0), -1)
            for moment in np.unique(place[place >= 0]):
                columns = np.flatnonzero(place == moment)
                yield int(moment), columns, targets[columns]


class _Account:
    # Cash and units per listing; every change is an event at a grid place, and units are constant in between.
    def __init__(self, prices: _Prices, fee_rate: float, slippage_rate: float) -> None:
        self.prices = prices
        self.fee_rate, self.cost_rate = fee_rate, fee_rate + slippage_rate
        self.cash, self.units = 1.0, np.zeros(prices.has_bar.shape[1])
        self.places, self.cash_after, self.units_after = [_BEFORE], [self.cash], [self.units.copy()]
        self.turnover, self.fees = [0.0], [0.0]

    def trade(self, place: int, columns: np.ndarray, targets: np.ndarray) -> None:
        price = self.prices.mark[place]
        value = np.where(self.units > 0, self.units * price, 0.0)
        equity = self.cash + float(value.sum())
        if equity <= 0:
            return
        change = targets - value[columns] / equity
        sold, bought = float(-change[change < 0].sum()), float(change[change > 0].sum())
        left = 1 - self.cost_rate * (sold + bought)
        new = targets * left * equity
        others = float(value.sum()) - float(value[columns].sum())
        cash = left * equity - float(new.sum()) - others
        if cash < -1e-12 * equity:
            share = (self.cash / equity + sold * (1 - self.cost_rate)) / (bought * (1 + self.cost_rate))
            share = min(share, 1.0)
            bought *= share
            new = np.where(change > 0, value[columns] + share * change * equity, targets * equity)
            cash = self.cash + equity * (sold - bought - self.cost_rate * (sold + bought))
        self.units[columns] = new / price[columns]
        self._record(place, cash, (sold + bought) / 2, self.fee_rate * (sold + bought) * equity)

    def bury(self, place: int, column: int, exit_haircut: float) -> None:
        if self.units[column] <= 0:
            return
        value = self.units[column] * self.prices.close[place - 1, column]
        price = self.prices.close[place - 1]
        equity = self.cash + float(np.where(self.units > 0, self.units * price, 0.0).sum())
        proceeds = value * (1 - exit_haircut)
        self.units[column] = 0.0
        self._record(
            place, self.cash + proceeds * (1 - self.cost_rate), value / equity / 2, self.fee_rate * proceeds
        )

    def _record(self, place: int, cash: float, turnover: float, fee: float) -> None:
        self.cash = cash
        self.places.append(place)
        self.cash_after.append(cash)
        self.units_after.append(self.units.copy())
        self.turnover.append(turnover)
        self.fees.append(fee)

    def daily(self, strategy: str, first: np.datetime64) -> pd.DataFrame:
        times, bar = self.prices.times, self.prices.bar
        first_day, end = floor_day(np.array([first, times[-1] + bar]))
        days = first_day + DAY * np.arange(max((end - first_day) // DAY, 0))
        # What happens at midnight belongs to the day that begins.
        ends = ((days + DAY - times[0]) // bar).astype(np.int64)
        segment = np.searchsorted(self.places, ends) - 1
        units = np.array(self.units_after)[segment]
        value = np.where(units > 0, units * self.prices.close[np.maximum(ends - 1, 0)], 0.0)
        equity = np.array(self.cash_after)[segment] + value.sum(axis=1)
        before = np.concatenate([[1.0], equity[:-1]])[: len(days)]
        day_of = np.searchsorted(ends, self.places, side="right")
        turnover, fees = (
            np.bincount(day_of, weights=amounts, minlength=len(days))[: len(days)]
            for amounts in (self.turnover, self.fees)
        )
        return pd.DataFrame(
            {
                "strategy": np.full(len(days), strategy, dtype=object),
                "ts": days,
                "known_at": days + DAY,
                "equity": equity,
                "return_frac": np.divide(equity - before, before, out=np.zeros(len(days)), where=before > 0),
                "turnover_frac": turnover,
                "fee_frac": np.divide(fees, before, out=np.zeros(len(days)), where=before > 0),
                "n_positions": (units > 0).sum(axis=1).astype(np.int64),
            }
        )


def _deaths(has_bar: np.ndarray, n_death: int) -> list[tuple[int, int]]:
    # (place, column) at which a listing has been without a bar for n_death intervals, as far as the grid
    # reaches.
    deaths = []
    for column in range(has_bar.shape[1]):
        places = np.append(np.flatnonzero(has_bar[:, column]), len(has_bar))
        silent = places[:-1][np.diff(places) - 1 >= n_death]
        deaths += [(int(place) + 1 + n_death, column) for place in silent]
    return sorted(deaths)


def _benchmark(
    candidates: pd.DataFrame, decision_times: np.ndarray, share: Callable[[pd.DataFrame], pd.Series]
) -> pd.DataFrame:
    require_columns(candidates, ("decision_at", "symbol", "listing_id", "eligible", "w_mkt"), "candidates")
    times = np.asarray(decision_times, dtype="datetime64[us]")
    rows = candidates[
        candidates["eligible"].to_numpy(dtype=bool) & candidates["decision_at"].isin(times).to_numpy()
    ]
    rows = rows.assign(weight_frac=share(rows))[["decision_at", "symbol", "listing_id", "weight_frac"]]
    invested = rows.groupby("decision_at")["weight_frac"].sum().reindex(times, fill_value=0.0)
    cash = pd.DataFrame(
        {"decision_at": times, "symbol": CASH, "listing_id": None, "weight_frac": 1 - invested.to_numpy()}
    )
    cash["weight_frac"] = cash["weight_frac"].clip(lower=0.0)
    return pd.concat([rows, cash], ignore_index=True).sort_values(
        ["decision_at", "symbol"], ignore_index=True
    )


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.nan
