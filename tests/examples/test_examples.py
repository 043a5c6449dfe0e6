"""Every example runs as a program of its own, against a real server, and does what it says."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from connector_sdk import (
    ActionsPayload,
    BlockingBuffer,
    BufferBackend,
    DurableStats,
    RedisEventBuffer,
    SlimAction,
    SummaryPayload,
)
from connector_sdk.payloads import Payload
from connector_sdk.testing import ConnectorServer, Cut, RedisServer, Status
from connector_sdk.testing.contracts import BufferBackendContract
from tests.lines import next_line

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE = 30.0

EVENTS: Sequence[Payload] = [
    ActionsPayload(
        "shop",
        f"s{number % 3}",
        actions=[SlimAction("Cart", f"opened the cart, item {number}", "https://shop.example/cart", 0, "click")],
        forwarded_at=1.7e9 + number,
    )
    for number in range(20)
] + [SummaryPayload("shop", "s0", "Looked at the cart and left.", 7, 1.7e9 + 20)]


@contextmanager
def start(name: str, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CONNECTOR_INITIAL_BACKOFF": "0.01", **(env or {})},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(name: str, *arguments: str, env: Mapping[str, str] | None = None, code: int = 0) -> tuple[str, str]:
    with start(name, *arguments, env=env) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, (out, err)
    return out, err


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_has_a_test() -> None:
    source = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in source, f"{path.name} is run by no test"


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
class TestEveryExample:
    def test_help_says_how_to_run_it(self, name: str) -> None:
        out, err = run(name, "--help")
        assert f"python examples/{name} http" in out
        assert err == ""

    def test_a_wrong_url_is_one_clear_line(self, name: str, tmp_path: Path) -> None:
        out, err = run(name, "nonsense", str(tmp_path / "file"), code=1)
        assert out == ""
        assert err.startswith("ConfigurationError: url='nonsense' cannot be used")
        assert err.count("\n") == 1


def test_sync_callbacks() -> None:
    with ConnectorServer(EVENTS, script=[Cut(after_events=5, into_next=20)], end="stop") as server:
        out, err = run("sync_callbacks.py", server.url)
    assert err.count("\n") == err.count("not connected (") == 1, "the library's warning, and nothing else"
    assert out.count("Session s") == 20
    assert "[0] click: opened the cart, item 19 — https://shop.example/cart" in out
    assert "Summary of s0: Looked at the cart and left." in out
    assert out.endswith("ended (the server said 204: no more events): 21 received, 21 delivered\n")


def test_sync_callbacks_takes_url_and_token_from_the_environment() -> None:
    with ConnectorServer(EVENTS, end="stop", token="t0ken") as server:
        out, _ = run("sync_callbacks.py", env={"CONNECTOR_URL": server.url, "CONNECTOR_TOKEN": "t0ken"})
        assert "21 delivered" in out
        _, err = run("sync_callbacks.py", server.url, code=1)
    assert err.startswith("FatalStreamError: ")
    assert "401" in err


@pytest.mark.parametrize("name", ["sync_callbacks.py", "async_callbacks.py"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(name: str, number: signal.Signals) -> None:
    with ConnectorServer(EVENTS) as server, start(name, server.url) as process:
        assert next_line(process)
        process.send_signal(number)
        rest, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert err == ""
    assert "ended (stopped)" in rest


def test_async_callbacks_go_on_where_the_last_run_ended(tmp_path: Path) -> None:
    place = str(tmp_path / "place")
    with ConnectorServer(EVENTS, script=[Cut(after_events=5, into_next=20)], end="stop") as server:
        out, err = run("async_callbacks.py", server.url, place)
        assert "21 received, 21 delivered" in out, err
        assert out.count(" actions s") == 20
        server.publish(EVENTS[-1])
        out, err = run("async_callbacks.py", server.url, place)
    assert out.splitlines()[0] == "22 summary s0"
    assert "1 received, 1 delivered" in out, err


def test_drain_and_index(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    with ConnectorServer(EVENTS, script=[Cut(after_events=5, into_next=20)], end="stop") as server:
        out, err = run("drain_and_index.py", server.url, str(path), "0.05")
    assert "21 events indexed, 0 left behind" in out, err
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM events").fetchone() == (21,)
        assert database.execute("SELECT count(*) FROM texts WHERE texts MATCH 'left'").fetchone() == (1,)


def test_an_index_that_fails_for_a_while_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(load("drain_and_index").SCHEMA)
        database.execute("BEGIN IMMEDIATE")  # somebody else writes, and takes long
        with (
            ConnectorServer(EVENTS, end="stop") as server,
            start("drain_and_index.py", server.url, str(path), "0.05") as process,
        ):
            failed = next_line(process)
            while "21 events wait" not in failed:
                assert failed.startswith("the index failed (database is locked): "), failed
                failed = next_line(process)
            database.execute("COMMIT")
            out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        assert "21 events indexed, 0 left behind" in out
        rows = database.execute("SELECT session_id, event_id FROM events ORDER BY number").fetchall()
    assert len(rows) == 21
    for session in ("s0", "s1", "s2"):
        numbers = [int(event_id) for name, event_id in rows if name == session]
        assert numbers == sorted(numbers), "each session in order"


def test_ctrl_c_indexes_what_has_arrived(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    with ConnectorServer(EVENTS) as server, start("drain_and_index.py", server.url, str(path), "0.05") as process:
        assert next_line(process).startswith("indexed ")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "0 left behind" in out


def test_drain_job(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    with ConnectorServer(EVENTS, script=[Cut(after_events=5, into_next=20)], end="stop") as server:
        out, err = run("drain_job.py", server.url, str(path), "0.05")
    assert "21 events indexed, 0 left behind" in out, err
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM events").fetchone() == (21,)


def test_drain_job_waits_for_an_index_that_is_busy(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(load("drain_job").SCHEMA)
        database.execute("BEGIN IMMEDIATE")  # somebody else writes, and takes long
        with ConnectorServer(EVENTS) as server, start("drain_job.py", server.url, str(path), "0.05") as process:
            assert process.stderr is not None
            assert "the index is busy: database is locked" in process.stderr.readline()
            database.execute("COMMIT")
            indexed = 0
            while indexed < 21:
                indexed += int(next_line(process).split()[1])
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
    assert "21 events indexed, 0 left behind" in out
    assert "given up" not in out


def test_custom_backend(tmp_path: Path) -> None:
    with ConnectorServer(EVENTS, script=[Status(503), Cut(after_events=5, into_next=20)], end="stop") as server:
        out, _ = run("custom_backend.py", server.url, str(tmp_path / "events.jsonl"))
    lines = out.splitlines()
    assert "21 events in" in lines[0]
    assert "Looked at the cart and left." in lines


class TestCustomBackendKeepsTheContract(BufferBackendContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self._path = tmp_path / "events.jsonl"

    def make_backend(self) -> BufferBackend:
        backend: BufferBackend = load("custom_backend").JsonLinesBackend(self._path)
        return backend


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer(appendonly=True) as server:
        yield server


def test_redis_buffer(redis: RedisServer) -> None:
    with ConnectorServer(EVENTS, script=[Cut(after_events=5, into_next=20)], end="stop") as server:
        out, err = run("redis_buffer.py", server.url, "prefix", env={"REDIS_URL": redis.url})
    assert out.endswith("21 received, 21 worked on\n"), err
    assert sorted(int(line.split()[0]) for line in out.splitlines()[:-1]) == list(range(1, 22))


def test_redis_buffer_loses_nothing_when_redis_is_killed(redis: RedisServer) -> None:
    with (
        ConnectorServer(EVENTS, end="stop", rate=20) as server,
        start("redis_buffer.py", server.url, env={"REDIS_URL": redis.url}) as process,
    ):
        seen = [next_line(process)]
        redis.kill()
        redis.restart()
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    *lines, end = [*seen, *out.splitlines()]
    assert "21 received, " in end
    done = {int(line.split()[0]) for line in lines}
    with BlockingBuffer(RedisEventBuffer(redis.url, "example")) as buffer:
        stats = buffer.stats()
    assert isinstance(stats, DurableStats)
    assert stats.shared is not None
    # A lease whose answer the kill cut off runs out after a minute, and then its events come to whoever asks.
    assert stats.shared.received == stats.shared.delivered + stats.shared.in_flight == 21
    assert 21 - len(done) <= stats.shared.in_flight


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_redis_buffer_finish(redis: RedisServer, number: signal.Signals) -> None:
    with (
        ConnectorServer(EVENTS) as server,
        start("redis_buffer.py", server.url, env={"REDIS_URL": redis.url}) as process,
    ):
        assert next_line(process)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    received, worked_on = re.findall(r"(\d+) (?:received|worked on)", out.splitlines()[-1])
    assert received == worked_on


def test_event_bus(redis: RedisServer) -> None:
    events: list[Payload] = [*EVENTS, ActionsPayload("shop", "s1", actions=[], forwarded_at=1.7e9)]
    with ConnectorServer(events, script=[Cut(after_events=5, into_next=20)], end="stop") as server:
        out, err = run("event_bus.py", server.url, "prefix", env={"REDIS_URL": redis.url})
    assert out.endswith("21 worked on, 22 watched\n"), err
    *lines, letter, _ = out.splitlines()
    assert sorted(int(line.split()[0]) for line in lines) == list(range(1, 22))
    assert "given up" in letter
    assert "nothing was done" in letter


def test_a_signal_lets_the_event_bus_finish(redis: RedisServer) -> None:
    with (
        ConnectorServer(EVENTS) as server,
        start("event_bus.py", server.url, env={"REDIS_URL": redis.url}) as process,
    ):
        assert next_line(process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    worked_on, watched = re.findall(r"(\d+) (?:worked on|watched)", out.splitlines()[-1])
    assert worked_on == watched


def test_sync_redis(redis: RedisServer) -> None:
    with ConnectorServer(EVENTS, script=[Cut(after_events=5, into_next=20)], end="stop") as server:
        out, err = run("sync_redis.py", server.url, "prefix", "0.05", env={"REDIS_URL": redis.url})
    assert out.endswith("21 stored, 0 dropped\n"), err
    assert out.count("Session s") == 20
    assert "Looked at the cart and left." in out


def test_sync_redis_shows_what_it_drops(redis: RedisServer) -> None:
    redis.kill()
    with ConnectorServer(EVENTS, end="stop") as server:
        out, err = run("sync_redis.py", server.url, "prefix", "0.05", env={"REDIS_URL": redis.url})
    assert out.endswith("0 stored, 21 dropped\n"), err
    assert err.count("dropped event ") == 21
    assert "another time (" in err


def test_ctrl_c_stores_and_prints_what_has_arrived(redis: RedisServer) -> None:
    with (
        ConnectorServer(EVENTS) as server,
        start("sync_redis.py", server.url, "prefix", "0.05", env={"REDIS_URL": redis.url}) as process,
    ):
        assert next_line(process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert re.search(r"ended \(.*\): \d+ stored, 0 dropped", out)


def test_the_custom_backend_has_forty_lines() -> None:
    lines = inspect.getsource(load("custom_backend").JsonLinesBackend).splitlines()
    assert len(lines) <= 40
