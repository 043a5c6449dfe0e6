"""The numbers under which a RedisStore sends its batches; pure."""

from __future__ import annotations

import uuid
from typing import Final

__all__ = ["BatchNumbers"]

_REMEMBERED: Final = 1000


class BatchNumbers:
    """
    Numbers the batches of one writer for one shard without gaps, whatever numbers they have for the caller.

    The server keeps the latest number of a writer and those below it that have not come. Callers number the batches of all
    shards in one row, so in their own numbers nearly all would be missing, and a late one would be taken for an old one.
    The latest 1,000 are remembered: the same batch gets the same number again.
    """

    def __init__(self) -> None:
        #: Names this row of numbers for all processes and all time.
        self.writer = uuid.uuid4().hex
        self._latest = 0
        self._numbers: dict[int, int] = {}

    def number(self, batch: int) -> int:
        """Return the number of a batch, 1 or more."""
        number = self._numbers.get(batch)
        if number is None:
            number = self._latest = self._latest + 1
            self._numbers[batch] = number
            if len(self._numbers) > _REMEMBERED:
                del self._numbers[next(iter(self._numbers))]
        return number
