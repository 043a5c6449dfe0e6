"""Pure: the keys beside a stream, all in its slot."""

from __future__ import annotations

from functools import lru_cache
from itertools import count
from typing import NamedTuple

from connector_sdk.redis_client.slots import key_slot

__all__ = ["StreamKeys", "stream_keys"]


class StreamKeys(NamedTuple):
    """A stream and what one group of it keeps beside it, in the order in which the scripts want it."""

    stream: bytes
    alive: bytes  #: ZSET: consumer -> until when it counts as alive, in ms of the server's clock
    due: bytes  #: ZSET: entry id -> when it is to come again, in ms of the server's clock
    notes: bytes  #: HASH: entry id -> what its next consumer is to know


@lru_cache(maxsize=4096)
def stream_keys(stream: bytes, group: bytes) -> StreamKeys:
    """Return the keys of *group* beside *stream*, in the same slot of a cluster."""
    stem = _stem(stream) + b":group:" + group
    return StreamKeys(stream, stem + b":alive", stem + b":due", stem + b":notes")


def _stem(stream: bytes) -> bytes:
    slot = key_slot(stream)
    for stem in (stream, b"{" + stream + b"}"):  # its own hash tag, or the whole name as one
        if b"{" in stem and key_slot(stem + b":group:") == slot:
            return stem
    # A brace in its name stands in the way: any short tag of the same slot does.
    return next(tag for number in count() if key_slot(tag := b"{%d}" % number) == slot) + stream
