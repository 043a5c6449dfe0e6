"""SIGINT and SIGTERM as a wish to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from connector_sdk.errors import ClientStateError

__all__ = ["stop_on_signals"]


@contextmanager
def stop_on_signals(stop: Callable[[], object], *, wanted: bool) -> Iterator[None]:
    """
    While the block runs, let SIGINT and SIGTERM call *stop*, if that is *wanted*.

    Raises ClientStateError when it is, outside of the main thread.
    """
    if not wanted:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise ClientStateError("signals come to the main thread: handle_signals works there only")
    before = {number: signal.signal(number, lambda *_: stop()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
