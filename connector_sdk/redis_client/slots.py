"""Pure: which node of a cluster has a key, as far as is known."""

from __future__ import annotations

import binascii

from connector_sdk.redis_client.address import Server
from connector_sdk.redis_client.errors import RedisRefusedError
from connector_sdk.redis_client.packing import Reply

__all__ = ["SlotMap", "key_slot", "redirection"]

_SLOTS = 16384


def key_slot(key: bytes) -> int:
    """
    Return the slot of *key*, 0 to 16383: of its hash tag, if it has one.

    Source: the cluster specification, "Key distribution model" and "Hash tags".
    """
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return binascii.crc_hqx(key, 0) % _SLOTS


class SlotMap:
    """What was learned about who has which slot; a server it names may be gone by now."""

    def __init__(self) -> None:
        self._owners: list[Server | None] = [None] * _SLOTS
        #: Whether the whole map was asked for since a server was last forgotten.
        self.complete = False

    def owner(self, key: bytes) -> Server | None:
        """Return the server that has *key*, None when that is not known."""
        return self._owners[key_slot(key)]

    def learn(self, slot: int, server: Server) -> None:
        """*server* has *slot*."""
        self._owners[slot] = server

    def learn_all(self, reply: Reply, asked: Server) -> list[Server]:
        """
        Take over the answer of *asked* to CLUSTER SLOTS; return all servers in it, replicas too.

        An answer of another shape teaches nothing.
        """
        found: dict[Server, None] = {}
        for entry in reply if isinstance(reply, list) else ():
            if not isinstance(entry, list) or len(entry) < 3:
                continue
            first, last, *nodes = entry
            servers = [server for node in nodes if (server := _node(node, asked))]
            found |= dict.fromkeys(servers)
            if servers and isinstance(first, int) and isinstance(last, int) and 0 <= first <= last < _SLOTS:
                self._owners[first : last + 1] = [servers[0]] * (last - first + 1)
        self.complete = bool(found)
        return list(found)

    def forget(self, server: Server) -> None:
        """*server* cannot be reached: whoever is asked next will know who has its slots now."""
        if server in self._owners:
            self._owners = [None if owner == server else owner for owner in self._owners]
            self.complete = False


def redirection(error: RedisRefusedError, asked: Server) -> tuple[int, Server] | None:
    """
    Return the slot and its server that *asked* names in a MOVED or ASK; None for any other error.

    A server that does not know its own host leaves it out (or says "?"): the host that was asked is meant.
    """
    words = error.message.split(" ")
    if len(words) < 3 or words[0] not in ("MOVED", "ASK"):
        return None
    host, _, port = words[2].rpartition(":")
    if not words[1].isdecimal() or int(words[1]) >= _SLOTS or not port.isdecimal() or not 0 < int(port) < 65536:
        return None
    return int(words[1]), Server(host if host not in ("", "?") else asked.host, int(port))


def _node(node: Reply, asked: Server) -> Server | None:
    if not isinstance(node, list) or len(node) < 2 or not isinstance(node[1], int) or not 0 < node[1] < 65536:
        return None
    host = node[0].decode() if isinstance(node[0], bytes) else ""
    return Server(host if host not in ("", "?") else asked.host, node[1])
