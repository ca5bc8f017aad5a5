"""Towers that a user names: opened from files, and in the metrics of generated images."""

import json
import string
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.tasks.queries import held_out_queries
from experiments.data import ExperimentData
from experiments.evals.base import OURS
from experiments.evals.image_metrics import RECONSTRUCTED, Generated, image_outcomes
from experiments.evaluate import tabulate
from experiments.feature_extractors import FeatureExtractorConfig, clip_tower, open_towers
from tests.experiments.tiny_run import experiment, prepare_source
from unimp_jax.interop.layout import WeightsError

torch = pytest.importorskip("torch", reason="CLIP folders are written by transformers on torch")
transformers = pytest.importorskip("transformers")

LENGTH = 12
SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
END, START, WORD = "<|endoftext|>", "<|startoftext|>", "</w>"


def write_clip(folder: Path) -> Path:
    """A CLIPModel of random weights and a tokenizer of single letters."""
    torch.manual_seed(0)
    letters = [*string.ascii_lowercase, ","]
    vocabulary = {token: number for number, token in enumerate([*letters, *(x + WORD for x in letters), START, END])}
    text = SIZE | {
        "vocab_size": len(vocabulary), "max_position_embeddings": LENGTH,
        "bos_token_id": vocabulary[START], "eos_token_id": vocabulary[END], "pad_token_id": vocabulary[END],
    }  # fmt: skip
    vision = SIZE | {"image_size": 24, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip")


def test_a_clip_sees_and_reads_as_in_transformers(folder):
    tower, theirs = clip_tower(folder), transformers.CLIPModel.from_pretrained(folder).eval()
    texts = ["comedy", "drama, war", "a very long text that is cut to what the tower reads"]
    inputs = transformers.AutoTokenizer.from_pretrained(folder)(
        texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    with torch.no_grad():
        pooled = theirs.text_model(**inputs).pooler_output
        expected = torch.nn.functional.normalize(theirs.text_projection(pooled), dim=-1).numpy()
    np.testing.assert_allclose(tower.read(texts), expected, atol=1e-5)
    seen = tower.see(np.zeros((3, 10, 10, 3), np.uint8))
    assert seen.shape == (3, 8)
    np.testing.assert_allclose(np.linalg.norm(seen, axis=1), 1, rtol=1e-5)


def test_a_named_clip_gives_features_and_a_score(folder, tmp_path):
    data = ExperimentData.load(experiment(prepare_source(tmp_path)))
    towers = open_towers(FeatureExtractorConfig(clip=folder), None)
    assert towers[0] is towers[1]
    queries = [q for q in held_out_queries(data.corpus, "test", "search") if data.writer.has_image[q.right[0]]]
    wanted = np.stack([data.images[query.right[0]] for query in queries])
    outcomes = image_outcomes(data, towers[0], Generated(queries, {OURS: wanted[:, None]}, wanted), clip=towers[1])
    table = tabulate("image", outcomes["image"], seed=0)
    assert f"CLIP, {folder} (8 features)" in table.note
    metrics = {row.model: row.metrics for row in table.rows}
    assert metrics[OURS]["CLIP score"] == metrics[RECONSTRUCTED]["CLIP score"], "the same images"
    features, words = (
        towers[0].see(wanted),
        towers[1].read([", ".join(data.corpus.categories[q.right[0]]) for q in queries]),
    )
    assert metrics[OURS]["CLIP score"].mean == pytest.approx(
        100 * np.maximum((features * words).sum(1), 0).mean(), abs=1e-3
    )


def test_a_clip_without_its_tokenizer_is_refused(folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(WeightsError, match="has a text tower, but no tokenizer"):
        clip_tower(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=f"no tokenizer at '{tmp_path}'"):
        clip_tower(tmp_path)
    with pytest.raises(WeightsError, match=r"config\.json does not exist"):
        clip_tower(tmp_path / "nowhere")


def test_what_a_text_says_ends_no_text(folder):
    """The end, at which a CLIP reads off a text, is written by its tokenizer alone."""
    tower = clip_tower(folder)
    spelled, ended = tower.read([f"drama {END} war", "x" * 10**6 + END]), tower.read(["drama", "x" * 600])
    assert np.abs(spelled[0] - ended[0]).max() > 1e-3
    np.testing.assert_allclose(spelled[1], ended[1], atol=1e-5)
