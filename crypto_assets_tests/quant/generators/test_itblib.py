"""The kline set: columns, a worked example, pandas as the oracle, gaps, flat prices, and the same bits in any chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from crypto_assets.quant.feature_sets import BAR_COLUMNS, FeatureSet
from crypto_assets.quant.generators import entry_of
from crypto_assets.quant.generators.declared import Feature, Grid
from crypto_assets_tests.quant.generators.sets import LISTINGS, assert_every_run_gives_the_same_bits
from crypto_assets_tests.quant.rasters import (
    DAY,
    HOUR,
    START,
    Listing,
    assert_same_bits,
    random_raster,
    raster_of,
)

MINUTE = timedelta(minutes=1)
EVERYTHING = (
    "close",
    "close_std",
    "volume",
    "span",
    "trades",
    "tb_base",
    "tb_quote",
    "close_area",
    "close_trend",
    "volume_trend",
)
SMALL: dict[str, Any] = {
    "base_window": 24,
    "windows": [1, 3, "6h", 36],
    "area_windows": [3, "12h"],
    "functions": EVERYTHING,
}
GAPS = (
    Listing("AAA/USDT", gaps=((30, 31), (50, 57), (90, 113))),
    Listing("BBB/USDT", first=11, last=130, gaps=((60, 61),)),
)


def a_set(bar: timedelta = HOUR, **options: Any) -> FeatureSet:
    entry = entry_of({"generator": "itblib", **options})
    return FeatureSet("klines", Grid(bar, BAR_COLUMNS), (entry,))


def some_rows(n_bars: int = 168, listings: Sequence[Listing | str] = GAPS) -> pd.DataFrame:
    rows = random_raster(n_bars, listings, missing_share=0.1, seed=5)
    rows["taker_buy_quote"] = rows["taker_buy_base"] * rows["close"] * 1.001
    idle = np.random.default_rng(7).random(len(rows)) < 0.15
    amounts = ["volume_base", "turnover_quote", "n_trades", "taker_buy_base", "taker_buy_quote"]
    rows.loc[idle & rows["has_bar"], amounts] = 0.0
    return rows


def hand_made(**columns: list[float | None]) -> pd.DataFrame:
    return raster_of({"close": columns.pop("close"), **columns})


def by_hand(rows: pd.DataFrame, feature: Feature) -> pd.Series:
    """One column of one listing in pandas: missing bars left out, half of a window needed, no value without a bar."""
    told = dict(feature.parameters)
    full = pd.date_range(rows["ts"].min(), rows["ts"].max(), freq="1h")
    bars = rows.set_index("ts").reindex(full)
    close, volume, trades = bars["close"], bars["volume_base"], bars["n_trades"]
    traded = volume
    if told["use_differences"]:
        close, volume, trades = (
            100 * (x - x.shift(1)) / x.shift(1).where(x.shift(1) > 0) for x in (close, volume, trades)
        )

    def rolled(x: pd.Series, n: int) -> Any:
        return x.rolling(n, min_periods=max(1, n // 2))

    def share(part: str, whole: str) -> pd.Series:
        return bars[part] / bars[whole].where(bars[whole] > 0)

    def slope(values: np.ndarray) -> float:
        there = ~np.isnan(values)
        places = np.arange(len(values))[there]
        return stats.linregress(places, values[there])[0] if there.sum() > 1 else np.nan

    def area(values: np.ndarray) -> float:
        away = values - values[-1]
        size = np.nansum(np.abs(away))
        return np.nansum(away) / size if size > 0 else np.nan

    def mean_price(n: int) -> pd.Series:
        weight = traded.where(close.notna())
        return rolled(close * weight, n).mean() / rolled(weight, n).mean()

    known: dict[str, tuple[pd.Series, Callable[[int], pd.Series]]] = {
        "close": (close, mean_price),
        "close_std": (close, lambda n: rolled(close, n).apply(np.nanstd, raw=True)),
        "volume": (volume, lambda n: rolled(volume, n).mean()),
        "span": (bars["high"], lambda n: rolled(bars["high"] - bars["low"], n).mean()),
        "trades": (trades, lambda n: rolled(trades, n).mean()),
        "tb_base": (traded, lambda n: rolled(share("taker_buy_base", "volume_base"), n).mean()),
        "tb_quote": (traded, lambda n: rolled(share("taker_buy_quote", "turnover_quote"), n).mean()),
        "close_area": (close, lambda n: rolled(close, n).apply(area, raw=True)),
        "close_trend": (close, lambda n: rolled(close, n).apply(slope, raw=True)),
        "volume_trend": (volume, lambda n: rolled(volume, n).apply(slope, raw=True)),
    }
    own, aggregate = known[told["function"]]
    grid = Grid(HOUR, {})
    result = aggregate(grid.bars(told["window"]))
    if "base_window" in told:
        base = aggregate(grid.bars(told["base_window"]))
        # A sum of zeros that is not exactly zero is pandas' own rounding.
        result = 100 * (result - base) / base.where(base.abs() > 1e-12)
    return result.where(own.notna() & np.isfinite(result))


def test_the_spot_set_has_the_51_columns_of_the_seed() -> None:
    names = [feature.name for feature in a_set(MINUTE).features]
    windows = (1, 5, 15, 60, 180, 720)
    expected = [f"close_{n}_pct" for n in windows] + [f"close_std_{n}_pct" for n in windows[1:]]
    for function in ("volume", "span", "trades", "tb_base", "tb_quote"):
        expected += [f"{function}_{n}_pct" for n in windows]
    expected += [f"close_area_{n}" for n in (60, 120, 180, 300, 720)]
    expected += [f"close_trend_{n}" for n in windows[1:]]
    assert names == expected
    assert len(names) == 51


def test_the_set_of_the_contract_has_38_columns_of_its_own_names_and_inputs() -> None:
    declared = a_set(MINUTE, prefix="futures_").features
    assert len(declared) == 38
    assert all(feature.name.startswith("futures_") for feature in declared)
    assert {column for feature in declared for column in feature.inputs} == {
        f"futures_{name}" for name in ("close", "high", "low", "volume_base", "n_trades")
    }
    assert max(feature.lookback for feature in declared) == 359


def test_the_columns_of_the_contract_are_computed_like_those_of_spot() -> None:
    rows = some_rows()
    options: dict[str, Any] = {"base_window": 24, "windows": [3, 6], "area_windows": [6]}
    options["functions"] = ["close", "span"]
    inputs = ["close", "high", "low", "volume_base"]
    futures = rows.drop(columns=inputs).join(rows[inputs].add_prefix("futures_"))
    spot, contract = a_set(**options), a_set(**options, prefix="futures_")
    names = {f"futures_{feature.name}": feature.name for feature in spot.features}
    assert_same_bits(contract.compute(futures).rename(columns=names), spot.compute(rows))


def test_a_hand_made_example() -> None:
    rows = hand_made(
        close=[10.0, 20.0, 40.0, 30.0],
        volume_base=[1.0, 1.0, 2.0, 4.0],
        high=[11.0, 22.0, 44.0, 32.0],
        low=[9.0, 18.0, 40.0, 30.0],
        n_trades=[1.0, 3.0, 5.0, 7.0],
        taker_buy_base=[0.5, 0.0, 2.0, 1.0],
    )
    made = a_set(base_window=4, windows=[1, 2], area_windows=[4], functions=EVERYTHING[:6] + EVERYTHING[7:])
    last = made.compute(rows).iloc[-1]
    expected = {
        # Weighted mean of all four: (10 + 20 + 80 + 120) / 8 = 28.75; of the last two: 200 / 6.
        "close_1_pct": 100 * (30 - 28.75) / 28.75,
        "close_2_pct": 100 * (200 / 6 - 28.75) / 28.75,
        # Variances: 5 squared of the last two, 125 of all.
        "close_std_2_pct": 100 * (5 / 125**0.5 - 1),
        "volume_1_pct": 100.0,
        "volume_2_pct": 50.0,
        # Spans 2, 4, 4, 2.
        "span_1_pct": 100 * (2 - 3) / 3,
        "span_2_pct": 0.0,
        "trades_1_pct": 75.0,
        "trades_2_pct": 50.0,
        # Shares 0.5, 0, 1, 0.25.
        "tb_base_1_pct": 100 * (0.25 - 0.4375) / 0.4375,
        "tb_base_2_pct": 100 * (0.625 - 0.4375) / 0.4375,
        # Distances -20, -10, 10.
        "close_area_4": -0.5,
        "close_trend_2": -10.0,
        "volume_trend_2": 2.0,
    }
    assert list(expected) == [feature.name for feature in made.features]
    for name, value in expected.items():
        assert last[name] == pytest.approx(value, rel=1e-12, abs=1e-12), name


@pytest.mark.parametrize("use_differences", [False, True])
def test_every_column_agrees_with_pandas_over_gaps_idle_bars_and_two_listings(use_differences: bool) -> None:
    rows, made = some_rows(), a_set(**SMALL, use_differences=use_differences)
    computed = made.compute(rows)
    assert set(computed["listing_id"]) == {"AAA/USDT#1", "BBB/USDT#1"}
    for listing, ours in computed.groupby("listing_id"):
        for feature in made.features:
            right = by_hand(rows[rows["listing_id"] == listing], feature).reindex(ours["ts"]).to_numpy()
            assert np.isfinite(right).sum() > 30, feature.name
            np.testing.assert_allclose(
                ours[feature.name].to_numpy(), right, rtol=1e-9, atol=1e-9, err_msg=feature.name
            )


@pytest.mark.parametrize("use_differences", [False, True])
def test_every_run_gives_the_same_bits(use_differences: bool) -> None:
    made = a_set(**SMALL, use_differences=use_differences)
    assert made.lookback == (36 if use_differences else 35) * HOUR
    assert_every_run_gives_the_same_bits(made, some_rows(400, listings=LISTINGS), START + 12 * DAY)


@pytest.mark.parametrize("use_differences", [False, True])
def test_lookback_and_warm_up_are_exact(use_differences: bool) -> None:
    rows = random_raster(60, ["AAA/USDT"], seed=3)
    rows["taker_buy_quote"] = rows["taker_buy_base"] * rows["close"]
    made = a_set(**SMALL, use_differences=use_differences)
    values = made.compute(rows)

    def moves(rows: pd.DataFrame, feature: Feature, distance: int, factor: float) -> bool:
        other = rows.copy()
        values_of_column = other[feature.inputs[0]].to_numpy(copy=True)
        values_of_column[len(rows) - 1 - distance] *= factor
        other[feature.inputs[0]] = values_of_column
        return made.compute(other)[feature.name].iloc[-1] != values[feature.name].iloc[-1]

    for feature in made.features:
        present = values[feature.name].notna().to_numpy()
        assert not present[: feature.warm_up].any(), feature.name
        assert present[feature.warm_up :].all(), feature.name
        for distance, changes in ((feature.lookback, True), (feature.lookback + 1, False)):
            # An area may be 1 before and after, hence a change in both directions.
            moved = [moves(rows, feature, distance, factor) for factor in (1.7, 0.3)]
            assert any(moved) == changes, (feature.name, distance)


def test_a_market_that_stands_still_has_no_infinite_value() -> None:
    rows = hand_made(close=[7.3] * 40, volume_base=[0.0] * 20 + [3.0] * 20)
    made = a_set(base_window=10, windows=[1, 5], area_windows=[5], functions=EVERYTHING[:6] + EVERYTHING[7:])
    values = made.compute(rows).set_index("ts")
    assert not np.isinf(values[[feature.name for feature in made.features]].to_numpy()).any()
    assert values["close_std_5_pct"].isna().all()
    assert values["close_area_5"].isna().all()
    assert (values["close_trend_5"].iloc[4:] == 0.0).all()
    # Without volume there is no weighted mean, with it the mean of one price is that price.
    assert values["close_5_pct"].iloc[:20].isna().all()
    assert values["close_5_pct"].iloc[-10:].abs().max() < 1e-12


def test_a_bar_without_volume_has_the_share_of_the_others() -> None:
    rows = hand_made(
        close=[1.0] * 6,
        volume_base=[4.0, 4.0, 4.0, 4.0, 0.0, 4.0],
        taker_buy_base=[1.0, 1.0, 3.0, 3.0, 0.0, 1.0],
    )
    values = a_set(base_window=4, windows=[2], area_windows=[2], functions=["tb_base"]).compute(rows)
    expected = [np.nan, 0.0, 100 * (0.5 - 5 / 12) / (5 / 12), 50.0, 100 * (0.75 - 7 / 12) / (7 / 12)]
    assert values["tb_base_2_pct"].iloc[:5].to_numpy() == pytest.approx(expected, nan_ok=True)


def test_a_missing_bar_is_missing_and_no_change_crosses_it() -> None:
    rows = hand_made(close=[1.0, 2.0, None, 4.0, 5.0], volume_base=[1.0, 1.0, None, 1.0, 1.0])
    made = a_set(
        base_window=4, windows=[1, 2], area_windows=[2], functions=["close_trend"], use_differences=True
    )
    values = made.compute(rows)
    assert values["ts"].tolist() == [START + hour * HOUR for hour in (0, 1, 3, 4)]
    assert values["close_trend_2"].isna().all()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"functions": ["median"]}, "functions"),
        ({"functions": ["close", "close"]}, "names a function twice"),
        ({"functions": []}, "functions"),
        ({"windows": []}, "windows"),
        ({"windows": [0]}, "at least 1"),
        ({"windows": [60, "1h"]}, "the same 60 bars"),
        ({"windows": ["90s"]}, "no window"),
        ({"windows": [1440]}, "is the base_window"),
        ({"windows": [1]}, "close_std says nothing of 1"),
        ({"area_windows": [1, 5]}, "close_area says nothing of 1, 5"),
        ({"base_window": 1}, "at least two"),
        ({"prefix": "Futures_"}, "prefix"),
        ({"prefix": "mark_"}, "there is no column mark_close"),
        ({"base": 1440}, "base"),
        ({"use_differences": "perhaps"}, "use_differences"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused_with_the_reason(
    options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        _ = a_set(MINUTE, **options).features


def test_columns_are_described() -> None:
    made = a_set(MINUTE, windows=[60], area_windows=[60], use_differences=True)
    declared = {feature.name: feature for feature in made.features}
    assert declared["close_60_pct"].unit == "pct"
    assert declared["close_area_60"].unit == "frac"
    assert declared["close_area_60"].bounds == (-1.0, 1.0)
    assert declared["close_trend_60"].unit == "pct per bar"
    assert declared["close_60_pct"].lookback == 1440
    assert "base_window" in dict(declared["volume_60_pct"].parameters)
    assert all(feature.meaning for feature in declared.values())


def test_no_rows_make_empty_columns() -> None:
    made = a_set(**SMALL)
    empty = made.compute(some_rows(24).iloc[:0])
    assert empty.empty
    assert list(empty.columns[4:]) == [feature.name for feature in made.features]
