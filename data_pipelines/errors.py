"""The one exception that says: the data, not the program, is wrong."""


class DataError(ValueError):
    """Bad input, told in one line: which file, record and field, what was wrong, what would be right.

    The command line prints the message without a traceback and exits with status 2. What cannot be printed stands in
    it as an escape.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Text with escapes, such as `\\n`, in place of what ends a line, moves a cursor or cannot be written as UTF-8."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def reason_of(error: BaseException) -> str:
    """Why, in one line, whatever failed."""
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
