"""What is known about every coin at a decision: is it alive and eligible, prior weight, risk, score.

Here: the market as it was known at a decision, and the table of candidates. Not here: views and weights
(``holdings.py``) and matrix formulas (``black_litterman.py``). Imported by ``quant/holdings``, assets and
tests. A decision reads exactly its own look-back and rows known by then, so that any way of chunking gives
the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pandas as pd

from crypto_assets.quant.black_litterman import covariance, equilibrium_returns, measurable
from crypto_assets.quant.kernels import xs_zscore
from crypto_assets.quant.labels import horizon_name
from crypto_assets.quant.panel import Panel, bars_in, require_columns, require_unique, times_of

#: A listing is a candidate while its newest raster row is younger; a raster row follows its last bar by at
#: most that.
ALIVE = timedelta(hours=48)

_KEY = ["symbol", "ts", "listing_id"]
_DAY = np.timedelta64(timedelta(days=1))
_SCORE_LIMIT_Z = 3.0
_PROBABILITY_EDGE = 1e-6


def lookback(bar: timedelta, lookback_bars: int) -> timedelta:
    """Say how far before a decision the rows reach that it reads; load at least so much of every input.

    Examples
    --------
    >>> lookback(timedelta(hours=1), 720)
    datetime.timedelta(days=30, seconds=3600)
    """
    return max((lookback_bars + 1) * bar, 2 * ALIVE)


@dataclass(frozen=True, eq=False)
class Market:
    """The raster as matrices, read as of a decision.

    Attributes
    ----------
    panel
        Raster rows on their grid; a row is known at the end of its bar.
    symbols
        (n_listings,) symbol of each column.
    close
        (n_times, n_listings) close in quote units, NaN without a bar.
    present
        (n_times, n_listings) a raster row exists.
    """

    panel: Panel
    symbols: np.ndarray
    close: np.ndarray
    present: np.ndarray

    @classmethod
    def of(cls, raster: pd.DataFrame, bar: timedelta) -> Market:
        """Place raster rows on the grid of ``bar``; raises what `Panel.of` raises."""
        require_columns(raster, ("close", "has_bar"), "raster")
        panel = Panel.of(raster, bar)
        symbols = np.empty(len(panel.listings), dtype=object)
        symbols[panel.column] = panel.frame["symbol"]
        close = panel.matrix("close")
        close[~panel.flags("has_bar") | ~(close > 0)] = np.nan
        return cls(panel, symbols, close, panel.spread(np.ones(len(panel.frame), dtype=bool), False))

    def end(self, decision: np.datetime64) -> int:
        """Count the grid intervals that have ended at a decision; may lie outside the grid.

        Raises
        ------
        ValueError
            If the decision is off the grid: its label would fill before it.
        """
        if decision.astype(np.int64) % self.panel.bar.astype(np.int64):
            raise ValueError(
                f"decision {decision} is off the raster's grid of {self.panel.bar}: use a whole bar"
            )
        return int((decision - self.panel.times[0]) // self.panel.bar) if len(self.panel.times) else 0

    def places(self, listing_ids: pd.Series) -> np.ndarray:
        """Columns of listings in the matrices.

        Raises
        ------
        ValueError
            If the raster has no row of one of them.
        """
        places = pd.Index(self.panel.listings).get_indexer(pd.Index(listing_ids))
        if (places < 0).any():
            unknown = listing_ids.to_numpy()[places < 0][0]
            raise ValueError(
                f"the raster has no row of {unknown}: load the whole look-back before the first decision"
            )
        return places

    def known(self, matrix: np.ndarray, end: int, n: int, missing: float | bool = np.nan) -> np.ndarray:
        """Cut the last ``n`` intervals before ``end`` out of a panel matrix, padded with ``missing``."""
        window = np.full((n, matrix.shape[1]), missing, dtype=matrix.dtype)
        low, high = max(end - n, 0), min(end, len(matrix))
        if low < high:
            window[low - (end - n) : high - (end - n)] = matrix[low:high]
        return window

    def returns(self, end: int, lookback_bars: int, columns: np.ndarray) -> np.ndarray:
        """Compute (lookback_bars, len(columns)) simple returns per bar, NaN beside a missing bar."""
        close = np.ascontiguousarray(self.known(self.close, end, lookback_bars + 1)[:, columns])
        return close[1:] / close[:-1] - 1

    def newest_close(self, end: int, n: int) -> np.ndarray:
        """(n_listings,) newest close among the last ``n`` intervals, NaN where there is none."""
        return _newest(self.known(self.close, end, n))


def candidates(
    raster: pd.DataFrame,
    universe: pd.DataFrame,
    alpha_scores: pd.DataFrame,
    prediction_scores: pd.DataFrame,
    *,
    decision_times: np.ndarray,
    bar: timedelta,
    horizon: timedelta,
    lookback_bars: int = 720,
    delta: float = 2.5,
    max_bar_age: int = 2,
    max_cap_age_days: int = 3,
    min_cap_coverage: float = 0.6,
) -> pd.DataFrame:
    """Market prior, risk and standardised score of every coin alive at each decision.

    Parameters
    ----------
    raster, universe, alpha_scores, prediction_scores
        Rows of ``rollups/raster``, ``features/universe``, ``weights/alpha_scores`` and ``predictions/scores``
        that reach back by `lookback` before the first decision. Each model of ``prediction_scores`` is one
        source.
    decision_times
        (n,) naive UTC, on the grid of ``bar``.
    bar, horizon
        Raster interval, and rebalance period H.
    lookback_bars
        Returns in the covariance: the last so many bars known at the decision.
    delta
        Risk aversion of the equilibrium.
    max_bar_age, max_cap_age_days
        A coin or score whose newest bar is older (bars), and a cap whose day ended longer ago, are not used.
    min_cap_coverage
        Share of eligible coins whose cap must be known, else the prior is equally weighted
        (``prior_degraded``). Without any known cap it always is.

    Returns
    -------
    pandas.DataFrame
        Rows of ``holdings/candidates``, sorted by decision and symbol; ``status`` is ``ok``,
        ``prior_degraded``, ``no_universe`` (nothing is eligible) or ``covariance_failed``, the same for all
        rows of a decision. A coin of the universe whose returns overlap too little with the others is not
        eligible (``no_covariance``). ``covariance_method`` and ``covariance_change_frac`` are those of
        `black_litterman.Covariance`, beside ``sigma_frac`` wherever there is one.

    Raises
    ------
    ValueError
        If columns are missing, rows repeat, or a decision is off the grid.

    Notes
    -----
    Reads only rows with ``known_at <= decision_at``. Unknown cap: ``w_mkt`` = 0, yet the coin stays in
    the covariance. A source is z-scored among the eligible coins (at least 5 values) and clipped at 3,
    probabilities as logits; a coin's ``score_z`` is the mean of the sources it has. Source: conventions,
    sections 6 and 7.
    """
    known = _Known.of(raster, universe, alpha_scores, prediction_scores, bar)
    blocks = []
    for decision in np.asarray(decision_times, dtype="datetime64[us]"):
        block = _alive(known, decision, max_bar_age, np.timedelta64(timedelta(days=max_cap_age_days)))
        _add_risk(block, known, decision, lookback_bars, horizon / bar, delta, min_cap_coverage)
        _add_score(block, known, decision, max_bar_age)
        blocks.append(block)
    columns = (
        {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        if blocks
        else _NOTHING
    )
    rows = pd.DataFrame(columns).drop(columns="place").assign(horizon=horizon_name(horizon))
    return rows.assign(known_at=rows["decision_at"])


@dataclass(frozen=True, eq=False)
class _Source:
    # A value per cell and the moment it was known, epoch microseconds as float64 (exact until the year 2255).
    values: np.ndarray
    known_us: np.ndarray


@dataclass(frozen=True, eq=False)
class _Known:
    market: Market
    cap_usd: np.ndarray
    cap_ts_us: np.ndarray
    universe: _Source
    reasons: np.ndarray
    scores: tuple[_Source, ...]

    @classmethod
    def of(
        cls,
        raster: pd.DataFrame,
        universe: pd.DataFrame,
        alpha_scores: pd.DataFrame,
        prediction_scores: pd.DataFrame,
        bar: timedelta,
    ) -> _Known:
        require_columns(
            raster, (*_KEY, "known_at", "close", "has_bar", "market_cap_usd", "market_cap_ts"), "raster"
        )
        require_columns(universe, (*_KEY, "known_at", "eligible", "reason"), "universe")
        require_columns(alpha_scores, (*_KEY, "known_at", "alpha_score"), "alpha_scores")
        require_columns(prediction_scores, (*_KEY, "known_at", "model", "probability"), "prediction_scores")
        reason = np.where(universe["eligible"].astype(bool), "eligible", universe["reason"]).astype(object)
        codes, reasons = pd.factorize(reason, sort=True)
        sources = {
            "universe": universe.assign(value=codes),
            "alpha": alpha_scores.assign(value=alpha_scores["alpha_score"]),
        }
        p = prediction_scores["probability"].astype(float).clip(_PROBABILITY_EDGE, 1 - _PROBABILITY_EDGE)
        by_model = prediction_scores.assign(value=np.log((p / (1 - p)).to_numpy())).groupby(
            "model", sort=True
        )
        sources |= {f"model {model}": rows for model, rows in by_model}
        joined = raster.assign(cap_ts_us=_micros(raster["market_cap_ts"]))
        for name, rows in sources.items():
            added = rows[_KEY].assign(**{name: rows["value"], f"{name} known": _micros(rows["known_at"])})
            require_unique(added, _KEY, name)
            joined = joined.merge(added, on=_KEY, how="left")
        market = Market.of(joined, bar)
        matrix = market.panel.matrix
        placed = {name: _Source(matrix(name), matrix(f"{name} known")) for name in sources}
        return cls(
            market=market,
            cap_usd=matrix("market_cap_usd"),
            cap_ts_us=matrix("cap_ts_us"),
            universe=placed.pop("universe"),
            reasons=np.asarray(reasons, dtype=object),
            scores=tuple(placed.values()),
        )

    def newest(self, source: _Source, decision: np.datetime64, n: int) -> np.ndarray:
        end = self.market.end(decision)
        values = self.market.known(source.values, end, n)
        values[~(self.market.known(source.known_us, end, n) <= float(decision.astype(np.int64)))] = np.nan
        return _newest(values)


#: Columns of a decision's rows; `place` is the column of the listing in the matrices.
_NOTHING: dict[str, np.ndarray] = {
    "decision_at": np.zeros(0, dtype="datetime64[us]"),
    "symbol": np.zeros(0, dtype=object),
    "listing_id": np.zeros(0, dtype=object),
    "place": np.zeros(0, dtype=np.int64),
    "eligible": np.zeros(0, dtype=bool),
    "reason": np.zeros(0, dtype=object),
    "close": np.zeros(0),
    "market_cap_usd": np.zeros(0),
    "w_mkt": np.zeros(0),
    "sigma_frac": np.zeros(0),
    "pi_frac": np.zeros(0),
    "covariance_method": np.zeros(0, dtype=object),
    "covariance_change_frac": np.zeros(0),
    "score_z": np.zeros(0),
    "n_sources": np.zeros(0, dtype=np.int64),
    "status": np.zeros(0, dtype=object),
}


def _alive(
    known: _Known, decision: np.datetime64, max_bar_age: int, max_cap_age: np.timedelta64
) -> dict[str, np.ndarray]:
    market, bar = known.market, known.market.panel.bar.astype(timedelta)
    end, n_alive = market.end(decision), bars_in(ALIVE, bar, "ALIVE")
    row = _newest_place(market.known(market.present, end, n_alive, False))
    bar_age = 2 * n_alive - 1 - _newest_place(~np.isnan(market.known(market.close, end, 2 * n_alive)))
    place = np.flatnonzero(row >= 0)
    # Of a reused ticker only the newest life is a candidate.
    place = place[np.lexsort((-row[place], market.symbols[place].astype(str)))]
    place = place[np.unique(market.symbols[place].astype(str), return_index=True)[1]]

    cap = market.known(known.cap_usd, end, n_alive)[row[place], place]
    cap_ts_us = market.known(known.cap_ts_us, end, n_alive)[row[place], place]
    cap_age_us = float((decision - _DAY).astype(np.int64)) - cap_ts_us
    cap[~((cap > 0) & (cap_age_us <= max_cap_age.astype("timedelta64[us]").astype(np.int64)))] = np.nan
    code = known.newest(known.universe, decision, n_alive)[place]
    named = np.append(known.reasons, "no_universe_row")[np.where(np.isnan(code), -1, code).astype(np.int64)]
    reason = np.where((named == "eligible") & (bar_age[place] > max_bar_age), "stale", named).astype(object)
    missing = np.full(len(place), np.nan)
    return {
        "decision_at": np.full(len(place), decision),
        "symbol": market.symbols[place],
        "listing_id": np.array(market.panel.listings, dtype=object)[place],
        "place": place,
        "eligible": (reason == "eligible").astype(bool),
        "reason": reason,
        "close": market.newest_close(end, 2 * n_alive)[place],
        "market_cap_usd": cap,
        "w_mkt": missing.copy(),
        "sigma_frac": missing.copy(),
        "pi_frac": missing.copy(),
        "covariance_method": np.full(len(place), None, dtype=object),
        "covariance_change_frac": missing.copy(),
        "score_z": missing.copy(),
        "n_sources": np.zeros(len(place), dtype=np.int64),
        "status": np.full(len(place), "ok", dtype=object),
    }


def _add_risk(
    block: dict[str, np.ndarray],
    known: _Known,
    decision: np.datetime64,
    lookback_bars: int,
    periods: float,
    delta: float,
    min_cap_coverage: float,
) -> None:
    end = known.market.end(decision)
    chosen = np.flatnonzero(block["eligible"])
    returns = known.market.returns(end, lookback_bars, block["place"][chosen])
    enough = measurable(returns)
    block["eligible"][chosen[~enough]] = False
    block["reason"][chosen[~enough]] = "no_covariance"
    chosen, returns = chosen[enough], np.ascontiguousarray(returns[:, enough])
    if not chosen.size:
        block["status"][:] = "no_universe"
        return
    cap = block["market_cap_usd"][chosen]
    counted = ~np.isnan(cap)
    degraded = not counted.any() or counted.mean() < min_cap_coverage
    w_mkt = (
        np.full(len(chosen), 1 / len(chosen))
        if degraded
        else np.where(counted, cap, 0.0) / cap[counted].sum()
    )
    block["w_mkt"][chosen] = w_mkt
    if degraded:
        block["status"][:] = "prior_degraded"
    try:
        measured = covariance(returns, periods=periods)
    except np.linalg.LinAlgError:
        block["status"][:] = "covariance_failed"
        return
    block["sigma_frac"][chosen] = np.sqrt(np.diag(measured.matrix))
    block["pi_frac"][chosen] = equilibrium_returns(measured.matrix, w_mkt, delta=delta)
    block["covariance_method"][chosen] = measured.method
    block["covariance_change_frac"][chosen] = measured.change_frac


def _add_score(
    block: dict[str, np.ndarray], known: _Known, decision: np.datetime64, max_bar_age: int
) -> None:
    chosen = np.flatnonzero(block["eligible"])
    if not chosen.size:
        return
    total, count = np.zeros(len(chosen)), np.zeros(len(chosen), dtype=np.int64)
    for source in known.scores:
        values = known.newest(source, decision, max_bar_age + 1)[block["place"][chosen]]
        z = np.clip(xs_zscore(values[None, :])[0], -_SCORE_LIMIT_Z, _SCORE_LIMIT_Z)
        present = ~np.isnan(z)
        total[present] += z[present]
        count += present
    block["n_sources"][chosen] = count
    block["score_z"][chosen] = np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _micros(times: pd.Series) -> np.ndarray:
    values = times_of(times)
    return np.where(np.isnat(values), np.nan, values.astype(np.int64).astype(float))


def _newest_place(mask: np.ndarray) -> np.ndarray:
    # Last row where the mask is set, -1 where it never is.
    return np.where(mask.any(axis=0), len(mask) - 1 - mask[::-1].argmax(axis=0), -1)


def _newest(values: np.ndarray) -> np.ndarray:
    place = _newest_place(~np.isnan(values))
    return np.where(place >= 0, values[place, np.arange(values.shape[1])], np.nan)
