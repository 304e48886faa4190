{#- Windows of raster bars: hours counted by time, never by rows, and only aggregates whose result does not depend on
    the order of the rows, so that a day alone and inside a range agree bit for bit. -#}

{#- Frame of the bars with ts in (ts - hours, ts]; the raster is hourly. -#}
{% macro last_hours(hours) -%}
    (partition by symbol, listing_id order by ts range between interval {{ hours - 1 }} hours preceding and current row)
{%- endmacro %}

{% macro log_return(earlier) -%}
    case when bars.close > 0 and {{ earlier }}.close > 0 then ln(bars.close / {{ earlier }}.close) end
{%- endmacro %}

{#- (rank - 0.5) / n among the rows of a moment that have a value, ties average; NULL below five. -#}
{% macro xs_rank(column) -%}
    case when {{ column }} is not null and count({{ column }}) over (partition by ts) >= 5 then
        (
            rank() over (partition by ts order by {{ column }} nulls last)
            + (count(*) over (partition by ts, {{ column }}) - 1) / 2.0
            - 0.5
        ) / count({{ column }}) over (partition by ts)
    end
{%- endmacro %}

{#- An exact sum that is NULL as soon as one of its rows is. -#}
{% macro whole_sum(column) -%}
    case when count({{ column }}) = count(*) then sum({{ column }}) end
{%- endmacro %}
