"""The only code that does input and output: exchange, CoinGecko, warehouse, dbt.

Nothing here imports ``assets`` or ``quant``. Assets receive these classes as Dagster resources.
"""
