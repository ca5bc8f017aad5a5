"""Eight devices compute what one does, and a mesh that does not fit is refused in words."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from flax import nnx

from tests.unimp_jax.test_model import random_batch, small_config
from unimp_jax.model import PARTS, part_of
from unimp_jax.objective import count_answers, token_losses
from unimp_jax.sharding import MeshConfig, batch_sharding, check_rows, check_tokens, init_model, make_mesh, row_shards

ONE = MeshConfig()
MESHES = {
    "data=8": MeshConfig(data=8),
    "fsdp=8": MeshConfig(fsdp=-1),
    "fsdp=4 tensor=2": MeshConfig(fsdp=4, tensor=2),
    "context=8": MeshConfig(context=8),
    "data=2 tensor=4": MeshConfig(data=2, tensor=4),
    "data=2 fsdp=2 context=2": MeshConfig(data=2, fsdp=2, context=2),
    "fsdp=2 context=2 tensor=2": MeshConfig(fsdp=2, context=2, tensor=2),
    "slice=2 fsdp=2 tensor=2": MeshConfig(slice=2, fsdp=2, tensor=2),
}


def with_gates_open(model):
    """Gates start at 0, behind which nothing could be seen."""
    if model.gated is None:
        return model
    model.gated.attention_gate[...] += 0.5
    model.gated.mlp_gate[...] += 0.5
    return model


def logits_and_gradients(mesh_config, devices, form="last_image"):
    config = dataclasses.replace(small_config(form), remat="dots")
    mesh = make_mesh(mesh_config, devices)
    with jax.set_mesh(mesh):
        model = with_gates_open(init_model(config, mesh, seed=3))
        graph, trainable, frozen = nnx.split(model, lambda path, _: part_of(path) != "vision", ...)
        batch = jax.device_put(random_batch(np.random.default_rng(0), config, rows=8), batch_sharding(mesh))

        def loss(trainable, frozen, batch):
            logits = nnx.merge(graph, trainable, frozen)(batch)
            losses = token_losses(logits, batch.answer_targets, 2.0)[0]
            return (batch.answer_weights * losses).sum() / count_answers(batch.answer_weights), logits

        (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(trainable, frozen, batch)
    return trainable, logits, gradients


@pytest.fixture(scope="module")
def on_one():
    return logits_and_gradients(ONE, jax.devices()[:1])


@pytest.fixture(scope="module")
def tokens_on_one():
    return logits_and_gradients(ONE, jax.devices()[:1], "interleaved")


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_equal_one(name, on_one):
    check_equal(logits_and_gradients(MESHES[name], jax.devices()), on_one)


@pytest.mark.parametrize("name", ["fsdp=4 tensor=2", "context=8", "data=2 fsdp=2 context=2"])
def test_eight_devices_equal_one_where_images_are_tokens(name, tokens_on_one):
    check_equal(logits_and_gradients(MESHES[name], jax.devices(), "interleaved"), tokens_on_one)


def check_equal(on_eight, on_one):
    parameters, logits, gradients = on_eight
    for ours, single in zip(jax.tree.leaves(parameters), jax.tree.leaves(on_one[0]), strict=True):
        np.testing.assert_array_equal(ours, single)
    np.testing.assert_allclose(logits, on_one[1], atol=1e-5)
    flat = dict(nnx.to_flat_state(gradients))
    for path, single in nnx.to_flat_state(on_one[2]):
        assert np.abs(single[...]).max() > 0, path
        np.testing.assert_allclose(flat[path][...], single[...], atol=1e-5, err_msg=str(path))


def test_fsdp_and_tensor_split_what_they_should():
    mesh = make_mesh(MESHES["fsdp=4 tensor=2"])
    model = init_model(small_config(), mesh, seed=0, blank=PARTS)
    query = model.decoder.layers.attention.query.kernel[...]
    assert query.shape == (2, 2, 32, 4, 8)
    assert query.addressable_shards[0].data.shape == (2, 2, 8, 2, 8)
    assert model.embeddings.base[...].addressable_shards[0].data.shape == (20, 8)


def test_a_mesh_that_does_not_fit_the_devices_is_refused():
    with pytest.raises(ValueError, match="data=3 does not make 8 devices"):
        make_mesh(MeshConfig(data=3))
    with pytest.raises(ValueError, match="data=-1 x fsdp=3 does not make 8 devices"):
        make_mesh(MeshConfig(data=-1, fsdp=3))
    with pytest.raises(ValueError, match="at most one may be -1"):
        MeshConfig(data=-1, fsdp=-1)


def test_a_mesh_that_does_not_fit_the_model_is_refused_by_name():
    with pytest.raises(ValueError, match=r"heads of 4 cannot be split over tensor=8; choose a tensor that divides 4"):
        init_model(small_config(), make_mesh(MeshConfig(tensor=8)), seed=0)
    config = small_config()
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, vocab_size=41))
    with pytest.raises(ValueError, match=r"embeddings/base: its axis vocab of 41 cannot be split over tensor=2"):
        init_model(config, make_mesh(MeshConfig(data=4, tensor=2)), seed=0)


def test_context_splits_the_tokens_of_what_passes_from_layer_to_layer():
    mesh, config = make_mesh(MeshConfig(data=2, context=4)), small_config()
    with jax.set_mesh(mesh):
        model = init_model(config, mesh, seed=0)
        batch = jax.device_put(random_batch(np.random.default_rng(0), config, rows=8), batch_sharding(mesh))
        hidden_BTD = jax.jit(lambda batch: model.hidden(batch))(batch)
    B, T, D = hidden_BTD.shape
    assert {shard.data.shape for shard in hidden_BTD.addressable_shards} == {(B // 2, T // 4, D)}


@pytest.mark.parametrize(
    ("mesh", "processes", "shards"),
    [
        (MeshConfig(data=8), 2, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        (MeshConfig(fsdp=2, tensor=4), 2, [(0,), (1,)]),
        (MeshConfig(context=8), 2, [(0,), (0,)]),
        (MeshConfig(data=2, tensor=4), 4, [(0,), (0,), (1,), (1,)]),
        (MeshConfig(slice=2, data=2, context=2), 8, [(n // 2,) for n in range(8)]),
    ],
)
def test_every_process_loads_the_rows_that_its_devices_work_on(monkeypatch, mesh, processes, shards):
    @dataclasses.dataclass(frozen=True)
    class Device:
        process_index: int

    sizes = dataclasses.asdict(mesh)
    devices = np.array([Device(n * processes // 8) for n in range(8)]).reshape(tuple(sizes.values()))
    made = types.SimpleNamespace(devices=devices, shape=sizes)
    count = sizes["slice"] * sizes["data"] * sizes["fsdp"]
    for process, own in enumerate(shards):
        assert row_shards(made, process) == (own, count)
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert row_shards(made) == (own, count)


def test_tokens_that_context_does_not_divide_are_refused():
    mesh = make_mesh(MeshConfig(data=2, context=4))
    check_tokens(64, mesh)
    with pytest.raises(ValueError, match=r"a row of 66 tokens is not a multiple of context=4; set row_shape.tokens 68"):
        check_tokens(66, mesh)


def test_rows_that_do_not_fill_the_mesh_are_refused():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    check_rows(8, mesh, accumulate=2)
    with pytest.raises(ValueError, match="a batch of 12 rows is not a multiple of 8"):
        check_rows(12, mesh, accumulate=2)
