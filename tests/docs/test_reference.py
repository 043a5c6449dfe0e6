"""`make docs`: every public name is in the reference, with a docstring."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import connector_sdk
import connector_sdk.testing
from connector_sdk import errors, ledger, observe, payloads
from connector_sdk.buffers import protocol, store
from tests.docs.pages import DOCS

SCRIPT = DOCS / "build_reference.py"
PUBLIC = {
    name
    for module in (connector_sdk, connector_sdk.testing, errors, payloads, ledger, observe, protocol, store)
    for name in module.__all__
    if not name.startswith("__")
} | {
    *(
        "EventBuffer",
        "EventBufferView",
        "Lease",
        "AsyncLease",
        "BufferStats",
        "BufferBackendContract",
        "EventStoreContract",
    ),
    *("DurableLease", "BlockingLease"),
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    subprocess.run([sys.executable, str(SCRIPT), str(folder)], check=True, timeout=60, capture_output=True)
    return folder


def test_every_public_name_is_on_a_page_and_in_the_index(reference: Path) -> None:
    index = (reference / "index.md").read_text()
    pages = "\n".join(path.read_text() for path in reference.glob("*.md"))
    for name in sorted(PUBLIC):
        assert f"- [{name}](" in index, name
        assert f"\n## {name}\n" in pages, name


def test_links_of_the_index_lead_somewhere(reference: Path) -> None:
    for line in (reference / "index.md").read_text().splitlines():
        if line.startswith("- ["):
            name = line[3:].partition("]")[0]
            page, _, anchor = line.partition("](")[2].partition(")")[0].partition("#")
            assert f"\n## {name}\n" in (reference / page).read_text()
            assert anchor == name.lower()


def test_a_page_has_signatures_docstrings_and_fields(reference: Path) -> None:
    clients = (reference / "clients.md").read_text()
    assert "stop(*, drain: bool = True, timeout: float = 10.0) -> StopReport" in clients
    assert "`from connector_sdk import ConnectorClient`" in clients
    assert "- `max_queue_size`: how many events may wait for their callbacks" in clients
    assert "| `received: int = 0` | events that arrived |" in (reference / "ledger.md").read_text()
    assert "_clock" not in (reference / "buffers.md").read_text()


def test_check_finds_nothing_and_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    subprocess.run([sys.executable, str(SCRIPT), "--check", str(folder)], check=True, timeout=60)
    assert not folder.exists()


def test_check_fails_for_a_public_name_without_a_docstring() -> None:
    code = (
        "import runpy, sys, connector_sdk\n"
        "connector_sdk.quick.__doc__ = None\n"
        f"sys.argv = ['build_reference.py', '--check']\nrunpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no docstring: connector_sdk.callbacks.quick" in done.stderr
