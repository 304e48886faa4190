{#- Standings among the rows of a moment, and only aggregates whose result does not depend on the order of the rows, so
    that a day alone and inside a range agree bit for bit. -#}

{#- What is compared, as platform.yaml says: rows with name, kind (rank, z), column and source. -#}
{% macro standings() %}
    {%- set found = [] -%}
    {%- if execute -%}
        {%- for row in run_query("select name, kind, compared, source from control.standings order by place").rows -%}
            {%- do found.append({'name': row[0], 'kind': row[1], 'column': row[2], 'source': row[3]}) -%}
        {%- endfor -%}
    {%- endif -%}
    {{ return(found) }}
{% endmacro %}

{#- (rank - 0.5) / n among the rows of a moment that have a value, ties average; NULL below five. -#}
{% macro xs_rank(column) -%}
    case when eligible.{{ column }} is not null and count(eligible.{{ column }}) over (partition by eligible.ts) >= 5 then
        (
            rank() over (partition by eligible.ts order by eligible.{{ column }} nulls last)
            + (count(*) over (partition by eligible.ts, eligible.{{ column }}) - 1) / 2.0
            - 0.5
        ) / count(eligible.{{ column }}) over (partition by eligible.ts)
    end
{%- endmacro %}

{#- (x - mean) / sample sd among the rows of a moment that have a value, taken from `moments`, where values were added in
    their own order; NULL below five and where all are equal. -#}
{% macro xs_zscore(column) -%}
    case
        when moments.n_of_{{ column }} >= 5 and moments.sd_of_{{ column }} > 0
            then (eligible.{{ column }} - moments.mean_of_{{ column }}) / moments.sd_of_{{ column }}
    end
{%- endmacro %}
