"""What the names of files say: market, interval, type of market and kind of series.

Here: guesses, each of which an explicit word overrides, and none where a name can mean two things. Not here: reading
files (``klines``, ``samples``). The package, resources and tests import it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from crypto_assets.intervals import INTERVAL_MS, next_month

MarketType = Literal["spot", "perpetual", "delivery"]

# The longest quote that fits, which is the shortest base: BUSDUSDT is BUSD/USDT and ADATUSD is ADA/TUSD.
_PAIR = re.compile(
    "(?P<base>.+?)(?P<quote>USDT|BUSD|USDC|FDUSD|TUSD|USDP|USDS|USD1|USDE|USD|PAX|DAI|UST|VAI|BIDR|IDRT|BVND|BKRW|"
    "NGN|RUB|TRY|EUR|GBP|AUD|BRL|UAH|ZAR|PLN|RON|ARS|JPY|MXN|CZK|COP|BTC|ETH|BNB|XRP|TRX|DOGE|DOT|SOL)"
)
_INTERVAL = "|".join(sorted([*INTERVAL_MS, "1s", "3d", "1w", "1M", "1mo"], key=len, reverse=True))
_MARKET = r"[A-Z0-9]+(?:_[A-Z0-9]+){0,2}"
_SERIES = re.compile(rf"(?P<market>{_MARKET})[-_](?P<interval>{_INTERVAL})(?=$|[-_.])(?P<rest>.*)")
_SAMPLES = re.compile(rf"(?P<market>{_MARKET})-(?:fundingRate|metrics)(?=$|[-_.])")
_BARE_MARKET = re.compile(rf"(?P<market>{_MARKET})\.")
_BARE_INTERVAL = re.compile(rf"(?:oi_)?(?P<interval>{_INTERVAL})(?=$|\.)")
_PERIOD = re.compile(r"-(?P<month>\d{4}-\d\d)(?P<day>-\d\d)?(?:\.|$)")
_DELIVERY = re.compile(r"(?P<pair>[A-Z0-9]+)_(?P<day>\d{6})")


@dataclass(frozen=True)
class FileName:
    """What a file's name says; ``None`` where it says nothing certain.

    Attributes
    ----------
    market
        The exchange's own name (``BTCUSDT``, ``BTCUSDT_240329``) or that of freqtrade (``BTC_USDT``).
    interval
        As the name spells it, also intervals that the platform does not store.
    market_type
        By the exchange's folders, by freqtrade's endings or by a delivery date.
    kind
        What the series holds, by the exchange's folders or freqtrade's endings.
    period_start, period_end
        The month or day that the name gives as the exchange's archive does, naive UTC, end exclusive.
    """

    market: str | None = None
    interval: str | None = None
    market_type: MarketType | None = None
    kind: str | None = None
    period_start: datetime | None = None
    period_end: datetime | None = None


def named_by(path: str) -> FileName:
    """Read a path such as ``spot/BTCUSDT-1h-2024-01.zip`` or ``BTCUSDT-1h.tar.gz/2022-01.json``, innermost name first.

    Examples
    --------
    >>> found = named_by("futures/um/monthly/klines/BTCUSDT/1m/BTCUSDT-1m-2024-01.zip")
    >>> found.market, found.interval, found.market_type, found.kind, str(found.period_end)
    ('BTCUSDT', '1m', 'perpetual', 'trade', '2024-02-01 00:00:00')
    >>> named_by("1d.tar.gz/1d/0GUSDT.csv")
    FileName(market='0GUSDT', interval='1d', market_type=None, kind=None, period_start=None, period_end=None)
    """
    parts = [part for part in path.split("/") if part][::-1]
    found = FileName()
    for part in parts:
        if match := _SERIES.match(part):
            found = FileName(
                match["market"], match["interval"], *_endings_of(match["rest"]), *_period(match["rest"])
            )
            break
        if match := _SAMPLES.match(part):
            found = FileName(match["market"])
            break
    else:
        bare = _BARE_MARKET.match(parts[0]) if parts else None
        intervals = (_BARE_INTERVAL.match(part) for part in parts[1:])
        interval = next((match["interval"] for match in intervals if match), None)
        found = FileName(bare["market"] if bare else None, interval)
    if found.market and _DELIVERY.fullmatch(found.market):
        found = replace(found, market_type="delivery")
    return _with_folders(found, parts)


def symbol_of(
    market: str, market_type: MarketType, known: Mapping[tuple[str, str], str] | None = None
) -> str:
    """Turn a market's name into its symbol as ccxt writes it.

    Parameters
    ----------
    market
        ``BTCUSDT``, ``BTC_USDT``, ``BTC_USDT_USDT``, ``BTCUSDT_240329``, ``BTC-USDT``, ``BTC/USDT``.
    market_type
        spot, perpetual or delivery; contracts are taken to be settled in their quote asset, as USD-M ones are.
    known
        (the exchange's name, type of market) -> symbol; asked first.

    Raises
    ------
    ValueError
        If the name cannot be split.

    Examples
    --------
    >>> symbol_of("BTCUSDT", "perpetual"), symbol_of("BTCUSDT_240329", "delivery"), symbol_of("ADATUSD", "spot")
    ('BTC/USDT:USDT', 'BTC/USDT:USDT-240329', 'ADA/TUSD')
    """
    if known and (market, market_type) in known:
        return known[market, market_type]
    delivery = _DELIVERY.fullmatch(market)
    pair = delivery["pair"] if delivery else market
    assets = re.split(r"[_/:-]", pair)
    if len(assets) == 1:
        match = _PAIR.fullmatch(pair)
        if match is None:
            raise ValueError(
                f"the name {market} ends in no known quote asset; say the symbol, such as BTC/USDT"
            )
        assets = [match["base"], match["quote"]]
    if bool(delivery) != (market_type == "delivery") or len(assets) > 3:
        raise ValueError(f"{market} is no name of a {market_type} market; say the symbol, such as BTC/USDT")
    base, quote, settle = (*assets, assets[1])[:3]
    if market_type == "spot":
        return f"{base}/{quote}"
    return f"{base}/{quote}:{settle}" + (f"-{delivery['day']}" if delivery else "")


def same_market(one: str, other: str) -> bool:
    """Whether two names differ in their separators and settlement alone.

    Examples
    --------
    >>> same_market("BTC-USDT", "BTC/USDT:USDT"), same_market("BTCUSDT", "ETH/USDT")
    (True, False)
    """
    return _letters(one) == _letters(other)


def _letters(name: str) -> str:
    pair, _, settled = name.partition(":")
    _, dash, day = settled.partition("-")
    return re.sub(r"[^A-Z0-9]", "", pair.upper()) + (day if dash else "")


def _endings_of(rest: str) -> tuple[MarketType | None, str | None]:
    if "-futures" in rest:
        return "perpetual", None
    if "-mark" in rest:
        return "perpetual", "mark"
    if "-funding_rate" in rest:
        return "perpetual", "funding"
    return None, None


def _period(rest: str) -> tuple[datetime, datetime] | tuple[None, None]:
    match = _PERIOD.match(rest)
    if match is None:
        return None, None
    try:
        first = datetime.fromisoformat(match["month"] + (match["day"] or "-01"))
    except ValueError:
        return None, None
    return first, first + timedelta(days=1) if match["day"] else next_month(first)


def _with_folders(found: FileName, parts: list[str]) -> FileName:
    kinds = {
        "klines": "trade",
        "markPriceKlines": "mark",
        "premiumIndexKlines": "premium",
        "indexPriceKlines": "index",
    }
    kind = next((kinds[part] for part in parts if part in kinds), None)
    market_type = found.market_type
    if market_type is None and found.market and found.market.count("_") == 1:
        # Freqtrade writes BTC_USDT for spot and BTC_USDT_USDT for contracts.
        market_type = "spot"
    if market_type is None and found.market and found.market.count("_") == 2:
        market_type = "perpetual"
    if market_type is None and "um" in parts and "futures" in parts:
        market_type = "perpetual"
    if market_type is None and "spot" in parts:
        market_type = "spot"
    return replace(found, market_type=market_type, kind=found.kind or kind)
