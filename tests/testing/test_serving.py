"""Serving as such: the wire, ids and resuming, pace, ends, refusals."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from connector_sdk.errors import ClientStateError, ConfigurationError
from connector_sdk.payloads import ActionsPayload, SlimAction, SummaryPayload, UnknownPayload, decode_payload
from connector_sdk.testing import ConnectorServer, Cut, LoggedEvent
from connector_sdk.testing.http11 import Event
from tests.testing.wire import EVENTS, Wire, block, read_body


def test_an_event_is_a_chunk_under_the_head_of_an_event_stream() -> None:
    with ConnectorServer(EVENTS, end="close") as server, Wire(server) as wire:
        wire.read_all()
        assert wire.received.startswith(b"HTTP/1.1 200 OK\r\n")
        assert wire.headers["content-type"] == "text/event-stream"
        assert wire.headers["transfer-encoding"] == "chunked"
        assert "last-event-id" not in wire.headers
        assert wire.chunks == [block(number) for number in range(1, 6)]
        assert wire.is_finished
        assert server.sent == 5
        assert server.log == [LoggedEvent(str(number), data) for number, data in enumerate(EVENTS, start=1)]


def test_every_kind_of_event_goes_out_as_its_json() -> None:
    summary = SummaryPayload(session_id="s", summary="é")
    actions = ActionsPayload(session_id="s", actions=[SlimAction(title="t")])
    named = UnknownPayload(type="later", raw=b'{"x":1}')
    typed = UnknownPayload(type="other", raw=b'{"type":"other"}')
    events: list[Event] = [
        summary,
        actions,
        named,
        typed,
        {"type": "summary", "summary": "d"},
        "not json",
        b'{\r\n"a":\n1}',
    ]
    with ConnectorServer(events, ids=False, end="close") as server, Wire(server) as wire:
        wire.read_all()
        assert [decode_payload(chunk.removeprefix(b"data: ")) for chunk in wire.chunks[:2]] == [summary, actions]
        assert wire.chunks[2:] == [
            b'event: later\ndata: {"x":1}\n\n',
            b'data: {"type":"other"}\n\n',
            b'data: {"type":"summary","summary":"d"}\n\n',
            b"data: not json\n\n",
            b'data: {\ndata: "a":\ndata: 1}\n\n',
        ]
        assert server.log[-1] == LoggedEvent("", b'{\n"a":\n1}')


def test_retry_comes_first_and_on_every_connection() -> None:
    with ConnectorServer(EVENTS[:1], retry=250, end="close") as server:
        assert read_body(server) == b"retry: 250\n\n" + block(1)
        assert read_body(server, "1") == b"retry: 250\n\n"


@pytest.mark.parametrize(("start", "status"), [
    ("GET /stream/other HTTP/1.1", 404),
    ("GET / HTTP/1.1", 404),
    ("POST /stream/demo HTTP/1.1", 405),
    ("HEAD /stream/demo HTTP/1.1", 405),
    ("nonsense", 400),
    ("GET /stream/demo?since=1 HTTP/1.1", 200),
    ("GET /stream/%64emo HTTP/1.1", 200),
])  # fmt: skip
def test_what_is_no_stream_is_refused_and_takes_no_step(start: str, status: int) -> None:
    with ConnectorServer(EVENTS[:1], end="close", script=[Cut(after_events=1, how="clean")]) as server:
        with Wire(server, start=start) as wire:
            wire.read_all()
            assert wire.status == status
            assert wire.headers.get("allow") == ("GET" if status == 405 else None)
        if status >= 400:
            assert read_body(server) == block(1)


def test_a_refusal_reaches_a_client_that_sends_a_body() -> None:
    with ConnectorServer() as server:
        assert httpx.post(server.url, content=b"x" * 100_000).status_code == 405


def test_the_token_is_checked_and_noted() -> None:
    with ConnectorServer(EVENTS[:1], token="let-me-in", end="close") as server:
        for headers, status in [
            ({}, 401),
            ({"Authorization": "Bearer no"}, 401),
            ({"Authorization": "Bearer let-me-in"}, 200),
        ]:
            answer = httpx.get(server.url, headers=headers)
            assert (answer.status_code, "www-authenticate" in answer.headers) == (status, status == 401)
        assert [request.authorization for request in server.requests] == [None, "Bearer no", "Bearer let-me-in"]


def test_requests_are_remembered() -> None:
    before = time.time()
    with ConnectorServer(EVENTS, end="close", product_id="a b/ü") as server:
        httpx.get(server.url, headers={"Last-Event-ID": "3", "X-Mine": "Yes"})
        request = server.requests[0]
    assert (request.number, request.method, request.last_event_id) == (1, "GET", "3")
    assert request.path == "/stream/a%20b%2F%C3%BC"
    assert request.headers["x-mine"] == "Yes"
    assert before <= request.time <= time.time()


# Resuming.


@pytest.mark.parametrize("events", [EVENTS, iter(EVENTS)], ids=["sequence", "iterator"])
def test_resumes_after_any_id(events: list[bytes] | Iterator[bytes]) -> None:
    with ConnectorServer(events, end="close") as server:
        assert read_body(server) == b"".join(block(number) for number in range(1, 6))
        for seen in range(6):
            with Wire(server, str(seen)) as wire:
                wire.read_all()
                assert wire.body == b"".join(block(number) for number in range(seen + 1, 6))
                assert wire.headers["last-event-id"] == str(seen)


@pytest.mark.parametrize("asked", ["99", "-1", "01", "+1", "x", "²", "1 ", "9" * 40])
def test_an_id_of_somebody_else_is_answered_with_earliest(asked: str) -> None:
    with ConnectorServer(EVENTS[:2], end="close") as server:
        read_body(server)
        with Wire(server, asked) as wire:
            wire.read_all()
            expected = "1" if asked == "1 " else "earliest"  # white space around a header's value is no part of it
            assert wire.headers["last-event-id"] == expected


def test_only_history_can_be_resumed() -> None:
    with ConnectorServer(EVENTS, end="close", history=2) as server:
        read_body(server)
        for asked, answered, first in [
            ("5", "5", 6),
            ("4", "4", 5),
            ("3", "3", 4),
            ("2", "earliest", 4),
            ("0", "earliest", 4),
        ]:
            with Wire(server, asked) as wire:
                wire.read_all()
                assert (wire.headers["last-event-id"], wire.body) == (answered, b"".join(map(block, range(first, 6))))
        assert [event.id for event in server.log] == ["4", "5"]


def test_history_bounds_the_memory_of_an_endless_stream() -> None:
    with ConnectorServer(itertools.repeat(b"{}"), history=10) as server:
        with Wire(server) as wire:
            wire.read_until(b"id: 5000\n")
            log = server._log
            assert len(log._blocks) < 10 + 1024 + 256 + 1
        assert len(server.log) == 10


def test_without_ids_a_later_connection_gets_only_what_has_not_happened() -> None:
    with ConnectorServer(EVENTS, ids=False, end="close", script=[Cut(after_events=2, into_next=5)]) as server:
        assert read_body(server) == b"".join(b"data: %b\n\n" % event for event in EVENTS[:2]) + b"data:"
        assert read_body(server, "1") == b"".join(b"data: %b\n\n" % event for event in EVENTS[3:])
        assert read_body(server) == b""


@pytest.mark.parametrize(("ids", "replay", "again"), [
    (True, None, True), (True, False, False), (False, None, False), (False, True, True),
])  # fmt: skip
def test_replay_says_where_a_connection_without_id_begins(ids: bool, replay: bool | None, again: bool) -> None:
    with ConnectorServer(EVENTS, ids=ids, replay=replay, end="close") as server:
        everything = read_body(server)
        assert read_body(server) == (everything if again else b"")


# What happens, and when.


def test_published_events_come_live_from_any_thread() -> None:
    with ConnectorServer() as server, Wire(server) as wire:
        server.wait_for_connections(1)
        publishers = [threading.Thread(target=lambda: [server.publish("{}") for _ in range(100)]) for _ in range(4)]
        for publisher in publishers:
            publisher.start()
        for publisher in publishers:
            publisher.join()
        wire.read_until(b"id: 400\ndata: {}\n\n")
        assert wire.chunks == [block(number, b"{}") for number in range(1, 401)]


def test_publish_comes_after_a_sequence_and_before_the_rest_of_an_iterator() -> None:
    with ConnectorServer(EVENTS[:2], end="close") as server:
        assert server.publish("{}") == "3"
        assert read_body(server) == block(1) + block(2) + block(3, b"{}")
    with ConnectorServer(iter(EVENTS[:2]), end="close", ids=False) as server:
        assert server.publish("{}") == ""
        assert read_body(server).startswith(b"data: {}\n\n")


def test_without_ids_what_is_published_to_nobody_is_lost() -> None:
    with ConnectorServer(ids=False, end="close") as server:
        server.publish("1")
        assert read_body(server) == b"data: 1\n\n"
        server.publish("2")
        assert read_body(server) == b""


def test_a_generator_may_publish_and_cut() -> None:
    def events() -> Iterator[bytes]:
        yield b"1"
        server.publish(b'"published"')
        yield b"2"
        assert server.cut() == 1
        yield b"3"

    with ConnectorServer(events(), end="close") as server, Wire(server) as wire:
        wire.read_all()
        assert wire.body == block(1, b"1") + block(2, b'"published"') + block(3, b"2") + block(4, b"3")
        assert not wire.is_finished


@pytest.mark.parametrize("lazily", [False, True])
def test_a_loop_goes_on_with_new_ids(lazily: bool) -> None:
    with ConnectorServer(iter(EVENTS[:2]) if lazily else EVENTS[:2], loop=True) as server, Wire(server) as wire:
        wire.read_until(b"id: 1001\n")
        assert wire.chunks[:5] == [block(n, EVENTS[(n - 1) % 2]) for n in range(1, 6)]


@pytest.mark.parametrize("events", [[], iter(())], ids=["sequence", "iterator"])
def test_a_loop_of_nothing_ends(events: list[bytes] | Iterator[bytes]) -> None:
    with ConnectorServer(events, loop=True, end="close") as server:
        assert read_body(server) == b""


def test_hold_keeps_the_connection_open() -> None:
    with ConnectorServer(EVENTS[:1], heartbeat=None) as server, Wire(server) as wire:
        wire.read_until(block(1))
        assert wire.stays_silent(0.05)
        server.publish(EVENTS[1])
        wire.read_until(block(2))
        assert server.connections == 1


@pytest.mark.parametrize("lazily", [False, True])
def test_stop_answers_204_once_everything_was_sent(lazily: bool) -> None:
    with ConnectorServer(iter(EVENTS[:2]) if lazily else EVENTS[:2], end="stop") as server:
        for asked, status, body in [("", 200, block(1) + block(2)), ("1", 200, block(2)), ("2", 204, b"")]:
            with Wire(server, asked) as wire:
                wire.read_all()
                assert (wire.status, wire.body) == (status, body)
        server.publish(EVENTS[2])
        assert read_body(server, "2") == block(3)


def test_stop_with_no_events_at_all_answers_204() -> None:
    with ConnectorServer(end="stop") as server:
        assert httpx.get(server.url).status_code == 204


@pytest.mark.parametrize(("kind", "expected"), [
    ("event", b"event: heartbeat\ndata: {}\n\n"), ("comment", b": heartbeat\n\n"),
])  # fmt: skip
def test_heartbeats_come_while_nothing_else_does(kind: str, expected: bytes) -> None:
    with ConnectorServer(EVENTS[:1], heartbeat=0.02, heartbeat_as="event" if kind == "event" else "comment") as server:
        with Wire(server) as wire:
            begin = time.monotonic()
            wire.read_stream(block(1) + expected * 3)
            assert wire.chunks == [block(1), expected, expected, expected]
            assert time.monotonic() - begin >= 0.06
        assert server.sent == 1


def test_a_rate_is_a_clock_that_starts_with_the_first_connection_and_never_stops() -> None:
    with ConnectorServer([EVENTS[0]] * 20, rate=200, end="close") as server:
        with Wire(server) as wire:
            begin = time.monotonic()
            wire.read_until(b"id: 3\n")
        server.wait_for_connections(0)
        with Wire(server, "3") as wire:  # by then some have happened with nobody there
            wire.read_all()
            took = time.monotonic() - begin
            assert wire.is_finished
            assert wire.body.startswith(b"id: 4\n")
            assert b"id: 20\n" in wire.body
        assert 0.09 <= took < 2  # the first comes at once, the 20th 19 / 200 s later


def test_a_high_rate_is_met() -> None:
    with ConnectorServer([EVENTS[0]] * 1000, rate=10_000, end="close") as server:
        begin = time.monotonic()
        assert read_body(server).count(b"data") == 1000
        assert 0.09 <= time.monotonic() - begin < 2


# Many at once.


def test_many_connections_get_everything() -> None:
    with ConnectorServer(EVENTS) as server:
        wires = [Wire(server) for _ in range(200)]
        server.wait_for_connections(200)
        server.publish(b'"last"')
        for wire in wires:
            with wire:
                wire.read_until(block(6, b'"last"'))
        server.wait_for_connections(0)
        assert server.sent == 200 * 6
        assert len(server.requests) == 200


def test_a_slow_reader_is_waited_for_and_delays_nobody() -> None:
    with ConnectorServer([b'"%b"' % (b"x" * 10_000)] * 2000, end="close") as server, Wire(server) as slow:
        server.wait_until_sent(1)
        assert read_body(server).count(b"data") == 2000
        assert server.sent < 4000  # the slow one has what fits into the kernel's buffers, and no more
        slow.read_all()
        assert slow.is_finished
        assert len(slow.chunks) == 2000


def test_an_endless_stream_starves_nobody() -> None:
    with ConnectorServer(itertools.repeat(b"{}"), history=100, script=[]) as server, Wire(server) as greedy:
        for _ in range(20):
            greedy.read()
        with Wire(server) as other:
            other.read_until(b"data: {}")
        begin = time.monotonic()
    assert time.monotonic() - begin < 10


# Options.


@pytest.mark.parametrize("options", [
    {"events": b"{}"}, {"events": {}}, {"events": SummaryPayload()}, {"events": 3}, {"events": [3]},
    {"events": [{"a": object}]},
    {"rate": 0}, {"rate": -1}, {"rate": float("nan")}, {"rate": True}, {"rate": "1"},
    {"product_id": ""}, {"product_id": None}, {"token": ""}, {"token": 3},
    {"script": 3}, {"script": ["cut"]}, {"heartbeat": 0}, {"heartbeat": -1}, {"heartbeat_as": "ping"},
    {"retry": -1}, {"retry": 1.5}, {"end": "never"}, {"history": -1}, {"port": -1}, {"port": 65536},
], ids=repr)  # fmt: skip
def test_an_option_that_cannot_work_is_refused_by_name(options: dict[str, object]) -> None:
    make: type = ConnectorServer
    with pytest.raises(ConfigurationError) as caught:
        make(**options)
    assert caught.value.option == next(iter(options))
    assert caught.value.allowed


def test_a_port_that_is_taken_is_refused() -> None:
    with ConnectorServer() as server, pytest.raises(ConfigurationError, match="port="):
        ConnectorServer(port=server.port).start()


def test_a_server_says_what_state_it_is_in() -> None:
    server = ConnectorServer()
    assert "not started" in repr(server)
    asked: list[Callable[[], object]] = [lambda: server.url, lambda: server.port, server.cut, server.restart]
    for ask in asked:
        with pytest.raises(ClientStateError):
            ask()
    with server:
        assert server.url in repr(server)
        with pytest.raises(ClientStateError, match="before"):
            server.start()
    assert "closed" in repr(server)
    asked = [server.cut, server.stop_accepting, lambda: server.publish("{}"), server.start]
    for ask in asked:
        with pytest.raises(ClientStateError):
            ask()
    server.close()
