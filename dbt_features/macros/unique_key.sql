{% test unique_key(model, columns) %}
select {{ columns | join(', ') }}, count(*) as n_rows
from {{ model }}
group by {{ columns | join(', ') }}
having count(*) > 1 or {% for column in columns %}{{ column }} is null{% if not loop.last %} or {% endif %}{% endfor %}
{% endtest %}

{% test holds(model, condition) %}
select * from {{ model }} where ({{ condition }}) is not true
{% endtest %}

{#- Ranks lie between 0 and 1, z-scores of n values within (n - 1) / sqrt(n). -#}
{% test standings_are_relative(model) %}
select * from {{ model }}
where
    false
    {%- for standing in standings() %}
    {%- if standing.kind == 'rank' %}
    or not coalesce({{ standing.name }} > 0 and {{ standing.name }} < 1, true)
    {%- else %}
    or not coalesce(abs({{ standing.name }}) <= (n_eligible - 1) / sqrt(n_eligible) + 1e-9, true)
    {%- endif %}
    {%- endfor %}
{% endtest %}
