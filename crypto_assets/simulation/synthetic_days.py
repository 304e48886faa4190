"""The slow part of the synthetic market: its coins, and what one day after the other does to their prices.

Here: coin characters, regimes, daily returns, volatility, turnover, the persistent drift, and numbers that any
moment has without a history. Not here: the way inside a day (``synthetic``) and contracts
(``synthetic_contracts``). Only these two and tests import it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class CoinSpec:
    """Character of a coin: first price, steps, supply, daily turnover, factor exposure, own volatility.

    ``sector`` is 0 old money, 1 smart contracts, 2 the rest; ``sleepy`` the share of minutes without a trade.
    """

    coin_id: str
    base: str
    name: str
    price: float
    tick: str
    lot: str
    supply: float
    turnover_usd: float
    beta: float
    sector: int
    idio_vol: float
    sleepy: float = 0.0


#: Prices, supplies and turnovers have the size of 2023.
COINS = (
    CoinSpec("bitcoin", "BTC", "Bitcoin", 27000.0, "0.01", "0.00001", 19.4e6, 9e8, 0.9, 0, 0.010),
    CoinSpec("ethereum", "ETH", "Ethereum", 1800.0, "0.01", "0.0001", 120.2e6, 5e8, 1.0, 1, 0.014),
    CoinSpec("binancecoin", "BNB", "BNB", 310.0, "0.1", "0.001", 155.9e6, 9e7, 0.8, 1, 0.018),
    CoinSpec("solana", "SOL", "Solana", 21.0, "0.01", "0.01", 395e6, 1.2e8, 1.4, 1, 0.030),
    CoinSpec("ripple", "XRP", "XRP", 0.47, "0.0001", "1", 51.7e9, 1.5e8, 0.9, 0, 0.028),
    CoinSpec("cardano", "ADA", "Cardano", 0.37, "0.0001", "0.1", 34.9e9, 6e7, 1.1, 1, 0.024),
    CoinSpec("dogecoin", "DOGE", "Dogecoin", 0.073, "0.00001", "1", 139e9, 8e7, 1.1, 2, 0.032),
    CoinSpec("avalanche-2", "AVAX", "Avalanche", 15.2, "0.01", "0.01", 334e6, 3e7, 1.3, 1, 0.030),
    CoinSpec("chainlink", "LINK", "Chainlink", 6.6, "0.001", "0.01", 517e6, 3e7, 1.1, 2, 0.026),
    CoinSpec("litecoin", "LTC", "Litecoin", 88.0, "0.01", "0.001", 72.8e6, 5e7, 0.9, 0, 0.024),
    CoinSpec("arbitrum", "ARB", "Arbitrum", 1.15, "0.0001", "0.1", 1.275e9, 9e7, 1.3, 1, 0.036),
    CoinSpec("serum", "SRM", "Serum", 0.11, "0.0001", "0.1", 373e6, 1.5e6, 1.2, 2, 0.045, sleepy=0.03),
)
N_COINS = len(COINS)
#: Position of the coin that collapses and is delisted.
DYING = 11
# One blow, two days before the delisting: a slow collapse would be an edge for whoever follows trends.
_COLLAPSE_DAYS_BEFORE = 2
_COLLAPSE_LOG = -0.7


@dataclass(frozen=True, slots=True)
class Day:
    """State of the market at the start of a day (``level``) and the shocks of that day."""

    level: np.ndarray
    turnover: np.ndarray
    market: float
    sectors: np.ndarray
    market_vol: float
    own_vol: float


class Days:
    """Daily states, each made from the one before and the numbers of its own day."""

    _STAY = 0.94
    _REGIME_VOL = (0.75, 1.0, 1.9)
    _DRIFT_MEMORY = 0.5 ** (1 / 4)

    def __init__(self, seed: int, drift_frac: float, death_day: int) -> None:
        self._seed, self._drift_frac, self._death_day = seed, drift_frac, death_day
        self._made: list[Day] = []
        rng = np.random.default_rng([seed, 0])
        self._level = np.log([spec.price for spec in COINS])
        self._log_vol, self._regime = 0.0, 1
        self._drift = drift_frac * rng.standard_normal(N_COINS)
        self._busy = np.zeros(N_COINS)

    def at(self, number: int) -> Day:
        """Return the state of a day, counted from the first one."""
        while len(self._made) <= number:
            self._made.append(self._next(len(self._made)))
        return self._made[number]

    def _next(self, number: int) -> Day:
        rng = np.random.default_rng([self._seed, 3, number])
        uniform = rng.random(2)
        if uniform[0] > self._STAY:
            self._regime = (self._regime + 1 + int(uniform[1] * 2)) % 3
        self._log_vol = 0.94 * self._log_vol + 0.12 * rng.standard_normal()
        own_vol = float(self._REGIME_VOL[self._regime] * np.exp(self._log_vol))
        market_vol = 0.022 * own_vol
        shocks = rng.standard_t(5, 1 + 3 + N_COINS) / np.sqrt(5 / 3)
        market = float(market_vol * np.clip(shocks[0], -6, 6))
        sectors = 0.3 * market_vol * np.clip(shocks[1:4], -6, 6)
        idio = np.array([spec.idio_vol for spec in COINS]) * own_vol
        own = idio * np.clip(shocks[4:], -6, 6)
        beta = np.array([spec.beta for spec in COINS])
        returns = beta * market + sectors[[spec.sector for spec in COINS]] + own + self._drift
        # The mean of a simple return is then about the drift alone.
        returns -= 0.5 * (beta**2 + 0.09) * market_vol**2 + 0.5 * idio**2
        if number == self._death_day - _COLLAPSE_DAYS_BEFORE:
            returns[DYING] += _COLLAPSE_LOG
        self._busy = 0.8 * self._busy + 0.2 * rng.standard_normal(N_COINS)
        typical = np.array([spec.turnover_usd for spec in COINS])
        turnover = typical * np.exp(self._busy) * (0.5 + 0.5 * own_vol + np.abs(returns) / 0.05)
        day = Day(self._level, turnover, market, sectors, market_vol, own_vol)
        self._level = self._level + returns
        news = np.sqrt(1 - self._DRIFT_MEMORY**2) * rng.standard_normal(N_COINS)
        self._drift = self._DRIFT_MEMORY * self._drift + self._drift_frac * news
        return day


def uniform(seed: int, name: str, stream: int, grid: np.ndarray) -> np.ndarray:
    """Random numbers in [0, 1) of whole numbers such as moments (int64), the same whatever range is asked.

    SplitMix64 of each number under a key of seed, name and stream.
    """
    key = np.uint64((seed * 1_000_003 + stream * 7_919 + sum(name.encode()) * 104_729) % 2**63)
    with np.errstate(over="ignore"):
        mixed = grid.astype(np.uint64) + key * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)) / 2.0**53
