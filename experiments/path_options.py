"""Options that need a check of their own: paths, of which some accept URLs of an object store, and numbers."""

import math
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Annotated, Any

import pydantic
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from data_pipelines.object_store import URLError, is_remote, make_path, reached


def spec(metavar: str, read: Callable[[str], Path]) -> PrimitiveConstructorSpec[Path]:
    """Tells tyro how to make paths of words."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: hasattr(value, "__fspath__"),
        str_from_instance=lambda path: [str(path)],
    )


PathOrURL = Annotated[
    Path,
    spec("PATH|URL", lambda word: reached(make_path(word))),
    pydantic.WrapValidator(lambda value, as_path: read_url(value) or as_path(value)),
    pydantic.PlainSerializer(str, when_used="json"),
]
"""A local path or a URL: `s3://BUCKET/…`, `gs://BUCKET/…`."""
LOCAL = ConstructorRegistry()
"""For `tyro.cli`: options declared as `Path` accept local paths only, those declared as `float` no NaN."""


def read_url(value: Any) -> Path | None:
    """Returns the path of a URL; None for any other value."""
    path = make_path(value) if isinstance(value, str | PurePath) else None
    return path if is_remote(path) else None


@LOCAL.primitive_rule
def local_path(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    """Makes options of type `Path` refuse URLs."""
    return spec("PATH", refuse_url) if info.type is Path else None


def refuse_url(text: Any) -> Path:
    """Returns a local path; URLError if the text is a URL."""
    path = make_path(text)
    if is_remote(path):
        raise URLError(f"{text}: this option needs a path on the local disk, not a URL")
    return path


@LOCAL.primitive_rule
def number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[float] | None:
    """Makes options of type `float` refuse NaN, which is neither too small nor too large for any check."""
    if info.type is not float:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT",
        instance_from_str=lambda words: refuse_nan(words[0]),
        is_instance=lambda value: isinstance(value, int | float) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


def refuse_nan(text: str) -> float:
    """Returns a number.

    Raises:
      ValueError: the text is not a number, or it is NaN.
    """
    value = float(text)
    if math.isnan(value):
        raise ValueError(f"{text} is not a number")
    return value
