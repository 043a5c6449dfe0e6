"""The public names: complete, documented, light to import, and shipped with their types."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import connector_sdk
import connector_sdk.testing

ROOT = Path(connector_sdk.__file__).parent
MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages([str(ROOT)], "connector_sdk.")
    if not info.name.startswith(("connector_sdk.cli", "connector_sdk.testing.plugin"))
    and not info.name.endswith("__main__")
)


@pytest.mark.parametrize("name", connector_sdk.__all__)
def test_every_public_name_exists_and_has_a_docstring(name: str) -> None:
    value = getattr(connector_sdk, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert inspect.getdoc(value), name


@pytest.mark.parametrize("module", MODULES)
def test_all_names_exactly_what_is_public(module: str) -> None:
    loaded = importlib.import_module(module)
    listed = getattr(loaded, "__all__", None)
    if listed is None:
        assert not [name for name in vars(loaded) if not name.startswith("_") and _defined_in(loaded, name)], module
        return
    for name in listed:
        assert hasattr(loaded, name), f"{module}.__all__ names {name}, which is not there"
    assert len(set(listed)) == len(listed)


def _defined_in(module: object, name: str) -> bool:
    return getattr(vars(module)[name], "__module__", None) == getattr(module, "__name__", None)


@pytest.mark.parametrize(
    "name", [name for name in connector_sdk.__all__ if inspect.isclass(getattr(connector_sdk, name))]
)
def test_every_public_method_has_a_docstring(name: str) -> None:
    kind = getattr(connector_sdk, name)
    for attribute, value in vars(kind).items():
        if not attribute.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
            assert inspect.getdoc(value), f"{name}.{attribute}"


@pytest.mark.parametrize("name", connector_sdk.testing.__all__)
def test_every_name_for_tests_exists_and_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(getattr(connector_sdk.testing, name)), name


def test_importing_needs_no_extra() -> None:
    code = (
        "import sys, connector_sdk, connector_sdk.testing\n"
        "heavy = {'typer', 'rich', 'pytest', 'hypothesis', 'trio', 'redis', 'hiredis', 'psycopg', 'sqlite3'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert not [name for name in sys.modules if name.startswith('connector_sdk.redis_client')]\n"
        "late = {'buffers.durable', 'bus', 'streams', 'jobs', 'plugins'}\n"
        "assert not [name for name in late if f'connector_sdk.{name}' in sys.modules]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    "name", ["BlockingBuffer", "DurableStats", "RedisEventBuffer", "EventBus", "GroupConsumer", "create_event_bus"]
)
def test_names_that_resolve_on_first_use_are_ordinary_otherwise(name: str) -> None:
    code = (
        "import connector_sdk\n"
        f"assert {name!r} in connector_sdk.__all__ and {name!r} in dir(connector_sdk)\n"
        f"assert {name!r} not in vars(connector_sdk)\n"
        f"from connector_sdk import {name}\n"
        f"assert connector_sdk.{name} is {name} and {name!r} in vars(connector_sdk)\n"
        "from connector_sdk import *\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'RedisBuffer'"):
        _ = connector_sdk.RedisBuffer
    with pytest.raises(ImportError):
        exec("from connector_sdk import RedisBuffer")


def test_types_are_shipped() -> None:
    assert (ROOT / "py.typed").is_file()


def test_errors_form_one_tree() -> None:
    for name in connector_sdk.__all__:
        value = getattr(connector_sdk, name)
        if inspect.isclass(value) and issubclass(value, Exception):
            assert issubclass(value, connector_sdk.ConnectorError), name
            assert name in (sys.modules["connector_sdk.errors"].__doc__ or ""), (
                f"{name} is not in the drawing of the tree"
            )
