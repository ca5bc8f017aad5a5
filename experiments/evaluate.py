"""`unimp evaluate`: all tasks of a run on held-out data, beside baselines that answer the very same questions.

Leaves `evaluation/<split>.json` (tables and samples) and `evaluation/<split>-<task>.parquet` (each user's question, all
answers and figures, from which any table can be computed anew) in the folder of the run.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.queries import TASKS, Query
from experiments.answers import Outcome, ask_items, ask_preference, ask_selections, save_answers
from experiments.ask import Split, encode_catalogue
from experiments.baselines.markov import choose_markov
from experiments.baselines.popularity import Popularity
from experiments.baselines.ranker import Ranker
from experiments.baselines.sasrec import SASRecConfig
from experiments.baselines.sasrec_training import train_sasrec
from experiments.painting import GalleryConfig, ask_held_out, open_painter
from experiments.pictures import sample_pictures
from experiments.results import Evaluation, Row, Sample, Table, save_evaluation
from experiments.run import Checkpoint, open_model
from unimp_jax.decoding import BeamConfig
from unimp_jax.evaluation.bootstrap import figure, interval
from unimp_jax.evaluation.harness import Ranked

SAMPLED_HISTORY = 10


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured."""

    split: Split = "test"
    tasks: tuple[str, ...] = TASKS
    """Which of them are asked."""
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

    def __post_init__(self) -> None:
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            raise ValueError(f"tasks {' '.join(unknown) or 'of nothing'}: one or more of {', '.join(TASKS)}")


def evaluate_run(folder: Path, config: EvaluationConfig) -> Evaluation:
    """Asks the run's model everything, and the baselines as well; writes what came of it.

    Raises:
      DataError: the folder holds no run, or its data is not prepared.
      CheckpointError: the run has no whole checkpoint.
    """
    start = time.perf_counter()
    data, model, facts = open_model(folder, config.checkpoint)
    paints = "image" in config.tasks and data.config.queries.mix.image
    painter = open_painter(data, config.pictures.painting.vqgan) if paints else None
    model = encode_catalogue(data, model) if config.encode_catalogue else model
    corpus, split = data.corpus, config.split
    rankers = fit_rankers(corpus, config)
    found: dict[str, Outcome | None] = {}
    queries, ranked = list[Query](), None
    if "recommendation" in config.tasks:
        found["recommendation"], queries, ranked = ask_items(
            data, model, rankers, split, "recommendation", config.beams
        )
    if "search" in config.tasks:
        found["search"] = ask_items(data, model, rankers, split, "search", config.beams)[0]
    if "preference" in config.tasks:
        found |= ask_preference(data, model, split, config.reviews)
    if "selection" in config.tasks:
        found["selection"] = ask_selections(data, model, rankers, split)
    generated = None
    if painter:
        painted, generated = ask_held_out(data, model, split, painter, config.pictures, config.seed)
        found |= painted
    outcomes = {task: outcome for task, outcome in found.items() if outcome}
    evaluation = Evaluation(
        source=data.config.data.source,
        split=config.split,
        step=facts.step,
        tables=tuple(tabulate(task, outcome, config.seed) for task, outcome in outcomes.items()),
        samples=sample(corpus, queries, ranked, config),
        seconds=time.perf_counter() - start,
        facts=facts.described,
    )
    if jax.process_index() == 0:
        place = folder / "evaluation"
        if generated:
            shown = sample_pictures(data, generated, place, split, count=config.samples, seed=config.seed)
            evaluation = dataclasses.replace(evaluation, pictures=shown)
        save_evaluation(evaluation, place / f"{config.split}.json")
        for task, outcome in outcomes.items():
            save_answers(outcome, place / f"{split}-{task}.parquet")
    return evaluation


def fit_rankers(corpus: Corpus, config: EvaluationConfig) -> list[Ranker]:
    rankers: list[Ranker] = [Popularity(corpus), choose_markov(corpus)]
    if config.sasrec:
        rankers.append(train_sasrec(corpus, config.sasrec_config))
    return rankers


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


def sample(
    corpus: Corpus, queries: Sequence[Query], ranked: Ranked | None, config: EvaluationConfig
) -> tuple[Sample, ...]:
    """Some users, drawn by the seed, as many found within the ten best as not, where there are."""
    if ranked is None:
        return ()
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
    return "\n".join([*lines, "", "* seen items kept"])
