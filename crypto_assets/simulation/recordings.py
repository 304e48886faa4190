"""Reads recorded klines, funding, open interest, listings and coin histories of many dialects.

Here: file names, containers (gz, tar.gz, zip), formats (wire JSON, CSV, Parquet, Feather) and column names.
Not here: what the data mean at a moment (``recorded``, ``world``). Tests, the demo and the command line
import it; it is the only module of the simulation that reads files.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from crypto_assets.intervals import HOUR_MS, from_ms
from crypto_assets.simulation.bars import EXCHANGE_INTERVALS, Bars, concatenate, last_row_wins, to_units
from crypto_assets.simulation.dialects import (
    WIRE_COLUMNS,
    Columns,
    bars_of_columns,
    funding_of_columns,
    open_interest_of_columns,
)
from crypto_assets.simulation.recorded import Listing, MarketRules, Recordings
from crypto_assets.simulation.world import (
    Coin,
    CoinCandles,
    CoinPoints,
    Funding,
    OpenInterest,
    no_funding,
    no_open_interest,
)

# The base is as short as it can be, so that BUSDUSDT is BUSD/USDT and ADATUSD is ADA/TUSD.
_PAIR = re.compile(
    "(?P<base>.+?)(?P<quote>USDT|BUSD|USDC|FDUSD|TUSD|USDP|USDS|USD1|USDE|USD|PAX|DAI|UST|VAI|BIDR|IDRT|BVND|BKRW|"
    "NGN|RUB|TRY|EUR|GBP|AUD|BRL|UAH|ZAR|PLN|RON|ARS|JPY|MXN|CZK|COP|BTC|ETH|BNB|XRP|TRX|DOGE|DOT|SOL)"
)
_INTERVAL = "|".join(EXCHANGE_INTERVALS)
_SYMBOL = r"[A-Z0-9]+(?:_[A-Z0-9]+)?"
_SERIES_NAME = re.compile(rf"(?P<symbol>{_SYMBOL})[-_](?P<interval>{_INTERVAL})(?=$|[-_.])")
_SYMBOL_NAME = re.compile(rf"(?P<symbol>{_SYMBOL})\.")
_INTERVAL_NAME = re.compile(rf"(?P<interval>{_INTERVAL})(?=$|\.)")
_LEADING_SYMBOL = re.compile(rf"(?P<symbol>{_SYMBOL})(?=[-.])")
_PERIOD_NAME = re.compile(
    rf"(?:oi|open_?interest(?:_?hist)?)[-_](?P<period>{_INTERVAL})(?=$|[-_./])", re.IGNORECASE
)
_DATED = re.compile(r"(?P<pair>.+)_(?P<date>\d{6})")
_LOCAL_TIME = re.compile(r"utc(?P<hours>[+-]\d{1,2})", re.IGNORECASE)
_COIN_NAME = re.compile(r"(?:(?:ohlc|market_chart)(?:_(?:daily|hourly))?-)?(?P<coin_id>.+?)\.json(?:\.gz)?")

_UNREADABLE = (ValueError, TypeError, KeyError, pa.ArrowException)

_Source = tuple[Path, str | None]
_T = TypeVar("_T")


def load_recordings(
    folder: Path,
    klines: Sequence[str] = (),
    coingecko: Sequence[str] = (),
    *,
    futures: Sequence[str] = (),
    funding: Sequence[str] = (),
    open_interest: Sequence[str] = (),
    unfinished: Sequence[str] = (),
    local_hours: Mapping[str, int] | None = None,
    exchange_info: str | Sequence[str] | None = None,
    coins_list: str | None = None,
) -> Recordings:
    """Index recorded files; their content is read when a world first asks for it.

    Parameters
    ----------
    folder
        Where the recordings lie.
    klines
        Glob patterns below it. Symbol and interval come from the file name (``BTCUSDT-1h.csv.gz``,
        ``BTC_USDT-1m-2021.json.gz``, ``BTCUSDT_1m.parquet``), or for members of a ``.tar.gz`` or ``.zip``
        from the member and the archive together (``BTCUSDT-1h.tar.gz`` full of pages, ``1d.tar.gz`` full of
        symbols).
    coingecko
        Glob patterns of ``market_chart`` dicts and ``ohlc`` lists, one coin a file or archive member; the
        coin id is the file name, a path with "ohlc" holds candles, with "hourly" hourly ones.
    futures
        Glob patterns of klines of USD-M contracts, named as those of pairs; BTCUSDT_251226 is a dated contract.
    funding
        Glob patterns of funding rates, one contract a file or member, whose name begins with the symbol.
    open_interest
        Glob patterns of open interest, likewise; archive or file say the period (``oi_1d.tar.gz``).
    unfinished
        Glob patterns of those files among ``klines`` and ``futures`` whose last row was still open when it was
        recorded: it is left out.
    local_hours
        How many hours stamps without a zone are ahead of UTC, by glob pattern of the files. Klines may say it in
        their name (``utc+9``).
    exchange_info
        Recordings of exchangeInfo, of pairs or contracts, relative to the folder. They say base, quote and
        steps; one that tells its time also says which markets there were then, in which state.
    coins_list
        Optional recording of the coin list, relative to the folder.

    Returns
    -------
    Recordings
        Of rows of one symbol and interval with one open time, the later one wins: the later row in a file,
        the later file in sorted order. What a missing column or a float becomes is said in ``dialects``.

    Raises
    ------
    ValueError
        If a pattern matches nothing, a name says no symbol and interval, or (on reading) a file has an
        unknown form.
    """
    names = [exchange_info] if isinstance(exchange_info, str) else exchange_info or ()
    told = [_listing(_document(_one(folder, name))) for name in names]
    told.sort(key=lambda listing: listing.told_ms)
    known = {futures: _known(told, futures) for futures in (False, True)}
    places = _Places(
        frozenset(_paths(folder, unfinished)),
        {path: hours for pattern, hours in (local_hours or {}).items() for path in _paths(folder, [pattern])},
    )
    series: dict[tuple[str, str], list[_Source]] = {}
    for patterns, are_futures in ((klines, False), (futures, True)):
        for source in _sources(folder, patterns):
            exchange_symbol, interval = _series_of(source)
            symbol = _symbol_of(exchange_symbol, known[are_futures], source, are_futures)
            series.setdefault((symbol, interval), []).append(source)
    settled: dict[str, list[_Source]] = {}
    for source in _sources(folder, funding):
        symbol = _symbol_of(_leading_symbol(source), known[True], source, True)
        settled.setdefault(symbol, []).append(source)
    sampled: dict[tuple[str, str], list[_Source]] = {}
    for source in _sources(folder, open_interest):
        symbol = _symbol_of(_leading_symbol(source), known[True], source, True)
        sampled.setdefault((symbol, _period_of(source)), []).append(source)
    charts: dict[str, list[_Source]] = {}
    candles: dict[tuple[str, str], list[_Source]] = {}
    for source in _sources(folder, coingecko):
        coin_id, kind = _coin_of(source)
        if kind == "chart":
            charts.setdefault(coin_id, []).append(source)
        else:
            candles.setdefault((coin_id, kind), []).append(source)
    return Recordings(
        klines={key: partial(_read_series, sources, key[1], places) for key, sources in series.items()},
        charts={coin_id: _joined(_read_chart, _join_points, sources) for coin_id, sources in charts.items()},
        candles={key: _joined(_read_candles, _join_candles, sources) for key, sources in candles.items()},
        coins=_coins(_document(_one(folder, coins_list))) if coins_list else None,
        rules={symbol: _rules(entry) for listing in told for symbol, entry in listing.entries.items()},
        listings=[listing for listing in told if listing.told_ms],
        funding={symbol: partial(_read_funding, sources, places) for symbol, sources in settled.items()},
        open_interest={
            key: partial(_read_open_interest, sources, places) for key, sources in sampled.items()
        },
    )


@dataclass(frozen=True)
class _Places:
    """What is said about single files: whose last row is open, and whose stamps are local."""

    unfinished: frozenset[Path]
    local_hours: Mapping[Path, int]

    def offset_ms(self, source: _Source) -> int:
        path, member = source
        local = _LOCAL_TIME.search(member or path.name)
        return HOUR_MS * self.local_hours.get(path, int(local["hours"]) if local else 0)


def _paths(folder: Path, patterns: Iterable[str]) -> list[Path]:
    paths: set[Path] = set()
    for pattern in patterns:
        found = {path for path in folder.glob(pattern) if path.is_file()}
        if not found:
            raise ValueError(
                f"pattern {pattern!r} matches no file in {folder}; correct it or add the recordings"
            )
        paths |= found
    return sorted(paths)


def _sources(folder: Path, patterns: Iterable[str]) -> list[_Source]:
    sources: list[_Source] = []
    for path in _paths(folder, patterns):
        is_archive = path.name.endswith((".tar.gz", ".tgz", ".tar", ".zip"))
        sources += [(path, member) for member in sorted(_members(path))] if is_archive else [(path, None)]
    return sources


@lru_cache(maxsize=8)
def _members(path: Path) -> dict[str, bytes]:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    with tarfile.open(path) as archive:
        files = [member for member in archive if member.isfile()]
        return {member.name: _bytes_of(archive, member) for member in files}


def _bytes_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    return stream.read() if stream else b""


def _content(source: _Source) -> bytes:
    path, member = source
    raw = path.read_bytes() if member is None else _members(path)[member]
    return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw


def _file_name(source: _Source) -> str:
    path, member = source
    return path.name if member is None else f"{path.name}/{member}"


def _document(source: _Source) -> Any:
    try:
        return orjson.loads(_content(source))
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{_file_name(source)} is no JSON: {error}") from error


def _one(folder: Path, name: str) -> _Source:
    path = folder / name
    if not path.is_file():
        raise ValueError(f"there is no file {name!r} in {folder}")
    return path, None


def _series_of(source: _Source) -> tuple[str, str]:
    path, member = source
    names = [path.name] if member is None else [Path(member).name, path.name]
    for name in names:
        if match := _SERIES_NAME.match(name):
            return match["symbol"], match["interval"]
    if member is not None:
        symbol = _SYMBOL_NAME.match(Path(member).name)
        interval = _INTERVAL_NAME.match(path.name) or _INTERVAL_NAME.match(Path(member).parent.name)
        if symbol and interval:
            return symbol["symbol"], interval["interval"]
    raise ValueError(
        f"{_file_name(source)}: the name says no symbol and interval; name it such as BTCUSDT-1h.csv.gz"
    )


def _symbol_of(exchange_symbol: str, known: Mapping[str, str], source: _Source, futures: bool) -> str:
    if exchange_symbol in known:
        return known[exchange_symbol]
    if not futures:
        return "/".join(_split(exchange_symbol, source))
    dated = _DATED.fullmatch(exchange_symbol)
    base, quote = _split(dated["pair"] if dated else exchange_symbol, source)
    return f"{base}/{quote}:{quote}" + (f"-{dated['date']}" if dated else "")


def _leading_symbol(source: _Source) -> str:
    path, member = source
    if match := _LEADING_SYMBOL.match(Path(member or path.name).name):
        return match["symbol"]
    raise ValueError(f"{_file_name(source)}: the name says no symbol; name it such as BTCUSDT-funding.csv.gz")


def _period_of(source: _Source) -> str:
    if match := _PERIOD_NAME.search(_file_name(source)):
        return match["period"]
    raise ValueError(f"{_file_name(source)}: the name says no period; name the archive such as oi_1d.tar.gz")


def _split(exchange_symbol: str, source: _Source) -> tuple[str, str]:
    base, underscore, quote = exchange_symbol.partition("_")
    if underscore:
        return base, quote
    if pair := _PAIR.fullmatch(exchange_symbol):
        return pair["base"], pair["quote"]
    raise ValueError(
        f"{_file_name(source)}: no known quote asset in {exchange_symbol}; give an exchange_info recording"
    )


def _coin_of(source: _Source) -> tuple[str, str]:
    path, member = source
    place = f"{path.name}/{member or ''}".lower()
    match = _COIN_NAME.fullmatch(Path(member or path.name).name)
    if match is None:
        raise ValueError(f"{_file_name(source)}: a coin's recording is named <coin id>.json")
    if "ohlc" not in place:
        return match["coin_id"], "chart"
    return match["coin_id"], "1h" if "hourly" in place else "1d"


def _listing(document: Any) -> Listing:
    entries: dict[str, Mapping[str, Any]] = {}
    for entry in document["symbols"]:
        base, quote = entry["baseAsset"], entry["quoteAsset"]
        symbol = f"{base}/{quote}"
        if "contractType" in entry:
            symbol = f"{symbol}:{entry['marginAsset']}"
            # Contracts for stocks are called TRADIFI_PERPETUAL.
            if "PERPETUAL" not in entry["contractType"]:
                symbol = f"{symbol}-{from_ms(entry['deliveryDate']):%y%m%d}"
        # The exchange once listed IDOL beside IDOLUSDT, both of the same assets.
        if symbol in entries and entry["symbol"].startswith(base + quote):
            entries[f"{symbol}#{entries[symbol]['symbol']}"] = entries[symbol]
        elif symbol in entries:
            symbol = f"{symbol}#{entry['symbol']}"
        entries[symbol] = entry
    futures = any("contractType" in entry for entry in entries.values())
    return Listing(int(document.get("serverTime", 0)), futures, entries)


def _known(told: Iterable[Listing], futures: bool) -> dict[str, str]:
    """Our symbol by the exchange's, of pairs or of contracts."""
    return {
        entry["symbol"]: symbol
        for listing in told
        if listing.futures == futures
        for symbol, entry in listing.entries.items()
    }


def _rules(entry: Mapping[str, Any]) -> MarketRules:
    filters = {item["filterType"]: item for item in entry["filters"]}
    notional = filters.get("NOTIONAL") or filters.get("MIN_NOTIONAL") or {}
    return MarketRules(
        tick=to_units(filters["PRICE_FILTER"]["tickSize"]),
        lot=to_units(filters["LOT_SIZE"]["stepSize"]),
        min_notional=to_units(notional.get("minNotional") or notional.get("notional") or "0"),
    )


def _coins(document: Any) -> list[Coin]:
    return [Coin(entry["id"], entry["symbol"], entry["name"]) for entry in document]


def _read_series(sources: Sequence[_Source], interval: str, places: _Places) -> Bars:
    parts = []
    for source in sources:
        try:
            bars = bars_of_columns(_columns(source), interval, places.offset_ms(source))
        except _UNREADABLE as error:
            raise ValueError(
                f"recording {_file_name(source)} cannot be read as {interval} klines: {error}"
            ) from error
        is_open = source[0] in places.unfinished
        parts.append(bars.take(bars.open_ms < bars.open_ms.max(initial=0)) if is_open else bars)
    return last_row_wins(concatenate(parts))


def _read_funding(sources: Sequence[_Source], places: _Places) -> Funding:
    parts = [no_funding()]
    for source in sources:
        try:
            parts.append(funding_of_columns(_columns(source), places.offset_ms(source)))
        except _UNREADABLE as error:
            raise ValueError(f"recording {_file_name(source)} is no list of settlements: {error}") from error
    joined = Funding(*(_glued(parts, name) for name in ("settled_ms", "rate", "mark_price")))
    return joined.take(_last_of_each(joined.settled_ms))


def _read_open_interest(sources: Sequence[_Source], places: _Places) -> OpenInterest:
    parts = [no_open_interest()]
    for source in sources:
        try:
            parts.append(open_interest_of_columns(_columns(source), places.offset_ms(source)))
        except _UNREADABLE as error:
            raise ValueError(f"recording {_file_name(source)} is no open interest: {error}") from error
    joined = OpenInterest(*(_glued(parts, name) for name in ("stamp_ms", "base", "quote")))
    return joined.take(_last_of_each(joined.stamp_ms))


def _glued(parts: Sequence[object], name: str) -> np.ndarray:
    return np.concatenate([getattr(part, name) for part in parts])


def _last_of_each(stamps: np.ndarray) -> np.ndarray:
    """Positions in order of time; of several rows with one stamp that of the last."""
    order = np.argsort(stamps, kind="stable")
    last = np.ones(len(order), bool)
    last[:-1] = np.diff(stamps[order]) != 0
    return order[last]


def _columns(source: _Source) -> Columns:
    plain = (source[1] or source[0].name).removesuffix(".gz")
    if plain.endswith(".json"):
        return _json_columns(_document(source))
    if plain.endswith(".csv"):
        return _csv_columns(_content(source))
    if plain.endswith(".parquet"):
        return _table_columns(pyarrow.parquet.read_table(io.BytesIO(_content(source))))
    if plain.endswith(".feather"):
        return _table_columns(pyarrow.feather.read_table(io.BytesIO(_content(source))))
    raise ValueError("none of .json, .csv, .parquet, .feather")


def _json_columns(rows: Any) -> Columns:
    if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
        return _table_columns(pa.Table.from_pylist(rows))
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise ValueError("a document of rows is a list of lists or of objects")
    columns = zip(*rows, strict=True)
    return {name: pa.array(column) for name, column in zip(WIRE_COLUMNS, columns, strict=False)}


def _csv_columns(content: bytes) -> Columns:
    head = content.split(b"\n", 1)[0].decode("utf-8-sig").strip()
    header = [name.strip().lower().replace(" ", "_") for name in head.split(",")]
    has_header = not header[0][:1].isdigit()
    if not has_header:
        header = WIRE_COLUMNS[: len(header)]
    # A name that comes twice is read once, at its first place.
    names = [name if name not in header[:i] else f"{name}#{i}" for i, name in enumerate(header)]
    table = pyarrow.csv.read_csv(
        io.BytesIO(content),
        read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=int(has_header)),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
    )
    return _table_columns(table)


def _table_columns(table: pa.Table) -> Columns:
    return {name.strip().lower().replace(" ", "_"): _one_array(table[name]) for name in table.column_names}


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _joined(
    read: Callable[[_Source], _T], join: Callable[[list[_T]], _T], sources: list[_Source]
) -> Callable[[], _T]:
    return lambda: join([read(source) for source in sources])


def _read_chart(source: _Source) -> CoinPoints:
    document = _document(source)
    document = document.get("data", document) if isinstance(document, dict) else document
    try:
        stamps, prices = _pairs(document["prices"])
        caps, volumes = (_along(stamps, *_pairs(document[name])) for name in ("market_caps", "total_volumes"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"recording {_file_name(source)} is no market chart: {error}") from error
    return CoinPoints(stamps, prices, caps, volumes)


def _read_candles(source: _Source) -> CoinCandles:
    try:
        rows = np.array(_document(source), float).reshape(-1, 5)
    except (TypeError, ValueError) as error:
        raise ValueError(f"recording {_file_name(source)} is no list of candles: {error}") from error
    return CoinCandles(rows[:, 0].astype(np.int64), rows[:, 1:].T)


def _pairs(rows: Any) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(rows, float).reshape(-1, 2)
    return table[:, 0].astype(np.int64), table[:, 1]


def _along(stamps: np.ndarray, own: np.ndarray, values: np.ndarray) -> np.ndarray:
    if np.array_equal(stamps, own):
        return values
    known = dict(zip(own.tolist(), values.tolist(), strict=True))
    return np.array([known.get(stamp, np.nan) for stamp in stamps.tolist()])


def _join_points(parts: list[CoinPoints]) -> CoinPoints:
    columns = ("stamp_ms", "price_usd", "market_cap_usd", "volume_usd")
    joined = CoinPoints(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))
    return joined.take(np.argsort(joined.stamp_ms, kind="stable"))


def _join_candles(parts: list[CoinCandles]) -> CoinCandles:
    stamps = np.concatenate([part.stamp_ms for part in parts])
    joined = CoinCandles(stamps, np.concatenate([part.prices for part in parts], axis=1))
    return joined.take(np.argsort(stamps, kind="stable"))
