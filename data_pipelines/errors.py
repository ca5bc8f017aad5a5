"""The one exception that says: the data, not the program, is wrong."""


class DataError(ValueError):
    """Bad input, told in one line: which file, record and field, what was wrong, what would be right.

    The command line prints the message without a traceback and exits with status 2.
    """


def reason_of(error: BaseException) -> str:
    """Why, in one line, whatever failed."""
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
