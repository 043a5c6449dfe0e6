"""Rows of a PostgresStore: how texts are stored, and what comes back."""

from __future__ import annotations

from typing import Final, TypeAlias

from connector_sdk.buffers.store import Buried, StoredEvent

__all__ = [
    "Event",
    "Letter",
    "bytes_of",
    "event_of",
    "label_of",
    "letter_of",
    "name_of",
    "text_of",
]

#: time, arrival, body, kind, event_id, origin
Event: TypeAlias = tuple[float, int, bytes, bytes, bytes, bytes]
#: place, session, burial, evidence, and an Event
Letter: TypeAlias = tuple[int, bytes, float, list[bytes], float, int, bytes, bytes, bytes, bytes]
#: The types of nearly all events, so that they are decoded once.
_NAMES: Final = {name.encode(): name for name in ("actions", "summary")}


def bytes_of(text: str) -> bytes:
    """Return a text as it is stored."""
    return text.encode("utf-8", "surrogatepass")


def text_of(stored: bytes) -> str:
    """Turn a stored text back."""
    return _NAMES.get(stored) or stored.decode("utf-8", "surrogatepass")


def label_of(name: str | None) -> bytes:
    """Return a session or an id as it is stored."""
    return b"" if name is None else b":" + name.encode("utf-8", "surrogatepass")


def name_of(label: bytes) -> str | None:
    """Turn a stored session or id back."""
    return label[1:].decode("utf-8", "surrogatepass") if label else None


def event_of(row: Event) -> StoredEvent:
    """Return an event from its row."""
    time, arrival, body, kind, event_id, origin = row
    return StoredEvent(time, arrival, body, text_of(kind), name_of(event_id), text_of(origin), arrival)


def letter_of(row: Letter) -> Buried:
    """Return a dead letter from its row."""
    _, session, buried_at, evidence, time, arrival, body, kind, event_id, origin = row
    return Buried(name_of(session), event_of((time, arrival, body, kind, event_id, origin)), evidence, buried_at)
