"""`unimp features`: vectors as the encoder makes them of one item alone, from wherever it was interrupted."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from data_pipelines.errors import DataError
from data_pipelines.image_decoding import decode_image
from data_pipelines.images import decode
from data_pipelines.item_vectors import read_vectors
from data_pipelines.records import read_items
from data_pipelines.schema import Item
from experiments import item_features
from experiments.item_encoders import ItemEncoder, ItemEncoderConfig, item_text
from experiments.item_features import CatalogueConfig, write_item_features
from experiments.lock import locked
from experiments.run import open_model
from tests.experiments.test_cli import run as unimp
from tests.experiments.tiny_run import experiment, prepare_source
from tests.experiments.untrained_run import write_run
from unimp_jax.interop.layout import WeightsError

torch = pytest.importorskip("torch", reason="encoders of transformers are torch's")
transformers = pytest.importorskip("transformers")

SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = SIZE | {"image_size": 16, "patch_size": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> CatalogueConfig:
    return CatalogueConfig("movielens_small", prepare_source(tmp_path_factory.mktemp("source")))


@pytest.fixture(scope="module")
def items(data) -> list[Item]:
    return list(read_items(data.source, data.folder))


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    """Texts of several lengths, which are words of one letter and more."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "genres", "year", "action", "comedy", "drama"]
    words += ["horror", *"0123456789", *(f"##{digit}" for digit in range(10))]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer.from_pretrained(folder).save_pretrained(folder)
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=20, **SIZE)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def write_vision(folder: Path, model) -> Path:
    model.save_pretrained(folder)
    size = {"height": 16, "width": 16}
    transformers.ViTImageProcessor(size=size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return write_vision(tmp_path_factory.mktemp("vit"), transformers.ViTModel(transformers.ViTConfig(**VISION)))


def written(path: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(path)
    vectors = np.array(table["vector"].to_pylist(), np.float32)
    return dict(zip(table["item_id"].to_pylist(), vectors, strict=True))


def test_a_text_says_each_thing_once():
    attributes = (("Genres", "Comedy, Drama"), ("Title", "Big"), ("Description", ""), ("Year", "1988"))
    item = Item("7", "Big", attributes, ("Comedy", "Drama"))
    assert item_text(item) == "Big. Genres: Comedy, Drama. Year: 1988"
    assert item_text(Item("7", "Big", (), ("Comedy", "Drama"))) == "Big. Category: Comedy, Drama"
    assert item_text(Item("7", "7", (("Title", " "),))) == "", "an id says nothing"


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_vectors_of_text_are_those_of_each_text_alone(data, items, bert, tmp_path, pooling):
    path = tmp_path / "text.parquet"
    told = write_item_features(path, data, ItemEncoderConfig(text=str(bert), pooling=pooling), batch_size=7)
    assert told == (f"{path}: {len(items)} vectors of 16 features, by {bert}\ntrain with --content.vectors {path}")
    found = written(path)
    assert list(found) == [item.item_id for item in items]
    model, tokenizer = (auto.from_pretrained(bert) for auto in (transformers.AutoModel, transformers.AutoTokenizer))
    lengths = set()
    for item in items:
        ids = tokenizer(item_text(item), truncation=True, max_length=20)["input_ids"]
        lengths.add(len(ids))
        with torch.no_grad():
            output = model(torch.tensor([ids]))
        states = output.last_hidden_state[0]
        expected = {"mean": states.mean(0), "cls": states[0], "pooler": output.pooler_output[0]}[pooling]
        np.testing.assert_allclose(found[item.item_id], expected, atol=1e-5)
    assert len(lengths) > 1, "some are padded"
    np.testing.assert_array_equal(read_vectors(path, list(found)[::-1]), np.stack(list(found.values()))[::-1])
    assert [file.name for file in tmp_path.iterdir()] == ["text.parquet"]


@pytest.mark.parametrize("kind", ["pooler", "no pooler", "clip"])
def test_vectors_of_images_are_those_of_each_image_alone(data, items, vit, tmp_path, kind):
    torch.manual_seed(1)
    model = transformers.ViTModel.from_pretrained(vit).eval()
    if kind == "no pooler":  # as in published classifiers: transformers would draw one at random
        model = transformers.ViTModel(model.config, add_pooling_layer=False).eval()
    if kind == "clip":
        text = SIZE | {"vocab_size": 9, "max_position_embeddings": 5}
        clip = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)
        model = transformers.CLIPModel(clip).eval()
    folder, path = write_vision(tmp_path / "model", model), tmp_path / "images.parquet"
    told = write_item_features(path, data, ItemEncoderConfig(image=str(folder)), batch_size=8)
    assert "29 vectors" in told
    assert "; items left out: 1 without image\n" in told
    found = written(path)
    shown = [item for item in items if item.image]
    assert list(found) == [item.item_id for item in shown]
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    for item in shown:
        pixels = processor(images=decode_image(item.image), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            if kind == "clip":
                expected = model.visual_projection(model.vision_model(pixels).pooler_output)[0]
            else:
                output = model(pixels)
                expected = output.pooler_output[0] if kind == "pooler" else output.last_hidden_state[0].mean(0)
        np.testing.assert_allclose(found[item.item_id], expected, atol=1e-5)


def killed_after(monkeypatch, batches: int):
    """The process ends after so many batches."""
    write, left = item_features.write_batch, iter(range(batches))

    def until_killed(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(item_features, "write_batch", until_killed)


def test_a_killed_command_goes_on_and_gives_the_same_bytes(data, bert, tmp_path, monkeypatch, capsys):
    config, whole, path = ItemEncoderConfig(text=str(bert)), tmp_path / "whole.parquet", tmp_path / "killed.parquet"
    write_item_features(whole, data, config, batch_size=8)
    with monkeypatch.context() as killing:
        killed_after(killing, 3)
        with pytest.raises(KeyboardInterrupt):
            write_item_features(path, data, config, batch_size=8)
    assert not path.exists()
    with monkeypatch.context() as killing:
        killed_after(killing, 1)  # of four batches three are there
        write_item_features(path, data, config, batch_size=8)
    assert "3 batches are already finished" in capsys.readouterr().out
    assert path.read_bytes() == whole.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["killed.parquet", "whole.parquet"]


@pytest.mark.parametrize("change", ["items", "encoder", "batch size", "probe"])
def test_batches_of_something_else_are_made_anew(data, bert, tmp_path, monkeypatch, capsys, change):
    config, path = ItemEncoderConfig(text=str(bert)), tmp_path / "v.parquet"
    with monkeypatch.context() as killing:
        killed_after(killing, 2)
        with pytest.raises(KeyboardInterrupt):
            write_item_features(path, data, config, batch_size=8)
    size = 9 if change == "batch size" else 8
    if change == "encoder":
        config = dataclasses.replace(config, pooling="cls")
    else:
        facts = tmp_path / ".v.parquet.batches" / item_features.FACTS
        before = json.loads(facts.read_bytes())
        other = {"items": "another digest", "probe": [value + 0.01 for value in before["probe"]]}
        facts.write_text(json.dumps(before | {name: value for name, value in other.items() if name == change}))
    write_item_features(path, data, config, batch_size=size)
    assert f"restarted from the first batch, because these changed: {change}" in capsys.readouterr().out
    write_item_features(tmp_path / "whole.parquet", data, config, batch_size=size)
    assert path.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_an_image_that_cannot_be_read_is_left_out_alone(data, items, vit, tmp_path, monkeypatch):
    broken = [dataclasses.replace(item, image=item.image[:40]) if n == 3 else item for n, item in enumerate(items)]
    monkeypatch.setattr(item_features, "read_items", lambda *_: broken)
    path = tmp_path / "v.parquet"
    told = write_item_features(path, data, ItemEncoderConfig(image=str(vit)), batch_size=1)
    assert "; items left out: 1 without image, 1 with unreadable images\n" in told
    assert list(written(path)) == [item.item_id for n, item in enumerate(items) if item.image and n != 3]
    monkeypatch.setattr(item_features, "read_items", lambda *_: [broken[3]])
    with pytest.raises(DataError, match="no image of movielens_small can be read"):
        write_item_features(path, data, ItemEncoderConfig(image=str(vit)))


def test_a_file_has_one_writer_and_ends_in_parquet(data, bert, tmp_path):
    path, config = tmp_path / "v.parquet", ItemEncoderConfig(text=str(bert))
    (tmp_path / ".v.parquet.batches").mkdir()
    with (
        locked(tmp_path / ".v.parquet.batches" / "lock"),
        pytest.raises(DataError, match="is being written by process"),
    ):
        write_item_features(path, data, config)
    write_item_features(path, data, config)
    with pytest.raises(DataError, match=r"the file must end in \.parquet"):  # an .npz would be read as one
        write_item_features(tmp_path / "v.npz", data, config)


def test_numbers_that_are_not_finite_end_the_command(data, tmp_path, monkeypatch):
    encoder = ItemEncoder("broken", item_text, lambda texts: np.full((len(texts), 2), np.inf), np.zeros(2))
    monkeypatch.setattr(item_features, "open_item_encoder", lambda _: encoder)
    with pytest.raises(DataError, match="broken computes values that are not finite"):
        write_item_features(tmp_path / "v.parquet", data, ItemEncoderConfig(wordllama=True))
    assert not (tmp_path / "v.parquet").exists()


@pytest.mark.slow  # the model of a run is opened three times
def test_a_run_gives_its_tower_and_its_embeddings(data, items, tmp_path):
    run = write_run(experiment(data.folder), tmp_path / "run")
    write_item_features(tmp_path / "i.parquet", data, ItemEncoderConfig(run=run, checkpoint="latest"), batch_size=4)
    text = ItemEncoderConfig(run=run, run_text=True, checkpoint="latest")
    write_item_features(tmp_path / "t.parquet", data, text)
    opened, predictor, _ = open_model(run, "latest")
    net, seen, read = predictor.model(), written(tmp_path / "i.parquet"), written(tmp_path / "t.parquet")
    assert list(seen) == [item.item_id for item in items if item.image]
    for item in items[:6]:
        rows = np.array(opened.vocabulary.encode_all([item_text(item)])[0])
        np.testing.assert_allclose(read[item.item_id], np.asarray(net.embeddings.base[...])[rows].mean(0), atol=1e-5)
        if item.image:
            patches = np.asarray(net.vision(decode(item.image, 16, "stretch")[None]))[0]
            np.testing.assert_allclose(seen[item.item_id], patches.mean(0), rtol=1e-4, atol=1e-4)


def test_wordllama_gives_the_mean_of_word_vectors(data, items, tmp_path):
    wordllama = pytest.importorskip("wordllama", reason="pip install 'unimp_jax[wordllama]'")
    write_item_features(tmp_path / "v.parquet", data, ItemEncoderConfig(wordllama=True), batch_size=8)
    package, found = Path(wordllama.__file__).parent, written(tmp_path / "v.parquet")
    table = load_file(package / "weights" / "l2_supercat_256.safetensors")["embedding.weight"].astype(np.float32)
    tokenizer = Tokenizer.from_file(str(package / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    assert len(found) == len(items)
    for item in items:
        ids = tokenizer.encode(item_text(item), add_special_tokens=False).ids
        np.testing.assert_allclose(found[item.item_id], table[ids].mean(0), atol=1e-5)


@pytest.mark.parametrize(
    ("encoder", "told"),
    [
        (["--text", "nowhere"], "nowhere does not exist"),
        (["--text", "VIT"], "not an encoder of texts, because it has no tokenizer"),
        (["--text", "BROKEN"], "vit_with_tokenizer: not an encoder of texts ("),
        (["--image", "BERT"], "not an encoder of images ("),
        (["--image", "EMPTY"], "transformers cannot read this model ("),
        (["--image", "VIT", "--wordllama", "True"], "2 encoders are given; give exactly one of --text MODEL, "),
        ([], "0 encoders are given; give exactly one of --text MODEL, "),
        (["--wordllama", "True", "--run-text", "True"], "run_text needs a run; give its folder with --run"),
        (["--run", "nowhere"], "is nowhere the folder of a run?"),
        (["--text", "BERT", "--data.source", "movielens_1m"], "run `unimp prepare movielens_1m"),
    ],
)
def test_mistakes_are_one_line(data, bert, vit, tmp_path, monkeypatch, capsys, encoder, told):
    both = tmp_path / "vit_with_tokenizer"
    both.mkdir()
    for file in [*vit.iterdir(), bert / "tokenizer.json", bert / "tokenizer_config.json"]:
        (both / file.name).write_bytes(file.read_bytes())
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    named = {"BERT": str(bert), "VIT": str(vit), "BROKEN": str(both), "EMPTY": "empty"}
    place = [] if "--data.source" in encoder else ["--data.source", data.source]
    arguments = ["v.parquet", *place, "--data.folder", str(data.folder), *(named.get(word, word) for word in encoder)]
    code, text = unimp(monkeypatch, capsys, "features", *arguments)
    assert (code, text.count("\n")) == (2, 1), text
    assert told in text
    assert not Path("v.parquet").exists()


def test_a_pooler_that_was_never_trained_is_refused(data, bert, tmp_path):
    model = transformers.BertModel.from_pretrained(bert, add_pooling_layer=False)
    model.save_pretrained(tmp_path / "bert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bert" / name).write_bytes((bert / name).read_bytes())
    config = ItemEncoderConfig(text=str(tmp_path / "bert"), pooling="pooler")
    with pytest.raises(WeightsError, match="no trained pooler; use --pooling mean or cls"):
        write_item_features(tmp_path / "v.parquet", data, config)


def test_a_missing_package_is_named(data, bert, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(WeightsError, match=r"needs torch: pip install 'unimp_jax\[torch\]'"):
        write_item_features(tmp_path / "v.parquet", data, ItemEncoderConfig(text=str(bert)))
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(DataError, match=r"pip install 'unimp_jax\[wordllama\]'"):
        write_item_features(tmp_path / "v.parquet", data, ItemEncoderConfig(wordllama=True))
