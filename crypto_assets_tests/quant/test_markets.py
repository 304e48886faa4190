"""The choice of markets, and the intervals in which their states held."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from crypto_assets.quant.markets import MarketFilters, choose_markets, event_between, listings_of

T = [pd.Timestamp(2024, 1, day) for day in range(1, 8)]


def state(symbol: str, **given: Any) -> dict[str, Any]:
    base, _, rest = symbol.partition("/")
    quote, _, settle = rest.partition(":")
    return {
        "venue": "binance",
        "symbol": symbol,
        "valid_from": T[0],
        "known_at": T[0],
        "listing_id": f"{symbol}#1",
        "exchange_symbol": base + quote,
        "market_type": "perpetual" if settle else "spot",
        "base": base,
        "quote": quote,
        "contract_type": "PERPETUAL" if settle else None,
        "trading_status": "TRADING",
        "permissions": None if settle else "MARGIN,SPOT",
        **given,
    }


def states(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(rows)


def turnover(**amounts: float) -> pd.DataFrame:
    rows = [(f"{base}/USDT", amount) for base, amount in amounts.items()]
    return pd.DataFrame(rows, columns=["symbol", "turnover_24h_quote"])


MARKETS = states(
    state("AAA/USDT"),
    state("BBB/USDT"),
    state("CCC/USDT", trading_status="BREAK"),
    state("DDD/USDT", permissions="LEVERAGED"),
    state("EEE/BTC"),
    state("AAA/USDT:USDT"),
    state("BBB/USDT:USDT", trading_status="SETTLING"),
    state("AAA/USDT:USDT-240329", contract_type="CURRENT_QUARTER"),
)


def chosen(
    filters: MarketFilters, amounts: pd.DataFrame | None = None, before: tuple[str, ...] = ()
) -> dict[str, str]:
    found = choose_markets(MARKETS, amounts, before, filters).markets
    return dict(zip(found["symbol"], found["chosen_by"], strict=True))


def test_named_coins_are_taken_in_any_status() -> None:
    filters = MarketFilters("USDT", include=["AAA", "CCC", "EEE"], statuses=["TRADING"], permissions=["SPOT"])
    assert chosen(filters) == {"AAA/USDT": "listed", "CCC/USDT": "listed"}


def test_the_largest_are_taken_among_those_that_pass_every_filter() -> None:
    amounts = turnover(AAA=5.0, BBB=9.0, CCC=99.0, DDD=98.0)
    filters = MarketFilters("USDT", statuses=["TRADING"], permissions=["SPOT"], top=1)
    assert chosen(filters, amounts) == {"BBB/USDT": "top"}
    anything = MarketFilters("USDT", top=2)
    assert chosen(anything, amounts) == {"CCC/USDT": "top", "DDD/USDT": "top"}
    large = MarketFilters(
        "USDT", statuses=["TRADING"], permissions=["SPOT"], top=5, min_turnover_24h_quote=6.0
    )
    assert chosen(large, amounts) == {"BBB/USDT": "top"}


def test_every_filter_tells_how_many_it_left() -> None:
    filters = MarketFilters("USDT", statuses=["TRADING"], permissions=["SPOT"], top=1)
    left = choose_markets(MARKETS, turnover(AAA=5.0, BBB=9.0), (), filters).left
    assert left == {
        "quote USDT": 7,
        "spot": 4,
        "status": 3,
        "permission": 2,
        "turnover": 2,
        "contracts": 0,
        "chosen": 1,
    }


def test_what_was_chosen_once_stays_until_it_is_ignored() -> None:
    filters = MarketFilters("USDT", include=["AAA"], statuses=["TRADING"], contract_types=["PERPETUAL"])
    before = ("CCC/USDT", "BBB/USDT", "BBB/USDT:USDT", "AAA/USDT:USDT")
    kept = {"AAA/USDT": "listed", "AAA/USDT:USDT": "listed", "CCC/USDT": "kept", "BBB/USDT": "kept"}
    assert chosen(filters, before=before) == kept | {"BBB/USDT:USDT": "kept"}
    ignoring = MarketFilters("USDT", include=["AAA"], ignore=["CCC"], contract_types=["PERPETUAL"])
    assert "CCC/USDT" not in chosen(ignoring, before=before)


def test_contracts_follow_the_spot_market_of_their_base() -> None:
    filters = MarketFilters(
        "USDT", include=["AAA", "BBB"], statuses=["TRADING"], contract_types=["PERPETUAL", "CURRENT_QUARTER"]
    )
    found = chosen(filters)
    assert {symbol for symbol in found if ":" in symbol} == {"AAA/USDT:USDT", "AAA/USDT:USDT-240329"}


def test_equal_turnover_is_ranked_by_symbol_and_ranks_are_told() -> None:
    found = choose_markets(
        MARKETS, turnover(AAA=5.0, BBB=5.0, CCC=1.0), (), MarketFilters("USDT", top=2)
    ).markets
    assert found["turnover_24h_rank"].tolist() == [1, 2]
    assert found["turnover_24h_quote"].tolist() == [5.0, 5.0]


def test_the_largest_cannot_be_chosen_without_turnover() -> None:
    with pytest.raises(ValueError, match="no turnover was given"):
        choose_markets(MARKETS, None, (), MarketFilters("USDT", top=1))


LIFE = ["venue", "symbol", "listing_id", "valid_from", "valid_to", "known_at", "renamed_to"]
NO_LIVES = pd.DataFrame(columns=LIFE)


def test_a_state_ends_where_the_next_one_begins_and_that_is_known_when_it_is_seen() -> None:
    seen = states(
        state("AAA/USDT"),
        state("AAA/USDT", trading_status="BREAK", valid_from=T[2], known_at=T[2]),
        state("AAA/USDT", valid_from=T[3], known_at=T[3]),
        state("AAA/USDT", trading_status="ABSENT", valid_from=T[5], known_at=T[5]),
    )
    found = listings_of(seen, NO_LIVES)
    assert found["event"].tolist() == ["first_seen", "halt", "resume", "delisting"]
    assert found["valid_to"].tolist()[:3] == [T[2], T[3], T[5]]
    assert found["valid_to_known_at"].tolist()[:3] == [T[2], T[3], T[5]]
    assert found["valid_to"].isna().tolist() == [False, False, False, True]


def test_before_the_first_look_the_settings_speak() -> None:
    lives = pd.DataFrame(
        [
            ("binance", "LUNA/USDT", "LUNA/USDT#1", pd.NaT, T[1], T[0], None),
            ("binance", "LUNA/USDT", "LUNA/USDT#2", T[2], pd.NaT, pd.NaT, None),
        ],
        columns=LIFE,
    )
    seen = states(state("LUNA/USDT", listing_id="LUNA/USDT#2", valid_from=T[4], known_at=T[4]))
    found = listings_of(seen, lives)
    assert found[["event", "listing_id", "source"]].to_numpy().tolist() == [
        ["listing", "LUNA/USDT#1", "settings"],
        ["delisting", "LUNA/USDT#1", "settings"],
        ["reuse", "LUNA/USDT#2", "settings"],
        ["first_seen", "LUNA/USDT#2", "exchange"],
    ]
    assert found["valid_to"].tolist()[:3] == [T[1], T[2], T[4]]
    # The end was announced a day before it came.
    assert found["valid_to_known_at"].iloc[0] == T[0]


def test_a_life_that_begins_where_the_last_one_ends_follows_it_at_once() -> None:
    lives = pd.DataFrame(
        [
            ("binance", "A/USDT", "A/USDT#1", pd.NaT, T[1], T[0], None),
            ("binance", "A/USDT", "A/USDT#2", T[1], pd.NaT, pd.NaT, None),
        ],
        columns=LIFE,
    )
    found = listings_of(MARKETS.head(0), lives)
    assert found["event"].tolist() == ["listing", "reuse"]
    assert found["valid_to"].tolist()[0] == T[1]
    assert found["valid_to_known_at"].tolist()[0] == T[0]


def test_a_coin_that_goes_on_under_another_symbol_was_renamed() -> None:
    lives = pd.DataFrame(
        [("binance", "OLD/USDT", "OLD/USDT#1", pd.NaT, T[1], pd.NaT, "NEW/USDT")], columns=LIFE
    )
    found = listings_of(MARKETS.head(0), lives)
    assert found["event"].tolist() == ["listing", "rename"]
    assert found["known_at"].iloc[1] == T[1]


def test_intervals_of_one_market_never_overlap() -> None:
    lives = pd.DataFrame([("binance", "AAA/USDT", "AAA/USDT#1", pd.NaT, pd.NaT, pd.NaT, None)], columns=LIFE)
    found = listings_of(states(state("AAA/USDT", valid_from=T[3]), state("BBB/USDT")), lives)
    for _, rows in found.groupby("symbol"):
        ends = rows["valid_to"].fillna(pd.Timestamp(2100, 1, 1))
        assert (ends.to_numpy()[:-1] <= rows["valid_from"].to_numpy()[1:]).all()


@pytest.mark.parametrize(
    ("before", "after", "event"),
    [
        ("PENDING_TRADING", "TRADING", "listing"),
        ("TRADING", "SETTLING", "halt"),
        ("BREAK", "TRADING", "resume"),
        ("SETTLING", "DELIVERED", "delisting"),
        ("BREAK", "HALT", "change"),
        ("TRADING", "TRADING", "change"),
    ],
)
def test_events_have_names(before: str, after: str, event: str) -> None:
    assert event_between({"trading_status": before}, {"trading_status": after}) == event


def test_another_life_and_another_name_are_told_before_the_status() -> None:
    old = {"trading_status": "TRADING", "listing_id": "A/B#1", "exchange_symbol": "AB"}
    assert event_between(old, {**old, "listing_id": "A/B#2", "trading_status": "BREAK"}) == "reuse"
    assert event_between(old, {**old, "exchange_symbol": "ABX"}) == "rename"


def test_nothing_seen_and_nothing_stated_is_no_listing() -> None:
    assert listings_of(MARKETS.head(0), NO_LIVES).empty
