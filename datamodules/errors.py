"""The one exception for what a user can mend: a bad file, a missing data set, settings that cannot hold together."""


class InputError(ValueError):
    """A mistake in what was given, told in one line: what was expected, what was found, what to do.

    The doors print the line and end with a non-zero status; every other exception keeps its traceback.
    """
