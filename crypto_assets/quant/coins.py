"""What kind of coin a coin is: an asset of its own, or a claim on a currency, a metal or another coin.

Here: kinds by override, category, name and behaviour, from what was known at a moment. Not here: fetching coins and
categories (``resources/coingecko``), and which coin stands behind which market (``raw``). Imported by the assets of raw,
and by tests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

import numpy as np
import pandas as pd

from crypto_assets.quant.panel import require_columns

#: ``coin``: an asset of its own. ``stable``: holds a currency, mostly 1 USD. ``wrapped``: another coin one to one.
#: ``staked``: another coin with its staking yield. ``bridged``: another coin on a foreign chain. ``pegged``: tied to a
#: metal, a currency other than the dollar, or another price at a fixed ratio.
Kind = Literal["coin", "stable", "wrapped", "staked", "bridged", "pegged"]

#: Categories of CoinGecko that tell a kind; of several the first counts. The ids of stablecoins, wrapped-tokens,
#: tokenized-btc and tokenized-gold stand in the recorded list of categories of 2021, the others are newer.
CATEGORY_KINDS: Mapping[str, Kind] = {
    "bridged-tokens": "bridged",
    "liquid-staking-tokens": "staked",
    "liquid-restaking-tokens": "staked",
    "wrapped-tokens": "wrapped",
    "tokenized-btc": "wrapped",
    "tokenized-gold": "pegged",
    "tokenized-silver": "pegged",
    "stablecoins": "stable",
}

#: Days of prices that behaviour is judged by. Of the days before the moment so many are looked at that one hole or one
#: spike does not hide a coin.
MIN_DAYS = 30
LOOKBACK_DAYS = 60
#: Largest distance from 1 USD, or from the price of the original, on each of ``MIN_DAYS`` days in a row. Recorded, 145
#: coins in their quietest ``MIN_DAYS`` days: of the ten that hold a dollar nine stay within 0.6 % of it; the tenth, of
#: which only 34 days are recorded, strays 3.7 %, as does ampleforth, which aims at a dollar; any other at least 6.2 %.
BAND_FRAC = 0.02
#: Correlation of daily log returns with the original's, and standard deviation of their difference, over the same days.
#: Recorded: claims on ether reach 0.9998 and 0.1 %; of all pairs of other coins the closest that trade freely are
#: vvs-finance and cronos, 0.9967 and 0.3 %.
MIN_CORRELATION = 0.998
MAX_TRACKING_LOG = 0.005
#: Largest price of a staked coin in units of its original: yields of years add up, but to no multiple. Recorded: 1.20.
MAX_STAKED_RATIO = 2.0
#: Largest distance of the ratio to a pegged coin from its median. Recorded: the quietest 30 days of any coin that is not
#: tied to something stay within 1.6 % of their median.
PEG_BAND_FRAC = 0.01

_CHAIN_BRIDGES = "wormhole|multichain|celer|allbridge|axelar|sollet|omnibridge|synapse|[a-z]+ bridge"
_BRIDGED = re.compile(
    rf"\bbridged\b|\b(?:binance|heco|huobi)[ -]peg(?:ged)?\b|\((?:[^)]*\s)?(?:{_CHAIN_BRIDGES})\b[^)]*\)"
)
_STAKED = re.compile(r"\b(?:re)?staked\b")
_WRAPPED = re.compile(r"\bwrapped\b")
_MAJORS = "btc|eth|bnb|sol|avax|matic|pol|ftm|trx|dot|ada|xrp|doge|steth|eeth|beth|hype|ton|sui|s"
_WRAPPED_TICKER = re.compile(rf"w(?:{_MAJORS})")
# Such as rETH, "Rocket Pool ETH": the ticker ends with the original's, and so does the name.
_ETH_CLAIM, _ETH_NAMES = re.compile(r"[a-z0-9]{1,6}eth|ethx"), {"eth", "ethx", "ether", "ethereum"}
_SOL_CLAIM, _SOL_NAMES = re.compile(r"[a-z0-9]{1,6}sol"), {"sol"}
_BTC_CLAIM, _BTC_NAMES = re.compile(r"[a-z0-9]{1,6}btc|btc\.?b"), {"btc", "btcb"}
_DOLLAR_WORD = re.compile(r"[a-z0-9]*usd|usd[a-z0-9]{0,2}|[a-z]{0,5}usd[a-z0-9]{0,2}|dollars?")
_METAL = re.compile(r"\b(?:gold|silver)\b")
_METAL_TICKERS = frozenset(
    {"xaut", "paxg", "kau", "kag", "xaum", "pmgt", "dgx", "cgo", "vnxau", "gpro", "xagx"}
)
# Codes that no other word contains: "aud" would find Claude and Audit, "zar" Mozart.
_CURRENCIES = "eur|jpy|chf|gbp|sgd|cnh|idr|mxn|brl"
_CURRENCY_TICKER = re.compile(rf"[a-z]{{0,4}}(?:{_CURRENCIES})[a-z0-9]{{0,2}}")
_CURRENCY_WORD = re.compile(rf"(?:{_CURRENCIES})[a-z0-9]{{0,2}}|euros?|yen|francs?|rupiah|lira|peso")
# Names that say nothing of what the coin holds.
_NAMELESS: Mapping[str, Kind] = {
    "tether": "stable",
    "dai": "stable",
    "savings-dai": "stable",
    "frax": "stable",
    "gho": "stable",
    "terrausd": "stable",
    "magic-internet-money": "stable",
    "mimatic": "stable",
    "vai": "stable",
    "bean": "stable",
    "honey-3": "stable",
}


def kinds_by_name(coins: pd.DataFrame) -> pd.Series:
    """Tell kinds from ids, names and tickers.

    Parameters
    ----------
    coins
        ``coin_id``, ``name``, ``ticker`` (any case); a missing name or ticker is empty.

    Returns
    -------
    pandas.Series
        Kind by coin id, of the coins whose names tell one.

    Raises
    ------
    ValueError
        If columns are missing.

    Notes
    -----
    Whole words only, and what is in parentheses after a name counts for bridges alone. Of several the first of bridged,
    staked, wrapped, stable, pegged counts. Looks at no other row.

    Examples
    --------
    >>> coins = pd.DataFrame({"coin_id": ["weth", "ethereum"], "name": ["WETH", "Ethereum"], "ticker": ["weth", "eth"]})
    >>> kinds_by_name(coins).to_dict()
    {'weth': 'wrapped'}
    """
    require_columns(coins, ("coin_id", "name", "ticker"), "coins")
    texts = coins[["coin_id", "name", "ticker"]].fillna("").itertuples(index=False, name=None)
    kinds = {coin_id: kind for coin_id, *rest in texts if (kind := _kind_of_name(coin_id, *rest))}
    return pd.Series(kinds, dtype=object)


def kinds_by_category(members: pd.DataFrame) -> pd.Series:
    """Tell kinds from the membership in categories.

    Parameters
    ----------
    members
        ``coin_id``, ``category``: one row per membership; categories outside ``CATEGORY_KINDS`` tell nothing.

    Returns
    -------
    pandas.Series
        Kind by coin id, of the members.

    Raises
    ------
    ValueError
        If columns are missing.

    Examples
    --------
    >>> both = pd.DataFrame({"coin_id": "wrapped-steth", "category": ["wrapped-tokens", "liquid-staking-tokens"]})
    >>> kinds_by_category(both).to_dict()
    {'wrapped-steth': 'staked'}
    """
    require_columns(members, ("coin_id", "category"), "members")
    order = {category: position for position, category in enumerate(CATEGORY_KINDS)}
    told = members.assign(position=members["category"].map(order)).dropna(subset=["position"])
    first = told.sort_values(["position", "coin_id"]).drop_duplicates("coin_id").set_index("coin_id")
    return first["category"].map(dict(CATEGORY_KINDS)).astype(object)


def kinds_by_behaviour(
    prices: pd.DataFrame, ranks: Mapping[str, float], known: Mapping[str, Kind], at: datetime
) -> pd.Series:
    """Tell kinds from how prices moved, with the past alone.

    Parameters
    ----------
    prices
        ``coin_id``, ``ts`` (day), ``known_at``, ``price_usd`` (missing, 0 or less: no price), in any order, one row per
        coin and day, such as ``raw/market_caps``.
    ranks
        Coin id -> rank by market cap; of two coins with one price the larger is the original. Coins without a rank come
        last, in the order of their ids.
    known
        Coin id -> kind as told by something else. Those coins are judged no more, and are no originals.
    at
        The moment: rows with ``known_at`` after it are not looked at, nor days more than ``LOOKBACK_DAYS`` back.

    Returns
    -------
    pandas.Series
        Kind by coin id, of the coins that behaved for ``MIN_DAYS`` days in a row as something other than ``coin``. A coin
        with fewer days in a row is not judged.

    Raises
    ------
    ValueError
        If columns are missing, or a coin has two rows of one day.

    Notes
    -----
    ``stable``: within ``BAND_FRAC`` of 1 USD. ``wrapped``: within ``BAND_FRAC`` of a larger coin's price. ``staked``:
    returns as a larger coin's (``MIN_CORRELATION``, ``MAX_TRACKING_LOG``) at 1 to ``MAX_STAKED_RATIO`` times its price.
    ``pegged``: such returns at any other ratio, or a ratio to a coin known as pegged within ``PEG_BAND_FRAC`` of its
    median. A staked coin whose yield was small may look wrapped.
    """
    require_columns(prices, ("coin_id", "ts", "known_at", "price_usd"), "prices")
    seen = prices[(prices["known_at"] <= at) & (prices["price_usd"] > 0)]
    if seen.duplicated(["coin_id", "ts"]).any():
        twice = seen.loc[seen.duplicated(["coin_id", "ts"]), ["coin_id", "ts"]].iloc[0].tolist()
        raise ValueError(f"coin {twice[0]} has two prices of {twice[1]}: pass one row per coin and day")
    first = pd.Timestamp(at).floor("D") - pd.Timedelta(days=LOOKBACK_DAYS)
    seen = seen[seen["ts"] >= first]
    if seen.empty:
        return pd.Series({}, dtype=object)
    wide = seen.pivot(index="ts", columns="coin_id", values="price_usd")
    wide = wide.reindex(pd.date_range(first, wide.index.max(), freq="D"))
    coins = sorted(wide.columns, key=lambda coin: (ranks.get(coin, np.inf), coin))
    runs = _Runs.of(np.log(wide[coins].to_numpy(float)))
    kinds: dict[str, Kind] = {}
    originals: list[int] = []
    anchors = [i for i, coin in enumerate(coins) if known.get(coin) == "pegged"]
    for i, coin in enumerate(coins):
        if known.get(coin, "coin") != "coin":
            continue
        kind = runs.kind_of(i, originals, anchors)
        if kind is None:
            originals.append(i)
        elif coin not in known:
            kinds[coin] = kind
    return pd.Series(kinds, dtype=object)


def coin_kinds(
    coins: pd.DataFrame,
    at: datetime,
    *,
    overrides: Mapping[str, Kind] | None = None,
    members: pd.DataFrame | None = None,
    prices: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The kind of every coin of a snapshot, and what decided it: an override, else a category, the name, behaviour.

    Parameters
    ----------
    coins
        One snapshot of ``raw/coins``: ``coin_id``, ``name``, ``ticker``, ``market_cap_rank``.
    at
        The moment of the snapshot; it becomes ``known_at``.
    overrides
        Coin id -> kind, from the settings; coins that the snapshot lacks are passed over.
    members
        ``coin_id``, ``category``, as seen at the moment; ``None``: not asked for.
    prices
        See ``kinds_by_behaviour``; ``None``: none are known.

    Returns
    -------
    pandas.DataFrame
        Rows of ``raw/coin_kinds``, sorted by coin id. ``decided_by`` is missing where nothing speaks against ``coin``.

    Raises
    ------
    ValueError
        If columns are missing, a coin comes twice, or an override names an unknown kind.

    Notes
    -----
    Uses only what was known at the moment, so a row never changes with what comes later.
    """
    require_columns(coins, ("coin_id", "name", "ticker", "market_cap_rank"), "coins")
    if coins["coin_id"].duplicated().any():
        twice = coins.loc[coins["coin_id"].duplicated(), "coin_id"].iloc[0]
        raise ValueError(f"coin {twice} appears twice: pass one snapshot")
    unknown = sorted(set((overrides or {}).values()) - set(get_args(Kind)))
    if unknown:
        raise ValueError(f"unknown kind {', '.join(unknown)}; allowed: {', '.join(get_args(Kind))}")
    told: dict[str, dict[str, Kind]] = {
        "override": dict(overrides or {}),
        "category": {} if members is None else _dict(kinds_by_category(members)),
        "name": _dict(kinds_by_name(coins)),
    }
    known = told["name"] | told["category"] | told["override"]
    if prices is not None:
        ranked = coins.dropna(subset=["market_cap_rank"])
        ranks = dict(zip(ranked["coin_id"], ranked["market_cap_rank"], strict=True))
        told["behaviour"] = _dict(kinds_by_behaviour(prices, ranks, known, at))
    rows = []
    moment = pd.Timestamp(at).as_unit("us")
    for coin_id in sorted(coins["coin_id"]):
        decided_by = next((source for source, kinds in told.items() if coin_id in kinds), None)
        kind = told[decided_by][coin_id] if decided_by else "coin"
        rows.append((coin_id, moment.floor("D"), moment, kind, decided_by))
    frame = pd.DataFrame(rows, columns=["coin_id", "ts", "known_at", "kind", "decided_by"])
    return frame.astype({"coin_id": object, "kind": object, "decided_by": object})


def _dict(kinds: pd.Series) -> dict[str, Kind]:
    return dict(zip(kinds.index, kinds, strict=True))


@dataclass(frozen=True)
class _Runs:
    """Log prices of all runs of ``MIN_DAYS`` days: (runs, days, coins), NaN where a coin lacks a day of the run."""

    log_prices: np.ndarray

    @classmethod
    def of(cls, log_prices: np.ndarray) -> _Runs:
        if len(log_prices) < MIN_DAYS:
            return cls(np.empty((0, MIN_DAYS, log_prices.shape[1])))
        windows = np.lib.stride_tricks.sliding_window_view(log_prices, MIN_DAYS, axis=0)
        return cls(windows.transpose(0, 2, 1))

    def kind_of(self, coin: int, originals: list[int], anchors: list[int]) -> Kind | None:
        own = self.log_prices[:, :, coin]
        own = own[~np.isnan(own).any(axis=1)]
        if _within(own, np.zeros_like(own), BAND_FRAC):
            return "stable"
        if originals and (kind := self._copy_of(coin, originals)):
            return kind
        if anchors and self._follows_anchor(coin, anchors):
            return "pegged"
        return None

    def _copy_of(self, coin: int, originals: list[int]) -> Kind | None:
        ratio = self.log_prices[:, :, [coin]] - self.log_prices[:, :, originals]
        whole = ~np.isnan(ratio).any(axis=1)
        if (whole & (np.abs(np.expm1(ratio)).max(axis=1) <= BAND_FRAC)).any():
            return "wrapped"
        own, other = (
            np.diff(self.log_prices[:, :, [coin]], axis=1),
            np.diff(self.log_prices[:, :, originals], axis=1),
        )
        tracking = np.std(own - other, axis=1, ddof=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            centred = (own - own.mean(axis=1, keepdims=True), other - other.mean(axis=1, keepdims=True))
            spread = np.sqrt((centred[0] ** 2).sum(axis=1) * (centred[1] ** 2).sum(axis=1))
            correlation = (centred[0] * centred[1]).sum(axis=1) / spread
            follows = whole & (correlation >= MIN_CORRELATION) & (tracking <= MAX_TRACKING_LOG)
        if not follows.any():
            return None
        run, other_at = np.argwhere(follows)[-1]
        level = float(np.exp(np.median(ratio[run, :, other_at])))
        return "staked" if 1 <= level <= MAX_STAKED_RATIO else "pegged"

    def _follows_anchor(self, coin: int, anchors: list[int]) -> bool:
        ratio = self.log_prices[:, :, [coin]] - self.log_prices[:, :, anchors]
        distance = np.abs(np.expm1(ratio - np.median(ratio, axis=1, keepdims=True))).max(axis=1)
        return bool((distance <= PEG_BAND_FRAC).any())


def _within(log_prices: np.ndarray, around: np.ndarray, band_frac: float) -> bool:
    return bool(len(log_prices) and (np.abs(np.expm1(log_prices - around)).max(axis=1) <= band_frac).any())


def _kind_of_name(coin_id: str, name: str, ticker: str) -> Kind | None:
    ticker, shown = ticker.lower(), name.lower()
    both = f"{coin_id.replace('-', ' ')} | {shown}"
    words = re.findall(r"[a-z0-9]+", re.sub(r"\([^)]*\)", " ", shown))
    if _BRIDGED.search(both):
        return "bridged"
    if _STAKED.search(both):
        return "staked"
    if _WRAPPED.search(both) or (_WRAPPED_TICKER.fullmatch(ticker) and words == [ticker]):
        return "wrapped"
    if coin_id in _NAMELESS:
        return _NAMELESS[coin_id]
    if coin_id.endswith("-usd") or (len(words) > 1 and words[-1] == "usd"):
        return "stable"
    return _claim_of_name(words, ticker)


def _claim_of_name(words: list[str], ticker: str) -> Kind | None:
    last = words[-1] if words else ""
    is_own_name = words == [ticker]
    if _ETH_CLAIM.fullmatch(ticker) and ((len(words) > 1 and last in _ETH_NAMES) or is_own_name):
        return "staked"
    if _SOL_CLAIM.fullmatch(ticker) and len(words) > 1 and last in _SOL_NAMES:
        return "staked"
    if _BTC_CLAIM.fullmatch(ticker) and ((len(words) > 1 and last in {*_BTC_NAMES, ticker}) or is_own_name):
        return "wrapped"
    if "usd" in ticker and any(_DOLLAR_WORD.fullmatch(word) for word in words):
        return "stable"
    if ticker in _METAL_TICKERS and any(_METAL.search(word) for word in words):
        return "pegged"
    if _CURRENCY_TICKER.fullmatch(ticker) and (is_own_name or any(map(_CURRENCY_WORD.fullmatch, words))):
        return "pegged"
    return "stable" if "stablecoin" in words else None
