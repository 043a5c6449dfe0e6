"""The process that works: buffer -> DrainJob -> an index on disk. SIGTERM ends it with a last drain."""

from __future__ import annotations

import json
import sys

from tests.chaos.clock import follow

follow(sys.argv[2])

import signal  # noqa: E402

import anyio  # noqa: E402
import msgspec  # noqa: E402

from connector_sdk.jobs.job import DrainJob  # noqa: E402
from tests.chaos.place import LEASE, Index, Place, told  # noqa: E402


async def main(place: Place) -> None:
    index = Index(place.index)
    buffer = place.job_buffer()
    job = DrainJob(
        buffer,
        index.write,
        interval=0.1,
        batch_size=200,
        lease_timeout=LEASE,
        retry_initial=0.05,
        retry_max=0.5,
    )

    async def stop_at_sigterm() -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                await job.stop()
                return

    async with buffer, anyio.create_task_group() as tasks:
        tasks.start_soon(stop_at_sigterm)
        await job.run()
        tasks.cancel_scope.cancel()
    print(json.dumps({"job": msgspec.to_builtins(job.stats()), "buffer": msgspec.to_builtins(await buffer.stats())}))


if __name__ == "__main__":
    anyio.run(main, told())
