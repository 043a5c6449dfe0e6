"""Members that are killed in the middle of a handler, and members that take their time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.servers.fixtures import one_kind
from tests.streams.stream_place import PATIENCE, StreamPlace, eventually

pytestmark = [pytest.mark.anyio, one_kind]

Start: TypeAlias = Callable[[str], "subprocess.Popen[bytes]"]

HOLD = 1.2


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """What the members wrote."""
    path = tmp_path / "log"
    path.touch()
    return path


@pytest.fixture
def start(place: StreamPlace, log: Path) -> Iterator[Start]:
    """Start members; they are killed at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def run(how: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.streams.member", place.url, place.key("a"), str(HOLD), str(log), how]
        started.append(subprocess.Popen(command))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def lines_of(log: Path) -> list[str]:
    """Return what the members wrote so far."""
    return log.read_text().splitlines()


async def test_what_a_killed_member_had_is_finished_by_the_others(place: StreamPlace, log: Path, start: Start) -> None:
    place.add("a", range(6))
    killed = start("hang")
    await eventually(lambda: "began 0 1" in log.read_text(), "the first handler")
    killed.kill()
    start("quick")
    await eventually(lambda: log.read_text().count("finished") == 6, "the others' work")
    lines = lines_of(log)
    assert {line.split()[1] for line in lines if line.startswith("finished")} == set("012345")
    assert "finished 0 2" in lines
    await eventually(lambda: place.pending_count("a") == 0 and len(place.pending("a")) <= 2, "the end")


async def test_a_handler_that_takes_ten_times_the_hold_is_not_run_twice(
    place: StreamPlace, log: Path, start: Start
) -> None:
    """X19: the entry in hand, and those that waited behind it, were taken from a healthy member."""
    place.add("a", [0])
    start("slow")
    await eventually(lambda: "began 0 1" in log.read_text(), "the slow handler")
    start("quick")
    place.add("a", range(1, 4))
    await eventually(lambda: log.read_text().count("finished") == 4, "all of them")
    assert sorted(line for line in lines_of(log) if line.startswith("began")) == [f"began {n} 1" for n in range(4)]
    assert PATIENCE > 10 * HOLD
