"""A topic as a sink: what a client of the connector puts its payloads into."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from connector_sdk.bus.topics import TopicTemplate
from connector_sdk.payloads import Payload

__all__ = ["TopicSink"]


class TopicSink:
    """
    Publishes each payload that is added; made by `EventBus.topic`, for
    `client.into(bus.topic("connector:{product_id}"))`.

    An `add` that returned stored its event; one that raised did not, or says `in_doubt`. For clients of the bus's
    own event loop.
    """

    #: An event that cannot be stored is refused with an error, never dropped.
    overflow = "raise"

    def __init__(self, publish: Callable[[str, object], Awaitable[object]], template: TopicTemplate) -> None:
        self._publish = publish
        self._template = template

    async def add(self, payload: Payload) -> None:
        """Publish it to its topic. Raises what `EventBus.publish` raises."""
        await self._publish(self._template.fill(payload), payload)

    def __repr__(self) -> str:
        return f"<TopicSink {self._template.template}>"
