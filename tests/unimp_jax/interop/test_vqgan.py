"""VQGANs of diffusers and taming-transformers: the same codes, latents and images, in both directions."""

import dataclasses
import functools
import json
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unimp_jax.image_tokens.vqgan import VQGAN, VQGANConfig
from unimp_jax.interop.importing import ImportConfig, import_weights
from unimp_jax.interop.layout import WeightsError
from unimp_jax.interop.vqgan import described_as, described_by, read_vqgan, table, write_vqgan

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from tests.unimp_jax.interop.taming_reference import Taming, random_state  # noqa: E402

TOLERANCE = 1e-4  # sums of a few hundred products in float32, in another order


GEOMETRIES = [
    VQGANConfig(16, (8, 16), 1, (1,), True, 4, 4, codes=32, code_width=6),
    VQGANConfig(32, (8, 8, 24), 2, (0, 2), True, 5, 8, codes=50, code_width=5),
    VQGANConfig(8, (6, 12), 1, (), False, 3, 3, codes=7, code_width=3),
    VQGANConfig(16, (12,), 3, (0,), True, 4, 2, codes=9, code_width=2),
]
geometries = pytest.mark.parametrize("config", GEOMETRIES, ids=lambda config: f"{len(config.channels)} levels")


def random_model(config):
    """A model of diffusers in which norms and biases are random, too, and codewords lie where latents do."""
    torch.manual_seed(1)
    model = diffusers.VQModel(**{name: value for name, value in described_as(config).items() if name[0] != "_"})
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    with torch.no_grad():
        latents = model.encode(torch.from_numpy(random_images(config)).permute(0, 3, 1, 2)).latents
    model.quantize.embedding.weight.data = some_of(latents.permute(0, 2, 3, 1), config.codes)
    return model.eval()


def some_of(latents, count):
    """So many of the latents [..., Z], a little off."""
    rows = latents.reshape(-1, latents.shape[-1])
    drawn = rows[torch.randint(len(rows), (count,))]
    return drawn + 0.01 * torch.randn_like(drawn)


def new_model(config) -> VQGAN:
    """Drawn by NumPy, norms and biases too: by JAX, a program would be compiled for it."""
    rng = np.random.default_rng(3)

    def draw(path, variable):
        spread = math.prod(variable.shape[:-1]) ** -0.5 if len(variable.shape) > 1 else 0.1
        mean = 1.0 if path[-1] == "scale" else 0.0
        return variable.replace(jnp.asarray(mean + spread * rng.normal(size=variable.shape), jnp.float32))

    graph, shapes = structure(config)
    return nnx.merge(graph, nnx.map_state(draw, shapes))


@functools.cache
def structure(config) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: VQGAN(config, rngs=nnx.Rngs(0))))


def random_images(config, count=3):
    return np.random.default_rng(0).uniform(-1, 1, (count, config.image_size, config.image_size, 3)).astype(np.float32)


def theirs(model, images):
    """(latents [B, h, w, Z], codes [B, h, w], decoded images [B, H, W, 3]) of diffusers' model."""
    with torch.no_grad():
        latents = model.encode(torch.from_numpy(images).permute(0, 3, 1, 2)).latents
        codes = model.quantize(latents)[2][2]
        decoded = model.decode(latents).sample
    shape = (len(images), *latents.shape[2:])
    return latents.permute(0, 2, 3, 1).numpy(), codes.reshape(shape).numpy(), decoded.permute(0, 2, 3, 1).numpy()


def assert_equal(model: VQGAN, images, expected):
    """Ours says the same of images as theirs."""
    graph, state = nnx.split(model)

    @jax.jit
    def run(state, images, codes):
        model = nnx.merge(graph, state)
        return model.encode(images), model.codes(images), model.decode(codes)

    latents, codes, decoded = run(state, images, expected[1])
    assert codes.dtype == jnp.int32
    assert np.array_equal(codes, expected[1])
    assert len(np.unique(expected[1])) > 1
    np.testing.assert_allclose(latents, expected[0], atol=TOLERANCE)
    np.testing.assert_allclose(decoded, expected[2], atol=TOLERANCE)


@geometries
def test_import_from_diffusers(config, tmp_path):
    model = random_model(config)
    model.save_pretrained(tmp_path / "theirs")
    told = import_weights(ImportConfig(vqgan=str(tmp_path / "theirs")), tmp_path / "ours")
    assert "unused" not in told
    ours, unused = read_vqgan(tmp_path / "ours")
    assert ours.config == config
    assert not unused
    images = random_images(config)
    assert_equal(ours, images, theirs(model, images))


@geometries
def test_export_to_diffusers(config, tmp_path):
    ours = new_model(config)
    images = random_images(config)
    latents = nnx.jit(VQGAN.encode)(ours, images)
    ours.codebook[...] = jnp.asarray(some_of(torch.from_numpy(np.array(latents)), config.codes))
    write_vqgan(tmp_path / "ours", ours)
    model, loading = diffusers.VQModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not loading["missing_keys"] + loading["unexpected_keys"]
    assert_equal(ours, images, theirs(model.eval(), images))


def test_export_import_and_export_again_give_the_same_bytes(tmp_path):
    write_vqgan(tmp_path / "one", new_model(GEOMETRIES[0]))
    import_weights(ImportConfig(vqgan=str(tmp_path / "one")), tmp_path / "two")
    for file in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_attention_as_diffusers_named_it_at_first(tmp_path):
    config = GEOMETRIES[0]
    model = random_model(config)
    model.save_pretrained(tmp_path / "pipeline" / "vqvae", safe_serialization=False)
    file = tmp_path / "pipeline" / "vqvae" / "diffusion_pytorch_model.bin"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = torch.load(file, weights_only=True)
    for now, then in names.items():
        state = {key.replace(f".{now}.", f".{then}."): array for key, array in state.items()}
    torch.save(state, file)
    ours, unused = read_vqgan(tmp_path / "pipeline")
    images = random_images(config)
    assert not unused
    assert_equal(ours, images, theirs(model, images))


def save_as_lightning(path, state, monkeypatch):
    """A checkpoint as PyTorch Lightning 1.0 wrote them: callbacks are keyed by their class."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    callbacks = {module.ModelCheckpoint: {"best_model_score": torch.tensor(0.5), "best_model_path": "epoch=1.ckpt"}}
    torch.save({"epoch": 1, "callbacks": callbacks, "state_dict": state}, path)
    monkeypatch.undo()


@pytest.mark.parametrize("attends", [(), (1,)])
def test_import_from_taming(attends, tmp_path, monkeypatch):
    state = random_state((32, 64), 2, attends, latents=6, codes=40, width=4)
    images = random_images(GEOMETRIES[0])
    latents = Taming(state).encode(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    state["quantize.embedding.weight"] = some_of(latents, 40)
    save_as_lightning(tmp_path / "last.ckpt", state, monkeypatch)
    (tmp_path / "model.yaml").write_text("model: {params: {ddconfig: {resolution: 16}}}")
    told = import_weights(ImportConfig(vqgan=str(tmp_path / "last.ckpt")), tmp_path / "ours")
    assert "loss.discriminator.main.*.weight" in told
    ours, _ = read_vqgan(tmp_path / "ours")
    assert ours.config == VQGANConfig(16, (32, 64), 2, attends, True, 6, 32, codes=40, code_width=4)
    codes = torch.cdist(latents.reshape(-1, 4), state["quantize.embedding.weight"]).argmin(1).reshape(latents.shape[:3])
    decoded = Taming(state).decode(codes).permute(0, 2, 3, 1)
    assert_equal(ours, images, (latents.numpy(), codes.numpy(), decoded.numpy()))
    assert read_vqgan(tmp_path / "last.ckpt", 32)[0].config.image_size == 32


configs = st.builds(
    VQGANConfig,
    image_size=st.just(64),
    channels=st.lists(st.sampled_from([4, 8, 12]), min_size=1, max_size=3).map(tuple),
    blocks=st.integers(1, 3),
    attention_levels=st.just(()),
    middle_attention=st.booleans(),
    latent_channels=st.integers(1, 4),
    groups=st.sampled_from([1, 2, 4]),
    codes=st.integers(1, 9),
    code_width=st.integers(1, 4),
)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(configs)
def test_every_parameter_has_one_place(config):
    """The table of names is a bijection, and a geometry survives being described."""
    for attentive in ((), tuple(range(len(config.channels)))):
        check_places(dataclasses.replace(config, attention_levels=attentive))


def check_places(config):
    shapes = nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: VQGAN(config, rngs=nnx.Rngs(0)))))
    entries = table(config)
    assert {entry.ours[0] for entry in entries} == {"/".join(map(str, path)) for path, _ in shapes}
    assert len({entry.theirs for entry in entries}) == len(shapes) == len(entries)
    assert described_by(json.loads(json.dumps(described_as(config)))) == config


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"_class_name": "AutoencoderKL"}, "must be VQModel"),
        ({"norm_type": "spatial"}, "norm_type is 'spatial'"),
        ({"norm_num_groups": 5}, "groups 5 must divide"),
        ({"up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"]}, "mirror images"),
        ({"block_out_channels": [8, 24]}, "has shape"),
        ({"layers_per_block": 2}, "arrays required by the geometry are missing"),
    ],
)
def test_another_geometry_is_refused_in_one_line(change, told, tmp_path):
    write_vqgan(tmp_path / "model", new_model(GEOMETRIES[0]))
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(WeightsError, match=told) as caught:
        import_weights(ImportConfig(vqgan=str(tmp_path / "model")), tmp_path / "ours")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ours").exists()


def test_what_is_no_vqgan_is_refused(tmp_path):
    torch.save({"quantize.embed.weight": torch.zeros(2, 2)}, tmp_path / "gumbel.ckpt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    for file, told in (("gumbel.ckpt", "Gumbel"), ("other.pt", "neither"), ("none", "does not exist")):
        with pytest.raises(WeightsError, match=told):
            import_weights(ImportConfig(vqgan=str(tmp_path / file)), tmp_path / "ours")
    with pytest.raises(WeightsError, match="cannot be combined with another source"):
        import_weights(ImportConfig(vqgan="a", language="b"), tmp_path / "ours")
