"""From events to deliveries: heartbeats left out, duplicates removed, payloads decoded. Pure; time is an argument."""

from __future__ import annotations

from typing import Final

from connector_sdk.client.delivery import Delivery
from connector_sdk.client.handlers import Handlers
from connector_sdk.client.sse import ServerSentEvent
from connector_sdk.errors import PayloadError
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import UnknownPayload, decode_payload

__all__ = ["DuplicateWindow", "Intake", "Refusal"]

_HEARTBEAT: Final = "heartbeat"
_WINDOW_EVENTS: Final = 10_000
_WINDOW_SECONDS: Final = 600.0


class DuplicateWindow:
    """
    Remembers at least the last *size* ids, unless they are older than *seconds*; never more than twice that.

    Two generations instead of an ordered map: adding an id is one set insertion, forgetting is dropping a set.
    """

    def __init__(self, size: int = _WINDOW_EVENTS, seconds: float = _WINDOW_SECONDS) -> None:
        self._size = size
        self._seconds = seconds
        self._young: set[str] = set()
        self._old: set[str] = set()
        self._young_since = 0.0

    def seen_before(self, event_id: str, now: float) -> bool:
        """Whether *event_id* is in the window; it is from now on. *now* is a monotonic time in seconds."""
        young = self._young
        if event_id in young:
            return True
        if not young:
            self._young_since = now
        elif len(young) >= self._size or now - self._young_since > self._seconds:
            self._old = young if now - self._young_since <= 2 * self._seconds else set()
            young = self._young = set()
            self._young_since = now
        young.add(event_id)
        return event_id in self._old


class Refusal:
    """An event that goes no further, and why. `payload` is what there is to show of it."""

    __slots__ = ("error", "event_id", "payload", "reason")

    def __init__(
        self,
        reason: DropReason,
        event_id: str | None,
        payload: UnknownPayload | None = None,
        error: PayloadError | None = None,
    ) -> None:
        self.reason = reason
        self.event_id = event_id
        self.payload = payload
        self.error = error


class Intake:
    """Judges one event after the other."""

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers
        self._window = DuplicateWindow()

    def forget(self) -> None:
        """Start with an empty duplicate window: the next run resumes after the last *finished* event, and may repeat."""
        self._window = DuplicateWindow()

    def take(self, event: ServerSentEvent, now: float) -> Delivery | Refusal | None:
        """Turn an event into a delivery, or say why not; None for a heartbeat, which is no event to anybody."""
        if event.type == _HEARTBEAT:
            return None
        event_id = event.id or None
        if event_id is not None and self._window.seen_before(event_id, now):
            return Refusal(DropReason.DUPLICATE, event_id)
        try:
            payload = decode_payload(event.data, event_id=event_id, event_name=event.type)
        except PayloadError as error:
            kept = UnknownPayload(type=event.type, raw=event.data, event_id=event_id)
            return Refusal(DropReason.UNDECODABLE, event_id, kept, error)
        kind = payload.type
        if kind == _HEARTBEAT:
            return None
        plan = self._handlers.plan(kind)
        if not plan.handlers:
            return Refusal(DropReason.UNHANDLED, event_id)
        return Delivery(payload, plan, now)
