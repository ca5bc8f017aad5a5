"""Images of a source: from a zip archive or a folder, each tried before it is kept."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from data_pipelines.errors import DataError
from data_pipelines.image_decoding import LARGEST_BYTES, decode_image
from data_pipelines.sources.checks import Faults

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Of files that are images, in any case; of two files of one name, the first of these counts."""
DEPTH = 2
"""Folders in a folder of images that are looked into."""
TRIED = 1024
"""Pixels to which a JPEG is reduced, at least, when it is tried."""


def try_image(encoded: bytes) -> tuple[int, int]:
    """(width, height), of a JPEG perhaps reduced.

    Raises:
      DataError: it is no whole image; the message is only the reason.
    """
    return decode_image(encoded, TRIED).size


class ImageFiles:
    """Files of images by their name without its ending, in a zip archive or a folder whose names are looked up once.

    A name may begin with folders. All of them may lie in one more folder, of a given name. Archives written on Windows
    may part folders with backslashes. What macOS and others leave beside images (`._1.jpg`, dotfiles) is no image.
    """

    def __init__(self, place: Path, faults: Faults, inside: str = ""):
        """
        Args:
          place: the archive or folder.
          faults: to which folders in it that cannot be listed are added.
          inside: the name of the one more folder.

        Raises:
          DataError: it cannot be opened or listed.
        """
        self._place, self._archive = place, None
        try:
            if os.path.isdir(place):
                found: Iterable[str] = list(_names(place, faults))
            else:
                self._archive = zipfile.ZipFile(place)
                found = self._archive.namelist()
        except OSError as error:
            raise DataError(f"{place} cannot be read ({error.strerror or error})") from error
        except Exception as error:  # what is no archive fails in many ways
            raise DataError(f"{place} is not a whole zip archive ({error}); fetch it again") from error
        ranked: dict[str, tuple[bool, int, str]] = {}
        for name in found:
            path = PurePosixPath(name.replace("\\", "/").lstrip("/"))
            if path.suffix.lower() not in ENDINGS or any(part[0] == "." or part == "__MACOSX" for part in path.parts):
                continue
            is_inside = path.parts[0] == inside and len(path.parts) > 1
            stem = str(PurePosixPath(*path.parts[is_inside:]).with_suffix(""))
            candidate = is_inside, ENDINGS.index(path.suffix.lower()), name
            ranked[stem] = min(candidate, ranked.get(stem, candidate))
        self._files = {stem: name for stem, (_, _, name) in ranked.items()}

    def __contains__(self, stem: str) -> bool:
        return stem in self._files

    def __len__(self) -> int:
        return len(self._files)

    def name(self, stem: str) -> str:
        """Of the file, with all folders and its ending."""
        return self._files[stem]

    def read(self, stem: str) -> bytes:
        """
        Raises:
          DataError: it cannot be read, or is too large; the message is only the reason.
        """
        try:
            return self._read(self._files[stem])
        except DataError:
            raise
        except Exception as error:  # zipfile and its decompressors raise errors of many classes
            raise DataError(getattr(error, "strerror", None) or str(error) or type(error).__name__) from error

    def _read(self, name: str) -> bytes:
        path = self._place / name
        if self._archive is None and not path.is_file():
            raise DataError("it is no file")
        size = self._archive.getinfo(name).file_size if self._archive else path.stat().st_size
        if size > LARGEST_BYTES:
            raise DataError(f"{size:,} bytes; at most {LARGEST_BYTES:,} are decoded")
        with self._archive.open(name) if self._archive else path.open("rb") as file:
            return file.read(LARGEST_BYTES + 1)  # for a header may say less than there is


def _names(folder: Path, faults: Faults) -> Iterator[str]:
    """Of all files in a folder and `DEPTH` folders down, in order."""

    def tell(error: OSError) -> None:
        if error.filename == str(folder):
            raise error
        faults.images.append(f"{error.filename} cannot be listed ({error.strerror})")

    for path, folders, files in os.walk(folder, onerror=tell, followlinks=True):
        inside = os.path.relpath(path, folder)
        deep = 0 if inside == "." else inside.count(os.sep) + 1
        folders[:] = sorted(name for name in folders if name[0] != "." and deep < DEPTH)
        yield from (name if inside == "." else f"{inside}/{name}" for name in sorted(files))


class StoredImages:
    """Encoded images by name, from PATH.zip or the folder PATH, in which they may lie in a folder of that name again.

    Where there is neither, or no image in it, that is noted and no item has an image.
    """

    def __init__(self, path: Path, faults: Faults):
        """
        Raises:
          DataError: the archive or the folder is there and cannot be opened.
        """
        archive = path.with_name(f"{path.name}.zip")
        place = archive if os.path.exists(archive) else path
        self._faults, self._name = faults, place.name
        self._files: ImageFiles | None = None
        if not os.path.exists(place):
            faults.images.append(f"neither {archive} nor the folder {path.name} exists: no item has an image")
            return
        self._files = ImageFiles(place, faults, path.name)
        if not self._files:
            faults.images.append(f"{place} holds no image: no item has one")
            self._files = None

    def read(self, *names: str) -> bytes:
        """The bytes of the first of these that is there, or b"" (and a note) where none is or it does not decode.

        Args:
          names: with the ending `.jpg`, in whose place any of `ENDINGS` will do.
        """
        if self._files is None:
            return b""
        stems = (name.removesuffix(".jpg") for name in names)
        stem = next((stem for stem in stems if stem in self._files), None)
        if stem is None:
            self._faults.images.append(f"{self._name}: {names[0]} is missing")
            return b""
        try:
            encoded = self._files.read(stem)
            try_image(encoded)
        except DataError as error:
            self._faults.images.append(f"{self._name}: {self._files.name(stem)} is broken ({error})")
            return b""
        return encoded
