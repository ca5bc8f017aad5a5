"""Pictures of a source: from a zip archive or a folder, each tried before it is kept."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.sources.checks import Faults

BROKEN = (OSError, ValueError, SyntaxError, zipfile.BadZipFile, Image.DecompressionBombError)


class StoredPictures:
    """Encoded pictures by name, from PATH.zip or the folder PATH, in which they may lie in a folder of that name again.

    Where there is neither, that is noted and no item has a picture.
    """

    def __init__(self, path: Path, faults: Faults):
        """
        Raises:
          DataError: the archive is there and cannot be opened.
        """
        archive = path.with_name(f"{path.name}.zip")
        self._faults, self._name = faults, archive.name if archive.exists() else path.name
        self._root: zipfile.Path | Path | None = None
        try:
            if archive.exists():
                self._root = zipfile.Path(zipfile.ZipFile(archive))
            elif path.is_dir():
                self._root = path
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{archive} is not a whole zip archive ({error}); fetch it again") from error
        if self._root is None:
            faults.pictures.append(f"neither {archive} nor the folder {path.name} exists: no item has a picture")
        elif (self._root / path.name).is_dir():
            self._root /= path.name

    def read(self, *names: str) -> bytes:
        """The bytes of the first of these that is there, or b"" (and a note) where none is or it does not decode."""
        if self._root is None:
            return b""
        name = next((name for name in names if (self._root / name).is_file()), None)
        if name is None:
            self._faults.pictures.append(f"{self._name}: {names[0]} is missing")
            return b""
        try:
            encoded = (self._root / name).read_bytes()
            Image.open(io.BytesIO(encoded)).load()
        except BROKEN as error:
            self._faults.pictures.append(f"{self._name}: {name} is broken ({error})")
            return b""
        return encoded
