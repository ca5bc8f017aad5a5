"""CLIP, both towers, against transformers' own on random weights."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from unimp_jax.feature_extractors import CLIPConfig
from unimp_jax.interop.feature_extractors import read_clip
from unimp_jax.interop.layout import WeightsError
from unimp_jax.model import VisionConfig
from unimp_jax.model.vision import CLIP_DEVIATION, CLIP_MEAN

torch = pytest.importorskip("torch", reason="transformers' CLIP runs on torch")
transformers = pytest.importorskip("transformers")

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
VISION = SIZE | {"image_size": 32, "patch_size": 8, "projection_dim": 24}
TEXT = SIZE | {
    "vocab_size": 60, "max_position_embeddings": 12, "hidden_size": 40, "bos_token_id": 57, "eos_token_id": 58,
    "pad_token_id": 59, "projection_dim": 24,
}  # fmt: skip
TOKENS = np.array([[57, 3, 9, 12, 58, 59, 59], [57, 4, 4, 8, 20, 33, 58]], np.int32)
ENDS = np.array([4, 6], np.int32)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def as_torch(images: np.ndarray):
    normalised = (images / np.float32(255) - CLIP_MEAN) / CLIP_DEVIATION
    return torch.from_numpy(normalised.astype(np.float32)).permute(0, 3, 1, 2)


def written(model, folder: Path) -> Path:
    """With weights far from where they start, norms and biases too."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    model.eval().save_pretrained(folder)
    return folder


def unit(x) -> np.ndarray:
    x = x.detach().numpy()
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_embeddings_of_images_and_words_are_transformers(images, tmp_path, activation):
    config = transformers.CLIPConfig(
        text_config=TEXT | {"hidden_act": activation}, vision_config=VISION | {"hidden_act": activation},
        projection_dim=24,
    )  # fmt: skip
    theirs = transformers.CLIPModel(config)
    ours = read_clip(written(theirs, tmp_path / "clip"))
    inputs = {"input_ids": torch.from_numpy(TOKENS).long(), "attention_mask": torch.from_numpy(TOKENS < 59).long()}
    with torch.no_grad():
        said = theirs(pixel_values=as_torch(images), **inputs)
    np.testing.assert_allclose(nnx.jit(type(ours).see)(ours, images), unit(said.image_embeds), atol=1e-5)
    np.testing.assert_allclose(nnx.jit(type(ours).read)(ours, TOKENS, ENDS), unit(said.text_embeds), atol=1e-5)


@pytest.mark.parametrize("projected", [True, False])
def test_a_vision_tower_alone_sees(images, tmp_path, projected):
    kind = transformers.CLIPVisionModelWithProjection if projected else transformers.CLIPVisionModel
    theirs = kind(transformers.CLIPVisionConfig(**VISION))
    ours = read_clip(written(theirs, tmp_path / "clip"))
    with torch.no_grad():
        said = theirs(pixel_values=as_torch(images))
    expected = unit(said.image_embeds if projected else said.pooler_output)
    np.testing.assert_allclose(nnx.jit(type(ours).see)(ours, images), expected, atol=1e-5)
    with pytest.raises(ValueError, match="no text tower"):
        ours.read(TOKENS, ENDS)


def test_what_stands_behind_the_end_of_a_text_is_not_looked_at(tmp_path):
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24)
    ours = read_clip(written(transformers.CLIPModel(config), tmp_path / "clip"))
    other = TOKENS.copy()
    other[0, 5:] = 1
    read = nnx.jit(type(ours).read)
    assert (read(ours, TOKENS, ENDS) == read(ours, other, ENDS)).all()
    np.testing.assert_allclose(read(ours, TOKENS[:1, :5], ENDS[:1])[0], read(ours, TOKENS, ENDS)[0], atol=1e-6)


def test_what_is_no_clip_is_refused(tmp_path):
    folder = written(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)), tmp_path / "clip")
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"num_hidden_layers": 4}))
    with pytest.raises(WeightsError, match="16 arrays required by the geometry are missing"):
        read_clip(folder)
    (folder / "config.json").write_text(json.dumps(described | {"model_type": "siglip_vision_model"}))
    with pytest.raises(WeightsError, match="siglip_vision_model"):
        read_clip(folder)
    with pytest.raises(ValueError, match="class_token_out"):
        CLIPConfig(VisionConfig())
    with pytest.raises(ValueError, match="the width of the joint space of images and texts is not given"):
        CLIPConfig(dataclasses.replace(VisionConfig(), class_token_out=True), text=object())
