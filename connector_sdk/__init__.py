"""
Receive, buffer and hand on the event stream of a connector, losing nothing that the server can replay.

The names here are the public ones; `connector_sdk.testing` has what tests need, `connector_sdk.buffers.store` what a storage
engine of your own does. Jobs, the event bus and buffers outside of this process resolve on first use, so that who has none
does not wait for them.
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
    BusClosedError,
    BusUnavailableError,
    CheckpointError,
    ClientStateError,
    ConfigurationError,
    ConnectorError,
    EventBufferError,
    EventBusError,
    FatalStreamError,
    HandlerError,
    LeaseError,
    LeaseExpiredError,
    PayloadError,
    RetriesExhaustedError,
    StreamError,
    TransientStreamError,
    UnknownEventError,
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
    from connector_sdk.buffers.postgres import PostgresEventBuffer
    from connector_sdk.buffers.redis import RedisEventBuffer
    from connector_sdk.buffers.sqlite import SQLiteEventBuffer
    from connector_sdk.bus.bus import EventBus
    from connector_sdk.bus.events import Event, EventType
    from connector_sdk.bus.handlers import Message, Subscriber
    from connector_sdk.bus.log import EventLog
    from connector_sdk.bus.memory import MemoryLog
    from connector_sdk.bus.postgres import PostgresLog
    from connector_sdk.bus.redis import RedisLog
    from connector_sdk.bus.registry import EventRegistry
    from connector_sdk.bus.stats import BusHealth, BusStats, CloseReport, RecoveryReport, SubscriptionStats
    from connector_sdk.bus.subscription import Subscription
    from connector_sdk.decisions import Reject, RetryAfter, RetryLater
    from connector_sdk.jobs.blocking import BlockingDrainJob
    from connector_sdk.jobs.job import DrainJob
    from connector_sdk.jobs.stats import JobHealth, JobReport, JobStats
    from connector_sdk.leader import Leader, LeaderStats
    from connector_sdk.plugins import create_event_bus, open_buffer
    from connector_sdk.redis_checkpoint import RedisCheckpoint
    from connector_sdk.streams.consumer import Consumer
    from connector_sdk.streams.entry import Entry
    from connector_sdk.streams.group_consumer import GroupConsumer
    from connector_sdk.streams.stats import ConsumerStats, StreamLag

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
    "BusClosedError",
    "BusHealth",
    "BusStats",
    "BusUnavailableError",
    "CheckpointError",
    "CheckpointStore",
    "ClientStateError",
    "ClientStats",
    "CloseReport",
    "ConfigurationError",
    "ConnectionState",
    "ConnectorClient",
    "ConnectorError",
    "Consumer",
    "ConsumerStats",
    "DrainJob",
    "DropReason",
    "DurableBuffer",
    "DurableStats",
    "Entry",
    "Event",
    "EventBuffer",
    "EventBufferError",
    "EventBus",
    "EventBusError",
    "EventLog",
    "EventRegistry",
    "EventType",
    "FatalStreamError",
    "FileCheckpoint",
    "Gap",
    "GroupConsumer",
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
    "MemoryLog",
    "Message",
    "Observer",
    "OutageBridge",
    "Payload",
    "PayloadError",
    "PostgresEventBuffer",
    "PostgresLog",
    "RecoveryReport",
    "RedisCheckpoint",
    "RedisEventBuffer",
    "RedisLog",
    "Reject",
    "RetriesExhaustedError",
    "Retry",
    "RetryAfter",
    "RetryLater",
    "SQLiteEventBuffer",
    "SlimAction",
    "StopReport",
    "StreamError",
    "StreamLag",
    "Subscriber",
    "Subscription",
    "SubscriptionStats",
    "SummaryPayload",
    "Term",
    "TransientStreamError",
    "UnknownEventError",
    "UnknownPayload",
    "__version__",
    "create_event_bus",
    "decode_payload",
    "encode_payload",
    "open_buffer",
    "quick",
]

#: Names that resolve on first use, and the module that has each.
_HOMES: Final = {
    "BlockingBuffer": "buffers.blocking",
    "BlockingDrainJob": "jobs.blocking",
    "BridgeState": "buffers.bridge_stats",
    "BridgeStats": "buffers.bridge_stats",
    "BusHealth": "bus.stats",
    "BusStats": "bus.stats",
    "CloseReport": "bus.stats",
    "Consumer": "streams.consumer",
    "ConsumerStats": "streams.stats",
    "DrainJob": "jobs.job",
    "DurableBuffer": "buffers.durable",
    "DurableStats": "buffers.durable_stats",
    "Entry": "streams.entry",
    "Event": "bus.events",
    "EventBus": "bus.bus",
    "EventLog": "bus.log",
    "EventRegistry": "bus.registry",
    "EventType": "bus.events",
    "GroupConsumer": "streams.group_consumer",
    "JobHealth": "jobs.stats",
    "JobReport": "jobs.stats",
    "JobStats": "jobs.stats",
    "Leader": "leader",
    "LeaderStats": "leader",
    "MemoryLog": "bus.memory",
    "Message": "bus.handlers",
    "OutageBridge": "buffers.bridge",
    "PostgresEventBuffer": "buffers.postgres",
    "PostgresLog": "bus.postgres",
    "RecoveryReport": "bus.stats",
    "RedisCheckpoint": "redis_checkpoint",
    "RedisEventBuffer": "buffers.redis",
    "RedisLog": "bus.redis",
    "Reject": "decisions",
    "RetryAfter": "decisions",
    "RetryLater": "decisions",
    "SQLiteEventBuffer": "buffers.sqlite",
    "StreamLag": "streams.stats",
    "Subscriber": "bus.handlers",
    "Subscription": "bus.subscription",
    "SubscriptionStats": "bus.stats",
    "create_event_bus": "plugins",
    "open_buffer": "plugins",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
