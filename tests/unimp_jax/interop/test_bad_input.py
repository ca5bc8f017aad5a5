"""Damaged, foreign or unfit input is refused in one line that says what is wrong, and nothing is left behind."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tests.unimp_jax.interop.small_llama import LLAMA, refused, write_index
from tests.unimp_jax.interop.support import write_config
from unimp_jax.interop import shards
from unimp_jax.interop.importing import ImportConfig, import_weights
from unimp_jax.interop.layout import WeightsError

LAST = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def language(sound, tmp_path) -> Path:
    """The same, to be damaged."""
    return shutil.copytree(sound, tmp_path / "llama")


def change(folder: Path, **changes) -> None:
    write_config(folder, json.loads((folder / "config.json").read_text()) | changes)


def shard_with(folder: Path, key: str) -> Path:
    return folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][key]


def edit(folder: Path, key: str, array: np.ndarray | None) -> None:
    """Another array in place of one, or none, which the index does not name then."""
    shard = shard_with(folder, key)
    weights = load_file(shard)
    if array is None:
        del weights[key]
        index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        write_index(folder, {other: name for other, name in index.items() if other != key})
    else:
        weights[key] = array
    save_file(weights, shard)


def test_what_is_sound_is_read(sound, tmp_path):
    said = import_weights(ImportConfig(language=str(sound)), tmp_path / "start")
    assert "21 arrays read" in said
    assert "no tokenizer was found" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["start"]


def test_truncated_shard(language, tmp_path):
    shard = shard_with(language, LAST)
    shard.write_bytes(shard.read_bytes()[:-100])
    said = refused(ImportConfig(language=str(language)), tmp_path)
    assert shard.name in said
    assert "truncated" in said


def test_empty_shard(language, tmp_path):
    shard_with(language, LAST).write_bytes(b"")
    assert "truncated" in refused(ImportConfig(language=str(language)), tmp_path)


def test_missing_shard(language, tmp_path):
    shard = shard_with(language, LAST)
    shard.unlink()
    assert f"{shard.name} does not exist" in refused(ImportConfig(language=str(language)), tmp_path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/model.safetensors", "..", 3])
def test_index_that_leads_out_of_its_folder(name, language, tmp_path):
    shutil.copy(shard_with(language, LAST), tmp_path / "secret.safetensors")
    write_index(language, {LAST: name})
    said = refused(ImportConfig(language=str(language)), tmp_path)
    assert "is not the name of a file in the same folder" in said


def test_index_that_promises_more(language, tmp_path):
    index = json.loads((language / "model.safetensors.index.json").read_text())["weight_map"]
    write_index(language, index | {"model.more": shard_with(language, LAST).name})
    assert "missing from the shards, such as model.more" in refused(ImportConfig(language=str(language)), tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_index_that_is_none(text, language, tmp_path):
    (language / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in refused(ImportConfig(language=str(language)), tmp_path)


def test_same_key_in_two_shards(language, tmp_path):
    first, second = sorted(language.glob("*.safetensors"))
    key = next(iter(load_file(first)))
    save_file(load_file(second) | {key: np.zeros(3, np.float32)}, second)
    said = refused(ImportConfig(language=str(language)), tmp_path)
    assert f"{key} is also in {first.name}" in said


@pytest.mark.parametrize("kind", ["bert", "gpt2", "gemma3_text", "qwen3_moe", None])
def test_foreign_language_model(kind, language, tmp_path):
    change(language, model_type=kind)
    said = refused(ImportConfig(language=str(language)), tmp_path)
    assert (
        f"a language model of family {kind!r} is not supported; supported are gpt_neox, mpt, mosaic_gpt, llama, qwen2, "
        "qwen3"
    ) in said


def test_idefics_as_language_model(language, tmp_path):
    change(language, model_type="idefics")
    assert "give it as --vision-language" in refused(ImportConfig(language=str(language)), tmp_path)


def test_language_model_as_idefics(language, tmp_path):
    assert "the vision-language model_type 'llama' is not supported" in refused(
        ImportConfig(vision_language=str(language)), tmp_path
    )


def test_language_model_as_tower(language, tmp_path):
    assert "the file has no vision tower of CLIP or SigLIP" in refused(ImportConfig(vision=str(language)), tmp_path)


@pytest.mark.parametrize(
    ("kind", "telling"),
    [
        (
            "dinov2",
            "family 'dinov2' is not supported; supported are clip, clip_vision_model, siglip, siglip_vision_model",
        ),
        ("siglip2", "SigLIP 2 only with a fixed resolution"),
    ],
)
def test_foreign_tower(kind, telling, tmp_path):
    folder = write_config(tmp_path / "tower", {"model_type": kind})
    save_file({"embeddings.patch_embedding.weight": np.zeros((4, 3, 2, 2), np.float32)}, folder / "model.safetensors")
    assert telling in refused(ImportConfig(vision=str(folder)), tmp_path)


@pytest.mark.parametrize(
    ("changes", "telling"),
    [
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0}},
            "'yarn' are not supported; supported are default, linear, llama3",
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}},
            "'llama3' lack low_freq_factor, original_max_position_embeddings",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5 is not supported"),
        ({"use_sliding_window": True}, "use_sliding_window True is not supported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "'sliding_attention'; only full_attention"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"head_dim": 3}, "rotary_fraction 1.0 of 3 channels"),
        ({"head_dim": 32}, "has shape (16, 16), but the geometry requires (64, 16)"),
        ({"num_attention_heads": 3}, "heads 3 must divide width 16"),
        ({"num_attention_heads": 0}, "llama: "),
        ({"hidden_size": "wide"}, "llama: "),
    ],
)
def test_parts_that_the_decoder_lacks(changes, telling, language, tmp_path):
    change(language, **changes)
    assert telling in refused(ImportConfig(language=str(language)), tmp_path)


def test_config_that_is_no_json(language, tmp_path):
    (language / "config.json").write_text("{")
    said = refused(ImportConfig(language=str(language)), tmp_path)
    assert "config.json: not valid JSON" in said


def test_no_config(language, tmp_path):
    (language / "config.json").unlink()
    assert "config.json is missing" in refused(ImportConfig(language=str(language)), tmp_path)


def test_array_of_another_shape(language, tmp_path):
    edit(language, LAST, np.zeros((16, 25), np.float32))
    said = refused(ImportConfig(language=str(language)), tmp_path)
    assert f"{LAST} has shape (16, 25), but the geometry requires (16, 24)" in said


def test_missing_array(language, tmp_path):
    edit(language, LAST, None)
    said = refused(ImportConfig(language=str(language)), tmp_path)
    assert f"1 arrays required by the geometry are missing: {LAST}" in said


def test_unused_arrays_are_reported(language, tmp_path):
    shard = shard_with(language, LAST)
    more = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32) for layer in (0, 1)}
    save_file(load_file(shard) | more, shard)
    said = import_weights(ImportConfig(language=str(language)), tmp_path / "start")
    assert "unused: model.layers.*.self_attn.rotary_emb.inv_freq (2)" in said
    unused = json.loads((tmp_path / "start" / "start.json").read_text())["unused"][str(language)]
    assert unused == sorted(more)


def test_neither_path_nor_model_of_the_hub(tmp_path):
    assert "nowhere/at/all does not exist" in refused(ImportConfig(language="nowhere/at/all"), tmp_path)


def test_nothing_named(tmp_path):
    assert "nothing to import" in refused(ImportConfig(), tmp_path)


def test_idefics_with_another_source(language, tmp_path):
    config = ImportConfig(vision_language=str(language), language=str(language))
    assert "--vision-language is a complete model" in refused(config, tmp_path)


def test_folder_without_weights(tmp_path):
    folder = write_config(tmp_path / "llama", LLAMA)
    assert "there is no model.safetensors or pytorch_model.bin" in refused(ImportConfig(language=str(folder)), tmp_path)


def test_start_that_is_there(language, tmp_path):
    (tmp_path / "start").mkdir()
    with pytest.raises(WeightsError, match="start already exists"):
        import_weights(ImportConfig(language=str(language)), tmp_path / "start")
    assert not list((tmp_path / "start").iterdir())


@pytest.mark.parametrize(
    "error",
    [SafetensorError("I/O error: No space left on device (os error 28)"), OSError(28, "No space left on device")],
)
def test_full_disk(error, language, tmp_path, monkeypatch):
    calls = []

    def save(arrays, path, metadata):
        """Room for one shard."""
        if calls:
            raise error
        calls.append(save_file(arrays, path, metadata))

    monkeypatch.setattr(shards, "save_file", save)
    place = tmp_path / "place"
    with pytest.raises(WeightsError, match=r"start could not be written: .*No space left on device"):
        import_weights(ImportConfig(language=str(language)), place / "start", shard_bytes=4000)
    assert calls
    assert not list(place.iterdir())


def test_place_that_cannot_be_written(language, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match=r"start could not be written: (Not a directory|File exists)"):
        import_weights(ImportConfig(language=str(language)), tmp_path / "file" / "start")


# Tokenizers


def save_tokenizer(folder: Path, words: int, bos: int = 1, eos: int = 2, last: int | None = None) -> None:
    """`last`: the id of the last word, where it is not the number of words before it."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    names = [f"w{number}" for number in range(words)]
    ids = {name: number for number, name in enumerate(names)} | ({} if last is None else {names[-1]: last})
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="w0"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=names[bos], eos_token=names[eos], unk_token="w0"
    ).save_pretrained(folder)


def test_tokenizer_beside_the_model(language, tmp_path):
    save_tokenizer(language, words=20)
    said = import_weights(ImportConfig(language=str(language)), tmp_path / "start")
    assert "no tokenizer" not in said
    assert (tmp_path / "start" / "tokenizer" / "tokenizer.json").is_file()


def test_tokenizer_with_more_tokens_than_the_model(language, tmp_path):
    save_tokenizer(language, words=21)
    said = refused(ImportConfig(language=str(language)), tmp_path)
    assert "the tokenizer does not match the language model: it uses ids up to 20, but the model has 20 tokens" in said


@pytest.mark.parametrize(("ids", "name"), [({"bos": 5}, "bos_token_id"), ({"eos": 6}, "eos_token_id")])
def test_tokenizer_of_another_model(ids, name, language, tmp_path):
    save_tokenizer(tmp_path / "other", words=20, **ids)
    said = refused(ImportConfig(language=str(language), tokenizer=str(tmp_path / "other")), tmp_path)
    assert f"its {name} is {next(iter(ids.values()))}, but that of the model is" in said


def test_tokenizer_that_is_damaged(language, tmp_path):
    save_tokenizer(language, words=20)
    (language / "tokenizer.json").write_text("{")
    assert "the tokenizer cannot be read" in refused(ImportConfig(language=str(language)), tmp_path)


def test_named_tokenizer_that_is_none(language, tmp_path):
    (tmp_path / "empty").mkdir()
    said = refused(ImportConfig(language=str(language), tokenizer=str(tmp_path / "empty")), tmp_path)
    assert "empty: the folder has no tokenizer" in said
