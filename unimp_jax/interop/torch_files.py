"""Reads files written by torch as tensors only: code in them is never executed."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from unimp_jax.interop.file_formats import check_file_format
from unimp_jax.interop.layout import WeightsError
from unimp_jax.interop.weights import Stored, reason


def read_torch(path: Path) -> dict[str, Stored]:
    """Returns the tensors of a `.pt`, `.bin` or `.ckpt` file, memory-mapped if possible; raises WeightsError if torch
    is not installed, or the file is missing, truncated, without tensors, or with other objects."""
    tensors = tensors_of(load_torch(path))
    if not tensors:
        raise WeightsError(f"{path}: the file has no tensors")

    import torch

    def kind(tensor: torch.Tensor) -> str:
        name = str(tensor.dtype).removeprefix("torch.")
        if tensor.is_meta:
            return f"{name} without values"
        return name if tensor.layout is torch.strided else f"sparse {name}"

    def read(tensor: torch.Tensor) -> np.ndarray:
        if tensor.dtype == torch.bfloat16:
            return tensor.detach().contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.detach().numpy()

    return {
        key: Stored(tuple(tensor.shape), kind(tensor), functools.partial(read, tensor))
        for key, tensor in tensors.items()
    }


class Callback:
    """Placeholder for classes that checkpoints of PyTorch Lightning before 1.5 name but do not instantiate."""


CALLBACKS = [
    f"pytorch_lightning.callbacks.{name}"
    for name in ("model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping")
]


def load_torch(path: Path) -> Any:
    """Returns the content of a file; raises WeightsError if it contains more than tensors in plain containers. Torch's
    advice to read it anyway, executing its code, is suppressed."""
    check_file_format(path, "torch")
    try:
        import torch
    except ImportError as error:
        raise WeightsError(f"{path}: needs torch: pip install 'unimp_jax[torch]'") from error
    if not path.is_file():
        raise WeightsError(f"{path} does not exist")
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([(Callback, name) for name in CALLBACKS]):
            warnings.simplefilter("ignore")  # warnings ask to report what weights_only refuses
            try:
                return torch.load(path, mmap=True, **options)
            except RuntimeError as error:
                if "mmap can only be used" not in str(error):
                    raise
                return torch.load(path, **options)  # the format before torch 1.6
    except Exception as error:  # torch raises whatever its readers raise
        raise WeightsError(f"{path}: truncated, or not only tensors{why(error)}") from error


def why(error: Exception) -> str:
    """Returns torch's reason why a file cannot be read, without its advice to execute code in the file."""
    message = str(error)
    if found := re.search(r"GLOBAL (\S+)", message):
        return f" (it contains code, {found[1]}); save its state_dict alone, or as safetensors"
    return "" if "weights_only" in message.lower().replace(" ", "_") else f" ({reason(error)})"


def tensors_of(loaded: Any) -> dict[str, Any]:
    """Returns the state dict of a checkpoint, which may be the checkpoint itself or nested in it."""
    import torch

    if not isinstance(loaded, Mapping):
        return {}
    for name in ("model_state_dict", "state_dict", "model"):
        if isinstance(loaded.get(name), Mapping):
            return tensors_of(loaded[name])
    return {key: value for key, value in loaded.items() if isinstance(value, torch.Tensor)}
