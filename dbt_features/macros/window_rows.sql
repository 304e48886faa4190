{#- A model makes the rows of the run's window, and where it says days_per_part so many days at a time, so that memory does
    not grow with the window. They are written to the work folder for the warehouse to publish, and later models of the run
    see them in place of the lake's rows of that window. -#}
{% materialization window_rows, adapter='duckdb' %}
    {%- set target_relation = this.incorporate(type='view') -%}
    {%- set fresh = fresh_rows(this) -%}
    {%- set stored = 'lake.' ~ this.schema ~ '.' ~ this.identifier -%}
    {%- set stem = (work_folder() ~ '/' ~ this.schema ~ '__' ~ this.identifier) | replace("'", "''") -%}
    {{ run_hooks(pre_hooks) }}
    {%- for start, end in parts_of_window(config.get('days_per_part')) %}
    {% do run_query("set variable part_start = timestamp '" ~ start ~ "'") %}
    {% do run_query("set variable part_end = timestamp '" ~ end ~ "'") %}
    {% call statement('main') -%}
        copy ({{ compiled_code }}) to '{{ stem }}-{{ start.date() }}-{{ end.date() }}.parquet' (format parquet)
    {%- endcall %}
    {%- endfor %}
    {% call statement('read') -%}
        create or replace view {{ fresh }} as select * from read_parquet('{{ stem }}-*.parquet')
    {%- endcall %}
    {% call statement('show') -%}
        create or replace view {{ target_relation }} as
        select * from {{ stored }} where ts < {{ window_start() }}
        union all by name
        select * from {{ fresh }}
        union all by name
        select * from {{ stored }} where ts >= {{ window_end() }}
    {%- endcall %}
    {{ run_hooks(post_hooks) }}
    {#- Without the commit dbt rolls the view back, and the next model would read the lake. -#}
    {% do adapter.commit() %}
    {{ return({'relations': [target_relation]}) }}
{% endmaterialization %}

{#- Bounds of the parts of the run's window; one part where a model does not say how many days it makes at a time. -#}
{% macro parts_of_window(days) %}
    {%- set time = modules.datetime.datetime -%}
    {%- set start = time.fromisoformat(env_var('CRYPTO_ASSETS_DBT_START')) -%}
    {%- set end = time.fromisoformat(env_var('CRYPTO_ASSETS_DBT_END')) -%}
    {%- set length = modules.datetime.timedelta(days=days or (end - start).days) -%}
    {%- set parts = [] -%}
    {%- for number in range(((end - start) / length) | round(0, 'ceil') | int) -%}
        {%- set first = start + number * length -%}
        {%- do parts.append((first, [first + length, end] | min)) -%}
    {%- endfor -%}
    {{ return(parts) }}
{% endmacro %}
