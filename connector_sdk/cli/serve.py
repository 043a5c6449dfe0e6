"""`connector-sdk serve`: a connector to develop against, on this machine."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterable, Iterator
from typing import Final

from connector_sdk.cli.console import BadInputError, FailedError, printable, signals
from connector_sdk.cli.source import Played, Source
from connector_sdk.errors import ConfigurationError
from connector_sdk.testing.records import Request
from connector_sdk.testing.script import Cut, Step
from connector_sdk.testing.server import ConnectorServer

__all__ = ["LOCAL_HOSTS", "serve"]

LOCAL_HOSTS: Final = ("127.0.0.1", "localhost")
_HISTORY: Final = 10_000  # events that can be resumed; what bounds the memory of an endless run
_LOOK: Final = 0.25  # seconds between looks at the server
_REPORT: Final = 10.0  # seconds between lines on progress
_CUT_WITHIN: Final = 200  # bytes of an event that are sent at most before it is cut


def serve(
    source: Source,
    *,
    rate: float = 20.0,
    loop: bool = False,
    host: str = "127.0.0.1",
    port: int = 8765,
    token: str = "",
    cut_every: int | None = None,
) -> None:
    """
    Serve *source* at `http://127.0.0.1:port/stream/demo` until Ctrl-C or SIGTERM, which return.

    Events have ids and the last 10,000 can be resumed; a heartbeat comes every 30 s in which nothing else does. Time
    starts with the first client: *rate* events a second from then on, whether or not anybody listens. After the last
    event (without *loop*) clients are told that it is over (204). Port 0 is any that is free. With *cut_every*, each
    connection is cut in mid-event after so many events.

    Raises BadInputError when the port is taken or *host* is another machine's.
    """
    if host not in LOCAL_HOSTS:
        raise BadInputError(
            f"--host {host}: a development connector listens on 127.0.0.1 only, other machines cannot reach it"
        )
    tape = _Tape(source.payloads(loop=loop))
    server = ConnectorServer(
        tape,
        rate=rate,
        history=_HISTORY,
        replay=False,
        token=token or None,
        script=() if cut_every is None else _cuts(cut_every),
        end="stop",
        port=port,
    )
    try:
        server.start()
    except ConfigurationError as error:
        raise BadInputError(
            f"port {port} cannot be used ({error.__cause__}); --port 0 takes any that is free"
        ) from error
    try:
        with signals():
            _announce(server, source, rate=rate, loop=loop, token=token, cut_every=cut_every)
            _watch(server, tape)
    except KeyboardInterrupt:
        pass
    finally:
        server.close()
    _line(
        f"ended: {tape.played} events have happened, {server.sent} were sent in answer to {len(server.requests)} requests"
    )


class _Tape:
    """The payloads, and whether there are more. Asked on the server's thread, looked at from ours."""

    def __init__(self, payloads: Iterator[Played]) -> None:
        self._payloads = payloads
        self.played = 0
        #: Set after the last payload.
        self.ended = threading.Event()
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[Played]:
        try:
            for payload in self._payloads:
                self.played += 1
                yield payload
        except Exception as error:  # noqa: BLE001 - a log that turns out to be damaged; told by _watch
            self.error = error
        finally:
            self.ended.set()


def _cuts(every: int) -> Iterable[Step]:
    dice = random.Random(every)
    return (Cut(after_events=every, into_next=dice.randint(1, _CUT_WITHIN)) for _ in itertools.count())


def _announce(
    server: ConnectorServer, source: Source, *, rate: float, loop: bool, token: str, cut_every: int | None
) -> None:
    _line(f"serving {source.label}{', again and again' if loop else ''}")
    _line(f"at {server.url}, {rate:g} events a second from the first connection on; Ctrl-C ends")
    if cut_every is not None:
        _line(f"each connection is cut in mid-event after {cut_every} events: a good client loses nothing by it")
    secret = " --token ..." if token else ""
    _line(f"to watch it, in another terminal: connector-sdk tail {server.url}{secret}")


def _watch(server: ConnectorServer, tape: _Tape) -> None:
    """Tell what happens until a signal ends it; FailedError when the payloads cannot be read to their end."""
    seen = told = 0
    quiet = 0.0
    told_end = False
    pause = threading.Event()
    while True:
        pause.wait(_LOOK)
        quiet += _LOOK
        requests = server.requests
        for request in requests[seen:]:
            _line(_came(request))
        seen = len(requests)
        if quiet >= _REPORT:
            quiet = 0.0
            if tape.played != told:
                told = tape.played
                _line(f"{told} events have happened, {server.sent} sent, {server.connections} connected now")
        if tape.ended.is_set() and not told_end:
            told_end = True
            if tape.error is not None:
                raise FailedError(str(tape.error)) from tape.error
            _line(f"that was all: {tape.played} events. Clients that come back are told so (--loop plays for ever)")


def _came(request: Request) -> str:
    resumes = f", resumes after event {request.last_event_id}" if request.last_event_id else ""
    return f"request {request.number}: {request.method} {request.path.partition('?')[0]}{resumes}"


def _line(text: str) -> None:
    print(printable(text), flush=True)
