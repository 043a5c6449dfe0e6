"""One run: starts the processes, does to them what the plan says, lets them finish, and reads what came of it."""

from __future__ import annotations

import heapq
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import anyio
import msgspec

from connector_sdk.buffers.durable_stats import DurableStats
from connector_sdk.testing import ConnectorServer, RedisServer
from connector_sdk.testing.child import Child
from tests.chaos.clock import Clock
from tests.chaos.place import LEASE, Place, events
from tests.chaos.plan import Plan, Strike
from tests.chaos.verdict import Outcome, Taken
from tests.servers.proxy import Proxy

__all__ = ["run"]

_ROOT: Final = Path(__file__).parents[2]
#: Seconds without any progress of the index after which a run is stuck.
_PATIENCE: Final = 30.0
_QUOTA: Final = 8192  # bytes that a file may have on a full disk
_NO_QUOTA: Final = resource.RLIM_INFINITY
_LEAST_MEMORY: Final = 1  # bytes that Redis may use when it is full


class _Worker:
    """A process that is started again when it was killed."""

    def __init__(self, role: str, place: Place, clock: Clock) -> None:
        self._role = role
        self._command = [
            sys.executable,
            "-m",
            f"tests.chaos.{role}",
            msgspec.json.encode(place).decode(),
            str(clock.path),
        ]
        self._log = place.path / f"{role}.log"
        self._child: Child | None = None

    def start(self) -> None:
        """Start it unless it runs."""
        if self._child is None:
            self._child = Child(self._command, directory=_ROOT, log=self._log)

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def check(self) -> None:
        """Raise when it ended by itself: whatever goes wrong around it, it must go on."""
        if self._child is not None and self._child.exit_code is not None:
            raise AssertionError(f"the {self._role} ended with {self._child.exit_code}: {self.tail()}")

    def pause(self) -> None:
        if self._child is not None:
            self._child.pause()

    def resume(self) -> None:
        if self._child is not None:
            self._child.resume()

    def limit_files(self, size: int) -> None:
        """Let no file that it writes grow beyond *size* bytes, as if the disk were full."""
        if self._child is not None:
            resource.prlimit(self._child.pid, resource.RLIMIT_FSIZE, (size, _NO_QUOTA))

    def finish(self, timeout: float) -> dict[str, object]:
        """End it with SIGTERM and return what it then said of itself."""
        if self._child is None:
            return {}
        self._child.terminate(timeout)
        code, self._child = self._child.exit_code, None
        if code != 0:
            raise AssertionError(f"the {self._role} ended with {code} after SIGTERM: {self.tail()}")
        said: dict[str, object] = json.loads(self._log.read_text().rstrip().rsplit("\n", 1)[-1])
        return said

    def tail(self) -> str:
        """The end of what it printed."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-30:]) if self._log.exists() else ""


class _World:
    """Everything of one run."""

    def __init__(self, plan: Plan, folder: Path, stack: ExitStack) -> None:
        self._plan = plan
        (folder / "disk").mkdir(parents=True)
        self.server = stack.enter_context(
            ConnectorServer(events(plan.events, time.time()), rate=plan.rate, heartbeat=0.5)
        )
        self._stream = stack.enter_context(Proxy(self.server.port))
        self.redis: RedisServer | None = None
        self._to_redis: Proxy | None = None
        redis_url = ""
        if plan.kind != "sqlite":
            self.redis = stack.enter_context(
                RedisServer(appendonly=plan.kind != "volatile", directory=folder / "redis")
            )
            self._to_redis = stack.enter_context(Proxy(self.redis.port))
            redis_url = self._to_redis.url
        url = self.server.url.replace(f":{self.server.port}/", f":{self._stream.port}/")
        self.place = Place(str(folder), plan.kind, url, redis_url)
        self._clock = Clock(folder / "clock")
        self.client = _Worker("client", self.place, self._clock)
        self.job = _Worker("job", self.place, self._clock)
        stack.callback(self.client.kill)
        stack.callback(self.job.kill)
        self.lost_before: list[int] = []  #: for each time that Redis forgot: how many events the server had sent

    def start(self) -> None:
        self.client.start()
        self.job.start()

    def begin(self, strike: Strike) -> Callable[[], object]:
        """Do what *strike* says; return what ends it."""
        action, _, what = strike.fault.partition(" ")
        if what in ("client", "job"):
            worker = self.client if what == "client" else self.job
            if action == "kill":
                worker.kill()
                return worker.start
            worker.pause()
            return worker.resume
        if what in ("stream", "redis") and action in ("cut", "stall"):
            proxy = self._stream if what == "stream" else self._to_redis
            assert proxy is not None
            if action == "cut":
                proxy.cut()
                proxy.refuse()
            else:
                proxy.swallow()
            return _restored(proxy)
        return {"jump clock": self._jump, "fill disk": self._fill_disk}.get(strike.fault, self._strike_redis)(strike)

    def _jump(self, strike: Strike) -> Callable[[], object]:
        self._clock.jump(strike.amount)
        return _nothing  # it stays so

    def _fill_disk(self, strike: Strike) -> Callable[[], object]:
        def limit(size: int) -> None:
            for worker in (self.client, self.job):
                worker.limit_files(size)

        limit(_QUOTA)
        return lambda: limit(_NO_QUOTA)

    def _strike_redis(self, strike: Strike) -> Callable[[], object]:
        redis = self.redis
        assert redis is not None
        if strike.fault == "kill redis":
            redis.kill()
            if self._plan.kind == "volatile":
                self.lost_before.append(self.server.sent)
            return lambda: None if redis.running else redis.restart()
        if strike.fault == "pause redis":
            if not redis.running:
                return _nothing
            redis.pause()
            return lambda: redis.resume() if redis.running else None
        _limit_memory(redis, _LEAST_MEMORY)
        return lambda: _limit_memory(redis, 0)

    def mend(self) -> None:
        """See to it that everything runs."""
        if self.redis is not None and not self.redis.running:
            self.redis.restart()
        self.start()

    def check(self) -> None:
        self.client.check()
        self.job.check()


def run(plan: Plan, folder: Path, say: Callable[[str], object]) -> Outcome:
    """
    Carry out *plan* in the empty folder *folder*, and return what came of it; *say* is told what happens.

    Raises AssertionError when a process ends by itself, or nothing more happens though events are missing.
    """
    with ExitStack() as stack:
        world = _World(plan, folder, stack)
        world.start()
        _strike(world, plan, say)
        world.mend()
        say(f"{len(plan.strikes)} faults are over; waiting for {plan.events - _indexed(world.place)} events")
        _wait_until_done(world, plan)
        said = {**world.client.finish(15.0), **{f"job_{k}": v for k, v in world.job.finish(15.0).items()}}
        return Outcome(
            plan=plan,
            taken=list(_taken(world.place)),
            lost_before=world.lost_before,
            stats=anyio.run(_final_stats, world.place),
            said=said,
        )


def _strike(world: _World, plan: Plan, say: Callable[[str], object]) -> None:
    started = time.monotonic()
    ends: list[tuple[float, int, str, Callable[[], object]]] = []

    def advance(until: float) -> None:
        while ends and ends[0][0] <= until:
            at, _, fault, end = heapq.heappop(ends)
            _sleep_until(started + at)
            end()
            say(f"{time.monotonic() - started:7.2f}  over: {fault}")
        _sleep_until(started + until)
        world.check()

    running: set[str] = set()
    for number, strike in enumerate(plan.strikes):
        advance(strike.at)
        running = {fault for _, _, fault, _ in ends}
        if any(fault.split()[1] == strike.fault.split()[1] for fault in running):
            continue  # one fault at a time for each part
        say(f"{time.monotonic() - started:7.2f}  {strike.fault} for {strike.lasts} s" + _by(strike))
        heapq.heappush(ends, (strike.at + strike.lasts, number, strike.fault, world.begin(strike)))
    advance(max([plan.seconds, *(at for at, _, _, _ in ends)]))


def _wait_until_done(world: _World, plan: Plan) -> None:
    """Wait until the index has everything, or with a Redis that forgets, until nothing more comes."""
    found, since = -1, time.monotonic()
    while True:
        world.check()
        now_found = _indexed(world.place)
        if now_found != found:
            found, since = now_found, time.monotonic()
        if found >= plan.events:
            return
        quiet = time.monotonic() - since
        if world.lost_before and quiet > 3 * LEASE and world.server.sent >= plan.events:
            return
        if quiet > _PATIENCE:
            raise AssertionError(
                f"{plan.events - found} events are missing, and nothing more comes.\n"
                f"the client said: {world.client.tail()}\nthe job said: {world.job.tail()}"
            )
        time.sleep(0.05)


def _taken(place: Place) -> Iterator[Taken]:
    for line in place.index.read_text().splitlines():
        event_id, session, number = line.split()
        yield Taken(int(event_id), session, int(number))


def _indexed(place: Place) -> int:
    return len({taken.id for taken in _taken(place)}) if place.index.exists() else 0


async def _final_stats(place: Place) -> DurableStats:
    async with place.job_buffer() as buffer:
        return await buffer.stats()


def _limit_memory(redis: RedisServer, size: int) -> None:
    import redis as redis_py

    if redis.running:
        with redis_py.Redis(port=redis.port, socket_timeout=5.0) as connection:
            connection.config_set("maxmemory", size)


def _restored(proxy: Proxy) -> Callable[[], object]:
    def restore() -> None:
        proxy.cut()  # what was swallowed is missing in the stream: no network goes on with a connection after that
        proxy.restore()

    return restore


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def _by(strike: Strike) -> str:
    return f", by {strike.amount:+.0f} s" if strike.amount else ""


def _nothing() -> None:
    pass
