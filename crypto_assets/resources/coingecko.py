"""CoinGecko: the list of coins, market ranks, daily market caps and OHLC through the pycoingecko client.

Here: one client that asks, validates every answer and returns Arrow tables, what each plan can answer, and the Dagster
resource. Not here: the mapping of coins to exchange symbols, ``known_at`` and storing (assets and warehouse), pacing,
retries and the month's allowance (``sources.py``). The API key travels in a header only. Assets receive
``CoinGeckoResource``; the CLI and tests use ``CoinGeckoClient``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import pyarrow as pa
from pydantic import Field

from crypto_assets.intervals import DAY_MS, HOUR_MS, MINUTE_MS, from_ms, interval_ms, to_ms
from crypto_assets.resources.sources import (
    Answer,
    CallAllowance,
    Failure,
    RateBudget,
    Request,
    RetryPolicy,
    SourceCaller,
    SourceRefused,
)

_TIMESTAMP = pa.timestamp("us")

#: One row per coin of ``/coins/list``; a ticker is shared by many coins and may be empty.
COIN_SCHEMA = pa.schema(
    [
        pa.field("coin_id", pa.string(), nullable=False),
        pa.field("ticker", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
    ]
)

#: One row per coin of ``/coins/markets``; null means unknown.
MARKET_SCHEMA = pa.schema(
    [
        *COIN_SCHEMA,
        pa.field("market_cap_rank", pa.int64()),
        pa.field("market_cap_usd", pa.float64()),
        pa.field("price_usd", pa.float64()),
        pa.field("volume_usd", pa.float64()),
        pa.field("seen_at", _TIMESTAMP, nullable=False),
    ]
)

#: One row per category and member.
MEMBER_SCHEMA = pa.schema(
    [
        pa.field("coin_id", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
    ]
)

#: One row per coin and day; null means unknown.
MARKET_CAP_SCHEMA = pa.schema(
    [
        pa.field("coin_id", pa.string(), nullable=False),
        pa.field("ts", _TIMESTAMP, nullable=False),
        pa.field("price_usd", pa.float64()),
        pa.field("market_cap_usd", pa.float64()),
        pa.field("volume_usd", pa.float64()),
    ]
)

#: One row per coin, interval and candle.
OHLC_SCHEMA = pa.schema(
    [
        pa.field("coin_id", pa.string(), nullable=False),
        pa.field("interval", pa.string(), nullable=False),
        pa.field("ts", _TIMESTAMP, nullable=False),
        pa.field("open_usd", pa.float64(), nullable=False),
        pa.field("high_usd", pa.float64(), nullable=False),
        pa.field("low_usd", pa.float64(), nullable=False),
        pa.field("close_usd", pa.float64(), nullable=False),
    ]
)

#: Candles that are suspicious or were replaced: ``reason`` is duplicate (the source gave two candles for one time, this
#: one is the earlier), off_grid (kept out), or flat_candle (kept: open = high = low = close and nothing before it, so
#: that its open is no price of the time before).
SET_ASIDE_SCHEMA = OHLC_SCHEMA.append(pa.field("reason", pa.string(), nullable=False))


@dataclass(frozen=True)
class OhlcPage:
    """One answer with candles, and what it proves.

    Attributes
    ----------
    rows
        Closed candles by ``OHLC_SCHEMA``, ascending by ``ts`` without duplicates.
    set_aside
        By ``SET_ASIDE_SCHEMA``.
    covered_until
        Exclusive end of what the answers so far tell about: a candle before it that is in neither table was not at the
        source.
    """

    rows: pa.Table
    set_aside: pa.Table
    covered_until: datetime


@dataclass(frozen=True)
class _OhlcRange:
    """How one length of candles is asked for: by range on a paid plan, else out of shorter ones of the last days."""

    name: str
    most: timedelta
    shorter: str
    days: int


_BASE_URLS: Mapping[str, str] = {
    "public": "https://api.coingecko.com/api/v3/",
    "demo": "https://api.coingecko.com/api/v3/",
    "pro": "https://pro-api.coingecko.com/api/v3/",
}
_KEY_HEADERS: Mapping[str, str] = {"demo": "x-cg-demo-api-key", "pro": "x-cg-pro-api-key"}
_MARKETS_PER_PAGE = 250
# CoinGecko's documentation of ohlc/range: at most 180 days of daily and 31 days of hourly candles a request. A longer
# candle is exactly the sum of its shorter ones: all 6,284 recorded days that have 24 recorded hours agree to the digit.
_OHLC_RANGES: Mapping[str, _OhlcRange] = {
    "1d": _OhlcRange("daily", timedelta(days=180), "4h", 30),
    "1h": _OhlcRange("hourly", timedelta(days=31), "30m", 1),
}
# The first stamp of any recorded candle; the documentation names 2018-02-09 03:33:44.
_OHLC_FIRST_STAMP = datetime(2018, 2, 9)
# The plans without payment are refused what lies more than 365 days back; a day is left for the two clocks.
_FREE_HISTORY = timedelta(days=364)
# Above 90 days CoinGecko answers daily points at 00:00 UTC by itself; asking for an interval needs a paid
# plan.
_DAILY_FROM = timedelta(days=91)
# CoinGecko's choice of the candle length by the number of days asked for.
_OHLC_INTERVALS: Mapping[int | Literal["max"], tuple[str, int]] = {
    1: ("30m", 30 * MINUTE_MS),
    **dict.fromkeys((7, 14, 30), ("4h", 4 * HOUR_MS)),
    **dict.fromkeys((90, 180, 365), ("4d", 4 * DAY_MS)),
    "max": ("4d", 4 * DAY_MS),
}


class CoinGeckoClient:
    """Public market data of CoinGecko in US dollars.

    Safe to share between threads; processes share the rate limit through the budget's file, one unit a
    request. The local clock is never read.

    Parameters
    ----------
    budget
        Rate budget in requests.
    base_url
        Address to use in place of CoinGecko's own, up to and including ``/api/v3``; ``None`` is live.
    plan
        ``public`` (no key), ``demo`` or ``pro``: decides the live host, the header that carries the key, and what can
        be asked: without payment the last 365 days and no ``ohlc/range``. Another address without a key has no limits.
    api_key
        API key of the plan; ``None`` with ``public`` only.
    timeout_s
        Seconds to wait for a connection and for each part of an answer.
    retry
        Retry policy.
    allowance
        Calls that the plan allows in a month, retries included; ``None``: not counted. What it does not allow is
        ``SourceRefused`` and not sent.

    Raises
    ------
    ValueError
        If plan and key do not fit, the key has characters that a header cannot carry (the key is not shown),
        or the address is not an http address.
    """

    def __init__(
        self,
        budget: RateBudget,
        *,
        base_url: str | None = None,
        plan: str = "public",
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retry: RetryPolicy | None = None,
        allowance: CallAllowance | None = None,
    ) -> None:
        from pycoingecko import CoinGeckoAPI
        from requests.adapters import HTTPAdapter

        _check_key(plan, api_key)
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            raise ValueError(
                f"the base address {base_url!r} of coingecko must start with http:// or https://"
            )
        # Never given to the library: pycoingecko 3.2.0 writes the key into the URL, and so into logs and
        # errors.
        self._api: Any = CoinGeckoAPI()
        self._api.api_base_url = f"{(base_url or _BASE_URLS[plan]).rstrip('/')}/"
        self._api.request_timeout = timeout_s
        session = self._api.session
        # pycoingecko mounts an adapter that repeats by itself, past the budget.
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter())
        if api_key is not None:
            session.headers[_KEY_HEADERS[plan]] = api_key
        self._plan = plan
        # An address of one's own without a key is a simulated market, which has no plans.
        self._is_paid = plan == "pro" or (plan == "public" and base_url is not None)
        self._caller = SourceCaller(
            budget,
            retry or RetryPolicy(),
            _read_failure,
            secrets=(api_key,) if api_key else (),
            allowance=allowance,
        )
        self._caller.wire.watch(session)

    def coins(self) -> pa.Table:
        """List every coin that CoinGecko knows, by ``COIN_SCHEMA`` (one request).

        Tickers are in the spelling of the source (lower case); they are no key.
        """
        return self._call("coins/list", {}, self._api.get_coins_list, _parse_coins)

    def markets(self, n_top: int, at: datetime, category: str | None = None) -> pa.Table:
        """Return the largest coins by market cap now, by ``MARKET_SCHEMA`` (one request for every 250).

        Parameters
        ----------
        n_top
            How many coins to ask for; fewer come when the list ends.
        at
            When the answer is seen, naive UTC, given by the caller; it becomes ``seen_at`` of every row.
        category
            CoinGecko's id of a category, such as ``stablecoins``: only its members. Ranks stay those among all coins.

        Returns
        -------
        pyarrow.Table
            In the order of the source. A coin that changed pages between two requests is kept once, as first
            seen. A market cap or price of 0 is unknown, hence null.

        Raises
        ------
        ValueError
            If ``n_top`` is not positive.
        """
        if n_top < 1:
            raise ValueError(f"n_top is {n_top}; ask for 1 coin or more")
        per_page = min(n_top, _MARKETS_PER_PAGE)
        rows: dict[str, dict[str, object]] = {}
        for page in range(1, math.ceil(n_top / per_page) + 1):
            params = {"vs_currency": "usd", "order": "market_cap_desc", "per_page": per_page, "page": page}
            if category is not None:
                params["category"] = category
            found = self._call("coins/markets", params, self._api.get_coins_markets, _parse_markets)
            for row in found:
                rows.setdefault(str(row["coin_id"]), {**row, "seen_at": at})
            if len(found) < per_page:
                break
        return pa.Table.from_pylist(list(rows.values())[:n_top], schema=MARKET_SCHEMA)

    def members(self, categories: Iterable[str], at: datetime) -> pa.Table:
        """Return the 250 largest members of each category now, by ``MEMBER_SCHEMA`` (one request a category).

        Parameters
        ----------
        categories
            CoinGecko's ids of categories.
        at
            When the answers are seen, naive UTC.
        """
        tables = [MEMBER_SCHEMA.empty_table()]
        for category in categories:
            coin_ids = self.markets(_MARKETS_PER_PAGE, at, category)["coin_id"].combine_chunks()
            names = pa.repeat(pa.scalar(category, pa.string()), len(coin_ids))
            tables.append(pa.table([coin_ids, names], schema=MEMBER_SCHEMA))
        return pa.concat_tables(tables)

    def caps_from(self, now: datetime) -> datetime | None:
        """First day whose market cap the plan can tell; ``None``: every one."""
        return None if self._is_paid else _midnight_after(now - _FREE_HISTORY) - timedelta(days=1)

    def market_caps(
        self, coin_id: str, start: datetime, end: datetime, now: datetime | None = None
    ) -> pa.Table:
        """Daily price, market cap and volume of one coin, by ``MARKET_CAP_SCHEMA`` (one request).

        CoinGecko stamps the end of a day: the point of D 00:00 is the close of D-1 and gets ``ts`` = D-1.
        The time at which a row may be known is the caller's to add: the stamp plus the publication lag.

        Parameters
        ----------
        coin_id
            CoinGecko's id, never a ticker.
        start, end
            Range of ``ts`` [start, end), naive UTC. More than 90 days are asked for, reaching back from
            ``end``, so that the answer is daily.
        now
            Time of the tick, naive UTC, from the clock of a source. Where the plan's history is limited, what is asked
            for then reaches forward rather than past the limit, and a range that begins before ``caps_from`` is refused
            and not sent.

        Returns
        -------
        pyarrow.Table
            Ascending by ``ts``, one row per day that the source has; missing days stay missing. Points not
            stamped exactly 00:00 UTC are dropped, of repeated stamps the last counts. A market cap or price
            of 0 is unknown, hence null.

        Raises
        ------
        ValueError
            If the range is empty.
        SourceError
            As ``SourceCaller.call``; an unknown coin is ``SourceRefused``.
        """
        if start >= end:
            raise ValueError(f"empty range of {coin_id}: start {start} is not before end {end}")
        # The last stamp needed is `end` itself; the hour after it is asked for lest the source excludes its
        # bound.
        last = end + timedelta(hours=1)
        first = min(start + timedelta(days=1), last - _DAILY_FROM)
        oldest = None if now is None else self.caps_from(now)
        if oldest is not None:
            if start < oldest:
                raise self._unserved(
                    f"coins/{coin_id}/market_chart/range",
                    {"from": start, "to": end},
                    f"its market caps begin on {oldest:%Y-%m-%d}",
                )
            first = max(first, oldest + timedelta(days=1))
            last = max(last, first + _DAILY_FROM)
        params = {"vs_currency": "usd", "from": to_ms(first) // 1000, "to": to_ms(last) // 1000}

        def send() -> object:
            return self._api.get_coin_market_chart_range_by_id(coin_id, "usd", params["from"], params["to"])

        def accept(payload: object) -> pa.Table:
            return _parse_market_caps(payload, coin_id, to_ms(start), to_ms(end))

        return self._send(f"coins/{coin_id}/market_chart/range", params, send, accept)

    def ohlc(self, coin_id: str, days: int | Literal["max"], closed_before: datetime) -> pa.Table:
        """Candles of the last days of one coin, by ``OHLC_SCHEMA`` (one request).

        CoinGecko stamps the end of a candle, and the last one may still be open; ``ts`` is the start, and
        only candles that end at or before ``closed_before`` are returned.

        Parameters
        ----------
        coin_id
            CoinGecko's id, never a ticker.
        days
            1 (30-minute candles), 7, 14, 30 (4 hours), 90, 180, 365 or ``max`` (4 days).
        closed_before
            Time of the tick, naive UTC, from the clock of a source.

        Returns
        -------
        pyarrow.Table
            Ascending by ``ts``; of repeated stamps the last counts, stamps off the grid of minutes, hours or
            days are dropped.

        Raises
        ------
        ValueError
            If ``days`` is none of the above.
        SourceError
            As ``SourceCaller.call``; an unknown coin is ``SourceRefused``.
        """
        if days not in _OHLC_INTERVALS:
            raise ValueError(f"days is {days!r}; CoinGecko answers {', '.join(map(str, _OHLC_INTERVALS))}")
        interval, length_ms = _OHLC_INTERVALS[days]

        def send() -> object:
            return self._api.get_coin_ohlc_by_id(coin_id, "usd", days)

        params = {"vs_currency": "usd", "days": days}
        candles = self._send(f"coins/{coin_id}/ohlc", params, send, _parse_candles)
        # Four-day candles have no common anchor, but they end at midnight.
        grid_ms, closed_ms = min(length_ms, DAY_MS), to_ms(closed_before)
        kept = {stamp: prices for stamp, prices in candles if stamp % grid_ms == 0 and stamp <= closed_ms}
        rows = [(stamp - length_ms, prices) for stamp, prices in sorted(kept.items())]
        return _ohlc_table(coin_id, interval, rows)

    def ohlc_from(self, interval: str, closed_before: datetime) -> datetime:
        """Start of the first candle of a length (``1d``, ``1h``) that the plan can tell at a time.

        Raises
        ------
        ValueError
            If the length is neither.
        """
        asked = _ohlc_range_of(interval)
        length = timedelta(milliseconds=interval_ms(interval))
        if self._is_paid:
            return _OHLC_FIRST_STAMP - length
        oldest_ms = to_ms(closed_before - timedelta(days=asked.days))
        return from_ms(-(-oldest_ms // interval_ms(interval)) * interval_ms(interval))

    def ohlc_reach(self, interval: str) -> timedelta:
        """How long a range of candles one request can answer."""
        asked = _ohlc_range_of(interval)
        return asked.most if self._is_paid else timedelta(days=asked.days)

    def ohlc_range(
        self, coin_id: str, interval: str, start: datetime, end: datetime, closed_before: datetime
    ) -> pa.Table:
        """Closed candles that start in [start, end), by ``OHLC_SCHEMA``: the rows of all ``ohlc_pages``."""
        pages = self.ohlc_pages(coin_id, interval, start, end, closed_before)
        return pa.concat_tables([OHLC_SCHEMA.empty_table(), *(page.rows for page in pages)])

    def ohlc_pages(
        self, coin_id: str, interval: str, start: datetime, end: datetime, closed_before: datetime
    ) -> Iterator[OhlcPage]:
        """Candles of one length that start in [start, end), one request a page.

        On a paid plan ``ohlc/range`` is asked, in parts of 180 days (daily) or 31 days (hourly). Both borders of a part
        belong to it, so the candle at a joint comes twice: the later answer counts, and a candle that it changes is set
        aside. CoinGecko stamps the end of a candle; ``ts`` is the start.

        The other plans have no ``ohlc/range``. There a candle is put together from all its shorter ones in
        ``ohlc``: hours of the last day from two complete halves, days of the last 30 from six complete four-hour
        candles. A candle with a part missing is missing.

        Parameters
        ----------
        coin_id
            CoinGecko's id, never a ticker.
        interval
            ``1d`` or ``1h``.
        start, end
            Range of ``ts``, naive UTC, on the grid of the interval.
        closed_before
            Time of the tick, naive UTC, from the clock of a source: a candle that ends later is still open, and dropped.

        Yields
        ------
        OhlcPage
            In order of time, the rows of different pages disjoint.

        Raises
        ------
        ValueError
            If the interval is unknown or the range is empty.
        SourceRefused
            Before anything is sent, if the plan cannot tell candles as old as ``start``.
        SourceError
            As ``SourceCaller.call``; an unknown coin is ``SourceRefused``.
        """
        asked = _ohlc_range_of(interval)
        if start >= end:
            raise ValueError(f"empty range of {coin_id}: start {start} is not before end {end}")
        oldest = self.ohlc_from(interval, closed_before)
        if self._is_paid:
            # Older ones exist nowhere, so the range is asked from there on and what is before it is proved empty.
            return self._ohlc_by_range(coin_id, interval, asked, max(start, oldest), end, closed_before)
        if start < oldest:
            raise self._unserved(
                f"coins/{coin_id}/ohlc/range",
                {"interval": asked.name, "from": start, "to": end},
                f"its {interval} candles, made of {asked.shorter} ones, begin at {oldest}",
            )
        return self._ohlc_of_last_days(coin_id, interval, asked, start, end, closed_before)

    def _ohlc_by_range(
        self,
        coin_id: str,
        interval: str,
        asked: _OhlcRange,
        start: datetime,
        end: datetime,
        closed_before: datetime,
    ) -> Iterator[OhlcPage]:
        candles = _Candles(coin_id, interval, start, closed_before)
        path = f"coins/{coin_id}/ohlc/range"
        at = taken = start
        while at < end:
            until = min(at + asked.most, end)
            span = to_ms(at) // 1000, to_ms(until) // 1000
            params = {"vs_currency": "usd", "from": span[0], "to": span[1], "interval": asked.name}

            def send(span: tuple[int, int] = span) -> object:
                return self._api.get_coin_ohlc_by_id_range(coin_id, "usd", *span, asked.name)

            candles.add(self._send(path, params, send, _parse_candles))
            # The candle at the joint waits for the next answer, which has it again.
            told = end if until >= end else until - candles.length
            yield candles.take(taken, told)
            at, taken = until, told
        if start >= end:
            yield candles.take(start, end)

    def _ohlc_of_last_days(
        self,
        coin_id: str,
        interval: str,
        asked: _OhlcRange,
        start: datetime,
        end: datetime,
        closed_before: datetime,
    ) -> Iterator[OhlcPage]:
        oldest = self.ohlc_from(interval, closed_before)
        candles = _Candles(
            coin_id, interval, oldest + timedelta(milliseconds=interval_ms(interval)), closed_before
        )
        params = {"vs_currency": "usd", "days": asked.days}

        def send() -> object:
            return self._api.get_coin_ohlc_by_id(coin_id, "usd", asked.days)

        shorter = self._send(f"coins/{coin_id}/ohlc", params, send, _parse_candles)
        candles.add(_whole(shorter, interval_ms(asked.shorter), interval_ms(interval)))
        yield candles.take(start, end)

    def _unserved(self, path: str, params: Mapping[str, object], limit: str) -> SourceRefused:
        return SourceRefused(
            str(Request("coingecko", f"/api/v3/{path}", params)),
            f"not sent, the plan {self._plan!r} does not have it: {limit}",
            "ask for later days, or use a paid plan: set COINGECKO_PRO_API_KEY",
        )

    def _call(
        self,
        path: str,
        params: Mapping[str, object],
        method: Callable[..., object],
        accept: Callable[[object], Answer],
    ) -> Answer:
        return self._send(path, params, lambda: method(**params), accept)

    def _send(
        self,
        path: str,
        params: Mapping[str, object],
        send: Callable[[], object],
        accept: Callable[[object], Answer],
    ) -> Answer:
        return self._caller.call(Request("coingecko", f"/api/v3/{path}", params), send, accept)


class CoinGeckoResource(dg.ConfigurableResource):
    """Dagster resource that builds the CoinGecko client.

    Attributes
    ----------
    base_url
        Address to use in place of CoinGecko's own; ``None`` is live.
    plan
        ``public``, ``demo`` or ``pro``.
    api_key
        API key; give it as ``dg.EnvVar``, so that Dagster shows the name of the variable and never the key.
    timeout_s
        Seconds to wait for CoinGecko.
    budget_dir
        Folder of the rate budgets; every process on the machine must use the same one.
    calls_per_minute
        Requests to send in any 60 seconds; the demo plan allows 30, without a key it is less and varies.
    calls_per_month
        Requests to send in a calendar month (UTC); the demo plan allows 10,000. ``None``: not counted.
    """

    base_url: str | None = None
    # Dagster's configuration knows no Literal; the client checks the name.
    plan: str = "public"
    api_key: str | None = Field(default=None, repr=False)
    timeout_s: float = 30.0
    budget_dir: str
    calls_per_minute: int = 25
    calls_per_month: int | None = None

    def client(self, clock: Callable[[], datetime] | None = None) -> CoinGeckoClient:
        """Build a client under the shared budget; do it once per step and pass it on.

        Parameters
        ----------
        clock
            Tells the month that is counted, naive UTC. CoinGecko has no route for its time, so without one it is the
            clock of this machine.
        """
        folder = Path(self.budget_dir)
        allowance = None
        if self.calls_per_month is not None:
            allowance = CallAllowance(
                folder, f"coingecko-{self.plan}", self.calls_per_month, clock or _clock_of_this_machine
            )
        return CoinGeckoClient(
            RateBudget(folder, "coingecko", self.calls_per_minute),
            base_url=self.base_url,
            plan=self.plan,
            api_key=self.api_key,
            timeout_s=self.timeout_s,
            allowance=allowance,
        )


class _Candles:
    """Candles of one coin as the answers bring them, by stamp: the later answer counts."""

    def __init__(self, coin_id: str, interval: str, seen_from: datetime, closed_before: datetime) -> None:
        self.length = timedelta(milliseconds=interval_ms(interval))
        self._coin_id, self._interval = coin_id, interval
        self._length_ms, self._closed_ms = interval_ms(interval), to_ms(closed_before)
        # The first stamp that an answer would have shown.
        self._seen_from_ms = to_ms(seen_from)
        self._known: dict[int, list[float]] = {}
        self._aside: list[tuple[int, list[float], str]] = []

    def add(self, answer: Sequence[tuple[int, list[float]]]) -> None:
        for position, (stamp, prices) in enumerate(answer, start=1):
            if stamp > self._closed_ms:
                continue
            if stamp % self._length_ms:
                # The newest candle of an answer may be open and stamped with the moment.
                if position < len(answer):
                    self._aside.append((stamp, prices, "off_grid"))
                continue
            earlier = self._known.get(stamp, prices)
            if earlier != prices:
                self._aside.append((stamp, earlier, "duplicate"))
            self._known[stamp] = prices

    def take(self, start: datetime, end: datetime) -> OhlcPage:
        first, last = to_ms(start) + self._length_ms, to_ms(end) + self._length_ms
        rows = [(stamp, prices) for stamp, prices in sorted(self._known.items()) if first <= stamp < last]
        aside = [one for one in self._aside if first <= one[0] < last]
        aside += [(stamp, prices, "flat_candle") for stamp, prices in rows if self._opens_flat(stamp, prices)]
        # The last candle taken stays: it is what lies before the next one.
        kept_from = rows[-1][0] if rows else 0
        self._known = {stamp: prices for stamp, prices in self._known.items() if stamp >= kept_from}
        self._aside = [one for one in self._aside if one[0] >= last]
        aside.sort(key=lambda one: one[0])
        table = self._table([(stamp, prices) for stamp, prices, _ in aside])
        reasons = pa.array([reason for *_, reason in aside], pa.string())
        return OhlcPage(
            self._table(rows), table.append_column(SET_ASIDE_SCHEMA.field("reason"), reasons), end
        )

    def _opens_flat(self, stamp: int, prices: list[float]) -> bool:
        before = stamp - self._length_ms
        return len(set(prices)) == 1 and before >= self._seen_from_ms and before not in self._known

    def _table(self, candles: Sequence[tuple[int, list[float]]]) -> pa.Table:
        rows = [(stamp - self._length_ms, prices) for stamp, prices in candles]
        return _ohlc_table(self._coin_id, self._interval, rows)


def _whole(
    shorter: Iterable[tuple[int, list[float]]], short_ms: int, long_ms: int
) -> list[tuple[int, list[float]]]:
    known = {stamp: prices for stamp, prices in shorter if stamp % short_ms == 0}
    parts: dict[int, list[list[float]]] = {}
    for stamp in sorted(known):
        parts.setdefault(-(-stamp // long_ms) * long_ms, []).append(known[stamp])
    return [
        (stamp, [bars[0][0], max(bar[1] for bar in bars), min(bar[2] for bar in bars), bars[-1][3]])
        for stamp, bars in parts.items()
        if len(bars) == long_ms // short_ms
    ]


def _ohlc_range_of(interval: str) -> _OhlcRange:
    if interval not in _OHLC_RANGES:
        raise ValueError(f"interval is {interval!r}; CoinGecko has candles of {', '.join(_OHLC_RANGES)}")
    return _OHLC_RANGES[interval]


def _midnight_after(moment: datetime) -> datetime:
    return from_ms(-(-to_ms(moment) // DAY_MS) * DAY_MS)


def _clock_of_this_machine() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


def _check_key(plan: str, api_key: str | None) -> None:
    if plan not in _BASE_URLS:
        raise ValueError(f"unknown CoinGecko plan {plan!r}; known: {', '.join(_BASE_URLS)}")
    if (api_key is None) != (plan == "public"):
        raise ValueError(
            f"the CoinGecko plan {plan!r} {'takes no' if plan == 'public' else 'needs an'} API key; "
            "set plan and key together"
        )
    # requests quotes a header value it rejects, so a broken key must not get that far.
    if api_key is not None and not (
        api_key.isascii() and api_key.isprintable() and [api_key] == api_key.split()
    ):
        raise ValueError("the CoinGecko API key is empty or has blanks or special characters; copy it again")


def _parse_coins(payload: object) -> pa.Table:
    rows = [_identity(coin) for coin in _objects(payload)]
    table = pa.Table.from_pylist(rows, schema=COIN_SCHEMA)
    if len(table.column("coin_id").unique()) != len(table):
        raise ValueError(f"the ids of the {len(table)} coins are not unique")
    return table


def _parse_markets(payload: object) -> list[dict[str, object]]:
    return [
        {
            **_identity(coin),
            "market_cap_rank": _rank(coin.get("market_cap_rank")),
            "market_cap_usd": _number(coin.get("market_cap"), "market_cap") or None,
            "price_usd": _number(coin.get("current_price"), "current_price") or None,
            "volume_usd": _number(coin.get("total_volume"), "total_volume"),
        }
        for coin in _objects(payload)
    ]


def _parse_market_caps(payload: object, coin_id: str, start_ms: int, end_ms: int) -> pa.Table:
    if not isinstance(payload, dict):
        raise TypeError(f"an object of three series was expected, {_shown(payload)} came")
    prices, caps, volumes = (_daily(payload, key) for key in ("prices", "market_caps", "total_volumes"))
    stamps = sorted(prices.keys() | caps.keys() | volumes.keys())
    rows = [
        {
            "coin_id": coin_id,
            "ts": from_ms(stamp - DAY_MS),
            "price_usd": prices.get(stamp) or None,
            "market_cap_usd": caps.get(stamp) or None,
            "volume_usd": volumes.get(stamp),
        }
        for stamp in stamps
        if start_ms <= stamp - DAY_MS < end_ms
    ]
    return pa.Table.from_pylist(rows, schema=MARKET_CAP_SCHEMA)


def _daily(payload: Mapping[str, object], key: str) -> dict[int, float | None]:
    points = payload.get(key)
    if not isinstance(points, list):
        raise TypeError(f"a list {key!r} was expected, {_shown(points)} came")
    # Of repeated stamps, as they come where ranges join, the last one stays.
    return {stamp: value for stamp, (value,) in _stamped(points, 2, key) if stamp % DAY_MS == 0}


def _parse_candles(payload: object) -> list[tuple[int, list[float]]]:
    if not isinstance(payload, list):
        raise TypeError(f"a list of candles was expected, {_shown(payload)} came")
    candles = []
    for stamp, (open_, high, low, close) in _stamped(payload, 5, "ohlc"):
        if open_ is None or high is None or low is None or close is None:
            raise ValueError(f"the candle stamped {stamp} has a null price")
        if not 0 < low <= min(open_, close) or not high >= max(open_, close):
            raise ValueError(
                f"0 < low <= open, close <= high must hold, but the candle stamped {stamp} is "
                f"{[open_, high, low, close]}"
            )
        candles.append((stamp, [open_, high, low, close]))
    return candles


def _ohlc_table(coin_id: str, interval: str, rows: Sequence[tuple[int, list[float]]]) -> pa.Table:
    columns = [
        [coin_id] * len(rows),
        [interval] * len(rows),
        [from_ms(start) for start, _ in rows],
        *([prices[i] for _, prices in rows] for i in range(4)),
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, OHLC_SCHEMA, strict=True)]
    return pa.table(arrays, schema=OHLC_SCHEMA)


def _stamped(points: Iterable[object], width: int, what: str) -> Iterable[tuple[int, list[float | None]]]:
    for point in points:
        if not isinstance(point, list) or len(point) != width or type(point[0]) is not int:
            raise ValueError(
                f"a point of {what} must be [milliseconds, {width - 1} values], {_shown(point)} came"
            )
        yield point[0], [_number(value, what) for value in point[1:]]


def _objects(payload: object) -> list[dict]:
    if not isinstance(payload, list):
        raise TypeError(f"a list of coins was expected, {_shown(payload)} came")
    for coin in payload:
        if not isinstance(coin, dict):
            raise TypeError(f"a coin must be an object, {_shown(coin)} came")
    return payload


def _identity(coin: Mapping[str, object]) -> dict[str, object]:
    identity = {"coin_id": coin.get("id"), "ticker": coin.get("symbol"), "name": coin.get("name")}
    if not all(isinstance(text, str) for text in identity.values()) or not identity["coin_id"]:
        raise ValueError(f"a coin must state id, symbol and name, {identity} came")
    return identity


def _rank(value: object) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"market_cap_rank must be a positive integer or null, {value!r} came")
    return value


def _number(value: object, what: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{what} must be a finite number, not negative, or null, {value!r} came")
    return float(value)


def _read_failure(error: Exception) -> Failure | None:
    import requests

    if isinstance(error, requests.exceptions.JSONDecodeError | requests.exceptions.ContentDecodingError):
        return "garbled"
    if isinstance(error, requests.exceptions.ConnectionError | requests.exceptions.Timeout):
        return "refused" if isinstance(error, requests.exceptions.SSLError) else "unavailable"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "unavailable"
    if isinstance(error, requests.exceptions.RequestException):
        return "refused"
    # pycoingecko raises a bare ValueError for every body it cannot decode or that comes with an error status.
    return "garbled" if isinstance(error, ValueError) else None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
