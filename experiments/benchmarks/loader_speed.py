"""Measures how fast a preset's training batches are made, how full they are, and how long each part of this takes.

python -m experiments.benchmarks.loader_speed small --loader.batch-size 4
python -m experiments.benchmarks.loader_speed --copies 15 --batches 10 openflamingo-3b
"""

import concurrent.futures
import dataclasses
import itertools
import time
from typing import Annotated, Any

import numpy as np
import tyro

from data_pipelines.corpus import Corpus
from data_pipelines.loader import BlockPlanner, fill_batch
from experiments.data import ExperimentData
from experiments.presets import DESCRIPTIONS, PRESETS
from experiments.step import model_flops
from unimp_jax.planning.chips import CHIPS

Preset: Any = tyro.extras.subcommand_type_from_defaults(PRESETS, DESCRIPTIONS, prefix_names=False)
MFU = 0.65
"""The share of its peak that a chip is assumed to reach."""


def main(
    config: Annotated[Preset, tyro.conf.arg(name="")], batches: int = 200, blocks: int = 20, copies: int = 1
) -> None:
    """Prints the throughput of a core, how many chips that feeds, and the fill of the three budgets.

    Args:
      batches: number of batches that are read as in training, with images.
      blocks: number of blocks that are planned; the rows of another one are filled, without images.
      copies: number of times that the users of the source are repeated.
    """
    data = ExperimentData.load(config)
    if copies > 1:
        data = data.of(repeated(data.corpus, copies))
    print(f"{'interactions':34}{len(data.corpus.items):14,}")
    planned, size = plan_speed(data, blocks)
    print(f"{'examples planned per core and s':34}{planned:14,.0f}")
    print(f"{'examples filled per core and s':34}{fill_speed(data):14,.0f}")
    flops = model_flops(config) / config.loader.batch_size * size
    for name, chip in CHIPS.items():
        print(f"{f'{name} chips fed at {MFU:.0%} MFU':34}{planned * flops / (MFU * chip.flops):14,.1f}")
    read(data, batches)


def repeated(corpus: Corpus, copies: int) -> Corpus:
    """Returns the corpus with each user repeated."""
    items, times, ratings, splits = (
        np.tile(array, copies) for array in (corpus.items, corpus.times, corpus.ratings, corpus.splits)
    )
    return dataclasses.replace(
        corpus,
        user_ids=[f"{user}-{number}" for number in range(copies) for user in corpus.user_ids],
        offsets=np.concatenate([[0], np.cumsum(np.tile(np.diff(corpus.offsets), copies))]),
        items=items,
        times=times,
        ratings=ratings,
        splits=splits,
        texts={},
    )


def plan_speed(data: ExperimentData, blocks: int) -> tuple[float, float]:
    """Returns (examples planned per second of processor time, rows per example)."""
    config = data.config
    planner = BlockPlanner(data.training_queries, data.writer, config.loader, config.seed)
    planner(0)  # excludes what is computed once
    start, rows = time.process_time(), 0
    for block in range(1, blocks + 1):
        rows += len(planner(block).rows)
    examples = blocks * config.loader.block_examples
    return examples / (time.process_time() - start), rows / examples


def fill_speed(data: ExperimentData) -> float:
    """Returns the examples per second of processor time that are written into rows, without images."""
    config = data.config
    block = BlockPlanner(data.training_queries, data.writer, config.loader, config.seed)(0)
    rows = block.rows[: 1 + len(block.rows) // 8]
    start = time.process_time()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        written = [[data.writer.write_planned(block.layouts, example) for example in row] for row in rows]
        fill_batch(written, config.row_shape, None, pool)
    return sum(map(len, rows)) / (time.process_time() - start)


def read(data: ExperimentData, batches: int) -> None:
    """Prints how fast batches come if nothing waits for them, and how full they are."""
    config = data.config
    stream = data.training()
    counts, fills = np.zeros(4, int), []
    start = time.perf_counter()
    for batch in itertools.islice(stream, batches):
        tokens, answers = batch.arrays["segment_ids"] > 0, batch.arrays["answer_weights"] > 0
        counts += batch.num_examples, batch.num_images, tokens.sum(), answers.sum()
        fills.append(batch.fill)
    seconds = time.perf_counter() - start
    stream.close()
    for name, count in zip(("examples", "images", "tokens"), counts[:3], strict=True):
        print(f"{name + ' read per second':34}{count / seconds:14,.0f}")
    print(f"{'batches read per second':34}{batches / seconds:14,.1f}")
    slots = batches * config.loader.batch_size
    print(f"{'filled token slots':34}{np.mean(fills):14.3f}")
    print(f"{'filled image slots':34}{counts[1] / max(slots * config.row_shape.images, 1):14.3f}")
    print(f"{'filled answer slots':34}{counts[3] / (slots * config.row_shape.answers):14.3f}")


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.FlagConversionOff,))
