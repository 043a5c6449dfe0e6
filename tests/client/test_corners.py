"""Corners that a hostile review found: each test failed once."""

from __future__ import annotations

import asyncio
import threading
import time

import anyio
import pytest

from connector_sdk import AsyncConnectorClient, MemoryCheckpoint, Retry, quick
from connector_sdk.errors import ClientStateError, FatalStreamError, HandlerError
from connector_sdk.payloads import Payload
from connector_sdk.testing import ConnectorServer, Raw, Redirect, Status
from tests.client.harness import PATIENCE, Collector, Faces, actions, dropped, summary

OK = b'{"type":"summary","session_id":"s","summary":"ok"}'


def test_an_iteration_never_stores_an_id_past_what_it_has_in_hand(faces: Faces) -> None:
    store = MemoryCheckpoint()
    body = b"id: 1\ndata: " + OK + b"\n\nid: 2\ndata: " + OK + b"\n\nid: 3\ndata: oops\n\n"
    with ConnectorServer([], script=[Raw(body, then="hold")]) as server:
        client = faces.client(server.url, checkpoint=store)
        with pytest.raises(ZeroDivisionError):
            faces.iterate(client, lambda payload: bool(1 // 0))
    assert client.stats().finished_event_id == ""
    assert client.stats().checkpoint_event_id == ""
    assert client.stats().ledger.balanced


def test_plain_and_async_callbacks_take_turns_within_a_session(faces: Faces) -> None:
    collector = Collector()
    events = [actions(n) if n % 2 else summary(n) for n in range(60)]
    with ConnectorServer(events) as server:
        client = faces.client(server.url).on_actions(collector.plain).on_summary(collector.coroutine)
        with faces.run(client):
            payloads = collector.wait(60)
    assert [payload.event_id for payload in payloads] == [str(n) for n in range(1, 61)]


def test_a_slow_callback_of_one_kind_does_not_delay_the_other_kind(faces: Faces) -> None:
    collector = Collector()
    opened = threading.Event()

    async def slow(payload: Payload) -> None:
        while payload.session_id == "slow" and not opened.is_set():
            await anyio.sleep(0.005)
        collector.plain(payload)

    with ConnectorServer([actions(0, "slow"), actions(1, "x"), summary(2, "x")]) as server:
        client = faces.client(server.url).on_actions(slow).on_summary(collector.plain)
        with faces.run(client):
            assert {payload.session_id for payload in collector.wait(2)} == {"x"}
            opened.set()
            collector.wait(3)


def test_a_callback_that_awaits_something_cancelled_is_a_failed_callback() -> None:
    faces = Faces("asyncio")
    collector = Collector()

    async def callback(payload: Payload) -> None:
        if payload.event_id == "2":
            task = asyncio.ensure_future(asyncio.sleep(60))
            task.cancel()
            await task
        collector.plain(payload)

    with ConnectorServer([summary(n) for n in range(6)]) as server:
        client = faces.client(server.url).on_summary(callback)
        with faces.run(client):
            collector.wait(5)
    assert dropped(client) == {"handler_failed": 1}


def test_a_thread_that_was_left_alone_takes_nothing_more() -> None:
    faces = Faces("sync")
    handled: list[str | None] = []
    entered, opened, ended = threading.Event(), threading.Event(), threading.Event()

    def stuck(payload: Payload) -> None:
        handled.append(payload.event_id)
        entered.set()
        assert opened.wait(PATIENCE)
        ended.set()

    with ConnectorServer([summary(n) for n in range(4)]) as server:
        client = faces.client(server.url).on_summary(stuck)
        running = faces.run(client).start()
        assert entered.wait(PATIENCE)
        assert running.stop(timeout=0.1).running == 1
        collector = Collector()
        client.remove(stuck)
        client.on_summary(collector.plain)
        with faces.run(client):
            collector.wait(4)
            opened.set()
            assert ended.wait(PATIENCE)
    assert handled == ["1"]
    ledger = client.stats().ledger
    assert ledger.balanced
    assert ledger.buffered == 0


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_callback_that_wants_the_process_to_end_ends_the_run(faces: Faces, error: type[BaseException]) -> None:
    def callback(payload: Payload) -> None:
        raise error

    with ConnectorServer([summary(n) for n in range(4)]) as server:
        client = faces.client(server.url).on_summary(callback)
        running = faces.run(client).start()
        running.join()
    assert isinstance(running.error, HandlerError)
    assert isinstance(running.error.__cause__, error)
    assert client.stats().ledger.balanced


@pytest.mark.parametrize("is_quick", [False, True])
def test_the_worst_outcome_of_several_callbacks_counts(faces: Faces, is_quick: bool) -> None:
    called = threading.Event()

    def park(payload: Payload) -> None:
        raise ValueError("park")

    def log(payload: Payload) -> None:
        called.set()
        raise ValueError("log")

    with ConnectorServer([summary(0)]) as server:
        client = faces.client(server.url)
        client.on_summary(quick(park) if is_quick else park, on_failure="park")
        client.on_summary(quick(log) if is_quick else log)
        with faces.run(client):
            assert called.wait(PATIENCE)
    assert client.stats().parked == 1


@pytest.mark.parametrize("kind", ["plain", "coroutine", "quick"])
def test_after_the_policy_stop_nothing_of_the_session_is_handled(faces: Faces, kind: str) -> None:
    handled: list[str | None] = []

    def plain(payload: Payload) -> None:
        handled.append(payload.event_id)
        raise RuntimeError("disk full")

    async def coroutine(payload: Payload) -> None:
        plain(payload)

    fn = {"plain": plain, "coroutine": coroutine, "quick": quick(lambda payload: plain(payload))}[kind]
    with ConnectorServer([summary(n) for n in range(10)]) as server:
        client = faces.client(server.url).on_summary(fn, on_failure="stop")
        running = faces.run(client).start()
        running.join()
    assert handled == ["1"]
    assert client.stats().ledger.balanced


def test_stop_inside_a_plain_callback_with_retries_returns_at_once(faces: Faces) -> None:
    took: list[float] = []

    def callback(payload: Payload) -> None:
        began = time.monotonic()
        client.stop(timeout=8.0)
        took.append(time.monotonic() - began)

    with ConnectorServer([summary(0)]) as server:
        client = faces.client(server.url).on_summary(callback, on_failure=Retry())
        running = faces.run(client).start()
        running.join()
    assert took[0] < 4.0
    assert client.stats().ledger.delivered == 1


def test_a_second_stop_shortens_the_first(faces: Faces) -> None:
    entered, opened = threading.Event(), threading.Event()

    def stuck(payload: Payload) -> None:
        entered.set()
        assert opened.wait(PATIENCE)

    with ConnectorServer([summary(0)]) as server:
        client = faces.client(server.url).on_summary(stuck)
        running = faces.run(client).start()
        assert entered.wait(PATIENCE)
        began = time.monotonic()
        first = threading.Thread(target=lambda: client.stop(timeout=15.0) and None)
        first.start()
        client.stop(drain=False)
        running.join()
        assert time.monotonic() - began < 10.0
        opened.set()
        first.join(PATIENCE)


def test_a_stop_right_after_run_in_background_counts() -> None:
    async def main() -> None:
        client = AsyncConnectorClient(server.url).on_summary(Collector().plain)
        for _ in range(3):
            task = client.run_in_background()
            with pytest.raises(ClientStateError):
                client.run_in_background()
            await client.stop()
            await task
            assert client.state == "closed"
        task = client.run_in_background()
        await client.wait_until_open(PATIENCE)
        await client.stop()
        await task

    with ConnectorServer([]) as server:
        anyio.run(main)


@pytest.mark.parametrize("event_id", ["é", " x", "\x01"])
def test_any_id_can_be_resumed_from_or_is_a_gap(faces: Faces, event_id: str) -> None:
    collector = Collector()
    body = f"id: {event_id}\ndata: ".encode() + OK + b"\n\n"
    with ConnectorServer([summary(1)], script=[Raw(body)]) as server:
        client = faces.client(server.url).on_summary(collector.plain)
        with faces.run(client):
            collector.wait(2)
        asked = server.requests[1].last_event_id
    assert (asked is None) == (event_id != "é")
    assert client.stats().gaps == 1, "no header can carry it, or this server does not know it: either way it is said"


@pytest.mark.parametrize("target", ["http://[bad/", "http://h:99999/", "http://xn--a/", "ftp://h/"])
def test_a_redirect_to_nowhere_is_fatal(faces: Faces, target: str) -> None:
    with ConnectorServer([], script=[Redirect(target)] * 3) as server:
        running = faces.run(faces.client(server.url, max_retries=0)).start()
        running.join()
    assert isinstance(running.error, FatalStreamError | ConnectionError) or "attempts" in str(running.error)


def test_a_stream_in_a_compression_we_cannot_read_is_fatal(faces: Faces) -> None:
    head = {"Content-Type": "text/event-stream", "Content-Encoding": "br"}
    with ConnectorServer([], script=[Status(200, head, b"\x0b\x02\x80")] * 2) as server:
        running = faces.run(faces.client(server.url)).start()
        running.join()
    assert isinstance(running.error, FatalStreamError)
    assert "br" in str(running.error)
