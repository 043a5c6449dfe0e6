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
from connector_sdk.leadership import Leadership, Term
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
    from connector_sdk.buffers.bridge import OutageBridge
    from connector_sdk.buffers.bridge_stats import BridgeState, BridgeStats
    from connector_sdk.buffers.durable import DurableBuffer
    from connector_sdk.buffers.durable_stats import DurableStats
    from connector_sdk.buffers.redis import RedisEventBuffer
    from connector_sdk.buffers.sqlite import SQLiteEventBuffer
    from connector_sdk.jobs.attempts import RetryLater
    from connector_sdk.jobs.blocking import BlockingDrainJob
    from connector_sdk.jobs.job import DrainJob
    from connector_sdk.jobs.stats import JobHealth, JobReport, JobStats
    from connector_sdk.leader import Leader, LeaderStats
    from connector_sdk.redis_checkpoint import RedisCheckpoint

__all__ = [
    "ActionsPayload",
    "AsyncConnectorClient",
    "BlockingBuffer",
    "BlockingDrainJob",
    "BridgeState",
    "BridgeStats",
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
    "DrainJob",
    "DropReason",
    "DurableBuffer",
    "DurableStats",
    "EventBuffer",
    "EventBufferError",
    "FatalStreamError",
    "FileCheckpoint",
    "Gap",
    "HandlerError",
    "JobHealth",
    "JobReport",
    "JobStats",
    "Leader",
    "LeaderStats",
    "Leadership",
    "LeaseError",
    "LeaseExpiredError",
    "Ledger",
    "MemoryCheckpoint",
    "Observer",
    "OutageBridge",
    "Payload",
    "PayloadError",
    "RedisCheckpoint",
    "RedisEventBuffer",
    "RetriesExhaustedError",
    "Retry",
    "RetryLater",
    "SQLiteEventBuffer",
    "SlimAction",
    "StopReport",
    "StreamError",
    "SummaryPayload",
    "Term",
    "TransientStreamError",
    "UnknownPayload",
    "__version__",
    "decode_payload",
    "encode_payload",
    "quick",
]

#: Names that resolve on first use, and the module that has each: of the folder `buffers`, or with a dot in front of none.
_HOMES: Final = {
    "BlockingBuffer": "blocking",
    "BlockingDrainJob": ".jobs.blocking",
    "BridgeState": "bridge_stats",
    "BridgeStats": "bridge_stats",
    "DrainJob": ".jobs.job",
    "DurableBuffer": "durable",
    "DurableStats": "durable_stats",
    "JobHealth": ".jobs.stats",
    "JobReport": ".jobs.stats",
    "JobStats": ".jobs.stats",
    "Leader": ".leader",
    "LeaderStats": ".leader",
    "OutageBridge": "bridge",
    "RedisCheckpoint": ".redis_checkpoint",
    "RedisEventBuffer": "redis",
    "RetryLater": ".jobs.attempts",
    "SQLiteEventBuffer": "sqlite",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(home if home[0] == "." else f".buffers.{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
