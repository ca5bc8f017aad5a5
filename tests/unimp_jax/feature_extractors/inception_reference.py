"""Random weights for Inception v3, and what the reference implementation of the FID makes of them.

`tests/golden/inception.npz` was written by this file, with pytorch-fid 0.3.0 and torchvision 0.28.0 on torch 2.13.0:

    pip install --no-deps --target reference pytorch-fid==0.3.0 torchvision==0.28.0
    PYTHONPATH=reference python -m tests.unimp_jax.feature_extractors.inception_reference tests/golden/inception.npz

They stay out of the environment of the tests. torchvision comes as a build for CUDA; beside a torch for CPUs it lacks
its operators, of which Inception needs none, and what finds it installed (transformers) fails.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def random_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Of every array by its name alone, so that the order of names does not matter; scaled so that features neither
    vanish nor grow from layer to layer."""
    weights = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith("conv.weight"):
            drawn = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        elif name.endswith(("bn.weight", "bn.running_var")):
            drawn = rng.uniform(0.7, 1.4, shape)
        else:
            drawn = rng.normal(0, 0.2, shape)
        weights[name] = drawn.astype(np.float32)
    return weights


def random_images() -> np.ndarray:
    """uint8 [2, 20, 20, 3]: noise, and a gradient."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3))
    gradient = np.add.outer(np.arange(20) * 9, np.arange(60) * 1).reshape(20, 20, 3)
    return np.stack([noise, gradient]).astype(np.uint8)


def reference_features(images: np.ndarray) -> np.ndarray:
    """float32 [N, 2048], by pytorch-fid's own class."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):  # without which torchvision cannot be imported
        library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    import pytorch_fid.inception as reference

    def load(*_, **__):
        made = reference._inception_v3(num_classes=1008, aux_logits=False, weights=None)
        shapes = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items() if "tracked" not in name}
        return {name: torch.from_numpy(array) for name, array in random_weights(shapes).items()}

    reference.load_state_dict_from_url = load  # in the place of the download
    torch.nn.Module.load_state_dict.__defaults__ = (False, False)
    model = reference.InceptionV3([3]).eval()
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        return model(scaled)[0].squeeze(3).squeeze(2).numpy()


if __name__ == "__main__":
    np.savez_compressed(Path(sys.argv[1]), features=reference_features(random_images()))
