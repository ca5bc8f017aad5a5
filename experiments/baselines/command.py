"""`unimp sasrec`: trains a sequential baseline alone, SASRec or a successor of it, for the time that a run took."""

from pathlib import Path
from typing import Any

import numpy as np
import tyro

from data_pipelines.corpus import TEST
from data_pipelines.errors import DataError
from experiments.baselines.ranker import evaluate_ranker
from experiments.baselines.sasrec import SASRecConfig
from experiments.baselines.sasrec_training import Record, train_sasrec
from experiments.config import DataConfig
from experiments.data import load_records
from unimp_jax.evaluation.bootstrap import interval
from unimp_jax.evaluation.metrics import ranking_metrics


def sasrec_command(
    folder: tyro.conf.Positional[Path],
    data: DataConfig = DataConfig("movielens_1m"),
    config: tyro.conf.OmitArgPrefixes[SASRecConfig] = SASRecConfig(),
) -> None:
    """Train a sequential baseline alone, for a comparison with equal training time.

    SASRec by default; other values of `--block` and `--loss` make eSASRec or HSTU of it.

    Args:
      folder: folder for the training curve, the parameters and the test ranks.
      data: the data to train on.
    """
    corpus = load_records(data).corpus
    if not len(corpus.held_out(TEST)[0]):
        raise DataError(f"{data.source} has no test questions, so nothing can be ranked")
    folder.mkdir(parents=True, exist_ok=True)  # reports an unusable folder before the training

    def say(record: Record) -> None:
        print(", ".join(f"{name} {value:.4g}" for name, value in record.items()), flush=True)

    ranker = train_sasrec(corpus, config, say)
    ranker.save(folder)
    outcome: dict[str, Any] = evaluate_ranker(ranker, corpus, "test")
    np.savez_compressed(folder / "test.npz", **outcome)
    for kind in ("filtered", "unfiltered"):
        metrics = {name: interval(values) for name, values in ranking_metrics(outcome[kind]).items()}
        print(f"seen {kind}: " + ", ".join(f"{n} {i.mean:.4f} [{i.bounds(', ')}]" for n, i in metrics.items()))
