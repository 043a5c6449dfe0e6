"""Where to resume after a restart: stores for the id of the last finished event."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Protocol, runtime_checkable

import anyio.to_thread
import msgspec

from connector_sdk.errors import CheckpointError

__all__ = ["CheckpointStore", "Disconnecting", "FencedCheckpoint", "FileCheckpoint", "MemoryCheckpoint"]


@runtime_checkable
class CheckpointStore(Protocol):
    """
    Keeps one event id for each stream. Implement it to keep the id elsewhere.

    The client calls `load` once before its first request, and `save` from one task, never two at a time, each id only after
    the callbacks of that event and of all before it are done. *stream* is the URL without user, password and query.
    """

    async def load(self, stream: str) -> str | None:
        """Return the id saved last for *stream*, None when there is none; CheckpointError when it cannot be known."""
        ...

    async def save(self, stream: str, event_id: str) -> None:
        """Store *event_id* so that it survives what the store promises; CheckpointError when that failed."""
        ...


@runtime_checkable
class FencedCheckpoint(Protocol):
    """The ability of a CheckpointStore to refuse what a deposed leader saves; clients with a leader use it."""

    async def save_fenced(self, stream: str, event_id: str, token: int) -> None:
        """As `save`, by the leader with *token*; CheckpointError when one with a higher token has saved *stream*."""
        ...


@runtime_checkable
class Disconnecting(Protocol):
    """The ability of a CheckpointStore to leave the event loop; the client asks for it at the end of its run."""

    async def disconnect(self) -> None:
        """Close what belongs to this event loop, unless it is in use; the next call opens it again."""
        ...


class MemoryCheckpoint:
    """Keeps the id in this object: a client that is replaced by another in the same process resumes. Thread-safe."""

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}

    async def load(self, stream: str) -> str | None:
        """Return the id saved last for *stream*, None when there is none."""
        return self._ids.get(stream)

    async def save(self, stream: str, event_id: str) -> None:
        """Keep *event_id*."""
        self._ids[stream] = event_id

    def __repr__(self) -> str:
        return f"MemoryCheckpoint({self._ids!r})"


class _Saved(msgspec.Struct, kw_only=True):
    stream: str
    last_event_id: str


class FileCheckpoint:
    """
    Keeps the id in a file of its own, replaced atomically: a crash leaves the old id or the new one, never half of one.

    Args:
        path: the file; it is made at the first save, its folder must exist.
        fsync: wait until the disk has it (default). Without, a power cut may bring an older id back, so that more events
            are repeated; a killed process alone never does that.

    One file serves one stream: a file that belongs to another one, or cannot be read, is a CheckpointError, because
    to start without the id would skip events silently.
    """

    def __init__(self, path: str | os.PathLike[str], *, fsync: bool = True) -> None:
        self._path = Path(path)
        self._fsync = fsync

    async def load(self, stream: str) -> str | None:
        """Return the saved id, None when there is no file yet."""
        return await anyio.to_thread.run_sync(self._load, stream)

    async def save(self, stream: str, event_id: str) -> None:
        """Replace the file by one that holds *event_id* (write, fsync, rename, as POSIX makes atomic)."""
        await anyio.to_thread.run_sync(self._save, stream, event_id)

    def _load(self, stream: str) -> str | None:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CheckpointError(f"the checkpoint {self._path} cannot be read: {error}") from error
        try:
            saved = msgspec.json.decode(data, type=_Saved)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"the checkpoint {self._path} is damaged ({error}). Put a good copy back, or delete the file to start from "
                "what the server sends now"
            ) from error
        if saved.stream != stream:
            raise CheckpointError(
                f"the checkpoint {self._path} belongs to {saved.stream}, not to {stream}: give each stream a file of its own"
            )
        return saved.last_event_id

    def _save(self, stream: str, event_id: str) -> None:
        data = msgspec.json.encode(_Saved(stream=stream, last_event_id=event_id))
        try:
            handle, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    if self._fsync:
                        file.flush()
                        os.fsync(file.fileno())
                os.replace(temporary, self._path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
            if self._fsync:
                self._sync_folder()
        except OSError as error:
            raise CheckpointError(f"the checkpoint {self._path} cannot be written: {error}") from error

    def _sync_folder(self) -> None:
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def __repr__(self) -> str:
        return f"FileCheckpoint({str(self._path)!r})"
