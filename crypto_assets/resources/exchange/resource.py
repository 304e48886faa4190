"""The Dagster resource of the exchange: settings in, the client of the venue out.

Here: which client serves a venue and under which budgets. Not here: the clients. Imported through
``crypto_assets.resources.exchange``.
"""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from crypto_assets.resources.exchange.binance import BinanceClient
from crypto_assets.resources.exchange.interface import Exchange
from crypto_assets.resources.exchange.unified import UnifiedClient
from crypto_assets.resources.sources import RateBudget, RetryPolicy


class ExchangeResource(dg.ConfigurableResource):
    """Dagster resource that builds the client of the venue.

    Attributes
    ----------
    venue
        ``binance``, or any other exchange by its name in ccxt.
    base_url
        Address to use in place of the venue's own; ``None`` is live.
    timeout_s
        Seconds to wait for the exchange.
    budget_dir
        Folder of the rate budgets; every process on the machine must use the same one.
    weight_per_minute
        Weight to spend at the venue in any 60 seconds; Binance spot allows 6000. Another venue is asked less often than
        that where ccxt says that it allows less.
    usdm_weight_per_minute
        Weight to spend at Binance's USD-M futures in any 60 seconds; 2400 are allowed.
    concurrency
        Threads that use one client at the same time.
    """

    venue: str = "binance"
    base_url: str | None = None
    timeout_s: float = 10.0
    budget_dir: str
    weight_per_minute: int = 4800
    usdm_weight_per_minute: int = 1920
    concurrency: int = 8

    def client(self, retry: RetryPolicy | None = None) -> Exchange:
        """Build a client under the shared budgets; do it once per step and pass it on."""
        return connect(
            self.venue,
            Path(self.budget_dir),
            base_url=self.base_url,
            timeout_s=self.timeout_s,
            weight_per_minute=self.weight_per_minute,
            usdm_weight_per_minute=self.usdm_weight_per_minute,
            concurrency=self.concurrency,
            retry=retry,
        )


def connect(
    venue: str,
    budget_dir: Path,
    *,
    base_url: str | None = None,
    timeout_s: float = 10.0,
    weight_per_minute: int = 4800,
    usdm_weight_per_minute: int = 1920,
    concurrency: int = 8,
    retry: RetryPolicy | None = None,
) -> Exchange:
    """Build the client of a venue; parameters as the attributes of ``ExchangeResource``.

    Raises
    ------
    ValueError
        If nobody knows the venue or the address is not an http address.
    """
    if venue == "binance":
        return BinanceClient(
            RateBudget(budget_dir, "binance", weight_per_minute),
            RateBudget(budget_dir, "binance-usdm", usdm_weight_per_minute),
            base_url=base_url,
            timeout_s=timeout_s,
            concurrency=concurrency,
            retry=retry,
        )
    return UnifiedClient(
        venue,
        UnifiedClient.budget_of(venue, budget_dir, weight_per_minute),
        base_url=base_url,
        timeout_s=timeout_s,
        concurrency=concurrency,
        retry=retry,
    )
