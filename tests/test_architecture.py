"""Imports go one way: each module may import only from modules above it in this list."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import connector_sdk

ROOT = Path(connector_sdk.__file__).parent

#: From the ground up. A folder stands for its modules in the order of ORDER_WITHIN, or for all at one height.
ORDER = [
    "_version", "errors", "options", "decisions", "evidence", "observe", "wire", "payloads", "ledger", "retries",
    "callbacks", "wakeups", "background", "at_exit", "forks", "leadership", "redis_client", "postgres_client",
    "leader", "client", "redis_checkpoint", "buffers", "jobs", "streams", "bus", "plugins", "testing", "cli",
]  # fmt: skip
ORDER_WITHIN = {
    "client": [
        "sse", "session", "checkpoint", "handlers", "options", "delivery", "lanes", "hooks", "intake", "keeper", "connect",
        "runners", "stats", "dispatch", "terms", "engine", "pull", "face", "aio", "sync",
    ],
}  # fmt: skip
#: Folders that know nothing of each other.
STRANGERS = [
    ("buffers", "client"),
    ("redis_client", "client"),
    ("postgres_client", "client"),
    ("buffers", "bus"),
    ("client", "bus"),
    ("streams", "buffers"),
]
#: What only an extra installs: the core must never need it.
OPTIONAL = {"typer", "rich", "pytest", "hypothesis", "psycopg", "opentelemetry", "trio"}
CORE_MAY_IMPORT = {"anyio", "hiredis", "httpx", "msgspec", "redis", "tenacity", "connector_sdk"}


def modules() -> list[tuple[str, ...]]:
    return sorted(path.relative_to(ROOT).with_suffix("").parts for path in ROOT.rglob("*.py"))


def imports_of(module: tuple[str, ...]) -> set[str]:
    tree = ast.parse(ROOT.joinpath(*module).with_suffix(".py").read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: write imports in full"
            found.add(node.module or "")
            # `from package import module` names a module in its list.
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def height(parts: tuple[str, ...]) -> tuple[int, int]:
    top = parts[0]
    assert top in ORDER, f"{'.'.join(parts)} has no place in ORDER yet: give it one"
    within = ORDER_WITHIN.get(top, [])
    if len(parts) < 2 or not within or parts[1] == "__init__":
        return ORDER.index(top), -1
    assert parts[1] in within, f"{'.'.join(parts)} has no place in ORDER_WITHIN yet: give it one"
    return ORDER.index(top), within.index(parts[1])


@pytest.mark.parametrize("module", modules(), ids=".".join)
def test_a_module_imports_only_from_above(module: tuple[str, ...]) -> None:
    if module == ("__init__",):
        return  # the public names and nothing else; nobody inside imports from it
    for name in imports_of(module):
        parts = tuple(name.split("."))
        if parts[0] != "connector_sdk" or len(parts) < 2 or parts[1] not in ORDER:
            continue
        target = parts[1:]
        if target[0] == module[0] and module[0] not in ORDER_WITHIN:
            continue
        if len(target) > 1 and target[0] in ORDER_WITHIN and target[1] not in ORDER_WITHIN[target[0]]:
            target = target[:1]
        assert height(target) < height(module) or (len(target) == 1 and target[0] == module[0]), (
            f"{'.'.join(module)} imports {name}, which is not above it"
        )


@pytest.mark.parametrize("module", modules(), ids=".".join)
def test_strangers_stay_strangers(module: tuple[str, ...]) -> None:
    for one, other in STRANGERS:
        for here, there in ((one, other), (other, one)):
            if module[0] == here:
                assert not [name for name in imports_of(module) if name.startswith(f"connector_sdk.{there}")]


@pytest.mark.parametrize("module", [m for m in modules() if m[0] not in ("cli", "testing")], ids=".".join)
def test_the_core_needs_no_extra(module: tuple[str, ...]) -> None:
    if module[0] == "postgres_client":
        return  # see below
    roots = {name.split(".")[0] for name in imports_of(module)}
    assert not roots & OPTIONAL


def test_psycopg_is_imported_when_it_is_needed() -> None:
    """Only postgres_client names it, and nothing that is imported with it."""
    code = (
        "import sys, importlib, pkgutil, connector_sdk\n"
        "for found in pkgutil.walk_packages(connector_sdk.__path__, 'connector_sdk.'):\n"
        "    if found.name.split('.')[1] not in ('cli', 'testing'):\n"
        "        importlib.import_module(found.name)\n"
        "assert not {'psycopg', 'psycopg_binary'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("module", modules(), ids=".".join)
def test_modules_stay_rooms(module: tuple[str, ...]) -> None:
    """Under about 400 lines, as the house rules say."""
    assert len(ROOT.joinpath(*module).with_suffix(".py").read_text().splitlines()) <= 450


@pytest.mark.parametrize("module", [m for m in modules() if m[0] != "cli"], ids=".".join)
def test_nothing_of_the_workshop_is_shipped(module: tuple[str, ...]) -> None:
    source = ROOT.joinpath(*module).with_suffix(".py").read_text()
    calls = [
        node.func.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert "print" not in calls
    assert "breakpoint" not in calls
    assert "/home/" not in source
    assert "/root/" not in source
    assert "/Users/" not in source
