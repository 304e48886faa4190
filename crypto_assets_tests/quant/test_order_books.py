"""Books against numbers worked by hand, plain loops over one book, and what a chunk of history must not change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_assets.quant.order_books import (
    DENSITY_BINS,
    DEPTH_BPS,
    IMPACT_QUOTE,
    Side,
    books_of,
    densities,
    depth_quote,
    imbalance_frac,
    impact_bps,
    mean_price,
    summary,
)
from crypto_assets.tables import TABLES

NOON = datetime(2024, 1, 1, 12)
MINUTE = timedelta(minutes=1)
Levels = Sequence[tuple[float, float]]

BIDS: Levels = [(99.0, 2.0), (98.0, 1.0), (95.0, 4.0)]
ASKS: Levels = [(101.0, 1.0), (101.5, 2.0), (104.0, 10.0)]


def snapshot(
    minute: float = 0,
    bids: Levels = BIDS,
    asks: Levels = ASKS,
    symbol: str = "BTC/USDT",
    number: int | None = None,
) -> pd.DataFrame:
    ts = pd.Timestamp(NOON + timedelta(minutes=minute)).as_unit("us")
    rows = [
        (side, level, price, amount)
        for side, levels in (("ask", asks), ("bid", bids))
        for level, (price, amount) in enumerate(levels)
    ]
    frame = pd.DataFrame(rows, columns=["side", "level", "price", "amount_base"])
    frame = frame.assign(venue="binance", symbol=symbol, ts=ts, known_at=ts + pd.Timedelta(seconds=1))
    frame["last_update_id"] = pd.array([number] * len(frame), "Int64")
    return frame


def many(*frames: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True)


def side(levels: Levels, direction: int) -> Side:
    return Side(np.array([[p for p, _ in levels]]), np.array([[a for _, a in levels]]), direction)


def one(levels: pd.DataFrame, **more: float) -> pd.Series:
    rows = summary(levels, **more)  # ty: ignore[invalid-argument-type]
    assert len(rows) == 1
    return rows.iloc[0]


# --- one book by hand


def test_a_book_by_hand() -> None:
    row = one(snapshot(number=7), bin_size_bps=100.0)
    assert (row["status"], row["last_update_id"], row["n_bids"], row["n_asks"]) == ("ok", 7, 3, 3)
    assert (row["best_bid"], row["best_ask"], row["mid"], row["gap_quote"]) == (99.0, 101.0, 100.0, 2.0)
    assert row["spread_bps"] == pytest.approx(200.0)
    # Values are 198, 98, 380: the quantile lies just below 380, which is left out.
    assert row["mean_bid"] == pytest.approx((99 * 2 + 98 * 1) / 3)
    assert row["mean_ask"] == pytest.approx((101 * 1 + 101.5 * 2) / 3)
    # Bins of 1 from 99 down: [99, 98) is 2; [98, 97), [97, 96), [96, 95) are 1; [95, 94) is 4.
    assert row["bin_size_quote"] == pytest.approx(1.0)
    assert row["bid_density_1_bins_base"] == pytest.approx(2.0)
    assert row["bid_density_2_bins_base"] == pytest.approx(1.5)
    assert row["bid_density_5_bins_base"] == pytest.approx((2 + 1 + 1 + 1 + 4) / 5)
    # From 101 up: 1 until 101.5, then 2 until 104, then 10 to the end of the bin.
    assert row["ask_density_1_bins_base"] == pytest.approx(1.5)
    assert row["ask_density_2_bins_base"] == pytest.approx(1.75)
    assert pd.isna(row["ask_density_5_bins_base"]), "the book has four bins"
    assert row["bid_depth_100_bps_quote"] == pytest.approx(198.0)
    assert row["ask_depth_100_bps_quote"] == pytest.approx(101.0)
    assert row["bid_depth_50_bps_quote"] == row["ask_depth_50_bps_quote"] == 0.0
    assert row["imbalance_100_bps_frac"] == pytest.approx((198 - 101) / 299)
    assert row["imbalance_best_frac"] == pytest.approx(1 / 3)
    assert pd.isna(row["imbalance_10_bps_frac"]), "nothing is within ten basis points"
    # Buying for 1000: 101 + 203 = 304 are spent, 696 at 104.
    bought = 1 + 2 + 696 / 104
    assert row["buy_impact_1000_quote_bps"] == pytest.approx((1000 / bought / 100 - 1) * 1e4)
    assert pd.isna(row["buy_impact_10000_quote_bps"])
    assert pd.isna(row["sell_impact_1000_quote_bps"]), "the bids are worth 676"


def test_the_summary_has_the_columns_of_its_contract() -> None:
    contract = TABLES["raw/order_book_summary"]
    assert list(summary(snapshot()).columns) == contract.column_names
    nothing = summary(snapshot().iloc[:0])
    assert (len(nothing), list(nothing.columns)) == (0, contract.column_names)


def test_times_and_keys_come_from_the_rows_in_their_order() -> None:
    given = many(snapshot(1, symbol="ETH/USDT"), snapshot(1), snapshot(0, symbol="ETH/USDT"))
    rows = summary(given.sample(frac=1, random_state=1))
    assert list(zip(rows["symbol"], rows["ts"], strict=True)) == [
        ("BTC/USDT", NOON + MINUTE),
        ("ETH/USDT", NOON),
        ("ETH/USDT", NOON + MINUTE),
    ]
    assert (rows["known_at"] - rows["ts"] == pd.Timedelta(seconds=1)).all()
    pd.testing.assert_frame_equal(rows, summary(given))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop(columns="level"), "level"),
        (lambda rows: rows.assign(side="buy"), "bid or ask"),
        (lambda rows: many(rows, rows), "twice"),
        (lambda rows: rows[rows["level"] != 1], "without gaps"),
        (lambda rows: rows.assign(price=np.nan), "price is missing"),
        (
            lambda rows: rows.assign(last_update_id=range(len(rows))),
            "two known times or numbers",
        ),
    ],
)
def test_rows_that_are_no_books_are_refused(change, message: str) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match=message):
        summary(change(snapshot()))


# --- formulas against loops over one book

PRICES = st.integers(1, 400).map(lambda n: n / 4)
LEVELS = st.dictionaries(PRICES, st.integers(1, 50).map(lambda n: n / 8), min_size=1, max_size=12)


@given(LEVELS)
def test_the_mean_price_leaves_out_orders_at_or_above_the_quantile(found: dict[float, float]) -> None:
    levels = sorted(found.items(), reverse=True)
    notional = np.array([price * amount for price, amount in levels])
    kept = notional < np.quantile(notional, 0.99)
    expected = math.nan
    if kept.any():
        prices, amounts = (np.array(values)[kept] for values in zip(*levels, strict=True))
        expected = (prices * amounts).sum() / amounts.sum()
    # Shorter rows beside it change nothing.
    padded = Side(*(np.array([[v, *[np.nan] * 12][:13]]) for v in (1.0, 1.0)), -1)
    row = np.full((2, 13, 2), np.nan)
    row[0, : len(levels)] = levels
    row[1, 0] = (1.0, 1.0)
    both = Side(row[..., 0], row[..., 1], -1)
    assert mean_price(both)[0] == pytest.approx(expected, nan_ok=True, rel=1e-12)
    assert np.isnan(mean_price(padded)[0])


def bins_by_walking(levels: Levels, size: float, direction: int) -> list[float]:
    """Seed C: the mean of the step function over each bin, walking the book from its best price."""
    best = levels[0][0]
    points = [(direction * (price - best), amount) for price, amount in levels]
    values = []
    for number in range(int(points[-1][0] // size) + 1):
        left, right = number * size, (number + 1) * size
        area, at, amount = 0.0, left, 0.0
        for where, volume in points:
            if where <= left:
                amount = volume
            elif where < right:
                area += amount * (where - at)
                at, amount = where, volume
        values.append((area + amount * (right - at)) / size)
    return values


@given(LEVELS, st.sampled_from([0.25, 1.0, 2.5, 7.0]), st.sampled_from([-1, 1]))
def test_densities_are_those_of_walking_the_book(
    found: dict[float, float], size: float, direction: int
) -> None:
    levels = sorted(found.items(), reverse=direction < 0)
    walked = bins_by_walking(levels, size, direction)
    for n, density in densities(side(levels, direction), np.array([size])).items():
        expected = np.mean(walked[:n]) if len(walked) >= n else math.nan
        assert density[0] == pytest.approx(expected, nan_ok=True)


def spend(levels: Levels, amount: float) -> float:
    got = 0.0
    for price, offered in levels:
        taken = min(amount, price * offered)
        got += taken / price
        amount -= taken
        if amount <= 1e-12:
            return got
    return math.nan


@given(LEVELS, st.sampled_from([0.5, 10.0, 500.0, 20_000.0]))
def test_impact_is_that_of_walking_the_book(found: dict[float, float], amount: float) -> None:
    for direction in (-1, 1):
        levels = sorted(found.items(), reverse=direction < 0)
        price = amount / spend(levels, amount)
        expected = direction * (price / 50.0 - 1) * 1e4
        walked = impact_bps(side(levels, direction), np.array([50.0]), amount)[0]
        assert walked == pytest.approx(expected, nan_ok=True, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("bps", "asked", "expected"),
    [
        (100, None, 99.0 * 2),  # 99 lies on the border
        (250, None, 99.0 * 2 + 98.0),
        (500, None, math.nan),  # the last level lies inside, and the book may go on
        (500, 3, math.nan),
        (500, 4, 99.0 * 2 + 98.0 + 95.0 * 4),  # fewer came than were asked for: there are no more
    ],
)
def test_depth_is_known_as_far_as_the_book_reaches(bps: float, asked: int | None, expected: float) -> None:
    found = depth_quote(side(BIDS, -1), np.array([100.0]), bps, asked)[0]
    assert found == pytest.approx(expected, nan_ok=True)


def test_imbalance_is_missing_where_a_side_is_or_both_are_nothing() -> None:
    found = imbalance_frac(np.array([3.0, 0.0, 0.0, np.nan]), np.array([1.0, 2.0, 0.0, 1.0]))
    assert found[:2].tolist() == [0.5, -1.0]
    assert np.isnan(found[2:]).all()


# --- status


def statuses(levels: pd.DataFrame, **more: object) -> list[str]:
    return summary(levels, **more)["status"].tolist()  # ty: ignore[invalid-argument-type]


def test_books_that_lack_a_side_or_cross_say_so() -> None:
    given = many(
        snapshot(0, asks=[]),
        snapshot(1, bids=[]),
        snapshot(2, bids=[(101.0, 1.0)]),
        snapshot(3, bids=[(102.0, 1.0), (101.0, 1.0)]),
    )
    rows = summary(given)
    assert rows["status"].tolist() == ["one_sided", "one_sided", "crossed", "crossed"]
    assert rows["mid"].isna().tolist() == [True, True, False, False]
    assert rows["spread_bps"].tolist()[2:] == [0.0, pytest.approx(-1 / 101.5 * 1e4)]
    assert rows["gap_quote"].tolist()[2:] == [0.0, 0.0]
    assert rows["best_bid"].isna().tolist() == [False, True, False, False]


def test_a_book_without_levels_has_a_row_that_says_so() -> None:
    heads, _ = books_of(snapshot(0, number=4))
    empty = heads.assign(ts=heads["ts"] + MINUTE, symbol="ETH/USDT")
    for levels in (snapshot(0, number=4), snapshot(0).iloc[:0]):
        rows = summary(levels, empty)
        assert rows["status"].tolist()[-1] == "empty"
        numbers = rows.iloc[-1].drop(["venue", "symbol", "ts", "known_at", "status", "last_update_id"])
        assert (numbers["n_bids"], numbers["n_asks"]) == (0, 0)
        assert numbers.drop(["n_bids", "n_asks"]).isna().all()


def test_a_number_below_an_earlier_one_is_out_of_sequence() -> None:
    numbers = [5, 9, 8, 9, None, 7, 10]
    given = many(
        *(snapshot(n, bids=[(99.0 - n / 100, 1.0)], number=number) for n, number in enumerate(numbers)),
        *(snapshot(n, bids=[(99.0 - n / 100, 1.0)], number=1, symbol="ETH/USDT") for n in range(2)),
    )
    assert statuses(given) == ["ok", "ok", "out_of_sequence", "ok", "ok", "out_of_sequence", "ok", "ok", "ok"]
    assert statuses(given, look_back=2 * MINUTE)[5] == "out_of_sequence", "9 is two minutes old"
    assert statuses(given, look_back=1.5 * MINUTE)[5] == "ok"


@pytest.mark.parametrize("same_number", [True, False], ids=["same number", "same levels"])
def test_a_book_that_stays_the_same_for_too_long_is_stale(same_number: bool) -> None:
    def at(minute: float, version: int) -> pd.DataFrame:
        if same_number:
            return snapshot(minute, bids=[(99.0 - minute / 1000, 1.0)], number=version)
        return snapshot(minute, bids=[(99.0 - version, 1.0)], number=int(minute))

    given = many(*(at(minute, 1) for minute in (0, 5, 10, 10.5, 20)), at(21, 2), at(31, 2), at(31.5, 2))
    expected = ["ok", "ok", "ok", "stale", "stale", "ok", "ok", "stale"]
    assert statuses(given) == expected
    assert statuses(given, stale_after=30 * MINUTE) == ["ok"] * 8


def test_an_amount_or_a_level_that_changes_makes_a_book_another() -> None:
    same = [snapshot(minute) for minute in (0, 11, 22)]
    assert statuses(many(*same)) == ["ok", "stale", "stale"]
    for other in ([*BIDS[:2], (95.0, 4.5)], BIDS[:2], [(99.0, 2.0), (98.5, 1.0), (95.0, 4.0)]):
        assert statuses(many(same[0], snapshot(11, bids=other), same[2])) == ["ok"] * 3


def test_two_markets_are_compared_each_with_itself() -> None:
    given = many(*(snapshot(minute, symbol=symbol) for symbol in ("A/USDT", "B/USDT") for minute in (0, 20)))
    assert statuses(given) == ["ok", "stale", "ok", "stale"]


def random_history(seed: int, n: int = 40) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    frames, number, version = [], 100, 0
    for minute in np.cumsum(random.integers(1, 12, n)):
        if random.random() < 0.5:
            version, number = version + 1, number + int(random.integers(-3, 9))
        bids = [(90.0 + version % 7, 1.0), (80.0, float(random.integers(1, 3)))]
        frames.append(snapshot(float(minute), bids=bids, number=number))
    return many(*frames)


@pytest.mark.parametrize("seed", range(5))
def test_an_hour_with_the_hour_before_it_says_what_the_whole_history_says(seed: int) -> None:
    history = random_history(seed)
    whole = summary(history)
    assert set(whole["status"]) == {"ok", "out_of_sequence", "stale"}
    for hour in range(6):
        start = NOON + timedelta(hours=hour)
        chunk = history[
            (history["ts"] >= start - timedelta(hours=1)) & (history["ts"] < start + timedelta(hours=1))
        ]
        found = summary(chunk)
        inside = found[found["ts"] >= start].reset_index(drop=True)
        expected = whole[(whole["ts"] >= start) & (whole["ts"] < start + timedelta(hours=1))]
        pd.testing.assert_frame_equal(inside, expected.reset_index(drop=True))


def test_every_measure_of_the_contract_is_told_in_a_deep_book() -> None:
    bids = [(1000.0 - n / 10, 50.0) for n in range(1, 200)]
    asks = [(1000.0 + n / 10, 50.0) for n in range(1, 200)]
    row = one(snapshot(bids=bids, asks=asks, number=1))
    assert not row.isna().any()
    for n in DENSITY_BINS:
        assert row[f"bid_density_{n}_bins_base"] == pytest.approx(50.0)
    for bps in DEPTH_BPS:
        n_levels = bps  # one level a basis point
        expected = sum(50 * (1000 + n / 10) for n in range(1, n_levels + 1))
        assert row[f"ask_depth_{bps}_bps_quote"] == pytest.approx(expected)
        assert -0.02 < row[f"imbalance_{bps}_bps_frac"] < 0
    impacts = [row[f"buy_impact_{amount}_quote_bps"] for amount in IMPACT_QUOTE]
    assert impacts == sorted(impacts)
    assert impacts[0] == pytest.approx(1.0)
