"""What a table of features looks like: missing shares, distributions, drift and clusters of columns that say the same.

Here: figures about columns, and one small picture of them. Not here: the columns themselves (``generators``). The assets
of features and tests import it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from io import BytesIO

import numpy as np
import pandas as pd

#: Bins of the population stability index, cut at the quantiles of the earlier rows.
DRIFT_BINS = 10
#: Fewer earlier or present values tell nothing of a distribution.
DRIFT_MIN_ROWS = 100
#: Columns whose rank correlation is at least this strong say the same.
CLUSTER_CORRELATION = 0.9
#: Rank correlations are taken over at most so many rows, evenly spread.
CORRELATION_ROWS = 20_000

#: What a day is compared with.
MONTH = timedelta(days=30)

_SHARES = {"p01": 0.01, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p99": 0.99}


def profile(rows: pd.DataFrame, columns: Sequence[str], earlier: pd.DataFrame | None = None) -> pd.DataFrame:
    """Describe columns, one row each.

    Parameters
    ----------
    rows
        Rows of a table of features.
    columns
        Numeric columns of it.
    earlier
        Rows to compare with, such as those of the month before; None or too few: no drift is told.

    Returns
    -------
    pandas.DataFrame
        ``feature``, ``n_rows``, ``null_share_frac``, ``mean``, ``sd``, quantiles ``p01`` to ``p99`` and ``drift`` (see
        `stability_index`). Figures of a column without values are NaN.

    Notes
    -----
    Describes what is stored and feeds nothing: it may read all rows.
    """
    found = []
    for column in columns:
        values = _values(rows, column)
        quantiles = np.quantile(values, list(_SHARES.values())) if len(values) else [np.nan] * len(_SHARES)
        found.append(
            {
                "feature": column,
                "n_rows": len(rows),
                "null_share_frac": 1 - len(values) / len(rows) if len(rows) else np.nan,
                "mean": values.mean() if len(values) else np.nan,
                "sd": values.std(ddof=1) if len(values) > 1 else np.nan,
                **dict(zip(_SHARES, quantiles, strict=True)),
                "drift": np.nan if earlier is None else stability_index(_values(earlier, column), values),
            }
        )
    return pd.DataFrame(found)


def of_days(
    rows: pd.DataFrame, columns: Sequence[str], last: datetime, n_days: int
) -> Iterator[tuple[datetime, pd.DataFrame]]:
    """Profiles of days, each compared with the ``MONTH`` before it.

    Parameters
    ----------
    rows
        Rows with ``ts``, from a month before the first of these days on, as far as there are any.
    columns
        Numeric columns.
    last
        UTC midnight that opens the last day.
    n_days
        How many days.

    Yields
    ------
    tuple
        A day and its `profile`, oldest first.
    """
    for number in range(n_days - 1, -1, -1):
        day = last - number * timedelta(days=1)
        today = rows["ts"].between(day, day + timedelta(days=1), inclusive="left")
        before = rows["ts"].between(day - MONTH, day, inclusive="left")
        yield day, profile(rows[today], columns, rows[before])


def stability_index(earlier: np.ndarray, present: np.ndarray) -> float:
    """Population stability index: sum (p - q) ln(p / q) over bins of equal share of the earlier values.

    Below 0.1 a distribution counts as unchanged, from 0.25 as another one. Shares are counted with half a value more in
    each bin, so that an empty one gives no infinity. NaN below ``DRIFT_MIN_ROWS`` values on either side.

    Examples
    --------
    >>> before = np.arange(1000.0)
    >>> stability_index(before, before) < 0.001, stability_index(before, before + 300) > 0.25
    (True, True)
    """
    if min(len(earlier), len(present)) < DRIFT_MIN_ROWS:
        return float("nan")
    edges = np.unique(np.quantile(earlier, np.linspace(0, 1, DRIFT_BINS + 1)[1:-1]))
    p, q = (
        np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1) + 0.5
        for values in (present, earlier)
    )
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum((p - q) * np.log(p / q)))


def rank_correlation(rows: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Spearman correlation of columns over rows where both are present, (n, n); NaN where it is not defined."""
    step = max(1, -(-len(rows) // CORRELATION_ROWS))
    return rows[list(columns)].iloc[::step].corr(method="spearman", min_periods=3).to_numpy(copy=True)


def clusters(correlation: np.ndarray) -> list[int]:
    """Groups of columns whose mean |correlation| is at least ``CLUSTER_CORRELATION``, numbered from 1 in column order.

    Average linkage over 1 - |correlation|; an undefined correlation counts as none.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    n = len(correlation)
    if n < 2:
        return [1] * n
    distance = 1 - np.nan_to_num(np.abs(correlation), nan=0.0)
    distance = np.clip((distance + distance.T) / 2, 0, 1)
    np.fill_diagonal(distance, 0)
    merged = linkage(squareform(distance, checks=False), method="average")
    labels = fcluster(merged, 1 - CLUSTER_CORRELATION, criterion="distance")
    order = {label: place for place, label in enumerate(dict.fromkeys(labels.tolist()), start=1)}
    return [order[label] for label in labels.tolist()]


def picture(described: pd.DataFrame, correlation: np.ndarray) -> bytes:
    """Draw quantiles, missing shares and rank correlations of columns as a PNG, clusters side by side.

    Parameters
    ----------
    described
        A `profile` with the column ``cluster``, see `clusters`.
    correlation
        (n, n), in the order of ``described``.
    """
    from matplotlib.figure import Figure

    order = described.sort_values(["cluster", "feature"], kind="stable").index.to_numpy()
    shown, places = described.loc[order], np.arange(len(order))
    scale = shown["sd"].where(shown["sd"] > 0)
    height = max(2.2, 0.17 * len(order) + 0.8)
    # A fixed layout: letting matplotlib find one takes longer than all the rest.
    figure = Figure(figsize=(11, height))
    spread, missing, related = figure.subplots(1, 3, width_ratios=[3, 1, 3])
    figure.subplots_adjust(left=0.2, right=0.97, bottom=0.35 / height, top=1 - 0.35 / height, wspace=0.05)
    for low, high, width in (("p01", "p99", 1), ("p25", "p75", 4)):
        ends = [(shown[name] - shown["mean"]) / scale for name in (low, high)]
        spread.hlines(places, *ends, color="tab:blue", linewidth=width)
    spread.plot((shown["p50"] - shown["mean"]) / scale, places, "|", color="black")
    spread.set(title="1, 25, 50, 75, 99 % in sd around the mean", ylim=(len(order) - 0.5, -0.5))
    spread.set_yticks(places, shown["feature"], fontsize=6)
    missing.barh(places, shown["null_share_frac"], color="tab:gray")
    missing.set(title="share missing", xlim=(0, 1), ylim=(len(order) - 0.5, -0.5), yticks=[])
    image = related.imshow(correlation[np.ix_(order, order)], vmin=-1, vmax=1, cmap="RdBu_r", aspect="auto")
    related.set(title="rank correlation, by cluster", xticks=[], yticks=[])
    figure.colorbar(image, ax=related, pad=0.02)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()


def _values(rows: pd.DataFrame, column: str) -> np.ndarray:
    values = rows[column].to_numpy(dtype=np.float64, na_value=np.nan)
    return values[np.isfinite(values)]
