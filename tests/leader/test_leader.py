"""One leads at a time: killed, paused, cut off, given up; and with a Redis that restarts, with its data or without."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
import redis

from connector_sdk import ClientStateError, ConfigurationError, Leader, Leadership, Term
from connector_sdk.leadership import run_while_leading
from connector_sdk.testing import RedisServer
from tests.buffers.test_fork import in_child
from tests.servers.fixtures import Server, StartRedis, one_kind
from tests.servers.proxy import Proxy

PATIENCE = 30.0
TTL = 1.0


@pytest.fixture
def anyio_backend() -> str:
    """It sits on the sockets of asyncio."""
    return "asyncio"


# ---------------------------------------------------------------------------------------------- many processes


class Log:
    """What the holders wrote: for each token who had it, and the first and last moment."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def terms(self) -> dict[int, tuple[int, float, float]]:
        terms: dict[int, tuple[int, float, float]] = {}
        for line in self._path.read_text().splitlines() if self._path.exists() else ():
            pid, token, at = line.split()
            known = terms.get(int(token))
            assert known is None or known[0] == int(pid), "a token belongs to one process"
            terms[int(token)] = (int(pid), known[1] if known else float(at), float(at))
        return terms

    def check(self) -> None:
        """No two led at the same time, and later terms have higher tokens."""
        in_order = sorted((began, ended, token) for token, (_, began, ended) in self.terms().items())
        for (_, ended, token), (began, _, later) in itertools.pairwise(in_order):
            assert began > ended, f"{token} led until {ended}, {later} from {began}"
            assert later > token

    def wait_for(
        self, reached: Callable[[dict[int, tuple[int, float, float]]], bool]
    ) -> dict[int, tuple[int, float, float]]:
        """The log is a file of other processes: there is nothing to wait on but it."""
        pause = threading.Event()
        for _ in range(int(PATIENCE / 0.02)):
            terms = self.terms()
            if reached(terms):
                return terms
            pause.wait(0.02)
        raise AssertionError(f"it never came to that: {self.terms()}")

    def wait_for_leader(self, *, after: float, among: set[int]) -> tuple[int, int]:
        """Wait until one of these processes leads; returns its process id and token."""
        terms = self.wait_for(lambda terms: any(t[2] > after and t[0] in among for t in terms.values()))
        token, term = max((token, term) for token, term in terms.items() if term[2] > after and term[0] in among)
        return term[0], token


Start = Callable[[], subprocess.Popen[bytes]]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log")


@contextlib.contextmanager
def holders(url: str, tmp_path: Path, ttl: float = TTL) -> Iterator[Start]:
    command = [sys.executable, "-m", "tests.leader.holder", url, str(ttl), str(tmp_path / "log")]
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(command))
        return started[-1]

    try:
        yield start
    finally:
        for holder in started:
            holder.kill()
            holder.wait()


@one_kind
def test_a_killed_leader_is_followed_within_its_ttl(own_redis_server: RedisServer, tmp_path: Path, log: Log) -> None:
    with holders(own_redis_server.url, tmp_path, ttl=2.0) as start:
        pods = {pod.pid: pod for pod in (start(), start(), start())}
        first, token = log.wait_for_leader(after=0, among=set(pods))
        pods[first].kill()
        killed = time.monotonic()
        _, later = log.wait_for_leader(after=killed, among=set(pods) - {first})
        assert later > token
        assert log.terms()[later][1] - killed < 2.0 * 1.2 + 2.0  # and two seconds for a busy machine
    log.check()


@one_kind
def test_a_leader_that_gives_up_is_followed_at_once(own_redis_server: RedisServer, tmp_path: Path, log: Log) -> None:
    with holders(own_redis_server.url, tmp_path, ttl=20.0) as start:
        with redis.Redis(port=own_redis_server.port) as client:
            client.set("{default:leader:test}:fence", "1")  # not the first election
        one = start()
        log.wait_for_leader(after=0, among={one.pid})
        other = start()
        one.send_signal(signal.SIGTERM)
        assert one.wait(PATIENCE) == 0
        ended = time.monotonic()
        _, token = log.wait_for_leader(after=ended, among={other.pid})
        assert log.terms()[token][1] - ended < 10.0, "long before the lease would have run out"
    log.check()


@one_kind
def test_a_leader_paused_for_long_wakes_deposed(own_redis_server: RedisServer, tmp_path: Path, log: Log) -> None:
    with holders(own_redis_server.url, tmp_path) as start:
        pods = {pod.pid: pod for pod in (start(), start())}
        first, token = log.wait_for_leader(after=0, among=set(pods))
        pods[first].send_signal(signal.SIGSTOP)
        paused = time.monotonic()
        second, _ = log.wait_for_leader(after=paused, among=set(pods) - {first})
        pods[first].send_signal(signal.SIGCONT)
        awake = time.monotonic()
        pods[second].kill()
        log.wait_for_leader(after=awake, among={first})  # it stands again, and leads in a new term
    assert log.terms()[token][2] < paused + 0.5
    log.check()


@one_kind
@pytest.mark.parametrize("keeps_data", [True, False])
def test_a_redis_that_restarts_never_makes_two(
    start_redis: StartRedis, tmp_path: Path, log: Log, keeps_data: bool
) -> None:
    server = start_redis(appendonly=keeps_data)
    with holders(server.url, tmp_path) as start:
        pods = {pod.pid: pod for pod in (start(), start(), start())}
        _, token = log.wait_for_leader(after=0, among=set(pods))
        server.kill()
        gone_for_long = time.monotonic() + 2 * TTL
        log.wait_for(lambda terms: time.monotonic() > gone_for_long)
        assert log.terms()[token][2] < time.monotonic() - 0.5, "leadership ends when it cannot be renewed"
        server.restart()
        up = time.monotonic()
        _, later = log.wait_for_leader(after=up, among=set(pods))
        assert later > token
        # Lost at once and back at once: the leader goes on, or is followed.
        server.kill()
        server.restart()
        log.wait_for_leader(after=time.monotonic() + TTL, among=set(pods))
    log.check()


@one_kind
@pytest.mark.timeout(120)
def test_whatever_happens_two_never_lead(start_redis: StartRedis, tmp_path: Path, log: Log) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    server = start_redis()
    pause = threading.Event()
    with Proxy(server.port) as proxy, holders(f"redis://127.0.0.1:{proxy.port}/0", tmp_path, 0.5) as start:
        pods = [start() for _ in range(4)]
        leader, _ = log.wait_for_leader(after=0, among={pod.pid for pod in pods})
        # One change is certain: chance may spare every leader.
        (killed,) = [pod for pod in pods if pod.pid == leader]
        killed.kill()
        pods[pods.index(killed)] = start()
        for _ in range(25):
            pod = chance.choice(pods)
            fault = chance.choice(["kill", "stop", "cut", "swallow", "restart", "flush"])
            if fault == "kill":
                pod.kill()
                pods.remove(pod)
                pods.append(start())
            elif fault == "stop":
                pod.send_signal(signal.SIGSTOP)
                pause.wait(chance.uniform(0.1, 1.2))
                pod.send_signal(signal.SIGCONT)
            elif fault == "cut":
                proxy.cut()
            elif fault == "swallow":
                proxy.swallow()
                pause.wait(chance.uniform(0.1, 1.0))
                proxy.restore()
            elif fault == "restart":
                server.kill()
                server.restart()
            else:
                with redis.Redis(port=server.port) as client:
                    client.flushall()
            pause.wait(chance.uniform(0.0, 0.5))
        proxy.restore()
        log.wait_for_leader(after=time.monotonic(), among={pod.pid for pod in pods})
    log.check()
    assert len(log.terms()) > 1


# ---------------------------------------------------------------------------------------------- one process


def leader_of(server: Server, prefix: str, **options: float) -> Leader:
    return Leader(server.url, "test", key_prefix=prefix, **{"ttl": TTL, **options})


@one_kind
@pytest.mark.anyio
async def test_terms_follow_each_other_with_growing_tokens(redis_server: Server, redis_prefix: str) -> None:
    tokens: dict[str, list[int]] = defaultdict(list)
    async with leader_of(redis_server, redis_prefix) as one, leader_of(redis_server, redis_prefix) as other:
        assert isinstance(one, Leadership)
        for _ in range(2):
            for leader in (one, other):
                with anyio.fail_after(PATIENCE):
                    async with leader.term() as term:
                        assert leader.is_leader
                        assert term.is_current
                        assert leader.stats().token == term.token
                        tokens["all"].append(term.token)
                assert not leader.stats().is_leader
                with anyio.fail_after(PATIENCE):
                    await term.lost()
    assert tokens["all"] == sorted(set(tokens["all"]))
    assert one.stats().terms == 2


@one_kind
@pytest.mark.anyio
async def test_tokens_grow_when_the_servers_clock_went_back(redis_server: Server, redis_prefix: str) -> None:
    far_ahead = 4_000_000_000_000_000
    with redis.Redis(port=redis_server.port) as client:
        client.set(f"{{{redis_prefix}:leader:test}}:fence", far_ahead)
    with anyio.fail_after(PATIENCE):
        async with leader_of(redis_server, redis_prefix).term() as term:
            assert term.token == far_ahead + 1


@one_kind
@pytest.mark.anyio
async def test_nobody_is_elected_for_a_ttl_after_the_data_is_lost(redis_server: Server, redis_prefix: str) -> None:
    """Somebody may have led, and believe it still."""
    began = time.monotonic()
    with anyio.fail_after(PATIENCE):
        async with leader_of(redis_server, redis_prefix).term():
            assert time.monotonic() - began >= TTL


@one_kind
@pytest.mark.anyio
async def test_a_living_leader_goes_on_when_the_data_is_lost(redis_server: Server, redis_prefix: str) -> None:
    leader, rival = leader_of(redis_server, redis_prefix, ttl=3.0), leader_of(redis_server, redis_prefix, ttl=3.0)
    with anyio.fail_after(PATIENCE):
        async with leader.term() as term, anyio.create_task_group() as tasks:
            with redis.Redis(port=redis_server.port) as client:
                client.flushall()
            tasks.start_soon(rival.run, _forever)
            before = leader.stats().renewals
            while leader.stats().renewals < before + 5:
                await anyio.sleep(0.05)  # two renewals more than the rival would have waited
            assert term.is_current
            assert not rival.is_leader
            tasks.cancel_scope.cancel()


async def _forever(_: Term) -> None:
    await anyio.sleep_forever()


@one_kind
@pytest.mark.anyio
async def test_work_is_cancelled_when_redis_is_away_and_runs_anew(
    redis_server: Server, redis_proxy: Proxy, redis_prefix: str
) -> None:
    leader = Leader(f"redis://127.0.0.1:{redis_proxy.port}/0", "test", key_prefix=redis_prefix, ttl=TTL)
    tokens: list[int] = []
    ended: list[bool] = []

    async def work(term: Term) -> str:
        tokens.append(term.token)
        if len(tokens) == 2:
            return "done"
        redis_proxy.refuse()
        redis_proxy.cut()
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(term.is_current)
            assert not leader.is_leader
            redis_proxy.restore()
        raise AssertionError

    with anyio.fail_after(PATIENCE):
        assert await run_while_leading(leader, work) == "done"
    assert ended == [False]
    assert tokens[1] > tokens[0]
    assert leader.stats().lost == 1


@one_kind
@pytest.mark.anyio
async def test_an_error_of_the_block_comes_out_as_it_is(redis_server: Server, redis_prefix: str) -> None:
    leader = leader_of(redis_server, redis_prefix)

    async def work(_: Term) -> None:
        raise ValueError("mine")

    with anyio.fail_after(PATIENCE):
        with pytest.raises(ValueError, match="mine"):
            async with leader.term() as term:
                await work(term)
        with pytest.raises(ValueError, match="mine"):
            await leader.run(work)
    assert not leader.is_leader


@one_kind
@pytest.mark.anyio
async def test_one_object_stands_once(redis_server: Server, redis_prefix: str) -> None:
    leader = leader_of(redis_server, redis_prefix)
    with anyio.fail_after(PATIENCE):
        async with leader.term():
            with pytest.raises(ClientStateError, match="in use"):
                async with leader.term():
                    pass
    await leader.aclose()
    with pytest.raises(ClientStateError, match="closed"):
        async with leader.term():
            pass


@one_kind
@pytest.mark.anyio
async def test_closing_ends_the_term(redis_server: Server, redis_prefix: str) -> None:
    leader = leader_of(redis_server, redis_prefix)
    with anyio.fail_after(PATIENCE):
        async with leader.term() as term:
            await leader.aclose()
            await term.lost()
            assert not leader.stats().is_leader


@one_kind
@pytest.mark.anyio
async def test_a_user_who_may_not_is_told(redis_server: Server, redis_prefix: str) -> None:
    with redis.Redis(port=redis_server.port) as client:
        client.hset(f"{{{redis_prefix}:leader:test}}:lease", "a", "b")
    with pytest.raises(ConfigurationError, match="WRONGTYPE"), anyio.fail_after(PATIENCE):
        async with leader_of(redis_server, redis_prefix).term():
            pass


@one_kind
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_the_child_of_a_fork_stands_for_itself(redis_server: Server, redis_prefix: str) -> None:
    """The parent leads on; when it gives up, the child is elected with the same object."""
    leader = leader_of(redis_server, redis_prefix)
    leads, give_up = threading.Event(), threading.Event()
    tokens: list[int] = []

    async def lead() -> None:
        async with leader.term() as term:
            tokens.append(term.token)
            leads.set()
            await anyio.to_thread.run_sync(give_up.wait, PATIENCE)
            assert term.is_current, "the fork has not disturbed it"

    async def stand() -> None:
        with pytest.raises(TimeoutError), anyio.fail_after(2 * TTL):
            async with leader.term():
                pass
        os.write(told, b"x")  # the parent still leads, and may give up now
        with anyio.fail_after(PATIENCE):
            async with leader.term() as term:
                assert term.token > tokens[0]
                assert leader.is_leader

    def check() -> None:
        reading = leader.stats()
        assert (reading.is_leader, reading.token, reading.holder, reading.terms) == (False, None, "", 0)
        anyio.run(stand)

    def listen() -> None:
        os.read(heard, 1)
        give_up.set()

    heard, told = os.pipe()
    parent = threading.Thread(target=anyio.run, args=(lead,))
    listener = threading.Thread(target=listen)
    parent.start()
    try:
        assert leads.wait(PATIENCE)
        listener.start()
        in_child(check)
        assert give_up.is_set()
        assert leader.stats().terms == 1
    finally:
        os.write(told, b"x")
        parent.join()
        listener.join()
        os.close(heard)
        os.close(told)


def test_trio_is_told() -> None:
    async def stand() -> None:
        async with Leader("redis://127.0.0.1:1/0", "test").term():
            pass

    with pytest.raises(ConfigurationError, match="asyncio"):
        anyio.run(stand, backend="trio")


@pytest.mark.parametrize(
    ("option", "value"),
    [("name", ""), ("name", "a{b}"), ("key_prefix", ""), ("ttl", 0.1), ("ttl", 1e9), ("connect_timeout", 0)],
)
def test_options_are_checked(option: str, value: object) -> None:
    options: dict[str, object] = {"name": "test", option: value}
    with pytest.raises(ConfigurationError, match=option):
        Leader("redis://127.0.0.1:1/0", **options)  # type: ignore[arg-type]  # wrong on purpose
