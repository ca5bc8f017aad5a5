"""Images asked of a run: files for one user, tables and samples for those held out, and what cannot be generated."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from flax import nnx
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.image_codes import ImageCodes, save_image_codes
from data_pipelines.tasks.registry import default_shares
from experiments.config import DataConfig, load_config
from experiments.data import load_records
from experiments.evals.config import EvaluationConfig, GenerateConfig, ImageEvaluationConfig, ImageGenerationConfig
from experiments.evals.image import open_decoder, sample_codes
from experiments.evaluate import evaluate_run
from experiments.export import ExportConfig, export_run
from experiments.generate import generate
from experiments.run import open_model
from experiments.train import train_run
from tests.experiments.test_cli import run as run_command
from tests.experiments.test_export import IDEFICS
from tests.experiments.tiny_run import experiment, prepare_source
from unimp_jax.decoding import CodeSamplingConfig
from unimp_jax.image_tokens import VQGAN, VQGANConfig
from unimp_jax.interop.vqgan import write_vqgan

pytestmark = pytest.mark.slow  # a VQGAN and a run are trained

VQ = VQGANConfig(
    image_size=16, channels=(8, 8, 8), blocks=1, attention_levels=(), middle_attention=False, latent_channels=8,
    groups=4, codes=11, code_width=6,
)  # fmt: skip
GUIDED = ImageGenerationConfig(samples=3, sampling=CodeSamplingConfig(guidance=2.0))
USER = "5"


def write_random_vqgan(folder, config: VQGANConfig = VQ) -> VQGAN:
    vqgan = VQGAN(config, rngs=nnx.Rngs(0))
    vqgan.codebook[...] *= config.codes  # as large as latents are
    write_vqgan(folder, vqgan)
    return vqgan


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """(prepared data, codes, a short run that learns them too, its VQGAN)"""
    folder = tmp_path_factory.mktemp("painting")
    data = prepare_source(folder)
    write_random_vqgan(folder / "vqgan")
    records = load_records(DataConfig("movielens_small", data))
    codes = np.random.default_rng(0).integers(VQ.codes, size=(len(records.has_image), 16)).astype(np.int32)
    codes[~records.has_image] = -1
    made = ImageCodes(tuple(records.corpus.item_ids), codes, (4, 4), VQ.codes, {"vqgan": str(folder / "vqgan")})
    save_image_codes(folder / "codes.parquet", made)
    config = experiment(data, steps=4, model=IDEFICS)
    config = dataclasses.replace(
        config,
        vocabulary=dataclasses.replace(config.vocabulary, image_codes=folder / "codes.parquet"),
        queries=dataclasses.replace(config.queries, mix=default_shares() | {"image": 4.0}),
    )
    train_run(config, folder / "run")
    return data, folder / "codes.parquet", folder / "run", folder / "vqgan"


@pytest.fixture(scope="module")
def opened(places):
    data, model, _ = open_model(places[2], "latest")
    return data, model


def test_the_task_is_trained_with_the_others(places):
    lines = [json.loads(line) for line in (places[2] / "metrics.jsonl").read_text().splitlines()]
    named = [name for line in lines for name, value in line.items() if "image" in name and value]
    assert named, "the log tells a task's loss by its name"


def test_held_out_users_are_generated_for_and_measured(places):
    config = EvaluationConfig(
        checkpoint="latest", rivals=(), samples=3, images=ImageEvaluationConfig(generation=GUIDED, users=12)
    )
    evaluation = evaluate_run(places[2], config)
    tables = {table.task: table for table in evaluation.tables}
    assert list(tables) == ["recommendation", "search", "text-search", "rating", "selection", "image", "image-distance"]
    assert tables["image"].users == 12
    ours = tables["image"].rows[0]
    assert ours.model == "UniMP"
    assert 0 <= ours.metrics["closer"].mean <= 1
    assert len(evaluation.images) == 3
    for sample in evaluation.images:
        for name in (sample.reconstruction, *sample.generated):
            assert Image.open(places[2] / "evaluation" / name).size == (16, 16)
        assert len(sample.generated) == 3
    answers = pq.read_table(places[2] / "evaluation" / "test-image.parquet")
    assert len(answers) == 12


def test_images_are_codes_of_the_catalogues_vqgan_and_hang_on_seed_and_number(opened, places):
    data, model = opened
    queries = [query for query in _queries(data)][:7]
    codes, scores = sample_codes(data, model, queries, GUIDED)
    assert codes.shape == (7, 3, 16)
    assert codes.min() >= 0
    assert codes.max() < VQ.codes
    assert np.isfinite(scores).all()
    rows = dataclasses.replace(data.config, loader=dataclasses.replace(data.config.loader, batch_size=16))
    data.config, before = rows, data.config
    elsewhere, _ = sample_codes(data, model, queries, GUIDED)
    data.config = before
    np.testing.assert_array_equal(codes, elsewhere)
    known, _ = sample_codes(
        data, model.encode_catalogue(data.writer.has_image, data.images.__getitem__), queries, GUIDED
    )
    np.testing.assert_array_equal(codes, known)
    other, _ = sample_codes(data, model, queries, GUIDED, seed=1)
    assert (codes != other).any()
    generated = open_decoder(data, None)(codes)
    assert (generated.shape, generated.dtype) == ((7, 3, 16, 16, 3), np.uint8)


def _queries(data):
    from data_pipelines.tasks.queries import held_out_queries

    return held_out_queries(data.corpus, "test", "image", data.has_codes)


def test_a_run_and_its_export_generate_the_same_for_one_user(places, tmp_path):
    export_run(places[2], tmp_path / "exported", ExportConfig(checkpoint="latest"))
    generated = {}
    for name, folder in (("run", places[2]), ("exported", tmp_path / "exported")):
        config = GenerateConfig(
            task="image", user=USER, query="Comedy, Drama", out=tmp_path / name / "images", generation=GUIDED,
            checkpoint="latest", json=True,
        )  # fmt: skip
        answer = json.loads(generate(folder, config, lambda: ""))
        files = [tmp_path / name / "images" / f"{number}.png" for number in (1, 2, 3)]
        assert [one["file"] for one in answer["images"]] == list(map(str, files))
        scores = [one["log-probability"] for one in answer["images"]]
        assert scores == sorted(scores, reverse=True)
        generated[name] = np.stack([np.asarray(Image.open(file)) for file in files])
        assert sorted(path.name for path in files[0].parent.iterdir()) == ["1.png", "2.png", "3.png"]
    np.testing.assert_array_equal(generated["run"], generated["exported"])
    text = generate(places[2], dataclasses.replace(config, json=False), lambda: "")
    assert text.startswith(f"image for user {USER}: ")
    assert f"query  Comedy, Drama\n{files[0]}  log-probability -" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], '--task image needs --query, the words that describe the image, such as --query "Comedy, Drama"'),
        (["--query", "Drama", "--samples", "0"], "samples 0 must be 1 or more"),
        (["--query", "Drama", "--guidance=-1"], "guidance -1.0 must be 0 or more"),
        (["--query", "Drama", "--vqgan", "OTHER"], "makes images of 8 x 8 codes from 11, but the catalogue"),
        (["--query", "Drama", "--vqgan", "NOWHERE"], "NOWHERE"),
    ],
)
def test_mistakes_are_reported_in_one_line(places, tmp_path, monkeypatch, capsys, options, message):
    write_random_vqgan(tmp_path / "OTHER", dataclasses.replace(VQ, image_size=32))
    monkeypatch.chdir(tmp_path)
    asked = ["generate", str(places[2]), "--task", "image", "--user", USER, *options]
    code, told = run_command(monkeypatch, capsys, *asked)
    assert code == 2
    assert message in told
    assert told.count("\n") == 1


def test_a_vqgan_that_is_gone_is_asked_for(opened, monkeypatch):
    data, _ = opened
    codes = dataclasses.replace(data.vocabulary.image_codes, facts={"vqgan": "moved/away"})
    monkeypatch.setattr(data, "vocabulary", dataclasses.replace(data.vocabulary, image_codes=codes))
    with pytest.raises(DataError, match="the VQGAN that made the codes, moved/away, does not exist"):
        open_decoder(data, None)
    monkeypatch.setattr(data, "vocabulary", dataclasses.replace(data.vocabulary, image_codes=None))
    with pytest.raises(DataError, match="has no image codes"):
        open_decoder(data, None)


def test_images_without_codes_are_refused_before_a_folder_is_made(places):
    config = load_config(places[2] / "config.json")
    with pytest.raises(ValueError, match=r"vocabulary\.image_codes names no file"):
        dataclasses.replace(config, vocabulary=dataclasses.replace(config.vocabulary, image_codes=None))
