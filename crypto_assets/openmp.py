"""LightGBM's OpenMP runtime: where ``libgomp.so.1`` is missing, scikit-learn's own copy of it stands in.

Slim Linux images lack the system package. ``make setup`` runs this module once; it changes the virtual environment and
nothing else. Not here: models. The doctor and the tests import it.
"""

from __future__ import annotations

import ctypes
import sysconfig
from pathlib import Path

LIBRARY = "libgomp.so.1"
REMEDY = "install the system package libgomp1 (Debian, Ubuntu), libgomp (Fedora, Alpine) or libomp (Homebrew)"
_FOLDER = "crypto_assets_openmp"


def loads() -> bool:
    """Whether LightGBM's library can be loaded in this process."""
    try:
        import lightgbm  # noqa: F401
    except OSError:
        return False
    return True


def bridge(site: Path) -> Path:
    """Put a copy of scikit-learn's OpenMP runtime, under the name LightGBM asks for, where every start loads it.

    Parameters
    ----------
    site
        The ``site-packages`` folder of a virtual environment.

    Returns
    -------
    Path
        The copy, which a ``.pth`` file beside it loads whenever Python starts.

    Raises
    ------
    FileNotFoundError
        If scikit-learn ships no copy; the message names the system package.
    ValueError
        If the copy is not named as expected inside.
    """
    shipped = next(site.glob("scikit_learn.libs/libgomp-*.so*"), None)
    if shipped is None:
        raise FileNotFoundError(f"{site}: scikit-learn ships no {LIBRARY} here; {REMEDY}")
    target = site / _FOLDER / LIBRARY
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(_renamed(shipped))
    load = f"import ctypes; ctypes.CDLL({str(target)!r}, ctypes.RTLD_GLOBAL)\n"
    (site / f"{_FOLDER}.pth").write_text(load, encoding="utf-8")
    return target


def _renamed(library: Path) -> bytes:
    # The loader matches a needed library by the name inside the loaded file, which wheels make unique. The new
    # name is shorter, so it fits in place.
    content = library.read_bytes()
    old = b"\0" + library.name.encode() + b"\0"
    new = b"\0" + LIBRARY.encode()
    if content.count(old) != 1:
        raise ValueError(
            f"{library}: its name is expected once inside, found {content.count(old)} times; {REMEDY}"
        )
    return content.replace(old, new.ljust(len(old), b"\0"))


def main() -> None:
    """Bridge the library if this environment cannot load LightGBM."""
    if loads():
        return
    try:
        ctypes.CDLL(str(bridge(Path(sysconfig.get_path("purelib")))), ctypes.RTLD_GLOBAL)
    except (OSError, ValueError) as error:
        print(f"LightGBM cannot be loaded, predictions will fail: {error}")
        return
    if not loads():
        print(f"LightGBM cannot be loaded, predictions will fail; {REMEDY}")


if __name__ == "__main__":
    main()
