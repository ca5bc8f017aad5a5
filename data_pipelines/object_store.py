"""Object stores: URLs as paths, and folders that are written whole or not at all.

An object is written by one PUT, whole or not at all. A folder contains a mark, `whole.json`, which is written first
without the sizes of the files, and again with them once all files are there; only then is the folder complete.
"""

import contextlib
import importlib.util
import io
import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from data_pipelines.errors import DataError, printable, reason_of

PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
EXTRAS = {"s3": "s3", "gs": "gcs"}
MARK = "whole.json"


class URLError(Exception):
    """A URL that cannot be used. It is not a `ValueError`, since option parsers would print that on many lines."""

    def __init__(self, message: str):
        super().__init__(printable(message))


def make_path(text: str | PurePath) -> Path:
    """Returns a local path, or a path with pathlib's interface in an object store if `text` is a URL.

    Raises:
      URLError: the URL is malformed or of an unknown store, or the store's package is not installed.
    """
    scheme, colon, rest = str(text).partition(":/")
    if is_remote(text) or not colon or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme):
        return Path(text)
    known = " or ".join(f"{one}://BUCKET/FOLDER" for one in PACKAGES)
    if scheme not in PACKAGES:
        raise URLError(f"{text}: unknown kind of URL; use {known}, or begin a local path with ./")
    if not re.fullmatch(r"/[^/*?[][^*?[]*", rest):  # fsspec would take `run[1]` for a pattern, and delete from `run1`
        raise URLError(f"{text}: malformed URL; it must be {scheme}://BUCKET/FOLDER, with two slashes and no *, ? or [")
    if importlib.util.find_spec(PACKAGES[scheme]) is None:
        raise URLError(f"{text} needs {PACKAGES[scheme]}: pip install 'unimp_jax[{EXTRAS[scheme]}]'")
    from data_pipelines.store_path import StorePath

    path: Any = StorePath(text)
    return path


def is_remote(path: Any) -> bool:
    """Returns whether `make_path` created the path from a URL."""
    return isinstance(path, PurePath) and not isinstance(path, Path)


def reached(path: Path) -> Path:
    """Returns the path, after checking that its bucket exists if it is remote.

    Raises:
      URLError: the bucket cannot be reached.
    """
    if is_remote(path):
        bucket = "/".join(str(path).split("/")[:3])
        try:
            if not store(path).exists(bucket):
                store(path).ls(bucket)  # raises the reason
                raise FileNotFoundError(2, "it does not exist, or access is denied")
        except Exception as error:  # raised by the store's own package
            raise URLError(
                f"{bucket} cannot be reached ({reason_of(error)}): check its name, the credentials and, if the "
                "store is not the cloud's own, its endpoint (such as AWS_ENDPOINT_URL)"
            ) from error
    return path


def store(path: Path) -> Any:
    """Returns the fsspec file system of a path in a store."""
    return getattr(path, "fs")  # noqa: B009 (pathlib has no such attribute)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Converts any exception of a store's package to an `OSError` that names the path."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise OSError(f"{path}: the object store reported an error ({reason_of(error)})") from error


def put_file(file: Path, path: Path) -> None:
    """Writes an object by one PUT, or by a multipart upload that becomes visible at once."""
    with naming(path):
        store(path).put_file(str(file), str(path))


def put_folder(folder: Path, place: Path) -> None:
    """Writes a local folder to a store, replacing any earlier one; raises DataError if another process is writing
    there, and OSError if the store could not be used."""
    token, fs = secrets.token_hex(8), store(place)
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    with naming(place):
        mark(place, {"writer": token})
        if earlier := [str(place / name) for name in objects_in(place) if name != MARK]:
            fs.rm(earlier)
        fs.put([str(file) for file in files.values()], [str(place / name) for name in files])
        if marked(place).get("writer") != token:
            raise DataError(f"{place} is being written by another process; wait until it ends, or name another folder")
        mark(place, {"writer": token, "files": {name: file.stat().st_size for name, file in files.items()}})


def get_folder(place: Path, folder: Path, content: dict[str, Any]) -> None:
    """Reads a complete folder of a store into an empty local one; raises DataError if it lacks files, or was replaced
    in the meantime, and OSError if the store could not be used."""
    with naming(place):
        with contextlib.suppress(FileNotFoundError):
            names = list(content["files"])
            store(place).get([str(place / name) for name in names], [str(folder / name) for name in names])
        here = {name: (folder / name).stat().st_size for name in content["files"] if (folder / name).exists()}
        if marked(place) != content or here != content["files"]:
            raise DataError(
                f"{place} was changed while it was read, or files are missing; read it again, or write it again"
            )


def objects_in(place: Path) -> list[str]:
    """Returns the names of all objects in a folder, relative to it."""
    key = str(place).partition("://")[2]
    return [file.removeprefix(f"{key}/") for file in store(place).find(str(place))]


def mark(place: Path, content: dict[str, Any]) -> None:
    """Writes the mark of a folder."""
    store(place).pipe_file(str(place / MARK), json.dumps(content).encode())


def marked(place: Path) -> dict[str, Any]:
    """Returns the content of a folder's mark; an empty dictionary if it has no mark."""
    try:
        content: dict[str, Any] = json.loads((place / MARK).read_bytes())
        return content
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataError(f"{place / MARK} is damaged ({error}); write the folder again") from error


def whole(place: Path) -> dict[str, Any]:
    """Returns the mark of a complete folder: `writer`, a token of the writer, and `files`, the file sizes by name;
    raises DataError if the folder is not complete."""
    content = marked(place)
    if "files" not in content:
        state = "is incomplete: its writer is running or was killed" if content else "does not exist, or has no mark"
        raise DataError(f"{place} {state} ({place / MARK}); write it (again)")
    return content


def is_there(place: Path) -> bool:
    """Returns whether a folder exists; in a store, one that `put_folder` left unfinished does not count."""
    if not is_remote(place):
        return place.exists()
    content = marked(place)
    return "files" in content or (not content and place.exists())


def readable(path: Path) -> Any:
    """Returns a local path, or the content of a remote file as a buffer, for libraries that only read local paths."""
    return io.BytesIO(path.read_bytes()) if is_remote(path) else path
