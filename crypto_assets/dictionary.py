"""The data dictionary: every contract as one Markdown page.

Here: how contracts are written down for readers. Not here: what they say. The command line and a test that keeps
``docs/data_dictionary.md`` true import it.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import groupby

from crypto_assets.schemas import Column, Table
from crypto_assets.tables import TABLES

_HEAD = """# Data dictionary

Every table, from the contracts in `crypto_assets/schemas.py` and the declarations in `platform.yaml`; made by `make docs`,
not by hand.

- Times are UTC without a zone. `ts` is the start of an interval, `known_at` the moment at which a row could first be
  known; nothing downstream reads a row before that.
- NULL means missing, and missing stays missing. **Bold** columns are never NULL.
- Units are in the name: `_usd`, `_base`, `_quote`, `_bps`, `_frac` (0.01 is 1 %), `_log`, `_z`, `_rank`, `n_`.
- `hourly`, `daily` and `weekly` tables have one Parquet file for each UTC hour, day or Monday (the hours of a closed day
  share one), `none` one file in all. `replace` writes a partition anew; `merge` adds rows to it by key and records in
  `quality.revisions` what a source changed.
"""

_HISTORY = (
    "History in bars: how far back a value may read, bars before the first one; then the fewest that were measured to give "
    "the value of all history, and within which relative difference."
)


def data_dictionary(tables: Collection[Table] = TABLES.values()) -> str:
    """The page as Markdown, ending with a newline.

    >>> "## holdings" in data_dictionary()
    True
    """
    parts = [_HEAD, _contents(tables)]
    for stage, of_stage in groupby(tables, key=lambda table: table.stage):
        parts.append(f"## {stage}\n")
        parts += [_section(table) for table in of_stage]
    return "\n".join(parts)


def _contents(tables: Collection[Table]) -> str:
    lines = ["| table | clock | one row per |", "| --- | --- | --- |"]
    for table in tables:
        meaning = table.title.removeprefix("one row per ")
        lines.append(
            f"| [{_sql_name(table)}](#{table.stage}{table.table}) | {table.clock} | {_cell(meaning)} |"
        )
    return "\n".join([*lines, ""])


def _section(table: Table) -> str:
    facts = [f"Key `{', '.join(table.key)}`", f"clock {table.clock}", f"write {table.write}"]
    if table.known_at != "-":
        facts.append(f"known at: {table.known_at}")
    text = f"{table.title[0].upper()}{table.title[1:]}.\n\n{'; '.join(facts)}."
    if table.observed:
        text += "\nThe source tells only the present, so a rebuild cannot repeat what was seen before."
    if table.decided_later:
        names = ", ".join(f"`{name}`" for name in table.decided_later)
        text += f"\nNULL until decided, then set once: {names}."
    reads = any(_history(column) for column in table.columns)
    if reads:
        text += f"\n{_HISTORY}"
    lines = ["| column | type | meaning |" + reads * " history |", "| --- | --- | --- |" + reads * " --- |"]
    for column in table.columns:
        name = f"**{column.name}**" if column.required or column.name in table.key else column.name
        history = f" {_history(column)} |" if reads else ""
        lines.append(f"| {name} | {column.type} | {_cell(column.meaning)} |{history}")
    return "\n".join([f"### {_sql_name(table)}\n", text, "", *lines, ""])


def _history(column: Column) -> str:
    tags = dict(column.tags)
    if "lookback_bars" not in tags:
        return ""
    found = f"; {tags['measured_bars']} ({tags['bound']})" if "measured_bars" in tags else ""
    return f"{tags['lookback_bars']}, {tags['warm_up_bars']}{found}"


def _sql_name(table: Table) -> str:
    return f"{table.stage}.{table.table}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
