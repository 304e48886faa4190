"""The market on loopback: an HTTP server with a clock, faults and a log of what was asked.

Here: HTTP, the clock, request weights, control routes. Not here: what an answer says (``binance``,
``coingecko``) and what is public when (``world``). Tests, the demo and the command line import it; it listens
on 127.0.0.1 only.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, NamedTuple, Self

import orjson
from aiohttp import web

from crypto_assets.intervals import from_ms, to_ms
from crypto_assets.simulation.binance import Answer, binance_answer, error_body
from crypto_assets.simulation.coingecko import coingecko_answer
from crypto_assets.simulation.faults import Fault, FaultPlan
from crypto_assets.simulation.world import World

HOST = "127.0.0.1"
COINGECKO_PREFIX = "/coingecko/api/v3"
_HTML = b"<!DOCTYPE html><html><head><title>Just a moment...</title></head><body></body></html>"

Moment = int | str | datetime


class Clock:
    """The market's time: fixed at ``now`` (speed 0), or running ``speed`` times as fast as real time.

    A moment is epoch milliseconds, an ISO text, or a datetime; naive means UTC. ``real_seconds`` is the real
    clock.
    """

    def __init__(
        self, now: Moment, speed: float = 0.0, *, real_seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self._real_seconds = real_seconds
        self._base = (_moment_ms(now), real_seconds(), speed)

    @property
    def speed(self) -> float:
        """Market seconds a real second."""
        return self._base[2]

    def now_ms(self) -> int:
        """Market time in epoch milliseconds."""
        base_ms, base_real, speed = self._base
        return base_ms + int((self._real_seconds() - base_real) * 1000 * speed) if speed else base_ms

    def set(self, now: Moment, speed: float | None = None) -> None:
        """Set the time, and the speed if given. Going back in time is allowed."""
        self._base = (_moment_ms(now), self._real_seconds(), self.speed if speed is None else speed)


class Request(NamedTuple):
    """One served request; ``status`` is None where a fault let no answer out."""

    method: str
    path: str
    query: dict[str, str]
    status: int | None


class MarketServer:
    """Serves a world, as a context manager in a thread of this process.

    Parameters
    ----------
    world
        What there is to know.
    clock
        A ``Clock``, or the moment at which a fixed one stands.
    port
        0 takes a free one.
    weight_limit
        Request weight a real minute above which the exchange's routes answer 429; None only counts.
    real_seconds
        The real clock of the weight minutes, epoch seconds.

    Examples
    --------
    >>> from crypto_assets.simulation.synthetic import SyntheticWorld
    >>> import urllib.request
    >>> with MarketServer(SyntheticWorld(1, 0, 86_400_000, "1h"), clock="1970-01-01T12:00") as market:
    ...     urllib.request.urlopen(market.url + "/api/v3/time").read()
    b'{"serverTime":43200000}'
    """

    def __init__(
        self,
        world: World,
        clock: Clock | Moment,
        *,
        port: int = 0,
        weight_limit: int | None = None,
        real_seconds: Callable[[], float] = time.time,
    ) -> None:
        self.world = world
        self.clock = clock if isinstance(clock, Clock) else Clock(clock)
        self.requests: list[Request] = []
        self._faults = FaultPlan()
        self._weights = _WeightMeter(weight_limit, real_seconds)
        self._port = port
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    @property
    def url(self) -> str:
        """Base address of the exchange, without a trailing slash."""
        return f"http://{HOST}:{self._port}"

    @property
    def coingecko_url(self) -> str:
        """Base address of the aggregator, with the trailing slash that its client needs."""
        return f"{self.url}{COINGECKO_PREFIX}/"

    def inject(self, path_prefix: str, fault: Fault | str, times: int = 1, after: int = 0) -> None:
        """Let a fault meet the next ``times`` requests below a path, sparing the first ``after``."""
        self._faults.inject(path_prefix, Fault.of(fault), times, after)

    def clear_faults(self) -> None:
        """Forget faults that have not met a request yet."""
        self._faults.clear()

    def count(self, path_prefix: str = "/") -> int:
        """How many requests with this path prefix were served so far."""
        return sum(request.path.startswith(path_prefix) for request in self.requests)

    def app(self) -> web.Application:
        """Build the aiohttp application."""
        app = web.Application()
        app.router.add_get("/_market/clock", self._get_clock)
        app.router.add_post("/_market/clock", self._post_clock)
        app.router.add_get("/_market/requests", self._get_requests)
        app.router.add_post("/_market/faults", self._post_faults)
        app.router.add_get("/{path:.*}", self._handle)
        return app

    def __enter__(self) -> Self:
        """Start to serve; the port is known and open on return."""
        self._thread = threading.Thread(target=self._run, name="market-server", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self._thread.join()
            raise RuntimeError(f"the market server did not start on {HOST}:{self._port}") from self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop serving; open connections are cut."""
        if self._loop is not None and self._stop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve_until_stopped())
        except BaseException as error:
            self._failure = error
            self._started.set()

    async def _serve_until_stopped(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        runner = web.AppRunner(self.app(), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, HOST, self._port).start()
            self._port = runner.addresses[0][1]
            self._started.set()
            await self._stop.wait()
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path, query = request.path, dict(request.query)
        fault = self._faults.due(path)
        answer = self._answer(path, query)
        headers = {"Content-Type": answer.content_type}
        if not path.startswith(COINGECKO_PREFIX):
            used = self._weights.add(answer.weight)
            headers |= {"X-MBX-USED-WEIGHT": str(used), "X-MBX-USED-WEIGHT-1M": str(used)}
            if self._weights.exceeded and fault is None:
                fault = Fault("status", status=429, retry_after=self._weights.seconds_left())
        return await self._respond(request, answer, headers, fault)

    def _answer(self, path: str, query: Mapping[str, str]) -> Answer:
        now_ms = self.clock.now_ms()
        if path.startswith(f"{COINGECKO_PREFIX}/"):
            return coingecko_answer(self.world, path.removeprefix(COINGECKO_PREFIX), query, now_ms)
        return binance_answer(self.world, path, query, now_ms)

    async def _respond(
        self, request: web.Request, answer: Answer, headers: dict[str, str], fault: Fault | None
    ) -> web.StreamResponse:
        status, body = answer.status, answer.body
        match fault.kind if fault else None:
            case "html_200":
                status, body, headers = 200, _HTML, headers | {"Content-Type": "text/html; charset=UTF-8"}
            case "truncated_json":
                body = body[: len(body) // 2]
            case "empty_200":
                status, body = 200, b""
            case "status" if fault and fault.status:
                status, (body, content_type) = fault.status, self._error_body(request.path, fault)
                headers |= {"Content-Type": content_type}
                headers |= {"Retry-After": str(fault.retry_after)} if fault.retry_after is not None else {}
        # The log has the request before the client can have the answer.
        lost = fault is not None and fault.kind in ("reset", "hang")
        self.requests.append(
            Request(request.method, request.path, dict(request.query), None if lost else status)
        )
        match fault.kind if fault else None:
            case "reset":
                _reset(request)
                return web.Response()
            case "hang":
                await _stopped(self._stop)
                _reset(request)
                return web.Response()
            case "short_body":
                response = web.StreamResponse(status=status, headers=headers)
                response.content_length = len(body)
                await response.prepare(request)
                await response.write(body[: len(body) // 2])
                if request.transport is not None:
                    request.transport.close()
                return response
            case "slow" if fault:
                response = web.StreamResponse(status=status, headers=headers)
                response.content_length = len(body)
                await response.prepare(request)
                await response.write(body[: len(body) // 2])
                await asyncio.sleep(fault.seconds)
                await response.write(body[len(body) // 2 :])
                await response.write_eof()
                return response
        return web.Response(status=status, body=body, headers=headers)

    def _error_body(self, path: str, fault: Fault) -> tuple[bytes, str]:
        json_type = "application/json; charset=utf-8"
        if fault.status in (502, 503, 504):
            # These come from the gateway in front, which speaks HTML.
            return b"<html><body><h1>%d Gateway Error</h1></body></html>" % fault.status, "text/html"
        if path.startswith(COINGECKO_PREFIX):
            message = "You've exceeded the Rate Limit." if fault.status == 429 else "Error"
            return orjson.dumps({"status": {"error_code": fault.status, "error_message": message}}), json_type
        return self._exchange_error(fault), json_type

    def _exchange_error(self, fault: Fault) -> bytes:
        match fault.status:
            case 429:
                return error_body(
                    -1003,
                    "Too much request weight used; current limit is 6000 request weight per 1 MINUTE. "
                    "Please use WebSocket Streams for live updates to avoid polling the API.",
                )
            case 418:
                until = self.clock.now_ms() + 1000 * (fault.retry_after or 120)
                return error_body(-1003, f"Way too much request weight used; IP banned until {until}.")
            case 451:
                return error_body(
                    0, "Service unavailable from a restricted location according to 'b. Eligibility'."
                )
            case _:
                return error_body(-1000, "An unknown error occurred while processing the request.")

    async def _get_clock(self, request: web.Request) -> web.Response:
        now_ms = self.clock.now_ms()
        return _json({"now": from_ms(now_ms).isoformat(), "now_ms": now_ms, "speed": self.clock.speed})

    async def _post_clock(self, request: web.Request) -> web.Response:
        try:
            wanted = orjson.loads(await request.read())
            self.clock.set(wanted["now"], wanted.get("speed"))
        except (KeyError, TypeError, ValueError) as error:
            return _json(
                {"error": f'give {{"now": ISO time or epoch ms, "speed": optional number}}: {error}'}, 400
            )
        return await self._get_clock(request)

    async def _get_requests(self, request: web.Request) -> web.Response:
        prefix = request.query.get("prefix", "/")
        return _json([entry._asdict() for entry in self.requests if entry.path.startswith(prefix)])

    async def _post_faults(self, request: web.Request) -> web.Response:
        try:
            wanted = orjson.loads(await request.read())
            self.inject(
                wanted["path_prefix"],
                Fault.of(wanted["fault"]),
                wanted.get("times", 1),
                wanted.get("after", 0),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            shape = (
                '{"path_prefix": text, "fault": kind or {"kind": ...}, "times": optional, "after": optional}'
            )
            return _json({"error": f"give {shape}: {error}"}, 400)
        return _json({"injected": wanted})


class _WeightMeter:
    def __init__(self, limit: int | None, real_seconds: Callable[[], float]) -> None:
        self._limit, self._real_seconds = limit, real_seconds
        self._minute, self._used = -1, 0

    def add(self, weight: int) -> int:
        minute = int(self._real_seconds() // 60)
        if minute != self._minute:
            self._minute, self._used = minute, 0
        self._used += weight
        return self._used

    @property
    def exceeded(self) -> bool:
        return self._limit is not None and self._used > self._limit

    def seconds_left(self) -> int:
        return 60 - int(self._real_seconds() % 60)


def serve(world: World, clock: Clock | Moment, host: str = HOST, port: int = 8901) -> None:
    """Serve a world until interrupted.

    Raises
    ------
    ValueError
        If the host is not the loopback address: the control routes have no password.
    """
    if host not in (HOST, "localhost"):
        raise ValueError(
            f"the simulated market listens on {HOST} only, not on {host!r}: its control routes are open"
        )
    web.run_app(
        MarketServer(world, clock, port=port).app(),
        host=HOST,
        port=port,
        access_log=None,
        shutdown_timeout=0.1,
    )


def _moment_ms(moment: Moment) -> int:
    if isinstance(moment, str):
        return to_ms(datetime.fromisoformat(moment))
    return to_ms(moment) if isinstance(moment, datetime) else int(moment)


def _reset(request: web.Request) -> None:
    if request.transport is None:
        return
    connection = request.transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()


async def _stopped(stop: asyncio.Event | None) -> None:
    # Without a stop event (blocking server) the wait ends when the handler is cancelled.
    await (stop or asyncio.Event()).wait()


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json")
