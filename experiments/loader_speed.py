"""`unimp loader`: how fast batches come when nothing waits for them, and how full they are."""

from __future__ import annotations

import itertools
import time

import numpy as np

from experiments.config import ExperimentConfig
from experiments.data import ExperimentData


def measure_loader(config: ExperimentConfig, batches: int = 200) -> dict[str, float]:
    """Reads so many batches and prints examples/s, images/s, tokens/s and the fill of the three budgets."""
    data = ExperimentData.load(config)
    stream = data.training()
    examples = images = tokens = answers = 0
    fills = []
    start = time.perf_counter()
    for batch in itertools.islice(stream, batches):
        examples += batch.num_examples
        images += batch.num_images
        fills.append(batch.fill)
        tokens += int((batch.arrays["segment_ids"] > 0).sum())
        answers += int((batch.arrays["answer_weights"] > 0).sum())
    seconds = time.perf_counter() - start
    stream.close()
    slots = batches * config.loader.rows
    figures = {
        "examples_per_second": examples / seconds,
        "images_per_second": images / seconds,
        "tokens_per_second": tokens / seconds,
        "batches_per_second": batches / seconds,
        "token_fill": float(np.mean(fills)),
        "image_fill": images / (slots * config.budget.images),
        "answer_fill": answers / (slots * config.budget.answers),
    }
    for name, value in figures.items():
        print(f"{name:22}{value:12.3f}" if "fill" in name else f"{name:22}{value:12.0f}")
    return figures
