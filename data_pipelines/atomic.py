"""Writes files and folders whole or not at all.

Content is written to a temporary path beside the final one, `.NAME.partial`, which is renamed once it is complete. The
temporary path is removed after an error. A killed process leaves it behind, and the next writer of the same path
replaces it. Content for an object store is written to the local disk first (`object_store`).
"""

import contextlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.object_store import is_remote, put_file, put_folder


@contextlib.contextmanager
def atomic_file(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yields a path to write a file to; the file becomes `path` when the context ends without an error.

    Args:
      path: the final path, in an existing folder; an earlier file there is replaced.
      shared: whether several processes may write the file at the same time. Each then has its own temporary path, and
        the last one to finish determines the content.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
            put_file(Path(folder) / path.name, path)
        return
    temporary = _temporary(path, shared)
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def atomic_folder(path: Path, *, replaces: bool = False, shared: bool = False) -> Iterator[Path]:
    """Yields an empty folder to fill; it becomes `path` when the context ends without an error.

    All files are flushed to the disk before the folder is renamed.

    Args:
      path: the final path; missing parents are created.
      replaces: whether an earlier folder is removed; otherwise an existing non-empty folder is an error.
      shared: whether several processes may write the folder at the same time, as in `atomic_file`.

    Raises:
      OSError: the folder cannot be written, or exists and must not be replaced.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
            put_folder(Path(folder), path)
        return
    temporary = _temporary(path, shared)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        if replaces:
            shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_json(path: Path, value: Any, *, shared: bool = False) -> None:
    """Writes a value as indented JSON, whole or not at all; `shared` is as in `atomic_file`."""
    with atomic_file(path, shared=shared) as temporary:
        temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _flush(file: Path) -> None:
    """Writes a file's content to the disk; otherwise a machine that loses its power may leave an empty file."""
    with file.open("rb") as written:
        os.fsync(written.fileno())


def _temporary(path: Path, shared: bool) -> Path:
    return path.with_name(f".{path.name}.{f'{secrets.token_hex(4)}.' if shared else ''}partial")
