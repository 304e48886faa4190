"""Figures about columns of features."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from crypto_assets.quant import profiles

DAY = timedelta(days=1)


def table(n_rows: int = 4000, seed: int = 3) -> pd.DataFrame:
    draws = np.random.default_rng(seed)
    a, b = draws.normal(size=(2, n_rows))
    rows = pd.DataFrame({"a": a, "twin": np.exp(a), "mirror": -a, "b": b, "constant": 1.0, "absent": np.nan})
    rows.loc[rows.index[: n_rows // 4], "b"] = np.nan
    return rows


def test_columns_that_say_the_same_share_a_cluster_whatever_their_sign_or_scale() -> None:
    rows = table()
    found = profiles.clusters(profiles.rank_correlation(rows, list(rows.columns)))
    groups = dict(zip(rows.columns, found, strict=True))
    assert groups["a"] == groups["twin"] == groups["mirror"] == 1
    assert len({groups[name] for name in ("a", "b", "constant", "absent")}) == 4


@pytest.mark.parametrize(("n_rows", "expected"), [(0, 0.0), (1, 1.0), (-1, 0.0)])
def test_correlations_are_taken_over_no_more_rows_than_said(n_rows: int, expected: float) -> None:
    # Of every second row the columns agree, of the others they are opposed.
    n = profiles.CORRELATION_ROWS + n_rows
    a = np.random.default_rng(8).normal(size=n)
    rows = pd.DataFrame({"a": a, "b": np.where(np.arange(n) % 2 == 0, a, -a)})
    assert profiles.rank_correlation(rows, ["a", "b"])[0, 1] == pytest.approx(expected, abs=0.05)


def test_shares_and_quantiles_are_those_of_the_values_present() -> None:
    rows = table()
    described = profiles.profile(rows, list(rows.columns)).set_index("feature")
    assert described.loc["b", "null_share_frac"] == pytest.approx(0.25)
    assert described.loc["b", "p25"] == pytest.approx(rows["b"].quantile(0.25))
    assert described.loc["b", "sd"] == pytest.approx(rows["b"].std())
    assert described.loc["absent", "null_share_frac"] == 1
    assert described[["mean", "sd", "p50", "drift"]].loc[["absent"]].isna().all(axis=None)
    assert described.loc["constant", "sd"] == 0


@pytest.mark.parametrize(("shift", "drifts"), [(0.0, False), (1.0, True)])
def test_a_moved_distribution_drifts_and_another_draw_of_the_same_does_not(
    shift: float, drifts: bool
) -> None:
    earlier, present = table(seed=1), table(seed=2)
    index = profiles.stability_index(earlier["a"].to_numpy(), present["a"].to_numpy() + shift)
    assert (index > 0.25) == drifts
    assert (index < 0.1) == (not drifts)


def test_too_few_values_tell_no_drift() -> None:
    few = np.arange(profiles.DRIFT_MIN_ROWS - 1.0)
    assert np.isnan(profiles.stability_index(few, np.arange(1000.0)))
    assert np.isnan(profiles.stability_index(np.arange(1000.0), few))


def test_a_point_mass_is_compared_by_its_share() -> None:
    mostly_zero = np.where(np.arange(1000) % 10 == 0, 1.0, 0.0)
    assert profiles.stability_index(mostly_zero, mostly_zero) == 0
    assert profiles.stability_index(mostly_zero, 1 - mostly_zero) > 0.25


@pytest.mark.parametrize("n_columns", [1, 6])
def test_the_picture_is_a_png_of_every_column(n_columns: int) -> None:
    rows = table().iloc[:, :n_columns]
    correlation = profiles.rank_correlation(rows, list(rows.columns))
    described = profiles.profile(rows, list(rows.columns)).assign(cluster=profiles.clusters(correlation))
    drawn = profiles.picture(described, correlation)
    assert drawn.startswith(b"\x89PNG")


def test_no_rows_describe_nothing() -> None:
    described = profiles.profile(table().iloc[:0], ["a", "b"])
    assert described["n_rows"].eq(0).all()
    assert described[["null_share_frac", "mean", "p50"]].isna().all(axis=None)


def test_a_day_is_compared_with_the_month_before_it_and_with_nothing_else() -> None:
    first, n_days, per_day = datetime(2024, 1, 1), 34, 144
    ts = pd.date_range(first, periods=n_days * per_day, freq="10min")
    values = np.random.default_rng(5).normal(size=len(ts))
    # Another world before the month of the last day, and on the last day itself.
    values[: 3 * per_day] += 50
    values[-per_day:] += 2
    rows = pd.DataFrame({"ts": ts, "a": values})
    last = first + (n_days - 1) * DAY
    (before, yesterday), (day, today) = profiles.of_days(rows, ["a"], last, 2)
    assert (before, day) == (last - DAY, last)
    assert today["n_rows"][0] == yesterday["n_rows"][0] == per_day
    assert today["drift"][0] == profiles.stability_index(values[3 * per_day : -per_day], values[-per_day:])
    assert today["drift"][0] > 0.25 > yesterday["drift"][0]
