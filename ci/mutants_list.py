"""The broken copies that ci/mutants runs the conformance tests on, read from mutants_*.txt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
KINDS = ("stdlib", "package", "native")


class BadList(Exception):
    """A list of mutants cannot be read, or does not fit the text that it is about."""


@dataclass(frozen=True)
class Edit:
    """Replace a piece of text that occurs exactly `count` times."""

    old: str
    new: str
    count: int

    def apply(self, text: str) -> str:
        found = text.count(self.old)
        if found != self.count:
            raise BadList(f"the text occurs {found} times, not {self.count}:\n{self.old}")
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Mutant:
    name: str
    # "stdlib": a copy of socketserver.py; "package": a copy of the installed fastsock; "native": a
    # copy of fastsock's sources, which is built
    kind: str
    file: str
    since: tuple[int, ...]  # the first version of Python whose text it fits
    by: str  # the tests that should catch it and are run first: "trace" for test_trace.py; or ""
    edits: tuple[Edit, ...]

    def apply(self, text: str) -> str:
        """The broken text.

        Raises:
            BadList: it does not fit, or what comes out is no Python.
        """
        try:
            for edit in self.edits:
                text = edit.apply(text)
            if self.file.endswith(".py"):
                compile(text, self.file, "exec")
        except (BadList, SyntaxError) as error:
            raise BadList(f"{self.file}: {self.name}: {error}") from error
        return text


def blocks(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each name with the lines that belong to it."""
    name, lines = "", []
    for line in text.splitlines():
        if line.startswith("== "):
            if name:
                yield name, lines
            name, lines = line.removeprefix("== "), []
        elif line and not line.startswith("#"):
            lines.append(line)
    if name:
        yield name, lines


def parse(name: str, lines: list[str], kind: str) -> Mutant:
    options = {"count": "1", "since": "3.10", "by": ""}
    options["file"] = "socketserver.py" if kind == "stdlib" else ""
    pieces: list[tuple[list[str], list[str]]] = [([], [])]
    for line in lines:
        old, new = pieces[-1]
        if line == "...":
            pieces.append(([], []))
        elif line[0] in " -+":
            if line[0] != "+":
                old.append(line[1:])
            if line[0] != "-":
                new.append(line[1:])
        else:
            key, colon, value = line.partition(": ")
            if not colon or key not in options:
                raise BadList(f"{name}: not understood: {line}")
            options[key] = value
    if not options["file"] or not all(old and old != new for old, new in pieces):
        raise BadList(f"{name}: it lacks a file or changes nothing")
    count = int(options["count"])
    edits = tuple(Edit("\n".join(old), "\n".join(new), count) for old, new in pieces)
    since = tuple(map(int, options["since"].split(".")))
    return Mutant(name, kind, options["file"], since, options["by"], edits)


def mutants() -> list[Mutant]:
    """All of them.

    Raises:
        BadList: a file cannot be understood, or two mutants have the same name.
    """
    found: dict[tuple[str, str], Mutant] = {}
    for kind in KINDS:
        for name, lines in blocks((HERE / f"mutants_{kind}.txt").read_text()):
            if (kind, name) in found:
                raise BadList(f"two mutants are called {name}")
            found[kind, name] = parse(name, lines, kind)
    return list(found.values())
