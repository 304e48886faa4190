from __future__ import annotations

from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_assets import tables
from crypto_assets.quant import black_litterman
from crypto_assets.quant.candidates import lookback
from crypto_assets_tests.quant.decisions import (
    COINS,
    WINDOW,
    alpha_of,
    at,
    decide,
    market,
    probabilities_of,
    universe_of,
)
from crypto_assets_tests.quant.rasters import HOUR, QUICK, Listing, assert_same_bits, between

CONTRACT = tables.table_of("holdings/candidates")
KEY = ("decision_at", "symbol")


def by_symbol(rows: pd.DataFrame, column: str) -> dict[str, object]:
    return dict(zip(rows["symbol"], rows[column], strict=True))


# Input errors


def test_a_decision_off_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="off the raster's grid"):
        decide(market(100), [at(99) + timedelta(minutes=30)])


def test_rows_that_repeat_or_lack_columns_are_refused() -> None:
    raster = market(100)
    universe = universe_of(raster)
    with pytest.raises(ValueError, match="universe has two rows of"):
        decide(raster, [at(99)], universe=pd.concat([universe, universe.tail(1)]))
    with pytest.raises(ValueError, match="universe lacks the columns reason"):
        decide(raster, [at(99)], universe=universe.drop(columns="reason"))
    with pytest.raises(ValueError, match="raster lacks the columns market_cap_usd"):
        decide(raster.drop(columns="market_cap_usd"), [at(99)], universe=universe)


# Worked examples


def test_the_table_keeps_its_contract() -> None:
    rows = decide(market(100), [at(99), at(100)])
    assert sorted(rows.columns) == sorted(CONTRACT.column_names)
    assert not rows.duplicated(list(KEY)).any()
    assert rows.equals(rows.sort_values(list(KEY), ignore_index=True))
    assert (rows["known_at"] == rows["decision_at"]).all()
    assert set(rows["horizon"]) == {"24h"}
    assert rows["decision_at"].dtype == "datetime64[us]"
    assert rows["n_sources"].dtype == np.int64
    assert rows["eligible"].dtype == bool
    empty = decide(market(100), [])
    assert empty.empty
    assert sorted(empty.columns) == sorted(CONTRACT.column_names)
    assert empty["decision_at"].dtype == "datetime64[us]"


def test_prior_risk_and_equilibrium_are_those_of_the_last_window() -> None:
    raster = market(100)
    rows = decide(raster, [at(99)])
    wide = raster.pivot(index="ts", columns="symbol", values="close").iloc[98 - WINDOW : 99].to_numpy()
    returns = wide[1:] / wide[:-1] - 1
    assert returns.shape == (WINDOW, 6)
    sigma = black_litterman.covariance(returns, periods=24).matrix
    w_mkt = np.arange(1, 7) / 21
    assert rows["symbol"].tolist() == list(COINS)
    assert rows["w_mkt"].to_numpy() == pytest.approx(w_mkt, rel=1e-14)
    assert (rows["sigma_frac"].to_numpy() == np.sqrt(np.diag(sigma))).all()
    assert rows["pi_frac"].to_numpy() == pytest.approx(2.5 * sigma @ w_mkt, rel=1e-12)
    assert (rows["close"].to_numpy() == wide[-1]).all()
    assert set(rows["status"]) == {"ok"}
    assert set(rows["covariance_method"]) == {"ledoit_wolf"}
    assert (rows["covariance_change_frac"] == 0).all()
    assert rows["score_z"].isna().all()
    assert (rows["n_sources"] == 0).all()


def test_only_rows_known_at_the_decision_are_read() -> None:
    raster = market(120)
    rows = decide(raster, [at(99)])
    assert_same_bits(rows, decide(raster[raster["known_at"] <= at(99)], [at(99)]), KEY)
    # A universe row that is published late does not exist yet: the one before still counts.
    universe = universe_of(raster)
    late = universe["ts"] == at(98)
    universe.loc[late, ["eligible", "reason"]] = [False, "illiquid"]
    assert decide(raster, [at(99)], universe=universe)["reason"].tolist() == ["illiquid"] * 6
    universe.loc[late, "known_at"] = at(99) + timedelta(minutes=1)
    assert decide(raster, [at(99)], universe=universe)["reason"].tolist() == ["eligible"] * 6


def test_a_coin_of_unknown_cap_has_no_prior_weight_but_a_risk() -> None:
    rows = decide(market(100, caps={"C0/USDT": np.nan, "C1/USDT": 0.0}), [at(99)])
    assert rows["w_mkt"].to_numpy() == pytest.approx([0, 0, 3 / 18, 4 / 18, 5 / 18, 6 / 18], rel=1e-14)
    assert (rows["sigma_frac"] > 0).all()
    assert rows["pi_frac"].notna().all()
    assert rows["market_cap_usd"].isna().tolist() == [True, True, False, False, False, False]
    assert set(rows["status"]) == {"ok"}


def test_too_few_known_caps_make_an_equal_prior_that_says_so() -> None:
    unknown = dict.fromkeys(COINS[:3], np.nan)
    rows = decide(market(100, caps=unknown), [at(99)])
    assert set(rows["status"]) == {"prior_degraded"}
    assert rows["w_mkt"].to_numpy() == pytest.approx(np.full(6, 1 / 6))
    # 4 of 6 is above 60 %.
    assert set(decide(market(100, caps=dict.fromkeys(COINS[:2], np.nan)), [at(99)])["status"]) == {"ok"}


def test_an_equal_prior_also_stands_in_where_no_cap_is_known_and_none_is_demanded() -> None:
    rows = decide(market(100, caps=dict.fromkeys(COINS, np.nan)), [at(99)], min_cap_coverage=0.0)
    assert set(rows["status"]) == {"prior_degraded"}
    assert rows["w_mkt"].to_numpy() == pytest.approx(np.full(6, 1 / 6))
    assert rows["pi_frac"].notna().all()
    some = decide(market(100, caps=dict.fromkeys(COINS[1:], np.nan)), [at(99)], min_cap_coverage=0.0)
    assert some["w_mkt"].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_the_repair_of_a_covariance_with_missing_returns_is_stored() -> None:
    raster = market(100, seed=1, missing_share=0.1)
    rows = decide(raster, [at(99)], lookback_bars=12, max_bar_age=5)
    chosen = rows["eligible"].to_numpy()
    wide = raster[raster["has_bar"]].pivot(index="ts", columns="symbol", values="close")
    close = wide.reindex(pd.date_range(at(86), at(98), freq=HOUR))[rows.loc[chosen, "symbol"]].to_numpy()
    measured = black_litterman.covariance(close[1:] / close[:-1] - 1, periods=24)
    assert measured.change_frac > 1e-6
    assert set(rows.loc[chosen, "covariance_method"]) == {"pairwise"}
    assert set(rows.loc[chosen, "covariance_change_frac"]) == {measured.change_frac}
    assert (rows.loc[chosen, "sigma_frac"].to_numpy() == np.sqrt(np.diag(measured.matrix))).all()


def test_a_cap_counts_for_three_days_after_its_day() -> None:
    raster = market(120)
    for hours_since, known in ((72, True), (73, False)):
        raster["market_cap_ts"] = np.datetime64(at(119 - hours_since - 24), "us")
        assert decide(raster, [at(119)])["market_cap_usd"].notna().all() == known


def test_ineligible_coins_keep_their_row_and_reason() -> None:
    raster = market(100)
    universe = universe_of(raster, {"C1/USDT": "illiquid"})
    rows = decide(raster, [at(99)], universe=universe[universe["symbol"] != "C2/USDT"])
    reasons = by_symbol(rows, "reason")
    assert (reasons["C0/USDT"], reasons["C1/USDT"], reasons["C2/USDT"]) == (
        "eligible",
        "illiquid",
        "no_universe_row",
    )
    out = rows[~rows["eligible"]]
    assert out["symbol"].tolist() == ["C1/USDT", "C2/USDT"]
    nothing = ["w_mkt", "sigma_frac", "pi_frac", "covariance_method", "covariance_change_frac", "score_z"]
    assert out[nothing].isna().all(axis=None)
    assert out["close"].notna().all()


def test_a_coin_without_recent_bars_is_stale_and_leaves_after_its_rows_end() -> None:
    coins = [*COINS[:5], Listing("C5/USDT", last=97)]
    raster = market(240, coins)
    universe = universe_of(raster)
    reasons = {
        hours: by_symbol(decide(raster, [at(hours)], universe=universe), "reason").get("C5/USDT")
        for hours in (98, 100, 101, 192, 193)
    }
    # Two bars late is not stale; the last raster row starts 47 h after the last bar and is recent for 48 h.
    assert reasons == {98: "eligible", 100: "eligible", 101: "stale", 192: "stale", 193: None}
    row = decide(raster, [at(120)]).set_index("symbol").loc["C5/USDT"]
    last_bar = raster[(raster["symbol"] == "C5/USDT") & raster["has_bar"]].iloc[-1]
    assert row["close"] == last_bar["close"]


def test_a_data_outage_makes_every_coin_stale() -> None:
    raster = market(100)
    rows = decide(raster, [at(103)])
    assert set(rows["reason"]) == {"stale"}
    assert set(rows["status"]) == {"no_universe"}
    assert rows["w_mkt"].isna().all()


def test_a_reused_ticker_shows_its_newest_life_only() -> None:
    # A symbol has one raster row at a time: the second life begins after the rows of the first.
    raster = market(130, [*COINS[:5], Listing("C5/USDT", last=40), Listing("C5/USDT", number=2, first=95)])
    rows = decide(raster, [at(90), at(100), at(124), at(125)])
    lives = rows[rows["symbol"] == "C5/USDT"]
    assert lives["listing_id"].tolist() == ["C5/USDT#1", "C5/USDT#2", "C5/USDT#2", "C5/USDT#2"]
    # Until 30 of its 60 returns exist there is no covariance, whatever the universe says.
    assert lives["reason"].tolist() == ["stale", "no_covariance", "no_covariance", "no_covariance"]
    assert by_symbol(decide(raster, [at(126)]), "reason")["C5/USDT"] == "eligible"


def test_no_rows_at_all_give_no_candidates() -> None:
    raster = market(100)
    assert decide(raster.iloc[:0], [at(99)]).empty
    assert decide(raster, [at(400)]).empty


# Scores


def test_sources_are_standardised_clipped_and_averaged() -> None:
    raster = market(100)
    alpha = dict(zip(COINS, [1.0, 2.0, 3.0, 4.0, 5.0, np.nan], strict=True))
    odds = dict(zip(COINS, [1, 2, 4, 8, 16, 32], strict=True))
    predictions = probabilities_of(raster, {coin: value / (1 + value) for coin, value in odds.items()})
    rows = decide(raster, [at(99)], alpha=alpha_of(raster, alpha), predictions=predictions)
    z_alpha = np.array([-2, -1, 0, 1, 2]) / np.sqrt(2.5)
    # Logits of these odds are 0, 1, ... 5 times ln 2: mean 2.5, sample variance 3.5.
    z_logit = (np.arange(6) - 2.5) / np.sqrt(3.5)
    assert rows["score_z"].to_numpy()[:5] == pytest.approx((z_alpha + z_logit[:5]) / 2, rel=1e-12)
    assert rows["score_z"].to_numpy()[5] == pytest.approx(z_logit[5], rel=1e-12)
    assert rows["n_sources"].tolist() == [2, 2, 2, 2, 2, 1]


def test_every_model_is_a_source_and_a_constant_one_has_no_opinion() -> None:
    raster = market(100)
    told = probabilities_of(raster, dict(zip(COINS, [0.4, 0.5, 0.6, 0.7, 0.8, 0.9], strict=True)), "told")
    silent = probabilities_of(raster, dict.fromkeys(COINS, 0.55), "silent")
    both = decide(raster, [at(99)], predictions=pd.concat([told, silent]))
    alone = decide(raster, [at(99)], predictions=told)
    assert_same_bits(both, alone, KEY)
    assert (both["n_sources"] == 1).all()


def test_scores_are_compared_among_eligible_coins_only() -> None:
    raster = market(100)
    values = dict(zip(COINS, [1.0, 2.0, 3.0, 4.0, 5.0, 1e6], strict=True))
    universe = universe_of(raster, {"C5/USDT": "excluded"})
    rows = decide(raster, [at(99)], universe=universe, alpha=alpha_of(raster, values))
    assert rows["score_z"].to_numpy()[:5] == pytest.approx(
        np.array([-2, -1, 0, 1, 2]) / np.sqrt(2.5), rel=1e-12
    )
    four = universe_of(raster, {"C4/USDT": "excluded", "C5/USDT": "excluded"})
    assert decide(raster, [at(99)], universe=four, alpha=alpha_of(raster, values))["score_z"].isna().all()


def test_an_extreme_score_is_clipped_at_three() -> None:
    coins = [f"C{number:02d}/USDT" for number in range(20)]
    raster = market(100, coins)
    values = {coin: 0.001 * place for place, coin in enumerate(coins)} | {coins[0]: 100.0}
    rows = decide(raster, [at(99)], alpha=alpha_of(raster, values))
    assert rows["score_z"].max() == 3.0


def test_an_old_score_is_not_an_opinion() -> None:
    raster = market(100)
    alpha = alpha_of(raster)
    fresh = decide(raster, [at(99)], alpha=alpha[alpha["ts"] <= at(96)])
    assert (fresh["n_sources"] == 1).all()
    assert (decide(raster, [at(99)], alpha=alpha[alpha["ts"] <= at(95)])["n_sources"] == 0).all()


# Properties


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.05]), st.data())
@QUICK
def test_any_chunk_with_its_look_back_gives_the_same_bits(
    seed: int, missing: float, data: st.DataObject
) -> None:
    coins = [*COINS[:4], Listing("C4/USDT", first=40), Listing("C5/USDT", last=150)]
    raster = market(200, coins, seed=seed, missing_share=missing)
    universe, alpha = universe_of(raster), alpha_of(raster, seed=seed)
    predictions = alpha.assign(model="sign", probability=alpha["alpha_score"] + 0.5).drop(
        columns="alpha_score"
    )
    times = [at(hours) for hours in range(100, 200, 7)]
    whole = decide(raster, times, universe=universe, alpha=alpha, predictions=predictions)
    border = data.draw(st.integers(1, len(times) - 1))
    parts = []
    for chunk in (times[:border], times[border:]):
        low, high = chunk[0] - lookback(HOUR, WINDOW), chunk[-1]
        rows = [
            between(frame, low, high).sample(frac=1, random_state=seed)
            for frame in (raster, universe, alpha, predictions)
        ]
        parts.append(decide(rows[0], chunk, universe=rows[1], alpha=rows[2], predictions=rows[3]))
    assert_same_bits(whole, pd.concat(parts), KEY)


@given(st.integers(0, 10_000))
@QUICK
def test_a_coin_that_is_never_eligible_changes_nothing_for_the_others(seed: int) -> None:
    raster = market(120, seed=seed)
    more = market(
        120,
        [*COINS, "A/USDT", "Z/USDT"],
        seed=seed,
        caps={coin: 1e9 * (n + 1) for n, coin in enumerate(COINS)},
    )
    universe = universe_of(more, {"A/USDT": "excluded", "Z/USDT": "excluded"})
    few = decide(raster, [at(119)], alpha=alpha_of(raster))
    many = decide(more, [at(119)], universe=universe, alpha=alpha_of(more))
    assert_same_bits(few, many[many["symbol"].isin(COINS)], KEY)


def test_the_look_back_covers_window_and_close() -> None:
    assert lookback(HOUR, 720) == timedelta(hours=721)
    assert lookback(HOUR, 10) == timedelta(hours=96)
