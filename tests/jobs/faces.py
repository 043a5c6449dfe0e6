"""A job that runs beside the test, behind each face: the same suite for all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import anyio

from connector_sdk.jobs.blocking import BlockingDrainJob
from connector_sdk.jobs.job import DrainJob
from connector_sdk.jobs.stats import JobReport
from tests.jobs.samples import PATIENCE, QUICK

Job: TypeAlias = DrainJob | BlockingDrainJob

FACES: Final = ["sync", "asyncio", "trio"]


class Running:
    """A job in a thread."""

    def __init__(self, face: str, buffer: Any, handler: Any, **options: Any) -> None:
        options = {**QUICK, **options}
        self.job: Job = (BlockingDrainJob if face == "sync" else DrainJob)(buffer, handler, **options)
        self.error: BaseException | None = None
        self._face = face
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float | None = None) -> JobReport:
        """Stop from this thread and wait for the end."""
        self.job.stop(timeout)
        return self.join()

    def join(self) -> JobReport:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the job does not end"
        if self.error is not None:
            raise self.error
        return self.job.report

    def _run(self) -> None:
        try:
            if isinstance(self.job, BlockingDrainJob):
                self.job.run()
            else:
                anyio.run(self.job.run, backend=self._face)
        except BaseException as error:
            self.error = error


@contextmanager
def running(face: str, buffer: Any, handler: Any, **options: Any) -> Iterator[Running]:
    """Run a job while the block runs; what is left of it then is stopped at once."""
    run = Running(face, buffer, handler, **options)
    run.start()
    try:
        yield run
    finally:
        run.job.stop(0.0)
        run._thread.join(PATIENCE)
