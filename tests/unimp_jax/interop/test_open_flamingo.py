"""Logits of the real open-flamingo 2.0.1 from the same weights, a row an example and packed into one row."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from tests.unimp_jax.interop.support import all_logits, batch_of, imported
from tests.unimp_jax.models import drawn
from unimp_jax.batch import Batch
from unimp_jax.interop import open_flamingo
from unimp_jax.interop.importing import ImportConfig, import_weights
from unimp_jax.interop.layout import WeightsError, model_shapes
from unimp_jax.interop.loading import load_values
from unimp_jax.interop.matching import WeightSource, match
from unimp_jax.interop.weights import open_weights
from unimp_jax.model import (
    DecoderConfig,
    GatedCrossAttentionConfig,
    ModelConfig,
    ResamplerConfig,
    UniMP,
    VisionConfig,
)

try:
    import torch
except ImportError:  # an extra
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="torch is an extra")
GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "open_flamingo"
CASES = ("gpt_neox_every2", "gpt_neox_parallel_every1", "mpt_every4", "mpt_every1")


def model_config(case: dict) -> ModelConfig:
    vision, resampler, gated, language = (
        case[name] for name in ("vision", "resampler", "gated_cross_attention", "language")
    )
    if case["language_family"] == "mpt":
        decoder = DecoderConfig(
            vocab_size=language["vocab_size"],
            width=language["d_model"],
            layers=language["n_layers"],
            heads=language["n_heads"],
            mlp_width=language["d_model"] * language["expansion_ratio"],
            bias=not language["no_bias"],
            position="alibi",
            tie_embeddings=True,
        )
    else:
        decoder = DecoderConfig(
            vocab_size=language["vocab_size"],
            width=language["hidden_size"],
            layers=language["num_hidden_layers"],
            heads=language["num_attention_heads"],
            mlp_width=language["intermediate_size"],
            rotary_fraction=language["rotary_pct"],
            rotary_base=language["rotary_emb_base"],
            parallel_residual=language["use_parallel_residual"],
        )
    return ModelConfig(
        vision=VisionConfig(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            width=vision["hidden_size"],
            layers=vision["num_hidden_layers"],
            heads=vision["num_attention_heads"],
            mlp_width=vision["intermediate_size"],
            activation=vision["hidden_act"],
        ),
        resampler=ResamplerConfig(
            layers=resampler["depth"],
            heads=resampler["heads"],
            head_dim=resampler["dim_head"],
            latents=resampler["num_latents"],
            mlp_ratio=resampler["ff_mult"],
        ),
        gated=GatedCrossAttentionConfig(
            every=case["cross_attn_every_n_layers"],
            heads=gated["heads"],
            head_dim=gated["dim_head"],
            mlp_ratio=gated["ff_mult"],
            attend="last_image" if gated["only_attend_immediate_media"] else "all_earlier_images",
        ),
        decoder=decoder,
        compute_dtype="float32",
    )


def a_row_each(io: dict, media: int) -> Batch:
    """Each golden row as one segment; attended tokens alone, moved to the front."""
    rows, length = io["input_ids"].shape
    tokens, segments = np.zeros((2, rows, length), np.int32)
    image_index = np.full((rows, length), -1, np.int32)
    for row in range(rows):
        attended = io["attention_mask"][row] == 1
        count = attended.sum()
        tokens[row, :count] = io["input_ids"][row, attended]
        segments[row, :count] = 1
        image_index[row, :count] = np.cumsum(tokens[row, :count] == media) - 1
    images = np.moveaxis(io["pixel_values"], 2, -1)
    image_segments = (np.arange(images.shape[1]) <= image_index.max(1)[:, None]).astype(np.int32)
    return batch_of(
        tokens, segments, np.tile(np.arange(length), (rows, 1)) * segments, image_index, images, image_segments
    )


def packed(rows: Batch) -> Batch:
    """All rows as the segments of one."""
    used = rows.segment_ids > 0
    number = np.arange(1, len(used) + 1)[:, None]
    first_image = (number - 1) * rows.images.shape[1]
    image_index = np.where(rows.image_index >= 0, rows.image_index + first_image, -1)
    flat = [x[used][None] for x in (rows.tokens, rows.segment_ids * number, rows.positions, image_index)]
    images = rows.images.reshape(1, -1, *rows.images.shape[2:])
    return batch_of(*flat, images, (rows.image_segment_ids * number).reshape(1, -1))


@functools.cache
def golden(name: str):
    """(the model's configuration, rows, the reference's logits at the rows' tokens)"""
    case = json.loads((GOLDEN / name / "config.json").read_text())
    io = dict(np.load(GOLDEN / name / "io.npz"))
    return model_config(case), a_row_each(io, case["media_token_id"]), io["logits"][io["attention_mask"] == 1]


@functools.cache
def loaded(name: str) -> UniMP:
    config = golden(name)[0]
    weights = open_weights(GOLDEN / name / "model.safetensors")
    keys = list(weights.arrays)
    table = open_flamingo.table(config, open_flamingo.tabulate_by_keys(keys), open_flamingo.vision_table(keys))
    graph, state = nnx.split(drawn(config))
    (state,) = load_values((state,), match([WeightSource(weights, table)], model_shapes(config)).arrays())
    return nnx.merge(graph, state)


def check(model: UniMP, name: str, *, together: bool = False) -> None:
    _, rows, expected = golden(name)
    batch = packed(rows) if together else rows
    found = np.asarray(all_logits(model, batch))[batch.segment_ids > 0]
    assert expected.std() > 0.05, "the tolerance is far below what there is to see"
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("together", [False, True], ids=["a row each", "packed"])
@pytest.mark.parametrize("name", CASES)
def test_logits_equal_the_reference(name, together):
    check(loaded(name), name, together=together)


# Below, the same weights as they are published: a checkpoint, and the language model and the tower it was built on.


def tensors(name: str) -> dict:
    from safetensors.torch import load_file

    return {key: tensor.float() for key, tensor in load_file(GOLDEN / name / "model.safetensors").items()}


def layers_of(name: str) -> str:
    return "transformer.blocks" if name.startswith("mpt") else "gpt_neox.layers"


def language_folder(name: str, folder: Path, rows: int | None = None) -> str:
    """What transformers saves of the golden weights' language model, with more rows of embeddings if asked."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, MptConfig, MptForCausalLM

    case = json.loads((GOLDEN / name / "config.json").read_text())
    weights = {
        key.removeprefix("lang_encoder."): x for key, x in tensors(name).items() if key.startswith("lang_encoder.")
    }
    weights = {
        key.replace("old_decoder_blocks", layers_of(name)): x for key, x in weights.items() if "gated" not in key
    }
    if "embed_out.weight" in weights:
        weights["lm_head.weight"] = weights["embed_out.weight"]  # its name in memory; on disk it is the old one
    kinds = (MptConfig, MptForCausalLM) if name.startswith("mpt") else (GPTNeoXConfig, GPTNeoXForCausalLM)
    model = kinds[1](kinds[0](**case["language"]))
    assert not model.load_state_dict(weights, strict=False).missing_keys
    if rows:
        model.resize_token_embeddings(rows)
    model.save_pretrained(folder)
    return str(folder)


def vision_folder(name: str, folder: Path) -> str:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    case = json.loads((GOLDEN / name / "config.json").read_text())
    root = "vision_encoder.clip.vision_model."
    model = CLIPVisionModel(CLIPVisionConfig(**case["vision"]))
    weights = {key.removeprefix(root): x for key, x in tensors(name).items() if key.startswith(root)}
    assert not model.load_state_dict(weights, strict=False).missing_keys
    model.save_pretrained(folder)
    return str(folder)


def trained_keys(name: str, *, embeddings: tuple[str, ...]) -> dict:
    """What open-flamingo's training script saves: trained arrays, each once."""
    trained = {}
    for key, tensor in tensors(name).items():
        if key.startswith("perceiver.") or key in embeddings:
            trained[key] = tensor
        elif key.startswith("lang_encoder.gated_cross_attn_layers."):
            number, rest = key.removeprefix("lang_encoder.gated_cross_attn_layers.").split(".", 1)
            trained[f"lang_encoder.{layers_of(name)}.{number}.gated_cross_attn_layer.{rest}"] = tensor
    return trained


TABLES = {"mpt": ("lang_encoder.transformer.wte.weight",), "gpt": ("lang_encoder.gpt_neox.embed_in.weight",)}


@needs_torch
@pytest.mark.parametrize("name", CASES)
def test_trained_keys_beside_a_language_model_and_a_tower(name, tmp_path):
    """As published: the head of GPT-NeoX stays frozen and is no part of the checkpoint."""
    torch.save(trained_keys(name, embeddings=TABLES[name[:3]]), tmp_path / "checkpoint.pt")
    config = ImportConfig(
        language=language_folder(name, tmp_path / "language"),
        vision=vision_folder(name, tmp_path / "vision"),
        open_flamingo=str(tmp_path / "checkpoint.pt"),
    )
    check(imported(config, tmp_path / "start"), name)


@needs_torch
def test_a_frozen_head_with_more_rows_than_the_checkpoint(tmp_path):
    """Language models pad their tables; open-flamingo cuts them to its tokenizer's length."""
    name = "gpt_neox_every2"
    torch.save(trained_keys(name, embeddings=TABLES["gpt"]), tmp_path / "checkpoint.pt")
    config = ImportConfig(
        language=language_folder(name, tmp_path / "language", rows=240),
        vision=vision_folder(name, tmp_path / "vision"),
        open_flamingo=str(tmp_path / "checkpoint.pt"),
    )
    check(imported(config, tmp_path / "start"), name)


@needs_torch
@pytest.mark.parametrize("name", ["gpt_neox_every2", "mpt_every4"])
def test_a_training_checkpoint_with_everything_twice(name, tmp_path):
    """Inside "model_state_dict", behind "module.", each layer under both of the wrapper's names."""
    weights = tensors(name)
    for key, tensor in list(weights.items()):
        for own, other in (
            ("gated_cross_attn_layers", "gated_cross_attn_layer"),
            ("old_decoder_blocks", "decoder_layer"),
        ):
            if key.startswith(f"lang_encoder.{own}."):
                number, rest = key.removeprefix(f"lang_encoder.{own}.").split(".", 1)
                weights[f"lang_encoder.{layers_of(name)}.{number}.{other}.{rest}"] = tensor.clone()
    weights = {f"module.{key}": tensor for key, tensor in weights.items()}
    torch.save({"epoch": 3, "model_state_dict": weights}, tmp_path / "checkpoint.pt")
    config = ImportConfig(
        language=language_folder(name, tmp_path / "language"),
        vision=vision_folder(name, tmp_path / "vision"),
        open_flamingo=str(tmp_path / "checkpoint.pt"),
    )
    check(imported(config, tmp_path / "start"), name)


@needs_torch
def test_copies_that_differ_are_refused(tmp_path):
    weights = trained_keys("mpt_every4", embeddings=TABLES["mpt"])
    weights["lang_encoder.gated_cross_attn_layers.3.attn_gate"] = torch.ones(1)
    torch.save(weights, tmp_path / "checkpoint.pt")
    config = ImportConfig(
        language=language_folder("mpt_every4", tmp_path / "l"), open_flamingo=str(tmp_path / "checkpoint.pt")
    )
    with pytest.raises(WeightsError, match=r"attn_gate must be a copy of .*, but differs"):
        import_weights(config, tmp_path / "start")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "l"]


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@needs_torch
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_code_in_a_checkpoint_is_not_run(zipped, tmp_path):
    weights = {"perceiver.latents": torch.ones(2), "trap": Trap(tmp_path / "sprung")}
    torch.save(weights, tmp_path / "checkpoint.pt", _use_new_zipfile_serialization=zipped)
    config = ImportConfig(open_flamingo=str(tmp_path / "checkpoint.pt"))
    with pytest.raises(WeightsError, match=r"checkpoint\.pt: truncated, or not only tensors"):
        import_weights(config, tmp_path / "start")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
