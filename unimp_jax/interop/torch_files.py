"""Files that torch wrote, read as tensors and nothing else: what they hold is never run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from unimp_jax.interop.layout import WeightsError
from unimp_jax.interop.stand_ins import refuse_stand_in
from unimp_jax.interop.weights import reason


class TorchFiles:
    """`.pt` or `.bin` files, read as tensors and nothing else (`weights_only`), mapped into memory where possible."""

    def __init__(self, paths: Iterable[Path], name: str):
        """
        Raises:
          WeightsError: torch is not installed; a file is missing, truncated, or has anything but tensors; two have
            the same key.
        """
        self.name = name
        self._tensors: dict[str, Any] = {}
        for path in paths:
            for key, tensor in tensors_of(load_torch(path)).items():
                if key in self._tensors:
                    raise WeightsError(f"{path}: {key} is in another shard as well")
                self._tensors[key] = tensor
        if not self._tensors:
            raise WeightsError(f"{name}: no tensors in it")

    def keys(self) -> Iterable[str]:
        return self._tensors

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensors[key].shape)

    def kind(self, key: str) -> str:
        import torch

        tensor = self._tensors[key]
        kind = str(tensor.dtype).removeprefix("torch.")
        if tensor.is_meta:
            return f"{kind} without values"
        return kind if tensor.layout is torch.strided else f"sparse {kind}"

    def read(self, key: str) -> np.ndarray:
        import torch

        tensor = self._tensors[key].detach()
        if tensor.dtype == torch.bfloat16:
            return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    def order(self, key: str) -> int:
        return 0


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
