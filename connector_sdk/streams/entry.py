"""Entry: what consumers of streams hand out."""

from __future__ import annotations

import msgspec

from connector_sdk.streams.entries import GroupEntry
from connector_sdk.streams.positions import time_of

__all__ = ["Entry"]


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One entry of a stream. Its fields are put together anew at each access: keep what is used twice."""

    origin: GroupEntry  #: as the server has it

    def __repr__(self) -> str:
        return f"Entry({self.stream!r}, {self.identifier!r}, {self.fields!r}, attempt={self.attempt})"

    @property
    def stream(self) -> str:
        """The stream's key as text."""
        return self.origin.stream.decode("utf-8", "surrogateescape")

    @property
    def identifier(self) -> str:
        """The id, "milliseconds-number"."""
        return self.origin.id.decode()

    @property
    def fields(self) -> dict[bytes, bytes]:
        """Names and values; of a name that comes twice the last value."""
        words = self.origin.fields
        return dict(zip(words[::2], words[1::2], strict=True))

    @property
    def text(self) -> dict[str, str]:
        """Names and values as text. Raises UnicodeDecodeError when they are not UTF-8."""
        words = [word.decode() for word in self.origin.fields]
        return dict(zip(words[::2], words[1::2], strict=True))

    @property
    def time(self) -> float:
        """When it was added, in Unix seconds: what the id says."""
        return time_of(self.origin.id)

    @property
    def attempt(self) -> int:
        """1 at the first delivery to the group, one more at each further one; 1 for a consumer without a group."""
        return self.origin.attempt
