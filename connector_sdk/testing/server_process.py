"""What the servers for tests have in common: a child process on a port of its own, to be killed and paused at will."""

from __future__ import annotations

import os
import time
import weakref
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Self

from connector_sdk.errors import ClientStateError, ConnectorError
from connector_sdk.options import check_integer
from connector_sdk.testing.child import Child
from connector_sdk.testing.server_parts import ServerParts

__all__ = ["ServerProcess"]

_ATTEMPTS: Final = 5  # at a port that somebody else takes in the same moment
_IN_USE: Final = "Address already in use"


class ServerProcess(ABC):
    """A real server on a port of 127.0.0.1, as a child process; see its kinds, `RedisServer` and `PostgresServer`."""

    _parts_kind: ClassVar[type[ServerParts]] = ServerParts
    _patience: ClassVar[float] = 10.0  # seconds until a server that does not answer is given up

    def __init__(self, directory: str | os.PathLike[str] | None, port: int) -> None:
        self._wanted_directory = None if directory is None else Path(directory).absolute()
        self._wanted_port = check_integer("port", port, minimum=0, maximum=65535)
        self._parts: ServerParts | None = None
        self._abandoned: weakref.finalize[[], ServerProcess] | None = None

    # From start to end.

    def start(self) -> Self:
        """
        Start it and wait until it answers; return the server itself. `with` does this.

        Raises ClientStateError when it was started before, and ConnectorError, with the end of the server's log, when it
        ended or gave no answer in time: 10 seconds for a Redis, 30 for a PostgreSQL.
        """
        kind = type(self).__name__
        if self._parts is not None:
            raise ClientStateError(f"this {kind} was started before: restart() starts it again")
        attempts = _ATTEMPTS if self._wanted_port == 0 else 1
        while True:
            attempts -= 1
            parts = self._parts = self._parts_kind(kind, self._wanted_directory, self._wanted_port)
            self._abandoned = weakref.finalize(self, parts.abandon)
            try:
                self._prepare(parts)
                self._run(parts)
            except BaseException as error:
                try_another = isinstance(error, ConnectorError) and _IN_USE in self.log and attempts > 0
                self.stop()
                if not try_another:
                    raise
            else:
                return self

    def kill(self) -> None:
        """End it with SIGKILL, all its processes, as a crash does; data and port are kept. Nothing happens when it is down."""
        self._started().kill()

    def restart(self) -> None:
        """
        Start it again, on the same port and data, and wait until it answers; one that runs is shut down first.

        What it had written to the disk is there again: all that a PostgreSQL or a Redis with *appendonly* ever confirmed,
        and nothing of another Redis. Raises as `start()`.
        """
        parts = self._started()
        parts.shut_down()
        self._run(parts)

    def pause(self) -> None:
        """Let all its processes hang, by SIGSTOP: connections are taken and nothing is answered. Raises when it is down."""
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
    def port(self) -> int:
        """The port; raises ClientStateError before the server was started."""
        return self._started().port

    @property
    def pid(self) -> int:
        """The process id, of the first if it has several; raises ClientStateError when the server is down."""
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

    # What its kind knows.

    @property
    @abstractmethod
    def _title(self) -> str:
        """What it is called in errors."""

    @abstractmethod
    def _launch(self, parts: ServerParts) -> None:
        """Start its process."""

    @abstractmethod
    def _answers(self, port: int) -> bool:
        """Whether it takes requests."""

    @abstractmethod
    def _prepare(self, parts: ServerParts) -> None:
        """Make what it needs before its first start."""

    # Parts.

    def _run(self, parts: ServerParts) -> None:
        self._launch(parts)
        deadline = time.monotonic() + self._patience
        pause = 0.001
        while not self._answers(parts.port):
            ended = not self.running
            if ended or time.monotonic() > deadline:
                parts.kill()
                what = "ended at once" if ended else f"gave no answer within {self._patience:g} s"
                end_of_log = "\n".join(parts.log.splitlines()[-15:]) or "(nothing)"
                raise ConnectorError(f"{self._title} {what}; it said:\n{end_of_log}")
            time.sleep(pause)
            pause = min(2 * pause, 0.02)

    def _started(self) -> ServerParts:
        if self._parts is None:
            raise ClientStateError(f"this {type(self).__name__} is not started: enter it with `with`, or call start()")
        return self._parts

    def _running(self) -> Child:
        child = self._started().child
        if child is None or child.exit_code is not None:
            raise ClientStateError(f"this {type(self).__name__} is down: restart() starts it again")
        return child
