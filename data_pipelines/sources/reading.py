"""Reads external text files line by line, decompressing them; files that are not text are reported with a remedy."""

import contextlib
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from data_pipelines.errors import DataError

GZIP, UTF_8_MARK = b"\x1f\x8b", b"\xef\xbb\xbf"
WIDE = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""Byte-order marks, longer ones first."""
NO_TEXT = {
    GZIP: "compressed twice; gunzip it once",
    b"PK\x03\x04": "a zip archive; unzip it",
    b"7z\xbc\xaf": "a 7-Zip archive; unpack it",
    b"\xfd7zXZ": "compressed by xz; unpack it with unxz",
    b"BZh": "compressed by bzip2; unpack it with bunzip2",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it with unzstd",
    b"PAR1": "a Parquet file; text is needed",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; run `git lfs pull`",
    **dict.fromkeys((b"<!DOCTYPE", b"<!doctype", b"<html"), "a web page, not the file itself; fetch it again"),
}
HEAD = 64
"""The number of bytes that are examined to detect the type of a file."""


class TextLine(NamedTuple):
    """A line of a text file, counted from 1 on; `fault` is what is wrong with its bytes, or ""."""

    file: str
    number: int
    text: str
    fault: str = ""

    @property
    def place(self) -> str:
        return f"{self.file} line {self.number}"


def is_there(path: Path) -> bool:
    """Returns whether a path exists, plain or as `.gz`; it need not be a readable file, which reading will report."""
    try:
        return path.exists() or packed(path).exists()
    except OSError:
        return True


def packed(path: Path) -> Path:
    """Returns the path of the file with `.gz` added."""
    return path.with_name(f"{path.name}.gz")


def names_in(folder: Path, wanted: str) -> list[str]:
    """Returns the sorted names, without `.gz`, of the files of a folder that match a regular expression as a whole. If
    no file matches, matching folders are returned, which reading will report. Names that begin with a dot are ignored,
    since macOS adds `._NAME` and `.DS_Store`. Raises DataError if the folder cannot be read."""
    try:
        found = [path for path in folder.iterdir() if re.fullmatch(wanted, path.name.removesuffix(".gz"))]
        found = [path for path in found if not path.name.startswith(".")]
        files = [path for path in found if not path.is_dir()]
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror or error})") from error
    return sorted({path.name.removesuffix(".gz") for path in files or found})


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """Yields the path found and the bytes of a file, or of the file with `.gz` added; a byte-order mark is skipped.
    Compression is detected from the first two bytes, not from the name. Raises DataError if the file does not exist,
    cannot be read, is truncated, or is not text in UTF-8 or a single-byte encoding."""
    found = path
    try:
        if not path.is_file() and packed(path).exists():
            found = packed(path)
        with found.open("rb") as plain:
            compressed = plain.peek(2)[:2] == GZIP
            file: Any = gzip.GzipFile(fileobj=plain) if compressed else plain
            head = file.peek(HEAD)[:HEAD]
            if wrong := _no_text(head):
                raise DataError(f"{found} is {wrong}")
            if head.startswith(UTF_8_MARK):
                file.read(len(UTF_8_MARK))
            yield found, cast(IO[bytes], file)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except IsADirectoryError as error:
        advice = "7-Zip unpacks NAME.gz into a folder of that name: take the file out of it"
        raise DataError(f"{found} is a folder; a file is needed ({advice})") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{found} is damaged: it is not a complete gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"{found} cannot be read ({error.strerror or error})") from error


def _no_text(head: bytes) -> str:
    """Returns the type of a file with this beginning, and the remedy; "" if it may be text."""
    known = next((what for mark, what in NO_TEXT.items() if head.startswith(mark)), "")
    if known:
        return known
    wide = next((name for mark, name in WIDE.items() if head.startswith(mark)), "")
    if not wide and bytes(4) in head:
        return "binary; a text file is needed"
    if not wide and len(head) >= 4 and 3 * head.count(0) >= len(head):
        name = "UTF-32" if 3 * head.count(0) >= 2 * len(head) else "UTF-16"
        wide = name + ("LE" if head[0] else "BE")
    if wide:
        return f"{wide}; UTF-8 is needed: iconv -f {wide} -t UTF-8"
    return ""


def read_lines(path: Path, other: str = "") -> Iterator[TextLine]:
    r"""Yields all lines of a file; they end in `\n`, `\r\n` or `\r`, and byte-order marks are left out.

    Args:
      other: the single-byte encoding of lines that are not UTF-8; "" if there is none, and such lines are bad.

    Raises:
      DataError: as raised by `open_bytes`.
    """
    with open_bytes(path) as (found, file):
        text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape")
        for number, line in enumerate(text, start=1):
            fault = ""
            if not line.isascii():
                line = line.lstrip("\ufeff")  # where files were joined
                fault = _not_utf_8(line)
            if fault and other:
                line, fault = line.encode(errors="surrogateescape").decode(other), ""
            yield TextLine(found.name, number, line.rstrip("\n"), fault)


def _not_utf_8(line: str) -> str:
    """Describes the first byte that could not be decoded; "" if all could."""
    try:
        line.encode()
    except UnicodeEncodeError as error:
        byte, before = ord(line[error.start]) & 0xFF, line[: error.start].encode(errors="surrogateescape")
        return f"byte {len(before) + 1} is 0x{byte:02x}, not UTF-8; is the file latin-1? iconv -f latin1 -t utf-8"
    return ""
