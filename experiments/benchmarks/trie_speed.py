"""A catalogue's trie: how long it takes to build, and what a search along it costs, from 1,000 to 1,000,000 items.

    python -m experiments.benchmarks.trie_speed

Random ids in the default layout, 3 x 512 + 32 codes; a model of `tiny`'s decoder with random weights; 10 beams and 10
items a user. The prompts are read once, outside of what is timed: what is timed is the search, that is, for each level
a choice among the branches, and a decoding step between two of them.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from unimp_jax.batch import Batch
from unimp_jax.decoding import Prompts, build_trie, close, read, search_items
from unimp_jax.model import UniMP, presets

SIZES = (512, 512, 512, 32)
PROMPT = 64


@dataclasses.dataclass(frozen=True)
class Options:
    """What is timed."""

    items: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    users: int = 32
    """Asked at once."""
    repeats: int = 9
    """The median of so many is taken."""
    seed: int = 0


def random_ids(count: int, depth: int, rng: np.random.Generator) -> np.ndarray:
    """Distinct ids of the last `depth` levels of the layout, as many as there are or `count`."""
    sizes = SIZES[-depth:]
    tokens = np.cumsum([0, *sizes[:-1]])
    drawn = np.unique(rng.integers(0, sizes, (int(1.05 * count) + 100, depth)), axis=0)
    return (rng.permutation(drawn)[:count] + tokens).astype(np.int32)


def model() -> UniMP:
    """`tiny`, with a table of new tokens for all codes."""
    decoder = dataclasses.replace(presets.tiny.decoder, vocab_size=sum(SIZES))
    return UniMP(dataclasses.replace(presets.tiny, decoder=decoder), rngs=nnx.Rngs(0))


def prompts_of(net: UniMP, users: int, rng: np.random.Generator) -> tuple[jax.Array, Prompts]:
    ones = np.ones((users, PROMPT), np.int32)
    last = np.full((users, 1), PROMPT - 1, np.int32)
    size = net.config.vision.image_size
    batch = Batch(
        tokens=rng.integers(0, sum(SIZES), ones.shape).astype(np.int32), segment_ids=ones,
        positions=ones * np.arange(PROMPT, dtype=np.int32), image_index=-ones,
        images=np.zeros((users, 1, size, size, 3), np.uint8), image_segment_ids=np.zeros((users, 1), np.int32),
        answer_positions=last, answer_targets=0 * last, answer_weights=np.ones((users, 1), np.float32),
        answer_tasks=0 * last,
    )  # fmt: skip
    return nnx.jit(read)(net, jax.tree.map(jnp.asarray, batch))


def median(run: Callable[[], Any], repeats: int) -> float:
    """Seconds."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main(options: Options) -> None:
    rng = np.random.default_rng(options.seed)
    net = model()
    graph, state = nnx.split(net)
    hidden, prompts = prompts_of(net, options.users, rng)

    @jax.jit
    def search(state: Any, hidden: Any, prompts: Any, trie: Any, excluded: Any) -> Any:
        closed = None if excluded is None else close(trie, excluded)
        return search_items(nnx.merge(graph, state), hidden, prompts, trie, closed, k=10, beams=10)

    print(f"{options.users} users at once, 10 beams, {options.repeats} repeats, seed {options.seed}\n")
    print("| items | levels | branching | trie built | search, ms a user | with 100 met items each |")
    print("|---|---|---|---|---|---|")
    cases = [(count, 4) for count in options.items] + [(10_000, depth) for depth in (2, 3)]
    for count, depth in cases:
        ids = random_ids(count, depth, rng)
        start = time.perf_counter()
        trie = build_trie(ids)
        jax.block_until_ready(trie.items)
        building = time.perf_counter() - start
        met = jnp.asarray(rng.integers(0, len(ids), (options.users, 1, 100)), jnp.int32)
        free = median(lambda: search(state, hidden, prompts, trie, None), options.repeats)  # noqa: B023
        filtered = median(lambda: search(state, hidden, prompts, trie, met), options.repeats)  # noqa: B023
        print(
            f"| {len(ids):,} | {depth} | {' '.join(map(str, trie.branching))} | {building:.2f} s "
            f"| {1e3 * free / options.users:.2f} | {1e3 * filtered / options.users:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
