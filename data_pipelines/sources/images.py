"""Images of a source, from a zip archive or a folder; each is verified before it is stored."""

import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from data_pipelines.errors import DataError, reason_of
from data_pipelines.image_decoding import LARGEST_BYTES, decode_image
from data_pipelines.sources.checks import Faults

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Endings of image files, in any case; of two files with the same name, the first ending takes precedence."""
DEPTH = 2
"""The depth of subfolders that are searched in a folder of images."""
TRIED = 1024
"""The minimum side, in pixels, to which a JPEG may be reduced when it is verified."""


def try_image(encoded: bytes) -> tuple[int, int]:
    """Verifies an image and returns its (width, height), which may be reduced for a JPEG; raises DataError, whose
    message is only the reason, if it is not a complete image."""
    return decode_image(encoded, TRIED).size


class ImageFiles:
    """Image files by name without ending, in a zip archive or a folder, whose names are listed once.

    A name may include folders. All files may lie in one additional folder of a given name. Archives written on Windows
    may use backslashes between folders. Files that macOS and others add (`._1.jpg`, dotfiles) are ignored.
    """

    def __init__(self, place: Path, faults: Faults, inside: str = ""):
        """Lists the image files; `faults` collects the subfolders that cannot be listed, and `inside` is the name of
        the additional folder. Raises DataError if the place cannot be opened or listed."""
        self._place, self._archive = place, None
        try:
            if os.path.isdir(place):
                found: Iterable[str] = list(_names(place, faults))
            else:
                self._archive = zipfile.ZipFile(place)
                found = self._archive.namelist()
        except OSError as error:
            raise DataError(f"{place} cannot be read ({error.strerror or error})") from error
        except Exception as error:  # a file that is not an archive causes errors of many classes
            raise DataError(f"{place} is not a complete zip archive ({error}); fetch it again") from error
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
        """Returns the file name, with all folders and its ending."""
        return self._files[stem]

    def read(self, stem: str) -> bytes:
        """Returns the content of an image file; raises DataError, whose message is only the reason, if it cannot be
        read, or is too large."""
        try:
            return self._read(self._files[stem])
        except DataError:
            raise
        except Exception as error:  # zipfile and its decompressors raise errors of many classes
            raise DataError(reason_of(error)) from error

    def _read(self, name: str) -> bytes:
        path = self._place / name
        if self._archive is None and not path.is_file():
            raise DataError("it is not a file")
        size = self._archive.getinfo(name).file_size if self._archive else path.stat().st_size
        if size > LARGEST_BYTES:
            raise DataError(f"{size:,} bytes; at most {LARGEST_BYTES:,} are decoded")
        with self._archive.open(name) if self._archive else path.open("rb") as file:
            return file.read(LARGEST_BYTES + 1)  # since the size in a header may be too small


def _names(folder: Path, faults: Faults) -> Iterator[str]:
    """Yields the sorted names of all files in a folder and `DEPTH` levels of subfolders."""

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
    """Encoded images by name, from PATH.zip or the folder PATH, which may contain a folder of the same name again. If
    neither exists, or there is no image in it, that is noted and no item has an image."""

    def __init__(self, path: Path, faults: Faults):
        """Opens the archive or folder; raises DataError if it exists but cannot be opened."""
        archive = path.with_name(f"{path.name}.zip")
        place = archive if os.path.exists(archive) else path
        self._faults, self._name = faults, place.name
        self._files: ImageFiles | None = None
        if not os.path.exists(place):
            faults.images.append(f"neither {archive} nor the folder {path.name} exists, so no item has an image")
            return
        self._files = ImageFiles(place, faults, path.name)
        if not self._files:
            faults.images.append(f"{place} contains no images, so no item has one")
            self._files = None

    def read(self, *names: str) -> bytes:
        """Returns the bytes of the first existing image; b"" (noting the fault) if there is none or it is broken. Names
        end in `.jpg`, which stands for any of `ENDINGS`."""
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
