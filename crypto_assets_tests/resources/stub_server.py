"""A scripted HTTP server on loopback, for answers that the simulated market does not give.

Here: bodies and statuses chosen by a test, sent once each in order, the last one for ever. Not here: anything
that looks like a market (``crypto_assets.simulation``). Imported by the tests of ``crypto_assets.resources``.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import parse_qsl, urlsplit


@dataclass(frozen=True)
class Reply:
    """One answer; ``json_of`` makes the usual one."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    echo_headers: bool = False


def json_of(payload: object, status: int = 200, **headers: str) -> Reply:
    """Answer with a JSON body; header names are written with underscores for dashes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(json.dumps(payload).encode(), status, named)


@dataclass(frozen=True)
class Received:
    """One request as it arrived."""

    target: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]


class _CountingServer(ThreadingHTTPServer):
    n_connections = 0

    def get_request(self) -> tuple[socket.socket, object]:
        self.n_connections += 1
        return super().get_request()


class StubServer:
    """Sends ``replies`` in order and keeps what it received in ``received``."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.received: list[Received] = []
        self._server = _CountingServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def n_connections(self) -> int:
        """Connections accepted, those without a readable request included."""
        return self._server.n_connections

    @property
    def url(self) -> str:
        """Base address without a trailing slash."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> StubServer:
        """Start serving."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                headers = {name.lower(): value for name, value in self.headers.items()}
                stub.received.append(Received(self.path, parts.path, dict(parse_qsl(parts.query)), headers))
                reply = stub.replies.pop(0) if len(stub.replies) > 1 else stub.replies[0]
                body = reply.body + json.dumps(headers).encode() if reply.echo_headers else reply.body
                # Without the Date and Server headers that http.server would add.
                self.send_response_only(reply.status)
                for name, value in {
                    "Content-Type": reply.content_type,
                    "Content-Length": str(len(body)),
                    **reply.headers,
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                return

        return Handler
