"""How a RedisLog talks to its server: commands and scripts, and the errors of a bus when they fail."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from connector_sdk.bus.redis_keys import Keys
from connector_sdk.errors import BusClosedError, BusUnavailableError, ClientStateError
from connector_sdk.redis_client import (
    Argument,
    RedisClient,
    RedisRefusedError,
    RedisUnavailableError,
    Reply,
    Script,
    load_script,
)

__all__ = ["BATCH_BYTES", "Retention", "Scripts", "Storage", "milliseconds", "told_as_bus_errors"]

_LUA: Final = "connector_sdk.bus.lua"
#: About how many bytes of bodies go into one request.
BATCH_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of a topic is kept, and how much at most for groups that have not finished it; times in seconds."""

    max_events: int
    ttl: float
    max_backlog: int
    backlog_seconds: float

    @property
    def lifetime(self) -> int:
        """How long a stream lives from when it is looked after, in milliseconds: publishers do that ten times in a ttl."""
        return milliseconds(1.2 * self.ttl)

    @property
    def group_lifetime(self) -> int:
        """The same for one with groups, which are to find their place again."""
        return milliseconds(1.2 * max(self.ttl, self.backlog_seconds))


class Scripts:
    """The scripts, each with what they share in front."""

    def __init__(self) -> None:
        shared = load_script(_LUA, "shared.lua").source

        def script(name: str) -> Script:
            return Script(name, shared + b"\n" + load_script(_LUA, f"{name}.lua").source)

        self.append = script("append")
        self.bury = script("bury")
        self.check = script("check")
        self.info = script("info")
        self.free = script("free")
        self.join = script("join")
        self.keep = script("keep")
        self.losses = script("losses")
        self.redrive = script("redrive")
        self.reserve = script("reserve")
        self.tend = script("tend")
        self.topics = script("topics")


class Storage:
    """The client, the keys, and how to name them in an error."""

    def __init__(self, client: RedisClient, keys: Keys, *, connect_timeout: float, response_timeout: float) -> None:
        self.client = client
        self.keys = keys
        self.scripts = Scripts()
        self.connect_timeout = connect_timeout
        self.response_timeout = response_timeout
        #: A call may have to connect first.
        self._timeout = connect_timeout + response_timeout

    async def call(self, *command: Argument, repeatable: bool = True) -> Reply:
        """Send one command. Raises BusUnavailableError."""
        try:
            return await self.client.call(
                *command, key=self.keys.catalogue, timeout=self._timeout, repeatable=repeatable
            )
        except (RedisUnavailableError, RedisRefusedError, ClientStateError) as error:
            raise bus_error(error) from error

    async def run(
        self, script: Script, keys: Sequence[bytes], arguments: Sequence[Argument], *, repeatable: bool = True
    ) -> Reply:
        """Run a script; *keys* come after those that all have. Raises BusUnavailableError."""
        try:
            return await self.client.run(
                script, (*self.keys.common, *keys), arguments, timeout=self._timeout, repeatable=repeatable
            )
        except (RedisUnavailableError, RedisRefusedError, ClientStateError) as error:
            raise bus_error(error) from error

    async def facts(self) -> Mapping[str, str]:
        """Return what the server says of itself, "" values included; nothing when the user may not ask."""
        try:
            reply = await self.client.call("INFO", key=self.keys.catalogue, timeout=self._timeout, repeatable=True)
        except RedisRefusedError as error:
            if error.code != "NOPERM":
                raise
            return {}
        text = reply.decode(errors="replace") if isinstance(reply, bytes) else ""
        pairs = (line.partition(":") for line in text.splitlines())
        return {name: value for name, _, value in pairs}

    async def try_script(self) -> None:
        """Run a script that changes nothing. Raises the client's errors: for a user who may not, say."""
        await self.client.run(
            self.scripts.topics, (*self.keys.common, self.keys.topics), (), timeout=self._timeout, repeatable=True
        )


@contextmanager
def told_as_bus_errors() -> Iterator[None]:
    """Raise the errors of the client as those of a bus."""
    try:
        yield
    except (RedisUnavailableError, RedisRefusedError, ClientStateError) as error:
        raise bus_error(error) from error


def bus_error(
    error: RedisUnavailableError | RedisRefusedError | ClientStateError,
) -> BusUnavailableError | BusClosedError:
    """Return what an error of the client is for users of a bus."""
    if isinstance(error, ClientStateError):
        return BusClosedError(str(error))
    return BusUnavailableError(str(error), in_doubt=error.in_doubt)


def milliseconds(seconds: float) -> int:
    """Return a span of time as scripts take it."""
    return max(1, round(seconds * 1000))
