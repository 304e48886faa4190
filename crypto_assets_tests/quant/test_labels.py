from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_assets import tables
from crypto_assets.quant import labels
from crypto_assets_tests.quant.rasters import (
    HOUR,
    QUICK,
    START,
    Listing,
    assert_same_bits,
    between,
    random_raster,
    raster_of,
)
from crypto_assets_tests.recorded import RECORDED, needs_recorded

FAR = datetime(2030, 1, 1)
DECIDED = list(tables.table_of("labels/forward_returns").decided_later)


def label(raster: pd.DataFrame, watermark: datetime = FAR, hours: int = 4, **changes: Any) -> pd.DataFrame:
    return labels.forward_returns(raster, horizon=hours * HOUR, bar=HOUR, watermark=watermark, **changes)


def hand_raster(present: Sequence[int], n: int, **place: Any) -> pd.DataFrame:
    """Open of bar k is 100 + k, its close 200 + k."""
    numbers = [float(k) if k in present else None for k in range(n)]
    opens = [None if k is None else 100.0 + k for k in numbers]
    closes = [None if k is None else 200.0 + k for k in numbers]
    return raster_of({"open": opens, "close": closes}, **place)


def hour_of(moment: Any) -> float:
    return (moment - START) / HOUR


def test_labels_refuse_durations_that_are_no_whole_bars() -> None:
    raster = hand_raster([0], 1)
    with pytest.raises(ValueError, match="fill_wait .* no multiple of the bar"):
        label(raster, fill_wait=timedelta(minutes=90))
    with pytest.raises(ValueError, match="death_after .* no multiple of the bar"):
        label(raster, death_after=timedelta(minutes=90))
    with pytest.raises(ValueError, match="must be positive"):
        label(raster, hours=0)


@pytest.mark.parametrize("price", [0.0, -1.0, np.nan])
def test_labels_refuse_a_bar_without_a_positive_price(price: float) -> None:
    raster = hand_raster([0, 1], 2)
    raster.loc[1, "open"] = price
    with pytest.raises(ValueError, match="AAA/USDT#1 at 2022-05-02T01"):
        label(raster)


def test_columns_are_those_of_the_contract_also_without_rows() -> None:
    raster = hand_raster(range(10), 10)
    for rows in (raster, raster.iloc[:0]):
        assert sorted(label(rows).columns) == sorted(tables.table_of("labels/forward_returns").column_names)


def test_a_label_runs_from_open_to_open() -> None:
    first = label(hand_raster(range(10), 10), watermark=START + 10 * HOUR).iloc[0]
    assert first["outcome"] == "filled"
    assert (hour_of(first["fill_ts"]), hour_of(first["exit_ts"])) == (1, 5)
    assert first["forward_return_frac"] == 105.0 / 101.0 - 1.0
    assert hour_of(first["known_at"]) == 6
    assert first["horizon"] == "4h"


def test_a_label_is_null_until_its_exit_bar_has_closed() -> None:
    raster = hand_raster(range(10), 10)
    for hour, decided in ((5, False), (6, True)):
        first = label(raster, watermark=START + hour * HOUR).iloc[0]
        assert first[DECIDED].notna().all() == decided
        assert first[DECIDED].isna().all() != decided


def test_a_missing_fill_bar_is_waited_for_six_hours() -> None:
    reached, missed = (label(hand_raster([0, first, *range(10, 20)], 20)).iloc[0] for first in (7, 8))
    assert (hour_of(reached["fill_ts"]), hour_of(reached["exit_ts"])) == (7, 11)
    assert reached["forward_return_frac"] == 111.0 / 107.0 - 1.0
    assert missed["outcome"] == "unfilled"
    assert missed[["fill_ts", "exit_ts", "forward_return_frac"]].isna().all()
    assert hour_of(missed["known_at"]) == 1 + 6 + 1


def test_an_order_is_unfilled_only_when_its_last_bar_would_have_closed() -> None:
    raster = hand_raster([0], 9)
    assert label(raster, watermark=START + 7 * HOUR).iloc[0][DECIDED].isna().all()
    assert label(raster, watermark=START + 8 * HOUR).iloc[0]["outcome"] == "unfilled"


def test_a_missing_exit_bar_is_waited_for_six_hours_and_then_there_is_a_gap() -> None:
    reached = label(hand_raster([0, 1, 2, 11, 12], 20)).iloc[0]
    assert (reached["outcome"], hour_of(reached["exit_ts"])) == ("filled", 11)
    gap = label(hand_raster([0, 1, 2, 12, 13], 20)).iloc[0]
    assert gap["outcome"] == "gap"
    assert gap[["exit_ts", "forward_return_frac"]].isna().all()
    assert (hour_of(gap["fill_ts"]), hour_of(gap["known_at"])) == (1, 13)


def test_a_gap_is_undecided_until_a_bar_proves_the_listing_alive() -> None:
    raster = hand_raster([0, 1, 2, 12, 13], 20)
    assert label(raster, watermark=START + 12 * HOUR).iloc[0][DECIDED].isna().all()
    assert label(raster, watermark=START + 13 * HOUR).iloc[0]["outcome"] == "gap"


def test_a_death_leaves_at_the_last_close_a_day_later() -> None:
    raster = hand_raster([0, 1, 2, 3], 40)
    dead = label(raster).iloc[0]
    assert dead["outcome"] == "death"
    assert dead["forward_return_frac"] == 203.0 / 101.0 - 1.0
    assert (hour_of(dead["exit_ts"]), hour_of(dead["known_at"])) == (3, 4 + 24)
    assert label(raster, watermark=START + 27 * HOUR).iloc[0][DECIDED].isna().all()
    assert label(raster, watermark=START + 28 * HOUR).iloc[0]["outcome"] == "death"


def test_a_death_in_the_fill_bar_still_counts() -> None:
    dead = label(hand_raster([0, 1], 40)).iloc[0]
    assert (dead["outcome"], dead["forward_return_frac"]) == ("death", 201.0 / 101.0 - 1.0)


def test_a_listing_that_returns_after_a_day_of_silence_stays_dead() -> None:
    back_in_time = label(hand_raster([0, 1, 2, 3, 27, 28], 40)).iloc[0]
    too_late = label(hand_raster([0, 1, 2, 3, 28, 29], 40)).iloc[0]
    assert back_in_time["outcome"] == "gap"
    assert too_late["outcome"] == "death"


def test_a_day_of_silence_inside_a_long_horizon_is_a_death() -> None:
    raster = hand_raster([0, 1, 2, *range(27, 60)], 60)
    assert label(raster, hours=30).iloc[0]["outcome"] == "death"
    assert label(hand_raster([0, 1, 2, *range(26, 60)], 60), hours=30).iloc[0]["outcome"] == "filled"


def test_a_death_after_the_exit_does_not_matter() -> None:
    assert label(hand_raster(range(6), 40)).iloc[0]["outcome"] == "filled"


def test_a_window_never_crosses_into_another_listing() -> None:
    old = hand_raster(range(4), 4)
    new = hand_raster(range(20), 20, listing_id="AAA/USDT#2", start=START + 6 * HOUR)
    result = label(pd.concat([old, new]))
    assert result.loc[result["listing_id"] == "AAA/USDT#1", "outcome"].tolist() == ["death"] * 3 + [
        "unfilled"
    ]


def test_a_row_without_a_bar_has_no_label_and_one_known_later_is_not_seen() -> None:
    raster = hand_raster([0, 2, 3], 4)
    assert len(label(raster)) == 3
    assert len(label(raster, watermark=START + 3 * HOUR)) == 2


def test_the_horizon_is_named_in_hours_or_minutes() -> None:
    assert [labels.horizon_name(timedelta(minutes=m)) for m in (60, 1440, 90, 30)] == [
        "1h",
        "24h",
        "90m",
        "30m",
    ]


def slow_label(rows: pd.DataFrame, ts: datetime, hours: int, watermark: datetime) -> dict[str, Any]:
    """One label read off the definition, bar by bar."""
    known = rows.loc[rows["has_bar"] & (rows["known_at"] <= watermark)]
    opens, closes = ({row["ts"]: row[name] for row in known.to_dict("records")} for name in ("open", "close"))
    nothing = dict.fromkeys(DECIDED)
    fill = next((ts + k * HOUR for k in range(1, 8) if ts + k * HOUR in opens), None)
    if fill is None:
        done = ts + 8 * HOUR <= watermark
        return nothing | ({"outcome": "unfilled", "known_at": ts + 8 * HOUR} if done else {})
    moment, last = fill, fill
    while True:
        if moment >= fill + hours * HOUR and moment in opens:
            late = moment > fill + (hours + 6) * HOUR
            change = None if late else opens[moment] / opens[fill] - 1.0
            return {
                "outcome": "gap" if late else "filled",
                "known_at": moment + HOUR,
                "fill_ts": fill,
                "exit_ts": None if late else moment,
                "forward_return_frac": change,
            }
        if moment in opens:
            last = moment
        if moment + HOUR > watermark:
            return nothing
        if moment - last >= timedelta(hours=24):
            return {
                "outcome": "death",
                "known_at": last + 25 * HOUR,
                "fill_ts": fill,
                "exit_ts": last,
                "forward_return_frac": closes[last] / opens[fill] - 1.0,
            }
        moment += HOUR


gap_sets = st.lists(st.tuples(st.integers(0, 190), st.integers(1, 40)), max_size=6)


@QUICK
@given(seed=st.integers(0, 1000), gaps=gap_sets, hours=st.sampled_from([1, 5, 30]), end=st.integers(1, 260))
def test_labels_agree_with_their_definition_read_bar_by_bar(
    seed: int, gaps: list[tuple[int, int]], hours: int, end: int
) -> None:
    listing = Listing("AAA/USDT", last=199, gaps=tuple((a, a + n) for a, n in gaps))
    raster = random_raster(200, [listing], seed=seed)
    watermark = START + end * HOUR
    result = label(raster, watermark=watermark, hours=hours)
    for row in result.to_dict("records"):
        expected = slow_label(raster, row["ts"].to_pydatetime(), hours, watermark)
        for name, value in expected.items():
            assert (pd.isna(row[name]) and value is None) or row[name] == value, (row["ts"], name)


@QUICK
@given(
    seed=st.integers(0, 1000),
    gaps=gap_sets,
    hours=st.sampled_from([1, 5, 30]),
    early=st.integers(1, 259),
    later=st.integers(1, 100),
)
def test_a_later_watermark_only_turns_null_into_a_value(
    seed: int, gaps: list[tuple[int, int]], hours: int, early: int, later: int
) -> None:
    listing = Listing("AAA/USDT", last=150, gaps=tuple((a, a + n) for a, n in gaps))
    second = Listing("AAA/USDT", number=2, first=200)
    raster = random_raster(260, [listing, second, "BBB/USDT"], seed=seed, missing_share=0.1)
    first_cut = START + early * HOUR
    before = label(raster.loc[raster["known_at"] <= first_cut], watermark=first_cut, hours=hours)
    after = label(raster, watermark=first_cut + later * HOUR, hours=hours)
    decided = before.loc[before["known_at"].notna()]
    assert (decided["known_at"] <= first_cut).all()
    both = before[["symbol", "ts"]].merge(after, on=["symbol", "ts"])
    assert len(both) == len(before)
    assert_same_bits(decided, decided[["symbol", "ts"]].merge(after, on=["symbol", "ts"]))
    open_rows = before.loc[before["known_at"].isna(), ["symbol", "ts"]].merge(after, on=["symbol", "ts"])
    assert not (open_rows["known_at"] <= first_cut).any()


@QUICK
@given(
    seed=st.integers(0, 1000),
    first=st.integers(0, 150),
    n=st.integers(1, 48),
    hours=st.sampled_from([1, 24, 30]),
)
def test_labels_have_the_same_bits_in_any_chunk(seed: int, first: int, n: int, hours: int) -> None:
    listings = [Listing("AAA/USDT", gaps=((100, 130), (160, 168))), Listing("BBB/USDT", last=120), "CCC/USDT"]
    raster = random_raster(300, listings, seed=seed, missing_share=0.2)
    start, end = START + first * HOUR, START + (first + n) * HOUR
    ahead = labels.lookahead(hours * HOUR, HOUR)
    whole = between(label(raster, hours=hours), start, end)
    chunk = between(label(between(raster, start, end - HOUR + ahead), hours=hours), start, end)
    assert_same_bits(whole, chunk)
    alone = label(raster.loc[raster["symbol"] == "BBB/USDT"], hours=hours)
    assert_same_bits(whole.loc[whole["symbol"] == "BBB/USDT"], between(alone, start, end))


@needs_recorded
def test_the_collapse_of_luna_is_a_loss_and_not_a_hole() -> None:
    source = pd.read_csv(RECORDED / "spot_1h_2021_2023" / "dev" / "LUNAUSDT-1h.csv.gz", parse_dates=["date"])
    may = source.loc[(source["date"] >= "2022-05-09") & (source["date"] < "2022-06-05")].reset_index(
        drop=True
    )
    ts = may["date"].to_numpy(dtype="datetime64[us]")
    second_life = may["date"] > "2022-05-20"
    raster = may[["open", "close"]].assign(
        symbol="LUNA/USDT",
        ts=ts,
        known_at=ts + np.timedelta64(HOUR),
        listing_id=np.where(second_life, "LUNA/USDT#2", "LUNA/USDT#1"),
        has_bar=True,
    )
    result = label(raster, watermark=datetime(2022, 6, 5), hours=24)
    old = result.loc[~second_life]
    dying = old.loc[(old["ts"] >= datetime(2022, 5, 12)) & (old["ts"] < datetime(2022, 5, 12, 23))]
    assert len(dying) == 23
    assert (dying["outcome"] == "death").all()
    assert (dying["exit_ts"] == datetime(2022, 5, 13)).all()
    assert (dying["known_at"] == datetime(2022, 5, 14, 1)).all()
    assert (dying["forward_return_frac"] < -0.9).mean() > 0.5
    assert old.iloc[-1]["outcome"] == "unfilled"
    assert old["forward_return_frac"].notna().sum() == len(old) - 1
