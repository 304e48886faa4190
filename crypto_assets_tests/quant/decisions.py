"""Upstream rows of the holdings stage for tests: caps, universe and scores beside a raster of ``rasters.py``.

Here: making rows that keep their contracts, and one run of candidates with short windows. Not here:
assertions about results. Imported by the tests of candidates, holdings and reports only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from crypto_assets.quant import candidates
from crypto_assets_tests.quant.rasters import DAY, HOUR, START, Listing, random_raster

COINS = tuple(f"C{number}/USDT" for number in range(6))
#: A short covariance window keeps tests small; the close look-back of 96 h is longer.
WINDOW = 60
KEY = ["symbol", "ts", "known_at", "listing_id"]


def market(
    n_bars: int,
    listings: Sequence[Listing | str] = COINS,
    *,
    caps: Mapping[str, float] | None = None,
    seed: int = 0,
    missing_share: float = 0.0,
) -> pd.DataFrame:
    """Random raster with caps of 1, 2, 3 ... billion in the order of symbols, or those given."""
    raster = random_raster(n_bars, listings, seed=seed, missing_share=missing_share)
    names = sorted(raster["symbol"].unique())
    cap = {name: 1e9 * (place + 1) for place, name in enumerate(names)} | dict(caps or {})
    raster["market_cap_usd"] = raster["symbol"].map(cap)
    # The cap of the day before, as it is known from 00:45.
    raster["market_cap_ts"] = (raster["ts"].dt.floor("D") - pd.Timedelta(days=1)).astype("datetime64[us]")
    return raster


def universe_of(raster: pd.DataFrame, reasons: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Universe rows in which every coin is eligible, but those with a reason."""
    reason = raster["symbol"].map(dict(reasons or {})).fillna("eligible")
    return raster[KEY].assign(eligible=reason == "eligible", reason=reason)


def alpha_of(
    raster: pd.DataFrame, values: Mapping[str, float] | None = None, *, seed: int = 0
) -> pd.DataFrame:
    """Alpha scores: those given by symbol, else from a hash of seed, symbol and ts."""
    if values is not None:
        return raster[KEY].assign(alpha_score=raster["symbol"].map(dict(values)).astype(float))
    numbers = pd.util.hash_pandas_object(raster["symbol"] + raster["ts"].astype(str) + str(seed), index=False)
    return raster[KEY].assign(alpha_score=numbers.to_numpy() / 2.0**64 - 0.5)


def probabilities_of(raster: pd.DataFrame, values: Mapping[str, float], model: str = "sign") -> pd.DataFrame:
    """Prediction scores of one model, by symbol."""
    return raster[KEY].assign(model=model, probability=raster["symbol"].map(dict(values)).astype(float))


def decide(
    raster: pd.DataFrame,
    times: Sequence[datetime] | np.ndarray,
    *,
    universe: pd.DataFrame | None = None,
    alpha: pd.DataFrame | None = None,
    predictions: pd.DataFrame | None = None,
    horizon: timedelta = DAY,
    **changes: Any,
) -> pd.DataFrame:
    """Candidates with a short window; without scores unless given."""
    return candidates.candidates(
        raster,
        universe_of(raster) if universe is None else universe,
        alpha_of(raster.iloc[:0]) if alpha is None else alpha,
        probabilities_of(raster.iloc[:0], {}) if predictions is None else predictions,
        decision_times=np.asarray(times, dtype="datetime64[us]"),
        bar=HOUR,
        horizon=horizon,
        **{"lookback_bars": WINDOW, **changes},
    )


def at(hours: int) -> datetime:
    """So many hours after the first bar."""
    return START + hours * HOUR
