{#- Weeks begin on Monday 00:00 UTC. A day that two listings share holds the newer one only, and so does a week. -#}
with days as (
    select *, {{ monday_of('ts') }} as week
    from {{ ref('klines') }}
    where interval = '1d' and {{ in_window('ts') }}
),

lives as (
    select venue, symbol, week, arg_max(listing_id, ts) as listing_id
    from days
    group by venue, symbol, week
),

weeks as (
    select venue, symbol, week, listing_id, {{ bar_of() }}
    from days
    inner join lives using (venue, symbol, week, listing_id)
    group by venue, symbol, week, listing_id
)

select
    weeks.* exclude (week),
    '1w' as interval,
    weeks.week as ts,
    weeks.week + interval 7 days as known_at,
    weeks.n_base_bars * settings.base_minutes = 7 * 24 * 60 as complete
from weeks
cross join control.settings
inner join control.days on weeks.week + interval 6 days = days.day
where weeks.week + interval 7 days <= days.watermark
