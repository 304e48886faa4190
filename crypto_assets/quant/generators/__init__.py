"""The generators of features: one module a family, found by the name that ``platform.yaml`` gives.

Here: which families there are and how an entry finds its own. Not here: what a generator promises (``declared.py``), a
formula (the modules) and sets (``feature_sets.py``, one level up). Settings, ``quant`` and tests import it.
"""

from __future__ import annotations

from typing import Any, cast

from crypto_assets.quant.generators import declared
from crypto_assets.quant.generators.declared import Generator, Options

#: Families of features by name; a name with a colon is a function of the user's own.
GENERATORS = ("depth", "indicators", "itblib", "itbstats", "market", "talib", "tsfresh")


def generator_of(name: str) -> Generator:
    """The module of a generator; ``ValueError`` if there is none of that name."""
    known = ("custom",) if ":" in name else GENERATORS
    chosen = "custom" if ":" in name else name
    found = declared.module_named(__name__, chosen, known, "generator", ", or module:function of your own")
    return cast("Generator", found)


def entry_of(raw: Any) -> Options:
    """Check one entry of a feature set; ``ValueError`` names the parameter, its value and what is allowed."""
    return declared.read_entry(raw, generator_of)
