"""One configuration for the whole suite: a small synthetic market.

Partitions are built from the settings when the package is first imported, so the choice has to be made before that,
and whatever the caller's shell says must not change what is tested.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

for _name in [name for name in os.environ if name.startswith(("CRYPTO_ASSETS_", "COINGECKO_"))]:
    del os.environ[_name]
os.environ["CRYPTO_ASSETS_CONFIG"] = str(Path(__file__).parent / "graph" / "platform.yaml")
# That file names a function of this package, which processes have to find that are started elsewhere.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Where tests run in several processes, those that share a costly fixture stay together.

    The graph's tests look at the same platforms, those of another file at what the file builds; the seeds of the hostile
    market have nothing in common.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            folder = Path(file).parent.name
            return {"graph": folder, "hostile": nodeid}.get(folder, file)

    return Together(config, log)
