"""What the presets compute on small data is what it was: examples token for token, losses, metrics and tables.

Golden values are in `tests/golden/presets.json`. `python -m tests.experiments.test_presets` writes them anew, which is
right only where a change of what is computed is meant.
"""

import dataclasses
import hashlib
import itertools
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.prepare import prepare
from data_pipelines.sources.selection import SourceSelection
from data_pipelines.tasks.queries import TrainingQueries
from experiments.config import DataConfig, ExperimentConfig
from experiments.data import ExperimentData
from experiments.evals.config import EvaluationConfig
from experiments.evaluate import evaluate_run
from experiments.presets import PRESETS
from experiments.train import train_run
from tests.data_pipelines.small import image
from tests.data_pipelines.test_hm import article, purchase
from tests.data_pipelines.test_hm import write as write_hm
from tests.experiments.tiny_run import write_source
from unimp_jax.training.log import read_log

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "presets.json"
EXAMPLES, STEPS = 50, 20
COLOURS = ("Black", "White", "Red", "Blue")
KINDS = ("Vest top", "Trousers", "Dress")


def write_fashion(folder: Path, customers: int = 40, products: int = 30) -> Path:
    """H&M's files, of products that come in two colours and have an image each."""
    rng = np.random.default_rng(0)
    ids = [f"0{100000 + product}0{colour:02}" for product in range(products) for colour in (1, 2)]
    articles = [
        article(
            one,
            prod_name=f"Thing {one[1:7]}",
            product_type_name=KINDS[int(one[1:7]) % 3],
            colour_group_name=COLOURS[rng.integers(4)],
        )
        for one in ids
    ]
    purchases = [
        purchase(f"{day + 1:02}", f"c{customer}", ids[rng.integers(len(ids))])
        for customer in range(customers)
        for day in range(rng.integers(4, 16))
    ]
    write_hm(folder, articles, purchases)
    with zipfile.ZipFile(folder / "images.zip", "w") as images:
        for number, product in enumerate(dict.fromkeys(one[:7] for one in ids)):
            images.writestr(zipfile.ZipInfo(f"{product[:3]}/{product}.jpg"), image(number))
    return folder


def write_sequences(folder: Path, users: int = 60, items: int = 50) -> Path:
    """S3-Rec's files, of items with two or three attributes."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    lines = [" ".join(map(str, [user, *rng.permutation(items)[: rng.integers(5, 20)]])) for user in range(users)]
    (folder / "Beauty.txt").write_text("\n".join(lines), encoding="utf-8")
    attributes = {str(item): rng.permutation(9)[: rng.integers(2, 4)].tolist() for item in range(items)}
    (folder / "Beauty_item2attributes.json").write_text(json.dumps(attributes), encoding="utf-8")
    return folder


def prepared(preset: str, folder: Path) -> DataConfig:
    """Small records for a preset."""
    source, data = folder / "source", folder / "data"
    if preset == "fashion":
        prepare("hm", data, write_fashion(source), name="hm-products", selection=SourceSelection(item="product"))
        return DataConfig("hm-products", data)
    if preset == "beauty":
        prepare("sequences", data, write_sequences(source), name="beauty")
        return DataConfig("beauty", data)
    prepare("movielens_small", data, write_source(source))
    return DataConfig("movielens_small", data)


def small_experiment(preset: str, data: DataConfig) -> ExperimentConfig:
    """The preset with eight rows a batch, for a few steps."""
    config = PRESETS[preset]
    return dataclasses.replace(
        config,
        data=data,
        loader=dataclasses.replace(config.loader, batch_size=8, block_examples=128),
        loop=dataclasses.replace(config.loop, steps=STEPS, log_every=1, validate_every=STEPS, save_every=STEPS),
    )


def digest(data: ExperimentData, config: ExperimentConfig) -> list[str]:
    """A digest of each of the first training examples: its tokens, images and targets."""
    queries, _ = TrainingQueries(data.corpus, config.queries, config.seed, data.has_codes).draw(0, EXAMPLES)
    digests = []
    for example in data.writer.write_all(list(queries)):
        parts = (example.tokens, example.images, example.answer_positions, example.answer_targets)
        whole = b"|".join(np.asarray(part, np.int32).tobytes() for part in parts)
        whole += np.asarray(example.answer_weights, np.float32).tobytes() + bytes([example.task])
        digests.append(hashlib.sha256(whole).hexdigest()[:16])
    return digests


def computed(preset: str, folder: Path) -> dict[str, Any]:
    """Everything that is compared."""
    config = small_experiment(preset, prepared(preset, folder))
    run = folder / "run"
    examples = digest(ExperimentData.load(config), config)
    train_run(config, run)
    log = read_log(run / "metrics.jsonl")
    evaluation = evaluate_run(run, EvaluationConfig(rivals=()))
    return {
        "examples": examples,
        "losses": [line["loss"] for line in log if line["kind"] == "train"],
        "validation": {
            name: value
            for line in log
            if line["kind"] == "validation"
            for name, value in line.items()
            if name != "kind"
        },
        "tables": {
            f"{table.task}: {row.model}: {name}": metric.mean
            for table in evaluation.tables
            for row in table.rows
            for name, metric in row.metrics.items()
        },
    }


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["tiny", "small", "beauty", "fashion"])
def test_a_preset_computes_what_it_did(preset: str, tmp_path: Path) -> None:
    golden, now = json.loads(GOLDEN.read_text(encoding="utf-8"))[preset], computed(preset, tmp_path)
    assert now["examples"] == golden["examples"]
    np.testing.assert_allclose(now["losses"], golden["losses"], rtol=1e-5)  # rounding of another machine's products
    for kind in ("validation", "tables"):
        assert sorted(now[kind]) == sorted(golden[kind])
        for name, value in golden[kind].items():
            np.testing.assert_allclose(now[kind][name], value, rtol=1e-5, atol=1e-5, err_msg=name)


if __name__ == "__main__":
    found = {}
    for name in ("tiny", "small", "beauty", "fashion"):
        with tempfile.TemporaryDirectory() as place:
            found[name] = computed(name, Path(place))
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print({name: list(itertools.islice(values["losses"], 3)) for name, values in found.items()})
