"""Imports go one way: domains import data and core, data only core.runtime, and core's storeys go downwards."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOMAINS = sorted(PYPROJECT["project"]["entry-points"]["arflows.domains"])
MAY_IMPORT = {
    "core": {"core", "-core.training", "-core.commands"},
    "core.runtime": {"core.runtime"},
    "core.training": {"core", "-core.commands"},
    "core.commands": {"core"},
    "data": {"data", "core.runtime.errors", "core.runtime.files"},
    **{domain: {domain, "core", "data"} for domain in DOMAINS},
}
"""The packages and, inside core, the storeys: what each may import, and after a minus what it may not.

A module follows the rule of the longest package name that contains it.
"""
PACKAGES = {name for name in MAY_IMPORT if "." not in name}


def inside(name: str, package: str) -> bool:
    """True if a dotted name is a package or something in it."""
    return name == package or name.startswith(f"{package}.")


def may_import(module: str, name: str) -> bool:
    """True if a module of arflows may import a name of arflows, both without the leading ``arflows.``."""
    rule = MAY_IMPORT[max((package for package in MAY_IMPORT if inside(module, package)), key=len)]
    allowed = any(inside(name, package) for package in rule if not package.startswith("-"))
    return allowed and not any(inside(name, package[1:]) for package in rule if package.startswith("-"))


def imported(path: Path, module: str) -> Iterator[tuple[int, str]]:
    """The modules that a file imports, wherever in it, with their lines.

    ``from a import b`` gives ``a.b``, which is a module or something in one. ``module`` is the file's own dotted name,
    which ends in ``__init__`` for that of a package.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            for alias in node.names:
                yield node.lineno, ".".join([*parents, *filter(None, [node.module]), alias.name])
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            yield from ((node.lineno, word.value) for word in node.args[:1] if isinstance(word, ast.Constant))


def violations(root: Path) -> list[str]:
    """Every import in the packages under ``root`` that goes the wrong way, as ``file:line imports module``."""
    found = []
    for package in sorted(PACKAGES):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            for line, name in imported(path, ".".join(["arflows", *parts])):
                first, _, rest = name.partition(".")
                if first in PACKAGES or (first == "arflows" and not may_import(".".join(parts), rest)):
                    found.append(f"{path.relative_to(root)}:{line} imports {name}")
    return found


def graph(root: Path) -> dict[str, set[str]]:
    """The modules of arflows under ``root``, each with those that it imports anywhere, also for types alone."""
    files = {
        ".".join(["arflows", *path.relative_to(root).with_suffix("").parts]): path
        for package in sorted(PACKAGES)
        for path in sorted((root / package).rglob("*.py"))
        if path.name != "__init__.py"
    }
    return {
        module: {each for _, name in imported(path, module) for each in (name, name.rpartition(".")[0])}
        & files.keys() - {module}
        for module, path in files.items()
    }


def test_imports_go_one_way():
    assert violations(ROOT) == []


def test_no_modules_import_each_other():
    TopologicalSorter(graph(ROOT)).prepare()


def test_modules_that_import_each_other_are_found(tmp_path):
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "a.py").write_text("if TYPE_CHECKING:\n    from arflows.core.b import B")
    (tmp_path / "core" / "b.py").write_text("def f():\n    from arflows.core import a")
    with pytest.raises(CycleError):
        TopologicalSorter(graph(tmp_path)).prepare()


def test_only_the_mathematics_lies_at_the_root_of_core():
    assert {path.stem for path in (ROOT / "core").glob("*.py")} == {
        "__init__",
        "flow",
        "bases",
        "dequantization",
        "inversion",
        "likelihood",
    }


def test_every_package_has_its_rule():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages == PACKAGES


@pytest.mark.parametrize(
    ("file", "statement", "name"),
    [
        ("core/flow.py", "import arflows.vision.model", "arflows.vision.model"),
        ("core/flow.py", "from arflows.data import store", "arflows.data.store"),
        ("core/flow.py", "from arflows import audio", "arflows.audio"),
        ("core/flow.py", "from ..data.store import Store", "arflows.data.store.Store"),
        ("core/deep/flow.py", "from ...vision import model", "arflows.vision.model"),
        ("core/__init__.py", "from .. import vision", "arflows.vision"),
        ("core/flow.py", "def f():\n    from arflows.vision import Glow", "arflows.vision.Glow"),
        ("core/flow.py", "if TYPE_CHECKING:\n    import arflows.data", "arflows.data"),
        ("core/flow.py", "importlib.import_module('arflows.data.store')", "arflows.data.store"),
        ("core/flow.py", "import data", "data"),
        ("data/store.py", "from arflows.core.flow import Flow", "arflows.core.flow.Flow"),
        ("data/store.py", "from arflows.core.runtime import machine", "arflows.core.runtime.machine"),
        ("core/flow.py", "from arflows.core.training import module", "arflows.core.training.module"),
        ("core/flows/base.py", "from ..commands.cli import run", "arflows.core.commands.cli.run"),
        ("core/bijections/base.py", "import arflows.core.training", "arflows.core.training"),
        ("core/training/module.py", "from arflows.core.commands import cli", "arflows.core.commands.cli"),
        ("core/runtime/files.py", "from arflows.core.flow import Flow", "arflows.core.flow.Flow"),
        ("core/runtime/files.py", "from arflows.core import bases", "arflows.core.bases"),
        ("vision/model.py", "from arflows.molecules import graph", "arflows.molecules.graph"),
        (
            "tabular/train.py",
            "from arflows.vision.train import ImageExperiment",
            "arflows.vision.train.ImageExperiment",
        ),
        ("audio/model.py", "from arflows.vision.model import RealNVP", "arflows.vision.model.RealNVP"),
    ],
)
def test_an_import_in_the_wrong_direction_is_found(tmp_path, file, statement, name):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(f"import os\n{statement}\n")
    assert [line.partition(" imports ")[2] for line in violations(tmp_path)] == [name]


@pytest.mark.parametrize(
    ("file", "statement"),
    [
        ("core/deep/flow.py", "from ..errors import UserError"),
        ("core/deep/flow.py", "from . import affine"),
        ("core/flow.py", "from arflows.core.runtime.errors import UserError"),
        ("core/training/module.py", "from arflows.core.flow import Flow"),
        ("core/commands/cli.py", "from arflows.core.training.module import FlowTraining"),
        ("data/store.py", "from arflows.core.runtime.errors import UserError"),
        (
            "vision/model.py",
            "from arflows.core.flow import Flow\nfrom arflows.data import store\nfrom . import metrics",
        ),
        ("molecules/graph.py", "import torch.utils.data\nfrom torch.utils import data"),
    ],
)
def test_an_import_in_the_right_direction_is_not(tmp_path, file, statement):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(statement)
    assert violations(tmp_path) == []


LIGHT = [
    "core",
    "core.commands.cli",
    "core.runtime.errors",
    "data",
    *DOMAINS,
    *(f"{domain}.domain" for domain in DOMAINS),
]
HEAVY = ["torch", "numpy", "lightning", "jsonargparse", "h5py", "matplotlib", "jinja2", "yaml", "PIL"]


@pytest.mark.report
@pytest.mark.parametrize("command", [f"import arflows.{module}" for module in LIGHT])
def test_light_modules_import_nothing_heavy(command):
    check = f"{command}; import sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.report
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["vision", "--help"], ["nonsense"]])
def test_the_command_line_answers_without_importing_anything_heavy(words):
    check = f"""
import atexit, sys
atexit.register(lambda: print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr))
from arflows.core.commands.cli import main
main({words})
"""
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == ""


def test_public_names_of_vision_are_there_when_asked_for():
    import arflows.vision

    assert set(arflows.vision.__all__) <= set(dir(arflows.vision))
    for name in arflows.vision.__all__:
        assert getattr(arflows.vision, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = arflows.vision.nonsense
