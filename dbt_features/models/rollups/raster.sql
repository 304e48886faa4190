{#- The grid of the features. The newest bar of a symbol decides which listing lives at a moment: a dead listing's tail
    ends with the first bar of the next one, or 48 hours after its own last bar. -#}
with step as (
    select interval, minutes, to_minutes(minutes) as length from control.intervals where is_raster
),

grid as (
    select symbols.symbol, moments.ts, moments.ts + step.length as known_at
    from control.days
    cross join step
    cross join unnest(generate_series(days.day, days.day + interval 1 day - step.length, step.length)) as moments (ts)
    cross join (select distinct symbol from control.listings) as symbols
    where {{ in_window('days.day') }} and moments.ts + step.length <= days.watermark
),

bars as (
    select klines.*
    from {{ ref('klines') }} as klines
    inner join step using (interval)
    inner join control.settings using (venue)
    where {{ in_window('klines.ts', hours_before=48) }}
),

living as (
    select
        grid.symbol,
        grid.ts,
        grid.known_at,
        bars.listing_id,
        bars.ts as bar_ts,
        grid.ts = bars.ts as has_bar,
        bars.open,
        bars.high,
        bars.low,
        bars.close,
        bars.volume_base,
        bars.volume_quote,
        bars.n_trades,
        bars.taker_buy_base
    from grid
    asof inner join bars on grid.symbol = bars.symbol and grid.ts >= bars.ts
    where bars.ts > grid.ts - interval 48 hours
),

snapshots as (
    select symbol, coin_id, known_at
    from {{ source('raw', 'coins') }}
    where symbol is not null
    qualify row_number() over (partition by symbol, known_at order by market_cap_rank asc nulls last, coin_id) = 1
),

{#- What was seen first stands for all time before. -#}
mapped as (
    select
        symbol,
        coin_id,
        case
            when row_number() over (partition by symbol order by known_at) = 1 then timestamp '0001-01-01'
            else known_at
        end as since
    from snapshots
),

named as (
    select living.*, coalesce(listings.coin_id, mapped.coin_id) as coin_id
    from living
    left join control.listings using (listing_id)
    asof left join mapped on living.symbol = mapped.symbol and living.known_at >= mapped.since
),

caps_read as (
    select coin_id, ts, known_at, market_cap_usd
    from {{ source('raw', 'market_caps') }}
    where {{ in_window('ts', hours_before=168) }}
),

caps as (
    select
        newest.coin_id,
        newest.ts,
        newest.known_at,
        case
            when newest.market_cap_usd = day_before.market_cap_usd
                and newest.market_cap_usd = two_days_before.market_cap_usd then null
            when newest.market_cap_usd > 0 then newest.market_cap_usd
        end as market_cap_usd
    from caps_read as newest
    left join caps_read as day_before
        on newest.coin_id = day_before.coin_id and newest.ts - interval 1 day = day_before.ts
    left join caps_read as two_days_before
        on newest.coin_id = two_days_before.coin_id and newest.ts - interval 2 days = two_days_before.ts
),

valued as (
    select
        named.*,
        case when caps.known_at > named.known_at - interval 3 days then caps.market_cap_usd end as market_cap_usd,
        caps.ts as cap_ts
    from named
    asof left join caps on named.coin_id = caps.coin_id and named.known_at >= caps.known_at
)

select
    valued.symbol,
    valued.ts,
    valued.known_at,
    valued.listing_id,
    case when has_bar then open end as open,
    case when has_bar then high end as high,
    case when has_bar then low end as low,
    case when has_bar then close end as close,
    case when has_bar then cast(volume_base as double) end as volume_base,
    case when has_bar then coalesce(cast(volume_quote as double), cast(volume_base as double) * close) end as turnover_quote,
    case when has_bar then n_trades end as n_trades,
    case when has_bar then cast(taker_buy_base as double) end as taker_buy_base,
    has_bar,
    date_diff('minute', bar_ts, valued.ts) // step.minutes as bar_age,
    coin_id,
    market_cap_usd,
    case when market_cap_usd is not null then cap_ts end as market_cap_ts
from valued
cross join step
