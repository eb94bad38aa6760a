"""Private API of jsonargparse, and of argparse below it, in one place.

`arflows.core.runtime.options` parses its messages; the tests of both modules check these assumptions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def option_names(parser: ArgumentParser) -> list[str]:
    """Return the options of a parser, with their leading dashes."""
    return list(parser._option_string_actions)


def let_switches_stand_alone(parser: ArgumentParser) -> None:
    """Make ``--switch`` mean ``--switch true`` for every option of type bool."""
    for action in parser._actions:
        if getattr(action, "_typehint", None) is bool and action.nargs is None:
            action.nargs, action.const = "?", True


def parse_unchecked(parser: ArgumentParser, words: Sequence[str]) -> Namespace:
    """Parse a command line that may lack required options, which are then None."""
    return parser.parse_args(list(words), _skip_validation=True)


@contextmanager
def listed_classes(allowed: Callable[[str], bool]) -> Iterator[None]:
    """Inside the block, help texts list the known subclasses of a type only if their import path is ``allowed``."""
    from jsonargparse import _typehints

    every = _typehints.get_all_subclass_paths

    def some(*args: Any, **kwargs: Any) -> list[str]:
        return [path for path in every(*args, **kwargs) if allowed(path)]

    _typehints.get_all_subclass_paths = some
    try:
        yield
    finally:
        _typehints.get_all_subclass_paths = every
