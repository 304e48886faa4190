"""Klines as the exchange prints them: JSON out of integer columns, one format operation a row.

Here: digits. Not here: which rows to print (``world``) and the other answers (``binance``), which are small
enough for a JSON library. Only ``binance.py`` and tests import it.
"""

from __future__ import annotations

import numpy as np

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
    columns = [column for _, columns in fields for column in columns]
    return f"[{','.join([template % row for row in zip(*columns, strict=True)])}]".encode()


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
