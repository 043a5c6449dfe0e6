"""
Our clients and the floors they are compared with: one function each, run in a process of its own.

`python -m tests.benchmarks.candidates NAME URL EVENTS` prints one line of JSON, see `tally.Outcome`.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final
from urllib.parse import urlsplit

import httpx

from connector_sdk import AsyncConnectorClient, ConnectorClient, quick
from connector_sdk.payloads import ActionsPayload, Payload
from tests.benchmarks.server import ACTIONS, EVENT_BYTES, SENT_AT
from tests.benchmarks.tally import Tally, main, report_when_done

__all__ = ["CALLBACK_SECONDS", "CANDIDATES"]

#: How long the slow callback sleeps.
CALLBACK_SECONDS: Final = 0.001
_FOREVER: Final = 3600.0


def httpx_raw(url: str, tally: Tally) -> None:
    """httpx's `aiter_raw`, one chunk an event, bytes only: the least that any client on httpx pays."""

    async def run() -> None:
        size = 0
        async with httpx.AsyncClient(timeout=None) as client, client.stream("GET", url) as response:
            async for chunk in response.aiter_raw():
                size += len(chunk)
                tally.reach(size // EVENT_BYTES)  # a chunk at the end of what the socket gave comes in two pieces

    report_when_done(tally)
    asyncio.run(run())


def ours_async(url: str, tally: Tally) -> None:
    """AsyncConnectorClient, a counting coroutine function, overflow="block"."""
    _run_async(AsyncConnectorClient(url, overflow="block"), tally)


def ours_async_default(url: str, tally: Tally) -> None:
    """AsyncConnectorClient with every option at its default."""
    _run_async(AsyncConnectorClient(url), tally)


def ours_sync(url: str, tally: Tally) -> None:
    """ConnectorClient, a plain counting function in a worker thread, overflow="block"."""

    def count(payload: ActionsPayload) -> None:
        _check(payload, tally)
        tally.take()

    client = ConnectorClient(url, overflow="block").on_actions(count)
    report_when_done(tally, lambda: _account(client, tally))
    client.run()


def ours_sync_quick(url: str, tally: Tally) -> None:
    """ConnectorClient, a counting function declared quick."""

    @quick
    def count(payload: ActionsPayload) -> None:
        _check(payload, tally)
        tally.take()

    client = ConnectorClient(url, overflow="block").on_actions(count)
    report_when_done(tally, lambda: _account(client, tally))
    client.run()


def ours_into_buffer(url: str, tally: Tally) -> None:
    """AsyncConnectorClient straight into an EventBuffer that has place for everything."""
    from connector_sdk.buffers.memory import EventBuffer

    class CountingBuffer(EventBuffer):
        @quick
        def add(self, payload: Payload) -> None:
            super().add(payload)
            tally.take()

    buffer = CountingBuffer(max_size=tally.expected)
    client = AsyncConnectorClient(url, overflow="block").into(buffer)
    report_when_done(tally, lambda: _account(client, tally) or _size(buffer.size, tally))
    asyncio.run(client.run())


def ours_latency(url: str, tally: Tally) -> None:
    """AsyncConnectorClient, the time from the server's send to the first line of the callback."""

    async def note(payload: ActionsPayload) -> None:
        tally.take_sent_at(payload.forwarded_at)

    client = AsyncConnectorClient(url, overflow="block").on_actions(note)
    report_when_done(tally, lambda: _account(client, tally))
    asyncio.run(client.run())


def socket_latency(url: str, tally: Tally) -> None:
    """An asyncio protocol that reads the time out of the bytes it is given: the least that an asyncio client pays."""
    parts = urlsplit(url)

    class Reader(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.WriteTransport)
            transport.write(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())

        def data_received(self, data: bytes) -> None:
            at = data.find(SENT_AT)
            while at >= 0:
                end = data.index(b"}", at)
                tally.take_sent_at(float(data[at + len(SENT_AT) : end]))
                at = data.find(SENT_AT, end)

    async def run() -> None:
        await asyncio.get_running_loop().create_connection(Reader, parts.hostname or "", parts.port or 0)
        await asyncio.sleep(_FOREVER)

    report_when_done(tally)
    asyncio.run(run())


def ours_slow_callback(url: str, tally: Tally) -> None:
    """AsyncConnectorClient, a callback that sleeps; the order within each session is checked."""
    last_of_session: dict[str, str] = {}

    async def sleep(payload: ActionsPayload) -> None:
        tally.begin()
        await asyncio.sleep(CALLBACK_SECONDS)
        session, event_id = payload.session_id or "", payload.event_id or ""
        if last_of_session.get(session, "") >= event_id:
            tally.wrong = "the order within a session was lost"
        last_of_session[session] = event_id
        tally.take()

    client = AsyncConnectorClient(url, overflow="block").on_actions(sleep)
    report_when_done(tally, lambda: _account(client, tally))
    asyncio.run(client.run())


def one_after_the_other(_url: str, tally: Tally) -> None:
    """The same sleeps in a plain loop, without any client."""

    async def run() -> None:
        tally.begin()
        for _ in range(tally.expected):
            await asyncio.sleep(CALLBACK_SECONDS)
            tally.take()
        await asyncio.sleep(_FOREVER)

    report_when_done(tally)
    asyncio.run(run())


def _run_async(client: AsyncConnectorClient, tally: Tally) -> None:
    async def count(payload: ActionsPayload) -> None:
        _check(payload, tally)
        tally.take()

    client.on_actions(count)
    report_when_done(tally, lambda: _account(client, tally))
    asyncio.run(client.run())


def _check(payload: ActionsPayload, tally: Tally) -> None:
    if len(payload.actions) != ACTIONS:
        tally.wrong = "an event is not typed as it should be"


def _account(client: AsyncConnectorClient | ConnectorClient, tally: Tally) -> str:
    """What is wrong with the client's own account of the events that were counted."""
    time.sleep(0.1)  # the last callback returns
    ledger = client.stats().ledger
    if not ledger.balanced or ledger.received != tally.expected or ledger.delivered != tally.received:
        return f"{tally.received} of {tally.expected} events were counted, and the ledger says {ledger}"
    return ""


def _size(size: int, tally: Tally) -> str:
    return "" if size == tally.expected else f"the buffer holds {size} events of {tally.expected}"


CANDIDATES: Final = (
    httpx_raw, ours_async, ours_async_default, ours_sync, ours_sync_quick, ours_into_buffer, ours_latency,
    socket_latency, ours_slow_callback, one_after_the_other,
)  # fmt: skip

if __name__ == "__main__":
    main(CANDIDATES)
