"""Rolling predictions: a classifier of the sign of the forward return, fitted weekly, applied to later rows.

Here: the wide feature frame, the fit with its out-of-fold calibration, and the scores. Not here: features
themselves (``features.py``, dbt), labels, and what a score is used for (``signals.py``, ``candidates.py``).
Imported by the assets of predictions, and by tests; LightGBM is imported inside functions.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from crypto_assets.quant.panel import IDENTITY, floor_week, require_columns, require_unique, times_of

if TYPE_CHECKING:
    import lightgbm

#: Small trees: hourly crypto returns are mostly noise. 63 bins: as good here, and faster.
PARAMETERS: dict[str, float | int | str | bool] = {
    "num_boost_round": 60,
    "num_leaves": 15,
    "learning_rate": 0.05,
    "min_data_in_leaf": 200,
    "max_bin": 63,
}
#: What makes a fit repeatable to the bit; not to be changed by a setting.
_FIXED = {
    "objective": "binary",
    "deterministic": True,
    "force_col_wise": True,
    "num_threads": 1,
    "verbosity": -1,
}
_STEP_SIZES = [0.5**halving for halving in range(34)]
_KEY = ["symbol", "ts", "listing_id"]
_TIMES = ("week", "known_at", "train_from")
_SCORES = ("symbol", "ts", "model", "known_at", "listing_id", "raw_score", "probability", "model_hash")


def assemble_features(cross_section: pd.DataFrame, sets: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Join the feature sets of eligible coins side by side.

    Parameters
    ----------
    cross_section
        Rows of ``features/cross_section``. They decide which rows there are: the coins that were eligible at that
        moment.
    sets
        Rows of other tables of features on the same grid, by name.

    Returns
    -------
    pandas.DataFrame
        symbol, ts, known_at, listing_id and every feature column, sorted by symbol and ts; ``known_at`` is
        the latest of the joined rows; features of a set without such a row are NaN. ``n_eligible`` describes
        no coin and is left out.

    Raises
    ------
    ValueError
        If identity columns are missing, rows repeat, or two sets share a feature name.
    """
    for name, rows in {"cross_section": cross_section, **sets}.items():
        require_columns(rows, IDENTITY, name)
        require_unique(rows, _KEY, name)
    wide = cross_section.drop(columns="n_eligible", errors="ignore")
    for name, of_set in sets.items():
        rows = of_set.rename(columns={"known_at": "known_at_of_set"})
        shared = set(rows.columns) & set(wide.columns) - set(_KEY)
        if shared:
            raise ValueError(
                f"{name}: the features {sorted(shared)} exist in another set: rename one of them"
            )
        wide = wide.merge(rows, on=_KEY, how="left")
        wide["known_at"] = wide[["known_at", "known_at_of_set"]].max(axis=1)
        wide = wide.drop(columns="known_at_of_set")
    features = [column for column in wide.columns if column not in IDENTITY]
    return wide.sort_values(["symbol", "ts"], ignore_index=True)[[*IDENTITY, *features]]


def fit_model(
    features: pd.DataFrame,
    labels: pd.DataFrame,
    *,
    week: datetime,
    model: str,
    feature_names: Sequence[str],
    parameters: Mapping[str, float | int | str | bool],
    train_weeks: int,
    calibration_weeks: int = 2,
    min_rows: int,
    min_calibration_rows: int = 200,
    seed: int,
) -> pd.DataFrame:
    """Fit one classifier on what was known at the week's start.

    Parameters
    ----------
    features
        Wide rows of `assemble_features`; rows with ts in [week - train_weeks, week) are used, in any order.
    labels
        Rows of ``labels/forward_returns`` of one horizon; the target is ``forward_return_frac > 0``.
    week
        Monday 00:00 UTC, the cut.
    model
        Name under which the fit is stored.
    feature_names
        Columns of ``features`` in the order in which the model sees them.
    parameters
        Training parameters of LightGBM, on top of ``PARAMETERS``.
    train_weeks, calibration_weeks
        Length of all rows used, and of the last part of them that calibrates.
    min_rows, min_calibration_rows
        Fewer training or calibration rows: ``insufficient_history``.
    seed
        Seed of everything random in LightGBM.

    Returns
    -------
    pandas.DataFrame
        One row of ``predictions/models``. ``status``: ``ok``; ``insufficient_history``; ``one_class`` (a part
        has only gains or only losses); ``no_skill`` (the calibration slope is not positive: on rows it had
        not seen the model told nothing, or the opposite). Only an ``ok`` model gives scores: a model without
        skill has no opinion, and a base rate in its place would look like one.

    Raises
    ------
    ValueError
        If columns are missing, rows repeat, labels have several horizons, or a parameter would break
        repeatability.

    Notes
    -----
    Rows need feature ``known_at <= week`` and label ``known_at <= week``. Chronological split:
    calibration rows have ts in the last ``calibration_weeks``; training rows lie before, with label
    ``known_at`` not after the calibration span's start, so no outcome is seen twice. Calibration: Platt
    (1999), logit p = a + b score, with his smoothed targets. The stored text is what is calibrated and
    applied, so storing loses nothing.
    """
    names = list(feature_names)
    require_columns(features, (*IDENTITY, *names), "features")
    require_columns(labels, (*_KEY, "known_at", "horizon", "forward_return_frac"), "labels")
    settings = _settings(parameters)
    if not 0 < calibration_weeks < train_weeks:
        raise ValueError(
            f"fit_model: calibration_weeks {calibration_weeks} must be positive and below {train_weeks}"
        )
    cut = np.datetime64(week, "us")
    if floor_week(np.asarray(cut)) != cut:
        raise ValueError(f"fit_model: week {week} is not a Monday 00:00 UTC")
    rows = _training_rows(features, labels, names, cut, cut - np.timedelta64(timedelta(weeks=train_weeks)))
    split = cut - np.timedelta64(timedelta(weeks=calibration_weeks))
    later = times_of(rows["ts"]) >= split
    train, calibration = rows[~later & (times_of(rows["label_known_at"]) <= split)], rows[later]
    described = {**settings, "seed": seed, "train_weeks": train_weeks, "calibration_weeks": calibration_weeks}
    row = {
        "week": cut,
        "model": model,
        "known_at": cut,
        "train_from": times_of(train["ts"]).min() if len(train) else np.datetime64("NaT", "us"),
        "n_train": len(train),
        "n_calibration": len(calibration),
        "calibration_intercept": np.nan,
        "calibration_slope": np.nan,
        "auc": np.nan,
        "features": json.dumps(names),
        "parameters": json.dumps(described, sort_keys=True),
        "model_text": None,
        "model_hash": None,
    }
    if len(train) < min_rows or len(calibration) < min_calibration_rows:
        return _one_fit(row | {"status": "insufficient_history"})
    gains, later_gains = (part["forward_return_frac"].to_numpy() > 0 for part in (train, calibration))
    if len(np.unique(gains)) < 2 or len(np.unique(later_gains)) < 2:
        return _one_fit(row | {"status": "one_class"})
    text = _train(_matrix(train, names), gains, settings, seed)
    raw = _booster(text).predict(_matrix(calibration, names), raw_score=True, num_threads=1)
    intercept, slope = calibrate(np.asarray(raw), later_gains)
    digest = hashlib.sha256(f"{text}\n{intercept!r}\n{slope!r}".encode()).hexdigest()
    row |= {
        "calibration_intercept": intercept,
        "calibration_slope": slope,
        "auc": area_under_roc(np.asarray(raw), later_gains),
        "model_text": text,
        "model_hash": digest,
        "status": "ok" if slope > 0 else "no_skill",
    }
    return _one_fit(row)


def predict(features: pd.DataFrame, models: pd.DataFrame, model: str) -> pd.DataFrame:
    """Score rows with the model of the week that contains their ts.

    Parameters
    ----------
    features
        Wide rows of `assemble_features`.
    models
        Rows of ``predictions/models``; only those named ``model`` are used.
    model
        Name of the model.

    Returns
    -------
    pandas.DataFrame
        Rows of ``predictions/scores``. No row where the week has no ``ok`` fit, or where every feature is
        missing; a partly missing row is scored (trees send a missing value its own way).

    Raises
    ------
    ValueError
        If columns are missing, a week has two fits, or a fit is stamped later than its week.
    """
    require_columns(
        models, ("week", "model", "known_at", "status", "features", "model_text", "model_hash"), "models"
    )
    require_columns(features, IDENTITY, "features")
    fits = models[(models["model"] == model) & (models["status"] == "ok")]
    if fits["week"].duplicated().any() or (fits["known_at"] > fits["week"]).any():
        raise ValueError(f"models: {model} has two fits for one week, or one known after its week began")
    week = floor_week(times_of(features["ts"]))
    blocks = [_scores(features[week == fit["week"].to_datetime64()], fit) for _, fit in fits.iterrows()]
    blocks = [block for block in blocks if len(block)]
    if not blocks:
        numbers, words = ("raw_score", "probability"), ("model", "model_hash")
        nothing = features.iloc[:0][list(IDENTITY)].reset_index(drop=True)
        nothing = nothing.assign(
            **dict.fromkeys(numbers, np.zeros(0)), **dict.fromkeys(words, np.zeros(0, dtype=object))
        )
        return nothing[list(_SCORES)]
    return pd.concat(blocks, ignore_index=True).sort_values(["symbol", "ts"], ignore_index=True)


def calibrate(score: np.ndarray, gain: np.ndarray) -> tuple[float, float]:
    """Intercept and slope of logit p = a + b score, by Newton's method from fixed start values.

    Parameters
    ----------
    score
        (n,) finite raw scores on rows that the model has not seen.
    gain
        (n,) bool, both classes present.

    Returns
    -------
    tuple of float
        ``(a, b)``; ``b`` is 0 where all scores are equal, since nothing then tells them apart.

    Notes
    -----
    Platt (1999) with targets (n+ + 1)/(n+ + 2) and 1/(n- + 2), so that separable scores stay finite;
    step halving as in Lin, Lin and Weng (2007). Scores are standardised first, so that convergence does not
    depend on their unit.

    Examples
    --------
    >>> a, b = calibrate(np.array([-1.0, -1.0, 1.0, 1.0]), np.array([False, True, False, True]))
    >>> abs(a) < 1e-12, abs(b) < 1e-12
    (True, True)
    """
    n_gain = int(gain.sum())
    n_loss = len(gain) - n_gain
    target = np.where(gain, (n_gain + 1) / (n_gain + 2), 1 / (n_loss + 2))
    base = math.log((n_gain + 1) / (n_loss + 1))
    centre, spread = float(score.mean()), float(score.std())
    if spread == 0:
        return base, 0.0
    x = (score - centre) / spread
    a, b = base, 0.0
    loss = _log_loss(a + b * x, target)
    for _ in range(100):
        p = _sigmoid(a + b * x)
        gap, weight = p - target, p * (1 - p)
        gradient = np.array([gap.sum(), (gap * x).sum()])
        if np.abs(gradient).max() <= 1e-12 * len(x):
            break
        hessian = np.array([[weight.sum(), (weight * x).sum()], [(weight * x).sum(), (weight * x * x).sum()]])
        # The ridge keeps the step defined where every p has become 0 or 1.
        step = np.linalg.solve(hessian + 1e-12 * np.eye(2), gradient)
        trials = ((a - size * step[0], b - size * step[1]) for size in _STEP_SIZES)
        better = next(((u, v) for u, v in trials if _log_loss(u + v * x, target) < loss), None)
        if better is None:
            break
        a, b = better
        loss = _log_loss(a + b * x, target)
    return float(a - b * centre / spread), float(b / spread)


def area_under_roc(score: np.ndarray, gain: np.ndarray) -> float:
    """Probability that a random gain has a higher score than a random loss, ties counted half.

    Examples
    --------
    >>> area_under_roc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True]))
    0.875
    """
    ordered = np.sort(score)
    # Twice the average rank, in whole numbers.
    rank = np.searchsorted(ordered, score, "left") + np.searchsorted(ordered, score, "right") + 1
    n_gain = int(gain.sum())
    n_loss = len(gain) - n_gain
    return float(int(rank[gain].sum()) - n_gain * (n_gain + 1)) / (2 * n_gain * n_loss)


def _settings(parameters: Mapping[str, float | int | str | bool]) -> dict[str, float | int | str | bool]:
    refused = sorted(name for name in parameters if name in _FIXED or name.endswith("seed"))
    if refused:
        raise ValueError(
            f"fit_model: the parameters {refused} are fixed, so that a fit repeats to the bit: remove them"
        )
    return {**PARAMETERS, **parameters}


def _training_rows(
    features: pd.DataFrame, labels: pd.DataFrame, names: list[str], cut: np.datetime64, start: np.datetime64
) -> pd.DataFrame:
    ts = times_of(features["ts"])
    rows = features[(ts >= start) & (ts < cut) & (times_of(features["known_at"]) <= cut)]
    rows = rows[rows[names].notna().any(axis=1)]
    label_ts = times_of(labels["ts"])
    known = labels[(label_ts >= start) & (label_ts < cut) & (times_of(labels["known_at"]) <= cut)]
    known = known[known["forward_return_frac"].notna()]
    if known["horizon"].nunique() > 1:
        raise ValueError(f"labels: the horizons {sorted(known['horizon'].unique())} are mixed: pass one")
    known = known[[*_KEY, "known_at", "forward_return_frac"]].rename(columns={"known_at": "label_known_at"})
    require_unique(rows, _KEY, "features")
    require_unique(known, _KEY, "labels")
    return rows.merge(known, on=_KEY).sort_values(["symbol", "ts"], ignore_index=True)


def _matrix(rows: pd.DataFrame, names: list[str]) -> np.ndarray:
    return np.ascontiguousarray(rows[names].to_numpy(dtype=np.float64, na_value=np.nan))


def _train(
    matrix: np.ndarray, gains: np.ndarray, settings: dict[str, float | int | str | bool], seed: int
) -> str:
    import lightgbm

    chosen = {name: value for name, value in settings.items() if name != "num_boost_round"}
    data = lightgbm.Dataset(matrix, gains.astype(np.float64), free_raw_data=True)
    booster = lightgbm.train(
        {**_FIXED, **chosen, "seed": seed}, data, num_boost_round=int(settings["num_boost_round"])
    )
    return booster.model_to_string()


def _booster(text: str) -> lightgbm.Booster:
    import lightgbm

    return lightgbm.Booster(model_str=text)


def _one_fit(row: dict[str, object]) -> pd.DataFrame:
    return pd.DataFrame([row]).astype(dict.fromkeys(_TIMES, "datetime64[us]"))


def _scores(rows: pd.DataFrame, fit: pd.Series) -> pd.DataFrame:
    names = json.loads(fit["features"])
    missing = [name for name in names if name not in rows]
    if missing:
        raise ValueError(
            f"model {fit['model']} of the week {fit['week']:%Y-%m-%d} was fitted on {', '.join(missing)}, which no feature "
            "set makes any more: fit that week again (job fit)"
        )
    rows = rows[rows[names].notna().any(axis=1)]
    if rows.empty:
        return rows
    raw = np.asarray(_booster(fit["model_text"]).predict(_matrix(rows, names), raw_score=True, num_threads=1))
    linear = fit["calibration_intercept"] + fit["calibration_slope"] * raw
    scored = rows[list(IDENTITY)].assign(
        model=fit["model"], raw_score=raw, probability=_sigmoid(linear), model_hash=fit["model_hash"]
    )
    return scored[list(_SCORES)]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    # exp of a negative number only: no overflow on either side.
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def _log_loss(linear: np.ndarray, target: np.ndarray) -> float:
    return float((np.maximum(linear, 0) - linear * target + np.log1p(np.exp(-np.abs(linear)))).sum())
