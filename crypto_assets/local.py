"""Processes on this machine: the simulated market, Dagster's web UI and Dagster's home folder.

Here: starting them, waiting until they answer, stopping them. Not here: what they serve (``simulation``,
``definitions``) and what is printed (``cli``). The command line imports it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from urllib.error import HTTPError

from crypto_assets.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
HOST = "127.0.0.1"
START_S = 180
STOP_S = 20
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class LocalError(RuntimeError):
    """A process could not be started; the message says what to do."""


def dagster_home(settings: Settings) -> Path:
    """The folder in which Dagster remembers runs of one warehouse, made ready with the project's ``dagster.yaml``.

    It lies inside the warehouse folder: what Dagster believes to be materialized and what is stored are moved and
    removed together.
    """
    home = settings.warehouse.folder / ".dagster"
    try:
        home.mkdir(parents=True, exist_ok=True)
        prepare_home(home)
    except OSError as error:
        raise LocalError(
            f"{home}: cannot be written ({error.strerror}); set warehouse.folder in platform.yaml or "
            "CRYPTO_ASSETS_DATA to a folder of yours"
        ) from error
    return home


def prepare_home(home: Path) -> None:
    """Write a home's ``dagster.yaml``: the project's, and where the event log lies, which only a lasting home can say."""
    text = (ROOT / "dagster.yaml").read_text(encoding="utf-8")
    event_log = {
        "module": "crypto_assets.resources.event_log",
        "class": "BatchingEventLog",
        "config": {"base_dir": str(home)},
    }
    (home / "dagster.yaml").write_text(
        f"{text}event_log_storage: {json.dumps(event_log)}\n", encoding="utf-8"
    )


def require_same_market(settings: Settings) -> None:
    """Remember which simulated market a warehouse is filled from, and refuse to mix it with another one.

    Raises
    ------
    LocalError
        If what is stored came from another market: coverage would keep it, and only new days would be asked for.
    """
    told = settings.simulation.model_dump(mode="json", include={settings.world}) | {
        "base_interval": settings.base_interval
    }
    note = settings.warehouse.folder / "market.json"
    if not note.exists():
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(told, indent=1), encoding="utf-8")
    before = json.loads(note.read_text(encoding="utf-8"))
    if before != told:
        raise LocalError(
            f"{note.parent} was filled from another simulated market ({before}) than platform.yaml describes now "
            f"({told}); remove that folder, or set CRYPTO_ASSETS_DATA to another one"
        )


@contextmanager
def market(settings: Settings, speed: float = 0.0) -> Generator[None]:
    """The simulated exchange and CoinGecko as a process of their own; nothing where another address is set.

    Parameters
    ----------
    settings
        Which market.
    speed
        Market seconds in a real second; at 0 its clock stands still.

    Raises
    ------
    LocalError
        If the port is taken, the process does not answer, or the warehouse was filled from another market.
    """
    if not settings.simulated or settings.environment.exchange_url:
        yield
        return
    require_same_market(settings)
    require_free(settings.simulation.port, "simulation.port in platform.yaml")
    # A process of its own: serving and downloading then share two cores.
    command = [sys.executable, "-m", "crypto_assets.cli", "market", "--with-parent", "--speed", str(speed)]
    with _serving("the simulated market", command, market_address(settings)):
        yield


def stop_with_parent() -> None:
    """Interrupt this process when its standard input ends, which the process that started it holds open."""

    def watch() -> None:
        # Unbuffered: a thread that holds a buffer's lock would stop the interpreter from ending.
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


def market_address(settings: Settings) -> str:
    """Where the simulated market answers once it is open."""
    return f"http://{HOST}:{settings.simulation.port}/api/v3/ping"


def answers(address: str) -> bool:
    """Whether something on this machine answers an address with success."""
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except OSError:
        return False


@contextmanager
def web_ui(port: int) -> Generator[subprocess.Popen[bytes]]:
    """Dagster's web UI and daemon on a loopback port; ``DAGSTER_HOME`` must be set.

    Raises
    ------
    LocalError
        If the port is taken or the process does not answer.
    """
    require_free(port, "another port with --port (make run PORT=3001)")
    # `dg dev`, which Dagster 1.13 advises instead, starts the same processes through one more.
    quiet = ["-W", "ignore:Function `dev_command` is superseded"]
    command = [sys.executable, *quiet, "-m", "dagster", "dev", "-w", str(ROOT / "workspace.yaml")]
    command += ["-h", HOST, "-p", str(port), "--log-level", "warning", "--code-server-log-level", "warning"]
    with _serving("the web UI", command, f"http://{HOST}:{port}/server_info") as process:
        yield process


@contextmanager
def stopped_by_signals(
    told: Callable[[int], None] = lambda count: None,
) -> Generator[Callable[[], bool]]:
    """Make SIGTERM and a closed terminal end the block as Ctrl-C does, so that processes are stopped on the way out.

    Ctrl-C itself is set too: a shell starts a background job with it ignored, and so would be its children.

    Parameters
    ----------
    told
        Called at once with how many such signals came, from a thread of its own: the main thread may be waiting.

    Yields
    ------
    callable
        Whether a signal came. Dagster takes them over while it runs, and forgets one that comes after the last line of
        an asset.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    came = threading.Event()
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        count = 0
        while numbers := reader.recv(64):
            for _ in filter(_ENDS.__contains__, numbers):
                count += 1
                came.set()
                told(count)

    watcher = threading.Thread(target=watch, daemon=True)
    with reader:
        watcher.start()
        wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, interrupt) for number in _ENDS}
        try:
            yield came.is_set
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup)
            writer.close()
            watcher.join()


def require_free(port: int, remedy: str) -> None:
    """Refuse a loopback port on which something listens.

    Raises
    ------
    LocalError
        Naming the port and the remedy: what to set instead.
    """
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise LocalError(
            f"port {port} is in use ({error.strerror}), perhaps by another demo or run; stop that, or set {remedy}"
        ) from error


@contextmanager
def _serving(name: str, command: Sequence[str], address: str) -> Generator[subprocess.Popen[bytes]]:
    # A session of its own: Ctrl-C then reaches this process alone, and each child is told once, in order.
    # Its input ends when this process does, killed or not.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _wait_for(name, process, address)
        yield process
    finally:
        _stop(process)


def _wait_for(name: str, process: subprocess.Popen[bytes], address: str) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise LocalError(
                f"{name} stopped while starting, with exit code {process.returncode}; see above for why"
            )
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except HTTPError as error:
            raise LocalError(
                f"{name} answers {address} with {error.code}; is another program on that port?"
            ) from error
        except OSError:
            time.sleep(0.1)
    raise LocalError(f"{name} did not answer at {address} within {START_S} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    # `dagster dev` leaves its code server behind, which notices only after 45 s that it is alone.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        until = time.monotonic() + STOP_S
        while time.monotonic() < until:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
