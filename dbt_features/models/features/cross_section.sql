{#- Ranks among the symbols that were eligible at the moment; who has no value has no rank and does not count. -#}
with eligible as (
    select
        universe.symbol,
        universe.ts,
        greatest(universe.known_at, raster.known_at, price_action.known_at) as known_at,
        universe.listing_id,
        price_action.return_24h_log,
        price_action.return_168h_log,
        price_action.volume_ratio_24h,
        raster.market_cap_usd
    from {{ source('features', 'universe') }} as universe
    left join {{ ref('price_action') }} as price_action
        on universe.symbol = price_action.symbol and universe.ts = price_action.ts
        and {{ in_window('price_action.ts') }}
    left join {{ ref('raster') }} as raster
        on universe.symbol = raster.symbol and universe.ts = raster.ts
        and {{ in_window('raster.ts') }}
    where universe.eligible and {{ in_window('universe.ts') }}
)

select
    symbol,
    ts,
    known_at,
    listing_id,
    {{ xs_rank('return_24h_log') }} as return_24h_xs_rank,
    {{ xs_rank('return_168h_log') }} as return_168h_xs_rank,
    {{ xs_rank('volume_ratio_24h') }} as volume_ratio_24h_xs_rank,
    {{ xs_rank('market_cap_usd') }} as market_cap_xs_rank,
    count(*) over (partition by ts) as n_eligible
from eligible
