"""The kernel of whole rows against plain attention: the same output and gradients, with one device and on meshes."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.unimp_jax.test_kernels import assert_equal_with_gradients, causal_mask, packed_rows, qkv
from unimp_jax.model import row_kernel
from unimp_jax.model.attention import alibi, alibi_slopes, attend, attend_to_all, attention, segment_mask
from unimp_jax.model.row_kernel import Alibi, Segments, fits, row_attention
from unimp_jax.planning.chips import Slices, devices
from unimp_jax.sharding import MeshConfig, make_mesh


@pytest.fixture
def small_tiles(monkeypatch):
    """Rows of a few hundred tokens are several tiles."""
    monkeypatch.setattr(row_kernel, "TILES", (128,))


@pytest.mark.parametrize(("T", "S", "H", "h"), [(17, 17, 4, 64), (5, 12, 3, 48), (9, 9, 2, 128)])
def test_rows_without_a_mask(T, S, H, h):
    """CLIP's rows are of one token more than whole tiles, and some heads are not as wide as a block."""
    arguments = qkv(np.random.default_rng(0), 2, T, S, H, H, h)
    assert_equal_with_gradients(row_attention, lambda *x: attend(*x, None), arguments, atol=1e-5)


@pytest.mark.parametrize("use_alibi", [False, True])
@pytest.mark.parametrize(("H", "K", "h"), [(4, 4, 16), (4, 2, 128)])
def test_packed_rows_in_tiles(small_tiles, use_alibi, H, K, h):
    rng = np.random.default_rng(1)
    ids, positions = packed_rows(rng, 2, 256)
    costs = Alibi(positions, alibi_slopes(H)) if use_alibi else None
    assert_equal_with_gradients(
        lambda *x: row_attention(*x, Segments(ids, ids), costs, causal=True),
        lambda *x: attend(*x, causal_mask(ids), alibi(positions, positions, H) if use_alibi else None),
        qkv(rng, 2, 256, 256, H, K, h),
        atol=1e-4,  # sums in another order; ALiBi adds numbers of up to 100 that cancel in the softmax
    )


def test_text_to_images(small_tiles):
    """Tokens ahead of the first image have no keys: they get 0 and give no gradient."""
    rng = np.random.default_rng(2)
    images = jnp.asarray(np.sort(rng.integers(-1, 4, (2, 128)), axis=1), jnp.int32)
    keys = jnp.broadcast_to(jnp.repeat(jnp.arange(1, 5), 64), (2, 256))
    array = jnp.repeat(images[..., None] == jnp.arange(4), 64, axis=-1)
    assert_equal_with_gradients(
        lambda *x: row_attention(*x, Segments(images + 1, keys)), lambda *x: attend(*x, array),
        qkv(rng, 2, 128, 256, 2, 2, 16), atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("mesh", [{"data": 8}, {"fsdp": 2, "data": 2, "tensor": 2}])
def test_on_a_mesh_it_equals_one_device(mesh):
    rng = np.random.default_rng(3)
    ids, positions = packed_rows(rng, 8, 64)
    with jax.set_mesh(make_mesh(MeshConfig(**mesh))):
        assert_equal_with_gradients(
            lambda *x: attention(*x, segment_mask(ids, ids, "rows", causal=True, alibi_positions_BT=positions)),
            lambda *x: attend(*x, causal_mask(ids), alibi(positions, positions, 4)),
            qkv(rng, 8, 64, 64, 4, 4, 8),
            atol=1e-4,  # as above
        )


def test_images_lie_on_all_devices_of_a_row():
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=2, data=2, tensor=2))):
        arguments = qkv(np.random.default_rng(4), 8, 17, 17, 4, 4, 16)
        assert_equal_with_gradients(
            lambda *x: row_attention(*x, rows="images"), lambda *x: attend(*x, None), arguments, atol=1e-5
        )


def test_what_does_not_fit_is_left_to_others():
    rng = np.random.default_rng(5)
    q, k, _ = qkv(rng, 1, 512, 515, 4, 2, 64)
    assert not fits(q, k[:, :512])  # heads that share keys are not whole blocks
    assert not fits(q[:, :, :2], k)  # nothing divides 515 keys
    assert fits(q[:, :, :2], k[:, :512])
    with jax.set_mesh(make_mesh(MeshConfig(context=8))):
        assert not fits(q[:, :, :2], k[:, :512])
    ids = jnp.ones((1, 512), jnp.int32)
    arguments = qkv(rng, 1, 512, 512, 4, 2, 8)
    by_splash = attention(*arguments, segment_mask(ids, ids, "rows"))
    np.testing.assert_allclose(by_splash, attend(*arguments, None), atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_kernels_compile_for_tpus():
    """Forward and backward, of images and of packed rows in several tiles."""
    mesh = make_mesh(MeshConfig(), devices(Slices("v5e-1")))
    place = NamedSharding(mesh, PartitionSpec())

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    def loss(images, rows, ids, positions):
        seen = attend_to_all(images, images, images, "images")
        costs = Alibi(positions, alibi_slopes(1))
        read = row_attention(rows, rows, rows, Segments(ids, ids), costs, causal=True)
        return seen.astype(jnp.float32).sum() + read.astype(jnp.float32).sum()

    images, rows = array(jnp.bfloat16, 1, 257, 2, 64), array(jnp.bfloat16, 1, 1024, 1, 128)
    ids = array(jnp.int32, 1, 1024)
    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss, (0, 1))).lower(images, rows, ids, ids).compile().as_text()
    assert text.count("tpu_custom_call") == 2  # the gradient of a sum needs no forward pass
