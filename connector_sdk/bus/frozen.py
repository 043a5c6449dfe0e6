"""JSON values that refuse to be changed: dicts and lists for everyone who reads, and for nobody who writes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import NoReturn, TypeAlias

import msgspec

from connector_sdk.errors import ConfigurationError, PayloadError

__all__ = ["Frozen", "FrozenDict", "FrozenList", "decode_frozen", "decode_plain", "encode_value", "freeze", "to_json"]


def _refuse(self: object, *_: object, **__: object) -> NoReturn:
    raise TypeError(
        f"{type(self).__name__} cannot be changed: it belongs to an event, which others see as well; "
        "copy.deepcopy() gives plain dicts and lists of your own"
    )


class FrozenDict(dict[str, "Frozen"]):
    """A dict that refuses changes. Equal to a dict with the same items; `copy.deepcopy` gives a plain one."""

    __slots__ = ()

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __deepcopy__(self, memo: object) -> dict[str, object]:
        return {key: _thaw(value) for key, value in self.items()}

    def __reduce__(self) -> tuple[object, ...]:
        return (FrozenDict, (dict(self),))


class FrozenList(list["Frozen"]):
    """A list that refuses changes. Equal to a list with the same items; `copy.deepcopy` gives a plain one."""

    __slots__ = ()

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = clear = extend = insert = pop = remove = reverse = sort = _refuse

    def __deepcopy__(self, memo: object) -> list[object]:
        return [_thaw(value) for value in self]

    def __reduce__(self) -> tuple[object, ...]:
        return (FrozenList, (list(self),))


#: A JSON value that cannot be changed.
Frozen: TypeAlias = "FrozenDict | FrozenList | str | int | float | bool | None"

_decode_any = msgspec.json.Decoder().decode


def freeze(value: object) -> Frozen:
    """Return decoded JSON, which is the caller's to give, with FrozenDict and FrozenList in place of dicts and lists."""
    # Loops and no comprehensions: those need a frame of their own each, and JSON may be nested deeply.
    if isinstance(value, dict):
        for key, item in value.items():
            if type(item) in _CONTAINERS:
                value[key] = freeze(item)
        return FrozenDict(value)
    if isinstance(value, list):
        for index, item in enumerate(value):
            if type(item) in _CONTAINERS:
                value[index] = freeze(item)
        return FrozenList(value)
    return value  # type: ignore[return-value]  # decoded JSON has no other types


_CONTAINERS = frozenset({dict, list})


def _thaw(value: object) -> object:
    if isinstance(value, dict):
        return {key: _thaw(item) for key, item in value.items()}
    return [_thaw(item) for item in value] if isinstance(value, list) else value


def decode_plain(raw: bytes | msgspec.Raw) -> object:
    """
    Decode one JSON value to plain dicts and lists, as leniently as payloads are.

    Bytes that are no UTF-8 are replaced, numbers out of range become null. Raises PayloadError for what is no JSON.
    """
    try:
        return _decode_any(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = bytes(raw).decode("utf-8", "replace")
    try:
        return json.loads(text, parse_constant=lambda _: None, parse_float=_finite_or_none)
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"the payload is no JSON: {error}", text) from error


def _finite_or_none(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def to_json(raw: bytes) -> bytes:
    """Return *raw* if it is JSON, else what `decode_plain` makes of it, as JSON. Raises PayloadError for what is none."""
    try:
        _decode_any(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return encode_value("payload", decode_plain(raw))
    return raw


def decode_frozen(raw: bytes | msgspec.Raw) -> Frozen:
    """Decode one JSON value to what cannot be changed; see `decode_plain`."""
    try:
        return freeze(decode_plain(raw))
    except RecursionError as error:
        raise PayloadError("the payload is nested too deeply") from error


def _encode_others(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    dump = getattr(value, "model_dump", None)  # pydantic's, when the application has it
    if callable(dump):
        return dump(mode="json", by_alias=True, round_trip=True)
    raise TypeError(f"{type(value).__name__} is no JSON")


_encode = msgspec.json.Encoder(enc_hook=_encode_others).encode


def encode_value(name: str, value: object) -> bytes:
    """
    Encode *value* as JSON: NaN and infinity become null; dates, UUIDs, decimals, sets, bytes, dataclasses as msgspec has it.

    Raises ConfigurationError that names the place within *name* of what JSON cannot say.
    """
    try:
        return _encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        place, culprit = _find_culprit(name, value, 0)
        raise ConfigurationError(
            place, type(culprit), f"something that JSON can say ({type(error).__name__}: {error})"
        ) from error


_DEEPEST = 100


def _find_culprit(place: str, value: object, depth: int) -> tuple[str, object]:
    """Where in *value* is the innermost thing that cannot be encoded."""
    if depth == _DEEPEST:
        return f"{place[:200]}…", value
    inside: list[tuple[str, object]] = []
    if isinstance(value, Mapping):
        inside = [(f"{place}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        inside = [(f"{place}[{index}]", item) for index, item in enumerate(value)]
    for where, item in inside:
        try:
            _encode(item)
        except (TypeError, ValueError, OverflowError, RecursionError):
            return _find_culprit(where, item, depth + 1)
    return place, value
