from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from crypto_assets.intervals import DAY_MS, HOUR_MS, MINUTE_MS
from crypto_assets.simulation.bars import (
    CLOSE,
    HIGH,
    LOW,
    OPEN,
    TAKER_BASE,
    TAKER_QUOTE,
    UNITS,
    VOLUME_BASE,
    VOLUME_QUOTE,
    Bars,
)
from crypto_assets.simulation.synthetic import SyntheticWorld
from crypto_assets.simulation.synthetic_contracts import FUNDING_STEP_MS, ContractMaker, contracts_of
from crypto_assets.simulation.world import Kind, Market
from crypto_assets_tests.simulation.clients import at

START = at(2023, 1, 1)
WORLD = SyntheticWorld(5, START, START + 30 * DAY_MS, story_days=30)
KINDS: tuple[Kind, ...] = ("trade", "mark", "premium")


def whole(world: SyntheticWorld, symbol: str, kind: Kind = "trade") -> Bars:
    return world.final_bars(symbol, world.base_interval, world.start_ms, world.end_ms, kind)


def test_all_coins_but_two_have_a_perpetual_and_one_a_dated_contract() -> None:
    perpetuals = {m.base for m in WORLD.all_contracts() if m.market_type == "perpetual"}
    assert {m.base for m in WORLD.all_markets()} - perpetuals == {"LINK", "LTC"}
    dated = [m for m in WORLD.all_contracts() if m.market_type == "delivery"]
    assert [(m.symbol, m.exchange_symbol) for m in dated] == [("BTC/USDT:USDT-230126", "BTCUSDT_230126")]
    assert len({m.symbol for m in WORLD.all_contracts()}) == len(perpetuals) + 1
    assert {m.settle for m in WORLD.all_contracts()} == {"USDT"}


@pytest.mark.parametrize("market", WORLD.all_contracts(), ids=lambda market: market.symbol)
def test_every_bar_of_trades_is_consistent(market: Market) -> None:
    bars = whole(WORLD, market.symbol)
    v = bars.values
    assert bars.open_ms.tolist() == list(range(market.first_ms, market.last_ms + 1, MINUTE_MS))
    assert (bars.close_ms == bars.open_ms + MINUTE_MS - 1).all()
    assert (v[LOW] > 0).all()
    assert (v[LOW] <= np.minimum(v[OPEN], v[CLOSE])).all()
    assert (v[HIGH] >= np.maximum(v[OPEN], v[CLOSE])).all()
    assert (v[: CLOSE + 1] % market.tick == 0).all()
    assert (v[VOLUME_BASE] % market.lot == 0).all()
    ticks_lots = v[VOLUME_QUOTE] // (market.tick * market.lot // UNITS)
    assert (v[LOW] // market.tick * (v[VOLUME_BASE] // market.lot) <= ticks_lots).all()
    assert (v[HIGH] // market.tick * (v[VOLUME_BASE] // market.lot) >= ticks_lots).all()
    assert (v[TAKER_BASE] <= v[VOLUME_BASE]).all()
    assert (v[TAKER_QUOTE] <= v[VOLUME_QUOTE]).all()
    assert ((bars.n_trades > 0) == (v[VOLUME_BASE] > 0)).all()
    still = v[VOLUME_BASE] == 0
    assert (v[HIGH][still] == v[LOW][still]).all()
    assert (np.abs(v[OPEN, 1:] - v[CLOSE, :-1]) <= market.tick).all()
    # What is printed loses nothing.
    assert (v % 10 ** (8 - bars.shown.astype(np.int64)) == 0).all()


@pytest.mark.parametrize("kind", ["mark", "premium"])
@pytest.mark.parametrize("symbol", ["BTC/USDT:USDT", "ARB/USDT:USDT", "BTC/USDT:USDT-230126"])
def test_every_bar_of_an_index_is_consistent_and_continuous(symbol: str, kind: Kind) -> None:
    bars = whole(WORLD, symbol, kind)
    v = bars.values
    assert np.array_equal(bars.open_ms, whole(WORLD, symbol).open_ms)
    assert (v[LOW] <= np.minimum(v[OPEN], v[CLOSE])).all()
    assert (v[HIGH] >= np.maximum(v[OPEN], v[CLOSE])).all()
    assert np.array_equal(v[OPEN, 1:], v[CLOSE, :-1])
    assert not v[VOLUME_BASE:].any()


def test_prices_follow_spot_with_the_premium_of_the_premium_index() -> None:
    spot = whole(SyntheticWorld(5, START, START + 5 * DAY_MS, story_days=90), "ETH/USDT").values[CLOSE]
    trade, mark, premium = (whole(WORLD, "ETH/USDT:USDT", kind).values[CLOSE, : 5 * 1440] for kind in KINDS)
    told = premium / UNITS
    assert np.allclose(trade / spot - 1, told, atol=1e-5)
    assert np.abs(mark / spot - 1 - told).mean() < np.abs(told).mean()
    assert np.abs(mark / spot - 1).max() < 0.01


def test_premiums_revert_to_their_mean_and_are_their_own_of_each_contract() -> None:
    maker = ContractMaker(5, START // DAY_MS)
    contracts = contracts_of(START, START + 10 * DAY_MS, 30)
    moments = START + np.arange(0, 60 * DAY_MS, 5 * MINUTE_MS)
    paths = [maker.premium(contract, moments) for contract in contracts if contract.hours]
    for path in paths:
        assert (path < 0).mean() > 0.2 and (path > 0).mean() > 0.2
        assert np.corrcoef(path[1:], path[:-1])[0, 1] > 0.7
        # Half a day later nothing of it is left.
        assert abs(np.corrcoef(path[192:], path[:-192])[0, 1]) < 0.2
    for one, other in combinations(paths, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.35


def test_a_dated_contract_ends_at_the_price_of_spot() -> None:
    maker = ContractMaker(5, START // DAY_MS)
    dated = contracts_of(START, START + 10 * DAY_MS, 90)[-1]
    assert maker.mark_premium(dated, np.array([dated.delivery_ms]))[0] == 0
    months_before = maker.mark_premium(dated, np.arange(START, START + 10 * DAY_MS, HOUR_MS)).mean()
    assert months_before > 0.01


@pytest.mark.parametrize(
    ("symbol", "hours"), [("BTC/USDT:USDT", 8), ("SOL/USDT:USDT", 4), ("DOGE/USDT:USDT", 1)]
)
def test_funding_is_the_formula_of_the_exchange_on_the_premium_index(symbol: str, hours: int) -> None:
    funding = WORLD.final_funding(symbol, START + DAY_MS, START + 6 * DAY_MS)
    assert len(funding) == 5 * 24 // hours
    premium = whole(WORLD, symbol, "premium")
    steps = hours * HOUR_MS // FUNDING_STEP_MS
    weights = np.arange(1, steps + 1)
    for settled_ms, rate in zip(funding.settled_ms, funding.rate, strict=True):
        scheduled = settled_ms // HOUR_MS * HOUR_MS
        ends = scheduled - (steps - weights) * FUNDING_STEP_MS
        closes = premium.values[CLOSE, np.searchsorted(premium.open_ms, ends - MINUTE_MS)] / UNITS
        mean = (weights * closes).sum() / weights.sum()
        expected = (mean + np.clip(1e-4 - mean, -5e-4, 5e-4)) * hours / 8
        assert rate / UNITS == pytest.approx(expected, abs=1.5e-8)


def test_funding_rates_have_both_signs_and_often_the_interest_of_a_hundredth_percent() -> None:
    world = SyntheticWorld(5, START, START + 300 * DAY_MS, "1h")
    rates = world.final_funding("BTC/USDT:USDT", START, world.end_ms).rate
    assert (rates < 0).any()
    assert (rates > 10_000).any()
    assert 0.3 < (rates == 10_000).mean() < 0.9
    assert np.abs(rates).max() < 0.02 * UNITS


def test_the_mark_price_of_a_settlement_is_that_of_the_mark_candles() -> None:
    funding = WORLD.final_funding("SOL/USDT:USDT", START + DAY_MS, START + 4 * DAY_MS)
    marks = whole(WORLD, "SOL/USDT:USDT", "mark")
    before = np.searchsorted(marks.open_ms, funding.settled_ms // HOUR_MS * HOUR_MS) - 1
    assert np.abs(marks.values[CLOSE, before] - funding.mark_price).max() <= 1


def test_settlements_stop_with_the_contract_and_a_page_of_them_needs_no_history() -> None:
    contract = next(m for m in WORLD.all_contracts() if m.base == "SRM")
    stamps = WORLD.final_funding(contract.symbol, START, WORLD.end_ms).settled_ms
    assert stamps[0] // HOUR_MS * HOUR_MS == START + 8 * HOUR_MS
    assert contract.delivery_ms - 8 * HOUR_MS < stamps[-1] <= contract.delivery_ms + 14
    parts = [WORLD.final_funding(contract.symbol, int(ms), int(ms) + 1).settled_ms for ms in stamps]
    assert np.concatenate(parts).tolist() == stamps.tolist()
    assert WORLD.funding_hours(contract.symbol, contract.delivery_ms - 1) == 8
    assert WORLD.funding_hours(contract.symbol, contract.delivery_ms) is None


@pytest.mark.parametrize(
    "symbol", ["DOGE/USDT:USDT", "SRM/USDT:USDT", "ARB/USDT:USDT", "BTC/USDT:USDT-230126"]
)
@pytest.mark.parametrize("start_ms", [None, 0, START + 3 * DAY_MS + 1, START + 40 * DAY_MS])
@pytest.mark.parametrize("now_ms", [START + 5 * DAY_MS + 3, START + 25 * DAY_MS, START + 90 * DAY_MS])
def test_a_page_of_settlements_is_cut_out_of_all_of_them(
    symbol: str, start_ms: int | None, now_ms: int
) -> None:
    everything = WORLD.final_funding(symbol, start_ms or 0, now_ms + 1)
    for limit in (1, 7, 1000):
        page = WORLD.funding(symbol, now_ms=now_ms, limit=limit, start_ms=start_ms)
        expected = everything.take(slice(-limit, None) if start_ms is None else slice(limit))
        assert page.settled_ms.tolist() == expected.settled_ms.tolist()
        assert page.rate.tolist() == expected.rate.tolist()


def test_the_running_rate_grows_into_the_settled_one() -> None:
    funding = WORLD.final_funding("BTC/USDT:USDT", START + DAY_MS, START + 20 * DAY_MS)
    scheduled = funding.settled_ms // HOUR_MS * HOUR_MS
    early, late = (
        np.array([WORLD.running_rate("BTC/USDT:USDT", int(ms) - before) for ms in scheduled])
        for before in (7 * HOUR_MS, MINUTE_MS)
    )
    assert np.abs(late - funding.rate).max() < 3_000
    assert np.abs(early - funding.rate).mean() > 2 * np.abs(late - funding.rate).mean()


def test_open_interest_is_plausible_and_the_same_for_every_period() -> None:
    fine = WORLD.final_open_interest("ETH/USDT:USDT", "5m", START, START + 10 * DAY_MS)
    hourly = WORLD.final_open_interest("ETH/USDT:USDT", "1h", START, START + 10 * DAY_MS)
    same = np.isin(fine.stamp_ms, hourly.stamp_ms)
    assert np.array_equal(fine.base[same], hourly.base)
    assert np.array_equal(fine.quote[same], hourly.quote)
    base = fine.base.astype(float)
    assert (base > 0).all()
    assert np.abs(np.diff(base) / base[1:]).max() < 0.1
    assert base.max() / base.min() < 8


def test_open_interest_of_a_new_contract_fills_up() -> None:
    contract = next(m for m in WORLD.all_contracts() if m.base == "ADA")
    days = contract.onboard_ms + np.array([HOUR_MS, 12 * HOUR_MS, 4 * DAY_MS])
    sizes = [WORLD.open_interest_now(contract.symbol, int(now)).base[0] for now in days]
    assert sizes[0] < sizes[1] < sizes[2]
    assert len(WORLD.open_interest_now(contract.symbol, contract.onboard_ms)) == 0


def test_contracts_trade_more_than_their_pairs() -> None:
    spot, futures = (
        whole(WORLD, symbol).values[VOLUME_QUOTE].sum() for symbol in ("BTC/USDT", "BTC/USDT:USDT")
    )
    assert 1.5 < futures / spot < 4


def test_the_past_of_contracts_depends_neither_on_the_end_nor_on_the_order_of_questions() -> None:
    short = SyntheticWorld(5, START, START + 12 * DAY_MS, story_days=30)
    fresh = SyntheticWorld(5, START, START + 30 * DAY_MS, story_days=30)
    for market in short.all_contracts():
        for kind in KINDS:
            last = fresh.final_bars(market.symbol, "1m", START + 11 * DAY_MS, short.end_ms, kind)
            ours, theirs = (
                whole(short, market.symbol, kind),
                WORLD.final_bars(market.symbol, "1m", START, short.end_ms, kind),
            )
            assert np.array_equal(ours.open_ms, theirs.open_ms)
            assert np.array_equal(ours.values, theirs.values)
            assert np.array_equal(ours.n_trades, theirs.n_trades)
            assert np.array_equal(last.values, ours.between(START + 11 * DAY_MS, short.end_ms).values)
        ours, theirs = (w.final_funding(market.symbol, START, short.end_ms) for w in (short, WORLD))
        assert np.array_equal(ours.rate, theirs.rate)
        assert np.array_equal(ours.settled_ms, theirs.settled_ms)


def test_another_seed_has_other_contracts() -> None:
    other = SyntheticWorld(6, START, START + DAY_MS)
    ours = WORLD.final_bars("BTC/USDT:USDT", "1m", START, START + DAY_MS, "premium")
    assert not np.array_equal(whole(other, "BTC/USDT:USDT", "premium").values, ours.values)


@pytest.mark.parametrize("story_days", [3, 6, 30, 90, 1000])
def test_the_story_of_contracts_has_its_order_however_long_it_is(story_days: int) -> None:
    world = SyntheticWorld(1, START, START + (story_days + 1) * DAY_MS, "1d", story_days=story_days)
    contracts = {market.symbol: market for market in world.all_contracts()}
    dying = contracts["SRM/USDT:USDT"]
    assert START < dying.delivery_ms < world.delisting_ms
    assert START < contracts["ADA/USDT:USDT"].onboard_ms < dying.delivery_ms
    assert contracts["ARB/USDT:USDT"].onboard_ms > world.listing_ms
    dated = next(market for market in contracts.values() if market.market_type == "delivery")
    assert dated.delivery_ms < world.end_ms


@pytest.mark.parametrize("base_interval", ["5m", "1h", "4h", "1d"])
def test_longer_base_intervals_know_no_later_price_than_the_last_finished_bar(base_interval: str) -> None:
    world = SyntheticWorld(5, START, START + 10 * DAY_MS, base_interval)
    bars = whole(world, "BTC/USDT:USDT", "mark")
    funding = world.final_funding("BTC/USDT:USDT", START + 2 * DAY_MS, START + 9 * DAY_MS)
    ends = bars.open_ms + world.step_ms
    known = bars.values[CLOSE, np.searchsorted(ends, funding.settled_ms, side="right") - 1]
    assert np.allclose(funding.mark_price, known, rtol=3e-3)
