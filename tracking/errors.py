"""The one exception of this package for what a user can mend."""


class UsageError(ValueError):
    """A mistake in the command or the configuration, told in one line: what was expected, what was found, what to do.

    The doors print the line and end with a non-zero status; every other exception keeps its traceback.
    """
