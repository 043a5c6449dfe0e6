"""
A thin, fast asyncio client for Redis and Valkey, for the parts of this library that store things there.

It knows nothing of buffers or buses. One connection for each server is shared by all callers, who never wait for each
other's replies; a cancelled caller leaves it in step; every call ends within its time-out.
"""

from __future__ import annotations

from connector_sdk.redis_client.address import RedisAddress
from connector_sdk.redis_client.client import RedisClient
from connector_sdk.redis_client.errors import RedisRefusedError, RedisUnavailableError
from connector_sdk.redis_client.packing import Argument, Reply
from connector_sdk.redis_client.scripts import Script, load_script

__all__ = [
    "Argument",
    "RedisAddress",
    "RedisClient",
    "RedisRefusedError",
    "RedisUnavailableError",
    "Reply",
    "Script",
    "load_script",
]
