"""Files of candles, funding rates and open interest, as exchanges publish and people keep them: bytes in, Arrow out.

Here: containers, names, times, numbers and columns of such files, and what was detected about them. Not here: what rows
are worth (``resources.klines``), where files come from (``resources.archive``) and go to (``resources.importer``); no
network, no clock, no warehouse. Resources and tests import it.
"""
