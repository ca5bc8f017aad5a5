"""`unimp evaluate`: evaluates all tasks of a run on held-out data, beside baselines that answer the same questions.

It writes `evaluation/<split>.json` (tables and samples) and `evaluation/<split>-<task>.parquet` (each user's question
with all answers and metrics, from which every table can be recomputed) into the run folder.
"""

import dataclasses
import os
import time
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from data_pipelines.atomic import atomic_file
from data_pipelines.corpus import Corpus
from data_pipelines.errors import DataError
from data_pipelines.object_store import is_remote
from data_pipelines.tasks import TASKS
from experiments.baselines.item_knn import choose_item_knn
from experiments.baselines.markov import choose_markov
from experiments.baselines.ranker import Popularity, Ranker
from experiments.baselines.sasrec import NAMES, rival_config
from experiments.baselines.sasrec_training import trained_or_saved
from experiments.evals import EVALS
from experiments.evals.base import OURS, RETRIEVED, Answered, Outcome, Setting, TooFewError
from experiments.evals.config import EvaluationConfig
from experiments.evals.queries import check_queries, evaluation_queries, reason_for_none
from experiments.evals.rating import choose_rating_memory
from experiments.evals.recommender import NextItem, choose_memories, remembers
from experiments.memory import Memory, save_memory
from experiments.path_options import PathOrURL
from experiments.results import Evaluation, Row, TaskTable, save_evaluation
from experiments.run import load_model, open_data, restore
from unimp_jax.evaluation.bootstrap import interval, metric
from unimp_jax.evaluation.predictor import Predictor
from unimp_jax.processes import ProcessesConfig, arrays_of_first, join, print_once

BEST = 10
"""Number of items that each user's answer names."""
RIVALS = "rivals"
"""Folder of the trained rivals, in that of the evaluation; another evaluation by the same options reads them."""


def evaluate_command(
    folder: tyro.conf.Positional[PathOrURL],
    config: Annotated[EvaluationConfig, tyro.conf.arg(name="")],
    processes: ProcessesConfig = ProcessesConfig(),
) -> None:
    """Evaluate a run on all tasks, with baselines.

    Args:
      folder: the run folder.
      processes: how the processes find one another, if there are several.
    """
    join(processes)
    print_once(show(evaluate_run(folder, config)))


def evaluate_run(folder: Path, config: EvaluationConfig) -> Evaluation:
    """Evaluates the run's model and the baselines on all tasks, and writes the results.

    Raises:
      DataError: the folder holds no run, its data is not prepared, there is no question to ask, or the run has no
        complete checkpoint.
      CheckpointError: the checkpoint cannot be read.
    """
    start = time.perf_counter()
    data, split = open_data(folder, config.mesh), config.split
    corpus = data.corpus
    mix = data.config.queries.mix  # images are only asked for if the run was trained to generate them
    tasks = [name for name, task in TASKS.items() if name in config.tasks and (not task.needs_codes or mix[name])]
    everything = {task: evaluation_queries(data, split, task, config.users) for task in tasks}
    check_queries(data, split, everything)
    if data.vocabulary.depth > 1 and config.beams < BEST:
        raise ValueError(f"{config.beams} beams cannot find the {BEST} best items; use --beams {BEST} or more")
    left_out = {task: reason_for_none(data, split, task, none) for task, none in everything.items() if not none.queries}
    asked = {task: questions for task, questions in everything.items() if questions.queries}
    opened = {task: EVALS[task].open(data, config) for task in asked}
    place = folder / "evaluation"
    place.mkdir(exist_ok=True)
    if not is_remote(place) and not os.access(place, os.W_OK):  # reported before the evaluation starts, not after
        raise DataError(f"{place} cannot be written: check its permissions, and that its disk is not read-only")
    predictor, facts = load_model(folder, data, config.checkpoint)
    if config.encode_catalogue:
        predictor = predictor.encode_catalogue(data.writer.has_image, data.images.__getitem__)
    ranking = [EVALS[task] for task in asked if EVALS[task].needs_rankers]
    rankers, unfit = fit_rankers(corpus, config, place / RIVALS) if ranking else ([], {})
    left_out |= unfit
    next_item = NextItem(data, predictor)
    with_memory = choose_memories(data, next_item, rankers, ranking) if remembers(data) else {}
    memory = Memory(
        {task: chosen.memory for task, chosen in with_memory.items()},
        choose_rating_memory(data, predictor) if "rating" in asked else None,
    )

    def with_content(content: np.ndarray) -> Predictor:
        return restore(folder, data.config, config.checkpoint, content)[0]

    answered: dict[str, Answered] = {}
    for task, questions in asked.items():
        try:
            beside = [with_memory[task], *rankers] if task in with_memory else rankers
            setting = Setting(data, predictor, questions, next_item, beside, config, with_content, opened[task], memory)
            answered[task] = EVALS[task].evaluate(setting)
        except TooFewError as error:
            left_out[task] = str(error)
    outcomes = {name: outcome for one in answered.values() for name, outcome in one.outcomes.items()}
    if not outcomes:
        raise DataError(f"{data.config.data.source}: no task can be evaluated: {'; '.join(left_out.values())}")
    evaluation = Evaluation(
        source=data.config.data.source,
        split=config.split,
        step=facts.step,
        tables=tuple(tabulate(task, outcome, config.seed) for task, outcome in outcomes.items()),
        samples=tuple(sample for one in answered.values() for sample in one.samples),
        seconds=time.perf_counter() - start,
        facts=facts.described,
        left_out=left_out,
    )
    if jax.process_index() == 0:
        for one in answered.values():
            if one.save_images:
                evaluation = dataclasses.replace(evaluation, images=one.save_images(place))
        for task, outcome in outcomes.items():
            save_answers(outcome, place / f"{split}-{task}.parquet")
        save_memory(folder, memory, asked)
        save_evaluation(evaluation, place / f"{split}.json")  # written last, so that everything it refers to exists
    return evaluation


def fit_rankers(corpus: Corpus, config: EvaluationConfig, saved: Path) -> tuple[list[Ranker], dict[str, str]]:
    """Returns (the baselines, the reason why one is left out by its name).

    Args:
      saved: folder of the rivals that an earlier evaluation trained; one that is not there is trained and saved.
    """
    rankers: list[Ranker] = [Popularity(corpus), choose_markov(corpus), choose_item_knn(corpus)]
    left_out = {}
    for rival in config.rivals:
        chosen = rival_config(rival, config.sasrec_config)
        try:
            ranker = trained_or_saved(corpus, chosen, saved / f"{rival}.npz")
        except DataError as error:
            left_out[NAMES[chosen.model.block]] = str(error)
            continue
        ranker.parameters = arrays_of_first(ranker.parameters)  # a clock gives each process another number of steps
        rankers.append(ranker)
    return rankers, left_out


def tabulate(task: str, outcome: Outcome, seed: int) -> TaskTable:
    """Returns the means (or RMSE, F1, BLEU, … of means) of each model with bootstrap intervals over users."""
    rows = []
    for model, per_user in sorted(outcome.metrics.items(), key=lambda row: place_of(row[0])):
        if outcome.formulas:
            formulas = outcome.formulas(per_user)
            metrics = {name: metric(per_user, formula, seed=seed) for name, formula in formulas.items()}
        else:
            metrics = {name: interval(values, seed=seed) for name, values in per_user.items()}
        rows.append(Row(model, metrics))
    users = len(next(iter(outcome.answers.values())))
    return TaskTable(task, users, outcome.larger_is_better, tuple(rows), outcome.note)


def place_of(model: str) -> float:
    """Returns the sort key of a model's row: our rows first, "UniMP + memory + query" before "UniMP"."""
    if not model.startswith(OURS):
        return 1
    return 0.5 if model.endswith(RETRIEVED) else -model.count(" + ")


def save_answers(outcome: Outcome, path: Path) -> None:
    """Writes the answers as Parquet, one row per question, with columns `MODEL: METRIC` of the user's metrics, null
    where a model has none (a rating that could not be parsed)."""
    columns = dict(outcome.answers)
    count = len(next(iter(columns.values())))
    for model, per_user in outcome.metrics.items():
        is_rated = np.isfinite(columns.get(f"{model}: rating", np.zeros(count)))
        for name, values in per_user.items():
            whole = np.full(count, np.nan)
            whole[is_rated] = values
            columns[f"{model}: {name}"] = pa.array(whole, from_pandas=True)
    with atomic_file(path, shared=True) as partial:
        pq.write_table(pa.table(columns), partial)


def show(evaluation: Evaluation) -> str:
    """Formats the tables as text for a terminal."""
    lines = [f"{evaluation.source}, {evaluation.split}, step {evaluation.step}"]
    for table in evaluation.tables:
        names = {name: name.replace(" (unfiltered)", "*") for name in table.rows[0].metrics}
        width = max(len(row.model) for row in table.rows)
        lines += ["", f"{table.task} ({table.users} users). {table.note}"]
        lines.append(" ".join([" " * width, *(f"{head:>9}" for head in names.values())]))
        for row in table.rows:
            values = [f"{row.metrics[name].mean:.4f}" if name in row.metrics else "-" for name in names]
            cells = [f"{metric:>{max(9, len(head))}}" for metric, head in zip(values, names.values(), strict=True)]
            lines.append(" ".join([f"{row.model:{width}}", *cells]))
    left_out = [f"left out: {what}: {why}" for what, why in evaluation.left_out.items()]
    return "\n".join([*lines, "", "* unfiltered", *left_out])
