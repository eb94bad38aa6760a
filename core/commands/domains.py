"""The domains that are installed: found by entry point, so that nothing has to keep a list of them.

A package offers a domain by an entry point in the group ``arflows.domains`` that names a `Domain`; in its
``pyproject.toml``::

    [project.entry-points."arflows.domains"]
    vision = "arflows.vision.domain:DOMAIN"

The command line, the demo and its report then find it. The module that holds the `Domain` should import nothing heavy:
it is loaded to print a help text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from arflows.core.runtime.errors import UserError, unknown_name

GROUP = "arflows.domains"


@dataclass(frozen=True)
class Domain:
    """What a domain offers on the command line.

    Attributes:
        name: the word after ``arflows``, equal to the name of the entry point.
        summary: one line for ``arflows --help``.
        module: The package. Each verb is the function ``<module>.<verb>.<verb>``; the chapter of the demo's report is
            made by ``<module>.demo.chapter(out, seed)``.
        verbs: Each verb with one line for ``arflows <domain> --help``, in the order in which a user meets them.
        examples: The name of its examples, in the plural, such as "images".
    """

    name: str
    summary: str
    module: str
    verbs: Mapping[str, str]
    examples: str = "examples"


def all_domains() -> list[Domain]:
    """All installed domains, by name."""
    return [_load(entry_point) for _, entry_point in sorted(_entry_points().items())]


def domain_names() -> list[str]:
    """The names of all installed domains; none of them is loaded."""
    return sorted(_entry_points())


def find_domain(name: str, *, also: Iterable[str] = ()) -> Domain:
    """The domain of that name; no other domain is loaded.

    Args:
        name: name of a domain.
        also: what else would have been understood in its place, for the message.

    Raises:
        UserError: if there is none; the message has the closest match and all names.
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
            "install that package again, or uninstall it."
        ) from error
    if not isinstance(domain, Domain):
        raise UserError(
            f"The domain {entry_point.name!r} of the package {package} is no Domain: uninstall that package."
        )
    return domain
