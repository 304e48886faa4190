"""The layering rules of docs/architecture.md, each one a test."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from crypto_assets.checks import checks_of
from crypto_assets.definitions import STAGE_SETTINGS, STAGES, defs, lineage_of
from crypto_assets.settings import Settings, current_settings
from crypto_assets.tables import TABLES

PACKAGE = Path(__file__).resolve().parents[1] / "crypto_assets"
GRAPH = defs.resolve_asset_graph()
KEYS = sorted(GRAPH.get_all_asset_keys())
ORDER = {stage: position for position, stage in enumerate(STAGES)}
#: What of the simulation touches the world: it serves, reads recordings, or waits. Everything else is pure.
WORLDLY = {"server", "recordings", "clock", "budgets"}
#: What layers without I/O may import besides themselves: it knows none of them.
SHARED = tuple(f"crypto_assets.{name}" for name in ("intervals", "jit", "reserved", "schemas"))
COMMAND_LINE = {"cli", "cli_sources", "screen"}


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (PACKAGE / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def names_used(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)}


def calls(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def begins_with_any(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


WORLDS = [path for path in modules("simulation") if path.stem not in WORLDLY]
PURE = modules("quant") + WORLDS
NETWORK = ("ccxt", "pycoingecko", "requests", "aiohttp", "urllib", "http", "socket")
IMPURE = ("dagster", "duckdb", "dbt", "os", "time", "random", *NETWORK)
CLOCKS = {"datetime.now", "datetime.utcnow", "datetime.today", "date.today", "pd.Timestamp.now"}
EVERY_MODULE = pytest.mark.parametrize("path", modules("."), ids=lambda path: str(path.relative_to(PACKAGE)))


def imports_of_ours(path: Path) -> set[str]:
    """What a module imports of the package, as far as it is a module or package there."""
    named = {name for name in imports(path) if begins_with_any(name, ("crypto_assets",))}
    files = {name: PACKAGE.parent / Path(*name.split(".")) for name in named - {"crypto_assets"}}
    return {name for name, file in files.items() if file.is_dir() or file.with_suffix(".py").is_file()}


@pytest.mark.parametrize("path", PURE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_quant_and_worlds_touch_no_orchestrator_database_network_clock_or_environment(path: Path) -> None:
    assert not [name for name in imports(path) if begins_with_any(name, IMPURE)]
    called = calls(path)
    assert not called & {*CLOCKS, "open"}
    assert not [
        name for name in called if name.endswith((".read_text", ".read_bytes", ".write_text", ".open"))
    ]
    assert not re.search(r"default_rng\(\s*\)", path.read_text(encoding="utf-8")), "randomness takes a seed"


@pytest.mark.parametrize("path", modules("quant"), ids=lambda path: path.name)
def test_quant_imports_what_all_share_besides_itself(path: Path) -> None:
    allowed = ("crypto_assets.quant", *SHARED)
    assert not [name for name in imports_of_ours(path) if not begins_with_any(name, allowed)]


#: Compiled loops and large libraries: whoever imports a module of ours should not wait for them.
HEAVY = ("numba", "talib", "matplotlib", "scipy", "sklearn", "lightgbm", "pypfopt")


@EVERY_MODULE
def test_heavy_libraries_are_imported_where_they_are_used(path: Path) -> None:
    if path.stem == "compiled":
        return
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        assert not [name for name in names if begins_with_any(name, HEAVY) or name.endswith(".compiled")]


@pytest.mark.parametrize("path", modules("simulation"), ids=lambda path: path.name)
def test_the_simulation_knows_nothing_of_the_platform_that_asks_it(path: Path) -> None:
    allowed = ("crypto_assets.simulation", "crypto_assets.intervals")
    assert not [name for name in imports_of_ours(path) if not begins_with_any(name, allowed)]


@pytest.mark.parametrize("path", WORLDS, ids=lambda path: path.name)
def test_worlds_import_nothing_of_the_simulation_that_touches_the_world(path: Path) -> None:
    worldly = tuple(f"crypto_assets.simulation.{name}" for name in WORLDLY)
    assert not [name for name in imports_of_ours(path) if begins_with_any(name, worldly)]


def test_every_module_that_touches_the_world_is_there() -> None:
    assert {path.stem for path in modules("simulation")} >= WORLDLY


@pytest.mark.parametrize("path", modules("formats"), ids=lambda path: path.name)
def test_formats_know_files_and_nothing_of_network_clock_or_warehouse(path: Path) -> None:
    allowed = ("crypto_assets.formats", *SHARED)
    assert not [name for name in imports_of_ours(path) if not begins_with_any(name, allowed)]
    assert not [
        name for name in imports(path) if begins_with_any(name, ("dagster", "duckdb", "time", *NETWORK))
    ]
    assert not calls(path) & CLOCKS


@EVERY_MODULE
def test_the_command_line_alone_imports_the_simulation(path: Path) -> None:
    if path.parent.name != "simulation" and path.stem not in COMMAND_LINE:
        assert not [name for name in imports(path) if begins_with_any(name, ("crypto_assets.simulation",))]


@pytest.mark.parametrize("path", [PACKAGE / "rules.py"], ids=lambda path: path.name)
def test_rules_are_words_and_sql_that_others_evaluate(path: Path) -> None:
    assert not [name for name in imports(path) if begins_with_any(name, ("dagster", "duckdb", "pyarrow"))]
    assert not [name for name in imports_of_ours(path) if name == "crypto_assets.checks"]


@pytest.mark.parametrize("path", modules("assets"), ids=lambda path: path.name)
def test_assets_never_import_each_other_nor_a_database_nor_a_client(path: Path) -> None:
    forbidden = ("crypto_assets.assets", "duckdb", "ccxt", "pycoingecko", "requests")
    assert not [name for name in imports(path) if begins_with_any(name, forbidden)]


@pytest.mark.parametrize("path", modules("assets"), ids=lambda path: path.name)
def test_asset_bodies_stay_short_and_loop_over_no_rows(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            statements = [inner for inner in ast.walk(node) if isinstance(inner, ast.stmt)]
            assert len(statements) <= 25, f"{path.name}: {node.name} has {len(statements)} statements"
            assert not names_used(path) & {"iterrows", "itertuples"}


@pytest.mark.parametrize("path", modules("resources"), ids=lambda path: path.name)
def test_resources_never_import_assets_or_quant(path: Path) -> None:
    assert not [
        name
        for name in imports(path)
        if begins_with_any(name, ("crypto_assets.assets", "crypto_assets.quant"))
    ]


def test_only_partitions_builds_partition_definitions_and_only_definitions_builds_definitions() -> None:
    for path in modules("."):
        called = calls(path)
        if path.name != "partitions.py":
            assert not {name for name in called if name.endswith("PartitionsDefinition")}
        if path.name != "definitions.py":
            assert not {name for name in called if name.endswith("Definitions")}


def test_only_settings_reads_the_environment() -> None:
    # dbt takes its window and Dagster its home from variables that their callers set; both only write them.
    writers = {"dbt.py", "screen.py"}
    ways = {"os.environ", "os.getenv", "environ", "getenv"}
    readers = {path.name for path in modules(".") if ways & names_used(path)}
    assert readers - writers == {"settings.py"}
    # A key stays out of run configuration: Dagster itself reads it when a run starts.
    assert {path.name for path in modules(".") if "dg.EnvVar" in names_used(path)} == {"definitions.py"}


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.to_user_string())
def test_every_asset_has_contract_group_kind_and_docstring(key: dg.AssetKey) -> None:
    node = GRAPH.get(key)
    stage, table = key.path
    assert f"{stage}/{table}" in TABLES
    assert node.group_name == stage
    assert node.kinds
    assert (node.description or "").startswith("One row per")


def test_every_contract_has_an_asset() -> None:
    assert {"/".join(key.path) for key in KEYS} == set(TABLES)


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.to_user_string())
def test_parents_belong_to_the_same_or_an_earlier_stage(key: dg.AssetKey) -> None:
    for parent in GRAPH.get(key).parent_keys:
        assert ORDER[parent.path[0]] <= ORDER[key.path[0]], f"{parent} feeds {key}"


def offsets(key: dg.AssetKey, parent: dg.AssetKey) -> tuple[int, int]:
    mapping = GRAPH.get(key).partition_mappings.get(parent)
    return (getattr(mapping, "start_offset", 0), getattr(mapping, "end_offset", 0))


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.to_user_string())
def test_labels_alone_look_ahead_and_fits_read_history_alone(key: dg.AssetKey) -> None:
    for parent in GRAPH.get(key).parent_keys:
        start, end = offsets(key, parent)
        if key.path[0] == "labels":
            continue
        assert end <= 0, f"{key} looks ahead at {parent}"
        if TABLES["/".join(key.path)].clock == "weekly" and key.path[0] != "rollups":
            assert start < 0 and end == -1, f"{key} must read {parent} through history()"


def test_labels_feed_fits_alone() -> None:
    fits = {key for key in KEYS if TABLES["/".join(key.path)].clock == "weekly" and key.path[0] != "rollups"}
    readers = {
        key for key in KEYS if any(parent.path[0] == "labels" for parent in GRAPH.get(key).parent_keys)
    }
    assert readers <= fits


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.to_user_string())
def test_every_asset_has_a_contract_check_and_none_of_our_other_checks_blocks(key: dg.AssetKey) -> None:
    table = TABLES["/".join(key.path)]
    wired = {check.name: GRAPH.get(check).blocking for check in GRAPH.get(key).check_keys}
    ours = [check.name for check in checks_of(table, current_settings())]
    assert {name: wired[name] for name in ours} == dict.fromkeys(ours, False) | {"contract": True}
    assert ("known_at" in ours) == ("known_at" in table.column_names)


@pytest.mark.parametrize("stage", STAGE_SETTINGS)
def test_a_stage_is_made_again_when_a_setting_that_its_module_reads_is_edited(stage: str) -> None:
    files = [PACKAGE / "assets" / f"{stage}.py"]
    if stage in ("rollups", "features"):
        files.append(PACKAGE / "resources" / "dbt_assets.py")
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    read = {
        tuple(name.split("."))
        for name in re.findall(r"\bsettings(?:\(\))?\.([a-z_]+(?:\.[a-z_]+)?)", text)
        if name.split(".")[0] in Settings.model_fields
    }
    named = {tuple(name.split(".")) for name in STAGE_SETTINGS[stage]}
    assert not [found for found in read if not {found, found[:1]} & named]


def test_an_edit_of_a_stages_settings_changes_the_version_of_its_tables_alone() -> None:
    settings = current_settings()
    edited = settings.model_copy(update={"costs": settings.costs.model_copy(update={"fee_bps": 11.0})})
    before, after = lineage_of(settings).code_versions, lineage_of(edited).code_versions
    changed = {name.split("/")[0] for name in before if before[name] != after[name]}
    assert changed == {stage for stage, sections in STAGE_SETTINGS.items() if "costs" in sections}


def test_another_declared_set_changes_the_version_of_no_other_table() -> None:
    settings = current_settings()
    (kept, *_) = settings.labels.sets
    labels = settings.labels.model_copy(update={"sets": {kept: settings.labels.sets[kept]}})
    features = {name: declared for name, declared in settings.features.items() if name != "every_talib"}
    edited = settings.model_copy(update={"labels": labels, "features": features})
    before, after = lineage_of(settings).code_versions, lineage_of(edited).code_versions
    assert before == after
