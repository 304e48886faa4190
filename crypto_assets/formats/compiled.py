"""Plain lines of candles, from bytes into the buffers of Arrow arrays, compiled.

Here: numbers as the exchange prints them: digits, after a point at most eight, before it at most eighteen, a sign. Not
here: any other spelling, which is left to ``tables`` and ``values``, and what a column means (``klines``). ``klines``
imports it, inside a function, because the import takes most of a second.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numba import njit
from numba.cpython.unsafe.numbers import trailing_zeros

from crypto_assets.jit import jit

#: Bytes that have to follow the last line, whatever they are: one that is not plain may be read so far beyond its end.
REACH = 512

# Unsigned throughout: of signed and unsigned numbers numba makes floats.
_U = np.uint64
_LINE_END, _RETURN, _QUOTE, _COMMA, _POINT = map(np.uint8, b'\n\r",.')
_ZERO, _ONE, _EIGHT = _U(0), _U(1), _U(8)
_BYTE, _HALF_WORD = _U(0xFF), _U(0xFFFFFFFF)
_ZEROS = _U(0x3030303030303030)
_MINUS = _U(ord("-") ^ ord("0"))
_ABOVE_NINE = _U(0x7676767676767676)
_HIGH_BITS = _U(0x8080808080808080)
_PAIRS = _U(0x000000FF000000FF)
_EVEN_WEIGHTS, _ODD_WEIGHTS = _U(0x000F424000000064), _U(0x0000271000000001)
_UNIT = _U(10**8)
_MOST_DIGITS = _U(18)
#: A whole number up to here and a power of ten up to 10^22 are exact float64: their quotient is rounded once, rightly.
_EXACT = _U(2**53)
_MOST_WHOLE = _EXACT // _UNIT - _ONE
_POWERS = np.array([10**n for n in range(9)], np.uint64)
_SCALES = _POWERS.astype(np.float64)

# Calls would count references to the text, which takes longer than reading a number.
_inlined = njit(nogil=True, forceinline=True, error_model="numpy")
_compiled = partial(jit, nogil=True, error_model="numpy")


@_inlined
def _word(text: np.ndarray, at: np.uint64) -> np.uint64:
    # Eight characters, the first one in the lowest byte: a single load, once it is compiled.
    return (
        _U(text[at])
        | _U(text[at + _U(1)]) << _U(8)
        | _U(text[at + _U(2)]) << _U(16)
        | _U(text[at + _U(3)]) << _U(24)
        | _U(text[at + _U(4)]) << _U(32)
        | _U(text[at + _U(5)]) << _U(40)
        | _U(text[at + _U(6)]) << _U(48)
        | _U(text[at + _U(7)]) << _U(56)
    )


@_inlined
def _stops(digits: np.uint64) -> np.uint64:
    # The lowest bit that is set is in the first byte that is no digit; carries reach only the bytes above it.
    return ((digits + _ABOVE_NINE) | digits) & _HIGH_BITS


@_inlined
def _n_before(stops: np.uint64) -> np.uint64:
    return _U(trailing_zeros(stops)) >> _U(3)  # ty: ignore[missing-argument] - numba gives the first one


@_inlined
def _number_of(digits: np.uint64) -> np.uint64:
    # Neighbours become pairs, and the four pairs one number by their weights.
    pairs = digits * _U(10) + (digits >> _EIGHT)
    return ((pairs & _PAIRS) * _EVEN_WEIGHTS + ((pairs >> _U(16)) & _PAIRS) * _ODD_WEIGHTS) >> _U(32)


@_inlined
def _whole(
    text: np.ndarray, at: np.uint64, digits: np.uint64, start: np.uint64
) -> tuple[np.uint64, np.uint64, np.bool]:
    # The number, where it ends, and whether it is plain. Its digits begin at start; what lies before reads as zeros.
    first, value = at, _ZERO
    stops = _stops(digits)
    while stops == _ZERO and at - first < _U(16):
        value = value * _UNIT + _number_of(digits)
        at += _EIGHT
        digits = _word(text, at) ^ _ZEROS
        stops = _stops(digits)
    n = _n_before(stops)
    at += n
    # Two shifts: one by all 64 bits has no meaning.
    value = value * _POWERS[n] + _number_of((digits << _EIGHT) << ((_U(56) - _EIGHT * n) & _U(63)))
    return value, at, (at > start) & (at - start <= _MOST_DIGITS)


@_inlined
def _integer(text: np.ndarray, at: np.uint64) -> tuple[np.int64, np.uint64, np.bool]:
    value, at, is_plain = _whole(text, at, _word(text, at) ^ _ZEROS, at)
    return np.int64(value), at + _ONE, is_plain & (text[at] == _COMMA)


@_inlined
def _decimal(text: np.ndarray, at: np.uint64) -> tuple[np.bool, np.uint64, np.uint64, np.uint64, np.bool]:
    # Whether it is negative, its whole part, the rest in units of 1e-8, where the next column begins, whether it is plain.
    digits = _word(text, at) ^ _ZEROS
    is_negative = digits & _BYTE == _MINUS
    if is_negative:
        # To read the sign as a zero costs less than to begin behind it.
        digits ^= _MINUS
    whole, at, is_plain = _whole(text, at, digits, at + _U(is_negative))
    part = _ZERO
    if text[at] == _POINT:
        at += _ONE
        digits = _word(text, at) ^ _ZEROS
        stops = _stops(digits)
        if stops == _ZERO:
            part = _number_of(digits)
            at += _EIGHT
        else:
            n = _n_before(stops)
            part = _number_of(digits & ((_ONE << (_EIGHT * n)) - _ONE))
            at += n
            is_plain &= n != _ZERO
    return is_negative, whole, part, at + _ONE, is_plain & (text[at] == _COMMA)


@_inlined
def _price(text: np.ndarray, at: np.uint64) -> tuple[np.float64, np.uint64, np.bool]:
    is_negative, whole, part, at, is_plain = _decimal(text, at)
    n_places = 8
    if whole > _MOST_WHOLE:
        # Zeros at the end are none of the digits that have to fit.
        while n_places > 0 and part % _U(10) == _ZERO:
            part //= _U(10)
            n_places -= 1
        is_plain &= whole < _EXACT // _POWERS[n_places]
    value = np.float64(np.int64(whole * _POWERS[n_places] + part)) / _SCALES[n_places]
    return -value if is_negative else value, at, is_plain


@_inlined
def _amount(text: np.ndarray, at: np.uint64) -> tuple[np.uint64, np.uint64, np.uint64, np.bool]:
    is_negative, whole, part, at, is_plain = _decimal(text, at)
    # Both halves times 10^8, with what the lower one carries: 128 bits, so that nothing is lost.
    low = (whole & _HALF_WORD) * _UNIT + part
    high = (whole >> _U(32)) * _UNIT + (low >> _U(32))
    low = (high << _U(32)) | (low & _HALF_WORD)
    high >>= _U(32)
    if is_negative:
        low = ~low + _ONE
        high = ~high + _U(low == _ZERO)
    return low, high, at, is_plain


@_compiled
def read_lines(
    text: np.ndarray,
    end: int,
    row: int,
    times: np.ndarray,
    prices: np.ndarray,
    amounts: np.ndarray,
    trades: np.ndarray,
) -> np.int64:
    """Read lines of the twelve columns of ``klines.WIRE_COLUMNS``, up to the first one that is not plain.

    Parameters
    ----------
    text
        uint8 (m,) of the lines and at least ``REACH`` bytes more.
    end
        Where the lines end, right after the line feed of the last one.
    row
        Place of the first line in the arrays.
    times, prices, amounts, trades
        Targets: int64 (2, n) of open and close times as they stand, float64 (4, n) correctly rounded, uint64
        (4, n, 2) of the words of decimal128 in units of 1e-8, int64 (n,).

    Returns
    -------
    int
        Lines that were read. What stands in the targets after them means nothing.
    """
    at, stop, here = _ZERO, _U(end), _U(row)
    while at < stop:
        # One decision a line: where a number begins must not wait for the judgement of the one before.
        times[0, here], at, plain = _integer(text, at)
        prices[0, here], at, fits = _price(text, at)
        plain &= fits
        prices[1, here], at, fits = _price(text, at)
        plain &= fits
        prices[2, here], at, fits = _price(text, at)
        plain &= fits
        prices[3, here], at, fits = _price(text, at)
        plain &= fits
        amounts[0, here, 0], amounts[0, here, 1], at, fits = _amount(text, at)
        plain &= fits
        times[1, here], at, fits = _integer(text, at)
        plain &= fits
        amounts[1, here, 0], amounts[1, here, 1], at, fits = _amount(text, at)
        plain &= fits
        trades[here], at, fits = _integer(text, at)
        plain &= fits
        amounts[2, here, 0], amounts[2, here, 1], at, fits = _amount(text, at)
        plain &= fits
        amounts[3, here, 0], amounts[3, here, 1], at, fits = _amount(text, at)
        if not plain & fits:
            break
        # The last column holds nothing, whatever stands there.
        char = text[at]
        while char != _LINE_END and char != _COMMA and char != _QUOTE and char != _RETURN:
            at += _ONE
            char = text[at]
        if char == _RETURN:
            at += _ONE
        if text[at] != _LINE_END:
            break
        at += _ONE
        here += _ONE
    return np.int64(here) - row


@_compiled
def count_lines(text: np.ndarray) -> int:
    """Count the line feeds of a text, uint8 (m,)."""
    n = 0
    for char in text:
        n += char == _LINE_END
    return n
