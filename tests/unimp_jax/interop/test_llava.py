"""LLaVA, of several families: the logits and greedy tokens of transformers, and weights in and out without a change."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from tests.unimp_jax.decoding.support import jitted
from tests.unimp_jax.interop.small_llama import refused
from tests.unimp_jax.interop.support import all_logits, batch_of, imported, shake, weight_files, write_config
from unimp_jax.batch import Batch
from unimp_jax.decoding import BeamConfig, beam_search
from unimp_jax.interop import llava
from unimp_jax.interop.exporting import named, write_weights
from unimp_jax.interop.importing import ImportConfig
from unimp_jax.interop.vision import last_norm

torch = pytest.importorskip("torch")
from transformers import (  # noqa: E402
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
)

VOCABULARY, IMAGE = 67, 66
TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
TOWER = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip


def described(text, tower, **changes) -> LlavaConfig:
    return LlavaConfig(vision_config=tower, text_config=text, image_token_index=IMAGE, **changes)


CONFIGS = {
    "qwen3 and siglip": described(
        Qwen3Config(**TEXT, head_dim=6, tie_word_embeddings=True), SiglipVisionConfig(**TOWER, vision_use_head=False),
        vision_feature_layer=-1, vision_feature_select_strategy="full",
    ),
    "llama and clip, the layer before the last": described(LlamaConfig(**TEXT), CLIPVisionConfig(**TOWER)),
    "qwen2 and clip, class token": described(
        Qwen2Config(**TEXT), CLIPVisionConfig(**TOWER), vision_feature_layer=-1, vision_feature_select_strategy="full"
    ),
    "qwen3 and siglip with its head, an earlier layer": described(
        Qwen3Config(**TEXT, head_dim=8), SiglipVisionConfig(**TOWER), vision_feature_layer=1,
        vision_feature_select_strategy="full",
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    """(their model, its folder, ours)."""
    folder = tmp_path_factory.mktemp("llava")
    theirs = LlavaForConditionalGeneration(CONFIGS[request.param]).eval()
    shake(theirs)
    theirs.save_pretrained(folder / "theirs")
    return theirs, folder / "theirs", imported(ImportConfig(llava=str(folder / "theirs")), folder / "start")


SHOWN = ((7, (2,)), (9, (0, 4)), (11, (3, 3, 8)))
"""Prompts: tokens of text, and how many of them stand before each image."""


def prompts(n: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(tokens, images, where each image begins) of each, n tokens an image."""
    rng, made = np.random.default_rng(0), []
    for length, places in SHOWN:
        text = rng.integers(2, IMAGE, length)
        tokens = np.insert(text, np.repeat(places, n), IMAGE).astype(np.int32)
        images = rng.normal(size=(len(places), 16, 16, 3)).astype(np.float32)
        made.append((tokens, images, np.array(places) + n * np.arange(len(places))))
    return made


def packed(n: int, rows: tuple[tuple[int, ...], ...]) -> Batch:
    """Rows of prompts, by number, with padding and spare images behind them."""
    made, T, N = prompts(n), 26 + 7 * n, 7
    arrays = {name: np.zeros((len(rows), T), np.int32) for name in ("tokens", "segment_ids", "positions")}
    index, segments = np.full((len(rows), T), -1, np.int32), np.zeros((len(rows), N), np.int32)
    images = np.zeros((len(rows), N, 16, 16, 3), np.float32)
    for row, numbers in enumerate(rows):
        t = shown = 0
        for segment, number in enumerate(numbers, start=1):
            tokens, own, begins = made[number]
            where = slice(t, t + len(tokens))
            arrays["tokens"][row, where], arrays["segment_ids"][row, where] = tokens, segment
            arrays["positions"][row, where] = np.arange(len(tokens))
            latest = np.searchsorted(begins, np.arange(len(tokens)), side="right") - 1
            index[row, where] = np.where(latest >= 0, latest + shown, -1)
            images[row, shown : shown + len(own)], segments[row, shown : shown + len(own)] = own, segment
            t, shown = t + len(tokens), shown + len(own)
    return batch_of(arrays["tokens"], arrays["segment_ids"], arrays["positions"], index, images, segments)


def theirs_of(tokens: np.ndarray, images: np.ndarray) -> dict:
    pixels = torch.tensor(np.moveaxis(images, -1, 1))
    return {"input_ids": torch.tensor(tokens[None], dtype=torch.long), "pixel_values": pixels}


def check_logits(theirs, ours) -> None:
    n = ours.config.image_tokens
    found = np.asarray(all_logits(ours, packed(n, ((0, 1, 2), (2, 0)))))
    for row, numbers in enumerate(((0, 1, 2), (2, 0))):
        t = 0
        for number in numbers:
            tokens, images, _ = prompts(n)[number]
            with torch.no_grad():
                expected = theirs(**theirs_of(tokens, images)).logits[0].numpy()
            assert expected.std() > 0.05, "the tolerance is far below what there is to see"
            np.testing.assert_allclose(found[row, t : t + len(tokens)], expected, atol=1e-4, rtol=0)
            t += len(tokens)


def test_logits_of_packed_prompts_with_several_images(pair):
    check_logits(pair[0], pair[2])


def test_greedy_tokens(pair):
    theirs, _, ours = pair
    tokens, images, _ = prompts(ours.config.image_tokens)[1]
    batch = packed(ours.config.image_tokens, ((1,),))
    last = np.array([[len(tokens) - 1]], np.int32)
    batch = batch.replace(answer_positions=last, answer_weights=np.ones((1, 1), np.float32))
    config = BeamConfig(beams=1, new_tokens=64)
    found = jitted(ours, lambda model, batch: beam_search(model, batch, config, eos=None).tokens_BAWn)(batch)[0, 0, 0]
    expected = theirs.generate(**theirs_of(tokens, images), max_new_tokens=64, do_sample=False)[0, -64:]
    assert found.tolist() == expected.tolist()


def write(ours, folder: Path) -> Path:
    write_config(folder, llava.described_as(ours.config) | {"image_token_index": IMAGE})
    unread = last_norm(llava.LAST_NORM, ours.config.vision)
    write_weights(folder, named(nnx.state(ours)), llava.table(ours.config), unread=unread)
    return folder


def test_what_is_written_is_theirs_and_read_again_the_same(pair, tmp_path):
    ours = pair[2]
    theirs, told = AutoModelForImageTextToText.from_pretrained(write(ours, tmp_path / "one"), output_loading_info=True)
    assert type(theirs) is LlavaForConditionalGeneration
    assert not any(told.values())
    check_logits(theirs.eval(), ours)
    again = imported(ImportConfig(llava=str(tmp_path / "one")), tmp_path / "start")
    assert again.config == ours.config
    write(again, tmp_path / "two")
    assert weight_files(tmp_path / "one") == weight_files(tmp_path / "two")


SOUND = CONFIGS["qwen3 and siglip"].to_dict()


@pytest.mark.parametrize(
    ("changes", "telling"),
    [
        ({"text_config": {"model_type": "gemma3_text"}}, "family 'gemma3_text' is not known; llama, qwen2, qwen3 are"),
        ({"vision_config": {"model_type": "siglip2_vision_model"}}, "family 'siglip2_vision_model' is not known"),
        (
            {"vision_feature_select_strategy": "default"},
            "select_strategy 'default' is not known of this tower; full is",
        ),
        ({"vision_feature_layer": [-2, -1]}, "must be one layer's number"),
        ({"vision_feature_layer": -4}, "vision_feature_layer -4 is none of the tower's 2 layers"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act 'relu' is not known"),
        ({"model_type": "idefics3"}, "model_type is 'idefics3', not 'llava'"),
        ({"image_token_index": VOCABULARY}, "image_token_index 67 is beyond text_config's 67 tokens"),
    ],
)
def test_what_is_not_supported_is_named(changes, telling, tmp_path):
    folder = write_config(tmp_path / "llava", SOUND | changes)
    save_file({"x": np.zeros(1, np.float32)}, folder / "model.safetensors")
    assert telling in refused(ImportConfig(llava=str(folder)), tmp_path)


@pytest.mark.parametrize(
    ("file", "processor", "telling"),
    [
        ("preprocessor_config", {"size": {"height": 32, "width": 32}}, "the vision tower reads 16 x 16"),
        ("preprocessor_config", {"do_center_crop": True, "crop_size": 20}, "the vision tower reads 16 x 16"),
        ("processor_config", {"patch_size": 4}, "writes 16 tokens an image (patch_size 4), the model makes 4"),
        ("processor_config", {"patch_size": 8, "num_additional_image_tokens": 1}, "writes 5 tokens an image"),
        ("processor_config", {"patch_size": 8, "vision_feature_select_strategy": "default"}, "writes 3 tokens"),
    ],
)
def test_a_processor_of_another_model_is_refused(file, processor, telling, tmp_path):
    folder = write_config(tmp_path / "llava", SOUND)
    (folder / f"{file}.json").write_text(json.dumps(processor))
    assert telling in refused(ImportConfig(llava=str(folder)), tmp_path)


def test_it_goes_with_no_other_source(tmp_path):
    assert "--llava is a whole model" in refused(ImportConfig(llava="x", vision="y"), tmp_path)
