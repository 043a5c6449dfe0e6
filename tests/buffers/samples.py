"""What the buffer tests share: payloads with a number, a clock that is moved by hand, threads that report errors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Self

from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import ActionsPayload, Payload, SummaryPayload, UnknownPayload

#: Seconds after which what must happen has not happened.
PATIENCE = 20.0


def summary(number: int, text: str = "") -> SummaryPayload:
    return SummaryPayload("shop", "s", text, 0, 0.0, str(number))


def actions(number: int) -> ActionsPayload:
    return ActionsPayload("shop", "s", event_id=str(number))


def unknown(number: int, kind: str = "survey") -> UnknownPayload:
    return UnknownPayload(type=kind, raw=b"{}", event_id=str(number))


def number_of(payload: Payload) -> int:
    assert payload.event_id is not None
    return int(payload.event_id)


def numbers(payloads: Iterable[Payload]) -> list[int]:
    return [number_of(payload) for payload in payloads]


def fill(buffer: EventBuffer, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        buffer.add(summary(number))


def dropped(buffer: EventBuffer) -> dict[DropReason, int]:
    ledger = buffer.stats().ledger
    assert ledger.balanced, ledger
    return dict(ledger.dropped)


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


class Crew:
    """Threads whose errors fail the test; leaving the block joins them, and fails if one does not end."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def start(self, work: Callable[..., object], *arguments: object) -> threading.Thread:
        def run() -> None:
            try:
                work(*arguments)
            except BaseException as error:
                self._errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for thread in self._threads:
            thread.join(PATIENCE)
        if kind is None:
            assert not self._errors, self._errors
            assert not [thread for thread in self._threads if thread.is_alive()], "a thread hangs"
