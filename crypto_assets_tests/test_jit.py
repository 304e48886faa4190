"""Loops are compiled whether or not their machine code can be kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crypto_assets.formats import compiled as of_formats
from crypto_assets.jit import jit
from crypto_assets.quant import compiled as of_windows
from crypto_assets.quant.labels import compiled as of_labels


def twice(x: float) -> float:
    return 2.0 * x


def without_a_file(text: str) -> dict[str, Any]:
    """What a module defines that stands in no file, so that there is no folder for its machine code."""
    names: dict[str, Any] = {"__name__": "nowhere"}
    exec(text, names)
    return names


def test_a_function_whose_machine_code_can_be_kept_nowhere_is_compiled_all_the_same() -> None:
    made: Callable[[float], float] = jit(without_a_file("def twice(x):\n    return 2.0 * x\n")["twice"])
    assert made(3.0) == 6.0


def test_options_reach_the_compiler_in_either_case() -> None:
    for function in (twice, without_a_file("def twice(x):\n    return 2.0 * x\n")["twice"]):
        made: Any = jit(function, nogil=True, error_model="numpy")
        assert made.targetoptions["nogil"] is True
        assert made.targetoptions["error_model"] == "numpy"


@pytest.mark.parametrize("module", [of_formats, of_windows, of_labels], ids=lambda module: module.__name__)
def test_every_module_of_loops_can_be_imported_where_nothing_can_be_written(module: Any) -> None:
    names = without_a_file(Path(module.__file__).read_text(encoding="utf-8"))
    assert {name for name, value in vars(module).items() if hasattr(value, "signatures")} <= set(names)


def test_lines_are_counted_where_nothing_can_be_written() -> None:
    names = without_a_file(Path(of_formats.__file__).read_text(encoding="utf-8"))
    assert names["count_lines"](np.frombuffer(b"a\nb\n", np.uint8)) == 2
