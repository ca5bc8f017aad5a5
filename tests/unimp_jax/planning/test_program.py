"""Compiled programs, read: what is counted is what was written, loop by loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from unimp_jax.planning.chips import Slices
from unimp_jax.planning.program import arrays, read_program
from unimp_jax.planning.traffic import Sent, axes_of, collectives, group_of, kept_bytes, memory_bytes
from unimp_jax.sharding import MeshConfig, make_mesh


def compiled_text(function, *shapes, shardings=None):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function, in_shardings=shardings).lower(*arguments).compile().as_text()


def exchanging(mesh, times):
    """A gather over fsdp and a sum over data, in a loop."""

    def each(x):  # [4, 8] on each device
        def body(carry, _):
            whole = jax.lax.all_gather(x * carry.sum(), "fsdp", axis=0, tiled=True)  # [16, 8]
            return jax.lax.psum(whole.sum(0) + carry, "data"), None

        return jax.lax.scan(body, jnp.ones(8), None, length=times)[0]

    spec = PartitionSpec(("data", "fsdp"))
    return jax.shard_map(each, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(), check_vma=False)


@pytest.mark.parametrize("times", [5, 24])
def test_collectives_are_counted_as_often_as_they_run(times):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    sharding = (NamedSharding(mesh, PartitionSpec(("data", "fsdp"))),)
    program = read_program(compiled_text(exchanging(mesh, times), (32, 8), shardings=sharding))
    sums = {one.axes: (one.kind, one.bytes) for one in collectives(program, mesh)}
    # A gather of 4 parts of 4 x 8 floats: each device sends its part to 3. A sum of 8 floats in a ring of 2.
    assert sums == {("fsdp",): ("all-gather", times * 3 * 4 * 8 * 4), ("data",): ("all-reduce", times * 8 * 4)}


def test_what_crosses_slices_is_a_send():
    text = (
        "ENTRY %main (x: f32[256]) -> f32[256] {\n"
        "  %x = f32[256]{0} parameter(0)\n  %t = token[] after-all()\n"
        "  %send = (f32[256]{0:T(256)}, u32[], token[]) send(%x, %t), channel_id=2, is_host_transfer=true, "
        'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
        '_xla_megascale_transfer_type="ALL_REDUCE"}\n}\n'
    )
    mesh = make_mesh(MeshConfig(slice=2, fsdp=4))
    assert collectives(read_program(text), mesh) == [Sent("all-reduce", ("slice",), 1024)]


def test_loops_in_loops_multiply():
    def function(x):
        def outer(carry, _):
            return jax.lax.fori_loop(0, 7, lambda _, y: jnp.sin(y @ y), carry), None

        return jax.lax.scan(outer, x, None, length=3)[0]

    program = read_program(compiled_text(function, (64, 64)))
    assert 21 in program.runs.values()
    # Each of the 21 products reads two matrices and writes one; XLA may do a little besides.
    least = 21 * 3 * 64 * 64 * 4
    assert least <= memory_bytes(program) <= 4 * least


def test_what_forward_loops_keep_is_found():
    def loss(w, x):
        return jax.lax.scan(lambda y, _: (jnp.sin(y * w), None), x, None, length=12)[0].sum()

    program = read_program(compiled_text(jax.grad(loss), (), (32, 16)))
    # Of each step, what sin and the product need in the backward pass: one or two arrays like x.
    assert 12 * 32 * 16 * 4 <= kept_bytes(program) <= 3 * 12 * 32 * 16 * 4


def test_outputs_as_xla_writes_them():
    text = "(bf16[4,1024]{1,0:T(8,128)(2,1)S(1)}, f32[]{:T(128)}, /*index=5*/pred[3]{0})"
    first, scalar, flags = arrays(text)
    assert (first.shape, first.bytes, first.in_memory) == ((4, 1024), 8192, False)
    assert (scalar.shape, scalar.bytes, scalar.in_memory) == ((), 4, True)
    assert flags.bytes == 3


@pytest.mark.parametrize(
    ("attributes", "axes"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, x", ("fsdp",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", ("data",)),
        ("replica_groups=[1,8]<=[8], x", ("data", "fsdp")),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, x", ("fsdp",)),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a'}, x", ("data",)),
    ],
)
def test_groups_in_all_of_xlas_notations(attributes, axes):
    assert axes_of(group_of("all-reduce", attributes, 8), make_mesh(MeshConfig(data=2, fsdp=4))) == axes


def test_permutations_lie_along_an_axis():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    pairs = "source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}, x"
    np.testing.assert_array_equal(group_of("collective-permute", pairs, 8), [0, 1, 2, 3])
    assert axes_of(group_of("collective-permute", pairs, 8), mesh) == ("fsdp",)


def test_slices_by_name():
    assert (Slices("v5e-16").chips, Slices("v5p-64").chips, Slices("v5p-64", 2).chips) == (16, 32, 64)
    assert Slices("v6e-256").chips == 256
    assert Slices("v5litepod-16") == Slices("v5e-16")  # as Google's command line names it
    for wrong, says in (("v4-8", "unknown chip v4"), ("v5e-17", "v5e-16"), ("v5p-3", "v5p-8"), ("v5e", "not a slice")):
        with pytest.raises(ValueError, match=says):
            Slices(wrong)
