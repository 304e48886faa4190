"""The market on loopback: an HTTP server with a clock, faults and a log of what was asked.

Here: HTTP, the clock, how a fault looks on the wire, control routes. Not here: what an answer says (``binance``,
``usdm``, ``archive``, ``bybit``, ``coingecko``), what is public when (``world``), who asks too much (``budgets``).
Tests, the demo and the command line import it; it listens on 127.0.0.1 only.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

import orjson
from aiohttp import web

from crypto_assets.intervals import from_ms
from crypto_assets.simulation.archive import Archive
from crypto_assets.simulation.binance import WEIGHT_PER_MINUTE, Answer, binance_answer, error_body
from crypto_assets.simulation.budgets import (
    BAN_S,
    Budget,
    Request,
    RequestLog,
    WeightMeter,
    budget_of,
)
from crypto_assets.simulation.bybit import REQUESTS_PER_WINDOW, WINDOW_S, bybit_answer, envelope
from crypto_assets.simulation.clock import Clock, FakeSeconds, Moment, steady_seconds
from crypto_assets.simulation.coingecko import coingecko_answer
from crypto_assets.simulation.faults import FILE_KINDS, Fault, FaultPlan
from crypto_assets.simulation.hostile import HostilePlan
from crypto_assets.simulation.usdm import WEIGHT_PER_MINUTE as USDM_WEIGHT_PER_MINUTE
from crypto_assets.simulation.usdm import usdm_answer
from crypto_assets.simulation.world import World

HOST = "127.0.0.1"
COINGECKO_PREFIX = "/coingecko/api/v3"
BYBIT_PREFIX = "/bybit"
_HTML = b"<!DOCTYPE html><html><head><title>Just a moment...</title></head><body></body></html>"

_BYBIT_TOO_MANY = "Too many visits. Exceeded the API Rate Limit."
#: What only a file's own answer has.
_FILE_HEADERS = frozenset({"ETag", "Last-Modified", "Accept-Ranges", "Content-Range"})


class _Reply(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]


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
    weight_limit, usdm_weight_limit
        Request weight a real minute above which the spot and the futures routes answer 429; None only counts.
    coingecko_plans
        Whether the aggregator tells plans apart by the key in the header; else everybody may ask everything.
    bybit_limit
        Requests in five real seconds above which the second venue answers retCode 10006; None only counts.
    real_seconds
        The real clock of limits and silences, seconds since the epoch: with a ``FakeSeconds`` that the client sleeps
        on too, bans and silences pass without waiting.
    hostile
        A plan whose faults meet the requests; ``world`` is then ``hostile.world``. Injected faults come first.

    Raises
    ------
    ValueError
        If the plan was made for another world.

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
        usdm_weight_limit: int | None = None,
        coingecko_plans: bool = False,
        bybit_limit: int | None = None,
        real_seconds: Callable[[], float] | None = None,
        hostile: HostilePlan | None = None,
    ) -> None:
        if hostile is not None and hostile.world is not world:
            raise ValueError("the hostile plan was made for another world; serve its own one, plan.world")
        self.world = world
        self.clock = clock if isinstance(clock, Clock) else Clock(clock)
        self._real_seconds = real_seconds or steady_seconds()
        #: Requests, silences and who broke them.
        self.log = RequestLog(self._real_seconds)
        self._faults = FaultPlan()
        self._hostile = hostile
        self._coingecko_plans = coingecko_plans
        self._archive = Archive(world)
        self._meters: dict[Budget, WeightMeter] = {
            "spot": WeightMeter(weight_limit, self._real_seconds),
            "usdm": WeightMeter(usdm_weight_limit, self._real_seconds),
            "bybit": WeightMeter(bybit_limit, self._real_seconds, WINDOW_S),
        }
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

    @property
    def bybit_url(self) -> str:
        """Base address of the second venue, without a trailing slash."""
        return f"{self.url}{BYBIT_PREFIX}"

    @property
    def requests(self) -> list[Request]:
        """All requests so far, in the order of their answers."""
        return self.log.requests

    def violations(self, n_in_flight: int = 0, hearing_s: float = 0.0) -> list[Request]:
        """Return the requests that came while banned or silenced; see ``RequestLog.violations``."""
        return self.log.violations(n_in_flight, hearing_s)

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
        app.router.add_get("/_market/violations", self._get_violations)
        app.router.add_get("/_market/seconds", self._get_seconds)
        app.router.add_post("/_market/seconds", self._post_seconds)
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
        number, at_s = self.log.arrive()
        path, query = request.path, dict(request.query)
        fault = self._faults.due(path)
        if fault is None and self._hostile is not None:
            fault = self._hostile.fault(number, path)
        reply, over_limit = self._reply(request, fault)
        if over_limit is not None and fault is None:
            fault = over_limit
        if self._hostile is not None:
            self._note_doubled(self._hostile, request, reply, fault)
        reply = self._changed(path, reply, fault)
        # The log has the request before the client can have the answer.
        lost = fault is not None and fault.kind in ("reset", "hang")
        status = None if lost else reply.status
        silence_s = reply.headers.get("Retry-After")
        self.log.answer(
            Request(request.method, path, query, status, budget_of(path), at_s, number),
            None if lost or silence_s is None else float(silence_s),
        )
        return await self._send(request, reply, fault)

    def _note_doubled(
        self, plan: HostilePlan, request: web.Request, reply: _Reply, fault: Fault | None
    ) -> None:
        path, now_ms = request.path, self.clock.now_ms()
        sound = reply.status < 300 and (fault is None or fault.kind == "slow")
        budget = budget_of(path)
        if budget == "archive":
            if fault is not None and fault.kind in FILE_KINDS:
                # A range may lie beside the damage.
                sound = reply.body == self._archive.answer(path, request.headers, now_ms).body
            plan.note_file(self._archive.named(path, now_ms) if sound and path.endswith(".zip") else None)
        else:
            # The second venue serves no row twice.
            plan.note_page(sound=sound and budget != "bybit")

    def _reply(self, request: web.Request, fault: Fault | None) -> tuple[_Reply, Fault | None]:
        """Make the right answer, and the fault that follows if it is one request too many."""
        path, query, now_ms = request.path, dict(request.query), self.clock.now_ms()
        budget = budget_of(path)
        if budget == "archive":
            file = self._archive.answer(path, request.headers, now_ms, fault.kind if fault else None)
            return _Reply(file.status, file.body, file.headers), None
        plan_headers = None
        if self._coingecko_plans:
            plan_headers = {name.lower(): text for name, text in request.headers.items()}
        answer = self._answer(budget, path, query, now_ms, plan_headers)
        headers = {"Content-Type": answer.content_type}
        meter = self._meters.get(budget)
        if meter is None:
            return _Reply(answer.status, answer.body, headers), None
        used = meter.add(answer.weight)
        if budget == "bybit":
            return self._bybit_counted(_Reply(answer.status, answer.body, headers), meter, used, now_ms), None
        headers["X-MBX-USED-WEIGHT-1M"] = str(used)
        if budget == "spot":
            headers["X-MBX-USED-WEIGHT"] = str(used)
        too_much = Fault("status", status=429, retry_after=meter.seconds_left()) if meter.exceeded else None
        return _Reply(answer.status, answer.body, headers), too_much

    def _answer(
        self,
        budget: Budget,
        path: str,
        query: Mapping[str, str],
        now_ms: int,
        plan_headers: Mapping[str, str] | None,
    ) -> Answer:
        match budget:
            case "coingecko":
                asked = path.removeprefix(COINGECKO_PREFIX)
                return coingecko_answer(self.world, asked, query, now_ms, plan_headers)
            case "bybit":
                return bybit_answer(self.world, path.removeprefix(BYBIT_PREFIX), query, now_ms)
            case "usdm":
                return usdm_answer(self.world, path, query, now_ms)
        return binance_answer(self.world, path, query, now_ms)

    def _bybit_counted(self, reply: _Reply, meter: WeightMeter, used: int, now_ms: int) -> _Reply:
        limit = REQUESTS_PER_WINDOW if meter.limit is None else meter.limit
        wait_ms = 1000 * meter.seconds_left() if meter.exceeded else 0
        headers = reply.headers | {
            "X-Bapi-Limit": str(limit),
            "X-Bapi-Limit-Status": str(max(0, limit - used)),
            "X-Bapi-Limit-Reset-Timestamp": str(now_ms + wait_ms),
        }
        if meter.exceeded:
            return _Reply(200, envelope(10006, _BYBIT_TOO_MANY, {}, now_ms), headers)
        return reply._replace(headers=headers)

    def _changed(self, path: str, reply: _Reply, fault: Fault | None) -> _Reply:
        """Return the answer as a fault makes it."""
        body = reply.body
        bare = {name: text for name, text in reply.headers.items() if name not in _FILE_HEADERS}
        match fault.kind if fault else None:
            case "html_200":
                return _Reply(200, _HTML, bare | {"Content-Type": "text/html; charset=UTF-8"})
            case "truncated_json":
                return reply._replace(body=body[: len(body) // 2])
            case "empty_200":
                return _Reply(200, b"", bare)
            case "status" if fault and fault.status:
                body, bare["Content-Type"] = self._error_body(path, fault)
                if fault.retry_after is not None:
                    bare["Retry-After"] = str(fault.retry_after)
                return _Reply(fault.status, body, bare)
        return reply

    async def _send(self, request: web.Request, reply: _Reply, fault: Fault | None) -> web.StreamResponse:
        status, body, headers = reply
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
        budget = budget_of(path)
        if budget == "archive":
            code = "SlowDown" if fault.status == 429 else "InternalError"
            return b"<Error><Code>%s</Code></Error>" % code.encode(), "application/xml"
        if budget == "bybit":
            code, message = (10006, _BYBIT_TOO_MANY) if fault.status == 429 else (10016, "Server error.")
            return envelope(code, message, {}, self.clock.now_ms()), json_type
        if budget == "coingecko":
            message = "You've exceeded the Rate Limit." if fault.status == 429 else "Error"
            return orjson.dumps({"status": {"error_code": fault.status, "error_message": message}}), json_type
        return self._exchange_error(fault, budget), json_type

    def _exchange_error(self, fault: Fault, budget: Budget) -> bytes:
        match fault.status:
            case 429:
                limit = USDM_WEIGHT_PER_MINUTE if budget == "usdm" else WEIGHT_PER_MINUTE
                return error_body(
                    -1003,
                    f"Too much request weight used; current limit is {limit} request weight per 1 MINUTE. "
                    "Please use WebSocket Streams for live updates to avoid polling the API.",
                )
            case 418:
                ban_s = BAN_S if fault.retry_after is None else fault.retry_after
                until = self.clock.now_ms() + round(1000 * ban_s)
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

    async def _get_violations(self, request: web.Request) -> web.Response:
        n_in_flight = request.query.get("in_flight", "0")
        if not n_in_flight.isdigit():
            return _json({"error": f"in_flight must be a whole number, not {n_in_flight!r}"}, 400)
        return _json([entry._asdict() for entry in self.violations(int(n_in_flight))])

    async def _get_seconds(self, request: web.Request) -> web.Response:
        return _json({"seconds": self._real_seconds()})

    async def _post_seconds(self, request: web.Request) -> web.Response:
        if not isinstance(self._real_seconds, FakeSeconds):
            return _json({"error": "this server lives in real time; start it with a FakeSeconds"}, 400)
        try:
            self._real_seconds.sleep(float(orjson.loads(await request.read())["sleep"]))
        except (KeyError, TypeError, ValueError) as error:
            return _json({"error": f'give {{"sleep": seconds}}: {error}'}, 400)
        return await self._get_seconds(request)

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


def serve(
    world: World,
    clock: Clock | Moment,
    host: str = HOST,
    port: int = 8901,
    *,
    hostile: HostilePlan | None = None,
) -> None:
    """Serve a world until interrupted, with the faults of a plan where there is one.

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
        MarketServer(world, clock, port=port, hostile=hostile).app(),
        host=HOST,
        port=port,
        access_log=None,
        shutdown_timeout=0.1,
    )


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
