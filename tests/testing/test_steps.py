"""Each step of a script does on the wire what its docstring says, and nothing else."""

from __future__ import annotations

import itertools
import time
from typing import Any

import httpx
import pytest

from connector_sdk.errors import ConfigurationError
from connector_sdk.testing import (
    Comment,
    ConnectorServer,
    Cut,
    Duplicate,
    Garbage,
    NoResume,
    Raw,
    Redirect,
    Refuse,
    Serve,
    Silence,
    SplitEveryByte,
    Stall,
    Status,
    Step,
    WrongContentType,
)
from connector_sdk.testing.script import Placed, Plan, make_plan, make_plans
from tests.testing.wire import EVENTS, Wire, block, read_body

WRONG: Any = "wrong"  # what the type checker refuses too
ALL = b"".join(block(number) for number in range(1, 6))


# The place of a step.


def test_cut_is_exact_to_the_byte() -> None:
    steps = [Cut(after_bytes=count) for count in range(len(ALL) + 1)]
    with ConnectorServer(EVENTS, script=steps, end="close") as server:
        for count in range(len(ALL) + 1):
            with Wire(server) as wire:
                wire.read_all()
                assert wire.body == ALL[:count]
                assert not wire.is_finished
        assert read_body(server) == ALL


def test_cut_counts_events_and_bytes_into_the_next() -> None:
    with ConnectorServer(
        EVENTS, script=[Cut(after_events=2), Cut(after_events=2, into_next=7), Cut(into_next=10**6)]
    ) as server:
        assert read_body(server) == block(1) + block(2)
        with Wire(server) as wire:
            wire.read_all()
            assert wire.body == block(1) + block(2) + block(3)[:7]
            assert wire.payload.endswith(b"\r\n%x\r\n" % len(block(3)) + block(3)[:7])  # in the middle of a chunk
        assert read_body(server) == block(1)[:-1]
        assert server.sent == 4


def test_retry_and_heartbeats_count_as_bytes_and_not_as_events() -> None:
    beat = b": heartbeat\n\n"
    script = [Cut(after_bytes=15), Cut(after_bytes=len(b"retry: 5\n\n" + block(1) + beat) + 3), Cut(after_events=2)]
    with ConnectorServer(EVENTS[:1], script=script, retry=5, heartbeat=0.01, heartbeat_as="comment") as server:
        assert read_body(server) == b"retry: 5\n\n" + block(1)[:5]
        assert read_body(server) == b"retry: 5\n\n" + block(1) + beat + beat[:3]
        with Wire(server) as wire:
            wire.read_until(beat)
            server.publish(EVENTS[1])
            wire.read_all()
            assert wire.body.endswith(block(2))


@pytest.mark.parametrize(("step", "finished"), [(Cut(after_events=1), False), (Cut("clean", after_events=1), True)])
def test_cut_ends_properly_or_not(step: Cut, finished: bool) -> None:
    with ConnectorServer(EVENTS, script=[step]) as server, Wire(server) as wire:
        wire.read_all()
        assert (wire.body, wire.is_finished) == (block(1), finished)


def test_cut_by_reset() -> None:
    with ConnectorServer(EVENTS, script=[Cut(after_events=1, how="reset")]) as server, Wire(server) as wire:
        with pytest.raises(ConnectionResetError):
            wire.read_all()
        assert wire.body == block(1)


# What a step does.


def test_stall_pauses_where_it_says_and_goes_on() -> None:
    script = [Stall(0.1, after_events=1, into_next=3) & Stall(0.05, after_events=1, into_next=5) & Cut(after_events=3)]
    with ConnectorServer(EVENTS, script=script, heartbeat=0.01) as server, Wire(server) as wire:
        wire.read_stream(block(1) + block(2)[:3])
        begin = time.monotonic()
        assert wire.stays_silent(0.05)  # not even a heartbeat
        assert wire.body == block(1) + block(2)[:3]
        wire.read_all()
        assert 0.1 < time.monotonic() - begin < 2
        assert wire.chunks == [block(1), block(2)[:3], block(2)[3:5], block(2)[5:], block(3)]


def test_stall_before_the_head() -> None:
    with ConnectorServer(EVENTS[:1], script=[Stall(0.05, head=False) & Status(503)], end="close") as server:
        with Wire(server) as wire:
            assert wire.stays_silent(0.03)
            wire.read_all()
            assert wire.status == 503
        assert read_body(server) == block(1)


@pytest.mark.parametrize(("step", "body"), [
    (Silence(), b""), (Silence(after_events=1, into_next=4), block(1) + block(2)[:4]), (Silence(after_bytes=3), b"id:"),
])  # fmt: skip
def test_silence_sends_nothing_more_and_keeps_the_connection(step: Silence, body: bytes) -> None:
    with ConnectorServer(EVENTS, script=[step], heartbeat=0.01) as server, Wire(server) as wire:
        wire.read_until(b"\r\n\r\n")
        wire.read_stream(body)
        assert wire.stays_silent(0.05)
        assert wire.body == body
        assert server.connections == 1
    with pytest.raises(TimeoutError, match="closed"):
        server.wait_until_sent(100)


def test_silence_without_a_head_answers_nothing() -> None:
    with ConnectorServer(EVENTS, script=[Silence(head=False)]) as server, Wire(server) as wire:
        server.wait_for_requests(1)
        assert wire.stays_silent(0.05)


def test_refuse_resets_after_the_request() -> None:
    with ConnectorServer(EVENTS, script=Refuse() * 2, end="close") as server:
        for _ in range(2):
            with Wire(server) as wire, pytest.raises(ConnectionResetError):
                wire.read_all()
        assert read_body(server) == ALL
        assert len(server.requests) == 3


def test_status_with_its_headers_and_body() -> None:
    login = Status(200, {"content-type": "text/html"}, b"<html>")
    with ConnectorServer(
        script=[Status(503, {"Retry-After": "1"}, b"later"), login, Status(204), Status(599)]
    ) as server:
        answer = httpx.get(server.url)
        assert (answer.status_code, answer.headers["retry-after"], answer.content) == (503, "1", b"later")
        answer = httpx.get(server.url)
        assert (answer.headers.get_list("content-type"), answer.content) == (["text/html"], b"<html>")
        answer = httpx.get(server.url)
        assert (answer.status_code, "content-length" in answer.headers) == (204, False)
        assert httpx.get(server.url).status_code == 599


@pytest.mark.parametrize("status", [307, 301])
def test_redirect_leads_to_another_server(status: int) -> None:
    with ConnectorServer(EVENTS[:1], end="close") as there:
        with ConnectorServer(script=[Redirect(there.url, status)]) as here:
            answer = httpx.get(here.url, headers={"Authorization": "Bearer t"}, follow_redirects=True)
        assert (answer.history[0].status_code, answer.content) == (status, block(1))


def test_garbage_in_place_of_an_answer() -> None:
    with ConnectorServer(EVENTS, script=[Garbage(b"\x16\x03\x01 what?")]) as server, Wire(server) as wire:
        assert wire.read_all() == b"\x16\x03\x01 what?"


def test_garbage_in_place_of_a_chunk() -> None:
    with ConnectorServer(EVENTS, script=[Garbage(b"zz\r\n", "framing", after_events=1)] * 2) as server:
        with Wire(server) as wire:
            assert wire.read_all().endswith(block(1) + b"\r\nzz\r\n")
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(server.url)


def test_garbage_and_comments_in_the_body() -> None:
    script = [
        Garbage(b"\xff\xfe: \0\n\n", "body", after_events=1) & Comment(text="é", after_events=2) & Garbage(b"", "body")
    ]
    with ConnectorServer(EVENTS[:2], script=script, end="close") as server, Wire(server) as wire:
        wire.read_all()
        assert wire.chunks == [block(1), b"\xff\xfe: \0\n\n", block(2), ": é\n".encode()]
        assert wire.is_finished


def test_duplicate_goes_back() -> None:
    with ConnectorServer(
        EVENTS, script=[Duplicate(2, after_events=3), Duplicate(1), Duplicate(9)], end="close"
    ) as server:
        assert read_body(server) == b"".join(map(block, [1, 2, 3, 2, 3, 4, 5]))
        assert read_body(server, "3") == b"".join(map(block, [3, 4, 5]))
        assert read_body(server, "3") == ALL
        assert server.sent == 7 + 3 + 5


def test_split_every_byte() -> None:
    with ConnectorServer(
        EVENTS[:2], script=[SplitEveryByte() & Cut(after_bytes=50), SplitEveryByte()], end="close"
    ) as server:
        with Wire(server) as wire:
            wire.read_all()
            assert wire.body == (block(1) + block(2))[:50]
        with Wire(server) as wire:
            wire.read_all()
            assert wire.chunks == [bytes([byte]) for byte in block(1) + block(2)]
            assert wire.is_finished
        assert server.sent == 1 + 2


def test_wrong_content_type() -> None:
    with ConnectorServer(
        EVENTS[:1], script=[WrongContentType(), WrongContentType("application/json")], end="close"
    ) as server:
        for expected in ("text/html", "application/json", "text/event-stream"):
            answer = httpx.get(server.url)
            assert (answer.headers["content-type"], answer.content) == (expected, block(1))


def test_no_resume() -> None:
    script = [Cut(after_events=2), NoResume(), NoResume(announce=True), NoResume(announce=True)]
    with ConnectorServer(EVENTS, script=script, end="close") as server:
        read_body(server)
        for asked, answered, body in [
            ("1", None, b"".join(map(block, [3, 4, 5]))),
            ("1", "earliest", b""),
            (None, "earliest", b""),
            ("1", "1", b"".join(map(block, [2, 3, 4, 5]))),
        ]:
            with Wire(server, asked) as wire:
                wire.read_all()
                assert (wire.headers.get("last-event-id"), wire.body) == (answered, body)


def test_raw_is_the_body_and_nothing_else() -> None:
    raw = b"\xef\xbb\xbfdata: a\r\rid"
    script = [Raw(raw), Raw(raw) & Cut(after_bytes=5), Raw(raw) & SplitEveryByte(), Raw(b""), Raw(raw, "hold")]
    with ConnectorServer(EVENTS, script=script, retry=1, heartbeat=0.01, heartbeat_as="comment", end="close") as server:
        for chunks, finished in [([raw], True), ([raw[:5]], False), ([bytes([b]) for b in raw], True), ([], True)]:
            with Wire(server) as wire:
                wire.read_all()
                assert (wire.chunks, wire.is_finished) == (chunks, finished)
        with Wire(server) as wire:
            wire.read_until(raw + b"\r\nd\r\n: heartbeat\n\n")
        assert server.sent == 0


# The script.


def test_each_connection_takes_the_next_step() -> None:
    both = (NoResume() & Cut(after_events=1)) * 2
    with ConnectorServer(EVENTS, script=[Status(503), Serve(), both, 2 * Status(500)], end="close") as server:
        bodies = [httpx.get(server.url).content if n in (0, 1) else read_body(server, "2") for n in range(4)]
        assert bodies == [b"", ALL, b"", b""]
        assert [httpx.get(server.url).status_code for _ in range(3)] == [500, 500, 200]


def test_a_script_may_never_end() -> None:
    with ConnectorServer(EVENTS, script=itertools.repeat(Cut(after_events=1))) as server:
        assert [read_body(server, str(seen)) for seen in range(5)] == [block(number) for number in range(1, 6)]


@pytest.mark.parametrize("make", [
    lambda: Cut(after_events=-1), lambda: Cut(after_bytes=-1), lambda: Cut(after_bytes=1, after_events=1),
    lambda: Cut(WRONG), lambda: Stall(-1), lambda: Stall(float("inf")), lambda: Duplicate(0), lambda: Status(99),
    lambda: Status(600), lambda: Redirect("/x", 200), lambda: Garbage(b"", WRONG), lambda: Raw(b"", WRONG),
    lambda: Cut() * -1, lambda: make_plan(Status(500) & Refuse()), lambda: make_plan(Cut() & Cut() * 2),
    lambda: make_plans([Serve(), Status(500) & Garbage(b"")]), lambda: make_plans(["x"]), lambda: make_plans(3),
])  # fmt: skip
def test_a_step_that_cannot_work_is_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(ConfigurationError):
        make()


def test_steps_are_values() -> None:
    assert Cut(after_events=1) == Cut(after_events=1)
    assert (
        repr(Stall(2, after_events=1)) == "Stall(seconds=2, head=True, after_events=1, into_next=0, after_bytes=None)"
    )
    with pytest.raises(TypeError):
        Cut() & 3  # type: ignore[operator]  # that it is refused is what is tested
    plan = make_plan(Stall(1, head=False) & Stall(2, head=False) & Cut() & Silence(head=False) & Comment())
    assert plan == Plan(wait=3, answer=Silence(head=False), placed=(Cut(), Comment()))
    assert list(make_plans([])) == []
    assert isinstance(Cut(), Placed)
    assert issubclass(Placed, Step)
