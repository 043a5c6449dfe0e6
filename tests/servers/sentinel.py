"""A master, a replica and a sentinel that watches them, on loopback."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import redis

from connector_sdk.testing import RedisServer
from tests.servers.cluster import wait_until

MASTER_NAME: Final = "mymaster"
DOWN_AFTER: Final = 0.5  # seconds of silence until the sentinel calls the master down

_CONFIG: Final = """
sentinel monitor {name} 127.0.0.1 {port} 1
sentinel down-after-milliseconds {name} {down_after}
sentinel failover-timeout {name} 3000
"""


class SentinelSet:
    """
    One master, one replica and one sentinel, which alone decides (quorum 1).

    `master_name` and `sentinel_port` are what a client needs.
    """

    master_name = MASTER_NAME

    def __init__(self, binary: Path | None = None) -> None:
        self._binary = binary
        self._exit = contextlib.ExitStack()

    def start(self) -> Self:
        """Start all three; return when the sentinel knows the other two and the replica has the master's data."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End all three."""
        self._exit.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def sentinel_port(self) -> int:
        """Where to ask for the master."""
        return self.sentinel.port

    @property
    def master_port(self) -> int:
        """The port of the master, by what the sentinel says; the new one's when a failover is over."""
        return int(self._state()["port"])

    @property
    def master(self) -> RedisServer:
        """The server that is the master now, by what the sentinel says."""
        return next(server for server in self.servers if server.port == self.master_port)

    @property
    def replica(self) -> RedisServer:
        """The other one."""
        return next(server for server in self.servers if server.port != self.master_port)

    def failover(self) -> RedisServer:
        """Kill the master and wait until the sentinel has promoted the replica; return the one that was killed."""
        lost = self.master
        lost.kill()
        self.wait_for_another_than(lost)
        return lost

    def graceful_failover(self) -> RedisServer:
        """
        Let the sentinel promote the replica though nothing is wrong; return the old master.

        The sentinel makes that one a replica only some ten seconds later: until then it runs and takes writes, which
        are lost then.
        """
        old = self.master
        wait_until(self._replica_is_known, "the sentinel knows a good replica")
        self._ask("SENTINEL", "FAILOVER", MASTER_NAME)
        self.wait_for_another_than(old)
        return old

    def wait_for_another_than(self, old: RedisServer) -> None:
        """Wait until another server than *old* is the master, in the words of the sentinel and in its own."""

        def switched() -> bool:
            # While it changes over the sentinel names either, depending on how it is asked.
            return self._state()["flags"] == "master" and self.master is not old and _role(self.master)[0] == "master"

        wait_until(switched, "there is a new master")

    def _state(self) -> dict[str, str]:
        answer = self._ask("SENTINEL", "MASTER", MASTER_NAME)
        assert isinstance(answer, dict)
        return answer

    def _start(self) -> None:
        start = self._exit.enter_context
        options = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
        first = start(RedisServer(self._binary, arguments=options))
        second = start(RedisServer(self._binary, arguments=(*options, "--replicaof", "127.0.0.1", str(first.port))))
        self.servers = [first, second]
        # The sentinel looks for replicas only every ten seconds: it must find this one the first time.
        wait_until(lambda: _role(second)[3] == "connected", "the replica is connected")
        folder = Path(start(tempfile.TemporaryDirectory(prefix="sentinel-")))
        config = folder / "sentinel.conf"
        config.write_text(_CONFIG.format(name=MASTER_NAME, port=first.port, down_after=int(DOWN_AFTER * 1000)))
        self.sentinel = start(RedisServer(self._binary, arguments=(str(config), "--sentinel")))
        wait_until(self._replica_is_known, "the sentinel knows the replica")

    def _replica_is_known(self) -> bool:
        with redis.Redis(port=self.sentinel.port, decode_responses=True) as client:
            replicas = client.sentinel_slaves(MASTER_NAME)
        return [replica["flags"] for replica in replicas] == ["slave"] and replicas[0]["slave-priority"] != 0

    def _ask(self, *words: str) -> object:
        with redis.Redis(port=self.sentinel.port, decode_responses=True, socket_timeout=10) as client:
            execute: Callable[..., object] = client.execute_command
            return execute(*words)


def _role(server: RedisServer) -> list[object]:
    with redis.Redis(port=server.port, decode_responses=True, socket_timeout=10) as client:
        execute: Callable[..., object] = client.execute_command
        role = execute("ROLE")
    assert isinstance(role, list)
    return role
