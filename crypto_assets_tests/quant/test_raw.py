from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from crypto_assets.quant.raw import map_coins_to_symbols

BASES = {"BTC/USDT": "BTC", "LUNA/USDT": "LUNA", "UNI/USDT": "UNI"}


def coins(*rows: tuple[str, str, float | None]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["coin_id", "ticker", "market_cap_rank"]).astype(
        {"market_cap_rank": np.float64}
    )


SNAPSHOT = coins(
    ("bitcoin", "btc", 1),
    ("batcat", "btc", 2500),
    ("terra-luna", "luna", 900),
    ("terra-luna-2", "luna", 90),
    ("luna-by-nobody", "luna", None),
    ("unicorn", "uni", None),
    ("nameless", "", 40),
)


def test_a_snapshot_with_a_coin_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="coin bitcoin appears twice"):
        map_coins_to_symbols(pd.concat([SNAPSHOT, SNAPSHOT.iloc[:1]]), BASES, {})


def test_an_override_of_an_unknown_symbol_is_refused() -> None:
    with pytest.raises(ValueError, match="overrides name XYZ/USDT"):
        map_coins_to_symbols(SNAPSHOT, BASES, {"XYZ/USDT": "xyz"})


def test_a_coin_cannot_stand_for_two_symbols() -> None:
    with pytest.raises(ValueError, match="bitcoin stands for both BTC/EUR and BTC/USDT"):
        map_coins_to_symbols(SNAPSHOT, BASES | {"BTC/EUR": "BTC"}, {})
    with pytest.raises(ValueError, match="stands for both"):
        map_coins_to_symbols(SNAPSHOT, BASES, {"BTC/USDT": "bitcoin", "UNI/USDT": "bitcoin"})


def test_missing_columns_are_named() -> None:
    with pytest.raises(ValueError, match="lacks the columns market_cap_rank"):
        map_coins_to_symbols(SNAPSHOT.drop(columns="market_cap_rank"), BASES, {})


def test_the_best_ranked_coin_of_a_ticker_wins_and_unranked_coins_never_map() -> None:
    assert map_coins_to_symbols(SNAPSHOT, BASES, {}) == {"bitcoin": "BTC/USDT", "terra-luna-2": "LUNA/USDT"}


def test_an_override_wins_even_for_unranked_and_absent_coins() -> None:
    mapping = map_coins_to_symbols(SNAPSHOT, BASES, {"LUNA/USDT": "luna-by-nobody", "UNI/USDT": "uniswap"})
    assert mapping == {"bitcoin": "BTC/USDT", "luna-by-nobody": "LUNA/USDT", "uniswap": "UNI/USDT"}


def test_an_overriding_coin_takes_part_in_no_other_mapping() -> None:
    mapping = map_coins_to_symbols(SNAPSHOT, BASES, {"UNI/USDT": "bitcoin"})
    assert mapping == {"bitcoin": "UNI/USDT", "batcat": "BTC/USDT", "terra-luna-2": "LUNA/USDT"}


def test_equal_ranks_are_decided_by_id_whatever_the_order_of_rows() -> None:
    tied = coins(("b", "uni", 5), ("a", "uni", 5))
    for rows in (tied, tied.iloc[::-1]):
        assert map_coins_to_symbols(rows, BASES, {}) == {"a": "UNI/USDT"}


def test_no_coins_give_no_mapping() -> None:
    assert map_coins_to_symbols(SNAPSHOT.iloc[:0], BASES, {}) == {}


def test_a_claim_stands_behind_a_market_only_where_no_ranked_coin_of_its_own_has_the_ticker() -> None:
    snapshot = coins(
        ("binance-peg-xrp", "xrp", 4), ("ripple", "XRP", 6), ("weth", "weth", 9), ("junk", "weth", None)
    )
    kinds = {"binance-peg-xrp": "bridged", "weth": "wrapped", "junk": "coin"}
    bases = {"XRP/USDT": "XRP", "WETH/USDT": "WETH"}
    for rows in (snapshot, snapshot.iloc[::-1]):
        assert map_coins_to_symbols(rows, bases, {}, kinds) == {"weth": "WETH/USDT", "ripple": "XRP/USDT"}
    # A coin whose kind nobody told is one of its own.
    assert map_coins_to_symbols(snapshot, bases, {}, {}) == map_coins_to_symbols(snapshot, bases, {})
    assert "binance-peg-xrp" in map_coins_to_symbols(snapshot, bases, {})


def test_among_claims_the_rank_decides_and_an_override_wins_over_the_kind() -> None:
    snapshot = coins(("bridged-a", "usdc", 30), ("usd-coin", "usdc", 7), ("dogecoin", "doge", 8))
    kinds = {"bridged-a": "bridged", "usd-coin": "stable"}
    bases = {"USDC/USDT": "USDC", "DOGE/USDT": "DOGE"}
    assert map_coins_to_symbols(snapshot, bases, {}, kinds)["usd-coin"] == "USDC/USDT"
    chosen = map_coins_to_symbols(snapshot, bases, {"DOGE/USDT": "bridged-a"}, kinds)
    assert chosen == {"bridged-a": "DOGE/USDT", "usd-coin": "USDC/USDT"}
