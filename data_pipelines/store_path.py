"""Paths in an object store with pathlib's interface; `object_store.make_path` creates them from URLs."""

import logging
import os
from typing import Any, Self

import fsspec
from etils.epath.gpath import PosixGPath

MARKS = ("whole.json", "commit_success.txt")
"""The files that mark a folder in a store as complete: this project's, and Orbax's."""

os.environ.setdefault("EPATH_USE_TF", "false")  # TensorFlow, if it is installed, would need additional packages
for scheme in ("s3", "gs"):  # makes writes of other processes visible at once
    fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
for package in ("s3fs", "gcsfs"):  # silences logs of each attempt; the final errors contain them
    logging.getLogger(package).addHandler(logging.NullHandler())


class StorePath(PosixGPath):
    """A URL, `s3://BUCKET/…` or `gs://BUCKET/…`."""

    @property
    def fs(self) -> Any:
        """The fsspec file system of the URL."""
        return fsspec.filesystem(str(self).partition(":")[0])

    def resolve(self, strict: bool = False) -> Self:
        """Returns the path itself, since a URL is absolute and has no links."""
        return self

    def read_bytes(self) -> bytes:
        """Reads the object by one request, so that the result never mixes two versions of it."""
        return bytes(self.fs.cat_file(str(self)))

    def read_text(self, encoding: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8")

    def rmtree(self, missing_ok: bool = False) -> None:
        """Removes a folder, its marks first, so that a partly removed folder is not taken for complete."""
        for mark in MARKS:
            (self / mark).unlink(missing_ok=True)
        super().rmtree(missing_ok=True if missing_ok else not self.exists())
