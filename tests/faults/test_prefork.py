"""
Prefork, as gunicorn does it: a buffer, a client and a job used in the parent, then four forks that each use them.

Nothing of the parent's lives on in a child: no thread, no lock, no lease, no socket; and the parent is as it was.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from connector_sdk.payloads import SummaryPayload
from connector_sdk.testing import ConnectorServer
from tests.faults.books import PATIENCE
from tests.servers.fixtures import Server, one_kind

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not hasattr(os, "fork") or not os.path.isdir("/proc/self/fd"), reason="needs fork and /proc"),
]

#: Arguments: "memory", a URL or the path of a file, key prefix, event loop. Each process prints a line of JSON.
PREFORK = """
    import json, os, sys, threading, time, warnings
    from connector_sdk.buffers.blocking import BlockingBuffer
    from connector_sdk.buffers.memory import EventBuffer
    from connector_sdk.buffers.redis import RedisEventBuffer
    from connector_sdk.buffers.sqlite import SQLiteEventBuffer
    from connector_sdk.errors import LeaseError
    from connector_sdk.payloads import SummaryPayload

    WORKERS, EVENTS = 4, 50
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks in a threaded program

    def tell(**facts):
        os.write(1, (json.dumps(facts) + "\\n").encode())  # in one piece, for all write to one pipe

    def event(number):
        return SummaryPayload("shop", "s", "", 0, time.time(), str(number))

    def sockets():
        found = set()
        for descriptor in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{descriptor}")
            except OSError:
                continue
            if target.startswith("socket:"):
                found.add(target)
        return found

    def left():  # the thread of a file ends when it had nothing to do for a while
        return [thread.name for thread in threading.enumerate() if thread.name != "connector_sdk sqlite"]

    def use(first):
        # In several threads, so that a lock that is not free hangs.
        threads = [
            threading.Thread(target=lambda t=t: [buffer.add(event(first + n)) for n in range(t, EVENTS, 5)])
            for t in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def work(worker, inherited):
        threads = [thread.name for thread in threading.enumerate()]
        shared_before = len(sockets() & inherited)
        refusals = 0
        for call in (open_lease.ack, open_lease.give_back, lambda: open_lease.fail(open_lease.events[0], ValueError())):
            try:
                call()
            except LeaseError:
                refusals += 1
        open_lease.__exit__(None, None, None)
        use(1000 * worker)
        with buffer.lease(5) as lease:
            taken = [int(event.event_id) for event in lease]
        with_buffer = sockets()
        buffer.close()
        tell(
            worker=worker, threads=threads, shared=shared_before + len(with_buffer & inherited), refusals=refusals,
            taken=taken, left=left(), new=sorted(with_buffer - inherited),
            balanced=buffer.stats().ledger.balanced,
        )

    place, prefix, event_loop = sys.argv[1:]
    if place == "memory":
        backend = EventBuffer(0).as_backend()
    elif place.startswith("redis"):
        backend = RedisEventBuffer(place, prefix)
    else:
        backend = SQLiteEventBuffer(place)
    buffer = BlockingBuffer(backend, event_loop=event_loop)
    use(0)
    open_lease = buffer.lease(10).__enter__()
    going = threading.Event()

    def disturb():  # the forks come while another thread is in the middle of something
        while not going.is_set():
            buffer.size()

    disturber = threading.Thread(target=disturb)
    disturber.start()
    inherited = sockets()
    children = []
    for worker in range(1, WORKERS + 1):
        child = os.fork()
        if not child:
            try:
                work(worker, inherited)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
            sys.exit(0)  # with whatever Python does at the end of a process
        children.append(child)
    going.set()
    disturber.join()
    use(500)  # while the children work
    open_lease.ack(open_lease.events[:4])
    open_lease.give_back()
    failed = [child for child in children if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]
    assert not failed, failed
    still = sockets() & inherited
    rest = [int(event.event_id) for event in buffer.drain()]
    open_lease.__exit__(None, None, None)
    buffer.close()
    tell(
        parent=len(still), had=len(inherited), rest=rest, balanced=buffer.stats().ledger.balanced,
        left=left(),
    )
"""


def prefork(place: str, prefix: str, event_loop: str) -> tuple[dict[str, object], list[dict[str, object]]]:
    """Run it; return what the parent says, and the workers."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PREFORK), place, prefix, event_loop],
        timeout=3 * PATIENCE,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    return next(one for one in said if "parent" in one), [one for one in said if "worker" in one]


def check(parent: dict[str, object], workers: list[dict[str, object]]) -> None:
    assert len(workers) == 4
    sockets: list[str] = []
    for worker in workers:
        assert worker["threads"] == worker["left"] == ["MainThread"], worker
        assert (worker["shared"], worker["refusals"], worker["balanced"]) == (0, 3, True), worker
        assert isinstance(worker["new"], list)
        sockets += worker["new"]
    assert len(sockets) == len(set(sockets))
    assert (parent["parent"], parent["balanced"], parent["left"]) == (parent["had"], True, ["MainThread"])


@pytest.mark.parametrize("event_loop", ["asyncio", "trio"])
def test_memory_starts_empty_in_each_worker(event_loop: str) -> None:
    parent, workers = prefork("memory", "-", event_loop)
    check(parent, workers)
    for worker in workers:
        assert isinstance(worker["worker"], int)
        assert isinstance(worker["taken"], list)
        assert len(worker["taken"]) == 5
        assert all(number // 1000 == worker["worker"] for number in worker["taken"])
    assert isinstance(parent["rest"], list)
    # Of the ten on lease the four that were acknowledged are gone; threads may have added the first 50 in any order.
    assert len(parent["rest"]) == 96
    assert len([number for number in parent["rest"] if number >= 500]) == 50


@one_kind
def test_each_worker_has_connections_of_its_own(redis_server: Server, redis_prefix: str) -> None:
    check_shared(*prefork(redis_server.url, redis_prefix, "asyncio"))


@pytest.mark.parametrize("event_loop", ["asyncio", "trio"])
def test_each_worker_opens_the_file_anew(tmp_path: Path, event_loop: str) -> None:
    check_shared(*prefork(str(tmp_path / "events.db"), "-", event_loop))


def check_shared(parent: dict[str, object], workers: list[dict[str, object]]) -> None:
    """Check what they say about one store for all."""
    check(parent, workers)
    taken: list[int] = []
    for worker in workers:
        assert isinstance(worker["taken"], list)
        taken += worker["taken"]
    assert isinstance(parent["rest"], list)
    # All that was added, less what the workers took and what the parent acknowledged: nothing twice, nothing lost.
    everything = [*range(50), *range(500, 550), *(1000 * n + m for n in range(1, 5) for m in range(50))]
    assert len(taken) == len(set(taken)) == 20
    assert len(parent["rest"]) == len(everything) - 20 - 4
    assert set(parent["rest"]) <= set(everything) - set(taken)


#: Arguments: the URL of a stream, the signal that ends a worker. A master, as gunicorn has it: workers that die are replaced.
SERVER = """
    import json, os, signal, sys, threading, time, warnings
    from connector_sdk import BlockingDrainJob, ConnectorClient, EventBuffer

    WORKERS, EVENTS = 4, 30
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks in a threaded program

    def tell(**facts):
        os.write(1, (json.dumps(facts) + "\\n").encode())

    def sockets():
        found = set()
        for descriptor in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{descriptor}")
            except OSError:
                continue
            if target.startswith("socket:"):
                found.add(target)
        return found

    done = []

    def index(payloads):
        done.extend(payload.event_id for payload in payloads)

    def until(reached):
        deadline = time.monotonic() + 30
        while not reached():
            assert time.monotonic() < deadline, (client, job, job.stats())
            time.sleep(0.005)

    def left():
        until(lambda: threading.active_count() == 1)  # those that were told to end may need a moment
        return [thread.name for thread in threading.enumerate()]

    url, ending = sys.argv[1:]
    buffer = EventBuffer(0)
    client = ConnectorClient(url).into(buffer)
    job = BlockingDrainJob(buffer, index, interval=0.02)

    def start():
        job.run_in_background()
        client.run_in_background()
        until(lambda: len(done) == EVENTS)

    def work(worker, inherited, wait):
        facts = dict(
            threads=[thread.name for thread in threading.enumerate()],
            shared=len(sockets() & inherited),
            idle=not job.is_running and client.state == "idle" and job.stats().received == buffer.size == 0,
            received=client.stats().ledger.received,
        )
        if wait:
            os.write(begun, b".")
            time.sleep(60)  # until it is killed
        done.clear()
        start()
        facts["shared"] += len(sockets() & inherited)
        client.stop()
        report = job.stop()
        facts.update(
            done=len(set(done)), drained=report.drained, balanced=job.stats().balanced, left=left()
        )
        tell(worker=worker, **facts)

    def spawn(worker, wait=False):
        child = os.fork()
        if child:
            return child
        try:
            work(worker, inherited, wait)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        sys.exit(0)

    start()
    inherited = sockets()
    going = threading.Event()

    def disturb():  # the forks come while another thread is in the middle of something
        while not going.is_set():
            client.stats(), job.stats(), buffer.stats(), client.on_connect(dict), client.remove(dict)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    begins, begun = os.pipe()
    first = spawn(0, wait=True)
    os.read(begins, 1)  # Python forgets signals that come to a child before it runs
    children = [spawn(worker) for worker in range(1, WORKERS)]
    os.kill(first, signal.Signals[ending])
    ended = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
    children.append(spawn(WORKERS))
    failed = [child for child in children if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]
    assert not failed, failed
    going.set()
    disturber.join()
    still = sockets() & inherited
    tell(ready=True)
    until(lambda: len(done) == EVENTS + 1)  # one that comes now
    state = str(client.state)
    client.stop()
    job.stop()
    tell(
        parent=len(still), had=len(inherited), state=state, connections=client.stats().connections, done=len(set(done)),
        killed=ended, balanced=job.stats().balanced, left=left(),
    )
"""


@pytest.mark.parametrize("ending", ["SIGKILL", "SIGTERM"])
def test_a_client_and_a_job_of_the_parent_start_anew_in_each_worker(ending: str) -> None:
    events = [SummaryPayload("shop", f"s{n}", "", 0, 0.0, None) for n in range(30)]
    with (
        ConnectorServer(events) as server,
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SERVER), server.url, ending],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as master,
    ):
        try:
            assert master.stdout is not None
            said = []
            for line in master.stdout:
                fact = json.loads(line)
                if "ready" in fact:
                    server.publish(events[0])
                else:
                    said.append(fact)
            _, err = master.communicate(timeout=3 * PATIENCE)
        finally:
            master.kill()
    assert (master.returncode, err) == (0, "")
    workers = [one for one in said if "worker" in one]
    assert sorted(one["worker"] for one in workers) == [1, 2, 3, 4]
    for one in workers:
        assert one["threads"] == one["left"] == ["MainThread"], one
        assert (one["shared"], one["idle"], one["received"]) == (0, True, 0), one
        assert (one["done"], one["drained"], one["balanced"]) == (30, True, True), one
    parent = next(one for one in said if "parent" in one)
    assert (parent["parent"], parent["state"], parent["connections"]) == (parent["had"], "open", 1)
    assert (parent["done"], parent["balanced"], parent["left"]) == (31, True, ["MainThread"])
    assert parent["killed"] == -getattr(signal, ending)


ITERATION = """
    import os, sys, warnings
    from connector_sdk import ClientStateError, ConnectorClient

    warnings.simplefilter("ignore", DeprecationWarning)
    url, way = sys.argv[1:]
    seen, child = [], None
    try:
        for payload in ConnectorClient(url):
            seen.append(payload.event_id)
            if len(seen) == 2:
                child = os.fork()
                if not child and way == "exit":
                    sys.exit(5)
            if len(seen) == 5:
                break
    except ClientStateError:
        sys.exit(6)
    assert len(seen) == 5
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == {"exit": 5, "go on": 6}[way]
"""


@pytest.mark.parametrize("way", ["exit", "go on"])
def test_an_iteration_is_the_parents(way: str) -> None:
    with ConnectorServer([SummaryPayload("shop", "s", "", 0, 0.0, None) for _ in range(5)]) as server:
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(ITERATION), server.url, way],
            timeout=PATIENCE,
            check=True,
            stdout=subprocess.DEVNULL,
        )
