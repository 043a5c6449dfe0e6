"""Connecting, resuming and stopping: what a network and a server do, and what the client makes of it."""

from __future__ import annotations

import threading
import time

import httpx
import pytest

from connector_sdk import ConnectionState, Gap, MemoryCheckpoint
from connector_sdk.errors import ClientStateError, FatalStreamError, RetriesExhaustedError
from connector_sdk.testing import (
    ConnectorServer,
    Cut,
    Duplicate,
    Garbage,
    Raw,
    Redirect,
    Refuse,
    Silence,
    SplitEveryByte,
    Stall,
    Status,
)
from tests.client.harness import PATIENCE, Collector, Faces, dropped, summary

TEN = [summary(n) for n in range(10)]
TEXTS = [payload.summary for payload in TEN]


def test_events_arrive_typed_in_order_once(faces: Faces) -> None:
    collector = Collector()
    with ConnectorServer(TEN) as server:
        client = faces.client(server.url).on_summary(collector.coroutine)
        with faces.run(client):
            payloads = collector.wait(10)
        assert collector.texts == TEXTS
        assert [payload.event_id for payload in payloads] == [str(n) for n in range(1, 11)]
        ledger = client.stats().ledger
        assert (ledger.received, ledger.delivered, ledger.balanced) == (10, 10, True)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410])
def test_a_fatal_status_ends_the_run_within_one_request(faces: Faces, status: int) -> None:
    """X1: autoplay-sdk made 33 requests in 4 s, fired on_connect 33 times, and never stopped."""
    connects: list[int] = []
    with ConnectorServer([], script=[Status(status, body=b"go away")] * 5) as server:
        client = faces.client(server.url, "t", max_retries=2).on_connect(lambda: connects.append(1))
        client.on_summary(Collector().plain)
        running = faces.run(client).start()
        running.join()
        assert isinstance(running.error, FatalStreamError)
        assert running.error.status == status
        assert running.error.body_start == b"go away"
        assert len(server.requests) == 1
        assert connects == []
        assert client.state == "closed"
        assert str(status) in client.closed_reason


def test_a_server_that_closes_at_once_exhausts_the_retries(faces: Faces) -> None:
    """X2: autoplay-sdk retried a clean close at the initial delay for ever."""
    with ConnectorServer([], end="close") as server:
        client = faces.client(server.url, max_retries=3).on_summary(Collector().plain)
        running = faces.run(client).start()
        running.join()
        assert isinstance(running.error, RetriesExhaustedError)
        assert running.error.attempts == 4
        assert len(server.requests) == 4


def test_nobody_listening_exhausts_the_retries(faces: Faces) -> None:
    with ConnectorServer([]) as server:
        url = server.url
    client = faces.client(url, max_retries=1)
    running = faces.run(client).start()
    running.join()
    assert isinstance(running.error, RetriesExhaustedError)
    assert "ConnectError" in str(running.error)


def test_stop_ends_a_silent_stream_at_once_and_closes_the_socket(faces: Faces) -> None:
    """X3: autoplay-sdk's thread was still alive after 10 s."""
    with ConnectorServer([], heartbeat=None) as server:
        client = faces.client(server.url).on_summary(Collector().plain)
        with faces.run(client) as running:
            server.wait_for_connections(1)
            began = time.monotonic()
            report = running.stop()
            assert time.monotonic() - began < 5.0
        server.wait_for_connections(0)
        assert report.drained
        assert client.closed_reason == "stopped"


def test_stop_from_inside_a_callback(faces: Faces) -> None:
    with ConnectorServer(TEN, heartbeat=None) as server:
        client = faces.client(server.url)
        client.on_summary(lambda payload: client.stop() and None)
        running = faces.run(client).start()
        running.join()
        assert running.error is None
        assert client.stats().ledger.balanced


def test_stop_interrupts_a_pause_between_attempts(faces: Faces) -> None:
    with ConnectorServer([], script=[Status(503, headers={"Retry-After": "600"})]) as server:
        client = faces.client(server.url)
        with faces.run(client) as running:
            reached = threading.Event()
            client._engine.watch(lambda: reached.set() if client.state == "backoff" else None)
            assert client.state == "backoff" or reached.wait(PATIENCE)
            began = time.monotonic()
            running.stop()
            assert time.monotonic() - began < 5.0


def test_every_cut_resumes_with_the_last_complete_id(faces: Faces) -> None:
    cuts = [Cut(after_events=n, into_next=k) for n, k in [(1, 5), (2, 1), (0, 3), (1, 40), (3, 0), (1, 12)]]
    collector = Collector()
    with ConnectorServer(TEN, script=cuts) as server:
        client = faces.client(server.url).on_summary(collector.plain)
        with faces.run(client):
            collector.wait(10)
        assert collector.texts == TEXTS
        assert [request.last_event_id for request in server.requests] == [None, "1", "3", "3", "4", "7", "8"]
        assert client.stats().gaps == 0


def test_a_cut_at_any_byte_loses_and_doubles_nothing() -> None:
    faces = Faces("asyncio")
    three = TEN[:3]
    for cut_at in range(1, 420, 7):
        collector = Collector()
        with ConnectorServer(three, script=[Cut(after_bytes=cut_at)]) as server:
            client = faces.client(server.url).on_summary(collector.coroutine)
            with faces.run(client):
                collector.wait(3)
            assert collector.texts == TEXTS[:3], cut_at


def test_the_cursor_survives_attempts_that_delivered_nothing(faces: Faces) -> None:
    script = [Cut(after_events=4), Status(503), Refuse(), Silence(), Cut(after_bytes=3)]
    collector = Collector()
    with ConnectorServer(TEN, script=script) as server:
        client = faces.client(server.url, read_timeout=0.3).on_summary(collector.plain)
        with faces.run(client):
            collector.wait(10)
        assert collector.texts == TEXTS
        asked = [request.last_event_id for request in server.requests]
        assert asked[0] is None
        assert set(asked[1:]) == {"4"}


def test_every_byte_alone(faces: Faces) -> None:
    collector = Collector()
    with ConnectorServer(TEN[:3], script=[SplitEveryByte()]) as server:
        client = faces.client(server.url).on_summary(collector.plain)
        with faces.run(client):
            collector.wait(3)
        assert collector.texts == TEXTS[:3]


def test_a_silent_connection_is_replaced_and_said_to_be_stale(faces: Faces) -> None:
    states: list[str] = []
    collector = Collector()

    class Watcher:
        def connection_state(self, *, url: str, state: str, reason: str) -> None:
            states.append(state)

    with ConnectorServer(TEN, heartbeat=None, script=[Silence(after_events=3)]) as server:
        client = faces.client(server.url, read_timeout=0.3, observer=Watcher()).on_summary(collector.plain)
        with faces.run(client):
            collector.wait(10)
        assert collector.texts == TEXTS
    assert states[:6] == ["connecting", "open", "stale", "backoff", "connecting", "open"]
    assert states[-1] == "closed"


def test_heartbeats_and_comments_are_life_and_no_events(faces: Faces) -> None:
    collector = Collector()
    with ConnectorServer([], heartbeat=0.05) as server:
        client = faces.client(server.url, read_timeout=1.0).on_event("*", collector.plain)
        with faces.run(client):
            server.wait_for_connections(1)
            time.sleep(1.5)  # longer than read_timeout: only time itself can show that nothing happens in it
            server.publish(summary(1))
            collector.wait(1)
        assert len(server.requests) == 1
        assert client.stats().ledger.received == 1


def test_204_ends_the_run_quietly(faces: Faces) -> None:
    collector = Collector()
    with ConnectorServer(TEN, script=[Cut(after_events=10), Status(204)]) as server:
        client = faces.client(server.url).on_summary(collector.plain)
        running = faces.run(client).start()
        running.join()
        assert running.error is None
        assert "204" in client.closed_reason
        assert collector.texts == TEXTS


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_obeyed(faces: Faces, status: int) -> None:
    collector = Collector()
    with ConnectorServer(TEN, script=[Status(status, headers={"Retry-After": "1"})]) as server:
        client = faces.client(server.url).on_summary(collector.plain)
        with faces.run(client):
            collector.wait(10)
        first, second = server.requests
        assert second.time - first.time >= 0.95


def test_the_servers_retry_field_is_obeyed(faces: Faces) -> None:
    collector = Collector()
    with ConnectorServer(TEN, retry=700, script=[Cut(after_events=5)]) as server:
        client = faces.client(server.url).on_summary(collector.plain)
        with faces.run(client):
            collector.wait(10)
        first, second = server.requests
        assert second.time - first.time >= 0.65


def test_a_wrong_content_type_is_fatal_and_shown(faces: Faces) -> None:
    with ConnectorServer(
        [], script=[Status(200, headers={"Content-Type": "text/html"}, body=b"<h1>Please log in</h1>")]
    ) as server:
        running = faces.run(faces.client(server.url)).start()
        running.join()
        assert isinstance(running.error, FatalStreamError)
        assert "<h1>Please log in" in str(running.error)
        assert len(server.requests) == 1


def test_a_redirect_is_followed_and_the_token_stays_at_home(faces: Faces) -> None:
    collector = Collector()
    with ConnectorServer(TEN) as other, ConnectorServer([], token="t", script=[Redirect(other.url)]) as home:
        client = faces.client(home.url, "t").on_summary(collector.plain)
        with faces.run(client):
            collector.wait(10)
        assert home.requests[0].authorization == "Bearer t"
        assert other.requests[0].authorization is None


def test_a_redirect_within_the_origin_keeps_the_token(faces: Faces) -> None:
    collector = Collector()
    with ConnectorServer(TEN, token="t", script=[Redirect("/stream/demo?moved")]) as server:
        client = faces.client(server.url, "t").on_summary(collector.plain)
        with faces.run(client):
            collector.wait(10)
        assert [request.authorization for request in server.requests] == ["Bearer t", "Bearer t"]


def test_a_redirect_loop_is_fatal(faces: Faces) -> None:
    with ConnectorServer([], script=[Redirect("/stream/demo")] * 50) as server:
        running = faces.run(faces.client(server.url)).start()
        running.join()
        assert isinstance(running.error, FatalStreamError)
        assert "loop" in str(running.error)
        assert len(server.requests) <= 12


def test_the_users_own_headers_do_not_leave_the_origin() -> None:
    collector = Collector()
    own = httpx.AsyncClient(headers={"Authorization": "Bearer own", "Cookie": "id=own"}, follow_redirects=True)
    faces = Faces("asyncio")
    with ConnectorServer(TEN) as other, ConnectorServer([], script=[Redirect(other.url)]) as home:
        client = faces.client(home.url, http_client=own).on_summary(collector.coroutine)
        with faces.run(client):
            collector.wait(10)
        assert home.requests[0].authorization == "Bearer own"
        assert other.requests[0].authorization is None
        assert "cookie" not in other.requests[0].headers
    assert not own.is_closed, "whoever opens a client closes it"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_token_function_is_asked_at_each_connect_and_once_more_after_401(faces: Faces, is_async: bool) -> None:
    tokens = iter(["old", "t", "t"])

    def plain() -> str:
        return next(tokens)

    async def coroutine() -> str:
        return next(tokens)

    collector = Collector()
    with ConnectorServer(TEN, token="t", script=[Cut(after_events=5)]) as server:
        client = faces.client(server.url, coroutine if is_async else plain).on_summary(collector.plain)
        with faces.run(client):
            collector.wait(10)
        assert [request.authorization for request in server.requests] == ["Bearer old", "Bearer t", "Bearer t"]


def test_a_second_401_is_fatal(faces: Faces) -> None:
    with ConnectorServer([], token="right") as server:
        running = faces.run(faces.client(server.url, lambda: "wrong")).start()
        running.join()
        assert isinstance(running.error, FatalStreamError)
        assert len(server.requests) == 2


def test_a_token_function_that_fails_is_tried_again(faces: Faces) -> None:
    calls: list[int] = []

    def token() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise OSError("the vault is away")
        return "t"

    collector = Collector()
    with ConnectorServer(TEN, token="t") as server:
        client = faces.client(server.url, token).on_summary(collector.plain)
        with faces.run(client):
            collector.wait(10)
        assert len(server.requests) == 1


def test_garbage_in_place_of_an_answer_is_retried(faces: Faces) -> None:
    collector = Collector()
    with ConnectorServer(TEN, script=[Garbage(b"\x00\xff NOT HTTP AT ALL\r\n\r\n")]) as server:
        client = faces.client(server.url).on_summary(collector.plain)
        with faces.run(client):
            collector.wait(10)
        assert collector.texts == TEXTS


def test_a_replayed_event_is_delivered_once_and_counted(faces: Faces) -> None:
    collector = Collector()
    with ConnectorServer(TEN, script=[Cut(after_events=5), Duplicate(5)]) as server:
        client = faces.client(server.url).on_summary(collector.plain)
        with faces.run(client):
            collector.wait(10)
            server.publish(summary(10))
            collector.wait(11)
        assert collector.texts == [*TEXTS, "event 10"]
        assert dropped(client) == {"duplicate": 5}
        assert client.dropped_count == 0
        assert client.stats().ledger.balanced


def test_a_server_that_repeats_itself(faces: Faces) -> None:
    collector = Collector()
    with ConnectorServer(TEN, script=[Duplicate(4, after_events=6)]) as server:
        client = faces.client(server.url).on_summary(collector.plain)
        with faces.run(client):
            collector.wait(10)
            server.publish(summary(10))
            collector.wait(11)
        assert collector.texts == [*TEXTS, "event 10"]
        assert dropped(client) == {"duplicate": 4}


def test_a_server_without_ids_gives_one_gap_for_each_interruption(faces: Faces) -> None:
    gaps: list[Gap] = []
    collector = Collector()
    before = time.time()
    with ConnectorServer(TEN, ids=False, script=[Cut(after_events=4), Cut(after_events=3)]) as server:
        client = faces.client(server.url).on_summary(collector.plain).on_gap(gaps.append)
        with faces.run(client):
            collector.wait(10)
        assert client.stats().gaps == len(gaps) == 2
    assert {gap.last_event_id for gap in gaps} == {""}
    assert all(gap.since is not None and before <= gap.since <= gap.until <= time.time() for gap in gaps)


def test_a_server_that_no_longer_has_the_events_gives_a_gap(faces: Faces) -> None:
    gaps: list[Gap] = []
    collector = Collector()
    with ConnectorServer(TEN, history=2, script=[Cut(after_events=10)]) as server:
        client = faces.client(server.url, checkpoint=MemoryCheckpoint()).on_summary(collector.plain)
        with faces.run(client):
            collector.wait(10)
        late = faces.client(server.url, checkpoint=_Remembers("3")).on_summary(collector.plain).on_gap(gaps.append)
        with faces.run(late):
            collector.wait(12)
    assert [gap.last_event_id for gap in gaps] == ["3"]


class _Remembers(MemoryCheckpoint):
    def __init__(self, event_id: str) -> None:
        super().__init__()
        self._first: str | None = event_id

    async def load(self, stream: str) -> str | None:
        return await super().load(stream) or self._first


def test_an_oversized_event_is_dropped_with_a_reason_and_the_stream_goes_on(faces: Faces) -> None:
    errors: list[str] = []
    collector = Collector()
    body = (
        b'id: 1\ndata: {"type":"summary","summary":"'
        + b"x" * 5000
        + b'"}\n\nid: 2\ndata: {"type":"summary","summary":"ok"}\n\n'
    )
    with ConnectorServer([], script=[Raw(body)]) as server:
        client = faces.client(server.url, max_event_bytes=2048).on_summary(collector.plain)
        client.on_error(lambda error, payload: errors.append(str(error)))
        with faces.run(client):
            collector.wait(1)
        assert collector.texts == ["ok"]
        assert dropped(client) == {"oversized": 1}
        assert "max_event_bytes=2048" in errors[0]


def test_data_that_is_no_json_is_dropped_aloud(faces: Faces) -> None:
    told: list[tuple[str, int]] = []
    errors: list[Exception] = []
    collector = Collector()
    with ConnectorServer(
        [], script=[Raw(b'id: 1\ndata: oops\n\nid: 2\ndata: {"type":"summary","summary":"ok"}\n\n')]
    ) as server:
        client = faces.client(server.url).on_summary(collector.plain)
        client.on_drop(lambda payload, total: told.append((payload.to_text(), total)))
        client.on_error(lambda error, payload: errors.append(error))
        with faces.run(client):
            collector.wait(1)
        assert told == [("oops", 1)]
        assert [type(error).__name__ for error in errors] == ["PayloadError"]
        assert dropped(client) == {"undecodable": 1}
        assert client.stats().finished_event_id == "2"


def test_a_stall_shorter_than_the_time_out_is_waited_for(faces: Faces) -> None:
    collector = Collector()
    with ConnectorServer(TEN, script=[Stall(0.3, after_events=5)]) as server:
        client = faces.client(server.url, read_timeout=5.0).on_summary(collector.plain)
        with faces.run(client):
            collector.wait(10)
        assert len(server.requests) == 1


def test_waiting_until_open() -> None:
    with ConnectorServer([], token="t") as server:
        client = Faces("sync").client(server.url, "t")
        with Faces("sync").run(client):
            client.wait_until_open(PATIENCE)
            assert client.state is ConnectionState.OPEN
        wrong = Faces("sync").client(server.url, "wrong")
        running = Faces("sync").run(wrong).start()
        with pytest.raises(FatalStreamError):
            wrong.wait_until_open(PATIENCE)
        running.join()
    with ConnectorServer([], script=[Silence(head=False)]) as server:
        client = Faces("sync").client(server.url)
        with Faces("sync").run(client), pytest.raises(TimeoutError):
            client.wait_until_open(0.05)


def test_running_twice_is_refused_and_running_again_resumes(faces: Faces) -> None:
    collector = Collector()
    with ConnectorServer(TEN) as server:
        client = faces.client(server.url).on_summary(collector.plain)
        with faces.run(client):
            collector.wait(10)
            second = faces.run(client)
            second._thread.start()
            second.join()
            assert isinstance(second.error, ClientStateError)
        server.publish(summary(10))
        with faces.run(client):
            collector.wait(11)
        assert collector.texts == [*TEXTS, "event 10"]
        assert client.stats().ledger.balanced
