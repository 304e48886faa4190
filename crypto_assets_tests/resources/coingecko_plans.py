"""CoinGecko's simulated answers behind a server that tells plans apart by the key in the header.

Here: HTTP around ``coingecko_answer`` with the request's headers, and a log of what was asked. Not here: what an answer
says. Imported by the tests of the CoinGecko client and of the ingestion of coins.
"""

from __future__ import annotations

import threading
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import parse_qsl, urlsplit

from crypto_assets.intervals import to_ms
from crypto_assets.simulation.coingecko import coingecko_answer
from crypto_assets.simulation.world import World
from crypto_assets_tests.resources.stub_server import Received


class PlanServer:
    """Serves the coins of a world at a moment that a test may change."""

    def __init__(self, world: World, now: datetime) -> None:
        self.world, self.now = world, now
        self.received: list[Received] = []
        self.statuses: list[int] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        """Base address without a trailing slash."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> PlanServer:
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
        plans = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = dict(parse_qsl(parts.query))
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = coingecko_answer(plans.world, parts.path, query, to_ms(plans.now), headers)
                plans.received.append(Received(self.path, parts.path, query, headers))
                plans.statuses.append(answer.status)
                self.send_response_only(answer.status)
                self.send_header("Content-Type", answer.content_type)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *args: object) -> None:
                return

        return Handler
