"""Files that torch wrote, read as tensors and nothing else: what they hold is never run."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from unimp_jax.interop.layout import WeightsError
from unimp_jax.interop.stand_ins import refuse_stand_in
from unimp_jax.interop.weights import Stored, reason


def read_torch(path: Path) -> dict[str, Stored]:
    """The tensors of a `.pt`, `.bin` or `.ckpt` file, mapped into memory where that is possible.

    Raises:
      WeightsError: torch is not installed; the file is missing, truncated, or has none, or anything but tensors.
    """
    tensors = tensors_of(load_torch(path))
    if not tensors:
        raise WeightsError(f"{path}: no tensors in it")

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
    """Stands for a class that checkpoints of PyTorch Lightning before 1.5 name and make no object of."""


CALLBACKS = [
    f"pytorch_lightning.callbacks.{name}"
    for name in ("model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping")
]


def load_torch(path: Path) -> Any:
    """What a file holds, if that is tensors in plain containers.

    Raises:
      WeightsError: it does not; torch's advice to read it all the same, and so to run what is in it, is not handed on.
    """
    refuse_stand_in(path, "torch")
    try:
        import torch
    except ImportError as error:
        raise WeightsError(f"{path}: needs torch: pip install 'unimp_jax[torch]'") from error
    if not path.is_file():
        raise WeightsError(f"{path} does not exist")
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([(Callback, name) for name in CALLBACKS]):
            warnings.simplefilter("ignore")  # they ask to report what weights_only refuses
            try:
                return torch.load(path, mmap=True, **options)
            except RuntimeError as error:
                if "mmap can only be used" not in str(error):
                    raise
                return torch.load(path, **options)  # the format before torch 1.6
    except Exception as error:  # torch raises whatever its readers do
        raise WeightsError(f"{path}: truncated, or with more in it than tensors{why(error)}") from error


def why(error: Exception) -> str:
    """What torch says of a file that it cannot read, without its advice to let the file run its code."""
    told = str(error)
    if found := re.search(r"GLOBAL (\S+)", told):
        return f" (it names {found[1]}, which is code): save its state_dict alone, or as safetensors"
    return "" if "weights_only" in told.lower().replace(" ", "_") else f" ({reason(error)})"


def tensors_of(loaded: Any) -> dict[str, Any]:
    """The state dict in a checkpoint, which may be one or have one inside."""
    import torch

    if not isinstance(loaded, Mapping):
        return {}
    for name in ("model_state_dict", "state_dict", "model"):
        if isinstance(loaded.get(name), Mapping):
            return tensors_of(loaded[name])
    return {key: value for key, value in loaded.items() if isinstance(value, torch.Tensor)}
