"""Snapshots as rows: what was seen, in the partition of the day on which it was seen, in the contract of its table."""

from __future__ import annotations

from datetime import datetime

import pandas as pd
import pytest

from crypto_assets.resources.snapshots import coin_rows, snapshot_stream
from crypto_assets.resources.warehouse import conform
from crypto_assets.schemas import table_of

NOW = datetime(2024, 1, 2, 13)
COINS = table_of("raw/coins")


def seen(*coin_ids: str) -> pd.DataFrame:
    n = len(coin_ids)
    numbers = {"price_usd": 1.0, "market_cap_usd": 2.0, "volume_usd": 3.0}
    return pd.DataFrame(
        {
            "coin_id": pd.Series(coin_ids, dtype=object),
            "ticker": pd.Series(["x"] * n, dtype=object),
            "name": pd.Series(["X"] * n, dtype=object),
            "market_cap_rank": pd.Series(range(1, n + 1), dtype="int64"),
            **{name: pd.Series([value] * n, dtype=float) for name, value in numbers.items()},
        }
    )


@pytest.mark.parametrize("coin_ids", [("bitcoin", "dust"), ("dust",), ()])
def test_coins_without_a_market_have_no_symbol(coin_ids: tuple[str, ...]) -> None:
    rows = conform(coin_rows(seen(*coin_ids), {"bitcoin": "BTC/USDT"}, NOW), COINS)
    expected = {"bitcoin": "BTC/USDT", "dust": None}
    found = dict(zip(rows["coin_id"].to_pylist(), rows["symbol"].to_pylist(), strict=True))
    assert found == {coin_id: expected[coin_id] for coin_id in coin_ids}


def test_a_snapshot_lies_in_the_day_on_which_it_was_taken() -> None:
    rows = coin_rows(seen("bitcoin"), {}, NOW)
    window = datetime(2024, 1, 1), datetime(2024, 1, 4)
    pieces = {
        piece.partition: conform(piece.rows, COINS)
        for piece in snapshot_stream(rows, COINS.name, window, NOW).pieces
    }
    assert {key: piece.num_rows for key, piece in pieces.items()} == {
        "2024-01-01": 0,
        "2024-01-02": 1,
        "2024-01-03": 0,
    }
    assert pieces["2024-01-02"]["known_at"].to_pylist() == [NOW]
