"""The data dictionary says what the contracts say, and the committed page is up to date."""

from __future__ import annotations

import re

import pytest

from crypto_assets.dictionary import data_dictionary
from crypto_assets.local import ROOT
from crypto_assets.schemas import Table
from crypto_assets.settings import load_settings
from crypto_assets.tables import TABLES, every_table

PAGE = ROOT / "docs" / "data_dictionary.md"


def section(table: Table) -> str:
    text = data_dictionary()
    start = text.index(f"\n### {table.stage}.{table.table}\n")
    end = re.compile(r"\n##").search(text, start + 4)
    return text[start : end.start() if end else len(text)]


def test_the_committed_page_is_up_to_date() -> None:
    shipped = every_table(load_settings(ROOT / "platform.yaml", {}))
    assert PAGE.read_text(encoding="utf-8") == data_dictionary(shipped.values()), (
        "run make docs and commit the page"
    )


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_every_table_has_a_section_with_its_columns_in_storage_order(table: Table) -> None:
    rows = [line.split(" | ") for line in section(table).splitlines() if line.startswith("| ")][2:]
    assert [row[0].strip("|* ") for row in rows] == table.column_names
    assert [row[1] for row in rows] == [column.type for column in table.columns]


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_bold_columns_are_exactly_those_that_are_never_null(table: Table) -> None:
    bold = set(re.findall(r"^\| \*\*(\w+)\*\*", section(table), re.MULTILINE))
    assert bold == {column.name for column in table.columns if column.required} | set(table.key)


def test_every_clock_and_way_of_writing_is_explained_before_the_tables() -> None:
    head = data_dictionary().split("| table |")[0]
    used = {word for table in TABLES.values() for word in (table.clock, table.write)}
    assert used <= set(re.findall(r"`(\w+)`", head))


def test_every_link_of_the_contents_leads_to_a_heading() -> None:
    text = data_dictionary()
    # A heading's anchor on the usual Markdown sites: lower case, without punctuation.
    anchors = {re.sub(r"[^\w -]", "", heading) for heading in re.findall(r"^### (.+)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(\w+)\)", text)) == anchors
