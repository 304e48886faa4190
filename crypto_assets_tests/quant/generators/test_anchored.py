from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import numpy as np
import pytest

from crypto_assets.quant.generators.anchored import Seen, by_day, reach
from crypto_assets.quant.panel import Panel
from crypto_assets_tests.quant.rasters import DAY, HOUR, START, Listing, between, random_raster, raster_of


def panel_of(n_bars: int, *listings: Listing | str, **options: object) -> Panel:
    return Panel.of(random_raster(n_bars, listings or ("AAA/USDT",), seed=3), HOUR, **options)  # ty: ignore[invalid-argument-type]


def seen_rows(seen: Seen) -> dict[str, np.ndarray]:
    return {"place": np.arange(len(seen["ts"]), dtype=np.float64)}


def places(panel: Panel, lookback: int, warm_up: int = 0, *, max_gap: int | None = None) -> np.ndarray:
    inputs = {"close": panel.matrix("close")}
    return by_day(panel, inputs, lookback, warm_up, seen_rows, names=["place"], max_gap=max_gap)["place"]


def test_a_day_sees_the_lookback_before_its_first_bar_and_itself() -> None:
    panel = panel_of(72)
    result = places(panel, 10)[:, 0]
    assert result[:24].tolist() == list(range(24))
    assert result[24:48].tolist() == list(range(10, 34))
    assert result[48:].tolist() == list(range(10, 34))


def test_rows_without_the_warm_up_are_missing() -> None:
    result = places(panel_of(72), 10, 10)[:, 0]
    assert np.isnan(result[:10]).all()
    assert result[10:24].tolist() == list(range(10, 24))
    assert result[24] == 10


def test_missing_bars_are_left_out_and_stay_missing() -> None:
    panel = panel_of(72, Listing("AAA/USDT", gaps=((20, 23), (30, 32))))
    result = places(panel, 10, 8)[:, 0]
    assert np.isnan(result[20:23]).all()
    assert result[23] == 20
    # Ten bars before the day three are missing: seven precede its first row, which needs eight.
    assert np.isnan(result[24])
    assert result[25:30].tolist() == [8, 9, 10, 11, 12]
    assert np.isnan(result[30:32]).all()
    assert result[32] == 13


@pytest.mark.parametrize(("pause", "remembers"), [(48, True), (49, False)])
def test_a_pause_of_more_than_48_hours_starts_the_history_anew(pause: int, remembers: bool) -> None:
    panel = panel_of(192, Listing("AAA/USDT", gaps=((90, 90 + pause),)))
    result = places(panel, 96)[:, 0]
    after = 90 + pause
    assert result[after] == (after - 24 - pause if remembers else 0)
    assert result[after + 1] == result[after] + 1


def test_a_pause_inside_the_day_starts_it_anew_where_the_caller_says_so() -> None:
    panel = panel_of(48, Listing("AAA/USDT", gaps=((30, 33), (36, 41))))
    result = places(panel, 24, max_gap=4)[:, 0]
    assert result[33:36].tolist() == [30, 31, 32]
    assert result[41:48].tolist() == list(range(7))
    warm = places(panel, 24, 5, max_gap=4)[:, 0]
    assert np.isnan(warm[41:46]).all()
    assert warm[46] == 5


def test_days_before_the_wanted_one_are_not_computed_and_change_nothing() -> None:
    everything = places(panel_of(96), 30)
    wanted = places(panel_of(96, since=START + 3 * DAY), 30)
    assert np.isnan(wanted[:72]).all()
    assert (wanted[72:] == everything[72:]).all()


def test_reach_is_what_the_last_row_of_a_day_reads() -> None:
    raster = random_raster(120, ["AAA/USDT"], seed=3)
    lookback, last = 10, START + 4 * DAY - HOUR
    everything = Panel.of(raster, HOUR)
    values = places(everything, lookback)[95, 0]
    enough = Panel.of(between(raster, last - reach(lookback, HOUR) * HOUR, last + HOUR), HOUR)
    short = Panel.of(between(raster, last - (reach(lookback, HOUR) - 1) * HOUR, last + HOUR), HOUR)
    assert places(enough, lookback)[-1, 0] == values == 33
    assert places(short, lookback)[-1, 0] == 32
    assert reach(0, timedelta(minutes=1)) == 1439


def test_a_function_sees_one_listing_its_day_and_copies() -> None:
    panel = panel_of(48, "AAA/USDT", Listing("BBB/USDT", first=30))
    close = panel.matrix("close")
    before = close.copy()
    met = []

    def spoil(seen: Seen) -> Mapping[str, np.ndarray]:
        met.append(
            (seen.listing, str(seen.day)[:10], seen.n_before, len(seen["close"]), str(seen["ts"][0])[:13])
        )
        made = {"double": 2.0 * seen["close"]}
        seen["close"][:] = 0.0
        return made

    made = by_day(panel, {"close": close}, 5, 0, spoil, names=["double"])
    np.testing.assert_array_equal(made["double"], 2.0 * before)
    np.testing.assert_array_equal(close, before)
    assert met == [
        ("AAA/USDT#1", "2022-05-02", 0, 24, "2022-05-02T00"),
        ("AAA/USDT#1", "2022-05-03", 5, 29, "2022-05-02T19"),
        ("BBB/USDT#1", "2022-05-03", 0, 18, "2022-05-03T06"),
    ]


def test_only_rows_that_are_present_are_seen_and_infinity_is_missing() -> None:
    panel = Panel.of(raster_of({"close": [1.0, 2.0, None, 4.0], "volume_base": [1.0, None, 1.0, 0.0]}), HOUR)
    inputs = {"close": panel.matrix("close"), "volume": panel.matrix("volume_base")}

    def ratio(seen: Seen) -> dict[str, np.ndarray]:
        with np.errstate(divide="ignore"):
            return {"ratio": seen["close"] / seen["volume"]}

    made = by_day(panel, inputs, 0, 0, ratio, names=["ratio"])["ratio"][:, 0]
    np.testing.assert_array_equal(made, [1.0, np.nan, np.nan, np.nan])
    flags = ~np.isnan(inputs["close"])
    seen = by_day(panel, inputs, 0, 0, seen_rows, names=["place"], present=flags)["place"][:, 0]
    np.testing.assert_array_equal(seen, [0.0, 1.0, np.nan, 2.0])


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({}, "made nothing for AAA/USDT#1 on 2022-05-02 instead of place"),
        ({"other": np.zeros(24)}, "made other for AAA/USDT#1"),
        (
            {"place": np.zeros(23)},
            r"shape \(23,\) for AAA/USDT#1 on 2022-05-02, but the function saw 24 rows",
        ),
    ],
)
def test_results_that_do_not_fit_are_refused_with_listing_and_day(
    made: dict[str, np.ndarray], reason: str
) -> None:
    panel = panel_of(24)
    with pytest.raises(ValueError, match=reason):
        by_day(panel, {"close": panel.matrix("close")}, 0, 0, lambda _: made, names=["place"])


def test_what_a_function_raises_says_where() -> None:
    def fail(_: Seen) -> dict[str, np.ndarray]:
        raise ZeroDivisionError("nothing to divide by")

    panel = panel_of(24)
    with pytest.raises(ZeroDivisionError) as caught:
        by_day(panel, {"close": panel.matrix("close")}, 0, 0, fail, names=["place"])
    assert caught.value.__notes__ == ["while it was evaluated for AAA/USDT#1 on 2022-05-02"]


def test_inputs_that_make_no_sense_are_refused() -> None:
    panel = panel_of(24)
    with pytest.raises(ValueError, match="at least one column"):
        by_day(panel, {}, 0, 0, seen_rows, names=["place"])
    with pytest.raises(ValueError, match=r"close has the shape \(3, 1\)"):
        by_day(panel, {"close": np.zeros((3, 1))}, 0, 0, seen_rows, names=["place"])
    with pytest.raises(ValueError, match="between 0 and the look-back of 5"):
        places(panel, 5, 6)
