from __future__ import annotations

import gzip
import json
import re
from typing import Any

import pytest

from crypto_assets.intervals import DAY_MS, HOUR_MS, MINUTE_MS
from crypto_assets.simulation.coingecko import coingecko_answer
from crypto_assets.simulation.server import MarketServer
from crypto_assets.simulation.synthetic import SyntheticWorld
from crypto_assets_tests.recorded import RECORDED, needs_recorded
from crypto_assets_tests.simulation.clients import coingecko_at
from crypto_assets_tests.simulation.conftest import NOW, START


def chart(market: MarketServer, days: float, end_ms: int = NOW, **more: str) -> list[list[float]]:
    client = coingecko_at(market)
    span = (end_ms / 1000 - days * 86_400, end_ms / 1000)
    answer = client.get_coin_market_chart_range_by_id("bitcoin", "usd", *span, **more)
    stamps = [[point[0] for point in answer[name]] for name in ("prices", "market_caps", "total_volumes")]
    assert stamps[0] == stamps[1] == stamps[2]
    return answer["prices"]


def test_ping(market: MarketServer) -> None:
    assert coingecko_at(market).ping() == {"gecko_says": "(V3) To the Moon!"}


def test_the_coin_list_names_coins_by_id(market: MarketServer) -> None:
    coins = coingecko_at(market).get_coins_list()
    assert {"id": "tether", "symbol": "usdt", "name": "Tether"} in coins
    assert [coin["id"] for coin in coins] == sorted(coin["id"] for coin in coins)


def test_markets_are_ranked_by_cap_and_paged(market: MarketServer) -> None:
    client = coingecko_at(market)
    everything = client.get_coins_markets("usd")
    caps = [row["market_cap"] for row in everything]
    assert caps == sorted(caps, reverse=True)
    assert [row["market_cap_rank"] for row in everything] == list(range(1, 15))
    pages = [client.get_coins_markets("usd", per_page=6, page=page) for page in (1, 2, 3, 4)]
    assert [row for page in pages for row in page] == everything
    assert [len(page) for page in pages] == [6, 6, 2, 0]


def test_markets_can_be_asked_by_id_and_order(market: MarketServer) -> None:
    client = coingecko_at(market)
    some = client.get_coins_markets("usd", ids="litecoin, bitcoin")
    assert [row["id"] for row in some] == ["bitcoin", "litecoin"]
    rising = client.get_coins_markets("usd", order="market_cap_asc")
    assert [row["id"] for row in rising] == [row["id"] for row in client.get_coins_markets("usd")][::-1]


def test_a_cap_of_zero_has_no_rank(market: MarketServer) -> None:
    market.clock.set(START + 22 * DAY_MS)
    rows = {row["id"]: row for row in coingecko_at(market).get_coins_markets("usd")}
    assert rows["avalanche-2"]["market_cap"] == 0
    assert rows["avalanche-2"]["market_cap_rank"] is None
    assert rows["avalanche-2"]["current_price"] > 0


@pytest.mark.parametrize(
    ("days", "spacing"), [(1, 5 * MINUTE_MS), (2, HOUR_MS), (90, HOUR_MS), (90.1, DAY_MS), (99, DAY_MS)]
)
def test_granularity_follows_the_span(market: MarketServer, days: float, spacing: int) -> None:
    market.clock.set(START + 100 * DAY_MS - 3 * HOUR_MS)
    end = START + 99 * DAY_MS
    stamps = [int(point[0]) for point in chart(market, days, end)]
    grid = [stamp // spacing for stamp in stamps]
    assert grid == list(range(grid[0], grid[-1] + 1))
    assert len(stamps) >= 24
    at_midnight = [stamp % DAY_MS == 0 for stamp in stamps]
    assert all(at_midnight) if spacing == DAY_MS else not any(at_midnight)


def test_daily_can_be_asked_for(market: MarketServer) -> None:
    stamps = [int(point[0]) for point in chart(market, 10, START + 60 * DAY_MS, interval="daily")]
    assert stamps == [START + day * DAY_MS for day in range(50, 61)]


def test_a_span_that_reaches_now_ends_with_an_intraday_point(market: MarketServer) -> None:
    *daily, newest = (int(point[0]) for point in chart(market, 95))
    assert all(stamp % DAY_MS == 0 for stamp in daily)
    assert daily[-1] < newest <= NOW
    assert newest % DAY_MS != 0


@pytest.mark.parametrize("after_ms", [0, 1, 1_001, 30_000, 59_000])
def test_the_newest_point_is_never_stamped_midnight(market: MarketServer, after_ms: int) -> None:
    midnight = START + 95 * DAY_MS
    market.clock.set(midnight + after_ms)
    newest = int(chart(market, 94, midnight + after_ms)[-1][0])
    assert newest % DAY_MS != 0
    assert newest <= midnight + after_ms


def test_the_daily_point_of_midnight_appears_at_00_35(market: MarketServer) -> None:
    midnight = START + 95 * DAY_MS
    seen = []
    for minute in (34, 35):
        market.clock.set(midnight + minute * MINUTE_MS)
        seen.append(midnight in [point[0] for point in chart(market, 92, midnight + minute * MINUTE_MS)])
    assert seen == [False, True]


def test_a_daily_point_is_the_close_of_the_day_before(
    market: MarketServer, synthetic_world: SyntheticWorld
) -> None:
    day = START + 50 * DAY_MS
    price = chart(market, 1, day, interval="daily")[-1][1]
    bar = synthetic_world.window("BTC/USDT", "1d", day - DAY_MS, day, NOW)
    assert price == pytest.approx(bar.values[3, 0] / 10**8, rel=1e-3)


def test_candles_are_stamped_with_their_end(market: MarketServer) -> None:
    client = coingecko_at(market)
    assert [row[0] % (4 * HOUR_MS) for row in client.get_coin_ohlc_by_id("bitcoin", "usd", "30")] == [0] * 180
    assert (
        client.get_coin_ohlc_by_id("bitcoin", "usd", "1")[-1][0] == NOW // (30 * MINUTE_MS) * 30 * MINUTE_MS
    )
    span = ((START + 10 * DAY_MS) // 1000, (START + 20 * DAY_MS) // 1000)
    daily = client.get_coin_ohlc_by_id_range("bitcoin", "usd", *span, "daily")
    hourly = client.get_coin_ohlc_by_id_range("bitcoin", "usd", *span, "hourly")
    assert [row[0] for row in daily] == [START + day * DAY_MS for day in range(10, 21)]
    assert len(hourly) == 241
    last_day = [row for row in hourly if START + 19 * DAY_MS < row[0] <= START + 20 * DAY_MS]
    assert daily[-1][1:] == [
        last_day[0][1],
        max(row[2] for row in last_day),
        min(row[3] for row in last_day),
        last_day[-1][4],
    ]


@pytest.mark.parametrize(
    ("path", "params", "status", "error"),
    [
        ("/coins/markets", {}, 422, "Missing parameter vs_currency"),
        ("/coins/bitcoin/market_chart/range", {"from": "1", "to": "2"}, 422, "Missing parameter vs_currency"),
        (
            "/coins/bitcoin/market_chart/range",
            {"vs_currency": "usd", "to": "2"},
            422,
            "Missing parameter from",
        ),
        (
            "/coins/bitcoin/market_chart/range",
            {"vs_currency": "usd", "from": "x", "to": "2"},
            422,
            "Invalid from",
        ),
        (
            "/coins/nope/market_chart/range",
            {"vs_currency": "usd", "from": "1", "to": "2"},
            404,
            "coin not found",
        ),
        ("/coins/nope/ohlc", {"vs_currency": "usd", "days": "7"}, 404, "coin not found"),
        ("/coins/bitcoin/ohlc", {"vs_currency": "usd", "days": "8"}, 422, "Invalid days"),
        ("/coins/bitcoin/ohlc", {"vs_currency": "usd"}, 422, "Missing parameter days"),
        ("/coins/markets", {"vs_currency": "xyz"}, 400, "invalid vs_currency"),
        ("/coins/markets", {"vs_currency": "usd", "page": "0"}, 422, "Invalid page"),
        ("/nothing", {}, 404, "Incorrect path"),
        (
            "/coins/bitcoin/ohlc/range",
            {"vs_currency": "usd", "from": "0", "to": str(32 * 86_400), "interval": "hourly"},
            422,
            "31 days",
        ),
        (
            "/coins/bitcoin/ohlc/range",
            {"vs_currency": "usd", "from": "0", "to": str(181 * 86_400), "interval": "daily"},
            422,
            "180 days",
        ),
    ],
)
def test_bad_questions_are_refused(
    synthetic_world: SyntheticWorld, path: str, params: dict[str, str], status: int, error: str
) -> None:
    answer = coingecko_answer(synthetic_world, path, params, NOW)
    assert answer.status == status
    assert error in json.loads(answer.body)["error"]


def test_the_client_raises_on_errors(market: MarketServer) -> None:
    with pytest.raises(ValueError, match="coin not found"):
        coingecko_at(market).get_coin_market_chart_range_by_id("nope", "usd", 1, 2)


def test_moments_may_be_iso_dates(synthetic_world: SyntheticWorld) -> None:
    params = {"vs_currency": "usd", "from": "2023-01-05", "to": "2023-01-07T00:00", "interval": "daily"}
    body = json.loads(
        coingecko_answer(synthetic_world, "/coins/bitcoin/market_chart/range", params, NOW).body
    )
    assert [point[0] for point in body["prices"]] == [START + day * DAY_MS for day in (4, 5, 6)]


def test_a_chart_of_days_reaches_back_from_now(market: MarketServer) -> None:
    answer = coingecko_at(market).get_coin_market_chart_by_id("bitcoin", "usd", "5", interval="daily")
    assert [int(point[0]) // DAY_MS for point in answer["prices"]] == [
        NOW // DAY_MS - day for day in (4, 3, 2, 1, 0, 0)
    ]


@needs_recorded
def test_markets_and_errors_have_the_shape_of_the_recorded_ones(synthetic_world: SyntheticWorld) -> None:
    cassette = "coingecko_wire/vcr/test_that_it_gets_market_data_for_a_coin.yml.gz"
    bodies = re.findall(r"string: '([\[{].*)'", gzip.decompress((RECORDED / cassette).read_bytes()).decode())
    rows, error = json.loads(bodies[0]), json.loads(bodies[1])
    ours = json.loads(coingecko_answer(synthetic_world, "/coins/markets", {"vs_currency": "usd"}, NOW).body)
    assert set(ours[0]) == set(rows[0])
    refused = coingecko_answer(synthetic_world, "/coins/markets", {}, NOW)
    assert (refused.status, json.loads(refused.body)) == (422, error)


# Categories and plans

CHART, RANGE = "/coins/bitcoin/market_chart/range", "/coins/bitcoin/ohlc/range"
DEMO, PRO = {"x-cg-demo-api-key": "CG-k"}, {"x-cg-pro-api-key": "CG-k"}


def span(first_day: float, last_day: float, **more: str) -> dict[str, str]:
    edges = {
        name: str((START + int(day * DAY_MS)) // 1000)
        for name, day in (("from", first_day), ("to", last_day))
    }
    return {"vs_currency": "usd", **edges, **more}


def asked(
    world: SyntheticWorld,
    path: str,
    params: dict[str, str],
    headers: dict[str, str] | None = None,
    now_ms: int = NOW,
) -> tuple[int, Any]:
    answer = coingecko_answer(world, path, params, now_ms, headers)
    return answer.status, json.loads(answer.body)


def test_a_category_lists_its_members_with_their_ranks_among_all(synthetic_world: SyntheticWorld) -> None:
    usd = {"vs_currency": "usd"}
    _, everything = asked(synthetic_world, "/coins/markets", usd)
    ranks = {row["id"]: row["market_cap_rank"] for row in everything}
    for category, coins in (
        ("stablecoins", ["tether"]),
        ("wrapped-tokens", ["wrapped-bitcoin"]),
        ("tokenized-btc", ["wrapped-bitcoin"]),
        ("liquid-staking-tokens", []),
        ("layer-1", []),
    ):
        status, rows = asked(synthetic_world, "/coins/markets", usd | {"category": category})
        assert (status, [row["id"] for row in rows]) == (200, coins)
        assert [row["market_cap_rank"] for row in rows] == [ranks[coin] for coin in coins]


def test_fact_7_neighbouring_parts_of_a_range_share_the_candle_at_their_joint(
    synthetic_world: SyntheticWorld,
) -> None:
    def stamps(first_day: float, last_day: float, interval: str) -> list[int]:
        _, rows = asked(synthetic_world, RANGE, span(first_day, last_day, interval=interval))
        return [row[0] for row in rows]

    # As recorded: the parts began at 03:33:44, and the candle of the midnight before it came in both.
    joint = 20 + 3 / 24 + 2024 / 86_400
    before, after = stamps(10.2, joint, "daily"), stamps(joint, 30.2, "daily")
    assert before[-1] == after[0] == START + 20 * DAY_MS
    hours_before, hours_after = stamps(19, joint, "hourly"), stamps(joint, 21, "hourly")
    assert hours_before[-1] == hours_after[0] == START + 20 * DAY_MS + 3 * HOUR_MS
    # A border on a stamp belongs to both as well.
    assert stamps(10, 20, "daily")[-1] == stamps(20, 30, "daily")[0] == START + 20 * DAY_MS


@pytest.mark.parametrize(
    ("path", "params", "allowed"),
    [
        (RANGE, span(1, 20, interval="daily"), {"pro"}),
        (RANGE, span(1, 20, interval="hourly"), {"pro"}),
        (CHART, span(1, 20), {"pro"}),
        (CHART, span(30, 90), {"pro", "demo", "public"}),
        ("/coins/bitcoin/market_chart", {"vs_currency": "usd", "days": "max"}, {"pro"}),
        ("/coins/bitcoin/market_chart", {"vs_currency": "usd", "days": "366"}, {"pro"}),
        ("/coins/bitcoin/market_chart", {"vs_currency": "usd", "days": "365"}, {"pro", "demo", "public"}),
        ("/coins/bitcoin/ohlc", {"vs_currency": "usd", "days": "max"}, {"pro"}),
        ("/coins/bitcoin/ohlc", {"vs_currency": "usd", "days": "365"}, {"pro", "demo", "public"}),
        ("/coins/list", {}, {"pro", "demo", "public"}),
        ("/coins/markets", {"vs_currency": "usd"}, {"pro", "demo", "public"}),
    ],
)
def test_the_key_in_the_header_tells_the_plan_and_the_plan_what_may_be_asked(
    synthetic_world: SyntheticWorld, path: str, params: dict[str, str], allowed: set[str]
) -> None:
    now_ms = START + 390 * DAY_MS
    plans = {"pro": PRO, "demo": DEMO, "public": {"accept": "application/json"}}
    served = {
        plan
        for plan, headers in plans.items()
        if asked(synthetic_world, path, params, headers, now_ms)[0] == 200
    }
    assert served == allowed
    # A server that knows no plans leaves everything open.
    assert asked(synthetic_world, path, params, None, now_ms)[0] == 200


def test_a_plan_refuses_with_the_codes_and_the_shapes_of_coingecko(synthetic_world: SyntheticWorld) -> None:
    now_ms = START + 390 * DAY_MS
    status, body = asked(synthetic_world, RANGE, span(1, 20, interval="daily"), DEMO, now_ms)
    assert (status, body["status"]["error_code"]) == (401, 10005)
    assert "limited to PRO API subscribers" in body["status"]["error_message"]
    status, body = asked(synthetic_world, CHART, span(1, 20), DEMO, now_ms)
    assert (status, body["error"]["status"]["error_code"]) == (401, 10012)
    assert "within the past 365 days" in body["error"]["status"]["error_message"]
    assert body["error"]["status"]["timestamp"] == "2024-01-26T00:00:00.000+00:00"
    status, body = asked(synthetic_world, "/coins/list", {}, {"x-cg-pro-api-key": " "}, now_ms)
    assert (status, body["status"]["error_code"]) == (401, 10002)
    # The plan is looked at before the parameters, the coin after them.
    assert asked(synthetic_world, RANGE, {}, DEMO, now_ms)[0] == 401
    assert asked(synthetic_world, RANGE, {}, PRO, now_ms)[0] == 422
    unknown = "/coins/nope/ohlc/range"
    assert asked(synthetic_world, unknown, span(1, 2, interval="daily"), PRO, now_ms) == (
        404,
        {"error": "coin not found"},
    )
