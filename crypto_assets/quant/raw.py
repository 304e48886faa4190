"""Which coin of the aggregator stands behind which market of our universe.

Here: the mapping, on frames. Not here: fetching coins (``resources/coingecko``) and reading overrides
(``settings.py``). Imported by the assets of raw, and by tests.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from crypto_assets.quant.panel import require_columns


def map_coins_to_symbols(
    coins: pd.DataFrame,
    bases: Mapping[str, str],
    overrides: Mapping[str, str],
    kinds: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Map coin ids to the symbols of the universe.

    A symbol's coin is its override, else the coin of best ``market_cap_rank`` among those whose ticker is its
    base. A ticker alone maps nothing: tickers are shared by thousands of coins, so a coin without a rank
    needs an override. An overriding coin takes part in no other mapping. A claim on another coin (bridged, wrapped ...)
    stands behind a market only where no ranked coin of its own has the ticker, however large the claim is.

    Parameters
    ----------
    coins
        One snapshot of ``raw/coins``: ``coin_id``, ``ticker`` (any case), ``market_cap_rank`` (missing:
        unranked).
    bases
        Symbol -> base asset, such as ``{"BTC/USDT": "BTC"}``.
    overrides
        Symbol -> coin id; wins even if the snapshot lacks the coin.
    kinds
        Coin id -> kind (``coins.coin_kinds``); coins that are absent, and all where it is ``None``, are ``coin``.

    Returns
    -------
    dict
        Coin id -> symbol, in the order of symbols; a symbol without a coin is absent.

    Raises
    ------
    ValueError
        If columns are missing, a coin appears twice, an override names an unknown symbol, or one coin would
        stand for two symbols.

    Notes
    -----
    Equal ranks are decided by the smaller coin id. Uses the given snapshot only.

    Examples
    --------
    >>> coins = pd.DataFrame({"coin_id": ["old", "new"], "ticker": "luna", "market_cap_rank": [900, 90]})
    >>> map_coins_to_symbols(coins, {"LUNA/USDT": "LUNA"}, {})
    {'new': 'LUNA/USDT'}
    >>> map_coins_to_symbols(coins, {"LUNA/USDT": "LUNA"}, {}, {"new": "bridged"})
    {'old': 'LUNA/USDT'}
    """
    require_columns(coins, ("coin_id", "ticker", "market_cap_rank"), "coins")
    twice = coins["coin_id"].duplicated()
    if twice.any():
        raise ValueError(f"coin {coins.loc[twice, 'coin_id'].iloc[0]} appears twice: pass one snapshot")
    unknown = sorted(set(overrides) - set(bases))
    if unknown:
        raise ValueError(
            f"overrides name {', '.join(unknown)}, which the universe does not have: correct or remove them"
        )
    known = kinds or {}
    ranked = coins.loc[coins["market_cap_rank"].notna() & ~coins["coin_id"].isin(set(overrides.values()))]
    best = (
        ranked.assign(
            ticker=ranked["ticker"].str.upper(),
            is_claim=ranked["coin_id"].map(lambda coin_id: known.get(coin_id, "coin") != "coin").astype(bool),
        )
        .sort_values(["is_claim", "market_cap_rank", "coin_id"])
        .drop_duplicates("ticker")
        .set_index("ticker")["coin_id"]
        .to_dict()
    )
    mapping: dict[str, str] = {}
    for symbol in sorted(bases):
        coin = overrides.get(symbol) or best.get(bases[symbol].upper())
        if coin is None:
            continue
        if coin in mapping:
            raise ValueError(
                f"coin {coin} stands for both {mapping[coin]} and {symbol}: override one of them"
            )
        mapping[coin] = symbol
    return mapping
