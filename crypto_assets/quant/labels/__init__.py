"""Labels: what the future brought, for fitting only; the only part of ``quant`` that looks ahead.

Here: the names that assets, settings and tests use. The common part (fills, deaths, when a thing is decided) is
``future.py``, the words of a declaration ``declared.py``, a set of labels ``sets.py``, and one family a module beside
them. Imported by the assets of labels, settings and tests; no feature, factor or signal may import it.
"""

from crypto_assets.quant.labels.declared import DEATH_AFTER, FILL_WAIT, Label, Terms
from crypto_assets.quant.labels.fill_to_fill import forward_returns, horizon_name, lookahead
from crypto_assets.quant.labels.sets import LabelSet, entry_of

__all__ = [
    "DEATH_AFTER",
    "FILL_WAIT",
    "Label",
    "LabelSet",
    "Terms",
    "entry_of",
    "forward_returns",
    "horizon_name",
    "lookahead",
]
