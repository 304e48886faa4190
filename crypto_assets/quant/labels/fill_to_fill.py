"""The return of one holding period, fill to fill: what a decision at the end of a bar would have earned.

Here: the table ``labels/forward_returns``, with fills, exits, outcomes. Not here: when a thing is decided
(``future.py``), and the declared families (``forward_return.py`` holds the same return as a column of a set).
"""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pandas as pd

from crypto_assets.quant.labels.declared import DEATH_AFTER, FILL_WAIT, Terms
from crypto_assets.quant.labels.future import Future
from crypto_assets.quant.panel import bars_in


def lookahead(
    horizon: timedelta,
    bar: timedelta,
    *,
    fill_wait: timedelta = FILL_WAIT,
    death_after: timedelta = DEATH_AFTER,
) -> timedelta:
    """How far after ``ts`` a label may read: load every raster row with a start before ``ts + lookahead``.

    Examples
    --------
    >>> lookahead(timedelta(hours=24), timedelta(hours=1))
    datetime.timedelta(days=2, seconds=28800)
    """
    return 2 * bar + fill_wait + horizon + max(death_after, fill_wait)


def horizon_name(horizon: timedelta) -> str:
    """Name the horizon as it is stored: whole hours as ``24h``, else whole minutes as ``90m``.

    Examples
    --------
    >>> horizon_name(timedelta(days=1)), horizon_name(timedelta(minutes=90))
    ('24h', '90m')
    """
    hours, rest = divmod(horizon, timedelta(hours=1))
    return f"{horizon // timedelta(minutes=1)}m" if rest else f"{hours}h"


def forward_returns(
    raster: pd.DataFrame,
    *,
    horizon: timedelta,
    bar: timedelta,
    watermark: datetime,
    fill_wait: timedelta = FILL_WAIT,
    death_after: timedelta = DEATH_AFTER,
) -> pd.DataFrame:
    """Forward return of every raster row that has a bar, decided on at the bar's end.

    The decision at ``ts + bar`` fills at the open of the first bar of the same listing that starts at or
    after it, at most ``fill_wait`` later (else ``unfilled``). The position leaves at the open of the first
    bar at or after fill + ``horizon``, at most ``fill_wait`` later (``filled``). If after a held bar no other
    follows for ``death_after``, it has died: it leaves at that bar's close (``death``), and stays dead even
    if the listing trades again, because nobody could know. If trading paused over the exit window for less
    than that, there is no exit (``gap``, no value).

    Parameters
    ----------
    raster
        Rows of ``rollups/raster``; every row that is known by ``watermark`` and starts before ``ts +
        lookahead(...)`` must be in it, or ``ts`` may see a death that did not happen.
    horizon
        Holding period, whole bars; equals the rebalance period.
    bar
        Length of a raster interval.
    watermark
        Rows known later are not used and give no row.
    fill_wait, death_after
        Whole bars.

    Returns
    -------
    pandas.DataFrame
        Rows of ``labels/forward_returns``. ``known_at``, ``fill_ts``, ``exit_ts``, ``forward_return_frac``
        and ``outcome`` are NULL while undecided; a later watermark only turns NULL into a value, once.

    Raises
    ------
    ValueError
        If durations are no whole bars, the raster breaks the rules of `Panel.of`, or a bar has no positive
        open and close.

    Notes
    -----
    ``known_at``: filled, the end of the exit bar; death, ``death_after`` past the last bar's end; unfilled,
    the end of the last bar that could have filled; gap, the end of the bar that proved the listing alive.
    Looks ahead by `lookahead`. Source: conventions, sections 1 and 5.
    """
    n_horizon = bars_in(horizon, bar, "horizon")
    if not n_horizon:
        raise ValueError(f"horizon ({horizon}) must be positive")
    terms = Terms(bar, {}, fill_wait, death_after)
    future = Future.of(raster, terms, columns=("open", "close"), watermark=watermark)
    held = future.position(n_horizon)
    entered, left = future.traded_at(held, *future.prices("open", "close"))
    decided = held.outcome != ""
    outcome = held.outcome.copy()
    outcome[~decided] = None
    rows = future.panel.frame.loc[future.wanted, ["symbol", "ts", "listing_id"]].reset_index(drop=True)
    return rows.assign(
        known_at=future.end_of(held.place),
        horizon=horizon_name(horizon),
        fill_ts=np.where(decided, future.time_of(held.fill), np.datetime64("NaT", "us")),
        exit_ts=future.time_of(held.leave),
        forward_return_frac=left / entered - 1.0,
        outcome=outcome,
    )
