"""The doctor tells sound from broken, names what to do, and changes nothing."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crypto_assets import doctor
from crypto_assets.doctor import Finding
from crypto_assets.resources.warehouse.catalog import Catalog
from crypto_assets.resources.warehouse.lake import Lake
from crypto_assets.settings import Recorded, Settings, current_settings
from crypto_assets.simulation.server import MarketServer
from crypto_assets.simulation.synthetic import SyntheticWorld
from crypto_assets_tests.simulation.clients import at

NOW = at(2024, 1, 8, 10, 20)


@pytest.fixture(scope="module")
def market() -> Iterator[MarketServer]:
    with MarketServer(SyntheticWorld(7, at(2024, 1, 1), at(2024, 1, 10), "1h"), clock=NOW) as server:
        yield server


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def settings(
    folder: Path, *, port: int = 1, exchange: str | None = None, coingecko: str | None = None
) -> Settings:
    given = current_settings()
    return given.model_copy(
        update={
            "warehouse": given.warehouse.model_copy(update={"folder": folder}),
            "simulation": given.simulation.model_copy(update={"port": port}),
            "environment": given.environment.model_copy(
                update={"exchange_url": exchange, "coingecko_url": coingecko}
            ),
        }
    )


def test_a_sound_machine_passes_and_nothing_is_made(tmp_path: Path, free_port: int) -> None:
    found = list(doctor.examine(settings(tmp_path / "warehouse", port=free_port)))
    assert [finding.subject for finding in found] == [
        "Python",
        "packages",
        "OpenMP",
        "warehouse folder",
        "warehouse",
        "synthetic market",
    ]
    assert [finding for finding in found if not finding.good] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("version", "good"), [((3, 10, 9), False), ((3, 11, 0), True), ((3, 14, 0), False)])
def test_python_is_held_against_both_bounds(version: tuple[int, ...], good: bool) -> None:
    assert doctor.python(version, ">=3.11,<3.14").good is good


def test_a_package_of_another_version_is_named_with_both_versions() -> None:
    found = doctor.packages(["duckdb==0.9.2", "pandas>=2", "unheard-of; extra == 'dev'"])
    assert not found.good
    assert found.seen.startswith("duckdb==0.9.2 (") and "pandas" not in found.seen
    assert found.seen.endswith(": run make setup")


def test_a_warehouse_folder_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    found = doctor.folder(tmp_path / "file" / "warehouse")
    assert not found.good
    assert "CRYPTO_ASSETS_DATA" in found.seen


def test_a_catalogue_that_opens_is_sound_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    catalog = Catalog(Lake(tmp_path))
    catalog.refresh()
    assert doctor.catalogue(tmp_path) == Finding("warehouse", True, "newest decision: none yet")
    catalog.path.resolve().write_bytes(b"damaged" * 1000)
    found = doctor.catalogue(tmp_path)
    assert not found.good
    assert str(catalog.path) in found.seen


def test_a_running_market_is_told_from_another_program_on_its_port(
    tmp_path: Path, market: MarketServer
) -> None:
    port = int(market.url.rsplit(":", 1)[1])
    assert doctor.simulated_market(settings(tmp_path, port=port)) == Finding(
        "synthetic market", True, f"runs on port {port}"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        listener.close()
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", taken))
        found = doctor.simulated_market(settings(tmp_path, port=taken))
    assert not found.good
    assert f"port {taken} is in use" in found.seen and "simulation.port" in found.seen


def test_patterns_that_match_no_recording_are_named(tmp_path: Path, free_port: int) -> None:
    given = settings(tmp_path, port=free_port)
    recorded = Recorded(folder=tmp_path, klines=("*.csv",))
    simulation = given.simulation.model_copy(update={"recorded": recorded})
    found = doctor.simulated_market(given.model_copy(update={"world": "recorded", "simulation": simulation}))
    assert not found.good
    assert "*.csv" in found.seen and str(tmp_path) in found.seen
    (tmp_path / "BTCUSDT.csv").touch()
    assert doctor.simulated_market(
        given.model_copy(update={"world": "recorded", "simulation": simulation})
    ).good


def test_sources_at_a_set_address_are_asked(tmp_path: Path, market: MarketServer) -> None:
    found = list(doctor.sources(settings(tmp_path, exchange=market.url, coingecko=market.coingecko_url)))
    assert [finding.subject for finding in found] == ["exchange", "CoinGecko"]
    assert all(finding.good for finding in found)
    assert found[0].seen == "its time is 2024-01-08 10:20:00 UTC"


def test_a_source_that_refuses_is_named_with_what_to_do(tmp_path: Path, market: MarketServer) -> None:
    wrong = f"{market.url}/nowhere"
    found = list(doctor.sources(settings(tmp_path, exchange=wrong, coingecko=market.coingecko_url)))
    assert [finding.good for finding in found] == [False, True]
    assert "What to do" in found[0].seen


def test_the_command_shows_every_finding_and_fails_where_one_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("CRYPTO_ASSETS_DATA", str(tmp_path / "file" / "warehouse"))
    command = [sys.executable, "-m", "crypto_assets.cli", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stdout.splitlines()][:5] == ["ok", "ok", "ok", "FAIL", "ok"]
