"""Each numbered fact of the recordings has a test that names it."""

from __future__ import annotations

import re
from pathlib import Path

from crypto_assets_tests.recorded import RECORDED, needs_recorded


@needs_recorded
def test_each_fact_of_the_recordings_is_named_by_a_test() -> None:
    facts = re.findall(r"^(\d+)\. \*\*", (RECORDED / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(facts) >= 11
    sources = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py")]
    named = {
        number for source in sources for number in re.findall(r"^def test_fact_(\d+)_", source, re.MULTILINE)
    }
    assert set(facts) <= named
