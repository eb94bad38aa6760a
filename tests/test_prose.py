"""Docstrings begin with a noun or a verb, and every example in them runs."""

import ast
import doctest
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .test_imports import PACKAGES, ROOT

CLAUSE = re.compile(r"(What|How|Which|Where|That|Why|Whose|Whom|Who)\b")
"""Words that begin a subordinate clause: a docstring that begins with one names nothing."""

LEAST_EXAMPLES = 100
"""Lines of examples in the packages."""

SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """The line and text of each docstring in a file: of the module, classes, functions, constants and attributes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value.strip()


def clauses(paths: list[Path], root: Path) -> list[str]:
    """Every docstring that begins with a clause, as ``file:line first words``."""
    return [
        f"{path.relative_to(root)}:{line} {text[:40]}"
        for path in paths
        for line, text in docstrings(path)
        if CLAUSE.match(text)
    ]


def test_docstrings_begin_with_a_noun_or_a_verb():
    others = [path for folder in ("tests", "benchmarks", "results") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert clauses([*SOURCES, *others], ROOT) == []


def test_a_docstring_that_begins_with_a_clause_is_found(tmp_path):
    path = tmp_path / "module.py"
    lines = ['"""What is here."""', "class A:", '    """Howitzer."""', "    def f(self):", '        """How it runs."""']
    path.write_text("\n".join(lines))
    assert clauses([path], tmp_path) == ["module.py:1 What is here.", "module.py:5 How it runs."]


def module_name(path: Path) -> str:
    """The dotted name of a source file."""
    return ".".join(["arflows", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


def has_examples(path: Path) -> bool:
    """True if a file has lines of examples."""
    return ">>>" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [pytest.param(p, id=module_name(p)) for p in SOURCES if has_examples(p)])
def test_examples_run(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # what an example writes
    module = importlib.import_module(module_name(path))
    failed, tried = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert tried
    assert failed == 0


def test_there_are_examples():
    lines = [line for path in SOURCES for line in path.read_text(encoding="utf-8").splitlines() if ">>>" in line]
    assert len(lines) >= LEAST_EXAMPLES
