"""
What a connector sends: batches of UI actions, summaries that replace them, and types that this version does not know.

`decode_payload` turns the JSON of one event into a payload and `encode_payload` turns it back, losing nothing: fields
unknown to this version come out with the very bytes they came in with. The common case is one typed pass of msgspec;
whatever does not fit it takes the lenient way through `connector_sdk.wire`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType, field
from msgspec.structs import force_setattr

from connector_sdk import wire
from connector_sdk.errors import PayloadError
from connector_sdk.observe import RateLimitedLogger
from connector_sdk.wire import UnknownFields

__all__ = [
    "ActionsPayload",
    "Payload",
    "SlimAction",
    "SummaryPayload",
    "UnknownPayload",
    "decode_payload",
    "encode_payload",
    "require_payload",
]

_log = RateLimitedLogger(logging.getLogger(__name__))


class SlimAction(msgspec.Struct, frozen=True, forbid_unknown_fields=True, repr_omit_defaults=True, gc=False):
    """
    One thing a user did. Times are Unix seconds; identity fields are None when the connector does not know them.

    `to_dict()` and `from_dict()` are the wire's names; unknown fields survive both.
    """

    title: str = ""
    description: str = ""
    canonical_url: str = ""
    index: int = 0
    type: str = ""
    timestamp_start: float = 0.0
    timestamp_end: float = 0.0
    raw_url: str = ""
    session_id: str | None = None
    user_id: str | None = None
    email: str | None = None
    conversation_id: str | None = None
    _unknown: UnknownFields | UnsetType = field(default=UNSET, name=wire.UNKNOWN)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """Build an action from a mapping with the wire's names; missing and null strings become "", numbers 0."""
        return wire.build(cls, wire.raw_fields(data))

    def to_dict(self) -> dict[str, object]:
        """Return the action as plain values under the wire's names, unknown fields included."""
        return wire.to_builtins(self)

    @property
    def unknown_fields(self) -> dict[str, object]:
        """The fields that this version does not know, decoded."""
        return wire.unknown_of(self)

    def to_text(self) -> str:
        """Return one line for embedding: `[index] type: description — canonical_url`."""
        return f"[{self.index}] {self.type}: {self.description} — {self.canonical_url}"


class ActionsPayload(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    tag_field="type",
    tag="actions",
    repr_omit_defaults=True,
    gc=False,
):
    """
    A batch of actions of one session, in the order they happened.

    `count` is made to agree with `len(actions)`; a count that disagrees is corrected with a warning. `forwarded_at` is
    when the connector sent it (Unix seconds). `event_id` is the SSE id, None without one; it is not part of the JSON.
    """

    type: ClassVar[str] = "actions"

    product_id: str = ""
    session_id: str | None = None
    user_id: str | None = None
    email: str | None = None
    actions: list[SlimAction] = []
    count: int = 0
    forwarded_at: float = 0.0
    conversation_id: str | None = None
    event_id: str | None = field(default=None, name=wire.EVENT_ID)
    _unknown: UnknownFields | UnsetType = field(default=UNSET, name=wire.UNKNOWN)

    def __post_init__(self) -> None:
        if self.count != len(self.actions):
            if self.count:
                _log.warning("count", "a payload says count=%d and has %d actions", self.count, len(self.actions))
            force_setattr(self, "count", len(self.actions))

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """
        Build a batch from a mapping with the wire's names, leniently: see `SlimAction.from_dict`.

        Raises PayloadError when *data* is no mapping or holds values that JSON cannot.
        """
        return wire.build(cls, wire.raw_fields(data), {"actions": SlimAction})

    def to_dict(self) -> dict[str, object]:
        """Return the batch as plain values under the wire's names, with its `type`, unknown fields included."""
        return wire.to_builtins(self)

    @property
    def unknown_fields(self) -> dict[str, object]:
        """The fields that this version does not know, decoded."""
        return wire.unknown_of(self)

    @classmethod
    def merge(cls, payloads: Sequence[ActionsPayload]) -> ActionsPayload:
        """
        Join batches into one: actions one after the other with `index` counted from 0.

        Each identity field is the first that is not null, `forwarded_at` the latest; `event_id` is that of the last
        batch. Unknown fields of the batches themselves are taken from the first that has each. Raises ValueError on no
        payloads.
        """
        if not payloads:
            raise ValueError("merge() needs at least one payload, and was given none")
        every = [action for payload in payloads for action in payload.actions]
        merged = cls(
            product_id=next((p.product_id for p in payloads if p.product_id), ""),
            session_id=next((p.session_id for p in payloads if p.session_id is not None), None),
            user_id=next((p.user_id for p in payloads if p.user_id is not None), None),
            email=next((p.email for p in payloads if p.email is not None), None),
            actions=[msgspec.structs.replace(action, index=index) for index, action in enumerate(every)],
            count=len(every),
            forwarded_at=max(payload.forwarded_at for payload in payloads),
            conversation_id=next((p.conversation_id for p in payloads if p.conversation_id is not None), None),
            event_id=payloads[-1].event_id,
        )
        wire.join_unknown(merged, payloads)
        return merged

    def to_text(self) -> str:
        """Return text ready to embed: a header `Session <id|unknown> — <n> actions` and a line for each action."""
        header = f"Session {self.session_id or 'unknown'} — {len(self.actions)} actions"
        return "\n".join([header, *(action.to_text() for action in self.actions)])


class SummaryPayload(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    tag_field="type",
    tag="summary",
    repr_omit_defaults=True,
    gc=False,
):
    """What a session meant, in prose. `replaces` is how many actions it stands for; `event_id` as in ActionsPayload."""

    type: ClassVar[str] = "summary"

    product_id: str = ""
    session_id: str | None = None
    summary: str = ""
    replaces: int = 0
    forwarded_at: float = 0.0
    event_id: str | None = field(default=None, name=wire.EVENT_ID)
    _unknown: UnknownFields | UnsetType = field(default=UNSET, name=wire.UNKNOWN)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """Build a summary from a mapping with the wire's names, leniently: see `SlimAction.from_dict`."""
        return wire.build(cls, wire.raw_fields(data))

    def to_dict(self) -> dict[str, object]:
        """Return the summary as plain values under the wire's names, with its `type`, unknown fields included."""
        return wire.to_builtins(self)

    @property
    def unknown_fields(self) -> dict[str, object]:
        """The fields that this version does not know, decoded."""
        return wire.unknown_of(self)

    def to_text(self) -> str:
        """Return the prose, ready to embed."""
        return self.summary


class UnknownPayload(msgspec.Struct, frozen=True, kw_only=True, repr_omit_defaults=True, gc=False):
    """
    An event of a type that this version does not know, kept as it came.

    `type` is the JSON's `type` (or the SSE event name), `raw` the JSON bytes. What payloads have in common is read from
    the JSON when it is there, so that order within a session holds for unknown types too.
    """

    type: str
    raw: bytes
    product_id: str = ""
    session_id: str | None = None
    forwarded_at: float = 0.0
    event_id: str | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """Build a payload of any type from a mapping with a `type`."""
        fields = wire.raw_fields(data)
        return cls(raw=wire.encode_fields(fields), **wire.common_fields(fields, ""))

    def to_dict(self) -> dict[str, object]:
        """Return the JSON object, decoded."""
        return wire.decode_object(self.raw)

    def to_text(self) -> str:
        """Return the JSON text."""
        return self.raw.decode("utf-8", "replace")


Payload: TypeAlias = ActionsPayload | SummaryPayload | UnknownPayload

_decode_typed = msgspec.json.Decoder(ActionsPayload | SummaryPayload).decode
_LENIENT: dict[str, type[ActionsPayload | SummaryPayload]] = {
    "actions": ActionsPayload,
    "summary": SummaryPayload,
}


def decode_payload(data: bytes, *, event_id: str | None = None, event_name: str = "") -> Payload:
    """
    Turn the JSON of one event into a payload.

    Args:
        data: one JSON object in UTF-8 (bytes that are no UTF-8 are replaced, as the event-stream format says).
        event_id: the SSE id, None without one.
        event_name: the SSE event name; it is the type when the JSON names none.

    Missing and null strings become "", numbers 0; NaN and infinity, which JSON does not know, become 0 (null in unknown
    fields). A known field whose value has another JSON type is converted when that is possible, and keeps its original
    text for `encode_payload`. A type that this version does not know gives an UnknownPayload.

    Raises:
        PayloadError: *data* is no JSON object.
    """
    try:
        payload: ActionsPayload | SummaryPayload = _decode_typed(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _decode_leniently(data, event_id, event_name)
    force_setattr(payload, "event_id", event_id)
    return payload


def encode_payload(payload: Payload) -> bytes:
    """
    Turn a payload into one JSON object with its `type`; `decode_payload` gives the equal payload back.

    `event_id` is not in it: stores keep it beside the JSON.
    """
    if isinstance(payload, UnknownPayload):
        return payload.raw
    return wire.encode(payload)


def _decode_leniently(data: bytes, event_id: str | None, event_name: str) -> Payload:
    fields, text = wire.decode_raw_object(data)
    common = wire.common_fields(fields, event_name)
    kind = _LENIENT.get(common["type"])
    if kind is None:
        return UnknownPayload(raw=text, event_id=event_id, **common)
    payload = wire.build(kind, fields, {"actions": SlimAction})
    if event_id is not None:
        force_setattr(payload, "event_id", event_id)
    return payload


def require_payload(value: object) -> Payload:
    """Return *value* if it is a payload, else raise PayloadError that says what was given."""
    if isinstance(value, ActionsPayload | SummaryPayload | UnknownPayload):
        return value
    raise PayloadError(
        f"a payload is needed (ActionsPayload, SummaryPayload or UnknownPayload), not {type(value).__name__}; "
        "decode_payload() makes one from JSON"
    )
