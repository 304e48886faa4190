"""How loops are compiled: once for all processes where the machine code can be kept, else by each for itself.

Here: that one helper. Not here: any loop (modules named ``compiled``). They alone import it; the compiler is imported
when the first function is handed over, because that takes most of a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


def jit(function: Function, **options: Any) -> Function:
    """Compile a function when it is first called and keep the machine code beside its module.

    Where neither that folder nor the user's cache can be written, every process compiles for itself. What is kept is
    renewed when the file of the function changes, so a compiled function calls none of another file.

    Parameters
    ----------
    function
        Loops on plain arrays and numbers.
    options
        Of ``numba.njit``, besides ``cache``.
    """
    import numba

    try:
        return cast("Function", numba.njit(cache=True, **options)(function))
    except RuntimeError:
        return cast("Function", numba.njit(**options)(function))
