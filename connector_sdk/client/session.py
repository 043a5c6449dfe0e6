"""
The rules of one connection, pure: headers in, verdicts out; time is an argument.

The states and the moves between them are the table `TRANSITIONS`; the engine may make no other move.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Final
from urllib.parse import urljoin, urlsplit

import httpx
import msgspec

from connector_sdk.errors import FatalStreamError, TransientStreamError
from connector_sdk.observe import redact_url

__all__ = ["TRANSITIONS", "ConnectionState", "Gap", "Session", "check_head", "retry_after_seconds", "same_origin"]

MAX_REDIRECTS: Final = 10
BODY_START: Final = 200  # bytes of an unwelcome answer that its error shows
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
#: RFC 9110, section 5.5: what a field value may be.
_HEADER_VALUE: Final = re.compile(rb"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?")
_RETRIED: Final = frozenset({408, 425, 429})


class ConnectionState(enum.StrEnum):
    """Where a client is: `client.state`, and what `Observer.connection_state` hears."""

    IDLE = "idle"  #: not started, or about to start again
    STANDBY = "standby"  #: another process leads; waits until it is this one's turn (only with `leader=`)
    CONNECTING = "connecting"  #: a request is on its way
    OPEN = "open"  #: status and content type were checked, events may come
    STALE = "stale"  #: no byte for `read_timeout` seconds; the connection is being replaced
    BACKOFF = "backoff"  #: waiting before the next attempt
    CLOSED = "closed"  #: ended; `client.closed_reason` says why


#: From each state, the states that may follow.
TRANSITIONS: Final[Mapping[ConnectionState, frozenset[ConnectionState]]] = MappingProxyType(
    {
        ConnectionState.IDLE: frozenset(
            {ConnectionState.STANDBY, ConnectionState.CONNECTING, ConnectionState.CLOSED}
        ),
        ConnectionState.STANDBY: frozenset({ConnectionState.CONNECTING, ConnectionState.CLOSED}),
        ConnectionState.CONNECTING: frozenset(
            {
                ConnectionState.STANDBY, ConnectionState.CONNECTING, ConnectionState.OPEN, ConnectionState.BACKOFF,
                ConnectionState.CLOSED,
            }
        ),
        ConnectionState.OPEN: frozenset(
            {ConnectionState.STANDBY, ConnectionState.STALE, ConnectionState.BACKOFF, ConnectionState.CLOSED}
        ),
        ConnectionState.STALE: frozenset({ConnectionState.STANDBY, ConnectionState.BACKOFF, ConnectionState.CLOSED}),
        ConnectionState.BACKOFF: frozenset(
            {ConnectionState.STANDBY, ConnectionState.CONNECTING, ConnectionState.CLOSED}
        ),
        ConnectionState.CLOSED: frozenset({ConnectionState.IDLE}),
    }
)  # fmt: skip


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """
    The server could not resume: events between `since` and `until` may be missing.

    `last_event_id` is the id asked for ("" when the server sends none), `since` the Unix time at which the last event was
    received (None when none was), `until` the Unix time of the new connection.
    """

    last_event_id: str
    since: float | None
    until: float
    reason: str


class Session:
    """
    What one client knows of its stream from connection to connection: state, cursor, health.

    Args:
        cursor: the id to resume after, "" for none.
        healthy_after: seconds that a connection must stay open to earn a fresh back-off.
    """

    def __init__(self, *, cursor: str = "", healthy_after: float = 60.0) -> None:
        self.state = ConnectionState.IDLE
        #: The id of the last complete event received; the next request asks to resume after it.
        self.cursor = cursor
        #: Connections that reached `OPEN`.
        self.opened = 0
        #: Unix time of the last event received.
        self.last_event_at: float | None = None
        self._asked = ""
        self._open_since: float | None = None
        self._healthy_after = healthy_after

    def move(self, state: ConnectionState) -> None:
        """Enter *state*; a move that is not in TRANSITIONS is a mistake of the engine."""
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"no way from {self.state} to {state}")
        self.state = state

    def request_headers(self, token: str) -> list[tuple[bytes, bytes]]:
        """The headers of the next request: what we accept, where to resume, who we are."""
        self._asked = self.cursor if _HEADER_VALUE.fullmatch(self.cursor.encode()) else ""
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Cache-Control": "no-store"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        if self._asked:
            # WHATWG HTML, section 9.2.4: the id goes into the header as UTF-8.
            pairs.append((b"Last-Event-ID", self._asked.encode()))
        return pairs

    def connected(self, headers: Mapping[str, str], *, now: float, wall_clock: float) -> Gap | None:
        """
        Enter OPEN; return a Gap when this connection cannot be a seamless continuation.

        It cannot when there was no id to ask for on a reconnect, or when the answer's `Last-Event-ID` header names another
        id than the one asked for (the Mercure protocol, section "Reconciliation").
        """
        self.move(ConnectionState.OPEN)
        self._open_since = now
        self.opened += 1
        answered = headers.get("last-event-id")
        reason = ""
        if self._asked and answered is not None and answered != self._asked:
            reason = "the server no longer has the events after this id"
        elif self.cursor and not self._asked:
            reason = "no header can carry the last event id, so nothing can be resumed"
        elif not self._asked and self.opened > 1:
            reason = "the server sends no event ids, so nothing can be resumed"
        if not reason:
            return None
        return Gap(last_event_id=self.cursor, since=self.last_event_at, until=wall_clock, reason=reason)

    def proved_good(self, now: float) -> bool:
        """Whether the connection that just ended had stayed open for `healthy_after` seconds."""
        since, self._open_since = self._open_since, None
        return since is not None and now - since >= self._healthy_after


def check_head(url: str, status: int, headers: Mapping[str, str], body_start: bytes, *, wall_clock: float) -> bool:
    """
    Judge an answer that is no redirect: True opens the stream, False (204) ends the run quietly.

    Raises:
        TransientStreamError: 408, 425, 429 or 5xx; `retry_after` as the server asked.
        FatalStreamError: any other status, or a content type that is not `text/event-stream`.
    """
    where = redact_url(url)
    if status == 204:
        return False
    if is_event_stream(status, headers):
        return True
    if status == 200:
        kind = headers.get("content-type", "")
        raise FatalStreamError(
            f"{where} answered with content type {kind or 'none'!r} where text/event-stream is needed: is this the stream's "
            f"address? The answer begins {_shown(body_start)}",
            status=status,
            headers=headers,
            body_start=body_start,
        )
    if status in _RETRIED or status >= 500:
        raise TransientStreamError(
            f"{where} answered {status}",
            status=status,
            headers=headers,
            retry_after=retry_after_seconds(headers.get("retry-after"), wall_clock),
        )
    raise FatalStreamError(
        f"{where} answered {status}{_ADVICE.get(status, '')}. The answer begins {_shown(body_start)}",
        status=status,
        headers=headers,
        body_start=body_start,
    )


def is_event_stream(status: int, headers: Mapping[str, str]) -> bool:
    """Whether the body of this answer is the stream."""
    kind = headers.get("content-type", "")
    return status == 200 and kind.partition(";")[0].strip().lower() == "text/event-stream"


def redirect_target(url: str, status: int, headers: Mapping[str, str]) -> str | None:
    """The address a redirect leads to, None when the answer is no redirect; FatalStreamError when it leads nowhere."""
    if status not in _REDIRECTS:
        return None
    location = headers.get("location", "")
    target = _address(url, location)
    if target is None:
        raise FatalStreamError(
            f"{redact_url(url)} redirects ({status}) to what is no http or https address",
            status=status,
            headers=headers,
        )
    return target


def same_origin(one: str, other: str) -> bool:
    """Whether two URLs have scheme, host and port in common (RFC 6454): a token goes to no other origin."""
    return _origin(one) == _origin(other)


def retry_after_seconds(value: str | None, wall_clock: float) -> float | None:
    """Read a `Retry-After` header (RFC 9110, section 10.2.3): seconds, or a date. None when absent or unreadable."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - wall_clock)
    except (ValueError, TypeError, OverflowError):
        return None


_ADVICE: Final = {
    400: ": the request is not understood; check the URL",
    401: ": the token is missing or not accepted",
    403: ": the token does not allow this stream",
    404: ": there is no such stream; check the product id in the URL",
    410: ": this stream is gone for good",
}


def _address(base: str, location: str) -> str | None:
    try:
        target = urljoin(base, location)
        parts = urlsplit(target)
        httpx.URL(target).host  # noqa: B018 - a host that is no IDNA name shows only when it is asked for
        usable = bool(location) and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, httpx.InvalidURL):  # idna.IDNAError is a ValueError
        return None
    return target if usable else None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, parts.port or default


def _shown(body_start: bytes) -> str:
    return repr(body_start[:BODY_START].decode("utf-8", "replace")) if body_start else "with nothing"
