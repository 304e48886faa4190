"""A seeded market: correlated coins, regimes, fat tails, a listing, a delisting, an outage, a modest edge.

Here: the way inside a day, bars and coin points, and which contracts show what when. Not here: the days
themselves (``synthetic_days``), the numbers of contracts (``synthetic_contracts``), the clock rule (``world``),
aggregation (``bars``), HTTP. Tests, the demo and the command line import it. No file, no clock, no environment;
all randomness is a function of (seed, day or moment), so the past does not know how far the world reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from crypto_assets.intervals import DAY_MS, HOUR_MS, MINUTE_MS, interval_ms
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
    concatenate,
    to_units,
)
from crypto_assets.simulation.synthetic_contracts import (
    MAX_JITTER_MS,
    PENDING_MS,
    Contract,
    ContractMaker,
    contracts_of,
)
from crypto_assets.simulation.synthetic_days import COINS, DYING, Day, Days, uniform
from crypto_assets.simulation.world import (
    Coin,
    CoinCandles,
    CoinPoints,
    Funding,
    Kind,
    Market,
    OpenInterest,
    World,
    merge_candles,
    no_funding,
    no_open_interest,
    visible_candles,
    visible_points,
)

_STEP_MS = {
    "5m": 5 * MINUTE_MS,
    "30m": 30 * MINUTE_MS,
    "1h": HOUR_MS,
    "4h": 4 * HOUR_MS,
    "1d": DAY_MS,
    "4d": 4 * DAY_MS,
}

#: The aggregator counts all venues, the exchange is one of them.
_ALL_VENUES = 3.0
_OUTAGE_START_MS = 12 * HOUR_MS + 27 * MINUTE_MS + 39_646
_OUTAGE_END_MS = 14 * HOUR_MS + 30 * MINUTE_MS
_ZERO_CAP_DAYS = range(20, 24)

_LATE = 10
_CAPLESS = 7
_TETHER = Coin("tether", "usdt", "Tether")
_WRAPPED = Coin("wrapped-bitcoin", "wbtc", "Wrapped Bitcoin")


class SyntheticWorld(World):
    """Twelve coins against USDT, contracts on ten of them, a stablecoin and a wrapped coin of the aggregator.

    Parameters
    ----------
    seed
        Any non-negative integer.
    start_ms, end_ms
        Bars open in [start_ms, end_ms), epoch milliseconds.
    base_interval
        Interval of the stored bars, at most 1d; longer ones are derived. Worlds with one seed but different
        base intervals share the daily prices, not the way between them.
    drift_frac
        Standard deviation of each coin's persistent daily expected return (an AR(1) with a half-life of four
        days), the only thing that can be predicted. 0 makes a world without an edge.
    story_days
        The late listing comes after a third, the delisting after two thirds (the price collapses two days
        before) and the outage on the
        middle one of this many days. It is no function of ``end_ms``: the past must not know where the world
        ends.

    Raises
    ------
    ValueError
        If the span is empty, the base interval does not divide a day, or a parameter is negative.

    Notes
    -----
    Daily log returns are beta x market + sector + own, with a stochastic market volatility times a
    three-state regime and Student-t shocks; the way inside a day is a bridge to the day's end, so any day can
    be made alone. A bar's quote volume is its base volume times a whole tick between low and high. Market
    caps are price x a slowly growing supply. One coin's cap is 0 on four days.

    Contracts are priced at spot x (1 + a mean-reverting premium); mark price, premium index and funding follow
    from the same premium. Two settle every 4 and every hour, the rest every 8. One is listed after its pair,
    one is settled and no longer named before its coin collapses, a dated one is delivered. The outage is one of
    spot alone.
    """

    def __init__(
        self,
        seed: int,
        start_ms: int,
        end_ms: int,
        base_interval: str = "1m",
        *,
        drift_frac: float = 0.004,
        story_days: int = 90,
    ) -> None:
        super().__init__()
        self.step_ms = interval_ms(base_interval)
        if DAY_MS % self.step_ms or base_interval == "10m":
            raise ValueError(f"base interval {base_interval!r} is none of the exchange's intervals up to 1d")
        if start_ms >= end_ms:
            raise ValueError(f"the world is empty: start {start_ms} is not before end {end_ms}")
        if seed < 0 or drift_frac < 0 or story_days < 3:
            raise ValueError(
                f"seed {seed}, drift {drift_frac} must not be negative, story_days {story_days} not under 3"
            )
        self.seed, self.start_ms, self.end_ms, self.base_interval = seed, start_ms, end_ms, base_interval
        self.drift_frac = drift_frac
        self.first_day = start_ms // DAY_MS
        day_0 = self.first_day * DAY_MS
        self.listing_ms = day_0 + story_days // 3 * DAY_MS + 8 * HOUR_MS
        self.delisting_ms = day_0 + 2 * story_days // 3 * DAY_MS + 3 * HOUR_MS
        self.outage_ms = (
            day_0 + story_days // 2 * DAY_MS + _OUTAGE_START_MS,
            day_0 + story_days // 2 * DAY_MS + _OUTAGE_END_MS,
        )
        self._days = Days(seed, drift_frac, 2 * story_days // 3)
        self._contracts = {
            contract.symbol: contract for contract in contracts_of(day_0, self.listing_ms, story_days)
        }
        self._maker = ContractMaker(seed, self.first_day)
        self._contract_day = lru_cache(maxsize=600)(self._make_contract_day)
        # A cached day of 1m bars takes 0.2 MB.
        self._day_bars = lru_cache(maxsize=1500)(self._make_day)
        self._factors = lru_cache(maxsize=32)(self._make_factors)
        self._hours = lru_cache(maxsize=4096)(self._make_turnover)
        self._markets = tuple(market for i in range(len(COINS)) if (market := self._market_of(i)))
        self._contract_markets = tuple(
            self._contract_market(contract)
            for contract in self._contracts.values()
            if contract.onboard_ms - PENDING_MS < end_ms
        )
        self._position = {spec.coin_id: i for i, spec in enumerate(COINS)}
        self._by_symbol = {f"{spec.base}/USDT": i for i, spec in enumerate(COINS)}

    def all_markets(self) -> Sequence[Market]:
        """Return the pairs that ever trade between start and end."""
        return self._markets

    def all_contracts(self) -> Sequence[Market]:
        """Return the contracts that are ever named between start and end."""
        return self._contract_markets

    def intervals(self, symbol: str, kind: Kind = "trade") -> Sequence[str]:
        """Return the base interval alone, and none of a kind that the symbol lacks."""
        return (self.base_interval,) if kind == "trade" or symbol in self._contracts else ()

    def is_listed(self, market: Market, now_ms: int) -> bool:
        """Tell whether the exchange names it; a contract is named before it trades and for a while after."""
        if market.is_spot:
            return super().is_listed(market, now_ms)
        return self._contracts[market.symbol].status(now_ms) is not None

    def status(self, market: Market, now_ms: int) -> str:
        """Return the exchange's word; CLOSE of a contract that it does not name."""
        if market.is_spot:
            return super().status(market, now_ms)
        return self._contracts[market.symbol].status(now_ms) or "CLOSE"

    def is_trading(self, market: Market, now_ms: int) -> bool:
        """Tell whether the delisting has not come yet; an outage is no delisting."""
        if not market.is_spot:
            return market.onboard_ms <= now_ms < market.delivery_ms
        return now_ms < self.delisting_ms or self._by_symbol[market.symbol] != DYING

    def final_bars(
        self, symbol: str, interval: str, start_ms: int, end_ms: int, kind: Kind = "trade"
    ) -> Bars:
        """Return final base bars opening in [start_ms, end_ms), none in the outage or outside the listing."""
        if symbol in self._contracts:
            return self._contract_bars(self._contracts[symbol], start_ms, end_ms, kind)
        if kind != "trade":
            return concatenate([])
        coin = self._by_symbol[symbol]
        first, last = self._listed_span(coin)
        start_ms, end_ms = max(start_ms, first), min(end_ms, last)
        if start_ms >= end_ms:
            return concatenate([])
        days = range(start_ms // DAY_MS, (end_ms - 1) // DAY_MS + 1)
        bars = concatenate([self._day_bars(coin, day) for day in days]).between(start_ms, end_ms)
        halt_start, halt_end = self._halt(coin)
        opens = bars.open_ms
        if not len(opens) or opens[-1] + self.step_ms <= halt_start or opens[0] >= halt_end:
            return bars
        close_ms = np.where(
            (opens < halt_start) & (halt_start < opens + self.step_ms), halt_start, bars.close_ms
        )
        kept = (opens < halt_start) | (opens + self.step_ms > halt_end)
        return Bars(opens, close_ms, bars.values, bars.shown, bars.n_trades).take(kept)

    def final_funding(self, symbol: str, start_ms: int, end_ms: int) -> Funding:
        """Return settlements of a perpetual while it trades, with the mark price after the last base bar."""
        contract = self._contracts.get(symbol)
        if contract is None or contract.hours is None:
            return no_funding()
        step_ms = contract.hours * HOUR_MS
        first, last = self._contract_span(contract)
        # Told some milliseconds late: the schedule is looked at a little further back than was asked.
        low = max(first + 1, start_ms - step_ms)
        schedule = np.arange(-(-low // step_ms) * step_ms, min(last, end_ms) + 1, step_ms, dtype=np.int64)
        settled = schedule + self._maker.jitter_ms(contract, schedule)
        chosen = (settled >= start_ms) & (settled < end_ms)
        schedule, settled = schedule[chosen], settled[chosen]
        return Funding(
            settled, self._maker.rates(contract, schedule, contract.hours), self._mark_at(contract, schedule)
        )

    def funding_hours(self, symbol: str, now_ms: int) -> int | None:
        """Return 1, 4 or 8 of a perpetual until its end."""
        contract = self._contracts.get(symbol)
        return contract.hours if contract and now_ms < contract.delivery_ms else None

    def running_rate(self, symbol: str, now_ms: int) -> int:
        """Return the rate as it would be settled from the premium since the last settlement."""
        contract = self._contracts.get(symbol)
        if contract is None or contract.hours is None:
            return 0
        return self._maker.running_rate(contract, now_ms, contract.hours)

    def final_open_interest(self, symbol: str, period: str, start_ms: int, end_ms: int) -> OpenInterest:
        """Return samples on the period's grid while the contract trades, valued at the mark price."""
        contract = self._contracts.get(symbol)
        if contract is None:
            return no_open_interest()
        first, last = self._contract_span(contract)
        step_ms = interval_ms(period)
        low, high = max(start_ms, first + 1), min(end_ms, last + 1)
        stamps = np.arange(-(-low // step_ms) * step_ms, high, step_ms, dtype=np.int64)
        base = self._maker.open_base(contract, stamps)
        quote = np.rint(base / UNITS * self._mark_at(contract, stamps)).astype(np.int64)
        return OpenInterest(stamps, base, quote)

    def coins(self, now_ms: int) -> Sequence[Coin]:
        """Return coins that have a price at now, by id."""
        known = [
            Coin(spec.coin_id, spec.base.lower(), spec.name)
            for i, spec in enumerate(COINS)
            if self._coin_start(i) + self.step_ms <= now_ms
        ]
        if self.start_ms + self.step_ms <= now_ms:
            known += [_TETHER, _WRAPPED]
        return sorted(known, key=lambda coin: coin.coin_id)

    def coin_points(self, coin_id: str, step: str, start_ms: int, end_ms: int, now_ms: int) -> CoinPoints:
        """Return points on the step's grid; intraday ones are stamped some seconds after it, as real ones."""
        step_ms = max(_STEP_MS[step], self.step_ms)
        first = max(start_ms, self._coin_start(self._underlying(coin_id)) + 1)
        last = min(end_ms, now_ms, self.end_ms)
        grid = np.arange(-(-first // step_ms) * step_ms, last + 1, step_ms, dtype=np.int64)
        if step_ms == DAY_MS:
            return visible_points(self._points(coin_id, grid, grid), start_ms, end_ms, now_ms)
        stamps = grid + 1 + (self._noise(coin_id, grid, 1) * min(240_000, step_ms // 4)).astype(np.int64)
        return self._points(coin_id, grid, stamps).take(stamps <= min(end_ms, now_ms))

    def coin_now(self, coin_id: str, now_ms: int) -> CoinPoints:
        """Return the state after the last finished base interval."""
        grid = np.array([min(now_ms, self.end_ms) // self.step_ms * self.step_ms])
        known = grid > self._coin_start(self._underlying(coin_id))
        return self._points(coin_id, grid[known], grid[known])

    def coin_candles(self, coin_id: str, step: str, start_ms: int, end_ms: int, now_ms: int) -> CoinCandles:
        """Return candles of the prices every five minutes inside each step."""
        fine_ms, step_ms = max(_STEP_MS["5m"], self.step_ms), max(_STEP_MS[step], self.step_ms)
        first = max(start_ms - step_ms, self._coin_start(self._underlying(coin_id))) // step_ms * step_ms
        grid = np.arange(first, min(end_ms, now_ms, self.end_ms) + 1, fine_ms, dtype=np.int64)
        grid = grid[grid > self._coin_start(self._underlying(coin_id))]
        prices = self._points(coin_id, grid, grid).price_usd
        opens = np.r_[prices[:1], prices[:-1]]
        parts = CoinCandles(
            grid, np.stack([opens, np.maximum(opens, prices), np.minimum(opens, prices), prices])
        )
        return visible_candles(
            merge_candles(parts, step_ms), start_ms, end_ms, now_ms, daily=step_ms >= DAY_MS
        )

    def _market_of(self, coin: int) -> Market | None:
        first, last = self._listed_span(coin)
        first = -(-first // self.step_ms) * self.step_ms
        if first >= last:
            return None
        spec = COINS[coin]
        return Market(
            symbol=f"{spec.base}/USDT",
            exchange_symbol=f"{spec.base}USDT",
            base=spec.base,
            quote="USDT",
            tick=to_units(spec.tick),
            lot=to_units(spec.lot),
            min_notional=to_units("5"),
            first_ms=first,
            last_ms=(last - 1) // self.step_ms * self.step_ms,
        )

    def _contract_market(self, contract: Contract) -> Market:
        spec, (first, last) = COINS[contract.coin], self._contract_span(contract)
        first = -(-first // self.step_ms) * self.step_ms
        return Market(
            symbol=contract.symbol,
            exchange_symbol=contract.exchange_symbol,
            base=spec.base,
            quote="USDT",
            tick=contract.tick,
            lot=contract.lot,
            min_notional=contract.min_notional,
            first_ms=first,
            last_ms=(last - 1) // self.step_ms * self.step_ms,
            market_type=contract.market_type,
            settle="USDT",
            contract_type=contract.contract_type,
            onboard_ms=contract.onboard_ms,
            delivery_ms=contract.delivery_ms,
            announced_ms=contract.announced_ms,
        )

    def _contract_span(self, contract: Contract) -> tuple[int, int]:
        return max(self.start_ms, contract.onboard_ms), min(self.end_ms, contract.delivery_ms)

    def _settlements_within(
        self, symbol: str, start_ms: int | None, last_ms: int, limit: int
    ) -> tuple[int, int]:
        contract = self._contracts.get(symbol)
        if contract is None:
            return super()._settlements_within(symbol, start_ms, last_ms, limit)
        first, last = self._contract_span(contract)
        last_ms = min(last + MAX_JITTER_MS, last_ms)
        width = (limit + 1) * (contract.hours or 0) * HOUR_MS
        if start_ms is None:
            return last_ms - width, last_ms
        start_ms = max(first, start_ms)
        return start_ms, min(start_ms + width, last_ms)

    def _contract_bars(self, contract: Contract, start_ms: int, end_ms: int, kind: Kind) -> Bars:
        first, last = self._contract_span(contract)
        start_ms, end_ms = max(start_ms, first), min(end_ms, last)
        if start_ms >= end_ms:
            return concatenate([])
        days = range(start_ms // DAY_MS, (end_ms - 1) // DAY_MS + 1)
        return concatenate([self._contract_day(contract, day, kind) for day in days]).between(
            start_ms, end_ms
        )

    def _make_contract_day(self, contract: Contract, day: int, kind: Kind) -> Bars:
        coin = contract.coin
        before = _on_tick(self._state(day).level[coin], to_units(COINS[coin].tick))
        return self._maker.day_bars(contract, kind, self._day_bars(coin, day), before, self.step_ms)

    def _mark_at(self, contract: Contract, moments_ms: np.ndarray) -> np.ndarray:
        # The price of spot is known at ends of base intervals.
        ends = moments_ms // self.step_ms * self.step_ms
        premium = self._maker.mark_premium(contract, moments_ms)
        return np.rint(self._price_at(contract.coin, ends) * (1 + premium) * UNITS).astype(np.int64)

    def _listed_span(self, coin: int) -> tuple[int, int]:
        start = self._coin_start(coin)
        end = min(self.end_ms, self.delisting_ms) if coin == DYING else self.end_ms
        return start, end

    def _coin_start(self, coin: int) -> int:
        return max(self.start_ms, self.listing_ms) if coin == _LATE else self.start_ms

    def _underlying(self, coin_id: str) -> int:
        return 0 if coin_id in (_TETHER.coin_id, _WRAPPED.coin_id) else self._position[coin_id]

    def _halt(self, coin: int) -> tuple[int, int]:
        # Each symbol's last trade before the halt has its own millisecond.
        return self.outage_ms[0] + 137 * coin, self.outage_ms[1]

    def _noise(self, coin_id: str, grid: np.ndarray, stream: int) -> np.ndarray:
        return uniform(self.seed, coin_id, stream, grid)

    def _points(self, coin_id: str, grid: np.ndarray, stamps: np.ndarray) -> CoinPoints:
        """Price, cap and volume as of grid moments, which are ends of base intervals."""
        if not len(grid):
            return CoinPoints(stamps, np.empty(0), np.empty(0), np.empty(0))
        wobble = 1 + (self._noise(coin_id, grid, 2) - 0.5) * 1e-3
        if coin_id == _TETHER.coin_id:
            volume = 2.5e10 * (0.7 + 0.6 * self._noise(coin_id, grid // DAY_MS, 3))
            return CoinPoints(stamps, wobble, wobble * self._supply(8.2e10, grid), volume)
        coin = self._underlying(coin_id)
        spec = COINS[coin]
        price = self._price_at(coin, grid) * wobble
        if coin_id == _WRAPPED.coin_id:
            return CoinPoints(
                stamps, price, price * self._supply(1.55e5, grid), self._turnover_24h(coin, grid) * 0.01
            )
        cap = price * self._supply(spec.supply, grid)
        if coin == _CAPLESS:
            cap[np.isin((grid - 1) // DAY_MS - self.first_day, list(_ZERO_CAP_DAYS))] = 0.0
        return CoinPoints(stamps, price, cap, self._turnover_24h(coin, grid) * _ALL_VENUES)

    def _supply(self, first: float, grid: np.ndarray) -> np.ndarray:
        # New coins appear once a day.
        return first * (1 + 0.02 / 365 * (grid // DAY_MS - self.first_day))

    def _price_at(self, coin: int, grid: np.ndarray) -> np.ndarray:
        tick = to_units(COINS[coin].tick)
        days, inside = (grid - 1) // DAY_MS, (grid - 1) % DAY_MS // self.step_ms
        out = np.empty(len(grid))
        midnight = grid % DAY_MS == 0
        out[midnight] = [_on_tick(self._state(day + 1).level[coin], tick) for day in days[midnight]]
        for day in np.unique(days[~midnight]):
            chosen = (days == day) & ~midnight
            out[chosen] = self._day_bars(coin, int(day)).values[CLOSE, inside[chosen]]
        return out / UNITS

    def _turnover_24h(self, coin: int, grid: np.ndarray) -> np.ndarray:
        days, n_steps = grid // DAY_MS, grid % DAY_MS // self.step_ms
        midnight = n_steps == 0
        out = np.empty(len(grid))
        out[midnight] = [self._state(day - 1).turnover[coin] for day in days[midnight]]
        for day in np.unique(days[~midnight]):
            chosen = (days == day) & ~midnight
            today, before = self._hours(coin, int(day)), self._hours(coin, int(day) - 1)
            out[chosen] = today[n_steps[chosen]] + before[-1] - before[n_steps[chosen]]
        return out

    def _make_turnover(self, coin: int, day: int) -> np.ndarray:
        """Quote volume of a day up to the end of each base interval, USD; first entry 0."""
        if day < self.first_day:
            return np.zeros(DAY_MS // self.step_ms + 1)
        return np.r_[0.0, np.cumsum(self._day_bars(coin, day).values[VOLUME_QUOTE] / UNITS)]

    def _state(self, day: int) -> Day:
        return self._days.at(max(0, int(day) - self.first_day))

    def _make_factors(self, day: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Relative volatility, market and sector log returns of each base interval of a day."""
        state = self._state(day)
        rng = np.random.default_rng([self.seed, 1, day - self.first_day])
        n = DAY_MS // self.step_ms
        hours = np.arange(n) * (24 / n)
        # American hours are the busiest; the noise makes busy and quiet hours cluster.
        season = (
            1 + 0.45 * np.cos((hours - 15) / 24 * 2 * np.pi) + 0.15 * np.cos((hours - 1) / 12 * 2 * np.pi)
        )
        cluster = np.exp(np.interp(hours, np.arange(25), 0.45 * rng.standard_normal(25)))
        busy = season * cluster
        market = _bridge(rng, busy, state.market_vol, state.market)
        sectors = np.stack([_bridge(rng, busy, 0.3 * state.market_vol, end) for end in state.sectors])
        return busy / busy.mean(), market, sectors

    def _make_day(self, coin: int, day: int) -> Bars:
        """All base bars of a coin on an epoch day, listed or not, halted or not."""
        spec, state, after = COINS[coin], self._state(day), self._state(day + 1)
        busy, market, sectors = self._factors(day)
        rng = np.random.default_rng([self.seed, 2, day - self.first_day, coin])
        n = len(busy)
        tick, lot = to_units(spec.tick), to_units(spec.lot)
        common = spec.beta * market + sectors[spec.sector]
        own_vol = spec.idio_vol * state.own_vol
        own = _bridge(rng, busy, own_vol, after.level[coin] - state.level[coin] - common.sum())
        path = state.level[coin] + np.cumsum(common + own)
        ends = np.maximum(1, np.rint(np.exp(path) * UNITS / tick)).astype(np.int64)
        ends[-1] = _on_tick(after.level[coin], tick) // tick
        asleep = rng.random(n) < spec.sleepy * (1 if self.step_ms <= 5 * MINUTE_MS else 0)
        asleep[-1] = False
        first = _on_tick(state.level[coin], tick) // tick
        awake = np.maximum.accumulate(np.where(asleep, -1, np.arange(n)))
        ends = np.where(awake < 0, first, ends[awake])
        before = np.r_[first, ends[:-1]]
        opens = np.maximum(1, before + np.where(asleep, 0, rng.integers(-1, 2, n)))
        spread = np.sqrt((spec.beta * state.market_vol) ** 2 + own_vol**2) / np.sqrt(n) * np.sqrt(busy)
        wick = (rng.exponential(0.5, (2, n)) * spread * ends * ~asleep).astype(np.int64)
        highs = np.maximum(opens, ends) + wick[0]
        lows = np.maximum(1, np.minimum(opens, ends) - wick[1])
        share = busy * rng.gamma(2.0, 0.5, n) * (0.5 + np.abs(common + own) / spread) * ~asleep
        lots = np.maximum(
            ~asleep,
            np.rint(share / share.sum() * state.turnover[coin] * UNITS / (ends * tick) * (UNITS / lot)),
        ).astype(np.int64)
        taker = (lots * np.clip(0.5 + 4 * (common + own) + 0.08 * rng.standard_normal(n), 0.02, 0.98)).astype(
            np.int64
        )
        average = np.clip((highs + lows + 2 * ends) // 4, lows, highs)
        values = np.empty((N_VALUES, n), np.int64)
        values[OPEN], values[HIGH], values[LOW], values[CLOSE] = (
            opens * tick,
            highs * tick,
            lows * tick,
            ends * tick,
        )
        values[VOLUME_BASE], values[TAKER_BASE] = lots * lot, taker * lot
        # A tick times a lot is a whole number of 1e-8, so quote volumes are exact.
        values[VOLUME_QUOTE] = lots * average * (tick * lot // UNITS)
        values[TAKER_QUOTE] = taker * average * (tick * lot // UNITS)
        trade_usd = 300 + 1e-6 * spec.turnover_usd
        trades = np.maximum(lots > 0, values[VOLUME_QUOTE] / UNITS / trade_usd * rng.uniform(0.7, 1.3, n))
        open_ms = day * DAY_MS + np.arange(n, dtype=np.int64) * self.step_ms
        return Bars(
            open_ms,
            open_ms + self.step_ms - 1,
            values,
            np.broadcast_to(np.uint8(N_DECIMALS), values.shape),
            np.minimum(trades, np.maximum(lots, 0)).astype(np.int64),
        )


def _bridge(rng: np.random.Generator, busy: np.ndarray, day_vol: float, end: float) -> np.ndarray:
    """Fat-tailed log returns of a day's intervals that sum to ``end``."""
    variance = busy / busy.sum()
    steps = day_vol * np.sqrt(variance) * np.clip(rng.standard_t(4, len(busy)) / np.sqrt(2), -8, 8)
    return steps + variance * (end - steps.sum())


def _on_tick(level: float, tick: int) -> int:
    return max(1, round(float(np.exp(level)) * UNITS / tick)) * tick
