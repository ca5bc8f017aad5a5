"""A trained run, exported, in the hands of stock transformers; and runs that begin with imported weights."""

import ast
import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.content import ContentConfig
from data_pipelines.errors import DataError
from data_pipelines.tasks import TASKS
from data_pipelines.tasks.queries import held_out_queries
from data_pipelines.trained_tokenizer import train_tokenizer
from data_pipelines.vocabulary import IMAGE_MARKER, VocabularyConfig
from experiments.config import TrainingConfig, load_config
from experiments.export import ExportConfig, export_run, prompt_parts, prompt_text
from experiments.run import open_model
from experiments.train import train_run
from tests.experiments.tiny_run import MODEL, experiment, prepare_source
from unimp_jax.interop.importing import ImportConfig, import_weights
from unimp_jax.interop.layout import WeightsError
from unimp_jax.interop.weights import open_weights
from unimp_jax.model import ProjectorConfig
from unimp_jax.model.presets import blocks_of

pytestmark = pytest.mark.slow  # a run is trained and exported

DECODER = dataclasses.replace(MODEL.decoder, norm="rms_norm", bias=False, mlp="swiglu")
IDEFICS = dataclasses.replace(
    MODEL,
    vision=dataclasses.replace(MODEL.vision, class_token_out=True),
    resampler=dataclasses.replace(MODEL.resampler, mlp="relu", mlp_ratio=4),
    decoder=DECODER,
    gated=blocks_of(DECODER, every=2),
)

LLAVA = dataclasses.replace(
    MODEL,
    vision=dataclasses.replace(
        MODEL.vision, class_token=False, patch_bias=True, norm="none", colours="siglip", activation="gelu_tanh"
    ),
    decoder=dataclasses.replace(
        DECODER, heads=2, head_width=8, kv_heads=1, qk_norm=True, qk_norm_per_head=True, rotary_base=1e6
    ),
    fusion="interleaved",
)
"""Qwen3 behind SigLIP."""
SMOLVLM = dataclasses.replace(
    LLAVA,
    vision=dataclasses.replace(LLAVA.vision, patch_size=4, norm="last"),
    decoder=DECODER,
    projector=ProjectorConfig("pixel_shuffle", scale=2),
)

CONTENT = ContentConfig(attributes=("Category",), least_items=1, popularity=True, rating=True)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """(prepared data, a short run in Idefics' geometry, whose rows have content)"""
    folder = tmp_path_factory.mktemp("export")
    data = prepare_source(folder)
    config = experiment(data, steps=4, model=IDEFICS, content=CONTENT)
    config = dataclasses.replace(config, vocabulary=dataclasses.replace(config.vocabulary, category_items=1))
    train_run(config, folder / "run")
    return data, folder / "run"


@pytest.fixture(scope="module")
def exported(places, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_run(places[1], folder, ExportConfig(checkpoint="latest"))
    return folder


def test_stock_transformers_read_prompts_and_images_and_say_the_same(places, exported):
    torch = pytest.importorskip("torch")
    from transformers import AutoProcessor, IdeficsForVisionText2Text

    processor = AutoProcessor.from_pretrained(exported)
    theirs, loading = IdeficsForVisionText2Text.from_pretrained(exported, output_loading_info=True)
    assert not any(loading.values())
    data, ours, _ = open_model(places[1], "latest")
    for task in TASKS:
        for query in held_out_queries(data.corpus, "test", task)[:3]:
            example = data.writer.write(query, ask=True)
            images = iter(
                [Image.open(io.BytesIO(data.images.encoded(int(item)))).convert("RGB") for item in example.images]
            )
            parts = prompt_parts(data.vocabulary, example.tokens.tolist())
            prompt = [next(images) if part is None else part for part in parts]
            inputs = processor(text=[prompt], add_end_of_utterance_token=False, return_tensors="pt")
            assert inputs["input_ids"][0].tolist() == example.tokens.tolist()
            with torch.no_grad():
                expected = torch.log_softmax(theirs(**inputs).logits[0, -1], -1).numpy()
            everything = np.arange(data.vocabulary.size)
            found = ours.next_token(data.questions([example]), everything, 1)[0]
            np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    assert theirs.generation_config.eos_token_id == data.vocabulary.eos
    answer = theirs.generate(**inputs, max_new_tokens=3)
    assert processor.batch_decode(answer)


def vocabulary_with_markers(folder: Path) -> VocabularyConfig:
    """That of a tokenizer that knows what SmolVLM has around images."""
    tokenizer = train_tokenizer(["Film Action Comedy Drama Horror 1990 2009"] * 4, 300)
    tokenizer.add_special_tokens({"additional_special_tokens": list(dict.fromkeys(IMAGE_MARKER))})
    tokenizer.save_pretrained(folder)
    return VocabularyConfig(tokenizer=str(folder), attribute_words=4)


@pytest.mark.parametrize(
    ("format", "model", "markers"),
    [("llava", LLAVA, False), ("smolvlm", SMOLVLM, False), ("smolvlm", SMOLVLM, True)],
    ids=["llava", "smolvlm", "smolvlm, its tokens around images"],
)
def test_images_as_tokens_in_the_hands_of_stock_transformers(places, tmp_path, format, model, markers):
    """Given the card's prompt and the images, it has our log-probabilities and our best item."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if format == "smolvlm":
        pytest.importorskip("torchvision", reason="SmolVLM's processor needs torchvision")
        pytest.importorskip("num2words", reason="SmolVLM's processor needs num2words")
    training = TrainingConfig(trains=model.parts)
    config = experiment(places[0], steps=4, model=model, training=training, content=CONTENT)
    if markers:
        config = dataclasses.replace(config, vocabulary=vocabulary_with_markers(tmp_path / "tokenizer"))
    train_run(config, tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out", ExportConfig(format, "latest"))
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    theirs, told = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told.values())
    data, ours, _ = open_model(tmp_path / "run", "latest")
    card = (tmp_path / "out" / "README.md").read_text()
    shown = ast.literal_eval(re.search(r"^prompt = (.*)$", card, re.M)[1])
    for task in TASKS:
        for number, query in enumerate(held_out_queries(data.corpus, "test", task)[:3]):
            example = data.writer.write(query, ask=True)
            prompt = prompt_text(data.vocabulary, example, model)
            assert prompt == shown or task != "recommendation" or number
            images = [Image.open(io.BytesIO(data.images.encoded(int(item)))).convert("RGB") for item in example.images]
            images = [image.resize((16, 16), Image.Resampling.BICUBIC) for image in images]  # torchvision's is another
            inputs = processor(text=prompt, images=images or None, add_special_tokens=False, return_tensors="pt")
            assert inputs["input_ids"][0].tolist() == example.tokens.tolist()
            with torch.no_grad():
                expected = torch.log_softmax(theirs(**inputs).logits[0, -1], -1).numpy()
            found = ours.next_token(data.questions([example]), np.arange(data.vocabulary.size), 1)[0]
            np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
            items = data.vocabulary.items[:, 0]
            assert found[items].argmax() == expected[items].argmax()
    assert theirs.generation_config.eos_token_id == data.vocabulary.eos

    said = import_weights(ImportConfig(vision_language=str(tmp_path / "out")), tmp_path / "start")
    assert ("unused: vision_tower.vision_model.post_layernorm.bias" in said) == (format == "llava")
    again = experiment(places[0], steps=1, init_from=tmp_path / "start", model=model, training=config.training)
    train_run(again, tmp_path / "again")
    assert load_config(tmp_path / "again" / "config.json").model.vision == model.vision


def test_the_card_says_what_it_is(exported):
    card = (exported / "README.md").read_text()
    for told in ("movielens_small", "4\nsteps", "IdeficsForVisionText2Text.from_pretrained", "parameters that train"):
        assert told in card


def test_exported_weights_start_another_run(places, exported, tmp_path):
    """The export's items are in its tokenizer, so that they keep their rows; the first answers are the same."""
    data_folder, run = places
    import_weights(ImportConfig(vision_language=str(exported)), tmp_path / "start")
    config = experiment(data_folder, steps=2, init_from=tmp_path / "start", model=MODEL)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-9))
    train_run(config, tmp_path / "run")
    before, first, _ = open_model(run, "latest")
    after, second, _ = open_model(tmp_path / "run", "latest")
    assert load_config(tmp_path / "run" / "config.json").model.gated == IDEFICS.gated
    query = held_out_queries(before.corpus, "test", "recommendation")[0]
    answers = []
    for data, model in ((before, first), (after, second)):
        prompt = data.writer.write(query, ask=True)
        items = data.vocabulary.items[:, 0]
        answers.append(model.next_token(data.questions([prompt]), items, 1)[0])
    # The second run has reserved rows more, which take a little of all probabilities.
    np.testing.assert_allclose(answers[1] - answers[1].mean(), answers[0] - answers[0].mean(), atol=1e-4)
    train_run(config, tmp_path / "run")  # goes on, and finds nothing to do


def test_open_flamingo_has_every_key_of_its_geometry(places, tmp_path):
    """What its own class makes of such an export is tested in tests/unimp_jax/interop."""
    flamingo = dataclasses.replace(
        MODEL,
        resampler=dataclasses.replace(MODEL.resampler, mlp_ratio=4),
        gated=dataclasses.replace(MODEL.gated, mlp_ratio=4),
        decoder=dataclasses.replace(MODEL.decoder, tie_embeddings=False),
    )
    train_run(experiment(places[0], steps=2, model=flamingo), tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "out", ExportConfig("open_flamingo", "latest", shard_gigabytes=1e-4))
    weights = open_weights(tmp_path / "out")
    data, _, _ = open_model(tmp_path / "run", "latest")
    assert weights.arrays["lang_encoder.gpt_neox.embed_in.weight"].shape[0] == data.vocabulary.size
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    written = import_weights(ImportConfig(open_flamingo=str(tmp_path / "out")), tmp_path / "start")
    assert "unused: vision_encoder.ln_post.bias, vision_encoder.ln_post.weight" in written


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            ExportConfig("open_flamingo", "latest"),
            "open-flamingo does not support this geometry: .*vision.class_token_out is True",
        ),
        (ExportConfig("smolvlm", "latest"), "SmolVLM does not support this geometry: fusion is 'cross_attention'"),
        (
            ExportConfig("llava", "latest"),
            "LLaVA does not support this geometry: fusion is 'cross_attention' and must be 'interleaved'",
        ),
        (ExportConfig(checkpoint="latest", shard_gigabytes=0), "shard_gigabytes 0 must be above 0"),
        (ExportConfig(checkpoint="latest", shard_gigabytes=float("inf")), "shard_gigabytes inf must be above 0"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(places, tmp_path, config, message):
    with pytest.raises((WeightsError, DataError), match=message):
        export_run(places[1], tmp_path / "out", config)
    assert not list(tmp_path.iterdir())


def test_an_export_does_not_overwrite(places, exported):
    with pytest.raises(WeightsError, match="already exists"):
        export_run(places[1], exported, ExportConfig(checkpoint="latest"))


def test_a_start_without_a_tokenizer_is_refused(places, exported, tmp_path):
    folder = tmp_path / "start"
    import_weights(ImportConfig(vision_language=str(exported)), folder)
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    (folder / "tokenizer").rmdir()
    with pytest.raises(
        DataError, match=r"has no tokenizer; give that of the language model with --vocabulary\.tokenizer"
    ):
        train_run(experiment(places[0], steps=2, init_from=folder), tmp_path / "run")
    described = json.loads((folder / "start.json").read_text())
    assert described["sources"] == [str(exported)]
