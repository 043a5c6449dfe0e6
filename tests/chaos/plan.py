"""What goes wrong when, as a seed decides it: pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias, get_args

import msgspec

__all__ = ["BUFFERS", "BufferKind", "Fault", "Plan", "Strike", "make_plan"]

#: What is between client and job. "redis" writes each change to disk first, "volatile" forgets all when it is killed,
#: "bridge" is "redis" with a file behind it.
BufferKind: TypeAlias = Literal["sqlite", "redis", "volatile", "bridge"]
BUFFERS: Final[tuple[BufferKind, ...]] = get_args(BufferKind)

Fault: TypeAlias = Literal[
    "kill client", "kill job", "pause client", "pause job", "cut stream", "stall stream", "jump clock", "fill disk",
    "kill redis", "pause redis", "cut redis", "stall redis", "fill redis",
]  # fmt: skip

_ALWAYS: Final[tuple[Fault, ...]] = (
    "kill client", "kill job", "pause client", "pause job", "cut stream", "stall stream", "jump clock",
)  # fmt: skip
_REDIS: Final[tuple[Fault, ...]] = ("kill redis", "pause redis", "cut redis", "stall redis", "fill redis")
_FAULTS: Final[dict[BufferKind, tuple[Fault, ...]]] = {
    "sqlite": (*_ALWAYS, "fill disk"),
    "redis": (*_ALWAYS, *_REDIS),
    "volatile": (*_ALWAYS, *_REDIS),
    "bridge": (*_ALWAYS, *_REDIS, "fill disk"),
}
#: Those that may make the job see an event twice.
REPEATING: Final = frozenset[Fault]((
    "kill job", "pause job", "jump clock", "fill disk", "kill redis", "pause redis", "cut redis", "stall redis",
    "fill redis",
))  # fmt: skip


class Strike(msgspec.Struct, frozen=True):
    """One fault."""

    at: float  #: seconds after the start
    fault: Fault
    lasts: float  #: seconds until it is over; a process that was killed is started again then
    amount: float = 0.0  #: by how many seconds a clock jumps


class Plan(msgspec.Struct, frozen=True):
    """All that a run is made of. The same seed, kind and length give the same plan."""

    seed: int
    kind: BufferKind
    seconds: float
    rate: float  #: events a second
    strikes: Sequence[Strike]

    @property
    def events(self) -> int:
        """How many events the server sends."""
        return round(self.seconds * self.rate)


def make_plan(kind: BufferKind, seed: int, seconds: float, rate: float) -> Plan:
    """Draw the faults of a run: each kind once if there is time, then any, one to three at a time."""
    chance = random.Random(f"{kind} {seed}")
    fresh: list[Fault] = []
    strikes = []
    at = chance.uniform(0.3, 0.8)
    while at < seconds:
        if not fresh:
            fresh = list(_FAULTS[kind])
            chance.shuffle(fresh)
        fault = fresh.pop()
        # A pause longer than a lease is the worst case; one as short as a turn of a loop is the commonest.
        lasts = (
            chance.choice([0.05, 0.3, 1.0, 3.0]) if fault.startswith(("pause", "stall")) else chance.uniform(0.05, 1.0)
        )
        amount = chance.choice([-3600.0, -5.0, 5.0, 3600.0]) if fault == "jump clock" else 0.0
        strikes.append(Strike(round(at, 3), fault, round(lasts, 3), amount))
        at += chance.choice([0.05, 0.5, 1.0])
    return Plan(seed, kind, seconds, rate, strikes)
