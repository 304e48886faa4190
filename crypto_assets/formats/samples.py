"""Files of funding rates and open interest: the exchange's archive and answers, and tables with common names.

Here: which column means what, typed. Not here: containers, single values, and storing. Resources and tests import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import pyarrow as pa

from crypto_assets.formats.klines import market_of
from crypto_assets.formats.tables import Bytes, columns_of
from crypto_assets.formats.values import floats_of, times_of, utc_text

#: Our name -> names under which people keep the column.
FUNDING_NAMES: Mapping[str, tuple[str, ...]] = {
    "settled_at": (
        "settled_at",
        "calc_time",
        "fundingtime",
        "funding_time",
        "fundingratetimestamp",
        "timestamp",
        "date",
        "datetime",
        "time",
    ),
    # Freqtrade keeps the rate as the open of a candle.
    "funding_rate_frac": (
        "funding_rate_frac",
        "last_funding_rate",
        "fundingrate",
        "funding_rate",
        "lastfundingrate",
        "rate",
        "open",
    ),
    "mark_price": ("mark_price", "markprice"),
    "interval_hours": ("funding_interval_hours",),
}
OPEN_INTEREST_NAMES: Mapping[str, tuple[str, ...]] = {
    "ts": ("ts", "timestamp", "create_time", "date", "datetime", "time"),
    "open_interest_base": (
        "open_interest_base",
        "sum_open_interest",
        "sumopeninterest",
        "open_interest",
        "openinterest",
    ),
    "open_interest_quote": ("open_interest_quote", "sum_open_interest_value", "sumopeninterestvalue"),
}


@dataclass(frozen=True)
class SampleFile:
    """The rows of one content, in its order.

    Attributes
    ----------
    columns
        Times (``settled_at`` or ``ts``) int64 epoch milliseconds UTC, all else float64; columns that the content lacks
        are left out. Of funding: ``settled_at``, ``funding_rate_frac``, ``mark_price`` (quote units) and
        ``interval_hours`` (from a settlement to the next). Of open interest: ``ts``, ``open_interest_base`` (base
        units) and ``open_interest_quote`` (quote units).
    market
        The market that the rows name, ``None`` where they name none.
    detected
        What was detected.
    """

    columns: dict[str, pa.Array]
    market: str | None
    detected: str


def read_funding(data: Bytes, *, offset: timedelta | None = None) -> SampleFile:
    """Read the funding rates of one content: archive CSV, recorded answers of the exchange, tables with common names.

    Parameters
    ----------
    data
        Its bytes, out of its containers.
    offset
        How far times without a zone are ahead of UTC.

    Raises
    ------
    ValueError
        If it cannot be read, a time or rate is missing, or the zone is not certain.

    Examples
    --------
    >>> answer = b'[{"symbol": "BTCUSDT", "fundingTime": 1704096000009, "fundingRate": "0.00010000"}]'
    >>> read_funding(answer).columns["funding_rate_frac"].to_pylist()
    [0.0001]
    """
    return _read(data, FUNDING_NAMES, "settled_at", "funding_rate_frac", offset)


def read_open_interest(data: Bytes, *, offset: timedelta | None = None) -> SampleFile:
    """Read the samples of open interest of one content; parameters and errors as ``read_funding``."""
    return _read(data, OPEN_INTEREST_NAMES, "ts", "open_interest_base", offset)


def _read(
    data: Bytes, names: Mapping[str, tuple[str, ...]], time: str, value: str, offset: timedelta | None
) -> SampleFile:
    found = columns_of(data)
    raw = {
        meaning: found.columns[name]
        for meaning, spellings in names.items()
        for name in reversed(spellings)
        if name in found.columns
    }
    for needed in (time, value):
        if needed not in raw:
            raise ValueError(f"its columns {', '.join(found.columns)} lack one of {', '.join(names[needed])}")
    times = times_of(raw.pop(time), time)
    columns = {time: times.in_utc(offset)} | {name: floats_of(values, name) for name, values in raw.items()}
    for needed in (time, value):
        if columns[needed].null_count:
            raise ValueError(
                f"{needed} is missing in {columns[needed].null_count} of {len(columns[needed])} rows"
            )
    zone = f", {utc_text(offset)} as told" if offset is not None and not times.zoned else ""
    return SampleFile(columns, market_of(found.columns), f"{found.form}, times in {times.wording}{zone}")
