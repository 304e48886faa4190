"""The contracts of the synthetic market: spot prices with a premium that comes and goes, and what follows from it.

Here: which contracts there are and when, premiums, bars of trades, mark price and premium index, funding rates
and open interest, all made from given spot bars. Not here: spot (``synthetic``, ``synthetic_days``) and what of
it is public (``world``). Only ``synthetic.py`` and tests import it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from crypto_assets.intervals import DAY_MS, HOUR_MS, MINUTE_MS, from_ms
from crypto_assets.simulation.bars import (
    CLOSE,
    HIGH,
    LOW,
    N_DECIMALS,
    N_VALUES,
    OPEN,
    TAKER_BASE,
    TAKER_QUOTE,
    UNITS,
    VOLUME_BASE,
    VOLUME_QUOTE,
    Bars,
    decimals_of,
    to_units,
)
from crypto_assets.simulation.synthetic_days import COINS, DYING, uniform
from crypto_assets.simulation.world import NO_DELIVERY_MS, Kind

#: Coins (positions in ``COINS``) that have no contract: LINK, LTC.
CONTRACTLESS = frozenset({8, 9})
#: The exchange names a contract this long before it trades, and after its end.
PENDING_MS = DAY_MS
REMAINS_MS = 3 * DAY_MS
#: It tells the end of a perpetual this long before.
NOTICE_MS = 2 * DAY_MS
#: From its end a perpetual is PRE_SETTLE for this long, then SETTLING.
PRE_SETTLE_MS = HOUR_MS
#: A settlement is told at most this long after its schedule.
MAX_JITTER_MS = 14
#: The running funding rate and settlements average the premium in these steps.
FUNDING_STEP_MS = 5 * MINUTE_MS

_ADA = 5
_HOURS = {3: 4, 6: 1}
_STEPS = {0: ("0.1", "0.001", "100"), 1: ("0.01", "0.001", "20"), 4: ("0.0001", "0.1", "5")}
_MEAN_PREMIUM = -1e-4
_INTEREST = 1e-4
_CLAMP = 5e-4
_ANNUAL_BASIS = 0.08
_YEAR_MS = 365 * DAY_MS
#: How much more is traded than at spot, and open interest in days of spot turnover.
_TURNOVER = 2.5
_OPEN_DAYS = 0.8


@dataclass(frozen=True)
class Contract:
    """A contract on a coin; ``hours`` between settlements is None of dated ones, prices in units of 1e-8."""

    coin: int
    symbol: str
    exchange_symbol: str
    contract_type: str
    tick: int
    lot: int
    min_notional: int
    hours: int | None
    onboard_ms: int
    delivery_ms: int
    announced_ms: int

    @property
    def market_type(self) -> Literal["perpetual", "delivery"]:
        """Perpetual, or delivery of a dated one."""
        return "delivery" if self.hours is None else "perpetual"

    def status(self, now_ms: int) -> str | None:
        """Return the exchange's word at a moment, None while it does not name the contract."""
        if not self.onboard_ms - PENDING_MS <= now_ms < self.delivery_ms + REMAINS_MS:
            return None
        if now_ms < self.onboard_ms:
            return "PENDING_TRADING"
        if now_ms < self.delivery_ms:
            return "TRADING"
        if self.hours is None:
            return "DELIVERING"
        return "PRE_SETTLE" if now_ms < self.delivery_ms + PRE_SETTLE_MS else "SETTLING"


def contracts_of(start_ms: int, listing_ms: int, story_days: int) -> list[Contract]:
    """Perpetuals of all coins but two and a dated contract on the first, with the dates of their story.

    Parameters
    ----------
    start_ms
        Midnight of the first day.
    listing_ms
        When the late coin is listed; its contract follows two hours later.
    story_days
        One contract comes a sixth of them after its pair, the one on the dying coin ends before the coin
        collapses, and the dated one is delivered after five sixths.
    """
    made = []
    for coin, spec in enumerate(COINS):
        if coin in CONTRACTLESS:
            continue
        onboard_ms, delivery_ms = start_ms, NO_DELIVERY_MS
        if spec.base == "ARB":
            onboard_ms = listing_ms + 2 * HOUR_MS
        if coin == _ADA:
            onboard_ms = start_ms + story_days // 6 * DAY_MS + 6 * HOUR_MS + 30 * MINUTE_MS
        if coin == DYING:
            delivery_ms = start_ms + 7 * story_days // 12 * DAY_MS + 9 * HOUR_MS
        made.append(_contract(coin, _HOURS.get(coin, 8), onboard_ms, delivery_ms))
    delivery_ms = start_ms + 5 * story_days // 6 * DAY_MS + 8 * HOUR_MS
    return [*made, _contract(0, None, start_ms, delivery_ms)]


def _contract(coin: int, hours: int | None, onboard_ms: int, delivery_ms: int) -> Contract:
    spec = COINS[coin]
    tick, lot, notional = _STEPS.get(coin, (spec.tick, spec.lot, "5"))
    date = f"{from_ms(delivery_ms):%y%m%d}"
    dated = hours is None
    return Contract(
        coin=coin,
        symbol=f"{spec.base}/USDT:USDT" + (f"-{date}" if dated else ""),
        exchange_symbol=f"{spec.base}USDT" + (f"_{date}" if dated else ""),
        contract_type="CURRENT_QUARTER" if dated else "PERPETUAL",
        tick=to_units(tick),
        lot=to_units(lot),
        min_notional=to_units(notional),
        hours=hours,
        onboard_ms=onboard_ms,
        delivery_ms=delivery_ms,
        announced_ms=0 if dated else delivery_ms - NOTICE_MS,
    )


class ContractMaker:
    """Makes a contract's numbers out of its coin's; all are functions of (seed, contract, moment)."""

    def __init__(self, seed: int, first_day: int) -> None:
        self._seed, self._first_day = seed, first_day

    def premium(self, contract: Contract, moments_ms: np.ndarray) -> np.ndarray:
        """Distance of the contract's price from spot as a share of it; mean-reverting, no history needed."""
        return self.mark_premium(contract, moments_ms) + self._size(contract) * (
            0.35 * self._wave(contract, moments_ms, 5 * MINUTE_MS, 13)
            + 0.2 * self._wave(contract, moments_ms, MINUTE_MS, 14)
        )

    def mark_premium(self, contract: Contract, moments_ms: np.ndarray) -> np.ndarray:
        """Return the same without what comes and goes in minutes: distance of the mark price from spot."""
        slow = self._size(contract) * (
            0.9 * self._wave(contract, moments_ms, 8 * HOUR_MS, 11)
            + 0.5 * self._wave(contract, moments_ms, HOUR_MS, 12)
        )
        if contract.hours is not None:
            return slow + _MEAN_PREMIUM
        left = np.clip(contract.delivery_ms - moments_ms, 0, None)
        # A dated contract ends at the price of spot.
        return slow * np.minimum(1.0, left / DAY_MS) + _ANNUAL_BASIS * left / _YEAR_MS

    def day_bars(self, contract: Contract, kind: Kind, spot: Bars, spot_before: int, step_ms: int) -> Bars:
        """All base bars of a day, whether the contract trades or not.

        Parameters
        ----------
        contract, kind
            What to make.
        spot
            All base bars of the coin on that day.
        spot_before
            Its price at the midnight before, units of 1e-8.
        step_ms
            Length of a base bar.
        """
        ends_ms = np.r_[spot.open_ms[0], spot.open_ms + step_ms]
        prices = np.r_[spot_before, spot.values[CLOSE]]
        if kind == "trade":
            return self._trades(contract, spot, prices * (1 + self.premium(contract, ends_ms)))
        rng = np.random.default_rng(
            [self._seed, 6, int(spot.open_ms[0]) // DAY_MS - self._first_day, contract.coin]
        )
        if kind == "mark":
            marks = np.rint(prices * (1 + self.mark_premium(contract, ends_ms)))
            ranges = (spot.values[HIGH] - spot.values[LOW]) * rng.uniform(0, 0.25, (2, len(spot)))
            return _index_bars(spot, marks, ranges, step_ms // 1000)
        ranges = rng.exponential(0.1 * self._size(contract) * UNITS, (2, len(spot)))
        premiums = np.rint(self.premium(contract, ends_ms) * UNITS)
        return _index_bars(spot, premiums, ranges, step_ms // 5000)

    def rates(self, contract: Contract, settled_ms: np.ndarray, hours: int) -> np.ndarray:
        """Funding rates in units of 1e-8 of scheduled settlements, out of the premium of the hours before.

        The premium is averaged with weights that grow towards the settlement; I = 0.01 % is the interest of
        8 hours: rate = (P + clamp(I - P, -0.05 %, 0.05 %)) x hours / 8, the exchange's formula.
        """
        n_steps = hours * HOUR_MS // FUNDING_STEP_MS
        since = settled_ms[:, None] - (n_steps - np.arange(1, n_steps + 1)) * FUNDING_STEP_MS
        return self._rate(contract, since, hours)

    def running_rate(self, contract: Contract, now_ms: int, hours: int) -> int:
        """Return the rate as it would be settled from the premium between the last settlement and now."""
        last_ms = now_ms - now_ms % (hours * HOUR_MS)
        since = np.arange(last_ms + FUNDING_STEP_MS, now_ms + 1, FUNDING_STEP_MS, dtype=np.int64)
        return int(self._rate(contract, since if len(since) else np.array([now_ms]), hours))

    def jitter_ms(self, contract: Contract, settled_ms: np.ndarray) -> np.ndarray:
        """Milliseconds between schedule and told settlement, 0 to 14, mostly few."""
        return (uniform(self._seed, contract.symbol, 15, settled_ms) ** 3 * (MAX_JITTER_MS + 1)).astype(
            np.int64
        )

    def open_base(self, contract: Contract, moments_ms: np.ndarray) -> np.ndarray:
        """Open contracts in base units of 1e-8, on the lot; a new contract fills within days."""
        spec = COINS[contract.coin]
        waves = (
            0.35 * self._wave(contract, moments_ms, 3 * DAY_MS, 16)
            + 0.1 * self._wave(contract, moments_ms, 6 * HOUR_MS, 17)
            + 0.005 * self._wave(contract, moments_ms, 5 * MINUTE_MS, 18)
        )
        share = 0.1 if contract.hours is None else 1.0
        size = share * _OPEN_DAYS * spec.turnover_usd / spec.price * np.exp(waves)
        if contract.onboard_ms > self._first_day * DAY_MS:
            size = size * np.clip((moments_ms - contract.onboard_ms) / (3 * DAY_MS), 0.0, 1.0)
        return np.rint(size * UNITS / contract.lot).astype(np.int64) * contract.lot

    def _rate(self, contract: Contract, moments_ms: np.ndarray, hours: int) -> np.ndarray:
        weights = np.arange(1, moments_ms.shape[-1] + 1) * (moments_ms > contract.onboard_ms)
        premium = self.premium(contract, moments_ms)
        mean = (weights * premium).sum(axis=-1) / np.maximum(weights.sum(axis=-1), 1)
        rate = (mean + np.clip(_INTEREST - mean, -_CLAMP, _CLAMP)) * hours / 8
        return np.rint(rate * UNITS).astype(np.int64)

    def _size(self, contract: Contract) -> float:
        return 4e-4 + 0.012 * COINS[contract.coin].idio_vol

    def _wave(self, contract: Contract, moments_ms: np.ndarray, period_ms: int, stream: int) -> np.ndarray:
        """Smooth noise of mean 0 and variance 1 that forgets itself after a period."""
        knots, inside = moments_ms // period_ms, moments_ms % period_ms / period_ms
        left, right = (
            (uniform(self._seed, contract.symbol, stream, knots + i) - 0.5) * 12**0.5 for i in (0, 1)
        )
        return (left * (1 - inside) + right * inside) / np.sqrt((1 - inside) ** 2 + inside**2)

    def _trades(self, contract: Contract, spot: Bars, levels: np.ndarray) -> Bars:
        tick, lot, values = contract.tick, contract.lot, spot.values
        n = len(spot)
        rng = np.random.default_rng(
            [
                self._seed,
                5,
                int(spot.open_ms[0]) // DAY_MS - self._first_day,
                contract.coin,
                contract.hours or 0,
            ]
        )
        prices = np.maximum(1, np.rint(levels / tick)).astype(np.int64)
        # Where nothing is traded at spot, nothing is traded here.
        asleep = values[VOLUME_BASE] == 0
        awake = np.maximum.accumulate(np.where(asleep, 0, np.arange(1, n + 1)))
        ends = prices[awake]
        before = np.r_[prices[0], ends[:-1]]
        opens = np.maximum(1, before + np.where(asleep, 0, rng.integers(-1, 2, n)))
        above = (values[HIGH] - np.maximum(values[OPEN], values[CLOSE])) // tick
        below = (np.minimum(values[OPEN], values[CLOSE]) - values[LOW]) // tick
        highs = np.maximum(opens, ends) + above
        lows = np.maximum(1, np.minimum(opens, ends) - below)
        share = 0.1 if contract.hours is None else 1.0
        wanted = values[VOLUME_BASE] * (share * _TURNOVER * rng.uniform(0.7, 1.3, n)) / lot
        lots = np.where(asleep, 0, np.maximum(1, np.rint(wanted))).astype(np.int64)
        bought = values[TAKER_BASE] / np.maximum(values[VOLUME_BASE], 1) + 0.05 * rng.standard_normal(n)
        taker = (lots * np.clip(bought, 0.02, 0.98)).astype(np.int64)
        average = np.clip((highs + lows + 2 * ends) // 4, lows, highs)
        out = np.empty((N_VALUES, n), np.int64)
        out[OPEN], out[HIGH], out[LOW], out[CLOSE] = opens * tick, highs * tick, lows * tick, ends * tick
        out[VOLUME_BASE], out[TAKER_BASE] = lots * lot, taker * lot
        # A tick times a lot is a whole number of 1e-8, so quote volumes are exact.
        out[VOLUME_QUOTE] = lots * average * (tick * lot // UNITS)
        out[TAKER_QUOTE] = taker * average * (tick * lot // UNITS)
        trades = np.maximum(lots > 0, spot.n_trades * 2 * share)
        price_digits, lot_digits = decimals_of(tick), decimals_of(lot)
        shown = np.array([price_digits] * 4 + [lot_digits, price_digits + lot_digits] * 2, np.uint8)
        return Bars(
            spot.open_ms,
            spot.close_ms,
            out,
            np.broadcast_to(shown[:, None], out.shape),
            np.minimum(trades, lots).astype(np.int64),
        )


def _index_bars(spot: Bars, levels: np.ndarray, ranges: np.ndarray, n_samples: int) -> Bars:
    """Bars of a level at the ends of intervals, with wicks; no volumes, and samples in place of trades."""
    opens, ends = levels[:-1].astype(np.int64), levels[1:].astype(np.int64)
    wicks = ranges.astype(np.int64)
    values = np.zeros((N_VALUES, len(spot)), np.int64)
    values[OPEN], values[CLOSE] = opens, ends
    values[HIGH] = np.maximum(opens, ends) + wicks[0]
    values[LOW] = np.minimum(opens, ends) - wicks[1]
    return Bars(
        spot.open_ms,
        spot.close_ms,
        values,
        np.broadcast_to(np.uint8(N_DECIMALS), values.shape),
        np.full(len(spot), n_samples, np.int64),
    )
