"""What goes wrong with data that a user can mend."""


class DataError(Exception):
    """A source or store cannot be used; the one-sentence message names the file and says how to mend it.

    ``mendable`` tells the command line to print the message alone, without a traceback.
    """

    mendable = True
