"""The return of one holding period, fill to fill: what a decision at the end of a bar would have earned.

Here: fills, exits, deaths and when each is decided. Not here: features, or anything else that must not look
ahead; this is the only module of ``quant`` that does. Imported by the assets of labels, and by tests.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pandas as pd

from crypto_assets.quant.panel import Panel, bars_in, require_columns, times_of

FILL_WAIT = timedelta(hours=6)
DEATH_AFTER = timedelta(hours=24)
_NEEDED = ("symbol", "ts", "known_at", "listing_id", "has_bar", "open", "close")


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
    n_horizon, n_wait, n_death = (
        bars_in(duration, bar, what)
        for duration, what in ((horizon, "horizon"), (fill_wait, "fill_wait"), (death_after, "death_after"))
    )
    if not n_horizon or not n_death:
        raise ValueError(f"horizon ({horizon}) and death_after ({death_after}) must be positive")
    require_columns(raster, _NEEDED, "raster")
    now = np.datetime64(watermark, "us")
    panel = Panel.of(raster.loc[times_of(raster["known_at"]) <= now, list(_NEEDED)], bar)
    has_bar, opens, closes = panel.flags("has_bar"), panel.matrix("open"), panel.matrix("close")
    _check_prices(panel, has_bar, opens, closes)

    # Places in time are integers; n_times stands for "none seen".
    n_times = len(panel.times)
    next_bar = _next_place(has_bar)
    pause = next_bar[1:] - (np.arange(n_times)[:, None] + 1)
    silent_until = panel.times[:, None] + panel.bar + np.timedelta64(death_after)
    ends_here = has_bar & np.where(next_bar[1:] < n_times, pause >= n_death, silent_until <= now)
    next_end = _next_place(ends_here)

    row, column = (places[has_bar[panel.row, panel.column]] for places in (panel.row, panel.column))
    fill = next_bar[row + 1, column]
    filled = (fill < n_times) & (fill - (row + 1) <= n_wait)
    unfilled_at = panel.times[row] + panel.bar * (n_wait + 2)
    due = np.minimum(fill + n_horizon, n_times)
    last, leave = next_end[fill, column], next_bar[due, column]
    outcome = np.select(
        [
            ~filled & (unfilled_at <= now),
            ~filled,
            last < due,
            leave == n_times,
            leave - (fill + n_horizon) <= n_wait,
        ],
        ["unfilled", "", "death", "", "filled"],
        default="gap",
    ).astype(object)

    died, traded = outcome == "death", outcome == "filled"
    decided = outcome != ""
    # One row more, so that "none seen" has a place to read from.
    times = np.append(panel.times, np.datetime64("NaT", "us"))
    opens, closes = (np.vstack([prices, np.full(prices.shape[1], np.nan)]) for prices in (opens, closes))
    exit_place = np.select([died, traded], [last, leave], n_times)
    exit_price = np.where(died, closes[exit_place, column], opens[exit_place, column])
    known_at = np.select(
        [outcome == "unfilled", died, decided],
        [unfilled_at, times[last] + panel.bar + np.timedelta64(death_after), times[leave] + panel.bar],
        np.datetime64("NaT", "us"),
    )
    rows = panel.frame.loc[has_bar[panel.row, panel.column], ["symbol", "ts", "listing_id"]].reset_index(
        drop=True
    )
    outcome[~decided] = None
    return rows.assign(
        known_at=known_at,
        horizon=horizon_name(horizon),
        fill_ts=times[np.where(decided & filled, fill, n_times)],
        exit_ts=times[exit_place],
        forward_return_frac=exit_price / opens[fill, column] - 1.0,
        outcome=outcome,
    )


def _next_place(flags: np.ndarray) -> np.ndarray:
    # First place at or after each one where the flag is set, with one more row for "past the end".
    n_times, n_listings = flags.shape
    place = np.full((n_times + 1, n_listings), n_times)
    place[:n_times][flags] = np.nonzero(flags)[0]
    return np.minimum.accumulate(place[::-1], axis=0)[::-1]


def _check_prices(panel: Panel, has_bar: np.ndarray, opens: np.ndarray, closes: np.ndarray) -> None:
    wrong = has_bar & ~((opens > 0) & (closes > 0))
    if wrong.any():
        time, listing = np.argwhere(wrong)[0]
        raise ValueError(
            f"{panel.listings[listing]} at {panel.times[time]} has a bar without a positive open and close: "
            "the raster must be free of such bars"
        )
