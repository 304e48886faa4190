"""What must hold for the rows of every table: its contract, known_at, prices, sums and bounds, in words and in SQL.

Here: conditions and the words that a reader sees when one is broken; what is worth a warning in the tables of quality.
Not here: how rules are evaluated and become Dagster checks, and gaps, which follow from coverage and not from rows
(``checks``); refusing frames before they are stored (``resources/warehouse/conform``). ``checks`` and tests import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from crypto_assets.intervals import INTERVAL_MS, WEEK, WEEK_MS, interval_delta
from crypto_assets.partitions import DAY, LENGTHS
from crypto_assets.quant.feature_sets import FeatureSet
from crypto_assets.resources.ingest_coins import CANDLE_LAG, PUBLICATION_LAG
from crypto_assets.schemas import Table
from crypto_assets.settings import Settings
from crypto_assets.tables import TABLES

#: Sums of weights are exact to rounding; solvers keep bounds to their own tolerance, which is cut before storing.
_EXACT = 1e-9
_KLINES, _RASTER = TABLES["raw/klines"], TABLES["rollups/raster"]


@dataclass(frozen=True)
class Rule:
    """A condition that every row of a relation must meet; as in SQL's CHECK, unknown counts as met.

    Attributes
    ----------
    text
        The rule in words: what the user reads when it is broken.
    holds
        The condition.
    of
        The relation, a table or a query in parentheses. ``checks`` prepares ``rows`` (the rows under check with the
        ``partition_key`` and ``partition_start`` under which they are stored), ``partitions`` and ``watermarks``.
    """

    text: str
    holds: str
    of: str = "rows"


@dataclass(frozen=True)
class Finding:
    """What a table of quality may show of a source: no defect of ours, but worth a warning.

    Attributes
    ----------
    name
        Of the check.
    rule
        What is found where it does not hold; its relation has ``ts``, the moment of the finding.
    by
        Columns by which findings are counted.
    """

    name: str
    rule: Rule
    by: str


def rules_of(table: Table, settings: Settings) -> dict[str, tuple[Rule, ...]]:
    """Name of a check -> its rules, the contract first; without the checks that say nothing of the table."""
    rules = {
        "contract": _contract_rules(table),
        "known_at": _known_at_rules(table, settings),
        "prices": _price_rules(table),
        "sums_to_one": _sum_rules(table),
        "bounds": _bound_rules(table, settings),
    }
    return {name: found for name, found in rules.items() if found}


def quoted(name: str) -> str:
    """A column's name as SQL.

    >>> quoted("partition")
    '"partition"'
    """
    return f'"{name}"'


def sql_of(length: timedelta) -> str:
    """A length of time as SQL.

    >>> sql_of(timedelta(minutes=1))
    'to_milliseconds(60000)'
    """
    return f"to_milliseconds({length // timedelta(milliseconds=1)})"


def _of_rows(rules: Mapping[str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(text, holds) for text, holds in rules.items())


def _one_of(column: str, *words: str) -> str:
    return f"{column} in ({', '.join(repr(word) for word in words)})"


# -- contract


def _contract_rules(table: Table) -> tuple[Rule, ...]:
    key = ", ".join(map(quoted, table.key))
    rules = [
        Rule("every partition of the run is stored", "stored", of="partitions"),
        Rule("columns and types are those of the contract", "as_declared", of="partitions"),
        Rule("a file holds as many rows as it states", "n_rows = n_stated", of="partitions"),
        Rule(
            "a key occurs once", "n_rows = 1", of=f"(select {key}, count(*) as n_rows from rows group by all)"
        ),
    ]
    for column in table.columns:
        if column.required or column.name in table.key:
            rules.append(Rule(f"{column.name} is present", f"{quoted(column.name)} is not null"))
        if column.type == "DOUBLE":
            rules.append(Rule(f"{column.name} is finite", f"isfinite({quoted(column.name)})"))
    moment = table.time_column
    if table.clock != "none":
        end = f"partition_start + {sql_of(LENGTHS[table.clock])}"
        inside = f"{moment} >= partition_start and {moment} < {end}"
        rules.append(Rule(f"{moment} lies in its partition", inside))
    if {moment, "known_at"} <= set(table.column_names):
        rules.append(Rule(f"known_at is not before {moment}", f"known_at >= {moment}"))
    return tuple(rules)


# -- known_at


def _known_at_rules(table: Table, settings: Settings) -> tuple[Rule, ...]:
    if "known_at" not in table.column_names:
        return ()
    bar = sql_of(interval_delta(settings.raster_interval))
    published = sql_of(DAY + PUBLICATION_LAG)
    lengths = ", ".join(f"'{name}': {length}" for name, length in {**INTERVAL_MS, WEEK: WEEK_MS}.items())
    interval = f"to_milliseconds(map {{{lengths}}}[interval])"
    # The words of the contract, so that no rule can be stated there without a form here.
    exactly = {
        "end of the interval": f"ts + {interval}",
        "max of what it joins: end of the interval": f"ts + {bar}",
        "end of the bar": f"ts + {bar}",
        "end of the day": f"ts + {sql_of(DAY)}",
        "end of the day + publication lag (00:45 UTC)": f"ts + {published}",
        "end of the interval + publication lag (15 minutes; of a day 45 minutes: 00:45 UTC)": (
            f"ts + case interval when '1d' then {published} else {interval} + {sql_of(CANDLE_LAG)} end"
        ),
        "settlement time as told": "greatest(ts, settled_at)",
        "sample time": "ts",
        "the cut": "week",
        "decision_at": "decision_at",
        **{f"end of the bar of {name}": f"ts + {sql_of(interval_delta(name))}" for name in INTERVAL_MS},
    }
    if table.known_at in _SEEN:
        rules = [_SEEN[table.known_at]]
    elif table.decided_later:
        rules = _label_rules(table, settings)
    else:
        # What cannot be computed, such as the end of an unknown interval, is not met.
        holds = f"coalesce(known_at = {exactly[table.known_at]}, false)"
        rules = [Rule(f"known_at is: {table.known_at}", holds)]
    if table == _RASTER:
        public = f"known_at >= market_cap_ts + {published}"
        rules.append(Rule("a market cap was public when the row was known", public))
        limit = settings.raster.max_age.funding_rate / timedelta(hours=1)
        aged = "(funding_rate_frac is null) = (funding_age_hours is null)"
        # A settlement may be told up to a second after its schedule.
        aged += f" and coalesce(funding_age_hours > 0 and funding_age_hours < {limit} + 1 / 3600, true)"
        rules.append(Rule("a funding rate was settled before the row was known, and is young enough", aged))
    newest = "max(known_at)"
    if table.name == "raw/listings":
        # What the settings state of the future no source has told yet.
        newest += " filter (source = 'exchange')"
    newest = f"(select partition_key, {newest} as newest, any_value(watermark) as watermark from rows "
    newest += "left join watermarks using (partition_key) group by partition_key)"
    within = "newest is null or coalesce(newest <= watermark, false)"
    rules.append(Rule("no row is known after the watermark", within, of=newest))
    return tuple(rules)


#: Words of the contract where a source tells only the present, and what can be said of the moment of the look.
_SEEN = {
    "when seen": Rule("known_at lies in the day of the snapshot", "date_trunc('day', known_at) = ts"),
    "exchange's time after the snapshot had come": Rule(
        "a book had come within an hour after it was asked for",
        "known_at between ts and ts + interval 1 hour",
    ),
    "when the start of the state was seen, or announced": Rule(
        "a state was known when the exchange showed it, or announced before it began",
        "case source when 'exchange' then known_at = valid_from else known_at <= valid_from end",
    ),
}


def _label_rules(table: Table, settings: Settings) -> list[Rule]:
    bar, horizon, silence = (
        sql_of(length)
        for length in (
            interval_delta(settings.raster_interval),
            settings.labels.horizon,
            settings.costs.death_after,
        )
    )
    values = [name for name in table.decided_later if name not in ("known_at", "outcome")]
    nothing = " and ".join(f"{quoted(name)} is null" for name in values)
    rules = [
        Rule("an undecided label holds no value", f"known_at is not null or ({nothing})"),
        # Not later than its own bar, where that tells already that there is nothing to label.
        Rule("a label is not decided before its own bar ends", f"known_at >= ts + {bar}"),
    ]
    if "outcome" not in table.column_names:
        return rules
    return [
        Rule("outcome and known_at are decided together", "(known_at is null) = (outcome is null)"),
        *rules,
        Rule(
            "a filled label is known when its exit bar ends, a holding period after its fill",
            f"outcome <> 'filled' or (known_at = exit_ts + {bar} and fill_ts > ts and exit_ts >= fill_ts + {horizon})",
        ),
        Rule(
            "a death is known after the declared silence",
            f"outcome <> 'death' or known_at = exit_ts + {bar} + {silence}",
        ),
    ]


# -- prices


def _price_rules(table: Table) -> tuple[Rule, ...]:
    names = table.column_names
    unit = next((unit for unit in ("", "_usd") if f"high{unit}" in names), None)
    if unit is None:
        return ()
    first, high, low, last = (f"{price}{unit}" for price in ("open", "high", "low", "close"))
    rules = {
        "low <= open, close <= high": f"{low} <= least({first}, {last}) and {high} >= greatest({first}, {last})",
    }
    if table == _KLINES:
        # The premium index is a fraction: what a contract costs above or below its index.
        rules["prices are positive, but for a premium"] = "kind = 'premium' or low > 0"
    else:
        rules["prices are positive"] = f"{low} > 0"
    amounts = [name for name in _AMOUNTS if name in names]
    if amounts:
        rules |= {
            "no amount is negative": " and ".join(f"{name} >= 0" for name in amounts),
            "takers bought no more than was traded": "taker_buy_base <= volume_base",
        }
    if table == _KLINES:
        nothing = " and ".join(f"{name} is null" for name in amounts)
        rules |= {
            "a kind is trade, mark or premium": _one_of("kind", "trade", "mark", "premium"),
            "contracts alone have marks and premiums": "kind = 'trade' or contains(symbol, ':')",
            "marks and premiums have no amounts": f"kind = 'trade' or ({nothing})",
        }
    if table == _RASTER:
        age = "has_bar = (bar_age = 0) and bar_age >= 0"
        cap = "(market_cap_usd is null) = (market_cap_ts is null) and coalesce(market_cap_usd > 0, true)"
        rules |= {
            "a row with a bar has all four prices": f"not has_bar or ({_ALL_PRICES})",
            "a row without a bar has no price": "has_bar or coalesce(open, high, low, close) is null",
            "bar_age is 0 where there is a bar, and only there": age,
            "a market cap is positive and has its day": cap,
            "a market cap has its rank, and ranks begin with 1": (
                "(market_cap_ts is null) = (market_cap_rank is null) and coalesce(market_cap_rank >= 1, true)"
            ),
            **_CONTRACT_RULES,
        }
    elif not unit:
        rules["a bar has all four prices"] = _ALL_PRICES
    return _of_rows(rules)


_CONTRACT_RULES = {
    "of the contract: low <= open, close <= high": (
        "futures_low <= least(futures_open, futures_close) "
        "and futures_high >= greatest(futures_open, futures_close)"
    ),
    "of the contract: prices are positive": "futures_low > 0 and mark_price > 0",
    "of the contract: no amount is negative": (
        "futures_volume_base >= 0 and futures_turnover_quote >= 0 and futures_n_trades >= 0 "
        "and futures_taker_buy_base >= 0 and futures_taker_buy_quote >= 0 "
        "and open_interest_base >= 0 and open_interest_quote >= 0"
    ),
    "a book's bid lies below its ask": "book_spread_bps > 0 and book_mid > 0 and book_gap_quote >= 0",
}

_AMOUNTS = ("volume_base", "volume_quote", "turnover_quote", "n_trades", "taker_buy_base", "taker_buy_quote")
_ALL_PRICES = "open is not null and high is not null and low is not null and close is not null"


# -- sums and bounds


def _sum_rules(table: Table) -> tuple[Rule, ...]:
    moment, columns, condition = _SUMMED.get(table.name, ("", (), ""))
    return tuple(
        Rule(
            f"{column} sums to one in every {moment}",
            f"abs(total - 1) <= {_EXACT}",
            of=f"(select {moment}, sum({column}) as total from rows where {condition} group by {moment})",
        )
        for column in columns
    )


_SUMMED: dict[str, tuple[str, tuple[str, ...], str]] = {
    "weights/alpha_weights": ("week", ("weight",), "status = 'ok'"),
    "holdings/candidates": ("decision_at", ("w_mkt",), "w_mkt is not null"),
    "holdings/optimal_holdings": ("decision_at", ("weight_frac", "weight_before_frac"), "true"),
}


def _bound_rules(table: Table, settings: Settings) -> tuple[Rule, ...]:
    rules = _of_rows(_BOUNDS.get(table.name, {}))
    if table.stage == "features" and table.table in settings.feature_sets:
        return _feature_rules(settings.feature_sets[table.table])
    if table.name == "raw/order_books":
        return (*rules, *_level_rules())
    if table.name == "raw/order_book_summary":
        return (*rules, *_summary_rules(table))
    if table.name == "raw/listings":
        return (*rules, _disjoint_states())
    if table.name == "holdings/optimal_holdings":
        return (*rules, *_decision_rules(settings))
    return rules


def _feature_rules(chosen: FeatureSet) -> tuple[Rule, ...]:
    rules = []
    for feature in chosen.features:
        words = zip(("at least", "at most"), (">=", "<="), feature.bounds, strict=True)
        sides = [(word, sign, bound) for word, sign, bound in words if bound is not None]
        if sides:
            told = " and ".join(f"{word} {bound:g}" for word, _, bound in sides)
            holds = " and ".join(f"{quoted(feature.name)} {sign} {bound!r}" for _, sign, bound in sides)
            rules.append(Rule(f"{feature.name} is {told}", holds))
    return tuple(rules)


_BOUNDS: dict[str, dict[str, str]] = {
    "raw/symbols": {
        "a state begins when it is seen": "valid_from = known_at",
        "a market is spot, perpetual or delivery": _one_of("market_type", "spot", "perpetual", "delivery"),
        "contracts alone are settled and delivered": (
            "market_type <> 'spot' or (settle is null and contract_type is null and delivery_at is null)"
        ),
    },
    "raw/universe": {
        "a market is listed, top or kept": _one_of("chosen_by", "listed", "top", "kept"),
        "what was chosen by size has a rank": "chosen_by <> 'top' or turnover_24h_rank is not null",
        "turnover has its rank, and ranks begin with 1": (
            "(turnover_24h_quote is null) = (turnover_24h_rank is null) and coalesce(turnover_24h_rank >= 1, true)"
        ),
        "turnover is not negative": "turnover_24h_quote >= 0",
    },
    "raw/listings": {
        "a state ends after it began": "valid_to > valid_from",
        "an end is known when there is one": "(valid_to is null) = (valid_to_known_at is null)",
    },
    "raw/funding_rates": {
        "a rate is a share of the position, not of a hundred": "abs(funding_rate_frac) <= 0.1",
        "a settlement is told within a second of its schedule": (
            "abs(epoch_us(settled_at) - epoch_us(ts)) < 1000000"
        ),
        "a mark price is positive": "mark_price > 0",
    },
    "raw/open_interest": {
        "open interest is not negative": "open_interest_base >= 0 and open_interest_quote >= 0",
    },
    "raw/coins": {"a market cap is positive; unknown is missing": "market_cap_usd > 0"},
    "raw/market_caps": {"a market cap is positive; unknown is missing": "market_cap_usd > 0"},
    "raw/coin_kinds": {
        "a kind is a word of the contract": _one_of(
            "kind", "coin", "stable", "wrapped", "staked", "bridged", "pegged"
        ),
        "what is no coin of its own says by what": "kind = 'coin' or decided_by is not null",
    },
    "rollups/klines_1w": {
        "a bar of a week begins on Monday": (
            "interval = '1w' and isodow(ts) = 1 and ts = date_trunc('day', ts)"
        ),
    },
    "features/universe": {
        "a row is eligible, or says why not": "eligible = (reason = 'eligible')",
        "history and turnover are not negative": "history_days >= 0 and turnover_median_30d_quote >= 0",
    },
    "labels/forward_returns": {"nothing loses more than all": "forward_return_frac >= -1"},
    "weights/alpha_weights": {
        "a weight stands where the fit is ok, and only there": "(status = 'ok') = (weight is not null)",
        "a weight lies in 0 to 1": "weight between 0 and 1",
    },
    "predictions/models": {
        "a fit that is ok has its model": "status <> 'ok' or (model_text is not null and model_hash is not null)",
        "the area under the curve lies in 0 to 1": "auc between 0 and 1",
    },
    "predictions/scores": {"a probability lies in 0 to 1": "probability between 0 and 1"},
    "signals/ema_cross": {
        "the state is -1, 0 or 1": "state in (-1, 0, 1)",
        "the signal decays from the state towards 0": "abs(signal) <= 1 and signal * state >= 0",
    },
    "signals/thresholds": {
        "a threshold lies in 0 to 1": "buy_threshold between 0 and 1 and sell_threshold between 0 and 1",
        "a rule does not buy below where it sells": "buy_threshold >= sell_threshold",
    },
    "signals/trading_signals": {"the signal is -1, 0 or 1": "signal in (-1, 0, 1)"},
    "holdings/candidates": {
        "a share in the prior lies in 0 to 1": "w_mkt between 0 and 1",
        "the eligible alone have a share": "eligible or w_mkt is null",
        "risk is positive": "sigma_frac > 0",
    },
    "holdings/view_fits": {
        "a fit that is ok has its confidence, no other has": "(status = 'ok') = (confidence is not null)",
        "confidence lies between 0 and 1": "confidence > 0 and confidence < 1",
    },
    "holdings/views": {"confidence lies between 0 and 1": "confidence > 0 and confidence < 1"},
    "holdings/optimal_holdings": {
        "a weight lies in 0 to 1": "weight_frac between 0 and 1 and weight_before_frac between 0 and 1",
    },
    "reports/portfolio_backtest": {
        "equity is not negative": "equity >= 0",
        "turnover and fees are not negative": "turnover_frac >= 0 and fee_frac >= 0",
    },
}


def _decision_rules(settings: Settings) -> tuple[Rule, ...]:
    cap = settings.portfolio.max_weight
    cash = f"symbol = '{settings.universe.quote}'"
    # Coins on offer have a share in the prior, 0 included; those that are only sold have none.
    decisions = f"""(
        select
            decision_at,
            any_value(status) as status,
            count(distinct status) as n_status,
            count_if({cash}) as n_cash,
            nullif(count_if(weight_prior_frac is not null and not ({cash})), 0) as n_coins,
            max(weight_frac) filter (not ({cash})) as largest
        from rows group by decision_at)"""
    # Where no solution was found, drifted weights are kept as they are.
    within = f"status = 'infeasible_kept_drifted' or largest <= greatest({cap}, 1 / n_coins) + {_EXACT}"
    return (
        Rule(f"no coin exceeds the cap of {cap:g}, or 1/n if that is more", within, of=decisions),
        Rule("a decision holds cash once and has one status", "n_cash = 1 and n_status = 1", of=decisions),
    )


def _disjoint_states() -> Rule:
    following = """(
        select venue, symbol, valid_from, valid_to, lead(valid_from) over (
            partition by venue, symbol order by valid_from
        ) as next_from
        from rows)"""
    return Rule(
        "states of one market do not overlap",
        "next_from is null or coalesce(valid_to <= next_from, false)",
        of=following,
    )


def _level_rules() -> tuple[Rule, ...]:
    # Levels of one price share a place, so that prices are distinct as well.
    placed = """(
        select venue, symbol, ts, side, level, price, rank() over (
            partition by venue, symbol, ts, side order by case side when 'bid' then -price else price end
        ) - 1 as place
        from rows)"""
    return (
        Rule("a level is a bid or an ask", _one_of("side", "bid", "ask")),
        Rule("prices and amounts are positive", "price > 0 and amount_base > 0"),
        Rule("levels count from the best price on", "level = place", of=placed),
    )


def _summary_rules(table: Table) -> tuple[Rule, ...]:
    amounts = [name for name in table.column_names if "_depth_" in name or "_density_" in name]
    shares = [name for name in table.column_names if name.startswith("imbalance_")]
    words = ("ok", "empty", "one_sided", "crossed", "out_of_sequence", "stale")
    return _of_rows(
        {
            "a status is a word of the contract": _one_of("status", *words),
            "a book that is ok has its bid below its ask": (
                "status <> 'ok' or coalesce(best_bid < best_ask, false)"
            ),
            "a side has a best price where it has levels, and only there": (
                "(n_bids > 0) = (best_bid is not null) and (n_asks > 0) = (best_ask is not null)"
            ),
            "the middle lies between the best prices": (
                "mid between least(best_bid, best_ask) and greatest(best_bid, best_ask)"
            ),
            "depths and densities are not negative": " and ".join(f"{name} >= 0" for name in amounts),
            "an imbalance lies in -1 to 1": " and ".join(f"{name} between -1 and 1" for name in shares),
        }
    )


# -- findings of quality

_SERIES = "asset, venue, symbol, kind, interval"
_SEEN_FILES = "(select *, seen_at as ts from rows)"
_REVISED = """(
        select
            *,
            seen_at as ts,
            coalesce(row_key ->> '$.symbol', row_key ->> '$.coin_id') as series,
            coalesce(row_key ->> '$.kind', '') as kind,
            try_cast(new_value as double) / try_cast(old_value as double) - 1 as change_frac
        from rows)"""
_REVISED_PRICES = [f"{price}{unit}" for unit in ("", "_usd") for price in ("open", "high", "low", "close")]

#: Table of quality -> what is worth a warning in it.
FINDINGS: dict[str, Finding] = {
    "quality/coverage": Finding(
        "answered",
        Rule("the source has answered for every interval of a collected day", "n_unexplained = 0"),
        by=_SERIES,
    ),
    "quality/gaps": Finding(
        "explained", Rule("every gap is the source's own", "origin = 'source'"), by=_SERIES
    ),
    "quality/anomalies": Finding(
        "sound", Rule("no row was odd", "false"), by="asset, venue, symbol, series_kind, interval, kind"
    ),
    "quality/reconciliation": Finding(
        "agreement", Rule("sources agree", "agrees"), by="pair, venue, symbol, other"
    ),
    "quality/revisions": Finding(
        "settled",
        # A premium lies about 0, where a share of it says nothing.
        Rule(
            "no price was restated by more than 1 %",
            f"kind = 'premium' or not ({_one_of('column_name', *_REVISED_PRICES, 'price_usd')}) "
            "or abs(change_frac) <= 0.01",
            of=_REVISED,
        ),
        by="asset, series, kind, column_name",
    ),
    "quality/source_files": Finding(
        "published_once",
        Rule("no file was published again with another content", "not published_again", of=_SEEN_FILES),
        by="origin, venue, symbol, kind, interval",
    ),
}
