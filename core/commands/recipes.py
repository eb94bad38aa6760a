"""Recipes: config files that come with a domain and are named without a path."""

import importlib.resources
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from arflows.core.runtime.errors import unknown_name


def resolve_recipe(name: str | Path, package: str) -> Path:
    """Return the path of a config file that is given by path or by recipe name.

    Args:
        name: Path of a YAML file, or ``cifar10`` for ``<package>/recipes/cifar10.yaml``. Files take precedence.
        package: The domain's package, such as ``"arflows.vision"``.

    Raises:
        UserError: If there is neither; the message names the recipes.
    """
    if Path(name).is_file():
        return Path(name)
    recipes = _files(package)
    if str(name) not in recipes:
        raise unknown_name("file or recipe", str(name), recipes)
    return recipes[str(name)]


def recipes_of(package: str) -> dict[str, str]:
    """Return the names of a domain's recipes with the first sentence of each one's header.

    Args:
        package: The domain's package, such as ``"arflows.vision"``.
    """
    return {name: _first_sentence(path.read_text(encoding="utf-8")) for name, path in _files(package).items()}


def _files(package: str) -> dict[str, Path]:
    folder = Path(str(importlib.resources.files(package))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _first_sentence(text: str) -> str:
    comment = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), text.splitlines()))
    return re.split(r"(?<=[.;:])\s", comment, maxsplit=1)[0].rstrip(".;:")


def resolve_configs(words: Sequence[str], package: str) -> list[str]:
    """Replace the value of every ``--config`` or ``-c`` on a command line by the path from `resolve_recipe`."""
    resolved = list(words)
    for index, word in enumerate(resolved):
        option, equals, value = word.partition("=")
        if option not in ("--config", "-c"):
            continue
        if equals:
            resolved[index] = f"{option}={resolve_recipe(value, package)}"
        elif index + 1 < len(resolved):
            resolved[index + 1] = str(resolve_recipe(resolved[index + 1], package))
    return resolved
