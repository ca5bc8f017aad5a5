"""Paths in an object store behind pathlib's interface; `object_store.make_path` makes them of URLs."""

from __future__ import annotations

import logging
import os
from typing import Any, Self

import fsspec
from etils.epath.gpath import PosixGPath

MARKS = ("whole.json", "commit_success.txt")
"""By what a folder in a store is known to be whole: ours, and Orbax's."""

os.environ.setdefault("EPATH_USE_TF", "false")  # TensorFlow, where it is installed, would need packages of its own
for scheme in ("s3", "gs"):  # what other processes write is seen at once
    fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
for package in ("s3fs", "gcsfs"):  # what they would print of each attempt, their errors say
    logging.getLogger(package).addHandler(logging.NullHandler())


class StorePath(PosixGPath):
    """A URL, `s3://BUCKET/…` or `gs://BUCKET/…`."""

    @property
    def fs(self) -> Any:
        """fsspec's file system of it."""
        return fsspec.filesystem(str(self).partition(":")[0])

    def resolve(self, strict: bool = False) -> Self:
        """A URL is absolute, and has no links."""
        return self

    def read_bytes(self) -> bytes:
        """By one request, so that it is never in parts of two that were written one after the other."""
        return bytes(self.fs.cat_file(str(self)))

    def read_text(self, encoding: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8")

    def rmtree(self, missing_ok: bool = False) -> None:
        """Removes a folder, its marks first, so that what is left by a kill is not taken for whole."""
        for mark in MARKS:
            (self / mark).unlink(missing_ok=True)
        super().rmtree(missing_ok=True if missing_ok else not self.exists())
