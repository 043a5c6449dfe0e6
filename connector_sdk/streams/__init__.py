"""Redis Streams as async iterators: with a consumer group, and without."""

from __future__ import annotations

from connector_sdk.streams.consumer import Consumer
from connector_sdk.streams.entry import Entry
from connector_sdk.streams.group_consumer import GroupConsumer
from connector_sdk.streams.stats import ConsumerStats, StreamLag

__all__ = ["Consumer", "ConsumerStats", "Entry", "GroupConsumer", "StreamLag"]
