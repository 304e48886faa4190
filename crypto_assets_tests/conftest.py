"""One configuration for the whole suite: a small synthetic market.

Partitions are built from the settings when the package is first imported, so the choice has to be made before that,
and whatever the caller's shell says must not change what is tested.
"""

from __future__ import annotations

import os
from pathlib import Path

for _name in [name for name in os.environ if name.startswith(("CRYPTO_ASSETS_", "COINGECKO_"))]:
    del os.environ[_name]
os.environ["CRYPTO_ASSETS_CONFIG"] = str(Path(__file__).parent / "graph" / "platform.yaml")
