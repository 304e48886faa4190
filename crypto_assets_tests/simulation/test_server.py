from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import ccxt
import pytest
import requests

from crypto_assets.intervals import DAY_MS, HOUR_MS
from crypto_assets.simulation.clock import FakeSeconds
from crypto_assets.simulation.faults import Fault, slow, status
from crypto_assets.simulation.hostile import HostilePlan
from crypto_assets.simulation.server import MarketServer, serve
from crypto_assets.simulation.synthetic import SyntheticWorld
from crypto_assets.simulation.world import Restatement
from crypto_assets_tests.simulation.clients import at, coingecko_at, exchange_at
from crypto_assets_tests.simulation.conftest import NOW, START

KLINES = {"symbol": "BTCUSDT", "interval": "1h", "limit": 500}


def post(url: str, body: object) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), method="POST")
    return json.loads(urllib.request.urlopen(request).read())


def test_the_clock_decides_what_is_served(market: MarketServer) -> None:
    exchange = exchange_at(market)
    market.clock.set(START + 2 * HOUR_MS + 1)
    assert [row[0] for row in exchange.public_get_klines(KLINES)] == [
        START + hour * HOUR_MS for hour in range(3)
    ]
    early = exchange.public_get_klines(KLINES)
    market.clock.set(START + 3 * HOUR_MS)
    late = exchange.public_get_klines(KLINES)
    assert late[:2] == early[:2]
    assert late[2] != early[2]
    assert late[2][:2] == early[2][:2]


def test_a_restatement_reaches_the_client_when_it_is_published() -> None:
    world = SyntheticWorld(7, START, START + 3 * DAY_MS, "1h")
    world.restate(Restatement("BTC/USDT", START, START + 2 * DAY_MS, volume_base="12.5"))
    with MarketServer(world, clock=START + 2 * DAY_MS - 1) as market:
        before = exchange_at(market).public_get_klines(KLINES)[0]
        market.clock.set(START + 2 * DAY_MS)
        after = exchange_at(market).public_get_klines(KLINES)[0]
    assert after[5] == "12.50000000" != before[5]
    assert after[:5] == before[:5]


def test_requests_are_logged_and_counted(market: MarketServer) -> None:
    exchange, client = exchange_at(market), coingecko_at(market)
    exchange.public_get_time()
    exchange.public_get_klines({"symbol": "BTCUSDT", "interval": "1d", "limit": 2})
    client.get_coins_markets("usd", page=2)
    with pytest.raises(ccxt.BadSymbol):
        exchange.public_get_klines({"symbol": "NOPE", "interval": "1d"})
    assert [(r.method, r.path, r.status) for r in market.requests] == [
        ("GET", "/api/v3/time", 200),
        ("GET", "/api/v3/klines", 200),
        ("GET", "/coingecko/api/v3/coins/markets", 200),
        ("GET", "/api/v3/klines", 400),
    ]
    assert market.requests[1].query == {"symbol": "BTCUSDT", "interval": "1d", "limit": "2"}
    assert market.count("/api/v3/klines") == 2
    assert market.count("/coingecko") == 1
    assert market.count() == 4


def test_used_weight_is_counted_by_the_real_minute(synthetic_world: SyntheticWorld) -> None:
    seconds = FakeSeconds(6_000_000.0)
    with MarketServer(synthetic_world, clock=NOW, real_seconds=seconds) as market:
        exchange = exchange_at(market)
        used = []
        for second in (0, 59, 60):
            seconds.reach(6_000_000.0 + second)
            exchange.public_get_klines(KLINES)
            used.append(exchange.last_response_headers["X-MBX-USED-WEIGHT-1M"])
        assert used == ["2", "4", "2"]


def test_too_much_weight_is_a_429_until_the_minute_ends(synthetic_world: SyntheticWorld) -> None:
    seconds = FakeSeconds(6_000_015.0)
    with MarketServer(synthetic_world, clock=NOW, weight_limit=4, real_seconds=seconds) as market:
        exchange = exchange_at(market)
        for _ in range(2):
            exchange.public_get_klines(KLINES)
        with pytest.raises(ccxt.DDoSProtection, match="-1003"):
            exchange.public_get_klines(KLINES)
        assert exchange.last_response_headers["Retry-After"] == "45"
        seconds.sleep(45)
        assert len(exchange.public_get_klines(KLINES)) == 500


def test_spot_and_futures_have_budgets_of_their_own(synthetic_world: SyntheticWorld) -> None:
    seconds = FakeSeconds(6_000_015.0)
    with MarketServer(
        synthetic_world, clock=NOW, weight_limit=2, usdm_weight_limit=5, real_seconds=seconds
    ) as market:
        exchange = exchange_at(market)
        exchange.public_get_klines(KLINES)
        assert exchange.last_response_headers["X-MBX-USED-WEIGHT-1M"] == "2"
        exchange.fapipublic_get_klines(KLINES | {"limit": 1000})
        assert exchange.last_response_headers["X-MBX-USED-WEIGHT-1M"] == "5"
        with pytest.raises(ccxt.DDoSProtection, match="current limit is 2400"):
            exchange.fapipublic_get_klines(KLINES | {"limit": 1000})
        with pytest.raises(ccxt.DDoSProtection, match="current limit is 6000"):
            exchange.public_get_klines(KLINES)
        assert [order.budget for order in market.log.orders] == ["usdm", "spot"]


def test_a_request_inside_a_retry_after_is_found_and_one_after_it_is_not(
    synthetic_world: SyntheticWorld,
) -> None:
    seconds = FakeSeconds()
    with MarketServer(synthetic_world, clock=NOW, real_seconds=seconds) as market:
        market.inject("/api/v3/time", status(429, 7))
        time = f"{market.url}/api/v3/time"
        assert requests.get(time, timeout=5).headers["Retry-After"] == "7"
        seconds.sleep(6.9)
        requests.get(time, timeout=5)
        requests.get(f"{market.url}/fapi/v1/time", timeout=5)
        requests.get(f"{market.coingecko_url}ping", timeout=5)
        seconds.sleep(0.1)
        requests.get(time, timeout=5)
        assert [(r.path, r.at_s - 1_700_000_000) for r in market.violations()] == [
            ("/api/v3/time", pytest.approx(6.9))
        ]
        assert market.violations(n_in_flight=1) == []
        told = requests.get(f"{market.url}/_market/violations", timeout=5).json()
        assert [entry["number"] for entry in told] == [1]
        assert requests.get(f"{market.url}/_market/violations?in_flight=1", timeout=5).json() == []
        assert requests.get(f"{market.url}/_market/violations?in_flight=x", timeout=5).status_code == 400


def test_a_ban_without_an_end_lasts_two_minutes(synthetic_world: SyntheticWorld) -> None:
    seconds = FakeSeconds()
    with MarketServer(synthetic_world, clock=NOW, real_seconds=seconds) as market:
        market.inject("/fapi/", status(418))
        with pytest.raises(ccxt.DDoSProtection, match=str(NOW + 120_000)):
            exchange_at(market).fapipublic_get_time()
        for wait_s in (119.9, 0.1):
            seconds.sleep(wait_s)
            exchange_at(market).fapipublic_get_time()
        assert [request.number for request in market.violations()] == [1]


def test_a_client_that_was_killed_need_not_have_heard(market: MarketServer) -> None:
    market.inject("/api/v3/time", status(429, 60))
    for _ in range(2):
        requests.get(f"{market.url}/api/v3/time", timeout=5)
    assert len(market.violations()) == 1
    market.log.forgive(last_s=60)
    assert market.violations() == []


def test_another_process_sleeps_on_the_clock_of_the_server(
    synthetic_world: SyntheticWorld, market: MarketServer
) -> None:
    seconds = FakeSeconds(1000.0)
    with MarketServer(synthetic_world, clock=NOW, real_seconds=seconds) as fake:
        assert post(f"{fake.url}/_market/seconds", {"sleep": 2.5}) == {"seconds": 1002.5}
        assert requests.get(f"{fake.url}/_market/seconds", timeout=5).json() == {"seconds": 1002.5}
        assert seconds() == 1002.5
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(f"{fake.url}/_market/seconds", {"sleep": "long"})
        assert "give" in json.loads(refused.value.read())["error"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(f"{market.url}/_market/seconds", {"sleep": 2.5})
    assert "real time" in json.loads(refused.value.read())["error"]


def test_the_aggregator_tells_plans_apart_where_it_is_asked_to(
    synthetic_world: SyntheticWorld, market: MarketServer
) -> None:
    old = {"vs_currency": "usd", "from": START // 1000 - 400 * 86_400, "to": NOW // 1000}
    with MarketServer(synthetic_world, clock=NOW, coingecko_plans=True) as strict:
        statuses = [
            requests.get(
                f"{server.coingecko_url}coins/bitcoin/market_chart/range", old, headers=key, timeout=5
            ).status_code
            for server, key in (
                (market, {}),
                (strict, {"X-CG-Demo-API-Key": "k"}),
                (strict, {"X-CG-Pro-API-Key": "k"}),
            )
        ]
    assert statuses == [200, 401, 200]


def test_each_source_has_its_own_error_body(market: MarketServer) -> None:
    def error(path: str, code: int) -> requests.Response:
        market.inject(path, status(code))
        return requests.get(market.url + path, timeout=5)

    assert error("/fapi/v1/time", 418).json()["code"] == -1003
    assert error("/bybit/v5/market/time", 429).json()["retCode"] == 10006
    assert error("/bybit/v5/market/time", 500).json()["retCode"] == 10016
    assert b"<Code>SlowDown</Code>" in error("/data/spot/x.zip", 429).content
    assert error("/coingecko/api/v3/ping", 500).json()["status"]["error_code"] == 500


@pytest.mark.parametrize("kind", ["html_200", "truncated_json", "empty_200"])
def test_a_success_that_is_none_reaches_ccxt_as_a_text(market: MarketServer, kind: str) -> None:
    market.inject("/api/v3/klines", kind)
    assert isinstance(exchange_at(market).public_get_klines(KLINES), str)
    assert len(exchange_at(market).public_get_klines(KLINES)) == 500


@pytest.mark.parametrize(
    ("fault", "error", "logged"),
    [
        (status(429, 7), ccxt.DDoSProtection, 429),
        (status(418, 120), ccxt.DDoSProtection, 418),
        (status(451), ccxt.ExchangeNotAvailable, 451),
        (status(500), ccxt.OperationFailed, 500),
        (Fault("reset"), ccxt.NetworkError, None),
        (Fault("short_body"), ccxt.NetworkError, 200),
        (Fault("hang"), ccxt.RequestTimeout, None),
        (slow(5), ccxt.NetworkError, 200),
    ],
)
def test_faults_are_errors_of_the_client_and_pass(
    market: MarketServer, fault: Fault, error: type[Exception], logged: int | None
) -> None:
    exchange = exchange_at(market, timeout_ms=300)
    market.inject("/api/v3/klines", fault, times=2)
    for _ in range(2):
        with pytest.raises(error):
            exchange.public_get_klines(KLINES)
    assert len(exchange_at(market).public_get_klines(KLINES)) == 500
    assert [request.status for request in market.requests] == [logged, logged, 200]


def test_an_error_status_says_when_to_come_back(market: MarketServer) -> None:
    market.inject("/api/v3/time", status(429, 7))
    answer = requests.get(f"{market.url}/api/v3/time", timeout=5)
    assert (answer.status_code, answer.headers["Retry-After"], answer.json()["code"]) == (429, "7", -1003)
    market.inject("/coingecko", status(429, 9))
    answer = requests.get(f"{market.coingecko_url}ping", timeout=5)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "9")
    assert answer.json()["status"]["error_code"] == 429
    market.inject("/api/v3/time", status(503))
    assert "Retry-After" not in requests.get(f"{market.url}/api/v3/time", timeout=5).headers


def test_a_slow_answer_is_right_in_the_end(market: MarketServer) -> None:
    market.inject("/api/v3/klines", slow(0.05))
    assert len(exchange_at(market).public_get_klines(KLINES)) == 500


def test_a_short_body_announces_more_than_it_brings(market: MarketServer) -> None:
    market.inject("/api/v3/time", "short_body")
    with socket.create_connection(("127.0.0.1", int(market.url.rpartition(":")[2]))) as connection:
        connection.sendall(b"GET /api/v3/time HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.settimeout(5)
        received = b""
        while part := connection.recv(65_536):
            received += part
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"200 OK" in head
    assert int(head.lower().partition(b"content-length: ")[2].split()[0]) == 2 * len(body) > 0


def test_waiting_faults_can_be_forgotten_and_spare_the_first(market: MarketServer) -> None:
    exchange = exchange_at(market)
    market.inject("/api/v3/time", status(500), after=1)
    assert exchange.public_get_time() == {"serverTime": NOW}
    with pytest.raises(ccxt.OperationFailed):
        exchange.public_get_time()
    market.inject("/", status(500), times=99)
    market.clear_faults()
    assert exchange.public_get_time() == {"serverTime": NOW}


def test_control_routes_move_the_clock_show_requests_and_inject_faults(market: MarketServer) -> None:
    exchange = exchange_at(market)
    assert post(f"{market.url}/_market/clock", {"now": "2023-01-05T06:00:00"})["now_ms"] == at(2023, 1, 5, 6)
    assert requests.get(f"{market.url}/_market/clock", timeout=5).json() == {
        "now": "2023-01-05T06:00:00",
        "now_ms": at(2023, 1, 5, 6),
        "speed": 0.0,
    }
    assert exchange.public_get_time() == {"serverTime": at(2023, 1, 5, 6)}
    post(
        f"{market.url}/_market/faults",
        {"path_prefix": "/api/v3/time", "fault": {"kind": "status", "status": 503}},
    )
    with pytest.raises(ccxt.ExchangeNotAvailable):
        exchange.public_get_time()
    post(f"{market.url}/_market/faults", {"path_prefix": "/api/v3/time", "fault": "empty_200", "times": 1})
    assert exchange.public_get_time() == ""
    log = requests.get(f"{market.url}/_market/requests?prefix=/api", timeout=5).json()
    assert [entry["status"] for entry in log] == [200, 503, 200]
    told = {
        "method": "GET",
        "path": "/api/v3/time",
        "query": {},
        "status": 200,
        "budget": "spot",
        "number": 0,
    }
    assert {name: log[0][name] for name in told} == told


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("clock", {"when": 1}),
        ("clock", {"now": "soon"}),
        ("clock", []),
        ("faults", {"fault": "reset"}),
        ("faults", {"path_prefix": "/", "fault": "nonsense"}),
        ("faults", {"path_prefix": "/", "fault": "reset", "times": 0}),
    ],
)
def test_control_routes_refuse_what_they_do_not_understand(
    market: MarketServer, route: str, body: object
) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(f"{market.url}/_market/{route}", body)
    assert refused.value.code == 400
    assert "give" in json.loads(refused.value.read())["error"]


def test_a_plan_goes_with_its_own_world(synthetic_world: SyntheticWorld) -> None:
    plan = HostilePlan(1, synthetic_world, symbols=["BTC/USDT"], defect_frac=0)
    with pytest.raises(ValueError, match="another world"):
        MarketServer(synthetic_world, clock=NOW, hostile=plan)


def test_only_loopback_is_served(market: MarketServer, synthetic_world: SyntheticWorld) -> None:
    assert market.url.startswith("http://127.0.0.1:")
    with pytest.raises(ValueError, match="0.0.0.0"):
        serve(synthetic_world, NOW, host="0.0.0.0")  # noqa: S104 - refused


def test_two_servers_live_side_by_side_and_a_taken_port_is_an_error(market: MarketServer) -> None:
    port = int(market.url.rpartition(":")[2])
    with MarketServer(market.world, clock=START) as other:
        assert exchange_at(other).public_get_time() == {"serverTime": START}
        assert exchange_at(market).public_get_time() == {"serverTime": NOW}
    with pytest.raises(RuntimeError, match=str(port)), MarketServer(market.world, clock=START, port=port):
        pass


def test_a_stopped_server_is_gone(synthetic_world: SyntheticWorld) -> None:
    with MarketServer(synthetic_world, clock=NOW) as market:
        exchange = exchange_at(market, timeout_ms=500)
        exchange.public_get_time()
    with pytest.raises(ccxt.NetworkError):
        exchange.public_get_time()


def test_a_blocking_server_serves_another_process() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = (
        "from crypto_assets.simulation.server import serve\n"
        "from crypto_assets.simulation.synthetic import SyntheticWorld\n"
        f"serve(SyntheticWorld(7, {START}, {START + DAY_MS}, '1h'), {START + HOUR_MS}, port={port})\n"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-u", "-c", code]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert str(port) in process.stdout.readline()
        post(f"http://127.0.0.1:{port}/_market/clock", {"now": START + 5 * HOUR_MS})
        answer = urllib.request.urlopen(
            f"http://127.0.0.1:{port}/api/v3/klines?symbol=BTCUSDT&interval=1h"
        ).read()
        assert [row[0] for row in json.loads(answer)] == [START + hour * HOUR_MS for hour in range(6)]
        process.terminate()
        process.wait(timeout=10)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v3/time")
