"""A process that forks while a bus is open: the child cannot use that bus and cannot harm it, and opens one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from tests.bus.places import Place
from tests.servers.fixtures import one_kind

pytestmark = [
    one_kind,
    pytest.mark.skipif(not hasattr(os, "fork") or not os.path.isdir("/proc/self/fd"), reason="needs fork and /proc"),
]

PATIENCE = 30.0

#: Arguments: kind, URL, prefix, and where it forks: in a "coroutine", or in the main "thread" while a loop runs in another.
FORK = """
    import asyncio, json, os, sys, threading, warnings
    from connector_sdk import BusClosedError, Event, EventBus
    from tests.bus.places import make_log

    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks in a threaded program
    kind, url, prefix, where = sys.argv[1:]
    PATIENCE = 30

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

    def event(number):
        return Event("created", "orders:eu", number)

    async def use():
        errors = []
        calls = (
            lambda: bus.publish("orders:eu", event(50)), lambda: bus.subscribe("orders:eu", print),
            lambda: bus.info("orders:eu"), lambda: bus.settle(1), lambda: bus.recover("G"), bus.connect,
            lambda: anext(bus.events()),
        )
        for call in calls:
            try:
                await call()
            except BusClosedError as error:
                errors.append("fork" in str(error))
        healthy = (await bus.health()).healthy
        await subscription.cancel()
        await bus.close()
        seen = []
        async with EventBus(log, hold=5.0) as own:
            await own.subscribe("orders:eu", lambda event: seen.append(event.payload), start="beginning")
            await own.publish("orders:eu", event(99))
            await own.settle(PATIENCE)
        return dict(errors=errors, healthy=healthy, seen=seen)

    def child():
        shared = len(sockets() & connections)
        facts = asyncio.run(asyncio.wait_for(use(), PATIENCE))
        tell(child=True, shared=shared, **facts)

    def fork():
        pid = os.fork()
        if pid:
            return pid
        try:
            child()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        if where == "coroutine":
            os._exit(0)  # as a process of multiprocessing ends: the event loop is not the child's to end
        sys.exit(0)  # with whatever Python does at the end of a process

    handled, live = [], []

    async def handle(event, message):
        handled.append((event.payload, message.attempt))
        if event.payload == 0:
            await go_on.wait()

    async def begin():
        global log, bus, subscription, connections, go_on
        go_on = asyncio.Event()
        before = sockets()
        log = make_log(kind, url, prefix)
        bus = EventBus(log, hold=5.0)
        await bus.connect()
        subscription = await bus.subscribe("orders:*", handle, group="G", concurrency=2)
        await bus.subscribe("orders:eu", lambda event: live.append(event.payload))
        await bus.publish("orders:eu", [event(0), event(1)])
        async with asyncio.timeout(PATIENCE):
            while len(handled) < 2 or len(live) < 2 or subscription.stats.unsettled:
                await asyncio.sleep(0.005)
        connections = sockets() - before

    async def end(pid):
        code = os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, pid, 0))[1])
        kept = len(sockets() & connections)
        await bus.publish("orders:eu", [event(2), event(3)])
        go_on.set()
        await bus.settle(PATIENCE)
        info = await bus.info("orders:eu")
        reconnections = bus.stats().reconnections
        await bus.close()
        tell(
            parent=True, code=code, kept=kept, had=len(connections), handled=sorted(handled), live=live,
            reconnections=reconnections, consumers=info.groups[0].consumers, pending=info.groups[0].pending,
        )

    async def main():
        await begin()
        await end(fork())

    if where == "coroutine":
        asyncio.run(main())
    else:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        asyncio.run_coroutine_threadsafe(begin(), loop).result(PATIENCE)
        asyncio.run_coroutine_threadsafe(end(fork()), loop).result(PATIENCE)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
"""


@pytest.mark.parametrize("where", ["coroutine", "thread"])
def test_the_child_of_a_fork_leaves_an_open_bus_to_its_parent(place: Place, where: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORK), place.kind, place.url, place.prefix, where],
        timeout=3 * PATIENCE,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    child = next(one for one in said if "child" in one)
    parent = next(one for one in said if "parent" in one)

    assert child["shared"] == 0, "no connection of the parent is open in the child"
    assert child["errors"] == [True] * 7, "every use of the parent's bus is an error that says why"
    assert not child["healthy"]
    # A log in memory begins empty in the child: what the parent has is not to be handled twice.
    assert child["seen"] == ([99] if place.kind == "memory" else [0, 1, 99])

    assert parent["code"] == 0
    assert parent["kept"] == parent["had"]
    assert parent["reconnections"] == 0
    theirs = [] if place.kind == "memory" else [99]
    assert parent["live"] == [0, 1, *theirs, 2, 3]
    assert parent["handled"] == [[number, 1] for number in sorted([0, 1, 2, 3, *theirs])]
    assert (parent["consumers"], parent["pending"]) == (1, 0)


PRELOAD = """
    import asyncio, os, sys
    from connector_sdk import Event, EventBus
    from tests.bus.places import make_log

    bus = EventBus(make_log(*sys.argv[1:]))

    async def use(number):
        seen = []
        async with bus:
            await bus.subscribe("orders:eu", lambda event: seen.append(event.payload))
            await bus.publish("orders:eu", Event("created", "orders:eu", number))
            await bus.settle(30)
        assert seen == [number], seen

    for number in range(2):  # one child after the other, and then the parent
        pid = os.fork()
        if not pid:
            asyncio.run(use(number))
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    asyncio.run(use(2))
"""


def test_a_bus_that_was_not_connected_can_be_opened_in_each_child(place: Place) -> None:
    """As servers that preload do it: made in the parent, used in the workers."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PRELOAD), place.kind, place.url, place.prefix],
        timeout=3 * PATIENCE,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
