"""The data dictionary: every contract of ``schemas.py`` as one Markdown page.

Here: how contracts are written down for readers. Not here: what they say. The command line and a test that keeps
``docs/data_dictionary.md`` true import it.
"""

from __future__ import annotations

from itertools import groupby

from crypto_assets.schemas import TABLES, Table

_HEAD = """# Data dictionary

Every table, from the contracts in `crypto_assets/schemas.py`; made by `make docs`, not by hand.

- Times are UTC without a zone. `ts` is the start of an interval, `known_at` the moment at which a row could first be
  known; nothing downstream reads a row before that.
- NULL means missing, and missing stays missing. **Bold** columns are never NULL.
- Units are in the name: `_usd`, `_base`, `_quote`, `_bps`, `_frac` (0.01 is 1 %), `_log`, `_z`, `_rank`, `n_`.
- `hourly`, `daily` and `weekly` tables have one Parquet file for each UTC hour, day or Monday (the hours of a closed day
  share one), `none` one file in all. `replace` writes a partition anew; `merge` adds rows to it by key and records in
  `quality.revisions` what a source changed.
"""


def data_dictionary() -> str:
    """The page as Markdown, ending with a newline.

    >>> "## holdings" in data_dictionary()
    True
    """
    parts = [_HEAD, _contents()]
    for stage, tables in groupby(TABLES.values(), key=lambda table: table.stage):
        parts.append(f"## {stage}\n")
        parts += [_section(table) for table in tables]
    return "\n".join(parts)


def _contents() -> str:
    lines = ["| table | clock | one row per |", "| --- | --- | --- |"]
    for table in TABLES.values():
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
    lines = ["| column | type | meaning |", "| --- | --- | --- |"]
    for column in table.columns:
        name = f"**{column.name}**" if column.required or column.name in table.key else column.name
        lines.append(f"| {name} | {column.type} | {_cell(column.meaning)} |")
    return "\n".join([f"### {_sql_name(table)}\n", text, "", *lines, ""])


def _sql_name(table: Table) -> str:
    return f"{table.stage}.{table.table}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
