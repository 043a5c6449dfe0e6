"""Pure: where to begin to read a stream, and what an id says of the time."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final, TypeAlias

from connector_sdk.errors import ConfigurationError

__all__ = ["BEGINNING", "LATEST", "Start", "StreamName", "name_of", "position", "streams_of", "time_of"]

#: A stream's key; text stands for its UTF-8.
StreamName: TypeAlias = str | bytes
#: Where to begin: "latest", "beginning", an id (what comes after it), or a time (what was added then or later): Unix seconds or
#: a datetime with its time zone.
Start: TypeAlias = str | float | datetime

LATEST: Final = b"$"
BEGINNING: Final = b"0-0"
_ID: Final = re.compile(r"\d{1,20}(-\d{1,20})?")
_LAST_OF_MILLISECOND: Final = 2**64 - 1
_ALLOWED: Final = '"latest", "beginning", an id such as "1700000000000-0", Unix seconds, or a datetime with a time zone'


def position(option: str, start: object) -> bytes:
    """Return the id after which to read, LATEST for what comes from now on. Raises ConfigurationError that names *option*."""
    if start == "latest":
        return LATEST
    if start == "beginning":
        return BEGINNING
    if isinstance(start, str) and _ID.fullmatch(start):
        return start.encode()
    if isinstance(start, datetime) and start.tzinfo is not None:
        return _before(start.timestamp())
    if isinstance(start, int | float) and not isinstance(start, bool) and 0 <= start < 1e12:
        return _before(float(start))
    raise ConfigurationError(option, start, _ALLOWED)


def streams_of(streams: object, start: bytes) -> dict[bytes, bytes]:
    """Return the position for each of *streams*: one name, names, or names with a start of their own."""
    if isinstance(streams, str | bytes):
        return {name_of(streams): start}
    if isinstance(streams, Mapping):
        return {name_of(name): position(f"streams[{name!r}]", begin) for name, begin in streams.items()}
    if isinstance(streams, Iterable):
        return {name_of(name): start for name in streams}
    raise ConfigurationError("streams", streams, "names of streams, or a mapping of names to where to start")


def name_of(stream: object) -> bytes:
    """Return the key of a stream. Raises ConfigurationError when *stream* is no name."""
    if not isinstance(stream, str | bytes) or not stream:
        raise ConfigurationError("streams", stream, "the name of a stream: text or bytes, 1 or more of them")
    return stream.encode("utf-8", "surrogateescape") if isinstance(stream, str) else stream


def time_of(entry_id: bytes) -> float:
    """Return when the entry was added, in Unix seconds: what its id says."""
    return int(entry_id.partition(b"-")[0]) / 1000


def _before(seconds: float) -> bytes:
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    return b"%d-%d" % (milliseconds - 1, _LAST_OF_MILLISECOND) if milliseconds > 0 else BEGINNING
