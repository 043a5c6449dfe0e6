"""`--kill-redis`: when the demo's own server dies, and for how long."""

from __future__ import annotations

import random

from connector_sdk.cli.account import Outage
from connector_sdk.cli.place import RedisPlace

__all__ = ["Killing"]


class Killing:
    """
    One kill of the demo's Redis in the middle of a demo that takes *planned* seconds, and one restart.

    *seed* decides the moment. Times are seconds of the demo.
    """

    def __init__(self, place: RedisPlace, planned: float, seed: int) -> None:
        dice = random.Random(f"connector_sdk killing {seed}")
        self._place = place
        self._killed: tuple[float, int] | None = None
        self.at = planned * dice.uniform(0.35, 0.6)
        self.length = min(1.5, max(0.3, planned / 8))
        self.outage: Outage | None = None

    @property
    def is_over(self) -> bool:
        """Whether it runs again."""
        return self.outage is not None

    def is_due(self, seconds: float) -> bool:
        """Whether it is to be killed now."""
        return self._killed is None and seconds >= self.at

    def kill(self, seconds: float, open_lease: int) -> None:
        """Kill it, while so many events are on lease."""
        self._place.kill()
        self._killed = (seconds, open_lease)

    def restart(self, seconds: float) -> bool:
        """Start it again if it has been away long enough; return whether it was started."""
        if self._killed is None or self.outage is not None or seconds < self._killed[0] + self.length:
            return False
        killed_at, open_lease = self._killed
        self._place.restart()
        self.outage = Outage(killed_at=killed_at, away=seconds - killed_at, open_lease=open_lease)
        return True
