"""
The steps of a script: what a ConnectorServer does to a connection. Pure values; the server carries them out.

Each connection takes the next step. `step * 3` does it to three connections, `step & other` does both to one. Where a
step happens is counted on its own connection: after a number of complete events, some bytes into the next one, or after a
number of bytes of the event stream (the body without HTTP framing; `retry:` and heartbeats count).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias, TypeGuard, TypeVar

import msgspec

from connector_sdk.errors import ConfigurationError
from connector_sdk.options import check_choice, check_integer, check_seconds

__all__ = [
    "Comment",
    "Cut",
    "Duplicate",
    "Garbage",
    "NoResume",
    "Placed",
    "Plan",
    "Raw",
    "Redirect",
    "Refuse",
    "Serve",
    "Silence",
    "SplitEveryByte",
    "Stall",
    "Status",
    "Step",
    "WrongContentType",
    "make_plan",
    "make_plans",
]


class Step(msgspec.Struct, frozen=True):
    """What happens to one connection. The base class of all steps."""

    def __and__(self, other: Step) -> Step:
        """Both on the same connection, in this order."""
        if not isinstance(other, Step):
            return NotImplemented
        return _Together(steps=(self, other))

    def __mul__(self, times: int) -> Step:
        """The same on *times* connections, one after the other."""
        return _Repeated(step=self, times=check_integer("times", times, minimum=0))

    __rmul__ = __mul__


class Placed(Step, frozen=True, kw_only=True):
    """
    A step that happens at a place in the stream: right after the answer's head unless told otherwise.

    Args:
        after_events: after this many complete events of this connection. Default 0.
        into_next: and this many bytes of the event after them, its last byte excluded. Default 0.
        after_bytes: after exactly this many bytes of the event stream, in place of the other two.
    """

    after_events: int = 0
    into_next: int = 0
    after_bytes: int | None = None

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_integer(f"{name}.after_events", self.after_events, minimum=0)
        check_integer(f"{name}.into_next", self.into_next, minimum=0)
        if self.after_bytes is not None:
            check_integer(f"{name}.after_bytes", self.after_bytes, minimum=0)
            if self.after_events or self.into_next:
                raise ConfigurationError(f"{name}.after_bytes", self.after_bytes, "without after_events and into_next")


class Serve(Step, frozen=True):
    """Nothing special: serve normally."""


class Cut(Placed, frozen=True):
    """
    End the connection here, as a network does: inside a chunk if the place is inside an event.

    `how` is "fin" (the default: everything up to here arrives, then the connection is closed with the answer unfinished),
    "reset" (a TCP reset; as TCP has it, bytes that the peer's kernel has not yet taken are lost), or "clean" (the answer
    is finished properly).
    """

    how: Literal["fin", "reset", "clean"] = "fin"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("Cut.how", self.how, ("fin", "reset", "clean"))


class Stall(Placed, frozen=True):
    """Send nothing for *seconds*, no heartbeat either, then go on. With `head=False` the answer's head waits too."""

    seconds: float
    head: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seconds("Stall.seconds", self.seconds)


class Silence(Placed, frozen=True):
    """
    From here on send nothing, ever, and keep the connection open: what a half-open connection looks like.

    With `head=False` the request is read and never answered at all.
    """

    head: bool = True


class Comment(Placed, frozen=True):
    """Send a comment line, which clients skip but which shows that the server lives."""

    text: str = ""


class Duplicate(Placed, frozen=True):
    """Go back *count* events and send them again, with their ids: at-least-once servers do that after a failover."""

    count: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("Duplicate.count", self.count, minimum=1)


class Garbage(Placed, frozen=True):
    """
    Send *data* where something sensible belongs.

    `where` is "answer" (the default: in place of the HTTP answer, then the connection is closed), "framing" (where a chunk
    should begin, then closed), or "body" (as a chunk of its own; the stream then goes on).
    """

    data: bytes
    where: Literal["answer", "framing", "body"] = "answer"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("Garbage.where", self.where, ("answer", "framing", "body"))


class Refuse(Step, frozen=True):
    """Read the request and reset the connection without an answer. (`stop_accepting()` refuses connections as such.)"""


class Status(Step, frozen=True):
    """
    Answer with this status, 200 to 599, and end the connection. *headers* replace the default ones of the same name.

    `Status(200, {"Content-Type": "text/html"}, b"<html>...")` is a login page where a stream was expected.
    """

    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""

    def __post_init__(self) -> None:
        check_integer("Status.status", self.status, minimum=200, maximum=599)


class Redirect(Step, frozen=True):
    """Answer with a redirect to *url* (absolute, or relative to the request), 307 unless told otherwise."""

    url: str
    status: int = 307

    def __post_init__(self) -> None:
        if self.status not in (301, 302, 303, 307, 308):
            raise ConfigurationError("Redirect.status", self.status, "one of 301, 302, 303, 307, 308")


class WrongContentType(Step, frozen=True):
    """Serve normally under this content type."""

    content_type: str = "text/html"


class SplitEveryByte(Step, frozen=True):
    """Send each byte of the event stream as a chunk, and a write to the socket, of its own."""


class NoResume(Step, frozen=True):
    """
    Ignore the client's `Last-Event-ID`: begin with what has not happened yet, as a server does that keeps no history.

    With `announce=True` the answer says so (`Last-Event-ID: earliest`), as one does whose history is gone.
    """

    announce: bool = False


class Raw(Step, frozen=True):
    """
    Send exactly these bytes as the event stream, no event of the server's and no `retry:`.

    `then` is "close" (the default: the answer ends there) or "hold" (the connection stays open, with heartbeats).
    """

    data: bytes
    then: Literal["close", "hold"] = "close"

    def __post_init__(self) -> None:
        check_choice("Raw.then", self.then, ("close", "hold"))


class _Together(Step, frozen=True):
    steps: tuple[Step, Step]


class _Repeated(Step, frozen=True):
    step: Step
    times: int


_S = TypeVar("_S", bound=Step)
_D = TypeVar("_D")
_Answer: TypeAlias = Refuse | Status | Redirect | Garbage | Silence


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What one connection does: wait, answer with something else than a stream, or stream with interruptions."""

    wait: float = 0.0  #: seconds before any answer
    answer: _Answer | None = None  #: in place of a stream
    content_type: str = "text/event-stream"
    split: bool = False
    no_resume: NoResume | None = None
    raw: Raw | None = None
    placed: tuple[Placed, ...] = ()  #: in the order in which they happen


def make_plans(script: object) -> Iterator[Plan]:
    """
    Work out a plan for each connection of the option `script`: a step, a sequence of steps, or an iterator of them.

    A sequence that cannot work is refused at once, with ConfigurationError; an iterator is asked as connections come.
    """
    steps = [script] if isinstance(script, Step) else script
    if isinstance(steps, Sequence):
        return iter([make_plan(step) for step in _unroll(steps)])
    if isinstance(steps, Iterable):
        return map(make_plan, _unroll(steps))
    raise ConfigurationError("script", script, "a step, or steps such as [Cut(after_events=2), Status(503)]")


def make_plan(step: Step) -> Plan:
    """Work out what *step* means for a connection; ConfigurationError when its parts exclude each other."""
    parts = tuple(_parts(step))
    answers = [part for part in parts if _is_answer(part)]
    if len(answers) > 1:
        raise ConfigurationError("script", step, "steps of which at most one takes the place of the stream")
    return Plan(
        wait=sum(part.seconds for part in parts if isinstance(part, Stall) and not part.head),
        answer=answers[0] if answers else None,
        content_type=_last(WrongContentType, parts, WrongContentType("text/event-stream")).content_type,
        split=_last(SplitEveryByte, parts, None) is not None,
        no_resume=_last(NoResume, parts, None),
        raw=_last(Raw, parts, None),
        placed=tuple(part for part in parts if isinstance(part, Placed) and _is_in_stream(part)),
    )


def _is_answer(step: Step) -> TypeGuard[_Answer]:
    if isinstance(step, Garbage):
        return step.where == "answer"
    return isinstance(step, Refuse | Status | Redirect) or (isinstance(step, Silence) and not step.head)


def _is_in_stream(step: Placed) -> bool:
    return not _is_answer(step) and not (isinstance(step, Stall) and not step.head)


def _last(kind: type[_S], parts: tuple[Step, ...], default: _D) -> _S | _D:
    return next((part for part in reversed(parts) if isinstance(part, kind)), default)


def _unroll(steps: Iterable[object]) -> Iterator[Step]:
    for step in steps:
        if isinstance(step, _Repeated):
            yield from _unroll([step.step] * step.times)
        elif isinstance(step, Step):
            yield step
        else:
            raise ConfigurationError(
                "script", step, "steps such as Cut() or Status(503); join two with &, repeat with *"
            )


def _parts(step: Step) -> Iterator[Step]:
    if isinstance(step, _Together):
        for part in step.steps:
            yield from _parts(part)
    elif isinstance(step, _Repeated):
        raise ConfigurationError("script", step, "steps joined before they are repeated: (a & b) * 3")
    else:
        yield step
