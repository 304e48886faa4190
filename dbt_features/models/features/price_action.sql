{#- Returns need the bar at exactly the earlier moment; ranges and volumes at least half the bars of their window. -#}
with bars as (
    select symbol, ts, known_at, listing_id, high, low, close, cast(volume_base as decimal(38, 8)) as volume_base
    from {{ ref('raster') }}
    where has_bar and {{ in_window('ts', hours_before=168) }}
),

windows as (
    select
        symbol,
        ts,
        count(*) over day_long as n_bars_24h,
        count(*) over week_long as n_bars_168h,
        max(high) over day_long as high_24h,
        min(low) over day_long as low_24h,
        max(high) over week_long as high_168h,
        min(low) over week_long as low_168h,
        count(volume_base) over day_long as n_volumes_24h,
        count(volume_base) over week_long as n_volumes_168h,
        cast(sum(volume_base) over day_long as double) as volume_24h_base,
        cast(sum(volume_base) over week_long as double) as volume_168h_base
    from bars
    window day_long as {{ last_hours(24) }}, week_long as {{ last_hours(168) }}
)

select
    bars.symbol,
    bars.ts,
    bars.known_at,
    bars.listing_id,
    {%- for hours in [1, 4, 24, 72, 168] %}
    {{ log_return('back_' ~ hours) }} as return_{{ hours }}h_log,
    {%- endfor %}
    case when n_bars_24h >= 12 and bars.close > 0 then (high_24h - low_24h) / bars.close end as range_24h_frac,
    {%- for hours, fewest in [(24, 12), (168, 84)] %}
    case
        when n_bars_{{ hours }}h >= {{ fewest }} and high_{{ hours }}h > low_{{ hours }}h
            then (bars.close - low_{{ hours }}h) / (high_{{ hours }}h - low_{{ hours }}h)
    end as position_{{ hours }}h_frac,
    {%- endfor %}
    case
        when n_volumes_24h >= 12 and n_volumes_168h >= 84 and volume_168h_base > 0
            then volume_24h_base / volume_168h_base * 7
    end as volume_ratio_24h
from bars
inner join windows using (symbol, ts)
{%- for hours in [1, 4, 24, 72, 168] %}
left join bars as back_{{ hours }}
    on bars.listing_id = back_{{ hours }}.listing_id
    and bars.symbol = back_{{ hours }}.symbol
    and bars.ts - interval {{ hours }} hours = back_{{ hours }}.ts
{%- endfor %}
where {{ in_window('bars.ts') }}
