"""Sends each command to the server that has its key, whatever servers there are and whatever becomes of them."""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from collections.abc import Sequence
from functools import partial

from connector_sdk.errors import ClientStateError
from connector_sdk.redis_client.address import RedisAddress, Server, Topology
from connector_sdk.redis_client.connection import Connection
from connector_sdk.redis_client.errors import RedisRefusedError, RedisUnavailableError
from connector_sdk.redis_client.link import Link
from connector_sdk.redis_client.opening import Login, open_connection
from connector_sdk.redis_client.packing import Argument, Reply, pack
from connector_sdk.redis_client.scripts import Script
from connector_sdk.redis_client.sentinels import Sentinels
from connector_sdk.redis_client.slots import SlotMap, redirection

__all__ = ["RedisClient", "Reply"]

#: The server cannot serve now, and another attempt within the same call would not change that.
_NOT_NOW = frozenset({"LOADING", "BUSY", "NOREPLICAS"})
#: Nothing was done, and the next attempt may find it changed: a failover or a migration is under way.
_CHANGING = frozenset({"READONLY", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN", "MOVED", "ASK"})
#: Pauses in seconds before the second attempt, the third, ...; the last one repeats.
_PAUSES = (0.0, 0.0, 0.01, 0.02, 0.05)
_ASKING = pack(("ASKING",))
_CLUSTER_SLOTS = pack(("CLUSTER", "SLOTS"))


class RedisClient:
    """
    A client for one server, a cluster, or the master that sentinels watch. Constructing it does no network I/O.

    Any number of tasks of one event loop (asyncio's) may call it at once. There is one connection to each server,
    opened on first use within *connect_timeout* seconds. Requests that are written to the same connection keep the order
    of the calls. After the event loop was closed, or in the child of a fork, it starts anew with the next call.

    *client_name* is what CLIENT LIST shows; an option of the address has precedence.

    Raises ConfigurationError when a TLS file of *address* cannot be used.
    """

    def __init__(
        self, address: RedisAddress, *, connect_timeout: float = 1.0, client_name: str = "connector_sdk"
    ) -> None:
        self.address = address
        self._connect_timeout = connect_timeout
        self._login = Login.of(address, client_name)
        self._sentinels = Sentinels(address, client_name) if address.topology is Topology.SENTINEL else None
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Grows with each connection that requests waited for.
        self.openings = 0
        self._start_anew()
        _living.add(self)

    def _start_anew(self) -> None:
        self._links: dict[Server, Link] = {}
        self._dropped: list[Link] = []
        # The servers that may be asked for a key nobody is known to have, the next one first.
        # With sentinels: none but the master, wherever it is.
        self._entries = list(self.address.servers if self._sentinels is None else self.address.servers[:1])
        self._slots: SlotMap | None = SlotMap() if self.address.topology is Topology.CLUSTER else None
        self._learning = False

    # ------------------------------------------------------------------------------------------ calling

    async def call(self, *arguments: Argument, key: bytes, timeout: float, repeatable: bool = False) -> Reply:
        """
        Send one command to the server that has *key* and return its reply.

        The call ends within *timeout* seconds (and a turn of the event loop). A *repeatable* command is sent again, on
        a new connection, when it got no answer and time is left: name those commands repeatable that may be carried out
        twice. Others are never sent twice, unless the answer says that nothing was done (moved, read-only, ...).

        Raises:
            RedisUnavailableError: no usable answer in time; `in_doubt` says whether it may have been carried out.
            RedisRefusedError: the server answered with an error.
            ClientStateError: the client was closed, or belongs to another event loop that runs.
            TypeError: an argument is of another type.
        """
        return await self._request(pack(arguments), key, timeout, repeatable)

    async def run(
        self,
        script: Script,
        keys: Sequence[bytes],
        arguments: Sequence[Argument],
        *,
        timeout: float,
        repeatable: bool = False,
    ) -> Reply:
        """
        Run *script* on the server that has the first of *keys* (1 or more; all of one slot) and return its reply.

        A server that does not know the script gets its text. Otherwise as `call`.
        """
        deadline = time.monotonic() + timeout
        tail = (len(keys), *keys, *arguments)
        try:
            return await self._request(pack(("EVALSHA", script.sha1, *tail)), keys[0], timeout, repeatable)
        except RedisRefusedError as error:
            if error.code != "NOSCRIPT":
                raise
            in_doubt = error.in_doubt
        # Nothing was run, so this is the first time.
        left = deadline - time.monotonic()
        return await self._request(pack(("EVAL", script.source, *tail)), keys[0], left, repeatable, in_doubt=in_doubt)

    def disconnect(self) -> None:
        """
        Drop every connection now; requests under way fail, those that were sent in doubt. The next call connects anew.

        For connections of one's own that block: the server forgets a blocked request when its connection is gone.
        """
        dropped, self._links = list(self._links.values()), {}
        for link in dropped:
            link.abort("the connection was dropped")
        # Their transports close in the next turn of the loop; `aclose` waits for the last ones.
        self._dropped = dropped

    async def aclose(self) -> None:
        """
        Close every connection and wait until they are closed; requests under way fail. The client is of no more use.

        May be called twice, and from any event loop.
        """
        if self._loop is None or self._loop is not _running_loop():
            self._let_go()
            self._closed = True
            return
        self._closed = True
        links = [*self._links.values(), *self._dropped]
        self._links.clear()
        self._dropped.clear()
        for link in links:
            link.abort("the client was closed")
        for link in links:
            await link.wait_closed()

    @property
    def servers(self) -> tuple[str, ...]:
        """The servers with an open connection, as "host:port"."""
        links = self._links.values()
        return tuple(str(link.connection.server) for link in links if link.connection and link.connection.is_open)

    def __repr__(self) -> str:
        return f"RedisClient({str(self.address)!r})"

    # ------------------------------------------------------------------------------------------ one request

    async def _request(
        self, packed: bytes, key: bytes, timeout: float, repeatable: bool, *, in_doubt: bool = False
    ) -> Reply:
        loop = _running_loop()
        if loop is not self._loop or self._closed or loop is None:
            loop = self._enter(loop)
        started = loop.time()
        deadline = started + timeout
        left = timeout
        troubles: _Troubles | None = None
        while True:
            link = self._link((troubles and troubles.next_server) or self._server(key))
            connection = link.connection
            if connection is not None and not connection.is_open:
                connection = None
            elif started >= link.verify_at:
                link.verify()
            try:
                if connection is None:
                    connection = await link.open(left)
                    self.openings += 1
                    left = deadline - loop.time()
                if troubles and troubles.asking:
                    # Its own answer tells nothing that the next one does not.
                    connection.call(_ASKING, left)
                return await connection.call(packed, left)
            except RedisRefusedError as error:
                troubles = troubles or _Troubles(deadline, repeatable, in_doubt)
                await self._after_refusal(troubles, link, connection, error)
            except RedisUnavailableError as error:
                troubles = troubles or _Troubles(deadline, repeatable, in_doubt)
                await self._after_silence(troubles, link, connection, error)
            if self._closed or self._loop is not loop:
                raise RedisUnavailableError(f"{link.label}: the client was closed", in_doubt=troubles.in_doubt)
            left = deadline - loop.time()

    async def _after_refusal(
        self, troubles: _Troubles, link: Link, connection: Connection | None, error: RedisRefusedError
    ) -> None:
        """The server answered with an error: raise, or return when it is time for another attempt."""
        if error.code in _NOT_NOW:
            raise RedisUnavailableError(f"{link.label}: {error.message}", in_doubt=troubles.in_doubt) from error
        if error.code not in _CHANGING or connection is None or self._closed:
            error.in_doubt = troubles.in_doubt
            raise error
        troubles.next_server, troubles.asking = None, False
        target = redirection(error, connection.server)
        if target is not None:
            troubles.next_server, troubles.asking = target[1], error.code == "ASK"
            if error.code == "MOVED":
                await self._learn(connection, *target, timeout=troubles.left() / 2)
        elif error.code == "CLUSTERDOWN":
            # Perhaps it is cut off from the others, and they can serve.
            self._pass_over(connection.server)
        elif error.code != "TRYAGAIN":
            # It was a master once. Whoever leads to the master, a name or a sentinel, is asked again.
            connection.retire()
        await troubles.pause(f"{link.label}: {error.message}", error)

    async def _after_silence(
        self, troubles: _Troubles, link: Link, connection: Connection | None, error: RedisUnavailableError
    ) -> None:
        """There was no answer: raise, or return when it is time for another attempt."""
        troubles.in_doubt = troubles.in_doubt or error.in_doubt
        troubles.next_server, troubles.asking = None, False
        if connection is None:
            # Nobody could be reached. To ask again makes sense where somebody else may answer.
            is_new = link not in troubles.unreachable
            troubles.unreachable.add(link)
            hopeful = (is_new and self._slots is not None) or (
                troubles.repeatable and (self._slots is not None or self._sentinels is not None)
            )
        else:
            hopeful = troubles.repeatable or not error.in_doubt
        if not hopeful or self._closed:
            raise RedisUnavailableError(str(error), in_doubt=troubles.in_doubt) from error
        await troubles.pause(str(error), error)

    # ------------------------------------------------------------------------------------------ which server

    def _server(self, key: bytes) -> Server:
        owner = None if self._slots is None else self._slots.owner(key)
        return owner or self._entries[0]

    def _link(self, server: Server) -> Link:
        link = self._links.get(server)
        if link is None:
            if self._sentinels is None:
                link = Link(str(server), partial(self._open, server))
            else:
                label = f"the master {self.address.service!r}"
                sentinels = self._sentinels
                link = Link(label, partial(sentinels.open_master, self._connect_timeout), sentinels.still_agree)
            self._links[server] = link
        return link

    async def _open(self, server: Server) -> Connection:
        try:
            return await open_connection(server, self._login, self._connect_timeout)
        except RedisUnavailableError:
            self._pass_over(server)
            raise

    def _pass_over(self, server: Server) -> None:
        """Ask others first from now on."""
        if self._slots is not None:
            self._slots.forget(server)
        if server in self._entries:
            self._entries.remove(server)
            self._entries.append(server)

    async def _learn(self, asked: Connection, slot: int, server: Server, *, timeout: float) -> None:
        """*asked* said that *server* has *slot*; at the first such answer learn about the whole cluster."""
        # A plain address whose server turns out to be a node of a cluster works as well.
        slots = self._slots = self._slots or SlotMap()
        slots.learn(slot, server)
        if slots.complete or self._learning:
            return
        self._learning = True
        try:
            nodes = slots.learn_all(await asked.call(_CLUSTER_SLOTS, timeout), asked.server)
            self._entries = list(dict.fromkeys((*self._entries[:1], *self.address.servers, *nodes)))
        except RedisRefusedError:
            slots.complete = True  # a user who may not ask: slot by slot, then
        except RedisUnavailableError:
            return  # the next one will tell
        finally:
            self._learning = False
        slots.learn(slot, server)

    # ------------------------------------------------------------------------------------------ event loops

    def _enter(self, loop: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
        """Start anew in *loop* and return it, unless the client is closed or in use elsewhere."""
        if self._closed:
            raise ClientStateError(f"{self!r} was closed")
        if loop is None:
            raise ClientStateError(f"{self!r} works in an event loop of asyncio only")
        self._let_go()
        self._loop = loop
        return loop

    def _let_go(self) -> None:
        """Forget the event loop that had the connections, and close them as far as that is possible without it."""
        loop = self._loop
        if loop is not None and loop.is_running():
            raise ClientStateError(
                f"{self!r} is in use by another event loop, which runs; give each loop its own client"
            )
        for link in self._links.values():
            if loop is None or loop.is_closed():
                link.abandon()
            else:
                link.abort("the event loop was left")
        self._loop = None
        self._start_anew()

    def _after_fork_in_child(self) -> None:
        # The parent goes on with its connections: they are closed here without a word to the server.
        for link in self._links.values():
            link.abandon()
        self._loop = None
        self._start_anew()


class _Troubles:
    """What is remembered of a request that did not succeed at once."""

    def __init__(self, deadline: float, repeatable: bool, in_doubt: bool) -> None:
        self.repeatable = repeatable
        #: Whether an attempt may have been carried out.
        self.in_doubt = in_doubt
        #: Where the server said to go next, and whether it is to be told that we know why.
        self.next_server: Server | None = None
        self.asking = False
        self.unreachable: set[Link] = set()
        self._deadline = deadline
        self._attempts = 0

    def left(self) -> float:
        """Return the seconds that are left."""
        return self._deadline - asyncio.get_running_loop().time()

    async def pause(self, message: str, cause: Exception) -> None:
        """Wait a little before the next attempt; raise RedisUnavailableError when there is no time for another one."""
        pause = _PAUSES[min(self._attempts, len(_PAUSES) - 1)]
        self._attempts += 1
        if self.left() <= pause:
            raise RedisUnavailableError(message, in_doubt=self.in_doubt) from cause
        if pause:
            await asyncio.sleep(pause)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None  # trio, perhaps


_living: weakref.WeakSet[RedisClient] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for client in list(_living):
        client._after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
