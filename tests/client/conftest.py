"""Each test that asks for `faces` runs on the sync client, and on the async one on both event loops."""

from __future__ import annotations

import pytest

from tests.client.harness import Faces


@pytest.fixture(params=["sync", "asyncio", "trio"])
def faces(request: pytest.FixtureRequest) -> Faces:
    return Faces(request.param)
