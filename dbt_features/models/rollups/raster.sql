{#- The grid of the features. The newest bar of a symbol decides which listing lives at a moment: a dead listing's tail
    ends with the first bar of the next one, or 48 hours after its own last bar. Nothing shortens the grid but that: what
    another source lacks is NULL. Of each other source a row carries the newest that was known at its end, and only while it
    is younger than the source's declared age. What is stamped exactly with a row's end is of the next row's interval, which
    may lie in the next day's partition. -#}
{%- set cap_age, contract_age, funding_age = max_age('market_cap'), max_age('contract'), max_age('funding_rate') -%}
{%- set interest_age, book_age = max_age('open_interest'), max_age('order_book') -%}
with step as (
    select interval, minutes, to_minutes(minutes) as length from control.intervals where is_raster
),

grid as (
    select symbols.symbol, moments.ts, moments.ts + step.length as known_at
    from control.days
    cross join step
    cross join unnest(generate_series(days.day, days.day + interval 1 day - step.length, step.length)) as moments (ts)
    cross join (select distinct symbol from control.listings where not contains(symbol, ':')) as symbols
    where {{ in_window('days.day') }} and moments.ts + step.length <= days.watermark
),

bars as (
    select
        klines.symbol,
        klines.ts,
        klines.listing_id,
        klines.open,
        klines.high,
        klines.low,
        klines.close,
        {{ raster_amounts('klines') }}
    from {{ ref('klines') }} as klines
    inner join step using (interval)
    inner join control.settings using (venue)
    where {{ in_window('klines.ts', before='interval 48 hours') }}
),

living as (
    select
        grid.symbol,
        grid.symbol || ':' || split_part(grid.symbol, '/', 2) as contract,
        grid.ts,
        grid.known_at,
        bars.listing_id,
        bars.ts as bar_ts,
        grid.ts = bars.ts as has_bar,
        {%- for column in bar_columns() %}
        case when grid.ts = bars.ts then bars.{{ column }} end as {{ column }},
        {%- endfor %}
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

{#- A cap is known a day and a while after its ts, and is stale if it equals those of the two days before it. -#}
caps_read as (
    select coin_id, ts, known_at, market_cap_usd
    from {{ source('raw', 'market_caps') }}
    where {{ in_window('ts', before=cap_age ~ ' - interval 3 days') }}
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

contract_prices as (
    select prices.symbol, prices.kind, prices.known_at, prices.close
    from {{ source('raw', 'base_klines') }} as prices
    inner join control.settings on prices.venue = settings.venue and prices.interval = settings.base_interval
    where prices.kind in ('mark', 'premium') and {{ in_window('prices.ts') }}
),

marks as (select * from contract_prices where kind = 'mark'),

premiums as (select * from contract_prices where kind = 'premium'),

funding as (
    select rates.symbol, rates.ts, rates.known_at, {{ usable_from('rates') }} as since, rates.funding_rate_frac
    from {{ source('raw', 'funding_rates') }} as rates
    inner join control.settings using (venue)
    where {{ in_window('rates.ts', before=funding_age) }}
),

interest as (
    select
        samples.symbol,
        samples.known_at,
        {{ usable_from('samples') }} as since,
        samples.open_interest_base,
        samples.open_interest_quote
    from {{ source('raw', 'open_interest') }} as samples
    inner join control.settings using (venue)
    where {{ in_window('samples.ts', before=interest_age) }}
),

{#- A book comes up to an hour after it was asked for. -#}
books as (
    select summaries.*, {{ usable_from('summaries') }} as since
    from {{ source('raw', 'order_book_summary') }} as summaries
    inner join control.settings using (venue)
    where summaries.status = 'ok' and {{ in_window('summaries.ts', before=book_age ~ ' - interval 1 hour') }}
    qualify row_number() over (partition by symbol, since order by ts desc) = 1
),

joined as (
    select
        named.*,
        case when {{ young('caps', cap_age) }} then caps.market_cap_usd end as market_cap_usd,
        caps.ts as cap_ts,
        case when {{ young('marks', contract_age) }} then marks.close end as mark_price,
        case when {{ young('premiums', contract_age) }} then premiums.close end as premium_frac,
        case when {{ young('funding', funding_age) }} then funding.funding_rate_frac end as funding_rate_frac,
        case when {{ young('funding', funding_age) }} then epoch(named.known_at - funding.ts) / 3600 end as funding_age_hours,
        {%- for column in ['open_interest_base', 'open_interest_quote'] %}
        case when {{ young('interest', interest_age) }} then interest.{{ column }} end as {{ column }},
        {%- endfor %}
        {%- for column in book_columns() %}
        case when {{ young('books', book_age) }} then books.{{ column }} end as book_{{ column }},
        {%- endfor %}
    from named
    asof left join caps on named.coin_id = caps.coin_id and named.known_at >= caps.known_at
    asof left join marks on named.contract = marks.symbol and named.known_at >= marks.known_at
    asof left join premiums on named.contract = premiums.symbol and named.known_at >= premiums.known_at
    asof left join funding on named.contract = funding.symbol and named.known_at >= funding.since
    asof left join interest on named.contract = interest.symbol and named.known_at >= interest.since
    asof left join books on named.symbol = books.symbol and named.known_at >= books.since
)

select
    joined.symbol,
    joined.ts,
    joined.known_at,
    joined.listing_id,
    {%- for column in bar_columns() %}
    joined.{{ column }},
    {%- endfor %}
    joined.has_bar,
    date_diff('minute', joined.bar_ts, joined.ts) // step.minutes as bar_age,
    joined.coin_id,
    joined.market_cap_usd,
    case when joined.market_cap_usd is not null then joined.cap_ts end as market_cap_ts,
    case
        when joined.market_cap_usd is not null
            then rank() over (partition by joined.ts order by joined.market_cap_usd desc nulls last)
    end as market_cap_rank,
    {%- for column in bar_columns() %}
    futures.{{ column }} as futures_{{ column }},
    {%- endfor %}
    joined.mark_price,
    joined.premium_frac,
    joined.funding_rate_frac,
    joined.funding_age_hours,
    joined.open_interest_base,
    joined.open_interest_quote,
    {%- for column in book_columns() %}
    joined.book_{{ column }}{% if not loop.last %},{% endif %}
    {%- endfor %}
from joined
cross join step
left join bars as futures on joined.contract = futures.symbol and joined.ts = futures.ts
