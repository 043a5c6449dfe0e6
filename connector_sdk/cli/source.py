"""What a connector of ours plays: a web server's log, or generated traffic."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from connector_sdk.cli.access_log import AccessLog
from connector_sdk.cli.console import BadInputError
from connector_sdk.cli.sessions import sessionise
from connector_sdk.cli.traffic import MONDAY_MORNING, generate
from connector_sdk.payloads import ActionsPayload, SummaryPayload

__all__ = ["Source"]

Played = ActionsPayload | SummaryPayload


class Source:
    """
    Payloads to play, and words for what they are.

    Made by `of_log` or `of_traffic`. `log` is the log with its counts, None for generated traffic; `label` says what it is
    in a sentence.
    """

    def __init__(self, label: str, play: Callable[[], Iterator[Played]], log: AccessLog | None = None) -> None:
        self.label = label
        self.log = log
        self._play = play

    @classmethod
    def of_log(cls, path: Path, *, product_id: str = "demo") -> Source:
        """
        A log's requests as sessions.

        Raises BadInputError when the file cannot be opened, NotAnAccessLogError when its beginning is no log.
        """
        if path.exists() and not path.is_file() and not path.is_dir():
            raise BadInputError(f"{path} cannot be read: it is no plain file, and it is read more than once")
        log = AccessLog(path)
        source = cls(f"the requests of {path}", lambda: sessionise(log, product_id=product_id), log)
        try:
            next(source.payloads(), None)
        except OSError as error:
            raise BadInputError(f"{path} cannot be read: {error.strerror or error}") from error
        return source

    @classmethod
    def of_traffic(
        cls, seed: int, sessions: int | None, *, start: float = MONDAY_MORNING, events_per_second: float = 2.0
    ) -> Source:
        """Generated visits to a small web shop; see `traffic.generate`."""
        return cls(
            f"visits to a small web shop (generated, seed {seed})",
            lambda: generate(seed, sessions=sessions, start=start, events_per_second=events_per_second),
        )

    def payloads(self, *, loop: bool = False) -> Iterator[Played]:
        """The payloads from the start; with *loop* again and again. Nothing is kept of what was played."""
        if not loop:
            return self._play()
        return itertools.chain.from_iterable(self._play() for _ in itertools.count())
