"""Klines, settlements and samples as the exchange prints them: JSON out of integer columns, one format a row.

Here: digits. Not here: which rows to print (``world``) and the other answers (``binance``, ``usdm``), which are
small enough for a JSON library. Only they and tests import it.
"""

from __future__ import annotations

import numpy as np
import orjson

from crypto_assets.simulation.bars import (
    CLOSE,
    HIGH,
    LOW,
    N_DECIMALS,
    OPEN,
    TAKER_BASE,
    TAKER_QUOTE,
    UNITS,
    VOLUME_BASE,
    VOLUME_QUOTE,
    Bars,
)
from crypto_assets.simulation.world import Funding, OpenInterest


def decimal_text(units: int, shown: int = N_DECIMALS) -> str:
    """One decimal in units of 1e-8 as text with ``shown`` decimals (the rest is cut).

    Examples
    --------
    >>> decimal_text(499), decimal_text(31747000000, 3)
    ('0.00000499', '317.470')
    """
    sign, units = ("-", -units) if units < 0 else ("", units)
    fraction = f"{units % UNITS:08d}"[:shown]
    return f"{sign}{units // UNITS}{'.' if shown else ''}{fraction}"


def klines_json(bars: Bars) -> bytes:
    """Write the JSON body of a klines answer: 12 elements a row, decimals as strings, unknown values as null.

    The exchange's last element ("ignore") is the string "0".
    """
    fields: list[tuple[str, list[list]]] = [("%d", [bars.open_ms.tolist()])]
    fields += [_decimals(bars.values[row], bars.shown[row]) for row in (OPEN, HIGH, LOW, CLOSE, VOLUME_BASE)]
    fields += [
        ("%d", [bars.close_ms.tolist()]),
        _decimals(bars.values[VOLUME_QUOTE], bars.shown[VOLUME_QUOTE]),
    ]
    fields += [_counts(bars.n_trades)]
    fields += [_decimals(bars.values[row], bars.shown[row]) for row in (TAKER_BASE, TAKER_QUOTE)]
    template = "[" + ",".join(pattern for pattern, _ in fields) + ',"0"]'
    return _rows(template, [column for _, columns in fields for column in columns])


def index_klines_json(bars: Bars) -> bytes:
    """Write the JSON body of a mark price or premium index answer: prices with their sign, volumes "0".

    The exchange puts the number of samples where trades are counted.
    """
    prices = [_signed(bars.values[row]) for row in (OPEN, HIGH, LOW, CLOSE)]
    patterns = ",".join(pattern for pattern, _ in prices)
    template = f'[%d,{patterns},"0",%d,"0",%s,"0","0","0"]'
    return _rows(
        template,
        [
            bars.open_ms.tolist(),
            *(column for _, columns in prices for column in columns),
            bars.close_ms.tolist(),
            *_counts(bars.n_trades)[1],
        ],
    )


def funding_json(exchange_symbol: str, funding: Funding) -> bytes:
    """Write the JSON body of a funding rate answer; an unknown mark price is an empty text, as at the exchange."""
    pattern, rates = _signed(funding.rate)
    marks = [decimal_text(mark) if mark >= 0 else "" for mark in funding.mark_price.tolist()]
    template = (
        f'{{"symbol":{_text(exchange_symbol)},"fundingTime":%d,"fundingRate":{pattern},"markPrice":"%s"}}'
    )
    return _rows(template, [funding.settled_ms.tolist(), *rates, marks])


def open_interest_json(exchange_symbol: str, samples: OpenInterest) -> bytes:
    """Write the JSON body of an open interest history; unknown values are null."""
    shown = np.full(len(samples), N_DECIMALS, np.uint8)
    base, bases = _decimals(samples.base, shown)
    quote, quotes = _decimals(samples.quote, shown)
    template = f'{{"symbol":{_text(exchange_symbol)},"sumOpenInterest":{base},"sumOpenInterestValue":{quote}'
    return _rows(template + ',"timestamp":%d}', [*bases, *quotes, samples.stamp_ms.tolist()])


def _rows(template: str, columns: list[list]) -> bytes:
    return f"[{','.join([template % row for row in zip(*columns, strict=True)])}]".encode()


def _text(value: str) -> str:
    # A percent sign would be read as a format.
    return orjson.dumps(value).decode().replace("%", "%%")


def _signed(units: np.ndarray) -> tuple[str, list[list]]:
    size = np.abs(units)
    signs = ["-" if negative else "" for negative in (units < 0).tolist()]
    return '"%s%d.%08d"', [signs, (size // UNITS).tolist(), (size % UNITS).tolist()]


def _counts(numbers: np.ndarray) -> tuple[str, list[list]]:
    if (numbers >= 0).all():
        return "%d", [numbers.tolist()]
    return "%s", [[number if number >= 0 else "null" for number in numbers.tolist()]]


def _decimals(units: np.ndarray, shown: np.ndarray) -> tuple[str, list[list]]:
    n_shown = int(shown[0]) if len(shown) else N_DECIMALS
    if n_shown and (units >= 0).all() and (shown == n_shown).all():
        fraction = units % UNITS // 10 ** (N_DECIMALS - n_shown)
        return f'"%d.%0{n_shown}d"', [(units // UNITS).tolist(), fraction.tolist()]
    texts = [
        f'"{decimal_text(value, digits)}"' if value >= 0 else "null"
        for value, digits in zip(units.tolist(), shown.tolist(), strict=True)
    ]
    return "%s", [texts]
