"""The FID's Inception v3 against pytorch-fid's, whose features of random weights are in a golden file."""

from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from tests.unimp_jax.feature_extractors.inception_reference import random_images, random_weights
from unimp_jax.feature_extractors import Inception
from unimp_jax.interop.feature_extractors import inception_table, read_inception
from unimp_jax.interop.layout import WeightsError, placements, shapes_of

GOLDEN = Path(__file__).parents[2] / "golden" / "inception.npz"


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    shapes = shapes_of(lambda: Inception(nnx.Rngs(0)))
    drawn = random_weights({piece.key: piece.their_shape for piece in placements(inception_table(), shapes)})
    return drawn | {"fc.weight": np.zeros((1008, 2048), np.float32)}  # of no use here


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    save_file(weights, path)
    return path


def test_features_are_the_reference_implementations(file):
    expected = np.load(GOLDEN)["features"]
    found = np.asarray(nnx.jit(lambda model, images: model(images))(read_inception(file), random_images()))
    assert found.shape == expected.shape == (2, 2048)
    # Sums of up to 3,456 products, one behind the other in some twenty layers, in another order.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_what_is_no_inception_is_refused(weights, tmp_path):
    save_file({name: array for name, array in weights.items() if "7c" not in name}, tmp_path / "cut.safetensors")
    with pytest.raises(
        WeightsError, match=r"45 arrays required by the geometry are missing: Mixed_7c\.branch1x1\.bn\.bias"
    ):
        read_inception(tmp_path / "cut.safetensors")
    wide = weights | {"Mixed_7c.branch1x1.bn.bias": np.zeros(3, np.float32)}
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(WeightsError, match=r"branch1x1\.bn\.bias has shape \(3,\), but the geometry requires \(320,\)"):
        read_inception(tmp_path / "wide.safetensors")
