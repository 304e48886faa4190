{#- Standings among the symbols that were eligible at the moment; who has no value has none and does not count. Which
    columns are compared, platform.yaml says: a control table lists them with the tables they are in. -#}
{%- set raster = ref('raster') -%}
{%- set wanted = standings() -%}
{%- set compared = wanted | map(attribute='column') | unique | list -%}
{%- set scored = wanted | selectattr('kind', 'equalto', 'z') | map(attribute='column') | list -%}
{%- set sets = wanted | map(attribute='source') | unique | reject('equalto', 'rollups.raster') | list -%}
with eligible as (
    select
        universe.symbol,
        universe.ts,
        greatest(
            universe.known_at, raster.known_at
            {%- for source in sets %}, set_{{ loop.index }}.known_at{% endfor %}
        ) as known_at,
        universe.listing_id
        {%- for column in compared %}
        {%- set source = (wanted | selectattr('column', 'equalto', column) | first).source %},
        {{ 'set_' ~ (sets.index(source) + 1) if source in sets else 'raster' }}.{{ column }}
        {%- endfor %}
    from {{ source('features', 'universe') }} as universe
    left join {{ raster }} as raster
        on universe.symbol = raster.symbol and universe.ts = raster.ts
        and {{ in_window('raster.ts') }}
    {%- for source in sets %}
    left join lake.{{ source }} as set_{{ loop.index }}
        on universe.symbol = set_{{ loop.index }}.symbol and universe.ts = set_{{ loop.index }}.ts
        and {{ in_window('set_' ~ loop.index ~ '.ts') }}
    {%- endfor %}
    where universe.eligible and {{ in_window('universe.ts') }}
),

moments as (
    select
        ts
        {%- for column in scored %},
        count({{ column }}) as n_of_{{ column }},
        avg({{ column }} order by {{ column }}) as mean_of_{{ column }},
        stddev_samp({{ column }} order by {{ column }}) as sd_of_{{ column }}
        {%- endfor %}
    from eligible
    group by ts
)

select
    eligible.symbol,
    eligible.ts,
    eligible.known_at,
    eligible.listing_id,
    {%- for standing in wanted %}
    {{ xs_rank(standing.column) if standing.kind == 'rank' else xs_zscore(standing.column) }} as {{ standing.name }},
    {%- endfor %}
    count(*) over (partition by eligible.ts) as n_eligible
from eligible
inner join moments on eligible.ts = moments.ts
