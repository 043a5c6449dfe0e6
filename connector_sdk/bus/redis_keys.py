"""Pure: the keys of a RedisLog, all in one slot of a cluster; what each holds is told in `lua/shared.lua`."""

from __future__ import annotations

__all__ = ["Keys"]


class Keys:
    """The keys under one prefix."""

    def __init__(self, prefix: str) -> None:
        self.tag = b"{" + prefix.encode() + b"}"
        self.catalogue = self.tag + b":catalogue"
        self.state = self.tag + b":state"
        #: The first keys of every script.
        self.common = (self.tag + b":topics", self.catalogue, self.state)
        self.topics = self.tag + b":topic:"
        self.again = self.tag + b":again:"
        self.buried = self.tag + b":buried"
        self._skip = len(self.topics)

    def topic(self, name: str) -> bytes:
        """Return the stream of a topic."""
        return self.topics + name.encode()

    def name_of(self, stream: bytes) -> str:
        """Return the topic of a stream."""
        return stream[self._skip :].decode()

    def again_for(self, group: str, topic: str) -> bytes:
        """Return the stream of what was redriven for a group of a topic."""
        name = group.encode()
        return b"%s%d:%s:%s" % (self.again, len(name), name, topic.encode())

    def dead(self, topic: str) -> bytes:
        """Return the stream of the dead letters of a topic."""
        return self.tag + b":dead:" + topic.encode()

    def once(self, key: str) -> bytes:
        """Return where it is kept whether work of this key is done; any text is a key."""
        return self.tag + b":once:" + key.encode("utf-8", "surrogatepass")

    def lost(self, topic: str, group: str) -> bytes:
        """Return the field of the state that counts what retention took from a group."""
        name = topic.encode()
        return b"lost:%d:%s:%s" % (len(name), name, group.encode())
