"""The exception for problems that the user can solve."""

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """Something the user can mend: a wrong path, setting or file.

    The message is one sentence that names the file or setting and says how to mend it. The command line prints it and
    exits with code 2, as it does for any exception with a true attribute ``user_facing``.
    """

    user_facing = True


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean …?" with the closest of the known names, or nothing if none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that nothing has, with the closest of those that exist.

    Args:
        kind: kind of thing that was named, such as ``"recipe"``.
        name: what the user wrote.
        known: the names that exist.
    """
    known = list(known)
    return UserError(f"There is no {kind} {name!r}.{did_you_mean(name, known)} There is: {', '.join(known) or 'none'}.")


def match_names(kind: str, names: Iterable[str], known: Sequence[str], where: object) -> list[int]:
    """Return the number of each name among those that a model knows.

    Args:
        kind: Kind of thing that has the name, such as ``"class"``.
        names: The names.
        known: Names of the model, in the order of their numbers.
        where: Origin of the names, such as a file.

    Raises:
        UserError: If the model does not know a name; the sentence has the closest one.

    >>> match_names("class", ["dog", "cat"], ["bird", "cat", "dog"], "images")
    [2, 1]
    """
    names, numbers = list(names), {name: number for number, name in enumerate(known)}
    for name in names:
        if name not in numbers:
            listed = ", ".join([*known[:20], *(["…"] if len(known) > 20 else [])])
            raise UserError(
                f"{where}: the model knows no {kind} {name!r}.{did_you_mean(name, known)} It knows {listed}."
            )
    return [numbers[name] for name in names]
