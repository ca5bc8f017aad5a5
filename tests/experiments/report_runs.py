"""Folders of runs that were never run: drawn metrics, written by the writers that runs use."""

import contextlib
import dataclasses
import io
import json
from pathlib import Path

import numpy as np

from experiments.config import ExperimentConfig, save_config
from experiments.data import PreparedSource
from experiments.evals.base import OURS, Outcome
from experiments.evaluate import save_answers, tabulate
from experiments.results import Evaluation, Sample, save_evaluation
from unimp_jax.evaluation.metrics import (
    RATING_METRICS,
    SELECTION_METRICS,
    ranking_metrics,
    rating_errors,
    selection_counts,
)
from unimp_jax.training.log import RunLog

SHOWN = 10


def write_run(
    folder: Path, config: ExperimentConfig, records: PreparedSource, *, worse: float = 0.0, cell: str = ""
) -> Path:
    """An evaluated run.

    Args:
      worse: by about so many e-folds its ranks lie behind others'.
      cell: the ablation it is of, in a sweep.
    """
    begin_run(folder, config, steps=config.loop.steps, worse=worse, cell=cell)
    outcomes = answer(config, records, worse)
    ranks = outcomes["recommendation"].answers[f"{OURS}: rank, filtered"]
    tops = outcomes["recommendation"].answers["items"]
    numbers = {item: number for number, item in enumerate(records.corpus.item_ids)}
    samples = tuple(
        Sample(
            user=records.corpus.user_ids[user],
            history=tuple(records.corpus.history(user, 3).tolist()),
            target=target_of(records, user),
            rank=float(ranks[user]),
            top=tuple(numbers[item] for item in tops[user]),
        )
        for user in range(4)
    )
    tables = tuple(tabulate(task, outcome, 0) for task, outcome in outcomes.items())
    facts = {"parameters that train": "12,345", "frozen parameters": "678", "seed": config.seed}
    evaluation = Evaluation(config.data.source, "test", config.loop.steps, tables, samples, 2.5, facts)
    save_evaluation(evaluation, folder / "evaluation" / "test.json")
    for task, outcome in outcomes.items():
        save_answers(outcome, folder / "evaluation" / f"test-{task}.parquet")
    return folder


def begin_run(folder: Path, config: ExperimentConfig, *, steps: int, worse: float = 0.0, cell: str = "") -> Path:
    """A run that has come so far and is not evaluated."""
    folder.mkdir(parents=True)
    save_config(config, folder / "config.json")
    if cell:
        described = {
            "sweep": "sweep",
            "base": "tiny",
            "ablation": cell,
            "seed": config.seed,
            "description": f"no {cell}",
        }
        (folder / "cell.json").write_text(json.dumps(described))
    rng = np.random.default_rng(config.seed)
    with contextlib.redirect_stderr(io.StringIO()), RunLog(folder, step=0, steps=config.loop.steps) as log:
        for step in range(2, steps + 1, 2):
            loss = 4 / step + worse + rng.normal(0, 0.05)
            log.write(step, "train", {"loss": loss, "fill": 0.9, "step_seconds": 0.5 + config.seed / 10})
            if step % 4 == 0:
                found = float(np.clip(0.3 - 1 / step - 0.1 * worse + rng.normal(0, 0.01), 0, 1))
                log.write(step, "validation", {"NDCG@10": found / 2, "HR@10": found, "cross_entropy": loss})
    return folder


def target_of(records: PreparedSource, user: int) -> int:
    return int(records.corpus.history(user, 4)[3])


def answer(config: ExperimentConfig, records: PreparedSource, worse: float) -> dict[str, Outcome]:
    """A user is hard or easy for all runs; a seed adds a little, and chance the rest."""
    corpus = records.corpus
    users = np.arange(corpus.num_users)
    ease = np.random.default_rng(99).normal(1.2, 0.8, len(users))
    rng = np.random.default_rng((config.seed, int(1000 * (worse + 1))))
    logs = ease + worse + rng.normal(0, 0.05) + rng.normal(0, 0.3, len(users))
    ranks = np.clip(np.round(np.exp(logs)), 1, corpus.num_items).astype(np.float32)
    asked = {
        "user": [corpus.user_ids[user] for user in users],
        "position": [3 for _ in users],
        "item": [corpus.item_ids[target_of(records, user)] for user in users],
    }
    tops = [[corpus.item_ids[item] for item in rng.permutation(corpus.num_items)[:SHOWN]] for _ in users]
    popular = ranking_metrics(np.clip(np.round(np.exp(ease + 1)), 1, corpus.num_items))
    ranked = {"items": tops, f"{OURS}: rank, unfiltered": ranks, f"{OURS}: rank, filtered": ranks}
    stars = np.full(len(users), 3.0)
    guesses = stars + worse + rng.normal(0, 0.5, len(users))
    read = np.where(users == 5, np.nan, guesses) if config.seed == 0 else guesses
    predicted = {f"{OURS}, expected rating": guesses, f"{OURS}, written rating": read, "mean rating": stars + 1}
    rated = {f"{name}: rating": values for name, values in predicted.items()}
    errors = {name: rating_errors(x[np.isfinite(x)], stars[np.isfinite(x)]) for name, x in predicted.items()}
    right = [(0,) if user % 2 else (0, 1) for user in users]
    chosen = [(int(rng.random() < 0.3 + worse / 4),) for _ in users]
    return {
        "recommendation": Outcome(
            "What comes next?", {OURS: ranking_metrics(ranks), "Popularity": popular}, asked | ranked
        ),
        "rating": Outcome("How many stars?", errors, asked | rated, lambda _: RATING_METRICS, False),
        "selection": Outcome(
            "Which?", {OURS: selection_counts(chosen, right)}, asked | {"right": right}, lambda _: SELECTION_METRICS
        ),
    }


def with_seed(config: ExperimentConfig, seed: int) -> ExperimentConfig:
    return dataclasses.replace(config, seed=seed)
