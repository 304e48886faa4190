"""Facts 8 and 10: symbols that die and are used again, and the states of markets in the exchange's lists of four years."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from crypto_assets.quant.markets import MarketFilters, choose_markets
from crypto_assets.resources.warehouse.inventory import gaps_table
from crypto_assets.settings import Listing
from crypto_assets.simulation.recorded import RecordedWorld
from crypto_assets_tests.recorded import RECORDED, needs_recorded
from crypto_assets_tests.recorded_facts.loading import Warehouse, recorded_json, recorded_world, spot

pytestmark = needs_recorded

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
HOURS = "spot_1h_2021_2023/dev/{}USDT-1h.csv.gz"
#: Last hour of each market that died.
DEATHS = {
    "UST": "2022-05-13 00:00",
    "HNT": "2022-10-14 02:00",
    "SRM": "2022-11-28 02:00",
    "BUSD": "2023-12-15 04:00",
    "KEEP": "2022-02-16 03:00",
}
LUNA = [
    Listing(
        symbol="LUNA/USDT",
        listing_id="LUNA/USDT#1",
        coin_id="terra-luna",
        valid_to=datetime(2022, 5, 13, 1),
        known_at=datetime(2022, 5, 13, 1),
    ),
    Listing(
        symbol="LUNA/USDT",
        listing_id="LUNA/USDT#2",
        coin_id="terra-luna-2",
        valid_from=datetime(2022, 5, 31),
    ),
]


def hours_of(base: str) -> list[pd.Timestamp]:
    """Recorded hours of a pair, read without the product."""
    return pd.to_datetime(pd.read_csv(RECORDED / HOURS.format(base))["date"]).tolist()


@pytest.fixture(scope="module")
def lives() -> RecordedWorld:
    return recorded_world(*(HOURS.format(base) for base in ("BTC", "LUNA", *DEATHS)))


# Fact 8: symbols are used again and die


@pytest.fixture(scope="module")
def luna(tmp_path_factory: pytest.TempPathFactory, lives: RecordedWorld) -> Warehouse:
    warehouse = Warehouse(tmp_path_factory.mktemp("luna"))
    window = (datetime(2022, 5, 11), datetime(2022, 6, 2))
    warehouse.load_klines(lives, "2022-06-02T00:00:30", spot("LUNA/USDT"), "1h", window)
    for now in ("2022-05-12T00:00", "2022-05-20T00:00", "2022-06-02T00:00"):
        warehouse.look_at_markets(lives, now, listings=LUNA)
    return warehouse


def test_fact_8_lunausdt_stops_on_2022_05_13_and_restarts_on_2022_05_31_after_437_hours_as_another_coin(
    luna: Warehouse,
) -> None:
    rows = luna.rows("raw/klines").set_index("ts")
    recorded = [hour for hour in hours_of("LUNA") if datetime(2022, 5, 11) <= hour < datetime(2022, 6, 2)]
    assert rows.index.tolist() == recorded
    found = gaps_table(luna.lake).to_pandas()
    assert [(str(gap["ts"]), gap["n_missing"], gap["origin"]) for gap in found.to_dict("records")] == [
        ("2022-05-13 01:00:00", 437, "source")
    ]
    old, new = rows.loc["2022-05-13 00:00"], rows.loc["2022-05-31 06:00"]
    assert (old["close"], new["open"]) == (0.00005, 1.0)


def test_fact_8_the_second_luna_is_another_listing_of_the_same_symbol(luna: Warehouse) -> None:
    states = luna.rows("raw/symbols", symbol="LUNA/USDT")
    assert list(zip(states["listing_id"], states["trading_status"], strict=True)) == [
        ("LUNA/USDT#1", "TRADING"),
        ("LUNA/USDT#1", "BREAK"),
        ("LUNA/USDT#2", "TRADING"),
    ]
    listings = luna.listings(LUNA)
    own = listings[listings["symbol"] == "LUNA/USDT"]
    assert own["event"].tolist()[-3:] == ["first_seen", "halt", "reuse"]
    last = own.iloc[-1]
    assert (last["listing_id"], last["valid_from"]) == ("LUNA/USDT#2", pd.Timestamp("2022-06-02"))
    # No interval tells an end before it was known.
    ended = own.dropna(subset=["valid_to"])
    assert (ended["valid_to_known_at"] <= ended["valid_to"]).all()
    assert (ended["valid_to"].to_numpy() == own["valid_from"].to_numpy()[1:]).all()


def test_fact_8_before_the_first_look_the_settings_tell_the_two_lives_of_luna(tmp_path: Path) -> None:
    own = Warehouse(tmp_path).listings(LUNA)
    assert list(
        zip(own["listing_id"], own["event"], own["valid_from"].dt.strftime("%Y-%m-%d %H:%M"), strict=True)
    ) == [
        ("LUNA/USDT#1", "listing", "1970-01-01 00:00"),
        ("LUNA/USDT#1", "delisting", "2022-05-13 01:00"),
        ("LUNA/USDT#2", "reuse", "2022-05-31 00:00"),
    ]


@pytest.mark.parametrize("base", DEATHS)
def test_fact_8_ust_hnt_srm_busd_and_keep_end_and_the_exchange_says_so(
    tmp_path: Path, lives: RecordedWorld, base: str
) -> None:
    symbol, last = f"{base}/USDT", pd.Timestamp(DEATHS[base])
    assert hours_of(base)[-1] == last
    warehouse, day = Warehouse(tmp_path), last.floor("D").to_pydatetime()
    now = (last + 3 * DAY).isoformat()
    warehouse.load_klines(lives, now, spot(symbol), "1h", (day - DAY, day + 2 * DAY))
    assert warehouse.rows("raw/klines")["ts"].iloc[-1] == last
    found = gaps_table(warehouse.lake).to_pandas()
    first = found[found["origin"] == "source"].iloc[0]
    assert first["ts"] == last + HOUR
    for moment in (last, last + 3 * DAY):
        warehouse.look_at_markets(lives, moment.isoformat())
    states = warehouse.rows("raw/symbols", symbol=symbol)
    # The exchange goes on naming what it has stopped to trade.
    assert states["trading_status"].tolist() == ["TRADING", "BREAK"]
    listings = warehouse.listings()
    own = listings[listings["symbol"] == symbol]
    assert own["event"].tolist() == ["first_seen", "halt"]
    assert own["valid_to_known_at"].iloc[0] == last + 3 * DAY


def test_fact_8_listings_start_at_different_dates(tmp_path: Path, lives: RecordedWorld) -> None:
    starts = {base: hours_of(base)[0] for base in ("BTC", "KEEP", "UST")}
    assert {base: str(at) for base, at in starts.items()} == {
        "BTC": "2021-04-04 20:00:00",
        "KEEP": "2021-06-17 06:00:00",
        "UST": "2021-12-24 08:00:00",
    }
    warehouse = Warehouse(tmp_path)
    for now in ("2021-06-17T05:59:59", "2021-06-17T06:00:01", "2021-12-24T07:59:59", "2021-12-24T08:00:01"):
        warehouse.look_at_markets(lives, now)
    first = warehouse.rows("raw/symbols").groupby("symbol")["valid_from"].min()
    assert str(first["KEEP/USDT"]) == "2021-06-17 06:00:01"
    assert str(first["UST/USDT"]) == "2021-12-24 08:00:01"
    assert first["BTC/USDT"] < first["KEEP/USDT"]


# Fact 10: the status zoo

LISTS = {
    "2018-02-11": "spot-2018-02-10",
    "2020-10-10": "spot-2020-10-09",
    "2021-03-25": "spot-2021-03-24",
    "2025-11-27": "um-2025-11-26-maybe-testnet",
}
PATH = "binance_wire/exchange_info/{}.json.gz"


@pytest.fixture(scope="module")
def lists() -> RecordedWorld:
    return recorded_world(exchange_info=[PATH.format(name) for name in LISTS.values()])


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, lists: RecordedWorld) -> dict[str, pd.DataFrame]:
    """Moment -> the newest states of all markets against USDT after a look at it; one warehouse for all moments."""
    warehouse, states = Warehouse(tmp_path_factory.mktemp("lists")), {}
    for now in ("2018-02-11", "2020-10-10", "2021-03-25"):
        warehouse.look_at_markets(lists, now)
        states[now] = warehouse.states()
    contracts = Warehouse(tmp_path_factory.mktemp("contracts"))
    contracts.look_at_markets(lists, "2025-11-27", market_types=("perpetual", "delivery"))
    return {
        **states,
        "2025-11-27": contracts.states(),
        "every": warehouse.rows("raw/symbols"),
        "listings": warehouse.listings(),
    }


def recorded_list(now: str) -> list[dict[str, Any]]:
    """Entries against USDT of a recorded list, read without the product."""
    return [
        entry for entry in recorded_json(PATH.format(LISTS[now]))["symbols"] if entry["quoteAsset"] == "USDT"
    ]


@pytest.mark.parametrize(
    ("now", "statuses"),
    [
        ("2018-02-11", {"TRADING": 6}),
        ("2020-10-10", {"TRADING": 190, "BREAK": 20}),
        ("2021-03-25", {"TRADING": 244, "BREAK": 27}),
        (
            "2025-11-27",
            {"TRADING": 517, "PENDING_TRADING": 44, "SETTLING": 41, "DELIVERING": 4, "PRE_SETTLE": 1},
        ),
    ],
)
def test_fact_10_every_status_of_the_lists_of_2018_2020_2021_and_2025_is_stored_as_told(
    seen: dict[str, pd.DataFrame], now: str, statuses: dict[str, int]
) -> None:
    told = {entry["symbol"]: entry["status"] for entry in recorded_list(now)}
    stored = seen[now].set_index("exchange_symbol")["trading_status"]
    # Of two contracts with one symbol in our spelling the one that trades is kept.
    assert set(told) - set(stored.index) == ({"IDOL"} if now == "2025-11-27" else set())
    assert stored.to_dict() == {name: told[name] for name in stored.index}
    assert Counter(stored) == statuses


def test_fact_10_contract_types_are_stored_as_told_also_with_a_blank_inside(
    seen: dict[str, pd.DataFrame],
) -> None:
    told = {entry["symbol"]: entry["contractType"] for entry in recorded_list("2025-11-27")}
    states = seen["2025-11-27"].set_index("exchange_symbol")
    assert states["contract_type"].to_dict() == {name: told[name] for name in states.index}
    blank = states[states["contract_type"] == "CURRENT_QUARTER DELIVERING"]
    assert sorted(blank["symbol"]) == [
        "BTC/USDT:USDT-250627",
        "BTC/USDT:USDT-250926",
        "ETH/USDT:USDT-250627",
        "ETH/USDT:USDT-250926",
    ]
    assert set(blank["market_type"]) == {"delivery"}
    assert set(blank["trading_status"]) == {"DELIVERING"}


@pytest.mark.parametrize("now", ["2018-02-11", "2020-10-10", "2021-03-25"])
@pytest.mark.parametrize(
    ("statuses", "permissions"),
    [
        pytest.param(("TRADING",), (), id="trading only"),
        pytest.param((), (), id="any"),
        pytest.param(("BREAK",), (), id="break only"),
        pytest.param(("TRADING", "BREAK"), ("MARGIN",), id="custom"),
        pytest.param(("TRADING",), ("SPOT",), id="tradable spot"),
    ],
)
def test_fact_10_filters_take_the_recorded_markets_of_the_statuses_and_permissions_asked_for(
    seen: dict[str, pd.DataFrame], now: str, statuses: tuple[str, ...], permissions: tuple[str, ...]
) -> None:
    states = seen[now]
    turnover = pd.DataFrame({"symbol": states["symbol"], "turnover_24h_quote": np.arange(len(states)) + 1.0})
    filters = MarketFilters(quote="USDT", statuses=statuses, permissions=permissions, top=10_000)
    choice = choose_markets(states, turnover, [], filters)
    expected = [
        f"{entry['baseAsset']}/USDT"
        for entry in recorded_list(now)
        if (not statuses or entry["status"] in statuses)
        # The list of 2018 states no permissions: none is refused.
        and (not permissions or not entry.get("permissions") or set(entry["permissions"]) & set(permissions))
    ]
    assert choice.markets["symbol"].tolist() == sorted(expected)
    assert choice.left["chosen"] == len(expected)


def test_fact_10_a_market_that_was_chosen_or_named_is_kept_in_any_status(
    seen: dict[str, pd.DataFrame],
) -> None:
    filters = MarketFilters(quote="USDT", include=("BCC",), statuses=("TRADING",))
    choice = choose_markets(seen["2021-03-25"], None, ["LEND/USDT", "BTC/USDT"], filters)
    assert dict(zip(choice.markets["symbol"], choice.markets["chosen_by"], strict=True)) == {
        "BCC/USDT": "listed",
        "BTC/USDT": "kept",
        "LEND/USDT": "kept",
    }


@pytest.mark.parametrize(
    ("types", "statuses"),
    [
        (("PERPETUAL",), ("TRADING",)),
        (("PERPETUAL",), ()),
        (("PERPETUAL",), ("SETTLING", "PRE_SETTLE")),
        (("CURRENT_QUARTER DELIVERING",), ()),
        (("CURRENT_QUARTER", "NEXT_QUARTER"), ("TRADING",)),
    ],
)
def test_fact_10_contracts_are_chosen_by_their_type_and_status_beside_the_spot_market_of_their_base(
    seen: dict[str, pd.DataFrame], types: tuple[str, ...], statuses: tuple[str, ...]
) -> None:
    states = pd.concat([seen["2021-03-25"], seen["2025-11-27"]], ignore_index=True)
    bases = ("BTC", "ETH", "EOS", "FLM")
    filters = MarketFilters(quote="USDT", include=bases, statuses=statuses, contract_types=types)
    chosen = choose_markets(states, None, [], filters).markets["symbol"]
    taken = states.set_index("symbol").loc[[symbol for symbol in chosen if ":" in symbol], "exchange_symbol"]
    expected = {
        entry["symbol"]
        for entry in recorded_list("2025-11-27")
        if entry["baseAsset"] in bases
        and entry["contractType"] in types
        and (not statuses or entry["status"] in statuses)
    }
    assert expected
    assert set(taken) == expected
    assert [symbol for symbol in chosen if ":" not in symbol] == sorted(f"{base}/USDT" for base in bases)


def test_fact_10_what_was_halted_between_two_lists_is_a_halt_in_the_listings(
    seen: dict[str, pd.DataFrame],
) -> None:
    listings = seen["listings"]
    halts = listings[listings["event"] == "halt"]
    assert dict(zip(halts["symbol"], halts["valid_from"].astype(str), strict=True)) == {
        "BCC/USDT": "2020-10-10",
        **{f"{base}/USDT": "2021-03-25" for base in ("HC", "LEND", "MCO", "STRAT", "XZC")},
    }
    # What looks the same gets no second row.
    assert len(seen["every"].query("symbol == 'USDSB/USDT'")) == 1


def test_fact_10_a_market_that_vanished_from_the_list_becomes_absent_in_symbols_and_listings(
    tmp_path: Path, lists: RecordedWorld
) -> None:
    names = [
        {entry["symbol"] for entry in recorded_json(PATH.format(LISTS[now]))["symbols"]}
        for now in ("2018-02-11", "2020-10-10")
    ]
    assert names[0] - names[1] == {"123456", "CTRBTC", "CTRETH"}
    warehouse = Warehouse(tmp_path)
    for now in ("2018-02-11", "2020-10-10", "2021-03-25"):
        warehouse.look_at_markets(lists, now, quote="ETH")
    states = warehouse.rows("raw/symbols", symbol="CTR/ETH")
    assert list(zip(states["trading_status"], states["valid_from"].astype(str), strict=True)) == [
        ("TRADING", "2018-02-11"),
        ("ABSENT", "2020-10-10"),
    ]
    newest = warehouse.states()
    assert newest.loc[newest["trading_status"] == "ABSENT", "symbol"].tolist() == ["CTR/ETH"]
    listings = warehouse.listings()
    (gone,) = listings[listings["event"] == "delisting"].to_dict("records")
    assert (gone["symbol"], gone["trading_status"], str(gone["known_at"])) == (
        "CTR/ETH",
        "ABSENT",
        "2020-10-10 00:00:00",
    )
