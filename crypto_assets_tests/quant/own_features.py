"""Functions of a user's own, as ``module:function`` of a feature set names them."""

from __future__ import annotations

import pandas as pd


def spread_share(frame: pd.DataFrame) -> pd.Series:
    """Mean of (high - low) / close over this bar and the one before."""
    return ((frame["high"] - frame["low"]) / frame["close"]).rolling(2).mean()
