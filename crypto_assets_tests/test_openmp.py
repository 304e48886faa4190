"""The stand-in for a missing OpenMP runtime carries the name that LightGBM asks for."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from crypto_assets import openmp

SHIPPED = Path(sysconfig.get_path("purelib")) / "scikit_learn.libs"
needs_shipped = pytest.mark.skipif(
    not any(SHIPPED.glob("libgomp-*.so*")), reason="this platform's scikit-learn ships no libgomp"
)

USE = """
import site, sys
site.addsitedir(sys.argv[1])
import lightgbm
maps = open("/proc/self/maps").read().split()
print(sorted({path for path in maps if path.split("/")[-1].startswith("libgomp.so.1")}))
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / SHIPPED.name).symlink_to(SHIPPED)
    return tmp_path


@needs_shipped
def test_lightgbm_uses_the_copy_and_asks_the_system_for_none(site: Path) -> None:
    copy = openmp.bridge(site)
    done = subprocess.run([sys.executable, "-c", USE, str(site)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([str(copy)])


def test_a_site_without_a_copy_is_told_with_the_name_of_the_system_package(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="ships no libgomp.so.1 here; install the system package libgomp1"
    ):
        openmp.bridge(tmp_path)


@pytest.mark.parametrize("times", [0, 2])
def test_a_copy_that_does_not_name_itself_once_is_refused(tmp_path: Path, times: int) -> None:
    name = "libgomp-0123abcd.so.1.0.0"
    (tmp_path / "scikit_learn.libs").mkdir()
    (tmp_path / "scikit_learn.libs" / name).write_bytes(
        b"\0ELF" + b"\0other\0".join([b"", *[name.encode()] * times, b""])
    )
    with pytest.raises(ValueError, match=rf"once inside, found {times} times"):
        openmp.bridge(tmp_path)
    assert not (tmp_path / "crypto_assets_openmp.pth").exists()
