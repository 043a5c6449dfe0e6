"""
The event-stream format: bytes in, events out. Pure: no socket, no clock.

Follows the WHATWG HTML standard, section 9.2.6 "Interpreting an event stream", with two bounds that the standard lacks:
an event larger than `max_event_bytes`, or of more than `max_event_lines` lines, is dropped, reported as an
`OversizedEvent`, and the stream goes on. How the bytes are cut into chunks never changes what comes out.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

__all__ = ["CursorMoved", "Item", "OversizedEvent", "RetryAdvised", "SSEParser", "ServerSentEvent"]

DEFAULT_MAX_EVENT_BYTES: Final = 16 * 1024 * 1024
DEFAULT_MAX_EVENT_LINES: Final = 100_000

_BOM: Final = b"\xef\xbb\xbf"
_COLON: Final = 0x3A
_LONGEST_RETRY: Final = 12  # digits; more milliseconds than anybody lives


class ServerSentEvent(msgspec.Struct, frozen=True, gc=False):
    """
    One dispatched event.

    `data` is the bytes between the `data:` fields' line ends, joined by LF; `text` decodes them as UTF-8 with replacement.
    `type` is "message" unless the event names one. `id` is the id this very event carries, None without an `id` field:
    the standard's sticky "last event ID" is the id of the latest item that has one.
    """

    type: str
    data: bytes
    id: str | None = None

    @property
    def text(self) -> str:
        """The data as text."""
        return self.data.decode("utf-8", "replace")


class CursorMoved(msgspec.Struct, frozen=True, gc=False):
    """A block with an `id` and no data: no event, but the place to resume from. An empty id clears it."""

    id: str


class RetryAdvised(msgspec.Struct, frozen=True, gc=False):
    """A `retry` field: the server asks for this pause before a reconnect."""

    milliseconds: int


class OversizedEvent(msgspec.Struct, frozen=True, gc=False):
    """An event over a bound was dropped. `size` counts its bytes, comments left out; `id` is kept for the cursor."""

    size: int
    lines: int
    type: str
    id: str | None = None


Item: TypeAlias = ServerSentEvent | CursorMoved | RetryAdvised | OversizedEvent


class SSEParser:
    """
    An incremental parser of one event stream.

    Feed it the body's bytes in chunks of any size; each call returns what became complete. An event that is incomplete
    when the stream ends is discarded with the parser, as the standard says. Memory stays below twice *max_event_bytes*
    plus the chunk. Not thread-safe.

    Args:
        max_event_bytes: the most bytes that the lines of one event may have together, line ends included; comments do not
            count. Default 16 MiB.
        max_event_lines: the most lines. Default 100,000.
    """

    __slots__ = (
        "_after_cr", "_at_start", "_data", "_id", "_line_is_lost", "_lines", "_max_bytes", "_max_lines", "_oversized",
        "_partial", "_partial_size", "_size", "_type",
    )  # fmt: skip

    def __init__(
        self, max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES, max_event_lines: int = DEFAULT_MAX_EVENT_LINES
    ) -> None:
        self._max_bytes = max_event_bytes
        self._max_lines = max_event_lines
        self._at_start = True
        self._after_cr = False
        self._partial: list[bytes] = []
        self._partial_size = 0
        self._line_is_lost = False
        self._data: list[bytes] = []
        self._type = ""
        self._id: str | None = None
        self._size = 0
        self._lines = 0
        self._oversized = False

    def feed(self, chunk: bytes) -> list[Item]:  # noqa: C901, PLR0912 - one pass over the bytes, as quick as can be
        """Take the next bytes of the body; return the items they complete, in order."""
        if not (self._lines or self._partial or self._at_start or self._after_cr):
            event = self._whole_event(chunk)
            if event is not None:
                return [event]
        items: list[Item] = []
        if self._at_start:
            chunk = self._without_bom(chunk)
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk.startswith(b"\n"):
                chunk = chunk[1:]
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = chunk.split(b"\n")
        rest = lines.pop()
        if self._partial and lines:
            lines[0] = self._finish_partial(lines[0])
        for line in lines:
            if line.startswith(b"data: ") and not self._oversized:
                size = self._size + len(line) + 1
                if size <= self._max_bytes and self._lines < self._max_lines:
                    self._size = size
                    self._lines += 1
                    self._data.append(line[6:])
                    continue
            if line:
                self._take_line(line, items)
            else:
                self._dispatch(items)
        if rest:
            self._keep_partial(rest)
        return items

    def _whole_event(self, chunk: bytes) -> ServerSentEvent | None:
        """The event, when the chunk is exactly one of an id and one line of data: what a live connector sends."""
        end = len(chunk) - 2
        start = 0
        event_id = None
        if chunk.startswith(b"id: "):
            start = chunk.find(b"\n") + 1
            event_id = chunk[4 : start - 1]
            if b"\0" in event_id:
                return None
        if (
            not chunk.startswith(b"data: ", start)
            or chunk.find(b"\n", start) != end
            or not chunk.endswith(b"\n\n")
            or b"\r" in chunk
            or end >= self._max_bytes
        ):
            return None
        data = chunk[start + 6 : end]
        return ServerSentEvent("message", data, None if event_id is None else event_id.decode("utf-8", "replace"))

    def _take_line(self, line: bytes, items: list[Item]) -> None:
        if line[0] == _COLON:
            return
        length = len(line)
        if self._line_is_lost:
            length, self._partial_size = self._partial_size, 0
        self._count(length)
        if self._line_is_lost or length > self._max_bytes:
            self._line_is_lost = False
            return
        name, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            if not self._oversized:
                self._data.append(value)
        elif name == b"id":
            if b"\0" not in value:
                self._id = value.decode("utf-8", "replace")
        elif name == b"event":
            self._type = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit():
            items.append(RetryAdvised(int(value[:_LONGEST_RETRY])))

    def _count(self, length: int) -> None:
        self._size += length + 1
        self._lines += 1
        if self._size > self._max_bytes or self._lines > self._max_lines:
            self._oversized = True
            self._data.clear()

    def _dispatch(self, items: list[Item]) -> None:
        data = self._data
        if self._oversized:
            items.append(OversizedEvent(self._size, self._lines, self._type or "message", self._id))
        elif data:
            whole = data[0] if len(data) == 1 else b"\n".join(data)
            items.append(ServerSentEvent(self._type or "message", whole, self._id))
        elif self._id is not None:
            items.append(CursorMoved(self._id))
        self._start_event()

    def _start_event(self) -> None:
        self._data = []
        self._type = ""
        self._id = None
        self._size = 0
        self._lines = 0
        self._oversized = False

    def _keep_partial(self, rest: bytes) -> None:
        """Keep the start of a line until its end comes, but never more of it than can be of use."""
        partial = self._partial
        self._partial_size += len(rest)
        if not partial or (not self._line_is_lost and partial[0][0] != _COLON):
            partial.append(rest)
        if partial[0][0] == _COLON:
            partial[0] = b":"
            return
        if self._size + self._partial_size > self._max_bytes:
            self._oversized = True
            self._data.clear()
        if self._partial_size > self._max_bytes and not self._line_is_lost:
            self._line_is_lost = True
            partial[:] = [partial[0][:1]]

    def _finish_partial(self, rest: bytes) -> bytes:
        partial = self._partial
        if self._line_is_lost:
            self._partial_size += len(rest)
            line = partial[0]
        else:
            partial.append(rest)
            line = b"".join(partial)
        partial.clear()
        if not self._line_is_lost:
            self._partial_size = 0
        return line

    def _without_bom(self, chunk: bytes) -> bytes:
        """Drop one leading byte-order mark, however it is cut."""
        start = b"".join(self._partial) + chunk
        self._partial.clear()
        if len(start) < len(_BOM) and _BOM.startswith(start):
            if start:
                self._partial.append(start)
            return b""
        self._at_start = False
        return start[len(_BOM) :] if start.startswith(_BOM) else start
