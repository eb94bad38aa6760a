"""Checks of a config file before it is parsed."""

from pathlib import Path

import yaml

from arflows.core.runtime.errors import UserError

LARGEST = 1 << 20
"""Largest size of a config in bytes; those of arflows have a few thousand."""

MOST_VALUES = 100_000
"""Values in a config, with all references followed."""


def check_config(path: Path) -> None:
    """Makes sure that a YAML file is small and holds plain values alone, without building any.

    Raises:
        UserError: If it is not YAML, constructs objects, or its references expand to too many values.
    """
    if not path.is_file():
        return  # a pipe, which can be read only once, or missing
    size = path.stat().st_size
    if size > LARGEST:
        raise UserError(f"{path} has {size:,} bytes, a config at most {LARGEST:,}: give a YAML file with options.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8: give a YAML file with options.") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split()) or "nested too deeply"
        raise UserError(f"{path} is no YAML ({reason}): mend it.") from error
    if root is not None:
        try:
            count = _values(root, {})
        except RecursionError:
            count = MOST_VALUES + 1
        if count > MOST_VALUES:
            raise UserError(f"{path}: its references unfold to more than {MOST_VALUES:,} values: write them out.")


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values in a node after its references are expanded; `MOST_VALUES` + 1 if it contains itself."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # while it is counted
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        flat = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
        known[id(node)] = min(1 + sum(_values(part, known) for part in flat), MOST_VALUES + 1)
    return known[id(node)]
