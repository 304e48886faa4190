"""The settings refuse what they cannot use, and say file, key, value and what is allowed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import date, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from crypto_assets.intervals import REBALANCE_PERIOD
from crypto_assets.quant import predictions
from crypto_assets.reserved import RESERVED_WORDS
from crypto_assets.resources.dbt import AGED_SOURCES
from crypto_assets.settings import (
    SYNTHETIC_QUOTE,
    SYNTHETIC_SYMBOLS,
    Parameters,
    SettingsError,
    load_settings,
)
from crypto_assets.simulation.synthetic import SyntheticWorld

SHIPPED = Path(__file__).resolve().parents[1] / "platform.yaml"
RAW: dict[str, Any] = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))


def copy_with(folder: Path, key: str, value: Any) -> Path:
    raw = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    *parents, last = key.split(".")
    at = raw
    for part in parents:
        at = at[int(part)] if isinstance(at, list) else at[part]
    at[last] = value
    path = folder / "platform.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def refusal(path: Path, **environment: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(path, environment)
    return str(caught.value)


# key set, value, words that the message must hold besides the file
BAD = {
    "unknown key": ("colour", "blue", ["colour = 'blue'", "unknown key", "universe", "worlds"]),
    "nested unknown key": ("costs.tax_bps", 3, ["costs.tax_bps = 3", "unknown key", "fee_bps, fill_wait"]),
    "unknown key in a list": ("models.0.trees", 3, ["models.0.trees = 3", "unknown key", "train_weeks"]),
    "wrong type": ("weights.train_weeks", "eight", ["weights.train_weeks = 'eight'", "valid integer"]),
    "out of bounds": ("portfolio.max_weight", 1.5, ["portfolio.max_weight = 1.5", "less than or equal to 1"]),
    "not a number": ("costs.fee_bps", float("nan"), ["costs.fee_bps = nan", "finite"]),
    "infinite": ("portfolio.delta", float("inf"), ["portfolio.delta = inf", "finite"]),
    "unknown base interval": (
        "base_interval",
        "7m",
        ["base_interval = '7m'", "unknown interval", "1m, 3m, 5m"],
    ),
    "unknown rollup": (
        "rollup_intervals",
        ["1h", "9h"],
        ["rollup_intervals", "unknown interval '9h'", "12h, 1d"],
    ),
    "rollup off the base": (
        "base_interval",
        "10m",
        ["rollup_intervals: 5m is not a multiple of base_interval 10m"],
    ),
    "weeks without days": (
        "rollup_intervals",
        ["1h", "4h", "1w"],
        ["rollup_intervals: 1w is made of 1d; name both"],
    ),
    "nothing is carried": (
        "raster.max_age.order_book",
        "0m",
        ["raster.max_age.order_book", "allowed: 1m to 30d"],
    ),
    "carried for a season": (
        "raster.max_age.market_cap",
        "31d",
        ["raster.max_age.market_cap", "744h", "30d"],
    ),
    "an age in words of two": (
        "raster.max_age.funding_rate",
        "8h30m",
        ["raster.max_age.funding_rate", "24h"],
    ),
    "a price older than its row": (
        "raster.max_age.contract",
        "61m",
        ["raster.max_age.contract: 61m is longer than a row", "up to raster_interval 1h"],
    ),
    "an age of nothing known": (
        "raster.max_age.news",
        "1h",
        ["raster.max_age.news", "contract, funding_rate, market_cap, open_interest, order_book"],
    ),
    "raster not rolled up": ("rollup_intervals", ["4h"], ["rollup_intervals: must contain", "1h"]),
    "raster not supported": ("raster_interval", "4h", ["raster_interval: 4h", "allowed: 1h"]),
    "foreign listing": (
        "listings",
        [{"symbol": "LUNA/USDT", "listing_id": "LUNA/USDT#1"}],
        ["listings: LUNA/USDT is not in the universe", "allowed: ADA/USDT, ARB/USDT, AVAX/USDT"],
    ),
    "foreign coin": ("coins", {"SHIB/USDT": "shiba-inu"}, ["coins: SHIB/USDT", "allowed: ADA/USDT"]),
    "symbol with quote": ("universe.symbols", ["BTC/USDT"], ["universe.symbols.0 = 'BTC/USDT'", "pattern"]),
    "symbol twice": ("universe.symbols", ["BTC", "ETH", "BTC"], ["universe.symbols", "named twice: BTC"]),
    "unknown feature": (
        "models.0.features",
        ["rsi_8h"],
        ["models.0.features", "unknown feature rsi_8h", "rsi_14h"],
    ),
    "window longer than history": (
        "features.oscillators.entries",
        [{"generator": "indicators", "function": "log_return", "windows": ["24h", "21w"]}],
        [
            "features.oscillators.entries: entry 0 (indicators): return_21w_log needs 147 days",
            "start 2023-11-06",
        ],
    ),
    "a set of a reserved name": (
        "features.class",
        RAW["features"]["oscillators"],
        ["features.class", "choose another name"],
    ),
    "a column of a reserved name": (
        "features.oscillators.entries",
        [{"generator": "indicators", "function": "rsi", "windows": [14], "names": "order"}],
        ["features.oscillators.entries", "order is no name for a value"],
    ),
    "a settlement that is always too old": (
        "raster.max_age.funding_rate",
        "1h",
        ["raster.max_age.funding_rate: 1h leaves rows without it", "allowed: more than 1h"],
    ),
    "open interest that is asked for too seldom": (
        "sources.open_interest_period",
        "1d",
        ["raster.max_age.open_interest: 2h", "sources.open_interest_period is 1d"],
    ),
    "unknown column in the cross-section": (
        "cross_section.ranks",
        ["return_25h_log"],
        ["cross_section: there is no column return_25h_log", "return_24h_log"],
    ),
    "standing twice": (
        "cross_section.ranks",
        ["market_cap_usd", "market_cap_log"],
        ["cross_section: market_cap_usd and market_cap_log would both be market_cap_xs_rank"],
    ),
    "a set of the name of the cross-section": (
        "features.cross_section",
        RAW["features"]["oscillators"],
        ["features.cross_section: this table is always made"],
    ),
    "unknown factor": ("factors.names", ["factor_009"], ["factors.names.0 = 'factor_009'", "'factor_001'"]),
    "unknown algorithm": ("models.0.algorithm", "oracle", ["models.0.algorithm = 'oracle'", "'lightgbm'"]),
    "model name twice": (
        "models",
        [RAW["models"][0]] * 2,
        ["models: a name occurs twice", "sign_24h, sign_24h"],
    ),
    "nothing to train on": ("models.0.calibration_weeks", 8, ["models.0", "less than train_weeks"]),
    "spans out of order": ("signals.ema_cross.short", 30, ["signals.ema_cross", "short (30)", "long (21)"]),
    "quantiles out of order": (
        "weights.factor_quantiles",
        [0.5, 0.5],
        ["weights.factor_quantiles", "increase"],
    ),
    "duration without unit": ("labels.horizon", 24, ["labels.horizon = 24", "such as 24h"]),
    "horizon of another period": (
        "labels.horizon",
        "48h",
        ["labels.horizon: 48h is not the rebalance period", "portfolio.rebalance daily: 24h"],
    ),
    "empty horizon": ("labels.horizon", "0h", ["labels.horizon: 0h", "daily: 24h"]),
    "horizon off the raster": ("labels.horizon", "90m", ["labels.horizon: 90m", "daily: 24h"]),
    "period of another horizon": (
        "portfolio.rebalance",
        "weekly",
        ["labels.horizon: 24h is not the rebalance period", "portfolio.rebalance weekly: 168h"],
    ),
    "decision inside a bar": (
        "portfolio.decision_time",
        "01:30",
        ["portfolio.decision_time: 01:30:00", "multiples of 1h"],
    ),
    "wait for part of a bar": ("costs.fill_wait", "90m", ["costs.fill_wait: 90m", "multiples of 1h from 0h"]),
    "death after part of a bar": (
        "costs.death_after",
        "24h30m",
        ["costs.death_after = '24h30m'", "such as 24h"],
    ),
    "death off the raster": (
        "costs.death_after",
        "150m",
        ["costs.death_after: 150m", "multiples of 1h from 1h"],
    ),
    "death at once": ("costs.death_after", "0h", ["costs.death_after: 0h", "multiples of 1h from 1h"]),
    "no history": ("universe.min_history_days", 0, ["min_history_days = 0", "greater than or equal to 1"]),
    "history that is not loaded": (
        "universe.min_history_days",
        31,
        ["universe.min_history_days = 31", "less than or equal to 30"],
    ),
    "bar older than the raster keeps": (
        "universe.max_bar_age",
        49,
        ["universe.max_bar_age = 49", "less than or equal to 48"],
    ),
    "tau of nothing": ("portfolio.tau", 0, ["portfolio.tau = 0", "greater than 0"]),
    "tau above one": ("portfolio.tau", 1.1, ["portfolio.tau = 1.1", "less than or equal to 1"]),
    "too few bars for a covariance": (
        "portfolio.lookback_bars",
        23,
        ["portfolio.lookback_bars = 23", "greater than or equal to 24"],
    ),
    "no cap coverage": ("portfolio.min_cap_coverage", 0, ["min_cap_coverage = 0", "greater than 0"]),
    "no feature": ("models.0.features", [], ["models.0.features = []", "at least 1 item"]),
    "feature twice": (
        "models.0.features",
        ["rsi_14h", "return_1h_log", "rsi_14h"],
        ["models.0.features", "named twice: rsi_14h"],
    ),
    "factor twice": (
        "factors.names",
        ["factor_001", "factor_001"],
        ["factors.names", "named twice: factor_001"],
    ),
    "rollup twice": ("rollup_intervals", ["1h", "4h", "1h"], ["rollup_intervals", "named twice: 1h"]),
    "quote among the symbols": (
        "universe.symbols",
        ["BTC", "USDT"],
        ["universe.symbols = ['BTC', 'USDT']", "USDT is the quote"],
    ),
    "pegged twice": ("universe.pegged", ["DAI", "DAI"], ["universe.pegged", "named twice: DAI"]),
    "wrapped twice": ("universe.wrapped", ["WBTC", "WBTC"], ["universe.wrapped", "named twice: WBTC"]),
    "pegged and wrapped": (
        "universe.wrapped",
        ["WBTC", "DAI"],
        ["universe.wrapped", "DAI is pegged as well"],
    ),
    "symbol that the synthetic world lacks": (
        "universe.symbols",
        ["BTC", "SHIB"],
        ["universe.symbols: the synthetic world has no SHIB", "allowed: BTC, ETH", "SRM"],
    ),
    "quote that the synthetic world lacks": (
        "universe.quote",
        "EUR",
        ["universe.quote: the synthetic world has no EUR", "allowed: USDT"],
    ),
    "clock before the start": (
        "simulation.now",
        "2023-11-05T23:00:00",
        ["simulation.now: 2023-11-05 23:00:00 is before start 2023-11-06"],
    ),
    "no drift": (
        "simulation.synthetic",
        {"seed": 7},
        ["simulation.synthetic.drift_frac: is missing"],
    ),
    "negative seed": ("simulation.synthetic.seed", -1, ["simulation.synthetic.seed = -1", "equal to 0"]),
    "time that YAML made a number": ("portfolio.decision_time", 780, ["decision_time = 780", "in quotes"]),
    "time with a zone": ("simulation.now", "2024-03-27T13:00:00Z", ["simulation.now", "timezone"]),
    "end before start": ("end", date(2020, 1, 1), ["end: 2020-01-01 is not after start 2023-11-06"]),
    "environment in the file": ("environment", {"coingecko_pro_key": "x"}, ["environment: unknown key"]),
    "unknown key in an overlay": (
        "worlds.live.costs",
        {"fee_bp": 5},
        ["worlds.live.costs.fee_bp = 5", "unknown key", "fee_bps, fill_wait"],
    ),
    "wrong value in an overlay": (
        "worlds.recorded.simulation.recorded.klines",
        [],
        ["worlds.recorded.simulation.recorded.klines = []", "at least 1 item"],
    ),
    "missing key in an overlay": (
        "worlds.recorded.simulation.recorded",
        {"klines": ["*"]},
        ["worlds.recorded.simulation.recorded.folder: is missing"],
    ),
    "contradiction in an overlay": (
        "worlds.live.labels",
        {"horizon": "48h"},
        ["worlds.live.labels.horizon: 48h is not the rebalance period"],
    ),
    "wrong value in the overlay of the chosen world": (
        "worlds.synthetic",
        {"costs": {"fee_bps": -1}},
        ["worlds.synthetic.costs.fee_bps = -1", "greater than or equal to 0"],
    ),
    "world in an overlay": (
        "worlds.live.world",
        "synthetic",
        ["worlds.live.world: unknown key"],
    ),
    "overlay of no world": ("worlds", {"mars": {}}, ["worlds", "'mars'", "synthetic, recorded, live"]),
    "overlay that is no section": ("worlds", {"synthetic": 5}, ["worlds.synthetic: 5", "keys and values"]),
    "bad world": ("world", "paper", ["world: 'paper'", "allowed: synthetic, recorded, live"]),
}


@pytest.mark.parametrize(("key", "value", "words"), BAD.values(), ids=list(BAD))
def test_bad_input_names_file_key_value_and_what_is_allowed(
    tmp_path: Path, key: str, value: Any, words: list[str]
) -> None:
    path = copy_with(tmp_path, key, value)
    message = refusal(path)
    assert message.startswith(str(path))
    assert [word for word in words if word not in message] == []


def test_weeks_are_rolled_up_but_are_no_bars_of_a_day(tmp_path: Path) -> None:
    settings = load_settings(copy_with(tmp_path, "rollup_intervals", [*RAW["rollup_intervals"], "1w"]), {})
    assert settings.rollup_intervals[-1] == "1w"
    assert settings.daily_intervals == settings.rollup_intervals[:-1]


def test_ages_are_lengths_of_time(tmp_path: Path) -> None:
    settings = load_settings(copy_with(tmp_path, "raster.max_age.order_book", "20m"), {})
    assert dict(settings.raster.max_age) == {
        "market_cap": timedelta(days=3),
        "contract": timedelta(hours=1),
        "funding_rate": timedelta(hours=9),
        "open_interest": timedelta(hours=2),
        "order_book": timedelta(minutes=20),
    }
    assert set(dict(settings.raster.max_age)) == set(AGED_SOURCES)


# lives of a symbol, words that the message must hold
BAD_LIVES = {
    "ends before it begins": (
        [
            {
                "listing_id": "BTC/USDT#1",
                "valid_from": "2024-01-02T00:00:00",
                "valid_to": "2024-01-01T00:00:00",
            }
        ],
        ["listings.0", "valid_to 2024-01-01 00:00:00 must lie after valid_from 2024-01-02 00:00:00"],
    ),
    "never lives": (
        [
            {
                "listing_id": "BTC/USDT#1",
                "valid_from": "2024-01-02T00:00:00",
                "valid_to": "2024-01-02T00:00:00",
            }
        ],
        ["listings.0", "must lie after valid_from"],
    ),
    "end known after it took effect": (
        [{"listing_id": "BTC/USDT#1", "valid_to": "2024-01-02T00:00:00", "known_at": "2024-01-02T01:00:00"}],
        ["listings.0", "known_at 2024-01-02 01:00:00 must not lie after valid_to 2024-01-02 00:00:00"],
    ),
    "no end that could be known": (
        [{"listing_id": "BTC/USDT#1", "known_at": "2024-01-02T01:00:00"}],
        ["listings.0", "give valid_to"],
    ),
    "named after another symbol": (
        [{"listing_id": "ETH/USDT#1"}],
        ["listings.0", "listing_id ETH/USDT#1", "such as BTC/USDT#1"],
    ),
    "one name for two lives": (
        [
            {"listing_id": "BTC/USDT#1", "valid_to": "2024-01-02T00:00:00"},
            {"listing_id": "BTC/USDT#1", "valid_from": "2024-01-03T00:00:00"},
        ],
        ["listings = ", "named twice: BTC/USDT#1"],
    ),
    "overlapping": (
        [
            {"listing_id": "BTC/USDT#2", "valid_from": "2024-01-02T00:00:00"},
            {"listing_id": "BTC/USDT#1", "valid_to": "2024-01-02T01:00:00"},
        ],
        ["listings = ", "BTC/USDT#1 and BTC/USDT#2 overlap", "bound the lives of BTC/USDT"],
    ),
    "two without bounds": (
        [{"listing_id": "BTC/USDT#1"}, {"listing_id": "BTC/USDT#2"}],
        ["listings = ", "BTC/USDT#1 and BTC/USDT#2 overlap"],
    ),
}


@pytest.mark.parametrize(("lives", "words"), BAD_LIVES.values(), ids=list(BAD_LIVES))
def test_lives_that_cannot_be_told_apart_are_refused(
    tmp_path: Path, lives: list[dict[str, str]], words: list[str]
) -> None:
    path = copy_with(tmp_path, "listings", [{"symbol": "BTC/USDT", **life} for life in lives])
    message = refusal(path)
    assert message.startswith(str(path))
    assert [word for word in words if word not in message] == []


def test_lives_that_touch_and_lives_of_different_symbols_are_accepted(tmp_path: Path) -> None:
    moment = "2024-01-02T00:00:00"
    lives = [
        {"symbol": "BTC/USDT", "listing_id": "BTC/USDT#2", "valid_from": moment},
        {"symbol": "ETH/USDT", "listing_id": "ETH/USDT#1"},
        {"symbol": "BTC/USDT", "listing_id": "BTC/USDT#1", "valid_to": moment, "known_at": moment},
    ]
    loaded = load_settings(copy_with(tmp_path, "listings", lives), {})
    assert [listing.listing_id for listing in loaded.listings] == [
        "BTC/USDT#2",
        "ETH/USDT#1",
        "BTC/USDT#1",
    ]


@pytest.mark.parametrize(
    "name",
    [
        *("objective", "deterministic", "force_col_wise", "num_threads", "verbosity"),
        *("seed", "bagging_seed", "random_state", "app", "loss", "n_jobs", "nthread", "verbose"),
        *("num_iterations", "n_estimators", "eta", "max_leaves", "reg_lambda", "subsample", "num_leafs"),
    ],
)
def test_a_parameter_that_is_fixed_or_an_alias_or_misspelt_is_refused(tmp_path: Path, name: str) -> None:
    message = refusal(copy_with(tmp_path, f"models.0.parameters.{name}", 1))
    assert f"models.0.parameters.{name} = 1: unknown key; allowed: bagging_fraction, bagging_freq" in message
    assert name not in message.split("allowed: ")[1].split(", ")


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("num_leaves", 1, "greater than or equal to 2"),
        ("learning_rate", 0, "greater than 0"),
        ("learning_rate", float("nan"), "finite"),
        ("bagging_fraction", 1.5, "less than or equal to 1"),
        ("num_boost_round", "many", "valid integer"),
    ],
)
def test_a_parameter_out_of_bounds_is_refused(tmp_path: Path, name: str, value: Any, word: str) -> None:
    message = refusal(copy_with(tmp_path, f"models.0.parameters.{name}", value))
    assert f"models.0.parameters.{name} = {value!r}" in message
    assert word in message


def test_lightgbm_takes_every_allowed_parameter_under_its_own_name_and_none_is_fixed() -> None:
    import lightgbm

    allowed = set(Parameters.__annotations__)
    assert set(predictions.PARAMETERS) <= allowed
    assert not allowed & set(predictions._FIXED)
    data = lightgbm.Dataset(np.arange(50.0)[:, None], np.arange(50) % 2)
    booster = lightgbm.train({"verbosity": -1}, data, num_boost_round=1)
    stored = booster.model_to_string().split("parameters:")[1]
    # The number of rounds is an argument of the training, not a parameter.
    assert {name for name in allowed if f"[{name}: " not in stored} == {"num_boost_round"}


def test_the_allowed_symbols_are_those_of_the_synthetic_world() -> None:
    world = SyntheticWorld(1, 0, 90 * 86_400_000, "1d")
    assert tuple(market.base for market in world.all_markets()) == SYNTHETIC_SYMBOLS
    assert {market.quote for market in world.all_markets()} == {SYNTHETIC_QUOTE}


@pytest.mark.parametrize(("rebalance", "horizon"), [("hourly", "60m"), ("daily", "1d"), ("weekly", "168h")])
def test_a_horizon_of_one_rebalance_period_is_accepted(tmp_path: Path, rebalance: str, horizon: str) -> None:
    path = copy_with(tmp_path, "portfolio.rebalance", rebalance)
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    raw["labels"]["horizon"] = horizon
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    assert load_settings(path, {}).labels.horizon == REBALANCE_PERIOD[rebalance]


def test_an_overlay_need_not_go_together_with_a_file_that_another_world_uses(tmp_path: Path) -> None:
    path = copy_with(tmp_path, "coins", {"SOL/USDT": "solana"})
    assert load_settings(path, {}).coins == {"SOL/USDT": "solana"}
    assert "coins: SOL/USDT is not in the universe" in refusal(path, CRYPTO_ASSETS_WORLD="recorded")


def test_only_the_synthetic_world_limits_the_symbols(tmp_path: Path) -> None:
    path = copy_with(tmp_path, "worlds.live.universe.symbols", ["BTC", "SHIB"])
    assert load_settings(path, {"CRYPTO_ASSETS_WORLD": "live"}).universe.symbols == ("BTC", "SHIB")


def test_every_contradiction_is_named_at_once(tmp_path: Path) -> None:
    raw = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    raw["labels"]["horizon"] = "48h"
    raw["end"] = date(2020, 1, 1)
    path = tmp_path / "platform.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    lines = refusal(path).splitlines()
    assert [line.removeprefix(f"{path}: ").split(":")[0] for line in lines] == ["labels.horizon", "end"]


def test_every_offence_is_named_at_once(tmp_path: Path) -> None:
    path = copy_with(tmp_path, "costs", {"fee_bps": -1, "slippage_bps": 5, "fill_wait": "6h", "tip": 1})
    lines = refusal(path).splitlines()
    assert [line.split(": ")[1].split(" = ")[0] for line in lines] == [
        "costs.fee_bps",
        "costs.death_after",
        "costs.tip",
    ]
    assert lines[1] == f"{path}: costs.death_after: is missing"


def test_a_list_whose_only_entry_is_refused_is_not_called_empty_as_well(tmp_path: Path) -> None:
    path = copy_with(tmp_path, "factors.names", ["factor_009"])
    (line,) = refusal(path).splitlines()
    assert line.startswith(f"{path}: factors.names.0 = 'factor_009': ")


def test_a_missing_file_says_which_variable_points_to_it(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nowhere.yaml")
    assert str(tmp_path / "nowhere.yaml") in message
    assert "CRYPTO_ASSETS_CONFIG" in message


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"world: [", "is not valid YAML"),
        (b"- a\n- b\n", "must hold keys and values, not list"),
        (b"", "must hold keys and values, not NoneType"),
        (b"world: \xff\xfe", "is not UTF-8 text"),
    ],
    ids=["broken", "a list", "empty", "binary"],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "platform.yaml"
    path.write_bytes(content)
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert word in message


def test_a_bad_world_from_the_environment_names_the_variable() -> None:
    message = refusal(SHIPPED, CRYPTO_ASSETS_WORLD="paper")
    assert message.startswith("CRYPTO_ASSETS_WORLD: 'paper'")
    assert "synthetic, recorded, live" in message


def test_a_bad_warehouse_section_is_refused_even_when_the_environment_names_the_folder(
    tmp_path: Path,
) -> None:
    message = refusal(copy_with(tmp_path, "warehouse", "data"), CRYPTO_ASSETS_DATA="elsewhere")
    assert "warehouse = 'data'" in message


def test_the_recorded_world_needs_its_section(tmp_path: Path) -> None:
    path = copy_with(tmp_path, "worlds", {})
    assert "simulation.recorded: is missing" in refusal(path, CRYPTO_ASSETS_WORLD="recorded")


@pytest.mark.parametrize("world", ["synthetic", "recorded", "live"])
def test_the_shipped_file_is_valid_in_every_world(world: str) -> None:
    loaded = load_settings(SHIPPED, {"CRYPTO_ASSETS_WORLD": world})
    assert loaded.world == world
    assert loaded.warehouse.folder == SHIPPED.parent / "data" / world


def test_an_overlay_changes_its_keys_and_nothing_beside_them() -> None:
    plain, recorded = (
        load_settings(SHIPPED, {"CRYPTO_ASSETS_WORLD": world}) for world in ("synthetic", "recorded")
    )
    assert (plain.base_interval, recorded.base_interval) == ("1m", "1h")
    assert "LUNA/USDT" in recorded.universe.markets
    assert "LUNA/USDT" not in plain.universe.markets
    assert recorded.universe.min_turnover_quote == plain.universe.min_turnover_quote
    assert recorded.simulation.synthetic == plain.simulation.synthetic
    assert recorded.simulation.recorded is not None
    assert recorded.simulation.recorded.folder == SHIPPED.parent / "../shared/recorded"


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    loaded = load_settings(
        SHIPPED,
        {
            "CRYPTO_ASSETS_WORLD": "live",
            "CRYPTO_ASSETS_DATA": str(tmp_path / "{world}"),
            "CRYPTO_ASSETS_EXCHANGE_URL": "http://exchange.example",
            "CRYPTO_ASSETS_COINGECKO_URL": "http://coins.example",
        },
    )
    assert loaded.world == "live"
    assert loaded.start == date(2024, 1, 1)
    assert loaded.warehouse.folder == tmp_path / "live"
    assert loaded.exchange_url == "http://exchange.example"
    assert loaded.coingecko_url == "http://coins.example"


def test_the_config_variable_names_the_file(tmp_path: Path) -> None:
    path = copy_with(tmp_path, "costs.fee_bps", 77)
    assert load_settings(environment={"CRYPTO_ASSETS_CONFIG": str(path)}).costs.fee_bps == 77


def test_a_file_in_the_working_folder_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_with(tmp_path, "costs.fee_bps", 77)
    monkeypatch.chdir(tmp_path)
    assert load_settings(environment={}).costs.fee_bps == 77
    monkeypatch.chdir(tmp_path.parent)
    assert load_settings(environment={}).costs.fee_bps == RAW["costs"]["fee_bps"]


def test_only_the_live_world_leaves_the_machine() -> None:
    simulated = load_settings(SHIPPED, {})
    live = load_settings(SHIPPED, {"CRYPTO_ASSETS_WORLD": "live"})
    assert simulated.exchange_url == f"http://127.0.0.1:{simulated.simulation.port}"
    assert simulated.coingecko_url == f"http://127.0.0.1:{simulated.simulation.port}/coingecko/api/v3/"
    assert (live.exchange_url, live.coingecko_url) == (None, None)
    assert (simulated.last_day, live.last_day) == (date(2024, 3, 28), None)


SECRETS = {"COINGECKO_DEMO_API_KEY": "demo-s3cret", "COINGECKO_PRO_API_KEY": "pro-s3cret"}


@pytest.mark.parametrize("show", [repr, str, "{}".format], ids=["repr", "str", "format"])
def test_secrets_are_kept_but_not_shown(show: Callable[[Any], str]) -> None:
    loaded = load_settings(SHIPPED, {**SECRETS, "CRYPTO_ASSETS_EXCHANGE_URL": "http://user:s3cret@exchange"})
    assert loaded.environment.coingecko_demo_key == "demo-s3cret"
    assert loaded.environment.coingecko_pro_key == "pro-s3cret"
    assert "s3cret" not in show(loaded) + show(loaded.environment)


def test_secrets_are_not_shown_by_a_refusal(tmp_path: Path) -> None:
    for key, value in (("end", date(2020, 1, 1)), ("colour", "blue"), ("universe", {})):
        assert "s3cret" not in refusal(copy_with(tmp_path, key, value), **SECRETS)


def test_settings_are_frozen() -> None:
    loaded = load_settings(SHIPPED, {})
    for section, name in ((loaded, "world"), (loaded.costs, "fee_bps"), (loaded.models[0], "train_weeks")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, getattr(section, name))


def test_derived_values_follow_from_the_file() -> None:
    loaded = load_settings(SHIPPED, {})
    assert loaded.universe.markets[0] == "ADA/USDT"
    assert {"USDT", "WBTC"} <= set(loaded.universe.excluded_bases)
    assert loaded.labels.horizon == timedelta(hours=24)
    assert loaded.labels.horizon_name == "24h"
    assert loaded.portfolio.decision_time == time(1)
    assert loaded.bars_per_day == 24


def test_a_function_of_the_users_own_is_found_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "ideas_of_my_own.py").write_text("def double(bars):\n    return 2 * bars['close']\n")
    entry = {"generator": "ideas_of_my_own:double", "columns": ["close"], "names": ["twice"], "lookback": 0}
    declared = RAW["features"] | {"mine": {"entries": [entry]}}
    loaded = load_settings(copy_with(tmp_path, "features", declared), {})
    assert loaded.feature_tables["twice"] == "features/mine"


def test_a_set_reads_the_raster_or_the_bars_of_its_interval_at_the_venue(tmp_path: Path) -> None:
    entry = {"generator": "indicators", "function": "log_return", "windows": ["8h"]}
    declared = RAW["features"] | {"slow": {"interval": "4h", "entries": [entry]}}
    loaded = load_settings(copy_with(tmp_path, "features", declared), {})
    on_raster, slow = loaded.rows_of("price_action"), loaded.rows_of("slow")
    assert (on_raster.table, on_raster.where) == ("rollups/raster", None)
    assert {"symbol", "ts", "known_at", "listing_id", "has_bar", "close"} <= set(on_raster.columns or ())
    assert slow == ("rollups/klines", None, "venue = 'binance' and interval = '4h'")


def test_a_model_needs_something_to_be_fitted_on(tmp_path: Path) -> None:
    model = {key: value for key, value in RAW["models"][0].items() if key != "features"}
    raw = RAW | {"models": [model], "features": {}, "cross_section": {}}
    path = tmp_path / "platform.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(SettingsError, match="models: there is no feature to fit on"):
        load_settings(path, {})


def test_the_reserved_words_are_those_of_sql_and_dagster() -> None:
    import duckdb
    from dagster._core.definitions.utils import DISALLOWED_NAMES

    told = duckdb.sql("select keyword_name from duckdb_keywords() where keyword_category <> 'unreserved'")
    words = {word for (word,) in told.fetchall()} | {name.lower() for name in DISALLOWED_NAMES}
    assert words <= RESERVED_WORDS


def test_a_model_without_features_uses_every_column_on_the_rasters_interval(tmp_path: Path) -> None:
    model = {key: value for key, value in RAW["models"][0].items() if key != "features"}
    loaded = load_settings(copy_with(tmp_path, "models", [model]), {})
    offered = loaded.features_of(loaded.models[0])
    assert offered == tuple(loaded.feature_tables)
    assert {"rsi_14h", "return_24h_xs_rank", "return_24h_xs_z"} <= set(offered)
    assert "n_eligible" not in offered
