"""A catalogue's trie: how long it takes to build, and what a search along it costs, from 1,000 to 1,000,000 items.

    python -m experiments.benchmarks.trie_speed

Random ids in the default layout, 3 x 512 + 32 codes; a model of `tiny`'s decoder with random weights; 10 beams and 10
items a user. The prompts are read once, outside of what is timed: what is timed is the search, that is, for each level
a choice among the branches, and a decoding step between two of them.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from experiments.benchmarks.measuring import print_header, print_row, timed
from unimp_jax.batch import Batch
from unimp_jax.decoding import PromptCache, build_trie, prefill, search_items
from unimp_jax.model import UniMP, presets

SIZES = (512, 512, 512, 32)
PROMPT = 64


def random_ids(count: int, depth: int, rng: np.random.Generator) -> np.ndarray:
    """Distinct ids of the last `depth` levels of the layout, as many as there are or `count`."""
    sizes = SIZES[-depth:]
    tokens = np.cumsum([0, *sizes[:-1]])
    drawn = np.unique(rng.integers(0, sizes, (int(1.05 * count) + 100, depth)), axis=0)
    return (rng.permutation(drawn)[:count] + tokens).astype(np.int32)


def prompts_of(model: UniMP, users: int, rng: np.random.Generator) -> tuple[jax.Array, PromptCache]:
    ones = np.ones((users, PROMPT), np.int32)
    last = np.full((users, 1), PROMPT - 1, np.int32)
    size = model.config.vision.image_size
    batch = Batch(
        tokens=rng.integers(0, sum(SIZES), ones.shape).astype(np.int32), segment_ids=ones,
        positions=ones * np.arange(PROMPT, dtype=np.int32), image_index=-ones,
        images=np.zeros((users, 1, size, size, 3), np.uint8), image_segment_ids=np.zeros((users, 1), np.int32),
        answer_positions=last, answer_targets=0 * last, answer_weights=np.ones((users, 1), np.float32),
        answer_tasks=0 * last,
    )  # fmt: skip
    return nnx.jit(prefill)(model, jax.tree.map(jnp.asarray, batch))


def main(
    items: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000), users: int = 32, repeats: int = 9, seed: int = 0
) -> None:
    """Prints a row for each size of the catalogue, with four levels of codes, and for fewer levels.

    Args:
      users: asked at once.
      repeats: the median of so many is taken.
    """
    rng = np.random.default_rng(seed)
    decoder = dataclasses.replace(presets.tiny.decoder, vocab_size=sum(SIZES))
    model = UniMP(dataclasses.replace(presets.tiny, decoder=decoder), rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    hidden, prompts = prompts_of(model, users, rng)

    @jax.jit
    def search(state: Any, hidden: Any, prompts: Any, trie: Any, excluded: Any) -> Any:
        return search_items(nnx.merge(graph, state), hidden, prompts, trie, excluded, k=10, beams=10)

    def milliseconds_a_user(trie: Any, excluded: Any) -> str:
        times = timed(lambda: search(state, hidden, prompts, trie, excluded), repeats)
        return f"{1e3 * np.median(times[:, 0]) / users:.2f}"

    print(f"{users} users at once, 10 beams, {repeats} repeats, seed {seed}\n")
    print_header(["items", "levels", "branching", "trie built", "search, ms a user", "with 100 met items each"])
    for count, depth in [*((count, 4) for count in items), (10_000, 2), (10_000, 3)]:
        ids = random_ids(count, depth, rng)
        start = time.perf_counter()
        trie = jax.block_until_ready(build_trie(ids))
        built = time.perf_counter() - start
        met = np.zeros((users, 1, len(ids)), bool)
        np.put_along_axis(met, rng.integers(0, len(ids), (users, 1, 100)), True, axis=-1)
        searched = milliseconds_a_user(trie, None), milliseconds_a_user(trie, jnp.asarray(met))
        print_row([f"{len(ids):,}", depth, " ".join(map(str, trie.branching)), f"{built:.2f} s", *searched])


if __name__ == "__main__":
    tyro.cli(main)
