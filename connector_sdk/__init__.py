"""
Receive, buffer and hand on the event stream of a connector, losing nothing that the server can replay.

The names here are the public ones; `connector_sdk.testing` has what tests need.
"""

from connector_sdk._version import __version__
from connector_sdk.callbacks import quick
from connector_sdk.client.aio import AsyncConnectorClient
from connector_sdk.client.checkpoint import CheckpointStore, FileCheckpoint, MemoryCheckpoint
from connector_sdk.client.handlers import Retry
from connector_sdk.client.session import ConnectionState, Gap
from connector_sdk.client.stats import ClientStats, StopReport
from connector_sdk.client.sync import ConnectorClient

__all__ = [
    "AsyncConnectorClient",
    "CheckpointStore",
    "ClientStats",
    "ConnectionState",
    "ConnectorClient",
    "FileCheckpoint",
    "Gap",
    "MemoryCheckpoint",
    "Retry",
    "StopReport",
    "__version__",
    "quick",
]
