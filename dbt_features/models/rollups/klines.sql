{#- Base bars to every configured interval. A base bar belongs to the listing that is valid at its start; a bar that
    two listings share holds the rows of the newer one only. -#}
with base as (
    select bars.*, listings.listing_id
    from {{ source('raw', 'klines') }} as bars
    inner join control.settings on bars.interval = settings.base_interval
    inner join control.listings
        on bars.symbol = listings.symbol
        and (listings.valid_from is null or bars.ts >= listings.valid_from)
        and (listings.valid_to is null or bars.ts < listings.valid_to)
    where bars.kind = 'trade' and {{ in_window('bars.ts') }}
),

floored as (
    select
        base.* exclude (interval, ts, known_at),
        intervals.interval,
        intervals.minutes,
        base.ts as base_ts,
        make_timestamp(epoch_us(base.ts) - epoch_us(base.ts) % (intervals.minutes * 60000000)) as ts
    from base
    cross join control.intervals
),

bars as (
    select
        venue,
        symbol,
        interval,
        ts,
        ts + to_minutes(minutes) as known_at,
        listing_id,
        arg_min_null(open, base_ts) as open,
        max(high) as high,
        min(low) as low,
        arg_max_null(close, base_ts) as close,
        {{ whole_sum('volume_base') }} as volume_base,
        {{ whole_sum('volume_quote') }} as volume_quote,
        {{ whole_sum('n_trades') }} as n_trades,
        {{ whole_sum('taker_buy_base') }} as taker_buy_base,
        {{ whole_sum('taker_buy_quote') }} as taker_buy_quote,
        count(*) as n_base_bars,
        max(base_ts) as last_base_ts,
        minutes
    from floored
    group by venue, symbol, interval, minutes, ts, listing_id
    qualify row_number() over (partition by venue, symbol, interval, ts order by last_base_ts desc) = 1
)

select
    bars.* exclude (n_trades, last_base_ts, minutes, n_base_bars),
    cast(bars.n_trades as bigint) as n_trades,
    bars.n_base_bars,
    bars.n_base_bars * settings.base_minutes = bars.minutes as complete
from bars
cross join control.settings
inner join control.days on date_trunc('day', bars.ts) = days.day
where bars.known_at <= days.watermark
