"""Kernels of attention against the plain one: the same output and gradients, with one device and on meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimp_jax.model import kernels
from unimp_jax.model.attention import alibi, alibi_slopes, attend, attention, kernel_for, segment_mask
from unimp_jax.model.axes import platform
from unimp_jax.model.kernels import cudnn, with_alibi
from unimp_jax.sharding import MeshConfig, make_mesh


def qkv(rng, B, T, S, H, K, h):
    return tuple(jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((B, T, H, h), (B, S, K, h), (B, S, K, h)))


def packed_rows(rng, B, T):
    """(segment ids, positions), int32 [B, T], each row's end empty."""
    ids, positions = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    for row in range(B):
        ends = np.sort(rng.choice(np.arange(1, T - 5), 3, replace=False))
        for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True), start=1):
            ids[row, start:end], positions[row, start:end] = number, np.arange(end - start)
    return jnp.asarray(ids), jnp.asarray(positions)


def causal_mask(ids):
    return segment_mask(ids, ids, "xla", causal=True).mask_BTS


def assert_equal_with_gradients(one, other, arguments, atol):
    weights = jnp.asarray(np.random.default_rng(0).normal(size=arguments[0].shape), jnp.float32)  # as the queries'

    def with_gradients(function):
        def weighted(*x):
            out = function(*x)
            return (out * weights).sum(), out

        (_, out), gradients = jax.jit(jax.value_and_grad(weighted, (0, 1, 2), has_aux=True))(*arguments)
        return out, *gradients

    for mine, plain in zip(with_gradients(one), with_gradients(other), strict=True):
        np.testing.assert_allclose(mine, plain, atol=atol)


@pytest.mark.parametrize("use_alibi", [False, True])
@pytest.mark.parametrize(("H", "K", "h"), [(4, 4, 16), (4, 2, 24)])
def test_splash_equals_plain_attention_of_packed_rows(use_alibi, H, K, h):
    rng = np.random.default_rng(1)
    ids, positions = packed_rows(rng, 2, 256)
    costs = positions if use_alibi else None
    bias = alibi(positions, positions, H) if use_alibi else None
    mask = segment_mask(ids, ids, "splash", causal=True, alibi_positions_BT=costs)
    assert mask.mask_BTS is None
    assert_equal_with_gradients(
        lambda *x: attention(*x, mask),
        lambda *x: attend(*x, causal_mask(ids), bias),
        qkv(rng, 2, 256, 256, H, K, h),
        atol=1e-4,  # sums in another order; ALiBi adds numbers of up to 100 that cancel in the softmax
    )


def test_splash_equals_plain_attention_to_images():
    rng = np.random.default_rng(2)
    images = jnp.asarray(np.sort(rng.integers(-1, 4, (2, 128)), axis=1), jnp.int32)
    keys = jnp.broadcast_to(jnp.repeat(jnp.arange(1, 5), 64), (2, 256))
    array = jnp.repeat(images[..., None] == jnp.arange(4), 64, axis=-1)
    mask = segment_mask(images + 1, keys, "splash")
    assert_equal_with_gradients(
        lambda *x: attention(*x, mask), lambda *x: attend(*x, array), qkv(rng, 2, 128, 256, 2, 2, 16), atol=1e-5
    )


@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 2, "tensor": 4}, {"fsdp": 2, "context": 2, "tensor": 2}])
def test_splash_on_a_mesh_equals_one_device(mesh):
    rng = np.random.default_rng(3)
    ids, positions = packed_rows(rng, 8, 256)
    arguments = qkv(rng, 8, 256, 256, 4, 4, 8)
    with jax.set_mesh(make_mesh(MeshConfig(**mesh))):
        assert_equal_with_gradients(
            lambda *x: attention(*x, segment_mask(ids, ids, "splash", causal=True, alibi_positions_BT=positions)),
            lambda *x: attend(*x, causal_mask(ids), alibi(positions, positions, 4)),
            arguments,
            atol=1e-4,  # as above
        )


def test_splash_of_rows_of_any_length():
    ids = packed_rows(np.random.default_rng(7), 2, 100)[0]
    mask = segment_mask(ids, ids, "splash", causal=True)
    assert_equal_with_gradients(
        lambda *x: attention(*x, mask), lambda *x: attend(*x, causal_mask(ids)),
        qkv(np.random.default_rng(7), 2, 100, 100, 2, 1, 8), atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("use_alibi", [False, True])
@pytest.mark.parametrize(("T", "H", "K", "h"), [(256, 2, 2, 16), (200, 4, 2, 20), (128, 1, 1, 72)])
def test_triton_equals_plain_attention_of_packed_rows(use_alibi, T, H, K, h):
    """Interpreted, with heads that the kernel fills up to a power of 2, and to wider ones with smaller tiles."""
    rng = np.random.default_rng(9)
    ids, positions = packed_rows(rng, 2, T)
    mask = segment_mask(ids, ids, "triton", causal=True, alibi_positions_BT=positions if use_alibi else None)
    assert mask.mask_BTS is None
    bias = alibi(positions, positions, H) if use_alibi else None
    assert_equal_with_gradients(
        lambda *x: attention(*x, mask), lambda *x: attend(*x, causal_mask(ids), bias), qkv(rng, 2, T, T, H, K, h),
        atol=1e-4,  # as splash's
    )  # fmt: skip


def test_triton_in_bfloat16_and_exact_zeros_of_padding():
    rng = np.random.default_rng(10)
    ids, _ = packed_rows(rng, 2, 128)
    narrow = tuple(x.astype(jnp.bfloat16) for x in qkv(rng, 2, 128, 128, 2, 2, 32))
    mask = segment_mask(ids, ids, "triton", causal=True)

    def of(function):
        @jax.jit
        def both(*x):
            out, back = jax.vjp(function, *x)
            return out, *back(jnp.ones_like(out))

        return [np.asarray(x, np.float32) for x in both(*narrow)]

    plains = of(lambda *x: attend(*x, causal_mask(ids)))
    for one, plain in zip(of(lambda *x: attention(*x, mask)), plains, strict=True):
        np.testing.assert_allclose(one, plain, atol=0.03)  # numbers of up to 4 in bfloat16's 8 bits
        assert not one[np.asarray(ids) == 0].any()


@pytest.mark.parametrize("mesh", [{"data": 8}, {"fsdp": 2, "tensor": 4}, {"data": 2, "context": 2, "tensor": 2}])
def test_triton_on_a_mesh_equals_one_device(mesh):
    """Two key heads of four are repeated before they are split over devices; split rows are left to another kernel."""
    rng = np.random.default_rng(11)
    ids, positions = packed_rows(rng, 8, 128)
    with jax.set_mesh(make_mesh(MeshConfig(**mesh))):
        mask = segment_mask(ids, ids, "triton", causal=True, alibi_positions_BT=positions)
        assert mask.kernel == ("xla" if "context" in mesh else "triton")
        assert_equal_with_gradients(
            lambda *x: attention(*x, segment_mask(ids, ids, "triton", causal=True, alibi_positions_BT=positions)),
            lambda *x: attend(*x, causal_mask(ids), alibi(positions, positions, 4)),
            qkv(rng, 8, 128, 128, 4, 2, 8),
            atol=1e-4,  # as splash's
        )


def sides(jaxpr):
    """The last two sides of each array that a program makes, those within kernels left out."""
    for equation in jaxpr.eqns:
        yield from (x.aval.shape[-2:] for x in equation.outvars if x.aval.ndim > 1)
        if equation.primitive.name != "pallas_call":
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                yield from sides(getattr(inner, "jaxpr", inner)) if hasattr(inner, "eqns") else ()


@pytest.mark.parametrize("use_alibi", [False, True])
def test_triton_makes_no_array_of_all_pairs_of_tokens(use_alibi):
    T = 384  # of no other size
    ids, positions = packed_rows(np.random.default_rng(12), 1, T)

    def gradient(kernel):
        def total(*x):
            costs = positions if use_alibi else None
            return attention(*x, segment_mask(ids, ids, kernel, causal=True, alibi_positions_BT=costs)).sum()

        return jax.make_jaxpr(jax.grad(total, (0, 1, 2)))(*qkv(np.random.default_rng(12), 1, T, T, 2, 1, 16)).jaxpr

    assert (T, T) in set(sides(gradient("cudnn")))
    assert (T, T) not in set(sides(gradient("triton")))


@pytest.mark.parametrize("kind", ["NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3"])
def test_triton_is_lowered_for_gpus(kind):
    """Forward, and a backward pass of two kernels, by Triton; the program outside of them has no array [T, T]."""
    from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

    T, ids = 384, jnp.ones((1, 384), jnp.int32)
    arguments = [jax.ShapeDtypeStruct((1, T, heads, 128), jnp.bfloat16) for heads in (4, 2, 2)]

    def total(*x):
        assert segment_mask(ids, ids, "triton").kernel == "cudnn"  # which attends to images
        return attention(*x, segment_mask(ids, ids, "triton", causal=True, alibi_positions_BT=ids)).sum()

    device = AbstractDevice(kind, 108, "gpu")
    with use_abstract_mesh(AbstractMesh((1,), ("data",), abstract_device=device)):
        assert platform() == "gpu"
        traced = jax.jit(jax.grad(total, (0, 1, 2))).trace(*arguments)
        program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert program.count("custom_call @__gpu$xla.gpu.triton") == 3
    assert f"x{T}x{T}x" not in program


def test_triton_leaves_heads_too_wide_to_xla():
    ids, _ = packed_rows(np.random.default_rng(13), 1, 64)
    arguments = qkv(np.random.default_rng(13), 1, 64, 64, 1, 1, 136)
    assert not kernels.triton_fits(arguments[0])
    assert kernels.triton_fits(arguments[0].astype(jnp.bfloat16), kernels.ALIBI_CHANNELS)
    mask = segment_mask(ids, ids, "triton", causal=True)
    np.testing.assert_allclose(attention(*arguments, mask), attend(*arguments, causal_mask(ids)), atol=1e-6)


def test_where_splash_has_no_tiles_xla_does_it():
    ids = jnp.ones((2, 192), jnp.int32)
    assert segment_mask(ids, ids[:, :0], "splash").kernel == "xla"
    with jax.set_mesh(make_mesh(MeshConfig(context=8))):
        assert segment_mask(ids, ids, "splash").kernel == "xla"


@pytest.mark.parametrize("costs", ["none", "bias", "channels"])
def test_what_cudnn_is_given_makes_plain_attention(costs):
    """The mask, the bias and the channels of ALiBi, computed by XLA: cuDNN itself needs a GPU."""
    rng = np.random.default_rng(4)
    ids, positions = packed_rows(rng, 2, 64)
    bias = None if costs == "none" else alibi(positions, positions, 4)
    given = {"alibi": (positions, alibi_slopes(4))} if costs == "channels" else {"bias": bias}
    assert_equal_with_gradients(
        lambda *x: cudnn(*x, causal_mask(ids), **given, implementation="xla"),
        lambda *x: attend(*x, causal_mask(ids), bias),
        qkv(rng, 2, 64, 64, 4, 2, 16),
        atol=1e-5,
    )


def test_what_cudnn_is_given_without_a_mask_makes_plain_attention():
    assert_equal_with_gradients(
        lambda *x: cudnn(*x, None, implementation="xla"), lambda *x: attend(*x, None),
        qkv(np.random.default_rng(8), 2, 17, 17, 2, 2, 16), atol=1e-5,
    )  # fmt: skip


def test_alibi_is_channels_where_cudnn_has_heads_so_wide(monkeypatch):
    """Heads of 128 get 8 more channels on Hopper, and a bias before; narrow ones always get channels."""
    narrow, wide = (jnp.zeros((1, 8, 2, h), jnp.bfloat16) for h in (64, 128))
    for widest, fits in ((128, False), (256, True)):
        monkeypatch.setattr(kernels, "cudnn_widest", lambda widest=widest: widest)
        assert kernels.cudnn_fits(wide, wide, kernels.ALIBI_CHANNELS) == fits
        assert kernels.cudnn_fits(narrow, narrow, kernels.ALIBI_CHANNELS)
        assert kernels.cudnn_fits(wide, wide)


@pytest.mark.skipif(platform() != "gpu", reason="cuDNN needs an NVIDIA GPU")
@pytest.mark.parametrize("use_alibi", [False, True])
def test_cudnn_equals_plain_attention(use_alibi):
    rng = np.random.default_rng(5)
    ids, positions = packed_rows(rng, 2, 256)
    arguments = tuple(x.astype(jnp.bfloat16) for x in qkv(rng, 2, 256, 256, 4, 4, 64))
    mask = segment_mask(ids, ids, "cudnn", causal=True, alibi_positions_BT=positions if use_alibi else None)
    plain = mask._replace(kernel="xla")
    exact = attention(*arguments, plain).astype(jnp.float32)
    np.testing.assert_allclose(attention(*arguments, mask).astype(jnp.float32), exact, atol=0.05)  # bfloat16's 8 bits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_alibi_in_channels_is_exact(dtype):
    """In bfloat16 too: slopes and positions are cut into parts that it can hold."""
    positions = jnp.asarray([[0, 1, 255, 256, 257, 1023, 2047, 65535]], jnp.int32)
    nothing = jnp.zeros((1, 8, 12, 2), dtype)
    q, k = with_alibi(nothing, nothing, positions, alibi_slopes(12))
    exact = (x.astype(jnp.float32) for x in (q, k))
    product = jnp.einsum("bthc,bshc->bhts", *exact, precision="highest")
    expected = alibi_slopes(12)[:, None, None] * positions[:, None, None].astype(np.float32)
    np.testing.assert_allclose(product, np.broadcast_to(expected, product.shape), rtol=1e-6)


def test_the_kernel_is_the_platforms():
    assert kernel_for("auto") == {"tpu": "rows", "gpu": "cudnn", "cpu": "xla"}[platform()]
    assert kernel_for("splash") == "splash"
