"""The file ``warm_up.yaml`` beside ``platform.yaml``: how much history each feature was measured to need.

Here: what the file holds, reading and writing it. Not here: measuring (``quant/warm_up.py``) and what follows from it
(``settings.py``, ``tables.py``). Settings and the command that measures import it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, NaiveDatetime, TypeAdapter, ValidationError

from crypto_assets.quant.generators.declared import Measured

NAME = "warm_up.yaml"
COMMAND = "crypto-assets features measure"

_HEAD = f"""# How many bars of history each declared feature needs, made by `{COMMAND}`, not by hand. Of each
# column: the shortest history that gives the value of all history within the bound (relative; 0: equal), the largest
# difference left, how many values were compared, and what was declared: bars that every row has, bars before its first
# value; null where the declaration leaves it to this file. An entry or interval that is changed has another key, so
# what stands here no longer counts for it.
"""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MeasuredOn(_Record):
    """What was measured on: where the bars come from, in which world, and how many of each listing."""

    bars: str
    world: str
    first: NaiveDatetime
    last: NaiveDatetime
    n_bars: int
    listings: tuple[str, ...]


class MeasuredColumn(_Record):
    """What was found of one column, and what was declared of it; None where the declaration leaves that open."""

    measured_bars: Annotated[int, Field(ge=0)]
    bound: Annotated[float, Field(ge=0)]
    error: Annotated[float, Field(ge=0)]
    n_values: Annotated[int, Field(ge=1)]
    assured_bars: int | None
    warm_up_bars: int | None

    @property
    def measured(self) -> Measured:
        """What was found."""
        return Measured(self.measured_bars, self.bound, self.error, self.n_values)


class MeasuredEntry(_Record):
    """One entry of a feature set: where it stands, what it says, and its columns."""

    feature_set: str
    interval: str
    entry: dict[str, Any]
    measured_on: MeasuredOn
    columns: dict[str, MeasuredColumn]


#: By ``quant.warm_up.key_of``.
Measurements = dict[str, MeasuredEntry]
_FILE = TypeAdapter(Measurements)


def by_key(measurements: Measurements) -> dict[str, dict[str, Measured]]:
    """What the quant side needs of it."""
    return {
        key: {name: column.measured for name, column in entry.columns.items()}
        for key, entry in measurements.items()
    }


def read_measurements(path: Path) -> Measurements:
    """What is stored; nothing if there is no file.

    Raises
    ------
    ValueError
        If it is damaged; the message names the file and the place and says what to do.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    try:
        # The compiled reader: every process reads this file, and it has a line for every feature.
        raw = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return _FILE.validate_python(raw or {})
    except yaml.YAMLError as error:
        reason = str(error)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    raise ValueError(f"{path}: is no file of measurements: {reason}; remove it and run `{COMMAND}`")


def write_measurements(path: Path, measurements: Mapping[str, MeasuredEntry]) -> None:
    """Put measurements in place of those that are stored, all or nothing; sorted by set, then by key."""
    parts = [_HEAD]
    for key, entry in sorted(measurements.items(), key=lambda pair: (pair[1].feature_set, pair[0])):
        parts.append(f"{_line(key)}:\n  feature_set: {_line(entry.feature_set)}\n")
        parts.append(f"  interval: {_line(entry.interval)}\n")
        parts.append(f"  entry: {_line(entry.entry)}\n")
        parts.append(f"  measured_on: {_line(entry.measured_on.model_dump(mode='json'))}\n  columns:\n")
        parts += [
            f"    {_line(name)}: {_line(column.model_dump())}\n"
            for name, column in sorted(entry.columns.items())
        ]
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text("".join(parts), encoding="utf-8")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _line(content: str | dict[str, Any]) -> str:
    text = yaml.safe_dump(content, default_flow_style=True, sort_keys=False, width=1 << 20)
    # Behind a text without quotes stands the mark of a document's end.
    return text.removesuffix("...\n").strip()
