"""After a fork the child starts empty and unlocked, and the parent is as it was."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable

import pytest

from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.errors import LeaseError
from connector_sdk.payloads import Payload
from tests.buffers.samples import PATIENCE, Crew, fill, number_of, numbers, summary

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def in_child(check: Callable[[], None]) -> None:
    """Run *check* in a forked child; fail if it fails or hangs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks in a threaded program
        pid = os.fork()
    if pid == 0:
        try:
            check()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + PATIENCE
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            pytest.fail("the child hangs")
        time.sleep(0.005)
    assert os.waitstatus_to_exitcode(status) == 0


def test_the_child_starts_empty_and_the_parent_is_untouched() -> None:
    told: list[Payload] = []
    buffer = EventBuffer(3, told.append, max_bytes=10_000, max_age=60.0)
    fill(buffer, 5)
    lease = buffer.lease(1).__enter__()
    before = buffer.stats()

    def check() -> None:
        stats = buffer.stats()
        assert (stats.size, stats.bytes, stats.leases, stats.ledger.received, stats.oldest_age) == (0, 0, 0, 0, None)
        with pytest.raises(LeaseError):
            lease.ack()
        lease.__exit__(None, None, None)
        fill(buffer, 4, start=10)
        assert [number_of(payload) for payload in told] == [0, 1, 10]
        assert numbers(buffer.drain()) == [11, 12, 13]
        assert buffer.stats().ledger.balanced

    in_child(check)
    assert buffer.stats().ledger == before.ledger
    lease.ack()
    assert numbers(buffer.drain()) == [3, 4]
    assert numbers(told) == [0, 1]


def test_a_lock_held_by_another_thread_is_free_in_the_child() -> None:
    buffer = EventBuffer(3, lambda payload: None)
    fill(buffer, 2)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with buffer._lock:
            held.set()
            assert release.wait(PATIENCE)

    def check() -> None:
        fill(buffer, 5)
        assert numbers(buffer.drain()) == [2, 3, 4]

    with Crew() as crew:
        crew.start(hold)
        assert held.wait(PATIENCE)
        in_child(check)
        release.set()
    assert numbers(buffer.drain()) == [0, 1]


def test_a_thread_that_told_a_drop_in_the_parent_does_not_keep_the_child_from_telling() -> None:
    told: list[int] = []
    entered, release = threading.Event(), threading.Event()

    def hook(payload: Payload) -> None:
        told.append(number_of(payload))
        if len(told) == 1:
            entered.set()
            assert release.wait(PATIENCE)

    buffer = EventBuffer(1, hook)
    fill(buffer, 1)

    def check() -> None:
        fill(buffer, 2, start=10)
        assert told == [0, 10]

    with Crew() as crew:
        crew.start(buffer.add, summary(1))
        assert entered.wait(PATIENCE)
        in_child(check)
        release.set()
    assert told == [0]


def test_callers_who_wait_in_the_parent_are_not_in_the_child() -> None:
    buffer = EventBuffer(1, overflow="block")
    fill(buffer, 1)

    def check() -> None:
        assert buffer.stats().waiting_adds == 0
        fill(buffer, 1, start=5)
        assert numbers(buffer.drain()) == [5]

    with Crew() as crew:
        crew.start(buffer.add, summary(1))
        while not buffer.stats().waiting_adds:
            time.sleep(0.0005)
        in_child(check)
        assert numbers(buffer.drain()) == [0]
    assert numbers(buffer.drain()) == [1]


def test_dead_letters_and_open_leases_stay_with_the_parent() -> None:
    buffer = EventBuffer()
    fill(buffer, 4)
    with buffer.lease(2) as lease:
        for event in lease:
            lease.fail(event, ValueError("poison"))
    assert buffer.dead_letters.replay(limit=1).replayed == 1
    letters = buffer.dead_letters
    lease = buffer.lease().__enter__()
    before = buffer.stats()
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with buffer._lock:
            held.set()
            assert release.wait(PATIENCE)

    def check() -> None:
        assert (letters.count(), buffer.stats().dead_letters, letters.get("0-2")) == (0, 0, None)
        with pytest.raises(LeaseError):
            lease.fail(lease.events[0], ValueError())
        lease.__exit__(None, None, None)
        assert letters.replay().matched == 0
        fill(buffer, 1, start=9)
        with buffer.lease() as own:
            own.fail(own.events[0], ValueError())
        assert [letter.id for letter in letters] == ["0-1"]
        assert buffer.stats().ledger.balanced

    with Crew() as crew:
        crew.start(hold)
        assert held.wait(PATIENCE)
        in_child(check)
        release.set()
    assert buffer.stats().ledger == before.ledger
    assert [letter.id for letter in letters] == ["0-2"]
    replayed = next(event for event in lease if number_of(event) == 0)
    lease.fail(replayed, ValueError("again"))
    assert [(letter.id, letter.replays) for letter in letters] == [("0-2", 0), ("0-1", 1)]
