"""Opening a connection: socket, TLS, login."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
import time
from dataclasses import dataclass, field
from typing import TypeAlias

from connector_sdk.redis_client.address import RedisAddress, Server
from connector_sdk.redis_client.connection import Connection
from connector_sdk.redis_client.errors import RedisRefusedError, RedisUnavailableError
from connector_sdk.redis_client.packing import Argument, pack

__all__ = ["Login", "open_connection"]

#: What a socket connects to; the shape depends on the family.
_Place: TypeAlias = "tuple[str | int | bytes, ...] | str"

#: The kernel asks an idle peer whether it is still there after this many seconds, then at intervals, then gives up.
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
_FULL = "max number of clients"


@dataclass(frozen=True)
class Login:
    """What to say first. Not shown: it holds the password."""

    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    db: int = 0
    client_name: str = ""
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    @classmethod
    def of(cls, address: RedisAddress, client_name: str) -> Login:
        """What *address* says for its data servers."""
        name = address.client_name or client_name
        return cls(address.username, address.password, address.db, name, address.ssl_context)

    @classmethod
    def of_sentinels(cls, address: RedisAddress, client_name: str) -> Login:
        """What *address* says for its sentinels."""
        name = address.client_name or client_name
        return cls(address.sentinel_username, address.sentinel_password, 0, name, address.ssl_context)


async def open_connection(server: Server, login: Login, timeout: float) -> Connection:
    """
    Return a connection to *server* that is logged in and whose server has answered.

    Raises RedisUnavailableError when that was not possible within *timeout* seconds, RedisRefusedError when the server
    does not accept the login.
    """
    connection: Connection | None = None
    try:
        async with asyncio.timeout(timeout):
            connection = await _connect(server, login.tls, timeout)
            await _log_in(connection, login, timeout)
        return connection
    except (OSError, UnicodeError) as error:  # TimeoutError and ssl.SSLError are OSErrors; a bad name is a UnicodeError
        why = f"no answer within {timeout:.3g} s" if isinstance(error, TimeoutError) else _why(error)
        raise RedisUnavailableError(f"cannot connect to {server}: {why}") from error
    except RedisUnavailableError as error:
        raise RedisUnavailableError(f"cannot connect to {error}") from error
    except RedisRefusedError as error:
        if _FULL in error.message:
            raise RedisUnavailableError(f"cannot connect to {server}: it has too many clients") from error
        raise
    finally:
        if connection is not None and not connection.is_logged_in:
            await connection.aclose("the login failed")


async def _connect(server: Server, tls: ssl.SSLContext | None, timeout: float) -> Connection:
    """Try the addresses of *server* one after another, each with a fair share of the time."""
    deadline = time.monotonic() + timeout
    places = await _addresses(server)
    failure: OSError = OSError("the name has no address")
    for number, (family, place) in enumerate(places):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            async with asyncio.timeout((deadline - time.monotonic()) / (len(places) - number)):
                return await _connect_socket(sock, server, place, tls)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure


async def _connect_socket(sock: socket.socket, server: Server, place: _Place, tls: ssl.SSLContext | None) -> Connection:
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    if not server.is_unix:
        _tune(sock)
    await loop.sock_connect(sock, place)
    connection = Connection(loop, server, sock)
    if tls is None:
        await loop.create_connection(lambda: connection, sock=sock)
    else:
        await loop.create_connection(
            lambda: connection, sock=sock, ssl=tls, server_hostname=server.host, ssl_shutdown_timeout=1.0
        )
    return connection


async def _addresses(server: Server) -> list[tuple[int, _Place]]:
    if server.is_unix:
        return [(socket.AF_UNIX, server.host)]
    with contextlib.suppress(ValueError):
        # An address needs no resolver, which would start a thread.
        family = socket.AF_INET6 if ipaddress.ip_address(server.host).version == 6 else socket.AF_INET
        return [(family, (server.host, server.port))]
    found = await asyncio.get_running_loop().getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    return [(family, place) for family, _, _, _, place in found]


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _log_in(connection: Connection, login: Login, timeout: float) -> None:
    """Send the login in one piece and look at the answers; raises as a call does."""
    steps: list[tuple[Argument, ...]] = []
    if login.password is not None or login.username is not None:
        user = () if login.username is None else (login.username,)
        steps.append(("AUTH", *user, login.password or ""))
    if login.db:
        steps.append(("SELECT", login.db))
    # The last step is there for its answer as well: a server that accepts connections may still be stopped.
    steps.append(("CLIENT", "SETNAME", login.client_name) if login.client_name else ("PING",))
    calls = [connection.call(pack(step), timeout) for step in steps]
    *answers, last = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    # Users with few rights, and proxies, may not name themselves; that harms nobody.
    if isinstance(last, RedisRefusedError) and last.code != "NOAUTH" and _FULL not in last.message:
        last = None
    if isinstance(last, BaseException):
        raise last
    connection.is_logged_in = True


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, socket.gaierror | ssl.SSLError):
        return error.strerror or type(error).__name__
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)  # without the address, which asyncio repeats in its own words
    return str(error) or type(error).__name__
