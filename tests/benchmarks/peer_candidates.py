"""
The peers, each used as its own documentation says, with a callback that counts: run by the Python of .venv-bench.

`python -m tests.benchmarks.peer_candidates NAME URL EVENTS`, as `candidates`. What is imported here is not installed beside
the library, so it is imported by name and untyped.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import time
from typing import Any, Final

from tests.benchmarks.tally import Tally, main, report_when_done

__all__ = ["CANDIDATES"]

_CALLBACK_SECONDS: Final = 0.001  # as candidates.CALLBACK_SECONDS, which this environment cannot import


def autoplay_async(url: str, tally: Tally) -> None:
    """autoplay-sdk's AsyncConnectorClient, a counting coroutine function."""

    async def count(_payload: Any) -> None:
        tally.take()

    _autoplay_async(url, tally, count)


def autoplay_latency(url: str, tally: Tally) -> None:
    """autoplay-sdk's AsyncConnectorClient, the time from the server's send to the first line of the callback."""

    async def note(payload: Any) -> None:
        tally.take_sent_at(payload.forwarded_at)

    _autoplay_async(url, tally, note)


def autoplay_slow_callback(url: str, tally: Tally) -> None:
    """autoplay-sdk's AsyncConnectorClient, a callback that sleeps."""

    async def sleep(_payload: Any) -> None:
        tally.begin()
        await asyncio.sleep(_CALLBACK_SECONDS)
        tally.take()

    _autoplay_async(url, tally, sleep)


def autoplay_sync(url: str, tally: Tally) -> None:
    """autoplay-sdk's ConnectorClient with a queue that has place for everything, so that it loses nothing."""
    _autoplay_sync(url, tally, max_queue_size=tally.expected)


def autoplay_sync_default(url: str, tally: Tally) -> None:
    """autoplay-sdk's ConnectorClient with its own options."""
    _autoplay_sync(url, tally)


def autoplay_sync_slow_callback(url: str, tally: Tally) -> None:
    """autoplay-sdk's ConnectorClient with its own options, a callback that sleeps in its thread."""

    def sleep(_payload: Any) -> None:
        tally.begin()
        time.sleep(_CALLBACK_SECONDS)
        tally.take()

    client = importlib.import_module("autoplay_sdk").ConnectorClient(url=url, token="none")
    client.on_actions(sleep)
    report_when_done(tally)
    client.run()


def launchdarkly_json(url: str, tally: Tally) -> None:
    """launchdarkly-eventsource's SSEClient in a loop, `json.loads` of each event."""
    client = importlib.import_module("ld_eventsource").SSEClient(url)
    report_when_done(tally)
    for event in client.events:
        json.loads(event.data)
        tally.take()


def httpx_sse_json(url: str, tally: Tally) -> None:
    """httpx-sse's `aiter_sse` in a loop, `json.loads` of each event."""
    httpx, httpx_sse = importlib.import_module("httpx"), importlib.import_module("httpx_sse")

    async def run() -> None:
        async with (
            httpx.AsyncClient(timeout=None) as client,
            httpx_sse.aconnect_sse(client, "GET", url) as source,
        ):
            async for event in source.aiter_sse():
                json.loads(event.data)
                tally.take()

    report_when_done(tally)
    asyncio.run(run())


def _autoplay_async(url: str, tally: Tally, callback: Any) -> None:
    client = importlib.import_module("autoplay_sdk").AsyncConnectorClient(url=url, token="none")
    client.on_actions(callback)
    report_when_done(tally)
    asyncio.run(client.run())


def _autoplay_sync(url: str, tally: Tally, **options: Any) -> None:
    def count(_payload: Any) -> None:
        tally.take()

    client = importlib.import_module("autoplay_sdk").ConnectorClient(url=url, token="none", **options)
    client.on_actions(count)
    report_when_done(tally)
    client.run()


CANDIDATES: Final = (
    autoplay_async, autoplay_latency, autoplay_slow_callback, autoplay_sync, autoplay_sync_default,
    autoplay_sync_slow_callback, launchdarkly_json, httpx_sse_json,
)  # fmt: skip

if __name__ == "__main__":
    main(CANDIDATES)
