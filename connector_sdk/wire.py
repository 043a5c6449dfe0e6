"""
The lenient half of the payload codec: JSON objects as raw fields, so that nothing unknown or odd is lost.

Private to `connector_sdk.payloads`. A *raw field* is a JSON value as the bytes it came in (`msgspec.Raw`).
"""

from __future__ import annotations

import json
import math
import operator
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TypedDict, TypeVar

import msgspec
from msgspec import UNSET, Raw
from msgspec.structs import force_setattr

from connector_sdk.errors import PayloadError

__all__ = [
    "EVENT_ID",
    "UNKNOWN",
    "CommonFields",
    "RawFields",
    "UnknownFields",
    "build",
    "common_fields",
    "decode_object",
    "decode_raw_object",
    "encode",
    "encode_fields",
    "join_unknown",
    "raw_fields",
    "to_builtins",
    "unknown_of",
]

#: The names that two fields of the structs, which are not part of the JSON, have for msgspec. A JSON object that uses
#: them does not fit the typed pass (a type no JSON value has; a string where the id goes is taken out again below).
UNKNOWN = "!unknown_fields"
EVENT_ID = "!event_id"

StructT = TypeVar("StructT", bound=msgspec.Struct)
RawFields = dict[str, Raw]

_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_any = msgspec.json.Decoder().decode
_encode_json = msgspec.json.Encoder().encode


class UnknownFields:
    """Raw fields that the struct has no place for. A type of its own, so that no JSON value ever fits it."""

    __slots__ = ("fields",)

    def __init__(self, fields: RawFields) -> None:
        self.fields = fields

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnknownFields) and _plain(self.fields) == _plain(other.fields)

    def __hash__(self) -> int:
        return hash(tuple(sorted(_plain(self.fields).items())))

    def __repr__(self) -> str:
        return repr({name: bytes(value).decode() for name, value in self.fields.items()})

    def __reduce__(self) -> tuple[object, ...]:
        return (_restore_unknown, (_plain(self.fields),))


class CommonFields(TypedDict):
    """What every payload type has, as keyword arguments."""

    type: str
    product_id: str
    session_id: str | None
    forwarded_at: float


def decode_raw_object(data: bytes) -> tuple[RawFields, bytes]:
    """
    Split a JSON object into raw fields; also return the object as valid JSON, *data* itself when it is that.

    Bytes that are no UTF-8 are replaced, NaN and infinity become null; anything else that is no object is a
    PayloadError.
    """
    text = data
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace").encode()
    try:
        fields = _decode_fields(text)
        _decode_any(text)  # a raw field is not looked into: "{"a": 1e9999}" must be found here
    except (msgspec.DecodeError, RecursionError):
        fields = raw_fields(_decode_with_standard_library(text))
        return fields, encode_fields(fields)
    return fields, text


def raw_fields(data: Mapping[str, object]) -> RawFields:
    """Turn a mapping into raw fields; PayloadError when it is none or holds what JSON cannot say."""
    if not isinstance(data, Mapping):
        raise PayloadError(f"a JSON object is needed, not {type(data).__name__}", str(data))
    try:
        return {str(name): Raw(_encode_json(value)) for name, value in data.items()}
    except (TypeError, ValueError, OverflowError) as error:
        raise PayloadError(f"the payload holds a value that JSON cannot say: {error}") from error


def build(kind: type[StructT], fields: RawFields, nested: Mapping[str, type[msgspec.Struct]] | None = None) -> StructT:
    """Make a *kind* from raw fields leniently; what has no place, or had to be converted, is kept as unknown."""
    values: dict[str, object] = {}
    unknown: RawFields = {}
    converters = _converters(kind)
    tag = kind.__struct_config__.tag_field
    for name, raw in fields.items():
        if nested and name in nested and name in converters:
            values[name], whole = _build_list(nested[name], raw)
        elif name in converters:
            values[name], whole = converters[name](_decode_any(raw))
        else:
            whole = name == tag
        if not whole:
            unknown[name] = _own(raw)
    payload = kind(**values)
    if unknown:
        force_setattr(payload, "_unknown", UnknownFields(unknown))
    return payload


def encode(payload: msgspec.Struct) -> bytes:
    """Encode a struct with its type and without the fields that are not JSON; unknown fields verbatim."""
    shape, values = _wire_shape(type(payload))
    if getattr(payload, "_unknown") is UNSET:  # noqa: B009 - private to the codec, which this is
        try:
            return _encode_json(shape(*values(payload)))
        except TypeError:
            pass  # an action has unknown fields
    return encode_fields(_fields_of(payload))


def encode_fields(fields: RawFields) -> bytes:
    """Join raw fields into one JSON object."""
    return _encode_json(fields)


def decode_object(data: bytes) -> dict[str, object]:
    """Decode a JSON object to plain values."""
    return typing.cast(dict[str, object], _decode_any(data))


def to_builtins(payload: msgspec.Struct) -> dict[str, object]:
    """Plain values of a struct under the wire's names, unknown fields included."""
    return decode_object(encode(payload))


def unknown_of(payload: msgspec.Struct) -> dict[str, object]:
    """The unknown fields of a struct, decoded."""
    unknown = getattr(payload, "_unknown")  # noqa: B009 - private to the codec, which this is
    return {} if unknown is UNSET else {name: _decode_any(raw) for name, raw in unknown.fields.items()}


def join_unknown(target: msgspec.Struct, sources: Iterable[msgspec.Struct]) -> None:
    """Give *target* the unknown fields of *sources*, each from the first that has it."""
    joined: RawFields = {}
    for source in sources:
        unknown = getattr(source, "_unknown")  # noqa: B009 - private to the codec, which this is
        if unknown is not UNSET:
            joined = {**unknown.fields, **joined}
    known = set(target.__struct_fields__)
    joined = {name: raw for name, raw in joined.items() if name not in known}
    if joined:
        force_setattr(target, "_unknown", UnknownFields(joined))


def common_fields(fields: RawFields, event_name: str) -> CommonFields:
    """Read what every payload type has, leniently."""

    def read(name: str, annotation: object) -> typing.Any:  # noqa: ANN401 - each annotation gives its own type
        return _converter(annotation)(_decode_any(fields[name]) if name in fields else None)[0]

    return CommonFields(
        type=read("type", str) or event_name,
        product_id=read("product_id", str),
        session_id=read("session_id", str | None),
        forwarded_at=read("forwarded_at", float),
    )


def _fields_of(payload: msgspec.Struct) -> RawFields:
    shape, _ = _wire_shape(type(payload))
    tag_field, tag = type(payload).__struct_config__.tag_field, type(payload).__struct_config__.tag
    fields: RawFields = {tag_field: Raw(_encode_json(tag))} if tag_field else {}
    for name in shape.__struct_fields__:
        value = getattr(payload, name)
        if isinstance(value, list):
            fields[name] = Raw(b"[" + b",".join(encode(item) for item in value) + b"]")
        else:
            fields[name] = Raw(_encode_json(value))
    unknown = getattr(payload, "_unknown")  # noqa: B009 - private to the codec, which this is
    return fields if unknown is UNSET else {**fields, **unknown.fields}


def _build_list(kind: type[msgspec.Struct], raw: Raw) -> tuple[list[msgspec.Struct], bool]:
    items = _decode_any(raw)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return [], items is None
    split = msgspec.json.decode(raw, type=list[dict[str, Raw]])
    return [build(kind, {name: _own(value) for name, value in item.items()}) for item in split], True


@cache
def _wire_shape(kind: type[msgspec.Struct]) -> tuple[type[msgspec.Struct], Callable[[object], tuple[object, ...]]]:
    """A struct with the fields of *kind* that are JSON, and its tag; and what reads their values from a *kind*."""
    hints = typing.get_type_hints(kind)
    names = [name for name in kind.__struct_fields__ if name not in ("_unknown", "event_id")]
    config = kind.__struct_config__
    shape = msgspec.defstruct(
        kind.__name__, [(name, hints[name]) for name in names], tag_field=config.tag_field, tag=config.tag, gc=False
    )
    return shape, operator.attrgetter(*names)


Converter = Callable[[object], tuple[object, bool]]


@cache
def _converters(kind: type[msgspec.Struct]) -> dict[str, Converter]:
    hints = typing.get_type_hints(kind)
    return {name: _converter(hints[name]) for name in kind.__struct_fields__ if name not in ("_unknown", "event_id")}


def _converter(annotation: object) -> Converter:
    """The lenient reading of one field: a plain JSON value -> (the field's value, whether nothing was lost by it)."""
    if isinstance(annotation, types.UnionType):
        return _optional_text
    return {str: _text, int: _whole, float: _number}.get(typing.cast(type, annotation), _nothing)


def _nothing(value: object) -> tuple[object, bool]:
    return [], value is None


def _text(value: object) -> tuple[object, bool]:
    if isinstance(value, str):
        return value, True
    if value is None:
        return "", True
    return (_encode_json(value).decode(), False)


def _optional_text(value: object) -> tuple[object, bool]:
    return (None, True) if value is None else _text(value)


def _number(value: object) -> tuple[object, bool]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value), True
        except OverflowError:
            return 0.0, False
    try:
        number = float(value) if isinstance(value, str) else 0.0
    except ValueError:
        number = 0.0
    return (number if math.isfinite(number) else 0.0), value is None


def _whole(value: object) -> tuple[object, bool]:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return value, True
    number = _number(value)[0]
    return int(typing.cast(float, number)), value is None


def _decode_with_standard_library(text: bytes) -> Mapping[str, object]:
    """Read what msgspec refuses and servers do send: NaN, infinity and numbers out of range become null."""
    try:
        value = json.loads(text, parse_constant=lambda _: None, parse_float=_finite_or_none)
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"the data is no JSON: {error}", text[:200].decode("utf-8", "replace")) from error
    if not isinstance(value, dict):
        raise PayloadError(f"the data is JSON but no object: {type(value).__name__}", str(value))
    return value


def _finite_or_none(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _own(raw: Raw) -> Raw:
    """A Raw that does not keep the whole event's bytes alive."""
    return raw.copy()


def _plain(fields: RawFields) -> dict[str, bytes]:
    return {name: bytes(raw) for name, raw in fields.items()}


def _restore_unknown(fields: dict[str, bytes]) -> UnknownFields:
    return UnknownFields({name: Raw(value) for name, value in fields.items()})
