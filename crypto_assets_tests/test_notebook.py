"""The notebook runs against a warehouse, and its committed outputs are those of a whole, clean run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest

from crypto_assets.notebook import load
from crypto_assets.resources.warehouse.lake import Lake, Provenance
from crypto_assets.tables import table_of

PROJECT = Path(__file__).resolve().parents[1]
NOTEBOOK = PROJECT / "notebooks" / "holdings.ipynb"
DAYS = pd.date_range("2024-01-01", periods=40, freq="D")
WEIGHTS = {"BTC/USDT": 0.6, "ETH/USDT": 0.3, "USDT": 0.1}


def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells() -> list[Any]:
    return [cell for cell in notebook().cells if cell.cell_type == "code"]


def holdings(day: pd.Timestamp) -> pd.DataFrame:
    moment = day + pd.Timedelta(hours=1)
    rows = pd.DataFrame({"symbol": list(WEIGHTS), "weight_frac": list(WEIGHTS.values())})
    return rows.assign(
        decision_at=moment,
        known_at=moment,
        listing_id=rows["symbol"].where(rows["symbol"] != "USDT") + "#1",
        horizon="24h",
        weight_before_frac=rows["weight_frac"],
        weight_prior_frac=rows["weight_frac"],
        mu_frac=0.001,
        close=100.0,
        n_views=0,
        status="no_views",
    )


def backtest(strategy: str, seed: int) -> pd.DataFrame:
    returns = np.random.default_rng(seed).normal(0, 0.02, len(DAYS))
    return pd.DataFrame(
        {
            "strategy": strategy,
            "ts": DAYS,
            "known_at": DAYS + pd.Timedelta(days=1),
            "equity": np.cumprod(1 + returns),
            "return_frac": returns,
            "turnover_frac": 0.01,
            "fee_frac": 0.0001,
            "n_positions": 2,
        }
    )


@pytest.fixture
def warehouse(tmp_path: Path) -> Path:
    lake = Lake(tmp_path)
    table = table_of("holdings/optimal_holdings")
    for day in DAYS:
        key = str(day.date())
        lake.replace(table, key, holdings(day), Provenance(table.name, key))
    table = table_of("reports/portfolio_backtest")
    names = ("black_litterman", "equal_weight", "market_cap")
    rows = pd.concat([backtest(name, seed) for seed, name in enumerate(names)])
    lake.replace(table, None, rows, Provenance(table.name, ""))
    return tmp_path


def test_load_reads_a_window_of_chosen_symbols_and_columns(warehouse: Path) -> None:
    found = load(
        "holdings/optimal_holdings",
        start="2024-01-10",
        end="2024-01-12",
        symbols=["BTC/USDT"],
        columns=["decision_at", "weight_frac"],
        folder=warehouse,
    )
    assert found.to_dict("list") == {
        "decision_at": [pd.Timestamp("2024-01-10 01:00"), pd.Timestamp("2024-01-11 01:00")],
        "weight_frac": [0.6, 0.6],
    }


def test_load_reads_the_hours_of_a_window_that_ends_inside_a_day(tmp_path: Path) -> None:
    lake, table = Lake(tmp_path), table_of("raw/order_books")
    for key in ("2024-01-10-04:00", "2024-01-10-05:00", "2024-01-10-06:00"):
        seen = pd.Timestamp(f"{key[:10]} {key[11:]}")
        best = {"venue": "binance", "symbol": "BTC/USDT", "side": "bid", "level": 0, "price": 99.0}
        told = {"amount_base": 1.0, "last_update_id": 1, "ts": seen, "known_at": seen, "book_time": seen}
        lake.replace(table, key, pd.DataFrame([{**best, **told}]), Provenance(table.name, key))
    found = load(table.name, start="2024-01-10 05:00", end="2024-01-10 06:00", folder=tmp_path)
    assert found["ts"].tolist() == [pd.Timestamp("2024-01-10 05:00")]


def test_load_names_an_unknown_table_and_refuses_symbols_of_a_table_without_them(warehouse: Path) -> None:
    with pytest.raises(KeyError, match="holdings/nothing has no contract"):
        load("holdings/nothing", folder=warehouse)
    with pytest.raises(
        ValueError, match="reports/portfolio_backtest has no symbols; its columns are strategy"
    ):
        load("reports/portfolio_backtest", symbols=["BTC/USDT"], folder=warehouse)


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_the_warehouse_holds(
    warehouse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbclient import NotebookClient

    monkeypatch.setenv("CRYPTO_ASSETS_DATA", str(warehouse))
    fresh = notebook()
    client = NotebookClient(fresh, timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    client.execute()
    shown = [output for cell in fresh.cells for output in cell.get("outputs", []) if "data" in output]
    texts = [output["data"]["text/plain"] for output in shown]
    assert "BTC/USDT" in texts[0] and "0.6" in texts[0] and "2024" not in texts[0]
    assert "no_views 2024-01-01 01:00:00 2024-02-09 01:00:00           40" in texts[1]
    assert sum("image/png" in output["data"] for output in shown) == 2
    assert all(name in texts[-1] for name in ("black_litterman", "equal_weight", "market_cap"))


def test_committed_outputs_come_from_one_clean_run_of_every_cell() -> None:
    assert [cell.execution_count for cell in code_cells()] == list(range(1, len(code_cells()) + 1))
    outputs = [output for cell in code_cells() for output in cell.outputs]
    assert outputs and {output.output_type for output in outputs} <= {"execute_result", "display_data"}


def test_committed_outputs_name_no_folder_of_the_machine_that_made_them() -> None:
    for cell in code_cells():
        for output in cell.outputs:
            for kind in ("text/plain", "text/html"):
                text = output.get("data", {}).get(kind, "")
                assert not [
                    part for part in ("/home/", "/root/", "/tmp/", "/work/", "/Users/") if part in text
                ]
