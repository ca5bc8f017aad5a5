"""The interface of task evaluations: how held-out queries are asked, measured and shown."""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import grain
import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.errors import DataError
from data_pipelines.loader import ProcessShard, QuestionBatch
from data_pipelines.tasks import Query
from experiments.baselines.ranker import Ranker
from experiments.data import ExperimentData
from experiments.evals.config import EvaluationConfig, GenerateConfig
from experiments.evals.queries import EvaluationQueries
from experiments.memory import Memory
from experiments.request import Request
from experiments.results import ImageSample, Sample
from unimp_jax.evaluation.metrics import Means
from unimp_jax.evaluation.predictor import Predictor
from unimp_jax.sharding import row_shards

OURS = "UniMP"
RETRIEVED = ", its first item"
"""Ends the names of rows of retrieved images; ours come after those of generated ones, which are compared."""
ANSWER_TOKENS = 16
"""Minimum number of tokens whose probabilities are computed, so that different answers share one compiled program."""
PerUser = dict[str, np.ndarray]
Formulas = Mapping[str, Callable[[Means], np.ndarray]]


class TooFewError(DataError):
    """There are too few queries, or too few images, to evaluate a task."""


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """One table: a task's queries and every model's answers.

    Attributes:
      note: a sentence or two about what was asked.
      metrics: for each model, per-user values by name; metrics are computed from their means.
      formulas: maps a model's per-user values to the formulas of its metrics; None: the means are the metrics.
      answers: columns with one value per query: who was asked what, and the answers.
      larger_is_better: whether larger values are better, for all metrics.
    """

    note: str
    metrics: dict[str, PerUser]
    answers: dict[str, Any]
    formulas: Callable[[PerUser], Formulas] | None = None
    larger_is_better: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """The inputs of a task's evaluation.

    Attributes:
      questions: the held-out queries.
      next_item: the model alone, as a ranker by next-item probability.
      rankers: baselines that rank the catalogue; empty if no task needs them.
      with_content: returns the run's model with rows for more tokens (`ExperimentData.content` of other data).
      opened: the result of `TaskEval.open`.
      memory: the memory chosen to be combined with the model.
    """

    data: ExperimentData
    predictor: Predictor
    questions: EvaluationQueries
    next_item: Ranker
    rankers: Sequence[Ranker]
    config: EvaluationConfig
    with_content: Callable[[np.ndarray], Predictor]
    opened: Any = None
    memory: Memory = Memory()


@dataclasses.dataclass(frozen=True, eq=False)
class Answered:
    """The results of a task.

    Attributes:
      outcomes: tables by name; the first one is that of the task.
      samples: users whose recommendations a report shows.
      save_images: writes the images of some users into the evaluation folder.
    """

    outcomes: dict[str, Outcome]
    samples: tuple[Sample, ...] = ()
    save_images: Callable[[Path], tuple[ImageSample, ...]] | None = None


class TaskEval(abc.ABC):
    """The evaluation of a task, and its answers for `unimp generate`; `experiments.evals.register` registers one."""

    task: ClassVar[str]
    """The name of the task in `data_pipelines.tasks`."""
    needs_rankers: ClassVar[bool] = False
    """Whether baselines that rank the catalogue answer the task."""
    needs: ClassVar[tuple[str, str]] = ("", "")
    """The option of `unimp generate` that the task requires, and its meaning."""

    def open(self, data: ExperimentData, config: EvaluationConfig | GenerateConfig) -> Any:
        """Opens what is needed beside the model, so that anything missing is reported before weights are read."""
        return None

    def quality(self, corpus: Corpus, users: np.ndarray, positions: np.ndarray) -> Callable[[np.ndarray], float]:
        """Returns a quality measure of next-item probabilities for the task: larger is better. Tasks that need rankers
        implement it; the memory is chosen by it.

        Args:
          users, positions: int32 [M], the users and the positions in their histories.

        Returns:
          A function of the next-item log-probabilities of all items, float32 [M, I]; anything independent of them is
          computed in advance.
        """
        raise TypeError(f"{self.task} is not answered from next-item probabilities")

    @abc.abstractmethod
    def evaluate(self, setting: Setting) -> Answered:
        """Asks the model and the baselines all held-out queries.

        Raises:
          TooFewError: there are too few queries to evaluate.
        """

    def query(self, data: ExperimentData, request: Request, query: Query, item_of: Callable[[str], int]) -> Query:
        """Returns the open query about a user, completed by the request.

        Args:
          query: the task, the user and the length of the history.
          item_of: returns the index of an item id; raises DataError if there is none.
        """
        return query

    @abc.abstractmethod
    def answer(
        self, data: ExperimentData, predictor: Predictor, query: Query, config: GenerateConfig, opened: Any
    ) -> dict[str, Any]:
        """Returns the answer to an open query, as the fields of a JSON object."""

    @abc.abstractmethod
    def show(self, answer: dict[str, Any]) -> list[str]:
        """Formats an answer as lines for a terminal."""


def question_columns(corpus: Corpus, queries: Sequence[Query]) -> dict[str, Any]:
    """Returns columns with the user, the position and the item of each query."""
    return {
        "user": [corpus.user_ids[query.user] for query in queries],
        "position": [query.position for query in queries],
        "item": [corpus.item_ids[query.right[0]] for query in queries],
    }


def titled(corpus: Corpus, items: Sequence[int]) -> list[dict[str, Any]]:
    """Returns the ids and titles of items."""
    return [{"item": corpus.item_ids[item], "title": corpus.titles[item]} for item in items]


def moments(queries: Sequence[Query]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (users, positions) of queries for baselines, int32 [P] each."""
    return np.array([q.user for q in queries], np.int32), np.array([q.position for q in queries], np.int32)


def prompt_batches(
    data: ExperimentData,
    predictor: Predictor,
    queries: Sequence[Query],
    *,
    begun: Sequence[tuple[int, ...]] | None = None,
    tight: bool = False,
) -> grain.DatasetIterator[QuestionBatch]:
    """Returns this process's shard of the batches of prompts, with the first tokens of each answer (`begun`), and only
    as large as these prompts need if `tight`."""
    prompts = data.writer.write_all(queries, ask=True, begun=begun)
    shard = ProcessShard(*row_shards(predictor.mesh))
    return data.questions(prompts, shard, tight=tight, with_images=predictor.needs_images)


def refuse_nan(scores: np.ndarray) -> np.ndarray:
    """Returns the scores; ValueError if some are NaN, because the best of them would be an arbitrary answer."""
    if np.isnan(scores).any():
        raise ValueError(
            f"the model's scores are NaN for {np.isnan(scores).any(axis=-1).sum():,} of {len(scores):,} prompts"
        )
    return scores


def next_token(
    data: ExperimentData,
    predictor: Predictor,
    queries: Sequence[Query],
    tokens: np.ndarray,
    begun: Sequence[tuple[int, ...]] | None = None,
) -> np.ndarray:
    """Returns the probabilities of `tokens` (int [n]) after each prompt, normalised over `tokens`: float32 [P, n]."""
    batches = prompt_batches(data, predictor, queries, begun=begun)
    padded = np.resize(tokens, max(len(tokens), ANSWER_TOKENS))
    logs = refuse_nan(predictor.among(batches, padded, len(queries))[:, : len(tokens)])
    weights = np.exp(logs - logs.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)
