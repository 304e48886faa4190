"""What is odd in stored candles and where sources disagree, by SQL over the lake.

Here: rows of quality/anomalies that follow from stored candles (frozen prices, silence, jumps) and of
quality/reconciliation. Not here: rows that were kept out of the tables (``ledger``) and missing ones (``inventory``).
``assets/quality.py`` publishes both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pyarrow as pa

from crypto_assets.intervals import interval_delta
from crypto_assets.resources.warehouse.lake import Lake, memory_connection
from crypto_assets.schemas import Table
from crypto_assets.tables import TABLES

#: Pairs of sources and how far the day's median may lie from 1, in basis points. A perpetual contract is held near spot
#: by funding; CoinGecko averages all venues, and its day ends minutes apart from the bar that it is compared with.
TOLERANCE_BPS: Mapping[str, float] = {"spot_futures": 100.0, "spot_mark": 100.0, "spot_coingecko": 200.0}

_LIVES = pa.schema(
    [
        ("symbol", pa.string()),
        ("coin_id", pa.string()),
        ("valid_from", pa.timestamp("us")),
        ("valid_to", pa.timestamp("us")),
    ]
)


@dataclass(frozen=True)
class OddityLimits:
    """From when on stored candles count as odd.

    Attributes
    ----------
    silence
        Shortest run of candles without any volume.
    frozen
        Shortest run of candles that trade at one single price.
    jump_frac
        Smallest move from one close to the next that can be a jump.
    jump_medians
        A jump is also this many times the median move of the day before.
    """

    silence: timedelta = timedelta(hours=1)
    frozen: timedelta = timedelta(hours=6)
    jump_frac: float = 0.10
    jump_medians: float = 30.0


def candle_oddities(lake: Lake, interval: str, limits: OddityLimits = OddityLimits()) -> pa.Table:
    """Rows of quality/anomalies that follow from the stored trade candles of one interval.

    Kinds are ``zero_volume`` and ``frozen_price``, one row per run at its first candle, and ``jump``, one row per candle.
    A run needs candles that follow each other without a gap. Frozen candles have volume: what has none is silent. Nothing
    is said of candles without volume figures.

    Parameters
    ----------
    lake
        Where the candles are.
    interval
        The base interval.
    limits
        From when on something is odd.
    """
    table = TABLES["raw/klines"]
    step = interval_delta(interval)
    query = f"""
        with bars as (
            select
                venue, symbol, ts, open, high, low, close, volume_base,
                lag(ts) over series as last_ts,
                lag(close) over series as last_close
            from read_parquet(?, hive_partitioning = false)
            where kind = 'trade' and interval = '{interval}'
            window series as (partition by venue, symbol order by ts)
        ),
        judged as (
            select
                *,
                last_ts is not null and ts - last_ts = {_sql(step)} as follows,
                case
                    when volume_base = 0 then 'zero_volume'
                    when volume_base > 0 and high = low and low = last_close then 'frozen_price'
                    else ''
                end as state
            from bars
        ),
        runs as (
            select
                *,
                sum(case when follows and state = last_state then 0 else 1 end)
                    over (partition by venue, symbol order by ts) as run
            from (select *, lag(state) over (partition by venue, symbol order by ts) as last_state from judged)
        ),
        spells as (
            select venue, symbol, state as kind, min(ts) as ts, count(*) as n, any_value(close) as price
            from runs
            where state <> ''
            group by venue, symbol, state, run
            having count(*) >= case state when 'zero_volume' then {limits.silence // step} else {limits.frozen // step} end
        ),
        moves as (
            select venue, symbol, date_trunc('day', ts) as day, median(abs(close / last_close - 1)) as median_move
            from judged where follows group by all
        ),
        jumps as (
            select judged.venue, judged.symbol, judged.ts, judged.last_close, judged.close, moves.median_move
            from judged
            asof inner join moves
                on judged.venue = moves.venue and judged.symbol = moves.symbol
                and date_trunc('day', judged.ts) - interval 1 day >= moves.day
            where follows
                and abs(close / last_close - 1) >= {limits.jump_frac}
                and abs(close / last_close - 1) >= {limits.jump_medians} * median_move
        )
        select kind, venue, symbol, ts, json_object('n_candles', n, 'price', price) as detail from spells
        union all
        select 'jump', venue, symbol, ts,
            json_object('from', last_close, 'to', close, 'median_move_frac', median_move)
        from jumps"""
    found = _rows(lake, table, query)
    constants = {"asset": table.name, "series_kind": "trade", "interval": interval}
    schema = TABLES["quality/anomalies"].arrow_schema()
    if found is None:
        return schema.empty_table()
    columns = {
        name: pa.repeat(pa.scalar(value, pa.string()), found.num_rows) for name, value in constants.items()
    }
    columns |= {name: found[name] for name in found.column_names}
    return (
        pa.table({name: columns[name] for name in schema.names})
        .cast(schema)
        .sort_by([(name, "ascending") for name in TABLES["quality/anomalies"].key])
    )


def reconciliation_table(
    lake: Lake,
    interval: str,
    lives: Sequence[Mapping[str, Any]],
    tolerance_bps: Mapping[str, float] = TOLERANCE_BPS,
) -> pa.Table:
    """Rows of quality/reconciliation: how far contracts, mark prices and CoinGecko lie from the spot market, by day.

    Parameters
    ----------
    lake
        Where the tables are.
    interval
        The base interval.
    lives
        Which coin stands behind a spot market and when: ``symbol``, ``coin_id``, ``valid_from``, ``valid_to`` (None:
        open). Rows without a coin are passed over.
    tolerance_bps
        Pair -> largest median distance that counts as agreement.

    Notes
    -----
    Contracts are compared bar by bar at the close. CoinGecko's price of a day is its value at the end of the day, so it
    is compared with the close of the day's last bar, and only where that bar ends the day.
    """
    bars, caps = TABLES["raw/klines"], TABLES["raw/market_caps"]
    step = interval_delta(interval)
    if not lake.holds(bars):
        return TABLES["quality/reconciliation"].arrow_schema().empty_table()
    bounds = ", ".join(f"('{pair}', {float(bps)})" for pair, bps in sorted(tolerance_bps.items()))
    with memory_connection() as connection:
        connection.register("lives", pa.Table.from_pylist([_life(row) for row in lives], schema=_LIVES))
        for name, table in (("bars", bars), ("caps", caps)):
            files = _files(lake, table)
            if files:
                # A prepared statement cannot make a view; the list is of our own paths.
                listed = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
                connection.execute(
                    f"create view {name} as select * from read_parquet([{listed}], hive_partitioning = false)"
                )
            else:
                connection.register(name, table.arrow_schema().empty_table())
        found = connection.execute(f"""
            with spot as (
                select venue, symbol, ts, close from bars
                where kind = 'trade' and interval = '{interval}' and not contains(symbol, ':')
            ),
            contracts as (
                select
                    case kind when 'trade' then 'spot_futures' else 'spot_mark' end as pair,
                    venue, split_part(symbol, ':', 1) as symbol, ts, symbol as other, close as other_close
                from bars
                where kind in ('trade', 'mark') and interval = '{interval}' and contains(symbol, ':')
            ),
            days as (
                select spot.venue, spot.symbol, date_trunc('day', spot.ts) as ts, spot.close
                from spot
                where date_trunc('day', spot.ts) + interval 1 day = spot.ts + {_sql(step)}
            ),
            compared as (
                select pair, venue, symbol, date_trunc('day', ts) as ts, other, other_close / close - 1 as distance
                from contracts join spot using (venue, symbol, ts)
                union all
                select 'spot_coingecko', venue, symbol, days.ts, coin_id, price_usd / close - 1
                from days
                join lives using (symbol)
                join caps using (coin_id)
                where caps.ts = days.ts and price_usd is not null
                    and days.ts >= coalesce(valid_from, days.ts) and (valid_to is null or days.ts < valid_to)
            ),
            bounds (pair, bps) as (values {bounds})
            select
                pair, venue, symbol, ts, other,
                count(*) as n_compared,
                median(distance) * 1e4 as median_difference_bps,
                arg_max(distance, abs(distance)) * 1e4 as largest_difference_bps,
                abs(median(distance)) * 1e4 <= any_value(bps) as agrees
            from compared join bounds using (pair)
            group by pair, venue, symbol, ts, other
            order by pair, venue, symbol, ts, other""").to_arrow_table()
    return found.cast(TABLES["quality/reconciliation"].arrow_schema())


def _rows(lake: Lake, table: Table, query: str) -> pa.Table | None:
    files = _files(lake, table)
    if not files:
        return None
    with memory_connection() as connection:
        return connection.execute(query, [files]).to_arrow_table()


def _files(lake: Lake, table: Table) -> list[str]:
    return [str(lake.path(table, key)) for key in lake.partitions(table)]


def _life(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in _LIVES.names}


def _sql(length: timedelta) -> str:
    return f"to_milliseconds({length // timedelta(milliseconds=1)})"
