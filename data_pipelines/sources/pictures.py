"""Pictures of a source: from a zip archive, each tried before it is kept."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.sources.checks import Faults


class ZippedPictures:
    """Encoded pictures by name, from a zip archive; where there is none, that is noted and no item has a picture."""

    def __init__(self, path: Path, faults: Faults):
        """
        Raises:
          DataError: the archive is there and cannot be opened.
        """
        self._faults, self._name = faults, path.name
        try:
            self._archive = zipfile.ZipFile(path) if path.exists() else None
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{path} is not a whole zip archive ({error}); fetch it again") from error
        if self._archive is None:
            faults.pictures.append(f"{path} does not exist: no item has a picture")
        self._names = set(self._archive.namelist()) if self._archive else set()

    def read(self, name: str) -> bytes:
        """The picture's bytes, or b"" (and a note) where it is missing or does not decode."""
        if self._archive is None:
            return b""
        if name not in self._names:
            self._faults.pictures.append(f"{self._name}: {name} is missing")
            return b""
        try:
            encoded = self._archive.read(name)
            Image.open(io.BytesIO(encoded)).load()
        except (OSError, ValueError, SyntaxError, zipfile.BadZipFile, Image.DecompressionBombError) as error:
            self._faults.pictures.append(f"{self._name}: {name} is broken ({error})")
            return b""
        return encoded
