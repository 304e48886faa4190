"""The lineage page in a real browser: the stages are groups, and every arrow points to the right.

The picture in the documents comes from here: remove ``docs/lineage.png``, run ``make test-services`` and look at it.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from crypto_assets import local
from crypto_assets.definitions import STAGES, defs

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "lineage.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
MARGIN = 16

pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(BROWSER is None, reason=f"no browser is installed; looked for {', '.join(BROWSERS)}"),
]

Box = dict[str, float]


@dataclass(frozen=True)
class Opened:
    """The page with its graph drawn, and what went wrong on the way there."""

    page: Any
    problems: list[str]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.create_server((local.HOST, 0)) as listener:
        port = listener.getsockname()[1]
    home = tmp_path_factory.mktemp("home")
    local.prepare_home(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(home))
        patch.setenv("CRYPTO_ASSETS_DATA", str(tmp_path_factory.mktemp("warehouse")))
        with local.web_ui(port):
            yield f"http://{local.HOST}:{port}"


@pytest.fixture(scope="module")
def lineage(address: str) -> Iterator[Opened]:
    from playwright.sync_api import sync_playwright

    # Chromium refuses its sandbox to root, as whom containers run.
    options = ["--disable-gpu", "--disable-quic", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=options)
        opened = browser.new_page(viewport={"width": 2400, "height": 1000})
        problems: list[str] = []
        opened.on("requestfailed", lambda request: problems.append(request.url))
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.goto(f"{address}/asset-groups")
        opened.wait_for_function(
            "n => document.querySelectorAll('svg foreignObject.group').length === n", arg=len(STAGES)
        )
        # The graph slides to its place first.
        opened.wait_for_function(
            """() => {
                const text = document.querySelector('svg foreignObject.group').getBoundingClientRect().x;
                const still = text === window.lastX;
                window.lastX = text;
                return still;
            }""",
            polling=500,
        )
        yield Opened(opened, problems)
        browser.close()


@pytest.fixture(scope="module")
def groups(lineage: Opened) -> dict[str, Box]:
    return {
        group.text_content().strip(): group.bounding_box()
        for group in lineage.page.query_selector_all("svg foreignObject.group")
    }


def test_every_stage_is_a_group_and_there_is_no_other(groups: dict[str, Box]) -> None:
    assert set(groups) == set(STAGES)


def test_every_arrow_between_stages_points_to_the_right(groups: dict[str, Box]) -> None:
    graph = defs.resolve_asset_graph()
    arrows = {
        (parent.path[0], key.path[0])
        for key in graph.get_all_asset_keys()
        for parent in graph.get(key).parent_keys
        if parent.path[0] != key.path[0]
    }
    assert {
        ("raw", "rollups"),
        ("rollups", "features"),
        ("weights", "holdings"),
        ("holdings", "reports"),
    } <= arrows
    backward = {
        f"{source} -> {target}"
        for source, target in arrows
        if groups[source]["x"] + groups[source]["width"] > groups[target]["x"]
    }
    assert backward == set()


def test_the_page_needs_no_network_and_raises_no_error(lineage: Opened, groups: dict[str, Box]) -> None:
    assert groups
    assert lineage.problems == []


def test_the_documents_have_a_picture_of_the_page(
    lineage: Opened, groups: dict[str, Box], tmp_path: Path
) -> None:
    left, top = (min(box[side] for box in groups.values()) - MARGIN for side in ("x", "y"))
    right = max(box["x"] + box["width"] for box in groups.values()) + MARGIN
    bottom = max(box["y"] + box["height"] for box in groups.values()) + MARGIN
    target = tmp_path / "lineage.png" if PICTURE.exists() else PICTURE
    lineage.page.screenshot(
        path=target, clip={"x": left, "y": top, "width": right - left, "height": bottom - top}
    )
    assert target.stat().st_size > 10_000
