"""Ten recommendations a user: this project's search against `generate(num_beams=10)` of transformers.

One process, the same weights (exported as Idefics), the same real prompts: MovieLens small's test users, five films
with poster and attributes each, as the paper has them. Run it with

    python -m experiments.benchmarks.generation_speed --data data

Both sides are given arrays that are ready: neither tokenising nor decoding of pictures is timed. transformers runs
under inference mode with its cache, one user at a time (as the UniMP reference does) and in batches, padded on the
left; the faster of the two is what the ratio is of. Its search runs over the whole vocabulary; ours is constrained to
the catalogue, so it alone is sure to answer with ten items that the user has not met.

Ours is timed twice: as it serves a catalogue, whose pictures have been encoded once beforehand (that time is told), and
with the pictures of each prompt encoded anew, as transformers has to.
"""

from __future__ import annotations

import bisect
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from flax import nnx

from data_pipelines.images import ImageConfig
from data_pipelines.item_codes import ItemCodes, save_codes
from data_pipelines.loader import LoaderConfig
from data_pipelines.prepare import prepare
from data_pipelines.tasks import Query
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import Budget, Example
from data_pipelines.tasks.queries import held_out_queries
from data_pipelines.vocabulary import VocabularyConfig
from experiments.benchmarks.peer_inputs import export_weights, padded
from experiments.benchmarks.sizes import Size, geometry
from experiments.config import DataConfig, ExperimentConfig
from experiments.data import ExperimentData, sized_model
from experiments.evals.ranking import seen_items
from experiments.step import to_device
from unimp_jax.evaluation.predictor import Predictor
from unimp_jax.sharding import MeshConfig, init_model, make_mesh

K = 10
LAYOUT = (512, 512, 512, 32)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A model, and how many users are asked to time it."""

    size: Size
    users: int
    """At most; as many of them as make full batches."""
    theirs: int
    """So many of them (the first) are asked of transformers."""
    rows: int = 20
    """Rows a batch, for ours."""


TOKENS = 256
"""Of a row, at most: ours are as long as wastes the fewest."""

LONG_ENOUGH = 1.0
"""Seconds that a timing takes at least: what runs faster is run several times in it."""

ASKED = (
    Asked(Size(16, 2), users=600, theirs=64, rows=48),
    Asked(Size(64, 2), users=256, theirs=64, rows=32),
    Asked(Size(128, 4), users=128, theirs=32),
    Asked(Size(256, 6), users=96, theirs=16),
    Asked(Size(512, 8), users=96, theirs=12),
    Asked(Size(768, 12), users=96, theirs=8),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compared."""

    data: Path = Path("data")
    """Where MovieLens small is, or will be, prepared."""
    sizes: tuple[str, ...] = tuple(asked.size.name for asked in ASKED)
    depths: tuple[int, ...] = (1, 4)
    """Tokens of an item's id."""
    repeats: int = 5
    """The median of so many is taken."""
    batch: int = 16
    """Users a batch for transformers, where it is not one."""
    seed: int = 0


def random_codes(items: Sequence[str], path: Path, seed: int) -> Path:
    """Distinct ids without meaning: what matters here is their layout."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, LAYOUT, (len(items), len(LAYOUT)), dtype=np.int32)
    save_codes(path, ItemCodes(tuple(items), codes, LAYOUT))
    return path


def experiment(asked: Asked, depth: int, options: Options, folder: Path) -> ExperimentData:
    config = ExperimentConfig(
        model=geometry(asked.size),
        data=DataConfig("movielens_small", options.data),
        vocabulary=VocabularyConfig(trained_size=2048, attributes=("Genres", "Year", "Title")),
        tasks=TaskConfig(full_items=5, id_items=0),
        budget=Budget(tokens=TOKENS, images=32, answers=64),
        images=ImageConfig(fit="stretch"),
        loader=LoaderConfig(rows=asked.rows),
        seed=options.seed,
    )
    data = ExperimentData.load(config)
    if depth > 1:
        codes = random_codes(data.corpus.item_ids, folder / "codes.parquet", options.seed)
        config = dataclasses.replace(config, vocabulary=dataclasses.replace(config.vocabulary, item_codes=codes))
        data = ExperimentData.load(config)
    data.config = sized_model(config, data.vocabulary)
    return data


def compare(asked: Asked, depth: int, options: Options, folder: Path) -> dict[str, float]:
    """Users a second of both, and what of transformers' answers are items."""
    data = experiment(asked, depth, options, folder)
    queries = held_out_queries(data.corpus, "test", "recommendation")[: asked.users]
    prompts = filling([data.writer.write(query, ask=True) for query in queries], data)
    queries = queries[: len(prompts)]
    mesh = make_mesh(MeshConfig(data=-1))
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
            "ours, pictures too": search(data, predictor, queries, prompts),
            "one by one": peer(data, net, prompts[: asked.theirs], 1, depth, folder / "one"),
            "batched": peer(data, net, prompts[: asked.theirs], options.batch, depth, folder / "batched"),
        }
        found, again, _, valid = [run() for run in runs.values()]  # to compile, and to warm up
        turns = {name: round(LONG_ENOUGH / timed(run)) or 1 for name, run in runs.items()}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.repeats):
            for name, run in runs.items():
                seconds[name].append(timed(run, turns[name]) / turns[name])
    assert (found >= 0).all(), "every answer is an item"
    assert (found == again).mean() > 0.99, "pictures that were encoded before are those encoded now"
    counts = {name: len(prompts) if name.startswith("ours") else asked.theirs for name in runs}
    rates = {name: counts[name] / statistics.median(times) for name, times in seconds.items()}
    theirs = max(rates["one by one"], rates["batched"])
    return rates | {
        "ratio": rates["ours"] / theirs,
        "ratio, pictures too": rates["ours, pictures too"] / theirs,
        "spread": max(seconds["ours"]) / min(seconds["ours"]),
        "encoding": encoding,
        "theirs valid": valid,
        "tokens": float(np.mean([len(prompt.tokens) for prompt in prompts])),
        "parameters": float(sum(x.size for x in jax.tree.leaves(state))),
    }


def timed(run: Callable[[], Any], turns: int = 1) -> float:
    """Seconds."""
    start = time.perf_counter()
    for _ in range(turns):
        run()
    return time.perf_counter() - start


def filling(prompts: list[Example], data: ExperimentData) -> list[Example]:
    """As many of the first prompts as fill whole batches, as all but the last of a long evaluation are."""

    def batches(count: int) -> int:
        return len(list(data.questions(prompts[:count], tight=True, pictures=False)))

    counts = range(1, len(prompts) + 1)
    most = batches(len(prompts)) - 1 or 1
    return prompts[: bisect.bisect_right(counts, most, key=batches)]


def search(
    data: ExperimentData, predictor: Predictor, queries: Sequence[Query], prompts: list[Example]
) -> Callable[[], Any]:
    """Ours: packed batches that are ready, on the mesh; the ten best items of every user."""
    batches = list(data.questions(prompts, tight=True, pictures=predictor.needs_images))
    trie, seen = data.trie, seen_items(data.corpus, queries)

    def run() -> np.ndarray:
        return predictor.best_items(batches, len(queries), trie=trie, excluded=seen, k=K, beams=K)[0]

    return run


def peer(
    data: ExperimentData, model: Any, prompts: list[Example], users: int, new_tokens: int, folder: Path
) -> Callable[[], float]:
    """transformers: so many users at a time. Returns the share of its answers that are items."""
    import torch
    from transformers import IdeficsForVisionText2Text

    export_weights(folder, model.config, nnx.state(model))
    net = IdeficsForVisionText2Text.from_pretrained(folder).eval()
    starts = range(0, len(prompts), users)
    arrays = [padded(prompts[start : start + users], data.images, "left") for start in starts]
    inputs = [{name: torch.tensor(array) for name, array in batch.items()} for batch in arrays]
    names = {tuple(name) for name in data.vocabulary.items.tolist()}

    def run() -> float:
        valid = 0
        for batch in inputs:
            with torch.inference_mode():
                said = net.generate(
                    **batch, num_beams=K, num_return_sequences=K, do_sample=False, max_new_tokens=new_tokens,
                    min_new_tokens=new_tokens, eos_token_id=None, pad_token_id=0,
                )  # fmt: skip
            valid += sum(tuple(name) in names for name in said[:, -new_tokens:].tolist())
        return valid / (K * len(prompts))

    return run


def main(options: Options) -> None:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if not (options.data / "movielens_small").exists():
        print(prepare("movielens_small", options.data))
    cores = len(os.sched_getaffinity(0))
    print(f"users/s, {K} items each; {cores} cores, float32, median of {options.repeats}, seed {options.seed}\n")
    print(
        "| model | parameters | id tokens | prompt | transformers, one by one | in batches | ours, pictures too "
        "| ratio | **ours** | **ratio** | items among theirs | catalogue encoded in |"
    )
    print("|---" * 12 + "|")
    for asked in ASKED:
        for depth in options.depths if asked.size.name in options.sizes else ():
            with tempfile.TemporaryDirectory() as folder:
                x = compare(asked, depth, options, Path(folder))
            print(
                f"| {asked.size.name} | {x['parameters'] / 1e6:.1f} M | {depth} | {x['tokens']:.0f} "
                f"| {x['one by one']:.2f} | {x['batched']:.2f} "
                f"| {x['ours, pictures too']:.1f} | {x['ratio, pictures too']:.1f} "
                f"| **{x['ours']:.1f}** (max/min time {x['spread']:.2f}) | **{x['ratio']:.1f}** "
                f"| {x['theirs valid']:.0%} | {x['encoding']:.1f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main(tyro.cli(Options))
