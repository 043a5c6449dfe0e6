"""Leader: fenced leadership on Redis, so that one of many processes does what only one may do at a time."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final, Self, TypeVar

import anyio
import msgspec

from connector_sdk.errors import ClientStateError, ConfigurationError
from connector_sdk.forks import start_empty_after_fork
from connector_sdk.leadership import Term, run_while_leading
from connector_sdk.observe import RateLimitedLogger
from connector_sdk.options import check_seconds
from connector_sdk.redis_client import (
    RedisAddress,
    RedisClient,
    RedisRefusedError,
    RedisUnavailableError,
    Reply,
    load_script,
)

__all__ = ["Leader", "LeaderStats"]

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_LUA: Final = "connector_sdk.lua"
_STAND: Final = load_script(_LUA, "leader_stand.lua")
_RENEW: Final = load_script(_LUA, "leader_renew.lua")
_RELEASE: Final = load_script(_LUA, "leader_release.lua")

_SHORTEST: Final = 0.5  # seconds; a shorter ttl would be lost to an event loop that is busy for a moment
_LONGEST: Final = 86_400.0
#: What is held back of each ttl: two clocks may run at different speeds, and work needs a moment to notice its end.
_MARGIN: Final = 0.1
_FENCE_LIFE: Final = 30 * 86_400_000  # milliseconds
_RELEASE_TIMEOUT: Final = 1.0
#: Answers that no other attempt will change.
_HOPELESS: Final = frozenset({"NOPERM", "NOAUTH", "WRONGPASS", "WRONGTYPE"})


class LeaderStats(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of a Leader; `msgspec.json.encode(stats)` makes JSON of it."""

    name: str  #: what is led
    is_leader: bool  #: whether this process leads now
    token: int | None  #: the fencing token of the current term, None without one
    holder: str  #: who leads as far as this process knows, "host:process id:term"; "" for nobody or not known
    terms: int  #: elections won
    lost: int  #: terms that ended before they were given up
    renewals: int  #: renewals that succeeded
    failures: int  #: requests to Redis that failed
    valid_for: float  #: seconds until the current term ends unless it is renewed, 0 without one


class Leader:
    """
    Stands for a leadership in Redis or Valkey that one process holds at a time; the others take over when it is gone.

    ::

        leader = Leader("redis://localhost:6379/0", "indexing")

        async with leader.term() as term:  # waits until this process leads
            while term.is_current:
                await index_some(fence=term.token)

    `AsyncConnectorClient(..., leader=leader)` and the other parts of this library take it as an option.

    The leader renews its lease in each third of *ttl*. It counts as leader until *ttl* (less a tenth for safety) after the
    last renewal that succeeded was *sent*, by the clock of the process itself, whatever Redis and the network do. So two
    never lead at once, also when one was paused (SIGSTOP, a long garbage collection) or cut off, as long as all use the same
    *ttl*, Redis keeps what it confirmed (no eviction, no failover that loses writes) and its clock does not leap. Where that
    may fail, send `term.token` along with each write: it grows with each term, also after Redis lost its data.

    When a leader gives up (its block is left), another is elected within *ttl* / 5; when it dies, within *ttl* and a
    fifth. The first of all elections, and the first after Redis lost its data, takes a *ttl*: until then somebody may still
    count as leader. A leader that lives goes on through the loss.

    Args:
        redis_url: where Redis is, as for `RedisEventBuffer`.
        name: what is led; processes that name the same stand against each other. One line, without braces.
        key_prefix: the namespace of the keys, without braces.
        ttl: seconds from 0.5 to 86,400, the same in all processes. Default 10.
        connect_timeout: seconds, above 0, that opening a connection may take.

    Raises:
        ConfigurationError: an option has a value that cannot work. Nothing is sent before the first use.

    For asyncio only: inside trio a ConfigurationError. (`ConnectorClient` runs on asyncio.) One object stands once at a
    time; for two jobs that are to be led apart make two, with names of their own. `is_leader` and `stats` may be used from
    any thread. In the child of a fork nothing is led; the object starts anew there and may stand for itself.
    """

    _term: _Term | None
    #: Whether Redis may have elected the candidate without our knowing.
    _in_doubt: bool

    def __init__(
        self,
        redis_url: str,
        name: str,
        *,
        key_prefix: str = "default",
        ttl: float = 10.0,
        connect_timeout: float = 1.0,
    ) -> None:
        self.name = _label("name", name)
        self._prefix = _label("key_prefix", key_prefix)
        self._address = RedisAddress.parse(redis_url)
        self._ttl = check_seconds("ttl", ttl, minimum=_SHORTEST)
        if self._ttl > _LONGEST:
            raise ConfigurationError("ttl", ttl, f"{_LONGEST:g} seconds or less")
        self._connect_timeout = check_seconds("connect_timeout", connect_timeout, above=0)
        self._milliseconds = round(self._ttl * 1000)
        self._belief = self._ttl * (1 - _MARGIN)
        tag = f"{{{self._prefix}:leader:{self.name}}}".encode()
        self._keys = (tag + b":lease", tag + b":fence")
        self._closed = False
        #: The highest token seen.
        self._floor = 0
        self._start_anew()
        start_empty_after_fork(self)

    @property
    def is_leader(self) -> bool:
        """Whether this process leads now, by the clock of this very moment. May be read from any thread."""
        term = self._term
        return term is not None and term.is_current

    @asynccontextmanager
    async def term(self) -> AsyncIterator[Term]:
        """
        Stand for election: entering waits until this process leads, through any time that Redis is away.

        Leaving gives the leadership up. Redis need not be there for that; nothing is raised when it is not.

        Raises:
            ClientStateError: this object stands or leads already, or was closed.
            ConfigurationError: not on asyncio, or Redis refuses the user or its keys (NOPERM, NOAUTH, WRONGTYPE, ...).
        """
        self._begin()
        client = RedisClient(self._address, connect_timeout=self._connect_timeout)
        candidate = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(6)}"
        term: _Term | None = None
        errors: list[BaseException] = []
        try:
            term = self._term = await self._stand(client, candidate)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._renew, client, term)
                try:
                    yield term
                except Exception as error:  # noqa: BLE001 - raised below, outside of the group that would wrap it
                    errors.append(error)
                tasks.cancel_scope.cancel()
            if errors:
                raise errors[0]
        finally:
            # What ended by itself need not be given up, and a server that is away is not waited for.
            is_ours = self._in_doubt if term is None else term.left > 0
            if term is not None:
                term.end()
            self._term = None
            with anyio.CancelScope(shield=True):
                if is_ours:
                    await self._release(client, candidate)
                await client.aclose()
            self._holder = ""
            self._is_standing = False

    async def run(self, work: Callable[[Term], Awaitable[ResultT]]) -> ResultT:
        """
        Run `work(term)` while this process leads, and return its result once it ends by itself.

        When the leadership is lost *work* is cancelled; then this process stands again, and *work* runs anew in a later
        term. An error of *work* is raised, after the leadership was given up. Raises as `term` does.
        """
        return await run_while_leading(self, work)

    def stats(self) -> LeaderStats:
        """One reading; cheap."""
        term = self._term
        leads = term is not None and term.is_current
        return LeaderStats(
            name=self.name,
            is_leader=leads,
            token=term.token if term is not None and leads else None,
            holder=self._holder,
            terms=self._terms,
            lost=self._lost,
            renewals=self._renewals,
            failures=self._failures,
            valid_for=term.left if term is not None and leads else 0.0,
        )

    async def aclose(self) -> None:
        """
        Stand no more. A term that lasts ends: its block is told by `lost()`. May be called twice.

        Nothing is left open outside of `term()`, so a Leader that is not used any more need not be closed.
        """
        self._closed = True
        if self._term is not None:
            self._term.end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def after_fork_in_child(self) -> None:
        """Start anew: the term and the standing are the parent's, and the account begins at zero."""
        self._start_anew()

    def __repr__(self) -> str:
        return f"<Leader {self.name!r} at {self._address}, {'leads' if self.is_leader else 'does not lead'}>"

    # Inside

    def _start_anew(self) -> None:
        self._term = None
        self._is_standing = False
        self._in_doubt = False
        self._holder = ""
        self._terms = self._lost = self._renewals = self._failures = 0
        self._log = RateLimitedLogger(logger)

    def _begin(self) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError("leader", self, "used on asyncio: it does not run on trio") from None
        if self._closed:
            raise ClientStateError(f"{self!r} was closed")
        if self._is_standing:
            raise ClientStateError(
                f"{self!r} is in use already: one object stands once at a time. Make another, with a name of its own for "
                "what is to be led apart"
            )
        self._is_standing = True

    async def _stand(self, client: RedisClient, candidate: str) -> _Term:
        """Ask until elected."""
        poll = self._ttl / 5
        while True:
            began = _now()
            left = await self._ask(client, candidate)
            if left is None:
                term = _Term(candidate, self._floor, began + self._belief)
                if not term.is_current:
                    continue  # the answer came too late; to ask again renews
                self._terms += 1
                self._holder = candidate
                logger.info("%s: this process leads, with token %d", self.name, term.token)
                return term
            if self._closed:
                raise ClientStateError(f"{self!r} was closed")
            jitter = random.random()  # so that many candidates do not come at once
            await anyio.sleep(left + 0.02 * jitter * self._ttl if left < poll else poll * (0.5 + 0.5 * jitter))

    async def _ask(self, client: RedisClient, candidate: str) -> float | None:
        """Stand once. Returns None when elected, with the token in `_floor`, else the seconds until asking makes sense."""
        arguments = (candidate, self._milliseconds, self._floor, _FENCE_LIFE)
        self._in_doubt = True
        try:
            reply = await client.run(_STAND, self._keys, arguments, timeout=self._ttl / 2, repeatable=True)
        except RedisUnavailableError as error:
            self._note_failure(error)
            return self._ttl
        except RedisRefusedError as error:
            self._note_failure(error)
            if error.code in _HOPELESS:
                raise ConfigurationError(
                    "leader", self, f"allowed to run scripts on its keys, and Redis says {error.message}"
                ) from error
            return self._ttl
        assert isinstance(reply, list), reply
        elected_with = int(_text(reply[0]))
        if elected_with:
            self._floor = elected_with
            return None
        self._in_doubt = False
        self._holder = _text(reply[1])
        left = reply[2]
        assert isinstance(left, int), reply
        return max(left, 0) / 1000

    async def _renew(self, client: RedisClient, term: _Term) -> None:
        """Renew the lease of *term* until it is lost; then say so."""
        reason = "it could not be renewed in time"
        pause = self._ttl / 3
        while term.is_current:
            await anyio.sleep(min(pause, max(term.left, 0)))
            pause = self._ttl / 10
            began = _now()
            timeout = min(term.left, self._ttl / 3)
            arguments = (term.candidate, self._milliseconds, term.token, _FENCE_LIFE)
            try:
                # With no time left nothing is sent.
                reply = await client.run(_RENEW, self._keys, arguments, timeout=timeout, repeatable=True)
            except (RedisUnavailableError, RedisRefusedError) as error:
                self._note_failure(error)
                continue
            if reply != 1:
                reason = "another process has it"
                break
            self._renewals += 1
            term.extend(began + self._belief)
            pause = max(0.0, began + self._ttl / 3 - _now())
        if not self._closed:
            self._lost += 1
            self._log.warning("lost", "%s: the leadership is lost, %s", self.name, reason)
        self._holder = ""
        term.end()

    async def _release(self, client: RedisClient, candidate: str) -> None:
        try:
            await client.run(_RELEASE, self._keys[:1], (candidate,), timeout=_RELEASE_TIMEOUT, repeatable=True)
        except (RedisUnavailableError, RedisRefusedError) as error:
            self._note_failure(error)

    def _note_failure(self, error: Exception) -> None:
        self._failures += 1
        self._log.warning("redis", "%s: Redis does not answer as it should: %s", self.name, error)


class _Term:
    """What a block has of its leadership."""

    def __init__(self, candidate: str, token: int, until: float) -> None:
        self.candidate: Final = candidate
        self.token: Final = token
        self._until = until
        self._process = os.getpid()
        self._is_over = False
        self._over = anyio.Event()

    @property
    def left(self) -> float:
        """Seconds until it ends by itself; in the child of a fork none, for it is the parent's to renew and to give up."""
        return self._until - _now() if os.getpid() == self._process else 0.0

    @property
    def is_current(self) -> bool:
        return not self._is_over and self.left > 0

    async def lost(self) -> None:
        await self._over.wait()

    def extend(self, until: float) -> None:
        """It was renewed, unless it ended before the answer came: what is over stays over."""
        if self.is_current:
            self._until = until

    def end(self) -> None:
        self._is_over = True
        self._over.set()

    def __repr__(self) -> str:
        return f"<Term {self.token}, {'current' if self.is_current else 'over'}>"


if hasattr(time, "CLOCK_BOOTTIME"):

    def _now() -> float:
        """A clock that goes on while the machine sleeps, which `time.monotonic` on Linux does not."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    _now = time.monotonic


def _text(reply: Reply) -> str:
    return reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)


def _label(option: str, value: object) -> str:
    if isinstance(value, str) and value and value.isprintable() and not set(value) & set("{}"):
        return value
    raise ConfigurationError(option, value, "a text of 1 or more printable characters without braces")
