"""Kinds of coins: names against lists made by hand, categories, behaviour on worked and on recorded prices."""

from __future__ import annotations

import gzip
import json
import tarfile
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from crypto_assets.quant.coins import (
    BAND_FRAC,
    CATEGORY_KINDS,
    LOOKBACK_DAYS,
    MIN_DAYS,
    coin_kinds,
    kinds_by_behaviour,
    kinds_by_category,
    kinds_by_name,
)
from crypto_assets.quant.raw import map_coins_to_symbols
from crypto_assets.tables import TABLES
from crypto_assets_tests.recorded import RECORDED, needs_recorded

AT = datetime(2024, 6, 1, 0, 50)
DAY = timedelta(days=1)

#: Claims on something else among the recorded coin list, by hand: what they hold is public knowledge.
CLAIMS = {
    "bridged": """
        arbitrum-bridged-usdt-arbitrum arbitrum-bridged-wbtc-arbitrum-one arbitrum-bridged-weth-arbitrum-one
        avalanche-bridged-weth-avalanche binance-bridged-usdc-bnb-smart-chain binance-bridged-usdt-bnb-smart-chain
        binance-peg-bitcoin-cash binance-peg-busd binance-peg-cardano binance-peg-dogecoin binance-peg-eos
        binance-peg-filecoin binance-peg-litecoin binance-peg-polkadot binance-peg-weth binance-peg-xrp
        bitcoin-avalanche-bridged-btc-b bridged-usdc-polygon-pos-bridge huobi-btc-wormhole
        l2-standard-bridged-weth-base l2-standard-bridged-weth-blast mantle-bridged-usdt-mantle
        polygon-bridged-usdt-polygon polygon-pos-bridged-dai-polygon-pos polygon-pos-bridged-weth-polygon-pos
        usd-coin-ethereum-bridged
    """,
    "staked": """
        amnis-staked-aptos-coin ankr-staked-bnb ankreth benqi-liquid-staked-avax binance-staked-sol
        blazestake-staked-sol bybit-staked-sol coinbase-wrapped-staked-eth ether-fi-staked-btc ether-fi-staked-eth
        ethena-staked-usde frax-ether jito-staked-sol jupiter-staked-sol kelp-dao-restaked-eth
        liquid-staked-ethereum lombard-staked-btc mantle-restaked-eth mantle-staked-ether origin-ether pufeth
        renzo-restaked-eth restaked-swell-eth rocket-pool-eth solayer-staked-sol stader-ethx staked-ether
        staked-frax-ether stakewise-v3-oseth sweth treehouse-eth usdx-money-staked-usdx
    """,
    "wrapped": """
        coinbase-wrapped-btc huobi-btc ibtc-2 ignition-fbtc kraken-wrapped-btc pumpbtc renbtc solv-btc tbtc
        universal-btc wbnb weth wmatic wrapped-avax wrapped-beacon-eth wrapped-bitcoin wrapped-centrifuge
        wrapped-eeth wrapped-fantom wrapped-hbar wrapped-pulse-wpls wrapped-solana wrapped-steth wrapped-tron
    """,
    "stable": """
        alchemix-usd anzen-usdz binance-usd celo-dollar crvusd dai dola-usd elixir-deusd ethena-usde fei-usd
        first-digital-usd frax gemini-dollar gho global-dollar husd lift-dollar liquity-usd magic-internet-money
        mimatic mountain-protocol-usdm nusd ondo-us-dollar-yield origin-dollar paxos-standard paypal-usd
        resolv-usr ripple-usd savings-dai terrausd tether true-usd usd-coin usdb usdd usds usdtb usdx-money-usdx
        usual-usd vai verified-usd-foundation-usdv
    """,
    "pegged": """
        euro-coin kinesis-gold kinesis-silver monerium-eur-money pax-gold rupiah-token stasis-eurs tether-gold
        vnx-euro vnx-gold xsgd
    """,
}
#: Coins of their own: the hundred largest of early 2025 and coins whose names sound like claims.
OWN = """
    bitcoin ethereum ripple solana binancecoin dogecoin cardano tron avalanche-2 chainlink the-open-network sui stellar
    shiba-inu hedera-hashgraph polkadot bitcoin-cash hyperliquid litecoin leo-token uniswap pepe near internet-computer
    aptos aave crypto-com-chain polygon-ecosystem-token matic-network ethereum-classic render-token vechain monero
    bittensor fetch-ai arbitrum filecoin cosmos algorand kaspa blockstack okb celestia bonk optimism immutable-x
    injective-protocol theta-token bitget-token fantom sei-network ondo-finance dogwifcoin gatechain-token the-graph
    lido-dao worldcoin-wld floki mantle jasmycoin thorchain kucoin-shares pyth-network ethena raydium quant-network gala
    maker flow the-sandbox tezos movement jupiter-exchange-solana eos ethereum-name-service bitcoin-cash-sv starknet
    pancakeswap-token iota beam-2 flare-networks decentraland helium axie-infinity neo arweave dydx-chain bittorrent
    curve-dao-token conflux-token ecash zcash apecoin nexo chiliz elrond-erd-2
    bitcoin-gold adventure-gold frax-share ether-fi usual terra-luna terra-luna-2 havven pendle rocket-pool stader
    wormhole axelar multichain portal-2 celer-network eigenlayer compound-governance-token tellor usdebt sweatcoin bonfida
"""
#: The recorded histories of claims, with what their names do not tell: ipmb is said to hold gold, its price does not.
RECORDED_CLAIMS = """
    arbitrum-bridged-weth-arbitrum-one benqi-liquid-staked-avax binance-peg-dogecoin bitcoin-avalanche-bridged-btc-b
    bridged-usdc-polygon-pos-bridge coinbase-wrapped-staked-eth dai first-digital-usd frax-ether gho honey-3 ipmb
    jupiter-staked-sol kinesis-silver l2-standard-bridged-weth-blast lift-dollar lombard-staked-btc
    polygon-pos-bridged-dai-polygon-pos renzo-restaked-eth sbtc-2 stader-ethx stakewise-v3-oseth sweth tether tether-gold
    treehouse-eth usdb usdx-money-usdx weth wrapped-beacon-eth
"""


def named(coin_id: str, name: str, ticker: str) -> pd.DataFrame:
    return pd.DataFrame({"coin_id": [coin_id], "name": [name], "ticker": [ticker]})


# Names


@pytest.fixture(scope="module")
def coin_list() -> pd.DataFrame:
    path = RECORDED / "coingecko_wire" / "lists" / "coins_list-2025-01.json.gz"
    rows = json.loads(gzip.decompress(path.read_bytes()))
    return pd.DataFrame(rows).rename(columns={"id": "coin_id", "symbol": "ticker"})


@needs_recorded
def test_fact_7_names_tell_133_of_134_claims_made_by_hand_and_call_no_large_coin_one(
    coin_list: pd.DataFrame,
) -> None:
    expected = {coin: kind for kind, coins in CLAIMS.items() for coin in coins.split()}
    listed = set(coin_list["coin_id"])
    assert set(expected) | set(OWN.split()) <= listed
    assert len(expected) == 134
    found = kinds_by_name(coin_list)
    assert {coin for coin in expected if coin not in found.index} == {"resolv-usr"}
    assert {coin: kind for coin, kind in expected.items() if found.get(coin, kind) != kind} == {}
    assert sorted(set(OWN.split()) & set(found.index)) == []
    # Names say nothing of most coins.
    assert 1_300 < len(found) < 1_600


@needs_recorded
def test_fact_7_names_tell_the_claims_among_the_recorded_histories_and_no_other(
    coin_list: pd.DataFrame, prices: pd.DataFrame
) -> None:
    recorded = sorted(set(prices["coin_id"]))
    newer = pd.concat([named("honey-3", "Honey", "honey"), named("sbtc-2", "sBTC", "sbtc")])
    coins = pd.concat([coin_list[coin_list["coin_id"].isin(recorded)], newer])
    assert set(kinds_by_name(coins).index) == set(RECORDED_CLAIMS.split()) - {"ipmb"}


@pytest.mark.parametrize(
    ("coin_id", "name", "ticker"),
    [
        ("wormhole", "Wormhole", "w"),
        ("harrypotterobamasonic10in", "HarryPotterObamaSonic10Inu (ETH)", "bitcoin"),
        ("mozart", "Mozart", "mozart"),
        ("claude-2", "Claude", "claude"),
        ("bitcoin-gold", "Bitcoin Gold", "btg"),
        ("bridge-mutual", "Bridge Mutual", "bmi"),
        ("pegnet", "PegNet", "peg"),
        ("lido-dao", "Lido DAO", "ldo"),
        ("stake-link", "stake.link", "sdl"),
        ("unwrappedcoin", "Unwrappedcoin", "unw"),
        ("seth-green", "Seth", "seth2"),
        ("nothing", "", ""),
    ],
)
def test_a_name_that_only_sounds_like_a_claim_tells_nothing(coin_id: str, name: str, ticker: str) -> None:
    assert kinds_by_name(named(coin_id, name, ticker)).empty


@pytest.mark.parametrize(
    ("coin_id", "name", "ticker", "kind"),
    [
        ("tether-usd-wormhole", "Tether USD (Wormhole)", "usdtso", "bridged"),
        ("x", "Bridged Wrapped Lido Staked Ether (Scroll)", "wsteth", "bridged"),
        ("x", "Wrapped Staked USDT", "wstusdt", "staked"),
        ("x", "Rocket Pool ETH", "RETH", "staked"),
        ("weth", "WETH", "weth", "wrapped"),
        ("x", "Something Holding Euros", "eurx", "pegged"),
        ("x", "ZARP Stablecoin", "zarp", "stable"),
    ],
)
def test_the_first_of_bridged_staked_wrapped_stable_pegged_counts(
    coin_id: str, name: str, ticker: str, kind: str
) -> None:
    assert kinds_by_name(named(coin_id, name, ticker)).to_dict() == {coin_id: kind}


def test_missing_names_and_tickers_are_empty() -> None:
    coins = pd.DataFrame({"coin_id": ["a", "tether"], "name": [None, None], "ticker": [None, None]})
    assert kinds_by_name(coins).to_dict() == {"tether": "stable"}
    with pytest.raises(ValueError, match="lacks the columns name"):
        kinds_by_name(coins.drop(columns="name"))


# Categories


def test_the_first_category_counts_whatever_the_order_of_rows() -> None:
    rows = [("a", "stablecoins"), ("a", "bridged-tokens"), ("b", "layer-1"), ("c", "tokenized-gold")]
    members = pd.DataFrame(rows, columns=["coin_id", "category"])
    for order in (members, members.iloc[::-1]):
        assert kinds_by_category(order).to_dict() == {"a": "bridged", "c": "pegged"}
    assert kinds_by_category(members.iloc[:0]).empty
    with pytest.raises(ValueError, match="lacks the columns category"):
        kinds_by_category(members[["coin_id"]])


@needs_recorded
def test_the_oldest_categories_stand_in_the_recorded_list() -> None:
    names = ("the_list_of_categories", "the_list_of_categories_with_market_data")
    folder = RECORDED / "coingecko_wire" / "vcr"
    text = "".join(
        gzip.decompress((folder / f"test_that_it_gets_{name}.yml.gz").read_bytes()).decode() for name in names
    )
    known = {category for category in CATEGORY_KINDS if f'"{category}"' in text}
    assert known == {"wrapped-tokens", "tokenized-btc", "tokenized-gold", "stablecoins"}


# Behaviour on worked prices

N_DAYS = 60


def history(**series: np.ndarray | list[float]) -> pd.DataFrame:
    """Daily prices that end on the day before ``AT``, known 45 minutes after their day."""
    frames = []
    for coin, values in series.items():
        last = pd.Timestamp(AT).floor("D") - DAY
        ts = pd.date_range(end=last, periods=len(values), freq="D")
        frames.append(pd.DataFrame({"coin_id": coin, "ts": ts, "price_usd": np.asarray(values, float)}))
    frame = pd.concat(frames, ignore_index=True)
    return frame.assign(known_at=frame["ts"] + DAY + timedelta(minutes=45))


def walk(seed: int, sd: float = 0.03, start: float = 100.0, n: int = N_DAYS) -> np.ndarray:
    return start * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, sd, n)))


def noise(seed: int, sd: float, n: int = N_DAYS) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(0, sd, n))


RANKS = {"big": 1.0, "small": 50.0, "usd": 3.0}


def judged(prices: pd.DataFrame, known: dict | None = None, at: datetime = AT) -> dict[str, str]:
    kinds = kinds_by_behaviour(prices, RANKS, known or {}, at)
    return dict(zip(kinds.index, kinds, strict=True))


def test_free_coins_are_judged_as_nothing() -> None:
    assert judged(history(big=walk(1), small=walk(2), usd=walk(3, start=1.0))) == {}


def test_a_dollar_kept_for_thirty_days_is_stable_and_for_twenty_nine_is_not() -> None:
    strays = np.r_[np.full(N_DAYS - MIN_DAYS, 1.2), np.full(MIN_DAYS, 1 + BAND_FRAC - 1e-9)]
    assert judged(history(usd=strays)) == {"usd": "stable"}
    strays[-MIN_DAYS] = 1.2
    assert judged(history(usd=strays)) == {}
    assert judged(history(usd=np.full(MIN_DAYS - 1, 1.0))) == {}


def test_a_dollar_that_broke_lately_is_still_a_dollar() -> None:
    broken = np.r_[np.full(N_DAYS - 5, 1.0), 0.9, 0.7, 0.3, 0.1, 0.05]
    assert judged(history(ust=broken)) == {"ust": "stable"}


def test_the_price_of_a_larger_coin_makes_a_wrapped_one_and_never_the_larger() -> None:
    price = walk(1)
    assert judged(history(big=price, small=price * noise(2, 0.004))) == {"small": "wrapped"}
    assert judged(history(small=price, big=price * noise(2, 0.004))) == {"small": "wrapped"}
    # Without ranks the id decides, so that the answer does not depend on the order of rows.
    assert judged(history(y=price, x=price)) == {"y": "wrapped"}


@pytest.mark.parametrize(
    ("level", "kind"), [(1.1, "staked"), (1.9, "staked"), (0.7, "pegged"), (1e-5, "pegged")]
)
def test_the_returns_of_a_larger_coin_at_another_price_make_a_staked_or_a_pegged_one(
    level: float, kind: str
) -> None:
    price = walk(1)
    grown = price * level * 1.0001 ** np.arange(N_DAYS) * noise(2, 0.0008)
    assert judged(history(big=price, small=grown)) == {"small": kind}


def test_a_close_correlation_alone_is_no_claim() -> None:
    price = walk(1)
    leveraged = 50 * (price / price[0]) ** 1.3
    assert judged(history(big=price, small=leveraged)) == {}
    assert judged(history(big=price, small=price * 2.5 * noise(2, 0.006))) == {}


def test_a_claim_is_no_original_for_others() -> None:
    price = walk(1)
    prices = history(big=price, small=price * 1.2, third=price * 1.2)
    assert judged(prices) == {"small": "staked", "third": "staked"}
    assert judged(prices, {"big": "wrapped"}) == {"third": "wrapped"}


def test_a_constant_ratio_to_a_pegged_coin_is_pegged() -> None:
    gold = walk(1, sd=0.008, start=2300.0)
    gram = gold / 31.1 * noise(2, 0.002)
    assert judged(history(xaut=gold, gram=gram), {"xaut": "pegged"}) == {"gram": "pegged"}
    assert judged(history(xaut=gold, gram=walk(3, start=70.0)), {"xaut": "pegged"}) == {}


def test_what_is_known_already_is_not_judged_again() -> None:
    dollar = np.full(N_DAYS, 1.0)
    assert judged(history(usd=dollar), {"usd": "coin"}) == {}
    assert judged(history(usd=dollar), {"usd": "bridged"}) == {}


def test_a_day_without_a_price_breaks_a_run_and_prices_of_zero_are_none() -> None:
    dollar = np.full(N_DAYS, 1.0)
    prices = history(usd=dollar)
    for hole in (29, 30):
        assert judged(prices.drop(index=hole)) == {"usd": "stable"}
    assert judged(prices.drop(index=[20, 40])) == {}
    assert judged(prices.assign(price_usd=[0.0 if i in (20, 40) else 1.0 for i in range(N_DAYS)])) == {}
    assert judged(prices.assign(price_usd=[np.nan if i in (20, 40) else 1.0 for i in range(N_DAYS)])) == {}


def test_only_what_was_known_then_is_looked_at() -> None:
    prices = history(usd=np.r_[walk(1, n=N_DAYS - MIN_DAYS), np.full(MIN_DAYS, 1.0)])
    known = prices["known_at"].max().to_pydatetime()
    assert judged(prices, at=known) == {"usd": "stable"}
    assert judged(prices, at=known - timedelta(microseconds=1)) == {}
    later = pd.DataFrame(
        {"coin_id": "usd", "ts": pd.Timestamp(AT), "price_usd": 7.0, "known_at": pd.Timestamp(AT) + DAY},
        index=[999],
    )
    assert judged(pd.concat([prices, later])) == judged(prices)


def test_what_lies_further_back_than_the_lookback_is_forgotten() -> None:
    dollar_once = np.r_[np.full(MIN_DAYS, 1.0), walk(1, n=LOOKBACK_DAYS)]
    assert judged(history(usd=dollar_once)) == {}
    assert judged(history(usd=dollar_once[: MIN_DAYS + 20])) == {"usd": "stable"}


def test_no_prices_judge_nothing_and_doubled_rows_are_refused() -> None:
    prices = history(usd=np.full(N_DAYS, 1.0))
    assert judged(prices.iloc[:0]) == {}
    with pytest.raises(ValueError, match="coin usd has two prices"):
        judged(pd.concat([prices, prices.iloc[:1]]))
    with pytest.raises(ValueError, match="lacks the columns known_at"):
        judged(prices.drop(columns="known_at"))


# Behaviour on recorded prices


@pytest.fixture(scope="module")
def prices() -> pd.DataFrame:
    frames = []
    with tarfile.open(RECORDED / "coingecko_history" / "dev" / "market_chart_daily.tar.gz") as members:
        for member in members:
            content = members.extractfile(member)
            if content is None:
                continue
            chart = json.loads(content.read())
            frame = pd.DataFrame(chart["prices"], columns=["stamp", "price_usd"]).assign(
                coin_id=Path(member.name).stem, cap=[cap for _, cap in chart["market_caps"]]
            )
            frames.append(frame[frame["stamp"] % 86_400_000 == 0])
    frame = pd.concat(frames, ignore_index=True)
    stamp = pd.to_datetime(frame["stamp"], unit="ms")
    return frame.assign(ts=stamp - DAY, known_at=stamp + timedelta(minutes=45)).drop(columns="stamp")


@needs_recorded
def test_fact_7_one_asset_several_times_is_found_by_behaviour_with_two_coins_besides(
    prices: pd.DataFrame,
) -> None:
    found: dict[str, set[str]] = {}
    for at in pd.date_range("2019-01-01T01:00", "2025-03-11T01:00", freq="60D"):
        recent = prices[(prices["ts"] >= at - timedelta(days=70)) & (prices["ts"] < at)]
        caps = recent[recent["cap"] > 0].sort_values("ts").drop_duplicates("coin_id", keep="last")
        ranks = dict(zip(caps["coin_id"], caps["cap"].rank(ascending=False), strict=True))
        for coin, kind in kinds_by_behaviour(recent, ranks, {}, at.to_pydatetime()).items():
            found.setdefault(str(coin), set()).add(kind)
    # One asset under two ids, and a coin that is traded against bitcoin at a fixed rate: true as well, though no claims.
    besides = {"matic-network", "polygon-ecosystem-token", "gama-coin"}
    assert set(found) - besides <= set(RECORDED_CLAIMS.split())
    stable = {coin for coin, kinds in found.items() if kinds == {"stable"}}
    assert {"tether", "dai", "first-digital-usd", "gho", "lift-dollar", "usdb", "usdx-money-usdx"} <= stable
    copies = {coin for coin, kinds in found.items() if kinds & {"wrapped", "staked"}}
    assert copies >= {
        "weth",
        "binance-peg-dogecoin",
        "bitcoin-avalanche-bridged-btc-b",
        "lombard-staked-btc",
        "wrapped-beacon-eth",
        "coinbase-wrapped-staked-eth",
        "frax-ether",
        "sweth",
        "stader-ethx",
    }
    assert not {"bitcoin", "ethereum", "dogecoin", "ampleforth", "tether-gold"} & set(found)


# The whole


def snapshot(*rows: tuple[str, str, str, float | None]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["coin_id", "name", "ticker", "market_cap_rank"]).astype(
        {"market_cap_rank": float}
    )


def test_an_override_comes_before_a_category_a_category_before_the_name_and_the_name_before_behaviour() -> (
    None
):
    coins = snapshot(
        ("big", "Big", "big", 1),
        ("by-behaviour", "Something", "sth", 60),
        ("by-category", "Wrapped Thing", "wt", 40),
        ("by-name", "Nice Dollar", "nusd", 30),
        ("by-override", "Wrapped Nothing", "wn", None),
        ("new", "New", "new", 90),
    )
    price = walk(1)
    rows = coin_kinds(
        coins,
        AT,
        overrides={"by-override": "coin", "not-in-the-snapshot": "stable"},
        members=pd.DataFrame({"coin_id": ["by-category"], "category": ["liquid-staking-tokens"]}),
        prices=history(big=price, **{"by-behaviour": price * 1.5, "by-name": price}),
    )
    assert rows[["coin_id", "kind", "decided_by"]].to_numpy().tolist() == [
        ["big", "coin", None],
        ["by-behaviour", "staked", "behaviour"],
        ["by-category", "staked", "category"],
        ["by-name", "stable", "name"],
        ["by-override", "coin", "override"],
        ["new", "coin", None],
    ]
    assert set(rows["known_at"]) == {pd.Timestamp(AT)}
    assert set(rows["ts"]) == {pd.Timestamp("2024-06-01")}
    assert list(rows.columns) == TABLES["raw/coin_kinds"].column_names


def test_a_snapshot_without_coins_has_the_columns_of_the_contract() -> None:
    rows = coin_kinds(snapshot(), AT)
    assert rows.empty
    assert list(rows.columns) == TABLES["raw/coin_kinds"].column_names


def test_wrong_input_is_told() -> None:
    coins = snapshot(("a", "A", "a", 1))
    with pytest.raises(ValueError, match="coin a appears twice"):
        coin_kinds(pd.concat([coins, coins]), AT)
    with pytest.raises(ValueError, match="unknown kind pegd; allowed: coin, stable"):
        coin_kinds(coins, AT, overrides={"a": "pegd"})  # ty: ignore[invalid-argument-type]
    with pytest.raises(ValueError, match="lacks the columns name"):
        coin_kinds(coins.drop(columns="name"), AT)


def test_a_claim_with_a_better_rank_does_not_stand_behind_the_market_of_the_original() -> None:
    coins = snapshot(
        ("binance-peg-dogecoin", "Binance-Peg Dogecoin", "doge", 5),
        ("dogecoin", "Dogecoin", "doge", 8),
        ("weth", "WETH", "weth", 20),
    )
    rows = coin_kinds(coins, AT)
    kinds = dict(zip(rows["coin_id"], rows["kind"], strict=True))
    bases = {"DOGE/USDT": "DOGE", "WETH/USDT": "WETH"}
    assert map_coins_to_symbols(coins, bases, {}, kinds) == {"dogecoin": "DOGE/USDT", "weth": "WETH/USDT"}
