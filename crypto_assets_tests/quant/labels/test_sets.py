from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_assets.quant.labels import LabelSet, Terms, entry_of
from crypto_assets.quant.labels.sets import FAMILIES, LabelError, family_of
from crypto_assets_tests.quant.labels.worlds import (
    COLUMNS,
    DEATH,
    FAR,
    N_BARS,
    TERMS,
    WAIT,
    clock,
    compute,
    pauses,
    set_of,
    world,
)
from crypto_assets_tests.quant.rasters import (
    HOUR,
    QUICK,
    Listing,
    assert_same_bits,
    between,
    random_raster,
)

ENTRIES: dict[str, Mapping[str, Any]] = {
    "forward_return": {"generator": "forward_return", "horizons": (1, 5, "20h")},
    "forward_volatility": {"generator": "forward_volatility", "horizons": (2, 9)},
    "highlow": {"generator": "highlow", "horizons": (4, 10), "thresholds": (1.0, 0.2)},
    "highlow2": {
        "generator": "highlow2",
        "function": "high",
        "thresholds": (0.5, 1.5, 4.0),
        "tolerance": 0.6,
        "horizon": 8,
    },
    "highlow2_low": {
        "generator": "highlow2",
        "function": "low",
        "thresholds": (1.0,),
        "tolerance": 1.0,
        "horizon": 20,
    },
    "topbot2": {
        "generator": "topbot2",
        "function": "top",
        "level": 0.02,
        "tolerances": (0.2, 0.6, 1.0),
        "reach": 14,
    },
    "topbot2_bot": {
        "generator": "topbot2",
        "function": "bot",
        "level": 0.01,
        "tolerances": (0.5,),
        "reach": 30,
    },
    "area_future": {"generator": "area_future", "windows": (3, 11)},
    "triple_barrier": {"generator": "triple_barrier", "upper": 0.02, "lower": 0.01, "horizon": 7},
    "triple_barrier_volatility": {
        "generator": "triple_barrier",
        "upper": 1.5,
        "lower": 1.5,
        "unit": "volatility",
        "volatility_window": 9,
        "horizon": 16,
        "names": ("b", "b_frac", "b_at"),
    },
}
EVERY_ENTRY = pytest.mark.parametrize("name", ENTRIES)


def test_every_family_is_tried_here_and_declares_what_it_makes() -> None:
    assert {str(entry["generator"]) for entry in ENTRIES.values()} == set(FAMILIES)
    for entry in ENTRIES.values():
        declared = set_of(entry)
        made = declared.compute(world(1), watermark=FAR)
        assert list(made) == [
            "symbol",
            "ts",
            "known_at",
            "listing_id",
            *(label.name for label in declared.labels),
        ]
        dtypes = {"DOUBLE": "float64", "BOOLEAN": "boolean", "TIMESTAMP": "datetime64[us]"}
        assert [str(made[label.name].dtype) for label in declared.labels] == [
            dtypes[label.type] for label in declared.labels
        ]
        assert all(
            label.meaning and label.unit and set(label.inputs) <= set(COLUMNS) for label in declared.labels
        )


@EVERY_ENTRY
@QUICK
@given(
    seed=st.integers(0, 1000),
    gaps=pauses,
    early=st.integers(1, N_BARS + 29),
    later=st.integers(1, 60),
    missing=st.sampled_from([0.0, 0.1, 0.5]),
    tick=st.sampled_from([None, 1.0]),
)
def test_a_later_watermark_only_decides_what_was_open(
    name: str,
    seed: int,
    gaps: list[tuple[int, int]],
    early: int,
    later: int,
    missing: float,
    tick: float | None,
) -> None:
    raster = pd.concat(
        [
            world(seed, gaps, missing, tick),
            random_raster(
                N_BARS + 40,
                [Listing("AAA/USDT", number=2, first=N_BARS + 24), "BBB/USDT"],
                seed=seed,
                missing_share=missing,
                tick=tick,
            ).loc[lambda rows: (rows["symbol"] == "BBB/USDT") | (rows["ts"] >= clock(N_BARS + 24))],
        ]
    )
    cut = clock(early)
    before = compute(raster.loc[raster["known_at"] <= cut], ENTRIES[name], watermark=cut)
    after = compute(raster, ENTRIES[name], watermark=clock(early + later))
    key = ["listing_id", "ts"]
    decided = before.loc[before["known_at"].notna()]
    assert (decided["known_at"] <= cut).all()
    values = [column for column in before if column not in ("symbol", "ts", "listing_id")]
    assert before.loc[before["known_at"].isna(), values].isna().all(axis=None)
    assert len(before[key].merge(after, on=key)) == len(before)
    assert_same_bits(decided, decided[key].merge(after, on=key), key)
    still_open = before.loc[before["known_at"].isna(), key].merge(after, on=key)
    assert not (still_open["known_at"] <= cut).any()


@EVERY_ENTRY
@QUICK
@given(
    seed=st.integers(0, 1000),
    first=st.integers(0, 140),
    n=st.integers(1, 30),
    tick=st.sampled_from([None, 1.0]),
)
def test_a_chunk_with_what_it_may_read_has_the_bits_of_all_history(
    name: str, seed: int, first: int, n: int, tick: float | None
) -> None:
    listings = [
        Listing("AAA/USDT", gaps=((60, 75), (110, 118))),
        Listing("BBB/USDT", last=90, gaps=((50, 55),)),
        "CCC/USDT",
    ]
    raster = random_raster(240, listings, seed=seed, missing_share=0.2, tick=tick)
    labels = set_of(ENTRIES[name])
    since, until = clock(first), clock(first + n)
    loaded = between(raster, since - labels.lookback, until - HOUR + labels.lookahead)
    whole = between(labels.compute(raster, watermark=FAR), since, until)
    assert_same_bits(whole, labels.compute(loaded, watermark=FAR, since=since, until=until))
    alone = loaded.loc[loaded["symbol"] == "BBB/USDT"]
    assert_same_bits(
        whole.loc[whole["symbol"] == "BBB/USDT"],
        labels.compute(alone, watermark=FAR, since=since, until=until),
    )


@EVERY_ENTRY
def test_hour_by_hour_is_the_same_as_at_once(name: str) -> None:
    raster = world(5, [(40, 14), (90, 5)])
    labels = set_of(ENTRIES[name])
    hours = range(30, 70)
    whole = between(labels.compute(raster, watermark=FAR), clock(hours[0]), clock(hours[-1] + 1))
    hourly = [
        labels.compute(raster, watermark=FAR, since=clock(hour), until=clock(hour + 1)) for hour in hours
    ]
    assert_same_bits(whole, pd.concat(hourly))


@EVERY_ENTRY
def test_no_rows_and_rows_without_bars_give_no_labels(name: str) -> None:
    raster = world(1)
    assert compute(raster.iloc[:0], ENTRIES[name]).empty
    assert compute(raster.assign(has_bar=False), ENTRIES[name]).empty
    assert list(compute(raster.iloc[:0], ENTRIES[name])) == list(compute(raster, ENTRIES[name]))


@EVERY_ENTRY
def test_a_dead_listing_leaves_nothing_undecided(name: str) -> None:
    raster = world(3)
    assert compute(raster, ENTRIES[name])["known_at"].notna().all()
    last = raster.loc[raster["has_bar"], "known_at"].max().to_pydatetime()
    death = last + DEATH * HOUR
    assert compute(raster, ENTRIES[name], watermark=death)["known_at"].notna().all()


def test_a_row_waits_for_the_last_of_its_labels() -> None:
    raster = world(2)
    first, second = ENTRIES["highlow2"], ENTRIES["area_future"]
    both = compute(raster, first, second)
    apart = pd.concat([compute(raster, entry)["known_at"] for entry in (first, second)], axis=1)
    assert (both["known_at"] == apart.max(axis=1)).all()
    cut = clock(60)
    seen = compute(raster, first, second, watermark=cut)
    some = seen["known_at"].isna() & (compute(raster, first, watermark=cut)["known_at"].notna())
    assert some.any()
    assert seen.loc[some].drop(columns=["symbol", "ts", "listing_id"]).isna().all(axis=None)


def test_a_set_knows_how_far_it_reads_and_what() -> None:
    labels = set_of(ENTRIES["topbot2"], ENTRIES["highlow"], ENTRIES["triple_barrier_volatility"])
    assert labels.lookback == 28 * HOUR
    assert labels.lookahead == max(28, 10 + DEATH, 16 + 2 + WAIT + DEATH) * HOUR
    assert (labels.lookback_days, labels.lookahead_days) == (2, 2)
    assert labels.inputs == ("close", "high", "low", "open")
    exactly_a_day = set_of({"generator": "area_future", "windows": (13,)})
    assert exactly_a_day.lookahead == 25 * HOUR
    assert exactly_a_day.lookahead_days == 1


def test_the_version_changes_with_everything_that_is_declared() -> None:
    one, other = ENTRIES["highlow"], ENTRIES["topbot2"]
    other_terms = Terms(HOUR, COLUMNS, fill_wait=WAIT * HOUR, death_after=2 * DEATH * HOUR)
    versions = [
        set_of(one).version,
        set_of(one, other).version,
        set_of({**one, "horizons": (4,)}).version,
        set_of(one, terms=other_terms).version,
        LabelSet("other", TERMS, (entry_of(one),)).version,
    ]
    assert len(set(versions)) == len(versions)
    assert set_of(one).version == versions[0]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"generator": "hilow"}, "unknown label generator 'hilow'; did you mean highlow"),
        ({"horizons": (3,)}, "is no entry"),
        ({"generator": "highlow", "horizons": ()}, "highlow: horizons"),
        ({"generator": "highlow", "horizons": (0,)}, "a window of 0 bars holds nothing"),
        ({"generator": "highlow", "horizons": ("soon",)}, "'soon' is no window"),
        ({"generator": "highlow", "horizons": (3,), "horizon": 4}, "horizon: .* \\(allowed: .*thresholds"),
        ({"generator": "highlow", "horizons": (3,), "thresholds": (-1.0,)}, "thresholds.0"),
        ({**ENTRIES["highlow2"], "function": "top"}, "function: .*'high' or 'low'"),
        ({**ENTRIES["highlow2"], "tolerance": 0}, "tolerance"),
        ({**ENTRIES["topbot2"], "level": 1.0}, "level"),
        ({**ENTRIES["topbot2"], "tolerances": (1.5,)}, "tolerances.0"),
        ({**ENTRIES["triple_barrier"], "upper": None, "lower": None}, "upper and lower are both missing"),
        ({**ENTRIES["triple_barrier"], "lower": 1.0}, "give a fraction below 1"),
        ({**ENTRIES["triple_barrier"], "volatility_window": 5}, "volatility_window is given with the unit"),
        ({**ENTRIES["triple_barrier"], "unit": "volatility"}, "volatility_window is given with the unit"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(raw: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entry_of(raw)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({**ENTRIES["highlow"], "columns": ("close", "hi", "low")}, "entry 0 .*there is no column hi"),
        ({"generator": "area_future", "columns": "x"}, "there is no column x; allowed: close"),
        ({**ENTRIES["topbot2"], "columns": "x"}, "there is no column x"),
        ({**ENTRIES["topbot2"], "reach": "90m"}, "90m is no multiple of the bar"),
        ({**ENTRIES["highlow"], "names": ("one",)}, "there are 1 names for 14 columns"),
        (
            {**ENTRIES["highlow"], "thresholds": (1.0, 1.0)},
            "two columns are named high_10_10, high_10_4, low",
        ),
        ({"generator": "forward_volatility", "horizons": (1,)}, "holds one return"),
        ({**ENTRIES["triple_barrier_volatility"], "volatility_window": 1}, "has no spread"),
        ({"generator": "forward_return", "horizons": (3,), "names": ("Up",)}, "'Up' is no column name"),
        ({"generator": "forward_return", "horizons": (3,), "names": ("known_at",)}, "is no name for a value"),
    ],
)
def test_an_entry_that_the_terms_cannot_carry_is_refused(raw: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ = set_of(raw).labels


def test_two_entries_may_not_make_one_column() -> None:
    with pytest.raises(ValueError, match=r"entry 1 \(highlow\): high_max_4_pct is made by entry 0 already"):
        _ = set_of(ENTRIES["highlow"], ENTRIES["highlow"]).labels


def test_an_entry_stays_what_it_is_and_an_unknown_family_is_refused() -> None:
    entry = entry_of(ENTRIES["highlow"])
    assert entry_of(entry) is entry
    with pytest.raises(ValueError, match="allowed: area_future"):
        family_of("labels")


def test_a_failure_names_the_set_and_the_entry() -> None:
    raster = world(1)
    raster.loc[raster["has_bar"].idxmax(), "open"] = 0.0
    with pytest.raises(
        LabelError, match=r"label set tested, entry 0 \(forward_return\): AAA/USDT#1 .*positive open"
    ):
        compute(raster, ENTRIES["forward_return"])


def test_an_infinite_label_is_refused_with_its_place() -> None:
    raster = world(1, missing_share=0.0)
    entry = {"generator": "highlow", "columns": ("volume_base", "high", "low"), "horizons": (4,)}
    raster.loc[raster.index[30], "volume_base"] = 1e-307
    infinite = r"label set tested, entry 1 \(highlow\): high_max_4_pct is infinite for AAA/USDT#1 at 2022-05-03T06:00"
    with np.errstate(over="ignore", invalid="ignore"):
        with pytest.raises(LabelError, match=infinite):
            compute(raster, ENTRIES["forward_return"], entry)
        # What is not decided yet means nothing.
        open_still = compute(raster.iloc[:33], entry, watermark=clock(33))
    assert open_still["high_max_4_pct"].iloc[30:].isna().all()


def test_columns_that_a_bar_lacks_make_a_row_missing_at_once() -> None:
    raster = world(4, missing_share=0.0)
    raster.loc[raster.index[20], "volume_base"] = np.nan
    for entry, name in (
        (
            {"generator": "area_future", "columns": "volume_base", "windows": (5,)},
            "volume_base_area_future_5",
        ),
        ({**ENTRIES["topbot2"], "columns": "volume_base", "tolerances": (0.5,), "names": ("x",)}, "x"),
        (
            {"generator": "highlow", "columns": ("volume_base", "high", "low"), "horizons": (5,)},
            "high_max_5_pct",
        ),
    ):
        row = compute(raster, entry).iloc[20]
        assert row["known_at"] == row["ts"] + HOUR
        assert pd.isna(row[name])
