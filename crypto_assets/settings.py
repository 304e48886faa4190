"""The settings: ``platform.yaml`` and the environment become one frozen, validated object.

Here: what may be set, its type and its bounds; the only reader of the environment. Not here: anything derived from
data. Everybody may import it; asset bodies receive the object as the resource ``settings``.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import date, datetime, time, timedelta
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NaiveDatetime,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
    with_config,
)
from pydantic_core import ErrorDetails
from typing_extensions import TypedDict

from crypto_assets.intervals import DAY_MS, REBALANCE_PERIOD, WEEK, interval_delta, interval_ms
from crypto_assets.measurements import COMMAND, NAME, Measurements, by_key, read_measurements
from crypto_assets.quant.cross_section import Standing, standings
from crypto_assets.quant.feature_sets import BAR_COLUMNS, FeatureSet, unit_of
from crypto_assets.quant.generators import entry_of
from crypto_assets.quant.generators.declared import Grid, Options
from crypto_assets.quant.labels import LabelSet, Terms
from crypto_assets.quant.labels import entry_of as label_entry_of
from crypto_assets.quant.panel import IDENTITY
from crypto_assets.quant.warm_up import settled
from crypto_assets.reserved import RESERVED_WORDS
from crypto_assets.schemas import FIXED_TABLES

PREFIX = "CRYPTO_ASSETS_"
WORLDS = ("synthetic", "recorded", "live")
#: Columns of the raster that a feature set may read -> their units.
RASTER_COLUMNS: dict[str, str] = {
    column.name: unit_of(column.name)
    for column in FIXED_TABLES["rollups/raster"].columns
    if column.type in ("DOUBLE", "BIGINT")
}

#: What the simulated exchanges speak, and what the synthetic market trades: ``simulation.synthetic_days.COINS`` against
#: USDT. Only what serves that market may import it, so a test holds the two equal.
SYNTHETIC_QUOTE = "USDT"
SIMULATED_VENUES = ("binance", "bybit")
SYNTHETIC_SYMBOLS = ("BTC", "ETH", "BNB", "SOL", "XRP", "ADA", "DOGE", "AVAX", "LINK", "LTC", "ARB", "SRM")


class SettingsError(ValueError):
    """The settings cannot be used; the message names file, key, value and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True)


def _interval(value: str) -> str:
    interval_ms(value)
    return value


def _rollup_interval(value: str) -> str:
    return value if value == WEEK else _interval(value)


def _duration(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value
    # A bare number would be read as seconds.
    match = re.fullmatch(r"(\d+)(m|h|d)", value) if isinstance(value, str) else None
    if not match:
        raise ValueError("write a duration as a number and m, h or d, such as 24h")
    return (
        int(match[1]) * {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}[match[2]]
    )


def _clock_time(value: Any) -> Any:
    # YAML reads an unquoted 13:00 as the number 780, which would then be taken for seconds.
    if not isinstance(value, time) and not (isinstance(value, str) and re.fullmatch(r"\d\d:\d\d", value)):
        raise ValueError('write a UTC time in quotes, such as "01:00"')
    return value


def _hours(value: timedelta) -> str:
    minutes = value // timedelta(minutes=1)
    return f"{minutes}m" if minutes % 60 else f"{minutes // 60}h"


def _once(value: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = sorted({item for item in value if value.count(item) > 1})
    if twice:
        raise ValueError(f"named twice: {', '.join(map(str, twice))}; name each once")
    return value


Interval = Annotated[str, AfterValidator(_interval)]
RollupInterval = Annotated[str, AfterValidator(_rollup_interval)]


def _table_name(value: str) -> str:
    if value in RESERVED_WORDS:
        raise ValueError(f"{value} means something else to SQL, Python or Dagster; choose another name")
    return value


#: A table of its own stage.
SetName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$"), AfterValidator(_table_name)]
Share = Annotated[float, Field(gt=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
AssetCode = Annotated[str, Field(pattern=r"^[A-Z0-9]{1,15}$")]
AssetCodes = Annotated[tuple[AssetCode, ...], AfterValidator(_once)]
#: A market as ccxt names it: BASE/QUOTE, of a contract with :SETTLE.
MarketName = Annotated[str, Field(pattern=r"^[A-Z0-9]{1,15}/[A-Z0-9]{1,15}(:[A-Z0-9]{1,15})?$")]
#: The exchange's own words; contract types come with blanks in them.
StatusWord = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_ ]*$")]


class Warehouse(_Section):
    """Where the tables lie."""

    folder: Path


class Universe(_Section):
    """What is collected, and what may be held (conventions of the point-in-time universe)."""

    quote: AssetCode
    symbols: AssetCodes = ()
    ignore: AssetCodes = ()
    top: int = Field(default=0, ge=0, validate_default=True)
    min_turnover_24h_quote: NotNegative = 0.0
    statuses: Annotated[tuple[StatusWord, ...], AfterValidator(_once)] = ("TRADING",)
    permissions: Annotated[tuple[StatusWord, ...], AfterValidator(_once)] = ("SPOT",)
    contract_types: Annotated[tuple[StatusWord, ...], AfterValidator(_once)] = ()
    min_history_days: int = Field(ge=1, le=30)  # the features look back 30 days
    max_bar_age: int = Field(ge=0, le=48)  # the raster ends 48 h after the last bar
    min_turnover_quote: NotNegative
    pegged: AssetCodes = ()
    wrapped: AssetCodes = ()

    @property
    def markets(self) -> tuple[str, ...]:
        """The symbols as BASE/QUOTE, sorted; what ``top`` adds is in raw/universe."""
        return tuple(sorted(f"{base}/{self.quote}" for base in self.symbols))

    @property
    def market_types(self) -> tuple[Literal["spot", "perpetual", "delivery"], ...]:
        """Types of market that the exchange is asked for: contracts only where some are wanted."""
        return ("spot", "perpetual", "delivery") if self.contract_types else ("spot",)

    @property
    def excluded_bases(self) -> tuple[str, ...]:
        """Base assets that are never held: pegged and wrapped ones."""
        return tuple(sorted({*self.pegged, *self.wrapped}))

    @field_validator("symbols")
    @classmethod
    def _bases(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if info.data.get("quote") in value:
            raise ValueError(
                f"{info.data['quote']} is the quote; allowed: the coins that are traded against it"
            )
        return value

    @field_validator("ignore")
    @classmethod
    def _not_wanted(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        both = sorted({*value} & {*info.data.get("symbols", ())})
        if both:
            raise ValueError(f"{', '.join(both)} is in symbols as well; name it in one of the two")
        return value

    @field_validator("top")
    @classmethod
    def _not_empty(cls, value: int, info: ValidationInfo) -> int:
        if not value and not info.data.get("symbols", True):
            raise ValueError(
                "symbols is empty, too; name coins there, or how many of the largest to take here"
            )
        return value

    @field_validator("wrapped")
    @classmethod
    def _not_pegged(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        both = sorted({*value} & {*info.data.get("pegged", ())})
        if both:
            raise ValueError(f"{', '.join(both)} is pegged as well; name it in one of the two")
        return value


class Listing(_Section):
    """One life of a symbol whose ticker was used by more than one coin, in [valid_from, valid_to)."""

    symbol: str = Field(pattern=r"^[A-Z0-9]{1,15}/[A-Z0-9]{1,15}$")
    listing_id: str
    coin_id: str | None = None
    valid_from: NaiveDatetime | None = None
    valid_to: NaiveDatetime | None = None
    #: When the end became known, valid_to at the latest: the life ends there. In raw/listings.
    known_at: NaiveDatetime | None = None
    #: The symbol under which the same coin went on.
    renamed_to: MarketName | None = None

    @property
    def span(self) -> tuple[datetime, datetime]:
        """Start and end of the life; the first and the last moment there is where no bound is given."""
        return self.valid_from or datetime.min, self.valid_to or datetime.max  # noqa: DTZ901 - naive UTC

    @model_validator(mode="after")
    def _one_life(self) -> Listing:
        if not re.fullmatch(re.escape(self.symbol) + r"#[1-9]\d*", self.listing_id):
            raise ValueError(
                f"listing_id {self.listing_id}: write the symbol, # and a number, such as {self.symbol}#1"
            )
        start, end = self.span
        if end <= start:
            raise ValueError(f"valid_to {end} must lie after valid_from {start}")
        if self.known_at and self.known_at > end:
            raise ValueError(
                f"known_at {self.known_at} must not lie after valid_to {end}, which would look ahead"
            )
        if self.known_at and not self.valid_to:
            raise ValueError(f"known_at {self.known_at} says when the end became known: give valid_to, too")
        return self


class DeclaredFeatures(_Section):
    """One feature set: what is computed on the rows of one interval; the table is ``features/<name>``.

    Attributes
    ----------
    interval
        None: the raster's, with every column of the raster; else a rolled-up one, with the columns of its bars.
    entries
        A generator and its parameters each.
    """

    interval: Interval | None = None
    entries: Annotated[
        tuple[SerializeAsAny[Annotated[Options, BeforeValidator(entry_of)]], ...], Field(min_length=1)
    ]


class FeatureRows(NamedTuple):
    """Rows that a feature set reads: a table, its columns (None: all) and a condition in SQL (None: all rows)."""

    table: str
    columns: tuple[str, ...] | None
    where: str | None


class CrossSection(_Section):
    """What is compared among the symbols that are eligible at a moment; the table is ``features/cross_section``.

    Attributes
    ----------
    ranks, zscores
        Columns of the raster and of the feature sets on its interval.
    """

    ranks: Annotated[tuple[str, ...], AfterValidator(_once)] = ()
    zscores: Annotated[tuple[str, ...], AfterValidator(_once)] = ()


class MaxAges(_Section):
    """How long what was known of a source is carried in the raster: younger than this at the end of the row, else NULL.

    Attributes
    ----------
    contract
        Mark price and premium index; at most a raster interval, which is what a row can read of its own day.
    """

    market_cap: timedelta = timedelta(days=3)
    contract: timedelta = timedelta(hours=1)
    funding_rate: timedelta = timedelta(hours=9)
    open_interest: timedelta = timedelta(hours=2)
    order_book: timedelta = timedelta(minutes=15)

    _parse = field_validator(
        "market_cap", "contract", "funding_rate", "open_interest", "order_book", mode="before"
    )(_duration)

    @field_validator("market_cap", "contract", "funding_rate", "open_interest", "order_book")
    @classmethod
    def _some_days(cls, value: timedelta) -> timedelta:
        if not timedelta() < value <= timedelta(days=_LONGEST_AGE_DAYS):
            raise ValueError(f"{_hours(value)} is not allowed; allowed: 1m to {_LONGEST_AGE_DAYS}d")
        return value


#: Every day of the raster reads so many days before it at most.
_LONGEST_AGE_DAYS = 30


class Raster(_Section):
    """What the merged raster takes from other sources."""

    max_age: MaxAges = MaxAges()


class DeclaredLabels(_Section):
    """One label set on the raster; the table is ``labels/<name>``.

    Attributes
    ----------
    entries
        A family of labels and its parameters each.
    """

    entries: Annotated[
        tuple[SerializeAsAny[Annotated[Options, BeforeValidator(label_entry_of)]], ...],
        Field(min_length=1),
    ]


class Labels(_Section):
    """What is predicted.

    Attributes
    ----------
    horizon
        Of ``labels/forward_returns``: one rebalance period.
    sets
        What else is made, by name.
    """

    horizon: timedelta
    sets: dict[SetName, DeclaredLabels] = Field(default_factory=dict)

    _parse = field_validator("horizon", mode="before")(_duration)

    @property
    def horizon_name(self) -> str:
        """The horizon in hours, as it stands in tables: ``24h``."""
        return f"{self.horizon // timedelta(hours=1)}h"


class Factors(_Section):
    """Which alpha factors are computed."""

    names: Annotated[
        tuple[Literal["factor_001", "factor_002", "factor_003"], ...],
        Field(min_length=1),
        AfterValidator(_once),
    ]


Quantiles = Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)]


class Weights(_Section):
    """How factor weights are fitted."""

    train_weeks: Positive
    return_quantiles: Quantiles
    factor_quantiles: Quantiles
    min_pairs: Positive

    @field_validator("return_quantiles", "factor_quantiles")
    @classmethod
    def _increasing(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError("quantiles must increase strictly")
        return value


@with_config(ConfigDict(extra="forbid", allow_inf_nan=False))
class Parameters(TypedDict, total=False, closed=True):
    """What a model may tell LightGBM: its own names, no aliases. What makes a fit repeat to the bit is fixed."""

    num_boost_round: Positive
    learning_rate: Share
    num_leaves: Annotated[int, Field(ge=2, le=131072)]
    max_depth: Annotated[int, Field(ge=-1)]
    min_data_in_leaf: Annotated[int, Field(ge=0)]
    min_sum_hessian_in_leaf: NotNegative
    min_gain_to_split: NotNegative
    feature_fraction: Share
    feature_fraction_bynode: Share
    bagging_fraction: Share
    bagging_freq: Annotated[int, Field(ge=0)]
    lambda_l1: NotNegative
    lambda_l2: NotNegative
    path_smooth: NotNegative
    max_delta_step: NotNegative
    max_bin: Annotated[int, Field(ge=2)]
    min_data_in_bin: Positive
    scale_pos_weight: Annotated[float, Field(gt=0)]
    extra_trees: bool


class Model(_Section):
    """One prediction model."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    algorithm: Literal["lightgbm"]
    features: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_once)] | None = None
    train_weeks: Positive
    calibration_weeks: Positive
    min_rows: Positive
    parameters: Parameters = Field(default_factory=Parameters)

    @model_validator(mode="after")
    def _room_to_train(self) -> Model:
        if self.calibration_weeks >= self.train_weeks:
            raise ValueError(
                "calibration_weeks must be less than train_weeks, else nothing is left to train on"
            )
        return self


class EmaCross(_Section):
    """The EMA-cross rule with decay."""

    short: Positive
    long: Positive
    decay: float = Field(gt=0, lt=1)
    max_age: Positive

    @model_validator(mode="after")
    def _ordered(self) -> EmaCross:
        if self.short >= self.long:
            raise ValueError(f"short ({self.short}) must be less than long ({self.long})")
        return self


class Signals(_Section):
    """Trading rules."""

    ema_cross: EmaCross
    threshold_grid: tuple[Annotated[float, Field(gt=0.5, lt=1)], ...] = Field(min_length=1)
    threshold_weeks: Positive
    threshold_min_pairs: Positive


class Portfolio(_Section):
    """Black-Litterman holdings."""

    rebalance: Literal["hourly", "daily", "weekly"]
    decision_time: time
    lookback_bars: int = Field(ge=24)
    delta: float = Field(gt=0)
    tau: Share
    max_weight: Share
    max_cap_age_days: int = Field(ge=1, le=3)  # the raster carries no older cap
    min_cap_coverage: Share
    view_weeks: Positive
    min_view_pairs: Positive

    _parse = field_validator("decision_time", mode="before")(_clock_time)


class Costs(_Section):
    """What trading costs, and how long an order waits."""

    fee_bps: NotNegative
    slippage_bps: NotNegative
    fill_wait: timedelta
    death_after: timedelta

    _parse = field_validator("fill_wait", "death_after", mode="before")(_duration)


class OrderBooks(_Section):
    """Which order books are collected, how deep and how long their levels are kept."""

    symbols: tuple[MarketName, ...] = ()
    levels: int = Field(default=100, ge=1, le=5000)
    every: timedelta = timedelta(minutes=5)
    keep_days: int | None = Field(default=30, ge=1)
    bin_size_bps: float = Field(default=1.0, gt=0)

    _parse = field_validator("every", mode="before")(_duration)

    @field_validator("every")
    @classmethod
    def _minutes(cls, value: timedelta) -> timedelta:
        if not value or timedelta(hours=1) % value:
            raise ValueError(
                f"{_hours(value)} does not divide an hour; allowed: 1m, 5m, 10m, 15m, 30m, 1h ..."
            )
        return value


class CoinOhlc(_Section):
    """Which candles of CoinGecko are collected, for the coins behind the universe."""

    intervals: Annotated[tuple[Literal["1d", "1h"], ...], AfterValidator(_once)] = ()


class Sources(_Section):
    """How the sources are asked, and what of them is collected."""

    timeout_s: float = Field(gt=0)
    exchange_weight_per_minute: Positive
    usdm_weight_per_minute: Positive = 1920
    coingecko_calls_per_minute: Positive
    coingecko_calls_per_month: Positive | None = None
    concurrency: int = Field(default=8, ge=1, le=64)
    klines: Literal["rest", "archive", "both"] = "both"
    overlap_bars: int = Field(default=60, ge=0, le=500)
    first_load_days: Positive = 30
    futures_kinds: Annotated[tuple[Literal["trade", "mark", "premium"], ...], AfterValidator(_once)] = (
        "trade",
        "mark",
        "premium",
    )
    open_interest_period: Literal["5m", "15m", "30m", "1h", "2h", "4h", "6h", "12h", "1d"] | None = "1h"
    order_books: OrderBooks = OrderBooks()
    coin_ohlc: CoinOhlc = CoinOhlc()


class Synthetic(_Section):
    """The seeded world."""

    seed: int = Field(ge=0)
    drift_frac: float = Field(ge=0, lt=0.1)


class Recorded(_Section):
    """The world made of recordings: glob patterns relative to a folder, as ``simulation.recordings`` reads them."""

    folder: Path
    klines: tuple[str, ...] = Field(min_length=1)
    coingecko: tuple[str, ...] = ()
    futures: tuple[str, ...] = ()
    funding: tuple[str, ...] = ()
    open_interest: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()
    exchange_info: tuple[str, ...] = ()
    coins_list: str | None = None


class Simulation(_Section):
    """The market in a box."""

    port: int = Field(ge=1, le=65535)
    now: NaiveDatetime
    synthetic: Synthetic
    recorded: Recorded | None = None


class Environment(_Section):
    """What only the environment says: addresses and secrets. Never shown."""

    exchange_url: str | None = Field(default=None, repr=False)
    archive_url: str | None = Field(default=None, repr=False)
    coingecko_url: str | None = Field(default=None, repr=False)
    coingecko_demo_key: str | None = Field(default=None, repr=False)
    coingecko_pro_key: str | None = Field(default=None, repr=False)


class Measured(_Section):
    """What was measured of the declared features; the file beside ``platform.yaml``, which a command writes.

    Attributes
    ----------
    entries
        None: not looked at, so that what a declaration leaves open can be measured; good for names, not for values.
    """

    file: Path = Path(NAME)
    entries: Measurements | None = Field(default_factory=dict, repr=False)


class Settings(_Section):
    """All settings of one deployment; see ``platform.yaml`` for the meaning of each key."""

    world: Literal["synthetic", "recorded", "live"]
    warehouse: Warehouse
    venue: str = Field(pattern=r"^[a-z][a-z0-9]*$")
    start: date
    end: date | None
    base_interval: Interval
    raster_interval: Interval
    rollup_intervals: Annotated[tuple[RollupInterval, ...], Field(min_length=1), AfterValidator(_once)]
    raster: Raster = Raster()
    universe: Universe
    listings: tuple[Listing, ...] = ()
    coins: dict[str, str] = Field(default_factory=dict)
    coin_kinds: dict[str, Literal["coin", "stable", "wrapped", "staked", "bridged", "pegged"]] = Field(
        default_factory=dict
    )
    features: dict[SetName, DeclaredFeatures] = Field(default_factory=dict)
    cross_section: CrossSection = CrossSection()
    labels: Labels
    factors: Factors
    weights: Weights
    models: tuple[Model, ...] = Field(min_length=1)
    signals: Signals
    portfolio: Portfolio
    costs: Costs
    sources: Sources
    simulation: Simulation
    environment: Environment = Environment()
    measured: Measured = Measured()

    @field_validator("listings")
    @classmethod
    def _separate_lives(cls, value: tuple[Listing, ...]) -> tuple[Listing, ...]:
        _once(tuple(listing.listing_id for listing in value))
        for earlier, later in pairwise(sorted(value, key=lambda listing: (listing.symbol, listing.span))):
            if earlier.symbol == later.symbol and later.span[0] < earlier.span[1]:
                raise ValueError(
                    f"{earlier.listing_id} and {later.listing_id} overlap; "
                    f"bound the lives of {later.symbol} with valid_from and valid_to"
                )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        # Each line begins with the key to blame, see _offences.
        off_grid = list(self._off_the_grid())
        found = [
            *off_grid,
            *self._outside_the_universe(),
            # Off the grid windows are no bars either, which would say the same once for every set.
            *(() if off_grid else self._not_computable()),
            *self._out_of_time(),
            *self._not_in_the_world(),
        ]
        if found:
            raise ValueError("\n".join(found))
        return self

    def _off_the_grid(self) -> Iterator[str]:
        base, raster = interval_ms(self.base_interval), interval_delta(self.raster_interval)
        for interval in self.daily_intervals:
            if interval_ms(interval) % base:
                yield f"rollup_intervals: {interval} is not a multiple of base_interval {self.base_interval}"
        if WEEK in self.rollup_intervals and "1d" not in self.rollup_intervals:
            yield f"rollup_intervals: {WEEK} is made of 1d; name both"
        if self.raster.max_age.contract > raster:
            yield (
                f"raster.max_age.contract: {_hours(self.raster.max_age.contract)} is longer than a row; "
                f"allowed: up to raster_interval {self.raster_interval}"
            )
        yield from self._never_young()
        if self.raster_interval not in self.rollup_intervals:
            yield f"rollup_intervals: must contain raster_interval {self.raster_interval}"
        if self.raster_interval != "1h":
            yield f"raster_interval: {self.raster_interval} is not supported; allowed: 1h (feature names state hours)"
        period = REBALANCE_PERIOD[self.portfolio.rebalance]
        if self.labels.horizon != period:
            yield (
                f"labels.horizon: {_hours(self.labels.horizon)} is not the rebalance period; "
                f"allowed for portfolio.rebalance {self.portfolio.rebalance}: {_hours(period)}"
            )
        at = self.portfolio.decision_time
        if (datetime.combine(self.start, at) - datetime.combine(self.start, time())) % raster:
            yield f"portfolio.decision_time: {at} is not the end of a bar; allowed: multiples of {self.raster_interval}"
        for name, least in (("fill_wait", timedelta()), ("death_after", raster)):
            value = getattr(self.costs, name)
            if value < least or value % raster:
                yield (
                    f"costs.{name}: {_hours(value)} is not a number of bars; "
                    f"allowed: multiples of {self.raster_interval} from {_hours(least)}"
                )

    def _never_young(self) -> Iterator[str]:
        # A sample is as old as it is at the end of the row after the one in which it was taken.
        raster, ages, sources = interval_delta(self.raster_interval), self.raster.max_age, self.sources
        period = sources.open_interest_period
        books = sources.order_books
        for key, age, needed, why in (
            ("market_cap", ages.market_cap, timedelta(days=1) - raster, "caps are told once a day"),
            ("funding_rate", ages.funding_rate, raster, "a settlement is a row old when it is joined"),
            (
                "open_interest",
                ages.open_interest,
                max(raster, interval_delta(period)) if period else timedelta(),
                f"sources.open_interest_period is {period}",
            ),
            (
                "order_book",
                ages.order_book,
                books.every if books.symbols else timedelta(),
                f"sources.order_books.every is {_hours(books.every)}",
            ),
        ):
            if age <= needed:
                yield (
                    f"raster.max_age.{key}: {_hours(age)} leaves rows without it, since {why}; "
                    f"allowed: more than {_hours(needed)}"
                )

    def _outside_the_universe(self) -> Iterator[str]:
        models = [model.name for model in self.models]
        if len(set(models)) < len(models):
            yield f"models: a name occurs twice in {', '.join(models)}; give each model its own"
        known = self.universe.markets
        for key, symbols in (
            ("listings", [listing.symbol for listing in self.listings]),
            ("coins", list(self.coins)),
        ):
            for symbol in symbols:
                if symbol not in known:
                    yield f"{key}: {symbol} is not in the universe; allowed: {', '.join(known)}"

    def _not_computable(self) -> Iterator[str]:
        owners: dict[str, str] = {}
        broken = False
        for name, declared in self.features.items():
            if f"features/{name}" in FIXED_TABLES or name == "cross_section":
                yield f"features.{name}: this table is always made; choose another name"
            if declared.interval not in (None, *self.daily_intervals):
                broken = True
                yield (
                    f"features.{name}.interval: {declared.interval} is not rolled up; "
                    f"allowed: {', '.join(self.daily_intervals)}"
                )
                continue
            try:
                columns = [feature.name for feature in self.feature_sets[name].features]
            except ValueError as error:
                broken = True
                yield f"features.{name}.entries: {error}"
                continue
            for column in columns:
                if column in owners:
                    yield f"features.{name}.entries: {column} is made by {owners[column]} already; choose other names"
            owners |= dict.fromkeys(columns, f"features/{name}")
            yield from self._longer_than_history(name)
        for name, chosen in self.label_sets.items():
            if f"labels/{name}" in FIXED_TABLES:
                yield f"labels.sets.{name}: this table is always made; choose another name"
            try:
                _ = chosen.labels
            except ValueError as error:
                yield f"labels.sets.{name}.entries: {error}"
        # What a broken set would have made is not known, so neither is what of it does not exist.
        if not broken:
            yield from self._not_among_features(owners)

    def _longer_than_history(self, name: str) -> Iterator[str]:
        # Of the live world's present nothing is known here; there a window is filled some day.
        last = self.end or (self.simulation.now.date() if self.simulated else None)
        if last is None:
            return
        chosen = self.feature_sets[name]
        for place, (entry, columns) in enumerate(zip(chosen.entries, chosen.by_entry, strict=True)):
            for feature in columns:
                needed = feature.warm_up * chosen.grid.bar
                if needed >= last - self.start:
                    yield (
                        f"features.{name}.entries: entry {place} ({entry.generator}): {feature.name} needs "
                        f"{needed / timedelta(days=1):g} days of history, but there are {(last - self.start).days} from "
                        f"start {self.start} to {last}; shorten its window or move start"
                    )

    def _not_among_features(self, owners: Mapping[str, str]) -> Iterator[str]:
        try:
            for one in self.standings:
                if one.name in owners:
                    yield f"cross_section: {one.name} is made by {owners[one.name]} already; choose other names there"
        except ValueError as error:
            yield f"cross_section: {error}"
            return
        if not self.feature_tables:
            yield "models: there is no feature to fit on; declare a set on the raster's interval"
            return
        for place, model in enumerate(self.models):
            unknown = [column for column in model.features or () if column not in self.feature_tables]
            if unknown:
                yield (
                    f"models.{place}.features: unknown feature {', '.join(unknown)}; "
                    f"allowed: {', '.join(self.feature_tables)}"
                )

    def _out_of_time(self) -> Iterator[str]:
        if self.end is not None and self.end <= self.start:
            yield f"end: {self.end} is not after start {self.start}"
        if self.simulated and self.simulation.now.date() < self.start:
            yield f"simulation.now: {self.simulation.now} is before start {self.start}"

    def _not_in_the_world(self) -> Iterator[str]:
        if self.simulated and self.venue not in SIMULATED_VENUES:
            yield f"venue: {self.venue} is not simulated; allowed: {', '.join(SIMULATED_VENUES)}"
        if self.world == "recorded" and self.simulation.recorded is None:
            yield "simulation.recorded: is missing; the recorded world needs a folder and klines patterns"
        if self.world == "synthetic":
            for key, values, allowed in (
                ("quote", [self.universe.quote], [SYNTHETIC_QUOTE]),
                ("symbols", self.universe.symbols, SYNTHETIC_SYMBOLS),
            ):
                unknown = [value for value in values if value not in allowed]
                if unknown:
                    yield (
                        f"universe.{key}: the synthetic world has no {', '.join(unknown)}; "
                        f"allowed: {', '.join(allowed)}"
                    )

    @cached_property
    def feature_sets(self) -> dict[str, FeatureSet]:
        """The declared feature sets by name."""
        found = {}
        stored = None if self.measured.entries is None else by_key(self.measured.entries)
        for name, declared in self.features.items():
            interval = self.interval_of(name)
            columns = RASTER_COLUMNS if interval == self.raster_interval else BAR_COLUMNS
            grid = Grid(interval_delta(interval), columns)
            entries, measured = settled(declared.entries, grid, stored)
            found[name] = FeatureSet(name, replace(grid, measured=measured), entries)
        return found

    @cached_property
    def label_sets(self) -> dict[str, LabelSet]:
        """The declared label sets by name."""
        bar, costs = interval_delta(self.raster_interval), self.costs
        terms = Terms(bar, RASTER_COLUMNS, costs.fill_wait, costs.death_after)
        return {name: LabelSet(name, terms, declared.entries) for name, declared in self.labels.sets.items()}

    @cached_property
    def _raster_features(self) -> dict[str, str]:
        return {
            feature.name: f"features/{name}"
            for name, chosen in self.feature_sets.items()
            if self.interval_of(name) == self.raster_interval
            for feature in chosen.features
        }

    @cached_property
    def standings(self) -> tuple[Standing, ...]:
        """The columns of ``features/cross_section``; ``ValueError`` if one cannot be made."""
        raster = dict.fromkeys(RASTER_COLUMNS, "rollups/raster")
        compared = self.cross_section
        return standings(compared.ranks, compared.zscores, raster | self._raster_features)

    @cached_property
    def feature_tables(self) -> dict[str, str]:
        """Columns that a model may use -> the table they are in: those of the raster's interval."""
        ranked = dict.fromkeys((one.name for one in self.standings), "features/cross_section")
        return self._raster_features | ranked

    def features_of(self, model: Model) -> tuple[str, ...]:
        """The columns that a model uses: those it names, else all it may."""
        return model.features or tuple(self.feature_tables)

    def rows_of(self, name: str) -> FeatureRows:
        """What a declared feature set is computed on."""
        if self.interval_of(name) == self.raster_interval:
            columns = (*IDENTITY, "has_bar", *self.feature_sets[name].inputs)
            return FeatureRows("rollups/raster", columns, None)
        # Bars of other venues, which people may have imported, are none of the universe.
        where = f"venue = '{self.venue}' and interval = '{self.interval_of(name)}'"
        return FeatureRows("rollups/klines", None, where)

    def interval_of(self, name: str) -> str:
        """Interval of a declared feature set; the raster's has the raster's columns, another one those of its bars."""
        return self.features[name].interval or self.raster_interval

    @property
    def simulated(self) -> bool:
        """Whether the sources are the market in a box."""
        return self.world != "live"

    @property
    def exchange_url(self) -> str | None:
        """Base address of the exchange; None is the venue's own."""
        # The market in a box speaks Binance at its root and every other venue below the venue's name.
        place = "" if self.venue == "binance" else f"/{self.venue}"
        default = f"http://127.0.0.1:{self.simulation.port}{place}" if self.simulated else None
        return self.environment.exchange_url or default

    @property
    def archive_url(self) -> str | None:
        """Base address of the exchange's public archive; None is the venue's own."""
        default = f"http://127.0.0.1:{self.simulation.port}" if self.simulated else None
        return self.environment.archive_url or default

    @property
    def coingecko_url(self) -> str | None:
        """Base address of CoinGecko; None is its own."""
        default = f"http://127.0.0.1:{self.simulation.port}/coingecko/api/v3/" if self.simulated else None
        return self.environment.coingecko_url or default

    @property
    def last_day(self) -> date | None:
        """First UTC day after the last partition; None means the present."""
        if self.end is not None or not self.simulated:
            return self.end
        return (self.simulation.now + timedelta(days=1)).date()

    @property
    def daily_intervals(self) -> tuple[str, ...]:
        """The roll-up intervals of up to a day; bars of a week lie in a table of their own."""
        return tuple(interval for interval in self.rollup_intervals if interval != WEEK)

    @property
    def bars_per_day(self) -> int:
        """Raster bars in a UTC day."""
        return DAY_MS // interval_ms(self.raster_interval)


def load_settings(
    path: Path | None = None, environment: Mapping[str, str] | None = None, *, measuring: bool = False
) -> Settings:
    """Read, overlay and validate the settings.

    Parameters
    ----------
    path
        The file; by default ``CRYPTO_ASSETS_CONFIG``, else ``platform.yaml`` in the working folder or beside the package.
    environment
        Variables; by default the process environment.
    measuring
        Whether features may leave open how much history they need though nothing is stored of it: see `Measured`.

    Raises
    ------
    SettingsError
        Naming the file, every offending key, its value and what is allowed.
    """
    environment = os.environ if environment is None else environment
    path = Path(path or environment.get(f"{PREFIX}CONFIG") or _default_path())
    raw = _read(path)
    world = environment.get(f"{PREFIX}WORLD") or raw.get("world")
    if world not in WORLDS:
        source = f"{PREFIX}WORLD" if environment.get(f"{PREFIX}WORLD") else f"{path}: world"
        raise SettingsError(f"{source}: {world!r} is not allowed; allowed: {', '.join(WORLDS)}")
    overlays = raw.pop("worlds", None) or {}
    if not isinstance(overlays, dict) or set(overlays) - set(WORLDS):
        raise SettingsError(f"{path}: worlds: {overlays!r} is not allowed; allowed keys: {', '.join(WORLDS)}")
    folder = path.resolve().parent
    # What a user writes beside the file, `module:function` finds, whoever loads it and from where.
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    stored = folder / NAME
    try:
        measured = {"file": stored, "entries": None if measuring else read_measurements(stored)}
    except ValueError as error:
        raise SettingsError(str(error)) from error
    settings, refused = None, []
    for name in dict.fromkeys((world, *overlays)):
        overlay = overlays.get(name) or {}
        if not isinstance(overlay, dict):
            raise SettingsError(f"{path}: worlds.{name}: {overlay!r} must hold keys and values")
        for key in sorted({"world", "worlds", "environment", "measured"} & set(overlay)):
            raise SettingsError(f"{path}: worlds.{name}.{key}: unknown key; it is no setting of one world")
        try:
            merged = _merged(path, raw, overlay, name, environment)
            valid = Settings.model_validate({**merged, "measured": measured})
            settings = valid if name == world else settings
        except ValidationError as error:
            refused += _explain(path, error, raw, overlay, name, chosen=name == world)
    if settings is None or refused:
        raise SettingsError("\n".join(refused))
    return settings


@cache
def current_settings() -> Settings:
    """The settings of this process, read once."""
    return load_settings(measuring=_measuring)


#: Whether this process measures.
_measuring = False


def measuring_settings() -> Settings:
    """The settings of a process that measures: from now on they are the current ones, whatever is not measured yet.

    To be called before anything reads the current settings, such as the contracts of all tables.
    """
    global _measuring
    _measuring = True
    current_settings.cache_clear()
    return current_settings()


def _default_path() -> Path:
    here = Path.cwd() / "platform.yaml"
    return here if here.is_file() else Path(__file__).resolve().parents[1] / "platform.yaml"


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot be read ({error.strerror}); set {PREFIX}CONFIG to your platform.yaml"
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: is not UTF-8 text: {error}") from error
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise SettingsError(f"{path}: must hold keys and values, not {type(raw).__name__}")
    return raw


def _merged(
    path: Path, raw: dict[str, Any], overlay: dict[str, Any], world: str, environment: Mapping[str, str]
) -> dict[str, Any]:
    merged = _overlay(raw, overlay)
    if "environment" in merged:
        raise SettingsError(
            f"{path}: environment: unknown key; addresses and secrets are read from the environment"
        )
    if "measured" in merged:
        raise SettingsError(f"{path}: measured: unknown key; `{COMMAND}` keeps it in {NAME}")
    merged["world"] = world
    merged["environment"] = {
        "exchange_url": environment.get(f"{PREFIX}EXCHANGE_URL"),
        "archive_url": environment.get(f"{PREFIX}ARCHIVE_URL"),
        "coingecko_url": environment.get(f"{PREFIX}COINGECKO_URL"),
        "coingecko_demo_key": environment.get("COINGECKO_DEMO_API_KEY"),
        "coingecko_pro_key": environment.get("COINGECKO_PRO_API_KEY"),
    }
    warehouse = merged.get("warehouse") or {}
    if environment.get(f"{PREFIX}DATA") and isinstance(warehouse, dict):
        merged["warehouse"] = {**warehouse, "folder": environment[f"{PREFIX}DATA"]}
    _resolve_folders(merged, path.resolve().parent, world)
    return merged


def _overlay(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in extra.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _overlay(merged[key], value) if both else value
    return merged


def _resolve_folders(raw: dict[str, Any], root: Path, world: str) -> None:
    warehouse = raw.get("warehouse")
    if isinstance(warehouse, dict) and isinstance(warehouse.get("folder"), str):
        raw["warehouse"] = {**warehouse, "folder": root / warehouse["folder"].replace("{world}", world)}
    simulation = raw.get("simulation")
    if isinstance(simulation, dict) and isinstance(simulation.get("recorded"), dict):
        recorded = simulation["recorded"]
        if isinstance(recorded.get("folder"), str):
            raw["simulation"] = {**simulation, "recorded": {**recorded, "folder": root / recorded["folder"]}}


def _explain(
    path: Path,
    error: ValidationError,
    raw: dict[str, Any],
    overlay: dict[str, Any],
    world: str,
    *,
    chosen: bool,
) -> list[str]:
    lines = []
    items = error.errors()
    for item in items:
        # A list whose only entry was refused is then called too short: noise.
        within = [other for other in items if other["loc"][: len(item["loc"])] == item["loc"]]
        if item["type"] == "too_short" and len(within) > 1:
            continue
        for place, text in _offences(item):
            ours = _sets(overlay, place)
            if item["type"] == "missing":
                ours = _sets(overlay, place[:-1]) and not _sets(raw, place[:-1])
            # Of a world that is not chosen only its own words count: the rest need not go together with it.
            if ours or chosen:
                key = ".".join(str(part) for part in (("worlds", world, *place) if ours else place))
                lines.append(f"{path}: {key}{text}")
    return lines


def _offences(item: ErrorDetails) -> list[tuple[tuple[int | str, ...], str]]:
    place, reason = item["loc"], item["msg"].removeprefix("Value error, ")
    if not place:
        found = [line.split(": ", 1) for line in reason.splitlines()]
        return [(tuple(key.split(".")), f": {text}") for key, text in found]
    if item["type"] == "missing":
        return [(place, ": is missing")]
    if item["type"] == "extra_forbidden":
        reason = f"unknown key; allowed: {', '.join(_allowed_keys(place[:-1]))}"
    return [(place, f" = {item['input']!r}: {reason}")]


def _sets(content: Any, place: tuple[int | str, ...]) -> bool:
    for part in place:
        if not isinstance(content, dict):
            return True
        if part not in content:
            return False
        content = content[part]
    return bool(place)


def _allowed_keys(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Settings
    for part in location:
        if isinstance(part, str):
            model = model.model_fields[part].annotation
        options = [model, *getattr(model, "__args__", ())]
        model = next(
            (option for option in options if isinstance(option, type) and issubclass(option, BaseModel)),
            model,
        )
    if model is Parameters:
        return sorted(Parameters.__annotations__)
    own = {"worlds"} if model is Settings else set()
    return sorted((set(model.model_fields) | own) - {"environment", "measured"})
