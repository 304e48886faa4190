"""What the market around a price says: the size of a coin, its contract, who pays whom for holding that.

Here: formulas, windows and names on columns of the raster. Not here: rolling arithmetic (``kernels.py``), how an entry
becomes columns (``formulas.py``), and when the raster knows what (its own SQL). Found by name through the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import numpy as np

from crypto_assets.quant import kernels
from crypto_assets.quant.generators import formulas
from crypto_assets.quant.generators.declared import NOT_NEGATIVE, SHARE, Feature, Grid
from crypto_assets.quant.generators.formulas import Formula, Output, Reach, Run
from crypto_assets.quant.generators.itbstats import present
from crypto_assets.quant.panel import Panel


class Entry(formulas.Formulas):
    """One function of the market, over windows where it has any."""

    @classmethod
    def table(cls) -> Mapping[str, Formula]:
        """Every function by name."""
        return _FUNCTIONS


def features(entry: Entry, grid: Grid) -> tuple[Feature, ...]:
    """Columns by window; errors as `formulas.features` has them."""
    return formulas.features(entry, grid)


def compute(entry: Entry, panel: Panel) -> dict[str, np.ndarray]:
    """Compute the matrices of `features`.

    A change is that since exactly so many bars earlier, NaN if that bar is missing. Sums and means need half of their
    window, not the row's own value. Rows without a bar are left out, whatever the raster carries there; only a sum of
    funding reads them, for a contract settles whether or not the spot market trades. A settlement counts once: in the
    row at whose end it is no older than one bar.

    Notes
    -----
    A value reads its own window and nothing later.
    """
    return formulas.compute(entry, panel, panel.flags("has_bar"))


def _enough(run: Run, x: np.ndarray) -> np.ndarray:
    return kernels.count_present(x, run.n_bars) >= present(run.n_bars)


def _sum(run: Run, x: np.ndarray) -> np.ndarray:
    # Zeros in place of what is missing change no sum, and let a row without a value of its own have one.
    filled = np.where(np.isnan(x), 0.0, x)
    return kernels.rolling_total(filled, run.n_bars, 1, origin=run.origin, first=run.first)


def _total(run: Run, x: np.ndarray) -> np.ndarray:
    return np.where(_enough(run, x), _sum(run, x), np.nan)


def _basis(futures_close: np.ndarray, close: np.ndarray) -> np.ndarray:
    return futures_close / kernels.positive(close) - 1.0


def _basis_mean(run: Run, futures_close: np.ndarray, close: np.ndarray) -> tuple[np.ndarray]:
    basis = _basis(futures_close, close)
    return (_total(run, basis) / kernels.count_present(basis, run.n_bars).clip(1),)


def _funding_sum(run: Run, rate: np.ndarray, age_hours: np.ndarray) -> tuple[np.ndarray]:
    # A settlement at the start of a bar is first seen at its end, exactly one bar old.
    settled = np.where(age_hours <= run.grid.bar / timedelta(hours=1), rate, np.nan)
    return (np.where(_enough(run, rate), _sum(run, settled), np.nan),)


def _open_interest_to_turnover(
    run: Run, interest: np.ndarray, close: np.ndarray, turnover: np.ndarray
) -> tuple[np.ndarray]:
    return (interest * close / kernels.positive(_total(run, turnover)),)


def _futures_share(run: Run, futures: np.ndarray, spot: np.ndarray) -> tuple[np.ndarray]:
    of_futures = _total(run, futures)
    return (of_futures / kernels.positive(of_futures + _total(run, spot)),)


def _last(output: Output, *inputs: str) -> Formula:
    return Formula((output,), inputs, lambda run: (Reach(0, 0),), lambda run, x: (x,), ())


def _change(output: Output, column: str) -> Formula:
    return Formula(
        (output,),
        (column,),
        lambda run: (Reach(run.n_bars, run.n_bars),),
        lambda run, x: (kernels.log_change(x, run.n_bars),),
    )


_FUNCTIONS = {
    "market_cap_log": Formula(
        (Output("market_cap_log", "log", "ln(market_cap_usd)"),),
        ("market_cap_usd",),
        lambda run: (Reach(0, 0),),
        lambda run, cap: (kernels.log(cap),),
        (),
    ),
    "market_cap_change": _change(
        Output("market_cap_{w}_log", "log", "ln(market_cap_usd / market_cap_usd {w} earlier)"),
        "market_cap_usd",
    ),
    "rank_gain": Formula(
        (
            Output(
                "market_cap_rank_gain_{w}",
                "rank",
                "market_cap_rank {w} earlier - market_cap_rank; positive: rose",
            ),
        ),
        ("market_cap_rank",),
        lambda run: (Reach(run.n_bars, run.n_bars),),
        lambda run, rank: (kernels.lagged(rank, run.n_bars) - rank,),
    ),
    "turnover_to_market_cap": Formula(
        (
            Output(
                "turnover_{w}_to_market_cap",
                "1",
                "sum of turnover_quote over {w} / market_cap_usd",
                NOT_NEGATIVE,
            ),
        ),
        ("turnover_quote", "market_cap_usd"),
        lambda run: (formulas.rolling(run.n_bars),),
        lambda run, turnover, cap: (_total(run, turnover) / kernels.positive(cap),),
    ),
    "basis": Formula(
        (Output("basis_frac", "frac", "futures_close / close - 1"),),
        ("futures_close", "close"),
        lambda run: (Reach(0, 0),),
        lambda run, *closes: (_basis(*closes),),
        (),
    ),
    "basis_mean": Formula(
        (Output("basis_{w}_frac", "frac", "mean of futures_close / close - 1 over {w}"),),
        ("futures_close", "close"),
        lambda run: (formulas.rolling(run.n_bars),),
        _basis_mean,
    ),
    "premium": _last(
        Output("premium_last_frac", "frac", "last closed premium index of the contract"), "premium_frac"
    ),
    "funding": _last(
        Output("funding_last_frac", "frac", "last settled funding rate of the contract"), "funding_rate_frac"
    ),
    "funding_sum": Formula(
        (
            Output(
                "funding_{w}_frac",
                "frac",
                "sum of the funding rates settled within {w}; of several in one bar the last, which the raster shows",
            ),
        ),
        ("funding_rate_frac", "funding_age_hours"),
        lambda run: (formulas.rolling(run.n_bars),),
        _funding_sum,
        reads_all=True,
    ),
    "open_interest_change": _change(
        Output("open_interest_{w}_log", "log", "ln(open_interest_base / open_interest_base {w} earlier)"),
        "open_interest_base",
    ),
    "open_interest_to_turnover": Formula(
        (
            Output(
                "open_interest_to_turnover_{w}",
                "1",
                "open_interest_base x futures_close / sum of futures_turnover_quote over {w}",
                NOT_NEGATIVE,
            ),
        ),
        ("open_interest_base", "futures_close", "futures_turnover_quote"),
        lambda run: (formulas.rolling(run.n_bars),),
        _open_interest_to_turnover,
    ),
    "futures_share": Formula(
        (
            Output(
                "futures_share_{w}_frac",
                "frac",
                "f / (f + s), sums over {w}; f: futures_turnover_quote, s: turnover_quote",
                SHARE,
            ),
        ),
        ("futures_turnover_quote", "turnover_quote"),
        lambda run: (formulas.rolling(run.n_bars),),
        _futures_share,
    ),
}
