"""The assets, one module per stage: thin functions that read windows, call ``quant`` and return rows.

No arithmetic on rows, no HTTP, no files, no database here; ``definitions.py`` gathers the modules. Dagster reads
annotations as objects, so these modules do not postpone them.
"""
