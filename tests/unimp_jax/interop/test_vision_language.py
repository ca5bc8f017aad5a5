"""LLaVA, SmolVLM and Idefics3: transformers' logits and greedy tokens, and weights in and out without a change."""

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
from unimp_jax.interop import llava, smolvlm
from unimp_jax.interop.exporting import named, write_weights
from unimp_jax.interop.importing import ImportConfig
from unimp_jax.interop.layout import WeightsError
from unimp_jax.interop.vision import last_norm

torch = pytest.importorskip("torch")
from transformers import (  # noqa: E402
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Idefics3Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionEmbeddings  # noqa: E402

VOCABULARY, IMAGE = 67, 66
TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
TOWER = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
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
    "smolvlm, tied": SmolVLMConfig(
        text_config=LlamaConfig(**TEXT), vision_config=TOWER | {"patch_size": 4}, image_token_id=IMAGE,
        tie_word_embeddings=True,
    ),
    "idefics3, scaled positions, wide heads": Idefics3Config(
        text_config=LlamaConfig(**TEXT, head_dim=12, rope_parameters=LLAMA_3), vision_config=TOWER,
        image_token_id=IMAGE,
    ),
    "smolvlm, patches that do not cover the image": SmolVLMConfig(
        text_config=LlamaConfig(**TEXT), vision_config=TOWER | {"patch_size": 5}, image_token_id=IMAGE, scale_factor=3,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    """(their model, its folder, ours)."""
    folder = tmp_path_factory.mktemp("whole")
    theirs = AutoModelForImageTextToText.from_config(CONFIGS[request.param]).eval()
    shake(theirs)
    theirs.save_pretrained(folder / "theirs")
    return theirs, folder / "theirs", imported(ImportConfig(vision_language=str(folder / "theirs")), folder / "start")


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


def theirs_of(model, tokens: np.ndarray, images: np.ndarray) -> dict:
    pixels = torch.tensor(np.moveaxis(images, -1, 1))
    pixels = pixels if model.config.model_type == "llava" else pixels[None]
    return {"input_ids": torch.tensor(tokens[None], dtype=torch.long), "pixel_values": pixels}


def check_logits(theirs, ours) -> None:
    n = ours.config.image_tokens
    found = np.asarray(all_logits(ours, packed(n, ((0, 1, 2), (2, 0)))))
    for row, numbers in enumerate(((0, 1, 2), (2, 0))):
        t = 0
        for number in numbers:
            tokens, images, _ = prompts(n)[number]
            with torch.no_grad():
                expected = theirs(**theirs_of(theirs, tokens, images)).logits[0].numpy()
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
    expected = theirs.generate(**theirs_of(theirs, tokens, images), max_new_tokens=64, do_sample=False)[0, -64:]
    assert found.tolist() == expected.tolist()


WRITTEN = {"mlp": (llava, LlavaForConditionalGeneration), "pixel_shuffle": (smolvlm, SmolVLMForConditionalGeneration)}
"""By projector: what writes the model, and the class that reads it."""


def write(ours, folder: Path) -> Path:
    package = WRITTEN[ours.config.projector.kind][0]
    write_config(folder, package.described_as(ours.config) | {package.IMAGE_ID: IMAGE})
    unread = last_norm(package.LAST_NORM, ours.config.vision)
    write_weights(folder, named(nnx.state(ours)), package.table(ours.config), unread=unread)
    return folder


def test_what_is_written_is_theirs_and_read_again_the_same(pair, tmp_path):
    ours = pair[2]
    theirs, told = AutoModelForImageTextToText.from_pretrained(write(ours, tmp_path / "one"), output_loading_info=True)
    assert type(theirs) is WRITTEN[ours.config.projector.kind][1]
    assert not any(told.values())
    check_logits(theirs.eval(), ours)
    again = imported(ImportConfig(vision_language=str(tmp_path / "one")), tmp_path / "start")
    assert again.config == ours.config
    write(again, tmp_path / "two")
    assert weight_files(tmp_path / "one") == weight_files(tmp_path / "two")


def test_rows_of_patches_have_exact_positions_in_smolvlm_or_are_refused():
    inexact = []
    for side in range(1, 65):
        tower = {"hidden_size": 1, "num_attention_heads": 1, "image_size": side, "patch_size": 1}
        embeddings = SmolVLMVisionEmbeddings(SmolVLMConfig(vision_config=tower).vision_config)
        torch.nn.init.zeros_(embeddings.patch_embedding.weight)
        torch.nn.init.zeros_(embeddings.patch_embedding.bias)
        embeddings.position_embedding.weight.data[:, 0] = torch.arange(side**2)
        found = embeddings(torch.zeros(1, 3, side, side), torch.ones(1, side, side, dtype=torch.bool))[0, :, 0]
        try:
            smolvlm.refuse_rounded_positions(side)
        except WeightsError:
            inexact.append(side)
        else:
            assert (found == torch.arange(side**2)).all(), side
    assert inexact, "there is something to refuse"
    assert not {*range(1, 19), 26, 27, 32, 64} & {*inexact}, "published models have such rows"


SOUND, SMOLVLM = CONFIGS["qwen3 and siglip"].to_dict(), CONFIGS["smolvlm, tied"].to_dict()


@pytest.mark.parametrize(
    ("changes", "telling"),
    [
        (
            {"text_config": {"model_type": "gemma3_text"}},
            "family 'gemma3_text' is not supported; supported are llama, qwen2, qwen3",
        ),
        ({"vision_config": {"model_type": "siglip2_vision_model"}}, "family 'siglip2_vision_model' is not supported"),
        (
            {"vision_feature_select_strategy": "default"},
            "select_strategy 'default' is not supported for this tower; it must be full",
        ),
        ({"vision_feature_layer": [-2, -1]}, "must be the number of one layer"),
        ({"vision_feature_layer": -4}, "vision_feature_layer -4 is not one of the 2 layers of the tower"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act 'relu' is not supported"),
        (
            {"model_type": "idefics2"},
            "the vision-language model_type 'idefics2' is not supported; supported are idefics, llava, idefics3, "
            "smolvlm",
        ),
        ({"image_token_index": VOCABULARY}, "image_token_index 67 exceeds the 67 tokens of text_config"),
        (SMOLVLM | {"text_config": {"model_type": "qwen3"}}, "family 'qwen3' is not supported; supported are llama"),
        (SMOLVLM | {"image_token_id": VOCABULARY}, "image_token_id 67 exceeds the 67 tokens of text_config"),
        (SMOLVLM | {"scale_factor": 3}, "squares of 3 x 3 patches do not cover the 4 x 4 patches of the tower"),
        (SMOLVLM | {"vision_config": TOWER | {"image_size": 200}}, "rows of 25 patches have no exact positions"),
    ],
)
def test_what_is_not_supported_is_named(changes, telling, tmp_path):
    folder = write_config(tmp_path / "whole", SOUND | changes)
    save_file({"x": np.zeros(1, np.float32)}, folder / "model.safetensors")
    assert telling in refused(ImportConfig(vision_language=str(folder)), tmp_path)


@pytest.mark.parametrize(
    ("described", "file", "processor", "telling"),
    [
        (SOUND, "preprocessor_config", {"size": {"height": 32, "width": 32}}, "the vision tower reads 16 x 16"),
        (SOUND, "preprocessor_config", {"do_center_crop": True, "crop_size": 20}, "the vision tower reads 16 x 16"),
        (SOUND, "processor_config", {"image_processor": {"size": {"shortest_edge": 8}}}, "images of {'shortest_edge'"),
        (SOUND, "processor_config", {"patch_size": 4}, "writes 16 tokens per image, but the model has 4"),
        (SOUND, "processor_config", {"patch_size": 8, "num_additional_image_tokens": 1}, "writes 5 tokens per image"),
        (SOUND, "processor_config", {"patch_size": 8, "vision_feature_select_strategy": "default"}, "writes 3 tokens"),
        (SMOLVLM, "preprocessor_config", {"max_image_size": {"longest_edge": 32}}, "the vision tower reads 16 x 16"),
        (SMOLVLM, "processor_config", {"image_seq_len": 5}, "writes 5 tokens per image, but the model has 4"),
    ],
)
def test_a_processor_of_another_model_is_refused(described, file, processor, telling, tmp_path):
    folder = write_config(tmp_path / "whole", described)
    (folder / f"{file}.json").write_text(json.dumps(processor))
    assert telling in refused(ImportConfig(vision_language=str(folder)), tmp_path)
