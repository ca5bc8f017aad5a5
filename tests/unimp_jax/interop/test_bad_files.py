"""Torch's files that are damaged or hold something else, and starts that are: each is refused in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.unimp_jax.interop.small_llama import LLAMA, refused
from tests.unimp_jax.interop.support import from_start, write_config
from unimp_jax.interop.importing import ImportConfig, import_weights
from unimp_jax.interop.language import llama_config
from unimp_jax.interop.layout import WeightsError
from unimp_jax.interop.start import start_values
from unimp_jax.model import GatedCrossAttentionConfig, ModelConfig


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_truncated_torch_file(zipped, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "checkpoint.pt"
    torch.save({"perceiver.latents": torch.ones(100, 10)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:-500])
    said = refused(ImportConfig(open_flamingo=str(path)), tmp_path)
    assert "checkpoint.pt: truncated" in said


def test_torch_file_without_tensors(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"epoch": 3}, tmp_path / "checkpoint.pt")
    assert "the file has no tensors" in refused(ImportConfig(open_flamingo=str(tmp_path / "checkpoint.pt")), tmp_path)


def test_language_model_as_torch_files(sound, tmp_path):
    """`pytorch_model.bin` with an index gives what safetensors give; a key in two shards is refused."""
    torch = pytest.importorskip("torch")
    folder = write_config(tmp_path / "bin", LLAMA)
    map_ = {}
    for number, path in enumerate(sorted(sound.glob("*.safetensors"))):
        weights = {key: torch.tensor(array) for key, array in load_file(path).items()}
        map_ |= dict.fromkeys(weights, f"pytorch_model-{number}.bin")
        torch.save(weights, folder / f"pytorch_model-{number}.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": map_}))
    for name, source in (("one", sound), ("other", folder)):
        import_weights(ImportConfig(language=str(source)), tmp_path / name)
    one, other = ((tmp_path / name / "model.safetensors") for name in ("one", "other"))
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)
    torch.save(weights | {next(iter(map_)): torch.zeros(1)}, folder / "pytorch_model-1.bin")
    said = refused(ImportConfig(language=str(folder)), tmp_path)
    assert f"{next(iter(map_))} is also in pytorch_model-0.bin" in said


@pytest.fixture
def start(sound, tmp_path) -> Path:
    import_weights(ImportConfig(language=str(sound)), tmp_path / "start")
    return tmp_path / "start"


def test_folder_that_is_no_start(tmp_path):
    with pytest.raises(
        WeightsError, match=r"is not a folder of imported weights: there is no start\.json; `unimp import` writes one"
    ):
        from_start(tmp_path)


def test_start_that_lacks_an_array(start):
    weights = load_file(start / "model.safetensors")
    del weights["decoder/norm/scale"]
    save_file(weights, start / "model.safetensors")
    with pytest.raises(WeightsError, match="the parameter decoder/norm/scale is missing"):
        list(start_values(start, ModelConfig(decoder=llama_config(LLAMA), gated=GatedCrossAttentionConfig(every=2))))


def test_start_of_another_geometry(start):
    narrow = ModelConfig(decoder=llama_config(LLAMA | {"hidden_size": 8}), gated=GatedCrossAttentionConfig(every=2))
    with pytest.raises(WeightsError, match=r"has shape .*, but the model requires"):
        list(start_values(start, narrow))


def test_start_with_a_damaged_description(start):
    described = json.loads((start / "start.json").read_text())
    described["geometry"]["decoder"]["layers"] = "many"
    (start / "start.json").write_text(json.dumps(described))
    with pytest.raises(WeightsError, match=r"start\.json: geometry\.decoder\.layers"):
        from_start(start)
