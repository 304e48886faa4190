from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
import talib

from crypto_assets.quant import kernels
from crypto_assets_tests.quant.generators.sets import (
    LISTINGS,
    assert_every_run_gives_the_same_bits,
    assert_first_values_are_where_the_warm_up_ends,
    set_of,
    values_of,
)
from crypto_assets_tests.quant.rasters import DAY, HOUR, START, Listing, random_raster, raster_of
from crypto_assets_tests.recorded import RECORDED, needs_recorded

#: What the shipped model is fitted on.
PRICE_ACTION = (
    {"function": "log_return", "windows": ["1h", "4h", "24h", "72h", "168h"]},
    {"function": "range_frac", "windows": "24h"},
    {"function": "position_frac", "windows": ["24h", "168h"]},
    {"function": "volume_ratio", "windows": "24h", "base": "168h"},
)
AVERAGES = (
    {"function": "rolling_std", "windows": ["24h", "168h"]},
    {"function": "ema_distance", "windows": ["12h", "48h"]},
    {"function": "rsi", "windows": "14h"},
    {"function": "atr_frac", "windows": "14h"},
    {"function": "taker_buy_frac", "windows": "24h"},
)
#: Deep Alpha's calculators with its defaults, ATR with a window and OBV over one.
DEEP_ALPHA = (
    {"function": "log_return", "windows": [1, 2, 3, 5, 10, 20, 40, 60]},
    {"function": "ema", "windows": [9, 12, 21]},
    {"function": "return_ema", "windows": [10, 21]},
    {"function": "rolling_std", "windows": [20, 50]},
    {"function": "rsi", "windows": [7, 14]},
    {"function": "macd"},
    {"function": "atr"},
    {"function": "bollinger"},
    {"function": "rolling_sum", "windows": [10, 20]},
    {"function": "rolling_sum", "windows": [10], "column": "turnover_quote"},
    {"function": "obv", "windows": [50]},
)


def entries(*wanted: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"generator": "indicators", **entry} for entry in wanted]


def values(rows: pd.DataFrame, **options: Any) -> pd.DataFrame:
    return values_of(rows, *entries(options)).iloc[:, 3:]


def prices(n_bars: int = 900) -> pd.DataFrame:
    return random_raster(n_bars, ["AAA/USDT"], seed=8)


def test_volatility_and_taker_share_by_hand() -> None:
    close = [100.0 * (1.01 if k % 2 else 1.0) for k in range(200)]
    rows = raster_of({"close": close, "volume_base": [2.0] * 200, "taker_buy_base": [0.5] * 200})
    last = values_of(rows, *entries(*AVERAGES)).iloc[-1]
    moves = np.log(1.01) * np.array([1.0, -1.0] * 84)
    assert last["volatility_24h_log"] == pytest.approx(moves[:24].std(ddof=1), rel=1e-12)
    assert last["volatility_168h_log"] == pytest.approx(moves.std(ddof=1), rel=1e-12)
    assert last["taker_buy_24h_frac"] == 0.25


def test_a_row_without_a_bar_is_none_and_a_gap_has_no_return() -> None:
    rows = random_raster(800, [Listing("AAA/USDT", gaps=((790, 792),))], seed=8)
    made = values_of(rows, *entries(*AVERAGES)).iloc[:, 3:]
    assert len(made) == 798
    back = rows["ts"].iloc[792]
    assert made.loc[back, ["rsi_14h", "atr_14h_frac", "volatility_24h_log"]].isna().all()
    assert made.loc[back + HOUR].notna().all()


def test_unknown_volumes_leave_only_their_own_feature_missing() -> None:
    last = values_of(prices(800).assign(taker_buy_base=None), *entries(*AVERAGES)).iloc[-1]
    assert np.isnan(last["taker_buy_24h_frac"])
    assert last.drop(["taker_buy_24h_frac"]).notna().all()


def test_a_window_in_hours_counts_twice_as_many_half_hour_bars() -> None:
    half = HOUR / 2
    rows = random_raster(400, ["AAA/USDT"], bar=half)
    made = values_of(rows, *entries({"function": "rolling_std", "windows": "24h"}), bar=half)
    returns = rows["close"].apply(np.log).diff()
    assert made["volatility_24h_log"].iloc[-1] == pytest.approx(returns.iloc[-48:].std(), rel=1e-10)


def test_returns_ranges_and_volumes_are_those_of_pandas() -> None:
    rows = random_raster(400, ["AAA/USDT"], seed=4, missing_share=0.45)
    made = values_of(rows, *entries(*PRICE_ACTION))
    bars = rows.set_index("ts")
    close, high, low, volume = (bars[name].astype(float) for name in ("close", "high", "low", "volume_base"))
    expected = pd.DataFrame({f"return_{w}h_log": np.log(close / close.shift(w)) for w in (1, 4, 24, 72, 168)})
    highest, lowest = (
        {w: getattr(side.rolling(w, min_periods=w // 2), what)() for w in (24, 168)}
        for side, what in ((high, "max"), (low, "min"))
    )
    expected["range_24h_frac"] = (highest[24] - lowest[24]) / close
    for w in (24, 168):
        expected[f"position_{w}h_frac"] = (close - lowest[w]) / (highest[w] - lowest[w])
    sums = {w: volume.rolling(w, min_periods=w // 2).sum() for w in (24, 168)}
    expected["volume_ratio_24h"] = sums[24] / sums[168] * 7
    expected = expected[rows["has_bar"].to_numpy()]
    # The holes must bring some windows below half, or their rule is not tried.
    assert 0 < expected["range_24h_frac"].isna().iloc[40:].sum() < 100
    for name in expected.columns:
        np.testing.assert_allclose(made[name], expected[name], rtol=1e-9, err_msg=name)


def test_a_return_needs_the_bar_at_exactly_the_earlier_moment() -> None:
    made = values(raster_of({"close": [1.0, 2.0, None, 8.0, 4.0]}), function="log_return", windows=[1, 2])
    assert made["return_1_log"].tolist() == pytest.approx(
        [np.nan, np.log(2), np.nan, -np.log(2)], nan_ok=True
    )
    assert made["return_2_log"].tolist() == pytest.approx([np.nan, np.nan, np.log(4), np.nan], nan_ok=True)


def test_hand_made_ranges_sums_and_shares() -> None:
    rows = raster_of(
        {
            "close": [10.0, 12.0, None, 11.0],
            "high": [11.0, 13.0, None, 12.0],
            "low": [9.0, 11.0, None, 10.0],
            "volume_base": [4.0, 2.0, None, 6.0],
            "taker_buy_base": [1.0, 2.0, None, 3.0],
        }
    )
    assert values(rows, function="range_frac", windows=4)["range_4_frac"].tolist() == pytest.approx(
        [np.nan, 4 / 12, 4 / 11], nan_ok=True
    )
    assert values(rows, function="position_frac", windows=4)["position_4_frac"].iloc[-1] == 0.5
    assert values(rows, function="rolling_sum", windows=2)["volume_base_sum_2"].tolist() == [4.0, 6.0, 6.0]
    assert values(rows, function="taker_buy_frac", windows=4)["taker_buy_4_frac"].iloc[-1] == 0.5
    ratio = values(rows, function="volume_ratio", windows=2, base=4)["volume_ratio_2"]
    assert ratio.tolist() == pytest.approx([np.nan, 2.0, 1.0], nan_ok=True)
    # The change over the missing bar is unknown, so it adds nothing to the balance.
    assert np.isnan(values(rows, function="obv", windows=4)["obv_4_base"].iloc[-1])
    assert values(rows, function="obv", windows=2)["obv_2_base"].iloc[1] == 2.0


def test_a_flat_market_has_no_position_and_no_strength() -> None:
    rows = raster_of({"close": [5.0] * 60})
    assert values(rows, function="position_frac", windows=6).isna().to_numpy().all()
    assert values(rows, function="rsi", windows=2).isna().to_numpy().all()
    assert values(rows, function="range_frac", windows=6).iloc[-1].tolist() == [0.0]
    assert values(rows, function="bollinger", windows=6).iloc[-1].tolist() == [5.0, 5.0, 5.0]
    assert values(rows, function="rolling_std", windows=6).iloc[-1].tolist() == [0.0]
    assert values(rows, function="ema_distance", windows=2).iloc[-1].tolist() == [0.0]


#: Options of an entry -> what TA-Lib gives for close, high, low, by column.
TA_LIB = [
    ({"function": "rsi", "windows": [7, 14]}, {
        "rsi_7": lambda c, h, lo: talib.RSI(c, 7), "rsi_14": lambda c, h, lo: talib.RSI(c, 14),
    }),
    ({"function": "atr"}, {"atr_14": lambda c, h, lo: talib.ATR(h, lo, c, 14)}),
    ({"function": "atr_frac", "windows": 5}, {"atr_5_frac": lambda c, h, lo: talib.NATR(h, lo, c, 5) / 100}),
    ({"function": "ema", "windows": [9, 26]}, {
        "close_ema_9": lambda c, h, lo: talib.EMA(c, 9), "close_ema_26": lambda c, h, lo: talib.EMA(c, 26),
    }),
    ({"function": "macd"}, {
        "close_macd_12_26_9": lambda c, h, lo: talib.MACD(c)[0],
        "close_macd_signal_12_26_9": lambda c, h, lo: talib.MACD(c)[1],
        "close_macd_hist_12_26_9": lambda c, h, lo: talib.MACD(c)[2],
    }),
    ({"function": "macd", "fast": 5, "slow": "12h", "signal": 4}, {
        "close_macd_5_12h_4": lambda c, h, lo: talib.MACD(c, 5, 12, 4)[0],
        "close_macd_signal_5_12h_4": lambda c, h, lo: talib.MACD(c, 5, 12, 4)[1],
        "close_macd_hist_5_12h_4": lambda c, h, lo: talib.MACD(c, 5, 12, 4)[2],
    }),
    ({"function": "bollinger", "down": 3.0}, {
        "close_bollinger_upper_20": lambda c, h, lo: talib.BBANDS(c, 20, 2, 3)[0],
        "close_bollinger_middle_20": lambda c, h, lo: talib.BBANDS(c, 20, 2, 3)[1],
        "close_bollinger_lower_20": lambda c, h, lo: talib.BBANDS(c, 20, 2, 3)[2],
    }),
]  # fmt: skip


@pytest.mark.parametrize(("options", "expected"), TA_LIB)
def test_after_warm_up_indicators_are_those_of_ta_lib(
    options: dict[str, Any], expected: dict[str, Any]
) -> None:
    rows = prices()
    made = values(rows, **options)
    assert list(made.columns) == list(expected)
    close, high, low = (rows[name].to_numpy() for name in ("close", "high", "low"))
    warm_up = {feature.name: feature.warm_up for feature in set_of(*entries(options)).features}
    for name, oracle in expected.items():
        start = max(warm_up[name], 19)
        right = oracle(close, high, low)[start:]
        assert len(right) > 500
        assert np.isfinite(right).all()
        # A difference of averages carries the error of the prices it is made of.
        error = 1e-9 * close.max() if "macd" in name else 1e-8
        np.testing.assert_allclose(made[name].to_numpy()[start:], right, rtol=1e-8, atol=error, err_msg=name)


def test_a_balance_of_volume_is_the_change_of_ta_libs_over_the_window() -> None:
    rows = prices(200)
    whole = pd.Series(talib.OBV(rows["close"].to_numpy(), rows["volume_base"].to_numpy()))
    made = values(rows, function="obv", windows=30)["obv_30_base"].to_numpy()
    np.testing.assert_allclose(made[30:], (whole - whole.shift(30))[30:], atol=1e-9)


def recorded(name: str, **columns: str) -> pd.DataFrame:
    frame = pd.read_csv(RECORDED / "ref_indicators" / "ta" / f"cs-{name}.csv", skipinitialspace=True)
    return frame.rename(columns={theirs: ours for ours, theirs in columns.items()})


def rows_of(frame: pd.DataFrame) -> pd.DataFrame:
    columns = [name for name in ("close", "high", "low", "volume_base") if name in frame]
    filled = frame[columns].astype(float).fillna(0.0)
    return raster_of({name: filled[name].tolist() for name in columns})


@needs_recorded
def test_published_bollinger_bands_are_met() -> None:
    frame = recorded("bbands", close="Close")
    made = values(rows_of(frame), function="bollinger")
    for name, theirs in (("upper", "HighBand"), ("middle", "MiddleBand"), ("lower", "LowBand")):
        ours = made[f"close_bollinger_{name}_20"].to_numpy()[19:]
        assert len(ours) == 23
        np.testing.assert_allclose(ours, frame[theirs][19:], atol=1.5e-6)


@needs_recorded
def test_published_balances_of_volume_are_met() -> None:
    frame = recorded("obv", close="Close", volume_base="Volume")
    made = values(rows_of(frame), function="obv", windows=30)["obv_30_base"].to_numpy()
    # Over 30 bars the balance of a recording of 30 rows is that since its beginning.
    assert made[15:].tolist() == frame["OBV"][15:].tolist()


@needs_recorded
def test_published_true_ranges_smoothed_as_wilder_did_are_met() -> None:
    frame = recorded("adx", close="Close", high="High", low="Low")
    made = values(rows_of(frame), function="atr")["atr_14"].to_numpy()
    # The recording prints the smoothed sum, which is 14 averages, to seven digits.
    assert np.isfinite(made).sum() == len(frame) - 280
    np.testing.assert_allclose(made[280:], frame["TR14"].to_numpy(dtype=float)[280:] / 14.0, atol=1e-7)


@needs_recorded
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rsi", {"function": "rsi"}),
        ("atr", {"function": "atr"}),
        ("atr2", {"function": "atr", "windows": 10}),
        ("macd", {"function": "macd"}),
        ("macd", {"function": "ema", "windows": 26}),
        ("ppo", {"function": "ema", "windows": 26}),
    ],
)
def test_recordings_shorter_than_a_warm_up_have_no_values(name: str, options: dict[str, Any]) -> None:
    # Their first rows are seeded, and what is printed still carries the seed: 26 rows into an EMA of span 26 it weighs
    # 14 %. Ours begin where 1e-9 of it is left, so these recordings have nothing to say about them.
    frame = recorded(name, close="Close", high="High", low="Low")
    made = set_of(*entries(options))
    assert len(frame) <= min(feature.warm_up for feature in made.features)
    assert values(rows_of(frame), **options).isna().to_numpy().all()


def test_another_column_is_named_in_front() -> None:
    made = set_of(*entries(
        {"function": "log_return", "windows": 3, "column": "futures_close"},
        {"function": "ema", "windows": 3, "column": "open"},
        {"function": "rolling_sum", "windows": 3, "column": "n_trades"},
        {"function": "volume_ratio", "windows": 3, "base": 6, "column": "turnover_quote"},
    )).features  # fmt: skip
    assert [(feature.name, feature.unit, feature.inputs) for feature in made] == [
        ("futures_close_return_3_log", "log", ("futures_close",)),
        ("open_ema_3", "quote", ("open",)),
        ("n_trades_sum_3", "n", ("n_trades",)),
        ("turnover_quote_volume_ratio_3", "1", ("turnover_quote",)),
    ]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"function": "rsy"}, "no function rsy; allowed: log_return, ema"),
        ({"function": "log_return"}, "log_return needs windows"),
        ({"function": "volume_ratio", "windows": 24}, "needs a base window"),
        ({"function": "volume_ratio", "windows": "24h", "base": 24}, "base window 24 must be longer"),
        ({"function": "rsi", "windows": 1}, "at least 2 bars; 1 has 1"),
        ({"function": "rsi", "windows": ["20m"]}, "no multiple of the bar"),
        (
            {"function": "macd", "windows": 3},
            "macd takes no windows; allowed: column, fast, slow, signal, names",
        ),
        ({"function": "macd", "fast": 26}, "fast 26 must be shorter than slow 26"),
        ({"function": "atr", "column": "open"}, "atr takes no column"),
        ({"function": "rsi", "up": 2}, "rsi takes no up"),
        ({"function": "bollinger", "up": 0}, "up"),
        ({"function": "ema", "windows": 3, "column": "middle"}, "there is no column middle"),
        ({"function": "ema", "windows": [3, 3]}, "two columns are named close_ema_3"),
        ({"function": "bollinger", "names": "band"}, "1 names for 3 columns"),
        ({"function": "rsi", "window": 3}, "window"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused_with_the_reason(
    options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        _ = set_of(*entries(options)).features


def test_two_bases_of_one_ratio_collide_by_name_and_differ_in_meaning() -> None:
    ratio = {"function": "volume_ratio", "windows": "24h", "base": "72h"}
    other = ratio | {"base": "168h"}
    with pytest.raises(
        ValueError, match=r"entry 1 \(indicators\): volume_ratio_24h is made by entry 0 already; give one"
    ):
        _ = set_of(*entries(ratio, other)).features
    made = set_of(*entries(ratio, other | {"names": "volume_to_a_week"})).features
    assert [feature.meaning.split("over ")[-1] for feature in made] == ["72h, per bar", "168h, per bar"]


def test_every_run_gives_the_same_bits() -> None:
    rows = random_raster(900, LISTINGS, seed=9, missing_share=0.03)
    made = set_of(*entries(*PRICE_ACTION[1:], *AVERAGES, *DEEP_ALPHA))
    assert_every_run_gives_the_same_bits(made, rows, START + 30 * DAY)


def test_first_values_are_where_the_warm_up_ends() -> None:
    made = set_of(*entries(*PRICE_ACTION[1:], *AVERAGES, *DEEP_ALPHA))
    assert_first_values_are_where_the_warm_up_ends(made, prices())


@pytest.mark.parametrize("window", [2, 7, 14])
def test_no_rounding_takes_the_rsi_out_of_its_bounds(window: int) -> None:
    made = set_of(*entries({"function": "rsi", "windows": window}))
    (feature,) = made.features
    assert feature.bounds == (0.0, 100.0)
    for step in np.geomspace(1e-6, 1e3, 40):
        # Rising only, then falling only, then both at once.
        moves = np.concatenate([np.full(320, step), np.full(320, -step), step * np.tile([1.0, -0.3], 40)])
        closes = 1e6 + np.cumsum(moves * np.linspace(1.0, 1.7, len(moves)))
        made_of = made.compute(raster_of({"close": closes.tolist()}))[feature.name].dropna()
        assert made_of.max() == 100.0
        assert made_of.min() >= 0.0


QUARTER = timedelta(minutes=15)
#: Fifteen hours without a bar, and nearly two days, the longest pause that changes of prices survive.
PAUSED = (Listing("AAA/USDT", gaps=((700, 760), (1400, 1591))), Listing("BBB/USDT", first=70))


def test_a_pause_of_hours_makes_one_hole_in_averages_of_minutes() -> None:
    made = set_of(*entries({"function": "ema", "windows": [5, 48]}, {"function": "rsi"}), bar=QUARTER)
    rows = random_raster(2200, PAUSED[:1], seed=3, bar=QUARTER)
    values = made.compute(rows)
    for feature in made.features:
        # Missing before the warm-up, and after a pause until half of the weight is there again.
        told = values[feature.name].notna().to_numpy()
        begins, ends = (int((told[1:] & ~told[:-1]).sum()), int((~told[1:] & told[:-1]).sum()))
        assert (begins, ends) == (3, 2), feature.name
    assert values["close_ema_5"].iloc[700:].isna().sum() == 2


def test_every_run_gives_the_same_bits_on_bars_of_minutes() -> None:
    rows = random_raster(2100, PAUSED, seed=5, missing_share=0.03, bar=QUARTER)
    made = set_of(
        *entries({"function": "ema", "windows": 5}, {"function": "rsi", "windows": 7}, {"function": "atr"}),
        bar=QUARTER,
    )
    by_name = {feature.name: feature for feature in made.features}
    assert by_name["close_ema_5"].lookback == kernels.average_bars(2 / 6) - 1 + 192
    # The day after the first pause, and the one in which the second ends.
    for day in (START + 8 * DAY, START + 16 * DAY):
        assert_every_run_gives_the_same_bits(made, rows, day)
