"""A crypto data and alpha platform: raw klines to portfolio holdings as one Dagster asset graph.

Nothing is imported here, so that every command pays only for what it uses; start at ``definitions.py``.
"""

__version__ = "0.1.0"
