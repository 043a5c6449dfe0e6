"""What the readers of streams hand out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from connector_sdk.redis_client import Reply

__all__ = ["GroupClaim", "GroupEntry", "RawEntry", "StreamLoss", "array_of", "bytes_of", "integer_of", "raw_entries"]

#: The id of an entry, and its fields: names and values in turn.
RawEntry: TypeAlias = "tuple[bytes, list[bytes]]"


class GroupEntry(msgspec.Struct, frozen=True, gc=False):
    """One entry that a member of a group has in hand."""

    stream: bytes
    id: bytes
    fields: list[bytes]  #: names and values in turn
    attempt: int = 1  #: 1 at the first delivery; entries given back do not count
    notes: bytes = b""  #: what `GroupReader.postpone` was given last


class StreamLoss(msgspec.Struct, frozen=True):
    """Entries that a group should have had and that the server has no more."""

    stream: bytes
    reason: str  #: "trimmed", or "lost": the server came back without the group
    count: int | None = None  #: how many, None when nobody can tell


class GroupClaim(msgspec.Struct, frozen=True, kw_only=True):
    """What a member of a group got."""

    entries: Sequence[GroupEntry] = ()  #: those that come again first, then new ones
    checked: int = 0  #: entries of dead consumers that were looked at
    recovered: int = 0  #: of these, those that this member has now
    losses: Sequence[StreamLoss] = ()


def array_of(reply: Reply) -> list[Reply]:
    """Return a reply that is an array."""
    assert isinstance(reply, list)
    return reply


def bytes_of(reply: Reply) -> bytes:
    """Return a reply that is a string."""
    assert isinstance(reply, bytes)
    return reply


def integer_of(reply: Reply) -> int:
    """Return a reply that is an integer."""
    assert isinstance(reply, int)
    return reply


def raw_entries(reply: Reply) -> list[tuple[bytes, list[RawEntry]]]:
    """Return what XREAD or XREADGROUP answered: (stream, entries) for each stream that has some; entries are lists of two."""
    if reply is None:
        return []
    # Its shape is the server's word: to look at each of a hundred thousand entries in a second would cost more than it tells.
    found: list[tuple[bytes, list[RawEntry]]] = array_of(reply)  # type: ignore[assignment]
    return found
