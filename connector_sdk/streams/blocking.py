"""Connections for requests that block, apart from the shared one, which must stay free."""

from __future__ import annotations

from collections.abc import Sequence

from connector_sdk.errors import ClientStateError
from connector_sdk.redis_client import Argument, RedisAddress, RedisClient, RedisRefusedError, Reply
from connector_sdk.redis_client.address import Topology
from connector_sdk.redis_client.slots import key_slot

__all__ = ["BlockingConnections", "milliseconds"]

#: Groups of keys that may be named in one request: by slot in a cluster, all together elsewhere.
Slot = int


class BlockingConnections:
    """
    Sends requests that the server may hold for a while: each on a connection that no other request uses meanwhile.

    Connections are kept for the next request of the same slot. A request that is cancelled or fails takes its connection
    with it: the server forgets what it was waiting for.

    A request that blocks for b seconds fails when no answer came within 2 b + *patience* seconds.
    """

    def __init__(self, address: RedisAddress, *, connect_timeout: float, patience: float, client_name: str) -> None:
        self._address = address
        self._connect_timeout = connect_timeout
        self._patience = patience
        self._client_name = client_name
        self._by_slot = address.topology is Topology.CLUSTER
        self._idle: dict[Slot, list[RedisClient]] = {}
        self._busy: set[RedisClient] = set()
        self._closed = False

    def slot(self, key: bytes) -> Slot:
        """Return what keys must have in common to be named in one request."""
        return key_slot(key) if self._by_slot else 0

    async def call(self, arguments: Sequence[Argument], *, key: bytes, block: float, repeatable: bool) -> Reply:
        """Send one command, which blocks for up to *block* seconds, to the server that has *key*; see `RedisClient.call`."""
        if self._closed:
            raise ClientStateError(f"the connections to {self._address} were closed")
        slot = self.slot(key)
        idle = self._idle.setdefault(slot, [])
        client = idle.pop() if idle else self._connection()
        self._busy.add(client)
        answered = False
        try:
            # Above twice the time that it blocks: half of a request's time without a byte is death to a connection.
            timeout = 2 * block + self._patience
            reply = await client.call(*arguments, key=key, timeout=timeout, repeatable=repeatable)
            answered = True
        except RedisRefusedError as error:
            answered = True
            if (
                error.code == "UNBLOCKED"
            ):  # the slot moves, or the master became a replica: the next request finds out where to
                return None
            raise
        finally:
            if not answered:
                client.disconnect()
            self._busy.discard(client)
            idle.append(client)
        return reply

    def interrupt(self) -> None:
        """Let all requests under way fail, in doubt."""
        for client in self._busy:
            client.disconnect()

    async def aclose(self) -> None:
        """Close all; requests under way fail."""
        self._closed = True
        clients = [*self._busy, *(client for idle in self._idle.values() for client in idle)]
        self._idle.clear()
        for client in clients:
            await client.aclose()

    def _connection(self) -> RedisClient:
        return RedisClient(self._address, connect_timeout=self._connect_timeout, client_name=self._client_name)


def milliseconds(seconds: float) -> int:
    """Return a time to block as the server takes it: 1 or more, for 0 means for ever."""
    return max(1, round(seconds * 1000))
