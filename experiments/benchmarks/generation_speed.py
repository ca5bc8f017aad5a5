"""Ten recommendations a user: this project's search against `generate(num_beams=10)` of transformers.

    python -m experiments.benchmarks.generation_speed --data data

One process, the same weights (exported as Idefics), the same real prompts: MovieLens small's test users, five films
with poster and attributes each, as the paper has them. Both sides are given arrays that are ready: neither tokenising
nor decoding of images is timed. transformers runs under inference mode with its cache, one user at a time (as the UniMP
reference does) and in batches, padded on the left; the faster of the two is what the ratio is of. Its search runs over
the whole vocabulary; ours is constrained to the catalogue, so it alone is sure to answer with ten items that the user
has not met.

Ours is timed twice: as it serves a catalogue, whose images have been encoded once beforehand (that time is reported),
and with the images of each prompt encoded anew, as transformers has to.
"""

from __future__ import annotations

import bisect
import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import tyro
from flax import nnx
from transformers import IdeficsForVisionText2Text

from data_pipelines.item_codes import ItemCodes, save_codes
from data_pipelines.loader import LoaderConfig
from data_pipelines.tasks import Query
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import Example, RowShape
from data_pipelines.tasks.queries import held_out_queries
from experiments.benchmarks.beside_transformers import export_weights, films, padded
from experiments.benchmarks.measuring import CORES, print_header, print_row, runs_a_second
from experiments.data import ExperimentData, sized_model
from experiments.evals.ranking import seen_items
from experiments.step import to_device
from unimp_jax.evaluation.predictor import Predictor
from unimp_jax.sharding import MeshConfig, init_model, make_mesh

K = 10
LAYOUT = (512, 512, 512, 32)
TOKENS = 256
"""Of a row, at most: ours are as long as wastes the fewest."""
LONG_ENOUGH = 1.0
"""Seconds that a timing takes at least: what runs faster is run several times in it."""
ASKED = {
    "16 x 2": (48, 600, 64),
    "64 x 2": (32, 256, 64),
    "128 x 4": (20, 128, 32),
    "256 x 6": (20, 96, 16),
    "512 x 8": (20, 96, 12),
    "768 x 12": (20, 96, 8),
}
"""Size -> rows a batch of ours; users, of whom as many are asked as make full batches; and how many of them, the first
ones, are asked of transformers."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compared."""

    data: Path = Path("data")
    """Where MovieLens small is, or will be, prepared."""
    sizes: tuple[str, ...] = tuple(ASKED)
    depths: tuple[int, ...] = (1, 4)
    """Tokens of an item's id."""
    repeats: int = 5
    """The median of so many is taken."""
    batch: int = 16
    """Users a batch for transformers, where it is not one."""
    seed: int = 0


def open_data(size: str, depth: int, options: Options, folder: Path) -> ExperimentData:
    """The data, with random ids of the layout where an item has more than one token."""
    config = films(
        size, options.data, options.seed, tasks=TaskConfig(full_items=5, id_items=0),
        row_shape=RowShape(tokens=TOKENS, images=32, answers=64), loader=LoaderConfig(batch_size=ASKED[size][0]),
    )  # fmt: skip
    data = ExperimentData.load(config)
    if depth > 1:
        names, path = tuple(data.corpus.item_ids), folder / "codes.parquet"
        codes = np.random.default_rng(options.seed).integers(0, LAYOUT, (len(names), len(LAYOUT)), dtype=np.int32)
        save_codes(path, ItemCodes(names, codes, LAYOUT))
        config = dataclasses.replace(config, vocabulary=dataclasses.replace(config.vocabulary, item_codes=path))
        data = ExperimentData.load(config)
    data.config = sized_model(config, data.vocabulary)
    return data


def compare(size: str, depth: int, options: Options, folder: Path) -> list[str]:
    """A row of the table."""
    (_, users, theirs), data = ASKED[size], open_data(size, depth, options, folder)
    queries = held_out_queries(data.corpus, "test", "recommendation")[:users]
    prompts = filling(data.writer.write_all(queries, ask=True), data)
    queries, mesh = queries[: len(prompts)], make_mesh(MeshConfig(data=-1))
    with jax.set_mesh(mesh):
        net = init_model(data.config.model, mesh, options.seed)
        graph, state = nnx.split(net)
        predictor = Predictor(graph, mesh, to_device(mesh), (state,))
        start = time.perf_counter()
        served = predictor.encode_catalogue(data.writer.has_image, data.images.__getitem__)
        jax.block_until_ready(served.latents_ILC)
        encoding = time.perf_counter() - start
        runs: dict[str, Callable[[], Any]] = {
            "ours": search(data, served, queries, prompts),
            "ours, images too": search(data, predictor, queries, prompts),
            "one by one": generate(data, net, prompts[:theirs], 1, depth, folder / "one"),
            "in batches": generate(data, net, prompts[:theirs], options.batch, depth, folder / "batched"),
        }
        found, again, _, valid = [run() for run in runs.values()]  # to compile, and to warm up
        turns = [[runs_a_second(run, LONG_ENOUGH) for run in runs.values()] for _ in range(options.repeats)]
    assert (found >= 0).all(), "every answer is an item"
    assert (found == again).mean() > 0.99, "images that were encoded before are those encoded now"
    asked = np.array([len(prompts), len(prompts), theirs, theirs])
    ours, images_too, one, batched = np.median(turns, axis=0) * asked
    spread = max(turn[0] for turn in turns) / min(turn[0] for turn in turns)
    return [
        size, f"{sum(x.size for x in jax.tree.leaves(state)) / 1e6:.1f} M", f"{depth}",
        f"{np.mean([len(prompt.tokens) for prompt in prompts]):.0f}", f"{one:.2f}", f"{batched:.2f}",
        f"{images_too:.1f}", f"{images_too / max(one, batched):.1f}", f"**{ours:.1f}** (max/min {spread:.2f})",
        f"**{ours / max(one, batched):.1f}**", f"{valid:.0%}", f"{encoding:.1f} s",
    ]  # fmt: skip


def filling(prompts: list[Example], data: ExperimentData) -> list[Example]:
    """As many of the first prompts as fill whole batches, as all but the last of a long evaluation are."""

    def batches(count: int) -> int:
        return len(list(data.questions(prompts[:count], tight=True, with_images=False)))

    most = batches(len(prompts)) - 1 or 1
    return prompts[: bisect.bisect_right(range(1, len(prompts) + 1), most, key=batches)]


def search(
    data: ExperimentData, predictor: Predictor, queries: Sequence[Query], prompts: list[Example]
) -> Callable[[], Any]:
    """Ours: packed batches that are ready, on the mesh; the ten best items of every user."""
    batches = list(data.questions(prompts, tight=True, with_images=predictor.needs_images))
    trie, seen = data.trie, seen_items(data.corpus, queries)

    def run() -> np.ndarray:
        return predictor.best_items(batches, len(queries), trie=trie, excluded=seen, k=K, beams=K)[0]

    return run


def generate(
    data: ExperimentData, model: Any, prompts: list[Example], users: int, new_tokens: int, folder: Path
) -> Callable[[], float]:
    """transformers: so many users at a time. Returns the share of its answers that are items."""
    export_weights(folder, model.config, nnx.state(model))
    net = IdeficsForVisionText2Text.from_pretrained(folder).eval()
    starts = range(0, len(prompts), users)
    arrays = [padded(prompts[start : start + users], data.images, "left") for start in starts]
    inputs = [{name: torch.tensor(array) for name, array in batch.items()} for batch in arrays]
    names = {tuple(name) for name in data.vocabulary.items.tolist()}

    @torch.inference_mode()
    def run() -> float:
        valid = 0
        for batch in inputs:
            answers = net.generate(
                **batch, num_beams=K, num_return_sequences=K, do_sample=False, max_new_tokens=new_tokens,
                min_new_tokens=new_tokens, eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
            valid += sum(tuple(name) in names for name in answers[:, -new_tokens:].tolist())
        return valid / (K * len(prompts))

    return run


def main(options: Options) -> None:
    torch.set_num_threads(CORES)
    print(f"users/s, {K} items each; {CORES} cores, float32, median of {options.repeats}, seed {options.seed}\n")
    print_header(
        [
            "model", "parameters", "id tokens", "prompt", "transformers, one by one", "in batches", "ours, images too",
            "ratio", "**ours**", "**ratio**", "items among theirs", "catalogue encoded in",
        ]
    )  # fmt: skip
    for size in options.sizes:
        for depth in options.depths:
            with tempfile.TemporaryDirectory() as folder:
                print_row(compare(size, depth, options, Path(folder)))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
