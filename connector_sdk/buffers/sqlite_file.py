"""One SQLite file of a buffer: opened, checked, locked, set aside when it is damaged. Blocking; for one thread at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Final, Literal, TypeAlias, TypeVar

from connector_sdk.buffers.sqlite_clock import StoreClock
from connector_sdk.buffers.sqlite_damage import carry_over, check, free_name, keep_for_ever, salvage
from connector_sdk.errors import BufferUnavailableError, ClientStateError, ConfigurationError

__all__ = ["StoreFile", "Synchronous"]

_log = logging.getLogger(__name__)

#: "full": a commit is on the disk when it is confirmed. "normal": it is when the next checkpoint is.
Synchronous: TypeAlias = Literal["full", "normal"]

AnswerT = TypeVar("AnswerT")

_APPLICATION: Final = 0x434E4253  # "CNBS"
_VERSION: Final = 1
_PAGE: Final = 8192  # bytes: three events of 2 kB
_CACHE: Final = -16_384  # KiB
_LARGEST_WAL: Final = 64 * 1024 * 1024  # bytes to which the log is cut after it grew
_LONGEST_LOG: Final = 1000  # pages in the log before it is copied to the file
_RESERVE: Final = 16 * 1024 * 1024  # bytes of the disk that are left for those who take and acknowledge
_CLOSE_TIME: Final = 1.0
_PAUSES: Final = (0.001, 0.002, 0.005, 0.01, 0.02)  # seconds between attempts at a lock
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
#: Errors of writing for which most of the time there is no room: disk full, quota, file size.
_NO_ROOM: Final = (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_TRUNCATE)
_TEMPORARY: Final = """
PRAGMA temp_store = memory;
CREATE TEMP TABLE chosen (arrival INTEGER PRIMARY KEY, time REAL, size INTEGER);
"""


#: Files that were open when this process was forked: SQLite takes the locks of the parent to be those of the child.
_inherited: Final[set[tuple[int, int]]] = set()


class _DamagedError(Exception):
    """The file is no database, or a broken one."""


class _MovedError(Exception):
    """The file that is open is not the one at the path any more."""


class StoreFile:
    """
    A file in write-ahead mode, with `<path>-lock` beside it.

    Whoever has a transaction holds that lock shared; who makes the file or sets it aside holds it alone. So nobody commits
    to a file that is being set aside. `tune(connection)` is called in a write transaction after each opening.
    """

    def __init__(self, path: Path, synchronous: Synchronous, clock: StoreClock) -> None:
        self._path = path
        self._synchronous = synchronous
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._lock: int | None = None
        self._syncs = True

    # -- transactions

    def transact(
        self,
        work: Callable[[sqlite3.Connection], AnswerT],
        *,
        writes: bool,
        synced: bool = True,
        adds: bool = False,
        deadline: float,
    ) -> AnswerT:
        """
        Do *work* in one transaction, opening the file if need be; *deadline* is a time of the monotonic clock.

        With *synced* false a loss of power may undo it, not a loss of the process. A damaged file is set aside; what *adds*
        is then done in a new one.

        Raises BufferUnavailableError: nothing was done, or (`in_doubt`) the commit failed; or the file was damaged, and
        what was asked for is not there any more. ConfigurationError: the path cannot be used.
        """
        made_room = False
        while True:
            try:
                return self._transact(work, writes=writes, synced=synced, adds=adds, deadline=deadline)
            except _MovedError:
                _log.warning("%s was moved or deleted while it was in use; beginning anew", self._path)
                self._leak()
            except _DamagedError as error:
                self._set_aside(str(error.__cause__), deadline)
                if not adds:
                    message = f"{self._path} was damaged ({error.__cause__}) and was set aside"
                    raise BufferUnavailableError(message) from error
            except BufferUnavailableError as error:
                if not error.full or made_room or not self._make_room():
                    raise
                made_room = True

    def close(self) -> None:
        """Close the file; what is in the log goes to its place. Another transaction opens it again."""
        connection = self._connection
        if connection is not None:
            try:
                # SQLite deletes the log by its name: were that the name of another file's log by now, events were lost.
                with self._locked(fcntl.LOCK_SH, time.monotonic() + _CLOSE_TIME):
                    self._check_identity()
                    with contextlib.suppress(sqlite3.Error):
                        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
                    connection.close()
                    self._connection = self._identity = None
            except (BufferUnavailableError, ConfigurationError, _MovedError, sqlite3.Error):
                self._leak()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def forget(self) -> None:
        """After a fork, in the child: forget what is the parent's."""
        if self._connection is not None and self._identity is not None:
            _inherited.add(self._identity)
        self._leak()
        self._lock = None

    def __del__(self) -> None:
        self.close()

    def _transact(
        self, work: Callable[[sqlite3.Connection], AnswerT], *, writes: bool, synced: bool, adds: bool, deadline: float
    ) -> AnswerT:
        while (connection := self._connection) is None:  # again, if another process has set aside what was damaged
            self._open(deadline)
        committing = False
        with self._locked(fcntl.LOCK_SH, deadline), self._told(lambda: committing):
            self._check_identity()
            if adds:
                self._check_room(connection)
            synced = synced and self._synchronous == "full"
            if writes and synced is not self._syncs:
                connection.execute(f"PRAGMA synchronous = {'full' if synced else 'normal'}")
                self._syncs = synced
            try:
                self._patiently(lambda: connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN").close(), deadline)
                answer = work(connection)
                committing = True
                connection.execute("COMMIT")
                committing = False
                return answer
            finally:
                if connection.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def _told(self, committing: Callable[[], bool]) -> Iterator[None]:
        """Turn errors of SQLite into ours."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            if code is None or code & 0xFF in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISUSE):
                raise  # a bug, here or in the file
            if code & 0xFF in _DAMAGED:
                raise _DamagedError from error
            full = code & 0xFF == sqlite3.SQLITE_FULL or code in _NO_ROOM
            name = getattr(error, "sqlite_errorname", "")
            message = f"{self._path}: {error} ({name})"
            # What could not be written to the log is not committed; what could not be synced may be.
            raise BufferUnavailableError(message, in_doubt=committing() and not full, full=full) from error

    def _check_identity(self) -> None:
        if _identity_of(self._path) != self._identity:
            raise _MovedError

    def _check_room(self, connection: sqlite3.Connection) -> None:
        """Refuse to add when disk and file are nearly full: to take events out needs some room, too."""
        reserve, free = _room_of(self._path.parent)
        if free >= reserve:
            return
        (pages,) = connection.execute("PRAGMA freelist_count").fetchone()
        free += _PAGE * pages
        if free < reserve:
            message = f"{self._path}: there is room for {free} bytes, and {reserve} are kept for taking events out"
            raise BufferUnavailableError(message, full=True)

    def _make_room(self) -> bool:
        """Let the log begin anew within the room that it has; return whether another attempt is worth it."""
        if self._connection is None:
            return False
        try:
            busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        except sqlite3.Error:
            return False
        return not busy

    # -- opening

    def _open(self, deadline: float) -> None:
        try:
            # Most of the time the file is there, and nobody need wait.
            if not self._open_locked(fcntl.LOCK_SH, deadline):
                self._open_locked(fcntl.LOCK_EX, deadline)
        except _DamagedError as error:
            self._set_aside(str(error.__cause__), deadline)

    def _open_locked(self, kind: int, deadline: float) -> bool:
        with self._locked(kind, deadline), self._told(lambda: False):
            connection = self._patiently(lambda: self._connect(new=kind == fcntl.LOCK_EX), deadline)
            if connection is None:
                return False
            self._connection, self._identity = connection, _identity_of(self._path)
            self._syncs = self._synchronous == "full"
            self._patiently(lambda: self._tune(connection), deadline)
            return True

    def _connect(self, *, new: bool) -> sqlite3.Connection | None:
        """Open the file; None if it is empty and *new* is not set."""
        if self._path.is_dir():
            raise ConfigurationError("path", str(self._path), "a file, not a folder")
        identity = _identity_of(self._path)
        if not new and identity is None:
            return None
        if identity in _inherited:
            raise ClientStateError(
                f"{self._path} was in use when this process was forked, and could not be closed in time"
            )
        connection = sqlite3.connect(
            self._path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        try:
            # Before anything is read: else a file that is damaged cannot be told from one that was closed properly.
            self._identity = _identity_of(self._path)
            if self._is_empty(connection):
                if not new:
                    connection.close()
                    return None
                self._create(connection)
            connection.executescript(
                f"PRAGMA synchronous = {self._synchronous}; PRAGMA cache_size = {_CACHE}; "
                f"PRAGMA wal_autocheckpoint = {self._log_pages()}; "
                f"PRAGMA journal_size_limit = {_LARGEST_WAL}; PRAGMA cell_size_check = on; {_TEMPORARY}"
            )
            check(connection)
        except BaseException as error:
            if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
                self._connection = connection  # closed, it would write its log into the damaged file
            else:
                connection.close()
            raise
        return connection

    def _log_pages(self) -> int:
        """How long the log may get: all of it must find room in the file even when the disk is nearly full."""
        reserve, _ = _room_of(self._path.parent)
        return max(10, min(_LONGEST_LOG, reserve // 2 // _PAGE))

    def _is_empty(self, connection: sqlite3.Connection) -> bool:
        """Whether there is nothing in the file yet; raises ConfigurationError if it is somebody else's."""
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application == _APPLICATION and version == _VERSION:
            return False
        if application == _APPLICATION and version > _VERSION:
            allowed = f"a file of this version of connector_sdk ({_VERSION}); this one is of a later one ({version})"
            raise ConfigurationError("path", str(self._path), allowed)
        if application or version or tables:
            allowed = "a new file, or one of an SQLiteEventBuffer; this one is a database of another program"
            raise ConfigurationError("path", str(self._path), allowed)
        return True

    def _create(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA page_size = {_PAGE}")
        (mode,) = connection.execute("PRAGMA journal_mode = wal").fetchone()
        if mode != "wal":
            raise ConfigurationError("path", str(self._path), "on a file system of this machine that can share memory")
        schema = resources.files("connector_sdk.buffers.sql").joinpath("schema.sql").read_text(encoding="utf-8")
        connection.executescript(
            f"BEGIN IMMEDIATE; {schema} PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {_VERSION}; COMMIT"
        )

    def _tune(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._clock.tune(connection)
            # Of a writer that has said nothing for an hour nobody sends a batch again.
            connection.execute("DELETE FROM writers WHERE clock < ?", (self._clock.now() - 3600,))
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    # -- damage

    def _set_aside(self, why: str, deadline: float) -> None:
        """Rename the damaged file, unless another process has, and begin a new one that goes on with its account."""
        damaged = self._identity
        account = salvage(self._connection)
        self._leak()
        with self._locked(fcntl.LOCK_EX, deadline), self._told(lambda: False):
            if _identity_of(self._path) != damaged:
                return
            name = free_name(self._path, self._clock.wall())
            # The log goes first: with its log a damaged file stays as it is, a new file must not get the log of another.
            for end in ("-wal", "-shm", ""):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(f"{self._path}{end}", f"{name}{end}")
            _log.error("%s is damaged (%s): it was set aside as %s, and a new file was begun", self._path, why, name)
            connection = self._patiently(lambda: self._connect(new=True), deadline)
            assert connection is not None
            self._connection, self._identity = connection, _identity_of(self._path)
            self._syncs = self._synchronous == "full"
            carry_over(connection, account, name, why, self._clock.wall())
            self._tune(connection)

    # -- locks

    @contextlib.contextmanager
    def _locked(self, kind: int, deadline: float) -> Iterator[None]:
        if self._lock is None:
            self._lock = self._open_lock()
        lock = self._lock
        for pause in _pauses(deadline):
            try:
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if pause is None:
                    raise BufferUnavailableError(f"{self._path} is locked by another process") from None
                time.sleep(pause)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)

    def _open_lock(self) -> int:
        try:
            return os.open(f"{self._path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigurationError("path", str(self._path), "in a folder that exists") from None
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise ConfigurationError("path", str(self._path), "in a folder that can be written to") from None
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise BufferUnavailableError(f"{self._path}: {error.strerror}", full=full) from error

    def _patiently(self, attempt: Callable[[], AnswerT], deadline: float) -> AnswerT:
        """Make an attempt again as long as another process has the lock."""
        for pause in _pauses(deadline):
            try:
                return attempt()
            except sqlite3.OperationalError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _BUSY or pause is None:
                    raise
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _leak(self) -> None:
        """Forget the connection without closing it, which would delete by its name the log of another file."""
        if self._connection is not None:
            keep_for_ever(self._connection)
        self._connection = self._identity = None


def _pauses(deadline: float) -> Iterator[float | None]:
    """Return how long to wait after each attempt, None for the last one."""
    number = 0
    while (left := deadline - time.monotonic()) > 0:
        yield min(_PAUSES[min(number, len(_PAUSES) - 1)], left)
        number += 1
    yield None


def _room_of(folder: Path) -> tuple[int, int]:
    """Return how many bytes of a disk are reserved, and how many are free."""
    disk = os.statvfs(folder)
    return min(_RESERVE, disk.f_blocks * disk.f_frsize // 4), disk.f_bavail * disk.f_frsize


def _identity_of(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
