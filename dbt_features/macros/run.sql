{#- What a run knows: where its work folder is and which window it makes. The environment is read while a model runs,
    never while it is parsed, so that a new window keeps dbt's partial parse. -#}

{% macro work_folder() %}{{ return(env_var('CRYPTO_ASSETS_DBT_WORK')) }}{% endmacro %}

{% macro window_start() %}{% if execute %}timestamp '{{ env_var('CRYPTO_ASSETS_DBT_START') }}'{% endif %}{% endmacro %}

{% macro window_end() %}{% if execute %}timestamp '{{ env_var('CRYPTO_ASSETS_DBT_END') }}'{% endif %}{% endmacro %}

{#- Rows of the window and, where told, of some time `before` it (SQL); `column` is a time column. A literal lets DuckDB
    skip the files of other days. -#}
{% macro in_window(column, before=none) -%}
    ({{ column }} >= {{ window_start() }}{% if before %} - {{ before }}{% endif %} and {{ column }} < {{ window_end() }})
{%- endmacro %}

{#- Bounds of the part that is being made; DuckDB puts the values in before it plans, so they skip files as well. -#}
{% macro part_start() %}getvariable('part_start'){% endmacro %}

{% macro part_end() %}getvariable('part_end'){% endmacro %}

{#- Rows of the part that is being made, for models with days_per_part. -#}
{% macro in_part(column) -%}
    ({{ column }} >= {{ part_start() }} and {{ column }} < {{ part_end() }})
{%- endmacro %}

{#- How long what was known of a source is carried, as SQL. -#}
{% macro max_age(source) %}
    {%- if execute -%}
        {%- set found = run_query("select microseconds from control.ages where source = '" ~ source ~ "'") -%}
        to_microseconds({{ found.rows[0][0] | int }})
    {%- endif -%}
{% endmacro %}

{#- Views over the lake (database `lake`), control tables, and every model as the lake holds it. -#}
{% macro prepare_run() %}
    {% if execute %}
        {% set script = run_query("select content from read_text('" ~ work_folder() | replace("'", "''") ~ "/prepare.sql')") %}
        {% do run_query(script.rows[0][0]) %}
        {% do run_query("create schema if not exists fresh") %}
        {% for node in graph.nodes.values() if node.resource_type == 'model' %}
            {% do run_query("create schema if not exists " ~ node.schema) %}
            {% do run_query(
                "create or replace view " ~ node.schema ~ "." ~ node.name
                ~ " as select * from lake." ~ node.schema ~ "." ~ node.name
            ) %}
        {% endfor %}
    {% endif %}
{% endmacro %}

{% macro fresh_rows(relation) -%}
    {{ return(api.Relation.create(database=relation.database, schema='fresh', identifier=relation.schema ~ '__' ~ relation.identifier)) }}
{%- endmacro %}

{#- Data tests look at the rows this run made, not at what the lake held before. -#}
{% macro get_where_subquery(relation) -%}
    {{ return(fresh_rows(relation)) }}
{%- endmacro %}

{% macro generate_schema_name(custom_schema_name, node) -%}
    {{ custom_schema_name or target.schema }}
{%- endmacro %}
