"""
Receive, buffer and hand on the event stream of a connector, losing nothing that the server can replay.

The names here are the public ones; `connector_sdk.testing` has what tests need.
"""

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

__all__ = [
    "ActionsPayload",
    "AsyncConnectorClient",
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
