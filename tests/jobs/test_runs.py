"""Runs of both faces: when they begin, that they do not overlap, how they end, what they tell. One suite for all faces."""

from __future__ import annotations

import threading
import time

import msgspec
import pytest

from connector_sdk.buffers.blocking import BlockingBuffer
from connector_sdk.buffers.durable import DurableBuffer
from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.errors import ClientStateError, ConfigurationError
from connector_sdk.jobs.job import DrainJob
from connector_sdk.payloads import Payload
from tests.buffers.memory_store import MemoryStore
from tests.jobs.faces import FACES, Running, running
from tests.jobs.samples import PATIENCE, Index, blocking_job, event, filled, number_of


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def until(condition: object, what: str = "what must happen did not") -> None:
    assert callable(condition)
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def test_it_runs_at_once_and_drains_in_batches(face: str) -> None:
    index = Index()
    with running(face, filled(range(25)), index, batch_size=10, interval=3600) as run:
        index.wait_for(lambda: len(index.done) == 25)
        report = run.stop()
    assert [len(call) for call in index.calls] == [10, 10, 5]
    assert index.done == list(range(25))
    assert (report.drained, report.left, report.running) == (True, 0, 0)
    stats = run.job.stats()
    assert (stats.runs, stats.received, stats.delivered, stats.in_flight) == (2, 25, 25, 0), (
        "the last drain is a run too"
    )
    assert b'"delivered":25' in msgspec.json.encode(stats)


def test_it_runs_again_after_the_interval(face: str) -> None:
    buffer, index = filled([1]), Index()
    with running(face, buffer, index, interval=0.05):
        index.wait_for(lambda: index.done == [1])
        buffer.add(event(2))
        index.wait_for(lambda: index.done == [1, 2])


def test_a_run_never_overlaps_itself_and_missed_ones_are_merged(face: str) -> None:
    busy, overlaps, calls = threading.Lock(), [], []

    def slow(payloads: list[Payload]) -> None:
        if not busy.acquire(blocking=False):
            overlaps.append(payloads)
            return
        time.sleep(0.25)
        calls.append(len(payloads))
        busy.release()

    with running(face, filled(range(2)), slow, interval=0.05, batch_size=1) as run:
        until(lambda: len(calls) == 2)
        until(lambda: run.job.stats().runs >= 3)
        run.stop()
    assert not overlaps
    stats = run.job.stats()
    assert stats.missed_runs >= 7, "half a second, and one run for all of it"


def test_enough_events_start_a_run_early(face: str) -> None:
    buffer, index, ended = EventBuffer(), Index(), threading.Event()

    class Hears:
        def job_run(self, **facts: object) -> None:
            ended.set()

    with running(face, buffer, index, interval=3600, trigger_size=3, observer=Hears()) as run:
        assert ended.wait(10), "the run at the start, which finds nothing"
        buffer.add(event(1))
        buffer.add(event(2))
        time.sleep(0.1)
        assert not index.done
        buffer.add(event(3))
        index.wait_for(lambda: index.done == [1, 2, 3])
        assert run.job.stats().runs == 2


def test_a_buffer_that_cannot_wait_is_asked_for_its_size() -> None:
    with BlockingBuffer(DurableBuffer(MemoryStore(), acquire_timeout=PATIENCE)) as buffer:
        index = Index()
        with running("sync", buffer, index, interval=3600, trigger_size=2, dead_letters=lambda *_: None):
            buffer.add(event(1))
            buffer.add(event(2))
            index.wait_for(lambda: sorted(index.done) == [1, 2])


def test_stop_drains_once_more(face: str) -> None:
    buffer, index = filled([1]), Index()
    with running(face, buffer, index, interval=3600) as run:
        index.wait_for(lambda: index.done == [1])
        until(lambda: not run.job.stats().in_flight)
        for number in range(2, 50):
            buffer.add(event(number))
        assert run.stop().drained
    assert index.done == list(range(1, 50))


def test_the_last_drain_has_a_deadline_and_what_is_left_is_reported(face: str) -> None:
    release = threading.Event()

    def stuck(payloads: list[Payload]) -> None:
        release.wait(PATIENCE)

    buffer = filled(range(30))
    with running(face, buffer, stuck, batch_size=10) as run:
        until(lambda: run.job.stats().in_flight == 10)
        began = time.monotonic()
        report = run.stop(0.2)
        assert time.monotonic() - began < PATIENCE / 2
        release.set()
    assert (report.drained, report.left, report.running) == (False, 30, 1)
    assert run.job.stats().left == 30
    assert run.job.stats().balanced
    assert [number_of(payload) for payload in buffer.drain()] == list(range(30)), "given back in order"


def test_stop_inside_the_handler_does_not_wait_for_itself(face: str) -> None:
    def handler(payloads: list[Payload]) -> None:
        run.job.stop()

    run = Running(face, filled([1]), handler, interval=3600)
    run.start()
    assert run.join().drained


def test_stop_of_a_job_that_does_not_run_changes_nothing(face: str) -> None:
    index = Index()
    with running(face, filled([1]), index, interval=3600) as run:
        index.wait_for(lambda: index.done == [1])
        run.stop()
    run.job.stop()
    again = Running(face, filled([2]), index, interval=3600)
    again.job.stop()
    again.start()
    index.wait_for(lambda: index.done == [1, 2])
    again.stop()


def test_a_job_does_not_run_twice_at_once(face: str) -> None:
    with running(face, filled([1]), Index(), interval=3600) as run:
        until(lambda: run.job.is_running and run.job.stats().runs)
        with pytest.raises(ClientStateError, match="running already"):
            blocking_run(run)
        assert run.stop().drained


def blocking_run(run: Running) -> None:
    import anyio

    if isinstance(run.job, DrainJob):
        anyio.run(run.job.run)
    else:
        run.job.run()


def test_a_plain_handler_has_one_thread_of_its_own(face: str) -> None:
    buffer, index = filled(range(100)), Index(bad=[7])
    with running(face, buffer, index, batch_size=10) as run:
        index.wait_for(lambda: len(index.done) == 99)
        assert run.stop().drained
    assert len(index.threads) == 1
    assert threading.get_ident() not in index.threads


def test_an_async_handler_works_with_every_face(face: str) -> None:
    seen: list[int] = []

    async def handler(payloads: list[Payload]) -> None:
        seen.extend(number_of(payload) for payload in payloads)

    with running(face, filled(range(5)), handler) as run:
        until(lambda: len(seen) == 5)
        assert run.stop().drained


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_an_interrupt_in_the_handler_ends_the_job_and_gives_the_events_back(
    face: str, error: type[BaseException]
) -> None:
    def handler(payloads: list[Payload]) -> None:
        raise error

    buffer = filled(range(3))
    run = Running(face, buffer, handler)
    run.start()
    with pytest.raises(error):
        run.join()
    assert buffer.size == 3
    assert not run.job.is_running
    assert run.job.stats().balanced


def test_live_fails_when_the_handler_hangs(face: str) -> None:
    release = threading.Event()
    # The limit is never less than twice retry_max, so that a pause is not taken for a stop.
    with running(face, filled([1]), lambda _: release.wait(PATIENCE), progress_limit=0.1) as run:
        until(lambda: run.job.stats().in_flight)
        until(lambda: not run.job.live)
        assert run.job.live.reason.startswith("no progress for ")
        assert not run.job.ready
        release.set()
        until(lambda: run.job.live and run.job.ready)


def test_ready_says_that_the_handler_fails_and_live_does_not_mind(face: str) -> None:
    index = Index()
    index.is_away = True
    with running(face, filled(range(10)), index, interval=0.05) as run:
        assert run.job.live
        until(lambda: "fails for everything: ConnectionError" in run.job.ready.reason)
        assert run.job.live
        index.is_away = False
        until(lambda: bool(run.job.ready))
    assert not run.job.ready
    assert run.job.ready.reason == "not running"
    assert run.job.live


def test_a_bug_ends_the_job_and_live_says_so(face: str) -> None:
    class Broken:
        async def add(self, payload: Payload) -> None: ...
        async def drain(self) -> list[Payload]:
            raise ZeroDivisionError("a bug")

        async def size(self) -> int:
            return 0

    run = Running(face, Broken(), Index(), max_attempts=None)
    run.start()
    with pytest.raises(ZeroDivisionError):
        run.join()
    assert run.job.live.reason == "ended with ZeroDivisionError"


def test_the_observer_hears_of_runs_and_failures(face: str) -> None:
    told: list[tuple[str, dict[str, object]]] = []

    class Hears:
        def job_run(self, **facts: object) -> None:
            told.append(("run", facts))

        def job_handler_failed(self, **facts: object) -> None:
            told.append(("failed", facts))

        def events_dropped(self, **facts: object) -> None:
            told.append(("dropped", facts))

    with running(face, filled(range(4)), Index(bad=[1]), max_attempts=1, interval=3600, observer=Hears()) as run:
        until(lambda: run.job.stats().dead_lettered)
        run.stop()
    assert ("dropped", {"source": "job", "reason": "dead_letter", "count": 1}) in told
    assert sum(kind == "failed" for kind, _ in told) == 3
    runs = [facts for kind, facts in told if kind == "run"]
    assert [facts["events"] for facts in runs] == [3, 0]
    assert runs[0]["outcome"] == "EMPTY"


def test_leaving_the_block_raises_what_ended_the_job() -> None:
    class Broken:
        async def add(self, payload: Payload) -> None: ...
        async def drain(self) -> list[Payload]:
            raise ZeroDivisionError("a bug")

        async def size(self) -> int:
            return 0

    with pytest.raises(ZeroDivisionError), blocking_job(Broken(), Index(), max_attempts=None):
        pass


@pytest.mark.parametrize(
    "options",
    [
        {"interval": 0}, {"jitter": 1.0}, {"jitter": -0.1}, {"batch_size": 0}, {"trigger_size": 0}, {"max_attempts": 0},
        {"retry_initial": 0}, {"retry_initial": 2.0, "retry_max": 1.0}, {"lease_timeout": 0}, {"stop_timeout": -1},
        {"progress_limit": 0}, {"name": ""}, {"name": "two\nlines"}, {"dead_letters": 3}, {"leader": object()},
        {"on_error": 3}, {"patience": -1}, {"trigger_size": 1001}, {"types": []}, {"types": "summary"}, {"types": [1]},
        {"types": {"summary", None}}, {"types": 5},
    ],
)  # fmt: skip
def test_an_option_that_cannot_work_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        blocking_job(EventBuffer(max_size=1000), Index(), **options)
    assert caught.value.option in {**options, "retry_max": 0}


@pytest.mark.parametrize("buffer", [None, [], object()])
def test_what_is_no_buffer_is_refused(buffer: object) -> None:
    with pytest.raises(ConfigurationError, match="buffer="):
        blocking_job(buffer, Index())


def test_a_handler_must_be_callable() -> None:
    with pytest.raises(ConfigurationError, match="handler="):
        blocking_job(EventBuffer(), "index")
