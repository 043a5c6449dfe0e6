"""A short run of the proof machine for each kind of buffer; `make chaos` runs it for minutes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.chaos.plan import BUFFERS, BufferKind, make_plan
from tests.chaos.run import run
from tests.chaos.verdict import faults_of

SECONDS = float(os.environ.get("CHAOS_SECONDS", "8"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits the files of other processes")


@pytest.mark.parametrize("kind", BUFFERS)
def test_nothing_is_lost_whatever_is_killed(kind: BufferKind, tmp_path: Path) -> None:
    plan = make_plan(kind, SEED, SECONDS, 300.0)
    outcome = run(plan, tmp_path / "run", print)  # what happened is shown when it fails
    assert not list(faults_of(outcome)), f"CHAOS_SEED={SEED} CHAOS_SECONDS={SECONDS:g} runs it again"
