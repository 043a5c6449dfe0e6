"""One way to drive the clients, so that one suite tests both faces on every event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeAlias

import anyio
import msgspec

from connector_sdk import AsyncConnectorClient, ConnectorClient, StopReport
from connector_sdk.payloads import ActionsPayload, Payload, SlimAction, SummaryPayload

Client: TypeAlias = AsyncConnectorClient | ConnectorClient

#: Seconds that any wait may take before the test has failed; nothing takes nearly as long.
PATIENCE = 20.0

#: Options that make reconnects quick.
QUICK = {"initial_backoff": 0.01, "max_backoff": 0.05}


def summary(number: int, session: str = "s") -> SummaryPayload:
    return SummaryPayload("p", session, f"event {number}", number, 1_700_000_000.0 + number)


def actions(number: int, session: str = "s") -> ActionsPayload:
    return ActionsPayload(
        "p", session, actions=[SlimAction(f"title {number}", index=number)], forwarded_at=1.7e9 + number
    )


class Collector:
    """Keeps what callbacks got, in order; waits for a number of them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.payloads: list[Payload] = []

    def plain(self, payload: Payload) -> None:
        with self._changed:
            self.payloads.append(payload)
            self._changed.notify_all()

    async def coroutine(self, payload: Payload) -> None:
        self.plain(payload)

    def wait(self, count: int) -> list[Payload]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.payloads) >= count, PATIENCE), (
                f"{len(self.payloads)} of {count} events came: {self.texts}"
            )
            return list(self.payloads)

    @property
    def texts(self) -> list[str]:
        with self._changed:
            return [
                payload.summary if isinstance(payload, SummaryPayload) else payload.type for payload in self.payloads
            ]


class Faces:
    """Makes and runs clients of one kind: "sync", "asyncio" or "trio"."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def client(self, url: str, token: object = "", **options: object) -> Client:
        face = ConnectorClient if self.kind == "sync" else AsyncConnectorClient
        return face(url, token, **{**QUICK, **options})  # type: ignore[arg-type]  # tests pass what they like

    def run(self, client: Client) -> Running:
        return Running(self.kind, client)

    def iterate(self, client: Client, take: Callable[[Payload], bool]) -> None:
        """Call *take* with each payload until it returns False, on this kind's loop."""
        if isinstance(client, ConnectorClient):
            with client:
                for payload in client:
                    if not take(payload):
                        break
            return

        async def loop() -> None:
            assert isinstance(client, AsyncConnectorClient)
            async with client:
                async for payload in client:
                    if not take(payload):
                        break

        anyio.run(loop, backend=self.kind)


class Running:
    """A client whose `run()` blocks a thread of its own; leaving the block stops it and raises what ended it."""

    def __init__(self, kind: str, client: Client) -> None:
        self.client = client
        self.error: BaseException | None = None
        self._kind = kind
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.scope: anyio.CancelScope | None = None

    def _run(self) -> None:
        try:
            if isinstance(self.client, ConnectorClient):
                self.client.run()
            else:
                anyio.run(self._run_async, backend=self._kind)
        except BaseException as error:
            self.error = error

    async def _run_async(self) -> None:
        assert isinstance(self.client, AsyncConnectorClient)
        with anyio.CancelScope() as self.scope:
            await self.client.run()

    def start(self) -> Self:
        begun = threading.Event()
        unwatch = self.client._engine.watch(begun.set)
        self._thread.start()
        assert begun.wait(PATIENCE)
        unwatch()
        return self

    def join(self, timeout: float = PATIENCE) -> None:
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"run() did not end: {self.client!r}"

    def stop(self, *, drain: bool = True, timeout: float = 10.0) -> StopReport:
        self.client.stop(drain=drain, timeout=timeout)
        self.join()
        return self.client._engine.report

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.client.stop(drain=kind is None)
        self.join()
        if kind is None and self.error is not None:
            raise self.error


def dropped(client: Client) -> dict[str, int]:
    counts: dict[str, int] = msgspec.to_builtins(client.stats().ledger.dropped)
    return counts
