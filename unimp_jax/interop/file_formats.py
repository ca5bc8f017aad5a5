"""Detects files that are not what their name says by their first bytes: Git LFS pointers, web pages, archives."""

import re
from pathlib import Path

from unimp_jax.interop.layout import WeightsError

HEAD = 1024
POINTER = re.compile(rb"version https://(?:git-lfs|hawser)\.github\.com/spec/")
MARKS_OF_ORDER = (b"\xff\xfe", b"\xfe\xff")
"""Byte order marks of UTF-16 text."""
PACKED = {
    b"PK\x03\x04": "a zip archive (torch writes these too)",
    b"\x1f\x8b": "packed with gzip",
    b"BZh": "packed with bzip2",
    b"\xfd7zXZ\x00": "packed with xz",
    b"\x28\xb5\x2f\xfd": "packed with zstd",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x89HDF": "an HDF5 file (from Keras or TensorFlow)",
    b"\x93NUMPY": "a numpy array",
    b"GGUF": "a GGUF file",
}
"""First bytes of other file formats, and their names."""
TORCH_TOO = (b"PK\x03\x04",)


def check_file_format(path: Path, kind: str) -> None:
    """Raises WeightsError if the first bytes of a file are not of its `kind` ("safetensors", "torch", "GGUF", or
    "other", such as JSON and tokenizers): it is empty, a pointer, a web page or server message, or of another format. A
    missing file is left to its reader."""
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            head, size = file.read(HEAD), path.stat().st_size
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    if fault := format_fault(head, size, kind):
        raise WeightsError(f"{path}{fault}")


def format_fault(head: bytes, size: int, kind: str) -> str | None:
    """Returns the rest of an error message about a file that is not what it should be; None if it may be."""
    wanted = "the file itself" if kind == "other" else "the weights"
    if not size:
        return f": truncated, or not a {'' if kind == 'other' else f'{kind} '}file (it is empty); fetch it again"
    if POINTER.match(head):
        return f" is a Git LFS pointer ({size} bytes), not {wanted}; run `git lfs pull` in its folder"
    if b"/annex/objects/" in head[:200]:
        return f" is a git-annex pointer ({size} bytes), not {wanted}; run `git annex get` in its folder"
    begins = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if begins.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")):
        return (
            f" is a web page (HTML or XML, {size} bytes), not {wanted}; fetch it again, after signing in if the "
            "publisher requires it"
        )
    for magic, is_ in PACKED.items():
        own = (kind == "GGUF" and magic == b"GGUF") or (kind == "torch" and magic in TORCH_TOO)
        if head.startswith(magic) and not own:
            return f" is {is_}, not {wanted} ({kind}); unpack it, or rename it to match its format"
    if head[257:262] == b"ustar":
        return f" is a tar archive, not {wanted}; unpack it"
    if kind == "torch" and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        return " is a safetensors file; its name must end in .safetensors"
    if kind != "other" and size >= 8 and is_text(head):
        beginning = " ".join(head.decode("utf-8", "replace").split())[:60]
        return f' is text ({size} bytes: "{beginning}"), not {wanted}; fetch it again'
    return None


def is_text(head: bytes) -> bool:
    """Returns whether bytes are plain text; the last character may be cut off."""
    if head.startswith(MARKS_OF_ORDER):
        return True
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\t\r\n\f" for character in text)
