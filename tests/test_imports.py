"""Imports go one way: a domain may import data and core; those two import neither each other nor a domain."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "core": {"core"},
    "data": {"data"},
    "audio": {"audio", "core", "data"},
    "vision": {"vision", "core", "data"},
    "molecules": {"molecules", "core", "data"},
    "tabular": {"tabular", "core", "data"},
}


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
    for package, allowed in MAY_IMPORT.items():
        for path in sorted((root / package).rglob("*.py")):
            module = ".".join(["arflows", *path.relative_to(root).with_suffix("").parts])
            for line, name in imported(path, module):
                first, _, rest = name.partition(".")
                target = rest.partition(".")[0]
                if first in MAY_IMPORT or (first == "arflows" and target not in allowed):
                    found.append(f"{path.relative_to(root)}:{line} imports {name}")
    return found


def test_imports_go_one_way():
    assert violations(ROOT) == []


def test_every_package_has_its_rule():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages == set(MAY_IMPORT)


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
        ("data/store.py", "from arflows.core.errors import UserError", "arflows.core.errors.UserError"),
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


LIGHT = ["core", "core.cli", "data", "vision", "vision.domain", "audio", "tabular", "tabular.domain"]
HEAVY = ["torch", "numpy", "lightning", "jsonargparse", "h5py", "matplotlib", "jinja2", "yaml", "PIL"]


@pytest.mark.parametrize("command", [f"import arflows.{module}" for module in LIGHT])
def test_light_modules_import_nothing_heavy(command):
    check = f"{command}; import sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["vision", "--help"], ["nonsense"]])
def test_the_command_line_answers_without_importing_anything_heavy(words):
    check = f"""
import atexit, sys
atexit.register(lambda: print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr))
from arflows.core.cli import main
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
