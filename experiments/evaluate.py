"""`unimp evaluate`: all tasks of a run on held-out data, beside baselines that answer the very same questions.

Leaves `evaluation/<split>.json` (tables and samples) and `evaluation/<split>-<task>.parquet` (each user's question, all
answers and figures, from which any table can be computed anew) in the folder of the run.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.errors import DataError
from data_pipelines.tasks import TASKS, Query
from data_pipelines.tasks.base import Split
from experiments.answers import Outcome, ask_items, ask_preference, ask_selections, save_answers
from experiments.baselines.markov import choose_markov
from experiments.baselines.popularity import Popularity
from experiments.baselines.ranker import Ranker
from experiments.baselines.sasrec import SASRecConfig
from experiments.baselines.sasrec_training import train_sasrec
from experiments.data import ExperimentData
from experiments.painting import GalleryConfig, ask_held_out, open_painter
from experiments.pictures import sample_pictures
from experiments.questions import questions_of, refuse_nothing, why_none
from experiments.results import Evaluation, Row, Sample, Table, save_evaluation
from experiments.run import ALL_DEVICES, Checkpoint, load_model, open_data
from unimp_jax.decoding import BeamConfig
from unimp_jax.evaluation.bootstrap import figure, interval
from unimp_jax.evaluation.ranking import Ranked
from unimp_jax.sharding import MeshConfig

SAMPLED_HISTORY = 10
BEST = 10
"""Items that each user's answer names."""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured."""

    split: Split = "test"
    tasks: tuple[str, ...] = dataclasses.field(default_factory=lambda: tuple(TASKS))
    """Which of them are asked."""
    users: int | None = None
    """So many users, an even sample, are asked in each task; by default all."""
    checkpoint: Checkpoint = "best"
    """The best by validation, or the latest."""
    beams: int = 20
    """With which items are searched for that have semantic ids."""
    reviews: BeamConfig = BeamConfig(beams=5, new_tokens=256)
    """How ratings and explanations are written."""
    pictures: GalleryConfig = GalleryConfig()
    """How pictures are generated and measured, where the run was trained for that."""
    encode_catalogue: bool = True
    """Every picture is encoded once, before anybody is asked; or, where there is no room for them all, in prompts."""
    sasrec: bool = True
    """Whether SASRec is trained as well (the other baselines only count)."""
    sasrec_config: SASRecConfig = SASRecConfig()
    """Its geometry and the time it is given."""
    samples: int = 8
    """Users whose history and recommendations are shown."""
    seed: int = 0
    """Of the bootstrap and of which users are shown."""
    mesh: MeshConfig = ALL_DEVICES
    """How the model lies on the devices that are here, whatever it was trained on."""

    def __post_init__(self) -> None:
        if self.users is not None and self.users < 1:
            raise ValueError(f"users {self.users} must be 1 or more")
        if self.samples < 0 or self.seed < 0:
            raise ValueError(f"samples {self.samples} and seed {self.seed} must be 0 or more")
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            raise ValueError(f"tasks {' '.join(unknown) or 'of nothing'}: one or more of {', '.join(TASKS)}")


def evaluate_run(folder: Path, config: EvaluationConfig) -> Evaluation:
    """Asks the run's model everything, and the baselines as well; writes what came of it.

    Raises:
      DataError: the folder holds no run, its data is not prepared, nobody can be asked anything, or the run has no
        whole checkpoint.
      CheckpointError: the checkpoint cannot be read.
    """
    start = time.perf_counter()
    data, split = open_data(folder, config.mesh), config.split
    corpus = data.corpus
    everything = {task: questions_of(data, split, task, config.users) for task in asked_tasks(data, config)}
    refuse_nothing(data, split, everything)
    if data.vocabulary.depth > 1 and config.beams < BEST:
        raise ValueError(f"{config.beams} beams do not find the {BEST} best items: --beams {BEST} or more do")
    left_out = {task: why_none(data, split, task, none) for task, none in everything.items() if not none.queries}
    asked = {task: questions for task, questions in everything.items() if questions.queries}
    painter = open_painter(data, config.pictures.painting.vqgan) if "image" in asked else None
    place = folder / "evaluation"
    place.mkdir(exist_ok=True)
    if not os.access(place, os.W_OK):  # which is better told before anybody is asked
        raise DataError(f"{place} may not be written: it belongs to somebody else, or its disk can only be read")
    predictor, facts = load_model(folder, data, config.checkpoint)
    if config.encode_catalogue:
        predictor = predictor.encode_catalogue(data.writer.has_image, data.images.__getitem__)
    rankers, unfit = fit_rankers(corpus, config) if {*asked} - {"preference", "image"} else ([], {})
    left_out |= unfit
    outcomes: dict[str, Outcome] = {}
    ranked, generated = None, None
    if "recommendation" in asked:
        outcomes["recommendation"], ranked = ask_items(
            data, predictor, rankers, asked["recommendation"], "recommendation", config.beams
        )
    if "search" in asked:
        outcomes["search"], _ = ask_items(data, predictor, rankers, asked["search"], "search", config.beams)
    if "preference" in asked:
        outcomes |= ask_preference(data, predictor, asked["preference"], config.reviews)
    if "selection" in asked:
        outcomes["selection"] = ask_selections(data, predictor, rankers, asked["selection"])
    if painter:
        try:
            painted, generated = ask_held_out(data, predictor, asked["image"], painter, config.pictures, config.seed)
            outcomes |= painted
        except DataError as error:  # too few pictures to measure by
            left_out["image"] = str(error)
    if not outcomes:
        raise DataError(f"{data.config.data.source}: nothing is left to ask: {'; '.join(left_out.values())}")
    evaluation = Evaluation(
        source=data.config.data.source,
        split=config.split,
        step=facts.step,
        tables=tuple(tabulate(task, outcome, config.seed) for task, outcome in outcomes.items()),
        samples=sample(corpus, asked["recommendation"].queries, ranked, config) if ranked else (),
        seconds=time.perf_counter() - start,
        facts=facts.described,
        left_out=left_out,
    )
    if jax.process_index() == 0:
        if generated:
            shown = sample_pictures(data, generated, place, split, count=config.samples, seed=config.seed)
            evaluation = dataclasses.replace(evaluation, pictures=shown)
        for task, outcome in outcomes.items():
            save_answers(outcome, place / f"{split}-{task}.parquet")
        save_evaluation(evaluation, place / f"{split}.json")  # at last: what it speaks of is there
    return evaluation


def asked_tasks(data: ExperimentData, config: EvaluationConfig) -> list[str]:
    """Those asked for, but for pictures where the run was not trained to generate any."""
    mix = data.config.queries.mix
    return [name for name, task in TASKS.items() if name in config.tasks and (not task.needs_codes or mix[name])]


def fit_rankers(corpus: Corpus, config: EvaluationConfig) -> tuple[list[Ranker], dict[str, str]]:
    """(the baselines, why one is left out, by its name)."""
    rankers: list[Ranker] = [Popularity(corpus), choose_markov(corpus)]
    if config.sasrec:
        try:
            rankers.append(train_sasrec(corpus, config.sasrec_config))
        except DataError as error:
            return rankers, {"SASRec": str(error)}
    return rankers, {}


def tabulate(task: str, outcome: Outcome, seed: int) -> Table:
    """Means (or RMSE, F1, BLEU, … of means) with bootstrap intervals over users."""
    rows = []
    for model, per_user in outcome.figures.items():
        if outcome.formulas:
            formulas = outcome.formulas(per_user)
            figures = {name: figure(per_user, formula, seed=seed) for name, formula in formulas.items()}
        else:
            figures = {name: interval(values, seed=seed) for name, values in per_user.items()}
        rows.append(Row(model, figures))
    users = len(next(iter(outcome.answers.values())))
    return Table(task, users, outcome.larger_is_better, tuple(rows), outcome.note)


def sample(corpus: Corpus, queries: Sequence[Query], ranked: Ranked, config: EvaluationConfig) -> tuple[Sample, ...]:
    """Some users, drawn by the seed, as many found within the ten best as not, where there are."""
    order = np.random.default_rng(config.seed).permutation(len(queries))
    found = [n for n in order.tolist() if ranked.filtered[n] <= 10][: config.samples // 2]
    missed = [n for n in order.tolist() if ranked.filtered[n] > 10][: config.samples - len(found)]
    return tuple(
        Sample(
            user=corpus.user_ids[queries[n].user],
            history=tuple(corpus.history(queries[n].user, queries[n].position)[-SAMPLED_HISTORY:].tolist()),
            target=queries[n].right[0],
            rank=float(ranked.filtered[n]),
            top=tuple(item for item in ranked.top[n].tolist() if item >= 0),
        )
        for n in found + missed
    )


def show(evaluation: Evaluation) -> str:
    """The tables as text for a terminal."""
    lines = [f"{evaluation.source}, {evaluation.split}, step {evaluation.step}"]
    for table in evaluation.tables:
        names = {name: name.replace(" (seen kept)", "*") for name in table.rows[0].figures}
        width = max(len(row.model) for row in table.rows)
        lines += ["", f"{table.task} ({table.users} users). {table.note}"]
        lines.append(" ".join([" " * width, *(f"{head:>9}" for head in names.values())]))
        for row in table.rows:
            told = [f"{row.figures[name].mean:.4f}" if name in row.figures else "-" for name in names]
            cells = [f"{figure:>{max(9, len(head))}}" for figure, head in zip(told, names.values(), strict=True)]
            lines.append(" ".join([f"{row.model:{width}}", *cells]))
    return "\n".join([*lines, "", "* seen items kept", *show_left_out(evaluation.left_out)])


def show_left_out(left_out: Mapping[str, str]) -> list[str]:
    return [f"left out: {what}: {why}" for what, why in left_out.items()]
