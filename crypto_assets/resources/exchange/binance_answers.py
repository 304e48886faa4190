"""What Binance's answers say: bodies in, tables in the shapes of ``interface`` out, or an error that names what is wrong.

Here: the parsers of every answer, those of 2018 included. Not here: which request brings them (``binance``) and the
checks of candles (``resources.klines``). Only ``binance`` and tests import it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal

import orjson
import pyarrow as pa
import pyarrow.csv as pa_csv

from crypto_assets.intervals import from_ms
from crypto_assets.resources.exchange.answers import book_side, instant, number, sampled, shown
from crypto_assets.resources.exchange.connection import NotJson
from crypto_assets.resources.exchange.interface import (
    FUNDING_SCHEMA,
    MARKET_SCHEMA,
    OPEN_INTEREST_SCHEMA,
    OrderBook,
)

Part = Literal["spot", "usdm"]
Columns = dict[str, pa.Array]

#: What stands for "never" as the end of a contract: Christmas 2100 (some markets have it seconds later).
_NEVER_MS = 4_133_404_800_000
_DATED = re.compile(r"_(\d{6})$")

#: The elements of a candle in the order of the answer; the twelfth means nothing.
_ELEMENTS = (
    "ts",
    "open",
    "high",
    "low",
    "close",
    "volume_base",
    "close_time",
    "volume_quote",
    "n_trades",
    "taker_buy_base",
    "taker_buy_quote",
    "unused",
)
_INTEGERS = ("ts", "close_time", "n_trades")
_PRICES = ("open", "high", "low", "close")
_REQUIRED = ("ts", "close_time", "volume_base", *_PRICES)
_AMOUNT = pa.decimal128(38, 8)
_CSV_TYPES = {
    **dict.fromkeys(_ELEMENTS, _AMOUNT),
    **dict.fromkeys(_PRICES, pa.float64()),
    **dict.fromkeys(_INTEGERS, pa.int64()),
}
# Brackets become commas and line ends: two empty columns come first, of the outer bracket or comma and the row's own.
_READ = pa_csv.ReadOptions(use_threads=False, column_names=["outer", "row", *_ELEMENTS])
_PARSE = pa_csv.ParseOptions(quote_char=False)
_CONVERT = pa_csv.ConvertOptions(
    column_types=_CSV_TYPES, include_columns=_ELEMENTS[:-1], null_values=[], check_utf8=False
)
_ROWS_TO_LINES = bytes.maketrans(b"[]", b",\n")
#: A candle has nine texts and three integers.
_N_QUOTES = 18


def decoded_klines(body: bytes) -> pa.Table | Any:
    """Decode the body of a kline answer, for ``columns_of``.

    An answer in the exchange's usual spelling, without blanks and with every price and amount quoted, is read as CSV at
    half the cost of JSON: what passes has twelve plain numbers in each row and as many quotes as it must have.

    Returns
    -------
    pyarrow.Table or object
        A table, or the decoded JSON of an answer in another spelling.

    Raises
    ------
    NotJson
        If the body is neither.
    """
    # A CSV reader ignores the blanks of a damaged number.
    if body.startswith(b"[[") and body.endswith(b"]]") and b" " not in body:
        text = body.translate(_ROWS_TO_LINES, b'"')
        try:
            table = pa_csv.read_csv(pa.py_buffer(text), _READ, _PARSE, _CONVERT)
        except pa.ArrowInvalid:
            pass  # What is wrong, the decoded JSON tells better.
        else:
            if len(body) - len(text) == _N_QUOTES * table.num_rows:
                return table
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise NotJson(str(error)) from None


def columns_of(payload: pa.Table | Any) -> Columns:
    """Columns of candles by the names of ``KLINE_SCHEMA``, for ``klines.page_of``.

    Raises
    ------
    ValueError, TypeError
        If decoded JSON is no list of lists of twelve elements of the right types.
    """
    if isinstance(payload, pa.Table):
        return {name: payload.column(name).chunk(0) for name in payload.column_names}
    if not isinstance(payload, list):
        raise TypeError(f"a list of candles was expected, {shown(payload)} came")
    for row in payload:
        if not isinstance(row, list) or len(row) != len(_ELEMENTS):
            raise ValueError(f"a candle must be a list of {len(_ELEMENTS)} elements, {shown(row)} came")
    columns = zip(*payload, strict=True) if payload else [()] * len(_ELEMENTS)
    return {
        name: _array(name, values)
        for name, values in zip(_ELEMENTS, columns, strict=True)
        if name != "unused"
    }


def _array(name: str, values: tuple) -> pa.Array:
    allowed, kind = ((int,), pa.int64()) if name in _INTEGERS else ((str,), pa.string())
    required = name in _REQUIRED
    for value in values:
        if type(value) not in allowed and (required or value is not None):
            what = "an integer" if kind == pa.int64() else "a decimal string"
            raise TypeError(f"{name} must be {what}, {value!r} came")
    try:
        return pa.array(values, kind)
    except (OverflowError, pa.ArrowInvalid):
        raise ValueError(f"{name} exceeds 64 bits") from None


def server_time_of(payload: Any) -> datetime:
    """Read the answer of the time endpoint."""
    return instant(payload.get("serverTime") if isinstance(payload, dict) else None, "serverTime")


def markets_of(part: Part) -> Callable[[object], pa.Table]:
    """Make the reader of exchangeInfo, of spot or of USD-M, by ``MARKET_SCHEMA``.

    Of several markets with one symbol the one is kept that the exchange names by base and quote; it has listed ``IDOL``
    beside ``IDOLUSDT``.
    """
    read = _spot_market if part == "spot" else _contract

    def parse(payload: Any) -> pa.Table:
        markets = payload.get("symbols") if isinstance(payload, dict) else None
        if not isinstance(markets, list):
            raise TypeError(f"an object with a list 'symbols' was expected, {shown(payload)} came")
        rows = [read(market) for market in markets]
        if len({row["exchange_symbol"] for row in rows}) != len(rows):
            raise ValueError(f"a market comes twice among {len(rows)}")
        kept: dict[str, dict[str, Any]] = {}
        for row in rows:
            if row["exchange_symbol"].startswith(row["base"] + row["quote"]):
                kept[row["symbol"]] = row
            else:
                kept.setdefault(row["symbol"], row)
        return pa.Table.from_pylist(list(kept.values()), schema=MARKET_SCHEMA)

    return parse


def _spot_market(market: object) -> dict[str, Any]:
    texts, raw = _named(market, "symbol", "baseAsset", "quoteAsset", "status")
    words = _words(raw)
    allowed = raw.get("isSpotTradingAllowed")
    if not isinstance(allowed, bool):
        allowed = None if words is None else "SPOT" in words
    return {
        "symbol": f"{texts['baseAsset']}/{texts['quoteAsset']}",
        "exchange_symbol": texts["symbol"],
        "market_type": "spot",
        "base": texts["baseAsset"],
        "quote": texts["quoteAsset"],
        "trading_status": texts["status"],
        "permissions": None if words is None else ",".join(words),
        "spot_allowed": allowed,
        **_rules(raw),
    }


def _contract(market: object) -> dict[str, Any]:
    texts, raw = _named(market, "symbol", "baseAsset", "quoteAsset", "marginAsset", "status")
    # The type is a word for people, with blanks in it and sometimes empty; the name tells a dated contract.
    dated = _DATED.search(texts["symbol"])
    words = _words(raw)
    symbol = f"{texts['baseAsset']}/{texts['quoteAsset']}:{texts['marginAsset']}"
    delivery_ms = raw.get("deliveryDate")
    return {
        "symbol": f"{symbol}-{dated[1]}" if dated else symbol,
        "exchange_symbol": texts["symbol"],
        "market_type": "delivery" if dated else "perpetual",
        "base": texts["baseAsset"],
        "quote": texts["quoteAsset"],
        "settle": texts["marginAsset"],
        "contract_type": raw.get("contractType") or None,
        "trading_status": texts["status"],
        "permissions": None if words is None else ",".join(words),
        "listed_at": from_ms(raw["onboardDate"]) if raw.get("onboardDate") else None,
        "delivery_at": from_ms(delivery_ms) if delivery_ms and delivery_ms < _NEVER_MS else None,
        **_rules(raw),
    }


def _named(market: object, *keys: str) -> tuple[dict[str, str], dict[str, Any]]:
    if not isinstance(market, dict):
        raise TypeError(f"a market must be an object, {shown(market)} came")
    raw: dict[str, Any] = dict(market)
    texts: dict[str, Any] = {key: raw.get(key) for key in keys}
    if not all(isinstance(text, str) and text for text in texts.values()):
        raise ValueError(f"a market must state {', '.join(keys)}, {texts} came")
    return texts, raw


def _words(market: dict[str, Any]) -> list[str] | None:
    # Spot: a list until 2023, then a list of lists beside an empty list. USD-M: a list by the newer name.
    groups = [market.get("permissions") or [], *(market.get("permissionSets") or [])]
    words = {word for group in groups for word in ([group] if isinstance(group, str) else group)}
    return sorted(words) or None


def _rules(market: dict[str, Any]) -> dict[str, float | None]:
    filters = {rule.get("filterType"): rule for rule in market.get("filters") or [] if isinstance(rule, dict)}
    # NOTIONAL at spot since 2023, MIN_NOTIONAL before and at USD-M, there with a name of its own for the value.
    notional = filters.get("NOTIONAL") or filters.get("MIN_NOTIONAL") or {}
    return {
        "tick_size": _size(filters.get("PRICE_FILTER", {}).get("tickSize")),
        "lot_size": _size(filters.get("LOT_SIZE", {}).get("stepSize")),
        "min_notional": _size(notional.get("minNotional", notional.get("notional"))),
    }


def _size(text: str | None) -> float | None:
    # The exchange writes 0 for a rule that is switched off.
    return None if text is None else number(text, "a rule of a market") or None


def turnover_of(payload: object) -> dict[str, float]:
    """Read the tickers of the last 24 hours: exchange symbol -> traded value in quote units."""
    if not isinstance(payload, list):
        raise TypeError(f"a list of tickers was expected, {shown(payload)} came")
    try:
        return {ticker["symbol"]: number(ticker["quoteVolume"], "quoteVolume") for ticker in payload}
    except (KeyError, TypeError):
        raise ValueError(f"a ticker must state symbol and quoteVolume, {shown(payload[:2])} came") from None


def funding_of(payload: object) -> tuple[pa.Table, pa.Table, int]:
    """Read funding settlements: by ``FUNDING_SCHEMA``, those set aside, and how many came."""
    if not isinstance(payload, list):
        raise TypeError(f"a list of funding rates was expected, {shown(payload)} came")
    rows = [
        {
            "settled_at": instant(raw.get("fundingTime"), "fundingTime"),
            "funding_rate_frac": number(raw.get("fundingRate"), "fundingRate"),
            # Settlements before 2023 come with an empty one.
            "mark_price": number(raw["markPrice"], "markPrice") if raw.get("markPrice") else None,
        }
        for raw in map(_object, payload)
    ]
    return *sampled(rows, FUNDING_SCHEMA), len(rows)


def open_interest_of(payload: object) -> tuple[pa.Table, pa.Table]:
    """Read samples of the open interest: by ``OPEN_INTEREST_SCHEMA``, and those set aside."""
    if not isinstance(payload, list):
        raise TypeError(f"a list of samples was expected, {shown(payload)} came")
    rows = [
        {
            "ts": instant(raw.get("timestamp"), "timestamp"),
            "open_interest_base": number(raw.get("sumOpenInterest"), "sumOpenInterest"),
            "open_interest_quote": number(raw.get("sumOpenInterestValue"), "sumOpenInterestValue"),
        }
        for raw in map(_object, payload)
    ]
    return sampled(rows, OPEN_INTEREST_SCHEMA)


def book_of(payload: Any, n_levels: int) -> OrderBook:
    """Read an order book; only a contract's tells its time."""
    raw = _object(payload)
    update_id, told_ms = raw.get("lastUpdateId"), raw.get("T")
    if type(update_id) is not int:
        raise ValueError(f"lastUpdateId must be an integer, {shown(update_id)} came")
    return OrderBook(
        bids=book_side(raw.get("bids"), "bids", n_levels),
        asks=book_side(raw.get("asks"), "asks", n_levels),
        last_update_id=update_id,
        exchange_time=None if told_ms is None else instant(told_ms, "T"),
    )


def within(rows: pa.Table, column: str, start: datetime, end: datetime) -> pa.Table:
    """Return rows, all of which have to lie in the asked range [start, end) by a column in which they ascend.

    Raises
    ------
    ValueError
        If one does not.
    """
    if rows.num_rows:
        first, last = (rows[column][at].as_py() for at in (0, -1))
        if first < start or last >= end:
            raise ValueError(f"times {first} to {last} leave the asked range [{start}, {end})")
    return rows


def _object(raw: object) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise TypeError(f"an object was expected, {shown(raw)} came")
    return raw
