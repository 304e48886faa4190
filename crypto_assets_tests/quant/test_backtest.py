from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_assets import tables
from crypto_assets.quant import backtest
from crypto_assets_tests.quant.decisions import at
from crypto_assets_tests.quant.rasters import DAY, HOUR, QUICK, START, Listing, random_raster, raster_of
from crypto_assets_tests.recorded import RECORDED, needs_recorded

CONTRACT = tables.table_of("reports/portfolio_backtest")
A, B = "A/USDT", "B/USDT"


def flat(
    n_bars: int,
    price: float = 100.0,
    *,
    symbol: str = A,
    moves: dict[int, float] | None = None,
    gone: Sequence[int] = (),
) -> pd.DataFrame:
    """Bars at ``price``, from each moved hour on at the moved price; no bar at ``gone``."""
    values: list[float | None] = [price] * n_bars
    for hour, moved in sorted((moves or {}).items()):
        values[hour:] = [moved] * (n_bars - hour)
    for hour in gone:
        values[hour] = None
    return raster_of({"open": values, "close": values}, symbol=symbol)


def orders(*rows: tuple[datetime, dict[str, float]]) -> pd.DataFrame:
    """Target weights by symbol for each decision, cash being the rest."""
    records = []
    for moment, weights in rows:
        records += [(moment, symbol, f"{symbol}#1", weight) for symbol, weight in weights.items()]
        records.append((moment, "USDT", None, 1 - sum(weights.values())))
    frame = pd.DataFrame(records, columns=["decision_at", "symbol", "listing_id", "weight_frac"])
    return frame.astype({"decision_at": "datetime64[us]"})


def run(weights: pd.DataFrame, raster: pd.DataFrame, **changes: Any) -> pd.DataFrame:
    chosen: dict[str, Any] = {"strategy": "x", "bar": HOUR, "fee_bps": 0.0, "slippage_bps": 0.0} | changes
    return backtest.simulate(weights, raster, **chosen)


def equities(weights: pd.DataFrame, raster: pd.DataFrame, **changes: Any) -> list[float]:
    return run(weights, raster, **changes)["equity"].tolist()


# Input errors


def test_weights_that_cannot_be_held_are_refused() -> None:
    raster = flat(24)
    too_much = orders((at(1), {A: 0.6, B: 0.4}))
    with pytest.raises(ValueError, match=r"sum to 1\.2"):
        run(too_much.assign(weight_frac=too_much["weight_frac"].where(too_much["symbol"] != B, 0.6)), raster)
    with pytest.raises(ValueError, match="negative or missing weight"):
        run(orders((at(1), {A: -0.1})), raster)
    with pytest.raises(ValueError, match="negative or missing weight"):
        run(orders((at(1), {A: math.nan})), raster)
    twice = orders((at(1), {A: 0.5}))
    with pytest.raises(ValueError, match="weights has two rows of"):
        run(pd.concat([twice, twice]), raster)


def test_costs_out_of_range_and_missing_inputs_are_refused() -> None:
    weights, raster = orders((at(1), {A: 1.0})), flat(24)
    for wrong in ({"fee_bps": -1}, {"slippage_bps": -1}, {"exit_haircut": 1.5}):
        with pytest.raises(ValueError, match="out of range"):
            run(weights, raster, **wrong)
    with pytest.raises(ValueError, match="both are needed"):
        run(weights.iloc[:0], raster)


# Worked examples


def test_a_purchase_fills_at_the_open_after_the_decision_and_is_marked_at_the_close() -> None:
    opens, closes = [100.0 + hour for hour in range(48)], [200.0 + hour for hour in range(48)]
    raster = raster_of({"open": opens, "close": closes}, symbol=A)
    rows = run(orders((at(1), {A: 1.0})), raster)
    # Bought at the open of hour 1 (101), marked at the close of hours 23 (223) and 47 (247).
    assert rows["equity"].tolist() == pytest.approx([223 / 101, 247 / 101], rel=1e-14)
    assert rows["return_frac"].tolist() == pytest.approx([223 / 101 - 1, 247 / 223 - 1], rel=1e-12)
    assert rows["turnover_frac"].tolist() == [0.5, 0.0]
    assert rows["ts"].tolist() == [START, START + DAY]
    assert rows["known_at"].tolist() == [START + DAY, START + 2 * DAY]
    assert rows["n_positions"].tolist() == [1, 1]
    assert sorted(rows.columns) == sorted(CONTRACT.column_names)
    later = run(orders((at(1), {A: 1.0})), raster, latency=HOUR)
    assert later["equity"].tolist() == pytest.approx([223 / 102, 247 / 102], rel=1e-14)


def test_fees_and_slippage_are_charged_on_what_is_traded() -> None:
    # Day 1: all in A, |dw| = 1. Day 2: A has doubled; half of it goes to B, |dw| = 1 again. Day 3: out, |dw|
    # = 1.
    raster = pd.concat([flat(72, moves={12: 200.0}), flat(72, symbol=B)])
    weights = orders((at(1), {A: 1.0}), (at(25), {A: 0.5, B: 0.5}), (at(49), {}))
    rows = run(weights, raster, fee_bps=10)
    assert rows["equity"].tolist() == pytest.approx([2 * 0.999, 2 * 0.999**2, 2 * 0.999**3], rel=1e-14)
    assert rows["turnover_frac"].tolist() == pytest.approx([0.5, 0.5, 0.5], rel=1e-14)
    # Of the opening balance, then of the evening before.
    assert rows["fee_frac"].tolist() == pytest.approx([0.001, 0.001, 0.001], rel=1e-14)
    assert rows["n_positions"].tolist() == [1, 2, 0]
    slipped = run(weights, raster, fee_bps=10, slippage_bps=5)
    assert slipped["equity"].tolist() == pytest.approx([2 * 0.9985**n for n in (1, 2, 3)], rel=1e-14)
    assert slipped["fee_frac"].tolist() == pytest.approx(rows["fee_frac"].tolist(), rel=1e-12)
    assert equities(weights, raster, fee_bps=15) == slipped["equity"].tolist()


def test_turnover_is_measured_from_drifted_weights() -> None:
    # Half in A, which triples: 0.75 of 2.0. Back to half is 0.25 of weight sold.
    raster = flat(48, moves={12: 300.0})
    rows = run(orders((at(1), {A: 0.5}), (at(25), {A: 0.5})), raster)
    assert rows["turnover_frac"].tolist() == pytest.approx([0.25, 0.125], rel=1e-14)
    assert rows["equity"].tolist() == pytest.approx([2.0, 2.0], rel=1e-14)


def test_an_order_waits_six_hours_and_is_then_cancelled() -> None:
    weights = orders((at(1), {A: 1.0}))
    for missing, fills in ((range(1, 7), True), (range(1, 8), False)):
        raster = flat(24, moves={12: 200.0}, gone=list(missing))
        assert equities(weights, raster) == [2.0 if fills else 1.0]


def test_a_cancelled_sale_keeps_the_drifted_position() -> None:
    raster = pd.concat([flat(72, moves={50: 150.0}, gone=list(range(25, 33))), flat(72, symbol=B)])
    rows = run(orders((at(1), {A: 0.5}), (at(25), {B: 0.5})), raster)
    # B was bought with the cash; A could not be sold and is still there when it rises by half.
    assert rows["equity"].tolist() == pytest.approx([1.0, 1.0, 1.25], rel=1e-14)
    assert rows["n_positions"].tolist() == [1, 2, 2]


def test_a_purchase_does_not_spend_the_proceeds_of_a_sale_that_waits() -> None:
    raster = pd.concat([flat(48, gone=[25, 26]), flat(48, symbol=B, moves={30: 200.0})])
    rows = run(orders((at(1), {A: 0.8}), (at(25), {B: 1.0})), raster, fee_bps=100)
    # Day 1: fee 0.008, so 0.7936 in A and 0.1984 in cash. B takes the cash including its fee; A becomes cash
    # later.
    bought = 0.1984 / 1.01
    cash = 0.7936 * 0.99
    assert rows["equity"].tolist() == pytest.approx([0.992, 2 * bought + cash], rel=1e-12)


def test_a_new_decision_replaces_an_order_that_still_waits() -> None:
    raster = pd.concat([flat(24, gone=[1, 2, 3], moves={12: 200.0}), flat(24, symbol=B)])
    weights = orders((at(1), {A: 1.0}), (at(3), {B: 1.0}))
    assert equities(weights, raster) == [1.0]
    # With a delay of an hour both orders move: the first still never fills, and neither replaces the other
    # too early.
    hourly = orders(*((at(hour), {A: 1.0}) for hour in range(1, 24)))
    assert equities(hourly, flat(24, moves={12: 200.0}), latency=HOUR) == [2.0]


def test_a_decision_between_bars_fills_at_the_next_open() -> None:
    raster = flat(24, moves={2: 50.0, 12: 100.0})
    assert equities(orders((at(1) + timedelta(minutes=30), {A: 1.0})), raster) == [2.0]


@pytest.mark.parametrize(("haircut", "value"), [(0.0, 1.0), (0.25, 0.75), (1.0, 0.0)])
def test_a_dead_listing_leaves_at_its_last_close_after_a_day(haircut: float, value: float) -> None:
    # The last bar of A ends at hour 30; it is dead at hour 54, and its price then counts on the third day.
    raster = pd.concat([flat(96, gone=list(range(30, 96))), flat(96, symbol=B)])
    weights = orders((at(1), {A: 0.5}), (at(25), {A: 0.5}), (at(49), {}))
    rows = run(weights, raster, exit_haircut=haircut)
    assert rows["equity"].tolist() == pytest.approx(
        [1.0, 1.0, 0.5 + 0.5 * value, 0.5 + 0.5 * value], rel=1e-14
    )
    assert rows["n_positions"].tolist() == [1, 1, 0, 0]
    assert rows["turnover_frac"].tolist() == pytest.approx([0.25, 0.0, 0.25, 0.0], rel=1e-14)
    paid = run(weights, raster, exit_haircut=haircut, fee_bps=100)
    # Bought with fee 0.005: half of 0.995 in A; leaving costs one percent of what is left of it.
    assert paid["equity"].tolist()[-1] == pytest.approx(0.4975 + 0.4975 * value * 0.99, rel=1e-12)


def test_a_pause_of_less_than_a_day_is_no_death() -> None:
    raster = pd.concat([flat(96, gone=list(range(30, 53)), moves={60: 200.0}), flat(96, symbol=B)])
    assert equities(orders((at(1), {A: 1.0})), raster, exit_haircut=1.0) == [1.0, 1.0, 2.0, 2.0]
    raster = pd.concat([flat(96, gone=list(range(30, 54)), moves={60: 200.0}), flat(96, symbol=B)])
    assert equities(orders((at(1), {A: 1.0})), raster, exit_haircut=1.0) == [1.0, 1.0, 0.0, 0.0]


def test_a_second_life_of_a_ticker_is_another_position() -> None:
    raster = random_raster(200, [Listing(A, last=40), Listing(A, number=2, first=95), B], seed=3)
    second = raster[raster["listing_id"] == f"{A}#2"]
    weights = orders((at(1), {A: 1.0}), (at(121), {A: 1.0}))
    weights.loc[(weights["decision_at"] == at(121)) & (weights["symbol"] == A), "listing_id"] = f"{A}#2"
    first = raster[raster["listing_id"] == f"{A}#1"].set_index("ts")
    bought, left = first["open"].iloc[1], first["close"].iloc[40]
    again = second.set_index("ts")
    rows = run(weights, raster)
    now = left / bought * again["close"][pd.Timestamp(at(191))] / again["open"][pd.Timestamp(at(121))]
    assert rows["equity"].iloc[-1] == pytest.approx(now, rel=1e-12)


def test_only_whole_days_are_reported() -> None:
    weights = orders((at(1), {A: 1.0}))
    assert len(run(weights, flat(47))) == 1
    assert len(run(weights, flat(48))) == 2
    none = run(weights, flat(23))
    assert none.empty
    assert sorted(none.columns) == sorted(CONTRACT.column_names)
    # Earlier raster rows are not needed, and give no days.
    assert run(orders((at(25), {A: 1.0})), flat(72))["ts"].tolist() == [START + DAY, START + 2 * DAY]


def test_what_cannot_be_bought_stays_cash() -> None:
    rows = run(orders((at(1), {A: 0.5, "Z/USDT": 0.5})), flat(24, moves={12: 200.0}))
    assert rows["equity"].tolist() == [1.5]


@needs_recorded
def test_the_collapse_of_luna_is_lived_through() -> None:
    source = pd.read_csv(RECORDED / "spot_1h_2021_2023" / "dev" / "LUNAUSDT-1h.csv.gz", parse_dates=["date"])
    may = source[(source["date"] >= "2022-05-09") & (source["date"] < "2022-05-16")]
    ts = may["date"].to_numpy(dtype="datetime64[us]")
    luna = may[["open", "close"]].assign(
        symbol="LUNA/USDT", ts=ts, known_at=ts + np.timedelta64(HOUR), listing_id="LUNA/USDT#1", has_bar=True
    )
    # Another coin trades on, so that the silence of the first is seen.
    other = flat(168, symbol=B).assign(
        ts=lambda rows: rows["ts"] + 7 * DAY, known_at=lambda rows: rows["known_at"] + 7 * DAY
    )
    weights = orders((at(7 * 24 + 1), {"LUNA/USDT": 0.5}), (at(11 * 24 + 1), {}))
    raster = pd.concat([luna, other])
    rows = run(weights, raster)
    price = luna.set_index("ts")
    bought, last = price["open"][pd.Timestamp("2022-05-09 01:00")], price["close"].iloc[-1]
    assert price.index[-1] == pd.Timestamp("2022-05-13 00:00")
    assert rows["equity"].iloc[-1] == pytest.approx(0.5 + 0.5 * last / bought, rel=1e-12)
    assert rows["equity"].iloc[-1] < 0.5001
    # The sale of 13 May 01:00 found no bar; the position left a day after the last one, on the 14th.
    assert rows["n_positions"].tolist() == [1, 1, 1, 1, 1, 0, 0]
    assert run(weights, raster, exit_haircut=1.0)["equity"].iloc[-1] == 0.5


# Properties


class Ledger:
    """The same rules, hour by hour with dictionaries; gains and fees are booked one by one."""

    def __init__(
        self, weights: pd.DataFrame, raster: pd.DataFrame, *, fee_bps: float, haircut: float
    ) -> None:
        present = raster[raster["has_bar"]]
        key = list(zip(present["ts"], present["listing_id"], strict=True))
        self.opens = dict(zip(key, present["open"].tolist(), strict=True))
        self.closes = dict(zip(key, present["close"].tolist(), strict=True))
        self.names = sorted(raster["listing_id"].unique())
        self.rate, self.haircut = fee_bps / 1e4, haircut
        self.cash = 1.0
        self.units, self.price = dict.fromkeys(self.names, 0.0), dict.fromkeys(self.names, 0.0)
        self.silent = dict.fromkeys(self.names, 0)
        self.gains: list[float] = []
        self.fees: list[float] = []
        self.fees_of_day: list[float] = []
        self.evenings: list[float] = []
        waiting: dict[str, float] = {}
        deadline = START
        for hour in range(int((raster["ts"].max() - START) / HOUR) + 1):
            now = pd.Timestamp(START + hour * HOUR)
            self.bury()
            rows = weights[weights["decision_at"] == now]
            if len(rows):
                rows = rows.dropna(subset=["listing_id"])
                waiting = dict.fromkeys(self.names, 0.0)
                waiting |= dict(zip(rows["listing_id"], rows["weight_frac"], strict=True))
                deadline = now + 6 * HOUR
            if now > deadline:
                waiting = {}
            trading = [name for name in self.names if (now, name) in self.closes]
            self.mark({name: self.opens[now, name] for name in trading})
            self.fill({name: waiting.pop(name) for name in trading if name in waiting})
            self.mark({name: self.closes[now, name] for name in trading})
            for name in self.names:
                self.silent[name] = 0 if name in trading else self.silent[name] + 1
            if hour % 24 == 23:
                self.evenings.append(self.equity())
                self.fees_of_day.append(math.fsum(self.fees) - math.fsum(self.fees_of_day))

    def value(self, name: str) -> float:
        """Worth at the newest price."""
        return self.units[name] * self.price[name]

    def equity(self) -> float:
        """Cash and all positions."""
        return self.cash + sum(self.value(name) for name in self.names)

    def mark(self, prices: dict[str, float]) -> None:
        """Book the gain of a new price."""
        for name, price in prices.items():
            self.gains.append(self.units[name] * (price - self.price[name]))
            self.price[name] = price

    def bury(self) -> None:
        """Close what has been silent for a day."""
        for name in self.names:
            if self.silent[name] == 24 and self.units[name] > 0:
                self.gains.append(-self.value(name) * self.haircut)
                proceeds = self.value(name) * (1 - self.haircut)
                self.fees.append(self.rate * proceeds)
                self.cash += proceeds - self.fees[-1]
                self.units[name] = 0.0

    def fill(self, targets: dict[str, float]) -> None:
        """Trade to target weights, with the cash there is."""
        equity = self.equity()
        if not targets or equity <= 0:
            return
        change = {name: target - self.value(name) / equity for name, target in targets.items()}
        bought = sum(c for c in change.values() if c > 0)
        sold = -sum(c for c in change.values() if c < 0)
        left = 1 - self.rate * (bought + sold)
        wanted = {name: target * left * equity for name, target in targets.items()}
        cash = left * equity - sum(wanted.values())
        cash -= sum(self.value(name) for name in self.names if name not in targets)
        if cash < -1e-12 * equity:
            share = min(1.0, (self.cash / equity + sold * (1 - self.rate)) / (bought * (1 + self.rate)))
            wanted = {n: self.value(n) + (share if c > 0 else 1) * c * equity for n, c in change.items()}
            bought *= share
            cash = self.cash + equity * (sold - bought - self.rate * (sold + bought))
        self.cash = cash
        self.fees.append(self.rate * (sold + bought) * equity)
        for name, worth in wanted.items():
            self.units[name] = worth / self.price[name]


@given(
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.2, 0.6]),
    st.sampled_from([1, 3, 24]),
    st.sampled_from([0.0, 1.0]),
)
@QUICK
def test_the_account_equals_a_slow_one_that_walks_hour_by_hour(
    seed: int, missing: float, every: int, haircut: float
) -> None:
    listings = [
        Listing("A/USDT", last=70),
        "B/USDT",
        Listing("C/USDT", first=30),
        Listing("D/USDT", gaps=((50, 80),)),
    ]
    raster = random_raster(168, listings, seed=seed, missing_share=missing)
    rng = np.random.default_rng(seed)
    moments = [at(hour) for hour in range(1, 168, every)]
    symbols = sorted(raster["symbol"].unique())
    weights = orders(
        *((m, dict(zip(symbols, rng.dirichlet(np.ones(5))[:4] * 0.999, strict=True))) for m in moments)
    )
    rows = run(weights, raster, fee_bps=20, exit_haircut=haircut)
    ledger = Ledger(weights, raster, fee_bps=20, haircut=haircut)
    assert rows["equity"].tolist() == pytest.approx(ledger.evenings, rel=1e-10)
    assert (rows["equity"] >= 0).all()
    before = np.concatenate([[1.0], rows["equity"].to_numpy()[:-1]])
    assert (rows["fee_frac"] * before).tolist() == pytest.approx(ledger.fees_of_day, abs=1e-12)
    # Nothing appears or vanishes: gains less fees are the change of equity.
    total = 1 + math.fsum(ledger.gains) - math.fsum(ledger.fees)
    assert total == pytest.approx(rows["equity"].iloc[-1], abs=1e-12)


@given(st.integers(0, 10_000))
@QUICK
def test_fees_only_ever_cost(seed: int) -> None:
    raster = random_raster(240, [A, B], seed=seed)
    rng = np.random.default_rng(seed)
    weights = orders(
        *(
            (at(hour), dict(zip([A, B], rng.dirichlet(np.ones(3))[:2], strict=True)))
            for hour in range(1, 240, 24)
        )
    )
    free, cheap, dear = (equities(weights, raster, fee_bps=fee) for fee in (0, 5, 50))
    assert all(a > b > c for a, b, c in zip(free, cheap, dear, strict=True))


@given(st.integers(0, 10_000))
@QUICK
def test_later_rows_never_change_an_earlier_day(seed: int) -> None:
    raster = random_raster(240, ["A/USDT", Listing("B/USDT", last=100)], seed=seed, missing_share=0.2)
    rng = np.random.default_rng(seed)
    weights = orders(
        *(
            (at(hour), dict(zip(["A/USDT", "B/USDT"], rng.dirichlet(np.ones(3))[:2], strict=True)))
            for hour in range(1, 240, 24)
        )
    )
    whole = run(weights, raster, fee_bps=10)
    cut = at(24 * int(rng.integers(2, 9)))
    early = run(weights[weights["decision_at"] < cut], raster[raster["ts"] < cut], fee_bps=10)
    assert whole[whole["known_at"] <= cut]["equity"].tolist() == early["equity"].tolist()


# Benchmarks and figures


def test_benchmarks_hold_the_same_universe_and_are_cash_without_one() -> None:
    candidates = pd.DataFrame(
        {
            "decision_at": np.array([at(1), at(1), at(1), at(25)], dtype="datetime64[us]"),
            "symbol": [A, B, "C/USDT", A],
            "listing_id": ["A/USDT#1", "B/USDT#1", "C/USDT#1", "A/USDT#1"],
            "eligible": [True, True, False, False],
            "w_mkt": [0.75, 0.25, np.nan, np.nan],
        }
    )
    moments = np.array([at(1), at(25), at(49)], dtype="datetime64[us]")
    for weights, expected in (
        (backtest.equal_weight(candidates, moments), [0.5, 0.5]),
        (backtest.market_cap(candidates, moments), [0.75, 0.25]),
    ):
        coins = weights.dropna(subset=["listing_id"])
        assert coins["weight_frac"].tolist() == expected
        assert coins["symbol"].tolist() == [A, B]
        cash = weights[weights["listing_id"].isna()]
        assert cash["decision_at"].tolist() == [at(1), at(25), at(49)]
        assert cash["weight_frac"].tolist() == [0.0, 1.0, 1.0]
        assert len(run(weights, pd.concat([flat(72), flat(72, symbol=B)]))) == 3


def daily(returns: Sequence[float]) -> pd.DataFrame:
    ts = np.datetime64(START, "us") + np.timedelta64(DAY) * np.arange(len(returns))
    equity = np.cumprod(1 + np.array(returns))
    return pd.DataFrame(
        {
            "strategy": "x",
            "ts": ts,
            "equity": equity,
            "return_frac": returns,
            "turnover_frac": 0.1,
            "fee_frac": 0.001,
        }
    )


def test_figures_of_merit_are_those_of_the_definitions() -> None:
    figures = backtest.performance(daily([0.1, -0.1, 0.05, -0.2]))
    mean, sd = -0.0375, math.sqrt((0.1375**2 + 0.0625**2 + 0.0875**2 + 0.1625**2) / 3)
    assert figures["sharpe"] == pytest.approx(mean / sd * math.sqrt(365), rel=1e-12)
    assert figures["sortino"] == pytest.approx(
        mean / math.sqrt((0.1**2 + 0.2**2) / 4) * math.sqrt(365), rel=1e-12
    )
    end = 1.1 * 0.9 * 1.05 * 0.8
    assert figures["cagr_frac"] == pytest.approx(end ** (365 / 4) - 1, rel=1e-12)
    assert figures["max_drawdown_frac"] == pytest.approx(1 - end / 1.1, rel=1e-12)
    assert figures["volatility_annual_frac"] == pytest.approx(sd * math.sqrt(365), rel=1e-12)
    assert figures["turnover_daily_frac"] == pytest.approx(0.1)
    assert figures["fee_total_frac"] == pytest.approx(0.004)
    assert figures["n_days"] == 4


def test_figures_that_are_undefined_are_missing() -> None:
    one = backtest.performance(daily([0.1]))
    assert math.isnan(one["sharpe"])
    assert math.isnan(one["sortino"])
    still = backtest.performance(daily([0.0, 0.0]))
    assert math.isnan(still["sharpe"])
    assert still["cagr_frac"] == 0
    ruin = backtest.performance(daily([0.1, -1.0, 0.0]))
    assert ruin["cagr_frac"] == -1
    assert ruin["max_drawdown_frac"] == 1


def test_figures_of_several_strategies_or_with_holes_are_refused() -> None:
    rows = daily([0.1, 0.1, 0.1])
    for wrong in (pd.concat([rows, rows.assign(strategy="y")]), rows.iloc[[0, 2]], rows.iloc[:0]):
        with pytest.raises(ValueError, match="exactly one strategy"):
            backtest.performance(wrong)
