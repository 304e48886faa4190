"""Processes on this machine start, answer, and are gone when their user leaves."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from crypto_assets import local
from crypto_assets.settings import Settings, current_settings, load_settings

SUITE = Path(__file__).parent / "graph" / "platform.yaml"


def free_ports(n: int) -> list[int]:
    listeners = [socket.create_server((local.HOST, 0)) for _ in range(n)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((local.HOST, port)) == 0


def processes_naming(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if text.encode() in path.read_bytes():
                found.append((path.parent / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.fixture
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """The suite's settings with a market port and a warehouse of this test's own, also for child processes."""
    content = yaml.safe_load(SUITE.read_text(encoding="utf-8"))
    content["simulation"]["port"] = free_ports(1)[0]
    path = tmp_path / "platform.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    monkeypatch.setenv("CRYPTO_ASSETS_CONFIG", str(path))
    yield load_settings(path)


def test_the_market_ends_when_its_parent_is_killed(platform: Settings) -> None:
    address = local.market_address(platform)
    hold = (
        "import time; from crypto_assets import local; from crypto_assets.settings import current_settings\n"
    )
    hold += "with local.market(current_settings()):\n    print('open', flush=True)\n    time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"open\n"
        assert local.answers(address)
        parent.kill()
    until = time.monotonic() + 20
    while listens(platform.simulation.port) and time.monotonic() < until:
        pass
    assert not listens(platform.simulation.port)


def test_a_warehouse_is_never_filled_from_two_simulated_markets(platform: Settings) -> None:
    local.require_same_market(platform)
    local.require_same_market(platform)
    simulation = platform.simulation
    other = simulation.model_copy(update={"synthetic": simulation.synthetic.model_copy(update={"seed": 99})})
    with pytest.raises(local.LocalError, match="another simulated market"):
        local.require_same_market(platform.model_copy(update={"simulation": other}))
    later = simulation.model_copy(update={"now": simulation.now + timedelta(days=1)})
    local.require_same_market(platform.model_copy(update={"simulation": later}))


def test_the_market_answers_inside_its_block_and_is_gone_after_it(platform: Settings) -> None:
    address = local.market_address(platform)
    assert not local.answers(address)
    with local.market(platform):
        assert local.answers(address)
    assert not listens(platform.simulation.port)


def test_a_taken_port_is_named_with_what_to_set_instead(platform: Settings) -> None:
    port = platform.simulation.port
    refused = pytest.raises(local.LocalError, match=f"port {port} is in use .* set simulation.port")
    with socket.create_server((local.HOST, port)), refused, local.market(platform):
        pass


def test_where_the_environment_names_an_exchange_no_market_is_opened(platform: Settings) -> None:
    environment = platform.environment.model_copy(update={"exchange_url": "http://elsewhere"})
    with local.market(platform.model_copy(update={"environment": environment})):
        assert not listens(platform.simulation.port)


def test_a_process_that_cannot_start_is_an_error_and_says_why(
    platform: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CRYPTO_ASSETS_WORLD", "nowhere")
    refused = pytest.raises(local.LocalError, match="stopped while starting, with exit code 2")
    with refused, local.market(platform):
        pass
    assert "CRYPTO_ASSETS_WORLD: 'nowhere' is not allowed" in capfd.readouterr().err


def test_dagsters_home_lies_in_the_warehouse_with_the_projects_settings(tmp_path: Path) -> None:
    given = current_settings()
    warehouse = given.warehouse.model_copy(update={"folder": tmp_path / "new"})
    home = local.dagster_home(given.model_copy(update={"warehouse": warehouse}))
    assert home == tmp_path / "new" / ".dagster"
    written = yaml.safe_load((home / "dagster.yaml").read_text(encoding="utf-8"))
    shipped = yaml.safe_load((local.ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    assert written | shipped == written
    assert written["event_log_storage"]["config"] == {"base_dir": str(home)}


def test_a_home_that_cannot_be_made_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    given = current_settings()
    warehouse = given.warehouse.model_copy(update={"folder": tmp_path / "file"})
    with pytest.raises(local.LocalError, match="set warehouse.folder in platform.yaml or CRYPTO_ASSETS_DATA"):
        local.dagster_home(given.model_copy(update={"warehouse": warehouse}))


@pytest.mark.slow
def test_dagsters_own_commands_load_the_workspace_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    command = [sys.executable, "-m", "dagster", "definitions", "validate", "-w", "workspace.yaml"]
    done = subprocess.run(command, cwd=local.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for left-over processes in /proc")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_run_serves_web_ui_and_market_and_leaves_no_process_behind(
    platform: Settings, tmp_path: Path, end: signal.Signals
) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "crypto_assets.cli", "run", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        assert f"http://{local.HOST}:{port}/asset-groups" in lines[1]
        assert local.answers(local.market_address(platform))
        with urllib.request.urlopen(f"http://{local.HOST}:{port}/asset-groups", timeout=30) as page:
            assert page.status == 200
        process.send_signal(end)
        assert process.wait(60) == 0
    assert not listens(port) and not listens(platform.simulation.port)
    assert processes_naming(str(tmp_path)) == []
