"""SIGINT and SIGTERM stop a job cleanly, in a real process."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.jobs.samples import PATIENCE
from tests.lines import next_line

_ASYNC = """
import anyio, sys
from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.jobs.job import DrainJob
from connector_sdk.payloads import SummaryPayload

buffer = EventBuffer()
buffer.add(SummaryPayload("shop", "s", "", 0, 0.0, "1"))
def index(payloads):
    print("indexed", *[payload.event_id for payload in payloads], flush=True)
    if len(seen) == 0:
        seen.append(1)
        buffer.add(SummaryPayload("shop", "s", "", 0, 0.0, "2"))
seen = []
async def main():
    print(await DrainJob(buffer, index, interval=3600).run(handle_signals=True), flush=True)
"""
_RUN_ASYNC = _ASYNC + "anyio.run(main, backend=sys.argv[1])"
_RUN_SYNC = _ASYNC.replace("DrainJob", "BlockingDrainJob").replace("jobs.job", "jobs.blocking").replace(
    "async def", "def"
).replace("await ", "") + "main()"  # fmt: skip
_INTERRUPT = """
import asyncio
from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.jobs.job import DrainJob
from connector_sdk.payloads import SummaryPayload

buffer = EventBuffer()
buffer.add(SummaryPayload("shop", "s", "", 0, 0.0, "1"))
async def index(payloads):
    print("indexed", flush=True)
    await asyncio.sleep(3600)
try:
    asyncio.run(DrainJob(buffer, index).run())
except KeyboardInterrupt:
    print("interrupted", buffer.size, flush=True)
"""


def run(source: str, number: signal.Signals, *arguments: str) -> list[str]:
    with subprocess.Popen(
        [sys.executable, "-c", source, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            first = next_line(process)
            process.send_signal(number)
            rest, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 0, err
    assert err == ""
    return [first.strip(), *rest.splitlines()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("face", ["asyncio", "trio", "sync"])
def test_a_signal_lets_it_drain_once_more(face: str, number: signal.Signals) -> None:
    lines = run(_RUN_SYNC if face == "sync" else _RUN_ASYNC, number, face)
    assert lines == ["indexed 1", "indexed 2", "JobReport(drained=True, left=0, running=0)"]


def test_ctrl_c_without_a_handler_gives_back_and_raises() -> None:
    assert run(_INTERRUPT, signal.SIGINT) == ["indexed", "interrupted 1"]
