"""The Lua scripts of RedisStore, and what their replies have in common; see `lua/shared.lua`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

from connector_sdk.buffers.redis_members import stored_event
from connector_sdk.buffers.store import StoredEvent
from connector_sdk.ledger import DropReason
from connector_sdk.redis_client import Reply, Script, load_script

__all__ = [
    "Answer",
    "Scan",
    "Scripts",
    "Seen",
    "array_of",
    "bytes_of",
    "events_of",
    "integer_of",
    "integers_of",
    "milliseconds",
    "reasons_of",
    "size_of_state",
]

_LUA: Final = "connector_sdk.buffers.lua"
_REASONS: Final = frozenset(DropReason)
_HEAD: Final = 4  # entries that a reply has before its drops
_LONGEST: Final = 10 * 366 * 86_400_000  # milliseconds
#: The number of events stands at the front of the packed state of a session.
_SIZE: Final = Struct(">d")


class Scripts:
    """The scripts, each with what they share in front."""

    def __init__(self) -> None:
        parts = [load_script(_LUA, f"{name}.lua").source for name in ("shared", "upkeep")]
        letters = load_script(_LUA, "letters.lua").source

        def script(name: str, *more: bytes) -> Script:
            return Script(name, b"\n".join((*parts, *more, load_script(_LUA, f"{name}.lua").source)))

        self.append = script("append")
        self.take = script("take")
        self.take_any = script("take_any")
        self.take_matching = script("take_matching")
        self.acknowledge = script("acknowledge")
        self.extend = script("extend")
        self.give_back = script("give_back")
        self.quarantine = script("quarantine")
        self.peek = script("peek")
        self.census = script("census", letters)
        self.bury = script("bury", letters)
        self.dead_letters = script("dead_letters", letters)
        self.dead_letter = script("dead_letter", letters)
        self.redrive = script("redrive", letters)
        self.purge = script("purge", letters)


@dataclass(slots=True)
class Seen:
    """What this process saw last of a shard; tells when the server has lost its data."""

    epoch: bytes = b""
    events: int = 0  #: waiting and on lease
    at: float = 0.0  #: monotonic time


@dataclass(slots=True)
class Scan:
    """The sessions that are still to be looked through by one lease."""

    labels: list[bytes]
    time: bytes = b"-inf"
    arrival: bytes = b""


@dataclass(slots=True)
class Answer:
    """A reply of a script."""

    epoch: bytes
    waiting: int
    leased: int
    dropped: Mapping[DropReason, int]
    rest: list[Reply]  #: what the script itself has to say

    @classmethod
    def read(cls, reply: Reply) -> Answer:
        """Take a reply apart."""
        entries = array_of(reply)
        pairs = integer_of(entries[3])
        start = _HEAD + 2 * pairs
        return cls(
            bytes_of(entries[0]),
            integer_of(entries[1]),
            integer_of(entries[2]),
            reasons_of(entries[_HEAD:start]) if pairs else {},
            entries[start:],
        )


def milliseconds(seconds: float) -> int:
    """Return a span of time as scripts take it: whole milliseconds, up to ten years."""
    return max(0, min(round(seconds * 1000), _LONGEST))


def integer_of(reply: Reply) -> int:
    """Return a reply that is an integer."""
    assert isinstance(reply, int)
    return reply


def integers_of(replies: Sequence[Reply]) -> Iterator[int]:
    """Return replies that are integers."""
    return map(integer_of, replies)


def bytes_of(reply: Reply) -> bytes:
    """Return a reply that is a string."""
    assert isinstance(reply, bytes)
    return reply


def array_of(reply: Reply) -> list[Reply]:
    """Return a reply that is an array."""
    assert isinstance(reply, list)
    return reply


def size_of_state(state: bytes) -> int:
    """Return how many events a session has, from its packed state."""
    return int(_SIZE.unpack_from(state)[0])


def reasons_of(entries: Sequence[Reply]) -> dict[DropReason, int]:
    """Return drops by reason, from pairs of reason and number."""
    dropped: dict[DropReason, int] = {}
    for name, number in zip(entries[::2], entries[1::2], strict=True):
        text = bytes_of(name).decode()
        # A later version may know more reasons.
        reason = DropReason(text) if text in _REASONS else DropReason.LOST
        dropped[reason] = dropped.get(reason, 0) + int(
            bytes_of(number) if isinstance(number, bytes) else integer_of(number)
        )
    return dropped


def events_of(replies: Sequence[Reply], first_ticket: int = 0) -> list[StoredEvent]:
    """Return the events of members."""
    return [stored_event(bytes_of(member), ticket) for ticket, member in enumerate(replies, first_ticket)]
