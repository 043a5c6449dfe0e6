"""The little of HTTP/1.1 and of the event-stream format that a connector needs to write. Pure: values in, bytes out."""

from __future__ import annotations

from collections.abc import Mapping
from http.client import responses
from typing import Final, TypeAlias

import msgspec

from connector_sdk.errors import ConfigurationError
from connector_sdk.payloads import ActionsPayload, Payload, SummaryPayload, UnknownPayload, encode_payload

__all__ = ["LAST_CHUNK", "Event", "RequestHead", "chunk", "data_of", "encode_event", "parse_head", "render_head"]

#: What a ConnectorServer takes for one event: a payload, a JSON object as a mapping, or raw JSON (sent as it is).
Event: TypeAlias = Payload | Mapping[str, object] | bytes | str

LAST_CHUNK: Final = b"0\r\n\r\n"


class RequestHead(msgspec.Struct, frozen=True):
    """The start of a request: `target` as it came, `headers` with lower-case names (the last of a name wins)."""

    method: str
    target: str
    headers: dict[str, str]


def parse_head(head: bytes) -> RequestHead | None:
    """Read a request line and headers (RFC 9112, sections 3 and 5); None when they are no HTTP/1.1."""
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return None
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon:
            return None
        headers[name.strip().lower()] = value.strip()
    return RequestHead(words[0], words[1], headers)


def render_head(status: int, headers: Mapping[str, str]) -> bytes:
    """Write a status line and headers. The connection ends with the answer: one request, one connection, one step."""
    lines = [f"HTTP/1.1 {status} {responses.get(status, '')}", *(f"{name}: {value}" for name, value in headers.items())]
    lines += ["Connection: close", "", ""]
    return "\r\n".join(lines).encode("latin-1")


def chunk(data: bytes) -> bytes:
    """Frame *data*, which must not be empty, as one chunk (RFC 9112, section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def encode_event(event: Event) -> bytes:
    """
    Write one event without its id: `data:` lines, an `event:` line only where the JSON does not name its type.

    Raises:
        ConfigurationError: *event* is none of payload, mapping, bytes and str, or holds values that JSON cannot.
    """
    name = b""
    match event:
        case bytes():
            data = event
        case str():
            data = event.encode()
        case UnknownPayload():
            data = event.raw
            if not _names_its_type(data):
                name = b"event: %b\n" % event.type.encode()
        case ActionsPayload() | SummaryPayload():
            data = encode_payload(event)
        case Mapping():
            try:
                data = msgspec.json.encode(event)
            except (TypeError, ValueError) as error:
                raise ConfigurationError("events", event, f"JSON objects ({error})") from error
        case _:
            raise ConfigurationError("events", event, "payloads, mappings, or raw JSON as bytes or str")
    # A line end inside the JSON would end the field: each line becomes a field of its own, and the client joins them.
    lines = data.splitlines() or [b""]
    return name + b"".join(b"data: %b\n" % line for line in lines) + b"\n"


def data_of(block: bytes) -> bytes:
    """Return the data of a block that `encode_event` wrote."""
    return b"\n".join(line[6:] for line in block.split(b"\n") if line.startswith(b"data: "))


def _names_its_type(data: bytes) -> bool:
    try:
        fields = msgspec.json.decode(data)
    except msgspec.DecodeError:
        return False
    return isinstance(fields, dict) and isinstance(fields.get("type"), str)
