"""Pure quantitative functions, one module per stage plus kernels, backtest and invariants.

Nothing here reads a file, a clock, the environment or a database, and nothing imports Dagster. Assets call it.
"""
