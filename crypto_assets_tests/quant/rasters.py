"""Small rasters for the tests of ``quant``: prices, gaps and listings from a seed, and comparison to the bit.

Here: making rows that keep the contract of ``rollups/raster``, and cutting them as assets do. Not here:
assertions about results. Imported by the tests of ``quant`` only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
from hypothesis import settings

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
START = datetime(2022, 5, 2)

#: Few, repeatable examples: one example runs a whole chain of kernels.
QUICK = settings(max_examples=15, deadline=None, derandomize=True, database=None)

_LIFE_BARS = 48
_VALUES = ("open", "high", "low", "close", "volume_base", "turnover_quote", "n_trades", "taker_buy_base")


@dataclass(frozen=True)
class Listing:
    """One life of a symbol on the raster: bars ``first`` to ``last`` after the start, some missing."""

    symbol: str
    number: int = 1
    first: int = 0
    last: int | None = None
    gaps: tuple[tuple[int, int], ...] = ()


def random_raster(
    n_bars: int,
    listings: Sequence[Listing | str],
    *,
    seed: int = 0,
    missing_share: float = 0.0,
    tick: float | None = None,
    start: datetime = START,
    bar: timedelta = HOUR,
) -> pd.DataFrame:
    """Raster rows of random walks; the values of a listing depend on the seed and its own name only."""
    parts = []
    for item in listings:
        listing = Listing(item) if isinstance(item, str) else item
        name = f"{listing.symbol}#{listing.number}"
        rng = np.random.default_rng([seed, *name.encode()])
        close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, n_bars)))
        opens = np.concatenate([[100.0], close[:-1]]) * np.exp(rng.normal(0.0, 0.001, n_bars))
        if tick is not None:
            close, opens = (np.round(prices / tick) * tick for prices in (close, opens))
        volume = np.round(rng.lognormal(2.0, 1.0, n_bars), 3)
        frame = pd.DataFrame(
            {
                "open": opens,
                "high": np.maximum(opens, close) * 1.001,
                "low": np.minimum(opens, close) * 0.999,
                "close": close,
                "volume_base": volume,
                "turnover_quote": volume * close,
                "n_trades": np.floor(volume) + 1.0,
                "taker_buy_base": volume * rng.uniform(0.2, 0.8, n_bars),
            }
        )
        has_bar = rng.random(n_bars) >= missing_share
        has_bar[: listing.first] = False
        if listing.last is not None:
            has_bar[listing.last + 1 :] = False
        for low, high in listing.gaps:
            has_bar[low:high] = False
        parts.append(place(frame, listing.symbol, name, has_bar, start=start, bar=bar))
    return pd.concat(parts, ignore_index=True)


def raster_of(
    columns: dict[str, Sequence[float | None]],
    *,
    symbol: str = "AAA/USDT",
    listing_id: str | None = None,
    start: datetime = START,
    bar: timedelta = HOUR,
) -> pd.DataFrame:
    """Raster rows of one listing, written by hand; a None in the first column is a missing bar."""
    frame = pd.DataFrame({name: np.array(values, dtype=np.float64) for name, values in columns.items()})
    first = next(iter(columns))
    for name in _VALUES:
        if name not in frame:
            frame[name] = frame[first]
    return place(
        frame, symbol, listing_id or f"{symbol}#1", frame[first].notna().to_numpy(), start=start, bar=bar
    )


def place(
    frame: pd.DataFrame, symbol: str, listing_id: str, has_bar: np.ndarray, *, start: datetime, bar: timedelta
) -> pd.DataFrame:
    """Complete raster rows: identity, times and age, from the first bar to 48 intervals after each bar."""
    places = np.arange(len(frame))
    newest = np.maximum.accumulate(np.where(has_bar, places, -_LIFE_BARS - 1))
    age = places - newest
    ts = np.datetime64(start, "us") + np.timedelta64(bar) * places
    result = frame.assign(
        symbol=symbol,
        ts=ts,
        known_at=ts + np.timedelta64(bar),
        listing_id=listing_id,
        has_bar=has_bar,
        bar_age=age,
        coin_id=None,
        market_cap_usd=np.nan,
        market_cap_ts=np.datetime64("NaT", "us"),
    )
    result.loc[~has_bar, [name for name in _VALUES if name in result]] = np.nan
    return result.loc[age < _LIFE_BARS].reset_index(drop=True)


def between(frame: pd.DataFrame, start: datetime, end: datetime) -> pd.DataFrame:
    """Rows with ``start <= ts < end``."""
    return frame.loc[(frame["ts"] >= start) & (frame["ts"] < end)]


def midnight(moment: datetime) -> datetime:
    """Start of the UTC day."""
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def assert_same_bits(left: pd.DataFrame, right: pd.DataFrame, key: Iterable[str] = ("symbol", "ts")) -> None:
    """Both frames hold the same rows and columns, numbers equal to the last bit, missing equal to missing."""
    order = list(key)
    left, right = (frame.sort_values(order, ignore_index=True) for frame in (left, right))
    assert sorted(left.columns) == sorted(right.columns)
    assert len(left) == len(right)
    for name in left.columns:
        if left[name].dtype.kind == "f":
            a, b = (frame[name].to_numpy(dtype=np.float64) for frame in (left, right))
            different = (a.view(np.int64) != b.view(np.int64)) & ~(np.isnan(a) & np.isnan(b))
        else:
            a, b = left[name], right[name]
            different = ((a != b) & ~(a.isna() & b.isna())).fillna(True).to_numpy(dtype=bool)
        rows = left.loc[different, order]
        assert rows.empty, f"{name} differs in {len(rows)} rows, first {rows.iloc[0].to_dict()}"


def assert_chunk_invariant(
    compute: Callable[[pd.DataFrame], pd.DataFrame],
    raster: pd.DataFrame,
    *,
    start: datetime,
    end: datetime,
    lookback_days: int,
    key: Iterable[str] = ("symbol", "ts"),
    symbols: Iterable[str] | None = None,
) -> None:
    """Rows of [start, end) are the same from all history and later days as from the look-back alone."""
    everything = between(compute(raster), start, end)
    loaded = between(raster, midnight(start) - timedelta(days=lookback_days), end)
    chunk = between(compute(loaded), start, end)
    assert_same_bits(everything, chunk, key)
    if symbols is not None:
        kept = list(symbols)
        alone = between(compute(loaded.loc[loaded["symbol"].isin(kept)]), start, end)
        assert_same_bits(everything.loc[everything["symbol"].isin(kept)], alone, key)


def assert_no_look_ahead(
    compute: Callable[[pd.DataFrame], pd.DataFrame],
    raster: pd.DataFrame,
    *,
    cut: datetime,
    key: Iterable[str] = ("symbol", "ts"),
) -> None:
    """What was known at ``cut`` is the same whether or not later raster rows exist."""
    known = compute(raster.loc[raster["known_at"] <= cut])
    later = compute(raster)
    assert (known["known_at"] <= cut).all()
    assert_same_bits(known, later.loc[later["known_at"] <= cut], key)
