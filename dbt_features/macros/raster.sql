{#- What a row of the raster takes from other tables, and when. -#}

{#- Columns of a bar of the spot market, and with a prefix of its contract. -#}
{% macro bar_columns() %}
    {{ return([
        'open', 'high', 'low', 'close', 'volume_base', 'turnover_quote', 'n_trades', 'taker_buy_base', 'taker_buy_quote'
    ]) }}
{% endmacro %}

{#- Amounts of a bar as the raster has them: floating point, and a turnover also where the source lacks it. -#}
{% macro raster_amounts(bars) -%}
    cast({{ bars }}.volume_base as double) as volume_base,
        coalesce(cast({{ bars }}.volume_quote as double), cast({{ bars }}.volume_base as double) * {{ bars }}.close) as turnover_quote,
        {{ bars }}.n_trades,
        cast({{ bars }}.taker_buy_base as double) as taker_buy_base,
        cast({{ bars }}.taker_buy_quote as double) as taker_buy_quote
{%- endmacro %}

{#- Columns of a book's summary that the raster carries. -#}
{% macro book_columns() %}
    {%- set columns = ['mid', 'spread_bps', 'gap_quote'] -%}
    {%- for side in ['bid', 'ask'] -%}
        {%- for n in [1, 2, 5, 10, 20] %}{% do columns.append(side ~ '_density_' ~ n ~ '_bins_base') %}{% endfor -%}
    {%- endfor -%}
    {%- for side in ['bid', 'ask'] -%}
        {%- for bps in [10, 25, 50, 100] %}{% do columns.append(side ~ '_depth_' ~ bps ~ '_bps_quote') %}{% endfor -%}
    {%- endfor -%}
    {%- do columns.append('imbalance_best_frac') -%}
    {%- for bps in [10, 25, 50, 100] %}{% do columns.append('imbalance_' ~ bps ~ '_bps_frac') %}{% endfor -%}
    {{ return(columns) }}
{% endmacro %}

{#- Whether what was joined is still young enough at the end of the row. -#}
{% macro young(source, age) -%}
    {{ source }}.known_at > named.known_at - {{ age }}
{%- endmacro %}

{#- From when on a sample may be joined: when it was known, and after its own time. -#}
{% macro usable_from(source) -%}
    greatest({{ source }}.known_at, {{ source }}.ts + interval 1 microsecond)
{%- endmacro %}
