"""
Write the reference as Markdown into docs/reference/, from the docstrings of all public names.

    python docs/build_reference.py [--check] [folder]

One page for each subject and an index with one line for each name. `--check` writes nothing and fails when a public name,
or a public method or property of a public class, has no docstring. Needs nothing but the package itself.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path

#: Page -> title, and the modules whose `__all__` it documents.
SUBJECTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "clients": (
        "Clients",
        (
            "connector_sdk.client.sync",
            "connector_sdk.client.aio",
            "connector_sdk.client.face",
            "connector_sdk.client.handlers",
            "connector_sdk.client.checkpoint",
            "connector_sdk.leadership",
            "connector_sdk.leader",
            "connector_sdk.redis_checkpoint",
            "connector_sdk.client.session",
            "connector_sdk.client.stats",
            "connector_sdk.callbacks",
        ),
    ),
    "buffers": (
        "Buffers",
        (
            "connector_sdk.buffers.memory",
            "connector_sdk.buffers.redis",
            "connector_sdk.buffers.sqlite",
            "connector_sdk.buffers.postgres",
            "connector_sdk.buffers.durable",
            "connector_sdk.buffers.blocking",
            "connector_sdk.buffers.view",
            "connector_sdk.buffers.leases",
            "connector_sdk.buffers.durable_lease",
            "connector_sdk.buffers.stats",
            "connector_sdk.buffers.durable_stats",
            "connector_sdk.buffers.bridge",
            "connector_sdk.buffers.bridge_stats",
            "connector_sdk.buffers.dead_letters",
            "connector_sdk.buffers.protocol",
        ),
    ),
    "bus": (
        "The event bus",
        (
            "connector_sdk.bus.bus",
            "connector_sdk.bus.subscription",
            "connector_sdk.bus.events",
            "connector_sdk.bus.registry",
            "connector_sdk.bus.handlers",
            "connector_sdk.bus.iteration",
            "connector_sdk.bus.sink",
            "connector_sdk.bus.dead_letters",
            "connector_sdk.bus.delivery",
            "connector_sdk.bus.stats",
            "connector_sdk.plugins",
        ),
    ),
    "logs": (
        "Logs of the bus",
        (
            "connector_sdk.bus.memory",
            "connector_sdk.bus.redis",
            "connector_sdk.bus.postgres",
            "connector_sdk.bus.log",
        ),
    ),
    "streams": (
        "Redis Streams",
        (
            "connector_sdk.streams.consumer",
            "connector_sdk.streams.group_consumer",
            "connector_sdk.streams.face",
            "connector_sdk.streams.entry",
            "connector_sdk.streams.stats",
        ),
    ),
    "jobs": (
        "Jobs",
        (
            "connector_sdk.jobs.job",
            "connector_sdk.jobs.blocking",
            "connector_sdk.jobs.face",
            "connector_sdk.decisions",
            "connector_sdk.jobs.stats",
            "connector_sdk.jobs.options",
        ),
    ),
    "stores": ("Storage engines", ("connector_sdk.buffers.store",)),
    "payloads": ("Payloads", ("connector_sdk.payloads",)),
    "errors": ("Errors", ("connector_sdk.errors",)),
    "ledger": ("The account", ("connector_sdk.ledger",)),
    "observe": ("Observability", ("connector_sdk.observe",)),
    "testing": (
        "Testing",
        (
            "connector_sdk.testing",
            "connector_sdk.testing.contracts",
            "connector_sdk.testing.store_contract",
            "connector_sdk.testing.log_contract",
            "connector_sdk.testing.bus_contract",
        ),
    ),
}
#: Modules of which every public name is documented; of the others only what `connector_sdk` itself exports, and KEPT.
WHOLE = {
    "connector_sdk.payloads",
    "connector_sdk.errors",
    "connector_sdk.ledger",
    "connector_sdk.observe",
    "connector_sdk.testing",
    "connector_sdk.testing.contracts",
    "connector_sdk.testing.store_contract",
    "connector_sdk.testing.log_contract",
    "connector_sdk.testing.bus_contract",
    "connector_sdk.bus.dead_letters",
    "connector_sdk.bus.log",
    "connector_sdk.buffers.dead_letters",
    "connector_sdk.buffers.protocol",
    "connector_sdk.buffers.store",
}
#: What public names lead to: returned, or a base that documents the options.
KEPT = {
    "connector_sdk.client.face": {"ClientFace", "Sink"},
    "connector_sdk.client.aio": {"Stopping"},
    "connector_sdk.jobs.face": {"JobFace"},
    "connector_sdk.jobs.job": {"StoppingJob"},
    "connector_sdk.jobs.options": {"DeadLetterPlace"},
    "connector_sdk.buffers.view": {"EventBufferView"},
    "connector_sdk.buffers.leases": {"Lease", "AsyncLease"},
    "connector_sdk.buffers.stats": {"BufferStats"},
    "connector_sdk.buffers.bridge_stats": {"BridgeState", "BridgeStats"},
    "connector_sdk.buffers.blocking": {"BlockingLease"},
    "connector_sdk.buffers.durable_lease": {"DurableLease"},
    "connector_sdk.bus.iteration": {"EventStream"},
    "connector_sdk.bus.sink": {"TopicSink"},
    "connector_sdk.bus.delivery": {"DeliveryAttempt", "DeliveryEvidence", "Origin"},
    "connector_sdk.streams.face": {"BaseConsumer"},
}

Entry = tuple[str, object]


def entries(modules: tuple[str, ...]) -> Iterator[Entry]:
    """The (qualified name, object) pairs of a page."""
    public = set(importlib.import_module("connector_sdk").__all__)
    for module_name in modules:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            if module_name in WHOLE or name in public or name in KEPT.get(module_name, set()):
                yield f"{module_name}.{name}", getattr(module, name)


def members(kind: type) -> Iterator[tuple[str, object]]:
    """Public methods and properties in the order of the source; inherited ones from our own classes too."""
    seen: set[str] = set()
    for base in [kind, *(base for base in kind.__mro__[1:] if base.__module__.startswith("connector_sdk"))]:
        for name, value in vars(base).items():
            is_ours = isinstance(value, types.FunctionType | classmethod | staticmethod | property)
            if name.startswith("_") or name in seen or not is_ours:
                continue
            seen.add(name)
            yield name, value


def page(title: str, modules: tuple[str, ...]) -> str:
    """One page of the reference."""
    public = set(importlib.import_module("connector_sdk").__all__)
    parts = [f"# {title}\n"]
    for qualified, value in entries(modules):
        name = qualified.rpartition(".")[2]
        module_name = "connector_sdk" if name in public else qualified.rpartition(".")[0]
        parts.append(f"## {name}\n\n`from {module_name} import {name}`\n")
        if inspect.isclass(value):
            parts += _class(name, value)
        elif inspect.isfunction(value):
            parts.append(f"```text\n{_signature(name, value)}\n```\n\n{_doc(value)}\n")
        elif isinstance(value, types.UnionType) or typing.get_origin(value) is not None:
            parts.append(f"One of: {_plain(str(value)).replace(' | ', ', ')}.\n")
        else:
            parts.append(f"`{value!r}`\n")
    return "\n".join(parts)


def _class(name: str, kind: type) -> list[str]:
    parts = []
    if "__init__" in vars(kind) or any("__init__" in vars(b) for b in kind.__mro__[1:-1] if _is_ours(b)):
        parts.append(f"```text\n{_signature(name, kind)}\n```\n")
    bases = [base.__name__ for base in kind.__bases__ if _is_ours(base)]
    if bases:
        parts.append(f"Bases: {', '.join(bases)}.\n")
    parts.append(f"{_doc(kind)}\n")
    fields = list(_fields(kind))
    if fields:
        parts.append("| name | meaning |\n|---|---|\n" + "\n".join(f"| `{f}` | {c} |" for f, c in fields) + "\n")
    for member, value in members(kind):
        target = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        shown = member if isinstance(value, property) else _signature(member, target)
        parts.append(f"### {name}.{member}\n\n```text\n{shown}\n```\n\n{_doc(target)}\n")
    return parts


def _fields(kind: type) -> Iterator[tuple[str, str]]:
    """Fields of a struct and values of an enum, with the `#:` comment that explains each."""
    if not (issubclass(kind, enum.Enum) or hasattr(kind, "__struct_fields__")):
        return
    for line in inspect.getsource(kind).splitlines():
        found = re.match(r"    (\w+)(?:: ([^=#]+?))?(?: = ([^#]+?))?\s*(?:#: (.*))?$", line)
        if not found or found[1].startswith("_") or found[1] in ("return", "raise", "pass"):
            continue
        name, annotation, value, comment = found.groups()
        if issubclass(kind, enum.Enum) and value:
            yield f"{name} = {value}", comment or ""
        elif annotation and name in getattr(kind, "__struct_fields__", ()):
            yield _plain(f"{name}: {annotation}{f' = {value}' if value else ''}").replace("|", "\\|"), comment or ""


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("connector_sdk")


def _signature(name: str, target: object) -> str:
    try:
        signature = inspect.signature(typing.cast("types.FunctionType", target))
    except (TypeError, ValueError):
        return name
    parameters = [
        parameter.replace(annotation=_annotation(parameter.annotation))
        for parameter in signature.parameters.values()
        if parameter.name not in ("self", "cls") and not parameter.name.startswith("_")
    ]
    signature = signature.replace(
        parameters=parameters,
        return_annotation=signature.empty if inspect.isclass(target) else _annotation(signature.return_annotation),
    )
    prefix = "async " if inspect.iscoroutinefunction(target) else ""
    head = f"{prefix}{name}{signature}"
    return _plain(head if len(head) <= 100 else f"{prefix}{name}{_long(signature)}")


class _Bare(str):
    """An annotation that is text already, shown without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _annotation(annotation: object) -> object:
    return _Bare(annotation) if isinstance(annotation, str) else annotation


def _long(signature: inspect.Signature) -> str:
    lines: list[str] = []
    starred = False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            starred = True
            lines.append("    *,")
        lines.append(f"    {parameter},")
    answer = "" if signature.return_annotation is signature.empty else f" -> {signature.return_annotation}"
    return "(\n" + "\n".join(lines) + f"\n){answer}"


def _plain(text: str) -> str:
    return re.sub(r"\b(?:connector_sdk|collections|typing|builtins)\.[a-z_.]*", "", text).replace("'", '"')


def _doc(target: object) -> str:
    """The docstring as Markdown: literal blocks fenced, `Args:` and the like as lists."""
    lines: list[str] = []
    is_literal = in_section = False
    for line in (inspect.getdoc(target) or "").splitlines():
        if is_literal and line and not line.startswith(" "):
            lines[-1:] = ["```", ""]
            is_literal = False
        if not is_literal and line.strip() == "::":
            lines += ["```text"]
            is_literal = True
        elif is_literal:
            if line or lines[-1] != "```text":
                lines.append(line)
        elif re.fullmatch(r"(Args|Returns|Raises):", line):
            lines += [f"**{line[:-1]}**", ""]
            in_section = True
        elif in_section and re.match(r"    \S", line):
            lines.append(
                re.sub(r"^    ([*\w]+):", r"- `\1`:", line) if re.match(r"    [*\w]+:", line) else line.strip()
            )
        else:
            in_section = in_section and (not line or line.startswith(" "))
            lines.append(line.strip() if in_section else line)
    return "\n".join([*lines, "```"] if is_literal else lines)


def first_sentence(value: object) -> str:
    """The first sentence of a docstring, for the index."""
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return ""
    paragraph = " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0]


def index() -> str:
    """The first page: one line for each name."""
    parts = ["# Reference\n", "Written by `make docs` from the docstrings.\n"]
    for subject, (title, modules) in SUBJECTS.items():
        parts.append(f"## [{title}]({subject}.md)\n")
        for qualified, value in entries(modules):
            name = qualified.rpartition(".")[2]
            text = first_sentence(value)
            parts.append(f"- [{name}]({subject}.md#{name.lower()})" + (f": {text}" if text else ""))
        parts.append("")
    return "\n".join(parts)


def undocumented() -> list[str]:
    """Public names, methods and properties without a docstring of their own or of a base."""
    missing = []
    for _, modules in SUBJECTS.values():
        for qualified, value in entries(modules):
            if inspect.isfunction(value) and not inspect.getdoc(value):
                missing.append(qualified)
            if inspect.isclass(value):
                missing += [] if value.__doc__ else [qualified]
                missing += [
                    f"{qualified}.{name}"
                    for name, member in members(value)
                    if not inspect.getdoc(getattr(value, name, member)) and not name.startswith("test_")
                ]
    return missing


def undescribed() -> list[str]:
    """Names that `connector_sdk` exports and no page has."""
    described = {q.rpartition(".")[2] for _, modules in SUBJECTS.values() for q, _ in entries(modules)}
    return [
        name for name in importlib.import_module("connector_sdk").__all__ if name not in described | {"__version__"}
    ]


def main(arguments: list[str]) -> int:
    """Write the pages, or check; returns the exit code."""
    problems = [f"no docstring: {name}" for name in undocumented()]
    problems += [f"on no page: {name}" for name in undescribed()]
    for problem in problems:
        print(problem, file=sys.stderr)
    if "--check" not in arguments:
        folders = [argument for argument in arguments if not argument.startswith("-")]
        folder = Path(folders[0]) if folders else Path(__file__).parent / "reference"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "index.md").write_text(index(), encoding="utf-8")
        for subject, (title, modules) in SUBJECTS.items():
            (folder / f"{subject}.md").write_text(page(title, modules), encoding="utf-8")
        print(f"{len(SUBJECTS) + 1} pages in {folder}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
