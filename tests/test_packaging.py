"""Installed files: all of the package and nothing else."""

import ast
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = sorted(PYPROJECT["tool"]["setuptools"]["package-dir"].values())


def sources() -> list[Path]:
    """The files that belong into a wheel, relative to the checkout."""
    found = [path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    return sorted(path for path in found if "__pycache__" not in path.parts)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in a wheel that is built from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in [*PACKAGES, "pyproject.toml", "LICENSE", "README.md"]:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        "out",
        ".",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [path] = (folder / "out").glob("*.whl")
    return zipfile.ZipFile(path).namelist()


def test_wheel_holds_every_file_of_the_packages(wheel):
    assert [str(path) for path in sources() if f"arflows/{path}" not in wheel] == []


def test_wheel_holds_nothing_else(wheel):
    tops = {name.partition("/")[0] for name in wheel}
    assert tops == {"arflows", f"arflows-{PYPROJECT['project']['version']}.dist-info"}
    assert {name.removeprefix("arflows/") for name in wheel if name.startswith("arflows/")} == {
        str(path) for path in sources()
    }


def test_every_folder_with_code_is_a_declared_package():
    folders = {".".join(["arflows", *path.parent.parts]) for path in sources()}
    assert folders == set(PYPROJECT["tool"]["setuptools"]["packages"])


def test_every_domain_is_a_package_and_every_package_is_one_of_these():
    domains = PYPROJECT["project"]["entry-points"]["arflows.domains"]
    assert set(PACKAGES) == {*domains, "core", "data"}
    assert {name: entry for name, entry in domains.items() if entry != f"arflows.{name}.domain:DOMAIN"} == {}


def test_the_makefile_knows_the_packages():
    command = ["make", "--no-print-directory", "--eval", "show: ; @echo $(PACKAGES)", "show"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == PACKAGES


def test_arflows_is_a_namespace_without_top_level_folders():
    installed = importlib.metadata.packages_distributions()
    assert "arflows" not in [owner for name in PACKAGES for owner in installed.get(name, [])]
    assert importlib.util.find_spec("arflows").origin is None


def test_installed_version_is_that_of_the_project():
    assert importlib.metadata.version("arflows") == PYPROJECT["project"]["version"]


@pytest.mark.report
def test_every_import_is_a_declared_dependency():
    declared = {canonicalize_name(Requirement(line).name) for line in PYPROJECT["project"]["dependencies"]}
    owners = importlib.metadata.packages_distributions()
    missing = set()
    for path in sources():
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"arflows"}:
                if not declared & {canonicalize_name(owner) for owner in owners.get(top, [])}:
                    missing.add(f"{path} imports {top}")
    assert missing == set()


def test_constraints_pin_every_dependency_within_its_range():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = {}
    for line in lines:
        requirement = Requirement(line)  # raises at an option of pip, which has no place here
        [pin] = requirement.specifier
        assert pin.operator == "=="
        pins[canonicalize_name(requirement.name)] = pin.version
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    for line in [*PYPROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), line
