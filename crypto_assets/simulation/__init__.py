"""A market in a box: synthetic and recorded worlds behind Binance- and CoinGecko-shaped HTTP servers.

Worlds are pure (arrays in, wire rows out, at a given clock); only ``recordings.py`` reads files and only
``server.py`` speaks HTTP. Nothing outside the demo, the command line and the tests imports this package.
"""
