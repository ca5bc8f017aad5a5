"""Path options: some accept URLs of an object store, the others must be local."""

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
"""For `tyro.cli`: makes options declared as `Path` accept local paths only."""


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
