"""World-at-T of what the suite's market does not collect: contracts, funding, open interest, candles of coins."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from crypto_assets.settings import CoinOhlc, Settings, current_settings
from crypto_assets_tests.graph.conftest import QUICK_CUT, QUICK_FROM, QUICK_NOW
from crypto_assets_tests.graph.harness import Platform, leaks, market_at

#: In an order in which parents come first; each is made alone, as clocks would.
NAMES = (
    "raw/symbols",
    "raw/universe",
    "raw/klines",
    "raw/funding_rates",
    "raw/open_interest",
    "raw/coins",
    "raw/coin_ohlc",
)
CUTS = (QUICK_CUT, QUICK_CUT + timedelta(hours=7, minutes=41), datetime(2024, 1, 26, 0, 5))


def with_contracts() -> Settings:
    given = current_settings()
    universe = given.universe.model_copy(update={"contract_types": ("PERPETUAL",)})
    ohlc = CoinOhlc(intervals=("1d", "1h"))
    sources = given.sources.model_copy(
        update={"futures_kinds": ("trade", "mark", "premium"), "coin_ohlc": ohlc}
    )
    return given.model_copy(update={"universe": universe, "sources": sources})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[datetime, Platform]]:
    """The same days of the raw stage, built at several moments."""
    found = {}
    for now in (*CUTS, QUICK_NOW):
        with market_at(now) as market:
            platform = Platform.on(
                market, tmp_path_factory.mktemp("contracts") / "warehouse", with_contracts()
            )
            for name in NAMES:
                platform.build(now, first=QUICK_FROM, only=[name])
        found[now] = platform
    yield found


@pytest.mark.slow
@pytest.mark.parametrize("cut", CUTS)
def test_contracts_and_candles_hold_what_was_known_then(
    built: dict[datetime, Platform], cut: datetime
) -> None:
    names = [name for name in NAMES if name not in ("raw/symbols", "raw/universe", "raw/coins")]
    earlier, later = ({name: built[now].rows(name) for name in names} for now in (cut, QUICK_NOW))
    assert all(len(rows) for rows in earlier.values())
    assert leaks(earlier, later, cut) == []


@pytest.mark.slow
def test_mark_prices_and_premiums_stand_beside_the_trades_of_every_contract(
    built: dict[datetime, Platform],
) -> None:
    rows = built[QUICK_NOW].rows("raw/klines")
    contracts = rows[rows["symbol"].str.contains(":")]
    counts = contracts.groupby(["symbol", "kind"]).size().unstack()
    assert set(counts.columns) == {"trade", "mark", "premium"}
    assert (counts["trade"] == counts["mark"]).all()
    assert (counts["trade"] == counts["premium"]).all()
    assert contracts.loc[contracts["kind"] != "trade", "volume_base"].isna().all()


@pytest.mark.slow
def test_a_second_look_on_the_same_day_changes_nothing(
    built: dict[datetime, Platform], tmp_path: Path
) -> None:
    with market_at(QUICK_NOW) as market:
        again = built[QUICK_NOW].copy(tmp_path / "again", market)
        again = Platform.on(market, again.folder, with_contracts())
        before = market.count("/fapi/v1/klines")
        for name in NAMES:
            again.build(QUICK_NOW, first=QUICK_FROM, only=[name])
        assert market.count("/fapi/v1/klines") == before
        assert market.count("/fapi/v1/fundingRate") == 0
    assert again.lake.ledger.revisions().num_rows == 0
    for name in NAMES:
        assert again.rows(name).equals(built[QUICK_NOW].rows(name)), name
