"""
Receive, buffer and hand on the event stream of a connector, losing nothing that the server can replay.

The names here are the public ones; `connector_sdk.testing` has what tests need, `connector_sdk.buffers.store` what a storage
engine of your own does. Buffers outside of this process resolve on first use, so that who has none does not wait for them.
"""

import importlib
from typing import TYPE_CHECKING, Final

from connector_sdk._version import __version__
from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.buffers.protocol import BufferBackend
from connector_sdk.callbacks import quick
from connector_sdk.client.aio import AsyncConnectorClient
from connector_sdk.client.checkpoint import CheckpointStore, FileCheckpoint, MemoryCheckpoint
from connector_sdk.client.handlers import Retry
from connector_sdk.client.session import ConnectionState, Gap
from connector_sdk.client.stats import ClientStats, StopReport
from connector_sdk.client.sync import ConnectorClient
from connector_sdk.errors import (
    BufferClosedError,
    BufferFullError,
    BufferUnavailableError,
    CheckpointError,
    ClientStateError,
    ConfigurationError,
    ConnectorError,
    EventBufferError,
    FatalStreamError,
    HandlerError,
    LeaseError,
    LeaseExpiredError,
    PayloadError,
    RetriesExhaustedError,
    StreamError,
    TransientStreamError,
)
from connector_sdk.ledger import DropReason, Ledger
from connector_sdk.observe import Observer
from connector_sdk.payloads import (
    ActionsPayload,
    Payload,
    SlimAction,
    SummaryPayload,
    UnknownPayload,
    decode_payload,
    encode_payload,
)

if TYPE_CHECKING:
    from connector_sdk.buffers.blocking import BlockingBuffer
    from connector_sdk.buffers.durable import DurableBuffer
    from connector_sdk.buffers.durable_stats import DurableStats
    from connector_sdk.buffers.redis import RedisEventBuffer

__all__ = [
    "ActionsPayload",
    "AsyncConnectorClient",
    "BlockingBuffer",
    "BufferBackend",
    "BufferClosedError",
    "BufferFullError",
    "BufferUnavailableError",
    "CheckpointError",
    "CheckpointStore",
    "ClientStateError",
    "ClientStats",
    "ConfigurationError",
    "ConnectionState",
    "ConnectorClient",
    "ConnectorError",
    "DropReason",
    "DurableBuffer",
    "DurableStats",
    "EventBuffer",
    "EventBufferError",
    "FatalStreamError",
    "FileCheckpoint",
    "Gap",
    "HandlerError",
    "LeaseError",
    "LeaseExpiredError",
    "Ledger",
    "MemoryCheckpoint",
    "Observer",
    "Payload",
    "PayloadError",
    "RedisEventBuffer",
    "RetriesExhaustedError",
    "Retry",
    "SlimAction",
    "StopReport",
    "StreamError",
    "SummaryPayload",
    "TransientStreamError",
    "UnknownPayload",
    "__version__",
    "decode_payload",
    "encode_payload",
    "quick",
]

#: Names that resolve on first use, and the module that has each.
_HOMES: Final = {
    "BlockingBuffer": "blocking",
    "DurableBuffer": "durable",
    "DurableStats": "durable_stats",
    "RedisEventBuffer": "redis",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.buffers.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
