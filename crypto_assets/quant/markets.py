"""Markets of an exchange: which of them are collected, and in which intervals their states held.

Here: the choice and the validity intervals, on frames. Not here: asking the exchange (``resources/exchange``), rows of
one snapshot (``resources/snapshots``), and whether a market may be held (``features/universe``). Imported by the assets
of raw, and by tests.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from crypto_assets.quant.panel import require_columns
from crypto_assets.schemas import ABSENT

_LISTING_COLUMNS = [
    "venue",
    "symbol",
    "valid_from",
    "known_at",
    "valid_to",
    "valid_to_known_at",
    "listing_id",
]
_LISTING_COLUMNS += ["event", "trading_status", "market_type", "source"]


@dataclass(frozen=True)
class MarketFilters:
    """Which markets may be collected.

    Attributes
    ----------
    quote
        Quote asset.
    include, ignore
        Base assets that are collected whatever their size, and that never are.
    statuses, permissions
        The exchange's words; a market has to have one of each. Empty: any.
    contract_types
        Words of the contracts that are collected beside the spot market of their base. Empty: none.
    top
        How many of the other spot markets are collected, by turnover.
    min_turnover_24h_quote
        Least turnover of those, quote units.
    """

    quote: str
    include: Sequence[str] = ()
    ignore: Sequence[str] = ()
    statuses: Sequence[str] = ()
    permissions: Sequence[str] = ()
    contract_types: Sequence[str] = ()
    top: int = 0
    min_turnover_24h_quote: float = 0.0


@dataclass(frozen=True)
class MarketChoice:
    """The chosen markets, and how many each filter left.

    Attributes
    ----------
    markets
        One row per market: ``venue``, ``symbol``, ``chosen_by``, ``turnover_24h_quote``, ``turnover_24h_rank``.
    left
        Filter -> number of markets that passed it and all before it.
    """

    markets: pd.DataFrame
    left: dict[str, int]


def choose_markets(
    states: pd.DataFrame,
    turnover: pd.DataFrame | None,
    chosen_before: Collection[str],
    filters: MarketFilters,
) -> MarketChoice:
    """Choose the markets that are collected from now on.

    A market that was chosen once stays chosen, whatever its status or size: what is already collected must not end where
    it begins to lose. Only ``ignore`` ends it. A market that is named in the settings is taken in any status, since a
    dead one has a history as well.

    Parameters
    ----------
    states
        The newest row of raw/symbols of every market.
    turnover
        ``symbol``, ``turnover_24h_quote`` of the last 24 hours; None if ``filters.top`` is 0.
    chosen_before
        Symbols that earlier choices took.
    filters
        What to take.

    Returns
    -------
    MarketChoice
        Sorted by symbol. Equal turnover is ranked by symbol.

    Raises
    ------
    ValueError
        If a market is asked for by size without turnover, or columns are missing.
    """
    columns = (
        "venue",
        "symbol",
        "market_type",
        "base",
        "quote",
        "trading_status",
        "permissions",
        "contract_type",
    )
    require_columns(states, columns, "states")
    if filters.top and turnover is None:
        raise ValueError("the largest markets are asked for, but no turnover was given")
    quoted = states[(states["quote"] == filters.quote) & ~states["base"].isin(list(filters.ignore))]
    spot = quoted[quoted["market_type"] == "spot"]
    left = {f"quote {filters.quote}": len(quoted), "spot": len(spot)}
    passing = spot[_is_one_of(spot["trading_status"], filters.statuses)]
    left["status"] = len(passing)
    passing = passing[_has_one_of(passing["permissions"], filters.permissions)]
    left["permission"] = len(passing)
    ranked = _by_turnover(passing, turnover)
    listed = spot[spot["base"].isin(list(filters.include))]
    large = ranked[ranked["turnover_24h_quote"] >= filters.min_turnover_24h_quote]
    left["turnover"] = len(large)
    top = large[large["turnover_24h_rank"] <= filters.top]
    kept = spot[spot["symbol"].isin(list(chosen_before))]
    reasons = {"kept": kept, "top": top, "listed": listed}
    chosen_by: dict[str, str] = {}
    for reason, rows in reasons.items():
        chosen_by |= dict.fromkeys(rows["symbol"], reason)
    bases = set(spot.loc[spot["symbol"].isin(list(chosen_by)), "base"])
    contracts = quoted[
        quoted["market_type"].ne("spot")
        & quoted["contract_type"].isin(list(filters.contract_types))
        & quoted["base"].isin(bases)
    ]
    live = contracts[_is_one_of(contracts["trading_status"], filters.statuses)]
    before = contracts[contracts["symbol"].isin(list(chosen_before))]
    chosen_by |= dict.fromkeys(before["symbol"], "kept") | dict.fromkeys(live["symbol"], "listed")
    left["contracts"] = len(live)
    left["chosen"] = len(chosen_by)
    taken = quoted.loc[quoted["symbol"].isin(list(chosen_by)), ["venue", "symbol"]].sort_values("symbol")
    taken = taken.merge(ranked[["symbol", "turnover_24h_quote", "turnover_24h_rank"]], "left", "symbol")
    taken.insert(2, "chosen_by", taken["symbol"].map(chosen_by).astype(object))
    return MarketChoice(taken.reset_index(drop=True), left)


def listings_of(states: pd.DataFrame, lives: pd.DataFrame) -> pd.DataFrame:
    """Intervals in which states of markets held: a slowly changing dimension with the time at which each end was known.

    Parameters
    ----------
    states
        Rows of raw/symbols, every one that was ever stored.
    lives
        Lives that the settings state: ``venue``, ``symbol``, ``listing_id``, ``valid_from``, ``valid_to`` (NaT: open),
        ``known_at`` (of the end; NaT: at ``valid_to``), ``renamed_to`` (missing: not renamed).

    Returns
    -------
    pandas.DataFrame
        Columns of raw/listings, sorted by its key; the intervals of one market are disjoint. Up to the first state that
        the exchange showed the settings speak, from then on the exchange does.

    Notes
    -----
    An interval ends where the next one of its market begins, and that was known when the next one was seen. The first
    state of a market says ``first_seen``: when the exchange listed it is not known unless it tells. Nothing is concluded
    from a gap in prices.
    """
    first_seen = states.groupby(["venue", "symbol"])["valid_from"].min().to_dict()
    rows = [*_life_rows(lives, first_seen), *_state_rows(states)]
    frame = pd.DataFrame(rows, columns=_LISTING_COLUMNS)
    for name in ("valid_from", "known_at", "valid_to", "valid_to_known_at"):
        frame[name] = pd.to_datetime(frame[name]).astype("datetime64[us]")
    return frame.sort_values(["venue", "symbol", "valid_from"]).reset_index(drop=True)


def event_between(before: Mapping[Any, Any] | None, after: Mapping[Any, Any]) -> str:
    """Name what happened between two states of a market: see ``raw/listings.event``.

    Examples
    --------
    >>> event_between(None, {"trading_status": "TRADING"})
    'first_seen'
    >>> old = {"trading_status": "TRADING", "listing_id": "A/B#1"}
    >>> event_between(old, {"trading_status": "BREAK", "listing_id": "A/B#1"})
    'halt'
    >>> event_between(old, {"trading_status": "ABSENT", "listing_id": "A/B#1"})
    'delisting'
    """
    if before is None:
        return "first_seen"
    if before.get("listing_id") != after.get("listing_id"):
        return "reuse"
    if before.get("exchange_symbol") != after.get("exchange_symbol"):
        return "rename"
    was, now = str(before["trading_status"]), str(after["trading_status"])
    if was == now:
        return "change"
    if now in (ABSENT, "CLOSE", "DELIVERED"):
        return "delisting"
    if now == "TRADING":
        return "listing" if was in ("PENDING_TRADING", "PRE_TRADING") else "resume"
    return "halt" if was == "TRADING" else "change"


def _state_rows(states: pd.DataFrame) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    ordered = states.sort_values(["venue", "symbol", "valid_from"])
    for (venue, symbol), group in ordered.groupby(["venue", "symbol"], sort=True):
        records = group.to_dict("records")
        for at, row in enumerate(records):
            following = records[at + 1] if at + 1 < len(records) else None
            rows.append(
                {
                    "venue": venue,
                    "symbol": symbol,
                    "valid_from": row["valid_from"],
                    "known_at": row["known_at"],
                    "valid_to": following and following["valid_from"],
                    "valid_to_known_at": following and following["known_at"],
                    "listing_id": row["listing_id"],
                    "event": event_between(records[at - 1] if at else None, row),
                    "trading_status": row["trading_status"],
                    "market_type": row["market_type"],
                    "source": "exchange",
                }
            )
    return rows


def _life_rows(lives: pd.DataFrame, first_seen: Mapping[Any, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for (venue, symbol), group in lives.groupby(["venue", "symbol"], sort=True):
        own: list[dict[str, Any]] = []
        ordered = group.sort_values("valid_from", na_position="first").to_dict("records")
        for at, life in enumerate(ordered):
            start = pd.Timestamp(0) if pd.isna(life["valid_from"]) else life["valid_from"]
            end, renamed = life["valid_to"], life["renamed_to"]
            common = {
                "venue": venue,
                "symbol": symbol,
                "listing_id": life["listing_id"],
                "market_type": "perpetual" if ":" in str(symbol) else "spot",
                "source": "settings",
            }
            alive = {"event": "reuse" if at else "listing", "trading_status": "TRADING"}
            announced = end if pd.isna(life["known_at"]) else life["known_at"]
            own.append(
                {
                    **common,
                    **alive,
                    "valid_from": start,
                    "known_at": start,
                    "ends_at": end,
                    "end_known_at": announced,
                }
            )
            follows = at + 1 < len(group) and ordered[at + 1]["valid_from"] == end
            if not pd.isna(end) and not follows:
                dead = {"event": "delisting" if pd.isna(renamed) else "rename", "trading_status": ABSENT}
                own.append({**common, **dead, "valid_from": end, "known_at": announced})
        seen = first_seen.get((venue, symbol))
        if seen is not None:
            own = [row for row in own if row["valid_from"] < seen]
        last = {} if seen is None else {"valid_from": seen, "known_at": seen}
        for row, following in zip(own, [*own[1:], last], strict=True):
            valid_to = following.get("valid_from")
            # What the settings announce is known from then on; all else when what follows is seen.
            is_announced = valid_to is not None and valid_to == row.pop("ends_at", None)
            known = row.pop("end_known_at", None) if is_announced else following.get("known_at")
            rows.append({**row, "valid_to": valid_to, "valid_to_known_at": known})
    return rows


def _by_turnover(passing: pd.DataFrame, turnover: pd.DataFrame | None) -> pd.DataFrame:
    columns = ["symbol", "turnover_24h_quote"]
    known = pd.DataFrame(columns=columns) if turnover is None else turnover[columns]
    joined = passing[["venue", "symbol"]].merge(known, "left", "symbol")
    joined["turnover_24h_quote"] = joined["turnover_24h_quote"].astype(float)
    joined = joined.sort_values(["turnover_24h_quote", "symbol"], ascending=[False, True])
    rank = pd.Series(range(1, len(joined) + 1), joined.index, dtype="Int64")
    return joined.assign(turnover_24h_rank=rank.where(joined["turnover_24h_quote"].notna()))


def _is_one_of(words: pd.Series, allowed: Sequence[str]) -> pd.Series:
    return words.isin(list(allowed)) if allowed else pd.Series(True, words.index)


def _has_one_of(words: pd.Series, allowed: Sequence[str]) -> pd.Series:
    # Where an exchange states no permissions, none is refused.
    wanted = set(allowed)
    sets = words.map(lambda text: set(text.split(",")) if isinstance(text, str) and text else wanted)
    return sets.map(lambda own: not wanted or bool(own & wanted)).astype(bool)
