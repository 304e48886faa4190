from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from crypto_assets.quant.invariants import WHOLE_ROW, Difference, prefix_differences
from crypto_assets.tables import TABLES, table_of

CUT = datetime(2022, 5, 9)
SCORES = table_of("weights/alpha_scores")
LABELS = table_of("labels/forward_returns")


def scores(n: int = 4, end: datetime = CUT) -> pd.DataFrame:
    """Rows of two symbols, the last known exactly at ``end``."""
    ts = [end - timedelta(hours=k) for k in range(n, 0, -1)]
    parts = [
        pd.DataFrame(
            {
                "symbol": symbol,
                "ts": ts,
                "known_at": [moment + timedelta(hours=1) for moment in ts],
                "listing_id": f"{symbol}#1",
                "alpha_score": [0.1 * moment.hour for moment in ts],
            }
        )
        for symbol in ("AAA/USDT", "BBB/USDT")
    ]
    return pd.concat(parts, ignore_index=True)


def label_rows(decided: int, n: int = 4) -> pd.DataFrame:
    """Labels of one symbol with a horizon of three hours, the first ``decided`` of them known."""
    ts = pd.Series([CUT - timedelta(hours=6 - k) for k in range(n)])
    known = pd.Series([k < decided for k in range(n)])
    return pd.DataFrame(
        {
            "symbol": "AAA/USDT",
            "ts": ts,
            "known_at": (ts + timedelta(hours=4)).where(known),
            "listing_id": "AAA/USDT#1",
            "horizon": "3h",
            "fill_ts": (ts + timedelta(hours=1)).where(known),
            "exit_ts": (ts + timedelta(hours=4)).where(known),
            "forward_return_frac": pd.Series([0.01 * k for k in range(n)]).where(known),
            "outcome": ["filled" if is_known else None for is_known in known],
        }
    )


def only(differences: list[Difference]) -> Difference:
    assert len(differences) == 1, [str(difference) for difference in differences]
    return differences[0]


def planted(frame: pd.DataFrame, row: int, column: str, value: Any) -> pd.DataFrame:
    changed = frame.copy()
    changed.loc[row, column] = value
    return changed


def test_a_table_without_known_at_is_refused() -> None:
    with pytest.raises(ValueError, match="no known_at"):
        prefix_differences(scores(), scores(), TABLES["quality/coverage"], CUT)


def test_missing_columns_null_keys_and_repeated_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="earlier build .* lacks the columns alpha_score"):
        prefix_differences(scores().drop(columns="alpha_score"), scores(), SCORES, CUT)
    with pytest.raises(ValueError, match="later build .* NULL key"):
        prefix_differences(scores(), planted(scores(), 1, "symbol", None), SCORES, CUT)
    with pytest.raises(ValueError, match="two rows with the key"):
        prefix_differences(pd.concat([scores(), scores()]), scores(), SCORES, CUT)


def test_equal_builds_in_another_order_and_unit_agree() -> None:
    later = scores(6, CUT + timedelta(hours=2)).sample(frac=1, random_state=1)
    later = later.astype({"ts": "datetime64[us]", "known_at": "datetime64[us]"})
    assert prefix_differences(scores(), later, SCORES, CUT) == []
    assert prefix_differences(scores().iloc[:0], scores().iloc[:0], SCORES, CUT) == []


def test_a_changed_value_is_found_to_the_last_bit() -> None:
    value = float(scores()["alpha_score"].iloc[2])
    found = only(
        prefix_differences(scores(), planted(scores(), 2, "alpha_score", np.nextafter(value, 9)), SCORES, CUT)
    )
    assert (found.table, found.column, found.reason, found.n_rows) == (
        "weights/alpha_scores",
        "alpha_score",
        "values differ",
        1,
    )
    assert dict(found.key) == {"symbol": "AAA/USDT", "ts": CUT - timedelta(hours=2)}
    assert (found.earlier_value, found.later_value) == (value, np.nextafter(value, 9))
    text = str(found)
    assert "weights/alpha_scores.alpha_score: values differ" in text
    assert "symbol=AAA/USDT, ts=2022-05-08 22:00:00" in text


def test_missing_values_are_equal_and_negative_zero_is_not_zero() -> None:
    holes = planted(scores(), 1, "alpha_score", np.nan)
    assert prefix_differences(holes, holes.astype({"alpha_score": "Float64"}), SCORES, CUT) == []
    assert only(prefix_differences(holes, scores(), SCORES, CUT)).earlier_value is None
    zero, negative = (planted(scores(), 1, "alpha_score", value) for value in (0.0, -0.0))
    assert only(prefix_differences(zero, negative, SCORES, CUT)).column == "alpha_score"


def test_a_changed_text_is_found() -> None:
    found = only(prefix_differences(scores(), planted(scores(), 5, "listing_id", "BBB/USDT#2"), SCORES, CUT))
    assert (found.column, found.earlier_value, found.later_value) == (
        "listing_id",
        "BBB/USDT#1",
        "BBB/USDT#2",
    )


def test_only_the_first_row_of_a_column_is_reported_with_their_number() -> None:
    later = scores()
    later["alpha_score"] += 1.0
    found = only(prefix_differences(scores(), later, SCORES, CUT))
    assert found.n_rows == 8
    assert dict(found.key)["ts"] == CUT - timedelta(hours=4)


def test_rows_that_come_or_vanish_are_found() -> None:
    appeared = only(prefix_differences(scores().drop(index=2), scores(), SCORES, CUT))
    assert (appeared.column, appeared.earlier_value, appeared.later_value) == (WHOLE_ROW, None, "present")
    vanished = only(prefix_differences(scores(), scores().drop(index=2), SCORES, CUT))
    assert (vanished.column, vanished.earlier_value, vanished.later_value) == (WHOLE_ROW, "present", None)
    assert vanished.reason != appeared.reason
    both = prefix_differences(scores().drop(index=1), scores().drop(index=2), SCORES, CUT)
    assert [difference.column for difference in both] == [WHOLE_ROW, WHOLE_ROW]


def test_a_row_stored_before_it_could_be_known_is_found() -> None:
    early = scores(6, CUT + timedelta(hours=2))
    found = only(prefix_differences(early, early, SCORES, CUT))
    assert (found.column, found.reason, found.n_rows) == ("known_at", "stored before it could be known", 4)
    assert found.earlier_value == CUT + timedelta(hours=1)


def test_a_row_stamped_too_early_in_the_later_build_is_found() -> None:
    later = scores(5, CUT + timedelta(hours=1))
    stamped = later.assign(known_at=later["known_at"].mask(later["known_at"] > CUT, pd.Timestamp(CUT)))
    found = only(prefix_differences(scores(4), stamped, SCORES, CUT))
    assert (found.column, found.reason, found.n_rows) == (
        WHOLE_ROW,
        "known at the cut but not in the earlier build",
        2,
    )


def test_a_table_that_is_never_undecided_needs_known_at() -> None:
    found = prefix_differences(planted(scores(), 0, "known_at", pd.NaT), scores(), SCORES, CUT)
    assert {difference.reason for difference in found} == {"known_at is NULL", "values differ"}


def test_differences_are_sorted_by_column() -> None:
    later = planted(planted(scores(), 0, "listing_id", "x"), 0, "alpha_score", 9.0)
    assert [d.column for d in prefix_differences(scores(), later, SCORES, CUT)] == [
        "alpha_score",
        "listing_id",
    ]


def test_labels_may_be_decided_once_after_the_cut() -> None:
    assert prefix_differences(label_rows(3), label_rows(4), LABELS, CUT) == []
    assert prefix_differences(label_rows(3), label_rows(3), LABELS, CUT) == []


def test_a_label_that_should_have_been_decided_is_found() -> None:
    found = only(prefix_differences(label_rows(2), label_rows(4), LABELS, CUT))
    assert (found.column, found.reason, found.n_rows) == (
        "known_at",
        "undecided though decided by the cut",
        1,
    )
    assert found.later_value == CUT


def test_a_label_decided_too_early_is_found() -> None:
    found = only(prefix_differences(label_rows(4), label_rows(4), LABELS, CUT))
    assert found.reason == "stored before it could be known"


def test_a_label_that_changes_or_turns_null_again_is_found() -> None:
    changed = only(
        prefix_differences(label_rows(3), planted(label_rows(4), 1, "forward_return_frac", 0.5), LABELS, CUT)
    )
    assert (changed.column, changed.earlier_value, changed.later_value) == ("forward_return_frac", 0.01, 0.5)
    again = {
        difference.column for difference in prefix_differences(label_rows(3), label_rows(2), LABELS, CUT)
    }
    assert again == set(LABELS.decided_later)


def test_an_undecided_label_holds_no_value_in_either_build() -> None:
    leaking = planted(label_rows(3), 3, "forward_return_frac", 0.03)
    assert (
        only(prefix_differences(leaking, label_rows(4), LABELS, CUT)).reason
        == "has a value while known_at is NULL"
    )
    assert only(prefix_differences(label_rows(3), leaking, LABELS, CUT)).column == "forward_return_frac"


def test_what_is_not_decided_later_never_changes_even_while_undecided() -> None:
    found = only(prefix_differences(label_rows(3), planted(label_rows(4), 3, "horizon", "4h"), LABELS, CUT))
    assert (found.column, found.n_rows) == ("horizon", 1)


def test_an_undecided_label_may_not_vanish() -> None:
    found = only(prefix_differences(label_rows(3), label_rows(4).iloc[:3], LABELS, CUT))
    assert (found.column, found.later_value) == (WHOLE_ROW, None)


def test_integers_booleans_and_nullable_columns_compare() -> None:
    table = table_of("rollups/raster")
    row = dict.fromkeys(table.column_names)
    row |= {"symbol": "A/B", "ts": CUT - timedelta(hours=1), "known_at": CUT, "listing_id": "A/B#1"}
    base = pd.DataFrame([row | {"has_bar": True, "bar_age": 0, "n_trades": 5}])
    nullable = base.astype({"n_trades": "Int64", "has_bar": "boolean"})
    assert prefix_differences(base, nullable, table, CUT) == []
    for column, value in (("has_bar", False), ("n_trades", 6), ("n_trades", None), ("market_cap_ts", CUT)):
        other = base.astype({column: object})
        other.at[0, column] = value
        assert only(prefix_differences(base, other, table, CUT)).column == column


def test_a_table_with_a_single_key_column_compares() -> None:
    table = table_of("holdings/view_fits")
    row = {
        "week": CUT,
        "known_at": CUT,
        "slope": 0.1,
        "slope_se": 0.2,
        "confidence": 0.3,
        "n_pairs": 600,
        "status": "ok",
    }
    found = only(prefix_differences(pd.DataFrame([row]), pd.DataFrame([row | {"slope": 0.2}]), table, CUT))
    assert found.key == (("week", pd.Timestamp(CUT)),)
