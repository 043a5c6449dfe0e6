"""
Who runs the handlers: tasks for coroutine functions, threads for plain functions, as many as there are slow sessions.

A runner takes a lane, runs its events in order, and goes on to the next lane. A second runner starts only when the first is
held up, so that quick handlers cost one task switch a batch, and a slow session never holds up another.
"""

from __future__ import annotations

import contextvars
import inspect
import queue
import threading
from collections.abc import Callable

import anyio
import anyio.abc
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread

from connector_sdk.callbacks import is_own_failure
from connector_sdk.client.delivery import Delivery, Lane, Outcome, worse
from connector_sdk.client.handlers import Handler, Handlers
from connector_sdk.client.hooks import Hooks, wait_for
from connector_sdk.client.lanes import Lanes
from connector_sdk.errors import HandlerError
from connector_sdk.retries import handler_retrying
from connector_sdk.wakeups import current_waker

__all__ = ["Runners"]

_MOST_IDLE_TASKS = 32
_EVENTS_BETWEEN_CHECKPOINTS = 64  # a task that never waits must still let the loop and cancellation in
_HELD_UP = 0.005  # seconds between two looks at the lanes that wait for a thread
_PATIENCE = 4  # looks that the threads at work may need for them before others start


class Runners:
    """
    Runs what the lanes hold, inside a task group of the engine's.

    Args:
        fail: called (on any thread) with the error of a handler whose policy is to stop the client.
    """

    def __init__(
        self, lanes: Lanes, handlers: Handlers, hooks: Hooks, *, max_threads: int, fail: Callable[[HandlerError], None]
    ) -> None:
        self._lanes = lanes
        self._handlers = handlers
        self._hooks = hooks
        self._fail = fail
        self._max_threads = max_threads
        self._idle: list[anyio.Event] = []
        self._waking = False
        self._calls: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._ended = 0
        self._held_up = anyio.Event()

    def start(self, task_group: anyio.abc.TaskGroup) -> None:
        """Begin, on the running event loop."""
        self._task_group = task_group
        self._waker = current_waker()
        self._token = anyio.lowlevel.current_token()
        self._all_ended = anyio.Event()
        self._limiter = anyio.CapacityLimiter(self._max_threads)
        self._prod_wanted = anyio.Event()
        task_group.start_soon(self._add_threads_when_held_up)
        task_group.start_soon(self._prod_when_wanted)

    def prod(self) -> None:
        """See that what is ready gets a runner. Call it on the event loop after an offer; cheap when nothing is to do."""
        lanes = self._lanes
        if lanes.ready_lanes and not self._waking:
            self._wake_task()
        if lanes.ready_threaded:
            awake = lanes.wake_thread(self._max_threads)
            if awake:
                self._wake_thread(awake)
            elif not self._held_up.is_set():
                self._held_up.set()

    def owns_current_thread(self) -> bool:
        """Whether the caller is one of the worker threads."""
        return threading.current_thread() in self._threads

    async def close(self, grace: float) -> int:
        """End the threads; wait up to *grace* seconds. Returns how many still run a handler: they are left alone."""
        for _ in self._threads:
            self._calls.put(False)
        if self._threads:
            with anyio.move_on_after(grace):
                await self._all_ended.wait()
        return len(self._threads) - self._ended

    def _want_prod(self) -> None:
        self._prod_wanted.set()

    async def _prod_when_wanted(self) -> None:
        """Prod for the threads, which cannot start tasks themselves."""
        while True:
            await self._prod_wanted.wait()
            self._prod_wanted = anyio.Event()
            self.prod()

    # Tasks

    def _wake_task(self) -> None:
        self._waking = True
        if self._idle:
            self._idle.pop().set()
        else:
            self._task_group.start_soon(self._work)

    async def _work(self) -> None:
        lanes = self._lanes
        self._waking = False
        while True:
            taken = lanes.take()
            if taken is not None:
                await self._run_lanes(taken)
            elif lanes.ready_threaded and lanes.all_threads_asleep:
                self.prod()
                await anyio.lowlevel.checkpoint()
            elif len(self._idle) < _MOST_IDLE_TASKS:
                await self._sleep()
                self._waking = False
            else:
                return

    async def _sleep(self) -> None:
        event = anyio.Event()
        self._idle.append(event)
        try:
            await event.wait()
        finally:
            if event in self._idle:
                self._idle.remove(event)

    async def _run_lanes(self, taken: tuple[Lane, Delivery] | None) -> None:
        """Run one event after the other, of this lane and then of those that are ready, until there is none."""
        lanes, finish, delivered = self._lanes, self._lanes.finish, Outcome.DELIVERED
        budget = _EVENTS_BETWEEN_CHECKPOINTS
        try:
            while taken is not None:
                if lanes.ready_lanes and not self._waking:
                    self._wake_task()
                delivery = taken[1]
                fn = delivery.plan.only_async
                if fn is not None:
                    try:
                        await fn(delivery.payload)  # type: ignore[misc]  # Plan.only_async is a coroutine function
                        outcome = delivered
                    except BaseException as error:
                        if not is_own_failure(error):
                            raise
                        outcome = await self._gave_up(delivery.plan.handlers[0], delivery, error)
                else:
                    outcome = await self._run_handlers(delivery)
                taken = finish(taken[0], delivery, outcome)
                if lanes.ready_threaded:
                    self.prod()
                budget -= 1
                if not budget:
                    await anyio.lowlevel.checkpoint()
                    budget = _EVENTS_BETWEEN_CHECKPOINTS
        except BaseException:
            while taken is not None:
                taken = finish(*taken, Outcome.UNFINISHED)
            raise

    async def _run_handlers(self, delivery: Delivery) -> Outcome:
        worst = Outcome.DELIVERED
        for handler in delivery.plan.handlers:
            try:
                if handler.retry is None:
                    await self._call(handler, delivery)
                else:
                    policy = handler.retry
                    retrying = handler_retrying(
                        retries=policy.retries, backoff=policy.backoff, maximum=policy.maximum, sleep=anyio.sleep
                    )
                    await retrying(self._call, handler, delivery)
            except BaseException as error:
                if not is_own_failure(error):
                    raise
                worst = worse(worst, await self._gave_up(handler, delivery, error))
                if worst is Outcome.UNFINISHED:
                    break
        return worst

    async def _call(self, handler: Handler, delivery: Delivery) -> None:
        if handler.is_async or handler.is_quick:
            result = handler.fn(delivery.payload)
        else:
            result = await anyio.to_thread.run_sync(
                handler.fn, delivery.payload, abandon_on_cancel=True, limiter=self._limiter
            )
        if result is not None and inspect.isawaitable(result):
            await result

    async def _gave_up(self, handler: Handler, delivery: Delivery, error: BaseException) -> Outcome:
        self._hooks.handler_failed(handler, delivery.payload, error)
        await self._hooks.call("error", error, delivery.payload)
        return self._last_resort(handler, error)

    def _last_resort(self, handler: Handler, error: BaseException) -> Outcome:
        if handler.last_resort == "park":
            return Outcome.PARKED
        if handler.last_resort == "stop":
            self._fail(HandlerError.of(handler.name, error))
            return Outcome.UNFINISHED
        return Outcome.FAILED

    # Threads

    def _wake_thread(self, awake: int) -> None:
        """Wake a sleeping thread, or start one when those that are to be awake are more than there are."""
        if len(self._threads) < awake:
            name = f"connector-callback-{len(self._threads) + 1}"
            # The context tells a callback whose run it is in, see `running_engine`.
            context = contextvars.copy_context()
            thread = threading.Thread(target=context.run, args=(self._thread_main,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        self._calls.put(True)

    async def _add_threads_when_held_up(self) -> None:
        """A handler that blocks holds up its own thread only: soon the lanes behind it get others."""
        lanes = self._lanes
        while True:
            await self._held_up.wait()
            taken = lanes.taken_by_threads
            await anyio.sleep(_HELD_UP)
            ready = lanes.ready_threaded
            if not ready:
                self._held_up = anyio.Event()
            elif ready > _PATIENCE * (lanes.taken_by_threads - taken):
                for _ in range(ready):
                    awake = lanes.wake_thread(self._max_threads, although_others=True)
                    if not awake:
                        break
                    self._wake_thread(awake)

    def _thread_main(self) -> None:
        lanes = self._lanes
        while self._calls.get():
            taken = lanes.take_threaded()
            while taken is not None:
                lane, delivery = taken
                taken = lanes.finish(lane, delivery, self._run_in_thread(delivery))
                if lanes.ready_lanes and not self._waking:
                    self._waker(self._want_prod)
        self._waker(self._thread_ended)

    def _thread_ended(self) -> None:
        self._ended += 1
        if self._ended == len(self._threads):
            self._all_ended.set()

    def _run_in_thread(self, delivery: Delivery) -> Outcome:
        worst = Outcome.DELIVERED
        payload = delivery.payload
        for handler in delivery.plan.handlers:
            try:
                result = handler.fn(payload)
                if result is not None and inspect.isawaitable(result):
                    handler.is_async = True
                    self._handlers.became_async()
                    anyio.from_thread.run(wait_for, result, token=self._token)
            except Exception as error:  # noqa: BLE001 - the stream goes on, see FailurePolicy
                self._hooks.handler_failed(handler, payload, error)
                self._hooks.call_from_thread(self._token, "error", error, payload)
                worst = worse(worst, self._last_resort(handler, error))
            except BaseException as error:  # noqa: BLE001 - SystemExit in a thread ends nothing but the thread
                self._hooks.handler_failed(handler, payload, error)
                self._fail(HandlerError.of(handler.name, error))
                worst = Outcome.UNFINISHED
            if worst is Outcome.UNFINISHED:
                break
        return worst
