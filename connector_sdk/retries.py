"""
The one place that builds retry policies, on tenacity.

`ReconnectSchedule` decides the pause before the next connection: exponential with full jitter and a cap, never shorter
than what the server asked for, starting over only when a connection earned it. `handler_retrying` runs a callback
again.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import tenacity

__all__ = ["MAX_SERVER_DELAY", "ReconnectSchedule", "handler_retrying"]

#: Seconds; a longer wait asked for by `Retry-After` or `retry:` is cut to this.
MAX_SERVER_DELAY = 3600.0


class ReconnectSchedule:
    """
    The pauses between connection attempts, as values: nothing here sleeps.

    The n-th failure in a row (n = 1, 2, ...) waits a random time between 0 and `min(maximum, initial * 2 ** (n - 1))`
    seconds (full jitter), at least as long as the server asked. With initial 1 and maximum 30 the upper bounds are
    1, 2, 4, 8, 16, 30, 30, ... `max_retries=None` never gives up; 0 gives up at the first failure.
    """

    def __init__(
        self,
        *,
        initial: float,
        maximum: float,
        max_retries: int | None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._initial = initial
        self._maximum = maximum
        self._uniform = uniform
        self._stop = tenacity.stop_never if max_retries is None else tenacity.stop_after_attempt(max_retries + 1)
        self._server_retry: float | None = None
        self._state = self._fresh()

    @property
    def failures(self) -> int:
        """Failed attempts since the schedule last started over."""
        return self._state.attempt_number - 1

    def obey_server(self, retry: float) -> None:
        """Take the `retry:` field of the stream, in seconds, as the new starting point and lower bound."""
        self._server_retry = min(retry, MAX_SERVER_DELAY)

    def earned_reset(self) -> None:
        """Start over: the last connection proved good."""
        self._state = self._fresh()

    def failed(self, *, retry_after: float | None = None) -> float | None:
        """Count one failure; return the pause before the next attempt in seconds, or None to give up."""
        if self._stop(self._state):
            self._state.attempt_number += 1
            return None
        bound = self.upper_bound()
        self._state.attempt_number += 1
        floor = max(self._server_retry or 0.0, min(retry_after or 0.0, MAX_SERVER_DELAY))
        return max(floor, self._uniform(0.0, bound))

    def upper_bound(self) -> float:
        """The longest pause that jitter can choose for the next failure, in seconds."""
        initial = self._initial if self._server_retry is None else self._server_retry
        maximum = max(self._maximum, initial)
        return float(tenacity.wait_exponential(multiplier=initial, max=maximum)(self._state))

    def _fresh(self) -> tenacity.RetryCallState:
        return tenacity.RetryCallState(tenacity.AsyncRetrying(), None, (), {})


def handler_retrying(
    *, retries: int, backoff: float, maximum: float, sleep: Callable[[float], Awaitable[None]]
) -> tenacity.AsyncRetrying:
    """
    Build the policy that calls a failing handler *retries* times more: full jitter from *backoff* to *maximum* seconds.

    The last error passes through. Only `Exception` is retried: cancellation never is.
    """
    return tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(retries + 1),
        wait=tenacity.wait_random_exponential(multiplier=backoff, max=maximum),
        retry=tenacity.retry_if_exception_type(Exception),
        sleep=sleep,
        reraise=True,
    )
