"""What a server that runs for tests holds of the machine, and how all of it is given back."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from connector_sdk.errors import ConfigurationError
from connector_sdk.testing.child import Child
from connector_sdk.testing.engine import bind

__all__ = ["LOG", "ServerParts"]

#: The file in the server's folder that has what it prints.
LOG: Final = "server.log"
_PATIENCE: Final = 10.0  # seconds until a server that does not end is killed


class ServerParts:
    """
    What a started server holds of the machine: a folder, a port, a process. *kind* is the name of its class.

    Raises ConfigurationError when *port* (0: any) is taken.
    """

    #: What is to be done after the server when this process is killed: a line for the shell in which $2 is the folder.
    farewell = ""

    def __init__(self, kind: str, directory: Path | None, port: int) -> None:
        self._kind = kind
        self._owner = os.getpid()
        self._removed = directory is None
        try:
            holder = bind(port)
        except OSError as error:
            raise ConfigurationError("port", port, f"a free port of 127.0.0.1 ({error})") from error
        self.port: Final[int] = holder.getsockname()[1]
        # On Linux a socket that is bound and does not listen keeps a port from others and lets a server listen on it.
        self._holder: socket.socket | None = holder
        if sys.platform != "linux":
            self._let_port_go()
        try:
            if directory is not None:
                directory.mkdir(parents=True, exist_ok=True)
            self.directory = directory or Path(tempfile.mkdtemp(prefix=_prefix(kind)))
        except BaseException:
            self._let_port_go()
            raise
        self.child: Child | None = None

    @property
    def log(self) -> str:
        """What the server has printed."""
        path = self.directory / LOG
        return path.read_text(errors="replace") if path.exists() else ""

    def run(self, command: Sequence[str], *, user: int | None = None) -> None:
        """Start the server, as *user* if one is named."""
        leavings = self.directory if self._removed else None
        self.child = Child(
            command,
            directory=self.directory,
            log=self.directory / LOG,
            leavings=leavings,
            farewell=self.farewell,
            user=user,
        )

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self.child is not None:
            self.child.kill()

    def shut_down(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to end; kill it when it does not."""
        if self.child is not None:
            self.child.terminate(_PATIENCE, how)

    def release(self) -> None:
        """End and give back everything."""
        try:
            if self._removed:
                self.kill()
                shutil.rmtree(self.directory, ignore_errors=True)
            else:
                self.shut_down()
        finally:
            self._let_port_go()

    def abandon(self) -> None:
        """Do the same for one that was forgotten."""
        if os.getpid() != self._owner:
            return  # a forked child has no part in it
        warnings.warn(f"a {self._kind} on port {self.port} was never stopped", ResourceWarning, stacklevel=2)
        self.release()

    def _let_port_go(self) -> None:
        if self._holder is not None:
            self._holder.close()
            self._holder = None


def _prefix(kind: str) -> str:
    """RedisServer: redis-server-."""
    return "".join(f"{word.lower()}-" for word in re.findall("[A-Z][a-z]+", kind))
