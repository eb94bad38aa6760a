"""The one exception a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: a wrong path, setting or file.

    The message is one sentence that names the file or setting and says how to mend it. The command line prints it and
    exits with code 2; it recognises such exceptions by the attribute ``mendable``, so that `arflows.data`, which does
    not import `arflows.core`, can raise its own.
    """

    mendable = True
