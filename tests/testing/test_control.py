"""Controlling a running server, watching it, stopping it, and the fixture."""

from __future__ import annotations

import gc
import inspect
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress

import anyio
import httpx
import pytest

import connector_sdk.testing
from connector_sdk import AsyncConnectorClient, ConnectorClient
from connector_sdk.testing import ConnectorServer, Cut, Refuse, Silence, Stall, Status
from connector_sdk.testing.plugin import ConnectorServerFactory
from tests.testing.wire import EVENTS, Wire, block, read_body


def is_refused(server: ConnectorServer) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("reset", [False, True])
def test_cut_ends_all_connections_now(reset: bool) -> None:
    with ConnectorServer(EVENTS, script=[Silence(head=False), Silence(), Stall(60)]) as server:
        wires = [Wire(server) for _ in range(6)]
        server.wait_for_connections(6)
        assert server.cut(reset=reset) == 6
        assert server.connections == 0
        for wire in wires:
            with wire:
                if reset:
                    with pytest.raises(ConnectionResetError):
                        wire.read_all()
                else:
                    wire.read_all()
                assert not wire.is_finished
        assert server.cut() == 0


def test_stop_accepting_refuses_and_keeps_the_port() -> None:
    with ConnectorServer(EVENTS[:1]) as server, Wire(server) as wire:
        wire.read_until(block(1))
        for _ in range(2):
            server.stop_accepting()
            server.stop_accepting()
            assert is_refused(server)
            server.start_accepting()
            server.start_accepting()
            assert not is_refused(server)
        server.publish(EVENTS[1])
        wire.read_until(block(2))  # what was open stays open
        server.stop_accepting()
    with ConnectorServer(port=server.port):
        pass


def test_restart_cuts_and_goes_on_on_the_same_port() -> None:
    with ConnectorServer(EVENTS[:1], script=[Stall(0)]) as server:
        port = server.port
        with Wire(server) as wire:
            wire.read_until(block(1))
            server.restart()
            wire.read_all()
            assert not wire.is_finished
        assert server.port == port
        server.publish(EVENTS[1])
        with Wire(server, "1") as wire:
            wire.read_until(block(2))
            assert wire.chunks == [block(2)]
        server.stop_accepting()
        server.restart()
        assert not is_refused(server)


def test_a_client_that_leaves_is_noticed_at_once() -> None:
    with ConnectorServer(heartbeat=None, script=[Silence(), Silence(head=False), Stall(60)]) as server:
        for _ in range(4):
            with Wire(server):
                server.wait_for_connections(1)
            server.wait_for_connections(0)


def test_waits_end_in_time_and_say_what_was_there() -> None:
    with ConnectorServer(EVENTS) as server:
        with Wire(server) as wire:
            assert [request.number for request in server.wait_for_requests(1)] == [1]
            server.wait_until_sent(5)
            for wait, seen in [
                (server.wait_for_requests, "1 came"),
                (server.wait_for_connections, "there are 1"),
                (server.wait_until_sent, "5 were"),
            ]:
                with pytest.raises(TimeoutError, match=f"{seen}.*0.01 s passed"):
                    wait(6, timeout=0.01)
            wire.read_until(block(5))
        closer = threading.Timer(0.02, server.close)
        closer.start()
        with pytest.raises(TimeoutError, match="the server was closed"):
            server.wait_for_requests(2, timeout=60)
        closer.join()


@pytest.mark.anyio
async def test_serves_async_tests_on_both_event_loops() -> None:
    async with (
        ConnectorServer(EVENTS[:1], script=[Cut("clean", after_events=2)]) as server,
        httpx.AsyncClient() as client,
    ):
        chunks = []
        async with client.stream("GET", server.url) as answer:
            async for chunk in answer.aiter_raw():
                chunks.append(chunk)
                await anyio.to_thread.run_sync(server.wait_until_sent, len(chunks))
                if len(chunks) == 1:
                    server.publish(EVENTS[1])
        assert chunks == [block(1), block(2)]


# The end.


def open_files() -> set[str]:
    return {
        os.readlink(path)
        for path in map("/proc/self/fd/{}".format, os.listdir("/proc/self/fd"))
        if os.path.exists(path)
    }


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_nothing_is_left_behind() -> None:
    def use() -> None:
        script = [Cut(after_events=1), Status(503), Refuse(), Silence(), Stall(60), Cut(how="reset")]
        with ConnectorServer(EVENTS, script=script, rate=1000, heartbeat=0.01) as server:
            wires = [Wire(server) for _ in range(8)]
            idle = socket.create_connection(("127.0.0.1", server.port))  # never says what it wants
            server.wait_for_requests(8)
            server.stop_accepting()
        idle.close()
        for wire in wires:
            wire.__exit__(None, None, None)

    gc.collect()
    threads, files = set(threading.enumerate()), open_files()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(5):
            use()
        gc.collect()
    assert set(threading.enumerate()) <= threads
    assert open_files() <= files
    assert not seen


@pytest.mark.busy
def test_stops_at_once_whatever_goes_on() -> None:
    server = ConnectorServer(iter(lambda: b"x" * 100_000, b""), history=1, script=[Silence(), Stall(60)]).start()
    wires = [Wire(server) for _ in range(3)]
    server.wait_for_connections(3)
    begin = time.monotonic()
    server.close()
    server.close()
    assert time.monotonic() - begin < 10, "and not the minute of the stall"
    for wire in wires:
        with wire:
            with suppress(ConnectionResetError):
                wire.read_all()
            assert not wire.is_finished


def test_a_server_that_never_ran_can_be_closed() -> None:
    ConnectorServer(EVENTS).close()


def broken() -> Iterator[bytes]:
    yield EVENTS[0]
    raise LookupError("no more of this")


def test_what_the_iterator_raises_ends_the_events_and_comes_out_at_the_end() -> None:
    server = ConnectorServer(broken(), end="close").start()
    assert read_body(server) == block(1)
    with pytest.raises(LookupError, match="no more of this"):
        server.close()


def test_the_error_of_the_test_comes_first() -> None:
    def the_test() -> None:
        with ConnectorServer(broken(), end="close") as server:
            read_body(server)
            raise AssertionError("the test's own")

    with pytest.raises(AssertionError, match="own") as caught:
        the_test()
    assert "no more of this" in caught.value.__notes__[0]


def test_an_endless_script_that_cannot_work_comes_out_at_the_end() -> None:
    server = ConnectorServer(script=iter([Status(500) & Refuse()])).start()
    with Wire(server) as wire:
        wire.read_all()
    with pytest.raises(ValueError, match="at most one"):
        server.close()


# The fixture, and what the kit is for.


def test_the_fixture_starts_servers(connector_server: ConnectorServerFactory) -> None:
    one, two = connector_server(EVENTS[:1], end="close"), connector_server(end="stop")
    assert read_body(one) == block(1)
    assert httpx.get(two.url).status_code == 204


def test_names_resolve_on_first_use() -> None:
    for name in connector_sdk.testing.__all__:
        assert name in dir(connector_sdk.testing)
        assert getattr(connector_sdk.testing, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = connector_sdk.testing.nothing_such


def test_the_plugin_costs_nothing_until_it_is_used() -> None:
    code = "import sys, connector_sdk.testing.plugin; sys.exit('connector_sdk.testing.server' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_contract_suites_resolve_too() -> None:
    assert inspect.isclass(connector_sdk.testing.BufferBackendContract)


def test_my_app_survives_a_cut(connector_server: ConnectorServerFactory) -> None:
    begin = time.perf_counter()
    server = connector_server(EVENTS, script=[Cut(after_events=2, into_next=10)], end="stop")
    seen: list[str] = []
    client = ConnectorClient(server.url, initial_backoff=0.01).on_summary(lambda payload: seen.append(payload.summary))
    client.run()
    assert seen == ["1", "2", "3", "4", "5"]
    assert [request.last_event_id for request in server.requests] == [None, "2", "5"]
    assert time.perf_counter() - begin < 1  # about 0.05 s; the bound is for a machine under load


@pytest.mark.anyio
async def test_my_async_app_survives_a_restart(connector_server: ConnectorServerFactory) -> None:
    server = connector_server(EVENTS, end="hold")
    client = AsyncConnectorClient(server.url, initial_backoff=0.01)
    seen = []
    with anyio.fail_after(5):
        async with client:
            async for payload in client:
                seen.append(payload.event_id)
                if len(seen) == 3:
                    server.restart()
                if len(seen) == 5:
                    break
    assert seen == ["1", "2", "3", "4", "5"]
