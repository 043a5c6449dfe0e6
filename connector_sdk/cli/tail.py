"""`connector-sdk tail`: watch a connector, for people (one coloured line an action) or for programs (JSON lines)."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Final

import msgspec
from rich.text import Text

from connector_sdk.cli.console import BadInputError, FailedError, OutputConsole, on_signal, say, styled, tint
from connector_sdk.client.session import ConnectionState
from connector_sdk.client.sync import ConnectorClient
from connector_sdk.errors import FatalStreamError, RetriesExhaustedError
from connector_sdk.ledger import DropReason
from connector_sdk.observe import Observer, redact_url
from connector_sdk.payloads import ActionsPayload, Payload, SummaryPayload

__all__ = ["Filter", "as_json", "as_lines", "tail"]

_FIRST_ATTEMPTS: Final = 3  # failures in a row before the first connection that call a URL wrong
_FIRST_ANSWER: Final = 15.0  # seconds for the first answer
_SHORT_ID: Final = 12  # characters of a session id on the screen


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which events are shown: *types* (none: all), *session* (an id or how it begins), at most *limit* events."""

    types: frozenset[str] = frozenset()
    session: str = ""
    limit: int | None = None

    def wants(self, payload: Payload) -> bool:
        """Whether *payload* is shown."""
        return (not self.types or payload.type in self.types) and (payload.session_id or "").startswith(self.session)


def tail(
    url: str,
    *,
    token: str = "",
    is_json: bool = False,
    wanted: Filter,
    since_id: str = "",
    max_retries: int | None = None,
) -> None:
    """
    Show what a connector sends until Ctrl-C, SIGTERM, the limit or the server's 204, all of which return.

    Status goes to stderr, events to stdout. Raises BadInputError when there was never a connection (a wrong URL, a port
    nobody listens on, a server that speaks something else), FailedError when a later one cannot be had again,
    BrokenPipeError when nobody reads the events any more, and ConfigurationError for an option that cannot work.
    """
    door = _Door(redact_url(url), patience=_FIRST_ATTEMPTS if max_retries is None else None)
    client = ConnectorClient(
        url,
        token,
        overflow="block",
        max_retries=max_retries,
        checkpoint=_StartAfter(since_id),
        observer=door,
        initial_backoff=0.5,
    )
    door.close = client.stop
    show = _json_writer() if is_json else _line_writer()
    shown = 0
    unanswered = threading.Timer(_FIRST_ANSWER, door.no_answer)
    unanswered.daemon = True
    unanswered.start()
    try:
        with on_signal(lambda _number: door.end()), closing(_events(client, door)) as events:
            for payload in events:
                if wanted.wants(payload):
                    show(payload)
                    shown += 1
                    if shown == wanted.limit:
                        break
    finally:
        unanswered.cancel()
    say(_account(client, shown))


def _events(client: ConnectorClient, door: _Door) -> Generator[Payload]:
    """Yield what comes; an end that is nobody's wish is one of our two errors."""
    try:
        yield from client
    except FatalStreamError as error:
        raise BadInputError(str(error)) from error
    except RetriesExhaustedError as error:
        if door.has_opened:
            raise FailedError(f"{door.url}: lost, and {error.attempts} attempts to connect again failed") from error
        raise BadInputError(_unreachable(door.url, str(error.__cause__ or error))) from error
    if door.refusal:
        raise BadInputError(_unreachable(door.url, door.refusal))


class _Door(Observer):
    """
    Watches the connection: tells the user how it goes, and closes the client when there never was one.

    Args:
        url: for messages; without secrets.
        patience: failed attempts before the first connection after which the URL is called wrong; None leaves that to
            the client's `max_retries`. Once a connection was open, only the client decides.
    """

    def __init__(self, url: str, *, patience: int | None) -> None:
        self.url = url
        self.has_opened = False
        self.refusal = ""
        self.close: Callable[[], object] = lambda: None
        self._patience = patience
        self._failures = 0
        self._has_ended = False

    def end(self) -> None:
        """The user wants to end; safe in a signal handler."""
        self._has_ended = True
        self.close()

    def connection_state(self, *, url: str, state: str, reason: str) -> None:
        """Tell of connections found and lost."""
        if self._has_ended and state != ConnectionState.CLOSED:
            self.close()  # end() came before there was anything to close
            return
        if state == ConnectionState.OPEN:
            say(f"connected {'again' if self.has_opened else 'to ' + self.url + ' (Ctrl-C ends)'}")
            self.has_opened = True
        elif state == ConnectionState.BACKOFF and not self.has_opened:
            self._failures += 1
            if self._failures == self._patience:
                self._refuse(reason)
        elif state == ConnectionState.BACKOFF:
            say(f"connection lost ({reason}); trying again")

    def gap_found(self, *, last_event_id: str, since: float | None) -> None:
        """Tell of events that may be missing."""
        say(f"the server could not resume after event {last_event_id or '(it sends no ids)'}: events may be missing")

    def no_answer(self) -> None:
        """The time for the first answer is over."""
        if not self.has_opened and not self.refusal:
            self._refuse(f"it does not answer (waited {_FIRST_ANSWER:g} s)")

    def _refuse(self, reason: str) -> None:
        self.refusal = reason
        self.close()


class _StartAfter:
    """A checkpoint that only says where to begin; "" is from now on."""

    def __init__(self, event_id: str) -> None:
        self._event_id = event_id

    async def load(self, stream: str) -> str | None:
        """Return the id to start after."""
        return self._event_id or None

    async def save(self, stream: str, event_id: str) -> None:
        """Keep nothing: a look at a stream leaves no trace."""


def as_json(payload: Payload) -> bytes:
    """One JSON object on one line: `event_id` (null without one), then what the server sent."""
    fields = {"event_id": None, "type": payload.type, **payload.to_dict()}
    fields["event_id"] = payload.event_id  # ours, if the server's JSON has a field of that name
    return msgspec.json.encode(fields) + b"\n"


def as_lines(payload: Payload) -> Iterator[Text]:
    """One line for each action, one for a summary or an event of another type."""
    name = payload.session_id or "unknown"
    session = (f"{name[:_SHORT_ID]:<{_SHORT_ID}} ", tint(payload.session_id))
    if isinstance(payload, ActionsPayload):
        for action in payload.actions:
            kind = (f"{action.type:<9} ", "red" if action.type == "error" else "dim")
            what = action.description or action.title
            yield styled(
                (_clock(action.timestamp_start), "dim"), session, kind, (what, ""), (f"  {action.canonical_url}", "dim")
            )
    elif isinstance(payload, SummaryPayload):
        yield styled((_clock(payload.forwarded_at), "dim"), session, ("summary   ", "bold"), (payload.summary, "bold"))
    else:
        text = payload.to_text()
        yield styled((_clock(payload.forwarded_at), "dim"), session, (f"{payload.type:<9} ", "bold"), (text, ""))


def _clock(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%H:%M:%S} "
    except (ValueError, OverflowError, OSError):  # a time outside the calendar is shown as none
        return "--:--:-- "


def _json_writer() -> Callable[[Payload], None]:
    out = sys.stdout.buffer

    def write(payload: Payload) -> None:
        out.write(as_json(payload))
        out.flush()

    return write


def _line_writer() -> Callable[[Payload], None]:
    console = OutputConsole(highlight=False)
    crop = console.is_terminal  # a line in a file or a pipe is whole

    def write(payload: Payload) -> None:
        for line in as_lines(payload):
            console.print(line, soft_wrap=not crop, crop=crop)

    return write


def _account(client: ConnectorClient, shown: int) -> str:
    ledger = client.stats().ledger
    repeated = ledger.dropped.get(DropReason.DUPLICATE, 0)
    # What was received and not shown when the user had seen enough is no loss.
    given_up = ledger.dropped_total - repeated - ledger.dropped.get(DropReason.ABANDONED, 0)
    return (
        f"{ledger.received} events received, {shown} shown"
        + (f", {repeated} repeated ones left out" if repeated else "")
        + (f", {given_up} given up" if given_up else "")
    )


def _unreachable(url: str, reason: str) -> str:
    return f"no connector at {url}: {reason.rstrip('.')} (`connector-sdk serve` starts one to try)"
