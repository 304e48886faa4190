{#- A model makes the rows of the run's window. They are written to the work folder for the warehouse to publish, and
    later models of the run see them in place of the lake's rows of that window. -#}
{% materialization window_rows, adapter='duckdb' %}
    {%- set target_relation = this.incorporate(type='view') -%}
    {%- set fresh = fresh_rows(this) -%}
    {%- set stored = 'lake.' ~ this.schema ~ '.' ~ this.identifier -%}
    {%- set file = work_folder() ~ '/' ~ this.schema ~ '__' ~ this.identifier ~ '.parquet' -%}
    {{ run_hooks(pre_hooks) }}
    {% call statement('main') -%}
        create or replace table {{ fresh }} as ({{ compiled_code }})
    {%- endcall %}
    {% call statement('write') -%}
        copy {{ fresh }} to '{{ file | replace("'", "''") }}' (format parquet)
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
