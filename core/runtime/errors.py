"""The one exception a user is meant to read."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: a wrong path, setting or file.

    The message is one sentence that names the file or setting and says how to mend it. The command line prints it and
    exits with code 2; it recognises such exceptions by the attribute ``mendable``, so that `arflows.data`, which does
    not import `arflows.core`, can raise its own.
    """

    mendable = True


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that nothing has, with the closest of those that exist.

    Args:
        kind: what it should have been the name of, such as ``"recipe"``.
        name: what the user wrote.
        known: the names that exist.
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return UserError(f"There is no {kind} {name!r}.{hint} There is: {', '.join(known) or 'none'}.")
