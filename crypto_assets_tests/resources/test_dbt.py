"""The dbt models on small lakes written by hand, and on recorded klines against the exchange's own longer ones.

Here: what the models compute, windows, watermarks and errors of the runner. Not here: storing (``warehouse``).
"""

from __future__ import annotations

import json
import shutil
import tarfile
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml

from crypto_assets.quant import kernels
from crypto_assets.resources import dbt
from crypto_assets.resources.warehouse import Lake, Provenance
from crypto_assets.tables import table_of
from crypto_assets_tests.recorded import RECORDED, needs_recorded
from crypto_assets_tests.resources.small_lakes import (
    AGES,
    ALL_ROLLUPS,
    D1,
    DAY,
    HOUR,
    Row,
    bar,
    by_ts,
    cap,
    hours,
    run,
    store,
)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "warehouse")


def test_a_bar_takes_first_open_highest_high_lowest_low_last_close_and_exact_volumes(lake: Lake) -> None:
    rows = [
        bar("A/USDT", D1, open=1.0, high=4.0, low=0.5, close=2.0, volume_base=Decimal("0.00000001")),
        bar(
            "A/USDT", D1 + HOUR, open=2.0, high=9.0, low=1.0, close=3.0, volume_base=Decimal("123456789012.1")
        ),
        bar("A/USDT", D1 + 2 * HOUR, open=3.0, high=5.0, low=0.25, close=4.0, volume_base=Decimal("0.3")),
        bar(
            "A/USDT", D1 + 3 * HOUR, open=4.0, high=6.0, low=2.0, close=5.0, volume_base=Decimal("0.00000004")
        ),
        bar("A/USDT", D1 + 4 * HOUR, kind="mark", close=99.0),
    ]
    store(lake, "raw/klines", rows)
    found = run(lake, ["rollups/klines"], D1, D1 + DAY, intervals=("1h", "4h"))["rollups/klines"]
    assert found.filter(
        pa.array([name == "4h" for name in found.column("interval").to_pylist()])
    ).to_pylist() == [
        {
            "venue": "binance",
            "symbol": "A/USDT",
            "interval": "4h",
            "ts": D1,
            "known_at": D1 + 4 * HOUR,
            "listing_id": "A/USDT#1",
            "open": 1.0,
            "high": 9.0,
            "low": 0.25,
            "close": 5.0,
            "volume_base": Decimal("123456789012.40000005"),
            "volume_quote": Decimal(40),
            "n_trades": 4,
            "taker_buy_base": Decimal(2),
            "taker_buy_quote": Decimal(20),
            "n_base_bars": 4,
            "complete": True,
        }
    ]
    assert by_ts(found, "open", interval="1h") == {row["ts"]: row["open"] for row in rows[:4]}


def test_a_volume_is_missing_as_soon_as_one_base_bar_lacks_it(lake: Lake) -> None:
    store(
        lake,
        "raw/klines",
        [*hours("A/USDT", D1, 3), bar("A/USDT", D1 + 3 * HOUR, volume_quote=None, n_trades=None)],
    )
    found = run(lake, ["rollups/klines"], D1, D1 + DAY)["rollups/klines"]
    assert by_ts(found, "volume_base", "volume_quote", "n_trades", interval="4h") == {
        D1: (Decimal(4), None, None)
    }


def test_nothing_is_known_after_the_watermark_and_a_finished_bar_with_holes_is_incomplete(lake: Lake) -> None:
    rows = hours("A/USDT", D1, 10)
    del rows[1]
    store(lake, "raw/klines", rows)
    found = run(lake, ALL_ROLLUPS, D1, D1 + DAY, watermark=D1 + 9 * HOUR)
    klines = found["rollups/klines"]
    assert by_ts(klines, "n_base_bars", "complete", interval="4h") == {
        D1: (3, False),
        D1 + 4 * HOUR: (4, True),
    }
    assert by_ts(klines, "ts", interval="1d") == {}
    assert max(by_ts(klines, "ts", interval="1h")) == D1 + 8 * HOUR
    assert all(max(rows.column("known_at").to_pylist()) == D1 + 9 * HOUR for rows in found.values())


def test_a_symbol_outside_the_listings_is_not_rolled_up(lake: Lake) -> None:
    store(lake, "raw/klines", [*hours("A/USDT", D1, 2), *hours("Z/USDT", D1, 2)])
    found = run(lake, ["rollups/klines"], D1, D1 + DAY)["rollups/klines"]
    assert set(found.column("symbol").to_pylist()) == {"A/USDT"}


def test_a_gap_keeps_the_raster_alive_without_prices_for_48_hours(lake: Lake) -> None:
    store(lake, "raw/klines", hours("A/USDT", D1 + 22 * HOUR, 2))
    raster = run(lake, ["rollups/klines", "rollups/raster"], D1, D1 + 4 * DAY)["rollups/raster"]
    ages = by_ts(raster, "bar_age", "has_bar", "close")
    last = D1 + 23 * HOUR
    assert ages[last] == (0, True, 10.0)
    assert ages[last + 5 * HOUR] == (5, False, None)
    assert max(ages) == last + 47 * HOUR
    assert min(ages) == D1 + 22 * HOUR


REUSED = (
    {"symbol": "A/USDT", "listing_id": "A/USDT#1", "coin_id": "old", "valid_to": D1 + 30 * HOUR},
    {"symbol": "A/USDT", "listing_id": "A/USDT#2", "coin_id": "new", "valid_from": D1 + 30 * HOUR},
)


def test_a_reused_ticker_is_two_listings_with_a_coin_each(lake: Lake) -> None:
    store(lake, "raw/klines", [*hours("A/USDT", D1, 24, 10.0), *hours("A/USDT", D1 + 31 * HOUR, 17, 0.1)])
    store(lake, "raw/market_caps", [cap("old", D1 - DAY, 5.0), cap("new", D1 - DAY, 7.0)])
    found = run(lake, ALL_ROLLUPS, D1, D1 + 2 * DAY, listings=REUSED)
    lives = by_ts(found["rollups/raster"], "listing_id", "bar_age", "market_cap_usd")
    assert lives[D1 + 30 * HOUR] == ("A/USDT#1", 7, 5.0)
    assert lives[D1 + 31 * HOUR] == ("A/USDT#2", 0, 7.0)


def test_a_bar_that_two_listings_share_holds_the_newer_one_only(lake: Lake) -> None:
    split = D1 + 2 * HOUR
    listings = [{**REUSED[0], "valid_to": split}, {**REUSED[1], "valid_from": split}]
    store(lake, "raw/klines", [*hours("A/USDT", D1, 2, 10.0), *hours("A/USDT", split, 2, 0.1)])
    found = run(lake, ["rollups/klines"], D1, D1 + DAY, listings=listings)["rollups/klines"]
    bars = by_ts(found, "listing_id", "high", "n_base_bars", "complete", interval="4h")
    assert bars == {D1: ("A/USDT#2", 0.1, 2, False)}


def test_a_market_cap_is_the_newest_known_or_missing(lake: Lake) -> None:
    # Coin -> caps from three days before the window on, and what the window's rows may know of them.
    cases: dict[str, tuple[list[float | None], float | None]] = {
        "newest": ([5.0, 6.0, 7.0], 7.0),
        "stale_for_three_days": ([7.0, 7.0, 7.0], None),
        "equal_for_two_days": ([6.0, 7.0, 7.0], 7.0),
        "equal_around_a_hole": ([7.0, 6.0, 7.0], 7.0),
        "zero_is_unknown": ([5.0, 6.0, 0.0], None),
        "unknown_does_not_fall_back": ([5.0, 6.0, None], None),
        "a_day_older": ([5.0, 6.0], 6.0),
        "none": ([], None),
    }
    symbols = {coin: f"{coin.upper()}/USDT" for coin in cases}
    listings = [
        {"symbol": name, "listing_id": f"{name}#1", "coin_id": coin} for coin, name in symbols.items()
    ]
    store(lake, "raw/klines", [row for name in symbols.values() for row in hours(name, D1, 24)])
    caps = [
        cap(coin, D1 + (number - 3) * DAY, value)
        for coin, (values, _) in cases.items()
        for number, value in enumerate(values)
    ]
    store(lake, "raw/market_caps", caps)
    raster = run(lake, ALL_ROLLUPS[:2], D1, D1 + DAY, listings=listings)["rollups/raster"]
    for coin, (values, expected) in cases.items():
        found = by_ts(raster, "market_cap_usd", "market_cap_ts", coin_id=coin)
        # The cap of the day before is published at 00:45, so the bar that ends at 01:00 is the first to know it.
        assert found[D1] == (expected, D1 + (len(values) - 4) * DAY if expected else None), coin
        assert set(found.values()) == {found[D1]}, coin


def test_a_market_cap_is_not_known_before_its_publication_and_expires_three_days_later(lake: Lake) -> None:
    store(lake, "raw/klines", hours("A/USDT", D1, 5 * 24))
    store(lake, "raw/market_caps", [cap("a", D1, 5.0)])
    raster = run(lake, ["rollups/klines", "rollups/raster"], D1, D1 + 5 * DAY)["rollups/raster"]
    known = [ts for ts, value in by_ts(raster, "market_cap_usd").items() if value is not None]
    assert (min(known), max(known)) == (D1 + DAY, D1 + 4 * DAY - HOUR)


def test_the_coin_is_what_the_newest_snapshot_of_the_time_said_where_the_listing_names_none(
    lake: Lake,
) -> None:
    def coin(coin_id: str, day: datetime, symbol: str | None) -> Row:
        return {"coin_id": coin_id, "ts": day, "known_at": day + 2 * HOUR, "ticker": "a", "symbol": symbol}

    store(lake, "raw/klines", hours("A/USDT", D1, 48))
    store(
        lake,
        "raw/coins",
        [coin("first", D1, "A/USDT"), coin("second", D1 + DAY, "A/USDT"), coin("third", D1 + DAY, None)],
    )
    listings = [{"symbol": "A/USDT", "listing_id": "A/USDT#1"}]
    models = ["rollups/klines", "rollups/raster"]
    coins = by_ts(run(lake, models, D1, D1 + 2 * DAY, listings=listings)["rollups/raster"], "coin_id")
    change = D1 + DAY + HOUR  # the bar that ends when the second snapshot is known
    assert {ts: coin for ts, coin in coins.items() if ts < change} == {
        D1 + hour * HOUR: "first" for hour in range(25)
    }
    assert {coin for ts, coin in coins.items() if ts >= change} == {"second"}
    day = by_ts(run(lake, models, D1 + DAY, D1 + 2 * DAY, listings=listings)["rollups/raster"], "coin_id")
    assert day == {ts: coin for ts, coin in coins.items() if ts >= D1 + DAY}


def test_turnover_is_base_volume_times_close_where_the_source_lacks_quote_volume(lake: Lake) -> None:
    store(lake, "raw/klines", [bar("A/USDT", D1, 4.0), bar("A/USDT", D1 + HOUR, 4.0, volume_quote=None)])
    raster = run(lake, ["rollups/klines", "rollups/raster"], D1, D1 + DAY)["rollups/raster"]
    turnover = by_ts(raster, "turnover_quote")
    assert (turnover[D1], turnover[D1 + HOUR], turnover[D1 + 2 * HOUR]) == (10.0, 4.0, None)


def random_market(lake: Lake, n_days: int) -> list[dict[str, Any]]:
    """Six symbols with missing bars, missing volumes, a reused ticker, and caps with holes."""
    rng = np.random.default_rng(11)
    rows, caps = [], []
    listings: list[dict[str, Any]] = list(REUSED)
    for symbol in ("A", "B", "C", "D", "E", "F"):
        if symbol != "A":
            listings.append(
                {"symbol": f"{symbol}/USDT", "listing_id": f"{symbol}/USDT#1", "coin_id": symbol.lower()}
            )
        close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, n_days * 24)))
        for number, price in enumerate(close):
            if rng.random() > 0.1:
                volume = None if rng.random() < 0.02 else Decimal(str(round(float(rng.lognormal(3, 2)), 8)))
                rows.append(
                    bar(
                        f"{symbol}/USDT",
                        D1 + number * HOUR,
                        float(price),
                        volume_base=volume,
                        high=float(price) * 1.01,
                    )
                )
        for number in range(-3, n_days):
            caps.append(cap(symbol.lower(), D1 + number * DAY, float(rng.choice([1e9, 2e9, 0.0]))))
    store(lake, "raw/klines", rows)
    store(lake, "raw/market_caps", caps)
    return listings


def test_day_by_day_equals_the_range_bit_for_bit(lake: Lake, tmp_path: Path) -> None:
    n_days = 11
    end = D1 + n_days * DAY
    listings = random_market(lake, n_days)
    whole = run(lake, ALL_ROLLUPS, D1, end, listings=listings)
    for number in range(n_days):
        day = D1 + number * DAY
        for name, rows in run(lake, ALL_ROLLUPS, day, day + DAY, listings=listings).items():
            key = day.date().isoformat()
            inside = pa.array([day <= ts < day + DAY for ts in whole[name].column("ts").to_pylist()])
            assert rows.num_rows and rows.equals(whole[name].filter(inside)), (name, key)
            lake.replace(table_of(name), key, rows, Provenance(name, key), (day, day + DAY))


def test_runs_in_one_process_do_not_see_each_other(lake: Lake) -> None:
    late = D1 + DAY + 2 * HOUR
    store(lake, "raw/klines", [*hours("A/USDT", D1, 24, 10.0), *hours("A/USDT", late, 22, 20.0)])
    first = run(lake, ALL_ROLLUPS, D1, D1 + DAY)
    second = run(lake, ALL_ROLLUPS, D1 + DAY, D1 + 2 * DAY)
    assert set(first["rollups/raster"].column("close").to_pylist()) == {10.0}
    # Nothing of the first run was stored, so the second knows no bar of the day before.
    assert min(second["rollups/raster"].column("ts").to_pylist()) == late


def test_fresh_rows_replace_the_stored_rows_of_the_window_only(lake: Lake) -> None:
    store(lake, "raw/klines", [*hours("A/USDT", D1, 24, 10.0), *hours("A/USDT", D1 + DAY, 24, 10.0)])
    for name, rows in run(lake, ALL_ROLLUPS, D1, D1 + 2 * DAY).items():
        store(lake, name, rows)
    store(lake, "raw/klines", hours("A/USDT", D1 + DAY + 2 * HOUR, 22, 20.0))
    raster = run(lake, ALL_ROLLUPS, D1 + DAY, D1 + 2 * DAY)["rollups/raster"]
    ages = by_ts(raster, "bar_age", "close")
    # The bars of the day before are the stored ones.
    assert [ages[D1 + DAY + number * HOUR] for number in range(3)] == [(1, None), (2, None), (0, 20.0)]
    alone = run(lake, ALL_ROLLUPS[1:], D1 + DAY, D1 + 2 * DAY)["rollups/raster"]
    assert alone.column("close").to_pylist() == [10.0] * 24


def test_ranks_are_among_eligible_symbols_with_a_value(lake: Lake) -> None:
    names = [f"{letter}/USDT" for letter in "ABCDEFG"]
    base = {"known_at": D1 + HOUR, "ts": D1}
    caps = dict(zip(names, [1.0, 2.0, 2.0, None, 5.0, 6.0, 7.0], strict=True))
    store(
        lake,
        "features/universe",
        [
            {"symbol": name, "listing_id": f"{name}#1", "eligible": name != "G/USDT", "reason": "x", **base}
            for name in names
        ],
    )
    store(
        lake,
        "rollups/raster",
        [
            {
                "symbol": n,
                "listing_id": f"{n}#1",
                "has_bar": True,
                "bar_age": 0,
                "market_cap_usd": caps[n],
                **base,
            }
            for n in names
        ],
    )
    store(
        lake,
        "features/price_action",
        [
            {"symbol": n, "listing_id": f"{n}#1", "return_24h_log": float(i) if i < 4 else None, **base}
            for i, n in enumerate(names)
        ],
    )
    found = run(lake, ["features/cross_section"], D1, D1 + DAY)["features/cross_section"]
    ranks = {row["symbol"]: row["market_cap_xs_rank"] for row in found.to_pylist()}
    assert ranks == {
        "A/USDT": 0.1,
        "B/USDT": 0.4,
        "C/USDT": 0.4,
        "D/USDT": None,
        "E/USDT": 0.7,
        "F/USDT": 0.9,
    }
    assert found.column("return_24h_xs_rank").null_count == 6
    assert set(found.column("n_eligible").to_pylist()) == {6}


def ranks_of(x: np.ndarray) -> np.ndarray:
    """(rank - 0.5) / n across each row, ties average, in pandas."""
    rows = pd.DataFrame(x)
    n = rows.notna().sum(axis=1)
    return rows.rank(axis=1).sub(0.5).div(n, axis=0).where(n >= kernels.XS_MIN, axis=0).to_numpy()


def test_standings_of_a_day_alone_have_the_bits_of_the_range_and_are_those_of_pandas_and_the_kernels(
    lake: Lake,
) -> None:
    draws = np.random.default_rng(3)
    moments = [D1 + number * HOUR for number in range(72)]
    names = [f"{letter}/USDT" for letter in "ABCDEFGHIJKLMNOP"]
    values = np.exp(draws.normal(size=(len(moments), len(names))))
    values[draws.random(values.shape) < 0.1] = np.nan
    values[:5] = np.round(values[:5])
    values[5, 4:] = np.nan
    values[6] = 0.1
    eligible = draws.random(values.shape) < 0.8
    identity = [
        {"symbol": name, "listing_id": f"{name}#1", "ts": ts, "known_at": ts + HOUR}
        for ts in moments
        for name in names
    ]
    store(
        lake,
        "features/universe",
        [
            row | {"eligible": bool(one), "reason": "x"}
            for row, one in zip(identity, eligible.flat, strict=True)
        ],
    )
    # Rows in another order each time they are stored must not matter.
    shuffled = draws.permutation(len(identity))
    rows = [
        identity[place]
        | {"return_24h_log": None if np.isnan(values.flat[place]) else float(values.flat[place])}
        for place in shuffled
    ]
    store(lake, "features/price_action", rows)
    name = "features/cross_section"
    whole = run(lake, [name], D1, D1 + 3 * DAY)[name]
    for number in range(3):
        day = D1 + number * DAY
        inside = pa.array([day <= ts < day + DAY for ts in whole.column("ts").to_pylist()])
        assert run(lake, [name], day, day + DAY)[name].equals(whole.filter(inside))
    among = np.where(eligible, values, np.nan)
    found = whole.to_pandas().pivot(index="ts", columns="symbol")
    kept = np.where(eligible, 1.0, np.nan)
    for column, expected in (
        ("return_24h_xs_rank", ranks_of(among)),
        ("return_24h_xs_z", kernels.xs_zscore(among)),
    ):
        np.testing.assert_allclose(found[column].to_numpy(), expected * kept, rtol=1e-12, err_msg=column)
        assert np.isfinite(expected).sum() > 500
    assert np.isnan(found["return_24h_xs_rank"].to_numpy()[5]).all()
    assert np.isnan(found["return_24h_xs_z"].to_numpy()[6]).all()


def test_an_empty_lake_gives_empty_tables_that_keep_the_contract(lake: Lake) -> None:
    found = run(lake, [*ALL_ROLLUPS, "features/cross_section"], D1, D1 + DAY)
    assert {name: rows.num_rows for name, rows in found.items()} == dict.fromkeys(
        [*ALL_ROLLUPS, "features/cross_section"], 0
    )


def test_a_failing_data_test_names_itself_and_hands_nothing_back(lake: Lake) -> None:
    store(lake, "raw/klines", [bar("A/USDT", D1, low=11.0)])
    with pytest.raises(dbt.DbtError, match="rollups_klines_prices_lie_between_low_and_high"):
        run(lake, ["rollups/klines"], D1, D1 + DAY)


def test_data_tests_look_at_the_window_only(lake: Lake) -> None:
    bad = {"known_at": D1 + HOUR, "listing_id": "A/USDT#1", "n_base_bars": 1, "complete": True}
    store(
        lake,
        "rollups/klines",
        [{"venue": "binance", "symbol": "A/USDT", "interval": "odd", "ts": D1, "low": 9.0, **bad}],
    )
    store(lake, "raw/klines", hours("A/USDT", D1 + DAY, 24))
    assert run(lake, ["rollups/klines"], D1 + DAY, D1 + 2 * DAY)["rollups/klines"].num_rows == 24 + 6 + 1


def test_overlapping_lives_of_a_symbol_are_refused(lake: Lake) -> None:
    store(lake, "raw/klines", hours("A/USDT", D1, 24))
    twice = [{"symbol": "A/USDT", "listing_id": "A/USDT#1"}, {"symbol": "A/USDT", "listing_id": "A/USDT#2"}]
    with pytest.raises(ValueError, match="A/USDT#1 and A/USDT#2 overlap"):
        run(lake, ["rollups/klines"], D1, D1 + DAY, listings=twice)


def test_a_broken_model_is_an_error_with_its_name(lake: Lake, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(dbt.PROJECT, project, ignore=shutil.ignore_patterns("target", "logs"))
    (project / "models/rollups/klines.sql").write_text(
        "select no_such_column from {{ source('raw', 'base_klines') }}"
    )
    controls = {
        **dbt.interval_controls("binance", "1h", ["1h"], "1h"),
        "days": dbt.watermark_control({D1: D1 + DAY}),
        "listings": dbt.listing_control([]),
        "ages": dbt.age_control(AGES),
        "standings": dbt.standing_control([]),
    }
    with pytest.raises(dbt.DbtError, match=r"(?s)model klines: .*no_such_column"):
        dbt.run_dbt(lake, ["rollups/klines"], D1, D1 + DAY, controls, project, tmp_path / "work")
    assert list((tmp_path / "work").iterdir()) == []


def test_what_does_not_fit_is_refused_before_dbt_starts(lake: Lake) -> None:
    with pytest.raises(ValueError, match="features/universe is no model"):
        run(lake, ["features/universe"], D1, D1 + DAY)
    with pytest.raises(ValueError, match="midnight"):
        run(lake, ["rollups/klines"], D1 + HOUR, D1 + DAY + HOUR)
    with pytest.raises(ValueError, match="holds no day"):
        run(lake, ["rollups/klines"], D1, D1)
    controls = {
        **dbt.interval_controls("binance", "1h", ["1h"], "1h"),
        "days": dbt.watermark_control({D1: D1 + DAY}),
        "listings": dbt.listing_control([]),
        "ages": dbt.age_control(AGES),
        "standings": dbt.standing_control([]),
    }
    with pytest.raises(ValueError, match="missing: 2024-01-02"):
        dbt.run_dbt(lake, ["rollups/klines"], D1, D1 + 2 * DAY, controls)
    with pytest.raises(ValueError, match="control tables"):
        dbt.run_dbt(lake, ["rollups/klines"], D1, D1 + DAY, {})
    with pytest.raises(ValueError, match="not a multiple"):
        dbt.interval_controls("binance", "4h", ["4h", "6h"], "4h")
    with pytest.raises(ValueError, match="not rolled up"):
        dbt.interval_controls("binance", "1h", ["4h"], "1h")


def test_the_units_of_the_project_hold(lake: Lake) -> None:
    declared = {
        unit["name"]
        for file in (dbt.PROJECT / "models").rglob("*.yml")
        for unit in yaml.safe_load(file.read_text()).get("unit_tests", ())
    }
    assert len(declared) >= 4
    assert set(dbt.run_unit_tests(lake)) == declared


def test_every_column_of_a_roll_up_is_described_by_its_contract() -> None:
    nodes = json.loads(dbt.manifest_path().read_text())["nodes"].values()
    models = {f"{node['schema']}/{node['name']}": node for node in nodes if node["resource_type"] == "model"}
    for name in ("rollups/klines", "rollups/klines_1w", "rollups/raster"):
        told = {column["name"]: column["description"] for column in models[name]["columns"].values()}
        assert told == {column.name: column.meaning for column in table_of(name).columns}
        assert models[name]["description"].startswith("One row per")


def test_the_manifest_is_made_once_and_again_after_a_change(tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(dbt.PROJECT, project, ignore=shutil.ignore_patterns("target", "logs"))
    first = dbt.manifest_path(project).stat().st_mtime_ns
    assert dbt.manifest_path(project).stat().st_mtime_ns == first
    for file in ("cross_section.sql", "features.yml"):
        (project / "models/features" / file).unlink()
    nodes = json.loads(dbt.manifest_path(project).read_text())["nodes"]
    models = {name.split(".")[-1] for name in nodes if name.startswith("model.")}
    assert models == {path.stem for path in (project / "models").rglob("*.sql")}
    assert "cross_section" not in models


def test_manifest_names_match_the_contracts() -> None:
    from dagster_dbt import DagsterDbtTranslator

    manifest = json.loads(dbt.manifest_path().read_text())
    translator = DagsterDbtTranslator()
    models = [node for node in manifest["nodes"].values() if node["resource_type"] == "model"]
    names = {
        "/".join(translator.get_asset_key(node).path) for node in [*models, *manifest["sources"].values()]
    }
    assert names == {
        *("/".join(path.with_suffix("").parts[-2:]) for path in (dbt.PROJECT / "models").rglob("*.sql")),
        "raw/klines",
        "raw/coins",
        "raw/market_caps",
        "raw/funding_rates",
        "raw/open_interest",
        "raw/order_book_summary",
        "features/universe",
    }
    assert all(table_of(name) for name in names)
    assert {translator.get_group_name(node) for node in models} == {"rollups", "features"}


@needs_recorded
def test_rolled_up_recorded_bars_equal_the_exchanges_own(lake: Lake) -> None:
    start, n_days = datetime(2022, 1, 1), 60
    end = start + n_days * DAY
    base = recorded_klines("BTCUSDT-1h", start, end)
    store(
        lake,
        "raw/klines",
        [bar("BTC/USDT", ts, **values) for ts, values in base.items()],
    )
    listings = [{"symbol": "BTC/USDT", "listing_id": "BTC/USDT#1"}]
    found = run(lake, ["rollups/klines"], start, end, listings=listings)["rollups/klines"].to_pylist()
    for interval, n_bars in (("4h", 6 * n_days), ("1d", n_days)):
        theirs = recorded_klines(f"BTCUSDT-{interval}", start, end)
        ours = {row["ts"]: row for row in found if row["interval"] == interval and row["complete"]}
        assert len(ours) == n_bars
        assert {ts: {name: row[name] for name in theirs[ts]} for ts, row in ours.items()} == theirs


def recorded_klines(name: str, start: datetime, end: datetime) -> dict[datetime, Row]:
    """Recorded wire klines of a window as columns of the contract."""
    rows = {}
    with tarfile.open(RECORDED / "spot_wire_static_klines" / "dev" / f"{name}.tar.gz") as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            if file is None or not member.name.endswith(".json"):
                continue
            for wire in json.loads(file.read()):
                ts = datetime(1970, 1, 1) + timedelta(milliseconds=wire[0])
                if start <= ts < end:
                    rows[ts] = {
                        **dict(zip(("open", "high", "low", "close"), map(float, wire[1:5]), strict=True)),
                        "volume_base": Decimal(wire[5]),
                        "volume_quote": Decimal(wire[7]),
                        "n_trades": wire[8],
                        "taker_buy_base": Decimal(wire[9]),
                        "taker_buy_quote": Decimal(wire[10]),
                    }
    return rows
