"""What the clients of all venues have in common beyond their interface.

Here: the watermark out of the venue's clock, and how a question is turned down that the venue cannot answer. Not here:
the interface itself (``interface``) and anything of one venue. Imported through ``crypto_assets.resources.exchange``.
"""

from __future__ import annotations

from datetime import datetime

from crypto_assets.intervals import floor_ms, from_ms, interval_ms, to_ms
from crypto_assets.resources.sources import SourceRefused


class ExchangeClient:
    """Base of the clients; each of them is an ``Exchange``."""

    def __init__(self, venue: str) -> None:
        self._venue = venue

    @property
    def venue(self) -> str:
        """Name of the venue."""
        return self._venue

    def server_time(self) -> datetime:
        """Read the venue's clock: naive UTC, exact to the millisecond it tells."""
        raise NotImplementedError

    def last_closed(self, interval: str) -> datetime:
        """Return the watermark, the end of the last closed interval by the venue's clock (asks for the time).

        Raises
        ------
        ValueError
            If the interval is unknown.
        """
        interval_ms(interval)  # An unknown interval must not cost a request.
        return from_ms(floor_ms(to_ms(self.server_time()), interval))

    def _demand(self, offered: bool, what: str) -> None:
        if not offered:
            raise SourceRefused(
                f"{self._venue} {what}",
                "not sent, the venue does not offer it",
                "correct venue, symbols, kinds and intervals in platform.yaml",
            )
