"""The exception for errors in the data, as opposed to errors in the program."""


class DataError(ValueError):
    """Bad input, described in one line: the file, record and field, what is wrong, and what is expected. The command
    line prints the message without a traceback and exits with status 2. Unprintable characters are escaped."""

    def __init__(self, message: str):
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Escapes characters (as in `\\n`) that end a line, move the cursor or cannot be encoded as UTF-8."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def reason_of(error: BaseException) -> str:
    """Returns the reason for any exception in one line."""
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
