"""Arguments of constructors, including those that are passed on to a parent as ``**kwargs``."""

import inspect
from functools import cache
from typing import Any


@cache
def default_arguments(kind: type) -> dict[str, Any]:
    """Return the names of a constructor's arguments with their defaults, None where an argument has none.

    >>> class Parent:
    ...     def __init__(self, width: int, depth: int = 2) -> None: ...
    >>> class Child(Parent):
    ...     def __init__(self, width: int, scale: float = 1.0) -> None: ...
    >>> default_arguments(Child)
    {'width': None, 'scale': 1.0}
    """
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]  # type: ignore[misc]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    defaults = {p.name: None if p.default is p.empty else p.default for p in named}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        from jsonargparse import ArgumentParser  # finds what ``super().__init__(…, **kwargs)`` takes; slow to import

        parser = ArgumentParser(exit_on_error=False)
        names = parser.add_class_arguments(kind, fail_untyped=False)
        found = parser.get_defaults()
        defaults |= {name: found[name] for name in names if name not in defaults}
    return defaults
