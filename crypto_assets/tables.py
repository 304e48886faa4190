"""Every table of this deployment: the fixed contracts and those that ``platform.yaml`` declares.

Here: contracts of declared sets of features and labels, and the one list of all tables. Not here: the fixed contracts
(``schemas.py``) and what a declaration means (``quant``). Everybody may import it but ``settings``, ``quant`` and
``formats``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from crypto_assets.quant.feature_sets import FeatureSet
from crypto_assets.quant.generators.declared import Feature, Measured, version_of
from crypto_assets.quant.labels import Label, LabelSet
from crypto_assets.schemas import FIXED_TABLES, Column, Table
from crypto_assets.settings import Settings, current_settings

_IDENTITY = FIXED_TABLES["features/universe"].columns[:4]


def declared_tables(settings: Settings) -> dict[str, Table]:
    """Contracts of what the settings declare, by name."""
    return {
        **{
            f"features/{name}": _feature_table(chosen, settings.interval_of(name))
            for name, chosen in settings.feature_sets.items()
        },
        "features/cross_section": _cross_section_table(settings),
        **{f"labels/{name}": _label_table(chosen) for name, chosen in settings.label_sets.items()},
    }


def _feature_table(chosen: FeatureSet, interval: str) -> Table:
    columns = [
        _feature_column(entry.generator, feature, chosen.grid.measured.get(feature.name))
        for entry, features in zip(chosen.entries, chosen.by_entry, strict=True)
        for feature in features
    ]
    return Table(
        f"features/{chosen.name}",
        f"one row per symbol and bar of {interval}: {len(columns)} declared features",
        (*_IDENTITY, *columns),
        ("symbol", "ts"),
        "daily",
        "replace",
        f"end of the bar of {interval}",
        version=chosen.version,
    )


def _feature_column(generator: str, feature: Feature, measured: Measured | None) -> Column:
    lengths = {"lookback_bars": str(feature.lookback), "warm_up_bars": str(feature.warm_up)}
    if measured is not None:
        lengths |= {"measured_bars": str(measured.bars), "bound": f"{measured.bound:g}"}
    return Column(feature.name, "DOUBLE", feature.meaning, tags=_tags(generator, feature, lengths))


def _cross_section_table(settings: Settings) -> Table:
    # A column that is made otherwise stands otherwise, even under the same name.
    made_by = {f"features/{name}": chosen.version for name, chosen in settings.feature_sets.items()}
    terms = [(one.kind, one.column, made_by.get(one.table)) for one in settings.standings]
    columns = [
        Column(
            one.name,
            "DOUBLE",
            one.meaning,
            tags=(("generator", f"xs_{one.kind}"), ("inputs", one.column), ("unit", one.kind)),
        )
        for one in settings.standings
    ]
    return Table(
        "features/cross_section",
        "one row per eligible symbol and raster interval: its standing among the eligible of that moment (SQL)",
        (
            *_IDENTITY,
            *columns,
            Column("n_eligible", "BIGINT", "eligible symbols at that moment", required=True),
        ),
        ("symbol", "ts"),
        "daily",
        "replace",
        "end of the bar",
        version=version_of("cross_section", terms, []),
    )


def _label_table(chosen: LabelSet) -> Table:
    columns = [
        _label_column(entry.generator, label)
        for entry, labels in zip(chosen.entries, chosen.by_entry, strict=True)
        for label in labels
    ]
    symbol, ts, known_at, listing = _IDENTITY
    return Table(
        f"labels/{chosen.name}",
        f"one row per symbol and raster interval with a bar: {len(columns)} declared labels",
        (symbol, ts, replace(known_at, required=False), listing, *columns),
        ("symbol", "ts"),
        "daily",
        "replace",
        "when the last of the row's labels is decided; NULL before",
        decided_later=("known_at", *(column.name for column in columns)),
        version=chosen.version,
    )


def _label_column(generator: str, label: Label) -> Column:
    lengths = {"looks_ahead": str(label.lookahead), "looks_back": str(label.lookback)}
    return Column(label.name, label.type, label.meaning, tags=_tags(generator, label, lengths))


def _tags(
    generator: str, declared: Feature | Label, lengths: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    tags = {
        "generator": generator,
        "parameters": json.dumps(dict(declared.parameters), sort_keys=True, default=str),
        "inputs": ", ".join(declared.inputs),
        "unit": declared.unit,
        **lengths,
    }
    return tuple(tags.items())


def every_table(settings: Settings) -> dict[str, Table]:
    """All contracts of a deployment by name, stage by stage."""
    stages = list(dict.fromkeys(table.stage for table in FIXED_TABLES.values()))
    found = [*FIXED_TABLES.values(), *declared_tables(settings).values()]
    return {table.name: table for table in sorted(found, key=lambda table: stages.index(table.stage))}


TABLES: dict[str, Table] = every_table(current_settings())


def table_of(name: str) -> Table:
    """The contract of ``stage/asset``.

    Raises
    ------
    KeyError
        With what to do, if the table has no contract.
    """
    try:
        return TABLES[name]
    except KeyError:
        raise KeyError(
            f"{name} has no contract: declare it in platform.yaml, or its columns in crypto_assets/schemas.py"
        ) from None
