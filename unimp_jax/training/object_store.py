"""Support for Orbax checkpoints in an object store: a commit marker that is written last, and S3.

Orbax writes arrays through TensorStore, which supports S3, but the one function that builds the storage location
handles only local paths and `gs://` (orbax-checkpoint 0.11 and 0.12). For `s3://`, this module calls it with the
corresponding `gs://` path and replaces the driver in the result.
"""

import functools
import os
from pathlib import Path
from typing import Any

from orbax.checkpoint._src.serialization import tensorstore_utils
from orbax.checkpoint.path import atomicity

from data_pipelines.object_store import is_remote, objects_in, store

COMMIT = atomicity.COMMIT_SUCCESS_FILE
_build = tensorstore_utils.build_kvstore_tspec


def options_of(folder: Path) -> dict[str, Any]:
    """Returns options for Orbax: a store has no rename, so there a folder is complete once it has `COMMIT`."""
    return {"temporary_path_class": atomicity.CommitFileTemporaryPath} if is_remote(folder) else {}


def is_saved(folder: Path) -> bool:
    """Returns whether Orbax has written the folder completely."""
    return (folder / COMMIT).exists() if is_remote(folder) else folder.exists()


def set_aside(folder: Path, place: Path) -> None:
    """Moves a checkpoint; in a store it stops being a valid checkpoint first."""
    if not is_remote(folder):
        os.replace(folder, place)
        return
    (folder / COMMIT).unlink(missing_ok=True)
    names = objects_in(folder)
    store(folder).copy([str(folder / name) for name in names], [str(place / name) for name in names])
    folder.rmtree()  # type: ignore[attr-defined]


@functools.wraps(_build)
def build_kvstore_tspec(directory: str, *args: Any, **options: Any) -> Any:
    path = str(directory)
    if not path.startswith("s3:/"):
        return _build(directory, *args, **options)
    return _on_s3(_build(path.replace("s3:/", "gs:/", 1), *args, **options))


def _on_s3(spec: Any) -> Any:
    """Replaces the Google Cloud Storage driver by S3 in a key-value store specification."""
    if isinstance(spec, list):
        return [_on_s3(one) for one in spec]
    if not isinstance(spec, dict):
        return spec
    spec = {name: _on_s3(one) for name, one in spec.items()}
    return {**spec, "driver": "s3", **_s3()} if str(spec.get("driver")).startswith("gcs") else spec


def _s3() -> dict[str, Any]:
    """Returns the S3 settings that TensorStore does not read from the environment itself."""
    found: dict[str, Any] = {}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        found = {"endpoint": endpoint.rstrip("/"), "aws_region": region}
    if "AWS_ACCESS_KEY_ID" in os.environ:
        found["aws_credentials"] = {"type": "environment"}
    return found


tensorstore_utils.build_kvstore_tspec = build_kvstore_tspec
