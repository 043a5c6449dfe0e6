"""What runs in the background finishes at the end of a process, within a budget: in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from connector_sdk import BlockingBuffer, BlockingDrainJob, ConfigurationError, EventBuffer
from tests.jobs.samples import PATIENCE

#: What each script begins with. `done` is told after everything, at the very end of the interpreter.
_START = """
    import atexit, os, signal, sys, threading, time
    from connector_sdk import BlockingBuffer, BlockingDrainJob, ConnectorClient, EventBuffer
    from connector_sdk.payloads import SummaryPayload
    from connector_sdk.testing import ConnectorServer

    done = []

    def tell():
        print("done", len(done), flush=True)

    atexit.register(tell)

    def event(number):
        return SummaryPayload("shop", f"s-{number}", "", 0, 0.0, str(number))

    def index(payloads):
        done.extend(payloads)
        os.write(1, b".")  # also when the process dies of a signal, without a last word

    def hang(payloads):
        time.sleep(3600)

    def fail(payloads):
        raise ConnectionError("the index is away")

    def fill(buffer, count=5):
        for number in range(count):
            buffer.add(event(number))

    def started(job, **options):
        job.run_in_background(**options)
        while not job.stats().runs or job.stats().next_run_in is None:
            time.sleep(0.001)
        time.sleep(0.05)  # its first run finds nothing
        return job

    buffer = EventBuffer()
"""
_LEFT = "connector_sdk: 5 events are left in <EventBuffer size=5 max_size=1000>"


def run(source: str, how: str, end: str = "") -> tuple[int, str, list[str], float]:
    """Run a script; return its status, what it printed, its lines on stderr, and the seconds from its last line to its end."""
    script = "".join(textwrap.dedent(part) for part in (_START, source, end or _END))
    done = subprocess.run(
        [sys.executable, "-c", script, how], capture_output=True, text=True, timeout=2 * PATIENCE, check=False
    )
    ended = time.monotonic()
    began, _, out = done.stdout.partition("\n")
    assert began, done.stderr
    return done.returncode, out, done.stderr.splitlines(), ended - float(began)


#: How a script ends, by its first argument.
_END = """
    print(time.monotonic(), flush=True)
    how = sys.argv[1]
    if how == "exit":
        sys.exit(3)
    if how == "error":
        raise ValueError("unhandled")
    if how.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[how])
        time.sleep(60)
"""
_STATUS = {"end": 0, "exit": 3, "error": 1, "SIGINT": -signal.SIGINT, "SIGTERM": -signal.SIGTERM}


@pytest.mark.parametrize("how", _STATUS)
def test_a_job_drains_once_more_and_nothing_is_said(how: str) -> None:
    status, out, err, _ = run("started(BlockingDrainJob(buffer, index, interval=3600))\nfill(buffer)\n", how)
    assert status == _STATUS[how]
    assert out == ("." if how == "SIGTERM" else ".done 5\n")
    assert not [line for line in err if "connector_sdk" in line]
    assert {"error": "ValueError: unhandled", "SIGINT": "KeyboardInterrupt"}.get(how, "") == (err[-1] if err else "")


@pytest.mark.parametrize("handler", ["hang", "fail"])
@pytest.mark.parametrize("how", ["exit", "SIGTERM"])
def test_what_is_left_is_one_line_and_the_budget_is_kept(how: str, handler: str) -> None:
    status, out, err, seconds = run(f"started(BlockingDrainJob(buffer, {handler}, interval=3600))\nfill(buffer)\n", how)
    assert status == _STATUS[how]
    assert out == ("" if how == "SIGTERM" else "done 0\n")
    assert [line for line in err if not line.startswith("drain job: the handler failed")] == [_LEFT]
    assert seconds < 6.0  # 2, and the time that a busy machine takes to end a process


def test_the_budget_is_the_callers() -> None:
    source = "started(BlockingDrainJob(buffer, hang, interval=3600), exit_timeout=6.0)\nfill(buffer)\n"
    status, _, err, seconds = run(source, "end")
    assert (status, err) == (0, [_LEFT])
    assert 4.0 < seconds < 12.0


@pytest.mark.parametrize("how", ["end", "SIGTERM"])
def test_without_a_budget_nothing_happens(how: str) -> None:
    source = """
    started(BlockingDrainJob(buffer, index, interval=3600), exit_timeout=0)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    fill(buffer)
    """
    status, out, err, _ = run(source, how)
    assert (status, out, err) == (_STATUS[how], "" if how == "SIGTERM" else "done 0\n", [])


def test_a_job_that_hangs_does_not_hold_up_another() -> None:
    source = """
    other = EventBuffer()
    started(BlockingDrainJob(other, hang, interval=3600))
    started(BlockingDrainJob(buffer, index, interval=3600))
    fill(buffer)
    fill(other)
    """
    status, out, err, _ = run(source, "end")
    assert (status, out, err) == (0, ".done 5\n", [_LEFT])


_CHAIN = """
    class Slow:
        def __init__(self, inner): self.inner = inner
        async def add(self, payload): await self.inner.add(payload)
        async def drain(self): return await self.inner.drain()
        async def size(self): return await self.inner.size()
        async def aclose(self): os.write(1, b"closed ")

    held = BlockingBuffer(Slow(buffer.as_backend()))
    held.size()
    server = ConnectorServer([event(number) for number in range(8)]).__enter__()

    def slowly(payload):
        time.sleep(0.03)
        held.add(payload)

    # Made in the order in which they must not end.
    job = started(BlockingDrainJob(buffer, index, interval=3600))
    client = ConnectorClient(server.url)
    client.on_event("*", slowly)
    client.run_in_background()
    client.wait_until_open(20)
    while client.stats().ledger.received < 8:
        time.sleep(0.001)
"""


@pytest.mark.parametrize("how", ["end", "SIGTERM"])
def test_clients_stop_then_jobs_drain_then_buffers_close(how: str) -> None:
    status, out, err, _ = run(_CHAIN, how)
    assert (status, err) == (_STATUS[how], [])
    # The callbacks had to finish before the last drain, and the buffer had to take their events until then.
    assert out == (".closed " if how == "SIGTERM" else ".closed done 8\n")


def test_a_client_that_does_not_finish_says_so() -> None:
    source = _CHAIN.replace("time.sleep(0.03)", "time.sleep(60)")
    status, out, err, seconds = run(source, "end")
    assert (status, out, len(err)) == (0, "closed done 0\n", 1), err
    assert err[0].startswith("connector_sdk: 8 events are unfinished in <ConnectorClient ")
    assert seconds < 6.0


def test_a_buffer_that_does_not_close_is_left() -> None:
    source = _CHAIN.replace('os.write(1, b"closed ")', "time.sleep(60)")
    status, out, err, seconds = run(source, "end")
    assert (status, out, err) == (0, ".done 8\n", ["connector_sdk: a BlockingBuffer did not end in time"])
    assert seconds < 6.0


def test_threads_of_the_program_come_first() -> None:
    source = """
    started(BlockingDrainJob(buffer, index, interval=3600))

    def later():
        while threading.main_thread().is_alive() and not threading._SHUTTING_DOWN:
            time.sleep(0.001)
        time.sleep(0.3)
        fill(buffer)

    threading.Thread(target=later).start()
    """
    status, out, err, _ = run(source, "end")
    assert (status, out, err) == (0, ".done 5\n", [])


def test_a_handler_of_the_program_stays() -> None:
    source = """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    started(BlockingDrainJob(buffer, index, interval=3600))
    fill(buffer)
    """
    assert run(source, "SIGTERM")[:3] == (7, ".done 5\n", [])


def test_an_error_in_the_block_ends_it_with_a_last_drain() -> None:
    source = """
    job = BlockingDrainJob(buffer, index, interval=3600)
    print(time.monotonic(), flush=True)
    with job:
        while not job.stats().runs:
            time.sleep(0.001)
        time.sleep(0.05)
        fill(buffer)
        raise ValueError("unhandled")
    """
    status, out, err, _ = run(source, "", "0")
    assert (status, out, err[-1]) == (1, ".done 5\n", "ValueError: unhandled")


def test_a_job_that_was_stopped_and_a_buffer_without_a_job_say_nothing() -> None:
    source = """
    started(BlockingDrainJob(buffer, index, interval=3600)).stop()
    fill(buffer)
    """
    assert run(source, "end")[:3] == (0, "done 0\n", [])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("how", ["exit", "SIGTERM"])
def test_the_child_of_a_fork_has_nothing_to_finish(how: str) -> None:
    source = """
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    job = started(BlockingDrainJob(buffer, index, interval=3600))
    fill(buffer)
    child = os.fork()
    if not child:
        atexit.unregister(tell)
        how = sys.argv[1]
        if how == "exit":
            sys.exit(3)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(time.monotonic(), flush=True)
    print("child", status, len(done), buffer.size, flush=True)
    """
    status, out, err, _ = run(source, how, "0")
    assert (status, out, err) == (0, f"child {_STATUS[how]} 0 5\n.done 5\n", [])


@pytest.mark.parametrize("value", [-1, float("nan"), "2", True])
def test_the_budget_must_be_seconds(value: float) -> None:
    with pytest.raises(ConfigurationError, match="exit_timeout"):
        BlockingDrainJob(EventBuffer(), print).run_in_background(exit_timeout=value)
    with pytest.raises(ConfigurationError, match="exit_timeout"):
        BlockingBuffer(EventBuffer().as_backend(), exit_timeout=value)
