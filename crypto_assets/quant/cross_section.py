"""Standings among the symbols that were eligible at a moment: which there are, and how their columns are named.

Here: the declaration. Not here: computing them (the dbt model ``features/cross_section``) and who is eligible
(``features.py``). Settings, contracts and the runner of dbt import it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from crypto_assets.quant.feature_sets import unit_of
from crypto_assets.quant.kernels import XS_MIN

Kind = Literal["rank", "z"]
_MEANINGS: dict[Kind, str] = {
    "rank": "(rank - 0.5) / n of {column} among the eligible that have one, ties average; NULL if n < {fewest}",
    "z": "(x - mean) / sample sd of {column} among the eligible that have one; NULL if n < {fewest} or all are equal",
}


@dataclass(frozen=True)
class Standing:
    """One column of ``features/cross_section``.

    Attributes
    ----------
    column, table
        What is compared, and the contract name of the table that holds it.
    kind
        ``rank`` or ``z``.
    """

    column: str
    table: str
    kind: Kind

    @property
    def name(self) -> str:
        """Name of the result: the column's without its unit, and ``xs_rank`` or ``xs_z``.

        Examples
        --------
        >>> Standing("return_24h_log", "features/price_action", "rank").name
        'return_24h_xs_rank'
        >>> Standing("volume_ratio_24h", "features/price_action", "z").name
        'volume_ratio_24h_xs_z'
        """
        unit = f"_{unit_of(self.column)}"
        return f"{self.column.removesuffix(unit)}_xs_{self.kind}"

    @property
    def meaning(self) -> str:
        """One line, formula included."""
        return _MEANINGS[self.kind].format(column=self.column, fewest=XS_MIN)


def standings(
    ranks: Iterable[str], zscores: Iterable[str], tables: Mapping[str, str]
) -> tuple[Standing, ...]:
    """Declare the columns of the cross-section: ranks first, then z-scores.

    Parameters
    ----------
    ranks, zscores
        Columns to compare.
    tables
        Columns that may be compared -> the table they are in.

    Raises
    ------
    ValueError
        If a column is not there or two results have one name; the message names them and what is allowed.
    """
    found: dict[str, Standing] = {}
    for kind, columns in (("rank", ranks), ("z", zscores)):
        for column in columns:
            if column not in tables:
                raise ValueError(f"there is no column {column}; allowed: {', '.join(sorted(tables))}")
            standing = Standing(column, tables[column], kind)
            if standing.name in found:
                raise ValueError(
                    f"{found[standing.name].column} and {column} would both be {standing.name}; name one of them"
                )
            found[standing.name] = standing
    return tuple(found.values())
