"""Discovery of installed domains by entry point.

A package registers a domain by an entry point in the group ``arflows.domains`` that names a `Domain`. In its
``pyproject.toml``::

    [project.entry-points."arflows.domains"]
    vision = "arflows.vision.domain:DOMAIN"

The command line, the demo and its report then find it. The module of the `Domain` should import nothing heavy, because
``--help`` loads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from arflows.core.runtime.errors import UserError, unknown_name

GROUP = "arflows.domains"


@dataclass(frozen=True)
class Domain:
    """Description of a domain for the command line.

    Attributes:
        name: Name of the entry point, and the word after ``arflows``.
        summary: One line for ``arflows --help``.
        module: The package. Each verb is the function ``<module>.<verb>.<verb>``; ``<module>.demo.chapter(out, seed)``
            makes the chapter of the demo's report.
        verbs: Verbs in the order of use, each with one line for ``arflows <domain> --help``.
        examples: Plural noun for the examples, such as "images".
    """

    name: str
    summary: str
    module: str
    verbs: Mapping[str, str]
    examples: str = "examples"


def all_domains() -> list[Domain]:
    """Return all installed domains, sorted by name."""
    return [_load(entry_point) for _, entry_point in sorted(_entry_points().items())]


def domain_names() -> list[str]:
    """Return the names of all installed domains without loading them."""
    return sorted(_entry_points())


def find_domain(name: str, *, also: Iterable[str] = ()) -> Domain:
    """Load a domain by name, and no other.

    Args:
        name: Name of a domain.
        also: Further valid words, for the error message.

    Raises:
        UserError: If there is no such domain; the message has the closest match and all names.
    """
    installed = _entry_points()
    if name not in installed:
        raise unknown_name("domain or command", name, [*sorted(installed), *also])
    return _load(installed[name])


def _entry_points() -> dict[str, EntryPoint]:
    return {entry_point.name: entry_point for entry_point in entry_points(group=GROUP)}


def _load(entry_point: EntryPoint) -> Domain:
    package = entry_point.dist.name if entry_point.dist else entry_point.module
    try:
        domain = entry_point.load()
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"The domain {entry_point.name!r} of the package {package} does not load ({error}): "
            "reinstall or uninstall that package."
        ) from error
    if not isinstance(domain, Domain):
        raise UserError(
            f"The domain {entry_point.name!r} of the package {package} is no Domain: uninstall that package."
        )
    return domain
