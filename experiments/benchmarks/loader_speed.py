"""How fast a preset's training batches come when nothing waits for them, and how full they are.

python -m experiments.benchmarks.loader_speed small --loader.batch-size 4
"""

from __future__ import annotations

import itertools
import time
from typing import Annotated, Any

import numpy as np
import tyro

from experiments.data import ExperimentData
from experiments.presets import DESCRIPTIONS, PRESETS

Preset: Any = tyro.extras.subcommand_type_from_defaults(PRESETS, DESCRIPTIONS, prefix_names=False)


def main(config: Annotated[Preset, tyro.conf.arg(name="")], batches: int = 200) -> None:
    """Prints examples, images and tokens a second, and the fill of the three budgets.

    Args:
      batches: so many are read.
    """
    stream = ExperimentData.load(config).training()
    counts, fills = np.zeros(4, int), []
    start = time.perf_counter()
    for batch in itertools.islice(stream, batches):
        tokens, answers = batch.arrays["segment_ids"] > 0, batch.arrays["answer_weights"] > 0
        counts += batch.num_examples, batch.num_images, tokens.sum(), answers.sum()
        fills.append(batch.fill)
    seconds = time.perf_counter() - start
    stream.close()
    for name, count in zip(("examples", "images", "tokens"), counts[:3], strict=True):
        print(f"{name + ' a second':22}{count / seconds:12.0f}")
    print(f"{'batches a second':22}{batches / seconds:12.1f}")
    slots = batches * config.loader.batch_size
    print(f"{'filled token slots':22}{np.mean(fills):12.3f}")
    print(f"{'filled image slots':22}{counts[1] / (slots * config.row_shape.images):12.3f}")
    print(f"{'filled answer slots':22}{counts[3] / (slots * config.row_shape.answers):12.3f}")


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.FlagConversionOff,))
