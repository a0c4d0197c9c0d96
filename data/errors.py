"""Errors that the user can fix: the program prints one clear line and no traceback.

A message names the file, key or id that is wrong and says what to do. Any other exception is
a bug in this project and keeps its traceback.
"""


class UserError(Exception):
    """Base of both; `status` is the exit status of the program."""

    status = 1


class DataError(UserError):
    """The data is bad: a file is broken, missing or inconsistent."""

    status = 1


class UsageError(UserError):
    """The program was called wrongly: an unknown key, a path that does not exist."""

    status = 2
