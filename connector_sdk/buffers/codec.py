"""
Payloads as the bytes that stores keep, and back, losing nothing.

A body says by its first byte what it is: `{` or white space, the JSON of the payload; 0x01, that JSON deflated; 0x02, an
`UnknownPayload` whose fields are not those that its JSON would give. So every process reads what any other wrote.
"""

from __future__ import annotations

import math
import zlib
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec.structs import force_setattr

from connector_sdk.buffers.store import Record
from connector_sdk.errors import PayloadError
from connector_sdk.payloads import Payload, UnknownPayload, decode_payload, encode_payload

__all__ = ["Codec", "decode_body", "encode_body", "event_time", "make_record"]

#: "json" keeps the JSON as it is; "compact" deflates it, for less memory at some 30 us an event.
Codec: TypeAlias = Literal["json", "compact"]

_DEFLATED: Final = b"\x01"
_ENVELOPE: Final = b"\x02"
_LEVEL: Final = 6
#: What connectors write again and again, the most frequent last. Bodies in stores depend on it: it must never change;
#: another dictionary needs another first byte.
_DICTIONARY: Final = (
    b'"usertour_trigger""heartbeat""form_submit","scroll","navigation","input","change","page_load","pageview",'
    b'"replaces":0,"summary":"The user viewed ","type":"summary","https://www.example.com/?utm_source=null,true,false,'
    b'"timestamp_start":1700000000.0,"timestamp_end":1700000000.0,"raw_url":"https://","session_id":null,"user_id":null,'
    b'"email":null,"conversation_id":null},{"title":"Clicked ","description":"User clicked on the button ",'
    b'"canonical_url":"https://","index":1,"type":"click",{"type":"actions","product_id":"","session_id":"","user_id":"",'
    b'"email":"","actions":[{"title":"","description":"","canonical_url":"https://","index":0,"type":"click",'
    b'"timestamp_start":17,"timestamp_end":17,"raw_url":"https://"}],"count":1,"forwarded_at":17'
)
_FARTHEST: Final = 1e15

_encode_envelope = msgspec.msgpack.Encoder().encode
_decode_envelope = msgspec.msgpack.Decoder(UnknownPayload).decode


def make_record(payload: Payload, codec: Codec = "json") -> Record:
    """Turn a payload into a record."""
    return Record(
        payload.session_id,
        event_time(payload),
        payload.type,
        encode_body(payload, codec),
        payload.event_id,
        payload.product_id,
    )


def event_time(payload: Payload) -> float:
    """Return the time that orders a payload: its `forwarded_at`, 0 for what is no number, infinities cut to 1e15."""
    time = float(payload.forwarded_at)  # payloads made in Python are not checked
    return 0.0 if math.isnan(time) else min(max(time, -_FARTHEST), _FARTHEST)


def encode_body(payload: Payload, codec: Codec = "json") -> bytes:
    """Turn a payload into bytes."""
    body = encode_payload(payload)
    if type(payload) is UnknownPayload and not _is_read_back(payload):
        body = _ENVELOPE + _encode_envelope(payload)
    if codec == "json":
        return body
    deflate = zlib.compressobj(
        _LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_DEFAULT_STRATEGY, _DICTIONARY
    )
    return _DEFLATED + deflate.compress(body) + deflate.flush()


def decode_body(body: bytes, *, kind: str = "", event_id: str | None = None) -> Payload:
    """
    Turn what `encode_body` made into the equal payload.

    Raises PayloadError when *body* is nothing of the kind.
    """
    mark = body[:1]
    if mark == _DEFLATED:
        body = _inflate(body)
        mark = body[:1]
    if mark != _ENVELOPE:
        return decode_payload(body, event_id=event_id, event_name=kind)
    try:
        payload = _decode_envelope(memoryview(body)[1:])
    except msgspec.MsgspecError as error:
        raise PayloadError(f"the envelope of an unknown type cannot be read: {error}") from error
    force_setattr(payload, "event_id", event_id)
    return payload


def _inflate(body: bytes) -> bytes:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS, _DICTIONARY)
    try:
        plain = inflate.decompress(memoryview(body)[1:])
    except zlib.error as error:
        raise PayloadError(f"a deflated body cannot be read: {error}") from error
    if not inflate.eof:
        raise PayloadError("a deflated body ends too early")
    return plain


def _is_read_back(payload: UnknownPayload) -> bool:
    try:
        return decode_payload(payload.raw, event_id=payload.event_id, event_name=payload.type) == payload
    except PayloadError:
        return False
