"""Where the recorded market data lies, and the marker of tests that need it.

The recordings stay outside the repository; CI has them beside the checkout, a fresh machine may not.
"""

from __future__ import annotations

from pathlib import Path

import pytest

RECORDED = Path(__file__).resolve().parents[2] / "shared" / "recorded"

needs_recorded = pytest.mark.skipif(
    not RECORDED.is_dir(),
    reason=f"the recorded market data is not in {RECORDED.parent.name}/{RECORDED.name} beside the checkout",
)
