"""Finding the master that sentinels watch."""

from __future__ import annotations

import time

from connector_sdk.redis_client.address import RedisAddress, Server
from connector_sdk.redis_client.connection import Connection
from connector_sdk.redis_client.errors import RedisRefusedError, RedisUnavailableError
from connector_sdk.redis_client.opening import Login, open_connection
from connector_sdk.redis_client.packing import Reply, pack

__all__ = ["Sentinels"]


_VERIFY_TIMEOUT = 1.0  # seconds


class _NotThisSentinelError(Exception):
    """The sentinel gave no master that can be used; another may."""


class Sentinels:
    """The sentinels of an address; whichever answered last is asked first."""

    def __init__(self, address: RedisAddress, client_name: str) -> None:
        self._servers = list(address.servers)
        self._service = address.service
        self._login = Login.of_sentinels(address, client_name)
        self._master_login = Login.of(address, client_name)

    async def open_master(self, timeout: float) -> Connection:
        """
        Return a connection to the master: a server that a sentinel names, and that says of itself that it is one.

        Raises RedisUnavailableError when no sentinel names such a server within *timeout* seconds. Raises
        RedisRefusedError when the master does not accept the login.
        """
        deadline = time.monotonic() + timeout
        failures: list[str] = []
        for place, server in enumerate(list(self._servers)):
            # One that does not answer must leave time for those after it, and for the master.
            left = deadline - time.monotonic()
            share = left / (len(self._servers) - place + 1)
            try:
                master = await self._ask(server, share)
                connection = await self._open_verified(master, deadline - time.monotonic())
            except _NotThisSentinelError as error:
                failures.append(str(error))
                continue
            self._servers.remove(server)
            self._servers.insert(0, server)
            return connection
        raise RedisUnavailableError(f"no sentinel knows a master {self._service!r} that answers: {'; '.join(failures)}")

    async def still_agree(self, connection: Connection) -> bool:
        """
        Return whether the sentinel that is asked first still calls the server of *connection* the master.

        After a failover the old master takes writes, in vain, until a sentinel makes it a replica: some ten seconds
        later when it was well all the time. One that cannot be asked counts as agreeing; another is asked next time.
        """
        sentinel = self._servers[0]
        try:
            return await self._ask(sentinel, _VERIFY_TIMEOUT) == connection.server
        except _NotThisSentinelError:
            self._servers.remove(sentinel)
            self._servers.append(sentinel)
            return True

    async def _ask(self, sentinel: Server, timeout: float) -> Server:
        question = pack(("SENTINEL", "get-master-addr-by-name", self._service))
        try:
            connection = await open_connection(sentinel, self._login, timeout)
            try:
                reply = await connection.call(question, timeout)
            finally:
                await connection.aclose("it was asked")
        except RedisUnavailableError as error:
            raise _NotThisSentinelError(str(error)) from error
        except RedisRefusedError as error:
            raise _NotThisSentinelError(f"{sentinel}: {error}") from error
        master = _server(reply)
        if master is None:
            raise _NotThisSentinelError(f"{sentinel}: knows no such master")
        return master

    async def _open_verified(self, master: Server, timeout: float) -> Connection:
        verified = False
        try:
            connection = await open_connection(master, self._master_login, timeout)
            try:
                verified = await _is_master(connection, timeout)
            finally:
                if not verified:
                    await connection.aclose("it is no master")
        except RedisUnavailableError as error:
            raise _NotThisSentinelError(str(error)) from error
        if not verified:
            raise _NotThisSentinelError(f"{master}: is no master (any more)")
        return connection


async def _is_master(connection: Connection, timeout: float) -> bool:
    try:
        reply = await connection.call(pack(("ROLE",)), timeout)
    except RedisRefusedError:
        return True  # a user who may not ask: a replica will refuse the first write
    return isinstance(reply, list) and bool(reply) and reply[0] == b"master"


def _server(reply: Reply) -> Server | None:
    if not isinstance(reply, list) or len(reply) != 2:
        return None
    host, port = reply
    if not isinstance(host, bytes) or not isinstance(port, bytes) or not port.isdigit() or len(port) > 5:
        return None
    try:
        # Port 0 would mean a Unix socket.
        return Server(host.decode(), int(port)) if 0 < int(port) < 65536 else None
    except UnicodeDecodeError:
        return None
