"""What a durable buffer is within one event loop: the gates to its shards, the committers, and the tasks it owns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

import anyio

from connector_sdk.background import EventLoop, OwnedTask, OwnedTasks
from connector_sdk.buffers.account import Account
from connector_sdk.buffers.committer import CommitOptions, Committer
from connector_sdk.buffers.gate import MISUSE, Gate
from connector_sdk.buffers.store import Census, EventStore
from connector_sdk.errors import BufferUnavailableError

__all__ = ["Engine"]

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

#: Requests that one operation makes at the same time, at most.
_AT_ONCE = 16
#: Seconds that a request has at least when how long it takes depends on how much waits.
_PATIENCE = 10.0
#: Seconds that the end of cancelled tasks may take, and the closing of the store.
_GRACE = 2.0


class Engine:
    """Everything of a durable buffer that belongs to one event loop. Its end leaves nothing pending in the account."""

    def __init__(
        self,
        loop: EventLoop,
        store: EventStore,
        account: Account,
        options: CommitOptions,
        numbers: Iterator[int],
        *,
        strays: dict[str, int],
    ) -> None:
        self.loop = loop
        self.store = store
        self.account = account
        self.timeout = options.response_timeout
        #: Seconds for requests that look at everything, or change as much as somebody has.
        self.long_timeout = max(_PATIENCE, 10 * self.timeout)
        self.tasks = OwnedTasks(loop)
        self.gates = [Gate(store, shard, account, self.tasks, self.timeout) for shard in range(store.shards)]
        self.committers = [Committer(gate, account, self.tasks, options, numbers) for gate in self.gates]
        for gate in self.gates:
            gate.on_service = self._in_service
        self._inspection: OwnedTask | None = None
        self._onlooker: OwnedTask | None = None
        self._returning: list[OwnedTask] = []
        # Leases that nobody uses any more and that were not given back yet, with their shards: of earlier loops, too.
        self._strays = strays
        self._fetcher: OwnedTask | None = None
        self._turn = 0

    @property
    def state(self) -> str:
        """Return "open" when a shard is away, else "closed"."""
        return "open" if any(gate.is_open for gate in self.gates) else "closed"

    def in_turn(self) -> list[Gate]:
        """Return the gates, beginning with another one at each call."""
        turn, self._turn = self._turn, (self._turn + 1) % len(self.gates)
        return self.gates[turn:] + self.gates[:turn]

    async def on_each(self, work: Callable[[ItemT], Awaitable[ResultT]], items: Sequence[ItemT]) -> list[ResultT]:
        """
        Do *work* for *items*, several at once; *work* must not raise errors of the store.

        Of the errors of MISUSE that it raises the first comes out, when all of *items* had their turn.
        """
        if len(items) == 1:
            return [await work(items[0])]
        results: dict[int, ResultT] = {}
        errors: list[Exception] = []

        async def one(place: int) -> None:
            try:
                results[place] = await work(items[place])
            except MISUSE as error:
                errors.append(error)

        for first in range(0, len(items), _AT_ONCE):
            async with anyio.create_task_group() as group:
                for place in range(first, min(first + _AT_ONCE, len(items))):
                    group.start_soon(one, place)
        if errors:
            raise errors[0]
        return [results[place] for place in range(len(items))]

    async def ask_each(
        self, operation: str, request: Callable[[int], Awaitable[ResultT]], *, opens: bool = True
    ) -> list[ResultT]:
        """
        Make a request at every shard; raises BufferUnavailableError when one of them does not answer.

        That opens the breaker of the shard unless *opens* is false.
        """

        async def ask(gate: Gate) -> ResultT | BufferUnavailableError:
            try:
                return await gate.call(operation, lambda: request(gate.shard), opens=opens)
            except BufferUnavailableError as error:
                return error

        answers: list[ResultT] = []
        for answer in await self.on_each(ask, self.gates):
            if isinstance(answer, BufferUnavailableError):
                raise answer
            answers.append(answer)
        return answers

    async def census(self) -> list[Census]:
        """Count every shard; raises BufferUnavailableError when one of them does not answer."""
        return await self.ask_each("census", lambda shard: self.gates[shard].count(self.timeout))

    async def give_back(self, leases: Sequence[tuple[str, Gate]]) -> None:
        """
        Let what *leases* hold wait again, as well as can be: when the store is away it comes again when time runs out.

        A task of its own does it, so that all of it is done even if the caller is cancelled, now or before; the caller
        waits for it, for no longer than one answer of the store may take.
        """
        self._strays.update((lease, gate.shard) for lease, gate in leases)
        reachable = [(lease, gate) for lease, gate in leases if not gate.is_open]
        if not reachable:
            return

        async def work() -> None:
            await self.on_each(self._give_back_one, reachable)

        task = self.tasks.start(work, "giving leases back")
        self._returning = [*(task for task in self._returning if not task.is_over), task]
        with anyio.move_on_after(self.timeout, shield=True):
            await task.wait()

    async def call_back_strays(self, holder: str, gate: Gate) -> None:
        """
        See to it that no lease of *holder* that nobody uses has events of this shard.

        Raises BufferUnavailableError when one could not be given back now either.
        """

        def found() -> list[tuple[str, Gate]]:
            strays = self._strays.items()
            return [(lease, gate) for lease, shard in strays if shard == gate.shard and lease.startswith(holder)]

        if found():
            await self.give_back(found())
        if found():
            raise BufferUnavailableError(f"{gate.name}: an earlier lease of this holder could not be given back yet")

    def abandon(self) -> None:
        """Give up what is pending: the event loop is over, and there is nobody to be woken."""
        for committer in self.committers:
            committer.give_up(wake=False)

    async def finish(self, timeout: float) -> None:
        """Send what is pending within *timeout* seconds, give up the rest, and end every task."""
        try:
            with anyio.move_on_after(timeout):
                for committer in self.committers:
                    await committer.finish()
                await self._until_quiet()
        finally:
            for committer in self.committers:
                committer.give_up()
            self.tasks.cancel()
            with anyio.move_on_after(_GRACE, shield=True):
                await self.tasks.wait()

    async def _give_back_one(self, held: tuple[str, Gate]) -> None:
        lease, gate = held
        try:
            await gate.call("give_back", lambda: self.store.give_back(gate.shard, lease, timeout=self.long_timeout))
        except BufferUnavailableError as error:
            self.account.warnings.warning("give_back", "a lease could not be given back yet: %s", error)
        except MISUSE as error:
            self._strays.pop(lease, None)
            self.account.warnings.warning("give_back", "a lease could not be given back, it will run out: %s", error)
        else:
            self._strays.pop(lease, None)

    async def _until_quiet(self) -> None:
        for task in self._returning:
            await task.wait()
        if self._inspection is not None:
            await self._inspection.wait()

    def _in_service(self) -> None:
        if self._onlooker is None and self.store.look_every is not None:
            self._onlooker = self.tasks.start(self._look_on, "onlooker of a store")
        if self._inspection is None:
            self._inspection = self.tasks.start(self._inspect, "inspection of a store", self._inspection_ended)
        if self._fetcher is None and self._strays:
            self._fetcher = self.tasks.start(self._fetch, "giving back what was left behind", self._fetcher_ended)

    async def _fetch(self) -> None:
        await self.on_each(self._give_back_one, [(lease, self.gates[shard]) for lease, shard in self._strays.items()])

    def _fetcher_ended(self) -> None:
        self._fetcher = None

    async def _look_on(self) -> None:
        while (pause := self.store.look_every) is not None:
            await anyio.sleep(pause)
            for gate in self.gates:
                if not gate.is_open:
                    await self._look_at(gate)

    async def _look_at(self, gate: Gate) -> None:
        try:
            await gate.call("census", lambda: gate.count(self.timeout))
        except (BufferUnavailableError, *MISUSE) as error:
            self.account.warnings.warning("look", "%s could not be looked at: %s", gate.name, error)

    def _inspection_ended(self) -> None:
        self._inspection = None

    async def _inspect(self) -> None:
        try:
            self.account.found(await self.store.inspect(timeout=self.long_timeout))
        except (BufferUnavailableError, *MISUSE) as error:
            self.account.warnings.warning("inspection", "%s could not be inspected: %s", self.store.name, error)
