"""The settings: ``platform.yaml`` and the environment become one frozen, validated object.

Here: what may be set, its type and its bounds; the only reader of the environment. Not here: anything derived from
data. Everybody may import it; asset bodies receive the object as the resource ``settings``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import date, time, timedelta
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NaiveDatetime,
    ValidationError,
    field_validator,
    model_validator,
)

from crypto_assets.intervals import DAY_MS, INTERVAL_MS, interval_ms
from crypto_assets.schemas import TABLES

PREFIX = "CRYPTO_ASSETS_"
WORLDS = ("synthetic", "recorded", "live")
FEATURE_TABLES = ("features/price_action", "features/technical", "features/cross_section")
_NOT_FEATURES = {"symbol", "ts", "known_at", "listing_id", "n_eligible"}

#: Columns a model may use, in the order in which they are offered to it.
FEATURE_COLUMNS: tuple[str, ...] = tuple(
    column for name in FEATURE_TABLES for column in TABLES[name].column_names if column not in _NOT_FEATURES
)


class SettingsError(ValueError):
    """The settings cannot be used; the message names file, key, value and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True)


def _interval(value: str) -> str:
    interval_ms(value)
    return value


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


Interval = Annotated[str, Field(description="one of " + ", ".join(INTERVAL_MS))]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
AssetCode = Annotated[str, Field(pattern=r"^[A-Z0-9]{1,15}$")]


class Warehouse(_Section):
    """Where the tables lie."""

    folder: Path


class Universe(_Section):
    """What is collected, and what may be held (conventions of the point-in-time universe)."""

    quote: AssetCode
    symbols: tuple[AssetCode, ...] = Field(min_length=1)
    min_history_days: Positive
    max_bar_age: int = Field(ge=0)
    min_turnover_quote: float = Field(ge=0)
    pegged: tuple[AssetCode, ...] = ()
    wrapped: tuple[AssetCode, ...] = ()

    @property
    def markets(self) -> tuple[str, ...]:
        """The symbols as BASE/QUOTE, sorted."""
        return tuple(sorted(f"{base}/{self.quote}" for base in self.symbols))

    @property
    def excluded_bases(self) -> tuple[str, ...]:
        """Base assets that are never held: pegged and wrapped ones."""
        return tuple(sorted({*self.pegged, *self.wrapped}))

    @field_validator("symbols")
    @classmethod
    def _unique(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({symbol for symbol in value if value.count(symbol) > 1})
        if twice:
            raise ValueError(f"named twice: {', '.join(twice)}")
        return value


class Listing(_Section):
    """One life of a symbol whose ticker was used by more than one coin."""

    symbol: str = Field(pattern=r"^[A-Z0-9]{1,15}/[A-Z0-9]{1,15}$")
    listing_id: str
    coin_id: str | None = None
    valid_from: NaiveDatetime | None = None
    valid_to: NaiveDatetime | None = None
    known_at: NaiveDatetime | None = None


class Labels(_Section):
    """What is predicted."""

    horizon: timedelta

    _parse = field_validator("horizon", mode="before")(_duration)

    @property
    def horizon_name(self) -> str:
        """The horizon in hours, as it stands in tables: ``24h``."""
        return f"{self.horizon // timedelta(hours=1)}h"


class Factors(_Section):
    """Which alpha factors are computed."""

    names: tuple[Literal["factor_001", "factor_002", "factor_003"], ...] = Field(min_length=1)


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


class Model(_Section):
    """One prediction model."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    algorithm: Literal["lightgbm"]
    features: tuple[str, ...] = FEATURE_COLUMNS
    train_weeks: Positive
    calibration_weeks: Positive
    min_rows: Positive
    parameters: dict[str, float | int | str | bool] = Field(default_factory=dict)

    @field_validator("features")
    @classmethod
    def _known_columns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [column for column in value if column not in FEATURE_COLUMNS]
        if unknown:
            raise ValueError(f"unknown feature {', '.join(unknown)}; allowed: {', '.join(FEATURE_COLUMNS)}")
        return value

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
    lookback_bars: Positive
    delta: float = Field(gt=0)
    tau: float = Field(gt=0)
    max_weight: float = Field(gt=0, le=1)
    max_cap_age_days: int = Field(ge=1, le=3)  # the raster carries no older cap
    min_cap_coverage: Fraction
    view_weeks: Positive
    min_view_pairs: Positive

    _parse = field_validator("decision_time", mode="before")(_clock_time)


class Costs(_Section):
    """What trading costs, and how long an order waits."""

    fee_bps: float = Field(ge=0)
    slippage_bps: float = Field(ge=0)
    fill_wait: timedelta
    death_after: timedelta

    _parse = field_validator("fill_wait", "death_after", mode="before")(_duration)


class Sources(_Section):
    """Budgets of the sources."""

    timeout_s: float = Field(gt=0)
    exchange_weight_per_minute: Positive
    coingecko_calls_per_minute: Positive


class Synthetic(_Section):
    """The seeded world."""

    seed: int
    drift_frac: float = Field(default=0.004, ge=0, lt=0.1)


class Recorded(_Section):
    """The world made of recordings: glob patterns relative to a folder."""

    folder: Path
    klines: tuple[str, ...] = Field(min_length=1)
    coingecko: tuple[str, ...] = ()
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
    coingecko_url: str | None = Field(default=None, repr=False)
    coingecko_demo_key: str | None = Field(default=None, repr=False)
    coingecko_pro_key: str | None = Field(default=None, repr=False)


class Settings(_Section):
    """All settings of one deployment; see ``platform.yaml`` for the meaning of each key."""

    world: Literal["synthetic", "recorded", "live"]
    warehouse: Warehouse
    venue: Literal["binance"]
    start: date
    end: date | None
    base_interval: Interval
    raster_interval: Interval
    rollup_intervals: tuple[Interval, ...] = Field(min_length=1)
    universe: Universe
    listings: tuple[Listing, ...] = ()
    coins: dict[str, str] = Field(default_factory=dict)
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

    _check_interval = field_validator("base_interval", "raster_interval")(_interval)

    @field_validator("rollup_intervals")
    @classmethod
    def _check_intervals(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_interval(interval) for interval in value)

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        base = interval_ms(self.base_interval)
        for name, intervals in (
            ("raster_interval", (self.raster_interval,)),
            ("rollup_intervals", self.rollup_intervals),
        ):
            for interval in intervals:
                if interval_ms(interval) < base or interval_ms(interval) % base:
                    raise ValueError(
                        f"{name}: {interval} is not a multiple of base_interval {self.base_interval}"
                    )
        if self.raster_interval not in self.rollup_intervals:
            raise ValueError(f"rollup_intervals must contain raster_interval {self.raster_interval}")
        if self.raster_interval != "1h":
            raise ValueError(
                f"raster_interval: {self.raster_interval} is not supported; allowed: 1h (feature names state hours)"
            )
        raster = timedelta(milliseconds=interval_ms(self.raster_interval))
        if not self.labels.horizon or self.labels.horizon % raster:
            raise ValueError(
                f"labels.horizon: {self.labels.horizon} is not a positive multiple of {self.raster_interval}"
            )
        models = [model.name for model in self.models]
        if len(set(models)) < len(models):
            raise ValueError(f"models: a name occurs twice in {', '.join(models)}; give each model its own")
        known = set(self.universe.markets)
        for key, symbols in (
            ("listings", [listing.symbol for listing in self.listings]),
            ("coins", list(self.coins)),
        ):
            for symbol in symbols:
                if symbol not in known:
                    raise ValueError(
                        f"{key}: {symbol} is not in the universe; allowed: {', '.join(sorted(known))}"
                    )
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"end: {self.end} is not after start {self.start}")
        if self.world == "recorded" and self.simulation.recorded is None:
            raise ValueError(
                "simulation.recorded is missing: the recorded world needs a folder and klines patterns"
            )
        return self

    @property
    def simulated(self) -> bool:
        """Whether the sources are the market in a box."""
        return self.world != "live"

    @property
    def exchange_url(self) -> str | None:
        """Base address of the exchange; None is the venue's own."""
        default = f"http://127.0.0.1:{self.simulation.port}" if self.simulated else None
        return self.environment.exchange_url or default

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
    def bars_per_day(self) -> int:
        """Raster bars in a UTC day."""
        return DAY_MS // interval_ms(self.raster_interval)

    @property
    def rebalance_bars(self) -> int:
        """Raster bars in one holding period."""
        return self.labels.horizon // timedelta(milliseconds=interval_ms(self.raster_interval))


def load_settings(path: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Read, overlay and validate the settings.

    Parameters
    ----------
    path
        The file; by default ``CRYPTO_ASSETS_CONFIG``, else ``platform.yaml`` in the working folder or beside the package.
    environment
        Variables; by default the process environment.

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
    if not isinstance(overlays.get(world) or {}, dict):
        raise SettingsError(f"{path}: worlds.{world}: {overlays[world]!r} must hold keys and values")
    merged = _overlay(raw, overlays.get(world) or {})
    if "environment" in merged:
        raise SettingsError(
            f"{path}: environment: unknown key; addresses and secrets are read from the environment"
        )
    merged["world"] = world
    merged["environment"] = {
        "exchange_url": environment.get(f"{PREFIX}EXCHANGE_URL"),
        "coingecko_url": environment.get(f"{PREFIX}COINGECKO_URL"),
        "coingecko_demo_key": environment.get("COINGECKO_DEMO_API_KEY"),
        "coingecko_pro_key": environment.get("COINGECKO_PRO_API_KEY"),
    }
    warehouse = merged.get("warehouse") or {}
    if environment.get(f"{PREFIX}DATA") and isinstance(warehouse, dict):
        merged["warehouse"] = {**warehouse, "folder": environment[f"{PREFIX}DATA"]}
    _resolve_folders(merged, path.resolve().parent, world)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise SettingsError(_explain(path, error)) from None


@cache
def current_settings() -> Settings:
    """The settings of this process, read once."""
    return load_settings()


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


def _explain(path: Path, error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        reason = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            reason = f"unknown key; allowed: {', '.join(_allowed_keys(item['loc'][:-1]))}"
        elif item["type"] == "missing":
            lines.append(f"{path}: {key}: is missing")
            continue
        value = item["input"]
        shown = "" if isinstance(value, dict) and not key else f" = {value!r}"
        lines.append(f"{path}: {key + shown + ': ' if key else ''}{reason}")
    return "\n".join(lines)


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
    own = {"worlds"} if model is Settings else set()
    return sorted((set(model.model_fields) | own) - {"environment"})
