"""The process that receives: connector -> client with a checkpoint -> buffer. SIGTERM ends it properly."""

from __future__ import annotations

import json
import sys

from tests.chaos.clock import follow

follow(sys.argv[2])

import signal  # noqa: E402

import anyio  # noqa: E402
import msgspec  # noqa: E402

from connector_sdk import AsyncConnectorClient, FileCheckpoint  # noqa: E402
from tests.chaos.place import Place, told  # noqa: E402


async def main(place: Place) -> None:
    buffer = place.client_buffer()
    client = AsyncConnectorClient(
        place.stream,
        checkpoint=FileCheckpoint(place.path / "checkpoint"),
        initial_backoff=0.05,
        max_backoff=0.3,
        read_timeout=2.0,
        connect_timeout=1.0,
    ).into(buffer)

    async def stop_at_sigterm() -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                await client.stop()
                return

    async with buffer, anyio.create_task_group() as tasks:
        tasks.start_soon(stop_at_sigterm)
        await client.run()
        tasks.cancel_scope.cancel()
    stats = await buffer.stats()
    print(json.dumps({"client": msgspec.to_builtins(client.stats()), "buffer": msgspec.to_builtins(stats)}))


if __name__ == "__main__":
    anyio.run(main, told())
