{#- Base bars to every configured interval, each from the longest shorter one that divides it: sums are exact, so that the
    way there leaves no trace. A base bar belongs to the listing that is valid at its start; a bar that two listings share
    holds the rows of the newer one only, which is decided at the end: shorter bars of both are needed on the way. -#}
{{- config(days_per_part=31) -}}
{%- set steps = cascade() -%}
with base as (
    select
        bars.venue,
        bars.symbol,
        listings.listing_id,
        bars.ts,
        bars.ts as last_base_ts,
        bars.open,
        bars.high,
        bars.low,
        bars.close,
        bars.volume_base,
        bars.volume_quote,
        bars.n_trades,
        bars.taker_buy_base,
        bars.taker_buy_quote,
        1 as n_base_bars
    from {{ source('raw', 'base_klines') }} as bars
    inner join control.settings on bars.interval = settings.base_interval
    inner join control.listings
        on bars.symbol = listings.symbol
        and (listings.valid_from is null or bars.ts >= listings.valid_from)
        and (listings.valid_to is null or bars.ts < listings.valid_to)
    where bars.kind = 'trade' and {{ in_part('bars.ts') }}
),
{% for step in steps %}
bars_{{ step.interval }} as materialized (
    select
        venue,
        symbol,
        listing_id,
        {{ floored('ts', step.minutes) }} as ts,
        max(last_base_ts) as last_base_ts,
        {{ bar_of() }}
    from {{ step.parent }}
    group by venue, symbol, listing_id, {{ floored('ts', step.minutes) }}
),
{% endfor %}
every_interval as (
    {%- for step in steps %}
    select '{{ step.interval }}' as interval, {{ step.minutes }} as minutes, * from bars_{{ step.interval }}
    {%- if not loop.last %} union all {%- endif %}
    {%- endfor %}
    {%- if not steps %}select 'none' as interval, 1 as minutes, * from base{% endif %}
),

several_lives as (select symbol from control.listings group by symbol having count(*) > 1),

newest as (
    select venue, symbol, interval, ts, max(last_base_ts) as last_base_ts
    from every_interval
    semi join several_lives using (symbol)
    group by venue, symbol, interval, ts
)

select
    bars.venue,
    bars.symbol,
    bars.interval,
    bars.ts,
    bars.ts + to_minutes(bars.minutes) as known_at,
    bars.listing_id,
    bars.open,
    bars.high,
    bars.low,
    bars.close,
    bars.volume_base,
    bars.volume_quote,
    bars.n_trades,
    bars.taker_buy_base,
    bars.taker_buy_quote,
    bars.n_base_bars,
    bars.n_base_bars * settings.base_minutes = bars.minutes as complete
from every_interval as bars
cross join control.settings
inner join control.days on date_trunc('day', bars.ts) = days.day
anti join newest
    on bars.venue = newest.venue
    and bars.symbol = newest.symbol
    and bars.interval = newest.interval
    and bars.ts = newest.ts
    and bars.last_base_ts < newest.last_base_ts
where bars.ts + to_minutes(bars.minutes) <= days.watermark
