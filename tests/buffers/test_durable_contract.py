"""DurableBuffer passes the public contract suite, over one shard and over several."""

from __future__ import annotations

from connector_sdk.buffers.durable import DurableBuffer
from connector_sdk.buffers.protocol import BufferBackend, Leasing, Paged, Peeking, Typed
from connector_sdk.testing.contracts import BufferBackendContract
from tests.buffers.memory_store import MemoryStore


class TestDurableBuffer(BufferBackendContract):
    def make_backend(self) -> DurableBuffer:
        # The memory store keeps the event ids it has seen; the suite adds equal payloads and means separate events.
        return DurableBuffer(MemoryStore(known_ids=False))

    async def close_backend(self, backend: BufferBackend) -> None:
        assert isinstance(backend, DurableBuffer)
        stats = await backend.stats()
        assert stats.ledger.balanced
        assert stats.shared is not None
        assert stats.shared.balanced
        await backend.aclose()


class TestBlockingDurableBufferOfThreeShards(TestDurableBuffer):
    def make_backend(self) -> DurableBuffer:
        return DurableBuffer(
            MemoryStore(3, known_ids=False), overflow="block", codec="compact", page_size=7, max_batch=3
        )


def test_it_has_every_ability() -> None:
    buffer = DurableBuffer(MemoryStore())
    for protocol in (BufferBackend, Leasing, Peeking, Typed, Paged):
        assert isinstance(buffer, protocol)
