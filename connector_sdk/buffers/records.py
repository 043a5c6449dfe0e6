"""Payloads on their way into a store: refused here when a store could not keep them, so that a batch never fails for one."""

from __future__ import annotations

from connector_sdk.buffers.codec import Codec, make_record
from connector_sdk.buffers.store import Record
from connector_sdk.errors import PayloadError
from connector_sdk.payloads import Payload, require_payload

__all__ = ["new_record"]


def new_record(payload: Payload, codec: Codec) -> Record:
    """
    Turn a payload into a record.

    Raises PayloadError when it is no payload, or has fields that are no text or no JSON.
    """
    try:
        record = make_record(require_payload(payload), codec)
        # Payloads made in Python are not checked: a number for a session, half a surrogate pair in an id.
        session, event_id = record.session, record.event_id
        if not (
            (session is None or session.isascii() or session.encode())
            and (event_id is None or event_id.isascii() or event_id.encode())
            and (record.kind.isascii() or record.kind.encode())
            and (record.origin.isascii() or record.origin.encode())
        ):
            raise PayloadError("the payload has an id that is no text")
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, PayloadError):
            raise
        raise PayloadError(f"the payload cannot be encoded: {type(error).__name__}") from error
    return record
