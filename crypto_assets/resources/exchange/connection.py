"""How the clients of this package reach a venue: a ccxt object that is tamed, plain GETs, and what failures mean.

Here: building ccxt's exchange with all its own limits and repetitions off, moving it to another address, and reading
its exceptions. Not here: what is asked (``binance``, ``unified``), pacing and repeating (``sources``). Only the clients
of this package import it.
"""

from __future__ import annotations

import functools
import gzip
import queue
import select
import socket
import ssl
import weakref
import zlib
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, cast
from urllib.parse import urlsplit

from crypto_assets.resources.sources import EXCERPT_CHARS, Failure, Wire


class NotJson(Exception):
    """The body of an answer is not JSON."""


class BadStatus(Exception):
    """A plain GET was answered with another status than 200."""


class BadEncoding(Exception):
    """The body of an answer to a plain GET cannot be unpacked."""


def open_ccxt(
    ccxt_id: str,
    *,
    base_url: str | None,
    timeout_s: float,
    concurrency: int,
    options: Mapping[str, object] | None = None,
) -> Any:
    """Build ccxt's exchange without its limiter and its retries.

    Parameters
    ----------
    ccxt_id
        Name of the class in ccxt.
    base_url
        Address to use in place of the venue's own hosts, with or without a path; ``None`` is live.
    timeout_s
        Seconds to wait for a connection and for each part of an answer.
    concurrency
        Threads that use it at the same time.
    options
        ccxt's options, see its manual.

    Raises
    ------
    ValueError
        If ccxt knows no such exchange or the address is not an http address.
    """
    # A third of a second that processes which never ask the exchange need not pay.
    import ccxt
    from requests.adapters import HTTPAdapter

    if ccxt_id not in ccxt.exchanges:
        raise ValueError(
            f"unknown venue {ccxt_id!r}; ccxt {ccxt.__version__} knows: {', '.join(ccxt.exchanges)}"
        )
    if base_url is not None and not base_url.startswith(("http://", "https://")):
        raise ValueError(f"the base address {base_url!r} of {ccxt_id} must start with http:// or https://")
    # ccxt's own limiter has no lock and its retries also hammer bans (418, 403, 451): both stay off.
    api: Any = getattr(ccxt, ccxt_id)(
        {
            "enableRateLimit": False,
            "timeout": int(timeout_s * 1000),
            "options": {"maxRetriesOnFailure": 0, **(options or {})},
        }
    )
    if base_url is not None:
        api.urls["api"] = _repointed(api.urls["api"], base_url.rstrip("/"))
    for scheme in ("http://", "https://"):
        api.session.mount(scheme, HTTPAdapter(pool_maxsize=concurrency))
    return api


class PlainGet:
    """GETs below one address that return the bytes of the body, at a fifth of the processor time of ccxt and requests.

    No redirects, no proxies, no environment; certificates are checked as requests checks them. Safe to share between
    threads. Connections are kept open between requests, and made anew where the server has closed them.

    Parameters
    ----------
    address
        Beginning of every address that will be asked for, for example ``https://api.binance.com/api/v3``.
    timeout_s
        Seconds to wait for a connection and for each part of an answer.
    concurrency
        Threads that use it at the same time; more may, but only so many connections are kept.

    Raises
    ------
    ValueError
        If the address has no host, or a port that is none.
    """

    def __init__(self, address: str, timeout_s: float, concurrency: int) -> None:
        parts = urlsplit(address)
        if not parts.hostname:
            raise ValueError(f"the address {address!r} has no host: write it as https://host/path")
        self._host = parts.hostname
        self._is_secure = parts.scheme == "https"
        # Never left to http.client, which would look for it in the host and misread one of IPv6.
        self._port = parts.port or (443 if self._is_secure else 80)
        self._prefix = parts.path
        self._timeout_s = timeout_s
        self._headers = {"Accept-Encoding": "gzip, deflate", "User-Agent": "crypto-assets"}
        # The last one used is the first one to be used again: it is the least likely to have been closed.
        self._idle: queue.LifoQueue[HTTPConnection] = queue.LifoQueue(concurrency)
        weakref.finalize(self, _close_all, self._idle)

    def __call__(self, target: str, wire: Wire) -> bytes:
        """Send one request, once, and record the response on a wire.

        Parameters
        ----------
        target
            Path below the address, and query.

        Raises
        ------
        BadStatus
            If the status is not 200.
        BadEncoding
            If the body is not in the encoding that its headers name.
        OSError, http.client.HTTPException
            If no whole answer came.
        """
        connection = self._idle_or_new()
        try:
            connection.request("GET", f"{self._prefix}/{target}", headers=self._headers)
            response = connection.getresponse()
            # Read like any mapping, although its class does not say so.
            wire.arrived(response.status, cast("Mapping[str, str]", response.headers))
            body = response.read()
        except BaseException:
            # Also when a signal stops it half-way: the rest of this answer must not begin the next one.
            connection.close()
            raise
        self._keep(connection)
        if body and (encoding := response.headers.get("Content-Encoding")):
            body = _decoded(body, encoding)
        # Only its beginning: the memory of the whole is warm for the next one once it is free.
        wire.body = body[:EXCERPT_CHARS]
        if response.status != 200:
            raise BadStatus(f"status {response.status}")
        return body

    @functools.cached_property
    def _trust(self) -> ssl.SSLContext:
        import certifi

        context = ssl.create_default_context(cafile=certifi.where())
        # As http.client's own context does.
        context.set_alpn_protocols(["http/1.1"])
        return context

    def _idle_or_new(self) -> HTTPConnection:
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            if not self._is_secure:
                return HTTPConnection(self._host, self._port, timeout=self._timeout_s)
            return HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._trust)
        # A closed one opens itself again.
        if connection.sock is not None and _has_something_to_read(connection.sock):
            connection.close()
        return connection

    def _keep(self, connection: HTTPConnection) -> None:
        try:
            self._idle.put_nowait(connection)
        except queue.Full:
            connection.close()


def read_failure(error: Exception) -> Failure | None:
    """Tell what an exception of ccxt, requests or ``PlainGet`` means, see ``SourceCaller``."""
    import ccxt
    import requests

    # UnicodeDecodeError: a body that is neither JSON nor text.
    if isinstance(error, NotJson | UnicodeDecodeError | BadEncoding):
        return "garbled"
    # OSError: refused, reset, timed out, no such host, a certificate that is not trusted.
    if isinstance(error, ccxt.OperationFailed | OSError | HTTPException):
        return "unavailable"
    if isinstance(error.__cause__, requests.exceptions.ContentDecodingError):
        return "garbled"
    if isinstance(error, ccxt.BadRequest | ccxt.BadSymbol):
        return "unknown"
    return "refused" if isinstance(error, ccxt.BaseError | BadStatus) else None


def _close_all(idle: queue.LifoQueue[HTTPConnection]) -> None:
    while not idle.empty():
        idle.get_nowait().close()


def _has_something_to_read(idle: socket.socket) -> bool:
    # Nothing was asked, so it can only be the end of the connection or what belongs to no answer. Not select, which
    # refuses the descriptors of a process with many files open.
    poll = select.poll()
    poll.register(idle, select.POLLIN)
    return bool(poll.poll(0))


def _decoded(body: bytes, encoding: str) -> bytes:
    # The one applied last comes off first; names that are no compression change nothing.
    for name in reversed(encoding.lower().split(",")):
        try:
            match name.strip():
                case "gzip" | "x-gzip":
                    body = gzip.decompress(body)
                case "deflate":
                    body = _inflated(body)
        except (EOFError, OSError, zlib.error) as error:
            raise BadEncoding(f"the body is not {name.strip()}: {error}") from error
    return body


def _inflated(body: bytes) -> bytes:
    try:
        return zlib.decompress(body)
    except zlib.error:
        # Some servers leave out the frame that the name promises.
        return zlib.decompress(body, -zlib.MAX_WBITS)


def _repointed(urls: Any, base_url: str) -> Any:
    if isinstance(urls, str):
        _, _, path = urls.partition("://")[2].partition("/")
        return f"{base_url}/{path}".rstrip("/")
    if isinstance(urls, Mapping):
        return {name: _repointed(url, base_url) for name, url in urls.items()}
    return urls
