"""
Events as members of a Redis sorted set, and the names of keys; pure. The layout is described in `lua/shared.lua`.
"""

from __future__ import annotations

from struct import Struct, error
from typing import Final

from connector_sdk.buffers.store import Record, StoredEvent

__all__ = ["is_label", "known_as", "label_of", "member_of", "session_of", "stored_event", "tag_of"]

_KIND: Final = 15  # where it is: after arrival (7 bytes) and time (8 bytes)
_FIELDS: Final = 16
_read_time = Struct(">d").unpack_from
_KINDS: Final = {"actions": b"a", "summary": b"s"}
_NAMES: Final = {b"a": "actions", b"s": "summary"}
_NO_SESSION: Final = b"no-session"
_SESSION: Final = b"session:"
_COLON: Final = ord(":")


def tag_of(key_prefix: str, shard: int) -> bytes:
    """Return what every key of a shard begins with; the braces keep them in one slot of a cluster."""
    return f"{{{key_prefix}:{shard}}}".encode()


def label_of(session: str | None) -> bytes:
    """Return what the key of a session ends with."""
    return _NO_SESSION if session is None else _SESSION + session.encode("utf-8", "surrogatepass")


def is_label(field: bytes) -> bool:
    """Whether a field of the state of a shard is the label of a session."""
    return field == _NO_SESSION or field.startswith(_SESSION)


def session_of(label: bytes) -> str | None:
    """Turn a label back into the session; the inverse of `label_of`."""
    return None if label == _NO_SESSION else label[len(_SESSION) :].decode("utf-8", "surrogatepass")


def known_as(origin: str, event_id: str | None) -> bytes:
    """Return the entry of an event in the set of known ids, b"" without an id."""
    if event_id is None:
        return b""
    # No text has this byte in UTF-8.
    return origin.encode("utf-8", "surrogatepass") + b"\xff" + event_id.encode("utf-8", "surrogatepass")


def member_of(record: Record) -> bytes:
    """Return the member of an event without its arrival and time, which the server puts in front."""
    kind = _KINDS.get(record.kind)
    if kind is not None and record.event_id is None:
        return kind + b":" + record.body
    head = b":" if record.event_id is None else _field(record.event_id) + _field(record.origin)
    if kind is None:
        return b"u" + head + _field(record.kind) + record.body
    return kind + head + record.body


def stored_event(member: bytes, ticket: int = 0) -> StoredEvent:
    """
    Read a member.

    A member that is none of ours becomes an event whose body is no payload, so that it can be put aside and looked at.
    """
    try:
        time, arrival = _read_time(member, 7)[0], int.from_bytes(member[:7], "big")
        kind = _NAMES.get(member[_KIND:_FIELDS])
        if time != time:  # noqa: PLR0124 - not a number: nothing could be sorted with it
            raise ValueError("no such time")
        if kind is not None and member[_FIELDS] == _COLON:
            return StoredEvent(time, arrival, member[_FIELDS + 1 :], kind, None, "", ticket)
        return _read_slowly(time, arrival, member, ticket)
    except (ValueError, IndexError, error):
        return StoredEvent(0.0, 0, b"!" + member, "", None, "", ticket)


def _read_slowly(time: float, arrival: int, member: bytes, ticket: int) -> StoredEvent:
    event_id, at = _read_field(member, _FIELDS)
    origin = None
    if event_id is not None:
        origin, at = _read_field(member, at)
    kind = _NAMES.get(member[_KIND:_FIELDS])
    if kind is None:
        if member[_KIND:_FIELDS] != b"u":
            raise ValueError("no such kind")
        kind, at = _read_field(member, at)
    return StoredEvent(time, arrival, member[at:], kind or "", event_id, origin or "", ticket)


def _field(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return b"%x:%s" % (len(data), data)


def _read_field(member: bytes, start: int) -> tuple[str | None, int]:
    colon = member.index(b":", start, start + 9)
    if colon == start:
        return None, colon + 1
    end = colon + 1 + int(member[start:colon], 16)
    if end > len(member):
        raise ValueError("a field ends after its member")
    return member[colon + 1 : end].decode("utf-8", "surrogatepass"), end
