{#- How bars become longer bars. Whatever is summed is exact, so that a roll-up of a roll-up is the roll-up of the base. -#}

{#- The configured intervals from the shortest on: name, minutes, and the longest shorter relation that divides it. -#}
{% macro cascade() %}
    {% set steps = [] %}
    {% if execute %}
        {% for name, length in run_query("select interval, minutes from control.intervals order by minutes").rows %}
            {% set minutes, found = length | int, namespace(parent='base') %}
            {% for shorter in steps if minutes % shorter.minutes == 0 %}
                {% set found.parent = 'bars_' ~ shorter.interval %}
            {% endfor %}
            {% do steps.append({'interval': name, 'minutes': minutes, 'parent': found.parent}) %}
        {% endfor %}
    {% endif %}
    {{ return(steps) }}
{% endmacro %}

{#- Start of the bar of so many minutes, at most a day, that holds a moment. -#}
{% macro floored(column, minutes) -%}
    make_timestamp(epoch_us({{ column }}) - epoch_us({{ column }}) % {{ minutes * 60000000 }})
{%- endmacro %}

{#- Monday 00:00 UTC of the week that holds a moment. -#}
{% macro monday_of(column) -%}
    date_trunc('week', {{ column }})
{%- endmacro %}

{#- One bar of shorter ones: a volume is NULL as soon as one of them lacks it. -#}
{% macro bar_of() -%}
    arg_min_null(open, ts) as open,
        max(high) as high,
        min(low) as low,
        arg_max_null(close, ts) as close,
        {{ whole_sum('volume_base') }} as volume_base,
        {{ whole_sum('volume_quote') }} as volume_quote,
        cast({{ whole_sum('n_trades') }} as bigint) as n_trades,
        {{ whole_sum('taker_buy_base') }} as taker_buy_base,
        {{ whole_sum('taker_buy_quote') }} as taker_buy_quote,
        cast(sum(n_base_bars) as bigint) as n_base_bars
{%- endmacro %}

{#- An exact sum that is NULL as soon as one of its rows is. -#}
{% macro whole_sum(column) -%}
    case when count({{ column }}) = count(*) then sum({{ column }}) end
{%- endmacro %}
