"""A real cluster of masters, and of replicas if wanted, on loopback."""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import redis

from connector_sdk.errors import ConfigurationError
from connector_sdk.testing import RedisServer
from connector_sdk.testing.engine import bind

SLOTS: Final = 16_384
NODE_TIMEOUT: Final = 1.0  # seconds of silence until a node counts as failed

_PATIENCE: Final = 30.0
_BUS: Final = 10_000  # a node's bus listens on its port plus this
#: Below the ports that the kernel gives to connections, for both of them.
_PORTS: Final = range(12_000, 22_000)
_OPTIONS: Final = (
    *("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"),
    *("--cluster-node-timeout", str(int(NODE_TIMEOUT * 1000)), "--cluster-replica-validity-factor", "0"),
    *("--repl-diskless-sync-delay", "0"),
)


class Node:
    """One server of a cluster."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.port: Final = server.port
        self.client = redis.Redis(port=server.port, decode_responses=True, socket_timeout=10)
        self.id: Final = str(self.do("CLUSTER", "MYID"))

    def __repr__(self) -> str:
        return f"<Node {self.id[:8]} of {self.server!r}>"

    def do(self, *words: str | int) -> object:
        """Send one command to this very node."""
        execute: Callable[..., object] = self.client.execute_command
        return execute(*words)

    @property
    def state(self) -> str:
        """What this node thinks of the cluster: "ok" or "fail"."""
        return "ok" if re.search(r"cluster_state:ok\b", str(self.do("CLUSTER", "INFO"))) else "fail"

    @property
    def is_master(self) -> bool:
        """Whether it is one now."""
        return self._role[0] == "master"

    @property
    def is_replica_in_step(self) -> bool:
        """Whether it is a replica, and connected to its master."""
        return self._role[0] == "slave" and self._role[3] == "connected"

    @property
    def _role(self) -> list[object]:
        role = self.do("ROLE")
        assert isinstance(role, list)
        return role

    @property
    def slots(self) -> list[tuple[int, int, int]]:
        """Who has which slots, by what this node knows: first, last, and the port of their master."""
        ranges = self.do("CLUSTER", "SLOTS")
        assert isinstance(ranges, list)
        return [(first, last, master[1]) for first, last, master, *_ in ranges]


class Cluster:
    """
    *masters* servers that share the slots evenly, and *replicas* more that follow the first ones.

    Other masters go on when one is gone (`cluster-require-full-coverage no`), unless *full_coverage*.
    """

    def __init__(
        self, binary: Path | None = None, *, masters: int = 3, replicas: int = 0, full_coverage: bool = False
    ) -> None:
        options = (*_OPTIONS, "--cluster-require-full-coverage", "yes" if full_coverage else "no")
        self._ports = iter(random.sample(_PORTS, 100))
        self._exit = contextlib.ExitStack()
        self._binary = binary
        self._options = options
        self._counts = (masters, replicas)
        self.nodes: list[Node] = []

    def start(self) -> Self:
        """Start all of it and wait until each node says that the cluster is well."""
        try:
            for _ in range(sum(self._counts)):
                self._add_node()
            self._join()
            self.wait_until_ok()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End all of it."""
        self._exit.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Cluster of {self.nodes}>"

    @property
    def url(self) -> str:
        """The address of the first node that is up."""
        return self.up[0].server.url

    @property
    def up(self) -> list[Node]:
        """The nodes that run."""
        return [node for node in self.nodes if node.server.running]

    @property
    def masters(self) -> list[Node]:
        """The nodes that run and are masters now."""
        return [node for node in self.up if node.is_master]

    def slot_of(self, key: str) -> int:
        """The slot of *key*."""
        answer = self.up[0].do("CLUSTER", "KEYSLOT", key)
        assert isinstance(answer, int)
        return answer

    def owner_of(self, slot: int) -> Node:
        """The node that serves *slot*, by what the first node knows."""
        for first, last, owner in self.up[0].slots:
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == owner)
        raise LookupError(f"nobody serves slot {slot}")

    def flush(self) -> None:
        """Delete all keys."""
        for node in self.masters:
            node.do("FLUSHALL")

    # Faults and moves.

    def kill(self, node: Node) -> None:
        """End *node* with SIGKILL."""
        node.server.kill()

    def restart(self, node: Node) -> None:
        """Start *node* again, with what it knew of the cluster."""
        node.server.restart()

    def mend(self) -> None:
        """Bring back each node that is down or paused, wait until all is well, and delete all keys."""
        for node in self.nodes:
            if node.server.running:
                node.server.resume()
            else:
                node.server.restart()
        self.wait_until_ok()
        self.flush()

    def fail_over(self, replica: Node) -> None:
        """
        Make *replica* the master of its slots, in agreement with the old one; wait until all know.

        A node that has just been promoted is not to be promoted again soon (for 4 s): Redis 7.0 then counts old votes.
        """
        # A master pays no heed to a replica that it does not know to be one yet.
        wait_until(lambda: self._is_replica_for_all(replica), "the replica follows its master")
        replica.do("CLUSTER", "FAILOVER")
        self.wait_for_master(replica)

    def wait_for_master(self, node: Node) -> None:
        """Wait until *node* is a master, and each node that runs says that it has slots."""

        def promoted() -> bool:
            return node.is_master and all(node.port in {port for _, _, port in other.slots} for other in self.up)

        wait_until(promoted, "the replica is a master")
        self.wait_until_ok()

    def begin_move(self, slot: int, to: Node) -> Node:
        """Begin to move *slot*: its owner, which is returned, answers ASK for keys that it no longer has."""
        owner = self.owner_of(slot)
        to.do("CLUSTER", "SETSLOT", slot, "IMPORTING", owner.id)
        owner.do("CLUSTER", "SETSLOT", slot, "MIGRATING", to.id)
        return owner

    def move_keys(self, slot: int, owner: Node, to: Node) -> int:
        """Move all keys of *slot*; return how many."""
        moved = 0
        while keys := owner.do("CLUSTER", "GETKEYSINSLOT", slot, 100):
            assert isinstance(keys, list)
            owner.do("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *keys)
            moved += len(keys)
        return moved

    def end_move(self, slot: int, to: Node) -> None:
        """Let all know that *slot* is served by *to*: the others answer MOVED."""
        for node in [to, *(node for node in self.masters if node is not to)]:
            node.do("CLUSTER", "SETSLOT", slot, "NODE", to.id)

    def move_slot(self, slot: int, to: Node) -> int:
        """Move *slot* and its keys to the master *to*; return how many keys moved."""
        owner = self.begin_move(slot, to)
        moved = self.move_keys(slot, owner, to)
        self.end_move(slot, to)
        return moved

    def wait_until_ok(self) -> None:
        """Wait until each node that runs says that the cluster is well and that each slot has a master that runs."""

        def well() -> bool:
            ports = {node.port for node in self.up}
            return all(
                node.state == "ok"
                and {port for _, _, port in node.slots} <= ports
                and sum(last - first + 1 for first, last, _ in node.slots) == SLOTS
                for node in self.up
            )

        wait_until(well, "the cluster is well")

    # Making it.

    def _add_node(self) -> None:
        while True:
            with contextlib.ExitStack() as attempt:
                try:
                    port = next(self._ports)
                    attempt.callback(bind(port + _BUS).close)  # keeps the bus's port ours too
                    server = attempt.enter_context(RedisServer(self._binary, port=port, arguments=self._options))
                except (OSError, ConfigurationError):
                    continue  # somebody has one of the two ports
                node = Node(server)
                attempt.callback(node.client.close)
                self._exit.push(attempt.pop_all())
                self.nodes.append(node)
                return

    def _join(self) -> None:
        masters, replicas = self._counts
        bounds = [SLOTS * number // masters for number in range(masters + 1)]
        for number, node in enumerate(self.nodes):
            node.do("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < masters:
                node.do("CLUSTER", "ADDSLOTS", *range(bounds[number], bounds[number + 1]))
        for node, other in itertools.permutations(self.nodes, 2):
            node.do("CLUSTER", "MEET", "127.0.0.1", other.port)
        for number in range(replicas):
            self._follow(self.nodes[masters + number], self.nodes[number])

    def _follow(self, replica: Node, master: Node) -> None:
        def known() -> bool:
            return master.id in str(replica.do("CLUSTER", "NODES"))

        wait_until(known, "the replica knows its master")
        replica.do("CLUSTER", "REPLICATE", master.id)
        wait_until(lambda: self._is_replica_for_all(replica), "the replica has its master's data")

    def _is_replica_for_all(self, replica: Node) -> bool:
        """Whether it is connected to its master and each node has heard that it is a replica."""
        listed = re.compile(rf"{replica.id} \S+ \S*\bslave ")
        return replica.is_replica_in_step and all(listed.search(str(node.do("CLUSTER", "NODES"))) for node in self.up)


def wait_until(condition: Callable[[], bool], what: str, timeout: float = _PATIENCE) -> None:
    """Ask *condition* until it holds; TimeoutError, naming *what*, after *timeout* seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"in vain, for {timeout:g} s: {what}")
        time.sleep(0.01)
