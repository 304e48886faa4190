from __future__ import annotations

from typing import Any

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
from crypto_assets.simulation.world import Market
from crypto_assets_tests.simulation.clients import at

START = at(2023, 1, 1)
WORLD = SyntheticWorld(5, START, START + 30 * DAY_MS, story_days=30)
HOURLY = SyntheticWorld(5, START, START + 400 * DAY_MS, "1h")


def whole(world: SyntheticWorld, symbol: str) -> Bars:
    return world.final_bars(symbol, world.base_interval, world.start_ms, world.end_ms)


def daily_returns(world: SyntheticWorld) -> np.ndarray:
    """(coins, days) log returns of the coins that trade all the time."""
    symbols = [m.symbol for m in world.all_markets() if m.first_ms == world.start_ms and m.base != "SRM"]
    now = world.end_ms
    closes = [
        world.klines(symbol, "1d", now_ms=now, limit=1000).values[CLOSE].astype(float) for symbol in symbols
    ]
    return np.diff(np.log(np.array(closes)))


def test_the_past_does_not_depend_on_where_the_world_ends() -> None:
    short = SyntheticWorld(5, START, START + 12 * DAY_MS, story_days=30)
    for market in short.all_markets():
        ours, theirs = whole(short, market.symbol), WORLD.final_bars(market.symbol, "1m", START, short.end_ms)
        assert np.array_equal(ours.open_ms, theirs.open_ms)
        assert np.array_equal(ours.values, theirs.values)
        assert np.array_equal(ours.n_trades, theirs.n_trades)
    now = short.end_ms - HOUR_MS
    for coin in short.coins(now):
        for step in ("5m", "1h", "1d"):
            ours, theirs = (
                world.coin_points(coin.coin_id, step, START, now, now) for world in (short, WORLD)
            )
            assert np.array_equal(ours.stamp_ms, theirs.stamp_ms)
            assert np.array_equal(ours.market_cap_usd, theirs.market_cap_usd)
            assert np.array_equal(ours.volume_usd, theirs.volume_usd)


def test_the_past_does_not_depend_on_the_order_of_questions() -> None:
    fresh = SyntheticWorld(5, START, START + 30 * DAY_MS, story_days=30)
    last = fresh.final_bars("ETH/USDT", "1m", START + 20 * DAY_MS, START + 21 * DAY_MS)
    assert np.array_equal(
        last.values, WORLD.final_bars("ETH/USDT", "1m", START + 20 * DAY_MS, START + 21 * DAY_MS).values
    )


def test_another_seed_is_another_market() -> None:
    other = SyntheticWorld(6, START, START + 2 * DAY_MS)
    assert not np.array_equal(
        whole(other, "BTC/USDT").values, WORLD.final_bars("BTC/USDT", "1m", START, START + 2 * DAY_MS).values
    )


@pytest.mark.parametrize("market", WORLD.all_markets(), ids=lambda market: market.base)
def test_every_bar_is_consistent(market: Market) -> None:
    bars = whole(WORLD, market.symbol)
    v = bars.values
    assert (np.diff(bars.open_ms) > 0).all()
    assert (v[LOW] > 0).all()
    assert (v[LOW] <= np.minimum(v[OPEN], v[CLOSE])).all()
    assert (v[HIGH] >= np.maximum(v[OPEN], v[CLOSE])).all()
    assert (v[: CLOSE + 1] % market.tick == 0).all()
    assert (v[VOLUME_BASE] % market.lot == 0).all()
    # Quote volume lies between low and high times base volume, in exact integers.
    assert (
        v[LOW] // market.tick * (v[VOLUME_BASE] // market.lot)
        <= v[VOLUME_QUOTE] // (market.tick * market.lot // UNITS)
    ).all()
    assert (
        v[HIGH] // market.tick * (v[VOLUME_BASE] // market.lot)
        >= v[VOLUME_QUOTE] // (market.tick * market.lot // UNITS)
    ).all()
    assert (v[TAKER_BASE] <= v[VOLUME_BASE]).all()
    assert (v[TAKER_QUOTE] <= v[VOLUME_QUOTE]).all()
    assert ((bars.n_trades > 0) == (v[VOLUME_BASE] > 0)).all()
    still = v[VOLUME_BASE] == 0
    assert (v[HIGH][still] == v[LOW][still]).all()
    # Prices are continuous up to one tick.
    together = np.diff(bars.open_ms) == MINUTE_MS
    assert (np.abs(v[OPEN, 1:] - v[CLOSE, :-1])[together] <= market.tick).all()


def test_a_quiet_coin_has_minutes_without_a_trade() -> None:
    assert (whole(WORLD, "SRM/USDT").values[VOLUME_BASE] == 0).any()


def test_one_coin_is_listed_late_and_one_is_delisted() -> None:
    markets = {market.base: market for market in WORLD.all_markets()}
    assert len(markets) == 12
    assert markets["ARB"].first_ms == START + 10 * DAY_MS + 8 * HOUR_MS
    assert markets["SRM"].last_ms == START + 20 * DAY_MS + 3 * HOUR_MS - MINUTE_MS
    delisted = START + 20 * DAY_MS + 3 * HOUR_MS
    assert WORLD.is_trading(markets["SRM"], delisted - 1)
    assert not WORLD.is_trading(markets["SRM"], delisted)
    assert WORLD.is_trading(markets["BTC"], delisted)
    collapse = whole(WORLD, "SRM/USDT").values[CLOSE]
    assert collapse[-1] < 0.75 * collapse[-4 * 1440]


def test_a_world_that_ends_early_has_no_late_listing_and_no_delisting() -> None:
    markets = {market.base: market for market in SyntheticWorld(5, START, START + 5 * DAY_MS).all_markets()}
    assert "ARB" not in markets
    assert markets["SRM"].last_ms == START + 5 * DAY_MS - MINUTE_MS


def test_an_outage_stops_all_symbols_and_cuts_one_bar_short() -> None:
    day = START + 15 * DAY_MS
    cuts = set()
    for market in WORLD.all_markets():
        bars = WORLD.final_bars(market.symbol, "1m", day, day + DAY_MS)
        gap = int(np.argmax(np.diff(bars.open_ms)))
        assert bars.open_ms[gap] == day + 12 * HOUR_MS + 27 * MINUTE_MS
        assert bars.open_ms[gap + 1] == day + 14 * HOUR_MS + 30 * MINUTE_MS
        assert (np.diff(bars.open_ms) > MINUTE_MS).sum() == 1
        cuts.add(int(bars.close_ms[gap]))
        assert bars.close_ms[gap] < bars.open_ms[gap] + MINUTE_MS - 1
    assert len(cuts) == len(WORLD.all_markets())


def test_the_outage_shows_in_hourly_bars_as_it_did_in_march_2023() -> None:
    day, now = START + 15 * DAY_MS, START + 20 * DAY_MS
    hours = WORLD.window("BTC/USDT", "1h", day + 12 * HOUR_MS, day + 16 * HOUR_MS, now)
    assert [(ms - day) // HOUR_MS for ms in hours.open_ms] == [12, 14, 15]
    assert hours.close_ms[0] < day + 13 * HOUR_MS - 1
    assert hours.close_ms[1] == day + 15 * HOUR_MS - 1
    whole_day = WORLD.window("BTC/USDT", "1d", day, day + 1, now)
    assert whole_day.close_ms[0] == day + DAY_MS - 1
    native = SyntheticWorld(5, START, START + 30 * DAY_MS, "1h", story_days=30)
    assert np.array_equal(
        native.window("BTC/USDT", "1h", day + 12 * HOUR_MS, day + 16 * HOUR_MS, now).open_ms, hours.open_ms
    )


def test_a_bar_that_is_open_during_the_outage_has_its_normal_close_time() -> None:
    day = START + 15 * DAY_MS
    shown = [
        WORLD.klines("BTC/USDT", "1h", now_ms=day + 12 * HOUR_MS + m * MINUTE_MS, limit=1) for m in (50, 60)
    ]
    assert shown[0].close_ms.tolist() == [day + 13 * HOUR_MS - 1]
    assert shown[1].close_ms[0] < day + 12 * HOUR_MS + 28 * MINUTE_MS


def test_returns_look_like_a_crypto_market() -> None:
    returns = daily_returns(HOURLY)
    correlation = np.corrcoef(returns)
    assert 0.3 < np.median(correlation[np.triu_indices(len(correlation), 1)]) < 0.9
    assert 0.02 < returns[0].std() < 0.06
    minutes = np.diff(np.log(whole(WORLD, "BTC/USDT").values[CLOSE].astype(float)))
    standard = minutes / minutes.std()
    assert (standard**4).mean() > 6
    hourly = np.abs(minutes[: len(minutes) // 60 * 60]).reshape(-1, 60).mean(axis=1)
    clustered = np.corrcoef(hourly[:-1], hourly[1:])[0, 1]
    assert clustered > 0.3


def test_volume_has_its_hours() -> None:
    bars = whole(HOURLY, "ETH/USDT")
    by_hour = np.array(
        [bars.values[VOLUME_QUOTE][bars.open_ms // HOUR_MS % 24 == hour].mean() for hour in range(24)]
    )
    assert by_hour[13:18].mean() > 1.3 * by_hour[3:8].mean()


def rank_ic(drift_frac: float) -> float:
    """Mean daily rank correlation of 3 days' return with the next day's, in four worlds of three years."""
    daily = []
    for seed in range(4):
        world = SyntheticWorld(seed, START, START + 1100 * DAY_MS, "1d", drift_frac=drift_frac)
        now = world.end_ms + DAY_MS
        coins = [
            coin.coin_id
            for coin in world.coins(START + DAY_MS)
            if coin.name not in ("Tether", "Wrapped Bitcoin", "Serum")
        ]
        prices = np.array([world.coin_points(coin_id, "1d", 0, now, now).price_usd for coin_id in coins])
        returns = np.diff(np.log(prices))
        past = returns[:, :-3] + returns[:, 1:-2] + returns[:, 2:-1]
        before, after = (np.argsort(np.argsort(x, axis=0), axis=0) for x in (past, returns[:, 3:]))
        daily += [np.corrcoef(before[:, i], after[:, i])[0, 1] for i in range(before.shape[1])]
    return float(np.mean(daily))


def test_a_modest_persistent_drift_can_be_found_and_switched_off() -> None:
    # The standard error of each figure is 0.005.
    assert abs(rank_ic(0.0)) < 0.015
    assert 0.02 < rank_ic(0.004) < 0.08
    assert rank_ic(0.02) > 0.2


def test_coin_points_follow_price_and_supply() -> None:
    now = START + 12 * DAY_MS
    points = WORLD.coin_points("bitcoin", "1d", START, now, now)
    assert (points.stamp_ms % DAY_MS == 0).all()
    closes = WORLD.klines("BTC/USDT", "1d", now_ms=now, limit=20).values[CLOSE, : len(points)] / UNITS
    assert np.allclose(points.price_usd, closes, rtol=1e-3)
    assert not np.array_equal(points.price_usd, closes)
    supply = points.market_cap_usd / points.price_usd
    assert (np.diff(supply) > 0).all()
    assert supply[-1] < supply[0] * 1.01


def test_a_daily_point_is_public_35_minutes_after_midnight() -> None:
    midnight = START + 5 * DAY_MS
    early = WORLD.coin_points("bitcoin", "1d", START, midnight + DAY_MS, midnight + 35 * MINUTE_MS - 1)
    late = WORLD.coin_points("bitcoin", "1d", START, midnight + DAY_MS, midnight + 35 * MINUTE_MS)
    assert early.stamp_ms[-1] == midnight - DAY_MS
    assert late.stamp_ms[-1] == midnight


def test_volume_of_a_point_is_that_of_the_24_hours_before_on_all_venues() -> None:
    now = START + 6 * DAY_MS + 9 * HOUR_MS
    newest = WORLD.coin_now("ethereum", now)
    day = WORLD.final_bars("ETH/USDT", "1m", now - DAY_MS, now).values[VOLUME_QUOTE].sum() / UNITS
    assert newest.volume_usd[0] == pytest.approx(3 * day)
    daily = WORLD.coin_points("ethereum", "1d", now - 9 * HOUR_MS, now, now)
    whole_day = (
        WORLD.final_bars("ETH/USDT", "1m", START + 5 * DAY_MS, START + 6 * DAY_MS).values[VOLUME_QUOTE].sum()
    )
    assert daily.volume_usd[0] == pytest.approx(3 * whole_day / UNITS, rel=0.02)


def test_one_coin_has_no_cap_for_some_days() -> None:
    now = START + 29 * DAY_MS
    caps = WORLD.coin_points("avalanche-2", "1d", START, now, now).market_cap_usd
    assert (caps == 0).sum() == 4
    assert (WORLD.coin_points("bitcoin", "1d", START, now, now).market_cap_usd > 0).all()


def test_the_stablecoin_and_the_wrapped_coin_are_no_pairs() -> None:
    now = START + 12 * DAY_MS
    ids = {coin.coin_id for coin in WORLD.coins(now)}
    assert {"tether", "wrapped-bitcoin"} <= ids
    assert {market.base for market in WORLD.all_markets()} & {"USDT", "WBTC"} == set()
    tether = WORLD.coin_points("tether", "1d", START, now, now).price_usd
    wrapped = WORLD.coin_points("wrapped-bitcoin", "1d", START, now, now).price_usd
    bitcoin = WORLD.coin_points("bitcoin", "1d", START, now, now).price_usd
    assert np.allclose(tether, 1, atol=1e-3)
    assert np.allclose(wrapped, bitcoin, rtol=2e-3)


def test_the_late_coin_is_unknown_before_its_listing() -> None:
    ids = [{coin.coin_id for coin in WORLD.coins(START + day * DAY_MS)} for day in (9, 11)]
    assert "arbitrum" not in ids[0]
    assert "arbitrum" in ids[1]
    assert len(WORLD.coin_now("arbitrum", START + 9 * DAY_MS)) == 0


def test_candles_are_finished_and_stamped_with_their_end() -> None:
    now = START + 6 * DAY_MS + 9 * HOUR_MS + MINUTE_MS
    candles = WORLD.coin_candles("bitcoin", "4h", START, now, now)
    assert candles.stamp_ms[-1] == START + 6 * DAY_MS + 8 * HOUR_MS
    opens, highs, lows, closes = candles.prices
    assert (lows <= np.minimum(opens, closes)).all()
    assert (highs >= np.maximum(opens, closes)).all()
    bar = WORLD.window("BTC/USDT", "4h", START + 6 * DAY_MS + 4 * HOUR_MS, now, now)
    assert closes[-1] == pytest.approx(bar.values[CLOSE, 0] / UNITS, rel=1e-3)


def test_an_unknown_coin_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        WORLD.coin_points("no-coin", "1d", START, START, START)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"end_ms": START}, "empty"),
        ({"base_interval": "10m"}, "10m"),
        ({"base_interval": "1y"}, "1y"),
        ({"drift_frac": -1.0}, "drift"),
    ],
)
def test_a_world_that_cannot_be_is_refused(changes: dict[str, Any], complaint: str) -> None:
    possible: dict[str, Any] = {"seed": 1, "start_ms": START, "end_ms": START + DAY_MS}
    with pytest.raises(ValueError, match=complaint):
        SyntheticWorld(**(possible | changes))


def test_a_world_may_start_inside_a_day() -> None:
    world = SyntheticWorld(5, START + 7 * HOUR_MS + 30_000, START + DAY_MS)
    assert world.all_markets()[0].first_ms == START + 7 * HOUR_MS + MINUTE_MS
    bars = world.klines("BTC/USDT", "1h", now_ms=START + DAY_MS, limit=1, start_ms=0)
    assert bars.open_ms.tolist() == [START + 7 * HOUR_MS]
