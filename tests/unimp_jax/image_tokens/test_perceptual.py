"""LPIPS against the same computed by torch, from files as they are published."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from unimp_jax.image_tokens.perceptual import LPIPS, STAGES, apart, tower_distance
from unimp_jax.interop.layout import WeightsError
from unimp_jax.interop.lpips import read_lpips
from unimp_jax.model.layers import DTypes, Loop
from unimp_jax.model.vision import VisionConfig, VisionTower

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def weights():
    """VGG-16 as torchvision numbers it, and a weight for each channel, at random."""
    draw, vgg, linear, inputs, number = torch.Generator().manual_seed(0), {}, {}, 3, 0
    for stage, (width, count) in enumerate(STAGES):
        for _ in range(count):
            vgg[f"features.{number}.weight"] = torch.randn((width, inputs, 3, 3), generator=draw) * (9 * inputs) ** -0.5
            vgg[f"features.{number}.bias"] = 0.1 * torch.randn(width, generator=draw)
            inputs, number = width, number + 2
        linear[f"lin{stage}.model.1.weight"] = torch.rand((1, width, 1, 1), generator=draw)
        number += 1
    return vgg, linear


def lpips_of_torch(vgg, linear, one, other):
    """arXiv:1801.03924, equation 1."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1)

    def features(x):
        x, seen, number = (x - shift) / scale, [], 0
        for _, count in STAGES:
            for _ in range(count):
                x = torch.relu(
                    torch.nn.functional.conv2d(
                        x, vgg[f"features.{number}.weight"], vgg[f"features.{number}.bias"], padding=1
                    )
                )
                number += 2
            seen.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
            x, number = torch.nn.functional.max_pool2d(x, 2), number + 1
        return seen

    pairs = zip(features(one), features(other), strict=True)
    distances = [
        torch.nn.functional.conv2d((a - b).square(), linear[f"lin{stage}.model.1.weight"]).mean((1, 2, 3))
        for stage, (a, b) in enumerate(pairs)
    ]
    return sum(distances).mean()


def images(size):
    return np.random.default_rng(0).uniform(-1, 1, (2, 2, size, size, 3)).astype(np.float32)


def test_lpips_from_its_two_files_and_from_a_taming_checkpoint(weights, tmp_path):
    vgg, linear = weights
    torch.save(vgg | {"classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "vgg16.pth")
    torch.save(linear, tmp_path / "vgg.pth")
    slices = {0: 1, 2: 1, 5: 2, 7: 2, 10: 3, 12: 3, 14: 3, 17: 4, 19: 4, 21: 4, 24: 5, 26: 5, 28: 5}
    root, inside = "loss.perceptual_loss.", {}
    for key, array in vgg.items():
        number, kind = key.split(".")[1:]
        inside[f"{root}net.slice{slices[int(number)]}.{number}.{kind}"] = array
    inside |= {f"{root}{key}": array for key, array in linear.items()}
    torch.save({"state_dict": inside | {"encoder.conv_in.bias": torch.zeros(3)}}, tmp_path / "last.ckpt")
    one, other = images(32)
    expected = lpips_of_torch(vgg, linear, *(torch.tensor(x).permute(0, 3, 1, 2) for x in (one, other)))
    distance = nnx.jit(LPIPS.distance)
    for files in (("vgg16.pth", "vgg.pth"), ("last.ckpt",)):
        model = read_lpips([tmp_path / file for file in files])
        assert distance(model, one, other) == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(WeightsError, match="arrays required by the geometry are missing"):
        read_lpips([tmp_path / "vgg16.pth"])
    with pytest.raises(WeightsError, match="is also in"):
        read_lpips([tmp_path / "vgg.pth", tmp_path / "vgg.pth"])


def test_distance_in_a_tower_is_0_of_equal_images_and_has_a_gradient():
    config = VisionConfig(image_size=16, patch_size=8, width=8, layers=1, heads=2, mlp_width=8)
    tower = nnx.jit(lambda: VisionTower(config, DTypes(), Loop(), nnx.Rngs(0)))()
    one, other = images(32)
    assert tower_distance(tower, one, one) == 0
    distance, gradient = jax.jit(jax.value_and_grad(lambda one: tower_distance(tower, one, other)))(one)
    assert distance > 0
    assert np.isfinite(gradient).all()
    assert gradient.any()


@pytest.mark.parametrize("colours", ["clip", "siglip"])
def test_a_tower_sees_the_colours_that_it_was_trained_on(colours):
    """The tower itself normalises uint8 images; those from -1 to 1 are normalised alike."""
    config = VisionConfig(image_size=16, patch_size=8, width=8, layers=1, heads=2, mlp_width=8, colours=colours)
    tower = nnx.jit(lambda: VisionTower(config, DTypes(), Loop(), nnx.Rngs(0)))()
    one, other = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), np.uint8)
    expected = apart(tower(jnp.asarray(one)), tower(jnp.asarray(other))).sum(axis=-1).mean()
    distance = tower_distance(tower, *(jnp.asarray(x / 127.5 - 1, jnp.float32) for x in (one, other)))
    np.testing.assert_allclose(distance, expected, rtol=1e-5)
