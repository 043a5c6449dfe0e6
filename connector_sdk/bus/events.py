"""
Events: what is published and handled. A value that cannot be changed, and its JSON.

An event keeps its payload as JSON and decodes it at the first look, so that who does not look does not pay, and what a handler
gets is the same on every log. On the wire it is one JSON object without its topic, which the log knows; fields that this
version does not know come out as they came in.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping
from typing import Final, NoReturn, Self, cast, final

import msgspec
from msgspec import UNSET, Raw, UnsetType
from msgspec.structs import force_setattr

from connector_sdk import wire
from connector_sdk.bus.frozen import FrozenDict, decode_frozen, decode_plain, encode_value, to_json
from connector_sdk.bus.identifiers import new_event_id
from connector_sdk.bus.registry import EventRegistry
from connector_sdk.bus.topics import TopicTemplate, check_topic
from connector_sdk.errors import ConfigurationError, PayloadError
from connector_sdk.options import check_integer, check_seconds
from connector_sdk.payloads import ActionsPayload, SummaryPayload, UnknownPayload
from connector_sdk.wire import RawFields

__all__ = ["Event", "EventType", "decode", "encode"]


class EventType(enum.StrEnum):
    """Names for what happens to things; the type of an event may be any other text as well."""

    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"
    ACTIVATED = "activated"
    DEACTIVATED = "deactivated"
    ERROR = "error"
    CUSTOM = "custom"


class _Wire(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """The fields of the JSON object, under their names."""

    type: str
    event_id: str
    timestamp: float
    payload: Raw
    source: str | None = None
    correlation_id: str | None = None
    metadata: Raw | UnsetType = UNSET
    version: int | None = None
    payload_has_id: bool = False  # whether the id is the connector payload's own


class _State(msgspec.Struct, frozen=True, gc=False):
    wire: _Wire
    topic: str
    registry: EventRegistry | None = None
    unknown: RawFields | None = None
    # Filled at the first look.
    payload: object = UNSET
    metadata: FrozenDict | UnsetType = UNSET


_KNOWN: Final = frozenset(_Wire.__struct_fields__)
_NO_METADATA: Final = FrozenDict()
_LONGEST_TYPE: Final = 255
_SHOWN: Final = 80
_now = time.time
_encode_wire = msgspec.json.Encoder().encode
_decode_wire = msgspec.json.Decoder(_Wire).decode


@final
class Event:
    """
    Something that happened, as it is published and handled. Nothing of it can be changed, and what it was made of may be.

    Args:
        type: what happened, 1 to 255 characters: an `EventType`, the name of a registered class, or any text.
        topic: where it is published, see `connector_sdk.bus.topics`.
        payload: any JSON value: text, numbers, booleans, None, dicts and lists; also what msgspec makes JSON of (dates, UUIDs,
            dataclasses, ...), which then is text or a dict. NaN and infinity become None.
        timestamp: when, in Unix seconds; now by default.
        event_id: its id; a random UUID by default.
        source: who says so.
        correlation_id: the id of what it belongs to, see `with_correlation`.
        metadata: a mapping of further JSON values.
        version: of the payload's shape, 1 or more; None without versions.

    Raises:
        ConfigurationError: a value is of a wrong type, or the payload holds what JSON cannot say; it says where.

    Two events are equal when all of this is; they hash by their id.
    """

    __slots__ = ("_state",)
    _state: _State

    def __new__(
        cls,
        type: str,  # noqa: A002 - the name of the field
        topic: str,
        payload: object = None,
        *,
        timestamp: float | None = None,
        event_id: str | None = None,
        source: str | None = None,
        correlation_id: str | None = None,
        metadata: Mapping[str, object] | None = None,
        version: int | None = None,
    ) -> Self:
        """Make an event: see the class."""
        wired = _Wire(
            _check_text("type", type),
            new_event_id() if event_id is None else _check_text("event_id", event_id),
            _now() if timestamp is None else check_seconds("timestamp", timestamp, minimum=float("-inf")),
            Raw(encode_value("payload", payload)),
            None if source is None else _check_text("source", source),
            None if correlation_id is None else _check_text("correlation_id", correlation_id),
            _encode_metadata(metadata) if metadata else UNSET,
            None if version is None else check_integer("version", version, minimum=1),
        )
        event = _new(cls)
        _set_state(event, _State(wired, check_topic(topic)))
        return event

    @classmethod
    def of(
        cls,
        payload: object,
        topic: str | TopicTemplate | None = None,
        registry: EventRegistry | None = None,
        *,
        source: str | None = None,
        correlation_id: str | None = None,
        metadata: Mapping[str, object] | None = None,
    ) -> Self:
        """
        Return an event for a payload of the connector, or for an object of a registered class.

        Its type and version are those it is registered under; a connector payload's id and product become `event_id` and
        `source`. *topic* may have places to fill from the payload, ``connector:{product_id}``; by default it is the one that
        the class was registered with. Raises ConfigurationError for an object of no registered class.
        """
        registry = _EMPTY if registry is None else registry
        name, version, raw, template = _describe(payload, registry)
        if topic is not None:
            template = topic if isinstance(topic, TopicTemplate) else TopicTemplate(topic)
        if template is None:
            raise ConfigurationError("topic", None, f"given: {name} was registered without a topic of its own")
        own_id: str | None = None
        if isinstance(payload, ActionsPayload | SummaryPayload | UnknownPayload):
            own_id = payload.event_id or None
            source = source or payload.product_id or None
        wired = _Wire(
            name,
            own_id or new_event_id(),
            _now(),
            Raw(raw),
            source,
            None if correlation_id is None else _check_text("correlation_id", correlation_id),
            _encode_metadata(metadata) if metadata else UNSET,
            version,
            own_id is not None,
        )
        return cls._from_state(_State(wired, check_topic(template.fill(payload)), registry))

    @property
    def type(self) -> str:
        """What happened."""
        return self._state.wire.type

    @property
    def topic(self) -> str:
        """Where it was, or is to be, published."""
        return self._state.topic

    @property
    def event_id(self) -> str:
        """Its id: the same wherever it is seen."""
        return self._state.wire.event_id

    @property
    def timestamp(self) -> float:
        """When it happened, in Unix seconds."""
        return self._state.wire.timestamp

    @property
    def source(self) -> str | None:
        """Who said so; the product of a connector's payload."""
        return self._state.wire.source

    @property
    def correlation_id(self) -> str | None:
        """The id of what it belongs to."""
        return self._state.wire.correlation_id

    @property
    def version(self) -> int | None:
        """The version of the payload as it was published; `payload` is of the registered one."""
        return self._state.wire.version

    @property
    def metadata(self) -> FrozenDict:
        """Further values. Cannot be changed."""
        state = self._state
        if state.metadata is UNSET:
            raw = state.wire.metadata
            value = _NO_METADATA if raw is UNSET else decode_frozen(raw)
            force_setattr(state, "metadata", value if isinstance(value, FrozenDict) else _NO_METADATA)
        return cast(FrozenDict, state.metadata)

    @property
    def payload(self) -> object:
        """
        What there is to say. A new object of the registered class at each access, or JSON that cannot be changed.

        An object is the reader's own: keep it, and change it as you like. Raises UnknownEventError for a version that is not
        registered, PayloadError for what does not fit the class.
        """
        state = self._state
        if state.payload is not UNSET:
            return state.payload
        wired = state.wire
        if state.registry is not None:
            entry = state.registry.entry_for(wired.type, wired.version)
            if entry is not None:
                return entry.build(
                    bytes(wired.payload), wired.version, wired.event_id if wired.payload_has_id else None
                )
        frozen = decode_frozen(wired.payload)
        force_setattr(state, "payload", frozen)
        return frozen

    @property
    def raw_payload(self) -> bytes:
        """The payload as JSON, whatever is registered."""
        return bytes(self._state.wire.payload)

    def bound(self, topic: str, registry: EventRegistry | None = None) -> Event:
        """
        Return the same event for *topic*, its payload read with *registry*; itself when it is that already.

        None keeps the registry that it has, which is none at first.
        """
        state = self._state
        registry = state.registry if registry is None else registry
        if topic == state.topic and registry is state.registry:
            return self
        return self._from_state(_State(state.wire, check_topic(topic), registry, state.unknown))

    def with_correlation(self, event: Event | str) -> Event:
        """
        Return the same event as a consequence of *event*: with its correlation id, or its id if it has none.

        Text is taken as the correlation id itself.
        """
        identifier = (event.correlation_id or event.event_id) if isinstance(event, Event) else event
        wired = msgspec.structs.replace(self._state.wire, correlation_id=_check_text("correlation_id", identifier))
        return self._from_state(msgspec.structs.replace(self._state, wire=wired))

    def to_dict(self) -> dict[str, object]:
        """Return the event as plain values that are the caller's own, its topic and unknown fields included."""
        state = self._state
        wired = state.wire
        fields: dict[str, object] = {
            "type": wired.type,
            "topic": state.topic,
            "payload": decode_plain(wired.payload),
            "timestamp": wired.timestamp,
            "event_id": wired.event_id,
            "source": wired.source,
            "correlation_id": wired.correlation_id,
            "metadata": {} if wired.metadata is UNSET else decode_plain(wired.metadata),
            "version": wired.version,
        }
        if wired.payload_has_id:
            fields["payload_has_id"] = True
        unknown = {} if state.unknown is None else {name: decode_plain(raw) for name, raw in state.unknown.items()}
        return {**unknown, **fields}

    @classmethod
    def from_dict(cls, data: Mapping[str, object], registry: EventRegistry | None = None) -> Event:
        """
        Return the event that `to_dict` made *data* of; what `Event()` sets by itself may be missing.

        Raises PayloadError for what is no such mapping.
        """
        if not isinstance(data, Mapping):
            raise PayloadError(f"an event is made of a mapping, not of {type(data).__name__}")
        fields = {"event_id": new_event_id(), "timestamp": _now(), "payload": None}
        fields |= {name: value for name, value in data.items() if value is not None or name not in _KNOWN}
        topic = fields.pop("topic", None)
        if not fields.get("metadata"):
            fields.pop("metadata", None)
        try:
            return _decode_leniently(encode_value("event", fields), check_topic(topic), registry)
        except ConfigurationError as error:
            raise PayloadError(f"the mapping is no event: {error}") from error

    @classmethod
    def _from_state(cls, state: _State) -> Self:
        event = _new(cls)
        _set_state(event, state)
        return event

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"an Event cannot be changed, nor can its {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"an Event cannot be changed, nor can its {name}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Event):
            return NotImplemented
        return self is other or (self.event_id == other.event_id and self.to_dict() == other.to_dict())

    def __hash__(self) -> int:
        return hash(self._state.wire.event_id)

    def __repr__(self) -> str:
        wired = self._state.wire
        text = bytes(wired.payload).decode("utf-8", "replace")
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"
        version = "" if wired.version is None else f", version={wired.version}"
        return f"Event({wired.type!r}, {self._state.topic!r}, {shown}, event_id={wired.event_id!r}{version})"

    def __copy__(self) -> Event:
        return self

    def __deepcopy__(self, memo: object) -> Event:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return (decode, (encode(self), self._state.topic))


_new = object.__new__
_set_state = Event.__dict__["_state"].__set__
_EMPTY: Final = EventRegistry()


def encode(event: Event) -> bytes:
    """Return the event as one JSON object, without its topic."""
    state = event._state
    if state.unknown is None:
        return _encode_wire(state.wire)
    known = wire.decode_raw_object(_encode_wire(state.wire))[0]
    return wire.encode_fields({**known, **state.unknown})


def decode(data: bytes, topic: str, registry: EventRegistry | None = None) -> Event:
    """
    Return the event that `encode` made *data* of, as one of *topic*.

    Its payload is decoded when it is looked at, as *registry* says (None: as frozen JSON). Raises PayloadError for bytes that
    are no event.
    """
    try:
        state = _State(_decode_wire(data), topic, registry)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decode_leniently(data, topic, registry)
    event = _new(Event)
    _set_state(event, state)
    return event


def _decode_leniently(data: bytes, topic: str, registry: EventRegistry | None) -> Event:
    """Read an event with fields that this version does not know, or with NaN or bytes that are no UTF-8 in it."""
    fields, text = wire.decode_raw_object(data)
    known = wire.encode_fields({name: raw for name, raw in fields.items() if name in _KNOWN})
    unknown = {name: raw.copy() for name, raw in fields.items() if name not in _KNOWN}
    try:
        wired = _decode_wire(known)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PayloadError(f"the JSON is no event: {error}", text[:200].decode("utf-8", "replace")) from error
    return Event._from_state(_State(wired, topic, registry, unknown or None))


def _describe(payload: object, registry: EventRegistry) -> tuple[str, int | None, bytes, TopicTemplate | None]:
    """The type, version, JSON and own topic of an object."""
    if isinstance(payload, UnknownPayload):
        return payload.type or "unknown", None, to_json(payload.raw), None
    entry = registry.entry_of(type(payload))
    version = None if isinstance(payload, ActionsPayload | SummaryPayload) else entry.version
    return entry.name, version, entry.encode(payload), entry.template


def _check_text(option: str, value: object) -> str:
    if isinstance(value, str) and 0 < len(value) <= _LONGEST_TYPE:
        return value if value.__class__ is str else str.__str__(value)  # a member of an enum becomes plain text
    raise ConfigurationError(option, value, f"text of 1 to {_LONGEST_TYPE} characters")


def _encode_metadata(metadata: object) -> Raw:
    if not isinstance(metadata, Mapping):
        raise ConfigurationError("metadata", type(metadata), "a mapping of names to JSON values")
    return Raw(encode_value("metadata", metadata))
